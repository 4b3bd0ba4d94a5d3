//! Sealing: AES-256-GCM with a key of its own for every message, derived from a random salt, so that no nonce can
//! ever repeat under one key however many messages a repository holds. Works in place: the plaintext is not copied.

use super::BrokenSeal;
use super::keys::{RepoKeys, kind_byte, message_key};
use farshore_core::catalogue::PackKind;
use farshore_core::host::Entropy;
use farshore_core::id::ChunkId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

/// Length of the random salt in front of every sealed message.
pub const SALT_BYTES: usize = 16;
/// Bytes sealing adds: salt in front, tag behind.
pub const SEAL_BYTES: usize = SALT_BYTES + 16;

/// Seals in place a buffer whose first [`SALT_BYTES`] are room for the salt and the rest is plaintext; the tag is
/// appended. `salt` must be fresh randomness.
pub fn seal_chunk(
    keys: &RepoKeys,
    id: &ChunkId,
    kind: PackKind,
    salt: [u8; SALT_BYTES],
    buffer: &mut Vec<u8>,
) {
    let aad = chunk_aad(keys, id, kind);
    seal(&message_key(&keys.seal, &[id.as_bytes(), &salt]), &aad, salt, buffer);
}

/// Opens a sealed chunk in place and returns its plaintext.
pub fn open_chunk<'a>(
    keys: &RepoKeys,
    id: &ChunkId,
    kind: PackKind,
    sealed: &'a mut [u8],
) -> Result<&'a mut [u8], BrokenSeal> {
    let salt = salt_of(sealed)?;
    let aad = chunk_aad(keys, id, kind);
    open(&message_key(&keys.seal, &[id.as_bytes(), &salt]), &aad, sealed)
}

/// Seals a small thing that is not a chunk (configuration, snapshot description), bound to `what` it is.
pub fn seal_blob(keys: &RepoKeys, entropy: &dyn Entropy, what: &[u8], plain: &[u8]) -> Vec<u8> {
    let mut salt = [0u8; SALT_BYTES];
    entropy.fill(&mut salt);
    let mut buffer = Vec::with_capacity(plain.len() + SEAL_BYTES);
    buffer.extend_from_slice(&salt);
    buffer.extend_from_slice(plain);
    seal(&message_key(&keys.meta, &[&salt]), &blob_aad(keys, what), salt, &mut buffer);
    buffer
}

/// Opens what `seal_blob` sealed with the same `what`.
pub fn open_blob(keys: &RepoKeys, what: &[u8], sealed: &[u8]) -> Result<Vec<u8>, BrokenSeal> {
    let salt = salt_of(sealed)?;
    let mut buffer = sealed.to_vec();
    let plain = open(&message_key(&keys.meta, &[&salt]), &blob_aad(keys, what), &mut buffer)?.to_vec();
    Ok(plain)
}

fn chunk_aad(keys: &RepoKeys, id: &ChunkId, kind: PackKind) -> Vec<u8> {
    [keys.repo.as_bytes(), id.as_bytes(), &[kind_byte(kind)]].concat()
}

fn blob_aad(keys: &RepoKeys, what: &[u8]) -> Vec<u8> {
    [keys.repo.as_bytes(), what].concat()
}

fn salt_of(sealed: &[u8]) -> Result<[u8; SALT_BYTES], BrokenSeal> {
    sealed.first_chunk().copied().ok_or(BrokenSeal)
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
    let body = sealed.get_mut(SALT_BYTES..).ok_or(BrokenSeal)?;
    cipher.open_in_place(nonce, Aad::from(aad), body).map_err(|_| BrokenSeal)
}

#[cfg(test)]
mod tests {
    use super::super::MasterKey;
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn opens_again_and_every_flipped_bit_is_refused(plain: Vec<u8>, at: usize, bit in 0u8..8) {
            let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
            let id = keys.chunk_id(PackKind::Data, &plain);
            let good = sealed(&keys, &id, &plain);
            prop_assert_eq!(good.len(), plain.len() + SEAL_BYTES);
            let mut copy = good.clone();
            prop_assert_eq!(&*open_chunk(&keys, &id, PackKind::Data, &mut copy).unwrap(), &plain[..]);
            let mut bad = good;
            let at = at % bad.len();
            bad[at] ^= 1 << bit;
            prop_assert!(open_chunk(&keys, &id, PackKind::Data, &mut bad).is_err());
        }
    }

    #[test]
    fn a_seal_is_bound_to_id_kind_repository_and_purpose() {
        let master = MasterKey::new(&OsEntropy);
        let keys = master.keys(RepoId([1; 16]));
        let id = keys.chunk_id(PackKind::Data, b"abc");
        let good = sealed(&keys, &id, b"abc");
        let elsewhere = master.keys(RepoId([2; 16]));
        assert!(open_chunk(&keys, &ChunkId([0; 32]), PackKind::Data, &mut good.clone()).is_err());
        assert!(open_chunk(&keys, &id, PackKind::Tree, &mut good.clone()).is_err());
        assert!(open_chunk(&elsewhere, &id, PackKind::Data, &mut good.clone()).is_err());
        for len in 0..good.len() {
            assert!(open_chunk(&keys, &id, PackKind::Data, &mut good[..len].to_vec()).is_err());
        }
        let blob = seal_blob(&keys, &OsEntropy, b"config", b"abc");
        assert_eq!(open_blob(&keys, b"config", &blob).unwrap(), b"abc");
        assert!(open_blob(&keys, b"snapshot", &blob).is_err());
        assert!(open_blob(&keys, b"config", &blob[..9]).is_err());
    }
}
