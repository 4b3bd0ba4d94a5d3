//! How one run ended: the line of JSON that a process writes about it, and the same for people.

use farshore_sim::coverage::Tallies;
use farshore_sim::plan::Profile;
use farshore_sim::scenario::Outcome;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Events shown to people when something fails.
const SHOWN: usize = 40;
/// Events of the world itself shown likewise.
const SHOWN_WORLD: usize = 15;
/// Events of which there are so many that they say nothing.
const NOISE: [&str; 2] = [" kv flush ", " net takes "];
/// The promise that `--twice` checks.
pub const DETERMINISTIC: &str = "deterministic";

/// How a run ended.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// Always `seed`.
    pub message_type: String,
    /// Which seed.
    pub seed: u64,
    /// Which kind of world.
    pub profile: Option<Profile>,
    /// The plan's file, if it came from one.
    pub plan: Option<PathBuf>,
    /// Fold of all events, in hexadecimal.
    pub hash: String,
    /// Whether everything held.
    pub ok: bool,
    /// How many events there were.
    pub events: u64,
    /// How long the simulated world lived.
    pub virtual_seconds: f64,
    /// How long that took.
    pub wall_seconds: f64,
    /// How often libraries asked the system for randomness by themselves.
    pub library_randoms: u64,
    /// The name of what was broken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub invariant: Option<String>,
    /// What was broken, and what was seen.
    pub violation: Option<String>,
    /// What was done, injected and checked.
    pub tallies: Tallies,
    /// If it failed: the last events, without segments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recent: Vec<String>,
    /// If it failed: the last events of the world itself.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recent_world: Vec<String>,
    /// If it failed: the last segments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recent_sent: Vec<String>,
    /// If it failed: how to run it again.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replay: Option<String>,
    /// What a process that died said last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stderr: Vec<String>,
}

impl Report {
    /// Of a run that came to its end.
    pub fn of(profile: Profile, outcome: Outcome, wall_seconds: f64, library_randoms: u64) -> Self {
        let mut report = Report {
            message_type: "seed".into(),
            seed: outcome.seed,
            profile: Some(profile),
            hash: format!("{:016x}", outcome.digest.hash),
            ok: true,
            events: outcome.digest.events,
            virtual_seconds: outcome.virtual_seconds,
            wall_seconds,
            library_randoms,
            tallies: outcome.tallies,
            ..Report::default()
        };
        if let Some(violation) = outcome.violation {
            report.fail(violation);
            (report.recent, report.recent_sent) = (outcome.recent, outcome.recent_sent);
            report.recent_world = outcome.recent_world;
        }
        report
    }

    /// Of a run whose process did not come to its end.
    pub fn broken(seed: u64, profile: Option<Profile>, violation: String, stderr: Vec<String>) -> Self {
        let message_type = "seed".into();
        let mut report = Report { message_type, seed, profile, stderr, ..Report::default() };
        report.fail(violation);
        report
    }

    /// Something did not hold. The invariant's name is what stands before the first colon.
    pub fn fail(&mut self, violation: String) {
        let name = violation.split_once(':').map_or("unnamed", |(name, _)| name);
        self.invariant = Some(name.into());
        self.violation = Some(violation);
        self.ok = false;
    }

    /// Notes how to run this again.
    pub fn replay_by(&mut self, plan: Option<&Path>) {
        self.plan = plan.map(Path::to_owned);
        self.replay = (!self.ok).then(|| format!("farshore-sim {}", self.again()));
    }

    fn again(&self) -> String {
        let verb = if self.plan.is_some() { "replay" } else { "run" };
        let twice = if self.invariant.as_deref() == Some(DETERMINISTIC) { " --twice" } else { "" };
        format!("{verb} {}{twice}", self.origin())
    }

    /// Where the plan comes from, as arguments.
    fn origin(&self) -> String {
        match &self.plan {
            Some(plan) => plan.display().to_string(),
            None => format!("--profile {} --seed {}", self.profile.unwrap_or(Profile::Day).word(), self.seed),
        }
    }

    /// Prints the line of this run, and if it failed all that helps.
    pub fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
            return;
        }
        let verdict = self.violation.as_deref().map_or("ok", |_| "FAILED");
        println!(
            "seed {:<6} {:16}  {:>8} events  {:>7.1} s in {:>5.1} s  {verdict}",
            self.seed, self.hash, self.events, self.virtual_seconds, self.wall_seconds
        );
        if !self.ok {
            self.print_failure();
        }
    }

    fn print_failure(&self) {
        println!("  violated: {}", self.violation.as_deref().unwrap_or_default());
        let said = self.recent.iter().filter(|line| !NOISE.iter().any(|noise| line.contains(noise)));
        print_last("how the world went", &self.recent_world, SHOWN_WORLD);
        print_last("the last events, without segments and flushes", said, SHOWN);
        print_last("the process said last", &self.stderr, SHOWN);
        println!("  replay:   farshore-sim {}", self.again());
        if self.invariant.as_deref() != Some(DETERMINISTIC) {
            println!("  look at:  farshore-sim {} --trace EVENTS --timeline PICTURE.json", self.again());
            println!("  shrink:   farshore-sim shrink {}", self.origin());
        }
    }
}

fn print_last<'a>(what: &str, lines: impl IntoIterator<Item = &'a String>, most: usize) {
    let lines: Vec<_> = lines.into_iter().collect();
    if !lines.is_empty() {
        println!("  {what}:");
    }
    lines.iter().skip(lines.len().saturating_sub(most)).for_each(|line| println!("    {}", shorten(line)));
}

/// A line that fits: some events quote whole answers.
pub fn shorten(line: &str) -> String {
    const MOST: usize = 200;
    match line.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_survives_the_way_to_another_process() {
        let mut report =
            Report::broken(7, Some(Profile::Storm), "process: was killed".into(), vec!["x".into()]);
        report.replay_by(None);
        assert_eq!(report.invariant.as_deref(), Some("process"));
        assert_eq!(report.replay.as_deref(), Some("farshore-sim run --profile storm --seed 7"));
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), report);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(shorten("ö"), "ö");
        assert_eq!(shorten(&"ö".repeat(500)).chars().count(), 201);
    }
}
