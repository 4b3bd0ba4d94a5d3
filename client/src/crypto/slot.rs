//! Key slots: the root key of a repository, wrapped once for each secret that opens it. What a slot says of itself (who made
//! it, where, when) is sealed under the root key, so that nodes neither read nor forge it. docs/format.md draws it.
//!
//! A slot also has a public key, whose private half follows from its secret: whoever holds the root key can wrap another one
//! for the slot without knowing its secret.

use super::chunk::{SALT_BYTES, SEAL_BYTES, open, seal};
use super::exchange;
use super::keys::{MasterKey, message_key, wipe};
use super::ring::is_ring;
use super::secret::{KdfParams, Secret, SlotKey, SlotKind};
use farshore_core::host::{Entropy, random};
use farshore_core::id::{RepoId, hex};
use farshore_core::limits::{KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX};
use serde::{Deserialize, Serialize};
use std::fmt;

/// First byte of the slots that releases before feature level 5 wrote. They open for ever.
const VERSION_1: u8 = 1;
/// First byte of a slot of today.
const VERSION: u8 = 2;
/// version, kind, costs, salt: everything in front of the wrapped key in version 1.
const HEAD_1_BYTES: usize = 2 + 12 + 16;
/// In version 2 the public key follows.
const HEAD_BYTES: usize = HEAD_1_BYTES + 32;
/// A root key, sealed.
const WRAPPED_BYTES: usize = SEAL_BYTES + 32;
/// Version byte of a note inside its seal.
const NOTE_VERSION: u8 = 1;
/// Longest user or host in a note, in bytes: both fit a slot with room to spare.
pub const NOTE_NAME_BYTES_MAX: usize = 512;
/// Most work over all slots of a repository, memory times passes in KiB; a cluster that hands us 32 expensive ones is lying.
const KDF_WORK_ALL_KIB_MAX: u64 = 16 << 20;

const _: () = assert!(
    HEAD_BYTES + 1 + 32 + WRAPPED_BYTES + SEAL_BYTES + 32 + 2 * NOTE_NAME_BYTES_MAX <= KEY_SLOT_BYTES_MAX
);

/// No slot opens with this secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no key slot opens with it")]
pub struct WrongSecret;

/// Names a slot for as long as it lives, also when another root key is wrapped in it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SlotId([u8; 4]);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

/// What a slot says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SlotNote {
    /// Who made it, or for whom.
    pub user: String,
    /// On which host, or for which.
    pub host: String,
    /// Client's clock when it was made, Unix milliseconds.
    pub created_ms: u64,
}

/// A slot, as far as it can be understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotInfo {
    /// Its name.
    pub id: SlotId,
    /// What opens it; `None` if a later release wrote it.
    pub kind: Option<SlotKind>,
    /// What it says of itself; slots of version 1 say nothing.
    pub note: Option<SlotNote>,
    /// Whether the repository's keys vouch for it. Slots of version 1 cannot show it; one of version 2 that does not was not
    /// written by anybody who has the keys.
    pub vouched: Option<bool>,
}

/// What opening a slot gives.
#[derive(Clone)]
pub struct Unlocked {
    /// What the slot wraps.
    pub root: MasterKey,
    /// Which slot it was.
    pub slot: SlotId,
    pub(super) key: SlotKey,
}

impl fmt::Debug for Unlocked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Unlocked({})", self.slot)
    }
}

/// A slot taken apart.
#[derive(Clone, Copy)]
pub(super) struct Slot<'a> {
    version: u8,
    pub(super) kind: SlotKind,
    kdf: KdfParams,
    salt: &'a [u8; 16],
    /// Version 2 only.
    public: Option<&'a [u8; 32]>,
    /// What is authenticated with the wrapped key.
    head: &'a [u8],
    wrapped: Wrapped<'a>,
    /// Everything in front of the note, and the note.
    note: (&'a [u8], &'a [u8]),
}

/// How the root key is wrapped.
#[derive(Clone, Copy)]
enum Wrapped<'a> {
    /// Under the slot's own key.
    Own(&'a [u8]),
    /// For the slot's public key: that of the exchange, and the sealed key.
    For(&'a [u8; 32], &'a [u8]),
}

const FORM_OWN: u8 = 1;
const FORM_FOR: u8 = 2;

/// Wraps a root key under a secret. Slow on purpose with a passphrase: run it through `compute`. `None` if the costs are out
/// of bounds or a name in the note is too long.
pub fn wrap(
    repo: RepoId,
    root: &MasterKey,
    secret: &Secret,
    kdf: KdfParams,
    note: &SlotNote,
    entropy: &dyn Entropy,
) -> Option<Vec<u8>> {
    let kdf = if secret.kind() == SlotKind::Passphrase { kdf } else { KdfParams::NONE };
    let salt: [u8; 16] = random(entropy);
    let key = secret.slot_key(kdf, &salt)?;
    let head = head_of(secret.kind(), kdf, &salt, &key);
    wrap_own(repo, root, &key, head, note, entropy)
}

fn head_of(kind: SlotKind, kdf: KdfParams, salt: &[u8; 16], key: &SlotKey) -> Vec<u8> {
    let mut head = vec![VERSION, kind.byte()];
    [kdf.memory_kib, kdf.passes, kdf.lanes].iter().for_each(|n| head.extend_from_slice(&n.to_le_bytes()));
    head.extend_from_slice(salt);
    head.extend_from_slice(&exchange::public_of(&key.0));
    head
}

fn wrap_own(
    repo: RepoId,
    root: &MasterKey,
    key: &SlotKey,
    mut slot: Vec<u8>,
    note: &SlotNote,
    entropy: &dyn Entropy,
) -> Option<Vec<u8>> {
    let mut own = blake3::derive_key("farshore 2026 key slot wrap", &key.0);
    let wrapped = seal_root(&own, &head_aad(repo, &slot), root, entropy);
    wipe(&mut own);
    slot.push(FORM_OWN);
    slot.extend_from_slice(&wrapped);
    seal_note(repo, root, slot, note, entropy)
}

fn head_aad(repo: RepoId, head: &[u8]) -> Vec<u8> {
    [repo.as_bytes(), b"key slot".as_slice(), head].concat()
}

fn seal_root(key: &[u8; 32], aad: &[u8], root: &MasterKey, entropy: &dyn Entropy) -> Vec<u8> {
    let salt = random(entropy);
    let mut wrapped = vec![0; SALT_BYTES];
    // Room for the tag: growing would leave a copy of the key behind.
    wrapped.reserve_exact(32 + 16);
    wrapped.extend_from_slice(&root.0);
    seal(&message_key(key, &[&salt]), aad, salt, &mut wrapped);
    wrapped
}

fn seal_note(
    repo: RepoId,
    root: &MasterKey,
    mut slot: Vec<u8>,
    note: &SlotNote,
    entropy: &dyn Entropy,
) -> Option<Vec<u8>> {
    if note.user.len() > NOTE_NAME_BYTES_MAX || note.host.len() > NOTE_NAME_BYTES_MAX {
        return None;
    }
    let mut sealed = vec![0; SALT_BYTES];
    sealed.push(NOTE_VERSION);
    sealed.extend(postcard::to_stdvec(note).expect("plain data always encodes"));
    let salt: [u8; SALT_BYTES] = random(entropy);
    seal(&message_key(&note_key(root), &[&salt]), &note_aad(repo, &slot), salt, &mut sealed);
    slot.extend_from_slice(&sealed);
    Some(slot)
}

fn note_key(root: &MasterKey) -> [u8; 32] {
    blake3::derive_key("farshore 2026 key slot note", &root.0)
}

fn note_aad(repo: RepoId, front: &[u8]) -> Vec<u8> {
    [repo.as_bytes(), b"key slot note".as_slice(), front].concat()
}

fn open_note(repo: RepoId, root: &MasterKey, slot: &Slot<'_>) -> Option<SlotNote> {
    let (front, sealed) = slot.note;
    let mut buffer = sealed.to_vec();
    let message = message_key(&note_key(root), &[sealed.get(..SALT_BYTES)?]);
    let plain = open(&message, &note_aad(repo, front), &mut buffer).ok()?;
    let (&NOTE_VERSION, note) = plain.split_first()? else { return None };
    postcard::from_bytes(note).ok()
}

/// What is known of each slot to somebody who has the root key.
pub fn describe(repo: RepoId, root: &MasterKey, slots: &[Vec<u8>]) -> Vec<SlotInfo> {
    let info = |bytes: &Vec<u8>| {
        let slot = decode(bytes);
        let note = slot.as_ref().and_then(|slot| open_note(repo, root, slot));
        let vouched = slot.as_ref().filter(|slot| slot.version == VERSION).map(|_| note.is_some());
        SlotInfo { id: slot_id(bytes), kind: slot.map(|slot| slot.kind), note, vouched }
    };
    slots.iter().take(KEY_SLOTS_MAX).filter(|bytes| !is_ring(bytes)).map(info).collect()
}

/// What never changes in a slot names it: kind, costs and salt, which both versions have in the same place.
pub fn slot_id(bytes: &[u8]) -> SlotId {
    let named = if decode(bytes).is_some() { bytes.get(1..HEAD_1_BYTES) } else { None };
    let hash = blake3::derive_key("farshore 2026 key slot id", named.unwrap_or(bytes));
    let [a, b, c, d, ..] = hash;
    SlotId([a, b, c, d])
}

/// Tries each slot that this kind of secret may open. Slots that are malformed or too costly are passed over. Slow on
/// purpose: run it through `compute`.
pub fn open_slots(repo: RepoId, slots: &[Vec<u8>], secret: &Secret) -> Result<Unlocked, WrongSecret> {
    let mut work = 0;
    for bytes in slots.iter().take(KEY_SLOTS_MAX) {
        let Some(slot) = decode(bytes).filter(|slot| slot.kind == secret.kind()) else { continue };
        work += slot.kdf.work_kib();
        if work > KDF_WORK_ALL_KIB_MAX {
            break;
        }
        let Some(key) = secret.slot_key(slot.kdf, slot.salt) else { continue };
        if let Some(root) = open_slot(repo, &slot, &key) {
            return Ok(Unlocked { root, slot: slot_id(bytes), key });
        }
    }
    Err(WrongSecret)
}

fn open_slot(repo: RepoId, slot: &Slot<'_>, key: &SlotKey) -> Option<MasterKey> {
    let (mut key, aad, sealed) = match (slot.version, slot.wrapped) {
        (VERSION_1, Wrapped::Own(sealed)) => (key.0, slot.head.to_vec(), sealed),
        (_, Wrapped::Own(sealed)) => {
            (blake3::derive_key("farshore 2026 key slot wrap", &key.0), head_aad(repo, slot.head), sealed)
        }
        (_, Wrapped::For(theirs, sealed)) => {
            (exchange::open(&key.0, theirs, slot.public?)?, head_aad(repo, slot.head), sealed)
        }
    };
    let mut wrapped = sealed.to_vec();
    let message = message_key(&key, &[sealed.get(..SALT_BYTES)?]);
    let root = open(&message, &aad, &mut wrapped).ok().and_then(|plain| plain.first_chunk().copied());
    wipe(&mut key);
    wrapped.fill(0);
    std::hint::black_box(&mut wrapped);
    root.map(MasterKey)
}

/// Why the slots of a repository cannot be given another root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unwrappable {
    /// A slot of version 1 has no public key.
    #[error(
        "key {0} has the form of an earlier release, which only its own secret can renew: have its holder run `farshore key \
         passwd`, or remove it"
    )]
    Old(SlotId),
    /// Nobody who has the keys wrote this slot, or it was altered.
    #[error("key {0} was not made by anybody who has the keys of this repository, or was altered: remove it")]
    Foreign(SlotId),
    /// A later release wrote this slot.
    #[error("key {0} is of a later release: use that one")]
    Newer(SlotId),
    /// The slot that was opened is not there.
    #[error("the key in use is not a key of the repository any more")]
    Gone,
}

/// The slots with another root key in them. That of `by` is wrapped under its own secret, the others for their public keys.
/// `note` is for a slot that says nothing of itself.
pub fn rewrap(
    repo: RepoId,
    slots: &[Vec<u8>],
    by: &Unlocked,
    root: &MasterKey,
    note: &SlotNote,
    entropy: &dyn Entropy,
) -> Result<Vec<Vec<u8>>, Unwrappable> {
    if !slots.iter().any(|bytes| slot_id(bytes) == by.slot) {
        return Err(Unwrappable::Gone);
    }
    let again = |bytes: &Vec<u8>| {
        let id = slot_id(bytes);
        let slot = decode(bytes).ok_or(Unwrappable::Newer(id))?;
        let known = open_note(repo, &by.root, &slot);
        if slot.version == VERSION && known.is_none() {
            return Err(Unwrappable::Foreign(id));
        }
        if id == by.slot {
            let head = head_of(slot.kind, slot.kdf, slot.salt, &by.key);
            let note = known.as_ref().unwrap_or(note);
            return wrap_own(repo, root, &by.key, head, note, entropy).ok_or(Unwrappable::Foreign(id));
        }
        let (note, public) = known.zip(slot.public).ok_or(Unwrappable::Old(id))?;
        let foreign = Unwrappable::Foreign(id);
        let (mut key, ours) = exchange::wrap(random(entropy), public).ok_or(foreign)?;
        let wrapped = seal_root(&key, &head_aad(repo, slot.head), root, entropy);
        wipe(&mut key);
        let front = [slot.head, &[FORM_FOR], ours.as_slice(), &wrapped].concat();
        seal_note(repo, root, front, &note, entropy).ok_or(foreign)
    };
    slots.iter().map(again).collect()
}

/// Opens the slot that was opened before, whatever root key is in it now.
pub fn reopen(repo: RepoId, slots: &[Vec<u8>], before: &Unlocked) -> Result<Unlocked, WrongSecret> {
    let own = slots.iter().take(KEY_SLOTS_MAX).filter(|bytes| slot_id(bytes) == before.slot);
    let mut opened = own.filter_map(|bytes| open_slot(repo, &decode(bytes)?, &before.key));
    let root = opened.next().ok_or(WrongSecret)?;
    Ok(Unlocked { root, ..before.clone() })
}

/// A slot whose costs are in bounds and whose parts have their length.
pub(super) fn decode(bytes: &[u8]) -> Option<Slot<'_>> {
    let (version, kind) = (*bytes.first()?, SlotKind::of(*bytes.get(1)?)?);
    let number = |at: usize| bytes.get(at..)?.first_chunk().copied().map(u32::from_le_bytes);
    let kdf = KdfParams { memory_kib: number(2)?, passes: number(6)?, lanes: number(10)? };
    match kind {
        SlotKind::Passphrase if kdf.checked().is_some() => {}
        SlotKind::KeyFile | SlotKind::Recovery if kdf == KdfParams::NONE => {}
        _ => return None,
    }
    let salt = bytes.get(HEAD_1_BYTES - 16..)?.first_chunk()?;
    if version == VERSION_1 && kind == SlotKind::Passphrase {
        let (head, sealed) = bytes.split_at_checked(HEAD_1_BYTES)?;
        let whole = sealed.len() == WRAPPED_BYTES;
        let (wrapped, note) = (Wrapped::Own(sealed), (head, &[][..]));
        return whole.then_some(Slot { version, kind, kdf, salt, public: None, head, wrapped, note });
    }
    let (head, rest) = bytes.split_at_checked(HEAD_BYTES)?;
    let (form, rest) = rest.split_first()?;
    let wrapped = match (version, *form) {
        (VERSION, FORM_OWN) => Wrapped::Own(rest.get(..WRAPPED_BYTES)?),
        (VERSION, FORM_FOR) => {
            let (theirs, sealed) = rest.split_first_chunk()?;
            Wrapped::For(theirs, sealed.get(..WRAPPED_BYTES)?)
        }
        _ => return None,
    };
    let exchange = if *form == FORM_FOR { 32 } else { 0 };
    let note = bytes.split_at_checked(HEAD_BYTES + 1 + exchange + WRAPPED_BYTES)?;
    let public = head.get(HEAD_1_BYTES..)?.first_chunk();
    Some(Slot { version, kind, kdf, salt, public, head, wrapped, note })
}

/// A slot as releases before feature level 5 wrote it.
#[cfg(test)]
pub(crate) fn wrap_1(root: &MasterKey, passphrase: &[u8], kdf: KdfParams, entropy: &dyn Entropy) -> Vec<u8> {
    let salt: [u8; 16] = random(entropy);
    let mut slot = vec![VERSION_1, SlotKind::Passphrase.byte()];
    [kdf.memory_kib, kdf.passes, kdf.lanes].iter().for_each(|n| slot.extend_from_slice(&n.to_le_bytes()));
    slot.extend_from_slice(&salt);
    let key = Secret::passphrase(passphrase).slot_key(kdf, &salt).unwrap();
    let wrapped = seal_root(&key.0, &slot, root, entropy);
    slot.extend_from_slice(&wrapped);
    slot
}

#[cfg(test)]
#[path = "slot_test.rs"]
mod tests;
