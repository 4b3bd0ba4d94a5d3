//! The first scenario: a cluster through its worst day. Backups, a region that loses power in the middle of one,
//! restores while it is gone, its return, bit rot, a power cut of everything, repair. What was acknowledged must
//! restore, bit for bit, at every step; at the end every stripe must be at full strength and all replicas agree.

use crate::clock::EPOCH_MS;
use crate::cluster::{Cluster, Violation, connect};
use crate::entropy::Rng;
use crate::event;
use crate::tree::{self, SimSource, SimTarget, Tree};
use crate::world::{Digest, World};
use farshore_client::backup;
use farshore_client::crypto::KdfParams;
use farshore_client::list::Filter;
use farshore_client::progress::Silent;
use farshore_client::restore;
use farshore_client::{Client, Repository};
use farshore_core::catalogue::SnapshotKind;
use farshore_core::host::task::{Scope, set_strict, splitmix};
use farshore_core::policy::Policy;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Regions and nodes in each.
const REGIONS: usize = 3;
const PER_REGION: usize = 2;
/// A healthy cluster is ready by then.
const READY: Duration = Duration::from_secs(60);
/// When faults stop, everything is at full strength again by then: grace, detection and rebuilding of a few packs.
const HEALED: Duration = Duration::from_secs(600);
/// One client operation ends by then, whatever happens around it.
const OPERATION: Duration = Duration::from_secs(400);

/// What to run.
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Receives every event, if given.
    pub trace: Option<Box<dyn std::io::Write + Send>>,
}

/// How a run ended.
pub struct Outcome {
    /// What was run.
    pub seed: u64,
    /// Fold of all events.
    pub digest: Digest,
    /// How long it took in the simulated world.
    pub virtual_seconds: f64,
    /// The first promise that was broken, if any.
    pub violation: Option<Violation>,
    /// The last events.
    pub recent: Vec<String>,
}

/// Runs one seed to its end, in this thread.
pub fn run(options: &mut Options) -> Outcome {
    set_strict(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let outcome = runtime.block_on(async {
        let world = World::new(options.seed, options.trace.take());
        let violation = day(&world).await.err();
        if let Some(violation) = &violation {
            event!(world, 0, "violation: {violation}");
        }
        Outcome {
            seed: options.seed,
            digest: world.digest(),
            virtual_seconds: world.now_us() as f64 / 1e6,
            violation,
            recent: world.recent(),
        }
    });
    set_strict(false);
    outcome
}

/// What clients were promised: each acknowledged snapshot and the tree it must give back.
struct Promise {
    id: String,
    tree: Tree,
}

/// A client process and what it works on.
struct Agent {
    scope: Scope,
    seed: u64,
    tasks: AtomicU64,
    repository: Arc<Repository>,
    client: Arc<Client>,
    source: Arc<SimSource>,
}

impl Agent {
    /// Runs a piece of work as a task of this client, with a deadline in virtual time.
    async fn work<T: Send + 'static>(
        &self,
        what: &str,
        work: impl Future<Output = Result<T, Violation>> + Send + 'static,
    ) -> Result<T, Violation> {
        let task = self.scope.spawn(splitmix(self.seed, self.tasks.fetch_add(1, Ordering::Relaxed)), work);
        let ended = tokio::time::timeout(OPERATION, task).await;
        ended.map_err(|_| format!("{what} hangs"))?.map_err(|e| format!("{what} panicked: {e}"))?
    }

    /// Backs the source up. `Ok(None)` if the cluster refused it in an orderly way.
    async fn back_up(&self, world: &World, tree: &Tree) -> Result<Option<Promise>, Violation> {
        let (repository, source) = (self.repository.clone(), self.source.clone());
        let paths = vec![b"/src".to_vec()];
        let result = self.work("backup", async move {
            let options = backup::Options {
                paths,
                kind: SnapshotKind::Incremental,
                host_name: "sim".into(),
                user: "sim".into(),
                tags: Vec::new(),
                utc_offset_min: None,
                compression: None,
            };
            Ok(repository.backup(&options, source, Arc::new(Silent)).await)
        });
        match result.await? {
            Ok(summary) => {
                let (id, degraded) = (summary.snapshot.to_string(), summary.under_target);
                event!(world, 100, "snapshot {id} acknowledged, {degraded} packs under target");
                Ok(Some(Promise { id, tree: tree.clone() }))
            }
            // Not acknowledged, so nothing is promised; which errors are in order is the caller's to judge.
            Err(e) => {
                event!(world, 100, "backup refused: {e}");
                Ok(None)
            }
        }
    }

    /// Restores a snapshot and compares it with what was promised.
    async fn verify(&self, world: &World, promise: &Promise) -> Result<(), Violation> {
        let (repository, id, target) = (self.repository.clone(), promise.id.clone(), SimTarget::default());
        let into = target.clone();
        let result = self.work("restore", async move {
            let found = repository.resolve(id.as_bytes(), &Filter::default()).await;
            let (snapshot, _) = found.map_err(|e| e.to_string())?;
            let options = restore::Options::default();
            let restored = repository.restore(&snapshot, &options, &into, &Silent).await;
            restored.map_err(|e| e.to_string())
        });
        result.await.map_err(|e| format!("durable: snapshot {} does not restore: {e}", promise.id))?;
        let differences = tree::differences(&promise.tree, &target.tree());
        event!(world, 100, "restored {}, {} differences", promise.id, differences.len());
        match differences.first() {
            None => Ok(()),
            Some(first) => Err(format!("durable: snapshot {} came back different: {first}", promise.id)),
        }
    }

    async fn verify_all(&self, world: &World, promises: &[Promise]) -> Result<(), Violation> {
        for promise in promises {
            self.verify(world, promise).await?;
        }
        Ok(())
    }
}

async fn day(world: &World) -> Result<(), Violation> {
    let mut rng = Rng::new(world.seed(), 0x5343);
    let mut cluster = Cluster::new(world.clone(), REGIONS, PER_REGION)?;
    let low = rng.range(200, 20_000);
    cluster.hub.set_latency(low, low * rng.range(1, 4));
    for at in 0..cluster.machines.len() {
        cluster.start(at);
    }
    let agent = enter(world, &mut cluster).await?;

    // Two backups in peace: everything, then the changes.
    let mut now = (EPOCH_MS / 1_000) as i64;
    let mut tree = tree::grow(&mut rng, 40, now);
    let mut promises = Vec::new();
    agent.source.set(tree.clone());
    promises.push(agent.back_up(world, &tree).await?.ok_or("live: a backup in peace was refused")?);
    agent.source.take_bytes_read();
    promises.push(agent.back_up(world, &tree).await?.ok_or("live: a backup in peace was refused")?);
    if agent.source.take_bytes_read() > 0 {
        return Err("unchanged: a second backup of an unchanged tree read file contents".into());
    }
    agent.verify_all(world, &promises).await?;

    // A region loses power while a third backup runs.
    now = (EPOCH_MS / 1_000) as i64 + (world.now_us() / 1_000_000) as i64;
    tree::edit(&mut rng, &mut tree, now);
    agent.source.set(tree.clone());
    let region = rng.below(REGIONS as u64) as usize;
    let delay = Duration::from_millis(rng.range(1, 1_500));
    let third = {
        let backup = agent.back_up(world, &tree);
        let cut = async {
            tokio::time::sleep(delay).await;
            for at in region * PER_REGION..(region + 1) * PER_REGION {
                cluster.crash(at, true);
            }
        };
        let (third, ()) = futures_util::join!(backup, cut);
        third?
    };
    promises.extend(third);
    agent.verify_all(world, &promises).await?;

    // Something new while the region is gone: accepted in degraded form.
    tree::edit(&mut rng, &mut tree, now + 60);
    agent.source.set(tree.clone());
    promises.push(agent.back_up(world, &tree).await?.ok_or("floor: a degraded backup was refused")?);
    agent.verify_all(world, &promises).await?;

    // The region comes back, a bit rots elsewhere, and everything heals.
    for at in region * PER_REGION..(region + 1) * PER_REGION {
        cluster.start(at);
    }
    let rotten = (region * PER_REGION + PER_REGION + rng.below(2) as usize) % cluster.machines.len();
    cluster.machines[rotten].disk.rot("shards/");
    agent.verify_all(world, &promises).await?;
    healed(&agent, &cluster).await?;

    // Power fails everywhere at once.
    for at in 0..cluster.machines.len() {
        cluster.crash(at, true);
    }
    for at in 0..cluster.machines.len() {
        cluster.start(at);
    }
    ready(&agent, READY).await?;
    agent.verify_all(world, &promises).await?;
    healed(&agent, &cluster).await?;
    agreed(&cluster).await
}

/// Connects a client as soon as the cluster answers, and gives it a repository.
async fn enter(world: &World, cluster: &mut Cluster) -> Result<Agent, Violation> {
    let profile = cluster.profile("sim")?;
    let (scope, seed, host) = cluster.client_host();
    let opening = scope.spawn(seed, async move {
        let client = connect(host, profile).await?;
        let deadline = Instant::now() + READY;
        while client.status().await.map_or(0, |s| s.nodes.len()) < REGIONS * PER_REGION {
            if Instant::now() > deadline {
                return Err("live: the cluster does not form".to_string());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let repository = client.create_repository("sim", Policy::default(), "sim", KdfParams::CHEAPEST).await;
        Ok((client, repository.map_err(|e| format!("live: no repository: {e}"))?))
    });
    let (client, repository) = opening.await.map_err(|e| format!("the client panicked: {e}"))??;
    event!(world, 100, "repository made");
    Ok(Agent {
        scope,
        seed,
        tasks: AtomicU64::new(2),
        repository: Arc::new(repository),
        client: Arc::new(client),
        source: Arc::new(SimSource::new(Tree::new())),
    })
}

/// Waits until every node is up and a leader confirms it.
async fn ready(agent: &Agent, within: Duration) -> Result<(), Violation> {
    until(agent, within, "live: the cluster does not come back", |s| {
        !s.stale && s.nodes.iter().all(|n| n.node.state.takes_shards())
    })
    .await
}

/// Waits until every stripe is at full strength and nothing is queued.
async fn healed(agent: &Agent, cluster: &Cluster) -> Result<(), Violation> {
    until(agent, HEALED, "heals: not at full strength in time", |s| {
        !s.stale
            && s.under_target == 0
            && s.unreadable == 0
            && s.repair.queued + s.repair.running == 0
            && s.nodes.iter().all(|n| n.node.state.takes_shards())
    })
    .await?;
    cluster.check_agreement().map(|_| ())
}

async fn until(
    agent: &Agent,
    within: Duration,
    what: &'static str,
    done: impl Fn(&farshore_client::api::ClusterStatus) -> bool + Send + 'static,
) -> Result<(), Violation> {
    let client = agent.client.clone();
    let waiting = async move {
        let deadline = Instant::now() + within;
        loop {
            let status = client.status().await;
            if status.as_ref().is_ok_and(&done) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(match status {
                    Ok(s) => format!(
                        "{what}: stale {}, {} under target, {} unreadable, {} queued, {} running, last error {:?}",
                        s.stale,
                        s.under_target,
                        s.unreadable,
                        s.repair.queued,
                        s.repair.running,
                        s.repair.last_error
                    ),
                    Err(e) => format!("{what}: {e}"),
                });
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let seed = splitmix(agent.seed, agent.tasks.fetch_add(1, Ordering::Relaxed));
    agent.scope.spawn(seed, waiting).await.map_err(|e| format!("{what}: the client panicked: {e}"))?
}

/// In a quiet cluster all replicas reach the same index and the same state.
async fn agreed(cluster: &Cluster) -> Result<(), Violation> {
    let deadline = Instant::now() + READY;
    loop {
        if cluster.check_agreement()? == 1 {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err("agree: replicas do not reach the same index in a quiet cluster".into());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
