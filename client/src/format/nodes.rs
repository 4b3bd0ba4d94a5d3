//! Chunked trees: a long sequence (the entries of a directory, the chunk ids of a file) as leaves and link nodes, cut
//! where the contents say, so that a change in a million items makes a few new chunks.
//!
//! ```text
//! node: version 1 | form 1 (1 directory, 2 content) | level 1 | items, postcard, back to back
//! level 0: entries of a directory, or ContentChunk; above: Link
//! ```

use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::id::ChunkId;
use farshore_core::limits::CHUNK_BYTES_MAX;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version byte of every tree node.
pub const NODE_VERSION: u8 = 1;
const HEAD_BYTES: usize = 3;
/// A node is not cut below this, so that runs of lucky hashes do not make tiny chunks.
const NODE_BYTES_MIN: usize = 4 << 10;
/// A node is cut here at the latest; only a single item larger than this makes a larger node.
const NODE_BYTES_MAX: usize = 256 << 10;
/// Deepest tree a reader follows. Every level at least halves the number of nodes, in practice it divides by 100.
pub const LEVELS_MAX: u8 = 24;

/// What a tree is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// Entries of a directory, ordered by name.
    Dir,
    /// Chunks of a file, in file order.
    Content,
}

impl Form {
    fn byte(self) -> u8 {
        match self {
            Form::Dir => 1,
            Form::Content => 2,
        }
    }
    /// One item in this many ends a leaf: about 16 to 32 KiB of typical items.
    fn items_mean(self) -> u64 {
        match self {
            Form::Dir => 128,
            Form::Content => 512,
        }
    }
}

/// A new chunk on its way to a pack.
#[derive(Clone, Debug)]
pub struct NewChunk {
    /// Its name.
    pub id: ChunkId,
    /// Which kind of pack it goes to.
    pub kind: PackKind,
    /// Its plaintext.
    pub plain: Bytes,
}

/// Gives tree chunks as plaintext, verified. Restore, listing and the comparison with a parent read trees through it.
#[async_trait]
pub trait ChunkSource: Send + Sync {
    /// The plaintext of one tree chunk.
    async fn chunk(&self, id: &ChunkId) -> Result<Bytes>;
}

/// A node as its parent knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Link {
    /// First name below it; empty in content trees.
    pub first: Vec<u8>,
    /// Entries below it, or bytes of the file.
    pub weight: u64,
    /// The node.
    pub id: ChunkId,
}

/// The finished tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Root {
    /// Top node.
    pub id: ChunkId,
    /// Its level; 0 if it is a leaf.
    pub level: u8,
    /// Entries, or bytes.
    pub weight: u64,
}

struct Level {
    buffer: Vec<u8>,
    items: u64,
    first: Vec<u8>,
    weight: u64,
    closed: u64,
}

/// Builds a chunked tree from a stream of items. Holds one unfinished node a level, whatever the number of items.
pub struct NodeBuilder {
    keys: RepoKeys,
    form: Form,
    levels: Vec<Level>,
}

impl NodeBuilder {
    /// An empty tree.
    pub fn new(keys: RepoKeys, form: Form) -> Self {
        NodeBuilder { keys, form, levels: Vec::new() }
    }

    /// Adds an encoded leaf item. `first` is its name (empty in content trees), `at` what decides the cut behind it.
    /// Finished nodes are appended to `out`.
    pub fn push(&mut self, item: &[u8], first: &[u8], at: &[u8], weight: u64, out: &mut Vec<NewChunk>) {
        self.push_at(0, item, first, at, weight, out);
    }

    fn push_at(
        &mut self,
        level: usize,
        item: &[u8],
        first: &[u8],
        at: &[u8],
        weight: u64,
        out: &mut Vec<NewChunk>,
    ) {
        if self.levels.len() == level {
            self.levels.push(Level::new(self.form, level));
        }
        // A link node has at least two links, or the tree would never end.
        let items_min = if level == 0 { 1 } else { 2 };
        let current = &self.levels[level];
        if current.items >= items_min && current.buffer.len() + item.len() > NODE_BYTES_MAX {
            self.close(level, out);
        }
        let current = &mut self.levels[level];
        if current.items == 0 {
            current.first = first.to_vec();
        }
        current.buffer.extend_from_slice(item);
        current.items += 1;
        current.weight += weight;
        let mean = if level == 0 { self.form.items_mean() } else { Form::Dir.items_mean() };
        let cut = self.keys.cut_hash(level as u8, at).is_multiple_of(mean);
        if cut && current.items >= items_min && current.buffer.len() >= NODE_BYTES_MIN {
            self.close(level, out);
        }
    }

    fn close(&mut self, level: usize, out: &mut Vec<NewChunk>) -> ChunkId {
        let closed = self.levels[level].closed + 1;
        let next = Level { closed, ..Level::new(self.form, level) };
        let done = std::mem::replace(&mut self.levels[level], next);
        let id = self.keys.chunk_id(PackKind::Tree, &done.buffer);
        let link = Link { first: done.first, weight: done.weight, id };
        out.push(NewChunk { id, kind: PackKind::Tree, plain: done.buffer.into() });
        let at = if link.first.is_empty() { link.id.as_bytes() } else { &link.first };
        self.push_at(level + 1, &encode(&link), &link.first, at, link.weight, out);
        id
    }

    /// Closes every node and gives the top one. An empty tree is one empty leaf.
    pub fn finish(mut self, out: &mut Vec<NewChunk>) -> Root {
        if self.levels.is_empty() {
            self.levels.push(Level::new(self.form, 0));
        }
        for level in 0.. {
            let open = &self.levels[level];
            if open.items == 1 && open.closed == 0 && level > 0 {
                return self.only_child(level);
            }
            if open.items > 0 || open.closed == 0 {
                self.close(level, out);
            }
        }
        unreachable!("each level has fewer nodes than the one below, so one has a single node")
    }

    /// The single link of a level is the top of the tree and needs no node of its own.
    fn only_child(self, level: usize) -> Root {
        let link: Link = postcard::from_bytes(&self.levels[level].buffer[HEAD_BYTES..])
            .expect("we encoded this link ourselves");
        Root { id: link.id, level: (level - 1) as u8, weight: link.weight }
    }
}

impl Level {
    fn new(form: Form, level: usize) -> Self {
        let buffer = vec![NODE_VERSION, form.byte(), level as u8];
        Level { buffer, items: 0, first: Vec::new(), weight: 0, closed: 0 }
    }
}

/// Encodes one item.
pub fn encode<T: Serialize>(item: &T) -> Vec<u8> {
    postcard::to_stdvec(item).expect("plain data always encodes")
}

/// A node taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Nodes<T> {
    /// Items of a leaf.
    Leaf(Vec<T>),
    /// Links to nodes one level below.
    Links(Vec<Link>),
}

/// Decodes a node of this form. `level` is what its parent says, `None` for a top node.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], form: Form, level: Option<u8>) -> Result<(u8, Nodes<T>)> {
    let corrupt = |why: &str| Error::corrupt("tree node", why);
    if bytes.len() > CHUNK_BYTES_MAX {
        return Err(corrupt("it is too long"));
    }
    let Some((&[version, form_byte, found], items)) = bytes.split_first_chunk::<HEAD_BYTES>() else {
        return Err(corrupt("it is cut short"));
    };
    if version != NODE_VERSION || form_byte != form.byte() {
        return Err(corrupt("its version or form is not the expected one"));
    }
    if found > LEVELS_MAX || level.is_some_and(|level| level != found) {
        return Err(corrupt("its level is wrong"));
    }
    let nodes = match found {
        0 => items_of(items).map(Nodes::Leaf),
        _ => items_of(items).map(Nodes::Links),
    };
    nodes.map(|nodes| (found, nodes)).ok_or_else(|| corrupt("an item does not decode"))
}

fn items_of<T: DeserializeOwned>(mut bytes: &[u8]) -> Option<Vec<T>> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let (item, rest) = postcard::take_from_bytes(bytes).ok()?;
        if rest.len() == bytes.len() {
            return None;
        }
        items.push(item);
        bytes = rest;
    }
    Some(items)
}
