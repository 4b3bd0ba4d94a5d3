//! Planners: pure functions from what a leader sees to what should be done. They propose and never do; whoever carries a
//! task out proves it by a command that the catalogue may still refuse. A plan is data: print it, assert on it.

pub mod what_if;

pub mod explain;

pub mod preview;

pub mod look;

pub mod repair;

pub mod rebalance;

pub mod export;

pub mod garbage;

pub mod retention;

pub use garbage::{GarbagePlan, Totals, plan_garbage};
pub use look::{RepairScan, condemned_of, look_at, packs_of};
pub use repair::{PlanView, RepairPlan, plan_repair};
pub use retention::{candidate, plan_retention};

#[cfg(test)]
mod plan_test;

#[cfg(test)]
mod look_test;

use farshore_core::catalogue::Migration;
use farshore_core::id::{NodeId, PackNo, StripeId};
use farshore_core::placement::Level;
use farshore_core::topology::{NodeRecord, NodeState, Region};
use std::collections::BTreeMap;

/// Something to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Task {
    /// Make shard `index` of a pack durable on a node that should hold it, then record it.
    Rebuild(Rebuild),
}

/// One shard to be made durable elsewhere. By itself it leaves its stripe better off, whatever becomes of other tasks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rebuild {
    /// Which pack.
    pub pack: PackNo,
    /// Generation of its stripe that the plan was made for. Another generation makes the task void: plan again.
    pub generation: u64,
    /// Which shard.
    pub index: u8,
    /// Good shards and who holds them, by index; at least k. If `index` is among them, its copy can simply be moved.
    pub from_holders: Vec<(u8, NodeId)>,
    /// Who shall hold it.
    pub to: NodeId,
    /// Name of its stripe, for people.
    pub stripe: StripeId,
    /// Bytes of the shard.
    pub bytes: u64,
    /// It has a copy that is condemned and not swept yet: that copy counts again if it is whole, and nothing is sent.
    pub reclaims: bool,
    /// What comes first.
    pub priority: Priority,
}

impl Rebuild {
    /// Its place among all tasks.
    pub fn urgency(&self) -> Urgency {
        (self.priority, self.pack, self.index)
    }

    /// The same, and of one pack first what costs nothing.
    pub fn order(&self) -> (Priority, PackNo, bool, u8) {
        (self.priority, self.pack, !self.reclaims, self.index)
    }
}

/// Which region takes what another holds, while that one is emptied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Routes(BTreeMap<Region, Region>);

impl Routes {
    /// Those of these migrations.
    pub fn of<'a>(migrations: impl IntoIterator<Item = &'a Migration>) -> Self {
        Routes(migrations.into_iter().map(|m| (m.from.clone(), m.to.clone())).collect())
    }

    /// These, and one more that is thought of.
    #[must_use]
    pub fn with(mut self, more: Option<&(Region, Region)>) -> Self {
        self.0.extend(more.cloned());
        self
    }

    /// What `place` finds under the routes, unless that is weaker than what it finds without: a route is a wish, what
    /// must be survived is not, and nobody who stays makes room for it. `place` is told whether to keep to them; `cost` is
    /// the level, whether a shard has no place, and how many move that could stay.
    fn prefer<T>(&self, cost: impl Fn(&T) -> (Level, bool, usize), place: impl Fn(bool) -> T) -> T {
        if self.0.is_empty() {
            return place(false);
        }
        let (routed, free) = (place(true), place(false));
        if cost(&routed) <= cost(&free) { routed } else { free }
    }

    /// Whether `to` is not where the shards of a node that is emptied shall go; `from` holds the shard.
    fn leads_elsewhere(
        &self,
        nodes: &BTreeMap<NodeId, NodeRecord>,
        from: Option<NodeId>,
        to: NodeId,
    ) -> bool {
        let leaves = |node: &&NodeRecord| matches!(node.state, NodeState::Draining | NodeState::Retired);
        let from = from.and_then(|id| nodes.get(&id)).filter(leaves);
        let route = from.and_then(|from| self.0.get(&from.region));
        route.is_some_and(|region| nodes.get(&to).is_none_or(|to| to.region != *region))
    }
}

/// The order of repair; the smaller, the earlier.
pub type Urgency = (Priority, PackNo, u8);

/// How urgent a task is; the smaller, the more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Priority {
    /// Good shards beyond k that would be left after the worst further loss of one region; negative if too few.
    pub spare_after_region: i16,
    /// Good shards beyond k now.
    pub spare: i16,
}

impl Priority {
    /// For a stripe that needs k shards and has good ones in these regions, one entry for each shard.
    pub fn of<R: Ord>(k: usize, good: impl IntoIterator<Item = R>) -> Self {
        let mut by_region = BTreeMap::<R, i16>::new();
        good.into_iter().for_each(|region| *by_region.entry(region).or_default() += 1);
        let spare = by_region.values().sum::<i16>() - k as i16;
        Priority { spare_after_region: spare - by_region.values().max().copied().unwrap_or(0), spare }
    }
}
