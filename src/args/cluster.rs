//! Flags of `farshore node` and `farshore cluster`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

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
