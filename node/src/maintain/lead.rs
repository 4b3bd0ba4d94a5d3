//! The leader's side of repair: reads the catalogue page by page, has the pure planner turn pages into tasks, and keeps
//! a few of them running. All it remembers may be forgotten: the next leader plans again from what is recorded.

use super::Shared;
use super::execute::{self, Moved};
use super::speed::Speed;
use crate::plan::{Priority, Rebuild, RepairScan, Task, plan_repair};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::Command;
use farshore_core::id::{NodeId, PackNo, StripeId};
use farshore_core::limits::{
    REBUILD_PAUSE_MAX_MS, REBUILD_PAUSE_MIN_MS, REBUILDS_IN_FLIGHT_MAX, REBUILDS_QUEUED_MAX,
    REPAIR_REPLAN_MS, REPAIRS_SHOWN_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::Region;
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
}

impl RepairState {
    fn note(&mut self, moved: Moved) {
        self.singly += moved.singly;
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

fn urgency(task: &Rebuild) -> (Priority, PackNo, u8) {
    (task.priority, task.pack, task.index)
}

type Outcome = (Rebuild, Result<Moved, WorkFailed>);

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
    busy: BTreeMap<PackNo, Rebuild>,
    /// The last look has found more than the queue takes.
    queue_full: bool,
    /// Tasks that failed lately: not before, and how long the next pause is. Bounded by the queue.
    resting: BTreeMap<(PackNo, u8), (Instant, u64)>,
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

    /// Begins what there is room for.
    fn fill(&mut self) {
        while self.running.len() < REBUILDS_IN_FLIGHT_MAX {
            let Some(at) = self.queue.iter().position(|task| !self.busy.contains_key(&task.pack)) else {
                return;
            };
            let task = self.queue.remove(at).expect("the position was found a line ago");
            self.busy.insert(task.pack, task.clone());
            let shared = self.shared.clone();
            self.running.push(Box::pin(async move {
                let outcome = execute::rebuild(&shared, &task).await;
                (task, outcome)
            }));
        }
    }

    fn settle(&mut self, (task, outcome): Outcome) {
        if outcome.is_ok() || !mutant(Mutant::RepairGivesUp) {
            self.busy.remove(&task.pack);
        }
        let key = (task.pack, task.index);
        let mut state = self.shared.repairs.state();
        match outcome {
            Ok(moved) => {
                tracing::info!(pack = task.pack.0, index = task.index, to = %task.to, "shard rebuilt");
                state.rebuilt += 1;
                state.note(moved);
                state.speed.note(task.bytes, Instant::now());
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
            tasks.sort_by_key(urgency);
            // A pack's tasks are alternatives: the first one recorded raises its generation, and any other would move
            // a shard for nothing.
            let mut packs = BTreeSet::new();
            tasks.retain(|task| packs.insert(task.pack));
            queue_full |= tasks.len() > REBUILDS_QUEUED_MAX;
            tasks.truncate(REBUILDS_QUEUED_MAX);
            tokio::task::yield_now().await;
        }
        (self.queue, self.queue_full) = (tasks.into(), queue_full);
        self.replan_at = Instant::now() + Duration::from_millis(REPAIR_REPLAN_MS);
        self.next_look = Instant::now() + began.elapsed() * LOOK_PAUSE_FACTOR;
        Ok(())
    }

    fn may_begin(&self, task: &Rebuild, now: Instant) -> bool {
        let rests = self.resting.get(&(task.pack, task.index)).is_some_and(|(until, _)| *until > now);
        !rests && !self.busy.contains_key(&task.pack)
    }

    fn publish(&self) {
        let mut state = self.shared.repairs.state();
        state.queued = self.queue.len() as u64;
        state.running = self.running.len() as u64;
        state.bytes = self.busy.values().chain(&self.queue).map(|task| task.bytes).sum();
        state.queue_full = self.queue_full;
        let running = self.busy.values().map(|task| Urgent::of(task, true));
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
        self.fill();
        self.publish();
        let Some(outcome) = self.running.next().await else { return Ok(Pace::Idle) };
        self.settle(outcome);
        self.publish();
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.maintain_every).await;
    }
}
