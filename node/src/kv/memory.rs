//! A store in memory, for tests and for whoever needs a Kv that forgets. It keeps the contract of the seam but for
//! durability: a flush is a formality, and nothing outlives the process.

use async_trait::async_trait;
use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table, settle};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// A table and a key in it.
type At = (Table, Vec<u8>);

/// Every row by table and key.
#[derive(Clone, Default)]
struct Rows(Arc<BTreeMap<At, Vec<u8>>>);

/// A store in memory.
#[derive(Default)]
pub struct MemoryKv {
    rows: Mutex<Rows>,
}

impl MemoryKv {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }
    fn now(&self) -> Rows {
        self.rows.lock().expect("no holder of this lock panics").clone()
    }
}

impl KvRead for Rows {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(&(table, key.to_vec())).cloned())
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        if from >= to {
            return Ok(Vec::new());
        }
        let rows = self.0.range((table, from.to_vec())..(table, to.to_vec()));
        Ok(rows.take(limit).map(|((_, key), value)| (key.clone(), value.clone())).collect())
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        if from >= to {
            return Ok(None);
        }
        let mut rows = self.0.range((table, from.to_vec())..(table, to.to_vec()));
        Ok(rows.next_back().map(|((_, key), value)| (key.clone(), value.clone())))
    }
}

impl KvRead for MemoryKv {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        self.now().get(table, key)
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        self.now().scan(table, from, to, limit)
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        self.now().last(table, from, to)
    }
}

#[async_trait]
impl Kv for MemoryKv {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        let changes = settle(batch)?;
        let mut rows = self.rows.lock().expect("no holder of this lock panics");
        // Copies only while a frozen view is alive.
        let rows = Arc::make_mut(&mut rows.0);
        for (at, value) in changes {
            match value {
                Some(value) => drop(rows.insert(at, value)),
                None => drop(rows.remove(&at)),
            }
        }
        Ok(())
    }
    async fn flush(&self) -> Result<(), KvError> {
        Ok(())
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        Ok(Arc::new(self.now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frozen_view_stays_as_it_was() {
        let kv = MemoryKv::new();
        kv.write(vec![KvOp::Put(1, vec![1], vec![1]), KvOp::Put(1, vec![3], vec![3])]).unwrap();
        let frozen = kv.freeze().unwrap();
        kv.write(vec![KvOp::Delete(1, vec![1]), KvOp::Put(1, vec![2], vec![2])]).unwrap();
        assert_eq!(frozen.scan(1, &[], &[9], 9).unwrap(), [(vec![1], vec![1]), (vec![3], vec![3])]);
        assert_eq!(kv.scan(1, &[], &[3], 9).unwrap(), [(vec![2], vec![2])]);
        assert_eq!(kv.last(1, &[], &[3]).unwrap(), Some((vec![2], vec![2])));
        assert_eq!(kv.scan(2, &[], &[9], 9).unwrap(), []);
    }
}
