//! A repository's policy is changed while it is in use: backups and restores go on, every restore is identical, and
//! afterwards the packs survive what the new policy says.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use std::fs;
use std::path::Path;
use std::process::Stdio;

#[test]
fn a_policy_is_changed_while_the_repository_is_in_use() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init", "--survive", "1 node"]);
    let mut kept = Vec::new();
    for round in 0..3u8 {
        write_files(&source, round);
        let copy = work.path().join(format!("copy-{round}"));
        let copied = std::process::Command::new("cp").arg("-a").args([&source, &copy]).status();
        assert!(copied.unwrap().success());
        let said = dev.ok(&["backup", source.to_str().unwrap(), "--json"]);
        kept.push((json_line(&said, "summary")["snapshot_id"].as_str().unwrap().to_owned(), copy));
    }
    let before = json_line(&dev.ok(&["policy", "--json"]), "policy");
    assert_eq!((&before["survive"], &before["recode"]), (&"1 node".into(), &0.into()));

    let changed = json_line(&dev.ok(&["policy", "--survive", "1 region", "--json"]), "policy");
    assert_eq!(changed["scheme"], serde_json::json!({"k": 4, "m": 2, "spread": 2}));
    assert!(changed["recode"].as_u64().unwrap() > 0, "{changed}");
    // A backup beside it, and restores of every snapshot until all is done.
    write_files(&source, 9);
    let beside = farshore()
        .envs(dev.env())
        .args(["backup", source.to_str().unwrap(), "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut left = u64::MAX;
    for round in 0..60 {
        let (id, copy) = &kept[round % kept.len()];
        restores(&dev, id, copy, &source);
        // What an operator would do who is in a hurry.
        dev.ok(&["prune"]);
        left = json_line(&dev.ok(&["policy", "--json"]), "policy")["recode"].as_u64().unwrap();
        if left == 0 {
            break;
        }
    }
    assert_eq!(left, 0, "the change came to no end");
    let output = beside.wait_with_output().unwrap();
    assert!(output.status.success());
    let newest = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
    kept.push((newest["snapshot_id"].as_str().unwrap().into(), source.clone()));
    dev.ok(&["policy", "--wait", "1m"]);
    dev.ok(&["cluster", "status", "--wait", "2m"]);

    // 5+1 would not survive this.
    dev.kill_region("cloud-b/south");
    for (id, copy) in &kept {
        restores(&dev, id, copy, &source);
    }
    dev.fails(&["policy", "--survive", "5 regions"], 1, "is not possible");
    dev.stop();
}

fn write_files(source: &Path, round: u8) {
    for file in 0..12u8 {
        let seed = u32::from(round) * 1_000 + u32::from(file) + 1;
        let mut state = seed;
        let noise = (0..300_000).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        });
        if file % 3 == round % 3 {
            fs::write(source.join(format!("file-{file}")), noise.collect::<Vec<_>>()).unwrap();
        }
    }
}

fn restores(dev: &Dev, id: &str, copy: &Path, source: &Path) {
    let target = tempfile::tempdir().unwrap();
    dev.ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
    let back = target.path().join(source.strip_prefix("/").unwrap());
    assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
}
