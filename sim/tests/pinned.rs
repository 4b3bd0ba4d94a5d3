//! Every bug that the simulator has found in the product is kept as the small plan that showed it, with its story.

use farshore_sim::plan::pinned::{PINNED, pinned};
use std::path::Path;
use std::process::Command;

#[test]
fn what_was_found_once_stays_found() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    for (name, _) in PINNED {
        let path = dir.join(format!("{name}.json"));
        let ran = Command::new(env!("CARGO_BIN_EXE_farshore-sim")).arg("replay").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&ran.stdout);
        assert!(ran.status.success(), "{name}: {}\n{said}", pinned(name).unwrap().story);
    }
}
