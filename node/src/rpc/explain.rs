//! Why a node or a stripe is as it is: reads what the planner reads, has it explained, and adds what only a running node
//! knows. Changes nothing; re-reading shards, if that is asked for, may find some bad, which their nodes then report.

use super::ask::Told;
use super::internal;
use super::what_if::{confirm, spare};
use crate::catalogue::View;
use crate::maintain::Shared;
use crate::plan::explain::{NodeScan, ShardState, ShardStory, StripeStory, explain_stripe};
use crate::plan::{PlanView, Rebuild, Routes, condemned_of, look_at};
use bytes::Bytes;
use farshore_core::catalogue::{Act, AuditRecord, PackKind, PackRecord};
use farshore_core::host::compute;
use farshore_core::id::{NodeId, PackId, PackNo, StripeId};
use farshore_core::limits::{
    ASKED_PACKS_AT_ONCE, AUDIT_LOOKED_MAX, CATALOGUE_CALL_MS, PAGE_ROWS_MAX, STRIPES_NAMED_MAX,
};
use farshore_core::placement::{Level, Why};
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::status::ApiError;
use farshore_proto::wire::{
    ExplainNodeProgress, ExplainStripeReply, ExplainStripeRequest, NodeExplained, NodeStatus, PlannedRepair,
    ShardExplained, StripeExplained,
};
use futures_util::future::join_all;
use std::time::Duration;
use tokio::time::Instant;

/// Copies that are counted one by one; of more it is enough to know that there are many.
const CONDEMNED_COUNTED: usize = PAGE_ROWS_MAX;

/// Looks at all that hangs on one node, which `status` describes, and tells how far it is.
pub async fn node(
    shared: &Shared,
    id: NodeId,
    status: NodeStatus,
    told: Told<ExplainNodeProgress>,
) -> Result<ExplainNodeProgress, ApiError> {
    let confirmed = confirm(shared).await;
    let view = shared.view().map_err(internal)?;
    let nodes = view.nodes().map_err(internal)?;
    let routes = Routes::of(&view.migrations().map_err(internal)?);
    let (mut scan, mut looked, mut from) = (NodeScan::begin(id), 0, Some(PackNo(0)));
    while let Some(start) = from {
        let page = view.packs_held_by(id, start, ASKED_PACKS_AT_ONCE).map_err(internal)?;
        let mut packs = Vec::with_capacity(page.rows.len());
        for (no, _) in page.rows {
            packs.extend(view.pack(no).map_err(internal)?);
        }
        looked += packs.len() as u64;
        told.progress(ExplainNodeProgress { looked, found: None });
        let condemned = condemned_of(&view, &nodes, &packs).map_err(internal)?;
        let by_id = nodes.iter().map(|node| (node.id, node.clone())).collect();
        let routes = routes.clone();
        let seen = PlanView { nodes: by_id, packs, condemned, routes, ..PlanView::default() };
        scan = compute(shared.host.compute.as_ref(), move || {
            scan.feed(&seen);
            scan
        })
        .await;
        from = page.next;
    }
    let story = scan.end();
    let change = last_change(&view, id).await?;
    let timing = &shared.timing;
    let found = NodeExplained {
        status: Some(status),
        stale: !confirmed,
        leader: shared.consensus.leader() == Some(id),
        since_ms: change.map_or(0, |(at, _)| at),
        since_from: change
            .map_or_else(String::new, |(_, from)| from.map_or("unknown", NodeState::word).into()),
        catalogue_ms: view.time_ms(),
        leaving: view.intent().map_err(internal)?.leaving.contains(&id),
        shards: story.held.count,
        bytes: story.held.bytes,
        spare: spare(&story.spare),
        condemned: view.condemned(id, None, CONDEMNED_COUNTED).map_err(internal)?.rows.len() as u64,
        now_shards: story.now.count,
        now_bytes: story.now.bytes,
        lost_shards: story.if_lost.count,
        lost_bytes: story.if_lost.bytes,
        suspect_after_ms: timing.suspect_after.as_millis() as u64,
        down_after_ms: timing.down_after.as_millis() as u64,
        grace_ms: timing.grace.as_millis() as u64,
        cluster_level: view.level(),
    };
    Ok(ExplainNodeProgress { looked, found: Some(found) })
}

/// When the node's state was changed last, and from which, by the audit records: the catalogue itself keeps the present
/// alone. A node that has always been up is known since it was placed.
async fn last_change(view: &View, id: NodeId) -> Result<Option<(u64, Option<NodeState>)>, ApiError> {
    let head = view.audit_head().map_err(internal)?.seq;
    let least = head.saturating_sub(AUDIT_LOOKED_MAX) + 1;
    let (mut end, mut placed) = (head + 1, None);
    while end > least {
        let from = end.saturating_sub(PAGE_ROWS_MAX as u64).max(least);
        let rows = view.audit(from, (end - from) as usize).map_err(internal)?;
        for (seq, stored) in rows.iter().rev() {
            let Ok(AuditRecord { entry, .. }) = AuditRecord::open(*seq, stored) else { continue };
            match &entry.act {
                Act::SetNodeState { node, from, .. } if *node == id => {
                    return Ok(Some((entry.time_ms, Some(*from))));
                }
                Act::ChangeTopology { changes, .. } if changes.iter().any(|c| c.node() == id) => {
                    return Ok(Some((entry.time_ms, None)));
                }
                // The first time it became known; later times it only moved or grew.
                Act::PlaceNode { node, .. } if *node == id => placed = Some((entry.time_ms, None)),
                _ => {}
            }
        }
        end = from;
        tokio::task::yield_now().await;
    }
    Ok(placed)
}

/// Tells the story of the one stripe whose id, or whose pack's id, begins so.
pub async fn stripe(shared: &Shared, request: ExplainStripeRequest) -> Result<ExplainStripeReply, ApiError> {
    let confirmed = confirm(shared).await;
    let view = shared.view().map_err(internal)?;
    let mut found = find(&view, &request.prefix).await?;
    let Some(pack) = found.pop() else {
        let text = format!("no stripe and no pack begins with {}", request.prefix);
        return Err(ApiError::Invalid(text));
    };
    if !found.is_empty() {
        let others = found.iter().chain([&pack]).map(|p| Bytes::copy_from_slice(p.stripe.id.as_bytes()));
        return Ok(ExplainStripeReply { others: others.collect(), found: None });
    }
    let verified = match request.verify {
        true => verify(shared, &view, &pack).await?,
        false => Vec::new(),
    };
    let seen = look_at(&view, pack.clone()).map_err(internal)?;
    let story = explain_stripe(&seen).ok_or_else(|| internal("a pack is without a story"))?;
    let found = reply_of(shared, &view, &seen, &pack, story, &verified, confirmed)?;
    Ok(ExplainStripeReply { others: Vec::new(), found: Some(found) })
}

/// Packs that are meant, a bounded number.
async fn find(view: &View, prefix: &str) -> Result<Vec<PackRecord>, ApiError> {
    let limit = STRIPES_NAMED_MAX;
    let Some((first, last)) = bounds(prefix) else {
        return Err(ApiError::Invalid(format!("{prefix:?} is no beginning of an id, which is hexadecimal")));
    };
    let mut numbers = match bounds(prefix) {
        Some((first, last)) => {
            view.packs_of_stripes(StripeId(first), StripeId(last), limit).map_err(internal)?
        }
        // Longer than the id of a stripe.
        None => Vec::new(),
    };
    let (mut after, mut more) = (None, true);
    while more && numbers.len() < limit {
        let page = view.repos(after, PAGE_ROWS_MAX).map_err(internal)?;
        for repo in page.rows {
            let found = view.packs_by_ids(repo.id, PackId(first), PackId(last), limit);
            numbers.extend(found.map_err(internal)?);
        }
        (more, after) = (page.next.is_some(), page.next);
        tokio::task::yield_now().await;
    }
    packs(view, numbers)
}

fn packs(view: &View, mut numbers: Vec<PackNo>) -> Result<Vec<PackRecord>, ApiError> {
    numbers.sort_unstable();
    numbers.dedup();
    numbers.truncate(STRIPES_NAMED_MAX);
    let packs = numbers.into_iter().map(|no| view.pack(no).map_err(internal));
    Ok(packs.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// The least and the greatest id that begin with these digits.
fn bounds<const N: usize>(prefix: &str) -> Option<([u8; N], [u8; N])> {
    if prefix.is_empty() || prefix.len() > 2 * N {
        return None;
    }
    let (mut first, mut last) = ([0; N], [0xff; N]);
    for (at, digit) in prefix.chars().enumerate() {
        let digit = digit.to_digit(16)? as u8;
        let (shift, keep) = if at % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        for bytes in [&mut first, &mut last] {
            bytes[at / 2] = (bytes[at / 2] & keep) | (digit << shift);
        }
    }
    Some((first, last))
}

/// Has every holder that answers re-read its shard; by index, what came of it.
async fn verify(shared: &Shared, view: &View, pack: &PackRecord) -> Result<Vec<String>, ApiError> {
    let nodes = view.nodes().map_err(internal)?;
    let limit = Duration::from_millis(CATALOGUE_CALL_MS / 2);
    let looks = (0u8..).zip(&pack.stripe.shards).map(|(index, shard)| {
        let holder = shard.node.filter(|id| nodes.iter().any(|n| n.id == *id && n.state.answers()));
        let wanted = holder.zip(pack.stripe.shard(pack.repo, index));
        async move {
            let Some((node, shard)) = wanted else { return "nobody to ask".into() };
            match tokio::time::timeout(limit, shared.shards.verify(node, shard)).await {
                Ok(Ok(())) => "good".into(),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer in {} s", limit.as_secs()),
            }
        }
    });
    Ok(join_all(looks).await)
}

fn reply_of(
    shared: &Shared,
    view: &View,
    seen: &PlanView,
    pack: &PackRecord,
    story: StripeStory,
    verified: &[String],
    confirmed: bool,
) -> Result<StripeExplained, ApiError> {
    let repo = view.repo(pack.repo).map_err(internal)?;
    let stripe = &pack.stripe;
    let shards = story.shards.iter().enumerate().map(|(at, shard)| {
        let hash =
            stripe.shards.get(at).map_or_else(Bytes::new, |s| Bytes::copy_from_slice(s.hash.as_bytes()));
        let verified = verified.get(at).cloned().unwrap_or_default();
        ShardExplained { hash, verified, ..shard_of(shared, seen, shard) }
    });
    let repair = |task: &Rebuild| PlannedRepair {
        index: task.index.into(),
        to: seen.nodes.get(&task.to).cloned().map(Into::into),
        sources: task.from_holders.len() as u32,
    };
    Ok(StripeExplained {
        stripe: Bytes::copy_from_slice(stripe.id.as_bytes()),
        pack: Bytes::copy_from_slice(pack.id.as_bytes()),
        no: pack.no.0,
        repository: repo.map_or_else(|| pack.repo.to_string(), |repo| repo.name.to_string()),
        kind: match pack.kind {
            PackKind::Data => "data".into(),
            PackKind::Tree => "tree".into(),
        },
        len: pack.len,
        chunks: pack.chunks,
        scheme: Some(stripe.scheme.into()),
        shard_len: stripe.shard_len,
        generation: stripe.generation,
        at_target: story.at_target,
        condemned: view.is_condemned_pack(pack.repo, pack.no).map_err(internal)?,
        spare: story.priority.spare.into(),
        spare_after_region: story.priority.spare_after_region.into(),
        level: level(story.level).into(),
        wanted_level: level(story.wanted).into(),
        copyset: story.shards.first().map_or(0, |shard| shard.choice.copyset),
        shards: shards.collect(),
        repairs: story.tasks.iter().map(repair).collect(),
        stale: !confirmed,
    })
}

fn shard_of(shared: &Shared, seen: &PlanView, shard: &ShardStory) -> ShardExplained {
    let record = |id: NodeId| seen.nodes.get(&id);
    let holder = shard.holder.and_then(record);
    let grace = |node: &NodeRecord| {
        let health = shared.health.of(node.id, node.state, Instant::now());
        health.grace_left.as_millis() as u64
    };
    ShardExplained {
        state: shard.state.word().into(),
        draining: holder.is_some_and(|node| node.state == NodeState::Draining),
        wanted: shard.choice.node.and_then(record).cloned().map(Into::into),
        why: why(shard.choice.why).into(),
        rank: shard.choice.rank.map(|rank| rank as u32),
        grace_left_ms: holder.filter(|_| shard.state == ShardState::Silent).map_or(0, grace),
        holder: holder.cloned().map(Into::into),
        ..ShardExplained::default()
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::Full => "full",
        Level::Crowded => "crowded",
        Level::Doubled => "doubled",
    }
}

fn why(why: Why) -> &'static str {
    match why {
        Why::Held => "held",
        Why::Drawn => "drawn",
        Why::Lightest => "lightest",
        Why::MadeRoom => "made-room",
        Why::Nowhere => "nowhere",
    }
}

#[cfg(test)]
mod tests {
    use super::bounds;

    #[test]
    fn digits_bound_the_ids_that_begin_with_them() {
        assert_eq!(bounds("a"), Some(([0xa0, 0], [0xaf, 0xff])));
        assert_eq!(bounds("a5c"), Some(([0xa5, 0xc0], [0xa5, 0xcf])));
        assert_eq!(bounds("a5cd"), Some(([0xa5, 0xcd], [0xa5, 0xcd])));
        for bad in ["", "a5cde", "xy", "é"] {
            assert_eq!(bounds::<2>(bad), None, "{bad}");
        }
    }
}
