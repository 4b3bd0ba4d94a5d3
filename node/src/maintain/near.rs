//! Shards of this node from its own store, those of others over the network: nothing goes out and comes back in.

use super::report::Reports;
use crate::store::{ShardStore, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::id::{NodeId, ShardId};
use farshore_core::limits::FRAME_BYTES;
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef};
use farshore_core::shard::ShardRange;
use farshore_proto::shard_client::Ranges;
use std::sync::Arc;

/// [`ShardIo`] of one node.
pub struct Near {
    own: NodeId,
    store: Arc<ShardStore>,
    reports: Arc<Reports>,
    far: Arc<dyn ShardIo>,
}

impl Near {
    /// The shards of `own` are in `store`, all others are asked of `far`.
    pub fn new(own: NodeId, store: Arc<ShardStore>, reports: Arc<Reports>, far: Arc<dyn ShardIo>) -> Self {
        Near { own, store, reports, far }
    }

    /// As others see it; a shard that should be here and whole is looked at again.
    fn noted(&self, id: ShardId, error: StoreError) -> ShardError {
        if matches!(error, StoreError::Missing(_) | StoreError::Corrupt(..)) {
            self.reports.suspect(id);
        }
        error.on_node(self.own)
    }

    async fn keep(&self, shard: ShardPut) -> Result<Receipt, StoreError> {
        let id = shard.header.id;
        let mut put = self.store.begin_put(shard.header, shard.session).await?;
        for from in (0..shard.payload.len()).step_by(FRAME_BYTES) {
            let to = shard.payload.len().min(from + FRAME_BYTES);
            put.write(shard.payload.slice(from..to)).await?;
        }
        Ok(Receipt { node: self.own, shard: id, hash: put.finish().await? })
    }

    async fn read(&self, shard: ShardRef, ranges: &[ShardRange]) -> Result<Option<Vec<Bytes>>, StoreError> {
        let (sums, pieces) = self.store.get_blocks(shard.id, shard.hash, ranges).await?;
        let Some(mut wanted) = Ranges::new(sums, ranges) else { return Ok(None) };
        for (first, bytes) in pieces {
            wanted.take(first, bytes).map_err(|why| StoreError::Corrupt(shard.id, why))?;
        }
        Ok(wanted.finish())
    }
}

#[async_trait]
impl ShardIo for Near {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        if node != self.own {
            return self.far.put(node, shard).await;
        }
        self.keep(shard).await.map_err(|error| error.on_node(node))
    }

    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        if node != self.own {
            return self.far.get(node, shard, ranges).await;
        }
        let read = self.read(shard, ranges).await.map_err(|error| self.noted(shard.id, error))?;
        read.ok_or_else(|| ShardError::Refused(node, "a range leaves the shard".into()))
    }

    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        if node != self.own {
            return self.far.verify(node, shard).await;
        }
        let verified = self.store.verify(shard.id, shard.hash).await;
        verified.map_err(|error| self.noted(shard.id, error))
    }
}
