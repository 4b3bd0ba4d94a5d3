//! Directories from the leaves up: takes files' chunks and finished entries in order and builds each directory while it
//! is being walked. Data chunks pass through to deduplication, tree chunks join them.

use super::read::{Held, Piece, change};
use super::report::Report;
use super::scan::Reread;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::files::Meta;
use crate::format::{ContentBuilder, ContentChunk, DirBuilder, Entry, NewChunk, Node};
use crate::progress::{Change, Event};
use farshore_core::id::ChunkId;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender};

/// The stage.
pub struct Tree<'a> {
    /// Names tree chunks.
    pub keys: RepoKeys,
    /// Memory for tree chunks on their way; its own, because everything that takes of it lies behind this stage.
    pub room: Arc<Semaphore>,
    /// Counts.
    pub report: &'a Report,
    /// Where chunks go.
    pub out: Sender<Held>,
}

struct Dir {
    name: Vec<u8>,
    meta: Meta,
    was: Option<Box<(Meta, ChunkId)>>,
    entries: DirBuilder,
}

impl Tree<'_> {
    /// Runs until the root directory ends, and gives its top node.
    pub async fn run(self, mut pieces: Receiver<Piece>) -> Result<ChunkId> {
        let mut dirs: Vec<Dir> = Vec::new();
        let mut content = ContentBuilder::new(self.keys.clone());
        let mut new = Vec::new();
        while let Some(piece) = pieces.recv().await {
            match piece {
                Piece::Enter { name, meta, was } => {
                    dirs.push(Dir { name, meta, was, entries: DirBuilder::new(self.keys.clone()) });
                }
                Piece::Begin | Piece::Gone => content = ContentBuilder::new(self.keys.clone()),
                Piece::Chunk(held) => {
                    let len = held.chunk.plain.len() as u32;
                    content.push(ContentChunk { id: held.chunk.id, len }, &mut new);
                    self.send(held).await;
                }
                Piece::Known(chunks) => chunks.into_iter().for_each(|chunk| content.push(chunk, &mut new)),
                Piece::End { path, file, inconsistent } => {
                    let done = std::mem::replace(&mut content, ContentBuilder::new(self.keys.clone()));
                    let entry = self.file(&path, file, done, inconsistent, &mut new);
                    add(&mut dirs, &entry, &mut new)?;
                }
                Piece::Done(path, entry) => {
                    self.kept(path.as_deref(), &entry);
                    add(&mut dirs, &entry, &mut new)?;
                }
                Piece::Leave => {
                    let Some(dir) = dirs.pop() else { break };
                    let (root, entry) = self.leave(dir, &mut new);
                    self.send_new(&mut new).await;
                    if dirs.is_empty() {
                        return Ok(root);
                    }
                    add(&mut dirs, &entry, &mut new)?;
                }
            }
            self.send_new(&mut new).await;
        }
        Err(Error::Invalid("the scan ended before its root directory did".into()))
    }

    async fn send(&self, held: Held) {
        // Whoever stopped listening has an error to report, which ends this stage too.
        let _ = self.out.send(held).await;
    }

    async fn send_new(&self, new: &mut Vec<NewChunk>) {
        for chunk in new.drain(..) {
            self.send(Held::new(chunk, &self.room).await).await;
        }
    }

    fn file(
        &self,
        path: &[u8],
        file: Box<Reread>,
        content: ContentBuilder,
        inconsistent: bool,
        new: &mut Vec<NewChunk>,
    ) -> Entry {
        let (size, content) = (content.size(), content.finish(new));
        let node = Node::File { size, content };
        let entry = Entry { name: file.name, node, meta: file.stat.meta, inconsistent };
        self.report.count(|stats| stats.inconsistent += u64::from(inconsistent));
        self.report.file_done(path, size, change(file.was.as_ref(), &entry));
        entry
    }

    fn kept(&self, path: Option<&[u8]>, entry: &Entry) {
        if let (Some(path), Node::File { size, .. }) = (path, &entry.node) {
            self.report.event(Event::Bytes { bytes: *size });
            self.report.file_done(path, *size, Change::Unmodified);
        }
    }

    fn leave(&self, dir: Dir, new: &mut Vec<NewChunk>) -> (ChunkId, Entry) {
        let root = dir.entries.finish(new).id;
        self.report.count(|stats| match &dir.was {
            // The root is in every snapshot and has no entry anywhere that could be compared.
            None if dir.name.is_empty() => {}
            None => stats.dirs_new += 1,
            Some(was) if **was == (dir.meta.clone(), root) => stats.dirs_unmodified += 1,
            Some(_) => stats.dirs_changed += 1,
        });
        (root, Entry { name: dir.name, node: Node::Dir { root }, meta: dir.meta, inconsistent: false })
    }
}

fn add(dirs: &mut [Dir], entry: &Entry, new: &mut Vec<NewChunk>) -> Result<()> {
    match dirs.last_mut() {
        Some(dir) => dir.entries.push(entry, new),
        None => Err(Error::Invalid("an entry came before the root directory".into())),
    }
}
