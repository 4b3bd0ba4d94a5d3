//! The catalogue over gRPC. Every answer is converted and checked here; an answer that does not fit its question is a
//! protocol error and never an index out of range later.

use super::conversation::{Conversation, Failure};
use crate::api::*;
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    Migration, PackCommit, PackRecord, RepoChange, RepoRecord, RepoSettings, SnapshotRecord,
};
use farshore_core::id::{
    ChunkId, ClusterId, NodeId, Ordinal, PackNo, RepoId, SessionId, SnapshotId, StripeId,
};
use farshore_core::limits::{
    COMMIT_PACKS_MAX, LOOKUP_CHUNKS_MAX, MIGRATIONS_MAX, NODES_LISTED_MAX, PAGE_ROWS_MAX,
};
use farshore_core::topology::{Name, NodeRecord};
use farshore_proto::channel::{admin, catalogue};
use farshore_proto::convert::{common, list, required};
use farshore_proto::peers::Peers;
use farshore_proto::status::{ApiError, STALE_HEADER};
use farshore_proto::wire;
use std::sync::Arc;
use tonic::metadata::MetadataValue;

/// The catalogue of a cluster, asked through whichever of its nodes answers.
pub struct GrpcCatalogue {
    conversation: Arc<Conversation>,
    peers: Arc<Peers>,
    freshness: Freshness,
}

/// How fresh answers about the catalogue must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Freshness {
    /// Everything that was acknowledged before the question; a leader with a majority confirms it.
    #[default]
    Confirmed,
    /// Whatever the replica knows that is asked: for the day on which no majority is left.
    AsFound,
}

impl GrpcCatalogue {
    /// `peers` learns every node's address from each topology that comes in.
    pub fn new(conversation: Arc<Conversation>, peers: Arc<Peers>, freshness: Freshness) -> Self {
        GrpcCatalogue { conversation, peers, freshness }
    }

    /// A request that says how fresh its answer must be.
    fn ask<T>(request: T, freshness: Freshness) -> tonic::Request<T> {
        let mut request = tonic::Request::new(request);
        if freshness == Freshness::AsFound {
            request.metadata_mut().insert(STALE_HEADER, MetadataValue::from_static("1"));
        }
        request
    }

    fn learn(&self, topology: &Topology) {
        self.conversation.learn(topology);
        for node in &topology.nodes {
            self.peers.set(node.id, &node.addr);
        }
    }
}

/// One call, spelled out once: the request is cloned for each attempt (its blobs are shared, not copied).
macro_rules! ask {
    ($self:ident, $client:ident . $method:ident, $request:expr) => {{
        let (request, freshness) = ($request, $self.freshness);
        $self.conversation.call(move |channel| {
            let request = GrpcCatalogue::ask(request.clone(), freshness);
            async move { $client(channel).$method(request).await }
        })
    }};
}

fn bytes(id: &[u8]) -> Bytes {
    Bytes::copy_from_slice(id)
}

/// An answer that could not be converted.
fn odd(error: ApiError) -> Error {
    Error::Protocol(error.to_string())
}

/// Fails unless there is one answer per question.
fn one_each(what: &str, asked: usize, answered: usize) -> Result<()> {
    if asked == answered {
        return Ok(());
    }
    Err(Error::Protocol(format!("{asked} {what} were asked for and {answered} came")))
}

/// Too many of something in one call is the caller's mistake.
fn within(what: &str, count: usize, max: usize) -> Result<()> {
    if count <= max {
        Ok(())
    } else {
        Err(Error::Invalid(format!("{count} {what} in one call, at most {max}")))
    }
}

/// What a failed call under a session means.
fn in_session(session: SessionId) -> impl Fn(Failure) -> Error {
    move |failure| match failure {
        Failure::Answer(ApiError::NoSession(_)) => Error::SessionEnded(session),
        other => other.into(),
    }
}

#[async_trait]
impl CatalogueApi for GrpcCatalogue {
    async fn topology(&self) -> Result<Topology> {
        let reply = ask!(self, catalogue.get_topology, wire::GetTopologyRequest {}).await?;
        let topology = topology_of(reply).map_err(odd)?;
        self.learn(&topology);
        Ok(topology)
    }

    async fn create_repository(&self, repo: RepoRecord) -> Result<RepoRecord> {
        let name = repo.name.to_string();
        let request = wire::CreateRepositoryRequest { repo: Some(repo.into()) };
        let reply = ask!(self, catalogue.create_repository, request).await;
        let reply = reply.map_err(|failure| match failure {
            Failure::Answer(ApiError::Exists(_)) => Error::RepositoryExists(name),
            other => other.into(),
        })?;
        reply.try_into().map_err(odd)
    }

    async fn get_repository(&self, name: &Name) -> Result<RepoRecord> {
        let request = wire::GetRepositoryRequest { name: name.to_string() };
        let reply = ask!(self, catalogue.get_repository, request).await;
        let reply = reply.map_err(|failure| match failure {
            Failure::Answer(ApiError::NotFound(_)) => Error::RepositoryMissing(name.to_string()),
            other => other.into(),
        })?;
        reply.try_into().map_err(odd)
    }

    async fn open_session(&self, id: SessionId, repo: RepoId, seen: u64) -> Result<OpenedSession> {
        let (session, repo) = (bytes(id.as_bytes()), bytes(repo.as_bytes()));
        let request = wire::OpenSessionRequest { session, repo, seen };
        let reply = ask!(self, catalogue.open_session, request).await.map_err(in_session(id))?;
        Ok(OpenedSession { id, opened: reply.opened })
    }

    async fn renew_session(&self, session: SessionId) -> Result<()> {
        let request = wire::RenewSessionRequest { session: bytes(session.as_bytes()) };
        ask!(self, catalogue.renew_session, request).await.map_err(in_session(session))?;
        Ok(())
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        let request = wire::CloseSessionRequest { session: bytes(session.as_bytes()) };
        ask!(self, catalogue.close_session, request).await.map_err(in_session(session))?;
        Ok(())
    }

    async fn lookup(
        &self,
        session: SessionId,
        repo: RepoId,
        ids: &[ChunkId],
    ) -> Result<Vec<Option<Ordinal>>> {
        within("chunks", ids.len(), LOOKUP_CHUNKS_MAX)?;
        let request = wire::LookupChunksRequest {
            session: bytes(session.as_bytes()),
            repo: bytes(repo.as_bytes()),
            ids: ids.iter().map(|id| bytes(id.as_bytes())).collect(),
        };
        let reply = ask!(self, catalogue.lookup_chunks, request).await.map_err(in_session(session))?;
        one_each("chunks", ids.len(), reply.ordinals_plus_one.len())?;
        Ok(reply.ordinals_plus_one.into_iter().map(|n| n.checked_sub(1).map(Ordinal)).collect())
    }

    async fn commit_packs(&self, session: SessionId, packs: Vec<PackCommit>) -> Result<Vec<PackCommitted>> {
        within("packs", packs.len(), COMMIT_PACKS_MAX)?;
        let asked: Vec<_> = packs.iter().map(|p| (p.id, p.chunks.len())).collect();
        let packs = packs.into_iter().map(Into::into).collect();
        let request = wire::CommitPacksRequest { session: bytes(session.as_bytes()), packs };
        let reply = ask!(self, catalogue.commit_packs, request).await.map_err(in_session(session))?;
        let done = list(reply.packs, COMMIT_PACKS_MAX, "packs", PackCommitted::try_from).map_err(odd)?;
        one_each("packs", asked.len(), done.len())?;
        if done.iter().zip(&asked).any(|(d, (id, chunks))| d.id != *id || d.ordinals.len() != *chunks) {
            return Err(Error::Protocol("the committed packs are not the ones sent".into()));
        }
        Ok(done)
    }

    async fn commit_snapshot(
        &self,
        session: SessionId,
        snapshot: SnapshotRecord,
        replaces: Option<SnapshotId>,
    ) -> Result<SnapshotCommitted> {
        let session_id = bytes(session.as_bytes());
        let replaces = replaces.map(|id| bytes(id.as_bytes())).unwrap_or_default();
        let snapshot = Some(snapshot.into());
        let request = wire::CommitSnapshotRequest { session: session_id, snapshot, replaces };
        let reply = ask!(self, catalogue.commit_snapshot, request).await.map_err(in_session(session))?;
        Ok(SnapshotCommitted { committed_ms: reply.committed_ms, under_target: reply.under_target })
    }

    async fn list_snapshots(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        trash: bool,
    ) -> Result<SnapshotPage> {
        let after = after.map(|id| bytes(id.as_bytes())).unwrap_or_default();
        let request = wire::ListSnapshotsRequest { repo: bytes(repo.as_bytes()), after, trash };
        let reply = ask!(self, catalogue.list_snapshots, request).await?;
        let marks = reply.snapshots.iter().map(|s| s.marks.map(Into::into).unwrap_or_default()).collect();
        let snapshots =
            list(reply.snapshots, PAGE_ROWS_MAX, "snapshots", SnapshotRecord::try_from).map_err(odd)?;
        Ok(SnapshotPage { more: reply.more && !snapshots.is_empty(), snapshots, marks })
    }

    async fn change_repository(&self, repo: RepoId, change: RepoChange) -> Result<u32> {
        let request =
            wire::ChangeRepositoryRequest { repo: bytes(repo.as_bytes()), change: Some(change.into()) };
        Ok(ask!(self, catalogue.change_repository, request).await?.count)
    }

    async fn settings(&self, repo: RepoId) -> Result<(RepoSettings, u64)> {
        let request = wire::GetSettingsRequest { repo: bytes(repo.as_bytes()) };
        let reply = ask!(self, catalogue.get_settings, request).await?;
        let now_ms = reply.catalogue_ms;
        Ok((reply.try_into().map_err(odd)?, now_ms))
    }

    async fn collect_garbage(&self, repo: RepoId, dry_run: bool) -> Result<GarbageReport> {
        let request = wire::CollectGarbageRequest { repo: bytes(repo.as_bytes()), dry_run };
        Ok(garbage_of(ask!(self, admin.collect_garbage, request).await?))
    }

    async fn locate(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Located> {
        within("chunks", ids.len(), LOOKUP_CHUNKS_MAX)?;
        let ids: Vec<_> = ids.iter().map(|id| bytes(id.as_bytes())).collect();
        let asked = ids.len();
        let request = wire::LocateChunksRequest { repo: bytes(repo.as_bytes()), ids };
        let reply = ask!(self, catalogue.locate_chunks, request).await?;
        one_each("chunks", asked, reply.places.len())?;
        let packs = packs_of(reply.packs, LOOKUP_CHUNKS_MAX, repo)?;
        let packs: std::collections::BTreeMap<_, _> = packs.into_iter().map(|p| (p.no, p)).collect();
        let places: Vec<_> = reply.places.into_iter().map(place_of).collect();
        if places.iter().flatten().any(|place| !packs.contains_key(&place.pack)) {
            return Err(Error::Protocol("a chunk lies in a pack that is not described".into()));
        }
        Ok(Located { places, packs })
    }

    async fn list_packs(&self, repo: RepoId, from: PackNo) -> Result<PackPage> {
        let request = wire::ListPacksRequest { repo: bytes(repo.as_bytes()), from: from.0 };
        let reply = ask!(self, catalogue.list_packs, request).await?;
        let packs = packs_of(reply.packs, PAGE_ROWS_MAX, repo)?;
        // A page that does not lead on would be asked for for ever.
        let next = Some(PackNo(reply.next)).filter(|next| reply.next != 0 && *next > from);
        Ok(PackPage { packs, next })
    }

    async fn status(&self) -> Result<ClusterStatus> {
        let reply = ask!(self, admin.status, wire::StatusRequest {}).await?;
        status_of(reply).map_err(odd)
    }
}

fn garbage_of(reply: wire::GarbageReport) -> GarbageReport {
    GarbageReport {
        packs: reply.packs,
        bytes: reply.bytes,
        dead: reply.dead,
        dead_bytes: reply.dead_bytes,
        condemned: reply.condemned,
        condemned_bytes: reply.condemned_bytes,
        waiting: reply.waiting,
        in_use: reply.in_use,
        in_use_bytes: reply.in_use_bytes,
        sparse: reply.sparse,
        sparse_bytes: reply.sparse_bytes,
        recode: reply.recode,
        recode_bytes: reply.recode_bytes,
        sessions: reply.sessions,
        trash: reply.trash,
        dropped: reply.dropped,
        dropped_bytes: reply.dropped_bytes,
        more: reply.more,
        compacted: reply.compacted,
        unswept: reply.unswept,
    }
}

fn topology_of(reply: wire::Topology) -> Result<Topology, ApiError> {
    Ok(Topology {
        cluster: ClusterId::from_slice(&reply.cluster)?,
        nodes: list(reply.nodes, NODES_LISTED_MAX, "nodes", NodeRecord::try_from)?,
        leader: common::opt_node_id(reply.leader),
        applied: reply.applied,
        slow: list(reply.slow, NODES_LISTED_MAX, "nodes", |id| Ok(NodeId(id)))?,
    })
}

fn packs_of(packs: Vec<wire::Pack>, max: usize, repo: RepoId) -> Result<Vec<PackRecord>> {
    let packs = list(packs, max, "packs", PackRecord::try_from).map_err(odd)?;
    if packs.iter().any(|pack| pack.repo != repo) {
        return Err(Error::Protocol("a pack of another repository came back".into()));
    }
    Ok(packs)
}

fn place_of(place: wire::ChunkPlace) -> Option<ChunkPlace> {
    place.found.then_some(ChunkPlace {
        ordinal: Ordinal(place.ordinal),
        pack: PackNo(place.pack),
        offset: place.offset,
        len: place.len,
    })
}

fn status_of(reply: wire::StatusReply) -> Result<ClusterStatus, ApiError> {
    let repair = reply.repair.unwrap_or_default();
    Ok(ClusterStatus {
        cluster: ClusterId::from_slice(&reply.cluster)?,
        answering: NodeId(reply.answering),
        leader: common::opt_node_id(reply.leader),
        term: reply.term,
        applied: reply.applied,
        stale: reply.stale,
        feature_level: reply.feature_level,
        nodes: list(reply.nodes, NODES_LISTED_MAX, "nodes", node_status_of)?,
        repair: repair_of(repair)?,
        packs: reply.packs,
        under_target: reply.under_target,
        endangered: reply.endangered,
        unreadable: reply.unreadable,
        survives_region: reply.survives_region,
        fatal_regions: reply.fatal_regions,
        catalogue_ms: reply.catalogue_ms,
        state_hash: reply.state_hash.to_vec(),
        unexported_ms: reply.unexported_ms,
        export_error: reply.export_error,
        export_every_ms: reply.export_every_ms,
        migrations: list(reply.migrations, MIGRATIONS_MAX, "migrations", Migration::try_from)?,
        scrub_paused: reply.scrub_paused,
    })
}

fn repair_of(repair: wire::RepairStatus) -> Result<RepairStatus, ApiError> {
    let urgent = |task: wire::UrgentRepair| {
        Ok(UrgentRepair {
            stripe: StripeId::from_slice(&task.stripe)?,
            index: task.index,
            to: NodeId(task.to),
            spare: task.spare,
            spare_after_region: task.spare_after_region,
            running: task.running,
        })
    };
    Ok(RepairStatus {
        queued: repair.queued,
        running: repair.running,
        rebuilt: repair.rebuilt,
        failed: repair.failed,
        last_error: repair.last_error,
        bad_found: repair.bad_found,
        queued_bytes: repair.queued_bytes,
        queue_full: repair.queue_full,
        recent_shards: repair.recent_shards,
        recent_bytes: repair.recent_bytes,
        recent_ms: repair.recent_ms,
        failed_ago_ms: repair.failed_ago_ms,
        urgent: list(repair.urgent, PAGE_ROWS_MAX, "tasks of repair", urgent)?,
        links: list(repair.links, NODES_LISTED_MAX * NODES_LISTED_MAX, "links", super::topology::link_of)?,
        singly_bytes: repair.singly_bytes,
        liars: list(repair.liars, NODES_LISTED_MAX, "nodes", |id| Ok(NodeId(id)))?,
        held: repair.held,
        spent_micros: repair.spent_micros,
        kept: repair.kept,
    })
}

fn node_status_of(status: wire::NodeStatus) -> Result<NodeStatus, ApiError> {
    Ok(NodeStatus {
        node: required(status.node, "node")?.try_into()?,
        voter: status.voter,
        heard: status.heard,
        used: status.used,
        free: status.free,
        shards: status.shards,
        silent_ms: status.silent_ms,
        grace_left_ms: status.grace_left_ms,
        clock_offset_ms: status.clock_offset_ms,
        feature_level: status.feature_level,
        rtt_us: status.rtt_us,
        disk_us: status.disk_us,
        slow: status.slow,
        flaps: status.flaps,
        held_ms: status.held_ms,
    })
}
