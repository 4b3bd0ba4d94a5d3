//! The engine for the shard index, which can always be rebuilt from the shard files. The one home of `sled`.
//!
//! sled 0.34 panics on some damage and its flush is no durability barrier (docs/decisions/0001). Here every panic
//! becomes an error and every flush ends with an `fdatasync` of its file. Never used inside the simulator.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the engine and its files")]

use super::io_error;
use super::sync::{GroupSync, LOCK_PAUSE, LOCK_TRIES};
use async_trait::async_trait;
use farshore_core::host::DiskFull;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table, settle};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// An open index. All tables share one tree, with the table's number in front of each key, because the engine's
/// batches are atomic within one tree only.
pub struct SledStore {
    db: sled::Db,
    file: Arc<File>,
    /// Set by the first panic inside the engine: what it holds in memory can no longer be trusted.
    broken: Arc<AtomicBool>,
    sync: GroupSync,
}

impl SledStore {
    /// Opens or creates the index in `path`. Blocks the thread.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Arc<dyn Kv>, KvError> {
        let broken = Arc::new(AtomicBool::new(false));
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(cache_bytes)
            .mode(sled::Mode::LowSpace)
            // Nothing rests on the engine's own timer: `flush` is called when it matters.
            .flush_every_ms(None);
        let db = open_locked(&config, &broken)?;
        let file = sync_names(path).map_err(io_error)?;
        Ok(Arc::new(SledStore { db, file: Arc::new(file), broken, sync: GroupSync::default() }))
    }

    fn guarded<T>(&self, call: impl FnOnce() -> sled::Result<T>) -> Result<T, KvError> {
        guarded(&self.broken, call)
    }
}

/// Opens, waiting a moment for a lock that is about to go.
fn open_locked(config: &sled::Config, broken: &AtomicBool) -> Result<sled::Db, KvError> {
    for _ in 0..LOCK_TRIES {
        match guarded(broken, || config.open()) {
            // The engine has no word of its own for a lock.
            Err(KvError::Io(what)) if what.contains("could not acquire lock") => {
                std::thread::sleep(LOCK_PAUSE)
            }
            opened => return opened,
        }
    }
    Err(KvError::InUse)
}

/// Runs a call into the engine; a panic in it is an error, and so is every call after that.
fn guarded<T>(broken: &AtomicBool, call: impl FnOnce() -> sled::Result<T>) -> Result<T, KvError> {
    if broken.load(Ordering::SeqCst) {
        return Err(KvError::Io("the index engine has panicked before and must be reopened".into()));
    }
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(error))) if DiskFull::is(&error) => Err(io_error(error)),
        Ok(Err(error)) => Err(KvError::Io(error.to_string())),
        Err(_) => {
            broken.store(true, Ordering::SeqCst);
            Err(KvError::Io("the index is damaged: the engine panicked".into()))
        }
    }
}

/// Makes the names durable that the engine creates but does not sync; gives its data file.
fn sync_names(path: &Path) -> std::io::Result<File> {
    for name in ["db", "conf", "blobs", ""] {
        File::open(path.join(name))?.sync_all()?;
    }
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    File::open(path.join("db"))
}

/// A key with its table in front.
fn tabled(table: Table, key: &[u8]) -> Vec<u8> {
    let mut whole = Vec::with_capacity(1 + key.len());
    whole.push(table);
    whole.extend_from_slice(key);
    whole
}

fn pair((key, value): (sled::IVec, sled::IVec)) -> KvPair {
    (key.get(1..).unwrap_or_default().to_vec(), value.to_vec())
}

impl KvRead for SledStore {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.guarded(|| Ok(self.db.get(tabled(table, key))?.map(|value| value.to_vec())))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        if from >= to {
            return Ok(vec![]);
        }
        let range = tabled(table, from)..tabled(table, to);
        self.guarded(|| self.db.range(range).take(limit).map(|row| row.map(pair)).collect())
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        if from >= to {
            return Ok(None);
        }
        let range = tabled(table, from)..tabled(table, to);
        self.guarded(|| self.db.range(range).next_back().map(|row| row.map(pair)).transpose())
    }
}

#[async_trait]
impl Kv for SledStore {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        let mut writes = sled::Batch::default();
        for ((table, key), value) in settle(batch)? {
            match value {
                Some(value) => writes.insert(tabled(table, &key), value),
                None => writes.remove(tabled(table, &key)),
            }
        }
        self.guarded(|| self.db.apply_batch(writes))
    }
    async fn flush(&self) -> Result<(), KvError> {
        let (db, file, broken) = (self.db.clone(), self.file.clone(), self.broken.clone());
        let sync = move || {
            guarded(&broken, || db.flush())?;
            // The engine has only asked the kernel to start writing; this waits until it is on the disk.
            file.sync_data().map_err(io_error)
        };
        self.sync.run(sync).await
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        Err(KvError::Unsupported("freeze a view"))
    }
}
