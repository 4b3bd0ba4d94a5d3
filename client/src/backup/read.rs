//! Reading files and cutting them into named chunks, in the order of the tree. A few files are opened ahead, so that the
//! disk works while processors hash; only one large file is in hand at a time. Watches for files that change meanwhile.

use super::ahead::{Ahead, First, Opener, Waiting, Window};
use super::chunk::Chunker;
use super::report::Report;
use super::scan::{Reread, Step};
use super::twins::{CHUNKS_MAX, Twins};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::files::{Fingerprint, Meta, Opened, SourceFile};
use crate::format::{ContentChunk, Entry, NewChunk};
use crate::progress::{Change, Event};
use bytes::{Bytes, BytesMut};
use farshore_core::catalogue::PackKind;
use farshore_core::host::compute;
use farshore_core::id::ChunkId;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes read of a large file at a time.
const READ_BYTES: usize = 2 << 20;
/// Attempts at a file that changes while it is read.
const ATTEMPTS: usize = 2;

/// A chunk with its share of the memory that chunks on their way may take.
pub struct Held {
    /// The chunk.
    pub chunk: NewChunk,
    /// Given back when the plaintext is no longer needed.
    pub room: OwnedSemaphorePermit,
}

impl Held {
    /// Waits for room. Every share of it is held by a stage behind the caller, and none of those waits for more chunks
    /// before it frees what it has, so room always comes.
    pub async fn new(chunk: NewChunk, room: &Arc<Semaphore>) -> Self {
        let len = chunk.plain.len() as u32;
        let room = room.clone().acquire_many_owned(len).await.expect("this semaphore is never closed");
        Held { chunk, room }
    }
}

/// What reading hands on, in the order of the tree.
pub enum Piece {
    /// A directory begins; see [`Step::Enter`].
    Enter {
        /// Its name.
        name: Vec<u8>,
        /// Its attributes.
        meta: Meta,
        /// What the parent had there.
        was: Option<Box<(Meta, ChunkId)>>,
    },
    /// The directory last begun ends.
    Leave,
    /// A finished entry that needed no reading; with its path if it is a file.
    Done(Option<Vec<u8>>, Entry),
    /// A file begins, or begins anew: its chunks so far do not count.
    Begin,
    /// The next chunk of the file.
    Chunk(Held),
    /// All chunks of a file that came before under another name.
    Known(Vec<ContentChunk>),
    /// The file is complete.
    End {
        /// Absolute path.
        path: Vec<u8>,
        /// Name, attributes and the parent's entry.
        file: Box<Reread>,
        /// It changed at every attempt.
        inconsistent: bool,
    },
    /// The file cannot be read: it does not appear in the tree.
    Gone,
}

/// The stage.
pub struct Read<'a> {
    /// Opens files and names chunks.
    pub opener: Opener,
    /// Cuts large files; at the start of a stream.
    pub chunker: Chunker,
    /// Memory for chunks on their way.
    pub room: Arc<Semaphore>,
    /// Counts and problems.
    pub report: &'a Report,
    /// Where pieces go.
    pub out: Sender<Piece>,
    /// Files with several names.
    pub twins: Twins,
    /// Chunks of the file in hand so far, if it has twins and they are not too many to remember.
    pub chunks: Option<Vec<ContentChunk>>,
}

impl Read<'_> {
    /// Runs until the scan ends.
    pub async fn run(mut self, mut steps: Receiver<Step>) -> Result<()> {
        let mut window = Window::new(self.opener.clone());
        loop {
            if window.is_low() {
                self.refill(&mut window, &mut steps).await;
            }
            match window.pop() {
                Some(Waiting::Step(step)) => self.pass(step).await,
                Some(Waiting::File(path, file, first)) => {
                    let first = first.value().await.and_then(|first| first);
                    self.file(path, file, first).await?;
                }
                Some(Waiting::Twin(path, file)) => self.twin(path, file).await?,
                None => return Ok(()),
            }
        }
    }

    /// Takes the steps that are there; waits only if there is nothing else to do.
    async fn refill(&mut self, window: &mut Window, steps: &mut Receiver<Step>) {
        while window.has_room() {
            let step = if window.is_empty() { steps.recv().await } else { steps.try_recv().ok() };
            match step {
                Some(Step::Read { path, reread }) => match self.twins.expect(&reread.stat.meta) {
                    true => window.push(Waiting::Twin(path, reread)),
                    false => window.push_file(path, reread),
                },
                Some(step) => window.push(Waiting::Step(step)),
                None => break,
            }
        }
        window.flush();
    }

    async fn send(&self, piece: Piece) {
        // Whoever stopped listening has an error to report, which ends this stage too.
        let _ = self.out.send(piece).await;
    }

    async fn pass(&self, step: Step) {
        let piece = match step {
            Step::Enter { name, meta, was } => Piece::Enter { name, meta, was },
            Step::Leave => Piece::Leave,
            Step::Other(entry) => Piece::Done(None, entry),
            Step::Kept { path, entry } | Step::Same { path, entry, .. } => Piece::Done(Some(path), entry),
            Step::Read { .. } => unreachable!("files to read wait in the window as files"),
        };
        self.send(piece).await;
    }

    /// A further name of a file: takes over the chunks of the first if the file still looks the same.
    async fn twin(&mut self, path: Vec<u8>, file: Box<Reread>) -> Result<()> {
        let Some(chunks) = self.twins.chunks_of(&file.stat) else {
            let first = self.opener.start(path.clone()).value().await.and_then(|first| first);
            return self.file(path, file, first).await;
        };
        self.report.event(Event::Reading { path: &path });
        self.report.event(Event::Bytes { bytes: chunks.iter().map(|chunk| u64::from(chunk.len)).sum() });
        self.send(Piece::Begin).await;
        self.send(Piece::Known(chunks)).await;
        self.send(Piece::End { path, file, inconsistent: false }).await;
        Ok(())
    }

    /// Reads one file. If it looks different afterwards from what its entry will say, it is read once more.
    async fn file(&mut self, path: Vec<u8>, mut file: Box<Reread>, first: io::Result<First>) -> Result<()> {
        self.report.event(Event::Reading { path: &path });
        let mut first = Some(first);
        for attempt in 1..=ATTEMPTS {
            let first = match first.take() {
                Some(first) => first,
                None => self.again(&path, &mut file).await,
            };
            self.chunks = (file.stat.meta.nlink > 1).then(Vec::new);
            let after = match first {
                Ok(first) => self.contents(first).await,
                Err(error) => Err(error),
            };
            let is_stream = self.opener.source.is_stream();
            let inconsistent = match after {
                Ok(after) if is_stream || Some(after) == file.stat.fingerprint() => {
                    let read = self.chunks.take().map(|chunks| (after, chunks));
                    self.twins.note(&file.stat.meta, read);
                    false
                }
                Err(error) if is_stream => {
                    return Err(Error::local(format!("read {}", String::from_utf8_lossy(&path)), error));
                }
                Ok(_) if attempt < ATTEMPTS => continue,
                Ok(_) => {
                    self.twins.note(&file.stat.meta, None);
                    let why = "it changed while it was read, twice; its contents may mix old and new";
                    self.report.event(Event::Problem { path: &path, why });
                    true
                }
                Err(error) => {
                    self.twins.note(&file.stat.meta, None);
                    self.report.unreadable(&path, &error);
                    self.send(Piece::Gone).await;
                    return Ok(());
                }
            };
            self.send(Piece::End { path, file, inconsistent }).await;
            return Ok(());
        }
        Ok(())
    }

    /// A second attempt begins with a second look, since the first may just have come late.
    async fn again(&self, path: &[u8], file: &mut Reread) -> io::Result<First> {
        let stat = self.opener.source.stat(path).await?;
        if stat.fingerprint().is_none() {
            return Err(io::Error::other("it is no longer a regular file"));
        }
        file.stat = stat;
        self.opener.start(path.to_vec()).value().await?
    }

    /// Sends the chunks of an opened file and tells what it looked like after the last byte.
    async fn contents(&mut self, first: First) -> io::Result<Fingerprint> {
        self.send(Piece::Begin).await;
        let Opened { head, seen, rest } = first.opened;
        if let Some(rest) = rest {
            return self.stream(head, rest).await;
        }
        if let Some(id) = first.only {
            self.chunk(id, head).await;
        }
        Ok(seen)
    }

    async fn stream(&mut self, head: Bytes, rest: Box<dyn SourceFile>) -> io::Result<Fingerprint> {
        let mut cutter =
            Cutter { chunker: self.chunker.clone(), keys: self.opener.keys.clone(), pending: head.into() };
        let mut next = read_ahead(rest);
        loop {
            let (mut file, bytes) = next.value().await?;
            let bytes = bytes?;
            let ended = bytes.len() < READ_BYTES;
            if !ended {
                next = read_ahead(file);
                let (back, chunks) = compute(&*self.opener.compute, move || cutter.cut(bytes, false)).await;
                cutter = back;
                self.chunks(chunks).await;
                continue;
            }
            let (_, chunks) = compute(&*self.opener.compute, move || cutter.cut(bytes, true)).await;
            self.chunks(chunks).await;
            return file.fingerprint().await;
        }
    }

    async fn chunks(&mut self, chunks: Vec<(ChunkId, Bytes)>) {
        for (id, plain) in chunks {
            self.chunk(id, plain).await;
        }
    }

    async fn chunk(&mut self, id: ChunkId, plain: Bytes) {
        let bytes = plain.len() as u64;
        self.chunks = self.chunks.take().filter(|chunks| chunks.len() < CHUNKS_MAX);
        self.chunks.iter_mut().for_each(|chunks| chunks.push(ContentChunk { id, len: plain.len() as u32 }));
        self.report.count(|stats| stats.bytes_read += bytes);
        self.report.event(Event::Bytes { bytes });
        let held = Held::new(NewChunk { id, kind: PackKind::Data, plain }, &self.room).await;
        self.send(Piece::Chunk(held)).await;
    }
}

fn read_ahead(mut file: Box<dyn SourceFile>) -> Ahead<(Box<dyn SourceFile>, io::Result<Bytes>)> {
    Ahead::start(async move {
        let bytes = file.read(READ_BYTES).await;
        (file, bytes)
    })
}

/// Cuts and names; travels into compute jobs and back.
struct Cutter {
    chunker: Chunker,
    keys: RepoKeys,
    pending: BytesMut,
}

impl Cutter {
    fn cut(mut self, bytes: Bytes, ended: bool) -> (Self, Vec<(ChunkId, Bytes)>) {
        self.pending.extend_from_slice(&bytes);
        let mut chunks = Vec::new();
        while let Some(len) = self.chunker.cut(&self.pending) {
            chunks.push(self.take(len));
        }
        if ended && !self.pending.is_empty() {
            let len = self.pending.len();
            chunks.push(self.take(len));
        }
        (self, chunks)
    }
    fn take(&mut self, len: usize) -> (ChunkId, Bytes) {
        let plain = self.pending.split_to(len).freeze();
        (self.keys.chunk_id(PackKind::Data, &plain), plain)
    }
}

/// What a finished file is, compared with the parent's entry of its name.
pub fn change(was: Option<&Entry>, now: &Entry) -> Change {
    match was {
        None => Change::New,
        Some(was) if was.node == now.node => Change::Unmodified,
        Some(_) => Change::Changed,
    }
}
