//! Reed-Solomon over GF(2^8), polynomial 0x11D, systematic Vandermonde matrix: byte for byte the code of the public
//! crate `reed-solomon-erasure`, so that anyone can decode our shards without us.

mod codec;
mod kernel;

pub use codec::{Codec, ErasureError, mul_add};

use crate::limits::STRIPE_SHARDS_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Codec id in shard headers and stripe ids: plain Reed-Solomon as above.
pub const CODEC_RS: u8 = 1;

/// k data and m parity shards, and the most shards one region may hold. A value of this type is always usable.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash, Serialize, Deserialize)]
#[serde(try_from = "(u8, u8, u8)", into = "(u8, u8, u8)")]
pub struct Scheme {
    k: u8,
    m: u8,
    spread: u8,
}

/// Numbers that make no code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no code has k={k}, m={m}, spread={spread}: k, m and spread are at least 1 and k + m at most {STRIPE_SHARDS_MAX}"
)]
pub struct BadScheme {
    k: u8,
    m: u8,
    spread: u8,
}

impl Scheme {
    /// Checks once, so that nobody has to later.
    pub fn new(k: u8, m: u8, spread: u8) -> Result<Self, BadScheme> {
        let n = usize::from(k) + usize::from(m);
        if k == 0 || m == 0 || spread == 0 || n > STRIPE_SHARDS_MAX {
            return Err(BadScheme { k, m, spread });
        }
        Ok(Scheme { k, m, spread })
    }
    /// Data shards; any k of the n give the pack back.
    pub fn k(self) -> usize {
        usize::from(self.k)
    }
    /// Parity shards.
    pub fn m(self) -> usize {
        usize::from(self.m)
    }
    /// All shards.
    pub fn n(self) -> usize {
        self.k() + self.m()
    }
    /// Most shards one region may hold.
    pub fn spread(self) -> u8 {
        self.spread
    }
    /// Payload length of each shard of a pack of `pack_len` bytes: an equal share, rounded up to 64 bytes so that
    /// wide vectors stay aligned. The pack is padded with zeros to k times this.
    pub fn shard_len(self, pack_len: u64) -> u64 {
        pack_len.div_ceil(self.k() as u64).next_multiple_of(64)
    }
}

impl TryFrom<(u8, u8, u8)> for Scheme {
    type Error = BadScheme;
    fn try_from((k, m, spread): (u8, u8, u8)) -> Result<Self, BadScheme> {
        Scheme::new(k, m, spread)
    }
}
impl From<Scheme> for (u8, u8, u8) {
    fn from(s: Scheme) -> Self {
        (s.k, s.m, s.spread)
    }
}
impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}+{}", self.k, self.m)
    }
}
