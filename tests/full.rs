//! Nodes that are full: one, then a whole region. Backups go on while the policy can be met, the status says who is full, and what
//! was acknowledged is there.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// Less than the room that a node keeps for one large shard, and more than what it holds by then.
const LITTLE: &str = "24M";

fn status(dev: &Dev) -> Value {
    serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap()
}

fn noise(seed: u32, bytes: usize) -> Vec<u8> {
    let mut state = seed;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..bytes).map(next).collect()
}

/// Backs a tree up; the id and a copy of what it was, if it was acknowledged.
fn back_up(dev: &Dev, work: &Path, source: &Path, round: u32) -> Option<(String, PathBuf)> {
    fs::write(source.join(format!("file-{round}")), noise(round + 1, 40_000_000)).unwrap();
    let output = dev.run(&["backup", source.to_str().unwrap(), "--json"]);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // 14: saved, and repair owes it some shards.
    if !matches!(output.status.code(), Some(0 | 14)) {
        assert!(
            err.contains("full") || err.contains("room") || err.contains("floor"),
            "it does not say why: {err}"
        );
        return None;
    }
    let copy = work.join(format!("copy-{round}"));
    assert!(std::process::Command::new("cp").arg("-a").args([source, &copy]).status().unwrap().success());
    Some((json_line(&out, "summary")["snapshot_id"].as_str().unwrap().into(), copy))
}

#[test]
fn a_full_node_and_a_full_region_lose_nothing_that_was_acknowledged() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let args = ["--regions", "3", "--nodes-per-region", "3", "--grace", "5m"];
    let mut dev = Dev::start_with(&work.path().join("dev"), &args);
    dev.ok(&["init", "--survive", "1 region"]);
    let mut kept = vec![back_up(&dev, work.path(), &source, 0).expect("there is room for the first")];
    let nodes = dev.nodes();
    let name = |at: usize| nodes[at]["name"].as_str().unwrap().to_owned();
    let (one, region) = (name(0), [name(6), name(7), name(8)]);

    dev.offer(&[&one], LITTLE);
    dev.restart();
    kept.push(back_up(&dev, work.path(), &source, 1).expect("two others of its region have room"));
    kept.push(back_up(&dev, work.path(), &source, 2).expect("and have it still"));
    let seen = status(&dev);
    let codes = seen["codes"].as_array().unwrap();
    let full = codes.iter().find(|code| code["code"] == "NODE_FULL").unwrap_or_else(|| panic!("{seen}"));
    assert!(full["text"].as_str().unwrap().contains(&one), "{full}");

    dev.offer(&region.each_ref().map(String::as_str), LITTLE);
    dev.restart();
    for round in 3..5 {
        kept.push(
            back_up(&dev, work.path(), &source, round)
                .expect("two regions can hold it, two shards to a node"),
        );
    }
    let seen = status(&dev);
    let said = seen["codes"].to_string();
    assert!(said.contains("NODE_FULL") && region.iter().all(|name| said.contains(name.as_str())), "{said}");
    for (id, copy) in &kept {
        let target = tempfile::tempdir().unwrap();
        dev.ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
        let back = target.path().join(source.strip_prefix("/").unwrap());
        assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
    }
    dev.stop();
}
