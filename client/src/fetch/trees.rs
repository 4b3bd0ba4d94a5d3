//! Tree chunks one by one, as walks want them, at the cost of a few large reads: neighbours of a wanted chunk in its
//! pack are wanted next, so a whole block of the pack is read and kept sealed.

use super::{ChunkReader, unknown};
use crate::error::Result;
use crate::format::{ChunkSource, Opener};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::{ChunkSpan, PackKind, PackRecord};
use farshore_core::gather::PackRange;
use farshore_core::host::compute;
use farshore_core::id::{ChunkId, PackNo};
use farshore_core::limits::{TREE_BLOCK_BYTES, TREE_CACHE_BYTES};
use farshore_core::pack::{read_table, tail_len};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

/// Chunk tables kept; walks stay in few packs at a time.
const TABLES_MAX: usize = 8;

/// The tree chunks of a repository, through a bounded cache. Cheap to share.
pub struct TreeReader {
    reader: Arc<ChunkReader>,
    cache: Mutex<Cache>,
}

#[derive(Default)]
struct Cache {
    /// Sealed chunks; they share the memory of the block they came with.
    sealed: BTreeMap<ChunkId, Bytes>,
    /// What each block brought, oldest first.
    blocks: VecDeque<(Vec<ChunkId>, u64)>,
    bytes: u64,
    tables: BTreeMap<PackNo, Arc<Vec<ChunkSpan>>>,
}

impl TreeReader {
    /// An empty cache over a reader.
    pub fn new(reader: Arc<ChunkReader>) -> Self {
        TreeReader { reader, cache: Mutex::default() }
    }

    /// The sealed chunk, from the cache or with the block of its pack around it.
    async fn sealed(&self, id: &ChunkId) -> Result<Bytes> {
        if let Some(sealed) = self.cache().sealed.get(id) {
            return Ok(sealed.clone());
        }
        let plan = self.reader.plan(&[*id]).await?;
        let chunk = plan.fetches.first().and_then(|fetch| Some((fetch.pack, *fetch.chunks().next()?)));
        let (no, chunk) = chunk.ok_or_else(|| unknown(id))?;
        let pack = plan.packs.get(&no).ok_or_else(|| unknown(id))?;
        let place = PackRange { offset: chunk.offset, len: chunk.len };
        self.load(id, pack, place).await
    }

    async fn load(&self, id: &ChunkId, pack: &PackRecord, place: PackRange) -> Result<Bytes> {
        let block = block_around(place, pack.len);
        let table = self.cache().tables.get(&pack.no).cloned();
        let tail = tail_len(pack.chunks).min(pack.len);
        let mut ranges = vec![block];
        if table.is_none() {
            ranges.push(PackRange { offset: pack.len - tail, len: tail });
        }
        let mut parts = self.reader.gather(pack, &ranges).await?.into_iter();
        let bytes = parts.next().unwrap_or_default();
        let table = match (table, parts.next()) {
            (Some(table), _) => table,
            // A table that does not read costs only its neighbours.
            (None, tail) => Arc::new(
                tail.and_then(|tail| read_table(&tail, pack.len).ok()).map(|t| t.chunks).unwrap_or_default(),
            ),
        };
        let wanted = cut(&bytes, block, place).ok_or_else(|| unknown(id))?;
        self.cache().keep(pack.no, table, block, &bytes, (*id, wanted.clone()));
        Ok(wanted)
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no holder of this lock panics")
    }
}

#[async_trait]
impl ChunkSource for TreeReader {
    async fn chunk(&self, id: &ChunkId) -> Result<Bytes> {
        let sealed = self.sealed(id).await?;
        match self.open(id, sealed.clone()).await {
            Err(error) if self.reader.learn_for(&error).await => self.open(id, sealed).await,
            opened => opened,
        }
    }
}

impl TreeReader {
    async fn open(&self, id: &ChunkId, sealed: Bytes) -> Result<Bytes> {
        let (keys, openers, id) = (self.reader.keys.clone(), self.reader.openers.clone(), *id);
        let open =
            move || openers.lend(Opener::new, |opener| opener.open(&keys, PackKind::Tree, &id, &sealed));
        compute(self.reader.host.compute.as_ref(), open).await
    }
}

impl Cache {
    fn keep(
        &mut self,
        pack: PackNo,
        table: Arc<Vec<ChunkSpan>>,
        block: PackRange,
        bytes: &Bytes,
        wanted: (ChunkId, Bytes),
    ) {
        let place = |span: &ChunkSpan| PackRange { offset: span.offset.into(), len: span.len.into() };
        let neighbours = table.iter().filter_map(|span| Some((span.id, cut(bytes, block, place(span))?)));
        let mut brought = Vec::new();
        for (id, sealed) in neighbours.chain([wanted]) {
            if self.sealed.insert(id, sealed).is_none() {
                brought.push(id);
            }
        }
        self.bytes += bytes.len() as u64;
        self.blocks.push_back((brought, bytes.len() as u64));
        while self.bytes > TREE_CACHE_BYTES && self.blocks.len() > 1 {
            let Some((ids, len)) = self.blocks.pop_front() else { break };
            self.bytes -= len;
            ids.iter().for_each(|id| {
                self.sealed.remove(id);
            });
        }
        if self.tables.len() >= TABLES_MAX && !self.tables.contains_key(&pack) {
            self.tables.pop_first();
        }
        self.tables.insert(pack, table);
    }
}

/// The aligned block that holds the start of a chunk, made longer to hold all of it.
fn block_around(place: PackRange, pack_len: u64) -> PackRange {
    let offset = place.offset - place.offset % TREE_BLOCK_BYTES;
    let end = (offset + TREE_BLOCK_BYTES).max(place.offset + place.len).min(pack_len);
    PackRange { offset, len: end - offset }
}

/// The bytes of a chunk, if the block holds all of them.
fn cut(bytes: &Bytes, block: PackRange, place: PackRange) -> Option<Bytes> {
    let from = place.offset.checked_sub(block.offset)?;
    let to = from.checked_add(place.len)?;
    (to <= bytes.len() as u64).then(|| bytes.slice(from as usize..to as usize))
}
