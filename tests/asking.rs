//! Asking a real cluster: what would be, why it is so, what is being done; and whether it comes as foretold.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line};
use serde_json::{Value, json};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const CODES: [&str; 16] = [
    "NO_QUORUM",
    "DATA_UNREADABLE",
    "NO_SPARE",
    "NODE_DOWN",
    "NODE_LOST",
    "UNDER_TARGET",
    "REGION_FATAL",
    "EXPORT_LATE",
    "CLOCK_SKEW",
    "REPAIR_FAILING",
    "WRITES_FROZEN",
    "SCRUB_PAUSED",
    "BUDGET_HELD",
    "NODE_FULL",
    "NODE_SLOW",
    "NODE_FLAPPING",
];

fn ask(dev: &Dev, args: &[&str], message: &str) -> Value {
    json_line(&dev.ok(&[&["--json", "cluster"], args].concat()), message)
}

fn status(dev: &Dev) -> Value {
    serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap()
}

/// Waits until the cluster calls so many nodes down.
fn wait_for_down(dev: &Dev, count: usize) -> Value {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = status(dev);
        let down = seen["nodes"].as_array().unwrap().iter().filter(|n| n["state"] == "down").count();
        if down == count {
            return seen;
        }
        assert!(Instant::now() < deadline, "{count} nodes are not called down: {seen}");
        std::thread::sleep(Duration::from_millis(250));
    }
}

/// Stripes of which some node has a shard.
fn stripes(dev: &Dev) -> Vec<String> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { walk(&path, found) } else { found.push(path) }
        }
    }
    let mut found = Vec::new();
    let node = &dev.nodes()[0];
    walk(&PathBuf::from(node["data_dir"].as_str().unwrap()).join("shards"), &mut found);
    let shards = found.iter().filter(|path| path.extension().is_some_and(|e| e == "shard"));
    shards.map(|path| path.file_stem().unwrap().to_str().unwrap().split('-').next().unwrap().into()).collect()
}

#[test]
fn what_was_foretold_is_what_comes() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let noise: Vec<u8> = (0..9_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    fs::write(source.join("noise"), noise).unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let backup = |dev: &Dev| {
        let done = json_line(&dev.ok(&["backup", source.to_str().unwrap(), "--json"]), "summary");
        done["snapshot_id"].as_str().unwrap().to_owned()
    };
    let first = backup(&dev);
    fs::write(source.join("more"), vec![7; 70_000]).unwrap();
    let second = backup(&dev);

    // One region of three: all is readable, nothing is spare, backups go on.
    let south = ask(&dev, &["what-if", "--region", "cloud-b/south"], "what_if");
    let packs = south["packs"]["total"].as_u64().unwrap();
    assert!(packs >= 2, "{south}");
    assert_eq!((&south["packs"]["unreadable"], &south["packs"]["no_spare"]), (&json!(0), &json!(packs)));
    assert_eq!(south["packs"]["spare"].as_array().unwrap().len(), 1, "{south}");
    assert_eq!(south["repositories"][0]["packs"]["no_spare"], packs);
    assert_eq!((&south["snapshots"]["total"], &south["snapshots"]["incomplete"]), (&json!(2), &json!(0)));
    assert_eq!((&south["votes"]["quorum"], &south["votes"]["left"]), (&json!(true), &json!(2)));
    assert_eq!(south["writes"][0]["away"], json!({"possible": true, "full_strength": false, "why_not": ""}));
    assert_eq!((&south["rebuild"]["shards"], &south["rebuild"]["room"]), (&json!(2 * packs), &json!(true)));
    assert_eq!((&south["rebuild"]["time"]["rate"], &south["stale"]), (&json!("assumed"), &json!(false)));
    let same = ask(&dev, &["what-if", "--provider", "cloud-b", "--node", "b1"], "what_if");
    assert_eq!((&same["packs"], &same["nodes"]), (&south["packs"], &south["nodes"]));

    // Two regions: nothing is, and the snapshots are named, the newest first.
    let two = ["what-if", "--region", "cloud-b/south", "--region", "cloud-a/north"];
    let lost = ask(&dev, &two, "what_if");
    assert_eq!(
        (&lost["packs"]["unreadable"], &lost["packs"]["lost_for_good"]),
        (&json!(packs), &json!(packs))
    );
    let named: Vec<&Value> =
        lost["snapshots"]["named"].as_array().unwrap().iter().map(|s| &s["id"]).collect();
    assert_eq!(named, [&json!(second), &json!(first)]);
    assert_eq!(
        (&lost["votes"]["quorum"], &lost["writes"][0]["away"]["possible"]),
        (&json!(false), &json!(false))
    );
    let said = dev.ok(&[&["cluster"], two.as_slice()].concat());
    for words in ["UNREADABLE", &second[..8], "NO QUORUM", "LOST FOR GOOD"] {
        assert!(said.contains(words), "{words} is not in {said}");
    }
    dev.fails(&["cluster", "what-if", "--region", "cloud-x/y"], 1, "cloud-a/north, cloud-b/south");
    dev.fails(&["cluster", "what-if", "--node", "z9"], 1, "a1, a2, b1, b2");
    dev.fails(&["cluster", "what-if", "--provider", "cloud-z"], 1, "cloud-a, cloud-b");
    dev.fails(&["cluster", "what-if"], 1, "say what would be gone");

    // Why things are as they are, on a good day.
    for code in CODES {
        let why = ask(&dev, &["explain", code], "explain_code");
        assert!(
            why["meaning"].as_str().unwrap().len() > 40 && !why["numbers"].as_object().unwrap().is_empty()
                || matches!(code, "NODE_DOWN" | "NODE_LOST"),
            "{why}"
        );
        assert_eq!(why["raised"], false, "{why}");
        assert!(dev.ok(&["cluster", "explain", code]).contains(why["next_command"].as_str().unwrap()));
    }
    let node = ask(&dev, &["explain", "b1"], "explain_node");
    assert_eq!(
        (&node["state"], &node["shards"], &node["repair"]["now_shards"]),
        (&json!("up"), &json!(packs), &json!(0))
    );
    assert_eq!((&node["repair"]["if_lost_shards"], &node["stale"]), (&json!(packs), &json!(false)));
    let stripe =
        stripes(&dev).into_iter().find(|id| dev.run(&["cluster", "explain", id]).status.success()).unwrap();
    let why = ask(&dev, &["explain", &stripe[..12], "--verify"], "explain_stripe");
    assert_eq!((&why["stripe"], &why["at_target"], &why["spare"]), (&json!(stripe), &json!(true), &json!(2)));
    let shards = why["shards"].as_array().unwrap();
    assert!(
        shards.len() == 6 && shards.iter().all(|s| s["state"] == "good" && s["verified"] == "good"),
        "{why}"
    );
    let pack = why["pack"].as_str().unwrap();
    assert_eq!(ask(&dev, &["explain", pack], "explain_stripe")["stripe"], stripe, "by its pack as well");
    dev.fails(&["cluster", "explain", "nonsense"], 1, "NODE_DOWN");
    dev.fails(&["cluster", "explain", "ffffffffffff"], 1, "no stripe and no pack");
    let repair = ask(&dev, &["repair"], "repair");
    assert_eq!((&repair["queued"], &repair["under_target"]), (&json!(0), &json!(0)));
    let scrub = ask(&dev, &["scrub", "--status"], "scrub_status");
    assert_eq!((&scrub["verified"], &scrub["silent"]), (&scrub["shards"], &json!(0)), "{scrub}");
    assert!(scrub["shards"].as_u64().unwrap() >= 6 * packs, "{scrub}");
    watching_appends(&dev);

    // The region dies, and it is as foretold.
    dev.kill_region("cloud-b/south");
    let seen = wait_for_down(&dev, 2);
    assert_eq!(seen["safety"]["unreadable"], south["packs"]["unreadable"], "{seen}");
    assert_eq!(seen["safety"]["endangered"], south["packs"]["no_spare"], "{seen}");
    let down = ask(&dev, &["explain", "NODE_DOWN"], "explain_code");
    assert_eq!((&down["raised"], down["found"].as_array().unwrap().len()), (&json!(true), 2), "{down}");
    assert_eq!(down["numbers"]["nodes[b1].state"], "down", "{down}");
    let node = ask(&dev, &["explain", "b1"], "explain_node");
    assert_eq!((&node["state"], &node["repair"]["now_shards"]), (&json!("down"), &json!(0)), "{node}");
    assert!(node["grace_left_ms"].as_u64().unwrap() > 0 && node["since"].is_string(), "{node}");
    assert!(node["repair"]["text"].as_str().unwrap().starts_with("waits"), "{node}");
    let why = ask(&dev, &["explain", &stripe], "explain_stripe");
    let silent = why["shards"].as_array().unwrap().iter().filter(|s| s["state"] == "silent").count();
    assert_eq!((silent, &why["spare"], &why["at_target"]), (2, &json!(0), &json!(true)), "{why}");
    assert!(why["repair"].as_str().unwrap().contains("expected back"), "{why}");
    let scrub = ask(&dev, &["scrub", "--status"], "scrub_status");
    assert_eq!(scrub["silent"], 2, "{scrub}");

    // One node more, and nothing can be read: a node without a vote, so that the cluster still says so itself.
    let nodes = seen["nodes"].as_array().unwrap();
    let idle = nodes.iter().find(|n| n["voter"] == false && n["region"] == "cloud-a/north").unwrap();
    let idle = idle["name"].as_str().unwrap();
    let worse = ask(&dev, &["what-if", "--node", idle], "what_if");
    assert_eq!((&worse["packs"]["unreadable"], &worse["packs"]["lost_for_good"]), (&json!(packs), &json!(0)));
    assert_eq!(
        (&worse["snapshots"]["incomplete"], &worse["snapshots"]["incomplete_for_good"]),
        (&json!(2), &json!(0))
    );
    dev.kill_nodes(&[idle]);
    let seen = wait_for_down(&dev, 3);
    assert_eq!(seen["safety"]["unreadable"], worse["packs"]["unreadable"], "{seen}");
    let text = dev.ok(&["cluster", "explain", "DATA_UNREADABLE"]);
    assert!(text.contains("disks hold") && text.contains("safety.unreadable"), "{text}");

    // Without a quorum the nodes that are left still say what they know, and that nobody confirms it.
    dev.kill_region("cloud-c/west");
    let alone = ask(&dev, &["what-if", "--region", "cloud-a/north"], "what_if");
    assert_eq!((&alone["stale"], &alone["packs"]["unreadable"]), (&json!(true), &json!(packs)), "{alone}");
    assert_eq!(ask(&dev, &["explain", &stripe], "explain_stripe")["stale"], true);
    assert_eq!(ask(&dev, &["explain", "b1"], "explain_node")["stale"], true);
    assert_eq!(ask(&dev, &["explain", "NO_QUORUM"], "explain_code")["raised"], true);

    // All back, and nothing was lost.
    dev.kill_all();
    dev.restart();
    dev.ok(&["cluster", "status", "--wait", "90s"]);
    assert_eq!(wait_for_down(&dev, 0)["safety"]["unreadable"], 0);
    dev.ok(&["check"]);
    dev.stop();
}

/// In a pipe each look follows the one before.
fn watching_appends(dev: &Dev) {
    for args in [["status", "--watch", "1"], ["nodes", "--watch", "1"], ["repair", "--watch", "1"]] {
        let mut child =
            farshore().envs(dev.env()).arg("cluster").args(args).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let looks = lines.filter(|line| line.ends_with(" UTC")).take(2).count();
        let _ = child.kill();
        let _ = child.wait();
        assert_eq!(looks, 2, "{args:?}");
    }
}
