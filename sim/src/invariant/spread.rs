//! Invariant 2. Source: DESIGN 13.2 and 3.
//!
//! What the catalogue does not list as under target is at its target, and survives what its repository's policy names:
//! both reckoned here anew from who holds what, by losing every region and the nodes that hold most.

use super::{Invariant, Moment, Scene};
use farshore_core::catalogue::PackRecord;
use farshore_core::id::NodeId;
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
    let mut held = BTreeMap::<String, BTreeMap<NodeId, usize>>::new();
    for shard in &pack.stripe.shards {
        let Some(node) = shard.node else { return Some("a shard has no place".into()) };
        // The record of a node that is gone for good still tells where it stood.
        let record = scene.view.node(node).ok()??;
        *held.entry(record.region.to_string()).or_default().entry(node).or_default() += 1;
    }
    let nodes = || held.values().flatten();
    if let Some((node, count)) = nodes().find(|(_, count)| **count > 1) {
        return Some(format!("node {node} holds {count} of its shards"));
    }
    let in_region = |region: &BTreeMap<NodeId, usize>| region.values().sum::<usize>();
    let spread = usize::from(pack.stripe.scheme.spread());
    if let Some((region, crowd)) = held.iter().find(|(_, region)| in_region(region) > spread) {
        return Some(format!(
            "region {region} holds {} of its shards, and {spread} is the most",
            crowd.len()
        ));
    }
    let policy = scene.view.repo(pack.repo).ok()??.policy;
    let mut largest: Vec<usize> = held.values().map(in_region).collect();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    // No node holds more than one, so that further nodes lost are as many shards lost.
    let lost = largest.iter().take(policy.regions.into()).sum::<usize>() + usize::from(policy.nodes);
    let (left, k) = (pack.stripe.shards.len().saturating_sub(lost), pack.stripe.scheme.k());
    (left < k).then(|| format!("\"{policy}\" can leave {left} of its shards, and {k} are needed"))
}
