//! Flags of `farshore restore`.

use super::Filter;
use clap::{Args, ValueEnum};
use farshore_core::topology::Region;
use std::ffi::OsString;
use std::path::PathBuf;

/// What becomes of files that are in the target already.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// They become what the snapshot says; what is right in them is not fetched
    Always,
    /// The same, but files with the same length and modification time are taken for right
    IfChanged,
    /// Only those that were modified before the snapshot's
    IfNewer,
    /// They stay
    Never,
}

#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// `latest`, an id, the start of an id, or any of them with `:PATH`
    pub snapshot: String,
    /// Directory to restore into; each entry goes to its absolute path below it
    #[arg(short, long, value_name = "DIR")]
    pub target: PathBuf,
    #[command(flatten)]
    pub which: Which,
    /// What becomes of files that are in the target already [default: always; with --resume, if-changed]
    #[arg(long, value_enum, value_name = "WHEN")]
    pub overwrite: Option<Replace>,
    /// Remove what is in restored directories of the target and not in the snapshot
    #[arg(long)]
    pub delete: bool,
    /// Go on where an interrupted restore has stopped, and keep what is not finished if this one is interrupted too
    #[arg(long)]
    pub resume: bool,
    /// Read back all that was restored, and compare it with the snapshot
    #[arg(long)]
    pub verify: bool,
    /// Leave runs of zeros as holes
    #[arg(long)]
    pub sparse: bool,
    /// Give files to the users and groups of the recorded names instead of the recorded numbers
    #[arg(long)]
    pub ownership_by_name: bool,
    /// Restore as if this region were gone: ask nothing of its nodes; may be repeated
    #[arg(long, value_name = "REGION")]
    pub avoid_region: Vec<Region>,
    /// Say what would be restored and what would be read from where, and restore nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub filter: Filter,
}

/// Which paths of a snapshot.
#[derive(Args, Debug)]
pub struct Which {
    /// Restore only what matches (`*`, `?`, `[a-z]` and `**` work) and what is below it; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    pub include: Vec<OsString>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "PATTERN")]
    pub iinclude: Vec<OsString>,
    /// File with one such pattern a line; may be repeated
    #[arg(long, value_name = "FILE")]
    pub include_file: Vec<PathBuf>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "FILE")]
    pub iinclude_file: Vec<PathBuf>,
    /// Restore nothing that matches; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    pub exclude: Vec<OsString>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "PATTERN")]
    pub iexclude: Vec<OsString>,
    /// File with one such pattern a line; may be repeated
    #[arg(long, value_name = "FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "FILE")]
    pub iexclude_file: Vec<PathBuf>,
}
