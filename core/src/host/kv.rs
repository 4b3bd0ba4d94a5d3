//! The Kv seam: ordered tables with atomic batches and an explicit durability barrier.

use super::DiskFull;
use crate::limits::KV_KEY_BYTES_MAX;
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A table: one ordered set of keys.
pub type Table = u8;

/// A key and its value.
pub type KvPair = (Vec<u8>, Vec<u8>);

/// One change in a batch. Keys have 1 to [`KV_KEY_BYTES_MAX`] bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KvOp {
    /// Sets a value.
    Put(Table, Vec<u8>, Vec<u8>),
    /// Removes a key; not an error if absent.
    Delete(Table, Vec<u8>),
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum KvError {
    /// The engine or the disk below it failed.
    #[error("store failed: {0}")]
    Io(String),
    /// No room is left for it. What it holds is whole; it takes nothing more before it is opened again.
    #[error(transparent)]
    Full(#[from] DiskFull),
    /// Bytes in the store are not what was written.
    #[error("record in table {table} is corrupt: {what}")]
    Corrupt {
        /// Where.
        table: Table,
        /// What is wrong.
        what: String,
    },
    /// A file of the store is not what was written. It was left as it is; this store does not open again.
    #[error("store is damaged: {0}")]
    Damaged(String),
    /// Somebody else has it open; nothing is wrong with it.
    #[error("store is in use by this or another process")]
    InUse,
    /// A key that no store takes.
    #[error("a key of {0} bytes cannot be stored: 1 to {KV_KEY_BYTES_MAX} are allowed")]
    BadKey(usize),
    /// The engine cannot do this.
    #[error("this store cannot {0}")]
    Unsupported(&'static str),
}

impl KvError {
    /// Whether what is stored is not what was written: the same store will say so again.
    pub fn is_damage(&self) -> bool {
        matches!(self, KvError::Corrupt { .. } | KvError::Damaged(_))
    }
}

/// The last change of each key, in key order; `None` for a removed one.
pub type Changes = BTreeMap<(Table, Vec<u8>), Option<Vec<u8>>>;

/// What a batch comes to: every engine applies this instead of the batch, so that they agree on a key that is
/// changed twice.
pub fn settle(batch: Vec<KvOp>) -> Result<Changes, KvError> {
    let mut changes = BTreeMap::new();
    for op in batch {
        let (table, key, value) = match op {
            KvOp::Put(table, key, value) => (table, key, Some(value)),
            KvOp::Delete(table, key) => (table, key, None),
        };
        if !(1..=KV_KEY_BYTES_MAX).contains(&key.len()) {
            return Err(KvError::BadKey(key.len()));
        }
        changes.insert((table, key), value);
    }
    Ok(changes)
}

/// What a store is for; each kind has its engine (docs/decisions/0001).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum KvRole {
    /// Raft log, vote and catalogue: must never be lost.
    Catalogue,
    /// Shard index: can be rebuilt from the shard files.
    Index,
}

/// Opens stores. A store is opened at most once at a time.
#[async_trait]
pub trait KvFactory: Send + Sync {
    /// Opens or creates the store of this role.
    async fn open(&self, role: KvRole) -> Result<Arc<dyn Kv>, KvError>;
    /// Destroys the store of this role, so that it can be rebuilt. Only ever called for [`KvRole::Index`].
    async fn discard(&self, role: KvRole) -> Result<(), KvError>;
    /// Puts the damaged store of Raft log and catalogue out of the way, so that an empty one opens in its place. What was
    /// put away before goes.
    async fn put_away(&self) -> Result<(), KvError>;
}

/// Reading. Calls return at once or after a short disk read; they never wait for another task.
pub trait KvRead: Send + Sync {
    /// The value of a key.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError>;
    /// Up to `limit` pairs with `from <= key < to`, ascending.
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError>;
    /// As `scan`, but ends after the pair with which `bytes_max` is reached: rows may be megabytes each, and a page of
    /// them must not be. An engine that can stop in the middle of a scan should.
    fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<KvPair>, KvError> {
        let (mut from, mut found, mut bytes) = (from.to_vec(), Vec::new(), 0);
        while found.len() < limit && bytes < bytes_max {
            let Some((key, value)) = self.scan(table, &from, to, 1)?.pop() else { break };
            from = [key.as_slice(), &[0]].concat();
            bytes += key.len() + value.len();
            found.push((key, value));
        }
        Ok(found)
    }
    /// The pair with the greatest key in `from <= key < to`.
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError>;
}

/// A store. A batch is atomic and visible to reads at once; it survives a power loss once a `flush` that was called
/// after it has returned. Batches become durable in the order they were written, never a later without an earlier.
#[async_trait]
pub trait Kv: KvRead {
    /// Applies a batch.
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError>;
    /// Durability barrier.
    async fn flush(&self) -> Result<(), KvError>;
    /// A frozen view that later writes do not change, for streaming a large state while serving.
    /// The index engine has none and answers [`KvError::Unsupported`].
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError>;
}
