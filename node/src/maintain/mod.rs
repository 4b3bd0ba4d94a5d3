//! What a node does by itself. One spine: a trigger makes the leader read a view, a pure planner turns it into tasks,
//! one executor does them, and a command records what was done. Only `sweep.rs` ever deletes a shard.
//!
//! Each worker has its file; they share nothing but [`Shared`] and speak to each other through the catalogue.

pub mod pulse;

pub mod survey;

pub mod lead;

pub mod budget;

pub mod verify;

pub mod collect;

pub mod compact;

pub mod retain;

pub mod orphans;

pub mod execute;

pub mod export;

pub mod exporter;

pub mod proof;

pub mod speed;

pub mod scrub;

pub mod sweep;

pub mod lease;

pub mod leave;

pub mod raise;

pub mod health;

pub mod slow;

pub mod near;

pub mod build;

pub mod foreground;

pub mod report;

use crate::catalogue::{CatalogueError, View};
use crate::config::{Seed, Timing};
use crate::raft::Consensus;
use crate::raft::era::is_recent;
use crate::store::ShardStore;
use crate::worker::{WorkFailed, Workers};
use farshore_core::catalogue::{Command, Reply};
use farshore_core::health::NodeHealth;
use farshore_core::host::Host;
use farshore_core::id::ClusterId;
use farshore_core::limits::RECOVERY_REST_MS;
use farshore_core::peer::ShardIo;
use farshore_core::topology::NodeRecord;
use farshore_proto::peers::Peers;
use farshore_proto::shard_client::GrpcShards;
use std::sync::Arc;

/// What the services and workers of one node work with.
pub struct Shared {
    /// Cluster this node belongs to.
    pub cluster: ClusterId,
    /// This node as it describes itself; the state in it means nothing.
    pub own: NodeRecord,
    /// Feature level that this node can do, or is held back to.
    pub level: u32,
    /// The seams.
    pub host: Host,
    /// Paces and patience.
    pub timing: Timing,
    /// The way to change the catalogue, and to read it confirmed.
    pub consensus: Consensus,
    /// Shards of this node.
    pub store: Arc<ShardStore>,
    /// Other nodes.
    pub peers: Arc<Peers>,
    /// Where the operator says that other nodes are.
    pub seeds: Vec<Seed>,
    /// Shards, wherever they are.
    pub shards: Arc<dyn ShardIo>,
    /// Makes shards for this node, and sums for others.
    pub builder: build::Builder,
    /// Clients that are being served.
    pub foreground: Arc<foreground::Foreground>,
    /// Has other nodes make shards.
    pub orders: Arc<GrpcShards>,
    /// Which other nodes failed a moment ago, or are slow.
    pub reached: NodeHealth,
    /// Suspects of this node.
    pub reports: Arc<report::Reports>,
    /// Heartbeats, if this node leads.
    pub health: health::Health,
    /// Session leases, if this node leads.
    pub leases: lease::Leases,
    /// How safe the packs are.
    pub surveyed: survey::Surveyed,
    /// What repair has been doing, if this node leads.
    pub repairs: lead::Repairs,
    /// One round of garbage collection at a time.
    pub collecting: collect::Collecting,
    /// What is wanted of exports of the catalogue, and how they stand.
    pub exports: exporter::Exports,
}

impl Shared {
    /// Whether the catalogue was recovered so lately that nothing is deleted by itself.
    pub fn rests_after_recovery(&self) -> bool {
        let era = self.consensus.era().unwrap_or(0);
        is_recent(era, self.host.clock.now_ms(), RECOVERY_REST_MS)
    }

    /// Every shard is re-read within this time.
    pub fn scrub_period(&self) -> Result<std::time::Duration, CatalogueError> {
        let every_ms = self.view()?.upkeep()?.scrub_every_ms;
        Ok(every_ms.map_or(self.timing.scrub_period, std::time::Duration::from_millis))
    }

    /// What this replica has applied so far.
    pub fn view(&self) -> Result<View, CatalogueError> {
        self.consensus.catalogue().view()
    }

    /// Everything that was acknowledged before this call.
    pub async fn confirmed_view(&self) -> Result<View, WorkFailed> {
        self.consensus.read_index().await?;
        Ok(self.view()?)
    }

    /// Changes the catalogue. A refusal is a failure here: workers propose what they have just looked up.
    pub async fn propose(&self, command: Command) -> Result<Reply, WorkFailed> {
        match self.consensus.propose(command).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// Changes the catalogue only if this node leads. What a leader has judged by itself must not be passed on to its
    /// successor, who may know better.
    pub async fn propose_leading(&self, command: Command) -> Result<Reply, WorkFailed> {
        match self.consensus.propose_leading(command).await? {
            Reply::Refused(refusal) => Err(refusal.into()),
            reply => Ok(reply),
        }
    }

    /// The term in which this node leads, if it does.
    pub fn leading(&self) -> Option<u64> {
        let leadership = *self.consensus.leadership().borrow();
        leadership.own.then_some(leadership.term)
    }

    /// Starts everything this node does by itself.
    pub fn start_workers(self: &Arc<Self>, workers: &mut Workers) {
        workers.start(pulse::Pulse::new(self.clone()));
        workers.start(lease::EndStale::new(self.clone()));
        workers.start(lead::Repair::new(self.clone()));
        workers.start(verify::VerifyMoved::new(self.clone()));
        workers.start(collect::Collect::new(self.clone()));
        workers.start(orphans::Orphans::new(self.clone()));
        workers.start(scrub::Report::new(self.clone()));
        workers.start(scrub::Scrub::new(self.clone()));
        workers.start(survey::Survey::new(self.clone()));
        workers.start(sweep::Sweep::new(self.clone()));
        workers.start(exporter::Exporter::new(self.clone()));
        workers.start(proof::Proof::new(self.clone()));
    }
}
