//! Draws a plan from a seed: swarm testing (Groce et al. 2012), where each seed has its own world, its own set of
//! faults that are on, and its own rates.

use super::{ClientCall, Fault, Knobs, Layout, Loss, PLAN_VERSION, Plan, Profile, Step, What, Work};
use crate::entropy::Rng;

/// Shortest and longest time in which faults happen.
const FAULTS_MS: (u64, u64) = (35_000, 90_000);
/// Ten years.
const DECADE_MS: i64 = 10 * 366 * 86_400_000;
const DAY_MS: i64 = 86_400_000;

/// A class of faults: its name, and one fault of it.
type Draw = fn(&mut Rng, &Layout, &Knobs) -> Fault;

/// Every class and how many of it a storm has in a minute.
const CLASSES: [(&str, Draw, u64); 30] = [
    ("crash", |r, l, _| Fault::Crash { node: node(r, l), power: false, for_ms: long(r) }, 3),
    ("power", |r, l, _| Fault::Crash { node: node(r, l), power: true, for_ms: long(r) }, 3),
    ("region", |r, l, _| Fault::Region { region: region(r, l), loss: loss(r), for_ms: long(r) }, 1),
    ("restart", |r, l, _| Fault::Restart { node: node(r, l) }, 2),
    ("region-burnt", |r, l, _| Fault::Region { region: region(r, l), loss: Loss::Burnt, for_ms: long(r) }, 1),
    ("blackout", |r, _, _| Fault::Blackout { for_ms: r.range(100, 5_000) }, 1),
    ("wipe", |r, l, _| Fault::Wipe { node: node(r, l), for_ms: r.range(500, 30_000) }, 1),
    ("pause", |r, l, _| Fault::Pause { node: node(r, l), for_ms: long(r) }, 2),
    ("cut", |r, l, _| pair(r, l, |r, a, b| Fault::Cut { a, b, both: r.one_in(2), for_ms: long(r) }), 4),
    ("isolate", |r, _, _| Fault::IsolateLeader { loss: cut_off(r), for_ms: r.range(500, 15_000) }, 2),
    (
        "jitter",
        |r, l, _| pair(r, l, |r, a, b| Fault::Jitter { a, b, add_us: upto(r, 300_000), for_ms: long(r) }),
        2,
    ),
    ("lossy", |r, _, _| Fault::Lossy { ppm: r.range(1_000, 50_000), for_ms: r.range(1_000, 20_000) }, 1),
    ("reset", |r, l, _| Fault::Reset { node: node(r, l) }, 6),
    (
        "slow-disk",
        |r, l, _| Fault::SlowDisk { node: node(r, l), factor: r.range(5, 200), for_ms: long(r) },
        2,
    ),
    ("full-disk", |r, l, _| Fault::FullDisk { node: node(r, l), for_ms: long(r) }, 2),
    ("io-error", |r, l, _| Fault::IoError { node: node(r, l), nth: r.range(1, 60) }, 3),
    (
        "io-errors",
        |r, l, _| Fault::IoErrors { node: node(r, l), one_in: r.range(5, 100), for_ms: r.range(500, 10_000) },
        1,
    ),
    ("lost-sync", |r, l, _| Fault::LostSync { node: node(r, l), for_ms: r.range(500, 8_000) }, 1),
    ("rot", |r, l, _| Fault::Rot { node: node(r, l), bits: r.range(1, 3) }, 3),
    ("truncate", |r, l, _| Fault::Truncate { node: node(r, l) }, 1),
    ("swap", |r, l, _| Fault::Swap { node: node(r, l) }, 1),
    ("clock", |r, l, _| Fault::Clock { node: node(r, l), skew_ms: skew(r) }, 2),
    ("days", |r, _, k| Fault::Days { days: r.range(1, 30), for_ms: nap(r, k) }, 1),
    ("membership", membership, 1),
    ("budget", budget, 1),
    ("scrub-paused", |r, _, _| Fault::ScrubPaused { for_ms: long(r) }, 1),
    ("lying-relay", |r, l, _| Fault::LyingRelay { node: node(r, l), for_ms: 2 * long(r) }, 2),
    (
        "client-dies",
        |r, _, k| Fault::ClientDies {
            client: client(r, k),
            power: r.one_in(2),
            for_ms: r.range(100, 10_000),
        },
        2,
    ),
    ("client-pauses", |r, _, k| Fault::ClientPauses { client: client(r, k), for_ms: nap(r, k) }, 1),
    ("client-held", |r, _, k| held(r, k, None), 1),
];

const WAN: [&str; 7] = ["cut", "isolate", "jitter", "lossy", "reset", "region", "pause"];
const BITROT: [&str; 9] =
    ["region-burnt", "rot", "truncate", "swap", "lost-sync", "io-error", "io-errors", "wipe", "power"];
const CLOCK: [&str; 7] = ["clock", "days", "pause", "client-pauses", "client-held", "client-dies", "isolate"];
const DISK: [&str; 5] = ["full-disk", "slow-disk", "io-error", "io-errors", "power"];

fn node(rng: &mut Rng, layout: &Layout) -> usize {
    rng.below(layout.nodes() as u64) as usize
}
fn region(rng: &mut Rng, layout: &Layout) -> usize {
    rng.below(layout.regions.len() as u64) as usize
}
fn client(rng: &mut Rng, knobs: &Knobs) -> usize {
    rng.below(knobs.clients as u64) as usize
}
fn pair(rng: &mut Rng, layout: &Layout, fault: fn(&mut Rng, usize, usize) -> Fault) -> Fault {
    let a = node(rng, layout);
    let b = (a + 1 + rng.below(layout.nodes() as u64 - 1) as usize) % layout.nodes();
    fault(rng, a, b)
}
fn membership(rng: &mut Rng, layout: &Layout, _: &Knobs) -> Fault {
    match rng.below(2) {
        0 => Fault::Add { region: region(rng, layout) },
        _ => Fault::Drain { node: node(rng, layout) },
    }
}

/// From hardly anything, so that repair all but stands still, to more than it needs.
fn budget(rng: &mut Rng, _: &Layout, _: &Knobs) -> Fault {
    let (node_bytes_s, link_bytes_s) = (1_000 + upto(rng, 4 << 20), 1_000 + upto(rng, 4 << 20));
    Fault::Budget { node_bytes_s, link_bytes_s, for_ms: long(rng) }
}

/// Log-uniform in `1..=most`.
fn upto(rng: &mut Rng, most: u64) -> u64 {
    let bits = 64 - most.leading_zeros() as u64;
    let top = 1u64 << rng.range(0, bits - 1);
    rng.range(top, (top * 2).min(most).max(top)).min(most)
}
/// As often too short for anybody to notice as long enough for a node to be called down.
fn long(rng: &mut Rng) -> u64 {
    let octave = rng.below(9);
    rng.range(200 << octave, 400 << octave).min(60_000)
}
/// Mostly short, so that clients get something done; sometimes longer than a session lasts.
fn nap(rng: &mut Rng, knobs: &Knobs) -> u64 {
    if rng.one_in(5) { outlive(rng, knobs) } else { 100 + upto(rng, 8_000) }
}
/// Longer than a session lasts that nobody renews.
fn outlive(rng: &mut Rng, knobs: &Knobs) -> u64 {
    knobs.session_lease_ms + rng.range(1_500, 6_000)
}
/// One client, or any, is held up at a moment that chance would hardly ever meet.
fn held(rng: &mut Rng, knobs: &Knobs, who: Option<usize>) -> Fault {
    const CALLS: [ClientCall; 6] = [
        ClientCall::Lookup,
        ClientCall::CommitPacks,
        ClientCall::CommitSnapshot,
        ClientCall::CommitSnapshot,
        ClientCall::CloseSession,
        ClientCall::RenewSession,
    ];
    let client = who.unwrap_or_else(|| client(rng, knobs));
    let from = CALLS[rng.below(CALLS.len() as u64) as usize];
    let for_ms = if rng.one_in(2) { outlive(rng, knobs) } else { 100 + upto(rng, 8_000) };
    Fault::ClientHeld { client, from, for_ms }
}
fn cut_off(rng: &mut Rng) -> Loss {
    [Loss::CutOff, Loss::Mute, Loss::Deaf][rng.below(3) as usize]
}
fn loss(rng: &mut Rng) -> Loss {
    [Loss::Power, Loss::Killed, Loss::CutOff, Loss::Mute, Loss::Deaf][rng.below(5) as usize]
}
fn skew(rng: &mut Rng) -> i64 {
    let most = [60_000, DAY_MS, DECADE_MS][rng.below(3) as usize];
    rng.range(0, 2 * most as u64) as i64 - most
}

/// The plan of a seed.
pub fn draw(seed: u64, profile: Profile) -> Plan {
    let mut rng = Rng::new(seed, 0x504c ^ (profile as u64) << 16);
    let layout = layout(&mut rng);
    let knobs = knobs(&mut rng, profile, &layout);
    let length = rng.range(FAULTS_MS.0, FAULTS_MS.1);
    let mut steps = work(&mut rng, &knobs, length);
    for (name, class, per_minute) in CLASSES {
        let count = how_many(&mut rng, profile, name, per_minute * length / 60_000 + 1);
        for _ in 0..count {
            let fault = class(&mut rng, &layout, &knobs);
            steps.push(Step { at_ms: rng.range(500, length), what: What::Fault(fault) });
        }
    }
    if profile == Profile::Storm || (profile == Profile::Swarm && rng.one_in(2)) {
        aim(&mut rng, &layout, &knobs, length, &mut steps);
        relapse(&mut rng, &layout, &knobs, length, &mut steps);
        migrate(&mut rng, &layout, length, &mut steps);
        grow(&mut rng, &layout, &knobs, length, &mut steps);
    }
    steps.sort_by_key(|step| step.at_ms);
    Plan { version: PLAN_VERSION, seed, profile, layout, knobs, steps, story: String::new() }
}

/// Faults that come just as a backup begins: what is under way for a moment only is hardly met by chance.
fn aim(rng: &mut Rng, layout: &Layout, knobs: &Knobs, length: u64, steps: &mut Vec<Step>) {
    let backup = |step: &Step| match step.what {
        What::Work { client, work } if work.backs_up() => Some((step.at_ms, client)),
        _ => None,
    };
    for (at_ms, client) in steps.iter().filter_map(backup).collect::<Vec<_>>() {
        let outlives = outlive(rng, knobs);
        let fault = match rng.below(24) {
            0 | 1 if at_ms + outlives + 5_000 < length => Fault::ClientPauses { client, for_ms: outlives },
            2 | 3 => held(rng, knobs, Some(client)),
            4 => Fault::Blackout { for_ms: rng.range(100, 2_000) },
            5 => Fault::Crash { node: node(rng, layout), power: true, for_ms: rng.range(100, 3_000) },
            _ => continue,
        };
        steps.push(Step { at_ms: at_ms + upto(rng, 1_000), what: What::Fault(fault) });
    }
}

/// A machine is away for so long that its shards are rebuilt elsewhere. It comes back, and while it sweeps its own
/// copies and is given others it loses power again and again.
fn relapse(rng: &mut Rng, layout: &Layout, knobs: &Knobs, length: u64, steps: &mut Vec<Step>) {
    /// Silence before a node is called down, on top of the grace, and time to rebuild what it held.
    const REBUILT_MS: (u64, u64) = (10_000, 20_000);
    let for_ms = knobs.grace_ms + rng.range(REBUILT_MS.0, REBUILT_MS.1);
    let Some(latest) = length.checked_sub(for_ms + 5_000).filter(|_| rng.one_in(2)) else { return };
    let (at_ms, node) = (rng.range(0, latest), node(rng, layout));
    let crash = |at_ms, for_ms| Step { at_ms, what: What::Fault(Fault::Crash { node, power: true, for_ms }) };
    steps.push(crash(at_ms, for_ms));
    for _ in 0..3 {
        let again_ms = at_ms + for_ms + 500 + upto(rng, 12_000);
        steps.push(crash(again_ms, rng.range(100, 1_000)));
    }
}

/// Nodes offer little, and one more comes when there is something on the others.
fn grow(rng: &mut Rng, layout: &Layout, knobs: &Knobs, length: u64, steps: &mut Vec<Step>) {
    if knobs.capacity_kib.is_some() {
        let at_ms = rng.range(length / 3, length);
        steps.push(Step { at_ms, what: What::Fault(Fault::Add { region: region(rng, layout) }) });
    }
}

/// A region moves, sometimes while its machines come and go.
fn migrate(rng: &mut Rng, layout: &Layout, length: u64, steps: &mut Vec<Step>) {
    if rng.one_in(2) {
        return;
    }
    let (from, regions) = (region(rng, layout), layout.regions.len() as u64);
    let into = if rng.one_in(4) {
        Some((from + rng.range(1, regions - 1) as usize) % layout.regions.len())
    } else {
        None
    };
    let at_ms = rng.range(500, length - 10_000);
    let for_ms = rng.range(3_000, 60_000);
    let fault = Fault::Migrate { region: from, into, cold: rng.one_in(3), cancel: rng.one_in(3), for_ms };
    steps.push(Step { at_ms, what: What::Fault(fault) });
    if rng.one_in(2) {
        let inside: Vec<usize> =
            (0..layout.nodes()).filter(|node| layout.region_of()[*node] == from).collect();
        for _ in 0..rng.range(1, 4) {
            let node = inside[rng.below(inside.len() as u64) as usize];
            let fault = match rng.below(3) {
                0 => Fault::Restart { node },
                power => Fault::Crash { node, power: power == 1, for_ms: rng.range(100, 6_000) },
            };
            steps.push(Step { at_ms: at_ms + rng.range(2_000, 30_000), what: What::Fault(fault) });
        }
    }
}

/// How many faults of a class, if a storm has `usual`.
fn how_many(rng: &mut Rng, profile: Profile, name: &str, usual: u64) -> u64 {
    let only =
        |names: &[&str], rng: &mut Rng| if names.contains(&name) { rng.range(0, usual * 3) } else { 0 };
    match profile {
        Profile::Day | Profile::Calm => 0,
        Profile::Storm => rng.range(0, usual + usual / 2),
        Profile::Swarm if rng.one_in(2) => 0,
        Profile::Swarm => upto(rng, usual * 4),
        Profile::Wan => only(&WAN, rng),
        Profile::Bitrot => only(&BITROT, rng),
        Profile::Clock => only(&CLOCK, rng),
        Profile::DiskFull => only(&DISK, rng),
    }
}

/// 3 to 5 regions, 3 to 15 machines; small worlds more often, since most faults need few (Yuan et al. 2014).
fn layout(rng: &mut Rng) -> Layout {
    let regions = [3, 3, 3, 4, 5][rng.below(5) as usize];
    let most = [1, 2, 2, 3][rng.below(4) as usize];
    Layout { regions: (0..regions).map(|_| rng.range(1, most) as usize).collect() }
}

fn knobs(rng: &mut Rng, profile: Profile, layout: &Layout) -> Knobs {
    let far_most = if profile == Profile::Wan { 60_000 } else { 15_000 };
    let repositories = 1 + usize::from(rng.one_in(2));
    Knobs {
        near_us: rng.range(50, 800),
        far_us: rng.range(500, far_most),
        loss_ppm: if rng.one_in(3) { rng.range(100, 5_000) } else { 0 },
        duplicate_one_in: if profile != Profile::Calm && rng.one_in(2) { rng.range(5, 50) } else { 0 },
        grace_ms: rng.range(6_000, 25_000),
        session_lease_ms: rng.range(24_000, 40_000),
        snapshot_logs: [50, 200, 1_000][rng.below(3) as usize],
        policies: (0..repositories).map(|_| policy(rng, layout)).collect(),
        pack_bytes: (0..repositories).map(|_| (64 << 10) << rng.below(6)).collect(),
        clients: rng.range(1, 3) as usize,
        entries: rng.range(5, 40),
        compact: rng.one_in(4),
        recode: profile != Profile::Calm && rng.one_in(4),
        capacity_kib: rng.one_in(2).then(|| rng.range(4, 10) * 1_024),
    }
}

/// A policy that the layout can give.
pub(crate) fn policy(rng: &mut Rng, layout: &Layout) -> String {
    let most = layout.regions.iter().max().copied().unwrap_or(1);
    let wide = layout.nodes() > 2 * most + 1;
    match rng.below(4) {
        0 if wide => "1 region + 1 node".into(),
        1 => "1 node".into(),
        2 if layout.nodes() >= 6 => "2 nodes".into(),
        _ => "1 region".into(),
    }
}

/// What the clients do in this time.
fn work(rng: &mut Rng, knobs: &Knobs, length: u64) -> Vec<Step> {
    /// Each kind as often as it stands here.
    const TABLE: [Work; 26] = [
        Work::Incremental,
        Work::Incremental,
        Work::Incremental,
        Work::Incremental,
        Work::Incremental,
        Work::Incremental,
        Work::Full,
        Work::Full,
        Work::Differential,
        Work::Unchanged,
        Work::Restore,
        Work::Restore,
        Work::Restore,
        Work::RestoreNewest,
        Work::List,
        Work::Check,
        Work::Scrub,
        Work::Status,
        Work::Create,
        Work::Trespass,
        Work::Forget,
        Work::Forget,
        Work::Undelete,
        Work::Prune,
        Work::Prune,
        Work::Lock,
    ];
    let mut steps = Vec::new();
    for client in 0..knobs.clients {
        let mut at_ms = rng.below(2_000);
        let mut first = true;
        while at_ms < length {
            let drawn = TABLE[rng.below(TABLE.len() as u64) as usize];
            let drawn = if knobs.recode && rng.one_in(10) { Work::SetPolicy } else { drawn };
            let work = if std::mem::take(&mut first) { Work::Full } else { drawn };
            steps.push(Step { at_ms, what: What::Work { client, work } });
            at_ms += rng.range(100, 8_000);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn plans_survive_being_written_and_every_kind_of_fault_and_work_is_drawn() {
        let (mut faults, mut works) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..200 {
            let plan = draw(seed, Profile::Storm);
            assert_eq!(Plan::parse(&plan.to_json()).unwrap(), plan);
            for step in &plan.steps {
                match &step.what {
                    What::Fault(fault) => drop(faults.insert(fault.kind())),
                    What::Work { work, .. } => drop(works.insert(*work)),
                }
            }
        }
        assert_eq!(faults, Fault::KINDS.into_iter().collect());
        assert_eq!(works, Work::ALL.into_iter().collect());
    }

    #[test]
    fn a_calm_world_has_no_faults_and_a_profile_only_its_own() {
        for seed in 0..50 {
            assert!(draw(seed, Profile::Calm).steps.iter().all(|s| matches!(s.what, What::Work { .. })));
            for step in draw(seed, Profile::Clock).steps {
                if let What::Fault(fault) = step.what {
                    assert!(CLOCK.iter().any(|name| fault.kind().starts_with(name)), "{fault}");
                }
            }
        }
    }

    #[test]
    fn rubbish_is_not_a_plan() {
        let good = draw(1, Profile::Storm).to_json();
        assert!(Plan::parse("{}").is_err());
        assert!(matches!(
            Plan::parse(&good.replace("\"version\": 1", "\"version\": 9")),
            Err(super::super::BadPlan::Version(9))
        ));
        let mut plan = draw(1, Profile::Storm);
        plan.layout.regions = vec![1, 0];
        assert!(Plan::parse(&plan.to_json()).is_err());
    }
}
