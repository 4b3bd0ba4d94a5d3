//! The verb `fleet`: arguments and printing of the fleet model.

use clap::Args;
use farshore_core::erasure::Scheme;
use farshore_core::id::NodeId;
use farshore_core::policy::{Policy, compile};
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_core::units::{Bytes, parse_duration};
use farshore_sim::fleet::agree::{self, Row};
use farshore_sim::fleet::report::{Prices, figure, report};
use farshore_sim::fleet::spec::{Failures, GROUPS_MAX, Mend, Shared, Spec};
use std::time::Duration;

/// A fleet over years: how likely losses are, what repair moves and costs.
#[derive(Args, Debug)]
pub struct FleetArgs {
    /// Nodes, spread evenly over the regions
    #[arg(long, default_value_t = 300)]
    nodes: usize,
    /// Years to simulate
    #[arg(long, default_value_t = 1.0)]
    years: f64,
    /// Regions: a number, or labels such as aws/eu-1,aws/us-1,ovh/fra
    #[arg(long, default_value = "3")]
    regions: String,
    /// k+m, or auto for what the policy asks for
    #[arg(long, default_value = "auto")]
    scheme: String,
    /// Goal that --scheme auto is compiled from
    #[arg(long, default_value = "1 region + 1 node")]
    policy: Policy,
    /// Runs for the estimate of rare losses; with --agree, for each cheap line
    #[arg(long, default_value_t = 2_000)]
    trials: u64,
    /// Decides everything
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print the table of agreement with the closed forms instead
    #[arg(long)]
    agree: bool,
    /// JSON objects, one a line
    #[arg(long)]
    json: bool,
    /// Most placement groups to follow; fewer than there are copysets is a sample
    #[arg(long, default_value_t = GROUPS_MAX, value_name = "N")]
    groups: usize,
    /// Bytes of shards on each node
    #[arg(long, default_value = "4T", value_name = "SIZE")]
    node_bytes: Bytes,
    #[command(flatten)]
    failures: FailureArgs,
    #[command(flatten)]
    repair: RepairArgs,
    #[command(flatten)]
    prices: PriceArgs,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Failures, in events a year (assumptions: give your own)")]
struct FailureArgs {
    /// Permanent loss of a node
    #[arg(long, default_value_t = Failures::default().node_loss, value_name = "RATE")]
    node_loss: f64,
    /// Disks of a node
    #[arg(long, default_value_t = Failures::default().disks, value_name = "N")]
    disks: u32,
    /// Permanent loss of a disk
    #[arg(long, default_value_t = Failures::default().disk_loss, value_name = "RATE")]
    disk_loss: f64,
    /// A node is silent for a while
    #[arg(long, default_value_t = Failures::default().outage, value_name = "RATE")]
    outage: f64,
    /// How long, on average
    #[arg(long, default_value = "10m", value_name = "TIME", value_parser = parse_duration)]
    outage_time: Duration,
    /// A region is silent for a while
    #[arg(long, default_value_t = Failures::default().region_outage, value_name = "RATE")]
    region_outage: f64,
    /// How long, on average
    #[arg(long, default_value = "2h", value_name = "TIME", value_parser = parse_duration)]
    region_outage_time: Duration,
    /// Permanent loss of a region
    #[arg(long, default_value_t = Failures::default().region_loss, value_name = "RATE")]
    region_loss: f64,
    /// How long until new nodes stand in its place, on average
    #[arg(long, default_value = "30d", value_name = "TIME", value_parser = parse_duration)]
    region_rebuild: Duration,
    /// Bursts in a region
    #[arg(long, default_value_t = Failures::default().burst, value_name = "RATE")]
    burst: f64,
    /// Share of the region's nodes that a burst destroys
    #[arg(long, default_value_t = Failures::default().burst_kill, value_name = "SHARE")]
    burst_kill: f64,
    /// Permanent loss of a provider
    #[arg(long, default_value_t = Failures::default().provider_loss, value_name = "RATE")]
    provider_loss: f64,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Repair")]
struct RepairArgs {
    /// Silence after which a node is called down
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = parse_duration)]
    detect: Duration,
    /// Time it is then given to come back
    #[arg(long, default_value = "15m", value_name = "TIME", value_parser = parse_duration)]
    grace: Duration,
    /// Time until a new machine stands in for a dead one
    #[arg(long, default_value = "24h", value_name = "TIME", value_parser = parse_duration)]
    replace: Duration,
    /// What a node takes in for repair each second
    #[arg(long, default_value = "96M", value_name = "SIZE")]
    node_rate: Bytes,
    /// What a region takes in for repair from others each second
    #[arg(long, default_value = "10G", value_name = "SIZE")]
    link_rate: Bytes,
    /// Rebuilds under way at a time in the whole fleet, 0 for no bound
    #[arg(long, default_value_t = 0, value_name = "N")]
    in_flight: usize,
}

#[derive(Args, Debug)]
#[command(next_help_heading = "Prices, in dollars")]
struct PriceArgs {
    /// Storage, a GB and month
    #[arg(long, default_value_t = Prices::default().storage, value_name = "PRICE")]
    price_storage: f64,
    /// Bytes that leave a provider, a GB
    #[arg(long, default_value_t = Prices::default().egress, value_name = "PRICE")]
    price_egress: f64,
    /// Bytes between regions of one provider, a GB
    #[arg(long, default_value_t = Prices::default().inter_region, value_name = "PRICE")]
    price_inter_region: f64,
}

/// Runs the verb. False if it could not be done, or if the table shows a disagreement.
pub fn fleet(args: &FleetArgs) -> bool {
    let done = if args.agree { table(args) } else { one(args) };
    done.unwrap_or_else(|e| {
        eprintln!("{e}");
        false
    })
}

fn one(args: &FleetArgs) -> Result<bool, String> {
    let prices = Prices {
        storage: args.prices.price_storage,
        egress: args.prices.price_egress,
        inter_region: args.prices.price_inter_region,
    };
    if !(args.years > 0.0 && args.years <= 10_000.0) {
        return Err(format!("{} is not a number of years", args.years));
    }
    let found =
        report(spec(args)?, args.years, args.trials.max(2), args.seed, prices).map_err(|e| e.to_string())?;
    if args.json {
        println!("{}", found.json());
    } else {
        print!("{}", found.text());
    }
    Ok(true)
}

fn spec(args: &FleetArgs) -> Result<Spec, String> {
    let labels = labels(&args.regions)?;
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    let scheme = scheme(args, &labels)?;
    let mut spec = Spec::even(args.nodes, &labels, scheme).map_err(|e| e.to_string())?;
    let (f, r, hours) = (&args.failures, &args.repair, |time: Duration| time.as_secs_f64() / 3_600.0);
    spec.groups_max = args.groups;
    spec.node_bytes = args.node_bytes.0 as f64;
    spec.failures = Failures {
        node_loss: f.node_loss,
        disks: f.disks,
        disk_loss: f.disk_loss,
        outage: f.outage,
        outage_hours: hours(f.outage_time),
        region_outage: f.region_outage,
        region_outage_hours: hours(f.region_outage_time),
        region_loss: f.region_loss,
        region_rebuild: hours(f.region_rebuild) / farshore_core::reliability::region::YEAR_HOURS,
        burst: f.burst,
        burst_kill: f.burst_kill,
        provider_loss: f.provider_loss,
    };
    spec.mend = Mend::Shared(Shared {
        detect_hours: hours(r.detect),
        grace_hours: hours(r.grace),
        replace_hours: hours(r.replace),
        node_bytes_s: r.node_rate.0 as f64,
        link_bytes_s: r.link_rate.0 as f64,
        in_flight: r.in_flight,
    });
    spec.check().map_err(|e| e.to_string())?;
    Ok(spec)
}

fn labels(regions: &str) -> Result<Vec<String>, String> {
    match regions.parse::<usize>() {
        Ok(count) if (1..=64).contains(&count) => {
            Ok((0..count).map(|i| format!("cloud{i}/region{i}")).collect())
        }
        Ok(count) => Err(format!("{count} regions: 1 to 64 are possible")),
        Err(_) => Ok(regions.split(',').map(|label| label.trim().to_string()).collect()),
    }
}

/// The policy compiled on nodes like these, or what was asked for with as few shards in a region as possible.
fn scheme(args: &FleetArgs, labels: &[&str]) -> Result<Scheme, String> {
    if args.scheme != "auto" {
        let bad = || format!("{:?} is not a scheme: write k+m, for example 5+4, or auto", args.scheme);
        let (k, m) = args.scheme.split_once('+').ok_or_else(bad)?;
        let (k, m): (u8, u8) = (k.parse().map_err(|_| bad())?, m.parse().map_err(|_| bad())?);
        let spread = u16::from(k) + u16::from(m);
        let spread = u8::try_from(usize::from(spread).div_ceil(labels.len())).map_err(|_| bad())?;
        return Scheme::new(k, m, spread).map_err(|e| e.to_string());
    }
    // Sizes matter to the compiler only up to the width it would use.
    let nodes = args.nodes.min(labels.len() * 64);
    let record = |i: usize| {
        Ok(NodeRecord {
            id: NodeId(i as u64 + 1),
            name: format!("n{i}").parse().map_err(|e| format!("{e}"))?,
            region: labels[i % labels.len()].parse().map_err(|e| format!("{e}"))?,
            zone: None,
            addr: String::new(),
            capacity: args.node_bytes.0,
            state: NodeState::Up,
        })
    };
    let nodes: Vec<NodeRecord> = (0..nodes).map(record).collect::<Result<_, String>>()?;
    compile(&args.policy, &nodes).map_err(|e| e.to_string())
}

fn table(args: &FleetArgs) -> Result<bool, String> {
    let cases = agree::cases().map_err(|e| e.to_string())?;
    let mut ok = true;
    if !args.json {
        println!(
            "{:<58} {:<13} {:<7} {:>5}  {:>10} {:>10} {:>23}  {:>7} {:>6}",
            "code", "rates", "method", "years", "exact", "found", "95 % interval", "ratio", "z"
        );
    }
    for case in cases {
        let row = agree::run(case, args.trials, args.seed).map_err(|e| e.to_string())?;
        ok &= row.ok();
        print_row(&row, args.json);
    }
    if !args.json {
        println!("{}", if ok { "all agree that must" } else { "some disagree that must agree" });
    }
    Ok(ok)
}

fn print_row(row: &Row, json: bool) {
    let (case, found) = (&row.case, &row.found);
    let method = if case.rare { "tilted" } else { "plain" };
    let (ratio, z) = (found.mean / case.exact, found.z(case.exact));
    if json {
        let line = serde_json::json!({
            "message_type": "agreement", "code": case.name, "rates": case.rates, "method": method, "years": case.years,
            "exact": case.exact, "found": figure(found), "ratio": ratio, "z": z, "must_agree": case.holds, "ok": row.ok(),
        });
        println!("{line}");
        return;
    }
    let (least, most) = found.interval();
    let verdict = match (case.holds, row.ok()) {
        (true, true) => format!("{z:>6.1}"),
        (true, false) => format!("{z:>6.1} DISAGREES"),
        (false, _) => "does not hold".into(),
    };
    println!(
        "{:<58} {:<13} {method:<7} {:>5}  {:>10.3e} {:>10.3e} {least:>10.2e} … {most:>10.2e}  {ratio:>7.3} {verdict}",
        case.name, case.rates, case.years, case.exact, found.mean
    );
}
