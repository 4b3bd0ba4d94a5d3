//! `farshore-sim`: runs simulations. A program of its own because it replaces libc's entropy and clock (shim.rs), which
//! the real program must never do. Each seed of a batch runs in a process of its own, so that nothing one run leaves
//! behind in a library can reach the next, and a run that dies takes no other with it.

mod args;

mod fleet;

mod mutants;

mod enumerate;

mod shrink;

mod batch;

mod twice;

mod child;

mod one;

mod summary;

mod report;

mod timeline;

mod shim;

use args::{ReplayArgs, RunArgs};
use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Runs real nodes and clients on virtual time, in one thread, under injected faults.
#[derive(Parser, Debug)]
#[command(name = "farshore-sim", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Run one seed, or a batch of them
    Run(RunArgs),
    /// Run a plan from a file
    Replay(ReplayArgs),
    /// Make a failing plan as small as it can be
    Shrink(shrink::ShrinkArgs),
    /// Prove that deliberate defects are caught (in a build with the feature `mutants`)
    Mutants(mutants::MutantsArgs),
    /// Crash at every call of a flow, in small worlds
    Enumerate(enumerate::EnumerateArgs),
    /// Simulate thousands of nodes over years, statistically
    Fleet(Box<fleet::FleetArgs>),
}

/// Does what was asked for; the exit code says whether it held.
pub fn main() -> ExitCode {
    shim::end_with_reader();
    let ended = match Cli::parse().verb {
        Verb::Run(args) => batch::run(&args),
        Verb::Replay(args) => batch::replay(&args),
        Verb::Shrink(args) => shrink::run(&args),
        Verb::Mutants(args) => mutants::hunt(&args),
        Verb::Enumerate(args) => enumerate::run(&args),
        Verb::Fleet(args) => Ok(fleet::fleet(&args)),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("farshore-sim: {e:#}");
            ExitCode::from(2)
        }
    }
}
