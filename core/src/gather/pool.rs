//! The state of one gather: which bytes of which shard are here or on their way, and what to ask next.
//!
//! The loop is: see what is still wanted, ask for it, wait for one event, note it. Deciding never waits.

use super::extents::{Extents, merge, subtract};
use super::{GatherError, Prefer};
use crate::catalogue::StripeRecord;
use crate::erasure::Codec;
use crate::health::{Doubt, NodeHealth};
use crate::id::{NodeId, RepoId};
use crate::limits::{HEDGE_MS, SHARD_RANGES_MAX};
use crate::peer::{ShardError, ShardIo};
use crate::shard::ShardRange;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;

/// Ranges by shard index.
type Wanted = BTreeMap<u8, Vec<ShardRange>>;

/// How often an unreachable node is asked again once nothing else is left.
const REVIVALS_MAX: u8 = 1;

/// Shortest sleep of whoever waits for a slow read: timers are no finer.
const STEP_MIN: Duration = Duration::from_millis(1);

/// One shard as this gather sees it.
struct Source {
    node: Option<NodeId>,
    cost: (Doubt, u64, u8),
    /// Asked only if decoding needs it: its node failed lately, or cheaper shards suffice.
    aside: bool,
    /// Not asked again.
    dead: bool,
    /// A read of it has taken too long.
    slow: bool,
    got: Extents,
    asked: Vec<ShardRange>,
    revivals: u8,
}

enum Event {
    Read { index: u8, read_no: u64, ranges: Vec<ShardRange>, result: Result<Vec<Bytes>, ShardError> },
    Slow { index: u8, read_no: u64 },
}

pub struct Pool<'a> {
    io: &'a dyn ShardIo,
    stripe: &'a StripeRecord,
    repo: RepoId,
    health: &'a NodeHealth,
    codec: Codec,
    sources: Vec<Source>,
    bad: Vec<(u8, NodeId, ShardError)>,
    events: FuturesUnordered<BoxFuture<'a, Event>>,
    /// Reads under way, by number, with the shard they read.
    reads: BTreeMap<u64, u8>,
    reads_made: u64,
}

impl<'a> Pool<'a> {
    /// `stripe` has been checked: exactly n shards.
    pub fn new(
        io: &'a dyn ShardIo,
        stripe: &'a StripeRecord,
        repo: RepoId,
        prefer: Prefer<'_>,
        health: &'a NodeHealth,
    ) -> Self {
        let source = |(index, node): (usize, Option<NodeId>)| {
            let doubt = node.map_or(Doubt::None, |node| health.doubt(node));
            Source {
                node,
                cost: (doubt, node.map_or(u64::MAX, prefer), index as u8),
                aside: doubt > Doubt::None,
                dead: node.is_none(),
                slow: false,
                got: Extents::default(),
                asked: Vec::new(),
                revivals: 0,
            }
        };
        Pool {
            io,
            stripe,
            repo,
            health,
            codec: Codec::new(stripe.scheme),
            sources: stripe.shards.iter().map(|shard| shard.node).enumerate().map(source).collect(),
            bad: Vec::new(),
            events: FuturesUnordered::new(),
            reads: BTreeMap::new(),
            reads_made: 0,
        }
    }

    /// Has all but the k cheapest shards asked only if those do not suffice.
    pub fn set_aside_the_dearest(&mut self) {
        let mut costs: Vec<_> = self.sources.iter().map(|source| source.cost).collect();
        costs.sort_unstable();
        for (_, _, index) in costs.into_iter().skip(self.codec.k()) {
            self.sources[usize::from(index)].aside = true;
        }
    }

    /// Whether these ranges cost less decoded from the k cheapest shards than read from their own. Decoding needs the same
    /// ranges of all k, so that it pays where many of them are wanted anyway.
    pub fn is_cheaper_decoded(&self, wanted: &Wanted) -> bool {
        let bytes = |ranges: &[ShardRange]| ranges.iter().map(|range| u128::from(range.len)).sum::<u128>();
        let price = |source: &Source| u128::from(source.cost.1);
        let direct: u128 =
            wanted.iter().map(|(index, ranges)| bytes(ranges) * price(self.source(*index))).sum();
        if direct == 0 {
            return false;
        }
        let well = self.sources.iter().filter(|source| !source.dead && !source.aside);
        let mut prices: Vec<u128> = well.map(price).collect();
        prices.sort_unstable();
        if prices.len() < self.codec.k() {
            return false;
        }
        let all = merge(wanted.values().flatten().copied().collect());
        bytes(&all) * prices.iter().take(self.codec.k()).sum::<u128>() < direct
    }

    /// Never reads this shard; it can only be decoded.
    pub fn leave_out(&mut self, index: u8) {
        self.sources[usize::from(index)].dead = true;
        self.sources[usize::from(index)].node = None;
    }

    /// Bytes that are here.
    pub fn bytes(&self, index: u8, range: ShardRange) -> Option<Bytes> {
        self.sources.get(usize::from(index))?.got.slice(range)
    }

    /// What was found wrong, by shard.
    pub fn into_bad(mut self) -> Vec<(u8, NodeId, ShardError)> {
        self.bad.sort_by_key(|(index, ..)| *index);
        self.bad
    }

    /// Gets every wanted range, by reading or by decoding.
    pub async fn fetch(&mut self, wanted: Wanted) -> Result<(), GatherError> {
        let wanted: Wanted = wanted.into_iter().map(|(index, ranges)| (index, merge(ranges))).collect();
        loop {
            let open = self.open(&wanted);
            if open.is_empty() {
                return Ok(());
            }
            self.read_directly(&open);
            if self.decode_or_ask(&open) {
                continue;
            }
            if self.reads.is_empty() {
                if !self.revive() {
                    return Err(self.unreadable(&open));
                }
                continue;
            }
            if let Some(event) = self.events.next().await {
                self.take_in(event);
            }
        }
    }

    /// What is not here yet.
    fn open(&self, wanted: &Wanted) -> Wanted {
        let lacking = wanted.iter().map(|(index, ranges)| (*index, self.source(*index).got.lacking(ranges)));
        lacking.filter(|(_, ranges)| !ranges.is_empty()).collect()
    }

    /// Asks wanted shards for their own bytes, unless something speaks against them.
    fn read_directly(&mut self, open: &Wanted) {
        for (index, ranges) in open {
            let source = self.source(*index);
            if !source.dead && !source.aside && !source.slow {
                self.ask(*index, ranges);
            }
        }
    }

    /// For what cannot be read, or not soon: decodes it if k shards hold the same ranges, else sees to it that k will.
    /// True if something was decoded.
    fn decode_or_ask(&mut self, open: &Wanted) -> bool {
        let needy: Wanted =
            open.iter().filter(|(i, _)| self.is_needy(**i)).map(|(i, r)| (*i, r.clone())).collect();
        if needy.is_empty() {
            return false;
        }
        let ranges = merge(needy.values().flatten().copied().collect());
        let ready: Vec<u8> =
            self.indexes().filter(|i| self.source(*i).got.lacking(&ranges).is_empty()).collect();
        if ready.len() >= self.codec.k() {
            self.decode(needy, &ready);
            return true;
        }
        let mut hopeful = self.indexes().filter(|i| self.will_have(*i, &ranges)).count();
        for index in self.by_cost() {
            if hopeful >= self.codec.k() {
                break;
            }
            if !self.source(index).dead && !self.will_have(index, &ranges) {
                // Who is slow, or did not answer a moment ago, is the last hope and not a good one: do not count on it.
                let source = self.source(index);
                hopeful += usize::from(!source.slow && source.cost.0 != Doubt::Unreachable);
                self.ask(index, &ranges);
            }
        }
        false
    }

    fn is_needy(&self, index: u8) -> bool {
        let source = self.source(index);
        source.dead || source.aside || source.slow
    }

    /// Holds the ranges, or is expected to without delay.
    fn will_have(&self, index: u8, ranges: &[ShardRange]) -> bool {
        let source = self.source(index);
        let lacking = source.got.lacking(ranges);
        lacking.is_empty() || (!source.slow && !source.dead && subtract(&lacking, &source.asked).is_empty())
    }

    fn by_cost(&self) -> Vec<u8> {
        let mut order: Vec<_> = self.sources.iter().map(|s| (s.slow, s.cost)).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, (_, _, index))| index).collect()
    }

    /// Starts reading what is neither here nor on its way.
    fn ask(&mut self, index: u8, ranges: &[ShardRange]) {
        let source = &mut self.sources[usize::from(index)];
        let (Some(node), Some(shard)) = (source.node, self.stripe.shard(self.repo, index)) else { return };
        let lacking = subtract(&source.got.lacking(ranges), &source.asked);
        source.asked = merge(source.asked.iter().chain(&lacking).copied().collect());
        for ranges in lacking.chunks(SHARD_RANGES_MAX).map(<[ShardRange]>::to_vec) {
            let read_no = self.reads_made;
            self.reads_made += 1;
            self.reads.insert(read_no, index);
            let bytes: u64 = ranges.iter().map(|range| range.len).sum();
            let (io, health, began) = (self.io, self.health, Instant::now());
            // Who does not wait decodes, from k shards.
            let instead = bytes * self.codec.k() as u64;
            self.events.push(Box::pin(async move {
                let result = io.get(node, shard, &ranges).await;
                if result.is_ok() {
                    health.took(bytes, began.elapsed());
                }
                Event::Read { index, read_no, ranges, result }
            }));
            self.events.push(Box::pin(async move {
                // What the line carries may become known meanwhile.
                while let Some(left) = health.patience(instead).checked_sub(began.elapsed()) {
                    tokio::time::sleep(left.clamp(STEP_MIN, Duration::from_millis(HEDGE_MS))).await;
                }
                Event::Slow { index, read_no }
            }));
        }
    }

    fn take_in(&mut self, event: Event) {
        match event {
            Event::Slow { index, read_no } => {
                if self.reads.contains_key(&read_no) {
                    let among = self.sources.len();
                    let source = &mut self.sources[usize::from(index)];
                    source.slow = true;
                    source.node.into_iter().for_each(|node| self.health.lags(node, among));
                }
            }
            Event::Read { index, read_no, ranges, result } => {
                self.reads.remove(&read_no);
                let still_reading = self.reads.values().any(|reading| *reading == index);
                let source = &mut self.sources[usize::from(index)];
                let Some(node) = source.node else { return };
                source.asked = subtract(&source.asked, &ranges);
                source.slow &= still_reading;
                match result.and_then(|pieces| self.check_lengths(index, node, &ranges, pieces)) {
                    Ok(pieces) => self.keep(index, node, &ranges, &pieces),
                    Err(error) => self.bury(index, node, error),
                }
            }
        }
    }

    fn check_lengths(
        &self,
        index: u8,
        node: NodeId,
        ranges: &[ShardRange],
        pieces: Vec<Bytes>,
    ) -> Result<Vec<Bytes>, ShardError> {
        let right = pieces.len() == ranges.len()
            && pieces.iter().zip(ranges).all(|(piece, range)| piece.len() as u64 == range.len);
        let id = crate::id::ShardId { stripe: self.stripe.id, index };
        if right {
            Ok(pieces)
        } else {
            Err(ShardError::Corrupt(node, id, "an answer of the wrong length".into()))
        }
    }

    fn keep(&mut self, index: u8, node: NodeId, ranges: &[ShardRange], pieces: &[Bytes]) {
        self.health.answered(node);
        for (range, piece) in ranges.iter().zip(pieces) {
            self.sources[usize::from(index)].got.insert(range.offset, piece);
        }
    }

    fn bury(&mut self, index: u8, node: NodeId, error: ShardError) {
        self.health.note(node, &error);
        self.sources[usize::from(index)].dead = true;
        self.bad.retain(|(other, ..)| *other != index);
        self.bad.push((index, node, error));
    }

    /// Gives unreachable nodes another chance when nothing else is left. True if there was one to give.
    fn revive(&mut self) -> bool {
        let mut revived = false;
        for (index, _, error) in &self.bad {
            let source = &mut self.sources[usize::from(*index)];
            if matches!(error, ShardError::Unreachable(..)) && source.dead && source.revivals < REVIVALS_MAX {
                source.revivals += 1;
                source.dead = false;
                revived = true;
            }
        }
        revived
    }

    /// Decodes shards that want the same ranges together, since each pass reads all k sources.
    fn decode(&mut self, needy: Wanted, ready: &[u8]) {
        let mut alike = BTreeMap::<Vec<ShardRange>, Vec<u8>>::new();
        for (index, ranges) in needy {
            alike.entry(ranges).or_default().push(index);
        }
        for (ranges, want) in alike {
            for range in ranges {
                let piece = |index: &u8| Some((*index, self.source(*index).got.slice(range)?));
                let present: Vec<(u8, Bytes)> = ready.iter().take(self.codec.k()).filter_map(piece).collect();
                let decoded = self.codec.reconstruct(&present, &want);
                let decoded = decoded.expect("k distinct shards hold the range, all equally long");
                for (index, bytes) in want.iter().zip(&decoded) {
                    self.sources[usize::from(*index)].got.insert(range.offset, bytes);
                }
            }
        }
    }

    fn unreadable(&self, open: &Wanted) -> GatherError {
        let ranges = merge(open.values().flatten().copied().collect());
        let have = self.indexes().filter(|i| self.source(*i).got.lacking(&ranges).is_empty()).count();
        let mut why = self.bad.clone();
        why.sort_by_key(|(index, ..)| *index);
        GatherError::Unreadable { have, need: self.codec.k(), why }
    }

    fn source(&self, index: u8) -> &Source {
        &self.sources[usize::from(index)]
    }

    fn indexes(&self) -> impl Iterator<Item = u8> + use<> {
        (0..self.sources.len()).map(|index| index as u8)
    }
}
