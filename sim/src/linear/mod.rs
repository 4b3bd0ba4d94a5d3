//! Whether the catalogue behaves as if one operation happened after the other (invariant 4). Clients' calls are
//! recorded as they go; at the end an order is sought that explains every answer.
//!
//! The flow: `record` writes the history, `partition` cuts it into parts that cannot influence each other, `search` looks
//! for an order of each part by the sequential specification in `catalogue`, and `reduce` makes an impossible one small.
//!
//! What the cluster promises is not quite one order, and the history says so before it is searched:
//! - A lookup of chunks answers from any state since its session was opened (DESIGN section 5): its call begins there.
//! - Client and node repeat an unanswered attempt. The first may still be under way when the second is answered, so a
//!   change that was refused, or an opening or closing of a session, leaves an echo if it took long: it may take effect
//!   at any time later. For other changes a second time is like no time.

mod record;

mod partition;

mod catalogue;

mod packs;

mod reduce;

mod search;

mod call;

#[cfg(test)]
mod search_test;

#[cfg(test)]
mod catalogue_test;

pub use record::{History, SessionCall};

use crate::world::Violation;
use call::Op;
use catalogue::Catalogue;
use search::{Timed, Verdict, search};
use std::time::Duration;

/// States one part of a history may cost before it is given up as undecided.
const STATES_MAX: u64 = 50_000;
/// Lines printed of an impossible history.
const LINES_MAX: usize = 40;

/// What a check has looked at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinearReport {
    /// Operations, those added for the checker's own sake not counted.
    pub operations: u64,
    /// Parts of the history that were searched by themselves.
    pub partitions: u64,
    /// States visited.
    pub states: u64,
    /// Parts that were too tangled for the budget: neither passed nor failed.
    pub undecided: u64,
    /// Operations that were not recorded because the history was full.
    pub skipped: u64,
}

/// Checks operations with their ranks. Separate from recording, so that tests can bring their own.
fn check(history: Vec<Timed<Op>>, lease: Duration) -> Result<LinearReport, Violation> {
    let mut report = LinearReport { operations: history.len() as u64, ..LinearReport::default() };
    for part in partition::parts(history) {
        let spec_of = |part: &[Timed<Op>]| Catalogue::new(part.iter().map(|timed| &timed.op), lease);
        let found = search(&spec_of(&part), &part, STATES_MAX);
        report.partitions += 1;
        report.states += found.states;
        match found.verdict {
            Verdict::Linearizable => {}
            Verdict::Undecided => report.undecided += 1,
            Verdict::Impossible => return Err(explain(&reduce::reduce(spec_of, &part))),
        }
    }
    Ok(report)
}

/// The answers that no order explains. Changes whose outcome does not matter for that come last.
fn explain(history: &[Timed<Op>]) -> Violation {
    let (seen, open): (Vec<_>, Vec<_>) = history.iter().partition(|timed| timed.ended.is_some());
    let mut lines: Vec<String> = seen.iter().map(|timed| timed.op.to_string()).collect();
    lines.extend(open.iter().map(|timed| format!("perhaps {}", timed.op)));
    let more = lines.len().saturating_sub(LINES_MAX);
    lines.truncate(LINES_MAX);
    if more > 0 {
        lines.push(format!("and {more} more"));
    }
    format!(
        "agree: not linearizable: {} answers that no order explains:\n  {}",
        seen.len(),
        lines.join("\n  ")
    )
}
