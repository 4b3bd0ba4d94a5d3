//! Flags of what one does with a repository: back up, look, restore, check.

use clap::{Args, ValueEnum};
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct InitArgs {
    /// What must be survived: "1 region", "1 region + 1 node", "2 regions", "1 provider"
    #[arg(long, default_value = "1 region", env = "FARSHORE_SURVIVE", value_name = "GOAL")]
    pub survive: String,
}

#[derive(Args, Debug, Default)]
pub struct Filter {
    /// Only snapshots of this host
    #[arg(short = 'H', long, value_name = "NAME")]
    pub host: Vec<String>,
    /// Only snapshots with this label
    #[arg(long, value_name = "TAG")]
    pub tag: Vec<String>,
    /// Only snapshots of this path
    #[arg(long, value_name = "PATH")]
    pub path: Vec<PathBuf>,
}

#[derive(Args, Debug)]
pub struct SnapshotsArgs {
    /// Only these snapshots
    pub snapshots: Vec<String>,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
pub struct LsArgs {
    /// `latest`, an id, the start of an id, or any of them with `:PATH`
    pub snapshot: String,
    /// Only these paths
    pub paths: Vec<PathBuf>,
    /// Long listing: mode, owner, size, time
    #[arg(short, long)]
    pub long: bool,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
pub struct FindArgs {
    /// What to find (`*`, `?` and `**` work); what is below it is found as well
    #[arg(required = true, value_name = "PATTERN")]
    pub patterns: Vec<String>,
    /// Take upper and lower case for the same
    #[arg(short, long)]
    pub ignore_case: bool,
    /// Long listing: mode, owner, size, time
    #[arg(short, long)]
    pub long: bool,
    /// Changed on this day or later
    #[arg(short = 'O', long, value_name = "DATE")]
    pub oldest: Option<String>,
    /// Changed before this day begins
    #[arg(short = 'N', long, value_name = "DATE")]
    pub newest: Option<String>,
    /// Begin with the oldest snapshot
    #[arg(short = 'R', long)]
    pub reverse: bool,
    /// Only in this snapshot; may be repeated
    #[arg(short, long, value_name = "SNAPSHOT")]
    pub snapshot: Vec<String>,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
pub struct DiffArgs {
    /// `latest`, an id, the start of an id, or any of them with `:PATH`
    #[arg(value_name = "SNAPSHOT")]
    pub one: String,
    /// What to compare it with
    #[arg(value_name = "SNAPSHOT")]
    pub other: String,
    /// Show entries too that differ in attributes only
    #[arg(long)]
    pub metadata: bool,
}

#[derive(Args, Debug)]
pub struct CatArgs {
    /// What to print
    #[arg(value_enum)]
    pub what: CatWhat,
    /// Of which snapshot: `latest`, an id or the start of one; of a directory with `:PATH`
    pub snapshot: Option<String>,
}

/// What can be printed.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum CatWhat {
    /// The repository: its settings and its policy
    Config,
    /// A snapshot
    Snapshot,
    /// A directory of a snapshot
    Tree,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Read every shard of every pack, decode and open every chunk
    #[arg(long, conflicts_with = "read_data_subset")]
    pub read_data: bool,
    /// The same for some of the packs: one part of several (1/10), a share drawn anew each time (2.5%), or so much (50G)
    #[arg(long, value_name = "SUBSET")]
    pub read_data_subset: Option<String>,
    /// With a share or a size: go on where the last check with this file has stopped, so that everything is read in turn
    #[arg(long, value_name = "FILE", requires = "read_data_subset")]
    pub cursor: Option<PathBuf>,
}
