//! The stripes of a fleet, by placement group: all stripes that draw the same copyset lie on the same nodes and are
//! repaired onto the same nodes, so one of them stands for all. (They differ in which index is where; nobody here
//! asks.) Where shards go is decided by `farshore_core::placement` and nothing else.

use super::spec::Spec;
use farshore_core::id::{NodeId, StripeId};
use farshore_core::placement::{Candidate, Draw, Level, assign_among, copysets};
use farshore_core::topology::{NodeState, Region};
use std::sync::Arc;

/// A node's place in [`Nodes`]; a machine that stands in for a dead one has another.
pub type NodeIx = u32;
/// A group's number, which is its copyset.
pub type GroupIx = u32;

/// Nobody.
pub const NONE: NodeIx = NodeIx::MAX;

/// Bytes that every node offers: they are alike.
const CAPACITY: u64 = 1 << 40;

/// Nodes looked at beyond those that could be needed, since some may be silent.
const HEAD_SPARE: usize = 4;

/// One machine.
#[derive(Clone, Debug)]
pub struct Node {
    /// In the order of regions.
    pub region: u16,
    /// What the catalogue thinks of it.
    pub state: NodeState,
    /// Its disks exist and hold what was written.
    pub data: bool,
    /// Raised when what was foreseen for it no longer holds.
    pub stamp: u32,
    /// Shards that were put here; some may have left since.
    pub shards: Vec<(GroupIx, u8)>,
}

/// All machines, dead ones included.
#[derive(Clone, Debug)]
pub struct Nodes {
    /// By number.
    pub all: Vec<Node>,
    /// By region: those that hold data, in no order.
    pub alive: Vec<Vec<NodeIx>>,
    /// By node: its place in `alive`.
    place: Vec<u32>,
    regions: Arc<Vec<Region>>,
}

impl Nodes {
    fn new(spec: &Spec) -> Self {
        let regions = spec.places.iter().map(|(region, _)| region.clone()).collect();
        let alive = vec![Vec::new(); spec.places.len()];
        let mut this = Nodes { all: Vec::new(), alive, place: Vec::new(), regions: Arc::new(regions) };
        for (region, (_, count)) in spec.places.iter().enumerate() {
            (0..*count).for_each(|_| {
                this.arrive(region);
            });
        }
        this
    }

    /// A new, empty machine.
    fn arrive(&mut self, region: usize) -> NodeIx {
        let node = self.all.len() as NodeIx;
        let (state, data) = (NodeState::Up, true);
        self.all.push(Node { region: region as u16, state, data, stamp: 0, shards: Vec::new() });
        self.place.push(self.alive[region].len() as u32);
        self.alive[region].push(node);
        node
    }

    /// Its data is gone.
    pub fn die(&mut self, node: NodeIx) {
        let it = &mut self.all[node as usize];
        if std::mem::replace(&mut it.data, false) {
            let (list, at) = (&mut self.alive[usize::from(it.region)], self.place[node as usize]);
            list.swap_remove(at as usize);
            if let Some(moved) = list.get(at as usize) {
                self.place[*moved as usize] = at;
            }
        }
    }

    /// It has its data again, as if nothing had been.
    pub fn revive(&mut self, node: NodeIx) {
        let it = &mut self.all[node as usize];
        if !std::mem::replace(&mut it.data, true) {
            let list = &mut self.alive[usize::from(it.region)];
            self.place[node as usize] = list.len() as u32;
            list.push(node);
        }
    }

    /// Nodes with data.
    pub fn alive_count(&self) -> usize {
        self.alive.iter().map(Vec::len).sum()
    }

    /// Which region.
    pub fn region(&self, node: NodeIx) -> usize {
        usize::from(self.all[node as usize].region)
    }

    fn takes_shards(&self, node: NodeIx) -> bool {
        let node = &self.all[node as usize];
        node.state.takes_shards() && node.data
    }
}

/// Who holds what.
#[derive(Clone, Debug)]
pub struct Groups {
    /// Machines.
    pub nodes: Nodes,
    /// n for each group, by shard: the holder that the catalogue names.
    holders: Vec<NodeIx>,
    /// By group: shards that really exist.
    pub intact: Vec<u8>,
    /// By group: fewer than k were left, and it has not been whole since.
    pub lost: Vec<bool>,
    count: usize,
    n: usize,
    spec: Arc<Spec>,
    /// For each group and region: the first nodes of the region in the group's order, and the draw of the last one of
    /// them. Nodes that died stay until the list runs short.
    heads: Vec<Vec<NodeIx>>,
    bounds: Vec<Draw>,
}

impl Groups {
    /// Machines, and every group placed at full strength.
    pub fn new(spec: Arc<Spec>) -> Self {
        let (n, count) =
            (spec.scheme.n(), copysets(spec.scheme.n(), spec.nodes()).min(spec.groups_max as u64));
        let count = count as usize;
        let nodes = Nodes::new(&spec);
        let regions = spec.places.len();
        let mut this = Groups {
            nodes,
            holders: vec![NONE; count * n],
            intact: vec![0; count],
            lost: vec![false; count],
            count,
            n,
            heads: Vec::with_capacity(count * regions),
            bounds: Vec::with_capacity(count * regions),
            spec,
        };
        for group in 0..count as GroupIx {
            for region in 0..regions {
                let (head, bound) = this.draw_head(group, region);
                this.heads.push(head);
                this.bounds.push(bound);
            }
            let nobody = vec![NONE; n];
            let (wanted, _) = this.wanted(group, &nobody);
            for (index, node) in wanted.into_iter().enumerate() {
                this.put(group, index, node);
                this.intact[group as usize] += u8::from(node != NONE);
            }
        }
        this
    }

    /// Number of groups.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Who holds the shards of a group, as far as the catalogue knows.
    pub fn holders(&self, group: GroupIx) -> &[NodeIx] {
        &self.holders[group as usize * self.n..][..self.n]
    }

    /// Names the holder of one shard.
    pub fn put(&mut self, group: GroupIx, index: usize, node: NodeIx) {
        self.holders[group as usize * self.n + index] = node;
        if node != NONE {
            self.nodes.all[node as usize].shards.push((group, index as u8));
        }
    }

    /// Whether this shard exists.
    pub fn is_intact(&self, group: GroupIx, index: usize) -> bool {
        let holder = self.holders(group)[index];
        holder != NONE && self.nodes.all[holder as usize].data
    }

    /// Shards the catalogue has on a node, in no order; what left is forgotten.
    pub fn shards_on(&mut self, node: NodeIx) -> Vec<(GroupIx, u8)> {
        let mut shards = std::mem::take(&mut self.nodes.all[node as usize].shards);
        shards.retain(|(group, index)| self.holders(*group)[usize::from(*index)] == node);
        // A shard that left and came back is there twice.
        shards.sort_unstable();
        shards.dedup();
        self.nodes.all[node as usize].shards.clone_from(&shards);
        shards
    }

    /// A new machine, which every group may have use for.
    pub fn arrive(&mut self, region: usize) -> NodeIx {
        let node = self.nodes.arrive(region);
        let (id, regions) = (id_of(node), self.spec.places.len());
        for group in 0..self.count {
            let at = group * regions + region;
            // A short list has everybody in it.
            let full = self.heads[at].len() >= self.n + HEAD_SPARE;
            let draw = match full {
                true => Draw::before(&self.bounds[at], group as u64, id, CAPACITY),
                false => Some(Draw::of(group as u64, id, CAPACITY)),
            };
            let Some(draw) = draw else { continue };
            let head = &mut self.heads[at];
            let place = head.partition_point(|other| draw_of(group as GroupIx, *other) < draw);
            head.insert(place, node);
            if full {
                head.pop();
            }
            self.bounds[at] = head.last().map_or(draw, |last| draw_of(group as GroupIx, *last));
        }
        node
    }

    /// Where the shards of a group should be, given who holds them and may keep them.
    pub fn wanted(&mut self, group: GroupIx, held: &[NodeIx]) -> (Vec<NodeIx>, Level) {
        let mut loads = vec![0; self.spec.places.len()];
        held.iter().filter(|node| **node != NONE).for_each(|node| loads[self.nodes.region(*node)] += 1);
        let spread = usize::from(self.spec.scheme.spread());
        let missing = held.len() - loads.iter().sum::<usize>();
        let above: usize = loads.iter().map(|load| load.saturating_sub(spread)).sum();
        // No region can get more shards than have no place, so nobody behind its first few matters.
        let found = self.assign(group, held, spread.min(missing + above));
        if found.1 == Level::Full {
            return found;
        }
        let found = self.assign(group, held, missing);
        if found.1 == Level::Crowded { found } else { self.assign(group, held, self.n) }
    }

    fn assign(&mut self, group: GroupIx, held: &[NodeIx], heads: usize) -> (Vec<NodeIx>, Level) {
        let mut chosen: Vec<NodeIx> = held.iter().copied().filter(|node| *node != NONE).collect();
        chosen.sort_unstable();
        chosen.dedup();
        for region in 0..self.spec.places.len() {
            self.first_of(group, region, heads, &mut chosen);
        }
        let regions = &self.nodes.regions;
        let region = |node: NodeIx| regions[usize::from(self.nodes.all[node as usize].region)].clone();
        let candidate =
            |node: &NodeIx| Candidate { id: id_of(*node), region: region(*node), capacity: CAPACITY };
        let candidates: Vec<Candidate> = chosen.iter().map(candidate).collect();
        let held: Vec<_> = held.iter().map(|node| (*node != NONE).then(|| id_of(*node))).collect();
        // Holders who may keep what they have take nothing new unless they could anyway.
        let barred = |id: NodeId, index: u8| {
            held[usize::from(index)] != Some(id) && !self.nodes.takes_shards(id.0 as NodeIx - 1)
        };
        let stripe = stripe_of(group);
        let found = assign_among(group.into(), stripe, self.spec.scheme, &candidates, &held, &barred);
        let nodes = found.nodes.into_iter().map(|id| id.map_or(NONE, |id| id.0 as NodeIx - 1)).collect();
        (nodes, found.level)
    }

    /// Adds the first nodes of a region, in the group's order, that take shards and are not in `chosen` yet.
    fn first_of(&mut self, group: GroupIx, region: usize, most: usize, chosen: &mut Vec<NodeIx>) {
        let at = group as usize * self.spec.places.len() + region;
        let before = chosen.len();
        for node in &self.heads[at] {
            if chosen.len() - before >= most {
                return;
            }
            if self.nodes.takes_shards(*node) && !chosen.contains(node) {
                chosen.push(*node);
            }
        }
        let free = |node: &NodeIx| self.nodes.takes_shards(*node) && !chosen[..before].contains(node);
        let others: Vec<NodeIx> = self.nodes.alive[region].iter().copied().filter(free).collect();
        // The list may be short because there is nobody else.
        if chosen.len() - before >= most.min(others.len()) {
            return;
        }
        let found = first_drawn(group, &others, most);
        chosen.truncate(before);
        chosen.extend(found.into_iter().map(|(_, node)| node));
        if self.heads[at].iter().any(|node| !self.nodes.all[*node as usize].data) {
            (self.heads[at], self.bounds[at]) = self.draw_head(group, region);
        }
    }

    /// The first nodes with data of a region in a group's order.
    fn draw_head(&self, group: GroupIx, region: usize) -> (Vec<NodeIx>, Draw) {
        let head = first_drawn(group, &self.nodes.alive[region], self.n + HEAD_SPARE);
        let bound = head.last().map_or(draw_of(group, 0), |(draw, _)| *draw);
        (head.into_iter().map(|(_, node)| node).collect(), bound)
    }
}

/// The first of these nodes in a group's order.
fn first_drawn(group: GroupIx, nodes: &[NodeIx], most: usize) -> Vec<(Draw, NodeIx)> {
    let mut first: Vec<(Draw, NodeIx)> = Vec::with_capacity(most + 1);
    for node in nodes {
        let draw = match first.last() {
            Some((bound, _)) if first.len() >= most => {
                Draw::before(bound, group.into(), id_of(*node), CAPACITY)
            }
            _ => Some(draw_of(group, *node)),
        };
        let Some(draw) = draw else { continue };
        let place = first.partition_point(|(other, _)| *other < draw);
        first.insert(place, (draw, *node));
        first.truncate(most);
    }
    first
}

fn draw_of(group: GroupIx, node: NodeIx) -> Draw {
    Draw::of(group.into(), id_of(node), CAPACITY)
}

fn id_of(node: NodeIx) -> NodeId {
    NodeId(u64::from(node) + 1)
}

/// Any stripe of the group.
fn stripe_of(group: GroupIx) -> StripeId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&group.to_le_bytes());
    id[8..12].copy_from_slice(&group.wrapping_mul(0x9e37_79b9).to_le_bytes());
    StripeId(id)
}

#[cfg(test)]
mod tests {
    use super::super::dice::Dice;
    use super::*;
    use farshore_core::erasure::Scheme;
    use farshore_core::placement::{assign, copyset_of};
    use proptest::prelude::*;

    fn spec(nodes: usize, regions: usize, scheme: Scheme) -> Arc<Spec> {
        let names = ["a/1", "b/1", "c/1", "d/1"];
        Arc::new(Spec { groups_max: 64, ..Spec::even(nodes, &names[..regions], scheme).unwrap() })
    }

    /// A stripe that draws this copyset.
    fn stripe_in(group: GroupIx, n: usize, nodes: usize, dice: &mut Dice) -> StripeId {
        loop {
            let id = StripeId(std::array::from_fn(|_| dice.below(256) as u8));
            if copyset_of(id, n, nodes) == u64::from(group) {
                return id;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Short lists and all: the set of holders is what the plain `assign` over every node says, through deaths,
        /// silences and arrivals, as long as the number of nodes keeps its number of copysets.
        #[test]
        fn groups_lie_where_the_product_would_put_their_stripes(
            nodes in 40usize..60, regions in 2usize..5, spread in 2u8..5, seed: u64, silent in 0usize..12
        ) {
            let scheme = Scheme::new(3, 3, spread).unwrap();
            prop_assume!(regions * usize::from(spread) >= 6);
            let mut dice = Dice::new(seed, 0);
            let mut groups = Groups::new(spec(nodes, regions, scheme));
            for step in 0..6 {
                for _ in 0..silent {
                    let node = dice.below(groups.nodes.all.len()) as NodeIx;
                    match dice.below(3) {
                        0 => groups.nodes.all[node as usize].state = NodeState::Down,
                        1 => groups.nodes.all[node as usize].state = NodeState::Up,
                        _ if groups.nodes.all[node as usize].data => {
                            groups.nodes.die(node);
                            let region = groups.nodes.region(node);
                            groups.arrive(region);
                        }
                        _ => {}
                    }
                }
                let group = dice.below(groups.count()) as GroupIx;
                // Silent holders keep their shards, dead ones do not.
                let held: Vec<NodeIx> =
                    (0..6).map(|i| if groups.is_intact(group, i) { groups.holders(group)[i] } else { NONE }).collect();
                let candidates: Vec<Candidate> = (0..groups.nodes.all.len() as NodeIx)
                    .filter(|node| groups.nodes.takes_shards(*node) || held.contains(node))
                    .map(|node| Candidate {
                        id: id_of(node),
                        region: groups.nodes.regions[groups.nodes.region(node)].clone(),
                        capacity: CAPACITY,
                    })
                    .collect();
                prop_assume!(copysets(6, candidates.len()) == copysets(6, nodes));
                let stripe = stripe_in(group, 6, candidates.len(), &mut dice);
                let held_ids: Vec<_> = held.iter().map(|node| (*node != NONE).then(|| id_of(*node))).collect();
                let barred = |id: NodeId, index: u8| {
                    held_ids[usize::from(index)] != Some(id) && !groups.nodes.takes_shards(id.0 as NodeIx - 1)
                };
                let expected = assign(stripe, scheme, &candidates, &held_ids, &barred);
                let (found, level) = groups.wanted(group, &held);
                prop_assert_eq!(level, expected.level);
                let mut found_ids: Vec<_> = found.iter().map(|node| id_of(*node)).collect();
                let mut expected_ids: Vec<_> = expected.nodes.iter().flatten().copied().collect();
                found_ids.sort_unstable();
                expected_ids.sort_unstable();
                if level <= Level::Crowded {
                    prop_assert_eq!(found_ids, expected_ids, "step {}", step);
                }
                found.into_iter().enumerate().for_each(|(index, node)| groups.put(group, index, node));
            }
        }
    }

    #[test]
    fn a_dead_node_leaves_the_list_of_the_living_and_a_revived_one_returns() {
        let mut groups = Groups::new(spec(9, 3, Scheme::new(6, 3, 3).unwrap()));
        assert_eq!(groups.nodes.alive_count(), 9);
        (0..9).for_each(|node| groups.nodes.die(node));
        groups.nodes.die(3);
        assert_eq!(groups.nodes.alive_count(), 0);
        [4, 0, 8, 4].into_iter().for_each(|node| groups.nodes.revive(node));
        assert_eq!(groups.nodes.alive, vec![vec![0], vec![4], vec![8]]);
        groups.nodes.die(4);
        assert_eq!(groups.nodes.alive_count(), 2);
    }

    #[test]
    fn every_group_begins_whole_and_within_its_limits() {
        let groups = Groups::new(spec(30, 3, Scheme::new(5, 4, 3).unwrap()));
        for group in 0..groups.count() as GroupIx {
            let mut per_region = [0; 3];
            groups.holders(group).iter().for_each(|node| per_region[groups.nodes.region(*node)] += 1);
            assert_eq!((per_region, groups.intact[group as usize]), ([3, 3, 3], 9));
        }
    }
}
