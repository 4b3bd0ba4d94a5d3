//! A client as a simulated process: it backs up, restores, compares and asks for the cluster's state, each as a task of
//! its own with a deadline in virtual time. It remembers what it was promised.

use crate::cluster::{Cluster, Violation, connect};
use crate::event;
use crate::net::Label;
use crate::tree::{self, SimSource, SimTarget, Tree};
use crate::world::World;
use farshore_client::api::ClusterStatus;
use farshore_client::crypto::KdfParams;
use farshore_client::list::Filter;
use farshore_client::progress::{Event, Progress};
use farshore_client::{Client, Error, Repository, backup, restore};
use farshore_core::catalogue::SnapshotKind;
use farshore_core::host::task::{Scope, splitmix};
use farshore_core::policy::Policy;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
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

impl Agent {
    /// Connects as soon as the cluster answers and knows `nodes` nodes, and makes a repository.
    pub async fn enter(cluster: &mut Cluster, nodes: usize, within: Duration) -> Result<Self, Violation> {
        let profile = cluster.profile("sim")?;
        let (scope, label, seed, host) = cluster.client_host();
        let opening = scope.spawn(seed, async move {
            let client = connect(host, profile).await?;
            let deadline = Instant::now() + within;
            while client.status().await.map_or(0, |s| s.nodes.len()) < nodes {
                if Instant::now() > deadline {
                    return Err("live: the cluster does not form".to_string());
                }
                tokio::time::sleep(LOOK).await;
            }
            let made = client.create_repository("sim", Policy::default(), "sim", KdfParams::CHEAPEST).await;
            Ok((client, made.map_err(|e| format!("live: no repository: {e}"))?))
        });
        let (client, repository) = opening.await.map_err(|e| format!("the client panicked: {e}"))??;
        let world = cluster.world.clone();
        event!(world, label, "repository made");
        let source = Arc::new(SimSource::new(Tree::new()));
        Ok(Agent { world, label, scope, seed, tasks: AtomicU64::new(2), client, repository, source })
    }

    /// Runs a piece of work as a task of this client, with a deadline in virtual time.
    async fn work<T: Send + 'static>(
        &self,
        what: &str,
        within: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Violation> {
        let seed = splitmix(self.seed, self.tasks.fetch_add(1, Ordering::Relaxed));
        let task = self.scope.spawn(seed, work);
        let ended = tokio::time::timeout(within, task).await;
        ended.map_err(|_| format!("live: {what} hangs"))?.map_err(|e| format!("{what} panicked: {e}"))
    }

    fn witness(&self) -> Arc<Witness> {
        Arc::new(Witness { world: self.world.clone(), label: self.label })
    }

    /// Backs a tree up. An error is the cluster's or the client's own, with nothing promised; whether it may be is the
    /// caller's to judge.
    pub async fn back_up(&self, tree: &Tree) -> Result<Result<Promise, Error>, Violation> {
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
        let run = async move { repository.backup(&options, source, witness).await };
        let summary = match self.work("a backup", OPERATION, run).await? {
            Ok(summary) => summary,
            Err(error) => {
                event!(self.world, self.label, "backup refused: {error}");
                return Ok(Err(error));
            }
        };
        let (id, owed) = (summary.snapshot.to_string(), summary.under_target);
        event!(self.world, self.label, "snapshot {id} acknowledged, {owed} packs under target");
        if summary.info.stats.unreadable > 0 {
            return Err(format!("a readable tree had {} unreadable paths", summary.info.stats.unreadable));
        }
        Ok(Ok(Promise { id, tree: tree.clone() }))
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

    /// Restores and compares every snapshot.
    pub async fn verify_all(&self, promises: &[Promise]) -> Result<(), Violation> {
        for promise in promises {
            self.verify(promise).await?;
        }
        Ok(())
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
