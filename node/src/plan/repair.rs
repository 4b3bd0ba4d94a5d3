//! Stripes below full strength → rebuild tasks, most endangered first. Pure.
//!
//! Every task must make its stripe strictly better by itself (see `Standing`). So a stripe that is as good as it can be
//! gives no task, however far from its target it is, and carrying tasks out always comes to an end.

use super::{Priority, Rebuild, Routes, Task};
use farshore_core::catalogue::{Condemned, PackRecord};
use farshore_core::id::{NodeId, PackNo, ShardId};
use farshore_core::placement::{Candidate, Choice, Level, explain};
use farshore_core::topology::{NodeRecord, NodeState, Region};
use std::collections::{BTreeMap, BTreeSet};

/// What the planner looks at: some packs, and all that bears on them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlanView {
    /// Every node.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
    /// Packs that may need work.
    pub packs: Vec<PackRecord>,
    /// Those of them that the catalogue lists as under target.
    pub listed: BTreeSet<PackNo>,
    /// Copies of their shards that are still to be swept: no node is sent what it has to delete, and such a copy may be
    /// reclaimed instead.
    pub condemned: BTreeSet<Condemned>,
    /// Where regions that are emptied shall go.
    pub routes: Routes,
}

/// What should be done about the packs of a [`PlanView`].
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairPlan {
    /// Most urgent first.
    pub tasks: Vec<Task>,
    /// Packs with fewer than k good shards: nothing can be done until a holder comes back.
    pub unreadable: Vec<PackNo>,
    /// Packs that are listed as under target and are not, or the other way round: to be proposed as a recheck.
    pub recheck: Vec<PackNo>,
}

/// Plans for every pack of the view, and keeps the `limit` most urgent tasks.
pub fn plan_repair(view: &PlanView, limit: usize) -> RepairPlan {
    let mut plan = RepairPlan::default();
    let mut tasks = Vec::new();
    for pack in &view.packs {
        let at_target = pack.stripe.at_target(|id| view.region(id));
        if at_target == view.listed.contains(&pack.no) {
            plan.recheck.push(pack.no);
        }
        let good = view.good_holders(pack);
        if good.len() < pack.stripe.scheme.k() {
            plan.unreadable.push(pack.no);
        } else {
            tasks.extend(view.plan_pack(pack, good));
        }
    }
    tasks.sort_by_key(Rebuild::order);
    plan.tasks = tasks.into_iter().take(limit).map(Task::Rebuild).collect();
    plan
}

impl PlanView {
    /// Region of a node that counts.
    fn region(&self, id: NodeId) -> Option<&Region> {
        self.nodes.get(&id).filter(|node| node.state.counts()).map(|node| &node.region)
    }

    /// Shards on nodes that count, and who holds them.
    pub fn good_holders(&self, pack: &PackRecord) -> Vec<(u8, NodeId)> {
        let good = |(index, node): (u8, Option<NodeId>)| {
            Some((index, node.filter(|id| self.region(*id).is_some())?))
        };
        (0u8..).zip(pack.stripe.shards.iter().map(|shard| shard.node)).filter_map(good).collect()
    }

    /// One task for each shard whose move to its assigned node is an improvement by itself. They are alternatives as
    /// much as companions: the first to be recorded raises the generation, and the rest are planned anew.
    fn plan_pack(&self, pack: &PackRecord, good: Vec<(u8, NodeId)>) -> Vec<Rebuild> {
        let stripe = &pack.stripe;
        let held = held_of(pack, &good);
        let wanted = self.place(pack, &good).1.into_iter().map(|choice| (choice.index, choice.node));
        let changed = wanted.filter(|(index, to)| held[usize::from(*index)] != *to);
        let changed = changed.filter_map(|(index, to)| Some((index, to?))).collect::<Vec<_>>();
        let now = Standing::of(self, &held, stripe.scheme.spread());
        let improves = |index: u8, to: NodeId| {
            let mut then = held.clone();
            then[usize::from(index)] = Some(to);
            !self.is_barred(pack, &held, to, index) && Standing::of(self, &then, stripe.scheme.spread()) < now
        };
        let regions = good.iter().filter_map(|(_, node)| self.region(*node));
        let priority = Priority::of(stripe.scheme.k(), regions);
        let task = |index, to, reclaims| Rebuild {
            pack: pack.no,
            generation: stripe.generation,
            index,
            from_holders: good.clone(),
            to,
            stripe: stripe.id,
            bytes: stripe.shard_len,
            reclaims,
            priority,
        };
        let mut tasks: Vec<_> =
            self.reclaimable(pack, &held).into_iter().map(|(index, to)| task(index, to, true)).collect();
        for (index, own) in &changed {
            // Two moves may be good together and bad alone, such as two shards that change regions; then one that takes
            // the other's place is good alone.
            let others = changed.iter().map(|(_, to)| *to);
            let Some(to) = [*own].into_iter().chain(others).find(|to| improves(*index, *to)) else {
                continue;
            };
            tasks.push(task(*index, to, false));
        }
        tasks
    }

    /// Condemned copies that would make the stripe better if they counted again: of a node that was given up and came back,
    /// while its shards are still doubled up elsewhere. A copy whose shard nobody holds was found bad.
    fn reclaimable(&self, pack: &PackRecord, held: &[Option<NodeId>]) -> Vec<(u8, NodeId)> {
        let (stripe, spread) = (&pack.stripe, pack.stripe.scheme.spread());
        let now = Standing::of(self, held, spread);
        let better = |copy: &&Condemned| {
            let mut then = held.to_vec();
            let Some(Some(place)) = then.get_mut(usize::from(copy.shard.index)) else { return false };
            *place = copy.node;
            let takes = self.nodes.get(&copy.node).is_some_and(NodeRecord::takes_shards);
            takes && Standing::of(self, &then, spread) < now
        };
        let of_stripe = self.condemned.iter().filter(|copy| copy.shard.stripe == stripe.id);
        of_stripe.filter(better).map(|copy| (copy.shard.index, copy.node)).collect()
    }

    /// Where every shard of a pack should be, and why: what its good holders have stays if it may.
    pub fn place(&self, pack: &PackRecord, good: &[(u8, NodeId)]) -> (Level, Vec<Choice>) {
        let held = held_of(pack, good);
        let candidates = self.candidates(good);
        let place = |routed: bool| {
            let strays =
                |node, index: u8| self.routes.leads_elsewhere(&self.nodes, held[usize::from(index)], node);
            let barred =
                |node, index| self.is_barred(pack, &held, node, index) || (routed && strays(node, index));
            explain(pack.stripe.id, pack.stripe.scheme, &candidates, &held, &barred)
        };
        let stays = |id: NodeId| candidates.iter().any(|candidate| candidate.id == id);
        let cost = |(level, choices): &(Level, Vec<Choice>)| {
            let moves = choices.iter().zip(&held).filter(|(choice, held)| choice.node != **held);
            let moves = moves.filter(|(_, held)| held.is_some_and(stays)).count();
            (*level, choices.iter().any(|choice| choice.node.is_none()), moves)
        };
        self.routes.prefer(cost, place)
    }

    fn is_barred(&self, pack: &PackRecord, held: &[Option<NodeId>], node: NodeId, index: u8) -> bool {
        let stays = held.get(usize::from(index)).is_some_and(|holder| *holder == Some(node));
        let takes = self.nodes.get(&node).is_some_and(NodeRecord::takes_shards);
        let shard = ShardId { stripe: pack.stripe.id, index };
        !stays && (!takes || self.condemned.contains(&Condemned { node, shard }))
    }

    /// Nodes that take shards, and silent holders, who keep what they have. A draining holder keeps nothing.
    fn candidates(&self, good: &[(u8, NodeId)]) -> Vec<Candidate> {
        let holders = good.iter().map(|(_, node)| *node).collect::<BTreeSet<_>>();
        let keeps = |node: &&NodeRecord| {
            node.takes_shards() || (holders.contains(&node.id) && node.state != NodeState::Draining)
        };
        let candidate = |node: &NodeRecord| Candidate {
            id: node.id,
            region: node.region.clone(),
            capacity: node.capacity,
        };
        self.nodes.values().filter(keeps).map(candidate).collect()
    }
}

fn held_of(pack: &PackRecord, good: &[(u8, NodeId)]) -> Vec<Option<NodeId>> {
    let mut held = vec![None; pack.stripe.shards.len()];
    for (index, node) in good {
        held[usize::from(*index)] = Some(*node);
    }
    held
}

/// How far a stripe is from its target; compared field by field, less is better. The order of the fields is the order
/// of the levels in `farshore_core::placement`.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Standing {
    /// Shards that nobody holds.
    missing: usize,
    /// Sum of squares of shards per node: least when no node is doubled up, and when doubling is even.
    on_nodes: usize,
    /// Sum of squares of shards above the spread limit, by region.
    crowded: usize,
    /// Shards on nodes that are being emptied.
    draining: usize,
}

impl Standing {
    fn of(view: &PlanView, held: &[Option<NodeId>], spread: u8) -> Self {
        let mut by_node = BTreeMap::<NodeId, usize>::new();
        let mut by_region = BTreeMap::<&Region, usize>::new();
        let mut draining = 0;
        for node in held.iter().flatten().filter_map(|id| view.nodes.get(id)) {
            *by_node.entry(node.id).or_default() += 1;
            *by_region.entry(&node.region).or_default() += 1;
            draining += usize::from(node.state == NodeState::Draining);
        }
        let above = by_region.values().map(|held| held.saturating_sub(spread.into()));
        Standing {
            missing: held.iter().filter(|node| node.is_none()).count(),
            on_nodes: by_node.values().map(|held| held * held).sum::<usize>(),
            crowded: above.map(|above| above * above).sum(),
            draining,
        }
    }
}
