//! Flags of `farshore stats`, `farshore copy` and `farshore tag`.

use super::Filter;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// What is counted.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatsMode {
    /// What restoring each snapshot would write
    RestoreSize,
    /// Files with the same contents once
    FilesByContents,
    /// Chunks of each file, once for every file of its own contents
    BlobsPerFile,
    /// What is stored, of the whole repository
    RawData,
}

#[derive(Args, Debug)]
pub struct StatsArgs {
    /// Only these snapshots
    pub snapshots: Vec<String>,
    /// What to count
    #[arg(long, value_enum, default_value_t = StatsMode::RestoreSize)]
    pub mode: StatsMode,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
pub struct CopyArgs {
    /// Only these snapshots of the source
    pub snapshots: Vec<String>,
    /// Repository to copy from
    #[arg(long, env = "FARSHORE_FROM_REPOSITORY", value_name = "NAME")]
    pub from_repo: String,
    /// Profile of the cluster that it lies in; by default the one that is copied to
    #[arg(long, env = "FARSHORE_FROM_PROFILE", value_name = "FILE")]
    pub from_profile: Option<PathBuf>,
    /// File whose first line is its passphrase; by default that of the repository that is copied to
    #[arg(long, env = "FARSHORE_FROM_PASSWORD_FILE", value_name = "FILE")]
    pub from_password_file: Option<PathBuf>,
    /// Shell command that prints its passphrase
    #[arg(long, env = "FARSHORE_FROM_PASSWORD_COMMAND", value_name = "COMMAND")]
    pub from_password_command: Option<String>,
    /// Key file that opens it
    #[arg(long, env = "FARSHORE_FROM_KEY_FILE", value_name = "FILE")]
    pub from_key_file: Option<PathBuf>,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
#[group(id = "change", required = true, multiple = true, args = ["set", "add", "remove"])]
pub struct TagArgs {
    /// Only these snapshots; without any, all that the filter admits
    pub snapshots: Vec<String>,
    /// Labels that replace all it has; '' takes all away; may be repeated or a comma-separated list
    #[arg(long, value_name = "TAGS", value_delimiter = ',', conflicts_with_all = ["add", "remove"])]
    pub set: Vec<String>,
    /// Labels to add
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    pub add: Vec<String>,
    /// Labels to take away
    #[arg(long, value_name = "TAGS", value_delimiter = ',')]
    pub remove: Vec<String>,
    #[command(flatten)]
    pub filter: Filter,
}
