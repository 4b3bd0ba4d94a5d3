//! The shards of one node: files below `shards/`, and an index of them.
//!
//! put: reserve → temp file → check hash → publish → index → answer. get: header, sums and every block are checked
//! before a byte leaves. Only the sweeper removes. At the start `audit` squares directory and index.

pub mod index;

mod audit;

mod get;

mod pace;

mod put;

mod space;

#[cfg(test)]
mod store_test;

pub use audit::AuditReport;
pub use get::Reader;
pub use index::Entry;
pub use put::Put;
pub use space::Stats;

use crate::kv::record::Records;
use farshore_core::host::{DiskFull, Host, KvError, KvRole, dir_of, task};
use farshore_core::id::{ClusterId, ShardHash, ShardId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::peer::ShardError;
use index::Index;
use pace::DiskPace;
use space::Account;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

/// How much the store may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StoreOptions {
    /// Bytes offered for shard files.
    pub capacity: u64,
    /// Bytes of the file system that are left free whatever the capacity, for catalogue, index and logs.
    pub reserve: u64,
}

/// Why a call on the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// No room; refused before anything was written.
    #[error("no room for {need} bytes: {left} are left")]
    Full {
        /// Bytes the shard needs.
        need: u64,
        /// Bytes that could still be taken.
        left: u64,
    },
    /// No such shard here.
    #[error("shard {0} is not here")]
    Missing(ShardId),
    /// The bytes are not what was recorded; it counts as missing.
    #[error("shard {0} is corrupt: {1}")]
    Corrupt(ShardId, String),
    /// The caller asks for something that can never be right.
    #[error("refused: {0}")]
    Refused(String),
    /// The bytes that came are not those the header names.
    #[error("the payload of shard {0} does not have the hash in its header")]
    WrongHash(ShardId),
    /// The shard changed while the call went on; the same call may now succeed.
    #[error("shard {0} went away while it was sent once more")]
    Raced(ShardId),
    /// The disk failed.
    #[error("disk failed: {0}")]
    Io(#[from] io::Error),
    /// The directory of the shards is not the one they were put into, or is gone: nothing can be said about any.
    #[error("the shards' directory has vanished: is a disk not mounted?")]
    Vanished,
    /// The index failed. After a restart it is rebuilt if need be.
    #[error("shard index failed: {0}")]
    Index(#[from] KvError),
}

impl StoreError {
    /// The same as others see it.
    pub fn on_node(self, node: farshore_core::id::NodeId) -> ShardError {
        let text = self.to_string();
        match self {
            StoreError::Full { .. } => ShardError::Full(node, text),
            StoreError::Missing(id) => ShardError::Missing(node, id),
            StoreError::Corrupt(id, what) => ShardError::Corrupt(node, id, what),
            StoreError::Refused(_) | StoreError::WrongHash(_) => ShardError::Refused(node, text),
            StoreError::Raced(_) | StoreError::Io(_) | StoreError::Index(_) | StoreError::Vanished => {
                ShardError::Unreachable(node, text)
            }
        }
    }
}

/// Shards that nobody else changes while this lives, see [`ShardStore::hold`].
pub struct Held(Vec<(ShardId, tokio::sync::OwnedMutexGuard<()>)>);

impl Held {
    /// Lets go of the others.
    pub fn retain(&mut self, keep: impl Fn(ShardId) -> bool) {
        self.0.retain(|(id, _)| keep(*id));
    }
}

/// The shards of one node.
pub struct ShardStore {
    host: Host,
    cluster: ClusterId,
    options: StoreOptions,
    index: Index,
    account: Account,
    /// Publishing, removing and marking of one shard exclude each other; different shards do not wait.
    locks: Mutex<BTreeMap<ShardId, Arc<tokio::sync::Mutex<()>>>>,
    /// How long the disk takes.
    pace: DiskPace,
    /// Makes names of temp files differ.
    next_temp: AtomicU64,
}

impl ShardStore {
    /// Opens the store and squares its index with its files. An index that cannot be read is thrown away and made
    /// anew from the files; the sessions in it are lost, nothing else. One that only lacks room is whole.
    pub async fn open(
        host: &Host,
        cluster: ClusterId,
        options: StoreOptions,
    ) -> Result<(Arc<Self>, AuditReport), StoreError> {
        let (index, report) = match audited(host, cluster).await {
            Err(StoreError::Index(why)) if !matches!(why, KvError::InUse | KvError::Full(_)) => {
                tracing::warn!(%why, "shard index is unreadable and is rebuilt from the shard files");
                host.kv.discard(KvRole::Index).await?;
                let (index, report) = audited(host, cluster).await?;
                (index, AuditReport { rebuilt: true, ..report })
            }
            other => other?,
        };
        let store = ShardStore {
            host: host.clone(),
            cluster,
            options,
            index,
            account: Account::new(report.shards, report.used),
            locks: Mutex::default(),
            pace: DiskPace::default(),
            next_temp: AtomicU64::new(0),
        };
        Ok((Arc::new(store), report))
    }

    /// Fails if the directory of the shards has gone: a disk that was unmounted shows every shard as missing, and none
    /// is lost.
    pub async fn check_place(&self) -> Result<(), StoreError> {
        self.host.disk.len(HERE_FILE).await?.map(drop).ok_or(StoreError::Vanished)
    }

    /// As [`ShardStore::check_place`], and the disk must also take a few bytes: one that fails every call is not a
    /// witness against single shards.
    pub async fn check_disk(&self) -> Result<(), StoreError> {
        self.check_place().await?;
        match self.host.disk.write_slot(HERE_FILE, 0, HERE).await {
            Err(why) if !DiskFull::is(&why) => Err(StoreError::Io(why)),
            _ => Ok(()),
        }
    }

    /// What is held and promised.
    pub fn stats(&self) -> Stats {
        self.account.stats()
    }

    /// How long the disk takes for a MiB or for a call about less, the usual one of the last calls; `None` if there were few
    /// of late.
    pub fn disk_pace(&self) -> Option<std::time::Duration> {
        self.pace.usual()
    }

    /// What it may take.
    pub fn options(&self) -> StoreOptions {
        self.options
    }

    /// Ends once the index can take nothing more before it is opened again, with the reason. A node that stayed would
    /// look alive and refuse every shard.
    pub async fn failed(&self) -> String {
        format!("the shard index failed: {}", self.index.failed().await)
    }

    /// The index entry of a shard.
    pub fn entry(&self, id: ShardId) -> Result<Option<Entry>, StoreError> {
        Ok(self.index.get(id)?)
    }

    /// Up to `limit` shards after `after` (but no more than [`PAGE_ROWS_MAX`]), by stripe and index.
    pub fn list(&self, after: Option<ShardId>, limit: usize) -> Result<Vec<(ShardId, Entry)>, StoreError> {
        Ok(self.index.list(after, limit.min(PAGE_ROWS_MAX))?)
    }

    /// Removes shards; it is no error if one is not there. Only the sweeper may call this, for shards that a confirmed
    /// catalogue index condemns, and the report worker, for spoilt ones that a confirmed index does not know. What is told
    /// to be removed is gone durably. One that cannot be removed keeps none of the others: the last such error is told.
    /// Cancel-safe: once begun it is carried through.
    pub async fn remove(self: &Arc<Self>, held: Held) -> Removed {
        let store = self.clone();
        let removing = uncut(async move {
            let mut removed = Removed::default();
            for (id, lock) in held.0 {
                match store.remove_one(id).await {
                    Ok(()) => removed.shards.push(id),
                    Err(error) => removed.failed = Err(error),
                }
                drop(lock);
            }
            Ok(removed)
        });
        removing.await.unwrap_or_else(|error| Removed { failed: Err(error), ..Removed::default() })
    }

    async fn remove_one(&self, id: ShardId) -> Result<(), StoreError> {
        let name = file_name(id);
        // The file goes first: an entry without a file is noticed at the next start, a file without an entry would be
        // taken in again.
        self.host.disk.remove(&name).await?;
        self.host.disk.sync_dir(dir_of(&name)).await?;
        self.drop_entry(id)
    }

    /// Holds shards, or places where they would be: until this is dropped no put of one of them is answered. Whoever
    /// wants to remove shards holds them *before* asking whether they are condemned, or a copy that came back
    /// meanwhile, with a receipt, would be removed on the word of an old answer.
    pub async fn hold(&self, ids: impl IntoIterator<Item = ShardId>) -> Held {
        // Ascending, so that two holders never wait for each other crosswise.
        let mut held = vec![];
        for id in ids.into_iter().collect::<BTreeSet<_>>() {
            held.push((id, self.lock_of(id).lock_owned().await));
        }
        Held(held)
    }

    /// Forgets a shard whose file is gone. The caller holds its lock.
    fn drop_entry(&self, id: ShardId) -> Result<(), StoreError> {
        if let Some(entry) = self.index.get(id)? {
            self.index.write(vec![index::forget(id)])?;
            self.account.replace(Some(entry.file_len), None);
        }
        Ok(())
    }

    /// Remembers what a full check or a failed read found, unless the shard has been replaced since.
    async fn mark(&self, id: ShardId, hash: ShardHash, bad: bool) -> Result<(), StoreError> {
        let lock = self.lock_of(id);
        let _held = lock.lock().await;
        let Some(mut entry) = self.index.get(id)?.filter(|entry| entry.hash == hash) else { return Ok(()) };
        if !bad {
            entry.last_verified_ms = self.host.clock.now_ms();
        }
        entry.bad = bad;
        // Not flushed: what a crash loses here is found again by the next check.
        Ok(self.index.write(vec![index::set(id, &entry)])?)
    }

    fn lock_of(&self, id: ShardId) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.len() >= LOCKS_BEFORE_TIDY {
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
        }
        locks.entry(id).or_default().clone()
    }
}

/// What became of shards that were to be removed.
#[derive(Debug)]
pub struct Removed {
    /// Gone for good.
    pub shards: Vec<ShardId>,
    /// Why another one is not, if so.
    pub failed: Result<(), StoreError>,
}

impl Default for Removed {
    fn default() -> Self {
        Removed { shards: Vec::new(), failed: Ok(()) }
    }
}

/// Locks that nobody holds are forgotten once this many have piled up.
const LOCKS_BEFORE_TIDY: usize = 1024;

async fn audited(host: &Host, cluster: ClusterId) -> Result<(Index, AuditReport), StoreError> {
    let index = Index::new(Records::new(host.kv.open(KvRole::Index).await?));
    check_not_vanished(host, &index).await?;
    let report = audit::audit(host, cluster, &index).await?;
    Ok((index, report))
}

/// The directory of everything the store keeps in files.
pub const SHARDS_DIR: &str = "shards";

/// Lies beside the shards, and so tells a directory without shards from one that is not there.
const HERE_FILE: &str = "shards/here";
const HERE: &[u8] = b"farshore shards\n";

/// An index full of shards and no sign that there ever was a directory for them: better not to start than to report
/// them all lost.
async fn check_not_vanished(host: &Host, index: &Index) -> Result<(), StoreError> {
    if host.disk.len(HERE_FILE).await?.is_some() {
        return Ok(());
    }
    if !index.list(None, 1)?.is_empty() && host.disk.list(SHARDS_DIR).await?.is_empty() {
        return Err(StoreError::Vanished);
    }
    match host.disk.write_slot(HERE_FILE, 0, HERE).await {
        Err(why) if !DiskFull::is(&why) => Err(StoreError::Io(why)),
        _ => Ok(()),
    }
}

/// Runs steps that belong together to their end even if the caller goes away in between. They are short and end by
/// themselves, so the task needs no other owner.
async fn uncut<T: Send + 'static>(
    steps: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    task::spawn(steps).await.unwrap_or_else(|e| Err(StoreError::Io(io::Error::other(e))))
}

/// Where temp files lie. Nothing in here survives a start.
pub const TEMP_DIR: &str = "shards/tmp";

/// Directory of all shards whose stripe begins with this byte.
fn shard_dir(first: u8) -> String {
    format!("shards/{first:02x}")
}

fn file_name(id: ShardId) -> String {
    format!("{}/{id}.shard", shard_dir(id.stripe.0[0]))
}

/// The shard that a file name means, if it is the name we would have given it.
fn id_of_name(name: &str) -> Option<ShardId> {
    let (stripe, index) = name.strip_suffix(".shard")?.split_once('-')?;
    let id = ShardId { stripe: stripe.parse().ok()?, index: index.parse().ok()? };
    (format!("{id}.shard") == name).then_some(id)
}
