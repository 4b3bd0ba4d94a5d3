//! Invariant 8. Source: DESIGN 13.8. Locks themselves are tried by `run/discard.rs`; they are worth what catalogue time is,
//! which never runs backwards as the log goes on, and never ahead unless a majority of the voters' calendars does.

use super::{Invariant, Scene};
use crate::clock::now_ms;
use std::collections::BTreeMap;

/// Time goes forwards, as fast as it does.
#[derive(Default)]
pub struct Locked {
    /// Catalogue time by applied index.
    times: BTreeMap<u64, u64>,
}

/// Times remembered.
const TIMES_KEPT: usize = 20_000;

impl Invariant for Locked {
    fn name(&self) -> &'static str {
        "locked"
    }
    fn statement(&self) -> &'static str {
        "nothing removes or shortens a locked snapshot; catalogue time never runs backwards"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let mut facts = 0;
        for at in 0..scene.cluster.machines.len() {
            let Some(view) = scene.cluster.node(at).and_then(|node| node.view().ok()) else { continue };
            let (applied, time) = (view.applied(), view.time_ms());
            facts += 1;
            let now = now_ms(&scene.cluster.world);
            if scene.cluster.time_is_right() && time > now {
                return Err(format!(
                    "catalogue time is {} ms ahead although most calendars are right",
                    time - now
                ));
            }
            let earlier = self.times.range(..=applied).next_back().filter(|(_, before)| **before > time);
            let later = self.times.range(applied..).next().filter(|(_, after)| **after < time);
            if let Some((other, theirs)) = earlier.or(later) {
                return Err(format!("catalogue time is {time} at index {applied} and {theirs} at {other}"));
            }
            self.times.insert(applied, time);
        }
        while self.times.len() > TIMES_KEPT {
            self.times.pop_first();
        }
        Ok(facts)
    }
}
