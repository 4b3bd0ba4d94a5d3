//! Flags exactly as typed. Every flag that has an environment variable shows it in `--help`; what the flags mean
//! together is decided in the command's own file.

mod looking;

pub use looking::*;

use clap::{Args, Parser, Subcommand, ValueEnum};
use farshore_core::retention::{Count, Span};
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

#[derive(Subcommand, Debug)]
pub enum NodeCommand {
    /// Run a node until it is told to stop
    Run(NodeRunArgs),
    /// Empty this node and take it out of the cluster (with the operator's profile)
    Leave(NodeLeaveArgs),
    /// Serve the shards and nothing else, so that a lost catalogue can be rebuilt from them
    Recover(NodeRunArgs),
    /// Go on from this stopped node's replica alone, because the majority of the voters is lost for good
    RecoverQuorum(RecoverQuorumArgs),
    /// Give up this stopped node's replica of the catalogue and learn it anew; the shards stay
    Rejoin(RejoinArgs),
}

#[derive(Args, Debug)]
pub struct NodeLeaveArgs {
    /// The node's configuration
    #[arg(long, env = "FARSHORE_NODE_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Wait until it is empty and retired, at most this long
    #[arg(long, value_name = "DURATION")]
    pub wait: Option<String>,
}

#[derive(Args, Debug)]
pub struct RecoverQuorumArgs {
    /// The node's configuration
    #[arg(long, env = "FARSHORE_NODE_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Do it; without this the command only says where the replica stands
    #[arg(long, value_name = "CLUSTER_ID")]
    pub i_have_lost_the_other_voters: Option<String>,
}

#[derive(Args, Debug)]
pub struct RejoinArgs {
    /// The node's configuration
    #[arg(long, env = "FARSHORE_NODE_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// Do it; without this the command only says what is there
    #[arg(long, value_name = "CLUSTER_ID")]
    pub i_give_up_this_replica: Option<String>,
}

#[derive(Args, Debug)]
pub struct NodeRunArgs {
    /// The node's configuration
    #[arg(long, env = "FARSHORE_NODE_CONFIG", value_name = "FILE")]
    pub config: PathBuf,
    /// End when the parent process does (used by `dev` and `demo`)
    #[arg(long, hide = true)]
    pub with_parent: bool,
}

#[derive(Subcommand, Debug)]
pub enum ClusterCommand {
    /// Write certificates, configurations and the operator's profile of a new cluster to a directory
    Init(ClusterInitArgs),
    /// Health first, then regions, safety, repair, and what to type next
    Status(StatusArgs),
    /// List the nodes
    Nodes(NodesArgs),
    /// Re-read every shard now, report and rebuild what is bad; or say how far the scrub is that runs by itself
    Scrub(ScrubArgs),
    /// Say what repair is doing: what runs, what is most urgent, how fast it goes and what failed last
    Repair(RepairArgs),
    /// Say why a health code, a node or a stripe is as it is, and what to type next
    Explain(ExplainArgs),
    /// Empty a node; it is retired when nothing is left on it
    Drain(DrainArgs),
    /// Take a node that is lost, or empty, out of the cluster for good
    Remove(RemoveArgs),
    /// Stage changes of the topology and show what they would do: moves, bytes, room, durability
    Plan(PlanArgs),
    /// Enact what is staged, if nothing has changed since it was shown
    Apply(ApplyArgs),
    /// Empty a region into another while it is in use; without regions, say which are being emptied
    Migrate(MigrateArgs),
    /// Show or set what repair, drains and migrations may move: bytes per second, per day, and money
    Budget(BudgetArgs),
    /// List what was read again after it was moved, or check such a record now
    Verified(VerifiedArgs),
    /// Say what would become of packs, snapshots, votes and backups if nodes were away or lost; changes nothing
    WhatIf(WhatIfArgs),
    /// List administrative and destructive acts, newest last, or check that the record of them is whole
    Audit(AuditArgs),
    /// Export the whole catalogue into the shard stores now (it happens by itself, too)
    Export,
    /// Rebuild a catalogue that every node has lost from the exports among their shards
    RebuildCatalogue(RebuildArgs),
}

#[derive(Args, Debug)]
pub struct DrainArgs {
    /// Name or id of the node
    #[arg(value_name = "NODE")]
    pub node: String,
    /// Keep it after all
    #[arg(long)]
    pub cancel: bool,
    /// Wait until it is empty and retired, at most this long
    #[arg(long, value_name = "DURATION", conflicts_with = "cancel")]
    pub wait: Option<String>,
}

#[derive(Args, Debug)]
pub struct RemoveArgs {
    /// Name or id of the node
    #[arg(value_name = "NODE")]
    pub node: String,
}

#[derive(Args, Debug)]
pub struct PlanArgs {
    /// Stage the emptying of a node; may be repeated
    #[arg(long, value_name = "NODE")]
    pub drain: Vec<String>,
    /// Stage the removal of a lost or empty node; may be repeated
    #[arg(long, value_name = "NODE")]
    pub remove: Vec<String>,
    /// Stage that a node which is being emptied stays; may be repeated
    #[arg(long, value_name = "NODE")]
    pub keep: Vec<String>,
    /// Think of one more node in this region, as PROVIDER/REGION or PROVIDER/REGION=SIZE; nothing of it is staged
    #[arg(long = "with", value_name = "REGION")]
    pub with: Vec<String>,
    /// Unstage what was staged before
    #[arg(long)]
    pub clear: bool,
}

#[derive(Args, Debug)]
pub struct ApplyArgs {
    /// Epoch that `farshore cluster plan` has shown
    #[arg(long)]
    pub epoch: u64,
}

#[derive(Args, Debug)]
pub struct MigrateArgs {
    /// Region to empty, PROVIDER/REGION
    #[arg(long, value_name = "REGION")]
    pub from: Option<String>,
    /// Region that takes what it holds
    #[arg(long, value_name = "REGION", requires = "from")]
    pub to: Option<String>,
    /// Refuse all writes of clients until it has ended
    #[arg(long, requires = "to")]
    pub cold: bool,
    /// Show what it would do, and do nothing
    #[arg(short = 'n', long, requires = "to", conflicts_with = "wait")]
    pub dry_run: bool,
    /// End it: what has moved stays where it is, and so does the rest
    #[arg(long, requires = "from", conflicts_with_all = ["to", "wait"])]
    pub cancel: bool,
    /// Wait until the region is empty and its nodes are retired, at most this long
    #[arg(long, value_name = "DURATION", requires = "from")]
    pub wait: Option<String>,
}

#[derive(Args, Debug)]
pub struct BudgetArgs {
    /// Bytes per second that one node may be given, such as 50M; `none` for no limit
    #[arg(long, value_name = "RATE")]
    pub node_rate: Option<String>,
    /// Limits and price of a link: FROM,TO[,rate=BYTES][,day=BYTES][,price=PER_GIB], or FROM,TO,none; may be repeated
    #[arg(long, value_name = "LINK")]
    pub link: Vec<String>,
    /// Money that moving shards may cost in a day, in the unit of the prices; `none` for no limit
    #[arg(long, value_name = "MONEY")]
    pub spend: Option<String>,
}

#[derive(Args, Debug)]
pub struct VerifiedArgs {
    /// Number of a record: say what has become of its stripes since
    #[arg(value_name = "NUMBER")]
    pub number: Option<u64>,
    /// Have every shard of its stripes read once more
    #[arg(long, requires = "number")]
    pub read: bool,
}

#[derive(Args, Debug)]
pub struct WhatIfArgs {
    /// All nodes of a region, PROVIDER/REGION; may be repeated
    #[arg(long, value_name = "REGION")]
    pub region: Vec<String>,
    /// All nodes of all regions of a provider; may be repeated
    #[arg(long, value_name = "PROVIDER")]
    pub provider: Vec<String>,
    /// A node by its name or id; may be repeated
    #[arg(long, value_name = "NODE")]
    pub node: Vec<String>,
    /// What a line carries in a second, for the estimates of time that nothing was measured for
    #[arg(long, value_name = "SIZE", default_value = "100M")]
    pub line: String,
}

#[derive(Args, Debug)]
pub struct AuditArgs {
    /// Read every record from the first one, recompute every hash, and print the head of the chain
    #[arg(long, conflicts_with_all = ["limit", "since"])]
    pub verify: bool,
    /// Check also that the chain still goes through this head, noted earlier: SEQ:HASH, as --verify prints it
    #[arg(long, value_name = "SEQ:HASH", conflicts_with_all = ["limit", "since"])]
    pub head: Option<String>,
    /// List at most so many of the newest
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
    /// List those of this span of catalogue time, up to now
    #[arg(long, value_name = "DURATION")]
    pub since: Option<String>,
}

#[derive(Args, Debug)]
pub struct RebuildArgs {
    /// Do it; without this the command only says what was found
    #[arg(long, value_name = "CLUSTER_ID")]
    pub yes_i_lost_the_catalogue: Option<String>,
    /// Do it even if more could be had: an export that leads further cannot be used as things are, or a node of the
    /// cluster was not asked
    #[arg(long, requires = "yes_i_lost_the_catalogue")]
    pub accept_less: bool,
}

#[derive(Args, Debug)]
pub struct ClusterInitArgs {
    /// Directory to write; must not exist or be empty
    #[arg(long, value_name = "DIR")]
    pub dir: PathBuf,
    /// A node as NAME=PROVIDER/REGION=HOST:PORT; repeat for each node
    #[arg(long = "node", value_name = "NODE", required = true)]
    pub nodes: Vec<String>,
    /// Where a node keeps its data on its own machine
    #[arg(long, default_value = "/var/lib/farshore", value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Where a node's configuration and keys will lie on its own machine
    #[arg(long, default_value = "/etc/farshore", value_name = "DIR")]
    pub config_dir: PathBuf,
}

#[derive(Args, Debug)]
pub struct StatusArgs {
    /// Wait until every pack is at full strength and repair is idle, at most this long
    #[arg(long, value_name = "DURATION", conflicts_with = "watch")]
    pub wait: Option<String>,
    #[command(flatten)]
    pub watching: Watching,
}

/// Looking again and again.
#[derive(Args, Debug, Clone, Copy)]
pub struct Watching {
    /// Look again every so many seconds until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2",
        value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub watch: Option<u64>,
}

#[derive(Args, Debug)]
pub struct NodesArgs {
    #[command(flatten)]
    pub watching: Watching,
}

#[derive(Args, Debug)]
pub struct RepairArgs {
    #[command(flatten)]
    pub watching: Watching,
}

#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// A health code such as NODE_DOWN, the name or id of a node, or the beginning of the id of a stripe or a pack
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Of a stripe: have every shard re-read now
    #[arg(long)]
    pub verify: bool,
}

#[derive(Args, Debug)]
pub struct ScrubArgs {
    /// Wait for the result
    #[arg(long)]
    pub wait: bool,
    /// Read nothing, say how far each node is with the scrub that runs by itself
    #[arg(long, conflicts_with = "wait")]
    pub status: bool,
    /// Let no node read its shards by itself until --resume
    #[arg(long, conflicts_with_all = ["wait", "status", "resume"])]
    pub pause: bool,
    /// Let the nodes read their shards again
    #[arg(long, conflicts_with_all = ["wait", "status"])]
    pub resume: bool,
    /// Have every shard read at least this often, such as 30d; `default` for what each node is configured with
    #[arg(long, value_name = "DURATION", conflicts_with_all = ["wait", "status"])]
    pub every: Option<String>,
}

#[derive(Args, Debug)]
pub struct InitArgs {
    /// What must be survived: "1 region", "1 region + 1 node", "2 regions", "1 provider"
    #[arg(long, default_value = "1 region", env = "FARSHORE_SURVIVE", value_name = "GOAL")]
    pub survive: String,
}

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
    /// Files and directories to back up
    #[arg(required = true)]
    pub paths: Vec<PathBuf>,
    /// How to make the snapshot; every snapshot is complete whatever its kind
    #[arg(long, value_enum, default_value_t = Kind::Incremental)]
    pub kind: Kind,
    /// Read every file again (the same as --kind full)
    #[arg(short, long)]
    pub force: bool,
    /// Label; may be repeated or a comma-separated list
    #[arg(long, value_delimiter = ',')]
    pub tag: Vec<String>,
    /// Host name to record
    #[arg(short = 'H', long, env = "FARSHORE_HOST", value_name = "NAME")]
    pub host: Option<String>,
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
pub struct RestoreArgs {
    /// `latest`, an id, the start of an id, or any of them with `:PATH`
    pub snapshot: String,
    /// Directory to restore into; each entry goes to its absolute path below it
    #[arg(short, long, value_name = "DIR")]
    pub target: PathBuf,
    /// Restore only what matches (`*`, `?` and `**` work) and what is below it; may be repeated
    #[arg(short, long, value_name = "PATTERN")]
    pub include: Vec<PathBuf>,
    /// Say what would be read from where, and restore nothing
    #[arg(short = 'n', long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub filter: Filter,
}

#[derive(Args, Debug)]
pub struct CheckArgs {
    /// Read every shard of every pack, decode and open every chunk
    #[arg(long)]
    pub read_data: bool,
}

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
