//! Key slots: the master key wrapped under a passphrase. Slots come back from nodes, so their cost parameters are
//! bounded before any memory is taken or time spent: a hostile slot must not stop a client.

use super::chunk::{SALT_BYTES, SEAL_BYTES, open, seal};
use super::keys::{MasterKey, message_key, wipe};
use argon2::{Algorithm, Argon2, Params, Version};
use farshore_core::host::{Entropy, random};
use farshore_core::limits::KEY_SLOTS_MAX;

/// First byte of a slot.
const SLOT_VERSION: u8 = 1;
/// Second byte: the wrapping key comes from a passphrase by argon2id.
const KIND_PASSPHRASE: u8 = 1;
/// version, kind, m, t, p, salt: everything in front of the wrapped key; authenticated as it is.
const HEAD_BYTES: usize = 2 + 12 + 16;
const SLOT_BYTES: usize = HEAD_BYTES + SEAL_BYTES + 32;

/// Most memory a slot may ask for.
pub const KDF_MEMORY_KIB_MAX: u32 = 1 << 20;
/// Most passes a slot may ask for.
pub const KDF_PASSES_MAX: u32 = 16;
/// Most lanes a slot may ask for.
pub const KDF_LANES_MAX: u32 = 16;
/// Most work, memory times passes, in KiB: at about 1 GiB/s this is a few seconds a slot.
pub const KDF_WORK_KIB_MAX: u64 = 4 << 20;
/// Most work over all slots of a repository; a cluster that hands us 32 expensive ones is lying.
const KDF_WORK_ALL_KIB_MAX: u64 = 16 << 20;

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

    fn work_kib(self) -> u64 {
        u64::from(self.memory_kib) * u64::from(self.passes)
    }
    /// The checked form; `None` if these costs are out of bounds.
    fn checked(self) -> Option<Params> {
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

/// No slot opens with this passphrase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key slot opens with this passphrase")]
pub struct WrongPassphrase;

/// A slot taken apart, its costs within bounds.
struct Slot<'a> {
    kdf: KdfParams,
    params: Params,
    head: &'a [u8],
    salt: &'a [u8],
    wrapped: &'a [u8],
}

/// Wraps the master key under a passphrase. Slow on purpose: run it through `compute`. `None` if the costs are out of
/// bounds.
pub fn wrap(master: &MasterKey, passphrase: &[u8], kdf: KdfParams, entropy: &dyn Entropy) -> Option<Vec<u8>> {
    let params = kdf.checked()?;
    let salt: [u8; 16] = random(entropy);
    let mut slot = vec![SLOT_VERSION, KIND_PASSPHRASE];
    [kdf.memory_kib, kdf.passes, kdf.lanes].iter().for_each(|n| slot.extend_from_slice(&n.to_le_bytes()));
    slot.extend_from_slice(&salt);
    let mut key = stretch(params, passphrase, &salt)?;
    let mut wrapped = vec![0; SALT_BYTES];
    wrapped.extend_from_slice(&master.0);
    let salt = random(entropy);
    seal(&message_key(&key, &[&salt]), &slot, salt, &mut wrapped);
    wipe(&mut key);
    slot.extend_from_slice(&wrapped);
    Some(slot)
}

/// Tries each slot in turn. Slots that are malformed or too costly are passed over. Slow on purpose: run it through
/// `compute`.
pub fn open_slots(slots: &[Vec<u8>], passphrase: &[u8]) -> Result<MasterKey, WrongPassphrase> {
    let mut work = 0;
    for slot in slots.iter().take(KEY_SLOTS_MAX).filter_map(|bytes| decode(bytes)) {
        work += slot.kdf.work_kib();
        if work > KDF_WORK_ALL_KIB_MAX {
            break;
        }
        if let Some(master) = open_slot(slot, passphrase) {
            return Ok(master);
        }
    }
    Err(WrongPassphrase)
}

fn open_slot(slot: Slot<'_>, passphrase: &[u8]) -> Option<MasterKey> {
    let mut key = stretch(slot.params, passphrase, slot.salt)?;
    let mut wrapped = slot.wrapped.to_vec();
    let message = message_key(&key, &[slot.wrapped.get(..SALT_BYTES)?]);
    let master = open(&message, slot.head, &mut wrapped).ok().and_then(|plain| plain.first_chunk().copied());
    wipe(&mut key);
    wrapped.fill(0);
    master.map(MasterKey)
}

fn decode(bytes: &[u8]) -> Option<Slot<'_>> {
    if bytes.len() != SLOT_BYTES || bytes[..2] != [SLOT_VERSION, KIND_PASSPHRASE] {
        return None;
    }
    let number = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let kdf = KdfParams { memory_kib: number(2)?, passes: number(6)?, lanes: number(10)? };
    let (head, wrapped) = bytes.split_at(HEAD_BYTES);
    Some(Slot { kdf, params: kdf.checked()?, head, salt: &head[HEAD_BYTES - 16..], wrapped })
}

fn stretch(params: Params, passphrase: &[u8], salt: &[u8]) -> Option<[u8; 32]> {
    let mut key = [0u8; 32];
    let argon = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    argon.hash_password_into(passphrase, salt, &mut key).ok()?;
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::real::OsEntropy;

    fn slot(passphrase: &[u8]) -> (MasterKey, Vec<u8>) {
        let master = MasterKey::new(&OsEntropy);
        let slot = wrap(&master, passphrase, KdfParams::CHEAPEST, &OsEntropy).unwrap();
        (master, slot)
    }

    #[test]
    fn the_right_passphrase_opens_whichever_slot_it_is_in() {
        let (master, first) = slot(b"one");
        let second = wrap(&master, b"two", KdfParams::CHEAPEST, &OsEntropy).unwrap();
        let slots = vec![vec![1, 2, 3], first, second];
        assert!(open_slots(&slots, b"one") == Ok(master.clone()));
        assert!(open_slots(&slots, b"two") == Ok(master));
        assert_eq!(open_slots(&slots, b"three").unwrap_err(), WrongPassphrase);
        assert!(open_slots(&[], b"one").is_err());
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let (_, good) = slot(b"one");
        for at in (0..good.len()).filter(|at| !(2..14).contains(at)) {
            let mut bad = good.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(open_slots(&[bad], b"one").is_err(), "byte {at}");
        }
        // In the costs a low bit is flipped, so that the slot stays cheap and is refused by its seal.
        for at in [2, 6, 10] {
            let mut bad = good.clone();
            bad[at] ^= 2;
            assert!(open_slots(&[bad], b"one").is_err(), "byte {at}");
        }
    }

    #[test]
    fn hostile_costs_are_refused_before_any_work() {
        let (_, good) = slot(b"one");
        for (at, value) in
            [(2, u32::MAX), (2, 1 << 21), (6, u32::MAX), (6, 17), (10, 0xff_ffff), (2, 0), (6, 0)]
        {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(decode(&bad).is_none(), "{value} at {at}");
        }
        let mut costly = good;
        costly[2..6].copy_from_slice(&(1u32 << 20).to_le_bytes());
        costly[6..10].copy_from_slice(&16u32.to_le_bytes());
        assert!(decode(&costly).is_none(), "each is in bounds, but not their product");
        assert!(
            wrap(&MasterKey([0; 32]), b"x", KdfParams { passes: 99, ..KdfParams::default() }, &OsEntropy)
                .is_none()
        );
    }
}
