//! The worst days: every replica of the catalogue gone, the majority of the voters gone, only one replica left. Real
//! processes, real files.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const NODES: [&str; 6] = ["a1", "a2", "b1", "b2", "c1", "c2"];

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| draw()).collect()
}

/// Backs the source up after changing it, and keeps a copy of what was acknowledged.
fn backup(dev: &Dev, work: &Path, round: u64) -> (String, PathBuf) {
    let source = work.join("source");
    fs::create_dir_all(source.join("sub")).unwrap();
    for file in 0..4 {
        fs::write(source.join(format!("{file}")), noise(round * 10 + file, 300_000)).unwrap();
    }
    fs::write(source.join("sub").join(format!("only-{round}")), noise(round, 100_000)).unwrap();
    let output = dev.run(&["backup", source.to_str().unwrap(), "--json"]);
    // 14: saved, and repair still owes shards of a node that is away or has lost them.
    assert!(matches!(output.status.code(), Some(0 | 14)), "{}", said(&output));
    let summary = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
    let copy = work.join(format!("copy-{round}"));
    assert!(Command::new("cp").arg("-a").args([&source, &copy]).status().unwrap().success());
    (summary["snapshot_id"].as_str().unwrap().to_owned(), copy)
}

fn restores(dev: &Dev, work: &Path, id: &str, copy: &Path, flags: &[&str]) {
    let target = tempfile::tempdir().unwrap();
    let args = [&["restore", id, "--target", target.path().to_str().unwrap()], flags].concat();
    dev.ok(&args);
    let back = target.path().join(work.join("source").strip_prefix("/").unwrap());
    assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
}

fn ids(listing: &str) -> Vec<String> {
    let listed: Value = serde_json::from_str(listing).unwrap();
    let mut ids: Vec<String> =
        listed.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().into()).collect();
    ids.sort();
    ids
}

fn node_dir(work: &Path, name: &str) -> PathBuf {
    work.join("dev/nodes").join(name)
}

fn of_node(work: &Path, name: &str, args: &[&str]) -> Command {
    let mut command = farshore();
    command.args(args).arg("--config").arg(node_dir(work, name).join("node.toml"));
    command
}

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// A node that serves its shards and waits.
struct Recovering(Vec<(String, Child)>);

impl Recovering {
    fn start(work: &Path, names: &[&str]) -> Self {
        let start = |name: &&str| {
            let log = fs::File::create(node_dir(work, name).join("recover.log")).unwrap();
            let mut command = of_node(work, name, &["node", "recover"]);
            ((*name).to_owned(), command.stderr(log).stdout(Stdio::null()).spawn().unwrap())
        };
        Recovering(names.iter().map(start).collect())
    }
    /// All of them end by themselves, well.
    fn end(mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        for (name, child) in &mut self.0 {
            loop {
                match child.try_wait().unwrap() {
                    Some(status) => break assert!(status.success(), "{name} ended with {status}"),
                    None => assert!(Instant::now() < deadline, "{name} does not end"),
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        self.0.clear();
    }
}

impl Drop for Recovering {
    fn drop(&mut self) {
        for (_, child) in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn listens(dev: &Dev, name: &str) {
    let node = dev.nodes().into_iter().find(|node| node["name"] == name).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(node["addr"].as_str().unwrap()).is_err() {
        assert!(Instant::now() < deadline, "{name} does not listen");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn cluster_id(work: &Path) -> String {
    let profile = fs::read_to_string(work.join("dev/profile.toml")).unwrap();
    let line = profile.lines().find(|line| line.starts_with("cluster")).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

#[test]
fn a_catalogue_that_every_node_has_lost_is_rebuilt_from_shards() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let mut dev = Dev::start(&work.join("dev"));
    dev.ok(&["init"]);
    let mut kept = vec![backup(&dev, work, 1), backup(&dev, work, 2)];
    let made = json_line(&dev.ok(&["cluster", "export", "--json"]), "summary");
    assert_eq!((&made["k"], &made["n"]), (&Value::from(2), &Value::from(6)));
    // What comes after the base is in increments, which come by themselves.
    kept.extend([backup(&dev, work, 3), backup(&dev, work, 4)]);
    std::thread::sleep(Duration::from_secs(16));
    let listed = ids(&dev.ok(&["snapshots", "--json"]));
    assert_eq!(listed.len(), 4);
    // A moment later everything dies: what was just committed may be in no export.
    let (last, last_copy) = backup(&dev, work, 5);
    dev.kill_all();

    // Raft log, catalogue and shard index are gone everywhere.
    for name in NODES {
        let data = node_dir(work, name).join("data");
        for gone in ["raft", "catalogue", "index"] {
            fs::remove_dir_all(data.join(gone)).unwrap();
        }
    }

    // A node does not start as if it were new, and nothing is rebuilt while nobody serves shards.
    let refused = run(of_node(work, "a1", &["node", "run"]));
    assert_eq!(refused.status.code(), Some(1));
    assert!(said(&refused).contains("rebuild-catalogue"), "{}", said(&refused));
    dev.fails(&["cluster", "rebuild-catalogue"], 13, "node recover");

    let recovering = Recovering::start(work, &["a1", "a2", "b1", "b2", "c1"]);
    let cluster = cluster_id(work);
    let found = loop {
        let output = dev.run(&["cluster", "rebuild-catalogue"]);
        if said(&output).matches("replica: none").count() == 5 {
            break output;
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    assert_eq!(found.status.code(), Some(1), "only looked: {}", said(&found));
    assert!(said(&found).contains(&format!("--yes-i-lost-the-catalogue {cluster}")), "{}", said(&found));
    assert!(said(&found).contains(" snapshots, "), "{}", said(&found));
    let wrong = "0".repeat(32);
    dev.fails(&["cluster", "rebuild-catalogue", "--yes-i-lost-the-catalogue", &wrong], 1, "not the id");

    // Nothing is rebuilt beside a node that lives.
    let data = node_dir(work, "c2").join("data");
    fs::rename(data.join("shards"), data.join("away")).unwrap();
    dev.start_node("c2");
    listens(&dev, "c2");
    let order = ["cluster", "rebuild-catalogue", "--yes-i-lost-the-catalogue", &cluster];
    dev.fails(&order, 1, "is running");
    dev.kill_nodes(&["c2"]);
    for gone in ["raft", "catalogue", "index", "shards"] {
        fs::remove_dir_all(data.join(gone)).unwrap();
    }
    fs::rename(data.join("away"), data.join("shards")).unwrap();

    // A damaged replica is found before anything is loaded, and the node says what to do.
    let damaged = node_dir(work, "c2").join("data/raft");
    fs::create_dir_all(&damaged).unwrap();
    fs::write(damaged.join("mark"), vec![7; 8192]).unwrap();
    let with_damage = Recovering::start(work, &["c2"]);
    listens(&dev, "c2");
    dev.fails(&order, 1, "then start `farshore node recover` again");
    drop(with_damage);
    fs::remove_dir_all(&damaged).unwrap();
    let _ = fs::remove_dir_all(node_dir(work, "c2").join("data/catalogue"));

    // Whoever gives the order and hangs up has given it.
    let mut hung_up = farshore().envs(dev.env()).args(order).stderr(Stdio::piped()).spawn().unwrap();
    let mut first = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(hung_up.stderr.take().unwrap()), &mut first)
        .unwrap();
    assert!(first.contains("reading what 5 nodes hold"), "{first}");
    hung_up.kill().unwrap();
    hung_up.wait().unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    let mut repeated = vec!["cluster", "rebuild-catalogue", "--json", "--yes-i-lost-the-catalogue", &cluster];
    let done = loop {
        let output = dev.run(&repeated);
        if output.status.success() {
            break output;
        }
        assert!(Instant::now() < deadline, "{}", said(&output));
        // What an export that was just being made has left behind can be more than c2's absence leaves readable.
        if said(&output).contains("--accept-less") && !repeated.contains(&"--accept-less") {
            assert!(said(&output).contains("parts of exports"), "{}", said(&output));
            repeated.push("--accept-less");
        } else {
            assert!(said(&output).contains("under way"), "{}", said(&output));
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    let result = json_line(&String::from_utf8_lossy(&done.stdout), "summary");
    assert_eq!(result["done"], true, "{result}");
    let in_time = result["snapshots"] == 5;
    assert!(in_time || result["snapshots"] == 4, "{result}");
    // If not the snapshot, its packs are there: they say themselves what is in them.
    assert!(in_time || result["adopted_packs"].as_u64().unwrap() >= 2, "{result}");
    assert!(result["increments"].as_u64().unwrap() >= 1, "{result}");
    assert_eq!(result["silent"].as_array().unwrap().len(), 1, "c2 was not there: {result}");
    recovering.end();

    // c2 was not part of it: it still has no replica and must not begin a life of its own.
    let refused = run(of_node(work, "c2", &["node", "run"]));
    assert!(said(&refused).contains("node rejoin"), "{}", said(&refused));
    for name in &NODES[..5] {
        dev.start_node(name);
    }
    dev.ok(&["snapshots"]);
    let rejoin = ["node", "rejoin", "--i-give-up-this-replica", &cluster];
    let rejoined = run(of_node(work, "c2", &rejoin));
    assert!(rejoined.status.success(), "{}", said(&rejoined));
    dev.start_node("c2");

    let now = ids(&dev.ok(&["snapshots", "--json"]));
    assert!(listed.iter().all(|id| now.contains(id)), "all snapshots are there: {now:?}");
    assert_eq!(now.contains(&last), in_time);
    for (id, copy) in &kept {
        restores(&dev, work, id, copy, &[]);
    }
    if in_time {
        restores(&dev, work, &last, &last_copy, &[]);
    }
    let source = work.join("source");
    let again = dev.run(&["backup", source.to_str().unwrap(), "--json", "--force"]);
    let summary = json_line(&String::from_utf8_lossy(&again.stdout), "summary");
    assert_eq!(summary["data_blobs"], 0, "nothing of it is sent again: {}", said(&again));
    restores(&dev, work, summary["snapshot_id"].as_str().unwrap(), &last_copy, &[]);
    // And life goes on: full strength, three voters again, a new backup.
    let (id, copy) = backup(&dev, work, 6);
    restores(&dev, work, &id, &copy, &[]);
    dev.ok(&["cluster", "status", "--wait", "90s"]);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status: Value = serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap();
        let voters = status["nodes"].as_array().unwrap().iter().filter(|n| n["voter"] == true).count();
        if voters == 3 {
            break;
        }
        assert!(Instant::now() < deadline, "{voters} voters: {status}");
        std::thread::sleep(Duration::from_millis(500));
    }
    dev.ok(&["check", "--read-data"]);
}

#[test]
fn one_voter_of_three_goes_on_alone_and_not_by_accident() {
    let work = tempfile::tempdir().unwrap();
    let work = work.path();
    let mut dev = Dev::start(&work.join("dev"));
    dev.ok(&["init"]);
    let before = backup(&dev, work, 1);
    let cluster = cluster_id(work);
    let order = ["node", "recover-quorum", "--i-have-lost-the-other-voters", &cluster];

    // Not while it runs, not while others answer, not without the cluster's id.
    let refused = run(of_node(work, "a1", &order));
    assert!(said(&refused).contains("in use"), "{}", said(&refused));
    dev.kill_nodes(&["a1"]);
    let refused = run(of_node(work, "a1", &order));
    assert!(said(&refused).contains("answers at"), "{}", said(&refused));
    let looked = run(of_node(work, "a1", &["node", "recover-quorum"]));
    assert_eq!(looked.status.code(), Some(1));
    assert!(
        said(&looked).contains("last log entry") && said(&looked).contains(&cluster),
        "{}",
        said(&looked)
    );
    dev.start_node("a1");
    dev.ok(&["cluster", "status", "--wait", "60s"]);

    // Two of three voters burn; with them a snapshot is not lost, but nothing can be written or confirmed.
    dev.kill_all();
    for name in ["b1", "c1"] {
        fs::remove_dir_all(node_dir(work, name).join("data")).unwrap();
    }
    for name in ["a1", "a2", "b2", "c2"] {
        dev.start_node(name);
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    while !dev.run(&["snapshots", "--stale"]).status.success() {
        assert!(Instant::now() < deadline, "no replica answers");
        std::thread::sleep(Duration::from_millis(200));
    }
    // One surviving replica is enough to restore from, and says that it is not sure.
    dev.kill_nodes(&["a2"]);
    let listing = dev.run(&["snapshots", "--stale", "--json"]);
    assert!(String::from_utf8_lossy(&listing.stderr).contains("stale:"), "{}", said(&listing));
    assert_eq!(ids(&String::from_utf8_lossy(&listing.stdout)), std::slice::from_ref(&before.0));
    dev.fails(&["backup", work.to_str().unwrap(), "--stale"], 1, "--stale");
    dev.start_node("a2");
    std::thread::sleep(Duration::from_secs(1));
    restores(&dev, work, &before.0, &before.1, &["--stale"]);

    // Not while anybody answers, voter or not: they may have a majority that this replica has not heard of.
    dev.kill_nodes(&["a1", "a2", "b2"]);
    let refused = run(of_node(work, "a1", &order));
    assert!(said(&refused).contains("answers at"), "{}", said(&refused));
    dev.kill_nodes(&["c2"]);
    let done = run(of_node(work, "a1", &order));
    assert!(done.status.success(), "{}", said(&done));
    let again = run(of_node(work, "a1", &order));
    assert!(said(&again).contains("only voter"), "{}", said(&again));
    // As if it had been killed before its last step.
    let unfinished = node_dir(work, "a1").join("data/raft/unfinished");
    fs::write(&unfinished, "farshore recovery under way\n").unwrap();
    let refused = run(of_node(work, "a1", &["node", "run"]));
    assert!(said(&refused).contains("interrupted"), "{}", said(&refused));
    let repeated = run(of_node(work, "a1", &order));
    assert!(repeated.status.success() && !unfinished.exists(), "{}", said(&repeated));
    for name in ["a1", "a2", "b2", "c2"] {
        dev.start_node(name);
    }
    dev.ok(&["snapshots"]);
    // The learners' replicas may know more than the new era, or less: they stop, and learn anew.
    for name in ["a2", "b2", "c2"] {
        dev.ends(name);
        let rejoined = run(of_node(work, name, &["node", "rejoin", "--i-give-up-this-replica", &cluster]));
        assert!(rejoined.status.success(), "{}", said(&rejoined));
        dev.start_node(name);
    }
    assert_eq!(ids(&dev.ok(&["snapshots", "--json"])), std::slice::from_ref(&before.0));
    restores(&dev, work, &before.0, &before.1, &[]);
    let source = work.join("source");
    fs::write(source.join("new"), noise(77, 200_000)).unwrap();
    let output = dev.run(&["backup", source.to_str().unwrap(), "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 14)), "{}", said(&output));
    let status: Value = serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 6, "{status}");
}
