//! D3, D4 and V1: losses that know nothing of each other. They leave out whole regions and repair that waits, so they
//! flatter; published figures often are of this kind, which makes them good tests.

use super::{BadModel, binomial, positive, probability, rate};

/// Most shards these sums run over.
const SHARDS_MAX: usize = 10_000;

/// D3, from one repair window to a year.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Window {
    /// Probability that one shard is lost within the window.
    pub shard: f64,
    /// That more than m of n are.
    pub stripe: f64,
    /// That this happens in any window of a year.
    pub annual: f64,
}

/// D3: n shards of which m may be missing, each lost at `shard_rate` a year; what is lost in a window is replaced at its
/// end. (Backblaze, erasure-coding-durability, 2018.)
pub fn repair_window(n: usize, m: usize, shard_rate: f64, window: f64) -> Result<Window, BadModel> {
    let (shard_rate, window) = (rate("shard loss rate", shard_rate)?, positive("window", window)?);
    let shard = -(-shard_rate * window).exp_m1();
    let stripe = more_than(n, m, shard)?;
    Ok(Window { shard, stripe, annual: -((-stripe).ln_1p() / window).exp_m1() })
}

/// Probability that more than m of n are lost, each with probability p.
pub fn more_than(n: usize, m: usize, p: f64) -> Result<f64, BadModel> {
    let p = probability("shard loss", p)?;
    if n > SHARDS_MAX {
        return Err(BadModel::TooLarge { what: "shards", size: n as f64, most: SHARDS_MAX as f64 });
    }
    Ok((m + 1..=n).rev().map(|j| binomial(n, j, p)).sum::<f64>().min(1.0))
}

/// D4: any k of n give the data back; each piece is lost with probability p and the number lost is taken as Poisson.
/// (Storj v3 white paper, 7.3.) Survival and loss, each summed by itself.
pub fn churn(n: usize, k: usize, p: f64) -> Result<(f64, f64), BadModel> {
    let p = probability("piece loss", p)?;
    if k == 0 || k > n {
        return Err(BadModel::Shape("k is at least 1 and at most n"));
    }
    if n > SHARDS_MAX {
        return Err(BadModel::TooLarge { what: "pieces", size: n as f64, most: SHARDS_MAX as f64 });
    }
    let mean = p * n as f64;
    let mut log_term = -mean;
    let (mut survive, mut lose) = (0.0, 0.0);
    for i in 0.. {
        let term = log_term.exp();
        if i <= n - k {
            survive += term;
        } else {
            lose += term;
            // Past the mean the terms fall faster than geometrically.
            if i as f64 > mean && term <= lose * f64::EPSILON / 4.0 {
                break;
            }
        }
        log_term += mean.ln() - ((i + 1) as f64).ln();
    }
    Ok((survive, lose))
}

/// V1: how many independent trials without a failure show, with this confidence, that failures are rarer than p. At
/// 95 % it is the rule of three, 3/p.
pub fn trials_for(p: f64, confidence: f64) -> Result<f64, BadModel> {
    let (p, confidence) = (probability("failure", p)?, probability("confidence", confidence)?);
    if p == 0.0 || confidence == 1.0 {
        return Err(BadModel::Shape("no number of trials shows certainty"));
    }
    Ok(((-confidence).ln_1p() / (-p).ln_1p()).ceil().max(1.0))
}

#[cfg(test)]
mod tests {
    use super::super::nines;
    use super::super::tests::close;
    use super::*;

    #[test]
    fn d3_backblaze_17_and_3() {
        let found = repair_window(20, 3, 0.00405, 6.5 / 365.0).unwrap();
        close(found.shard, 7.21207e-5, 1e-5);
        close(found.stripe, 1.30958e-13, 1e-5);
        close(found.annual, 7.3538e-12, 1e-4);
        assert_eq!(nines(found.annual).floor(), 11.0);
        let threshold = repair_window(20, 2, 0.00405, 6.5 / 365.0).unwrap();
        close(threshold.stripe, 4.273e-10, 1e-3);
        close(threshold.annual, 2.399e-8, 1e-3);
    }

    #[test]
    fn d4_storj_table() {
        let table = [
            (2, 4, 0.9920736681),
            (4, 8, 0.9985886899),
            (8, 16, 0.9999546241),
            (16, 32, 0.9999999462),
            (20, 40, 0.9999999981),
        ];
        for (k, n, expected) in table {
            let (survive, lose) = churn(n, k, 0.1).unwrap();
            assert!((survive - expected).abs() < 6e-11, "{k} of {n}: {survive}");
            close(survive + lose, 1.0, 1e-14);
        }
        close(churn(36, 18, 0.1).unwrap().1, 1.015e-8, 1e-3);
        close(churn(9, 1, 0.1).unwrap().1, 4.77e-7, 1e-2);
        assert_eq!(churn(4, 2, 0.0).unwrap(), (1.0, 0.0));
    }

    #[test]
    fn v1_rule_of_three() {
        close(trials_for(1e-3, 0.95).unwrap(), 3_000.0, 2e-3);
        assert_eq!(trials_for(1.0, 0.95).unwrap(), 1.0);
        assert!(trials_for(0.0, 0.95).is_err());
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(repair_window(20, 3, -1.0, 0.1).is_err());
        assert!(repair_window(20, 3, 0.1, 0.0).is_err());
        assert!(repair_window(1 << 40, 3, 0.1, 0.1).is_err());
        assert!(churn(4, 0, 0.1).is_err() && churn(4, 5, 0.1).is_err() && churn(4, 2, 1.1).is_err());
        assert_eq!(more_than(3, 3, 0.5).unwrap(), 0.0);
        assert_eq!(more_than(3, 0, 1.0).unwrap(), 1.0);
    }
}
