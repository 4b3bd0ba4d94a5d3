//! The life of a fleet: one event after the other, by the clock of failures and the queue of what is due.
//!
//! Failures are Poisson processes, so that their next time can be drawn afresh after every event. Those that endanger
//! a group under study may be forced (`tilt.rs`); all others come as they come.

use super::crew::Crew;
use super::dice::Dice;
use super::groups::{GroupIx, Groups, NONE, NodeIx};
use super::queue::Queue;
use super::spec::{Failures, Mend, Shared, Spec};
use super::stats::{Loss, Stats};
use super::tilt::{Kind, Rates, Tilt};
use farshore_core::host::task::splitmix;
use farshore_core::reliability::region::YEAR_HOURS;
use farshore_core::topology::NodeState;
use std::sync::Arc;

/// Something that is due.
#[derive(Clone, Debug)]
pub enum Event {
    /// The exponential repair of a group in a region is done, if it is still the one that was due then.
    Mended(GroupIx, usize),
    /// A dead region is whole again, or stands anew.
    RegionBack(usize),
    /// A silent node is back, unless its stamp has changed.
    Return(NodeIx, u32),
    /// A silent node is called lost.
    Declare(NodeIx, u32),
    /// A new machine for a dead one.
    Replace(usize),
    /// Shards of a broken disk are missed.
    Notice(Box<[GroupIx]>),
    /// A rebuild is done.
    Done(GroupIx, u8, u64),
    /// What was lost is written anew, as another stripe.
    Renew(GroupIx),
    /// All groups that are not at full strength are looked at.
    Sweep,
}

/// A fleet at some moment.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Its making.
    pub spec: Arc<Spec>,
    /// Years since it began.
    pub now: f64,
    /// Chance.
    pub dice: Dice,
    /// Who holds what.
    pub groups: Groups,
    /// What is due.
    pub queue: Queue<Event>,
    /// What happened.
    pub stats: Stats,
    /// Repair under way, unless it is memoryless.
    pub crew: Crew,
    /// The group under study, and the likelihood ratio.
    pub tilt: Option<Tilt>,
    /// Bytes of one shard of all stripes of a group.
    pub shard_bytes: f64,
    providers: Vec<usize>,
    /// By region: when it comes back, if it is dead.
    back_at: Vec<Option<f64>>,
    /// Memoryless repair, by group and region: when the present one is done.
    mended_at: Vec<f64>,
    /// Memoryless repair, by group and shard: its region.
    home: Vec<u16>,
    /// Groups to be planned as soon as everything of this moment has happened.
    to_plan: Vec<GroupIx>,
}

impl Fleet {
    /// A fleet in full strength.
    pub fn new(spec: Arc<Spec>, dice: Dice) -> Self {
        let groups = Groups::new(spec.clone());
        let (regions, n) = (spec.places.len(), spec.scheme.n());
        let homes = |group| groups.holders(group).iter().map(|node| groups.nodes.all[*node as usize].region);
        let home = (0..groups.count() as GroupIx).flat_map(homes).collect();
        Fleet {
            now: 0.0,
            dice,
            queue: Queue::default(),
            stats: Stats::new(regions),
            crew: Crew::new(regions),
            tilt: None,
            shard_bytes: spec.node_bytes * spec.nodes() as f64 / (groups.count() * n) as f64,
            providers: spec.providers(),
            back_at: vec![None; regions],
            mended_at: vec![f64::INFINITY; groups.count() * regions],
            home,
            to_plan: Vec::new(),
            groups,
            spec,
        }
    }

    /// The same fleet with other chance, and a group under study.
    pub fn restart(&self, dice: Dice, tilt: Option<Tilt>) -> Self {
        Fleet { dice, tilt, ..self.clone() }
    }

    /// Lives on until then, or until the group under study is lost if `at_loss` ends it.
    pub fn run(&mut self, until: f64, at_loss: bool) {
        loop {
            let special = self.special();
            let special_at = match self.tilt.take() {
                Some(mut tilt) => {
                    tilt.look(self, &special, until);
                    let at = tilt.fires_at();
                    self.tilt = Some(tilt);
                    at
                }
                None => self.now + self.dice.wait(special.iter().sum()),
            };
            let window_end = self.tilt.as_ref().map_or(f64::INFINITY, Tilt::window_end);
            let others = self.others();
            let other_at = self.now + self.dice.wait(others.iter().sum());
            let queue_at = self.queue.next_at();
            let next = special_at.min(window_end).min(other_at).min(queue_at);
            if next >= until {
                self.pass(until);
                self.tilt.iter_mut().for_each(|tilt| tilt.close(until));
                return;
            }
            self.pass(next);
            if next == queue_at {
                if let Some((_, event)) = self.queue.pop() {
                    self.take(event);
                }
            } else if next == special_at {
                self.strike(&special);
            } else if next == other_at {
                self.strike_others(&others);
            }
            if self.queue.next_at() > self.now {
                self.plan_all();
                self.dispatch();
            }
            if at_loss && self.tilt.as_ref().is_some_and(|tilt| self.stats.ever_lost.contains(&tilt.group)) {
                return;
            }
        }
    }

    fn pass(&mut self, next: f64) {
        self.stats.pass(next - self.now, self.crew.waiting());
        self.now = next;
    }

    fn failures(&self) -> Failures {
        self.spec.failures
    }

    /// Delays of real repair; `None` if repair is memoryless.
    pub fn shared(&self) -> Option<Shared> {
        match self.spec.mend {
            Mend::Memoryless { .. } => None,
            Mend::Shared(shared) => Some(shared),
        }
    }

    /// When a dead region comes back.
    pub fn back_at(&self, region: usize) -> Option<f64> {
        self.back_at[region]
    }

    /// Shards of the group under study that exist, with their holders.
    pub fn tagged(&self) -> Vec<(u8, NodeIx)> {
        let Some(tilt) = &self.tilt else { return Vec::new() };
        let holders = self.groups.holders(tilt.group).iter().copied();
        let intact = |(index, _): &(u8, NodeIx)| self.groups.is_intact(tilt.group, usize::from(*index));
        (0u8..).zip(holders).filter(intact).collect()
    }

    /// Rates of what may endanger the group under study, by [`Kind`]; without one, of what strikes whole regions.
    pub fn special(&self) -> Rates {
        let f = self.failures();
        let alive = self.back_at.iter().filter(|back| back.is_none()).count() as f64;
        let providers = self.live_providers().len() as f64;
        let tagged =
            self.tilt.as_ref().map_or(0, |tilt| usize::from(self.groups.intact[tilt.group as usize]));
        let shard_loss = f.node_loss + f.disk_loss;
        let (mend, back) = self.relief();
        let bursts = if self.tilt.is_some() { self.bursts_that_hit().iter().sum() } else { alive * f.burst };
        [tagged as f64 * shard_loss, alive * f.region_loss, bursts, providers * f.provider_loss, mend, back]
    }

    /// By region: bursts a year that destroy a node of the group under study.
    fn bursts_that_hit(&self) -> Vec<f64> {
        let f = self.failures();
        let mut nodes = vec![0; self.back_at.len()];
        if f.burst * f.burst_kill > 0.0 {
            self.tagged().into_iter().for_each(|(_, node)| nodes[self.groups.nodes.region(node)] += 1);
        }
        nodes
            .into_iter()
            .map(|count| f.burst * -(f64::from(count) * (-f.burst_kill).ln_1p()).exp_m1())
            .collect()
    }

    /// By region: those that do not.
    fn bursts_that_spare(&self) -> Vec<f64> {
        let all = self.failures().burst;
        let spare = |(back, hit): (&Option<f64>, f64)| if back.is_none() { all - hit } else { 0.0 };
        self.back_at.iter().zip(self.bursts_that_hit()).map(spare).collect()
    }

    /// Repair without a memory is one more Poisson process: for a group under study it is drawn among its failures.
    fn relief(&self) -> (f64, f64) {
        let (Some(tilt), Mend::Memoryless { repair }) = (&self.tilt, self.spec.mend) else {
            return (0.0, 0.0);
        };
        let dead = self.back_at.iter().filter(|back| back.is_some()).count() as f64;
        (self.owed(tilt.group).len() as f64 * repair, dead / self.failures().region_rebuild)
    }

    /// Live regions where a group misses shards.
    fn owed(&self, group: GroupIx) -> Vec<usize> {
        if usize::from(self.groups.intact[group as usize]) == self.spec.scheme.n() {
            return Vec::new();
        }
        let live = (0..self.back_at.len()).filter(|region| self.back_at[*region].is_none());
        live.filter(|region| self.missing_at(group, *region).is_some()).collect()
    }

    /// Whether memoryless repair of this group is drawn instead of foreseen.
    fn drawn(&self, group: Option<GroupIx>) -> bool {
        let tagged = self.tilt.as_ref().map(|tilt| tilt.group);
        tagged.is_some() && (group.is_none() || group == tagged) && self.shared().is_none()
    }

    fn live_providers(&self) -> Vec<usize> {
        let alive = self.providers.iter().zip(&self.back_at).filter(|(_, back)| back.is_none());
        let mut alive: Vec<usize> = alive.map(|(provider, _)| *provider).collect();
        alive.sort_unstable();
        alive.dedup();
        alive
    }

    /// Rates of everything else: losses of nodes and of disks, silences of nodes and of regions, bursts that spare the
    /// group under study.
    fn others(&self) -> [f64; 5] {
        let f = self.failures();
        let alive = self.groups.nodes.alive_count() as f64;
        let tagged =
            self.tilt.as_ref().map_or(0, |tilt| usize::from(self.groups.intact[tilt.group as usize]));
        let tagged = tagged as f64;
        [
            (alive - tagged).max(0.0) * f.node_loss,
            (alive * f64::from(f.disks) - tagged).max(0.0) * f.disk_loss,
            alive * f.outage,
            self.back_at.len() as f64 * f.region_outage,
            if self.tilt.is_some() { self.bursts_that_spare().iter().sum() } else { 0.0 },
        ]
    }

    fn strike(&mut self, special: &Rates) {
        let kind = match self.tilt.take() {
            Some(mut tilt) => {
                let strained = !self.stats.ever_lost.contains(&tilt.group);
                let kind = tilt.fire(&mut self.dice, special, strained);
                self.tilt = Some(tilt);
                kind
            }
            None => self.dice.pick(special),
        };
        match Kind::ALL[kind] {
            Kind::Shard => {
                let tagged = self.tagged();
                let (index, node) = tagged[self.dice.below(tagged.len())];
                let f = self.failures();
                if self.dice.chance(f.node_loss / (f.node_loss + f.disk_loss)) {
                    self.stats.node_losses += 1;
                    self.lose_node(node);
                } else if let Some(tilt) = &self.tilt {
                    let disk = self.disk_of(tilt.group, index);
                    self.lose_disk(node, disk);
                }
            }
            Kind::Region => {
                let region = self.some_live_region();
                self.lose_region(region);
            }
            Kind::Burst if self.tilt.is_none() => {
                let region = self.some_live_region();
                self.burst(region, false);
            }
            Kind::Burst => {
                let region = self.dice.pick(&self.bursts_that_hit());
                self.burst(region, true);
            }
            Kind::Provider => {
                let live = self.live_providers();
                let provider = live[self.dice.below(live.len())];
                self.stats.provider_losses += 1;
                let regions = (0..self.providers.len()).filter(|region| self.providers[*region] == provider);
                let regions: Vec<usize> = regions.filter(|region| self.back_at[*region].is_none()).collect();
                regions.into_iter().for_each(|region| self.lose_region(region));
            }
            Kind::Mend => {
                let group = self.tilt.as_ref().map_or(0, |tilt| tilt.group);
                let owed = self.owed(group);
                let region = owed[self.dice.below(owed.len())];
                self.mend_one(group, region);
            }
            Kind::RegionBack => {
                let dead: Vec<usize> =
                    (0..self.back_at.len()).filter(|region| self.back_at[*region].is_some()).collect();
                let region = dead[self.dice.below(dead.len())];
                self.region_back(region);
            }
        }
    }

    fn some_live_region(&mut self) -> usize {
        let live: Vec<usize> =
            (0..self.back_at.len()).filter(|region| self.back_at[*region].is_none()).collect();
        live[self.dice.below(live.len())]
    }

    fn strike_others(&mut self, others: &[f64; 5]) {
        match self.dice.pick(others) {
            0 => {
                let tagged = self.tagged();
                let node = loop {
                    let node = self.some_node();
                    if tagged.iter().all(|(_, other)| *other != node) {
                        break node;
                    }
                };
                self.stats.node_losses += 1;
                self.lose_node(node);
            }
            1 => {
                let tagged = self.tagged();
                let (node, disk) = loop {
                    let (node, disk) =
                        (self.some_node(), self.dice.below(self.failures().disks as usize) as u32);
                    let group = self.tilt.as_ref().map_or(0, |tilt| tilt.group);
                    if tagged.iter().all(|(i, other)| *other != node || self.disk_of(group, *i) != disk) {
                        break (node, disk);
                    }
                };
                self.lose_disk(node, disk);
            }
            2 => {
                let node = self.some_node();
                let back = self.now + self.dice.wait(YEAR_HOURS / self.failures().outage_hours);
                self.stats.outages += 1;
                self.silence(node, back);
            }
            3 => {
                let region = self.dice.below(self.back_at.len());
                let back = self.now + self.dice.wait(YEAR_HOURS / self.failures().region_outage_hours);
                self.stats.region_outages += 1;
                for node in self.groups.nodes.alive[region].clone() {
                    self.silence(node, back);
                }
                self.queue.push(back, Event::Sweep);
            }
            _ => {
                let region = self.dice.pick(&self.bursts_that_spare());
                self.burst(region, false);
            }
        }
    }

    fn some_node(&mut self) -> NodeIx {
        let mut at = self.dice.below(self.groups.nodes.alive_count());
        for region in &self.groups.nodes.alive {
            match region.get(at) {
                Some(node) => return *node,
                None => at -= region.len(),
            }
        }
        unreachable!("the place is below the sum of all lengths")
    }

    fn disk_of(&self, group: GroupIx, index: u8) -> u32 {
        (splitmix(group.into(), index.into()) % u64::from(self.failures().disks)) as u32
    }

    /// A node is gone for good.
    fn lose_node(&mut self, node: NodeIx) {
        let shards = self.groups.shards_on(node);
        let region = self.groups.nodes.region(node);
        self.groups.nodes.die(node);
        let Some(shared) = self.shared() else {
            self.groups.nodes.all[node as usize].state = NodeState::Retired;
            shards.iter().for_each(|(group, index)| self.groups.put(*group, usize::from(*index), NONE));
            self.groups.arrive(region);
            for (group, _) in shards {
                self.lose_shard(group);
                self.begin_mending(group, region);
            }
            return;
        };
        self.fall_silent(node, shared);
        if self.back_at[region].is_none() {
            self.queue.push(self.now + shared.replace_hours / YEAR_HOURS, Event::Replace(region));
        }
        shards.into_iter().for_each(|(group, _)| self.lose_shard(group));
    }

    fn lose_disk(&mut self, node: NodeIx, disk: u32) {
        self.stats.disk_losses += 1;
        let mut shards = self.groups.shards_on(node);
        shards.retain(|(group, index)| self.disk_of(*group, *index) == disk);
        let region = self.groups.nodes.region(node);
        for (group, index) in &shards {
            self.groups.put(*group, usize::from(*index), NONE);
            self.lose_shard(*group);
        }
        match self.shared() {
            None => shards.iter().for_each(|(group, _)| self.begin_mending(*group, region)),
            Some(shared) => {
                let groups = shards.into_iter().map(|(group, _)| group).collect();
                self.queue.push(self.now + shared.detect_hours / YEAR_HOURS, Event::Notice(groups));
            }
        }
    }

    /// `hits`: whether it destroys at least one node of the group under study, or none.
    fn burst(&mut self, region: usize, hits: bool) {
        self.stats.bursts += 1;
        let tagged = self.tagged();
        let tagged: Vec<NodeIx> = tagged.into_iter().map(|(_, node)| node).collect();
        let own = self.failures().burst_kill;
        let nodes = self.groups.nodes.alive[region].clone();
        let studied = nodes.iter().filter(|node| tagged.contains(node)).count();
        let mut hit = match self.tilt.take() {
            tilt if !hits => {
                self.tilt = tilt;
                Vec::new()
            }
            Some(mut tilt) => {
                let hit = tilt.burst(&mut self.dice, own, studied);
                self.tilt = Some(tilt);
                hit
            }
            None => Vec::new(),
        }
        .into_iter();
        let mut victims = Vec::new();
        for node in nodes {
            let dies = if tagged.contains(&node) { hit.next() == Some(true) } else { self.dice.chance(own) };
            if dies {
                victims.push(node);
            }
        }
        self.stats.burst_kills += victims.len() as u64;
        victims.into_iter().for_each(|node| self.lose_node(node));
    }

    fn lose_region(&mut self, region: usize) {
        self.stats.region_losses += 1;
        self.touch();
        if self.drawn(None) {
            self.back_at[region] = Some(f64::INFINITY);
        } else {
            let back = self.now + self.dice.wait(1.0 / self.failures().region_rebuild);
            self.back_at[region] = Some(back);
            self.queue.push(back, Event::RegionBack(region));
        }
        if self.shared().is_some() {
            self.groups.nodes.alive[region].clone().into_iter().for_each(|node| self.lose_node(node));
            return;
        }
        let regions = self.back_at.len();
        self.mended_at.iter_mut().skip(region).step_by(regions).for_each(|at| *at = f64::INFINITY);
        // The catalogue goes on expecting these shards there, and so does their node.
        for node in self.groups.nodes.alive[region].clone() {
            let shards = self.groups.shards_on(node);
            self.groups.nodes.die(node);
            shards.into_iter().for_each(|(group, _)| self.lose_shard(group));
        }
    }

    /// One shard less in a group.
    fn lose_shard(&mut self, group: GroupIx) {
        let at = group as usize;
        self.groups.intact[at] -= 1;
        self.touch_if(group);
        if usize::from(self.groups.intact[at]) < self.spec.scheme.k() && !self.groups.lost[at] {
            self.groups.lost[at] = true;
            let dead_regions = self.back_at.iter().filter(|back| back.is_some()).count();
            self.stats.lose(Loss { at: self.now, group, dead_regions });
            if self.shared().is_some() {
                self.queue.push(self.now, Event::Renew(group));
            }
        }
    }

    /// One shard more.
    pub fn gain_shard(&mut self, group: GroupIx) {
        let at = group as usize;
        self.groups.intact[at] += 1;
        self.touch_if(group);
        if usize::from(self.groups.intact[at]) == self.spec.scheme.n() {
            self.groups.lost[at] = false;
        }
    }

    fn touch_if(&mut self, group: GroupIx) {
        if self.tilt.as_ref().is_some_and(|tilt| tilt.group == group) {
            self.touch();
        }
    }

    fn touch(&mut self) {
        let now = self.now;
        self.tilt.iter_mut().for_each(|tilt| tilt.touch(now));
    }

    fn silence(&mut self, node: NodeIx, back: f64) {
        let Some(shared) = self.shared() else { return };
        if self.groups.nodes.all[node as usize].state == NodeState::Up {
            self.fall_silent(node, shared);
            let stamp = self.groups.nodes.all[node as usize].stamp;
            self.queue.push(back, Event::Return(node, stamp));
        }
    }

    fn fall_silent(&mut self, node: NodeIx, shared: Shared) {
        let it = &mut self.groups.nodes.all[node as usize];
        it.stamp += 1;
        if it.state.counts() {
            it.state = NodeState::Down;
            self.queue.push(self.now + shared.patience(), Event::Declare(node, it.stamp));
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Mended(group, region) => self.mend(group, region),
            Event::RegionBack(region) => self.region_back(region),
            Event::Return(node, stamp) => {
                let it = &mut self.groups.nodes.all[node as usize];
                if it.stamp == stamp && it.data {
                    let was_lost = !it.state.counts();
                    (it.state, it.stamp) = (NodeState::Up, stamp + 1);
                    if was_lost {
                        self.plan_holders_of(node);
                    }
                }
            }
            Event::Declare(node, stamp) => {
                let it = &mut self.groups.nodes.all[node as usize];
                if it.stamp == stamp {
                    it.state = NodeState::Lost;
                    self.stats.declared += 1;
                    self.plan_holders_of(node);
                }
            }
            Event::Replace(region) => {
                // A few groups may have waited for a place; after the end of a region all do, and are swept in the end.
                const AT_ONCE: usize = 1_000;
                if self.back_at[region].is_none() {
                    self.groups.arrive(region);
                    if self.crew.below_target.len() <= AT_ONCE {
                        self.sweep();
                    }
                }
            }
            Event::Notice(groups) => self.to_plan.extend(groups),
            Event::Done(group, index, stamp) => self.finish(group, index, stamp),
            Event::Renew(group) => self.renew(group),
            Event::Sweep => self.sweep(),
        }
    }

    fn plan_holders_of(&mut self, node: NodeIx) {
        self.to_plan.extend(self.groups.shards_on(node).into_iter().map(|(group, _)| group));
    }

    fn sweep(&mut self) {
        self.to_plan.extend(&self.crew.below_target);
    }

    fn plan_all(&mut self) {
        let mut groups = std::mem::take(&mut self.to_plan);
        groups.sort_unstable();
        groups.dedup();
        groups.into_iter().for_each(|group| self.plan(group));
    }

    fn region_back(&mut self, region: usize) {
        self.back_at[region] = None;
        self.touch();
        if self.shared().is_some() {
            (0..self.spec.places[region].1).for_each(|_| {
                self.groups.arrive(region);
            });
            self.sweep();
            return;
        }
        let nodes = 0..self.groups.nodes.all.len() as NodeIx;
        let here = |node: &NodeIx| {
            self.groups.nodes.region(*node) == region
                && self.groups.nodes.all[*node as usize].state == NodeState::Up
        };
        for node in nodes.filter(here).collect::<Vec<_>>() {
            self.groups.nodes.revive(node);
            self.groups.shards_on(node).into_iter().for_each(|(group, _)| self.gain_shard(group));
        }
        for group in 0..self.groups.count() as GroupIx {
            while self.mend_one(group, region) {}
        }
    }

    fn begin_mending(&mut self, group: GroupIx, region: usize) {
        let Mend::Memoryless { repair } = self.spec.mend else { return };
        if self.drawn(Some(group)) {
            return;
        }
        let regions = self.back_at.len();
        let at = group as usize * regions + region;
        if self.mended_at[at].is_infinite() && self.back_at[region].is_none() {
            self.mended_at[at] = self.now + self.dice.wait(repair);
            self.queue.push(self.mended_at[at], Event::Mended(group, region));
        }
    }

    fn mend(&mut self, group: GroupIx, region: usize) {
        let at = group as usize * self.back_at.len() + region;
        // Another time was set, or none: the region died meanwhile.
        if self.mended_at[at] != self.now {
            return;
        }
        self.mended_at[at] = f64::INFINITY;
        self.mend_one(group, region);
        if self.missing_at(group, region).is_some() {
            self.begin_mending(group, region);
        }
    }

    /// A shard that nobody holds and that belongs into this region.
    fn missing_at(&self, group: GroupIx, region: usize) -> Option<usize> {
        let first = group as usize * self.spec.scheme.n();
        let holders = self.groups.holders(group);
        (0..holders.len()).find(|i| holders[*i] == NONE && usize::from(self.home[first + i]) == region)
    }

    /// Places one missing shard in this region, on the node that placement names. Which of several missing shards goes
    /// where is all the same, so two may change homes.
    fn mend_one(&mut self, group: GroupIx, region: usize) -> bool {
        let Some(owed) = self.missing_at(group, region) else { return false };
        let held = self.groups.holders(group).to_vec();
        let (wanted, _) = self.groups.wanted(group, &held);
        let fits = |i: &usize| {
            held[*i] == NONE && wanted[*i] != NONE && self.groups.nodes.region(wanted[*i]) == region
        };
        let Some(index) = (0..held.len()).find(fits) else { return false };
        let first = group as usize * held.len();
        self.home.swap(first + owed, first + index);
        self.count_bytes(group, index, wanted[index]);
        self.groups.put(group, index, wanted[index]);
        self.gain_shard(group);
        true
    }
}
