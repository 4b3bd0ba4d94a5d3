//! Pure: which ranges of which packs give a set of chunks. A plan is data; it reads and asks nothing.
//!
//! A pack that is too large for one batch is cut across its data shards, the same rows of all of them together, and not one shard after the
//! other: if a shard cannot be read, its rows are decoded from those very rows of the others, which are in the batch anyway.
//! Cut the other way, each batch of a lost shard would read k others, and theirs would read the same bytes once more.

use crate::api::{ChunkPlace, Located};
use farshore_core::catalogue::PackRecord;
use farshore_core::id::{ChunkId, PackNo};
use farshore_core::limits::{CHUNK_BYTES_MAX, FETCH_BATCH_BYTES, FETCH_GAP_BYTES, SHARD_RANGES_MAX};
use std::collections::{BTreeMap, BTreeSet};

/// One sealed chunk inside a fetched range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedChunk {
    /// Which chunk.
    pub id: ChunkId,
    /// First byte of it in the pack.
    pub offset: u64,
    /// Bytes of it, sealed.
    pub len: u64,
}

/// Consecutive bytes of a pack that are read in one go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FetchRange {
    /// First byte in the pack.
    pub offset: u64,
    /// How many.
    pub len: u64,
    /// The chunks in it, by offset. Between them may lie bytes nobody wants: reading over a small gap is cheaper than
    /// another range.
    pub chunks: Vec<PlannedChunk>,
}

/// Ranges of one pack, small enough to be held in memory together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackFetch {
    /// Which pack; look it up in [`FetchPlan::packs`].
    pub pack: PackNo,
    /// By offset, not overlapping.
    pub ranges: Vec<FetchRange>,
}

impl PackFetch {
    /// Bytes read.
    pub fn bytes(&self) -> u64 {
        self.ranges.iter().map(|r| r.len).sum()
    }
    /// Chunks gained.
    pub fn chunks(&self) -> impl Iterator<Item = &PlannedChunk> {
        self.ranges.iter().flat_map(|r| &r.chunks)
    }
}

/// Everything to read, in the order of first use.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FetchPlan {
    /// The packs named below.
    pub packs: BTreeMap<PackNo, PackRecord>,
    /// What to read, one gather each.
    pub fetches: Vec<PackFetch>,
    /// Chunks the catalogue does not know, or places in a way that cannot be.
    pub missing: Vec<ChunkId>,
}

impl FetchPlan {
    /// Plans the given chunks, each wanted once however often it is named. `located` must answer exactly `ids`.
    pub fn new(ids: &[ChunkId], located: Located) -> Self {
        let mut plan = FetchPlan { packs: located.packs, ..FetchPlan::default() };
        let mut order = Vec::new();
        let mut wanted = BTreeMap::<PackNo, Vec<PlannedChunk>>::new();
        let mut seen = BTreeSet::new();
        for (id, place) in ids.iter().zip(located.places.iter().copied().chain(std::iter::repeat(None))) {
            if !seen.insert(*id) {
                continue;
            }
            match place.filter(|place| plan.plausible(place)) {
                Some(place) => wanted
                    .entry(place.pack)
                    .or_insert_with(|| {
                        order.push(place.pack);
                        Vec::new()
                    })
                    .push(PlannedChunk { id: *id, offset: place.offset.into(), len: place.len.into() }),
                None => plan.missing.push(*id),
            }
        }
        for pack in order {
            let mut chunks = wanted.remove(&pack).unwrap_or_default();
            chunks.sort_by_key(|c| (c.offset, c.id));
            let Some(record) = plan.packs.get(&pack) else { continue };
            let rows = Rows::of(record);
            plan.fetches.extend(rows.split(rows.coalesce(chunks)).map(|ranges| PackFetch { pack, ranges }));
        }
        plan
    }

    /// A node may lie: a place must be inside a pack we were told about, and no longer than any chunk can be.
    fn plausible(&self, place: &ChunkPlace) -> bool {
        let end = u64::from(place.offset) + u64::from(place.len);
        let len_max = CHUNK_BYTES_MAX as u64 * 2;
        place.len > 0
            && u64::from(place.len) <= len_max
            && self.packs.get(&place.pack).is_some_and(|pack| end <= pack.len)
    }

    /// Bytes read from packs.
    pub fn bytes(&self) -> u64 {
        self.fetches.iter().map(PackFetch::bytes).sum()
    }
}

/// How a pack's bytes lie in its data shards: one after the other, each as long.
#[derive(Clone, Copy)]
struct Rows {
    shard_len: u64,
    /// Rows that are read together: as many as come to two thirds of a batch if all shards are wanted.
    window: u64,
}

impl Rows {
    fn of(pack: &PackRecord) -> Self {
        let k = pack.stripe.scheme.k() as u64;
        // The last chunk of a window ends in the next one; there has to be room for that.
        Rows { shard_len: pack.stripe.shard_len.max(1), window: (FETCH_BATCH_BYTES * 2 / 3 / k).max(1) }
    }

    /// Which shard a byte lies in, and in which window of its rows.
    fn place(self, offset: u64) -> (u64, u64) {
        (offset / self.shard_len, offset % self.shard_len / self.window)
    }

    /// Joins neighbours of one window whose gap is smaller than what another range would cost.
    fn coalesce(self, chunks: Vec<PlannedChunk>) -> Vec<FetchRange> {
        let mut ranges = Vec::<FetchRange>::new();
        for chunk in chunks {
            let end = chunk.offset + chunk.len;
            match ranges.last_mut() {
                Some(range)
                    if chunk.offset <= range.offset + range.len + FETCH_GAP_BYTES
                        && self.place(chunk.offset) == self.place(range.offset)
                        && end.saturating_sub(range.offset) <= FETCH_BATCH_BYTES =>
                {
                    range.len = range.len.max(end - range.offset);
                    range.chunks.push(chunk);
                }
                _ => ranges.push(FetchRange { offset: chunk.offset, len: chunk.len, chunks: vec![chunk] }),
            }
        }
        ranges
    }

    /// Groups a pack's ranges so that each group fits into memory and into one call: all together if they do, else window
    /// by window.
    fn split(self, mut ranges: Vec<FetchRange>) -> impl Iterator<Item = Vec<FetchRange>> {
        ranges.sort_by_key(|range| (self.place(range.offset).1, range.offset));
        let all_fit = ranges.iter().map(|range| range.len).sum::<u64>() <= FETCH_BATCH_BYTES;
        let mut groups = Vec::<Vec<FetchRange>>::new();
        let (mut bytes, mut window) = (0, 0);
        for range in ranges {
            let now = self.place(range.offset).1;
            let goes_on = all_fit || (now == window && bytes + range.len <= FETCH_BATCH_BYTES);
            window = now;
            match groups.last_mut() {
                Some(group) if goes_on && group.len() < SHARD_RANGES_MAX / 4 => {
                    bytes += range.len;
                    group.push(range);
                }
                _ => {
                    bytes = range.len;
                    groups.push(vec![range]);
                }
            }
        }
        groups.iter_mut().for_each(|group| group.sort_by_key(|range| range.offset));
        groups.into_iter()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use farshore_core::catalogue::{PackKind, StripeRecord};
    use farshore_core::erasure::Scheme;
    use farshore_core::id::{Ordinal, PackId, RepoId, StripeId};
    use proptest::prelude::*;

    fn id(n: u32) -> ChunkId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_be_bytes());
        ChunkId(id)
    }

    pub fn pack(no: u64) -> (PackNo, PackRecord) {
        let stripe = StripeRecord {
            id: StripeId([0; 16]),
            scheme: Scheme::new(2, 1, 1).unwrap(),
            shard_len: 16 << 20,
            generation: 0,
            shards: vec![],
        };
        let record = PackRecord {
            no: PackNo(no),
            id: PackId([no as u8; 32]),
            repo: RepoId([0; 16]),
            kind: PackKind::Data,
            len: 32 << 20,
            chunks: 1,
            first_ordinal: Ordinal(0),
            stripe,
        };
        (PackNo(no), record)
    }

    fn place(pack: u64, offset: u32, len: u32) -> ChunkPlace {
        ChunkPlace { ordinal: Ordinal(0), pack: PackNo(pack), offset, len }
    }

    #[test]
    fn neighbours_join_and_far_ones_do_not() {
        let places = vec![Some(place(1, 0, 100)), Some(place(1, 200, 100)), Some(place(1, 9 << 20, 100))];
        let plan = FetchPlan::new(&[id(0), id(1), id(2)], Located { places, packs: [pack(1)].into() });
        assert_eq!(plan.fetches.len(), 1);
        assert_eq!(plan.fetches[0].ranges.len(), 2);
        assert_eq!(plan.bytes(), 400);
    }

    #[test]
    fn a_place_outside_its_pack_counts_as_missing() {
        let places = vec![
            Some(place(1, (32 << 20) - 10, 11)),
            Some(place(2, 0, 10)),
            Some(place(1, 0, 0)),
            Some(place(1, 5, u32::MAX)),
            None,
        ];
        let ids = [id(0), id(1), id(2), id(3), id(4), id(5)];
        let plan = FetchPlan::new(&ids, Located { places, packs: [pack(1)].into() });
        assert_eq!(plan.missing, ids, "the sixth got no answer at all");
        assert!(plan.fetches.is_empty());
    }

    /// Bytes that a gather reads of each shard for one batch while some data shards are gone: what is wanted of those that are
    /// there, and the rows that are wanted of the others from k shards.
    fn read_without(rows: Rows, k: u64, fetch: &PackFetch, gone: &[u64]) -> u64 {
        const STEP: u64 = 4 << 10;
        let mut wanted = vec![BTreeSet::<u64>::new(); k as usize];
        for range in &fetch.ranges {
            for at in (range.offset / STEP..(range.offset + range.len).div_ceil(STEP)).map(|step| step * STEP)
            {
                wanted[(at / rows.shard_len).min(k - 1) as usize].insert(at % rows.shard_len / STEP);
            }
        }
        let lost: BTreeSet<u64> =
            gone.iter().flat_map(|shard| wanted[*shard as usize].iter().copied()).collect();
        let there = (0..k).filter(|shard| !gone.contains(shard));
        let read = there.map(|shard| wanted[shard as usize].union(&lost).count()).sum::<usize>();
        (read + gone.len() * lost.len()) as u64 * STEP
    }

    /// Regression: a restore with a region cut off read each byte two to three times, and later, of 8 data shards, half of
    /// the bytes twice.
    #[test]
    fn a_whole_pack_costs_little_more_while_shards_are_gone() {
        let gone = [(4, vec![1]), (4, vec![0, 3]), (8, vec![2, 5]), (8, vec![0, 1, 6])];
        let usual = gone.clone().map(|gone| (32 << 20, 102, gone));
        // Of one that is cut the edges are read twice.
        let large = gone.map(|gone| (60 << 20, 130, gone));
        for (len, percent, (k, gone)) in usual.into_iter().chain(large) {
            let (no, mut record) = pack(1);
            record.len = len;
            record.stripe.scheme = Scheme::new(k, 4, 4).unwrap();
            record.stripe.shard_len = record.len / u64::from(k);
            let mut at = 0u32;
            let mut places = Vec::new();
            while u64::from(at) < record.len {
                let len = (500_000 + at.wrapping_mul(2_654_435_761) % 500_000).min(record.len as u32 - at);
                places.push(Some(place(1, at, len)));
                at += len;
            }
            let ids: Vec<_> = (0..places.len() as u32).map(id).collect();
            let rows = Rows::of(&record);
            let plan = FetchPlan::new(&ids, Located { places, packs: [(no, record)].into() });
            let whole: u64 = plan.fetches.iter().map(|f| read_without(rows, k.into(), f, &[])).sum();
            let short: u64 = plan.fetches.iter().map(|f| read_without(rows, k.into(), f, &gone)).sum();
            assert!(whole * 100 <= plan.bytes() * 101, "{k}: {whole} of {}", plan.bytes());
            assert!(
                short * 100 <= whole * percent,
                "{len}: {k} without {gone:?}: {short} instead of {whole}"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_chunk_once_inside_its_range_and_batches_are_bounded(
            uses in prop::collection::vec((0u32..60, 0u64..3), 0..200),
        ) {
            // The chunk's number decides its place, so that equal ids agree.
            let spot = |n: u32, p: u64| place(p, n * 500_000, 1 + n * 7_919 % 480_000);
            let uses: Vec<_> = uses.into_iter().map(|(n, p)| (n + p as u32 * 60, place(p, 0, 0).pack, spot(n, p))).collect();
            let ids: Vec<_> = uses.iter().map(|u| id(u.0)).collect();
            let places = uses.iter().map(|u| Some(u.2)).collect();
            let plan = FetchPlan::new(&ids, Located { places, packs: (0..3).map(pack).collect() });
            prop_assert!(plan.missing.is_empty());
            let mut got: Vec<_> = plan.fetches.iter().flat_map(PackFetch::chunks).map(|c| c.id).collect();
            let mut want = ids.clone();
            got.sort();
            want.sort();
            want.dedup();
            prop_assert_eq!(got, want);
            for fetch in &plan.fetches {
                prop_assert!(fetch.bytes() <= FETCH_BATCH_BYTES);
                let mut end = 0;
                for range in &fetch.ranges {
                    prop_assert!(range.offset >= end);
                    end = range.offset + range.len;
                    for chunk in &range.chunks {
                        prop_assert!(chunk.offset >= range.offset && chunk.offset + chunk.len <= end);
                    }
                }
            }
        }
    }
}
