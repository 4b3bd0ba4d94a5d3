//! Packs and chunks of one repository, as the sequential specification has them. Which chunks are in a pack never
//! changes, so that is kept once for a whole history; a state only says which packs were committed, in which order.

use super::call::{Answer, Call, Op};
use farshore_client::api::{Located, PackPage};
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{PackCommit, PackRecord};
use farshore_core::erasure::CODEC_RS;
use farshore_core::id::{ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, StripeId};
use std::collections::BTreeMap;

/// What anybody has ever tried to commit: each pack by its id, and where each chunk may be. And what anybody has ever
/// been told of a chunk's number, which never changes: it must come true in every order, so that an order in which it
/// cannot is given up at once.
pub struct PackTable {
    packs: BTreeMap<PackId, PackCommit>,
    chunks: BTreeMap<ChunkId, Vec<(PackId, usize)>>,
    told: BTreeMap<ChunkId, Ordinal>,
    owner: BTreeMap<Ordinal, ChunkId>,
}

impl PackTable {
    /// From the commits of a history.
    pub fn new<'a>(ops: impl Iterator<Item = &'a Op>) -> Self {
        let mut table = PackTable {
            packs: BTreeMap::new(),
            chunks: BTreeMap::new(),
            told: BTreeMap::new(),
            owner: BTreeMap::new(),
        };
        for op in ops {
            table.note(op);
            let Call::CommitPacks { packs, .. } = &op.call else { continue };
            for pack in packs.iter().filter(|pack| !table.packs.contains_key(&pack.id)) {
                for (at, span) in pack.chunks.iter().enumerate() {
                    table.chunks.entry(span.id).or_default().push((pack.id, at));
                }
            }
            table.packs.extend(packs.iter().map(|pack| (pack.id, pack.clone())));
        }
        table
    }

    fn note(&mut self, op: &Op) {
        let mut tell = |id: &ChunkId, ordinal: Option<Ordinal>| {
            if let Some(ordinal) = ordinal {
                self.told.entry(*id).or_insert(ordinal);
                self.owner.entry(ordinal).or_insert(*id);
            }
        };
        match (&op.call, &op.answer) {
            (Call::CommitPacks { packs, .. }, Some(Answer::PacksCommitted(done))) => {
                for (pack, done) in packs.iter().zip(done) {
                    let told = pack.chunks.iter().zip(&done.ordinals);
                    told.for_each(|(span, ordinal)| tell(&span.id, Some(*ordinal)));
                }
            }
            (Call::Lookup { ids, .. }, Some(Answer::Ordinals(found))) => {
                ids.iter().zip(found).for_each(|(id, ordinal)| tell(id, *ordinal));
            }
            (Call::Locate { ids, .. }, Some(Answer::Located(found))) => {
                ids.iter().zip(&found.places).for_each(|(id, place)| tell(id, place.map(|p| p.ordinal)));
            }
            _ => {}
        }
    }

    /// Whether a place in the row of ordinals may go to a chunk that may or may not be known by another one.
    fn allows(&self, ordinal: Ordinal, id: &ChunkId, known: bool) -> bool {
        match self.owner.get(&ordinal) {
            Some(owner) => owner == id && !known,
            None => known || !self.told.contains_key(id),
        }
    }
}

/// The packs of a repository that are there.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Packs {
    next: u64,
    by_id: BTreeMap<PackId, Pack>,
    /// Ids by first ordinal, which is the order of their commits.
    order: BTreeMap<u64, PackId>,
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Pack {
    first: u64,
    /// Unknown until somebody has seen it: numbers are shared with other repositories.
    no: Option<PackNo>,
    /// The last placement that somebody has seen.
    placed: Option<(u64, Vec<Option<NodeId>>)>,
}

impl Packs {
    /// Every ordinal below it was given out.
    pub fn next_ordinal(&self) -> u64 {
        self.next
    }

    /// Whether a pack is there.
    pub fn has(&self, id: &PackId) -> bool {
        self.by_id.contains_key(id)
    }

    /// The pack that brought a chunk first, and the chunk's position in it.
    fn home(&self, table: &PackTable, id: &ChunkId) -> Option<(u64, PackId, usize)> {
        let homes = table.chunks.get(id)?.iter();
        homes.filter_map(|(pack, at)| Some((self.by_id.get(pack)?.first, *pack, *at))).min()
    }

    /// The number of a chunk that is there.
    pub fn ordinal(&self, table: &PackTable, id: &ChunkId) -> Option<Ordinal> {
        self.home(table, id).map(|(first, _, at)| Ordinal(first + at as u64))
    }

    /// Adds packs, all or none (the caller drops this state then), and compares with the answer if there is one.
    pub fn commit(
        &mut self,
        table: &PackTable,
        packs: &[PackCommit],
        answer: Option<&Vec<PackCommitted>>,
    ) -> bool {
        if answer.is_some_and(|answer| answer.len() != packs.len()) {
            return false;
        }
        packs.iter().enumerate().all(|(at, pack)| {
            self.add(table, pack)
                && answer.and_then(|answer| answer.get(at)).is_none_or(|answer| {
                    let ordinals = pack.chunks.iter().map(|span| self.ordinal(table, &span.id));
                    answer.id == pack.id
                        && ordinals.eq(answer.ordinals.iter().map(|ordinal| Some(*ordinal)))
                        && self.number(pack.id, answer.no)
                })
        })
    }

    fn add(&mut self, table: &PackTable, pack: &PackCommit) -> bool {
        // A pack is known by its bytes, its table included; another one of the same name is refused.
        if table.packs.get(&pack.id).is_none_or(|known| known.chunks != pack.chunks || known.len != pack.len)
        {
            return false;
        }
        if !self.by_id.contains_key(&pack.id) {
            let places = (self.next..).zip(&pack.chunks);
            let known = |id| self.home(table, id).is_some();
            if !places.into_iter().all(|(at, span)| table.allows(Ordinal(at), &span.id, known(&span.id))) {
                return false;
            }
            self.by_id.insert(pack.id, Pack { first: self.next, ..Pack::default() });
            self.order.insert(self.next, pack.id);
            self.next += pack.chunks.len() as u64;
        }
        true
    }

    /// Notes the number of a pack: never two, and ascending in the order of the commits.
    fn number(&mut self, id: PackId, no: PackNo) -> bool {
        let Some(pack) = self.by_id.get(&id) else { return false };
        if pack.no.is_some() {
            return pack.no == Some(no);
        }
        let number = |(_, id): (&u64, &PackId)| self.by_id.get(id).and_then(|pack| pack.no);
        let before = self.order.range(..pack.first).rev().find_map(number);
        let after = self.order.range(pack.first + 1..).find_map(number);
        if before.is_some_and(|before| before >= no) || after.is_some_and(|after| after <= no) {
            return false;
        }
        if let Some(pack) = self.by_id.get_mut(&id) {
            pack.no = Some(no);
        }
        true
    }

    /// Whether a pack that is there can be described like this.
    fn shows_as(&mut self, table: &PackTable, repo: RepoId, row: &PackRecord) -> bool {
        let Some(sent) = table.packs.get(&row.id) else { return false };
        let (k, m, _) = sent.scheme.into();
        let hashes = |shards: &[farshore_core::catalogue::ShardRecord]| {
            shards.iter().map(|shard| shard.hash).collect::<Vec<_>>()
        };
        let same = row.repo == repo
            && (row.kind, row.len, row.chunks as usize) == (sent.kind, sent.len, sent.chunks.len())
            && (row.stripe.scheme, row.stripe.shard_len) == (sent.scheme, sent.shard_len)
            && row.stripe.id == StripeId::of(repo, row.id, k, m, CODEC_RS)
            && hashes(&row.stripe.shards) == hashes(&sent.shards);
        same && self.number(row.id, row.no) && self.by_id.get_mut(&row.id).is_some_and(|p| p.placed_as(row))
    }

    /// Whether chunks can be found like this.
    pub fn locate(&mut self, table: &PackTable, repo: RepoId, ids: &[ChunkId], found: &Located) -> bool {
        let fits = |(id, place): (&ChunkId, &Option<farshore_client::api::ChunkPlace>)| {
            let home = self.home(table, id);
            let Some(place) = place else { return home.is_none() };
            home.is_some_and(|(first, pack, at)| {
                let span = table.packs.get(&pack).and_then(|pack| pack.chunks.get(at));
                place.ordinal.0 == first + at as u64
                    && found.packs.get(&place.pack).is_some_and(|row| row.id == pack)
                    && span.is_some_and(|span| (span.offset, span.len) == (place.offset, place.len))
            })
        };
        ids.len() == found.places.len()
            && ids.iter().zip(&found.places).all(fits)
            && found.packs.iter().all(|(no, row)| row.no == *no && self.shows_as(table, repo, row))
    }

    /// Whether a page of the packs from a number on can look like this: those in between are all there, and the last
    /// page ends with the last pack.
    pub fn list(&mut self, table: &PackTable, repo: RepoId, from: PackNo, page: &PackPage) -> bool {
        if !page.packs.iter().all(|row| row.no >= from && self.shows_as(table, repo, row)) {
            return false;
        }
        let order: Vec<PackId> = self.order.values().copied().collect();
        let shown = page.packs.iter().map(|row| row.id);
        let begin = match page.packs.first() {
            Some(row) => order.iter().position(|id| *id == row.id).unwrap_or(order.len()),
            None => order.len(),
        };
        let end = begin + page.packs.len();
        // Before the first one shown there are only smaller numbers, and no number is smaller than 0.
        let small = |id: &PackId| {
            from.0 > 0 && self.by_id.get(id).is_some_and(|pack| pack.no.is_none_or(|no| no < from))
        };
        order.get(begin..end).is_some_and(|rows| shown.eq(rows.iter().copied()))
            && order.iter().take(begin).all(small)
            && (end == order.len() || page.next.is_some())
    }
}

impl Pack {
    /// Placements only move on, and one generation is one placement.
    fn placed_as(&mut self, row: &PackRecord) -> bool {
        let nodes: Vec<_> = row.stripe.shards.iter().map(|shard| shard.node).collect();
        let generation = row.stripe.generation;
        let possible = self
            .placed
            .as_ref()
            .is_none_or(|(known, at)| generation > *known || generation == *known && nodes == *at);
        self.placed = Some((generation, nodes));
        row.first_ordinal.0 == self.first && possible
    }
}
