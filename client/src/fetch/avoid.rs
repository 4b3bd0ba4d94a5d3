//! Reading as if some nodes were gone: nothing is asked of them. What a restore drill reads through.

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::id::NodeId;
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef};
use farshore_core::shard::ShardRange;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A [`ShardIo`] that refuses to go to some nodes.
pub struct Avoid {
    /// Everybody else.
    pub inner: Arc<dyn ShardIo>,
    /// Who is not asked.
    pub nodes: BTreeSet<NodeId>,
}

impl Avoid {
    fn check(&self, node: NodeId) -> Result<(), ShardError> {
        match self.nodes.contains(&node) {
            true => Err(ShardError::Unreachable(node, "its region is avoided".into())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl ShardIo for Avoid {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        self.check(node)?;
        self.inner.put(node, shard).await
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        self.check(node)?;
        self.inner.get(node, shard, ranges).await
    }
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        self.check(node)?;
        self.inner.verify(node, shard).await
    }
}
