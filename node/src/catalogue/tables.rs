//! Key layout: which table holds which rows under which key. It never reads or writes a store itself.
//!
//! Every stored key starts with the 4-byte big-endian generation of the catalogue it belongs to, so that an image can be
//! staged beside the live rows (`image.rs`). The one exception is the root row, which names the live generation.

use super::ordinals::{Ordinals, Segment};
use farshore_core::catalogue::{
    AuditRecord, ChunkRecord, ExportRecord, Migration, PackRecord, Recoding, RepoRecord, RepoSettings,
    SessionRecord, SnapshotMarks, SnapshotRecord, Subject, Upkeep, Verification, VerifiedStripe,
};
use farshore_core::host::kv::Table;
use farshore_core::id::{
    ChunkId, ClusterId, ExportId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, ShardId, SnapshotId,
    StripeId,
};
use farshore_core::level::{LEVEL_AUDIT, LEVEL_FIRST, LEVEL_MIGRATE, LEVEL_RECODE};
use farshore_core::topology::{Intent, NodeRecord};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;

/// Number of a catalogue among those in the store; only the one the root row names is live.
pub(crate) type Generation = u32;

/// Prefix of the root row, and therefore no generation.
pub(crate) const ROOT: Generation = Generation::MAX;

/// A kind of row: its table, key and value.
pub(crate) trait Rows {
    /// Table it lives in.
    const TABLE: Table;
    /// Format written today; `migrate.rs` reads it and all before it.
    const VERSION: u8 = 1;
    /// Feature level that a cluster must be at for such a row to be written.
    const LEVEL: u32 = LEVEL_FIRST;
    /// What finds a row.
    type Key: Key;
    /// What a row says.
    type Value: Serialize + DeserializeOwned;
}

macro_rules! tables {
    ($($(#[$doc:meta])* $name:ident = $table:literal, $key:ty => $value:ty $(, since $level:ident)?;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;
            impl Rows for $name {
                const TABLE: Table = $table;
                $(const LEVEL: u32 = $level;)?
                type Key = $key;
                type Value = $value;
            }
        )*
    };
}

tables! {
    /// Names the live generation; lies outside any generation.
    Root = 1, RootKey => Generation;
    /// Hash over the state and how far the log was applied; not part of what it hashes.
    Heads = 1, HeadKey => Head;
    /// Everything of which there is one.
    States = 1, StateKey => State;
    /// Opaque bytes kept by the Raft glue; in the image, but not in the state hash.
    Notes = 1, NoteKey => Vec<u8>;
    /// Nodes.
    Nodes = 2, NodeId => NodeRecord;
    /// Repositories.
    Repos = 3, RepoId => RepoRecord;
    /// Repository names, each taken once.
    RepoNames = 4, NameKey => RepoId;
    /// Open sessions; an ended one has no row.
    Sessions = 5, SessionId => SessionRecord;
    /// Packs by number.
    Packs = 6, PackNo => PackRecord;
    /// Packs by what they hold.
    PackIds = 7, (RepoId, PackId) => PackNo;
    /// Packs by one of their codings.
    Stripes = 8, StripeId => PackNo;
    /// Chunks.
    Chunks = 9, (RepoId, ChunkId) => ChunkRecord;
    /// Next ordinal of each repository; survives the packs, since ordinals are never reused.
    NextOrdinals = 10, RepoId => Ordinal;
    /// Packs of a repository by their first ordinal.
    OrdinalPacks = 11, (RepoId, Ordinal) => PackNo;
    /// Snapshots without their live sets.
    Snapshots = 12, (RepoId, SnapshotId) => SnapshotRecord;
    /// Which shards of a pack a node holds, as a bit per index.
    Holders = 13, (NodeId, PackNo) => u32;
    /// Packs not known to be at full strength.
    UnderTargets = 14, PackNo => UnderTarget;
    /// Copies that their node should delete.
    Condemneds = 15, (NodeId, ShardId) => ();
    /// Live sets of snapshots, those in the trash included; apart so that a listing does not load them.
    LiveSets = 32, (RepoId, SnapshotId) => Vec<u8>;
    /// Chunks of a pack in the order of its table, also those that live elsewhere.
    PackChunks = 33, PackNo => Vec<ChunkId>;
    /// Ordinals of the chunks that live in a pack. A pack without a row has all it was given and no others.
    PackOrdinals = 34, PackNo => Ordinals;
    /// Packs without a live chunk, and the log index of their condemnation.
    CondemnedPacks = 35, (RepoId, PackNo) => u64;
    /// Which ordinals are absent or condemned, 65,536 to a row. No row: none is.
    Segments = 36, (RepoId, Ordinal) => Segment;
    /// Snapshots in the trash, without their live sets.
    Trash = 37, (RepoId, SnapshotId) => SnapshotRecord;
    /// What is kept beside snapshots, those in the trash included. No row: nothing is.
    Marks = 38, (RepoId, SnapshotId) => SnapshotMarks;
    /// What is kept beside repositories. No row: nothing is.
    Settings = 39, RepoId => RepoSettings;
    /// Ids of sessions that have ended, and the log index at which: they are not opened again.
    Ended = 40, SessionId => u64;
    /// Exports of the catalogue that are not condemned.
    Exports = 41, ExportKey => ExportRecord;
    /// Audit records by number. The number of rows is the number of the last one, which is the head of the chain.
    Audits = 42, AuditKey => AuditRecord, since LEVEL_AUDIT;
    /// The feature level that each node's program can do.
    NodeLevels = 43, NodeId => u32;
    /// What operators want of the topology.
    Intents = 44, IntentKey => Intent;
    /// The number that each node's data directory drew when it was new.
    Incarnations = 45, NodeId => u64;
    /// Changes of policy that packs may still be behind of. No row: the policy is the first one.
    Recodings = 46, RepoId => Recoding, since LEVEL_RECODE;
    /// Regions that are being emptied into others, by their name.
    Migrations = 47, NameKey => Migration, since LEVEL_MIGRATE;
    /// Packs of which a shard was moved for a subject, and whose stripe was not read since.
    Moveds = 48, (Subject, PackNo) => (), since LEVEL_MIGRATE;
    /// What reading moved stripes again has shown, by number from 1.
    Verifications = 49, VerificationKey => Verification, since LEVEL_MIGRATE;
    /// The stripes of a verification.
    VerifiedStripes = 50, (VerificationKey, PackNo) => VerifiedStripe, since LEVEL_MIGRATE;
    /// Limits of the cluster's own work. No row: there are none.
    Upkeeps = 51, IntentKey => Upkeep, since LEVEL_MIGRATE;
}

/// Every table of the catalogue, ascending. Tables 16 to 31 belong to the Raft log.
pub(crate) const TABLES: [Table; 35] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 32, 33, 34, 35, 36, 37, 38, 39, 40, 41, 42, 43, 44,
    45, 46, 47, 48, 49, 50, 51,
];

/// Hash over the state, and the last log entry that is in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Head {
    /// See [`StateHash`].
    pub hash: StateHash,
    /// Log index of the last entry applied; 0 before the first.
    pub applied: u64,
}

/// Wrapping sum, over all hashed rows, of the first 16 bytes of each row's BLAKE3 hash: it does not depend on the
/// order of changes and follows each change at constant cost. Replicas with the same applied index agree on it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct StateHash(pub [u8; 16]);

impl std::fmt::Display for StateHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&farshore_core::id::hex(&self.0))
    }
}

impl StateHash {
    /// With one row more.
    pub(crate) fn plus(self, row: StateHash) -> Self {
        StateHash(u128::from_le_bytes(self.0).wrapping_add(u128::from_le_bytes(row.0)).to_le_bytes())
    }
    /// With one row less.
    pub(crate) fn minus(self, row: StateHash) -> Self {
        StateHash(u128::from_le_bytes(self.0).wrapping_sub(u128::from_le_bytes(row.0)).to_le_bytes())
    }
    /// What one row adds. `key` is without its generation.
    pub(crate) fn of_row(table: Table, key: &[u8], version: u8, payload: &[u8]) -> Self {
        let hash =
            farshore_core::id::hash_parts(&[b"farshore catalogue row", &[table], key, &[version], payload]);
        let mut first = [0; 16];
        first.copy_from_slice(&hash[..16]);
        StateHash(first)
    }
}

/// Whether a row takes part in the state hash: the head carries the hash, and notes belong to consensus.
pub(crate) fn is_hashed(table: Table, key: &[u8]) -> bool {
    table != States::TABLE || key == STATE_TAG
}

/// Everything of which there is one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct State {
    /// Set once, when the cluster is formed.
    pub cluster: Option<ClusterId>,
    /// Feature level that the cluster uses; never falls.
    pub level: u32,
    /// Catalogue time; never runs backwards.
    pub time_ms: u64,
    /// Number of the next pack.
    pub next_pack: PackNo,
    /// Bytes of all packs before coding.
    pub pack_bytes: u64,
    /// Highest log index at which a session ended that is no longer remembered.
    pub ended_forgotten: u64,
    /// Rows of each table but the first, kept exactly.
    pub rows: BTreeMap<Table, u64>,
}

impl Default for State {
    fn default() -> Self {
        State {
            cluster: None,
            level: LEVEL_FIRST,
            time_ms: 0,
            next_pack: PackNo(0),
            pack_bytes: 0,
            ended_forgotten: 0,
            rows: BTreeMap::new(),
        }
    }
}

impl State {
    /// Rows of a table.
    pub fn rows_of(&self, table: Table) -> u64 {
        self.rows.get(&table).copied().unwrap_or(0)
    }
}

/// A pack below full strength, with what tells whether a snapshot needs it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct UnderTarget {
    /// Owner.
    pub repo: RepoId,
    /// First ordinal of its chunks.
    pub first_ordinal: Ordinal,
    /// How many.
    pub chunks: u32,
}

/// What the Raft glue keeps beside the state.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum NoteKey {
    /// Last applied log id.
    Applied,
    /// Last applied membership.
    Membership,
}

/// Bytes that find a row. The order of the bytes is the order of the keys.
pub(crate) trait Key: Sized {
    /// Appends the key.
    fn write(&self, to: &mut Vec<u8>);
    /// Reads what `write` wrote, and nothing else.
    fn read(bytes: &[u8]) -> Option<Self>;
}

/// A key of constant length, which may therefore be part of another.
pub(crate) trait FixedKey: Key {
    /// Length in bytes.
    const LEN: usize;
}

macro_rules! byte_keys {
    ($($id:ident),*) => {
        $(
            impl Key for $id {
                fn write(&self, to: &mut Vec<u8>) {
                    to.extend_from_slice(self.as_bytes());
                }
                fn read(bytes: &[u8]) -> Option<Self> {
                    $id::from_slice(bytes).ok()
                }
            }
            impl FixedKey for $id {
                const LEN: usize = $id::LEN;
            }
        )*
    };
}
byte_keys!(ExportId, ChunkId, PackId, StripeId, RepoId, SessionId, SnapshotId);

macro_rules! number_keys {
    ($($id:ident),*) => {
        $(
            impl Key for $id {
                fn write(&self, to: &mut Vec<u8>) {
                    to.extend_from_slice(&self.0.to_be_bytes());
                }
                fn read(bytes: &[u8]) -> Option<Self> {
                    bytes.try_into().ok().map(|b| $id(u64::from_be_bytes(b)))
                }
            }
            impl FixedKey for $id {
                const LEN: usize = 8;
            }
        )*
    };
}
number_keys!(NodeId, PackNo, Ordinal, AuditKey, VerificationKey);

impl Key for ShardId {
    fn write(&self, to: &mut Vec<u8>) {
        self.stripe.write(to);
        to.push(self.index);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (index, stripe) = bytes.split_last()?;
        Some(ShardId { stripe: StripeId::read(stripe)?, index: *index })
    }
}
impl FixedKey for ShardId {
    const LEN: usize = StripeId::LEN + 1;
}

impl<A: FixedKey, B: FixedKey> Key for (A, B) {
    fn write(&self, to: &mut Vec<u8>) {
        self.0.write(to);
        self.1.write(to);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (a, b) = bytes.split_at_checked(A::LEN)?;
        Some((A::read(a)?, B::read(b)?))
    }
}
impl<A: FixedKey, B: FixedKey> FixedKey for (A, B) {
    const LEN: usize = A::LEN + B::LEN;
}

/// Key of [`Exports`]: the newest is the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ExportKey {
    /// Last log entry in it.
    pub to: u64,
    pub id: ExportId,
}

impl Key for ExportKey {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(&self.to.to_be_bytes());
        self.id.write(to);
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (to, id) = bytes.split_first_chunk::<8>()?;
        Some(ExportKey { to: u64::from_be_bytes(*to), id: ExportId::read(id)? })
    }
}

/// Key of [`Verifications`]: the number of a record, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VerificationKey(pub u64);

/// A tag and 16 bytes; a node's number comes first in them, and zeros fill the rest.
impl Key for Subject {
    fn write(&self, to: &mut Vec<u8>) {
        match self {
            Subject::Node(node) => {
                to.push(0);
                node.write(to);
                to.extend_from_slice(&[0; 8]);
            }
            Subject::Repository(repo) => {
                to.push(1);
                repo.write(to);
            }
        }
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first()? {
            (0, rest) if rest.get(8..)? == [0; 8] => NodeId::read(&rest[..8]).map(Subject::Node),
            (1, rest) => RepoId::read(rest).map(Subject::Repository),
            _ => None,
        }
    }
}
impl FixedKey for Subject {
    const LEN: usize = 17;
}

/// Key of [`Audits`]: the number of a record, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct AuditKey(pub u64);

/// Key of [`RepoNames`] and [`Migrations`]: the checked name itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct NameKey(pub String);

impl Key for NameKey {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(self.0.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        std::str::from_utf8(bytes).ok().map(|text| NameKey(text.into()))
    }
}

const HEAD_TAG: &[u8] = &[0];
const STATE_TAG: &[u8] = &[1];
const APPLIED_TAG: &[u8] = &[2];
const MEMBERSHIP_TAG: &[u8] = &[3];

macro_rules! tag_keys {
    ($($(#[$doc:meta])* $name:ident = $tag:expr;)*) => {
        $(
            $(#[$doc])*
            pub(crate) struct $name;
            impl Key for $name {
                fn write(&self, to: &mut Vec<u8>) {
                    to.extend_from_slice($tag);
                }
                fn read(bytes: &[u8]) -> Option<Self> {
                    (bytes == $tag).then_some($name)
                }
            }
        )*
    };
}
tag_keys! {
    /// Key of [`Root`]: empty behind its own prefix.
    RootKey = b"";
    /// Key of [`Heads`].
    HeadKey = HEAD_TAG;
    /// Key of [`States`].
    StateKey = STATE_TAG;
    /// Key of [`Intents`] and [`Upkeeps`].
    IntentKey = HEAD_TAG;
}

impl Key for NoteKey {
    fn write(&self, to: &mut Vec<u8>) {
        to.extend_from_slice(match self {
            NoteKey::Applied => APPLIED_TAG,
            NoteKey::Membership => MEMBERSHIP_TAG,
        });
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        match bytes {
            APPLIED_TAG => Some(NoteKey::Applied),
            MEMBERSHIP_TAG => Some(NoteKey::Membership),
            _ => None,
        }
    }
}

/// A key's bytes.
pub(crate) fn key_bytes(key: &impl Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    key.write(&mut bytes);
    bytes
}

/// A key as stored: behind its generation.
pub(crate) fn stored_key(generation: Generation, key: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4 + key.len());
    bytes.extend_from_slice(&generation.to_be_bytes());
    bytes.extend_from_slice(key);
    bytes
}

/// Keys `from <= key < to` of one table and generation. An empty `to` means the end.
#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub from: Vec<u8>,
    pub to: Vec<u8>,
}

impl Span {
    /// Every key.
    pub fn all() -> Self {
        Span { from: Vec::new(), to: Vec::new() }
    }
    /// `key` and all above it.
    pub fn from(key: &impl Key) -> Self {
        Span { from: key_bytes(key), to: Vec::new() }
    }
    /// All above `key`, or every key. Right only where no key is the beginning of another.
    pub fn after(key: Option<&impl Key>) -> Self {
        key.map_or_else(Span::all, |key| Span { from: just_after(key), to: Vec::new() })
    }
    /// All keys that start with `prefix`.
    pub fn within(prefix: &impl Key) -> Self {
        let from = key_bytes(prefix);
        let to = prefix_end(&from);
        Span { from, to }
    }
    /// Those keys of this span that are `key` or above it.
    pub fn starting(mut self, key: &impl Key) -> Self {
        self.from = self.from.max(key_bytes(key));
        self
    }
    /// Those keys of this span that are `key` or below it.
    pub fn up_to(mut self, key: &impl Key) -> Self {
        self.to = just_after(key);
        self
    }
    /// Those keys of this span that are above `key`.
    pub fn beyond(mut self, key: &impl Key) -> Self {
        self.from = self.from.max(just_after(key));
        self
    }
}

fn just_after(key: &impl Key) -> Vec<u8> {
    let mut bytes = key_bytes(key);
    bytes.push(0);
    bytes
}

/// The smallest key above all keys that start with `prefix`; empty if there is none.
fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(byte) = end.pop() {
        if byte < u8::MAX {
            end.push(byte + 1);
            break;
        }
    }
    end
}

/// A span's bounds as stored.
pub(crate) fn stored_span(generation: Generation, span: &Span) -> (Vec<u8>, Vec<u8>) {
    let to = if span.to.is_empty() {
        // The root row's prefix is the greatest, so a live generation always has a next one.
        (generation + 1).to_be_bytes().to_vec()
    } else {
        stored_key(generation, &span.to)
    };
    (stored_key(generation, &span.from), to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_prefix_is_above_all_its_keys() {
        assert_eq!(prefix_end(&[1, 2]), [1, 3]);
        assert_eq!(prefix_end(&[1, 255]), [2]);
        assert!(prefix_end(&[255, 255]).is_empty());
    }

    #[test]
    fn keys_come_back_and_rubbish_does_not() {
        let key = (NodeId(7), ShardId { stripe: StripeId([3; 16]), index: 9 });
        let bytes = key_bytes(&key);
        assert_eq!(<(NodeId, ShardId)>::read(&bytes), Some(key));
        assert_eq!(<(NodeId, ShardId)>::read(&bytes[1..]), None);
        assert_eq!(PackNo::read(&[0; 9]), None);
    }

    #[test]
    fn the_state_hash_is_a_sum() {
        let (a, b) = (StateHash::of_row(2, b"a", 1, b"x"), StateHash::of_row(2, b"b", 1, b"x"));
        assert_eq!(StateHash::default().plus(a).plus(b), StateHash::default().plus(b).plus(a));
        assert_eq!(StateHash::default().plus(a).plus(b).minus(a), b);
    }
}
