//! Invariant 2. Source: DESIGN 13.2 and 3.
//!
//! What the catalogue does not list as under target is at its target, reckoned here anew from who holds what.

use super::{Invariant, Moment, Scene};
use farshore_core::catalogue::PackRecord;
use std::collections::BTreeMap;

/// Full strength means spread.
pub struct Spread;

impl Invariant for Spread {
    fn name(&self) -> &'static str {
        "spread"
    }
    fn statement(&self) -> &'static str {
        "no acknowledged full-strength stripe breaks its policy's spread; losing any one region leaves at least k shards"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment == Moment::Step {
            return Ok(0);
        }
        let mut facts = 0;
        for pack in scene.packs {
            if scene.view.is_under_target(pack.no).map_err(|e| e.to_string())? {
                continue;
            }
            facts += 1;
            if let Some(why) = crowded(scene, pack) {
                return Err(format!("pack {} counts as full strength, but {why}", pack.id));
            }
        }
        Ok(facts)
    }
}

fn crowded(scene: &Scene<'_>, pack: &PackRecord) -> Option<String> {
    let (mut nodes, mut regions) = (BTreeMap::<_, usize>::new(), BTreeMap::<String, usize>::new());
    for shard in &pack.stripe.shards {
        let node = shard.node?;
        // The record of a node that is gone for good still tells where it stood.
        let record = scene.view.node(node).ok()??;
        *nodes.entry(node).or_default() += 1;
        *regions.entry(record.region.to_string()).or_default() += 1;
    }
    let held: usize = nodes.values().sum();
    if let Some((node, count)) = nodes.iter().find(|(_, count)| **count > 1) {
        return Some(format!("node {node} holds {count} of its shards"));
    }
    let spread = usize::from(pack.stripe.scheme.spread());
    let (region, most) = regions.iter().max_by_key(|(_, count)| **count)?;
    if *most > spread {
        return Some(format!("region {region} holds {most} of its shards, and {spread} is the most"));
    }
    (held < pack.stripe.shards.len()).then(|| format!("only {held} shards have a place"))
}
