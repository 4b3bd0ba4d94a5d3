//! What a file consists of: its chunks in order with their plaintext lengths, so that every chunk's place in the file
//! is known without opening it. Short lists stand in the entry, long ones are chunked trees of their own.

use super::nodes::{ChunkSource, Form, Link, NewChunk, NodeBuilder, Nodes, decode, encode};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use farshore_core::id::ChunkId;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::vec::IntoIter;

/// Longest list kept in the entry itself: 64 MiB of file at the mean chunk size.
pub const CONTENT_INLINE_MAX: usize = 64;

/// A piece of a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ContentChunk {
    /// Which chunk.
    pub id: ChunkId,
    /// Its plaintext length in bytes.
    pub len: u32,
}

/// The chunks of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Content {
    /// All of them.
    Inline(Vec<ContentChunk>),
    /// A chunked tree of them.
    List {
        /// Top node of the tree.
        root: ChunkId,
    },
}

/// Collects the chunks of one file.
pub struct ContentBuilder {
    keys: RepoKeys,
    inline: Vec<ContentChunk>,
    list: Option<NodeBuilder>,
    size: u64,
}

impl ContentBuilder {
    /// An empty file.
    pub fn new(keys: RepoKeys) -> Self {
        ContentBuilder { keys, inline: Vec::new(), list: None, size: 0 }
    }
    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }
    /// Adds the next chunk. Finished list nodes are appended to `out`.
    pub fn push(&mut self, chunk: ContentChunk, out: &mut Vec<NewChunk>) {
        self.size += u64::from(chunk.len);
        if let Some(list) = &mut self.list {
            return push_list(list, &chunk, out);
        }
        self.inline.push(chunk);
        if self.inline.len() > CONTENT_INLINE_MAX {
            let mut list = NodeBuilder::new(self.keys.clone(), Form::Content);
            self.inline.drain(..).for_each(|chunk| push_list(&mut list, &chunk, out));
            self.list = Some(list);
        }
    }
    /// The finished content.
    pub fn finish(self, out: &mut Vec<NewChunk>) -> Content {
        match self.list {
            Some(list) => Content::List { root: list.finish(out).id },
            None => Content::Inline(self.inline),
        }
    }
}

fn push_list(list: &mut NodeBuilder, chunk: &ContentChunk, out: &mut Vec<NewChunk>) {
    list.push(&encode(chunk), &[], chunk.id.as_bytes(), u64::from(chunk.len), out);
}

/// A chunk and where it stands in its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Placed {
    /// First byte in the file.
    pub offset: u64,
    /// Which chunk.
    pub id: ChunkId,
    /// Its plaintext length in bytes.
    pub len: u32,
}

/// Reads the chunks of a file in order, one list node in memory at a time.
pub struct ContentIter {
    source: Arc<dyn ChunkSource>,
    root: Option<ChunkId>,
    links: Vec<(u8, IntoIter<Link>)>,
    leaf: IntoIter<ContentChunk>,
    offset: u64,
    visited: Vec<ChunkId>,
}

impl ContentIter {
    /// From the first chunk on.
    pub fn new(source: Arc<dyn ChunkSource>, content: &Content) -> Self {
        let (root, leaf) = match content {
            Content::Inline(chunks) => (None, chunks.clone()),
            Content::List { root } => (Some(*root), Vec::new()),
        };
        let (leaf, visited) = (leaf.into_iter(), Vec::new());
        ContentIter { source, root, links: Vec::new(), leaf, offset: 0, visited }
    }
    /// From the chunk on that has the byte at `offset`; reads one list node a level. At the end of the file there is none.
    pub async fn at(source: Arc<dyn ChunkSource>, content: &Content, offset: u64) -> Result<Self> {
        let mut iter = ContentIter::new(source, content);
        let mut below = iter.root.take().map(|root| (root, None, None));
        while let Some((id, level, weight)) = below.take() {
            iter.open(id, level).await?;
            let Some((level, links)) = iter.links.last_mut().filter(|_| iter.leaf.len() == 0) else {
                iter.check_weight(weight)?;
                break;
            };
            for link in links.by_ref() {
                let end = iter.offset.checked_add(link.weight).ok_or_else(too_long)?;
                if end > offset {
                    below = Some((link.id, Some(*level - 1), Some(link.weight)));
                    break;
                }
                iter.offset = end;
            }
        }
        iter.skip_to(offset)?;
        Ok(iter)
    }

    /// The next chunk, `None` at the end of the file.
    pub async fn next(&mut self) -> Result<Option<Placed>> {
        loop {
            if let Some(ContentChunk { id, len }) = self.leaf.next() {
                let placed = Placed { offset: self.offset, id, len };
                self.offset = self.offset.checked_add(u64::from(len)).ok_or_else(too_long)?;
                return Ok(Some(placed));
            }
            let Some((id, level)) = self.next_node() else { return Ok(None) };
            self.open(id, level).await?;
        }
    }
    /// Bytes of the file up to the next chunk.
    pub fn offset(&self) -> u64 {
        self.offset
    }
    /// List nodes read since this was last asked; they are tree chunks the file needs besides its data.
    pub fn take_visited(&mut self) -> Vec<ChunkId> {
        std::mem::take(&mut self.visited)
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

    /// Chunks that were passed over by their weight must be that long.
    fn check_weight(&self, weight: Option<u64>) -> Result<()> {
        let found: u64 = self.leaf.as_slice().iter().map(|chunk| u64::from(chunk.len)).sum();
        match weight.is_none_or(|weight| weight == found) {
            true => Ok(()),
            false => Err(Error::corrupt("content of a file", "a part of it is not as long as its link says")),
        }
    }

    fn skip_to(&mut self, offset: u64) -> Result<()> {
        while let Some(chunk) = self.leaf.as_slice().first() {
            let end = self.offset.checked_add(u64::from(chunk.len)).ok_or_else(too_long)?;
            if end > offset {
                break;
            }
            (self.offset, _) = (end, self.leaf.next());
        }
        Ok(())
    }

    async fn open(&mut self, id: ChunkId, level: Option<u8>) -> Result<()> {
        let bytes = self.source.chunk(&id).await?;
        self.visited.push(id);
        match decode(&bytes, Form::Content, level)? {
            (_, Nodes::Leaf(chunks)) => self.leaf = chunks.into_iter(),
            (level, Nodes::Links(links)) => self.links.push((level, links.into_iter())),
        }
        Ok(())
    }
}

fn too_long() -> Error {
    Error::corrupt("content of a file", "its length does not fit 64 bits")
}
