//! Nodes that are full: one, then a whole region. Backups go on while the policy can be met, the status says who is full, and what
//! was acknowledged is there.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Less than the room that a node keeps for one large shard, and more than what it holds by then.
const LITTLE: &str = "24M";

fn status(dev: &Dev) -> Value {
    serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap()
}

/// Waits until the status calls these nodes full. A leader that was just elected knows only of those it has heard.
fn wait_for_full(dev: &Dev, names: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let seen = status(dev);
        let codes = seen["codes"].as_array().unwrap();
        let full = codes.iter().find(|code| code["code"] == "NODE_FULL");
        let said = full.map_or("", |code| code["text"].as_str().unwrap());
        if names.iter().all(|name| said.contains(name.as_str())) {
            return;
        }
        assert!(Instant::now() < deadline, "{names:?} are not called full: {seen}");
        std::thread::sleep(Duration::from_millis(250));
    }
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
    assert!(Command::new("cp").arg("-a").args([source, &copy]).status().unwrap().success());
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
    wait_for_full(&dev, &[one]);

    dev.offer(&region.each_ref().map(String::as_str), LITTLE);
    dev.restart();
    for round in 3..5 {
        kept.push(
            back_up(&dev, work.path(), &source, round)
                .expect("two regions can hold it, two shards to a node"),
        );
    }
    wait_for_full(&dev, &region);
    for (id, copy) in &kept {
        let target = tempfile::tempdir().unwrap();
        dev.ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
        let back = target.path().join(source.strip_prefix("/").unwrap());
        assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
    }
    dev.stop();
}

/// Runs a node with its data directory on a small disk of memory that nobody else sees: `$1` config, `$2` the directory,
/// `$3` where its content is kept meanwhile, `$4` a file with which the disk runs full.
const ON_SMALL_DISK: &str = r#"
set -e
cp -a "$2" "$3"
mount -t tmpfs -o size=8m none "$2"
cp -a "$3/." "$2"
fill() { cat /dev/zero > "$2/filler" || true; } 2> /dev/null
if [ -e "$4" ]; then fill "$@"; else (until [ -e "$4" ]; do sleep 0.1; done; fill "$@") & fi
exec timeout 120 "$0" node run --config "$1"
"#;

/// How to get a file system of one's own here, if that is allowed.
fn apart() -> Option<Vec<&'static str>> {
    let ways = [vec!["--mount"], vec!["--map-root-user", "--mount"]];
    ways.into_iter().find(|way| {
        let tried = Command::new("unshare").args(way).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    })
}

/// Its last words.
fn said(node: Child) -> String {
    let output = node.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "it ends by itself");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_node_without_a_byte_left_says_what_is_full_and_what_to_do() {
    let Some(apart) = apart() else { return eprintln!("skipped: no file systems of one's own here") };
    let work = tempfile::tempdir().unwrap();
    let args = ["--regions", "3", "--nodes-per-region", "1", "--grace", "5m"];
    let mut dev = Dev::start_with(&work.path().join("dev"), &args);
    dev.ok(&["init", "--survive", "1 region"]);
    let leader = dev.leader();
    let nodes = dev.nodes();
    let mut names = nodes.iter().map(|node| node["name"].as_str().unwrap());
    let name = names.find(|name| leader.as_deref() != Some(name)).unwrap();
    dev.kill_nodes(&[name]);
    let home = work.path().join("dev/nodes").join(name);
    let (full, source) = (work.path().join("full"), work.path().join("source"));
    fs::create_dir_all(&source).unwrap();
    let start = |kept: &str| {
        let mut node = Command::new("unshare");
        node.args(&apart).args(["sh", "-c", ON_SMALL_DISK, env!("CARGO_BIN_EXE_farshore")]);
        node.arg(home.join("node.toml")).arg(home.join("data")).arg(work.path().join(kept)).arg(&full);
        node.stderr(Stdio::piped()).spawn().unwrap()
    };

    // At work: the cluster goes on, and the node has to write its log.
    let mut node = start("kept-1");
    dev.ok(&["cluster", "status", "--wait", "30s"]);
    fs::write(&full, []).unwrap();
    for round in 0..100 {
        if node.try_wait().unwrap().is_some() {
            break;
        }
        fs::write(source.join(format!("file-{round}")), noise(round + 1, 10_000)).unwrap();
        dev.run(&["backup", source.to_str().unwrap()]);
    }
    // And at the start.
    for told in [said(node), said(start("kept-2"))] {
        let last = told.lines().rfind(|line| line.starts_with("farshore: ")).unwrap_or_default();
        assert!(last.contains(home.join("data").to_str().unwrap()) && last.contains("is full"), "{told}");
        assert!(last.contains("free some space there") && last.contains("nothing is lost"), "{told}");
        assert!(!told.contains("panicked"), "{told}");
    }
}
