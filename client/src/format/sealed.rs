//! A sealed chunk: compressed if that helps, then encrypted. The home of zstd.
//!
//! ```text
//! salt 16 | AES-256-GCM( flag 1 | body ) | tag 16
//! flag 0: body is the plaintext
//! flag 1: body is plaintext length u32 LE, then one zstd frame
//! ```

use crate::crypto::chunk::SALT_BYTES;
use crate::crypto::{RepoKeys, open_chunk, seal_chunk};
use crate::error::{Error, Result};
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::id::ChunkId;
use farshore_core::limits::CHUNK_BYTES_MAX;
use zstd::bulk::{Compressor, Decompressor};

const FLAG_RAW: u8 = 0;
const FLAG_ZSTD: u8 = 1;
/// In front of the body inside the seal of a compressed chunk: flag and length.
const ZSTD_HEAD: usize = 5;
/// How much of a chunk is tried before the whole is compressed.
const SAMPLE_BYTES: usize = 16 << 10;
/// Level for the sample: the fastest tells as well as any whether bytes are already compressed.
const SAMPLE_LEVEL: i32 = 1;

/// How chunks are compressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Compression {
    /// zstd level 3, but chunks whose first 16 KiB do not shrink below 95 % are kept as they are.
    #[default]
    Auto,
    /// Never.
    Off,
    /// zstd at this level (1 to 19), always tried.
    Level(u8),
}

/// Seals chunks one after another, reusing its compressors and its memory: making one costs more than sealing a small
/// chunk does.
pub struct Sealer {
    mode: Compression,
    full: Compressor<'static>,
    sample: Compressor<'static>,
    scratch: Vec<u8>,
}

impl Sealer {
    /// A sealer for this mode.
    pub fn new(mode: Compression) -> Self {
        let level = match mode {
            Compression::Level(level) => i32::from(level.clamp(1, 19)),
            _ => 3,
        };
        let compressor = |level| Compressor::new(level).expect("every level from 1 to 19 exists");
        Sealer { mode, full: compressor(level), sample: compressor(SAMPLE_LEVEL), scratch: Vec::new() }
    }

    /// Seals one chunk. `salt` must be fresh randomness.
    pub fn seal(
        &mut self,
        keys: &RepoKeys,
        kind: PackKind,
        id: &ChunkId,
        plain: &[u8],
        salt: [u8; SALT_BYTES],
    ) -> Vec<u8> {
        let mut buffer = if self.compress(plain) {
            let mut buffer = front(FLAG_ZSTD, ZSTD_HEAD + self.scratch.len());
            let len = u32::try_from(plain.len()).expect("a chunk is at most CHUNK_BYTES_MAX long");
            buffer.extend_from_slice(&len.to_le_bytes());
            buffer.extend_from_slice(&self.scratch);
            buffer
        } else {
            let mut buffer = front(FLAG_RAW, 1 + plain.len());
            buffer.extend_from_slice(plain);
            buffer
        };
        seal_chunk(keys, id, kind, salt, &mut buffer);
        buffer
    }

    /// Whether `scratch` now holds a compressed form worth keeping.
    fn compress(&mut self, plain: &[u8]) -> bool {
        if self.mode == Compression::Off || (self.mode == Compression::Auto && self.is_dense(plain)) {
            return false;
        }
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let len = self.full.compress_to_buffer(plain, &mut self.scratch);
        len.is_ok_and(|len| len + ZSTD_HEAD < plain.len() + 1)
    }

    fn is_dense(&mut self, plain: &[u8]) -> bool {
        let Some(sample) = plain.get(..SAMPLE_BYTES) else { return false };
        self.scratch.clear();
        self.scratch.reserve(zstd::zstd_safe::compress_bound(sample.len()));
        let len = self.sample.compress_to_buffer(sample, &mut self.scratch);
        len.map_or(true, |len| len * 100 >= sample.len() * 95)
    }
}

/// Room for the salt, then the flag; the tag fits without growing.
fn front(flag: u8, body: usize) -> Vec<u8> {
    let mut buffer = Vec::with_capacity(crate::crypto::SEAL_BYTES + body);
    buffer.resize(SALT_BYTES, 0);
    buffer.push(flag);
    buffer
}

/// Opens sealed chunks one after another, reusing its memory and its decompressor.
pub struct Opener {
    zstd: Decompressor<'static>,
    /// The chunk in hand, decrypted where it lies.
    scratch: Vec<u8>,
    /// Its plaintext, if that is only checked.
    plain: Vec<u8>,
}

/// What a seal holds.
enum Body<'a> {
    Raw(&'a [u8]),
    /// Length of the plaintext, and the frame that should make it.
    Zstd(usize, &'a [u8]),
}

impl Opener {
    /// An opener that has seen nothing yet.
    pub fn new() -> Self {
        let zstd = Decompressor::new().expect("a decompressor without a dictionary can always be made");
        Opener { zstd, scratch: Vec::new(), plain: Vec::new() }
    }

    /// Opens a sealed chunk and checks that its plaintext has the id it was asked by.
    pub fn open(&mut self, keys: &RepoKeys, kind: PackKind, id: &ChunkId, sealed: &[u8]) -> Result<Bytes> {
        let plain = match decrypt(&mut self.scratch, keys, kind, id, sealed)? {
            Body::Raw(plain) => Bytes::copy_from_slice(plain),
            Body::Zstd(len, frame) => {
                let plain = self.zstd.decompress(frame, len).ok().filter(|plain| plain.len() == len);
                plain.ok_or_else(|| corrupt(id, "it does not decompress"))?.into()
            }
        };
        check_name(keys, kind, id, &plain)?;
        Ok(plain)
    }

    /// Does everything that [`Self::open`] does but hand out the plaintext, and so takes no new memory for it.
    pub fn check(&mut self, keys: &RepoKeys, kind: PackKind, id: &ChunkId, sealed: &[u8]) -> Result<()> {
        match decrypt(&mut self.scratch, keys, kind, id, sealed)? {
            Body::Raw(plain) => check_name(keys, kind, id, plain),
            Body::Zstd(len, frame) => {
                self.plain.clear();
                self.plain.reserve(len);
                let done = self.zstd.decompress_to_buffer(frame, &mut self.plain);
                if !done.is_ok_and(|done| done == len) {
                    return Err(corrupt(id, "it does not decompress"));
                }
                check_name(keys, kind, id, &self.plain)
            }
        }
    }
}

impl Default for Opener {
    fn default() -> Self {
        Self::new()
    }
}

/// [`Opener::open`] for a single chunk.
pub fn unseal(keys: &RepoKeys, kind: PackKind, id: &ChunkId, sealed: &[u8]) -> Result<Bytes> {
    Opener::new().open(keys, kind, id, sealed)
}

fn corrupt(id: &ChunkId, why: &str) -> Error {
    Error::corrupt(format!("chunk {}", id.short()), why)
}

/// Decrypts into `scratch`, whose capacity outlives the chunk. A frame may not claim more than a chunk may hold.
fn decrypt<'a>(
    scratch: &'a mut Vec<u8>,
    keys: &RepoKeys,
    kind: PackKind,
    id: &ChunkId,
    sealed: &[u8],
) -> Result<Body<'a>> {
    let opened = open_chunk(keys, id, kind, sealed, scratch);
    let opened = opened.map_err(|broken| broken.of(format!("chunk {}", id.short())))?;
    match opened.split_first() {
        Some((&FLAG_RAW, plain)) => Ok(Body::Raw(plain)),
        Some((&FLAG_ZSTD, body)) => body
            .split_first_chunk()
            .map(|(len, frame)| (u32::from_le_bytes(*len) as usize, frame))
            .filter(|(len, _)| *len <= CHUNK_BYTES_MAX)
            .map(|(len, frame)| Body::Zstd(len, frame))
            .ok_or_else(|| corrupt(id, "its length is impossible")),
        _ => Err(corrupt(id, "its form is unknown; a newer program wrote it")),
    }
}

fn check_name(keys: &RepoKeys, kind: PackKind, id: &ChunkId, plain: &[u8]) -> Result<()> {
    match keys.chunk_id(kind, plain) == *id {
        true => Ok(()),
        false => Err(corrupt(id, "its contents do not match its id")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use farshore_core::host::real::OsEntropy;
    use farshore_core::id::RepoId;
    use proptest::prelude::*;

    fn keys() -> RepoKeys {
        MasterKey::new(&OsEntropy).keys(RepoId([1; 16]))
    }

    fn round_trip(keys: &RepoKeys, mode: Compression, plain: &[u8]) -> usize {
        let id = keys.chunk_id(PackKind::Tree, plain);
        let sealed = Sealer::new(mode).seal(keys, PackKind::Tree, &id, plain, [3; 16]);
        assert_eq!(unseal(keys, PackKind::Tree, &id, &sealed).unwrap(), plain);
        Opener::new().check(keys, PackKind::Tree, &id, &sealed).unwrap();
        sealed.len()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn opens_again_in_every_mode(seed: Vec<u8>, times in 1usize..300) {
            let (keys, plain) = (keys(), seed.repeat(times));
            for mode in [Compression::Auto, Compression::Off, Compression::Level(1)] {
                prop_assert!(round_trip(&keys, mode, &plain) <= plain.len() + 33);
            }
        }
    }

    #[test]
    fn compresses_text_and_leaves_noise() {
        let keys = keys();
        assert!(round_trip(&keys, Compression::Auto, &b"all work and no play ".repeat(5_000)) < 2_000);
        let mut noise = vec![0; 100_000];
        farshore_core::host::Entropy::fill(&OsEntropy, &mut noise);
        assert_eq!(round_trip(&keys, Compression::Auto, &noise), noise.len() + 33);
        assert_eq!(round_trip(&keys, Compression::Level(3), &noise), noise.len() + 33);
        assert_eq!(round_trip(&keys, Compression::Auto, b""), 33);
    }

    #[test]
    fn a_chunk_under_a_false_name_is_refused() {
        let (keys, wrong) = (keys(), ChunkId([5; 32]));
        let sealed = Sealer::new(Compression::Off).seal(&keys, PackKind::Data, &wrong, b"abc", [3; 16]);
        assert!(unseal(&keys, PackKind::Data, &wrong, &sealed).is_err(), "the seal is good, the name is not");
        assert!(Opener::new().check(&keys, PackKind::Data, &wrong, &sealed).is_err());
    }

    #[test]
    fn a_frame_longer_than_it_says_is_refused() {
        let (keys, plain) = (keys(), [7u8; 100_000]);
        let id = keys.chunk_id(PackKind::Data, &plain);
        let frame = zstd::bulk::compress(&plain, 1).unwrap();
        let mut opener = Opener::new();
        let mut outcome = |len: u32, frame: &[u8]| {
            let mut sealed = front(FLAG_ZSTD, 4 + frame.len());
            sealed.extend_from_slice(&len.to_le_bytes());
            sealed.extend_from_slice(frame);
            seal_chunk(&keys, &id, PackKind::Data, [3; 16], &mut sealed);
            let opened = opener.open(&keys, PackKind::Data, &id, &sealed).is_ok();
            assert_eq!(opened, opener.check(&keys, PackKind::Data, &id, &sealed).is_ok());
            opened
        };
        assert!(outcome(100_000, &frame));
        for len in [0, 5, 99_999, 100_001, u32::MAX] {
            assert!(!outcome(len, &frame), "{len}");
        }
        assert!(!outcome(100_000, b"abc"));
        assert!(outcome(100_000, &frame), "what was refused leaves no trace");
    }
}
