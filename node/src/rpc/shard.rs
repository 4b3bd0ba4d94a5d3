//! Shards in and out. A put is answered only when the shard is durable; no byte of a get leaves unchecked; nothing here
//! deletes. A shard found bad or gone is answered as such and noted for a second look.

use super::ask::{self, Answers};
use super::auth::{self, Right};
use super::{answer, internal};
use crate::maintain::Shared;
use crate::maintain::build::BuildFailed;
use crate::maintain::foreground::Served;
use crate::maintain::report::Reports;
use crate::store::{Reader, ShardStore, StoreError};
use bytes::Bytes;
use farshore_core::catalogue::EXPORT_REPO;
use farshore_core::gather::BuildOrder;
use farshore_core::id::{ClusterId, SessionId, ShardHash, ShardId};
use farshore_core::limits::{FRAME_BYTES, PUT_BYTES_PER_MS_MIN, PUTS_IN_FLIGHT_MAX, SHARD_STALL_MS};
use farshore_core::peer::{ShardError, ShardRef};
use farshore_core::shard::{ShardHeader, ShardRange};
use farshore_proto::convert::build::terms;
use farshore_proto::convert::required;
use farshore_proto::convert::shard::from_get_request;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use farshore_proto::wire::{
    Blocks, BuildReply, BuildRequest, GetReply, GetRequest, PutOpen, PutReply, PutRequest, SumReply,
    SumRequest, VerifyReply, VerifyRequest, build_reply, get_reply, put_request, shards_server,
};
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};

/// The shard service of a node.
pub struct ShardService {
    cluster: ClusterId,
    store: Arc<ShardStore>,
    reports: Arc<Reports>,
    puts: Semaphore,
    /// Without it, nothing is taken in or built.
    shared: Option<Arc<Shared>>,
}

impl ShardService {
    /// Serves the store of this node, and builds shards for it.
    pub fn new(shared: &Arc<Shared>) -> Self {
        let (store, reports) = (shared.store.clone(), shared.reports.clone());
        ShardService {
            shared: Some(shared.clone()),
            ..ShardService::reading_only(shared.cluster, store, reports)
        }
    }

    /// Serves this store and takes nothing in.
    pub fn reading_only(cluster: ClusterId, store: Arc<ShardStore>, reports: Arc<Reports>) -> Self {
        ShardService { cluster, store, reports, puts: Semaphore::new(PUTS_IN_FLIGHT_MAX), shared: None }
    }

    async fn receive(&self, caller: Caller, mut parts: Streaming<PutRequest>) -> Result<PutReply, ApiError> {
        let _place = self.puts.acquire().await.map_err(internal)?;
        let Some(put_request::Part::Open(open)) = next_part(&mut parts).await? else {
            return Err(ApiError::Invalid("an upload begins with the shard's header".into()));
        };
        let (header, session) = self.admit(&caller, &open)?;
        let _served = self.served(&caller);
        let deadline = Instant::now() + time_for(header.payload_len);
        let late = |_| ApiError::Unreachable("the upload is too slow to wait for".into());
        let stored = tokio::time::timeout_at(deadline, self.store_frames(parts, header, session));
        let hash = stored.await.map_err(late)??;
        Ok(PutReply { hash: Bytes::copy_from_slice(hash.as_bytes()) })
    }

    async fn store_frames(
        &self,
        mut parts: Streaming<PutRequest>,
        header: ShardHeader,
        session: Option<SessionId>,
    ) -> Result<ShardHash, ApiError> {
        let mut put = self.store.begin_put(header, session).await.map_err(to_api)?;
        while let Some(part) = next_part(&mut parts).await? {
            let put_request::Part::Frame(frame) = part else {
                return Err(ApiError::Invalid("a second header in an upload".into()));
            };
            if frame.is_empty() || frame.len() > FRAME_BYTES {
                return Err(ApiError::Invalid(format!(
                    "a frame has {} bytes, allowed are 1 to {FRAME_BYTES}",
                    frame.len()
                )));
            }
            put.write(frame).await.map_err(to_api)?;
        }
        put.finish().await.map_err(to_api)
    }

    /// The header of an upload that may go on, and the session it is for.
    fn admit(&self, caller: &Caller, open: &PutOpen) -> Result<(ShardHeader, Option<SessionId>), ApiError> {
        let session = match open.session.is_empty() {
            true => None,
            false => Some(SessionId::from_slice(&open.session)?),
        };
        auth::check(caller, if session.is_some() { Right::Upload } else { Right::Rebuild })?;
        self.at_work()?;
        let header = ShardHeader::decode(&open.header).map_err(|e| ApiError::Invalid(e.to_string()))?;
        if header.cluster != self.cluster {
            return Err(ApiError::Invalid(format!("the shard belongs to cluster {}", header.cluster)));
        }
        // A client that could lay down exports could have a catalogue of its own making rebuilt.
        if header.repo == EXPORT_REPO && !matches!(caller, Caller::Node(_)) {
            return Err(ApiError::Denied(format!("{caller} may not store exports of the catalogue")));
        }
        Ok((header, session))
    }

    /// While it is kept, a client is being served.
    fn served(&self, caller: &Caller) -> Option<Served> {
        let shared = self.shared.as_ref().filter(|_| matches!(caller, Caller::Client(_)))?;
        Some(shared.foreground.serve())
    }

    /// What is needed to take shards in.
    fn at_work(&self) -> Result<&Arc<Shared>, ApiError> {
        let frozen = || ApiError::Denied("this node is under recovery and takes no shards".into());
        self.shared.as_ref().ok_or_else(frozen)
    }

    async fn add_up(&self, request: SumRequest) -> Result<Sums, ApiError> {
        let terms = terms(request.terms)?;
        let pieces = self.at_work()?.builder.sum(terms).await;
        Ok(pieces.map(|piece| Ok(SumReply { piece: piece.map_err(source_failed)? })).boxed())
    }

    /// The build ends if nobody listens to its progress any more.
    fn build(&self, request: BuildRequest) -> Result<Answers<BuildReply>, ApiError> {
        let (shared, order) = (self.at_work()?.clone(), BuildOrder::try_from(request)?);
        Ok(ask::answers(|told| async move {
            let made = |bytes| told.progress(progress(build_reply::Part::Made(bytes)));
            let view = shared.view();
            let region_of = |node| Some(view.as_ref().ok()?.node(node).ok()??.region);
            let built = shared.builder.build(&order, &region_of, &made).await;
            built.map(|built| progress(build_reply::Part::Built(built.into()))).map_err(build_failed)
        }))
    }

    /// Opens a shard and answers with its sums first, then with the checked blocks. Blocks are read as the network takes
    /// them, so a slow reader holds one piece and no more.
    async fn send(
        &self,
        caller: &Caller,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Replies, ApiError> {
        let reader = self.store.read(shard.id, shard.hash, ranges).await;
        let reader = reader.map_err(|e| noted(&self.reports, shard.id, e))?;
        let sums = get_reply::Part::Sums(reader.sums().encode().into());
        let first = GetReply { part: Some(sums) };
        let reports = self.reports.clone();
        let served = self.served(caller);
        let rest = stream::try_unfold(reader, move |reader| next_blocks(reader, shard.id, reports.clone()));
        let rest = rest.inspect(move |_| _ = &served);
        Ok(Box::pin(stream::iter([Ok(first)]).chain(rest)))
    }

    async fn verify(&self, shard: ShardRef) -> Result<VerifyReply, ApiError> {
        let verified = self.store.verify(shard.id, shard.hash).await;
        verified.map(|()| VerifyReply {}).map_err(|e| noted(&self.reports, shard.id, e))
    }
}

type Sums = BoxStream<'static, Result<SumReply, Status>>;

fn progress(part: build_reply::Part) -> BuildReply {
    BuildReply { part: Some(part) }
}

/// A source failed: another choice of sources may do.
fn source_failed(error: ShardError) -> ApiError {
    ApiError::Unreachable(error.to_string())
}

fn build_failed(error: BuildFailed) -> ApiError {
    match error {
        BuildFailed::Order => ApiError::Invalid(error.to_string()),
        BuildFailed::Store(error) => to_api(error),
        BuildFailed::Gather(error) => ApiError::Unreachable(error.to_string()),
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<GetReply, Status>> + Send>>;

async fn next_blocks(
    mut reader: Reader,
    id: ShardId,
    reports: Arc<Reports>,
) -> Result<Option<(GetReply, Reader)>, Status> {
    let next = reader.next().await.map_err(|e| noted(&reports, id, e))?;
    let reply = |(first, bytes)| GetReply { part: Some(get_reply::Part::Blocks(Blocks { first, bytes })) };
    Ok(next.map(|blocks| (reply(blocks), reader)))
}

/// Says what failed, and notes a shard that should be here and whole.
fn noted(reports: &Reports, id: ShardId, error: StoreError) -> ApiError {
    if matches!(error, StoreError::Missing(_) | StoreError::Corrupt(..)) {
        reports.suspect(id);
    }
    to_api(error)
}

fn to_api(error: StoreError) -> ApiError {
    let text = error.to_string();
    match error {
        StoreError::Full { .. } => ApiError::Full(text),
        StoreError::Missing(_) => ApiError::Missing(text),
        StoreError::Corrupt(..) => ApiError::Corrupt(text),
        StoreError::Refused(_) | StoreError::WrongHash(_) => ApiError::Invalid(text),
        StoreError::Raced(_) => ApiError::TooBusy(text),
        StoreError::Io(_) | StoreError::Index(_) | StoreError::Vanished => internal(text),
    }
}

/// How long an upload may hold its place. A stall is noticed sooner; this is for those that trickle.
fn time_for(payload_len: u64) -> Duration {
    Duration::from_millis(2 * SHARD_STALL_MS + payload_len / PUT_BYTES_PER_MS_MIN)
}

/// The next part of an upload; a client that stalls loses its place to others.
async fn next_part(parts: &mut Streaming<PutRequest>) -> Result<Option<put_request::Part>, ApiError> {
    let next = tokio::time::timeout(Duration::from_millis(SHARD_STALL_MS), parts.message()).await;
    match next {
        Err(_) => Err(ApiError::Unreachable(format!("nothing arrived for {SHARD_STALL_MS} ms"))),
        Ok(Err(status)) => Err(ApiError::from_status(status)),
        Ok(Ok(None)) => Ok(None),
        Ok(Ok(Some(PutRequest { part: Some(part) }))) => Ok(Some(part)),
        Ok(Ok(Some(PutRequest { part: None }))) => {
            Err(ApiError::Invalid("an empty part in an upload".into()))
        }
    }
}

#[tonic::async_trait]
impl shards_server::Shards for ShardService {
    type GetStream = Replies;

    async fn put(&self, request: Request<Streaming<PutRequest>>) -> Result<Response<PutReply>, Status> {
        let caller = auth::caller(&request)?;
        answer(self.receive(caller, request.into_inner()).await)
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Replies>, Status> {
        let caller = auth::allow(&request, Right::ReadShard)?;
        let (shard, ranges) = from_get_request(request.into_inner())?;
        answer(self.send(&caller, shard, &ranges).await)
    }

    type SumStream = Sums;
    type BuildStream = Answers<BuildReply>;

    async fn sum(&self, request: Request<SumRequest>) -> Result<Response<Sums>, Status> {
        auth::allow(&request, Right::Rebuild)?;
        answer(self.add_up(request.into_inner()).await)
    }

    async fn build(&self, request: Request<BuildRequest>) -> Result<Response<Answers<BuildReply>>, Status> {
        auth::allow(&request, Right::Rebuild)?;
        answer(ShardService::build(self, request.into_inner()))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyReply>, Status> {
        auth::allow(&request, Right::ReadShard)?;
        let shard = required(request.into_inner().shard, "shard")?.try_into()?;
        answer(self.verify(shard).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::limits::SHARD_BYTES_MAX;

    #[test]
    fn an_upload_that_trickles_does_not_hold_its_place_for_ever() {
        assert_eq!(time_for(0), Duration::from_millis(2 * SHARD_STALL_MS));
        assert!(time_for(SHARD_BYTES_MAX as u64) < Duration::from_secs(10 * 3_600));
    }
}
