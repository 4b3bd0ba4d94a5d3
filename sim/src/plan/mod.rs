//! What a run consists of, as plain data: the layout of the world, its knobs, and every step with its time. A plan is
//! drawn from a seed (`draw.rs`), or read back from a file: `replay` runs one, `shrink` makes one smaller. Steps name
//! machines, clients and repositories by number, so that a plan still makes sense after others were taken out of it.

pub mod draw;

pub mod pinned;

pub mod shrink;

use serde::{Deserialize, Serialize};
use std::fmt;

/// Format of a written plan.
pub const PLAN_VERSION: u32 = 1;

/// Which kind of world to draw.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// The hand-written story of `day.rs`.
    Day,
    /// Each class of fault is on for half of the seeds, each with its own rate.
    Swarm,
    /// No fault at all: everything must succeed.
    Calm,
    /// Everything at once, often.
    Storm,
    /// Long, lossy, cut and reset links.
    Wan,
    /// Disks that rot, lie, fail and forget.
    Bitrot,
    /// Calendars that jump, processes that sleep.
    Clock,
    /// Disks that are full or slow.
    DiskFull,
}

impl Profile {
    /// As written on the command line.
    pub fn word(self) -> &'static str {
        match self {
            Profile::Day => "day",
            Profile::Swarm => "swarm",
            Profile::Calm => "calm",
            Profile::Storm => "storm",
            Profile::Wan => "wan",
            Profile::Bitrot => "bitrot",
            Profile::Clock => "clock",
            Profile::DiskFull => "disk-full",
        }
    }
}

/// One run.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// Decides everything that the steps leave open.
    pub seed: u64,
    /// What it was drawn from.
    pub profile: Profile,
    /// Where machines stand.
    pub layout: Layout,
    /// Settings of the world.
    pub knobs: Knobs,
    /// What happens, by time.
    pub steps: Vec<Step>,
    /// For a plan that is kept: what it showed when it was found.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub story: String,
}

/// Machines by region.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// How many machines each region has; the region's number names it. Two regions make a provider.
    pub regions: Vec<usize>,
}

impl Layout {
    /// All machines.
    pub fn nodes(&self) -> usize {
        self.regions.iter().sum()
    }
    /// The region of each machine, in the order of their numbers.
    pub fn region_of(&self) -> Vec<usize> {
        let of = |(region, count): (usize, &usize)| std::iter::repeat_n(region, *count);
        self.regions.iter().enumerate().flat_map(of).collect()
    }
}

/// Settings of a world.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Knobs {
    /// Shortest one-way delay inside a region, microseconds; the longest is three times that.
    pub near_us: u64,
    /// Shortest one-way delay between regions, microseconds; the longest is twice that.
    pub far_us: u64,
    /// Segments in a million that are lost and sent again.
    pub loss_ppm: u64,
    /// One command in so many is sent twice, or again much later; 0 is never.
    pub duplicate_one_in: u64,
    /// Silence before a node's shards are rebuilt elsewhere.
    pub grace_ms: u64,
    /// A session not renewed for this long is ended.
    pub session_lease_ms: u64,
    /// Log entries between images of the catalogue.
    pub snapshot_logs: u64,
    /// What each repository must survive.
    pub policies: Vec<String>,
    /// Size at which a pack is closed, for each repository.
    pub pack_bytes: Vec<u32>,
    /// Processes that back up and restore.
    pub clients: usize,
    /// Entries of a client's tree.
    pub entries: u64,
    /// Sparse packs are emptied into new ones. What clients are told of packs is not compared with one order then: the
    /// checker does not know packs that no client has made.
    #[serde(default)]
    pub compact: bool,
    /// Policies are changed while the world lasts. What clients are told of packs is not compared then, either.
    #[serde(default)]
    pub recode: bool,
    /// What each node offers, KiB, if it is so little that a new node of a region is much emptier than the others.
    #[serde(default)]
    pub capacity_kib: Option<u64>,
}

/// Something happens.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Virtual milliseconds after the cluster has formed.
    pub at_ms: u64,
    /// What.
    pub what: What,
}

/// A step's content.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// A client does something.
    Work {
        /// Which one.
        client: usize,
        /// What.
        work: Work,
    },
    /// Something goes wrong.
    Fault(Fault),
}

/// What clients do: the table to which each new verb of the product is added.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Work {
    /// Edit the tree and back it up against the newest parent.
    Incremental,
    /// Edit the tree and back it up against the last full one.
    Differential,
    /// Edit the tree and back it up without a parent.
    Full,
    /// Back the unchanged tree up.
    Unchanged,
    /// Restore a random acknowledged snapshot and compare it.
    Restore,
    /// Restore the newest acknowledged snapshot and compare it.
    RestoreNewest,
    /// List snapshots: every acknowledged one must be there.
    List,
    /// Read every shard of every pack.
    Check,
    /// Have every node re-read its shards.
    Scrub,
    /// Ask for the cluster's state.
    Status,
    /// Create a repository, or find that it exists.
    Create,
    /// Try what only nodes may.
    Trespass,
    /// Forget snapshots.
    Forget,
    /// Take forgotten snapshots out of the trash.
    Undelete,
    /// Empty the trash and have garbage collected.
    Prune,
    /// Lock a snapshot for good.
    Lock,
    /// Have the repository survive something else from now on.
    SetPolicy,
}

impl Work {
    /// Every kind, for coverage.
    pub const ALL: [Work; 17] = [
        Work::Incremental,
        Work::Differential,
        Work::Full,
        Work::Unchanged,
        Work::Restore,
        Work::RestoreNewest,
        Work::List,
        Work::Check,
        Work::Scrub,
        Work::Status,
        Work::Create,
        Work::Trespass,
        Work::Forget,
        Work::Undelete,
        Work::Prune,
        Work::Lock,
        Work::SetPolicy,
    ];
    /// A short name.
    pub fn word(self) -> &'static str {
        match self {
            Work::Incremental => "incremental",
            Work::Differential => "differential",
            Work::Full => "full",
            Work::Unchanged => "unchanged",
            Work::Restore => "restore",
            Work::RestoreNewest => "restore-newest",
            Work::List => "list",
            Work::Check => "check",
            Work::Scrub => "scrub",
            Work::Status => "status",
            Work::Create => "create",
            Work::Trespass => "trespass",
            Work::Forget => "forget",
            Work::Undelete => "undelete",
            Work::Prune => "prune",
            Work::Lock => "lock",
            Work::SetPolicy => "set-policy",
        }
    }
    /// Whether a new snapshot comes of it.
    pub fn backs_up(self) -> bool {
        matches!(self, Work::Incremental | Work::Differential | Work::Full | Work::Unchanged)
    }
}

/// How a region, or a leader, is cut off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Machines lose power.
    Power,
    /// Processes are killed.
    Killed,
    /// Nothing gets in or out.
    CutOff,
    /// It hears others and nobody hears it.
    Mute,
    /// Others hear it and it hears nobody.
    Deaf,
    /// Machines lose their disks for good; new nodes take their places.
    Burnt,
}

/// A call of a client to the catalogue, as the moment at which something happens to it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClientCall {
    /// It asks which chunks are there.
    Lookup,
    /// It makes packs known that it has uploaded.
    CommitPacks,
    /// It has a snapshot recorded.
    CommitSnapshot,
    /// It ends its session.
    CloseSession,
    /// It renews its session.
    RenewSession,
}

/// Something that goes wrong. `node`, `region` and `client` are numbers; `for_ms` is how long it lasts.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Fault {
    /// A node's process is killed, or its machine loses power with what was not synced.
    Crash { node: usize, power: bool, for_ms: u64 },
    /// A node is told to stop, ends in order, and is started again.
    Restart { node: usize },
    /// A region is away.
    Region { region: usize, loss: Loss, for_ms: u64 },
    /// Power fails everywhere.
    Blackout { for_ms: u64 },
    /// A machine loses its disks for good; an operator sets up a new node in its place.
    Wipe { node: usize, for_ms: u64 },
    /// A process stands still (SIGSTOP, a virtual machine being moved).
    Pause { node: usize, for_ms: u64 },
    /// Two machines do not hear each other; or, one way, only `b` does not hear `a`.
    Cut { a: usize, b: usize, both: bool, for_ms: u64 },
    /// Whoever leads is cut off.
    IsolateLeader { loss: Loss, for_ms: u64 },
    /// A link becomes this much slower than the slowest there is, and as irregular.
    Jitter { a: usize, b: usize, add_us: u64, for_ms: u64 },
    /// Links lose segments.
    Lossy { ppm: u64, for_ms: u64 },
    /// All connections of a machine are reset in mid-stream: answers are lost after the deed.
    Reset { node: usize },
    /// A disk takes so many times as long.
    SlowDisk { node: usize, factor: u64, for_ms: u64 },
    /// Somebody else takes all the room.
    FullDisk { node: usize, for_ms: u64 },
    /// The disk's n-th call from now fails; it may be a sync, which then succeeds the next time.
    IoError { node: usize, nth: u64 },
    /// One call in so many fails.
    IoErrors { node: usize, one_in: u64, for_ms: u64 },
    /// Syncs of shards are answered and not done, then the power fails.
    LostSync { node: usize, for_ms: u64 },
    /// Bits of shards flip.
    Rot { node: usize, bits: u64 },
    /// A shard file is cut short.
    Truncate { node: usize },
    /// Two shard files change places.
    Swap { node: usize },
    /// A calendar is wrong from now on.
    Clock { node: usize, skew_ms: i64 },
    /// Days pass while the clients sleep: every calendar moves on.
    Days { days: u64, for_ms: u64 },
    /// A machine is added to a region.
    Add { region: usize },
    /// A node is drained.
    Drain { node: usize },
    /// A region is emptied into a new one, with as many machines, or into another one that there is. Cold: nothing is
    /// written meanwhile. Cancelled after that time, unless it has ended by then or is to come to its end.
    Migrate { region: usize, into: Option<usize>, cold: bool, cancel: bool, for_ms: u64 },
    /// What repair may move to one node, and over links, in a second.
    Budget { node_bytes_s: u64, link_bytes_s: u64, for_ms: u64 },
    /// Nodes do not read their shards by themselves.
    ScrubPaused { for_ms: u64 },
    /// A node sends other sums than those of its region's shards.
    LyingRelay { node: usize, for_ms: u64 },
    /// A client's process ends; another one takes its place.
    ClientDies { client: usize, power: bool, for_ms: u64 },
    /// A client's process stands still, for longer than its sessions last if so long.
    ClientPauses { client: usize, for_ms: u64 },
    /// From its next call of this kind on, nothing that a client asks of the catalogue gets through for so long; if it is
    /// a renewal, only renewals do not.
    ClientHeld { client: usize, from: ClientCall, for_ms: u64 },
}

/// A call that is to fail comes within this time, or does not fail.
const IO_ERROR_MS: u64 = 10_000;

impl Fault {
    /// Every kind, for coverage.
    pub const KINDS: [&str; 31] = [
        "crash",
        "power",
        "restart",
        "region",
        "region-burnt",
        "blackout",
        "wipe",
        "pause",
        "cut",
        "isolate-leader",
        "jitter",
        "lossy",
        "reset",
        "slow-disk",
        "full-disk",
        "io-error",
        "lost-sync",
        "rot",
        "truncate",
        "swap",
        "clock",
        "days",
        "membership",
        "migrate",
        "migrate-cold",
        "budget",
        "scrub-paused",
        "lying-relay",
        "client-dies",
        "client-pauses",
        "client-held",
    ];
    /// Its kind, one of [`Fault::KINDS`].
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Crash { power: false, .. } => "crash",
            Fault::Crash { power: true, .. } => "power",
            Fault::Restart { .. } => "restart",
            Fault::Region { loss: Loss::Burnt, .. } => "region-burnt",
            Fault::Region { .. } => "region",
            Fault::Blackout { .. } => "blackout",
            Fault::Wipe { .. } => "wipe",
            Fault::Pause { .. } => "pause",
            Fault::Cut { .. } => "cut",
            Fault::IsolateLeader { .. } => "isolate-leader",
            Fault::Jitter { .. } => "jitter",
            Fault::Lossy { .. } => "lossy",
            Fault::Reset { .. } => "reset",
            Fault::SlowDisk { .. } => "slow-disk",
            Fault::FullDisk { .. } => "full-disk",
            Fault::IoError { .. } | Fault::IoErrors { .. } => "io-error",
            Fault::LostSync { .. } => "lost-sync",
            Fault::Rot { .. } => "rot",
            Fault::Truncate { .. } => "truncate",
            Fault::Swap { .. } => "swap",
            Fault::Clock { .. } => "clock",
            Fault::Days { .. } => "days",
            Fault::Add { .. } | Fault::Drain { .. } => "membership",
            Fault::Migrate { cold: false, .. } => "migrate",
            Fault::Migrate { cold: true, .. } => "migrate-cold",
            Fault::Budget { .. } => "budget",
            Fault::ScrubPaused { .. } => "scrub-paused",
            Fault::LyingRelay { .. } => "lying-relay",
            Fault::ClientDies { .. } => "client-dies",
            Fault::ClientPauses { .. } => "client-pauses",
            Fault::ClientHeld { .. } => "client-held",
        }
    }
    /// How long it lasts; 0 if it is over at once or never ends by itself.
    pub fn for_ms(&self) -> u64 {
        match self {
            Fault::IoError { .. } => IO_ERROR_MS,
            _ => self.clone().duration_mut().map_or(0, |for_ms| *for_ms),
        }
    }
    /// Makes it last half as long.
    pub fn halve(&mut self) {
        self.duration_mut().into_iter().for_each(|for_ms| *for_ms = for_ms.div_ceil(2));
    }
    fn duration_mut(&mut self) -> Option<&mut u64> {
        match self {
            Fault::Crash { for_ms, .. }
            | Fault::Region { for_ms, .. }
            | Fault::Blackout { for_ms }
            | Fault::Wipe { for_ms, .. }
            | Fault::Pause { for_ms, .. }
            | Fault::Cut { for_ms, .. }
            | Fault::IsolateLeader { for_ms, .. }
            | Fault::Jitter { for_ms, .. }
            | Fault::Lossy { for_ms, .. }
            | Fault::SlowDisk { for_ms, .. }
            | Fault::FullDisk { for_ms, .. }
            | Fault::IoErrors { for_ms, .. }
            | Fault::LostSync { for_ms, .. }
            | Fault::Days { for_ms, .. }
            | Fault::Migrate { for_ms, .. }
            | Fault::Budget { for_ms, .. }
            | Fault::ScrubPaused { for_ms }
            | Fault::LyingRelay { for_ms, .. }
            | Fault::ClientDies { for_ms, .. }
            | Fault::ClientPauses { for_ms, .. }
            | Fault::ClientHeld { for_ms, .. } => Some(for_ms),
            _ => None,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A plan that cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum BadPlan {
    /// Not JSON, or not ours.
    #[error("not a plan: {0}")]
    Json(#[from] serde_json::Error),
    /// Of another release.
    #[error("a plan of version {0}, and this simulator runs version {PLAN_VERSION}")]
    Version(u32),
    /// Names something that is not there.
    #[error("the plan does not hold together: {0}")]
    Broken(String),
}

/// Most machines of a world.
pub const NODES_MAX: usize = 15;

impl Plan {
    /// Reads a written plan.
    pub fn parse(text: &str) -> Result<Plan, BadPlan> {
        let plan: Plan = serde_json::from_str(text)?;
        if plan.version != PLAN_VERSION {
            return Err(BadPlan::Version(plan.version));
        }
        let (nodes, knobs) = (plan.layout.nodes(), &plan.knobs);
        let broken = |why: &str| Err(BadPlan::Broken(why.into()));
        if !(1..=NODES_MAX).contains(&nodes) || plan.layout.regions.contains(&0) {
            return broken("1 to 15 machines, none of the regions empty");
        }
        if knobs.clients == 0 || knobs.clients > 8 || knobs.policies.is_empty() {
            return broken("1 to 8 clients and at least one repository");
        }
        if knobs.policies.len() != knobs.pack_bytes.len() || knobs.policies.len() > 8 {
            return broken("each of at most 8 repositories has a policy and a pack size");
        }
        Ok(plan)
    }
    /// The plan as text that [`Plan::parse`] reads.
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Name of a repository by its number.
pub fn repository_name(number: usize) -> String {
    format!("repo{number}")
}
