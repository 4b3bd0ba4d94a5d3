//! Keys, names and seals: the home of ring, argon2, x25519-dalek and keyed BLAKE3. Nothing of this crate encrypts anywhere
//! else, and no key ever leaves the process except wrapped in a key slot.

pub mod chunk;
mod exchange;
pub mod keys;
pub mod recovery;
pub mod ring;
pub mod secret;
pub mod slot;

use crate::error::Error;

pub use chunk::{SEAL_BYTES, open_blob, open_chunk, seal_blob, seal_chunk};
pub use keys::{GearTable, MasterKey, RepoKeys};
pub use recovery::BadRecoveryKey;
pub use ring::{Epochs, is_ring};
pub use secret::{KdfParams, Secret, SlotKind};
pub use slot::{
    SlotId, SlotInfo, SlotNote, Unlocked, Unwrappable, WrongSecret, describe, open_slots, reopen, rewrap,
    slot_id, wrap,
};

/// Sealed bytes that do not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BrokenSeal {
    /// Altered, cut, of another repository, or sealed with another key.
    #[error("seal is broken: the bytes were altered or belong elsewhere")]
    Altered,
    /// Sealed in a later epoch than is known.
    #[error("it is sealed with keys of epoch {0}, which are not known here")]
    Later(u16),
}

impl BrokenSeal {
    /// The error of whoever opened this.
    pub fn of(self, what: impl Into<String>) -> Error {
        match self {
            BrokenSeal::Altered => Error::corrupt(what, self),
            BrokenSeal::Later(epoch) => Error::LaterKeys { what: what.into(), epoch },
        }
    }
}

/// Unkeyed check of bytes that nodes may read as well: the first sixteen bytes of their BLAKE3 hash.
pub fn checksum(parts: &[&[u8]]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    let mut sum = [0u8; 16];
    sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    sum
}
