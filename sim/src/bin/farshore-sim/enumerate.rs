//! The verb `enumerate`: a crash at every call of a flow. Each run is a process of its own, as elsewhere; the first of
//! a flow is without a crash and tells which calls there are.

#![expect(
    clippy::disallowed_methods,
    reason = "processes, and how long they took for the person who waits for them"
)]

use super::{one, shim};
use anyhow::{Context, Result, bail};
use clap::Args;
use farshore_core::mutant::{self, Mutant};
use farshore_sim::calls::Moment;
use farshore_sim::enumerate::{self, Flow, Outcome, Point, Span};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

/// What to enumerate.
#[derive(Args, Debug)]
pub struct EnumerateArgs {
    /// Only this flow (may be given several times)
    #[arg(long, value_enum, value_name = "FLOW")]
    flow: Vec<Flow>,
    /// Seed of the small world
    #[arg(long, default_value_t = 1, value_name = "SEED")]
    seed: u64,
    /// Take only every so-manieth point
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Leave so many points out first
    #[arg(long, default_value_t = 0, value_name = "N")]
    start: u64,
    /// Begin no more runs of a flow after so many failed
    #[arg(long, value_name = "N")]
    stop_after_failures: Option<u64>,
    /// Begin no more runs of a flow after so many seconds
    #[arg(long, value_name = "SECONDS")]
    stop_after: Option<u64>,
    /// Kill processes instead of failing their power
    #[arg(long)]
    kill: bool,
    /// Only this point, PROCESS:CALL:before or PROCESS:CALL:after, and :kill (with one --flow)
    #[arg(long, value_name = "POINT")]
    at: Option<Point>,
    /// Write every event of the run to this file (with --at)
    #[arg(long, requires = "at", value_name = "FILE")]
    trace: Option<PathBuf>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Only the run without a crash (with one --flow)
    #[arg(long)]
    survey: bool,
    /// This process runs for another one and ends with it
    #[arg(long, hide = true)]
    as_child: bool,
    /// Run with this deliberate defect
    #[arg(long, hide = true, value_name = "NAME")]
    mutant: Option<Mutant>,
}

/// One run, as a process tells its parent.
#[derive(Serialize, Deserialize)]
struct Told {
    message_type: String,
    flow: String,
    seed: u64,
    point: Option<String>,
    call: Option<String>,
    ok: bool,
    reached: bool,
    violation: Option<String>,
    hash: String,
    events: u64,
    orphans: u64,
    virtual_seconds: f64,
    wall_seconds: f64,
    recent: Vec<String>,
    /// How many calls of each kind every process makes.
    calls: BTreeMap<u64, BTreeMap<String, u64>>,
    /// Every point there is, and what the call is.
    points: Vec<(String, String)>,
}

/// What came of a flow.
#[derive(Serialize)]
struct Sum {
    message_type: &'static str,
    flow: &'static str,
    seed: u64,
    calls: u64,
    processes: usize,
    points: u64,
    run: u64,
    failed: u64,
    unreached: u64,
    orphans: u64,
    wall_seconds: f64,
    ok: bool,
}

/// Enumerates; true if no point failed.
pub fn run(args: &EnumerateArgs) -> Result<bool> {
    if args.survey || args.at.is_some() {
        let [flow] = args.flow[..] else { bail!("--at and --survey are about one flow: add --flow") };
        return single(flow, args);
    }
    let flows = if args.flow.is_empty() { Flow::ALL.to_vec() } else { args.flow.clone() };
    let mut ok = true;
    for flow in flows {
        ok &= all(flow, args)?;
    }
    Ok(ok)
}

/// One run in this process, where a debugger and `RUST_LOG` can look.
fn single(flow: Flow, args: &EnumerateArgs) -> Result<bool> {
    if args.as_child {
        shim::die_with_parent();
    }
    shim::fix_addresses();
    shim::keep_memory();
    one::log_if_wanted();
    args.mutant.map_or(Ok(()), mutant::choose)?;
    let trace = match &args.trace {
        Some(path) => {
            let file = std::fs::File::create(path).with_context(|| format!("write {}", path.display()))?;
            Some(Box::new(std::io::BufWriter::new(file)) as Box<dyn std::io::Write + Send>)
        }
        None => None,
    };
    let panics = one::watch_panics();
    let (seed, point, wall) = (args.seed, args.at, Instant::now());
    let outcome = one::apart(move || {
        shim::activate(seed);
        let outcome = enumerate::run(flow, seed, point, trace);
        shim::deactivate();
        outcome
    });
    let mut told = Told::of(flow, args, outcome, wall.elapsed().as_secs_f64());
    if let Some(panic) = panics.lock().expect("nobody panics with it").first().filter(|_| told.ok) {
        (told.ok, told.violation) = (false, Some(format!("live: something panicked: {panic}")));
    }
    if args.as_child || args.json {
        println!("{}", serde_json::to_string(&told)?);
    } else {
        told.print();
    }
    Ok(told.ok)
}

impl Told {
    fn of(flow: Flow, args: &EnumerateArgs, outcome: Outcome, wall_seconds: f64) -> Self {
        let mut calls = BTreeMap::<u64, BTreeMap<String, u64>>::new();
        for span in &outcome.spans {
            let kinds = calls.entry(span.label).or_default();
            span.calls.iter().for_each(|(_, call)| *kinds.entry(call.to_string()).or_default() += 1);
        }
        let points = outcome.spans.iter().flat_map(Span::points);
        let points = points.map(|(point, call)| (point.to_string(), call.to_string())).collect();
        let ok = outcome.violation.is_none();
        Told {
            message_type: "point".into(),
            flow: flow.word().into(),
            seed: args.seed,
            point: args.at.map(|point| point.to_string()),
            call: None,
            ok,
            reached: outcome.reached,
            violation: outcome.violation,
            hash: format!("{:016x}", outcome.digest.hash),
            events: outcome.digest.events,
            orphans: outcome.orphans,
            virtual_seconds: outcome.virtual_seconds,
            wall_seconds,
            recent: if ok { Vec::new() } else { outcome.recent },
            calls,
            points,
        }
    }
    fn broken(flow: Flow, seed: u64, why: String) -> Self {
        Told {
            message_type: "point".into(),
            flow: flow.word().into(),
            seed,
            point: None,
            call: None,
            ok: false,
            reached: false,
            violation: Some(why),
            hash: String::new(),
            events: 0,
            orphans: 0,
            virtual_seconds: 0.0,
            wall_seconds: 0.0,
            recent: Vec::new(),
            calls: BTreeMap::new(),
            points: Vec::new(),
        }
    }
    fn print(&self) {
        let point = self.point.as_deref().unwrap_or("no crash");
        let call = self.call.as_deref().unwrap_or("");
        let verdict = match &self.violation {
            Some(violation) => violation.as_str(),
            None if self.reached => "ok",
            None => "ok, but the call never came",
        };
        println!(
            "{} {point} {call} {}  {} events  {:.1} s in {:.2} s  {verdict}",
            self.flow, self.hash, self.events, self.virtual_seconds, self.wall_seconds
        );
        for (label, kinds) in &self.calls {
            println!("  p{label}: {} calls: {kinds:?}", kinds.values().sum::<u64>());
        }
        if !self.ok {
            eprintln!("last events before the violation:");
            self.recent.iter().for_each(|line| eprintln!("  {line}"));
            if let Some(point) = &self.point {
                let (flow, seed) = (&self.flow, self.seed);
                eprintln!("replay: farshore-sim enumerate --flow {flow} --seed {seed} --at {point}");
            }
        }
    }
}

/// Every point of a flow, as many at a time as there are processors.
fn all(flow: Flow, args: &EnumerateArgs) -> Result<bool> {
    let wall = Instant::now();
    let calm = finish(flow, args.seed, None, start(flow, args, None)?);
    if !calm.ok {
        calm.print();
        return Ok(false);
    }
    let parse = |(point, call): &(String, String)| {
        let point: Point = point.parse().map_err(anyhow::Error::msg)?;
        Ok((Point { power: !args.kill, ..point }, call.clone()))
    };
    let points = calm.points.iter().map(parse).collect::<Result<Vec<(Point, String)>>>()?;
    let chosen = points.iter().skip(args.start as usize).step_by(args.every as usize);
    let width = std::thread::available_parallelism().map_or(1, usize::from);
    let mut sum = Sum {
        message_type: "flow",
        flow: flow.word(),
        seed: args.seed,
        calls: calm.calls.values().flat_map(BTreeMap::values).sum(),
        processes: calm.calls.len(),
        points: points.len() as u64,
        run: 0,
        failed: 0,
        unreached: 0,
        orphans: 0,
        wall_seconds: 0.0,
        ok: true,
    };
    let (mut chosen, mut running) = (chosen.fuse(), VecDeque::new());
    loop {
        let late = args.stop_after.is_some_and(|most| wall.elapsed().as_secs() >= most);
        let enough = args.stop_after_failures.is_some_and(|most| sum.failed >= most);
        while running.len() < width && !late && !enough {
            let Some((point, call)) = chosen.next() else { break };
            running.push_back((*point, call, start(flow, args, Some(*point))?));
        }
        let Some((point, call, child)) = running.pop_front() else { break };
        let mut told = finish(flow, args.seed, Some(point), child);
        told.call = Some(call.clone());
        // Until the crash every run is the one that told the calls; but a call under way as the flow ends has no after.
        if told.ok && !told.reached && point.moment == Moment::Before {
            told.ok = false;
            told.violation = Some("deterministic: the call never came".into());
        }
        sum.run += 1;
        sum.failed += u64::from(!told.ok);
        sum.unreached += u64::from(!told.reached);
        sum.orphans += told.orphans;
        if args.json {
            println!("{}", serde_json::to_string(&told)?);
        } else if !told.ok {
            told.print();
        }
    }
    sum.wall_seconds = wall.elapsed().as_secs_f64();
    sum.ok = sum.failed == 0;
    if args.json {
        println!("{}", serde_json::to_string(&sum)?);
    } else {
        println!(
            "{}: {} points ({} calls of {} processes), {} run, {} failed, {} never came, \
             {} copies never recorded left behind, {:.0} s",
            sum.flow,
            sum.points,
            sum.calls,
            sum.processes,
            sum.run,
            sum.failed,
            sum.unreached,
            sum.orphans,
            sum.wall_seconds
        );
    }
    Ok(sum.ok)
}

fn start(flow: Flow, args: &EnumerateArgs, point: Option<Point>) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(["enumerate", "--as-child", "--flow", flow.word(), "--seed", &args.seed.to_string()]);
    match point {
        Some(point) => command.args(["--at", &point.to_string()]),
        None => command.arg("--survey"),
    };
    if let Some(mutant) = args.mutant {
        command.args(["--mutant", mutant.name()]);
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    command.spawn().context("start a process")
}

fn finish(flow: Flow, seed: u64, point: Option<Point>, child: Child) -> Told {
    let told = child.wait_with_output().map_err(|e| e.to_string()).and_then(|output| {
        let said = String::from_utf8_lossy(&output.stdout);
        let told = said.lines().last().and_then(|line| serde_json::from_str::<Told>(line).ok());
        told.ok_or_else(|| format!("process: ended without a result: {}", output.status))
    });
    let mut told = told.unwrap_or_else(|why| Told::broken(flow, seed, why));
    told.point = point.map(|point| point.to_string());
    told
}
