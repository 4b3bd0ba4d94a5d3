//! Copying a snapshot into another repository, or another cluster: it is backed up there from where it lies. Keys and cuts differ
//! from repository to repository, so that its chunks are opened, cut and sealed anew; what a copy before it brought is not read
//! again, by the rules of any incremental backup.

use crate::backup;
use crate::client::Repository;
use crate::error::{Error, Result};
use crate::fetch::ChunkReader;
use crate::files::source::{Listed, Listing, Opened, Source, SourceFile};
use crate::files::{FileKind, FileTime, Fingerprint, Meta, RelPath, Stat};
use crate::format::tree::lookup;
use crate::format::{ChunkSource, ContentIter, DirIter, Entry, Node, Placed};
use crate::list::{Filter, Snapshot, Spot, find};
use crate::progress::Progress;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use farshore_core::catalogue::{PackKind, SnapshotKind};
use farshore_core::id::ChunkId;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

/// Bytes of one file read ahead.
const AHEAD_BYTES: u64 = 16 << 20;
/// Entries of a directory listed at a time.
const LIST_PAGE: usize = 256;

impl Repository {
    /// The snapshot that an earlier copy of this one has become here: of the same host, paths, user and time.
    pub async fn copy_of(&self, snapshot: &Snapshot) -> Result<Option<Snapshot>> {
        let info = &snapshot.info;
        let same = |other: &Snapshot| {
            let other = &other.info;
            (other.time_ms, &other.host, &other.paths, &other.user)
                == (info.time_ms, &info.host, &info.paths, &info.user)
        };
        Ok(self.snapshots(&Filter::default()).await?.into_iter().find(same))
    }

    /// Copies a snapshot of another repository into this one. Its host, user, paths, tags and time stay; it gets an id of its
    /// own. Cancelling it leaves what cancelling a backup leaves.
    pub async fn copy(
        &self,
        from: &Repository,
        snapshot: &Snapshot,
        progress: Arc<dyn Progress>,
    ) -> Result<backup::Summary> {
        let info = &snapshot.info;
        let options = backup::Options {
            paths: info.paths.clone(),
            kind: SnapshotKind::Incremental,
            host_name: info.host.clone(),
            user: info.user.clone(),
            tags: info.tags.clone(),
            utc_offset_min: info.utc_offset_min,
            time_ms: Some(info.time_ms),
            scanned_ms: Some((info.scan_start_ms, info.scan_end_ms)),
            ..backup::Options::default()
        };
        let source =
            SnapshotSource { trees: from.trees(), reader: from.reader(), snapshot: snapshot.clone() };
        let summary = self.backup(&options, Arc::new(source), progress).await?;
        match summary.info.stats.unreadable {
            0 => Ok(summary),
            paths => Err(Error::Invalid(format!(
                "{paths} paths of snapshot {} could not be read; the copy lacks them",
                snapshot.id.short()
            ))),
        }
    }
}

/// A snapshot as a tree to back up.
struct SnapshotSource {
    trees: Arc<dyn ChunkSource>,
    reader: Arc<ChunkReader>,
    snapshot: Snapshot,
}

fn failed(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

impl SnapshotSource {
    async fn dir(&self, path: &[u8]) -> io::Result<ChunkId> {
        match find(self.trees.as_ref(), &self.snapshot, path).await.map_err(failed)? {
            Spot::Dir(root) => Ok(root),
            Spot::Entry(_) => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    async fn entry(&self, path: &[u8]) -> io::Result<Entry> {
        let path = RelPath::from_path(path).map_err(io::Error::other)?;
        let (dir, name) = path.split().ok_or(io::ErrorKind::IsADirectory)?;
        let root = self.dir(dir.as_bytes()).await?;
        let entry = lookup(self.trees.as_ref(), root, name).await.map_err(failed)?;
        entry.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file about to be read, and the places of its first bytes.
    async fn begin(&self, path: &[u8], want: usize) -> io::Result<(SnapshotFile, Vec<Placed>)> {
        let entry = self.entry(path).await?;
        let Node::File { size, content } = &entry.node else {
            return Err(io::Error::other("it is no regular file"));
        };
        let mut file = SnapshotFile {
            chunks: ContentIter::new(self.trees.clone(), content),
            reader: self.reader.clone(),
            pending: BytesMut::new(),
            seen: Fingerprint::of(*size, &entry.meta),
        };
        let first = file.places(want as u64).await?;
        Ok((file, first))
    }
}

fn stat(entry: &Entry) -> Stat {
    Stat { kind: entry.node.kind(), meta: entry.meta.clone() }
}

#[async_trait]
impl Source for SnapshotSource {
    async fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        if path == b"/" {
            // A snapshot has no entry for its root.
            let time = FileTime::from_ms(self.snapshot.info.time_ms as i64);
            let meta = Meta { mode: 0o755, mtime: time, ctime: time, ..Meta::default() };
            return Ok(Stat { kind: FileKind::Dir, meta });
        }
        self.entry(path).await.map(|entry| stat(&entry))
    }

    async fn list(&self, path: &[u8]) -> io::Result<Box<dyn Listing>> {
        Ok(Box::new(SnapshotListing(DirIter::new(self.trees.clone(), self.dir(path).await?))))
    }

    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened> {
        let mut opened = self.open_all(&[path.to_vec()], want).await;
        opened.pop().unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
    }

    /// All of them from one plan: small files of a directory lie beside each other.
    async fn open_all(&self, paths: &[Vec<u8>], want: usize) -> Vec<io::Result<Opened>> {
        let mut begun = Vec::with_capacity(paths.len());
        for path in paths {
            begun.push(self.begin(path, want).await);
        }
        let places = begun.iter().flatten().flat_map(|(_, places)| places);
        let ids: Vec<ChunkId> = places.map(|place| place.id).collect();
        let read = match self.reader.read(PackKind::Data, &ids).await {
            Ok(read) => read,
            Err(error) => {
                let why = error.to_string();
                return paths.iter().map(|_| Err(io::Error::other(why.clone()))).collect();
            }
        };
        let read: BTreeMap<ChunkId, _> = read.into_iter().collect();
        let mut opened = Vec::with_capacity(paths.len());
        for begun in begun {
            opened.push(match begun {
                Ok((file, places)) => file.opened(&places, &read, want).await,
                Err(error) => Err(error),
            });
        }
        opened
    }
}

struct SnapshotListing(DirIter);

#[async_trait]
impl Listing for SnapshotListing {
    async fn next(&mut self) -> io::Result<Vec<Listed>> {
        let mut page = Vec::with_capacity(LIST_PAGE);
        while page.len() < LIST_PAGE {
            let Some(entry) = self.0.next().await.map_err(failed)? else { break };
            let stat = Ok(stat(&entry));
            page.push(Listed { name: entry.name, stat });
        }
        Ok(page)
    }
}

type Read = BTreeMap<ChunkId, Result<Bytes, Arc<Error>>>;

struct SnapshotFile {
    chunks: ContentIter,
    reader: Arc<ChunkReader>,
    pending: BytesMut,
    seen: Fingerprint,
}

impl SnapshotFile {
    /// Places of the next bytes, so many at least unless the file ends.
    async fn places(&mut self, bytes: u64) -> io::Result<Vec<Placed>> {
        let (mut places, mut sum) = (Vec::new(), 0);
        while sum < bytes {
            let Some(placed) = self.chunks.next().await.map_err(failed)? else { break };
            sum += u64::from(placed.len);
            places.push(placed);
        }
        Ok(places)
    }

    fn take(&mut self, places: &[Placed], read: &Read) -> io::Result<()> {
        for place in places {
            match read.get(&place.id) {
                Some(Ok(bytes)) => self.pending.extend_from_slice(bytes),
                Some(Err(error)) => return Err(io::Error::other(error.to_string())),
                None => return Err(io::Error::other("a chunk of it did not come")),
            }
        }
        Ok(())
    }

    async fn opened(mut self, places: &[Placed], read: &Read, want: usize) -> io::Result<Opened> {
        self.take(places, read)?;
        let head = self.pending.split_to(want.min(self.pending.len())).freeze();
        let seen = self.seen;
        // The caller takes the file for ended if fewer bytes came than it wanted.
        let rest = (head.len() == want).then(|| Box::new(self) as Box<dyn SourceFile>);
        Ok(Opened { head, seen, rest })
    }
}

#[async_trait]
impl SourceFile for SnapshotFile {
    async fn read(&mut self, want: usize) -> io::Result<Bytes> {
        while self.pending.len() < want {
            let places = self.places(AHEAD_BYTES).await?;
            if places.is_empty() {
                break;
            }
            let ids: Vec<ChunkId> = places.iter().map(|place| place.id).collect();
            let read = self.reader.read(PackKind::Data, &ids).await.map_err(failed)?;
            self.take(&places, &read.into_iter().collect())?;
        }
        Ok(self.pending.split_to(want.min(self.pending.len())).freeze())
    }
    async fn fingerprint(&mut self) -> io::Result<Fingerprint> {
        Ok(self.seen)
    }
}
