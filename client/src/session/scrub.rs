//! Asking nodes to re-read all their shards. Each node does its own; the sums are made here.

use farshore_core::id::{NodeId, ShardId, StripeId};
use farshore_core::limits::{CATALOGUE_CALL_MS, SCRUB_NAMED_MAX, SCRUB_SILENCE_MS};
use farshore_proto::channel::admin;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a scrub found, over all nodes asked.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ScrubResult {
    /// Shards read.
    pub checked: u64,
    /// Shards there were to read.
    pub total: u64,
    /// Shards whose bytes are wrong.
    pub bad: u64,
    /// Shards that should be there and are not.
    pub missing: u64,
    /// The first of those on each node.
    pub named: Vec<NamedShard>,
    /// Nodes that did not finish, and why.
    pub failed: BTreeMap<NodeId, String>,
}

/// A shard that a scrub found bad or missing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NamedShard {
    /// Whose it is.
    pub node: NodeId,
    /// Which.
    pub shard: ShardId,
    /// Recorded there and not held; else held and not whole.
    pub missing: bool,
}

/// Has every one of these nodes scrub itself, all at a time, and waits for all of them.
pub async fn scrub(peers: &Peers, nodes: &[NodeId]) -> ScrubResult {
    let runs = nodes.iter().map(|node| async move { (*node, scrub_one(peers, *node).await) });
    let mut sum = ScrubResult::default();
    for (node, result) in futures_util::future::join_all(runs).await {
        match result {
            Ok(last) => {
                sum.checked += last.checked;
                sum.total += last.total;
                sum.bad += last.bad;
                sum.missing += last.missing;
                let names = last.named.into_iter().take(SCRUB_NAMED_MAX);
                sum.named.extend(names.filter_map(|named| named_of(node, &named)));
            }
            Err(error) => {
                sum.failed.insert(node, error);
            }
        }
    }
    sum
}

fn named_of(node: NodeId, named: &wire::NamedShard) -> Option<NamedShard> {
    let (stripe, index) = (StripeId::from_slice(&named.stripe).ok()?, u8::try_from(named.index).ok()?);
    Some(NamedShard { node, shard: ShardId { stripe, index }, missing: named.missing })
}

/// How far each of these nodes is with re-reading its shards by itself, or why it does not say.
pub async fn standing(
    peers: &Peers,
    nodes: &[NodeId],
) -> BTreeMap<NodeId, Result<wire::ScrubStatusReply, String>> {
    let looks = nodes.iter().map(|node| async move { (*node, standing_of(peers, *node).await) });
    futures_util::future::join_all(looks).await.into_iter().collect()
}

async fn standing_of(peers: &Peers, node: NodeId) -> Result<wire::ScrubStatusReply, String> {
    let channel = peers.channel(node).ok_or("the node has no address")?;
    let mut client = admin(channel);
    let call = client.scrub_status(wire::ScrubStatusRequest {});
    match tokio::time::timeout(Duration::from_millis(CATALOGUE_CALL_MS), call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(ApiError::from_status(status).to_string()),
        Err(_) => Err("the node does not answer".into()),
    }
}

/// The error is for the person who asked, since a node that does not finish concerns nobody else.
async fn scrub_one(peers: &Peers, node: NodeId) -> Result<wire::ScrubProgress, String> {
    let silent = || "the node stopped reporting its scrub".to_string();
    let failed = |status| ApiError::from_status(status).to_string();
    let channel = peers.channel(node).ok_or("the node has no address")?;
    let patience = Duration::from_millis(SCRUB_SILENCE_MS);
    let mut client = admin(channel);
    let begin = client.scrub(wire::ScrubRequest {});
    let mut reports =
        tokio::time::timeout(patience, begin).await.map_err(|_| silent())?.map_err(failed)?.into_inner();
    loop {
        match tokio::time::timeout(patience, reports.message())
            .await
            .map_err(|_| silent())?
            .map_err(failed)?
        {
            Some(report) if report.done => return Ok(report),
            Some(_) => {}
            None => return Err(silent()),
        }
    }
}
