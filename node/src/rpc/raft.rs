//! What other nodes ask of this node's replica. Only nodes may call, and a message that speaks for a node must come
//! from that node: its certificate says who it is.
//!
//! Bytes from outside are checked here before openraft sees them; it asserts what we must be able to refuse.

use super::auth::{Right, allow};
use crate::raft::era::era_of;
use crate::raft::image::ImageParts;
use crate::raft::passport::Purpose;
use crate::raft::types::{Entry, LogId, MESSAGE_VERSION, Types, Vote, open_message, seal_message};
use crate::raft::{APPEND_ENTRIES_MAX, Consensus};
use async_trait::async_trait;
use farshore_core::id::NodeId;
use farshore_proto::convert::raft::era_from_wire;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use farshore_proto::wire;
use farshore_proto::wire::{
    GiveUpVoteReply, GiveUpVoteRequest, HeartbeatReply, HeartbeatRequest, RaftMessage, ReadIndexReply,
    ReadIndexRequest, SnapshotPart,
};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// Where heartbeats of nodes end.
#[async_trait]
pub trait HeartbeatSink: Send + Sync {
    /// A sign of life. `from` is the caller by certificate; the message may name no other node.
    async fn beat(&self, from: NodeId, beat: HeartbeatRequest) -> Result<HeartbeatReply, ApiError>;
    /// The caller's replica is damaged: it is to be none any more.
    async fn give_up_vote(&self, from: NodeId) -> Result<GiveUpVoteReply, ApiError>;
}

/// The service between nodes.
pub struct RaftService {
    consensus: Consensus,
    heartbeats: Arc<dyn HeartbeatSink>,
}

impl RaftService {
    /// A service for this replica.
    pub fn new(consensus: Consensus, heartbeats: Arc<dyn HeartbeatSink>) -> Self {
        RaftService { consensus, heartbeats }
    }
}

impl RaftService {
    /// The node that calls, if it is one of ours and still has its memory.
    async fn node<T>(&self, request: &Request<T>, purpose: Purpose) -> Result<NodeId, ApiError> {
        let node = match allow(request, Right::Consensus)? {
            Caller::Node(node) => node,
            other => return Err(ApiError::Denied(format!("{other} is no node"))),
        };
        self.consensus.passport().check(node, request.metadata(), purpose).await?;
        Ok(node)
    }

    /// A message of openraft's belongs to the era of the vote in it, whatever else it says.
    fn check_vote(&self, vote: &Vote) -> Result<(), ApiError> {
        self.consensus.check_era(Some(era_of(vote.leader_id.term)))
    }
}

/// A message must speak for its sender.
fn speaks_for(from: NodeId, claimed: u64) -> Result<(), ApiError> {
    if from.0 == claimed {
        return Ok(());
    }
    tracing::warn!(%from, claimed = %NodeId(claimed), "message speaks for another node");
    Err(ApiError::Denied(format!("node {from} may not speak for {}", NodeId(claimed))))
}

fn open<T: for<'a> Deserialize<'a>>(message: &RaftMessage) -> Result<T, ApiError> {
    open_message(MESSAGE_VERSION, &message.body).map_err(|e| ApiError::Invalid(e.to_string()))
}

fn seal<T: Serialize>(answer: &T) -> Response<RaftMessage> {
    Response::new(RaftMessage { body: seal_message(MESSAGE_VERSION, answer), era_plus_one: 0 })
}

/// Nobody hands on what a later leader has written. openraft's replication reads the log when it sends: a leader deposed
/// meanwhile would send its successor's entries under its own vote, behind an entry that the successor has replaced.
fn check_office(vote: &Vote, last: Option<LogId>) -> Result<(), ApiError> {
    match last.is_some_and(|last| last.leader_id > vote.leader_id) {
        true => Err(ApiError::Invalid("a leader hands on what its successor has written".into())),
        false => Ok(()),
    }
}

/// Entries must follow each other and what comes before them; openraft takes that for granted.
fn check_entries(prev: Option<LogId>, entries: &[Entry]) -> Result<(), ApiError> {
    let first = prev.map_or(Some(0), |prev| prev.index.checked_add(1));
    let consecutive =
        entries.iter().zip(first.into_iter().flat_map(|first| first..)).all(|(e, i)| e.log_id.index == i);
    if !consecutive || (first.is_none() && !entries.is_empty()) || entries.len() as u64 > APPEND_ENTRIES_MAX {
        return Err(ApiError::Invalid("entries of an append do not follow each other".into()));
    }
    let rising = entries.windows(2).all(|pair| pair[0].log_id < pair[1].log_id);
    if !rising || entries.first().is_some_and(|first| Some(first.log_id) <= prev) {
        return Err(ApiError::Invalid("terms of an append run backwards".into()));
    }
    Ok(())
}

fn stopped(error: impl std::fmt::Display) -> ApiError {
    ApiError::Internal(format!("this node's catalogue replica has stopped: {error}"))
}

#[tonic::async_trait]
impl wire::raft_server::Raft for RaftService {
    async fn append(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let from = self.node(&request, Purpose::Lead).await?;
        let append: AppendEntriesRequest<Types> = open(request.get_ref())?;
        speaks_for(from, append.vote.leader_id.node_id)?;
        self.check_vote(&append.vote)?;
        check_entries(append.prev_log_id, &append.entries)?;
        check_office(&append.vote, append.entries.last().map(|entry| entry.log_id))?;
        if !append.vote.is_committed() {
            return Err(ApiError::Invalid("append of a candidate that was not elected".into()).into());
        }
        self.consensus.heard(from);
        Ok(seal(&self.consensus.replica().append_entries(append).await.map_err(stopped)?))
    }

    async fn vote(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let from = self.node(&request, Purpose::Lead).await?;
        let vote: VoteRequest<u64> = open(request.get_ref())?;
        speaks_for(from, vote.vote.leader_id.node_id)?;
        self.check_vote(&vote.vote)?;
        if vote.vote.is_committed() {
            return Err(ApiError::Invalid("request for a vote that was already won".into()).into());
        }
        self.consensus.heard(from);
        Ok(seal(&self.consensus.replica().vote(vote).await.map_err(stopped)?))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<RaftMessage>, Status> {
        let from = self.node(&request, Purpose::Lead).await?;
        self.consensus.heard(from);
        let mut parts = ImageParts::new(request.into_inner());
        let (_, vote, meta) = parts.open().await?;
        speaks_for(from, vote.leader_id.node_id)?;
        self.check_vote(&vote)?;
        if !vote.is_committed() {
            return Err(ApiError::Invalid("image of a candidate that was not elected".into()).into());
        }
        check_office(&vote, meta.last_log_id)?;
        Ok(seal(&self.consensus.receive_image(vote, meta, parts).await?))
    }

    async fn propose(&self, request: Request<RaftMessage>) -> Result<Response<RaftMessage>, Status> {
        let from = self.node(&request, Purpose::Ask).await?;
        self.consensus.check_era(era_from_wire(request.get_ref().era_plus_one))?;
        let reply =
            self.consensus.propose_for(from, &request.get_ref().body).await.map_err(ApiError::from)?;
        Ok(seal(&reply))
    }

    async fn read_index(
        &self,
        request: Request<ReadIndexRequest>,
    ) -> Result<Response<ReadIndexReply>, Status> {
        self.node(&request, Purpose::Ask).await?;
        self.consensus.check_era(era_from_wire(request.get_ref().era_plus_one))?;
        let index = self.consensus.confirm_once().await.map_err(ApiError::from)?;
        Ok(Response::new(ReadIndexReply { index }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatReply>, Status> {
        let from = self.node(&request, Purpose::Ask).await?;
        let beat = request.into_inner();
        speaks_for(from, beat.node.as_ref().map_or(0, |node| node.id))?;
        self.consensus.check_era(era_from_wire(beat.era_plus_one))?;
        Ok(Response::new(self.heartbeats.beat(from, beat).await?))
    }

    /// From a node that takes part in nothing, so that its era is of no account.
    async fn give_up_vote(
        &self,
        request: Request<GiveUpVoteRequest>,
    ) -> Result<Response<GiveUpVoteReply>, Status> {
        let from = self.node(&request, Purpose::Ask).await?;
        Ok(Response::new(self.heartbeats.give_up_vote(from).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::{CommittedLeaderId, EntryPayload};

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(CommittedLeaderId::new(term, 1), index)
    }
    fn entries(ids: &[(u64, u64)]) -> Vec<Entry> {
        ids.iter()
            .map(|(term, index)| Entry { log_id: id(*term, *index), payload: EntryPayload::Blank })
            .collect()
    }

    #[test]
    fn a_deposed_leader_cannot_hand_on_what_its_successor_wrote() {
        let vote = Vote::new_committed(3, 1);
        assert!(check_office(&vote, None).is_ok());
        assert!(check_office(&vote, Some(id(3, 9))).is_ok() && check_office(&vote, Some(id(2, 9))).is_ok());
        assert!(check_office(&vote, Some(id(4, 2))).is_err());
        let later_in_the_term = LogId::new(CommittedLeaderId::new(3, 2), 9);
        assert!(check_office(&vote, Some(later_in_the_term)).is_err());
    }

    #[test]
    fn holes_and_falling_terms_are_refused() {
        assert!(check_entries(None, &entries(&[(1, 0), (1, 1), (2, 2)])).is_ok());
        assert!(check_entries(Some(id(1, 4)), &entries(&[(1, 5)])).is_ok());
        assert!(check_entries(Some(id(1, 4)), &[]).is_ok());
        assert!(check_entries(None, &entries(&[(1, 1)])).is_err());
        assert!(check_entries(Some(id(1, 4)), &entries(&[(1, 6)])).is_err());
        assert!(check_entries(Some(id(1, 4)), &entries(&[(1, 5), (1, 7)])).is_err());
        assert!(check_entries(Some(id(2, 4)), &entries(&[(1, 5)])).is_err());
        assert!(check_entries(Some(id(1, 4)), &entries(&[(2, 5), (1, 6)])).is_err());
        assert!(check_entries(Some(id(1, u64::MAX)), &entries(&[(1, 0)])).is_err());
    }
}
