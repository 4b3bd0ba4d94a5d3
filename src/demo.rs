//! `farshore demo`: the whole story on this machine, with nothing to set up. Every line of its table was measured.

use crate::args::DemoArgs;
use crate::dev::{DevCluster, Shape};
use crate::exit::{self, Exit};
use crate::trees::{self, Extent};
use farshore_client::api::ClusterStatus;
use farshore_client::crypto::KdfParams;
use farshore_client::files::{How, RealSource, RealTarget};
use farshore_client::progress::Silent;
use farshore_client::{Client, Repository, backup, check, restore};
use farshore_core::catalogue::SnapshotKind;
use farshore_core::policy::Policy;
use farshore_core::topology::NodeState;
use farshore_core::units::Bytes;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Silence before the shards of a killed node are rebuilt elsewhere. Short, since nobody wants to watch a quarter hour.
const GRACE: &str = "6s";
/// What is waited for must come by then, or the demo has failed.
const PATIENCE: Duration = Duration::from_secs(300);
/// The region that dies.
const VICTIM: &str = "cloud-b/south";

/// One line of the table.
struct Step {
    what: String,
    seconds: f64,
    result: String,
    held: bool,
}

struct Story {
    steps: Vec<Step>,
    begun: Instant,
}

impl Story {
    fn tell(&mut self, what: impl Into<String>, result: impl Into<String>, held: bool) {
        let (what, result) = (what.into(), result.into());
        let seconds = self.begun.elapsed().as_secs_f64();
        let mark = if held { "ok  " } else { "FAIL" };
        println!("{mark} {seconds:>6.1} s  {what:<44} {result}");
        self.steps.push(Step { what, seconds, result, held });
        self.begun = Instant::now();
    }
}

/// Runs the demo. Exit code 0 only if everything held.
pub async fn run(args: DemoArgs) -> Result<u8, Exit> {
    let start = Instant::now();
    let work = Work::new(args.dir)?;
    let source = match args.path {
        Some(path) => path.canonicalize().map_err(|e| Exit::failure(format!("{}: {e}", path.display())))?,
        None => {
            let tree = work.path.join("source");
            std::fs::create_dir_all(&tree).map_err(Exit::failure)?;
            trees::generate(&tree)?;
            // Files this young would be read again next time, since their times prove nothing yet.
            tokio::time::sleep(Duration::from_millis(2_100)).await;
            tree
        }
    };
    println!("farshore demo: six nodes in three regions on this machine, working in {}", work.path.display());
    let mut story = Story { steps: Vec::new(), begun: Instant::now() };
    let told = tokio::select! {
        biased;
        _ = crate::node::stop_signal() => Err(Exit::code(exit::INTERRUPTED, "interrupted")),
        told = tell(&mut story, &work.path, &source) => told,
    };
    if let Err(Exit { code: exit::INTERRUPTED, .. }) = &told {
        return told.map(|()| exit::OK);
    }
    let held = told.is_ok() && story.steps.iter().all(|step| step.held);
    println!("\n{}", table(&story.steps));
    println!(
        "{} in {:.1} s",
        if held { "Everything held" } else { "NOT everything held" },
        start.elapsed().as_secs_f64()
    );
    if !held && work.temporary {
        println!("The logs stay in {}", work.keep().display());
    }
    told.map(|()| if held { exit::OK } else { exit::FAILURE })
}

async fn tell(story: &mut Story, work: &Path, source: &Path) -> Result<(), Exit> {
    let shape = Shape { regions: 3, nodes_per_region: 2, grace: GRACE.into() };
    let extent = trees::measure(source)?;
    story.begun = Instant::now();
    let mut cluster = DevCluster::start(&work.join("cluster"), &shape).await?;
    let client = cluster.client().await?;
    cluster.ready(&client).await?;
    let (nodes, regions) = (cluster.children.len(), cluster.regions().len());
    story.tell(format!("start {nodes} nodes in {regions} regions, mutual TLS"), "a leader is elected", true);

    let policy = Policy::default();
    let repository = client.create_repository("demo", policy, "demo", KdfParams::default()).await?;
    story.begun = Instant::now();
    let first = save(&repository, source, SnapshotKind::Full).await?;
    let whole = first.info.stats.unreadable == 0 && first.under_target == 0;
    story.tell(format!("back up {}", describe(extent)), stored(&first), whole);

    let again = save(&repository, source, SnapshotKind::Incremental).await?;
    let nothing = again.info.stats.data_blobs == 0;
    let read = Bytes(again.info.stats.bytes_read);
    story.tell(
        "back up again, nothing changed",
        format!("{read} read, {} sent", Bytes(again.info.stats.bytes_sent)),
        nothing,
    );

    for at in cluster.of_region(VICTIM) {
        cluster.children[at].kill();
    }
    story.tell(format!("kill -9 every node of {VICTIM}"), "a third of all shards is gone", true);

    let new = something_new(work)?;
    story.begun = Instant::now();
    let degraded = save(&repository, &new, SnapshotKind::Incremental).await?;
    let owed = format!("accepted, {} packs under target", degraded.under_target);
    story.tell("back up something new meanwhile", owed, degraded.under_target > 0);

    bring_back(story, &repository, &first, source, work, "restore while the region is gone").await?;
    comes_back(story, &mut cluster, &client).await?;
    let idle = |s: &ClusterStatus| s.under_target + s.unreadable + s.repair.queued + s.repair.running == 0;
    let status = until(&client, idle).await?;
    let good = status.under_target == 0 && status.unreadable == 0;
    let result = format!(
        "{} shards rebuilt, {} of {} packs at full strength",
        status.repair.rebuilt,
        status.packs - status.under_target,
        status.packs
    );
    story.tell("the cluster repairs itself", result, good);

    let report = repository.check(check::Options { read: check::Subset::All }, &Silent).await?;
    story.tell("read back every shard of every pack", check_result(&report), report.verdict().is_ok());
    bring_back(story, &repository, &degraded, &new, work, "restore what was saved meanwhile").await?;
    cluster.stop().await;
    Ok(())
}

/// The region returns, but one of its machines with an empty disk: it joins as a new node.
async fn comes_back(story: &mut Story, cluster: &mut DevCluster, client: &Client) -> Result<(), Exit> {
    let victims = cluster.of_region(VICTIM);
    // The first node of each region votes in the Raft group; the other one only stores.
    let Some(&emptied) = victims.last() else { return Err(Exit::failure("the region has no nodes")) };
    cluster.replace_disk(emptied)?;
    for at in victims {
        cluster.children[at].start()?;
    }
    cluster.ready(client).await?;
    story.tell(format!("{VICTIM} returns, one disk is empty"), "it joins as a new node", true);
    // Whoever had the old disk is gone for good; the cluster decides so when the grace period ends.
    let in_state = |s: &ClusterStatus, state| s.nodes.iter().filter(|n| n.node.state == state).count();
    let running = cluster.children.len();
    until(client, |s| in_state(s, NodeState::Lost) > 0 && in_state(s, NodeState::Up) == running).await?;
    story.tell(format!("wait out the grace period ({GRACE})"), "what was on the old disk is given up", true);
    Ok(())
}

/// The first status that satisfies `done`, or the last one when time is up.
async fn until(client: &Client, done: impl Fn(&ClusterStatus) -> bool) -> Result<ClusterStatus, Exit> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = client.status().await?;
        if (!status.stale && done(&status)) || Instant::now() > deadline {
            return Ok(status);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn save(repository: &Repository, tree: &Path, kind: SnapshotKind) -> Result<backup::Summary, Exit> {
    let options = backup::Options {
        paths: vec![tree.as_os_str().as_bytes().to_vec()],
        kind,
        host_name: "demo".into(),
        user: "demo".into(),
        ..backup::Options::default()
    };
    let source = Arc::new(RealSource::new(repository.host().compute.clone()));
    Ok(repository.backup(&options, source, Arc::new(Silent)).await?)
}

/// Restores a snapshot and compares it with the tree it was made from.
async fn bring_back(
    story: &mut Story,
    repository: &Repository,
    saved: &backup::Summary,
    tree: &Path,
    work: &Path,
    what: &str,
) -> Result<(), Exit> {
    let into = work.join("restored");
    std::fs::create_dir_all(&into).map_err(Exit::failure)?;
    let id = saved.snapshot.ok_or_else(|| Exit::failure("no snapshot was saved"))?;
    let snapshot = repository.resolve(id.to_string().as_bytes(), &Default::default()).await?.0;
    let options =
        restore::Options { root: Some(tree.as_os_str().as_bytes().to_vec()), ..restore::Options::default() };
    let target = RealTarget::open(repository.host(), &into, How::default()).await.map_err(Exit::failure)?;
    let summary = repository.restore(&snapshot, &options, &target, &Silent).await?;
    story.tell(what, format!("{} files, {}", summary.files, Bytes(summary.bytes)), summary.problems == 0);
    let differences = trees::differences(tree, &into, 5)?;
    differences.iter().for_each(|line| println!("     {line}"));
    let result =
        if differences.is_empty() { "identical: bytes, modes, owners, times, links" } else { "DIFFERENT" };
    story.tell("compare byte by byte", result, differences.is_empty());
    std::fs::remove_dir_all(&into).map_err(Exit::failure)
}

/// A small tree beside the source. What the user pointed at is never written to.
fn something_new(work: &Path) -> Result<PathBuf, Exit> {
    let tree = work.join("new");
    std::fs::create_dir_all(&tree).map_err(Exit::failure)?;
    trees::add_something(&tree)?;
    Ok(tree)
}

fn describe(extent: Extent) -> String {
    format!("{} files, {}", extent.files, Bytes(extent.bytes))
}

fn stored(summary: &backup::Summary) -> String {
    let s = &summary.info.stats;
    format!("{} packed, {} sent as {}", Bytes(s.bytes_packed), Bytes(s.bytes_sent), summary.scheme)
}

fn check_result(report: &check::Report) -> String {
    let bad: usize = report.damaged.iter().map(|pack| pack.shards.len()).sum();
    format!("{} shards, {} chunks read, {bad} bad", report.shards, report.chunks)
}

fn table(steps: &[Step]) -> String {
    let width = |of: fn(&Step) -> &str| steps.iter().map(|s| of(s).chars().count()).max().unwrap_or(0);
    let (what, result) = (width(|s| &s.what), width(|s| &s.result));
    let line = format!("+-{}-+----------+-{}-+------+\n", "-".repeat(what), "-".repeat(result));
    let mut out = line.clone();
    for step in steps {
        let held = if step.held { "held" } else { "FAIL" };
        out += &format!(
            "| {:<what$} | {:>6.1} s | {:<result$} | {held} |\n",
            step.what, step.seconds, step.result
        );
    }
    out + &line
}

/// Where the demo works.
struct Work {
    path: PathBuf,
    temporary: bool,
    kept: std::cell::Cell<bool>,
}

impl Work {
    fn new(dir: Option<PathBuf>) -> Result<Self, Exit> {
        let temporary = dir.is_none();
        let path =
            dir.unwrap_or_else(|| std::env::temp_dir().join(format!("farshore-demo-{}", std::process::id())));
        if std::fs::read_dir(&path).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(Exit::failure(format!(
                "{} is not empty; the demo needs a directory of its own",
                path.display()
            )));
        }
        std::fs::create_dir_all(&path)
            .map_err(|e| Exit::failure(format!("cannot create {}: {e}", path.display())))?;
        let path = path.canonicalize().map_err(Exit::failure)?;
        Ok(Work { path, temporary, kept: std::cell::Cell::new(false) })
    }
    fn keep(&self) -> &Path {
        self.kept.set(true);
        &self.path
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.temporary && !self.kept.get() {
            // A temporary directory that cannot be removed is the system's to clear.
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}
