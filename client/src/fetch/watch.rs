//! Counts what reading costs and meets on its way, without changing it: bytes, bad shards, silent nodes.

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::id::{NodeId, ShardId};
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef};
use farshore_core::shard::ShardRange;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

/// What was met since this was made.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Met {
    /// Payload bytes that arrived and were good.
    pub bytes: u64,
    /// Shards that were missing or corrupt, and where.
    pub bad: BTreeSet<(ShardId, NodeId)>,
    /// Nodes that did not answer at least once.
    pub silent: BTreeSet<NodeId>,
}

/// A [`ShardIo`] that keeps count.
pub struct Watch {
    inner: Arc<dyn ShardIo>,
    met: Mutex<Met>,
}

impl Watch {
    /// Counts from zero.
    pub fn new(inner: Arc<dyn ShardIo>) -> Self {
        Watch { inner, met: Mutex::default() }
    }
    /// The counts so far.
    pub fn met(&self) -> Met {
        self.lock().clone()
    }
    fn lock(&self) -> MutexGuard<'_, Met> {
        self.met.lock().expect("no holder of this lock panics")
    }
    fn note(&self, error: &ShardError) {
        match error {
            ShardError::Missing(node, shard) | ShardError::Corrupt(node, shard, _) => {
                self.lock().bad.insert((*shard, *node));
            }
            ShardError::Unreachable(node, _) => {
                self.lock().silent.insert(*node);
            }
            ShardError::Full(..) | ShardError::Refused(..) => {}
        }
    }
}

#[async_trait]
impl ShardIo for Watch {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        self.inner.put(node, shard).await
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        let result = self.inner.get(node, shard, ranges).await;
        match &result {
            Ok(parts) => self.lock().bytes += parts.iter().map(|p| p.len() as u64).sum::<u64>(),
            Err(error) => self.note(error),
        }
        result
    }
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        let result = self.inner.verify(node, shard).await;
        if let Err(error) = &result {
            self.note(error);
        }
        result
    }
}
