//! The real disk below a node's data directory, and buckets beside it. Files only: what they mean is decided above, and
//! the order of data, name and directory in `host::publish`.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the file system")]

pub mod conformance;

pub mod mount;

pub mod bucket;

pub mod provider;

#[cfg(test)]
pub(crate) mod bucket_test;

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space, dir_of};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Files below one directory. Cheap to clone.
#[derive(Clone)]
pub struct RealDisk(Arc<Root>);

struct Root {
    path: PathBuf,
    /// Names, of directories and slots, that this process has made durable in their parents. A name that an earlier
    /// process made may have been lost to a crash before it was synced, so each process syncs every name once.
    durable: Mutex<BTreeSet<String>>,
}

impl RealDisk {
    /// Files below `root`, which comes into being with the first of them.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        RealDisk(Arc::new(Root { path: root.into(), durable: Mutex::default() }))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Root) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let root = self.0.clone();
        blocking(move || job(&root)).await
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
        match sync(&path) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            synced => synced?,
        }
        if self.is_durable(dir) {
            return Ok(());
        }
        if dir.is_empty() {
            let absolute = std::path::absolute(&path)?;
            absolute.parent().map_or(Ok(()), sync)?;
        } else {
            self.sync_dir(dir_of(dir))?;
        }
        self.set_durable(dir);
        Ok(())
    }

    fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let path = self.file(name)?;
        make_parent(&path)?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(path)?;
        file.write_all_at(bytes, offset)?;
        file.sync_data()?;
        if !self.is_durable(name) {
            self.sync_dir(dir_of(name))?;
            self.set_durable(name);
        }
        Ok(())
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

fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
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

fn list(path: &Path) -> io::Result<Vec<String>> {
    let mut names = vec![];
    for entry in found(std::fs::read_dir(path))?.into_iter().flatten() {
        let entry = entry?;
        // A name that is not UTF-8 is none of ours: nothing here could open it.
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if entry.file_type()?.is_dir() {
            name.push('/');
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

#[async_trait]
impl Disk for RealDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let path = self.0.file(name)?;
        let create = move || {
            make_parent(&path)?;
            File::create(path)
        };
        Ok(Box::new(RealFile(Arc::new(blocking(create).await?))))
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let path = self.0.file(name)?;
        blocking(move || read_at(&path, offset, len)).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        let path = self.0.file(name)?;
        blocking(move || Ok(found(std::fs::metadata(path))?.filter(|m| m.is_file()).map(|m| m.len()))).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let (name, bytes) = (name.to_owned(), bytes.to_owned());
        self.blocking(move |root| root.write_slot(&name, offset, &bytes)).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.0.file(from)?, self.0.file(to)?);
        let rename = move || {
            make_parent(&to)?;
            std::fs::rename(from, to)
        };
        blocking(rename).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        let path = self.0.file(name)?;
        // A slot that is written under this name later has to become durable anew.
        self.0.forget_durable(name);
        blocking(move || found(std::fs::remove_file(path)).map(|_| ())).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let dir = dir.to_owned();
        self.blocking(move |root| root.sync_dir(&dir)).await
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let path = self.0.dir(dir)?;
        blocking(move || list(&path)).await
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
struct RealFile(Arc<File>);

#[async_trait]
impl DiskFile for RealFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let file = self.0.clone();
        blocking(move || (&*file).write_all(&bytes)).await
    }
    async fn sync(&mut self) -> io::Result<()> {
        let file = self.0.clone();
        blocking(move || file.sync_data()).await
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

    /// It was taken for durable under a name that had been removed: power lost after a slot was written anew could take it.
    #[tokio::test]
    async fn a_slot_written_again_under_a_removed_name_becomes_durable_anew() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::new(dir.path());
        for _ in 0..2 {
            disk.write_slot("meta/slot", 0, b"one").await.unwrap();
            assert!(disk.0.is_durable("meta/slot"));
            disk.remove("meta/slot").await.unwrap();
            assert!(!disk.0.is_durable("meta/slot"));
        }
    }
}
