//! `ShardIo`: what anyone may ask of a shard on another node. Nothing deletes remotely, so there is no delete.

use crate::id::{NodeId, RepoId, SessionId, ShardHash, ShardId};
use crate::retry::Retry;
use crate::shard::{ShardHeader, ShardRange};
use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;

/// Why a shard call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// No connection, or it broke, or it stalled.
    #[error("node {0} is unreachable: {1}")]
    Unreachable(NodeId, String),
    /// The node has no such shard.
    #[error("node {0} does not hold shard {1}")]
    Missing(NodeId, ShardId),
    /// The node found, or we found, that the bytes are not what was recorded.
    #[error("shard {1} on node {0} is corrupt: {2}")]
    Corrupt(NodeId, ShardId, String),
    /// The node has no room.
    #[error("node {0} is full: {1}")]
    Full(NodeId, String),
    /// The node refuses this call for good (wrong cluster, no grant, bad request).
    #[error("node {0} refused: {1}")]
    Refused(NodeId, String),
}

impl ShardError {
    /// Whether to ask again, and where.
    pub fn retry(&self) -> Retry {
        match self {
            ShardError::Unreachable(..) => Retry::Later,
            ShardError::Missing(..) | ShardError::Corrupt(..) | ShardError::Full(..) => Retry::Elsewhere,
            ShardError::Refused(..) => Retry::Never,
        }
    }
}

/// A shard ready to be sent: header with the hash already computed, and payload.
#[derive(Clone, Debug)]
pub struct ShardPut {
    /// Self-describing header; its hash has been computed by the sender and is checked by the node.
    pub header: ShardHeader,
    /// Exactly `header.payload_len` bytes.
    pub payload: Bytes,
    /// Session under which the pack will be committed; `None` when the cluster repairs.
    pub session: Option<SessionId>,
}

/// Proof that a node has made a shard durable: it synced file and directory and checked the hash first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// Who holds it, known by its certificate.
    pub node: NodeId,
    /// What it holds.
    pub shard: ShardId,
    /// Hash the node computed itself.
    pub hash: ShardHash,
}

/// Names one stored shard and what it must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardRef {
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Which shard.
    pub id: ShardId,
    /// Recorded hash; everything received is checked against it.
    pub hash: ShardHash,
    /// Recorded payload length in bytes.
    pub payload_len: u64,
}

/// One shard in a sum.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Term {
    /// Who holds it.
    pub node: NodeId,
    /// Which it is.
    pub shard: ShardRef,
    /// What each of its bytes is multiplied by, in GF(2^8).
    pub factor: u8,
}

/// Pieces of a sum, from the first byte to the last.
pub type SumPieces = BoxStream<'static, Result<Bytes, ShardError>>;

/// Sums made on other nodes. Nobody vouches for one: only the shard that is made of all of them can be checked.
#[async_trait]
pub trait SumIo: Send + Sync {
    /// Has `relay` read these shards, which it checks as every reader does, and add them up. Each piece but the last has
    /// [`SUM_PIECE_BYTES`](crate::limits::SUM_PIECE_BYTES).
    async fn sum(&self, relay: NodeId, terms: &[Term]) -> Result<SumPieces, ShardError>;
}

/// Calls to shards on other nodes: gRPC in life, a map in unit tests. Cancel-safe: dropping a call abandons it.
#[async_trait]
pub trait ShardIo: Send + Sync {
    /// Stores a shard durably. Repeating a put of the same shard is harmless.
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError>;
    /// Reads byte ranges of the payload. Every returned byte has been verified against `shard.hash`, whatever the
    /// node claims. Ranges come back in the order asked, each exactly as long as asked.
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError>;
    /// Has the node re-read its whole shard and compare it with `shard.hash`.
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError>;
}
