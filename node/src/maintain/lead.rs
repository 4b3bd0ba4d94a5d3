//! The leader's side of repair: reads the catalogue page by page, has the pure planner turn pages into tasks, and keeps
//! a few of them running. All it remembers may be forgotten: the next leader plans again from what is recorded.

use super::Shared;
use super::budget::{Budgets, Held, Load as Moving};
use super::execute::{self, Moved};
use super::speed::Speed;
use crate::plan::rebalance::{Fills, plan_rebalance};
use crate::plan::{Priority, Rebuild, RepairScan, Task, packs_of, plan_repair};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::Command;
use farshore_core::id::{NodeId, PackNo, StripeId};
use farshore_core::limits::{
    REBUILD_PAUSE_MAX_MS, REBUILD_PAUSE_MIN_MS, REBUILDS_IN_FLIGHT_MAX, REBUILDS_QUEUED_MAX,
    REPAIR_REPLAN_MS, REPAIRS_SHOWN_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{NodeRecord, NodeState, Region};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, StreamExt};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// What repair has been doing since this node began to lead.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairState {
    /// Tasks planned and not begun.
    pub queued: u64,
    /// Tasks under way.
    pub running: u64,
    /// Shards rebuilt.
    pub rebuilt: u64,
    /// Of those, shards that their node still had.
    pub kept: u64,
    /// Tasks that failed; each is planned again.
    pub failed: u64,
    /// The last failure, kept after it has been overcome.
    pub last_error: String,
    /// Bytes moved from one region to another.
    pub links: BTreeMap<(Region, Region), u64>,
    /// What would have been moved between regions if each shard were sent as it is.
    pub singly: u64,
    /// Nodes that sent sums which are not those of their shards.
    pub liars: BTreeSet<NodeId>,
    /// When that was.
    pub failed_at: Option<Instant>,
    /// Bytes of the shards queued and under way.
    pub bytes: u64,
    /// More would be queued if there were room.
    pub queue_full: bool,
    /// The first of what is under way, then of what is queued, most urgent first.
    pub urgent: Vec<Urgent>,
    /// How fast it has been.
    pub speed: Speed,
    /// Why what is queued waits; empty if it does not.
    pub held: String,
    /// Millionths of the currency unit that the shards moved in this day have cost.
    pub spent_micros: u64,
}

impl RepairState {
    fn note(&mut self, moved: Moved) {
        self.singly += moved.singly;
        self.kept += u64::from(moved.kept);
        self.liars.extend(moved.liars);
        for (from, bytes) in moved.crossed {
            *self.links.entry((from, moved.to.clone())).or_default() += bytes;
        }
    }
}

/// A task, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Urgent {
    /// Which stripe.
    pub stripe: StripeId,
    /// Of which pack.
    pub pack: PackNo,
    /// Which of its shards.
    pub index: u8,
    /// Who shall hold it.
    pub to: NodeId,
    /// How urgent it is.
    pub priority: Priority,
    /// Under way.
    pub running: bool,
}

impl Urgent {
    fn of(task: &Rebuild, running: bool) -> Self {
        let Rebuild { stripe, pack, index, to, priority, .. } = *task;
        Urgent { stripe, pack, index, to, priority, running }
    }
}

/// The state, for the status.
#[derive(Default)]
pub struct Repairs(Mutex<RepairState>);

impl Repairs {
    /// As of now.
    pub fn get(&self) -> RepairState {
        self.state().clone()
    }
    fn state(&self) -> MutexGuard<'_, RepairState> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

/// Packs read at a time.
const PACKS_PER_LOOK: usize = 256;
/// Looking takes at most about a tenth of the leader's time.
const LOOK_PAUSE_FACTOR: u32 = 10;

type Outcome = (Rebuild, Result<Moved, WorkFailed>);

/// Queued tasks that are asked whether their budgets allow them, each time that there is room for one.
const ASKED_MAX: usize = 64;
/// Shards that move to an emptier node before it is asked again how full they are.
const LEVELLED_AT_ONCE_MAX: usize = 64;
/// Pause while a rate is exceeded.
const RATE_PAUSE: Duration = Duration::from_millis(100);

/// The worker.
pub struct Repair {
    shared: Arc<Shared>,
    /// Term in which this node began to lead, while it does.
    leading: Option<u64>,
    /// Not before: a look over many packs that need repair and cannot have it is not repeated at once.
    next_look: Instant,
    /// Then a look is taken although tasks are queued: what has become more urgent since must not wait behind them.
    replan_at: Instant,
    queue: VecDeque<Rebuild>,
    running: FuturesUnordered<BoxFuture<'static, Outcome>>,
    /// Running tasks by their pack: a second task of a pack would find another generation.
    busy: BTreeMap<PackNo, (Rebuild, Moving)>,
    budgets: Budgets,
    /// Why the first task that could not begin had to wait.
    held: Option<Held>,
    /// The last look has found more than the queue takes.
    queue_full: bool,
    /// Tasks that failed lately: not before, and how long the next pause is. Bounded by the queue.
    resting: BTreeMap<(PackNo, u8, NodeId), (Instant, u64)>,
}

impl Repair {
    /// A worker that knows of no term yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        Repair {
            shared,
            leading: None,
            next_look: Instant::now(),
            replan_at: Instant::now(),
            queue: VecDeque::new(),
            running: FuturesUnordered::new(),
            busy: BTreeMap::new(),
            budgets: Budgets::new(Instant::now()),
            held: None,
            queue_full: false,
            resting: BTreeMap::new(),
        }
    }

    /// Everything remembered belongs to one term of office.
    fn note_term(&mut self) -> bool {
        let term = self.shared.leading();
        if term != self.leading {
            *self = Repair { leading: term, ..Repair::new(self.shared.clone()) };
            *self.shared.repairs.state() = RepairState::default();
        }
        term.is_some()
    }

    /// Begins what there is room for and budgets allow, most urgent first.
    fn fill(&mut self) -> Result<(), WorkFailed> {
        self.budgets.limit(self.shared.view()?.upkeep()?);
        self.held = None;
        while self.running.len() < REBUILDS_IN_FLIGHT_MAX {
            let Some((at, load)) = self.next()? else { return Ok(()) };
            let task = self.queue.remove(at).expect("the place is one of the queue");
            self.budgets.charge(&load);
            self.busy.insert(task.pack, (task.clone(), load));
            let shared = self.shared.clone();
            self.running.push(Box::pin(async move {
                let outcome = execute::rebuild(&shared, &task).await;
                (task, outcome)
            }));
        }
        Ok(())
    }

    /// Place of the first queued task that may begin, and what it is expected to move.
    fn next(&mut self) -> Result<Option<(usize, Moving)>, WorkFailed> {
        let free = |(_, task): &(usize, &Rebuild)| !self.busy.contains_key(&task.pack);
        let asked: Vec<_> = self.queue.iter().enumerate().filter(free).take(ASKED_MAX).collect();
        for (at, task) in asked {
            let load = execute::expected(&self.shared, task)?;
            match self.budgets.may_begin(&load, Instant::now()) {
                Ok(()) => return Ok(Some((at, load))),
                Err(held) => self.held = self.held.take().or(Some(held)),
            }
        }
        Ok(None)
    }

    fn settle(&mut self, (task, outcome): Outcome) {
        let begun = match outcome.is_ok() || !mutant(Mutant::RepairGivesUp) {
            true => self.busy.remove(&task.pack),
            false => None,
        };
        if let Some((_, expected)) = begun {
            let moved = outcome.as_ref().map(|moved| moved.load(&task));
            let nothing = |_: &WorkFailed| Moving { to: task.to, bytes: 0, links: BTreeMap::new() };
            self.budgets.correct(&expected, &moved.unwrap_or_else(nothing));
        }
        let key = (task.pack, task.index, task.to);
        let mut state = self.shared.repairs.state();
        match outcome {
            Ok(moved) => {
                tracing::info!(pack = task.pack.0, index = task.index, to = %task.to, "shard rebuilt");
                state.rebuilt += 1;
                if !moved.kept {
                    state.speed.note(task.bytes, Instant::now());
                }
                state.note(moved);
                self.resting.remove(&key);
            }
            Err(error) => {
                tracing::warn!(pack = task.pack.0, index = task.index, to = %task.to, %error, "rebuild shard");
                state.failed += 1;
                state.last_error = error.to_string();
                state.failed_at = Some(Instant::now());
                let pause_ms = self.resting.get(&key).map_or(REBUILD_PAUSE_MIN_MS, |(_, pause)| *pause);
                let until = Instant::now() + Duration::from_millis(pause_ms);
                self.resting.insert(key, (until, (pause_ms * 2).min(REBUILD_PAUSE_MAX_MS)));
            }
        }
    }

    /// One round over all packs that may need repair; keeps the most urgent tasks.
    async fn look(&mut self) -> Result<(), WorkFailed> {
        let began = Instant::now();
        if began < self.next_look {
            return Ok(());
        }
        self.resting.retain(|_, (until, pause_ms)| *until + Duration::from_millis(*pause_ms) > began);
        let (mut tasks, mut scan, mut queue_full) = (Vec::new(), RepairScan::new(), false);
        // Each page from the newest view: what the tasks before have done shows in it.
        while let Some(page) = scan.step(&self.shared.view()?, PACKS_PER_LOOK)? {
            let plan = plan_repair(&page, REBUILDS_QUEUED_MAX);
            if !plan.recheck.is_empty() {
                self.shared.propose_leading(Command::Recheck { packs: plan.recheck }).await?;
            }
            tasks.extend(
                plan.tasks.into_iter().map(|Task::Rebuild(task)| task).filter(|t| self.may_begin(t, began)),
            );
            tasks.sort_by_key(Rebuild::order);
            // A pack's tasks are alternatives: the first one recorded raises its generation, and any other would move
            // a shard for nothing.
            let mut packs = BTreeSet::new();
            tasks.retain(|task| packs.insert(task.pack));
            queue_full |= tasks.len() > REBUILDS_QUEUED_MAX;
            tasks.truncate(REBUILDS_QUEUED_MAX);
            tokio::task::yield_now().await;
        }
        if tasks.is_empty() && self.running.is_empty() {
            tasks = self.level_out(began).await?;
        }
        (self.queue, self.queue_full) = (tasks.into(), queue_full);
        self.replan_at = Instant::now() + Duration::from_millis(REPAIR_REPLAN_MS);
        self.next_look = Instant::now() + began.elapsed() * LOOK_PAUSE_FACTOR;
        Ok(())
    }

    /// While nothing is to be repaired: moves from a full node to an empty one of its region.
    async fn level_out(&mut self, began: Instant) -> Result<Vec<Rebuild>, WorkFailed> {
        let view = self.shared.view()?;
        let nodes = view.nodes()?;
        // Copies that were given up still fill their nodes until they are swept.
        if view.counts().condemned > 0 || nodes.iter().any(|node| node.state == NodeState::Draining) {
            return Ok(Vec::new());
        }
        // Who has not said anything to this leader yet is not empty.
        let used =
            |node: &NodeRecord| Some((node.id, self.shared.health.of(node.id, node.state, began).load?.used));
        let mut fills = Fills(nodes.iter().filter(|node| node.takes_shards()).filter_map(used).collect());
        let Some(slope) = fills.steepest(&nodes) else { return Ok(Vec::new()) };
        let (mut tasks, mut from) = (Vec::new(), Some(PackNo(0)));
        while let Some(start) = from.filter(|_| tasks.len() < LEVELLED_AT_ONCE_MAX) {
            let (page, next) = packs_of(&view, slope.from, start, PACKS_PER_LOOK)?;
            let room = LEVELLED_AT_ONCE_MAX - tasks.len();
            let steps = plan_rebalance(&page, &slope, &mut fills, room);
            tasks.extend(steps.into_iter().filter(|task| self.may_begin(task, began)));
            from = next;
            tokio::task::yield_now().await;
        }
        Ok(tasks)
    }

    fn may_begin(&self, task: &Rebuild, now: Instant) -> bool {
        let rests =
            self.resting.get(&(task.pack, task.index, task.to)).is_some_and(|(until, _)| *until > now);
        !rests && !self.busy.contains_key(&task.pack)
    }

    fn publish(&self) {
        let mut state = self.shared.repairs.state();
        state.queued = self.queue.len() as u64;
        state.running = self.running.len() as u64;
        state.bytes =
            self.busy.values().map(|(task, _)| task).chain(&self.queue).map(|task| task.bytes).sum();
        state.held = self.held.as_ref().map(ToString::to_string).unwrap_or_default();
        state.spent_micros = self.budgets.spent_micros();
        state.queue_full = self.queue_full;
        let running = self.busy.values().map(|(task, _)| Urgent::of(task, true));
        let queued = self.queue.iter().map(|task| Urgent::of(task, false));
        state.urgent = running.chain(queued).take(REPAIRS_SHOWN_MAX).collect();
        match self.running.is_empty() {
            true => state.speed.pause(Instant::now()),
            false => state.speed.begin(Instant::now()),
        }
    }
}

#[async_trait]
impl Worker for Repair {
    fn name(&self) -> &'static str {
        "repair"
    }

    /// One unit: plan if nothing is queued, begin what there is room for, wait for one task to end. Tasks go on only
    /// while a unit waits for them, and a stop in between drops them; a dropped task has recorded nothing.
    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if !self.note_term() {
            return Ok(Pace::Idle);
        }
        if self.queue.is_empty() || Instant::now() >= self.replan_at {
            self.look().await?;
        }
        self.fill()?;
        self.publish();
        // A rate allows more in a moment; until then what runs goes on.
        let soon = self.held.as_ref().is_some_and(Held::is_short);
        let next = self.running.next();
        let outcome = match soon {
            true => tokio::time::timeout(RATE_PAUSE, next).await,
            false => Ok(next.await),
        };
        let outcome = match outcome {
            Ok(Some(outcome)) => outcome,
            Ok(None) if soon => return Ok(Pace::Throttled(RATE_PAUSE)),
            Ok(None) => return Ok(Pace::Idle),
            Err(_) => return Ok(Pace::Busy),
        };
        self.settle(outcome);
        self.publish();
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.maintain_every).await;
    }
}
