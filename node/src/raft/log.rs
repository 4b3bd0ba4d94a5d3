//! The Raft log and vote in checked records. An entry is a promise: it is acknowledged only once it is durable and the
//! mark (`mark.rs`) says so outside the engine. A log with a hole, a bad record or a lost tail is an error, never a
//! shorter log.

use super::mark::{Mark, MarkError, Promise};
use super::types::{Entry, LogId, StorageError, Types, Vote};
use crate::catalogue::Catalogue;
use crate::kv::record::{Records, Row, delete, put};
use farshore_core::host::Disk;
use farshore_core::host::kv::{Kv, KvError, KvOp, Table};
use farshore_core::id::NodeId;
use farshore_core::limits::RAFT_INSTALL_MS;
use farshore_core::mutant::{Mutant, mutant};
use openraft::storage::{LogFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader, StorageIOError};
use serde::{Deserialize, Serialize};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// Entries by index, big-endian. The catalogue's store keeps tables 16 to 31 for Raft.
const LOG: Table = 16;
/// Vote, purge point and commit point.
const META: Table = 17;
const VOTE: &[u8] = b"vote";
const PURGED: &[u8] = b"purged";
const COMMITTED: &[u8] = b"committed";
/// Format of the records of both tables: postcard of openraft's types.
const VERSION: u8 = 1;

/// Entries read or removed in one go.
const PAGE: usize = 256;
/// The log is read at most about this much at a time, and so is what one replication sends; a single larger entry still
/// goes alone.
const READ_BYTES_MAX: usize = 1 << 20;

/// Why this replica must not take part.
#[derive(Debug, thiserror::Error)]
pub enum RaftStoreError {
    /// Less is in the store than this replica has promised.
    #[error(
        "this node has promised {mark:?} but its store holds {found:?}: an acknowledged part of the log is gone"
    )]
    LogLost {
        /// What was promised.
        mark: Box<Promise>,
        /// What is there.
        found: Box<Promise>,
    },
    /// Entries are missing inside the log.
    #[error("log entry {0} is missing although later ones are there")]
    Hole(u64),
    /// The mark is gone although the log is not empty.
    #[error("the file {} is gone although the log is not", super::mark::MARK_FILE)]
    MarkLost,
    /// The mark cannot be read.
    #[error("{0}")]
    Mark(#[from] MarkError),
    /// The store failed, or a record in it is corrupt.
    #[error("read the Raft log: {0}")]
    Store(#[from] KvError),
    /// The disk failed.
    #[error("write the Raft mark: {0}")]
    Io(#[from] io::Error),
    /// A record is whole but not what this release writes.
    #[error("{0} has a format this release does not know")]
    Format(&'static str),
    /// Entries should go that the catalogue does not have.
    #[error("log entries up to {0} were to be purged before the catalogue had them")]
    NotApplied(u64),
    /// openraft could not start.
    #[error("start Raft: {0}")]
    Start(String),
    /// It could not start because a record is corrupt that it wanted to read.
    #[error("start Raft: {0}")]
    Corrupt(String),
}

impl RaftStoreError {
    /// Whether log or mark are not what was written. What they have promised can only be given up, never guessed.
    pub fn is_damage(&self) -> bool {
        match self {
            RaftStoreError::Store(error) => error.is_damage(),
            RaftStoreError::LogLost { .. } | RaftStoreError::Hole(_) | RaftStoreError::MarkLost => true,
            RaftStoreError::Corrupt(_) => true,
            RaftStoreError::Mark(error) => matches!(error, MarkError::Damaged),
            RaftStoreError::Io(_)
            | RaftStoreError::Format(_)
            | RaftStoreError::NotApplied(_)
            | RaftStoreError::Start(_) => false,
        }
    }
}

/// The first and last entries that must be there, and what was purged before them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Ends {
    purged: Option<LogId>,
    /// Index of the first entry; meaningful only if `last` is not purged.
    first: u64,
    last: Option<LogId>,
}

impl Ends {
    /// The index after the last entry.
    fn next(&self) -> u64 {
        self.last.map_or(self.first, |id| id.index + 1)
    }
}

/// Reads entries; many replication tasks hold one.
#[derive(Clone)]
pub struct LogReader {
    records: Records,
    ends: Arc<Mutex<Ends>>,
    /// Term of the last vote; openraft tells of it only a while after it was stored.
    voted: Arc<AtomicU64>,
}

/// The log of this replica. Its one owner is openraft's core task, which waits for each write before the next, so
/// that the order of acknowledgements needs no lock.
pub struct LogStore {
    reader: LogReader,
    mark: Mark,
    /// Nothing is purged that is not in here.
    state: Option<Catalogue>,
    /// Whose it is.
    own: Option<NodeId>,
}

/// Between two looks whether an image has been installed.
const INSTALL_POLL: Duration = Duration::from_millis(5);

impl LogStore {
    /// Opens the log, reads every record of it once, and compares it with the mark.
    pub async fn open(kv: Arc<dyn Kv>, disk: Arc<dyn Disk>) -> Result<Self, RaftStoreError> {
        let records = Records::new(kv);
        let purged: Option<LogId> = meta(&records, PURGED)?;
        let vote: Option<Vote> = meta(&records, VOTE)?;
        sweep_purged(&records, purged)?;
        let ends = survey(&records, purged)?;
        let found = Promise { log: ends.last, vote };
        let mark = match Mark::open(disk.clone()).await? {
            Some(mark) => mark,
            None if found == Promise::default() => Mark::create(disk).await?,
            None => return Err(RaftStoreError::MarkLost),
        };
        let voted = Arc::new(AtomicU64::new(vote.map_or(0, |vote| vote.leader_id.term)));
        let reader = LogReader { records, ends: Arc::new(Mutex::new(ends)), voted };
        if !reader.keeps(mark.promise(), vote)? {
            return Err(RaftStoreError::LogLost { mark: Box::new(mark.promise()), found: Box::new(found) });
        }
        Ok(LogStore { reader, mark, state: None, own: None })
    }

    /// From now on a purge waits until this catalogue has what goes. openraft purges what an image replaces without
    /// waiting for the image: a crash in between would leave neither the entries nor their effect.
    pub fn never_ahead_of(self, state: Catalogue) -> Self {
        LogStore { state: Some(state), ..self }
    }

    /// From now on a vote by which this node itself was elected is told as one that it has only asked for. openraft takes
    /// up an office it finds in its store as if nothing had happened, and then answers reads before it knows again
    /// what it had committed. As a mere candidate it has to be elected anew, and knows once its first entry is committed.
    pub fn resigned(self, own: NodeId) -> Self {
        LogStore { own: Some(own), ..self }
    }

    async fn wait_applied(&self, index: u64) -> Result<(), RaftStoreError> {
        let Some(state) = &self.state else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_millis(RAFT_INSTALL_MS);
        while state.applied() < index {
            // An install that failed has stopped the replica already, which hears of it only after this.
            if Instant::now() >= deadline {
                return Err(RaftStoreError::NotApplied(index));
            }
            tokio::time::sleep(INSTALL_POLL).await;
        }
        Ok(())
    }

    /// The vote that this replica has promised last.
    pub fn vote(&self) -> Option<Vote> {
        self.mark.promise().vote
    }

    /// Whether this replica has never taken part in anything.
    pub fn is_pristine(&self) -> bool {
        self.reader.ends().last.is_none() && self.mark.promise() == Promise::default()
    }

    /// Whether a store has never had a log, or has lost all of it. Changes nothing, unlike opening it.
    pub(super) fn holds_nothing(kv: Arc<dyn Kv>) -> Result<bool, RaftStoreError> {
        let records = Records::new(kv);
        let vote: Option<Vote> = meta(&records, VOTE)?;
        let purged: Option<LogId> = meta(&records, PURGED)?;
        let entries = records.scan(LOG, &key(0), &[0xff; 9], 1)?;
        Ok(vote.is_none() && purged.is_none() && entries.is_empty())
    }

    /// Forgets log, vote and purge point of a stopped replica, so that another log begins in their place.
    pub(super) async fn wipe(kv: Arc<dyn Kv>) -> Result<(), RaftStoreError> {
        let records = Records::new(kv);
        for table in [LOG, META] {
            loop {
                let rows = records.scan_some(table, &[], &[0xff; 16], PAGE, READ_BYTES_MAX)?;
                if rows.is_empty() {
                    break;
                }
                records.write(rows.into_iter().map(|row| delete(table, row.key)).collect())?;
            }
        }
        Ok(records.flush().await?)
    }

    /// The last entry, purged or not.
    pub(super) fn last(&self) -> Option<LogId> {
        self.reader.ends().last
    }

    /// Reads this log, also after openraft has taken it over.
    pub(super) fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    fn put_meta<T: Serialize>(&self, key: &[u8], value: &T) -> Result<(), KvError> {
        self.reader.records.write(vec![put(META, key, VERSION, &encode(value))])
    }
    pub(super) async fn store_vote(&mut self, vote: &Vote) -> Result<(), RaftStoreError> {
        self.put_meta(VOTE, vote)?;
        self.reader.voted.store(vote.leader_id.term, Ordering::Relaxed);
        if mutant(Mutant::VoteForgotten) {
            return Ok(());
        }
        self.reader.records.flush().await?;
        Ok(self.mark.set_vote(*vote).await?)
    }
    pub(super) async fn store_entries(&mut self, entries: Vec<Entry>) -> Result<(), RaftStoreError> {
        let Some(last) = entries.last().map(|e| e.log_id) else { return Ok(()) };
        let ends = self.reader.ends();
        let first = entries.first().map_or(0, |e| e.log_id.index);
        let expected = if ends.last.is_some() { ends.next() } else { first };
        if let Some((_, hole)) = entries.iter().zip(expected..).find(|(e, index)| e.log_id.index != *index) {
            return Err(RaftStoreError::Hole(hole));
        }
        let batch = entries.iter().map(|e| put(LOG, key(e.log_id.index), VERSION, &encode(e))).collect();
        self.reader.records.write(batch)?;
        self.reader.set_ends(Ends {
            first: if ends.last.is_some() { ends.first } else { first },
            last: Some(last),
            ..ends
        });
        if mutant(Mutant::LogUnflushed) {
            return Ok(());
        }
        self.reader.records.flush().await?;
        // Only now may the mark name the entry: a mark ahead of the log would accuse a healthy replica after a crash.
        Ok(self.mark.set_log(Some(last)).await?)
    }
    async fn cut_tail(&mut self, since: LogId) -> Result<(), RaftStoreError> {
        let ends = self.reader.ends();
        let Some(old) = ends.last.filter(|last| last.index >= since.index) else { return Ok(()) };
        let last = match since.index.checked_sub(1) {
            Some(before) if before >= ends.first => {
                self.reader.read(before, since.index)?.first().map(|e| e.log_id)
            }
            _ => ends.purged,
        };
        // The promise is taken back first: a crash in between leaves a longer log than promised, which is harmless.
        self.mark.set_log(last).await?;
        self.reader.set_ends(Ends { last, ..ends });
        // From the end backwards, so that a crash between two batches leaves no hole.
        let mut to = old.index + 1;
        let floor = since.index.max(ends.first);
        while to > floor {
            let from = floor.max(to.saturating_sub(PAGE as u64));
            self.reader.records.write((from..to).rev().map(|i| delete(LOG, key(i))).collect())?;
            to = from;
        }
        Ok(self.reader.records.flush().await?)
    }
    pub(super) async fn drop_head(&mut self, upto: LogId) -> Result<(), RaftStoreError> {
        let ends = self.reader.ends();
        if ends.purged.is_some_and(|purged| purged.index >= upto.index) {
            return Ok(());
        }
        self.wait_applied(upto.index).await?;
        let last = ends.last.filter(|last| last.index > upto.index).or(Some(upto));
        // Readers stop asking for the head before it goes; the purge point is in the first batch for the same reason.
        self.reader.set_ends(Ends { purged: Some(upto), first: upto.index + 1, last });
        let mut batch = vec![put(META, PURGED, VERSION, &encode(&upto))];
        let end = ends.last.map_or(ends.first, |last| last.index.min(upto.index) + 1);
        for index in ends.first..end {
            batch.push(delete(LOG, key(index)));
            if batch.len() >= PAGE {
                self.reader.records.write(std::mem::take(&mut batch))?;
            }
        }
        self.reader.records.write(batch)?;
        // What is purged was applied, and the engine keeps the order of batches: it is durable together with the state.
        self.reader.records.flush().await?;
        // An image may have replaced more than this replica had ever acknowledged; from now on it has.
        match self.mark.promise().log {
            Some(promised) if promised.index >= upto.index => Ok(()),
            _ => Ok(self.mark.set_log(Some(upto)).await?),
        }
    }
}

impl LogReader {
    fn ends(&self) -> Ends {
        *self.ends.lock().expect("no holder of this lock panics")
    }
    fn set_ends(&self, ends: Ends) {
        *self.ends.lock().expect("no holder of this lock panics") = ends;
    }

    /// The first record met that is not what was written.
    pub fn damage(&self) -> Option<String> {
        self.records.damage()
    }

    /// Term of the last vote that was stored; 0 if there was none.
    pub fn voted(&self) -> u64 {
        self.voted.load(Ordering::Relaxed)
    }

    /// Index of the first entry that was not purged.
    pub fn first(&self) -> u64 {
        self.ends().first
    }

    /// Some entries from `from` on, about a megabyte; none at the end of the log. What was purged is left out.
    pub fn page(&self, from: u64) -> Result<Vec<Entry>, RaftStoreError> {
        self.read_some(from, u64::MAX, READ_BYTES_MAX)
    }

    /// All entries of `from..to` that the log has: every index between its ends, or an error.
    fn read(&self, from: u64, to: u64) -> Result<Vec<Entry>, RaftStoreError> {
        self.read_some(from, to, usize::MAX)
    }

    /// As [`LogReader::read`], but stops after the entry with which `bytes_max` is reached.
    fn read_some(&self, from: u64, to: u64, bytes_max: usize) -> Result<Vec<Entry>, RaftStoreError> {
        loop {
            let ends = self.ends();
            let read = self.read_within(ends, from, to, bytes_max);
            // The log may be cut or purged meanwhile; then what was missed was meant to go.
            if read.is_ok() || self.ends() == ends {
                return read;
            }
        }
    }
    fn read_within(
        &self,
        ends: Ends,
        from: u64,
        to: u64,
        bytes_max: usize,
    ) -> Result<Vec<Entry>, RaftStoreError> {
        let (mut next, to) = (from.max(ends.first), to.min(ends.next()));
        let (mut entries, mut bytes) = (Vec::new(), 0);
        while next < to && bytes < bytes_max {
            let (limit, room) = (PAGE.min((to - next) as usize), READ_BYTES_MAX.min(bytes_max - bytes));
            let rows = self.records.scan_some(LOG, &key(next), &key(to), limit, room)?;
            if rows.is_empty() {
                return Err(RaftStoreError::Hole(next));
            }
            for row in &rows {
                entries.push(entry(row, next)?);
                next += 1;
                bytes += row.key.len() + row.payload.len();
            }
        }
        Ok(entries)
    }

    /// Whether the store still holds what was promised.
    fn keeps(&self, mark: Promise, vote: Option<Vote>) -> Result<bool, RaftStoreError> {
        let vote_kept = mark.vote.is_none_or(|promised| vote.is_some_and(|vote| vote >= promised));
        let ends = self.ends();
        let log_kept = match mark.log {
            None => true,
            Some(promised) if ends.purged.is_some_and(|purged| purged.index >= promised.index) => true,
            Some(promised) => {
                let there = self.read(promised.index, promised.index.saturating_add(1))?;
                there.first().is_some_and(|entry| entry.log_id == promised)
            }
        };
        Ok(vote_kept && log_kept)
    }
}

fn key(index: u64) -> [u8; 8] {
    index.to_be_bytes()
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_stdvec(value).expect("our own types always encode into memory")
}

fn decode<T: for<'a> Deserialize<'a>>(
    what: &'static str,
    version: u8,
    payload: &[u8],
) -> Result<T, RaftStoreError> {
    if version != VERSION {
        return Err(RaftStoreError::Format(what));
    }
    postcard::from_bytes(payload).map_err(|_| RaftStoreError::Format(what))
}

fn meta<T: for<'a> Deserialize<'a>>(records: &Records, key: &[u8]) -> Result<Option<T>, RaftStoreError> {
    let Some((version, payload)) = records.get(META, key)? else { return Ok(None) };
    decode("a Raft state record", version, &payload).map(Some)
}

/// The entry in a row that must be the one at `index`.
fn entry(row: &Row, index: u64) -> Result<Entry, RaftStoreError> {
    if row.key != key(index) {
        return Err(RaftStoreError::Hole(index));
    }
    let entry: Entry = decode("a log entry", row.version, &row.payload)?;
    if entry.log_id.index == index { Ok(entry) } else { Err(RaftStoreError::Format("a log entry")) }
}

/// Finishes a purge that a crash has cut short.
fn sweep_purged(records: &Records, purged: Option<LogId>) -> Result<(), RaftStoreError> {
    let Some(purged) = purged else { return Ok(()) };
    loop {
        let end = key(purged.index.saturating_add(1));
        let rows = records.scan_some(LOG, &key(0), &end, PAGE, READ_BYTES_MAX)?;
        if rows.is_empty() {
            return Ok(());
        }
        records.write(rows.into_iter().map(|row| delete(LOG, row.key)).collect::<Vec<KvOp>>())?;
    }
}

/// Reads the whole log, so that a damaged one is found before this replica votes with it.
fn survey(records: &Records, purged: Option<LogId>) -> Result<Ends, RaftStoreError> {
    let first = purged.map_or(0, |purged| purged.index + 1);
    let mut ends = Ends { purged, first, last: purged };
    loop {
        let next = ends.last.map_or(first, |last| last.index + 1);
        let rows = records.scan_some(LOG, &key(next), &[0xff; 9], PAGE, READ_BYTES_MAX)?;
        if rows.is_empty() {
            return Ok(ends);
        }
        for (row, index) in rows.iter().zip(next..) {
            ends.last = Some(entry(row, index)?.log_id);
        }
    }
}

fn read_error(error: RaftStoreError) -> StorageError {
    StorageIOError::read_logs(&error).into()
}
fn write_error(error: RaftStoreError) -> StorageError {
    StorageIOError::write_logs(&error).into()
}

impl RaftLogReader<Types> for LogReader {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index.saturating_add(1),
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        self.read(from, to).map_err(read_error)
    }
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.read_some(start, end, READ_BYTES_MAX).map_err(read_error)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<Entry>, StorageError> {
        self.reader.try_get_log_entries(range).await
    }
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, StorageError> {
        self.reader.limited_get_log_entries(start, end).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StorageError> {
        let ends = self.reader.ends();
        Ok(LogState { last_purged_log_id: ends.purged, last_log_id: ends.last })
    }
    async fn get_log_reader(&mut self) -> LogReader {
        self.reader.clone()
    }
    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        self.store_vote(vote).await.map_err(|e| StorageIOError::write_vote(&e).into())
    }
    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        let vote: Option<Vote> =
            meta(&self.reader.records, VOTE).map_err(|e| StorageIOError::read_vote(&e))?;
        let led = |vote: &Vote| self.own.is_some_and(|own| own.0 == vote.leader_id.node_id);
        let resigned = |vote: Vote| Vote { committed: false, ..vote };
        Ok(vote.map(|vote| if led(&vote) && !mutant(Mutant::LeadOn) { resigned(vote) } else { vote }))
    }
    /// Not flushed: it only spares work after a restart, and the state it points to is in the same journal.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.put_meta(COMMITTED, &committed).map_err(|e| write_error(e.into()))
    }
    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        Ok(meta::<Option<LogId>>(&self.reader.records, COMMITTED).map_err(read_error)?.flatten())
    }
    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        // openraft 0.9 waits for the callback before it goes on, so the write is finished here and no task is needed
        // to keep the order of callbacks.
        self.store_entries(entries.into_iter().collect()).await.map_err(write_error)?;
        callback.log_io_completed(Ok(()));
        Ok(())
    }
    async fn truncate(&mut self, since: LogId) -> Result<(), StorageError> {
        self.cut_tail(since).await.map_err(write_error)
    }
    async fn purge(&mut self, upto: LogId) -> Result<(), StorageError> {
        self.drop_head(upto).await.map_err(write_error)
    }
}
