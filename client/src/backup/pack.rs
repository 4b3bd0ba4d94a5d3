//! Filling packs, one for data and one for trees, and handing on the full ones when there is a slot to send them.

use super::seal::SealedChunk;
use crate::error::Result;
use crate::format::Spare;
use farshore_core::catalogue::PackKind;
use farshore_core::pack::PackBuilder;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A full pack with the slot that bounds how many are on their way.
pub struct FullPack {
    /// Its contents.
    pub pack: PackBuilder,
    /// Given back when its shards are durable.
    pub slot: OwnedSemaphorePermit,
}

/// The stage.
pub struct Fill {
    /// Size at which a pack is closed, in bytes.
    pub target: usize,
    /// One permit for each pack on its way.
    pub slots: Arc<Semaphore>,
    /// Memory of packs that have been sent.
    pub memory: Arc<Spare<Vec<u8>>>,
    /// Where full packs go.
    pub out: Sender<FullPack>,
}

impl Fill {
    /// Runs until sealing ends, then hands on what is there.
    pub async fn run(self, mut sealed: Receiver<Vec<SealedChunk>>) -> Result<()> {
        let mut data = PackBuilder::new(PackKind::Data, self.target);
        let mut tree = PackBuilder::new(PackKind::Tree, self.target);
        while let Some(job) = sealed.recv().await {
            for SealedChunk { id, kind, sealed } in job {
                let pack = match kind {
                    PackKind::Data => &mut data,
                    PackKind::Tree => &mut tree,
                };
                if !pack.fits(sealed.len()) {
                    let full = std::mem::replace(pack, PackBuilder::new(kind, self.target));
                    self.hand_on(full).await;
                    let memory = self.memory.take().unwrap_or_default();
                    *pack = PackBuilder::within(kind, self.target, memory);
                }
                pack.add(id, &sealed);
            }
        }
        for pack in [data, tree].into_iter().filter(|pack| !pack.is_empty()) {
            self.hand_on(pack).await;
        }
        Ok(())
    }

    /// The slot is taken before the next pack begins to fill: this is what bounds the memory of a run.
    async fn hand_on(&self, pack: PackBuilder) {
        let slot = self.slots.clone().acquire_owned().await.expect("this semaphore is never closed");
        // Whoever stopped listening has an error to report, which ends this stage too.
        let _ = self.out.send(FullPack { pack, slot }).await;
    }
}
