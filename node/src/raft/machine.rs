//! The catalogue as openraft's state machine. Each batch of committed entries becomes one atomic transaction together
//! with the note of how far the log was applied, so that a crash never applies half a batch or one twice.
//!
//! Nothing here may panic or guess: an entry that cannot be applied as every other replica does stops this replica.

use super::image::{Frozen, Image, open_note, seal_note};
use super::passport::Passport;
use super::types::{
    Entry, LogId, Payload, PayloadError, Snapshot, SnapshotMeta, StorageError, StoredMembership, Types,
};
use crate::catalogue::{Catalogue, CatalogueError, NoteKey, Tx};
use farshore_core::catalogue::{Command, Refusal, Reply};
use farshore_core::host::task::Owned;
use farshore_core::limits::PAGE_ROWS_MAX;
use openraft::storage::RaftStateMachine;
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, StorageIOError};

/// Entries applied in one transaction at most.
const TX_ENTRIES_MAX: usize = 64;
/// A transaction ends with the entry with which it comes to this many bytes of commands: what it changes is held in
/// memory until it is stored, several times as long.
const TX_BYTES_MAX: usize = 4 << 20;

/// The state machine of one replica.
pub struct Machine {
    catalogue: Catalogue,
    /// Learns at once who was admitted or retired: a caller that it does not know yet passes for a newcomer.
    passport: Option<Passport>,
    /// An image was made or installed since the start. None is kept: a frozen view would hold everything in memory and on
    /// disk that was written since. Whoever needs one is given the state as it is then, which is never older.
    has_image: bool,
    sweeping: Option<Owned>,
}

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
        let mut machine = Machine { catalogue, passport: None, has_image: false, sweeping: None };
        machine.sweep();
        machine
    }
    /// Tells this passport what the catalogue says of other nodes, before anybody hears that it was applied.
    #[must_use]
    pub fn telling(self, passport: Passport) -> Self {
        Machine { passport: Some(passport), ..self }
    }

    /// Applies entries to a stopped replica's catalogue, as they were applied when they were new.
    pub fn replay(catalogue: &Catalogue, entries: &[Entry]) -> Result<(), String> {
        let machine =
            Machine { catalogue: catalogue.clone(), passport: None, has_image: false, sweeping: None };
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
        let mut rest = entries;
        while let Some(batch) = rest.split_off(..batch_len(rest)).filter(|batch| !batch.is_empty()) {
            let mut tx = self.catalogue.begin();
            let (mut last, mut nodes) = (None, false);
            for entry in batch {
                replies.push(apply_one(&mut tx, entry, &mut nodes).map_err(|e| (entry.log_id, e))?);
                last = Some(entry.log_id);
            }
            let Some(last) = last else { continue };
            let commit = tx.note(NoteKey::Applied, seal_note(&Some(last))).and_then(|()| tx.commit());
            let known = commit.and_then(|()| if nodes { self.tell() } else { Ok(()) });
            known.map_err(|e| (last, e.into()))?;
        }
        Ok(replies)
    }

    fn tell(&self) -> Result<(), CatalogueError> {
        self.passport.as_ref().map_or(Ok(()), |passport| passport.learn(&self.catalogue.view()?))
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
        received.install()?;
        self.tell()
    }

    fn freeze(&self) -> Result<Snapshot, CatalogueError> {
        let frozen = Frozen::of(&self.catalogue)?;
        Ok(Snapshot { meta: frozen.meta()?, snapshot: Box::new(Image::Frozen(frozen)) })
    }
}

/// How many of the first entries go into one transaction.
fn batch_len(entries: &[Entry]) -> usize {
    let (mut len, mut bytes) = (0, 0);
    while len < entries.len().min(TX_ENTRIES_MAX) && bytes < TX_BYTES_MAX {
        bytes += match &entries[len].payload {
            EntryPayload::Normal(payload) => payload.0.len(),
            EntryPayload::Blank | EntryPayload::Membership(_) => 0,
        };
        len += 1;
    }
    len
}

/// Whether the command may change which nodes there are, or what is known of them.
fn concerns_nodes(command: &Command) -> bool {
    matches!(
        command,
        Command::AdmitNode { .. } | Command::SetNodeState { .. } | Command::ChangeTopology { .. }
    )
}

/// Every replica must come to the same reply, whatever the entry holds. Says too whether it concerned nodes.
fn apply_one(tx: &mut Tx, entry: &Entry, nodes: &mut bool) -> Result<Reply, ApplyError> {
    let index = entry.log_id.index;
    match &entry.payload {
        EntryPayload::Normal(payload) => apply_command(tx, index, payload, nodes),
        EntryPayload::Blank => pass(tx, index),
        EntryPayload::Membership(members) => {
            let stored = StoredMembership::new(Some(entry.log_id), members.clone());
            tx.note(NoteKey::Membership, seal_note(&stored))?;
            pass(tx, index)
        }
    }
}

fn apply_command(tx: &mut Tx, index: u64, payload: &Payload, nodes: &mut bool) -> Result<Reply, ApplyError> {
    match payload.open() {
        Ok(proposal) => {
            *nodes |= concerns_nodes(&proposal.command);
            Ok(tx.apply(index, &proposal)?)
        }
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
        self.has_image = true;
        Builder(Some(self.freeze()))
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Image>, StorageError> {
        Ok(Box::new(Image::Empty))
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, image: Box<Image>) -> Result<(), StorageError> {
        let failed = |e: CatalogueError| StorageIOError::write_snapshot(Some(meta.signature()), &e);
        self.install(meta, *image).map_err(failed)?;
        self.catalogue.flush().await.map_err(failed)?;
        self.has_image = true;
        self.sweep();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        if !self.has_image {
            return Ok(None);
        }
        self.freeze().map(Some).map_err(|e| StorageIOError::read_snapshot(None, &e).into())
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

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::CommittedLeaderId;

    #[test]
    fn a_transaction_is_bounded_in_entries_and_bytes() {
        let of = |bytes: usize| Entry {
            log_id: LogId::new(CommittedLeaderId::new(1, 1), 1),
            payload: EntryPayload::Normal(Payload(vec![0; bytes].into())),
        };
        let entries = |count: usize, bytes| (0..count).map(|_| of(bytes)).collect::<Vec<_>>();
        assert_eq!(batch_len(&[]), 0);
        assert_eq!(batch_len(&entries(100, 10)), TX_ENTRIES_MAX);
        assert_eq!(batch_len(&entries(3, TX_BYTES_MAX)), 1, "a large entry goes alone, but it goes");
        assert_eq!(batch_len(&entries(9, TX_BYTES_MAX / 3 + 1)), 3);
    }
}
