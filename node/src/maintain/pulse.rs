//! The worker behind `health.rs`: tells the leader each second that this node lives, keeps the address book up to
//! date, and on the leader turns silence into commands.

use super::Shared;
use super::health::{Known, Load};
use super::leave::{end_migrations, retire_empty};
use super::raise::raise_level;
use super::slow::{Pace, RoundTrips};
use crate::catalogue::{CatalogueError, View};
use crate::raft::membership::MembershipError;
use crate::worker::{self, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::Reply;
use farshore_core::id::NodeId;
use farshore_core::limits::NODES_MAX;
use farshore_core::topology::NodeRecord;
use farshore_proto::channel;
use farshore_proto::convert::raft::Heartbeat;
use farshore_proto::status::ApiError;
use farshore_proto::wire::HeartbeatRequest as WireBeat;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Without a leader the addresses of the catalogue and those of the configuration take turns of so many beats, long enough for
/// an election.
const TURN_BEATS: u32 = 8;

/// One heartbeat a unit.
pub struct Pulse {
    shared: Arc<Shared>,
    /// Term in which this node began to lead, while it does.
    leading: Option<u64>,
    /// Who took our last heartbeat while no leader was known to us: a newcomer has no log to learn it from.
    taker: Option<NodeId>,
    /// Beats in a row for which nobody has led.
    leaderless: u32,
    /// Addresses in the catalogue under which nobody came to lead. While the catalogue says nothing newer the configured ones
    /// are used instead, also by whoever leads by them: the catalogue learns the new ones only then.
    doubted: Doubted,
    /// How long our heartbeats took.
    trips: RoundTrips,
}

/// Addresses by node.
type Doubted = BTreeMap<NodeId, String>;

impl Pulse {
    /// A pulse that starts with the next unit.
    pub fn new(shared: Arc<Shared>) -> Self {
        Pulse {
            shared,
            leading: None,
            taker: None,
            leaderless: 0,
            doubted: Doubted::new(),
            trips: RoundTrips::default(),
        }
    }

    async fn load(&self) -> Result<Load, WorkFailed> {
        self.shared.store.check_place().await?;
        let stats = self.shared.store.stats();
        let free = self.shared.host.disk.space().await?.free;
        let bad_found = self.shared.reports.bad_found();
        let leader = self.shared.consensus.leader();
        let rtt = match leader == Some(self.shared.own.id) {
            true => Some(Duration::ZERO),
            false => leader.and_then(|leader| self.trips.quickest(leader)),
        };
        let pace = Pace { rtt, disk: self.shared.store.disk_pace() };
        Ok(Load { used: stats.used, free, shards: stats.shards, bad_found, pace })
    }

    /// Judges, if this node leads. Its own voice is heard first, so that it never calls itself silent.
    async fn lead(&mut self, load: Option<Load>, view: &View) -> Result<(), WorkFailed> {
        let now = Instant::now();
        let term = self.shared.leading();
        if term != self.leading {
            self.leading = term;
            if let Some(term) = term {
                tracing::info!(term, "this node leads");
                self.shared.health.begin(now);
            }
        }
        if term.is_none() || view.cluster().is_none() {
            return Ok(());
        }
        if let Some(load) = load {
            let incarnation = self.shared.consensus.passport().incarnation();
            let level = self.shared.level;
            self.shared.health.hear(self.shared.own.clone(), incarnation, level, load, now);
        }
        let intent = view.intent()?;
        let (nodes, incarnations) = (view.nodes()?, view.incarnations()?);
        let levels = view.node_levels()?;
        let known = Known { nodes, incarnations, levels, leaving: intent.leaving.clone() };
        self.shared.reached.told_slow(self.shared.health.slow(&known.nodes));
        for command in self.shared.health.judge(&known, now) {
            tracing::info!(?command, "judgement");
            // A refused judgement must not keep the ones behind it from being heard.
            let reply = self.shared.consensus.propose_leading(command).await?;
            if let Reply::Refused(refusal) = reply {
                tracing::warn!(%refusal, "judgement refused");
            }
        }
        retire_empty(&self.shared, view, &intent).await?;
        end_migrations(&self.shared, view, &intent).await?;
        raise_level(&self.shared).await?;
        // A newcomer gets its replica, a lost voter's vote goes to another. One step a heartbeat is soon enough.
        match self.shared.consensus.reconcile(&self.shared.view()?.nodes()?).await {
            Ok(_) | Err(MembershipError::Later(_)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends our heartbeat to the leader, or to anybody who takes it while none is known.
    async fn beat(&mut self, load: Load) -> Result<(), WorkFailed> {
        let own = self.shared.own.id;
        let leader = self.shared.consensus.leader();
        if leader == Some(own) {
            return Ok(());
        }
        if let Some(node) = leader.or(self.taker) {
            let sent = self.send(node, load).await;
            self.taker = self.taker.filter(|_| sent.is_ok());
            return sent.map_err(WorkFailed::from);
        }
        let others: Vec<NodeId> = self.shared.peers.known().into_iter().filter(|n| *n != own).collect();
        let mut last = WorkFailed("no other node is known".into());
        for node in others {
            match self.send(node, load).await {
                Ok(()) => {
                    self.taker = Some(node);
                    return Ok(());
                }
                Err(error) => last = error.into(),
            }
        }
        Err(last)
    }

    async fn send(&mut self, to: NodeId, load: Load) -> Result<(), ApiError> {
        let channel = self.shared.peers.channel(to);
        let channel =
            channel.ok_or_else(|| ApiError::Unreachable(format!("no address is known for node {to}")))?;
        let Load { used, free, shards, bad_found, pace } = load;
        let (rtt_us, disk_us) = pace.told();
        let era = self.shared.consensus.era();
        let passport = self.shared.consensus.passport();
        let incarnation = passport.incarnation();
        let own = self.shared.own.clone();
        let beat = Heartbeat {
            node: own,
            used,
            free,
            shards,
            bad_found,
            incarnation,
            level: self.shared.level,
            era,
            clock_ms: self.shared.host.clock.now_ms(),
            rtt_us,
            disk_us,
        };
        let begun = Instant::now();
        let mut client = channel::raft(channel);
        // Soon enough to try once more before the silence is noticed.
        match tokio::time::timeout(
            self.shared.timing.suspect_after / 2,
            client.heartbeat(passport.stamp(to, WireBeat::from(beat))),
        )
        .await
        {
            Ok(answer) => {
                let answer = answer.map_err(ApiError::from_status);
                let answer = answer.inspect_err(|error| self.shared.consensus.heard_of_era(error));
                let answer = answer?.into_inner();
                if let Some(leader) = answer.leader {
                    // A newcomer may never have heard of it: it is no older than the configuration allows.
                    let leader = NodeRecord::try_from(leader)?;
                    self.shared.peers.set(leader.id, &leader.addr);
                    return Err(ApiError::NoQuorum(format!("node {to} does not lead, {} does", leader.name)));
                }
                self.trips.note(to, begun.elapsed());
                self.shared.reached.told_slow(answer.slow.iter().take(NODES_MAX).copied().map(NodeId));
                passport.told(answer.incarnation);
                let (cluster, own) = (answer.feature_level, self.shared.level);
                if cluster > own {
                    passport.oust(CatalogueError::Level { cluster, own }.to_string());
                }
                if answer.retired {
                    passport.retire();
                }
                Ok(())
            }
            Err(_) => {
                // It may have arrived: over a line so slow that no answer comes in time, the node still counts as up.
                self.trips.note(to, begun.elapsed());
                Err(ApiError::Unreachable(format!("node {to} did not take the heartbeat")))
            }
        }
    }
}

/// Notes where the nodes of the cluster listen. If most of them have moved while
/// they were down, the catalogue knows none of it and there is no leader to tell it: then only the operator knows.
fn update_book(shared: &Shared, view: &View, doubted: &Doubted) -> Result<(), CatalogueError> {
    let nodes = view.nodes()?;
    for node in nodes.iter().filter(|n| n.id != shared.own.id) {
        let is_doubted = doubted.get(&node.id) == Some(&node.addr);
        let seed = shared.seeds.iter().find(|seed| is_doubted && seed.id == node.id);
        shared.peers.set(node.id, seed.map_or(&node.addr, |seed| &seed.addr));
    }
    shared.consensus.passport().leave_if_retired();
    Ok(())
}

#[async_trait]
impl Worker for Pulse {
    fn name(&self) -> &'static str {
        "pulse"
    }

    async fn work(&mut self) -> Result<worker::Pace, WorkFailed> {
        let view = self.shared.view()?;
        let led = self.shared.consensus.leader().is_some();
        self.leaderless = if led { 0 } else { self.leaderless.saturating_add(1) };
        if self.leaderless == TURN_BEATS {
            self.leaderless = 0;
            let known = || view.nodes().map(|nodes| nodes.into_iter().map(|n| (n.id, n.addr)).collect());
            self.doubted = if self.doubted.is_empty() { known()? } else { Doubted::new() };
        }
        update_book(&self.shared, &view, &self.doubted)?;
        // A node whose disk has gone keeps still, so that its shards are rebuilt as those of a lost node: they count
        // again when the disk is back, which shards reported bad one by one would not.
        let load = self.load().await;
        if let Ok(load) = &load {
            self.beat(*load).await?;
        }
        self.lead(load.as_ref().ok().copied(), &view).await?;
        load?;
        Ok(worker::Pace::Throttled(self.shared.timing.heartbeat))
    }

    /// A heart does not slow down because nobody listened: silence is what makes a node lost.
    fn pause_max(&self) -> Duration {
        self.shared.timing.heartbeat
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.heartbeat).await;
    }
}
