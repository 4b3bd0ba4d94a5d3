//! The fleet beside the closed forms: where they must agree, and by how much they differ where the closed form's
//! assumptions fail.

use super::estimate::{self, Estimate};
use super::spec::{BadFleet, Failures, GROUPS_MAX, Mend, Shared, Spec};
use farshore_core::erasure::Scheme;
use farshore_core::reliability::region::YEAR_HOURS;
use farshore_core::reliability::{Grid, Rates, RegionModel};

/// What is simulated, and what the closed form is asked for.
#[derive(Clone, Debug)]
pub struct Case {
    /// What it is about.
    pub name: String,
    /// Rates, in a word.
    pub rates: &'static str,
    /// The fleet.
    pub spec: Spec,
    /// What the closed form says.
    pub exact: f64,
    /// Years.
    pub years: f64,
    /// By importance sampling, or plainly.
    pub rare: bool,
    /// Whether the closed form's assumptions hold.
    pub holds: bool,
    /// Trials for each thousand that are asked for.
    pub effort: u64,
}

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was compared.
    pub case: Case,
    /// Found by simulation: the loss of a certain stripe.
    pub found: Estimate,
}

impl Row {
    /// Whether they agree where they must: within 4.5 standard errors, which chance exceeds once in 150,000 lines.
    pub fn ok(&self) -> bool {
        !self.case.holds || self.found.hits > 0 && self.found.z(self.case.exact).abs() <= Z_MAX
    }
}

/// Most standard errors between two figures that agree.
pub const Z_MAX: f64 = 4.5;

/// Codes of the table: name, regions, shards in each, parity.
const CODES: [(&str, usize, usize, usize); 4] =
    [("copy ×3", 3, 1, 2), ("RS(6,3) 3×3", 3, 3, 3), ("RS(5,4) 3×3", 3, 3, 4), ("RS(9,6) 3×5", 3, 5, 6)];

/// Nodes that die many times a year, and nothing else.
const NODES_FAST: Rates = Rates { node_loss: 4.0, repair_cross: 20.0, ..Rates::NODES_ONLY };

/// Every line: the four codes where the closed form holds, then where it does not.
pub fn cases() -> Result<Vec<Case>, BadFleet> {
    let mut cases = Vec::new();
    for (name, regions, shards, m) in CODES {
        let grid = Grid::reed_solomon(regions, shards, m)?;
        cases.push(memoryless(name, "nodes, fast", grid, &NODES_FAST, 0.5, false)?);
        cases.push(memoryless(name, "all, fast", grid, &Rates::ACCELERATED, 0.5, false)?);
        cases.push(memoryless(name, "nodes", grid, &Rates::NODES_ONLY, 1.0, true)?);
        cases.push(memoryless(name, "nominal", grid, &Rates::NOMINAL, 1.0, true)?);
        cases.push(memoryless(name, "pessimistic", grid, &Rates::PESSIMISTIC, 1.0, true)?);
    }
    cases.extend(providers()?);
    cases.extend(shared_repair()?);
    Ok(cases)
}

/// A fleet of twice as many nodes as a stripe has shards, under the closed form's own assumptions.
pub fn memoryless(
    name: &str,
    rates_name: &'static str,
    grid: Grid,
    rates: &Rates,
    years: f64,
    rare: bool,
) -> Result<Case, BadFleet> {
    let names: Vec<String> = (0..grid.regions()).map(|region| format!("p{region}/r{region}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let exact = RegionModel::new(grid, rates)?.lost_by(years)?;
    let spec = chain_like(&names, grid, rates, 8)?;
    let (name, effort) = (name.to_string(), if rare { 8_000 } else { 500 });
    Ok(Case { name, rates: rates_name, spec, exact, years, rare, holds: true, effort })
}

fn chain_like(regions: &[&str], grid: Grid, rates: &Rates, groups_max: usize) -> Result<Spec, BadFleet> {
    let numbers = (grid.k() as u8, (grid.n() - grid.k()) as u8, grid.shards() as u8);
    let scheme = Scheme::try_from(numbers).map_err(|e| BadFleet::Shape(e.to_string()))?;
    let mut spec = Spec::even(2 * grid.n(), regions, scheme)?;
    spec.groups_max = groups_max.min(GROUPS_MAX);
    spec.failures = Failures::of(rates);
    spec.mend = Mend::Memoryless { repair: rates.repair_cross };
    Ok(spec)
}

/// Two of four regions belong to one provider, which dies as often as a region.
fn providers() -> Result<Vec<Case>, BadFleet> {
    let grid = Grid::reed_solomon(4, 3, 4)?;
    let rates = Rates { provider_loss: 1e-3, ..Rates::NOMINAL };
    let spec = chain_like(&["a/1", "a/2", "b/1", "c/1"], grid, &rates, 8)?;
    // Of a provider with one region the chain knows without knowing providers: it is another way to lose the region.
    let blind = Rates { region_loss: rates.region_loss + rates.provider_loss, ..Rates::NOMINAL };
    let case = |name: &str, exact, holds| {
        let (name, rates) = (name.to_string(), "nominal");
        Case { name, rates, spec: spec.clone(), exact, years: 1.0, rare: true, holds, effort: 8_000 }
    };
    let knows = RegionModel::with_providers(grid, &rates, &[2, 1, 1])?.lost_by(1.0)?;
    let blind = RegionModel::new(grid, &blind)?.lost_by(1.0)?;
    Ok(vec![
        case("RS(8,4) 4×3, chain told of 2 regions at 1 provider", knows, true),
        case("RS(8,4) 4×3, chain that takes regions as independent", blind, false),
    ])
}

/// Real repair: shared links, and dead regions rebuilt elsewhere.
fn shared_repair() -> Result<Vec<Case>, BadFleet> {
    let mut cases = Vec::new();
    let grid = Grid::reed_solomon(3, 3, 3)?;
    for (name, link_bytes_s) in
        [("wide links", 1e12), ("links 80 % busy", 1.6e9), ("links too narrow", 1.2e9)]
    {
        let mut spec = chain_like(&["a/1", "b/1", "c/1"], grid, &Rates::NODES_ONLY, 64)?;
        spec.places.iter_mut().for_each(|(_, nodes)| *nodes = 10);
        spec.failures.node_loss = 12.0;
        let shared = Shared { replace_hours: 0.0, link_bytes_s, ..Shared::default() };
        spec.mend = Mend::Shared(shared);
        // One group's shard takes half a day, if nothing else is going on.
        spec.node_bytes = shared.node_bytes_s * 43_200.0 * (64 * grid.n()) as f64 / spec.nodes() as f64;
        let alone = shared.patience() + 12.0 / YEAR_HOURS;
        let rates = Rates { node_loss: 12.0, repair_cross: 1.0 / alone, ..Rates::NODES_ONLY };
        let exact = RegionModel::new(grid, &rates)?.lost_by(0.5)?;
        let name = format!("RS(6,3) 3×3, repair shared by 64 groups, {name}");
        cases.push(Case {
            name,
            rates: "nodes, fast",
            spec,
            exact,
            years: 0.5,
            rare: false,
            holds: false,
            effort: 20,
        });
    }
    let grid = Grid::reed_solomon(4, 3, 4)?;
    let rates = Rates { node_loss: 0.1, region_loss: 0.1, region_rebuild: 6.0, ..Rates::NODES_ONLY };
    let mut spec = chain_like(&["a/1", "b/1", "c/1", "d/1"], grid, &rates, 32)?;
    spec.places.iter_mut().for_each(|(_, nodes)| *nodes = 10);
    spec.mend = Mend::Shared(Shared { replace_hours: 0.0, link_bytes_s: 1e12, ..Shared::default() });
    let exact = RegionModel::new(grid, &rates)?.lost_by(1.0)?;
    let name = "RS(8,4) 4×3, a dead region's shards rebuilt elsewhere".to_string();
    cases.push(Case {
        name,
        rates: "regions, fast",
        spec,
        exact,
        years: 1.0,
        rare: false,
        holds: false,
        effort: 1_000,
    });
    Ok(cases)
}

/// Runs one line; `trials` is for cheap ones, others get fewer.
pub fn run(case: Case, trials: u64, seed: u64) -> Result<Row, BadFleet> {
    let trials = (trials * case.effort / 1_000).max(2);
    let found = match case.rare {
        true => estimate::rare(&case.spec, case.years, trials, seed, true)?,
        false => estimate::plain(&case.spec, case.years, trials, seed)?,
    };
    Ok(Row { case, found: found.stripe })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agrees(case: Case, trials: u64) {
        let row = run(case, trials, 7).unwrap();
        let (exact, found) = (row.case.exact, row.found);
        assert!(row.ok(), "{} {}: {exact:e} is not {found:?}", row.case.name, row.case.rates);
        assert!(found.error < 0.25 * found.mean, "the test says something: {found:?}");
    }

    // The seed is fixed, so these pass or fail always; a right model with another seed fails one line in 150,000.

    #[test]
    fn plain_simulation_agrees_with_the_chain() {
        for (name, regions, shards, m) in CODES {
            let grid = Grid::reed_solomon(regions, shards, m).unwrap();
            agrees(memoryless(name, "nodes, fast", grid, &NODES_FAST, 0.5, false).unwrap(), 1_000);
            agrees(memoryless(name, "all, fast", grid, &Rates::ACCELERATED, 0.5, false).unwrap(), 1_000);
        }
    }

    #[test]
    fn rare_losses_agree_with_the_chain() {
        for (name, regions, shards, m) in CODES {
            let grid = Grid::reed_solomon(regions, shards, m).unwrap();
            let nodes = memoryless(name, "nodes", grid, &Rates::NODES_ONLY, 1.0, true).unwrap();
            agrees(nodes, 150);
            agrees(memoryless(name, "nominal", grid, &Rates::NOMINAL, 1.0, true).unwrap(), 250);
        }
    }

    #[test]
    fn providers_break_the_chain_that_knows_none() {
        let [knows, blind] = <[Case; 2]>::try_from(providers().unwrap()).unwrap();
        agrees(knows, 200);
        let row = run(blind, 200, 7).unwrap();
        assert!(row.found.mean > 50.0 * row.case.exact, "{:e} {:?}", row.case.exact, row.found);
    }

    /// Both ways to estimate the loss of any stripe, where both can: correlated losses included.
    #[test]
    fn tilted_and_plain_runs_agree_on_the_loss_of_any_stripe() {
        let grid = Grid::reed_solomon(3, 3, 4).unwrap();
        let rates = Rates { node_loss: 0.5, repair_cross: 40.0, region_loss: 0.1, ..Rates::ACCELERATED };
        let spec = memoryless("", "", grid, &rates, 0.5, true).unwrap().spec;
        let plain = estimate::plain(&spec, 0.5, 3_000, 7).unwrap();
        let rare = estimate::rare(&spec, 0.5, 3_000, 8, false).unwrap();
        for (plain, rare) in [(plain.any, rare.any), (plain.stripe, rare.stripe)] {
            let error = plain.error.hypot(rare.error);
            assert!((plain.mean - rare.mean).abs() <= Z_MAX * error, "{plain:?} {rare:?}");
            assert!(error < 0.25 * plain.mean, "{plain:?} {rare:?}");
        }
    }

    /// With repair as the product does it, no closed form knows the answer, but the two ways of finding it do.
    #[test]
    fn tilted_and_plain_runs_agree_under_shared_repair() {
        let mut spec = shared_repair().unwrap().swap_remove(1).spec;
        spec.failures =
            Failures { node_loss: 4.0, burst: 2.0, burst_kill: 0.1, region_loss: 1.0, ..spec.failures };
        spec.places.iter_mut().for_each(|(_, nodes)| *nodes = 4);
        spec.groups_max = 4;
        spec.node_bytes *= 4.0 / 64.0 * 30.0 / 12.0;
        let plain = estimate::plain(&spec, 0.1, 1_500, 7).unwrap();
        let rare = estimate::rare(&spec, 0.1, 1_500, 8, false).unwrap();
        for (plain, rare) in [(plain.any, rare.any), (plain.stripe, rare.stripe)] {
            let error = plain.error.hypot(rare.error);
            assert!((plain.mean - rare.mean).abs() <= Z_MAX * error, "{plain:?} {rare:?}");
            assert!(error < 0.35 * plain.mean, "{plain:?} {rare:?}");
        }
    }

    #[test]
    fn a_seed_is_a_run() {
        let case = || shared_repair().unwrap().swap_remove(0);
        let (a, b) = (run(case(), 200, 5).unwrap(), run(case(), 200, 5).unwrap());
        assert_eq!(a.found, b.found);
        assert_ne!(a.found, run(case(), 200, 6).unwrap().found);
    }
}
