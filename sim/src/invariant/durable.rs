//! Invariant 1. Source: DESIGN 13.1 and the floor of section 3; ShardStore's persistence property (Bornholt et al. 2021):
//! what is visible as a dependency after an acknowledgement must survive a crash at that very moment.
//!
//! Restores compare bytes; this looks deeper. A recorded shard must be durable on its holder's disk, by the disk's own
//! account, unless a fault has taken it. And when a pack is first seen, as many of its shards are recorded as the write
//! floor asks for.

use super::{Invariant, Moment, Scene};
use crate::truth::Truth;
use farshore_core::catalogue::PackRecord;
use farshore_core::id::PackNo;
use farshore_core::scatter::shards_left;
use std::collections::BTreeSet;

/// Recorded means durable.
#[derive(Default)]
pub struct Durable {
    seen: BTreeSet<PackNo>,
}

impl Durable {
    /// Before anything moves its shards, a pack survives the loss of the nodes that hold most of it.
    fn check_floor(&mut self, scene: &Scene<'_>, pack: &PackRecord) -> Result<(), String> {
        if !self.seen.insert(pack.no) || pack.stripe.generation > 0 {
            return Ok(());
        }
        let repo = scene.view.repo(pack.repo).map_err(|e| e.to_string())?;
        // Every policy of these worlds has the same floor.
        let worst = repo.map_or(0, |repo| repo.policy.floor_nodes);
        let (left, k) = (shards_left(&pack.stripe.shards, worst), pack.stripe.scheme.k());
        if left < k {
            return Err(format!(
                "pack {} was accepted below the floor: {left} of {k} shards would be left",
                pack.id
            ));
        }
        Ok(())
    }
}

impl Invariant for Durable {
    fn name(&self) -> &'static str {
        "durable"
    }
    fn statement(&self) -> &'static str {
        "an acknowledged snapshot stays restorable bit for bit while the losses its policy names, and no more, occur"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment == Moment::Step {
            return Ok(0);
        }
        let (cluster, mut facts) = (scene.cluster, 0);
        for pack in scene.packs {
            self.check_floor(scene, pack)?;
            for (at, file) in Truth::places(cluster, pack).into_iter().flatten() {
                facts += 1;
                if !scene.truth.is_damaged(at, &file) && !scene.truth.is_durable(cluster, at, &file) {
                    let label = cluster.machines[at].label;
                    return Err(format!(
                        "the catalogue counts on {file}, which p{label} would lose in a power cut"
                    ));
                }
            }
            let good = scene.truth.good(cluster, pack, |_| true);
            if good < pack.stripe.scheme.k() {
                return Err(format!("pack {} has {good} good shards left, by ground truth", pack.id));
            }
        }
        Ok(facts)
    }
}
