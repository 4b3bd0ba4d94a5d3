//! Known, on its way, or new: asks the catalogue in batches and hands on each new chunk once. Holds no index; what it
//! remembers is bounded by the ledger.

use super::base::lookup;
use super::ledger::Ledger;
use super::read::Held;
use super::report::Report;
use crate::api::CatalogueApi;
use crate::error::Result;
use farshore_core::catalogue::PackKind;
use farshore_core::id::{ChunkId, Ordinal, RepoId, SessionId};
use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{Receiver, Sender};

/// Most chunks of one question.
const BATCH_MAX: usize = 512;
/// Questions on their way at a time; hides the way to a distant leader.
const ASKED_MAX: usize = 4;
/// Another question goes out before the last is answered only with this many chunks, or with half the memory for
/// chunks taken: a question of few costs both sides about as much as one of many.
const BATCH_WORTH: usize = 64;

/// The stage.
pub struct Dedup<'a> {
    /// Whom to ask.
    pub catalogue: &'a dyn CatalogueApi,
    /// Lease under which "present" holds.
    pub session: SessionId,
    /// Whose chunks.
    pub repo: RepoId,
    /// What is known.
    pub ledger: &'a Ledger,
    /// Counts.
    pub report: &'a Report,
    /// Memory for chunks on their way.
    pub room: Arc<Semaphore>,
    /// All of that memory, in bytes.
    pub room_bytes: usize,
    /// Where new chunks go.
    pub out: Sender<Held>,
}

type Answer = Result<(Vec<Held>, Vec<Option<Ordinal>>)>;

impl Dedup<'_> {
    /// Runs until the tree is built.
    pub async fn run(self, mut chunks: Receiver<Held>) -> Result<()> {
        let mut asked = FuturesOrdered::new();
        let mut batch = Vec::with_capacity(BATCH_MAX);
        let mut open = true;
        while open || !asked.is_empty() {
            let crowded = self.room.available_permits() < self.room_bytes / 2;
            let worth = asked.is_empty() || chunks.len() >= BATCH_WORTH || (crowded && !chunks.is_empty());
            tokio::select! {
                biased;
                count = chunks.recv_many(&mut batch, BATCH_MAX), if open && worth && asked.len() < ASKED_MAX => {
                    open = count > 0;
                    batch.retain(|held: &Held| self.ledger.claim(held.chunk.id));
                    if !batch.is_empty() {
                        asked.push_back(self.ask(std::mem::take(&mut batch)));
                    }
                }
                answer = asked.next(), if !asked.is_empty() => {
                    if let Some(answer) = answer {
                        self.hand_on(answer).await?;
                    }
                }
            }
        }
        Ok(())
    }

    async fn ask(&self, batch: Vec<Held>) -> Answer {
        let ids: Vec<ChunkId> = batch.iter().map(|held| held.chunk.id).collect();
        let found = lookup(self.catalogue, self.session, self.repo, self.ledger, &ids).await?;
        Ok((batch, found))
    }

    async fn hand_on(&self, answer: Answer) -> Result<()> {
        let (batch, found) = answer?;
        for (held, found) in batch.into_iter().zip(found) {
            if found.is_some() {
                continue;
            }
            let (kind, len) = (held.chunk.kind, held.chunk.plain.len() as u64);
            self.report.count(|stats| match kind {
                PackKind::Data => {
                    (stats.data_blobs, stats.data_added) = (stats.data_blobs + 1, stats.data_added + len)
                }
                PackKind::Tree => {
                    (stats.tree_blobs, stats.tree_added) = (stats.tree_blobs + 1, stats.tree_added + len)
                }
            });
            // Whoever stopped listening has an error to report, which ends this stage too.
            let _ = self.out.send(held).await;
        }
        Ok(())
    }
}
