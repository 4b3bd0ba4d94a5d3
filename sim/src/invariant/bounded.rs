//! Invariant 11. Source: DESIGN 13.11.

use super::{Invariant, Moment, Scene};
use farshore_core::limits::{REBUILDS_IN_FLIGHT_MAX, REBUILDS_QUEUED_MAX, SESSIONS_OPEN_MAX};

/// Everything has a limit.
pub struct Bounded;

impl Invariant for Bounded {
    fn name(&self) -> &'static str {
        "bounded"
    }
    fn statement(&self) -> &'static str {
        "every queue, batch, retry, message and memory use has a named limit"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment == Moment::Step {
            return Ok(0);
        }
        let within = |what: &str, is: u64, most: u64| match is <= most {
            true => Ok(1),
            false => Err(format!("{is} {what}, and {most} is the most")),
        };
        let mut facts = within("sessions are open", scene.view.counts().sessions, SESSIONS_OPEN_MAX)?;
        for at in 0..scene.cluster.machines.len() {
            let Some(node) = scene.cluster.node(at) else { continue };
            let repairs = node.shared().repairs.get();
            facts += within("rebuilds are queued", repairs.queued, REBUILDS_QUEUED_MAX as u64)?;
            facts += within("rebuilds are running", repairs.running, REBUILDS_IN_FLIGHT_MAX as u64)?;
        }
        Ok(facts)
    }
}
