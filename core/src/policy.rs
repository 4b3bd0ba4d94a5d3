//! What must be survived, and the compiler from goals to a code.
//!
//! Pure: goals and nodes in, a scheme or a refusal out. It never looks at single shards; where they go is
//! `placement.rs`.

use crate::erasure::{BadScheme, Scheme};
use crate::limits::{STRIPE_SHARDS_MAX, STRIPE_WIDTH_DEFAULT};
use crate::topology::{NodeRecord, NodeState};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What an operator asks for. All three kinds of loss may happen together: `1 region + 1 node` is a region and one
/// node of another region.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Whole regions that may vanish at once.
    pub regions: u8,
    /// Further nodes that may vanish besides.
    pub nodes: u8,
    /// Whole providers that may vanish at once.
    pub providers: u8,
    /// Write floor: a degraded write is accepted only if this many further nodes can be lost and k shards remain.
    pub floor_nodes: u8,
}

/// Floor of a policy that does not name one.
const FLOOR_NODES_DEFAULT: u8 = 1;

impl Default for Policy {
    fn default() -> Self {
        Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: FLOOR_NODES_DEFAULT }
    }
}

/// Text that is not a goal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a goal: write for example \"1 region + 1 node\", \"1 provider\" or \"2 nodes\", at least 1 in all"
)]
pub struct BadPolicy(String);

impl fmt::Display for Policy {
    /// The losses only; the floor is a setting of its own.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |count: u8, word| match count {
            0 => None,
            1 => Some(format!("1 {word}")),
            _ => Some(format!("{count} {word}s")),
        };
        let parts =
            [part(self.providers, "provider"), part(self.regions, "region"), part(self.nodes, "node")];
        let parts: Vec<String> = parts.into_iter().flatten().collect();
        f.write_str(if parts.is_empty() { "nothing".into() } else { parts.join(" + ") }.as_str())
    }
}

impl FromStr for Policy {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = || BadPolicy(text.into());
        let mut policy = Policy { regions: 0, nodes: 0, providers: 0, floor_nodes: FLOOR_NODES_DEFAULT };
        let mut seen = [false; 3];
        for part in text.split('+') {
            let (count, word) = part.trim().split_once(' ').ok_or_else(bad)?;
            let count: u8 = count.parse().map_err(|_| bad())?;
            let (kind, slot) = match word.trim() {
                "region" | "regions" => (0, &mut policy.regions),
                "node" | "nodes" => (1, &mut policy.nodes),
                "provider" | "providers" => (2, &mut policy.providers),
                _ => return Err(bad()),
            };
            if usize::from(count) >= STRIPE_SHARDS_MAX || std::mem::replace(&mut seen[kind], true) {
                return Err(bad());
            }
            *slot = count;
        }
        if policy.survives_nothing() { Err(bad()) } else { Ok(policy) }
    }
}

impl Policy {
    /// Whether a scheme can have been compiled from this policy on any nodes at all, by its numbers alone: nodes come
    /// and go between compiling and committing. The fullest region of a compiled scheme holds as many shards as the
    /// spread limit allows, and each further domain that is to be survived holds at least one.
    pub fn admits(&self, scheme: Scheme) -> bool {
        let domains = usize::from(self.regions) + usize::from(self.providers);
        let lost = if domains == 0 { 0 } else { usize::from(scheme.spread()) + domains - 1 };
        scheme.m() >= (lost + usize::from(self.nodes)).max(self.floor_nodes.into())
    }

    fn survives_nothing(&self) -> bool {
        self.providers == 0 && self.regions == 0 && self.nodes == 0
    }
}

/// Why a policy makes no scheme here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A policy that asks for nothing protects nothing.
    #[error("the policy names no loss that must be survived; \"1 region\" is the usual goal")]
    Nothing,
    /// The topology cannot give it.
    #[error("\"{goal}\" is not possible: {reason}{}", nearest_text(.nearest))]
    Impossible {
        /// What was asked.
        goal: Policy,
        /// Which number stands in the way.
        reason: String,
        /// The strongest weaker goal that this topology can give; whole domains count before nodes.
        nearest: Option<Policy>,
    },
    /// Numbers that make no code; only with limits out of step.
    #[error(transparent)]
    Scheme(#[from] BadScheme),
}

fn nearest_text(nearest: &Option<Policy>) -> String {
    match nearest {
        Some(policy) => format!("; the nearest possible goal is \"{policy}\""),
        None => "; no goal is possible before there are at least 2 nodes".into(),
    }
}

/// The scheme that gives the policy on these nodes with the least storage: of equal ones the widest, because its
/// shards are smaller and its losses rarer.
pub fn compile(policy: &Policy, nodes: &[NodeRecord]) -> Result<Scheme, PolicyError> {
    if policy.survives_nothing() {
        return Err(PolicyError::Nothing);
    }
    let map = Map::of(nodes);
    match map.best(policy) {
        Some(code) => Ok(Scheme::new(code.k as u8, (code.n - code.k) as u8, code.spread as u8)?),
        None => Err(PolicyError::Impossible {
            goal: *policy,
            reason: map.obstacle(policy),
            nearest: map.nearest(policy),
        }),
    }
}

/// One sentence for a person: what the scheme costs and what it survives on these nodes.
pub fn explain(scheme: Scheme, policy: &Policy, nodes: &[NodeRecord]) -> String {
    let map = Map::of(nodes);
    let (n, m, spread) = (scheme.n(), scheme.m(), usize::from(scheme.spread()));
    let overhead = n as f64 / scheme.k() as f64;
    let mut text = format!(
        "{scheme}: every pack becomes {n} shards on {n} nodes, at most {spread} in one region, any {} of them give it \
         back; this takes {overhead:.2}× the space and ",
        scheme.k(),
    );
    let room: usize = map.regions.values().map(|size| (*size).min(spread)).sum();
    if room < n {
        text +=
            &format!("has room for only {room} of the {n} shards on these nodes, so packs stay under target");
        return text;
    }
    let lost = map.worst_loss(policy.providers.into(), policy.regions.into(), n, spread);
    if lost + usize::from(policy.nodes) > m {
        text += &format!("does not survive the loss of {policy} on these nodes");
        return text;
    }
    let domains = Policy { nodes: 0, ..*policy };
    let spare = m - lost;
    text += &match (domains.survives_nothing(), spare) {
        (true, _) => format!("survives the loss of any {}", count(spare, "node")),
        (false, 0) => format!("survives the loss of any {domains}; after that nothing is spare"),
        (false, _) => format!("survives the loss of any {domains} and of {} more", count(spare, "node")),
    };
    text
}

fn count(number: usize, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// Shards may be placed there, now or when it is back.
fn stays(node: &NodeRecord) -> bool {
    node.state.counts() && node.state != NodeState::Draining && !node.is_witness()
}

/// A scheme in the making.
#[derive(Clone, Copy)]
struct Code {
    n: usize,
    k: usize,
    spread: usize,
}

/// How many nodes there are to place shards on, by region; the nodes themselves do not matter.
struct Map<'a> {
    regions: BTreeMap<&'a str, usize>,
    /// Sizes of the regions of each provider.
    providers: BTreeMap<&'a str, Vec<usize>>,
}

impl<'a> Map<'a> {
    fn of(nodes: &'a [NodeRecord]) -> Self {
        let mut map = Map { regions: BTreeMap::new(), providers: BTreeMap::new() };
        for node in nodes.iter().filter(|n| stays(n)) {
            *map.regions.entry(node.region.as_str()).or_default() += 1;
        }
        for (region, size) in &map.regions {
            let provider = region.split_once('/').map_or(*region, |(provider, _)| provider);
            map.providers.entry(provider).or_default().push(*size);
        }
        map
    }

    fn nodes(&self) -> usize {
        self.regions.values().sum()
    }

    /// The code with the least n/k, then the greatest n.
    fn best(&self, policy: &Policy) -> Option<Code> {
        let widths = 2..=self.nodes().min(STRIPE_WIDTH_DEFAULT);
        let codes = widths.filter_map(|n| self.code_of_width(n, policy));
        codes.reduce(|best, code| if code.n * best.k <= best.n * code.k { code } else { best })
    }

    /// With n shards the least spread is the best, because it bounds what one region can take along.
    fn code_of_width(&self, n: usize, policy: &Policy) -> Option<Code> {
        let spread = self.least_spread(n)?;
        let lost = self.worst_loss(policy.providers.into(), policy.regions.into(), n, spread);
        let m = (lost + usize::from(policy.nodes)).max(policy.floor_nodes.into()).max(1);
        (m < n).then(|| Code { n, k: n - m, spread })
    }

    /// The least number of shards per region that still leaves room for n, one per node.
    fn least_spread(&self, n: usize) -> Option<usize> {
        (1..=n).find(|spread| self.regions.values().map(|size| (*size).min(*spread)).sum::<usize>() >= n)
    }

    /// Most shards of n that `providers` whole providers and `regions` further regions can hold, in the unluckiest
    /// placement that the spread limit allows.
    fn worst_loss(&self, providers: usize, regions: usize, n: usize, spread: usize) -> usize {
        // worst[p][f]: the most that p providers and f single regions of those seen so far can hold. More than n of
        // either is no worse than n, since each holds a shard.
        let (p_max, f_max) = (providers.min(self.providers.len()), regions.min(self.regions.len()));
        let mut worst = vec![vec![0usize; f_max + 1]; p_max + 1];
        for sizes in self.providers.values() {
            let mut held: Vec<usize> = sizes.iter().map(|size| (*size).min(spread)).collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            let whole: usize = held.iter().sum();
            for p in (0..=p_max).rev() {
                for f in (0..=f_max).rev() {
                    let mut most = worst[p][f];
                    let mut top = 0;
                    for (taken, shards) in held.iter().take(f).enumerate() {
                        top += shards;
                        most = most.max(worst[p][f - taken - 1] + top);
                    }
                    if p > 0 {
                        most = most.max(worst[p - 1][f] + whole);
                    }
                    worst[p][f] = most;
                }
            }
        }
        worst[p_max][f_max].min(n)
    }

    /// Why no width works, in the operator's words.
    fn obstacle(&self, policy: &Policy) -> String {
        let (regions, providers) = (self.regions.len(), self.providers.len());
        if self.nodes() < 2 {
            return format!("there {} to place shards on", are(self.nodes(), "node"));
        }
        if usize::from(policy.providers) >= providers {
            return format!(
                "it needs nodes of at least {} providers and there {}",
                u16::from(policy.providers) + 1,
                are(providers, "provider")
            );
        }
        if usize::from(policy.regions) >= regions {
            return format!(
                "it needs nodes in at least {} regions and there {}",
                u16::from(policy.regions) + 1,
                are(regions, "region")
            );
        }
        let n = self.nodes().min(STRIPE_WIDTH_DEFAULT);
        let spread = self.least_spread(n).unwrap_or(n);
        let lost = self.worst_loss(policy.providers.into(), policy.regions.into(), n, spread);
        format!(
            "of {n} shards, at most {spread} in a region, such a loss and the floor of {} could take all ({lost} with \
             whole domains), and at least one must remain; add nodes, best in further regions",
            count(policy.floor_nodes.into(), "node"),
        )
    }

    /// Gives up nodes first, then regions, then providers; a provider given up may become a region.
    fn nearest(&self, policy: &Policy) -> Option<Policy> {
        for providers in (0..=policy.providers.min(STRIPE_WIDTH_DEFAULT as u8)).rev() {
            let regions = policy.regions.saturating_add(policy.providers - providers);
            for regions in (0..=regions.min(STRIPE_WIDTH_DEFAULT as u8)).rev() {
                let least =
                    Policy { providers, regions, nodes: u8::from(providers + regions == 0), ..*policy };
                if self.best(&least).is_none() {
                    continue;
                }
                let more = (least.nodes..=policy.nodes.min(STRIPE_WIDTH_DEFAULT as u8))
                    .map(|nodes| Policy { nodes, ..least })
                    .take_while(|p| self.best(p).is_some());
                return Some(more.last().unwrap_or(least));
            }
        }
        let floorless = Policy { floor_nodes: FLOOR_NODES_DEFAULT, ..*policy };
        if policy.floor_nodes > FLOOR_NODES_DEFAULT { self.nearest(&floorless) } else { None }
    }
}

fn are(number: usize, word: &str) -> String {
    format!("{} {}", if number == 1 { "is" } else { "are" }, count(number, word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;
    use proptest::prelude::*;

    /// One region per entry, with so many nodes.
    fn cluster(regions: &[(&str, usize)]) -> Vec<NodeRecord> {
        let places = regions.iter().flat_map(|(region, size)| std::iter::repeat_n(*region, *size));
        places
            .enumerate()
            .map(|(i, region)| NodeRecord {
                id: NodeId(i as u64 + 1),
                name: format!("n{i}").parse().unwrap(),
                region: region.parse().unwrap(),
                zone: None,
                addr: String::new(),
                capacity: 1 << 40,
                state: NodeState::Up,
            })
            .collect()
    }
    fn even(regions: usize, each: usize) -> Vec<NodeRecord> {
        let names = ["a/1", "b/1", "c/1", "d/1", "e/1"];
        cluster(&names[..regions].iter().map(|name| (*name, each)).collect::<Vec<_>>())
    }
    fn compiled(goal: &str, nodes: &[NodeRecord]) -> Result<(u8, u8, u8), PolicyError> {
        compile(&goal.parse().unwrap(), nodes).map(Into::into)
    }

    #[test]
    fn goals_are_read_and_written() {
        for text in [
            "1 region + 1 node",
            "1 provider",
            "2 regions + 1 node",
            "1 node",
            "2 nodes",
            "1 provider + 1 region",
        ] {
            assert_eq!(text.parse::<Policy>().unwrap().to_string(), text);
        }
        assert_eq!("1 region".parse(), Ok(Policy::default()));
        assert_eq!(" 2 node +  1 regions ".parse::<Policy>().unwrap().to_string(), "1 region + 2 nodes");
        for text in [
            "",
            "region",
            "1",
            "0 regions",
            "1 zone",
            "-1 nodes",
            "1 node + 1 node",
            "1 region +",
            "99 nodes",
        ] {
            assert!(text.parse::<Policy>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn the_examples_of_the_design() {
        assert_eq!(compiled("1 region", &even(3, 2)), Ok((4, 2, 2)));
        assert_eq!(compiled("1 region + 1 node", &even(3, 4)), Ok((7, 5, 4)));
        assert_eq!(compiled("1 region + 1 node", &even(4, 3)), Ok((8, 4, 3)));
        assert_eq!(compiled("1 region + 2 nodes", &even(5, 3)), Ok((10, 5, 3)));
        assert_eq!(compiled("1 region + 1 node", &even(3, 2)), Ok((3, 3, 2)));
        assert_eq!(compiled("2 regions + 1 node", &even(5, 4)), Ok((11, 9, 4)));
    }

    #[test]
    fn uneven_regions_are_not_taken_for_even_ones() {
        // Five nodes in one region help little: it may not hold more than what the others can make up for.
        assert_eq!(compiled("1 region", &cluster(&[("a/1", 5), ("b/1", 1), ("c/1", 1)])), Ok((2, 1, 1)));
        assert_eq!(compiled("1 region", &cluster(&[("a/1", 4), ("b/1", 2), ("c/1", 2)])), Ok((4, 2, 2)));
        assert_eq!(compiled("1 region", &cluster(&[("a/1", 3), ("b/1", 3)])), Ok((3, 3, 3)));
    }

    #[test]
    fn a_provider_takes_all_its_regions_along() {
        let nodes = cluster(&[("a/1", 2), ("a/2", 2), ("b/1", 2), ("b/2", 2), ("c/1", 2), ("c/2", 2)]);
        assert_eq!(compiled("1 provider", &nodes), Ok((8, 4, 2)));
        assert_eq!(compiled("1 region", &nodes), Ok((10, 2, 2)));
        // A provider and, besides, a region of another one.
        assert_eq!(compiled("1 provider + 1 region", &nodes), Ok((6, 6, 2)));
        let lopsided = cluster(&[("a/1", 2), ("a/2", 2), ("a/3", 2), ("b/1", 2)]);
        assert_eq!(compiled("1 provider", &lopsided), Ok((2, 6, 2)));
    }

    #[test]
    fn nodes_that_leave_do_not_count_and_silent_ones_do() {
        let mut nodes = even(3, 3);
        nodes[0].state = NodeState::Draining;
        nodes[3].state = NodeState::Lost;
        nodes[6].state = NodeState::Retired;
        nodes[7].state = NodeState::Down;
        assert_eq!(compiled("1 region", &nodes), Ok((4, 2, 2)));
    }

    #[test]
    fn refusals_name_reason_and_nearest_goal() {
        let nearest = |goal: &str, nodes: &[NodeRecord]| match compiled(goal, nodes) {
            Err(PolicyError::Impossible { nearest, reason, .. }) => (nearest.map(|p| p.to_string()), reason),
            other => panic!("{other:?}"),
        };
        let (goal, reason) = nearest("1 region", &even(1, 6));
        assert_eq!(goal.as_deref(), Some("1 node"));
        assert!(reason.contains("at least 2 regions") && reason.contains("is 1 region"), "{reason}");
        assert_eq!(nearest("1 region + 9 nodes", &even(3, 2)).0.as_deref(), Some("1 region + 3 nodes"));
        assert_eq!(nearest("3 regions + 1 node", &even(3, 2)).0.as_deref(), Some("2 regions + 1 node"));
        let one_provider = cluster(&[("a/1", 2), ("a/2", 2), ("a/3", 2)]);
        assert_eq!(nearest("1 provider", &one_provider).0.as_deref(), Some("1 region"));
        assert_eq!(nearest("1 node", &even(1, 1)).0, None);
        assert_eq!(nearest("1 node", &[]).0, None);
        let nothing = Policy { regions: 0, ..Policy::default() };
        assert_eq!(compile(&nothing, &even(3, 2)), Err(PolicyError::Nothing));
        let huge = Policy { regions: 255, nodes: 255, providers: 255, floor_nodes: 255 };
        assert!(compile(&huge, &even(5, 20)).is_err());
    }

    #[test]
    fn the_floor_raises_parity() {
        let policy = Policy { floor_nodes: 3, ..Policy::default() };
        assert_eq!(compile(&policy, &even(3, 2)).map(Into::into), Ok((3u8, 3u8, 2u8)));
    }

    #[test]
    fn explanations_say_what_is_spare() {
        let says = |goal: &str, nodes: &[NodeRecord]| {
            let policy = goal.parse().unwrap();
            explain(compile(&policy, nodes).unwrap(), &policy, nodes)
        };
        let text = says("1 region", &even(3, 2));
        assert!(text.contains("1.50×") && text.contains("after that nothing is spare"), "{text}");
        assert!(says("1 region + 1 node", &even(3, 4)).ends_with("any 1 region and of 1 node more"));
        assert!(says("2 nodes", &even(1, 6)).ends_with("any 2 nodes"));
        let scheme = Scheme::new(4, 2, 2).unwrap();
        assert!(explain(scheme, &Policy::default(), &even(2, 3)).contains("room for only 4 of the 6"));
        assert!(explain(scheme, &"2 regions".parse().unwrap(), &even(3, 2)).contains("does not survive"));
    }

    /// Most shards that f regions can hold, by trying every set of regions.
    fn worst_by_trial(sizes: &[usize], f: usize, n: usize, spread: usize) -> usize {
        let sets = (0u32..1 << sizes.len()).filter(|set| set.count_ones() as usize == f.min(sizes.len()));
        let held =
            |set: u32| (0..sizes.len()).filter(|r| set >> r & 1 == 1).map(|r| sizes[r].min(spread)).sum();
        sets.map(held).max().unwrap_or(0usize).min(n)
    }

    #[test]
    fn a_scheme_that_cannot_survive_what_the_policy_names_is_not_admitted() {
        let policy = |goal: &str| goal.parse::<Policy>().unwrap();
        let scheme = |k, m, spread| Scheme::new(k, m, spread).unwrap();
        assert!(policy("1 region").admits(scheme(4, 2, 2)) && !policy("1 region").admits(scheme(4, 1, 2)));
        assert!(policy("1 region").admits(scheme(1, 1, 1)), "two copies in two regions survive one region");
        assert!(!policy("1 region + 1 node").admits(scheme(1, 1, 1)));
        assert!(!policy("2 nodes").admits(scheme(4, 1, 1)) && !policy("1 provider").admits(scheme(9, 2, 3)));
        assert!(!Policy { floor_nodes: 3, ..policy("1 region") }.admits(scheme(4, 2, 2)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(96))]

        #[test]
        fn whatever_is_compiled_is_admitted(
            sizes in proptest::collection::vec((0u8..3, 1usize..6), 1..7), regions in 0u8..3, nodes in 0u8..3,
            providers in 0u8..3, floor_nodes in 0u8..4,
        ) {
            let named: Vec<(String, usize)> =
                sizes.iter().enumerate().map(|(i, (p, size))| (format!("p{p}/r{i}"), *size)).collect();
            let named: Vec<(&str, usize)> = named.iter().map(|(name, size)| (name.as_str(), *size)).collect();
            let policy = Policy { regions, nodes, providers, floor_nodes };
            if let Ok(scheme) = compile(&policy, &cluster(&named)) {
                prop_assert!(policy.admits(scheme), "{policy} {scheme} spread {}", scheme.spread());
            }
        }

        #[test]
        fn a_compiled_scheme_can_be_placed_and_survives_and_none_is_cheaper(
            sizes in proptest::collection::vec(1usize..6, 1..6), f in 0u8..3, g in 0u8..3
        ) {
            let names = ["a/1", "b/1", "c/1", "d/1", "e/1"];
            let nodes = cluster(&names.into_iter().zip(sizes.iter().copied()).collect::<Vec<_>>());
            let policy = Policy { regions: f, nodes: g, providers: 0, floor_nodes: 1 };
            prop_assume!(f + g > 0);
            let room = |spread: usize| sizes.iter().map(|s| (*s).min(spread)).sum::<usize>();
            let works = |k: usize, m: usize, spread: usize| {
                room(spread) >= k + m && worst_by_trial(&sizes, f.into(), k + m, spread) + usize::from(g) <= m
            };
            let best = compile(&policy, &nodes);
            if let Ok(scheme) = best {
                prop_assert!(works(scheme.k(), scheme.m(), scheme.spread().into()));
            }
            let (n0, k0) = best.map_or((usize::MAX >> 8, 1), |s| (s.n(), s.k()));
            for n in 2..=nodes.len().min(STRIPE_WIDTH_DEFAULT) {
                for m in 1..n {
                    for spread in 1..=n {
                        let k = n - m;
                        prop_assert!(!works(k, m, spread) || n * k0 >= n0 * k, "{k}+{m} spread {spread} is cheaper");
                    }
                }
            }
        }
    }
}
