//! A repository's own settings, drawn up once and sealed: how it cuts, packs and compresses. They are stored rather than
//! compiled in because cutting otherwise would find nothing of what is already there.

use super::sealed::Compression;
use crate::crypto::{RepoKeys, open_blob, seal_blob};
use crate::error::{Error, Result};
use farshore_core::host::Entropy;
use farshore_core::limits::{CHUNK_BYTES_MAX, PACK_BYTES_DEFAULT, PACK_BYTES_MAX};
use serde::{Deserialize, Serialize};

const CONFIG_VERSION: u8 = 1;
const PURPOSE: &[u8] = b"config";

/// Sizes between which the chunker cuts, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChunkSizes {
    /// No cut before this; files up to it are one chunk.
    pub min: u32,
    /// Where the cut becomes likely; a power of two.
    pub mean: u32,
    /// A cut at the latest here.
    pub max: u32,
}

/// Settings of a repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RepoConfig {
    /// Sizes of data chunks.
    pub chunks: ChunkSizes,
    /// Size at which a pack is closed, in bytes.
    pub pack_bytes: u32,
    /// Compression level, 0 for `auto`.
    pub zstd_level: u8,
}

impl Default for RepoConfig {
    fn default() -> Self {
        RepoConfig {
            chunks: ChunkSizes { min: 256 << 10, mean: 1 << 20, max: 4 << 20 },
            pack_bytes: PACK_BYTES_DEFAULT as u32,
            zstd_level: 0,
        }
    }
}

impl RepoConfig {
    /// How chunks are compressed unless the caller says otherwise.
    pub fn compression(&self) -> Compression {
        match self.zstd_level {
            0 => Compression::Auto,
            level => Compression::Level(level),
        }
    }
    fn is_sound(&self) -> bool {
        let ChunkSizes { min, mean, max } = self.chunks;
        64 <= min
            && min < mean
            && mean < max
            && mean.is_power_of_two()
            && max as usize <= CHUNK_BYTES_MAX / 2
            && (64 << 10..=PACK_BYTES_MAX - CHUNK_BYTES_MAX).contains(&(self.pack_bytes as usize))
            && self.zstd_level <= 19
    }
    /// Seals it for the repository's record.
    pub fn seal(&self, keys: &RepoKeys, entropy: &dyn Entropy) -> Vec<u8> {
        let mut plain = vec![CONFIG_VERSION];
        plain.extend(postcard::to_stdvec(self).expect("plain data always encodes"));
        seal_blob(keys, entropy, PURPOSE, &plain)
    }
    /// Opens the repository's settings and checks that they make sense.
    pub fn open(keys: &RepoKeys, sealed: &[u8]) -> Result<Self> {
        let corrupt = |why: &str| Error::corrupt("configuration of the repository", why);
        let plain = open_blob(keys, PURPOSE, sealed).map_err(|e| corrupt(&e.to_string()))?;
        let Some((&CONFIG_VERSION, rest)) = plain.split_first() else {
            return Err(corrupt("its version is unknown; a newer program wrote it"));
        };
        let config: Self = postcard::from_bytes(rest).map_err(|_| corrupt("it does not decode"))?;
        if config.is_sound() { Ok(config) } else { Err(corrupt("its sizes make no sense")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use farshore_core::host::real::OsEntropy;
    use farshore_core::id::RepoId;

    #[test]
    fn opens_again_and_refuses_altered_or_senseless_settings() {
        let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
        let config = RepoConfig::default();
        let sealed = config.seal(&keys, &OsEntropy);
        assert_eq!(RepoConfig::open(&keys, &sealed).unwrap(), config);
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 1;
            assert!(RepoConfig::open(&keys, &bad).is_err(), "byte {at}");
        }
        let senseless = RepoConfig { chunks: ChunkSizes { min: 2, mean: 1, max: 0 }, ..config };
        assert!(RepoConfig::open(&keys, &senseless.seal(&keys, &OsEntropy)).is_err());
    }
}
