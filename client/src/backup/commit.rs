//! Making uploaded packs known: in batches as they come, and each chunk's ordinal into the ledger.

use super::ledger::Ledger;
use super::report::Report;
use super::upload::Uploaded;
use crate::api::CatalogueApi;
use crate::error::{Error, Result};
use farshore_core::catalogue::PackCommit;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::id::SessionId;
use farshore_core::limits::COMMAND_BYTES_MAX;
use tokio::sync::mpsc::Receiver;

/// Packs of one commit.
const PACKS_AT_ONCE: usize = 16;
/// Chunks of one commit: their rows must fit a command twice over.
const CHUNKS_AT_ONCE: usize = COMMAND_BYTES_MAX / 2 / 48;

const _: () = assert!(farshore_core::limits::PACK_CHUNKS_MAX <= CHUNKS_AT_ONCE);
const _: () = assert!(PACKS_AT_ONCE <= farshore_core::limits::COMMIT_PACKS_MAX);

/// The stage.
pub struct Commit<'a> {
    /// Whom to tell.
    pub catalogue: &'a dyn CatalogueApi,
    /// Lease under which packs are committed.
    pub session: SessionId,
    /// Where ordinals go.
    pub ledger: &'a Ledger,
    /// Counts.
    pub report: &'a Report,
}

impl Commit<'_> {
    /// Runs until the last upload is done.
    pub async fn run(self, mut uploads: Receiver<Uploaded>) -> Result<()> {
        let mut waiting = Vec::with_capacity(PACKS_AT_ONCE);
        loop {
            if waiting.is_empty() && uploads.recv_many(&mut waiting, PACKS_AT_ONCE).await == 0 {
                return Ok(());
            }
            let mut chunks = 0;
            let fits = waiting.iter().take_while(|upload: &&Uploaded| {
                chunks += upload.pack.chunks.len();
                chunks <= CHUNKS_AT_ONCE
            });
            let count = fits.count();
            self.commit(waiting.drain(..count).collect()).await?;
        }
    }

    async fn commit(&self, batch: Vec<Uploaded>) -> Result<()> {
        let packs: Vec<PackCommit> = batch.iter().map(|upload| upload.pack.clone()).collect();
        let committed = self.catalogue.commit_packs(self.session, packs).await?;
        if committed.len() != batch.len() {
            return Err(Error::Protocol(format!(
                "{} packs sent, {} committed",
                batch.len(),
                committed.len()
            )));
        }
        for (upload, committed) in batch.iter().zip(committed) {
            self.enter(&upload.pack, &committed)?;
            self.report.stored(upload.pack.len, upload.sent, upload.degraded);
        }
        Ok(())
    }

    fn enter(&self, pack: &PackCommit, committed: &PackCommitted) -> Result<()> {
        if committed.id != pack.id || committed.ordinals.len() != pack.chunks.len() {
            return Err(Error::Protocol(format!(
                "the commit of pack {} is answered for another",
                pack.id.short()
            )));
        }
        for (span, ordinal) in pack.chunks.iter().zip(&committed.ordinals) {
            self.ledger.present(span.id, *ordinal);
        }
        Ok(())
    }
}
