//! What operators order while a world lasts, as they would: through the client library, from a machine of their own, and
//! once more if nobody answered. Whether an order is refused is for the cluster to say: nothing is forced.

use super::Run;
use super::faults::{Begun, Undo};
use crate::agent::{Agent, Failure};
use crate::cluster::Violation;
use crate::coverage::Tallies;
use crate::event;
use crate::plan::{Fault, NODES_MAX};
use farshore_client::{Client, Error};
use farshore_core::catalogue::{LinkBudget, Upkeep};
use farshore_core::topology::{Change, NodeState, Region};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::sleep;

/// An order is given so often before its operator gives up...
const ATTEMPTS: u32 = 10;
/// ...with this pause in between.
const AGAIN: Duration = Duration::from_secs(3);

/// What became of an order, for coverage.
pub(super) type Outcome = Vec<&'static str>;
/// An order that has ended.
pub(super) type Obeyed = Result<Outcome, Failure>;

/// The operators' machine and what they wait for.
#[derive(Default)]
pub(crate) struct Operators {
    agent: Option<Arc<Agent>>,
    going: FuturesUnordered<BoxFuture<'static, Obeyed>>,
    /// Nothing new is begun any more.
    rest: Arc<AtomicBool>,
    /// A cold migration was asked for, and has not shown yet.
    cold: Arc<AtomicBool>,
}

impl Operators {
    /// They have a machine.
    pub(super) fn begin(&mut self, agent: Agent) {
        self.agent = Some(Arc::new(agent));
    }
    /// From now on what has not begun is left.
    pub(super) fn rest(&self) {
        self.rest.store(true, Ordering::Relaxed);
    }
    /// Whether writes may be refused by a migration that no replica shows yet.
    pub(super) fn has_asked_cold(&self) -> bool {
        self.cold.load(Ordering::Relaxed)
    }
    /// One shows.
    pub(super) fn note_cold(&self) {
        self.cold.store(false, Ordering::Relaxed);
    }
    /// Nothing is waited for.
    pub(super) fn idle(&self) -> bool {
        self.going.is_empty()
    }
    /// The next order that ends.
    pub(super) async fn next(&mut self) -> Option<Obeyed> {
        self.going.next().await
    }
    pub(super) fn label(&self) -> Option<crate::net::Label> {
        self.agent.as_ref().map(|agent| agent.label())
    }
    fn client(&self) -> Option<Client> {
        self.agent.as_ref().map(|agent| agent.client().clone())
    }
    fn order(&mut self, carried_out: impl Future<Output = Outcome> + Send + 'static) {
        let Some(agent) = &self.agent else { return };
        let ended = agent.begin_call(async move { Ok(carried_out.await) });
        self.going.push(ended);
    }
}

/// A limit of the cluster's own work.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) enum Limit {
    Budget,
    ScrubPaused,
}

/// One region into another.
#[derive(Clone)]
struct Move {
    from: Region,
    to: Region,
    /// Nodes that must be there to take it.
    takers: usize,
    cold: bool,
    cancel_after: Option<Duration>,
}

impl Run<'_> {
    /// Takes in what became of an order.
    pub(super) fn take_order(&mut self, ended: Obeyed) -> Result<(), Violation> {
        match ended {
            Ok(outcome) => {
                for what in outcome {
                    event!(self.world, 0, "order: {what}");
                    Tallies::add(&mut self.tallies.upkeep, what);
                }
                Ok(())
            }
            Err(Failure::Broken(violation)) => Err(violation),
            Err(Failure::Refused(_) | Failure::Died) => Ok(()),
        }
    }

    /// Machines for a region are set up, and the order is given when they have joined.
    pub(super) fn migrate(&mut self, fault: &Fault) -> Result<Option<Begun>, Violation> {
        let Fault::Migrate { region, into, cold, cancel, for_ms } = *fault else { return Ok(None) };
        let (count, machines) = (self.plan.layout.regions.len(), &self.cluster.machines);
        let number = region % count;
        let inside = self.cluster.in_service().filter(|at| machines[*at].region_no == number).count();
        let newest = machines.iter().map(|machine| machine.region_no).max().unwrap_or(0);
        let to = into.map_or(newest + 1, |other| other % count);
        let Some(client) = self.operators.client() else { return Ok(None) };
        if inside == 0 || to == number || (into.is_none() && machines.len() + inside > NODES_MAX) {
            return Ok(None);
        }
        let fresh = if into.is_none() { inside } else { 0 };
        for _ in 0..fresh {
            let at = self.cluster.add(to)?;
            self.cluster.start(at);
        }
        let name = |number| {
            let mut here = self.cluster.machines.iter().filter(|machine| machine.region_no == number);
            here.next().map(|machine| machine.region.clone())
        };
        let (Some(from), Some(to)) = (name(number), name(to)) else { return Ok(None) };
        let cancel_after = cancel.then(|| Duration::from_millis(for_ms));
        let order = Move { from, to, takers: fresh.max(1), cold, cancel_after };
        let (rest, asked) = (self.operators.rest.clone(), self.operators.cold.clone());
        self.operators.order(async move { order.carry_out(&client, &rest, &asked).await });
        Ok(Some(Begun::default().undo([Undo::Over])))
    }

    pub(super) fn budget(&mut self, node_bytes_s: u64, link_bytes_s: u64) -> Option<Begun> {
        let regions: BTreeSet<Region> =
            self.cluster.machines.iter().map(|machine| machine.region.clone()).collect();
        let link = |from: &Region, to: &Region| LinkBudget {
            from: from.clone(),
            to: to.clone(),
            bytes_s: Some(link_bytes_s),
            bytes_day: None,
            micros_gib: 20_000,
        };
        let others = |from| regions.iter().filter(move |to| *to != from);
        let links: Vec<_> =
            regions.iter().flat_map(|from| others(from).map(move |to| link(from, to))).collect();
        let client = self.operators.client()?;
        self.operators.order(async move {
            let set = |upkeep: &mut Upkeep| {
                upkeep.node_bytes_s = Some(node_bytes_s);
                upkeep.links = links.clone();
            };
            if limit(&client, set).await { vec!["budget set"] } else { Vec::new() }
        });
        Some(Begun::default().undo([Undo::Lift(Limit::Budget)]))
    }

    pub(super) fn pause_scrub(&mut self) -> Option<Begun> {
        let client = self.operators.client()?;
        self.operators.order(async move {
            let paused = limit(&client, |upkeep| upkeep.scrub_paused = true).await;
            if paused { vec!["scrub paused"] } else { Vec::new() }
        });
        Some(Begun::default().undo([Undo::Lift(Limit::ScrubPaused)]))
    }

    pub(super) fn lift(&mut self, which: Limit) {
        let Some(client) = self.operators.client() else { return };
        self.operators.order(async move {
            let lift = |upkeep: &mut Upkeep| match which {
                Limit::Budget => (upkeep.node_bytes_s, upkeep.links) = (None, Vec::new()),
                Limit::ScrubPaused => upkeep.scrub_paused = false,
            };
            match (limit(&client, lift).await, which) {
                (false, _) => Vec::new(),
                (true, Limit::Budget) => vec!["budget lifted"],
                (true, Limit::ScrubPaused) => vec!["scrub resumed"],
            }
        });
    }
}

impl Move {
    async fn carry_out(&self, client: &Client, rest: &AtomicBool, asked: &AtomicBool) -> Outcome {
        let mut begun = false;
        for _ in 0..ATTEMPTS {
            if begun || rest.load(Ordering::Relaxed) {
                break;
            }
            begun = self.begin(client, asked).await.unwrap_or(false);
            if !begun {
                sleep(AGAIN).await;
            }
        }
        if !begun {
            return vec!["migrations not begun"];
        }
        let mut outcome = vec![if self.cold { "cold migrations ordered" } else { "migrations ordered" }];
        if let Some(after) = self.cancel_after {
            sleep(after).await;
            if cancel(client, &self.from).await {
                outcome.push("migrations called off");
            }
        }
        outcome
    }

    /// Whether it has begun; if not, the cluster is not ready for it.
    async fn begin(&self, client: &Client, asked: &AtomicBool) -> Result<bool, Error> {
        let operator = client.operator()?;
        let nodes = client.topology().await?.nodes;
        let takers = nodes.iter().filter(|node| node.region == self.to && node.takes_shards()).count();
        if takers < self.takers {
            return Ok(false);
        }
        let plan = operator.plan_migration(&self.from, &self.to).await?;
        if !plan.refused.is_empty() {
            return Ok(false);
        }
        asked.fetch_or(self.cold, Ordering::Relaxed);
        operator.migrate(plan.epoch, &self.from, &self.to, self.cold).await.map(|_| true)
    }
}

/// Ends a migration half-way. False if there is none, or nobody answers.
pub(super) async fn cancel(client: &Client, from: &Region) -> bool {
    for _ in 0..ATTEMPTS {
        let Ok(operator) = client.operator() else { return false };
        if let Ok(plan) = operator.plan(&[], true, &[]).await {
            match operator.cancel_migration(plan.epoch, from).await {
                Ok(_) => return true,
                Err(Error::Invalid(_)) => return false,
                Err(_) => {}
            }
        }
        sleep(AGAIN).await;
    }
    false
}

/// Changes the limits. False if nobody answers.
async fn limit(client: &Client, change: impl Fn(&mut Upkeep)) -> bool {
    for _ in 0..ATTEMPTS {
        let Ok(operator) = client.operator() else { return false };
        if let Ok(mut upkeep) = operator.upkeep().await {
            change(&mut upkeep);
            if operator.set_upkeep(upkeep).await.is_ok() {
                return true;
            }
        }
        sleep(AGAIN).await;
    }
    false
}

/// Nothing is limited any more, and nothing that is gone for good is waited for. What is left to do about the cluster's own
/// work, if anything is.
pub(super) async fn tidy(client: Client, gone: BTreeSet<farshore_core::id::NodeId>) -> Result<(), String> {
    let said = |error: Error| error.to_string();
    let operator = client.operator().map_err(said)?;
    if operator.upkeep().await.map_err(said)? != Upkeep::default() {
        operator.set_upkeep(Upkeep::default()).await.map_err(said)?;
    }
    let nodes = client.topology().await.map_err(said)?.nodes;
    let lost = nodes.iter().filter(|node| node.state == NodeState::Lost && gone.contains(&node.id));
    let remove: Vec<Change> = lost.map(|node| Change::Remove(node.id)).collect();
    if remove.is_empty() {
        return Ok(());
    }
    let epoch = operator.plan(&[], true, &[]).await.map_err(said)?.epoch;
    operator.apply(epoch, Some(&remove)).await.map_err(said).map(drop)
}
