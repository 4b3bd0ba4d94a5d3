//! Commands and confirmed reads from any node: found out who leads, passed on in one hop, tried again until a deadline.

use super::Consensus;
use super::network::within;
use super::types::{MESSAGE_VERSION, Payload, PayloadError, open_message, seal_message};
use bytes::Bytes;
use farshore_core::catalogue::command::COMMAND_VERSION;
use farshore_core::catalogue::{Actor, Asked, Command, Proposal, Reply};
use farshore_core::id::NodeId;
use farshore_core::limits::COMMAND_BYTES_MAX;
use farshore_core::mutant::{Mutant, mutant};
use farshore_proto::channel;
use farshore_proto::convert::raft::era_to_wire;
use farshore_proto::status::ApiError;
use farshore_proto::wire::raft_client::RaftClient;
use farshore_proto::wire::{RaftMessage, ReadIndexRequest};
use openraft::error::{CheckIsLeaderError, ClientWriteError, RaftError};
use std::future::Future;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Status;
use tonic::transport::Channel;

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
            // The kind says the rest, and it may be said once a hop.
            ConsensusError::NoQuorum(why) => ApiError::NoQuorum(why),
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

impl Consensus {
    /// Has the cluster carry out a command of this node's own.
    pub async fn propose(&self, command: Command) -> Result<Reply, ConsensusError> {
        self.propose_as(Actor::Node(self.inner.own), command).await
    }

    /// Has the cluster carry out a command on behalf of whoever asked for it. Commands are made so that repeating one is
    /// harmless, which a lost answer makes us do.
    pub async fn propose_as(&self, actor: Actor, command: Command) -> Result<Reply, ConsensusError> {
        let asked = Asked { actor, command };
        let body = seal_message(COMMAND_VERSION, &asked);
        check_size(body.len())?;
        let deadline = self.deadline();
        let slot = tokio::time::timeout_at(deadline, self.inner.proposals.acquire()).await;
        let _slot = slot.map_err(|_| ConsensusError::NoQuorum("too many commands are waiting".into()))?;
        self.until(deadline, || async {
            match self.leader() {
                Some(node) if node == self.inner.own => self.propose_here(asked.clone(), deadline).await,
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
        self.inner.confirmed.fetch_max(index, Ordering::Relaxed);
        Ok(index)
    }

    /// Like [`Consensus::read_index`], in one attempt, only if this node leads.
    pub async fn read_index_leading(&self) -> Result<u64, ConsensusError> {
        let deadline = self.deadline();
        let index = self.confirm_here(deadline).await.map_err(Attempt::into_error)?;
        self.applied_at_least(index, deadline).await?;
        self.inner.confirmed.fetch_max(index, Ordering::Relaxed);
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

    /// One attempt to carry out an encoded command that another node has passed on, only if this node leads.
    pub async fn propose_for(&self, from: NodeId, body: &[u8]) -> Result<Reply, ConsensusError> {
        check_size(body.len())?;
        let asked =
            open_message(COMMAND_VERSION, body).map_err(|e| ConsensusError::Invalid(e.to_string()))?;
        if !may_pass_on(from, &asked) {
            tracing::warn!(%from, ?asked, "command passed on by a node that may not");
            return Err(ConsensusError::Invalid(format!("node {from} may not pass on this command")));
        }
        self.propose_in_this_term(asked).await
    }

    /// One attempt to carry out a command, only if this node leads: for what the leader decides by itself, which a
    /// node that leads no more must not decide, nor one that leads again.
    pub async fn propose_leading(&self, command: Command) -> Result<Reply, ConsensusError> {
        self.propose_in_this_term(Asked { actor: Actor::Node(self.inner.own), command }).await
    }

    async fn propose_in_this_term(&self, asked: Asked) -> Result<Reply, ConsensusError> {
        let deadline = self.deadline();
        let term = || self.inner.leadership.borrow().term;
        let before = term();
        let slot = tokio::time::timeout_at(deadline, self.inner.proposals.acquire()).await;
        let _slot = slot.map_err(|_| ConsensusError::NoQuorum("too many commands are waiting".into()))?;
        if term() != before {
            return Err(ConsensusError::NoQuorum("the term has changed".into()));
        }
        self.propose_here(asked, deadline).await.map_err(Attempt::into_error)
    }

    /// One attempt to confirm that this node leads; the index a read must have applied.
    pub async fn confirm_once(&self) -> Result<u64, ConsensusError> {
        self.confirm_here(self.deadline()).await.map_err(Attempt::into_error)
    }

    /// When a call that begins now has to end.
    pub(super) fn deadline(&self) -> Instant {
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

    async fn propose_here(&self, asked: Asked, deadline: Instant) -> Result<Reply, Attempt> {
        let Asked { actor, command } = asked;
        let time_ms = match self.time_ms() {
            None if needs_time(&command) => {
                return Err(Attempt::Again("too few voters have said what time it is".into()));
            }
            time => time.unwrap_or(0),
        };
        let proposal = Proposal { time_ms, actor, command };
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
        let message = RaftMessage { body, era_plus_one: era_to_wire(self.era()) };
        let call = self.inner.passport.stamp(leader, message);
        let answer = self.while_led_by(leader, within(left(deadline), client.propose(call))).await?;
        open_message(MESSAGE_VERSION, &answer.body)
            .map_err(|e| Attempt::Give(ConsensusError::Invalid(format!("the leader's answer: {e}"))))
    }

    async fn confirm_here(&self, deadline: Instant) -> Result<u64, Attempt> {
        if mutant(Mutant::StaleRead) {
            return Ok(self.catalogue().applied());
        }
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
        let request = ReadIndexRequest { era_plus_one: era_to_wire(self.era()) };
        let call = self.inner.passport.stamp(leader, request);
        let answer = self.while_led_by(leader, within(left(deadline), client.read_index(call))).await?;
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
            answer = call => answer.map_err(|status| {
                self.heard_of_era(&ApiError::from_status(status.clone()));
                Attempt::from_status(status)
            })?,
            _ = leadership.wait_for(|now| now.leader != Some(leader)) => {
                return Err(Attempt::Again("the leader has changed".into()));
            }
        };
        self.inner.heard.note(leader);
        Ok(answer)
    }

    fn client(&self, node: NodeId) -> Result<RaftClient<Channel>, Attempt> {
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

/// Whether it matters to a command when it was given. To those that make the cluster it does not, and they come before
/// there is anybody whose clock could be asked.
fn needs_time(command: &Command) -> bool {
    use Command::{AdmitNode, FormCluster, PutNode, SetNodeState};
    !matches!(command, FormCluster { .. } | PutNode { .. } | AdmitNode { .. } | SetNodeState { .. })
}

/// What a node says about copies, it may say about its own only: a mistaken or lying one must not erase what others
/// hold. Where a rebuilt shard or an export lies, and which packs are garbage, is the leader's own word and never passed
/// on, and an era begins by an operator's hand at a stopped node. Nor may it speak in the name of another node; that a client
/// has asked is its word, as everything is that a client does through it.
fn may_pass_on(from: NodeId, asked: &Asked) -> bool {
    if matches!(asked.actor, Actor::Node(node) if node != from) {
        return false;
    }
    match &asked.command {
        Command::ShardBad { node, .. } => *node == from,
        Command::Swept { copies } => copies.iter().all(|copy| copy.node == from),
        Command::CondemnOrphans { node, .. } => *node == from,
        Command::PlaceShard { .. }
        | Command::CondemnPacks { .. }
        | Command::RevivePacks { .. }
        | Command::DropPacks { .. }
        | Command::CompactPacks { .. }
        | Command::RecordExport { .. }
        | Command::RaiseLevel { .. }
        | Command::BeginEra { .. } => false,
        _ => true,
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

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::Condemned;
    use farshore_core::id::{PackNo, ShardId, StripeId};

    #[test]
    fn a_node_speaks_of_no_copies_but_its_own() {
        let [own, other] = [1, 2].map(NodeId);
        let may_pass_on = |from, command: &Command| {
            let asked = |actor| Asked { actor, command: command.clone() };
            let client = Actor::Client("laptop".parse().unwrap());
            assert!(!may_pass_on(from, &asked(Actor::Node(NodeId(99)))), "in the name of another");
            let [own, for_client] = [Actor::Node(from), client].map(|actor| may_pass_on(from, &asked(actor)));
            assert_eq!(own, for_client);
            own
        };
        let bad = |node| Command::ShardBad { pack: PackNo(0), index: 0, node };
        assert!(may_pass_on(own, &bad(own)) && !may_pass_on(own, &bad(other)));
        let shard = ShardId { stripe: StripeId([0; 16]), index: 0 };
        let swept = |nodes: &[NodeId]| Command::Swept {
            copies: nodes.iter().map(|node| Condemned { node: *node, shard }).collect(),
        };
        assert!(may_pass_on(own, &swept(&[own])) && !may_pass_on(own, &swept(&[own, other])));
        let place = Command::PlaceShard { pack: PackNo(0), generation: 0, index: 0, node: own };
        assert!(!may_pass_on(own, &place));
        let orphans = |node| Command::CondemnOrphans { node, copies: vec![] };
        assert!(may_pass_on(own, &orphans(own)) && !may_pass_on(own, &orphans(other)));
        assert!(!may_pass_on(own, &Command::CondemnPacks { packs: vec![] }));
        assert!(!may_pass_on(own, &Command::DropPacks { packs: vec![], looked: 0 }));
        assert!(!may_pass_on(own, &Command::BeginEra { era: 1, node: own }));
    }
}
