//! Runs one seed in a runtime of its own, on virtual time, and says how it ended.

use crate::cluster::Violation;
use crate::day::day;
use crate::event;
use crate::world::{Digest, World};
use farshore_core::host::task::set_strict;

/// What to run.
pub struct Options {
    /// Decides everything.
    pub seed: u64,
    /// Receives every event, if given.
    pub trace: Option<Box<dyn std::io::Write + Send>>,
}

/// How a run ended.
pub struct Outcome {
    /// What was run.
    pub seed: u64,
    /// Fold of all events.
    pub digest: Digest,
    /// How long it took in the simulated world.
    pub virtual_seconds: f64,
    /// The first promise that was broken, if any.
    pub violation: Option<Violation>,
    /// The last events.
    pub recent: Vec<String>,
}

/// Runs one seed to its end, in this thread.
pub fn run(options: &mut Options) -> Outcome {
    set_strict(true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime without I/O needs nothing from the system");
    let outcome = runtime.block_on(async {
        let world = World::new(options.seed, options.trace.take());
        let violation = day(&world).await.err();
        if let Some(violation) = &violation {
            event!(world, 0, "violation: {violation}");
        }
        Outcome {
            seed: options.seed,
            digest: world.digest(),
            virtual_seconds: world.now_us() as f64 / 1e6,
            violation,
            recent: world.recent(),
        }
    });
    set_strict(false);
    outcome
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without the program's replaced libc the run is not the same each time, but its promises hold each time.
    #[test]
    fn a_day_ends_well() {
        let outcome = run(&mut Options { seed: 1, trace: None });
        assert_eq!(outcome.violation, None, "last events: {:#?}", outcome.recent);
        assert!(outcome.digest.events > 1_000, "something happened");
    }
}
