//! Sets of ordinals as rows: those whose chunks live in one pack, and which of 65,536 neighbours are absent or condemned.
//! Both have one canonical form, so that equal sets are equal bytes on every replica, whatever library is linked.

use farshore_core::id::Ordinal;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Ordinals as ascending runs that neither touch nor overlap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ordinals(Vec<(u64, u64)>);

impl Ordinals {
    /// `len` ordinals from `first` on.
    pub fn range(first: Ordinal, len: u32) -> Self {
        if len == 0 { Self::default() } else { Ordinals(vec![(first.0, first.0 + u64::from(len))]) }
    }

    /// How many.
    pub fn len(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Runs as first ordinal and first one after the run, ascending.
    pub fn runs(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.0.iter().copied()
    }

    /// Each ordinal, ascending.
    pub fn iter(&self) -> impl Iterator<Item = Ordinal> + '_ {
        self.0.iter().flat_map(|(from, to)| *from..*to).map(Ordinal)
    }

    /// With these as well.
    #[must_use]
    pub fn with(&self, more: &[Ordinal]) -> Self {
        let mut runs = self.0.clone();
        runs.extend(more.iter().map(|o| (o.0, o.0 + 1)));
        runs.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::with_capacity(runs.len());
        for (from, to) in runs {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Ordinals(merged)
    }

    /// Without these.
    #[must_use]
    pub fn without(&self, less: &[Ordinal]) -> Self {
        let mut less: Vec<u64> = less.iter().map(|o| o.0).collect();
        less.sort_unstable();
        let mut rest = Vec::with_capacity(self.0.len() + less.len());
        for (from, to) in self.runs() {
            let mut from = from;
            let inside = less.partition_point(|o| *o < from)..less.partition_point(|o| *o < to);
            for o in &less[inside] {
                if from < *o {
                    rest.push((from, *o));
                }
                from = o + 1;
            }
            if from < to {
                rest.push((from, to));
            }
        }
        Ordinals(rest)
    }
}

/// Written as the gap before each run and its length, which are small numbers.
impl Serialize for Ordinals {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut at = 0;
        let mut steps = Vec::with_capacity(self.0.len());
        for (from, end) in self.runs() {
            steps.push((from - at, end - from));
            at = end;
        }
        steps.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Ordinals {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let steps = Vec::<(u64, u64)>::deserialize(from)?;
        let bad = || serde::de::Error::custom("ordinals are not ascending runs");
        let mut runs: Vec<(u64, u64)> = Vec::with_capacity(steps.len());
        let mut at = 0u64;
        for (gap, len) in steps {
            let first = at.checked_add(gap).ok_or_else(bad)?;
            at = first.checked_add(len).ok_or_else(bad)?;
            if len == 0 || (gap == 0 && !runs.is_empty()) {
                return Err(bad());
            }
            runs.push((first, at));
        }
        Ok(Ordinals(runs))
    }
}

/// Ordinals in one segment.
pub(crate) const SEGMENT: u64 = 1 << 16;
const WORDS: usize = (SEGMENT / 64) as usize;
/// Runs above which 8 KiB of bits are shorter.
const RUNS_MAX: usize = WORDS * 8 / 4;

/// The segment of an ordinal, as a key, and its place in it.
pub(crate) fn segment_of(ordinal: Ordinal) -> (Ordinal, u16) {
    (Ordinal(ordinal.0 / SEGMENT), (ordinal.0 % SEGMENT) as u16)
}

/// One bit for each ordinal of a segment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Bits(Box<[u64]>);

impl Default for Bits {
    fn default() -> Self {
        Bits(vec![0; WORDS].into())
    }
}

impl Bits {
    pub fn set(&mut self, at: u16) {
        self.0[usize::from(at) / 64] |= 1 << (at % 64);
    }
    pub fn clear(&mut self, at: u16) {
        self.0[usize::from(at) / 64] &= !(1 << (at % 64));
    }
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }
    /// Places set in both, ascending.
    pub fn common<'a>(&'a self, other: &'a Bits) -> impl Iterator<Item = u16> + 'a {
        let words = self.0.iter().zip(other.0.iter()).enumerate();
        words.flat_map(|(i, (a, b))| places(i, a & b))
    }
    fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        self.0.iter().enumerate().flat_map(|(i, word)| places(i, *word))
    }
    /// Runs as first and last place.
    fn runs(&self) -> Vec<(u16, u16)> {
        let mut runs: Vec<(u16, u16)> = Vec::new();
        for at in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if at > 0 && *last == at - 1 => *last = at,
                _ => runs.push((at, at)),
            }
        }
        runs
    }
}

/// Places of the set bits of a word.
fn places(word_at: usize, mut word: u64) -> impl Iterator<Item = u16> {
    std::iter::from_fn(move || {
        let bit = word.trailing_zeros();
        (word != 0).then(|| {
            word &= word - 1;
            (word_at * 64) as u16 + bit as u16
        })
    })
}

#[derive(Serialize, Deserialize)]
enum Form {
    Runs(Vec<(u16, u16)>),
    Words(Vec<u64>),
}

impl Serialize for Bits {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let runs = self.runs();
        let form = if runs.len() <= RUNS_MAX { Form::Runs(runs) } else { Form::Words(self.0.to_vec()) };
        form.serialize(to)
    }
}

impl<'de> Deserialize<'de> for Bits {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let bad = |what| serde::de::Error::custom(what);
        match Form::deserialize(from)? {
            Form::Words(words) if words.len() == WORDS => {
                let bits = Bits(words.into());
                let sparse = bits.runs().len() <= RUNS_MAX;
                if sparse { Err(bad("a sparse segment is written as runs")) } else { Ok(bits) }
            }
            Form::Words(_) => Err(bad("a segment of another size")),
            Form::Runs(runs) => {
                let mut bits = Bits::default();
                for (first, last) in &runs {
                    (*first..=*last).for_each(|at| bits.set(at));
                }
                if bits.runs() == runs && runs.len() <= RUNS_MAX {
                    Ok(bits)
                } else {
                    Err(bad("segment runs"))
                }
            }
        }
    }
}

/// What is known of 65,536 neighbouring ordinals. Those that are neither are present.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Segment {
    /// Given out, but no chunk is there under them: deleted, or never used.
    pub absent: Bits,
    /// Their packs are condemned.
    pub condemned: Bits,
}

impl Segment {
    pub fn is_empty(&self) -> bool {
        self.absent.is_empty() && self.condemned.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ordinals(of: &BTreeSet<u64>) -> Ordinals {
        Ordinals::default().with(&of.iter().copied().map(Ordinal).collect::<Vec<_>>())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn ordinals_are_a_set(
            has in prop::collection::btree_set(0..40u64, 0..30),
            more in prop::collection::vec(0..40u64, 0..20),
            less in prop::collection::vec(0..40u64, 0..20),
        ) {
            let list = |of: &[u64]| of.iter().copied().map(Ordinal).collect::<Vec<_>>();
            let set = ordinals(&has);
            let expect: BTreeSet<u64> =
                has.iter().chain(&more).copied().filter(|o| !less.contains(o)).collect();
            let changed = set.with(&list(&more)).without(&list(&less));
            prop_assert_eq!(&changed, &ordinals(&expect));
            prop_assert_eq!(changed.iter().map(|o| o.0).collect::<BTreeSet<_>>(), expect.clone());
            prop_assert_eq!(changed.len(), expect.len() as u64);
            let bytes = postcard::to_stdvec(&changed).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Ordinals>(&bytes).unwrap(), changed);
        }

        #[test]
        fn segments_come_back(places in prop::collection::btree_set(any::<u16>(), 0..200), every in 1..4usize) {
            let mut bits = Bits::default();
            places.iter().for_each(|at| bits.set(*at));
            if every == 2 {
                (0..=u16::MAX).step_by(2).for_each(|at| bits.set(at));
            }
            if every == 3 {
                (0..=u16::MAX).for_each(|at| bits.set(at));
                places.iter().for_each(|at| bits.clear(*at));
            }
            let segment = Segment { absent: bits.clone(), condemned: Bits::default() };
            let bytes = postcard::to_stdvec(&segment).unwrap();
            prop_assert!(bytes.len() <= 2 * WORDS * 10 + 64);
            prop_assert_eq!(postcard::from_bytes::<Segment>(&bytes).unwrap(), segment);
            let set = bits.iter().collect::<BTreeSet<_>>();
            prop_assert_eq!(bits.common(&bits).collect::<BTreeSet<_>>(), set);
        }
    }

    #[test]
    fn runs_that_touch_or_overlap_are_refused() {
        for steps in [vec![(0u64, 0u64)], vec![(3, 1), (0, 1)], vec![(u64::MAX, 1)]] {
            let bytes = postcard::to_stdvec(&steps).unwrap();
            assert!(postcard::from_bytes::<Ordinals>(&bytes).is_err(), "{steps:?}");
        }
        for runs in [vec![(1u16, 0u16)], vec![(0, 1), (2, 3)], vec![(5, 6), (1, 2)]] {
            let bytes = postcard::to_stdvec(&Form::Runs(runs.clone())).unwrap();
            assert!(postcard::from_bytes::<Bits>(&bytes).is_err(), "{runs:?}");
        }
        let sparse = postcard::to_stdvec(&Form::Words(vec![0; WORDS])).unwrap();
        assert!(postcard::from_bytes::<Bits>(&sparse).is_err());
    }
}
