//! What a node answers that is stopped but for its shards: what is left of it, what it holds, and the one order that makes
//! a catalogue out of that.

use super::auth::{self, Right};
use super::{answer, internal};
use crate::raft::reseat;
use crate::recover::{self, Ground, Order, Rebuilt, RecoverError, Replica};
use crate::store::Entry;
use bytes::Bytes;
use farshore_core::catalogue::EXPORT_REPO;
use farshore_core::host::task::Owned;
use farshore_core::id::{ClusterId, NodeId, ShardId};
use farshore_core::limits::{
    HEADERS_READ_MAX, LISTED_SHARDS_MAX, NODE_ADDR_BYTES_MAX, NODES_MAX, PAGE_ROWS_MAX,
};
use farshore_proto::status::ApiError;
use farshore_proto::wire::{
    FinishReply, FinishRequest, ListShardsReply, ListShardsRequest, ListedShard, ReadHeadersReply,
    ReadHeadersRequest, RebuildProgress, RebuildRequest, RebuildResult, StandingReply, StandingRequest,
    recovery_server,
};
use futures_util::stream::{self, Stream};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Request, Response, Status};

/// The service of a node under recovery.
pub struct RecoveryService {
    ground: Arc<Ground>,
}

/// Entries looked at for one page, so that a page without matches ends too.
const LOOKED_AT_MAX: usize = 16 * PAGE_ROWS_MAX;
/// Messages waiting for a slow operator.
const PROGRESS_QUEUED_MAX: usize = 16;
/// An operator who waits hears this often that the work goes on.
const STILL_AT_WORK: Duration = Duration::from_secs(10);

impl RecoveryService {
    /// Serves what is left of a node.
    pub fn new(ground: Arc<Ground>) -> Self {
        RecoveryService { ground }
    }

    fn standing(&self) -> StandingReply {
        let Ground { cluster, own, store, remains, .. } = self.ground.as_ref();
        StandingReply {
            cluster: Bytes::copy_from_slice(cluster.as_bytes()),
            node: own.id.0,
            name: own.name.to_string(),
            region: own.region.to_string(),
            shards: store.stats().shards,
            era: remains.era,
            replica_applied: remains.last,
            replica: remains.words.clone(),
            occupied: !remains.free,
            rebuilding: self.is_rebuilding(),
        }
    }

    /// While one is under way the replica is held; a look holds it too, but has never begun anything.
    fn is_rebuilding(&self) -> bool {
        let running = self.ground.running.lock().expect("no holder of this lock panics").is_some();
        self.ground.replica.try_lock().map_or(running, |replica| replica.1.is_some())
    }

    async fn list(&self, request: ListShardsRequest) -> Result<ListShardsReply, ApiError> {
        let mut after: Option<ShardId> = request.after.map(TryInto::try_into).transpose()?;
        let limit = if request.limit == 0 { u32::MAX } else { request.limit };
        let limit = usize::try_from(limit).unwrap_or(usize::MAX).min(LISTED_SHARDS_MAX);
        let mut shards = Vec::new();
        let mut looked = 0;
        while shards.len() < limit && looked < LOOKED_AT_MAX {
            let limit = PAGE_ROWS_MAX.min(limit - shards.len());
            let page = self.ground.store.list(after, limit).map_err(internal)?;
            let Some((last, _)) = page.last() else { return Ok(ListShardsReply { shards, next: None }) };
            looked += page.len();
            after = Some(*last);
            // What is known to be bad is a shard that is missing.
            let sound = page.into_iter().filter(|(_, entry)| !entry.bad);
            let wanted = sound.filter(|(_, entry)| (entry.repo == EXPORT_REPO) == request.exports);
            shards.extend(wanted.map(|(id, entry)| listed(id, &entry)));
            tokio::task::yield_now().await;
        }
        Ok(ListShardsReply { shards, next: after.map(Into::into) })
    }

    async fn headers(&self, request: ReadHeadersRequest) -> Result<ReadHeadersReply, ApiError> {
        if request.ids.len() > HEADERS_READ_MAX {
            return Err(ApiError::Invalid(format!("more than {HEADERS_READ_MAX} headers at once")));
        }
        let mut headers = Vec::with_capacity(request.ids.len());
        for id in request.ids {
            let header = self.ground.store.header(id.try_into()?).await;
            headers.extend(header.ok().map(|header| Bytes::copy_from_slice(&header.encode())));
        }
        Ok(ReadHeadersReply { headers })
    }

    /// Works in its own task. Hanging up ends one that only looks; what was confirmed runs on, so that nobody who repeats
    /// the order meets half of it.
    fn rebuild(&self, request: RebuildRequest) -> Result<Progresses, ApiError> {
        self.check_cluster(&request.cluster)?;
        if request.nodes.len() > NODES_MAX {
            return Err(ApiError::Invalid(format!("more than {NODES_MAX} nodes are named")));
        }
        let seeds = request.nodes.into_iter().map(|seed| (NodeId(seed.node), seed.addr));
        let seeds: Vec<(NodeId, String)> = seeds.collect();
        if seeds.iter().any(|(_, addr)| addr.is_empty() || addr.len() > NODE_ADDR_BYTES_MAX) {
            return Err(ApiError::Invalid("a node is named without a usable address".into()));
        }
        let order = Order { confirm: request.confirm, accept_less: request.accept_less };
        let (send, receive) = mpsc::channel(PROGRESS_QUEUED_MAX);
        let mut running = self.ground.running.lock().expect("no holder of this lock panics");
        // A second one would be told that the first is under way, but must not take its place here.
        if running.is_some() && self.ground.replica.try_lock().is_err() {
            return Err(to_api(RecoverError::Busy));
        }
        let task = Owned::spawn(work(self.ground.clone(), seeds, order, send));
        let task = if order.confirm { running.replace(task).and(None) } else { Some(task) };
        Ok(Box::pin(stream::unfold((receive, task), |(mut receive, task)| async move {
            let next = receive.recv().await?;
            Some((next, (receive, task)))
        })))
    }

    async fn finish(&self, request: FinishRequest) -> Result<FinishReply, ApiError> {
        self.check_cluster(&request.cluster)?;
        let replica = self.ground.replica.try_lock().map_err(|_| to_api(RecoverError::Busy))?;
        if replica.1.is_none() {
            if !self.ground.remains.free {
                return Err(to_api(RecoverError::Occupied(self.ground.remains.words.clone())));
            }
            if replica.0.as_ref().is_some_and(Replica::is_half_built) {
                return Err(ApiError::Invalid(
                    "an unfinished rebuild lies here: stop this node, run `farshore node rejoin` once the others are up, \
                     then start it"
                        .into(),
                ));
            }
            reseat::forget_promises(self.ground.host.disk.clone()).await.map_err(internal)?;
        }
        self.ground.finished.send_replace(true);
        Ok(FinishReply {})
    }

    fn check_cluster(&self, given: &[u8]) -> Result<(), ApiError> {
        match ClusterId::from_slice(given)? == self.ground.cluster {
            true => Ok(()),
            false => Err(to_api(RecoverError::Foreign(self.ground.cluster))),
        }
    }
}

/// Rebuilds, and says how far it is to whoever still listens.
async fn work(
    ground: Arc<Ground>,
    seeds: Vec<(NodeId, String)>,
    order: Order,
    send: mpsc::Sender<Result<RebuildProgress, Status>>,
) {
    let tell = |doing: String| {
        tracing::info!(doing, "rebuild the catalogue");
        let _ = send.try_send(Ok(RebuildProgress { doing, result: None }));
    };
    let alive = async {
        loop {
            tokio::time::sleep(STILL_AT_WORK).await;
            let _ = send.try_send(Ok(RebuildProgress::default()));
        }
    };
    let result = tokio::select! {
        biased;
        result = recover::rebuild(&ground, &seeds, order, tell) => result,
        () = alive => return,
    };
    if let Err(why) = &result {
        tracing::warn!(%why, "catalogue not rebuilt");
    }
    let last = result.map(to_wire).map_err(|error| Status::from(to_api(error)));
    let _ = send.send(last).await;
}

fn listed(id: ShardId, entry: &Entry) -> ListedShard {
    ListedShard {
        id: Some(id.into()),
        repo: Bytes::copy_from_slice(entry.repo.as_bytes()),
        pack: Bytes::copy_from_slice(entry.pack.as_bytes()),
        hash: Bytes::copy_from_slice(entry.hash.as_bytes()),
    }
}

type Progresses = Pin<Box<dyn Stream<Item = Result<RebuildProgress, Status>> + Send>>;

fn to_wire(rebuilt: Rebuilt) -> RebuildProgress {
    let result = RebuildResult {
        done: rebuilt.done,
        base_to: rebuilt.base_to,
        base_ms: rebuilt.base_ms,
        to: rebuilt.to,
        catalogue_ms: rebuilt.time_ms,
        increments: rebuilt.increments,
        snapshots: rebuilt.snapshots,
        packs: rebuilt.packs,
        repos: rebuilt.repos,
        era: rebuilt.era,
        silent: rebuilt.silent,
        passed_over: rebuilt.passed_over,
        unknown_packs: rebuilt.unknown_packs,
        adopted_packs: rebuilt.adopted_packs,
        moved_shards: rebuilt.moved_shards,
    };
    RebuildProgress { doing: String::new(), result: Some(result) }
}

fn to_api(error: RecoverError) -> ApiError {
    let text = error.to_string();
    match error {
        RecoverError::Alive(..)
        | RecoverError::Damaged(..)
        | RecoverError::Elsewhere(_)
        | RecoverError::Less(..)
        | RecoverError::Running(_)
        | RecoverError::Foreign(_)
        | RecoverError::Occupied(_) => ApiError::Invalid(text),
        RecoverError::NoExport(..) => ApiError::NotFound(text),
        RecoverError::Busy => ApiError::TooBusy(text),
        RecoverError::Catalogue(_) | RecoverError::Reseat(_) | RecoverError::Io(_) => internal(text),
    }
}

#[tonic::async_trait]
impl recovery_server::Recovery for RecoveryService {
    type RebuildStream = Progresses;

    async fn standing(&self, request: Request<StandingRequest>) -> Result<Response<StandingReply>, Status> {
        auth::allow(&request, Right::Inventory)?;
        Ok(Response::new(self.standing()))
    }

    async fn list_shards(
        &self,
        request: Request<ListShardsRequest>,
    ) -> Result<Response<ListShardsReply>, Status> {
        auth::allow(&request, Right::Inventory)?;
        answer(self.list(request.into_inner()).await)
    }

    async fn read_headers(
        &self,
        request: Request<ReadHeadersRequest>,
    ) -> Result<Response<ReadHeadersReply>, Status> {
        auth::allow(&request, Right::Inventory)?;
        answer(self.headers(request.into_inner()).await)
    }

    async fn rebuild(&self, request: Request<RebuildRequest>) -> Result<Response<Progresses>, Status> {
        auth::allow(&request, Right::Recover)?;
        answer(self.rebuild(request.into_inner()))
    }

    async fn finish(&self, request: Request<FinishRequest>) -> Result<Response<FinishReply>, Status> {
        auth::allow(&request, Right::Recover)?;
        answer(self.finish(request.into_inner()).await)
    }
}
