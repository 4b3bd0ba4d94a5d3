//! The secrets of a repository and the keys derived from them, one per purpose, so that no key serves two ends. Keys that
//! name and cut are made of the first secret and stay; keys that seal are made of the secret of each epoch.

use super::BrokenSeal;
use super::ring::Epochs;
use farshore_core::catalogue::PackKind;
use farshore_core::host::{Entropy, random};
use farshore_core::id::{ChunkId, RepoId};
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

/// A secret of a repository: a root key, or that of an epoch. Overwritten when dropped, as far as the language lets us.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterKey(pub(super) [u8; 32]);

impl MasterKey {
    /// Draws a new one.
    pub fn new(entropy: &dyn Entropy) -> Self {
        MasterKey(random(entropy))
    }
    /// The keys of a repository that has this one secret.
    pub fn keys(&self, repo: RepoId) -> RepoKeys {
        RepoKeys::of(repo, &Epochs::first(self.clone()))
    }
}
impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterKey")
    }
}
impl Drop for MasterKey {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites a key in a way the optimiser may not drop: `black_box` makes the zeros observed.
pub(super) fn wipe(key: &mut [u8; 32]) {
    key.fill(0);
    std::hint::black_box(key);
}

/// The keys of one repository, by purpose. Cloned into compute jobs; every clone overwrites itself when dropped.
#[derive(Clone)]
pub struct RepoKeys {
    /// Repository they belong to; bound into every seal.
    pub(super) repo: RepoId,
    id: [u8; 32],
    gear: [u8; 32],
    group: [u8; 32],
    /// Shared by all clones, so that what one learns all know; never empty, only ever added to.
    epochs: Arc<RwLock<Vec<EpochKeys>>>,
}

/// What seals in one epoch.
pub(super) struct EpochKeys {
    /// Chunks.
    pub seal: [u8; 32],
    /// Configuration and descriptions.
    pub meta: [u8; 32],
}

impl EpochKeys {
    fn of(secret: &MasterKey) -> Self {
        EpochKeys {
            seal: blake3::derive_key("farshore 2026 chunk seal key", &secret.0),
            meta: blake3::derive_key("farshore 2026 description seal key", &secret.0),
        }
    }
}
impl Drop for EpochKeys {
    fn drop(&mut self) {
        [&mut self.seal, &mut self.meta].into_iter().for_each(wipe);
    }
}

impl fmt::Debug for RepoKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RepoKeys({:?})", self.repo)
    }
}
impl Drop for RepoKeys {
    fn drop(&mut self) {
        [&mut self.id, &mut self.gear, &mut self.group].into_iter().for_each(wipe);
    }
}

/// Random-looking 64-bit values by byte, for the rolling hash of the chunker.
pub type GearTable = [u64; 256];

impl RepoKeys {
    /// The keys of a repository by purpose.
    pub fn of(repo: RepoId, epochs: &Epochs) -> Self {
        let secrets = epochs.secrets();
        let first = &secrets.first().expect("there is always a first epoch").0;
        RepoKeys {
            repo,
            id: blake3::derive_key("farshore 2026 chunk id key", first),
            gear: blake3::derive_key("farshore 2026 gear key", first),
            group: blake3::derive_key("farshore 2026 group key", first),
            epochs: Arc::new(RwLock::new(secrets.iter().map(EpochKeys::of).collect())),
        }
    }
    fn epochs(&self) -> RwLockReadGuard<'_, Vec<EpochKeys>> {
        self.epochs.read().unwrap_or_else(PoisonError::into_inner)
    }
    /// The epoch in which is sealed, from 0.
    pub fn epoch(&self) -> u16 {
        (self.epochs().len() - 1) as u16
    }
    /// Uses the keys of an epoch; `None` if they are not known.
    pub(super) fn with<T>(&self, epoch: u16, use_keys: impl FnOnce(&EpochKeys) -> T) -> Option<T> {
        self.epochs().get(usize::from(epoch)).map(use_keys)
    }
    /// Adds epochs that came later; in which is sealed from now on. Refused if those that are known are not among them.
    pub fn learn(&self, epochs: &Epochs) -> Result<(), BrokenSeal> {
        let mut known = self.epochs.write().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<EpochKeys> = epochs.secrets().iter().map(EpochKeys::of).collect();
        if known.iter().zip(&all).any(|(known, told)| known.seal != told.seal) {
            return Err(BrokenSeal::Altered);
        }
        // A record of before may be read after one of now.
        let had = known.len();
        known.extend(all.into_iter().skip(had));
        Ok(())
    }
    /// Which repository.
    pub fn repo(&self) -> RepoId {
        self.repo
    }
    /// Name of a chunk: keyed hash of kind and plaintext, so that a node cannot test a guess at the contents, and a
    /// file whose bytes look like a directory never shares a chunk with that directory.
    pub fn chunk_id(&self, kind: PackKind, plain: &[u8]) -> ChunkId {
        let mut hasher = blake3::Hasher::new_keyed(&self.id);
        hasher.update(&[kind_byte(kind)]).update(plain);
        ChunkId(*hasher.finalize().as_bytes())
    }
    /// The secret table of the chunker. A public table would let whoever sees chunk lengths recognise known files.
    pub fn gear_table(&self) -> Box<GearTable> {
        let mut stream = blake3::Hasher::new_keyed(&self.gear).update(b"table").finalize_xof();
        let mut table = Box::new([0u64; 256]);
        for value in table.iter_mut() {
            let mut bytes = [0u8; 8];
            stream.fill(&mut bytes);
            *value = u64::from_le_bytes(bytes);
        }
        table
    }
    /// Where lists and directories are cut: a secret hash of what stands at the possible cut.
    pub fn cut_hash(&self, level: u8, at: &[u8]) -> u64 {
        let mut hasher = blake3::Hasher::new_keyed(&self.gear);
        hasher.update(b"cut").update(&[level]).update(at);
        let mut first = [0u8; 8];
        first.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        u64::from_le_bytes(first)
    }
    /// A tag, as nodes see it.
    pub fn tag(&self, tag: &str) -> [u8; 8] {
        let mut hasher = blake3::Hasher::new_keyed(&self.group);
        // No group is hashed from so long a host, so that tags and groups never meet.
        hasher.update(&u64::MAX.to_le_bytes()).update(tag.as_bytes());
        let mut hash = [0u8; 8];
        hash.copy_from_slice(&hasher.finalize().as_bytes()[..8]);
        hash
    }
    /// Group of snapshots of one host and set of paths, as nodes see it. The order of the paths does not matter.
    pub fn group(&self, host: &str, paths: &[Vec<u8>]) -> [u8; 16] {
        let mut sorted: Vec<&[u8]> = paths.iter().map(Vec::as_slice).collect();
        sorted.sort_unstable();
        let mut hasher = blake3::Hasher::new_keyed(&self.group);
        for part in std::iter::once(host.as_bytes()).chain(sorted) {
            hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
        }
        let mut group = [0u8; 16];
        group.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        group
    }
}

/// One byte per kind of chunk, in names and seals.
pub(super) fn kind_byte(kind: PackKind) -> u8 {
    match kind {
        PackKind::Data => 1,
        PackKind::Tree => 2,
    }
}

/// One-use key: keyed hash of what makes the message unique.
pub(super) fn message_key(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    *hasher.finalize().as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_key_kind_and_bytes() {
        let keys = MasterKey([1; 32]).keys(RepoId([9; 16]));
        let other = MasterKey([2; 32]).keys(RepoId([9; 16]));
        let id = keys.chunk_id(PackKind::Data, b"x");
        assert_eq!(id, keys.clone().chunk_id(PackKind::Data, b"x"));
        assert_ne!(id, keys.chunk_id(PackKind::Tree, b"x"));
        assert_ne!(id, other.chunk_id(PackKind::Data, b"x"));
        assert_ne!(keys.gear_table(), other.gear_table());
        assert_ne!(keys.cut_hash(0, b"a"), keys.cut_hash(1, b"a"));
    }

    #[test]
    fn groups_ignore_the_order_of_paths_and_nothing_else() {
        let keys = MasterKey([1; 32]).keys(RepoId([9; 16]));
        let (a, b) = (b"/a".to_vec(), b"/b".to_vec());
        assert_eq!(keys.group("h", &[a.clone(), b.clone()]), keys.group("h", &[b.clone(), a.clone()]));
        assert_ne!(keys.group("h", &[a.clone(), b]), keys.group("h", &[b"/a/b".to_vec()]));
        assert_ne!(keys.group("h", std::slice::from_ref(&a)), keys.group("i", std::slice::from_ref(&a)));
    }
}
