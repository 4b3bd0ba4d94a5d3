//! Sealing: AES-256-GCM with a key of its own for every message, derived from a random salt, so that no nonce can
//! ever repeat under one key however many messages a repository holds. Works in place: the plaintext is not copied.
//!
//! From the second epoch of keys on the last four bytes of the salt say which it is: two that mark it and its number. A salt of
//! the first epoch is random throughout, and looks marked once in four billion; so the first epoch is tried too.

use super::BrokenSeal;
use super::keys::{EpochKeys, RepoKeys, kind_byte, message_key};
use farshore_core::catalogue::PackKind;
use farshore_core::host::Entropy;
use farshore_core::id::ChunkId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Length of the random salt in front of every sealed message.
pub const SALT_BYTES: usize = 16;
/// Bytes sealing adds: salt in front, tag behind.
pub const SEAL_BYTES: usize = SALT_BYTES + 16;

/// What the salts of later epochs have in the place of their 13th and 14th byte.
const EPOCH_MARK: [u8; 2] = [0xe9, 0x0c];

/// The salt as it is used in an epoch. Twelve random bytes are left, for one chunk or description: enough never to repeat.
fn marked(mut salt: [u8; SALT_BYTES], epoch: u16) -> [u8; SALT_BYTES] {
    if epoch > 0 {
        let (_, last) = salt.split_at_mut(SALT_BYTES - 4);
        last[..2].copy_from_slice(&EPOCH_MARK);
        last[2..].copy_from_slice(&epoch.to_le_bytes());
    }
    salt
}

/// The epoch that a salt names, if it looks as if it named one.
fn epoch_of(salt: &[u8; SALT_BYTES]) -> Option<u16> {
    let [.., a, b, low, high] = *salt;
    Some(u16::from_le_bytes([low, high])).filter(|epoch| [a, b] == EPOCH_MARK && *epoch > 0)
}

/// Opens `sealed` into `buffer` with the keys of the epoch it names, or else of the first one.
fn open_any<'a>(
    keys: &RepoKeys,
    sealed: &[u8],
    buffer: &'a mut Vec<u8>,
    aad: &[u8],
    message: impl Fn(&EpochKeys, &[u8; SALT_BYTES]) -> [u8; 32],
) -> Result<&'a mut [u8], BrokenSeal> {
    let salt = salt_of(sealed)?;
    let named = epoch_of(&salt);
    for epoch in named.into_iter().chain([0]) {
        let Some(key) = keys.with(epoch, |keys| message(keys, &salt)) else { continue };
        buffer.clear();
        buffer.extend_from_slice(sealed);
        if let Some(len) = open(&key, aad, buffer).ok().map(|plain| plain.len()) {
            return buffer.get_mut(SALT_BYTES..SALT_BYTES + len).ok_or(BrokenSeal::Altered);
        }
    }
    Err(match named.filter(|epoch| *epoch > keys.epoch()) {
        Some(epoch) => BrokenSeal::Later(epoch),
        None => BrokenSeal::Altered,
    })
}

/// Seals in place a buffer whose first [`SALT_BYTES`] are room for the salt and the rest is plaintext; the tag is
/// appended. `salt` must be fresh randomness.
pub fn seal_chunk(
    keys: &RepoKeys,
    id: &ChunkId,
    kind: PackKind,
    salt: [u8; SALT_BYTES],
    buffer: &mut Vec<u8>,
) {
    let (aad, epoch) = (chunk_aad(keys, id, kind), keys.epoch());
    let salt = marked(salt, epoch);
    let key = keys.with(epoch, |keys| message_key(&keys.seal, &[id.as_bytes(), &salt]));
    seal(&key.expect("epochs only ever come"), &aad, salt, buffer);
}

/// Opens a sealed chunk in a buffer, whose memory is used again, and returns its plaintext.
pub fn open_chunk<'a>(
    keys: &RepoKeys,
    id: &ChunkId,
    kind: PackKind,
    sealed: &[u8],
    buffer: &'a mut Vec<u8>,
) -> Result<&'a mut [u8], BrokenSeal> {
    let message = |keys: &EpochKeys, salt: &[u8; SALT_BYTES]| message_key(&keys.seal, &[id.as_bytes(), salt]);
    open_any(keys, sealed, buffer, &chunk_aad(keys, id, kind), message)
}

/// Seals a small thing that is not a chunk (configuration, snapshot description), bound to `what` it is.
pub fn seal_blob(keys: &RepoKeys, entropy: &dyn Entropy, what: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut salt = [0u8; SALT_BYTES];
    entropy.fill(&mut salt);
    let epoch = keys.epoch();
    let salt = marked(salt, epoch);
    let key = keys.with(epoch, |keys| message_key(&keys.meta, &[&salt])).expect("epochs only ever come");
    let mut buffer = Vec::with_capacity(plain.len() + SEAL_BYTES);
    buffer.extend_from_slice(&salt);
    buffer.extend_from_slice(plain);
    seal(&key, &blob_aad(keys, what), salt, &mut buffer);
    buffer
}

/// Opens what `seal_blob` sealed with the same `what`.
pub fn open_blob(keys: &RepoKeys, what: &[u8], sealed: &[u8]) -> Result<Vec<u8>, BrokenSeal> {
    let mut buffer = Vec::new();
    let message = |keys: &EpochKeys, salt: &[u8; SALT_BYTES]| message_key(&keys.meta, &[salt]);
    Ok(open_any(keys, sealed, &mut buffer, &blob_aad(keys, what), message)?.to_vec())
}

fn chunk_aad(keys: &RepoKeys, id: &ChunkId, kind: PackKind) -> Vec<u8> {
    [keys.repo.as_bytes(), id.as_bytes(), &[kind_byte(kind)]].concat()
}

fn blob_aad(keys: &RepoKeys, what: &[u8]) -> Vec<u8> {
    [keys.repo.as_bytes(), what].concat()
}

fn salt_of(sealed: &[u8]) -> Result<[u8; SALT_BYTES], BrokenSeal> {
    sealed.first_chunk().copied().ok_or(BrokenSeal::Altered)
}

/// The nonce is zero because the key serves one message only.
fn cipher(key: &[u8; 32]) -> (LessSafeKey, Nonce) {
    let key = UnboundKey::new(&AES_256_GCM, key).expect("the key is 32 bytes long");
    (LessSafeKey::new(key), Nonce::assume_unique_for_key([0; 12]))
}

pub(super) fn seal(key: &[u8; 32], aad: &[u8], salt: [u8; SALT_BYTES], buffer: &mut Vec<u8>) {
    let (cipher, nonce) = cipher(key);
    let (front, plain) = buffer.split_at_mut(SALT_BYTES);
    front.copy_from_slice(&salt);
    let tag = cipher
        .seal_in_place_separate_tag(nonce, Aad::from(aad), plain)
        .expect("a chunk is far below the length limit of the cipher");
    buffer.extend_from_slice(tag.as_ref());
}

pub(super) fn open<'a>(key: &[u8; 32], aad: &[u8], sealed: &'a mut [u8]) -> Result<&'a mut [u8], BrokenSeal> {
    let (cipher, nonce) = cipher(key);
    let body = sealed.get_mut(SALT_BYTES..).ok_or(BrokenSeal::Altered)?;
    cipher.open_in_place(nonce, Aad::from(aad), body).map_err(|_| BrokenSeal::Altered)
}

#[cfg(test)]
mod tests {
    use super::super::{Epochs, MasterKey};
    use super::*;
    use farshore_core::host::real::OsEntropy;
    use farshore_core::id::RepoId;
    use proptest::prelude::*;

    fn sealed(keys: &RepoKeys, id: &ChunkId, plain: &[u8]) -> Vec<u8> {
        let mut buffer = vec![0; SALT_BYTES];
        buffer.extend_from_slice(plain);
        seal_chunk(keys, id, PackKind::Data, [7; 16], &mut buffer);
        buffer
    }

    fn opened(keys: &RepoKeys, id: &ChunkId, kind: PackKind, sealed: &[u8]) -> Result<Vec<u8>, BrokenSeal> {
        open_chunk(keys, id, kind, sealed, &mut Vec::new()).map(|plain| plain.to_vec())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn opens_again_and_every_flipped_bit_is_refused(plain: Vec<u8>, at: usize, bit in 0u8..8) {
            let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
            let id = keys.chunk_id(PackKind::Data, &plain);
            let good = sealed(&keys, &id, &plain);
            prop_assert_eq!(good.len(), plain.len() + SEAL_BYTES);
            prop_assert_eq!(opened(&keys, &id, PackKind::Data, &good).unwrap(), plain);
            let mut bad = good;
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            prop_assert!(opened(&keys, &id, PackKind::Data, &bad).is_err());
        }
    }

    #[test]
    fn a_seal_is_bound_to_id_kind_repository_and_purpose() {
        let master = MasterKey::new(&OsEntropy);
        let keys = master.keys(RepoId([1; 16]));
        let id = keys.chunk_id(PackKind::Data, b"abc");
        let good = sealed(&keys, &id, b"abc");
        let elsewhere = master.keys(RepoId([2; 16]));
        assert!(opened(&keys, &ChunkId([0; 32]), PackKind::Data, &good).is_err());
        assert!(opened(&keys, &id, PackKind::Tree, &good).is_err());
        assert!(opened(&elsewhere, &id, PackKind::Data, &good).is_err());
        for len in 0..good.len() {
            assert!(opened(&keys, &id, PackKind::Data, &good[..len]).is_err());
        }
        let blob = seal_blob(&keys, &OsEntropy, b"config", b"abc");
        assert_eq!(open_blob(&keys, b"config", &blob).unwrap(), b"abc");
        assert!(open_blob(&keys, b"snapshot", &blob).is_err());
        assert!(open_blob(&keys, b"config", &blob[..9]).is_err());
    }

    #[test]
    fn what_is_sealed_says_in_which_epoch_and_older_ones_open_for_ever() {
        let (repo, new) = (RepoId([1; 16]), || MasterKey::new(&OsEntropy));
        let first = Epochs::first(new());
        let second = first.and_another(new()).unwrap();
        let third = second.and_another(new()).unwrap();
        let [old, middle, newest] = [&first, &second, &third].map(|epochs| RepoKeys::of(repo, epochs));
        let id = old.chunk_id(PackKind::Data, b"abc");
        assert_eq!(newest.chunk_id(PackKind::Data, b"abc"), id);
        assert_eq!([old.epoch(), middle.epoch(), newest.epoch()], [0, 1, 2]);
        let open = |keys: &RepoKeys, sealed: &[u8]| opened(keys, &id, PackKind::Data, sealed);
        for (epoch, by) in [(0, &old), (1, &middle), (2, &newest)] {
            let (chunk, blob) = (sealed(by, &id, b"abc"), seal_blob(by, &OsEntropy, b"what", b"abc"));
            assert_eq!(chunk.len(), 3 + SEAL_BYTES);
            assert_eq!(epoch_of(&salt_of(&chunk).unwrap()).unwrap_or(0), epoch);
            for (at, reader) in [(0, &old), (1, &middle), (2, &newest)] {
                let (got, blob) = (open(reader, &chunk), open_blob(reader, b"what", &blob));
                if at >= epoch {
                    assert_eq!((got.unwrap(), blob.unwrap()), (b"abc".to_vec(), b"abc".to_vec()));
                } else {
                    assert_eq!((got, blob), (Err(BrokenSeal::Later(epoch)), Err(BrokenSeal::Later(epoch))));
                }
            }
            // The number alone opens nothing, and no number is believed.
            for other in [0, 1, 2, 3, u16::MAX] {
                let mut moved = chunk.clone();
                let salt = marked(salt_of(&chunk).unwrap(), other);
                moved[..SALT_BYTES].copy_from_slice(&salt);
                assert_eq!(
                    open(&newest, &moved).is_ok(),
                    salt == salt_of(&chunk).unwrap(),
                    "{epoch} as {other}"
                );
            }
        }
        // A salt of the first epoch that looks as if it named a later one, known or not.
        for named in [1, 9] {
            let mut chunk = vec![0; SALT_BYTES];
            chunk.extend_from_slice(b"abc");
            seal_chunk(&old, &id, PackKind::Data, marked([7; 16], named), &mut chunk);
            assert_eq!(open(&newest, &chunk).unwrap(), b"abc");
        }
        // What one clone learns all know; what was known is not given up.
        let clone = old.clone();
        old.learn(&third).unwrap();
        assert_eq!(open(&clone, &sealed(&newest, &id, b"abc")).unwrap(), b"abc");
        old.learn(&first).unwrap();
        assert_eq!(clone.epoch(), 2);
        assert!(old.learn(&Epochs::first(new())).is_err());
    }
}
