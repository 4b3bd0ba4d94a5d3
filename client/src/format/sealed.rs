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
use zstd::bulk::Compressor;

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

/// Seals chunks one after another, reusing its compressor. One per compute job: making one costs about as much as
/// compressing a few KiB.
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

/// Opens a sealed chunk and checks that its plaintext has the id it was asked by.
pub fn unseal(keys: &RepoKeys, kind: PackKind, id: &ChunkId, sealed: &[u8]) -> Result<Bytes> {
    let corrupt = |why: &str| Error::corrupt(format!("chunk {}", id.short()), why);
    let mut buffer = sealed.to_vec();
    let opened = open_chunk(keys, id, kind, &mut buffer).map_err(|e| corrupt(&e.to_string()))?;
    let plain = match opened.split_first() {
        Some((&FLAG_RAW, plain)) => {
            let from = SALT_BYTES + 1;
            let len = plain.len();
            Bytes::from(buffer).slice(from..from + len)
        }
        Some((&FLAG_ZSTD, body)) => inflate(body).ok_or_else(|| corrupt("it does not decompress"))?,
        _ => return Err(corrupt("its form is unknown; a newer program wrote it")),
    };
    if keys.chunk_id(kind, &plain) != *id {
        return Err(corrupt("its contents do not match its id"));
    }
    Ok(plain)
}

fn inflate(body: &[u8]) -> Option<Bytes> {
    let (len, frame) = body.split_first_chunk()?;
    let len = u32::from_le_bytes(*len) as usize;
    if len > CHUNK_BYTES_MAX {
        return None;
    }
    let plain = zstd::bulk::decompress(frame, len).ok()?;
    (plain.len() == len).then(|| plain.into())
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
    }

    #[test]
    fn a_frame_longer_than_it_says_is_refused() {
        let mut body = 5u32.to_le_bytes().to_vec();
        body.extend(zstd::bulk::compress(&[7; 100_000], 1).unwrap());
        assert!(inflate(&body).is_none());
        body[..4].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(inflate(&body).is_none());
        assert!(inflate(b"abc").is_none());
    }
}
