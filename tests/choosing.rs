//! What a backup takes and a restore brings back: the real binary against a real cluster, compared by other programs.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn noise(len: usize, seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) + 1;
    let mut next = || {
        // xorshift64, Marsaglia 2003.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len.div_ceil(8)).flat_map(|_| next()).take(len).collect()
}

fn put(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn backup(dev: &Dev, args: &[&str]) -> Value {
    json_line(&dev.ok(&[&["backup", "--json"], args].concat()), "summary")
}

/// Names of everything in a snapshot below a directory, without that directory.
fn names(dev: &Dev, snapshot: &Value, root: &Path) -> BTreeSet<String> {
    let prefix = format!("{}/", root.display());
    let listed = dev.ok(&["ls", snapshot["snapshot_id"].as_str().unwrap()]);
    listed.lines().filter_map(|line| Some(line.strip_prefix(&prefix)?.to_owned())).collect()
}

fn with_input(dev: &Dev, args: &[&str], input: &[u8]) -> Output {
    let mut command = farshore();
    command.envs(dev.env()).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn a_backup_takes_what_was_meant_and_a_restore_brings_back_what_was_meant() {
    let work = tempfile::tempdir().unwrap();
    let dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    leaving_out(&dev, &work.path().join("tree"));
    lists(&dev, &work.path().join("lists"));
    streams(&dev, work.path());
    parents(&dev, &work.path().join("parents"));
    images(&dev, &work.path().join("images"));
    restores(&dev, work.path());
    interrupted(&dev, work.path());
    counting(&dev, work.path());
    copies(&dev, work.path());
    tags(&dev);
}

fn leaving_out(dev: &Dev, tree: &Path) {
    for name in ["a.log", "keep.log", "b.txt", "sub/c.LOG", "sub/d.txt", "build/x", "cache/y", "marked/z"] {
        put(&tree.join(name), name.as_bytes());
    }
    put(&tree.join("cache/CACHEDIR.TAG"), b"Signature: 8a477f597d28d172789f06886806bc55\n# more");
    put(&tree.join("marked/.nobackup"), b"");
    put(&tree.join("big"), &noise(30_000, 1));
    put(&tree.join(".gitignore"), b"build/\n!sub/d.txt\n");
    put(&tree.join("sub/.gitignore"), b"d.*\n");
    let path = tree.to_str().unwrap();
    let list = tree.parent().unwrap().join("patterns");
    fs::write(&list, "# logs\n*.log\n\n!keep.log\n").unwrap();
    let all = names(dev, &backup(dev, &[path]), tree);
    let without = |args: &[&str]| {
        let left = names(dev, &backup(dev, &[&[path], args].concat()), tree);
        all.difference(&left).map(String::clone).collect::<Vec<_>>()
    };
    assert_eq!(without(&["--exclude", "*.log"]), ["a.log", "keep.log"]);
    assert_eq!(without(&["--iexclude", "*.log"]), ["a.log", "keep.log", "sub/c.LOG"]);
    assert_eq!(without(&["--exclude-file", list.to_str().unwrap()]), ["a.log"]);
    assert_eq!(without(&["--exclude", &format!("{path}/sub")]).len(), 4);
    assert_eq!(without(&["--exclude-caches"]), ["cache/y"]);
    assert_eq!(without(&["--exclude-if-present", ".nobackup"]), ["marked/z"]);
    assert!(without(&["--exclude-if-present", ".nobackup:header"]).is_empty());
    assert_eq!(without(&["--exclude-larger-than", "20K"]), ["big"]);
    assert_eq!(without(&["--git-ignore"]), ["build", "build/x", "sub/d.txt"]);
    assert_eq!(without(&["--custom-ignorefile", "nothing"]), Vec::<String>::new());
    dev.fails(&["backup", path, "--exclude", "[x"], 1, "no pattern");
    dev.fails(&["backup", path, "--exclude-larger-than", "much"], 1, "--exclude-larger-than");

    // Another file system is an empty directory with -x, if this test may mount one.
    let mount = tree.join("mounted");
    fs::create_dir(&mount).unwrap();
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&mount).output();
    if mounted.is_ok_and(|output| output.status.success()) {
        fs::write(mount.join("elsewhere"), b"x").unwrap();
        let (with, without) = (backup(dev, &[path]), backup(dev, &[path, "-x"]));
        let with: BTreeSet<_> = names(dev, &with, tree);
        let without = names(dev, &without, tree);
        let gone: Vec<_> = with.difference(&without).collect();
        assert!(Command::new("umount").arg(&mount).status().unwrap().success());
        assert_eq!(gone, ["mounted/elsewhere"]);
    } else {
        eprintln!("this test may not mount: -x was not tried");
    }
}

fn lists(dev: &Dev, dir: &Path) {
    for name in ["one", "two", "odd\nname", " spaced "] {
        put(&dir.join(name), name.as_bytes());
    }
    let (list, root) = (dir.join("list"), dir.display());
    let take = |flag: &str, text: String| {
        fs::write(&list, text).unwrap();
        names(dev, &backup(dev, &[flag, list.to_str().unwrap()]), dir)
    };
    let set = |names: &[&str]| names.iter().map(|name| (*name).into()).collect::<BTreeSet<String>>();
    assert_eq!(take("--files-from", format!("# all\n{root}/[ot]*o\n{root}/nothing*\n")), set(&["two"]));
    assert_eq!(
        take("--files-from-verbatim", format!("{root}/one\n{root}/ spaced \n")),
        set(&["one", " spaced "])
    );
    let raw = take("--files-from-raw", format!("{root}/odd\nname\0{root}/one\0"));
    assert!(raw.contains("one") && raw.len() == 2, "{raw:?}");
    let piped =
        with_input(dev, &["backup", "--json", "--files-from", "-"], format!("{root}/one\n").as_bytes());
    let piped = json_line(&String::from_utf8_lossy(&piped.stdout), "summary");
    assert_eq!(names(dev, &piped, dir), set(&["one"]));
    fs::write(&list, b"# nothing\n").unwrap();
    dev.fails(&["backup", "--files-from", list.to_str().unwrap()], 1, "nothing to back up");
}

fn streams(dev: &Dev, work: &Path) {
    let bytes = noise(3_000_000, 5);
    let args = ["backup", "--json", "--stdin", "--stdin-filename", "dir/dump.sql", "--tag", "dump"];
    let output = with_input(dev, &args, &bytes);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let summary = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
    assert_eq!(
        (&summary["total_bytes_processed"], &summary["total_files_processed"]),
        (&3_000_000.into(), &1.into())
    );
    let into = work.join("stream");
    dev.ok(&["restore", "latest", "--tag", "dump", "--target", into.to_str().unwrap()]);
    assert!(fs::read(into.join("dir/dump.sql")).unwrap() == bytes);

    let count = || dev.ok(&["snapshots"]).lines().count();
    let before = count();
    let failing = ["backup", "--stdin-from-command", "--", "sh", "-c", "echo half; exit 3"];
    dev.fails(&failing, 1, "exit status: 3");
    dev.fails(&["backup", "--stdin-from-command", "--", "/no/such/program"], 1, "cannot start");
    assert_eq!(count(), before, "a command that fails leaves no snapshot");
    let good = ["--stdin-from-command", "--stdin-filename", "said", "--", "sh", "-c", "echo whole"];
    let saved = backup(dev, &good);
    assert_eq!(saved["total_bytes_processed"], 6);
    assert_eq!(count(), before + 1);
}

fn parents(dev: &Dev, dir: &Path) {
    put(&dir.join("file"), &noise(200_000, 9));
    let path = dir.to_str().unwrap();
    let text = |value: &Value| value["snapshot_id"].as_str().unwrap_or_default().to_owned();
    let dry = backup(dev, &[path, "--dry-run"]);
    assert_eq!(
        (&dry["snapshot_id"], &dry["dry_run"], &dry["bytes_sent"]),
        (&Value::Null, &true.into(), &0.into())
    );
    assert!(
        dry["data_added"].as_u64().unwrap() >= 200_000
            && dry["data_added_packed"].as_u64().unwrap() >= 190_000
    );
    let first = backup(dev, &[path, "--host", "one"]);
    let added = |summary: &Value| summary["data_added"].as_u64().unwrap();
    // Times of directories above change, and with them a byte or two of their entries.
    assert!(added(&dry).abs_diff(added(&first)) < 100, "a dry run foretells: {dry} {first}");
    let unchanged = backup(dev, &[path, "--host", "one", "--skip-if-unchanged"]);
    assert_eq!(unchanged["snapshot_id"], Value::Null);
    let other = backup(dev, &[path, "--host", "two"]);
    assert_eq!(other["parent"], Value::Null, "another host has another parent");
    let grouped = backup(dev, &[path, "--host", "three", "--group-by", "paths"]);
    assert_eq!(grouped["parent"].as_str(), Some(&*text(&other)));
    let named = backup(dev, &[path, "--host", "three", "--parent", &text(&first)[..8]]);
    assert_eq!(named["parent"].as_str(), Some(&*text(&first)));
    dev.fails(&["backup", path, "--parent", "abcdabcd"], 1, "abcdabcd");
    std::thread::sleep(Duration::from_millis(2_100));
    put(&dir.join("file"), &noise(200_000, 10));
    let changed =
        backup(dev, &[path, "--host", "three", "--skip-if-unchanged", "--time", "2026-01-31 10:00:00"]);
    assert_eq!(changed["files_changed"], 1);
    let listed = dev.ok(&["snapshots", &text(&changed)[..8], "--json"]);
    assert!(listed.contains("2026-01-31T") || listed.contains("2026-01-30T"), "{listed}");
}

fn images(dev: &Dev, dir: &Path) {
    // An image moves by nothing: one changed block is one new piece.
    let mut bytes = noise(9 << 20, 3);
    put(&dir.join("disk.img"), &bytes);
    let path = dir.join("disk.img");
    let path = path.to_str().unwrap();
    let first = backup(dev, &[path, "--image"]);
    assert_eq!(first["data_blobs"], 3, "pieces of 4 MiB");
    bytes[5 << 20] ^= 1;
    let times = fs::metadata(path).unwrap().modified().unwrap();
    fs::write(path, &bytes).unwrap();
    fs::File::options().write(true).open(path).unwrap().set_modified(times).unwrap();
    let second = backup(dev, &[path, "--image", "--ignore-ctime"]);
    assert_eq!(
        (&second["data_blobs"], &second["bytes_read"]),
        (&1.into(), &(9 << 20).into()),
        "whatever its times say"
    );
    let attached = Command::new("losetup").args(["--find", "--show", path]).output();
    let Some(device) = attached.ok().filter(|o| o.status.success()) else {
        return eprintln!("this test may not attach a loop device: that was not tried");
    };
    let device = String::from_utf8(device.stdout).unwrap().trim().to_owned();
    let saved = dev.run(&["backup", "--json", &device, "--image"]);
    let plain = dev.run(&["backup", "--json", &device]);
    assert!(Command::new("losetup").args(["-d", &device]).status().unwrap().success());
    let saved = json_line(&String::from_utf8_lossy(&saved.stdout), "summary");
    assert_eq!((&saved["total_bytes_processed"], &saved["data_blobs"]), (&(9 << 20).into(), &0.into()));
    let plain = json_line(&String::from_utf8_lossy(&plain.stdout), "summary");
    assert_eq!(plain["total_bytes_processed"], 0, "without --image it is a device");
}

fn restores(dev: &Dev, work: &Path) {
    let source = work.join("source");
    for n in 0..40 {
        put(&source.join(format!("d{}/f{n}", n % 4)), &noise(10_000 + n * 100, n as u32));
    }
    put(&source.join("large"), &noise(20_000_000, 77));
    std::os::unix::fs::symlink("large", source.join("link")).unwrap();
    let id = backup(dev, &[source.to_str().unwrap()])["snapshot_id"].as_str().unwrap().to_owned();
    let (spec, into) = (format!("{id}:{}", source.display()), work.join("into"));
    let target = into.to_str().unwrap();
    let restore = |args: &[&str]| {
        json_line(&dev.ok(&[&["restore", &spec, "--target", target, "--json"], args].concat()), "summary")
    };
    let plan = restore(&["--dry-run"]);
    assert_eq!(fs::read_dir(&into).map_or(0, Iterator::count), 0, "a dry run writes nothing");
    let regions = plan["plan"]["regions"].as_array().unwrap();
    let planned = plan["plan"]["bytes"].as_u64().unwrap();
    assert!(regions.len() == 3 && (20_000_000..22_000_000).contains(&planned), "{plan}");
    let avoided = restore(&["--dry-run", "--avoid-region", "cloud-b/south"]);
    let south =
        avoided["plan"]["regions"].as_array().unwrap().iter().find(|r| r["region"] == "cloud-b/south");
    assert_eq!(south.unwrap()["bytes"], 0);
    dev.ok(&["cluster", "budget", "--link", "cloud-b/south,cloud-a/north,price=0.09"]);
    let priced = restore(&["--dry-run", "--near", "cloud-a/north"]);
    assert!(priced["plan"]["price"].is_number(), "{priced}");
    dev.fails(&["restore", &spec, "--target", target, "--avoid-region", "no/where"], 1, "cloud-a/north");

    let done = restore(&["--verify", "--avoid-region", "cloud-c/west", "--sparse"]);
    assert_eq!((&done["verified"]["wrong"], &done["verified"]["files"]), (&0.into(), &41.into()));
    assert_eq!(tree_differences(&source, &into), "");

    // What is right is not fetched; what is not in the snapshot goes on request only.
    let mut large = fs::read(into.join("large")).unwrap();
    large[10_000_000] ^= 1;
    fs::write(into.join("large"), large).unwrap();
    fs::write(into.join("d1/extra"), b"x").unwrap();
    let mended = restore(&[]);
    assert!(mended["bytes_fetched"].as_u64().unwrap() < 5_000_000, "{mended}");
    assert!(into.join("d1/extra").exists());
    assert_eq!(restore(&["--delete"])["files_deleted"], 1);
    assert_eq!(tree_differences(&source, &into), "");
    fs::write(into.join("d1/f1"), b"mine").unwrap();
    assert_eq!(restore(&["--overwrite", "never"])["files_restored"].as_u64().unwrap(), 4, "only directories");
    assert_eq!(fs::read(into.join("d1/f1")).unwrap(), b"mine");
    restore(&["--overwrite", "if-changed", "--include", "d1", "--exclude", "f5"]);
    assert_eq!(tree_differences(&source, &into), "");
    dev.fails(&["restore", &spec, "--target", target, "--verify", "--overwrite", "never"], 1, "--verify");
}

/// Killed again and again, a restore goes on where it was.
fn interrupted(dev: &Dev, work: &Path) {
    let source = work.join("large");
    put(&source.join("one"), &noise(60_000_000, 123));
    for n in 0..300 {
        put(&source.join(format!("many/{n}")), &noise(20_000, 1_000 + n));
    }
    let id = backup(dev, &[source.to_str().unwrap()])["snapshot_id"].as_str().unwrap().to_owned();
    let (spec, into) = (format!("{id}:{}", source.display()), work.join("again"));
    let args = ["restore", &spec, "--target", into.to_str().unwrap(), "--resume", "--json"];
    for n in 1..=10u64 {
        let mut child = farshore().envs(dev.env()).args(args).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(100 + n * 37 % 300));
        let _ = child.kill();
        child.wait().unwrap();
    }
    let last = json_line(&dev.ok(&args), "summary");
    assert_eq!(tree_differences(&source, &into), "");
    let again = json_line(&dev.ok(&args), "summary");
    assert_eq!((&again["bytes_fetched"], &again["files_skipped"]), (&0.into(), &301.into()), "after {last}");
    let left = Command::new("find").arg(&into).args(["-name", ".farshore-*"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&left.stdout), "", "nothing unfinished is left");
}

fn counting(dev: &Dev, work: &Path) {
    let tree = work.join("counted");
    put(&tree.join("a"), &noise(5_000, 1));
    put(&tree.join("same as a"), &noise(5_000, 1));
    put(&tree.join("b"), &noise(7_000, 2));
    fs::hard_link(tree.join("b"), tree.join("b too")).unwrap();
    let id = backup(dev, &[tree.to_str().unwrap()])["snapshot_id"].as_str().unwrap().to_owned();
    let stats = |mode: &str| {
        let text = dev.ok(&["stats", &id, "--mode", mode, "--json"]);
        serde_json::from_str::<Value>(&text).unwrap()
    };
    assert_eq!(
        stats("restore-size")["total_size"],
        17_000,
        "the second name of a file is not its bytes again"
    );
    let once = stats("files-by-contents");
    assert_eq!((&once["total_size"], &once["total_file_count"]), (&12_000.into(), &2.into()));
    assert_eq!(stats("blobs-per-file")["total_blob_count"], 2);
    let stored: Value = serde_json::from_str(&dev.ok(&["stats", "--mode", "raw-data", "--json"])).unwrap();
    let (packs, shards) = (stored["total_size"].as_u64().unwrap(), stored["shard_bytes"].as_u64().unwrap());
    assert!(shards >= packs * 3 / 2, "4+2: {stored}");
    dev.fails(&["stats", &id, "--mode", "raw-data"], 1, "whole repository");

    let all: u64 = stored["packs"].as_u64().unwrap();
    let read = |args: &[&str]| {
        let line =
            json_line(&dev.ok(&[&["check", "--json", "--read-data-subset"], args].concat()), "summary");
        line["packs_read"].as_u64().unwrap()
    };
    assert_eq!(read(&["1/3"]) + read(&["2/3"]) + read(&["3/3"]), all);
    let cursor = work.join("cursor");
    let (mut sum, cursor) = (0, cursor.to_str().unwrap());
    for _ in 0..3 {
        sum += read(&["34%", "--cursor", cursor]);
    }
    assert!(sum >= all, "{sum} of {all} in three runs");
    dev.fails(&["check", "--read-data-subset", "1/3", "--cursor", cursor], 1, "--cursor");
    dev.fails(&["check", "--read-data-subset", "much"], 1, "no part of a repository");
}

fn copies(dev: &Dev, work: &Path) {
    let tree = work.join("copied");
    for n in 0..30 {
        put(&tree.join(format!("d{}/f{n}", n % 3)), &noise(3_000 * n, n as u32));
    }
    put(&tree.join("large"), &noise(9_000_000, 40));
    std::os::unix::fs::symlink("large", tree.join("link")).unwrap();
    let path = tree.to_str().unwrap();
    // What was changed within two seconds of a scan is read again, also by a copy.
    std::thread::sleep(Duration::from_millis(2_100));
    backup(dev, &[path, "--host", "copied", "--tag", "x", "--time", "2026-01-02 03:04:05"]);
    put(&tree.join("d1/more"), &noise(100_000, 41));
    backup(dev, &[path, "--host", "copied", "--tag", "y"]);
    dev.ok(&["-r", "second", "init"]);
    let own = dev.env()["FARSHORE_REPOSITORY"].clone();
    let copy = ["-r", "second", "copy", "--from-repo", &own, "--host", "copied", "--json"];
    let said = dev.ok(&copy);
    let lines: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let read: Vec<u64> = lines.iter().filter_map(|line| line["bytes_read"].as_u64()).collect();
    assert_eq!(read.len(), 2, "{said}");
    assert_eq!(read[1], 100_000, "what the first copy brought is not read again");
    assert_eq!(json_line(&dev.ok(&copy), "summary")["skipped"], 2, "nothing is copied twice");
    let list = dev.ok(&["-r", "second", "snapshots", "--json"]);
    let list: Value = serde_json::from_str(&list).unwrap();
    assert_eq!((&list[0]["tags"][0], &list[1]["tags"][0]), (&"x".into(), &"y".into()));
    assert!(list[0]["time"].as_str().unwrap().starts_with("2026-01-0"), "{list}");
    let into = work.join("from the copy");
    let spec = format!("latest:{path}");
    dev.ok(&["-r", "second", "restore", &spec, "--target", into.to_str().unwrap()]);
    assert_eq!(tree_differences(&tree, &into), "");
    dev.ok(&["-r", "second", "check", "--read-data"]);
    dev.fails(&["copy", "--from-repo", &own], 1, "into itself");
}

/// After `copies`, which has left two snapshots with a tag each.
fn tags(dev: &Dev) {
    let list = || -> Vec<Value> {
        let text = dev.ok(&["-r", "second", "snapshots", "--json"]);
        serde_json::from_str::<Value>(&text).unwrap().as_array().unwrap().clone()
    };
    let before = list();
    let id = before[0]["id"].as_str().unwrap();
    let tag =
        |args: &[&str]| json_line(&dev.ok(&[&["-r", "second", "--json", "tag"], args].concat()), "summary");
    dev.ok(&["-r", "second", "lock", id, "--for", "1d", "--mode", "compliance"]);
    assert_eq!(tag(&["--add", "kept,x", "--remove", "nothing", &id[..8]])["changed_snapshots"], 1);
    assert_eq!(tag(&["--add", "kept", &id[..8]])["changed_snapshots"], 0, "it has it already");
    let after = list();
    assert_eq!(after[0]["tags"], serde_json::json!(["x", "kept"]));
    for same in ["id", "time", "tree", "committed"] {
        assert_eq!(after[0][same], before[0][same], "{same} stays");
    }
    assert!(after[0]["lock"].is_object(), "and so does its lock");
    assert_eq!(tag(&["--set", "", "--tag", "y"])["changed_snapshots"], 1, "a filter names snapshots");
    assert_eq!(list()[1]["tags"], serde_json::json!([]));
    dev.fails(&["-r", "second", "tag", id], 1, "--set");
    let audit = dev.ok(&["cluster", "audit"]);
    assert!(audit.contains("described anew"), "{audit}");
}
