//! Invariant 3. Source: DESIGN 13.3; end-to-end arguments (Saltzer et al. 1984).
//!
//! Every restore of a run is compared byte by byte with the tree that was backed up (`agent.rs`). Here, once scrubs
//! have found nothing more: no copy that a fault has spoilt is still counted as good.

use super::{Invariant, Moment, Scene};
use crate::truth::Truth;

/// A bad shard counts as missing.
pub struct Verified;

impl Invariant for Verified {
    fn name(&self) -> &'static str {
        "verified"
    }
    fn statement(&self) -> &'static str {
        "no byte leaves a store or reaches a restored file unchecked; a bad shard counts as missing"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        if scene.moment != Moment::End {
            return Ok(0);
        }
        let (cluster, mut facts) = (scene.cluster, 0);
        for pack in scene.packs {
            for (at, file) in Truth::places(cluster, pack).into_iter().flatten() {
                facts += 1;
                if !scene.truth.is_durable(cluster, at, &file) {
                    let label = cluster.machines[at].label;
                    return Err(format!(
                        "after clean scrubs {file} on p{label} is still not what was stored"
                    ));
                }
            }
        }
        Ok(facts)
    }
}
