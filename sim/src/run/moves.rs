//! What planners have moved, as the catalogue shows it from one look to the next: which shards went where and why, which
//! regions were emptied, which policies changed. It is counted, so that a planner that has nothing to do in a batch is
//! noticed; and a move that leaves a stripe weaker than it was is a violation.

use super::{Newest, Run};
use crate::cluster::Violation;
use crate::coverage::Tallies;
use farshore_core::catalogue::{Migration, PackRecord, StripeRecord, Subject};
use farshore_core::id::{NodeId, PackNo, RepoId};
use farshore_core::policy::Policy;
use farshore_core::topology::{NodeRecord, NodeState, Region};
use farshore_node::catalogue::{CatalogueError, View};
use std::collections::{BTreeMap, BTreeSet};

/// What the last look has shown.
#[derive(Default)]
pub(crate) struct Moves {
    stripes: BTreeMap<PackNo, StripeRecord>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    migrations: BTreeMap<Region, Migration>,
    /// When nodes were last seen given up, microseconds.
    lost_us: BTreeMap<NodeId, u64>,
    policies: BTreeMap<RepoId, Policy>,
    /// When policies were seen to change, microseconds.
    changed_us: Vec<u64>,
    /// Stripes read again, by record.
    read: BTreeMap<u64, u64>,
    /// Nodes that were called liars.
    named: BTreeSet<NodeId>,
    /// When a cold migration was last seen under way, microseconds.
    pub(super) frozen_us: Option<u64>,
}

/// A rebuild takes no longer than this.
const UNDER_WAY_US: u64 = 60_000_000;

/// A stripe's regions, as far as its nodes count.
fn at_target(stripe: &StripeRecord, nodes: &BTreeMap<NodeId, NodeRecord>) -> bool {
    stripe.at_target(|id| nodes.get(&id).filter(|node| node.state.counts()).map(|node| &node.region))
}

impl Moves {
    /// Compares the newest catalogue with the one before. Whether a cold migration is under way.
    pub(super) fn note(
        &mut self,
        view: &View,
        packs: &[PackRecord],
        now_us: u64,
        counts: &mut BTreeMap<String, u64>,
    ) -> Result<bool, Violation> {
        let failed = |error: CatalogueError| format!("agree: {error}");
        let nodes: BTreeMap<_, _> =
            view.nodes().map_err(failed)?.into_iter().map(|node| (node.id, node)).collect();
        let migrations = view.migrations().map_err(failed)?;
        let lost = nodes.values().filter(|node| node.state == NodeState::Lost);
        self.lost_us.extend(lost.map(|node| (node.id, now_us)));
        for pack in packs {
            if let Some(before) =
                self.stripes.get(&pack.no).filter(|b| b.generation != pack.stripe.generation)
            {
                self.moved(before, pack, &nodes, now_us, counts)?;
            }
        }
        self.stripes = packs.iter().map(|pack| (pack.no, pack.stripe.clone())).collect();
        self.nodes = nodes;
        let frozen = migrations.iter().any(|migration| migration.cold);
        if frozen {
            self.frozen_us = Some(now_us);
        }
        self.regions(migrations, counts);
        self.records(view, now_us, counts).map_err(failed)?;
        Ok(frozen)
    }

    /// How often policies have changed since a call began.
    pub(super) fn policies_changed_since(&self, since_us: u64) -> usize {
        self.changed_us.iter().filter(|at| **at >= since_us).count()
    }

    fn moved(
        &self,
        before: &StripeRecord,
        pack: &PackRecord,
        nodes: &BTreeMap<NodeId, NodeRecord>,
        now_us: u64,
        counts: &mut BTreeMap<String, u64>,
    ) -> Result<(), Violation> {
        // What was under way when a node that had been given up came back is finished all the same.
        let back = |id: NodeId| self.lost_us.get(&id).is_some_and(|lost| lost + UNDER_WAY_US > now_us);
        let strong = at_target(before, &self.nodes)
            && at_target(before, nodes)
            && !before.shards.iter().filter_map(|shard| shard.node).any(back);
        // One change is one move; among several a shard may have been found bad and made good elsewhere.
        let single = pack.stripe.generation == before.generation + 1;
        for (was, is) in before.shards.iter().zip(&pack.stripe.shards) {
            let (Some(from), Some(to)) = (was.node, is.node) else {
                if was.node.is_none() && is.node.is_some() {
                    Tallies::add(counts, "shards made good");
                }
                continue;
            };
            if from == to {
                continue;
            }
            if strong && single && !at_target(&pack.stripe, nodes) {
                return Err(format!(
                    "spread: pack {} was at full strength, and is not since a shard moved from {from} to {to}",
                    pack.id
                ));
            }
            let (Some(giver), Some(taker)) = (nodes.get(&from), nodes.get(&to)) else { continue };
            let route = self.migrations.get(&giver.region).map(|migration| &migration.to);
            let why = match giver.state {
                NodeState::Draining | NodeState::Retired if route == Some(&taker.region) => "shards migrated",
                NodeState::Draining | NodeState::Retired => "shards drained",
                NodeState::Up if strong && single && giver.region == taker.region => "shards levelled",
                _ => "shards moved",
            };
            Tallies::add(counts, why);
        }
        Ok(())
    }

    fn regions(&mut self, migrations: Vec<Migration>, counts: &mut BTreeMap<String, u64>) {
        let now: BTreeMap<_, _> = migrations.into_iter().map(|m| (m.from.clone(), m)).collect();
        for before in self.migrations.values().filter(|before| !now.contains_key(&before.from)) {
            let gone = |id: &NodeId| self.nodes.get(id).is_none_or(|node| node.state == NodeState::Retired);
            let ended = before.nodes.iter().all(gone);
            Tallies::add(counts, if ended { "migrations ended" } else { "migrations cancelled" });
        }
        for migration in now.values().filter(|m| !self.migrations.contains_key(&m.from)) {
            Tallies::add(counts, if migration.cold { "cold migrations begun" } else { "migrations begun" });
        }
        self.migrations = now;
    }

    fn records(
        &mut self,
        view: &View,
        now_us: u64,
        counts: &mut BTreeMap<String, u64>,
    ) -> Result<(), CatalogueError> {
        for (number, row) in view.verifications()? {
            let before = self.read.insert(number, row.stripes).unwrap_or(0);
            let what = match row.subject {
                Subject::Node(_) => "stripes read again",
                Subject::Repository(_) => "stripes coded anew",
            };
            for _ in before..row.stripes {
                Tallies::add(counts, what);
            }
        }
        for repo in view.repos(None, farshore_core::limits::PAGE_ROWS_MAX)?.rows {
            if self.policies.insert(repo.id, repo.policy).is_some_and(|before| before != repo.policy) {
                Tallies::add(counts, "policies changed");
                self.changed_us.push(now_us);
            }
        }
        Ok(())
    }
}

impl Run<'_> {
    /// Whoever is called a liar has lied.
    pub(super) fn judge_liars(&mut self) -> Result<(), Violation> {
        for at in 0..self.cluster.machines.len() {
            let Some(node) = self.cluster.node(at) else { continue };
            for liar in node.shared().repairs.get().liars {
                if !self.cluster.relays.has_lied(liar) {
                    return Err(format!("verified: {liar} is called a liar and has not lied"));
                }
                if self.moves.named.insert(liar) {
                    Tallies::add(&mut self.tallies.upkeep, "liars named");
                }
            }
        }
        Ok(())
    }

    /// Whether what a client was told can be: that nothing is written while a region moves.
    pub(super) fn may_be_frozen(&self, since_us: u64) -> bool {
        /// What replicas show may be behind what a leader says.
        const BEHIND_US: u64 = 10_000_000;
        self.operators.has_asked_cold()
            || self.moves.frozen_us.is_some_and(|last| last + BEHIND_US >= since_us)
    }

    /// What the catalogue shows planners to be at.
    pub(super) fn planners_do(&self, doing: &mut BTreeSet<&'static str>) {
        for at in 0..self.cluster.machines.len() {
            let Some(node) = self.cluster.node(at) else { continue };
            let repairs = node.shared().repairs.get();
            // What only levels comes behind everything else.
            if repairs.urgent.iter().any(|task| task.running && task.priority.spare == i16::MAX) {
                doing.insert("rebalance");
            }
        }
        let Some(Newest { view, .. }) = &self.newest else { return };
        if view.migrations().is_ok_and(|rows| !rows.is_empty()) {
            doing.insert("migrate");
        }
        let recodes = |subject: &Subject| matches!(subject, Subject::Repository(_));
        if view.moved_subjects().is_ok_and(|subjects| subjects.iter().any(recodes)) {
            doing.insert("recode");
        }
    }
}
