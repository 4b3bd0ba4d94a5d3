//! Live sets of snapshots: compressed bitmaps of ordinals. The home of the `roaring` crate in the node. The bytes come
//! from clients, so nothing is believed before it has been checked.

use super::ordinals::{Bits, Ordinals, SEGMENT};
use farshore_core::id::Ordinal;
use farshore_core::limits::SNAPSHOT_BITMAP_BYTES_MAX;
use roaring::RoaringTreemap;

/// Bytes that are no live set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("live set {0}")]
pub struct BadLiveSet(&'static str);

/// Ordinals of every chunk that a snapshot needs.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct LiveSet(RoaringTreemap);

impl LiveSet {
    /// Reads a serialised `RoaringTreemap`. Only the one canonical form is taken: no repeated or empty parts, nothing
    /// left over, so that memory stays in proportion to the bytes, and equal sets are equal bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadLiveSet> {
        if bytes.len() > SNAPSHOT_BITMAP_BYTES_MAX {
            return Err(BadLiveSet("is too large"));
        }
        let set = RoaringTreemap::deserialize_from(bytes).map_err(|_| BadLiveSet("is not a bitmap"))?;
        if set.bitmaps().any(|(_, bitmap)| bitmap.is_empty()) {
            return Err(BadLiveSet("has an empty part"));
        }
        let set = LiveSet(set);
        if set.encode() != bytes {
            return Err(BadLiveSet("is not in canonical form"));
        }
        Ok(set)
    }

    /// The bytes that `decode` reads.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0.serialize_into(&mut bytes).expect("writing to memory cannot fail");
        bytes
    }

    /// How many chunks.
    pub fn len(&self) -> u64 {
        self.0.len()
    }

    /// Whether the snapshot needs nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Up to `limit` ordinals that are not below `next`.
    pub fn from_on(&self, next: Ordinal, limit: usize) -> Vec<Ordinal> {
        let mut ordinals = self.0.iter();
        ordinals.advance_to(next.0);
        ordinals.take(limit).map(Ordinal).collect()
    }

    /// Whether any of these is needed.
    pub fn needs_any(&self, of: &Ordinals) -> bool {
        of.runs().any(|(from, to)| {
            let mut ordinals = self.0.iter();
            ordinals.advance_to(from);
            ordinals.next().is_some_and(|ordinal| ordinal < to)
        })
    }

    /// Whether this one is needed.
    pub fn contains(&self, ordinal: Ordinal) -> bool {
        self.0.contains(ordinal.0)
    }

    /// How many of these are needed.
    pub fn count(&self, of: &Ordinals) -> u64 {
        of.runs().map(|(from, to)| self.0.range_cardinality(from..to)).sum()
    }

    /// Whether both have an ordinal in common.
    pub fn meets(&self, other: &LiveSet) -> bool {
        !self.0.is_disjoint(&other.0)
    }

    /// With these as well. Runs that lie side by side cost next to nothing.
    pub fn put(&mut self, of: &Ordinals) {
        of.runs().for_each(|(from, to)| {
            self.0.insert_range(from..to);
        });
    }

    /// Those in one segment.
    pub(crate) fn bits_of(&self, segment: Ordinal) -> Bits {
        let mut bits = Bits::default();
        let first = segment.0.saturating_mul(SEGMENT);
        let mut ordinals = self.0.iter();
        ordinals.advance_to(first);
        // A set bit for each that lies less than a segment beyond the first.
        ordinals.take_while(|o| *o - first < SEGMENT).for_each(|o| bits.set((o - first) as u16));
        bits
    }

    /// With everything that another needs.
    pub fn add(&mut self, other: &LiveSet) {
        self.0 |= &other.0;
    }
}

impl FromIterator<Ordinal> for LiveSet {
    fn from_iter<I: IntoIterator<Item = Ordinal>>(ordinals: I) -> Self {
        LiveSet(ordinals.into_iter().map(|ordinal| ordinal.0).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn sets_come_back(ordinals in prop::collection::vec(0..200_000u64, 0..300), far: u64) {
            let set: LiveSet = ordinals.into_iter().chain([far]).map(Ordinal).collect();
            prop_assert_eq!(LiveSet::decode(&set.encode()).unwrap(), set);
        }

        #[test]
        fn rubbish_is_refused_or_canonical(
            ordinals in prop::collection::vec(0..200_000u64, 0..100),
            flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
            cut: prop::sample::Index,
        ) {
            let mut bytes = ordinals.into_iter().map(Ordinal).collect::<LiveSet>().encode();
            for (at, byte) in flips {
                let at = at.index(bytes.len());
                bytes[at] ^= byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            if let Ok(set) = LiveSet::decode(&bytes) {
                prop_assert_eq!(set.encode(), bytes);
                prop_assert!(set.from_on(Ordinal(0), 10).len() as u64 <= set.len());
            }
        }
    }

    #[test]
    fn questions() {
        let range = |first, len| Ordinals::range(Ordinal(first), len);
        let set: LiveSet = [3, 4, 1 << 40].into_iter().map(Ordinal).collect();
        assert_eq!(set.from_on(Ordinal(4), 9), [Ordinal(4), Ordinal(1 << 40)]);
        assert_eq!(set.from_on(Ordinal(4), 1), [Ordinal(4)]);
        assert!(
            set.needs_any(&range(0, 4)) && !set.needs_any(&range(0, 3)) && !set.needs_any(&range(5, 100))
        );
        assert_eq!([set.count(&range(0, 4)), set.count(&range(3, 2)), set.count(&range(5, 9))], [1, 2, 0]);
        assert_eq!(set.bits_of(Ordinal(0)).common(&set.bits_of(Ordinal(0))).collect::<Vec<_>>(), [3, 4]);
        assert!(set.bits_of(Ordinal(1)).is_empty() && !set.bits_of(Ordinal(1 << 24)).is_empty());
        let runs: LiveSet = (0..100_000).map(Ordinal).collect();
        assert_eq!(LiveSet::decode(&runs.encode()).unwrap(), runs);
    }

    #[test]
    fn only_the_canonical_form_is_taken() {
        let mut bytes = [7].into_iter().map(Ordinal).collect::<LiveSet>().encode();
        bytes.push(0);
        assert!(LiveSet::decode(&bytes).is_err());
        let mut optimised = RoaringTreemap::from_iter(0..100_000u64);
        optimised.optimize();
        let mut bytes = Vec::new();
        optimised.serialize_into(&mut bytes).unwrap();
        assert!(LiveSet::decode(&bytes).is_ok(), "runs are canonical too");
        assert!(LiveSet::decode(&u64::MAX.to_le_bytes()).is_err());
    }
}
