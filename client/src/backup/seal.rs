//! Compressing and encrypting new chunks, several at a time, in order. Each sealed chunk is opened again and its contents
//! checked against its id before it may leave: bad memory is caught here and not at the restore.

use super::read::Held;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::{Compression, Opener, Sealer, Spare};
use farshore_core::catalogue::PackKind;
use farshore_core::host::{Host, random};
use farshore_core::id::ChunkId;
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};

/// Plaintext of one job: enough that handing it over does not count, little enough to spread.
const JOB_BYTES: usize = 2 << 20;
/// Chunks of one job.
const JOB_CHUNKS: usize = 256;
/// Jobs at a time, however many processors there are: each takes memory, and this many keep any network busy.
const JOBS_MAX: usize = 8;

/// A chunk ready for a pack.
pub struct SealedChunk {
    /// Its name.
    pub id: ChunkId,
    /// Which kind of pack it goes to.
    pub kind: PackKind,
    /// Its sealed bytes.
    pub sealed: Vec<u8>,
}

/// The stage.
pub struct Seal<'a> {
    /// Processors and randomness.
    pub host: &'a Host,
    /// Seal keys.
    pub keys: RepoKeys,
    /// How to compress.
    pub compression: Compression,
    /// Where sealed chunks go, job by job.
    pub out: Sender<Vec<SealedChunk>>,
}

type Running = Pin<Box<dyn Future<Output = Result<Vec<SealedChunk>>> + Send>>;

impl Seal<'_> {
    /// Runs until deduplication ends.
    pub async fn run(self, mut chunks: Receiver<Held>) -> Result<()> {
        let jobs_max = JOBS_MAX.min(self.host.compute.width() + 1);
        let tools = Arc::new(Spare::default());
        let mut running: FuturesOrdered<Running> = FuturesOrdered::new();
        let mut waiting: Vec<Held> = Vec::with_capacity(JOB_CHUNKS);
        let mut open = true;
        while open || !waiting.is_empty() || !running.is_empty() {
            while !waiting.is_empty() && running.len() < jobs_max {
                let job = cut_job(&mut waiting);
                running.push_back(self.start(job, tools.clone()));
            }
            tokio::select! {
                biased;
                count = chunks.recv_many(&mut waiting, JOB_CHUNKS), if open && waiting.is_empty() => open = count > 0,
                done = running.next(), if !running.is_empty() => {
                    // Whoever stopped listening has an error to report, which ends this stage too.
                    if let Some(done) = done {
                        let _ = self.out.send(done?).await;
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts a job at once; the future only waits for it.
    fn start(&self, job: Vec<Held>, tools: Arc<Spare<Tools>>) -> Running {
        // Salts are drawn here, in order, so that a simulated run repeats.
        let salts: Vec<[u8; 16]> = job.iter().map(|_| random(&*self.host.entropy)).collect();
        let (keys, compression) = (self.keys.clone(), self.compression);
        let (send, receive) = tokio::sync::oneshot::channel();
        self.host.compute.submit(Box::new(move || {
            let make = || Tools { sealer: Sealer::new(compression), opener: Opener::new() };
            let _ = send.send(tools.lend(make, |tools| seal_all(tools, &keys, job, salts)));
        }));
        Box::pin(
            async move { receive.await.expect("a compute job ends by sending its value unless it panicked") },
        )
    }
}

/// Takes the first chunks, up to a job's worth.
fn cut_job(waiting: &mut Vec<Held>) -> Vec<Held> {
    let mut bytes = 0;
    let count = waiting.iter().take_while(|held| {
        let fits = bytes < JOB_BYTES;
        bytes += held.chunk.plain.len();
        fits
    });
    let count = count.count();
    waiting.drain(..count).collect()
}

/// What a job works with.
struct Tools {
    sealer: Sealer,
    opener: Opener,
}

fn seal_all(
    tools: &mut Tools,
    keys: &RepoKeys,
    job: Vec<Held>,
    salts: Vec<[u8; 16]>,
) -> Result<Vec<SealedChunk>> {
    let Tools { sealer, opener } = tools;
    let mut done = Vec::with_capacity(job.len());
    for (held, salt) in job.into_iter().zip(salts) {
        let (id, kind) = (held.chunk.id, held.chunk.kind);
        let sealed = sealer.seal(keys, kind, &id, &held.chunk.plain, salt);
        opener.check(keys, kind, &id, &sealed).map_err(|error| {
            Error::corrupt(
                format!("chunk {} right after sealing", id.short()),
                format!("{error}: the memory or processor of this machine is failing"),
            )
        })?;
        done.push(SealedChunk { id, kind, sealed });
    }
    Ok(done)
}
