//! Shards on other nodes over gRPC. It believes nobody: a receipt must carry the hash we computed, and every byte read
//! is checked against the recorded hash before anyone sees it. It never decides where to ask next.

mod ranges;

use crate::channel;
use crate::convert::shard::get_request;
use crate::peers::Peers;
use crate::status::ApiError;
use crate::wire::shards_client::ShardsClient;
use crate::wire::{
    BuildRequest, GetReply, PutOpen, PutRequest, SumRequest, VerifyRequest, build_reply, get_reply,
    put_request,
};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::gather::{BuildOrder, Built};
use farshore_core::id::{NodeId, ShardHash, ShardId};
use farshore_core::limits::{FRAME_BYTES, SHARD_RANGES_MAX, SHARD_STALL_MS, SHARD_VERIFY_MS};
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef, SumIo, SumPieces, Term};
use farshore_core::shard::{ShardRange, ShardSums};
use futures_util::stream::{self, StreamExt};
pub use ranges::Ranges;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// [`ShardIo`] over the cluster's channels. Whoever owns the [`Peers`] keeps their addresses up to date.
pub struct GrpcShards {
    peers: Arc<Peers>,
}

impl GrpcShards {
    /// Asks the nodes in this book.
    pub fn new(peers: Arc<Peers>) -> Self {
        GrpcShards { peers }
    }

    fn client(&self, node: NodeId) -> Result<ShardsClient<Channel>, ShardError> {
        let channel = self.peers.channel(node);
        channel
            .map(channel::shards)
            .ok_or_else(|| ShardError::Unreachable(node, "its address is not known".into()))
    }
}

#[async_trait]
impl ShardIo for GrpcShards {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        let at = At { node, shard: shard.header.id };
        let expected = shard.header.hash;
        let progress = Progress::start();
        let parts = stream::iter(upload(shard, progress.clone()));
        let mut client = self.client(node)?;
        let reply = progress.watch(client.put(parts)).await.map_err(|e| at.error(e))?.into_inner();
        let hash = ShardHash::from_slice(&reply.hash).map_err(|e| at.corrupt(format!("its receipt: {e}")))?;
        if hash != expected {
            return Err(at.corrupt(format!(
                "its receipt says {}, we sent {}",
                hash.short(),
                expected.short()
            )));
        }
        Ok(Receipt { node, shard: at.shard, hash })
    }

    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        let at = At { node, shard: shard.id };
        if ranges.len() > SHARD_RANGES_MAX {
            return Err(ShardError::Refused(
                node,
                format!("{} ranges are too many for one call", ranges.len()),
            ));
        }
        let mut client = self.client(node)?;
        let asked = client.get(get_request(shard, ranges));
        let mut parts = within(SHARD_STALL_MS, asked).await.map_err(|e| at.error(e))?.into_inner();

        let Some(get_reply::Part::Sums(sums)) = next_part(&mut parts, at).await? else {
            return Err(at.corrupt("the answer does not begin with block sums"));
        };
        let sums = ShardSums::decode(&sums, shard.payload_len).map_err(|e| at.corrupt(e.to_string()))?;
        if sums.root(shard.id) != shard.hash {
            return Err(at.corrupt("its block sums do not make the recorded hash"));
        }
        let mut wanted = Ranges::new(sums, ranges)
            .ok_or_else(|| ShardError::Refused(node, "a range leaves the shard".into()))?;
        while let Some(part) = next_part(&mut parts, at).await? {
            let get_reply::Part::Blocks(blocks) = part else {
                return Err(at.corrupt("a second list of block sums"));
            };
            wanted.take(blocks.first, blocks.bytes).map_err(|why| at.corrupt(why))?;
        }
        wanted.finish().ok_or_else(|| at.corrupt("the answer ended too early"))
    }

    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        let at = At { node, shard: shard.id };
        let mut client = self.client(node)?;
        let asked = client.verify(VerifyRequest { shard: Some(shard.into()) });
        within(SHARD_VERIFY_MS, asked).await.map_err(|e| at.error(e))?;
        Ok(())
    }
}

#[async_trait]
impl SumIo for GrpcShards {
    async fn sum(&self, relay: NodeId, terms: &[Term]) -> Result<SumPieces, ShardError> {
        let Some(first) = terms.first() else {
            return Err(ShardError::Refused(relay, "a sum of no shards".into()));
        };
        let at = At { node: relay, shard: first.shard.id };
        let request = SumRequest { terms: terms.iter().copied().map(Into::into).collect() };
        let mut client = self.client(relay)?;
        let parts = within(SHARD_STALL_MS, client.sum(request)).await.map_err(|e| at.error(e))?.into_inner();
        let pieces = stream::try_unfold(parts, move |mut parts| async move {
            let next = within(SHARD_STALL_MS, parts.message()).await.map_err(|e| at.error(e))?;
            Ok(next.map(|reply| (reply.piece, parts)))
        });
        Ok(pieces.boxed())
    }
}

impl GrpcShards {
    /// Has a node make a shard and keep it. Waits for as long as there is progress. Cancel-safe: an order nobody waits for
    /// is given up.
    pub async fn build(&self, builder: NodeId, order: BuildOrder) -> Result<Built, BuildError> {
        let shard = ShardId { stripe: order.pack.stripe.id, index: order.index };
        let at = At { node: builder, shard };
        let expected = order.pack.stripe.shards.get(usize::from(order.index)).map(|shard| shard.hash);
        let mut client = self.client(builder)?;
        let asked = tokio::time::timeout(BUILD_STALL, client.build(BuildRequest::from(order))).await;
        let parts = match asked {
            Ok(Err(status)) if status.code() == Code::Unimplemented => return Err(BuildError::Unknown),
            Ok(parts) => parts.map_err(|status| at.error(ApiError::from_status(status)))?,
            Err(_) => return Err(at.error(ApiError::Unreachable("it does not begin".into())).into()),
        };
        let mut parts = parts.into_inner();
        loop {
            let next =
                within(BUILD_STALL.as_millis() as u64, parts.message()).await.map_err(|e| at.error(e))?;
            match next.and_then(|reply| reply.part) {
                Some(build_reply::Part::Made(_)) => {}
                Some(build_reply::Part::Built(built)) => {
                    let built = Built::try_from(built).map_err(|e| at.corrupt(format!("its answer: {e}")))?;
                    if Some(built.hash) != expected {
                        return Err(at.corrupt("it has built another shard than it was to").into());
                    }
                    return Ok(built);
                }
                None => return Err(at.corrupt("the answer ended too early").into()),
            }
        }
    }
}

/// Why a shard was not built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The node does not know such orders: it is of an older release.
    #[error("the node does not know how to rebuild a shard")]
    Unknown,
    /// The node or a source failed.
    #[error(transparent)]
    Failed(#[from] ShardError),
}

/// A builder reports after each piece, and a piece may have to wait for one stall of a source, and then for its turn.
const BUILD_STALL: Duration = Duration::from_millis(3 * SHARD_STALL_MS);

/// Whom an error is about.
#[derive(Clone, Copy)]
struct At {
    node: NodeId,
    shard: ShardId,
}

impl At {
    fn corrupt(self, why: impl Into<String>) -> ShardError {
        ShardError::Corrupt(self.node, self.shard, why.into())
    }

    fn error(self, error: ApiError) -> ShardError {
        match error {
            ApiError::Missing(_) | ApiError::NotFound(_) => ShardError::Missing(self.node, self.shard),
            ApiError::Corrupt(why) => self.corrupt(why),
            ApiError::Full(why) => ShardError::Full(self.node, why),
            // A broken node may be mended; until then it is as good as away.
            ApiError::Unreachable(_)
            | ApiError::TooBusy(_)
            | ApiError::NoQuorum(_)
            | ApiError::Internal(_) => ShardError::Unreachable(self.node, error.to_string()),
            ApiError::Exists(_)
            | ApiError::NoSession(_)
            | ApiError::ChunksGone(_)
            | ApiError::BelowFloor(_)
            | ApiError::Denied(_)
            | ApiError::Locked(_)
            | ApiError::Invalid(_)
            | ApiError::LeftBehind(_)
            | ApiError::Stale(_) => ShardError::Refused(self.node, error.to_string()),
        }
    }
}

/// The messages of an upload: header, then slices of the payload, none of it copied here.
fn upload(shard: ShardPut, progress: Progress) -> impl Iterator<Item = PutRequest> {
    let open = PutOpen {
        header: Bytes::copy_from_slice(&shard.header.encode()),
        session: shard.session.map(|id| Bytes::copy_from_slice(id.as_bytes())).unwrap_or_default(),
    };
    let payload = shard.payload;
    let frames = (0..payload.len()).step_by(FRAME_BYTES).map(move |from| {
        progress.touch();
        let frame = payload.slice(from..payload.len().min(from + FRAME_BYTES));
        PutRequest { part: Some(put_request::Part::Frame(frame)) }
    });
    std::iter::once(PutRequest { part: Some(put_request::Part::Open(open)) }).chain(frames)
}

async fn next_part(parts: &mut Streaming<GetReply>, at: At) -> Result<Option<get_reply::Part>, ShardError> {
    match within(SHARD_STALL_MS, parts.message()).await.map_err(|e| at.error(e))? {
        None => Ok(None),
        Some(GetReply { part: Some(part) }) => Ok(Some(part)),
        Some(GetReply { part: None }) => Err(at.corrupt("an empty part in the answer")),
    }
}

async fn within<T>(limit_ms: u64, call: impl Future<Output = Result<T, Status>>) -> Result<T, ApiError> {
    match tokio::time::timeout(Duration::from_millis(limit_ms), call).await {
        Ok(reply) => reply.map_err(ApiError::from_status),
        Err(_) => Err(ApiError::Unreachable(format!("nothing happened for {limit_ms} ms"))),
    }
}

/// When an upload last got a frame off our hands. Flow control takes no frame from us while the node takes none.
#[derive(Clone)]
struct Progress(Arc<Mutex<Instant>>);

impl Progress {
    fn start() -> Self {
        Progress(Arc::new(Mutex::new(Instant::now())))
    }

    fn touch(&self) {
        *self.0.lock().expect("no holder of this lock panics") = Instant::now();
    }

    fn deadline(&self) -> Instant {
        *self.0.lock().expect("no holder of this lock panics") + Duration::from_millis(SHARD_STALL_MS)
    }

    /// Waits for the reply for as long as there is progress. The node's own work after the last frame, making the
    /// shard durable, has the same time.
    async fn watch<T>(&self, call: impl Future<Output = Result<T, Status>>) -> Result<T, ApiError> {
        let mut call = std::pin::pin!(call);
        loop {
            let deadline = self.deadline();
            match tokio::time::timeout_at(deadline, call.as_mut()).await {
                Ok(reply) => return reply.map_err(ApiError::from_status),
                Err(_) if self.deadline() > deadline => {}
                Err(_) => {
                    return Err(ApiError::Unreachable(format!("the upload stalled for {SHARD_STALL_MS} ms")));
                }
            }
        }
    }
}

#[cfg(test)]
mod shard_client_test;
