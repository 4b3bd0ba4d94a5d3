//! Repositories, packs and snapshots.

use super::common::{bytes, opt_node_id, payload_len};
use super::{at_most, list, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    ChunkSpan, PackCommit, PackKind, PackRecord, RepoRecord, ShardRecord, SnapshotKind, SnapshotLabel,
    SnapshotRecord, StripeRecord,
};
use farshore_core::erasure::Scheme;
use farshore_core::id::{ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, ShardHash, SnapshotId, StripeId};
use farshore_core::limits::{
    COMMIT_PACKS_MAX, KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX, LOOKUP_CHUNKS_MAX, PACK_BYTES_MAX, PACK_CHUNKS_MAX,
    REPO_CONFIG_BYTES_MAX, SNAPSHOT_BITMAP_BYTES_MAX, SNAPSHOT_SEALED_BYTES_MAX, STRIPE_SHARDS_MAX,
};

impl From<RepoRecord> for wire::Repository {
    fn from(repo: RepoRecord) -> Self {
        wire::Repository {
            id: bytes(repo.id.as_bytes()),
            name: repo.name.into(),
            policy: Some(repo.policy.into()),
            sealed_config: repo.sealed_config.into(),
            key_slots: repo.key_slots.into_iter().map(Into::into).collect(),
        }
    }
}
impl TryFrom<wire::Repository> for RepoRecord {
    type Error = ApiError;
    fn try_from(repo: wire::Repository) -> Result<Self, ApiError> {
        at_most(repo.sealed_config.len(), REPO_CONFIG_BYTES_MAX, "bytes of configuration")?;
        Ok(RepoRecord {
            id: RepoId::from_slice(&repo.id)?,
            name: repo.name.parse()?,
            policy: required(repo.policy, "policy")?.try_into()?,
            sealed_config: repo.sealed_config.into(),
            key_slots: key_slots(repo.key_slots)?,
        })
    }
}

/// As many key slots as a repository may have, none larger than it may be.
pub(super) fn key_slots(slots: Vec<bytes::Bytes>) -> Result<Vec<Vec<u8>>, ApiError> {
    list(slots, KEY_SLOTS_MAX, "key slots", |slot| {
        at_most(slot.len(), KEY_SLOT_BYTES_MAX, "bytes of a key slot")?;
        Ok(slot.into())
    })
}

impl From<ChunkSpan> for wire::ChunkSpan {
    fn from(span: ChunkSpan) -> Self {
        wire::ChunkSpan { id: bytes(span.id.as_bytes()), offset: span.offset, len: span.len }
    }
}
impl TryFrom<wire::ChunkSpan> for ChunkSpan {
    type Error = ApiError;
    fn try_from(span: wire::ChunkSpan) -> Result<Self, ApiError> {
        Ok(ChunkSpan { id: ChunkId::from_slice(&span.id)?, offset: span.offset, len: span.len })
    }
}

impl From<ShardRecord> for wire::ShardHolder {
    fn from(shard: ShardRecord) -> Self {
        wire::ShardHolder { node: shard.node.unwrap_or(NodeId(0)).0, hash: bytes(shard.hash.as_bytes()) }
    }
}
impl TryFrom<wire::ShardHolder> for ShardRecord {
    type Error = ApiError;
    fn try_from(shard: wire::ShardHolder) -> Result<Self, ApiError> {
        Ok(ShardRecord { node: opt_node_id(shard.node), hash: ShardHash::from_slice(&shard.hash)? })
    }
}

impl From<PackCommit> for wire::PackCommit {
    fn from(pack: PackCommit) -> Self {
        wire::PackCommit {
            id: bytes(pack.id.as_bytes()),
            tree: pack.kind == PackKind::Tree,
            len: pack.len,
            chunks: pack.chunks.into_iter().map(Into::into).collect(),
            scheme: Some(pack.scheme.into()),
            shard_len: pack.shard_len,
            shards: pack.shards.into_iter().map(Into::into).collect(),
        }
    }
}
impl TryFrom<wire::PackCommit> for PackCommit {
    type Error = ApiError;
    fn try_from(pack: wire::PackCommit) -> Result<Self, ApiError> {
        let scheme = required(pack.scheme, "scheme")?.try_into()?;
        let commit = PackCommit {
            id: PackId::from_slice(&pack.id)?,
            kind: pack_kind(pack.tree),
            len: pack_len(pack.len)?,
            chunks: list(pack.chunks, PACK_CHUNKS_MAX, "chunks of a pack", ChunkSpan::try_from)?,
            scheme,
            shard_len: payload_len(pack.shard_len)?,
            shards: holders(pack.shards, scheme)?,
        };
        if let Some(bad) = commit.chunks.iter().find(|c| u64::from(c.offset) + u64::from(c.len) > commit.len)
        {
            return Err(ApiError::Invalid(format!("chunk {:?} ends after its pack", bad.id)));
        }
        Ok(commit)
    }
}

fn pack_kind(tree: bool) -> PackKind {
    if tree { PackKind::Tree } else { PackKind::Data }
}

fn pack_len(len: u64) -> Result<u64, ApiError> {
    if len == 0 || len > PACK_BYTES_MAX as u64 {
        return Err(ApiError::Invalid(format!("no pack is {len} bytes long")));
    }
    Ok(len)
}

/// One entry for each shard of the scheme.
fn holders(shards: Vec<wire::ShardHolder>, scheme: Scheme) -> Result<Vec<ShardRecord>, ApiError> {
    let shards = list(shards, STRIPE_SHARDS_MAX, "shards of a stripe", ShardRecord::try_from)?;
    if shards.len() != scheme.n() {
        return Err(ApiError::Invalid(format!("{} shards do not make a stripe of {scheme}", shards.len())));
    }
    Ok(shards)
}

/// The packs of one commit call.
pub fn pack_commits(packs: Vec<wire::PackCommit>) -> Result<Vec<PackCommit>, ApiError> {
    list(packs, COMMIT_PACKS_MAX, "packs", PackCommit::try_from)
}

/// The ids of one lookup or locate call.
pub fn chunk_ids(ids: Vec<bytes::Bytes>) -> Result<Vec<ChunkId>, ApiError> {
    list(ids, LOOKUP_CHUNKS_MAX, "chunk ids", |id| Ok(ChunkId::from_slice(&id)?))
}

impl From<PackCommitted> for wire::PackCommitted {
    fn from(pack: PackCommitted) -> Self {
        wire::PackCommitted {
            id: bytes(pack.id.as_bytes()),
            no: pack.no.0,
            ordinals: pack.ordinals.into_iter().map(|o| o.0).collect(),
        }
    }
}
impl TryFrom<wire::PackCommitted> for PackCommitted {
    type Error = ApiError;
    fn try_from(pack: wire::PackCommitted) -> Result<Self, ApiError> {
        Ok(PackCommitted {
            id: PackId::from_slice(&pack.id)?,
            no: PackNo(pack.no),
            ordinals: list(pack.ordinals, PACK_CHUNKS_MAX, "ordinals of a pack", |o| Ok(Ordinal(o)))?,
        })
    }
}

impl From<PackRecord> for wire::Pack {
    fn from(pack: PackRecord) -> Self {
        wire::Pack {
            no: pack.no.0,
            id: bytes(pack.id.as_bytes()),
            repo: bytes(pack.repo.as_bytes()),
            tree: pack.kind == PackKind::Tree,
            len: pack.len,
            chunks: pack.chunks,
            first_ordinal: pack.first_ordinal.0,
            stripe: bytes(pack.stripe.id.as_bytes()),
            scheme: Some(pack.stripe.scheme.into()),
            shard_len: pack.stripe.shard_len,
            generation: pack.stripe.generation,
            shards: pack.stripe.shards.into_iter().map(Into::into).collect(),
        }
    }
}
impl TryFrom<wire::Pack> for PackRecord {
    type Error = ApiError;
    fn try_from(pack: wire::Pack) -> Result<Self, ApiError> {
        let scheme = required(pack.scheme, "scheme")?.try_into()?;
        at_most(pack.chunks as usize, PACK_CHUNKS_MAX, "chunks of a pack")?;
        Ok(PackRecord {
            no: PackNo(pack.no),
            id: PackId::from_slice(&pack.id)?,
            repo: RepoId::from_slice(&pack.repo)?,
            kind: pack_kind(pack.tree),
            len: pack_len(pack.len)?,
            chunks: pack.chunks,
            first_ordinal: Ordinal(pack.first_ordinal),
            stripe: StripeRecord {
                id: StripeId::from_slice(&pack.stripe)?,
                scheme,
                shard_len: payload_len(pack.shard_len)?,
                generation: pack.generation,
                shards: holders(pack.shards, scheme)?,
            },
        })
    }
}

impl From<SnapshotRecord> for wire::Snapshot {
    fn from(snapshot: SnapshotRecord) -> Self {
        wire::Snapshot {
            id: bytes(snapshot.id.as_bytes()),
            repo: bytes(snapshot.repo.as_bytes()),
            kind: snapshot.kind.word().into(),
            parent: snapshot.parent.map(|id| bytes(id.as_bytes())).unwrap_or_default(),
            group: bytes(&snapshot.group),
            committed_ms: snapshot.committed_ms,
            sealed: snapshot.sealed.into(),
            live: snapshot.live.into(),
            label: Some(snapshot.label.into()),
            marks: None,
        }
    }
}
impl TryFrom<wire::Snapshot> for SnapshotRecord {
    type Error = ApiError;
    fn try_from(snapshot: wire::Snapshot) -> Result<Self, ApiError> {
        at_most(snapshot.sealed.len(), SNAPSHOT_SEALED_BYTES_MAX, "bytes of a snapshot's description")?;
        at_most(snapshot.live.len(), SNAPSHOT_BITMAP_BYTES_MAX, "bytes of a snapshot's bitmap")?;
        let group = <[u8; 16]>::try_from(snapshot.group.as_ref());
        Ok(SnapshotRecord {
            id: SnapshotId::from_slice(&snapshot.id)?,
            repo: RepoId::from_slice(&snapshot.repo)?,
            kind: snapshot_kind(&snapshot.kind)?,
            parent: opt_snapshot_id(&snapshot.parent)?,
            group: group.map_err(|_| ApiError::Invalid("a snapshot's group has 16 bytes".into()))?,
            committed_ms: snapshot.committed_ms,
            label: snapshot.label.map(SnapshotLabel::try_from).transpose()?.unwrap_or_default(),
            sealed: snapshot.sealed.into(),
            live: snapshot.live.into(),
        })
    }
}

fn snapshot_kind(word: &str) -> Result<SnapshotKind, ApiError> {
    [SnapshotKind::Full, SnapshotKind::Incremental, SnapshotKind::Differential]
        .into_iter()
        .find(|kind| kind.word() == word)
        .ok_or_else(|| ApiError::Invalid(format!("no snapshot is {word:?}")))
}

/// Empty stands for "none".
pub fn opt_snapshot_id(id: &[u8]) -> Result<Option<SnapshotId>, ApiError> {
    if id.is_empty() { Ok(None) } else { Ok(Some(SnapshotId::from_slice(id)?)) }
}
