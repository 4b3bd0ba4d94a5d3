//! Invariant 10. Source: DESIGN 13.10 and 8. What strangers and clients try is work of its own (`trespass.rs`), judged
//! where it is done.

use super::{Invariant, Scene};

/// Nobody exceeds their grants.
pub struct Granted;

impl Invariant for Granted {
    fn name(&self) -> &'static str {
        "granted"
    }
    fn statement(&self) -> &'static str {
        "no call acts beyond its caller's grants"
    }
    fn check(&mut self, _: &mut Scene<'_>) -> Result<u64, String> {
        Ok(0)
    }
}
