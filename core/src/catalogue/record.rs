//! Rows of the catalogue. They are stored with postcard behind a version byte (docs/format.md): fields may be added
//! only together with a new version.

use crate::erasure::Scheme;
use crate::id::{
    ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, ShardHash, ShardId, SnapshotId, StripeId,
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
    /// Catalogue time of the commit; 0 in a command, stamped by `apply`.
    pub committed_ms: u64,
    /// Host, paths, user, tags, root of the tree, counts; sealed under the repository's key.
    pub sealed: Vec<u8>,
    /// Ordinals of every chunk the snapshot needs: a serialised `roaring::RoaringTreemap`.
    pub live: Vec<u8>,
}

/// A copy of a shard that a node should delete: the catalogue has given the shard another home, or found it bad.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Condemned {
    /// Who holds the copy.
    pub node: NodeId,
    /// Which shard.
    pub shard: ShardId,
}
