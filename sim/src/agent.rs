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
use futures_util::future::BoxFuture;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// One operation ends by then, whatever happens around it.
const OPERATION: Duration = Duration::from_secs(400);
/// Backups are short here, and so is the time between their checkpoints.
const CHECKPOINT_MS: u64 = 700;
/// What every repository opens with.
pub const PASSPHRASE: &str = "far from the shore, 1 light";
/// What a client is told that writes while a cold migration is under way; whether one is, is for the run to say.
pub const FROZEN: &str = "nothing is written while region";
/// What a client is told whose packs are coded for a policy that has changed twice since its backup began.
pub const OUTDATED: &str = "in a region survives the policy's";
/// Pause between two looks at the cluster.
const LOOK: Duration = Duration::from_millis(500);

/// What a client was promised: an acknowledged snapshot and the tree it must give back.
pub struct Promise {
    /// The repository's number in this world.
    pub repository: usize,
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
    host_name: String,
    client: Client,
    repositories: Vec<Repository>,
    source: Arc<SimSource>,
}

/// A backup under way.
pub struct Backup {
    world: World,
    label: Label,
    repository: usize,
    task: JoinHandle<Result<backup::Summary, Error>>,
    tree: Tree,
}

/// Why an operation gave nothing.
#[derive(Debug)]
pub enum Failure {
    /// The client said so itself, with a typed error. Whether it may is for the faults of the moment to say.
    Refused(String),
    /// Its process ended.
    Died,
    /// A promise was broken.
    Broken(Violation),
}

impl Failure {
    /// What an error of the library amounts to: some that no fault of a machine or link can excuse.
    fn of(error: &Error) -> Self {
        let text = error.to_string();
        match error {
            Error::Refused(why) if why.contains(FROZEN) => Failure::Refused(text),
            Error::Invalid(why) if why.contains(OUTDATED) => Failure::Refused(text),
            Error::Corrupt { .. } => Failure::Broken(format!("verified: a client was given this: {text}")),
            Error::WrongPassword(_)
            | Error::Credential(_)
            | Error::RepositoryMissing(_)
            | Error::SnapshotMissing(_)
            | Error::SnapshotAmbiguous { .. }
            | Error::PathMissing { .. }
            | Error::Refused(_)
            | Error::Local { .. }
            | Error::Invalid(_)
            | Error::Protocol(_) => {
                Failure::Broken(format!("live: a client was told what no fault excuses: {text}"))
            }
            _ => Failure::Refused(text),
        }
    }
}

impl Agent {
    /// Connects as soon as the cluster answers and knows `nodes` nodes, and makes a repository.
    pub async fn enter(cluster: &mut Cluster, nodes: usize, within: Duration) -> Result<Self, Violation> {
        let made = Self::begin(cluster, "sim", move |client| async move {
            let deadline = Instant::now() + within;
            while client.status().await.map_or(0, |s| s.nodes.len()) < nodes {
                if Instant::now() > deadline {
                    return Err("live: the cluster does not form".to_string());
                }
                tokio::time::sleep(LOOK).await;
            }
            let made =
                client.create_repository("sim", Policy::default(), PASSPHRASE, KdfParams::CHEAPEST).await;
            made.map(|repository| vec![repository]).map_err(|e| format!("live: no repository: {e}"))
        });
        made?.await
    }

    /// Another client, which opens the repository.
    pub async fn succeed(cluster: &mut Cluster) -> Result<Self, Violation> {
        let opened = Self::begin(cluster, "sim", |client| async move {
            let opened = client.open_repository("sim", PASSPHRASE).await;
            opened
                .map(|repository| vec![repository])
                .map_err(|e| format!("live: the repository does not open: {e}"))
        });
        opened?.await
    }

    /// Another client, which opens the first repositories of a drawn world.
    pub async fn succeed_all(cluster: &mut Cluster, count: usize) -> Result<Self, Violation> {
        let opened = Self::begin(cluster, "inspector", move |client| async move {
            let mut opened = Vec::new();
            for number in 0..count {
                let name = crate::plan::repository_name(number);
                let repository = client.open_repository(&name, PASSPHRASE).await;
                opened.push(repository.map_err(|e| format!("live: repository {name} does not open: {e}"))?);
            }
            Ok(opened)
        });
        opened?.await
    }

    /// A new process that connects and comes by its repositories as `open` says. The process is there on return; the
    /// future ends when it is ready for work.
    pub fn begin<F>(
        cluster: &mut Cluster,
        host_name: &str,
        open: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Result<impl Future<Output = Result<Self, Violation>> + Send + 'static, Violation>
    where
        F: Future<Output = Result<Vec<Repository>, Violation>> + Send,
    {
        let profile = cluster.profile("sim")?;
        let (scope, label, seed, host) = cluster.client_host();
        let (world, host_name) = (cluster.world.clone(), host_name.to_string());
        let history = cluster.history.clone();
        let opening = scope.spawn(seed, async move {
            let client = connect(host, profile).await?.with_catalogue(|api| history.wrap(api, label));
            let repositories = open(client.clone()).await?;
            Ok::<_, Violation>((client, repositories))
        });
        Ok(async move {
            let (client, repositories) = opening.await.map_err(|e| format!("the client panicked: {e}"))??;
            event!(world, label, "repositories open");
            let source = Arc::new(SimSource::new(Tree::new()));
            Ok(Agent {
                world,
                label,
                scope,
                seed,
                tasks: AtomicU64::new(2),
                host_name,
                client,
                repositories,
                source,
            })
        })
    }

    /// Its library, for what this file has no word for.
    pub fn client(&self) -> &Client {
        &self.client
    }
    /// One of the repositories it has opened.
    pub fn repository(&self, number: usize) -> Repository {
        self.repositories[number].clone()
    }
    /// The process.
    pub fn scope(&self) -> &Scope {
        &self.scope
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
        self.begin_backup(0, tree, SnapshotKind::Incremental)
    }

    /// Begins to back a tree up into one of the repositories.
    pub fn begin_backup(&self, number: usize, tree: &Tree, kind: SnapshotKind) -> Backup {
        self.source.set(tree.clone());
        let (repository, source, witness) =
            (self.repositories[number].clone(), self.source.clone(), self.witness());
        let options = backup::Options {
            paths: vec![b"/src".to_vec()],
            kind,
            host_name: self.host_name.clone(),
            user: "sim".into(),
            checkpoint_ms: Some(CHECKPOINT_MS),
            ..backup::Options::default()
        };
        let task = self.spawn(async move { repository.backup(&options, source, witness).await });
        Backup { world: self.world.clone(), label: self.label, repository: number, task, tree: tree.clone() }
    }

    /// Bytes of file contents that backups have read since the last call.
    pub fn take_bytes_read(&self) -> u64 {
        self.source.take_bytes_read()
    }

    /// Begins to restore a snapshot and compares it with what was promised.
    pub fn begin_restore(
        &self,
        promise: Arc<Promise>,
    ) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let (repository, id, target) =
            (self.repositories[promise.repository].clone(), promise.id.clone(), SimTarget::default());
        let (into, witness, world, label) = (target.clone(), self.witness(), self.world.clone(), self.label);
        let task = self.spawn(async move {
            let (snapshot, _) = repository.resolve(id.as_bytes(), &Filter::default()).await?;
            repository.restore(&snapshot, &restore::Options::default(), &into, witness.as_ref()).await
        });
        async move {
            let summary = ended(task).await?;
            let (problems, found) = (summary.problems, target.tree());
            let missing = |line: &&String| problems > 0 && line.ends_with(tree::MISSING);
            let differences = tree::differences(&promise.tree, &found);
            // An empty directory whose listing cannot be read is a problem that leaves no difference.
            let wrong = differences.iter().find(|line| !missing(line));
            event!(
                world,
                label,
                "restored {}, {problems} problems, {} differences",
                promise.id,
                differences.len()
            );
            match wrong {
                Some(first) => Err(Failure::Broken(format!(
                    "durable: snapshot {} came back different: {first}",
                    promise.id
                ))),
                None if problems > 0 => {
                    Err(Failure::Refused(format!("{problems} files could not be restored")))
                }
                None => Ok(()),
            }
        }
    }

    /// Restores a snapshot, which must succeed, and compares it with what was promised.
    pub async fn verify(&self, promise: &Arc<Promise>) -> Result<(), Violation> {
        let restore = tokio::time::timeout(OPERATION, self.begin_restore(promise.clone())).await;
        restore.map_err(|_| "live: a restore hangs".to_string())?.map_err(|failure| match failure {
            Failure::Broken(violation) => violation,
            Failure::Refused(why) => format!("durable: snapshot {} does not restore: {why}", promise.id),
            Failure::Died => "a restore ended with its client".into(),
        })
    }

    /// Lists the snapshots of a repository by id.
    pub fn begin_list(
        &self,
        number: usize,
    ) -> impl Future<Output = Result<Vec<String>, Failure>> + Send + use<> {
        let repository = self.repositories[number].clone();
        let task = self.spawn(async move { repository.snapshots(&Filter::default()).await });
        async move { Ok(ended(task).await?.iter().map(|snapshot| snapshot.id.to_string()).collect()) }
    }

    /// Any other call of the library.
    pub fn begin_call<T: Send + 'static>(
        &self,
        call: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> BoxFuture<'static, Result<T, Failure>> {
        let task = self.spawn(call);
        Box::pin(ended(task))
    }

    /// Has every node re-read all its shards.
    pub async fn scrub(&self) -> Result<ScrubResult, Violation> {
        let client = self.client.clone();
        let result = self.work("a scrub", OPERATION, async move { client.scrub().await }).await?;
        let result = result.map_err(|e| format!("live: a scrub does not run: {e}"))?;
        event!(self.world, self.label, "scrubbed {result:?}");
        Ok(result)
    }

    /// Reads every shard of every pack and opens every chunk.
    pub async fn check(&self) -> Result<(), Violation> {
        for number in 0..self.repositories.len() {
            let report = finished("a check", OPERATION, self.checking(number)).await?;
            let report = report.map_err(|e| format!("live: a check does not run: {e}"))?;
            report.verdict().map_err(|e| format!("heals: {e}: {:?} {:?}", report.broken, report.damaged))?;
        }
        Ok(())
    }

    /// Begins to check a repository; damage found is a refusal.
    pub fn begin_check(&self, number: usize) -> impl Future<Output = Result<(), Failure>> + Send + use<> {
        let task = self.checking(number);
        async move { ended(task).await?.verdict().map_err(|e| Failure::Refused(e.to_string())) }
    }

    fn checking(&self, number: usize) -> JoinHandle<Result<check::Report, Error>> {
        let (repository, witness) = (self.repositories[number].clone(), self.witness());
        let options = check::Options { read: check::Subset::All };
        self.spawn(async move { repository.check(options, witness.as_ref()).await })
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
    pub async fn acknowledged(self) -> Result<Result<Promise, String>, Violation> {
        let ended = tokio::time::timeout(OPERATION, self.ended()).await;
        match ended.map_err(|_| "live: a backup hangs".to_string())? {
            Ok((promise, _)) => Ok(Ok(promise)),
            Err(Failure::Refused(why)) => Ok(Err(why)),
            Err(Failure::Broken(violation)) => Err(violation),
            Err(Failure::Died) => Err("a backup ended with its client".into()),
        }
    }

    /// What it promised before its process died, if it came to that.
    pub async fn acknowledged_before_death(self) -> Option<Promise> {
        self.ended().await.ok().map(|(promise, _)| promise)
    }

    /// Waits for it: what was promised, and how many of its packs are not at full strength yet.
    pub async fn ended(self) -> Result<(Promise, u32), Failure> {
        let summary = match ended(self.task).await {
            Err(Failure::Refused(error)) => {
                event!(self.world, self.label, "backup refused: {error}");
                return Err(Failure::Refused(error));
            }
            other => other?,
        };
        let saved = summary.snapshot.ok_or_else(|| Failure::Broken("no snapshot was saved".into()))?;
        let (id, owed) = (saved.to_string(), summary.under_target);
        event!(self.world, self.label, "snapshot {id} acknowledged, {owed} packs under target");
        match summary.info.stats.unreadable {
            0 => Ok((Promise { repository: self.repository, id, tree: self.tree }, owed)),
            paths => Err(Failure::Broken(format!("whole: a readable tree had {paths} unreadable paths"))),
        }
    }
}

/// How a task of a client ended.
async fn ended<T>(task: JoinHandle<Result<T, Error>>) -> Result<T, Failure> {
    match task.await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Failure::of(&error)),
        Err(e) if e.is_cancelled() => Err(Failure::Died),
        Err(e) => Err(Failure::Broken(format!("live: a client panicked: {e}"))),
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
