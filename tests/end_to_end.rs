//! The real binary, real processes, real files: what an operator does, and what goes wrong for them.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A tree with a little of everything, `files` files of noise and text, and a large one of noise: with any repetition in
/// it, how much of it is sent would depend on where a random key happens to cut.
fn make_tree(root: &Path, files: u32) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    let mut state = 0x5eed_u64;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    for number in 0..files {
        let len = (number as usize * 7_919) % 60_000;
        let text = b"tide and shore\n".iter().copied().cycle();
        let bytes: Vec<u8> =
            if number % 2 == 0 { (0..len).map(|_| noise()).collect() } else { text.take(len).collect() };
        fs::write(root.join(format!("a/file {number}")), bytes).unwrap();
    }
    fs::write(root.join("a/b/big"), (0..6_000_000).map(|_| noise()).collect::<Vec<u8>>()).unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    symlink("a/b/big", root.join("link")).unwrap();
    fs::hard_link(root.join("a/b/big"), root.join("a/b/hard")).unwrap();
}

fn restore_is_identical(dev: &Dev, source: &Path, snapshot: &str) {
    let target = tempfile::tempdir().unwrap();
    dev.ok(&["restore", snapshot, "--target", target.path().to_str().unwrap()]);
    let back = target.path().join(source.strip_prefix("/").unwrap());
    assert_eq!(tree_differences(source, &back), "", "restored tree differs");
}

fn shard_files(dev: &Dev) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "shard") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for node in dev.nodes() {
        walk(&PathBuf::from(node["data_dir"].as_str().unwrap()).join("shards"), &mut found);
    }
    found.sort();
    found
}

fn flip_byte(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_cluster_through_its_worst_day() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    make_tree(&source, 60);
    let path = source.to_str().unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));

    // No repository yet, and not with a wrong passphrase later.
    dev.fails(&["snapshots"], 10, "does not exist");
    dev.ok(&["init"]);
    dev.fails(&["init"], 1, "already exists");
    let wrong =
        farshore().envs(dev.env()).env("FARSHORE_PASSWORD", "wrong").arg("snapshots").output().unwrap();
    assert_eq!(wrong.status.code(), Some(12), "{}", String::from_utf8_lossy(&wrong.stderr));

    // A first backup sends everything once, a second nothing.
    let first = json_line(&dev.ok(&["backup", path, "--json"]), "summary");
    assert_eq!(first["files_new"], 63);
    assert!(first["bytes_sent"].as_u64().unwrap() > 6_000_000);
    assert_eq!(first["kind"], "full", "with nothing to build on, everything is read");
    assert!(first["durability"].is_object());
    // Files written within two seconds of the scan would be read again, since their times prove nothing.
    std::thread::sleep(Duration::from_millis(2_100));
    dev.ok(&["backup", path]);
    let again = json_line(&dev.ok(&["backup", path, "--json"]), "summary");
    assert_eq!((&again["files_unmodified"], &again["data_blobs"]), (&Value::from(63), &Value::from(0)));
    assert_eq!(again["data_added"], 0);
    restore_is_identical(&dev, &source, "latest");

    // One path of a snapshot, and the listing.
    let listing = dev.ok(&["ls", "latest", &format!("{path}/a/b")]);
    assert!(listing.lines().any(|l| l.ends_with("/a/b/big")), "{listing}");
    let target = tempfile::tempdir().unwrap();
    let subtree = format!("latest:{path}/a");
    dev.ok(&["restore", &subtree, "--target", target.path().to_str().unwrap()]);
    assert_eq!(tree_differences(&source.join("a/b"), &target.path().join("b")), "");

    // Damage: a flipped byte, a file short by one byte, a file gone.
    let shards = shard_files(&dev);
    assert!(shards.len() >= 12, "a data and a tree pack at least: {shards:?}");
    flip_byte(&shards[0]);
    let short = &shards[shards.len() / 2];
    let len = fs::metadata(short).unwrap().len();
    fs::OpenOptions::new().write(true).open(short).unwrap().set_len(len - 1).unwrap();
    fs::remove_file(&shards[shards.len() - 1]).unwrap();
    restore_is_identical(&dev, &source, "latest");
    let scrub = json_line(&dev.ok(&["cluster", "scrub", "--wait", "--json"]), "summary");
    assert!(scrub["shards_checked"].as_u64().unwrap() + 3 >= shards.len() as u64, "{scrub}");
    dev.ok(&["cluster", "status", "--wait", "60s"]);
    let clean = json_line(&dev.ok(&["cluster", "scrub", "--wait", "--json"]), "summary");
    assert_eq!(
        (&clean["bad"], &clean["missing"]),
        (&Value::from(0), &Value::from(0)),
        "all rebuilt: {clean}"
    );
    dev.ok(&["check", "--read-data"]);

    // Everything dies at once; what was acknowledged is there again.
    dev.kill_all();
    dev.restart();
    restore_is_identical(&dev, &source, "latest");

    // A region dies. Restore works, and a backup of something new is accepted in degraded form.
    dev.kill_region("cloud-b/south");
    restore_is_identical(&dev, &source, "latest");
    fs::write(source.join("new while degraded"), vec![0xab; 300_000]).unwrap();
    let degraded = dev.run(&["backup", path, "--json"]);
    assert_eq!(degraded.status.code(), Some(14), "{}", String::from_utf8_lossy(&degraded.stderr));
    restore_is_identical(&dev, &source, "latest");
    let status: Value = serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap();
    assert_ne!(status["health"], "ok");

    // What the last backup brought, and where a file is.
    let old = first["snapshot_id"].as_str().unwrap();
    let compared = dev.ok(&["diff", old, "latest", "--json"]);
    let changes: Vec<Value> = compared.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(changes[0]["path"], format!("{path}/new while degraded"));
    assert_eq!(
        (&changes[0]["modifier"], &changes[1]["added"]["files"]),
        (&Value::from("+"), &Value::from(1))
    );
    assert_eq!(changes.len(), 2, "{compared}");
    let found = dev.ok(&["find", "NEW*", "--ignore-case", "--json"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!((found.as_array().unwrap().len(), &found[0]["hits"]), (1, &Value::from(1)), "{found}");
    assert_eq!(found[0]["matches"][0]["size"], 300_000);
    let tree: Value = serde_json::from_str(&dev.ok(&["cat", "tree", &format!("latest:{path}")])).unwrap();
    assert!(tree["nodes"].as_array().unwrap().iter().any(|node| node["name"] == "new while degraded"));
    let config: Value = serde_json::from_str(&dev.ok(&["cat", "config"])).unwrap();
    assert_eq!(config["policy"], "1 region");

    // Two more die: six shards on two nodes would not survive the loss of either, so nothing new can be promised.
    dev.kill_nodes(&["a2", "c2"]);
    fs::write(source.join("refused"), vec![0xcd; 300_000]).unwrap();
    let refused = dev.run(&["backup", path]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(13), "{said}");
    assert!(said.contains("b1") || said.contains("cloud-b"), "the message names what is missing: {said}");
    fs::remove_file(source.join("refused")).unwrap();

    // All back: healed, to full strength.
    dev.kill_all();
    dev.restart();
    dev.ok(&["cluster", "status", "--wait", "90s"]);
    restore_is_identical(&dev, &source, "latest");
    dev.ok(&["check", "--read-data"]);
    let status: Value = serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap();
    assert_eq!(status["safety"]["under_target"], 0, "{status}");

    // A source that cannot be read in part is saved in part.
    let partial = dev.run(&["backup", path, "/proc/sysrq-trigger"]);
    assert_eq!(partial.status.code(), Some(3), "{}", String::from_utf8_lossy(&partial.stderr));
    dev.stop();
}

#[test]
fn wrong_input_is_one_line_and_the_right_code() {
    let dir = tempfile::tempdir().unwrap();
    let say = |args: &[&str], code: i32| {
        let output = farshore().args(args).env("FARSHORE_PASSWORD", "x").output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {text}");
        assert_eq!(text.trim_end().lines().count(), 1, "{args:?}: {text}");
        assert!(!text.contains("panicked"), "{text}");
    };
    say(&["backup", "--no-such-flag"], 1);
    say(&["no-such-command"], 1);
    say(&["snapshots"], 1);
    say(&["--profile", "/no/such/file", "-r", "x", "snapshots"], 1);
    let profile = dir.path().join("profile.toml");
    for text in ["", "cluster = ", "cluster = \"zz\"\nendpoints = []\n", "\u{0}\u{1}"] {
        fs::write(&profile, text).unwrap();
        say(&["--profile", profile.to_str().unwrap(), "-r", "x", "snapshots"], 12);
    }
    say(&["node", "run", "--config", "/no/such/file"], 1);
    say(&["cluster", "init", "--dir", dir.path().to_str().unwrap(), "--node", "a"], 1);
}

#[test]
fn a_profile_of_another_cluster_or_of_nobody_is_refused() {
    let work = tempfile::tempdir().unwrap();
    // Nobody listens there.
    let alone = work.path().join("alone");
    let node = "a1=cloud-a/north=127.0.0.1:1";
    let made = farshore()
        .args(["cluster", "init", "--dir", alone.to_str().unwrap(), "--node", node])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let profile = alone.join("profile.toml");
    let output =
        farshore().args(["--profile", profile.to_str().unwrap(), "cluster", "status"]).output().unwrap();
    assert_eq!(output.status.code(), Some(13), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn strangers_garbage_and_foreign_data_change_nothing() {
    use std::io::{Read as _, Write as _};
    let work = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);

    // A member of another cluster knocks here.
    let other = work.path().join("other");
    let addr = dev.nodes()[0]["addr"].as_str().unwrap().to_owned();
    let node = format!("x1=cloud-x/elsewhere={addr}");
    let made = farshore()
        .args(["cluster", "init", "--dir", other.to_str().unwrap(), "--node", &node])
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let stranger = farshore()
        .args(["--profile", other.join("profile.toml").to_str().unwrap(), "cluster", "status"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&stranger.stderr).into_owned();
    assert_eq!(stranger.status.code(), Some(12), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");

    // Garbage on every port: the start of plaintext HTTP/2, noise, and silence.
    for node in dev.nodes() {
        let addr = node["addr"].as_str().unwrap();
        for bytes in
            [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &[0xa5; 300_000], &[0x16, 3, 1, 0xff, 0xff], b""]
        {
            let mut stream = std::net::TcpStream::connect(addr).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
            // The node may hang up before it has heard everything.
            let _ = stream.write_all(bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer);
            assert!(answer.len() < 100, "no stranger is told anything");
        }
    }

    // A node does not open the data of another, and leaves it as it is.
    dev.kill_nodes(&["a2", "c2"]);
    let nodes = work.path().join("dev/nodes");
    let text = fs::read_to_string(nodes.join("a2/node.toml")).unwrap();
    let (own, foreign) = (nodes.join("a2/data"), nodes.join("c2/data"));
    let text = text.replace(own.to_str().unwrap(), foreign.to_str().unwrap());
    let config = nodes.join("a2/swapped.toml");
    fs::write(&config, text).unwrap();
    let swapped = farshore().args(["node", "run", "--config", config.to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&swapped.stderr).into_owned();
    assert_eq!(swapped.status.code(), Some(1), "{said}");
    assert!(said.contains("belongs to") && !said.contains("panicked"), "{said}");
    dev.start_node("a2");
    dev.start_node("c2");
    dev.ok(&["cluster", "status", "--wait", "60s"]);
    let status: Value = serde_json::from_str(&dev.ok(&["cluster", "status", "--json"])).unwrap();
    assert_eq!(status["nodes"].as_array().unwrap().len(), 6, "nobody joined: {status}");
    dev.ok(&["snapshots"]);
    dev.stop();
}
