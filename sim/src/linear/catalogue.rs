//! What the catalogue promises its clients, one operation after the other: sets and maps, written from the promises of
//! `CatalogueApi` and not from the node's code. What maintenance does on its own shows as changes that may come at any
//! time: sessions run out, shards move to other nodes.

use super::call::{Answer, Call, Op};
use super::packs::{PackTable, Packs};
use super::search::Spec;
use farshore_core::catalogue::{RepoRecord, SnapshotRecord};
use farshore_core::id::{Ordinal, RepoId, SessionId, SnapshotId};
use farshore_core::topology::Name;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

/// The catalogue as clients see it.
pub struct Catalogue {
    packs: PackTable,
    /// When each snapshot was committed, as far as anybody has ever been told.
    committed_ms: BTreeMap<SnapshotId, u64>,
    /// A session that was alive at some time is not ended for as long after, unless its client closes it.
    lease_us: u64,
}

impl Catalogue {
    /// For the packs that some client has tried to commit.
    pub fn new<'a>(ops: impl Iterator<Item = &'a Op> + Clone, lease: Duration) -> Self {
        let mut committed_ms = BTreeMap::new();
        for op in ops.clone() {
            match (&op.call, &op.answer) {
                (Call::CommitSnapshot { snapshot, .. }, Some(Answer::SnapshotCommitted(at))) => {
                    committed_ms.entry(snapshot.id).or_insert(*at);
                }
                (Call::ListSnapshots { .. }, Some(Answer::Snapshots(page))) => {
                    for row in &page.snapshots {
                        committed_ms.entry(row.id).or_insert(row.committed_ms);
                    }
                }
                _ => {}
            }
        }
        Catalogue { packs: PackTable::new(ops), committed_ms, lease_us: lease.as_micros() as u64 }
    }
}

/// Everything operations can have changed. Parts are shared until one of them does.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct State {
    repos: Arc<BTreeMap<RepoId, Arc<Repo>>>,
    sessions: Arc<BTreeMap<SessionId, Session>>,
    /// Highest log index that has opened a session.
    opened_last: u64,
    /// Catalogue time of the last commit of a snapshot.
    time_ms: u64,
}

/// Only the counts: states with the same operations behind them seldom differ, and equality decides.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.opened_last, self.time_ms, self.sessions.len()).hash(hasher);
        self.sessions.values().filter(|session| session.ended).count().hash(hasher);
        for repo in self.repos.values() {
            (repo.packs.next_ordinal(), repo.snapshots.len()).hash(hasher);
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Repo {
    record: Arc<RepoRecord>,
    packs: Packs,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
}

#[derive(Clone, PartialEq, Eq)]
struct Snapshot {
    record: Arc<SnapshotRecord>,
    /// Unknown until somebody has seen it.
    committed_ms: Option<u64>,
}

/// A session that was opened. It may have run out without anybody having noticed: the first refusal is the notice.
#[derive(Clone, PartialEq, Eq)]
struct Session {
    repo: RepoId,
    /// Unknown until somebody has seen it.
    opened: Option<u64>,
    /// Last time it was certainly given a full lease.
    alive_us: u64,
    ended: bool,
}

impl Spec for Catalogue {
    type State = State;
    type Op = Op;

    fn begin(&self) -> State {
        State::default()
    }

    fn step(&self, state: &State, op: &Op) -> Option<State> {
        let mut next = state.clone();
        match &op.answer {
            Some(answer) => self.answers(&mut next, op, answer).then_some(next),
            None => {
                self.happens(&mut next, op);
                Some(next)
            }
        }
    }

    /// What was made stays, and what was seen is known. Only sessions come and go.
    fn settles(&self, op: &Op) -> bool {
        !matches!(op.call, Call::OpenSession { .. } | Call::CloseSession { .. })
    }

    fn matters(&self, open: &Op, next: &Op) -> bool {
        use Call::*;
        let same = open.call.session() == next.call.session();
        let ends = matches!(next.call, OpenSession { .. } | CloseSession { .. })
            || next.answer == Some(Answer::SessionEnded);
        match (&open.call, &next.call) {
            (OpenSession { .. } | CloseSession { .. }, _) => same,
            (CommitPacks { .. } | CommitSnapshot { .. }, _) if same && ends => true,
            (CommitPacks { packs, .. }, Lookup { ids, .. } | Locate { ids, .. }) => {
                let sent = |id| packs.iter().any(|pack| pack.chunks.iter().any(|span| span.id == id));
                ids.iter().any(|id| sent(*id))
            }
            (CommitPacks { .. }, CommitPacks { .. } | CommitSnapshot { .. } | ListPacks { .. }) => true,
            // Times of commits only rise.
            (CommitSnapshot { .. }, CommitSnapshot { .. } | ListSnapshots { .. }) => true,
            (CommitPacks { .. } | CommitSnapshot { .. }, _) => false,
            (_, _) => true,
        }
    }

    fn forget(&self, op: &Op) -> Option<Op> {
        let (began, _) = op.at_us;
        op.call.changes().then(|| Op { at_us: (began, None), answer: None, ..op.clone() })
    }
}

impl Catalogue {
    /// Whether the call can answer like this here; what it changes.
    fn answers(&self, state: &mut State, op: &Op, answer: &Answer) -> bool {
        match (&op.call, answer) {
            (Call::CreateRepository { repo }, Answer::Repository(made)) => made == repo && state.create(repo),
            (Call::CreateRepository { repo }, Answer::RepositoryExists) => state.is_taken(repo),
            (Call::GetRepository { name }, Answer::Repository(found)) => state.named(name) == Some(found),
            (Call::GetRepository { name }, Answer::RepositoryMissing) => state.named(name).is_none(),
            (Call::OpenSession { session, repo }, Answer::Opened(index)) => {
                state.open(*session, *repo, Some(*index), op.at_us.0)
            }
            (Call::RenewSession { session }, Answer::Done) => state.renew(*session, op.at_us.0),
            (Call::CloseSession { session }, Answer::Done) => {
                state.close(*session);
                true
            }
            (
                Call::RenewSession { session }
                | Call::Lookup { session, .. }
                | Call::CommitPacks { session, .. },
                Answer::SessionEnded,
            ) => state.has_run_out(*session, op, self.lease_us),
            (Call::CommitSnapshot { session, snapshot }, Answer::SessionEnded) => {
                let known = state.repo(snapshot.repo).is_some_and(|r| r.snapshots.contains_key(&snapshot.id));
                !known
                    && (state.is_for_another(*session, snapshot.repo)
                        || state.has_run_out(*session, op, self.lease_us))
            }
            (Call::Lookup { session, repo, ids }, Answer::Ordinals(found)) => {
                state.open_session(*session).is_some()
                    && ids.len() == found.len()
                    && ids.iter().zip(found).all(|(id, found)| {
                        state.repo(*repo).and_then(|r| r.packs.ordinal(&self.packs, id)) == *found
                    })
            }
            (Call::CommitPacks { session, packs }, Answer::PacksCommitted(done)) => {
                state.in_session(*session, |repo| repo.packs.commit(&self.packs, packs, Some(done)))
            }
            (Call::CommitPacks { session, packs }, Answer::BelowFloor) => {
                let repo = state.open_session(*session).and_then(|open| state.repo(open.repo));
                repo.is_some_and(|repo| packs.iter().any(|pack| !repo.packs.has(&pack.id)))
            }
            (Call::CommitSnapshot { session, snapshot }, Answer::SnapshotCommitted(at)) => {
                state.commit_snapshot(*session, snapshot, Some(*at))
            }
            (Call::CommitSnapshot { session, snapshot }, Answer::ChunksGone(gone)) => {
                state.open_session(*session).is_some_and(|open| open.repo == snapshot.repo)
                    && state.lacks(snapshot, gone)
            }
            (Call::ListSnapshots { repo, after }, Answer::Snapshots(page)) => {
                state.list_snapshots(*repo, *after, &page.snapshots, page.more)
            }
            (Call::Locate { repo, ids }, Answer::Located(found)) => match state.repo(*repo) {
                None => found.packs.is_empty() && found.places.iter().all(Option::is_none),
                Some(_) => state.change(*repo, |r| r.packs.locate(&self.packs, *repo, ids, found)),
            },
            (Call::ListPacks { repo, from }, Answer::Packs(page)) => match state.repo(*repo) {
                None => page.packs.is_empty() && page.next.is_none(),
                Some(_) => state.change(*repo, |r| r.packs.list(&self.packs, *repo, *from, page)),
            },
            // An answer to another question.
            _ => false,
        }
    }

    /// What a call changes whose answer nobody has seen. Where it would be refused it changes nothing.
    fn happens(&self, state: &mut State, op: &Op) {
        let before = state.clone();
        let done = match &op.call {
            Call::CreateRepository { repo } => state.create(repo),
            Call::OpenSession { session, repo } => state.open(*session, *repo, None, op.at_us.0),
            Call::CloseSession { session } => {
                state.close(*session);
                true
            }
            Call::CommitPacks { session, packs } => {
                state.in_session(*session, |repo| repo.packs.commit(&self.packs, packs, None))
            }
            Call::CommitSnapshot { session, snapshot } => {
                let told = self.committed_ms.get(&snapshot.id).copied();
                state.commit_snapshot(*session, snapshot, told)
            }
            _ => true,
        };
        if !done {
            *state = before;
        }
    }
}

impl State {
    fn repo(&self, id: RepoId) -> Option<&Repo> {
        self.repos.get(&id).map(Arc::as_ref)
    }

    fn named(&self, name: &Name) -> Option<&Arc<RepoRecord>> {
        self.repos.values().map(|repo| &repo.record).find(|record| record.name == *name)
    }

    /// Changes a repository. One that is not there cannot be changed. If nothing changes, nothing is copied.
    fn change(&mut self, id: RepoId, change: impl FnOnce(&mut Repo) -> bool) -> bool {
        let Some(known) = self.repos.get(&id) else { return false };
        let mut repo = known.as_ref().clone();
        if !change(&mut repo) {
            return false;
        }
        if repo != **known {
            Arc::make_mut(&mut self.repos).insert(id, Arc::new(repo));
        }
        true
    }

    fn create(&mut self, record: &Arc<RepoRecord>) -> bool {
        if self.repo(record.id).is_some_and(|known| known.record == *record) {
            return true;
        }
        if self.is_taken(record) {
            return false;
        }
        let repo = Repo { record: record.clone(), packs: Packs::default(), snapshots: BTreeMap::new() };
        Arc::make_mut(&mut self.repos).insert(record.id, Arc::new(repo));
        true
    }

    fn is_taken(&self, record: &Arc<RepoRecord>) -> bool {
        match self.repo(record.id) {
            Some(known) => known.record != *record,
            None => self.named(&record.name).is_some(),
        }
    }

    /// The session, unless it is known to have ended.
    fn open_session(&self, id: SessionId) -> Option<&Session> {
        self.sessions.get(&id).filter(|session| !session.ended)
    }

    fn put_session(&mut self, id: SessionId, session: Session) {
        if self.sessions.get(&id) != Some(&session) {
            Arc::make_mut(&mut self.sessions).insert(id, session);
        }
    }

    fn open(&mut self, id: SessionId, repo: RepoId, index: Option<u64>, now_us: u64) -> bool {
        let fresh = Session { repo, opened: index, alive_us: now_us, ended: false };
        let session = match self.sessions.get(&id) {
            _ if self.repo(repo).is_none() => return false,
            Some(known) if known.repo != repo => return false,
            // A repetition extends no lease.
            Some(known) if !known.ended && (index.is_none() || known.opened == index) => return true,
            Some(known) if !known.ended && known.opened.is_none() => {
                Session { opened: index, ..known.clone() }
            }
            // Ended, noticed or not, and opened anew.
            Some(_) | None if index.is_none_or(|index| index > self.opened_last) => fresh,
            Some(_) | None => return false,
        };
        self.opened_last = self.opened_last.max(index.unwrap_or(0));
        self.put_session(id, session);
        true
    }

    fn renew(&mut self, id: SessionId, now_us: u64) -> bool {
        let Some(session) = self.open_session(id).cloned() else { return false };
        let alive_us = session.alive_us.max(now_us);
        self.put_session(id, Session { alive_us, ..session });
        true
    }

    fn close(&mut self, id: SessionId) {
        if let Some(session) = self.sessions.get(&id).cloned() {
            self.put_session(id, Session { ended: true, ..session });
        }
    }

    /// Whether the session can have ended, with or without notice. From here on it has.
    fn has_run_out(&mut self, id: SessionId, op: &Op, lease_us: u64) -> bool {
        let (_, now_us) = op.at_us;
        if self.open_session(id).is_some_and(|s| now_us.is_none_or(|now| now < s.alive_us + lease_us)) {
            return false;
        }
        self.close(id);
        true
    }

    fn is_for_another(&self, id: SessionId, repo: RepoId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.repo != repo)
    }

    fn in_session(&mut self, id: SessionId, change: impl FnOnce(&mut Repo) -> bool) -> bool {
        self.open_session(id).map(|session| session.repo).is_some_and(|repo| self.change(repo, change))
    }

    fn commit_snapshot(
        &mut self,
        session: SessionId,
        offered: &Arc<SnapshotRecord>,
        at: Option<u64>,
    ) -> bool {
        let in_session = self.open_session(session).is_some_and(|open| open.repo == offered.repo);
        let time_ms = self.time_ms;
        let mut new = false;
        let done = self.change(offered.repo, |repo| match repo.snapshots.get_mut(&offered.id) {
            Some(known) => {
                let same = *known.record
                    == SnapshotRecord { committed_ms: known.record.committed_ms, ..(**offered).clone() };
                let at = at.or(known.committed_ms);
                let timely = known.committed_ms.is_none() || known.committed_ms == at;
                known.committed_ms = at;
                same && timely
            }
            None => {
                new = true;
                let snapshot = Snapshot { record: offered.clone(), committed_ms: at };
                let all = live(offered)
                    .is_some_and(|live| live.max().is_none_or(|o| o < repo.packs.next_ordinal()));
                repo.snapshots.insert(offered.id, snapshot);
                in_session && all && at.is_none_or(|at| at >= time_ms)
            }
        });
        if done && new {
            self.time_ms = time_ms.max(at.unwrap_or(0));
        }
        done
    }

    /// Whether these are the first of the chunks that the snapshot needs and that are not there.
    fn lacks(&self, snapshot: &SnapshotRecord, gone: &[Ordinal]) -> bool {
        let Some(repo) = self.repo(snapshot.repo) else { return false };
        let Some(live) = live(snapshot) else { return false };
        let next = repo.packs.next_ordinal();
        let wanted = live.iter().filter(|ordinal| *ordinal >= next).take(gone.len());
        !repo.snapshots.contains_key(&snapshot.id)
            && !gone.is_empty()
            && wanted.eq(gone.iter().map(|ordinal| ordinal.0))
    }

    fn list_snapshots(
        &mut self,
        repo: RepoId,
        after: Option<SnapshotId>,
        rows: &[SnapshotRecord],
        more: bool,
    ) -> bool {
        if self.repo(repo).is_none() {
            return rows.is_empty() && !more;
        }
        self.change(repo, |repo| {
            let mut wanted =
                repo.snapshots.iter_mut().filter(|(id, _)| after.is_none_or(|after| **id > after));
            let fit = rows.iter().all(|row| wanted.next().is_some_and(|(_, known)| known.shows_as(row)));
            fit && (more || wanted.next().is_none())
        })
    }
}

impl Snapshot {
    fn shows_as(&mut self, row: &SnapshotRecord) -> bool {
        let (committed_ms, live) = (row.committed_ms, Vec::new());
        let timely = self.committed_ms.is_none_or(|known| known == committed_ms);
        self.committed_ms = Some(committed_ms);
        // Listings leave the live set out.
        timely && *row == SnapshotRecord { committed_ms, live, ..self.record.as_ref().clone() }
    }
}

fn live(snapshot: &SnapshotRecord) -> Option<RoaringTreemap> {
    RoaringTreemap::deserialize_from(snapshot.live.as_slice()).ok()
}
