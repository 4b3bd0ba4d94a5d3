//! A real cluster on this machine: child processes, mTLS, loopback, real files. `farshore dev` keeps one running until
//! Ctrl-C; `farshore demo` drives one through its story.

use crate::args::DevArgs;
use crate::children::Child;
use crate::exit::{self, Exit};
use crate::setup::{self, NewNode, Placing, node_dir};
use farshore_client::Client;
use farshore_client::api::ClusterStatus;
use farshore_core::host::random;
use farshore_core::host::real::{self, OsEntropy};
use farshore_core::topology::{Name, NodeState};
use farshore_proto::profile::Profile;
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::time::Instant;

/// What a new development cluster should look like.
pub struct Shape {
    /// Number of regions.
    pub regions: u8,
    /// Nodes in each.
    pub nodes_per_region: u8,
    /// Silence before a node's shards are rebuilt elsewhere, as text.
    pub grace: String,
}

/// What is remembered of a node between runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct NodeFile {
    name: Name,
    region: String,
    addr: String,
}

/// A running development cluster.
pub struct DevCluster {
    /// Its directory.
    pub dir: PathBuf,
    /// One child a node, in a fixed order.
    pub children: Vec<Child>,
    nodes: Vec<NodeFile>,
    _lock: fs::File,
}

/// A cluster of this many processes must be ready by then, on a slow machine too.
const READY: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(100);

impl DevCluster {
    /// Starts a new cluster in `dir`, or resumes the one that is there.
    pub async fn start(dir: &Path, shape: &Shape) -> Result<Self, Exit> {
        fs::create_dir_all(dir)
            .map_err(|e| Exit::failure(format!("cannot create {}: {e}", dir.display())))?;
        let dir = dir.canonicalize().map_err(|e| Exit::failure(format!("{}: {e}", dir.display())))?;
        let lock = lock(&dir).await?;
        // A reader who waits for this file must not find the one of an earlier run.
        let _ = fs::remove_file(dir.join("cluster.json"));
        let known = dir.join("nodes.json");
        if !known.exists() {
            create(&dir, shape)?;
        }
        let text =
            fs::read_to_string(&known).map_err(|e| Exit::failure(format!("{}: {e}", known.display())))?;
        let nodes: Vec<NodeFile> =
            serde_json::from_str(&text).map_err(|e| Exit::failure(format!("{}: {e}", known.display())))?;
        let children = nodes.iter().map(|n| Child::new(n.name.as_str(), &node_dir(&dir, &n.name))).collect();
        let mut cluster = DevCluster { dir, children, nodes, _lock: lock };
        for child in &mut cluster.children {
            child.start()?;
        }
        Ok(cluster)
    }

    /// Path of the operator's profile.
    pub fn profile_path(&self) -> PathBuf {
        self.dir.join("profile.toml")
    }

    /// A client with the operator's rights.
    pub async fn client(&self) -> Result<Client, Exit> {
        let path = self.profile_path();
        let text =
            fs::read_to_string(&path).map_err(|e| Exit::failure(format!("{}: {e}", path.display())))?;
        let profile = Profile::parse(&text).map_err(|e| Exit::failure(format!("{}: {e}", path.display())))?;
        Client::connect(real::client_host(), profile).await.map_err(Exit::failure)
    }

    /// Waits until every running node is known and up, and writes `cluster.json` and `env`.
    pub async fn ready(&mut self, client: &Client) -> Result<ClusterStatus, Exit> {
        let deadline = Instant::now() + READY;
        loop {
            if let Some((name, how)) = self.ended() {
                let words = self.children.iter().find(|c| c.name == name).map(Child::last_words);
                return Err(Exit::failure(format!(
                    "node {name} ended ({how}): {}",
                    words.unwrap_or_default()
                )));
            }
            let running = self.children.iter().filter(|c| c.running()).count();
            match client.status().await {
                Ok(status) if up(&status) >= running && !status.stale => {
                    self.write_files(&status)?;
                    return Ok(status);
                }
                answer if Instant::now() > deadline => {
                    let seen = answer
                        .map_or_else(|e| e.to_string(), |s| format!("{} of {running} nodes up", up(&s)));
                    return Err(Exit::failure(format!("the cluster is not ready: {seen}; see nodes/*/log")));
                }
                _ => tokio::time::sleep(POLL).await,
            }
        }
    }

    /// A child that has ended by itself since the last call, and how.
    pub fn ended(&mut self) -> Option<(String, String)> {
        self.children.iter_mut().find_map(|c| c.ended().map(|how| (c.name.clone(), how)))
    }

    /// Positions of the nodes of a region.
    pub fn of_region(&self, region: &str) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&i| self.nodes[i].region == region).collect()
    }

    /// Regions, in order, each once.
    pub fn regions(&self) -> Vec<String> {
        let mut regions: Vec<String> = self.nodes.iter().map(|n| n.region.clone()).collect();
        regions.dedup();
        regions
    }

    /// Puts an empty disk into a stopped node. With its disk it has lost its promises, so it comes back as a new node.
    pub fn replace_disk(&mut self, at: usize) -> Result<(), Exit> {
        let data = node_dir(&self.dir, &self.nodes[at].name).join("data");
        fs::remove_dir_all(&data)
            .map_err(|e| Exit::failure(format!("cannot remove {}: {e}", data.display())))?;
        setup::renew_identity(&self.dir, &self.nodes[at].name)?;
        Ok(())
    }

    /// Stops all nodes in good order.
    pub async fn stop(mut self) {
        self.children.iter_mut().for_each(Child::terminate);
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && self.children.iter().any(Child::running) {
            let _ = self.ended();
            tokio::time::sleep(POLL).await;
        }
        // Dropping a child kills what did not listen.
    }

    fn write_files(&self, status: &ClusterStatus) -> Result<(), Exit> {
        #[derive(Serialize)]
        struct Row<'a> {
            id: String,
            name: &'a str,
            region: &'a str,
            addr: &'a str,
            /// No HTTP listener exists yet.
            http: Option<String>,
            pid: Option<u32>,
            data_dir: PathBuf,
            voter: bool,
        }
        #[derive(Serialize)]
        struct File<'a> {
            nodes: Vec<Row<'a>>,
            profile: PathBuf,
        }
        let rows = self.nodes.iter().zip(&self.children).map(|(node, child)| {
            let known = status.nodes.iter().rfind(|n| {
                n.node.name == node.name && n.node.addr == node.addr && n.node.state == NodeState::Up
            });
            Row {
                id: known.map(|n| n.node.id.to_string()).unwrap_or_default(),
                name: node.name.as_str(),
                region: &node.region,
                addr: &node.addr,
                http: None,
                pid: child.pid(),
                data_dir: child.dir.join("data"),
                voter: known.is_some_and(|n| n.voter),
            }
        });
        let file = File { nodes: rows.collect(), profile: self.profile_path() };
        let text = serde_json::to_string_pretty(&file).map_err(Exit::failure)?;
        let env = format!(
            "export FARSHORE_PROFILE='{}'\nexport FARSHORE_REPOSITORY=dev\nexport FARSHORE_PASSWORD=dev\n",
            self.profile_path().display()
        );
        setup::write(&self.dir.join("env"), &env, true)?;
        setup::write(&self.dir.join("cluster.json"), &text, false)
    }
}

fn up(status: &ClusterStatus) -> usize {
    status.nodes.iter().filter(|n| n.node.state == NodeState::Up).count()
}

/// One `dev` a directory. Another that is just ending is waited for.
async fn lock(dir: &Path) -> Result<fs::File, Exit> {
    let path = dir.join("lock");
    let file = fs::File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|e| Exit::failure(format!("cannot open {}: {e}", path.display())))?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while file.try_lock().is_err() {
        if Instant::now() > deadline {
            let dir = dir.display();
            return Err(Exit::failure(format!("another farshore dev is running on {dir}; stop it first")));
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(file)
}

const REGIONS: [&str; 9] = [
    "cloud-a/north",
    "cloud-b/south",
    "cloud-c/west",
    "cloud-d/east",
    "cloud-e/centre",
    "cloud-f/coast",
    "cloud-g/island",
    "cloud-h/valley",
    "cloud-i/delta",
];

/// Ports that nodes listen on. Below those that systems give to outgoing connections, of which one might take the port of
/// a node that is not running at the moment.
const PORTS: std::ops::Range<u16> = 12_000..32_000;
/// Ports tried before any port will do.
const PORTS_TRIED: usize = 200;

fn free_port() -> Result<TcpListener, Exit> {
    let drawn = || PORTS.start + u16::from_le_bytes(random(&OsEntropy)) % (PORTS.end - PORTS.start);
    let free = (0..PORTS_TRIED).find_map(|_| TcpListener::bind(("127.0.0.1", drawn())).ok());
    free.map_or_else(|| TcpListener::bind("127.0.0.1:0").map_err(Exit::failure), Ok)
}

fn create(dir: &Path, shape: &Shape) -> Result<(), Exit> {
    let mut nodes = Vec::new();
    // Held until all are drawn, so that none is drawn twice.
    let mut ports = Vec::new();
    for region in REGIONS.iter().take(usize::from(shape.regions)) {
        for number in 1..=shape.nodes_per_region {
            let listener = free_port()?;
            let addr = listener.local_addr().map_err(Exit::failure)?.to_string();
            let letter = region.split(['-', '/']).nth(1).unwrap_or("x");
            nodes.push(NewNode {
                name: format!("{letter}{number}").parse().map_err(Exit::failure)?,
                region: region.parse().map_err(Exit::failure)?,
                listen: addr.clone(),
                advertise: addr,
            });
            ports.push(listener);
        }
    }
    let config_dir = |name: &Name| node_dir(dir, name);
    let data_dir = |name: &Name| node_dir(dir, name).join("data");
    // Local machines answer at once, so silence means more here than between continents.
    let extra = format!("[timing]\ngrace = \"{}\"\n", shape.grace);
    let placing = Placing { config_dir: &config_dir, data_dir: &data_dir, capacity: "1T", extra: &extra };
    setup::write_cluster(dir, &nodes, &placing)?;
    let files: Vec<NodeFile> = nodes
        .into_iter()
        .map(|n| NodeFile { name: n.name, region: n.region.to_string(), addr: n.advertise })
        .collect();
    let text = serde_json::to_string_pretty(&files).map_err(Exit::failure)?;
    setup::write(&dir.join("nodes.json"), &text, false)
}

/// `farshore dev`.
pub async fn run(args: DevArgs) -> Result<u8, Exit> {
    farshore_core::units::parse_duration(&args.grace).map_err(|e| Exit::failure(format!("--grace: {e}")))?;
    let shape = Shape { regions: args.regions, nodes_per_region: args.nodes_per_region, grace: args.grace };
    let mut cluster = DevCluster::start(&args.dir, &shape).await?;
    let client = cluster.client().await?;
    cluster.ready(&client).await?;
    println!("{} nodes in {} regions are up.", cluster.children.len(), cluster.regions().len());
    for (node, child) in cluster.nodes.iter().zip(&cluster.children) {
        println!("  {:<4} {:<16} {:<22} pid {}", node.name, node.region, node.addr, child.pid().unwrap_or(0));
    }
    println!(
        "In another shell:\n  . {}\n  farshore init && farshore backup /etc",
        quoted(&cluster.dir.join("env"))
    );
    println!("Ctrl-C stops the cluster; running dev again on the same directory resumes it.");
    let stopped = watch(&mut cluster);
    tokio::select! {
        biased;
        result = crate::node::stop_signal() => {
            result?;
            println!("Stopping.");
            cluster.stop().await;
            Ok(exit::OK)
        }
        end = stopped => end,
    }
}

/// Tells when a node ends; returns when none is left.
async fn watch(cluster: &mut DevCluster) -> Result<u8, Exit> {
    loop {
        tokio::time::sleep(POLL).await;
        while let Some((name, how)) = cluster.ended() {
            eprintln!("node {name} ended ({how})");
        }
        if !cluster.children.iter().any(Child::running) {
            return Err(Exit::failure("all nodes have ended; run dev again on the same directory to resume"));
        }
    }
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}
