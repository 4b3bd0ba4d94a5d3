//! `CatalogueApi`: what the client asks of the catalogue, in core types only. gRPC in life (`session`), a small
//! in-memory one in unit tests. It never touches shard bytes; those go through `farshore_core::peer::ShardIo`.

use crate::error::Result;
use async_trait::async_trait;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    Migration, PackCommit, PackRecord, RepoChange, RepoRecord, RepoSettings, SnapshotMarks, SnapshotRecord,
};
use farshore_core::id::{
    ChunkId, ClusterId, NodeId, Ordinal, PackNo, RepoId, SessionId, SnapshotId, StripeId,
};
use farshore_core::topology::{Name, NodeRecord};
use std::collections::BTreeMap;

/// Who exists, as one replica saw it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Every node it knows, by id.
    pub nodes: Vec<NodeRecord>,
    /// Leader of the Raft group, if the replica knows one.
    pub leader: Option<NodeId>,
    /// Log index of the answering replica.
    pub applied: u64,
    /// Nodes that answer and are so slow that others are better asked first.
    pub slow: Vec<NodeId>,
}

impl Topology {
    /// The name of a node for people, or its id if it is not known.
    pub fn name_of(&self, node: NodeId) -> String {
        self.nodes.iter().find(|n| n.id == node).map_or_else(|| node.to_string(), |n| n.name.to_string())
    }
}

/// An open write lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenedSession {
    /// Drawn by us, so that a repeated open is harmless.
    pub id: SessionId,
    /// Log index that opened it.
    pub opened: u64,
}

/// A committed snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SnapshotCommitted {
    /// Catalogue time of the commit, Unix milliseconds.
    pub committed_ms: u64,
    /// How many of its packs are not at full strength yet.
    pub under_target: u32,
}

/// One page of a listing of snapshots. `live` bitmaps are left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SnapshotPage {
    /// In the order of their ids.
    pub snapshots: Vec<SnapshotRecord>,
    /// What is kept beside each of them, in the same order.
    pub marks: Vec<SnapshotMarks>,
    /// Ask again after the last id.
    pub more: bool,
}

/// One page of a listing of packs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PackPage {
    /// In the order of their numbers.
    pub packs: Vec<PackRecord>,
    /// Ask again from here; `None` at the end.
    pub next: Option<PackNo>,
}

/// Where one chunk lies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChunkPlace {
    /// Its number.
    pub ordinal: Ordinal,
    /// Its pack.
    pub pack: PackNo,
    /// First byte of the sealed chunk in the pack.
    pub offset: u32,
    /// Length of the sealed chunk.
    pub len: u32,
}

/// Answer to `locate`. Every pack a place names is in `packs`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Located {
    /// One per id asked, in order; `None` if the catalogue has no such chunk.
    pub places: Vec<Option<ChunkPlace>>,
    /// The packs, each once.
    pub packs: BTreeMap<PackNo, PackRecord>,
}

/// A node in a status report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeStatus {
    /// Who it is.
    pub node: NodeRecord,
    /// Whether it has a vote in the Raft group.
    pub voter: bool,
    /// Whether the leader has heard it since it leads. What a node says of itself is 0 before that.
    pub heard: bool,
    /// Bytes of shards held.
    pub used: u64,
    /// Bytes its disk still has.
    pub free: u64,
    /// Shards held.
    pub shards: u64,
    /// Milliseconds since its last heartbeat, as the leader saw it.
    pub silent_ms: u64,
    /// Milliseconds until it is declared lost; 0 if up or lost.
    pub grace_left_ms: u64,
    /// Milliseconds by which its calendar is ahead of catalogue time, as far as the leader knows; 0 if it does not.
    pub clock_offset_ms: i64,
    /// Feature level that its program can do.
    pub feature_level: u32,
    /// Microseconds that its heartbeats take, there and back, the quickest of the last ones; 0 if not known.
    pub rtt_us: u64,
    /// Microseconds that its disk takes for a MiB, or for a call about less; 0 if not known.
    pub disk_us: u64,
    /// Too slow beside others of its region, so that it is read from last.
    pub slow: bool,
    /// How often it fell silent and came back lately.
    pub flaps: u32,
    /// It is heard again and counts as up only if it stays for so many milliseconds; 0 if nothing is held against it.
    pub held_ms: u64,
}

/// What repair is doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairStatus {
    /// Waiting.
    pub queued: u64,
    /// Running now.
    pub running: u64,
    /// Shards rebuilt since this leader took over.
    pub rebuilt: u64,
    /// Of those, shards that their node still had, so that nothing was sent.
    pub kept: u64,
    /// Attempts that failed.
    pub failed: u64,
    /// What the last one failed with.
    pub last_error: String,
    /// Shards reported missing or corrupt since this leader took over.
    pub bad_found: u64,
    /// Bytes moved by repair from one region to another since this leader took over: from, to, bytes.
    pub links: Vec<(String, String, u64)>,
    /// What would have been moved between regions had each shard been sent as it is.
    pub singly_bytes: u64,
    /// Nodes that sent sums which are not those of their shards.
    pub liars: Vec<NodeId>,
    /// Which budget keeps what waits; empty if none does.
    pub held: String,
    /// What moving shards has cost in this day, by this leader, in millionths of the currency unit.
    pub spent_micros: u64,
    /// Bytes of the shards waiting and running.
    pub queued_bytes: u64,
    /// More would wait if there were room.
    pub queue_full: bool,
    /// Shards rebuilt within `recent_ms`.
    pub recent_shards: u64,
    /// Their bytes.
    pub recent_bytes: u64,
    /// A minute, or less if the work began later.
    pub recent_ms: u64,
    /// Milliseconds since the last failure.
    pub failed_ago_ms: u64,
    /// Some of what is running and waiting, most urgent first.
    pub urgent: Vec<UrgentRepair>,
}

/// A task of repair.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UrgentRepair {
    /// Which stripe.
    pub stripe: StripeId,
    /// Which of its shards.
    pub index: u32,
    /// Who shall hold it.
    pub to: NodeId,
    /// Good shards beyond those needed.
    pub spare: i32,
    /// The same after the worst loss of one region.
    pub spare_after_region: i32,
    /// Under way.
    pub running: bool,
}

/// The whole picture.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterStatus {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Who answered.
    pub answering: NodeId,
    /// Leader, if one is known.
    pub leader: Option<NodeId>,
    /// Raft term.
    pub term: u64,
    /// Log index of the answering replica.
    pub applied: u64,
    /// No leader confirmed this answer.
    pub stale: bool,
    /// Feature level that the cluster uses.
    pub feature_level: u32,
    /// Every node.
    pub nodes: Vec<NodeStatus>,
    /// Repair.
    pub repair: RepairStatus,
    /// Packs of all repositories.
    pub packs: u64,
    /// Packs below full strength.
    pub under_target: u64,
    /// Packs with exactly k good shards.
    pub endangered: u64,
    /// Packs with fewer than k good shards.
    pub unreadable: u64,
    /// Every pack would survive the loss of any one region more.
    pub survives_region: bool,
    /// Regions whose loss would make something unreadable.
    pub fatal_regions: Vec<String>,
    /// Catalogue time, Unix milliseconds.
    pub catalogue_ms: u64,
    /// Hash of the replica's state.
    pub state_hash: Vec<u8>,
    /// The oldest change of the catalogue that no export has is this old, in milliseconds; 0 if all are exported.
    pub unexported_ms: u64,
    /// Why the last export failed.
    pub export_error: String,
    /// Shortest time between exports, in milliseconds; 0 if they are turned off.
    pub export_every_ms: u64,
    /// Regions that are being emptied into others.
    pub migrations: Vec<Migration>,
    /// No node re-reads its shards by itself.
    pub scrub_paused: bool,
}

/// What garbage there is in a repository. Packs, and their bytes before coding.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GarbageReport {
    /// All packs.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packs without a live chunk that are not condemned yet.
    pub dead: u64,
    /// Their bytes.
    pub dead_bytes: u64,
    /// Packs condemned and not deleted yet.
    pub condemned: u64,
    /// Their bytes.
    pub condemned_bytes: u64,
    /// Of those, packs that wait for a session opened before their condemnation.
    pub waiting: u64,
    /// Packs without a live chunk that may belong to an open session.
    pub in_use: u64,
    /// Their bytes.
    pub in_use_bytes: u64,
    /// Packs that are mostly garbage.
    pub sparse: u64,
    /// Bytes of garbage in them.
    pub sparse_bytes: u64,
    /// Packs coded in another way than the policy asks for now.
    pub recode: u64,
    /// Their bytes.
    pub recode_bytes: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Snapshots in the trash.
    pub trash: u64,
    /// Packs deleted by this call.
    pub dropped: u64,
    /// Their bytes.
    pub dropped_bytes: u64,
    /// There is more to collect at once: call again.
    pub more: bool,
    /// Packs emptied into others by this call.
    pub compacted: u64,
    /// Copies of shards, of all repositories, that their nodes have not deleted yet.
    pub unswept: u64,
}

/// Calls to the catalogue. All are idempotent by the ids inside, so an implementation may repeat them; lists longer
/// than the limits of `farshore_core::limits` are the caller's mistake. Cancel-safe: dropping a call abandons it.
#[async_trait]
pub trait CatalogueApi: Send + Sync {
    /// Who exists.
    async fn topology(&self) -> Result<Topology>;
    /// Creates a repository, or finds that exactly this one is there already.
    async fn create_repository(&self, repo: RepoRecord) -> Result<RepoRecord>;
    /// Finds a repository by name.
    async fn get_repository(&self, name: &Name) -> Result<RepoRecord>;
    /// Opens a write lease under an id the caller has drawn at random. `seen` is the applied index of a topology the
    /// caller was told; an id that has ended is not opened again.
    async fn open_session(&self, session: SessionId, repo: RepoId, seen: u64) -> Result<OpenedSession>;
    /// Keeps a lease alive.
    async fn renew_session(&self, session: SessionId) -> Result<()>;
    /// Ends a lease.
    async fn close_session(&self, session: SessionId) -> Result<()>;
    /// Which of these chunks (at most `LOOKUP_CHUNKS_MAX`) are there? One answer per id, in order.
    async fn lookup(&self, session: SessionId, repo: RepoId, ids: &[ChunkId])
    -> Result<Vec<Option<Ordinal>>>;
    /// Records uploaded packs (at most `COMMIT_PACKS_MAX`), all or none; one answer per pack, in order.
    async fn commit_packs(&self, session: SessionId, packs: Vec<PackCommit>) -> Result<Vec<PackCommitted>>;
    /// Records a snapshot. The checkpoint it replaces, if any, goes in the same step.
    async fn commit_snapshot(
        &self,
        session: SessionId,
        snapshot: SnapshotRecord,
        replaces: Option<SnapshotId>,
    ) -> Result<SnapshotCommitted>;
    /// Snapshots of a repository after an id, by id; or those in its trash.
    async fn list_snapshots(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        trash: bool,
    ) -> Result<SnapshotPage>;
    /// Changes snapshots or settings of a repository; how many snapshots were concerned.
    async fn change_repository(&self, repo: RepoId, change: RepoChange) -> Result<u32>;
    /// Settings of a repository, and catalogue time, Unix milliseconds.
    async fn settings(&self, repo: RepoId) -> Result<(RepoSettings, u64)>;
    /// What garbage there is; unless `dry_run`, what can be collected at once is collected first.
    async fn collect_garbage(&self, repo: RepoId, dry_run: bool) -> Result<GarbageReport>;
    /// Where these chunks (at most `LOOKUP_CHUNKS_MAX`) lie.
    async fn locate(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Located>;
    /// Packs of a repository from a number on.
    async fn list_packs(&self, repo: RepoId, from: PackNo) -> Result<PackPage>;
    /// The whole picture.
    async fn status(&self) -> Result<ClusterStatus>;
}
