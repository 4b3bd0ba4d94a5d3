//! What the catalogue promises its clients, one operation after the other: sets and maps, written from the promises of
//! `CatalogueApi` and not from the node's code. What maintenance does on its own shows as changes that may come at any
//! time: sessions run out, shards move to other nodes, garbage and what lay in the trash for its time goes.

use super::call::{AGAIN_US, Answer, Call, Op};
use super::packs::{Live, Needed, PackTable, Packs};
use super::search::Spec;
use farshore_core::catalogue::{RepoChange, RepoRecord, SnapshotRecord};
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
    /// Numbers that were said to be there, by session, and since when that is known: they stay until it ends.
    told: BTreeMap<SessionId, BTreeMap<u64, u64>>,
    /// A session that was alive at some time is not ended for as long after, unless its client closes it.
    lease_us: u64,
}

impl Catalogue {
    /// For the packs that some client has tried to commit.
    pub fn new<'a>(ops: impl Iterator<Item = &'a Op> + Clone, lease: Duration) -> Self {
        let mut committed_ms = BTreeMap::new();
        let mut told = BTreeMap::<SessionId, BTreeMap<u64, u64>>::new();
        for op in ops.clone() {
            let mut tell = |session: &SessionId, ordinals: &mut dyn Iterator<Item = u64>| {
                let Some(ended_us) = op.at_us.1 else { return };
                for ordinal in ordinals {
                    let since = told.entry(*session).or_default().entry(ordinal).or_insert(ended_us);
                    *since = ended_us.min(*since);
                }
            };
            match (&op.call, &op.answer) {
                (Call::Lookup { session, .. }, Some(Answer::Ordinals(found))) => {
                    tell(session, &mut found.iter().flatten().map(|o| o.0));
                }
                (Call::CommitPacks { session, .. }, Some(Answer::PacksCommitted(done))) => {
                    tell(session, &mut done.iter().flat_map(|pack| pack.ordinals.iter().map(|o| o.0)));
                }
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
        Catalogue { packs: PackTable::new(ops), committed_ms, told, lease_us: lease.as_micros() as u64 }
    }
}

/// Everything operations can have changed. Parts are shared until one of them does.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct State {
    repos: Arc<BTreeMap<RepoId, Arc<Repo>>>,
    sessions: Arc<BTreeMap<SessionId, Session>>,
    /// Highest log index that has opened a session.
    opened_last: u64,
}

/// Only the counts: states with the same operations behind them seldom differ, and equality decides.
impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.opened_last, self.sessions.len()).hash(hasher);
        self.sessions.values().filter(|session| session.ended).count().hash(hasher);
        for repo in self.repos.values() {
            let listed = repo.snapshots.values().filter(|s| s.place == Place::Listed).count();
            (repo.packs.next_ordinal(), repo.snapshots.len(), listed).hash(hasher);
        }
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Repo {
    record: Arc<RepoRecord>,
    packs: Packs,
    snapshots: BTreeMap<SnapshotId, Snapshot>,
    /// Somebody has asked for a lock, which may be in force.
    locked: bool,
    /// Catalogue time of the last commit of a snapshot.
    last_ms: u64,
}

#[derive(Clone, PartialEq, Eq)]
struct Snapshot {
    record: Arc<SnapshotRecord>,
    live: Live,
    /// Unknown until somebody has seen it.
    committed_ms: Option<u64>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Where snapshots belong.
    Listed,
    /// In the trash, or purged without anybody having noticed.
    Trash,
    /// Not there any more.
    Gone,
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

    /// What was made stays, and what was seen is known. Only sessions come and go, and snapshots into the trash and out.
    fn settles(&self, op: &Op) -> bool {
        let replaces = matches!(op.call, Call::CommitSnapshot { replaces: Some(_), .. });
        !replaces
            && !matches!(op.call, Call::OpenSession { .. } | Call::CloseSession { .. } | Call::Change { .. })
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
            (CommitSnapshot { .. }, CommitSnapshot { .. } | ListSnapshots { .. } | Change { .. }) => true,
            // What is named again must be there again.
            (CommitSnapshot { .. } | Change { .. }, Locate { .. } | ListPacks { .. }) => true,
            (Change { .. }, CommitSnapshot { .. } | ListSnapshots { .. } | Change { .. }) => true,
            (Change { .. }, _) => false,
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
            (Call::OpenSession { session, repo, .. }, Answer::Opened(index)) => {
                state.open(*session, *repo, Some(*index), op.at_us.0)
            }
            // An id that has ended is not opened again.
            (Call::OpenSession { session, .. }, Answer::SessionEnded) => {
                state.sessions.contains_key(session) && state.has_run_out(*session, op, self.lease_us)
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
            (Call::CommitSnapshot { session, snapshot, .. }, Answer::SessionEnded) => {
                !state.is_listed(snapshot.repo, snapshot.id)
                    && (state.is_for_another(*session, snapshot.repo)
                        || state.has_run_out(*session, op, self.lease_us))
            }
            (Call::Lookup { session, repo, ids }, Answer::Ordinals(found)) => {
                let live = state.repo(*repo).map(Repo::live).unwrap_or_default();
                state.open_session(*session).is_some()
                    && ids.len() == found.len()
                    && ids.iter().zip(found).all(|(id, found)| {
                        // A chunk may not be offered although it is there: its pack is condemned, or lost.
                        let packs = state.repo(*repo).map(|repo| &repo.packs);
                        let may_be = |o| packs.is_some_and(|packs| packs.may_be(&self.packs, id, o, &live));
                        found.is_none_or(may_be)
                    })
            }
            (Call::CommitPacks { session, packs }, Answer::PacksCommitted(done)) => {
                state.in_session(*session, |repo| {
                    let live = repo.live();
                    repo.packs.commit(&self.packs, *session, packs, Some(done), &live)
                })
            }
            (Call::CommitPacks { session, packs }, Answer::BelowFloor) => {
                let repo = state.open_session(*session).and_then(|open| state.repo(open.repo));
                repo.is_some_and(|repo| packs.iter().any(|pack| !repo.packs.has(&pack.id)))
            }
            (Call::CommitSnapshot { session, snapshot, replaces }, Answer::SnapshotCommitted(at)) => {
                state.commit_snapshot(*session, snapshot, *replaces, Some(*at))
            }
            (Call::Change { repo, change }, Answer::Changed(count)) => {
                // The attempt that was answered may have found done what an earlier one did.
                let again = op.at_us.1.is_some_and(|ended| ended - op.at_us.0 >= AGAIN_US);
                state.change(*repo, |repo| repo.change(change, Some(*count), again))
            }
            (Call::Change { repo, change }, Answer::Refused) => {
                state.repo(*repo).is_none_or(|repo| repo.may_refuse(change))
            }
            (Call::CommitSnapshot { session, snapshot, .. }, Answer::ChunksGone(gone)) => {
                let told = self.told.get(session);
                state.open_session(*session).is_some_and(|open| open.repo == snapshot.repo)
                    && !gone.iter().any(|ordinal| {
                        told.and_then(|told| told.get(&ordinal.0)).is_some_and(|since| *since <= op.at_us.0)
                    })
                    && state.lacks(snapshot, gone)
            }
            (Call::ListSnapshots { repo, after, trash }, Answer::Snapshots(page)) => {
                let place = if *trash { Place::Trash } else { Place::Listed };
                state.list_snapshots(*repo, *after, place, &page.snapshots, page.more)
            }
            (Call::Locate { repo, ids }, Answer::Located(found)) => match state.repo(*repo) {
                None => found.packs.is_empty() && found.places.iter().all(Option::is_none),
                Some(_) => self.reads(state, *repo, op, |packs, needed| {
                    packs.locate(&self.packs, *repo, ids, found, needed)
                }),
            },
            (Call::ListPacks { repo, from }, Answer::Packs(page)) => match state.repo(*repo) {
                None => page.packs.is_empty() && page.next.is_none(),
                Some(_) => self.reads(state, *repo, op, |packs, needed| {
                    packs.list(&self.packs, *repo, *from, page, needed)
                }),
            },
            // A region moves, and nothing is written meanwhile: whether it did is looked at where it shows (invariant 8).
            (
                Call::OpenSession { .. } | Call::CommitPacks { .. } | Call::CommitSnapshot { .. },
                Answer::Refused,
            ) => true,
            // An answer to another question.
            _ => false,
        }
    }

    /// A look at packs, and what must be there at that moment.
    fn reads(
        &self,
        state: &mut State,
        repo: RepoId,
        op: &Op,
        look: impl FnOnce(&mut Packs, &Needed<'_>) -> bool,
    ) -> bool {
        let sessions = state.sessions.clone();
        let (_, ended_us) = op.at_us;
        let is_open = |id| {
            let lasts = |s: &Session| ended_us.is_some_and(|now| now < s.alive_us + self.lease_us);
            sessions.get(&id).is_some_and(|session| !session.ended && lasts(session))
        };
        state.change(repo, |repo| {
            let live = repo.live();
            look(&mut repo.packs, &Needed { live: &live, is_open: &is_open })
        })
    }

    /// What a call changes whose answer nobody has seen. Where it would be refused it changes nothing.
    fn happens(&self, state: &mut State, op: &Op) {
        let before = state.clone();
        let done = match &op.call {
            Call::CreateRepository { repo } => state.create(repo),
            Call::OpenSession { session, repo, .. } => state.open(*session, *repo, None, op.at_us.0),
            Call::CloseSession { session } => {
                state.close(*session);
                true
            }
            Call::CommitPacks { session, packs } => {
                state.in_session(*session, |repo| repo.packs.commit(&self.packs, *session, packs, None, &[]))
            }
            Call::CommitSnapshot { session, snapshot, replaces } => {
                // One that was replaced and is recorded again, by a copy of its commit, gets another time.
                let known = state.repo(snapshot.repo).is_some_and(|r| r.snapshots.contains_key(&snapshot.id));
                let told = self.committed_ms.get(&snapshot.id).copied().filter(|_| !known);
                state.commit_snapshot(*session, snapshot, *replaces, told)
            }
            Call::Change { repo, change } => state.change(*repo, |repo| repo.change(change, None, false)),
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
        let (packs, snapshots) = Default::default();
        let repo = Repo { record: record.clone(), packs, snapshots, locked: false, last_ms: 0 };
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
            // Ended, and never opened again.
            Some(_) => return false,
            None if index.is_none_or(|index| index > self.opened_last) => fresh,
            None => return false,
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

    /// One that was not open is not opened any more, either.
    fn close(&mut self, id: SessionId) {
        let unknown = Session { repo: RepoId([0; 16]), opened: None, alive_us: 0, ended: true };
        let session = self.sessions.get(&id).cloned().unwrap_or(unknown);
        self.put_session(id, Session { ended: true, ..session });
    }

    /// Whether the session can have ended, with or without notice. From here on it has.
    fn has_run_out(&mut self, id: SessionId, op: &Op, lease_us: u64) -> bool {
        let (_, now_us) = op.at_us;
        if self.open_session(id).is_some_and(|s| now_us.is_none_or(|now| now < s.alive_us + lease_us)) {
            return false;
        }
        if self.sessions.contains_key(&id) {
            self.close(id);
        }
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
        replaces: Option<SnapshotId>,
        at: Option<u64>,
    ) -> bool {
        let in_session = self.open_session(session).is_some_and(|open| open.repo == offered.repo);
        let Some(live) = live(offered).map(Arc::new) else { return false };
        self.change(offered.repo, |repo| match repo.snapshots.get_mut(&offered.id) {
            Some(known) if known.place != Place::Gone => {
                let same = *known.record
                    == SnapshotRecord { committed_ms: known.record.committed_ms, ..(**offered).clone() };
                let at = at.or(known.committed_ms);
                let timely = known.committed_ms.is_none() || known.committed_ms == at;
                known.committed_ms = at;
                same && timely
            }
            _ => {
                let all = live.max().is_none_or(|o| o < repo.packs.next_ordinal());
                let (record, place) = (offered.clone(), Place::Listed);
                let snapshot = Snapshot { record, live: live.clone(), committed_ms: at, place };
                repo.snapshots.insert(offered.id, snapshot);
                if let Some(old) = replaces.and_then(|id| repo.snapshots.get_mut(&id)) {
                    old.place = Place::Gone;
                }
                // No two commits of a repository have the same time.
                let timely = at.is_none_or(|at| at > repo.last_ms);
                repo.last_ms = repo.last_ms.max(at.unwrap_or(0));
                in_session && all && timely
            }
        })
    }

    fn is_listed(&self, repo: RepoId, id: SnapshotId) -> bool {
        let known = self.repo(repo).and_then(|repo| repo.snapshots.get(&id));
        known.is_some_and(Snapshot::stays)
    }

    /// Whether these are chunks that the snapshot needs and that may not be there: numbers not given out, all of them up
    /// to where the list is cut, and some that no snapshot needs.
    fn lacks(&self, snapshot: &SnapshotRecord, gone: &[Ordinal]) -> bool {
        let Some(repo) = self.repo(snapshot.repo) else { return false };
        let Some(live) = live(snapshot) else { return false };
        let next = repo.packs.next_ordinal();
        let is_needed = |ordinal: u64| repo.snapshots.values().any(|s| s.stays() && s.live.contains(ordinal));
        let (given, beyond): (Vec<u64>, Vec<u64>) = gone.iter().map(|o| o.0).partition(|o| *o < next);
        let wanted = live.iter().filter(|ordinal| *ordinal >= next).take(beyond.len());
        !self.is_listed(snapshot.repo, snapshot.id)
            && !gone.is_empty()
            && gone.is_sorted()
            && given.iter().all(|ordinal| live.contains(*ordinal) && !is_needed(*ordinal))
            && wanted.eq(beyond.iter().copied())
    }

    fn list_snapshots(
        &mut self,
        repo: RepoId,
        after: Option<SnapshotId>,
        place: Place,
        rows: &[SnapshotRecord],
        more: bool,
    ) -> bool {
        if self.repo(repo).is_none() {
            return rows.is_empty() && !more;
        }
        self.change(repo, |repo| {
            let inside = |id: &SnapshotId| after.is_none_or(|after| *id > after);
            let last = rows.last().map(|row| row.id).filter(|_| more);
            let mut rows = rows.iter().peekable();
            let may_be = |known: &Snapshot| {
                let stale = place == Place::Trash && known.place == Place::Listed && !known.stays();
                known.place == place || stale
            };
            let wanted = repo.snapshots.iter_mut().filter(|(id, known)| inside(id) && may_be(known));
            for (id, known) in wanted.take_while(|(id, _)| last.is_none_or(|last| **id <= last)) {
                match rows.next_if(|row| row.id == *id) {
                    Some(row) if known.shows_as(row) => known.place = place,
                    None if known.place != place => {}
                    // What was in the trash for its time is gone, and so is an old checkpoint.
                    None if place == Place::Trash || !known.stays() => known.place = Place::Gone,
                    _ => return false,
                }
            }
            rows.next().is_none()
        })
    }
}

impl Repo {
    /// What the listed snapshots need.
    fn live(&self) -> Vec<Live> {
        let listed = self.snapshots.values().filter(|snapshot| snapshot.stays());
        listed.map(|snapshot| snapshot.live.clone()).collect()
    }

    /// Carries out a change of snapshots, if it can answer like this; `again` if an earlier attempt may have done it.
    fn change(&mut self, change: &RepoChange, count: Option<u32>, again: bool) -> bool {
        let (mut concerned, mut unsure) = (0, 0);
        let (ids, from, to) = match change {
            RepoChange::Forget { snapshots, .. } => (snapshots, Place::Listed, Place::Trash),
            RepoChange::Undelete { snapshots } => (snapshots, Place::Trash, Place::Listed),
            // Some of it may have gone before by itself, or not be due.
            RepoChange::Purge { snapshots, early } => {
                let purged = if *early { Place::Gone } else { Place::Trash };
                for known in snapshots.iter().filter_map(|id| self.snapshots.get(id)) {
                    concerned += u32::from(known.place == Place::Trash);
                }
                for id in snapshots {
                    let trashed = self.snapshots.get_mut(id).filter(|known| known.place == Place::Trash);
                    trashed.into_iter().for_each(|known| known.place = purged);
                }
                return count.is_none_or(|count| count <= concerned);
            }
            RepoChange::LockSnapshot { .. } | RepoChange::Lock { .. } => {
                self.locked = true;
                return true;
            }
            RepoChange::SetTrash { .. }
            | RepoChange::SetRetention { .. }
            | RepoChange::SetPolicy { .. }
            | RepoChange::SetKeySlots { .. }
            | RepoChange::Describe { .. }
            | RepoChange::MarkVerified { .. } => {
                return true;
            }
        };
        for id in ids {
            let Some(known) = self.snapshots.get_mut(id) else { continue };
            if to == Place::Listed && known.place == Place::Gone {
                return false;
            }
            if known.place == from {
                known.place = to;
                concerned += 1;
                unsure += u32::from(known.record.label.partial);
            }
        }
        let least = if again { 0 } else { concerned - unsure };
        count.is_none_or(|count| (least..=concerned).contains(&count))
    }

    /// Whether the change can be refused here.
    fn may_refuse(&self, change: &RepoChange) -> bool {
        let is_listed =
            |id: &SnapshotId| self.snapshots.get(id).is_some_and(|known| known.place == Place::Listed);
        match change {
            RepoChange::Forget { snapshots, .. } => self.locked && snapshots.iter().any(is_listed),
            RepoChange::Undelete { snapshots } => !snapshots.iter().all(is_listed),
            RepoChange::LockSnapshot { snapshot, .. } => self.locked || !is_listed(snapshot),
            RepoChange::MarkVerified { snapshot } => !is_listed(snapshot),
            RepoChange::Lock { .. } => self.locked,
            // Their outcome hangs on slots and descriptions that are not followed here.
            RepoChange::SetKeySlots { .. } | RepoChange::Describe { .. } => true,
            RepoChange::Purge { .. }
            | RepoChange::SetTrash { .. }
            | RepoChange::SetRetention { .. }
            | RepoChange::SetPolicy { .. } => false,
        }
    }
}

impl Snapshot {
    /// It does not go by itself, as checkpoints do that nobody has replaced for long.
    fn stays(&self) -> bool {
        self.place == Place::Listed && !self.record.label.partial
    }

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
