//! Flags of `farshore backup`.

use clap::{Args, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// How a snapshot is made.
#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Read and hash every byte
    Full,
    /// Build on the newest snapshot of the same host and paths
    Incremental,
    /// Build on the newest full snapshot of the same host and paths
    Differential,
}

#[derive(Args, Debug)]
pub struct BackupArgs {
    /// Files and directories to back up; with --stdin-from-command, the command and its arguments
    #[arg(required_unless_present_any = ["files_from", "files_from_verbatim", "files_from_raw", "stdin"])]
    pub paths: Vec<OsString>,
    /// How to make the snapshot; every snapshot is complete whatever its kind
    #[arg(long, value_enum, default_value_t = Kind::Incremental)]
    pub kind: Kind,
    /// Read every file again (the same as --kind full)
    #[arg(short, long)]
    pub force: bool,
    /// Snapshot to build on, instead of the newest that belongs together with this one
    #[arg(long, value_name = "SNAPSHOT", conflicts_with = "force")]
    pub parent: Option<String>,
    /// What a parent must have in common with this snapshot: host, paths and/or tags, separated by commas; '' is nothing
    #[arg(short, long, value_name = "GROUP", default_value = "host,paths")]
    pub group_by: String,
    /// Save no snapshot if nothing has changed since the parent
    #[arg(long)]
    pub skip_if_unchanged: bool,
    /// Store nothing, say what would be stored
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    /// Label; may be repeated or a comma-separated list
    #[arg(long, value_delimiter = ',')]
    pub tag: Vec<String>,
    /// Host name to record
    #[arg(short = 'H', long, env = "FARSHORE_HOST", value_name = "NAME")]
    pub host: Option<String>,
    /// Time to record, such as "2026-11-20 15:59:59" or "now"; local time
    #[arg(long, value_name = "TIME")]
    pub time: Option<String>,
    /// How to compress: auto, off, max, or a level of zstd from 1 to 19
    #[arg(long, env = "FARSHORE_COMPRESSION", value_name = "MODE")]
    pub compression: Option<String>,
    #[command(flatten)]
    pub leave_out: LeaveOut,
    #[command(flatten)]
    pub input: Input,
    /// Keep when files were last read, too
    #[arg(long)]
    pub with_atime: bool,
    /// Take a file for unchanged whatever its ctime says
    #[arg(long)]
    pub ignore_ctime: bool,
    /// Take a file for unchanged whatever its inode number and its ctime say, as on some network file systems
    #[arg(long)]
    pub ignore_inode: bool,
    /// The paths are block devices or images of disks: read them whole, in even pieces
    #[arg(long)]
    pub image: bool,
}

/// What a backup leaves out.
#[derive(Args, Debug)]
pub struct LeaveOut {
    /// Leave out what matches (`*`, `?`, `[a-z]` and `**` work; `!` in front takes back in); may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    pub exclude: Vec<OsString>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "PATTERN")]
    pub iexclude: Vec<OsString>,
    /// File with one such pattern a line; may be repeated
    #[arg(long, value_name = "FILE", env = "FARSHORE_EXCLUDE_FILE")]
    pub exclude_file: Vec<PathBuf>,
    /// The same, upper and lower case being the same
    #[arg(long, value_name = "FILE")]
    pub iexclude_file: Vec<PathBuf>,
    /// Leave out what lies beside a CACHEDIR.TAG
    #[arg(long)]
    pub exclude_caches: bool,
    /// Leave out what lies beside a file of this name, that begins with HEADER if it is given; may be repeated
    #[arg(long, value_name = "NAME[:HEADER]")]
    pub exclude_if_present: Vec<OsString>,
    /// Leave out files larger than this, such as 512M
    #[arg(long, value_name = "SIZE")]
    pub exclude_larger_than: Option<String>,
    /// Leave out what .gitignore files say
    #[arg(long)]
    pub git_ignore: bool,
    /// Leave out what files of this name say, in the manner of .gitignore; may be repeated
    #[arg(long, value_name = "NAME")]
    pub custom_ignorefile: Vec<OsString>,
    /// Do not cross into other file systems
    #[arg(short = 'x', long)]
    pub one_file_system: bool,
}

/// What a backup reads besides the paths in its arguments.
#[derive(Args, Debug)]
pub struct Input {
    /// File with one path a line, `*` and the like allowed, `#` begins a comment; `-` is standard input; may be repeated
    #[arg(long, value_name = "FILE")]
    pub files_from: Vec<PathBuf>,
    /// File with one path a line, taken as it is; may be repeated
    #[arg(long, value_name = "FILE")]
    pub files_from_verbatim: Vec<PathBuf>,
    /// File with paths that each end with a zero byte; may be repeated
    #[arg(long, value_name = "FILE")]
    pub files_from_raw: Vec<PathBuf>,
    /// Back up standard input
    #[arg(long, conflicts_with_all = ["paths", "files_from", "files_from_verbatim", "files_from_raw", "image"])]
    pub stdin: bool,
    /// Back up what a command prints; if it fails, no snapshot is saved
    #[arg(long, requires = "paths", conflicts_with_all = ["stdin", "files_from", "files_from_verbatim", "files_from_raw", "image"])]
    pub stdin_from_command: bool,
    /// Name of the file that standard input becomes
    #[arg(long, value_name = "NAME", default_value = "stdin")]
    pub stdin_filename: PathBuf,
}
