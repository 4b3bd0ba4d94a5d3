//! The seams: all that a process may ask of the world, bundled in one [`Host`].
//!
//! Production gives real implementations, the simulator its own; the code between cannot tell. Timers are not here:
//! everything uses `tokio::time`, whose clock the simulator pauses. Clippy's disallowed methods keep the rest of the
//! workspace from going around this file.

pub mod kv;
pub mod net;
pub mod real;
pub mod task;

pub use kv::{Kv, KvError, KvFactory, KvOp, KvRead, KvRole, Table};
pub use net::{ByteStream, Listener, Net};

use crate::mutant::{Mutant, mutant};
use async_trait::async_trait;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

/// Everything a node or a client takes from outside.
#[derive(Clone)]
pub struct Host {
    /// Files under one root directory.
    pub disk: Arc<dyn Disk>,
    /// Ordered tables.
    pub kv: Arc<dyn KvFactory>,
    /// Byte streams to other processes.
    pub net: Arc<dyn Net>,
    /// Calendar time.
    pub clock: Arc<dyn WallClock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Processors.
    pub compute: Arc<dyn Compute>,
}

/// Room on the disk that holds the root directory, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    /// Size of the file system.
    pub total: u64,
    /// Bytes an ordinary process may still write.
    pub free: u64,
}

/// Files below one root. Names are relative, `/`-separated, without `.` and `..`; directories come into being with
/// their first file. Only what `sync` and `sync_dir` covered survives a power loss.
#[async_trait]
pub trait Disk: Send + Sync {
    /// Creates or truncates a file for writing. Its name may be lost in a crash until `sync_dir` of its directory.
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    /// Reads up to `len` bytes at `offset`; shorter only at the end of the file.
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes>;
    /// Length of a file, or `None` if there is none.
    async fn len(&self, name: &str) -> io::Result<Option<u64>>;
    /// Overwrites bytes in place and syncs them before it returns; creates the file if needed. For small fixed slots
    /// only: a crash may leave old, new or torn bytes.
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Gives a file another name, replacing what had it. Durable after `sync_dir`.
    async fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; not an error if there is none. Durable after `sync_dir`.
    async fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes the names in a directory durable (and the directory itself in its parents).
    async fn sync_dir(&self, dir: &str) -> io::Result<()>;
    /// Names of the entries of a directory, sorted, directories with a trailing `/`; empty if there is none.
    async fn list(&self, dir: &str) -> io::Result<Vec<String>>;
    /// Room left.
    async fn space(&self) -> io::Result<Space>;

    /// Names of the directories in `dir` that have anything in them, with a trailing `/`, where asking once is cheaper than
    /// listing each. `None`: list each.
    async fn filled(&self, _dir: &str) -> io::Result<Option<BTreeSet<String>>> {
        Ok(None)
    }
    /// As [`Disk::list`], each name with its file's length where that comes with the listing; where not, ask `len`.
    async fn list_sized(&self, dir: &str) -> io::Result<Vec<(String, Option<u64>)>> {
        Ok(self.list(dir).await?.into_iter().map(|name| (name, None)).collect())
    }
    /// Length and first bytes of a file, up to `len`, or `None` if there is none. One request where requests cost.
    async fn open(&self, name: &str, len: usize) -> io::Result<Option<(u64, Bytes)>> {
        let Some(size) = self.len(name).await? else { return Ok(None) };
        match self.read(name, 0, len).await {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some((size, read?))),
        }
    }
    /// Bytes that are better read in one call than in several, if they are wanted at all.
    fn stride(&self, _name: &str) -> usize {
        0
    }
}

/// There is no room left where a process keeps its data.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "the disk that holds {0} is full: free some space there, and the node goes on or can be started again; nothing is lost"
)]
pub struct DiskFull(pub String);

impl DiskFull {
    /// Whether an error says so.
    pub fn is(error: &io::Error) -> bool {
        matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
    }
    /// Such an error, of the same kind, with the place in it and what to do; any other as it is.
    pub fn explain(error: io::Error, place: &std::path::Path) -> io::Error {
        match Self::is(&error) {
            true => io::Error::new(error.kind(), DiskFull(place.display().to_string())),
            false => error,
        }
    }
}

/// A file being written from start to end.
#[async_trait]
pub trait DiskFile: Send {
    /// Adds bytes at the end.
    async fn append(&mut self, bytes: Bytes) -> io::Result<()>;
    /// Makes all appended bytes durable.
    async fn sync(&mut self) -> io::Result<()>;
}

/// The directory part of a name, `""` for a name at the root.
pub fn dir_of(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(dir, _)| dir)
}

/// Makes a written file appear under its final name, whole or not at all, durable on return. The one place that
/// knows the order: data first, then the name, then the directory that holds the name.
pub async fn publish(disk: &dyn Disk, mut file: Box<dyn DiskFile>, temp: &str, name: &str) -> io::Result<()> {
    if mutant(Mutant::RenameBeforeSync) {
        disk.rename(temp, name).await?;
        file.sync().await?;
        return disk.sync_dir(dir_of(name)).await;
    }
    if !mutant(Mutant::AnswerBeforeSync) {
        file.sync().await?;
    }
    drop(file);
    disk.rename(temp, name).await?;
    if mutant(Mutant::SkipDirSync) {
        return Ok(());
    }
    disk.sync_dir(dir_of(name)).await
}

/// Calendar time. May jump either way; nothing that matters may rest on it alone.
pub trait WallClock: Send + Sync {
    /// Milliseconds since 1970-01-01 UTC.
    fn now_ms(&self) -> u64;
}

/// Cryptographic randomness.
pub trait Entropy: Send + Sync {
    /// Fills the buffer.
    fn fill(&self, bytes: &mut [u8]);
    /// A number in `0..bound` (0 if `bound` is 0). The bias is below 2^-32 for the small bounds used here.
    fn below(&self, bound: u64) -> u64 {
        let mut bytes = [0u8; 8];
        self.fill(&mut bytes);
        if bound == 0 { 0 } else { u64::from_le_bytes(bytes) % bound }
    }
}

/// Sixteen or thirty-two random bytes, for ids and keys.
pub fn random<const N: usize>(entropy: &dyn Entropy) -> [u8; N] {
    let mut bytes = [0u8; N];
    entropy.fill(&mut bytes);
    bytes
}

/// A job for a processor.
pub type Job = Box<dyn FnOnce() + Send>;

/// Work that would hold up the event loop: hashing, compression, encryption, coding.
pub trait Compute: Send + Sync {
    /// Runs the job soon, elsewhere (real) or right here (simulated).
    fn submit(&self, job: Job);
    /// How many jobs can make progress at once.
    fn width(&self) -> usize;
}

/// Runs `job` through the seam and waits for its value.
///
/// # Panics
/// If the job itself panicked, which is our own mistake and must not be mistaken for a result.
pub async fn compute<T: Send + 'static>(on: &dyn Compute, job: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = tokio::sync::oneshot::channel();
    on.submit(Box::new(move || {
        // The receiver is gone only if the caller was cancelled; then nobody wants the value.
        let _ = send.send(job());
    }));
    receive.await.expect("a compute job ends by sending its value unless it panicked")
}
