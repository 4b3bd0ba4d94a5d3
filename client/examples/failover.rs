//! Measures how long a cluster takes no writes after its leader was killed, as a client sees it. It drives a running
//! `farshore dev`: writers open and close sessions all the time, each a committed command; round after round the leader is
//! killed by SIGKILL, the first write that began after that and was acknowledged is waited for, and the node is started
//! again.
//!
//! ```text
//! failover DEV_DIR FARSHORE_PROGRAM [rounds]
//! ```
#![expect(clippy::disallowed_methods, reason = "this program drives processes and measures them")]

use farshore_client::api::CatalogueApi;
use farshore_client::session::GrpcCatalogue;
use farshore_client::session::conversation::Conversation;
use farshore_client::session::grpc::Freshness;
use farshore_core::host::{Host, random, real};
use farshore_core::id::{RepoId, SessionId};
use farshore_core::topology::{Name, NodeState};
use farshore_proto::peers::Peers;
use farshore_proto::profile::Profile;
use farshore_proto::tls::Tls;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Writers beside the one that is measured.
const WRITERS: usize = 4;
/// After a restart the cluster is left alone for this long, so that rounds do not run into each other.
const REST: Duration = Duration::from_secs(3);

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [dir, program, rest @ ..] = args.as_slice() else {
        panic!("usage: failover DEV_DIR FARSHORE_PROGRAM [rounds]")
    };
    let rounds = rest.first().map_or(20, |rounds| rounds.parse().expect("a number of rounds"));
    let mut cluster = Cluster::find(dir.into(), program.into());
    let writer = Writer::connect(&cluster.profile()).await;
    let load = writer.load();
    println!("election timeouts: {}", cluster.election());
    let (mut times, mut gaps) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        cluster.wait_until_whole(&writer).await;
        load.lock().expect("no holder panics").clear();
        tokio::time::sleep(REST).await;
        let leader = writer.leader().await;
        cluster.kill(&leader);
        let killed = Instant::now();
        writer.write().await;
        let took = killed.elapsed();
        // The first write after it is not the end of the gap for each writer.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let (gap, acknowledged) = longest_gap(&load.lock().expect("no holder panics"));
        println!(
            "round {round:2}: {leader} killed, next committed write after {:6.3} s; longest pause between any two of \
             {acknowledged} writes {:6.3} s",
            took.as_secs_f64(),
            gap.as_secs_f64()
        );
        times.push(took);
        gaps.push(gap);
        cluster.start(&leader);
    }
    cluster.wait_until_whole(&writer).await;
    print(&mut times, "from the kill to the next committed write");
    print(&mut gaps, "longest pause between two acknowledged writes");
}

fn print(times: &mut [Duration], what: &str) {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() * share / 100).min(times.len() - 1)].as_secs_f64();
    println!("{what}: median {:.3} s, least {:.3} s, worst {:.3} s", at(50), at(0), at(100));
}

/// Between neighbours in time, and how many there are.
fn longest_gap(moments: &[Instant]) -> (Duration, usize) {
    let mut moments = moments.to_vec();
    moments.sort_unstable();
    let gaps = moments.windows(2).map(|pair| pair[1].duration_since(pair[0]));
    (gaps.max().unwrap_or_default(), moments.len())
}

/// What writes.
#[derive(Clone)]
struct Writer {
    host: Host,
    api: Arc<dyn CatalogueApi>,
    repo: RepoId,
    seen: Arc<AtomicU64>,
}

impl Writer {
    /// Asks the cluster as any client does.
    async fn connect(profile: &Path) -> Self {
        let text = std::fs::read_to_string(profile).expect("read the profile");
        let profile = Profile::parse(&text).expect("a profile");
        let host = real::client_host();
        let tls = Arc::new(Tls::new(&profile.credentials(), host.clock.clone()).expect("credentials"));
        let conversation =
            Conversation::new(host.net.clone(), tls.clone(), host.entropy.clone(), &profile.endpoints);
        let peers = Arc::new(Peers::new(host.net.clone(), tls));
        let conversation = Arc::new(conversation.expect("endpoints"));
        let api = Arc::new(GrpcCatalogue::new(conversation, peers, Freshness::Confirmed));
        let seen = Arc::new(AtomicU64::new(api.topology().await.expect("topology").applied));
        let name: Name = "dev".parse().expect("a name");
        let repo = api.get_repository(&name).await.expect("run `farshore init` first").id;
        Writer { host, api, repo, seen }
    }

    /// Two committed commands. The client repeats a call until its budget is spent, and so do we.
    async fn write(&self) {
        let session = SessionId(random(self.host.entropy.as_ref()));
        loop {
            let seen = self.seen.load(Ordering::Relaxed);
            match self.api.open_session(session, self.repo, seen).await {
                Ok(open) => {
                    self.seen.fetch_max(open.opened, Ordering::Relaxed);
                    break;
                }
                Err(error) => eprintln!("open a session: {error}"),
            }
        }
        while let Err(error) = self.api.close_session(session).await {
            eprintln!("close a session: {error}");
        }
    }

    /// Writes without end; gives the moments at which a write was acknowledged.
    fn load(&self) -> Arc<Mutex<Vec<Instant>>> {
        let moments = Arc::new(Mutex::new(Vec::new()));
        for _ in 0..WRITERS {
            let (writer, moments) = (self.clone(), moments.clone());
            tokio::spawn(async move {
                loop {
                    writer.write().await;
                    moments.lock().expect("no holder panics").push(Instant::now());
                }
            });
        }
        moments
    }

    /// The leader's name, once one is known and confirmed.
    async fn leader(&self) -> String {
        loop {
            if let Ok(status) = self.api.status().await
                && let Some(leader) = status.leader.filter(|_| !status.stale)
                && let Some(node) = status.nodes.iter().find(|n| n.node.id == leader)
            {
                return node.node.name.to_string();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The processes of a development cluster.
struct Cluster {
    dir: PathBuf,
    program: PathBuf,
    /// Nodes that `dev` started and that were not killed since.
    pids: BTreeMap<String, u64>,
    /// Nodes that this program started again.
    own: BTreeMap<String, Child>,
}

impl Cluster {
    fn find(dir: PathBuf, program: PathBuf) -> Self {
        let text = std::fs::read_to_string(dir.join("cluster.json")).expect("read cluster.json");
        let known: Value = serde_json::from_str(&text).expect("cluster.json is JSON");
        let nodes = known["nodes"].as_array().expect("nodes");
        let pid = |node: &Value| Some((node["name"].as_str()?.to_owned(), node["pid"].as_u64()?));
        let pids = nodes.iter().filter_map(pid).collect();
        Cluster { dir, program, pids, own: BTreeMap::new() }
    }

    fn profile(&self) -> PathBuf {
        self.dir.join("profile.toml")
    }

    /// As the nodes are configured, or the defaults.
    fn election(&self) -> String {
        let tuning = tuned(&self.dir);
        if tuning.is_empty() { "the defaults (docs/operations.md)".into() } else { tuning }
    }

    fn kill(&mut self, name: &str) {
        if let Some(mut child) = self.own.remove(name) {
            child.kill().expect("kill a node");
            child.wait().expect("wait for it");
            return;
        }
        let pid = self.pids.remove(name).expect("a node that runs");
        let status = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("run kill");
        assert!(status.success(), "kill -9 {pid}");
    }

    fn start(&mut self, name: &str) {
        let config = self.dir.join("nodes").join(name).join("node.toml");
        let mut command = Command::new(&self.program);
        command.args(["node", "run", "--config"]).arg(config);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        self.own.insert(name.into(), child.expect("start a node"));
    }

    /// Every node is up, and some leader has confirmed it.
    async fn wait_until_whole(&self, writer: &Writer) {
        let nodes = self.pids.len() + self.own.len();
        loop {
            let up = |status: farshore_client::api::ClusterStatus| {
                let up = status.nodes.iter().filter(|n| n.node.state == NodeState::Up).count();
                !status.stale && up == nodes && status.nodes.iter().all(|n| n.silent_ms < 2_000)
            };
            if writer.api.status().await.is_ok_and(up) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.own.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Lines of a node's configuration that concern elections.
fn tuned(dir: &Path) -> String {
    let nodes = std::fs::read_dir(dir.join("nodes")).expect("read the nodes' directories");
    let first = nodes.flatten().next().expect("a node");
    let text = std::fs::read_to_string(first.path().join("node.toml")).expect("read node.toml");
    let lines = text.lines().filter(|line| line.starts_with("election") || line.starts_with("heartbeat"));
    lines.collect::<Vec<_>>().join(", ")
}
