//! A second, simple-minded catalogue for tests: whole-state maps, every derived fact worked out anew. It shares no code
//! with `apply`, so that a mistake has to be made twice to go unnoticed.

use super::audit_test::audited;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::*;
use farshore_core::id::*;
use farshore_core::topology::{Change, Intent, NodeRecord, NodeState, Region};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Default)]
pub(super) struct Model {
    pub cluster: Option<ClusterId>,
    pub time_ms: u64,
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    pub repos: BTreeMap<RepoId, RepoRecord>,
    pub sessions: BTreeMap<SessionId, SessionRecord>,
    pub ended: BTreeSet<SessionId>,
    pub packs: BTreeMap<u64, PackRecord>,
    pub next_pack: u64,
    /// Chunk ids of each pack's table.
    pub tables: BTreeMap<u64, Vec<ChunkId>>,
    /// Log index of each condemnation.
    pub condemned_packs: BTreeMap<u64, u64>,
    pub trash: BTreeMap<(RepoId, SnapshotId), SnapshotRecord>,
    pub marks: BTreeMap<(RepoId, SnapshotId), SnapshotMarks>,
    pub settings: BTreeMap<RepoId, RepoSettings>,
    pub recodings: BTreeMap<RepoId, Recoding>,
    pub migrations: BTreeMap<Region, Migration>,
    pub moved: BTreeSet<(Subject, PackNo)>,
    pub verifications: BTreeMap<u64, (Verification, BTreeMap<PackNo, VerifiedStripe>)>,
    pub upkeep: Upkeep,
    pub chunks: BTreeMap<(RepoId, ChunkId), ChunkRecord>,
    pub ordinals: BTreeMap<RepoId, u64>,
    pub snapshots: BTreeMap<(RepoId, SnapshotId), SnapshotRecord>,
    pub under_target: BTreeSet<PackNo>,
    pub condemned: BTreeSet<Condemned>,
    pub intent: Intent,
    pub incarnations: BTreeMap<NodeId, u64>,
    pub exports: Vec<ExportRecord>,
    pub audit: Vec<AuditRecord>,
    /// Rises since the founding.
    pub rises: u32,
    pub node_levels: BTreeMap<NodeId, u32>,
}

/// A reply without the wording of refusals.
pub(super) fn kind(reply: &Reply) -> Reply {
    match reply {
        Reply::Refused(Refusal::Malformed(_)) => Reply::Refused(Refusal::Malformed(String::new())),
        Reply::Refused(Refusal::BelowFloor(id, _)) => Reply::Refused(Refusal::BelowFloor(*id, String::new())),
        other => other.clone(),
    }
}

pub(super) fn no(refusal: Refusal) -> Reply {
    Reply::Refused(refusal)
}
pub(super) fn malformed() -> Reply {
    no(Refusal::Malformed(String::new()))
}

impl Model {
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Reply {
        self.time_ms = self.time_ms.max(proposal.time_ms);
        let mut audit = std::mem::take(&mut self.audit);
        let before = self.clone();
        let reply = self.carry_out(index, &proposal.command);
        if let Reply::Refused(_) = reply {
            *self = before.clone();
        }
        if let Some((act, outcome)) = audited(&before, self, &proposal.command, &reply) {
            let (seq, time_ms, actor) = (audit.len() as u64 + 1, self.time_ms, proposal.actor.clone());
            let entry = AuditEntry { seq, time_ms, index, actor, act, outcome };
            let previous = audit.last().map_or(AuditHash([0; 32]), |last| last.hash);
            audit.push(AuditRecord::behind(previous, entry));
        }
        self.audit = audit;
        reply
    }

    fn carry_out(&mut self, index: u64, command: &Command) -> Reply {
        let needs_policy = |change: &RepoChange| matches!(change, RepoChange::SetPolicy { .. });
        if let Command::ChangeRepository { change, .. } = command
            && needs_policy(change)
            && self.level() < 3
        {
            return no(Refusal::LevelNeeded(3, self.level()));
        }
        let needs_keys = |change: &RepoChange| {
            matches!(change, RepoChange::SetKeySlots { .. } | RepoChange::Describe { .. })
        };
        if let Command::ChangeRepository { change, .. } = command
            && needs_keys(change)
            && self.level() < 5
        {
            return no(Refusal::LevelNeeded(5, self.level()));
        }
        let needs_migrate = matches!(
            command,
            Command::Migrate { .. }
                | Command::EndMigration { .. }
                | Command::RecordVerified { .. }
                | Command::SetUpkeep { .. }
        );
        if needs_migrate && self.level() < 4 {
            return no(Refusal::LevelNeeded(4, self.level()));
        }
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
            Command::AdmitNode { node, incarnation, level } => self.admit(node, incarnation, level),
            Command::RaiseLevel { to } => {
                let counting = self.nodes.keys().filter(|id| self.counts(**id));
                let able = |id: &NodeId| self.node_levels.get(id).copied().unwrap_or(1);
                match counting.map(|id| (*id, able(id))).find(|(_, level)| *level < to) {
                    _ if to <= self.level() => Reply::Done,
                    Some((id, level)) => no(Refusal::LevelHeld(id, level)),
                    None if !self.nodes.keys().any(|id| self.counts(*id)) => malformed(),
                    None => {
                        self.rises = to - 1;
                        Reply::Done
                    }
                }
            }
            Command::StageTopology { request, epoch, changes } => {
                self.change_topology(request, epoch, changes, true)
            }
            Command::ChangeTopology { request, epoch, changes } => {
                self.change_topology(request, epoch, changes, false)
            }
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
            Command::OpenSession { session, repo, seen: _ } => {
                let (opened_ms, first_pack) = (self.time_ms, PackNo(self.next_pack));
                let new = SessionRecord { id: session, repo, opened: index, opened_ms, first_pack };
                match self.sessions.get(&session) {
                    Some(open) if open.repo == repo => Reply::SessionOpen { opened: open.opened },
                    Some(_) => malformed(),
                    None if !self.repos.contains_key(&repo) => no(Refusal::NoRepo),
                    None if self.frozen().is_some() => self.frozen().unwrap(),
                    None if self.ended.contains(&session) => no(Refusal::NoSession(session)),
                    None => {
                        self.sessions.insert(session, new);
                        Reply::SessionOpen { opened: index }
                    }
                }
            }
            Command::EndSessions { sessions } => {
                self.sessions.retain(|id, _| !sessions.contains(id));
                self.ended.extend(sessions);
                Reply::Done
            }
            Command::CommitPacks { session, packs } => {
                let Some(session) = self.sessions.get(&session).cloned() else {
                    return no(Refusal::NoSession(session));
                };
                if let Some(frozen) = self.frozen() {
                    return frozen;
                }
                let committed = packs.into_iter().map(|pack| self.commit_pack(session.repo, pack, None));
                match committed.collect::<Result<Vec<_>, _>>() {
                    Ok(packs) => Reply::PacksCommitted { packs },
                    Err(refused) => refused,
                }
            }
            Command::CommitSnapshot { session, snapshot, replaces } => {
                self.commit_snapshot(session, snapshot, replaces)
            }
            Command::PlaceShard { pack, generation, index, node } => {
                self.place(pack, generation, index, node)
            }
            Command::ShardBad { pack, index, node } => {
                let Some(mut row) = self.packs.get(&pack.0).cloned() else {
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
                    let pack = self.packs.get(&no.0).cloned();
                    pack.into_iter().for_each(|pack| self.set_pack(pack));
                }
                Reply::Done
            }
            Command::Swept { copies } => {
                self.condemned.retain(|copy| !copies.contains(copy));
                Reply::Done
            }
            Command::CondemnPacks { packs } => {
                let mut count = 0;
                for PackNo(no) in packs {
                    let Some(pack) = self.packs.get(&no) else { continue };
                    let mut open = self.sessions.values().filter(|session| session.repo == pack.repo);
                    if open.all(|session| no < session.first_pack.0)
                        && !self.condemned_packs.contains_key(&no)
                    {
                        self.condemned_packs.insert(no, index);
                        count += 1;
                    }
                }
                Reply::Changed { count }
            }
            Command::RevivePacks { packs } => {
                let revived = packs.into_iter().filter(|no| self.condemned_packs.remove(&no.0).is_some());
                Reply::Changed { count: revived.count() as u32 }
            }
            Command::DropPacks { packs, looked } => {
                let mut count = 0;
                for CondemnedPack { no, at } in packs {
                    let Some(pack) = self.packs.get(&no.0) else { continue };
                    let mut open = self.sessions.values().filter(|session| session.repo == pack.repo);
                    let waits = open.any(|session| session.opened <= at);
                    if self.condemned_packs.get(&no.0) == Some(&at) && at <= looked && !waits {
                        self.drop_pack(no.0);
                        count += 1;
                    }
                }
                Reply::Changed { count }
            }
            Command::CondemnOrphans { node, copies } => self.condemn_orphans(node, copies),
            Command::CompactPacks { repo, pack, from } => self.compact(repo, *pack, &from),
            Command::ChangeRepository { repo, change } => self.change_repository(repo, change),
            Command::RecordExport { export } => self.record_export(export),
            Command::BeginEra { .. } => {
                self.ended.extend(std::mem::take(&mut self.sessions).into_keys());
                Reply::Done
            }
            Command::Migrate { request, epoch, from, to, cold } => {
                self.migrate(request, epoch, from, to, cold)
            }
            Command::EndMigration { request, epoch, from, keep } => {
                self.end_migration(request, epoch, from, keep)
            }
            Command::RecordVerified { subject, stripes, end } => self.verified(subject, &stripes, end),
            Command::SetUpkeep { upkeep } => {
                self.upkeep = upkeep;
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
        for part in &export.parts {
            for (index, shard) in (0u8..).zip(&part.shards) {
                let shard_id = ShardId { stripe: part.stripe(), index };
                let copy = shard.node.map(|node| Condemned { node, shard: shard_id });
                if copy.is_some_and(|copy| self.condemned.contains(&copy)) {
                    return no(Refusal::StillCondemned);
                }
            }
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

    pub fn level(&self) -> u32 {
        1 + self.rises
    }

    fn admit(&mut self, node: NodeRecord, incarnation: u64, level: u32) -> Reply {
        if *self.incarnations.entry(node.id).or_insert(incarnation) != incarnation {
            return no(Refusal::Emptied(node.id));
        }
        if level < self.level() {
            return no(Refusal::LevelBehind { node: node.id, level, cluster: self.level() });
        }
        self.node_levels.insert(node.id, level);
        if node.addr.is_empty() {
            return malformed();
        }
        let moved = self.nodes.get(&node.id).is_none_or(|known| {
            known.region != node.region || known.zone != node.zone || known.capacity != node.capacity
        });
        if moved {
            self.intent.epoch += 1;
            self.intent.request = [0; 16];
        }
        let state = self.nodes.get(&node.id).map_or(NodeState::Up, |known| known.state);
        self.nodes.insert(node.id, NodeRecord { state, ..node });
        Reply::Done
    }

    fn change_topology(&mut self, request: [u8; 16], epoch: u64, changes: Vec<Change>, stage: bool) -> Reply {
        if self.intent.epoch != epoch {
            let again =
                request != [0; 16] && request == self.intent.request && self.intent.epoch == epoch + 1;
            return if again { Reply::Done } else { no(Refusal::StaleTopology(self.intent.epoch)) };
        }
        let mut seen = Vec::new();
        for node in changes.iter().map(|change| change.node()) {
            if !self.nodes.contains_key(&node) {
                return no(Refusal::NoNode(node));
            }
            if seen.contains(&node) {
                return malformed();
            }
            seen.push(node);
        }
        self.intent.epoch += 1;
        self.intent.request = request;
        if stage {
            self.intent.staged = changes;
            return Reply::Done;
        }
        for change in changes {
            let id = change.node();
            let (state, leaving) = (self.nodes[&id].state, self.intent.leaving.remove(&id));
            let empty = self.held_by(id).is_empty();
            let to = match (change, state) {
                (Change::Drain(_), NodeState::Lost | NodeState::Retired) => None,
                (Change::Drain(_), _) => Some(NodeState::Draining),
                (Change::Keep(_), NodeState::Draining) => Some(NodeState::Up),
                (Change::Keep(_), NodeState::Lost) if leaving => Some(NodeState::Lost),
                (Change::Keep(_), _) => None,
                (Change::Remove(_), NodeState::Lost | NodeState::Retired) => Some(NodeState::Retired),
                (Change::Remove(_), _) if empty => Some(NodeState::Retired),
                (Change::Remove(_), _) => return no(Refusal::NotEmpty(id)),
            };
            let Some(to) = to else { return no(Refusal::BadTransition(id, state)) };
            self.nodes.get_mut(&id).unwrap().state = to;
            if let Change::Drain(_) = change {
                self.intent.leaving.insert(id);
            }
            self.intent.staged.retain(|staged| staged.node() != id);
        }
        Reply::Done
    }

    pub(super) fn counts(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|n| !matches!(n.state, NodeState::Lost | NodeState::Retired))
    }

    fn drop_pack(&mut self, no: u64) {
        let pack = self.packs.remove(&no).unwrap();
        self.tables.remove(&no);
        self.condemned_packs.remove(&no);
        self.under_target.remove(&pack.no);
        self.chunks.retain(|(repo, _), chunk| *repo != pack.repo || chunk.pack != pack.no);
        for (index, shard) in (0..).zip(&pack.stripe.shards) {
            if let Some(node) = shard.node {
                self.condemn(node, ShardId { stripe: pack.stripe.id, index });
            }
        }
    }

    fn condemn_orphans(&mut self, node: NodeId, copies: Vec<Orphan>) -> Reply {
        if !self.nodes.contains_key(&node) {
            return no(Refusal::NoNode(node));
        }
        let mut count = 0;
        for Orphan { shard, session, seen } in copies {
            let awaited = match session {
                Some(session) => self.sessions.contains_key(&session),
                None => self.sessions.values().any(|session| session.opened <= seen),
            };
            let named = self.packs.values().filter(|pack| pack.stripe.id == shard.stripe).any(|pack| {
                pack.stripe.shards.get(usize::from(shard.index)).is_some_and(|s| s.node == Some(node))
            });
            let mut parts = self.exports.iter().flat_map(|export| &export.parts);
            let exported = parts.any(|part| part.stripe() == shard.stripe);
            if !awaited && !named && !exported {
                self.condemn(node, shard);
                count += 1;
            }
        }
        Reply::Changed { count }
    }

    fn compact(&mut self, repo: RepoId, pack: PackCommit, from: &[PackNo]) -> Reply {
        if !self.repos.contains_key(&repo) {
            return no(Refusal::NoRepo);
        }
        match self.commit_pack(repo, pack, Some(from)) {
            Ok(done) => {
                if self.recodings.contains_key(&repo) && self.level() >= 4 {
                    self.moved.insert((Subject::Repository(repo), done.no));
                }
                Reply::PacksCommitted { packs: vec![done] }
            }
            Err(refused) => refused,
        }
    }

    /// Ordinals of chunks whose packs are there, and whether the pack is condemned.
    pub fn present(&self, repo: RepoId) -> BTreeMap<u64, bool> {
        let of_repo = self.chunks.iter().filter(|((r, _), _)| *r == repo);
        of_repo
            .map(|(_, chunk)| (chunk.ordinal.0, self.condemned_packs.contains_key(&chunk.pack.0)))
            .collect()
    }

    /// Whether a snapshot, in the trash or not, needs a chunk that lives in this pack.
    pub fn is_live(&self, no: PackNo) -> bool {
        let homed = |snapshot: &SnapshotRecord| {
            let live = roaring::RoaringTreemap::deserialize_from(&snapshot.live[..]).unwrap();
            self.chunks.iter().any(|((repo, _), chunk)| {
                *repo == snapshot.repo && chunk.pack == no && live.contains(chunk.ordinal.0)
            })
        };
        self.snapshots.values().chain(self.trash.values()).any(homed)
    }

    /// What deduplication may be told.
    pub fn offered(&self, repo: RepoId, id: ChunkId) -> Option<Ordinal> {
        let chunk = self.chunks.get(&(repo, id))?;
        (!self.is_gone(chunk.pack)).then_some(chunk.ordinal)
    }

    fn is_gone(&self, pack: PackNo) -> bool {
        let row = &self.packs[&pack.0];
        let held = row.stripe.shards.iter().filter(|s| s.node.is_some_and(|n| self.counts(n))).count();
        let lost = held < row.stripe.scheme.k() && self.under_target.contains(&pack);
        lost || self.condemned_packs.contains_key(&pack.0)
    }

    fn change_repository(&mut self, repo: RepoId, change: RepoChange) -> Reply {
        let mut settings = self.settings.get(&repo).cloned().unwrap_or_default();
        let known = self.repos.contains_key(&repo);
        let mut count = 0;
        match change {
            RepoChange::Describe { snapshot, expected, sealed, tags } => {
                if sealed.is_empty() || sealed.len() > 1 << 20 || tags.len() > 64 {
                    return malformed();
                }
                let row = self.snapshots.get_mut(&(repo, snapshot)).filter(|row| !row.label.partial);
                let Some(row) = row else { return no(Refusal::NoSnapshot(snapshot)) };
                if row.sealed == sealed && row.label.tags == tags {
                    return Reply::Done;
                }
                if hash_parts(&[b"farshore snapshot description", &row.sealed]) != expected {
                    return no(Refusal::StaleSnapshot(snapshot));
                }
                (row.sealed, row.label.tags) = (sealed, tags);
                return Reply::Done;
            }
            RepoChange::MarkVerified { snapshot } => {
                let key = (repo, snapshot);
                if !self.snapshots.contains_key(&key) && !self.trash.contains_key(&key) {
                    return no(Refusal::NoSnapshot(snapshot));
                }
                self.marks.entry(key).or_default().verified_ms = Some(self.time_ms);
                return Reply::Done;
            }
            RepoChange::LockSnapshot { snapshot, lock, bypass } => {
                let key = (repo, snapshot);
                if !self.snapshots.contains_key(&key) {
                    return no(Refusal::NoSnapshot(snapshot));
                }
                let marks = self.marks.entry(key).or_default();
                if let Some(old) = marks.lock.filter(|old| old.until_ms > self.time_ms) {
                    let less = lock.mode < old.mode || lock.until_ms < old.until_ms;
                    if less && (old.mode == LockMode::Compliance || !bypass) {
                        return no(Refusal::LockShortened(old.mode));
                    }
                }
                marks.lock = Some(lock);
                return Reply::Done;
            }
            RepoChange::Undelete { snapshots } => {
                for id in snapshots {
                    let key = (repo, id);
                    match self.trash.remove(&key) {
                        Some(row) => {
                            self.snapshots.insert(key, row);
                            self.marks.entry(key).or_default().forgotten_ms = None;
                            count += 1;
                        }
                        None if self.snapshots.contains_key(&key) => {}
                        None => return no(Refusal::NoSnapshot(id)),
                    }
                }
                return Reply::Changed { count };
            }
            _ if !known => return no(Refusal::NoRepo),
            RepoChange::Forget { snapshots, bypass } => {
                for id in snapshots {
                    let key = (repo, id);
                    let Some(row) = self.snapshots.get(&key).cloned() else { continue };
                    let marks = self.marks.entry(key).or_default();
                    let mut locks = Vec::from_iter(marks.lock);
                    if let Some(lock) = settings.lock.filter(|_| !row.label.partial) {
                        let until_ms = row.committed_ms.saturating_add(lock.for_ms);
                        locks.push(Lock { mode: lock.mode, until_ms });
                    }
                    locks.retain(|lock| lock.until_ms > self.time_ms);
                    locks.retain(|lock| !bypass || lock.mode == LockMode::Compliance);
                    // Of two that end together the one of the repository is named.
                    if let Some(lock) = locks.into_iter().max_by_key(|lock| lock.until_ms) {
                        return no(Refusal::Locked(id, lock.mode, lock.until_ms));
                    }
                    marks.forgotten_ms = Some(self.time_ms);
                    self.snapshots.remove(&key);
                    self.trash.insert(key, row);
                    count += 1;
                }
                return Reply::Changed { count };
            }
            RepoChange::Purge { snapshots, early } => {
                for id in snapshots {
                    let key = (repo, id);
                    let since = self.marks.get(&key).and_then(|marks| marks.forgotten_ms).unwrap_or(0);
                    let due = since.saturating_add(settings.trash_ms()) <= self.time_ms;
                    if self.trash.contains_key(&key) && (early || due) {
                        self.trash.remove(&key);
                        self.marks.remove(&key);
                        count += 1;
                    }
                }
                return Reply::Changed { count };
            }
            RepoChange::Lock { lock, bypass } => {
                if let Some(old) = settings.lock {
                    let less = lock.is_none_or(|new| new.mode < old.mode || new.for_ms < old.for_ms);
                    if less && (old.mode == LockMode::Compliance || !bypass) {
                        return no(Refusal::LockShortened(old.mode));
                    }
                }
                settings.lock = lock;
            }
            RepoChange::SetTrash { trash_ms } => settings.trash_ms = trash_ms,
            RepoChange::SetRetention { policy } => settings.retention = policy,
            RepoChange::SetKeySlots { expected, slots } => {
                let known = self.repos.get_mut(&repo).expect("looked up above");
                if slots.is_empty()
                    || slots.len() > 32
                    || slots.iter().any(|s| s.is_empty() || s.len() > 4_096)
                {
                    return malformed();
                }
                let parts: Vec<&[u8]> = std::iter::once(b"farshore key slots".as_slice())
                    .chain(known.key_slots.iter().map(Vec::as_slice))
                    .collect();
                if known.key_slots != slots && hash_parts(&parts) != expected {
                    return no(Refusal::StaleKeys);
                }
                known.key_slots = slots;
                return Reply::Done;
            }
            RepoChange::SetPolicy { policy, scheme } => {
                if !policy.admits(scheme) {
                    return malformed();
                }
                let known = self.repos.get_mut(&repo).expect("looked up above");
                let same = self.recodings.get(&repo).filter(|_| known.policy == policy);
                let former = same.map_or(known.policy, |open| open.former);
                known.policy = policy;
                self.recodings.insert(repo, Recoding { former, scheme, before: PackNo(self.next_pack) });
                return Reply::Done;
            }
        }
        self.settings.insert(repo, settings);
        Reply::Done
    }

    /// `from` is given for a compaction: every chunk must then be in one of those packs.
    fn commit_pack(
        &mut self,
        repo: RepoId,
        pack: PackCommit,
        from: Option<&[PackNo]>,
    ) -> Result<PackCommitted, Reply> {
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
        if let Some(known) = self.packs.values().find(|p| p.repo == repo && p.id == pack.id).cloned() {
            let known_ids = ids.iter().all(|id| self.chunks.contains_key(&(repo, *id)));
            let same = (known.len, known.kind, known.chunks as usize) == (pack.len, pack.kind, ids.len());
            if !same || !known_ids {
                return Err(malformed());
            }
            let ordinals = pack.chunks.iter().map(|c| self.chunks[&(repo, c.id)].ordinal).collect();
            self.condemned_packs.remove(&known.no.0);
            return Ok(PackCommitted { id: pack.id, no: known.no, ordinals });
        }
        let policies = [Some(self.repos[&repo].policy), self.recodings.get(&repo).map(|open| open.former)];
        if !policies.into_iter().flatten().any(|policy| policy.admits(pack.scheme)) {
            return Err(malformed());
        }
        let mut held = BTreeMap::<NodeId, u8>::new();
        let stripe = StripeId::of(repo, pack.id, k, m, 1);
        for (index, shard) in (0u8..).zip(&pack.shards) {
            let Some(node) = shard.node else { continue };
            if !self.nodes.contains_key(&node) {
                return Err(no(Refusal::NoNode(node)));
            }
            if self.condemned.contains(&Condemned { node, shard: ShardId { stripe, index } }) {
                return Err(no(Refusal::StillCondemned));
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
        if let Some(from) = from {
            for span in &pack.chunks {
                let chunk = self.chunks.get(&(repo, span.id)).ok_or_else(malformed)?;
                let kind = self.packs[&chunk.pack.0].kind;
                if !from.contains(&chunk.pack) || kind != pack.kind || chunk.len != span.len {
                    return Err(malformed());
                }
            }
        }
        Ok(self.new_pack(repo, pack, from.is_some()))
    }

    fn new_pack(&mut self, repo: RepoId, pack: PackCommit, compacts: bool) -> PackCommitted {
        let (k, m, _) = pack.scheme.into();
        let number = PackNo(self.next_pack);
        self.next_pack += 1;
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
            // A chunk of a pack that is good for nothing lives here from now on, and so does a compacted one.
            let known = self.chunks.get(&(repo, c.id)).copied();
            let ordinal = known.map_or(new.ordinal, |known| known.ordinal);
            if known.is_none_or(|known| compacts || self.is_gone(known.pack)) {
                self.chunks.insert((repo, c.id), ChunkRecord { ordinal, ..new });
            }
            ordinals.push(ordinal);
        }
        self.tables.insert(number.0, pack.chunks.iter().map(|c| c.id).collect());
        let stripe = StripeRecord {
            id: StripeId::of(repo, pack.id, k, m, 1),
            scheme: pack.scheme,
            shard_len: pack.shard_len,
            generation: 0,
            shards: pack.shards,
        };
        let chunks = pack.chunks.len() as u32;
        let (id, kind, len, first_ordinal) = (pack.id, pack.kind, pack.len, Ordinal(first));
        self.set_pack(PackRecord { no: number, id, repo, kind, len, chunks, first_ordinal, stripe });
        PackCommitted { id, no: number, ordinals }
    }

    fn commit_snapshot(
        &mut self,
        session: SessionId,
        offered: SnapshotRecord,
        replaces: Option<SnapshotId>,
    ) -> Reply {
        let Ok(live) = roaring::RoaringTreemap::deserialize_from(&offered.live[..]) else {
            return malformed();
        };
        let mut again = Vec::new();
        live.serialize_into(&mut again).unwrap();
        if again != offered.live {
            return malformed();
        }
        let key = (offered.repo, offered.id);
        if let Some(known) = self.snapshots.get(&key).or_else(|| self.trash.get(&key)) {
            let committed_ms = known.committed_ms;
            let same = *known == SnapshotRecord { committed_ms, ..offered.clone() };
            let under_target = self.weak_packs(offered.repo, &live);
            let refused = no(Refusal::SnapshotExists(offered.id));
            return if same { Reply::SnapshotCommitted { committed_ms, under_target } } else { refused };
        }
        if self.sessions.get(&session).is_none_or(|open| open.repo != offered.repo) {
            return no(Refusal::NoSession(session));
        }
        if let Some(frozen) = self.frozen() {
            return frozen;
        }
        let present = self.present(offered.repo);
        let gone = live.iter().filter(|o| !present.contains_key(o)).map(Ordinal).take(1000);
        let gone = gone.collect::<Vec<_>>();
        if !gone.is_empty() {
            return no(Refusal::ChunksGone(gone));
        }
        let needed =
            self.chunks.iter().filter(|((repo, _), c)| *repo == offered.repo && live.contains(c.ordinal.0));
        for pack in needed.map(|(_, chunk)| chunk.pack.0).collect::<Vec<_>>() {
            self.condemned_packs.remove(&pack);
        }
        if let Some(id) = replaces {
            let old = (offered.repo, id);
            let known = [self.snapshots.get(&old), self.trash.get(&old)].into_iter().flatten().next();
            if known.is_some_and(|known| !known.label.partial) {
                return malformed();
            }
            self.snapshots.remove(&old);
            self.trash.remove(&old);
            self.marks.remove(&old);
        }
        let settings = self.settings.entry(offered.repo).or_default();
        let committed_ms = self.time_ms.max(settings.last_committed_ms + 1);
        settings.last_committed_ms = committed_ms;
        let under_target = self.weak_packs(offered.repo, &live);
        self.snapshots.insert(key, SnapshotRecord { committed_ms, ..offered });
        Reply::SnapshotCommitted { committed_ms, under_target }
    }

    /// Packs below strength in which a chunk lives that is needed. What a pack was given and does not use counts as well
    /// as long as nothing was moved.
    fn weak_packs(&self, repo: RepoId, live: &roaring::RoaringTreemap) -> u32 {
        let needed = |no: &&PackNo| {
            let mut inside = self.chunks.iter().filter(|((r, _), chunk)| *r == repo && chunk.pack == **no);
            inside.any(|(_, chunk)| live.contains(chunk.ordinal.0))
        };
        self.under_target.iter().filter(needed).count() as u32
    }

    fn place(&mut self, pack: PackNo, generation: u64, index: u8, node: NodeId) -> Reply {
        let Some(mut row) = self.packs.get(&pack.0).cloned() else { return no(Refusal::NoPack) };
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
            if self.nodes[&old].state == NodeState::Draining && self.level() >= 4 {
                self.moved.insert((Subject::Node(old), pack));
            }
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
        self.packs.insert(pack.no.0, pack);
    }

    pub fn held_by(&self, node: NodeId) -> Vec<(PackNo, u32)> {
        let mut held = Vec::new();
        for pack in self.packs.values() {
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
