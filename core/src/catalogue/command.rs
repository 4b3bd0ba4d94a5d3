//! Every change to the catalogue as one closed, versioned enum, and its reply. Ids, times and random values are
//! inside, so that applying a command is deterministic.

use super::export::ExportRecord;
use super::record::{Condemned, PackCommit, RepoRecord, SnapshotRecord};
use crate::id::{ChunkId, ClusterId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, SnapshotId};
use crate::topology::{NodeRecord, NodeState};
use serde::{Deserialize, Serialize};

/// Version byte in front of an encoded [`Proposal`].
pub const COMMAND_VERSION: u8 = 1;

/// A command and the time the leader stamped on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Leader's clock in Unix milliseconds; catalogue time becomes the greater of this and what it was.
    pub time_ms: u64,
    /// What to do.
    pub command: Command,
}

/// A change to the catalogue.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Command {
    /// Names the cluster. The first command of its life; refused ever after.
    FormCluster { cluster: ClusterId },
    /// Makes a node known or refreshes its address, capacity and labels. Never changes its state once known; a node
    /// not known before starts as up.
    PutNode { node: NodeRecord },
    /// Moves a node through its life, if it is in state `from` and the table allows it.
    SetNodeState { node: NodeId, from: NodeState, to: NodeState },
    /// Creates a repository; refused if the name or the id is taken by a different one.
    CreateRepository { repo: RepoRecord },
    /// Opens a session; repeating it with the same id is harmless.
    OpenSession { session: SessionId, repo: RepoId },
    /// Ends sessions: closed by their client, or expired by the leader.
    EndSessions { sessions: Vec<SessionId> },
    /// Records uploaded packs. All or none; repeating it is harmless.
    CommitPacks { session: SessionId, packs: Vec<PackCommit> },
    /// Records a snapshot whose every ordinal is present. Repeating it is harmless.
    CommitSnapshot { session: SessionId, snapshot: SnapshotRecord },
    /// Repair has made shard `index` durable on `node`: compare-and-set on the stripe's generation. The former
    /// holder's copy, if any, becomes condemned.
    PlaceShard { pack: PackNo, generation: u64, index: u8, node: NodeId },
    /// The copy of shard `index` held by `node` is missing or corrupt: it no longer counts. Ignored unless `node` is
    /// its recorded holder.
    ShardBad { pack: PackNo, index: u8, node: NodeId },
    /// Looks again whether packs are at full strength and corrects the list of those that are not: needed after a node
    /// was lost, came back or moved, since no pack is rewritten for that.
    Recheck { packs: Vec<PackNo> },
    /// A node has deleted condemned copies.
    Swept { copies: Vec<Condemned> },
    /// An export of the catalogue is durable. A base condemns the exports that it makes useless.
    RecordExport { export: ExportRecord },
    /// The catalogue goes on from the replica of `node` alone, or from an export, because all else was lost. What was
    /// acknowledged after it is not known here, so every session ends: its client asks again what is there.
    BeginEra { era: u32, node: NodeId },
}

/// Ordinals of one committed pack's chunks, in table order. A chunk that was already known keeps its old ordinal.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackCommitted {
    /// Which pack.
    pub id: PackId,
    /// Its number.
    pub no: PackNo,
    /// One ordinal per chunk of its table.
    pub ordinals: Vec<Ordinal>,
}

/// Answer to a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Reply {
    /// Done, or was done already.
    Done,
    /// Session open since this log index.
    SessionOpen { opened: u64 },
    /// Packs recorded.
    PacksCommitted { packs: Vec<PackCommitted> },
    /// Snapshot recorded. `under_target` counts packs of the snapshot that are not at full strength (capped at
    /// [`crate::limits::PAGE_ROWS_MAX`]).
    SnapshotCommitted { committed_ms: u64, under_target: u32 },
    /// Nothing was changed.
    Refused(Refusal),
}

/// Why a command changed nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// The cluster has been formed before.
    #[error("this cluster is already formed")]
    AlreadyFormed,
    /// No such node.
    #[error("no node {0} in this cluster")]
    NoNode(NodeId),
    /// The node is not in the expected state, or may not move to the new one.
    #[error("node {0} is {word}, so this change of state is refused", word = .1.word())]
    BadTransition(NodeId, NodeState),
    /// The draining node still holds shards.
    #[error("node {0} still holds shards; wait until it is drained")]
    NotEmpty(NodeId),
    /// The repository name or id is taken.
    #[error("repository {0} already exists")]
    RepoExists(String),
    /// No such repository.
    #[error("no such repository")]
    NoRepo,
    /// The session is unknown or has ended.
    #[error("session {0} has ended; open a new one and send again what is missing")]
    NoSession(SessionId),
    /// Some ordinals are not there; the chunks must be sent again. The list may be cut short.
    #[error("{} chunks of the snapshot are gone and must be sent again", .0.len())]
    ChunksGone(Vec<Ordinal>),
    /// Chunk ids clash in a way that cannot come from an honest client.
    #[error("pack commit is malformed: {0}")]
    Malformed(String),
    /// Too few shards are held for the policy's floor.
    #[error("pack {0} is below the write floor: {1}")]
    BelowFloor(PackId, String),
    /// The stripe has changed since the caller looked.
    #[error("stripe is at generation {0}, not the expected one")]
    Stale(u64),
    /// No such pack.
    #[error("no such pack")]
    NoPack,
    /// The node still has to delete an older copy of this shard.
    #[error("an old copy of this shard on the node is condemned and not yet swept")]
    StillCondemned,
    /// The snapshot exists with other contents.
    #[error("snapshot {0} exists with other contents")]
    SnapshotExists(SnapshotId),
    /// A chunk id that the reply names as unknown.
    #[error("chunk {0} is unknown")]
    NoChunk(ChunkId),
}
