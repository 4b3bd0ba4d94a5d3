//! Put the shards of a stripe on nodes, all at once, and find other nodes for those that fail.
//!
//! It ends when every shard has a receipt or no candidate is left; whether what was reached is enough, the caller
//! decides with [`floor_holds`]. It never deletes what it put on a node it then gave up on: shards that no commit
//! names are the node's own sweeper's business.

use crate::catalogue::ShardRecord;
use crate::erasure::Scheme;
use crate::health::NodeHealth;
use crate::id::{NodeId, StripeId};
use crate::limits::PUT_RETRY_MS;
use crate::mutant::{Mutant, mutant};
use crate::peer::{Receipt, ShardError, ShardIo, ShardPut};
use crate::placement::{Candidate, Level, assign, level_of};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What became of a stripe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Scattered {
    /// By shard index: its hash, and who gave a receipt for it.
    pub shards: Vec<ShardRecord>,
    /// Which constraints the receipted shards keep; [`Level::Doubled`] too if a shard found no node.
    pub level: Level,
    /// Every call that failed, in the order of failing.
    pub failed: Vec<(NodeId, ShardError)>,
}

/// Whether at least k shards remain after the `floor_nodes` fullest of their nodes are lost.
pub fn floor_holds(shards: &[ShardRecord], scheme: Scheme, floor_nodes: u8) -> bool {
    shards_left(shards, floor_nodes) >= scheme.k() || mutant(Mutant::BelowFloor)
}

/// Shards that remain after the `worst` fullest of their nodes are lost.
pub fn shards_left(shards: &[ShardRecord], worst: u8) -> usize {
    let mut loads = BTreeMap::<NodeId, usize>::new();
    for node in shards.iter().filter_map(|shard| shard.node) {
        *loads.entry(node).or_default() += 1;
    }
    let mut loads: Vec<usize> = loads.into_values().collect();
    loads.sort_unstable_by(|a, b| b.cmp(a));
    loads.iter().skip(worst.into()).sum()
}

/// Stores all n shards of one stripe. `puts` are its shards in the order of their indexes, headers and all.
///
/// # Panics
/// If `puts` are not shards 0 to n of one stripe: callers make them with one encode.
pub async fn scatter(
    io: &dyn ShardIo,
    health: &NodeHealth,
    candidates: &[Candidate],
    puts: &[ShardPut],
) -> Scattered {
    let mut work = Work::new(health, candidates, puts);
    let mut flights = FuturesUnordered::<BoxFuture<'_, Landed>>::new();
    loop {
        for (index, node) in work.assign_open() {
            flights.push(Box::pin(put(io, puts[index].clone(), index, node, Duration::ZERO)));
        }
        let Some(landed) = flights.next().await else { break };
        if let Some((index, node)) = work.take_in(landed) {
            let pause = Duration::from_millis(PUT_RETRY_MS);
            flights.push(Box::pin(put(io, puts[index].clone(), index, node, pause)));
        }
    }
    work.finish()
}

struct Landed {
    index: usize,
    node: NodeId,
    result: Result<Receipt, ShardError>,
}

async fn put(io: &dyn ShardIo, shard: ShardPut, index: usize, node: NodeId, pause: Duration) -> Landed {
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    let (id, hash) = (shard.header.id, shard.header.hash);
    let result = io.put(node, shard).await.and_then(|receipt| {
        let right = receipt == Receipt { node, shard: id, hash };
        right
            .then_some(receipt)
            .ok_or_else(|| ShardError::Corrupt(node, id, "its receipt is for something else".into()))
    });
    Landed { index, node, result }
}

/// The state between events; nothing here waits.
struct Work<'a> {
    health: &'a NodeHealth,
    puts: &'a [ShardPut],
    stripe: StripeId,
    scheme: Scheme,
    candidates: &'a [Candidate],
    /// Candidates that failed lately or are slow: used only when the others cannot keep the stripe safe.
    reserve: BTreeSet<NodeId>,
    /// Nodes that failed in this call.
    out: BTreeSet<NodeId>,
    /// Pairs that failed without saying anything about the node.
    bars: BTreeSet<(NodeId, u8)>,
    /// Nodes that were given their second try.
    retried: BTreeSet<NodeId>,
    /// Those of them that have not answered since.
    suspects: BTreeSet<NodeId>,
    /// By shard: where it is or is on its way to.
    seats: Vec<Option<NodeId>>,
    receipted: Vec<bool>,
    failed: Vec<(NodeId, ShardError)>,
}

impl<'a> Work<'a> {
    fn new(health: &'a NodeHealth, candidates: &'a [Candidate], puts: &'a [ShardPut]) -> Self {
        let header = &puts.first().expect("a stripe has at least two shards").header;
        let (stripe, scheme) = (header.id.stripe, header.scheme);
        let in_order = puts.iter().enumerate().all(|(i, put)| usize::from(put.header.id.index) == i);
        assert!(in_order && puts.len() == scheme.n(), "the n shards of a stripe, in order");
        assert!(puts.iter().all(|put| put.header.id.stripe == stripe), "the shards of one stripe");
        let shunned = candidates.iter().map(|c| c.id).filter(|id| !health.writable(*id));
        let mut reserve: BTreeSet<NodeId> = shunned.collect();
        // A slow node is passed over where others are enough for a stripe as it should be: waiting is better than owing.
        let slow = health.slow();
        if candidates.iter().any(|c| slow.contains(&c.id)) {
            let quick = candidates.iter().filter(|c| !reserve.contains(&c.id) && !slow.contains(&c.id));
            let (quick, none) = (quick.cloned().collect::<Vec<_>>(), vec![None; puts.len()]);
            if assign(stripe, scheme, &quick, &none, &|_, _| false).level == Level::Full {
                reserve.extend(slow);
            }
        }
        Work {
            health,
            puts,
            stripe,
            scheme,
            candidates,
            reserve,
            out: BTreeSet::new(),
            bars: BTreeSet::new(),
            retried: BTreeSet::new(),
            suspects: BTreeSet::new(),
            seats: vec![None; puts.len()],
            receipted: vec![false; puts.len()],
            failed: Vec::new(),
        }
    }

    /// Gives every shard without a seat the best one left, and says which.
    fn assign_open(&mut self) -> Vec<(usize, NodeId)> {
        if self.seats.iter().all(Option::is_some) {
            return Vec::new();
        }
        let mut usable = self.usable();
        // With fewer nodes than this, losing a single one could lose more than m shards.
        if usable.len() < self.scheme.n().div_ceil(self.scheme.m()) && !self.reserve.is_empty() {
            self.reserve.clear();
            usable = self.usable();
        }
        // A node that is being tried again gets nothing new meanwhile, but what is on its way to it keeps its place.
        let barred = |node: NodeId, index: u8| {
            self.bars.contains(&(node, index))
                || (self.seats[usize::from(index)].is_none() && self.suspects.contains(&node))
        };
        let found = assign(self.stripe, self.scheme, &usable, &self.seats, &barred);
        let open = (0..self.seats.len()).filter(|index| self.seats[*index].is_none());
        let new: Vec<(usize, NodeId)> = open.filter_map(|i| found.nodes[i].map(|node| (i, node))).collect();
        // What is already there or on its way stays, even if a barred pair made the plan wish otherwise.
        for (index, node) in &new {
            self.seats[*index] = Some(*node);
        }
        new
    }

    fn usable(&self) -> Vec<Candidate> {
        let usable =
            self.candidates.iter().filter(|c| !self.out.contains(&c.id) && !self.reserve.contains(&c.id));
        usable.cloned().collect()
    }

    /// Takes note of one result; answers what to try again at the same node.
    fn take_in(&mut self, landed: Landed) -> Option<(usize, NodeId)> {
        let Landed { index, node, result } = landed;
        let error = match result {
            Ok(_) => {
                self.health.answered(node);
                self.suspects.remove(&node);
                self.receipted[index] = true;
                return None;
            }
            Err(error) => error,
        };
        let known_dead = self.out.contains(&node) || !self.health.readable(node);
        self.failed.push((node, error.clone()));
        match &error {
            ShardError::Unreachable(..) if !known_dead && self.retried.insert(node) => {
                self.suspects.insert(node);
                return Some((index, node));
            }
            ShardError::Missing(..) | ShardError::Corrupt(..) => {
                self.bars.insert((node, index as u8));
            }
            ShardError::Unreachable(..) | ShardError::Full(..) | ShardError::Refused(..) => {
                self.out.insert(node);
            }
        }
        self.suspects.remove(&node);
        self.health.note(node, &error);
        self.seats[index] = None;
        None
    }

    fn finish(self) -> Scattered {
        let hashes = self.puts.iter().map(|put| put.header.hash);
        let seats = self.seats.iter().zip(&self.receipted).map(|(node, done)| node.filter(|_| *done));
        let shards: Vec<ShardRecord> =
            hashes.zip(seats).map(|(hash, node)| ShardRecord { node, hash }).collect();
        let region = |id: NodeId| self.candidates.iter().find(|c| c.id == id).map(|c| &c.region);
        let level = match shards.iter().all(|shard| shard.node.is_some()) {
            true => level_of(self.scheme, shards.iter().filter_map(|shard| shard.node), region),
            false => Level::Doubled,
        };
        Scattered { shards, level, failed: self.failed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gather::fake::{FakeIo, Fault, puts_of};
    use tokio::time::Instant;

    const PACK: &[u8] = &[7; 10_000];

    fn candidates(sizes: &[usize]) -> Vec<Candidate> {
        let places = sizes.iter().enumerate().flat_map(|(region, size)| std::iter::repeat_n(region, *size));
        let node = |(i, region): (usize, usize)| Candidate {
            id: NodeId(i as u64 + 1),
            region: format!("p/{region}").parse().unwrap(),
            capacity: 1 << 40,
        };
        places.enumerate().map(node).collect()
    }
    fn scheme() -> Scheme {
        Scheme::new(4, 2, 2).unwrap()
    }
    /// Every recorded holder really holds the shard.
    fn check(io: &FakeIo, found: &Scattered, puts: &[ShardPut]) {
        for (shard, put) in found.shards.iter().zip(puts) {
            assert_eq!(shard.hash, put.header.hash);
            if let Some(node) = shard.node {
                assert_eq!(io.stored(node, put.header.id), Some(put.payload.clone()));
            }
        }
    }

    #[tokio::test]
    async fn all_is_well() {
        let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
        let found = scatter(&io, &health, &candidates(&[2, 2, 2]), &puts).await;
        check(&io, &found, &puts);
        assert_eq!((found.level, found.failed.len()), (Level::Full, 0));
        assert!(found.shards.iter().all(|s| s.node.is_some()) && floor_holds(&found.shards, scheme(), 2));
        assert!(!floor_holds(&found.shards, scheme(), 3));
    }

    #[tokio::test]
    async fn a_dead_node_is_replaced_and_then_shunned() {
        let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
        io.set(NodeId(1), Fault::Unreachable);
        let found = scatter(&io, &health, &candidates(&[3, 3, 3]), &puts).await;
        let all = candidates(&[2, 2, 2]);
        check(&io, &found, &puts);
        assert_eq!(found.level, Level::Full);
        let second = scatter(&io, &health, &all, &puts).await;
        // Exactly one retry in all, if the first stripe met the node at all.
        let calls = io.calls(NodeId(1));
        let third = scatter(&io, &health, &all, &puts).await;
        assert_eq!(io.calls(NodeId(1)), calls);
        assert!(calls == 2, "{calls}");
        for found in [second, third] {
            check(&io, &found, &puts);
            assert_eq!(found.level, Level::Doubled);
            assert!(floor_holds(&found.shards, scheme(), 1));
        }
    }

    #[tokio::test]
    async fn a_slow_node_is_passed_over_where_others_are_enough() {
        let (health, puts) = (NodeHealth::new(), puts_of(scheme(), PACK));
        health.told_slow([NodeId(1)]);
        for (sizes, asked) in [([3, 3, 3], 0), ([2, 2, 2], 1)] {
            let io = FakeIo::new();
            let found = scatter(&io, &health, &candidates(&sizes), &puts).await;
            check(&io, &found, &puts);
            assert_eq!((found.level, io.calls(NodeId(1))), (Level::Full, asked), "{sizes:?}");
        }
    }

    #[tokio::test]
    async fn a_lost_region_leaves_two_shards_a_node() {
        let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
        io.set(NodeId(5), Fault::Unreachable);
        io.set(NodeId(6), Fault::Unreachable);
        let found = scatter(&io, &health, &candidates(&[2, 2, 2]), &puts).await;
        check(&io, &found, &puts);
        assert_eq!((found.level, found.failed.len()), (Level::Doubled, 4));
        assert!(floor_holds(&found.shards, scheme(), 1) && !floor_holds(&found.shards, scheme(), 2));
    }

    #[tokio::test]
    async fn full_refusing_and_lying_nodes_are_passed_over() {
        for fault in [Fault::Full, Fault::Refuse, Fault::WrongReceipt, Fault::Corrupt] {
            let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
            let all = candidates(&[3, 3, 3]);
            let drawn = Work::new(&health, &all, &puts).assign_open();
            let (_, bad) = drawn[0];
            io.set(bad, fault);
            let found = scatter(&io, &health, &all, &puts).await;
            check(&io, &found, &puts);
            assert_eq!((io.calls(bad), found.failed.len()), (1, 1), "{fault:?}");
            assert!(found.shards.iter().all(|s| s.node.is_some_and(|node| node != bad)), "{fault:?}");
            assert_eq!(found.level, Level::Full, "{fault:?}");
        }
    }

    #[tokio::test]
    async fn nobody_there() {
        let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
        let all = candidates(&[2, 2, 2]);
        all.iter().for_each(|c| io.set(c.id, Fault::Unreachable));
        let found = scatter(&io, &health, &all, &puts).await;
        assert!(found.shards.iter().all(|s| s.node.is_none()) && !floor_holds(&found.shards, scheme(), 0));
        assert_eq!(scatter(&io, &health, &[], &puts).await.level, Level::Doubled);
        // All are shunned now; they are asked again all the same, because nothing better is left.
        all.iter().for_each(|c| io.clear(c.id));
        let start = Instant::now();
        let found = scatter(&io, &health, &all, &puts).await;
        assert_eq!((found.level, found.failed.len()), (Level::Full, 0));
        assert!(start.elapsed() < Duration::from_millis(PUT_RETRY_MS));
    }

    #[tokio::test]
    async fn a_node_on_its_second_try_gets_nothing_new() {
        let (health, puts, all) = (NodeHealth::new(), puts_of(scheme(), PACK), candidates(&[2, 2, 2]));
        let mut work = Work::new(&health, &all, &puts);
        let drawn = work.assign_open();
        let fails = |at: usize| {
            let (index, node) = drawn[at];
            Landed { index, node, result: Err(ShardError::Unreachable(node, String::new())) }
        };
        for (at, first_try) in drawn.iter().enumerate().skip(1) {
            assert_eq!(work.take_in(fails(at)), Some(*first_try));
        }
        assert_eq!(work.take_in(fails(0)), Some(drawn[0]));
        assert_eq!(work.take_in(fails(0)), None);
        // Five others are in doubt: the shard waits until one of them has answered.
        assert_eq!(work.assign_open(), []);
        let (index, node) = drawn[3];
        let receipt = Receipt { node, shard: puts[index].header.id, hash: puts[index].header.hash };
        assert_eq!(work.take_in(Landed { index, node, result: Ok(receipt) }), None);
        assert_eq!(work.assign_open(), [(drawn[0].0, node)]);
    }

    #[tokio::test]
    async fn a_hiccup_is_ridden_out() {
        let (io, health, puts) = (FakeIo::new(), NodeHealth::new(), puts_of(scheme(), PACK));
        io.set(NodeId(3), Fault::UnreachableOnce);
        let found = scatter(&io, &health, &candidates(&[2, 2, 2]), &puts).await;
        assert_eq!((found.level, found.failed.len()), (Level::Full, 1));
    }
}
