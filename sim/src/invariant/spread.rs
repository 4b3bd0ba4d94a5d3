//! Invariant 2. Source: DESIGN 13.2 and 3.
//!
//! What the catalogue does not list as under target is at its target, and survives what its repository's policy names:
//! both reckoned here anew from who holds what, by losing every region and the nodes that hold most. While a policy changes
//! a pack may be coded for one that its repository has had before; at the end all are coded for the last one.

use super::{Invariant, Moment, Scene};
use farshore_core::catalogue::PackRecord;
use farshore_core::id::{NodeId, RepoId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::policy::Policy;
use std::collections::{BTreeMap, BTreeSet};

/// Full strength means spread.
#[derive(Default)]
pub struct Spread {
    /// Policies that each repository has had, and the one it has.
    policies: BTreeMap<RepoId, (BTreeSet<Policy>, Policy)>,
}

impl Spread {
    fn note_policies(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        for repo in scene.view.repos(None, PAGE_ROWS_MAX).map_err(|e| e.to_string())?.rows {
            let known = self.policies.entry(repo.id).or_insert((BTreeSet::new(), repo.policy));
            known.0.insert(repo.policy);
            known.1 = repo.policy;
        }
        Ok(())
    }
}

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
        self.note_policies(scene)?;
        let mut facts = 0;
        for pack in scene.packs {
            if scene.view.is_under_target(pack.no).map_err(|e| e.to_string())? {
                continue;
            }
            facts += 1;
            let Some((had, last)) = self.policies.get(&pack.repo) else { continue };
            let (had, last) = (had.iter().copied(), [*last].into_iter());
            let why = match scene.moment {
                Moment::End => crowded(scene, pack, last),
                _ => crowded(scene, pack, had),
            };
            if let Some(why) = why {
                return Err(format!("pack {} counts as full strength, but {why}", pack.id));
            }
        }
        Ok(facts)
    }
}

fn crowded(scene: &Scene<'_>, pack: &PackRecord, policies: impl Iterator<Item = Policy>) -> Option<String> {
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
    let mut largest: Vec<usize> = held.values().map(in_region).collect();
    largest.sort_unstable_by(|a, b| b.cmp(a));
    let mut breaks = None;
    for policy in policies {
        // No node holds more than one, so that further nodes lost are as many shards lost.
        let lost = largest.iter().take(policy.regions.into()).sum::<usize>() + usize::from(policy.nodes);
        let (left, k) = (pack.stripe.shards.len().saturating_sub(lost), pack.stripe.scheme.k());
        if left >= k {
            return None;
        }
        breaks = Some(format!("\"{policy}\" can leave {left} of its shards, and {k} are needed"));
    }
    breaks
}
