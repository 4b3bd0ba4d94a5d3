//! One window of a restore as data: what to make, which chunks go where, what to finish. Building it walks the tree and
//! writes nothing, so a dry run is the same planning without the writing.

use crate::error::{Error, Result};
use crate::files::{FileKind, Meta, RelPath};
use crate::format::content::ContentIter;
use crate::format::{ChunkSource, Entry, Node, Placed};
use crate::links::Links;
use crate::select::Select;
use crate::walk::{Step, Walk};
use farshore_core::id::ChunkId;
use farshore_core::limits::{
    SMALL_FILE_BYTES_MAX, WINDOW_BYTES_MAX, WINDOW_SMALL_BYTES_MAX, WINDOW_USES_MAX,
};
use std::sync::Arc;

/// Bounds of a window. Tests make them tiny.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WindowLimits {
    /// Chunk uses and entries together.
    pub uses: usize,
    /// Bytes of files.
    pub bytes: u64,
    /// Bytes of small files, which may all have to wait in memory.
    pub small_bytes: u64,
    /// Up to here a file is small.
    pub small_file: u64,
}

impl Default for WindowLimits {
    fn default() -> Self {
        WindowLimits {
            uses: WINDOW_USES_MAX,
            bytes: WINDOW_BYTES_MAX,
            small_bytes: WINDOW_SMALL_BYTES_MAX,
            small_file: SMALL_FILE_BYTES_MAX,
        }
    }
}

/// How a window leaves a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileEnd {
    /// With its last chunk: it can be finished.
    Done,
    /// The next window goes on with it.
    GoesOn,
    /// The rest cannot be planned: it must not be finished.
    Broken,
}

/// A file, or the part of it that falls into this window.
#[derive(Clone, Debug)]
pub struct PlannedFile {
    /// Where it goes.
    pub path: RelPath,
    /// Length in bytes.
    pub size: u64,
    /// Its attributes.
    pub meta: Meta,
    /// Put together in memory and written with others.
    pub small: bool,
    /// The file was begun in the window before.
    pub continues: bool,
    /// What follows after this window's chunks.
    pub end: FileEnd,
    /// Its chunks in this window.
    pub uses: Vec<Placed>,
}

/// Something made before the files: in the order of the walk, so a directory comes before what is in it.
#[derive(Clone, Debug)]
pub enum Before {
    /// A directory.
    Dir(RelPath),
    /// A symbolic link.
    Symlink(RelPath, Vec<u8>, Meta),
    /// A pipe, socket or device.
    Special(RelPath, FileKind, Meta),
}

/// Something done after the files, in this order: what is in a directory comes before its attributes.
#[derive(Clone, Debug)]
pub enum After {
    /// A second name for a file: the first name, the new one, the file's length.
    Link(RelPath, RelPath, u64),
    /// Attributes of a directory that gets nothing more.
    DirMeta(RelPath, Meta),
    /// A directory that gets nothing more, and its top tree node: what else stands in it may go.
    Prune(RelPath, ChunkId),
}

/// A bounded part of a restore. Done in this order: `before`, `files`, `after`.
#[derive(Debug, Default)]
pub struct RestorePlan {
    /// Made first.
    pub before: Vec<Before>,
    /// Files and where their chunks go.
    pub files: Vec<PlannedFile>,
    /// Done last.
    pub after: Vec<After>,
    /// What could not be planned: snapshot paths and why.
    pub problems: Vec<(RelPath, Error)>,
}

impl RestorePlan {
    /// Every chunk the window needs, in the order of use, repetitions included.
    pub fn chunks(&self) -> Vec<ChunkId> {
        self.files.iter().flat_map(|file| &file.uses).map(|used| used.id).collect()
    }
    fn uses(&self) -> usize {
        self.before.len() + self.after.len() + self.files.iter().map(|f| 1 + f.uses.len()).sum::<usize>()
    }
}

/// Turns a walk into windows.
pub struct Planner {
    source: Arc<dyn ChunkSource>,
    walk: Walk,
    select: Select,
    limits: WindowLimits,
    /// Directories we are in, with what the walk said about them.
    open: Vec<(RelPath, Meta, ChunkId)>,
    /// How many of the open directories have been made. A directory above something selected is made only when needed.
    made: usize,
    /// The file that did not fit into the last window.
    unfinished: Option<Unfinished>,
    links: Links,
}

struct Unfinished {
    file: PlannedFile,
    chunks: ContentIter,
    held: Option<Placed>,
}

/// What one file adds to a window.
struct Filled {
    uses: usize,
    bytes: u64,
    small_bytes: u64,
}

impl Planner {
    /// Plans what `select` admits of a walk.
    pub fn new(source: Arc<dyn ChunkSource>, walk: Walk, select: Select, limits: WindowLimits) -> Self {
        let (open, links) = (Vec::new(), Links::default());
        Planner { source, walk, select, limits, open, made: 0, unfinished: None, links }
    }

    /// The next window, `None` at the end.
    pub async fn next(&mut self) -> Option<RestorePlan> {
        let mut plan = RestorePlan::default();
        let mut filled = Filled { uses: 0, bytes: 0, small_bytes: 0 };
        if let Some(unfinished) = self.unfinished.take() {
            self.fill(unfinished, &mut plan, &mut filled).await;
        }
        while self.unfinished.is_none() && self.has_room(&plan, &filled) {
            let Some(step) = self.walk.next().await else {
                let empty = plan.uses() == 0 && plan.problems.is_empty();
                return (!empty).then_some(plan);
            };
            self.step(step, &mut plan, &mut filled).await;
        }
        Some(plan)
    }

    fn has_room(&self, plan: &RestorePlan, filled: &Filled) -> bool {
        filled.uses + plan.before.len() + plan.after.len() + plan.problems.len() < self.limits.uses
            && filled.bytes < self.limits.bytes
            && filled.small_bytes < self.limits.small_bytes
    }

    async fn step(&mut self, step: Step, plan: &mut RestorePlan, filled: &mut Filled) {
        match step {
            Step::Entry(path, entry) => self.entry(path, entry, plan, filled).await,
            Step::Leave(_) => self.leave(plan, true),
            Step::Broken(path, error) => {
                // The root is not among the open directories.
                if path != RelPath::root() {
                    self.leave(plan, false);
                }
                plan.problems.push((path, error));
            }
        }
    }

    /// `whole` if every entry of the innermost directory was met.
    fn leave(&mut self, plan: &mut RestorePlan, whole: bool) {
        if let Some((path, meta, root)) = self.open.pop()
            && self.made > self.open.len()
        {
            self.made = self.open.len();
            if whole {
                plan.after.push(After::Prune(path.clone(), root));
            }
            plan.after.push(After::DirMeta(path, meta));
        }
    }

    async fn entry(&mut self, path: RelPath, entry: Entry, plan: &mut RestorePlan, filled: &mut Filled) {
        if let Node::Dir { root } = entry.node {
            if !self.select.may_contain(&path) {
                return self.walk.skip();
            }
            let wanted = self.select.admits(&path);
            self.open.push((path, entry.meta, root));
            if wanted {
                self.make_parents(plan);
            }
            return;
        }
        if !self.select.admits(&path) {
            return;
        }
        self.make_parents(plan);
        let Entry { node, meta, .. } = entry;
        match node {
            Node::Dir { .. } => {}
            Node::Symlink { target } => plan.before.push(Before::Symlink(path, target, meta)),
            Node::Fifo => plan.before.push(Before::Special(path, FileKind::Fifo, meta)),
            Node::Socket => plan.before.push(Before::Special(path, FileKind::Socket, meta)),
            Node::CharDev { rdev } => {
                plan.before.push(Before::Special(path, FileKind::CharDev { rdev }, meta))
            }
            Node::BlockDev { rdev } => {
                plan.before.push(Before::Special(path, FileKind::BlockDev { rdev }, meta));
            }
            Node::File { size, content } => {
                if let Some(first) = self.links.first_name(&path, &meta, size, &content) {
                    return plan.after.push(After::Link(first, path, size));
                }
                let small = size <= self.limits.small_file;
                let file = PlannedFile {
                    path,
                    size,
                    meta,
                    small,
                    continues: false,
                    end: FileEnd::Done,
                    uses: vec![],
                };
                let chunks = ContentIter::new(self.source.clone(), &content);
                self.fill(Unfinished { file, chunks, held: None }, plan, filled).await;
            }
        }
    }

    /// Makes the open directories that are not made yet.
    fn make_parents(&mut self, plan: &mut RestorePlan) {
        for (path, ..) in &self.open[self.made..] {
            plan.before.push(Before::Dir(path.clone()));
        }
        self.made = self.open.len();
    }

    /// Adds a file's chunks until it is done or the window is full. A small file is never split.
    async fn fill(&mut self, unfinished: Unfinished, plan: &mut RestorePlan, filled: &mut Filled) {
        let Unfinished { mut file, mut chunks, held } = unfinished;
        filled.uses += 1;
        if let Some(held) = held {
            add(&mut file, held, filled);
        }
        loop {
            match self.next_use(&file, &mut chunks).await {
                Ok(Some(placed)) => {
                    let full = filled.uses >= self.limits.uses || filled.bytes >= self.limits.bytes;
                    if full && !file.small {
                        let next = PlannedFile { continues: true, uses: vec![], ..file.clone() };
                        self.unfinished = Some(Unfinished { file: next, chunks, held: Some(placed) });
                        file.end = FileEnd::GoesOn;
                        break;
                    }
                    add(&mut file, placed, filled);
                }
                Ok(None) => break,
                Err(error) => {
                    file.end = FileEnd::Broken;
                    plan.problems.push((file.path.clone(), error));
                    break;
                }
            }
        }
        plan.files.push(file);
    }

    /// The next chunk of a file; an error if the chunks do not make up the length the entry gives.
    async fn next_use(&self, file: &PlannedFile, chunks: &mut ContentIter) -> Result<Option<Placed>> {
        let wrong = || Error::corrupt("file", "its chunks do not make up its length");
        let next = chunks.next().await?;
        match next {
            Some(placed) if placed.offset + u64::from(placed.len) > file.size => Err(wrong()),
            Some(placed) if placed.len == 0 => Err(wrong()),
            Some(placed) => Ok(Some(placed)),
            None if chunks.offset() != file.size => Err(wrong()),
            None => Ok(None),
        }
    }
}

fn add(file: &mut PlannedFile, placed: Placed, filled: &mut Filled) {
    filled.uses += 1;
    filled.bytes += u64::from(placed.len);
    if file.small {
        filled.small_bytes += u64::from(placed.len);
    }
    file.uses.push(placed);
}
