//! The planner against a model that knows every shard and every chunk and counts by hand, and small clusters worked out.

use super::*;
use farshore_core::catalogue::{PackKind, SnapshotKind, SnapshotLabel, StripeRecord};
use farshore_core::erasure::Scheme;
use farshore_core::id::{Ordinal, PackId, PackNo, RepoId};
use proptest::prelude::*;

fn node(id: u64, region: u64, state: NodeState) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("p/r{region}").parse().unwrap(),
        zone: None,
        addr: "h:1".into(),
        capacity: 1 << 40,
        state,
    }
}

fn repo(which: u8) -> RepoRecord {
    let (id, name) = (RepoId([which; 16]), format!("repo{which}").parse().unwrap());
    RepoRecord { id, name, policy: Policy::default(), sealed_config: vec![], key_slots: vec![] }
}

fn pack(no: u64, scheme: Scheme, holders: &[Option<u64>], chunks: u32) -> PackRecord {
    let shard = |id: &Option<u64>| ShardRecord { node: id.map(NodeId), hash: ShardHash([1; 32]) };
    let mut id = [7; 16];
    id[..8].copy_from_slice(&no.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    let shards = holders.iter().map(shard).collect();
    PackRecord {
        no: PackNo(no),
        id: PackId([no as u8; 32]),
        repo: RepoId([1; 16]),
        kind: PackKind::Data,
        len: 4_000 + no,
        chunks,
        first_ordinal: Ordinal(no * 10),
        stripe: StripeRecord { id: StripeId(id), scheme, shard_len: 1_000, generation: 0, shards },
    }
}

fn snapshot(which: u8, partial: bool) -> SnapshotRecord {
    SnapshotRecord {
        id: SnapshotId([which; 32]),
        repo: RepoId([1; 16]),
        kind: SnapshotKind::Full,
        parent: None,
        group: [0; 16],
        committed_ms: 1_000 + u64::from(which),
        label: SnapshotLabel { partial, ..SnapshotLabel::default() },
        sealed: vec![],
        live: vec![],
    }
}

/// A repository of packs, each with its ordinals, and of snapshots, each with the packs that it needs a chunk of.
fn look(
    nodes: &[NodeRecord],
    gone: &BTreeSet<NodeId>,
    packs: &[PackRecord],
    snapshots: &[Vec<usize>],
) -> WhatIf {
    let mut scan = WhatIfScan::begin(nodes, gone);
    for pack in packs {
        let ordinals = Ordinals::range(pack.first_ordinal, pack.chunks);
        scan.feed(pack, scan.is_unreadable(pack).then_some(&ordinals));
    }
    for (which, needs) in snapshots.iter().enumerate() {
        // Only the last chunk of each: whoever takes the first for the whole pack sees nothing.
        let last = |at: &usize| Ordinal(packs[*at].first_ordinal.0 + u64::from(packs[*at].chunks) - 1);
        let live: LiveSet = needs.iter().map(last).collect();
        scan.feed_snapshot(&repo(1).name, &snapshot(which as u8, false), Some(&live));
    }
    scan.end_repo(repo(1));
    scan.end(&BTreeMap::new())
}

fn whole(regions: u64, each: u64) -> Vec<NodeRecord> {
    (0..regions * each).map(|id| node(id + 1, id % regions, NodeState::Up)).collect()
}

fn in_region(nodes: &[NodeRecord], regions: &[u64]) -> BTreeSet<NodeId> {
    let of = |node: &&NodeRecord| regions.iter().any(|r| node.region.as_str() == format!("p/r{r}"));
    nodes.iter().filter(of).map(|node| node.id).collect()
}

fn six() -> (Vec<NodeRecord>, Scheme, Vec<PackRecord>) {
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let holders: Vec<Option<u64>> = (1..=6).map(Some).collect();
    (whole(3, 2), scheme, (0..5).map(|no| pack(no, scheme, &holders, 3)).collect())
}

#[test]
fn one_region_of_three_leaves_nothing_spare() {
    let (nodes, _, packs) = six();
    let seen = look(&nodes, &in_region(&nodes, &[1]), &packs, &[vec![0, 1], vec![4]]);
    assert_eq!((seen.packs.all.packs, seen.packs.unreadable.packs, seen.snapshots.incomplete), (5, 0, 0));
    assert_eq!(seen.packs.spare.keys().copied().collect::<Vec<_>>(), [0]);
    let rebuild = &seen.rebuild;
    assert_eq!((rebuild.shards, rebuild.owed, rebuild.homeless, rebuild.crowded), (10, 0, 0, 5));
    assert_eq!((rebuild.bytes, rebuild.moved_bytes), (10 * file_len(1_000), 10 * 4 * 1_000));
    assert!(rebuild.nodes.keys().all(|id| id.0 % 3 != 2), "nothing goes where nothing is left: {rebuild:?}");
    let [write] = seen.writes.as_slice() else { panic!("{:?}", seen.writes) };
    assert_eq!((&write.away, write.repositories), (&Ok(false), 1), "below full strength");
    assert_eq!(write.lost, Ok(true), "another code fits two regions");
}

#[test]
fn two_regions_of_three_take_everything_along() {
    let (nodes, _, packs) = six();
    let seen = look(&nodes, &in_region(&nodes, &[0, 1]), &packs, &[vec![0, 1], vec![], vec![4]]);
    assert_eq!((seen.packs.unreadable.packs, seen.packs.gone.packs), (5, 5));
    assert_eq!((seen.snapshots.all, seen.snapshots.incomplete, seen.snapshots.for_good), (3, 2, 2));
    let named: Vec<_> = seen.lost.iter().map(|lost| lost.id).collect();
    assert_eq!(named, [SnapshotId([2; 32]), SnapshotId([0; 32])], "the newest first");
    assert_eq!(seen.rebuild.shards, 0, "nothing to make them of");
    assert!(seen.writes[0].away.as_ref().is_err_and(|why| why.contains("write floor")), "{:?}", seen.writes);
    assert!(seen.writes[0].lost.as_ref().is_err_and(|why| why.contains("2 regions")), "{:?}", seen.writes);
}

#[test]
fn what_silent_nodes_hold_is_away_and_not_gone() {
    let (mut nodes, _, packs) = six();
    nodes[0].state = NodeState::Down;
    nodes[3].state = NodeState::Lost;
    let seen = look(&nodes, &BTreeSet::from([NodeId(2)]), &packs, &[vec![0]]);
    assert_eq!((seen.packs.unreadable.packs, seen.packs.gone.packs), (5, 0));
    assert_eq!((seen.snapshots.incomplete, seen.snapshots.for_good), (1, 0));
    assert_eq!(seen.packs.spare.keys().copied().collect::<Vec<_>>(), [-1]);
}

#[test]
fn room_is_what_was_offered_and_what_the_disk_has() {
    let (mut nodes, _, packs) = six();
    nodes.iter_mut().for_each(|node| node.capacity = 5 * file_len(1_000) + 700);
    let gone = in_region(&nodes, &[1]);
    let room = |free: &[(u64, u64)]| {
        let mut scan = WhatIfScan::begin(&nodes, &gone);
        packs.iter().for_each(|pack| scan.feed(pack, None));
        scan.end_repo(repo(1));
        scan.end(&free.iter().map(|(id, free)| (NodeId(*id), *free)).collect()).rebuild.nodes
    };
    assert!(room(&[]).values().all(|(_, room)| *room == 700));
    assert_eq!(room(&[(1, 3)])[&NodeId(1)].1, 3);
    assert_eq!(room(&[(1, 1 << 40)])[&NodeId(1)].1, 700);
}

#[test]
fn checkpoints_are_not_listed_and_the_named_are_bounded() {
    let (nodes, _, packs) = six();
    let mut scan = WhatIfScan::begin(&nodes, &in_region(&nodes, &[0, 1]));
    for pack in &packs {
        scan.feed(pack, Some(&Ordinals::range(pack.first_ordinal, pack.chunks)));
    }
    let live: LiveSet = [packs[0].first_ordinal].into_iter().collect();
    for which in 0..=200 {
        scan.feed_snapshot(&repo(1).name, &snapshot(which, which == 200), Some(&live));
    }
    scan.end_repo(repo(1));
    let seen = scan.end(&BTreeMap::new());
    assert_eq!((seen.snapshots.all, seen.snapshots.incomplete), (200, 200));
    assert_eq!(seen.lost.len(), WHAT_IF_SNAPSHOTS_MAX);
    assert_eq!(seen.lost[0].id, SnapshotId([199; 32]));
}

#[test]
fn the_worst_repositories_are_named_first() {
    let (nodes, scheme, packs) = six();
    let mut scan = WhatIfScan::begin(&nodes, &in_region(&nodes, &[1]));
    for which in 0..100 {
        // Only one of them hangs by less than a thread.
        let weak = pack(9, scheme, &[Some(1), Some(2), Some(3), Some(4), None, None], 1);
        scan.feed(if which == 70 { &weak } else { &packs[0] }, None);
        scan.end_repo(repo(which));
    }
    let seen = scan.end(&BTreeMap::new());
    assert_eq!((seen.repositories, seen.worst.len()), (100, WHAT_IF_REPOS_MAX));
    assert_eq!(seen.worst[0].repo.id, repo(70).id);
    assert_eq!(seen.packs.unreadable.packs, 1);
}

/// A cluster, some packs with holders anywhere, who is gone, and which packs each snapshot needs.
type World = (Vec<NodeState>, Vec<Vec<Option<u64>>>, Vec<bool>, Vec<Vec<usize>>);

fn world() -> impl Strategy<Value = World> {
    (4u64..10, 1usize..8).prop_flat_map(|(nodes, packs)| {
        let count = nodes as usize;
        let states =
            prop::collection::vec((0usize..9).prop_map(|at| NodeState::ALL[at.saturating_sub(3)]), count);
        let holder = prop::option::weighted(0.9, 1..=nodes);
        let holders = prop::collection::vec(prop::collection::vec(holder, 5), packs);
        let gone = prop::collection::vec(prop::bool::weighted(0.3), count);
        let needs = prop::collection::vec(prop::collection::vec(0..packs, 0..4), 0..5);
        (states, holders, gone, needs)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Every number is what counting shard by shard gives, and repair, carried out step by step by its own planner on nodes
    /// that are lost, makes as many shards as were foretold.
    #[test]
    fn the_model_counts_the_same((states, holders, gone, needs) in world()) {
        let scheme = Scheme::new(3, 2, 2).unwrap();
        let nodes: Vec<NodeRecord> = (1u64..).zip(&states).map(|(id, state)| node(id, id % 3, *state)).collect();
        let packs: Vec<PackRecord> =
            (0u64..).zip(&holders).map(|(no, held)| pack(no, scheme, held, 1 + no as u32 % 4)).collect();
        let gone: BTreeSet<NodeId> = nodes.iter().zip(&gone).filter(|(_, gone)| **gone).map(|(n, _)| n.id).collect();
        let seen = look(&nodes, &gone, &packs, &needs);

        let left = |held: &[Option<u64>], may: &dyn Fn(NodeState) -> bool| {
            held.iter().flatten().filter(|id| !gone.contains(&NodeId(**id)) && may(states[**id as usize - 1])).count()
        };
        let now = |at: usize| left(&holders[at], &|s| matches!(s, NodeState::Up | NodeState::Suspect | NodeState::Draining));
        let at_last = |at: usize| left(&holders[at], &|s| s != NodeState::Retired);
        let all = || 0..packs.len();
        let bytes = |of: &dyn Fn(usize) -> bool| all().filter(|at| of(*at)).map(|at| packs[at].len).sum::<u64>();
        let number = |of: &dyn Fn(usize) -> bool| all().filter(|at| of(*at)).count() as u64;
        prop_assert_eq!(seen.packs.all, Count { packs: packs.len() as u64, bytes: bytes(&|_| true) });
        let unreadable = Count { packs: number(&|at| now(at) < 3), bytes: bytes(&|at| now(at) < 3) };
        prop_assert_eq!(seen.packs.unreadable, unreadable);
        let lost = Count { packs: number(&|at| at_last(at) < 3), bytes: bytes(&|at| at_last(at) < 3) };
        prop_assert_eq!(seen.packs.gone, lost);
        for spare in -3i64..=2 {
            let with = number(&|at| now(at) as i64 - 3 == spare);
            prop_assert_eq!(seen.packs.spare.get(&spare).map_or(0, |count| count.packs), with);
        }
        let snapshots = |of: &dyn Fn(usize) -> bool| needs.iter().filter(|n| n.iter().any(|at| of(*at))).count() as u64;
        prop_assert_eq!(seen.snapshots.all, needs.len() as u64);
        prop_assert_eq!(seen.snapshots.incomplete, snapshots(&|at| now(at) < 3));
        prop_assert_eq!(seen.snapshots.for_good, snapshots(&|at| at_last(at) < 3));

        // Nobody leaves while repair works, so that all it does is to make good what is missing.
        let settle = |node: &NodeRecord| match gone.contains(&node.id) && node.state != NodeState::Retired {
            true => NodeRecord { state: NodeState::Lost, ..node.clone() },
            false => node.clone(),
        };
        let after: BTreeMap<NodeId, NodeRecord> = nodes.iter().map(settle).map(|n| (n.id, n)).collect();
        let counts = |id: &NodeId| after.get(id).is_some_and(|n| n.state.counts());
        let missing = |pack: &PackRecord| pack.stripe.shards.iter().filter(|s| !s.node.is_some_and(|id| counts(&id))).count();
        let repairable: Vec<PackRecord> = packs.iter().filter(|p| missing(p) <= 2).cloned().collect();
        let owed: usize = repairable.iter().map(missing).sum();
        let mut view = crate::plan::PlanView { nodes: after.clone(), packs: repairable, ..Default::default() };
        for _ in 0..200 {
            let Some(crate::plan::Task::Rebuild(task)) = crate::plan::plan_repair(&view, 1).tasks.pop() else { break };
            let pack = view.packs.iter_mut().find(|pack| pack.no == task.pack).unwrap();
            pack.stripe.shards[usize::from(task.index)].node = Some(task.to);
            pack.stripe.generation += 1;
        }
        let left: usize = view.packs.iter().map(missing).sum();
        prop_assert_eq!(seen.rebuild.shards, (owed - left) as u64);
        prop_assert_eq!(seen.rebuild.homeless, left as u64);
        prop_assert_eq!(seen.rebuild.nodes.values().map(|(added, _)| added).sum::<u64>(), seen.rebuild.bytes);
    }
}
