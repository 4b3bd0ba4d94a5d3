//! Gathers over shards in a map, with every pattern of failures that must be survived and those that must not.

use super::fake::{FakeIo, Fault, puts_of};
use super::*;
use crate::catalogue::ShardRecord;
use crate::erasure::Scheme;
use crate::id::{ShardHash, StripeId};
use crate::limits::{HEDGE_MS, NODE_SLOW_MS};
use crate::peer::ShardPut;
use std::time::Duration;
use tokio::time::Instant;

const REPO: RepoId = RepoId([2; 16]);

fn any(_: NodeId) -> u64 {
    0
}

/// A 4+2 stripe; shard i is on node i + 1.
struct Setup {
    io: FakeIo,
    health: NodeHealth,
    stripe: StripeRecord,
    pack: Vec<u8>,
    puts: Vec<ShardPut>,
}

fn setup(len: usize) -> Setup {
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let pack: Vec<u8> = (0..len).map(|i| (i * 7 % 251) as u8).collect();
    let puts = puts_of(scheme, &pack);
    let io = FakeIo::new();
    for put in &puts {
        io.store(holder(put.header.id.index), put.header.id, put.payload.clone());
    }
    let shards =
        puts.iter().map(|p| ShardRecord { node: Some(holder(p.header.id.index)), hash: p.header.hash });
    let stripe = StripeRecord {
        id: puts[0].header.id.stripe,
        scheme,
        shard_len: puts[0].header.payload_len,
        generation: 0,
        shards: shards.collect(),
    };
    Setup { io, health: NodeHealth::new(), stripe, pack, puts }
}

fn holder(index: u8) -> NodeId {
    NodeId(u64::from(index) + 1)
}

impl Setup {
    async fn ranges(&self, ranges: &[PackRange]) -> Result<Gathered<Vec<Bytes>>, GatherError> {
        gather_ranges(&self.io, &self.stripe, REPO, self.pack.len() as u64, ranges, &any, &self.health).await
    }
    async fn pack(&self) -> Result<Gathered<Bytes>, GatherError> {
        let id = Some(PackId::of(&self.pack));
        gather_pack(&self.io, &self.stripe, REPO, self.pack.len() as u64, id, &any, &self.health).await
    }
    fn expect(&self, range: &PackRange) -> &[u8] {
        &self.pack[range.offset as usize..(range.offset + range.len) as usize]
    }
}

fn some_ranges() -> Vec<PackRange> {
    // Inside a shard, across two, overlapping, empty, across all, the last byte.
    let pairs = [(100, 50), (2_400, 300), (2_450, 10), (7, 0), (0, 9_999), (9_998, 1), (140, 20)];
    pairs.into_iter().map(|(offset, len)| PackRange { offset, len }).collect()
}

#[tokio::test]
async fn a_healthy_range_reads_its_own_bytes_and_no_more() {
    let s = setup(10_000);
    let found = s.ranges(&[PackRange { offset: 3_000, len: 100 }]).await.unwrap();
    assert_eq!(found.bytes[0], s.pack[3_000..3_100]);
    assert_eq!((s.io.bytes_read(), found.bad.len()), (100, 0));
    s.io.set(holder(1), Fault::Missing);
    let found = s.ranges(&[PackRange { offset: 3_000, len: 100 }]).await.unwrap();
    assert_eq!(found.bytes[0], s.pack[3_000..3_100]);
    // Decoding reads the same hundred bytes of four others.
    assert_eq!((s.io.bytes_read(), found.bad.len()), (400, 1));
}

/// Shards 1 and 2 are dear: a whole pack is decoded from the others, and a little of shard 1 is read from it, since decoding
/// would need as much of four.
#[tokio::test]
async fn what_is_dear_is_decoded_where_that_costs_less() {
    let s = setup(10_000);
    let dear = [holder(1), holder(2)];
    let read = async |range: PackRange, price: u64| {
        let prefer = move |node: NodeId| if dear.contains(&node) { price } else { 10 };
        let before = dear.map(|node| s.io.calls(node));
        let found =
            gather_ranges(&s.io, &s.stripe, REPO, 10_000, &[range], &prefer, &s.health).await.unwrap();
        assert_eq!(&found.bytes[0][..], s.expect(&range));
        dear.map(|node| s.io.calls(node)) != before
    };
    let (whole, little) = (PackRange { offset: 0, len: 10_000 }, PackRange { offset: 3_000, len: 100 });
    assert!(!read(whole, 11).await, "four cheap ones give all of it");
    assert!(read(whole, 10).await, "among equals the data shards");
    assert!(read(little, 40).await, "as much from each of four costs no less");
    assert!(!read(little, 41).await);
    s.io.set(holder(0), Fault::Missing);
    assert!(read(whole, 90).await, "dear is better than not at all");
}

#[tokio::test]
async fn every_pattern_of_failures_up_to_m_is_survived_and_none_beyond() {
    for fault in [Fault::Missing, Fault::Corrupt, Fault::Unreachable, Fault::Refuse, Fault::ShortRead] {
        for pattern in 0u32..64 {
            let s = setup(9_999);
            let hit: Vec<u8> = (0..6).filter(|i| pattern >> i & 1 == 1).collect();
            hit.iter().for_each(|i| s.io.set(holder(*i), fault));
            let (ranges, pack) = (s.ranges(&some_ranges()).await, s.pack().await);
            if hit.len() > 2 {
                assert!(
                    matches!(&ranges, Err(GatherError::Unreadable { need: 4, .. })),
                    "{fault:?} {pattern:b}"
                );
                let Err(GatherError::Unreadable { have, why, .. }) = pack else {
                    panic!("{fault:?} {pattern:b}")
                };
                assert_eq!((have, why.len()), (6 - hit.len(), hit.len()), "{fault:?} {pattern:b}");
                continue;
            }
            let found = ranges.unwrap();
            for (range, bytes) in some_ranges().iter().zip(&found.bytes) {
                assert_eq!(&bytes[..], s.expect(range), "{fault:?} {pattern:b}");
            }
            assert!(found.bad.iter().all(|(i, node, _)| hit.contains(i) && *node == holder(*i)));
            assert!(hit.iter().filter(|i| **i < 4).all(|i| found.bad.iter().any(|(bad, ..)| bad == i)));
            assert_eq!(pack.unwrap().bytes, s.pack, "{fault:?} {pattern:b}");
        }
    }
}

#[tokio::test]
async fn every_shard_can_be_rebuilt_without_its_holder() {
    for want in 0..6u8 {
        for other in 0..6u8 {
            let mut s = setup(100_000);
            s.io.set(holder(other), Fault::Missing);
            s.stripe.shards[usize::from(want)].node = None;
            let found = gather_shard(&s.io, &s.stripe, REPO, want, &any, &s.health).await.unwrap();
            assert_eq!(found.bytes, s.puts[usize::from(want)].payload);
        }
    }
}

#[tokio::test]
async fn a_whole_pack_with_two_shards_lost_reads_k_shards_only() {
    let s = setup(10_000);
    s.io.set(holder(0), Fault::Missing);
    s.io.set(holder(2), Fault::Missing);
    assert_eq!(s.pack().await.unwrap().bytes, s.pack);
    // The last shard of the pack lacks its padding, which decoding needs too.
    assert_eq!(s.io.bytes_read(), 4 * s.stripe.shard_len);
}

#[tokio::test]
async fn a_pack_comes_from_the_cheapest_k() {
    let s = setup(10_000);
    let dear_data = |node: NodeId| if node.0 <= 2 { 100 } else { 1 };
    let len = s.pack.len() as u64;
    let found = gather_pack(&s.io, &s.stripe, REPO, len, None, &dear_data, &s.health).await.unwrap();
    assert_eq!(found.bytes, s.pack);
    assert_eq!((s.io.calls(NodeId(1)), s.io.calls(NodeId(2))), (0, 0));
    // If a cheap one fails, the dear ones must do.
    s.io.set(NodeId(5), Fault::Corrupt);
    let found = gather_pack(&s.io, &s.stripe, REPO, len, None, &dear_data, &s.health).await.unwrap();
    assert_eq!(found.bytes, s.pack);
    assert_eq!(s.io.calls(NodeId(1)) + s.io.calls(NodeId(2)), 1);
}

#[tokio::test]
async fn a_slow_shard_is_hedged_and_a_slow_helper_too() {
    let s = setup(10_000);
    s.io.set(holder(0), Fault::Slow(Duration::from_secs(60)));
    let start = Instant::now();
    let found = s.ranges(&[PackRange { offset: 10, len: 10 }]).await.unwrap();
    assert_eq!((&found.bytes[0][..], found.bad.len()), (&s.pack[10..20], 0));
    s.io.set(holder(1), Fault::Slow(Duration::from_secs(60)));
    let found = s.ranges(&[PackRange { offset: 10, len: 10 }]).await.unwrap();
    assert_eq!(found.bytes[0], s.pack[10..20]);
    assert!(start.elapsed() < Duration::from_millis(5 * HEDGE_MS), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_thin_line_is_no_reason_to_read_more() {
    let s = setup(8 << 20);
    let range = [PackRange { offset: 0, len: 2 << 20 }];
    let calls = || (0..6).map(|i| s.io.calls(holder(i))).collect::<Vec<_>>();
    // Slower than the link of a data centre, and not slower than the reads before.
    (0..6).for_each(|i| s.io.set(holder(i), Fault::Slow(Duration::from_millis(2 * HEDGE_MS))));
    (0..4).for_each(|_| s.health.took(2 << 20, Duration::from_millis(HEDGE_MS)));
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..2 << 20]);
    assert_eq!(calls(), [1, 0, 0, 0, 0, 0]);
    // One that is slower than all of them together still is hedged.
    s.io.set(holder(0), Fault::Slow(Duration::from_secs(60)));
    let start = Instant::now();
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..2 << 20]);
    assert_eq!(calls(), [2, 1, 1, 1, 1, 0]);
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

/// A restore reads one pack after the other: a slow holder costs the first of them a wait, and the others nothing.
#[tokio::test(start_paused = true)]
async fn a_slow_node_costs_one_wait_and_not_one_for_each_pack() {
    let s = setup(10_000);
    let range = [PackRange { offset: 10, len: 10 }];
    s.io.set(holder(0), Fault::Slow(Duration::from_secs(3)));
    let waited = async || {
        let start = Instant::now();
        assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[10..20]);
        start.elapsed().as_millis() as u64
    };
    assert!(waited().await >= HEDGE_MS);
    for _ in 0..5 {
        assert_eq!(waited().await, 0);
    }
    tokio::time::sleep(Duration::from_millis(NODE_SLOW_MS)).await;
    assert!(waited().await >= HEDGE_MS, "it is given another chance now and then");
}

#[tokio::test]
async fn slow_is_better_than_nothing() {
    let s = setup(10_000);
    (0..6).for_each(|i| s.io.set(holder(i), Fault::Slow(Duration::from_millis(2 * HEDGE_MS))));
    assert_eq!(s.pack().await.unwrap().bytes, s.pack);
    s.io.set(holder(1), Fault::Missing);
    s.io.set(holder(4), Fault::Missing);
    assert_eq!(s.pack().await.unwrap().bytes, s.pack);
}

#[tokio::test]
async fn a_shunned_node_is_not_asked_unless_needed() {
    let s = setup(10_000);
    s.health.note(holder(0), &ShardError::Unreachable(holder(0), String::new()));
    let range = [PackRange { offset: 0, len: 10 }];
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..10]);
    assert_eq!(s.io.calls(holder(0)), 0);
    s.io.set(holder(4), Fault::Missing);
    s.io.set(holder(5), Fault::Missing);
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..10]);
    assert_eq!(s.io.calls(holder(0)), 1);
}

/// Regression: with a region gone and one of the others behind, each node of the region was waited for before the one that was
/// only slow.
#[tokio::test]
async fn who_is_slow_is_asked_before_who_did_not_answer() {
    let s = setup(10_000);
    for index in [0, 1] {
        s.health.note(holder(index), &ShardError::Unreachable(holder(index), String::new()));
    }
    s.health.told_slow([holder(5)]);
    let range = [PackRange { offset: 0, len: 10 }];
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..10]);
    assert_eq!([0, 1, 5].map(|index| s.io.calls(holder(index))), [0, 0, 1]);
    // Nobody else is left: both are asked at once, and not one after the other.
    s.io.set(holder(5), Fault::Slow(Duration::from_secs(3_600)));
    s.io.set(holder(0), Fault::Unreachable);
    s.health.told_slow([]);
    s.health.note(holder(5), &ShardError::Unreachable(holder(5), String::new()));
    assert_eq!(s.ranges(&range).await.unwrap().bytes[0], s.pack[..10]);
    assert_eq!([0, 1].map(|index| s.io.calls(holder(index))), [1, 1]);
}

#[tokio::test]
async fn a_hiccup_of_the_last_hope_is_ridden_out() {
    let s = setup(10_000);
    s.io.set(holder(4), Fault::Missing);
    s.io.set(holder(5), Fault::Missing);
    s.io.set(holder(2), Fault::UnreachableOnce);
    assert_eq!(s.pack().await.unwrap().bytes, s.pack);
}

#[tokio::test]
async fn wrong_records_are_named_and_never_panic() {
    let mut s = setup(10_000);
    s.stripe.shards[5].hash = ShardHash([0; 32]);
    let wrong = gather_shard(&s.io, &s.stripe, REPO, 5, &any, &s.health).await;
    assert!(matches!(wrong, Err(GatherError::WrongShard(id)) if id.index == 5));
    let len = s.pack.len() as u64;
    let other = PackId([0; 32]);
    let wrong = gather_pack(&s.io, &s.stripe, REPO, len, Some(other), &any, &s.health).await;
    assert_eq!(wrong, Err(GatherError::WrongPack(other)));
    let nowhere = gather_shard(&s.io, &s.stripe, REPO, 6, &any, &s.health).await;
    assert!(matches!(nowhere, Err(GatherError::Record(..))));
    for (offset, n) in [(9_999, 2), (10_001, 0), (u64::MAX, 2), (2, u64::MAX)] {
        assert!(matches!(s.ranges(&[PackRange { offset, len: n }]).await, Err(GatherError::Range(..))));
    }
    let long = gather_pack(&s.io, &s.stripe, REPO, u64::MAX, None, &any, &s.health).await;
    assert!(matches!(long, Err(GatherError::Record(..))));
    s.stripe.shards.pop();
    assert!(matches!(s.pack().await, Err(GatherError::Record(..))));
    s.stripe = StripeRecord { id: StripeId([0; 16]), shard_len: 0, ..setup(64).stripe };
    assert!(matches!(s.pack().await, Err(GatherError::Record(..))));
}

#[tokio::test]
async fn nothing_asked_is_nothing_read() {
    let s = setup(100);
    assert!(s.ranges(&[]).await.unwrap().bytes.is_empty());
    assert_eq!(s.ranges(&[PackRange { offset: 100, len: 0 }]).await.unwrap().bytes, [Bytes::new()]);
}
