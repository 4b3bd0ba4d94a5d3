//! Flags of looking into snapshots without restoring them: dump and mount.

use super::Filter;
use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

#[derive(Args, Debug)]
pub struct DumpArgs {
    /// `latest`, an id, the start of an id, or any of them with `:PATH`, which PATH is then below
    pub snapshot: OsString,
    /// What to dump: a file as its bytes, a directory as an archive; `/` for everything
    #[arg(value_name = "PATH")]
    pub what: OsString,
    /// What a directory becomes
    #[arg(short, long, value_enum, default_value_t = ArchiveKind::Tar, value_name = "FORMAT")]
    pub archive: ArchiveKind,
    /// Write to this file, which gets its name when it is whole, and not to standard output
    #[arg(short, long, value_name = "FILE")]
    pub target: Option<PathBuf>,
    #[command(flatten)]
    pub filter: Filter,
}

/// What a directory becomes.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveKind {
    /// Everything but sockets: owners, nanoseconds, hard links, devices, extended attributes
    Tar,
    /// Files, directories and symbolic links, with their modes
    Zip,
}

#[derive(Args, Debug)]
pub struct MountArgs {
    /// Directory to mount on
    pub mountpoint: PathBuf,
    /// Let other users in
    #[arg(long)]
    pub allow_other: bool,
    /// Show everything as root's
    #[arg(long)]
    pub owner_root: bool,
    /// With --allow-other: ignore the modes, so that everybody reads everything
    #[arg(long, requires = "allow_other")]
    pub no_default_permissions: bool,
    /// Names of snapshots by their time: %Y %m %d %H %M %S, %z and %:z for the time zone; or restic's way, 2006-01-02_15-04-05
    #[arg(long, default_value = "%Y-%m-%dT%H:%M:%S%:z", value_name = "TEMPLATE")]
    pub time_template: String,
    #[command(flatten)]
    pub filter: Filter,
}
