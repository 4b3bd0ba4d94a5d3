//! Files with several names: the chunks of the first serve the others, so that each is read once. What is remembered is
//! bounded; a file that falls out of it is read once more.

use crate::files::{Fingerprint, Meta, Stat};
use crate::format::ContentChunk;
use std::collections::BTreeMap;

/// Chunks remembered in all; a few MiB.
pub const CHUNKS_MAX: usize = 65_536;
/// Files remembered, since empty ones have no chunks.
const FILES_MAX: usize = 65_536;

/// By device and inode.
#[derive(Default)]
pub struct Twins {
    files: BTreeMap<(u64, u64), Twin>,
    chunks: usize,
}

enum Twin {
    /// Its first name is about to be read.
    Coming,
    Read {
        seen: Fingerprint,
        chunks: Vec<ContentChunk>,
        /// Names still to come; some may lie outside of what is backed up.
        names_left: u64,
    },
}

fn key(meta: &Meta) -> Option<(u64, u64)> {
    (meta.nlink > 1).then_some((meta.dev, meta.ino))
}

impl Twins {
    /// Whether another name of this file came before. If not, this one is the first.
    pub fn expect(&mut self, meta: &Meta) -> bool {
        let Some(key) = key(meta) else { return false };
        if self.files.contains_key(&key) {
            return true;
        }
        if self.files.len() < FILES_MAX {
            self.files.insert(key, Twin::Coming);
        }
        false
    }

    /// A name has been read: what the file looked like after its last byte, and its chunks. `None` if that is no use.
    pub fn note(&mut self, meta: &Meta, read: Option<(Fingerprint, Vec<ContentChunk>)>) {
        let Some(key) = key(meta) else { return };
        self.forget(key);
        let Some((seen, chunks)) = read else { return };
        if self.files.len() < FILES_MAX && self.chunks + chunks.len() <= CHUNKS_MAX {
            self.chunks += chunks.len();
            self.files.insert(key, Twin::Read { seen, chunks, names_left: meta.nlink - 1 });
        }
    }

    /// The chunks of this file, if it looks as it did when they were read.
    pub fn chunks_of(&mut self, stat: &Stat) -> Option<Vec<ContentChunk>> {
        let key = key(&stat.meta)?;
        let Some(Twin::Read { seen, chunks, names_left }) = self.files.get_mut(&key) else { return None };
        if stat.fingerprint() != Some(*seen) {
            return None;
        }
        *names_left = names_left.saturating_sub(1);
        if *names_left > 0 {
            return Some(chunks.clone());
        }
        let chunks = std::mem::take(chunks);
        self.chunks -= chunks.len();
        self.files.remove(&key);
        Some(chunks)
    }

    fn forget(&mut self, key: (u64, u64)) {
        if let Some(Twin::Read { chunks, .. }) = self.files.remove(&key) {
            self.chunks -= chunks.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileKind;
    use farshore_core::id::ChunkId;

    fn stat(ino: u64, nlink: u64, size: u64) -> Stat {
        Stat { kind: FileKind::File { size }, meta: Meta { ino, nlink, ..Meta::default() } }
    }
    fn chunks(count: usize) -> Vec<ContentChunk> {
        vec![ContentChunk { id: ChunkId([1; 32]), len: 1 }; count]
    }
    fn read(twins: &mut Twins, stat: &Stat, count: usize) {
        twins.note(&stat.meta, Some((stat.fingerprint().unwrap(), chunks(count))));
    }

    #[test]
    fn each_further_name_is_served_once_and_then_nothing_is_left() {
        let (mut twins, file) = (Twins::default(), stat(1, 3, 10));
        assert!(!twins.expect(&file.meta) && twins.expect(&file.meta));
        assert_eq!(twins.chunks_of(&file), None, "it is not read yet");
        read(&mut twins, &file, 2);
        assert_eq!(twins.chunks_of(&file), Some(chunks(2)));
        assert_eq!(twins.chunks_of(&stat(1, 3, 11)), None, "it has changed");
        assert_eq!(twins.chunks_of(&file), Some(chunks(2)));
        assert!(twins.files.is_empty() && twins.chunks == 0);
        assert!(!twins.expect(&stat(2, 1, 1).meta) && !twins.expect(&stat(2, 1, 1).meta), "one name only");
    }

    #[test]
    fn what_failed_or_is_too_long_is_not_remembered() {
        let mut twins = Twins::default();
        for (ino, count) in [(1, None), (2, Some(CHUNKS_MAX - 1)), (3, Some(2))] {
            let file = stat(ino, 2, 5);
            assert!(!twins.expect(&file.meta));
            twins.note(&file.meta, count.map(|count| (file.fingerprint().unwrap(), chunks(count))));
        }
        assert_eq!(twins.chunks_of(&stat(1, 2, 5)), None);
        assert_eq!(twins.chunks_of(&stat(3, 2, 5)), None);
        assert_eq!(twins.chunks_of(&stat(2, 2, 5)).map(|c| c.len()), Some(CHUNKS_MAX - 1));
        assert!(!twins.expect(&stat(3, 2, 5).meta), "the next name is a first one again");
    }
}
