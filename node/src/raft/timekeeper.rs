//! Catalogue time, as the leader stamps it: what the clocks of a majority of the voters have reached. One clock that is
//! wrong, the leader's own included, neither ends a retention lock early nor holds all of them up; and until enough
//! clocks are known, time only passes as fast as it does for this process.
//!
//! The clocks come with the heartbeats. A report is a little older than it says, so that time is stamped late by the
//! way of a message, never early.

use farshore_core::id::NodeId;
use farshore_core::limits::NODES_MAX;
use farshore_core::mutant::{Mutant, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// What a node said of its clock counts for so long: heartbeats come every second, and a node that has fallen silent with
/// a wrong clock must not be the second one that says so.
pub const CLOCK_KEPT: Duration = Duration::from_secs(10);

/// A time, and when it was that.
#[derive(Clone, Copy, Debug)]
struct Reading {
    ms: u64,
    at: Instant,
}

impl Reading {
    /// What time it is by now, if that clock is right about how fast time passes.
    fn by(self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.at).as_millis();
        self.ms.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

#[derive(Default)]
struct Known {
    /// What nodes have said of their clocks.
    clocks: BTreeMap<NodeId, Reading>,
    /// Catalogue time when it was last found to be further than could be told by waiting.
    anchor: Option<Reading>,
}

/// The clocks a leader knows of.
#[derive(Default)]
pub struct TimeKeeper(Mutex<Known>);

/// What is known of time when a command is to be stamped.
pub struct Asked<'a> {
    /// This node, and what its calendar shows, in milliseconds since 1970.
    pub own: (NodeId, u64),
    /// Replicas that vote.
    pub voters: &'a BTreeSet<NodeId>,
    /// Catalogue time so far; 0 if no command was stamped yet.
    pub reached_ms: u64,
    /// Now, on the clock that never jumps.
    pub now: Instant,
}

impl TimeKeeper {
    /// A node has said what its calendar shows.
    pub fn hear(&self, node: NodeId, clock_ms: u64, now: Instant) {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        if known.clocks.len() < NODES_MAX || known.clocks.contains_key(&node) {
            known.clocks.insert(node, Reading { ms: clock_ms, at: now });
        }
    }

    /// How far a node's calendar is ahead of catalogue time (or behind, if negative), in milliseconds, as of its last
    /// report.
    pub fn offset_ms(&self, node: NodeId, reached_ms: u64, now: Instant) -> Option<i64> {
        let known = self.0.lock().expect("no holder of this lock panics");
        let clock = known.clocks.get(&node)?.by(now);
        Some(i64::try_from(clock).ok()?.saturating_sub_unsigned(reached_ms))
    }

    /// The time to stamp a command with; the catalogue keeps the later of this and its own. `None` if there is none yet:
    /// nothing was ever stamped, and too few clocks are known.
    pub fn stamp(&self, asked: &Asked) -> Option<u64> {
        let mut known = self.0.lock().expect("no holder of this lock panics");
        let reached = Reading { ms: asked.reached_ms, at: asked.now };
        let anchor = known.anchor.filter(|anchor| anchor.by(asked.now) >= reached.ms).unwrap_or(reached);
        known.anchor = Some(anchor);
        if mutant(Mutant::OwnClock) {
            return Some(asked.own.1);
        }
        let recent = |clock: &&Reading| asked.now.saturating_duration_since(clock.at) <= CLOCK_KEPT;
        let clock = |voter: &NodeId| match *voter == asked.own.0 {
            true => Some(asked.own.1),
            false => known.clocks.get(voter).filter(recent).map(|clock| clock.by(asked.now)),
        };
        let mut clocks: Vec<u64> = asked.voters.iter().filter_map(clock).collect();
        clocks.sort_unstable_by(|a, b| b.cmp(a));
        let majority = asked.voters.len() / 2 + 1;
        match clocks.get(majority - 1) {
            Some(agreed) => Some(*agreed),
            None if asked.reached_ms == 0 => None,
            None => Some(anchor.by(asked.now).min(asked.own.1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DAY: u64 = 86_400_000;

    fn voters(n: u64) -> BTreeSet<NodeId> {
        (1..=n).map(NodeId).collect()
    }

    fn ask(voters: &BTreeSet<NodeId>, own_ms: u64, reached_ms: u64, now: Instant) -> Asked<'_> {
        Asked { own: (NodeId(1), own_ms), voters, reached_ms, now }
    }

    #[test]
    fn a_single_clock_that_jumps_moves_nothing() {
        let (three, keeper, t0) = (voters(3), TimeKeeper::default(), Instant::now());
        for node in [2, 3] {
            keeper.hear(NodeId(node), 100 * DAY, t0);
        }
        let later = t0 + Duration::from_millis(7);
        assert_eq!(keeper.stamp(&ask(&three, 9_000 * DAY, 100 * DAY, later)), Some(100 * DAY + 7));
        assert_eq!(keeper.stamp(&ask(&three, 3, 100 * DAY, later)), Some(100 * DAY + 7), "nor back");
        keeper.hear(NodeId(2), 9_000 * DAY, later);
        assert_eq!(keeper.stamp(&ask(&three, 9_000 * DAY, 100 * DAY, later)), Some(9_000 * DAY), "two agree");
        let much_later = later + CLOCK_KEPT + Duration::from_millis(1);
        let alone = keeper.stamp(&ask(&three, 9_000 * DAY, 100 * DAY, much_later));
        assert_eq!(
            alone,
            Some(100 * DAY + 1 + CLOCK_KEPT.as_millis() as u64),
            "one that has fallen silent does not"
        );
    }

    #[test]
    fn alone_among_silent_voters_time_passes_as_it_does_here() {
        let (three, keeper, t0) = (voters(3), TimeKeeper::default(), Instant::now());
        assert_eq!(keeper.stamp(&ask(&three, 9 * DAY, 0, t0)), None, "there is no time yet");
        assert_eq!(keeper.stamp(&ask(&three, 9 * DAY, DAY, t0)), Some(DAY));
        // Its own stamps do not let it creep.
        let mut reached = DAY;
        for step in 1..=10_000u64 {
            let now = t0 + Duration::from_millis(step / 10);
            reached = reached.max(keeper.stamp(&ask(&three, 9 * DAY, reached, now)).unwrap());
        }
        assert_eq!(reached, DAY + 1_000);
        assert_eq!(keeper.stamp(&ask(&voters(1), 9 * DAY, reached, t0)), Some(9 * DAY), "it is the majority");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]
        /// Whatever a minority says, and in whatever order: time stays within what the right clocks show.
        #[test]
        fn a_minority_of_wrong_clocks_is_never_believed(
            n in 1u64..8, wrong in proptest::collection::vec((any::<u64>(), 0u64..5_000), 1..40), pick: u64,
        ) {
            let (voters, keeper, t0) = (voters(n), TimeKeeper::default(), Instant::now());
            let liars: BTreeSet<u64> = (0..(n - 1) / 2).map(|i| (pick.wrapping_add(i)) % n + 1).collect();
            let (mut reached, mut at) = (DAY, 0);
            for (value, pause) in wrong {
                at += pause;
                let (now, right) = (t0 + Duration::from_millis(at), DAY + at);
                let said = |id: u64| if liars.contains(&id) { value } else { right };
                for id in 2..=n {
                    if value % (id + 1) != 0 {
                        keeper.hear(NodeId(id), said(id), now);
                    }
                }
                let stamp = keeper.stamp(&ask(&voters, said(1), reached, now));
                reached = reached.max(stamp.unwrap());
                prop_assert!(reached <= right, "{reached} after {right}");
            }
        }
    }
}
