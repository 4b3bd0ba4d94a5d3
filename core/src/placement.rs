//! Which node gets which shard of a stripe. Pure: the same arguments give the same answer on every machine, so client,
//! nodes and simulator agree. It proposes; where shards really are, only the catalogue knows.
//!
//! Weighted rendezvous hashing (Thaler and Ravishankar 1998) under hard constraints. A stripe draws one of a bounded
//! number of node orders (copysets, Cidon et al. 2013), so that many nodes lost at once rarely share a stripe; in that
//! order it takes the first nodes with room. What is held already stays unless a constraint drives it out.

use crate::erasure::Scheme;
use crate::host::task::splitmix;
use crate::id::{NodeId, StripeId};
use crate::mutant::{Mutant, mutant};
use crate::topology::{NodeRecord, Region};
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// Node orders that stripes draw from, for each time that the nodes could hold one whole stripe side by side (that
/// number rounded up to a power of two). More would even out the load, fewer would make a loss of many nodes rarer.
pub const COPYSETS: u64 = 64;

/// A node that can take shards now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Who.
    pub id: NodeId,
    /// Its failure domain.
    pub region: Region,
    /// Its weight: bytes it offers. A node with 0 is drawn last.
    pub capacity: u64,
}

/// Nodes that take shards.
pub fn candidates<'a>(nodes: impl IntoIterator<Item = &'a NodeRecord>) -> Vec<Candidate> {
    let up = nodes.into_iter().filter(|node| node.takes_shards());
    up.map(|node| Candidate { id: node.id, region: node.region.clone(), capacity: node.capacity }).collect()
}

/// The strictest constraints that could be kept, best first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Level {
    /// At most one shard per node and `spread` per region.
    Full,
    /// At most one shard per node, but too few regions.
    Crowded,
    /// Too few nodes: shards share nodes, as evenly as possible, or have none.
    Doubled,
}

/// A place for every shard that can have one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Assignment {
    /// By shard index; `None` only if every candidate is barred for that shard, or there is none.
    pub nodes: Vec<Option<NodeId>>,
    /// Constraints kept.
    pub level: Level,
}

/// Why a shard got its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Why {
    /// It is there already and may stay.
    Held,
    /// First in the stripe's order of nodes that had room.
    Drawn,
    /// In the region, then on the node, that held the fewest shards of this stripe.
    Lightest,
    /// It made room for another shard that could go nowhere else.
    MadeRoom,
    /// No candidate may hold it.
    Nowhere,
}

/// One shard's place, explained.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Choice {
    /// Shard.
    pub index: u8,
    /// Its node, if there is one.
    pub node: Option<NodeId>,
    /// Why this one.
    pub why: Why,
    /// Place of the node in the stripe's order, 0 is first.
    pub rank: Option<usize>,
    /// Which order the stripe drew.
    pub copyset: u64,
}

/// Whether a node must not hold a certain shard, for example because a condemned copy still lies there.
pub type Barred<'a> = &'a dyn Fn(NodeId, u8) -> bool;

/// Gives every shard of a stripe a node. `held` names the present holders by index; those who are not candidates count
/// as gone. Among all assignments at the strictest possible level this is one that moves the fewest held shards.
pub fn assign(
    stripe: StripeId,
    scheme: Scheme,
    candidates: &[Candidate],
    held: &[Option<NodeId>],
    barred: Barred,
) -> Assignment {
    let (level, choices) = explain(stripe, scheme, candidates, held, barred);
    Assignment { nodes: choices.iter().map(|choice| choice.node).collect(), level }
}

/// The same as [`assign`] for a caller who knows the stripe's copyset and leaves out candidates that cannot be chosen:
/// those behind the first n of their region, by [`Draw`], that may hold every shard, unless they hold one already.
pub fn assign_among(
    copyset: u64,
    stripe: StripeId,
    scheme: Scheme,
    candidates: &[Candidate],
    held: &[Option<NodeId>],
    barred: Barred,
) -> Assignment {
    let board = Board::new(copyset, stripe, scheme.n(), candidates, held, barred);
    let (level, seats) = board.seat_all(scheme.spread().into());
    Assignment { nodes: seats.iter().map(|seat| seat.map(|(rank, _)| board.order[rank].id)).collect(), level }
}

/// How many orders the stripes of width n draw from, on so many nodes.
pub fn copysets(n: usize, nodes: usize) -> u64 {
    COPYSETS * ((nodes / n).max(1) as u64).next_power_of_two()
}

/// Which of the orders a stripe draws.
pub fn copyset_of(stripe: StripeId, n: usize, nodes: usize) -> u64 {
    splitmix(u128::from_le_bytes(stripe.0) as u64, 0) % copysets(n, nodes)
}

/// A node's place in the order of a copyset, less is earlier; it depends on nobody else.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Draw {
    log: u64,
    capacity: u64,
    id: NodeId,
}

impl Draw {
    /// Draws for one node.
    pub fn of(copyset: u64, id: NodeId, capacity: u64) -> Self {
        Draw { log: minus_log2(Draw::hash(copyset, id)), capacity, id }
    }

    /// The same, if it comes before `bound`; made for looking through very many, most of which do not.
    pub fn before(bound: &Draw, copyset: u64, id: NodeId, capacity: u64) -> Option<Self> {
        // −log2(x) is at least 1 − x, which costs nothing.
        let least = (!Draw::hash(copyset, id)) >> (64 - PLACES);
        if u128::from(least) * u128::from(bound.capacity) > u128::from(bound.log) * u128::from(capacity) {
            return None;
        }
        Some(Draw::of(copyset, id, capacity)).filter(|draw| draw < bound)
    }

    fn hash(copyset: u64, id: NodeId) -> u64 {
        splitmix(splitmix(id.0, 0), copyset) | 1
    }
}
impl Ord for Draw {
    /// A node comes before another with probability proportional to its capacity: its key is an exponential variable,
    /// −log(hash) / capacity.
    fn cmp(&self, other: &Self) -> Ordering {
        let key = |a: &Draw, b: &Draw| u128::from(a.log) * u128::from(b.capacity);
        let nothing_last = (self.capacity == 0).cmp(&(other.capacity == 0));
        let by_key = key(self, other).cmp(&key(other, self));
        nothing_last.then(by_key).then(self.id.cmp(&other.id))
    }
}
impl PartialOrd for Draw {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The same as [`assign`], with the reason for each shard.
pub fn explain(
    stripe: StripeId,
    scheme: Scheme,
    candidates: &[Candidate],
    held: &[Option<NodeId>],
    barred: Barred,
) -> (Level, Vec<Choice>) {
    // A candidate named twice counts once.
    let nodes = candidates.iter().map(|c| c.id).collect::<BTreeSet<_>>().len();
    let copyset = copyset_of(stripe, scheme.n(), nodes);
    let board = Board::new(copyset, stripe, scheme.n(), candidates, held, barred);
    let (level, seats) = board.seat_all(scheme.spread().into());
    let choice = |(index, seat): (usize, &Option<(usize, Why)>)| Choice {
        index: index as u8,
        node: seat.map(|(rank, _)| board.order[rank].id),
        why: seat.map_or(Why::Nowhere, |(_, why)| why),
        rank: seat.map(|(rank, _)| rank),
        copyset,
    };
    (level, seats.iter().enumerate().map(choice).collect())
}

/// The level that these places amount to, shards without a place left aside. `region` knows the nodes that count.
pub fn level_of<'a>(
    scheme: Scheme,
    nodes: impl IntoIterator<Item = NodeId>,
    region: impl Fn(NodeId) -> Option<&'a Region>,
) -> Level {
    let (mut by_node, mut by_region) = (BTreeMap::<NodeId, usize>::new(), BTreeMap::<&str, usize>::new());
    for node in nodes {
        *by_node.entry(node).or_default() += 1;
        *by_region.entry(region(node).map_or("", Region::as_str)).or_default() += 1;
    }
    if by_node.values().any(|count| *count > 1) {
        Level::Doubled
    } else if by_region.values().any(|count| *count > usize::from(scheme.spread())) {
        Level::Crowded
    } else {
        Level::Full
    }
}

/// One stripe's problem: nodes in its order, who is held where, what is forbidden.
struct Board<'a> {
    n: usize,
    /// Shard that draws first; it differs between stripes of one copyset, so that data and parity mix on every node.
    first: usize,
    order: Vec<&'a Candidate>,
    /// By rank: number of its region.
    region: Vec<usize>,
    regions: usize,
    /// By shard: rank of its holder, if that may stay.
    held: Vec<Option<usize>>,
    barred: Barred<'a>,
}

impl<'a> Board<'a> {
    fn new(
        copyset: u64,
        stripe: StripeId,
        n: usize,
        candidates: &'a [Candidate],
        held: &[Option<NodeId>],
        barred: Barred<'a>,
    ) -> Self {
        let once: BTreeMap<NodeId, &Candidate> = candidates.iter().map(|c| (c.id, c)).collect();
        let hash = u128::from_le_bytes(stripe.0);
        let order = draw_order(copyset, once.into_values());
        let mut numbers = BTreeMap::new();
        let region = order.iter().map(|node| {
            let next = numbers.len();
            *numbers.entry(node.region.as_str()).or_insert(next)
        });
        let region = region.collect();
        let rank: BTreeMap<NodeId, usize> =
            order.iter().enumerate().map(|(rank, node)| (node.id, rank)).collect();
        let stays = |index: usize| {
            let node = held.get(index).copied().flatten()?;
            rank.get(&node).copied().filter(|_| !barred(node, index as u8))
        };
        Board {
            n,
            first: (splitmix((hash >> 64) as u64, 0) % n as u64) as usize,
            held: (0..n).map(stays).collect(),
            regions: numbers.len(),
            order,
            region,
            barred,
        }
    }

    fn may_hold(&self, rank: usize, shard: usize) -> bool {
        !(self.barred)(self.order[rank].id, shard as u8)
    }

    /// Shards that have room within the caps if nothing is barred.
    fn room(&self, caps: Caps) -> usize {
        let mut rooms = vec![0; self.regions];
        self.region.iter().for_each(|region| rooms[*region] += caps.per_node);
        rooms.into_iter().map(|room: usize| room.min(caps.per_region)).sum()
    }

    /// Tries one level after the other, strictest first.
    fn seat_all(&self, spread: usize) -> (Level, Seating) {
        if self.order.len() >= self.n {
            for (level, per_region) in [(Level::Full, spread), (Level::Crowded, self.n)] {
                let per_node = if mutant(Mutant::DoubleUp) { 2 } else { 1 };
                // Without one region, most stripes of a cluster would search in vain.
                let caps = Caps { per_node, per_region };
                if self.room(caps) < self.n {
                    continue;
                }
                if let Ok(seats) = Seats::fill(self, caps, level) {
                    return (level, seats);
                }
            }
        }
        // Barred pairs may make the even share impossible, so allow a little more until all have a place.
        let even = self.n.div_ceil(self.order.len().max(1));
        let mut last = Vec::new();
        for per_node in even..=self.n {
            match Seats::fill(self, Caps { per_node, per_region: self.n }, Level::Doubled) {
                Ok(seats) => return (Level::Doubled, seats),
                Err(partial) => last = partial,
            }
        }
        (Level::Doubled, last)
    }
}

/// By shard: rank of its node and why, if it has one.
type Seating = Vec<Option<(usize, Why)>>;

/// Most shards per node and per region.
#[derive(Clone, Copy)]
struct Caps {
    per_node: usize,
    per_region: usize,
}

/// Who sits where so far.
struct Seats<'a> {
    board: &'a Board<'a>,
    caps: Caps,
    seats: Seating,
    on_node: Vec<usize>,
    in_region: Vec<usize>,
}

impl<'a> Seats<'a> {
    /// Seats every shard within the caps, or as many as possible (`Err`).
    fn fill(board: &'a Board<'a>, caps: Caps, level: Level) -> Result<Seating, Seating> {
        let mut this = Seats {
            board,
            caps,
            seats: vec![None; board.n],
            on_node: vec![0; board.order.len()],
            in_region: vec![0; board.regions],
        };
        this.keep_held();
        let mut complete = true;
        for turn in 0..board.n {
            let shard = (board.first + turn) % board.n;
            if this.seats[shard].is_some() {
                continue;
            }
            match this.pick(shard, level) {
                Some(seat) => this.sit(shard, seat),
                None => complete &= this.make_room(shard),
            }
        }
        if complete { Ok(this.seats) } else { Err(this.seats) }
    }

    /// Node limits lie inside region limits, so taking whoever still fits keeps the greatest possible number.
    fn keep_held(&mut self) {
        let mut held: Vec<(usize, usize)> =
            (0..self.board.n).filter_map(|shard| self.board.held[shard].map(|rank| (rank, shard))).collect();
        held.sort_unstable();
        for (rank, shard) in held {
            if self.has_room(rank) {
                self.sit(shard, (rank, Why::Held));
            }
        }
    }

    fn has_room(&self, rank: usize) -> bool {
        self.on_node[rank] < self.caps.per_node
            && self.in_region[self.board.region[rank]] < self.caps.per_region
    }

    fn sit(&mut self, shard: usize, seat: (usize, Why)) {
        self.on_node[seat.0] += 1;
        self.in_region[self.board.region[seat.0]] += 1;
        self.seats[shard] = Some(seat);
    }

    fn leave(&mut self, shard: usize) {
        if let Some((rank, _)) = self.seats[shard].take() {
            self.on_node[rank] -= 1;
            self.in_region[self.board.region[rank]] -= 1;
        }
    }

    /// At full strength the first in order; below it the least loaded region, then node, because then evenness is all
    /// the safety there is.
    fn pick(&self, shard: usize, level: Level) -> Option<(usize, Why)> {
        let mut open = (0..self.board.order.len())
            .filter(|rank| self.has_room(*rank) && self.board.may_hold(*rank, shard));
        if level == Level::Full {
            return open.next().map(|rank| (rank, Why::Drawn));
        }
        let load = |rank: &usize| (self.in_region[self.board.region[*rank]], self.on_node[*rank], *rank);
        open.min_by_key(load).map(|rank| (rank, Why::Lightest))
    }

    /// Finds the shortest chain of shards that can each take the next one's place, ending at a free place, and moves
    /// them. A step costs a held shard's move first and its own length second. (Successive shortest paths: what is
    /// kept is the most that can be kept, and each chain adds the least, so the fewest held shards move in all.)
    fn make_room(&mut self, shard: usize) -> bool {
        const MOVE: i64 = 64;
        let n = self.board.n;
        let cost = |s: usize, rank: usize| if self.board.held[s] == Some(rank) { 0 } else { MOVE };
        let steps: Vec<Vec<(usize, usize)>> = (0..n).map(|s| self.steps_of(s)).collect();
        // From `shard` to each other shard: cost so far, and by whom through which place it is driven out.
        let mut reach: Vec<Option<(i64, usize, usize)>> = vec![None; n];
        let mut best: Option<(i64, usize, usize)> = None;
        for _ in 0..=n {
            for s in 0..n {
                let Some(so_far) = (if s == shard { Some(0) } else { reach[s].map(|(cost, ..)| cost) })
                else {
                    continue;
                };
                for (rank, driven_out) in &steps[s] {
                    let paid = so_far + cost(s, *rank) + 1;
                    if *driven_out == n {
                        if best.is_none_or(|(least, ..)| paid < least) {
                            best = Some((paid, s, *rank));
                        }
                        continue;
                    }
                    let saved = self.seats[*driven_out].map_or(0, |(at, _)| cost(*driven_out, at));
                    if *driven_out != shard
                        && reach[*driven_out].is_none_or(|(least, ..)| paid - saved < least)
                    {
                        reach[*driven_out] = Some((paid - saved, s, *rank));
                    }
                }
            }
        }
        let Some((_, mut mover, mut rank)) = best else { return false };
        let mut moves = vec![(mover, rank)];
        while mover != shard && moves.len() <= n {
            let Some((_, by, through)) = reach[mover] else { return false };
            (mover, rank) = (by, through);
            moves.push((mover, rank));
        }
        self.carry_out(shard, &moves)
    }

    /// Places a shard could take, each with the shard that would have to leave, or n if none.
    fn steps_of(&self, shard: usize) -> Vec<(usize, usize)> {
        let mut steps = Vec::new();
        for rank in (0..self.board.order.len()).filter(|rank| self.board.may_hold(*rank, shard)) {
            if self.has_room(rank) {
                steps.push((rank, self.board.n));
                continue;
            }
            let node_full = self.on_node[rank] >= self.caps.per_node;
            for other in (0..self.board.n).filter(|other| *other != shard) {
                let Some((at, _)) = self.seats[other] else { continue };
                let same_region = self.board.region[at] == self.board.region[rank];
                if at == rank || (!node_full && same_region) {
                    steps.push((rank, other));
                }
            }
        }
        steps
    }

    fn carry_out(&mut self, shard: usize, moves: &[(usize, usize)]) -> bool {
        let before: Vec<_> = moves.iter().map(|(s, _)| (*s, self.seats[*s])).collect();
        moves.iter().for_each(|(s, _)| self.leave(*s));
        for (s, rank) in moves {
            let why = match self.board.held[*s] == Some(*rank) {
                true => Why::Held,
                false if *s == shard => Why::Drawn,
                false => Why::MadeRoom,
            };
            self.sit(*s, (*rank, why));
        }
        let legal = self.on_node.iter().all(|load| *load <= self.caps.per_node)
            && self.in_region.iter().all(|load| *load <= self.caps.per_region);
        debug_assert!(legal, "a shortest chain never uses a place twice");
        if !legal {
            moves.iter().for_each(|(s, _)| self.leave(*s));
            before
                .into_iter()
                .filter_map(|(s, seat)| seat.map(|seat| (s, seat)))
                .for_each(|(s, seat)| self.sit(s, seat));
        }
        legal
    }
}

/// All candidates in the order of one copyset.
fn draw_order<'a>(copyset: u64, candidates: impl Iterator<Item = &'a Candidate>) -> Vec<&'a Candidate> {
    let mut drawn: Vec<(Draw, &Candidate)> =
        candidates.map(|c| (Draw::of(copyset, c.id, c.capacity), c)).collect();
    drawn.sort_by_key(|(draw, _)| *draw);
    drawn.into_iter().map(|(_, candidate)| candidate).collect()
}

/// Binary places of a logarithm.
const PLACES: u32 = 24;

/// −log2(hash / 2^64) with 24 binary places, for a hash that is not 0, by repeated squaring: whole numbers, so that every machine agrees.
fn minus_log2(hash: u64) -> u64 {
    let zeros = hash.leading_zeros();
    let mut x = hash << zeros;
    let mut log = u64::from(63 - zeros);
    for _ in 0..PLACES {
        let square = (u128::from(x) * u128::from(x)) >> 63;
        let bit = (square >> 64) as u64;
        x = (square >> bit) as u64;
        log = log << 1 | bit;
    }
    (64 << PLACES) - log
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stripe(seed: u64) -> StripeId {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&splitmix(seed, 7).to_le_bytes());
        id[8..].copy_from_slice(&splitmix(seed, 8).to_le_bytes());
        StripeId(id)
    }
    fn node(id: u64, region: usize, capacity: u64) -> Candidate {
        Candidate { id: NodeId(splitmix(id, 3)), region: format!("p/{region}").parse().unwrap(), capacity }
    }
    /// So many nodes in each region, all alike.
    fn nodes(sizes: &[usize]) -> Vec<Candidate> {
        let places = sizes.iter().enumerate().flat_map(|(region, size)| std::iter::repeat_n(region, *size));
        places.enumerate().map(|(i, region)| node(i as u64, region, 1 << 30)).collect()
    }
    fn scheme(k: u8, m: u8, spread: u8) -> Scheme {
        Scheme::new(k, m, spread).unwrap()
    }
    fn free(_: NodeId, _: u8) -> bool {
        false
    }
    fn region_of<'a>(candidates: &'a [Candidate]) -> impl Fn(NodeId) -> Option<&'a Region> {
        |id| candidates.iter().find(|c| c.id == id).map(|c| &c.region)
    }
    fn level_found(scheme: Scheme, candidates: &[Candidate], found: &Assignment) -> Level {
        level_of(scheme, found.nodes.iter().flatten().copied(), region_of(candidates))
    }
    fn moved(a: &[Option<NodeId>], b: &[Option<NodeId>]) -> usize {
        a.iter().zip(b).filter(|(a, b)| a != b).count()
    }
    fn loads(found: &Assignment) -> Vec<usize> {
        let mut loads = BTreeMap::<NodeId, usize>::new();
        found.nodes.iter().flatten().for_each(|node| *loads.entry(*node).or_default() += 1);
        let mut loads: Vec<usize> = loads.into_values().collect();
        loads.sort_unstable_by(|a, b| b.cmp(a));
        loads
    }

    #[test]
    fn logarithms_are_right() {
        for hash in [1u64, 3, 1 << 32, 0x8000_0000_0000_0001, u64::MAX, 0x1234_5678_9abc_def1] {
            let expected = 64.0 - (hash as f64).log2();
            let got = minus_log2(hash) as f64 / (1u64 << 24) as f64;
            assert!((got - expected).abs() < 1e-6, "{hash:x}: {got} {expected}");
        }
    }

    #[test]
    fn too_few_nodes_share_evenly() {
        let scheme = scheme(4, 2, 2);
        for seed in 0..50 {
            let four = assign(stripe(seed), scheme, &nodes(&[2, 2]), &[], &free);
            assert_eq!((loads(&four), four.level), (vec![2, 2, 1, 1], Level::Doubled));
            // The lonely node of the third region takes two, so that no region holds more than two.
            let five = assign(stripe(seed), scheme, &nodes(&[2, 2, 1]), &[], &free);
            let mut regions = BTreeMap::<String, usize>::new();
            let five_nodes = nodes(&[2, 2, 1]);
            for id in five.nodes.iter().flatten() {
                *regions.entry(region_of(&five_nodes)(*id).unwrap().to_string()).or_default() += 1;
            }
            assert_eq!(regions.into_values().collect::<Vec<_>>(), [2, 2, 2]);
            let crowded = assign(stripe(seed), scheme, &nodes(&[3, 3]), &[], &free);
            assert_eq!((loads(&crowded), crowded.level), (vec![1; 6], Level::Crowded));
            let one = assign(stripe(seed), scheme, &nodes(&[1]), &[], &free);
            assert_eq!(loads(&one), [6]);
        }
        let none = assign(stripe(0), scheme, &[], &[Some(NodeId(1)); 6], &free);
        assert_eq!(none.nodes, vec![None; 6]);
    }

    #[test]
    fn a_shard_comes_home_from_a_doubled_place_as_soon_as_it_can() {
        let (scheme, all) = (scheme(4, 2, 2), nodes(&[2, 2, 2]));
        for seed in 0..50 {
            let before = assign(stripe(seed), scheme, &all[..4], &[], &free);
            let after = assign(stripe(seed), scheme, &all, &before.nodes, &free);
            assert_eq!(after.level, Level::Full);
            assert_eq!(moved(&before.nodes, &after.nodes), 2);
        }
    }

    #[test]
    fn barred_places_are_worked_around_by_moving_others() {
        let (scheme, all) = (scheme(4, 2, 2), nodes(&[2, 2, 2]));
        for seed in 0..50 {
            let before = assign(stripe(seed), scheme, &all, &[], &free);
            // Shard 0 has lost its place and may only go where shard 3 is.
            let (old, goal) = (before.nodes[0], before.nodes[3].unwrap());
            let barred = |node: NodeId, index: u8| {
                (index == 0 && node != goal) || (index == 3 && Some(node) == old && seed % 2 == 0)
            };
            let mut held = before.nodes.clone();
            held[0] = None;
            let (level, choices) = explain(stripe(seed), scheme, &all, &held, &barred);
            let after: Vec<_> = choices.iter().map(|c| c.node).collect();
            assert_eq!((level, after[0]), (Level::Full, Some(goal)));
            // Odd seeds: 3 takes 0's old place. Even ones: a third shard must help.
            assert_eq!(moved(&held, &after), if seed % 2 == 0 { 3 } else { 2 }, "{choices:?}");
            assert!(choices.iter().any(|c| c.why == Why::MadeRoom));
        }
        let nowhere = assign(stripe(1), scheme, &all, &[], &|_, index| index == 2);
        assert_eq!(nowhere.nodes[2], None);
        assert_eq!(nowhere.nodes.iter().flatten().count(), 5);
    }

    #[test]
    fn load_follows_capacity() {
        let scheme = scheme(4, 2, 2);
        let mut all = nodes(&[6, 6, 6]);
        all.iter_mut().step_by(6).for_each(|node| node.capacity *= 2);
        let mut load = BTreeMap::<NodeId, f64>::new();
        for seed in 0..6_000 {
            for id in assign(stripe(seed), scheme, &all, &[], &free).nodes.into_iter().flatten() {
                *load.entry(id).or_default() += 1.0;
            }
        }
        // Each region gets 2 of 6 shards: 12,000, in 7 parts.
        for node in &all {
            let part = load[&node.id] / (12_000.0 / 7.0) / (node.capacity >> 30) as f64;
            assert!((0.7..1.35).contains(&part), "{:?} has {part:.2} of its share", node.id);
        }
    }

    #[test]
    fn stripes_draw_from_a_bounded_number_of_node_sets() {
        let (scheme, all) = (scheme(2, 1, 1), nodes(&[4, 4, 4]));
        let set = |seed| {
            assign(stripe(seed), scheme, &all, &[], &free)
                .nodes
                .into_iter()
                .flatten()
                .collect::<BTreeSet<_>>()
        };
        let sets: BTreeSet<_> = (0..3_000).map(set).collect();
        // Twelve nodes hold four stripes of three, so there are 4 × 64 orders; of the 64 possible sets nearly all occur.
        assert!(sets.len() <= 64);
        let wide = nodes(&[20, 20, 20]);
        let set = |seed| {
            assign(stripe(seed), scheme, &wide, &[], &free)
                .nodes
                .into_iter()
                .flatten()
                .collect::<BTreeSet<_>>()
        };
        let sets: BTreeSet<_> = (0..6_000).map(set).collect();
        assert!(sets.len() as u64 <= COPYSETS * 32, "{}", sets.len());
    }

    #[test]
    fn every_node_gets_data_and_parity() {
        let (scheme, all) = (scheme(4, 2, 2), nodes(&[2, 2, 2]));
        let mut parity = BTreeMap::<NodeId, usize>::new();
        for seed in 0..600 {
            for id in &assign(stripe(seed), scheme, &all, &[], &free).nodes[4..] {
                *parity.entry(id.unwrap()).or_default() += 1;
            }
        }
        assert!(parity.len() == 6 && parity.values().all(|count| (100..300).contains(count)), "{parity:?}");
    }

    /// Whether n shards fit under the caps with nothing barred.
    fn fits(sizes: &[usize], n: usize, spread: usize) -> bool {
        sizes.iter().map(|size| (*size).min(spread)).sum::<usize>() >= n
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn hard_constraints_hold_and_the_level_is_the_strictest_possible(
            sizes in proptest::collection::vec(1usize..5, 1..5), k in 1u8..8, m in 1u8..5, spread in 1u8..5, seed: u64
        ) {
            let (scheme, all) = (scheme(k, m, spread), nodes(&sizes));
            let found = assign(stripe(seed), scheme, &all, &[], &free);
            prop_assert_eq!(&found, &assign(stripe(seed), scheme, &all, &[], &free));
            prop_assert!(found.nodes.iter().all(Option::is_some));
            prop_assert_eq!(found.level, level_found(scheme, &all, &found));
            prop_assert_eq!(found.level == Level::Full, fits(&sizes, scheme.n(), spread.into()));
            prop_assert_eq!(found.level <= Level::Crowded, all.len() >= scheme.n());
            prop_assert!(loads(&found)[0] <= scheme.n().div_ceil(all.len()));
        }

        #[test]
        fn a_lost_node_moves_its_own_shards_only_and_a_new_one_none(
            sizes in proptest::collection::vec(2usize..5, 3..5), seed: u64, gone: prop::sample::Index
        ) {
            let (scheme, all) = (scheme(4, 2, 2), nodes(&sizes));
            let before = assign(stripe(seed), scheme, &all, &[], &free);
            prop_assert_eq!(before.level, Level::Full);
            let mut more = all.clone();
            more.push(node(99, 0, 1 << 35));
            prop_assert_eq!(&assign(stripe(seed), scheme, &more, &before.nodes, &free).nodes, &before.nodes);
            let lost = more.remove(gone.index(all.len())).id;
            let after = assign(stripe(seed), scheme, &more, &before.nodes, &free);
            for (was, is) in before.nodes.iter().zip(&after.nodes) {
                prop_assert_eq!(*was == Some(lost), is != was);
            }
        }

        #[test]
        fn the_heads_of_the_regions_decide_alone(
            sizes in proptest::collection::vec(1usize..30, 1..5), k in 1u8..5, spread in 1u8..4, seed: u64,
            gone in proptest::collection::btree_set(0usize..60, 0..20), far: bool,
        ) {
            let (scheme, mut all, stripe) = (scheme(k, 2, spread), nodes(&sizes), stripe(seed));
            let before = assign(stripe, scheme, &all, &[], &free);
            let copyset = copyset_of(stripe, scheme.n(), all.len());
            let places = all.clone();
            let barred = |id: NodeId, index: u8| {
                before.nodes[usize::from(index)] != Some(id)
                    && places.iter().position(|c| c.id == id).is_some_and(|at| gone.contains(&at))
            };
            let all_of = assign(stripe, scheme, &all, &before.nodes, &barred);
            let drawn = |c: &Candidate| Draw::of(copyset, c.id, c.capacity);
            let mut heads = all.clone();
            heads.sort_by_key(drawn);
            let mut taken = BTreeMap::<Region, usize>::new();
            let any = |c: &Candidate| (0..scheme.n() as u8).all(|index| !barred(c.id, index));
            heads.retain(|c| {
                let count = taken.entry(c.region.clone()).or_default();
                *count += usize::from(any(c));
                before.nodes.contains(&Some(c.id)) || (any(c) && *count <= scheme.n())
            });
            if far {
                heads.reverse();
            }
            prop_assert_eq!(&assign_among(copyset, stripe, scheme, &heads, &before.nodes, &barred), &all_of);
            all.reverse();
            prop_assert_eq!(&assign(stripe, scheme, &all, &before.nodes, &barred), &all_of);
        }

        #[test]
        fn the_short_cut_to_a_draw_leaves_nobody_out(
            copyset: u64, a: u64, b: u64, cap_a in 0u64..4, cap_b in 0u64..4, near in 0u64..5
        ) {
            let bound = Draw::of(copyset, NodeId(a), cap_a);
            let draw = Draw::of(copyset, NodeId(b), cap_b);
            prop_assert_eq!(Draw::before(&bound, copyset, NodeId(b), cap_b), Some(draw).filter(|draw| *draw < bound));
            // Hashes near 2^64, where the bound is tight.
            let hash = u64::MAX - (b >> (12 * near));
            prop_assert!(minus_log2(hash | 1) >= (!(hash | 1)) >> (64 - PLACES));
        }

        /// Against exhaustive search on small boards: same level, and never more moves than the best.
        #[test]
        fn nothing_better_exists(
            sizes in proptest::collection::vec(1usize..3, 1..4),
            spread in 1u8..4,
            seed: u64,
            held in proptest::collection::vec(proptest::option::of(0usize..6), 4),
            bars in proptest::collection::btree_set((0usize..6, 0u8..4), 0..10),
        ) {
            let (scheme, all) = (scheme(3, 1, spread), nodes(&sizes));
            let held: Vec<_> = held.iter().map(|h| h.and_then(|h| all.get(h)).map(|c| c.id)).collect();
            let barred = |id: NodeId, index: u8| {
                all.iter().position(|c| c.id == id).is_some_and(|at| bars.contains(&(at, index)))
            };
            let found = assign(stripe(seed), scheme, &all, &held, &barred);
            let mut best: Option<(Level, usize)> = None;
            for code in 0..all.len().pow(4) {
                let nodes: Vec<_> = (0..4).map(|i| Some(all[code / all.len().pow(i) % all.len()].id)).collect();
                if (0..4).any(|i| barred(nodes[i].unwrap(), i as u8)) {
                    continue;
                }
                let this = Assignment { nodes, level: Level::Full };
                let level = level_found(scheme, &all, &this);
                let score = (level, moved(&held, &this.nodes));
                best = Some(best.map_or(score, |b| b.min(score)));
            }
            match best {
                None => prop_assert!(found.nodes.iter().any(Option::is_none)),
                Some((level, moves)) => {
                    prop_assert!(found.nodes.iter().all(Option::is_some));
                    prop_assert!((0..4).all(|i| !barred(found.nodes[i].unwrap(), i as u8)));
                    prop_assert_eq!(level_found(scheme, &all, &found), level);
                    if level < Level::Doubled {
                        prop_assert_eq!(moved(&held, &found.nodes), moves);
                    }
                }
            }
        }
    }
}
