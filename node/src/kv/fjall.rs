//! The engine for what must never be lost: Raft log, vote and catalogue. The one home of `fjall`.
//!
//! All tables share one journal, so batches across tables are atomic and become durable in the order written. Never
//! used inside the simulator, which has its own store.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the engine and its files")]

use super::sync::{GroupSync, LOCK_PAUSE, LOCK_TRIES};
use super::{io_error, journal};
use async_trait::async_trait;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table, settle};
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode, Readable, Snapshot};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
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
        Ok(Arc::new(Self::open_own(path, cache_bytes)?))
    }

    fn open_own(path: &Path, cache_bytes: u64) -> Result<Self, KvError> {
        let fresh = !path.exists();
        let (mut db, mut last) = open_locked(path, cache_bytes)?;
        if fresh {
            // A new journal is 64 MiB long (and empty: a sparse file). Opened again it is as long as its contents.
            drop(db);
            (db, last) = open_locked(path, cache_bytes)?;
        }
        let mut tables = BTreeMap::new();
        for name in db.list_keyspace_names() {
            let table = table_of(&name).ok_or_else(|| KvError::Io(format!("unknown table {:?}", &*name)))?;
            tables.insert(table, db.keyspace(&name, table_options).map_err(engine)?);
        }
        let store =
            FjallStore { db, path: path.into(), tables: RwLock::new(tables), sync: GroupSync::default() };
        store.refuse_ahead(last)?;
        store.sync_names()?;
        Ok(store)
    }

    /// Refuses if a table holds a later batch than the last of the journals. The engine syncs the journal before it
    /// writes a table out, so durable batches are gone from the journal, and the tables no longer fit each other.
    fn refuse_ahead(&self, last: Option<u64>) -> Result<(), KvError> {
        let tables = self.tables.read().unwrap_or_else(PoisonError::into_inner);
        let newest = tables.values().filter_map(|keyspace| keyspace.tree.get_highest_persisted_seqno()).max();
        match last.zip(newest) {
            Some((last, newest)) if newest > last => Err(KvError::Damaged(format!(
                "the journals in {} end with batch {last}, but tables hold batch {newest}; \
                 what was cut off a journal lies beside it",
                self.path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes the directories durable that the engine makes but does not sync.
    fn sync_names(&self) -> Result<(), KvError> {
        let mut dirs = vec![self.path.join("keyspaces"), self.path.clone()];
        dirs.extend(self.path.parent().map(Path::to_path_buf));
        dirs.iter().try_for_each(|dir| File::open(dir)?.sync_all()).map_err(io_error)
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

/// Opens, waiting a moment for a lock that is about to go.
fn open_locked(path: &Path, cache_bytes: u64) -> Result<(Database, Option<u64>), KvError> {
    for _ in 0..LOCK_TRIES {
        match mend_and_open(path, cache_bytes) {
            Err(KvError::InUse) => std::thread::sleep(LOCK_PAUSE),
            opened => return opened,
        }
    }
    Err(KvError::InUse)
}

/// The database and the sequence of its last batch in a journal. Some damage makes the engine panic; that must be an
/// error.
fn mend_and_open(path: &Path, cache_bytes: u64) -> Result<(Database, Option<u64>), KvError> {
    let last = journal::mend(path)?;
    let builder = Database::builder(path)
        .cache_size(cache_bytes)
        .max_journaling_size(JOURNALS_BYTES)
        .worker_threads(WORKERS);
    match catch_unwind(AssertUnwindSafe(|| builder.open())) {
        Ok(Err(fjall::Error::Locked)) => Err(KvError::InUse),
        Ok(opened) => Ok((opened.map_err(engine)?, last)),
        Err(_) => Err(KvError::Damaged("opening the database panicked".into())),
    }
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

/// What the engine cannot make sense of is damage; what the system refuses is not.
fn engine(error: fjall::Error) -> KvError {
    use fjall::Error::*;
    let text = error.to_string();
    match error {
        Io(error) | Storage(fjall::LsmError::Io(error)) => match error.kind() {
            // A name that was misread, or a file that is gone.
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::NotFound => KvError::Damaged(text),
            _ => io_error(error),
        },
        Storage(_) | JournalRecovery(_) | InvalidVersion(_) | Decompress(_) | InvalidTrailer
        | InvalidTag(_) | Unrecoverable => KvError::Damaged(text),
        _ => KvError::Io(text),
    }
}

/// Some damage makes the engine panic where it reads; that must be an error.
fn guarded<T>(read: impl FnOnce() -> Result<T, KvError>) -> Result<T, KvError> {
    catch_unwind(AssertUnwindSafe(read))
        .unwrap_or_else(|_| Err(KvError::Damaged("the engine panicked over what it read".into())))
}

impl KvRead for FjallStore {
    // Reads go through a snapshot: a plain read could see half of a batch that is just being applied.
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.table(table).map_or(Ok(None), |keyspace| get(&self.db.snapshot(), &keyspace, key))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        self.scan_some(table, from, to, limit, usize::MAX)
    }
    fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<KvPair>, KvError> {
        let scan = |keyspace| scan(&self.db.snapshot(), &keyspace, from, to, limit, bytes_max);
        self.table(table).map_or(Ok(vec![]), scan)
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
        self.scan_some(table, from, to, limit, usize::MAX)
    }
    fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<KvPair>, KvError> {
        let scan = |keyspace| scan(&self.snapshot, keyspace, from, to, limit, bytes_max);
        self.tables.get(&table).map_or(Ok(vec![]), scan)
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.tables.get(&table).map_or(Ok(None), |keyspace| last(&self.snapshot, keyspace, from, to))
    }
}

fn get(at: &Snapshot, table: &Keyspace, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
    if key.is_empty() {
        return Ok(None);
    }
    guarded(|| Ok(at.get(table, key).map_err(engine)?.map(|value| value.to_vec())))
}

fn scan(
    at: &Snapshot,
    table: &Keyspace,
    from: &[u8],
    to: &[u8],
    limit: usize,
    bytes_max: usize,
) -> Result<Vec<KvPair>, KvError> {
    let (mut found, mut bytes) = (Vec::new(), 0);
    if from >= to || limit == 0 || bytes_max == 0 {
        return Ok(found);
    }
    guarded(|| {
        for guard in at.range(table, from..to).take(limit) {
            let (key, value) = pair(guard)?;
            bytes += key.len() + value.len();
            found.push((key, value));
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(found)
    })
}

fn last(at: &Snapshot, table: &Keyspace, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
    if from >= to {
        return Ok(None);
    }
    guarded(|| at.range(table, from..to).next_back().map(pair).transpose())
}

fn pair(guard: fjall::Guard) -> Result<KvPair, KvError> {
    let (key, value) = guard.into_inner().map_err(engine)?;
    Ok((key.to_vec(), value.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::record::{Records, Row, put};
    use farshore_core::host::task::splitmix;
    use std::os::unix::fs::MetadataExt;

    fn files(dir: &Path) -> Vec<PathBuf> {
        let mut found = vec![];
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
        }
        found
    }

    /// Bytes on disk and the sum of the file lengths.
    fn sizes(dir: &Path) -> (u64, u64) {
        let stats: Vec<_> = files(dir).iter().map(|path| path.metadata().unwrap()).collect();
        (stats.iter().map(|m| m.blocks() * 512).sum(), stats.iter().map(|m| m.len()).sum())
    }

    /// Nodes are compared by what their disks hold, so an engine that preallocates would look like lost space.
    #[tokio::test]
    async fn a_small_database_is_small_on_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = FjallStore::open(&path, 1 << 20).unwrap();
        let (on_disk, long) = sizes(&path);
        assert!(on_disk < 64 << 10 && long < 64 << 10, "empty: {on_disk} bytes on disk, {long} long");
        let mut bytes = 0;
        for n in 0..500u64 {
            let batch =
                (0..10).map(|i| put((n % 12) as Table, splitmix(n, i).to_be_bytes(), 1, &[n as u8; 250]));
            store.write(batch.collect()).unwrap();
            bytes += 10 * (8 + 1 + 250 + 8);
        }
        store.flush().await.unwrap();
        let (on_disk, long) = sizes(&path);
        let most = 2 * bytes + (1 << 20);
        assert!(on_disk < most && long < most, "{bytes} bytes of records: {on_disk} on disk, {long} long");
    }

    fn copy(from: &Path, to: &Path) {
        for path in files(from) {
            let copied = to.join(path.strip_prefix(from).unwrap());
            std::fs::create_dir_all(copied.parent().unwrap()).unwrap();
            std::fs::copy(path, copied).unwrap();
        }
    }

    fn journal(dir: &Path) -> PathBuf {
        files(dir).into_iter().find(|path| path.extension().is_some_and(|e| e == "jnl")).unwrap()
    }

    /// A byte of any file turns over at rest. What is read then is what was written, or is called damaged; only what the
    /// journal lost at its end may be missing, which the log's mark notices.
    #[tokio::test]
    async fn a_flipped_byte_in_any_file_is_damage_and_never_another_value() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let value = |n: u64| [splitmix(n, 7).to_be_bytes(); 64].concat();
        {
            let store = FjallStore::open(&path, 1 << 20).unwrap();
            // More than is kept in memory, so that there are tables on disk, and then some in the journal alone.
            for n in 0..24_000u64 {
                store.write(vec![put((n % 3) as Table + 1, n.to_be_bytes(), 1, &value(n))]).unwrap();
            }
            store.flush().await.unwrap();
        }
        drop(FjallStore::open(&path, 1 << 20).unwrap());
        let (mut damaged, mut tables) = (0, 0);
        for file in files(&path) {
            let bytes = std::fs::read(&file).unwrap();
            let is_journal = file.extension().is_some_and(|e| e == "jnl");
            let is_table = file.parent().unwrap().ends_with("tables");
            tables += u32::from(is_table);
            for eighth in 0..=8 {
                let Some(last) = bytes.len().checked_sub(1) else { continue };
                let at = last * eighth / 8;
                let case = format!("byte {at} of {}", file.strip_prefix(&path).unwrap().display());
                let spoilt = dir.path().join("spoilt");
                copy(&path, &spoilt);
                let mut flipped = bytes.clone();
                flipped[at] ^= 0x10;
                std::fs::write(spoilt.join(file.strip_prefix(&path).unwrap()), flipped).unwrap();
                let read = FjallStore::open(&spoilt, 1 << 20).and_then(|store| {
                    let records = Records::new(store);
                    let mut rows = Vec::new();
                    for table in 1..=3 {
                        rows.extend(records.scan(table, &[], &[255; 9], 24_000)?);
                    }
                    Ok(rows)
                });
                match read {
                    // What says a format may say another one than it did.
                    Err(error) => {
                        let unknown = matches!(error, KvError::Unsupported(_))
                            && (is_journal || file.ends_with("version"));
                        assert!(error.is_damage() || unknown, "{case}: {error}");
                        damaged += 1;
                    }
                    Ok(rows) => {
                        let n = |row: &Row| u64::from_be_bytes(row.key.as_slice().try_into().unwrap());
                        assert!(rows.iter().all(|row| row.payload == value(n(row))), "{case}");
                        assert!(rows.len() == 24_000 || is_journal, "{case}: {} rows", rows.len());
                    }
                }
                std::fs::remove_dir_all(&spoilt).unwrap();
            }
        }
        assert!(tables > 0 && damaged > 9, "{tables} tables, {damaged} damaged");
    }

    /// Power loss as far as files can tell: of the journal behind the last flush any part may be there, as it was
    /// written, as zeros or as rubbish.
    #[tokio::test]
    async fn what_was_flushed_survives_any_damage_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = FjallStore::open(&path, 1 << 20).unwrap();
        let write = |n: u32| {
            store.write(vec![put(1, n.to_be_bytes(), 1, b"one"), put(2, n.to_be_bytes(), 1, b"two")])
        };
        (0..20).for_each(|n| write(n).unwrap());
        store.flush().await.unwrap();
        let synced = journal(&path).metadata().unwrap().len() as usize;
        (20..40).for_each(|n| write(n).unwrap());
        for case in 0..30u64 {
            let lost = dir.path().join(case.to_string());
            copy(&path, &lost);
            let mut bytes = std::fs::read(journal(&lost)).unwrap();
            assert!(bytes.len() > synced);
            let at = synced + splitmix(case, 7) as usize % (bytes.len() - synced);
            match case % 3 {
                0 => bytes.truncate(at),
                1 => bytes[at..].fill(0),
                _ => bytes.drain(at..).for_each(drop),
            }
            if case % 3 == 2 {
                bytes.extend((0..200).map(|i| splitmix(case, i) as u8));
            }
            std::fs::write(journal(&lost), bytes).unwrap();
            let store = FjallStore::open(&lost, 1 << 20);
            let records = Records::new(store.unwrap_or_else(|e| panic!("case {case}: {e}")));
            let rows = |table| -> Vec<Row> { records.scan(table, &[], &[0xff; 5], 99).unwrap() };
            let (one, two) = (rows(1), rows(2));
            assert!(one.len() >= 20, "case {case}: only {} of 20 flushed batches are left", one.len());
            assert!(
                one.iter().enumerate().all(|(n, row)| row.key == (n as u32).to_be_bytes()),
                "case {case}"
            );
            assert!(
                one.iter().map(|row| &row.key).eq(two.iter().map(|row| &row.key)),
                "case {case}: half a batch"
            );
        }
    }

    /// A table that is ahead of the journal would be ahead of the other tables too, and no later check would notice.
    #[tokio::test]
    async fn a_journal_that_ends_before_a_table_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = FjallStore::open_own(&path, 1 << 20).unwrap();
        let mut ends = vec![];
        for n in 0..20u32 {
            store
                .write(vec![put(1, n.to_be_bytes(), 1, b"one"), put(2, n.to_be_bytes(), 1, b"two")])
                .unwrap();
            store.flush().await.unwrap();
            ends.push(journal(&path).metadata().unwrap().len());
            if n == 9 {
                store.table(1).unwrap().rotate_memtable_and_wait().unwrap();
            }
        }
        drop(store);
        let open_with = |bytes: &[u8]| {
            let _ = std::fs::remove_dir_all(dir.path().join("copy"));
            copy(&path, &dir.path().join("copy"));
            std::fs::write(journal(&dir.path().join("copy")), bytes).unwrap();
            FjallStore::open(&dir.path().join("copy"), 1 << 20)
        };
        let whole = std::fs::read(journal(&path)).unwrap();
        for (n, end) in ends.iter().enumerate() {
            let opened = open_with(&whole[..*end as usize]);
            assert_eq!(opened.is_ok(), n >= 9, "journal up to batch {n}: {:?}", opened.err());
        }
        for at in [0, 2, 30, ends[4] as usize + 20] {
            let mut rotten = whole.clone();
            rotten[at] ^= 1;
            let refused = open_with(&rotten).err();
            assert!(matches!(refused, Some(KvError::Damaged(_))), "byte {at}: {refused:?}");
            // The first attempt may have cut the journal; that makes nothing better.
            let again = FjallStore::open(&dir.path().join("copy"), 1 << 20).err();
            assert!(matches!(again, Some(KvError::Damaged(_))), "byte {at}, opened again: {again:?}");
        }
    }
}
