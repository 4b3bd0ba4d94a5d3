//! One seed is one run, to the last event, in any process; another seed is another run.

use std::process::Command;

/// The hash over all events of one run in a process of its own.
fn hash(seed: u64) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_farshore-sim"))
        .args(["run", "--profile", "day", "--json", "--seed", &seed.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "seed {seed}: {said}");
    let line: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(line["seed"], seed);
    line["hash"].as_str().unwrap().to_owned()
}

#[test]
fn the_same_seed_gives_the_same_events_in_two_processes_and_another_seed_others() {
    let first = hash(11);
    assert_eq!(first, hash(11));
    assert_ne!(first, hash(12));
}
