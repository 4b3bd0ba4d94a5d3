//! The Kv seam: an ordered store that lives outside the process, so that a crash can take what was not flushed.
//! After a crash a prefix of the unflushed batches is still there, as with one journal written in order.

use crate::entropy::Rng;
use crate::event;
use crate::world::World;
use async_trait::async_trait;
use farshore_core::host::kv::KvPair;
use farshore_core::host::{Kv, KvError, KvFactory, KvOp, KvRead, KvRole, Table};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

type Tables = BTreeMap<Table, BTreeMap<Vec<u8>, Vec<u8>>>;

/// Shortest and longest time a flush takes.
const FLUSH_US: (u64, u64) = (200, 5_000);

/// All stores of one process.
pub struct SimStores {
    world: World,
    label: u64,
    stores: Mutex<BTreeMap<KvRole, Arc<SimKv>>>,
}

impl SimStores {
    /// Empty stores.
    pub fn new(world: World, label: u64) -> Self {
        SimStores { world, label, stores: Mutex::default() }
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<KvRole, Arc<SimKv>>> {
        self.stores.lock().expect("no holder of this lock panics")
    }
    /// Power loss: only what was flushed, and a prefix of the rest, is found again.
    pub fn crash(&self) {
        for (role, store) in self.lock().iter() {
            let (kept, lost) = store.crash();
            event!(self.world, self.label, "kv {role:?} keeps {kept} unflushed batches, loses {lost}");
        }
    }
    /// The disk is replaced by an empty one.
    pub fn wipe(&self) {
        self.lock().clear();
    }
}

#[async_trait]
impl KvFactory for SimStores {
    async fn open(&self, role: KvRole) -> Result<Arc<dyn Kv>, KvError> {
        let mut stores = self.lock();
        let store = stores.entry(role).or_insert_with(|| {
            let rng = Rng::new(self.world.seed() ^ self.label << 8, 0x4b56 + role as u64);
            Arc::new(SimKv::new(self.world.clone(), self.label, rng))
        });
        Ok(store.clone())
    }
    async fn discard(&self, role: KvRole) -> Result<(), KvError> {
        self.lock().remove(&role);
        Ok(())
    }
}

/// One store.
pub struct SimKv {
    world: World,
    label: u64,
    state: Mutex<State>,
}

struct State {
    visible: Tables,
    durable: Tables,
    /// Written, not yet durable, oldest first.
    pending: Vec<Vec<KvOp>>,
    /// How many batches became durable or were lost before `pending[0]`.
    base: u64,
    rng: Rng,
}

impl SimKv {
    /// An empty store.
    pub fn new(world: World, label: u64, rng: Rng) -> Self {
        let state =
            State { visible: Tables::new(), durable: Tables::new(), pending: Vec::new(), base: 0, rng };
        SimKv { world, label, state: Mutex::new(state) }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
    /// Loses power. Returns how many unflushed batches survived and how many did not.
    pub fn crash(&self) -> (u64, u64) {
        let mut state = self.lock();
        let pending = std::mem::take(&mut state.pending);
        let kept = state.rng.below(pending.len() as u64 + 1);
        for batch in pending.iter().take(kept as usize) {
            apply(&mut state.durable, batch);
        }
        state.base += pending.len() as u64;
        state.visible = state.durable.clone();
        (kept, pending.len() as u64 - kept)
    }
}

fn apply(tables: &mut Tables, batch: &[KvOp]) {
    for op in batch {
        match op {
            KvOp::Put(table, key, value) => {
                tables.entry(*table).or_default().insert(key.clone(), value.clone());
            }
            KvOp::Delete(table, key) => {
                tables.entry(*table).or_default().remove(key);
            }
        }
    }
}

fn scan(tables: &Tables, table: Table, from: &[u8], to: &[u8], limit: usize) -> Vec<KvPair> {
    let Some(rows) = tables.get(&table).filter(|_| from < to) else { return Vec::new() };
    rows.range(from.to_vec()..to.to_vec()).take(limit).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn last(tables: &Tables, table: Table, from: &[u8], to: &[u8]) -> Option<KvPair> {
    let rows = tables.get(&table).filter(|_| from < to)?;
    rows.range(from.to_vec()..to.to_vec()).next_back().map(|(k, v)| (k.clone(), v.clone()))
}

impl KvRead for SimKv {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.lock().visible.get(&table).and_then(|rows| rows.get(key).cloned()))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        Ok(scan(&self.lock().visible, table, from, to, limit))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        Ok(last(&self.lock().visible, table, from, to))
    }
}

#[async_trait]
impl Kv for SimKv {
    fn write(&self, batch: Vec<KvOp>) -> Result<(), KvError> {
        let mut state = self.lock();
        apply(&mut state.visible, &batch);
        state.pending.push(batch);
        Ok(())
    }
    async fn flush(&self) -> Result<(), KvError> {
        // What is covered is decided when the flush is called, not when it ends.
        let (upto, wait) = {
            let mut state = self.lock();
            let wait = state.rng.range(FLUSH_US.0, FLUSH_US.1);
            (state.base + state.pending.len() as u64, wait)
        };
        tokio::time::sleep(Duration::from_micros(wait)).await;
        let mut state = self.lock();
        let done = upto.saturating_sub(state.base).min(state.pending.len() as u64);
        for batch in state.pending.drain(..done as usize).collect::<Vec<_>>() {
            apply(&mut state.durable, &batch);
        }
        state.base += done;
        event!(self.world, self.label, "kv flush {done}");
        Ok(())
    }
    fn freeze(&self) -> Result<Arc<dyn KvRead>, KvError> {
        Ok(Arc::new(Frozen(self.lock().visible.clone())))
    }
}

struct Frozen(Tables);

impl KvRead for Frozen {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, KvError> {
        Ok(self.0.get(&table).and_then(|rows| rows.get(key).cloned()))
    }
    fn scan(&self, table: Table, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<KvPair>, KvError> {
        Ok(scan(&self.0, table, from, to, limit))
    }
    fn last(&self, table: Table, from: &[u8], to: &[u8]) -> Result<Option<KvPair>, KvError> {
        Ok(last(&self.0, table, from, to))
    }
}
