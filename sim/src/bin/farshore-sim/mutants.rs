//! The verb `mutants`: hunts every deliberate defect, seed after seed, each in a process of its own, until one is caught
//! or its bound is reached. The table is the proof that silence elsewhere means something.

use crate::args::How;
use crate::batch;
use crate::child::Job;
use crate::report::Report;
use clap::Args;
use farshore_core::mutant::{self, Mutant, MutantError};
use farshore_sim::mutants::{Bound, Ended, Row, bound, head, summary};
use farshore_sim::plan::Profile;
use std::collections::BTreeMap;

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
    /// Processes at a time [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Longest time a run may take, in seconds of the wall clock
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    limit: u64,
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
        let (seeds, last) = until_caught(args, Some(mutant), bound);
        let most = used.entry(bound.profile).or_default();
        *most = seeds.max(*most);
        tell(args, &mut rows, Row::of(mutant, bound, seeds, last));
    }
    for (profile, seeds) in used {
        let (_, last) = until_caught(args, None, Bound { profile, seeds });
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

/// Runs seeds until one is caught. Gives how many it took and how the last one ended.
fn until_caught(args: &MutantsArgs, mutant: Option<Mutant>, bound: Bound) -> (u64, Ended) {
    let how = How {
        json: true,
        twice: false,
        jobs: args.jobs,
        limit: args.limit,
        inject_nondeterminism: None,
        mutant,
    };
    let seeds = args.start..args.start.saturating_add(bound.seeds);
    let jobs = seeds.map(|seed| Job::Seed(seed, bound.profile)).collect();
    let (mut done, mut last) = (0, Ended::Clean);
    batch::each(jobs, &how, |report| {
        if last == Ended::Clean {
            done += 1;
            last = ended(report);
        }
        last == Ended::Clean
    });
    (done, last)
}

fn ended(report: Report) -> Ended {
    match (report.ok, report.violation) {
        (true, _) => Ended::Clean,
        (false, Some(violation)) => Ended::of(violation),
        (false, None) => Ended::Unclear("a run failed without saying why".into()),
    }
}
