//! The flows: how each is set going, when it has come to its end, and how power fails in between.

use super::stage::{Stage, file_name};
use super::{Flow, Point, Span};
use crate::agent::{Agent, Failure, Promise};
use crate::calls::Label;
use crate::cluster::Violation;
use crate::event;
use crate::world::World;
use farshore_core::catalogue::{Command, RepoChange, Subject, Verification};
use farshore_core::erasure::Scheme;
use farshore_core::id::{NodeId, ShardId};
use farshore_core::policy::{self, Policy};
use farshore_core::topology::NodeState;
use futures_util::future::{BoxFuture, FutureExt as _, OptionFuture};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Between two looks whether the flow has come to its end.
const LOOK: Duration = Duration::from_millis(50);
/// Pause before a flow that was interrupted is set going again, as a person or a scheduler would.
const AGAIN: Duration = Duration::from_secs(2);
/// The one machine of its region, and the region that takes what it holds.
const ALONE: usize = 2;
const NEW_REGION: usize = 3;
/// How long a machine stays without power.
const DARK: Duration = Duration::from_secs(1);
/// The flow comes to its end by then, whatever happens to one machine or client.
const ENDS: Duration = Duration::from_secs(300);

/// What a run has shown.
pub(super) struct Seen {
    pub(super) spans: Vec<Span>,
    pub(super) reached: bool,
    pub(super) orphans: u64,
}

/// What an attempt at the flow gave.
type Attempt = BoxFuture<'static, Result<Option<Promise>, Violation>>;

/// A flow under way.
struct Run {
    stage: Stage,
    flow: Flow,
    /// Whether power fails where a process ends.
    power: bool,
    /// The machine it is about.
    prey: usize,
    attempts: u64,
    acknowledged: bool,
    ended: Instant,
}

/// From the first start to the last check.
pub(super) async fn run(
    world: &World,
    flow: Flow,
    point: Option<Point>,
    seen: &mut Seen,
) -> Result<(), Violation> {
    let stage = Stage::set_up(world).await?;
    let mut run = Run::prepare(stage, flow, point.is_none_or(|point| point.power)).await?;
    let before = world.calls().counts();
    if let Some(Point { label, number, moment, .. }) = point {
        world.calls().crash_at(label, number, moment);
    }
    event!(world, 0, "{} begins", flow.word());
    let ended = run.carry_through(seen).await;
    event!(world, 0, "{} has ended", flow.word());
    if point.is_none() {
        seen.spans = spans(world, &before);
    }
    if let Some(point) = point {
        world.calls().call_off(point.label);
    }
    ended?;
    run.judge(seen).await
}

fn spans(world: &World, before: &BTreeMap<Label, u64>) -> Vec<Span> {
    let of = |label| {
        let since = before.get(&label).copied().unwrap_or(0);
        let calls = world.calls().recorded(label).into_iter().filter(|(number, _)| *number > since).collect();
        Span { label, calls }
    };
    world.calls().counts().into_keys().map(of).filter(|span| !span.calls.is_empty()).collect()
}

impl Run {
    /// Everything up to the moment at which the flow begins.
    async fn prepare(stage: Stage, flow: Flow, power: bool) -> Result<Self, Violation> {
        let prey = if flow == Flow::Migrate { ALONE } else { stage.prey()? };
        let id = stage.cluster.machines[prey].id;
        let shard = stage.packs()?.iter().find_map(|pack| {
            let held = (0u8..).zip(&pack.stripe.shards).find(|(_, shard)| shard.node == Some(id));
            held.map(|(index, _)| ShardId { stripe: pack.stripe.id, index })
        });
        let shard = shard.ok_or("the machine holds nothing")?;
        let ended = Instant::now() + ENDS;
        let mut run = Run { stage, flow, power, prey, attempts: 0, acknowledged: false, ended };
        run.stage.note_holders()?;
        match flow {
            Flow::EncodeAndCommit => run.stage.edit(),
            Flow::Repair => {
                let name = file_name(shard);
                let rotten = run.stage.cluster.machines[prey].disk.rot(|file| file == name);
                rotten.ok_or_else(|| format!("p{prey} has no file {name}"))?;
            }
            Flow::Drain | Flow::Recode => {}
            Flow::Migrate => run.stage.add(NEW_REGION).await?,
            Flow::Gc => run.lose_and_rebuild(id).await?,
        }
        Ok(run)
    }

    /// The machine stops for so long that its shards are rebuilt elsewhere.
    async fn lose_and_rebuild(&mut self, id: NodeId) -> Result<(), Violation> {
        self.stage.cluster.crash(self.prey, false);
        let deadline = Instant::now() + ENDS;
        while self.stage.packs()?.iter().any(|pack| pack.stripe.shards.iter().any(|s| s.node == Some(id))) {
            if Instant::now() > deadline {
                return Err("heals: the shards of a lost node are not rebuilt".into());
            }
            sleep(LOOK).await;
        }
        Ok(())
    }

    /// Sets the flow going, and again when it was interrupted, until it has come to its end.
    async fn carry_through(&mut self, seen: &mut Seen) -> Result<(), Violation> {
        self.ended = Instant::now() + ENDS;
        let world = self.stage.world.clone();
        let mut attempt: Option<Attempt> = None;
        let mut next = Instant::now();
        while !self.is_done()? {
            if Instant::now() > self.ended {
                return Err(format!("live: {} does not come to its end", self.flow.word()));
            }
            if attempt.is_none() && Instant::now() >= next {
                attempt = self.begin()?;
                next = Instant::now() + AGAIN;
            }
            tokio::select! {
                biased;
                label = world.calls().tripped() => {
                    seen.reached = true;
                    self.stop(label).await?;
                }
                Some(ended) = OptionFuture::from(attempt.as_mut()) => {
                    attempt = None;
                    next = Instant::now() + AGAIN;
                    if let Some(promise) = ended? {
                        self.acknowledged = true;
                        self.stage.promises.push(promise.into());
                        self.stage.check_durable()?;
                    }
                }
                () = sleep(LOOK) => {}
            }
        }
        Ok(())
    }

    /// One attempt at the flow, if it needs any.
    fn begin(&mut self) -> Result<Option<Attempt>, Violation> {
        self.attempts += 1;
        match self.flow {
            Flow::EncodeAndCommit => {
                let backup = self.stage.agent.begin_back_up(&self.stage.tree).ended();
                Ok(Some(backup.map(|ended| refusal_is_no_harm(ended.map(|(p, _)| Some(p)))).boxed()))
            }
            Flow::Repair => {
                let client = self.stage.agent.client().clone();
                let scrub = self.stage.agent.begin_call(async move { client.scrub().await });
                Ok(Some(scrub.map(|ended| refusal_is_no_harm(ended.map(|_| None))).boxed()))
            }
            Flow::Drain => self.order_drain(),
            Flow::Recode => self.order_recode(),
            Flow::Migrate => self.order_migrate(),
            Flow::Gc => {
                if !self.stage.cluster.running(self.prey) {
                    self.stage.cluster.start(self.prey);
                }
                Ok(None)
            }
        }
    }

    fn order_drain(&mut self) -> Result<Option<Attempt>, Violation> {
        let prey = self.stage.cluster.machines[self.prey].id;
        let state = self.stage.view()?.node(prey).map_err(|e| e.to_string())?.map(|node| node.state);
        let Some(from) = state.filter(|state| *state != NodeState::Draining) else { return Ok(None) };
        let command = Command::SetNodeState { node: prey, from, to: NodeState::Draining };
        Ok(self.order(command))
    }

    /// All that the prey's region holds shall go to the new one. Cold: there is no client beside it.
    fn order_migrate(&mut self) -> Result<Option<Attempt>, Violation> {
        let (view, prey) = (self.stage.view()?, self.stage.cluster.machines[self.prey].id);
        let node = view.node(prey).map_err(|e| e.to_string())?.ok_or("the machine is not known")?;
        if matches!(node.state, NodeState::Draining | NodeState::Retired) {
            return Ok(None);
        }
        let (from, to) =
            (node.region, self.stage.cluster.machines.last().ok_or("no machine")?.region.clone());
        let (request, epoch) = ([self.attempts as u8; 16], view.intent().map_err(|e| e.to_string())?.epoch);
        Ok(self.order(Command::Migrate { request, epoch, from, to, cold: true }))
    }

    /// The region is empty, its node has gone, and the record of what was read again is closed and says that all is there.
    fn has_migrated(&mut self) -> Result<bool, Violation> {
        let (view, prey) = (self.stage.view()?, self.stage.cluster.machines[self.prey].id);
        let known = view.node(prey).map_err(|e| e.to_string())?;
        if known.is_none_or(|node| node.state != NodeState::Retired) {
            return Ok(false);
        }
        self.stage.cluster.decommission(self.prey);
        let rows = view.verifications().map_err(|e| e.to_string())?;
        let of_prey = |row: &&Verification| row.subject == Subject::Node(prey);
        let row = rows.iter().map(|(_, row)| row).find(of_prey).ok_or("heals: retired without a record")?;
        if row.ended_ms.is_some() && (row.short > 0 || row.stripes == 0) {
            return Err(format!("heals: what was moved is recorded as {row:?}"));
        }
        let open = !view.migrations().map_err(|e| e.to_string())?.is_empty();
        Ok(!open && row.ended_ms.is_some() && self.at_rest()?)
    }

    /// The packs shall be coded for a policy that the first backup knew nothing of.
    fn order_recode(&mut self) -> Result<Option<Attempt>, Violation> {
        let view = self.stage.view()?;
        let repos = view.repos(None, 1).map_err(|e| e.to_string())?.rows;
        let (repo, policy) = (repos.first().ok_or("there is no repository")?, goal());
        if repo.policy == policy {
            return Ok(None);
        }
        let scheme = self.wanted()?;
        let change = RepoChange::SetPolicy { policy, scheme };
        Ok(self.order(Command::ChangeRepository { repo: repo.id, change }))
    }

    /// What the new policy makes of the machines.
    fn wanted(&self) -> Result<Scheme, Violation> {
        let nodes = self.stage.view()?.nodes().map_err(|e| e.to_string())?;
        policy::compile(&goal(), &nodes).map_err(|e| e.to_string())
    }

    /// An operator asks another node each time, as one that asks again would.
    fn order(&self, command: Command) -> Option<Attempt> {
        let cluster = &self.stage.cluster;
        let count = cluster.machines.len();
        let running = (0..count).map(|n| (n + self.attempts as usize) % count);
        let found = running.filter_map(|at| Some((cluster.node(at)?, cluster.scope(at)?))).next();
        let (node, scope) = found?;
        let order = scope.spawn(self.attempts, async move { node.shared().propose(command).await.is_ok() });
        Some(order.map(|_| Ok(None)).boxed())
    }

    /// Whether the flow has come to its end.
    fn is_done(&mut self) -> Result<bool, Violation> {
        self.stage.note_holders()?;
        match self.flow {
            Flow::EncodeAndCommit => Ok(self.acknowledged),
            Flow::Repair => Ok(self.stage.all_whole()?.is_ok() && self.at_rest()?),
            // The old packs are gone as well.
            Flow::Recode => {
                let wanted = self.wanted()?;
                Ok(self.stage.packs()?.iter().all(|pack| pack.stripe.scheme == wanted) && self.at_rest()?)
            }
            Flow::Migrate => self.has_migrated(),
            // Nothing of it is left on its disk, and everybody knows.
            Flow::Drain | Flow::Gc => {
                let running = self.stage.cluster.running(self.prey);
                Ok(running && self.stage.unrecorded()?.0.is_empty() && self.at_rest()?)
            }
        }
    }

    fn at_rest(&self) -> Result<bool, Violation> {
        Ok(self.stage.unrest(self.drained())?.is_ok())
    }

    fn drained(&self) -> Option<NodeId> {
        let emptied = matches!(self.flow, Flow::Drain | Flow::Migrate);
        emptied.then(|| self.stage.cluster.machines[self.prey].id)
    }

    /// The process ends at the chosen call; a little later it is started again.
    async fn stop(&mut self, label: Label) -> Result<(), Violation> {
        let at = self.stage.cluster.machines.iter().position(|machine| machine.label == label);
        match at {
            Some(at) => self.stage.cluster.crash(at, self.power),
            None => self.stage.agent.die(&self.stage.cluster.hub, self.power),
        }
        // A rotten shard is one less, and who sweeps may be ahead of all others.
        if self.flow == Flow::EncodeAndCommit {
            self.stage.check_durable()?;
        }
        sleep(DARK).await;
        match at {
            Some(at) if self.stage.cluster.retired(at) => {}
            Some(at) => self.stage.cluster.start(at),
            None => self.stage.agent = Agent::succeed(&mut self.stage.cluster).await?,
        }
        Ok(())
    }

    /// Everything promised is there, on the disks and by a restore, and the next backup is as good as any.
    async fn judge(&mut self, seen: &mut Seen) -> Result<(), Violation> {
        let drained = self.drained();
        let stage = &mut self.stage;
        stage.at_rest(drained).await?;
        stage.all_whole()?.map_err(|bad| format!("heals: {bad}"))?;
        stage.verify_all().await?;
        stage.edit();
        stage.must_back_up().await?;
        stage.check_durable()?;
        stage.verify_all().await?;
        let (forgotten, orphans) = stage.unrecorded()?;
        seen.orphans = orphans;
        event!(stage.world, 0, "{} copies forgotten, {orphans} never recorded", forgotten.len());
        match forgotten.first() {
            // A rebuild that was cut short may have put a copy where one was before (docs/invariants.md, Orphans).
            Some(file) if matches!(self.flow, Flow::Drain | Flow::Gc | Flow::Migrate) => {
                Err(format!("heals: {file} was given up and is still there"))
            }
            _ => Ok(()),
        }
    }
}

/// Another code on the same machines.
fn goal() -> Policy {
    "1 node".parse().expect("a goal")
}

/// What a client was not told is not promised. Only a broken promise ends the run.
fn refusal_is_no_harm(ended: Result<Option<Promise>, Failure>) -> Result<Option<Promise>, Violation> {
    match ended {
        Ok(promise) => Ok(promise),
        Err(Failure::Refused(_) | Failure::Died) => Ok(None),
        Err(Failure::Broken(violation)) => Err(violation),
    }
}
