//! The verb `mutants`: hunts every deliberate defect, seed after seed, each in a process of its own, until one is caught
//! or its bound is reached. The table is the proof that silence elsewhere means something.

use super::args::How;
use super::batch;
use super::child::{self, Job, Scratch};
use super::one::write_plan;
use super::report::Report;
use anyhow::{Result, bail};
use clap::Args;
use farshore_core::mutant::{self, Mutant, MutantError};
use farshore_sim::mutants::{Bound, Ended, Place, Row, bound, head, summary};
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
pub fn hunt(args: &MutantsArgs) -> Result<bool> {
    if !mutant::BUILT {
        bail!(MutantError::NotBuilt);
    }
    let mut hunt = Hunt { args, rows: Vec::new(), sane: BTreeMap::new() };
    let mut used = BTreeMap::<Place, u64>::new();
    if !args.json {
        println!("{}", head());
    }
    for mutant in Mutant::ALL.into_iter().filter(|m| args.only.is_empty() || args.only.contains(m)) {
        let stated = bound(mutant);
        let bound = Bound {
            place: args.profile.map_or(stated.place, Place::Worlds),
            seeds: args.seeds.unwrap_or(stated.seeds),
        };
        let (seeds, last) = hunt.until_caught(mutant, bound)?;
        let most = used.entry(bound.place).or_default();
        *most = seeds.max(*most);
        hunt.tell(Row::of(mutant, bound, seeds, last));
    }
    for (place, seeds) in used {
        let last = hunt.as_it_is(place, seeds)?;
        hunt.tell(Row::sane(place, seeds, last));
    }
    let ok = hunt.rows.iter().all(|row| row.ok);
    if args.json {
        let caught = hunt.rows.iter().filter(|row| row.ok && row.mutant != "none").count();
        println!("{}", serde_json::json!({"message_type": "summary", "caught": caught, "ok": ok}));
    } else {
        println!("{}", summary(&hunt.rows));
    }
    Ok(ok)
}

/// A hunt so far.
struct Hunt<'a> {
    args: &'a MutantsArgs,
    rows: Vec<Row>,
    /// How the product as it is ended, by place and seed.
    sane: BTreeMap<(Place, u64), Ended>,
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
    fn until_caught(&mut self, mutant: Mutant, bound: Bound) -> Result<(u64, Ended)> {
        let seeds: Vec<u64> = (self.args.start..self.args.start.saturating_add(bound.seeds)).collect();
        let (_files, jobs) = self.jobs(bound.place, &seeds)?;
        let (mut at, mut caught, mut broken) = (0, None, Ok(()));
        batch::each(jobs, &self.how(Some(mutant)), |report| {
            let seed = seeds[at.min(seeds.len() - 1)];
            if caught.is_none() && broken.is_ok() {
                at += 1;
                let last = ended(report);
                if last != Ended::Clean {
                    match self.alone(bound.place, seed) {
                        Ok(alone) => caught = (alone == Ended::Clean).then_some(last),
                        Err(e) => broken = Err(e),
                    }
                }
            }
            caught.is_none() && broken.is_ok()
        });
        broken?;
        Ok((at as u64, caught.unwrap_or(Ended::Clean)))
    }

    /// The product as it is, on one seed.
    fn alone(&mut self, place: Place, seed: u64) -> Result<Ended> {
        if !self.sane.contains_key(&(place, seed)) {
            let (_files, jobs) = self.jobs(place, &[seed])?;
            let report = child::run(&jobs[0], &self.how(None), None);
            self.sane.insert((place, seed), ended(report));
        }
        Ok(self.sane[&(place, seed)].clone())
    }

    /// The product as it is, on every seed that was used. Gives the first end that is not clean.
    fn as_it_is(&mut self, place: Place, seeds: u64) -> Result<Ended> {
        let used = self.args.start..self.args.start.saturating_add(seeds);
        let left: Vec<u64> = used.filter(|seed| !self.sane.contains_key(&(place, *seed))).collect();
        let (_files, jobs) = self.jobs(place, &left)?;
        let mut seed = left.iter();
        batch::each(jobs, &self.how(None), |report| {
            if let Some(seed) = seed.next() {
                self.sane.insert((place, *seed), ended(report));
            }
            true
        });
        let here = self.sane.iter().filter(|((other, _), _)| *other == place);
        let mut unclean = here.map(|(_, ended)| ended).filter(|ended| **ended != Ended::Clean);
        Ok(unclean.next().cloned().unwrap_or(Ended::Clean))
    }

    /// What processes are to run. Kept plans are handed to them as files, which are there as long as the first value.
    fn jobs(&self, place: Place, seeds: &[u64]) -> Result<(Vec<Scratch>, Vec<Job>)> {
        let (mut files, mut jobs) = (Vec::new(), Vec::new());
        for seed in seeds {
            match place {
                Place::Worlds(profile) => jobs.push(Job::Seed(*seed, profile)),
                Place::Pinned(name) => {
                    let file = Scratch::new(&format!("{name}-{seed}"))?;
                    let plan = place.plan(*seed)?;
                    write_plan(file.path(), &plan)?;
                    jobs.push(Job::Plan(plan.seed, file.path().to_owned()));
                    files.push(file);
                }
            }
        }
        Ok((files, jobs))
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
