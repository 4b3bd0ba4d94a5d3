//! Exhaustive small worlds: four machines, a client and one flow, run once for every call that a process makes through
//! a seam while the flow lasts, with power failing (or the process being killed) at exactly that call. Afterwards the flow must come to its end, and
//! everything acknowledged must be there, on every disk and by a restore.
//!
//! A run without a crash tells which calls there are ([`Outcome::spans`]); until the crash any other run is the same.

mod flow;

mod stage;

use crate::calls::{Call, Label, Moment};
use crate::event;
use crate::world::{Digest, Violation, World};
use farshore_core::host::task::set_strict;
use std::fmt;
use std::str::FromStr;

/// What is done while power fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Flow {
    /// A client's backup: shards are sent, stored, receipted, and the snapshot committed
    EncodeAndCommit,
    /// A rotten shard is found, rebuilt and recorded
    Repair,
    /// A node is emptied: its shards are copied elsewhere, recorded there, and deleted
    Drain,
    /// A node that was given up for lost comes back, and its copies, which others have by now, are deleted
    Gc,
    /// The policy of the repository is changed: its packs are coded anew, and the old ones deleted
    Recode,
    /// A region moves to a new one: its node is emptied, what was moved is read again, and the node is retired
    Migrate,
}

impl Flow {
    /// All of them.
    pub const ALL: [Flow; 6] =
        [Flow::EncodeAndCommit, Flow::Repair, Flow::Drain, Flow::Gc, Flow::Recode, Flow::Migrate];

    /// As typed.
    pub fn word(self) -> &'static str {
        match self {
            Flow::EncodeAndCommit => "encode-and-commit",
            Flow::Repair => "repair",
            Flow::Drain => "drain",
            Flow::Gc => "gc",
            Flow::Recode => "recode",
            Flow::Migrate => "migrate",
        }
    }
}

/// The call at which a process ends.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Point {
    /// Whose call.
    pub label: Label,
    /// Its number among the calls of that process.
    pub number: u64,
    /// Before or after its effect.
    pub moment: Moment,
    /// Whether its machine loses power; otherwise the process alone is killed.
    pub power: bool,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let moment = match self.moment {
            Moment::Before => "before",
            Moment::After => "after",
        };
        let kill = if self.power { "" } else { ":kill" };
        write!(f, "{}:{}:{moment}{kill}", self.label, self.number)
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not PROCESS:CALL:before or PROCESS:CALL:after, and :kill if need be");
        let mut parts = text.split(':');
        let mut number = || parts.next().and_then(|part| part.parse().ok()).ok_or_else(wrong);
        let (label, number) = (number()?, number()?);
        let moment = match parts.next() {
            Some("before") => Moment::Before,
            Some("after") => Moment::After,
            _ => return Err(wrong()),
        };
        let power = match (parts.next(), parts.next()) {
            (None, None) => true,
            (Some("kill"), None) => false,
            _ => return Err(wrong()),
        };
        Ok(Point { label, number, moment, power })
    }
}

/// The calls that a process makes while a flow lasts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Span {
    /// Whose.
    pub label: Label,
    /// Each with its number.
    pub calls: Vec<(u64, Call)>,
}

impl Span {
    /// Every point of these calls: before each, and after those that have an effect.
    pub fn points(&self) -> impl Iterator<Item = (Point, Call)> {
        self.calls.iter().flat_map(|(number, call)| {
            let (label, number, call) = (self.label, *number, *call);
            let moments: &[Moment] =
                if call.has_effect() { &[Moment::Before, Moment::After] } else { &[Moment::Before] };
            moments.iter().map(move |moment| (Point { label, number, moment: *moment, power: true }, call))
        })
    }
}

/// How a run ended.
pub struct Outcome {
    /// The first promise that was broken, if any.
    pub violation: Option<Violation>,
    /// Whether the call came at which power was to fail; true if none was to.
    pub reached: bool,
    /// Files of shards at the end that the catalogue never recorded where they are: copies of uploads and rebuilds that
    /// were cut short.
    pub orphans: u64,
    /// The calls of the flow, by process.
    pub spans: Vec<Span>,
    /// Fold of all events.
    pub digest: Digest,
    /// How long it took in the simulated world.
    pub virtual_seconds: f64,
    /// The last events, without segments.
    pub recent: Vec<String>,
}

/// Runs a flow in this thread, with a power failure at `point` if one is given.
pub fn run(
    flow: Flow,
    seed: u64,
    point: Option<Point>,
    trace: Option<Box<dyn std::io::Write + Send>>,
) -> Outcome {
    set_strict(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let outcome = runtime.block_on(async {
        let world = World::new(seed, trace);
        world.calls().record();
        let mut seen = flow::Seen { spans: Vec::new(), reached: point.is_none(), orphans: 0 };
        let violation = flow::run(&world, flow, point, &mut seen).await.err();
        if let Some(violation) = &violation {
            event!(world, 0, "violation: {violation}");
        }
        let flow::Seen { spans, reached, orphans } = seen;
        let (digest, virtual_seconds) = (world.digest(), world.now_us() as f64 / 1e6);
        Outcome { violation, reached, orphans, spans, digest, virtual_seconds, recent: world.recent() }
    });
    set_strict(false);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_as_they_are_written() {
        for (moment, power) in [(Moment::Before, true), (Moment::After, false)] {
            let point = Point { label: 101, number: 77, moment, power };
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        for bad in ["", "1:2", "1:2:during", "1:2:after:", "1:2:after:kill:", "x:2:after"] {
            assert!(bad.parse::<Point>().is_err(), "{bad}");
        }
    }

    /// Without the program's replaced libc a call may be another one in the second run; the promises hold all the same.
    #[test]
    fn every_flow_ends_well_without_a_crash_and_with_one() {
        for flow in Flow::ALL {
            let calm = run(flow, 1, None, None);
            assert_eq!(calm.violation, None, "{flow:?}: {:#?}", calm.recent);
            let points: Vec<(Point, Call)> = calm.spans.iter().flat_map(Span::points).collect();
            assert!(points.len() > 50, "{flow:?} makes calls");
            let (point, _) = points[points.len() / 2];
            let crash = run(flow, 1, Some(point), None);
            assert_eq!(crash.violation, None, "{flow:?} at {point}: {:#?}", crash.recent);
            assert!(crash.digest != calm.digest);
        }
    }
}
