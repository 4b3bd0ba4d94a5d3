//! The twelve promises of docs/invariants.md, each with its own file: what it says, why, and how a run shows a breach.
//! They look at machines, disks and replicas from outside; where they ask the product, it is only for what it claims.

pub mod agree;
pub mod blind;
pub mod bounded;
pub mod copy_before_condemn;
pub mod delete_last;
pub mod durable;
pub mod granted;
pub mod heals;
mod leases;
pub mod locked;
pub mod spread;
pub mod verified;
pub mod whole;

use crate::agent::Promise;
use crate::cluster::{Cluster, Violation};
use crate::coverage::Tallies;
use crate::truth::Truth;
use farshore_core::catalogue::PackRecord;
use farshore_node::catalogue::View;
use std::sync::Arc;

/// When invariants are looked at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// Several times a virtual second; for what is cheap.
    Step,
    /// Once a virtual second.
    Second,
    /// A snapshot has just been acknowledged: the last of the promises.
    Acknowledged,
    /// Faults have stopped and the cluster says that all is well.
    End,
}

/// What an invariant may look at.
pub struct Scene<'a> {
    /// When.
    pub moment: Moment,
    /// Virtual microseconds.
    pub now_us: u64,
    /// Machines and their nodes.
    pub cluster: &'a Cluster,
    /// What is really on the disks.
    pub truth: &'a mut Truth,
    /// The newest catalogue that any replica has shown in this run.
    pub view: &'a View,
    /// Its packs.
    pub packs: &'a [PackRecord],
    /// What clients were promised so far.
    pub promises: &'a [Arc<Promise>],
}

/// A promise and how to see that it is broken.
pub trait Invariant {
    /// One or a few words; the first part of a violation's text.
    fn name(&self) -> &'static str;
    /// What must hold, as docs/invariants.md has it.
    fn statement(&self) -> &'static str;
    /// Looks. The number is how many facts were compared; 0 if there was nothing to see at this moment.
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String>;
}

/// All twelve.
pub fn all() -> Vec<Box<dyn Invariant + Send>> {
    vec![
        Box::new(durable::Durable::default()),
        Box::new(spread::Spread::default()),
        Box::new(verified::Verified::default()),
        Box::new(agree::Agree::default()),
        Box::new(delete_last::DeleteLast::default()),
        Box::new(copy_before_condemn::CopyBeforeCondemn::default()),
        Box::new(whole::Whole),
        Box::new(locked::Locked::default()),
        Box::new(blind::Blind::default()),
        Box::new(granted::Granted),
        Box::new(bounded::Bounded),
        Box::new(heals::Heals),
    ]
}

/// Looks at every invariant; the first that is broken ends the run.
pub fn check_all(
    invariants: &mut [Box<dyn Invariant + Send>],
    scene: &mut Scene<'_>,
    tallies: &mut Tallies,
) -> Result<(), Violation> {
    for invariant in invariants {
        let facts = invariant.check(scene).map_err(|what| format!("{}: {what}", invariant.name()))?;
        *tallies.checks.entry(invariant.name().into()).or_default() += facts;
    }
    Ok(())
}
