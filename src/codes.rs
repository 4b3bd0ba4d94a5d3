//! The health codes: stable names that scripts and people go by, what each means, which numbers it is drawn from, and what to
//! type next. `docs/operations.md` lists the same.

use crate::health::{Severity, ms};
use crate::migrate::shards_left;
use farshore_client::api::ClusterStatus;
use farshore_core::topology::NodeState;
use serde_json::{Value, json};

/// A stable name of something that is not as it should be.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Code {
    NoQuorum,
    DataUnreadable,
    NoSpare,
    NodeDown,
    NodeLost,
    UnderTarget,
    RegionFatal,
    ExportLate,
    ClockSkew,
    NodeLies,
    RepairFailing,
    WritesFrozen,
    ScrubPaused,
    BudgetHeld,
    NodeFull,
    NodeSlow,
    NodeFlapping,
}

/// What does not change about a code.
pub struct About {
    /// Its name.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What it means, in a sentence or two.
    pub meaning: &'static str,
    /// Where `cluster status --json` has the numbers that it is drawn from.
    pub metrics: &'static [&'static str],
    /// The command to type next.
    pub command: &'static str,
}

impl Code {
    /// Every code, in the order of the documentation.
    pub const ALL: [Code; 17] = [
        Code::NoQuorum,
        Code::DataUnreadable,
        Code::NoSpare,
        Code::NodeDown,
        Code::NodeLost,
        Code::UnderTarget,
        Code::RegionFatal,
        Code::ExportLate,
        Code::ClockSkew,
        Code::NodeLies,
        Code::RepairFailing,
        Code::WritesFrozen,
        Code::ScrubPaused,
        Code::BudgetHeld,
        Code::NodeFull,
        Code::NodeSlow,
        Code::NodeFlapping,
    ];

    /// The code of this name, in whatever case.
    pub fn named(name: &str) -> Option<Self> {
        Code::ALL.into_iter().find(|code| code.about().name.eq_ignore_ascii_case(name))
    }

    /// What does not change about it.
    pub fn about(self) -> About {
        let about =
            |name, severity, meaning, metrics, command| About { name, severity, meaning, metrics, command };
        match self {
            Code::NoQuorum => about(
                "NO_QUORUM",
                Severity::Error,
                "No majority of the voters answers, so nothing can be committed: no backup, no repair, no change. What is \
                 stored stays as it is and can be read with --stale. Start the missing voters; only if they are lost for \
                 good, see the section Disaster of docs/operations.md.",
                &["stale", "nodes[].voter", "nodes[].silent_ms"],
                "farshore --stale snapshots",
            ),
            Code::DataUnreadable => about(
                "DATA_UNREADABLE",
                Severity::Error,
                "Some packs have fewer shards on nodes that answer than are needed to read them. Nothing is lost yet if the \
                 disks of the silent nodes are whole: bring those nodes back before anything else.",
                &["safety.unreadable", "safety.packs"],
                "farshore cluster nodes",
            ),
            Code::NoSpare => about(
                "NO_SPARE",
                Severity::Error,
                "Some packs are readable and cannot lose one shard more. Bring nodes back, or add nodes so that repair has \
                 somewhere to put what is missing.",
                &["safety.endangered", "safety.packs"],
                "farshore cluster repair",
            ),
            Code::NodeDown => about(
                "NODE_DOWN",
                Severity::Warn,
                "A node is silent and its grace is running. Its shards count as there, and nothing is moved before the grace \
                 ends, because a node that comes back brings them all along.",
                &["nodes[].state", "nodes[].silent_ms", "nodes[].grace_left_ms"],
                "farshore cluster explain NODE",
            ),
            Code::NodeLost => about(
                "NODE_LOST",
                Severity::Warn,
                "A node was silent for longer than its grace. Its shards are made anew on others, and its vote goes to another. \
                 If it comes back, what did not have to be made anew counts again.",
                &["nodes[].state", "nodes[].shards"],
                "farshore cluster repair",
            ),
            Code::UnderTarget => about(
                "UNDER_TARGET",
                Severity::Warn,
                "Some packs have fewer shards than they should, or these lie too close together. They are readable; repair \
                 makes them good as far as there are nodes for it.",
                &["safety.under_target", "repair.queued", "repair.running"],
                "farshore cluster status --wait 10m",
            ),
            Code::RegionFatal => about(
                "REGION_FATAL",
                Severity::Warn,
                "The loss of one of the named regions would make data unreadable that is readable now. Nothing has happened \
                 yet; bring nodes back, or add nodes in another region.",
                &["safety.survives_region", "safety.fatal_regions"],
                "farshore cluster what-if --region REGION",
            ),
            Code::ExportLate => about(
                "EXPORT_LATE",
                Severity::Warn,
                "The catalogue has changed and no export of it has become durable for minutes. It matters only if every \
                 replica is lost: then what was committed since is lost as well.",
                &["export.unexported_ms", "export.error"],
                "farshore cluster export",
            ),
            Code::ClockSkew => about(
                "CLOCK_SKEW",
                Severity::Warn,
                "The clock of a node is more than a minute off catalogue time, which is what the clocks of a majority of the \
                 voters have reached. Nothing rests on a single clock; set it right before there are two.",
                &["nodes[].clock_offset_ms", "time"],
                "timedatectl status",
            ),
            Code::NodeLies => about(
                "NODE_LIES",
                Severity::Warn,
                "A node added up the shards of its region for a rebuild, and what it sent was not their sum. It was noticed and \
                 not used. Bad memory is the likeliest reason: test the machine, and drain the node if in doubt.",
                &["repair.liars"],
                "farshore cluster repair",
            ),
            Code::RepairFailing => about(
                "REPAIR_FAILING",
                Severity::Warn,
                "Repair has work to do and some of its tries have failed. Each is tried again, later and later; the last \
                 error says why, and the log of the node that leads has all of them.",
                &["repair.failed", "repair.last_error", "repair.queued", "repair.running"],
                "farshore cluster repair",
            ),
            Code::WritesFrozen => about(
                "WRITES_FROZEN",
                Severity::Warn,
                "A cold migration is under way: clients can restore and cannot back up until it has ended or was cancelled.",
                &["migrations[].cold", "migrations[].shards_left"],
                "farshore cluster migrate",
            ),
            Code::ScrubPaused => about(
                "SCRUB_PAUSED",
                Severity::Warn,
                "An operator has paused the scrub: no node reads its shards by itself, so that rot is found only by whoever \
                 needs the shard.",
                &["scrub.paused"],
                "farshore cluster scrub --resume",
            ),
            Code::BudgetHeld => about(
                "BUDGET_HELD",
                Severity::Warn,
                "Packs are not at full strength and repair waits because a budget is used up: a rate for the moment, bytes or \
                 money for the day.",
                &["repair.held", "repair.spent_micros", "safety.under_target"],
                "farshore cluster budget",
            ),
            Code::NodeFull => about(
                "NODE_FULL",
                Severity::Warn,
                "A node has no room for more shards, by its configuration or on its disk. Backups use other nodes as long as \
                 those can meet the policy; repair cannot put anything there.",
                &["nodes[].used", "nodes[].free", "nodes[].capacity"],
                "farshore cluster nodes",
            ),
            Code::NodeSlow => about(
                "NODE_SLOW",
                Severity::Warn,
                "A node answers and is ten times as slow as others of its region, or takes more than a second, by its line or by \
                 its disk. It is read from last, by clients and by repair, and gets new shards only where no others can take them. \
                 A disk about to die often begins so.",
                &["nodes[].slow", "nodes[].rtt_ms", "nodes[].disk_ms"],
                "farshore cluster explain NODE",
            ),
            Code::NodeFlapping => about(
                "NODE_FLAPPING",
                Severity::Warn,
                "A node fell silent and came back three times or more within ten minutes. Each time it has to be heard for longer \
                 before it counts as up again; its shards count as there meanwhile. Look at its machine and its line.",
                &["nodes[].flaps", "nodes[].held_ms", "nodes[].state"],
                "farshore cluster explain NODE",
            ),
        }
    }

    /// The numbers that it is drawn from, as they are now, under the names of [`About::metrics`]; of nodes, those alone that
    /// it speaks of.
    pub fn numbers(self, status: &ClusterStatus) -> Vec<(String, Value)> {
        let whole = |path: &str| match path {
            "stale" => Some(json!(status.stale)),
            "safety.unreadable" => Some(json!(status.unreadable)),
            "safety.packs" => Some(json!(status.packs)),
            "safety.endangered" => Some(json!(status.endangered)),
            "safety.under_target" => Some(json!(status.under_target)),
            "safety.survives_region" => Some(json!(status.survives_region)),
            "safety.fatal_regions" => Some(json!(status.fatal_regions)),
            "repair.queued" => Some(json!(status.repair.queued)),
            "repair.running" => Some(json!(status.repair.running)),
            "repair.failed" => Some(json!(status.repair.failed)),
            "repair.liars" => Some(json!(status.repair.liars.len())),
            "repair.last_error" => Some(json!(status.repair.last_error)),
            "export.unexported_ms" => Some(json!(status.unexported_ms)),
            "repair.held" => Some(json!(status.repair.held)),
            "repair.spent_micros" => Some(json!(status.repair.spent_micros)),
            "scrub.paused" => Some(json!(status.scrub_paused)),
            "migrations[].cold" => Some(json!(status.migrations.iter().filter(|m| m.cold).count())),
            "migrations[].shards_left" => {
                Some(json!(status.migrations.iter().map(|m| shards_left(m, status)).collect::<Vec<_>>()))
            }
            "export.error" => Some(json!(status.export_error)),
            "time" => Some(json!(farshore_core::units::rfc3339(status.catalogue_ms))),
            _ => None,
        };
        let mut numbers = Vec::new();
        for path in self.about().metrics {
            if let Some(value) = whole(path) {
                numbers.push(((*path).to_owned(), value));
                continue;
            }
            for node in status.nodes.iter().filter(|node| self.speaks_of(node.node.state, node.voter)) {
                let value = match *path {
                    "nodes[].voter" => json!(node.voter),
                    "nodes[].state" => json!(node.node.state.word()),
                    "nodes[].silent_ms" => json!(node.silent_ms),
                    "nodes[].grace_left_ms" => json!(node.grace_left_ms),
                    "nodes[].shards" => json!(node.shards),
                    "nodes[].used" => json!(node.used),
                    "nodes[].free" => json!(node.free),
                    "nodes[].capacity" => json!(node.node.capacity),
                    "nodes[].slow" => json!(node.slow),
                    "nodes[].rtt_ms" => ms(node.rtt_us),
                    "nodes[].disk_ms" => ms(node.disk_us),
                    "nodes[].flaps" => json!(node.flaps),
                    "nodes[].held_ms" => json!(node.held_ms),
                    "nodes[].clock_offset_ms" => json!(node.clock_offset_ms),
                    _ => continue,
                };
                numbers.push((path.replace("[]", &format!("[{}]", node.node.name)), value));
            }
        }
        numbers
    }

    fn speaks_of(self, state: NodeState, voter: bool) -> bool {
        match self {
            Code::NoQuorum => voter,
            Code::NodeDown => matches!(state, NodeState::Suspect | NodeState::Down),
            Code::NodeLost => state == NodeState::Lost,
            _ => state != NodeState::Retired,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health;

    /// Every code says what it means, what it is drawn from and what to type, and the documentation lists it.
    #[test]
    fn each_code_is_explained_and_documented() {
        let docs = include_str!("../docs/operations.md");
        let table = docs.split("## Health codes").nth(1).and_then(|rest| rest.split("\n## ").next()).unwrap();
        let documented: Vec<&str> =
            table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
        let status = health::sample();
        for code in Code::ALL {
            let about = code.about();
            assert_eq!(Code::named(&about.name.to_lowercase()), Some(code));
            assert!(about.meaning.len() > 40 && about.meaning.ends_with('.'), "{}", about.name);
            assert!(about.command.contains(' '), "{} has no command", about.name);
            assert!(!code.numbers(&status).is_empty(), "{} has no number", about.name);
            for path in about.metrics {
                let names = |given: &str| given.split('[').next() == path.split('[').next();
                let answered = code.numbers(&status).iter().any(|(given, _)| names(given));
                assert!(answered, "{}: {path} is known nowhere", about.name);
            }
            let row = table.lines().find(|line| line.starts_with(&format!("| `{}` |", about.name)));
            let row = row.unwrap_or_else(|| panic!("docs/operations.md does not list {}", about.name));
            let severity = row.split('|').nth(2).unwrap().trim();
            assert_eq!(severity, about.severity.word(), "{}", about.name);
        }
        assert_eq!(documented.len(), Code::ALL.len(), "{documented:?}");
    }

    /// What `cluster status --json` promises is where a code says that its numbers are.
    #[test]
    fn metrics_are_fields_of_the_status() {
        let json = health::report(health::sample()).json();
        for code in Code::ALL {
            for path in code.about().metrics {
                let pointer = format!("/{}", path.replace("[].", "/0/").replace('.', "/"));
                assert!(json.pointer(&pointer).is_some(), "{} is not in {json}", path);
            }
        }
    }
}
