//! Faults come and go. A fault that would break more than the policies allow to be broken is withheld and counted:
//! what is left must come back, and whether it can is judged by ground truth, not by bookkeeping.

use crate::cluster::Violation;
use crate::event;
use crate::invariant::Moment;
use crate::medium::Ops;
use crate::net::Label;
use crate::plan::{Fault, Loss};
use crate::run::Run;
use crate::run::orders::Limit;
use crate::truth::Truth;
use farshore_core::catalogue::Command;
use farshore_core::id::NodeId;
use farshore_core::topology::{Change, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// A machine that was in trouble is not trusted at once.
const AFTERMATH_US: u64 = 8_000_000;

/// Of a disk on which one call in so many fails, or fewer, a node must find each good shard good in one of three looks.
const SELDOM: u64 = 60;

/// What is wrong right now, and how each of it ends.
#[derive(Default)]
pub struct Faults {
    next: u64,
    /// Under way, by number.
    active: BTreeMap<u64, Active>,
    /// Ends, by time.
    ends: BTreeMap<(u64, u64), Vec<Undo>>,
    /// How many faults want the same thing; it ends with the last of them.
    holds: BTreeMap<Hold, u32>,
    /// Until when a machine is not trusted.
    aftermath: BTreeMap<usize, u64>,
    now_us: u64,
    /// Machines that lost data for good while a backup was under way: at most one, since that is what the write floor
    /// covers.
    hurt: BTreeSet<usize>,
    /// Machines whose syncs are lies.
    lying: BTreeSet<usize>,
}

struct Active {
    kind: &'static str,
    /// As a timeline names it.
    shown: String,
    machines: BTreeSet<usize>,
    everywhere: bool,
}

/// Something that several faults may want at once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Hold {
    Down(usize),
    Paused(usize),
    Cut(Label, Label),
    Slow(usize),
    Full(usize),
    Jitter(Label, Label),
    Failing(usize),
    Asleep(usize),
}

/// How something ends.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Undo {
    Release(Hold),
    Loss,
    /// A call that should have failed has not come: it will not fail any more.
    Spared(usize),
    /// The machine with lying syncs loses power, and comes back.
    Exposed(usize),
    /// A new client takes the seat.
    Successor(usize),
    /// The node sends right sums again.
    Honest(NodeId),
    /// Operators limit this no longer.
    Lift(Limit),
    /// Nothing is to be done about it.
    Over,
}

impl Faults {
    /// Whether a machine is in trouble, or was a moment ago.
    pub fn touches(&self, at: usize) -> bool {
        self.active.values().any(|fault| fault.machines.contains(&at))
            || self.aftermath.get(&at).is_some_and(|until| *until > self.now_us)
    }
    /// Whether something is wrong with the world as a whole.
    pub fn everywhere(&self) -> bool {
        self.active.values().any(|fault| fault.everywhere)
    }
    /// Kinds of what is under way.
    pub fn kinds(&self) -> BTreeSet<&'static str> {
        self.active.values().map(|fault| fault.kind).collect()
    }
    /// True for the first who wants it.
    fn hold(&mut self, hold: Hold) -> bool {
        let count = self.holds.entry(hold).or_default();
        *count += 1;
        *count == 1
    }
    /// True for the last who wanted it.
    fn release(&mut self, hold: Hold) -> bool {
        let Some(count) = self.holds.get_mut(&hold) else { return false };
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.holds.remove(&hold);
        true
    }
}

/// What a fault does when it begins: what it touches, and how it ends.
#[derive(Default)]
pub(super) struct Begun {
    machines: BTreeSet<usize>,
    everywhere: bool,
    undo: Vec<Undo>,
}

impl Begun {
    fn at(machines: impl IntoIterator<Item = usize>) -> Self {
        Begun { machines: machines.into_iter().collect(), ..Begun::default() }
    }
    pub(super) fn undo(mut self, undo: impl IntoIterator<Item = Undo>) -> Self {
        self.undo.extend(undo);
        self
    }
}

impl Run<'_> {
    /// A fault's time has come.
    pub(crate) fn strike(&mut self, fault: Fault) -> Result<(), Violation> {
        // What disks did before is seen as they were before.
        self.check(Moment::Step)?;
        let now = self.world.now_us();
        self.faults.now_us = now;
        if !self.backing_up() {
            self.faults.hurt = self.faults.lying.clone();
        }
        let kind = fault.kind();
        let Some(begun) = self.begin_fault(&fault)? else {
            event!(self.world, 0, "withheld: {fault}");
            crate::coverage::Tallies::add(&mut self.tallies.withheld, kind);
            return Ok(());
        };
        event!(self.world, 0, "fault: {fault}");
        crate::coverage::Tallies::add(&mut self.tallies.faults, kind);
        for operation in self.under_way() {
            self.tallies.met(kind, operation);
        }
        let Begun { machines, everywhere, undo } = begun;
        let number = self.faults.next;
        self.faults.next += 1;
        for at in &machines {
            self.faults.aftermath.insert(*at, now + AFTERMATH_US);
        }
        let shown = fault.to_string();
        if undo.is_empty() {
            self.world.mark(0, &shown);
        } else {
            self.world.mark_begin(0, &shown);
            self.faults.active.insert(number, Active { kind, shown, machines, everywhere });
            self.faults.ends.insert((now + fault.for_ms() * 1_000, number), undo);
        }
        Ok(())
    }

    /// Ends what is over.
    pub(crate) fn relent(&mut self) -> Result<(), Violation> {
        let now = self.world.now_us();
        self.faults.now_us = now;
        while let Some(entry) = self.faults.ends.first_entry().filter(|entry| entry.key().0 <= now) {
            let ((_, number), undo) = entry.remove_entry();
            self.end_fault(number, undo)?;
        }
        Ok(())
    }

    /// All faults stop.
    pub(crate) fn relent_all(&mut self) -> Result<(), Violation> {
        while let Some(((_, number), undo)) = self.faults.ends.pop_first() {
            self.end_fault(number, undo)?;
        }
        self.cluster.hub.heal();
        self.cluster.history.hold_no_more();
        for machine in &self.cluster.machines {
            machine.clock.set_skew_ms(0);
            machine.disk.medium().mend();
        }
        event!(self.world, 0, "all faults have stopped");
        Ok(())
    }

    fn end_fault(&mut self, number: u64, undo: Vec<Undo>) -> Result<(), Violation> {
        self.check(Moment::Step)?;
        let now = self.world.now_us();
        if let Some(Active { kind, shown, machines, .. }) = self.faults.active.remove(&number) {
            event!(self.world, 0, "over: {kind}");
            self.world.mark_end(0, &shown);
            for at in machines {
                self.faults.aftermath.insert(at, now + AFTERMATH_US);
            }
        }
        undo.into_iter().try_for_each(|undo| self.undo(undo))
    }

    /// `None` if it is withheld, or means nothing now.
    fn begin_fault(&mut self, fault: &Fault) -> Result<Option<Begun>, Violation> {
        let count = self.cluster.machines.len();
        Ok(match *fault {
            Fault::Crash { node, power, .. } => {
                let at = node % count;
                (!self.faults.holds.contains_key(&Hold::Down(at))).then(|| self.down(at, power))
            }
            Fault::Restart { node } => {
                let at = node % count;
                self.cluster.stop_in_order(at).then(|| Begun::at([at]))
            }
            Fault::Region { region, loss: Loss::Burnt, .. } => self.burn_region(region)?,
            Fault::Region { region, loss, .. } => self.lose_region(region, loss),
            Fault::Blackout { .. } => {
                let mut begun = Begun { everywhere: true, ..Begun::at(0..count) };
                for at in 0..count {
                    begun.undo.extend(self.down(at, true).undo);
                }
                Some(begun)
            }
            Fault::Wipe { node, .. } => self.wipe(node % count)?,
            Fault::Pause { node, .. } => {
                let at = node % count;
                let scope = self.cluster.scope(at);
                scope.map(|scope| {
                    if self.faults.hold(Hold::Paused(at)) {
                        scope.pause();
                    }
                    Begun::at([at]).undo([Undo::Release(Hold::Paused(at))])
                })
            }
            Fault::Cut { a, b, both, .. } => {
                let (a, b) = (a % count, b % count);
                let (one, other) = (self.label(a), self.label(b));
                let mut pairs = vec![(one, other)];
                if both {
                    pairs.push((other, one));
                }
                (a != b).then(|| Begun::at([a, b]).undo(self.cut(&pairs)))
            }
            Fault::IsolateLeader { loss, .. } => self.leader().map(|at| {
                let own = self.label(at);
                // Clients still reach it: whoever asks a deposed leader must not be told what was.
                let others: Vec<_> =
                    self.cluster.machines.iter().map(|m| m.label).filter(|l| *l != own).collect();
                Begun::at([at]).undo(self.cut(&directions(&[own], &others, loss)))
            }),
            Fault::Jitter { a, b, add_us, .. } => {
                let (a, b) = (a % count, b % count);
                let ends = [(self.label(a), self.label(b)), (self.label(b), self.label(a))];
                let undo = ends.map(|(from, to)| {
                    self.faults.hold(Hold::Jitter(from, to));
                    let low = self.plan.knobs.far_us;
                    self.cluster.hub.set_link(from, to, Some((low, low * 2 + add_us)));
                    Undo::Release(Hold::Jitter(from, to))
                });
                (a != b).then(|| Begun::at([a, b]).undo(undo))
            }
            Fault::Lossy { ppm, .. } => {
                self.cluster.hub.set_loss(ppm);
                Some(Begun { everywhere: true, undo: vec![Undo::Loss], ..Begun::default() })
            }
            Fault::Reset { node } => {
                let own = self.label(node % count);
                let others: Vec<_> = self.labels().into_iter().filter(|label| *label != own).collect();
                let reset: usize = others.iter().map(|other| self.cluster.hub.reset(own, *other)).sum();
                (reset > 0).then(Begun::default)
            }
            Fault::SlowDisk { node, factor, .. } => {
                let at = node % count;
                self.faults.hold(Hold::Slow(at));
                self.cluster.machines[at].disk.set_slow(factor);
                Some(Begun::at([at]).undo([Undo::Release(Hold::Slow(at))]))
            }
            Fault::FullDisk { node, .. } => {
                let at = node % count;
                self.faults.hold(Hold::Full(at));
                self.cluster.machines[at].disk.fill();
                Some(Begun::at([at]).undo([Undo::Release(Hold::Full(at))]))
            }
            Fault::IoError { node, nth } => {
                let at = node % count;
                self.cluster.machines[at].disk.fail_call(nth, Ops::Any);
                Some(Begun::at([at]).undo([Undo::Spared(at)]))
            }
            Fault::IoErrors { node, one_in, .. } => {
                let at = node % count;
                if one_in < SELDOM {
                    self.truth.fails(at);
                }
                self.faults.hold(Hold::Failing(at));
                self.cluster.machines[at].disk.fail_rate(1_000_000 / one_in.max(1), Ops::Any);
                Some(Begun::at([at]).undo([Undo::Release(Hold::Failing(at))]))
            }
            Fault::LostSync { node, .. } => self.lie(node % count),
            Fault::Rot { node, bits } => {
                let at = node % count;
                let struck =
                    (0..bits).filter(|_| self.spoil(at, |disk, which| disk.rot(which).into_iter().collect()));
                (struck.count() > 0).then(Begun::default)
            }
            Fault::Truncate { node } => {
                let struck =
                    self.spoil(node % count, |disk, which| disk.truncate(which).into_iter().collect());
                struck.then(Begun::default)
            }
            Fault::Swap { node } => {
                let two = |disk: &crate::disk::SimDisk, which: &dyn Fn(&str) -> bool| {
                    disk.swap(which).map_or(Vec::new(), |(a, b)| vec![a, b])
                };
                self.spoil(node % count, two).then(Begun::default)
            }
            Fault::Clock { node, skew_ms } => {
                let machine = &self.cluster.machines[node % count];
                // A minority may be wrong by any amount.
                let wrong = |m: &crate::cluster::Machine| m.clock.skew_ms() != 0;
                let others = self.cluster.machines.iter().filter(|m| m.label != machine.label);
                (others.filter(|m| wrong(m)).count() * 2 + 2 < count + 1).then(|| {
                    self.cluster.set_clock(node % count, skew_ms);
                    Begun::default()
                })
            }
            Fault::Days { days, .. } => {
                let mut begun = Begun { everywhere: true, ..Begun::default() };
                for seat in 0..self.seats.len() {
                    begun.undo.extend(self.sleep(seat));
                }
                self.world.sleep_through(days * 86_400_000);
                Some(begun)
            }
            Fault::Add { region } => self.add_machine(region)?.map(|_| Begun::default()),
            Fault::Drain { node } => self.drain(node % count)?,
            Fault::Migrate { .. } => self.migrate(fault)?,
            Fault::Budget { node_bytes_s, link_bytes_s, .. } => self.budget(node_bytes_s, link_bytes_s),
            Fault::ScrubPaused { .. } => self.pause_scrub(),
            Fault::LyingRelay { node, .. } => {
                let id = self.cluster.machines[node % count].id;
                self.cluster.relays.begin(id);
                Some(Begun::default().undo([Undo::Honest(id)]))
            }
            Fault::ClientDies { client, power, .. } => {
                let seat = client % self.seats.len();
                (!self.seats[seat].away && self.seats[seat].agent.is_some()).then(|| {
                    self.vacate(seat, power);
                    self.seats[seat].away = true;
                    Begun::default().undo([Undo::Successor(seat)])
                })
            }
            Fault::ClientPauses { client, .. } => {
                let undo = self.sleep(client % self.seats.len());
                undo.map(|undo| Begun { everywhere: true, ..Begun::default().undo([undo]) })
            }
            Fault::ClientHeld { client, from, for_ms } => {
                let agent = self.seats[client % self.seats.len()].agent.as_ref();
                agent.map(|agent| {
                    let duration = std::time::Duration::from_millis(for_ms);
                    self.cluster.history.hold(agent.label(), from, duration);
                    Begun::default()
                })
            }
        })
    }

    fn undo(&mut self, undo: Undo) -> Result<(), Violation> {
        match undo {
            Undo::Release(hold) => {
                if !self.faults.release(hold) {
                    return Ok(());
                }
                match hold {
                    Hold::Down(at) => self.cluster.start(at),
                    Hold::Paused(at) => {
                        if let Some(scope) = self.cluster.scope(at) {
                            scope.resume();
                        }
                    }
                    Hold::Cut(from, to) => self.cluster.hub.uncut(from, to),
                    Hold::Slow(at) => self.cluster.machines[at].disk.set_slow(1),
                    Hold::Full(at) => self.cluster.machines[at].disk.unfill(),
                    Hold::Jitter(from, to) => self.cluster.level(from, to),
                    Hold::Failing(at) => {
                        self.truth.fails_no_more(at);
                        self.cluster.machines[at].disk.fail_rate(0, Ops::Any);
                    }
                    Hold::Asleep(seat) => {
                        self.seats[seat].away = false;
                        if let Some(agent) = &self.seats[seat].agent {
                            agent.scope().resume();
                        }
                    }
                }
            }
            Undo::Spared(at) => self.cluster.machines[at].disk.medium().fail_no_call(),
            Undo::Loss => self.cluster.hub.set_loss(self.plan.knobs.loss_ppm),
            Undo::Exposed(at) => self.expose(at),
            Undo::Honest(id) => self.cluster.relays.end(id),
            Undo::Lift(limit) => self.lift(limit),
            Undo::Over => {}
            Undo::Successor(seat) => {
                self.seats[seat].away = false;
                self.enter(seat)?;
            }
        }
        Ok(())
    }

    fn label(&self, at: usize) -> Label {
        self.cluster.machines[at].label
    }
    /// Everybody on the network.
    fn labels(&self) -> Vec<Label> {
        let clients = self.seats.iter().filter_map(|seat| seat.agent.as_ref()).map(|agent| agent.label());
        self.cluster.machines.iter().map(|m| m.label).chain(clients).chain(self.operators.label()).collect()
    }

    /// A machine goes down.
    fn down(&mut self, at: usize, power: bool) -> Begun {
        if self.faults.hold(Hold::Down(at)) {
            // What stands still cannot be killed by its own system, but by ours; it comes back running.
            self.faults.holds.remove(&Hold::Paused(at));
            self.cluster.crash(at, power);
        }
        if power {
            self.truth.lost_power(at);
        }
        Begun::at([at]).undo([Undo::Release(Hold::Down(at))])
    }

    fn lose_region(&mut self, region: usize, loss: Loss) -> Option<Begun> {
        let inside = self.inside(region);
        if matches!(loss, Loss::Power | Loss::Killed) {
            let mut begun = Begun::at(inside.iter().copied());
            for at in inside {
                begun.undo.extend(self.down(at, loss == Loss::Power).undo);
            }
            return Some(begun);
        }
        let own: Vec<Label> = inside.iter().map(|at| self.label(*at)).collect();
        let others: Vec<Label> = self.labels().into_iter().filter(|label| !own.contains(label)).collect();
        Some(Begun::at(inside).undo(self.cut(&directions(&own, &others, loss))))
    }

    fn inside(&self, region: usize) -> Vec<usize> {
        let region = region % self.plan.layout.regions.len();
        (0..self.cluster.machines.len()).filter(|at| self.cluster.machines[*at].region_no == region).collect()
    }

    /// Every machine of a region loses its disks at once; operators set up new nodes in their place.
    fn burn_region(&mut self, region: usize) -> Result<Option<Begun>, Violation> {
        let inside = self.inside(region);
        let away =
            |at: &usize| self.faults.holds.contains_key(&Hold::Down(*at)) || self.faults.lying.contains(at);
        // A write that is under way may be accepted below full strength, which covers a single node and no region.
        if self.backing_up() || inside.iter().any(away) || !self.can_lose(&inside) {
            return Ok(None);
        }
        let mut begun = Begun::at(inside.iter().copied());
        for at in inside {
            begun.undo.extend(self.burn(at)?);
        }
        Ok(Some(begun))
    }

    fn burn(&mut self, at: usize) -> Result<Vec<Undo>, Violation> {
        self.faults.hurt.insert(at);
        let begun = self.down(at, true);
        self.truth.wiped(at);
        self.cluster.replace(at)?;
        Ok(begun.undo)
    }

    fn cut(&mut self, pairs: &[(Label, Label)]) -> Vec<Undo> {
        for (from, to) in pairs {
            if self.faults.hold(Hold::Cut(*from, *to)) {
                self.cluster.hub.cut(*from, *to);
            }
        }
        pairs.iter().map(|(from, to)| Undo::Release(Hold::Cut(*from, *to))).collect()
    }

    /// Whoever leads in the highest term.
    fn leader(&self) -> Option<usize> {
        let standing = |at: &usize| Some(self.cluster.node(*at)?.consensus().standing().leadership);
        let leads = (0..self.cluster.machines.len()).filter_map(|at| Some((standing(&at)?, at)));
        leads.filter(|(leadership, _)| leadership.own).max_by_key(|(l, _)| l.term).map(|(_, at)| at)
    }

    /// Whether everything recorded stays readable without these machines, and the voters keep a majority with their
    /// memory.
    fn can_lose(&mut self, lost: &[usize]) -> bool {
        let Some(newest) = &self.newest else { return false };
        let (cluster, truth) = (&self.cluster, &mut self.truth);
        let mut left = |pack| truth.sure(cluster, pack, |m| !lost.contains(&m));
        let enough = newest.packs.iter().all(|pack| left(pack) >= pack.stripe.scheme.k());
        let others = self.faults.hurt.iter().any(|hurt| !lost.contains(hurt));
        let voters = self.voters();
        let left = voters.iter().filter(|v| v.is_some_and(|v| !lost.contains(&v))).count();
        // What is written from now on is lost with every disk that lies: one at most, as the write floor has it.
        let lies = self.faults.lying.iter().any(|liar| !lost.contains(liar));
        enough && !lies && !(others && self.backing_up()) && left * 2 > voters.len()
    }

    /// The machine of each voter, as the replica furthest ahead has it.
    fn voters(&self) -> Vec<Option<usize>> {
        self.cluster.voters().into_iter().map(|id| self.cluster.machine_of(id)).collect()
    }

    fn wipe(&mut self, at: usize) -> Result<Option<Begun>, Violation> {
        if !self.can_lose(&[at])
            || self.faults.holds.contains_key(&Hold::Down(at))
            || self.faults.lying.contains(&at)
        {
            return Ok(None);
        }
        Ok(Some(Begun::at([at]).undo(self.burn(at)?)))
    }

    fn lie(&mut self, at: usize) -> Option<Begun> {
        if !self.can_lose(&[at])
            || self.faults.lying.contains(&at)
            || self.faults.holds.contains_key(&Hold::Down(at))
        {
            return None;
        }
        self.faults.hurt.insert(at);
        self.faults.lying.insert(at);
        self.truth.begins_to_lie(&self.cluster, at);
        self.cluster.machines[at].disk.set_lying(&["shards/"]);
        Some(Begun::at([at]).undo([Undo::Exposed(at)]))
    }

    /// The power fails on a machine that lied.
    fn expose(&mut self, at: usize) {
        self.faults.lying.remove(&at);
        let was_down = self.faults.holds.contains_key(&Hold::Down(at));
        // Also if the process was killed meanwhile: files that outlived it unsynced would be in danger for ever, though
        // nobody syncs them again, and a later power cut would be a loss beyond what was admitted here.
        self.cluster.lose_power(at);
        self.truth.lost_power(at);
        self.truth.lies_no_more(at);
        self.cluster.machines[at].disk.set_lying(&[]);
        if !was_down {
            self.cluster.start(at);
        }
    }

    /// Spoils files that may be spoilt: what is recorded stays readable without them.
    fn spoil(
        &mut self,
        at: usize,
        how: impl Fn(&crate::disk::SimDisk, &dyn Fn(&str) -> bool) -> Vec<String>,
    ) -> bool {
        let Some(newest) = &self.newest else { return false };
        let (cluster, truth) = (&self.cluster, &mut self.truth);
        let mut may = BTreeSet::new();
        for pack in &newest.packs {
            let spare = truth.sure(cluster, pack, |_| true) > pack.stripe.scheme.k();
            let here = Truth::places(cluster, pack).into_iter().flatten().filter(|(m, _)| *m == at && spare);
            // One of each stripe: a swap takes two.
            may.extend(here.take(1).map(|(_, file)| file));
        }
        let which = |path: &str| may.contains(crate::cluster::file_of(path));
        let spoilt = how(&cluster.machines[at].disk, &which);
        for path in &spoilt {
            truth.damage(at, path);
        }
        !spoilt.is_empty()
    }

    /// A client's process stands still.
    fn sleep(&mut self, seat: usize) -> Option<Undo> {
        let agent = self.seats[seat].agent.clone()?;
        if self.faults.hold(Hold::Asleep(seat)) {
            agent.scope().pause();
            self.seats[seat].away = true;
        }
        Some(Undo::Release(Hold::Asleep(seat)))
    }

    fn add_machine(&mut self, region: usize) -> Result<Option<usize>, Violation> {
        if self.cluster.machines.len() >= crate::plan::NODES_MAX {
            return Ok(None);
        }
        let at = self.cluster.add(region % self.plan.layout.regions.len())?;
        self.cluster.start(at);
        Ok(Some(at))
    }

    /// A machine is added beside a node, which is drained then and retired when it is empty.
    fn drain(&mut self, at: usize) -> Result<Option<Begun>, Violation> {
        let id = self.cluster.machines[at].id;
        let known = self.newest.as_ref().and_then(|newest| newest.view.node(id).ok()?);
        let (Some(record), Some(leader)) = (known, self.leader()) else { return Ok(None) };
        if record.state != NodeState::Up || self.add_machine(self.cluster.machines[at].region_no)?.is_none() {
            return Ok(None);
        }
        let (Some(scope), Some(node)) = (self.cluster.scope(leader), self.cluster.node(leader)) else {
            return Ok(None);
        };
        let (world, seed) = (self.world.clone(), self.rng.draw());
        // Not the node itself, which has to be let go of when it is told to stop.
        let shared = node.shared().clone();
        drop(scope.spawn(seed, async move {
            // The epoch as the leader sees it: another operator's change, or a new node, may win.
            let epoch = shared.view().and_then(|view| view.intent()).map_or(0, |intent| intent.epoch);
            let request = farshore_core::host::random(shared.host.entropy.as_ref());
            let changes = vec![Change::Drain(id)];
            let reply = shared.propose(Command::ChangeTopology { request, epoch, changes }).await;
            event!(world, 0, "drain of {id}: {reply:?}");
        }));
        Ok(Some(Begun::default()))
    }
}

/// Which directions are cut between a group and the rest.
fn directions(own: &[Label], others: &[Label], loss: Loss) -> Vec<(Label, Label)> {
    let mut pairs = Vec::new();
    for one in own {
        for other in others {
            if loss != Loss::Deaf {
                pairs.push((*one, *other));
            }
            if loss != Loss::Mute {
                pairs.push((*other, *one));
            }
        }
    }
    pairs
}
