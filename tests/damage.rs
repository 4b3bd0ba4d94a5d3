//! Bytes of a voter's own replica turn over at rest: it gives up its vote, learns the catalogue anew from the others, and
//! shows nothing wrong meanwhile. Real processes, real files.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

/// Turns over one bit in the middle of each file; those that are empty stay.
fn spoil(files: &[PathBuf]) {
    for path in files {
        let mut bytes = fs::read(path).unwrap();
        let middle = bytes.len() / 2;
        if let Some(byte) = bytes.get_mut(middle) {
            *byte ^= 0x10;
            fs::write(path, bytes).unwrap();
        }
    }
}

fn status(dev: &Dev) -> Option<Value> {
    let output = dev.run(&["cluster", "status", "--json"]);
    serde_json::from_slice(&output.stdout).ok()
}

fn voters(status: &Value) -> Vec<String> {
    let nodes = status["nodes"].as_array().unwrap().iter().filter(|node| node["voter"] == true);
    nodes.map(|node| node["name"].as_str().unwrap().to_owned()).collect()
}

fn all_well(status: &Value) -> bool {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.len() == 6 && nodes.iter().all(|node| node["state"] == "up") && voters(status).len() == 3
}

fn eventually(dev: &Dev, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let now = status(dev);
        match now.filter(|status| holds(status)) {
            Some(status) => return status,
            None => assert!(Instant::now() < deadline, "never came true: {what}: {:?}", status(dev)),
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn backup(dev: &Dev, source: &Path, round: u8) -> String {
    fs::write(source.join("file"), vec![round; 200_000]).unwrap();
    let output = dev.run(&["backup", source.to_str().unwrap(), "--json"]);
    assert!(matches!(output.status.code(), Some(0 | 14)), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
    summary["snapshot_id"].as_str().unwrap().to_owned()
}

#[test]
fn a_voter_with_a_rotten_replica_gives_up_its_vote_and_learns_anew() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let mut ids = vec![backup(&dev, &source, 0)];

    let mut last = String::new();
    for round in 1..=3u8 {
        let now = eventually(&dev, "all nodes are up, three of them vote", all_well);
        // Once the leader itself.
        let leads = dev.leader().unwrap();
        let voter = voters(&now).into_iter().find(|name| (*name == leads) == (round == 2)).unwrap();
        let dir = work.path().join("dev/nodes").join(&voter).join("data");
        dev.kill_nodes(&[&voter]);
        match round {
            // Every file of the store, then only where the log and the latest rows are, then the promises.
            1 => spoil(&files(&dir.join("catalogue"))),
            2 => {
                let journals = files(&dir.join("catalogue")).into_iter();
                let journals: Vec<_> =
                    journals.filter(|p| p.extension().is_some_and(|e| e == "jnl")).collect();
                spoil(&journals);
            }
            _ => fs::write(dir.join("raft/mark"), [7; 4096]).unwrap(),
        }
        let _ = fs::remove_dir_all(dir.join("catalogue.damaged"));
        dev.start_node(&voter);
        let given_up =
            |_: &Value| dir.join("catalogue.damaged").exists() && !dir.join("raft/damaged").exists();
        eventually(&dev, &format!("round {round}: {voter} gives its replica up"), given_up);
        eventually(&dev, &format!("round {round}: {voter} is back"), all_well);
        ids.push(backup(&dev, &source, round));
        last = voter;
    }

    // What it learnt is what the others know: it answers alone.
    let target = work.path().join("back");
    let others: Vec<String> = dev.nodes().iter().map(|n| n["name"].as_str().unwrap().to_owned()).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).filter(|name| *name != last).collect();
    eventually(&dev, "the last of them has caught up", all_well);
    dev.ok(&["restore", &ids[3], "--target", target.to_str().unwrap()]);
    assert_eq!(tree_differences(&source, &target.join(source.strip_prefix("/").unwrap())), "");
    dev.kill_nodes(&others);
    let listing: Value = serde_json::from_str(&dev.ok(&["--stale", "snapshots", "--json"])).unwrap();
    let mut known: Vec<&str> =
        listing.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap()).collect();
    known.sort_unstable();
    ids.sort_unstable();
    assert_eq!(known, ids);

    // A damaged replica is no foundation to go on from alone.
    dev.kill_nodes(&[&last]);
    let dir = work.path().join("dev/nodes").join(&last);
    fs::write(dir.join("data/raft/damaged"), "").unwrap();
    let config = dir.join("node.toml");
    let refused = farshore().args(["node", "recover-quorum", "--config"]).arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && said.contains("is damaged"), "{said}");
}
