//! For the tests of this module: nodes in a map.

use super::listing::{Listed, Listing};
use async_trait::async_trait;
use farshore_core::id::{NodeId, ShardHash, ShardId};
use farshore_core::shard::{PackInfo, ShardHeader};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What nodes hold, and how they misbehave.
#[derive(Default)]
pub struct Map {
    pub shards: BTreeMap<NodeId, BTreeMap<ShardId, ShardHeader>>,
    /// Calls that fail before one succeeds.
    pub hiccups: Mutex<usize>,
    pub dead: BTreeSet<NodeId>,
    pub headers_read: AtomicUsize,
}

impl Map {
    /// A node holds this shard.
    pub fn hold(&mut self, node: u64, info: &PackInfo, index: u8, hash: ShardHash) {
        let header = info.header(index, hash);
        self.shards.entry(NodeId(node)).or_default().insert(header.id, header);
    }
    pub fn nodes(&self) -> Vec<NodeId> {
        self.shards.keys().copied().collect()
    }
    fn answers(&self, node: NodeId) -> Result<(), String> {
        let mut hiccups = self.hiccups.lock().unwrap();
        let hiccup = *hiccups > 0;
        *hiccups = hiccups.saturating_sub(1);
        if hiccup || self.dead.contains(&node) { Err("dead".into()) } else { Ok(()) }
    }
}

#[async_trait]
impl Listing for Map {
    async fn page(
        &self,
        node: NodeId,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<ShardId>), String> {
        self.answers(node)?;
        let held = self.shards[&node].values().filter(|header| after.is_none_or(|after| header.id > after));
        let listed = |h: &ShardHeader| Listed { id: h.id, repo: h.repo, pack: h.pack, hash: h.hash };
        // Pages shorter than asked for, so that stripes lie on two of them.
        let rows: Vec<Listed> = held.take(limit.min(3)).map(listed).collect();
        let next = rows.last().map(|row| row.id);
        Ok((rows, next))
    }
    async fn headers(&self, node: NodeId, shards: &[ShardId]) -> Result<Vec<ShardHeader>, String> {
        self.answers(node)?;
        self.headers_read.fetch_add(shards.len(), Ordering::Relaxed);
        Ok(shards.iter().filter_map(|shard| self.shards[&node].get(shard).cloned()).collect())
    }
}
