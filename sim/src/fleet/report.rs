//! One fleet over years, as people and programs read it: what failed, what repair moved and cost, what was lost, and
//! how likely a loss is.

use super::crew::YEAR_SECONDS;
use super::dice::Dice;
use super::estimate::{self, Estimate, Losses};
use super::life::Fleet;
use super::spec::{BadFleet, Mend, Spec};
use super::stats::{Stats, Waits};
use farshore_core::reliability::region::{YEAR_HOURS, floor};
use farshore_core::reliability::{Grid, Rates, RegionModel};
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::sync::Arc;

/// What things cost, in dollars. Defaults are list prices of 2026 guides, rounded; they change, so give your own.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Prices {
    /// Storage, a GB and month.
    pub storage: f64,
    /// Bytes that leave a provider, a GB.
    pub egress: f64,
    /// Bytes between two regions of one provider, a GB.
    pub inter_region: f64,
}

/// When the defaults of [`Prices`] were looked up.
pub const PRICES_DATE: &str = "2026-11";

impl Default for Prices {
    fn default() -> Self {
        Prices { storage: 0.021, egress: 0.087, inter_region: 0.02 }
    }
}

/// Nodes in the smaller fleet that rare losses are estimated on: so many stripes side by side.
const SLICE_WIDTHS: usize = 4;

/// A fleet's report.
pub struct Report {
    spec: Spec,
    years: f64,
    seed: u64,
    prices: Prices,
    groups: usize,
    shard_bytes: f64,
    stats: Stats,
    years_with_loss: usize,
    rare: Losses,
    slice: Spec,
    slice_groups: usize,
    chain: Option<Chain>,
}

/// What the closed form says about a fleet like this one.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Chain {
    /// Annual loss of one stripe if nothing but single nodes and disks fails.
    pub independent: f64,
    /// With regions, bursts and providers.
    pub full: f64,
    /// Losses to dead regions alone.
    pub floor: f64,
    /// With region losses ten times as frequent, and a tenth.
    pub region_loss: [f64; 2],
    /// With rebuilding a region ten times as slow, and ten times as fast.
    pub region_rebuild: [f64; 2],
}

/// Simulates, and estimates what simulating does not meet.
pub fn report(spec: Spec, years: f64, trials: u64, seed: u64, prices: Prices) -> Result<Report, BadFleet> {
    spec.check()?;
    let mut fleet = Fleet::new(Arc::new(spec.clone()), Dice::new(seed, 0));
    fleet.run(years, false);
    let stats = std::mem::take(&mut fleet.stats);
    let mut with_loss: Vec<u64> = stats.losses.iter().map(|loss| loss.at as u64).collect();
    with_loss.dedup();
    let slice = slice(&spec);
    let rare = estimate::rare(&slice, 1.0, trials, seed, false)?;
    let slice_groups = Fleet::new(Arc::new(slice.clone()), Dice::new(0, 0)).groups.count();
    let chain = chain(&spec, &fleet, stats.waits())?;
    let (groups, shard_bytes, years_with_loss) = (fleet.groups.count(), fleet.shard_bytes, with_loss.len());
    Ok(Report {
        spec,
        years,
        seed,
        prices,
        groups,
        shard_bytes,
        stats,
        years_with_loss,
        rare,
        slice,
        slice_groups,
        chain,
    })
}

/// A fleet with the same regions, rates and time to rebuild a shard, and as few nodes as show the same: what a stripe
/// meets does not depend on how many other nodes there are, but for the load on links, which is scaled.
fn slice(spec: &Spec) -> Spec {
    let most = (spec.scheme.n() * SLICE_WIDTHS).max(spec.places.len());
    let all = spec.nodes();
    if all <= most {
        return spec.clone();
    }
    let mut slice = spec.clone();
    let share = most as f64 / all as f64;
    let least = usize::from(spec.scheme.spread()) + 1;
    for (_, nodes) in &mut slice.places {
        *nodes = ((*nodes as f64 * share).round() as usize).max(least.min(*nodes));
    }
    let share = slice.nodes() as f64 / all as f64;
    if let Mend::Shared(shared) = &mut slice.mend {
        shared.link_bytes_s = (shared.link_bytes_s * share).max(shared.node_bytes_s);
    }
    slice
}

/// The closed form with the repair times that were measured, or foreseen if none were.
fn chain(spec: &Spec, fleet: &Fleet, waits: Waits) -> Result<Option<Chain>, BadFleet> {
    let Ok(grid) = Grid::of(spec.scheme) else { return Ok(None) };
    if grid.regions() != spec.places.len() {
        return Ok(None);
    }
    let f = spec.failures;
    let repair = match spec.mend {
        Mend::Memoryless { repair } => repair,
        Mend::Shared(shared) => {
            let alone = fleet.shard_bytes / shared.node_bytes_s / YEAR_SECONDS;
            1.0 / (shared.patience() + alone.max(waits.mean / YEAR_HOURS))
        }
    };
    let rates = Rates {
        node_loss: f.node_loss + f.disk_loss,
        repair_local: repair,
        repair_cross: repair,
        region_loss: f.region_loss,
        region_rebuild: 1.0 / f.region_rebuild,
        burst: f.burst,
        burst_kill: f.burst_kill,
        provider_loss: f.provider_loss,
    };
    let mut regions_of = std::collections::BTreeMap::<usize, usize>::new();
    spec.providers().into_iter().for_each(|provider| *regions_of.entry(provider).or_default() += 1);
    let providers: Vec<usize> = regions_of.into_values().collect();
    let annual = |rates: Rates| RegionModel::with_providers(grid, &rates, &providers)?.annual_loss();
    let survived = grid.guarantees().len() - 1;
    let by = |factor: f64| [factor, 1.0 / factor];
    let (mut region_loss, mut region_rebuild) = ([0.0; 2], [0.0; 2]);
    for (at, factor) in by(10.0).into_iter().enumerate() {
        region_loss[at] = annual(Rates { region_loss: rates.region_loss * factor, ..rates })?;
        region_rebuild[at] = annual(Rates { region_rebuild: rates.region_rebuild / factor, ..rates })?;
    }
    let independent = Rates { region_loss: 0.0, burst: 0.0, provider_loss: 0.0, ..rates };
    Ok(Some(Chain {
        independent: annual(independent)?,
        full: annual(rates)?,
        floor: floor(grid.regions(), survived, f.region_loss, f.region_rebuild)?,
        region_loss,
        region_rebuild,
    }))
}

impl Report {
    /// Dollars a year for storage, and for the bytes of repair.
    fn money(&self) -> (f64, f64) {
        const GB: f64 = 1e9;
        let storage = self.spec.node_bytes * self.spec.nodes() as f64 / GB * self.prices.storage * 12.0;
        let providers = self.spec.providers();
        let mut repair = 0.0;
        for from in 0..providers.len() {
            for to in (0..providers.len()).filter(|to| *to != from) {
                let price = if providers[from] == providers[to] {
                    self.prices.inter_region
                } else {
                    self.prices.egress
                };
                repair += self.stats.sent(from, to) / GB * price;
            }
        }
        (storage, repair / self.years)
    }

    /// Any stripe of the whole fleet lost within a year: between that of the slice, since more stripes only add, and the
    /// sum over all groups.
    fn any(&self) -> (f64, f64) {
        let most = (self.rare.stripe.mean * self.groups as f64).min(1.0);
        (self.rare.any.mean.min(most), most)
    }

    /// Bytes rebuilt a second if silences and losses come evenly, against what a bound on rebuilds under way lets through.
    fn load(&self) -> f64 {
        (self.stats.rebuilt + self.stats.moved) as f64 * self.shard_bytes / self.years / YEAR_SECONDS
    }

    /// For programs.
    pub fn json(&self) -> Value {
        let (s, waits) = (&self.stats, self.stats.waits());
        let names: Vec<&str> = self.spec.places.iter().map(|(region, _)| region.as_str()).collect();
        let links = (0..names.len()).flat_map(|from| (0..names.len()).map(move |to| (from, to)));
        let link = |(from, to): (usize, usize)| json!({"from": names[from], "to": names[to], "bytes_year": s.sent(from, to) / self.years});
        let (storage, repair) = self.money();
        let (least, most) = self.any();
        json!({
            "message_type": "fleet", "nodes": self.spec.nodes(), "regions": names, "scheme": self.spec.scheme.to_string(),
            "years": self.years, "seed": self.seed, "groups": self.groups, "stripes": self.spec.stripes(),
            "user_bytes": self.spec.user_bytes(),
            "failures": {
                "node_losses": s.node_losses, "disk_losses": s.disk_losses, "outages": s.outages,
                "region_outages": s.region_outages, "region_losses": s.region_losses, "bursts": s.bursts,
                "burst_kills": s.burst_kills, "provider_losses": s.provider_losses, "declared_lost": s.declared,
            },
            "repair": {
                "shards_rebuilt": s.rebuilt, "shards_moved": s.moved, "waiting_mean": s.waiting_mean(self.years),
                "waiting_most": s.waiting_most, "hours_mean": waits.mean, "hours_half": waits.half,
                "hours_99": waits.most, "hours_longest": waits.longest, "bytes_s_mean": self.load(),
                "links": links.map(link).collect::<Vec<_>>(),
            },
            "lost": {"groups": s.losses.len(), "years_with_loss": self.years_with_loss},
            "annual_loss": {
                "stripe": figure(&self.rare.stripe), "any_of_slice": figure(&self.rare.any),
                "slice_nodes": self.slice.nodes(), "slice_groups": self.slice_groups,
                "any_at_least": least, "any_at_most": most, "chain": self.chain,
            },
            "money": {"prices": self.prices, "prices_date": PRICES_DATE, "storage_year": storage, "repair_year": repair},
        })
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let (s, waits, nodes) = (&self.stats, self.stats.waits(), self.spec.nodes());
        writeln!(
            out,
            "fleet      {nodes} nodes in {} regions, {} with at most {} shards in a region, {:.3} PB of user data in {:.2e} \
             stripes, followed as {} groups; {} years, seed {}",
            self.spec.places.len(),
            self.spec.scheme,
            self.spec.scheme.spread(),
            self.spec.user_bytes() / 1e15,
            self.spec.stripes(),
            self.groups,
            self.years,
            self.seed
        )?;
        writeln!(
            out,
            "failures   {} nodes, {} disks, {} bursts (killing {} nodes), {} regions and {} providers lost; {} silences of \
             nodes and {} of regions; {} nodes declared lost",
            s.node_losses,
            s.disk_losses,
            s.bursts,
            s.burst_kills,
            s.region_losses,
            s.provider_losses,
            s.outages,
            s.region_outages,
            s.declared
        )?;
        writeln!(
            out,
            "repair     {} shards of groups rebuilt, {} moved, {:.1} MB of each second on average; from plan to end \
             {:.2} h on average, half within {:.2} h, 99 % within {:.2} h, longest {:.1} h; waiting {:.1} on average, {} at most",
            s.rebuilt,
            s.moved,
            self.load() / 1e6,
            waits.mean,
            waits.half,
            waits.most,
            waits.longest,
            s.waiting_mean(self.years),
            s.waiting_most
        )?;
        self.write_links(out)?;
        let (storage, repair) = self.money();
        writeln!(
            out,
            "money      ${storage:.0} a year for storage, ${repair:.0} for repair between regions (${} a GB and month, ${} a GB \
             out, ${} between regions of a provider; list prices of {PRICES_DATE} unless given)",
            self.prices.storage, self.prices.egress, self.prices.inter_region
        )?;
        writeln!(
            out,
            "met        {} groups lost, in {} of {} years",
            s.losses.len(),
            self.years_with_loss,
            self.years.ceil()
        )?;
        self.write_losses(out)
    }

    fn write_links(&self, out: &mut String) -> std::fmt::Result {
        writeln!(out, "links      TB a year, from row to column")?;
        for (from, (region, _)) in self.spec.places.iter().enumerate() {
            write!(out, "           {:<14}", region.as_str())?;
            for to in 0..self.spec.places.len() {
                write!(out, " {:>10.2}", self.stats.sent(from, to) / 1e12 / self.years)?;
            }
            writeln!(out)?;
        }
        Ok(())
    }

    fn write_losses(&self, out: &mut String) -> std::fmt::Result {
        let rare = &self.rare;
        writeln!(
            out,
            "a stripe   is lost within a year with probability {} (importance sampling on {} nodes with the same rates)",
            with_interval(&rare.stripe),
            self.slice.nodes()
        )?;
        let (least, most) = self.any();
        writeln!(
            out,
            "any stripe {} among the {} groups of those nodes; of the whole fleet between {least:.2e} and {most:.2e}",
            with_interval(&rare.any),
            self.slice_groups
        )?;
        match &self.chain {
            None => {
                writeln!(out, "chain      D8 does not apply: the scheme does not fill all regions evenly")
            }
            Some(chain) => writeln!(
                out,
                "chain      D8 with the repair times above: {:.2e} a year for a stripe, {:.2e} if nothing but single nodes and \
                 disks failed, floor of dead regions (D9) {:.2e}; region losses ×10 {:.2e}, ÷10 {:.2e}; rebuilding a \
                 region ×10 slower {:.2e}, ×10 faster {:.2e}",
                chain.full,
                chain.independent,
                chain.floor,
                chain.region_loss[0],
                chain.region_loss[1],
                chain.region_rebuild[0],
                chain.region_rebuild[1]
            ),
        }?;
        writeln!(out, "           Rates are assumptions of this run, not measurements: give your own.")
    }
}

/// An estimate and its 95 % interval.
pub fn with_interval(found: &Estimate) -> String {
    let (least, most) = found.interval();
    format!("{:.2e} (95 %: {least:.2e} to {most:.2e}, {} of {} runs)", found.mean, found.hits, found.trials)
}

/// The same for programs.
pub fn figure(found: &Estimate) -> Value {
    let (least, most) = found.interval();
    json!({"mean": found.mean, "error": found.error, "low": least, "high": most, "hits": found.hits, "trials": found.trials})
}

#[cfg(test)]
mod tests {
    use super::super::groups::GroupIx;
    use super::*;
    use farshore_core::erasure::Scheme;

    #[test]
    fn a_small_fleet_is_reported_the_same_each_time() {
        let spec = || Spec::even(60, &["a/1", "a/2", "b/1"], Scheme::new(5, 4, 3).unwrap()).unwrap();
        let of = |seed| report(spec(), 3.0, 50, seed, Prices::default()).unwrap();
        let (a, b) = (of(1), of(1));
        assert_eq!((a.json(), a.text()), (b.json(), b.text()));
        assert_ne!(a.json(), of(2).json());
        assert!(a.stats.rebuilt > 0 && a.money().1 > 0.0);
        let sent: f64 = a.stats.bytes.iter().sum();
        let read = (a.stats.rebuilt * 5 + a.stats.moved) as f64 * a.shard_bytes;
        assert!((sent - read).abs() < 1e-6 * read, "k shards are read for each one rebuilt");
        assert!(a.stats.waits().longest >= a.stats.waits().half);
    }

    /// 64 groups of a hundred nodes die with their region and are rebuilt elsewhere long before it is back; then they
    /// return.
    #[test]
    fn a_dead_region_is_rebuilt_elsewhere_and_moves_back() {
        let mut spec = Spec::even(90, &["a/1", "b/1", "c/1"], Scheme::new(5, 4, 3).unwrap()).unwrap();
        spec.failures = super::super::spec::Failures {
            region_loss: 0.02,
            region_rebuild: 0.2,
            ..super::super::spec::Failures::of(&Rates { node_loss: 0.0, burst: 0.0, ..Rates::NOMINAL })
        };
        spec.groups_max = 64;
        let mut fleet = Fleet::new(Arc::new(spec), Dice::new(3, 0));
        let mut years = 0.0;
        while fleet.stats.region_losses == 0 {
            years += 0.01;
            fleet.run(years, false);
        }
        fleet.run(years + 0.05, false);
        let crowded = fleet.crew.below_target.len();
        assert!(fleet.back_at(0).or(fleet.back_at(1)).or(fleet.back_at(2)).is_some() && crowded == 64);
        let whole = |fleet: &Fleet| (0..64 as GroupIx).all(|group| fleet.groups.intact[group as usize] == 9);
        assert!(whole(&fleet), "rebuilt in the two other regions");
        while (0..3).any(|region| fleet.back_at(region).is_some()) {
            years += 0.1;
            fleet.run(years, false);
        }
        fleet.run(years + 0.05, false);
        assert!(whole(&fleet) && fleet.crew.below_target.is_empty() && fleet.stats.moved > 0);
        assert!(fleet.stats.losses.is_empty());
    }
}
