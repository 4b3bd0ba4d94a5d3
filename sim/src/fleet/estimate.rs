//! From runs to probabilities with an interval.

use super::dice::Dice;
use super::groups::GroupIx;
use super::life::Fleet;
use super::spec::{BadFleet, Spec};
use super::tilt::Tilt;
use std::sync::Arc;

/// Half the width of a 95 % interval in standard errors.
pub const Z95: f64 = 1.96;

/// A mean of independent trials.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Estimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub error: f64,
    /// Trials.
    pub trials: u64,
    /// Trials that were not 0.
    pub hits: u64,
}

/// Samples, added one by one without loss of digits (Welford 1962).
#[derive(Clone, Copy, Debug, Default)]
pub struct Samples {
    count: u64,
    hits: u64,
    mean: f64,
    squares: f64,
}

impl Samples {
    /// One more.
    pub fn add(&mut self, value: f64) {
        self.count += 1;
        self.hits += u64::from(value != 0.0);
        let off = value - self.mean;
        self.mean += off / self.count as f64;
        self.squares += off * (value - self.mean);
    }

    /// Their mean.
    pub fn estimate(&self) -> Estimate {
        let count = self.count as f64;
        let error =
            if self.count > 1 { (self.squares / (count - 1.0) / count).sqrt() } else { f64::INFINITY };
        Estimate { mean: self.mean, error, trials: self.count, hits: self.hits }
    }
}

impl Estimate {
    /// 95 % interval, normal. Without a hit the rule of three bounds a plain probability from above.
    pub fn interval(&self) -> (f64, f64) {
        if self.hits == 0 {
            return (0.0, (3.0 / self.trials.max(1) as f64).min(1.0));
        }
        ((self.mean - Z95 * self.error).max(0.0), self.mean + Z95 * self.error)
    }

    /// How many standard errors it is off.
    pub fn z(&self, exact: f64) -> f64 {
        (self.mean - exact) / self.error
    }
}

/// What a number of runs says about losing data.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Losses {
    /// A certain stripe is lost within the time.
    pub stripe: Estimate,
    /// Any stripe of the fleet is.
    pub any: Estimate,
}

/// Plain simulation: in each trial the share of groups that were lost, and whether any was.
pub fn plain(spec: &Spec, years: f64, trials: u64, seed: u64) -> Result<Losses, BadFleet> {
    let fresh = fresh(spec)?;
    let (mut stripe, mut any) = (Samples::default(), Samples::default());
    for trial in 0..trials {
        let mut fleet = fresh.restart(Dice::new(seed, trial), None);
        fleet.run(years, false);
        let lost = fleet.stats.ever_lost.len();
        stripe.add(lost as f64 / fleet.groups.count() as f64);
        any.add(f64::from(u8::from(lost > 0)));
    }
    Ok(Losses { stripe: stripe.estimate(), any: any.estimate() })
}

/// Importance sampling. Each trial studies a random group. Its loss, times the likelihood ratio, estimates that of a
/// stripe. Divided by the number of groups lost in the same run and times the number of groups, it estimates the loss
/// of any: every run with losses is then counted once in all (Adler, Blanchet and Liu 2012), however many groups fall
/// together. `stripe_only` ends runs early and leaves `any` without meaning.
pub fn rare(spec: &Spec, years: f64, trials: u64, seed: u64, stripe_only: bool) -> Result<Losses, BadFleet> {
    let fresh = fresh(spec)?;
    let groups = fresh.groups.count();
    let (mut stripe, mut any) = (Samples::default(), Samples::default());
    for trial in 0..trials {
        let mut dice = Dice::new(seed, trial);
        let tilt = Tilt::new(dice.below(groups) as GroupIx);
        let mut fleet = fresh.restart(dice, Some(tilt));
        fleet.run(years, stripe_only);
        let weight = match &fleet.tilt {
            Some(tilt) if fleet.stats.ever_lost.contains(&tilt.group) => tilt.weight,
            _ => 0.0,
        };
        stripe.add(weight);
        any.add(weight * groups as f64 / fleet.stats.ever_lost.len().max(1) as f64);
    }
    Ok(Losses { stripe: stripe.estimate(), any: any.estimate() })
}

fn fresh(spec: &Spec) -> Result<Fleet, BadFleet> {
    spec.check()?;
    Ok(Fleet::new(Arc::new(spec.clone()), Dice::new(0, 0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_have_the_textbook_mean_and_error() {
        let mut samples = Samples::default();
        [2.0, 4.0, 4.0, 0.0, 5.0, 9.0].into_iter().for_each(|value| samples.add(value));
        let found = samples.estimate();
        assert_eq!((found.mean, found.trials, found.hits), (4.0, 6, 5));
        assert!((found.error - (46.0f64 / 5.0 / 6.0).sqrt()).abs() < 1e-12);
        let mut none = Samples::default();
        (0..300).for_each(|_| none.add(0.0));
        assert_eq!(none.estimate().interval(), (0.0, 0.01));
    }
}
