//! Shards that move from full nodes to empty ones of the same region, so that a node that was added takes its share of what
//! is there already. Pure.
//!
//! Only within a region: between regions a move costs money and gains no room that new packs would not find by themselves.
//! Every move leaves the giver no emptier than the taker, so that the sum of the squares of how full they are falls with
//! each and moving comes to an end.

use super::{PlanView, Priority, Rebuild};
use farshore_core::catalogue::{Condemned, PackRecord};
use farshore_core::id::{NodeId, ShardId};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{NodeRecord, Region};
use std::collections::BTreeMap;

/// Nodes of a region differ by more than this part of their capacity before anything moves...
const BEGINS_PERMILLE: u64 = 100;
/// ...and then until they differ by less than this.
const ENDS_PERMILLE: u64 = 20;

/// A node that is too full beside another of its region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slope {
    /// The fullest.
    pub from: NodeId,
    /// The emptiest.
    pub to: NodeId,
    region: Region,
}

/// How full nodes are: bytes that each uses, of those that are well enough to say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fills(pub BTreeMap<NodeId, u64>);

impl Fills {
    fn permille(&self, node: &NodeRecord) -> Option<u64> {
        let used = *self.0.get(&node.id)?;
        Some((u128::from(used) * 1_000 / u128::from(node.capacity.max(1))) as u64)
    }

    /// The steepest slope within a region, if one is steep enough to begin with.
    pub fn steepest<'a>(&self, nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Option<Slope> {
        let mut regions = BTreeMap::<&Region, Vec<(u64, NodeId)>>::new();
        for node in nodes.into_iter().filter(|node| node.takes_shards()) {
            if let Some(permille) = self.permille(node) {
                regions.entry(&node.region).or_default().push((permille, node.id));
            }
        }
        let slopes = regions.into_iter().filter_map(|(region, fills)| {
            let ((high, from), (low, to)) = (*fills.iter().max()?, *fills.iter().min()?);
            Some((high - low, Slope { from, to, region: region.clone() }))
        });
        let steepest = slopes.max_by_key(|(by, slope)| (*by, slope.from));
        steepest.filter(|(by, _)| *by > BEGINS_PERMILLE).map(|(_, slope)| slope)
    }
}

/// Moves down a slope, of the packs in the view, and adds what they do to `fills`. At most `limit` of them; none of a stripe
/// that is not at its target, since repair has that one in hand.
pub fn plan_rebalance(view: &PlanView, slope: &Slope, fills: &mut Fills, limit: usize) -> Vec<Rebuild> {
    let (Some(from), Some(to)) = (view.nodes.get(&slope.from), view.nodes.get(&slope.to)) else {
        return Vec::new();
    };
    let mut tasks = Vec::new();
    for pack in &view.packs {
        if tasks.len() >= limit {
            break;
        }
        let Some(task) = step_down(view, pack, from, to) else { continue };
        let used = |id| fills.0.get(&id).copied().unwrap_or(0);
        let mut after = fills.clone();
        after.0.insert(from.id, used(from.id).saturating_sub(task.bytes));
        after.0.insert(to.id, used(to.id) + task.bytes);
        let (Some(high), Some(low)) = (after.permille(from), after.permille(to)) else { break };
        if high < low + ENDS_PERMILLE {
            break;
        }
        *fills = after;
        tasks.push(task);
    }
    tasks
}

fn step_down(view: &PlanView, pack: &PackRecord, from: &NodeRecord, to: &NodeRecord) -> Option<Rebuild> {
    let stripe = &pack.stripe;
    let region = |id: NodeId| view.nodes.get(&id).filter(|node| node.state.counts()).map(|node| &node.region);
    if view.listed.contains(&pack.no) || !stripe.at_target(region) {
        return None;
    }
    if stripe.shards.iter().any(|shard| shard.node == Some(to.id)) && !mutant(Mutant::LevelTwice) {
        return None;
    }
    let index = (0u8..).zip(&stripe.shards).find(|(_, shard)| shard.node == Some(from.id))?.0;
    let shard = ShardId { stripe: stripe.id, index };
    if view.condemned.contains(&Condemned { node: to.id, shard }) {
        return None;
    }
    Some(Rebuild {
        pack: pack.no,
        generation: stripe.generation,
        index,
        from_holders: view.good_holders(pack),
        to: to.id,
        stripe: stripe.id,
        bytes: stripe.shard_len,
        reclaims: false,
        // Behind everything that makes something safer.
        priority: Priority { spare_after_region: i16::MAX, spare: i16::MAX },
    })
}

#[cfg(test)]
#[path = "rebalance_test.rs"]
mod tests;
