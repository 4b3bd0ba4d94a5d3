//! Reading files and cutting them into named chunks, in the order of the tree. A few files are opened ahead, so that the
//! disk works while processors hash; only one large file is in hand at a time. Watches for files that change meanwhile.

use super::chunk::Chunker;
use super::report::Report;
use super::scan::{Reread, Step};
use crate::crypto::RepoKeys;
use crate::error::Result;
use crate::files::{Fingerprint, Meta, Opened, Source, SourceFile};
use crate::format::{Entry, NewChunk};
use crate::progress::{Change, Event};
use bytes::{Bytes, BytesMut};
use farshore_core::catalogue::PackKind;
use farshore_core::host::{Compute, compute, task};
use farshore_core::id::ChunkId;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Files opened ahead of the one in hand; each holds at most one smallest chunk.
const FILES_AHEAD: usize = 32;
/// Bytes read of a large file at a time.
const READ_BYTES: usize = 2 << 20;
/// Hashing less than this is quicker than handing it to another thread.
const HASH_HERE_BYTES: usize = 16 << 10;
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
    /// The tree that is read.
    pub source: Arc<dyn Source>,
    /// Processors.
    pub compute: Arc<dyn Compute>,
    /// Names chunks.
    pub keys: RepoKeys,
    /// Cuts large files; at the start of a stream.
    pub chunker: Chunker,
    /// Files up to this length are one chunk and are not scanned.
    pub min: usize,
    /// Memory for chunks on their way.
    pub room: Arc<Semaphore>,
    /// Counts and problems.
    pub report: &'a Report,
    /// Where pieces go.
    pub out: Sender<Piece>,
}

/// A value being made by a task that ends with it.
struct Ahead<T> {
    value: oneshot::Receiver<T>,
    _task: task::Owned,
}

impl<T: Send + 'static> Ahead<T> {
    fn start(future: impl Future<Output = T> + Send + 'static) -> Self {
        let (send, value) = oneshot::channel();
        let task = task::Owned::spawn(async move {
            // Nobody waits any more if the backup has been given up.
            let _ = send.send(future.await);
        });
        Ahead { value, _task: task }
    }
    async fn value(self) -> io::Result<T> {
        self.value.await.map_err(|_| io::Error::other("the task reading it was stopped"))
    }
}

/// The beginning of a file, and the name of its only chunk if that is all.
struct First {
    opened: Opened,
    only: Option<ChunkId>,
}

#[expect(clippy::large_enum_variant, reason = "there are at most FILES_AHEAD of them")]
enum Waiting {
    Step(Step),
    File { path: Vec<u8>, file: Box<Reread>, first: Ahead<io::Result<First>> },
}

impl Read<'_> {
    /// Runs until the scan ends.
    pub async fn run(mut self, mut steps: Receiver<Step>) -> Result<()> {
        let mut window = VecDeque::with_capacity(FILES_AHEAD);
        loop {
            while window.len() < FILES_AHEAD {
                let step = if window.is_empty() { steps.recv().await } else { steps.try_recv().ok() };
                let Some(step) = step else { break };
                window.push_back(self.look_ahead(step));
            }
            match window.pop_front() {
                Some(Waiting::Step(step)) => self.pass(step).await,
                Some(Waiting::File { path, file, first }) => {
                    let first = first.value().await.and_then(|first| first);
                    self.file(path, file, first).await;
                }
                None => return Ok(()),
            }
        }
    }

    async fn send(&self, piece: Piece) {
        // Whoever stopped listening has an error to report, which ends this stage too.
        let _ = self.out.send(piece).await;
    }

    fn look_ahead(&self, step: Step) -> Waiting {
        match step {
            Step::Read { path, reread } => {
                let first = self.start(path.clone());
                Waiting::File { path, file: reread, first }
            }
            step => Waiting::Step(step),
        }
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

    /// Opens a file, reads its beginning and, if that is all, names its only chunk.
    fn start(&self, path: Vec<u8>) -> Ahead<io::Result<First>> {
        let (source, on, keys, min) =
            (self.source.clone(), self.compute.clone(), self.keys.clone(), self.min);
        Ahead::start(async move {
            let opened = source.open(&path, min).await?;
            let only = match opened.rest {
                None if !opened.head.is_empty() => Some(name(&on, keys, opened.head.clone()).await),
                _ => None,
            };
            Ok(First { opened, only })
        })
    }

    /// Reads one file. If it looks different afterwards from what its entry will say, it is read once more.
    async fn file(&mut self, path: Vec<u8>, mut file: Box<Reread>, first: io::Result<First>) {
        self.report.event(Event::Reading { path: &path });
        let mut first = Some(first);
        for attempt in 1..=ATTEMPTS {
            let first = match first.take() {
                Some(first) => first,
                None => self.again(&path, &mut file).await,
            };
            let after = match first {
                Ok(first) => self.contents(first).await,
                Err(error) => Err(error),
            };
            match after {
                Ok(after) if Some(after) == file.stat.fingerprint() => {
                    return self.send(Piece::End { path, file, inconsistent: false }).await;
                }
                Ok(_) if attempt < ATTEMPTS => {}
                Ok(_) => {
                    let why = "it changed while it was read, twice; its contents may mix old and new";
                    self.report.event(Event::Problem { path: &path, why });
                    return self.send(Piece::End { path, file, inconsistent: true }).await;
                }
                Err(error) => {
                    self.report.unreadable(&path, &error);
                    return self.send(Piece::Gone).await;
                }
            }
        }
    }

    /// A second attempt begins with a second look, since the first may just have come late.
    async fn again(&self, path: &[u8], file: &mut Reread) -> io::Result<First> {
        let stat = self.source.stat(path).await?;
        if stat.fingerprint().is_none() {
            return Err(io::Error::other("it is no longer a regular file"));
        }
        file.stat = stat;
        self.start(path.to_vec()).value().await?
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
            Cutter { chunker: self.chunker.clone(), keys: self.keys.clone(), pending: head.into() };
        let mut next = read_ahead(rest);
        loop {
            let (mut file, bytes) = next.value().await?;
            let bytes = bytes?;
            let ended = bytes.len() < READ_BYTES;
            if !ended {
                next = read_ahead(file);
                let (back, chunks) = compute(&*self.compute, move || cutter.cut(bytes, false)).await;
                cutter = back;
                self.chunks(chunks).await;
                continue;
            }
            let (_, chunks) = compute(&*self.compute, move || cutter.cut(bytes, true)).await;
            self.chunks(chunks).await;
            return file.fingerprint().await;
        }
    }

    async fn chunks(&self, chunks: Vec<(ChunkId, Bytes)>) {
        for (id, plain) in chunks {
            self.chunk(id, plain).await;
        }
    }

    async fn chunk(&self, id: ChunkId, plain: Bytes) {
        let bytes = plain.len() as u64;
        self.report.count(|stats| stats.bytes_read += bytes);
        self.report.event(Event::Bytes { bytes });
        let held = Held::new(NewChunk { id, kind: PackKind::Data, plain }, &self.room).await;
        self.send(Piece::Chunk(held)).await;
    }
}

async fn name(on: &Arc<dyn Compute>, keys: RepoKeys, plain: Bytes) -> ChunkId {
    if plain.len() <= HASH_HERE_BYTES {
        return keys.chunk_id(PackKind::Data, &plain);
    }
    compute(&**on, move || keys.chunk_id(PackKind::Data, &plain)).await
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
