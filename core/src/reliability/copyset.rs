//! D10 and D11: many nodes gone at the same moment. How likely is it that some stripe, or how much of one, was on them?

use super::{BadModel, choose};

/// Most shards of one set, and most nodes of one zone or hits of one burst in [`hits_by_zone`].
const WIDTH_MAX: usize = 1_024;

/// D11, uniform placement (Ford et al. 2010, 5.2): of `nodes` nodes `hit` are lost at once; probability that exactly
/// `lost` of a stripe's `width` shards, on random different nodes, are among them.
pub fn hits(nodes: usize, hit: usize, width: usize, lost: usize) -> Result<f64, BadModel> {
    if hit > nodes || width > nodes || width > WIDTH_MAX {
        return Err(BadModel::Shape(
            "a burst and a stripe fit into the nodes, and a stripe has at most 1024 shards",
        ));
    }
    if lost > width || lost > hit || width - lost > nodes - hit {
        return Ok(0.0);
    }
    // C(width, lost) · hit^(lost) · (nodes − hit)^(width − lost) / nodes^(width), with falling powers: no large numbers.
    let falling = (0..width).map(|i| {
        let above = if i < lost { hit - i } else { nodes - hit - (i - lost) };
        above as f64 / (nodes - i) as f64
    });
    Ok(choose(width, lost) * falling.product::<f64>())
}

/// D11, at most one shard in a zone: `zones` lists (nodes, of them hit); the stripe is on `width` nodes of as many
/// different zones, every such set equally likely. By number lost: its probability.
pub fn hits_by_zone(zones: &[(usize, usize)], width: usize) -> Result<Vec<f64>, BadModel> {
    if width > zones.len().min(WIDTH_MAX) || zones.iter().any(|(nodes, hit)| hit > nodes) {
        return Err(BadModel::Shape(
            "a stripe has at most one shard in a zone, and no zone more hits than nodes",
        ));
    }
    // Coefficient of x^width t^lost in Π (1 + x((N − b) + b t)); all terms are positive.
    let mut ways = vec![vec![0.0; width + 1]; width + 1];
    ways[0][0] = 1.0;
    for (nodes, hit) in zones {
        let (spared, hit) = ((nodes - hit) as f64, *hit as f64);
        for chosen in (0..width).rev() {
            for lost in (0..=chosen).rev() {
                let now = ways[chosen][lost];
                ways[chosen + 1][lost] += now * spared;
                ways[chosen + 1][lost + 1] += now * hit;
            }
        }
        // Only ratios matter; keep the numbers small.
        let scale = ways.iter().flatten().fold(0.0f64, |most, way| most.max(*way));
        ways.iter_mut().flatten().for_each(|way| *way /= scale);
    }
    let all: f64 = ways[width].iter().sum();
    if all == 0.0 {
        return Err(BadModel::Shape("too many zones are empty"));
    }
    Ok(ways[width].iter().map(|way| way / all).collect())
}

/// D10: probability that a set of n random nodes loses more than m when `hit` of `nodes` nodes vanish. (Cidon et al.
/// 2013.)
pub fn set_lost(nodes: usize, hit: usize, n: usize, m: usize) -> Result<f64, BadModel> {
    (m + 1..=n).rev().map(|lost| hits(nodes, hit, n, lost)).sum()
}

/// D10: that any of so many sets does; the sets are taken as independent.
pub fn any_lost(one: f64, sets: f64) -> Result<f64, BadModel> {
    let (one, sets) = (super::probability("loss of one set", one)?, super::rate("sets", sets)?);
    if sets == 0.0 {
        return Ok(0.0);
    }
    Ok(-(sets * (-one).ln_1p()).exp_m1())
}

#[cfg(test)]
mod tests {
    use super::super::tests::close;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn d10_copysets_of_5000_nodes() {
        let of = |n, m| set_lost(5_000, 50, n, m).unwrap();
        close(of(3, 2), 9.414e-7, 1e-3);
        close(any_lost(of(3, 2), 1_666.0).unwrap(), 0.00157, 2e-3); // the paper says 0.15 %
        assert!(any_lost(of(3, 2), 1e7).unwrap() > 0.9999);
        close(of(9, 3), 1.075e-6, 1e-3);
        close(of(12, 4), 6.125e-8, 1e-3);
        close(of(14, 4), 1.525e-7, 1e-3);
        close(of(15, 6), 3.92e-11, 1e-3);
        let rs_10_4 = |sets| any_lost(of(14, 4), sets).unwrap();
        close(rs_10_4((5_000 / 14) as f64), 0.000_054, 2e-2);
        close(rs_10_4(100.0 * 5_000.0 / 14.0), 0.00543, 5e-3);
        close(rs_10_4(1e7), 0.782, 1e-3);
    }

    #[test]
    fn d11_one_per_zone_by_hand() {
        // Two zones of two nodes, one of each hit: a quarter keeps both, a half loses one.
        let found = hits_by_zone(&[(2, 1), (2, 1)], 2).unwrap();
        assert_eq!(found, vec![0.25, 0.5, 0.25]);
        // One rack burning cannot take two shards.
        let found = hits_by_zone(&[(10, 10), (10, 0), (10, 0)], 2).unwrap();
        close(found[1], 2.0 / 3.0, 1e-14);
        assert_eq!(found[2], 0.0);
    }

    #[test]
    fn bad_numbers_are_refused() {
        assert!(hits(3, 4, 1, 0).is_err() && hits(3, 1, 4, 0).is_err());
        assert_eq!(hits(9, 2, 3, 3).unwrap(), 0.0);
        assert!(hits_by_zone(&[(1, 2)], 1).is_err() && hits_by_zone(&[(1, 0)], 2).is_err());
        assert!(hits_by_zone(&[(0, 0), (1, 0)], 2).is_err());
        assert!(any_lost(2.0, 1.0).is_err() && any_lost(0.1, -1.0).is_err());
        assert_eq!(any_lost(1.0, 3.0).unwrap(), 1.0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn d11_sums_to_one_and_zones_of_one_node_are_uniform(hit in 0usize..12, more in 0usize..12, width in 1usize..9) {
            let nodes = hit + more;
            prop_assume!(width <= nodes);
            let uniform: Vec<f64> = (0..=width).map(|lost| hits(nodes, hit, width, lost).unwrap()).collect();
            prop_assert!((uniform.iter().sum::<f64>() - 1.0).abs() < 1e-12);
            let zones: Vec<_> = (0..nodes).map(|i| (1, usize::from(i < hit))).collect();
            for (a, b) in uniform.iter().zip(hits_by_zone(&zones, width).unwrap()) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }
}
