//! Moves down a slope: they end, they never go up, and they weaken nothing.

use super::*;
use farshore_core::catalogue::{PackKind, ShardRecord, StripeRecord};
use farshore_core::erasure::Scheme;
use farshore_core::id::{Ordinal, PackId, PackNo, RepoId, ShardHash, StripeId};
use farshore_core::topology::NodeState;
use proptest::prelude::*;

const SHARD: u64 = 1_000;

fn node(id: u64, region: u64, capacity: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("p/r{region}").parse().unwrap(),
        zone: None,
        addr: "h:1".into(),
        capacity,
        state: NodeState::Up,
    }
}

fn pack(no: u64, holders: [u64; 3]) -> PackRecord {
    let shards = holders.map(|id| ShardRecord { node: Some(NodeId(id)), hash: ShardHash([1; 32]) });
    let stripe = StripeRecord {
        id: StripeId([no as u8; 16]),
        scheme: Scheme::new(2, 1, 1).unwrap(),
        shard_len: SHARD,
        generation: 4,
        shards: shards.to_vec(),
    };
    PackRecord {
        no: PackNo(no),
        id: PackId([no as u8; 32]),
        repo: RepoId([1; 16]),
        kind: PackKind::Data,
        len: 2_000,
        chunks: 1,
        first_ordinal: Ordinal(no),
        stripe,
    }
}

/// Three regions of nodes; what is stored lies on the first node of each, or where `spread` says.
fn view(each: u64, packs: u64, spread: &[u8]) -> (PlanView, Fills) {
    let nodes = (0..3 * each).map(|i| node(i + 1, i % 3, 100 * SHARD));
    let nodes: BTreeMap<_, _> = nodes.map(|node| (node.id, node)).collect();
    let at = |no: u64, region: u64| {
        let row = spread.get(no as usize % spread.len().max(1)).copied().unwrap_or(0);
        3 * (u64::from(row) % each) + region + 1
    };
    let packs: Vec<_> = (0..packs).map(|no| pack(no, [0, 1, 2].map(|region| at(no, region)))).collect();
    let view = PlanView { nodes, packs, ..PlanView::default() };
    let fills = fills(&view);
    (view, fills)
}

fn fills(view: &PlanView) -> Fills {
    let mut fills: BTreeMap<_, u64> = view.nodes.keys().map(|id| (*id, 0)).collect();
    for shard in view.packs.iter().flat_map(|pack| &pack.stripe.shards) {
        *fills.entry(shard.node.unwrap()).or_default() += SHARD;
    }
    Fills(fills)
}

#[test]
fn a_new_node_takes_its_share_of_its_region() {
    let (mut view, mut fills) = view(2, 60, &[]);
    let slope = fills.steepest(view.nodes.values()).unwrap();
    assert_eq!((slope.from.0 % 3, slope.from.0 <= 3, slope.to.0 > 3), (slope.to.0 % 3, true, true));
    let tasks = plan_rebalance(&view, &slope, &mut fills, 999);
    assert_eq!(tasks.len(), 29, "59 of 100 against 1 down to 31 against 29");
    assert!(tasks.iter().all(|task| task.from_holders.len() == 3 && task.to == slope.to));
    // A pack that repair has in hand, and one that the taker has a copy of to delete, stay.
    view.listed.insert(PackNo(0));
    let shard = ShardId { stripe: StripeId([1; 16]), index: tasks[1].index };
    view.condemned.insert(Condemned { node: slope.to, shard });
    let tasks = plan_rebalance(&view, &slope, &mut super::tests::fills(&view), 5);
    assert_eq!(tasks.iter().map(|task| task.pack.0).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
}

#[test]
fn little_differences_and_nodes_that_say_nothing_move_nothing() {
    let (view, mut fills) = view(2, 10, &[]);
    assert_eq!(fills.steepest(view.nodes.values()), None, "10 of 100 is no slope to begin with");
    fills.0.clear();
    assert_eq!(fills.steepest(view.nodes.values()), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn moving_ends_and_no_stripe_is_weaker(each in 1u64..4, packs in 0u64..90, spread in prop::collection::vec(0u8..4, 0..6)) {
        let (mut view, mut known) = view(each, packs, &spread);
        let mut moves = 0;
        while let Some(slope) = known.steepest(view.nodes.values()) {
            let tasks = plan_rebalance(&view, &slope, &mut known, 7);
            if tasks.is_empty() {
                break;
            }
            for task in tasks {
                let (from, to) = (&view.nodes[&slope.from].region, &view.nodes[&slope.to].region);
                prop_assert_eq!(from, to);
                let pack = view.packs.iter_mut().find(|pack| pack.no == task.pack).unwrap();
                pack.stripe.shards[usize::from(task.index)].node = Some(task.to);
                pack.stripe.generation += 1;
                moves += 1;
            }
            prop_assert_eq!(&known, &fills(&view), "the plan foretells how full nodes will be");
            prop_assert!(moves <= 3 * packs, "a shard moves more than once");
        }
        for pack in &view.packs {
            let nodes = &view.nodes;
            prop_assert!(pack.stripe.at_target(|id| nodes.get(&id).map(|node| &node.region)));
        }
    }
}
