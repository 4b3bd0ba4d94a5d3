//! Runs what was asked for: one run in this process, or many in processes of their own, as many at a time as there
//! are processors, told in the order of their seeds.

use super::args::{How, ReplayArgs, RunArgs, Write};
use super::child::{self, Job};
use super::report::Report;
use super::summary::Summary;
use super::{one, shim, twice};
use anyhow::{Result, bail};
use farshore_sim::plan::{Plan, draw::draw};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;

/// `run`. True if nothing failed.
pub fn run(args: &RunArgs) -> Result<bool> {
    if args.as_child {
        shim::die_with_parent();
    }
    if let Some(path) = &args.plan {
        return single(one::read_plan(path)?, Some(path), &args.how, &args.write);
    }
    let Some(seed) = args.seed else {
        if args.write.trace.is_some() || args.write.timeline.is_some() {
            bail!("--trace and --timeline are about one run: add --seed");
        }
        return Ok(batch(args));
    };
    let plan = draw(seed, args.profile);
    if let Some(path) = &args.plan_out {
        one::write_plan(path, &plan)?;
    }
    if args.how.twice {
        return told_twice(&Job::Seed(seed, args.profile), &args.how, &args.write);
    }
    single(plan, None, &args.how, &args.write)
}

/// `replay`.
pub fn replay(args: &ReplayArgs) -> Result<bool> {
    let plan = one::read_plan(&args.plan)?;
    if args.how.twice {
        return told_twice(&Job::Plan(plan.seed, args.plan.clone()), &args.how, &args.write);
    }
    single(plan, Some(&args.plan), &args.how, &args.write)
}

/// In this process, where a debugger and `RUST_LOG` can look.
fn single(plan: Plan, file: Option<&Path>, how: &How, write: &Write) -> Result<bool> {
    let mut report = one::run(plan, how, write)?;
    report.replay_by(file);
    report.print(how.json);
    Ok(report.ok)
}

fn told_twice(job: &Job, how: &How, write: &Write) -> Result<bool> {
    if write.trace.is_some() || write.timeline.is_some() {
        bail!("--trace and --timeline are about one run, and --twice makes it two");
    }
    let report = twice::run(job, how);
    report.print(how.json);
    Ok(report.ok)
}

fn batch(args: &RunArgs) -> bool {
    let jobs = (args.start..args.start.saturating_add(args.seeds)).map(|seed| Job::Seed(seed, args.profile));
    let mut summary = Summary::begin(args.profile, args.how.twice);
    let most = args.stop_after_failures.unwrap_or(u64::MAX);
    each(jobs.collect(), &args.how, |report| {
        report.print(args.how.json);
        summary.add(&report);
        summary.failed < most && args.stop_after.is_none_or(|seconds| summary.lasted() < seconds as f64)
    });
    summary.end();
    summary.print(args.how.json);
    summary.failed == 0
}

/// Runs every job, several at a time, and hands each report on in the order of the jobs, until `tell` has had enough:
/// then no further job begins, and those under way are still told.
pub fn each(jobs: Vec<Job>, how: &How, mut tell: impl FnMut(Report) -> bool) {
    let width = how.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let (next, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..width.clamp(1, jobs.len().max(1)) {
            let (send, next, enough, jobs) = (send.clone(), &next, &enough, &jobs);
            scope.spawn(move || {
                while !enough.load(Ordering::Relaxed) {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(job) = jobs.get(at as usize) else { return };
                    let report = if how.twice { twice::run(job, how) } else { child::run(job, how, None) };
                    if send.send((at, report)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(send);
        let (mut early, mut due) = (BTreeMap::new(), 0);
        for (at, report) in receive {
            early.insert(at, report);
            while let Some(report) = early.remove(&due) {
                due += 1;
                if !tell(report) {
                    enough.store(true, Ordering::Relaxed);
                }
            }
        }
    });
}
