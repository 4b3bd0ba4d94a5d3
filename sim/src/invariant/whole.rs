//! Invariant 7. Source: DESIGN 13.7.
//!
//! Under its final name a shard file is whole at any moment, right after a power cut too (`truth.rs` also refuses
//! other bytes under a known name; `agent.rs` any half-restored file). A snapshot that was acknowledged stays listed.

use super::{Invariant, Moment, Scene};
use crate::cluster::file_of;
use crate::cluster::is_shard;
use crate::contents::is_whole;
use std::collections::BTreeSet;

/// Whole or absent.
pub struct Whole;

impl Invariant for Whole {
    fn name(&self) -> &'static str {
        "whole"
    }
    fn statement(&self) -> &'static str {
        "shard, restored file, snapshot, catalogue change: whole or absent"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let mut facts = 0;
        for at in scene.truth.take_dark() {
            facts += after_power_loss(scene, at)?;
        }
        if scene.moment != Moment::End {
            return Ok(facts);
        }
        for (at, machine) in scene.cluster.machines.iter().enumerate() {
            for path in machine.disk.names("shards/").into_iter().filter(|path| is_shard(path)) {
                facts += 1;
                let file = file_of(&path);
                let whole = || machine.disk.visible(&path).is_some_and(|bytes| is_whole(&bytes));
                if !scene.truth.is_damaged(at, file) && !whole() {
                    return Err(format!("{file} on p{} is neither whole nor absent", machine.label));
                }
            }
        }
        let listed = snapshots(scene)?;
        for promise in scene.promises {
            facts += 1;
            if !listed.contains(&promise.id) {
                return Err(format!("acknowledged snapshot {} is not in the catalogue", promise.id));
            }
        }
        Ok(facts)
    }
}

/// What a machine has when its power comes back: files that no fault has touched are whole by their own account.
fn after_power_loss(scene: &Scene<'_>, at: usize) -> Result<u64, String> {
    let (machine, mut facts) = (&scene.cluster.machines[at], 0);
    for path in machine.disk.names("shards/").into_iter().filter(|path| is_shard(path)) {
        facts += 1;
        let torn = machine.disk.visible(&path).is_some_and(|bytes| !is_whole(&bytes));
        if torn && !scene.truth.is_damaged(at, file_of(&path)) {
            return Err(format!("{path} on p{} is torn after a power cut", machine.label));
        }
    }
    Ok(facts)
}

fn snapshots(scene: &Scene<'_>) -> Result<BTreeSet<String>, String> {
    let mut listed = BTreeSet::new();
    let repos = scene.view.repos(None, farshore_core::limits::PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
    for repo in repos.rows {
        let mut after = None;
        loop {
            let page = scene.view.snapshots(repo.id, after, farshore_core::limits::PAGE_ROWS_MAX, false);
            let page = page.map_err(|e| e.to_string())?;
            listed.extend(page.rows.iter().map(|snapshot| snapshot.id.to_string()));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(listed)
}
