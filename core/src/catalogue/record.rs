//! Rows of the catalogue. They are stored with postcard behind a version byte (docs/format.md): fields may be added
//! only together with a new version.

use crate::erasure::Scheme;
use crate::id::{
    ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, ShardHash, ShardId, SnapshotId, StripeId,
    hash_parts,
};
use crate::policy::Policy;
use crate::topology::{Name, Region};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// A tenant's encrypted backup store. What only the client may know is opaque here.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepoRecord {
    /// Drawn at random by the client that created it.
    pub id: RepoId,
    /// Unique in the cluster.
    pub name: Name,
    /// What must be survived, and the write floor.
    pub policy: Policy,
    /// Client-side configuration (chunker sizes, format version), sealed under the master key.
    pub sealed_config: Vec<u8>,
    /// Wrapped copies of the master key, one per passphrase or key file; opaque to nodes.
    pub key_slots: Vec<Vec<u8>>,
}

impl RepoRecord {
    /// What tells these key slots from any others.
    pub fn slots_hash(&self) -> [u8; 32] {
        slots_hash(&self.key_slots)
    }
}

impl SnapshotRecord {
    /// What tells this sealed description from any other.
    pub fn sealed_hash(&self) -> [u8; 32] {
        sealed_hash(&self.sealed)
    }
}

/// What tells a sealed description of a snapshot from any other.
pub fn sealed_hash(sealed: &[u8]) -> [u8; 32] {
    hash_parts(&[b"farshore snapshot description", sealed])
}

/// What tells a list of key slots from any other.
pub fn slots_hash(slots: &[Vec<u8>]) -> [u8; 32] {
    let parts = std::iter::once(b"farshore key slots".as_slice()).chain(slots.iter().map(Vec::as_slice));
    hash_parts(&parts.collect::<Vec<_>>())
}

/// A client's write lease. It ends by a command, never by a clock.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SessionRecord {
    /// Drawn by the client, so that a repeated open is harmless.
    pub id: SessionId,
    /// Repository it may commit to.
    pub repo: RepoId,
    /// Log index of the command that opened it; lookups are served at or after it.
    pub opened: u64,
    /// Catalogue time of opening.
    pub opened_ms: u64,
    /// Number of the next pack when it was opened: packs from here on may be the session's own and are never garbage
    /// while it is open.
    pub first_pack: PackNo,
}

/// What a pack is filled with; kinds never mix in a pack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum PackKind {
    /// File contents.
    Data,
    /// Directories and lists of chunk ids.
    Tree,
}

/// Where a chunk lies inside its pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkSpan {
    /// Which chunk.
    pub id: ChunkId,
    /// First byte of the sealed chunk in the pack.
    pub offset: u32,
    /// Length of the sealed chunk.
    pub len: u32,
}

/// A chunk as the catalogue knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkRecord {
    /// Never changes, even if the chunk moves to another pack.
    pub ordinal: Ordinal,
    /// Where it lies now.
    pub pack: PackNo,
    /// First byte of the sealed chunk in the pack.
    pub offset: u32,
    /// Length of the sealed chunk.
    pub len: u32,
}

/// One shard of a committed stripe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShardRecord {
    /// Who holds it durably; `None` while repair owes it.
    pub node: Option<NodeId>,
    /// What its payload must hash to.
    pub hash: ShardHash,
}

/// One coding of one pack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StripeRecord {
    /// See [`StripeId::of`].
    pub id: StripeId,
    /// k, m and the most shards a region may hold.
    pub scheme: Scheme,
    /// Payload bytes of each shard.
    pub shard_len: u64,
    /// Raised by every change of placement; maintenance changes a stripe by compare-and-set on it.
    pub generation: u64,
    /// Exactly n entries, by shard index.
    pub shards: Vec<ShardRecord>,
}

impl StripeRecord {
    /// The reference to one shard, for reading it. `None` if there is no such index.
    pub fn shard(&self, repo: RepoId, index: u8) -> Option<crate::peer::ShardRef> {
        let shard = self.shards.get(usize::from(index))?;
        Some(crate::peer::ShardRef {
            repo,
            id: ShardId { stripe: self.id, index },
            hash: shard.hash,
            payload_len: self.shard_len,
        })
    }
    /// Whether every shard is held, none doubled up on a node and no region above the spread limit. `region` tells
    /// the region of a node and whether the node still counts.
    pub fn at_target<'a>(&self, region: impl Fn(NodeId) -> Option<&'a Region>) -> bool {
        let mut nodes = BTreeMap::<NodeId, u8>::new();
        let mut regions = BTreeMap::<&str, u8>::new();
        for shard in &self.shards {
            let Some(node) = shard.node else { return false };
            let Some(region) = region(node) else { return false };
            let on_node = nodes.entry(node).or_default();
            let in_region = regions.entry(region.as_str()).or_default();
            *on_node += 1;
            *in_region += 1;
            if *on_node > 1 || *in_region > self.scheme.spread() {
                return false;
            }
        }
        true
    }
    /// Whether fewer shards than needed are held by nodes that count.
    pub fn is_lost(&self, counts: impl Fn(NodeId) -> bool) -> bool {
        let held = self.shards.iter().filter_map(|shard| shard.node).filter(|node| counts(*node));
        held.count() < self.scheme.k()
    }
    /// How many shards would remain if any single node more were lost; compare with k for the write floor.
    pub fn left_after_worst_node(&self) -> usize {
        let mut nodes = BTreeMap::<NodeId, usize>::new();
        for node in self.shards.iter().filter_map(|s| s.node) {
            *nodes.entry(node).or_default() += 1;
        }
        nodes.values().sum::<usize>() - nodes.values().max().copied().unwrap_or(0)
    }
}

/// A committed pack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackRecord {
    /// Dense over the cluster.
    pub no: PackNo,
    /// Hash of its bytes.
    pub id: PackId,
    /// Owner.
    pub repo: RepoId,
    /// What it is filled with.
    pub kind: PackKind,
    /// Bytes before coding.
    pub len: u64,
    /// Chunks in its table, dead ones included.
    pub chunks: u32,
    /// First ordinal given to its chunks; they are consecutive, `chunks` of them.
    pub first_ordinal: Ordinal,
    /// How it is coded and where its shards are.
    pub stripe: StripeRecord,
}

/// A pack as a client offers it for commit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PackCommit {
    /// Hash of its bytes.
    pub id: PackId,
    /// What it is filled with.
    pub kind: PackKind,
    /// Bytes before coding.
    pub len: u64,
    /// Its chunk table.
    pub chunks: Vec<ChunkSpan>,
    /// k, m and spread it was coded with.
    pub scheme: Scheme,
    /// Payload bytes of each shard.
    pub shard_len: u64,
    /// By shard index: hash, and who gave a receipt for it.
    pub shards: Vec<ShardRecord>,
}

/// What a snapshot was made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SnapshotKind {
    /// Every byte was read and hashed.
    Full,
    /// Built on the newest snapshot of its group.
    Incremental,
    /// Built on the newest full snapshot of its group.
    Differential,
}

impl SnapshotKind {
    /// Lower-case word used in JSON and tables.
    pub fn word(self) -> &'static str {
        match self {
            SnapshotKind::Full => "full",
            SnapshotKind::Incremental => "incremental",
            SnapshotKind::Differential => "differential",
        }
    }
}

/// What a client says of its snapshot in the clear, so that retention can be decided without keys. Nothing but the
/// client's word: order and age rest on catalogue time.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotLabel {
    /// Client's clock when the run began, Unix milliseconds.
    pub time_ms: u64,
    /// Offset of the client's local time from UTC in minutes, if known; days and weeks of retention are those there.
    pub utc_offset_min: Option<i16>,
    /// Length of all files, bytes.
    pub bytes: u64,
    /// Keyed hashes of its tags, ascending.
    pub tags: Vec<[u8; 8]>,
    /// A checkpoint of a run that has not ended: not listed, and replaced by the next one of the run.
    pub partial: bool,
}

/// A snapshot as nodes see it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Drawn by the client.
    pub id: SnapshotId,
    /// Owner.
    pub repo: RepoId,
    /// How it was made.
    pub kind: SnapshotKind,
    /// Snapshot it was built on, if any.
    pub parent: Option<SnapshotId>,
    /// Keyed hash of host and paths, so that retention can group without knowing them.
    pub group: [u8; 16],
    /// Catalogue time of the commit, and later than that of every earlier commit of the repository; 0 in a command,
    /// stamped by `apply`.
    pub committed_ms: u64,
    /// What retention may know.
    pub label: SnapshotLabel,
    /// Host, paths, user, tags, root of the tree, counts; sealed under the repository's key.
    pub sealed: Vec<u8>,
    /// Ordinals of every chunk the snapshot needs: a serialised `roaring::RoaringTreemap`.
    pub live: Vec<u8>,
}

/// How hard a lock is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum LockMode {
    /// Holds unless an operator says expressly that it shall not.
    Governance,
    /// Holds against everybody.
    Compliance,
}

impl LockMode {
    /// Lower-case word used on the command line and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            LockMode::Governance => "governance",
            LockMode::Compliance => "compliance",
        }
    }
}

/// Keeps a snapshot from being forgotten.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lock {
    /// How hard.
    pub mode: LockMode,
    /// Until this catalogue time, Unix milliseconds.
    pub until_ms: u64,
}

impl Lock {
    /// Whether it still holds at this catalogue time.
    pub fn holds(&self, now_ms: u64) -> bool {
        now_ms < self.until_ms
    }
    /// Whether it takes nothing away from another: as hard, and as long.
    pub fn covers(&self, other: &Lock) -> bool {
        self.mode >= other.mode && self.until_ms >= other.until_ms
    }
}

/// Locks every snapshot of a repository from its commit on.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepoLock {
    /// How hard.
    pub mode: LockMode,
    /// For how long after its commit, milliseconds.
    pub for_ms: u64,
}

impl RepoLock {
    /// The lock of a snapshot that was committed then.
    pub fn of(&self, committed_ms: u64) -> Lock {
        Lock { mode: self.mode, until_ms: committed_ms.saturating_add(self.for_ms) }
    }
    /// Whether it takes nothing away from another.
    pub fn covers(&self, other: &RepoLock) -> bool {
        self.mode >= other.mode && self.for_ms >= other.for_ms
    }
}

/// What an operator has set for a repository, and what the catalogue keeps beside it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct RepoSettings {
    /// Lock of every snapshot from its commit on.
    pub lock: Option<RepoLock>,
    /// How long forgotten snapshots stay in the trash, milliseconds of catalogue time;
    /// [`crate::limits::TRASH_MS_DEFAULT`] if not set.
    pub trash_ms: Option<u64>,
    /// Retention policy that runs by itself, in its readable form.
    pub retention: Option<String>,
    /// Catalogue time of the last commit of a snapshot.
    pub last_committed_ms: u64,
}

impl RepoSettings {
    /// How long forgotten snapshots stay in the trash, milliseconds of catalogue time.
    pub fn trash_ms(&self) -> u64 {
        self.trash_ms.unwrap_or(crate::limits::TRASH_MS_DEFAULT)
    }
}

/// What is left to do of a change of policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Recoding {
    /// The policy before. Packs that sessions of then still commit under it are taken, and coded anew as well.
    pub former: Policy,
    /// How packs shall be coded.
    pub scheme: Scheme,
    /// Packs below this number that are coded in another way are concerned. Newer ones follow the policy and the nodes of
    /// their own time.
    pub before: PackNo,
}

impl Recoding {
    /// Whether a pack shall be coded anew under the policy of now.
    pub fn concerns(&self, no: PackNo, scheme: Scheme, policy: &Policy) -> bool {
        !policy.admits(scheme) || (no < self.before && scheme != self.scheme)
    }
}

/// What is kept beside a snapshot and may change, unlike the snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotMarks {
    /// Lock of its own.
    pub lock: Option<Lock>,
    /// Catalogue time when all its data was last read and found right.
    pub verified_ms: Option<u64>,
    /// Catalogue time when it was forgotten: it lies in the trash.
    pub forgotten_ms: Option<u64>,
}

/// A pack without a live chunk, still readable, no longer offered to deduplication.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct CondemnedPack {
    /// Which pack.
    pub no: PackNo,
    /// Log index of its condemnation. Whoever was told before that its chunks are there holds a session opened before.
    pub at: u64,
}

/// A shard on a node that no committed stripe names there.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Orphan {
    /// Which shard.
    pub shard: ShardId,
    /// Session that sent it last; `None` if the cluster did, or if it is not known any more.
    pub session: Option<SessionId>,
    /// Applied index when the node first noticed that nobody names it.
    pub seen: u64,
}

/// A copy of a shard that a node should delete: the catalogue has given the shard another home, or found it bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Condemned {
    /// Who holds the copy.
    pub node: NodeId,
    /// Which shard.
    pub shard: ShardId,
}
