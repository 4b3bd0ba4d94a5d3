//! The engine for what must never be lost: Raft log, vote and catalogue. The one home of `fjall`.
//!
//! All tables share one journal, so batches across tables are atomic and become durable in the order written. Never
//! used inside the simulator, which has its own store.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the engine and its files")]

use super::sync::{GroupSync, LOCK_PAUSE, LOCK_TRIES};
use async_trait::async_trait;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table, settle};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

/// Journals are kept until their contents are in tables; the least the engine allows.
const JOURNALS_BYTES: u64 = 64 << 20;
/// A table's changes are written out when this much is in memory. Small, because there are about a dozen tables and
/// what they hold in memory is what pins the journals on disk.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// The engine's own threads, for writing out and merging.
const WORKERS: usize = 2;

/// An open database.
pub struct FjallStore {
    db: Database,
    path: PathBuf,
    tables: RwLock<BTreeMap<Table, Keyspace>>,
    sync: GroupSync,
}

impl FjallStore {
    /// Opens or creates the database in `path`, with `cache_bytes` for blocks read from disk. Blocks the thread.
    pub fn open(path: &Path, cache_bytes: u64) -> Result<Arc<dyn Kv>, KvError> {
        let fresh = !path.exists();
        let mut db = open_locked(path, cache_bytes)?;
        if fresh {
            // A new journal is 64 MiB long (and empty: a sparse file). Opened again it is as long as its contents.
            drop(db);
            db = open_locked(path, cache_bytes)?;
        }
        let mut tables = BTreeMap::new();
        for name in db.list_keyspace_names() {
            let table = table_of(&name).ok_or_else(|| KvError::Io(format!("unknown table {:?}", &*name)))?;
            tables.insert(table, db.keyspace(&name, table_options).map_err(engine)?);
        }
        let store =
            FjallStore { db, path: path.into(), tables: RwLock::new(tables), sync: GroupSync::default() };
        store.sync_names()?;
        Ok(Arc::new(store))
    }

    /// Makes the directories durable that the engine makes but does not sync.
    fn sync_names(&self) -> Result<(), KvError> {
        let mut dirs = vec![self.path.join("keyspaces"), self.path.clone()];
        dirs.extend(self.path.parent().map(Path::to_path_buf));
        dirs.iter().try_for_each(|dir| File::open(dir)?.sync_all()).map_err(|e| KvError::Io(e.to_string()))
    }

    /// The table, or `None` if nothing was ever written to it.
    fn table(&self, table: Table) -> Option<Keyspace> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner).get(&table).cloned()
    }

    /// The table, created if need be. Its creation is durable before its first batch can be: the engine skips
    /// batches of unknown tables when it recovers.
    fn table_for_write(&self, table: Table) -> Result<Keyspace, KvError> {
        if let Some(keyspace) = self.table(table) {
            return Ok(keyspace);
        }
        let mut tables = self.tables.write().unwrap_or_else(PoisonError::into_inner);
        let keyspace = self.db.keyspace(&table_name(table), table_options).map_err(engine)?;
        self.sync_names()?;
        tables.insert(table, keyspace.clone());
        Ok(keyspace)
    }
}

/// Opens, waiting a moment for a lock that is about to go. Some damage makes the engine panic; that must be an error.
fn open_locked(path: &Path, cache_bytes: u64) -> Result<Database, KvError> {
    for _ in 0..LOCK_TRIES {
        let builder = Database::builder(path)
            .cache_size(cache_bytes)
            .max_journaling_size(JOURNALS_BYTES)
            .worker_threads(WORKERS);
        match catch_unwind(AssertUnwindSafe(|| builder.open())) {
            Ok(Err(fjall::Error::Locked)) => std::thread::sleep(LOCK_PAUSE),
            Ok(opened) => return opened.map_err(engine),
            Err(_) => return Err(KvError::Io("the database is damaged: opening it panicked".into())),
        }
    }
    Err(KvError::InUse)
}

fn table_options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

fn table_name(table: Table) -> String {
    format!("t{table}")
}

fn table_of(name: &str) -> Option<Table> {
    name.strip_prefix('t')?.parse().ok()
}

fn engine(error: fjall::Error) -> KvError {
    KvError::Io(error.to_string())
}

impl KvRead for FjallStore {
    // Reads go through a snapshot: a plain read could see half of a batch that is just being applied.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.table(table).map_or(Ok(None), |keyspace| get(&self.db.snapshot(), &keyspace, key))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        self.table(table).map_or(Ok(vec![]), |keyspace| scan(&self.db.snapshot(), &keyspace, from, to, limit))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.table(table).map_or(Ok(None), |keyspace| last(&self.db.snapshot(), &keyspace, from, to))
    }
}

#[async_trait]
impl Kv for FjallStore {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        let mut writes = self.db.batch();
        for ((table, key), value) in settle(batch)? {
            let keyspace = self.table_for_write(table)?;
            match value {
                Some(value) => writes.insert(&keyspace, key, value),
                None => writes.remove(&keyspace, key),
            }
        }
        writes.commit().map_err(engine)
    }
    async fn flush(&self) -> Result<(), KvError> {
        let db = self.db.clone();
        // The journal only ever grows at its end, so `fdatasync` (which covers the length) is enough.
        self.sync.run(move || db.persist(PersistMode::SyncData).map_err(engine)).await
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        // Tables first: one created in between is empty in the snapshot, and absent here.
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(Arc::new(Frozen { snapshot: self.db.snapshot(), tables, _db: self.db.clone() }))
    }
}

struct Frozen {
    snapshot: Snapshot,
    tables: BTreeMap<Table, Keyspace>,
    _db: Database,
}

impl KvRead for Frozen {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.tables.get(&table).map_or(Ok(None), |keyspace| get(&self.snapshot, keyspace, key))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        self.tables.get(&table).map_or(Ok(vec![]), |keyspace| scan(&self.snapshot, keyspace, from, to, limit))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.tables.get(&table).map_or(Ok(None), |keyspace| last(&self.snapshot, keyspace, from, to))
    }
}

fn get(at: &Snapshot, table: &Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
    if key.is_empty() {
        return Ok(None);
    }
    Ok(at.get(table, key).map_err(engine)?.map(|value| value.to_vec()))
}

fn scan(
    at: &Snapshot,
    table: &Keyspace,
    from: &[u8],
    to: &[u8],
    limit: usize,
) -> Result<Vec<KvPair>, KvError> {
    if from >= to {
        return Ok(vec![]);
    }
    at.range(table, from..to).take(limit).map(pair).collect()
}

fn last(at: &Snapshot, table: &Keyspace, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
    if from >= to {
        return Ok(None);
    }
    at.range(table, from..to).next_back().map(pair).transpose()
}

fn pair(guard: fjall::Guard) -> Result<KvPair, KvError> {
    let (key, value) = guard.into_inner().map_err(engine)?;
    Ok((key.to_vec(), value.to_vec()))
}
