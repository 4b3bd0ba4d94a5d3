//! Repair as the product does it, on bandwidth that all of it shares: what is missing is planned onto the nodes that
//! placement names, and started in the product's order of urgency as soon as the target and the link into its region
//! have room. Sources are not limited: they are k times as many as targets.

use super::groups::{GroupIx, NONE, NodeIx};
use super::life::{Event, Fleet};
use farshore_core::id::PackNo;
use farshore_core::placement::Level;
use farshore_core::reliability::region::YEAR_HOURS;
use farshore_node::plan::{Priority, Urgency};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

/// Seconds of a year.
pub const YEAR_SECONDS: f64 = YEAR_HOURS * 3_600.0;

/// What is planned and under way.
#[derive(Clone, Debug, Default)]
pub struct Crew {
    tasks: BTreeMap<(GroupIx, u8), Task>,
    /// By region of the target: tasks that wait for the link. An entry may be stale; its task knows better.
    waiting: Vec<BinaryHeap<Reverse<Urgency>>>,
    /// Tasks that wait for a target that is busy.
    at_node: BTreeMap<NodeIx, BinaryHeap<Reverse<Urgency>>>,
    busy: BTreeSet<NodeIx>,
    /// By region: bytes a second taken by running tasks.
    link_used: Vec<f64>,
    running: usize,
    stamp: u64,
    /// Groups that are placed less well than they should be.
    pub below_target: BTreeSet<GroupIx>,
}

#[derive(Clone, Copy, Debug)]
struct Task {
    to: NodeIx,
    born: f64,
    /// Stamp, end, and bytes a second of the link, once it runs.
    run: Option<(u64, f64, f64)>,
}

impl Crew {
    /// Nothing to do.
    pub fn new(regions: usize) -> Self {
        let waiting = vec![BinaryHeap::new(); regions];
        Crew { waiting, link_used: vec![0.0; regions], ..Crew::default() }
    }

    /// Planned tasks that do not run yet.
    pub fn waiting(&self) -> usize {
        self.tasks.len() - self.running
    }

    /// When the first running task of a group ends.
    pub fn next_done(&self, group: GroupIx) -> f64 {
        let tasks = self.tasks.range((group, 0)..=(group, u8::MAX));
        tasks.filter_map(|(_, task)| task.run).map(|run| run.1).fold(f64::INFINITY, f64::min)
    }
}

impl Fleet {
    /// Holders whose shards count for the catalogue, by index.
    fn good(&self, group: GroupIx) -> Vec<NodeIx> {
        let counts = |node: &NodeIx| *node != NONE && self.groups.nodes.all[*node as usize].state.counts();
        self.groups.holders(group).iter().map(|node| if counts(node) { *node } else { NONE }).collect()
    }

    fn priority(&self, group: GroupIx) -> Priority {
        let good = self.good(group).into_iter().filter(|node| *node != NONE);
        Priority::of(self.spec.scheme.k(), good.map(|node| self.groups.nodes.region(node)))
    }

    /// Plans a group: tasks for shards that should be elsewhere, none for those that should not.
    pub fn plan(&mut self, group: GroupIx) {
        let good = self.good(group);
        if good.iter().filter(|node| **node != NONE).count() < self.spec.scheme.k() {
            return;
        }
        let mut seats = good.clone();
        for (index, seat) in seats.iter_mut().enumerate() {
            let planned = self.crew.tasks.get(&(group, index as u8)).map(|task| task.to);
            if let Some(to) = planned.filter(|to| self.groups.nodes.all[*to as usize].state.takes_shards()) {
                *seat = to;
            }
        }
        // Shards that are back need no task; without this their targets would be kept like holders.
        let unneeded = |i: usize| good[i] != NONE && self.is_idle(group, i as u8) && seats[i] != good[i];
        let returned: Vec<usize> = (0..good.len()).filter(|i| unneeded(*i)).collect();
        for index in returned {
            self.cancel((group, index as u8));
            seats[index] = good[index];
        }
        if seats == good && !good.contains(&NONE) && !self.crew.below_target.contains(&group) {
            return;
        }
        let (wanted, level) = self.groups.wanted(group, &seats);
        match level {
            Level::Full => self.crew.below_target.remove(&group),
            _ => self.crew.below_target.insert(group),
        };
        let priority = self.priority(group);
        for (index, to) in (0u8..).zip(wanted) {
            let key = (group, index);
            if self.crew.tasks.get(&key).is_some_and(|task| task.run.is_some()) {
                continue;
            }
            let born = self.crew.tasks.get(&key).map_or(self.now, |task| task.born);
            if self.crew.tasks.get(&key).is_some_and(|task| task.to != to) {
                self.cancel(key);
            }
            if to == NONE || to == good[usize::from(index)] {
                continue;
            }
            self.crew.tasks.insert(key, Task { to, born, run: None });
            let urgency = (priority, PackNo(group.into()), index);
            self.crew.waiting[self.groups.nodes.region(to)].push(Reverse(urgency));
        }
    }

    /// Gives up a task that does not run. It may have been its target's next.
    fn cancel(&mut self, key: (GroupIx, u8)) {
        if let Some(task) = self.crew.tasks.remove(&key)
            && !self.crew.busy.contains(&task.to)
        {
            self.admit_next(task.to, self.groups.nodes.region(task.to));
        }
    }

    fn is_idle(&self, group: GroupIx, index: u8) -> bool {
        self.crew.tasks.get(&(group, index)).is_some_and(|task| task.run.is_none())
    }

    /// Starts all that can be, the most urgent of all regions first.
    pub fn dispatch(&mut self) {
        let Some(shared) = self.shared() else { return };
        let mut blocked = vec![false; self.crew.waiting.len()];
        while shared.in_flight == 0 || self.crew.running < shared.in_flight {
            let open = (0..blocked.len()).filter(|region| !blocked[*region]);
            let first = open.filter_map(|region| Some((self.crew.waiting[region].peek()?.0, region))).min();
            let Some((urgency, region)) = first else { return };
            self.crew.waiting[region].pop();
            let key = (urgency.1.0 as GroupIx, urgency.2);
            let Some(task) = self.crew.tasks.get(&key).copied().filter(|task| task.run.is_none()) else {
                continue;
            };
            if !self.groups.nodes.all[task.to as usize].state.takes_shards() {
                self.cancel(key);
                self.plan(key.0);
                continue;
            }
            let now = (self.priority(key.0), urgency.1, urgency.2);
            let target_region = self.groups.nodes.region(task.to);
            if now > urgency || target_region != region {
                self.crew.waiting[target_region].push(Reverse(now));
                continue;
            }
            if self.crew.busy.contains(&task.to) {
                self.crew.at_node.entry(task.to).or_default().push(Reverse(urgency));
                continue;
            }
            let cross =
                self.sources(key.0, key.1.into(), task.to).into_iter().filter(|from| *from != region).count();
            let need = cross as f64 * shared.node_bytes_s;
            if self.crew.link_used[region] > 0.0 && self.crew.link_used[region] + need > shared.link_bytes_s {
                self.crew.waiting[region].push(Reverse(urgency));
                blocked[region] = true;
                continue;
            }
            let pace = shared.node_bytes_s * (shared.link_bytes_s / need.max(1e-9)).min(1.0);
            self.begin(key, task, self.shard_bytes / pace / YEAR_SECONDS, need);
        }
    }

    fn begin(&mut self, key: (GroupIx, u8), task: Task, years: f64, need: f64) {
        self.crew.stamp += 1;
        let (stamp, end) = (self.crew.stamp, self.now + years);
        self.crew.tasks.insert(key, Task { run: Some((stamp, end, need)), ..task });
        self.crew.busy.insert(task.to);
        self.crew.link_used[self.groups.nodes.region(task.to)] += need;
        self.crew.running += 1;
        self.queue.push(end, Event::Done(key.0, key.1, stamp));
    }

    /// A rebuild ends; it counts if its target is still there and there was enough to read.
    pub fn finish(&mut self, group: GroupIx, index: u8, stamp: u64) {
        let key = (group, index);
        let Some(task) = self.crew.tasks.get(&key).copied() else { return };
        let Some((own, _, need)) = task.run else { return };
        if own != stamp {
            return;
        }
        self.release(key, task, need);
        let readable = usize::from(self.groups.intact[group as usize]) >= self.spec.scheme.k();
        let target = &self.groups.nodes.all[task.to as usize];
        if !(target.data && target.state.takes_shards() && readable) {
            self.plan(group);
            return;
        }
        self.count_bytes(group, index.into(), task.to);
        let (at, was_intact) = (usize::from(index), self.groups.is_intact(group, index.into()));
        self.groups.put(group, at, task.to);
        if !was_intact {
            self.gain_shard(group);
        }
        self.stats.mended(self.now - task.born);
    }

    fn release(&mut self, key: (GroupIx, u8), task: Task, need: f64) {
        let region = self.groups.nodes.region(task.to);
        self.crew.tasks.remove(&key);
        self.crew.busy.remove(&task.to);
        self.crew.running -= 1;
        let used = self.crew.link_used[region] - need;
        // Sums of equal numbers, but not in one order.
        self.crew.link_used[region] = if used < 1.0 { 0.0 } else { used };
        self.admit_next(task.to, region);
    }

    /// Lets the most urgent of those who waited for a target have their turn; all of them, if it takes no shards any
    /// more and they need another one.
    fn admit_next(&mut self, target: NodeIx, region: usize) {
        let open = self.groups.nodes.all[target as usize].state.takes_shards();
        while let Some(first) = self.crew.at_node.get_mut(&target).and_then(BinaryHeap::pop) {
            let key = (first.0.1.0 as GroupIx, first.0.2);
            let waits = |task: &Task| task.run.is_none() && task.to == target;
            if self.crew.tasks.get(&key).is_some_and(waits) {
                self.crew.waiting[region].push(first);
                if open {
                    return;
                }
            }
        }
        self.crew.at_node.remove(&target);
    }

    /// Regions that the bytes for a shard come from, one entry for each shard read: the copy itself if it exists, else
    /// k others, those of the target's region first.
    fn sources(&self, group: GroupIx, index: usize, to: NodeIx) -> Vec<usize> {
        let answers = |i: usize, node: NodeIx| {
            self.groups.is_intact(group, i) && self.groups.nodes.all[node as usize].state.answers()
                || self.shared().is_none() && self.groups.is_intact(group, i)
        };
        let holders = self.groups.holders(group);
        if answers(index, holders[index]) {
            return vec![self.groups.nodes.region(holders[index])];
        }
        let live = (0..holders.len()).filter(|i| answers(*i, holders[*i]));
        let mut regions: Vec<usize> = live.map(|i| self.groups.nodes.region(holders[i])).collect();
        let own = self.groups.nodes.region(to);
        regions.sort_by_key(|region| *region != own);
        regions.truncate(self.spec.scheme.k());
        regions
    }

    /// Counts what one rebuilt shard moves over the links.
    pub fn count_bytes(&mut self, group: GroupIx, index: usize, to: NodeIx) {
        let own = self.groups.nodes.region(to);
        let sources = self.sources(group, index, to);
        let moved = sources.len() == 1 && self.spec.scheme.k() > 1;
        self.stats.count(sources, own, self.shard_bytes, moved);
    }

    /// The lost group's stripes are given up and others written in their place, so that the fleet lives on.
    pub fn renew(&mut self, group: GroupIx) {
        for index in 0..self.spec.scheme.n() as u8 {
            let key = (group, index);
            match self.crew.tasks.get(&key).copied() {
                Some(task) if task.run.is_some() => {
                    let need = task.run.map_or(0.0, |run| run.2);
                    self.release(key, task, need);
                }
                _ => self.cancel(key),
            }
        }
        let n = self.spec.scheme.n();
        let keeps = |i: usize| self.groups.is_intact(group, i);
        let held: Vec<NodeIx> =
            (0..n).map(|i| if keeps(i) { self.groups.holders(group)[i] } else { NONE }).collect();
        let (wanted, _) = self.groups.wanted(group, &held);
        for (index, to) in wanted.into_iter().enumerate() {
            if held[index] == NONE && to != NONE {
                self.groups.put(group, index, to);
                self.gain_shard(group);
            }
        }
        self.groups.lost[group as usize] =
            usize::from(self.groups.intact[group as usize]) < self.spec.scheme.k();
        self.crew.below_target.insert(group);
    }
}
