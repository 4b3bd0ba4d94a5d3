//! The Kv seam: an ordered store that lives outside the process, so that a crash can take what was not flushed.
//! After a crash a prefix of the unflushed batches is still there, as with one journal written in order. A store whose
//! flush has failed takes nothing more until it is opened again, as the real engines have it.

#[cfg(test)]
mod kv_test;

use crate::calls::Call;
use crate::disk::SimDisk;
use crate::entropy::Rng;
use crate::event;
use crate::medium::{Medium, Ops};
use crate::world::World;
use async_trait::async_trait;
use farshore_core::host::kv::{Changes, KvPair, settle};
use farshore_core::host::{Kv, KvError, KvFactory, KvOp, KvRead, KvRole, Table};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

/// Rows by table; a table is copied only if it changes while a frozen view of it is alive.
type Tables = BTreeMap<Table, Arc<BTreeMap<Vec<u8>, Vec<u8>>>>;

/// Shortest and longest time a flush takes.
const FLUSH_US: (u64, u64) = (200, 5_000);

/// All stores of one process.
pub struct SimStores {
    world: World,
    label: u64,
    medium: Medium,
    stores: Mutex<BTreeMap<KvRole, Held>>,
    /// Damaged replicas that were put away.
    put_away: AtomicU64,
}

/// A store and who has it open.
struct Held {
    store: SimKv,
    open: Weak<SimKv>,
}

impl SimStores {
    /// Empty stores on a device of their own.
    pub fn new(world: World, label: u64) -> Self {
        Self::on(&Medium::new(world, label))
    }
    /// Empty stores on the disk of their machine: one is as full, slow and faulty as the other.
    pub fn beside(disk: &SimDisk) -> Self {
        Self::on(disk.medium())
    }
    fn on(medium: &Medium) -> Self {
        let (world, label) = medium.home();
        SimStores {
            world,
            label,
            medium: medium.clone(),
            stores: Mutex::default(),
            put_away: AtomicU64::new(0),
        }
    }
    fn lock(&self) -> MutexGuard<'_, BTreeMap<KvRole, Held>> {
        self.stores.lock().expect("no holder of this lock panics")
    }
    fn held<'a>(&self, stores: &'a mut BTreeMap<KvRole, Held>, role: KvRole) -> &'a mut Held {
        stores.entry(role).or_insert_with(|| {
            let rng = Rng::new(self.world.seed() ^ self.label << 8, 0x4b56 + role as u64);
            Held { store: SimKv::new(self.medium.clone(), role, rng), open: Weak::new() }
        })
    }
    /// The process that had them open is gone.
    pub fn release(&self) {
        for held in self.lock().values_mut() {
            held.open = Weak::new();
            held.store.reopen();
        }
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
        let mut stores = self.lock();
        stores.values().for_each(|held| held.store.empty());
        stores.clear();
    }
    /// From now on a flush of any store says it is done and does nothing.
    pub fn set_lying(&self, lying: bool) {
        let mut stores = self.lock();
        for role in [KvRole::Catalogue, KvRole::Index] {
            self.held(&mut stores, role).store.lock().lying = lying;
        }
        drop(stores);
        event!(self.world, self.label, "kv flushes lie: {lying}");
    }
    /// The n-th flush of this store from now, 1 being the next, fails with EIO.
    pub fn fail_flush(&self, role: KvRole, n: u64) {
        self.held(&mut self.lock(), role).store.lock().failing.push(n.saturating_sub(1));
        event!(self.world, self.label, "kv fails the {n}th flush of {role:?} from now");
    }
    /// A bit of one row of this store turns over at rest: which table's, or `None` if there is no row.
    pub fn rot(&self, role: KvRole) -> Option<Table> {
        let table = self.lock().get(&role)?.store.rot()?;
        event!(self.world, self.label, "kv {role:?}: a row of table {table} rots");
        Some(table)
    }
    /// How many damaged replicas were put away here.
    pub fn given_up(&self) -> u64 {
        self.put_away.load(Ordering::Relaxed)
    }
    /// Every row of a store, for checks: table, key and value.
    pub fn scan_all(&self, role: KvRole) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        self.lock().get(&role).map_or_else(Vec::new, |held| held.store.scan_all())
    }
}

#[async_trait]
impl KvFactory for SimStores {
    async fn open(&self, role: KvRole) -> Result<Arc<dyn Kv>, KvError> {
        let ticket = self.world.enter(self.label, Call::KvOpen).await;
        let opened = {
            let mut stores = self.lock();
            let held = self.held(&mut stores, role);
            if held.open.strong_count() > 0 {
                Err(KvError::InUse)
            } else {
                held.store.reopen();
                let opened = Arc::new(held.store.clone());
                held.open = Arc::downgrade(&opened);
                Ok(opened as Arc<dyn Kv>)
            }
        };
        self.world.leave(self.label, ticket).await;
        opened
    }
    async fn discard(&self, role: KvRole) -> Result<(), KvError> {
        if role != KvRole::Index {
            return Err(KvError::Unsupported("be discarded: only the index can be rebuilt"));
        }
        self.remove(role).await
    }
    async fn put_away(&self) -> Result<(), KvError> {
        self.remove(KvRole::Catalogue).await?;
        self.put_away.fetch_add(1, Ordering::Relaxed);
        event!(self.world, self.label, "a damaged replica is put away");
        Ok(())
    }
}

impl SimStores {
    async fn remove(&self, role: KvRole) -> Result<(), KvError> {
        let ticket = self.world.enter(self.label, Call::KvDiscard).await;
        {
            let mut stores = self.lock();
            if stores.get(&role).is_some_and(|held| held.open.strong_count() > 0) {
                return Err(KvError::InUse);
            }
            if let Some(held) = stores.remove(&role) {
                held.store.empty();
            }
        }
        self.world.leave(self.label, ticket).await;
        Ok(())
    }
}

/// One store. Clones are the same store.
#[derive(Clone)]
pub struct SimKv {
    world: World,
    label: u64,
    medium: Medium,
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
    /// Bytes counted on the medium.
    bytes: u64,
    lying: bool,
    /// Flushes to fail: how many are still good.
    failing: Vec<u64>,
    /// A flush has failed since the store was opened.
    poisoned: bool,
    rng: Rng,
}

impl SimKv {
    /// An empty store.
    fn new(medium: Medium, role: KvRole, rng: Rng) -> Self {
        let (world, label) = medium.home();
        let state = State {
            visible: Tables::new(),
            durable: Tables::new(),
            pending: Vec::new(),
            base: 0,
            bytes: 0,
            lying: false,
            failing: Vec::new(),
            poisoned: false,
            rng,
        };
        SimKv { world, label, medium, role, state: Arc::new(Mutex::new(state)) }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
    /// Loses power. Returns how many unflushed batches survived and how many did not.
    fn crash(&self) -> (u64, u64) {
        let mut state = self.lock();
        let pending = std::mem::take(&mut state.pending);
        let kept = state.rng.below(pending.len() as u64 + 1);
        for batch in pending.iter().take(kept as usize) {
            apply(&mut state.durable, batch);
        }
        state.base += pending.len() as u64;
        state.visible = state.durable.clone();
        state.poisoned = false;
        self.weigh(&mut state);
        (kept, pending.len() as u64 - kept)
    }
    /// A new process finds it. After a failed flush the journal ends anywhere behind what was durable.
    fn reopen(&self) {
        if self.lock().poisoned {
            let (kept, lost) = self.crash();
            event!(
                self.world,
                self.label,
                "kv {:?} opens again: {kept} batches kept, {lost} lost",
                self.role
            );
        }
    }
    /// Gives its room back.
    fn empty(&self) {
        let mut state = self.lock();
        (state.visible, state.durable) = (Tables::new(), Tables::new());
        state.pending.clear();
        self.weigh(&mut state);
    }
    fn rot(&self) -> Option<Table> {
        let mut state = self.lock();
        let rows: Vec<(Table, Vec<u8>)> = state
            .durable
            .iter()
            .flat_map(|(table, rows)| rows.keys().map(|key| (*table, key.clone())))
            .collect();
        let (table, key) = rows.get(state.rng.below(rows.len().max(1) as u64) as usize)?.clone();
        let bit = state.rng.below(u64::MAX);
        let State { visible, durable, .. } = &mut *state;
        for tables in [visible, durable] {
            let rows = Arc::make_mut(tables.get_mut(&table)?);
            if let Some(value) = rows.get_mut(&key).filter(|value| !value.is_empty()) {
                let at = (bit / 8) as usize % value.len();
                value[at] ^= 1 << (bit % 8);
            }
        }
        Some(table)
    }
    fn scan_all(&self) -> Vec<(Table, Vec<u8>, Vec<u8>)> {
        let state = self.lock();
        let mut all = Vec::new();
        for (table, rows) in &state.visible {
            all.extend(rows.iter().map(|(key, value)| (*table, key.clone(), value.clone())));
        }
        all
    }
    /// Counts anew what it takes on the medium.
    fn weigh(&self, state: &mut State) {
        let rows = state.durable.values().flat_map(|rows| rows.iter());
        let journal = state.pending.iter().map(weight).sum::<u64>();
        let bytes = rows.map(|(key, value)| (key.len() + value.len()) as u64).sum::<u64>() + journal;
        self.resize(state, bytes);
    }
    /// Takes so many bytes on the medium. Returns whether there is room for them.
    fn resize(&self, state: &mut State, bytes: u64) -> bool {
        let more = bytes as i64 - state.bytes as i64;
        state.bytes = bytes;
        self.medium.grow_rows(more)
    }
    /// Why a flush that ends now fails, if it does.
    fn strike(&self, state: &mut State) -> Result<(), String> {
        let mut struck = false;
        state.failing.retain_mut(|good| {
            struck |= *good == 0;
            *good = good.saturating_sub(1);
            !struck
        });
        self.medium.strike(Ops::Sync).map_err(|e| e.to_string())?;
        if struck {
            return Err("Input/output error".into());
        }
        Ok(())
    }
}

fn weight(batch: &Changes) -> u64 {
    batch.iter().map(|((_, key), value)| (key.len() + value.as_ref().map_or(0, Vec::len)) as u64).sum()
}

/// What an engine says that has failed before.
fn poisoned() -> KvError {
    KvError::Io("the store has failed before and must be opened again".into())
}

impl SimKv {
    fn end_flush(&self, upto: u64) -> Result<(), KvError> {
        let mut state = self.lock();
        if state.poisoned {
            return Err(poisoned());
        }
        if let Err(why) = self.strike(&mut state) {
            state.poisoned = true;
            event!(self.world, self.label, "kv {:?} fails a flush: {why}", self.role);
            return Err(KvError::Io(why));
        }
        if state.lying {
            event!(self.world, self.label, "kv lies: {:?} is not flushed", self.role);
            return Ok(());
        }
        let done = upto.saturating_sub(state.base).min(state.pending.len() as u64);
        let mut bytes = state.bytes;
        for batch in state.pending.drain(..done as usize).collect::<Vec<_>>() {
            let more = apply(&mut state.durable, &batch);
            bytes = (bytes - weight(&batch)).saturating_add_signed(more);
        }
        state.base += done;
        self.resize(&mut state, bytes);
        drop(state);
        event!(self.world, self.label, "kv flush {done}");
        Ok(())
    }
}

/// Returns by how many bytes the rows have grown.
fn apply(tables: &mut Tables, changes: &Changes) -> i64 {
    let mut more = 0;
    for ((table, key), value) in changes {
        let rows = Arc::make_mut(tables.entry(*table).or_default());
        let old = match value {
            Some(value) => {
                more += (key.len() + value.len()) as i64;
                rows.insert(key.clone(), value.clone())
            }
            None => rows.remove(key),
        };
        more -= old.map_or(0, |old| (key.len() + old.len()) as i64);
    }
    more
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
        // The caller does not run again, so it does not matter what it is told.
        let stopped = || KvError::Io("the machine has stopped".into());
        let ticket = self.world.try_enter(self.label, Call::KvWrite).ok_or_else(stopped)?;
        let mut state = self.lock();
        if state.poisoned {
            return Err(poisoned());
        }
        let bytes = state.bytes + weight(&changes);
        if !self.resize(&mut state, bytes) {
            state.poisoned = true;
            event!(self.world, self.label, "kv {:?} has no room", self.role);
            return Err(KvError::Io("No space left on device".into()));
        }
        for ((_, key), value) in &changes {
            let place = || format!("what p{} stores in its {:?}", self.label, self.role);
            self.world.taint().watch(key, place);
            self.world.taint().watch(value.as_deref().unwrap_or_default(), place);
        }
        apply(&mut state.visible, &changes);
        state.pending.push(changes);
        drop(state);
        if self.world.try_leave(self.label, ticket) { Ok(()) } else { Err(stopped()) }
    }
    async fn flush(&self) -> Result<(), KvError> {
        let ticket = self.world.enter(self.label, Call::KvFlush).await;
        // What is covered is decided when the flush is called, not when it ends.
        let upto = {
            let state = self.lock();
            state.base + state.pending.len() as u64
        };
        tokio::time::sleep(self.medium.time(FLUSH_US)).await;
        let flushed = self.end_flush(upto);
        self.world.leave(self.label, ticket).await;
        flushed
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
