//! A client as a simulated process: it backs up, restores, compares and asks for the cluster's state, each as a task of
//! its own with a deadline in virtual time. It remembers what it was promised.

use crate::cluster::{Cluster, Violation, connect};
use crate::event;
use crate::net::{Hub, Label};
use crate::tree::{self, SimSource, SimTarget, Tree};
use crate::world::World;
use farshore_client::api::ClusterStatus;
use farshore_client::crypto::KdfParams;
use farshore_client::list::Filter;
use farshore_client::progress::{Event, Progress};
use farshore_client::session::ScrubResult;
use farshore_client::{Client, Error, Repository, backup, check, restore};
use farshore_core::catalogue::SnapshotKind;
use farshore_core::host::task::{Scope, splitmix};
use farshore_core::policy::Policy;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// One operation ends by then, whatever happens around it.
const OPERATION: Duration = Duration::from_secs(400);
/// Pause between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(500);

/// What a client was promised: an acknowledged snapshot and the tree it must give back.
pub struct Promise {
    /// The snapshot.
    pub id: String,
    /// What it holds.
    pub tree: Tree,
}

/// A client process and what it works on.
pub struct Agent {
    world: World,
    label: Label,
    scope: Scope,
    seed: u64,
    tasks: AtomicU64,
    client: Client,
    repository: Repository,
    source: Arc<SimSource>,
}

/// A backup under way.
pub struct Backup {
    world: World,
    label: Label,
    task: JoinHandle<Result<backup::Summary, Error>>,
    tree: Tree,
}

impl Agent {
    /// Connects as soon as the cluster answers and knows `nodes` nodes, and makes a repository.
    pub async fn enter(cluster: &mut Cluster, nodes: usize, within: Duration) -> Result<Self, Violation> {
        Self::begin(cluster, move |client| async move {
            let deadline = Instant::now() + within;
            while client.status().await.map_or(0, |s| s.nodes.len()) < nodes {
                if Instant::now() > deadline {
                    return Err("live: the cluster does not form".to_string());
                }
                tokio::time::sleep(LOOK).await;
            }
            let made = client.create_repository("sim", Policy::default(), "sim", KdfParams::CHEAPEST).await;
            made.map_err(|e| format!("live: no repository: {e}"))
        })
        .await
    }

    /// Another client, which opens the repository.
    pub async fn succeed(cluster: &mut Cluster) -> Result<Self, Violation> {
        Self::begin(cluster, |client| async move {
            let opened = client.open_repository("sim", "sim").await;
            opened.map_err(|e| format!("live: the repository does not open: {e}"))
        })
        .await
    }

    /// A new process that connects and comes by its repository as `open` says.
    async fn begin<F>(
        cluster: &mut Cluster,
        open: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<Self, Violation>
    where
        F: Future<Output = Result<Repository, Violation>> + Send,
    {
        let profile = cluster.profile("sim")?;
        let (scope, label, seed, host) = cluster.client_host();
        let opening = scope.spawn(seed, async move {
            let client = connect(host, profile).await?;
            let repository = open(client.clone()).await?;
            Ok::<_, Violation>((client, repository))
        });
        let (client, repository) = opening.await.map_err(|e| format!("the client panicked: {e}"))??;
        let world = cluster.world.clone();
        event!(world, label, "repository open");
        let source = Arc::new(SimSource::new(Tree::new()));
        Ok(Agent { world, label, scope, seed, tasks: AtomicU64::new(2), client, repository, source })
    }

    /// Number on the network.
    pub fn label(&self) -> Label {
        self.label
    }

    /// The process ends at once.
    pub fn die(&self, hub: &Hub, power: bool) {
        event!(self.world, self.label, "the client dies, power lost: {power}");
        hub.crash(self.label, power);
        self.scope.kill();
    }

    fn spawn<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> JoinHandle<T> {
        let seed = splitmix(self.seed, self.tasks.fetch_add(1, Ordering::Relaxed));
        self.scope.spawn(seed, work)
    }

    /// Runs a piece of work as a task of this client, with a deadline in virtual time.
    async fn work<T: Send + 'static>(
        &self,
        what: &str,
        within: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Violation> {
        finished(what, within, self.spawn(work)).await
    }

    fn witness(&self) -> Arc<Witness> {
        Arc::new(Witness { world: self.world.clone(), label: self.label })
    }

    /// Begins to back a tree up.
    pub fn begin_back_up(&self, tree: &Tree) -> Backup {
        self.source.set(tree.clone());
        let (repository, source, witness) = (self.repository.clone(), self.source.clone(), self.witness());
        let options = backup::Options {
            paths: vec![b"/src".to_vec()],
            kind: SnapshotKind::Incremental,
            host_name: "sim".into(),
            user: "sim".into(),
            tags: Vec::new(),
            utc_offset_min: None,
            compression: None,
        };
        let task = self.spawn(async move { repository.backup(&options, source, witness).await });
        Backup { world: self.world.clone(), label: self.label, task, tree: tree.clone() }
    }

    /// Bytes of file contents that backups have read since the last call.
    pub fn take_bytes_read(&self) -> u64 {
        self.source.take_bytes_read()
    }

    /// Restores a snapshot and compares it with what was promised.
    pub async fn verify(&self, promise: &Promise) -> Result<(), Violation> {
        let (repository, id, target) = (self.repository.clone(), promise.id.clone(), SimTarget::default());
        let (into, witness) = (target.clone(), self.witness());
        let restore = async move {
            let (snapshot, _) = repository.resolve(id.as_bytes(), &Filter::default()).await?;
            repository.restore(&snapshot, &restore::Options::default(), &into, witness.as_ref()).await
        };
        let summary = self.work("a restore", OPERATION, restore).await?;
        let summary =
            summary.map_err(|e| format!("durable: snapshot {} does not restore: {e}", promise.id))?;
        let differences = tree::differences(&promise.tree, &target.tree());
        let (problems, count) = (summary.problems, differences.len());
        event!(self.world, self.label, "restored {}, {problems} problems, {count} differences", promise.id);
        match differences.first() {
            Some(first) => Err(format!("durable: snapshot {} came back different: {first}", promise.id)),
            None if problems > 0 => Err(format!("a restore that is right reports {problems} problems")),
            None => Ok(()),
        }
    }

    /// Has every node re-read all its shards.
    pub async fn scrub(&self) -> Result<ScrubResult, Violation> {
        let client = self.client.clone();
        let result = self.work("a scrub", OPERATION, async move { client.scrub().await }).await?;
        let result = result.map_err(|e| format!("live: a scrub does not run: {e}"))?;
        event!(self.world, self.label, "scrubbed {result:?}");
        match result.failed.values().next() {
            Some(why) => Err(format!("live: a scrub failed: {why}")),
            None => Ok(result),
        }
    }

    /// Reads every shard of every pack and opens every chunk.
    pub async fn check(&self) -> Result<(), Violation> {
        let (repository, witness) = (self.repository.clone(), self.witness());
        let options = check::Options { read_data: true };
        let checking = async move { repository.check(options, witness.as_ref()).await };
        let report = self.work("a check", OPERATION, checking).await?;
        let report = report.map_err(|e| format!("live: a check does not run: {e}"))?;
        report.verdict().map_err(|e| format!("heals: {e}: {:?} {:?}", report.broken, report.damaged))
    }

    /// Waits until the cluster says of itself what is wanted.
    pub async fn until(
        &self,
        within: Duration,
        what: &'static str,
        done: impl Fn(&ClusterStatus) -> bool + Send + 'static,
    ) -> Result<(), Violation> {
        let client = self.client.clone();
        let looking = async move {
            let deadline = Instant::now() + within;
            loop {
                let status = client.status().await;
                if status.as_ref().is_ok_and(&done) {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    return Err(status.map_or_else(|e| format!("{what}: {e}"), |s| describe(what, &s)));
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        self.work(what, within * 2, looking).await?
    }
}

impl Backup {
    /// Waits for it. The inner error is the cluster's or the client's own, with nothing promised; whether it may be is
    /// the caller's to judge.
    pub async fn acknowledged(self) -> Result<Result<Promise, Error>, Violation> {
        match finished("a backup", OPERATION, self.task).await? {
            Ok(summary) => promise(&self.world, self.label, &summary, self.tree).map(Ok),
            Err(error) => {
                event!(self.world, self.label, "backup refused: {error}");
                Ok(Err(error))
            }
        }
    }

    /// What it promised before its process died, if it came to that.
    pub async fn acknowledged_before_death(self) -> Option<Promise> {
        let summary = self.task.await.ok()?.ok()?;
        promise(&self.world, self.label, &summary, self.tree).ok()
    }
}

fn promise(world: &World, label: Label, summary: &backup::Summary, tree: Tree) -> Result<Promise, Violation> {
    let (id, owed) = (summary.snapshot.to_string(), summary.under_target);
    event!(world, label, "snapshot {id} acknowledged, {owed} packs under target");
    match summary.info.stats.unreadable {
        0 => Ok(Promise { id, tree }),
        unreadable => Err(format!("a readable tree had {unreadable} unreadable paths")),
    }
}

/// Waits for a task with a deadline in virtual time.
async fn finished<T>(what: &str, within: Duration, task: JoinHandle<T>) -> Result<T, Violation> {
    let ended = tokio::time::timeout(within, task).await;
    ended.map_err(|_| format!("live: {what} hangs"))?.map_err(|e| format!("{what} panicked: {e}"))
}

fn describe(what: &str, status: &ClusterStatus) -> String {
    let ClusterStatus { stale, under_target, unreadable, repair, nodes, .. } = status;
    let away = nodes.iter().filter(|n| !n.node.state.takes_shards()).count();
    format!(
        "{what}: stale {stale}, {away} nodes away, {under_target} packs under target, {unreadable} unreadable, \
         {} repairs queued, {} running, last error {:?}",
        repair.queued, repair.running, repair.last_error
    )
}

/// Puts what clients are told into the log of events.
struct Witness {
    world: World,
    label: Label,
}

impl Progress for Witness {
    fn event(&self, what: Event<'_>) {
        match what {
            Event::Problem { path, why } => {
                event!(self.world, self.label, "problem with {}: {why}", String::from_utf8_lossy(path))
            }
            Event::Notice { text } => event!(self.world, self.label, "notice: {text}"),
            Event::Stored { bytes, sent, degraded } => {
                event!(self.world, self.label, "stored {bytes} bytes as {sent}, degraded: {degraded}")
            }
            _ => {}
        }
    }
}
