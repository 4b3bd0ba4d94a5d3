//! The high-water mark: what this replica has promised, kept outside the engine that holds the promise.
//!
//! An engine may lose the end of its journal without an error (docs/decisions/0001). A voter that forgot an entry it
//! acknowledged, or a vote it gave, can undo what the cluster has promised. So the last acknowledged log id and the
//! last vote are also written to a small file, synced before the acknowledgement leaves, and compared at start.
//! Two slots are written in turn, so that a torn write leaves the one before it.

use super::types::{LogId, Vote};
use crate::kv::record::{open_record, seal_record};
use farshore_core::host::{Disk, dir_of};
use openraft::CommittedLeaderId;
use std::io;
use std::sync::Arc;

/// Where the mark lives below the data directory.
pub const MARK_FILE: &str = "raft/mark";
/// Length of a slot.
const SLOT_BYTES: usize = 64;
/// Distance between the slots: no device writes both in one go.
const SLOT_STEP: u64 = 4096;
/// Stands for the table in the slot's checksum; no table of the store has it.
const SLOT_TABLE: u8 = 255;
const SLOT_VERSION: u8 = 1;

/// Set in the flags byte of a slot.
const HAS_LOG: u8 = 1;
const HAS_VOTE: u8 = 2;
const VOTE_COMMITTED: u8 = 4;

/// What this replica has promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Promise {
    /// Last log entry acknowledged as durable.
    pub log: Option<LogId>,
    /// Last vote given.
    pub vote: Option<Vote>,
}

/// Why the mark cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum MarkError {
    /// The disk failed.
    #[error("read {MARK_FILE}: {0}")]
    Io(#[from] io::Error),
    /// The file is there and neither slot is whole.
    #[error("both slots of {MARK_FILE} are damaged")]
    Damaged,
}

/// The mark on disk.
pub struct Mark {
    disk: Arc<dyn Disk>,
    sequence: u64,
    promise: Promise,
}

impl Mark {
    /// Reads the mark; `None` if there is no file.
    pub async fn open(disk: Arc<dyn Disk>) -> Result<Option<Self>, MarkError> {
        if disk.len(MARK_FILE).await?.is_none() {
            return Ok(None);
        }
        let mut newest = None;
        for slot in [0, 1] {
            let bytes = disk.read(MARK_FILE, slot * SLOT_STEP, SLOT_BYTES).await?;
            newest = newest.max_by_sequence(decode(slot, &bytes));
        }
        match newest {
            Some((sequence, promise)) => Ok(Some(Mark { disk, sequence, promise })),
            // Power failed while it was made, and nothing is promised before it is.
            None if disk.len(MARK_FILE).await?.is_none_or(|len| len < SLOT_STEP + SLOT_BYTES as u64) => {
                Ok(None)
            }
            None => Err(MarkError::Damaged),
        }
    }

    /// Makes the file of a replica that has promised nothing yet.
    pub async fn create(disk: Arc<dyn Disk>) -> io::Result<Self> {
        let mut mark = Mark { disk, sequence: 0, promise: Promise::default() };
        // Both slots, so that a later damaged one is always noticed as damage.
        mark.write(Promise::default()).await?;
        mark.write(Promise::default()).await?;
        mark.disk.sync_dir(dir_of(MARK_FILE)).await?;
        Ok(mark)
    }

    /// What was promised.
    pub fn promise(&self) -> Promise {
        self.promise
    }

    /// Sets the last acknowledged entry, durable on return. Called before an acknowledgement leaves, after the entry
    /// itself is durable; and with a lower entry before a truncation, never after it.
    pub async fn set_log(&mut self, log: Option<LogId>) -> io::Result<()> {
        self.write(Promise { log, ..self.promise }).await
    }

    /// Sets the last vote, durable on return.
    pub async fn set_vote(&mut self, vote: Vote) -> io::Result<()> {
        self.write(Promise { vote: Some(vote), ..self.promise }).await
    }

    async fn write(&mut self, promise: Promise) -> io::Result<()> {
        let sequence = self.sequence + 1;
        let slot = sequence % 2;
        self.disk.write_slot(MARK_FILE, slot * SLOT_STEP, &encode(slot, sequence, promise)).await?;
        self.sequence = sequence;
        self.promise = promise;
        Ok(())
    }
}

/// Keeps the slot that was written last.
trait Newest {
    fn max_by_sequence(self, other: Self) -> Self;
}
impl Newest for Option<(u64, Promise)> {
    fn max_by_sequence(self, other: Self) -> Self {
        match (&self, &other) {
            (Some((a, _)), Some((b, _))) if a > b => self,
            (_, None) => self,
            _ => other,
        }
    }
}

fn encode(slot: u64, sequence: u64, promise: Promise) -> Vec<u8> {
    let log = promise.log.unwrap_or_default();
    let vote = promise.vote.unwrap_or_default();
    let mut flags = 0;
    flags |= if promise.log.is_some() { HAS_LOG } else { 0 };
    flags |= if promise.vote.is_some() { HAS_VOTE } else { 0 };
    flags |= if vote.committed { VOTE_COMMITTED } else { 0 };
    let mut body = sequence.to_le_bytes().to_vec();
    body.push(flags);
    for number in
        [log.leader_id.term, log.leader_id.node_id, log.index, vote.leader_id.term, vote.leader_id.node_id]
    {
        body.extend_from_slice(&number.to_le_bytes());
    }
    let mut sealed = seal_record(SLOT_TABLE, &[slot as u8], SLOT_VERSION, &body);
    debug_assert!(sealed.len() <= SLOT_BYTES);
    sealed.resize(SLOT_BYTES, 0);
    sealed
}

/// Bytes of a sealed slot before its padding: version, sequence, flags, five numbers, checksum.
const SEALED_BYTES: usize = 1 + 8 + 1 + 5 * 8 + 8;

fn decode(slot: u64, bytes: &[u8]) -> Option<(u64, Promise)> {
    let sealed = bytes.get(..SEALED_BYTES)?;
    let (version, body) = open_record(SLOT_TABLE, &[slot as u8], sealed).ok()?;
    if version != SLOT_VERSION {
        return None;
    }
    let (sequence, rest) = body.split_first_chunk::<8>()?;
    let (flags, rest) = rest.split_first()?;
    let mut numbers = [0u64; 5];
    for (number, bytes) in numbers.iter_mut().zip(rest.chunks_exact(8)) {
        *number = u64::from_le_bytes(bytes.try_into().ok()?);
    }
    let [term, node, index, vote_term, vote_node] = numbers;
    let log = LogId::new(CommittedLeaderId::new(term, node), index);
    let committed = flags & VOTE_COMMITTED != 0;
    let vote =
        if committed { Vote::new_committed(vote_term, vote_node) } else { Vote::new(vote_term, vote_node) };
    let promise =
        Promise { log: (flags & HAS_LOG != 0).then_some(log), vote: (flags & HAS_VOTE != 0).then_some(vote) };
    Some((u64::from_le_bytes(*sequence), promise))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::Fixtures;
    use proptest::prelude::*;

    fn promise(term: u64, node: u64, index: u64, flags: u8) -> Promise {
        let vote = if flags & 4 == 0 { Vote::new(term, node) } else { Vote::new_committed(term, node) };
        Promise {
            log: (flags & 1 != 0).then(|| LogId::new(CommittedLeaderId::new(term, node), index)),
            vote: (flags & 2 != 0).then_some(vote),
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn slots_come_back_and_any_flipped_bit_is_noticed(
            sequence: u64, term: u64, node: u64, index: u64, flags in 0u8..8, bit in 0..SEALED_BYTES * 8
        ) {
            let was = promise(term, node, index, flags);
            let mut bytes = encode(1, sequence, was);
            prop_assert_eq!(bytes.len(), SLOT_BYTES);
            prop_assert_eq!(decode(1, &bytes), Some((sequence, was)));
            prop_assert_eq!(decode(0, &bytes), None, "a slot is valid only in its own place");
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(decode(1, &bytes), None);
        }
    }

    #[test]
    fn slots_of_version_1_are_read_and_written_as_ever() {
        let mut fixtures = Fixtures::of("mark-v1");
        for (name, slot, flags) in [("all", 1, 7), ("log alone", 0, 1), ("nothing", 1, 0)] {
            let promise = promise(3, 4, 9, flags);
            let kept = fixtures.kept(name, &encode(slot, 5, promise));
            assert_eq!(decode(slot, &kept), Some((5, promise)), "{name}");
        }
        fixtures.end();
    }
}
