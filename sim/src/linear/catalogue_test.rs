//! Histories of an honest catalogue must pass, and one wrong answer in them must not.

use super::call::*;
use super::catalogue::Catalogue;
use super::partition::parts;
use super::search::{Timed, Verdict, search};
use super::{LinearReport, check};
use crate::entropy::Rng;
use crate::world::Violation;
use farshore_client::api::{ChunkPlace, Located, PackPage, SnapshotPage};
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::*;
use farshore_core::erasure::{CODEC_RS, Scheme};
use farshore_core::id::*;
use farshore_core::policy::Policy;
use roaring::RoaringTreemap;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

const LEASE: Duration = Duration::from_secs(120);
const REPO: RepoId = RepoId([1; 16]);

fn repo() -> Arc<RepoRecord> {
    let name = "r".parse().unwrap();
    Arc::new(RepoRecord {
        id: REPO,
        name,
        policy: Policy::default(),
        sealed_config: vec![1],
        key_slots: vec![],
    })
}

fn chunk(n: u64) -> ChunkId {
    ChunkId([n as u8; 32])
}

fn pack(n: u64, chunks: &[u64]) -> PackCommit {
    let span = |(at, id): (u32, &u64)| ChunkSpan { id: chunk(*id), offset: at * 10, len: 10 };
    let scheme = Scheme::new(2, 1, 1).unwrap();
    let len = chunks.len() as u64 * 10;
    let shard = |index| ShardRecord { node: Some(NodeId(index)), hash: ShardHash([n as u8; 32]) };
    PackCommit {
        id: PackId([n as u8; 32]),
        kind: PackKind::Data,
        len,
        chunks: (0..).zip(chunks).map(span).collect(),
        scheme,
        shard_len: scheme.shard_len(len),
        shards: (1..=3).map(shard).collect(),
    }
}

fn snapshot(n: u64, needs: impl IntoIterator<Item = u64>) -> Arc<SnapshotRecord> {
    let mut live = Vec::new();
    needs.into_iter().collect::<RoaringTreemap>().serialize_into(&mut live).unwrap();
    Arc::new(SnapshotRecord {
        id: SnapshotId([n as u8; 32]),
        repo: REPO,
        kind: SnapshotKind::Full,
        parent: None,
        group: [0; 16],
        committed_ms: 0,
        label: SnapshotLabel::default(),
        sealed: vec![n as u8],
        live,
    })
}

/// A catalogue with one repository, as plain as can be.
#[derive(Clone, Default)]
struct Honest {
    made: bool,
    index: u64,
    open: BTreeMap<SessionId, u64>,
    ended: BTreeSet<SessionId>,
    packs: Vec<PackRecord>,
    /// Packs that were collected, by position.
    dropped: BTreeSet<usize>,
    trash: BTreeMap<SnapshotId, SnapshotRecord>,
    chunks: BTreeMap<ChunkId, (Ordinal, ChunkPlace)>,
    next: u64,
    snapshots: BTreeMap<SnapshotId, SnapshotRecord>,
}

impl Honest {
    fn answer(&mut self, call: &Call) -> Answer {
        self.index += 1;
        match call {
            Call::CreateRepository { repo } => {
                self.made = true;
                Answer::Repository(repo.clone())
            }
            Call::GetRepository { .. } if self.made => Answer::Repository(repo()),
            Call::GetRepository { .. } => Answer::RepositoryMissing,
            Call::OpenSession { session, .. } if self.ended.contains(session) => Answer::SessionEnded,
            Call::OpenSession { session, .. } => {
                Answer::Opened(*self.open.entry(*session).or_insert(self.index))
            }
            Call::CloseSession { session } => {
                self.open.remove(session);
                self.ended.insert(*session);
                Answer::Done
            }
            Call::Change { change, .. } => self.change(change),
            Call::ListSnapshots { after, trash, .. } => {
                let place = if *trash { &self.trash } else { &self.snapshots };
                let rows = place.values().filter(|s| after.is_none_or(|after| s.id > after));
                let plain = |s: &SnapshotRecord| SnapshotRecord { live: Vec::new(), ..s.clone() };
                let mut snapshots: Vec<_> = rows.take(3).map(plain).collect();
                let more = snapshots.len() > 2;
                snapshots.truncate(2);
                Answer::Snapshots(SnapshotPage { snapshots, marks: vec![], more })
            }
            Call::Locate { ids, .. } => {
                let places: Vec<_> = ids.iter().map(|id| self.chunks.get(id).map(|(_, p)| *p)).collect();
                let row = |place: &ChunkPlace| (place.pack, self.packs[place.pack.0 as usize / 7].clone());
                Answer::Located(Located { packs: places.iter().flatten().map(row).collect(), places })
            }
            Call::ListPacks { from, .. } => {
                let there = (0..).zip(&self.packs).filter(|(at, _)| !self.dropped.contains(at));
                let mut packs: Vec<_> =
                    there.map(|(_, p)| p).filter(|p| p.no >= *from).take(3).cloned().collect();
                let next = (packs.len() > 2).then(|| packs[2].no);
                packs.truncate(2);
                Answer::Packs(PackPage { packs, next })
            }
            Call::CommitSnapshot { snapshot, .. } if self.snapshots.contains_key(&snapshot.id) => {
                Answer::SnapshotCommitted(self.snapshots[&snapshot.id].committed_ms)
            }
            Call::CommitSnapshot { snapshot, .. } if self.trash.contains_key(&snapshot.id) => {
                Answer::SnapshotCommitted(self.trash[&snapshot.id].committed_ms)
            }
            _ if !call.session().is_some_and(|s| self.open.contains_key(&s)) => Answer::SessionEnded,
            Call::RenewSession { .. } => Answer::Done,
            Call::Lookup { ids, .. } => {
                Answer::Ordinals(ids.iter().map(|id| self.chunks.get(id).map(|(o, _)| *o)).collect())
            }
            Call::CommitPacks { packs, .. } => {
                Answer::PacksCommitted(packs.iter().map(|pack| self.add(pack)).collect())
            }
            Call::CommitSnapshot { snapshot, .. } => {
                let needed = RoaringTreemap::deserialize_from(&snapshot.live[..]).unwrap();
                let there: BTreeSet<u64> = self.chunks.values().map(|(o, _)| o.0).collect();
                let gone: Vec<_> = needed.iter().filter(|o| !there.contains(o)).map(Ordinal).collect();
                if !gone.is_empty() {
                    return Answer::ChunksGone(gone);
                }
                let row = SnapshotRecord { committed_ms: 1_000 + self.index, ..snapshot.as_ref().clone() };
                Answer::SnapshotCommitted(self.snapshots.entry(row.id).or_insert(row).committed_ms)
            }
        }
    }

    fn change(&mut self, change: &RepoChange) -> Answer {
        let mut count = 0;
        match change {
            RepoChange::Forget { snapshots, .. } => {
                for row in snapshots.iter().filter_map(|id| self.snapshots.remove(id)).collect::<Vec<_>>() {
                    self.trash.insert(row.id, row);
                    count += 1;
                }
            }
            RepoChange::Undelete { snapshots } => {
                let there = |id: &SnapshotId| self.trash.contains_key(id) || self.snapshots.contains_key(id);
                if !snapshots.iter().all(there) {
                    return Answer::Refused;
                }
                for row in snapshots.iter().filter_map(|id| self.trash.remove(id)).collect::<Vec<_>>() {
                    self.snapshots.insert(row.id, row);
                    count += 1;
                }
            }
            RepoChange::Purge { snapshots, .. } => {
                count = snapshots.iter().filter_map(|id| self.trash.remove(id)).count() as u32;
            }
            _ => count = 1,
        }
        Answer::Changed(count)
    }

    /// Packs that no snapshot needs may go once nobody is left who was told that they are there.
    fn collect(&mut self, rng: &mut Rng) {
        if !self.open.is_empty() {
            return;
        }
        let all = self.snapshots.values().chain(self.trash.values());
        let live: RoaringTreemap =
            all.flat_map(|s| RoaringTreemap::deserialize_from(&s.live[..]).unwrap()).collect();
        for (at, pack) in self.packs.iter().enumerate() {
            let mut homed = self.chunks.values().filter(|(_, place)| place.pack == pack.no);
            let dead = !homed.any(|(o, _)| live.contains(o.0));
            if dead && rng.one_in(2) && self.dropped.insert(at) {
                self.chunks.retain(|_, (_, place)| place.pack != pack.no);
            }
        }
    }

    fn add(&mut self, pack: &PackCommit) -> PackCommitted {
        let known = self.packs.iter().find(|row| row.id == pack.id).map(|row| row.no);
        // Other repositories use up numbers too.
        let no = known.unwrap_or(PackNo(self.packs.len() as u64 * 7));
        if known.is_none() {
            let (first, chunks) = (self.next, pack.chunks.len() as u32);
            self.next += u64::from(chunks);
            for (at, span) in (first..).zip(&pack.chunks) {
                let place = ChunkPlace { ordinal: Ordinal(at), pack: no, offset: span.offset, len: span.len };
                self.chunks.entry(span.id).or_insert((Ordinal(at), place));
            }
            let stripe = StripeRecord {
                id: StripeId::of(REPO, pack.id, 2, 1, CODEC_RS),
                scheme: pack.scheme,
                shard_len: pack.shard_len,
                generation: 0,
                shards: pack.shards.clone(),
            };
            let (id, kind, len) = (pack.id, pack.kind, pack.len);
            self.packs.push(PackRecord {
                no,
                id,
                repo: REPO,
                kind,
                len,
                chunks,
                first_ordinal: Ordinal(first),
                stripe,
            });
        }
        PackCommitted {
            id: pack.id,
            no,
            ordinals: pack.chunks.iter().map(|s| self.chunks[&s.id].0).collect(),
        }
    }

    /// Repair moves a shard.
    fn repair(&mut self, rng: &mut Rng) {
        if let Some(pack) = self.packs.len().checked_sub(1) {
            let stripe = &mut self.packs[rng.range(0, pack as u64) as usize].stripe;
            stripe.generation += 1;
            stripe.shards[0].node = rng.one_in(2).then(|| NodeId(rng.range(10, 20)));
        }
    }
}

/// Several clients at once, each doing one thing after the other, on one catalogue.
struct Play {
    rng: Rng,
    honest: Honest,
    rank: u64,
    history: Vec<Timed<Op>>,
    /// Per client: its call under way, and what was answered though it has not arrived.
    calls: Vec<Option<(usize, Option<Answer>)>>,
}

impl Play {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed, 1);
        let clients = rng.range(1, 4) as usize;
        let mut play =
            Play { rng, honest: Honest::default(), rank: 0, history: Vec::new(), calls: vec![None; clients] };
        play.at_once(Call::CreateRepository { repo: repo() });
        play.at_once(Call::OpenSession { session: SessionId([1; 16]), repo: REPO, seen: 0 });
        play
    }

    fn tick(&mut self) -> u64 {
        self.rank += 1;
        self.rank
    }

    fn begin(&mut self, call: Call) -> usize {
        let began = self.tick();
        let at_us = (began * 1_000, None);
        let op = Op { client: 101, at_us, call, answer: None, origin: Origin::Client };
        self.history.push(Timed { began, ended: None, op });
        self.history.len() - 1
    }

    fn end(&mut self, at: usize, answer: Answer) {
        let ended = self.tick();
        let timed = &mut self.history[at];
        (timed.ended, timed.op.at_us.1, timed.op.answer) = (Some(ended), Some(ended * 1_000), Some(answer));
    }

    /// A call that nothing overlaps.
    fn at_once(&mut self, call: Call) -> Answer {
        let at = self.begin(call.clone());
        let answer = self.honest.answer(&call);
        self.end(at, answer.clone());
        answer
    }

    fn ids(&mut self) -> Arc<[ChunkId]> {
        (0..self.rng.range(1, 4)).map(|_| chunk(self.rng.below(20))).collect()
    }

    fn draw(&mut self) -> Call {
        // An id that has ended is of no use any more.
        let ended = self.honest.ended.len() as u64;
        let session = SessionId([self.rng.range(1.max(ended), 2 + ended) as u8; 16]);
        let ids =
            |rng: &mut Rng| vec![SnapshotId([rng.below(30) as u8; 32]), SnapshotId([rng.below(9) as u8; 32])];
        match self.rng.below(14) {
            0 => Call::OpenSession { session, repo: REPO, seen: 0 },
            12 => {
                let snapshots = ids(&mut self.rng);
                Call::Change { repo: REPO, change: Arc::new(RepoChange::Forget { snapshots, bypass: false }) }
            }
            13 => {
                let snapshots = ids(&mut self.rng);
                let change = match self.rng.below(3) {
                    0 => RepoChange::Purge { snapshots, early: true },
                    _ => RepoChange::Undelete { snapshots: snapshots[..1].to_vec() },
                };
                Call::Change { repo: REPO, change: Arc::new(change) }
            }
            1 if self.rng.one_in(2) => Call::CloseSession { session },
            1 => Call::GetRepository { name: "r".parse().unwrap() },
            2..=4 => {
                let drawn = |rng: &mut Rng| rng.below(12);
                let packs = (0..self.rng.range(1, 2)).map(|_| drawn(&mut self.rng));
                // A pack of a name always has the same chunks, and is never sent again under another session.
                let era = self.honest.ended.len() as u64 * 16;
                let fixed = |n| pack((n + era) % 250, &[n, n + 1, (n * 5) % 4 + n + 2]);
                Call::CommitPacks { session, packs: packs.map(fixed).collect() }
            }
            5 | 6 => {
                let needs = self.rng.below(self.honest.next + 3);
                Call::CommitSnapshot {
                    session,
                    snapshot: snapshot(needs, [needs / 2, needs]),
                    replaces: None,
                }
            }
            7 => Call::Lookup { session, repo: REPO, ids: self.ids() },
            8 | 9 => Call::ListSnapshots { repo: REPO, after: None, trash: self.rng.one_in(4) },
            10 => Call::Locate { repo: REPO, ids: self.ids() },
            _ => Call::ListPacks { repo: REPO, from: PackNo(self.rng.below(30)) },
        }
    }

    fn step(&mut self) {
        if self.rng.one_in(8) {
            self.honest.repair(&mut self.rng);
        }
        if self.rng.one_in(16) {
            self.honest.collect(&mut self.rng);
        }
        let client = self.rng.below(self.calls.len() as u64) as usize;
        match self.calls[client].take() {
            None => {
                let call = self.draw();
                self.calls[client] = Some((self.begin(call), None));
            }
            // Its answer is lost, and it may or may not have happened.
            Some((_, _)) if self.rng.one_in(20) => {}
            Some((at, None)) => {
                let call = self.history[at].op.call.clone();
                self.calls[client] = Some((at, Some(self.honest.answer(&call))));
            }
            Some((at, Some(answer))) => self.end(at, answer),
        }
    }

    /// The search alone, without making what it finds readable.
    fn verdict(&self) -> Verdict {
        let parts = parts(self.history.clone());
        // Sessions that were never opened are parts of their own.
        let verdict = |part: &Vec<Timed<Op>>| {
            let spec = Catalogue::new(part.iter().map(|timed| &timed.op), LEASE);
            search(&spec, part, 20_000).verdict
        };
        let mut verdicts = parts.iter().map(verdict);
        verdicts.find(|v| *v != Verdict::Linearizable).unwrap_or(Verdict::Linearizable)
    }

    fn check(&self) -> Result<LinearReport, Violation> {
        // Nothing runs out in so short a time, except by closing.
        check(self.history.clone(), LEASE)
    }
}

fn listing() -> Call {
    Call::ListSnapshots { repo: REPO, after: None, trash: false }
}

#[test]
fn honest_answers_have_an_order() {
    let mut states = 0;
    for seed in 0..300 {
        let mut play = Play::new(seed);
        (0..150).for_each(|_| play.step());
        let report = play.check().unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        assert_eq!(report.undecided, 0, "seed {seed}");
        states += report.states;
    }
    assert!(states < 300 * 1_000, "{states} states: the search goes astray");
}

/// Every answer that can be spoiled is spoiled, one at a time.
#[test]
fn one_stale_answer_at_the_end_is_found() {
    let (mut tried, mut found) = (0, 0);
    for seed in 0..150 {
        let mut play = Play::new(seed);
        (0..60).for_each(|_| play.step());
        let mut old = play.honest.clone();
        (0..60).for_each(|_| play.step());
        // Whoever has been answered is owed; whoever has not may be seen or not.
        let ids: Arc<[ChunkId]> = (0..20).map(chunk).collect();
        let reads =
            [listing(), Call::Locate { repo: REPO, ids }, Call::ListPacks { repo: REPO, from: PackNo(0) }];
        for read in reads {
            let stale = old.answer(&read);
            if stale == play.honest.answer(&read) {
                continue;
            }
            tried += 1;
            let mut spoilt = Play { history: play.history.clone(), rng: play.rng.clone(), ..Play::new(seed) };
            spoilt.rank = play.rank;
            spoilt.calls.clear();
            let at = spoilt.begin(read);
            spoilt.end(at, stale);
            found += usize::from(spoilt.verdict() == Verdict::Impossible);
        }
    }
    // Some of what is missing was never acknowledged, or may have been garbage.
    assert!(tried > 250 && found * 10 > tried * 7, "{found} of {tried} were found");
}

/// A repository, an open session, a pack of three chunks and a snapshot of them.
fn ready() -> Play {
    let mut play = Play::new(7);
    let session = SessionId([1; 16]);
    play.at_once(Call::CommitPacks { session, packs: [pack(1, &[1, 2, 3])].into() });
    play.at_once(Call::CommitSnapshot { session, snapshot: snapshot(1, 0..3), replaces: None });
    play
}

fn refused(play: &Play, call: Call, answer: Answer) -> bool {
    let mut play = Play { history: play.history.clone(), honest: play.honest.clone(), ..Play::new(7) };
    play.rank = 1_000;
    let at = play.begin(call);
    play.end(at, answer);
    play.check().is_err()
}

#[test]
fn lost_updates_and_phantoms_are_found() {
    let mut play = ready();
    let session = SessionId([1; 16]);
    let Answer::Snapshots(page) = play.at_once(listing()) else { panic!() };
    assert!(play.check().is_ok());
    let none = SnapshotPage::default();
    assert!(refused(&play, listing(), Answer::Snapshots(none)), "lost");
    let mut phantom = page.clone();
    phantom.snapshots.push(SnapshotRecord {
        committed_ms: 2_000,
        live: vec![],
        ..(*snapshot(9, [])).clone()
    });
    assert!(refused(&play, listing(), Answer::Snapshots(phantom)), "phantom");
    let mut other = page;
    other.snapshots[0].committed_ms += 1;
    assert!(refused(&play, listing(), Answer::Snapshots(other)), "changed");
    let lookup = Call::Lookup { session, repo: REPO, ids: [chunk(2)].into() };
    assert!(!refused(&play, lookup.clone(), Answer::Ordinals(vec![Some(Ordinal(1))])));
    assert!(refused(&play, lookup.clone(), Answer::Ordinals(vec![Some(Ordinal(2))])), "another ordinal");
    assert!(!refused(&play, lookup, Answer::Ordinals(vec![None])), "a lookup may be as old as its session");
    let locate = Call::Locate { repo: REPO, ids: [chunk(2)].into() };
    assert!(refused(&play, locate, Answer::Located(Located { places: vec![None], ..Located::default() })));
    let unknown = Call::GetRepository { name: "s".parse().unwrap() };
    assert!(!refused(&play, unknown.clone(), Answer::RepositoryMissing));
    assert!(refused(&play, unknown, Answer::Repository(repo())));
    assert!(refused(&play, Call::GetRepository { name: "r".parse().unwrap() }, Answer::RepositoryMissing));
}

#[test]
fn commits_are_numbered_once_and_in_order() {
    let play = ready();
    let session = SessionId([1; 16]);
    let commit = |n, chunks: &[u64]| Call::CommitPacks { session, packs: [pack(n, chunks)].into() };
    let done = |n, no, ordinals: &[u64]| {
        let ordinals = ordinals.iter().map(|o| Ordinal(*o)).collect();
        Answer::PacksCommitted(vec![PackCommitted { id: PackId([n; 32]), no: PackNo(no), ordinals }])
    };
    assert!(!refused(&play, commit(2, &[3, 4]), done(2, 9, &[2, 4])), "each place in the table uses up one");
    assert!(refused(&play, commit(2, &[3, 4]), done(2, 9, &[2, 3])));
    assert!(refused(&play, commit(2, &[3, 4]), done(2, 9, &[3, 4])), "the chunk is known by another number");
    assert!(refused(&play, commit(2, &[3, 4]), done(2, 0, &[2, 4])), "the number is taken");
    assert!(!refused(&play, commit(1, &[1, 2, 3]), done(1, 0, &[0, 1, 2])), "again");
    assert!(refused(&play, commit(1, &[1, 2, 3]), done(1, 1, &[0, 1, 2])), "a second time is another one");
    let snap = |needs: &[u64]| Call::CommitSnapshot {
        session,
        snapshot: snapshot(3, needs.iter().copied()),
        replaces: None,
    };
    assert!(!refused(&play, snap(&[2]), Answer::SnapshotCommitted(9_000)));
    assert!(refused(&play, snap(&[3]), Answer::SnapshotCommitted(9_000)), "what it needs is not there");
    assert!(!refused(&play, snap(&[2, 3]), Answer::ChunksGone(vec![Ordinal(3)])));
    assert!(refused(&play, snap(&[2, 3, 4]), Answer::ChunksGone(vec![Ordinal(4)])), "the first comes first");
    assert!(refused(&play, snap(&[2, 3]), Answer::ChunksGone(vec![Ordinal(2)])), "that one is there");
    assert!(refused(&play, snap(&[2]), Answer::SnapshotCommitted(1)), "time runs backwards");
}

#[test]
fn sessions_end_when_closed_or_run_out_and_stay_so() {
    let mut play = ready();
    let session = SessionId([1; 16]);
    let renew = Call::RenewSession { session };
    assert!(!refused(&play, renew.clone(), Answer::Done));
    assert!(refused(&play, renew.clone(), Answer::SessionEnded), "it was opened a second ago");
    let early = check(play.history.clone(), Duration::from_millis(1)).is_ok();
    assert!(early);
    play.at_once(Call::CloseSession { session });
    assert!(!refused(&play, renew.clone(), Answer::SessionEnded));
    assert!(refused(&play, renew, Answer::Done), "closed is closed");
    let commit = Call::CommitSnapshot { session, snapshot: snapshot(5, [0]), replaces: None };
    assert!(refused(&play, commit.clone(), Answer::SnapshotCommitted(9_000)), "fenced");
    assert!(!refused(&play, commit.clone(), Answer::SessionEnded));
    // An opening sent twice that comes late must not open it again.
    let at = play.begin(Call::OpenSession { session, repo: REPO, seen: 0 });
    play.history[at].op.origin = Origin::Replay;
    assert!(refused(&play, commit, Answer::SnapshotCommitted(9_000)));
    let open = Call::OpenSession { session, repo: REPO, seen: 0 };
    assert!(refused(&play, open.clone(), Answer::Opened(99)), "ended for good");
    assert!(!refused(&play, open, Answer::SessionEnded));
}

#[test]
fn what_is_forgotten_goes_and_what_is_needed_stays() {
    let mut play = ready();
    let session = SessionId([1; 16]);
    let change = |change| Call::Change { repo: REPO, change: Arc::new(change) };
    let snapshots = || vec![SnapshotId([1; 32])];
    let packs = Call::ListPacks { repo: REPO, from: PackNo(0) };
    let (none, nowhere) =
        (Answer::Packs(PackPage::default()), Located { places: vec![None], ..Located::default() });
    let locate = Call::Locate { repo: REPO, ids: [chunk(2)].into() };
    play.at_once(Call::CloseSession { session });
    assert!(refused(&play, packs.clone(), none.clone()), "a snapshot needs it");
    let undelete = change(RepoChange::Undelete { snapshots: snapshots() });
    assert!(!refused(&play, undelete.clone(), Answer::Changed(0)), "it is where it belongs");
    assert!(refused(&play, undelete.clone(), Answer::Refused));
    let forget = change(RepoChange::Forget { snapshots: snapshots(), bypass: false });
    assert!(refused(&play, forget.clone(), Answer::Refused), "nobody has locked anything");
    assert!(refused(&play, forget.clone(), Answer::Changed(0)));
    assert_eq!(play.at_once(forget), Answer::Changed(1));
    let Answer::Snapshots(listed) = play.honest.answer(&listing()) else { panic!() };
    assert!(listed.snapshots.is_empty() && play.check().is_ok());
    assert!(!refused(&play, packs.clone(), none.clone()), "its time in the trash may be over");
    assert!(!refused(&play, locate.clone(), Answer::Located(nowhere.clone())));
    assert!(!refused(&play, undelete.clone(), Answer::Refused), "it may have been purged");
    assert_eq!(play.at_once(undelete), Answer::Changed(1));
    assert!(refused(&play, packs.clone(), none.clone()), "it is needed again");
    assert!(refused(&play, locate, Answer::Located(nowhere)));
    let purge = change(RepoChange::Purge { snapshots: snapshots(), early: true });
    assert!(refused(&play, purge, Answer::Changed(1)), "it is not in the trash");
}

#[test]
fn placements_only_move_on() {
    let mut play = ready();
    let list = Call::ListPacks { repo: REPO, from: PackNo(0) };
    let old = play.at_once(list.clone());
    play.honest.packs[0].stripe.generation += 1;
    play.honest.packs[0].stripe.shards[0].node = None;
    let new = play.at_once(list.clone());
    assert!(play.check().is_ok());
    assert!(!refused(&play, list.clone(), new.clone()));
    assert!(refused(&play, list.clone(), old), "stale");
    let Answer::Packs(mut page) = new else { panic!() };
    page.packs[0].stripe.shards[0].node = Some(NodeId(9));
    assert!(refused(&play, list, Answer::Packs(page)), "one generation is one placement");
}

#[test]
fn a_violation_prints_little() {
    let mut play = ready();
    let session = SessionId([1; 16]);
    for n in 10..20 {
        play.at_once(Call::CommitPacks { session, packs: [pack(n, &[n])].into() });
        play.at_once(listing());
    }
    let at = play.begin(listing());
    play.end(at, Answer::Snapshots(SnapshotPage::default()));
    let said = play.check().unwrap_err();
    let lines: Vec<_> = said.lines().filter(|line| !line.contains("perhaps")).collect();
    assert!((3..12).contains(&lines.len()), "{said}");
    assert!(lines[lines.len() - 1].ends_with("-> [] more: false"), "{said}");
}
