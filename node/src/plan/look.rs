//! What the repair planner looks at, read from the catalogue page by page: packs listed as under target, and packs of
//! nodes that were lost or are being emptied. The only part of planning that reads anything.

use super::Routes;
use super::repair::PlanView;
use crate::catalogue::{CatalogueError, View};
use farshore_core::catalogue::{Condemned, PackRecord};
use farshore_core::id::{NodeId, PackNo};
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::BTreeSet;

/// One round over all packs that may need repair. It holds no more than its place.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RepairScan {
    stage: Stage,
    from: PackNo,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Packs listed as under target...
    #[default]
    Listed,
    /// ...then the packs of one leaving node after the other...
    HeldBy(NodeId),
    /// ...and the round is over.
    Over,
}

impl RepairScan {
    /// Begins a round.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next packs, at most `limit` of them, maybe none; `None` once the round is over. The view may be another each
    /// time: a pack that changes meanwhile is met again in the next round.
    pub fn step(&mut self, view: &View, limit: usize) -> Result<Option<PlanView>, CatalogueError> {
        let nodes = view.nodes()?;
        let (found, next) = match self.stage {
            Stage::Over => return Ok(None),
            Stage::Listed => {
                let page = view.under_target(self.from, limit)?;
                (page.rows, page.next)
            }
            Stage::HeldBy(node) => {
                let page = view.packs_held_by(node, self.from, limit)?;
                (page.rows.into_iter().map(|(no, _)| no).collect(), page.next)
            }
        };
        let (packs, listed) = self.read_packs(view, &nodes, found)?;
        match next {
            Some(next) => self.from = next,
            None => self.next_stage(&nodes),
        }
        let condemned = condemned_of(view, &nodes, &packs)?;
        let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
        let routes = Routes::of(&view.migrations()?);
        Ok(Some(PlanView { nodes, packs, listed, condemned, routes }))
    }

    fn read_packs(
        &self,
        view: &View,
        nodes: &[NodeRecord],
        found: Vec<PackNo>,
    ) -> Result<(Vec<PackRecord>, BTreeSet<PackNo>), CatalogueError> {
        let (mut packs, mut listed) = (Vec::new(), BTreeSet::new());
        for no in found {
            let is_listed = view.is_under_target(no)?;
            let Some(pack) = view.pack(no)? else { continue };
            if self.was_met(nodes, &pack, is_listed) {
                continue;
            }
            if is_listed {
                listed.insert(no);
            }
            packs.push(pack);
        }
        Ok((packs, listed))
    }

    /// Whether an earlier stage of this round came by this pack.
    fn was_met(&self, nodes: &[NodeRecord], pack: &PackRecord, is_listed: bool) -> bool {
        let Stage::HeldBy(now) = self.stage else { return false };
        let earlier = |id: &NodeId| *id < now && nodes.iter().any(|node| node.id == *id && leaves(node));
        is_listed || pack.stripe.shards.iter().filter_map(|shard| shard.node).any(|id| earlier(&id))
    }

    fn next_stage(&mut self, nodes: &[NodeRecord]) {
        let now = self.stage;
        let ahead = |node: &&NodeRecord| match now {
            Stage::Listed => true,
            Stage::HeldBy(id) => node.id > id,
            Stage::Over => false,
        };
        // The view has its nodes by id.
        let next = nodes.iter().filter(ahead).find(|node| leaves(node));
        self.stage = next.map_or(Stage::Over, |node| Stage::HeldBy(node.id));
        self.from = PackNo(0);
    }
}

/// Its shards need another home although their stripes were never rewritten.
fn leaves(node: &NodeRecord) -> bool {
    !node.state.counts() || node.state == NodeState::Draining
}

/// Some packs that a node holds, from number `from` on, as the planner sees them; and where to go on.
pub fn packs_of(
    view: &View,
    node: NodeId,
    from: PackNo,
    limit: usize,
) -> Result<(PlanView, Option<PackNo>), CatalogueError> {
    let (nodes, page) = (view.nodes()?, view.packs_held_by(node, from, limit)?);
    let (mut packs, mut listed) = (Vec::new(), BTreeSet::new());
    for (no, _) in page.rows {
        if view.is_under_target(no)? {
            listed.insert(no);
        }
        packs.extend(view.pack(no)?);
    }
    let condemned = condemned_of(view, &nodes, &packs)?;
    let routes = Routes::of(&view.migrations()?);
    let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
    Ok((PlanView { nodes, packs, listed, condemned, routes }, page.next))
}

/// One pack as the planner sees it, with every copy of its shards that is still to be swept, whoever holds it.
pub fn look_at(view: &View, pack: PackRecord) -> Result<PlanView, CatalogueError> {
    let nodes = view.nodes()?;
    let mut condemned = BTreeSet::new();
    for node in nodes.iter().filter(|node| node.state != NodeState::Retired) {
        condemned.extend(view.condemned_of_stripe(node.id, pack.stripe.id)?);
    }
    let listed = view.is_under_target(pack.no)?.then_some(pack.no).into_iter().collect();
    let nodes = nodes.into_iter().map(|node| (node.id, node)).collect();
    let routes = Routes::of(&view.migrations()?);
    Ok(PlanView { nodes, packs: vec![pack], listed, condemned, routes })
}

/// Copies of these packs' shards that are still to be swept from nodes that take shards.
pub fn condemned_of(
    view: &View,
    nodes: &[NodeRecord],
    packs: &[PackRecord],
) -> Result<BTreeSet<Condemned>, CatalogueError> {
    let mut condemned = BTreeSet::new();
    if view.counts().condemned == 0 {
        return Ok(condemned);
    }
    for node in nodes.iter().filter(|node| node.takes_shards()) {
        for pack in packs {
            condemned.extend(view.condemned_of_stripe(node.id, pack.stripe.id)?);
        }
    }
    Ok(condemned)
}
