//! What opens a key slot: a passphrase, a key file or a recovery key, and how each becomes the key of one slot. Slots come
//! back from nodes, so their cost parameters are bounded before any memory is taken or time spent: a hostile slot must not
//! stop a client.

use super::keys::wipe;
use super::recovery::{self, BadRecoveryKey};
use argon2::{Algorithm, Argon2, Params, Version};
use farshore_core::host::{Entropy, random};
use std::fmt;

/// Most memory a slot may ask for.
pub const KDF_MEMORY_KIB_MAX: u32 = 1 << 20;
/// Most passes a slot may ask for.
pub const KDF_PASSES_MAX: u32 = 16;
/// Most lanes a slot may ask for.
pub const KDF_LANES_MAX: u32 = 16;
/// Most work, memory times passes, in KiB: at about 1 GiB/s this is a few seconds a slot.
pub const KDF_WORK_KIB_MAX: u64 = 4 << 20;
/// Bytes of a key file.
pub const KEY_FILE_BYTES: usize = 32;

/// Costs of argon2id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KdfParams {
    /// Memory in KiB.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes.
    pub lanes: u32,
}

impl Default for KdfParams {
    /// 64 MiB and three passes: the second recommendation of RFC 9106 with one lane, since it runs on one thread.
    fn default() -> Self {
        KdfParams { memory_kib: 64 << 10, passes: 3, lanes: 1 }
    }
}

impl KdfParams {
    /// As cheap as the algorithm allows: for tests and simulated clients only.
    pub const CHEAPEST: KdfParams = KdfParams { memory_kib: 8, passes: 1, lanes: 1 };
    /// Of slots that need no stretching.
    pub(super) const NONE: KdfParams = KdfParams { memory_kib: 0, passes: 0, lanes: 0 };

    pub(super) fn work_kib(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }
    /// The checked form; `None` if these costs are out of bounds.
    pub(super) fn checked(self) -> Option<Params> {
        let bounded = self.memory_kib <= KDF_MEMORY_KIB_MAX
            && self.passes <= KDF_PASSES_MAX
            && self.lanes <= KDF_LANES_MAX
            && self.work_kib() <= KDF_WORK_KIB_MAX;
        if !bounded {
            return None;
        }
        Params::new(self.memory_kib, self.passes, self.lanes, Some(32)).ok()
    }
}

/// What kind of secret opens a slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlotKind {
    /// A passphrase, stretched by argon2id.
    Passphrase,
    /// A file of 32 random bytes.
    KeyFile,
    /// 32 random bytes on paper.
    Recovery,
}

impl SlotKind {
    /// One word, used in tables and JSON.
    pub fn word(self) -> &'static str {
        match self {
            SlotKind::Passphrase => "passphrase",
            SlotKind::KeyFile => "key-file",
            SlotKind::Recovery => "recovery",
        }
    }
    pub(super) fn byte(self) -> u8 {
        match self {
            SlotKind::Passphrase => 1,
            SlotKind::KeyFile => 2,
            SlotKind::Recovery => 3,
        }
    }
    pub(super) fn of(byte: u8) -> Option<Self> {
        [SlotKind::Passphrase, SlotKind::KeyFile, SlotKind::Recovery]
            .into_iter()
            .find(|kind| kind.byte() == byte)
    }
}

/// What opens a slot. Overwritten when dropped, as far as the language lets us.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    kind: SlotKind,
    bytes: Vec<u8>,
}

impl Secret {
    /// Something a person remembers.
    pub fn passphrase(text: impl Into<Vec<u8>>) -> Self {
        Secret { kind: SlotKind::Passphrase, bytes: text.into() }
    }
    /// What a key file holds; `None` if it is none, which its length tells.
    pub fn key_file(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == KEY_FILE_BYTES).then(|| Secret { kind: SlotKind::KeyFile, bytes: bytes.to_vec() })
    }
    /// A recovery key as it was typed from paper.
    pub fn recovery_key(typed: &str) -> Result<Self, BadRecoveryKey> {
        Ok(Secret { kind: SlotKind::Recovery, bytes: recovery::decode(typed)?.to_vec() })
    }
    /// A new key file, and what to write into it.
    pub fn new_key_file(entropy: &dyn Entropy) -> (Self, [u8; KEY_FILE_BYTES]) {
        let bytes: [u8; KEY_FILE_BYTES] = random(entropy);
        (Secret { kind: SlotKind::KeyFile, bytes: bytes.to_vec() }, bytes)
    }
    /// A new recovery key, and its groups for the paper.
    pub fn new_recovery_key(entropy: &dyn Entropy) -> (Self, Vec<String>) {
        let bytes: [u8; 32] = random(entropy);
        (Secret { kind: SlotKind::Recovery, bytes: bytes.to_vec() }, recovery::encode(&bytes))
    }
    /// What kind it is.
    pub fn kind(&self) -> SlotKind {
        self.kind
    }

    /// The key of the slot with this salt. Only what a person remembers is stretched: against 256 random bits no number of
    /// guesses helps, and whoever is recovering may sit at a small machine. `None` if the costs are out of bounds.
    pub(super) fn slot_key(&self, kdf: KdfParams, salt: &[u8; 16]) -> Option<SlotKey> {
        let mut key = SlotKey([0; 32]);
        match self.kind {
            SlotKind::Passphrase => {
                let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, kdf.checked()?);
                argon.hash_password_into(&self.bytes, salt, &mut key.0).ok()?;
            }
            SlotKind::KeyFile => key.0 = derive("farshore 2026 key file", &self.bytes, salt),
            SlotKind::Recovery => key.0 = derive("farshore 2026 recovery key", &self.bytes, salt),
        }
        Some(key)
    }
}

fn derive(context: &str, secret: &[u8], salt: &[u8; 16]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_derive_key(context);
    hasher.update(secret).update(salt);
    *hasher.finalize().as_bytes()
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({})", self.kind.word())
    }
}
impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.fill(0);
        std::hint::black_box(&mut self.bytes);
    }
}

/// What a secret and the salt of a slot make: enough to open this slot again, and no other.
#[derive(Clone)]
pub(super) struct SlotKey(pub(super) [u8; 32]);

impl Drop for SlotKey {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::real::OsEntropy;

    #[test]
    fn each_kind_makes_another_key_of_the_same_bytes_and_each_salt_as_well() {
        let bytes = [7u8; 32];
        let secrets = [
            Secret::passphrase(bytes.to_vec()),
            Secret::key_file(&bytes).unwrap(),
            Secret::recovery_key(&recovery::encode(&bytes).join(" ")).unwrap(),
        ];
        let mut keys = Vec::new();
        for secret in &secrets {
            for salt in [[1; 16], [2; 16]] {
                keys.push(secret.slot_key(KdfParams::CHEAPEST, &salt).unwrap().0);
            }
            assert!(!format!("{secret:?}").contains('7'));
        }
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 6);
    }

    #[test]
    fn a_key_file_has_32_bytes() {
        let (secret, bytes) = Secret::new_key_file(&OsEntropy);
        assert!(Secret::key_file(&bytes) == Some(secret));
        for wrong in [&[][..], &[1; 31], &[1; 33]] {
            assert!(Secret::key_file(wrong).is_none());
        }
    }
}
