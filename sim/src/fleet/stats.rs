//! What a fleet has been through: counts, bytes and waiting times.

use super::groups::GroupIx;
use std::collections::BTreeSet;

/// A group that fell below k.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Loss {
    /// Years since the beginning.
    pub at: f64,
    /// Which.
    pub group: GroupIx,
    /// Dead regions at that moment.
    pub dead_regions: usize,
}

/// Everything counted.
#[derive(Clone, Debug, Default)]
pub struct Stats {
    /// Nodes lost one by one.
    pub node_losses: u64,
    /// Disks lost.
    pub disk_losses: u64,
    /// Nodes that fell silent by themselves.
    pub outages: u64,
    /// Regions that fell silent.
    pub region_outages: u64,
    /// Regions lost.
    pub region_losses: u64,
    /// Providers lost.
    pub provider_losses: u64,
    /// Bursts.
    pub bursts: u64,
    /// Nodes they destroyed.
    pub burst_kills: u64,
    /// Nodes called lost.
    pub declared: u64,
    /// Groups' shards rebuilt from others.
    pub rebuilt: u64,
    /// Groups' shards moved as they were.
    pub moved: u64,
    /// Groups that fell below k.
    pub losses: Vec<Loss>,
    /// Groups that did so at least once.
    pub ever_lost: BTreeSet<GroupIx>,
    /// Bytes from region to region, row by row.
    pub bytes: Vec<f64>,
    regions: usize,
    waiting_years: f64,
    /// Most tasks that waited at the same time.
    pub waiting_most: usize,
    /// By power of two of seconds: tasks that took so long from plan to end.
    hours: Vec<u64>,
    mended_years: f64,
    mended_longest: f64,
}

/// How long repairs took from plan to end, in hours.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Waits {
    /// Mean.
    pub mean: f64,
    /// Half of them took no longer; exact to a factor of two, like the next.
    pub half: f64,
    /// 99 of 100 took no longer.
    pub most: f64,
    /// The longest.
    pub longest: f64,
}

impl Stats {
    /// Nothing yet.
    pub fn new(regions: usize) -> Self {
        Stats { bytes: vec![0.0; regions * regions], regions, hours: vec![0; 64], ..Stats::default() }
    }

    /// Time goes by with so many tasks waiting.
    pub fn pass(&mut self, years: f64, waiting: usize) {
        self.waiting_years += years * waiting as f64;
        self.waiting_most = self.waiting_most.max(waiting);
    }

    /// Mean number of tasks that waited.
    pub fn waiting_mean(&self, years: f64) -> f64 {
        self.waiting_years / years
    }

    /// A group is lost.
    pub fn lose(&mut self, loss: Loss) {
        self.losses.push(loss);
        self.ever_lost.insert(loss.group);
    }

    /// A shard was made from sources in these regions.
    pub fn count(&mut self, sources: Vec<usize>, to: usize, bytes: f64, moved: bool) {
        *(if moved { &mut self.moved } else { &mut self.rebuilt }) += 1;
        sources.into_iter().for_each(|from| self.bytes[from * self.regions + to] += bytes);
    }

    /// Bytes sent from one region to another.
    pub fn sent(&self, from: usize, to: usize) -> f64 {
        self.bytes[from * self.regions + to]
    }

    /// A task took so long.
    pub fn mended(&mut self, years: f64) {
        let seconds = years * super::crew::YEAR_SECONDS;
        self.hours[seconds.max(1.0).log2().clamp(0.0, 63.0) as usize] += 1;
        self.mended_years += years;
        self.mended_longest = self.mended_longest.max(years);
    }

    /// Waiting times.
    pub fn waits(&self) -> Waits {
        const HOURS: f64 = farshore_core::reliability::region::YEAR_HOURS;
        let all: u64 = self.hours.iter().sum();
        if all == 0 {
            return Waits::default();
        }
        let upto = |share: f64| {
            let mut left = (all as f64 * share).ceil() as u64;
            let class = self.hours.iter().position(|count| {
                let within = left <= *count;
                left = left.saturating_sub(*count);
                within
            });
            (2f64.powi(class.unwrap_or(0) as i32 + 1) / 3_600.0).min(self.mended_longest * HOURS)
        };
        let mean = self.mended_years * HOURS / all as f64;
        Waits { mean, half: upto(0.5), most: upto(0.99), longest: self.mended_longest * HOURS }
    }
}
