//! The verb `mutants`: hunts every deliberate defect, seed after seed, each in a process of its own, until one is caught
//! or its bound is reached. The table is the proof that silence elsewhere means something.

use clap::Args;
use farshore_core::mutant::{self, Mutant, MutantError};
use farshore_sim::mutants::{Bound, Ended, Row, bound, head, summary};
use farshore_sim::plan::Profile;
use std::collections::{BTreeMap, VecDeque};
use std::process::{Child, Command, Stdio};

/// What to hunt.
#[derive(Args, Debug)]
pub struct MutantsArgs {
    /// Try at most this many seeds for each defect instead of its stated bound
    #[arg(long, value_name = "N")]
    seeds: Option<u64>,
    /// First seed
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    start: u64,
    /// Only this defect (may be given several times)
    #[arg(long, value_name = "NAME")]
    only: Vec<Mutant>,
    /// Kind of world, instead of the one stated for each
    #[arg(long, value_enum)]
    profile: Option<Profile>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
}

/// Hunts; true if every defect was caught and the product as it is was clean on the same seeds.
pub fn hunt(args: &MutantsArgs) -> bool {
    if !mutant::BUILT {
        eprintln!("{}", MutantError::NotBuilt);
        return false;
    }
    let mut rows = Vec::new();
    let mut used = BTreeMap::<Profile, u64>::new();
    if !args.json {
        println!("{}", head());
    }
    for mutant in Mutant::ALL.into_iter().filter(|m| args.only.is_empty() || args.only.contains(m)) {
        let stated = bound(mutant);
        let bound = Bound {
            profile: args.profile.unwrap_or(stated.profile),
            seeds: args.seeds.unwrap_or(stated.seeds),
        };
        let (seeds, last) = until_caught(Some(mutant), bound, args.start);
        let most = used.entry(bound.profile).or_default();
        *most = seeds.max(*most);
        tell(args, &mut rows, Row::of(mutant, bound, seeds, last));
    }
    for (profile, seeds) in used {
        let (_, last) = until_caught(None, Bound { profile, seeds }, args.start);
        tell(args, &mut rows, Row::sane(profile, seeds, last));
    }
    let ok = rows.iter().all(|row| row.ok);
    if args.json {
        let caught = rows.iter().filter(|row| row.ok && row.mutant != "none").count();
        println!("{}", serde_json::json!({"message_type": "summary", "caught": caught, "ok": ok}));
    } else {
        println!("{}", summary(&rows));
    }
    ok
}

fn tell(args: &MutantsArgs, rows: &mut Vec<Row>, row: Row) {
    if args.json {
        let mut line = serde_json::to_value(&row).unwrap_or_default();
        line["message_type"] = "mutant".into();
        println!("{line}");
    } else {
        println!("{row}");
    }
    rows.push(row);
}

/// Runs seeds, as many at a time as there are processors, and looks at them in order. Gives how many it took and how
/// the last one ended.
fn until_caught(mutant: Option<Mutant>, bound: Bound, first: u64) -> (u64, Ended) {
    let width = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let mut running = Running::default();
    let mut begun = 0;
    for done in 1..=bound.seeds {
        while begun < bound.seeds && begun < done - 1 + width {
            running.0.push_back(begin(first + begun, bound.profile, mutant));
            begun += 1;
        }
        let Some(child) = running.0.pop_front() else { break };
        match ended(child) {
            Ended::Clean => {}
            caught => return (done, caught),
        }
    }
    (bound.seeds, Ended::Clean)
}

/// Processes that are not needed any more when this is dropped.
#[derive(Default)]
struct Running(VecDeque<std::io::Result<Child>>);

impl Drop for Running {
    fn drop(&mut self) {
        for child in self.0.iter_mut().flatten() {
            // One that has ended cannot be killed, which is as well.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn begin(seed: u64, profile: Profile, mutant: Option<Mutant>) -> std::io::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["run", "--json", "--seed", &seed.to_string(), "--profile", profile.word()]);
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant.name()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()
}

fn ended(child: std::io::Result<Child>) -> Ended {
    match child.and_then(Child::wait_with_output) {
        Ok(output) if output.stdout.is_empty() => {
            Ended::Unclear(format!("a run said nothing: {}", output.status))
        }
        Ok(output) => Ended::read(String::from_utf8_lossy(&output.stdout).trim()),
        Err(error) => Ended::Unclear(format!("a run did not begin: {error}")),
    }
}
