//! Typed reading, the same for a frozen view and for a transaction that sees its own writes.

use super::error::CatalogueError;
use super::migrate::{decode, decode_key};
use super::tables::{AuditKey, Audits, Generation, Rows, Span, State, key_bytes, stored_key, stored_span};
use crate::kv::record::{Records, Row};
use farshore_core::catalogue::AuditHead;
use farshore_core::host::kv::{KvRead, Table};

/// Version and payload of a row.
pub(crate) type Payload = (u8, Vec<u8>);

/// Keys and values of some rows.
pub(crate) type Found<R> = Vec<(<R as Rows>::Key, <R as Rows>::Value)>;

/// Typed reading over raw rows. Keys are without their generation.
pub(crate) trait Read {
    /// One row.
    fn raw_get(&self, table: Table, key: &[u8]) -> Result<Option<Payload>, CatalogueError>;
    /// Up to `limit` rows of a span, ascending.
    fn raw_scan(&self, table: Table, span: &Span, limit: usize) -> Result<Vec<Row>, CatalogueError>;

    /// One value.
    fn get<R: Rows>(&self, key: &R::Key) -> Result<Option<R::Value>, CatalogueError> {
        let row = self.raw_get(R::TABLE, &key_bytes(key))?;
        row.map(|(version, payload)| decode::<R>(version, &payload)).transpose()
    }
    /// Whether there is such a row.
    fn has<R: Rows>(&self, key: &R::Key) -> Result<bool, CatalogueError> {
        Ok(self.raw_get(R::TABLE, &key_bytes(key))?.is_some())
    }
    /// Up to `limit` keys and values of a span, ascending.
    fn scan<R: Rows>(&self, span: &Span, limit: usize) -> Result<Found<R>, CatalogueError> {
        let rows = self.raw_scan(R::TABLE, span, limit)?;
        rows.iter()
            .map(|row| Ok((decode_key::<R>(&row.key)?, decode::<R>(row.version, &row.payload)?)))
            .collect()
    }
}

/// Where the audit chain ends: its last record has the number of the rows there are.
pub(crate) fn audit_head(rows: &impl Read, state: &State) -> Result<AuditHead, CatalogueError> {
    let seq = state.rows_of(Audits::TABLE);
    if seq == 0 {
        return Ok(AuditHead::default());
    }
    let last = rows.get::<Audits>(&AuditKey(seq))?;
    last.map(|last| last.head()).ok_or(CatalogueError::Torn("the last audit record is missing"))
}

/// One generation of a store, live or frozen.
pub(crate) struct Stored<'a, K: KvRead + ?Sized> {
    pub records: &'a Records<K>,
    pub generation: Generation,
}

impl<K: KvRead + ?Sized> Stored<'_, K> {
    /// Rows of a span, ascending, up to `limit` and until they come to `bytes_max`; at least one, if there is one.
    pub fn raw_scan_some(
        &self,
        table: Table,
        span: &Span,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<Row>, CatalogueError> {
        let (from, to) = stored_span(self.generation, span);
        if from >= to || limit == 0 {
            return Ok(Vec::new());
        }
        let mut rows = self.records.scan_some(table, &from, &to, limit, bytes_max)?;
        for row in &mut rows {
            row.key.drain(..size_of::<Generation>().min(row.key.len()));
        }
        Ok(rows)
    }
}

impl<K: KvRead + ?Sized> Read for Stored<'_, K> {
    fn raw_get(&self, table: Table, key: &[u8]) -> Result<Option<Payload>, CatalogueError> {
        Ok(self.records.get(table, &stored_key(self.generation, key))?)
    }
    fn raw_scan(&self, table: Table, span: &Span, limit: usize) -> Result<Vec<Row>, CatalogueError> {
        self.raw_scan_some(table, span, limit, usize::MAX)
    }
}
