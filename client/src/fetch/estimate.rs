//! Pure: how many bytes a plan will read from each node, as things stand. What is read in the end may differ: nodes fail,
//! and who is slow is left for others.

use super::plan::{FetchPlan, PackFetch};
use farshore_core::catalogue::PackRecord;
use farshore_core::id::NodeId;
use std::collections::BTreeMap;

/// Adds the bytes that a plan reads from each node. `cost` says what a byte from a node costs, `None` if it is not asked; of
/// equals data shards come first, as in reading. Packs of which fewer than k shards can be asked are counted in the answer.
pub fn add(plan: &FetchPlan, cost: impl Fn(NodeId) -> Option<u64>, sum: &mut BTreeMap<NodeId, u64>) -> u64 {
    let mut unreadable = 0;
    for fetch in &plan.fetches {
        let Some(pack) = plan.packs.get(&fetch.pack) else { continue };
        if !add_fetch(fetch, pack, &cost, sum) {
            unreadable += 1;
        }
    }
    unreadable
}

fn add_fetch(
    fetch: &PackFetch,
    pack: &PackRecord,
    cost: impl Fn(NodeId) -> Option<u64>,
    sum: &mut BTreeMap<NodeId, u64>,
) -> bool {
    let (k, shard_len) = (pack.stripe.scheme.k(), pack.stripe.shard_len.max(1));
    let shards = pack.stripe.shards.iter().enumerate();
    let mut offers: Vec<(u64, usize, NodeId)> = shards
        .filter_map(|(index, shard)| {
            let node = shard.node?;
            Some((cost(node)?, index, node))
        })
        .collect();
    // Data shards have the lower indices.
    offers.sort_unstable();
    if offers.len() < k {
        return false;
    }
    offers.truncate(k);
    let chosen: BTreeMap<usize, NodeId> = offers.into_iter().map(|(_, index, node)| (index, node)).collect();
    // Rows of each data shard that are wanted, and those that have to be decoded.
    let mut wanted = vec![Vec::new(); k];
    for range in &fetch.ranges {
        let (mut at, end) = (range.offset, range.offset + range.len);
        while at < end {
            let index = (at / shard_len) as usize;
            let until = end.min((at / shard_len + 1) * shard_len);
            if let Some(rows) = wanted.get_mut(index) {
                rows.push((at % shard_len, at % shard_len + (until - at)));
            }
            at = until;
        }
    }
    let lost = (0..k).filter(|index| !chosen.contains_key(index));
    let lost: Vec<(u64, u64)> = lost.flat_map(|index| wanted[index].clone()).collect();
    for (index, node) in chosen {
        let own = wanted.get(index).into_iter().flatten();
        *sum.entry(node).or_default() += union(own.chain(&lost).copied().collect());
    }
    true
}

/// Length of a union of intervals.
fn union(mut intervals: Vec<(u64, u64)>) -> u64 {
    intervals.sort_unstable();
    let (mut sum, mut end) = (0, 0);
    for (from, to) in intervals {
        sum += to.saturating_sub(from.max(end));
        end = end.max(to);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::plan::FetchRange;
    use farshore_core::catalogue::{ShardRecord, StripeRecord};
    use farshore_core::erasure::Scheme;
    use farshore_core::id::*;

    #[test]
    fn unions_count_each_byte_once() {
        assert_eq!(union(vec![(0, 10), (5, 20), (30, 40)]), 30);
        assert_eq!(union(vec![(0, 10), (2, 3)]), 10);
        assert_eq!(union(vec![]), 0);
    }

    #[test]
    fn a_lost_data_shard_is_read_from_k_others_and_the_cheapest_come_first() {
        let (no, mut pack) = crate::fetch::plan::tests::pack(1);
        let shard = |n: u64| ShardRecord { node: Some(NodeId(n)), hash: ShardHash([0; 32]) };
        pack.stripe = StripeRecord {
            scheme: Scheme::new(2, 1, 1).unwrap(),
            shard_len: 100,
            shards: [1, 2, 3].map(shard).into(),
            ..pack.stripe
        };
        let range = |offset, len| FetchRange { offset, len, chunks: vec![] };
        let fetch = PackFetch { pack: no, ranges: vec![range(10, 20), range(90, 30)] };
        let plan = FetchPlan { packs: [(no, pack)].into(), fetches: vec![fetch], missing: vec![] };
        let read = |cost: &dyn Fn(NodeId) -> Option<u64>| {
            let mut sum = BTreeMap::new();
            let unreadable = add(&plan, cost, &mut sum);
            (unreadable, sum.into_iter().map(|(node, bytes)| (node.0, bytes)).collect::<Vec<_>>())
        };
        assert_eq!(read(&|_| Some(0)), (0, vec![(1, 30), (2, 20)]));
        // Rows 0 to 20 of the lost shard from both others, beside what is wanted of the one that is there.
        assert_eq!(read(&|node| (node.0 != 2).then_some(0)), (0, vec![(1, 40), (3, 20)]));
        assert_eq!(read(&|node| Some(u64::from(node.0 == 1))), (0, vec![(2, 40), (3, 30)]));
        assert_eq!(read(&|node| (node.0 == 2).then_some(0)), (1, vec![]));
    }
}
