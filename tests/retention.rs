//! Retention with the real binary: what is kept and why, the way back, locks, policies that run by themselves, garbage.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, json_line};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

fn backup(dev: &Dev, path: &Path, more: &[&str]) -> String {
    let args = [&["backup", path.to_str().unwrap(), "--json"], more].concat();
    json_line(&dev.ok(&args), "summary")["snapshot_id"].as_str().unwrap().to_owned()
}

fn value(dev: &Dev, args: &[&str]) -> Value {
    let out = dev.ok(&[args, &["--json"]].concat());
    serde_json::from_str(out.lines().next().unwrap_or_default())
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
}

/// Ids, oldest first.
fn snapshots(dev: &Dev) -> Vec<String> {
    ids(&value(dev, &["snapshots"]))
}

fn ids(list: &Value) -> Vec<String> {
    list.as_array().unwrap().iter().map(|s| s["id"].as_str().unwrap().to_owned()).collect()
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

#[test]
fn what_is_kept_and_why_and_the_way_back() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let mut made = Vec::new();
    for n in 0..4 {
        fs::write(source.join("file"), noise(3_000_000 + n, n as u64)).unwrap();
        made.push(backup(&dev, &source, &["--tag", if n == 0 { "first" } else { "later" }, "--host", "h"]));
    }

    // Nothing goes without a policy, and not everything by one that fits nothing.
    dev.fails(&["forget"], 1, "no policy was specified");
    dev.fails(&["forget", "--unsafe-allow-remove-all"], 1, "--host, --tag or --path");
    dev.fails(&["forget", "--keep-tag", "nobody"], 1, "refusing to delete the last snapshot");
    dev.fails(&["forget", "--keep-last=-1"], 1, "is no count");
    dev.fails(&["forget", "--keep-within", "7x"], 1, "span of time");
    dev.fails(&["forget", "abcd"], 1, "no snapshot matches");
    assert_eq!(snapshots(&dev), made);

    // restic's words, in the order of restic; nothing happens yet.
    let plan = value(&dev, &["forget", "--keep-last", "2", "--keep-tag", "first", "-n"]);
    let group = &plan[0];
    assert_eq!(plan.as_array().unwrap().len(), 1);
    assert_eq!((group["host"].as_str(), &group["tags"]), (Some("h"), &Value::Null));
    assert_eq!(group["paths"], Value::from(vec![source.to_str().unwrap()]));
    assert_eq!(ids(&group["keep"]), [made[3].clone(), made[2].clone(), made[0].clone()]);
    assert_eq!(ids(&group["remove"]), [made[1].clone()]);
    let matches: Vec<&Value> = group["reasons"].as_array().unwrap().iter().map(|r| &r["matches"]).collect();
    assert_eq!(matches[0], &Value::from(vec!["last snapshot"]));
    assert_eq!(matches[2], &Value::from(vec!["has tags [first]"]));
    assert_eq!(group["reasons"][2]["snapshot"]["id"], Value::from(made[0].clone()));
    let each = value(&dev, &["forget", "--keep-last", "1", "--group-by", "tags", "-n"]);
    assert_eq!(each.as_array().unwrap().len(), 2);
    let said = dev.ok(&["forget", "--keep-last", "2", "--keep-yearly", "5", "--explain", "-n"]);
    for part in [
        "Applying Policy: keep 2 latest, 5 yearly snapshots",
        "last snapshot: until there are 1 newer",
        "no rule keeps it",
        "Would have removed the following snapshots:",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    assert_eq!(snapshots(&dev), made);

    // It goes to the trash and comes back as it was.
    let said = dev.ok(&["forget", "--keep-last", "2"]);
    assert!(said.contains("2 snapshots moved to the trash, for good in 7 days"), "{said}");
    assert_eq!(snapshots(&dev), made[2..]);
    let trash = value(&dev, &["undelete"]);
    assert_eq!(ids(&trash), made[..2]);
    assert!(trash[0]["gone_after"].as_str() > trash[0]["forgotten"].as_str(), "{trash}");
    dev.fails(&["restore", &made[1], "--target", "/nowhere"], 1, "no snapshot matches");
    assert_eq!(value(&dev, &["undelete", &made[1]])["undeleted"], 1);
    let target = work.path().join("back");
    dev.ok(&["restore", &made[1], "--target", target.to_str().unwrap()]);
    let back = fs::read(target.join(source.strip_prefix("/").unwrap()).join("file")).unwrap();
    assert!(back == noise(3_000_001, 1), "other bytes came back");
    dev.fails(&["undelete", &made[3]], 1, "no snapshot matches");

    // A mount that is not there: the last good one is not driven out, and it is said.
    fs::remove_file(source.join("file")).unwrap();
    let empty: Vec<String> = (0..2).map(|_| backup(&dev, &source, &["--host", "h"])).collect();
    let plan = value(&dev, &["forget", "--keep-last", "1", "-n"]);
    assert_eq!(ids(&plan[0]["keep"]), [empty[1].clone(), empty[0].clone(), made[3].clone()]);
    assert_eq!(plan[0]["suspects"].as_array().unwrap().len(), 2);
    let said = dev.ok(&["forget", "--keep-last", "1", "-n"]);
    assert!(said.contains("shrunk from") && said.contains("it uses up no count"), "{said}");

    // The flag and a filter together remove all that the filter names, without any policy.
    dev.ok(&["forget", "--unsafe-allow-remove-all", "--host", "h"]);
    assert_eq!(snapshots(&dev), Vec::<String>::new());
    dev.stop();
}

#[test]
fn locks_hold_policies_run_and_garbage_goes() {
    let work = tempfile::tempdir().unwrap();
    let (source, other) = (work.path().join("source"), work.path().join("other"));
    for (dir, seed) in [(&source, 1), (&other, 2)] {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join("file"), noise(4_000_000, seed)).unwrap();
    }
    let dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let made: Vec<String> = (0..3).map(|_| backup(&dev, &source, &[])).collect();

    // Governance gives way to who says so, compliance to nobody. Both can be extended.
    dev.fails(&["lock", &made[0]], 1, "for how long");
    let locks = value(&dev, &["lock", &made[0], "--for", "1d"]);
    assert_eq!(locks["snapshots"][0]["mode"], "governance");
    dev.fails(&["forget", &made[0]], 16, "is locked in governance mode until");
    let plan = value(&dev, &["forget", "--keep-last", "1", "-n"]);
    assert_eq!(ids(&plan[0]["remove"]), [made[1].clone()]);
    let why = plan[0]["reasons"][1]["matches"][0].as_str().unwrap().to_owned();
    assert!(why.starts_with("locked until "), "{why}");
    assert_eq!(plan[0]["reasons"][1]["by_newer"], false, "time alone ends a lock");
    dev.ok(&["lock", &made[0], "--mode", "compliance", "--until", "2100-01-31"]);
    dev.fails(&["forget", &made[0], "--bypass-governance"], 16, "until 2100-01-31T00:00:00.000Z");
    dev.fails(&["lock", &made[0], "--lift", "--bypass-governance"], 16, "extended only");
    dev.ok(&["lock", &made[1], "--for", "1d"]);
    dev.fails(&["lock", &made[1], "--lift"], 16, "extended only");
    dev.ok(&["lock", &made[1], "--lift", "--bypass-governance"]);
    dev.fails(&["lock", "--until", "2100-01-31"], 1, "after its commit");
    assert_eq!(value(&dev, &["lock", "--for", "1d"])["repository"]["seconds"], 86_400);
    dev.fails(&["forget", &made[1]], 16, "locked");
    dev.ok(&["lock", "--lift", "--bypass-governance"]);
    assert_eq!(value(&dev, &["lock"])["repository"], Value::Null);

    // Whoever tried is on record, and the record cannot be changed unseen.
    let audited = |what: &str| -> Vec<Value> {
        let lines = dev.ok(&["cluster", "audit", "--json", "--limit", "1000"]);
        let all = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        all.filter(|record| record["act"] == what).collect()
    };
    let forgets = audited("forget");
    let results: Vec<&Value> = forgets.iter().map(|record| &record["outcome"]["result"]).collect();
    assert_eq!(results, ["locked", "locked", "locked"], "{forgets:?}");
    assert_eq!(forgets[1]["outcome"]["mode"], "compliance");
    assert_eq!(forgets[1]["details"]["change"]["bypass"], true);
    assert_eq!(forgets[1]["details"]["change"]["snapshots"]["first"][0], Value::from(made[0].clone()));
    assert!(forgets.iter().all(|record| record["actor"]["client"].is_string()), "{forgets:?}");
    assert_eq!(audited("lock-snapshot").last().unwrap()["outcome"]["result"], "done");
    assert!(dev.ok(&["cluster", "audit"]).contains("REFUSED: "));
    let checked = json_line(&dev.ok(&["cluster", "audit", "--verify", "--json"]), "audit_verified");
    let head = checked["head"].as_str().unwrap().to_owned();
    assert!(head.starts_with(&format!("{}:", checked["records"])), "{checked}");

    // A policy in the repository runs by itself, each group for itself, and what is locked stays.
    let lone = backup(&dev, &other, &["--tag", "x"]);
    dev.fails(&["forget", "--set-policy"], 1, "which policy");
    dev.fails(&["forget", "--use-policy", "-n"], 1, "has no policy");
    let stored = value(&dev, &["forget", "--keep-last", "1", "--keep-tag", "x", "--set-policy"]);
    assert_eq!(stored["text"], "keep 1 latest snapshots and all snapshots with tags [x]");
    assert!(stored["policy"].as_str().unwrap().starts_with("last=1 tag="), "{stored}");
    let wanted = vec![made[0].clone(), made[2].clone(), lone.clone()];
    let deadline = Instant::now() + Duration::from_secs(180);
    while snapshots(&dev) != wanted {
        assert!(Instant::now() < deadline, "{:?}, not {wanted:?}", snapshots(&dev));
        std::thread::sleep(Duration::from_millis(500));
    }
    let plan = value(&dev, &["forget", "--use-policy", "-n"]);
    assert!(plan.as_array().unwrap().iter().all(|group| ids(&group["remove"]).is_empty()), "{plan}");
    dev.ok(&["forget", "--unset-policy"]);
    assert_eq!(value(&dev, &["forget", "--show-policy"])["policy"], Value::Null);

    // What only a forgotten snapshot needs stays while it is in the trash, and goes when it is purged.
    let looked = value(&dev, &["prune", "--dry-run"]);
    assert_eq!((&looked["dropped"], &looked["dry_run"]), (&Value::from(0), &Value::from(true)));
    dev.ok(&["forget", &lone, "--prune"]);
    assert_eq!(value(&dev, &["prune"])["dropped"], 0, "the trash needs it");
    dev.ok(&["undelete", &lone]);
    let packs = value(&dev, &["prune"])["packs"].as_u64().unwrap();
    dev.ok(&["forget", &lone, "--purge"]);
    dev.fails(&["undelete", &lone], 1, "no snapshot matches");
    let deadline = Instant::now() + Duration::from_secs(60);
    while value(&dev, &["prune", "--dry-run"])["packs"].as_u64().unwrap() >= packs {
        assert!(Instant::now() < deadline, "nothing was collected");
        dev.ok(&["prune"]);
        std::thread::sleep(Duration::from_millis(300));
    }
    dev.ok(&["check", "--read-data"]);

    // What the cluster did by itself is there too, and the chain still goes through the head of before.
    let by_policy = audited("forget").pop().unwrap();
    assert!(audited("forget").iter().any(|record| record["actor"]["node"].is_string()), "{by_policy}");
    assert_eq!(audited("purge").pop().unwrap()["details"]["change"]["early"], true);
    let checked = json_line(&dev.ok(&["cluster", "audit", "--head", &head, "--json"]), "audit_verified");
    assert_eq!(checked["noted"], Value::from(head.clone()));
    let (seq, hash) = head.split_once(':').unwrap();
    let other = format!("{seq}:{}{}", if hash.starts_with('0') { '1' } else { '0' }, &hash[1..]);
    dev.fails(
        &["cluster", "audit", "--head", &other],
        15,
        &format!("record {seq} is not the one that was noted"),
    );
    dev.fails(&["cluster", "audit", "--head", &format!("99999:{hash}")], 15, "it was cut");
    dev.fails(&["cluster", "audit", "--head", "5"], 1, "write SEQ:HASH");
    dev.stop();
}
