//! One run, in this process.

#![expect(
    clippy::disallowed_methods,
    reason = "what a developer asked for goes to real files, and takes real time"
)]

use super::args::{How, Write};
use super::report::Report;
use super::{shim, timeline};
use anyhow::{Context, Result};
use farshore_core::mutant;
use farshore_sim::plan::Plan;
use farshore_sim::scenario::{self, Options};
use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// Runs a plan and says how it ended.
pub fn run(plan: Plan, how: &How, write: &Write) -> Result<Report> {
    shim::fix_addresses();
    shim::keep_memory();
    log_if_wanted();
    how.mutant.map_or(Ok(()), mutant::choose)?;
    let profile = plan.profile;
    let mut options = Options::of(plan);
    if let Some(path) = &write.trace {
        options.trace = Some(Box::new(BufWriter::new(create(path)?)));
    }
    let picture = write.timeline.as_ref().map(|path| create(path)).transpose()?;
    options.timeline = picture.is_some();
    options.disturb = how.inject_nondeterminism.map(|at| (at, std::process::id().into()));

    let panics = watch_panics();
    let wall = std::time::Instant::now();
    let (mut outcome, leaks) = apart(move || {
        shim::activate(options.plan.seed);
        let outcome = scenario::run(&mut options);
        (outcome, shim::deactivate())
    });
    let wall = wall.elapsed().as_secs_f64();
    if let (Some(mut file), Some(kept)) = (picture, outcome.timeline.take()) {
        let title = format!("{} seed {}", profile.word(), outcome.seed);
        let end_us = (outcome.virtual_seconds * 1e6) as u64;
        timeline::write(&mut file, &kept, &title, end_us).context("write the timeline")?;
    }
    let mut report = Report::of(profile, outcome, wall, leaks.0);
    if let Some(panic) = panics.lock().expect("nobody panics with it").first().filter(|_| report.ok) {
        report.fail(format!("live: something panicked: {panic}"));
    }
    Ok(report)
}

/// Panics of this process from now on. A task that panics ends alone, and whoever waited for it may think nothing of it.
pub fn watch_panics() -> Arc<Mutex<Vec<String>>> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (kept, before) = (seen.clone(), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |panic| {
        kept.lock().expect("nobody panics with it").push(panic.to_string());
        before(panic);
    }));
    seen
}

/// Reads a plan.
pub fn read_plan(path: &Path) -> Result<Plan> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Plan::parse(&text).with_context(|| path.display().to_string())
}

/// Writes a plan.
pub fn write_plan(path: &Path, plan: &Plan) -> Result<()> {
    std::fs::write(path, plan.to_json()).with_context(|| format!("write {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    File::create(path).with_context(|| format!("write {}", path.display()))
}

/// Logs to standard error if `RUST_LOG` asks for it.
pub fn log_if_wanted() {
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
    }
}

/// Runs in a thread of its own, where no hash map has drawn its keys yet, so that logging changes nothing.
pub fn apart<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        scope.spawn(run).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
