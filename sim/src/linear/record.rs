//! The recorder between a client and the catalogue. It writes down every call, and now and then it does what a network
//! may do: sends a change twice, or sends an old one again. Bounded: a full history ends at that moment, as if the run
//! had; what had not been answered by then stays open.

use super::call::{Answer, Call, Op, Origin};
use super::search::Timed;
use super::{LinearReport, check};
use crate::entropy::Rng;
use crate::event;
use crate::net::Label;
use crate::plan::ClientCall;
use crate::world::{Violation, World};
use async_trait::async_trait;
use farshore_client::Result;
use farshore_client::api::*;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{PackCommit, RepoChange, RepoRecord, RepoSettings, SnapshotRecord};
use farshore_core::host::task;
use farshore_core::id::{ChunkId, Ordinal, PackNo, RepoId, SessionId, SnapshotId};
use farshore_core::limits::SESSION_LEASE_MS;
use farshore_core::topology::Name;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Most operations of a history.
const OPERATIONS_MAX: usize = 20_000;
/// Most chunk ids in a history, in calls and answers.
const IDS_MAX: usize = 1_000_000;
/// A replayed change comes after 1 ms times a power of two, at most 2^16: within about a minute.
const REPLAY_POWERS: u64 = 17;

/// Everything the clients of a world have asked of the catalogue. Clones share it.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    world: World,
    log: Mutex<Log>,
}

struct Log {
    rng: Rng,
    lease: Duration,
    /// One change in so many is sent twice, or again; 0 is never.
    repeat_one_in: u64,
    events: u64,
    ops: Vec<Timed<Op>>,
    weight: usize,
    skipped: u64,
    repeated: Repeated,
    holds: BTreeMap<Label, Hold>,
}

/// What keeps the calls of a client from getting through.
struct Hold {
    from: ClientCall,
    duration: Duration,
    /// Virtual microseconds, once it has begun.
    until_us: Option<u64>,
}

/// What a client did with a session, for checks that do not look at answers.
#[derive(Clone, Debug)]
pub enum SessionCall {
    /// A client opened it, under an id that it had drawn.
    Open(SessionId, Label),
    /// A snapshot was offered under it.
    Offer(SessionId, Arc<SnapshotRecord>),
}

/// How often the network repeated a change.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Repeated {
    /// Sent twice at the same time.
    pub duplicates: u64,
    /// Sent again, later.
    pub replays: u64,
}

impl History {
    /// An empty history that repeats nothing.
    pub fn new(world: World) -> Self {
        let log = Log {
            rng: Rng::new(world.seed(), 0x4c49),
            lease: Duration::from_millis(SESSION_LEASE_MS),
            repeat_one_in: 0,
            events: 0,
            ops: Vec::new(),
            weight: 0,
            skipped: 0,
            repeated: Repeated::default(),
            holds: BTreeMap::new(),
        };
        History(Arc::new(Inner { world, log: Mutex::new(log) }))
    }

    /// From now on one change in `one_in` is sent twice or again; 0 stops it. What waits to be sent again still is.
    pub fn set_repeat(&self, one_in: u64) {
        self.log().repeat_one_in = one_in;
    }

    /// How long the nodes let an unrenewed session live, if not the usual time.
    pub fn set_lease(&self, lease: Duration) {
        self.log().lease = lease;
    }

    /// How often a change was repeated so far.
    pub fn repeated(&self) -> Repeated {
        self.log().repeated
    }

    /// From a client's next call of this kind on, none of its calls gets through for so long; if it is a renewal, no
    /// renewal does.
    pub fn hold(&self, client: Label, from: ClientCall, duration: Duration) {
        self.log().holds.insert(client, Hold { from, duration, until_us: None });
    }

    /// Whether a client was held up at that time or later.
    pub fn was_held(&self, client: Label, since_us: u64) -> bool {
        let until_us = self.log().holds.get(&client).and_then(|hold| hold.until_us);
        until_us.is_some_and(|until| until >= since_us)
    }

    /// Whether any client is held up now.
    pub fn is_anybody_held(&self) -> bool {
        let now_us = self.0.world.now_us();
        self.log().holds.values().any(|hold| hold.until_us.is_some_and(|until| until > now_us))
    }

    /// Nobody is held up who is not yet.
    pub fn hold_no_more(&self) {
        self.log().holds.retain(|_, hold| hold.until_us.is_some());
    }

    /// Until when a call that begins now does not get through, if it does not.
    fn held_until(&self, client: Label, call: &Call) -> Option<u64> {
        let now_us = self.0.world.now_us();
        let kind = call.kind()?;
        let mut log = self.log();
        let hold = log.holds.get_mut(&client)?;
        if hold.until_us.is_none() && hold.from == kind {
            hold.until_us = Some(now_us + hold.duration.as_micros() as u64);
        }
        let concerned = hold.from != ClientCall::RenewSession || kind == ClientCall::RenewSession;
        hold.until_us.filter(|until| concerned && *until > now_us)
    }

    /// The catalogue with a recorder in front of it.
    pub fn wrap(&self, api: Arc<dyn CatalogueApi>, client: Label) -> Arc<dyn CatalogueApi> {
        Arc::new(Recorder { api, history: self.clone(), client })
    }

    /// Looks for an order that explains every answer so far. The violation prints as little as it takes to have none.
    pub fn check(&self) -> Result<LinearReport, Violation> {
        let (ops, lease, skipped) = {
            let log = self.log();
            (log.ops.clone(), log.lease, log.skipped)
        };
        check(ops, lease).map(|report| LinearReport { skipped, ..report })
    }

    /// What was done with sessions, from the given place in the history on, and the place to go on from.
    pub fn session_calls(&self, from: usize) -> (Vec<SessionCall>, usize) {
        let log = self.log();
        let ops = log.ops.get(from..).unwrap_or_default();
        let told = ops.iter().filter_map(|Timed { op, .. }| match (&op.call, op.origin) {
            (Call::OpenSession { session, .. }, Origin::Client) => {
                Some(SessionCall::Open(*session, op.client))
            }
            (Call::CommitSnapshot { session, snapshot, .. }, _) => {
                Some(SessionCall::Offer(*session, snapshot.clone()))
            }
            _ => None,
        });
        (told.collect(), log.ops.len())
    }

    fn begin(&self, client: Label, call: Call, origin: Origin) -> Pending {
        let now_us = self.0.world.now_us();
        let mut log = self.log();
        log.weight += call.weight();
        let full = log.skipped > 0 || log.ops.len() >= OPERATIONS_MAX || log.weight > IDS_MAX;
        let at = (!full).then_some(log.ops.len());
        if full {
            log.skipped += 1;
        } else {
            let began = log.next_rank();
            let op = Op { client, at_us: (now_us, None), call, answer: None, origin };
            log.ops.push(Timed { began, ended: None, op });
        }
        Pending { history: self.clone(), at }
    }

    /// What the network makes of a change.
    fn draw_repeat(&self) -> Option<(Origin, Duration)> {
        let mut log = self.log();
        let one_in = log.repeat_one_in;
        if !log.rng.one_in(one_in) {
            return None;
        }
        if log.rng.one_in(2) {
            log.repeated.duplicates += 1;
            return Some((Origin::Duplicate, Duration::ZERO));
        }
        log.repeated.replays += 1;
        let power = log.rng.below(REPLAY_POWERS);
        Some((Origin::Replay, Duration::from_millis(1 << power)))
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().expect("no holder of this lock panics")
    }
}

impl Log {
    fn next_rank(&mut self) -> u64 {
        self.events += 1;
        self.events
    }
}

/// A call under way. If its client dies or gives up it stays open.
struct Pending {
    history: History,
    at: Option<usize>,
}

impl Pending {
    fn end(self, answer: Option<Answer>) {
        let (Some(at), Some(answer)) = (self.at, answer) else { return };
        let now_us = self.history.0.world.now_us();
        let mut log = self.history.log();
        // What is answered after a full history may be the work of calls that are not in it.
        if log.skipped > 0 {
            return;
        }
        let rank = log.next_rank();
        if let Some(timed) = log.ops.get_mut(at) {
            timed.ended = Some(rank);
            timed.op.at_us.1 = Some(now_us);
            timed.op.answer = Some(answer);
        }
    }
}

struct Recorder {
    api: Arc<dyn CatalogueApi>,
    history: History,
    client: Label,
}

impl Recorder {
    async fn begin(&self, call: Call) -> Pending {
        let held_until = self.history.held_until(self.client, &call);
        if call.changes()
            && !call.sets_policy()
            && let Some((origin, after)) = self.history.draw_repeat()
        {
            self.repeat(call.clone(), origin, after);
        }
        let said = held_until.map(|_| call.to_string());
        let pending = self.history.begin(self.client, call, Origin::Client);
        if let (Some(until), Some(call)) = (held_until, said) {
            let world = &self.history.0.world;
            event!(world, self.client, "held until {until}: {call}");
            tokio::time::sleep_until(world.instant(until)).await;
        }
        pending
    }

    /// Sends a change by the side. Its answer goes nowhere but into the history.
    fn repeat(&self, call: Call, origin: Origin, after: Duration) {
        let (api, history, client) = (self.api.clone(), self.history.clone(), self.client);
        event!(history.0.world, client, "{origin:?} after {} ms of {call}", after.as_millis());
        task::spawn(async move {
            tokio::time::sleep(after).await;
            let pending = history.begin(client, call.clone(), origin);
            pending.end(call.send(api.as_ref()).await);
        });
    }
}

#[async_trait]
impl CatalogueApi for Recorder {
    async fn topology(&self) -> Result<Topology> {
        self.api.topology().await
    }

    async fn create_repository(&self, repo: RepoRecord) -> Result<RepoRecord> {
        let pending = self.begin(Call::CreateRepository { repo: Arc::new(repo.clone()) }).await;
        let result = self.api.create_repository(repo).await;
        pending.end(Answer::of(&result, |repo| Answer::Repository(Arc::new(repo.clone()))));
        result
    }

    async fn get_repository(&self, name: &Name) -> Result<RepoRecord> {
        let pending = self.begin(Call::GetRepository { name: name.clone() }).await;
        let result = self.api.get_repository(name).await;
        pending.end(Answer::of(&result, |repo| Answer::Repository(Arc::new(repo.clone()))));
        result
    }

    async fn open_session(&self, session: SessionId, repo: RepoId, seen: u64) -> Result<OpenedSession> {
        let pending = self.begin(Call::OpenSession { session, repo, seen }).await;
        let result = self.api.open_session(session, repo, seen).await;
        pending.end(Answer::of(&result, |open| Answer::Opened(open.opened)));
        result
    }

    async fn renew_session(&self, session: SessionId) -> Result<()> {
        let pending = self.begin(Call::RenewSession { session }).await;
        let result = self.api.renew_session(session).await;
        pending.end(Answer::of(&result, |()| Answer::Done));
        result
    }

    async fn close_session(&self, session: SessionId) -> Result<()> {
        let pending = self.begin(Call::CloseSession { session }).await;
        let result = self.api.close_session(session).await;
        pending.end(Answer::of(&result, |()| Answer::Done));
        result
    }

    async fn lookup(
        &self,
        session: SessionId,
        repo: RepoId,
        ids: &[ChunkId],
    ) -> Result<Vec<Option<Ordinal>>> {
        let pending = self.begin(Call::Lookup { session, repo, ids: ids.into() }).await;
        let result = self.api.lookup(session, repo, ids).await;
        pending.end(Answer::of(&result, |found| Answer::Ordinals(found.clone())));
        result
    }

    async fn commit_packs(&self, session: SessionId, packs: Vec<PackCommit>) -> Result<Vec<PackCommitted>> {
        let pending = self.begin(Call::CommitPacks { session, packs: packs.clone().into() }).await;
        let result = self.api.commit_packs(session, packs).await;
        pending.end(Answer::of(&result, |done| Answer::PacksCommitted(done.clone())));
        result
    }

    async fn commit_snapshot(
        &self,
        session: SessionId,
        snapshot: SnapshotRecord,
        replaces: Option<SnapshotId>,
    ) -> Result<SnapshotCommitted> {
        let offered = Arc::new(snapshot.clone());
        let pending = self.begin(Call::CommitSnapshot { session, snapshot: offered, replaces }).await;
        let result = self.api.commit_snapshot(session, snapshot, replaces).await;
        pending.end(Answer::of(&result, |done| Answer::SnapshotCommitted(done.committed_ms)));
        result
    }

    async fn list_snapshots(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        trash: bool,
    ) -> Result<SnapshotPage> {
        let pending = self.begin(Call::ListSnapshots { repo, after, trash }).await;
        let result = self.api.list_snapshots(repo, after, trash).await;
        pending.end(Answer::of(&result, |page| Answer::Snapshots(page.clone())));
        result
    }

    async fn change_repository(&self, repo: RepoId, change: RepoChange) -> Result<u32> {
        let pending = self.begin(Call::Change { repo, change: Arc::new(change.clone()) }).await;
        let result = self.api.change_repository(repo, change).await;
        pending.end(Answer::of_change(&result));
        result
    }

    async fn settings(&self, repo: RepoId) -> Result<(RepoSettings, u64)> {
        self.api.settings(repo).await
    }

    async fn collect_garbage(&self, repo: RepoId, dry_run: bool) -> Result<GarbageReport> {
        self.api.collect_garbage(repo, dry_run).await
    }

    async fn locate(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Located> {
        let pending = self.begin(Call::Locate { repo, ids: ids.into() }).await;
        let result = self.api.locate(repo, ids).await;
        pending.end(Answer::of(&result, |found| Answer::Located(found.clone())));
        result
    }

    async fn list_packs(&self, repo: RepoId, from: PackNo) -> Result<PackPage> {
        let pending = self.begin(Call::ListPacks { repo, from }).await;
        let result = self.api.list_packs(repo, from).await;
        pending.end(Answer::of(&result, |page| Answer::Packs(page.clone())));
        result
    }

    async fn status(&self) -> Result<ClusterStatus> {
        self.api.status().await
    }
}
