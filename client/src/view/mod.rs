//! A repository as a tree of directories that can be looked at while it changes: what `mount` shows, without a word about how
//! a kernel asks for it. Above are the snapshots by time, id, host and label; below each lies its tree. Nothing is read before
//! somebody asks for it, and what is kept is bounded by what is asked about.

mod chunks;
mod inodes;
mod shelves;
mod template;

#[cfg(test)]
mod view_test;

pub use template::{BadTemplate, TimeTemplate};

use crate::api::CatalogueApi;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::fetch::ChunkReader;
use crate::files::{FileKind, FileTime, Meta, Xattr};
use crate::format::tree::lookup;
use crate::format::{ChunkSource, DirIter, Node};
use crate::list::{self, Filter, Snapshot};
use bytes::Bytes;
use chunks::Chunks;
use farshore_core::limits::{VIEW_AHEAD_BYTES, VIEW_RELIST_MS};
use inodes::{Inode, Inodes, What};
use shelves::{Place, Shelves};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::{Duration, Instant};

pub use inodes::ROOT;

/// What to show and how.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Which snapshots.
    pub filter: Filter,
    /// Names of snapshots.
    pub template: TimeTemplate,
    /// Whom the directories belong to that are in no snapshot: user and group.
    pub owner: (u32, u32),
    /// Everything belongs to root.
    pub owner_root: bool,
}

/// What is known of an inode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attr {
    /// Its number: as long as the view exists, the same name has the same number.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with set-id and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Hard links to it.
    pub nlink: u64,
    /// Last change of contents.
    pub mtime: FileTime,
    /// Last change of contents or attributes.
    pub ctime: FileTime,
    /// Last read.
    pub atime: FileTime,
    /// It is in a snapshot, where nothing ever changes.
    pub settled: bool,
}

impl Attr {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        match &self.kind {
            FileKind::File { size } => *size,
            FileKind::Symlink { target } => target.len() as u64,
            _ => 0,
        }
    }
}

/// A repository to look at. Shared behind an `Arc`.
pub struct View {
    api: Arc<dyn CatalogueApi>,
    keys: RepoKeys,
    chunks: Arc<Chunks>,
    options: Options,
    inodes: Mutex<Inodes>,
    /// The snapshots as they were when somebody last asked, and when that was.
    shelves: tokio::sync::Mutex<Option<(Arc<Shelves>, Instant)>>,
}

impl View {
    /// Nothing looked at yet. Tree chunks come through `trees`.
    pub fn new(
        api: Arc<dyn CatalogueApi>,
        keys: RepoKeys,
        reader: Arc<ChunkReader>,
        trees: Arc<dyn ChunkSource>,
        options: Options,
    ) -> Self {
        let chunks = Arc::new(Chunks::new(reader, trees));
        View { api, keys, chunks, options, inodes: Mutex::default(), shelves: tokio::sync::Mutex::default() }
    }

    /// What a directory has under a name, `None` if nothing. Counts as one reference to the inode.
    pub async fn lookup(&self, parent: u64, name: &[u8]) -> Result<Option<Attr>> {
        let parent = self.inode(parent)?;
        let found = self.child(&parent, name).await?;
        Ok(found.map(|child| self.refer(child)))
    }

    /// Takes back references; an inode without any is forgotten.
    pub fn forget(&self, ino: u64, references: u64) {
        self.inodes().forget(ino, references);
    }

    /// What is known of an inode.
    pub fn attr(&self, ino: u64) -> Result<Attr> {
        let inode = self.inode(ino)?;
        Ok(self.attr_of(ino, &inode))
    }

    /// Extended attributes of an inode, sorted by name.
    pub fn xattrs(&self, ino: u64) -> Result<Vec<Xattr>> {
        Ok(match &self.inode(ino)?.what {
            What::Entry(entry) => entry.meta.xattrs.clone(),
            _ => Vec::new(),
        })
    }

    /// Begins to list a directory.
    pub async fn open_dir(&self, ino: u64) -> Result<Listing> {
        let inode = self.inode(ino)?;
        let names = match &inode.what {
            What::Shelf(path) => {
                let shelves = self.shelves().await?;
                let shelf = shelves.shelf(path).ok_or_else(gone)?;
                let names: Vec<Vec<u8>> = shelf.keys().cloned().collect();
                Names::Shelf { names: names.into_iter() }
            }
            _ => Names::Tree(Box::new(DirIter::new(self.chunks.clone(), directory(&inode)?))),
        };
        Ok(Listing { ino, inode, names, held: None, given: 0 })
    }

    /// The next name of a listing with what it names, `None` at the end. It comes again until it is [taken](View::take), so
    /// that nothing is lost when there is no room for it.
    pub async fn peek(&self, listing: &mut Listing) -> Result<Option<Listed>> {
        while listing.held.is_none() {
            let child = match &mut listing.names {
                Names::Shelf { names } => {
                    let Some(name) = names.next() else { return Ok(None) };
                    // Since forgotten, perhaps.
                    self.child(&listing.inode, &name).await?.map(|child| (name, child))
                }
                Names::Tree(entries) => {
                    let Some(entry) = entries.next().await? else { return Ok(None) };
                    Some((entry.name.clone(), listing.inode.entry(entry)))
                }
            };
            listing.held = child.map(|(name, child)| Held { name, child });
        }
        Ok(listing.held.as_ref().map(|held| {
            let ino = self.inodes().number(&held.child);
            Listed { name: held.name.clone(), attr: self.attr_of(ino, &held.child) }
        }))
    }

    /// Goes on behind the name that was last peeked at. `refer` counts a reference to its inode.
    pub fn take(&self, listing: &mut Listing, refer: bool) {
        if let Some(held) = listing.held.take() {
            listing.given += 1;
            if refer {
                self.refer(held.child);
            }
        }
    }

    /// Goes to the place in a listing where so many names have been taken. Backwards it reads from the start again.
    pub async fn seek(&self, listing: &mut Listing, given: u64) -> Result<()> {
        if listing.given > given {
            *listing = self.open_dir(listing.ino).await?;
        }
        while listing.given < given && self.peek(listing).await?.is_some() {
            self.take(listing, false);
        }
        Ok(())
    }

    /// Bytes of a file from an offset on, in pieces; fewer than asked for only at its end. `ahead` says that whoever reads goes
    /// on from where it was, so that what follows is fetched too.
    pub async fn read(&self, ino: u64, offset: u64, len: u64, ahead: bool) -> Result<Vec<Bytes>> {
        let inode = self.inode(ino)?;
        let What::Entry(entry) = &inode.what else { return Err(not_a("file")) };
        let Node::File { size, content } = &entry.node else { return Err(not_a("file")) };
        let end = offset.saturating_add(len).min(*size);
        if offset >= end {
            return Ok(Vec::new());
        }
        let to = if ahead { end.saturating_add(VIEW_AHEAD_BYTES).min(*size) } else { end };
        self.chunks.read(content, *size, offset..end, to).await
    }

    fn inodes(&self) -> MutexGuard<'_, Inodes> {
        self.inodes.lock().expect("no holder of this lock panics")
    }

    fn inode(&self, ino: u64) -> Result<Arc<Inode>> {
        self.inodes().get(ino).ok_or_else(gone)
    }

    fn refer(&self, child: Inode) -> Attr {
        let inode = self.inodes().refer(child);
        self.attr_of(inode.ino, &inode)
    }

    async fn child(&self, parent: &Inode, name: &[u8]) -> Result<Option<Inode>> {
        if let What::Shelf(path) = &parent.what {
            let shelves = self.shelves().await?;
            let place = shelves.shelf(path).and_then(|shelf| shelf.get(name));
            return Ok(place.map(|place| match place {
                Place::Shelf(path) => Inode::above(parent, name, What::Shelf(path.clone())),
                Place::Latest(target) => Inode::above(parent, name, What::Latest(target.clone())),
                Place::Snapshot(snapshot) => Inode::above(parent, name, What::Snapshot(snapshot.clone())),
            }));
        }
        let entry = lookup(self.chunks.as_ref(), directory(parent)?, name).await?;
        Ok(entry.map(|entry| parent.entry(entry)))
    }

    /// The snapshots, asked for again when the last answer has become old. Whoever asks meanwhile waits for the same answer.
    async fn shelves(&self) -> Result<Arc<Shelves>> {
        let mut kept = self.shelves.lock().await;
        if let Some((shelves, since)) = &*kept
            && since.elapsed() < Duration::from_millis(VIEW_RELIST_MS)
        {
            return Ok(shelves.clone());
        }
        let listed = list::snapshots(self.api.as_ref(), &self.keys, &self.options.filter).await;
        let shelves = match (listed, &*kept) {
            (Ok(snapshots), _) => Arc::new(Shelves::new(snapshots, &self.options.template)),
            // What was there is better than nothing while the cluster does not answer.
            (Err(error), Some((shelves, _))) => {
                tracing::warn!(%error, "list snapshots");
                shelves.clone()
            }
            (Err(error), None) => return Err(error),
        };
        *kept = Some((shelves.clone(), Instant::now()));
        Ok(shelves)
    }

    fn attr_of(&self, ino: u64, inode: &Inode) -> Attr {
        let (uid, gid) = self.options.owner;
        let plain = |kind: FileKind, mode: u32, at: FileTime| Attr {
            ino,
            kind,
            mode,
            uid,
            gid,
            nlink: 1,
            mtime: at,
            ctime: at,
            atime: at,
            settled: false,
        };
        let of = |snapshot: &Snapshot| FileTime::from_ms(snapshot.info.time_ms as i64);
        let mut attr = match &inode.what {
            What::Shelf(_) => plain(FileKind::Dir, 0o555, FileTime::default()),
            What::Latest(target) => {
                plain(FileKind::Symlink { target: target.clone() }, 0o777, FileTime::default())
            }
            What::Snapshot(snapshot) => plain(FileKind::Dir, 0o555, of(snapshot)),
            What::Entry(entry) => {
                let Meta { mode, uid, gid, nlink, mtime, ctime, atime, .. } = entry.meta;
                let (kind, atime) = (entry.node.kind(), atime.unwrap_or(mtime));
                Attr { ino, kind, mode, uid, gid, nlink, mtime, ctime, atime, settled: true }
            }
        };
        if self.options.owner_root {
            (attr.uid, attr.gid) = (0, 0);
        }
        attr
    }
}

/// A directory being listed. Holds one leaf of it.
pub struct Listing {
    ino: u64,
    inode: Arc<Inode>,
    names: Names,
    held: Option<Held>,
    given: u64,
}

impl Listing {
    /// Names taken so far.
    pub fn given(&self) -> u64 {
        self.given
    }
    /// Numbers of the directory and of the one it is in.
    pub fn dots(&self) -> (u64, u64) {
        (self.ino, self.inode.parent)
    }
}

enum Names {
    Shelf { names: std::vec::IntoIter<Vec<u8>> },
    Tree(Box<DirIter>),
}

struct Held {
    name: Vec<u8>,
    child: Inode,
}

/// One name of a directory.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The name.
    pub name: Vec<u8>,
    /// What it names.
    pub attr: Attr,
}

fn directory(inode: &Inode) -> Result<farshore_core::id::ChunkId> {
    match &inode.what {
        What::Snapshot(snapshot) => Ok(snapshot.info.root),
        What::Entry(entry) => match entry.node {
            Node::Dir { root } => Ok(root),
            _ => Err(not_a("directory")),
        },
        _ => Err(not_a("directory")),
    }
}

fn gone() -> Error {
    Error::Invalid("nothing is known of this inode".into())
}

fn not_a(what: &str) -> Error {
    Error::Invalid(format!("this is no {what}"))
}
