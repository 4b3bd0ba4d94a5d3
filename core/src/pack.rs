//! A pack: sealed chunks back to back, the table that says where each lies, and a trailer. The table holds no secret
//! that the catalogue does not have, so a catalogue can be rebuilt from packs without keys.
//!
//! ```text
//! sealed chunks … | table: count × ( id 32 | offset u32 | len u32 ) | trailer
//! trailer, 40 bytes: magic "FarPack\0" 8 | version 1 | kind 1 | zero 2 | count u32 | table length u32 | times 4
//!                    | first 16 bytes of BLAKE3( table | trailer up to here )
//! ```
//! All numbers are little-endian. `times` is 0 in packs of clients. Whoever packs the same chunks again writes another
//! number, so that the new pack has an id of its own.

use crate::catalogue::{ChunkSpan, PackKind};
use crate::id::{ChunkId, PackId};
use crate::limits::{PACK_BYTES_MAX, PACK_CHUNKS_MAX};
use bytes::Bytes;

const MAGIC: &[u8; 8] = b"FarPack\0";
const PACK_VERSION: u8 = 1;
/// Bytes of one row of the table.
pub const ROW_BYTES: usize = 40;
/// Bytes of the trailer.
pub const TRAILER_BYTES: usize = 40;
/// The checksum covers the trailer up to here.
const SUM_AT: usize = TRAILER_BYTES - 16;

/// Bytes that are not the end of a pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("chunk table of a pack fails its checks")]
pub struct BadPackTable;

/// A closed pack.
#[derive(Clone, Debug)]
pub struct Pack {
    /// Hash of its bytes.
    pub id: PackId,
    /// What it is filled with.
    pub kind: PackKind,
    /// Everything, table and trailer included.
    pub bytes: Bytes,
    /// Its table.
    pub chunks: Vec<ChunkSpan>,
}

impl Pack {
    /// The memory of its bytes, if nobody else holds any of them.
    pub fn into_memory(self) -> Option<Vec<u8>> {
        let mut bytes = self.bytes.try_into_mut().ok()?;
        // What is there would be copied.
        bytes.clear();
        Some(bytes.into())
    }
}

/// A pack being filled.
#[derive(Debug)]
pub struct PackBuilder {
    kind: PackKind,
    target: usize,
    buffer: Vec<u8>,
    chunks: Vec<ChunkSpan>,
    times: u32,
}

impl PackBuilder {
    /// An empty pack that wants to be closed at about `target` bytes.
    pub fn new(kind: PackKind, target: usize) -> Self {
        PackBuilder {
            kind,
            target: target.min(PACK_BYTES_MAX),
            buffer: Vec::new(),
            chunks: Vec::new(),
            times: 0,
        }
    }
    /// The same in memory that an earlier pack no longer needs: fresh pages cost about as much as filling them.
    pub fn within(kind: PackKind, target: usize, mut memory: Vec<u8>) -> Self {
        memory.clear();
        PackBuilder { buffer: memory, ..PackBuilder::new(kind, target) }
    }
    /// What it is filled with.
    pub fn kind(&self) -> PackKind {
        self.kind
    }
    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
    /// Length it would have if closed now.
    pub fn len(&self) -> usize {
        self.buffer.len() + self.chunks.len() * ROW_BYTES + TRAILER_BYTES
    }
    /// Whether a sealed chunk of this length still fits. An empty pack takes any chunk.
    pub fn fits(&self, sealed: usize) -> bool {
        self.is_empty()
            || (self.chunks.len() < PACK_CHUNKS_MAX && self.len() + sealed + ROW_BYTES <= self.target)
    }
    /// Adds a sealed chunk.
    ///
    /// # Panics
    /// If the pack would exceed the hard limit; ask `fits` first.
    pub fn add(&mut self, id: ChunkId, sealed: &[u8]) {
        assert!(self.len() + sealed.len() + ROW_BYTES <= PACK_BYTES_MAX, "pack limit");
        if self.buffer.capacity() == 0 {
            // Pages that are never written cost nothing, while growing would copy the pack again and again.
            self.buffer.reserve_exact(self.target.max(sealed.len() + ROW_BYTES + TRAILER_BYTES));
        }
        self.chunks.push(ChunkSpan { id, offset: self.buffer.len() as u32, len: sealed.len() as u32 });
        self.buffer.extend_from_slice(sealed);
    }
    /// Makes it another pack than one of the same chunks with another number.
    pub fn set_times(&mut self, times: u32) {
        self.times = times;
    }
    /// Closes it. Hashes the whole pack: run it through `compute`.
    pub fn close(self) -> Pack {
        let PackBuilder { kind, mut buffer, chunks, times, .. } = self;
        let table_at = buffer.len();
        for span in &chunks {
            buffer.extend_from_slice(span.id.as_bytes());
            buffer.extend_from_slice(&span.offset.to_le_bytes());
            buffer.extend_from_slice(&span.len.to_le_bytes());
        }
        let table_len = (buffer.len() - table_at) as u32;
        buffer.extend_from_slice(MAGIC);
        buffer.extend_from_slice(&[PACK_VERSION, kind_byte(kind), 0, 0]);
        buffer.extend_from_slice(&(chunks.len() as u32).to_le_bytes());
        buffer.extend_from_slice(&table_len.to_le_bytes());
        buffer.extend_from_slice(&times.to_le_bytes());
        let sum = checksum(&[&buffer[table_at..]]);
        buffer.extend_from_slice(&sum);
        let bytes = Bytes::from(buffer);
        Pack { id: PackId::of(&bytes), kind, bytes, chunks }
    }
}

fn kind_byte(kind: PackKind) -> u8 {
    match kind {
        PackKind::Data => 1,
        PackKind::Tree => 2,
    }
}

fn kind_of(byte: u8) -> Option<PackKind> {
    match byte {
        1 => Some(PackKind::Data),
        2 => Some(PackKind::Tree),
        _ => None,
    }
}

/// What the end of a pack says: its kind and its table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackTable {
    /// What it is filled with.
    pub kind: PackKind,
    /// Where its chunks lie.
    pub chunks: Vec<ChunkSpan>,
}

/// Bytes of table and trailer of a pack with this many chunks; they are the last bytes of the pack.
pub fn tail_len(chunks: u32) -> u64 {
    u64::from(chunks) * ROW_BYTES as u64 + TRAILER_BYTES as u64
}

/// Reads the table from the end of a pack of `pack_len` bytes; `tail` is at least its last [`tail_len`] bytes. Every
/// span of the result lies inside the pack, and spans follow each other without gap or overlap.
pub fn read_table(tail: &[u8], pack_len: u64) -> Result<PackTable, BadPackTable> {
    parse_table(tail, pack_len).ok_or(BadPackTable)
}

/// The first sixteen bytes of a BLAKE3 hash.
fn checksum(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let mut sum = [0u8; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}

fn parse_table(tail: &[u8], pack_len: u64) -> Option<PackTable> {
    let (before, trailer) = tail.split_at_checked(tail.len().checked_sub(TRAILER_BYTES)?)?;
    let number = |at: usize| trailer.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    if trailer.get(..8)? != MAGIC || trailer[8] != PACK_VERSION {
        return None;
    }
    let kind = kind_of(trailer[9])?;
    let (count, table_len) = (number(12)? as usize, number(16)? as usize);
    if count > PACK_CHUNKS_MAX || table_len != count * ROW_BYTES {
        return None;
    }
    let table = before.get(before.len().checked_sub(table_len)?..)?;
    if checksum(&[table, &trailer[..SUM_AT]]) != trailer[SUM_AT..] {
        return None;
    }
    let chunks = table.chunks_exact(ROW_BYTES).map(parse_row).collect::<Option<Vec<_>>>()?;
    let data_len = chunks
        .iter()
        .try_fold(0u64, |at, span| (u64::from(span.offset) == at).then_some(at + u64::from(span.len)))?;
    (data_len + (table_len + TRAILER_BYTES) as u64 == pack_len).then_some(PackTable { kind, chunks })
}

fn parse_row(row: &[u8]) -> Option<ChunkSpan> {
    let (id, rest) = row.split_first_chunk::<32>()?;
    let (offset, rest) = rest.split_first_chunk::<4>()?;
    let (len, _) = rest.split_first_chunk::<4>()?;
    Some(ChunkSpan { id: ChunkId(*id), offset: u32::from_le_bytes(*offset), len: u32::from_le_bytes(*len) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pack(chunks: &[Vec<u8>]) -> Pack {
        let mut builder = PackBuilder::new(PackKind::Tree, 1 << 20);
        for (n, chunk) in chunks.iter().enumerate() {
            builder.add(ChunkId([n as u8; 32]), chunk);
        }
        let expected = builder.len();
        let pack = builder.close();
        assert_eq!(pack.bytes.len(), expected);
        pack
    }

    #[test]
    fn the_same_chunks_packed_again_are_another_pack() {
        let made = |times| {
            let mut builder = PackBuilder::new(PackKind::Data, 1 << 20);
            builder.add(ChunkId([1; 32]), b"sealed");
            builder.set_times(times);
            builder.close()
        };
        assert_ne!(made(0).id, made(7).id);
        let (bytes, len) = (made(7).bytes, made(7).bytes.len() as u64);
        assert_eq!(read_table(&bytes, len).unwrap().chunks, made(0).chunks);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn the_table_reads_back_and_every_flipped_bit_in_it_is_refused(
            chunks in proptest::collection::vec(any::<Vec<u8>>(), 0..20), at: usize, bit in 0u8..8,
        ) {
            let pack = pack(&chunks);
            let len = pack.bytes.len() as u64;
            let tail = tail_len(chunks.len() as u32) as usize;
            let table = read_table(&pack.bytes[pack.bytes.len() - tail..], len).unwrap();
            prop_assert_eq!(&table.chunks, &pack.chunks);
            prop_assert_eq!(table.kind, PackKind::Tree);
            for (span, chunk) in table.chunks.iter().zip(&chunks) {
                prop_assert_eq!(&pack.bytes[span.offset as usize..][..span.len as usize], &chunk[..]);
            }
            let mut bad = pack.bytes.to_vec();
            let at = bad.len() - 1 - at % tail;
            bad[at] ^= 1 << bit;
            prop_assert!(read_table(&bad, len).is_err());
            prop_assert!(read_table(&pack.bytes, len + 1).is_err());
        }
        #[test]
        fn rubbish_is_refused(bytes: Vec<u8>) {
            prop_assert!(read_table(&bytes, bytes.len() as u64).is_err());
        }
    }

    #[test]
    fn a_pack_is_full_at_its_target_but_takes_one_large_chunk() {
        let mut builder = PackBuilder::new(PackKind::Data, 1_000);
        assert!(builder.fits(5_000));
        builder.add(ChunkId([0; 32]), &[0; 500]);
        assert!(builder.fits(380) && !builder.fits(381));
    }
}
