//! What the simulator has found in the product, kept as small plans with their stories (`sim/scenarios`). Each runs with
//! the tests; and a build with deliberate defects makes the old mistakes once more and must see them (`mutants.rs`).

use super::{BadPlan, Plan};

/// The kept plans by name, as written.
pub const PINNED: [(&str, &str); 9] = [
    ("failed-image", include_str!("../../scenarios/failed-image.json")),
    ("failed-index", include_str!("../../scenarios/failed-index.json")),
    ("give-up-at-once", include_str!("../../scenarios/give-up-at-once.json")),
    ("late-opening", include_str!("../../scenarios/late-opening.json")),
    ("lead-on", include_str!("../../scenarios/lead-on.json")),
    ("outdated-policy", include_str!("../../scenarios/outdated-policy.json")),
    ("prune-beside-backup", include_str!("../../scenarios/prune-beside-backup.json")),
    ("renew-ending", include_str!("../../scenarios/renew-ending.json")),
    ("spoilt-stays", include_str!("../../scenarios/spoilt-stays.json")),
];

/// A kept plan.
pub fn pinned(name: &str) -> Result<Plan, BadPlan> {
    let found = PINNED.iter().find(|(known, _)| *known == name);
    Plan::parse(found.map_or("no such plan is kept", |(_, text)| text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_kept_file_is_known_under_its_name_and_has_a_story() {
        let mut known = BTreeSet::new();
        for (name, text) in PINNED {
            let plan = Plan::parse(text).unwrap();
            assert!(plan.story.len() > 40, "{name} has no story");
            known.insert(format!("{name}.json"));
        }
        let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        #[expect(clippy::disallowed_methods, reason = "a test reads the plans that are kept")]
        let files = std::fs::read_dir(dir).unwrap();
        let there: BTreeSet<_> = files.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(there, known);
        assert!(pinned("nothing").is_err());
    }
}
