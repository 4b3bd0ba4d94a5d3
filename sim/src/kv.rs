//! The Kv seam: an ordered store that lives outside the process, so that a crash can take what was not flushed.
//! After a crash a prefix of the unflushed batches is still there, as with one journal written in order.

use crate::entropy::Rng;
use crate::event;
use crate::world::World;
use async_trait::async_trait;
use farshore_core::host::kv::{Changes, KvPair, settle};
use farshore_core::host::{Kv, KvError, KvFactory, KvOp, KvRead, KvRole, Table};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

/// Rows by table; a table is copied only if it changes while a frozen view of it is alive.
type Tables = BTreeMap<Table, Arc<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Shortest and longest time a flush takes.
const FLUSH_US: (u64, u64) = (200, 5_000);

/// All stores of one process.
pub struct SimStores {
    world: World,
    label: u64,
    stores: Mutex<BTreeMap<KvRole, Held>>,
}

/// A store and who has it open.
struct Held {
    store: SimKv,
    open: Weak<SimKv>,
}

impl SimStores {
    /// Empty stores.
    pub fn new(world: World, label: u64) -> Self {
        SimStores { world, label, stores: Mutex::default() }
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<KvRole, Held>> {
        self.stores.lock().expect("no holder of this lock panics")
    }
    /// The process that had them open is gone.
    pub fn release(&self) {
        self.lock().values_mut().for_each(|held| held.open = Weak::new());
    }
    /// Power loss: only what was flushed, and a prefix of the rest, is found again.
    pub fn crash(&self) {
        for (role, held) in self.lock().iter() {
            let (kept, lost) = held.store.crash();
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
        let held = stores.entry(role).or_insert_with(|| {
            let rng = Rng::new(self.world.seed() ^ self.label << 8, 0x4b56 + role as u64);
            Held { store: SimKv::new(self.world.clone(), self.label, role, rng), open: Weak::new() }
        });
        if held.open.strong_count() > 0 {
            return Err(KvError::InUse);
        }
        let opened = Arc::new(held.store.clone());
        held.open = Arc::downgrade(&opened);
        Ok(opened)
    }
    async fn discard(&self, role: KvRole) -> Result<(), KvError> {
        if role != KvRole::Index {
            return Err(KvError::Unsupported("be discarded: only the index can be rebuilt"));
        }
        let mut stores = self.lock();
        if stores.get(&role).is_some_and(|held| held.open.strong_count() > 0) {
            return Err(KvError::InUse);
        }
        stores.remove(&role);
        Ok(())
    }
}

/// One store. Clones are the same store.
#[derive(Clone)]
pub struct SimKv {
    world: World,
    label: u64,
    role: KvRole,
    state: Arc<Mutex<State>>,
}

struct State {
    visible: Tables,
    durable: Tables,
    /// Written, not yet durable, oldest first.
    pending: Vec<Changes>,
    /// How many batches became durable or were lost before `pending[0]`.
    base: u64,
    rng: Rng,
}

impl SimKv {
    /// An empty store.
    pub fn new(world: World, label: u64, role: KvRole, rng: Rng) -> Self {
        let state =
            State { visible: Tables::new(), durable: Tables::new(), pending: Vec::new(), base: 0, rng };
        SimKv { world, label, role, state: Arc::new(Mutex::new(state)) }
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

fn apply(tables: &mut Tables, changes: &Changes) {
    for ((table, key), value) in changes {
        let rows = Arc::make_mut(tables.entry(*table).or_default());
        match value {
            Some(value) => rows.insert(key.clone(), value.clone()),
            None => rows.remove(key),
        };
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
        let changes = settle(batch)?;
        let mut state = self.lock();
        apply(&mut state.visible, &changes);
        state.pending.push(changes);
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
        // As the real engines of the two roles have it.
        match self.role {
            KvRole::Catalogue => Ok(Arc::new(Frozen(self.lock().visible.clone()))),
            KvRole::Index => Err(KvError::Unsupported("be frozen")),
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_node::kv::conformance;

    fn put(n: u8) -> KvOp {
        KvOp::Put(1, vec![n], vec![n])
    }

    #[tokio::test(start_paused = true)]
    async fn both_roles_conform() {
        for (role, freezes) in [(KvRole::Catalogue, true), (KvRole::Index, false)] {
            let world = World::new(1, None);
            let machines: Vec<_> = (0..8).map(|label| SimStores::new(world.clone(), label)).collect();
            let open = |n: u32| machines[n as usize].open(role);
            conformance::run(conformance::Traits { freezes }, async |n| open(n).await.unwrap()).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_opens_once_until_its_process_dies() {
        let stores = SimStores::new(World::new(1, None), 1);
        let zombie = stores.open(KvRole::Index).await.unwrap();
        assert!(matches!(stores.open(KvRole::Index).await, Err(KvError::InUse)));
        assert!(matches!(stores.discard(KvRole::Index).await, Err(KvError::InUse)));
        stores.release();
        stores.open(KvRole::Index).await.unwrap();
        drop(zombie);
        assert!(stores.discard(KvRole::Catalogue).await.is_err());
        stores.discard(KvRole::Index).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn power_loss_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
        let mut kept = std::collections::BTreeSet::new();
        for seed in 0..60 {
            let stores = SimStores::new(World::new(seed, None), 1);
            let store = stores.open(KvRole::Catalogue).await.unwrap();
            store.write(vec![put(0)]).unwrap();
            store.flush().await.unwrap();
            (1..4).for_each(|n| store.write(vec![put(n)]).unwrap());
            stores.release();
            stores.crash();
            let store = stores.open(KvRole::Catalogue).await.unwrap();
            let rows = store.scan(1, &[], &[9], 9).unwrap();
            assert!(rows.iter().enumerate().all(|(n, (key, _))| *key == [n as u8]), "a prefix");
            assert!(!rows.is_empty(), "what was flushed");
            kept.insert(rows.len());
        }
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4], "every outcome occurs");
    }

    #[tokio::test(start_paused = true)]
    async fn a_flush_cut_short_promises_nothing() {
        let lost = (0..40).any(|seed| {
            let stores = SimStores::new(World::new(seed, None), 1);
            let store =
                futures_util::FutureExt::now_or_never(stores.open(KvRole::Catalogue)).unwrap().unwrap();
            store.write(vec![put(0)]).unwrap();
            assert!(futures_util::FutureExt::now_or_never(store.flush()).is_none(), "a flush takes time");
            stores.crash();
            store.get(1, &[0]).unwrap().is_none()
        });
        assert!(lost);
    }
}
