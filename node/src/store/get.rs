//! Reading a shard: nothing leaves before it has been checked against the recorded hash.

use super::audit::adopt;
use super::index::{self, Entry};
use super::{ShardStore, StoreError, file_name};
use bytes::Bytes;
use farshore_core::host::compute;
use farshore_core::id::{ShardHash, ShardId};
use farshore_core::limits::{FRAME_BYTES, SHARD_BLOCK_BYTES, SHARD_RANGES_MAX};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::shard::{
    SHARD_HEADER_BYTES, ShardHeader, ShardRange, ShardSums, block_count, block_span, blocks_for, file_len,
    sums_len, sums_offset,
};
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use tokio::time::Instant;

/// Blocks read, checked and handed out at a time.
const BLOCKS_PER_PIECE: u64 = (FRAME_BYTES / SHARD_BLOCK_BYTES) as u64;
const _: () = assert!(BLOCKS_PER_PIECE > 0);

/// Verified blocks of one shard, a piece at a time, ascending and each block once.
pub struct Reader {
    store: Arc<ShardStore>,
    id: ShardId,
    hash: ShardHash,
    sums: Arc<ShardSums>,
    /// Runs of blocks still to be read.
    runs: VecDeque<Range<u64>>,
    /// Bytes read along for the next pieces, and their offset in the file.
    ahead: (u64, Bytes),
}

impl ShardStore {
    /// Opens a shard for reading the blocks that hold `ranges`. Header and sums are read and checked against `hash`
    /// here, blocks by [`Reader::next`].
    pub async fn read(
        self: &Arc<Self>,
        id: ShardId,
        hash: ShardHash,
        ranges: &[ShardRange],
    ) -> Result<Reader, StoreError> {
        let entry = self.index.get(id)?.ok_or(StoreError::Missing(id))?;
        if entry.bad {
            return Err(StoreError::Corrupt(id, "found damaged before".into()));
        }
        if entry.hash != hash {
            return Err(StoreError::Corrupt(id, "it has another hash than the catalogue records".into()));
        }
        let runs = runs_of(entry.payload_len, ranges)?;
        self.open_reader(id, hash, entry.payload_len, runs).await
    }

    /// What a shard says of itself, from its file.
    pub async fn header(&self, id: ShardId) -> Result<ShardHeader, StoreError> {
        let bytes = self.host.disk.read(&file_name(id), 0, SHARD_HEADER_BYTES).await?;
        let header = ShardHeader::decode(&bytes).map_err(|e| StoreError::Corrupt(id, e.to_string()))?;
        if header.id == id && header.cluster == self.cluster {
            return Ok(header);
        }
        Err(StoreError::Corrupt(id, "its header is another shard's".into()))
    }

    /// All blocks that hold `ranges`, in pieces of up to [`FRAME_BYTES`], and the sums to check them with.
    pub async fn get_blocks(
        self: &Arc<Self>,
        id: ShardId,
        hash: ShardHash,
        ranges: &[ShardRange],
    ) -> Result<(ShardSums, Vec<(u64, Bytes)>), StoreError> {
        let mut reader = self.read(id, hash, ranges).await?;
        let mut pieces = vec![];
        while let Some(piece) = reader.next().await? {
            pieces.push(piece);
        }
        Ok((reader.sums().clone(), pieces))
    }

    /// Reads a whole shard and compares it with `hash`, also one that was found damaged before. The outcome is
    /// remembered.
    pub async fn verify(self: &Arc<Self>, id: ShardId, hash: ShardHash) -> Result<(), StoreError> {
        let mut entry = self.index.get(id)?.ok_or(StoreError::Missing(id))?;
        if entry.payload_len == 0 {
            entry = self.ask_again(id).await?;
        }
        if entry.hash != hash {
            return Err(StoreError::Corrupt(id, "it has another hash than the catalogue records".into()));
        }
        let whole = std::iter::once(0..block_count(entry.payload_len)).collect();
        let mut reader = self.open_reader(id, hash, entry.payload_len, whole).await?;
        while reader.next().await?.is_some() {}
        self.mark(id, hash, false).await
    }

    /// A file whose header could not be read at the start may say by now what it is.
    async fn ask_again(&self, id: ShardId) -> Result<Entry, StoreError> {
        let lock = self.lock_of(id);
        let _held = lock.lock().await;
        let old = self.index.get(id)?.ok_or(StoreError::Missing(id))?;
        let len = self.host.disk.len(&file_name(id)).await?.ok_or(StoreError::Missing(id))?;
        let entry = Entry { session: old.session, ..adopt(&self.host, self.cluster, id, len).await? };
        self.index.write(vec![index::set(id, &entry)])?;
        Ok(entry)
    }

    async fn open_reader(
        self: &Arc<Self>,
        id: ShardId,
        hash: ShardHash,
        payload_len: u64,
        runs: VecDeque<Range<u64>>,
    ) -> Result<Reader, StoreError> {
        let opened = self.open_sums(id, hash, payload_len).await;
        let sums = Arc::new(self.noted(id, hash, opened).await?);
        Ok(Reader { store: self.clone(), id, hash, sums, runs, ahead: (0, Bytes::new()) })
    }

    /// The checked block sums of a shard.
    async fn open_sums(
        &self,
        id: ShardId,
        hash: ShardHash,
        payload_len: u64,
    ) -> Result<ShardSums, StoreError> {
        let opened = self.host.disk.open(&file_name(id), SHARD_HEADER_BYTES).await;
        let (len, bytes) = opened.map_err(|e| unread(id, e))?.ok_or(StoreError::Missing(id))?;
        if len != file_len(payload_len) {
            let need = file_len(payload_len);
            return Err(StoreError::Corrupt(id, format!("its file has {len} bytes instead of {need}")));
        }
        let corrupt = |what: &dyn ToString| StoreError::Corrupt(id, what.to_string());
        let header = ShardHeader::decode(&bytes).map_err(|e| corrupt(&e))?;
        if (header.id, header.hash, header.payload_len, header.cluster)
            != (id, hash, payload_len, self.cluster)
        {
            return Err(corrupt(&"its header describes another shard"));
        }
        // At most 32 bytes for each 64 KiB of a payload of bounded length.
        let bytes = self.read_at(id, sums_offset(payload_len), sums_len(payload_len) as usize).await?;
        let sums = ShardSums::decode(&bytes, payload_len).map_err(|e| corrupt(&e))?;
        if sums.root(id) != hash {
            return Err(corrupt(&"its block sums do not make its hash"));
        }
        Ok(sums)
    }

    /// Exactly `len` bytes of a shard's file.
    async fn read_at(&self, id: ShardId, offset: u64, len: usize) -> Result<Bytes, StoreError> {
        let begun = Instant::now();
        let read = self.host.disk.read(&file_name(id), offset, len).await;
        self.pace.note(len as u64, begun);
        match read {
            Ok(bytes) if bytes.len() == len => Ok(bytes),
            Ok(_) => Err(StoreError::Corrupt(id, "its file is too short".into())),
            Err(e) => Err(unread(id, e)),
        }
    }

    /// Remembers damage that a read has come upon, so that the shard is not offered again and may be replaced.
    async fn noted<T>(
        &self,
        id: ShardId,
        hash: ShardHash,
        outcome: Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &outcome {
            Err(StoreError::Corrupt(_, why)) => {
                tracing::warn!(shard = %id, why, "shard is damaged");
                self.mark(id, hash, true).await?;
            }
            Err(StoreError::Missing(_)) => {
                self.check_place().await?;
                let lock = self.lock_of(id);
                let _held = lock.lock().await;
                // It may have been put again meanwhile.
                if self.host.disk.len(&file_name(id)).await?.is_none() {
                    self.drop_entry(id)?;
                }
            }
            _ => {}
        }
        outcome
    }
}

/// What a shard is whose file could not be read.
fn unread(id: ShardId, error: io::Error) -> StoreError {
    match error {
        e if e.kind() == io::ErrorKind::NotFound => StoreError::Missing(id),
        e if is_damage(&e) => StoreError::Corrupt(id, format!("its file cannot be read: {e}")),
        e => StoreError::Io(e),
    }
}

/// Whether a read error says that the medium is damaged, and not that the process is short of something.
pub(super) fn is_damage(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
        || error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// The blocks that hold the ranges, sorted and merged so that no block is read twice.
fn runs_of(payload_len: u64, ranges: &[ShardRange]) -> Result<VecDeque<Range<u64>>, StoreError> {
    if ranges.len() > SHARD_RANGES_MAX {
        return Err(StoreError::Refused(format!("more than {SHARD_RANGES_MAX} ranges")));
    }
    let outside =
        || StoreError::Refused(format!("a range is empty or leaves the payload of {payload_len} bytes"));
    let blocks = ranges.iter().map(|range| blocks_for(payload_len, *range).ok_or_else(outside));
    let mut runs = blocks.collect::<Result<Vec<_>, _>>()?;
    runs.sort_by_key(|run| run.start);
    let mut merged = VecDeque::<Range<u64>>::new();
    for run in runs {
        match merged.back_mut() {
            Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
            _ => merged.push_back(run),
        }
    }
    Ok(merged)
}

impl Reader {
    /// Sums of all blocks of the shard; their root is the hash asked for.
    pub fn sums(&self) -> &ShardSums {
        &self.sums
    }

    /// The next checked blocks: number of the first, and their bytes, up to [`FRAME_BYTES`]. `None` at the end.
    pub async fn next(&mut self) -> Result<Option<(u64, Bytes)>, StoreError> {
        let Some(run) = self.runs.front_mut() else { return Ok(None) };
        let first = run.start;
        let (piece, rest) = (first..run.end.min(first + BLOCKS_PER_PIECE), first..run.end);
        run.start = piece.end;
        if run.is_empty() {
            self.runs.pop_front();
        }
        let checked = self.checked(piece, rest).await;
        let bytes = self.store.noted(self.id, self.hash, checked).await?;
        Ok(Some((first, bytes)))
    }

    /// Where blocks lie in the file.
    fn place(&self, blocks: Range<u64>) -> (u64, usize) {
        let offset = SHARD_HEADER_BYTES as u64 + blocks.start * SHARD_BLOCK_BYTES as u64;
        let spans = blocks.map_while(|block| block_span(self.sums.payload_len, block));
        (offset, spans.map(|span| span.len).sum::<u64>() as usize)
    }

    /// The blocks of `piece`. Where the disk likes long reads, some of the `rest` of the run are read along and kept.
    async fn blocks(&mut self, piece: Range<u64>, rest: Range<u64>) -> Result<Bytes, StoreError> {
        let (offset, len) = self.place(piece);
        let skip = offset.wrapping_sub(self.ahead.0);
        if skip.checked_add(len as u64).is_some_and(|end| end <= self.ahead.1.len() as u64) {
            return Ok(self.ahead.1.slice(skip as usize..skip as usize + len));
        }
        let stride = self.store.host.disk.stride(&file_name(self.id));
        if stride <= len {
            return self.store.read_at(self.id, offset, len).await;
        }
        let long = self.store.read_at(self.id, offset, stride.min(self.place(rest).1)).await?;
        let bytes = long.slice(..len);
        self.ahead = (offset, long);
        Ok(bytes)
    }

    async fn checked(&mut self, piece: Range<u64>, rest: Range<u64>) -> Result<Bytes, StoreError> {
        let bytes = self.blocks(piece.clone(), rest).await?;
        let (sums, checking) = (self.sums.clone(), bytes.clone());
        let bad = compute(self.store.host.compute.as_ref(), move || {
            let mut blocks = piece.zip(checking.chunks(SHARD_BLOCK_BYTES));
            blocks.find(|(no, block)| !sums.verify_block(*no as usize, block)).map(|(no, _)| no)
        });
        match bad.await {
            None => Ok(bytes),
            Some(_) if mutant(Mutant::CorruptIsGood) || mutant(Mutant::UnverifiedRead) => Ok(bytes),
            Some(no) => Err(StoreError::Corrupt(self.id, format!("block {no} does not have its sum"))),
        }
    }
}
