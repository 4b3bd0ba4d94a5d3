//! Two disks as one: names below one directory belong to one disk, all others to the node's own. So the shards lie in a
//! bucket, and identity, catalogue and index where they always do.
//!
//! Files that are still being written stay on the node's own disk, below a directory whose content no start needs, and
//! cross over when they get their final name: a shard that is refused or cut off costs no request, and none takes
//! memory.

use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space};
use farshore_core::limits::{BUCKET_UPLOADS_MAX, SHARD_BLOCK_BYTES, SPOOL_BYTES};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Bytes read at a time of a file that crosses over.
const CROSSING_BYTES: usize = 16 * SHARD_BLOCK_BYTES;

/// One disk mounted below a directory of another.
pub struct Mount {
    own: Arc<dyn Disk>,
    mounted: Arc<dyn Disk>,
    /// With a trailing `/`.
    at: String,
    /// With a trailing `/`.
    spool: String,
    crossings: Semaphore,
}

impl Mount {
    /// Files below the directory `at` lie on `mounted`, except those below `spool`, and all others on `own`.
    pub fn new(own: Arc<dyn Disk>, mounted: Arc<dyn Disk>, at: &str, spool: &str) -> Self {
        let crossings = Semaphore::new(BUCKET_UPLOADS_MAX);
        Mount { own, mounted, at: format!("{at}/"), spool: format!("{spool}/"), crossings }
    }

    fn is_spooled(&self, name: &str) -> bool {
        name.starts_with(&self.spool)
    }

    fn is_mounted(&self, name: &str) -> bool {
        name.starts_with(&self.at) && !self.is_spooled(name)
    }

    fn disk(&self, name: &str) -> &dyn Disk {
        if self.is_mounted(name) { self.mounted.as_ref() } else { self.own.as_ref() }
    }

    /// The disk that has a directory.
    fn disk_of_dir(&self, dir: &str) -> &dyn Disk {
        self.disk(&format!("{dir}/"))
    }

    /// What is mounted in a directory, if it does not lie deeper and there is anything in it.
    async fn mounted_in(&self, dir: &str) -> io::Result<Option<String>> {
        let below =
            if dir.is_empty() { Some(self.at.as_str()) } else { self.at.strip_prefix(&format!("{dir}/")) };
        match below {
            Some(name) if name.split_once('/').is_some_and(|(_, deeper)| deeper.is_empty()) => {
                let empty = self.mounted.list(self.at.trim_end_matches('/')).await?.is_empty();
                Ok((!empty).then(|| name.to_owned()))
            }
            _ => Ok(None),
        }
    }

    /// Durable on the other disk before it goes from this one.
    async fn cross(&self, from: &str, to: &str) -> io::Result<()> {
        let _turn = self.crossings.acquire().await.map_err(io::Error::other)?;
        let (source, target) = (self.disk(from), self.disk(to));
        let missing = || io::Error::new(ErrorKind::NotFound, format!("no file {from}"));
        let len = source.len(from).await?.ok_or_else(missing)?;
        let mut file = target.create(to).await?;
        let mut offset = 0;
        while offset < len {
            let bytes = source.read(from, offset, CROSSING_BYTES).await?;
            if bytes.is_empty() {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, format!("{from} became shorter")));
            }
            offset += bytes.len() as u64;
            file.append(bytes).await?;
        }
        file.sync().await?;
        if let Err(why) = source.remove(from).await {
            tracing::warn!(%why, from, "a file that has crossed over stays behind until the next start");
        }
        Ok(())
    }
}

#[async_trait]
impl Disk for Mount {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let file = self.disk(name).create(name).await?;
        Ok(if self.is_spooled(name) { Box::new(Spooled(file)) } else { file })
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        self.disk(name).read(name, offset, len).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        self.disk(name).len(name).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk(name).write_slot(name, offset, bytes).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        if self.is_mounted(from) == self.is_mounted(to) {
            return self.disk(from).rename(from, to).await;
        }
        self.cross(from, to).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.disk(name).remove(name).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.disk_of_dir(dir).sync_dir(dir).await
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let mut names = self.disk_of_dir(dir).list(dir).await?;
        if let Some(name) = self.mounted_in(dir).await? {
            names.retain(|own| *own != name);
            names.push(name);
            names.sort();
        }
        Ok(names)
    }
    /// The mounted disk's, unless the own one could run full of files that wait to cross over.
    async fn space(&self) -> io::Result<Space> {
        match self.own.space().await? {
            own if own.free >= SPOOL_BYTES => self.mounted.space().await,
            own => Ok(own),
        }
    }
    async fn filled(&self, dir: &str) -> io::Result<Option<BTreeSet<String>>> {
        self.disk_of_dir(dir).filled(dir).await
    }
    async fn list_sized(&self, dir: &str) -> io::Result<Vec<(String, Option<u64>)>> {
        match self.is_mounted(&format!("{dir}/")) {
            true => self.mounted.list_sized(dir).await,
            false => Ok(self.list(dir).await?.into_iter().map(|name| (name, None)).collect()),
        }
    }
    async fn open(&self, name: &str, len: usize) -> io::Result<Option<(u64, Bytes)>> {
        self.disk(name).open(name, len).await
    }
    fn stride(&self, name: &str) -> usize {
        self.disk(name).stride(name)
    }
}

/// A file that need not survive a crash where it is: nobody looks for it before it has crossed over.
struct Spooled(Box<dyn DiskFile>);

#[async_trait]
impl DiskFile for Spooled {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.append(bytes).await
    }
    async fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
