//! What `deploy/` says to run is something this binary understands.
#![expect(clippy::disallowed_methods, reason = "this test reads files of the repository and runs the binary")]

mod harness;

use harness::farshore;
use std::fs;

fn read(path: &str) -> String {
    fs::read_to_string(format!("{}/deploy/{path}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// Runs with these arguments; the configuration they name is not on this machine, so that must be the complaint.
fn understood(args: &[String]) {
    let output = farshore().args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("cannot read") && said.contains("node.toml"), "{args:?}: {said}");
}

fn words(json: &str) -> Vec<String> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn the_systemd_unit_starts_a_node() {
    let unit = read("systemd/farshore-node.service");
    let line = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).unwrap();
    let args: Vec<String> = line.split_whitespace().skip(1).map(String::from).collect();
    understood(&args);
}

#[test]
fn the_image_and_the_compose_file_start_nodes() {
    let dockerfile = read("Dockerfile");
    understood(&words(dockerfile.lines().find_map(|l| l.strip_prefix("CMD ")).unwrap()));
    let compose = read("compose.yaml");
    let commands: Vec<&str> = compose.lines().filter_map(|l| l.trim().strip_prefix("command: ")).collect();
    understood(&words(commands[0]));
    let nodes = compose.lines().filter(|l| l.trim() == "<<: *node").count();
    assert_eq!(nodes, 6);
    // Every node is set up by the command in the file's head, at the port the services expose.
    for name in ["a1", "a2", "b1", "b2", "c1", "c2"] {
        assert!(compose.contains(&format!("={name}:7400")), "{name}");
        assert!(compose.contains(&format!("./cluster/nodes/{name}:/etc/farshore")), "{name}");
    }
    assert!(compose.contains("expose: [\"7400\"]"));
}

#[test]
fn the_compose_files_setup_command_works() {
    let dir = tempfile::tempdir().unwrap();
    let compose = read("compose.yaml");
    let setup: String = compose
        .lines()
        .skip_while(|l| !l.contains("farshore cluster init"))
        .take_while(|l| !l.contains("docker compose"))
        .map(|l| l.trim_start_matches('#').trim_end_matches('\\'))
        .collect();
    let args: Vec<String> = setup
        .split_whitespace()
        .skip(1)
        .map(|w| if w == "deploy/cluster" { dir.path().to_str().unwrap().into() } else { w.to_string() })
        .collect();
    let output = farshore().args(&args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let founders = ["a1", "a2", "b1", "b2", "c1", "c2"]
        .iter()
        .filter(|n| dir.path().join("nodes").join(n).join("bootstrap.json").exists())
        .count();
    assert_eq!(founders, 1);
}
