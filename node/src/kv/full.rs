//! Tells a full disk from a failed one, whatever the engine makes of it: one engine names the error, another panics, and
//! what either says afterwards names its own state only. An operator has to know.

use async_trait::async_trait;
use farshore_core::host::DiskFull;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// With less than this left, an engine that fails has failed for want of room.
const FULL_BYTES: u64 = 1 << 20;

/// A store below a directory that may run full.
pub(super) struct Watched {
    store: Arc<dyn Kv>,
    root: PathBuf,
}

impl Watched {
    pub(super) fn around(store: Arc<dyn Kv>, root: &Path) -> Arc<dyn Kv> {
        Arc::new(Watched { store, root: root.to_owned() })
    }
}

/// What an error below `root` comes to.
pub(super) fn explain(error: KvError, root: &Path) -> KvError {
    match error {
        KvError::Full(_) => KvError::Full(DiskFull(root.display().to_string())),
        KvError::Io(_) if is_full(root) => KvError::Full(DiskFull(root.display().to_string())),
        other => other,
    }
}

fn is_full(root: &Path) -> bool {
    // One that does not say how large it is does not say what is left either.
    let full = |stat: rustix::fs::StatVfs| {
        stat.f_blocks > 0 && stat.f_bavail.saturating_mul(stat.f_frsize) < FULL_BYTES
    };
    rustix::fs::statvfs(root).is_ok_and(full)
}

impl KvRead for Watched {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.store.get(table, key).map_err(|e| explain(e, &self.root))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        self.store.scan(table, from, to, limit).map_err(|e| explain(e, &self.root))
    }
    fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<KvPair>, KvError> {
        self.store.scan_some(table, from, to, limit, bytes_max).map_err(|e| explain(e, &self.root))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.store.last(table, from, to).map_err(|e| explain(e, &self.root))
    }
}

#[async_trait]
impl Kv for Watched {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        self.store.write(batch).map_err(|e| explain(e, &self.root))
    }
    async fn flush(&self) -> Result<(), KvError> {
        self.store.flush().await.map_err(|e| explain(e, &self.root))
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        self.store.freeze().map_err(|e| explain(e, &self.root))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::io_error;
    use std::io::{Error, ErrorKind};

    #[test]
    fn a_full_disk_is_told_from_a_failed_one_and_named() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [ErrorKind::StorageFull, ErrorKind::QuotaExceeded] {
            let told = explain(io_error(Error::from(kind)), dir.path());
            assert!(matches!(told, KvError::Full(_)), "{told}");
            assert!(told.to_string().contains(dir.path().to_str().unwrap()), "{told}");
        }
        assert!(matches!(explain(io_error(Error::from(ErrorKind::NotFound)), dir.path()), KvError::Io(_)));
    }
}
