//! Rebuilding a shard region by region. Decoding is linear: a lost shard is the sum of k others, each times a factor in
//! GF(2^8). So the shards of one region can be added up there, and one sum as long as a shard leaves the region instead of
//! each of them. This file only decides who adds what; it reads nothing.
//!
//! The idea is that of repair pipelining and partial-parallel repair (Mitra et al., "Partial-Parallel-Repair (PPR)",
//! EuroSys 2016), with regions in the place of racks.

use crate::catalogue::{PackRecord, StripeRecord};
use crate::erasure::Codec;
use crate::id::{NodeId, RepoId, ShardHash};
use crate::peer::Term;
use crate::topology::Region;
use std::collections::BTreeMap;

/// What the shards of one region contribute to a shard that is rebuilt.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionSum {
    /// Where they lie.
    pub region: Region,
    /// Which they are, one at least.
    pub terms: Vec<Term>,
    /// Who adds them up and sends the sum; `None` if the builder reads them itself.
    pub relay: Option<NodeId>,
}

/// An order to make one shard and keep it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BuildOrder {
    /// The pack it belongs to.
    pub pack: PackRecord,
    /// Which shard.
    pub index: u8,
    /// What it is the sum of.
    pub sums: Vec<RegionSum>,
}

/// What was made of an order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Built {
    /// What the builder computed and keeps.
    pub hash: ShardHash,
    /// Bytes that came from other regions.
    pub crossed: BTreeMap<Region, u64>,
    /// Relays whose sum was not that of the shards.
    pub liars: Vec<NodeId>,
    /// The sums were of no use; the shards were read one by one.
    pub singly: bool,
    /// It was there all the time, and nothing was sent.
    pub kept: bool,
}

/// Who adds what, so that the sums of all regions together are shard `want`: the builder's own region first, then as few
/// others as possible. `holders` are the good shards; if `want` is among them it is simply copied. `None` if they are
/// too few, or the record contradicts itself.
pub fn plan_sums(
    stripe: &StripeRecord,
    repo: RepoId,
    want: u8,
    holders: &[(u8, NodeId, Region)],
    home: &Region,
) -> Option<Vec<RegionSum>> {
    let chosen = match holders.iter().find(|(index, ..)| *index == want) {
        Some(copy) => vec![copy],
        None => nearest(holders, home, stripe.scheme.k())?,
    };
    let indexes: Vec<u8> = chosen.iter().map(|(index, ..)| *index).collect();
    let factors = match indexes[..] == [want] {
        true => vec![1],
        false => Codec::new(stripe.scheme).coefficients(&indexes, want).ok()?,
    };
    let mut sums = Vec::<RegionSum>::new();
    for ((index, node, region), factor) in chosen.into_iter().zip(factors) {
        let term = Term { node: *node, shard: stripe.shard(repo, *index)?, factor };
        match sums.last_mut().filter(|sum| sum.region == *region) {
            Some(sum) => sum.terms.push(term),
            None => sums.push(RegionSum { region: region.clone(), terms: vec![term], relay: None }),
        }
    }
    for sum in sums.iter_mut().filter(|sum| sum.region != *home) {
        // Not always the first: adding up costs its node some work.
        let turn = usize::from(stripe.id.0[0] ^ want);
        sum.relay = sum.terms.get(turn % sum.terms.len()).map(|term| term.node);
    }
    Some(sums)
}

/// k of the shards: all of the builder's own region, then of those regions that have the most. No choice touches fewer
/// regions.
fn nearest<'a>(
    holders: &'a [(u8, NodeId, Region)],
    home: &Region,
    k: usize,
) -> Option<Vec<&'a (u8, NodeId, Region)>> {
    let mut by_region = BTreeMap::<&Region, Vec<_>>::new();
    for holder in holders {
        by_region.entry(&holder.2).or_default().push(holder);
    }
    let mut regions: Vec<_> = by_region.into_iter().collect();
    regions.sort_by_key(|(region, held)| (*region != home, std::cmp::Reverse(held.len())));
    let chosen: Vec<_> = regions.into_iter().flat_map(|(_, held)| held).take(k).collect();
    (chosen.len() == k).then_some(chosen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalogue::ShardRecord;
    use crate::erasure::{Scheme, mul_add};
    use crate::host::task::splitmix;
    use crate::id::StripeId;
    use crate::shard::hash_shard;
    use bytes::Bytes;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const REPO: RepoId = RepoId([2; 16]);

    fn region(no: usize) -> Region {
        format!("p/{no}").parse().unwrap()
    }

    /// A coded stripe whose shard i lies on node i + 1.
    fn stripe(k: u8, m: u8, seed: u64) -> (StripeRecord, Vec<Bytes>) {
        let scheme = Scheme::new(k, m, 1).unwrap();
        let pack: Vec<u8> = (0..usize::from(k) * 100).map(|i| splitmix(seed, i as u64) as u8).collect();
        let payloads = Codec::new(scheme).encode_pack(pack.into());
        let id = StripeId([seed as u8; 16]);
        let shard = |(index, payload): (usize, &Bytes)| ShardRecord {
            node: Some(NodeId(index as u64 + 1)),
            hash: hash_shard(crate::id::ShardId { stripe: id, index: index as u8 }, payload).0,
        };
        let shards = payloads.iter().enumerate().map(shard).collect();
        let shard_len = payloads[0].len() as u64;
        (StripeRecord { id, scheme, shard_len, generation: 1, shards }, payloads)
    }

    fn added_up(sums: &[RegionSum], payloads: &[Bytes]) -> Vec<u8> {
        let mut total = vec![0; payloads[0].len()];
        for term in sums.iter().flat_map(|sum| &sum.terms) {
            mul_add(term.factor, &payloads[usize::from(term.shard.id.index)], &mut total).unwrap();
        }
        total
    }

    #[test]
    fn one_shard_instead_of_five_crosses_for_nine_plus_six_in_three_regions() {
        let (stripe, payloads) = stripe(9, 6, 1);
        let holders: Vec<_> =
            (1..15u8).map(|i| (i, NodeId(u64::from(i) + 1), region(usize::from(i) / 5))).collect();
        let sums = plan_sums(&stripe, REPO, 0, &holders, &region(0)).unwrap();
        assert_eq!(sums.iter().map(|sum| sum.terms.len()).collect::<Vec<_>>(), [4, 5]);
        assert_eq!((sums[0].relay, sums[1].relay.is_some()), (None, true));
        assert_eq!(added_up(&sums, &payloads), payloads[0]);
    }

    #[test]
    fn a_shard_that_is_there_is_copied() {
        let (stripe, _) = stripe(2, 1, 1);
        let holders = [(0, NodeId(1), region(1)), (2, NodeId(3), region(2))];
        let sums = plan_sums(&stripe, REPO, 2, &holders, &region(1)).unwrap();
        let term = Term { node: NodeId(3), shard: stripe.shard(REPO, 2).unwrap(), factor: 1 };
        assert_eq!(sums, [RegionSum { region: region(2), terms: vec![term], relay: Some(NodeId(3)) }]);
        assert_eq!(plan_sums(&stripe, REPO, 1, &holders[..1], &region(1)), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn the_sums_are_the_shard_and_touch_as_few_regions_as_any_choice(
            k in 1u8..8, m in 1u8..5, places in proptest::collection::vec(0usize..5, 12), gone: u16, home in 0usize..5,
            seed in 1u64..200,
        ) {
            let (stripe, payloads) = stripe(k, m, seed);
            let n = usize::from(k + m);
            let want = (seed % n as u64) as u8;
            let left = (0..n as u8).filter(|i| *i != want && gone >> i & 1 == 0);
            let holders: Vec<_> = left.map(|i| (i, NodeId(u64::from(i) + 1), region(places[usize::from(i)]))).collect();
            let sums = plan_sums(&stripe, REPO, want, &holders, &region(home));
            prop_assert_eq!(sums.is_some(), holders.len() >= usize::from(k));
            let Some(sums) = sums else { return Ok(()) };
            prop_assert_eq!(added_up(&sums, &payloads), &payloads[usize::from(want)][..]);
            prop_assert_eq!(sums.iter().map(|sum| sum.terms.len()).sum::<usize>(), usize::from(k));
            let regions: BTreeSet<_> = sums.iter().map(|sum| &sum.region).collect();
            prop_assert_eq!(regions.len(), sums.len(), "one sum a region");
            for sum in &sums {
                let far = sum.region != region(home);
                prop_assert_eq!(sum.relay.is_some(), far);
                prop_assert!(sum.relay.is_none_or(|relay| sum.terms.iter().any(|term| term.node == relay)));
            }
            // Of all sets of other regions that suffice with the home region, none is smaller.
            let count = |set: u8| holders.iter().filter(|(i, ..)| {
                let place = places[usize::from(*i)];
                place == home || set >> place & 1 == 1
            }).count();
            let fewest = (0u8..32).filter(|set| count(*set) >= usize::from(k)).map(u8::count_ones).min().unwrap();
            let far = sums.iter().filter(|sum| sum.region != region(home)).count();
            prop_assert_eq!(far as u32, fewest);
        }
    }
}
