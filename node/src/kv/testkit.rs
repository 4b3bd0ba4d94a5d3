//! A store in memory that remembers how much is read from it, for tests of what must not read too much.

use super::memory::MemoryKv;
use async_trait::async_trait;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What scans have given since this was last taken.
#[derive(Default)]
pub struct Scanned {
    rows: AtomicUsize,
    largest: AtomicUsize,
}

impl Scanned {
    /// Rows of all scans, and the bytes of the largest.
    pub fn take(&self) -> (usize, usize) {
        (self.rows.swap(0, Ordering::Relaxed), self.largest.swap(0, Ordering::Relaxed))
    }
    fn note(&self, pairs: Vec<KvPair>) -> Vec<KvPair> {
        let bytes = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        self.rows.fetch_add(pairs.len(), Ordering::Relaxed);
        self.largest.fetch_max(bytes, Ordering::Relaxed);
        pairs
    }
}

/// A store whose scans are watched, and so are those of its frozen views.
pub struct Watched<K: ?Sized> {
    scanned: Arc<Scanned>,
    kv: Arc<K>,
}

impl Watched<MemoryKv> {
    /// An empty store, and what its scans give.
    pub fn new() -> (Arc<Self>, Arc<Scanned>) {
        let scanned = Arc::new(Scanned::default());
        (Arc::new(Watched { scanned: scanned.clone(), kv: Arc::new(MemoryKv::new()) }), scanned)
    }
}

impl<K: KvRead + ?Sized> KvRead for Watched<K> {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.kv.get(table, key)
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        Ok(self.scanned.note(self.kv.scan(table, from, to, limit)?))
    }
    fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<KvPair>, KvError> {
        Ok(self.scanned.note(self.kv.scan_some(table, from, to, limit, bytes_max)?))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.kv.last(table, from, to)
    }
}

#[async_trait]
impl Kv for Watched<MemoryKv> {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        self.kv.write(batch)
    }
    async fn flush(&self) -> Result<(), KvError> {
        self.kv.flush().await
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        Ok(Arc::new(Watched { scanned: self.scanned.clone(), kv: self.kv.freeze()? }))
    }
}
