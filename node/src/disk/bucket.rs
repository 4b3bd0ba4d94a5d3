//! Files as objects of a bucket: S3, Azure Blob or Google Cloud Storage, below one prefix that belongs to one node.
//!
//! An object appears whole or not at all, and is durable once it appears. What the provider says is taken for damage or
//! loss of a file only where it can be nothing else: an object counts as absent only while the owner's note beside it can
//! be read, and every other failure says nothing about the object.

use super::check_name;
use super::provider::{BucketOptions, BucketUrl, connect};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space};
use farshore_core::limits::{
    BUCKET_PART_BYTES, BUCKET_PARTS_IN_FLIGHT, BUCKET_READ_BYTES, BUCKET_SLOT_BYTES_MAX, BUCKET_SPACE_BYTES,
    ERROR_TEXT_BYTES_MAX,
};
use object_store::buffered::BufWriter;
use object_store::path::Path;
use object_store::{Error, GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode};
use std::collections::BTreeSet;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// Where the owner's note lies. Below no directory that anybody lists as shards.
const OWNER: &str = "owner";

/// A bucket's prefix that is ours.
pub struct BucketDisk {
    store: Arc<dyn ObjectStore>,
    url: BucketUrl,
    owner: String,
}

impl BucketDisk {
    /// Connects, and takes the prefix for `owner` or checks that it is the owner's.
    pub async fn open(options: &BucketOptions, owner: String) -> io::Result<Self> {
        let store = connect(options).map_err(|e| told(&options.url, e))?;
        Self::claimed(store, options.url.clone(), owner).await
    }

    /// As [`BucketDisk::open`], on a connection that is there.
    pub(super) async fn claimed(
        store: Arc<dyn ObjectStore>,
        url: BucketUrl,
        owner: String,
    ) -> io::Result<Self> {
        let disk = BucketDisk { store, url, owner };
        // Asks for the right to list, too, which an answer "not found" needs.
        let there = disk.list("").await?;
        if disk.found_owner().await?.is_none() {
            if let Some(name) = there.first() {
                return Err(disk.fail(
                    ErrorKind::AlreadyExists,
                    &format!(
                        "holds `{name}` but no `{OWNER}`: if that is this node's, put an object `{OWNER}` there that says `{}`",
                        disk.owner
                    ),
                ));
            }
            disk.put_owner().await?;
        }
        disk.check_owner().await?;
        Ok(disk)
    }

    /// Two nodes may do this at once: the first one's note stays, where the provider can tell which that is.
    async fn put_owner(&self) -> io::Result<()> {
        let key = self.key(OWNER)?;
        let payload = || self.owner.clone().into();
        match self.store.put_opts(&key, payload(), PutMode::Create.into()).await {
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Ok(()),
            Err(Error::NotImplemented { .. } | Error::NotSupported { .. }) => {
                self.store.put(&key, payload()).await.map(drop).map_err(|e| self.told(e))
            }
            other => other.map(drop).map_err(|e| self.told(e)),
        }
    }

    async fn found_owner(&self) -> io::Result<Option<String>> {
        let key = self.key(OWNER)?;
        let got = async { self.store.get(&key).await?.bytes().await };
        match got.await {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().into())),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(e) => Err(self.told(e)),
        }
    }

    /// The bucket is there and this part of it ours. Asked before any object is believed to be absent: a bucket that
    /// was removed, or another one in its place, answers "not found" too.
    async fn check_owner(&self) -> io::Result<()> {
        match self.found_owner().await? {
            Some(found) if found == self.owner => Ok(()),
            Some(found) => {
                let why = format!("belongs to {found}, and this is {}", self.owner);
                Err(self.fail(ErrorKind::PermissionDenied, &why))
            }
            None => Err(self.fail(ErrorKind::Other, &format!("is gone, or its object `{OWNER}` is"))),
        }
    }

    fn fail(&self, kind: ErrorKind, why: &str) -> io::Error {
        io::Error::new(kind, format!("bucket {} {why}", self.url))
    }

    fn told(&self, error: Error) -> io::Error {
        told(&self.url, error)
    }

    /// The object of a name below the prefix.
    fn key(&self, name: &str) -> io::Result<Path> {
        check_name(name)?;
        let prefix = if self.url.prefix.is_empty() { None } else { Some(self.url.prefix.as_str()) };
        let whole = prefix.into_iter().chain([name]).collect::<Vec<_>>().join("/");
        Path::parse(whole).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))
    }

    /// Length of an object and some of its bytes.
    async fn fetch(&self, name: &str, offset: u64, len: usize) -> io::Result<Option<(u64, Bytes)>> {
        let key = self.key(name)?;
        // Nobody has anything to say about no bytes, nor about those beyond any end.
        let end = offset.checked_add(len as u64).filter(|end| *end > offset);
        let Some(end) = end else { return Ok(self.len(name).await?.map(|len| (len, Bytes::new()))) };
        let range = GetOptions { range: Some(GetRange::Bounded(offset..end)), ..GetOptions::default() };
        let got = async {
            let found = self.store.get_opts(&key, range).await?;
            Ok::<_, Error>((found.meta.size, found.bytes().await?))
        };
        match got.await {
            Ok(got) => Ok(Some(got)),
            Err(Error::NotFound { .. }) => self.check_owner().await.map(|()| None),
            // A range that begins behind the end is refused, and each provider has its own words for that.
            Err(e) if is_refusal(&e) => match self.len(name).await? {
                Some(len) if offset >= len => Ok(Some((len, Bytes::new()))),
                _ => Err(self.told(e)),
            },
            Err(e) => Err(self.told(e)),
        }
    }

    async fn entries(&self, dir: &str) -> io::Result<Vec<(String, Option<u64>)>> {
        let prefix = match (dir, self.url.prefix.as_str()) {
            ("", "") => None,
            ("", prefix) => Some(Path::parse(prefix).map_err(|e| self.told(e.into()))?),
            (dir, _) => Some(self.key(dir)?),
        };
        let found = match self.store.list_with_delimiter(prefix.as_ref()).await {
            // A directory that is not there has no entries; so this is about the bucket itself.
            Err(Error::NotFound { .. }) => return Err(self.fail(ErrorKind::Other, "is gone")),
            found => found.map_err(|e| self.told(e))?,
        };
        let below = |path: &Path| path.filename().map(str::to_owned);
        let dirs = found.common_prefixes.iter().filter_map(|path| Some((below(path)? + "/", None)));
        let files = found.objects.iter().filter_map(|meta| Some((below(&meta.location)?, Some(meta.size))));
        let mut entries: Vec<_> =
            dirs.chain(files).filter(|(name, _)| !(dir.is_empty() && name == OWNER)).collect();
        entries.sort();
        Ok(entries)
    }
}

#[async_trait]
impl Disk for BucketDisk {
    /// The object appears when the file is synced.
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let writer = BufWriter::with_capacity(self.store.clone(), self.key(name)?, BUCKET_PART_BYTES)
            .with_max_concurrency(BUCKET_PARTS_IN_FLIGHT);
        Ok(Box::new(BucketFile { url: self.url.clone(), writer }))
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        match self.fetch(name, offset, len).await? {
            Some((_, bytes)) => Ok(bytes),
            None => Err(io::Error::new(ErrorKind::NotFound, format!("no object {name}"))),
        }
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        match self.store.head(&self.key(name)?).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(Error::NotFound { .. }) => self.check_owner().await.map(|()| None),
            Err(e) => Err(self.told(e)),
        }
    }
    /// An object cannot be changed in place: it is read, changed and put again, whole.
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let end = offset.saturating_add(bytes.len() as u64);
        if end > BUCKET_SLOT_BYTES_MAX {
            return Err(io::Error::new(ErrorKind::InvalidInput, format!("{name} is too large for a slot")));
        }
        let old = self.fetch(name, 0, BUCKET_SLOT_BYTES_MAX as usize).await?;
        let mut slot = old.map_or(vec![], |(_, bytes)| bytes.to_vec());
        slot.resize(slot.len().max(end as usize), 0);
        slot[offset as usize..end as usize].copy_from_slice(bytes);
        self.store.put(&self.key(name)?, slot.into()).await.map(drop).map_err(|e| self.told(e))
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        match self.store.copy(&self.key(from)?, &self.key(to)?).await {
            Ok(()) => self.remove(from).await,
            Err(Error::NotFound { .. }) => {
                self.check_owner().await?;
                Err(io::Error::new(ErrorKind::NotFound, format!("no object {from}")))
            }
            Err(e) => Err(self.told(e)),
        }
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        match self.store.delete(&self.key(name)?).await {
            Err(Error::NotFound { .. }) => self.check_owner().await,
            removed => removed.map_err(|e| self.told(e)),
        }
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        if dir.is_empty() { Ok(()) } else { check_name(dir) }
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        Ok(self.entries(dir).await?.into_iter().map(|(name, _)| name).collect())
    }
    /// Nobody can say; the node's capacity is the bound.
    async fn space(&self) -> io::Result<Space> {
        Ok(Space { total: BUCKET_SPACE_BYTES, free: BUCKET_SPACE_BYTES })
    }
    async fn filled(&self, dir: &str) -> io::Result<Option<BTreeSet<String>>> {
        Ok(Some(self.list(dir).await?.into_iter().filter(|name| name.ends_with('/')).collect()))
    }
    async fn list_sized(&self, dir: &str) -> io::Result<Vec<(String, Option<u64>)>> {
        self.entries(dir).await
    }
    async fn open(&self, name: &str, len: usize) -> io::Result<Option<(u64, Bytes)>> {
        self.fetch(name, 0, len).await
    }
    fn stride(&self, _name: &str) -> usize {
        BUCKET_READ_BYTES
    }
}

/// An object on its way. One that is not synced never appears; parts that a killed process had uploaded stay until the
/// bucket's own rules remove them.
struct BucketFile {
    url: BucketUrl,
    writer: BufWriter,
}

#[async_trait]
impl DiskFile for BucketFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        match self.writer.put(bytes).await {
            Ok(()) => Ok(()),
            Err(e) => {
                // A part that failed: the others must not stay and be paid for.
                let _ = self.writer.abort().await;
                Err(told(&self.url, e))
            }
        }
    }
    /// Once only, and last.
    async fn sync(&mut self) -> io::Result<()> {
        self.writer.shutdown().await.map_err(|e| match e.downcast::<Error>() {
            Ok(e) => told(&self.url, e),
            Err(other) => other,
        })
    }
}

/// The request was answered, and with no: it is no failure on the way.
fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::Generic { source, .. } if !source.to_string().contains("HTTP error"))
}

/// A provider's error as a disk's. Nothing becomes `NotFound` here, nor anything that a store takes for damage.
fn told(url: &BucketUrl, error: Error) -> io::Error {
    let kind = match &error {
        Error::PermissionDenied { source, .. } | Error::Generic { source, .. }
            if is_full(source.as_ref()) =>
        {
            ErrorKind::StorageFull
        }
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => ErrorKind::PermissionDenied,
        Error::InvalidPath { .. } => ErrorKind::InvalidInput,
        _ => ErrorKind::Other,
    };
    // One line, of what may be a whole page.
    let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    let text: String = text.chars().take(ERROR_TEXT_BYTES_MAX / 2).collect();
    io::Error::new(kind, format!("bucket {url}: {text}"))
}

/// Servers of one's own have an end, and say so with these words.
fn is_full(source: &(dyn std::error::Error + Send + Sync)) -> bool {
    let text = source.to_string();
    ["QuotaExceeded", "XMinioStorageFull", "507 Insufficient Storage"].iter().any(|word| text.contains(word))
}
