//! The one executor of what planners decide: fetch k other shards, compute the missing one, make it durable on its new
//! node, and only then record it. It runs on the leader, so all bytes of a rebuild pass through the leader; sending
//! them region by region as partial sums will change this file alone.
//!
//! Copy before condemn: until the record changes the old state stands, and a failure anywhere leaves it standing.

use super::Shared;
use crate::plan::Rebuild;
use crate::worker::WorkFailed;
use bytes::Bytes;
use farshore_core::catalogue::{Command, PackRecord};
use farshore_core::erasure::Codec;
use farshore_core::host;
use farshore_core::peer::ShardPut;
use farshore_core::shard::{PackInfo, ShardRange};

/// Carries out one task. Any error leaves everything as it was, but for a copy that nobody knows.
pub async fn rebuild(shared: &Shared, task: &Rebuild) -> Result<(), WorkFailed> {
    let pack = shared.view()?.pack(task.pack)?;
    let pack = pack.filter(|pack| pack.stripe.generation == task.generation);
    let pack = pack.ok_or_else(|| WorkFailed("the stripe has changed since this was planned".into()))?;
    let shard = make(shared, &pack, task).await?;
    let receipt = shared.shards.put(task.to, shard).await?;
    debug_assert_eq!(receipt.node, task.to);
    let (pack, generation, index, node) = (task.pack, task.generation, task.index, task.to);
    shared.propose_leading(Command::PlaceShard { pack, generation, index, node }).await?;
    Ok(())
}

/// The shard, computed from others and checked against its recorded hash.
async fn make(shared: &Shared, pack: &PackRecord, task: &Rebuild) -> Result<ShardPut, WorkFailed> {
    let payload = compute(shared, pack, task).await?;
    let record = pack.stripe.shards.get(usize::from(task.index));
    let record = record.ok_or_else(|| WorkFailed("the stripe has no such shard".into()))?;
    let (cluster, repo, scheme) = (shared.cluster, pack.repo, pack.stripe.scheme);
    let info = PackInfo { cluster, repo, pack: pack.id, pack_len: pack.len, scheme };
    if info.stripe() != pack.stripe.id {
        return Err(WorkFailed("the stripe is coded in a way this node does not know".into()));
    }
    Ok(ShardPut { header: info.header(task.index, record.hash), payload, session: None })
}

/// The shard's payload from the first k of the others that can be read.
async fn compute(shared: &Shared, pack: &PackRecord, task: &Rebuild) -> Result<Bytes, WorkFailed> {
    let (stripe, k) = (&pack.stripe, pack.stripe.scheme.k());
    let whole = [ShardRange { offset: 0, len: stripe.shard_len }];
    let mut present = Vec::with_capacity(k);
    for (index, node) in task.from_holders.iter().filter(|(index, _)| *index != task.index) {
        let Some(wanted) = stripe.shard(pack.repo, *index) else { continue };
        match shared.shards.get(*node, wanted, &whole).await {
            Ok(mut got) => present.extend(got.pop().map(|bytes| (*index, bytes))),
            // Its own node has noticed it too, looks again and tells the catalogue.
            Err(error) => {
                tracing::warn!(pack = pack.no.0, index, %node, %error, "shard not usable for a rebuild")
            }
        }
        if present.len() == k {
            break;
        }
    }
    let (codec, index) = (Codec::new(stripe.scheme), task.index);
    let rebuilt =
        host::compute(shared.host.compute.as_ref(), move || codec.reconstruct(&present, &[index])).await;
    rebuilt?.pop().ok_or_else(|| WorkFailed("nothing was rebuilt".into()))
}
