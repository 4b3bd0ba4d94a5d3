//! What a batch amounts to: how much was simulated how fast, what was injected, done and checked, and which faults never
//! met which operations, so that silence is never mistaken for proof.

#![expect(clippy::disallowed_methods, reason = "how long a batch takes for those who wait for it")]

use super::report::{Report, shorten};
use farshore_sim::coverage::{Tallies, operations};
use farshore_sim::plan::{Fault, Profile};
use serde::Serialize;
use std::collections::BTreeMap;
use std::time::Instant;

/// Width of a list before it goes on in the next line.
const WIDTH: usize = 110;
/// Pairs that never met are listed up to this many, and counted beyond.
const LISTED: usize = 120;
/// Where the contents of a line begin.
const INDENT: usize = 14;

/// Sums over a batch.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Always `summary`.
    message_type: &'static str,
    profile: Profile,
    /// Runs that were told of.
    seeds: u64,
    /// How many of them failed.
    pub failed: u64,
    ok: bool,
    /// Each in two processes that agreed on every event.
    twice: bool,
    events: u64,
    virtual_seconds: f64,
    wall_seconds: f64,
    /// Time that processes took, in sum.
    process_seconds: f64,
    simulated_hours_per_wall_second: f64,
    simulated_hours_per_process_second: f64,
    tallies: Tallies,
    /// Pairs of fault and operation.
    never_met: Vec<(&'static str, &'static str)>,
    /// Failed runs by invariant.
    violated: BTreeMap<String, u64>,
    failures: Vec<Failure>,
    #[serde(skip)]
    began: Instant,
}

#[derive(Debug, Serialize)]
struct Failure {
    seed: u64,
    violation: String,
    replay: String,
}

impl Summary {
    /// Nothing yet.
    pub fn begin(profile: Profile, twice: bool) -> Self {
        Summary {
            message_type: "summary",
            profile,
            seeds: 0,
            failed: 0,
            ok: true,
            twice,
            events: 0,
            virtual_seconds: 0.0,
            wall_seconds: 0.0,
            process_seconds: 0.0,
            simulated_hours_per_wall_second: 0.0,
            simulated_hours_per_process_second: 0.0,
            tallies: Tallies::default(),
            never_met: Vec::new(),
            violated: BTreeMap::new(),
            failures: Vec::new(),
            began: Instant::now(),
        }
    }

    /// One run more.
    pub fn add(&mut self, report: &Report) {
        let runs = if self.twice { 2.0 } else { 1.0 };
        self.seeds += 1;
        self.events += report.events;
        self.virtual_seconds += report.virtual_seconds * runs;
        self.process_seconds += report.wall_seconds;
        self.tallies.merge(&report.tallies);
        if !report.ok {
            self.failed += 1;
            self.ok = false;
            Tallies::add(&mut self.violated, report.invariant.as_deref().unwrap_or("unnamed"));
            let violation = report.violation.clone().unwrap_or_default();
            let replay = report.replay.clone().unwrap_or_default();
            self.failures.push(Failure { seed: report.seed, violation, replay });
        }
    }

    /// Seconds since it began.
    pub fn lasted(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// No more follow.
    pub fn end(&mut self) {
        let hours = self.virtual_seconds / 3_600.0;
        self.wall_seconds = self.lasted();
        self.simulated_hours_per_wall_second = hours / self.wall_seconds.max(1e-3);
        self.simulated_hours_per_process_second = hours / self.process_seconds.max(1e-3);
        if !self.tallies.pairs.is_empty() {
            self.never_met = self.tallies.never_met();
        }
    }

    /// Prints it.
    pub fn print(&self, json: bool) {
        if json {
            println!("{}", serde_json::to_string(self).unwrap_or_default());
        } else {
            print!("{}", self.text());
        }
    }

    fn text(&self) -> String {
        let twice = if self.twice { ", each in two processes" } else { "" };
        let mut text = format!("\n{} seeds of {}{twice}: ", self.seeds, self.profile.word());
        text += &match self.failed {
            0 => "no violation\n".to_string(),
            failed => format!("{failed} FAILED\n"),
        };
        let (hours, wall) = (self.virtual_seconds / 3_600.0, self.wall_seconds);
        let speed = [self.simulated_hours_per_wall_second, self.simulated_hours_per_process_second];
        let time = format!("{hours:.2} simulated hours in {wall:.1} s: {:.4} hours a second,", speed[0]);
        text += &line("time", [format!("{time} {:.4} in each process", speed[1])]);
        text += &line("events", [grouped(self.events)]);
        text += &self.tallied();
        text += &line("violated", counted(&self.violated));
        for Failure { seed, violation, replay } in &self.failures {
            text += &format!("    seed {seed}: {}\n      {replay}\n", shorten(violation));
        }
        text
    }

    fn tallied(&self) -> String {
        let Tallies { work, faults, withheld, upkeep, checks, pairs, linear } = &self.tallies;
        let mut text = line("faults", counted(faults)) + &line("withheld", counted(withheld));
        if !work.is_empty() {
            text += &format!("  {:<18}{:>8}{:>9}{:>7}\n", "work", "ok", "refused", "died");
        }
        for (kind, ended) in work {
            text += &format!("    {kind:<16}{:>8}{:>9}{:>7}\n", ended.ok, ended.refused, ended.died);
        }
        text += &line("upkeep", counted(upkeep));
        text += &line("checks", counted(checks));
        if linear.0 > 0 {
            let undecided = format!("({} of them in histories left undecided)", linear.1);
            text += &line("linear", [format!("{} catalogue operations {undecided}", grouped(linear.0))]);
        }
        if !pairs.is_empty() {
            text += &coverage(pairs);
            text += &line("never met", never_met(&self.never_met));
        }
        text
    }
}

fn counted(counts: &BTreeMap<String, u64>) -> impl Iterator<Item = String> {
    counts.iter().map(|(name, count)| format!("{name} {}", grouped(*count)))
}

/// Faults by row, operations by column.
fn coverage(pairs: &BTreeMap<String, BTreeMap<String, u64>>) -> String {
    let mut text = "  how often a fault met an operation:\n".to_string();
    text += &format!("    {:<15}", "");
    operations().for_each(|operation| text += &format!("{:>7}", heading(operation)));
    for fault in Fault::KINDS {
        text += &format!("\n    {fault:<15}");
        for operation in operations() {
            let met = pairs.get(fault).and_then(|row| row.get(operation)).copied().unwrap_or(0);
            text += &format!("{:>7}", if met == 0 { "-".into() } else { short(met) });
        }
    }
    text + "\n"
}

/// The beginning of a name, for a narrow column.
fn heading(operation: &str) -> &str {
    let last = operation.rsplit('-').next().unwrap_or(operation);
    last.get(..6).unwrap_or(last)
}

fn short(count: u64) -> String {
    match count {
        0..100_000 => count.to_string(),
        100_000..10_000_000 => format!("{}k", count / 1_000),
        _ => format!("{}M", count / 1_000_000),
    }
}

fn never_met(pairs: &[(&'static str, &'static str)]) -> Vec<String> {
    let mut by_fault: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (fault, operation) in pairs {
        by_fault.entry(fault).or_default().push(operation);
    }
    let all = operations().count();
    let named = |(fault, missed): (&str, Vec<&str>)| match missed.len() {
        len if len == all => format!("{fault}: everything;"),
        _ => format!("{fault}: {};", missed.join(", ")),
    };
    match pairs.len() {
        0 => vec!["nothing: every fault met every operation".into()],
        // A small batch: the dashes above say it better.
        len if len > LISTED => vec![format!("{len} of {} pairs", all * Fault::KINDS.len())],
        _ => by_fault.into_iter().map(named).collect(),
    }
}

/// `  name        item  item  item`, over as many lines as it takes; nothing if there are none.
fn line(name: &str, items: impl IntoIterator<Item = String>) -> String {
    let mut text = String::new();
    let mut column = 0;
    for item in items {
        let wide = item.chars().count() + 2;
        if column == 0 {
            text += &format!("  {name:<width$}", width = INDENT - 2);
            column = INDENT;
        } else if column + wide > WIDTH {
            text += &format!("\n{:INDENT$}", "");
            column = INDENT;
        }
        text += &format!("{item}  ");
        column += wide;
    }
    let lines = text.lines().map(|line| format!("{}\n", line.trim_end()));
    lines.collect()
}

/// 1234567 as 1,234,567.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_sim::coverage::operations;
    use farshore_sim::plan::{Fault, Work};

    fn report(seed: u64) -> Report {
        let mut tallies = Tallies::default();
        tallies.met("crash", Work::Full.word());
        Tallies::add(&mut tallies.faults, "crash");
        Tallies::add(&mut tallies.checks, "durable");
        tallies.work.entry("full".into()).or_default().ok = 1_500;
        tallies.linear = (10, 1);
        Report { seed, ok: true, events: 500_000, virtual_seconds: 3_600.0, tallies, ..Report::default() }
    }

    #[test]
    fn counts_add_up_and_gaps_are_listed() {
        let mut summary = Summary::begin(Profile::Storm, false);
        summary.add(&report(1));
        let mut failed = report(2);
        failed.fail("durable: gone".into());
        summary.add(&failed);
        summary.end();
        let text = summary.text();
        assert!(text.contains("2 seeds of storm: 1 FAILED"), "{text}");
        assert!(text.contains("1,000,000"), "{text}");
        assert!(text.contains("seed 2: durable: gone"), "{text}");
        assert!(
            summary.never_met.contains(&("crash", "check"))
                && !summary.never_met.contains(&("crash", "full"))
        );
        let pairs = Fault::KINDS.len() * operations().count();
        assert!(text.contains(&format!("never met   {} of {pairs} pairs", pairs - 1)), "{text}");
        assert_eq!(never_met(&[("wipe", "list"), ("wipe", "full")]), ["wipe: list, full;"]);
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["tallies"]["work"]["full"]["ok"], 3_000);
        assert_eq!(json["tallies"]["pairs"]["crash"]["full"], 2);
        assert_eq!(json["virtual_seconds"], 7_200.0);
    }

    #[test]
    fn long_lists_go_on_in_the_next_line() {
        let text = line("name", (0..60).map(|n| format!("item {n}")));
        assert!(text.lines().count() > 3 && text.lines().all(|l| l.chars().count() <= WIDTH));
        assert_eq!(line("name", []), "");
        assert_eq!((grouped(7), grouped(1_234_567)), ("7".into(), "1,234,567".into()));
    }
}
