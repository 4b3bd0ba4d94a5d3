//! SIGKILL at random moments, again and again: a backup survives the death of any one node, leader included, and
//! whatever was acknowledged restores after all nodes died at once. `FARSHORE_ROUNDS` says how often; each round draws
//! from `FARSHORE_SEED`.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

struct Draw(u64);

impl Draw {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
    fn noise(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.below(256) as u8).collect()
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_by_sigkill() {
    let rounds = number("FARSHORE_ROUNDS", 2);
    let mut draw = Draw(number("FARSHORE_SEED", 7));
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    fs::create_dir_all(&source).unwrap();
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let mut kept = Vec::new();
    for round in 0..rounds {
        for file in 0..20 {
            let len = 400_000 + draw.below(400_000) as usize;
            fs::write(source.join(format!("{}", (round * 7 + file) % 60)), draw.noise(len)).unwrap();
        }
        // The leader every third time, otherwise anyone.
        let victim = match (round % 3, dev.leader()) {
            (0, Some(leader)) => leader,
            _ => ["a1", "a2", "b1", "b2", "c1", "c2"][draw.below(6) as usize].to_owned(),
        };
        let backup = farshore()
            .envs(dev.env())
            .args(["backup", source.to_str().unwrap(), "--json"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(draw.below(900)));
        dev.kill_nodes(&[&victim]);
        let output = backup.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let code = output.status.code();
        assert!(matches!(code, Some(0 | 14)), "round {round}, {victim} killed: {code:?} {said}");
        let summary = json_line(&String::from_utf8_lossy(&output.stdout), "summary");
        let id = summary["snapshot_id"].as_str().unwrap().to_owned();
        // A copy of what was acknowledged. Nothing changes the source between backup and copy.
        let copy = work.path().join(format!("copy-{round}"));
        assert!(Command::new("cp").arg("-a").args([&source, &copy]).status().unwrap().success());
        kept.push((id, copy));
        eprintln!("round {round}: {victim} killed, backup ended with {code:?}");

        if round % 4 == 3 || round + 1 == rounds {
            dev.kill_all();
            dev.restart();
            for (id, copy) in &kept {
                restores(&dev, id, copy, &source);
            }
            eprintln!("round {round}: all killed and started again, {} snapshots restored", kept.len());
        } else {
            dev.start_node(&victim);
            let (id, copy) = kept.last().unwrap();
            restores(&dev, id, copy, &source);
        }
        if kept.len() > 6 {
            let (_, copy) = kept.remove(0);
            fs::remove_dir_all(copy).unwrap();
        }
    }
    dev.stop();
}

fn restores(dev: &Dev, id: &str, copy: &Path, source: &Path) {
    let target = tempfile::tempdir().unwrap();
    dev.ok(&["restore", id, "--target", target.path().to_str().unwrap()]);
    let back = target.path().join(source.strip_prefix("/").unwrap());
    assert_eq!(tree_differences(copy, &back), "", "snapshot {id}");
}
