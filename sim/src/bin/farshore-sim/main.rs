//! `farshore-sim`: runs simulations. A program of its own because it replaces libc's entropy and clock (shim.rs), which
//! the real program must never do. Each seed runs in a process of its own, so that nothing one run leaves behind in
//! a library can reach the next.

mod mutants;

mod shim;

use clap::{Parser, Subcommand};
use farshore_core::mutant::{self, Mutant};
use farshore_sim::plan::{Profile, draw::draw};
use farshore_sim::scenario::{self, Options, Outcome};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

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
    /// Prove that deliberate defects are caught (in a build with the feature `mutants`)
    Mutants(mutants::MutantsArgs),
}

#[derive(clap::Args, Debug)]
struct RunArgs {
    /// Run this one seed
    #[arg(long, conflicts_with_all = ["seeds", "start"])]
    seed: Option<u64>,
    /// Run this many seeds
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// First seed of the batch
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    start: u64,
    /// Kind of world
    #[arg(long, value_enum, default_value_t = Profile::Day)]
    profile: Profile,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Write every event of the run to this file (with --seed)
    #[arg(long, requires = "seed", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// Run with this deliberate defect
    #[arg(long, hide = true, requires = "seed", value_name = "NAME")]
    mutant: Option<Mutant>,
}

fn main() -> ExitCode {
    let ok = match Cli::parse().verb {
        Verb::Run(args) => match args.seed {
            Some(seed) => {
                shim::fix_addresses();
                one(seed, &args)
            }
            None => batch(&args),
        },
        Verb::Mutants(args) => mutants::hunt(&args),
    };
    if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs one seed in this process.
fn one(seed: u64, args: &RunArgs) -> bool {
    if let Some(Err(e)) = args.mutant.map(mutant::choose) {
        eprintln!("{e}");
        return false;
    }
    let trace = match args.trace.as_ref().map(create).transpose() {
        Ok(trace) => trace,
        Err(e) => {
            eprintln!("cannot write the trace: {e}");
            return false;
        }
    };
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
    let plan = draw(seed, args.profile);
    let wall = wall_clock();
    let (outcome, leaks) = apart(move || {
        shim::activate(seed);
        let outcome = scenario::run(&mut Options { trace, ..Options::of(plan) });
        (outcome, shim::deactivate())
    });
    print(&outcome, args.json, wall_clock() - wall, leaks);
    outcome.violation.is_none()
}

/// Runs in a thread of its own, where no hash map has drawn its keys yet, so that logging changes nothing.
fn apart<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[expect(clippy::disallowed_methods, reason = "a developer's trace goes to a real file")]
fn create(path: &PathBuf) -> std::io::Result<Box<dyn std::io::Write + Send>> {
    Ok(Box::new(std::io::BufWriter::new(std::fs::File::create(path)?)))
}

#[expect(clippy::disallowed_methods, reason = "how long the run took for the person who waits for it")]
fn wall_clock() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn print(outcome: &Outcome, json: bool, wall: f64, leaks: (u64, u64)) {
    let ok = outcome.violation.is_none();
    let hash = format!("{:016x}", outcome.digest.hash);
    if json {
        let line = serde_json::json!({
            "message_type": "seed", "seed": outcome.seed, "hash": hash, "ok": ok, "events": outcome.digest.events,
            "virtual_seconds": outcome.virtual_seconds, "wall_seconds": wall, "library_randoms": leaks.0,
            "violation": outcome.violation,
        });
        println!("{line}");
    } else {
        let verdict = outcome.violation.as_deref().unwrap_or("ok");
        println!(
            "seed {:<6} {hash}  {:>8} events  {:>7.1} s in {wall:.1} s  {verdict}",
            outcome.seed, outcome.digest.events, outcome.virtual_seconds
        );
    }
    if !ok {
        eprintln!("last events before the violation:");
        outcome.recent.iter().for_each(|line| eprintln!("  {line}"));
        eprintln!("replay: farshore-sim run --seed {}", outcome.seed);
    }
}

/// Runs each seed of a batch in a process of its own, as many at a time as there are processors, and prints their
/// lines in the order of the seeds.
fn batch(args: &RunArgs) -> bool {
    let seeds = args.seeds.unwrap_or(1);
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    let mut failed = 0u64;
    let mut running = std::collections::VecDeque::new();
    let mut next = args.start;
    let end = args.start.saturating_add(seeds);
    while next < end || !running.is_empty() {
        while next < end && running.len() < width {
            running.push_back((next, start(next, args)));
            next += 1;
        }
        let Some((seed, child)) = running.pop_front() else { break };
        let output = child.and_then(|child| child.wait_with_output());
        match output {
            Ok(output) => {
                // A broken pipe ends the reader's interest, not the run.
                let _ = std::io::stdout().write_all(&output.stdout);
                failed += u64::from(!output.status.success());
                if output.stdout.is_empty() {
                    eprintln!("seed {seed} ended without a result: {}", output.status);
                }
            }
            Err(e) => {
                eprintln!("seed {seed} did not run: {e}");
                failed += 1;
            }
        }
    }
    if args.json {
        let line = serde_json::json!({"message_type": "summary", "seeds": seeds, "failed": failed, "ok": failed == 0});
        println!("{line}");
    } else {
        println!("{seeds} seeds, {failed} failed");
    }
    failed == 0
}

fn start(seed: u64, args: &RunArgs) -> std::io::Result<std::process::Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--seed", &seed.to_string(), "--profile", args.profile.word()]);
    if args.json {
        command.arg("--json");
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
}
