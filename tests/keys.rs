//! Keys of a repository in a real cluster: every kind opens it, one admin does not undo what another did, and what is
//! removed opens nothing any more.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Output, Stdio};

/// Runs a command with these keys instead of the cluster's own passphrase.
fn with(dev: &Dev, keys: &[(&str, &Path)], args: &[&str]) -> Output {
    let mut command = farshore();
    command.envs(dev.env()).args(args).env_remove("FARSHORE_PASSWORD");
    command.envs(keys.iter().map(|(name, path)| (format!("FARSHORE_{name}"), path)));
    command.output().unwrap()
}

fn ok(output: Output) -> String {
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {out}{err}", output.status);
    out.into_owned()
}

fn fails(output: &Output, code: i32, says: &str) {
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{err}");
    assert!(err.contains(says), "{err}");
}

/// Bytes that neither shorten nor repeat.
fn noise(len: u32, seed: u32) -> Vec<u8> {
    (0..len).map(|n| ((n ^ (seed << 27)).wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn list(text: &str) -> Vec<Value> {
    serde_json::from_str::<Value>(text).unwrap().as_array().unwrap().clone()
}

#[test]
fn every_kind_of_key_opens_and_none_that_was_removed() {
    let work = tempfile::tempdir().unwrap();
    let path = |name: &str| work.path().join(name);
    let source = path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("dir/file"), vec![7; 300_000]).unwrap();
    let dev = Dev::start(&path("dev"));
    dev.ok(&["init"]);
    dev.ok(&["backup", source.to_str().unwrap()]);

    let keys = list(&dev.ok(&["key", "list", "--json"]));
    assert_eq!(keys.len(), 1);
    assert_eq!((&keys[0]["current"], &keys[0]["kind"]), (&json!(true), &json!("passphrase")));
    for field in ["id", "userName", "hostName", "created"] {
        assert!(!keys[0][field].as_str().unwrap().is_empty(), "{field} in {}", keys[0]);
    }

    // A passphrase, a key file, a recovery key.
    fs::write(path("second"), "second\n").unwrap();
    let second = path("second");
    let said = dev.ok(&[
        "key",
        "add",
        "--new-password-file",
        second.to_str().unwrap(),
        "--user",
        "ann",
        "--host",
        "office",
    ]);
    assert!(said.starts_with("saved new key with ID "), "{said}");
    let file = path("key");
    dev.ok(&["key", "add", "--new-key-file", file.to_str().unwrap()]);
    let written = fs::metadata(&file).unwrap();
    assert_eq!((written.len(), written.permissions().mode() & 0o777), (32, 0o600));
    dev.fails(&["key", "add", "--new-key-file", file.to_str().unwrap()], 1, "File exists");
    dev.fails(&["key", "add", "--new-key-file", "x", "--recovery"], 1, "cannot be used with");
    dev.fails(&["key", "add"], 12, "--new-password-file");
    let paper = dev.ok(&["key", "add", "--recovery"]);
    let groups: Vec<&str> = paper.lines().skip_while(|line| !line.starts_with('#')).skip(1).take(3).collect();
    let paper = path("paper");
    fs::write(&paper, format!("# of the office\n{}\n", groups.join("\n").to_lowercase())).unwrap();
    let keys = list(&dev.ok(&["key", "list", "--json"]));
    let kinds: Vec<&Value> = keys.iter().map(|key| &key["kind"]).collect();
    assert_eq!(kinds, ["passphrase", "passphrase", "key-file", "recovery"]);
    assert_eq!((&keys[1]["userName"], &keys[1]["hostName"]), (&json!("ann"), &json!("office")));
    let id = |at: usize| keys[at]["id"].as_str().unwrap().to_owned();

    // Each opens, says that it is the one in use, and restores.
    let ways: [(&str, &Path); 3] =
        [("PASSWORD_FILE", &second), ("KEY_FILE", &file), ("RECOVERY_KEY_FILE", &paper)];
    for (at, way) in ways.iter().enumerate() {
        let listed = list(&ok(with(&dev, &[*way], &["key", "list", "--json"])));
        let current: Vec<&Value> = listed.iter().filter(|k| k["current"] == true).map(|k| &k["id"]).collect();
        assert_eq!(current, [&json!(id(at + 1))]);
        let target = path(&format!("restored-{at}"));
        ok(with(&dev, &[*way], &["restore", "latest", "--target", target.to_str().unwrap()]));
        let found = target.join(source.strip_prefix("/").unwrap());
        assert_eq!(tree_differences(&source, &found), "");
    }
    // A wrong one does not, and a mistake on paper is named before anything is tried.
    fs::write(path("other key"), [5; 32]).unwrap();
    fs::write(path("short key"), [5; 31]).unwrap();
    let text = fs::read_to_string(&paper).unwrap();
    let mut mistyped: Vec<String> = text.lines().map(str::to_owned).collect();
    let first = mistyped[1].remove(0);
    mistyped[1].insert(0, if first == '7' { '8' } else { '7' });
    fs::write(path("mistyped"), mistyped.join("\n")).unwrap();
    for (way, name, says) in [
        ("KEY_FILE", "other key", "no key slot opens"),
        ("KEY_FILE", "short key", "31 bytes instead of 32"),
        ("KEY_FILE", "nowhere", "cannot read"),
        ("RECOVERY_KEY_FILE", "mistyped", "group 1"),
        ("PASSWORD_FILE", "key", ""),
    ] {
        fails(&with(&dev, &[(way, &path(name))], &["snapshots"]), 12, says);
    }
    // The paper may be typed.
    let mut typed = farshore();
    typed
        .envs(dev.env())
        .args(["--recovery-key-file", "-", "snapshots"])
        .stdin(fs::File::open(&paper).unwrap());
    ok(typed.stdout(Stdio::piped()).output().unwrap());

    // The one in use stays, another one goes; the last one is always in use.
    dev.fails(&["key", "remove", &id(0)], 1, "in use");
    dev.fails(&["key", "remove", "zz"], 1, "no key has the id");
    assert_eq!(dev.ok(&["key", "remove", &id(2)[..6]]), format!("removed key {}\n", id(2)));
    fails(&with(&dev, &[("KEY_FILE", &file)], &["snapshots"]), 12, "no key slot opens");

    // A new passphrase in the place of the old one.
    fs::write(path("new"), "new\n").unwrap();
    let new = path("new");
    let said = dev.ok(&["key", "passwd", "--new-password-file", new.to_str().unwrap()]);
    assert!(said.starts_with("saved new key as "), "{said}");
    dev.fails(&["snapshots"], 12, "no key slot opens");
    let keys = list(&ok(with(&dev, &[("PASSWORD_FILE", &new)], &["key", "list", "--json"])));
    assert_eq!(keys.len(), 3);
    assert!(keys.iter().all(|key| key["id"] != id(0).as_str()));
    ok(with(&dev, &[("PASSWORD_FILE", &new)], &["backup", source.to_str().unwrap()]));
    ok(with(&dev, &[("RECOVERY_KEY_FILE", &paper)], &["check", "--read-data"]));

    // A new epoch: every key opens what was before and what comes after, also for a client that began before it.
    let by_new = |args: &[&str]| ok(with(&dev, &[("PASSWORD_FILE", &new)], args));
    let rotated = json_line(&by_new(&["key", "rotate", "--json"]), "keys_rotated");
    assert_eq!((&rotated["epoch"], rotated["keys"].as_array().unwrap().len()), (&json!(1), 3));
    fs::write(source.join("dir/later"), noise(3_000_000, 1)).unwrap();
    by_new(&["backup", source.to_str().unwrap()]);
    fs::write(source.join("dir/much"), noise(60_000_000, 2)).unwrap();
    let mut running = farshore();
    running.envs(dev.env()).env_remove("FARSHORE_PASSWORD").env("FARSHORE_PASSWORD_FILE", &second);
    let running = running.args(["backup", source.to_str().unwrap()]).stdout(Stdio::piped()).spawn().unwrap();
    let said = by_new(&["key", "rotate"]);
    assert!(said.starts_with("epoch 2 has begun; what is stored from now on opens with 3 keys"), "{said}");
    ok(running.wait_with_output().unwrap());
    for (way, target) in [(("PASSWORD_FILE", &second), "again-1"), (("RECOVERY_KEY_FILE", &paper), "again-2")]
    {
        let target = path(target);
        let way: (&str, &Path) = (way.0, way.1);
        ok(with(&dev, &[way], &["restore", "latest", "--target", target.to_str().unwrap()]));
        assert_eq!(tree_differences(&source, &target.join(source.strip_prefix("/").unwrap())), "");
        ok(with(&dev, &[way], &["check", "--read-data"]));
    }
    let listed: Vec<Value> = serde_json::from_str(&by_new(&["snapshots", "--json"])).unwrap();
    assert_eq!(listed.len(), 4);

    // Copied with a key file of its own, whatever opens the other repository.
    by_new(&["key", "add", "--new-key-file", path("copy key").to_str().unwrap()]);
    let add = |args: &[&str]| ok(with(&dev, &[("RECOVERY_KEY_FILE", &paper), ("PASSWORD_FILE", &new)], args));
    dev.ok(&["init", "-r", "other"]);
    dev.ok(&[
        "copy",
        "-r",
        "other",
        "--from-repo",
        "dev",
        "--from-key-file",
        path("copy key").to_str().unwrap(),
    ]);
    assert_eq!(list(&dev.ok(&["-r", "other", "snapshots", "--json"])).len(), 4);
    let copied = list(&add(&["key", "list", "--json"])).iter().find(|key| key["kind"] == "key-file").cloned();
    add(&["key", "remove", copied.unwrap()["id"].as_str().unwrap()]);

    // Two at the same time: each is done, or told to look again; none is lost without a word.
    let both: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            fs::write(path(name), name).unwrap();
            let mut add = farshore();
            add.envs(dev.env()).env_remove("FARSHORE_PASSWORD").env("FARSHORE_PASSWORD_FILE", &new);
            add.args(["key", "add", "--new-password-file"]).arg(path(name));
            (name, add.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
        })
        .into_iter()
        .map(|(name, child)| (name, child.wait_with_output().unwrap()))
        .collect();
    let mut added = 0;
    for (name, output) in &both {
        let opens = with(&dev, &[("PASSWORD_FILE", &path(name))], &["snapshots"]);
        match output.status.success() {
            true => drop(ok(opens)),
            false => {
                fails(output, 1, "changed since you looked");
                fails(&opens, 12, "no key slot opens");
            }
        }
        added += usize::from(output.status.success());
    }
    assert!(added >= 1);
    let keys = list(&ok(with(&dev, &[("PASSWORD_FILE", &new)], &["key", "list", "--json"])));
    assert_eq!(keys.len(), 3 + added);

    // All of it stands in the record of acts.
    let audit = dev.ok(&["cluster", "audit", "--json"]);
    let acts: Vec<Value> = audit.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let text = Value::from(acts).to_string();
    assert_eq!(text.matches("set-key-slots").count(), 9 + added, "{text}");
    let verified = json_line(&dev.ok(&["cluster", "audit", "--verify", "--json"]), "audit_verified");
    assert!(verified["records"].as_u64() > Some(6), "{verified}");
    dev.stop();
}
