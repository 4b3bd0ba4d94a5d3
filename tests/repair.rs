//! What repair moves between regions, with twelve real nodes in three regions: one sum a region instead of each shard, nothing
//! for a node that comes back, in time or later.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::Dev;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

const GRACE: &str = "15s";

#[test]
fn a_region_sends_one_sum_and_who_comes_back_costs_no_link() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let mut state = 1u32;
    for file in 0..6 {
        let noise = (0..1_500_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        fs::write(source.join(format!("file-{file}")), noise.collect::<Vec<_>>()).unwrap();
    }
    let args = ["--regions", "3", "--nodes-per-region", "4", "--grace", GRACE];
    let mut dev = Dev::start_with(&work.path().join("dev"), &args);
    dev.ok(&["init", "--survive", "1 region + 1 node"]);
    for _ in 0..3 {
        // Small packs of tree and data; enough of them that every node holds some.
        dev.ok(&["backup", source.to_str().unwrap(), "--force"]);
        fs::write(source.join("more"), vec![7; 100_000 + state as usize % 1_000]).unwrap();
    }
    let victim = follower(&dev);

    // Back within the grace period: nothing moves.
    dev.kill_nodes(&[&victim]);
    wait_for(&dev, |status| state_of(status, &victim) == "down");
    dev.start_node(&victim);
    wait_for(&dev, |status| state_of(status, &victim) == "up");
    dev.ok(&["cluster", "status", "--wait", "1m"]);
    assert_eq!((repair(&dev)["rebuilt"].as_u64(), crossed(&repair(&dev))), (Some(0), 0));

    // Given up: each lost shard is made in its own region from the three that are left there and one sum of four.
    dev.kill_nodes(&[&victim]);
    wait_for(&dev, |status| state_of(status, &victim) == "lost");
    // Every stripe has a shard on each node, so that another node of the region takes a second one for now.
    wait_for(&dev, |status| {
        let (repair, packs) = (&status["repair"], status["safety"]["packs"].as_u64().unwrap());
        repair["rebuilt"].as_u64().unwrap() >= packs && repair["queued"] == 0 && repair["running"] == 0
    });
    let after = repair(&dev);
    let (bytes, singly) = (crossed(&after), after["singly_bytes"].as_u64().unwrap());
    assert!(after["rebuilt"].as_u64().unwrap() > 0 && bytes > 0, "{after}");
    assert!(bytes as f64 * 4.0 <= 1.05 * singly as f64, "{bytes} bytes crossed, singly {singly}: {after}");

    // It comes back, and what it still has counts again: nothing is sent, not even by its neighbours.
    dev.start_node(&victim);
    wait_for(&dev, |status| state_of(status, &victim) == "up");
    dev.ok(&["cluster", "status", "--wait", "1m"]);
    std::thread::sleep(Duration::from_secs(5));
    let back = repair(&dev);
    assert_eq!(crossed(&back), bytes);
    let regained = back["rebuilt"].as_u64().unwrap() - after["rebuilt"].as_u64().unwrap();
    assert!(regained > 0 && back["kept"].as_u64() == Some(regained), "{back}");
    let target = tempfile::tempdir().unwrap();
    dev.ok(&["restore", "latest", "--target", target.path().to_str().unwrap()]);
    dev.stop();
}

fn status(dev: &Dev) -> Value {
    serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap()
}
fn repair(dev: &Dev) -> Value {
    status(dev)["repair"].clone()
}
fn crossed(repair: &Value) -> u64 {
    repair["links"].as_array().unwrap().iter().map(|link| link["bytes"].as_u64().unwrap()).sum()
}
fn state_of(status: &Value, name: &str) -> String {
    let nodes = status["nodes"].as_array().unwrap();
    let node = nodes.iter().find(|node| node["name"] == *name).unwrap();
    node["state"].as_str().unwrap().into()
}

/// A node that has no vote, so that no leader goes and takes its counts along.
fn follower(dev: &Dev) -> String {
    let status = status(dev);
    let plain = status["nodes"].as_array().unwrap().iter().find(|node| node["voter"] == false).unwrap();
    plain["name"].as_str().unwrap().into()
}

fn wait_for(dev: &Dev, what: impl Fn(&Value) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let status = status(dev);
        if what(&status) {
            return;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
