//! The planner on a model: plans are carried out in any order, with failures of nodes in between, until nothing is left
//! to do. A model stripe obeys the catalogue's rules, condemned copies included.

use super::repair::PlanView;
use super::{Rebuild, Task, plan_repair};
use farshore_core::catalogue::{Condemned, PackKind, PackRecord, ShardRecord, StripeRecord};
use farshore_core::erasure::Scheme;
use farshore_core::id::{NodeId, Ordinal, PackId, PackNo, RepoId, ShardHash, ShardId, StripeId};
use farshore_core::topology::{NodeRecord, NodeState};
use proptest::prelude::*;

fn node(id: u64, regions: u64, state: NodeState) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("test/r{}", id % regions).parse().unwrap(),
        zone: None,
        addr: "host:1".into(),
        capacity: 1 << (30 + id % 3),
        state,
    }
}

fn pack(no: u64, scheme: Scheme, holders: &[Option<u64>]) -> PackRecord {
    let shard = |node: &Option<u64>| ShardRecord { node: node.map(NodeId), hash: ShardHash([1; 32]) };
    let mut id = [7; 16];
    id[..8].copy_from_slice(&no.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    PackRecord {
        no: PackNo(no),
        id: PackId([no as u8; 32]),
        repo: RepoId([0; 16]),
        kind: PackKind::Data,
        len: 1000,
        chunks: 1,
        first_ordinal: Ordinal(no),
        stripe: StripeRecord {
            id: StripeId(id),
            scheme,
            shard_len: scheme.shard_len(1000),
            generation: 0,
            shards: (0..scheme.n()).map(|i| shard(holders.get(i).unwrap_or(&None))).collect(),
        },
    }
}

fn view(regions: u64, states: &[NodeState], packs: Vec<PackRecord>) -> PlanView {
    let nodes = (0u64..).zip(states).map(|(id, state)| (NodeId(id), node(id, regions, *state)));
    PlanView {
        nodes: nodes.collect(),
        listed: packs.iter().map(|p| p.no).collect(),
        packs,
        ..PlanView::default()
    }
}

fn good(view: &PlanView, pack: &PackRecord) -> usize {
    let counts = |shard: &&ShardRecord| {
        shard.node.is_some_and(|id| view.nodes.get(&id).is_some_and(|node| node.state.counts()))
    };
    pack.stripe.shards.iter().filter(counts).count()
}

/// What `PlaceShard` does. False if it would be refused.
fn carry_out(view: &mut PlanView, task: &Rebuild) -> bool {
    let pack = view.packs.iter_mut().find(|pack| pack.no == task.pack).unwrap();
    if pack.stripe.generation != task.generation {
        return false;
    }
    let shard = ShardId { stripe: pack.stripe.id, index: task.index };
    let copy = Condemned { node: task.to, shard };
    // Reclaimed, it may have been swept meanwhile.
    assert!(!view.condemned.remove(&copy) || task.reclaims, "planned onto a condemned copy");
    assert!(view.nodes[&task.to].state.takes_shards());
    if let Some(old) = pack.stripe.shards[usize::from(task.index)].node.replace(task.to) {
        view.condemned.insert(Condemned { node: old, shard });
    }
    pack.stripe.generation += 1;
    true
}

fn rebuilds(view: &PlanView) -> Vec<Rebuild> {
    plan_repair(view, 1_000).tasks.into_iter().map(|Task::Rebuild(task)| task).collect()
}

/// Carries plans out until there is nothing to do. `order` says which task comes first, and when copies are swept.
fn converge(view: &mut PlanView, order: &[prop::sample::Index]) -> Result<(), TestCaseError> {
    let mut order = order.iter().cycle();
    for _ in 0..200 {
        let mut tasks = rebuilds(view);
        if tasks.is_empty() && view.condemned.is_empty() {
            return Ok(());
        }
        let (Some(which), Some(sweep)) = (order.next(), order.next()) else { break };
        if tasks.is_empty() || sweep.index(3) == 0 {
            let swept = sweep.index(view.condemned.len().max(1));
            view.condemned = view.condemned.iter().copied().skip(swept + 1).collect();
        }
        while !tasks.is_empty() {
            let task = tasks.remove(which.index(tasks.len()));
            let at = view.packs.iter().position(|pack| pack.no == task.pack).unwrap();
            let before = good(view, &view.packs[at]);
            carry_out(view, &task);
            prop_assert!(good(view, &view.packs[at]) >= before, "{task:?}");
        }
    }
    prop_assert!(false, "still planning: {:?}", rebuilds(view));
    Ok(())
}

fn state() -> impl Strategy<Value = NodeState> {
    prop_oneof![6 => Just(NodeState::Up), 4 => (0..6usize).prop_map(|i| NodeState::ALL[i])]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn plans_converge_and_never_lower_what_is_good(
        regions in 1..5u64,
        states in prop::collection::vec(state(), 3..14),
        holders in prop::collection::vec(prop::collection::vec(prop::option::weighted(0.8, 0..14u64), 6), 1..4),
        condemned in prop::collection::vec((0..14u64, 0..3usize, 0..6u8), 0..8),
        order in prop::collection::vec(any::<prop::sample::Index>(), 8),
    ) {
        let scheme = Scheme::new(4, 2, 2).unwrap();
        let count = states.len() as u64;
        let known = |holders: &Vec<Option<u64>>| holders.iter().map(|h| h.map(|id| id % count)).collect::<Vec<_>>();
        let packs = (0u64..).zip(&holders).map(|(no, held)| pack(no, scheme, &known(held))).collect();
        let mut view = view(regions, &states, packs);
        for (node, which, index) in condemned {
            let Some(pack) = view.packs.get(which) else { continue };
            let copy = Condemned { node: NodeId(node % count), shard: ShardId { stripe: pack.stripe.id, index } };
            if pack.stripe.shards[usize::from(index)].node != Some(copy.node) {
                view.condemned.insert(copy);
            }
        }
        let unreadable = view.packs.iter().filter(|pack| good(&view, pack) < 4).map(|pack| pack.no);
        let unreadable = unreadable.collect::<Vec<_>>();
        prop_assert_eq!(&plan_repair(&view, 9).unreadable, &unreadable);
        converge(&mut view, &order)?;
        let up = view.nodes.values().filter(|node| node.state == NodeState::Up).collect::<Vec<_>>();
        let room = (0..regions).map(|r| up.iter().filter(|node| node.id.0 % regions == r).count().min(2));
        let full_possible = room.sum::<usize>() >= 6;
        for pack in view.packs.iter().filter(|pack| !unreadable.contains(&pack.no)) {
            let all = good(&view, pack) == 6;
            prop_assert!(all || up.is_empty(), "a shard has no home though a node is up");
            if full_possible {
                prop_assert!(pack.stripe.at_target(|id| view.nodes.get(&id).map(|node| &node.region)), "{:?}", pack);
                let left = pack.stripe.shards.iter().filter_map(|shard| shard.node).map(|id| view.nodes[&id].state);
                prop_assert!(left.into_iter().all(|state| state != NodeState::Draining));
            }
        }
    }
}

const UP: [NodeState; 6] = [NodeState::Up; 6];

fn placed(holders: [u64; 6]) -> PackRecord {
    pack(1, Scheme::new(4, 2, 2).unwrap(), &holders.map(Some))
}

#[test]
fn a_whole_stripe_gives_no_task_and_is_taken_off_the_list() {
    let view = view(3, &UP, vec![placed([0, 1, 2, 3, 4, 5])]);
    let plan = plan_repair(&view, 9);
    assert!(plan.tasks.is_empty() && plan.unreadable.is_empty());
    assert_eq!(plan.recheck, [PackNo(1)]);
}

#[test]
fn a_silent_node_costs_nothing_and_a_lost_one_is_replaced() {
    for (state, tasks) in [(NodeState::Suspect, 0), (NodeState::Down, 0), (NodeState::Lost, 1)] {
        let mut states = [NodeState::Up; 9];
        states[5] = state;
        let mut view = view(3, &states, vec![placed([0, 1, 2, 3, 4, 5])]);
        view.listed.clear();
        let plan = plan_repair(&view, 9);
        assert_eq!(plan.tasks.len(), tasks, "{state:?}");
        assert_eq!(plan.recheck.len(), tasks);
        if let Some(Task::Rebuild(task)) = plan.tasks.first() {
            assert_eq!((task.index, task.to), (5, NodeId(8)), "the only region with room");
            assert_eq!(task.from_holders.len(), 5);
        }
    }
}

#[test]
fn nothing_is_planned_that_helps_nothing() {
    let mut states = UP;
    (states[4], states[5]) = (NodeState::Lost, NodeState::Lost);
    // Four nodes are left: 2, 2, 1, 1 is the best there is.
    let view = view(3, &states, vec![placed([0, 1, 2, 3, 0, 1])]);
    assert!(rebuilds(&view).is_empty());
}

#[test]
fn doubled_shards_move_when_nodes_come_back() {
    let view = view(3, &UP, vec![placed([0, 1, 2, 3, 0, 1])]);
    let tasks = rebuilds(&view);
    assert_eq!(tasks.len(), 2);
    assert!(tasks.iter().all(|task| [NodeId(4), NodeId(5)].contains(&task.to)));
    assert!(tasks.iter().all(|task| task.from_holders.len() == 6));
}

/// Regression: a node that was given up and came back deleted what it had, and was sent the same by its neighbour.
#[test]
fn what_a_returned_node_still_has_is_reclaimed() {
    let mut view = view(3, &UP, vec![placed([0, 1, 2, 3, 4, 2])]);
    let shard = |index| ShardId { stripe: view.packs[0].stripe.id, index };
    let copies = [shard(5), shard(4)].map(|shard| Condemned { node: NodeId(5), shard });
    view.condemned.extend(copies);
    let tasks = rebuilds(&view);
    // Its own copy of the shard that is doubled up; not that of one which is where it should be.
    assert_eq!((tasks[0].index, tasks[0].to, tasks[0].reclaims), (5, NodeId(5), true), "{tasks:?}");
    assert!(tasks[1..].iter().all(|task| !task.reclaims));
    assert!(carry_out(&mut view, &tasks[0]) && rebuilds(&view).is_empty());
    // A copy that was found bad is made anew once it is gone.
    let mut missing = placed([0, 1, 2, 3, 4, 5]);
    missing.stripe.shards[5].node = None;
    (view.packs, view.condemned) = (vec![missing], [copies[0]].into());
    assert!(rebuilds(&view).iter().all(|task| !task.reclaims && task.to != NodeId(5)));
}

#[test]
fn nodes_are_drained_by_moves_that_keep_the_spread() {
    // Each region has one free node, and the assignment may want the two shards to change regions.
    let mut states = [NodeState::Up; 9];
    (states[2], states[4]) = (NodeState::Draining, NodeState::Draining);
    for no in 0..50 {
        let mut full = placed([0, 1, 2, 3, 4, 5]);
        full.stripe.id.0[..8].copy_from_slice(&(no * 0x0123_4567_89ab_cdef_u64).to_le_bytes());
        let mut view = view(3, &states, vec![full]);
        for _ in 0..2 {
            let task = rebuilds(&view).remove(0);
            assert!(carry_out(&mut view, &task));
            assert!(view.packs[0].stripe.at_target(|id| view.nodes.get(&id).map(|node| &node.region)));
        }
        assert!(rebuilds(&view).is_empty());
    }
}

#[test]
fn the_most_endangered_stripe_comes_first() {
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let one = pack(1, scheme, &[Some(0), Some(1), Some(2), Some(3), Some(4), None]);
    let two = pack(2, scheme, &[Some(0), Some(1), Some(2), Some(3), None, None]);
    let doubled = pack(3, scheme, &[Some(0), Some(1), Some(2), Some(3), Some(4), Some(1)]);
    let view = view(3, &UP, vec![doubled, one, two]);
    let packs = rebuilds(&view).iter().map(|task| task.pack.0).collect::<Vec<_>>();
    assert_eq!(packs, [2, 2, 1, 3]);
    assert_eq!(plan_repair(&view, 1).tasks.len(), 1);
}

#[test]
fn an_unreadable_stripe_is_reported_and_left_alone() {
    let mut states = UP;
    (states[0], states[1], states[2]) = (NodeState::Lost, NodeState::Lost, NodeState::Lost);
    let plan = plan_repair(&view(3, &states, vec![placed([0, 1, 2, 3, 4, 5])]), 9);
    assert!(plan.tasks.is_empty());
    assert_eq!(plan.unreadable, [PackNo(1)]);
}
