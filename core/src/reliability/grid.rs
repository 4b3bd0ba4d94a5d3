//! D1 and D2: what a code over regions costs, and which losses it survives for certain.

use super::{BadModel, binomial, probability};
use crate::erasure::Scheme;
use crate::limits::STRIPE_SHARDS_MAX;

/// R regions of s shards each, l local parities in every region and h global ones: k = R(s − l) − h.
///
/// l = 0 is plain Reed-Solomon, and with k = 1 copies. l = 1 is the folded local code, taken to be maximally
/// recoverable: any one shard is the XOR of the others of its region. It can be lost to a pattern e of losses by region
/// only if Σ max(0, e_r − l) > h.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Grid {
    regions: usize,
    shards: usize,
    local: usize,
    global: usize,
}

impl Grid {
    /// Checks the numbers.
    pub fn new(regions: usize, shards: usize, local: usize, global: usize) -> Result<Self, BadModel> {
        if regions == 0 || shards == 0 || regions * shards > STRIPE_SHARDS_MAX {
            return Err(BadModel::Shape("a grid has 1 to 32 shards"));
        }
        if local > 1 || local >= shards && local > 0 {
            return Err(BadModel::Shape("a region has no local parity, or one and a shard besides"));
        }
        if regions * (shards - local) <= global {
            return Err(BadModel::Shape("no shard is left for data"));
        }
        Ok(Grid { regions, shards, local, global })
    }

    /// Reed-Solomon with m parity shards over the whole grid.
    pub fn reed_solomon(regions: usize, shards: usize, m: usize) -> Result<Self, BadModel> {
        Grid::new(regions, shards, 0, m)
    }

    /// A scheme that fills every one of its regions to its spread limit; others are no grid.
    pub fn of(scheme: Scheme) -> Result<Self, BadModel> {
        let spread = usize::from(scheme.spread()).min(scheme.n());
        if !scheme.n().is_multiple_of(spread) {
            return Err(BadModel::Shape("the scheme does not hold equally many shards in every region"));
        }
        Grid::new(scheme.n() / spread, spread, 0, scheme.m())
    }

    /// Regions.
    pub fn regions(self) -> usize {
        self.regions
    }
    /// Shards in each region.
    pub fn shards(self) -> usize {
        self.shards
    }
    /// Local parities in each region.
    pub fn local(self) -> usize {
        self.local
    }
    /// All shards.
    pub fn n(self) -> usize {
        self.regions * self.shards
    }
    /// Data shards.
    pub fn k(self) -> usize {
        self.regions * (self.shards - self.local) - self.global
    }
    /// D1: bytes stored for each byte.
    pub fn overhead(self) -> f64 {
        overhead(self.n(), self.k())
    }

    /// Whether a stripe can be read with so many shards lost, by region.
    pub fn decodes(self, lost: impl IntoIterator<Item = usize>) -> bool {
        lost.into_iter().map(|e| e.min(self.shards).saturating_sub(self.local)).sum::<usize>() <= self.global
    }

    /// D2: at place f, how many further nodes may be lost, wherever they are, after any f whole regions. It ends before
    /// the first f that is not survived at all.
    pub fn guarantees(self) -> Vec<usize> {
        let after = |dead: usize| {
            let nodes = (self.regions - dead) * self.shards;
            (0..=nodes).take_while(|lost| self.survives(dead, *lost)).last()
        };
        (0..self.regions).map_while(after).collect()
    }

    /// The worst place for nodes to be lost is one region after the other: only so local parities help least.
    fn survives(self, dead: usize, nodes: usize) -> bool {
        let filled = std::iter::repeat_n(self.shards, dead + nodes / self.shards);
        self.decodes(filled.chain([nodes % self.shards]))
    }

    /// D14: probability that a stripe cannot be read now, with regions out for a share `region` of the time and nodes
    /// of live regions for a share `node`, all independent of each other.
    pub fn unavailability(self, region: f64, node: f64) -> Result<f64, BadModel> {
        let (region, node) = (probability("region outage", region)?, probability("node outage", node)?);
        let width = self.shards - self.local;
        let mut of_one = vec![0.0; width + 1];
        of_one[width] += region;
        for lost in 0..=self.shards {
            of_one[lost.saturating_sub(self.local)] += (1.0 - region) * binomial(self.shards, lost, node);
        }
        // Distribution of Σ max(0, e_r − l), one region after the other.
        let mut sum = vec![1.0];
        for _ in 0..self.regions {
            let mut next = vec![0.0; sum.len() + width];
            for (i, a) in sum.iter().enumerate() {
                for (j, b) in of_one.iter().enumerate() {
                    next[i + j] += a * b;
                }
            }
            sum = next;
        }
        Ok(sum.iter().skip(self.global + 1).rev().sum())
    }
}

/// D1: n/k.
pub fn overhead(n: usize, k: usize) -> f64 {
    n as f64 / k as f64
}

#[cfg(test)]
mod tests {
    use super::super::tests::close;
    use super::*;
    use proptest::prelude::*;

    fn rs(regions: usize, shards: usize, m: usize) -> Grid {
        Grid::reed_solomon(regions, shards, m).unwrap()
    }

    #[test]
    fn d1_published_overheads() {
        // f4 (Muralidhar 2014): RS(10,4) and an XOR of two regions in a third. Giza (Chen 2017): the same over LRC.
        close(overhead(14, 10) * overhead(3, 2), 2.1, 1e-15);
        close(overhead(13, 10) * overhead(3, 2), 1.95, 1e-15);
        close(overhead(16, 12), 1.3333, 1e-4); // Azure's LRC(12,2,2)
        close(overhead(16, 10), 1.6, 1e-15); // Xorbas' LRC(10,6,5)
        close(overhead(80, 29), 2.7586, 1e-5); // Storj
        close(rs(3, 5, 6).overhead(), 1.667, 1e-3);
        close(Grid::new(4, 5, 1, 4).unwrap().overhead(), 1.667, 1e-3);
    }

    #[test]
    fn d2_the_table_of_guarantees() {
        let mrl = |regions, shards, h| Grid::new(regions, shards, 1, h).unwrap();
        let table = [
            (rs(3, 1, 2), vec![2, 1, 0]),
            (rs(2, 1, 1), vec![1, 0]),
            (rs(3, 3, 3), vec![3, 0]),
            (rs(3, 3, 4), vec![4, 1]),
            (rs(3, 5, 6), vec![6, 1]),
            (rs(3, 5, 7), vec![7, 2]),
            (rs(4, 4, 6), vec![6, 2]),
            (rs(5, 3, 7), vec![7, 4, 1]),
            (rs(5, 4, 9), vec![9, 5, 1]),
            (mrl(3, 4, 3), vec![5, 1]),
            (mrl(3, 6, 6), vec![8, 2]),
            (mrl(3, 8, 7), vec![9, 1]),
            (mrl(4, 6, 6), vec![8, 2]),
            (mrl(5, 5, 8), vec![11, 6, 1]),
        ];
        for (grid, survives) in table {
            assert_eq!(grid.guarantees(), survives, "{grid:?}");
        }
    }

    #[test]
    fn d14_the_table_of_unavailability() {
        let table = [
            (rs(3, 5, 6), 6.28e-6),
            (Grid::new(3, 5, 1, 4).unwrap(), 4.48e-6),
            (rs(4, 4, 6), 6.10e-6),
            (Grid::new(4, 5, 1, 4).unwrap(), 8.95e-6),
            (rs(5, 4, 6), 1.03e-5),
            (rs(5, 4, 9), 2.59e-8),
            (rs(3, 1, 2), 2.15e-7),
            (rs(3, 3, 3), 9.18e-5),
            (rs(3, 1, 1), 1.07e-4),
        ];
        for (grid, expected) in table {
            close(grid.unavailability(1e-3, 5e-3).unwrap(), expected, 5e-3);
        }
        assert!(rs(3, 1, 1).unavailability(1.5, 0.0).is_err());
        assert!(rs(3, 1, 1).unavailability(0.1, f64::NAN).is_err());
    }

    #[test]
    fn schemes_that_fill_their_regions_are_grids() {
        assert_eq!(Grid::of(Scheme::new(6, 3, 3).unwrap()).unwrap(), rs(3, 3, 3));
        assert!(Grid::of(Scheme::new(6, 3, 2).unwrap()).is_err());
        for bad in [(0, 3, 0, 1), (3, 0, 0, 1), (3, 3, 2, 1), (3, 1, 1, 1), (3, 3, 0, 9), (9, 9, 0, 1)] {
            assert!(Grid::new(bad.0, bad.1, bad.2, bad.3).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against every pattern there is.
        #[test]
        fn d2_no_pattern_within_the_guarantee_is_lost_and_some_pattern_beyond_is(
            regions in 1usize..4, shards in 1usize..5, local in 0usize..2, global in 1usize..8
        ) {
            let Ok(grid) = Grid::new(regions, shards, local, global) else { return Ok(()) };
            let patterns = || (0..(shards + 1).pow(regions as u32)).map(|code| {
                (0..regions).map(|r| code / (shards + 1).pow(r as u32) % (shards + 1)).collect::<Vec<_>>()
            });
            let guarantees = grid.guarantees();
            for dead in 0..regions {
                let lost = |p: &Vec<usize>| p[dead..].iter().sum::<usize>();
                let of_dead = || patterns().filter(|p| p[..dead].iter().all(|e| *e == shards));
                let worst = of_dead().filter(|p| !grid.decodes(p.iter().copied())).map(|p| lost(&p)).min();
                let most = of_dead().map(|p| lost(&p)).max();
                let expected = match worst {
                    Some(0) => None,
                    Some(fewest) => Some(fewest - 1),
                    None => most,
                };
                prop_assert_eq!(guarantees.get(dead).copied(), expected);
            }
        }
    }
}
