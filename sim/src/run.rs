//! Runs a drawn plan.

use crate::cluster::Violation;
use crate::coverage::Tallies;
use crate::plan::Plan;
use crate::world::World;

/// From the first start to the last check.
pub async fn run(_world: &World, plan: &Plan) -> (Option<Violation>, Tallies) {
    (Some(format!("live: worlds of profile {} are not there yet", plan.profile.word())), Tallies::default())
}
