//! Invariant 12. Source: DESIGN 13.12; the liveness phase of TigerBeetle's simulator.
//!
//! `run/liveness.rs` waits for the cluster's own word, within a stated virtual time. Here that word is compared with the
//! truth: every shard has its place and its file, and nothing is condemned that is not gone.

use super::{Invariant, Moment, Scene};

/// Faults pass, damage does not stay.
pub struct Heals;

impl Invariant for Heals {
    fn name(&self) -> &'static str {
        "heals"
    }
    fn statement(&self) -> &'static str {
        "when faults stop, every stripe returns to full strength, all queues empty, all garbage is gone"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment != Moment::End {
            return Ok(0);
        }
        scene.cluster.check_places()?;
        match scene.cluster.garbage()? {
            Some(garbage) => Err(garbage),
            None => Ok(scene.packs.len() as u64),
        }
    }
}
