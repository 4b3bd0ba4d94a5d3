//! The catalogue as clients see it. Changes become commands and go through consensus; reads are confirmed by the
//! leader and answered from this node's own replica at one applied index. What comes from the wire is checked by
//! `proto::convert`; nothing here decides anything.

use super::auth::{self, Right};
use super::{answer, internal};
use crate::catalogue::View;
use crate::maintain::Shared;
use farshore_core::catalogue::{ChunkRecord, Command, Reply, RepoRecord, SnapshotRecord};
use farshore_core::id::{ChunkId, NodeId, PackNo, RepoId, SessionId};
use farshore_core::limits::{CATALOGUE_CALL_MS, PAGE_ROWS_MAX};
use farshore_core::topology::Name;
use farshore_proto::channel;
use farshore_proto::convert::catalogue::{chunk_ids, opt_snapshot_id, pack_commits};
use farshore_proto::convert::required;
use farshore_proto::status::{ApiError, takes_stale};
use farshore_proto::tls::Caller;
use farshore_proto::wire::{self, catalogue_server};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

/// The catalogue service of a node.
pub struct CatalogueService {
    shared: Arc<Shared>,
}

impl CatalogueService {
    /// Serves what this node knows and passes on what it must not decide alone.
    pub fn new(shared: Arc<Shared>) -> Self {
        CatalogueService { shared }
    }

    /// Carries out a change on behalf of a client.
    async fn change(&self, caller: Caller, command: Command) -> Result<Reply, ApiError> {
        match self.shared.consensus.propose_as(auth::actor(caller)?, command).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// The state after everything that was acknowledged before this call.
    async fn read(&self) -> Result<View, ApiError> {
        self.shared.consensus.read_index().await?;
        self.shared.view().map_err(internal)
    }

    /// For a caller who is content with it, whatever this replica knows: on the day on which no majority is left. One that
    /// knows nothing yet must not be taken for a cluster without snapshots.
    async fn read_as(&self, stale: bool) -> Result<View, ApiError> {
        if !stale {
            return self.read().await;
        }
        let view = self.shared.view().map_err(internal)?;
        match view.cluster() {
            Some(_) => Ok(view),
            None => {
                Err(ApiError::NoQuorum("this node has no replica of the catalogue yet; ask another".into()))
            }
        }
    }

    /// The same, but only if it is this node that leads.
    async fn read_leading(&self) -> Result<View, ApiError> {
        self.shared.consensus.read_index_leading().await?;
        self.shared.view().map_err(internal)
    }

    /// Any state at or after the opening of the session: a chunk seen there is not deleted before the session ends, and
    /// one condemned later is only sent once too often (DESIGN section 5).
    async fn read_since_opening(&self, session: SessionId) -> Result<View, ApiError> {
        let view = self.shared.view().map_err(internal)?;
        if view.session(session).map_err(internal)?.is_some() {
            return Ok(view);
        }
        // Unknown here: this replica lags behind the opening, or the session has ended. Only the leader can tell.
        let view = self.read().await?;
        match view.session(session).map_err(internal)? {
            Some(_) => Ok(view),
            None => Err(no_session(session)),
        }
    }

    async fn topology(&self) -> Result<wire::Topology, ApiError> {
        // A client that looks for a way in must be answered even while nobody leads.
        let view = self.shared.view().map_err(internal)?;
        let cluster =
            view.cluster().ok_or_else(|| ApiError::NoQuorum("this cluster is not formed yet".into()))?;
        Ok(wire::Topology {
            cluster: id_bytes(cluster.as_bytes()),
            nodes: view.nodes().map_err(internal)?.into_iter().map(Into::into).collect(),
            leader: self.shared.consensus.leader().map_or(0, |node| node.0),
            applied: view.applied(),
            slow: self.shared.reached.slow().into_iter().map(|node| node.0).collect(),
        })
    }

    async fn create(&self, caller: Caller, repo: RepoRecord) -> Result<wire::Repository, ApiError> {
        self.change(caller, Command::CreateRepository { repo: repo.clone() }).await?;
        Ok(repo.into())
    }

    async fn repository(&self, name: Name, stale: bool) -> Result<wire::Repository, ApiError> {
        let repo = self.read_as(stale).await?.repo_by_name(name.as_str()).map_err(internal)?;
        repo.map(Into::into).ok_or_else(|| ApiError::NotFound(format!("there is no repository `{name}`")))
    }

    async fn open(
        &self,
        caller: Caller,
        session: SessionId,
        repo: RepoId,
        seen: u64,
    ) -> Result<wire::OpenSessionReply, ApiError> {
        match self.change(caller, Command::OpenSession { session, repo, seen }).await? {
            Reply::SessionOpen { opened } => Ok(wire::OpenSessionReply { opened }),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Leases live on the leader. A node that does not lead passes the renewal on, once: a leader that has just lost its office answers
    /// with an error and the client asks again.
    async fn renew(&self, caller: Caller, session: SessionId) -> Result<wire::RenewSessionReply, ApiError> {
        let leader = self.shared.consensus.leader();
        match (leader, caller) {
            (Some(node), _) if node == self.shared.own.id => self.renew_here(session).await,
            (Some(node), Caller::Client(_)) => self.renew_there(node, session).await,
            (Some(_), Caller::Node(_)) => Err(ApiError::NoQuorum("this node no longer leads".into())),
            (None, _) => Err(ApiError::NoQuorum("no leader is known".into())),
        }
    }

    async fn renew_here(&self, session: SessionId) -> Result<wire::RenewSessionReply, ApiError> {
        let no_longer = || ApiError::NoQuorum("this node no longer leads".into());
        // Confirmed for this very node, so that a deposed leader does not promise what its successor may end: who leads
        // in a term after the confirmation as before it, has led all the while.
        let term = self.shared.leading().ok_or_else(no_longer)?;
        if self.read_leading().await?.session(session).map_err(internal)?.is_none() {
            return Err(no_session(session));
        }
        if self.shared.leading() != Some(term) {
            return Err(no_longer());
        }
        if !self.shared.leases.renew(term, session, Instant::now()) {
            // Asked again, it is answered by what became of it.
            return Err(ApiError::NoQuorum(format!("session {session:?} cannot be renewed at the moment")));
        }
        Ok(wire::RenewSessionReply {})
    }

    async fn renew_there(
        &self,
        leader: NodeId,
        session: SessionId,
    ) -> Result<wire::RenewSessionReply, ApiError> {
        let unknown = || ApiError::NoQuorum(format!("no address is known for the leader {leader}"));
        let mut client = channel::catalogue(self.shared.peers.channel(leader).ok_or_else(unknown)?);
        let request = wire::RenewSessionRequest { session: id_bytes(session.as_bytes()) };
        let call =
            tokio::time::timeout(Duration::from_millis(CATALOGUE_CALL_MS), client.renew_session(request));
        match call.await {
            Ok(answer) => Ok(answer.map_err(ApiError::from_status)?.into_inner()),
            Err(_) => Err(ApiError::NoQuorum(format!("the leader {leader} did not answer"))),
        }
    }

    async fn lookup(
        &self,
        session: SessionId,
        repo: RepoId,
        ids: Vec<ChunkId>,
    ) -> Result<wire::LookupChunksReply, ApiError> {
        let view = self.read_since_opening(session).await?;
        let offered = view.offered(repo, &ids).map_err(internal)?;
        let ordinals_plus_one = offered.into_iter().map(|o| o.map_or(0, |ordinal| ordinal.0 + 1)).collect();
        Ok(wire::LookupChunksReply { ordinals_plus_one })
    }

    async fn commit_packs(
        &self,
        caller: Caller,
        request: wire::CommitPacksRequest,
    ) -> Result<wire::CommitPacksReply, ApiError> {
        let session = session_id(&request.session)?;
        let packs = pack_commits(request.packs)?;
        match self.change(caller, Command::CommitPacks { session, packs }).await? {
            Reply::PacksCommitted { packs } => {
                Ok(wire::CommitPacksReply { packs: packs.into_iter().map(Into::into).collect() })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    async fn commit_snapshot(
        &self,
        caller: Caller,
        request: wire::CommitSnapshotRequest,
    ) -> Result<wire::CommitSnapshotReply, ApiError> {
        let session = session_id(&request.session)?;
        let snapshot: SnapshotRecord = required(request.snapshot, "snapshot")?.try_into()?;
        // The time is the catalogue's to give.
        let snapshot = SnapshotRecord { committed_ms: 0, ..snapshot };
        let replaces = opt_snapshot_id(&request.replaces)?;
        match self.change(caller, Command::CommitSnapshot { session, snapshot, replaces }).await? {
            Reply::SnapshotCommitted { committed_ms, under_target } => {
                Ok(wire::CommitSnapshotReply { committed_ms, under_target })
            }
            reply => Err(unexpected(&reply)),
        }
    }

    async fn list_snapshots(
        &self,
        request: wire::ListSnapshotsRequest,
        stale: bool,
    ) -> Result<wire::ListSnapshotsReply, ApiError> {
        let repo = repo_id(&request.repo)?;
        let after = opt_snapshot_id(&request.after)?;
        let view = self.read_as(stale).await?;
        let page = match request.trash {
            false => view.snapshots(repo, after, PAGE_ROWS_MAX, false),
            true => view.trash(repo, after, PAGE_ROWS_MAX),
        };
        let page = page.map_err(internal)?;
        let mut snapshots = Vec::with_capacity(page.rows.len());
        for row in page.rows {
            let marks = Some(view.marks(repo, row.id).map_err(internal)?.into());
            snapshots.push(wire::Snapshot { marks, ..row.into() });
        }
        Ok(wire::ListSnapshotsReply { snapshots, more: page.next.is_some() })
    }

    async fn change_repository(
        &self,
        caller: Caller,
        request: wire::ChangeRepositoryRequest,
    ) -> Result<wire::ChangeRepositoryReply, ApiError> {
        let repo = repo_id(&request.repo)?;
        let change = required(request.change, "change")?.try_into()?;
        match self.change(caller, Command::ChangeRepository { repo, change }).await? {
            Reply::Changed { count } => Ok(wire::ChangeRepositoryReply { count }),
            Reply::Done => Ok(wire::ChangeRepositoryReply { count: 1 }),
            reply => Err(unexpected(&reply)),
        }
    }

    async fn settings(&self, repo: RepoId) -> Result<wire::RepositorySettings, ApiError> {
        let view = self.read().await?;
        if view.repo(repo).map_err(internal)?.is_none() {
            return Err(farshore_core::catalogue::Refusal::NoRepo.into());
        }
        let settings = view.settings(repo).map_err(internal)?;
        Ok(wire::RepositorySettings { catalogue_ms: view.time_ms(), ..settings.into() })
    }

    async fn locate(
        &self,
        repo: RepoId,
        ids: Vec<ChunkId>,
        stale: bool,
    ) -> Result<wire::LocateChunksReply, ApiError> {
        let view = self.read_as(stale).await?;
        let found = view.lookup(repo, &ids).map_err(internal)?;
        let numbers: BTreeSet<PackNo> = found.iter().flatten().map(|chunk| chunk.pack).collect();
        let mut packs = Vec::with_capacity(numbers.len());
        for no in numbers {
            packs.extend(view.pack(no).map_err(internal)?.map(wire::Pack::from));
        }
        Ok(wire::LocateChunksReply { places: found.into_iter().map(place).collect(), packs })
    }

    async fn list_packs(
        &self,
        repo: RepoId,
        from: PackNo,
        stale: bool,
    ) -> Result<wire::ListPacksReply, ApiError> {
        let page = self.read_as(stale).await?.packs(repo, from, PACKS_PER_PAGE).map_err(internal)?;
        let packs = page.rows.into_iter().map(Into::into).collect();
        Ok(wire::ListPacksReply { packs, next: page.next.map_or(0, |no| no.0) })
    }
}

/// A pack's row is up to two kilobytes on the wire; a page stays far below the message limit.
const PACKS_PER_PAGE: usize = 500;

fn place(chunk: Option<ChunkRecord>) -> wire::ChunkPlace {
    let Some(chunk) = chunk else { return wire::ChunkPlace::default() };
    wire::ChunkPlace {
        found: true,
        ordinal: chunk.ordinal.0,
        pack: chunk.pack.0,
        offset: chunk.offset,
        len: chunk.len,
    }
}

fn no_session(session: SessionId) -> ApiError {
    farshore_core::catalogue::Refusal::NoSession(session).into()
}

fn unexpected(reply: &Reply) -> ApiError {
    ApiError::Internal(format!("the catalogue answered beside the point: {reply:?}"))
}

fn id_bytes(id: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id)
}

#[tonic::async_trait]
impl catalogue_server::Catalogue for CatalogueService {
    async fn get_topology(
        &self,
        request: Request<wire::GetTopologyRequest>,
    ) -> Result<Response<wire::Topology>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        answer(self.topology().await)
    }

    async fn create_repository(
        &self,
        request: Request<wire::CreateRepositoryRequest>,
    ) -> Result<Response<wire::Repository>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        let repo = required(request.into_inner().repo, "repository")?.try_into()?;
        answer(self.create(caller, repo).await)
    }

    async fn get_repository(
        &self,
        request: Request<wire::GetRepositoryRequest>,
    ) -> Result<Response<wire::Repository>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        let stale = takes_stale(&request);
        let name = request.into_inner().name.parse().map_err(ApiError::from)?;
        answer(self.repository(name, stale).await)
    }

    async fn open_session(
        &self,
        request: Request<wire::OpenSessionRequest>,
    ) -> Result<Response<wire::OpenSessionReply>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        let wire::OpenSessionRequest { session, repo, seen } = request.into_inner();
        answer(self.open(caller, session_id(&session)?, repo_id(&repo)?, seen).await)
    }

    async fn renew_session(
        &self,
        request: Request<wire::RenewSessionRequest>,
    ) -> Result<Response<wire::RenewSessionReply>, Status> {
        let caller = auth::allow(&request, Right::Renew)?;
        let session = session_id(&request.into_inner().session)?;
        answer(self.renew(caller, session).await)
    }

    async fn close_session(
        &self,
        request: Request<wire::CloseSessionRequest>,
    ) -> Result<Response<wire::CloseSessionReply>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        let session = session_id(&request.into_inner().session)?;
        let ended = self.change(caller, Command::EndSessions { sessions: vec![session] }).await;
        answer(ended.map(|_| wire::CloseSessionReply {}))
    }

    async fn lookup_chunks(
        &self,
        request: Request<wire::LookupChunksRequest>,
    ) -> Result<Response<wire::LookupChunksReply>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        let wire::LookupChunksRequest { session, repo, ids } = request.into_inner();
        answer(self.lookup(session_id(&session)?, repo_id(&repo)?, chunk_ids(ids)?).await)
    }

    async fn commit_packs(
        &self,
        request: Request<wire::CommitPacksRequest>,
    ) -> Result<Response<wire::CommitPacksReply>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        answer(self.commit_packs(caller, request.into_inner()).await)
    }

    async fn commit_snapshot(
        &self,
        request: Request<wire::CommitSnapshotRequest>,
    ) -> Result<Response<wire::CommitSnapshotReply>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        answer(self.commit_snapshot(caller, request.into_inner()).await)
    }

    async fn list_snapshots(
        &self,
        request: Request<wire::ListSnapshotsRequest>,
    ) -> Result<Response<wire::ListSnapshotsReply>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        let stale = takes_stale(&request);
        answer(self.list_snapshots(request.into_inner(), stale).await)
    }

    async fn locate_chunks(
        &self,
        request: Request<wire::LocateChunksRequest>,
    ) -> Result<Response<wire::LocateChunksReply>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        let stale = takes_stale(&request);
        let wire::LocateChunksRequest { repo, ids } = request.into_inner();
        answer(self.locate(repo_id(&repo)?, chunk_ids(ids)?, stale).await)
    }

    async fn change_repository(
        &self,
        request: Request<wire::ChangeRepositoryRequest>,
    ) -> Result<Response<wire::ChangeRepositoryReply>, Status> {
        let caller = auth::allow(&request, Right::Catalogue)?;
        answer(self.change_repository(caller, request.into_inner()).await)
    }

    async fn get_settings(
        &self,
        request: Request<wire::GetSettingsRequest>,
    ) -> Result<Response<wire::RepositorySettings>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        answer(self.settings(repo_id(&request.into_inner().repo)?).await)
    }

    async fn list_packs(
        &self,
        request: Request<wire::ListPacksRequest>,
    ) -> Result<Response<wire::ListPacksReply>, Status> {
        auth::allow(&request, Right::Catalogue)?;
        let stale = takes_stale(&request);
        let wire::ListPacksRequest { repo, from } = request.into_inner();
        answer(self.list_packs(repo_id(&repo)?, PackNo(from), stale).await)
    }
}

fn session_id(bytes: &[u8]) -> Result<SessionId, ApiError> {
    Ok(SessionId::from_slice(bytes)?)
}

fn repo_id(bytes: &[u8]) -> Result<RepoId, ApiError> {
    Ok(RepoId::from_slice(bytes)?)
}
