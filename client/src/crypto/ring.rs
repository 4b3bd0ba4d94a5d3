//! Epochs: the secrets from which the keys of sealing were and are made, oldest first. Once there is more than one they lie
//! among the key slots as one entry, sealed under the root key, so that one compare-and-set changes both.

use super::BrokenSeal;
use super::chunk::{SALT_BYTES, SEAL_BYTES, open, seal};
use super::keys::{MasterKey, message_key};
use farshore_core::host::{Entropy, random};
use farshore_core::id::RepoId;
use farshore_core::limits::KEY_SLOT_BYTES_MAX;

/// What the entry begins with: the version of slots, and a kind that no slot has.
const HEAD: [u8; 2] = [2, 0];
/// Version byte inside the seal.
const RING_VERSION: u8 = 1;
/// Most epochs of a repository: with one a month this is five years.
pub const EPOCHS_MAX: usize = 64;

const _: () = assert!(HEAD.len() + SEAL_BYTES + 1 + 32 * EPOCHS_MAX <= KEY_SLOT_BYTES_MAX);

/// The secrets of all epochs; there is always a first one, from which also the keys are made that never change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Epochs(Vec<MasterKey>);

impl Epochs {
    /// Of a repository whose keys were never rotated: what its slots wrap.
    pub fn first(root: MasterKey) -> Self {
        Epochs(vec![root])
    }
    /// Oldest first.
    pub(super) fn secrets(&self) -> &[MasterKey] {
        &self.0
    }
    /// Number of the newest, from 0.
    pub fn newest(&self) -> u16 {
        (self.0.len() - 1) as u16
    }
    /// With one more; `None` if there are as many as there may be.
    pub fn and_another(&self, secret: MasterKey) -> Option<Self> {
        (self.0.len() < EPOCHS_MAX).then(|| Epochs([self.0.as_slice(), &[secret]].concat()))
    }

    /// The entry for the list of key slots.
    pub fn seal(&self, repo: RepoId, root: &MasterKey, entropy: &dyn Entropy) -> Vec<u8> {
        let mut sealed = vec![0; SALT_BYTES];
        // Room for all of it: growing would leave copies of the secrets behind.
        sealed.reserve_exact(1 + 32 * self.0.len() + 16);
        sealed.push(RING_VERSION);
        self.0.iter().for_each(|secret| sealed.extend_from_slice(&secret.0));
        let salt: [u8; SALT_BYTES] = random(entropy);
        seal(&message_key(&ring_key(root), &[&salt]), &ring_aad(repo), salt, &mut sealed);
        [HEAD.as_slice(), &sealed].concat()
    }

    /// What the list of key slots says, to somebody who has the root key. Without an entry the root key is the only secret.
    pub fn open(repo: RepoId, root: &MasterKey, slots: &[Vec<u8>]) -> Result<Self, BrokenSeal> {
        let mut entries = slots.iter().filter(|bytes| is_ring(bytes)).peekable();
        if entries.peek().is_none() {
            return Ok(Epochs::first(root.clone()));
        }
        entries.find_map(|bytes| open_entry(repo, root, bytes)).ok_or(BrokenSeal::Altered)
    }
}

/// Whether an entry of the list of key slots is none, but holds the epochs.
pub fn is_ring(bytes: &[u8]) -> bool {
    bytes.starts_with(&HEAD)
}

fn open_entry(repo: RepoId, root: &MasterKey, bytes: &[u8]) -> Option<Epochs> {
    let mut sealed = bytes.get(HEAD.len()..)?.to_vec();
    let message = message_key(&ring_key(root), &[sealed.get(..SALT_BYTES)?]);
    let plain = open(&message, &ring_aad(repo), &mut sealed).ok()?;
    let (&RING_VERSION, secrets) = plain.split_first()? else { return None };
    let whole = !secrets.is_empty() && secrets.len().is_multiple_of(32) && secrets.len() <= 32 * EPOCHS_MAX;
    let epochs = secrets.chunks_exact(32).filter_map(|secret| Some(MasterKey(secret.try_into().ok()?)));
    let epochs = Epochs(epochs.collect());
    sealed.fill(0);
    std::hint::black_box(&mut sealed);
    whole.then_some(epochs)
}

fn ring_key(root: &MasterKey) -> [u8; 32] {
    blake3::derive_key("farshore 2026 key ring", &root.0)
}

fn ring_aad(repo: RepoId) -> Vec<u8> {
    [repo.as_bytes(), b"key ring".as_slice(), &HEAD].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::real::OsEntropy;

    const REPO: RepoId = RepoId([9; 16]);

    #[test]
    fn epochs_open_again_and_every_flipped_bit_is_refused() {
        let (root, first) = (MasterKey::new(&OsEntropy), MasterKey::new(&OsEntropy));
        let mut epochs = Epochs::first(first.clone());
        assert!(Epochs::open(REPO, &first, &[vec![1, 1]]).unwrap() == epochs);
        while let Some(more) = epochs.and_another(MasterKey::new(&OsEntropy)) {
            epochs = more;
            let entry = epochs.seal(REPO, &root, &OsEntropy);
            assert!(is_ring(&entry) && entry.len() <= KEY_SLOT_BYTES_MAX);
            assert!(Epochs::open(REPO, &root, &[vec![1, 1], entry]).unwrap() == epochs);
        }
        assert_eq!(usize::from(epochs.newest()) + 1, EPOCHS_MAX);
        let entry = epochs.seal(REPO, &root, &OsEntropy);
        for at in HEAD.len()..entry.len() {
            let mut bad = entry.clone();
            bad[at] ^= 1 << (at % 8);
            assert!(Epochs::open(REPO, &root, &[bad]).is_err(), "byte {at}");
            assert!(Epochs::open(REPO, &root, &[entry[..at].to_vec()]).is_err(), "length {at}");
        }
        assert!(Epochs::open(RepoId([8; 16]), &root, std::slice::from_ref(&entry)).is_err());
        assert!(Epochs::open(REPO, &first, &[entry]).is_err());
    }
}
