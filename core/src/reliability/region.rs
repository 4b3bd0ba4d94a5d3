//! D8 and D9: one stripe over regions that can die, with repair one shard at a time in each region.
//!
//! A state is what each region has lost: 0 to s shards, or everything at once with the region itself, which takes far
//! longer to come back. Regions that nothing tells apart are sorted. The chain holds where shards fail independently
//! but for the events named here, and where repair neither waits for other stripes nor moves a dead region's shards
//! elsewhere; the fleet model (`farshore-sim fleet`) shows what becomes of it where it does not.

use super::{BadModel, Chain, Grid, binomial, positive, probability, rate};
use std::collections::BTreeMap;

/// Hours of a year.
pub const YEAR_HOURS: f64 = 365.25 * 24.0;

/// How often things fail and how fast they are mended, a year.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rates {
    /// Permanent loss of one node.
    pub node_loss: f64,
    /// Repair of a shard from its own region, where the code can.
    pub repair_local: f64,
    /// Repair of a shard with help of other regions.
    pub repair_cross: f64,
    /// Permanent loss of one region.
    pub region_loss: f64,
    /// A lost region is whole again, somewhere.
    pub region_rebuild: f64,
    /// Bursts, such as power cuts, in one region.
    pub burst: f64,
    /// Probability that a burst takes a certain node along.
    pub burst_kill: f64,
    /// Loss of a whole provider with all its regions.
    pub provider_loss: f64,
}

impl Rates {
    /// Nodes at 2 % a year, repaired in 6 and 24 hours; nothing else ever happens.
    pub const NODES_ONLY: Rates = Rates {
        node_loss: 0.02,
        repair_local: YEAR_HOURS / 6.0,
        repair_cross: YEAR_HOURS / 24.0,
        region_loss: 0.0,
        region_rebuild: 12.0,
        burst: 0.0,
        burst_kill: 0.0,
        provider_loss: 0.0,
    };
    /// And a region dies once in a thousand years, is rebuilt in a month, and has one small burst a year.
    pub const NOMINAL: Rates = Rates { region_loss: 1e-3, burst: 1.0, burst_kill: 0.01, ..Rates::NODES_ONLY };
    /// Everything ten times as bad, and slower to mend.
    pub const PESSIMISTIC: Rates = Rates {
        node_loss: 0.10,
        repair_local: YEAR_HOURS / 24.0,
        repair_cross: YEAR_HOURS / 72.0,
        region_loss: 1e-2,
        region_rebuild: 4.0,
        burst: 2.0,
        burst_kill: 0.05,
        provider_loss: 0.0,
    };
    /// Like nothing on earth, so that plain simulation sees losses.
    pub const ACCELERATED: Rates = Rates {
        node_loss: 1.0,
        repair_local: 50.0,
        repair_cross: 20.0,
        region_loss: 0.3,
        region_rebuild: 6.0,
        burst: 2.0,
        burst_kill: 0.2,
        provider_loss: 0.0,
    };

    /// Whether all of them are usable.
    pub fn check(&self) -> Result<(), BadModel> {
        rate("node loss", self.node_loss)?;
        positive("local repair", self.repair_local)?;
        positive("repair", self.repair_cross)?;
        rate("region loss", self.region_loss)?;
        positive("region rebuild", self.region_rebuild)?;
        rate("burst", self.burst)?;
        probability("burst kill", self.burst_kill)?;
        rate("provider loss", self.provider_loss)?;
        Ok(())
    }
}

/// D8, built.
#[derive(Clone, Debug)]
pub struct RegionModel {
    chain: Chain,
}

/// Losses by region: up to s shards, or s + 1 for a dead region. Regions of one provider stand together.
type Losses = Vec<usize>;

impl RegionModel {
    /// Every region is a provider of its own.
    pub fn new(grid: Grid, rates: &Rates) -> Result<Self, BadModel> {
        RegionModel::with_providers(grid, rates, &vec![1; grid.regions()])
    }

    /// `providers` says how many regions each provider has.
    pub fn with_providers(grid: Grid, rates: &Rates, providers: &[usize]) -> Result<Self, BadModel> {
        rates.check()?;
        if providers.contains(&0) || providers.iter().sum::<usize>() != grid.regions() {
            return Err(BadModel::Shape("the providers' regions are the grid's regions"));
        }
        let mut providers = providers.to_vec();
        providers.sort_unstable();
        let mut known = BTreeMap::from([(vec![0; grid.regions()], 0)]);
        let mut chain = Chain::new(1)?;
        let mut open = vec![vec![0; grid.regions()]];
        while let Some(losses) = open.pop() {
            let from = known[&losses];
            for (next, per_year) in events(grid, rates, &providers, &losses) {
                if !grid.decodes(next.iter().copied()) {
                    chain.lose(from, per_year)?;
                    continue;
                }
                let next = sorted(next, &providers);
                let to = match known.get(&next) {
                    Some(to) => *to,
                    None => {
                        let to = chain.push()?;
                        known.insert(next.clone(), to);
                        open.push(next);
                        to
                    }
                };
                chain.step(from, to, per_year)?;
            }
        }
        Ok(RegionModel { chain })
    }

    /// States of the chain.
    pub fn states(&self) -> usize {
        self.chain.len()
    }

    /// Losses of one stripe a year in the long run: 1 / mean time to loss, and 0 if it is never lost.
    pub fn annual_loss(&self) -> Result<f64, BadModel> {
        match self.chain.mean_time(0) {
            Ok(years) => Ok(1.0 / years),
            Err(BadModel::NeverLost) => Ok(0.0),
            Err(e) => Err(e),
        }
    }

    /// Probability that a stripe that is whole now is lost within so many years.
    pub fn lost_by(&self, years: f64) -> Result<f64, BadModel> {
        self.chain.lost_by(0, years)
    }
}

/// What can happen next, and how often.
fn events(grid: Grid, rates: &Rates, providers: &[usize], losses: &Losses) -> Vec<(Losses, f64)> {
    let (s, dead) = (grid.shards(), grid.shards() + 1);
    let mut events = Vec::new();
    let mut add = |region: usize, to: usize, per_year: f64| {
        if per_year > 0.0 {
            let mut next = losses.clone();
            next[region] = to;
            events.push((next, per_year));
        }
    };
    for (region, lost) in losses.iter().copied().enumerate() {
        if lost == dead {
            add(region, 0, rates.region_rebuild);
            continue;
        }
        let left = s - lost;
        add(region, dead, rates.region_loss);
        if lost > 0 {
            let pace = if lost <= grid.local() { rates.repair_local } else { rates.repair_cross };
            add(region, lost - 1, pace);
        }
        for hit in 1..=left {
            let alone = if hit == 1 { left as f64 * rates.node_loss } else { 0.0 };
            add(region, lost + hit, alone + rates.burst * binomial(left, hit, rates.burst_kill));
        }
    }
    let mut first = 0;
    for regions in providers {
        let mut next = losses.clone();
        next[first..first + regions].fill(dead);
        if rates.provider_loss > 0.0 && next != *losses {
            events.push((next, rates.provider_loss));
        }
        first += regions;
    }
    events
}

/// The one form of a state among those that differ by names only. `providers` ascends, so equals are neighbours.
fn sorted(losses: Losses, providers: &[usize]) -> Losses {
    let mut rest = losses.as_slice();
    let mut parts: Vec<Vec<usize>> = Vec::new();
    for regions in providers {
        let (part, after) = rest.split_at(*regions);
        rest = after;
        let mut part = part.to_vec();
        part.sort_unstable_by(|a, b| b.cmp(a));
        parts.push(part);
    }
    parts.sort_by(|a, b| a.len().cmp(&b.len()).then_with(|| b.cmp(a)));
    parts.concat()
}

/// D9: losses a year that no number of shards helps against: f + 1 regions die within each other's rebuild time.
/// R!/(R−f−1)! · λ^(f+1) · τ^f / f!, for rebuilds independent of each other.
pub fn floor(regions: usize, survived: usize, region_loss: f64, rebuild_years: f64) -> Result<f64, BadModel> {
    let (loss, rebuild) = (rate("region loss", region_loss)?, rate("rebuild time", rebuild_years)?);
    if survived >= regions || regions > crate::limits::STRIPE_SHARDS_MAX {
        return Err(BadModel::Shape("of at most 32 regions at least one is not survived"));
    }
    let ordered: f64 = (0..=survived).map(|i| (regions - i) as f64).product();
    let times: f64 = (1..=survived).map(|i| rebuild / i as f64).product();
    Ok(ordered * loss.powi(survived as i32 + 1) * times)
}

#[cfg(test)]
mod tests {
    use super::super::tests::close;
    use super::*;

    fn rs(regions: usize, shards: usize, m: usize) -> Grid {
        Grid::reed_solomon(regions, shards, m).unwrap()
    }
    fn mrl(regions: usize, shards: usize, h: usize) -> Grid {
        Grid::new(regions, shards, 1, h).unwrap()
    }
    fn annual(grid: Grid, rates: &Rates) -> f64 {
        RegionModel::new(grid, rates).unwrap().annual_loss().unwrap()
    }

    #[test]
    fn d8_the_table_of_annual_losses() {
        // Nodes only, nominal, pessimistic; printed with two digits.
        let table = [
            (rs(3, 1, 2), [1.8e-10, 2.5e-9, 1.1e-5]),
            (rs(4, 1, 3), [1.3e-14, 5.6e-13, 5.9e-8]),
            (rs(5, 1, 4), [9.0e-19, 1.2e-16, 3.0e-10]),
            (rs(2, 1, 1), [2.2e-6, 1.0e-5, 1.7e-3]),
            (rs(3, 3, 3), [3.0e-12, 4.6e-5, 7.1e-3]),
            (rs(3, 3, 4), [3.4e-16, 6.7e-7, 4.3e-4]),
            (rs(3, 4, 5), [3.6e-19, 8.4e-7, 6.8e-4]),
            (rs(3, 5, 6), [4.0e-22, 1.1e-6, 9.9e-4]),
            (rs(3, 6, 8), [9.2e-29, 5.1e-7, 2.5e-4]),
            (mrl(3, 4, 3), [4.3e-21, 8.1e-7, 5.9e-4]),
            (mrl(3, 5, 4), [3.9e-24, 1.0e-6, 8.5e-4]),
            (mrl(3, 8, 7), [4.8e-33, 1.9e-6, 1.9e-3]),
            (rs(4, 4, 6), [3.6e-22, 1.0e-6, 3.5e-4]),
            (rs(4, 5, 6), [2.7e-21, 2.2e-6, 2.1e-3]),
            (rs(5, 3, 7), [1.3e-26, 2.9e-10, 6.0e-6]),
            (rs(5, 4, 6), [1.7e-21, 1.7e-6, 6.1e-4]),
            (rs(5, 4, 9), [7.1e-33, 3.6e-10, 9.6e-6]),
            (mrl(5, 5, 8), [9.7e-43, 4.3e-10, 1.1e-5]),
        ];
        for (grid, expected) in table {
            let rates = [&Rates::NODES_ONLY, &Rates::NOMINAL, &Rates::PESSIMISTIC];
            rates
                .iter()
                .zip(expected)
                .for_each(|(rates, expected)| close(annual(grid, rates), expected, 0.05));
        }
    }

    #[test]
    fn d8_sensitivity_to_regions() {
        let of = |grid, region_loss, days: f64| {
            annual(grid, &Rates { region_loss, region_rebuild: 365.25 / days, ..Rates::NOMINAL })
        };
        close(of(rs(3, 5, 6), 1e-4, 30.0), 6.0e-8, 0.05);
        close(of(rs(3, 5, 6), 1e-2, 3.0), 5.6e-6, 0.05);
        close(of(rs(4, 4, 6), 1e-3, 3.0), 9.9e-8, 0.05);
        close(of(rs(5, 4, 9), 1e-2, 3.0), 2.3e-9, 0.05);
        close(of(rs(3, 1, 2), 1e-4, 3.0), 6.2e-10, 0.05);
        let durable = |grid| annual(grid, &Rates { node_loss: 1e-6, ..Rates::NOMINAL });
        close(durable(rs(3, 1, 1)), 7.3e-6, 0.05);
        close(durable(rs(4, 1, 1)), 1.5e-5, 0.05);
        close(durable(rs(5, 1, 2)), 4.0e-9, 0.05);
    }

    #[test]
    fn d8_exact_transients_at_accelerated_rates() {
        let lost = |grid| RegionModel::new(grid, &Rates::ACCELERATED).unwrap().lost_by(0.5).unwrap();
        close(lost(rs(3, 3, 3)), 0.32783, 2e-5);
        close(lost(mrl(3, 4, 3)), 0.10010, 5e-5);
        close(lost(rs(4, 4, 5)), 0.32600, 2e-5);
    }

    #[test]
    fn d8_providers() {
        // A provider of one region is a region.
        let alone = Rates { region_loss: 0.0, provider_loss: 1e-3, ..Rates::NOMINAL };
        close(annual(rs(3, 3, 4), &alone), annual(rs(3, 3, 4), &Rates::NOMINAL), 1e-12);
        // Two regions of four at one provider: its loss alone is the end of a code that survives one region.
        let rates = Rates { provider_loss: 1e-3, ..Rates::NOMINAL };
        let found = RegionModel::with_providers(rs(4, 3, 4), &rates, &[2, 1, 1]).unwrap();
        let loss = found.annual_loss().unwrap();
        assert!((1e-3..1.02e-3).contains(&loss), "{loss}");
        assert!(RegionModel::with_providers(rs(4, 3, 4), &rates, &[2, 1]).is_err());
        assert!(RegionModel::with_providers(rs(4, 3, 4), &rates, &[4, 0]).is_err());
        // Equal providers may change places: fewer states than regions told apart.
        let pairs = RegionModel::with_providers(rs(4, 2, 4), &rates, &[2, 2]).unwrap();
        let loose = RegionModel::with_providers(rs(4, 2, 4), &rates, &[1, 3]).unwrap();
        assert!(pairs.states() < loose.states());
    }

    #[test]
    fn d9_floor_and_the_chain_on_it() {
        let tau = 30.0 / 365.25;
        for (regions, expected) in [(3, 4.9e-7), (4, 9.9e-7), (5, 1.6e-6)] {
            close(floor(regions, 1, 1e-3, tau).unwrap(), expected, 0.05);
        }
        // Regions alone, and a code that one dead region does not strain: nothing but the floor is left.
        let regions_only = Rates { node_loss: 0.0, burst: 0.0, region_loss: 1e-6, ..Rates::NOMINAL };
        close(annual(rs(3, 5, 6), &regions_only), floor(3, 1, 1e-6, 1.0 / 12.0).unwrap(), 1e-5);
        close(annual(rs(5, 4, 9), &regions_only), floor(5, 2, 1e-6, 1.0 / 12.0).unwrap(), 1e-5);
        assert!(floor(3, 3, 1e-3, tau).is_err());
    }

    #[test]
    fn bad_rates_are_refused_and_sizes_bounded() {
        let bad = Rates { node_loss: -1.0, ..Rates::NOMINAL };
        assert!(RegionModel::new(rs(3, 3, 3), &bad).is_err());
        let bad = Rates { burst_kill: 1.5, ..Rates::NOMINAL };
        assert!(RegionModel::new(rs(3, 3, 3), &bad).is_err());
        let never = Rates { node_loss: 0.0, ..Rates::NODES_ONLY };
        assert_eq!(annual(rs(3, 3, 3), &never), 0.0);
        assert_eq!(
            RegionModel::new(rs(8, 4, 30), &Rates::NOMINAL).unwrap().states(),
            1_270,
            "the widest there is"
        );
        let told_apart = RegionModel::with_providers(rs(8, 4, 30), &Rates::NOMINAL, &[4, 4]);
        assert!(matches!(told_apart, Err(BadModel::TooLarge { .. })));
    }
}
