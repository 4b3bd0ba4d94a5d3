//! Invariant 5. Source: DESIGN 13.5 and 5.
//!
//! A file that a node removes is one that the newest catalogue does not count on there, and a leader has confirmed to
//! the node an index by which it was condemned. What sessions have to do with it is in `leases.rs`.

use super::leases::Leases;
use super::{Invariant, Scene};
use crate::truth::{Copy, Truth};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_node::Node;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

/// Log entries that a replica may apply between being told an index and reading its catalogue.
const APPLIED_MEANWHILE: u64 = 4;

/// What goes is not needed.
#[derive(Default)]
pub struct DeleteLast {
    leases: Leases,
    applied: u64,
    /// Copies condemned, by the last index at which they were seen not to be.
    condemned: BTreeMap<Copy, u64>,
    /// The process that each machine ran when we looked last.
    ran: BTreeMap<usize, Weak<Node>>,
}

impl DeleteLast {
    /// What is condemned in the newest catalogue.
    fn condemned_now(scene: &Scene<'_>) -> Result<BTreeSet<Copy>, String> {
        let mut now = BTreeSet::new();
        for (at, machine) in scene.cluster.machines.iter().enumerate() {
            let page = scene.view.condemned(machine.id, None, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
            let file = |row: &farshore_core::catalogue::Condemned| format!("{}.shard", row.shard);
            now.extend(page.rows.iter().map(|row| (at, file(row))));
        }
        Ok(now)
    }

    /// Whoever removed a copy had been told an index at which it was condemned already.
    fn check_confirmed(&self, scene: &Scene<'_>) -> Result<(), String> {
        for copy in scene.truth.removed() {
            let (Some(before), Some(node)) = (self.condemned.get(copy), scene.cluster.node(copy.0)) else {
                continue;
            };
            // What a process was told is gone with it.
            if !self.ran.get(&copy.0).is_some_and(|ran| Weak::ptr_eq(ran, &Arc::downgrade(&node))) {
                continue;
            }
            let confirmed = node.consensus().standing().confirmed;
            if confirmed <= *before {
                return Err(format!(
                    "p{} has deleted {}, condemned after log entry {before}, on no better word than {confirmed}",
                    scene.cluster.machines[copy.0].label, copy.1
                ));
            }
        }
        Ok(())
    }
}

impl Invariant for DeleteLast {
    fn name(&self) -> &'static str {
        "delete-last"
    }
    fn statement(&self) -> &'static str {
        "a shard goes only when a confirmed index condemns it and no session or snapshot could still name it"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let facts = self.leases.check(scene)?;
        if scene.view.applied() > self.applied {
            let now = Self::condemned_now(scene)?;
            for copy in &now {
                // Between the word of the leader and the look at the catalogue a few more entries may be applied, and
                // all that is applied is committed.
                self.condemned.entry(copy.clone()).or_insert(self.applied.saturating_sub(APPLIED_MEANWHILE));
            }
            self.check_confirmed(scene)?;
            self.condemned.retain(|copy, _| now.contains(copy));
            self.applied = scene.view.applied();
        } else {
            self.check_confirmed(scene)?;
        }
        let machines = 0..scene.cluster.machines.len();
        self.ran = machines.filter_map(|at| Some((at, Arc::downgrade(&scene.cluster.node(at)?)))).collect();
        let removed = scene.truth.removed();
        if removed.is_empty() {
            return Ok(facts);
        }
        let places = scene.packs.iter().flat_map(|pack| Truth::places(scene.cluster, pack)).flatten();
        let recorded: BTreeSet<_> = places.collect();
        for copy in removed {
            let there =
                || scene.cluster.machines[copy.0].disk.names("shards/").iter().any(|n| n.ends_with(&copy.1));
            if recorded.contains(copy) && !there() {
                let label = scene.cluster.machines[copy.0].label;
                return Err(format!("p{label} has deleted {}, which the catalogue counts on", copy.1));
            }
        }
        Ok(facts + removed.len() as u64)
    }
}
