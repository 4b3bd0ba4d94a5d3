//! Every change to the catalogue as one closed, versioned enum, and its reply. Ids, times and random values are
//! inside, so that applying a command is deterministic.

use super::audit::Actor;
use super::export::ExportRecord;
use super::record::{
    Condemned, CondemnedPack, Lock, LockMode, Orphan, PackCommit, RepoLock, RepoRecord, SnapshotRecord,
};
use super::upkeep::{StripeRead, Subject, Upkeep};
use crate::erasure::Scheme;
use crate::id::{ChunkId, ClusterId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, SnapshotId};
use crate::level::{LEVEL_FIRST, LEVEL_KEYS, LEVEL_MIGRATE, LEVEL_RECODE};
use crate::policy::Policy;
use crate::topology::{Change, NodeRecord, NodeState, Region};
use crate::units::rfc3339;
use serde::{Deserialize, Serialize};

/// Version byte in front of an encoded [`Proposal`].
pub const COMMAND_VERSION: u8 = 1;

/// A command and who asks for it, as nodes pass it on to the leader.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Asked {
    /// Who asked first, however often it was passed on.
    pub actor: Actor,
    /// What for.
    pub command: Command,
}

/// A command, who asked for it, and the time the leader stamped on it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Proposal {
    /// Leader's clock in Unix milliseconds; catalogue time becomes the greater of this and what it was.
    pub time_ms: u64,
    /// Who asked for it; stands in the audit record.
    pub actor: Actor,
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
    /// Opens a session; repeating it with the same id is harmless. An id that has ended is never opened again, so that
    /// a call that comes late cannot bring back what was waited for: ended ids are remembered, and where they have
    /// been forgotten nothing is opened by a client that has `seen` only an older index.
    OpenSession { session: SessionId, repo: RepoId, seen: u64 },
    /// Ends sessions: closed by their client, or expired by the leader.
    EndSessions { sessions: Vec<SessionId> },
    /// Records uploaded packs. All or none; repeating it is harmless.
    CommitPacks { session: SessionId, packs: Vec<PackCommit> },
    /// Records a snapshot whose every ordinal is present or condemned; condemned packs it needs are revived. The
    /// checkpoint it `replaces`, if there is one, goes in the same step. Repeating it is harmless.
    CommitSnapshot { session: SessionId, snapshot: SnapshotRecord, replaces: Option<SnapshotId> },
    /// Repair has made shard `index` durable on `node`: compare-and-set on the stripe's generation. The former
    /// holder's copy, if any, becomes condemned.
    PlaceShard { pack: PackNo, generation: u64, index: u8, node: NodeId },
    /// The copy of shard `index` held by `node` is missing or corrupt: it no longer counts. Ignored unless `node` is
    /// its recorded holder.
    ShardBad { pack: PackNo, index: u8, node: NodeId },
    /// Looks again whether packs are at full strength and corrects the list of those that are not: needed after a node
    /// was lost, came back or moved, since no pack is rewritten for that.
    Recheck { packs: Vec<PackNo> },
    /// These copies are condemned no more: their node has deleted them, or repair wants them back, and asks the node for a
    /// receipt only after this, so that it does not matter whether they are still there.
    Swept { copies: Vec<Condemned> },
    /// These packs were found to have no live chunk: they are no longer offered to deduplication. Those that are
    /// condemned already, are gone, or may belong to an open session are passed over.
    CondemnPacks { packs: Vec<PackNo> },
    /// These condemned packs are needed after all.
    RevivePacks { packs: Vec<PackNo> },
    /// A second look at the catalogue as of index `looked` found these packs dead still: their shards are to be deleted.
    /// Passed over are those not condemned at the very index named, or after `looked`, or while a session is open
    /// that was opened before.
    DropPacks { packs: Vec<CondemnedPack>, looked: u64 },
    /// Copies on a node that no committed stripe names there are condemned, unless one does, or a session is open that
    /// may have a receipt for it.
    CondemnOrphans { node: NodeId, copies: Vec<Orphan> },
    /// An operator's change of a repository or its snapshots.
    ChangeRepository { repo: RepoId, change: RepoChange },
    /// Some chunks of packs that are mostly garbage were copied, sealed as they are, into a new pack: they keep their
    /// ordinals and live there from now on. Refused if one of them has moved since it was looked at.
    CompactPacks { repo: RepoId, pack: Box<PackCommit>, from: Vec<PackNo> },
    /// Makes a node known or refreshes it, like [`Command::PutNode`], under the number that its data directory drew when
    /// it was new, and with the feature level that its program can do. Refused for ever if the node is known under another
    /// number: its memory is gone; and if it can do less than the cluster uses.
    AdmitNode { node: NodeRecord, incarnation: u64, level: u32 },
    /// Replaces what is staged, if the topology's epoch is this. Repeating it under the same number is harmless.
    StageTopology { request: [u8; 16], epoch: u64, changes: Vec<Change> },
    /// Enacts changes, all or none, if the topology's epoch is this. Repeating it under the same number is harmless.
    ChangeTopology { request: [u8; 16], epoch: u64, changes: Vec<Change> },
    /// An export of the catalogue is durable. A base condemns the exports that it makes useless.
    RecordExport { export: ExportRecord },
    /// The catalogue goes on from the replica of `node` alone, or from an export, because all else was lost. What was
    /// acknowledged after it is not known here, so every session ends: its client asks again what is there.
    BeginEra { era: u32, node: NodeId },
    /// The cluster uses what this feature level brings, if every node that is neither lost nor retired can do it.
    RaiseLevel { to: u32 },
    /// Empties every node of region `from`, so that what they hold comes to region `to` as far as policies allow, if the
    /// topology's epoch is this. While a `cold` one is under way clients write nothing. Repeating it under the same
    /// number is harmless.
    Migrate { request: [u8; 16], epoch: u64, from: Region, to: Region, cold: bool },
    /// Ends the migration of region `from`, if the topology's epoch is this: its nodes have gone, or those that have not
    /// shall `keep` what they still hold. Repeating it under the same number is harmless.
    EndMigration { request: [u8; 16], epoch: u64, from: Region, keep: bool },
    /// These stripes, shards of which were moved for the `subject`, were just read. Passed over are those that are not
    /// waiting for that, or have changed since. `end` closes the record if nothing waits any more.
    RecordVerified { subject: Subject, stripes: Vec<StripeRead>, end: bool },
    /// Sets the limits of the cluster's own work.
    SetUpkeep { upkeep: Upkeep },
}

impl Command {
    /// The feature level that a cluster must be at to carry it out.
    pub fn level(&self) -> u32 {
        match self {
            Command::ChangeRepository { change: RepoChange::SetPolicy { .. }, .. } => LEVEL_RECODE,
            Command::ChangeRepository {
                change: RepoChange::SetKeySlots { .. } | RepoChange::Describe { .. },
                ..
            } => LEVEL_KEYS,
            Command::Migrate { .. }
            | Command::EndMigration { .. }
            | Command::RecordVerified { .. }
            | Command::SetUpkeep { .. } => LEVEL_MIGRATE,
            Command::ChangeRepository { .. }
            | Command::FormCluster { .. }
            | Command::PutNode { .. }
            | Command::SetNodeState { .. }
            | Command::CreateRepository { .. }
            | Command::OpenSession { .. }
            | Command::EndSessions { .. }
            | Command::CommitPacks { .. }
            | Command::CommitSnapshot { .. }
            | Command::PlaceShard { .. }
            | Command::ShardBad { .. }
            | Command::Recheck { .. }
            | Command::Swept { .. }
            | Command::CondemnPacks { .. }
            | Command::RevivePacks { .. }
            | Command::DropPacks { .. }
            | Command::CondemnOrphans { .. }
            | Command::CompactPacks { .. }
            | Command::AdmitNode { .. }
            | Command::StageTopology { .. }
            | Command::ChangeTopology { .. }
            | Command::RecordExport { .. }
            | Command::BeginEra { .. }
            | Command::RaiseLevel { .. } => LEVEL_FIRST,
        }
    }
}

/// What an operator changes in a repository.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum RepoChange {
    /// Moves snapshots to the trash, all or none; those that are not there are passed over. `bypass` ignores locks in
    /// governance mode.
    Forget { snapshots: Vec<SnapshotId>, bypass: bool },
    /// Takes snapshots out of the trash, all or none.
    Undelete { snapshots: Vec<SnapshotId> },
    /// Removes snapshots from the trash for good. Those whose time in it is not over are passed over unless `early`.
    Purge { snapshots: Vec<SnapshotId>, early: bool },
    /// Locks a snapshot, or extends its lock. `bypass` allows to shorten one in governance mode.
    LockSnapshot { snapshot: SnapshotId, lock: Lock, bypass: bool },
    /// Locks all snapshots from their commit on, or extends that. `bypass` allows to shorten or lift a lock in
    /// governance mode.
    Lock { lock: Option<RepoLock>, bypass: bool },
    /// Sets how long forgotten snapshots stay in the trash, milliseconds; `None` for the default.
    SetTrash { trash_ms: Option<u64> },
    /// Sets the retention policy that runs by itself; `None` for none.
    SetRetention { policy: Option<String> },
    /// All data of a snapshot was read and found right just now.
    MarkVerified { snapshot: SnapshotId },
    /// Sets what must be survived. Packs coded in another way than `scheme` are coded anew, one after the other; `scheme`
    /// is what the policy makes of the nodes of now.
    SetPolicy { policy: Policy, scheme: Scheme },
    /// Replaces the key slots, if those of now hash to `expected` (`RepoRecord::slots_hash`). Of two who looked at the same
    /// slots one is refused: neither undoes what the other did. There is always at least one. Repeating it is harmless.
    SetKeySlots { expected: [u8; 32], slots: Vec<Vec<u8>> },
    /// Replaces the sealed description of a snapshot and what nodes may know of its tags, if the description of now hashes to
    /// `expected` (`SnapshotRecord::sealed_hash`). What it needs, when it was committed, and its lock stay. Repeating it is
    /// harmless.
    Describe { snapshot: SnapshotId, expected: [u8; 32], sealed: Vec<u8>, tags: Vec<[u8; 8]> },
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
    /// So many of those named were concerned; the others were passed over.
    Changed { count: u32 },
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
    /// A lock keeps the snapshot.
    #[error("snapshot {0} is locked in {mode} mode until {until}", mode = .1.word(), until = rfc3339(*.2))]
    Locked(SnapshotId, LockMode, u64),
    /// The lock that is there may be extended only.
    #[error("the lock in {} mode that is there may be extended only", .0.word())]
    LockShortened(LockMode),
    /// No such snapshot, or it is in the trash where it should not be, or the other way round.
    #[error("there is no such snapshot: {0}")]
    NoSnapshot(SnapshotId),
    /// A chunk id that the reply names as unknown.
    #[error("chunk {0} is unknown")]
    NoChunk(ChunkId),
    /// The node's data directory is not the one it had.
    #[error("node {0} is known with another data directory; it has to join as a new node, with a new key")]
    Emptied(NodeId),
    /// Somebody else has changed the topology meanwhile.
    #[error(
        "the topology has changed since you looked: it is at epoch {0}; look again with `farshore cluster plan`"
    )]
    StaleTopology(u64),
    /// The program of a node can do less than the cluster uses.
    #[error(
        "the cluster is at feature level {cluster} and node {node} can do {level}: update its program, or raise \
         `feature_level_max` in its configuration"
    )]
    LevelBehind {
        /// Which node.
        node: NodeId,
        /// What it can do.
        level: u32,
        /// What the cluster uses.
        cluster: u32,
    },
    /// A node keeps the cluster from a feature level.
    #[error("node {0} can do feature level {1} only, so the cluster cannot go beyond it")]
    LevelHeld(NodeId, u32),
    /// The cluster is below the feature level of the command.
    #[error("this needs feature level {0} and the cluster is at {1}: update all nodes first")]
    LevelNeeded(u32, u32),
    /// A cold migration is under way.
    #[error(
        "nothing is written while region {0} moves to {1}; try again when `farshore cluster migrate` has ended"
    )]
    Frozen(Region, Region),
    /// Somebody else has changed the key slots meanwhile.
    #[error("the keys of the repository have changed since you looked; look again with `farshore key list`")]
    StaleKeys,
    /// Somebody else has changed the description of a snapshot meanwhile.
    #[error("snapshot {0} has been changed since you looked; try again")]
    StaleSnapshot(SnapshotId),
}
