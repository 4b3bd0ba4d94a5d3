//! `shrink`: makes a failing plan small, running each try in a process of its own.

use super::args::How;
use super::child::{self, Job, Scratch};
use super::one::{read_plan, write_plan};
use anyhow::{Context, Result, bail};
use clap::Args;
use farshore_sim::plan::draw::draw;
use farshore_sim::plan::shrink::{shrink, story};
use farshore_sim::plan::{Plan, Profile};
use std::path::PathBuf;

/// `shrink`.
#[derive(Args, Debug)]
pub struct ShrinkArgs {
    /// The plan that fails, as written by `run --plan-out`
    #[arg(value_name = "FILE", required_unless_present = "seed")]
    plan: Option<PathBuf>,
    /// Or the seed that fails
    #[arg(long, conflicts_with = "plan")]
    seed: Option<u64>,
    /// Kind of world of the seed
    #[arg(long, value_enum, default_value_t = Profile::Storm)]
    profile: Profile,
    /// Where to write the smallest plan that fails the same way
    #[arg(long, value_name = "FILE", default_value = "shrunk.json")]
    out: PathBuf,
    /// Runs at most
    #[arg(long, value_name = "N", default_value_t = 400)]
    tries: u64,
    /// How to run
    #[command(flatten)]
    how: How,
}

/// Shrinks; true if there was something to shrink.
pub fn run(args: &ShrinkArgs) -> Result<bool> {
    let plan = match (&args.plan, args.seed) {
        (Some(path), _) => read_plan(path)?,
        (None, seed) => draw(seed.context("a plan or a seed")?, args.profile),
    };
    if plan.profile == Profile::Day {
        bail!("the story of a day is not made of steps, so nothing can be taken out of it");
    }
    let scratch = Scratch::new("shrink")?;
    let Some(first) = violated(&plan, args, &scratch)? else {
        println!("seed {} of {} does not fail: nothing to shrink", plan.seed, plan.profile.word());
        return Ok(false);
    };
    println!("fails: {first}");
    let mut broken = None;
    let small = shrink(&plan, args.tries, &mut |plan| match violated(plan, args, &scratch) {
        Ok(found) => {
            let same = found.as_deref().map(invariant) == Some(invariant(&first));
            if same {
                eprintln!("{} steps, {} machines", plan.steps.len(), plan.layout.nodes());
            }
            same
        }
        Err(e) => {
            broken = Some(e);
            false
        }
    });
    if let Some(e) = broken {
        return Err(e);
    }
    write_plan(&args.out, &small)?;
    println!("{} of {} steps are left:", small.steps.len(), plan.steps.len());
    story(&small).iter().for_each(|line| println!("{line}"));
    println!("replay: farshore-sim replay {}", args.out.display());
    Ok(true)
}

/// The part of a violation's text that names the invariant.
fn invariant(violation: &str) -> &str {
    violation.split_once(':').map_or(violation, |(name, _)| name)
}

fn violated(plan: &Plan, args: &ShrinkArgs, scratch: &Scratch) -> Result<Option<String>> {
    write_plan(scratch.path(), plan)?;
    let job = Job::Plan(plan.seed, scratch.path().to_path_buf());
    Ok(child::run(&job, &args.how, None).violation)
}
