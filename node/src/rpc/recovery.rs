//! What a node answers that is stopped but for its shards: what is left of it, what it holds, and the one order that makes
//! a catalogue out of that.

use super::auth::{self, Right};
use super::{answer, internal};
use crate::raft::reseat;
use crate::recover::{self, Ground, Rebuilt, RecoverError};
use bytes::Bytes;
use farshore_core::catalogue::EXPORT_REPO;
use farshore_core::host::task::Owned;
use farshore_core::id::{ClusterId, NodeId, ShardId};
use farshore_core::limits::{LISTED_SHARDS_MAX, NODE_ADDR_BYTES_MAX, NODES_MAX, PAGE_ROWS_MAX};
use farshore_proto::status::ApiError;
use farshore_proto::wire::{
    FinishReply, FinishRequest, ListShardsReply, ListShardsRequest, RebuildProgress, RebuildRequest,
    RebuildResult, StandingReply, StandingRequest, recovery_server,
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
        }
    }

    async fn list(&self, request: ListShardsRequest) -> Result<ListShardsReply, ApiError> {
        let mut after: Option<ShardId> = request.after.map(TryInto::try_into).transpose()?;
        let mut headers = Vec::new();
        let mut looked = 0;
        while headers.len() < LISTED_SHARDS_MAX && looked < LOOKED_AT_MAX {
            let limit = PAGE_ROWS_MAX.min(LISTED_SHARDS_MAX - headers.len());
            let page = self.ground.store.list(after, limit).map_err(internal)?;
            let Some((last, _)) = page.last() else { return Ok(ListShardsReply { headers, next: None }) };
            looked += page.len();
            after = Some(*last);
            for (id, entry) in page {
                if !entry.bad && (entry.repo == EXPORT_REPO) == request.exports {
                    // A header that cannot be read is a shard that is missing.
                    let header = self.ground.store.header(id).await;
                    headers.extend(header.ok().map(|header| Bytes::copy_from_slice(&header.encode())));
                }
            }
        }
        Ok(ListShardsReply { headers, next: after.map(Into::into) })
    }

    /// Works in its own task; hanging up ends it, and nothing is lost by that.
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
        let (send, receive) = mpsc::channel(PROGRESS_QUEUED_MAX);
        let ground = self.ground.clone();
        let task = Owned::spawn(async move {
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
                result = recover::rebuild(&ground, &seeds, request.confirm, tell) => result,
                () = alive => return,
            };
            let last = result.map(to_wire).map_err(|error| Status::from(to_api(error)));
            let _ = send.send(last).await;
        });
        Ok(Box::pin(stream::unfold((receive, task), |(mut receive, task)| async move {
            let next = receive.recv().await?;
            Some((next, (receive, task)))
        })))
    }

    async fn finish(&self, request: FinishRequest) -> Result<FinishReply, ApiError> {
        self.check_cluster(&request.cluster)?;
        let replica = self.ground.replica.lock().await;
        if !replica.1 {
            if !self.ground.remains.free {
                let words = &self.ground.remains.words;
                return Err(ApiError::Invalid(format!(
                    "this node still has a replica ({words}); move `catalogue` and `raft` out of its data directory"
                )));
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
    };
    RebuildProgress { doing: String::new(), result: Some(result) }
}

fn to_api(error: RecoverError) -> ApiError {
    let text = error.to_string();
    match error {
        RecoverError::Alive(..)
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

    async fn rebuild(&self, request: Request<RebuildRequest>) -> Result<Response<Progresses>, Status> {
        auth::allow(&request, Right::Recover)?;
        answer(self.rebuild(request.into_inner()))
    }

    async fn finish(&self, request: Request<FinishRequest>) -> Result<Response<FinishReply>, Status> {
        auth::allow(&request, Right::Recover)?;
        answer(self.finish(request.into_inner()).await)
    }
}
