//! Feature levels: what a cluster uses whose nodes run several releases. A program can do every level up to
//! [`FEATURE_LEVEL`]; a cluster is at the highest level that all its nodes can do, and its catalogue says which. Whatever
//! a release adds to what is replicated (a command, a row, another meaning) names the level it needs and is not used
//! below it. A level once reached is never left: what was written in it has to be read.
//!
//! To add something: a constant with the next level here, `FEATURE_LEVEL` up to it, and the level in
//! `Command::level`, in the table of rows, or where the meaning changes.

/// The first level. Clusters are founded in it.
pub const LEVEL_FIRST: u32 = 1;
/// Acts are recorded (`catalogue/audit.rs`); the rise to this level is the first record.
pub const LEVEL_AUDIT: u32 = 2;
/// A repository's policy can be changed, and what it holds is coded anew.
pub const LEVEL_RECODE: u32 = 3;
/// Regions are migrated, what was moved is read again and recorded, and the cluster's own work has budgets.
pub const LEVEL_MIGRATE: u32 = 4;
/// A repository's key slots can be changed, and the tags of its snapshots.
pub const LEVEL_KEYS: u32 = 5;
/// What this program can do.
pub const FEATURE_LEVEL: u32 = LEVEL_KEYS;

const _: () = assert!(LEVEL_FIRST < LEVEL_AUDIT && LEVEL_AUDIT < LEVEL_RECODE);
const _: () = assert!(LEVEL_RECODE < LEVEL_MIGRATE && LEVEL_MIGRATE < LEVEL_KEYS);
const _: () = assert!(LEVEL_KEYS <= FEATURE_LEVEL);
