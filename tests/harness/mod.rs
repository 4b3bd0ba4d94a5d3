//! Drives the real binary: a development cluster, commands against it, and a comparison of trees by other programs.
#![allow(dead_code, reason = "each test uses its part")]

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const NAMES: [&str; 9] = [
    "PROFILE",
    "REPOSITORY",
    "PASSWORD",
    "PASSWORD_FILE",
    "PASSWORD_COMMAND",
    "KEY_FILE",
    "RECOVERY_KEY_FILE",
    "HOST",
    "SURVIVE",
];

/// The binary under test, with a clean environment.
pub fn farshore() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farshore"));
    for name in NAMES {
        command.env_remove(format!("FARSHORE_{name}"));
    }
    command.stdin(Stdio::null());
    command
}

/// The last JSON line of this type.
pub fn json_line(text: &str, message_type: &str) -> Value {
    text.lines()
        .rev()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|value| value["message_type"] == message_type)
        .unwrap_or_else(|| panic!("no {message_type} in {text}"))
}

/// Differences between two trees as `diff` and `find` see them; empty if there are none.
pub fn tree_differences(wanted: &Path, found: &Path) -> String {
    let diff = Command::new("diff").args(["-r", "--no-dereference"]).args([wanted, found]).output().unwrap();
    let list = |root: &Path| {
        let format = "%P|%y|%m|%U:%G|%T@|%l|%n\n";
        let output =
            Command::new("find").arg(root).args(["-mindepth", "1", "-printf", format]).output().unwrap();
        let mut lines: Vec<String> =
            String::from_utf8_lossy(&output.stdout).lines().map(String::from).collect();
        lines.sort();
        lines
    };
    let (a, b) = (list(wanted), list(found));
    let only = |x: &[String], y: &[String]| x.iter().filter(|l| !y.contains(l)).cloned().collect::<Vec<_>>();
    let mut text = String::from_utf8_lossy(&diff.stdout).into_owned();
    text += &String::from_utf8_lossy(&diff.stderr);
    if a != b {
        text += &format!("wanted {:?}\nfound {:?}\n", only(&a, &b), only(&b, &a));
    }
    text
}

/// A running `farshore dev`.
pub struct Dev {
    dir: PathBuf,
    args: Vec<String>,
    process: Child,
    /// Nodes started again one by one, beside `dev`.
    single: BTreeMap<String, Child>,
    /// Nodes that `dev` started and that were not killed since.
    pids: BTreeMap<String, u64>,
}

impl Dev {
    /// Starts six nodes in three regions and waits until they are ready.
    pub fn start(dir: &Path) -> Self {
        Dev::start_with(dir, &["--grace", "5m"])
    }
    /// The same with other arguments.
    pub fn start_with(dir: &Path, args: &[&str]) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).into()).collect();
        let process = spawn(dir, &args);
        let mut dev = Dev { dir: dir.into(), args, process, single: BTreeMap::new(), pids: BTreeMap::new() };
        dev.read_pids();
        dev
    }
    /// Starts again on the same directory.
    pub fn restart(&mut self) {
        self.end_single();
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.process = spawn(&self.dir, &self.args);
        self.read_pids();
    }
    fn read_pids(&mut self) {
        let pid = |n: &Value| Some((n["name"].as_str()?.to_owned(), n["pid"].as_u64()?));
        self.pids = self.nodes().iter().filter_map(pid).collect();
    }
    /// Nodes as `cluster.json` lists them.
    pub fn nodes(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.dir.join("cluster.json")).unwrap();
        serde_json::from_str::<Value>(&text).unwrap()["nodes"].as_array().unwrap().clone()
    }
    /// What `. DIR/env` would set.
    pub fn env(&self) -> BTreeMap<String, String> {
        let text = fs::read_to_string(self.dir.join("env")).unwrap();
        let pairs = text.lines().filter_map(|l| l.strip_prefix("export ")?.split_once('='));
        pairs.map(|(k, v)| (k.into(), v.trim_matches('\'').into())).collect()
    }
    /// Runs a command against the cluster.
    pub fn run(&self, args: &[&str]) -> Output {
        farshore().envs(self.env()).args(args).output().unwrap()
    }
    /// Runs a command that must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?} ended with {}: {out}{err}", output.status);
        out.into_owned()
    }
    /// Runs a command that must fail with this code, saying this.
    pub fn fails(&self, args: &[&str], code: i32, says: &str) {
        let output = self.run(args);
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {err}");
        assert!(err.contains(says), "{args:?}: {err}");
    }
    /// Starts one node that was killed, as its own process.
    pub fn start_node(&mut self, name: &str) {
        let config = self.dir.join("nodes").join(name).join("node.toml");
        let child =
            farshore().args(["node", "run", "--config"]).arg(config).stderr(Stdio::null()).spawn().unwrap();
        self.single.insert(name.into(), child);
    }
    /// Waits until a node that was started one by one has ended by itself.
    pub fn ends(&mut self, name: &str) {
        let mut child = self.single.remove(name).expect("it was started one by one");
        let deadline = Instant::now() + Duration::from_secs(30);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{name} does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    fn end_single(&mut self) {
        for (_, mut child) in std::mem::take(&mut self.single) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
    /// The nodes offer no more than this from their next start on.
    pub fn offer(&self, names: &[&str], capacity: &str) {
        for name in names {
            let path = self.dir.join("nodes").join(name).join("node.toml");
            let text = fs::read_to_string(&path).unwrap();
            let lines = text.lines().map(|line| match line.starts_with("capacity") {
                true => format!("capacity = \"{capacity}\"\n"),
                false => format!("{line}\n"),
            });
            fs::write(&path, lines.collect::<String>()).unwrap();
        }
    }
    /// Name of the node that leads.
    pub fn leader(&self) -> Option<String> {
        let status: Value = serde_json::from_str(&self.ok(&["cluster", "status", "--json"])).unwrap();
        let nodes = status["nodes"].as_array().unwrap().clone();
        nodes.iter().find(|n| n["leader"] == true).map(|n| n["name"].as_str().unwrap().to_owned())
    }
    /// SIGKILL to every node.
    pub fn kill_all(&mut self) {
        self.kill_where(|_| true);
    }
    /// SIGKILL to every node of a region.
    pub fn kill_region(&mut self, region: &str) {
        self.kill_where(|node| node["region"] == region);
    }
    /// SIGKILL to these nodes.
    pub fn kill_nodes(&mut self, names: &[&str]) {
        self.kill_where(|node| names.contains(&node["name"].as_str().unwrap()));
    }
    fn kill_where(&mut self, which: impl Fn(&Value) -> bool) {
        let nodes = self.nodes();
        let names = nodes.iter().filter(|n| which(n)).map(|n| n["name"].as_str().unwrap());
        for name in names {
            if let Some(pid) = self.pids.remove(name) {
                let _ = Command::new("kill").args(["-9", &pid.to_string()]).status();
            } else if let Some(mut child) = self.single.remove(name) {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
    /// Stops the cluster as Ctrl-C does, and expects a clean end.
    pub fn stop(mut self) {
        self.end_single();
        let _ = Command::new("kill").args(["-INT", &self.process.id().to_string()]).status();
        let status = self.process.wait().unwrap();
        assert!(status.success(), "dev ended with {status}");
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        self.end_single();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(dir: &Path, args: &[String]) -> Child {
    fs::create_dir_all(dir).unwrap();
    let known = dir.join("cluster.json");
    let _ = fs::remove_file(&known);
    let log = fs::File::options().create(true).append(true).open(dir.join("dev.log")).unwrap();
    let mut child = farshore()
        .args(["dev", "--dir"])
        .arg(dir)
        .args(args)
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !known.exists() {
        let ended = child.try_wait().unwrap();
        let log = || fs::read_to_string(dir.join("dev.log")).unwrap_or_default();
        assert!(ended.is_none(), "dev ended with {ended:?}: {}", log());
        assert!(Instant::now() < deadline, "dev is not ready: {}", log());
        std::thread::sleep(Duration::from_millis(50));
    }
    child
}
