//! A job in two processes, which must agree on every event. If they do not, the first that differs is named: whatever
//! came before it is where to look.

#![expect(clippy::disallowed_methods, reason = "reads the event logs that two processes wrote")]

use super::args::How;
use super::child::{self, Job, Scratch};
use super::report::{DETERMINISTIC, Report};
use anyhow::{Context, Result};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Events shown before the one that differs.
const BEFORE: usize = 10;

/// Runs a job twice. The report is the first run's, failed if the second was another run.
pub fn run(job: &Job, how: &How) -> Report {
    let files = Scratch::new(&format!("{}-a", job.seed()))
        .and_then(|first| Ok((first, Scratch::new(&format!("{}-b", job.seed()))?)));
    let (first, second) = match files {
        Ok(files) => files,
        Err(e) => return Report::broken(job.seed(), None, format!("process: {e:#}"), Vec::new()),
    };
    let mut report = child::run(job, how, Some(first.path()));
    let again = child::run(job, how, Some(second.path()));
    // A process that died left half a log.
    if report.hash.is_empty() || again.hash.is_empty() {
        return if report.ok { again } else { report };
    }
    if (&report.hash, report.events) == (&again.hash, again.events) {
        report.wall_seconds += again.wall_seconds;
        return report;
    }
    match difference(first.path(), second.path()) {
        Ok(found) => {
            report.fail(format!("{DETERMINISTIC}: two processes differ {}", found.what));
            report.recent = found.before;
        }
        Err(e) => {
            report.fail(format!("{DETERMINISTIC}: two processes differ, and their logs are gone: {e:#}"))
        }
    }
    report.recent_sent.clear();
    report.recent_world.clear();
    report.replay_by(job.plan());
    report
}

/// Where two logs part.
struct Difference {
    what: String,
    before: Vec<String>,
}

fn difference(first: &Path, second: &Path) -> Result<Difference> {
    let open = |path: &Path| -> Result<_> {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        Ok(BufReader::new(file).split(b'\n').map_while(Result::ok).map(text))
    };
    Ok(compare(open(first)?, open(second)?))
}

fn text(line: Vec<u8>) -> String {
    String::from_utf8_lossy(&line).into_owned()
}

fn compare(mut first: impl Iterator<Item = String>, mut second: impl Iterator<Item = String>) -> Difference {
    let mut before = VecDeque::with_capacity(BEFORE);
    for number in 1u64.. {
        match (first.next(), second.next()) {
            (Some(a), Some(b)) if a == b => {
                if before.len() == BEFORE {
                    before.pop_front();
                }
                before.push_back(a);
            }
            (None, None) => break,
            (a, b) => {
                let say = |event: Option<String>| event.unwrap_or_else(|| "(nothing more)".into());
                let what = format!("from event {number} on: `{}` and `{}`", say(a), say(b));
                return Difference { what, before: before.into() };
            }
        }
    }
    Difference { what: "in what no event says".into(), before: before.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(upto: u32, last: &str) -> impl Iterator<Item = String> {
        (1..=upto).map(|n| format!("event {n}")).chain([last.to_string()])
    }

    #[test]
    fn the_first_difference_is_named_with_what_came_before() {
        let found = compare(log(30, "this"), log(30, "that"));
        assert_eq!(found.what, "from event 31 on: `this` and `that`");
        assert_eq!(found.before.len(), BEFORE);
        assert_eq!(found.before.last().unwrap(), "event 30");
        let found = compare(log(3, "event 4"), log(4, "event 5"));
        assert_eq!(found.what, "from event 5 on: `(nothing more)` and `event 5`");
        assert_eq!(compare(log(3, "x"), log(3, "x")).what, "in what no event says");
    }
}
