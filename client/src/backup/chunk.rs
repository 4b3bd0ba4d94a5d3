//! Cutting: FastCDC with normalised chunking of level 2 (Xia et al., "The Design of Fast Content-Defined Chunking for
//! Data Deduplication Based Storage Systems", TPDS 2020) over a secret gear table. Where the bytes are the same the cuts
//! are the same, however the bytes arrive; the chunker remembers where it stopped and never scans a byte twice.

use crate::crypto::GearTable;
use crate::format::config::ChunkSizes;
use std::sync::Arc;

/// Cuts one stream after another.
#[derive(Clone)]
pub struct Chunker {
    table: Arc<GearTable>,
    sizes: ChunkSizes,
    /// Before the mean size a cut needs two bits more than the mean asks for…
    mask_hard: u64,
    /// …and after it two bits fewer, which draws sizes towards the mean.
    mask_easy: u64,
    scanned: usize,
    hash: u64,
    /// Every cut is made at the maximum.
    even: bool,
}

/// The top bits: in a left-shifting gear hash they depend on the most bytes, 64 in the highest.
fn mask(bits: u32) -> u64 {
    u64::MAX << (64 - bits)
}

impl Chunker {
    /// A chunker at the start of a stream.
    pub fn new(table: Arc<GearTable>, sizes: ChunkSizes) -> Self {
        let bits = sizes.mean.ilog2();
        Chunker {
            table,
            sizes,
            mask_hard: mask(bits + 2),
            mask_easy: mask(bits - 2),
            scanned: 0,
            hash: 0,
            even: false,
        }
    }

    /// A chunker that cuts at multiples of the largest size: for images of disks, whose blocks change where they are.
    pub fn even(table: Arc<GearTable>, sizes: ChunkSizes) -> Self {
        Chunker { even: true, ..Self::new(table, sizes) }
    }

    /// Looks for the end of the current chunk. `bytes` is everything of it that has arrived, and grows from call to
    /// call until this returns its length; the bytes behind are the start of the next chunk.
    pub fn cut(&mut self, bytes: &[u8]) -> Option<usize> {
        let (min, mean, max) = (self.sizes.min as usize, self.sizes.mean as usize, self.sizes.max as usize);
        if self.even {
            return (bytes.len() >= max).then_some(max);
        }
        let from = self.scanned.max(min);
        let bytes_in_reach = &bytes[..bytes.len().min(max)];
        let found = self
            .scan(bytes_in_reach, from, mean, self.mask_hard)
            .or_else(|| self.scan(bytes_in_reach, from.max(mean), max, self.mask_easy));
        let found = found.or((bytes.len() >= max).then_some(max));
        if found.is_some() {
            self.restart();
        } else {
            self.scanned = bytes.len();
        }
        found
    }

    /// Forgets the current chunk: the stream has ended.
    pub fn restart(&mut self) {
        (self.scanned, self.hash) = (0, 0);
    }

    /// The hot loop: shift, add, test.
    fn scan(&mut self, bytes: &[u8], from: usize, to: usize, mask: u64) -> Option<usize> {
        let window = bytes.get(from..bytes.len().min(to))?;
        let (table, mut hash) = (&*self.table, self.hash);
        for (at, byte) in window.iter().enumerate() {
            hash = (hash << 1).wrapping_add(table[usize::from(*byte)]);
            if hash & mask == 0 {
                return Some(from + at + 1);
            }
        }
        self.hash = hash;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use farshore_core::host::real::OsEntropy;
    use farshore_core::host::task::splitmix;
    use farshore_core::id::RepoId;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const SIZES: ChunkSizes = ChunkSizes { min: 256, mean: 1024, max: 4096 };

    fn chunker() -> Chunker {
        let table = MasterKey::new(&OsEntropy).keys(RepoId([0; 16])).gear_table();
        Chunker::new(table.into(), SIZES)
    }

    fn noise(len: usize, seed: u64) -> Vec<u8> {
        (0..len as u64).map(|n| splitmix(seed, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as u8).collect()
    }

    /// Cuts a stream that arrives in pieces of the given lengths, over and over.
    fn cuts(mut chunker: Chunker, bytes: &[u8], pieces: &[usize]) -> Vec<usize> {
        let (mut cuts, mut start, mut end) = (Vec::new(), 0, 0);
        for piece in pieces.iter().cycle() {
            end = bytes.len().min(end + piece.max(&1));
            while let Some(len) = chunker.cut(&bytes[start..end]) {
                start += len;
                cuts.push(start);
            }
            if end == bytes.len() {
                break;
            }
        }
        if start < bytes.len() {
            cuts.push(bytes.len());
        }
        cuts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn cuts_do_not_depend_on_how_bytes_arrive_and_keep_their_bounds(
            seed: u64, len in 0usize..60_000, pieces in proptest::collection::vec(1usize..5_000, 1..10),
        ) {
            let (chunker, bytes) = (chunker(), noise(len, seed));
            let whole = cuts(chunker.clone(), &bytes, &[usize::MAX / 2]);
            prop_assert_eq!(&whole, &cuts(chunker, &bytes, &pieces));
            let mut start = 0;
            for (n, end) in whole.iter().enumerate() {
                prop_assert!(end - start <= SIZES.max as usize);
                prop_assert!(n + 1 == whole.len() || end - start > SIZES.min as usize);
                start = *end;
            }
            prop_assert_eq!(start, len);
        }
        #[test]
        fn an_insertion_moves_cuts_only_near_itself(seed: u64, at in 0usize..100_000) {
            let (chunker, bytes) = (chunker(), noise(100_000, seed));
            let mut longer = bytes.clone();
            longer.splice(at..at, *b"inserted");
            let before: BTreeSet<usize> = cuts(chunker.clone(), &bytes, &[usize::MAX / 2]).into_iter().collect();
            let after = cuts(chunker, &longer, &[usize::MAX / 2]);
            let moved = after.iter().filter(|cut| {
                !before.contains(cut) && !before.contains(&cut.saturating_sub(8))
            });
            prop_assert!(moved.count() <= 20, "of about {}", before.len());
        }
    }

    #[test]
    fn the_mean_is_near_what_was_asked_and_bytes_that_never_cut_are_cut_at_the_maximum() {
        let count = cuts(chunker(), &noise(1 << 20, 1), &[1 << 16]).len();
        assert!((600..1_500).contains(&count), "{count} chunks");
        let zeros = cuts(chunker(), &[0; 100_000], &[1_000]);
        let lengths: BTreeSet<usize> = zeros.windows(2).map(|w| w[1] - w[0]).collect();
        assert!(lengths.len() <= 2, "a constant stream is cut evenly: {lengths:?}");
    }
}
