//! The verb `mutants`: hunts every deliberate defect, seed after seed, each in a process of its own, until one is caught
//! or its bound is reached. The table is the proof that silence elsewhere means something.

use crate::args::How;
use crate::batch;
use crate::child::{self, Job};
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
    let mut hunt = Hunt { args, rows: Vec::new(), sane: BTreeMap::new() };
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
        let (seeds, last) = hunt.until_caught(mutant, bound);
        let most = used.entry(bound.profile).or_default();
        *most = seeds.max(*most);
        hunt.tell(Row::of(mutant, bound, seeds, last));
    }
    for (profile, seeds) in used {
        let last = hunt.as_it_is(profile, seeds);
        hunt.tell(Row::sane(profile, seeds, last));
    }
    let ok = hunt.rows.iter().all(|row| row.ok);
    if args.json {
        let caught = hunt.rows.iter().filter(|row| row.ok && row.mutant != "none").count();
        println!("{}", serde_json::json!({"message_type": "summary", "caught": caught, "ok": ok}));
    } else {
        println!("{}", summary(&hunt.rows));
    }
    ok
}

/// A hunt so far.
struct Hunt<'a> {
    args: &'a MutantsArgs,
    rows: Vec<Row>,
    /// How the product as it is ended, by world.
    sane: BTreeMap<(Profile, u64), Ended>,
}

impl Hunt<'_> {
    fn tell(&mut self, row: Row) {
        if self.args.json {
            let mut line = serde_json::to_value(&row).unwrap_or_default();
            line["message_type"] = "mutant".into();
            println!("{line}");
        } else {
            println!("{row}");
        }
        self.rows.push(row);
    }

    /// Runs seeds until the defect is caught: a violation where the product as it is shows none. Gives how many seeds
    /// it took and how the last one ended.
    fn until_caught(&mut self, mutant: Mutant, bound: Bound) -> (u64, Ended) {
        let (mut done, mut last) = (0, Ended::Clean);
        batch::each(self.jobs(bound), &self.how(Some(mutant)), |report| {
            if last == Ended::Clean {
                done += 1;
                let seed = report.seed;
                last = ended(report);
                if last != Ended::Clean && self.alone(bound.profile, seed) != Ended::Clean {
                    last = Ended::Clean;
                }
            }
            last == Ended::Clean
        });
        (done, last)
    }

    /// The product as it is, on one seed.
    fn alone(&mut self, profile: Profile, seed: u64) -> Ended {
        if !self.sane.contains_key(&(profile, seed)) {
            let report = child::run(&Job::Seed(seed, profile), &self.how(None), None);
            self.sane.insert((profile, seed), ended(report));
        }
        self.sane[&(profile, seed)].clone()
    }

    /// The product as it is, on every seed that was used. Gives the first end that is not clean.
    fn as_it_is(&mut self, profile: Profile, seeds: u64) -> Ended {
        let mut jobs = self.jobs(Bound { profile, seeds });
        jobs.retain(|job| !self.sane.contains_key(&(profile, job.seed())));
        batch::each(jobs, &self.how(None), |report| {
            self.sane.insert((profile, report.seed), ended(report));
            true
        });
        let of_profile = self.sane.iter().filter(|((other, _), _)| *other == profile);
        let mut unclean = of_profile.map(|(_, ended)| ended).filter(|ended| **ended != Ended::Clean);
        unclean.next().cloned().unwrap_or(Ended::Clean)
    }

    fn jobs(&self, bound: Bound) -> Vec<Job> {
        let seeds = self.args.start..self.args.start.saturating_add(bound.seeds);
        seeds.map(|seed| Job::Seed(seed, bound.profile)).collect()
    }

    fn how(&self, mutant: Option<Mutant>) -> How {
        How {
            json: true,
            twice: false,
            jobs: self.args.jobs,
            limit: self.args.limit,
            inject_nondeterminism: None,
            mutant,
        }
    }
}

fn ended(report: Report) -> Ended {
    match (report.ok, report.violation) {
        (true, _) => Ended::Clean,
        (false, Some(violation)) => Ended::of(violation),
        (false, None) => Ended::Unclear("a run failed without saying why".into()),
    }
}
