//! Shards in a map, with faults to order; for tests only.

use crate::erasure::{Codec, Scheme};
use crate::id::{ClusterId, NodeId, PackId, RepoId, ShardId};
use crate::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef};
use crate::shard::{PackInfo, ShardRange, hash_shard};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

/// What a node does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    Unreachable,
    UnreachableOnce,
    Missing,
    Corrupt,
    Full,
    Refuse,
    WrongReceipt,
    ShortRead,
    Slow(Duration),
}

#[derive(Default)]
pub struct FakeIo {
    shards: Mutex<BTreeMap<(NodeId, ShardId), Bytes>>,
    faults: Mutex<BTreeMap<NodeId, Fault>>,
    calls: Mutex<BTreeMap<NodeId, usize>>,
    bytes_read: Mutex<u64>,
}

impl FakeIo {
    pub fn new() -> Self {
        Self::default()
    }
    pub fn set(&self, node: NodeId, fault: Fault) {
        self.faults.lock().unwrap().insert(node, fault);
    }
    pub fn clear(&self, node: NodeId) {
        self.faults.lock().unwrap().remove(&node);
    }
    pub fn calls(&self, node: NodeId) -> usize {
        self.calls.lock().unwrap().get(&node).copied().unwrap_or(0)
    }
    pub fn bytes_read(&self) -> u64 {
        std::mem::take(&mut self.bytes_read.lock().unwrap())
    }
    pub fn stored(&self, node: NodeId, id: ShardId) -> Option<Bytes> {
        self.shards.lock().unwrap().get(&(node, id)).cloned()
    }
    pub fn store(&self, node: NodeId, id: ShardId, payload: Bytes) {
        self.shards.lock().unwrap().insert((node, id), payload);
    }

    async fn meet(&self, node: NodeId, id: ShardId) -> Result<Option<Fault>, ShardError> {
        *self.calls.lock().unwrap().entry(node).or_default() += 1;
        let fault = self.faults.lock().unwrap().get(&node).copied();
        match fault {
            Some(Fault::Unreachable) => Err(ShardError::Unreachable(node, "dead".into())),
            Some(Fault::UnreachableOnce) => {
                self.clear(node);
                Err(ShardError::Unreachable(node, "hiccup".into()))
            }
            Some(Fault::Missing) => Err(ShardError::Missing(node, id)),
            Some(Fault::Corrupt) => Err(ShardError::Corrupt(node, id, "rot".into())),
            Some(Fault::Full) => Err(ShardError::Full(node, "no room".into())),
            Some(Fault::Refuse) => Err(ShardError::Refused(node, "no grant".into())),
            Some(Fault::Slow(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(fault)
            }
            Some(Fault::WrongReceipt | Fault::ShortRead) | None => Ok(fault),
        }
    }
}

#[async_trait]
impl ShardIo for FakeIo {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        tokio::task::yield_now().await;
        let id = shard.header.id;
        let fault = self.meet(node, id).await?;
        let (mut hash, _) = hash_shard(id, &shard.payload);
        self.store(node, id, shard.payload);
        if fault == Some(Fault::WrongReceipt) {
            hash.0[0] ^= 1;
        }
        Ok(Receipt { node, shard: id, hash })
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        tokio::task::yield_now().await;
        let fault = self.meet(node, shard.id).await?;
        let payload = self.stored(node, shard.id).ok_or(ShardError::Missing(node, shard.id))?;
        if hash_shard(shard.id, &payload).0 != shard.hash {
            return Err(ShardError::Corrupt(node, shard.id, "hash".into()));
        }
        let cut = u64::from(fault == Some(Fault::ShortRead));
        *self.bytes_read.lock().unwrap() += ranges.iter().map(|r| r.len).sum::<u64>();
        Ok(ranges
            .iter()
            .map(|r| payload.slice(r.offset as usize..(r.offset + r.len - cut) as usize))
            .collect())
    }
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        self.get(node, shard, &[]).await.map(|_| ())
    }
}

/// The shards of a pack, ready to be sent.
pub fn puts_of(scheme: Scheme, pack: &[u8]) -> Vec<ShardPut> {
    let info = PackInfo {
        cluster: ClusterId([1; 16]),
        repo: RepoId([2; 16]),
        pack: PackId::of(pack),
        pack_len: pack.len() as u64,
        scheme,
    };
    let payloads = Codec::new(scheme).encode_pack(Bytes::copy_from_slice(pack));
    let put = |(index, payload): (usize, Bytes)| {
        let (hash, _) = hash_shard(info.shard(index as u8), &payload);
        ShardPut { header: info.header(index as u8, hash), payload, session: None }
    };
    payloads.into_iter().enumerate().map(put).collect()
}
