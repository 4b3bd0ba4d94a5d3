//! A second, simple-minded catalogue for tests: whole-state maps, every derived fact worked out anew. It shares no code
//! with `apply`, so that a mistake has to be made twice to go unnoticed.

use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::*;
use farshore_core::id::*;
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Default)]
pub(super) struct Model {
    pub cluster: Option<ClusterId>,
    pub time_ms: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub repos: BTreeMap<RepoId, RepoRecord>,
    pub sessions: BTreeMap<SessionId, SessionRecord>,
    pub packs: Vec<PackRecord>,
    pub chunks: BTreeMap<(RepoId, ChunkId), ChunkRecord>,
    pub ordinals: BTreeMap<RepoId, u64>,
    pub snapshots: BTreeMap<(RepoId, SnapshotId), SnapshotRecord>,
    pub under_target: BTreeSet<PackNo>,
    pub condemned: BTreeSet<Condemned>,
    pub exports: Vec<ExportRecord>,
}

/// A reply without the wording of refusals.
pub(super) fn kind(reply: &Reply) -> Reply {
    match reply {
        Reply::Refused(Refusal::Malformed(_)) => Reply::Refused(Refusal::Malformed(String::new())),
        Reply::Refused(Refusal::BelowFloor(id, _)) => Reply::Refused(Refusal::BelowFloor(*id, String::new())),
        other => other.clone(),
    }
}

fn no(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}
fn malformed() -> Reply {
    no(Refusal::Malformed(String::new()))
}

impl Model {
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Reply {
        self.time_ms = self.time_ms.max(proposal.time_ms);
        let before = self.clone();
        let reply = self.carry_out(index, &proposal.command);
        if let Reply::Refused(_) = reply {
            *self = before;
        }
        reply
    }

    fn carry_out(&mut self, index: u64, command: &Command) -> Reply {
        match command.clone() {
            Command::FormCluster { cluster } => match self.cluster.replace(cluster) {
                None => Reply::Done,
                Some(_) => no(Refusal::AlreadyFormed),
            },
            Command::PutNode { node } if node.addr.is_empty() => malformed(),
            Command::PutNode { mut node } => {
                node.state = self.nodes.get(&node.id).map_or(NodeState::Up, |known| known.state);
                self.nodes.insert(node.id, node);
                Reply::Done
            }
            Command::SetNodeState { node, from, to } => self.set_state(node, from, to),
            Command::CreateRepository { repo } => {
                if self.repos.get(&repo.id) == Some(&repo) {
                    return Reply::Done;
                }
                if self.repos.values().any(|known| known.id == repo.id || known.name == repo.name) {
                    return no(Refusal::RepoExists(repo.name.to_string()));
                }
                self.repos.insert(repo.id, repo);
                Reply::Done
            }
            Command::OpenSession { session, repo } => {
                let new = SessionRecord { id: session, repo, opened: index, opened_ms: self.time_ms };
                match self.sessions.get(&session) {
                    Some(open) if open.repo == repo => Reply::SessionOpen { opened: open.opened },
                    Some(_) => malformed(),
                    None if !self.repos.contains_key(&repo) => no(Refusal::NoRepo),
                    None => {
                        self.sessions.insert(session, new);
                        Reply::SessionOpen { opened: index }
                    }
                }
            }
            Command::EndSessions { sessions } => {
                self.sessions.retain(|id, _| !sessions.contains(id));
                Reply::Done
            }
            Command::CommitPacks { session, packs } => {
                let Some(session) = self.sessions.get(&session).cloned() else {
                    return no(Refusal::NoSession(session));
                };
                let committed = packs.into_iter().map(|pack| self.commit_pack(session.repo, pack));
                match committed.collect::<Result<Vec<_>, _>>() {
                    Ok(packs) => Reply::PacksCommitted { packs },
                    Err(refused) => refused,
                }
            }
            Command::CommitSnapshot { session, snapshot } => self.commit_snapshot(session, snapshot),
            Command::PlaceShard { pack, generation, index, node } => {
                self.place(pack, generation, index, node)
            }
            Command::ShardBad { pack, index, node } => {
                let Some(mut row) = self.packs.get(pack.0 as usize).cloned() else {
                    return no(Refusal::NoPack);
                };
                let Some(shard) = row.stripe.shards.get_mut(usize::from(index)) else { return malformed() };
                if shard.node == Some(node) {
                    shard.node = None;
                    let shard = ShardId { stripe: row.stripe.id, index };
                    self.condemn(node, shard);
                    row.stripe.generation += 1;
                    self.set_pack(row);
                }
                Reply::Done
            }
            Command::Recheck { packs } => {
                for no in packs {
                    let pack = self.packs.get(no.0 as usize).cloned();
                    pack.into_iter().for_each(|pack| self.set_pack(pack));
                }
                Reply::Done
            }
            Command::Swept { copies } => {
                self.condemned.retain(|copy| !copies.contains(copy));
                Reply::Done
            }
            Command::RecordExport { export } => self.record_export(export),
            Command::BeginEra { .. } => {
                self.sessions.clear();
                Reply::Done
            }
        }
    }

    fn record_export(&mut self, export: ExportRecord) -> Reply {
        if export.parts.is_empty() || export.parts.iter().any(|p| p.shards.len() != p.scheme.n()) {
            return malformed();
        }
        if export.to < export.from || (export.base && export.from > 0) {
            return malformed();
        }
        self.exports.retain(|known| (known.to, known.id) != (export.to, export.id));
        let base = export.base;
        self.exports.push(export);
        self.exports.sort_by_key(|known| (known.to, known.id));
        while base && self.exports.iter().filter(|e| e.base).count() > 2 {
            let oldest = self.exports.iter().position(|e| e.base).unwrap();
            self.drop_export(oldest);
        }
        let kept = self.exports.iter().filter(|e| e.base).map(|e| e.to).collect::<Vec<_>>();
        while let (true, [first, _]) = (base, kept.as_slice()) {
            let Some(old) = self.exports.iter().position(|e| !e.base && e.to <= *first) else { break };
            self.drop_export(old);
        }
        Reply::Done
    }

    fn drop_export(&mut self, at: usize) {
        for part in self.exports.remove(at).parts {
            for (index, shard) in (0u8..).zip(&part.shards) {
                let shard_id = ShardId { stripe: part.stripe(), index };
                shard.node.into_iter().for_each(|node| self.condemn(node, shard_id));
            }
        }
    }

    fn set_state(&mut self, id: NodeId, from: NodeState, to: NodeState) -> Reply {
        let held = self.held_by(id).len();
        let Some(node) = self.nodes.get_mut(&id) else { return no(Refusal::NoNode(id)) };
        let legal = from.may_become(to);
        if legal && node.state == to {
            return Reply::Done;
        }
        if !legal || node.state != from {
            return no(Refusal::BadTransition(id, node.state));
        }
        if (from, to) == (NodeState::Draining, NodeState::Retired) && held > 0 {
            return no(Refusal::NotEmpty(id));
        }
        node.state = to;
        Reply::Done
    }

    fn counts(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| !matches!(n.state, NodeState::Lost | NodeState::Retired))
    }

    fn commit_pack(&mut self, repo: RepoId, pack: PackCommit) -> Result<PackCommitted, Reply> {
        let (k, m, _) = pack.scheme.into();
        let mut bytes = vec![false; pack.len as usize];
        for chunk in &pack.chunks {
            let range = chunk.offset as usize..(chunk.offset + chunk.len) as usize;
            let range = bytes.get_mut(range).ok_or_else(malformed)?;
            if range.is_empty() || range.iter().any(|taken| *taken) {
                return Err(malformed());
            }
            range.fill(true);
        }
        let ids = pack.chunks.iter().map(|chunk| chunk.id).collect::<BTreeSet<_>>();
        let sorted = pack.chunks.is_sorted_by_key(|chunk| chunk.offset);
        let each = pack.len.div_ceil(u64::from(k)).div_ceil(64) * 64;
        let hashed = pack.shards.iter().all(|shard| shard.hash != ShardHash([0; 32]));
        let whole = ids.len() == pack.chunks.len() && !ids.is_empty() && sorted && each == pack.shard_len;
        if !whole || !hashed || pack.len == 0 || pack.shards.len() != usize::from(k + m) {
            return Err(malformed());
        }
        if let Some(known) = self.packs.iter().find(|p| p.repo == repo && p.id == pack.id) {
            let known_ids = ids.iter().all(|id| self.chunks.contains_key(&(repo, *id)));
            let same = (known.len, known.kind, known.chunks as usize) == (pack.len, pack.kind, ids.len());
            if !same || !known_ids {
                return Err(malformed());
            }
            let ordinals = pack.chunks.iter().map(|c| self.chunks[&(repo, c.id)].ordinal).collect();
            return Ok(PackCommitted { id: pack.id, no: known.no, ordinals });
        }
        let mut held = BTreeMap::<NodeId, u8>::new();
        for node in pack.shards.iter().filter_map(|shard| shard.node) {
            if !self.nodes.contains_key(&node) {
                return Err(no(Refusal::NoNode(node)));
            }
            *held.entry(node).or_default() += u8::from(self.counts(node));
        }
        for _ in 0..self.repos[&repo].policy.floor_nodes {
            if let Some(fullest) = held.iter().max_by_key(|(_, held)| **held).map(|(node, _)| *node) {
                held.remove(&fullest);
            }
        }
        if held.values().sum::<u8>() < k {
            return Err(no(Refusal::BelowFloor(pack.id, String::new())));
        }
        Ok(self.new_pack(repo, pack))
    }

    fn new_pack(&mut self, repo: RepoId, pack: PackCommit) -> PackCommitted {
        let (k, m, _) = pack.scheme.into();
        let number = PackNo(self.packs.len() as u64);
        let next = self.ordinals.entry(repo).or_default();
        let first = *next;
        *next += pack.chunks.len() as u64;
        let mut ordinals = Vec::new();
        for (i, c) in pack.chunks.iter().enumerate() {
            let new = ChunkRecord {
                ordinal: Ordinal(first + i as u64),
                pack: number,
                offset: c.offset,
                len: c.len,
            };
            ordinals.push(self.chunks.entry((repo, c.id)).or_insert(new).ordinal);
        }
        let stripe = StripeRecord {
            id: StripeId::of(repo, pack.id, k, m, 1),
            scheme: pack.scheme,
            shard_len: pack.shard_len,
            generation: 0,
            shards: pack.shards,
        };
        let chunks = pack.chunks.len() as u32;
        let (id, kind, len, first_ordinal) = (pack.id, pack.kind, pack.len, Ordinal(first));
        self.packs.push(PackRecord { no: number, id, repo, kind, len, chunks, first_ordinal, stripe });
        self.set_pack(self.packs[number.0 as usize].clone());
        PackCommitted { id, no: number, ordinals }
    }

    fn commit_snapshot(&mut self, session: SessionId, offered: SnapshotRecord) -> Reply {
        let Ok(live) = roaring::RoaringTreemap::deserialize_from(&offered.live[..]) else {
            return malformed();
        };
        let mut again = Vec::new();
        live.serialize_into(&mut again).unwrap();
        if again != offered.live {
            return malformed();
        }
        let of_snapshot = |pack: &&PackRecord| {
            let mine = pack.first_ordinal.0..pack.first_ordinal.0 + u64::from(pack.chunks);
            pack.repo == offered.repo && live.iter().any(|ordinal| mine.contains(&ordinal))
        };
        let weak = self.packs.iter().filter(|pack| self.under_target.contains(&pack.no));
        let under_target = weak.filter(of_snapshot).count() as u32;
        let key = (offered.repo, offered.id);
        if let Some(known) = self.snapshots.get(&key) {
            let committed_ms = known.committed_ms;
            let same = *known == SnapshotRecord { committed_ms, ..offered.clone() };
            let refused = no(Refusal::SnapshotExists(offered.id));
            return if same { Reply::SnapshotCommitted { committed_ms, under_target } } else { refused };
        }
        if self.sessions.get(&session).is_none_or(|open| open.repo != offered.repo) {
            return no(Refusal::NoSession(session));
        }
        let next = self.ordinals.get(&offered.repo).copied().unwrap_or(0);
        let gone = live.iter().filter(|ordinal| *ordinal >= next).map(Ordinal).take(1000).collect::<Vec<_>>();
        if !gone.is_empty() {
            return no(Refusal::ChunksGone(gone));
        }
        self.snapshots.insert(key, SnapshotRecord { committed_ms: self.time_ms, ..offered });
        Reply::SnapshotCommitted { committed_ms: self.time_ms, under_target }
    }

    fn place(&mut self, pack: PackNo, generation: u64, index: u8, node: NodeId) -> Reply {
        let Some(mut row) = self.packs.get(pack.0 as usize).cloned() else { return no(Refusal::NoPack) };
        let Some(shard) = row.stripe.shards.get_mut(usize::from(index)) else { return malformed() };
        let id = ShardId { stripe: row.stripe.id, index };
        if !self.nodes.contains_key(&node) {
            return no(Refusal::NoNode(node));
        }
        if shard.node == Some(node) {
            return Reply::Done;
        }
        if row.stripe.generation != generation {
            return no(Refusal::Stale(row.stripe.generation));
        }
        if !self.counts(node) {
            return malformed();
        }
        if self.condemned.contains(&Condemned { node, shard: id }) {
            return no(Refusal::StillCondemned);
        }
        if let Some(old) = shard.node.replace(node) {
            self.condemn(old, id);
        }
        row.stripe.generation += 1;
        self.set_pack(row);
        Reply::Done
    }

    fn condemn(&mut self, node: NodeId, shard: ShardId) {
        if self.nodes.get(&node).is_some_and(|known| known.state != NodeState::Retired) {
            self.condemned.insert(Condemned { node, shard });
        }
    }

    fn set_pack(&mut self, pack: PackRecord) {
        let nodes = pack.stripe.shards.iter().filter_map(|s| s.node).filter(|n| self.counts(*n));
        let distinct = nodes.collect::<BTreeSet<_>>();
        let regions = distinct.iter().map(|n| self.nodes[n].region.clone()).collect::<Vec<_>>();
        let crowded = regions.iter().any(|region| {
            regions.iter().filter(|r| *r == region).count() > usize::from(pack.stripe.scheme.spread())
        });
        if distinct.len() == pack.stripe.scheme.n() && !crowded {
            self.under_target.remove(&pack.no);
        } else {
            self.under_target.insert(pack.no);
        }
        let no = pack.no.0 as usize;
        self.packs[no] = pack;
    }

    pub fn held_by(&self, node: NodeId) -> Vec<(PackNo, u32)> {
        let mut held = Vec::new();
        for pack in &self.packs {
            let bits = pack
                .stripe
                .shards
                .iter()
                .rev()
                .fold(0, |bits, s| bits << 1 | u32::from(s.node == Some(node)));
            if bits > 0 {
                held.push((pack.no, bits));
            }
        }
        held
    }
}
