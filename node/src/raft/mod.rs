//! Consensus: the one way a command becomes part of the catalogue, and the one way a reader learns how fresh its own
//! replica must be. Every node has a replica; any of them takes commands and passes them on to the leader.
//!
//! The flow: propose → leader stamps the time → log (durable, marked) → quorum → `machine` applies → reply.

pub mod reseat;

pub mod membership;

pub mod voters;

pub mod calls;

pub mod network;

pub mod passport;

pub mod machine;

pub mod image;

pub mod log;

pub mod mark;

pub mod era;

pub mod timekeeper;

pub mod types;

#[cfg(test)]
mod cluster_test;

#[cfg(test)]
mod store_test;

#[cfg(test)]
mod testkit;

pub use calls::ConsensusError;
pub use log::RaftStoreError;

use crate::catalogue::Catalogue;
use crate::raft::era::{Behind, era_of};
use crate::raft::image::{Image, ImageParts, refused};
use crate::raft::log::{LogReader, LogStore};
use crate::raft::machine::Machine;
use crate::raft::network::{Heard, Network};
use crate::raft::passport::Passport;
use crate::raft::timekeeper::{Asked, TimeKeeper};
use crate::raft::types::{Entry, Metrics, Replica, ScopedRuntime, Snapshot, SnapshotMeta, Vote};
use farshore_core::host::task::Owned;
use farshore_core::host::{Host, Kv};
use farshore_core::id::NodeId;
use farshore_core::limits::{CATALOGUE_CALL_MS, PROPOSALS_IN_FLIGHT_MAX, RAFT_IMAGE_STALL_MS};
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use openraft::{Config, ServerState, SnapshotPolicy};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;

/// How a replica keeps time and how much log it keeps. The defaults suit regions a quarter of a second apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftTuning {
    /// The leader tells every replica this often that it lives, in milliseconds. Also the deadline of one append, so
    /// it must be above the longest round trip.
    pub heartbeat_ms: u64,
    /// Shortest silence after which a voter stands for election, in milliseconds.
    pub election_min_ms: u64,
    /// Longest such silence, in milliseconds.
    pub election_max_ms: u64,
    /// A catalogue image is taken after this many entries, so that the log before it can go.
    pub snapshot_logs: u64,
    /// Entries kept although an image has them, so that a replica slightly behind needs no image.
    pub keep_logs: u64,
    /// Deadline of a command or of a confirmed read, the search for a leader included, in milliseconds.
    pub call_ms: u64,
}

impl Default for RaftTuning {
    fn default() -> Self {
        RaftTuning {
            heartbeat_ms: 300,
            election_min_ms: 1_000,
            election_max_ms: 2_000,
            snapshot_logs: 5_000,
            keep_logs: 1_000,
            call_ms: CATALOGUE_CALL_MS,
        }
    }
}

impl RaftTuning {
    fn config(&self) -> Result<Config, RaftStoreError> {
        let config = Config {
            cluster_name: "farshore".into(),
            heartbeat_interval: self.heartbeat_ms,
            election_timeout_min: self.election_min_ms,
            election_timeout_max: self.election_max_ms,
            install_snapshot_timeout: RAFT_IMAGE_STALL_MS,
            max_payload_entries: APPEND_ENTRIES_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_logs),
            max_in_snapshot_log_to_keep: self.keep_logs,
            ..Config::default()
        };
        config.validate().map_err(|e| RaftStoreError::Start(e.to_string()))
    }
}

/// Most entries in one append; their bytes are bounded by the log reader.
pub const APPEND_ENTRIES_MAX: u64 = 256;

/// Who leads, as this node sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Leadership {
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: u64,
    /// Whether this node is the leader.
    pub own: bool,
}

/// Where this replica stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Who leads.
    pub leadership: Leadership,
    /// Index of the last entry of the log.
    pub last_log: u64,
    /// Index of the last entry applied to the catalogue.
    pub applied: u64,
    /// Highest index that a leader has confirmed to this node, for a read, since it started.
    pub confirmed: u64,
    /// Replicas that vote.
    pub voters: BTreeSet<NodeId>,
    /// Replicas that only follow.
    pub learners: BTreeSet<NodeId>,
    /// Why the replica has stopped, if it has.
    pub stopped: Option<String>,
}

/// This node's replica of the catalogue's log. Clones share it.
#[derive(Clone)]
pub struct Consensus {
    inner: Arc<Inner>,
}

struct Inner {
    own: NodeId,
    host: Host,
    replica: Replica,
    catalogue: Catalogue,
    peers: Arc<Peers>,
    passport: Passport,
    heard: Heard,
    behind: Behind,
    time: TimeKeeper,
    log: LogReader,
    tuning: RaftTuning,
    leadership: watch::Receiver<Leadership>,
    /// Commands this node has under way; more wait.
    proposals: Semaphore,
    confirmed: AtomicU64,
    /// One catalogue image is received at a time.
    receiving: Mutex<()>,
    _watcher: Owned,
}

impl Consensus {
    /// Opens log and mark, refuses if a promise was lost, and takes part from then on.
    pub async fn start(
        host: &Host,
        own: NodeId,
        catalogue: Catalogue,
        kv: Arc<dyn Kv>,
        peers: Arc<Peers>,
        passport: Passport,
        tuning: RaftTuning,
    ) -> Result<Self, RaftStoreError> {
        ScopedRuntime::seed(host.entropy.as_ref());
        let log =
            LogStore::open(kv, host.disk.clone()).await?.never_ahead_of(catalogue.clone()).resigned(own);
        let promised = log.vote().unwrap_or_default().leader_id;
        let heard = Heard::default();
        let pause = Duration::from_millis(tuning.heartbeat_ms);
        let behind = Behind::default();
        let network = Network {
            peers: peers.clone(),
            passport: passport.clone(),
            heard: heard.clone(),
            behind: behind.clone(),
            pause,
        };
        let reader = log.reader();
        let machine = Machine::new(catalogue.clone()).telling(passport.clone());
        let replica = Replica::new(own.0, Arc::new(tuning.config()?), network, log, machine).await;
        // What openraft says of an error of ours is text; the stores remember what they have met.
        let failed = |why: String| match catalogue.damage().or_else(|| reader.damage()) {
            Some(_) => RaftStoreError::Corrupt(why),
            None => RaftStoreError::Start(why),
        };
        let replica = replica.map_err(|e| failed(e.to_string()))?;
        // openraft says where it stands only after it has written something; until then it would say term 0.
        let stands = |now: &Metrics| now.vote.leader_id >= promised || now.running_state.is_err();
        let stood = replica.metrics().wait_for(stands).await.map(drop);
        stood.map_err(|e| failed(e.to_string()))?;
        let (send, leadership) = watch::channel(Leadership::default());
        let watcher = Owned::spawn(watch_leadership(own, replica.metrics(), send));
        let inner = Inner {
            own,
            host: host.clone(),
            replica,
            catalogue,
            peers,
            passport,
            heard,
            behind,
            time: TimeKeeper::default(),
            log: reader,
            tuning,
            leadership,
            proposals: Semaphore::new(PROPOSALS_IN_FLIGHT_MAX),
            confirmed: AtomicU64::new(0),
            receiving: Mutex::default(),
            _watcher: watcher,
        };
        Ok(Consensus { inner: Arc::new(inner) })
    }

    /// Receives an image from the leader of `vote` and installs it, whole or not at all. Answers with this replica's
    /// vote: a higher one tells the sender that it leads no more.
    pub async fn receive_image(
        &self,
        vote: Vote,
        meta: SnapshotMeta,
        parts: ImageParts,
    ) -> Result<Vote, ApiError> {
        let own = self.inner.replica.metrics().borrow().vote;
        if own > vote {
            return Ok(own);
        }
        // The sender tries again; two images at a time would only slow each other down.
        let busy = || ApiError::TooBusy("another image is being received".into());
        let _one = self.inner.receiving.try_lock().map_err(|_| busy())?;
        let received = parts.stage(&self.inner.catalogue).await?;
        if received.meta().map_err(refused)? != meta {
            return Err(ApiError::Invalid("the image is not what it was said to be".into()));
        }
        let snapshot = Snapshot { meta, snapshot: Box::new(Image::Received(Box::new(received))) };
        let installed = self.inner.replica.install_full_snapshot(vote, snapshot).await;
        Ok(installed.map_err(|e| ApiError::Internal(e.to_string()))?.vote)
    }

    /// The leader, if one is known.
    pub fn leader(&self) -> Option<NodeId> {
        self.inner.leadership.borrow().leader
    }
    /// Whether this node leads, as far as it knows; only [`Consensus::read_index`] makes sure.
    pub fn is_leader(&self) -> bool {
        self.inner.leadership.borrow().own
    }
    /// Follows who leads.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.clone()
    }
    /// What this node and others say of themselves in calls to each other.
    pub fn passport(&self) -> &Passport {
        &self.inner.passport
    }
    /// This node.
    pub fn own(&self) -> NodeId {
        self.inner.own
    }
    /// Notes a sign of life of another node.
    pub fn heard(&self, node: NodeId) {
        self.inner.heard.note(node);
    }
    /// Notes what another node's calendar shows, in milliseconds since 1970; 0 says nothing.
    pub fn heard_clock(&self, node: NodeId, clock_ms: u64) {
        if clock_ms > 0 {
            self.inner.time.hear(node, clock_ms, Instant::now());
        }
    }
    /// How far a node's calendar is ahead of `time` ([`Consensus::time_ms`]), in milliseconds; `None` if it has not said.
    pub fn clock_offset_ms(&self, node: NodeId, time: u64) -> Option<i64> {
        if node == self.inner.own {
            return Some(i64::try_from(self.inner.host.clock.now_ms()).ok()?.saturating_sub_unsigned(time));
        }
        self.inner.time.offset_ms(node, time, Instant::now())
    }
    /// Catalogue time of a command that is stamped now, in milliseconds since 1970; `None` while none can be.
    pub fn time_ms(&self) -> Option<u64> {
        let reached_ms = self.inner.catalogue.time_ms();
        let voters = self.standing().voters;
        let own = (self.inner.own, self.inner.host.clock.now_ms());
        let stamp = self.inner.time.stamp(&Asked { own, voters: &voters, reached_ms, now: Instant::now() });
        stamp.map(|stamp| stamp.max(reached_ms))
    }
    /// Era of this replica's log; `None` while it has taken part in nothing.
    pub fn era(&self) -> Option<u32> {
        let metrics = self.inner.replica.metrics();
        let metrics = metrics.borrow();
        let term = metrics.vote.leader_id.term.max(self.inner.log.voted());
        (term > 0 || metrics.last_log_index.is_some()).then(|| era_of(term))
    }
    /// Refuses a message of another era; one of a later era ends this replica.
    pub fn check_era(&self, theirs: Option<u32>) -> Result<(), ApiError> {
        era::check(self.era(), theirs, &self.inner.behind)
    }
    /// Notes what an answer to a call of ours tells about eras.
    pub fn heard_of_era(&self, answer: &ApiError) {
        if let (ApiError::LeftBehind(theirs), Some(own)) = (answer, self.era()) {
            self.inner.behind.hear(own, *theirs);
        }
    }
    /// Some entries of this replica's log from `from` on; `None` if that one was purged.
    pub fn entries(&self, from: u64) -> Result<Option<Vec<Entry>>, RaftStoreError> {
        let entries = self.inner.log.page(from)?;
        let reaches = entries.first().is_none_or(|first| first.log_id.index == from);
        Ok((reaches && self.inner.log.first() <= from).then_some(entries))
    }
    /// openraft's handle, for the service between nodes.
    pub(crate) fn replica(&self) -> &Replica {
        &self.inner.replica
    }
    /// The catalogue this replica applies to.
    pub fn catalogue(&self) -> &Catalogue {
        &self.inner.catalogue
    }

    /// Where this replica stands.
    pub fn standing(&self) -> Standing {
        let metrics = self.inner.replica.metrics();
        let metrics = metrics.borrow();
        let members = metrics.membership_config.membership();
        Standing {
            leadership: leadership_of(self.inner.own, &metrics),
            last_log: metrics.last_log_index.unwrap_or(0),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            confirmed: self.inner.confirmed.load(Ordering::Relaxed),
            voters: members.voter_ids().map(NodeId).collect(),
            learners: members.learner_ids().map(NodeId).collect(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Ends once the replica has stopped for good, with the reason: a store that is damaged or takes nothing more, or
    /// [`Consensus::shutdown`]. openraft does not see all of it: rows of an image are staged before it is told of them.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.inner.replica.metrics();
        tokio::select! {
            biased;
            stopped = metrics.wait_for(|m| m.running_state.is_err()) => match stopped {
                Ok(now) => now.running_state.as_ref().err().map_or_else(String::new, ToString::to_string),
                Err(_) => "shut down".into(),
            },
            why = self.inner.catalogue.failed() => why,
            why = self.inner.catalogue.damaged() => why,
            why = self.inner.behind.left() => why,
        }
    }

    /// What in this replica is not what was written, if anything was met.
    pub fn damage(&self) -> Option<String> {
        self.inner.catalogue.damage().or_else(|| self.inner.log.damage())
    }

    /// Stops taking part. Everything acknowledged is durable already.
    pub async fn shutdown(&self) {
        if let Err(e) = self.inner.replica.shutdown().await {
            tracing::error!(error = %e, "shut down Raft");
        }
    }
}

fn leadership_of(own: NodeId, metrics: &Metrics) -> Leadership {
    let running = metrics.running_state.is_ok();
    Leadership {
        leader: metrics.current_leader.filter(|_| running).map(NodeId),
        term: metrics.current_term,
        own: running && metrics.state == ServerState::Leader && metrics.current_leader == Some(own.0),
    }
}

async fn watch_leadership(
    own: NodeId,
    mut metrics: watch::Receiver<Metrics>,
    send: watch::Sender<Leadership>,
) {
    loop {
        let (now, stopped) = {
            let metrics = metrics.borrow_and_update();
            (leadership_of(own, &metrics), metrics.running_state.clone().err())
        };
        send.send_if_modified(|was| std::mem::replace(was, now) != now);
        if let Some(why) = stopped {
            if !matches!(why, openraft::error::Fatal::Stopped) {
                tracing::error!(error = %why, "catalogue replica has stopped; this node no longer votes");
            }
            return;
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}
