//! Files opened ahead of the one in hand, so that the disk works while processors hash. Small ones are opened in
//! batches: handing a job to another thread and back costs more than reading one of them.

use super::scan::{Reread, Step};
use crate::crypto::RepoKeys;
use crate::files::{Opened, Source};
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::host::{Compute, compute, task};
use farshore_core::id::ChunkId;
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use tokio::sync::oneshot;

/// Steps that wait in order behind the one in hand.
const STEPS_AHEAD: usize = 256;
/// Bytes of the beginnings of files that wait. Files that have grown since the scan saw them may bring more: up to
/// [`SMALL_BYTES`] each.
const BYTES_AHEAD: u64 = 8 << 20;
/// Shorter files are opened in batches.
const SMALL_BYTES: usize = 64 << 10;
/// Files of a batch: enough that the handing over does not count, few enough to keep all processors busy.
const BATCH_FILES: usize = 32;
/// Bytes of a batch.
const BATCH_BYTES: u64 = 512 << 10;
/// Hashing less than this is quicker than handing it to another thread.
const HASH_HERE_BYTES: usize = 16 << 10;

/// The beginning of a file, and the name of its only chunk if that is all.
pub struct First {
    /// The open file.
    pub opened: Opened,
    /// Set if the whole file is one chunk.
    pub only: Option<ChunkId>,
}

/// A value being made by a task that ends when nobody waits for any of its values.
pub struct Ahead<T> {
    value: oneshot::Receiver<T>,
    _task: Arc<OnceLock<task::Owned>>,
}

impl<T: Send + 'static> Ahead<T> {
    /// Starts a task for one value.
    pub fn start(future: impl Future<Output = T> + Send + 'static) -> Self {
        let (send, value) = oneshot::channel();
        let task = task::Owned::spawn(async move {
            // Nobody waits any more if the backup has been given up.
            let _ = send.send(future.await);
        });
        Ahead { value, _task: Arc::new(OnceLock::from(task)) }
    }
    /// Waits for it.
    pub async fn value(self) -> io::Result<T> {
        self.value.await.map_err(|_| io::Error::other("the task reading it was stopped"))
    }
}

/// A step in the order of the tree.
#[expect(clippy::large_enum_variant, reason = "there are at most STEPS_AHEAD of them")]
pub enum Waiting {
    /// Nothing to read.
    Step(Step),
    /// A file being opened.
    File(Vec<u8>, Box<Reread>, Ahead<io::Result<First>>),
    /// A further name of a file that is in the window or was: most likely it need not be opened.
    Twin(Vec<u8>, Box<Reread>),
}

/// Opens files and names the chunk of those that are only one.
#[derive(Clone)]
pub struct Opener {
    /// The tree that is read.
    pub source: Arc<dyn Source>,
    /// Processors.
    pub compute: Arc<dyn Compute>,
    /// Names chunks.
    pub keys: RepoKeys,
    /// Files shorter than this are one chunk.
    pub min: usize,
}

impl Opener {
    /// Opens one file.
    pub fn start(&self, path: Vec<u8>) -> Ahead<io::Result<First>> {
        let opener = self.clone();
        Ahead::start(async move {
            let opened = opener.source.open(&path, opener.min).await;
            opener.name(vec![opened]).await.pop().expect("one file in, one file out")
        })
    }

    /// What is read of a file opened in a batch: one byte more than a small one can have, so that its end shows.
    fn small(&self) -> usize {
        self.min.min(SMALL_BYTES)
    }

    async fn name(&self, opened: Vec<io::Result<Opened>>) -> Vec<io::Result<First>> {
        let is_whole = |opened: &Opened| opened.rest.is_none() && !opened.head.is_empty();
        let whole = opened.iter().map(|o| o.as_ref().ok().filter(|o| is_whole(o)).map(|o| o.head.clone()));
        let whole: Vec<Option<Bytes>> = whole.collect();
        let bytes: usize = whole.iter().flatten().map(Bytes::len).sum();
        let keys = self.keys.clone();
        let name =
            move || whole.iter().map(|head| Some(keys.chunk_id(PackKind::Data, head.as_ref()?))).collect();
        let names: Vec<Option<ChunkId>> =
            if bytes <= HASH_HERE_BYTES { name() } else { compute(&*self.compute, name).await };
        opened.into_iter().zip(names).map(|(opened, only)| Ok(First { opened: opened?, only })).collect()
    }
}

/// Small files that will be opened together.
struct Batch {
    files: Vec<(Vec<u8>, oneshot::Sender<io::Result<First>>)>,
    bytes: u64,
    task: Arc<OnceLock<task::Owned>>,
}

/// What waits, in order. Files in it are open or about to be, save those of a batch that is not full: [`Self::flush`].
pub struct Window {
    opener: Opener,
    /// With the bytes each may hold.
    waiting: VecDeque<(u64, Waiting)>,
    bytes: u64,
    batch: Option<Batch>,
}

impl Window {
    /// An empty one.
    pub fn new(opener: Opener) -> Self {
        Window { opener, waiting: VecDeque::with_capacity(STEPS_AHEAD), bytes: 0, batch: None }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether there is room for a good number of steps, so that batches come together.
    pub fn is_low(&self) -> bool {
        self.waiting.len() <= STEPS_AHEAD / 2 && self.bytes <= BYTES_AHEAD / 2
    }

    /// Whether there is room for another step.
    pub fn has_room(&self) -> bool {
        self.waiting.len() < STEPS_AHEAD && self.bytes < BYTES_AHEAD
    }

    /// Adds what takes no memory worth counting.
    pub fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back((0, waiting));
    }

    /// Adds a file and sees to it that it is opened.
    pub fn push_file(&mut self, path: Vec<u8>, file: Box<Reread>) {
        let size = file.stat.fingerprint().map_or(0, |seen| seen.size);
        let (weight, first) = if size < self.opener.small() as u64 {
            (size, self.join_batch(path.clone(), size))
        } else {
            (self.opener.min as u64, self.opener.start(path.clone()))
        };
        self.bytes += weight;
        self.waiting.push_back((weight, Waiting::File(path, file, first)));
    }

    /// The next in order. Call [`Self::flush`] before waiting for a file.
    pub fn pop(&mut self) -> Option<Waiting> {
        let (weight, waiting) = self.waiting.pop_front()?;
        self.bytes -= weight;
        Some(waiting)
    }

    fn join_batch(&mut self, path: Vec<u8>, size: u64) -> Ahead<io::Result<First>> {
        let (send, value) = oneshot::channel();
        let batch =
            self.batch.get_or_insert_with(|| Batch { files: Vec::new(), bytes: 0, task: Arc::default() });
        batch.files.push((path, send));
        batch.bytes += size;
        let ahead = Ahead { value, _task: batch.task.clone() };
        if batch.files.len() >= BATCH_FILES || batch.bytes >= BATCH_BYTES {
            self.flush();
        }
        ahead
    }

    /// Starts opening the batch as it is.
    pub fn flush(&mut self) {
        let Some(Batch { files, task, .. }) = self.batch.take() else { return };
        let opener = self.opener.clone();
        let running = task::Owned::spawn(async move {
            let (paths, answers): (Vec<_>, Vec<_>) = files.into_iter().unzip();
            let opened = opener.source.open_all(&paths, opener.small()).await;
            for (answer, first) in answers.into_iter().zip(opener.name(opened).await) {
                // Nobody waits any more if the backup has been given up.
                let _ = answer.send(first);
            }
        });
        task.set(running).expect("a batch is started once");
    }
}
