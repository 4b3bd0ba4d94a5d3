//! What would be without some nodes: feeds the planner page by page from one view and puts its answer on the wire. Changes
//! nothing. The computing is done beside the loop, so that a look at millions of packs leaves the node to others.

use super::ask::Told;
use super::internal;
use crate::catalogue::{LiveSet, View};
use crate::maintain::Shared;
use crate::plan::what_if::{
    Count, LostSnapshot, PackFate as Fate, RebuildFate as Rebuild, RepoFate, WhatIf, WhatIfScan,
    WriteFate as Write,
};
use bytes::Bytes;
use farshore_core::catalogue::RepoRecord;
use farshore_core::host::compute;
use farshore_core::id::{NodeId, PackNo};
use farshore_core::limits::{ASKED_PACKS_AT_ONCE, NODES_MAX, PAGE_ROWS_MAX, STATUS_CONFIRM_MS};
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::convert::{common, list};
use farshore_proto::status::ApiError;
use farshore_proto::wire::{
    self, NodeRoom, PackFate, RebuildFate, RepositoryFate, SpareCount, WhatIfProgress, WhatIfReply,
    WhatIfRequest, WriteFate,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::Instant;

/// Looks, and tells how far it is.
pub async fn look(
    shared: &Shared,
    request: WhatIfRequest,
    told: Told<WhatIfProgress>,
) -> Result<WhatIfProgress, ApiError> {
    let gone = list(request.nodes, NODES_MAX, "nodes", common::node_id)?;
    let gone: BTreeSet<NodeId> = gone.into_iter().collect();
    let confirmed = confirm(shared).await;
    let view = shared.view().map_err(internal)?;
    let nodes = view.nodes().map_err(internal)?;
    if let Some(stranger) = gone.iter().find(|id| nodes.iter().all(|node| node.id != **id)) {
        return Err(ApiError::Invalid(format!("there is no node {stranger}")));
    }
    let total = view.counts().packs;
    let mut scan = WhatIfScan::begin(&nodes, &gone);
    let (mut looked, mut after) = (0, None);
    loop {
        let page = view.repos(after, PAGE_ROWS_MAX).map_err(internal)?;
        for repo in page.rows {
            let mut tell = |packs: usize| {
                looked += packs as u64;
                told.progress(WhatIfProgress { looked, total, reply: None });
            };
            scan = look_at_packs(shared, &view, &repo, scan, &mut tell).await?;
            look_at_snapshots(&view, &repo, &mut scan).await?;
            scan.end_repo(repo);
        }
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    let free = free_of(shared, &nodes);
    let found = compute(shared.host.compute.as_ref(), move || scan.end(&free)).await;
    let reply = reply_of(shared, &view, &nodes, &gone, found, confirmed);
    Ok(WhatIfProgress { looked, total, reply: Some(reply) })
}

/// Whether this node leads and a majority says so. Without it the answer is given all the same: a disaster is when it is
/// asked for.
pub async fn confirm(shared: &Shared) -> bool {
    let limit = Duration::from_millis(STATUS_CONFIRM_MS);
    let confirm = tokio::time::timeout(limit, shared.consensus.confirm_once());
    shared.consensus.is_leader() && matches!(confirm.await, Ok(Ok(_)))
}

async fn look_at_packs(
    shared: &Shared,
    view: &View,
    repo: &RepoRecord,
    mut scan: WhatIfScan,
    tell: &mut (impl FnMut(usize) + Send),
) -> Result<WhatIfScan, ApiError> {
    let mut from = Some(PackNo(0));
    while let Some(start) = from {
        let page = view.packs(repo.id, start, ASKED_PACKS_AT_ONCE).map_err(internal)?;
        let mut packs = Vec::with_capacity(page.rows.len());
        for pack in page.rows {
            let ordinals = match scan.is_unreadable(&pack) {
                true => Some(view.ordinals_of(&pack).map_err(internal)?),
                false => None,
            };
            packs.push((pack, ordinals));
        }
        tell(packs.len());
        scan = compute(shared.host.compute.as_ref(), move || {
            packs.iter().for_each(|(pack, ordinals)| scan.feed(pack, ordinals.as_ref()));
            scan
        })
        .await;
        from = page.next;
    }
    Ok(scan)
}

/// Live sets are read only if there is something that they may lack.
async fn look_at_snapshots(view: &View, repo: &RepoRecord, scan: &mut WhatIfScan) -> Result<(), ApiError> {
    let with_live = scan.has_holes();
    let (mut after, mut more) = (None, true);
    while more {
        let page = view.snapshots(repo.id, after, ASKED_PACKS_AT_ONCE, with_live).map_err(internal)?;
        for snapshot in &page.rows {
            let live = with_live.then(|| LiveSet::decode(&snapshot.live)).transpose().map_err(internal)?;
            scan.feed_snapshot(&repo.name, snapshot, live.as_ref());
        }
        (more, after) = (page.next.is_some(), page.next);
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// What disks have left, as their nodes have told this leader.
fn free_of(shared: &Shared, nodes: &[NodeRecord]) -> BTreeMap<NodeId, u64> {
    let now = Instant::now();
    let free = |node: &NodeRecord| Some((node.id, shared.health.of(node.id, node.state, now).load?.free));
    nodes.iter().filter_map(free).collect()
}

fn reply_of(
    shared: &Shared,
    view: &View,
    nodes: &[NodeRecord],
    gone: &BTreeSet<NodeId>,
    found: WhatIf,
    confirmed: bool,
) -> WhatIfReply {
    let voters = shared.consensus.standing().voters;
    let left = |id: &&NodeId| {
        let state = nodes.iter().find(|node| node.id == **id).map_or(NodeState::Up, |node| node.state);
        !gone.contains(id) && state.answers()
    };
    WhatIfReply {
        applied: view.applied(),
        stale: !confirmed,
        nodes: nodes.iter().filter(|node| gone.contains(&node.id)).cloned().map(Into::into).collect(),
        packs: Some(fate(&found.packs)),
        repositories: found.worst.iter().map(repository).collect(),
        repositories_total: found.repositories,
        snapshots: found.snapshots.all,
        incomplete: found.snapshots.incomplete,
        incomplete_for_good: found.snapshots.for_good,
        lost: found.lost.into_iter().map(snapshot).collect(),
        voters: voters.len() as u32,
        voters_left: voters.iter().filter(left).count() as u32,
        voters_needed: voters.len() as u32 / 2 + 1,
        writes: found.writes.into_iter().map(write).collect(),
        rebuild: Some(rebuild(shared, found.rebuild, nodes)),
    }
}

/// Packs by spare shards, ascending.
pub fn spare(counts: &BTreeMap<i64, Count>) -> Vec<SpareCount> {
    let row = |(spare, count): (&i64, &Count)| SpareCount {
        spare: *spare as i32,
        packs: count.packs,
        bytes: count.bytes,
    };
    counts.iter().map(row).collect()
}

fn fate(fate: &Fate) -> PackFate {
    PackFate {
        packs: fate.all.packs,
        bytes: fate.all.bytes,
        unreadable: fate.unreadable.packs,
        unreadable_bytes: fate.unreadable.bytes,
        gone: fate.gone.packs,
        gone_bytes: fate.gone.bytes,
        spare: spare(&fate.spare),
    }
}

fn repository(of: &RepoFate) -> RepositoryFate {
    RepositoryFate {
        repo: Bytes::copy_from_slice(of.repo.id.as_bytes()),
        name: of.repo.name.to_string(),
        packs: Some(fate(&of.packs)),
        snapshots: of.snapshots.all,
        incomplete: of.snapshots.incomplete,
        incomplete_for_good: of.snapshots.for_good,
    }
}

fn snapshot(lost: LostSnapshot) -> wire::LostSnapshot {
    wire::LostSnapshot {
        repository: lost.repository.to_string(),
        id: Bytes::copy_from_slice(lost.id.as_bytes()),
        committed_ms: lost.committed_ms,
        kind: lost.kind.into(),
        for_good: lost.for_good,
    }
}

fn write(of: Write) -> WriteFate {
    let split = |fate: Result<bool, String>| match fate {
        Ok(full) => (full, String::new()),
        Err(why) => (false, why),
    };
    let ((away_full, away_why), (lost_full, lost_why)) = (split(of.away), split(of.lost));
    let (survive, repositories) = (of.policy.to_string(), of.repositories);
    WriteFate { survive, repositories, away_why, away_full, lost_why, lost_full }
}

fn rebuild(shared: &Shared, of: Rebuild, nodes: &[NodeRecord]) -> RebuildFate {
    let speed = shared.repairs.get().speed;
    let room = |(id, (added, room)): (NodeId, (u64, u64))| {
        let node = nodes.iter().find(|node| node.id == id)?;
        Some(NodeRoom { node: Some(node.clone().into()), added, room })
    };
    RebuildFate {
        shards: of.shards,
        bytes: of.bytes,
        moved_bytes: of.moved_bytes,
        owed_shards: of.owed,
        homeless_shards: of.homeless,
        homeless_bytes: of.homeless_bytes,
        doubled_packs: of.crowded,
        nodes: of.nodes.into_iter().filter_map(room).collect(),
        busy_bytes: speed.bytes,
        busy_ms: speed.busy(Instant::now()).as_millis() as u64,
    }
}
