//! What is typed: the arguments of the verbs that run simulations.

use clap::Args;
use farshore_core::mutant::Mutant;
use farshore_sim::plan::Profile;
use std::path::PathBuf;

/// `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    /// Run this one seed
    #[arg(long, conflicts_with_all = ["seeds", "start", "stop_after_failures", "stop_after"])]
    pub seed: Option<u64>,
    /// Run this many seeds
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seeds: u64,
    /// First seed of the batch
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    pub start: u64,
    /// Kind of world
    #[arg(long, value_enum, default_value_t = Profile::Storm)]
    pub profile: Profile,
    /// Begin no more runs after so many failed
    #[arg(long, value_name = "N")]
    pub stop_after_failures: Option<u64>,
    /// Begin no more runs after so many seconds of the wall clock
    #[arg(long, value_name = "SECONDS")]
    pub stop_after: Option<u64>,
    /// Write the plan of the run to this file (with --seed); `replay` runs it
    #[arg(long, requires = "seed", value_name = "FILE")]
    pub plan_out: Option<PathBuf>,
    /// Run this plan; for processes that run one for another process
    #[arg(long, hide = true, value_name = "FILE", conflicts_with_all = ["seed", "seeds", "start", "profile"])]
    pub plan: Option<PathBuf>,
    /// This process runs for another one and ends with it
    #[arg(long, hide = true)]
    pub as_child: bool,
    /// How to run
    #[command(flatten)]
    pub how: How,
    /// What to write about a single run
    #[command(flatten)]
    pub write: Write,
}

/// `replay`.
#[derive(Args, Debug)]
pub struct ReplayArgs {
    /// The plan, as written by `run --plan-out` or `shrink`
    #[arg(value_name = "FILE")]
    pub plan: PathBuf,
    /// How to run
    #[command(flatten)]
    pub how: How,
    /// What to write about it
    #[command(flatten)]
    pub write: Write,
}

/// How runs are run.
#[derive(Args, Debug)]
pub struct How {
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
    /// Run everything in two processes, which must agree on every event
    #[arg(long)]
    pub twice: bool,
    /// Processes at a time [default: one for each processor]
    #[arg(long, value_name = "N")]
    pub jobs: Option<usize>,
    /// Longest time a run of a batch may take, in seconds of the wall clock
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub limit: u64,
    /// Make the N-th event of a run differ from process to process: proof that --twice finds it
    #[arg(long, hide = true, value_name = "N")]
    pub inject_nondeterminism: Option<u64>,
    /// Run with this deliberate defect
    #[arg(long, hide = true, value_name = "NAME")]
    pub mutant: Option<Mutant>,
}

/// What is written about a single run.
#[derive(Args, Debug)]
pub struct Write {
    /// Write every event to this file
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Write a picture to this file, for https://ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE")]
    pub timeline: Option<PathBuf>,
}
