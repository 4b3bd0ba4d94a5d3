//! A rolling upgrade with real processes: nodes held back to the level of an older release, let go one by one while backups
//! and restores go on; the cluster rises with the last of them, and nobody can stay behind from then on.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use farshore_core::host::Entropy;
use farshore_core::host::real::OsEntropy;
use harness::{farshore, tree_differences};
use serde_json::Value;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// What this program can do.
const NEWEST: u32 = farshore_core::level::FEATURE_LEVEL;

/// Below the ports of outgoing connections: one might take the port of a node that is not running at the moment.
fn free_port() -> TcpListener {
    let drawn = || 12_000 + OsEntropy.below(20_000) as u16;
    (0..200).find_map(|_| TcpListener::bind(("127.0.0.1", drawn())).ok()).unwrap()
}

/// Three nodes in three regions, each a process of its own.
struct Cluster {
    dir: PathBuf,
    nodes: [Option<Child>; 3],
}

impl Cluster {
    fn init(dir: PathBuf) -> Self {
        let ports = NAMES.map(|_| free_port());
        let addrs = ports.each_ref().map(|port| port.local_addr().unwrap());
        drop(ports);
        let dir_text = dir.to_str().unwrap().to_owned();
        let mut init = farshore();
        init.args(["cluster", "init", "--dir", &dir_text]);
        for (name, addr) in NAMES.iter().zip(addrs) {
            init.args(["--node", &format!("{name}=test/{name}={addr}")]);
        }
        assert!(init.output().unwrap().status.success());
        let cluster = Cluster { dir, nodes: [None, None, None] };
        for name in NAMES {
            let path = cluster.config(name);
            let data = cluster.dir.join(format!("data-{name}"));
            // On machines of their own they would lie in these two places.
            let text = fs::read_to_string(&path).unwrap();
            let text = text.replace("/var/lib/farshore", data.to_str().unwrap());
            let text = text.replace("/etc/farshore", path.parent().unwrap().to_str().unwrap());
            fs::write(path, text).unwrap();
        }
        cluster
    }
    fn config(&self, name: &str) -> PathBuf {
        self.dir.join("nodes").join(name).join("node.toml")
    }
    fn hold(&self, name: &str, hold: bool) {
        const LINE: &str = "feature_level_max = 1\n";
        let path = self.config(name);
        let text = fs::read_to_string(&path).unwrap().replace(LINE, "");
        fs::write(path, if hold { format!("{LINE}{text}") } else { text }).unwrap();
    }
    fn spawn(&mut self, at: usize) {
        let log = self.dir.join(format!("{}.log", NAMES[at]));
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut run = farshore();
        run.args(["node", "run", "--config"]).arg(self.config(NAMES[at])).stderr(log).stdout(Stdio::null());
        self.nodes[at] = Some(run.spawn().unwrap());
    }
    fn stop(&mut self, at: usize) {
        let mut child = self.nodes[at].take().unwrap();
        let _ = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
        assert!(child.wait().unwrap().success());
    }
    fn run(&self, args: &[&str]) -> Output {
        let password = self.dir.join("password");
        let mut command = farshore();
        command.env("FARSHORE_PROFILE", self.dir.join("profile.toml")).env("FARSHORE_REPOSITORY", "docs");
        command.env("FARSHORE_PASSWORD_FILE", password).args(args).output().unwrap()
    }
    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // Committed under target is what happens while a node is away.
        assert!(
            matches!(output.status.code(), Some(0 | 14)),
            "{args:?} ended with {}: {out}{err}",
            output.status
        );
        out.into_owned()
    }
    fn status(&self) -> Value {
        let output = self.run(&["cluster", "status", "--json"]);
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }
    fn wait_for(&self, what: &str, is: impl Fn(&Value) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            let status = self.status();
            if is(&status) {
                return;
            }
            assert!(Instant::now() < deadline, "{what}: {status}");
            std::thread::sleep(Duration::from_millis(300));
        }
    }
    fn wait_up(&self) {
        self.wait_for("three nodes up", |status| {
            let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
            nodes.len() == 3 && nodes.iter().all(|n| n["state"] == "up") && status["stale"] == false
        });
    }
    /// Backs up, and restores what was backed up.
    fn work(&self, source: &Path, round: usize) {
        fs::write(source.join(format!("file{round}")), vec![round as u8; 300_000 + round]).unwrap();
        self.ok(&["backup", source.to_str().unwrap()]);
        self.restores(source, round);
    }
    /// The newest snapshot is what was backed up.
    fn restores(&self, source: &Path, round: usize) {
        let target = self.dir.join(format!("back{round}"));
        let root = format!("latest:{}", source.to_str().unwrap());
        self.ok(&["restore", &root, "--target", target.to_str().unwrap()]);
        assert_eq!(tree_differences(source, &target), "");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.nodes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[test]
fn a_cluster_rises_with_its_last_node_and_nobody_stays_behind() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let mut cluster = Cluster::init(work.path().join("cluster"));
    fs::write(cluster.dir.join("password"), "secret\n").unwrap();
    for (at, name) in NAMES.iter().enumerate() {
        cluster.hold(name, true);
        cluster.spawn(at);
    }
    cluster.wait_up();
    cluster.ok(&["init"]);
    cluster.work(&source, 0);
    assert_eq!(cluster.status()["feature_level"], 1);
    assert!(cluster.ok(&["cluster", "audit"]).contains("the cluster is at 1"));

    for (at, name) in NAMES.iter().enumerate() {
        let status = cluster.status();
        assert_eq!(status["feature_level"], 1, "{status}");
        cluster.stop(at);
        // Of three nodes none may be away for a backup, but any one for a restore.
        cluster.restores(&source, 10 + at);
        cluster.hold(name, false);
        cluster.spawn(at);
        cluster.wait_up();
        let able = |n: &Value| n["name"] == *name && n["feature_level"] == NEWEST;
        cluster.wait_for("its level", |status| status["nodes"].as_array().unwrap().iter().any(able));
        if at == 0 {
            let said = cluster.ok(&["cluster", "status"]);
            assert!(
                ["b, c", "c, b"].iter().any(|who| said.contains(&format!("level {NEWEST} waits for {who}"))),
                "{said}"
            );
        }
        cluster.work(&source, 20 + at);
    }
    cluster.wait_for("the rise", |status| status["feature_level"] == NEWEST);

    // From here on it is recorded what is done, and the rise came first.
    cluster.ok(&["forget", "latest"]);
    let lines = cluster.ok(&["cluster", "audit", "--json"]);
    let records: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&records[0]["act"], &records[0]["seq"]), (&"raise-level".into(), &1.into()));
    assert!(records.iter().any(|record| record["act"] == "forget"), "{lines}");
    cluster.ok(&["cluster", "audit", "--verify"]);

    // Whoever is held back now does not start, and says why.
    cluster.stop(2);
    cluster.hold("c", true);
    let mut run = farshore();
    let output = run.args(["node", "run", "--config"]).arg(cluster.config("c")).output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{err}");
    assert!(
        err.contains(&format!("the cluster is at feature level {NEWEST} and this node can do 1")),
        "{err}"
    );
    cluster.hold("c", false);
    cluster.spawn(2);
    cluster.wait_up();
    cluster.work(&source, 30);
}
