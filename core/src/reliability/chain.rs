//! Absorbing Markov chains in continuous time, and D5 to D7, which are such chains with one line of states.
//!
//! Mean times by state reduction without subtraction (Grassmann, Taksar and Heyman 1985), so that rates twenty orders
//! of magnitude apart keep all their digits; transients by uniformization (Jensen 1953).

use super::{BadModel, positive, probability, rate, states};
use crate::limits::CHAIN_STEPS_MAX;

/// States with rates between them, and out of them into the loss that nothing comes back from.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Chain {
    rows: Vec<Vec<(usize, f64)>>,
    lost: Vec<f64>,
}

impl Chain {
    /// So many states without a transition.
    pub fn new(size: usize) -> Result<Self, BadModel> {
        let size = states(size)?;
        Ok(Chain { rows: vec![Vec::new(); size], lost: vec![0.0; size] })
    }

    /// A further state; its number.
    pub fn push(&mut self) -> Result<usize, BadModel> {
        states(self.rows.len() + 1)?;
        self.rows.push(Vec::new());
        self.lost.push(0.0);
        Ok(self.rows.len() - 1)
    }

    /// Number of states.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Adds a transition; one from a state to itself is nothing.
    pub fn step(&mut self, from: usize, to: usize, per_year: f64) -> Result<(), BadModel> {
        let per_year = rate("transition", per_year)?;
        if from.max(to) >= self.len() {
            return Err(BadModel::Shape("a transition joins two states of the chain"));
        }
        if from != to && per_year > 0.0 {
            self.rows[from].push((to, per_year));
        }
        Ok(())
    }

    /// Adds a way to be lost.
    pub fn lose(&mut self, from: usize, per_year: f64) -> Result<(), BadModel> {
        let per_year = rate("loss", per_year)?;
        let Some(lost) = self.lost.get_mut(from) else {
            return Err(BadModel::Shape("a loss begins at a state of the chain"));
        };
        *lost += per_year;
        Ok(())
    }

    /// Mean time to loss.
    pub fn mean_time(&self, start: usize) -> Result<f64, BadModel> {
        if start >= self.len() {
            return Err(BadModel::Shape("the chain has no such state"));
        }
        // Only what can be reached matters, and a state that is never left would divide by zero.
        let mut order = self.reached(start);
        order.retain(|state| *state != start);
        order.insert(0, start);
        let size = order.len();
        let mut place = vec![usize::MAX; self.len()];
        order.iter().enumerate().for_each(|(at, state)| place[*state] = at);
        let mut rates = vec![vec![0.0; size]; size];
        for (at, state) in order.iter().enumerate() {
            self.rows[*state].iter().for_each(|(to, r)| rates[at][place[*to]] += r);
        }
        let mut lost: Vec<f64> = order.iter().map(|state| self.lost[*state]).collect();
        // Each state i satisfies (Σ_j q_ij + a_i) m_i = w_i + Σ_j q_ij m_j. Leaving out the last state x keeps this form:
        // the diagonal is always the sum of the rest of its row and is never stored.
        let mut weight = vec![1.0; size];
        for x in (1..size).rev() {
            let row = std::mem::take(&mut rates[x]);
            let out: f64 = row[..x].iter().sum::<f64>() + lost[x];
            if out == 0.0 {
                return Err(BadModel::NeverLost);
            }
            for i in (0..x).filter(|i| rates[*i][x] > 0.0).collect::<Vec<_>>() {
                let share = rates[i][x] / out;
                rates[i].iter_mut().zip(&row[..x]).for_each(|(q, through)| *q += share * through);
                rates[i][i] = 0.0;
                lost[i] += share * lost[x];
                weight[i] += share * weight[x];
            }
        }
        if lost[0] == 0.0 { Err(BadModel::NeverLost) } else { Ok(weight[0] / lost[0]) }
    }

    fn reached(&self, start: usize) -> Vec<usize> {
        let mut seen = vec![false; self.len()];
        let mut open = vec![start];
        seen[start] = true;
        while let Some(state) = open.pop() {
            for (to, _) in &self.rows[state] {
                if !std::mem::replace(&mut seen[*to], true) {
                    open.push(*to);
                }
            }
        }
        (0..self.len()).filter(|state| seen[*state]).collect()
    }

    /// Probability to be lost within so many years.
    pub fn lost_by(&self, start: usize, years: f64) -> Result<f64, BadModel> {
        let years = rate("years", years)?;
        if start >= self.len() {
            return Err(BadModel::Shape("the chain has no such state"));
        }
        let out = |state: usize| self.rows[state].iter().map(|(_, r)| r).sum::<f64>() + self.lost[state];
        let pace = (0..self.len()).map(out).fold(0.0, f64::max);
        let mean = pace * years;
        if mean == 0.0 {
            return Ok(0.0);
        }
        let steps = mean + 12.0 * mean.sqrt() + 60.0;
        if steps > CHAIN_STEPS_MAX {
            return Err(BadModel::TooLarge { what: "steps of time", size: steps, most: CHAIN_STEPS_MAX });
        }
        let stay: Vec<f64> = (0..self.len()).map(|state| (pace - out(state)) / pace).collect();
        let mut here = vec![0.0; self.len()];
        here[start] = 1.0;
        let (mut lost, mut total, mut log_weight) = (0.0, 0.0, -mean);
        for step in 0..steps as u64 {
            // Probability that the clock ticks exactly `step` times, times that of being lost by then.
            total += log_weight.exp() * lost;
            log_weight += mean.ln() - ((step + 1) as f64).ln();
            let mut next = vec![0.0; self.len()];
            for (state, p) in here.iter().enumerate().filter(|(_, p)| **p > 0.0) {
                lost += p * self.lost[state] / pace;
                next[state] += p * stay[state];
                self.rows[state].iter().for_each(|(to, r)| next[*to] += p * r / pace);
            }
            here = next;
        }
        Ok(total)
    }
}

/// D5: n pieces, k of them needed, each lost at `loss`; `repairs[e]` is the rate of one repair with e + 1 pieces lost.
/// State e is e pieces lost. With `survivors`, the share of patterns of the last e that can still be decoded.
pub fn serial(n: usize, loss: f64, repairs: &[f64], survivors: f64) -> Result<Chain, BadModel> {
    let (loss, survivors) = (positive("piece loss", loss)?, probability("decodable share", survivors)?);
    let deepest = repairs.len();
    if n <= deepest {
        return Err(BadModel::Shape("at least one piece is needed"));
    }
    let mut chain = Chain::new(deepest + 1)?;
    for (lost, repair) in repairs.iter().enumerate() {
        let next = (n - lost) as f64 * loss;
        // Only the step into the deepest state can meet a pattern that is lost.
        let share = if lost + 1 == deepest { survivors } else { 1.0 };
        chain.step(lost, lost + 1, next * share)?;
        chain.lose(lost, next * (1.0 - share))?;
        chain.step(lost + 1, lost, *repair)?;
    }
    chain.lose(deepest, (n - deepest) as f64 * loss)?;
    Ok(chain)
}

/// D5 in closed form (Ford et al. 2010, 8.2): mean time until fewer than `needed` of `copies` chunks are left, one repair
/// at a time.
pub fn ford_mttf(copies: usize, needed: usize, loss: f64, repair: f64) -> Result<f64, BadModel> {
    let (loss, repair) = (positive("chunk loss", loss)?, rate("repair", repair)?);
    if needed == 0 || needed > copies || copies > crate::limits::STRIPE_SHARDS_MAX {
        return Err(BadModel::Shape("1 to 32 chunks, and at least one is needed"));
    }
    let term = |depth: usize, i: usize| {
        let falling: f64 = (0..=i).map(|j| (copies - depth + i - j) as f64).product();
        (repair / loss).powi(i as i32) / falling
    };
    let sum: f64 = (0..=copies - needed).map(|depth| (0..=depth).map(|i| term(depth, i)).sum::<f64>()).sum();
    Ok(sum / loss)
}

/// D6: the cluster of Azure's LRC paper (Huang et al. 2012, 3), by which it compares codes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct AzureCluster {
    /// Loss of one node's fragment, a year.
    pub loss: f64,
    /// Repair of a single loss: all nodes rebuild together over a share of their network.
    pub repair_one: f64,
    /// Repair of more: bound by detection and start.
    pub repair_more: f64,
}

impl AzureCluster {
    /// `nodes` with `bytes` each lost every `years` years, a network of `bits_per_second` of which `share` is for
    /// repair, and `detect_seconds` to begin the repair of a stripe with more than one loss.
    pub fn new(
        nodes: usize,
        bytes: f64,
        years: f64,
        bits_per_second: f64,
        share: f64,
        detect_seconds: f64,
    ) -> Result<Self, BadModel> {
        const YEAR_SECONDS: f64 = 365.25 * 86_400.0;
        let (bytes, years) = (positive("bytes", bytes)?, positive("years", years)?);
        let (network, share) = (positive("bandwidth", bits_per_second)?, probability("share", share)?);
        let detect = positive("detection", detect_seconds)?;
        let helpers = nodes.saturating_sub(1) as f64;
        Ok(AzureCluster {
            loss: 1.0 / years,
            repair_one: share * helpers * network / 8.0 / bytes * YEAR_SECONDS,
            repair_more: YEAR_SECONDS / detect,
        })
    }

    /// Mean years to loss of a stripe of n fragments that survives any `sure` losses, and one more with probability
    /// `survivors` (0 for codes that never do).
    pub fn mttf(&self, n: usize, sure: usize, survivors: f64) -> Result<f64, BadModel> {
        let deepest = sure + usize::from(survivors > 0.0);
        let pace = |lost| if lost == 0 { self.repair_one } else { self.repair_more };
        let repairs: Vec<f64> = (0..deepest).map(pace).collect();
        let share = if survivors > 0.0 { survivors } else { 1.0 };
        serial(n, self.loss, &repairs, share)?.mean_time(0)
    }
}

/// D6: mean fragments read to rebuild one, over all fragments: (how many, how many reads each).
pub fn repair_cost(fragments: &[(usize, usize)]) -> f64 {
    let all: usize = fragments.iter().map(|(count, _)| count).sum();
    fragments.iter().map(|(count, reads)| (count * reads) as f64).sum::<f64>() / all as f64
}

/// D7: mean time to the first loss in a cluster of so many stripes, taken as independent.
pub fn cluster_mttdl(stripe: f64, stripes: f64) -> Result<f64, BadModel> {
    Ok(positive("stripe's mean time", stripe)? / positive("stripes", stripes)?)
}

#[cfg(test)]
mod tests {
    use super::super::tests::close;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn d5_ford_table_and_its_chain() {
        let (loss, repair) = (8.1345e-3, 66.013);
        for (copies, expected) in [(2, 4.990e5), (3, 1.350e9), (4, 2.739e12), (5, 4.446e15)] {
            let closed = ford_mttf(copies, 1, loss, repair).unwrap();
            close(closed, expected, 1e-3);
            let chain = serial(copies, loss, &vec![repair; copies - 1], 1.0).unwrap();
            close(chain.mean_time(0).unwrap(), closed, 1e-13);
        }
        close(ford_mttf(2, 1, 2.0, 5.0).unwrap(), (3.0 * 2.0 + 5.0) / (2.0 * 4.0), 1e-15);
        close(ford_mttf(3, 1, 2.0, 5.0).unwrap(), (11.0 * 4.0 + 4.0 * 10.0 + 25.0) / (6.0 * 8.0), 1e-15);
        assert!(ford_mttf(3, 4, 1.0, 1.0).is_err() && ford_mttf(3, 0, 1.0, 1.0).is_err());
    }

    #[test]
    fn d6_azure_mttf_table() {
        let azure = AzureCluster::new(400, 16.0 * 1024e9, 5.0, 1e9, 0.1, 1_800.0).unwrap();
        close(azure.mttf(3, 2, 0.0).unwrap(), 3.51e9, 3e-3);
        close(azure.mttf(9, 3, 0.0).unwrap(), 6.10e11, 3e-3);
        close(azure.mttf(10, 3, 0.86).unwrap(), 2.61e12, 3e-3);
        assert_eq!(repair_cost(&[(8, 3), (2, 6)]), 3.6);
        assert_eq!(repair_cost(&[(14, 6), (2, 12)]), 6.75);
    }

    #[test]
    fn d7_xorbas_three_copies() {
        let block = 256.0 * 1024.0 * 1000.0;
        let repair = 1e9 / 8.0 / block * 86_400.0;
        let days = serial(3, 1.0 / 1460.0, &[repair, repair], 1.0).unwrap().mean_time(0).unwrap();
        close(cluster_mttdl(days, 30e15 / (3.0 * block)).unwrap(), 2.3079e10, 1e-4);
    }

    #[test]
    fn transients_by_hand() {
        // One state: an exponential.
        let mut one = Chain::new(1).unwrap();
        one.lose(0, 2.0).unwrap();
        close(one.lost_by(0, 0.7).unwrap(), -(-1.4f64).exp_m1(), 1e-13);
        close(one.lost_by(0, 1e-15).unwrap(), 2e-15, 1e-12);
        // Two in a row without repair: an Erlang.
        let two = serial(2, 1.0, &[0.0], 1.0).unwrap();
        let t = 0.3f64;
        close(two.lost_by(0, t).unwrap(), (-(-t).exp_m1()).powi(2), 1e-12);
        assert_eq!(two.lost_by(0, 0.0).unwrap(), 0.0);
    }

    #[test]
    fn bad_chains_are_refused() {
        assert!(Chain::new(1 << 30).is_err());
        let mut chain = Chain::new(2).unwrap();
        assert!(
            chain.step(0, 2, 1.0).is_err() && chain.step(0, 1, -1.0).is_err() && chain.lose(5, 1.0).is_err()
        );
        assert_eq!(chain.mean_time(0), Err(BadModel::NeverLost));
        chain.step(0, 1, 1.0).unwrap();
        assert_eq!(chain.mean_time(0), Err(BadModel::NeverLost), "a trap is not a loss");
        assert!(chain.mean_time(2).is_err() && chain.lost_by(0, f64::NAN).is_err());
        assert!(matches!(chain.lost_by(0, 1e12), Err(BadModel::TooLarge { .. })));
        assert!(serial(3, 1.0, &[1.0; 3], 1.0).is_err() && serial(3, 0.0, &[1.0], 1.0).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Mean time = ∫ (1 − lost_by) dt on random chains.
        #[test]
        fn both_methods_agree(rates in prop::collection::vec(0.05f64..3.0, 12), lost in prop::collection::vec(0.2f64..2.0, 4)) {
            let mut chain = Chain::new(4).unwrap();
            let mut rates = rates.into_iter();
            for (from, lost) in lost.into_iter().enumerate() {
                chain.lose(from, lost).unwrap();
                for to in (0..4).filter(|to| *to != from) {
                    chain.step(from, to, rates.next().unwrap()).unwrap();
                }
            }
            let (slices, end) = (400, 60.0);
            let width = end / slices as f64;
            let kept = |i: usize| 1.0 - chain.lost_by(0, i as f64 * width).unwrap();
            // Simpson's rule.
            let simpson = |i: usize| if i == 0 || i == slices { 1.0 } else if i % 2 == 1 { 4.0 } else { 2.0 };
            let mean: f64 = (0..=slices).map(|i| simpson(i) * kept(i)).sum::<f64>() * width / 3.0;
            let exact = chain.mean_time(0).unwrap();
            prop_assert!((mean - exact).abs() < 1e-3 * exact, "{mean} {exact}");
        }
    }
}
