//! From verified blocks to the ranges that were asked. Pure: no network, no clock.

use bytes::{Bytes, BytesMut};
use farshore_core::limits::SHARD_BLOCK_BYTES;
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::shard::{ShardRange, ShardSums};
use std::collections::{BTreeMap, BTreeSet};

const BLOCK: u64 = SHARD_BLOCK_BYTES as u64;

/// Collects the blocks of one answer. The memory it holds is bounded by what was asked, whatever arrives.
pub struct Ranges {
    sums: ShardSums,
    asked: Vec<ShardRange>,
    /// Blocks some range touches.
    wanted: BTreeSet<u64>,
    /// Verified runs of blocks, by the number of their first block.
    runs: BTreeMap<u64, Bytes>,
    /// Blocks that may still arrive; a block that several ranges touch may be sent for each of them.
    left: u64,
}

impl Ranges {
    /// `None` if a range is empty or leaves the shard.
    pub fn new(sums: ShardSums, asked: &[ShardRange]) -> Option<Self> {
        let mut wanted = BTreeSet::new();
        let mut left = 0;
        for range in asked {
            let blocks = sums.blocks_for(*range)?;
            left += blocks.len() as u64;
            wanted.extend(blocks.map(|block| block as u64));
        }
        Some(Ranges { sums, asked: asked.to_vec(), wanted, runs: BTreeMap::new(), left })
    }

    /// Takes consecutive whole blocks; every one must be wanted and right.
    pub fn take(&mut self, first: u64, bytes: Bytes) -> Result<(), String> {
        if bytes.is_empty() {
            return Err("a frame without blocks".into());
        }
        let count = (bytes.len() as u64).div_ceil(BLOCK);
        self.left = self.left.checked_sub(count).ok_or("more blocks than were asked for")?;
        for (i, block) in bytes.chunks(SHARD_BLOCK_BYTES).enumerate() {
            let number = first.saturating_add(i as u64);
            if !self.wanted.contains(&number) {
                return Err(format!("block {number} was not asked for"));
            }
            if !self.sums.verify_block(number as usize, block) && !mutant(Mutant::UnverifiedRead) {
                return Err(format!("block {number} is not what was recorded"));
            }
        }
        // The longer of two runs that begin alike serves both.
        if self.runs.get(&first).is_none_or(|run| run.len() < bytes.len()) {
            self.runs.insert(first, bytes);
        }
        Ok(())
    }

    /// The ranges in the order asked; `None` if some block never came.
    pub fn finish(self) -> Option<Vec<Bytes>> {
        self.asked.iter().map(|range| self.cut(*range)).collect()
    }

    /// A range inside one run is a slice of it; a longer one is put together.
    fn cut(&self, range: ShardRange) -> Option<Bytes> {
        let whole = self.run_from(range.offset)?;
        if whole.len() as u64 >= range.len {
            return Some(whole.slice(..range.len as usize));
        }
        let mut out = BytesMut::with_capacity(range.len as usize);
        while (out.len() as u64) < range.len {
            let run = self.run_from(range.offset + out.len() as u64)?;
            let take = run.len().min(range.len as usize - out.len());
            out.extend_from_slice(&run[..take]);
        }
        Some(out.freeze())
    }

    /// What is known from this byte on, at least one byte.
    fn run_from(&self, offset: u64) -> Option<Bytes> {
        let block = offset / BLOCK;
        // A run that begins earlier may be short and hide none: look back until one reaches this far.
        self.runs.range(..=block).rev().find_map(|(first, run)| {
            let skip = usize::try_from(offset - first * BLOCK).ok()?;
            (skip < run.len()).then(|| run.slice(skip..))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::shard::SumBuilder;
    use proptest::prelude::*;

    fn payload(len: usize) -> Bytes {
        (0..len).map(|i| (i * 31 + i / 251) as u8).collect::<Vec<_>>().into()
    }

    fn sums(payload: &[u8]) -> ShardSums {
        let mut builder = SumBuilder::new();
        builder.update(payload);
        builder.finish()
    }

    fn span(payload: &Bytes, first: u64, blocks: u64) -> Bytes {
        let at = |block: u64| payload.len().min((block * BLOCK) as usize);
        payload.slice(at(first)..at(first + blocks))
    }

    /// Sends every run of wanted blocks in frames of `frame` blocks.
    fn answer(wanted: &mut Ranges, payload: &Bytes, frame: u64) -> Result<(), String> {
        let blocks: Vec<u64> = wanted.wanted.iter().copied().collect();
        let mut next = 0;
        while next < blocks.len() {
            let run = blocks[next..].iter().zip(blocks[next]..).take_while(|(b, n)| **b == *n);
            let count = (run.count() as u64).min(frame);
            wanted.take(blocks[next], span(payload, blocks[next], count))?;
            next += count as usize;
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn ranges_come_back_exactly(
            len in 1usize..400_000,
            cuts in proptest::collection::vec((0.0f64..1.0, 0.0f64..1.0), 1..8),
            frame in 1u64..5,
        ) {
            let payload = payload(len);
            let asked: Vec<ShardRange> = cuts.iter().map(|(from, share)| {
                let offset = (*from * len as f64) as u64;
                let most = len as u64 - offset;
                ShardRange { offset, len: ((*share * most as f64) as u64).max(1) }
            }).collect();
            let mut wanted = Ranges::new(sums(&payload), &asked).unwrap();
            answer(&mut wanted, &payload, frame).unwrap();
            for (range, got) in asked.iter().zip(wanted.finish().unwrap()) {
                let (from, to) = (range.offset as usize, (range.offset + range.len) as usize);
                prop_assert_eq!(got, payload.slice(from..to));
            }
        }
    }

    #[test]
    fn a_block_may_come_once_for_each_range_and_no_more() {
        let payload = payload(3 * SHARD_BLOCK_BYTES);
        let asked = [ShardRange { offset: 5, len: 10 }, ShardRange { offset: 100, len: BLOCK }];
        let mut wanted = Ranges::new(sums(&payload), &asked).unwrap();
        wanted.take(0, span(&payload, 0, 1)).unwrap();
        wanted.take(0, span(&payload, 0, 2)).unwrap();
        assert!(wanted.take(0, span(&payload, 0, 1)).is_err());
        assert_eq!(wanted.finish().unwrap()[1], payload.slice(100..100 + SHARD_BLOCK_BYTES));
    }

    #[test]
    fn lies_are_seen() {
        let payload = payload(2 * SHARD_BLOCK_BYTES + 10);
        let fresh = || Ranges::new(sums(&payload), &[ShardRange { offset: 0, len: BLOCK + 1 }]).unwrap();
        let mut bad = span(&payload, 0, 1).to_vec();
        bad[77] ^= 1;
        assert!(fresh().take(0, bad.into()).is_err(), "flipped bit");
        assert!(fresh().take(1, span(&payload, 0, 1)).is_err(), "another block");
        assert!(fresh().take(0, span(&payload, 0, 1).slice(..100)).is_err(), "half a block");
        assert!(fresh().take(2, span(&payload, 2, 1)).is_err(), "not asked for");
        assert!(fresh().take(u64::MAX, span(&payload, 0, 1)).is_err(), "absurd");
        assert!(fresh().take(0, Bytes::new()).is_err(), "empty");
        assert!(fresh().finish().is_none(), "nothing came");
        assert!(Ranges::new(sums(&payload), &[ShardRange { offset: 0, len: u64::MAX }]).is_none());
    }
}
