//! The real disk below a node's data directory, and buckets beside it. Files only: what they mean is decided above, and
//! the order of data, name and directory in `host::publish`.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the file system")]

pub mod conformance;

pub mod mount;

pub mod bucket;

pub mod provider;

mod sync;

mod device;

#[cfg(test)]
pub(crate) mod bucket_test;

use async_trait::async_trait;
use bytes::Bytes;
use device::Devices;
use farshore_core::host::{Disk, DiskFile, DiskFull, Space, dir_of};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use sync::{Syncs, System};

/// Fewer that wait are synced each by itself.
const ROUND_MIN: usize = 4;
/// A round writes out everything that was written and not synced, also by those who do not wait. With more than this for
/// each that waits, they are better synced one by one.
const ROUND_BYTES_EACH: u64 = 1 << 20;

/// Files below one directory. Cheap to clone.
#[derive(Clone)]
pub struct RealDisk(Arc<Syncs<Root>>);

struct Root {
    path: PathBuf,
    devices: Devices,
    /// Bytes appended to open files and not synced.
    unsynced: AtomicU64,
    /// Times the system was asked to sync something.
    syncs: AtomicU64,
    /// Names, of directories and slots, that this process has made durable in their parents. A name that an earlier
    /// process made may have been lost to a crash before it was synced, so each process syncs every name once.
    durable: Mutex<BTreeSet<String>>,
}

impl RealDisk {
    /// Files below `root`, which comes into being with the first of them.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self::with_rounds(root, true)
    }

    /// As [`RealDisk::new`]; without rounds every file and directory is synced by itself, for comparison.
    pub fn with_rounds(root: impl Into<PathBuf>, rounds: bool) -> Self {
        let root = Root {
            path: root.into(),
            devices: Devices::new(rounds),
            unsynced: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            durable: Mutex::default(),
        };
        RealDisk(Arc::new(Syncs::new(root)))
    }

    /// How often the system was asked to sync a file, a directory or a whole file system.
    pub fn syncs(&self) -> u64 {
        self.root().syncs.load(Ordering::Relaxed)
    }

    fn root(&self) -> &Root {
        &self.0.system
    }

    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let syncs = self.0.clone();
        blocking(move || job(&syncs.system)).await.map_err(|e| self.root().told(e))
    }
}

async fn blocking<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(job).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

impl Root {
    /// The path of a file, if its name stays below the root.
    fn file(&self, name: &str) -> io::Result<PathBuf> {
        check_name(name)?;
        Ok(self.path.join(name))
    }

    fn dir(&self, name: &str) -> io::Result<PathBuf> {
        if name.is_empty() { Ok(self.path.clone()) } else { self.file(name) }
    }

    fn is_durable(&self, name: &str) -> bool {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).contains(name)
    }

    fn forget_durable(&self, name: &str) {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }

    fn set_durable(&self, name: &str) {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner).insert(name.into());
    }

    /// Makes the names in a directory durable, and the directory's own name up to the root and the root's in its
    /// parent, as far as this process has not done so before.
    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let path = self.dir(dir)?;
        match self.sync_path(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            synced => synced?,
        }
        if self.is_durable(dir) {
            return Ok(());
        }
        if dir.is_empty() {
            let absolute = std::path::absolute(&path)?;
            absolute.parent().map_or(Ok(()), |parent| self.sync_path(parent))?;
        } else {
            self.sync_dir(dir_of(dir))?;
        }
        self.set_durable(dir);
        Ok(())
    }

    /// A full disk tells the operator what is full.
    fn told(&self, error: io::Error) -> io::Error {
        DiskFull::explain(error, &self.path)
    }

    fn sync_path(&self, path: &Path) -> io::Result<()> {
        let file = File::open(path)?;
        self.count_sync();
        file.sync_all()
    }

    fn count_sync(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Creates a file on a file system that is ready for rounds.
    fn create(&self, path: &Path) -> io::Result<File> {
        make_parent(path)?;
        let file = File::create(path)?;
        if let Some(dir) = path.parent() {
            self.devices.prepare(file.metadata()?.dev(), dir);
        }
        Ok(file)
    }

    /// Number of the file system whose sync is all that a target needs, if there is one.
    fn device_of(&self, target: &Target) -> Option<u64> {
        let metadata = match target {
            Target::File(file) => file.metadata(),
            // Its own name would have to become durable too, perhaps on another file system.
            Target::Dir(dir) if !self.is_durable(dir) => return None,
            Target::Dir(dir) => self.dir(dir).and_then(std::fs::metadata),
        };
        Some(metadata.ok()?.dev())
    }

    fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.file(name)?;
        make_parent(&path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.write_all_at(bytes, offset)?;
        self.count_sync();
        file.sync_data()?;
        if !self.is_durable(name) {
            self.sync_dir(dir_of(name))?;
            self.set_durable(name);
        }
        Ok(())
    }
}

/// What is synced.
enum Target {
    File(Arc<File>),
    Dir(String),
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Target::File(one), Target::File(other)) => Arc::ptr_eq(one, other),
            (Target::Dir(one), Target::Dir(other)) => one == other,
            _ => false,
        }
    }
}

impl System for Root {
    type Target = Target;

    fn round_pays(&self, waiting: usize) -> bool {
        let unsynced = self.unsynced.load(Ordering::Relaxed);
        waiting >= ROUND_MIN && unsynced <= waiting as u64 * ROUND_BYTES_EACH && self.devices.any()
    }

    fn sync(&self, target: &Target) -> io::Result<()> {
        match target {
            Target::File(file) => {
                self.count_sync();
                file.sync_data()
            }
            Target::Dir(dir) => self.sync_dir(dir),
        }
    }

    fn sync_round(&self, targets: &[&Target]) -> Vec<io::Result<()>> {
        let devices: Vec<_> = targets.iter().map(|target| self.device_of(target)).collect();
        let mut synced = BTreeMap::new();
        for device in devices.iter().flatten() {
            synced.entry(*device).or_insert_with(|| {
                self.count_sync();
                self.devices.sync(*device)
            });
        }
        let outcome = |(target, device): (&&Target, Option<u64>)| {
            let shared = device.and_then(|device| synced.get(&device)?.as_ref());
            shared.map_or_else(|| self.sync(target), sync::copy)
        };
        targets.iter().zip(devices).map(outcome).collect()
    }
}

/// A name stays below the root.
fn check_name(name: &str) -> io::Result<()> {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
    if name.split('/').all(part) {
        return Ok(());
    }
    Err(io::Error::new(ErrorKind::InvalidInput, format!("{name:?} is not a name below the root")))
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), std::fs::create_dir_all)
}

/// `Ok(None)` where there is no such file or directory.
fn found<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Reads until `len` bytes or the end of the file. Takes memory for what is there, not for what was asked.
fn read_at(path: &Path, offset: u64, len: usize) -> io::Result<Bytes> {
    let file = File::open(path)?;
    let there = file.metadata()?.len().saturating_sub(offset);
    let mut bytes = vec![0; len.min(usize::try_from(there).unwrap_or(usize::MAX))];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, offset + filled as u64) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    bytes.truncate(filled);
    Ok(bytes.into())
}

/// Names of the entries, and their files' lengths if `sized`.
fn list(path: &Path, sized: bool) -> io::Result<Vec<(String, Option<u64>)>> {
    let mut entries = vec![];
    for entry in found(std::fs::read_dir(path))?.into_iter().flatten() {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours: nothing here could open it.
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        let kind = entry.file_type()?;
        if kind.is_dir() {
            name.push('/');
        }
        entries.push((entry.ino(), name, (sized && kind.is_file()).then_some(entry)));
    }
    if sized {
        // In the order in which they lie on the disk: a listing is in that of a hash.
        entries.sort_unstable_by_key(|(number, ..)| *number);
    }
    let mut names = Vec::with_capacity(entries.len());
    for (_, name, entry) in entries {
        match entry.map(|entry| found(entry.metadata())) {
            None => names.push((name, None)),
            Some(metadata) => names.extend(metadata?.map(|metadata| (name, Some(metadata.len())))),
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[async_trait]
impl Disk for RealDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.root().file(name)?;
        let file = self.blocking(move |root| root.create(&path)).await?;
        Ok(Box::new(RealFile { file: Arc::new(file), unsynced: 0, syncs: self.0.clone() }))
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let path = self.root().file(name)?;
        blocking(move || read_at(&path, offset, len)).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        let path = self.root().file(name)?;
        blocking(move || Ok(found(std::fs::metadata(path))?.filter(|m| m.is_file()).map(|m| m.len()))).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (name, bytes) = (name.to_owned(), bytes.to_owned());
        self.blocking(move |root| root.write_slot(&name, offset, &bytes)).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.root().file(from)?, self.root().file(to)?);
        let rename = move |_: &Root| {
            make_parent(&to)?;
            std::fs::rename(from, to)
        };
        self.blocking(rename).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.root().file(name)?;
        // A slot that is written under this name later has to become durable anew.
        self.root().forget_durable(name);
        blocking(move || found(std::fs::remove_file(path)).map(|_| ())).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.root().dir(dir)?;
        self.0.sync(Target::Dir(dir.to_owned())).await.map_err(|e| self.root().told(e))
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.root().dir(dir)?;
        let names = blocking(move || list(&path, false)).await?;
        Ok(names.into_iter().map(|(name, _)| name).collect())
    }
    async fn list_sized(&self, dir: &str) -> io::Result<Vec<(String, Option<u64>)>> {
        let path = self.root().dir(dir)?;
        blocking(move || list(&path, true)).await
    }
    async fn space(&self) -> io::Result<Space> {
        let space = |root: &Root| {
            std::fs::create_dir_all(&root.path)?;
            let stat = rustix::fs::statvfs(&root.path)?;
            let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
            Ok(Space { total: bytes(stat.f_blocks), free: bytes(stat.f_bavail) })
        };
        self.blocking(space).await
    }
}

/// Not cancel-safe: a cancelled append may still reach the file, so its caller gives the file up.
struct RealFile {
    file: Arc<File>,
    unsynced: u64,
    syncs: Arc<Syncs<Root>>,
}

impl RealFile {
    /// What was appended is synced, or nobody wants it any more.
    fn settle(&mut self) {
        self.syncs.system.unsynced.fetch_sub(std::mem::take(&mut self.unsynced), Ordering::Relaxed);
    }
}

impl Drop for RealFile {
    fn drop(&mut self) {
        self.settle();
    }
}

#[async_trait]
impl DiskFile for RealFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let (file, len) = (self.file.clone(), bytes.len() as u64);
        self.unsynced += len;
        self.syncs.system.unsynced.fetch_add(len, Ordering::Relaxed);
        let appended = blocking(move || (&*file).write_all(&bytes)).await;
        appended.map_err(|e| self.syncs.system.told(e))
    }
    async fn sync(&mut self) -> io::Result<()> {
        let synced = self.syncs.sync(Target::File(self.file.clone())).await;
        synced.map_err(|e| self.syncs.system.told(e))?;
        self.settle();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn names_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path().join("root"));
        for bad in ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\0b"] {
            assert_eq!(disk.create(bad).await.err().unwrap().kind(), ErrorKind::InvalidInput, "{bad:?}");
            assert!(disk.read(bad, 0, 1).await.is_err(), "{bad:?}");
            assert!(disk.len(bad).await.is_err(), "{bad:?}");
            assert!(disk.rename("ok", bad).await.is_err(), "{bad:?}");
            assert!(disk.remove(bad).await.is_err(), "{bad:?}");
            assert!(disk.write_slot(bad, 0, b"x").await.is_err(), "{bad:?}");
        }
        assert!(disk.list("..").await.is_err());
        assert!(disk.sync_dir("a/..").await.is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing was created");
    }

    #[tokio::test]
    async fn the_real_disk_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let open = |n: u32| RealDisk::new(dir.path().join(n.to_string()));
        conformance::run(|n| std::future::ready(Arc::new(open(n)) as Arc<dyn Disk>)).await;
    }

    /// `/dev/full` takes nothing, as a disk without a byte left.
    #[tokio::test]
    async fn a_full_disk_says_which_it_is_and_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        std::os::unix::fs::symlink("/dev/full", dir.path().join("slot")).unwrap();
        let full = disk.write_slot("slot", 0, b"x").await.unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        let mut file = disk.create("slot").await.unwrap();
        let also_full = file.append(Bytes::from_static(b"x")).await.unwrap_err();
        assert_eq!(full.to_string(), also_full.to_string());
        let place = dir.path().to_str().unwrap();
        assert!(full.to_string().contains(place) && full.to_string().contains("free some space"), "{full}");
    }

    /// It was taken for durable under a name that had been removed: power lost after a slot was written anew could take it.
    #[tokio::test]
    async fn a_slot_written_again_under_a_removed_name_becomes_durable_anew() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        for _ in 0..2 {
            disk.write_slot("meta/slot", 0, b"one").await.unwrap();
            assert!(disk.root().is_durable("meta/slot"));
            disk.remove("meta/slot").await.unwrap();
            assert!(!disk.root().is_durable("meta/slot"));
        }
    }
}
