//! What others may ask of a node: four services on one listener, one table of rights, one kind of error.

pub mod admin;

pub mod topology;

pub mod upkeep;

mod what_if;

pub mod explain;

pub mod catalogue;

pub mod recovery;

pub mod shard;

pub mod raft;

pub mod ask;

pub mod auth;

use crate::maintain::Shared;
use crate::maintain::health::Load;
use crate::maintain::report::Reports;
use crate::maintain::slow::Pace;
use crate::raft::membership::MembershipError;
use crate::recover::Ground;
use crate::rpc::raft::HeartbeatSink;
use crate::store::ShardStore;
use async_trait::async_trait;
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::topology::NodeState;
use farshore_proto::convert::raft::Heartbeat;
use farshore_proto::serve;
use farshore_proto::status::ApiError;
use farshore_proto::wire::{GiveUpVoteReply, HeartbeatReply, HeartbeatRequest};
use std::sync::Arc;
use tokio::time::Instant;
pub use tonic::service::Routes;
use tonic::{Response, Status};

/// Everything a node answers.
pub fn routes(shared: &Arc<Shared>) -> Routes {
    let heartbeats = Arc::new(Heartbeats(shared.clone()));
    let shards = shard::ShardService::new(shared);
    let mut routes = Routes::builder();
    routes
        .add_service(serve::raft(Arc::new(raft::RaftService::new(shared.consensus.clone(), heartbeats))))
        .add_service(serve::shards(Arc::new(shards)))
        .add_service(serve::catalogue(Arc::new(catalogue::CatalogueService::new(shared.clone()))))
        .add_service(serve::admin(Arc::new(admin::AdminService::new(shared.clone()))));
    routes.routes()
}

/// What a node answers that is stopped but for its shards.
pub fn recovery_routes(ground: &Arc<Ground>, reports: Arc<Reports>) -> Routes {
    let shards = shard::ShardService::reading_only(ground.cluster, ground.store.clone(), reports);
    let mut routes = Routes::builder();
    routes
        .add_service(serve::shards(Arc::new(shards)))
        .add_service(serve::recovery(Arc::new(recovery::RecoveryService::new(ground.clone()))));
    routes.routes()
}

/// What a node answers that waits until it may learn its replica anew.
pub fn shard_routes(cluster: ClusterId, store: Arc<ShardStore>, reports: Arc<Reports>) -> Routes {
    let shards = shard::ShardService::reading_only(cluster, store, reports);
    let mut routes = Routes::builder();
    routes.add_service(serve::shards(Arc::new(shards)));
    routes.routes()
}

/// Takes heartbeats while this node leads.
struct Heartbeats(Arc<Shared>);

#[async_trait]
impl HeartbeatSink for Heartbeats {
    /// A node that has lost its memory, was retired, or can do less than the cluster uses, is told so and not heard.
    async fn beat(&self, from: NodeId, beat: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
        let shared = &self.0;
        let beat = Heartbeat::try_from(beat)?;
        if !shared.consensus.is_leader() {
            return Ok(HeartbeatReply { leader: Some(self.leader()?), ..HeartbeatReply::default() });
        }
        let incarnation = shared.consensus.passport().known(from).unwrap_or(0);
        let view = shared.view().map_err(internal)?;
        let feature_level = view.level();
        let known = view.node(from).map_err(internal)?;
        let retired = known.is_some_and(|node| node.state == NodeState::Retired);
        let able = beat.level >= feature_level;
        if able && !retired && (incarnation == 0 || incarnation == beat.incarnation) {
            let Heartbeat { used, free, shards, bad_found, rtt_us, disk_us, .. } = beat;
            let pace = Pace::from_told(rtt_us, disk_us);
            let load = Load { used, free, shards, bad_found, pace };
            shared.consensus.heard_clock(from, beat.clock_ms);
            shared.health.hear(beat.node, beat.incarnation, beat.level, load, Instant::now());
        }
        let slow = shared.reached.slow().into_iter().map(|node| node.0).collect();
        Ok(HeartbeatReply { incarnation, retired, leader: None, feature_level, slow })
    }

    async fn give_up_vote(&self, from: NodeId) -> Result<GiveUpVoteReply, ApiError> {
        if !self.0.consensus.is_leader() {
            return Ok(GiveUpVoteReply { leader: Some(self.leader()?) });
        }
        tracing::warn!(%from, "the replica of this node is damaged; it gives up its vote and learns anew");
        self.0.consensus.expel(from).await.map_err(|e| match e {
            MembershipError::Later(why) => ApiError::NoQuorum(why),
            MembershipError::Refused(why) => ApiError::Invalid(why),
            MembershipError::Stopped(why) => ApiError::Internal(why),
        })?;
        Ok(GiveUpVoteReply { leader: None })
    }
}

impl Heartbeats {
    /// Who leads, for somebody who may not know: votes move to nodes that its configuration does not name.
    fn leader(&self) -> Result<farshore_proto::wire::Node, ApiError> {
        let shared = &self.0;
        let view = shared.view().map_err(internal)?;
        let leader = shared.consensus.leader().map(|leader| view.node(leader)).transpose();
        let leader = leader.map_err(internal)?.flatten().filter(|leader| leader.id != shared.own.id);
        let leader = leader.ok_or_else(|| ApiError::NoQuorum("this node does not lead".into()))?;
        Ok(leader.into())
    }
}

/// A result as tonic wants it.
fn answer<T>(result: Result<T, ApiError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(Status::from)
}

/// An error that says the node itself is broken: its store failed, or we made a mistake.
fn internal(error: impl std::fmt::Display) -> ApiError {
    tracing::error!(%error, "call failed inside the node");
    ApiError::Internal(error.to_string())
}
