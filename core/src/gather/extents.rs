//! Which bytes of one shard's payload are here: arithmetic on byte ranges, nothing else.

use crate::shard::ShardRange;
use bytes::{Bytes, BytesMut};
use std::collections::BTreeMap;

/// Sorts ranges and joins those that touch or overlap. Ranges must lie inside a payload.
pub fn merge(mut ranges: Vec<ShardRange>) -> Vec<ShardRange> {
    ranges.sort_unstable();
    let mut merged: Vec<ShardRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.offset <= last.offset + last.len => {
                last.len = last.len.max(range.offset + range.len - last.offset);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// The parts of `want` that are not in `have`; both merged.
pub fn subtract(want: &[ShardRange], have: &[ShardRange]) -> Vec<ShardRange> {
    let mut rest = Vec::new();
    for range in want {
        let end = range.offset + range.len;
        let mut at = range.offset;
        for cut in have.iter().filter(|cut| cut.offset < end && cut.offset + cut.len > range.offset) {
            if cut.offset > at {
                rest.push(ShardRange { offset: at, len: cut.offset - at });
            }
            at = cut.offset + cut.len;
        }
        if at < end {
            rest.push(ShardRange { offset: at, len: end - at });
        }
    }
    rest
}

/// Pieces of one payload by offset; they never overlap.
#[derive(Default)]
pub struct Extents(BTreeMap<u64, Bytes>);

impl Extents {
    /// The ranges that are here, merged.
    pub fn ranges(&self) -> Vec<ShardRange> {
        merge(
            self.0
                .iter()
                .map(|(offset, bytes)| ShardRange { offset: *offset, len: bytes.len() as u64 })
                .collect(),
        )
    }

    /// What is missing of `want` (merged).
    pub fn lacking(&self, want: &[ShardRange]) -> Vec<ShardRange> {
        subtract(want, &self.ranges())
    }

    /// Adds bytes at an offset; what is here already stays.
    pub fn insert(&mut self, offset: u64, bytes: &Bytes) {
        for part in self.lacking(&[ShardRange { offset, len: bytes.len() as u64 }]) {
            let from = (part.offset - offset) as usize;
            self.0.insert(part.offset, bytes.slice(from..from + part.len as usize));
        }
    }

    /// The bytes of a range if all are here; without a copy if they came in one piece.
    pub fn slice(&self, range: ShardRange) -> Option<Bytes> {
        let end = range.offset + range.len;
        let (first, piece) = self.0.range(..=range.offset).next_back()?;
        let skip = (range.offset - first) as usize;
        if end <= first + piece.len() as u64 {
            return Some(piece.slice(skip..skip + range.len as usize));
        }
        let mut joined = BytesMut::with_capacity(range.len as usize);
        let mut at = range.offset;
        for (offset, piece) in self.0.range(first..) {
            if at >= end || *offset > at {
                break;
            }
            let skip = (at - offset) as usize;
            let Some(rest) = piece.get(skip..) else { break };
            let take = rest.len().min((end - at) as usize);
            joined.extend_from_slice(&rest[..take]);
            at += take as u64;
        }
        (at == end).then(|| joined.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ranges() -> impl Strategy<Value = Vec<ShardRange>> {
        proptest::collection::vec(
            (0u64..60, 1u64..20).prop_map(|(offset, len)| ShardRange { offset, len }),
            0..8,
        )
    }
    fn set(ranges: &[ShardRange]) -> Vec<bool> {
        (0..100).map(|at| ranges.iter().any(|r| (r.offset..r.offset + r.len).contains(&at))).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn ranges_behave_like_sets(a in ranges(), b in ranges()) {
            let (a, b) = (merge(a), merge(b));
            prop_assert!(a.windows(2).all(|w| w[0].offset + w[0].len < w[1].offset));
            let expected: Vec<bool> = set(&a).iter().zip(set(&b)).map(|(a, b)| *a && !b).collect();
            prop_assert_eq!(set(&subtract(&a, &b)), expected);
        }

        #[test]
        fn what_went_in_comes_out(pieces in ranges(), asked in (0u64..70, 1u64..30)) {
            let payload: Bytes = (0..100u8).collect::<Vec<_>>().into();
            let mut extents = Extents::default();
            for piece in &pieces {
                extents.insert(piece.offset, &payload.slice(piece.offset as usize..(piece.offset + piece.len) as usize));
            }
            let asked = ShardRange { offset: asked.0, len: asked.1 };
            let here = set(&pieces)[asked.offset as usize..(asked.offset + asked.len) as usize].iter().all(|x| *x);
            prop_assert_eq!(extents.lacking(&[asked]).is_empty(), here);
            let expected = payload.slice(asked.offset as usize..(asked.offset + asked.len) as usize);
            prop_assert_eq!(extents.slice(asked), here.then_some(expected));
        }
    }
}
