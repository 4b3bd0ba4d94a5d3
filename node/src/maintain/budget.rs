//! What repair, drains and migrations may move, as operators limit it: bytes per second to a node and over a link, bytes in
//! a day over a link, and money in a day. Kept by the leader; a new leader begins with an empty day.
//!
//! A task is charged what it is expected to move when it begins and corrected when it has ended, so that a limit is
//! exceeded by no more than one second's worth and one task.

use farshore_core::catalogue::Upkeep;
use farshore_core::id::NodeId;
use farshore_core::topology::Region;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// A day.
const DAY: Duration = Duration::from_secs(86_400);

/// What a task moves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Load {
    /// Who gets it.
    pub to: NodeId,
    /// Its bytes there.
    pub bytes: u64,
    /// Bytes by link between regions.
    pub links: BTreeMap<(Region, Region), u64>,
}

/// Why a task has to wait.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Held {
    /// The node has been given what it may be given.
    #[error("node {0} is given no more than its budget")]
    Node(NodeId),
    /// The link has carried what it may carry in a second.
    #[error("the link from {0} to {1} carries no more than its budget")]
    Rate(Region, Region),
    /// The link has carried what it may carry in a day.
    #[error("the link from {0} to {1} has carried its budget for the day")]
    Day(Region, Region),
    /// A day's money is spent.
    #[error("the budget for the day is spent")]
    Spent,
}

impl Held {
    /// Whether it is over within moments.
    pub fn is_short(&self) -> bool {
        matches!(self, Held::Node(_) | Held::Rate(..))
    }
}

/// What may be moved still.
#[derive(Debug)]
pub struct Budgets {
    limits: Upkeep,
    /// Bytes that may be given now; negative after more was.
    nodes: BTreeMap<NodeId, Bucket>,
    links: BTreeMap<(Region, Region), Bucket>,
    day: Instant,
    carried: BTreeMap<(Region, Region), u64>,
    spent_micros: u64,
}

/// Fills at a rate, up to one second's worth.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    bytes: i128,
    at: Instant,
}

impl Bucket {
    fn filled(&mut self, rate: u64, now: Instant) -> i128 {
        let gained = i128::from(rate) * (now - self.at).as_millis() as i128 / 1_000;
        // What rounds to nothing is not lost.
        if gained > 0 {
            self.bytes = (self.bytes + gained).min(rate.into());
            self.at = now;
        }
        self.bytes
    }
}

impl Budgets {
    /// Nothing was moved yet.
    pub fn new(now: Instant) -> Self {
        Budgets {
            limits: Upkeep::default(),
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            day: now,
            carried: BTreeMap::new(),
            spent_micros: 0,
        }
    }

    /// Holds to these limits from now on.
    pub fn limit(&mut self, limits: Upkeep) {
        self.limits = limits;
    }

    /// Millionths of the currency unit spent since the day began.
    pub fn spent_micros(&self) -> u64 {
        self.spent_micros
    }

    /// Whether a task may begin.
    pub fn may_begin(&mut self, load: &Load, now: Instant) -> Result<(), Held> {
        if now - self.day >= DAY {
            (self.day, self.spent_micros) = (now, 0);
            self.carried.clear();
        }
        if let Some(rate) = self.limits.node_bytes_s {
            let bucket = self.nodes.entry(load.to).or_insert(Bucket { bytes: rate.into(), at: now });
            if bucket.filled(rate, now) <= 0 {
                return Err(Held::Node(load.to));
            }
        }
        let mut price = 0u64;
        for (link, bytes) in &load.links {
            price = price.saturating_add(self.limits.price_micros(&link.0, &link.1, *bytes));
            let Some(limit) = self.limits.link(&link.0, &link.1) else { continue };
            let carried = self.carried.get(link).copied().unwrap_or(0);
            if limit.bytes_day.is_some_and(|most| carried.saturating_add(*bytes) > most) {
                return Err(Held::Day(link.0.clone(), link.1.clone()));
            }
            if let Some(rate) = limit.bytes_s {
                let bucket = self.links.entry(link.clone());
                let bucket = bucket.or_insert(Bucket { bytes: rate.into(), at: now });
                if bucket.filled(rate, now) <= 0 {
                    return Err(Held::Rate(link.0.clone(), link.1.clone()));
                }
            }
        }
        // What costs nothing is never too much.
        let most = self.limits.spend_micros_day.filter(|_| price > 0);
        match most.is_some_and(|most| self.spent_micros.saturating_add(price) > most) {
            true => Err(Held::Spent),
            false => Ok(()),
        }
    }

    /// A task begins.
    pub fn charge(&mut self, load: &Load) {
        self.book(load, 1);
    }
    /// A task has moved something else than was expected, or nothing.
    pub fn correct(&mut self, expected: &Load, moved: &Load) {
        self.book(expected, -1);
        self.book(moved, 1);
    }

    fn book(&mut self, load: &Load, sign: i128) {
        let change = |bytes: u64| i128::from(bytes) * sign;
        if let Some(bucket) = self.nodes.get_mut(&load.to) {
            bucket.bytes -= change(load.bytes);
        }
        for (link, bytes) in &load.links {
            if let Some(bucket) = self.links.get_mut(link) {
                bucket.bytes -= change(*bytes);
            }
            let carried = self.carried.entry(link.clone()).or_default();
            *carried = clamped(i128::from(*carried) + change(*bytes));
            let price = self.limits.price_micros(&link.0, &link.1, *bytes);
            self.spent_micros = clamped(i128::from(self.spent_micros) + change(price));
        }
    }
}

fn clamped(value: i128) -> u64 {
    u64::try_from(value.max(0)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::LinkBudget;
    use proptest::prelude::*;

    fn region(no: u8) -> Region {
        format!("p/r{no}").parse().unwrap()
    }
    fn load(to: u64, bytes: u64, from: &[u8]) -> Load {
        let links = from.iter().map(|no| ((region(*no), region(9)), bytes)).collect();
        Load { to: NodeId(to), bytes, links }
    }
    fn limits(bytes_s: Option<u64>, bytes_day: Option<u64>, spend: Option<u64>) -> Upkeep {
        let (from, to) = (region(1), region(9));
        Upkeep {
            links: vec![LinkBudget { from, to, bytes_s, bytes_day, micros_gib: 1 << 20 }],
            spend_micros_day: spend,
            ..Upkeep::default()
        }
    }

    #[test]
    fn a_day_ends_and_only_what_costs_something_waits_for_money() {
        let begun = Instant::now();
        let mut budgets = Budgets::new(begun);
        budgets.limit(limits(None, Some(2_500), Some(2)));
        let task = load(1, 1_024, &[1]);
        for _ in 0..2 {
            budgets.may_begin(&task, begun).unwrap();
            budgets.charge(&task);
        }
        assert_eq!(budgets.may_begin(&task, begun), Err(Held::Day(region(1), region(9))));
        let cheap = load(1, 400, &[1]);
        assert_eq!(budgets.may_begin(&cheap, begun), Err(Held::Spent));
        budgets.may_begin(&load(1, 1 << 40, &[2]), begun).unwrap();
        budgets.correct(&task, &load(1, 0, &[]));
        budgets.may_begin(&cheap, begun).unwrap();
        budgets.charge(&task);
        assert!(budgets.may_begin(&task, begun + DAY - Duration::from_secs(1)).is_err());
        budgets.may_begin(&task, begun + DAY).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whoever asks how often: over any time, no more goes over a link, or to a node, than its rate allows, but for a
        /// second's worth at the start and one task.
        #[test]
        fn rates_hold(rate in 1u64..10_000, sizes in prop::collection::vec(1u64..5_000, 1..60), step_ms in 1u64..700) {
            let begun = Instant::now();
            let (mut link, mut node) = (Budgets::new(begun), Budgets::new(begun));
            link.limit(limits(Some(rate), None, None));
            node.limit(Upkeep { node_bytes_s: Some(rate), ..Upkeep::default() });
            let (mut now, mut largest) = (begun, 0);
            let mut given = [0, 0];
            for (at, size) in sizes.iter().enumerate() {
                now += Duration::from_millis(step_ms);
                largest = largest.max(*size);
                for (budgets, given) in [&mut link, &mut node].into_iter().zip(&mut given) {
                    let task = load(1, *size, &[1]);
                    if budgets.may_begin(&task, now).is_ok() {
                        budgets.charge(&task);
                        *given += size;
                    }
                }
                let allowed = rate * (at as u64 + 1) * step_ms / 1_000 + rate + largest;
                prop_assert!(given.iter().all(|given| *given <= allowed), "{given:?} of {allowed}");
            }
            // And it is not held for ever.
            now += Duration::from_secs(1 + sizes.iter().sum::<u64>() / rate);
            prop_assert!(link.may_begin(&load(1, 1, &[1]), now).is_ok() && node.may_begin(&load(1, 1, &[1]), now).is_ok());
        }
    }
}
