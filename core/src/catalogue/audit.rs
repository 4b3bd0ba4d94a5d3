//! Who did what: the records that the catalogue writes of administrative and destructive acts, each bound to the one before
//! it by a hash. Whoever knows the hash of one record knows whether anything up to it was altered, removed or moved.
//!
//! A record holds a bounded number of bytes however large its command was: of many snapshots it names the first few, their
//! number, and a hash over all of them.

use super::record::{Lock, LockMode, RepoLock};
use crate::erasure::Scheme;
use crate::id::{AuditHash, BadId, NodeId, RepoId, SnapshotId, hash_parts};
use crate::limits::AUDIT_SNAPSHOTS_MAX;
use crate::policy::Policy;
use crate::topology::{Change, Name, NodeState, Region};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Version byte in front of a stored record.
pub const AUDIT_VERSION: u8 = 1;

/// Who asked for a command, as the certificate of the connection says. A name is checked wherever it is read, so that
/// there is none without a name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Actor {
    /// A node, of its own accord: its workers, or whoever leads.
    Node(NodeId),
    /// A client, by the name that the cluster's authority gave it.
    Client(Name),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Node(id) => write!(f, "node {id}"),
            Actor::Client(name) => write!(f, "client {name}"),
        }
    }
}

/// What was done, or tried.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Act {
    /// The cluster began to use another feature level: the first record of every chain.
    RaiseLevel { from: u32, to: u32 },
    /// A repository was created.
    CreateRepository { repo: RepoId, name: Name },
    /// A node became known, or says of itself that it is elsewhere, or larger, or smaller.
    PlaceNode { node: NodeId, name: Name, region: Region, zone: Option<Name>, capacity: u64 },
    /// The leader found a node in another state.
    SetNodeState { node: NodeId, from: NodeState, to: NodeState },
    /// An operator staged changes at this epoch of the topology.
    StageTopology { epoch: u64, changes: Vec<Change> },
    /// An operator enacted changes at this epoch, or the leader retired what was drained.
    ChangeTopology { epoch: u64, changes: Vec<Change> },
    /// A repository, by id and name, or its snapshots were changed.
    ChangeRepository { repo: RepoId, name: Name, act: RepoAct },
    /// The catalogue went on from the replica of this node alone.
    BeginEra { era: u32, node: NodeId },
    /// An operator had a region emptied into another, at this epoch.
    Migrate { epoch: u64, from: Region, to: Region, cold: bool },
    /// The migration of this region ended, or an operator had it ended and its nodes kept.
    EndMigration { epoch: u64, from: Region, keep: bool },
    /// An operator set the limits of the cluster's own work.
    SetUpkeep { scrub_paused: bool, links: u32 },
}

impl Act {
    /// One word, used in tables and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            Act::RaiseLevel { .. } => "raise-level",
            Act::CreateRepository { .. } => "create-repository",
            Act::PlaceNode { .. } => "place-node",
            Act::SetNodeState { .. } => "set-node-state",
            Act::StageTopology { .. } => "stage-topology",
            Act::ChangeTopology { .. } => "change-topology",
            Act::ChangeRepository { act, .. } => act.word(),
            Act::BeginEra { .. } => "begin-era",
            Act::Migrate { .. } => "migrate",
            Act::EndMigration { .. } => "end-migration",
            Act::SetUpkeep { .. } => "set-upkeep",
        }
    }
}

/// What was done to a repository; see [`super::RepoChange`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum RepoAct {
    /// Snapshots moved to the trash.
    Forget { snapshots: SomeSnapshots, bypass: bool },
    /// Snapshots taken out of the trash.
    Undelete { snapshots: SomeSnapshots },
    /// Snapshots removed for good.
    Purge { snapshots: SomeSnapshots, early: bool },
    /// A snapshot locked, or its lock changed.
    LockSnapshot { snapshot: SnapshotId, lock: Lock, bypass: bool },
    /// All snapshots locked from their commit on, or not any more.
    Lock { lock: Option<RepoLock>, bypass: bool },
    /// Time in the trash set.
    SetTrash { trash_ms: Option<u64> },
    /// Retention policy set.
    SetRetention { policy: Option<String> },
    /// What must be survived was set, and how it is coded.
    SetPolicy { policy: Policy, scheme: Scheme },
    /// Key slots were added, removed or wrapped anew: how many there were and are, and the hashes of the lists
    /// ([`super::slots_hash`]).
    SetKeySlots { was: u32, now: u32, before: AuditHash, after: AuditHash },
    /// The description of a snapshot was changed, such as its tags: hashes of what it was and is, sealed.
    Describe { snapshot: SnapshotId, before: AuditHash, after: AuditHash },
}

impl RepoAct {
    /// One word, used in tables and JSON.
    pub fn word(&self) -> &'static str {
        match self {
            RepoAct::Forget { .. } => "forget",
            RepoAct::Undelete { .. } => "undelete",
            RepoAct::Purge { .. } => "purge",
            RepoAct::LockSnapshot { .. } => "lock-snapshot",
            RepoAct::Lock { .. } => "lock",
            RepoAct::SetTrash { .. } => "set-trash",
            RepoAct::SetRetention { .. } => "set-retention",
            RepoAct::SetPolicy { .. } => "set-policy",
            RepoAct::SetKeySlots { .. } => "set-key-slots",
            RepoAct::Describe { .. } => "describe",
        }
    }
}

/// Snapshots of one command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SomeSnapshots {
    /// How many were named.
    pub count: u32,
    /// The first of them, as named.
    pub first: Vec<SnapshotId>,
    /// Over all of them, as named: whoever has the list can prove it.
    pub hash: AuditHash,
}

impl SomeSnapshots {
    /// What a record says of these.
    pub fn of(all: &[SnapshotId]) -> Self {
        let bytes: Vec<u8> = all.iter().flat_map(|id| id.as_bytes()).copied().collect();
        SomeSnapshots {
            count: u32::try_from(all.len()).unwrap_or(u32::MAX),
            first: all.iter().take(AUDIT_SNAPSHOTS_MAX).copied().collect(),
            hash: AuditHash(hash_parts(&[b"farshore audited snapshots", &bytes])),
        }
    }
}

/// What came of it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum ActOutcome {
    /// It was done.
    Done,
    /// It concerned so many; the others were passed over.
    Changed { count: u32 },
    /// Nothing was changed: this snapshot is locked until then.
    Locked { snapshot: SnapshotId, mode: LockMode, until_ms: u64 },
    /// Nothing was changed: the lock that is there may be extended only.
    LockKept { mode: LockMode },
}

/// One act.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Number of the record, from 1 without gaps.
    pub seq: u64,
    /// Catalogue time, Unix milliseconds.
    pub time_ms: u64,
    /// Log index of the command.
    pub index: u64,
    /// Who asked for it.
    pub actor: Actor,
    /// What was asked for.
    pub act: Act,
    /// What came of it.
    pub outcome: ActOutcome,
}

/// An act and its place in the chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditRecord {
    /// The act.
    pub entry: AuditEntry,
    /// Hash of the record before; zeros before the first.
    pub previous: AuditHash,
    /// Hash of this one: over the encoded entry and `previous`.
    pub hash: AuditHash,
}

impl AuditRecord {
    /// Behind the record with this hash.
    pub fn behind(previous: AuditHash, entry: AuditEntry) -> Self {
        let hash = hash_of(previous, &entry);
        AuditRecord { entry, previous, hash }
    }

    /// Reads record `seq` as it is stored: version byte, then postcard.
    pub fn open(seq: u64, stored: &[u8]) -> Result<Self, AuditFault> {
        match stored.split_first() {
            Some((&AUDIT_VERSION, payload)) => {
                let record: Self = postcard::from_bytes(payload).map_err(|_| AuditFault::Unreadable(seq))?;
                // One record has one form: bytes left over or another way to write a number were not written by us.
                match encode(&record) == payload {
                    true => Ok(record),
                    false => Err(AuditFault::Unreadable(seq)),
                }
            }
            Some((version, _)) if *version > AUDIT_VERSION => Err(AuditFault::Newer(seq, *version)),
            _ => Err(AuditFault::Unreadable(seq)),
        }
    }

    /// Where the chain ends with this record.
    pub fn head(&self) -> AuditHead {
        AuditHead { seq: self.entry.seq, hash: self.hash }
    }
}

fn hash_of(previous: AuditHash, entry: &AuditEntry) -> AuditHash {
    let (name, version) = (b"farshore audit record", [AUDIT_VERSION]);
    AuditHash(hash_parts(&[name, &version, previous.as_bytes(), &encode(entry)]))
}

fn encode(value: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(value).expect("our own types always encode into memory")
}

/// Where a chain ends: who has noted it can tell later whether anything up to it has changed. Shown as `SEQ:HASH`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AuditHead {
    /// Number of the last record; 0 if there is none.
    pub seq: u64,
    /// Its hash; zeros if there is none.
    pub hash: AuditHash,
}

impl Default for AuditHead {
    fn default() -> Self {
        AuditHead { seq: 0, hash: AuditHash([0; 32]) }
    }
}

impl fmt::Display for AuditHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// Text that is no `SEQ:HASH`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no head of an audit chain: write SEQ:HASH, as --verify prints it")]
pub struct BadHead(String);

impl FromStr for AuditHead {
    type Err = BadHead;
    fn from_str(text: &str) -> Result<Self, BadHead> {
        let bad = || BadHead(text.into());
        let (seq, hash) = text.split_once(':').ok_or_else(bad)?;
        let hash = hash.parse().map_err(|_: BadId| bad())?;
        Ok(AuditHead { seq: seq.parse().map_err(|_| bad())?, hash })
    }
}

/// What is wrong with a chain, at the first record that shows it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditFault {
    /// A record is not there.
    #[error("record {0} is missing")]
    Missing(u64),
    /// A record says that it is another.
    #[error("record {0} says that it is record {1}")]
    Misplaced(u64, u64),
    /// A record does not decode.
    #[error("record {0} does not decode")]
    Unreadable(u64),
    /// A record was written by a later release.
    #[error("record {0} has format {1}, which this program does not know; use a newer one")]
    Newer(u64, u8),
    /// A record does not hash to what it says.
    #[error("record {0} was altered: it does not hash to what it says")]
    Altered(u64),
    /// A record does not carry on from the one before it.
    #[error("record {0} does not carry on from the record before it")]
    Unlinked(u64),
    /// Its time or log entry lies before those of the record before it.
    #[error("record {0} is older than the record before it")]
    Backwards(u64),
    /// The record is another than the one noted.
    #[error("record {0} is not the one that was noted: the chain was rewritten")]
    Rewritten(u64),
    /// The chain ends before the record noted.
    #[error("the chain ends with record {end}, before record {noted} that was noted: it was cut")]
    Cut {
        /// Last record there is.
        end: u64,
        /// Record noted.
        noted: u64,
    },
}

/// Goes over a chain from its first record, recomputing every hash.
#[derive(Clone, Copy, Debug, Default)]
pub struct AuditCheck {
    head: AuditHead,
    time_ms: u64,
    index: u64,
    noted: Option<AuditHead>,
}

impl AuditCheck {
    /// A check that also finds out whether the chain still goes through a head that was noted.
    pub fn through(noted: Option<AuditHead>) -> Self {
        AuditCheck { noted, ..AuditCheck::default() }
    }

    /// Takes the next record as it is stored under `seq`.
    pub fn take(&mut self, seq: u64, stored: &[u8]) -> Result<AuditRecord, AuditFault> {
        let expected = self.head.seq + 1;
        if seq != expected {
            return Err(AuditFault::Missing(expected));
        }
        let record = AuditRecord::open(seq, stored)?;
        let entry = &record.entry;
        if entry.seq != seq {
            return Err(AuditFault::Misplaced(seq, entry.seq));
        }
        if record.previous != self.head.hash {
            return Err(AuditFault::Unlinked(seq));
        }
        if hash_of(record.previous, entry) != record.hash {
            return Err(AuditFault::Altered(seq));
        }
        if entry.time_ms < self.time_ms || entry.index <= self.index {
            return Err(AuditFault::Backwards(seq));
        }
        if self.noted.is_some_and(|noted| noted.seq == seq && noted != record.head()) {
            return Err(AuditFault::Rewritten(seq));
        }
        (self.head, self.time_ms, self.index) = (record.head(), entry.time_ms, entry.index);
        Ok(record)
    }

    /// Ends the check. `said` is where the chain ends by the word of who served it.
    pub fn end(&self, said: AuditHead) -> Result<AuditHead, AuditFault> {
        let noted = self.noted.unwrap_or_default().seq;
        if said.seq > self.head.seq {
            return Err(AuditFault::Missing(self.head.seq + 1));
        }
        if said.seq == self.head.seq && said != self.head {
            return Err(AuditFault::Rewritten(said.seq));
        }
        if noted > self.head.seq {
            return Err(AuditFault::Cut { end: self.head.seq, noted });
        }
        Ok(self.head)
    }

    /// The last record taken.
    pub fn head(&self) -> AuditHead {
        self.head
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(len: u64) -> Vec<(u64, Vec<u8>)> {
        let mut previous = AuditHash([0; 32]);
        let mut rows = Vec::new();
        for seq in 1..=len {
            let act = match seq % 3 {
                0 => Act::BeginEra { era: 7, node: NodeId(seq) },
                1 => Act::CreateRepository { repo: RepoId([seq as u8; 16]), name: "docs".parse().unwrap() },
                _ => Act::ChangeRepository {
                    repo: RepoId([1; 16]),
                    name: "docs".parse().unwrap(),
                    act: RepoAct::Forget {
                        snapshots: SomeSnapshots::of(&[SnapshotId([seq as u8; 32])]),
                        bypass: false,
                    },
                },
            };
            let actor = Actor::Client("ops".parse().unwrap());
            let (time_ms, outcome) = (seq / 2, ActOutcome::Done);
            let entry = AuditEntry { seq, time_ms, index: seq * 3, actor, act, outcome };
            let record = AuditRecord::behind(previous, entry);
            previous = record.hash;
            rows.push((seq, stored(&record)));
        }
        rows
    }

    fn stored(record: &AuditRecord) -> Vec<u8> {
        postcard::to_extend(record, vec![AUDIT_VERSION]).unwrap()
    }

    fn head_of(rows: &[(u64, Vec<u8>)]) -> AuditHead {
        let (seq, last) = rows.last().unwrap();
        AuditRecord::open(*seq, last).unwrap().head()
    }

    fn check(rows: &[(u64, Vec<u8>)], noted: Option<AuditHead>) -> Result<AuditHead, AuditFault> {
        let mut check = AuditCheck::through(noted);
        for (seq, record) in rows {
            check.take(*seq, record)?;
        }
        check.end(check.head())
    }

    #[test]
    fn every_flipped_bit_of_every_record_is_found_at_that_record_or_the_next() {
        let rows = chain(6);
        assert_eq!(check(&rows, None), Ok(head_of(&rows)));
        for at in 0..rows.len() {
            for bit in 0..rows[at].1.len() * 8 {
                let mut bad = rows.clone();
                bad[at].1[bit / 8] ^= 1 << (bit % 8);
                assert!(check(&bad, None).is_err(), "record {} bit {bit}", at + 1);
            }
        }
    }

    #[test]
    fn a_record_removed_swapped_or_put_in_is_found() {
        let rows = chain(6);
        for at in 0..5 {
            let mut removed = rows.clone();
            removed.remove(at);
            assert_eq!(check(&removed, None), Err(AuditFault::Missing(at as u64 + 1)));
            let mut closed = removed.clone();
            closed.iter_mut().zip(1..).for_each(|(row, seq)| row.0 = seq);
            assert!(check(&closed, None).is_err(), "numbered anew");
            let mut swapped = rows.clone();
            let (a, b) = (rows[at].1.clone(), rows[at + 1].1.clone());
            (swapped[at].1, swapped[at + 1].1) = (b, a);
            assert!(check(&swapped, None).is_err(), "swapped at {at}");
        }
    }

    #[test]
    fn a_record_altered_and_hashed_anew_is_found_at_the_next() {
        let mut rows = chain(6);
        let record = AuditRecord::open(3, &rows[2].1).unwrap();
        let entry = AuditEntry { actor: Actor::Node(NodeId(1)), ..record.entry };
        rows[2].1 = stored(&AuditRecord::behind(record.previous, entry));
        assert_eq!(check(&rows, None), Err(AuditFault::Unlinked(4)));
    }

    #[test]
    fn a_chain_cut_or_written_anew_does_not_go_through_the_head_that_was_noted() {
        let rows = chain(6);
        let noted = head_of(&rows);
        assert_eq!(check(&rows, Some(head_of(&rows[..3]))), Ok(noted));
        assert_eq!(check(&rows[..4], None), Ok(head_of(&rows[..4])), "nobody can tell without");
        assert_eq!(check(&rows[..4], Some(noted)), Err(AuditFault::Cut { end: 4, noted: 6 }));
        let mut anew = chain(8);
        let mut previous = AuditHash([0; 32]);
        for (seq, row) in &mut anew {
            let mut entry = AuditRecord::open(*seq, row).unwrap().entry;
            entry.actor = Actor::Node(NodeId(1));
            let record = AuditRecord::behind(previous, entry);
            (previous, *row) = (record.hash, stored(&record));
        }
        assert!(check(&anew, None).is_ok());
        assert_eq!(check(&anew, Some(noted)), Err(AuditFault::Rewritten(6)));
        let mut check = AuditCheck::default();
        check.take(1, &rows[0].1).unwrap();
        assert_eq!(check.end(noted), Err(AuditFault::Missing(2)), "less came than was said");
    }

    #[test]
    fn a_head_is_read_as_it_is_shown() {
        let head = head_of(&chain(3));
        assert_eq!(head.to_string().parse(), Ok(head));
        for bad in ["", "3", "3:", "x:00", ":00", "3:zz"] {
            assert!(bad.parse::<AuditHead>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_record_of_a_later_release_is_told_from_rubbish() {
        let mut row = chain(1).remove(0).1;
        row[0] = AUDIT_VERSION + 1;
        assert_eq!(AuditRecord::open(1, &row), Err(AuditFault::Newer(1, AUDIT_VERSION + 1)));
        row[0] = 0;
        assert_eq!(AuditRecord::open(1, &row), Err(AuditFault::Unreadable(1)));
        assert_eq!(AuditRecord::open(1, &[]), Err(AuditFault::Unreadable(1)));
    }

    #[test]
    fn a_record_stays_small_however_long_its_list() {
        let many: Vec<SnapshotId> = (0..1_000u32).map(|n| SnapshotId([n as u8; 32])).collect();
        let some = SomeSnapshots::of(&many);
        assert_eq!((some.count, some.first.len()), (1_000, AUDIT_SNAPSHOTS_MAX));
        assert_ne!(some.hash, SomeSnapshots::of(&many[..999]).hash);
    }
}
