//! What a run did: work by kind and outcome, faults by kind, checks by invariant, and which faults hit which work, so that
//! a fault that was never hit during an operation is reported and silence is never mistaken for proof.

use crate::plan::{Fault, Work};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// How operations of one kind ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Ended {
    /// Succeeded.
    pub ok: u64,
    /// Refused with a typed error, which the faults of the moment allowed.
    pub refused: u64,
    /// Ended with their client.
    pub died: u64,
}

/// Counts of one run; those of several add up.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Tallies {
    /// By [`Work::word`].
    pub work: BTreeMap<String, Ended>,
    /// Faults injected, by [`Fault::kind`].
    pub faults: BTreeMap<String, u64>,
    /// Faults that were planned and would have broken more than the policies allow to be broken.
    pub withheld: BTreeMap<String, u64>,
    /// What came of operators' orders, and what planners have moved.
    pub upkeep: BTreeMap<String, u64>,
    /// Checks made, by invariant.
    pub checks: BTreeMap<String, u64>,
    /// How often a fault (outer key) was injected or under way during an operation (inner key).
    pub pairs: BTreeMap<String, BTreeMap<String, u64>>,
    /// Catalogue operations checked for linearizability, and of them those in histories that were left undecided.
    pub linear: (u64, u64),
}

impl Tallies {
    /// Counts one more.
    pub fn add(map: &mut BTreeMap<String, u64>, key: &str) {
        match map.get_mut(key) {
            Some(count) => *count += 1,
            None => drop(map.insert(key.into(), 1)),
        }
    }
    /// Adds the counts of another run.
    pub fn merge(&mut self, other: &Tallies) {
        fn sum(into: &mut BTreeMap<String, u64>, from: &BTreeMap<String, u64>) {
            from.iter().for_each(|(key, count)| *into.entry(key.clone()).or_default() += count);
        }
        let Tallies { work, faults, withheld, upkeep, checks, pairs, linear } = other;
        for (kind, ended) in work {
            let all = self.work.entry(kind.clone()).or_default();
            all.ok += ended.ok;
            all.refused += ended.refused;
            all.died += ended.died;
        }
        sum(&mut self.faults, faults);
        sum(&mut self.withheld, withheld);
        sum(&mut self.upkeep, upkeep);
        sum(&mut self.checks, checks);
        for (fault, row) in pairs {
            sum(self.pairs.entry(fault.clone()).or_default(), row);
        }
        self.linear = (self.linear.0 + linear.0, self.linear.1 + linear.1);
    }
    /// A fault met an operation.
    pub fn met(&mut self, fault: &str, operation: &str) {
        Self::add(self.pairs.entry(fault.into()).or_default(), operation);
    }
    /// Pairs of fault and operation that never met: operations of [`Work::ALL`] and of nodes.
    pub fn never_met(&self) -> Vec<(&'static str, &'static str)> {
        let met = |f: &str, o: &str| self.pairs.get(f).is_some_and(|row| row.contains_key(o));
        let operations: BTreeSet<&'static str> = operations().collect();
        let pairs = Fault::KINDS.into_iter().flat_map(|f| operations.iter().map(move |o| (f, *o)));
        pairs.filter(|(f, o)| !met(f, o)).collect()
    }
}

/// What nodes do by themselves that a fault should have hit.
pub const NODE_OPERATIONS: [&str; 6] = ["repair", "sweep", "drain", "migrate", "recode", "rebalance"];

/// All operations.
pub fn operations() -> impl Iterator<Item = &'static str> {
    Work::ALL.into_iter().map(Work::word).chain(NODE_OPERATIONS)
}
