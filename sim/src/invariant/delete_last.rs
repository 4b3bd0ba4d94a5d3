//! Invariant 5. Source: DESIGN 13.5 and 5.
//!
//! A file that a node removes is one that the newest catalogue does not count on there. What sessions have to do with
//! it is in `leases.rs`.

use super::leases::Leases;
use super::{Invariant, Scene};
use crate::truth::Truth;
use std::collections::BTreeSet;

/// What goes is not needed.
#[derive(Default)]
pub struct DeleteLast {
    leases: Leases,
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
