//! The shard envelope on disk and on the wire.

use crate::erasure::Scheme;
use crate::id::{ClusterId, PackId, RepoId, ShardHash, ShardId};

/// A byte range of a shard's payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ShardRange {
    /// First byte.
    pub offset: u64,
    /// Length; at least 1.
    pub len: u64,
}

/// Everything a shard says about itself, so that a catalogue can be rebuilt from shards alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardHeader {
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Pack it codes.
    pub pack: PackId,
    /// Bytes of the pack before padding.
    pub pack_len: u64,
    /// Stripe and index.
    pub id: ShardId,
    /// k, m and spread.
    pub scheme: Scheme,
    /// Which code and matrix, see [`crate::erasure::CODEC_RS`].
    pub codec: u8,
    /// Payload bytes.
    pub payload_len: u64,
    /// Root hash over the payload.
    pub hash: ShardHash,
}
