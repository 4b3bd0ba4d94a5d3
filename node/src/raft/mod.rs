//! Consensus: the one way a command becomes part of the catalogue, and the one way a reader learns how fresh its own
//! replica must be. Every node has a replica; any of them takes commands and passes them on to the leader.
//!
//! The flow: propose → leader stamps the time → log (durable, marked) → quorum → `machine` applies → reply.

pub mod membership;

pub mod network;

pub mod machine;

pub mod image;

pub mod log;

pub mod mark;

pub mod types;

#[cfg(test)]
mod cluster_test;

#[cfg(test)]
mod store_test;

#[cfg(test)]
mod testkit;

pub use log::RaftStoreError;

use crate::catalogue::Catalogue;
use crate::raft::image::{Image, ImageParts, refused};
use crate::raft::log::LogStore;
use crate::raft::machine::Machine;
use crate::raft::network::{Heard, Network, within};
use crate::raft::types::{
    MESSAGE_VERSION, Metrics, Payload, PayloadError, Replica, ScopedRuntime, Snapshot, SnapshotMeta, Vote,
    open_message, seal_message,
};
use bytes::Bytes;
use farshore_core::catalogue::command::COMMAND_VERSION;
use farshore_core::catalogue::{Command, Proposal, Reply};
use farshore_core::host::task::Owned;
use farshore_core::host::{Host, Kv};
use farshore_core::id::NodeId;
use farshore_core::limits::{
    CATALOGUE_CALL_MS, COMMAND_BYTES_MAX, PROPOSALS_IN_FLIGHT_MAX, RAFT_IMAGE_STALL_MS,
};
use farshore_proto::channel;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::wire::{RaftMessage, ReadIndexRequest};
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use openraft::{Config, ServerState, SnapshotPolicy};
use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::time::Instant;
use tonic::Status;

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
/// Pause before asking again when nobody leads or the leader did not take the command.
const RETRY_PAUSE: Duration = Duration::from_millis(150);

/// Why a command was not carried out, or a read not confirmed. A refusal by the catalogue is no error but a reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConsensusError {
    /// No leader with a majority was found in time. The command may still be carried out later.
    #[error("no leader with a majority in time: {0}")]
    NoQuorum(String),
    /// The command is too large or not understood by the leader.
    #[error("{0}")]
    Invalid(String),
    /// This replica has stopped and takes part in nothing any more.
    #[error("this node's catalogue replica has stopped: {0}")]
    Stopped(String),
}

impl From<ConsensusError> for ApiError {
    fn from(error: ConsensusError) -> Self {
        let text = error.to_string();
        match error {
            ConsensusError::NoQuorum(_) => ApiError::NoQuorum(text),
            ConsensusError::Invalid(_) => ApiError::Invalid(text),
            ConsensusError::Stopped(_) => ApiError::Internal(text),
        }
    }
}

/// Why one attempt failed, for the loop around it.
enum Attempt {
    /// Perhaps another attempt succeeds; why not this one.
    Again(String),
    /// No attempt will.
    Give(ConsensusError),
}

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
    heard: Heard,
    tuning: RaftTuning,
    leadership: watch::Receiver<Leadership>,
    /// Commands this node has under way; more wait.
    proposals: Semaphore,
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
        tuning: RaftTuning,
    ) -> Result<Self, RaftStoreError> {
        ScopedRuntime::seed(host.entropy.as_ref());
        let log = LogStore::open(kv, host.disk.clone()).await?;
        let heard = Heard::default();
        let pause = Duration::from_millis(tuning.heartbeat_ms);
        let network = Network { peers: peers.clone(), heard: heard.clone(), pause };
        let machine = Machine::new(catalogue.clone());
        let replica = Replica::new(own.0, Arc::new(tuning.config()?), network, log, machine).await;
        let replica = replica.map_err(|e| RaftStoreError::Start(e.to_string()))?;
        let (send, leadership) = watch::channel(Leadership::default());
        let watcher = Owned::spawn(watch_leadership(own, replica.metrics(), send));
        let inner = Inner {
            own,
            host: host.clone(),
            replica,
            catalogue,
            peers,
            heard,
            tuning,
            leadership,
            proposals: Semaphore::new(PROPOSALS_IN_FLIGHT_MAX),
            receiving: Mutex::default(),
            _watcher: watcher,
        };
        Ok(Consensus { inner: Arc::new(inner) })
    }

    /// Has the cluster carry out a command. Commands are made so that repeating one is harmless, which a lost answer
    /// makes us do.
    pub async fn propose(&self, command: Command) -> Result<Reply, ConsensusError> {
        let body = seal_message(COMMAND_VERSION, &command);
        check_size(body.len())?;
        let deadline = self.deadline();
        let slot = tokio::time::timeout_at(deadline, self.inner.proposals.acquire()).await;
        let _slot = slot.map_err(|_| ConsensusError::NoQuorum("too many commands are waiting".into()))?;
        self.until(deadline, || async {
            match self.leader() {
                Some(node) if node == self.inner.own => self.propose_here(command.clone(), deadline).await,
                Some(node) => self.propose_there(node, body.clone(), deadline).await,
                None => Err(Attempt::Again("no leader is known".into())),
            }
        })
        .await
    }

    /// The index that a read must have applied in order to see all that was acknowledged before this call; returns
    /// once this node's replica has applied it.
    pub async fn read_index(&self) -> Result<u64, ConsensusError> {
        let deadline = self.deadline();
        let index = self.until(deadline, || async {
            match self.leader() {
                Some(node) if node == self.inner.own => self.confirm_here(deadline).await,
                Some(node) => self.confirm_there(node, deadline).await,
                None => Err(Attempt::Again("no leader is known".into())),
            }
        });
        let index = index.await?;
        self.applied_at_least(index, deadline).await?;
        Ok(index)
    }

    /// Waits until this replica has applied `index`.
    pub async fn applied_at_least(&self, index: u64, deadline: Instant) -> Result<(), ConsensusError> {
        let mut metrics = self.inner.replica.metrics();
        let reached = metrics
            .wait_for(|m| m.last_applied.is_some_and(|id| id.index >= index) || m.running_state.is_err());
        match tokio::time::timeout_at(deadline, reached).await {
            Ok(Ok(metrics)) => match &metrics.running_state {
                Ok(()) => Ok(()),
                Err(why) => Err(ConsensusError::Stopped(why.to_string())),
            },
            Ok(Err(_)) => Err(ConsensusError::Stopped("shut down".into())),
            Err(_) => {
                Err(ConsensusError::NoQuorum(format!("this node has not caught up with log entry {index}")))
            }
        }
    }

    /// One attempt to carry out an encoded command, only if this node leads. For commands passed on by other nodes.
    pub async fn propose_once(&self, body: &[u8]) -> Result<Reply, ConsensusError> {
        check_size(body.len())?;
        let command =
            open_message(COMMAND_VERSION, body).map_err(|e| ConsensusError::Invalid(e.to_string()))?;
        let deadline = self.deadline();
        let slot = tokio::time::timeout_at(deadline, self.inner.proposals.acquire()).await;
        let _slot = slot.map_err(|_| ConsensusError::NoQuorum("too many commands are waiting".into()))?;
        self.propose_here(command, deadline).await.map_err(Attempt::into_error)
    }

    /// One attempt to carry out a command, only if this node leads: for what the leader decides by itself, which a
    /// node that leads no more must not decide.
    pub async fn propose_leading(&self, command: Command) -> Result<Reply, ConsensusError> {
        self.propose_once(&seal_message(COMMAND_VERSION, &command)).await
    }

    /// One attempt to confirm that this node leads; the index a read must have applied.
    pub async fn confirm_once(&self) -> Result<u64, ConsensusError> {
        self.confirm_here(self.deadline()).await.map_err(Attempt::into_error)
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
    /// This node.
    pub fn own(&self) -> NodeId {
        self.inner.own
    }
    /// Notes a sign of life of another node.
    pub fn heard(&self, node: NodeId) {
        self.inner.heard.note(node);
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
            voters: members.voter_ids().map(NodeId).collect(),
            learners: members.learner_ids().map(NodeId).collect(),
            stopped: metrics.running_state.as_ref().err().map(ToString::to_string),
        }
    }

    /// Ends once the replica has stopped for good, with the reason: a damaged store, or [`Consensus::shutdown`].
    pub async fn stopped(&self) -> String {
        let mut metrics = self.inner.replica.metrics();
        match metrics.wait_for(|m| m.running_state.is_err()).await {
            Ok(metrics) => metrics.running_state.as_ref().err().map_or_else(String::new, ToString::to_string),
            Err(_) => "shut down".into(),
        }
    }

    /// Stops taking part. Everything acknowledged is durable already.
    pub async fn shutdown(&self) {
        if let Err(e) = self.inner.replica.shutdown().await {
            tracing::error!(error = %e, "shut down Raft");
        }
    }

    /// When a call that begins now has to end.
    fn deadline(&self) -> Instant {
        Instant::now() + Duration::from_millis(self.inner.tuning.call_ms)
    }

    /// Repeats an attempt until it succeeds, cannot succeed, or time is up.
    async fn until<T, F: Future<Output = Result<T, Attempt>>>(
        &self,
        deadline: Instant,
        attempt: impl Fn() -> F,
    ) -> Result<T, ConsensusError> {
        let mut leadership = self.leadership();
        loop {
            leadership.mark_unchanged();
            let why = match attempt().await {
                Ok(value) => return Ok(value),
                Err(Attempt::Give(error)) => return Err(error),
                Err(Attempt::Again(why)) => why,
            };
            if let Some(stopped) = self.standing().stopped {
                return Err(ConsensusError::Stopped(stopped));
            }
            if Instant::now() + RETRY_PAUSE >= deadline {
                return Err(ConsensusError::NoQuorum(format!("{why}{}", self.missing())));
            }
            // A new leader ends the pause early; otherwise the pause keeps a broken cluster from being flooded.
            let _ = tokio::time::timeout(RETRY_PAUSE, leadership.changed()).await;
        }
    }

    /// Which voters are silent, as a clause for an error.
    fn missing(&self) -> String {
        let span = Duration::from_millis(self.inner.tuning.election_max_ms * 2);
        let silent = |node: &NodeId| *node != self.inner.own && !self.inner.heard.within(*node, span);
        let silent: Vec<String> =
            self.standing().voters.iter().filter(|n| silent(n)).map(NodeId::to_string).collect();
        if silent.is_empty() { String::new() } else { format!("; nothing is heard of {}", silent.join(", ")) }
    }

    async fn propose_here(&self, command: Command, deadline: Instant) -> Result<Reply, Attempt> {
        let proposal = Proposal { time_ms: self.inner.host.clock.now_ms(), command };
        let payload =
            Payload::seal(&proposal).map_err(|e| Attempt::Give(ConsensusError::Invalid(e.to_string())))?;
        let written = tokio::time::timeout_at(deadline, self.inner.replica.client_write(payload)).await;
        match written.map_err(|_| Attempt::Again("the leader reached no majority".into()))? {
            Ok(written) => Ok(written.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => {
                Err(Attempt::Again("the leader has changed".into()))
            }
            Err(RaftError::APIError(e)) => Err(Attempt::Give(ConsensusError::Invalid(e.to_string()))),
            Err(RaftError::Fatal(e)) => Err(Attempt::Give(ConsensusError::Stopped(e.to_string()))),
        }
    }

    async fn propose_there(&self, leader: NodeId, body: Bytes, deadline: Instant) -> Result<Reply, Attempt> {
        let mut client = self.client(leader)?;
        let answer =
            self.while_led_by(leader, within(left(deadline), client.propose(RaftMessage { body }))).await?;
        open_message(MESSAGE_VERSION, &answer.body)
            .map_err(|e| Attempt::Give(ConsensusError::Invalid(format!("the leader's answer: {e}"))))
    }

    async fn confirm_here(&self, deadline: Instant) -> Result<u64, Attempt> {
        let confirmed = tokio::time::timeout_at(deadline, self.inner.replica.get_read_log_id()).await;
        match confirmed.map_err(|_| Attempt::Again("the leader reached no majority".into()))? {
            Ok((index, _)) => Ok(index.map_or(0, |id| id.index)),
            Err(RaftError::APIError(CheckIsLeaderError::ForwardToLeader(_))) => {
                Err(Attempt::Again("the leader has changed".into()))
            }
            Err(RaftError::APIError(CheckIsLeaderError::QuorumNotEnough(_))) => {
                Err(Attempt::Again("the leader reached no majority".into()))
            }
            Err(RaftError::Fatal(e)) => Err(Attempt::Give(ConsensusError::Stopped(e.to_string()))),
        }
    }

    async fn confirm_there(&self, leader: NodeId, deadline: Instant) -> Result<u64, Attempt> {
        let mut client = self.client(leader)?;
        let answer =
            self.while_led_by(leader, within(left(deadline), client.read_index(ReadIndexRequest {}))).await?;
        Ok(answer.index)
    }

    /// Gives up on a leader as soon as another is known: a dead one may keep a call waiting for long.
    async fn while_led_by<T>(
        &self,
        leader: NodeId,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Attempt> {
        let mut leadership = self.leadership();
        let answer = tokio::select! {
            biased;
            answer = call => answer.map_err(Attempt::from_status)?,
            _ = leadership.wait_for(|now| now.leader != Some(leader)) => {
                return Err(Attempt::Again("the leader has changed".into()));
            }
        };
        self.inner.heard.note(leader);
        Ok(answer)
    }

    fn client(
        &self,
        node: NodeId,
    ) -> Result<farshore_proto::wire::raft_client::RaftClient<tonic::transport::Channel>, Attempt> {
        let unknown = || Attempt::Again(format!("no address is known for the leader {node}"));
        self.inner.peers.channel(node).map(channel::raft).ok_or_else(unknown)
    }
}

impl Attempt {
    /// What the caller of a single attempt is told.
    fn into_error(self) -> ConsensusError {
        match self {
            Attempt::Again(why) => ConsensusError::NoQuorum(why),
            Attempt::Give(error) => error,
        }
    }
    fn from_status(status: Status) -> Self {
        match ApiError::from_status(status) {
            ApiError::Invalid(why) => Attempt::Give(ConsensusError::Invalid(why)),
            other => Attempt::Again(format!("the leader did not answer: {other}")),
        }
    }
}

fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

/// The proposal adds a version byte and a time to the command.
const PROPOSAL_BYTES: usize = 16;

fn check_size(command: usize) -> Result<(), ConsensusError> {
    let bytes = command + PROPOSAL_BYTES;
    if bytes <= COMMAND_BYTES_MAX {
        return Ok(());
    }
    Err(ConsensusError::Invalid(PayloadError::TooLarge(bytes).to_string()))
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
