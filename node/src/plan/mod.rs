//! Planners: pure functions from what a leader sees to what should be done. They propose and never do; whoever carries a
//! task out proves it by a command that the catalogue may still refuse. A plan is data: print it, assert on it.

pub mod what_if;

pub mod explain;

pub mod preview;

pub mod look;

pub mod repair;

pub mod export;

pub mod garbage;

pub mod retention;

pub use garbage::{GarbagePlan, Totals, plan_garbage};
pub use look::{RepairScan, condemned_of, look_at};
pub use repair::{PlanView, RepairPlan, plan_repair};
pub use retention::{candidate, plan_retention};

#[cfg(test)]
mod plan_test;

#[cfg(test)]
mod look_test;

use farshore_core::id::{NodeId, PackNo, StripeId};
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
    /// What comes first.
    pub priority: Priority,
}

impl Rebuild {
    /// Its place among all tasks.
    pub fn urgency(&self) -> Urgency {
        (self.priority, self.pack, self.index)
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
