//! Checked records: what the Raft log, the catalogue and the shard index store goes through here and nowhere else.
//!
//! A stored value is a version byte, the payload, and a checksum over table, key, version and payload. A flipped bit,
//! a cut value and a value that turns up under another key are all a typed error; neither engine promises that by
//! itself (docs/decisions/0001). It never repairs and never interprets a payload.

use farshore_core::host::kv::{Kv, KvError, KvOp, KvRead, Table};
use farshore_core::id::hash_parts;
use farshore_core::mutant::{Mutant, mutant};
use std::sync::Arc;
use tokio::sync::watch;

/// Bytes of the checksum at the end of a record: enough against accidents, which is all it is for.
const SUM_BYTES: usize = 8;

fn checksum(table: Table, key: &[u8], version: u8, payload: &[u8]) -> [u8; SUM_BYTES] {
    let hash = hash_parts(&[b"farshore record", &[table], key, &[version], payload]);
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&hash[..SUM_BYTES]);
    sum
}

/// The value to store for a payload. `version` is the payload's own format.
pub fn seal_record(table: Table, key: &[u8], version: u8, payload: &[u8]) -> Vec<u8> {
    let mut value = Vec::with_capacity(1 + payload.len() + SUM_BYTES);
    value.push(version);
    value.extend_from_slice(payload);
    value.extend_from_slice(&checksum(table, key, version, payload));
    value
}

/// Version and payload of a stored value, or [`KvError::Corrupt`] if it is not what was stored under this key.
pub fn open_record(table: Table, key: &[u8], value: &[u8]) -> Result<(u8, Vec<u8>), KvError> {
    let corrupt =
        |what: &str| KvError::Corrupt { table, what: format!("{what}, key {}", farshore_core::id::hex(key)) };
    let (record, sum) =
        value.split_last_chunk::<SUM_BYTES>().ok_or_else(|| corrupt("record is too short"))?;
    let (version, payload) = record.split_first().ok_or_else(|| corrupt("record is too short"))?;
    if checksum(table, key, *version, payload) != *sum {
        return Err(corrupt("checksum differs"));
    }
    Ok((*version, payload.to_vec()))
}

/// The change that stores a payload.
pub fn put(table: Table, key: impl Into<Vec<u8>>, version: u8, payload: &[u8]) -> KvOp {
    let key = key.into();
    let value = seal_record(table, &key, version, payload);
    KvOp::Put(table, key, value)
}

/// The change that removes a record; not an error if there is none.
pub fn delete(table: Table, key: impl Into<Vec<u8>>) -> KvOp {
    KvOp::Delete(table, key.into())
}

/// A record with its key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// The key.
    pub key: Vec<u8>,
    /// Format of the payload.
    pub version: u8,
    /// What was stored.
    pub payload: Vec<u8>,
}

/// Checked access to a store, or to a frozen view of one ([`FrozenRecords`]). Cheap to clone.
pub struct Records<K: KvRead + ?Sized = dyn Kv> {
    store: Arc<K>,
    /// Why the store has stopped taking anything, if it has.
    failed: Arc<watch::Sender<Option<String>>>,
    /// The first record found that is not what was written.
    damaged: Arc<watch::Sender<Option<String>>>,
}

/// Checked access to a frozen view.
pub type FrozenRecords = Records<dyn KvRead>;

impl<K: KvRead + ?Sized> Clone for Records<K> {
    fn clone(&self) -> Self {
        Records { store: self.store.clone(), failed: self.failed.clone(), damaged: self.damaged.clone() }
    }
}

impl<K: KvRead + ?Sized> Records<K> {
    /// Checked access to `store`.
    pub fn new(store: Arc<K>) -> Self {
        let nothing = || Arc::new(watch::Sender::new(None));
        Records { store, failed: nothing(), damaged: nothing() }
    }
    /// Version and payload under a key.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<(u8, Vec<u8>)>, KvError> {
        let read = || self.store.get(table, key)?.map(|value| open_record(table, key, &value)).transpose();
        self.looked(read())
    }
    /// Up to `limit` records with `from <= key < to`, ascending. One bad record fails the call.
    pub fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, KvError> {
        let read = || {
            let pairs = self.store.scan(table, from, to, limit)?;
            pairs.into_iter().map(|pair| open_row(table, pair)).collect()
        };
        self.looked(read())
    }
    /// As [`Records::scan`], but ends after the record with which `bytes_max` is reached.
    pub fn scan_some(
        &self,
        table: Table,
        from: &[u8],
        to: &[u8],
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Row>, KvError> {
        let read = || {
            let pairs = self.store.scan_some(table, from, to, limit, bytes_max)?;
            pairs.into_iter().map(|pair| open_row(table, pair)).collect()
        };
        self.looked(read())
    }
    /// The record with the greatest key in `from <= key < to`.
    pub fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<Row>, KvError> {
        let read = || self.store.last(table, from, to)?.map(|pair| open_row(table, pair)).transpose();
        self.looked(read())
    }
    /// The first damage that was met, if any.
    pub fn damage(&self) -> Option<String> {
        self.damaged.borrow().clone()
    }
    /// Notes damage that was found in another way than by reading a record.
    pub fn note_damage(&self, what: String) {
        self.damaged.send_if_modified(|known| known.is_none() && known.replace(what).is_none());
    }
    /// Ends once a record was met that is not what was written, with what is wrong. Cancel-safe.
    pub async fn damaged(&self) -> String {
        let mut damaged = self.damaged.subscribe();
        let what = damaged.wait_for(Option::is_some).await.ok().and_then(|what| what.clone());
        // The sender is ours and outlives this call.
        what.unwrap_or_default()
    }

    fn looked<T>(&self, outcome: Result<T, KvError>) -> Result<T, KvError> {
        if let Err(error) = &outcome
            && error.is_damage()
        {
            self.note_damage(error.to_string());
        }
        outcome
    }
}

impl Records {
    /// Applies a batch made with [`put`] and [`delete`]: atomic, visible at once, durable after a flush.
    pub fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        self.noted(self.store.write(batch))
    }
    /// Durability barrier.
    pub async fn flush(&self) -> Result<(), KvError> {
        self.noted(self.store.flush().await)
    }
    /// A view that later writes do not change.
    pub fn freeze(&self) -> Result<FrozenRecords, KvError> {
        let store = self.looked(self.store.freeze())?;
        Ok(Records { store, failed: self.failed.clone(), damaged: self.damaged.clone() })
    }
    /// Ends once a change could not be stored, with the reason: an engine takes nothing more after that until it is
    /// opened again, so a node that stayed would look alive and never learn anything. Cancel-safe.
    pub async fn failed(&self) -> String {
        let mut failed = self.failed.subscribe();
        loop {
            if let Some(why) = failed.borrow_and_update().clone().filter(|_| !mutant(Mutant::FailedStays)) {
                return why;
            }
            // The sender is ours and outlives this call.
            failed.changed().await.unwrap_or_default();
        }
    }
    fn noted<T>(&self, outcome: Result<T, KvError>) -> Result<T, KvError> {
        match &outcome {
            Err(KvError::Io(why)) => drop(self.failed.send_replace(Some(why.clone()))),
            Err(KvError::Full(why)) => drop(self.failed.send_replace(Some(why.to_string()))),
            _ => {}
        }
        self.looked(outcome)
    }
}

fn open_row(table: Table, (key, value): (Vec<u8>, Vec<u8>)) -> Result<Row, KvError> {
    let (version, payload) = open_record(table, &key, &value)?;
    Ok(Row { key, version, payload })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn records_come_back(table: u8, key: Vec<u8>, version: u8, payload: Vec<u8>) {
            let value = seal_record(table, &key, version, &payload);
            prop_assert_eq!(open_record(table, &key, &value).unwrap(), (version, payload));
        }

        #[test]
        fn any_flipped_bit_and_any_cut_is_noticed(key: Vec<u8>, payload: Vec<u8>, at: prop::sample::Index) {
            let value = seal_record(7, &key, 1, &payload);
            let bit = at.index(value.len() * 8);
            let mut flipped = value.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(open_record(7, &key, &flipped).is_err());
            prop_assert!(open_record(7, &key, &value[..bit / 8]).is_err());
        }
    }

    #[test]
    fn a_record_under_another_key_or_table_is_noticed() {
        let value = seal_record(1, b"key", 1, b"payload");
        assert!(open_record(1, b"key", &value).is_ok());
        assert!(open_record(1, b"kez", &value).is_err());
        assert!(open_record(2, b"key", &value).is_err());
    }
}
