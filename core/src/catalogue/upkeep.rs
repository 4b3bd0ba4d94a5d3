//! What operators have asked of the cluster's own work, and what is kept of how it ended: moves of whole regions, budgets,
//! and records of what was read again after it was moved.

use crate::id::{NodeId, PackNo, RepoId, StripeId};
use crate::topology::Region;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// All that one region holds moves to another.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Migration {
    /// Region that is emptied.
    pub from: Region,
    /// Region that takes what it held, as far as policies allow.
    pub to: Region,
    /// Nothing is written to the cluster until it has ended.
    pub cold: bool,
    /// Catalogue time when it was asked for, Unix milliseconds.
    pub since_ms: u64,
    /// Nodes that it empties.
    pub nodes: BTreeSet<NodeId>,
}

/// What a verification is about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Subject {
    /// What was moved off a node that was to be emptied.
    Node(NodeId),
    /// What was coded anew after a change of a repository's policy.
    Repository(RepoId),
}

/// What reading again all that was moved has shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Verification {
    /// Of what.
    pub subject: Subject,
    /// Catalogue time of its first stripe, Unix milliseconds.
    pub begun_ms: u64,
    /// Catalogue time when nothing more was to be moved or read.
    pub ended_ms: Option<u64>,
    /// Stripes read.
    pub stripes: u64,
    /// Shards of theirs that were read whole and are what the catalogue says.
    pub good: u64,
    /// Shards of theirs that were missing, spoilt or could not be read.
    pub short: u64,
    /// Good shards beyond k of the weakest stripe.
    pub weakest: Option<i16>,
}

/// One stripe of a verification.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct VerifiedStripe {
    /// Which.
    pub stripe: StripeId,
    /// Its generation: while it stays the same, the same nodes hold it.
    pub generation: u64,
    /// A bit for each shard that was read and is good.
    pub good: u32,
    /// Catalogue time, Unix milliseconds.
    pub at_ms: u64,
}

/// One pack's stripe as it was just read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StripeRead {
    /// Which pack.
    pub pack: PackNo,
    /// Generation of its stripe that was read.
    pub generation: u64,
    /// A bit for each shard that is good.
    pub good: u32,
}

/// Limits of the cluster's own work. What is not set is not limited.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Upkeep {
    /// No node re-reads its shards by itself.
    pub scrub_paused: bool,
    /// Every shard is re-read within this time, milliseconds; not set, as each node is configured.
    pub scrub_every_ms: Option<u64>,
    /// Bytes per second that one node may be given by repair, drains and migrations.
    pub node_bytes_s: Option<u64>,
    /// What the links between regions cost and may carry. A link that is not named is free and not limited.
    pub links: Vec<LinkBudget>,
    /// Millionths of the currency unit that moving shards may cost in a day.
    pub spend_micros_day: Option<u64>,
}

/// What one link between regions costs and may carry of the cluster's own work, in one direction.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LinkBudget {
    /// Where bytes leave.
    pub from: Region,
    /// Where they arrive.
    pub to: Region,
    /// Bytes per second.
    pub bytes_s: Option<u64>,
    /// Bytes in a day.
    pub bytes_day: Option<u64>,
    /// Millionths of the currency unit for each GiB.
    pub micros_gib: u64,
}

impl Upkeep {
    /// What is said of a link.
    pub fn link(&self, from: &Region, to: &Region) -> Option<&LinkBudget> {
        self.links.iter().find(|link| link.from == *from && link.to == *to)
    }
    /// Price of moving bytes over a link, in millionths of the currency unit, rounded up.
    pub fn price_micros(&self, from: &Region, to: &Region, bytes: u64) -> u64 {
        let micros = self.link(from, to).map_or(0, |link| link.micros_gib);
        let price = (u128::from(bytes) * u128::from(micros)).div_ceil(1 << 30);
        u64::try_from(price).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_rounded_up_and_a_link_has_a_direction() {
        let (a, b): (Region, Region) = ("x/a".parse().unwrap(), "y/b".parse().unwrap());
        let link =
            LinkBudget { from: a.clone(), to: b.clone(), bytes_s: None, bytes_day: None, micros_gib: 20_000 };
        let upkeep = Upkeep { links: vec![link], ..Upkeep::default() };
        assert_eq!(upkeep.price_micros(&a, &b, 1 << 30), 20_000);
        assert_eq!(upkeep.price_micros(&a, &b, 1), 1);
        assert_eq!(upkeep.price_micros(&b, &a, 1 << 40), 0);
        assert!(upkeep.price_micros(&a, &b, u64::MAX) > 1 << 40);
    }
}
