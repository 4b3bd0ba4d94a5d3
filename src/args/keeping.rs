//! Flags of what decides how long snapshots are kept: forget, undelete, prune, policy, lock.

use super::Filter;
use clap::{Args, ValueEnum};
use farshore_core::retention::{Count, Span};
use std::path::PathBuf;

/// Snapshots that a policy looks at. Without short forms, since -H is a rule there, as in restic.
#[derive(Args, Debug, Clone, Default)]
pub struct Among {
    /// Only snapshots of this host
    #[arg(long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Only snapshots with this label, or all of a comma-separated list of labels
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only snapshots of this path
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
}

impl From<Among> for Filter {
    fn from(among: Among) -> Self {
        Filter { host: among.host, tag: among.tag, path: among.path }
    }
}

#[derive(Args, Debug)]
pub struct ForgetArgs {
    /// Remove these snapshots, whatever any policy says
    #[arg(conflicts_with_all = ["explain", "set_policy", "use_policy", "show_policy", "unset_policy"])]
    pub snapshots: Vec<String>,
    /// Keep the last N snapshots (or `unlimited`)
    #[arg(short = 'l', long, value_name = "N", default_value = "0")]
    pub keep_last: Count,
    /// Keep the last N hourly snapshots
    #[arg(short = 'H', long, value_name = "N", default_value = "0")]
    pub keep_hourly: Count,
    /// Keep the last N daily snapshots
    #[arg(short = 'd', long, value_name = "N", default_value = "0")]
    pub keep_daily: Count,
    /// Keep the last N weekly snapshots
    #[arg(short = 'w', long, value_name = "N", default_value = "0")]
    pub keep_weekly: Count,
    /// Keep the last N monthly snapshots
    #[arg(short = 'm', long, value_name = "N", default_value = "0")]
    pub keep_monthly: Count,
    /// Keep the last N yearly snapshots
    #[arg(short = 'y', long, value_name = "N", default_value = "0")]
    pub keep_yearly: Count,
    /// Keep snapshots newer than this before the newest, such as 1y5m7d2h
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within: Span,
    /// Keep hourly snapshots newer than this before the newest
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within_hourly: Span,
    /// Keep daily snapshots newer than this before the newest
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within_daily: Span,
    /// Keep weekly snapshots newer than this before the newest
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within_weekly: Span,
    /// Keep monthly snapshots newer than this before the newest
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within_monthly: Span,
    /// Keep yearly snapshots newer than this before the newest
    #[arg(long, value_name = "DURATION", default_value = "0h")]
    pub keep_within_yearly: Span,
    /// Keep snapshots with all of these comma-separated labels; may be repeated
    #[arg(long, value_name = "TAGLIST")]
    pub keep_tag: Vec<String>,
    #[command(flatten)]
    pub filter: Among,
    /// Group by host, paths and/or tags, separated by commas; '' is one group
    #[arg(short, long, value_name = "GROUP", default_value = "host,paths")]
    pub group_by: String,
    /// One line a snapshot
    #[arg(short, long)]
    pub compact: bool,
    /// Say for each snapshot what keeps it and what has to happen before it goes
    #[arg(long)]
    pub explain: bool,
    /// Remove nothing, say what would be removed
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Collect garbage afterwards
    #[arg(long)]
    pub prune: bool,
    /// Remove for good, not to the trash
    #[arg(long)]
    pub purge: bool,
    /// Allow a policy to remove every snapshot of a group, and no policy to remove all that the filter names
    #[arg(long)]
    pub unsafe_allow_remove_all: bool,
    /// Remove also what is locked in governance mode
    #[arg(long)]
    pub bypass_governance: bool,
    /// Store what the --keep-… flags say in the repository, where it runs by itself; removes nothing now
    #[arg(long, conflicts_with_all = ["use_policy", "show_policy", "unset_policy"])]
    pub set_policy: bool,
    /// Show the stored policy
    #[arg(long, conflicts_with_all = ["use_policy", "unset_policy"])]
    pub show_policy: bool,
    /// Take the stored policy away
    #[arg(long, conflicts_with = "use_policy")]
    pub unset_policy: bool,
    /// Apply the stored policy now
    #[arg(long)]
    pub use_policy: bool,
}

#[derive(Args, Debug)]
pub struct UndeleteArgs {
    /// Which snapshots
    pub snapshots: Vec<String>,
}

#[derive(Args, Debug)]
pub struct PruneArgs {
    /// Remove nothing, say what there is
    #[arg(short = 'n', long)]
    pub dry_run: bool,
}

#[derive(Args, Debug)]
pub struct PolicyArgs {
    /// What must be survived from now on: "1 region", "1 region + 1 node", "2 regions", "1 provider"; the one it has, to
    /// code everything as the nodes of today ask for
    #[arg(long, value_name = "GOAL")]
    pub survive: Option<String>,
    /// Wait until everything is coded as the policy asks for, at most this long
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<String>,
}

/// How hard a lock is.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Gives way to --bypass-governance
    Governance,
    /// Gives way to nobody and nothing before its time
    Compliance,
}

#[derive(Args, Debug)]
pub struct LockArgs {
    /// Lock these snapshots; without any, every snapshot of the repository from its commit on
    pub snapshots: Vec<String>,
    /// How hard
    #[arg(long, value_enum, default_value_t = Mode::Governance)]
    pub mode: Mode,
    /// For how long, such as 30d: from now for a snapshot, from each commit on for a repository
    #[arg(long = "for", value_name = "DURATION", conflicts_with_all = ["until", "lift"])]
    pub for_time: Option<String>,
    /// Until the beginning of this day in UTC, such as 2030-01-31
    #[arg(long, value_name = "DATE", conflicts_with = "lift")]
    pub until: Option<String>,
    /// Take the lock away; governance mode only, and only with --bypass-governance
    #[arg(long)]
    pub lift: bool,
    /// Allow to shorten or to lift a lock in governance mode
    #[arg(long)]
    pub bypass_governance: bool,
}
