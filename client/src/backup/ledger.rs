//! What this run knows about chunks: the ordinals its snapshot needs, the chunks it has asked about or is sending, and a
//! bounded memory of those known to be there. Every chunk a snapshot references ends as an ordinal in here.

use super::live::Live;
use farshore_core::id::{ChunkId, Ordinal};
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

/// Ids remembered as present: two generations of this many. Forgetting one costs another lookup, nothing else.
const KNOWN_MAX: usize = 65_536;

/// Shared by the stages; no lock is held across an await.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    live: Live,
    known: BTreeSet<ChunkId>,
    known_before: BTreeSet<ChunkId>,
    pending: BTreeSet<ChunkId>,
}

impl Ledger {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }
    /// Whether nothing needs to be asked or sent: it is present, or on its way in this very run.
    pub fn is_covered(&self, id: &ChunkId) -> bool {
        let inner = self.lock();
        inner.known.contains(id) || inner.pending.contains(id) || inner.known_before.contains(id)
    }
    /// Claims a chunk for asking and, if need be, sending. False if it is covered already.
    pub fn claim(&self, id: ChunkId) -> bool {
        !self.is_covered(&id) && self.lock().pending.insert(id)
    }
    /// The catalogue has it under this ordinal, which the snapshot now needs.
    pub fn present(&self, id: ChunkId, ordinal: Ordinal) {
        let mut inner = self.lock();
        inner.pending.remove(&id);
        inner.live.insert(ordinal);
        if inner.known.len() >= KNOWN_MAX {
            inner.known_before = std::mem::take(&mut inner.known);
        }
        inner.known.insert(id);
    }
    /// Chunks that were claimed and are neither present nor committed.
    pub fn pending(&self) -> usize {
        self.lock().pending.len()
    }
    /// The bitmap of what is there by now, while more is on its way.
    pub fn live_so_far(&self) -> Live {
        self.lock().live.clone()
    }
    /// The bitmap, once nothing is pending.
    pub fn take_live(&self) -> Live {
        std::mem::take(&mut self.lock().live)
    }
}
