//! The replicated catalogue: a pure state machine over its own tables in Kv. No clock, no randomness, no I/O but its
//! tables; ids and times are inside the commands (`farshore_core::catalogue::Command` says what each does).
//!
//! One writer applies log entries through a [`Tx`]; any number of readers ask a [`View`], which is the state after one
//! applied entry and does not change. A whole catalogue travels as an image (`image.rs`), staged beside the live rows
//! under the next generation and installed by one batch.

pub mod part;

pub mod image;

pub mod safety;

pub mod view;

mod tx;

mod apply;

mod garbage;

mod live;

mod read;

mod migrate;

mod tables;

mod ordinals;

mod error;

#[cfg(test)]
mod example_test;

#[cfg(test)]
mod audit_test;

#[cfg(test)]
mod fixture_test;

#[cfg(test)]
mod bounds_test;

#[cfg(test)]
mod catalogue_test;

#[cfg(test)]
mod model;

#[cfg(test)]
mod model_upkeep;

pub use error::CatalogueError;
pub use garbage::{PackUse, RepoUse};
pub use image::{ImagePage, ImageReader, ImageRow, ImageWriter};
pub use live::LiveSet;
pub use ordinals::Ordinals;
pub use part::{Part, PartBuilder, PartHeader};
pub use safety::{Safety, SafetyScan};
pub use tables::{NoteKey, StateHash};
pub use tx::Tx;
pub use view::{Counts, Page, View};

use crate::kv::record::{self, Records};
use farshore_core::host::Kv;
use farshore_core::host::kv::KvRead;
use farshore_core::level::FEATURE_LEVEL;
use farshore_core::limits::IMAGE_PAGE_BYTES;
use read::{Read, Stored};
use std::sync::{Arc, Mutex, MutexGuard};
use tables::*;

/// The catalogue of one replica. Clones share it.
#[derive(Clone)]
pub struct Catalogue {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    records: Records,
    live: Mutex<Live>,
    /// Highest feature level that this node can do; it takes part in no cluster that uses more.
    level: u32,
}

/// What the writer needs at hand. Readers take it from their own frozen view.
struct Live {
    generation: Generation,
    head: Head,
    state: State,
    /// Raised by every commit and every installed image, so that a transaction notices that it is out of date.
    change: u64,
    /// An image is being staged under the next generation.
    staging: bool,
}

impl Inner {
    /// Whether this node can take part at a feature level of the cluster's.
    fn check_level(&self, cluster: u32) -> Result<(), CatalogueError> {
        if cluster > self.level {
            return Err(CatalogueError::Level { cluster, own: self.level });
        }
        Ok(())
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().expect("no holder of this lock panics")
    }
}

impl Catalogue {
    /// Opens the catalogue in this store, or an empty one if there is none.
    pub fn open(kv: Arc<dyn Kv>) -> Result<Self, CatalogueError> {
        Self::open_at(kv, FEATURE_LEVEL)
    }

    /// Opens it on a node that is held back to a feature level. Refused if the cluster is beyond it.
    pub fn open_at(kv: Arc<dyn Kv>, level: u32) -> Result<Self, CatalogueError> {
        let records = Records::new(kv);
        let (generation, head, state) = load(&records)?;
        let cluster = state.level;
        let live = Mutex::new(Live { generation, head, state, change: 0, staging: false });
        let inner = Inner { records, live, level };
        inner.check_level(cluster)?;
        Ok(Catalogue { inner: Arc::new(inner) })
    }

    /// Begins a transaction. There is one writer: a second transaction that overlaps fails to commit.
    pub fn begin(&self) -> Tx {
        Tx::new(self.inner.clone())
    }

    /// The state after the last committed transaction. Cheap; later changes do not show.
    pub fn view(&self) -> Result<View, CatalogueError> {
        let records = self.inner.records.freeze()?;
        let (generation, head, state) = load(&records)?;
        Ok(View::new(records, generation, head, state))
    }

    /// What the Raft glue kept under `key`.
    pub fn note(&self, key: NoteKey) -> Result<Option<Vec<u8>>, CatalogueError> {
        self.view()?.note(key)
    }

    /// Log index of the last entry applied and committed; 0 before the first.
    pub fn applied(&self) -> u64 {
        self.inner.live().head.applied
    }

    /// Catalogue time, milliseconds since 1970; 0 before the first command.
    pub fn time_ms(&self) -> u64 {
        self.inner.live().state.time_ms
    }

    /// Waits until everything committed so far survives a power loss.
    pub async fn flush(&self) -> Result<(), CatalogueError> {
        Ok(self.inner.records.flush().await?)
    }

    /// Ends once a change could not be stored, with the reason: nothing is stored any more until it is opened again.
    pub async fn failed(&self) -> String {
        self.inner.records.failed().await
    }
    /// Ends once a record was met that is not what was written, with what is wrong. Cancel-safe.
    pub async fn damaged(&self) -> String {
        self.inner.records.damaged().await
    }
    /// The first such record.
    pub fn damage(&self) -> Option<String> {
        self.inner.records.damage()
    }
    /// Notes that the rows do not belong together, each of them whole as it may be.
    pub fn note_damage(&self, what: String) {
        self.inner.records.note_damage(what);
    }

    /// Removes up to `page` rows that belong to no live catalogue: what an installed image replaced, or an interrupted
    /// one left. Returns how many; call again until it is 0. Fewer are removed at a time where they are large, since each
    /// is read.
    pub fn drop_old_generation(&self, page: usize) -> Result<usize, CatalogueError> {
        // Held to the end: no image may begin to stage rows between the look and the removal.
        let live = self.inner.live();
        let mut dead = vec![(0, live.generation)];
        if !live.staging {
            dead.push((live.generation + 1, ROOT));
        }
        let mut batch = Vec::new();
        for table in TABLES {
            for (from, to) in &dead {
                let (from, to) = (from.to_be_bytes(), to.to_be_bytes());
                let rest = page.saturating_sub(batch.len());
                let rows = self.inner.records.scan_some(table, &from, &to, rest, IMAGE_PAGE_BYTES)?;
                batch.extend(rows.into_iter().map(|row| record::delete(table, row.key)));
            }
        }
        let dropped = batch.len();
        if dropped > 0 {
            self.inner.records.write(batch)?;
        }
        drop(live);
        Ok(dropped)
    }
}

/// Generation, head and state of the live catalogue; those of an empty one if the store is new.
fn load<K: KvRead + ?Sized>(records: &Records<K>) -> Result<(Generation, Head, State), CatalogueError> {
    let root = Stored { records, generation: ROOT }.get::<Root>(&RootKey)?.unwrap_or(0);
    let stored = Stored { records, generation: root };
    let head = stored.get::<Heads>(&HeadKey)?.unwrap_or_default();
    let state = stored.get::<States>(&StateKey)?.unwrap_or_default();
    Ok((root, head, state))
}
