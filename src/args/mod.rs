//! Flags exactly as typed. Every flag that has an environment variable shows it in `--help`; what the flags mean
//! together is decided in the command's own file.

mod backup;
mod cluster;
mod keeping;
mod key;
mod looking;
mod more;
mod repository;
mod restore;

pub use backup::*;
pub use cluster::*;
pub use keeping::*;
pub use key::{KeyCommand, NewKeyArgs};
pub use looking::*;
pub use more::*;
pub use repository::*;
pub use restore::*;

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Backups erasure-coded across clouds by a cluster that heals itself.
#[derive(Parser, Debug)]
#[command(name = "farshore", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that every command takes.
#[derive(Args, Debug, Clone)]
pub struct Global {
    /// Repository inside the cluster
    #[arg(short, long, global = true, env = "FARSHORE_REPOSITORY", value_name = "NAME")]
    pub repo: Option<String>,
    /// Profile of the cluster: endpoints, certificate authority, certificate and key
    #[arg(long, global = true, env = "FARSHORE_PROFILE", value_name = "FILE")]
    pub profile: Option<PathBuf>,
    /// File whose first line is the repository's passphrase
    #[arg(short, long, global = true, env = "FARSHORE_PASSWORD_FILE", value_name = "FILE")]
    pub password_file: Option<PathBuf>,
    /// Shell command that prints the repository's passphrase
    #[arg(long, global = true, env = "FARSHORE_PASSWORD_COMMAND", value_name = "COMMAND")]
    pub password_command: Option<String>,
    /// The passphrase itself; only by environment, since arguments can be seen by others
    #[arg(long, hide = true, env = "FARSHORE_PASSWORD", hide_env_values = true)]
    pub password: Option<String>,
    /// Key file that opens the repository instead of a passphrase
    #[arg(long, global = true, env = "FARSHORE_KEY_FILE", value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// File with the recovery key that opens the repository instead of a passphrase; `-` to type it
    #[arg(long, global = true, env = "FARSHORE_RECOVERY_KEY_FILE", value_name = "FILE")]
    pub recovery_key_file: Option<PathBuf>,
    /// Region that this machine is in: what is read comes from where that costs least, by the prices that `cluster budget` knows
    #[arg(long, global = true, env = "FARSHORE_NEAR", value_name = "REGION")]
    pub near: Option<farshore_core::topology::Region>,
    /// Read whatever one replica of the catalogue knows, confirmed by nobody: for when no majority is left. Only for
    /// commands that read
    #[arg(long, global = true)]
    pub stale: bool,
    /// Machine-readable output, one JSON object a line
    #[arg(long, global = true)]
    pub json: bool,
    /// Say nothing but errors
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Log what is going on to standard error; twice for more
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the whole story on this machine: back up, lose a region, restore, compare, repair
    Demo(DemoArgs),
    /// Run a real cluster on this machine until Ctrl-C
    Dev(DevArgs),
    /// Run a storage node
    #[command(subcommand)]
    Node(NodeCommand),
    /// Set up and look after a cluster
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Create a repository
    Init(InitArgs),
    /// Back up files and directories
    Backup(BackupArgs),
    /// List snapshots
    Snapshots(SnapshotsArgs),
    /// List what is in a snapshot
    Ls(LsArgs),
    /// Find paths in snapshots
    Find(FindArgs),
    /// Show what differs between two snapshots
    Diff(DiffArgs),
    /// Print what the repository says of itself, of a snapshot or of a directory, as JSON
    Cat(CatArgs),
    /// Write a file of a snapshot, or a directory as an archive, to standard output
    Dump(DumpArgs),
    /// Show the snapshots as directories of this machine, until Ctrl-C or `umount`
    Mount(MountArgs),
    /// Restore a snapshot, or a path in it
    Restore(RestoreArgs),
    /// Count what snapshots hold, or what is stored
    Stats(StatsArgs),
    /// Change the labels of snapshots
    Tag(TagArgs),
    /// Copy snapshots from another repository into this one
    Copy(CopyArgs),
    /// Remove snapshots, by id or by a retention policy; they can be brought back for a while
    Forget(ForgetArgs),
    /// Bring forgotten snapshots back; without ids, list what is in the trash
    Undelete(UndeleteArgs),
    /// Collect garbage now instead of soon
    Prune(PruneArgs),
    /// Show what the repository survives and how it is coded, or change both while it is in use
    Policy(PolicyArgs),
    /// Keep snapshots from being removed, for a time and by anybody; without a time, show what is locked
    Lock(LockArgs),
    /// List, add, change and remove the keys that open the repository
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check that everything needed is there, and on request that all of it can be read
    Check(CheckArgs),
    /// Run the failure-injection simulator (the program farshore-sim beside this one)
    #[command(disable_help_flag = true)]
    Sim {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<std::ffi::OsString>,
    },
}

#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Tree to back up; by default one is generated
    pub path: Option<PathBuf>,
    /// Work here and leave it behind; by default a temporary directory is used and removed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct DevArgs {
    /// Directory of the cluster; running again on it resumes it
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// Regions, each a failure domain
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub regions: u8,
    /// Nodes in each region
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub nodes_per_region: u8,
    /// How long a node may be silent before its shards are rebuilt elsewhere
    #[arg(long, default_value = "30s", value_name = "DURATION")]
    pub grace: String,
}
