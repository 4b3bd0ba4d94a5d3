//! A transaction: any number of log entries applied as one atomic batch. It sees its own writes; a refused command
//! leaves nothing behind; nothing reaches the store before `commit`.

use super::error::CatalogueError;
use super::migrate::encode;
use super::read::{Payload, Read, Stored};
use super::tables::*;
use super::{Inner, apply};
use crate::kv::record::{self, Row};
use farshore_core::catalogue::{Proposal, Reply};
use farshore_core::host::kv::{KvOp, Table};
use farshore_core::mutant::{Mutant, mutant};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Changes by table and key; `None` removes.
type Layer = BTreeMap<(Table, Vec<u8>), Option<Payload>>;

/// Changes to the catalogue that are not yet in the store. Dropping it forgets them.
pub struct Tx {
    inner: Arc<Inner>,
    generation: Generation,
    change: u64,
    head: Head,
    pub(crate) state: State,
    /// Changes of commands that were carried out.
    done: Layer,
    /// Changes of the command being carried out.
    step: Layer,
}

impl Tx {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        let live = inner.live();
        let (generation, change, head, state) = (live.generation, live.change, live.head, live.state.clone());
        drop(live);
        Tx { inner, generation, change, head, state, done: Layer::new(), step: Layer::new() }
    }

    /// Carries out one command. A refusal is a reply like any other. After an error the transaction must be dropped,
    /// and this replica must not go on.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Result<Reply, CatalogueError> {
        self.pass(index)?;
        let floor_ms = if mutant(Mutant::TimeBackwards) { 0 } else { self.state.time_ms };
        self.state.time_ms = proposal.time_ms.max(floor_ms);
        let (head, state) = (self.head, self.state.clone());
        let act = apply::act_of(self, &proposal.command)?;
        let reply = apply::apply(self, index, &proposal.command)?;
        let changed = !self.step.is_empty();
        if matches!(reply, Reply::Refused(_)) && !mutant(Mutant::HalfRefused) {
            self.step.clear();
            self.head = head;
            self.state = state;
        }
        if let Some(act) = act.filter(|_| Audits::LEVEL <= self.state.level) {
            // Behind the undoing: that somebody tried stays.
            apply::record_act(self, index, &proposal.actor, act, &reply, changed)?;
        }
        self.done.append(&mut self.step);
        Ok(reply)
    }

    /// Whether this node can go on at a feature level.
    pub(crate) fn check_level(&self, cluster: u32) -> Result<(), CatalogueError> {
        self.inner.check_level(cluster)
    }

    /// Counts a log entry that carries no command (blank or membership) as applied.
    pub fn pass(&mut self, index: u64) -> Result<(), CatalogueError> {
        if index <= self.head.applied {
            return Err(CatalogueError::OutOfOrder { index, applied: self.head.applied });
        }
        self.head.applied = index;
        Ok(())
    }

    /// Keeps bytes for the Raft glue, atomically with the commands of this transaction.
    pub fn note(&mut self, key: NoteKey, bytes: Vec<u8>) -> Result<(), CatalogueError> {
        self.put::<Notes>(&key, &bytes)?;
        self.done.append(&mut self.step);
        Ok(())
    }

    /// Writes everything as one atomic batch. It is durable after the next flush of the store.
    pub fn commit(mut self) -> Result<(), CatalogueError> {
        let state = self.state.clone();
        self.put::<States>(&StateKey, &state)?;
        let head = self.head;
        self.put::<Heads>(&HeadKey, &head)?;
        self.done.append(&mut self.step);
        let generation = self.generation;
        let batch =
            std::mem::take(&mut self.done).into_iter().map(|change| to_op(generation, change)).collect();
        let mut live = self.inner.live();
        if live.change != self.change {
            return Err(CatalogueError::Conflict);
        }
        self.inner.records.write(batch)?;
        live.change += 1;
        live.head = head;
        live.state = state;
        Ok(())
    }

    /// Sets a row.
    pub(crate) fn put<R: Rows>(&mut self, key: &R::Key, value: &R::Value) -> Result<(), CatalogueError> {
        assert!(R::LEVEL <= self.state.level, "table {} is not used at this feature level", R::TABLE);
        self.change(R::TABLE, key_bytes(key), Some((R::VERSION, encode::<R>(value)?)))
    }

    /// Removes a row, if it is there.
    pub(crate) fn remove<R: Rows>(&mut self, key: &R::Key) -> Result<(), CatalogueError> {
        self.change(R::TABLE, key_bytes(key), None)
    }

    /// The one place where a row changes: hash and row counts follow here and cannot be forgotten.
    fn change(&mut self, table: Table, key: Vec<u8>, new: Option<Payload>) -> Result<(), CatalogueError> {
        let old = self.raw_get(table, &key)?;
        if old == new {
            return Ok(());
        }
        if is_hashed(table, &key) {
            let hash = |(version, payload): &Payload| StateHash::of_row(table, &key, *version, payload);
            let without = old.as_ref().map_or(self.head.hash, |row| self.head.hash.minus(hash(row)));
            self.head.hash = new.as_ref().map_or(without, |row| without.plus(hash(row)));
        }
        if table != States::TABLE {
            let rows = self.state.rows.entry(table).or_default();
            *rows = (*rows + u64::from(new.is_some())).saturating_sub(u64::from(old.is_some()));
        }
        self.step.insert((table, key), new);
        Ok(())
    }

    fn stored(&self) -> Stored<'_, dyn farshore_core::host::Kv> {
        Stored { records: &self.inner.records, generation: self.generation }
    }
}

fn to_op(generation: Generation, ((table, key), row): ((Table, Vec<u8>), Option<Payload>)) -> KvOp {
    let key = stored_key(generation, &key);
    match row {
        Some((version, payload)) => record::put(table, key, version, &payload),
        None => record::delete(table, key),
    }
}

impl Read for Tx {
    fn raw_get(&self, table: Table, key: &[u8]) -> Result<Option<Payload>, CatalogueError> {
        let at = (table, key.to_vec());
        match self.step.get(&at).or_else(|| self.done.get(&at)) {
            Some(row) => Ok(row.clone()),
            None => self.stored().raw_get(table, key),
        }
    }

    fn raw_scan(&self, table: Table, span: &Span, limit: usize) -> Result<Vec<Row>, CatalogueError> {
        let mut changes = BTreeMap::<&[u8], Option<&Payload>>::new();
        for layer in [&self.done, &self.step] {
            let rows = layer.range((table, span.from.clone())..);
            let inside =
                rows.take_while(|((t, key), _)| *t == table && (span.to.is_empty() || *key < span.to));
            changes.extend(inside.map(|((_, key), row)| (key.as_slice(), row.as_ref())));
        }
        // With this many more, rows that were removed here cannot make the answer too short.
        let removed = changes.values().filter(|row| row.is_none()).count();
        let stored = self.stored().raw_scan(table, span, limit + removed)?;
        let mut rows =
            stored.into_iter().map(|row| (row.key, (row.version, row.payload))).collect::<BTreeMap<_, _>>();
        for (key, row) in changes {
            match row {
                Some(row) => rows.insert(key.to_vec(), row.clone()),
                None => rows.remove(key),
            };
        }
        let row = |(key, (version, payload))| Row { key, version, payload };
        Ok(rows.into_iter().take(limit).map(row).collect())
    }
}
