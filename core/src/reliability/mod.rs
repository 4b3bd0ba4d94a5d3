//! What can be computed about losing data, without rolling dice: closed forms and small Markov chains. Pure.
//!
//! The ids D1 to D14 and V1 are those of the project's table of models; every public function names its source, and
//! what others published is a test beside it. Rates are per year and times are years unless a name says otherwise.
//! Small probabilities go through `exp_m1`, `ln_1p` and sums of positive terms only, so that 1e-30 has as many good
//! digits as 0.3. The inputs are assumptions: nothing here knows how often a region really dies. A figure without
//! them beside it means nothing.

pub mod region;

pub mod chain;

pub mod copyset;

pub mod independent;

pub mod grid;

pub use chain::Chain;
pub use grid::Grid;
pub use region::{Rates, RegionModel};

use crate::limits::CHAIN_STATES_MAX;

/// Numbers that make no model.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum BadModel {
    /// Outside 0 to 1, or not a number.
    #[error("{name} = {value} is not a probability")]
    Probability {
        /// Of what.
        name: &'static str,
        /// As given.
        value: f64,
    },
    /// Negative, infinite or not a number; zero where only more makes sense.
    #[error("{name} = {value} is not a usable rate or time")]
    Rate {
        /// Of what.
        name: &'static str,
        /// As given.
        value: f64,
    },
    /// Counts that contradict each other.
    #[error("{0}")]
    Shape(&'static str),
    /// More states, or more steps of time, than anybody wants to wait for.
    #[error("the model has {size} {what}, more than {most}")]
    TooLarge {
        /// What there is too much of.
        what: &'static str,
        /// How much.
        size: f64,
        /// Most allowed.
        most: f64,
    },
    /// The question has no finite answer.
    #[error("the model never loses anything, so it has no mean time to loss")]
    NeverLost,
}

fn probability(name: &'static str, value: f64) -> Result<f64, BadModel> {
    if (0.0..=1.0).contains(&value) { Ok(value) } else { Err(BadModel::Probability { name, value }) }
}

fn rate(name: &'static str, value: f64) -> Result<f64, BadModel> {
    if value.is_finite() && value >= 0.0 { Ok(value) } else { Err(BadModel::Rate { name, value }) }
}

fn positive(name: &'static str, value: f64) -> Result<f64, BadModel> {
    if value.is_finite() && value > 0.0 { Ok(value) } else { Err(BadModel::Rate { name, value }) }
}

fn states(size: usize) -> Result<usize, BadModel> {
    let most = CHAIN_STATES_MAX;
    if size <= most {
        Ok(size)
    } else {
        Err(BadModel::TooLarge { what: "states", size: size as f64, most: most as f64 })
    }
}

/// n over j as a product of quotients; exact while the result is below 2^53.
fn choose(n: usize, j: usize) -> f64 {
    if j > n {
        return 0.0;
    }
    (0..j.min(n - j)).fold(1.0, |product, i| product * (n - i) as f64 / (i + 1) as f64)
}

/// Probability of exactly j successes of n, each with probability p.
fn binomial(n: usize, j: usize, p: f64) -> f64 {
    let rest = if n == j { 1.0 } else { ((n - j) as f64 * (-p).ln_1p()).exp() };
    choose(n, j) * p.powi(j as i32) * rest
}

/// −log10 of a probability, the "number of nines"; never to be shown without its inputs.
pub fn nines(loss: f64) -> f64 {
    -loss.log10()
}

#[cfg(test)]
mod tests {
    /// Both figures agree to so many parts of the expected one.
    pub fn close(found: f64, expected: f64, parts: f64) {
        let off = (found - expected).abs() / expected.abs();
        assert!(off <= parts, "{found:e} is not {expected:e}: off by {off:e}");
    }

    #[test]
    fn binomials() {
        assert_eq!(super::choose(20, 4), 4845.0);
        assert_eq!(super::choose(3, 4), 0.0);
        let sum: f64 = (0..=12).map(|j| super::binomial(12, j, 0.3)).sum();
        close(sum, 1.0, 1e-14);
        assert_eq!(super::binomial(3, 3, 1.0), 1.0);
        assert_eq!(super::nines(1e-3), 3.0);
    }
}
