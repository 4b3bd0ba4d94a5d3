//! A run in a process of its own: how it is started, watched and ended, and what is made of a process that dies.

#![expect(clippy::disallowed_methods, reason = "temporary files of real processes")]

use super::args::How;
use super::report::Report;
use anyhow::{Context, Result};
use farshore_sim::plan::Profile;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Lines kept of what a process writes to its standard error.
const STDERR_LINES: usize = 40;
/// Most bytes of a report.
const REPORT_BYTES: u64 = 64 << 20;

/// What a process is to run.
#[derive(Clone, PartialEq, Debug)]
pub enum Job {
    /// What is drawn from a seed.
    Seed(u64, Profile),
    /// What stands in a file; the seed is known from it.
    Plan(u64, PathBuf),
}

impl Job {
    /// The seed, for the report.
    pub fn seed(&self) -> u64 {
        match self {
            Job::Seed(seed, _) | Job::Plan(seed, _) => *seed,
        }
    }
    fn profile(&self) -> Option<Profile> {
        match self {
            Job::Seed(_, profile) => Some(*profile),
            Job::Plan(..) => None,
        }
    }
    /// The file it stands in.
    pub fn plan(&self) -> Option<&Path> {
        match self {
            Job::Seed(..) => None,
            Job::Plan(_, path) => Some(path),
        }
    }
    fn command(&self, how: &How, trace: Option<&Path>) -> Result<Command> {
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command.args(["run", "--json", "--as-child"]);
        match self {
            Job::Seed(seed, profile) => {
                command.args(["--seed", &seed.to_string(), "--profile", profile.word()]);
            }
            Job::Plan(_, path) => drop(command.arg("--plan").arg(path)),
        }
        if let Some(at) = how.inject_nondeterminism {
            command.args(["--inject-nondeterminism", &at.to_string()]);
        }
        if let Some(mutant) = how.mutant {
            command.args(["--mutant", mutant.name()]);
        }
        if let Some(trace) = trace {
            command.arg("--trace").arg(trace);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(command)
    }
}

/// Runs a job in a process of its own. A process that dies, says nothing or takes too long is a run that failed.
pub fn run(job: &Job, how: &How, trace: Option<&Path>) -> Report {
    let mut report = match job.command(how, trace).and_then(|command| watch(command, how.limit)) {
        Ok(ended) => read(job, how, ended),
        Err(e) => Report::broken(job.seed(), job.profile(), format!("process: {e:#}"), Vec::new()),
    };
    report.replay_by(job.plan());
    report
}

/// How a process ended.
struct Ended {
    status: ExitStatus,
    late: bool,
    said: String,
    stderr: Vec<String>,
}

fn read(job: &Job, how: &How, ended: Ended) -> Report {
    let parsed = ended.said.lines().last().and_then(|line| serde_json::from_str::<Report>(line).ok());
    match parsed {
        Some(report) if !ended.late && ended.status.success() == report.ok => report,
        _ => {
            let why = if ended.late {
                format!("process: no result after {} s", how.limit)
            } else {
                format!("process: ended without a result: {}", ended.status)
            };
            Report::broken(job.seed(), job.profile(), why, ended.stderr)
        }
    }
}

/// Waits for a process, but not for ever.
fn watch(mut command: Command, limit: u64) -> Result<Ended> {
    let mut child = command.spawn().context("start a process")?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let (end, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let guard = scope.spawn(move || end_in_time(child, &ended, Duration::from_secs(limit)));
        let errors = scope.spawn(move || stderr.map_or_else(Vec::new, tail));
        let mut said = String::new();
        if let Some(stdout) = stdout {
            // Whatever cannot be read is missing from the report, which then says so.
            let _ = stdout.take(REPORT_BYTES).read_to_string(&mut said);
        }
        let stderr = errors.join().unwrap_or_default();
        let _ = end.send(());
        let (status, late) = guard.join().map_err(|_| anyhow::anyhow!("the watch over a process died"))??;
        Ok(Ended { status, late, said, stderr })
    })
}

/// Both its outputs are closed, or its time is up: then it is killed.
fn end_in_time(mut child: Child, ended: &mpsc::Receiver<()>, limit: Duration) -> Result<(ExitStatus, bool)> {
    let late = ended.recv_timeout(limit).is_err();
    if late {
        child.kill().context("end a process")?;
    }
    Ok((child.wait().context("wait for a process")?, late))
}

fn tail(stderr: impl Read) -> Vec<String> {
    let mut last = VecDeque::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        if last.len() == STDERR_LINES {
            last.pop_front();
        }
        last.push_back(String::from_utf8_lossy(&line).into_owned());
    }
    last.into()
}

/// A file that is gone when this is.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new, empty file.
    pub fn new(name: &str) -> Result<Self> {
        let path = std::env::temp_dir().join(format!("farshore-sim-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        std::fs::File::create_new(&path).with_context(|| format!("make {}", path.display()))?;
        Ok(Scratch(path))
    }
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    #[test]
    fn a_process_that_hangs_is_ended_and_one_that_dies_is_named() {
        let ended = watch(shell("exec sleep 60"), 1).unwrap();
        assert!(ended.late && !ended.status.success());
        let ended = watch(shell("seq 1 100 >&2; kill -9 $$"), 60).unwrap();
        assert!(!ended.late);
        assert_eq!(ended.status.to_string(), "signal: 9 (SIGKILL)");
        assert_eq!((ended.stderr.len(), ended.stderr[39].as_str()), (STDERR_LINES, "100"));
    }
}
