//! The two engines behind the Kv seam, each where its failure modes allow (docs/decisions/0001), and the checked
//! records above them.
#![expect(clippy::disallowed_methods, reason = "this file makes and removes the directories of the engines")]

pub mod conformance;

pub mod record;

pub mod fjall;

pub mod sled;

pub mod memory;

mod full;

mod journal;

mod sync;

#[cfg(test)]
mod journal_test;

#[cfg(test)]
pub(crate) mod testkit;

use async_trait::async_trait;
use farshore_core::host::DiskFull;
use farshore_core::host::kv::{Kv, KvError, KvFactory, KvRole};
use farshore_core::limits::{KV_CATALOGUE_CACHE_BYTES, KV_INDEX_CACHE_BYTES};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Memory that the engines use for what they have read, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KvCache {
    /// Of the store that holds Raft log and catalogue. Default 64 MiB: filters and index blocks of 10 million chunks fit.
    pub catalogue: u64,
    /// Of the shard index. Default 8 MiB: it is asked for one shard at a time.
    pub index: u64,
}

impl Default for KvCache {
    fn default() -> Self {
        KvCache { catalogue: KV_CATALOGUE_CACHE_BYTES, index: KV_INDEX_CACHE_BYTES }
    }
}

/// The stores of one node below its data directory: `catalogue/` and `index/`.
pub struct RealKv {
    root: PathBuf,
    cache: KvCache,
    open: Mutex<BTreeMap<KvRole, Weak<dyn Kv>>>,
}

impl RealKv {
    /// Stores below `root`, which comes into being with the first of them.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with_cache(root, KvCache::default())
    }

    /// The same with caches of other sizes.
    pub fn with_cache(root: impl Into<PathBuf>, cache: KvCache) -> Self {
        RealKv { root: root.into(), cache, open: Mutex::default() }
    }

    fn path(&self, role: KvRole) -> PathBuf {
        self.root.join(match role {
            KvRole::Catalogue => "catalogue",
            KvRole::Index => "index",
        })
    }

    fn is_open(&self, role: KvRole) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(&role).is_some_and(|store| store.strong_count() > 0)
    }

    fn refuse_if_open(&self, role: KvRole) -> Result<(), KvError> {
        if self.is_open(role) {
            return Err(KvError::InUse);
        }
        Ok(())
    }
}

#[async_trait]
impl KvFactory for RealKv {
    async fn open(&self, role: KvRole) -> Result<Arc<dyn Kv>, KvError> {
        self.refuse_if_open(role)?;
        let (root, path, cache) = (self.root.clone(), self.path(role), self.cache);
        let store = blocking(move || {
            let opened = make_root(&root).map_err(io_error).and_then(|()| match role {
                KvRole::Catalogue => fjall::FjallStore::open(&path, cache.catalogue),
                KvRole::Index => sled::SledStore::open(&path, cache.index),
            });
            opened
                .map(|store| full::Watched::around(store, &root))
                .map_err(|error| full::explain(error, &root))
        })
        .await?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.insert(role, Arc::downgrade(&store));
        Ok(store)
    }

    async fn discard(&self, role: KvRole) -> Result<(), KvError> {
        if role != KvRole::Index {
            return Err(KvError::Unsupported("be discarded: only the index can be rebuilt"));
        }
        self.refuse_if_open(role)?;
        let (root, path) = (self.root.clone(), self.path(role));
        blocking(move || remove(&root, &path).map_err(io_error)).await
    }

    async fn put_away(&self) -> Result<(), KvError> {
        self.refuse_if_open(KvRole::Catalogue)?;
        let (root, path) = (self.root.clone(), self.path(KvRole::Catalogue));
        let away = self.root.join("catalogue.damaged");
        blocking(move || put_away(&root, &path, &away).map_err(io_error)).await
    }
}

/// A full disk is told by its own name; where it is, [`full::explain`] adds.
fn io_error(error: std::io::Error) -> KvError {
    match DiskFull::is(&error) {
        true => KvError::Full(DiskFull("the node's stores".into())),
        false => KvError::Io(error.to_string()),
    }
}

async fn blocking<T: Send + 'static>(
    job: impl FnOnce() -> Result<T, KvError> + Send + 'static,
) -> Result<T, KvError> {
    tokio::task::spawn_blocking(job)
        .await
        .unwrap_or_else(|e| Err(KvError::Io(format!("the engine was cut short: {e}"))))
}

/// Creates the root and makes its own name durable.
fn make_root(root: &Path) -> std::io::Result<()> {
    if root.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(root)?;
    root.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// A crash in between leaves the damaged store where it was, or one under the other name.
fn put_away(root: &Path, path: &Path, away: &Path) -> std::io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    remove(root, away)?;
    std::fs::rename(path, away)?;
    File::open(root)?.sync_all()
}

fn remove(root: &Path, path: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => File::open(root)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_store_opens_once_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let kv = RealKv::new(dir.path().join("data"));
        for role in [KvRole::Catalogue, KvRole::Index] {
            let store = kv.open(role).await.unwrap();
            assert!(matches!(kv.open(role).await, Err(KvError::InUse)));
            let other_process = RealKv::new(dir.path().join("data"));
            assert!(matches!(other_process.open(role).await, Err(KvError::InUse)));
            drop(store);
            kv.open(role).await.unwrap();
        }
    }

    #[tokio::test]
    async fn only_the_index_can_be_discarded_and_only_when_closed() {
        let dir = tempfile::tempdir().unwrap();
        let kv = RealKv::new(dir.path());
        assert!(kv.discard(KvRole::Catalogue).await.is_err());
        let store = kv.open(KvRole::Index).await.unwrap();
        store.write(vec![record::put(1, *b"key", 1, b"value")]).unwrap();
        store.flush().await.unwrap();
        assert!(kv.discard(KvRole::Index).await.is_err());
        drop(store);
        kv.discard(KvRole::Index).await.unwrap();
        kv.discard(KvRole::Index).await.unwrap();
        assert_eq!(kv.open(KvRole::Index).await.unwrap().get(1, b"key").unwrap(), None);
    }

    #[tokio::test]
    async fn a_damaged_catalogue_is_put_away_and_only_when_closed() {
        let dir = tempfile::tempdir().unwrap();
        let kv = RealKv::new(dir.path());
        kv.put_away().await.unwrap();
        for round in [1, 2] {
            let store = kv.open(KvRole::Catalogue).await.unwrap();
            assert_eq!(store.get(1, b"key").unwrap(), None, "round {round}");
            store.write(vec![record::put(1, *b"key", 1, b"value")]).unwrap();
            store.flush().await.unwrap();
            assert!(matches!(kv.put_away().await, Err(KvError::InUse)));
            drop(store);
            kv.put_away().await.unwrap();
            assert!(dir.path().join("catalogue.damaged").exists());
        }
    }
}
