//! What it costs to read from each node: nothing in the own region, elsewhere what traffic from there is said to cost
//! (`farshore cluster budget`), and a trifle even where that is nothing, so that what is near comes first.

use farshore_core::catalogue::Upkeep;
use farshore_core::id::NodeId;
use farshore_core::topology::{NodeRecord, Region};
use std::collections::{BTreeMap, BTreeSet};

/// Costs by node, millionths of the currency unit a GiB and one more; none of them known, all cost the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Costs {
    of: BTreeMap<NodeId, u64>,
    /// Of nodes that have come since.
    others: u64,
    /// Who is not asked at all.
    avoided: BTreeSet<NodeId>,
}

impl Costs {
    /// As a reader in region `home` sees them.
    pub fn seen_from(home: &Region, nodes: &[NodeRecord], upkeep: &Upkeep) -> Self {
        let cost = |node: &NodeRecord| match node.region == *home {
            true => 0,
            false => upkeep.price_micros(&node.region, home, 1 << 30).saturating_add(1),
        };
        let of: BTreeMap<NodeId, u64> = nodes.iter().map(|node| (node.id, cost(node))).collect();
        let others = of.values().max().copied().unwrap_or(0);
        Costs { of, others, avoided: BTreeSet::new() }
    }

    /// The same, and these nodes are not asked.
    #[must_use]
    pub fn avoiding(&self, nodes: BTreeSet<NodeId>) -> Self {
        Costs { avoided: nodes, ..self.clone() }
    }

    /// Whether a node is not asked at all.
    pub fn avoids(&self, node: NodeId) -> bool {
        self.avoided.contains(&node)
    }

    /// Of a GiB from this node.
    pub fn of(&self, node: NodeId) -> u64 {
        self.of.get(&node).copied().unwrap_or(self.others)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::LinkBudget;
    use farshore_core::topology::NodeState;

    #[test]
    fn near_is_free_and_far_costs_what_its_link_does() {
        let region = |name: &str| name.parse::<Region>().unwrap();
        let node = |(id, at): (u64, &str)| NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: region(at),
            zone: None,
            addr: "h:1".into(),
            capacity: 1,
            state: NodeState::Up,
        };
        let nodes: Vec<_> = [(1, "x/a"), (2, "x/b"), (3, "y/c")].map(node).into();
        let link = LinkBudget {
            from: region("y/c"),
            to: region("x/a"),
            bytes_s: None,
            bytes_day: None,
            micros_gib: 90_000,
        };
        let upkeep = Upkeep { links: vec![link], ..Upkeep::default() };
        let costs = Costs::seen_from(&region("x/a"), &nodes, &upkeep);
        assert_eq!([1, 2, 3, 4].map(|id| costs.of(NodeId(id))), [0, 1, 90_001, 90_001]);
        assert_eq!(Costs::default().of(NodeId(1)), 0);
    }
}
