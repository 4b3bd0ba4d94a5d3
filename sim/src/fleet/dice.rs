//! Random numbers of the fleet: everything is drawn from one seeded stream, so a seed is a run.

use crate::entropy::Rng;

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub struct Dice(Rng);

impl Dice {
    /// An independent stream for each (seed, trial).
    pub fn new(seed: u64, trial: u64) -> Self {
        const FLEET: u64 = 0x666c_6565_7400;
        Dice(Rng::new(seed, FLEET.wrapping_add(trial)))
    }

    /// In [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.0.draw() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// In 0..bound.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound as u64) as usize
    }

    /// True with probability p.
    pub fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Exponential with this rate; never, if it is 0.
    pub fn wait(&mut self, rate: f64) -> f64 {
        if rate > 0.0 { -(-self.uniform()).ln_1p() / rate } else { f64::INFINITY }
    }

    /// An index, with probability proportional to its weight; the last one with a weight if rounding leaves none.
    pub fn pick(&mut self, weights: &[f64]) -> usize {
        let mut left = self.uniform() * weights.iter().sum::<f64>();
        for (at, weight) in weights.iter().enumerate() {
            if left < *weight {
                return at;
            }
            left -= weight;
        }
        weights.iter().rposition(|weight| *weight > 0.0).unwrap_or(0)
    }
}
