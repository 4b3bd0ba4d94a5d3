//! A whole catalogue out and in: the body of a Raft snapshot, in pages of bounded size.
//!
//! Rows come in table and key order, without their generation. The receiver stages them under the next generation,
//! checks count and hash, and installs them by one atomic batch that names the new generation. Until then the old
//! catalogue is whole and live; a transfer that breaks off leaves only rows that nobody reads.

use super::error::CatalogueError;
use super::migrate::{check_row, decode};
use super::read::{Read, Stored};
use super::tables::*;
use super::{Catalogue, View, load};
use crate::kv::record::{self, FrozenRecords};
use farshore_core::host::kv::Table;
use farshore_core::limits::{IMAGE_PAGE_BYTES, IMAGE_ROWS_READ};
use farshore_core::mutant::{Mutant, mutant};

/// One row of an image.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageRow {
    /// Table of the catalogue.
    pub table: Table,
    /// Key without its generation.
    pub key: Vec<u8>,
    /// Version byte, then payload.
    pub value: Vec<u8>,
}

/// Rows in table and key order.
pub type ImagePage = Vec<ImageRow>;

/// Streams the catalogue as it was when this began.
#[derive(Clone)]
pub struct ImageWriter {
    records: FrozenRecords,
    generation: Generation,
    head: Head,
    /// Position in [`TABLES`].
    table: usize,
    span: Span,
    rows: u64,
}

impl ImageWriter {
    /// Freezes the catalogue after the last committed transaction.
    pub fn begin(catalogue: &Catalogue) -> Result<Self, CatalogueError> {
        let records = catalogue.inner.records.freeze()?;
        let (generation, head, _) = load(&records)?;
        Ok(ImageWriter { records, generation, head, table: 0, span: Span::all(), rows: 0 })
    }

    /// Log index of the last entry that is in the image.
    pub fn applied(&self) -> u64 {
        self.head.applied
    }
    /// State hash that the receiver must arrive at.
    pub fn state_hash(&self) -> StateHash {
        self.head.hash
    }
    /// The catalogue that is written, for questions.
    pub fn view(&self) -> Result<View, CatalogueError> {
        let state = self.stored().get::<States>(&StateKey)?.unwrap_or_default();
        Ok(View::new(self.records.clone(), self.generation, self.head, state))
    }
    /// Rows given out so far; the total once `next_page` has answered `None`.
    pub fn rows(&self) -> u64 {
        self.rows
    }
    /// What the Raft glue had kept when this began.
    pub fn note(&self, key: NoteKey) -> Result<Option<Vec<u8>>, CatalogueError> {
        self.stored().get::<Notes>(&key)
    }

    /// The next page, of about [`IMAGE_PAGE_BYTES`] unless one row is larger; `None` after the last.
    pub fn next_page(&mut self) -> Result<Option<ImagePage>, CatalogueError> {
        let mut page = ImagePage::new();
        let mut bytes = 0;
        while let Some(table) = TABLES.get(self.table) {
            let room = IMAGE_PAGE_BYTES.saturating_sub(bytes);
            if room == 0 {
                return Ok(Some(self.count(page)));
            }
            // Rows may be megabytes each, so what is read at a time is bounded by bytes as well.
            let rows = self.stored().raw_scan_some(*table, &self.span, IMAGE_ROWS_READ, room)?;
            if rows.is_empty() {
                self.table += 1;
                self.span = Span::all();
                continue;
            }
            for row in rows {
                bytes += row.key.len() + row.payload.len();
                self.span.from = [row.key.as_slice(), &[0]].concat();
                let value = [&[row.version], row.payload.as_slice()].concat();
                page.push(ImageRow { table: *table, key: row.key, value });
            }
        }
        Ok((!page.is_empty()).then(|| self.count(page)))
    }

    /// State hash worked out anew from all rows, for checks: it must equal [`ImageWriter::state_hash`].
    pub fn rehash(mut self) -> Result<StateHash, CatalogueError> {
        let mut hash = StateHash::default();
        while let Some(page) = self.next_page()? {
            hash = self.add_up(hash, &page)?;
        }
        Ok(hash)
    }

    /// State hash of all rows so far, given that of all before this page.
    pub fn add_up(&self, before: StateHash, page: &ImagePage) -> Result<StateHash, CatalogueError> {
        let hashed = page.iter().filter(|row| is_hashed(row.table, &row.key));
        hashed.into_iter().try_fold(before, |hash, row| {
            let (version, payload) = row.value.split_first().ok_or(CatalogueError::Torn("an empty row"))?;
            Ok(hash.plus(StateHash::of_row(row.table, &row.key, *version, payload)))
        })
    }

    fn count(&mut self, page: ImagePage) -> ImagePage {
        self.rows += page.len() as u64;
        page
    }

    fn stored(&self) -> Stored<'_, dyn farshore_core::host::KvRead> {
        Stored { records: &self.records, generation: self.generation }
    }
}

/// Receives an image beside the live catalogue. Dropping it before `finish` installs nothing.
pub struct ImageReader {
    catalogue: Catalogue,
    generation: Generation,
    last: Option<(Table, Vec<u8>)>,
    rows: u64,
    hash: StateHash,
    head: Option<Head>,
}

impl ImageReader {
    /// Prepares to stage an image; clears what an interrupted one has left.
    pub fn begin(catalogue: &Catalogue) -> Result<Self, CatalogueError> {
        while catalogue.drop_old_generation(IMAGE_ROWS_READ)? > 0 {}
        let mut live = catalogue.inner.live();
        if live.staging {
            return Err(CatalogueError::Staging);
        }
        live.staging = true;
        let generation = live.generation + 1;
        drop(live);
        let catalogue = catalogue.clone();
        Ok(ImageReader { catalogue, generation, last: None, rows: 0, hash: StateHash::default(), head: None })
    }

    /// Stages a page. Rows must ascend over the whole image, so that none comes twice.
    pub fn add_page(&mut self, page: &[ImageRow]) -> Result<(), CatalogueError> {
        let mut batch = Vec::with_capacity(page.len());
        for row in page {
            let (version, payload) = row
                .value
                .split_first()
                .ok_or(CatalogueError::BadRow { table: row.table, what: "empty value" })?;
            check_row(row.table, &row.key, *version, payload)?;
            self.check_order(row)?;
            self.rows += 1;
            if is_hashed(row.table, &row.key) {
                self.hash = self.hash.plus(StateHash::of_row(row.table, &row.key, *version, payload));
            }
            if row.table == Heads::TABLE && HeadKey::read(&row.key).is_some() {
                self.head = Some(decode::<Heads>(*version, payload)?);
            }
            if mutant(Mutant::ImageWithoutTable) && row.table == Holders::TABLE {
                continue;
            }
            batch.push(record::put(row.table, stored_key(self.generation, &row.key), *version, payload));
        }
        Ok(self.catalogue.inner.records.write(batch)?)
    }

    fn check_order(&mut self, row: &ImageRow) -> Result<(), CatalogueError> {
        let at = (row.table, row.key.clone());
        if self.last.as_ref().is_some_and(|last| *last >= at) {
            return Err(CatalogueError::BadImage(format!("a row of table {} is out of order", row.table)));
        }
        self.last = Some(at);
        Ok(())
    }

    /// Checks the whole image against what its sender promised, installing nothing.
    pub fn check(&self, rows: u64, hash: StateHash) -> Result<(), CatalogueError> {
        if self.rows != rows {
            return Err(CatalogueError::BadImage(format!("{} rows arrived of {rows}", self.rows)));
        }
        if self.hash != hash || self.head.unwrap_or_default().hash != hash {
            return Err(CatalogueError::BadImage(format!("its rows hash to {}, not to {hash}", self.hash)));
        }
        Ok(())
    }

    /// What the sender's Raft glue had kept.
    pub fn note(&self, key: NoteKey) -> Result<Option<Vec<u8>>, CatalogueError> {
        Stored { records: &self.catalogue.inner.records, generation: self.generation }.get::<Notes>(&key)
    }

    /// Checks the whole image and installs it, atomically; durable after the next flush of the store. Afterwards call
    /// [`Catalogue::drop_old_generation`] until it answers 0.
    pub fn finish(self, rows: u64, hash: StateHash) -> Result<(), CatalogueError> {
        self.check(rows, hash)?;
        let head = self.head.unwrap_or_default();
        let records = &self.catalogue.inner.records;
        let state =
            Stored { records, generation: self.generation }.get::<States>(&StateKey)?.unwrap_or_default();
        self.catalogue.inner.check_level(state.level)?;
        let root = super::migrate::encode::<Root>(&self.generation)?;
        let mut live = self.catalogue.inner.live();
        records.write(vec![record::put(Root::TABLE, stored_key(ROOT, b""), Root::VERSION, &root)])?;
        live.generation = self.generation;
        live.change += 1;
        live.head = head;
        live.state = state;
        Ok(())
    }
}

impl Drop for ImageReader {
    fn drop(&mut self) {
        self.catalogue.inner.live().staging = false;
    }
}
