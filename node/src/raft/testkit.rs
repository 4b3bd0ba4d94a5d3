//! A disk in memory for the tests of this module, with the damage they need.

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

/// Files by name. Clones share them. Only what the mark needs works.
#[derive(Clone, Default)]
pub struct SlotDisk(Arc<Mutex<Slots>>);

#[derive(Default)]
struct Slots {
    files: BTreeMap<String, Vec<u8>>,
    /// Slot writes from this one on store only half of their bytes and fail.
    tear_after: Option<usize>,
    /// Start and length of every write.
    writes: Vec<(u64, usize)>,
}

impl SlotDisk {
    /// The file as it is now.
    pub fn file(&self, name: &str) -> Option<Vec<u8>> {
        self.0.lock().unwrap().files.get(name).cloned()
    }
    pub fn put(&self, name: &str, bytes: Option<Vec<u8>>) {
        let files = &mut self.0.lock().unwrap().files;
        match bytes {
            Some(bytes) => files.insert(name.into(), bytes),
            None => files.remove(name),
        };
    }
    /// Where the last slot was written.
    pub fn last_write(&self) -> u64 {
        self.0.lock().unwrap().writes.last().unwrap().0
    }
    pub fn tear_after(&self, writes: usize) {
        self.0.lock().unwrap().tear_after = Some(writes);
    }
}

fn unused<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "the mark needs no such call"))
}

#[async_trait]
impl Disk for SlotDisk {
    async fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        unused()
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let file = self.file(name).ok_or(io::ErrorKind::NotFound)?;
        let from = file.len().min(offset as usize);
        Ok(Bytes::copy_from_slice(&file[from..file.len().min(from + len)]))
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.file(name).map(|file| file.len() as u64))
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut slots = self.0.lock().unwrap();
        let torn = slots.tear_after.is_some_and(|left| left == 0);
        slots.tear_after = slots.tear_after.map(|left| left.saturating_sub(1));
        slots.writes.push((offset, bytes.len()));
        let file = slots.files.entry(name.into()).or_default();
        let len = if torn { bytes.len() / 2 } else { bytes.len() };
        let end = offset as usize + len;
        file.resize(file.len().max(end), 0);
        file[offset as usize..end].copy_from_slice(&bytes[..len]);
        if torn { Err(io::Error::other("power lost")) } else { Ok(()) }
    }
    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        unused()
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.put(name, None);
        Ok(())
    }
    async fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }
    async fn list(&self, _: &str) -> io::Result<Vec<String>> {
        unused()
    }
    async fn space(&self) -> io::Result<Space> {
        unused()
    }
}
