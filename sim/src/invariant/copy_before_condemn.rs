//! Invariant 6. Source: DESIGN 13.6 and 7.
//!
//! An index of a stripe that had a good copy has one a second later, at the same place or at another, unless a fault
//! took it. So a node may not call a good copy bad either. What a node has whose retirement is recorded is switched off with
//! it, and gone.

use super::{Invariant, Moment, Scene};
use crate::truth::{Copy, Truth};
use farshore_core::id::PackNo;
use std::collections::BTreeMap;

/// Maintenance never lowers the count of good shards.
#[derive(Default)]
pub struct CopyBeforeCondemn {
    applied: u64,
    /// Good copies by pack and index, as of the last look, and the node ids that their machines had.
    good: BTreeMap<(PackNo, usize), (Copy, u64)>,
}

impl Invariant for CopyBeforeCondemn {
    fn name(&self) -> &'static str {
        "copy-before-condemn"
    }
    fn statement(&self) -> &'static str {
        "no maintenance ever lowers a stripe's count of good shards"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment == Moment::Step || scene.view.applied() < self.applied {
            return Ok(0);
        }
        self.applied = scene.view.applied();
        let (cluster, before) = (scene.cluster, std::mem::take(&mut self.good));
        for pack in scene.packs {
            for (index, place) in Truth::places(cluster, pack).into_iter().enumerate() {
                let now = place.clone();
                let good = place.filter(|(at, file)| {
                    !cluster.retired(*at)
                        && !scene.truth.is_damaged(*at, file)
                        && scene.truth.is_durable(cluster, *at, file)
                });
                let key = (pack.no, index);
                if let Some(copy) = good {
                    let id = cluster.machines[copy.0].id.0;
                    self.good.insert(key, (copy, id));
                    continue;
                }
                let Some(((at, file), id)) = before.get(&key) else { continue };
                let machine = &cluster.machines[*at];
                let excused =
                    scene.truth.is_damaged(*at, file) || scene.truth.may_err(*at) || machine.id.0 != *id;
                // It moved on, and a fault has spoilt it, or its new machine, since.
                let moved_to_damage = match &now {
                    Some((at, file)) => scene.truth.is_damaged(*at, file),
                    None => pack.stripe.shards[index].node.is_some(),
                };
                if !excused && !moved_to_damage {
                    let label = machine.label;
                    return Err(format!(
                        "shard {index} of pack {} was good on p{label} and is nowhere now",
                        pack.id
                    ));
                }
            }
        }
        Ok(self.good.len() as u64)
    }
}
