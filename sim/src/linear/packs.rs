//! Packs and chunks of one repository, as the sequential specification has them. Which chunks are in a pack never
//! changes, so that is kept once for a whole history; a state only says which packs were committed, in which order.
//! What no snapshot needs and no open session may need can be collected as garbage at any time; all else stays.

use super::call::{Answer, Call, Op};
use farshore_client::api::{Located, PackPage};
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{PackCommit, PackRecord};
use farshore_core::erasure::CODEC_RS;
use farshore_core::id::{ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, SessionId, StripeId};
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What anybody has ever tried to commit: each pack by its id, and where each chunk may be. And what anybody has ever
/// been told of the chunk behind a number, which never changes: it must come true in every order, so that an order in
/// which it cannot is given up at once.
pub struct PackTable {
    packs: BTreeMap<PackId, PackCommit>,
    chunks: BTreeMap<ChunkId, Vec<(PackId, usize)>>,
    owner: BTreeMap<Ordinal, ChunkId>,
}

impl PackTable {
    /// From the commits of a history.
    pub fn new<'a>(ops: impl Iterator<Item = &'a Op>) -> Self {
        let mut table = PackTable { packs: BTreeMap::new(), chunks: BTreeMap::new(), owner: BTreeMap::new() };
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

    /// Whether a place in the row of ordinals may belong to a chunk, or stay unused because it had one.
    fn allows(&self, ordinal: Ordinal, id: &ChunkId) -> bool {
        self.owner.get(&ordinal).is_none_or(|owner| owner == id)
    }
}

/// The live set of a snapshot.
pub type Live = Arc<RoaringTreemap>;

/// What must not have been collected as garbage.
pub struct Needed<'a> {
    /// Of the snapshots that are listed.
    pub live: &'a [Live],
    /// Whether a session is certainly open.
    pub is_open: &'a dyn Fn(SessionId) -> bool,
}

/// The packs of a repository that were committed.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Packs {
    next: u64,
    by_id: BTreeMap<PackId, Pack>,
    /// Ids by first ordinal, which is the order of their commits.
    order: BTreeMap<u64, PackId>,
}

#[derive(Clone, PartialEq, Eq)]
struct Pack {
    first: u64,
    /// Unknown until somebody has seen it: numbers are shared with other repositories.
    no: Option<PackNo>,
    /// The last placement that somebody has seen.
    placed: Option<(u64, Vec<Option<NodeId>>)>,
    /// Session that committed it first.
    session: SessionId,
    /// Somebody has seen that it is not there any more.
    gone: bool,
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

    /// Committed packs that brought a chunk, and its number there. It has the number of one of them; which one depends
    /// on what was collected as garbage in between.
    fn homes<'a>(
        &'a self,
        table: &'a PackTable,
        id: &ChunkId,
    ) -> impl Iterator<Item = (PackId, usize, Ordinal)> + 'a {
        let homes = table.chunks.get(id).into_iter().flatten();
        homes.filter_map(|(pack, at)| {
            let known = self.by_id.get(pack)?;
            Some((*pack, *at, Ordinal(known.first + *at as u64)))
        })
    }

    /// Whether a chunk can have this number. While a snapshot names one of its numbers it can have no other.
    pub fn may_be(&self, table: &PackTable, id: &ChunkId, ordinal: Ordinal, live: &[Live]) -> bool {
        let named = |o: Ordinal| live.iter().any(|live| live.contains(o.0));
        let mut homes = self.homes(table, id).map(|(_, _, number)| number);
        homes.any(|number| number == ordinal)
            && (named(ordinal) || !self.homes(table, id).any(|(_, _, number)| named(number)))
    }

    /// Adds packs, all or none (the caller drops this state then), and compares with the answer if there is one.
    pub fn commit(
        &mut self,
        table: &PackTable,
        session: SessionId,
        packs: &[PackCommit],
        answer: Option<&Vec<PackCommitted>>,
        live: &[Live],
    ) -> bool {
        if answer.is_some_and(|answer| answer.len() != packs.len()) {
            return false;
        }
        packs.iter().enumerate().all(|(at, pack)| {
            self.add(table, session, pack)
                && answer.and_then(|answer| answer.get(at)).is_none_or(|answer| {
                    answer.id == pack.id
                        && answer.ordinals.len() == pack.chunks.len()
                        && pack
                            .chunks
                            .iter()
                            .zip(&answer.ordinals)
                            .all(|(span, ordinal)| self.may_be(table, &span.id, *ordinal, live))
                        && self.number(pack.id, answer.no)
                })
        })
    }

    fn add(&mut self, table: &PackTable, session: SessionId, pack: &PackCommit) -> bool {
        // A pack is known by its bytes, its table included; another one of the same name is refused.
        if table.packs.get(&pack.id).is_none_or(|known| known.chunks != pack.chunks || known.len != pack.len)
        {
            return false;
        }
        if !self.by_id.contains_key(&pack.id) {
            let mut places = (self.next..).zip(&pack.chunks);
            if !places.all(|(at, span)| table.allows(Ordinal(at), &span.id)) {
                return false;
            }
            let (no, placed, gone) = Default::default();
            self.by_id.insert(pack.id, Pack { first: self.next, no, placed, session, gone });
            self.order.insert(self.next, pack.id);
            self.next += pack.chunks.len() as u64;
        }
        true
    }

    /// Whether a chunk cannot have been collected: a snapshot names its number, or its session is open.
    fn is_chunk_needed(&self, table: &PackTable, id: &ChunkId, needed: &Needed<'_>) -> bool {
        self.homes(table, id).any(|(pack, _, ordinal)| {
            let own = self.by_id.get(&pack).is_some_and(|pack| (needed.is_open)(pack.session));
            own || needed.live.iter().any(|live| live.contains(ordinal.0))
        })
    }

    /// Whether a pack cannot have been collected: its session is open, or a snapshot names a chunk that lives nowhere
    /// else.
    fn is_pack_needed(&self, table: &PackTable, id: &PackId, needed: &Needed<'_>) -> bool {
        let (Some(pack), Some(sent)) = (self.by_id.get(id), table.packs.get(id)) else { return false };
        let only_here = |chunk: &ChunkId| {
            self.homes(table, chunk)
                .all(|(home, ..)| home == *id || self.by_id.get(&home).is_some_and(|p| p.gone))
        };
        let named = (pack.first..).zip(&sent.chunks).any(|(ordinal, span)| {
            needed.live.iter().any(|live| live.contains(ordinal)) && only_here(&span.id)
        });
        (needed.is_open)(pack.session) || named
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
    pub fn locate(
        &mut self,
        table: &PackTable,
        repo: RepoId,
        ids: &[ChunkId],
        found: &Located,
        needed: &Needed<'_>,
    ) -> bool {
        let fits = |(id, place): (&ChunkId, &Option<farshore_client::api::ChunkPlace>)| {
            let Some(place) = place else { return !self.is_chunk_needed(table, id, needed) };
            let row = found.packs.get(&place.pack);
            let lies = |pack: &PackId, at: usize| {
                let span = table.packs.get(pack).and_then(|pack| pack.chunks.get(at));
                row.is_some_and(|row| row.id == *pack)
                    && span.is_some_and(|span| (span.offset, span.len) == (place.offset, place.len))
            };
            self.may_be(table, id, place.ordinal, needed.live)
                && self.homes(table, id).any(|(pack, at, _)| lies(&pack, at))
        };
        ids.len() == found.places.len()
            && ids.iter().zip(&found.places).all(fits)
            && found.packs.iter().all(|(no, row)| row.no == *no && self.shows_as(table, repo, row))
    }

    /// Whether a page of the packs from a number on can look like this: those left out in between have smaller numbers
    /// or were garbage, and the last page ends with the last pack.
    pub fn list(
        &mut self,
        table: &PackTable,
        repo: RepoId,
        from: PackNo,
        page: &PackPage,
        needed: &Needed<'_>,
    ) -> bool {
        let ascend = page.packs.windows(2).all(|pair| pair[0].no < pair[1].no);
        if !ascend || !page.packs.iter().all(|row| row.no >= from && self.shows_as(table, repo, row)) {
            return false;
        }
        let shown: Vec<PackId> = page.packs.iter().map(|row| row.id).collect();
        let order: Vec<PackId> = self.order.values().copied().collect();
        let place = |id: &PackId| order.iter().position(|known| known == id);
        let begin = shown.first().map_or(order.len(), |id| place(id).unwrap_or(order.len()));
        let end = match page.next {
            Some(_) => shown.last().and_then(place).map_or(0, |last| last + 1),
            None => order.len(),
        };
        for (at, id) in order.iter().enumerate().take(end).filter(|(_, id)| !shown.contains(id)) {
            // Before the first one shown there may be smaller numbers, and no number is smaller than 0.
            let no = self.by_id.get(id).and_then(|pack| pack.no);
            let may_be_small = at < begin && from.0 > 0 && no.is_none_or(|no| no < from);
            if may_be_small {
                continue;
            }
            if self.is_pack_needed(table, id, needed) {
                return false;
            }
            if let Some(pack) = self.by_id.get_mut(id) {
                pack.gone = true;
            }
        }
        true
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
        row.first_ordinal.0 == self.first && possible && !self.gone
    }
}
