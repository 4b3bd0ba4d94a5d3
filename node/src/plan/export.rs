//! When the catalogue is exported, and how an export is coded. Pure.
//!
//! A base is a whole catalogue; an increment is what the log has brought since. Increments are frequent, because what is
//! in none of them is lost if every replica is; a base comes when increments pile up, when the nodes that hold the chain
//! have thinned out, and once a day in any case, so that what rot has taken from it is made good.

use farshore_core::catalogue::ExportRecord;
use farshore_core::erasure::Scheme;
use farshore_core::id::NodeId;
use farshore_core::limits::{
    EXPORT_BASE_AGE_MS, EXPORT_INCREMENT_BYTES_MIN, EXPORT_INCREMENTS_MAX, EXPORT_WEAK_AGE_MS,
    STRIPE_SHARDS_MAX,
};
use farshore_core::topology::NodeRecord;
use std::collections::BTreeSet;

/// What a plan looks at.
#[derive(Clone, Copy, Debug)]
pub struct ExportView<'a> {
    /// Exports that are recorded, the newest last.
    pub exports: &'a [ExportRecord],
    /// All nodes.
    pub nodes: &'a [NodeRecord],
    /// The log has brought something since the newest export that is worth one.
    pub news: bool,
    /// A whole export may be begun; otherwise one is under way, or failed a moment ago.
    pub may_base: bool,
    /// The leader's clock.
    pub now_ms: u64,
    /// Shortest time between two exports.
    pub every_ms: u64,
}

/// What to export.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Export {
    /// The whole catalogue.
    Base,
    /// The log after this entry.
    Increment {
        /// Last entry that is exported already.
        from: u64,
    },
}

/// A base that fewer nodes hold than did is not made again sooner than after this many intervals.
const WEAK_INTERVALS: u64 = 6;

/// What is due now, if anything.
pub fn plan_export(view: &ExportView<'_>) -> Option<Export> {
    let Some(at) = view.exports.iter().rposition(|export| export.base) else {
        return view.may_base.then_some(Export::Base);
    };
    let (base, chain) = (&view.exports[at], &view.exports[at + 1..]);
    // A clock that was set back must not hold up anything.
    let age = |export: &ExportRecord| view.now_ms.abs_diff(export.made_ms);
    let grown: u64 = chain.iter().map(|increment| increment.bytes).sum();
    let long = chain.len() >= EXPORT_INCREMENTS_MAX || grown > base.bytes.max(EXPORT_INCREMENT_BYTES_MIN);
    // Who did not take the base is away or full, and will not take the next one either.
    let weak_age =
        if was_weak(base, view.nodes) { EXPORT_WEAK_AGE_MS } else { view.every_ms * WEAK_INTERVALS };
    let weak = || view.exports[at..].iter().any(|export| is_weak(export, view.nodes));
    let due = age(base) >= EXPORT_BASE_AGE_MS || (long && view.news) || (age(base) >= weak_age && weak());
    if due && view.may_base {
        return Some(Export::Base);
    }
    let newest = chain.last().unwrap_or(base);
    (view.news && age(newest) >= view.every_ms).then_some(Export::Increment { from: newest.to })
}

/// Whether fewer than three in four of the nodes that could hold a part do.
fn is_weak(export: &ExportRecord, nodes: &[NodeRecord]) -> bool {
    let counting: BTreeSet<NodeId> = nodes.iter().filter(|n| n.state.counts()).map(|n| n.id).collect();
    held_by_few(export, nodes, |node| counting.contains(node))
}

/// Whether fewer ever held one, of as many nodes as there are now.
fn was_weak(export: &ExportRecord, nodes: &[NodeRecord]) -> bool {
    held_by_few(export, nodes, |_| true)
}

fn held_by_few(export: &ExportRecord, nodes: &[NodeRecord], counts: impl Fn(&NodeId) -> bool) -> bool {
    let could = nodes.iter().filter(|n| n.takes_shards()).count().min(STRIPE_SHARDS_MAX);
    export.parts.iter().any(|part| {
        let holders: BTreeSet<NodeId> = part.shards.iter().filter_map(|shard| shard.node).collect();
        holders.iter().filter(|node| counts(node)).count() * 4 < could * 3
    })
}

/// How an export is coded over `nodes` nodes in `regions` regions: a shard on each, and any third of them is enough.
/// It is small, and needed when little else is left.
pub fn export_scheme(nodes: usize, regions: usize) -> Scheme {
    let n = nodes.clamp(2, STRIPE_SHARDS_MAX);
    let k = (n / 3).max(1);
    let spread = n.div_ceil(regions.max(1));
    Scheme::new(k as u8, (n - k) as u8, spread as u8).expect("k and m are at least 1 and together at most 32")
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::{ExportPart, ShardRecord};
    use farshore_core::id::{ExportId, PackId, ShardHash};
    use farshore_core::topology::NodeState;

    fn nodes(count: u64) -> Vec<NodeRecord> {
        let node = |id: u64| NodeRecord {
            id: NodeId(id),
            name: "n".parse().unwrap(),
            region: format!("a/r{}", id % 3).parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1,
            state: NodeState::Up,
        };
        (0..count).map(node).collect()
    }

    fn export(base: bool, to: u64, made_ms: u64, holders: u64) -> ExportRecord {
        let shard = |node| ShardRecord { node: Some(NodeId(node)), hash: ShardHash([1; 32]) };
        let scheme = export_scheme(6, 3);
        let shards = (0..holders).map(shard).collect();
        let parts = vec![ExportPart { pack: PackId([1; 32]), len: 10, scheme, shards }];
        ExportRecord {
            id: ExportId([to as u8; 16]),
            base,
            from: 0,
            to,
            time_ms: 0,
            made_ms,
            bytes: 10,
            parts,
        }
    }

    fn due(exports: &[ExportRecord], nodes: &[NodeRecord], news: bool, now_ms: u64) -> Option<Export> {
        plan_export(&ExportView { exports, nodes, news, may_base: true, now_ms, every_ms: 10_000 })
    }

    #[test]
    fn increments_go_on_while_a_base_is_under_way_or_has_failed() {
        let (nodes, old) = (nodes(6), [export(true, 5, 1_000, 6)]);
        let now_ms = 1_000 + EXPORT_BASE_AGE_MS;
        let view =
            ExportView { exports: &old, nodes: &nodes, news: true, may_base: true, now_ms, every_ms: 10_000 };
        assert_eq!(plan_export(&view), Some(Export::Base));
        let busy = ExportView { may_base: false, ..view };
        assert_eq!(plan_export(&busy), Some(Export::Increment { from: 5 }));
        assert_eq!(plan_export(&ExportView { exports: &[], ..busy }), None, "there is nothing to add to");
    }

    #[test]
    fn a_base_that_a_full_node_never_takes_is_not_made_each_minute() {
        let (three, held_by_two) = (nodes(3), [export(true, 5, 1_000, 2)]);
        assert_eq!(due(&held_by_two, &three, false, 3_000_000), None);
        assert_eq!(due(&held_by_two, &three, false, 1_000 + EXPORT_WEAK_AGE_MS), Some(Export::Base));
    }

    #[test]
    fn first_a_base_then_increments_while_there_is_news() {
        let nodes = nodes(6);
        assert_eq!(due(&[], &nodes, false, 0), Some(Export::Base));
        let mut exports = vec![export(true, 5, 1_000, 6)];
        assert_eq!(due(&exports, &nodes, false, 900_000), None);
        assert_eq!(due(&exports, &nodes, true, 10_999), None, "not more often than asked");
        assert_eq!(due(&exports, &nodes, true, 11_000), Some(Export::Increment { from: 5 }));
        exports.push(export(false, 9, 11_000, 6));
        assert_eq!(due(&exports, &nodes, true, 22_000), Some(Export::Increment { from: 9 }));
        assert_eq!(due(&exports, &nodes, true, 0), Some(Export::Increment { from: 9 }), "a clock set back");
    }

    #[test]
    fn a_base_again_each_day_and_when_increments_pile_up() {
        let nodes = nodes(6);
        let mut exports = vec![export(true, 5, 1_000, 6)];
        assert_eq!(due(&exports, &nodes, false, 1_000 + EXPORT_BASE_AGE_MS), Some(Export::Base));
        exports.push(ExportRecord { bytes: EXPORT_INCREMENT_BYTES_MIN + 1, ..export(false, 9, 11_000, 6) });
        assert_eq!(due(&exports, &nodes, true, 11_001), Some(Export::Base));
        assert_eq!(due(&exports, &nodes, false, 11_001), None, "nothing has changed since");
        exports.truncate(1);
        exports.extend((0..EXPORT_INCREMENTS_MAX as u64).map(|i| export(false, 10 + i, 11_000, 6)));
        assert_eq!(due(&exports, &nodes, true, 11_001), Some(Export::Base));
    }

    #[test]
    fn a_chain_that_few_nodes_hold_is_made_anew_after_a_while() {
        let six = nodes(6);
        let weak = [export(true, 5, 1_000, 6), export(false, 9, 11_000, 4)];
        assert_eq!(due(&weak, &six, false, 60_999), None);
        assert_eq!(due(&weak, &six, false, 61_000), Some(Export::Base));
        let strong = [export(true, 5, 1_000, 6), export(false, 9, 11_000, 5)];
        assert_eq!(due(&strong, &six, false, 61_000), None);
        let mut lost = six.clone();
        lost[..2].iter_mut().for_each(|node| node.state = NodeState::Lost);
        assert_eq!(due(&strong, &lost, false, 61_000), None, "nobody else could hold more");
        lost[0].id = NodeId(17);
        lost[0].state = NodeState::Up;
        lost[1].id = NodeId(18);
        lost[1].state = NodeState::Up;
        assert_eq!(due(&strong, &lost, false, 61_000), Some(Export::Base), "two were replaced");
    }

    #[test]
    fn any_third_of_the_nodes_is_enough() {
        let shape = |nodes, regions| <(u8, u8, u8)>::from(export_scheme(nodes, regions));
        assert_eq!([shape(1, 1), shape(2, 1), shape(3, 3)], [(1, 1, 2), (1, 1, 2), (1, 2, 1)]);
        assert_eq!([shape(6, 3), shape(9, 3), shape(100, 5)], [(2, 4, 2), (3, 6, 3), (10, 22, 7)]);
    }
}
