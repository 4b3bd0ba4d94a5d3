//! What operators ask. A status comes from the leader if there is one, since only it hears the heartbeats; without a
//! leader any node still tells what it knows and says that nobody confirmed it.

use super::ask::{self, Answers};
use super::auth::{self, Right};
use super::topology::link_bytes;
use super::{answer, explain, internal, topology, upkeep, what_if};
use crate::catalogue::Safety;
use crate::maintain::Shared;
use crate::maintain::lead::Urgent;
use crate::maintain::{collect, exporter, scrub};
use bytes::Bytes;
use farshore_core::id::{NodeId, RepoId, ShardId};
use farshore_core::level::LEVEL_FIRST;
use farshore_core::limits::{CATALOGUE_CALL_MS, PAGE_ROWS_MAX, STATUS_CONFIRM_MS};
use farshore_core::topology::NodeRecord;
use farshore_proto::channel;
use farshore_proto::convert::common;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use farshore_proto::wire::admin_client::AdminClient;
use farshore_proto::wire::{
    ApplyTopologyRequest, AuditRow, CancelMigrationRequest, CheckVerificationProgress,
    CheckVerificationRequest, CollectGarbageRequest, ExplainNodeProgress, ExplainNodeRequest,
    ExplainStripeReply, ExplainStripeRequest, ExportCatalogueReply, ExportCatalogueRequest, GarbageReport,
    GetUpkeepRequest, ListAuditReply, ListAuditRequest, ListVerificationsReply, ListVerificationsRequest,
    MigrateRequest, NamedShard, NodeStatus, PlanTopologyReply, PlanTopologyRequest, RepairStatus,
    ScrubProgress, ScrubRequest, ScrubStatusReply, ScrubStatusRequest, StageTopologyRequest, StatusReply,
    StatusRequest, TopologyReply, Upkeep, UrgentRepair, WhatIfProgress, WhatIfRequest, admin_server,
};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// The operators' service of a node.
pub struct AdminService {
    shared: Arc<Shared>,
}

impl AdminService {
    /// Tells what this node knows.
    pub fn new(shared: Arc<Shared>) -> Self {
        AdminService { shared }
    }

    /// The leader's word if it can be had in time, else our own.
    async fn status(&self, caller: Caller) -> Result<StatusReply, ApiError> {
        let leader = self.shared.consensus.leader();
        // A node that asks takes us for the leader; passing its call on could go in circles.
        if let (Some(node), Caller::Client(_)) = (leader, caller)
            && node != self.shared.own.id
            && let Some(reply) = self.status_of(node).await
        {
            return Ok(reply);
        }
        self.own_status().await
    }

    async fn status_of(&self, leader: NodeId) -> Option<StatusReply> {
        let mut client = channel::admin(self.shared.peers.channel(leader)?);
        let call = tokio::time::timeout(
            Duration::from_millis(STATUS_CONFIRM_MS * 2),
            client.status(StatusRequest {}),
        );
        match call.await {
            Ok(Ok(reply)) => Some(reply.into_inner()),
            Ok(Err(status)) => {
                tracing::debug!(%leader, error = %status, "ask the leader for the status");
                None
            }
            Err(_) => None,
        }
    }

    async fn own_status(&self) -> Result<StatusReply, ApiError> {
        let shared = &self.shared;
        let confirm =
            tokio::time::timeout(Duration::from_millis(STATUS_CONFIRM_MS), shared.consensus.confirm_once());
        let confirmed = shared.consensus.is_leader() && matches!(confirm.await, Ok(Ok(_)));
        let view = shared.view().map_err(internal)?;
        let standing = shared.consensus.standing();
        // Before the first look has ended nothing is promised.
        let safety = shared.surveyed.get(shared).await.map_err(internal)?;
        let looked = safety.is_some();
        let safety = safety.unwrap_or(Safety { packs: view.counts().packs, ..Safety::default() });
        let exports = shared.exports.standing();
        let time = shared.consensus.time_ms();
        let levels = view.node_levels().map_err(internal)?;
        let node_status = |node: NodeRecord| {
            let feature_level = levels.get(&node.id).copied().unwrap_or(LEVEL_FIRST);
            NodeStatus { feature_level, ..self.node_status(node, &standing.voters, time) }
        };
        Ok(StatusReply {
            cluster: Bytes::copy_from_slice(shared.cluster.as_bytes()),
            answering: shared.own.id.0,
            leader: standing.leadership.leader.map_or(0, |node| node.0),
            term: standing.leadership.term,
            applied: view.applied(),
            stale: !confirmed,
            nodes: view.nodes().map_err(internal)?.into_iter().map(node_status).collect(),
            repair: Some(self.repair_status()),
            packs: safety.packs,
            under_target: safety.under_target,
            endangered: safety.endangered,
            unreadable: safety.unreadable,
            survives_region: looked && safety.survives_region(),
            fatal_regions: safety.fatal_regions.iter().map(ToString::to_string).collect(),
            catalogue_ms: view.time_ms(),
            state_hash: Bytes::copy_from_slice(&view.state_hash().0),
            formation: shared.consensus.passport().formation(),
            topology_epoch: view.intent().map_err(internal)?.epoch,
            unexported_ms: exports.behind_since.map_or(0, |since| since.elapsed().as_millis() as u64),
            export_error: exports.failed.unwrap_or_default(),
            export_every_ms: shared.timing.export_every.as_millis() as u64,
            feature_level: view.level(),
            migrations: view.migrations().map_err(internal)?.into_iter().map(Into::into).collect(),
            scrub_paused: view.upkeep().map_err(internal)?.scrub_paused,
        })
    }

    fn node_status(
        &self,
        node: NodeRecord,
        voters: &std::collections::BTreeSet<NodeId>,
        time: Option<u64>,
    ) -> NodeStatus {
        let health = self.shared.health.of(node.id, node.state, Instant::now());
        let load = health.load.unwrap_or_default();
        let (rtt_us, disk_us) = load.pace.told();
        let clock_offset_ms = time.and_then(|time| self.shared.consensus.clock_offset_ms(node.id, time));
        NodeStatus {
            voter: voters.contains(&node.id),
            heard: health.load.is_some(),
            used: load.used,
            free: load.free,
            shards: load.shards,
            silent_ms: health.silent.as_millis() as u64,
            grace_left_ms: health.grace_left.as_millis() as u64,
            clock_offset_ms: clock_offset_ms.unwrap_or(0),
            rtt_us,
            disk_us,
            slow: self.shared.reached.slow().contains(&node.id),
            flaps: health.flaps,
            held_ms: health.held.as_millis() as u64,
            node: Some(node.into()),
            ..NodeStatus::default()
        }
    }

    fn repair_status(&self) -> RepairStatus {
        let (state, now) = (self.shared.repairs.get(), Instant::now());
        let recent = state.speed.recent(now);
        RepairStatus {
            queued: state.queued,
            running: state.running,
            rebuilt: state.rebuilt,
            failed: state.failed,
            last_error: state.last_error,
            bad_found: self.shared.health.bad_found(),
            links: state.links.into_iter().map(link_bytes).collect(),
            singly_bytes: state.singly,
            liars: state.liars.into_iter().map(|node| node.0).collect(),
            held: state.held,
            spent_micros: state.spent_micros,
            kept: state.kept,
            queued_bytes: state.bytes,
            queue_full: state.queue_full,
            recent_shards: recent.shards,
            recent_bytes: recent.bytes,
            recent_ms: recent.within.as_millis() as u64,
            failed_ago_ms: state.failed_at.map_or(0, |at| at.elapsed().as_millis() as u64),
            busy_bytes: state.speed.bytes,
            busy_ms: state.speed.busy(now).as_millis() as u64,
            urgent: state.urgent.into_iter().map(urgent).collect(),
        }
    }

    /// Only the leader collects; another node passes the call on, once.
    async fn collect(
        &self,
        caller: Caller,
        request: CollectGarbageRequest,
    ) -> Result<GarbageReport, ApiError> {
        let shared = &self.shared;
        let repo = RepoId::from_slice(&request.repo)?;
        let leader =
            shared.consensus.leader().ok_or_else(|| ApiError::NoQuorum("no leader is known".into()))?;
        if leader != shared.own.id {
            let Caller::Client(_) = caller else {
                return Err(ApiError::NoQuorum("this node no longer leads".into()));
            };
            let unknown = || ApiError::NoQuorum(format!("no address is known for the leader {leader}"));
            let mut client = channel::admin(shared.peers.channel(leader).ok_or_else(unknown)?);
            let answer = client.collect_garbage(request).await;
            return answer.map(Response::into_inner).map_err(ApiError::from_status);
        }
        shared.consensus.read_index_leading().await?;
        let view = shared.view().map_err(internal)?;
        if view.repo(repo).map_err(internal)?.is_none() {
            return Err(farshore_core::catalogue::Refusal::NoRepo.into());
        }
        let collected = match request.dry_run {
            true => collect::look(&view, repo, shared.timing.compact_below.into()).await,
            false => collect::collect_now(shared, repo).await,
        };
        let unswept = shared.view().map_err(internal)?.counts().condemned;
        Ok(garbage_report(&collected.map_err(internal)?, unswept))
    }

    /// Asked of another node than the leader, the caller tries the next.
    async fn export(&self) -> Result<ExportCatalogueReply, ApiError> {
        if !self.shared.consensus.is_leader() {
            return Err(ApiError::NoQuorum("this node does not lead".into()));
        }
        let made = exporter::export_now(&self.shared).await;
        let made = made.map_err(|why| ApiError::TooBusy(format!("the catalogue was not exported: {why}")))?;
        let scheme = made.parts.first().map(|part| part.scheme);
        Ok(ExportCatalogueReply {
            id: Bytes::copy_from_slice(made.id.as_bytes()),
            to: made.to,
            catalogue_ms: made.time_ms,
            bytes: made.bytes,
            parts: made.parts.len() as u32,
            k: scheme.map_or(0, |scheme| scheme.k() as u32),
            n: scheme.map_or(0, |scheme| scheme.n() as u32),
        })
    }

    /// From any node: the read is confirmed, so that a chain cut short by a replica that lags behind is not taken for one.
    async fn audit(&self, request: ListAuditRequest) -> Result<ListAuditReply, ApiError> {
        self.shared.consensus.read_index().await?;
        let view = self.shared.view().map_err(internal)?;
        let limit = if request.limit == 0 { PAGE_ROWS_MAX } else { request.limit as usize };
        let rows = view.audit(request.from, limit.min(PAGE_ROWS_MAX)).map_err(internal)?;
        let head = view.audit_head().map_err(internal)?;
        Ok(ListAuditReply {
            rows: rows.into_iter().map(|(seq, record)| AuditRow { seq, record: record.into() }).collect(),
            head_seq: head.seq,
            head_hash: Bytes::copy_from_slice(head.hash.as_bytes()),
            catalogue_ms: view.time_ms(),
            feature_level: view.level(),
        })
    }

    /// Runs a pass in its own task; hanging up ends it.
    fn scrub(&self) -> Answers<ScrubProgress> {
        let shared = self.shared.clone();
        ask::answers(|told| async move {
            let tell = |progress| told.progress(to_wire(progress));
            scrub::pass(&shared, tell).await.map(to_wire).map_err(internal)
        })
    }

    /// The leader's word if it can be had in time, since only it knows how full the disks are; else our own.
    async fn what_if(&self, caller: Caller, request: WhatIfRequest) -> Answers<WhatIfProgress> {
        if let Some(mut leader) = self.other_leader(caller)
            && let Some(answers) = ask::passed_on(leader.what_if(request.clone())).await
        {
            return answers;
        }
        let shared = self.shared.clone();
        ask::answers(|told| async move { what_if::look(&shared, request, told).await })
    }

    /// The leader's word, as above: only it hears the heartbeats.
    async fn explain_node(
        &self,
        caller: Caller,
        request: ExplainNodeRequest,
    ) -> Result<Answers<ExplainNodeProgress>, ApiError> {
        if let Some(mut leader) = self.other_leader(caller)
            && let Some(answers) = ask::passed_on(leader.explain_node(request)).await
        {
            return Ok(answers);
        }
        let (shared, id) = (self.shared.clone(), common::node_id(request.node)?);
        let view = shared.view().map_err(internal)?;
        let node = view.node(id).map_err(internal)?;
        let node = node.ok_or_else(|| ApiError::Invalid(format!("there is no node {id}")))?;
        let levels = view.node_levels().map_err(internal)?;
        let feature_level = levels.get(&id).copied().unwrap_or(LEVEL_FIRST);
        let (standing, time) = (shared.consensus.standing(), shared.consensus.time_ms());
        let status = NodeStatus { feature_level, ..self.node_status(node, &standing.voters, time) };
        Ok(ask::answers(|told| async move { explain::node(&shared, id, status, told).await }))
    }

    async fn explain_stripe(
        &self,
        caller: Caller,
        request: ExplainStripeRequest,
    ) -> Result<ExplainStripeReply, ApiError> {
        // Time is left to answer by ourselves.
        let limit = if request.verify { CATALOGUE_CALL_MS * 3 / 4 } else { STATUS_CONFIRM_MS * 2 };
        if let Some(mut leader) = self.other_leader(caller) {
            let call = leader.explain_stripe(request.clone());
            if let Ok(Ok(reply)) = tokio::time::timeout(Duration::from_millis(limit), call).await {
                return Ok(reply.into_inner());
            }
        }
        explain::stripe(&self.shared, request).await
    }

    /// How far this node is with its scrub.
    async fn scrub_status(&self) -> Result<ScrubStatusReply, ApiError> {
        let (shared, standing) = (&self.shared, scrub::standing(&self.shared).await.map_err(internal)?);
        let now_ms = shared.host.clock.now_ms();
        Ok(ScrubStatusReply {
            shards: standing.shards,
            bytes: standing.bytes,
            verified: standing.verified,
            verified_bytes: standing.verified_bytes,
            never: standing.never,
            oldest_ms: standing.oldest_ms.map_or(0, |at| now_ms.saturating_sub(at)),
            bad: standing.bad,
            bad_found: shared.reports.bad_found(),
            waiting: shared.reports.len() as u64,
            period_ms: shared.scrub_period().map_err(internal)?.as_millis() as u64,
        })
    }

    /// A line to the leader, if that is another node. A node that asks takes us for the leader; passing its call on could
    /// go in circles.
    fn other_leader(&self, caller: Caller) -> Option<AdminClient<Channel>> {
        let leader = self.shared.consensus.leader().filter(|node| *node != self.shared.own.id)?;
        let Caller::Client(_) = caller else { return None };
        Some(channel::admin(self.shared.peers.channel(leader)?))
    }
}

fn urgent(task: Urgent) -> UrgentRepair {
    UrgentRepair {
        stripe: Bytes::copy_from_slice(task.stripe.as_bytes()),
        pack: task.pack.0,
        index: task.index.into(),
        to: task.to.0,
        spare: task.priority.spare.into(),
        spare_after_region: task.priority.spare_after_region.into(),
        running: task.running,
    }
}

/// What another node says of its cluster.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seen {
    /// Who answered.
    pub node: NodeId,
    /// The founding it takes part in; 0 if it has met none.
    pub formation: u64,
    /// Whether it knows of a cluster that works.
    pub formed: bool,
}

/// What the node at the other end says; nothing if it does not answer in time.
pub async fn look_at(peer: Channel) -> Option<Seen> {
    let reply = status_from(peer).await?;
    Some(Seen { node: NodeId(reply.answering), formation: reply.formation, formed: reply.applied > 0 })
}

/// Whether the node at the other end knows of `id`; false if it does not answer in time.
pub async fn is_known(peer: Channel, id: NodeId) -> bool {
    let nodes = status_from(peer).await.map_or_else(Vec::new, |reply| reply.nodes);
    nodes.iter().filter_map(|n| n.node.as_ref()).any(|node| node.id == id.0)
}

async fn status_from(peer: Channel) -> Option<StatusReply> {
    let mut admin = channel::admin(peer);
    let limit = Duration::from_millis(STATUS_CONFIRM_MS * 2);
    let answer = tokio::time::timeout(limit, admin.status(StatusRequest {})).await;
    answer.ok()?.ok().map(Response::into_inner)
}

fn garbage_report(collected: &collect::Collected, unswept: u64) -> GarbageReport {
    let totals = collected.totals;
    GarbageReport {
        packs: totals.packs,
        bytes: totals.bytes,
        dead: totals.dead,
        dead_bytes: totals.dead_bytes,
        condemned: totals.condemned,
        condemned_bytes: totals.condemned_bytes,
        waiting: totals.waiting,
        in_use: totals.in_use,
        in_use_bytes: totals.in_use_bytes,
        sparse: totals.sparse,
        sparse_bytes: totals.sparse_bytes,
        recode: totals.recode,
        recode_bytes: totals.recode_bytes,
        sessions: collected.sessions,
        trash: collected.trash,
        dropped: collected.dropped,
        dropped_bytes: collected.dropped_bytes,
        more: collected.busy,
        compacted: collected.compacted,
        unswept,
    }
}

/// Whether a running node is at the other end, in whatever state.
pub async fn answers(peer: Channel) -> bool {
    status_from(peer).await.is_some()
}

/// Whether `id` has a vote, by the confirmed word of the leader at the other end; `None` from anybody else.
pub async fn has_vote(peer: Channel, id: NodeId) -> Option<bool> {
    let reply = status_from(peer).await?;
    let votes = |status: &NodeStatus| status.voter && status.node.as_ref().is_some_and(|n| n.id == id.0);
    (!reply.stale).then(|| reply.nodes.iter().any(votes))
}

fn to_wire(progress: scrub::Progress) -> ScrubProgress {
    ScrubProgress {
        checked: progress.checked,
        total: progress.total,
        bad: progress.bad,
        missing: progress.missing,
        done: progress.done,
        bytes: progress.bytes,
        named: progress.named.into_iter().map(named).collect(),
    }
}

fn named((shard, fault): (ShardId, scrub::Fault)) -> NamedShard {
    let stripe = Bytes::copy_from_slice(shard.stripe.as_bytes());
    NamedShard { stripe, index: shard.index.into(), missing: fault == scrub::Fault::Missing }
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    type ScrubStream = Answers<ScrubProgress>;
    type WhatIfStream = Answers<WhatIfProgress>;
    type ExplainNodeStream = Answers<ExplainNodeProgress>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusReply>, Status> {
        let caller = auth::allow(&request, Right::Status)?;
        answer(self.status(caller).await)
    }

    async fn collect_garbage(
        &self,
        request: Request<CollectGarbageRequest>,
    ) -> Result<Response<GarbageReport>, Status> {
        let caller = auth::allow(&request, Right::Collect)?;
        answer(self.collect(caller, request.into_inner()).await)
    }

    async fn export_catalogue(
        &self,
        request: Request<ExportCatalogueRequest>,
    ) -> Result<Response<ExportCatalogueReply>, Status> {
        auth::allow(&request, Right::Export)?;
        answer(self.export().await)
    }

    async fn list_audit(
        &self,
        request: Request<ListAuditRequest>,
    ) -> Result<Response<ListAuditReply>, Status> {
        auth::allow(&request, Right::Audit)?;
        answer(self.audit(request.into_inner()).await)
    }

    async fn scrub(
        &self,
        request: Request<ScrubRequest>,
    ) -> Result<Response<Answers<ScrubProgress>>, Status> {
        auth::allow(&request, Right::Scrub)?;
        Ok(Response::new(self.scrub()))
    }

    async fn what_if(
        &self,
        request: Request<WhatIfRequest>,
    ) -> Result<Response<Answers<WhatIfProgress>>, Status> {
        let caller = auth::allow(&request, Right::Status)?;
        Ok(Response::new(self.what_if(caller, request.into_inner()).await))
    }

    async fn explain_node(
        &self,
        request: Request<ExplainNodeRequest>,
    ) -> Result<Response<Answers<ExplainNodeProgress>>, Status> {
        let caller = auth::allow(&request, Right::Status)?;
        Ok(Response::new(self.explain_node(caller, request.into_inner()).await?))
    }

    async fn explain_stripe(
        &self,
        request: Request<ExplainStripeRequest>,
    ) -> Result<Response<ExplainStripeReply>, Status> {
        let caller = auth::allow(&request, Right::Status)?;
        answer(self.explain_stripe(caller, request.into_inner()).await)
    }

    async fn scrub_status(
        &self,
        request: Request<ScrubStatusRequest>,
    ) -> Result<Response<ScrubStatusReply>, Status> {
        auth::allow(&request, Right::Status)?;
        answer(self.scrub_status().await)
    }

    async fn plan_topology(
        &self,
        request: Request<PlanTopologyRequest>,
    ) -> Result<Response<PlanTopologyReply>, Status> {
        auth::allow(&request, Right::Operate)?;
        answer(topology::plan(&self.shared, request.into_inner()).await)
    }

    async fn stage_topology(
        &self,
        request: Request<StageTopologyRequest>,
    ) -> Result<Response<TopologyReply>, Status> {
        let caller = auth::allow(&request, Right::Operate)?;
        answer(topology::stage(&self.shared, caller, request.into_inner()).await)
    }

    async fn apply_topology(
        &self,
        request: Request<ApplyTopologyRequest>,
    ) -> Result<Response<TopologyReply>, Status> {
        let caller = auth::allow(&request, Right::Operate)?;
        answer(topology::apply(&self.shared, caller, request.into_inner()).await)
    }

    async fn migrate(&self, request: Request<MigrateRequest>) -> Result<Response<TopologyReply>, Status> {
        let caller = auth::allow(&request, Right::Operate)?;
        answer(topology::migrate(&self.shared, caller, request.into_inner()).await)
    }

    async fn cancel_migration(
        &self,
        request: Request<CancelMigrationRequest>,
    ) -> Result<Response<TopologyReply>, Status> {
        let caller = auth::allow(&request, Right::Operate)?;
        answer(topology::cancel_migration(&self.shared, caller, request.into_inner()).await)
    }

    async fn get_upkeep(&self, request: Request<GetUpkeepRequest>) -> Result<Response<Upkeep>, Status> {
        auth::allow(&request, Right::Status)?;
        answer(upkeep::get(&self.shared).await)
    }

    async fn set_upkeep(&self, request: Request<Upkeep>) -> Result<Response<Upkeep>, Status> {
        let caller = auth::allow(&request, Right::Operate)?;
        answer(upkeep::set(&self.shared, caller, request.into_inner()).await)
    }

    async fn list_verifications(
        &self,
        request: Request<ListVerificationsRequest>,
    ) -> Result<Response<ListVerificationsReply>, Status> {
        auth::allow(&request, Right::Status)?;
        answer(upkeep::list(&self.shared).await)
    }

    type CheckVerificationStream = Answers<CheckVerificationProgress>;

    async fn check_verification(
        &self,
        request: Request<CheckVerificationRequest>,
    ) -> Result<Response<Self::CheckVerificationStream>, Status> {
        auth::allow(&request, Right::Scrub)?;
        let (shared, request) = (self.shared.clone(), request.into_inner());
        Ok(Response::new(ask::answers(|told| async move { upkeep::check(&shared, request, told).await })))
    }
}
