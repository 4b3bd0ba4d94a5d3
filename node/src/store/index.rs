//! What the node remembers of each shard it holds. Everything but the session can be read again from the shard file,
//! so losing the index loses no shard.

use crate::kv::record::{Records, delete, put};
use farshore_core::host::kv::{KvError, KvOp, Table};
use farshore_core::id::{PackId, RepoId, SessionId, ShardHash, ShardId, StripeId};
use farshore_core::shard::ShardHeader;
use serde::{Deserialize, Serialize};

/// The one table of the index store. Key: stripe ‖ index.
const SHARDS: Table = 1;
/// Table of one mark: its absence tells an index that is new, or has lost everything without saying so.
const MARKS: Table = 0;
const FORMED: &[u8] = b"formed";
/// Format of [`Entry`] and of the mark.
const VERSION: u8 = 1;

/// One shard in the index.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    /// Root hash over the payload.
    pub hash: ShardHash,
    /// Bytes of the payload.
    pub payload_len: u64,
    /// Bytes of the file, which differ from what the payload needs only if the file is bad.
    pub file_len: u64,
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Pack it codes.
    pub pack: PackId,
    /// Session that sent it last, `None` for repair and for files found without an entry.
    pub session: Option<SessionId>,
    /// When all its bytes were last checked, Unix milliseconds; 0 if not since it was found.
    pub last_verified_ms: u64,
    /// Known to be damaged: it is not served, and a new copy may replace it.
    pub bad: bool,
}

impl Entry {
    /// The entry of a sound file with this header.
    pub(super) fn of(header: &ShardHeader, session: Option<SessionId>, last_verified_ms: u64) -> Self {
        Entry {
            hash: header.hash,
            payload_len: header.payload_len,
            file_len: farshore_core::shard::file_len(header.payload_len),
            repo: header.repo,
            pack: header.pack,
            session,
            last_verified_ms,
            bad: false,
        }
    }
    /// The entry of a file that cannot even say what it is.
    pub(crate) fn unreadable(file_len: u64) -> Self {
        Entry {
            hash: ShardHash([0; 32]),
            payload_len: 0,
            file_len,
            repo: RepoId([0; 16]),
            pack: PackId([0; 32]),
            session: None,
            last_verified_ms: 0,
            bad: true,
        }
    }
}

/// The index of one store. Cheap to clone.
#[derive(Clone)]
pub(super) struct Index {
    records: Records,
}

impl Index {
    pub(super) fn new(records: Records) -> Self {
        Index { records }
    }
    pub(super) fn get(&self, id: ShardId) -> Result<Option<Entry>, KvError> {
        self.records.get(SHARDS, &key(id))?.map(|(version, payload)| decode(version, &payload)).transpose()
    }
    /// Up to `limit` entries after `after`, by stripe and index.
    pub(super) fn list(
        &self,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<(ShardId, Entry)>, KvError> {
        // The first key after a key is that key with a zero behind it.
        let from = after.map_or(vec![], |id| [&key(id)[..], &[0]].concat());
        self.scan(&from, &[0xff; KEY_BYTES + 1], limit)
    }
    /// Up to `limit` entries after `after` whose stripe begins with `first`.
    pub(super) fn list_under(
        &self,
        first: u8,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<Vec<(ShardId, Entry)>, KvError> {
        let from = after.map_or(vec![first], |id| [&key(id)[..], &[0]].concat());
        let to = first.checked_add(1).map_or(vec![0xff; KEY_BYTES + 1], |next| vec![next]);
        self.scan(&from, &to, limit)
    }
    /// Whether an audit of this index has ever been completed.
    pub(super) fn is_formed(&self) -> Result<bool, KvError> {
        Ok(self.records.get(MARKS, FORMED)?.is_some())
    }
    pub(super) fn set_formed(&self) -> Result<(), KvError> {
        self.records.write(vec![put(MARKS, FORMED, VERSION, &[])])
    }
    pub(super) fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        self.records.write(batch)
    }
    pub(super) async fn flush(&self) -> Result<(), KvError> {
        self.records.flush().await
    }
    /// Ends once a change could not be stored, with the reason.
    pub(super) async fn failed(&self) -> String {
        self.records.failed().await
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(ShardId, Entry)>, KvError> {
        let rows = self.records.scan(SHARDS, from, to, limit)?;
        rows.into_iter().map(|row| Ok((id_of(&row.key)?, decode(row.version, &row.payload)?))).collect()
    }
}

/// The change that sets an entry.
pub(super) fn set(id: ShardId, entry: &Entry) -> KvOp {
    let payload = postcard::to_stdvec(entry).expect("an entry has no part that cannot be written");
    put(SHARDS, key(id), VERSION, &payload)
}

/// The change that removes an entry.
pub(super) fn forget(id: ShardId) -> KvOp {
    delete(SHARDS, key(id))
}

const KEY_BYTES: usize = StripeId::LEN + 1;

fn key(id: ShardId) -> [u8; KEY_BYTES] {
    let mut key = [id.index; KEY_BYTES];
    key[..StripeId::LEN].copy_from_slice(id.stripe.as_bytes());
    key
}

fn corrupt(what: impl ToString) -> KvError {
    KvError::Corrupt { table: SHARDS, what: what.to_string() }
}

fn id_of(key: &[u8]) -> Result<ShardId, KvError> {
    let (index, stripe) = key.split_last().ok_or_else(|| corrupt("empty key"))?;
    Ok(ShardId { stripe: StripeId::from_slice(stripe).map_err(corrupt)?, index: *index })
}

fn decode(version: u8, payload: &[u8]) -> Result<Entry, KvError> {
    if version != VERSION {
        return Err(corrupt(format!("entry of unknown version {version}")));
    }
    postcard::from_bytes(payload).map_err(corrupt)
}
