//! The one executor of what planners decide: fetch k other shards, compute the missing one, make it durable on its new
//! node, and only then record it. It runs on the leader, so all bytes of a rebuild pass through the leader; sending
//! them region by region as partial sums will change this file alone.
//!
//! Copy before condemn: until the record changes the old state stands, and a failure anywhere leaves it standing.

use super::Shared;
use crate::plan::Rebuild;
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, PackRecord};
use farshore_core::gather::gather_shard;
use farshore_core::id::NodeId;
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::peer::ShardPut;
use farshore_core::shard::PackInfo;

/// Carries out one task. Any error leaves everything as it was, but for a copy that nobody knows.
pub async fn rebuild(shared: &Shared, task: &Rebuild) -> Result<(), WorkFailed> {
    let pack = shared.view()?.pack(task.pack)?;
    let pack = pack.filter(|pack| pack.stripe.generation == task.generation);
    let pack = pack.ok_or_else(|| WorkFailed("the stripe has changed since this was planned".into()))?;
    let shard = make(shared, &pack, task).await?;
    let (pack, generation, index, node) = (task.pack, task.generation, task.index, task.to);
    let place = Command::PlaceShard { pack, generation, index, node };
    if mutant(Mutant::RecordFirst) {
        shared.propose_leading(place.clone()).await?;
    }
    let receipt = shared.shards.put(node, shard).await?;
    debug_assert_eq!(receipt.node, node);
    shared.propose_leading(place).await?;
    Ok(())
}

/// The shard, computed from others and checked against its recorded hash.
async fn make(shared: &Shared, pack: &PackRecord, task: &Rebuild) -> Result<ShardPut, WorkFailed> {
    let nearest = distance(shared, task)?;
    let gathered =
        gather_shard(shared.shards.as_ref(), &pack.stripe, pack.repo, task.index, &nearest, &shared.reached)
            .await?;
    for (index, node, error) in &gathered.bad {
        // Its own node has noticed it too, looks again and tells the catalogue.
        tracing::warn!(pack = pack.no.0, index, %node, %error, "shard not usable for a rebuild");
    }
    let record = pack.stripe.shards.get(usize::from(task.index));
    let record = record.ok_or_else(|| WorkFailed("the stripe has no such shard".into()))?;
    let (cluster, repo, scheme) = (shared.cluster, pack.repo, pack.stripe.scheme);
    let info = PackInfo { cluster, repo, pack: pack.id, pack_len: pack.len, scheme };
    if info.stripe() != pack.stripe.id {
        return Err(WorkFailed("the stripe is coded in a way this node does not know".into()));
    }
    Ok(ShardPut { header: info.header(task.index, record.hash), payload: gathered.bytes, session: None })
}

/// What reading from a node costs: nothing here, little in the own region, more elsewhere.
fn distance(
    shared: &Shared,
    task: &Rebuild,
) -> Result<impl Fn(NodeId) -> u64 + Send + Sync + use<>, WorkFailed> {
    let view = shared.view()?;
    let mut near = Vec::new();
    for (_, node) in &task.from_holders {
        if view.node(*node)?.is_some_and(|n| n.region == shared.own.region) {
            near.push(*node);
        }
    }
    let own = shared.own.id;
    Ok(move |node| match node {
        _ if node == own => 0,
        _ if near.contains(&node) => 1,
        _ => 2,
    })
}
