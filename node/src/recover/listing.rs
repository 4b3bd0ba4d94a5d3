//! Going through the shards of many nodes at once, stripe by stripe. Every node lists its own in the same order, so no
//! more than a page of each is held, and for each stripe it is known who has which shard, and who has none.

use super::patience::insist;
use async_trait::async_trait;
use farshore_core::id::{NodeId, PackId, RepoId, ShardHash, ShardId, StripeId};
use farshore_core::limits::{HEADERS_READ_MAX, LISTED_HELD_MAX, LISTED_SHARDS_MAX};
use farshore_core::shard::{PackInfo, ShardHeader};
use std::collections::{BTreeMap, VecDeque};

/// A shard as the index of its node has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Which.
    pub id: ShardId,
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Pack it codes.
    pub pack: PackId,
    /// Root hash over its payload.
    pub hash: ShardHash,
}

/// What the nodes say of their shards: over the network in life, a map in unit tests.
#[async_trait]
pub trait Listing: Send + Sync {
    /// Up to `limit` shards after `after`, ascending, and where to go on; `None` at the end.
    async fn page(
        &self,
        node: NodeId,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<ShardId>), String>;
    /// The headers of some shards; those that cannot be read are left out.
    async fn headers(&self, node: NodeId, shards: &[ShardId]) -> Result<Vec<ShardHeader>, String>;
}

/// Who lists the shards of a stripe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trace {
    /// Repository it belongs to.
    pub repo: RepoId,
    /// Pack it codes.
    pub pack: PackId,
    /// By shard index: who claims to hold it, and with which hash.
    pub shards: BTreeMap<u8, Vec<(ShardHash, NodeId)>>,
}

/// Traces by their stripe.
pub type Traces = BTreeMap<StripeId, Trace>;

/// A walk through the shards of some nodes.
pub struct Walk<'a> {
    listing: &'a dyn Listing,
    cursors: Vec<Cursor>,
    limit: usize,
}

struct Cursor {
    node: NodeId,
    rows: VecDeque<Listed>,
    after: Option<ShardId>,
    ended: bool,
    failed: Option<String>,
}

impl<'a> Walk<'a> {
    /// From the first stripe.
    pub fn new(listing: &'a dyn Listing, nodes: &[NodeId]) -> Self {
        let limit = (LISTED_HELD_MAX / nodes.len().max(1)).clamp(1, LISTED_SHARDS_MAX);
        let cursor = |node: &NodeId| {
            let (rows, after, failed) = Default::default();
            Cursor { node: *node, rows, after, ended: false, failed }
        };
        Walk { listing, cursors: nodes.iter().map(cursor).collect(), limit }
    }

    /// The next stripe of which anybody has a shard.
    pub async fn next(&mut self) -> Option<(StripeId, Trace)> {
        self.fill().await;
        let first = self.cursors.iter().filter_map(|cursor| cursor.rows.front()).min_by_key(|row| row.id)?;
        let stripe = first.id.stripe;
        let mut trace = Trace { repo: first.repo, pack: first.pack, shards: BTreeMap::new() };
        loop {
            for cursor in &mut self.cursors {
                while let Some(row) = cursor.rows.front().copied().filter(|row| row.id.stripe == stripe) {
                    cursor.rows.pop_front();
                    // A stripe is made from these two; who says otherwise holds something else.
                    if (row.repo, row.pack) == (trace.repo, trace.pack) {
                        trace.shards.entry(row.id.index).or_default().push((row.hash, cursor.node));
                    }
                }
            }
            // What a node has of one stripe may lie on two of its pages.
            if !self.fill().await {
                return Some((stripe, trace));
            }
        }
    }

    /// Whether everything this node has up to the current stripe was listed.
    pub fn lists(&self, node: NodeId) -> bool {
        self.cursors.iter().any(|cursor| cursor.node == node && cursor.failed.is_none())
    }

    /// Nodes that stopped answering, with the reason.
    pub fn failures(&self) -> impl Iterator<Item = (NodeId, &str)> {
        self.cursors.iter().filter_map(|cursor| Some((cursor.node, cursor.failed.as_deref()?)))
    }

    /// Asks those of whom nothing is left. False if there are none.
    async fn fill(&mut self) -> bool {
        let empty = self.cursors.iter_mut().filter(|cursor| cursor.rows.is_empty() && !cursor.ended);
        let filled = empty.map(|cursor| cursor.fill(self.listing, self.limit));
        !futures_util::future::join_all(filled).await.is_empty()
    }
}

impl Cursor {
    async fn fill(&mut self, listing: &dyn Listing, limit: usize) {
        while self.rows.is_empty() && !self.ended {
            let (node, after) = (self.node, self.after);
            let page = insist(|| listing.page(node, after, limit)).await;
            if let Err(why) = page.and_then(|(rows, next)| self.take(rows, next, limit)) {
                (self.failed, self.ended) = (Some(why), true);
                self.rows.clear();
            }
        }
    }

    fn take(&mut self, rows: Vec<Listed>, next: Option<ShardId>, limit: usize) -> Result<(), String> {
        if rows.len() > limit {
            return Err("it lists more shards than were asked for".into());
        }
        let mut last = self.after;
        for row in &rows {
            if last.is_some_and(|last| row.id <= last) {
                return Err("its list is out of order".into());
            }
            last = Some(row.id);
        }
        if next.is_some_and(|next| last.is_some_and(|last| next < last) || Some(next) == self.after) {
            return Err("its list goes round in circles".into());
        }
        (self.after, self.ended) = (next, next.is_none());
        self.rows = rows.into();
        Ok(())
    }
}

/// One header for each stripe, from whoever has one that fits; stripes of which nobody has are left out.
pub async fn headers(listing: &dyn Listing, traces: &Traces) -> BTreeMap<StripeId, ShardHeader> {
    let mut found = BTreeMap::<StripeId, ShardHeader>::new();
    for turn in 0..HEADER_TURNS_MAX {
        let mut asked = BTreeMap::<NodeId, Vec<ShardId>>::new();
        for (stripe, trace) in traces.iter().filter(|(stripe, _)| !found.contains_key(stripe)) {
            let mut claims =
                trace.shards.iter().flat_map(|(index, claims)| claims.iter().map(move |c| (*index, c.1)));
            if let Some((index, node)) = claims.nth(turn) {
                asked.entry(node).or_default().push(ShardId { stripe: *stripe, index });
            }
        }
        if asked.is_empty() {
            return found;
        }
        let asked = asked.iter().map(|(node, shards)| read_headers(listing, *node, shards));
        for header in futures_util::future::join_all(asked).await.into_iter().flatten() {
            let fits = |trace: &Trace| (trace.repo, trace.pack) == (header.repo, header.pack);
            if traces.get(&header.id.stripe).is_some_and(fits)
                && info_of(&header).stripe() == header.id.stripe
            {
                found.insert(header.id.stripe, header);
            }
        }
    }
    found
}

/// What the stripe of a shard codes.
pub fn info_of(header: &ShardHeader) -> PackInfo {
    let ShardHeader { cluster, repo, pack, pack_len, scheme, .. } = *header;
    PackInfo { cluster, repo, pack, pack_len, scheme }
}

/// So many holders of a stripe are asked for a header, one after the other.
const HEADER_TURNS_MAX: usize = 8;

async fn read_headers(listing: &dyn Listing, node: NodeId, shards: &[ShardId]) -> Vec<ShardHeader> {
    let mut read = Vec::with_capacity(shards.len());
    for shards in shards.chunks(HEADERS_READ_MAX) {
        match insist(|| listing.headers(node, shards)).await {
            Ok(headers) => read.extend(headers),
            Err(why) => {
                tracing::warn!(%node, why, "read headers of shards");
                break;
            }
        }
    }
    read
}

#[cfg(test)]
mod tests {
    use super::super::testkit::Map;
    use super::*;
    use farshore_core::erasure::Scheme;
    use farshore_core::id::ClusterId;

    fn info(pack: u8) -> PackInfo {
        PackInfo {
            cluster: ClusterId([1; 16]),
            repo: RepoId([2; 16]),
            pack: PackId([pack; 32]),
            pack_len: 1_000,
            scheme: Scheme::new(4, 2, 2).unwrap(),
        }
    }

    /// Node 1 has all of every stripe, node 2 only the first shard of each.
    fn map() -> Map {
        let mut map = Map::default();
        for pack in 0..20 {
            (0..6).for_each(|index| map.hold(1, &info(pack), index, ShardHash([index; 32])));
            map.hold(2, &info(pack), 0, ShardHash([0; 32]));
        }
        map
    }

    #[tokio::test(start_paused = true)]
    async fn every_stripe_comes_once_with_all_who_hold_it_whatever_pages_it_lies_on() {
        let map = map();
        *map.hiccups.lock().unwrap() = 2;
        let nodes = map.nodes();
        let mut walk = Walk::new(&map, &nodes);
        let mut traces = Traces::new();
        while let Some((stripe, trace)) = walk.next().await {
            assert_eq!(trace.shards.len(), 6);
            assert_eq!((trace.shards[&0].len(), trace.shards[&1].len()), (2, 1));
            assert!(traces.last_key_value().is_none_or(|(last, _)| *last < stripe));
            traces.insert(stripe, trace);
        }
        assert_eq!((traces.len(), walk.failures().count()), (20, 0));
        let headers = headers(&map, &traces).await;
        assert!(headers.iter().all(|(stripe, header)| info_of(header).stripe() == *stripe));
        let read = map.headers_read.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!((headers.len(), read), (20, 20), "one header a stripe, not one a shard");
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_falls_silent_is_told_and_is_no_witness() {
        let mut map = map();
        map.dead.insert(NodeId(2));
        let nodes = map.nodes();
        let mut walk = Walk::new(&map, &nodes);
        let mut count = 0;
        while walk.next().await.is_some() {
            assert!(walk.lists(NodeId(1)) && !walk.lists(NodeId(2)));
            count += 1;
        }
        assert_eq!(count, 20);
        assert_eq!(walk.failures().collect::<Vec<_>>(), [(NodeId(2), "dead")]);
    }
}
