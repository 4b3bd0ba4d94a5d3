//! Runs one plan in a runtime of its own, on virtual time, and says how it ended.

use crate::cluster::Violation;
use crate::coverage::Tallies;
use crate::day::day;
use crate::event;
use crate::plan::{Plan, Profile};
use crate::world::{Digest, Timeline, World};
use farshore_core::host::task::set_strict;

/// What to run.
pub struct Options {
    /// What happens.
    pub plan: Plan,
    /// Receives every event, if given.
    pub trace: Option<Box<dyn std::io::Write + Send>>,
    /// Whether to keep what a picture of the run is drawn from.
    pub timeline: bool,
    /// Makes this run differ from itself after so many events, by something that no other process has: see
    /// [`World::disturb`].
    pub disturb: Option<(u64, u64)>,
}

impl Options {
    /// Just that plan.
    pub fn of(plan: Plan) -> Self {
        Options { plan, trace: None, timeline: false, disturb: None }
    }
}

/// How a run ended.
pub struct Outcome {
    /// What was run.
    pub seed: u64,
    /// Fold of all events.
    pub digest: Digest,
    /// How long it took in the simulated world.
    pub virtual_seconds: f64,
    /// The first promise that was broken, if any: the invariant's name, a colon, what was seen.
    pub violation: Option<Violation>,
    /// The last events, without segments.
    pub recent: Vec<String>,
    /// The last events of the world itself.
    pub recent_world: Vec<String>,
    /// The last segments that went out.
    pub recent_sent: Vec<String>,
    /// What was kept for a picture, if wanted.
    pub timeline: Option<Timeline>,
    /// What was done, injected and checked.
    pub tallies: Tallies,
}

/// Runs a plan to its end, in this thread.
pub fn run(options: &mut Options) -> Outcome {
    set_strict(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let outcome = runtime.block_on(async {
        let world = World::new(options.plan.seed, options.trace.take());
        if options.timeline {
            world.keep_timeline();
        }
        if let Some((at, what)) = options.disturb {
            world.disturb(at, what);
        }
        let (violation, tallies) = match options.plan.profile {
            Profile::Day => (day(&world).await.err(), Tallies::default()),
            _ => crate::run::run(&world, &options.plan).await,
        };
        if let Some(violation) = &violation {
            event!(world, 0, "violation: {violation}");
        }
        Outcome {
            seed: options.plan.seed,
            digest: world.digest(),
            virtual_seconds: world.now_us() as f64 / 1e6,
            violation,
            recent: world.recent(),
            recent_world: world.recent_world(),
            recent_sent: world.recent_sent(),
            timeline: world.take_timeline(),
            tallies,
        }
    });
    set_strict(false);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::draw::draw;

    /// Without the program's replaced libc the run is not the same each time, but its promises hold each time.
    #[test]
    fn a_day_ends_well() {
        let outcome = run(&mut Options::of(draw(1, Profile::Day)));
        assert_eq!(outcome.violation, None, "last events: {:#?}", outcome.recent);
        assert!(outcome.digest.events > 1_000, "something happened");
    }
}
