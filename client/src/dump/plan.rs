//! One window of a dump as data: entries and their chunks, in the order in which they are written. Nothing is fetched here
//! but the tree.

use super::Forms;
use crate::error::{Error, Result};
use crate::files::RelPath;
use crate::format::content::ContentIter;
use crate::format::{ChunkSource, Entry, Node, Placed};
use crate::links::Links;
use crate::walk::{Step, Walk};
use farshore_core::id::ChunkId;
use farshore_core::limits::{DUMP_WINDOW_BYTES, WINDOW_USES_MAX};
use std::sync::Arc;

/// Bounds of a window. Tests make them tiny.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowLimits {
    /// Entries and chunk uses together.
    pub pieces: usize,
    /// Bytes of files, all of which may have to wait in memory for the first of them.
    pub bytes: u64,
}

impl Default for WindowLimits {
    fn default() -> Self {
        WindowLimits { pieces: WINDOW_USES_MAX, bytes: DUMP_WINDOW_BYTES }
    }
}

/// What an entry begins with.
#[derive(Debug)]
pub struct Head {
    /// Its name in the archive.
    pub path: RelPath,
    /// What it is.
    pub entry: Entry,
    /// It is a further name of this one, and no contents follow.
    pub link: Option<RelPath>,
}

/// A step of writing.
#[derive(Debug)]
pub enum Piece {
    /// An entry begins.
    Begin(Box<Head>),
    /// The next chunk of the file that has begun.
    Chunk {
        /// Which.
        id: ChunkId,
        /// Its plaintext length in bytes.
        len: u32,
    },
    /// The entry is complete.
    End,
    /// There is an entry for which the archive has no form.
    Skipped {
        /// Its name.
        path: RelPath,
        /// What it is.
        what: &'static str,
    },
}

/// A bounded part of a dump.
#[derive(Debug, Default)]
pub struct Window {
    /// The file that the window before has begun.
    pub continues: RelPath,
    /// What to write, in this order.
    pub pieces: Vec<Piece>,
    bytes: u64,
}

impl Window {
    /// Every chunk the window needs, in the order of use, repetitions included.
    pub fn chunks(&self) -> Vec<ChunkId> {
        let chunk = |piece: &Piece| if let Piece::Chunk { id, .. } = piece { Some(*id) } else { None };
        self.pieces.iter().filter_map(chunk).collect()
    }
}

/// Turns a walk into windows.
pub struct Planner {
    source: Arc<dyn ChunkSource>,
    walk: Walk,
    base: RelPath,
    forms: Forms,
    limits: WindowLimits,
    links: Links,
    /// The file that the last window has begun and not ended.
    unfinished: Option<Unfinished>,
}

struct Unfinished {
    path: RelPath,
    size: u64,
    chunks: ContentIter,
}

impl Planner {
    /// Plans all of a walk; names begin with `base`.
    pub fn new(
        source: Arc<dyn ChunkSource>,
        walk: Walk,
        base: RelPath,
        forms: Forms,
        limits: WindowLimits,
    ) -> Self {
        let links = Links::default();
        Planner { source, walk, base, forms, limits, links, unfinished: None }
    }

    /// The next window, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Window>> {
        let mut window = Window::default();
        if let Some(file) = self.unfinished.take() {
            window.continues = file.path.clone();
            self.fill(file, &mut window).await?;
        }
        while self.unfinished.is_none() && self.has_room(&window) {
            match self.walk.next().await {
                Some(Step::Entry(path, entry)) => self.entry(path, entry, &mut window).await?,
                Some(Step::Leave(_)) => {}
                Some(Step::Broken(path, error)) => return Err(Error::at(&self.named(&path)?, error.into())),
                None if window.pieces.is_empty() => return Ok(None),
                None => break,
            }
        }
        Ok(Some(window))
    }

    fn has_room(&self, window: &Window) -> bool {
        window.pieces.len() < self.limits.pieces && window.bytes < self.limits.bytes
    }

    fn named(&self, path: &RelPath) -> Result<RelPath> {
        let joined = path.parts().try_fold(self.base.clone(), |dir, part| dir.join(part));
        joined.map_err(|e| Error::corrupt("directory", e))
    }

    async fn entry(&mut self, path: RelPath, entry: Entry, window: &mut Window) -> Result<()> {
        let path = self.named(&path)?;
        if let Some(what) = self.no_form(&entry.node) {
            window.pieces.push(Piece::Skipped { path, what });
            return Ok(());
        }
        let (mut link, mut file) = (None, None);
        if let Node::File { size, content } = &entry.node {
            if self.forms.links {
                link = self.links.first_name(&path, &entry.meta, *size, content);
            }
            if link.is_none() {
                let chunks = ContentIter::new(self.source.clone(), content);
                file = Some(Unfinished { path: path.clone(), size: *size, chunks });
            }
        }
        window.pieces.push(Piece::Begin(Box::new(Head { path, entry, link })));
        match file {
            Some(file) => self.fill(file, window).await,
            None => {
                window.pieces.push(Piece::End);
                Ok(())
            }
        }
    }

    fn no_form(&self, node: &Node) -> Option<&'static str> {
        match node {
            Node::Socket => Some("sockets"),
            Node::Fifo if !self.forms.specials => Some("pipes"),
            Node::CharDev { .. } | Node::BlockDev { .. } if !self.forms.specials => Some("devices"),
            _ => None,
        }
    }

    /// Adds a file's chunks until it is done or the window is full.
    async fn fill(&mut self, mut file: Unfinished, window: &mut Window) -> Result<()> {
        loop {
            if !self.has_room(window) {
                self.unfinished = Some(file);
                return Ok(());
            }
            match next_chunk(&mut file).await.map_err(|e| Error::at(&file.path, e.into()))? {
                Some(placed) => {
                    window.bytes += u64::from(placed.len);
                    window.pieces.push(Piece::Chunk { id: placed.id, len: placed.len });
                }
                None => {
                    window.pieces.push(Piece::End);
                    return Ok(());
                }
            }
        }
    }
}

/// The next chunk of a file; an error if the chunks do not make up the length the entry gives: an archive has said it.
async fn next_chunk(file: &mut Unfinished) -> Result<Option<Placed>> {
    let next = file.chunks.next().await?;
    let sound = match next {
        Some(placed) => placed.len > 0 && placed.offset + u64::from(placed.len) <= file.size,
        None => file.chunks.offset() == file.size,
    };
    if sound { Ok(next) } else { Err(Error::corrupt("file", "its chunks do not make up its length")) }
}
