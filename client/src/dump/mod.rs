//! Dump: resolve → plan → fetch → write, in the order of the tree. A file becomes its bytes, a directory an archive of what
//! is in it. Nothing is kept but one window of the tree, and every chunk's id is checked before a byte of it leaves. What
//! was written before an error is there, so the first error ends the dump, and whoever reads it must be told.

mod as_tar;
mod as_zip;
mod plan;

#[cfg(test)]
mod dump_test;

pub use plan::WindowLimits;

use crate::error::{Error, Result};
use crate::fetch::{ChunkReader, Reading, unknown};
use crate::files::RelPath;
use crate::format::{ChunkSource, Entry, Node};
use crate::list::{Snapshot, Spot, absolute, find};
use crate::progress::{Event, Progress};
use crate::walk::Walk;
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::host::{Compute, compute};
use farshore_core::id::ChunkId;
use plan::{Head, Piece, Planner, Window};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use tokio::io::{AsyncWrite, AsyncWriteExt};

/// What a directory becomes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Archive {
    /// A tape archive: everything but sockets, with owners, times in nanoseconds, hard links and extended attributes.
    #[default]
    Tar,
    /// Files, directories and symbolic links, with their modes and whole seconds. Its table of contents stands at its end, so
    /// that memory grows with the number of entries.
    Zip,
}

/// What was dumped.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Files, further names included.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices, pipes.
    pub others: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Entries that the archive has no form for. Each was reported as a notice.
    pub skipped: u64,
}

/// Where a dump reads, and who computes for it.
#[derive(Clone)]
pub struct Context {
    /// Contents of files.
    pub reader: Arc<ChunkReader>,
    /// The tree.
    pub trees: Arc<dyn ChunkSource>,
    /// Compresses.
    pub compute: Arc<dyn Compute>,
}

/// What lies at a path of a snapshot, found and not read yet.
pub struct Dump {
    context: Context,
    walk: Walk,
    /// Names in the archive begin with this, as in restic: the path below `/`, or below the root of `SNAP:PATH`.
    base: RelPath,
    archive: bool,
    limits: WindowLimits,
}

impl Dump {
    /// Finds `path` below `root`. Refuses what is neither a file nor a directory.
    pub async fn open(
        context: Context,
        snapshot: &Snapshot,
        root: Option<&[u8]>,
        path: &[u8],
    ) -> Result<Dump> {
        let invalid = |e: crate::files::target::BadEntryName| Error::Invalid(e.to_string());
        let below = RelPath::from_path(path).map_err(invalid)?;
        let root = RelPath::from_path(root.unwrap_or_default()).map_err(invalid)?;
        let whole = absolute(&root, &below);
        let trees = context.trees.clone();
        let (walk, base, archive) = match find(trees.as_ref(), snapshot, &whole).await? {
            Spot::Dir(top) => (Walk::new(trees, top), below, true),
            Spot::Entry(entry) if matches!(entry.node, Node::File { .. }) => {
                let parent = below.split().map_or(RelPath::root(), |(parent, _)| parent);
                (Walk::single(trees, *entry)?, parent, false)
            }
            Spot::Entry(_) => {
                let path = String::from_utf8_lossy(&whole).into_owned();
                return Err(Error::Invalid(format!("{path} is neither a file nor a directory")));
            }
        };
        Ok(Dump { context, walk, base, archive, limits: WindowLimits::default() })
    }

    /// Whether it becomes an archive, and not the bytes of a file.
    pub fn is_archive(&self) -> bool {
        self.archive
    }

    /// The same with other windows.
    #[must_use]
    pub fn with_limits(self, limits: WindowLimits) -> Self {
        Dump { limits, ..self }
    }

    /// Writes all of it, or up to the first error.
    pub async fn run(
        self,
        archive: Archive,
        out: &mut (dyn AsyncWrite + Send + Unpin),
        progress: &dyn Progress,
    ) -> Result<Summary> {
        let Dump { context, walk, base, archive: is_archive, limits } = self;
        let format: Box<dyn Format> = match (is_archive, archive) {
            (false, _) => Box::new(Raw),
            (true, Archive::Tar) => Box::new(as_tar::Tar::new()),
            (true, Archive::Zip) => Box::new(as_zip::Zip::new()),
        };
        let mut planner = Planner::new(context.trees.clone(), walk, base, format.forms(), limits);
        let mut writer = Writer { format: Some(format), compute: context.compute.clone(), out, progress };
        let mut summary = Summary::default();
        let mut next = planner.next().await?;
        while let Some(window) = next {
            let chunks = window.chunks();
            let fetch = context.reader.plan(&chunks).await?;
            let mut ordered = Ordered::new(&chunks, context.reader.start(PackKind::Data, fetch));
            // The walk goes on while this window is written.
            let (written, planned) =
                tokio::join!(writer.window(window, &mut ordered, &mut summary), planner.next());
            written?;
            next = planned?;
        }
        writer.step(|format, made| format.finish(made)).await?;
        writer.out.flush().await.map_err(|e| Error::local("write", e))?;
        Ok(summary)
    }
}

/// How entries become bytes. What is made is appended to `made`, in order.
trait Format: Send {
    /// What there is a form for.
    fn forms(&self) -> Forms;
    /// An entry begins.
    fn begin(&mut self, head: &Head, made: &mut Vec<Bytes>) -> io::Result<()>;
    /// The next bytes of its contents.
    fn data(&mut self, bytes: Bytes, made: &mut Vec<Bytes>) -> io::Result<()>;
    /// It ends.
    fn end(&mut self, made: &mut Vec<Bytes>) -> io::Result<()>;
    /// Everything ends.
    fn finish(&mut self, made: &mut Vec<Bytes>) -> io::Result<()>;
    /// Whether `data` is work worth another thread.
    fn computes(&self) -> bool {
        false
    }
}

/// What an archive can say of a tree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Forms {
    /// That a name is a further name of a file before it. Otherwise its contents are written again.
    links: bool,
    /// Pipes and devices.
    specials: bool,
}

/// The bytes of a file and nothing else.
struct Raw;

impl Format for Raw {
    fn forms(&self) -> Forms {
        Forms { links: false, specials: false }
    }
    fn begin(&mut self, _: &Head, _: &mut Vec<Bytes>) -> io::Result<()> {
        Ok(())
    }
    fn data(&mut self, bytes: Bytes, made: &mut Vec<Bytes>) -> io::Result<()> {
        made.push(bytes);
        Ok(())
    }
    fn end(&mut self, _: &mut Vec<Bytes>) -> io::Result<()> {
        Ok(())
    }
    fn finish(&mut self, _: &mut Vec<Bytes>) -> io::Result<()> {
        Ok(())
    }
}

struct Writer<'a> {
    /// Away while another thread computes.
    format: Option<Box<dyn Format>>,
    compute: Arc<dyn Compute>,
    out: &'a mut (dyn AsyncWrite + Send + Unpin),
    progress: &'a dyn Progress,
}

impl Writer<'_> {
    async fn window(&mut self, window: Window, chunks: &mut Ordered, summary: &mut Summary) -> Result<()> {
        let mut path = window.continues;
        for piece in window.pieces {
            match piece {
                Piece::Begin(head) => {
                    count(&head.entry, summary);
                    path = head.path.clone();
                    self.step(move |format, made| format.begin(&head, made)).await?;
                }
                Piece::Chunk { id, len } => {
                    let bytes = chunks.take(&id).await.map_err(|e| Error::at(&path, e))?;
                    if bytes.len() != len as usize {
                        let wrong = Error::corrupt("file", "a chunk has another length than its entry says");
                        return Err(Error::at(&path, Arc::new(wrong)));
                    }
                    self.progress.event(Event::Bytes { bytes: len.into() });
                    self.step(move |format, made| format.data(bytes, made)).await?;
                }
                Piece::End => self.step(|format, made| format.end(made)).await?,
                Piece::Skipped { path, what } => {
                    summary.skipped += 1;
                    let text = format!("{path}: skipped, the archive has no form for {what}");
                    self.progress.event(Event::Notice { text: &text });
                }
            }
        }
        Ok(())
    }

    /// One step of the format, then its bytes go out.
    async fn step(
        &mut self,
        step: impl FnOnce(&mut dyn Format, &mut Vec<Bytes>) -> io::Result<()> + Send + 'static,
    ) -> Result<()> {
        let mut format = self.format.take().expect("it is put back below");
        let away = format.computes();
        let job = move || {
            let mut made = Vec::new();
            let done = step(format.as_mut(), &mut made);
            (format, done.map(|()| made))
        };
        let (format, made) = if away { compute(self.compute.as_ref(), job).await } else { job() };
        self.format = Some(format);
        for bytes in made.map_err(|e| Error::local("make archive", e))? {
            self.out.write_all(&bytes).await.map_err(|e| Error::local("write", e))?;
        }
        Ok(())
    }
}

fn count(entry: &Entry, summary: &mut Summary) {
    match entry.node {
        Node::File { size, .. } => {
            summary.files += 1;
            summary.bytes += size;
        }
        Node::Dir { .. } => summary.dirs += 1,
        _ => summary.others += 1,
    }
}

/// The chunks of one window in the order they are wanted. They come in any order; those that are early wait here, no more
/// than the window has.
struct Ordered {
    reading: Reading,
    early: BTreeMap<ChunkId, std::result::Result<Bytes, Arc<Error>>>,
    /// How often each is still wanted.
    uses: BTreeMap<ChunkId, usize>,
}

impl Ordered {
    fn new(chunks: &[ChunkId], reading: Reading) -> Self {
        let mut uses = BTreeMap::new();
        chunks.iter().for_each(|id| *uses.entry(*id).or_default() += 1);
        Ordered { reading, early: BTreeMap::new(), uses }
    }

    async fn take(&mut self, id: &ChunkId) -> std::result::Result<Bytes, Arc<Error>> {
        while !self.early.contains_key(id) {
            match self.reading.next().await {
                Some(fetched) => self.early.extend(fetched),
                // The plan has left it out.
                None => return Err(Arc::new(unknown(id))),
            }
        }
        let left = self.uses.get_mut(id).map_or(0, |uses| {
            *uses = uses.saturating_sub(1);
            *uses
        });
        let found = if left == 0 { self.early.remove(id) } else { self.early.get(id).cloned() };
        found.unwrap_or_else(|| Err(Arc::new(unknown(id))))
    }
}
