//! The program as people and CI use it: batches in order, runs compared event by event, plans written and replayed,
//! pictures that load, and failures that say what to do.

#![expect(clippy::disallowed_methods, reason = "reads what the program wrote")]

use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Output};

fn sim(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_farshore-sim")).args(args).output().unwrap()
}

/// Seeds of a hand-written story.
fn run(args: &[&str]) -> Output {
    sim(&[&["run", "--profile", "day"], args].concat())
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("farshore-sim-test-{}-{name}", std::process::id()))
}

#[test]
fn a_batch_is_told_in_order_and_summed_up() {
    let output = run(&["--seeds", "3", "--start", "5", "--jobs", "3", "--json"]);
    assert!(output.status.success(), "{output:?}");
    let lines = lines(&output);
    let seeds: Vec<_> = lines.iter().filter_map(|line| line["seed"].as_u64()).collect();
    assert_eq!(seeds, [5, 6, 7]);
    let summary = lines.last().unwrap();
    assert_eq!((&summary["message_type"], &summary["seeds"]), (&"summary".into(), &3.into()));
    let events: u64 = lines.iter().take(3).map(|line| line["events"].as_u64().unwrap()).sum();
    assert_eq!(summary["events"], events);
}

#[test]
fn the_first_event_that_differs_between_two_processes_is_named() {
    let twice = ["--seed", "3", "--twice"];
    assert!(run(&twice).status.success());
    let output = run(&[&twice[..], &["--inject-nondeterminism", "2000", "--json"]].concat());
    assert!(!output.status.success());
    let report = &lines(&output)[0];
    assert_eq!(report["invariant"], "deterministic");
    let said = report["violation"].as_str().unwrap();
    assert!(said.contains("from event 2") && said.contains("disturbed by"), "{said}");
    assert!(report["recent"].as_array().unwrap().len() > 5, "events before it are shown");
    assert_eq!(report["replay"], "farshore-sim run --profile day --seed 3 --twice");
}

#[test]
fn a_run_that_takes_too_long_fails_and_no_further_one_begins() {
    let output =
        run(&["--seeds", "50", "--jobs", "1", "--limit", "0", "--stop-after-failures", "2", "--json"]);
    assert!(!output.status.success());
    let lines = lines(&output);
    assert_eq!(lines[0]["violation"], "process: no result after 0 s");
    assert!(lines.len() < 10, "{} lines", lines.len());
}

#[test]
fn a_plan_runs_again_as_it_ran_and_its_picture_loads() {
    let (plan, picture) = (scratch("plan"), scratch("picture"));
    let (plan_path, picture_path) = (plan.to_str().unwrap(), picture.to_str().unwrap());
    let first = lines(&run(&["--seed", "4", "--json", "--plan-out", plan_path])).remove(0);
    let again = sim(&["replay", plan_path, "--json", "--timeline", picture_path]);
    assert_eq!(lines(&again)[0]["hash"], first["hash"], "looking changes nothing");
    let loaded: Value = serde_json::from_reader(std::fs::File::open(&picture).unwrap()).unwrap();
    let events = loaded["traceEvents"].as_array().unwrap();
    for phase in ["M", "X", "C"] {
        assert!(events.iter().any(|event| event["ph"] == phase), "{phase} is there");
    }
    let _ = (std::fs::remove_file(plan), std::fs::remove_file(picture));
}

#[test]
fn what_cannot_be_run_is_an_error_of_its_own() {
    let output = sim(&["replay", "/nowhere"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nowhere"));
}
