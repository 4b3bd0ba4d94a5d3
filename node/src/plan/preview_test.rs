//! Previews of small clusters, worked out by hand, and against the planner that will do the work.

use super::*;
use crate::plan::{PlanView, Task, plan_repair};
use farshore_core::catalogue::{Migration, PackKind, ShardRecord, StripeRecord};
use farshore_core::id::{Ordinal, PackId, PackNo, RepoId, ShardHash, StripeId};
use proptest::prelude::*;

fn node(id: u64, regions: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("p/r{}", id % regions).parse().unwrap(),
        zone: None,
        addr: "h:1".into(),
        capacity: 1 << 40,
        state: NodeState::Up,
    }
}

fn pack(no: u64, scheme: Scheme, holders: &[u64]) -> PackRecord {
    let shards = holders.iter().map(|id| ShardRecord { node: Some(NodeId(*id)), hash: ShardHash([1; 32]) });
    let stripe = StripeRecord {
        id: StripeId([no as u8; 16]),
        scheme,
        shard_len: 1_000,
        generation: 0,
        shards: shards.collect(),
    };
    PackRecord {
        no: PackNo(no),
        id: PackId([no as u8; 32]),
        repo: RepoId([1; 16]),
        kind: PackKind::Data,
        len: 4_000,
        chunks: 1,
        first_ordinal: Ordinal(no),
        stripe,
    }
}

fn preview(nodes: &[NodeRecord], changes: &[Change], packs: &[PackRecord], routes: &Routes) -> Preview {
    let mut scan = PreviewScan::begin(nodes, &nodes_after(nodes, changes, &[]), routes.clone());
    packs.iter().for_each(|pack| scan.feed(pack));
    scan.end()
}

#[test]
fn a_drained_node_gives_its_shards_to_its_region() {
    let nodes: Vec<_> = (1..=9).map(|id| node(id, 3)).collect();
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let packs = [pack(1, scheme, &[1, 2, 3, 4, 5, 6]), pack(2, scheme, &[4, 5, 6, 7, 8, 9])];
    let seen = preview(&nodes, &[Change::Drain(NodeId(1))], &packs, &Routes::default());
    assert_eq!((seen.packs, seen.moves, seen.moved_bytes), (2, 1, 1_000));
    assert_eq!(seen.stored[&NodeId(1)], (1_000, 0));
    assert_eq!(seen.stored[&NodeId(7)], (1_000, 2_000), "its region has one other node with room");
    assert!(seen.links.is_empty(), "{:?}", seen.links);
    assert_eq!(seen.before, seen.after);
    assert_eq!(seen.before, Strength { at_target: 2, spare: Some(2), spare_after_region: Some(0) });
    assert!(seen.stuck.is_empty());
}

#[test]
fn shards_that_no_other_node_can_take_are_named() {
    let nodes: Vec<_> = (1..=6).map(|id| node(id, 3)).collect();
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let seen = preview(
        &nodes,
        &[Change::Drain(NodeId(1))],
        &[pack(1, scheme, &[1, 2, 3, 4, 5, 6])],
        &Routes::default(),
    );
    assert_eq!((seen.moves, seen.stuck), (0, BTreeMap::from([(scheme.to_string(), 1)])));
    assert_eq!(seen.after.at_target, 1, "it keeps what it cannot give away");
}

/// Regions 0 to 2 hold everything; all of 0 goes to the new region 3, and over no other link.
#[test]
fn a_region_that_moves_goes_where_it_shall_and_the_planner_agrees() {
    let mut nodes: Vec<_> = (1..=9).map(|id| node(id, 3)).collect();
    nodes.extend([20, 21].map(|id| NodeRecord { region: "q/new".parse().unwrap(), ..node(id, 3) }));
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let packs = [pack(1, scheme, &[1, 2, 3, 4, 5, 6]), pack(2, scheme, &[4, 5, 6, 7, 8, 9])];
    let (from, to) = (nodes[2].region.clone(), nodes[9].region.clone());
    let leaves: Vec<_> = nodes.iter().filter(|n| n.region == from).map(|n| n.id).collect();
    let changes: Vec<_> = leaves.iter().map(|id| Change::Drain(*id)).collect();
    let nodes_moved = leaves.iter().copied().collect();
    let migration =
        Migration { from: from.clone(), to: to.clone(), cold: false, since_ms: 1, nodes: nodes_moved };
    let routes = Routes::of([&migration]);
    let seen = preview(&nodes, &changes, &packs, &routes);
    assert_eq!((seen.moves, seen.stuck.len()), (4, 0));
    assert_eq!(seen.links, BTreeMap::from([((from, to.clone()), 4_000)]));
    assert_eq!(seen.before, seen.after);

    nodes.iter_mut().filter(|n| leaves.contains(&n.id)).for_each(|n| n.state = NodeState::Draining);
    let by_id = |nodes: &[NodeRecord]| nodes.iter().map(|n| (n.id, n.clone())).collect();
    let mut view = PlanView { nodes: by_id(&nodes), packs: packs.to_vec(), routes, ..PlanView::default() };
    let mut moves = 0;
    while let Some(Task::Rebuild(task)) = plan_repair(&view, 9).tasks.first() {
        assert_eq!(view.nodes[&task.to].region, to);
        let pack = view.packs.iter_mut().find(|pack| pack.no == task.pack).unwrap();
        pack.stripe.shards[usize::from(task.index)].node = Some(task.to);
        moves += 1;
    }
    assert_eq!(moves, 4);

    // With one node only there, it takes one shard of each stripe, and the others stay: everywhere else they would lie closer
    // together than before.
    nodes.pop();
    let mut view = PlanView { nodes: by_id(&nodes), packs: packs.to_vec(), ..view };
    let mut homes = Vec::new();
    while let Some(Task::Rebuild(task)) = plan_repair(&view, 9).tasks.first() {
        homes.push(view.nodes[&task.to].region == to);
        let pack = view.packs.iter_mut().find(|pack| pack.no == task.pack).unwrap();
        pack.stripe.shards[usize::from(task.index)].node = Some(task.to);
    }
    assert_eq!(homes, [true, true]);
}

#[test]
fn a_lost_node_is_removed_without_a_move() {
    let mut nodes: Vec<_> = (1..=9).map(|id| node(id, 3)).collect();
    nodes[0].state = NodeState::Lost;
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let seen = preview(
        &nodes,
        &[Change::Remove(NodeId(1))],
        &[pack(1, scheme, &[1, 2, 3, 4, 5, 6])],
        &Routes::default(),
    );
    assert_eq!((seen.moves, seen.before.spare, seen.before), (0, Some(1), seen.after));
}

#[test]
fn a_policy_that_becomes_impossible_is_seen() {
    let nodes: Vec<_> = (1..=6).map(|id| node(id, 3)).collect();
    let gone = [3, 6].map(|id| Change::Drain(NodeId(id)));
    let policy = Policy::default();
    let seen = outlook(&policy, &nodes, &nodes_after(&nodes, &gone, &[]));
    let before = seen.before.unwrap();
    assert_eq!(before.scheme, Scheme::new(4, 2, 2).unwrap());
    assert!(before.nodes_alone.unwrap() < before.with_regions.unwrap());
    assert_eq!(seen.after.unwrap().scheme.k(), 2, "two regions of two nodes");
    let survive = Policy { regions: 2, ..policy };
    let seen = outlook(&survive, &nodes, &nodes_after(&nodes, &gone, &[]));
    assert!(seen.before.is_ok() && seen.after.unwrap_err().to_string().contains("nearest"));
    let back = [NodeRecord { region: "q/new".parse().unwrap(), ..node(20, 3) }];
    assert!(outlook(&survive, &nodes, &nodes_after(&nodes, &gone, &back)).after.is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What the planner does until it has nothing left to do is what was foretold.
    #[test]
    fn it_foretells_what_repair_does(each in 2u64..5, gone in 1u64..7, seed in 0u8..200) {
        let mut nodes: Vec<_> = (1..=3 * each).map(|id| node(id, 3)).collect();
        let scheme = Scheme::new(4, 2, 2).unwrap();
        let at = |i: u64| 3 * ((u64::from(seed) + i) % each) + 1;
        let holders: Vec<u64> = [0, 0, 0, 1, 1, 1].iter().zip([0, 1, 2].repeat(2)).map(|(row, col)| at(*row) + col).collect();
        let gone = NodeId(gone.min(3 * each));
        let first = pack(u64::from(seed), scheme, &holders);
        let seen = preview(&nodes, &[Change::Drain(gone)], std::slice::from_ref(&first), &Routes::default());
        nodes.iter_mut().filter(|n| n.id == gone).for_each(|n| n.state = NodeState::Draining);
        let mut view = PlanView {
            nodes: nodes.iter().map(|n| (n.id, n.clone())).collect(),
            packs: vec![first],
            ..PlanView::default()
        };
        let mut moves = 0;
        while let Some(Task::Rebuild(task)) = plan_repair(&view, 9).tasks.first() {
            view.packs[0].stripe.shards[usize::from(task.index)].node = Some(task.to);
            moves += 1;
            prop_assert!(moves < 20);
        }
        let left = view.packs[0].stripe.shards.iter().filter(|s| s.node == Some(gone)).count() as u64;
        prop_assert_eq!((seen.moves, seen.stuck.values().sum::<u64>()), (moves, left));
    }
}
