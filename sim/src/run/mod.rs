//! Runs a drawn plan: clients do their work, faults come and go at their times, invariants are looked at all along.
//! Then faults stop, and everything must come back (`liveness.rs`).

pub mod liveness;

mod discard;

mod moves;

mod orders;

pub mod faults;

use crate::agent::{Agent, FROZEN, Failure, OUTDATED, Promise};
use crate::clock::now_secs;
use crate::cluster::{CAPACITY, COLLECT_EVERY, Cluster, Settings, Violation};
use crate::coverage::Tallies;
use crate::entropy::Rng;
use crate::event;
use crate::invariant::{self, Invariant, Moment, Scene};
use crate::misconduct::half_a_commit;
use crate::plan::{Plan, Profile, What, Work, draw, repository_name};
use crate::tree::{self, Tree};
use crate::trespass::{Doors, trespass};
use crate::truth::Truth;
use crate::world::World;
use farshore_client::crypto::KdfParams;
use farshore_client::{Client, Error, Repository};
use farshore_core::catalogue::{PackRecord, SnapshotKind};
use farshore_core::id::{PackNo, SnapshotId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::policy::Policy;
use farshore_node::catalogue::View;
use farshore_node::config::Timing;
use farshore_node::raft::RaftTuning;
use faults::Faults;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use moves::Moves;
use orders::Operators;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Cheap invariants are looked at this often.
const STEP: Duration = Duration::from_millis(250);
/// And all others once in so many steps.
const STEPS_A_SECOND: u64 = 4;
/// The cluster has formed by then.
const FORMED: Duration = Duration::from_secs(120);
/// An operation that no fault is left to excuse ends by then.
pub const OPERATION: Duration = Duration::from_secs(400);
/// A machine that was in trouble is trusted again after this long without it.
const SETTLED_US: u64 = 20_000_000;
/// Operations that a client has not begun wait in line, up to this many.
const QUEUE_MAX: usize = 8;

/// How a piece of work ended.
pub(crate) enum Did {
    /// The client is ready.
    Entered(Box<Agent>),
    /// A snapshot was acknowledged, with so many packs under target.
    Promised(Promise, u32),
    /// These snapshots are there.
    Listed(Vec<String>),
    /// So many calls beyond its grants were refused.
    Trespassed(u64),
    /// These snapshots are in the trash.
    Forgotten(Vec<SnapshotId>),
    /// This snapshot is out of the trash again.
    Undeleted(SnapshotId),
    /// This snapshot is locked until then.
    Locked(SnapshotId, u64),
    /// Nothing to remember.
    Done,
}

type Ended = (usize, u64, Result<Did, Failure>);

/// A client's place in the world; the process in it may change.
pub(crate) struct Seat {
    pub agent: Option<Arc<Agent>>,
    /// Processes that have sat here, so that what an earlier one began is told apart.
    pub incarnation: u64,
    /// Away or asleep because of a fault.
    pub away: bool,
    busy: Option<Busy>,
    queue: VecDeque<Work>,
    tree: Tree,
}

impl Seat {
    /// One more piece of work; forgotten if too many wait already.
    pub(crate) fn ask(&mut self, work: Work) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(work);
        }
    }
}

struct Busy {
    /// `None` while the client enters.
    work: Option<Work>,
    since_us: u64,
    /// Snapshots acknowledged before it began, which a listing must show unless they are forgotten meanwhile.
    promised: BTreeSet<String>,
    /// Snapshots that it works on.
    about: Vec<SnapshotId>,
}

/// A snapshot that somebody has begun to forget.
pub(crate) struct Forgotten {
    promise: Arc<Promise>,
    /// In the trash by an answer that came so soon that no earlier attempt can be under way, which would forget it again.
    settled: bool,
}

/// Forgotten trees that are remembered.
const GRAVES_MAX: usize = 4;

/// An answer that comes within this time has had one attempt.
const ONE_ATTEMPT_US: u64 = 400_000;
/// A lock that outlasts every wrong calendar.
const LOCKED_UNTIL_MS: u64 = u64::MAX / 4;
/// Longest of the locks that end while the world lasts, or soon after.
const LOCKED_MS_MAX: u64 = 300_000;
/// A call that is begun so long before a lock ends is over by then.
const LOCKED_CALL_MS: u64 = 60_000;

/// The newest catalogue that any replica has shown.
pub(crate) struct Newest {
    pub view: View,
    pub packs: Vec<PackRecord>,
}

/// Everything of one run.
pub struct Run<'a> {
    pub(crate) world: World,
    pub(crate) plan: &'a Plan,
    pub(crate) rng: Rng,
    pub(crate) cluster: Cluster,
    pub(crate) seats: Vec<Seat>,
    pub(crate) faults: Faults,
    pub(crate) truth: Truth,
    pub(crate) newest: Option<Newest>,
    pub(crate) promises: Vec<Arc<Promise>>,
    forgotten: Vec<Forgotten>,
    /// Trees of snapshots that were forgotten: whoever backs one up again meets chunks that are just going.
    graves: VecDeque<Tree>,
    /// Snapshots that nobody may forget any more.
    /// Until when snapshots are locked.
    locked: BTreeMap<SnapshotId, u64>,
    /// When anybody last began to forget or to collect.
    discarded_us: u64,
    operators: Operators,
    moves: Moves,
    pub(crate) tallies: Tallies,
    invariants: Vec<Box<dyn Invariant + Send>>,
    going: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// Since when every machine has been well.
    well_since: Option<u64>,
    /// Since when, besides, every recorded copy has been as it should be.
    sound_since: Option<u64>,
    /// Nothing excuses a refusal any more.
    pub(crate) strict: bool,
    /// Since when everything promised could be read on machines that are well.
    readable_since: Option<u64>,
    pub(crate) began_us: u64,
    steps: u64,
}

/// From the first start to the last check.
pub async fn run(world: &World, plan: &Plan) -> (Option<Violation>, Tallies) {
    let mut run = match Run::begin(world, plan) {
        Ok(run) => run,
        Err(violation) => return (Some(violation), Tallies::default()),
    };
    let violation = run.all().await.err();
    let told = run.cluster.relays.told();
    if told > 0 {
        run.tallies.upkeep.insert("wrong sums".into(), told);
    }
    (violation, run.tallies)
}

impl<'a> Run<'a> {
    fn begin(world: &World, plan: &'a Plan) -> Result<Self, Violation> {
        let knobs = &plan.knobs;
        let timing = Timing {
            grace: Duration::from_millis(knobs.grace_ms),
            session_lease: Duration::from_millis(knobs.session_lease_ms),
            collect_every: COLLECT_EVERY,
            compact_below: if knobs.compact { Timing::default().compact_below } else { 0 },
            ..Timing::default()
        };
        let raft = RaftTuning {
            snapshot_logs: knobs.snapshot_logs,
            keep_logs: knobs.snapshot_logs / 4,
            ..RaftTuning::default()
        };
        let mut cluster = Cluster::new(
            world.clone(),
            &plan.layout,
            Settings {
                timing,
                raft,
                near_us: Some(knobs.near_us),
                capacity: knobs.capacity_kib.map_or(CAPACITY, |kib| kib << 10),
            },
        )?;
        cluster.hub.set_latency(knobs.far_us, knobs.far_us * 2);
        cluster.hub.set_loss(knobs.loss_ppm);
        cluster.history.set_repeat(knobs.duplicate_one_in);
        (0..cluster.machines.len()).for_each(|at| cluster.start(at));
        let mut rng = Rng::new(plan.seed, 0x5255);
        world.taint().keep("a passphrase", crate::agent::PASSPHRASE.as_bytes());
        let common = tree::grow(&mut rng, knobs.entries, now_secs(world));
        let seat = |number| Seat {
            agent: None,
            incarnation: 0,
            away: false,
            busy: None,
            queue: VecDeque::new(),
            tree: {
                // Two that have the same files meet in the same chunks.
                let mut tree = match number == 0 || rng.one_in(2) {
                    true => common.clone(),
                    false => tree::grow(&mut rng, knobs.entries, now_secs(world)),
                };
                tree::plant(&mut rng, &mut tree, world.taint());
                tree
            },
        };
        let seats = (0..knobs.clients).map(seat).collect();
        Ok(Run {
            world: world.clone(),
            plan,
            rng,
            cluster,
            seats,
            faults: Faults::default(),
            truth: Truth::default(),
            newest: None,
            promises: Vec::new(),
            forgotten: Vec::new(),
            graves: VecDeque::new(),
            locked: BTreeMap::new(),
            discarded_us: 0,
            operators: Operators::default(),
            moves: Moves::default(),
            tallies: Tallies::default(),
            invariants: invariant::all(),
            going: FuturesUnordered::new(),
            well_since: None,
            sound_since: None,
            strict: false,
            readable_since: None,
            began_us: 0,
            steps: 0,
        })
    }

    async fn all(&mut self) -> Result<(), Violation> {
        self.form().await?;
        self.began_us = self.world.now_us();
        event!(self.world, 0, "the cluster has formed");
        for seat in 0..self.seats.len() {
            self.enter(seat)?;
        }
        let steps: VecDeque<_> = self.plan.steps.clone().into();
        self.trouble(steps).await?;
        self.peace().await
    }

    /// The first client makes the repositories as soon as all nodes are known.
    async fn form(&mut self) -> Result<(), Violation> {
        let (nodes, knobs) = (self.plan.layout.nodes(), self.plan.knobs.clone());
        let founding = Agent::begin(&mut self.cluster, "founder", move |client| async move {
            while client.status().await.map_or(0, |s| s.nodes.len()) < nodes {
                tokio::time::sleep(STEP).await;
            }
            for (number, policy) in knobs.policies.iter().enumerate() {
                let policy: Policy = policy.parse().map_err(|e| format!("plan: {e}"))?;
                let name = repository_name(number);
                let config = farshore_client::format::RepoConfig {
                    pack_bytes: knobs.pack_bytes[number],
                    ..farshore_client::format::RepoConfig::default()
                };
                let pass = crate::agent::PASSPHRASE;
                let made =
                    client.create_repository_as(&name, policy, pass, KdfParams::CHEAPEST, config).await;
                made.map_err(|e| format!("live: no repository: {e}"))?;
            }
            Ok(Vec::new())
        })?;
        let founder = tokio::time::timeout(FORMED, founding).await;
        let founder = founder.map_err(|_| "live: the cluster does not form".to_string())??;
        self.operators.begin(founder);
        Ok(())
    }

    /// A new process takes a seat; it is ready once it has opened all repositories, however long that takes.
    pub(crate) fn enter(&mut self, seat: usize) -> Result<(), Violation> {
        let count = self.plan.knobs.policies.len();
        let entering = Agent::begin(&mut self.cluster, &format!("client{seat}"), move |client| async move {
            let mut opened = Vec::new();
            while opened.len() < count {
                match client.open_repository(&repository_name(opened.len()), crate::agent::PASSPHRASE).await {
                    Ok(repository) => opened.push(repository),
                    Err(_) => tokio::time::sleep(STEP * 4).await,
                }
            }
            Ok::<Vec<Repository>, Violation>(opened)
        })?;
        let incarnation = self.seats[seat].incarnation;
        self.seats[seat].busy = Some(self.busy(None));
        self.going.push(Box::pin(async move {
            let entered = entering.await.map(|agent| Did::Entered(Box::new(agent)));
            (seat, incarnation, entered.map_err(Failure::Refused))
        }));
        Ok(())
    }

    fn busy(&self, work: Option<Work>) -> Busy {
        let promised = self.promises.iter().map(|promise| promise.id.clone()).collect();
        Busy { work, since_us: self.world.now_us(), promised, about: Vec::new() }
    }

    /// What the plan says, at its times.
    async fn trouble(&mut self, mut steps: VecDeque<crate::plan::Step>) -> Result<(), Violation> {
        let mut tick = Instant::now();
        while let Some(step) = steps.front() {
            let at = self.world.instant(self.began_us + step.at_ms * 1_000);
            let now = Instant::now();
            if at <= now {
                let Some(step) = steps.pop_front() else { break };
                match step.what {
                    What::Work { client, work } => self.ask(client, work),
                    What::Fault(fault) => self.strike(fault)?,
                }
                continue;
            }
            self.live_until(at.min(tick)).await?;
            if Instant::now() >= tick {
                self.look().await?;
                tick = Instant::now() + STEP;
            }
        }
        Ok(())
    }

    /// Lets the world go on for so long, with everything that goes with it.
    pub(crate) async fn pass(&mut self, time: Duration) -> Result<(), Violation> {
        let until = Instant::now() + time;
        while Instant::now() < until {
            self.live_until(until.min(Instant::now() + STEP)).await?;
            self.look().await?;
        }
        Ok(())
    }

    /// Takes in what clients finish until then.
    async fn live_until(&mut self, until: Instant) -> Result<(), Violation> {
        loop {
            self.begin_waiting();
            tokio::select! {
                biased;
                Some(ended) = self.going.next(), if !self.going.is_empty() => self.settle(ended)?,
                Some(ended) = self.operators.next(), if !self.operators.idle() => self.take_order(ended)?,
                () = sleep_until(until) => return Ok(()),
            }
        }
    }

    /// Waits until a seat has nothing more to do.
    pub(crate) fn idle(&self) -> bool {
        self.operators.idle() && self.seats.iter().all(|seat| seat.busy.is_none() && seat.queue.is_empty())
    }
    /// What has not begun never will.
    pub(crate) fn drop_queues(&mut self) {
        self.seats.iter_mut().for_each(|seat| seat.queue.clear());
    }

    fn ask(&mut self, client: usize, work: Work) {
        let count = self.seats.len();
        self.seats[client % count].ask(work);
    }

    /// A client that died takes nothing with it but what it was doing.
    pub(crate) fn vacate(&mut self, seat: usize, power: bool) {
        let place = &mut self.seats[seat];
        if let Some(agent) = place.agent.take() {
            agent.die(&self.cluster.hub, power);
        }
        place.incarnation += 1;
        if let Some(Busy { work: Some(work), .. }) = place.busy.take() {
            self.tallies.work.entry(work.word().into()).or_default().died += 1;
            self.world.mark_end(100 + seat as u64, work.word());
        }
    }

    /// Begins the next piece of work of everybody who can.
    fn begin_waiting(&mut self) {
        for number in 0..self.seats.len() {
            let seat = &mut self.seats[number];
            if seat.away || seat.busy.is_some() {
                continue;
            }
            let (Some(agent), Some(work)) = (seat.agent.clone(), seat.queue.pop_front()) else { continue };
            self.seats[number].busy = Some(self.busy(Some(work)));
            event!(self.world, agent.label(), "begins {}", work.word());
            self.world.mark_begin(100 + number as u64, work.word());
            for fault in self.faults.kinds() {
                self.tallies.met(fault, work.word());
            }
            let (incarnation, doing) = (self.seats[number].incarnation, self.perform(number, &agent, work));
            self.going.push(Box::pin(async move { (number, incarnation, doing.await) }));
        }
    }

    fn perform(
        &mut self,
        seat: usize,
        agent: &Arc<Agent>,
        work: Work,
    ) -> BoxFuture<'static, Result<Did, Failure>> {
        let repositories = self.plan.knobs.policies.len();
        let own = seat % repositories;
        let client: Client = agent.client().clone();
        match work {
            Work::Incremental | Work::Differential | Work::Full | Work::Unchanged => {
                let grave = self.rng.below(4 * GRAVES_MAX as u64) as usize;
                if let Some(tree) = self.graves.get(grave).filter(|_| work != Work::Unchanged) {
                    self.seats[seat].tree = tree.clone();
                } else if work != Work::Unchanged {
                    tree::edit(&mut self.rng, &mut self.seats[seat].tree, now_secs(&self.world));
                }
                let kind = match work {
                    Work::Full => SnapshotKind::Full,
                    Work::Differential => SnapshotKind::Differential,
                    _ => SnapshotKind::Incremental,
                };
                let backup = agent.begin_backup(own, &self.seats[seat].tree, kind);
                Box::pin(
                    async move { backup.ended().await.map(|(promise, owed)| Did::Promised(promise, owed)) },
                )
            }
            Work::Restore | Work::RestoreNewest => {
                let count = self.promises.len() as u64;
                let at = if work == Work::Restore { self.rng.below(count) } else { count.saturating_sub(1) };
                match self.promises.get(at as usize) {
                    Some(promise) => {
                        let about: Option<SnapshotId> = promise.id.parse().ok();
                        self.seats[seat].busy.iter_mut().for_each(|busy| busy.about.extend(about));
                        let restore = agent.begin_restore(promise.clone());
                        Box::pin(async move { restore.await.map(|()| Did::Done) })
                    }
                    None => Box::pin(async { Ok(Did::Done) }),
                }
            }
            Work::Forget | Work::Undelete | Work::Prune | Work::Lock => self.discard(seat, agent, work),
            Work::List => {
                let list = agent.begin_list(own);
                Box::pin(async move { list.await.map(Did::Listed) })
            }
            Work::Check => {
                let check = agent.begin_check(own);
                Box::pin(async move { check.await.map(|()| Did::Done) })
            }
            Work::Scrub => done(agent.begin_call(async move { client.scrub().await.map(|_| ()) })),
            Work::Status => done(agent.begin_call(async move { client.status().await.map(|_| ()) })),
            Work::Create => {
                let name = format!("extra{}", self.rng.below(3));
                done(agent.begin_call(async move {
                    let made =
                        client.create_repository(&name, Policy::default(), "extra", KdfParams::CHEAPEST);
                    match made.await {
                        Ok(_) | Err(Error::RepositoryExists(_)) => Ok(()),
                        Err(other) => Err(other),
                    }
                }))
            }
            Work::SetPolicy => {
                let (repository, goal) =
                    (agent.repository(own), draw::policy(&mut self.rng, &self.plan.layout));
                done(agent.begin_call(async move {
                    let goal = goal.parse().map_err(|e| Error::Invalid(format!("{e}")))?;
                    match repository.set_policy(goal).await {
                        // Nodes have come and gone since the plan was drawn.
                        Ok(_) | Err(Error::Policy(_)) => Ok(()),
                        Err(other) => Err(other),
                    }
                }))
            }
            Work::Trespass if self.rng.one_in(2) => {
                let at = self.rng.below(self.cluster.machines.len() as u64) as usize;
                let host = agent.repository(own).host().clone();
                let doors = Doors::of(&self.cluster);
                let tried = agent.begin_call(async move {
                    Ok(match doors {
                        Ok(doors) => trespass(client, host, doors, at).await,
                        Err(failed) => Err(failed),
                    })
                });
                Box::pin(async move { tried.await?.map(Did::Trespassed).map_err(Failure::Broken) })
            }
            Work::Trespass => {
                let tried = agent.begin_call(half_a_commit(client, agent.repository(own)));
                Box::pin(async move {
                    match tried.await? {
                        false => Ok(Did::Done),
                        true => Err(Failure::Broken("whole: a refused commit left something behind".into())),
                    }
                })
            }
        }
    }

    /// Takes in how something ended, and whether it was allowed to end so.
    fn settle(&mut self, (number, incarnation, ended): Ended) -> Result<(), Violation> {
        if self.seats[number].incarnation != incarnation {
            // What a dead client was promised in its last moment was promised all the same.
            if let Ok(Did::Promised(promise, _)) = ended {
                self.promises.push(Arc::new(promise));
            }
            return Ok(());
        }
        let Some(Busy { work, since_us, promised, about }) = self.seats[number].busy.take() else {
            return Ok(());
        };
        let word = work.map_or("enter", Work::word);
        if work.is_some() {
            self.world.mark_end(100 + number as u64, word);
            let tally = self.tallies.work.entry(word.into()).or_default();
            match &ended {
                Ok(_) => tally.ok += 1,
                Err(Failure::Died) => tally.died += 1,
                Err(_) => tally.refused += 1,
            }
        }
        match ended {
            Ok(Did::Entered(agent)) => {
                self.world.name_lane(100 + number as u64, &format!("client {number}"));
                self.seats[number].agent = Some(Arc::new(*agent));
                Ok(())
            }
            Ok(Did::Promised(promise, owed)) => {
                let id = promise.id.clone();
                self.promises.push(Arc::new(promise));
                self.check(Moment::Acknowledged)?;
                match owed > 0 && self.under_target() > 0 && self.nothing_wrong(self.well_since, since_us) {
                    true => {
                        Err(format!("spread: nothing was wrong, and {id} left {owed} packs under target"))
                    }
                    false => Ok(()),
                }
            }
            Ok(Did::Listed(ids)) => {
                let own = number % self.plan.knobs.policies.len();
                let mut wanted =
                    self.promises.iter().filter(|p| p.repository == own && promised.contains(&p.id));
                match wanted.find(|p| !ids.contains(&p.id)) {
                    Some(p) => {
                        Err(format!("agree: a list does not show snapshot {}, acknowledged before", p.id))
                    }
                    None => Ok(()),
                }
            }
            Ok(Did::Forgotten(ids)) => {
                let settled = self.world.now_us() < since_us + ONE_ATTEMPT_US;
                for gone in self.forgotten.iter_mut().filter(|gone| gone.is_one_of(&ids)) {
                    gone.settled = settled;
                }
                Ok(())
            }
            Ok(Did::Undeleted(id)) => {
                let back = |gone: &mut Forgotten| gone.settled && gone.is_one_of(&[id]);
                self.promises.extend(self.forgotten.extract_if(.., back).map(|gone| gone.promise));
                Ok(())
            }
            Ok(Did::Locked(id, until_ms)) => {
                let known = self.locked.entry(id).or_default();
                *known = until_ms.max(*known);
                Ok(())
            }
            Ok(Did::Trespassed(refused)) => {
                *self.tallies.checks.entry("granted".into()).or_default() += refused;
                Ok(())
            }
            Ok(Did::Done) | Err(Failure::Died) => Ok(()),
            Err(Failure::Broken(violation)) => Err(violation),
            Err(Failure::Refused(why)) => {
                event!(self.world, 0, "client {number} could not {word}: {why}");
                let gone = self.forgotten.iter().any(|gone| gone.is_one_of(&about));
                let read = matches!(work, Some(Work::Restore | Work::RestoreNewest));
                let looked = work == Some(Work::Check) && self.discarded_us >= since_us;
                if why.contains(FROZEN) {
                    self.refresh()?;
                    return match self.may_be_frozen(since_us) {
                        true => Ok(()),
                        false => Err(format!("locked: no region moves, and {word} was told: {why}")),
                    };
                }
                if why.contains(OUTDATED) {
                    self.refresh()?;
                    return match self.moves.policies_changed_since(since_us) > 1 {
                        true => Ok(()),
                        false => Err(format!(
                            "live: the policy was the same all the time, and {word} was told: {why}"
                        )),
                    };
                }
                // What was being read was forgotten meanwhile, or went as garbage.
                if looked || gone && (read || work == Some(Work::Lock)) {
                    return Ok(());
                }
                let since = match work {
                    Some(Work::Restore | Work::RestoreNewest) => self.readable_since,
                    Some(Work::Check) => self.sound_since,
                    _ => self.well_since,
                };
                let agent = self.seats[number].agent.as_ref();
                let held = agent.is_some_and(|a| self.cluster.history.was_held(a.label(), since_us));
                match !held && self.nothing_wrong(since, since_us) {
                    true => Err(format!("live: nothing was wrong, and {word} failed: {why}")),
                    // Whoever could not even connect tries again.
                    false if work.is_none() => self.enter(number),
                    false => Ok(()),
                }
            }
        }
    }

    /// Whether nothing excuses a failure of what began then, given since when all it needs has been well.
    fn nothing_wrong(&self, well_since: Option<u64>, began_us: u64) -> bool {
        self.strict
            || self.plan.profile == Profile::Calm
            || well_since.is_some_and(|since| since + SETTLED_US <= began_us)
    }

    /// Ends the faults whose time has come, and looks at the invariants.
    async fn look(&mut self) -> Result<(), Violation> {
        self.relent()?;
        self.steps += 1;
        let moment = if self.steps.is_multiple_of(STEPS_A_SECOND) { Moment::Second } else { Moment::Step };
        self.check(moment)?;
        self.judge_weather();
        self.judge_liars()?;
        self.judge_ends()?;
        for seat in &self.seats {
            let Some(busy) = seat.busy.as_ref().filter(|_| !seat.away) else { continue };
            let since = busy.since_us.max(self.well_since.unwrap_or(u64::MAX - OPERATION.as_micros() as u64));
            if self.world.now_us() > since + OPERATION.as_micros() as u64 {
                return Err(format!("live: {} hangs", busy.work.map_or("opening a repository", Work::word)));
            }
        }
        Ok(())
    }

    /// A node ends by itself only if its disk has given it a reason.
    fn judge_ends(&mut self) -> Result<(), Violation> {
        for (label, why) in self.cluster.take_ends() {
            let at = self.cluster.machines.iter().position(|m| m.label == label);
            if at.is_some_and(|at| self.cluster.retired(at)) {
                continue;
            }
            if !at.is_some_and(|at| self.faults.touches(at) || self.truth.may_err(at)) {
                return Err(format!("live: p{label} has ended, and nothing was wrong with it: {why}"));
            }
        }
        Ok(())
    }

    /// Takes in the newest catalogue, then looks at every invariant.
    pub(crate) fn check(&mut self, moment: Moment) -> Result<(), Violation> {
        self.truth.look(&self.cluster)?;
        self.cluster.doubt_time();
        self.refresh()?;
        let Some(newest) = &self.newest else { return Ok(()) };
        let mut scene = Scene {
            moment,
            now_us: self.world.now_us(),
            cluster: &self.cluster,
            truth: &mut self.truth,
            view: &newest.view,
            packs: &newest.packs,
            promises: &self.promises,
        };
        invariant::check_all(&mut self.invariants, &mut scene, &mut self.tallies)
    }

    /// Reads the catalogue of the replica furthest ahead, if it is newer than what is known.
    pub(crate) fn refresh(&mut self) -> Result<(), Violation> {
        let Some(view) = self.cluster.furthest() else { return Ok(()) };
        if self.newest.as_ref().is_some_and(|newest| newest.view.applied() >= view.applied()) {
            return Ok(());
        }
        let (mut packs, mut from) = (Vec::new(), Some(PackNo(0)));
        while let Some(start) = from {
            let page = view.all_packs(start, PAGE_ROWS_MAX).map_err(|e| format!("agree: {e}"))?;
            packs.extend(page.rows);
            from = page.next;
        }
        self.switch_off_retired(&view)?;
        if self.moves.note(&view, &packs, self.world.now_us(), &mut self.tallies.upkeep)? {
            self.operators.note_cold();
        }
        self.newest = Some(Newest { view, packs });
        Ok(())
    }

    /// Operators take away machines whose nodes the cluster has retired.
    fn switch_off_retired(&mut self, view: &View) -> Result<(), Violation> {
        let nodes = view.nodes().map_err(|e| format!("agree: {e}"))?;
        for node in nodes.iter().filter(|node| node.state == farshore_core::topology::NodeState::Retired) {
            if let Some(at) = self.cluster.machine_of(node.id) {
                self.cluster.decommission(at);
            }
        }
        Ok(())
    }

    /// Notes since when all is well, and since when everything can be read.
    fn judge_weather(&mut self) {
        let now = self.world.now_us();
        let roomy = |at: usize| self.has_room(at);
        let up = |at: usize| self.cluster.node(at).is_some() && !self.faults.touches(at) && roomy(at);
        let well: BTreeSet<usize> = (0..self.cluster.machines.len()).filter(|at| up(*at)).collect();
        let calm = !self.faults.everywhere();
        let all = calm && well.len() == self.cluster.in_service().count();
        self.well_since = if all { self.well_since.or(Some(now)) } else { None };
        let packs = self.newest.as_ref().map_or(&[][..], |newest| &newest.packs);
        let sound = all && !self.truth.is_any_damaged(&self.cluster, packs);
        self.sound_since = if sound { self.sound_since.or(Some(now)) } else { None };
        let readable = calm && self.quorum(&well) && self.readable(&well);
        self.readable_since = if readable { self.readable_since.or(Some(now)) } else { None };
    }

    /// Whether a node can take more of what comes, where nodes offer little.
    fn has_room(&self, at: usize) -> bool {
        let Some(capacity_kib) = self.plan.knobs.capacity_kib else { return true };
        let node = self.cluster.node(at);
        node.is_none_or(|node| node.shared().store.stats().used < capacity_kib * 1_024 / 4 * 3)
    }

    fn readable(&mut self, well: &BTreeSet<usize>) -> bool {
        let Some(newest) = &self.newest else { return false };
        let cluster = &self.cluster;
        let truth = &mut self.truth;
        newest
            .packs
            .iter()
            .all(|pack| truth.good(cluster, pack, |at| well.contains(&at)) >= pack.stripe.scheme.k())
    }

    fn quorum(&self, well: &BTreeSet<usize>) -> bool {
        let nodes = well.iter().filter_map(|at| self.cluster.node(*at));
        let newest = nodes.map(|node| node.consensus().standing()).max_by_key(|standing| standing.applied);
        let Some(standing) = newest else { return false };
        let voters = standing.voters.iter().filter_map(|id| self.cluster.machine_of(*id));
        voters.filter(|at| well.contains(at)).count() * 2 > standing.voters.len()
    }

    /// Whether any client is backing up.
    pub(crate) fn backing_up(&self) -> bool {
        self.seats.iter().any(|s| s.busy.as_ref().and_then(|b| b.work).is_some_and(Work::backs_up))
    }
    /// Operations under way, for coverage.
    pub(crate) fn under_way(&self) -> Vec<&'static str> {
        let clients = self.seats.iter().filter_map(|s| s.busy.as_ref()?.work).map(Work::word);
        clients.chain(self.nodes_do()).collect()
    }

    /// What nodes are doing by themselves.
    fn nodes_do(&self) -> BTreeSet<&'static str> {
        let mut doing = BTreeSet::new();
        for at in 0..self.cluster.machines.len() {
            let Some(node) = self.cluster.node(at) else { continue };
            if node.shared().repairs.get().running > 0 {
                doing.insert("repair");
            }
        }
        self.planners_do(&mut doing);
        let Some(Newest { view, .. }) = &self.newest else { return doing };
        if view.counts().condemned > 0 {
            doing.insert("sweep");
        }
        let draining =
            |n: &farshore_core::topology::NodeRecord| n.state == farshore_core::topology::NodeState::Draining;
        if view.nodes().is_ok_and(|nodes| nodes.iter().any(draining)) {
            doing.insert("drain");
        }
        doing
    }
}

impl Forgotten {
    fn is_one_of(&self, ids: &[SnapshotId]) -> bool {
        self.promise.id.parse().is_ok_and(|id| ids.contains(&id))
    }
}

fn done(call: BoxFuture<'static, Result<(), Failure>>) -> BoxFuture<'static, Result<Did, Failure>> {
    Box::pin(async move { call.await.map(|()| Did::Done) })
}
