//! Every bug that the simulator has found in the product is kept as the small plan that showed it, with its story.

#![expect(clippy::disallowed_methods, reason = "a test reads the plans that are kept")]

use farshore_sim::plan::Plan;
use std::path::Path;
use std::process::Command;

#[test]
fn what_was_found_once_stays_found() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut plans: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    plans.sort();
    assert!(!plans.is_empty());
    for path in plans {
        let plan = Plan::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert!(plan.story.len() > 40, "{} has no story", path.display());
        let ran = Command::new(env!("CARGO_BIN_EXE_farshore-sim")).arg("replay").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{}: {}\n{said}", path.display(), plan.story);
    }
}
