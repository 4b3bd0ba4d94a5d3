//! Raft messages to other nodes. Every call has a deadline; a node that cannot be reached is left alone for a moment.
//!
//! openraft drops an append that takes longer than a heartbeat interval and sends it again. A large command would
//! never get through a slow link that way, so an append runs in its own task: the next attempt that starts at the same
//! entry joins it, and an empty append goes along so that the follower knows its leader lives.

use super::era::{self, Behind, era_of};
use super::image::{Image, Moved};
use super::passport::Passport;
use super::types::{LogId, MESSAGE_VERSION, Snapshot, Types, Vote, open_message, seal_message};
use farshore_core::host::task::Owned;
use farshore_core::id::NodeId;
use farshore_core::limits::{RAFT_APPEND_MS, RAFT_IMAGE_STALL_MS};
use farshore_proto::channel;
use farshore_proto::convert::raft::era_to_wire;
use farshore_proto::peers::Peers;
use farshore_proto::wire::RaftMessage;
use farshore_proto::wire::raft_client::RaftClient;
use openraft::error::{
    Fatal, NetworkError, RPCError, RaftError, ReplicationClosed, StreamingError, Unreachable,
};
use openraft::network::{Backoff, RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{BasicNode, OptionalSend};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Append = AppendEntriesRequest<Types>;
type Appended = AppendEntriesResponse<u64>;
type CallError = RPCError<u64, BasicNode, RaftError<u64>>;
type ImageError = StreamingError<Types, Fatal<u64>>;

/// When each node was last heard of, in either direction; names the missing when there is no quorum.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<BTreeMap<NodeId, Instant>>>);

impl Heard {
    /// Notes a sign of life.
    pub fn note(&self, node: NodeId) {
        self.0.lock().expect("no holder of this lock panics").insert(node, Instant::now());
    }
    /// Whether the node was heard of within `span`.
    pub fn within(&self, node: NodeId, span: Duration) -> bool {
        self.0
            .lock()
            .expect("no holder of this lock panics")
            .get(&node)
            .is_some_and(|at| at.elapsed() <= span)
    }
}

/// Makes links; openraft asks for one per node and task.
pub struct Network {
    pub(super) peers: Arc<Peers>,
    pub(super) passport: Passport,
    pub(super) heard: Heard,
    pub(super) behind: Behind,
    /// Pause before an unreachable node is tried again.
    pub(super) pause: Duration,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Link;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Link {
        let target = NodeId(target);
        // The membership's address may be older than what the catalogue says; it only serves to get started.
        if self.peers.addr(target).is_none() {
            self.peers.set(target, &node.addr);
        }
        Link {
            target,
            peers: self.peers.clone(),
            passport: self.passport.clone(),
            heard: self.heard.clone(),
            behind: self.behind.clone(),
            pause: self.pause,
            flight: None,
        }
    }
}

/// The way to one node.
pub struct Link {
    target: NodeId,
    peers: Arc<Peers>,
    passport: Passport,
    heard: Heard,
    behind: Behind,
    pause: Duration,
    flight: Option<Flight>,
}

/// An append under way.
struct Flight {
    vote: Vote,
    prev: Option<LogId>,
    last: LogId,
    answer: oneshot::Receiver<Result<Appended, Status>>,
    _task: Owned,
}

impl Flight {
    /// Whether this append is a prefix of that one.
    fn serves(&self, append: &Append) -> bool {
        self.vote == append.vote
            && self.prev == append.prev_log_id
            && append.entries.iter().any(|entry| entry.log_id == self.last)
    }
}

impl Link {
    fn client(&self) -> Result<RaftClient<Channel>, Status> {
        let channel = self.peers.channel(self.target);
        channel.map(channel::raft).ok_or_else(|| Status::unavailable("no address is known for this node"))
    }

    /// Sends an append and waits for its answer.
    fn append(
        &self,
        append: &Append,
        ttl: Duration,
    ) -> impl Future<Output = Result<Appended, Status>> + Send + 'static {
        let client = self.client();
        let call = self.passport.stamp(self.target, message(append.vote, append));
        let (heard, behind, target) = (self.heard.clone(), self.behind.clone(), self.target);
        let era = era_of(append.vote.leader_id.term);
        async move {
            let mut client = client?;
            let answer = within(ttl, client.append(call)).await;
            let answer = answer.inspect_err(|status| behind.hear_status(era, status))?;
            heard.note(target);
            let answer = answered(answer)?;
            if let Appended::HigherVote(vote) = &answer {
                same_era(era, vote, &behind)?;
            }
            Ok(answer)
        }
    }

    /// Waits for the append under way, starting it if there is none that serves.
    async fn fly(&mut self, append: Append, ttl: Duration) -> Result<Appended, Status> {
        let joined = self.flight.as_ref().is_some_and(|flight| flight.serves(&append));
        if !joined {
            self.flight = self.launch(&append);
        }
        let Some(flight) = &mut self.flight else { return self.append(&append, ttl).await };
        let flown_last = flight.last;
        let last = append.entries.last().map(|entry| entry.log_id);
        let landed = if joined {
            let beat = self.append(&Append { entries: Vec::new(), ..append }, ttl);
            let flight = self.flight.as_mut().expect("it was there a line ago");
            tokio::select! {
                biased;
                landed = &mut flight.answer => landed,
                // Only news that the leader is deposed may cut the waiting short.
                deposed = deposed(beat) => return Ok(deposed),
            }
        } else {
            (&mut flight.answer).await
        };
        self.flight = None;
        match landed.unwrap_or_else(|_| Err(Status::cancelled("append task ended")))? {
            Appended::Success if Some(flown_last) != last => Ok(Appended::PartialSuccess(Some(flown_last))),
            other => Ok(other),
        }
    }

    fn launch(&self, append: &Append) -> Option<Flight> {
        let last = append.entries.last()?.log_id;
        let (send, answer) = oneshot::channel();
        let call = self.append(append, Duration::from_millis(RAFT_APPEND_MS));
        let task = Owned::spawn(async move {
            // Nobody listens any more if the link was dropped or another append took over.
            let _ = send.send(call.await);
        });
        Some(Flight { vote: append.vote, prev: append.prev_log_id, last, answer, _task: task })
    }

    async fn send_image(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<u64>, ImageError> {
        let Image::Frozen(image) = *snapshot.snapshot else {
            let wrong = Status::internal("only an image of this replica can be sent");
            return Err(StreamingError::Unreachable(Unreachable::new(&wrong)));
        };
        let mut client = self.client().map_err(image_error)?;
        let open = seal_message(MESSAGE_VERSION, &(vote, snapshot.meta));
        let moved = Moved::default();
        let (failed, failure) = oneshot::channel();
        let parts = image.parts(open, era_of(vote.leader_id.term), moved.clone(), failed);
        let parts = self.passport.stamp(self.target, parts);
        let answer = tokio::select! {
            biased;
            answer = client.install_snapshot(parts) => answer,
            Ok(error) = failure => return Err(StreamingError::StorageError(error)),
            () = moved.stalled(Duration::from_millis(RAFT_IMAGE_STALL_MS)) => Err(Status::deadline_exceeded("image stalled")),
        };
        let answer = answer.map_err(image_error)?;
        self.heard.note(self.target);
        let theirs = open_message(MESSAGE_VERSION, &answer.into_inner().body)
            .map_err(|e| image_error(Status::internal(e.to_string())))?;
        same_era(era_of(vote.leader_id.term), &theirs, &self.behind).map_err(image_error)?;
        Ok(SnapshotResponse::new(theirs))
    }
}

impl Link {
    /// An image may be under way for longer than an election takes, and openraft tells its receiver nothing else
    /// meanwhile: it would stand for election and depose the leader that sends. Ends only with the vote of a newer leader.
    /// Cancel-safe: a beat that is cut off is not missed.
    async fn beat_until_deposed(&self, vote: Vote) -> Vote {
        let beat = Append { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
        loop {
            tokio::time::sleep(self.pause).await;
            if let Ok(Appended::HigherVote(higher)) = self.append(&beat, self.pause).await {
                return higher;
            }
        }
    }
}

/// Ends only if the answer tells of a newer leader. Cancel-safe: the answer is not needed otherwise.
async fn deposed(beat: impl Future<Output = Result<Appended, Status>>) -> Appended {
    match beat.await {
        Ok(higher @ Appended::HigherVote(_)) => higher,
        _ => std::future::pending().await,
    }
}

/// A message that speaks for the holder of `vote`.
fn message<T: Serialize>(vote: Vote, body: &T) -> RaftMessage {
    let era_plus_one = era_to_wire(Some(era_of(vote.leader_id.term)));
    RaftMessage { body: seal_message(MESSAGE_VERSION, body), era_plus_one }
}

/// A vote of a later era than ours, in an answer, is none that we may follow: it would carry an old log into that era.
fn same_era(own: u32, theirs: &Vote, behind: &Behind) -> Result<(), Status> {
    era::check(Some(own), Some(era_of(theirs.leader_id.term).max(own)), behind).map_err(Status::from)
}

/// Bounds a call on our side too: the far side may never see the deadline in the header.
pub(super) async fn within<T>(
    ttl: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, Status> {
    match tokio::time::timeout(ttl, call).await {
        Ok(answer) => answer.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("no answer in time")),
    }
}

fn answered<T: for<'a> Deserialize<'a>>(answer: RaftMessage) -> Result<T, Status> {
    open_message(MESSAGE_VERSION, &answer.body).map_err(|e| Status::internal(e.to_string()))
}

/// A slow answer is worth another try at once; anything else wants a pause first.
fn call_error(status: Status) -> CallError {
    match status.code() {
        Code::DeadlineExceeded => RPCError::Network(NetworkError::new(&status)),
        _ => RPCError::Unreachable(Unreachable::new(&status)),
    }
}
fn image_error(status: Status) -> ImageError {
    StreamingError::Unreachable(Unreachable::new(&status))
}

impl RaftNetwork<Types> for Link {
    async fn append_entries(&mut self, append: Append, option: RPCOption) -> Result<Appended, CallError> {
        let ttl = option.hard_ttl();
        if append.entries.is_empty() {
            return self.append(&append, ttl).await.map_err(call_error);
        }
        self.fly(append, ttl).await.map_err(call_error)
    }

    async fn vote(
        &mut self,
        vote: VoteRequest<u64>,
        option: RPCOption,
    ) -> Result<VoteResponse<u64>, CallError> {
        let call = async {
            let mut client = self.client()?;
            let call = self.passport.stamp(self.target, message(vote.vote, &vote));
            let answer = within(option.hard_ttl(), client.vote(call)).await;
            let era = era_of(vote.vote.leader_id.term);
            let answer = answer.inspect_err(|status| self.behind.hear_status(era, status))?;
            self.heard.note(self.target);
            let answer: VoteResponse<u64> = answered(answer)?;
            same_era(era, &answer.vote, &self.behind)?;
            Ok(answer)
        };
        call.await.map_err(call_error)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, ImageError> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = self.send_image(vote, snapshot) => sent,
            higher = self.beat_until_deposed(vote) => Ok(SnapshotResponse::new(higher)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.pause))
    }
}
