//! A disk that is about to die: every byte is there, and comes late.

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Reads take so many milliseconds longer.
#[derive(Clone, Default)]
pub struct Delay(Arc<AtomicU64>);

impl Delay {
    pub fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::Relaxed);
    }
    pub fn on(&self, disk: impl Disk + 'static) -> Arc<dyn Disk> {
        Arc::new(SlowDisk { inner: Box::new(disk), delay: self.clone() })
    }
}

struct SlowDisk {
    inner: Box<dyn Disk>,
    delay: Delay,
}

#[async_trait]
impl Disk for SlowDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.inner.create(name).await
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        tokio::time::sleep(Duration::from_millis(self.delay.0.load(Ordering::Relaxed))).await;
        self.inner.read(name, offset, len).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        self.inner.len(name).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.inner.write_slot(name, offset, bytes).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inner.rename(from, to).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.inner.remove(name).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.inner.sync_dir(dir).await
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.inner.list(dir).await
    }
    async fn space(&self) -> io::Result<Space> {
        self.inner.space().await
    }
}
