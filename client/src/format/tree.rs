//! Directories: entries sorted by name as a chunked tree. Building and reading both stream; a lookup reads one node a
//! level. Names are checked when they are read, so that no stored tree can lead a restore out of its target.

use super::content::Content;
use super::nodes::{ChunkSource, Form, Link, NewChunk, NodeBuilder, Nodes, Root, decode, encode};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::files::{FileKind, Meta};
use farshore_core::id::ChunkId;
use farshore_core::limits::{CHUNK_BYTES_MAX, ENTRY_NAME_BYTES_MAX};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::vec::IntoIter;

/// One name in a directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Its name: not empty, not `.` or `..`, without `/` and NUL.
    pub name: Vec<u8>,
    /// What it is.
    pub node: Node,
    /// Its attributes.
    pub meta: Meta,
    /// The file changed while it was read, twice: its contents may mix old and new.
    pub inconsistent: bool,
}

/// What an entry is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Node {
    /// A regular file.
    File {
        /// Length in bytes: the sum of its chunks.
        size: u64,
        /// Its chunks.
        content: Content,
    },
    /// A directory.
    Dir {
        /// Top node of its entries.
        root: ChunkId,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDev {
        /// Device number.
        rdev: u64,
    },
    /// A block device.
    BlockDev {
        /// Device number.
        rdev: u64,
    },
}

impl Node {
    /// What a file system calls it.
    pub fn kind(&self) -> FileKind {
        match self {
            Node::File { size, .. } => FileKind::File { size: *size },
            Node::Dir { .. } => FileKind::Dir,
            Node::Symlink { target } => FileKind::Symlink { target: target.clone() },
            Node::Fifo => FileKind::Fifo,
            Node::Socket => FileKind::Socket,
            Node::CharDev { rdev } => FileKind::CharDev { rdev: *rdev },
            Node::BlockDev { rdev } => FileKind::BlockDev { rdev: *rdev },
        }
    }
}

/// Whether a name may stand in a directory.
pub fn name_is_sound(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= ENTRY_NAME_BYTES_MAX
        && name != b"."
        && name != b".."
        && !name.iter().any(|byte| matches!(byte, 0 | b'/'))
}

/// Builds one directory from its entries in ascending order of names.
pub struct DirBuilder {
    nodes: NodeBuilder,
    last: Vec<u8>,
}

impl DirBuilder {
    /// An empty directory.
    pub fn new(keys: RepoKeys) -> Self {
        DirBuilder { nodes: NodeBuilder::new(keys, Form::Dir), last: Vec::new() }
    }
    /// Adds the next entry; an error if its name is unsound or out of order, or the entry too large. Finished nodes
    /// are appended to `out`.
    pub fn push(&mut self, entry: &Entry, out: &mut Vec<NewChunk>) -> Result<()> {
        if !name_is_sound(&entry.name) || entry.name <= self.last {
            let name = String::from_utf8_lossy(&entry.name);
            return Err(Error::Invalid(format!("directory entry {name:?} is unsound or out of order")));
        }
        let item = encode(entry);
        if item.len() > CHUNK_BYTES_MAX / 2 {
            let name = String::from_utf8_lossy(&entry.name);
            return Err(Error::Invalid(format!("directory entry {name:?} has too many attributes")));
        }
        self.last.clone_from(&entry.name);
        self.nodes.push(&item, &entry.name, &entry.name, 1, out);
        Ok(())
    }
    /// The finished directory.
    pub fn finish(self, out: &mut Vec<NewChunk>) -> Root {
        self.nodes.finish(out)
    }
}

/// Reads the entries of a directory in order of names, one leaf in memory at a time.
pub struct DirIter {
    source: Arc<dyn ChunkSource>,
    root: Option<ChunkId>,
    links: Vec<(u8, IntoIter<Link>)>,
    leaf: IntoIter<Entry>,
    last: Vec<u8>,
}

impl DirIter {
    /// From the first entry on.
    pub fn new(source: Arc<dyn ChunkSource>, root: ChunkId) -> Self {
        let leaf = Vec::new().into_iter();
        DirIter { source, root: Some(root), links: Vec::new(), leaf, last: Vec::new() }
    }
    /// The next entry, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.leaf.next() {
                if !name_is_sound(&entry.name) || entry.name <= self.last {
                    return Err(unsound());
                }
                self.last.clone_from(&entry.name);
                return Ok(Some(entry));
            }
            let Some((id, level)) = self.next_node() else { return Ok(None) };
            match read_node(&*self.source, &id, level).await? {
                (_, Nodes::Leaf(entries)) => self.leaf = entries.into_iter(),
                (level, Nodes::Links(links)) => self.links.push((level, links.into_iter())),
            }
        }
    }

    fn next_node(&mut self) -> Option<(ChunkId, Option<u8>)> {
        if let Some(root) = self.root.take() {
            return Some((root, None));
        }
        while let Some((level, links)) = self.links.last_mut() {
            match links.next() {
                Some(link) => return Some((link.id, Some(*level - 1))),
                None => self.links.pop(),
            };
        }
        None
    }
}

/// Finds one entry of a directory by name, reading one node a level.
pub async fn lookup(source: &dyn ChunkSource, root: ChunkId, name: &[u8]) -> Result<Option<Entry>> {
    let (mut id, mut expected) = (root, None);
    loop {
        match read_node(source, &id, expected).await? {
            (_, Nodes::Leaf(mut entries)) => {
                let found = entries.iter().position(|entry| entry.name == name);
                let found = found.map(|at| entries.swap_remove(at));
                return if name_is_sound(name) { Ok(found) } else { Ok(None) };
            }
            (level, Nodes::Links(links)) => {
                let Some(link) = links.iter().rev().find(|link| link.first.as_slice() <= name) else {
                    return Ok(None);
                };
                (id, expected) = (link.id, Some(level - 1));
            }
        }
    }
}

async fn read_node(source: &dyn ChunkSource, id: &ChunkId, level: Option<u8>) -> Result<(u8, Nodes<Entry>)> {
    let bytes = source.chunk(id).await?;
    decode(&bytes, Form::Dir, level)
}

fn unsound() -> Error {
    Error::corrupt("directory", "an entry's name is unsound or out of order")
}
