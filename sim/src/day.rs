//! The first scenario: a cluster and its clients through their worst day, act by act. What was acknowledged must
//! restore, bit for bit, at every step; at the end every shard must be in its place and good, and all replicas agree.
//! The losses of each act are such as the policy names, so every act begins at full strength.

use crate::agent::{Agent, Promise};
use crate::clock::now_secs;
use crate::cluster::{Cluster, Settings, Violation};
use crate::entropy::Rng;
use crate::event;
use crate::plan::Layout;
use crate::tree::{self, Tree};
use crate::world::World;
use farshore_client::api::ClusterStatus;
use farshore_core::host::KvRole;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Regions and nodes in each.
const REGIONS: usize = 3;
const PER_REGION: usize = 2;
/// One in each region votes.
const VOTERS: usize = REGIONS;
/// Entries of the tree that is backed up.
const ENTRIES: u64 = 40;
/// A healthy cluster is ready by then.
const READY: Duration = Duration::from_secs(60);
/// When faults stop, everything is at full strength again by then: detection and rebuilding of a few packs.
const HEALED: Duration = Duration::from_secs(600);
/// Longest outage of a region: well above the nodes' grace, so that some are given up for lost.
const OUTAGE_MS_MAX: u64 = 90_000;

/// The world of a day, and what its clients were promised so far.
pub struct Day {
    world: World,
    rng: Rng,
    cluster: Cluster,
    agent: Agent,
    tree: Tree,
    promises: Vec<Arc<Promise>>,
}

/// From the first start to the last check.
pub async fn day(world: &World) -> Result<(), Violation> {
    let mut day = Day::dawn(world).await?;
    day.peace().await?;
    day.a_node_stumbles().await?;
    day.the_client_dies().await?;
    day.clocks_jump();
    day.a_region_is_lost().await?;
    day.a_bit_rots().await?;
    day.a_replica_rots().await?;
    day.power_fails().await?;
    day.evening().await
}

/// How a region is lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Loss {
    Power,
    Killed,
    CutOff,
    /// It hears others and nobody hears it.
    Mute,
    /// Others hear it and it hears nobody.
    Deaf,
}

/// What happens to a single node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stumble {
    Power,
    Killed,
    FullDisk,
}

impl Day {
    /// The cluster forms and a client gets its repository.
    async fn dawn(world: &World) -> Result<Self, Violation> {
        let mut rng = Rng::new(world.seed(), 0x5343);
        let mut cluster =
            Cluster::new(world.clone(), &Layout { regions: vec![PER_REGION; REGIONS] }, Settings::default())?;
        let low = rng.range(200, 20_000);
        cluster.hub.set_latency(low, low * rng.range(1, 4));
        if rng.one_in(3) {
            cluster.hub.set_loss(rng.range(100, 5_000));
        }
        (0..cluster.machines.len()).for_each(|at| cluster.start(at));
        let agent = Agent::enter(&mut cluster, REGIONS * PER_REGION, READY).await?;
        let tree = tree::grow(&mut rng, ENTRIES, now_secs(world));
        if rng.one_in(2) {
            cluster.history.set_repeat(rng.range(2, 8));
        }
        Ok(Day { world: world.clone(), rng, cluster, agent, tree, promises: Vec::new() })
    }

    /// Two backups: everything, then nothing new.
    async fn peace(&mut self) -> Result<(), Violation> {
        event!(self.world, 0, "act: peace");
        self.must_back_up().await?;
        self.agent.take_bytes_read();
        self.must_back_up().await?;
        if self.agent.take_bytes_read() > 0 {
            return Err("unchanged: a second backup of an unchanged tree read file contents".into());
        }
        self.verify_all().await
    }

    /// One node fails in the middle of a backup, which is accepted all the same: the floor holds.
    async fn a_node_stumbles(&mut self) -> Result<(), Violation> {
        let at = self.rng.below(self.cluster.machines.len() as u64) as usize;
        let kinds = [Stumble::Power, Stumble::Killed, Stumble::FullDisk];
        let how = kinds[self.rng.below(3) as usize];
        event!(self.world, 0, "act: machine {at} stumbles, {how:?}");
        self.edit();
        let backup = self.agent.begin_back_up(&self.tree);
        self.pause(1_000).await;
        match how {
            Stumble::Power | Stumble::Killed => self.cluster.crash(at, how == Stumble::Power),
            Stumble::FullDisk => self.cluster.machines[at].disk.fill(),
        }
        let promise = backup.acknowledged().await?;
        self.promises.push(
            promise
                .map(Arc::new)
                .map_err(|e| format!("floor: a backup with one node lost was refused: {e}"))?,
        );
        self.verify_newest().await?;
        match how {
            Stumble::Power | Stumble::Killed => self.cluster.start(at),
            Stumble::FullDisk => self.cluster.machines[at].disk.unfill(),
        }
        self.healed().await
    }

    /// A client dies in the middle of a backup. What it was not told is not promised; its successor goes on.
    async fn the_client_dies(&mut self) -> Result<(), Violation> {
        event!(self.world, 0, "act: the client dies");
        self.edit();
        let backup = self.agent.begin_back_up(&self.tree);
        self.pause(600).await;
        let power = self.rng.one_in(2);
        self.agent.die(&self.cluster.hub, power);
        self.promises.extend(backup.acknowledged_before_death().await.map(Arc::new));
        self.agent = Agent::succeed(&mut self.cluster).await?;
        self.must_back_up().await?;
        self.verify_all().await
    }

    /// Calendars go wrong by minutes everywhere, and by days on one machine.
    fn clocks_jump(&mut self) {
        let mad = self.rng.below(self.cluster.machines.len() as u64) as usize;
        for at in 0..self.cluster.machines.len() {
            let most = if at == mad { 3 * 86_400_000 } else { 120_000 };
            let skew = self.rng.range(0, 2 * most) as i64 - most as i64;
            event!(self.world, self.cluster.machines[at].label, "clock is wrong by {skew} ms");
            self.cluster.set_clock(at, skew);
        }
    }

    /// A region is lost in the middle of a backup, stays away, and comes back.
    async fn a_region_is_lost(&mut self) -> Result<(), Violation> {
        let region = self.rng.below(REGIONS as u64) as usize;
        let lost = region * PER_REGION..(region + 1) * PER_REGION;
        let kinds = [Loss::Power, Loss::Power, Loss::Killed, Loss::CutOff, Loss::Mute, Loss::Deaf];
        let how = kinds[self.rng.below(kinds.len() as u64) as usize];
        event!(self.world, 0, "act: region {region} is lost, {how:?}");
        self.edit();
        let backup = self.agent.begin_back_up(&self.tree);
        self.pause(1_500).await;
        self.lose(lost.clone(), how);
        // Whether this one is accepted is not promised; if it is, it holds.
        self.promises.extend(backup.acknowledged().await?.map(Arc::new));
        self.verify_all().await?;

        // Something new while the region is gone: accepted in degraded form.
        self.edit();
        self.must_back_up().await?;
        if self.rng.one_in(2) {
            self.pause(OUTAGE_MS_MAX).await;
        }
        self.verify_newest().await?;
        event!(self.world, 0, "region {region} comes back");
        match how {
            Loss::Power | Loss::Killed => lost.for_each(|at| self.cluster.start(at)),
            Loss::CutOff | Loss::Mute | Loss::Deaf => self.cluster.hub.heal(),
        }
        self.healed().await
    }

    fn lose(&mut self, lost: Range<usize>, how: Loss) {
        if matches!(how, Loss::Power | Loss::Killed) {
            return lost.for_each(|at| self.cluster.crash(at, how == Loss::Power));
        }
        let inside: Vec<_> = self.cluster.machines[lost].iter().map(|m| m.label).collect();
        let outside = self.cluster.machines.iter().map(|m| m.label).filter(|l| !inside.contains(l));
        for other in outside.chain([self.agent.label()]) {
            for own in &inside {
                if how != Loss::Deaf {
                    self.cluster.hub.cut(*own, other);
                }
                if how != Loss::Mute {
                    self.cluster.hub.cut(other, *own);
                }
            }
        }
    }

    /// A bit rots on one disk. Reads are right all the same, a scrub finds it, repair replaces it.
    async fn a_bit_rots(&mut self) -> Result<(), Violation> {
        let at = self.rng.below(self.cluster.machines.len() as u64) as usize;
        event!(self.world, 0, "act: machine {at} rots");
        self.cluster.rot(at)?;
        self.verify_all().await?;
        self.scrubbed().await
    }

    /// A bit of a node's own log or catalogue rots. It is met at the latest when the node is started again; the node gives
    /// its replica up and learns it anew.
    async fn a_replica_rots(&mut self) -> Result<(), Violation> {
        let at = self.rng.below(self.cluster.machines.len() as u64) as usize;
        event!(self.world, 0, "act: the replica of machine {at} rots");
        self.cluster.crash(at, false);
        let rotten = self.cluster.machines[at].stores.rot(KvRole::Catalogue);
        rotten.ok_or("setup: a replica without a row")?;
        self.cluster.start(at);
        self.edit();
        self.must_back_up().await?;
        let deadline = Instant::now() + READY;
        while self.cluster.machines[at].stores.given_up() == 0 || self.cluster.voters().len() < VOTERS {
            if Instant::now() > deadline {
                return Err(format!(
                    "heals: the rotten replica of machine {at} is not given up and learnt anew"
                ));
            }
            self.pause(500).await;
        }
        self.healed().await?;
        self.verify_all().await
    }

    /// Power fails everywhere at once, and machines come back one after the other.
    async fn power_fails(&mut self) -> Result<(), Violation> {
        event!(self.world, 0, "act: power fails everywhere");
        self.edit();
        let backup = self.agent.begin_back_up(&self.tree);
        self.pause(1_000).await;
        (0..self.cluster.machines.len()).for_each(|at| self.cluster.crash(at, true));
        let mut order: Vec<usize> = (0..self.cluster.machines.len()).collect();
        while !order.is_empty() {
            self.pause(2_000).await;
            let next = self.rng.below(order.len() as u64) as usize;
            self.cluster.start(order.swap_remove(next));
        }
        self.promises.extend(backup.acknowledged().await?.map(Arc::new));
        self.healed().await?;
        self.verify_all().await
    }

    /// Nothing more happens: everything is in its place.
    async fn evening(&mut self) -> Result<(), Violation> {
        event!(self.world, 0, "act: evening");
        self.must_back_up().await?;
        self.scrubbed().await?;
        self.agent.check().await?;
        self.cluster.check_places()?;
        let linear = self.cluster.history.check()?;
        event!(self.world, 0, "{linear:?} {:?}", self.cluster.history.repeated());
        let deadline = Instant::now() + READY;
        while self.cluster.check_agreement()? != 1 {
            if Instant::now() > deadline {
                return Err("agree: replicas do not reach the same index in a quiet cluster".into());
            }
            self.pause(500).await;
        }
        Ok(())
    }

    /// Scrubs until nothing is found. What is found is reported and repaired; a crash may lose a report, but the next
    /// scrub finds it again.
    async fn scrubbed(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + HEALED;
        loop {
            let found = self.agent.scrub().await?;
            self.healed().await?;
            if found.bad + found.missing == 0 && found.failed.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("heals: {} shards stay bad, {} missing", found.bad, found.missing));
            }
            self.pause(5_000).await;
        }
    }

    async fn must_back_up(&mut self) -> Result<(), Violation> {
        let promise = self.agent.begin_back_up(&self.tree).acknowledged().await?;
        self.promises.push(promise.map(Arc::new).map_err(|e| format!("live: a backup was refused: {e}"))?);
        Ok(())
    }

    async fn verify_newest(&self) -> Result<(), Violation> {
        match self.promises.last() {
            Some(promise) => self.agent.verify(promise).await,
            None => Ok(()),
        }
    }

    async fn verify_all(&self) -> Result<(), Violation> {
        for promise in &self.promises {
            self.agent.verify(promise).await?;
        }
        Ok(())
    }

    /// Changes the tree.
    fn edit(&mut self) {
        tree::edit(&mut self.rng, &mut self.tree, now_secs(&self.world));
    }

    /// Waits for a random time of at most so many milliseconds.
    async fn pause(&mut self, most_ms: u64) {
        sleep(Duration::from_millis(self.rng.range(1, most_ms))).await;
    }

    /// Waits until every node is up, every stripe at full strength and nothing queued; replicas agree meanwhile.
    async fn healed(&mut self) -> Result<(), Violation> {
        let deadline = Instant::now() + READY;
        // A short outage may pass without the cluster noticing, so its word that all are up is not enough.
        while (0..self.cluster.machines.len()).any(|at| self.cluster.node(at).is_none()) {
            if Instant::now() > deadline {
                return Err("live: a node does not start".into());
            }
            self.pause(500).await;
        }
        let up = |s: &ClusterStatus| !s.stale && s.nodes.iter().all(|n| n.node.state.takes_shards());
        self.agent.until(READY, "live: the cluster does not come back", up).await?;
        let whole = move |s: &ClusterStatus| {
            up(s) && s.under_target == 0 && s.unreadable == 0 && s.repair.queued + s.repair.running == 0
        };
        self.agent.until(HEALED, "heals: not at full strength in time", whole).await?;
        self.cluster.check_agreement().map(|_| ())
    }
}
