//! Regions and nodes are emptied while backups and restores go on: hot, cold, cancelled at half and taken up again. Nothing is
//! lost, nothing is left behind, and the records say so and can be checked.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A tree that is backed up again and again, each time a bit larger, and what came of it.
struct Work {
    source: PathBuf,
    copies: PathBuf,
    kept: Vec<(String, PathBuf)>,
}

impl Work {
    fn new(dir: &Path) -> Self {
        let (source, copies) = (dir.join("source"), dir.join("copies"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&copies).unwrap();
        Work { source, copies, kept: Vec::new() }
    }
    /// Adds to the tree, and sets a backup of it going.
    fn begin(&mut self, dev: &Dev, bytes: u32) -> Child {
        let mut state = self.kept.len() as u32 * 7_919 + 1;
        let noise = (0..bytes).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        fs::write(self.source.join(format!("file-{}", self.kept.len())), noise.collect::<Vec<_>>()).unwrap();
        let args = ["backup", self.source.to_str().unwrap(), "--json"];
        farshore().envs(dev.env()).args(args).stdout(Stdio::piped()).spawn().unwrap()
    }
    fn end(&mut self, child: Child) {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let said = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
        let copy = self.copies.join(self.kept.len().to_string());
        let copied = std::process::Command::new("cp").arg("-a").args([&self.source, &copy]).status();
        assert!(copied.unwrap().success());
        self.kept.push((said["snapshot_id"].as_str().unwrap().into(), copy));
    }
    fn backup(&mut self, dev: &Dev, bytes: u32) {
        let child = self.begin(dev, bytes);
        self.end(child);
    }
    fn restores(&self, dev: &Dev) {
        for (id, copy) in &self.kept {
            let target = tempfile::tempdir().unwrap();
            dev.ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
            let back = target.path().join(self.source.strip_prefix("/").unwrap());
            assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
        }
    }
}

fn status(dev: &Dev) -> Value {
    serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap()
}
fn cluster(dev: &Dev, args: &[&str], message: &str) -> Value {
    json_line(&dev.ok(&[&["--json", "cluster"], args].concat()), message)
}
fn wait_for(dev: &Dev, what: impl Fn(&Value) -> bool) -> Value {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        let status = status(dev);
        if what(&status) {
            return status;
        }
        assert!(Instant::now() < deadline, "{status}");
        std::thread::sleep(Duration::from_millis(300));
    }
}
fn state_of(status: &Value, name: &str) -> String {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == *name).unwrap()["state"].as_str().unwrap().into()
}
fn all_in(status: &Value, region: &str, state: &str) -> bool {
    let nodes = status["nodes"].as_array().unwrap();
    nodes.iter().filter(|node| node["region"] == *region).all(|node| node["state"] == *state)
}
fn codes(status: &Value) -> BTreeSet<String> {
    status["codes"].as_array().unwrap().iter().map(|c| c["code"].as_str().unwrap().into()).collect()
}

/// Shard files of a node, parts of catalogue exports aside: those belong to no pack and are made anew each day.
fn shard_files(dev: &Dev, name: &str) -> u64 {
    let nodes = status(dev)["nodes"].as_array().unwrap().clone();
    nodes.iter().find(|node| node["name"] == *name).unwrap()["shards"].as_u64().unwrap()
}

#[test]
fn a_region_moves_while_it_is_in_use_and_cold_writes_wait() {
    let dir = tempfile::tempdir().unwrap();
    let mut work = Work::new(dir.path());
    let args = ["--regions", "4", "--nodes-per-region", "2", "--grace", "6s"];
    let mut dev = Dev::start_with(&dir.path().join("dev"), &args);
    let nodes = dev.nodes();
    let regions: Vec<String> =
        nodes.iter().step_by(2).map(|n| n["region"].as_str().unwrap().into()).collect();
    let [from, other, _, to] = &regions[..] else { panic!("{regions:?}") };
    // The fourth region is given up before anything is stored, so that it comes back empty.
    dev.kill_region(to);
    wait_for(&dev, |status| all_in(status, to, "lost"));
    dev.ok(&["init", "--survive", "1 region"]);
    for _ in 0..3 {
        work.backup(&dev, 2_000_000);
    }
    for node in nodes.iter().filter(|node| node["region"] == **to) {
        dev.start_node(node["name"].as_str().unwrap());
    }
    wait_for(&dev, |status| all_in(status, to, "up"));
    dev.ok(&["cluster", "status", "--wait", "1m"]);

    // What it would do and cost; and what makes no sense is refused before anything is done.
    let both = ["migrate", "--from", from.as_str(), "--to", to.as_str()];
    let link = format!("{from},{to},price=0.02");
    cluster(&dev, &["budget", "--node-rate", "1", "--link", &link], "budget");
    let plan = cluster(&dev, &[&both[..], &["--dry-run"]].concat(), "migration");
    let bytes = plan["moved_bytes"].as_u64().unwrap();
    assert!(plan["state"] == "planned" && bytes > 0 && plan["refused"] == json!([]), "{plan}");
    assert_eq!(plan["links"], json!([{"from": from, "to": to, "bytes": bytes}]));
    assert!(plan["price_micros"].as_u64().unwrap() > 0, "{plan}");
    dev.fails(&["cluster", "migrate", "--from", from, "--to", other], 1, "not all of it fits into");
    dev.fails(&["cluster", "migrate", "--from", from, "--to", "nowhere/at-all"], 1, "no node");

    // Cold, and so slow that it does not end: backups are refused, restores are not, and it can be given up.
    cluster(&dev, &[&both[..], &["--cold"]].concat(), "migration");
    let seen = wait_for(&dev, |status| status["repair"]["held"] != "" && status["repair"]["rebuilt"] != 0);
    assert!(codes(&seen).contains("WRITES_FROZEN"), "{seen}");
    dev.fails(&["backup", work.source.to_str().unwrap()], 16, "nothing is written while region");
    work.restores(&dev);
    cluster(&dev, &["migrate", "--from", from, "--cancel"], "migration");
    let seen = wait_for(&dev, |status| all_in(status, from, "up"));
    assert!(!codes(&seen).contains("WRITES_FROZEN") && seen["migrations"] == json!([]), "{seen}");

    // Hot: a backup runs beside it. One that ended before would be coded over all four regions, and could not do with three.
    cluster(&dev, &["budget", "--node-rate", "none"], "budget");
    cluster(&dev, &both, "migration");
    let beside = work.begin(&dev, 3_000_000);
    work.end(beside);
    let done = cluster(&dev, &["migrate", "--from", from, "--wait", "2m"], "migration");
    assert_eq!(done["state"], "done");
    dev.ok(&["cluster", "status", "--wait", "1m"]);
    assert!(all_in(&status(&dev), from, "retired"));
    work.restores(&dev);

    // Each node that was emptied has its record, and every stripe in it is whole.
    let records = cluster(&dev, &["verified"], "verified");
    assert_eq!(records["waiting"], json!([]), "{records}");
    let ended: Vec<_> =
        records["records"].as_array().unwrap().iter().filter(|r| r["ended_ms"] != Value::Null).collect();
    let names: BTreeSet<_> = ended.iter().map(|record| record["name"].as_str().unwrap()).collect();
    assert!(names.len() == 2 && ended.iter().all(|record| record["short"] == 0), "{records}");
    for record in ended {
        let number = record["number"].to_string();
        let now = cluster(&dev, &["verified", &number, "--read"], "verification_check");
        assert!(now["now"]["short"] == 0 && now["now"]["read"] == true, "{now}");
        assert_eq!(
            now["now"]["unchanged"].as_u64().unwrap() + now["now"]["changed"].as_u64().unwrap(),
            record["stripes"]
        );
    }
    // What the policy promised holds without the region that is gone.
    dev.kill_region(other);
    work.restores(&dev);
    dev.stop();
}

/// Three regions of three nodes, of which one each is given up before anything is stored: the spare of its region, should it
/// come back. `offered` is what the nodes of the first region offer.
fn with_spares_away(dir: &Path, offered: Option<&str>) -> (Dev, Vec<String>) {
    let args = ["--regions", "3", "--nodes-per-region", "3", "--grace", "6s"];
    let mut dev = Dev::start_with(&dir.join("dev"), &args);
    let names: Vec<String> = dev.nodes().iter().map(|node| node["name"].as_str().unwrap().into()).collect();
    let named = |places: [usize; 3]| places.map(|at| names[at].as_str());
    if let Some(offered) = offered {
        dev.offer(&named([0, 1, 2]), offered);
        dev.restart();
    }
    let spares = named([2, 5, 8]);
    dev.kill_nodes(&spares);
    wait_for(&dev, |status| spares.iter().all(|name| state_of(status, name) == "lost"));
    dev.ok(&["init", "--survive", "1 region"]);
    (dev, names)
}

#[test]
fn a_drain_is_cancelled_at_half_and_taken_up_again_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let mut work = Work::new(dir.path());
    let (mut dev, names) = with_spares_away(dir.path(), None);
    for _ in 0..4 {
        work.backup(&dev, 1_500_000);
    }
    dev.start_node(&names[2]);
    wait_for(&dev, |status| state_of(status, &names[2]) == "up");
    dev.ok(&["cluster", "status", "--wait", "1m"]);
    let seen = status(&dev);
    // Not the leader, whose counts go when it does.
    let plain = seen["nodes"].as_array().unwrap().iter().filter(|node| node["leader"] == false);
    let victim = plain
        .map(|node| node["name"].as_str().unwrap())
        .find(|n| names[..2].iter().any(|name| name == n))
        .unwrap()
        .to_owned();
    let before = shard_files(&dev, &victim);

    cluster(&dev, &["budget", "--node-rate", "1"], "budget");
    dev.ok(&["cluster", "drain", &victim]);
    let beside = work.begin(&dev, 2_000_000);
    wait_for(&dev, |status| status["repair"]["rebuilt"].as_u64() > Some(0) && status["repair"]["held"] != "");
    work.restores(&dev);
    dev.ok(&["cluster", "drain", &victim, "--cancel"]);
    work.end(beside);
    let half = wait_for(&dev, |status| status["repair"]["queued"] == 0 && status["repair"]["running"] == 0);
    let moved = half["repair"]["rebuilt"].as_u64().unwrap();
    assert!(moved > 0 && moved < before, "{moved} of {before}");

    cluster(&dev, &["budget", "--node-rate", "none"], "budget");
    let beside = work.begin(&dev, 2_000_000);
    dev.ok(&["cluster", "drain", &victim, "--wait", "2m"]);
    work.end(beside);
    dev.ok(&["cluster", "status", "--wait", "1m"]);
    work.restores(&dev);

    let records = cluster(&dev, &["verified"], "verified");
    let of_victim: Vec<_> =
        records["records"].as_array().unwrap().iter().filter(|r| r["name"] == *victim).collect();
    let stripes: u64 = of_victim.iter().map(|record| record["stripes"].as_u64().unwrap()).sum();
    assert!(of_victim.iter().all(|r| r["short"] == 0 && r["ended_ms"] != Value::Null), "{records}");
    assert!(stripes >= moved && records["waiting"] == json!([]), "{records}");
    // No orphan: what the nodes hold is what the catalogue names, and a scrub finds nothing.
    let scrub = cluster(&dev, &["scrub", "--wait"], "summary");
    assert_eq!((&scrub["bad"], &scrub["missing"]), (&json!(0), &json!(0)), "{scrub}");
    dev.stop();
}

#[test]
fn a_node_that_is_added_takes_its_share_of_its_region() {
    let dir = tempfile::tempdir().unwrap();
    let mut work = Work::new(dir.path());
    // So small that what follows fills a fifth of them.
    let (mut dev, names) = with_spares_away(dir.path(), Some("96M"));
    work.backup(&dev, 80_000_000);
    dev.start_node(&names[2]);
    let used = |status: &Value, name: &str| {
        let nodes = status["nodes"].as_array().unwrap();
        nodes.iter().find(|node| node["name"] == *name).unwrap()["used"].as_u64().unwrap()
    };
    wait_for(&dev, |status| {
        let used = [0, 1, 2].map(|at| used(status, &names[at]));
        let idle = status["repair"]["queued"] == 0 && status["repair"]["running"] == 0;
        // A shard is 8 MB: it stops when one more would only turn the tables.
        idle && used[2] > 5 << 20
    });
    let seen = status(&dev);
    assert_eq!(seen["repair"]["links"], json!([]), "nothing goes over a line between regions for it");
    work.restores(&dev);
    dev.stop();
}
