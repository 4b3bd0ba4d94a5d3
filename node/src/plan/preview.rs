//! What a change of the topology would do: which shards would move, over which links, how full nodes would be, and how
//! safe packs would be before and after. Pure: nodes and packs in, numbers out. It looks at every pack once and holds
//! no more than the sums.

use super::Routes;
use farshore_core::catalogue::PackRecord;
use farshore_core::erasure::Scheme;
use farshore_core::id::NodeId;
use farshore_core::placement::{Assignment, Candidate, Level, assign, level_of};
use farshore_core::policy::{Policy, PolicyError, compile};
use farshore_core::reliability::{Grid, Rates, RegionModel};
use farshore_core::topology::{Change, NodeRecord, NodeState, Region};
use std::collections::{BTreeMap, BTreeSet};

/// How safe all packs are together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Strength {
    /// Packs at full strength.
    pub at_target: u64,
    /// Good shards beyond k of the weakest pack; negative if it cannot be read. Nothing if there is no pack.
    pub spare: Option<i64>,
    /// The same after the worst loss of one region.
    pub spare_after_region: Option<i64>,
}

/// The sums.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Preview {
    /// Packs looked at.
    pub packs: u64,
    /// Shards that get another home.
    pub moves: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Bytes by link between two regions. A shard goes from the node that gives it up straight to the one that takes it.
    pub links: BTreeMap<(Region, Region), u64>,
    /// Bytes of shards on each node, before and after.
    pub stored: BTreeMap<NodeId, (u64, u64)>,
    /// Shards of leaving nodes that no other node can take at the strength they have, by scheme.
    pub stuck: BTreeMap<String, u64>,
    /// As the packs are.
    pub before: Strength,
    /// As they will be.
    pub after: Strength,
}

/// The nodes once the changes are done: who is drained has gone. `added` are thought of as there and up.
pub fn nodes_after(nodes: &[NodeRecord], changes: &[Change], added: &[NodeRecord]) -> Vec<NodeRecord> {
    let state = |node: &NodeRecord| match changes.iter().find(|change| change.node() == node.id) {
        Some(Change::Drain(_) | Change::Remove(_)) => NodeState::Retired,
        Some(Change::Keep(_)) if node.state == NodeState::Draining => NodeState::Up,
        _ if node.state == NodeState::Draining => NodeState::Retired,
        _ => node.state,
    };
    let known = nodes.iter().map(|node| NodeRecord { state: state(node), ..node.clone() });
    known.chain(added.iter().cloned()).collect()
}

/// A look at all packs that is under way.
pub struct PreviewScan {
    before: BTreeMap<NodeId, NodeRecord>,
    after: BTreeMap<NodeId, NodeRecord>,
    routes: Routes,
    preview: Preview,
}

impl PreviewScan {
    /// From the nodes as they are to the nodes as they would be, where emptied regions go as `routes` say.
    pub fn begin(before: &[NodeRecord], after: &[NodeRecord], routes: Routes) -> Self {
        let by_id = |nodes: &[NodeRecord]| -> BTreeMap<NodeId, NodeRecord> {
            nodes.iter().map(|node| (node.id, node.clone())).collect()
        };
        let (before, after) = (by_id(before), by_id(after));
        let lives = after.values().filter(|node| node.state.counts() && !node.is_witness());
        let stored = lives.map(|node| (node.id, (0, 0))).collect();
        PreviewScan { before, after, routes, preview: Preview { stored, ..Preview::default() } }
    }

    /// Looks at one pack.
    pub fn feed(&mut self, pack: &PackRecord) {
        let stripe = &pack.stripe;
        let counts = |nodes: &BTreeMap<NodeId, NodeRecord>, id: NodeId| {
            nodes.get(&id).is_some_and(|node| node.state.counts())
        };
        let held: Vec<_> =
            stripe.shards.iter().map(|shard| shard.node.filter(|id| counts(&self.before, *id))).collect();
        let stays: Vec<_> = held.iter().map(|node| node.filter(|id| counts(&self.after, *id))).collect();
        let mut then = stays.clone();
        if held != stays {
            let candidates = self.candidates(&stays);
            let place = |routed: bool| {
                let strays = |node, index: u8| {
                    self.routes.leads_elsewhere(&self.after, held[usize::from(index)], node)
                };
                assign(stripe.id, stripe.scheme, &candidates, &stays, &|node, index| {
                    let keeps = stays.get(usize::from(index)).is_some_and(|holder| *holder == Some(node));
                    let takes = self.after.get(&node).is_some_and(NodeRecord::takes_shards);
                    !keeps && (!takes || (routed && strays(node, index)))
                })
            };
            let cost = |found: &Assignment| {
                let moves =
                    found.nodes.iter().zip(&stays).filter(|(to, stays)| stays.is_some() && to != stays);
                (found.level, found.nodes.iter().any(Option::is_none), moves.count())
            };
            let found = self.routes.prefer(cost, place);
            let was = level_of(stripe.scheme, held.iter().flatten().copied(), |id| {
                self.before.get(&id).map(|node| &node.region)
            });
            let worse = found.level > was && found.level > Level::Full;
            // What was missing before is not this change's doing, nor is it moved by it.
            for (index, to) in found.nodes.iter().enumerate() {
                let left = held[index].is_some() && stays[index].is_none();
                match to {
                    _ if !left && held[index].is_none() => {}
                    Some(to) if !worse => then[index] = Some(*to),
                    _ if left => {
                        // Repair makes nothing worse, so the shard stays where it is and its node cannot go.
                        then[index] = held[index];
                        *self.preview.stuck.entry(stripe.scheme.to_string()).or_default() += 1;
                    }
                    _ => {}
                }
            }
        }
        self.count(pack, &held, &then);
    }

    /// The result.
    pub fn end(self) -> Preview {
        self.preview
    }

    fn count(&mut self, pack: &PackRecord, held: &[Option<NodeId>], then: &[Option<NodeId>]) {
        let (bytes, scheme) = (pack.stripe.shard_len, pack.stripe.scheme);
        for (from, to) in held.iter().zip(then) {
            if let Some(from) = from {
                self.preview.stored.entry(*from).or_default().0 += bytes;
            }
            if let Some(to) = to {
                self.preview.stored.entry(*to).or_default().1 += bytes;
            }
            if let (Some(from), Some(to)) = (from, to)
                && from != to
            {
                self.carry(*from, *to, bytes);
            }
        }
        let preview = &mut self.preview;
        preview.packs += 1;
        preview.before.note(scheme, held, &self.before);
        // A node that cannot go is still there.
        let after: BTreeMap<NodeId, NodeRecord> = then
            .iter()
            .flatten()
            .filter_map(|id| self.after.get(id).map(|node| (*id, node.clone())))
            .collect();
        let stuck = then.iter().flatten().filter(|id| !after.get(id).is_some_and(|node| node.state.counts()));
        let stuck = stuck.filter_map(|id| self.before.get(id).map(|node| (*id, node.clone())));
        let after = after.clone().into_iter().chain(stuck).collect();
        preview.after.note(scheme, then, &after);
    }

    fn carry(&mut self, from: NodeId, to: NodeId, bytes: u64) {
        self.preview.moves += 1;
        self.preview.moved_bytes += bytes;
        let region =
            |nodes: &BTreeMap<NodeId, NodeRecord>, id| nodes.get(&id).map(|node| node.region.clone());
        let (Some(from), Some(to)) = (region(&self.before, from), region(&self.after, to)) else { return };
        if from != to {
            *self.preview.links.entry((from, to)).or_default() += bytes;
        }
    }

    /// Who takes shards then, and silent holders, who keep what they have.
    fn candidates(&self, held: &[Option<NodeId>]) -> Vec<Candidate> {
        let holders: BTreeSet<NodeId> = held.iter().flatten().copied().collect();
        let able = self.after.values().filter(|node| node.takes_shards() || holders.contains(&node.id));
        let of = |n: &NodeRecord| Candidate { id: n.id, region: n.region.clone(), capacity: n.capacity };
        able.map(of).collect()
    }
}

impl Strength {
    fn note(&mut self, scheme: Scheme, held: &[Option<NodeId>], nodes: &BTreeMap<NodeId, NodeRecord>) {
        let mut by_region = BTreeMap::<&Region, i64>::new();
        for node in held.iter().flatten().filter_map(|id| nodes.get(id)) {
            *by_region.entry(&node.region).or_default() += 1;
        }
        let spare = by_region.values().sum::<i64>() - scheme.k() as i64;
        let after = spare - by_region.values().max().copied().unwrap_or(0);
        let whole = held.iter().all(Option::is_some);
        let region = |id| nodes.get(&id).map(|node| &node.region);
        let level = level_of(scheme, held.iter().flatten().copied(), region);
        self.at_target += u64::from(whole && level == Level::Full);
        self.spare = Some(self.spare.map_or(spare, |least| least.min(spare)));
        self.spare_after_region = Some(self.spare_after_region.map_or(after, |least| least.min(after)));
    }
}

/// What becomes of a policy.
#[derive(Clone, PartialEq, Debug)]
pub struct Outlook {
    /// What must be survived.
    pub policy: Policy,
    /// What new packs are coded with now.
    pub before: Result<Coded, PolicyError>,
    /// And then.
    pub after: Result<Coded, PolicyError>,
}

/// A scheme and the chance that a stripe of it is lost within a year, if the model knows such a scheme.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Coded {
    /// k, m and spread.
    pub scheme: Scheme,
    /// Nodes fail, nothing else does.
    pub nodes_alone: Option<f64>,
    /// Whole regions do too.
    pub with_regions: Option<f64>,
}

/// What becomes of a policy under these nodes.
pub fn outlook(policy: &Policy, before: &[NodeRecord], after: &[NodeRecord]) -> Outlook {
    let coded = |nodes: &[NodeRecord]| compile(policy, nodes).map(coded);
    Outlook { policy: *policy, before: coded(before), after: coded(after) }
}

fn coded(scheme: Scheme) -> Coded {
    let loss = |rates: &Rates| {
        let model = RegionModel::new(Grid::of(scheme).ok()?, rates).ok()?;
        model.annual_loss().ok()
    };
    Coded { scheme, nodes_alone: loss(&Rates::NODES_ONLY), with_regions: loss(&Rates::NOMINAL) }
}

#[cfg(test)]
#[path = "preview_test.rs"]
mod tests;
