//! The catalogue as openraft's snapshot: a frozen view at the sender, staged rows at the receiver. Neither side ever
//! holds more than a page in memory, and a stream that breaks installs nothing.

use super::types::{
    LogId, MESSAGE_VERSION, SnapshotMeta, StorageError, StoredMembership, Vote, open_message, seal_message,
};
use crate::catalogue::{
    Catalogue, CatalogueError, ImagePage, ImageReader, ImageRow, ImageWriter, NoteKey, StateHash,
};
use bytes::Bytes;
use farshore_core::host::kv::Table;
use farshore_core::limits::RAFT_IMAGE_STALL_MS;
use farshore_proto::convert::raft::{era_from_wire, era_to_wire};
use farshore_proto::status::ApiError;
use farshore_proto::wire::snapshot_part::Part;
use farshore_proto::wire::{SnapshotClose, SnapshotPage, SnapshotPart, SnapshotRow};
use futures_util::Stream;
use futures_util::stream;
use openraft::StorageIOError;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tonic::Streaming;

/// A catalogue on its way between replicas.
pub enum Image {
    /// Nothing; what openraft asks for before it receives one in its own way, which we never use.
    Empty,
    /// This replica's catalogue as it was at one applied entry.
    Frozen(Frozen),
    /// Rows of another replica's catalogue, staged and checked, not yet installed.
    Received(Box<Received>),
}

/// A view of this replica's catalogue that later entries do not change.
#[derive(Clone)]
pub struct Frozen {
    writer: ImageWriter,
}

/// Staged rows that count and hash have shown to be complete.
pub struct Received {
    reader: ImageReader,
    rows: u64,
    hash: StateHash,
}

/// Version byte of the notes that the catalogue keeps for us.
const NOTE_VERSION: u8 = 1;

/// Encodes a note.
pub fn seal_note<T: Serialize>(value: &T) -> Vec<u8> {
    seal_message(NOTE_VERSION, value).to_vec()
}

/// Decodes a note; the default if there is none yet.
pub fn open_note<T: for<'a> Deserialize<'a> + Default>(note: Option<Vec<u8>>) -> Result<T, CatalogueError> {
    let Some(bytes) = note else { return Ok(T::default()) };
    open_message(NOTE_VERSION, &bytes)
        .map_err(|_| CatalogueError::Torn("a note of the Raft replica does not decode"))
}

/// What an image says about itself: it follows from the notes inside, so that both sides come to the same.
fn describe(applied: Option<LogId>, membership: StoredMembership) -> SnapshotMeta {
    let snapshot_id = applied.map_or_else(|| "empty".into(), |id| format!("{}-{}", id.leader_id, id.index));
    SnapshotMeta { last_log_id: applied, last_membership: membership, snapshot_id }
}

impl Frozen {
    /// Freezes the catalogue as it is now.
    pub fn of(catalogue: &Catalogue) -> Result<Self, CatalogueError> {
        Ok(Frozen { writer: ImageWriter::begin(catalogue)? })
    }

    /// What the image says about itself.
    pub fn meta(&self) -> Result<SnapshotMeta, CatalogueError> {
        let applied: Option<LogId> = open_note(self.writer.note(NoteKey::Applied)?)?;
        Ok(describe(applied, open_note(self.writer.note(NoteKey::Membership)?)?))
    }

    /// Copies the image into the staging area of a catalogue in this process.
    pub fn stage(mut self, catalogue: &Catalogue) -> Result<Received, CatalogueError> {
        let mut reader = ImageReader::begin(catalogue)?;
        while let Some(page) = self.writer.next_page()? {
            reader.add_page(&page)?;
        }
        Received::check(reader, self.writer.rows(), self.writer.state_hash())
    }

    /// The image as a stream of messages, each made when the last has been taken. If this replica cannot read its own
    /// catalogue, the reason goes to `failed` and the stream ends short, which the receiver refuses.
    pub fn parts(
        self,
        open: Bytes,
        era: u32,
        moved: Moved,
        failed: oneshot::Sender<StorageError>,
    ) -> impl Stream<Item = SnapshotPart> + Send + 'static {
        let sending = Sending { writer: self.writer, open: Some(open), failed: Some(failed), closed: false };
        stream::unfold(sending, move |mut sending| {
            moved.note();
            let part = sending.next();
            let said = matches!(part, Some(Part::Open(_))).then_some(era);
            let era_plus_one = era_to_wire(said);
            async move { part.map(|part| (SnapshotPart { era_plus_one, part: Some(part) }, sending)) }
        })
    }
}

struct Sending {
    writer: ImageWriter,
    open: Option<Bytes>,
    failed: Option<oneshot::Sender<StorageError>>,
    closed: bool,
}

impl Sending {
    fn next(&mut self) -> Option<Part> {
        if let Some(open) = self.open.take() {
            return Some(Part::Open(open));
        }
        if self.closed {
            return None;
        }
        match self.writer.next_page() {
            Ok(Some(page)) => Some(Part::Page(page_to_wire(page))),
            Ok(None) => {
                self.closed = true;
                let state_hash = Bytes::copy_from_slice(&self.writer.state_hash().0);
                Some(Part::Close(SnapshotClose { rows: self.writer.rows(), state_hash }))
            }
            Err(e) => {
                self.closed = true;
                if let Some(failed) = self.failed.take() {
                    // Nobody listens if the call has just ended by itself; then the next one meets the error again.
                    let _ = failed.send(StorageIOError::read_snapshot(None, &e).into());
                }
                None
            }
        }
    }
}

impl Received {
    fn check(reader: ImageReader, rows: u64, hash: StateHash) -> Result<Self, CatalogueError> {
        reader.check(rows, hash)?;
        Ok(Received { reader, rows, hash })
    }
    /// What the staged rows say about themselves.
    pub fn meta(&self) -> Result<SnapshotMeta, CatalogueError> {
        let applied: Option<LogId> = open_note(self.reader.note(NoteKey::Applied)?)?;
        Ok(describe(applied, open_note(self.reader.note(NoteKey::Membership)?)?))
    }
    /// Makes the staged rows the live catalogue, in one atomic batch.
    pub fn install(self) -> Result<(), CatalogueError> {
        self.reader.finish(self.rows, self.hash)
    }
}

/// When a stream last made progress.
#[derive(Clone)]
pub struct Moved(Arc<Mutex<Instant>>);

impl Default for Moved {
    fn default() -> Self {
        Moved(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Moved {
    /// Progress was made.
    pub fn note(&self) {
        *self.0.lock().expect("no holder of this lock panics") = Instant::now();
    }
    /// Ends once no progress was made for `span`. Cancel-safe: it only sleeps.
    pub async fn stalled(&self, span: Duration) {
        loop {
            let deadline = *self.0.lock().expect("no holder of this lock panics") + span;
            if deadline <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(deadline).await;
        }
    }
}

fn page_to_wire(page: ImagePage) -> SnapshotPage {
    let row =
        |row: ImageRow| SnapshotRow { table: row.table.into(), key: row.key.into(), value: row.value.into() };
    SnapshotPage { rows: page.into_iter().map(row).collect() }
}

fn page_from_wire(page: SnapshotPage) -> Result<ImagePage, ApiError> {
    let row = |row: SnapshotRow| {
        let table = Table::try_from(row.table).map_err(|_| ApiError::Invalid("no such table".into()))?;
        Ok(ImageRow { table, key: row.key.into(), value: row.value.into() })
    };
    page.rows.into_iter().map(row).collect()
}

/// The messages of an image as they arrive, each within its deadline.
pub struct ImageParts {
    stream: Streaming<SnapshotPart>,
}

impl ImageParts {
    /// Messages of one call.
    pub fn new(stream: Streaming<SnapshotPart>) -> Self {
        ImageParts { stream }
    }

    /// The first message: the era, who leads, and what the image says about itself.
    pub async fn open(&mut self) -> Result<(Option<u32>, Vote, SnapshotMeta), ApiError> {
        let (era, part) = self.message().await?;
        match part {
            Part::Open(open) => {
                let (vote, meta) = open_message(MESSAGE_VERSION, &open)
                    .map_err(|e| ApiError::Invalid(format!("image: {e}")))?;
                Ok((era, vote, meta))
            }
            _ => Err(ApiError::Invalid("an image begins by saying what it is".into())),
        }
    }

    async fn next(&mut self) -> Result<Part, ApiError> {
        Ok(self.message().await?.1)
    }

    async fn message(&mut self) -> Result<(Option<u32>, Part), ApiError> {
        let stall = Duration::from_millis(RAFT_IMAGE_STALL_MS);
        let part = tokio::time::timeout(stall, self.stream.message()).await;
        let part = part.map_err(|_| ApiError::Unreachable("the image stopped coming".into()))??;
        let early = || ApiError::Invalid("the image ends early".into());
        let SnapshotPart { era_plus_one, part } = part.ok_or_else(early)?;
        Ok((era_from_wire(era_plus_one), part.ok_or_else(early)?))
    }

    /// Stages every page; nothing is live yet.
    pub async fn stage(mut self, catalogue: &Catalogue) -> Result<Received, ApiError> {
        let mut reader = ImageReader::begin(catalogue).map_err(refused)?;
        loop {
            match self.next().await? {
                Part::Page(page) => reader.add_page(&page_from_wire(page)?).map_err(refused)?,
                Part::Close(SnapshotClose { rows, state_hash }) => {
                    let hash = state_hash.as_ref().try_into();
                    let hash = hash.map_err(|_| ApiError::Invalid("a state hash has 16 bytes".into()))?;
                    return Received::check(reader, rows, StateHash(hash)).map_err(refused);
                }
                Part::Open(_) => return Err(ApiError::Invalid("an image begins only once".into())),
            }
        }
    }
}

/// A bad image is the sender's fault; anything else is ours.
pub fn refused(error: CatalogueError) -> ApiError {
    match error {
        CatalogueError::Staging => ApiError::TooBusy(error.to_string()),
        CatalogueError::Kv(_) => ApiError::Internal(error.to_string()),
        other => ApiError::Invalid(other.to_string()),
    }
}
