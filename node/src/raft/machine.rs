//! The catalogue as openraft's state machine. Each batch of committed entries becomes one atomic transaction together
//! with the note of how far the log was applied, so that a crash never applies half a batch or one twice.
//!
//! Nothing here may panic or guess: an entry that cannot be applied as every other replica does stops this replica.

use super::image::{Frozen, Image, open_note, seal_note};
use super::types::{
    Entry, LogId, Payload, PayloadError, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types,
};
use crate::catalogue::{Catalogue, CatalogueError, NoteKey, Tx};
use farshore_core::catalogue::{Refusal, Reply};
use farshore_core::host::task::Owned;
use farshore_core::limits::PAGE_ROWS_MAX;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};
use std::sync::{Arc, Mutex};

/// Entries applied in one transaction at most; bounds its memory.
const TX_ENTRIES_MAX: usize = 64;

/// The state machine of one replica.
pub struct Machine {
    catalogue: Catalogue,
    current: Current,
    sweeping: Option<Owned>,
}

/// The newest image of this replica. It is only a frozen view: after a restart openraft has a new one made.
type Current = Arc<Mutex<Option<(SnapshotMeta, Frozen)>>>;

/// Why an entry could not be applied.
#[derive(Debug, thiserror::Error)]
enum ApplyError {
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

impl Machine {
    /// A state machine over this catalogue.
    pub fn new(catalogue: Catalogue) -> Self {
        let mut machine = Machine { catalogue, current: Current::default(), sweeping: None };
        machine.sweep();
        machine
    }

    /// Applies entries to a stopped replica's catalogue, as they were applied when they were new.
    pub fn replay(catalogue: &Catalogue, entries: &[Entry]) -> Result<(), String> {
        let machine = Machine { catalogue: catalogue.clone(), current: Current::default(), sweeping: None };
        machine.apply_all(entries).map(drop).map_err(|(at, why)| format!("log entry {}: {why}", at.index))
    }

    /// Removes what no live catalogue needs any more, page by page, beside everything else.
    fn sweep(&mut self) {
        let catalogue = self.catalogue.clone();
        self.sweeping = Some(Owned::spawn(async move {
            loop {
                match catalogue.drop_old_generation(PAGE_ROWS_MAX) {
                    Ok(0) => return,
                    Ok(_) => tokio::task::yield_now().await,
                    // Only space is at stake; the next start tries again.
                    Err(e) => return tracing::warn!(error = %e, "drop the former catalogue"),
                }
            }
        }));
    }

    /// Applies all entries, or says at which one this replica got stuck.
    fn apply_all(&self, entries: &[Entry]) -> Result<Vec<Reply>, (LogId, ApplyError)> {
        let mut replies = Vec::with_capacity(entries.len());
        for batch in entries.chunks(TX_ENTRIES_MAX) {
            let mut tx = self.catalogue.begin();
            let mut last = None;
            for entry in batch {
                replies.push(apply_one(&mut tx, entry).map_err(|e| (entry.log_id, e))?);
                last = Some(entry.log_id);
            }
            let Some(last) = last else { continue };
            let commit = tx.note(NoteKey::Applied, seal_note(&Some(last))).and_then(|()| tx.commit());
            commit.map_err(|e| (last, e.into()))?;
        }
        Ok(replies)
    }

    fn install(&mut self, meta: &SnapshotMeta, image: Image) -> Result<(), CatalogueError> {
        let received = match image {
            Image::Received(received) => *received,
            Image::Frozen(frozen) => frozen.stage(&self.catalogue)?,
            Image::Empty => return Err(CatalogueError::BadImage("it is empty".into())),
        };
        if received.meta()? != *meta {
            return Err(CatalogueError::BadImage("it is not what it was said to be".into()));
        }
        received.install()
    }

    fn freeze(&self) -> Result<Snapshot, CatalogueError> {
        let frozen = Frozen::of(&self.catalogue)?;
        let meta = frozen.meta()?;
        *self.current.lock().expect("no holder of this lock panics") = Some((meta.clone(), frozen.clone()));
        Ok(Snapshot { meta, snapshot: Box::new(Image::Frozen(frozen)) })
    }
}

/// Every replica must come to the same reply, whatever the entry holds.
fn apply_one(tx: &mut Tx, entry: &Entry) -> Result<Reply, ApplyError> {
    let index = entry.log_id.index;
    match &entry.payload {
        EntryPayload::Normal(payload) => apply_command(tx, index, payload),
        EntryPayload::Blank => pass(tx, index),
        EntryPayload::Membership(members) => {
            let stored = StoredMembership::new(Some(entry.log_id), members.clone());
            tx.note(NoteKey::Membership, seal_note(&stored))?;
            pass(tx, index)
        }
    }
}

fn apply_command(tx: &mut Tx, index: u64, payload: &Payload) -> Result<Reply, ApplyError> {
    match payload.open() {
        Ok(proposal) => Ok(tx.apply(index, &proposal)?),
        // Replicas that understand it will apply it, so this one must not go on without it.
        Err(newer @ PayloadError::Newer(_)) => Err(newer.into()),
        Err(e) => pass(tx, index).map(|_| Reply::Refused(Refusal::Malformed(e.to_string()))),
    }
}

fn pass(tx: &mut Tx, index: u64) -> Result<Reply, ApplyError> {
    // Entry 0 is the first membership; the catalogue starts out as having applied it.
    if index > 0 {
        tx.pass(index)?;
    }
    Ok(Reply::Done)
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        let notes = || -> Result<_, CatalogueError> {
            let applied = open_note(self.catalogue.note(NoteKey::Applied)?)?;
            Ok((applied, open_note(self.catalogue.note(NoteKey::Membership)?)?))
        };
        notes().map_err(|e| StorageIOError::read_state_machine(&e).into())
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        self.apply_all(&entries).map_err(|(at, e)| StorageIOError::apply(at, &e).into())
    }

    /// The view is frozen here, between two batches, and not when the builder runs.
    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder(Some(self.freeze()))
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Image>, StorageError> {
        Ok(Box::new(Image::Empty))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Box<Image>) -> Result<(), StorageError> {
        let failed = |e: CatalogueError| StorageIOError::write_snapshot(Some(meta.signature()), &e);
        self.install(meta, *image).map_err(failed)?;
        self.catalogue.flush().await.map_err(failed)?;
        self.freeze().map_err(failed)?;
        self.sweep();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let current = self.current.lock().expect("no holder of this lock panics").clone();
        Ok(current.map(|(meta, frozen)| Snapshot { meta, snapshot: Box::new(Image::Frozen(frozen)) }))
    }
}

/// Hands out the image that was frozen as it was made.
pub struct Builder(Option<Result<Snapshot, CatalogueError>>);

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        match self.0.take() {
            Some(Ok(snapshot)) => Ok(snapshot),
            Some(Err(e)) => Err(StorageIOError::write_snapshot(None, &e).into()),
            None => {
                Err(StorageIOError::write_snapshot(None, openraft::AnyError::error("built twice")).into())
            }
        }
    }
}
