//! What would become of everything if some nodes were gone: which packs and snapshots could not be read, how much would
//! be spare, what repair would have to make good and whether there is room for it, and whether backups go on. Pure:
//! nodes, packs and live sets in, numbers out. It looks at every pack once, repository by repository, and holds sums, a
//! few names, and for one repository at a time a bit or less for each chunk that would be unreadable.

use super::PlanView;
use crate::catalogue::{LiveSet, Ordinals};
use farshore_core::catalogue::{PackRecord, RepoRecord, ShardRecord, SnapshotRecord};
use farshore_core::id::{NodeId, ShardHash, SnapshotId, StripeId};
use farshore_core::limits::{WHAT_IF_REPOS_MAX, WHAT_IF_SNAPSHOTS_MAX};
use farshore_core::placement::{Level, assign, candidates};
use farshore_core::policy::{Policy, compile};
use farshore_core::scatter::{floor_holds, shards_left};
use farshore_core::shard::file_len;
use farshore_core::topology::{Name, NodeRecord, NodeState};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// Packs, and their bytes before coding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Count {
    /// How many.
    pub packs: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Count {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What becomes of some packs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PackFate {
    /// All of them.
    pub all: Count,
    /// Those with fewer than k shards on nodes that answer and would be left.
    pub unreadable: Count,
    /// Of those, packs that could not be read even if every other silent node came back.
    pub gone: Count,
    /// All of them, by the shards beyond k that would be left on nodes that answer.
    pub spare: BTreeMap<i64, Count>,
}

impl PackFate {
    /// Notes one pack that has so many shards beyond k now, and would if every silent node came back.
    pub fn note(&mut self, bytes: u64, spare: i64, spare_at_last: i64) {
        self.all.add(bytes);
        self.spare.entry(spare).or_default().add(bytes);
        if spare < 0 {
            self.unreadable.add(bytes);
        }
        if spare_at_last < 0 {
            self.gone.add(bytes);
        }
    }

    /// The order of repositories: less is worse.
    fn rank(&self) -> (Reverse<u64>, Reverse<u64>, i64) {
        let least = self.spare.keys().next().copied().unwrap_or(i64::MAX);
        (Reverse(self.gone.bytes), Reverse(self.unreadable.bytes), least)
    }
}

/// What becomes of a repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RepoFate {
    /// Which one.
    pub repo: RepoRecord,
    /// Its packs.
    pub packs: PackFate,
    /// Its snapshots; neither checkpoints of runs that have not ended nor those in the trash.
    pub snapshots: SnapshotFate,
}

/// What becomes of some snapshots.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotFate {
    /// All of them.
    pub all: u64,
    /// Those that need an unreadable pack.
    pub incomplete: u64,
    /// Those that need one that is gone for good.
    pub for_good: u64,
}

/// A snapshot that would be incomplete. Ordered by age.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct LostSnapshot {
    /// Catalogue time of its commit.
    pub committed_ms: u64,
    /// Which one.
    pub id: SnapshotId,
    /// Name of its repository.
    pub repository: Name,
    /// How it was made.
    pub kind: &'static str,
    /// Even if every other silent node came back.
    pub for_good: bool,
}

/// What repair would do once the nodes are given up, beginning with what it owes already.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RebuildFate {
    /// Shards that it would make.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that would be read for them: k shards for each.
    pub moved_bytes: u64,
    /// Of the shards, those that are owed already.
    pub owed: u64,
    /// Shards that no node could take.
    pub homeless: u64,
    /// Their bytes.
    pub homeless_bytes: u64,
    /// Packs that would lie more densely than they should.
    pub crowded: u64,
    /// Bytes that nodes would get, and the room they have.
    pub nodes: BTreeMap<NodeId, (u64, u64)>,
}

/// Whether backups of a policy go on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriteFate {
    /// What must be survived.
    pub policy: Policy,
    /// Repositories that ask for it.
    pub repositories: u64,
    /// While the nodes are silent: whether at full strength, or why not at all.
    pub away: Result<bool, String>,
    /// Once they are given up.
    pub lost: Result<bool, String>,
}

/// The answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WhatIf {
    /// All packs.
    pub packs: PackFate,
    /// All snapshots.
    pub snapshots: SnapshotFate,
    /// Repositories there are.
    pub repositories: u64,
    /// The worst of them, the worst first.
    pub worst: Vec<RepoFate>,
    /// Some of the snapshots that would be incomplete: the newest, newest first.
    pub lost: Vec<LostSnapshot>,
    /// What repair would have to do.
    pub rebuild: RebuildFate,
    /// What becomes of new backups, by policy.
    pub writes: Vec<WriteFate>,
}

/// A look at everything that is under way.
pub struct WhatIfScan {
    /// As things are.
    before: BTreeMap<NodeId, NodeRecord>,
    /// What the planner of repair would see with the gone ones given up.
    after: PlanView,
    gone: BTreeSet<NodeId>,
    /// Bytes of shards recorded on each node.
    stored: BTreeMap<NodeId, u64>,
    policies: BTreeMap<Policy, u64>,
    lost: BTreeSet<LostSnapshot>,
    /// The repository that is being looked at.
    packs: PackFate,
    snapshots: SnapshotFate,
    unreadable: LiveSet,
    gone_for_good: LiveSet,
    sum: WhatIf,
}

impl WhatIfScan {
    /// Begins a look at what would be without `gone`.
    pub fn begin(nodes: &[NodeRecord], gone: &BTreeSet<NodeId>) -> Self {
        let by_id = |nodes: Vec<NodeRecord>| nodes.into_iter().map(|node| (node.id, node)).collect();
        WhatIfScan {
            before: by_id(nodes.to_vec()),
            after: PlanView { nodes: by_id(with_state(nodes, gone, NodeState::Lost)), ..PlanView::default() },
            gone: gone.clone(),
            stored: BTreeMap::new(),
            policies: BTreeMap::new(),
            lost: BTreeSet::new(),
            packs: PackFate::default(),
            snapshots: SnapshotFate::default(),
            unreadable: LiveSet::default(),
            gone_for_good: LiveSet::default(),
            sum: WhatIf::default(),
        }
    }

    /// Whether a pack could not be read: then its ordinals are wanted.
    pub fn is_unreadable(&self, pack: &PackRecord) -> bool {
        self.spare(pack, NodeState::answers) < 0
    }

    /// Looks at one pack of the repository that is being looked at.
    pub fn feed(&mut self, pack: &PackRecord, ordinals: Option<&Ordinals>) {
        let spare = self.spare(pack, NodeState::answers);
        let at_last = self.spare(pack, |state| state != NodeState::Retired);
        self.packs.note(pack.len, spare, at_last);
        if let Some(ordinals) = ordinals {
            self.unreadable.put(ordinals);
            if at_last < 0 {
                self.gone_for_good.put(ordinals);
            }
        }
        self.foresee_repair(pack);
    }

    /// Whether some pack of this repository could not be read, so that live sets are wanted.
    pub fn has_holes(&self) -> bool {
        !self.unreadable.is_empty()
    }

    /// Looks at one snapshot of the repository, after all its packs. `live` is what it needs, if that is known.
    pub fn feed_snapshot(&mut self, repository: &Name, snapshot: &SnapshotRecord, live: Option<&LiveSet>) {
        if snapshot.label.partial {
            return;
        }
        self.snapshots.all += 1;
        if !live.is_some_and(|live| live.meets(&self.unreadable)) {
            return;
        }
        let for_good = live.is_some_and(|live| live.meets(&self.gone_for_good));
        self.snapshots.incomplete += 1;
        self.snapshots.for_good += u64::from(for_good);
        self.lost.insert(LostSnapshot {
            committed_ms: snapshot.committed_ms,
            id: snapshot.id,
            repository: repository.clone(),
            kind: snapshot.kind.word(),
            for_good,
        });
        if self.lost.len() > WHAT_IF_SNAPSHOTS_MAX {
            self.lost.pop_first();
        }
    }

    /// The repository is done; the next one may follow.
    pub fn end_repo(&mut self, repo: RepoRecord) {
        *self.policies.entry(repo.policy).or_default() += 1;
        let (packs, snapshots) = (std::mem::take(&mut self.packs), std::mem::take(&mut self.snapshots));
        self.unreadable = LiveSet::default();
        self.gone_for_good = LiveSet::default();
        self.sum.add(&packs, &snapshots);
        let fate = RepoFate { repo, packs, snapshots };
        let at = self.sum.worst.partition_point(|known| known.packs.rank() <= fate.packs.rank());
        self.sum.worst.insert(at, fate);
        self.sum.worst.truncate(WHAT_IF_REPOS_MAX);
    }

    /// The answer. `free` is what the disks of nodes have left, as far as anybody knows.
    pub fn end(mut self, free: &BTreeMap<NodeId, u64>) -> WhatIf {
        for (id, (_, room)) in &mut self.sum.rebuild.nodes {
            let capacity = self.after.nodes.get(id).map_or(0, |node| node.capacity);
            let offered = capacity.saturating_sub(self.stored.get(id).copied().unwrap_or(0));
            *room = free.get(id).map_or(offered, |free| offered.min(*free));
        }
        self.sum.lost = self.lost.into_iter().rev().collect();
        let nodes: Vec<NodeRecord> = self.before.into_values().collect();
        let fate = |(policy, repositories)| write_fate(policy, repositories, &nodes, &self.gone);
        self.sum.writes = self.policies.into_iter().map(fate).collect();
        self.sum
    }

    /// Shards beyond k that would be left on nodes in such states.
    fn spare(&self, pack: &PackRecord, counts: impl Fn(NodeState) -> bool) -> i64 {
        let is_left = |id: &NodeId| {
            !self.gone.contains(id) && self.before.get(id).is_some_and(|node| counts(node.state))
        };
        let left = pack.stripe.shards.iter().filter_map(|shard| shard.node).filter(is_left).count();
        left as i64 - pack.stripe.scheme.k() as i64
    }

    /// What repair would have to make of this pack, as its planner would place it.
    fn foresee_repair(&mut self, pack: &PackRecord) {
        let stripe = &pack.stripe;
        let bytes = file_len(stripe.shard_len);
        let good = self.after.good_holders(pack);
        for (_, id) in &good {
            *self.stored.entry(*id).or_default() += bytes;
        }
        if good.len() == stripe.shards.len() || good.len() < stripe.scheme.k() {
            return;
        }
        let (level, choices) = self.after.place(pack, &good);
        let rebuild = &mut self.sum.rebuild;
        rebuild.crowded += u64::from(level > Level::Full);
        let has = |index: u8| good.iter().any(|(held, _)| *held == index);
        for choice in choices.into_iter().filter(|choice| !has(choice.index)) {
            let Some(to) = choice.node else {
                rebuild.homeless += 1;
                rebuild.homeless_bytes += bytes;
                continue;
            };
            let holder = stripe.shards.get(usize::from(choice.index)).and_then(|shard| shard.node);
            let counts = |id| self.before.get(&id).is_some_and(|node| node.state.counts());
            let was_held = holder.is_some_and(counts);
            rebuild.shards += 1;
            rebuild.bytes += bytes;
            rebuild.moved_bytes += stripe.scheme.k() as u64 * stripe.shard_len;
            rebuild.owed += u64::from(!was_held);
            rebuild.nodes.entry(to).or_default().0 += bytes;
        }
    }
}

impl WhatIf {
    fn add(&mut self, packs: &PackFate, snapshots: &SnapshotFate) {
        let sum = |to: &mut Count, more: &Count| {
            to.packs += more.packs;
            to.bytes += more.bytes;
        };
        sum(&mut self.packs.all, &packs.all);
        sum(&mut self.packs.unreadable, &packs.unreadable);
        sum(&mut self.packs.gone, &packs.gone);
        for (spare, count) in &packs.spare {
            sum(self.packs.spare.entry(*spare).or_default(), count);
        }
        self.snapshots.all += snapshots.all;
        self.snapshots.incomplete += snapshots.incomplete;
        self.snapshots.for_good += snapshots.for_good;
        self.repositories += 1;
    }
}

/// The nodes with some of them in this state.
fn with_state(nodes: &[NodeRecord], which: &BTreeSet<NodeId>, state: NodeState) -> Vec<NodeRecord> {
    let set = |node: &NodeRecord| match which.contains(&node.id) && node.state != NodeState::Retired {
        true => NodeRecord { state, ..node.clone() },
        false => node.clone(),
    };
    nodes.iter().map(set).collect()
}

fn write_fate(policy: Policy, repositories: u64, nodes: &[NodeRecord], gone: &BTreeSet<NodeId>) -> WriteFate {
    let writes = |state| try_write(&policy, &with_state(nodes, gone, state));
    WriteFate { policy, repositories, away: writes(NodeState::Down), lost: writes(NodeState::Retired) }
}

/// What a client would do with one pack: compile the policy, place the shards, look at the floor. Whether at full strength.
fn try_write(policy: &Policy, nodes: &[NodeRecord]) -> Result<bool, String> {
    let scheme = compile(policy, nodes).map_err(|why| why.to_string())?;
    // How many shards a node gets does not depend on the stripe, only which ones.
    let placed = assign(StripeId([0; 16]), scheme, &candidates(nodes), &[], &|_, _| false);
    let shards: Vec<ShardRecord> =
        placed.nodes.iter().map(|node| ShardRecord { node: *node, hash: ShardHash([0; 32]) }).collect();
    if floor_holds(&shards, scheme, policy.floor_nodes) {
        return Ok(placed.level == Level::Full);
    }
    let left = shards_left(&shards, policy.floor_nodes);
    Err(format!(
        "below the write floor: of {} shards ({scheme}) {left} would be left after the loss of {} more node(s), needed are {}",
        scheme.n(),
        policy.floor_nodes,
        scheme.k()
    ))
}

#[cfg(test)]
#[path = "what_if_test.rs"]
mod tests;
