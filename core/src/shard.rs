//! The shard envelope on disk and on the wire: header, payload, block sums (docs/format.md, "Shard file").
//!
//! A shard describes itself so fully that a catalogue can be rebuilt from shards alone, and its hash is a root over
//! sums of its blocks, so that any range can be verified with the sum list and nothing else. This file does no I/O.

use crate::erasure::{CODEC_RS, Scheme};
use crate::id::{ClusterId, PackId, RepoId, ShardHash, ShardId, StripeId};
use crate::limits::{PACK_BYTES_MAX, SHARD_BLOCK_BYTES, SHARD_BYTES_MAX};
use std::ops::Range;

/// First bytes of every shard file.
pub const SHARD_MAGIC: [u8; 8] = *b"FSSHARD\0";
/// Version of header and file layout.
pub const SHARD_VERSION: u16 = 1;
/// Length of an encoded header.
pub const SHARD_HEADER_BYTES: usize = 176;
/// Length of one block sum.
pub const SUM_BYTES: usize = 32;

const CHECKSUM_BYTES: usize = 16;
const CHECKSUM_AT: usize = SHARD_HEADER_BYTES - CHECKSUM_BYTES;
const BLOCK: u64 = SHARD_BLOCK_BYTES as u64;

/// Bytes that are not a shard header or not the sums of a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ShardFormatError {
    /// Too short, too long or cut off.
    #[error("{what} has {have} bytes instead of {need}")]
    Length {
        /// What was read.
        what: &'static str,
        /// How long it is.
        have: usize,
        /// How long it should be.
        need: usize,
    },
    /// Something else altogether.
    #[error("not a shard: the magic bytes are wrong")]
    Magic,
    /// Written by a later release.
    #[error("shard version {0} is newer than this program (it knows {SHARD_VERSION})")]
    Version(u16),
    /// Damaged.
    #[error("shard header is damaged: its checksum is wrong")]
    Checksum,
    /// Undamaged, but no correct program writes this.
    #[error("shard header is not valid: {0}")]
    Field(&'static str),
}

/// A byte range of a shard's payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ShardRange {
    /// First byte.
    pub offset: u64,
    /// Length; at least 1.
    pub len: u64,
}

impl ShardRange {
    /// First byte after the range; `None` if there is no such number.
    pub fn end(self) -> Option<u64> {
        self.offset.checked_add(self.len)
    }
    /// Whether it is not empty and lies inside a payload of this length.
    pub fn fits(self, payload_len: u64) -> bool {
        self.len > 0 && self.end().is_some_and(|end| end <= payload_len)
    }
}

/// Everything a shard says about itself, so that a catalogue can be rebuilt from shards alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardHeader {
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Pack it codes.
    pub pack: PackId,
    /// Bytes of the pack before padding.
    pub pack_len: u64,
    /// Stripe and index.
    pub id: ShardId,
    /// k, m and spread.
    pub scheme: Scheme,
    /// Which code and matrix, see [`crate::erasure::CODEC_RS`].
    pub codec: u8,
    /// Payload bytes.
    pub payload_len: u64,
    /// Root hash over the payload.
    pub hash: ShardHash,
}

/// What all shards of one stripe have in common.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackInfo {
    /// Cluster it belongs to.
    pub cluster: ClusterId,
    /// Repository it belongs to.
    pub repo: RepoId,
    /// The pack.
    pub pack: PackId,
    /// Bytes of the pack before padding.
    pub pack_len: u64,
    /// k, m and spread.
    pub scheme: Scheme,
}

impl PackInfo {
    /// The stripe that codes this pack with [`CODEC_RS`].
    pub fn stripe(&self) -> StripeId {
        StripeId::of(self.repo, self.pack, self.scheme.k() as u8, self.scheme.m() as u8, CODEC_RS)
    }
    /// The id of its shard `index`.
    pub fn shard(&self, index: u8) -> ShardId {
        ShardId { stripe: self.stripe(), index }
    }
    /// The header of shard `index`, whose payload has this root hash.
    pub fn header(&self, index: u8, hash: ShardHash) -> ShardHeader {
        ShardHeader {
            cluster: self.cluster,
            repo: self.repo,
            pack: self.pack,
            pack_len: self.pack_len,
            id: self.shard(index),
            scheme: self.scheme,
            codec: CODEC_RS,
            payload_len: self.scheme.shard_len(self.pack_len),
            hash,
        }
    }
}

impl ShardHeader {
    /// The bytes of this header, in the one form there is.
    pub fn encode(&self) -> [u8; SHARD_HEADER_BYTES] {
        let mut out = [0u8; SHARD_HEADER_BYTES];
        out[0..8].copy_from_slice(&SHARD_MAGIC);
        out[8..10].copy_from_slice(&SHARD_VERSION.to_le_bytes());
        out[10..12].copy_from_slice(&(SHARD_HEADER_BYTES as u16).to_le_bytes());
        let (k, m, spread) = self.scheme.into();
        out[12..16].copy_from_slice(&[self.codec, k, m, spread]);
        out[16..32].copy_from_slice(self.cluster.as_bytes());
        out[32..48].copy_from_slice(self.repo.as_bytes());
        out[48..80].copy_from_slice(self.pack.as_bytes());
        out[80..88].copy_from_slice(&self.pack_len.to_le_bytes());
        out[88..96].copy_from_slice(&self.payload_len.to_le_bytes());
        out[96..112].copy_from_slice(self.id.stripe.as_bytes());
        out[112] = self.id.index;
        out[128..160].copy_from_slice(self.hash.as_bytes());
        let checksum = header_checksum(&out[..CHECKSUM_AT]);
        out[CHECKSUM_AT..].copy_from_slice(&checksum);
        out
    }

    /// Reads a header back. `bytes` must be the header and nothing more.
    pub fn decode(bytes: &[u8]) -> Result<Self, ShardFormatError> {
        let bytes = whole_header(bytes)?;
        let header = ShardHeader {
            cluster: ClusterId(field(bytes, 16)),
            repo: RepoId(field(bytes, 32)),
            pack: PackId(field(bytes, 48)),
            pack_len: u64::from_le_bytes(field(bytes, 80)),
            id: ShardId { stripe: StripeId(field(bytes, 96)), index: bytes[112] },
            scheme: Scheme::new(bytes[13], bytes[14], bytes[15])
                .map_err(|_| ShardFormatError::Field("no such k, m and spread"))?,
            codec: bytes[12],
            payload_len: u64::from_le_bytes(field(bytes, 88)),
            hash: ShardHash(field(bytes, 128)),
        };
        if bytes[113..128].iter().any(|b| *b != 0) {
            return Err(ShardFormatError::Field("reserved bytes are not zero"));
        }
        header.check()?;
        Ok(header)
    }

    /// Whether the fields agree with each other and with the limits. [`Self::decode`] has done this already.
    pub fn check(&self) -> Result<(), ShardFormatError> {
        let bad = |what| Err(ShardFormatError::Field(what));
        if self.codec != CODEC_RS {
            return bad("unknown codec");
        }
        if usize::from(self.id.index) >= self.scheme.n() {
            return bad("shard index beyond k + m");
        }
        if self.pack_len == 0 || self.pack_len > PACK_BYTES_MAX as u64 {
            return bad("pack length out of bounds");
        }
        if self.payload_len > SHARD_BYTES_MAX as u64
            || self.payload_len != self.scheme.shard_len(self.pack_len)
        {
            return bad("payload length does not follow from pack length and scheme");
        }
        let (k, m, _) = self.scheme.into();
        if self.id.stripe != StripeId::of(self.repo, self.pack, k, m, self.codec) {
            return bad("stripe id does not follow from repository, pack and scheme");
        }
        Ok(())
    }
}

/// Length, magic, version and checksum, in the order that gives the most helpful error.
fn whole_header(bytes: &[u8]) -> Result<&[u8; SHARD_HEADER_BYTES], ShardFormatError> {
    let length =
        || ShardFormatError::Length { what: "shard header", have: bytes.len(), need: SHARD_HEADER_BYTES };
    if bytes.len() < 12 {
        return Err(length());
    }
    if bytes[0..8] != SHARD_MAGIC {
        return Err(ShardFormatError::Magic);
    }
    let version = u16::from_le_bytes([bytes[8], bytes[9]]);
    if version != SHARD_VERSION {
        return Err(ShardFormatError::Version(version));
    }
    let header: &[u8; SHARD_HEADER_BYTES] = bytes.try_into().map_err(|_| length())?;
    if usize::from(u16::from_le_bytes([header[10], header[11]])) != SHARD_HEADER_BYTES {
        return Err(ShardFormatError::Field("header length"));
    }
    if header_checksum(&header[..CHECKSUM_AT]) != header[CHECKSUM_AT..] {
        return Err(ShardFormatError::Checksum);
    }
    Ok(header)
}

fn header_checksum(bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 shard header");
    hasher.update(bytes);
    field(hasher.finalize().as_bytes(), 0)
}

/// `N` bytes at `at`; only called with constants that lie inside `bytes`.
fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0u8; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

/// Number of blocks of a payload; the last may be short.
pub fn block_count(payload_len: u64) -> u64 {
    payload_len.div_ceil(BLOCK)
}

/// Where a block lies in the payload; `None` beyond its end.
pub fn block_span(payload_len: u64, block_no: u64) -> Option<ShardRange> {
    let offset = block_no.checked_mul(BLOCK).filter(|offset| *offset < payload_len)?;
    Some(ShardRange { offset, len: BLOCK.min(payload_len - offset) })
}

/// The blocks that hold a range; `None` if the range is empty or leaves the payload.
pub fn blocks_for(payload_len: u64, range: ShardRange) -> Option<Range<u64>> {
    range.fits(payload_len).then(|| range.offset / BLOCK..(range.offset + range.len).div_ceil(BLOCK))
}

/// Where the block sums begin in a shard file.
pub fn sums_offset(payload_len: u64) -> u64 {
    SHARD_HEADER_BYTES as u64 + payload_len
}

/// Length of the sum list of a payload.
pub fn sums_len(payload_len: u64) -> u64 {
    block_count(payload_len) * SUM_BYTES as u64
}

/// Length of a whole shard file.
pub fn file_len(payload_len: u64) -> u64 {
    sums_offset(payload_len) + sums_len(payload_len)
}

/// BLAKE3 of each block of a payload, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShardSums {
    /// One sum per block.
    pub sums: Vec<[u8; SUM_BYTES]>,
    /// Bytes of the payload.
    pub payload_len: u64,
}

impl ShardSums {
    /// The shard hash that these sums make. A shard's place in its stripe is part of it, so that no node can pass one
    /// shard off as another.
    pub fn root(&self, id: ShardId) -> ShardHash {
        let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 shard root");
        hasher.update(id.stripe.as_bytes()).update(&[id.index]).update(&self.payload_len.to_le_bytes());
        hasher.update(self.sums.as_flattened());
        ShardHash(*hasher.finalize().as_bytes())
    }
    /// The list as it stands in a file.
    pub fn encode(&self) -> Vec<u8> {
        self.sums.as_flattened().to_vec()
    }
    /// Reads the list of a payload of this length. Whether it is the right list only [`Self::root`] tells.
    pub fn decode(bytes: &[u8], payload_len: u64) -> Result<Self, ShardFormatError> {
        if payload_len > SHARD_BYTES_MAX as u64 {
            return Err(ShardFormatError::Field("payload length out of bounds"));
        }
        let need = sums_len(payload_len) as usize;
        if bytes.len() != need {
            return Err(ShardFormatError::Length { what: "list of block sums", have: bytes.len(), need });
        }
        let sums = bytes.chunks_exact(SUM_BYTES).map(|sum| field(sum, 0)).collect();
        Ok(ShardSums { sums, payload_len })
    }
    /// Whether `bytes` are exactly block `block_no`.
    pub fn verify_block(&self, block_no: usize, bytes: &[u8]) -> bool {
        let span = block_span(self.payload_len, block_no as u64);
        span.is_some_and(|span| span.len == bytes.len() as u64)
            && self.sums.get(block_no).is_some_and(|sum| blake3::hash(bytes) == *sum)
    }
    /// The blocks that hold a range; `None` if the range is empty or leaves the payload.
    pub fn blocks_for(&self, range: ShardRange) -> Option<Range<usize>> {
        blocks_for(self.payload_len, range).map(|blocks| blocks.start as usize..blocks.end as usize)
    }
}

/// Makes block sums of a payload that arrives in pieces of any size.
pub struct SumBuilder {
    sums: Vec<[u8; SUM_BYTES]>,
    block: blake3::Hasher,
    in_block: usize,
    payload_len: u64,
}

impl SumBuilder {
    /// Nothing seen yet.
    pub fn new() -> Self {
        SumBuilder { sums: Vec::new(), block: blake3::Hasher::new(), in_block: 0, payload_len: 0 }
    }
    /// Takes the next bytes.
    pub fn update(&mut self, mut bytes: &[u8]) {
        self.payload_len += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, rest) = bytes.split_at(bytes.len().min(SHARD_BLOCK_BYTES - self.in_block));
            bytes = rest;
            self.block.update(now);
            self.in_block += now.len();
            if self.in_block == SHARD_BLOCK_BYTES {
                self.close_block();
            }
        }
    }
    /// The sums of everything seen.
    pub fn finish(mut self) -> ShardSums {
        if self.in_block > 0 {
            self.close_block();
        }
        ShardSums { sums: self.sums, payload_len: self.payload_len }
    }

    fn close_block(&mut self) {
        self.sums.push(*self.block.finalize().as_bytes());
        self.block.reset();
        self.in_block = 0;
    }
}

impl Default for SumBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// Hash and block sums of a payload that is all in memory.
pub fn hash_shard(id: ShardId, payload: &[u8]) -> (ShardHash, ShardSums) {
    let mut builder = SumBuilder::new();
    builder.update(payload);
    let sums = builder.finish();
    (sums.root(id), sums)
}

const _: () = assert!(SHARD_BYTES_MAX.is_multiple_of(SHARD_BLOCK_BYTES));

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn info(pack_len: u64) -> PackInfo {
        PackInfo {
            cluster: ClusterId([1; 16]),
            repo: RepoId([2; 16]),
            pack: PackId([3; 32]),
            pack_len,
            scheme: Scheme::new(4, 2, 2).unwrap(),
        }
    }

    #[test]
    fn header_round_trips_and_every_flipped_bit_is_refused() {
        let header = info(1_000_000).header(5, ShardHash([9; 32]));
        let bytes = header.encode();
        assert_eq!(ShardHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(ShardHeader::decode(&flipped).is_err(), "bit {bit}");
        }
        for len in 0..bytes.len() {
            assert!(ShardHeader::decode(&bytes[..len]).is_err(), "cut at {len}");
        }
        let mut longer = bytes.to_vec();
        longer.push(0);
        assert!(ShardHeader::decode(&longer).is_err());
    }

    /// Files of version 1 lie on disks: these bytes never change.
    #[test]
    fn version_1_stays_readable() {
        let text = concat!(
            "46535348415244000100b000010402020101010101010101010101010101010102020202020202020202020202020202",
            "030303030303030303030303030303030303030303030303030303030303030340420f0000000000c0d0030000000000",
            "3861d3d1c8dc34fb517cfc3b039748dc0500000000000000000000000000000009090909090909090909090909090909",
            "0909090909090909090909090909090916201e111a9781b1db4eb3e752cbb498"
        );
        let bytes: [u8; SHARD_HEADER_BYTES] = crate::id::unhex(text).unwrap();
        assert_eq!(ShardHeader::decode(&bytes), Ok(info(1_000_000).header(5, ShardHash([9; 32]))));
        let (hash, _) = hash_shard(info(1_000_000).shard(5), &[7u8; 100_000]);
        assert_eq!(hash.to_string(), "2366cf75511a416e5645d549354e0f9fb2d7eb86b2e4df9f00e630ffa44712d2");
    }

    #[test]
    fn fields_that_disagree_are_refused_even_under_a_good_checksum() {
        let good = info(1_000_000).header(0, ShardHash([9; 32]));
        let wrong: [fn(&mut ShardHeader); 7] = [
            |h| h.codec = 2,
            |h| h.id.index = 6,
            |h| h.pack_len = 0,
            |h| h.pack_len = u64::MAX,
            |h| h.payload_len += 64,
            |h| h.repo = RepoId([7; 16]),
            |h| h.id.stripe = StripeId([7; 16]),
        ];
        for (case, spoil) in wrong.iter().enumerate() {
            let mut header = good.clone();
            spoil(&mut header);
            assert!(
                matches!(ShardHeader::decode(&header.encode()), Err(ShardFormatError::Field(_))),
                "case {case}"
            );
        }
    }

    #[test]
    fn layout_of_a_file() {
        assert_eq!(file_len(64), 176 + 64 + 32);
        assert_eq!(file_len(65_536), 176 + 65_536 + 32);
        assert_eq!(file_len(65_537), 176 + 65_537 + 64);
        assert_eq!(block_span(65_537, 1), Some(ShardRange { offset: 65_536, len: 1 }));
        assert_eq!(block_span(65_537, 2), None);
        assert_eq!(block_span(65_537, u64::MAX), None);
        assert_eq!(blocks_for(65_537, ShardRange { offset: 65_535, len: 2 }), Some(0..2));
        assert_eq!(blocks_for(65_537, ShardRange { offset: 0, len: 65_536 }), Some(0..1));
        for (offset, len) in [(0, 0), (65_537, 1), (65_536, 2), (u64::MAX, 2), (1, u64::MAX)] {
            assert_eq!(blocks_for(65_537, ShardRange { offset, len }), None);
        }
    }

    #[test]
    fn a_hash_names_its_place_and_its_bytes() {
        let id = info(1).shard(0);
        let payload = vec![7u8; 200_000];
        let (hash, sums) = hash_shard(id, &payload);
        assert_ne!(hash, hash_shard(ShardId { index: 1, ..id }, &payload).0);
        assert_ne!(hash, hash_shard(id, &payload[..199_999]).0);
        for (no, block) in payload.chunks(SHARD_BLOCK_BYTES).enumerate() {
            assert!(sums.verify_block(no, block));
            let mut bad = block.to_vec();
            bad[block.len() / 2] ^= 1;
            assert!(!sums.verify_block(no, &bad));
            assert!(!sums.verify_block(no, &block[1..]));
        }
        assert!(!sums.verify_block(4, &[]));
        let mut other = sums.clone();
        other.sums.swap(0, 3);
        assert_ne!(other.root(id), hash);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn sums_do_not_depend_on_how_the_payload_arrives(
            len in 0usize..300_000, cuts in proptest::collection::vec(1usize..100_000, 0..8)
        ) {
            let payload: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut builder = SumBuilder::new();
            let mut rest = &payload[..];
            for cut in cuts {
                let (now, later) = rest.split_at(cut.min(rest.len()));
                builder.update(now);
                rest = later;
            }
            builder.update(rest);
            let sums = builder.finish();
            prop_assert_eq!(&sums, &hash_shard(info(1).shard(0), &payload).1);
            prop_assert_eq!(sums.sums.len() as u64, block_count(len as u64));
            let bytes = sums.encode();
            prop_assert_eq!(ShardSums::decode(&bytes, len as u64), Ok(sums));
            prop_assert!(ShardSums::decode(&bytes, len as u64 + 65_536).is_err());
        }

        #[test]
        fn rubbish_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut bytes = bytes;
            prop_assert!(ShardHeader::decode(&bytes).is_err());
            let head = bytes.len().min(8);
            bytes[..head].copy_from_slice(&SHARD_MAGIC[..head]);
            prop_assert!(ShardHeader::decode(&bytes).is_err());
        }
    }
}
