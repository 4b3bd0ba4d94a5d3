//! The choice of voters against exhaustive search, and the rules one by one.

use super::*;
use NodeState::*;
use proptest::prelude::*;

fn node(id: u64, region: &str, state: NodeState) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: "n".parse().unwrap(),
        region: region.parse().unwrap(),
        zone: None,
        addr: format!("n{id}:1"),
        capacity: 1,
        state,
    }
}
fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}
/// Everybody is up to date.
fn chosen(nodes: &[NodeRecord], voters: &[u64]) -> Vec<u64> {
    let fresh = nodes.iter().map(|node| node.id).collect();
    choose_voters(nodes, &ids(voters), &fresh).into_iter().map(|id| id.0).collect()
}

#[test]
fn a_lost_voter_is_replaced_in_its_region_or_else_in_another() {
    let mut nodes = vec![node(1, "a/a", Up), node(2, "b/b", Lost), node(3, "c/c", Up), node(4, "b/b", Up)];
    nodes.push(node(5, "c/c", Up));
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 3, 4]);
    nodes.remove(3);
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 3, 5]);
    // The region comes back, and with it the spread.
    nodes.push(node(6, "b/b", Up));
    assert_eq!(chosen(&nodes, &[1, 3, 5]), [1, 3, 6]);
    let behind = choose_voters(&nodes, &ids(&[1, 3, 5]), &ids(&[1, 3, 5]));
    assert_eq!(behind, ids(&[1, 3, 5]), "whoever is not up to date waits");
}

#[test]
fn a_lost_voter_without_an_heir_keeps_its_place_while_that_costs_nothing() {
    let three = [node(1, "a/a", Up), node(2, "b/b", Lost), node(3, "c/c", Up)];
    assert_eq!(chosen(&three, &[1, 2, 3]), [1, 2, 3]);
    let five: Vec<_> =
        (1..6).map(|id| node(id, &format!("p/{id}"), if id < 3 { Lost } else { Up })).collect();
    assert_eq!(
        chosen(&five, &[1, 2, 3, 4, 5]),
        [3, 4, 5],
        "three of three survive a loss, three of five do not"
    );
    let four: Vec<_> =
        (1..6).map(|id| node(id, &format!("p/{id}"), if id < 2 { Lost } else { Up })).collect();
    assert_eq!(chosen(&four, &[1, 2, 3, 4, 5]), [1, 2, 3, 4, 5]);
}

#[test]
fn the_number_follows_the_regions_and_is_odd() {
    let of = |regions: u64, each: u64| {
        let nodes: Vec<_> =
            (0..regions * each).map(|i| node(i + 1, &format!("p{}/r", i % regions), Up)).collect();
        chosen(&nodes, &[1]).len()
    };
    assert_eq!([of(1, 1), of(1, 2), of(1, 5), of(2, 1), of(2, 2), of(3, 1), of(4, 3)], [1, 1, 3, 1, 3, 3, 3]);
    assert_eq!([of(5, 1), of(6, 2), of(7, 1), of(9, 2)], [5, 5, 7, 7]);
}

#[test]
fn providers_are_spread_when_there_are_more_regions_than_votes() {
    let nodes = [node(1, "aws/a", Up), node(2, "aws/b", Up), node(3, "gcp/c", Up), node(4, "home/d", Up)];
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 3, 4]);
}

#[test]
fn two_regions_and_a_witness_have_one_vote_each() {
    let mut nodes: Vec<_> = (1..7).map(|id| node(id, &format!("p/{}", id % 2), Up)).collect();
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 2, 3], "two votes in one region");
    nodes.push(NodeRecord { capacity: 0, ..node(9, "w/w", Up) });
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 2, 9]);
    let mut same = vec![node(1, "a/a", Up), node(2, "b/b", Up), node(3, "c/c", Up)];
    same.push(NodeRecord { capacity: 0, ..node(4, "c/c", Up) });
    assert_eq!(chosen(&same, &[1, 2, 3]), [1, 2, 4], "it votes and does little else");
}

#[test]
fn who_leaves_gives_its_vote_away_if_anybody_can_take_it() {
    let mut nodes = vec![node(1, "a/a", Draining), node(2, "b/b", Up), node(3, "c/c", Up)];
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [1, 2, 3]);
    assert!(!can_spare(&nodes, &ids(&[1, 2, 3]), NodeId(1)));
    nodes.push(node(4, "c/c", Up));
    assert_eq!(chosen(&nodes, &[1, 2, 3]), [2, 3, 4]);
    assert!(can_spare(&nodes, &ids(&[1, 2, 3]), NodeId(1)));
    assert!(can_spare(&nodes, &ids(&[2, 3, 4]), NodeId(1)), "it has no vote");
}

#[test]
fn founders_that_were_not_heard_of_yet_stay() {
    assert_eq!(chosen(&[node(1, "a/a", Up), node(9, "a/a", Up)], &[1, 2, 3]), [1, 2, 3]);
    assert_eq!(chosen(&[], &[1, 2, 3]), [1, 2, 3]);
}

/// What a set costs, worse first; it shares no code with the choice.
fn cost(before: &BTreeSet<NodeId>, set: &[&NodeRecord]) -> Vec<usize> {
    let count = |of: &dyn Fn(&NodeRecord) -> bool| set.iter().filter(|n| of(n)).count();
    let squares = |domain: &dyn Fn(&NodeRecord) -> String| {
        let mut sizes = BTreeMap::<String, usize>::new();
        set.iter().for_each(|n| *sizes.entry(domain(n)).or_default() += 1);
        sizes.values().map(|size| size * size).sum::<usize>()
    };
    vec![
        count(&|n| n.state == Lost),
        count(&|n| n.state == Draining),
        squares(&|n| n.region.to_string()),
        squares(&|n| n.region.provider().to_string()),
        squares(&|n| format!("{} {:?}", n.region, n.zone)),
        count(&|n| n.capacity > 0),
        count(&|n| !before.contains(&n.id)),
    ]
}

fn any_node(id: u64) -> impl Strategy<Value = NodeRecord> {
    let state = prop_oneof![5 => Just(Up), 1 => Just(Suspect), 1 => Just(Down), 2 => Just(Lost), 1 => Just(Draining), 1 => Just(Retired)];
    (0..5usize, state, prop::option::of(0..2u8), prop::bool::weighted(0.15)).prop_map(
        move |(region, state, zone, witness)| NodeRecord {
            zone: zone.map(|zone| format!("z{zone}").parse().unwrap()),
            capacity: u64::from(!witness),
            ..node(id, ["a/1", "a/2", "b/1", "b/2", "c/1"][region], state)
        },
    )
}

/// Nodes, who votes, and who is up to date.
fn world() -> impl Strategy<Value = (Vec<NodeRecord>, BTreeSet<NodeId>, BTreeSet<NodeId>)> {
    (1..9u64).prop_flat_map(|count| {
        let nodes = (1..=count).map(any_node).collect::<Vec<_>>();
        let some = |weight| prop::collection::vec(prop::bool::weighted(weight), count as usize);
        (nodes, some(0.5), some(0.7)).prop_map(|(nodes, votes, fresh)| {
            let of = |flags: Vec<bool>| -> BTreeSet<NodeId> {
                nodes.iter().zip(flags).filter(|(_, flag)| *flag).map(|(n, _)| n.id).collect()
            };
            let mut voters = of(votes);
            voters.insert(nodes[0].id);
            let fresh = of(fresh);
            (nodes.clone(), voters, fresh)
        })
    })
}

fn living(nodes: &[NodeRecord], voters: &BTreeSet<NodeId>) -> usize {
    nodes.iter().filter(|n| voters.contains(&n.id) && !matches!(n.state, Lost | Retired)).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn nothing_better_can_be_chosen((nodes, voters, fresh) in world()) {
        let may = |n: &&NodeRecord| {
            n.state != Retired && (voters.contains(&n.id) || (n.state == Up && fresh.contains(&n.id)))
        };
        let able: Vec<&NodeRecord> = nodes.iter().filter(may).collect();
        let chosen = choose_voters(&nodes, &voters, &fresh);
        if able.is_empty() {
            prop_assert_eq!(chosen, voters);
            return Ok(());
        }
        let regions: BTreeSet<_> =
            nodes.iter().filter(|n| !matches!(n.state, Draining | Retired)).map(|n| &n.region).collect();
        let most = match regions.len() { 0..=4 => 3, 5 | 6 => 5, _ => 7 };
        // Every set of an odd size: as many further losses as possible, then as large as possible, then least cost.
        let best = (1u32..1 << able.len())
            .filter(|bits| bits.count_ones() % 2 == 1 && bits.count_ones() <= most)
            .map(|bits| {
                let set: Vec<&NodeRecord> =
                    (0..able.len()).filter(|i| bits >> i & 1 == 1).map(|i| able[i]).collect();
                let spare = set.iter().filter(|n| n.state != Lost).count() as i32 - (set.len() as i32 / 2 + 1);
                (-spare, -(set.len() as i32), cost(&voters, &set))
            })
            .min()
            .unwrap();
        let set: Vec<&NodeRecord> = nodes.iter().filter(|n| chosen.contains(&n.id)).collect();
        prop_assert_eq!(set.len(), chosen.len());
        let spare = set.iter().filter(|n| n.state != Lost).count() as i32 - (set.len() as i32 / 2 + 1);
        prop_assert_eq!((-spare, -(set.len() as i32), cost(&voters, &set)), best);
    }

    #[test]
    fn steps_come_to_an_end_and_keep_the_living_in_the_majority((nodes, voters, fresh) in world()) {
        let wanted = choose_voters(&nodes, &voters, &fresh);
        let (mut now, mut steps) = (voters.clone(), 0);
        while let Some(next) = next_voters(&nodes, &now, &fresh) {
            let came: Vec<_> = next.difference(&now).copied().collect();
            let went: Vec<_> = now.difference(&next).copied().collect();
            prop_assert!(came.len().min(went.len()) == 0 || (came.len() == 1 && went.len() == 1));
            for id in &came {
                let node = nodes.iter().find(|n| n.id == *id).unwrap();
                prop_assert!(node.state == Up && fresh.contains(id), "{node:?} is no voter");
            }
            if living(&nodes, &now) * 2 > now.len() {
                prop_assert!(living(&nodes, &next) * 2 > next.len(), "{now:?} to {next:?}");
            }
            prop_assert!(went.is_empty() || came.is_empty() || living(&nodes, &next) >= living(&nodes, &now));
            now = next;
            steps += 1;
            prop_assert!(steps < 12, "no end: {voters:?} to {wanted:?}, now {now:?}");
        }
        // Two that are well wait for a third.
        let fit: Vec<_> = nodes.iter().filter(|n| matches!(n.state, Up | Suspect | Down)).map(|n| n.id).collect();
        let waits = now.len() == 2 && fit.len() > 2 && now.iter().all(|id| fit.contains(id));
        prop_assert!(now.len() == wanted.len() || (waits && wanted.len() == 1), "{now:?}, not {wanted:?}");
    }
}
