//! Why things are as they are: one stripe with the fate of each shard and what repair would do, and one node with what hangs
//! on it. Pure, and made with the planner itself, so that it never says anything else than what will be done.

use super::what_if::Count;
use super::{PlanView, Priority, Rebuild, Task, plan_repair};
use farshore_core::catalogue::{PackRecord, ShardRecord};
use farshore_core::id::{NodeId, ShardId};
use farshore_core::limits::STRIPE_SHARDS_MAX;
use farshore_core::placement::{Choice, Level, level_of};
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::BTreeMap;

/// What is known of one shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ShardState {
    /// Recorded on a node that answers.
    Good,
    /// Recorded on a silent node that is expected back.
    Silent,
    /// Recorded on a node that is given up; it counts again if that node comes back.
    Lost,
    /// Nobody has it, but for a copy that was found damaged and waits to be deleted.
    Bad,
    /// Nobody has it.
    Missing,
}

impl ShardState {
    /// Lower-case word used on the wire and in JSON.
    pub fn word(self) -> &'static str {
        match self {
            ShardState::Good => "good",
            ShardState::Silent => "silent",
            ShardState::Lost => "lost",
            ShardState::Bad => "bad",
            ShardState::Missing => "missing",
        }
    }
}

/// One shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShardStory {
    /// What is known of it.
    pub state: ShardState,
    /// Who holds it by the catalogue; of a bad one, whose copy it was.
    pub holder: Option<NodeId>,
    /// Where placement would have it now.
    pub choice: Choice,
}

/// One stripe.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StripeStory {
    /// All shards held and well spread, those of silent nodes included.
    pub at_target: bool,
    /// Shards on nodes that answer, beyond k, now and after the worst loss of one region.
    pub priority: Priority,
    /// How its shards lie.
    pub level: Level,
    /// How they can lie at best on the nodes that there are.
    pub wanted: Level,
    /// By index.
    pub shards: Vec<ShardStory>,
    /// What the planner would do: alternatives as much as companions.
    pub tasks: Vec<Rebuild>,
}

/// Tells the story of the first pack of a view.
pub fn explain_stripe(view: &PlanView) -> Option<StripeStory> {
    let pack = view.packs.first()?;
    let stripe = &pack.stripe;
    let region = |id: NodeId| view.nodes.get(&id).map(|node| &node.region);
    let counting = |id: NodeId| view.nodes.get(&id).filter(|node| node.state.counts()).map(|n| &n.region);
    let good = view.good_holders(pack);
    let (wanted, choices) = view.place(pack, &good);
    let shards = stripe.shards.iter().zip(choices).map(|(shard, choice)| story(view, pack, shard, choice));
    let plan = plan_repair(&PlanView { packs: vec![pack.clone()], ..view.clone() }, STRIPE_SHARDS_MAX);
    Some(StripeStory {
        at_target: stripe.at_target(counting),
        priority: Priority::of(stripe.scheme.k(), answering(view, pack).filter_map(region)),
        level: level_of(stripe.scheme, good.iter().map(|(_, node)| *node), region),
        wanted,
        shards: shards.collect(),
        tasks: plan.tasks.into_iter().map(|Task::Rebuild(task)| task).collect(),
    })
}

fn story(view: &PlanView, pack: &PackRecord, shard: &ShardRecord, choice: Choice) -> ShardStory {
    let id = ShardId { stripe: pack.stripe.id, index: choice.index };
    let node = shard.node.and_then(|node| view.nodes.get(&node));
    let state = match node.map(|node| node.state) {
        Some(NodeState::Up | NodeState::Suspect | NodeState::Draining) => ShardState::Good,
        Some(NodeState::Down) => ShardState::Silent,
        Some(NodeState::Lost | NodeState::Retired) => ShardState::Lost,
        None => match view.condemned.iter().find(|copy| copy.shard == id) {
            Some(copy) => return ShardStory { state: ShardState::Bad, holder: Some(copy.node), choice },
            None => ShardState::Missing,
        },
    };
    ShardStory { state, holder: shard.node, choice }
}

fn answering<'a>(view: &'a PlanView, pack: &'a PackRecord) -> impl Iterator<Item = NodeId> + 'a {
    let answers = |id: &NodeId| view.nodes.get(id).is_some_and(|node| node.state.answers());
    pack.stripe.shards.iter().filter_map(|shard| shard.node).filter(answers)
}

/// Shards and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shards {
    /// How many.
    pub count: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Shards {
    fn add(&mut self, count: u64, bytes: u64) {
        self.count += count;
        self.bytes += count * bytes;
    }
}

/// What hangs on one node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeStory {
    /// Shards that the catalogue records there.
    pub held: Shards,
    /// Packs that it has a shard of, by the shards beyond k on nodes that answer.
    pub spare: BTreeMap<i64, Count>,
    /// Of its shards, what repair would make elsewhere now.
    pub now: Shards,
    /// And what it would if the node were lost.
    pub if_lost: Shards,
}

/// A look at all packs of one node that is under way.
pub struct NodeScan {
    node: NodeId,
    story: NodeStory,
}

impl NodeScan {
    /// Begins a look.
    pub fn begin(node: NodeId) -> Self {
        NodeScan { node, story: NodeStory::default() }
    }

    /// Looks at packs that it has a shard of.
    pub fn feed(&mut self, view: &PlanView) {
        for pack in &view.packs {
            let here = pack.stripe.shards.iter().filter(|shard| shard.node == Some(self.node)).count();
            self.story.held.add(here as u64, pack.stripe.shard_len);
            let spare = answering(view, pack).count() as i64 - pack.stripe.scheme.k() as i64;
            let count = self.story.spare.entry(spare).or_default();
            (count.packs, count.bytes) = (count.packs + 1, count.bytes + pack.len);
        }
        self.planned(view, |story| &mut story.now);
        let lost = |node: &NodeRecord| match node.id == self.node && node.state != NodeState::Retired {
            true => NodeRecord { state: NodeState::Lost, ..node.clone() },
            false => node.clone(),
        };
        let nodes = view.nodes.iter().map(|(id, node)| (*id, lost(node))).collect();
        self.planned(&PlanView { nodes, ..view.clone() }, |story| &mut story.if_lost);
    }

    /// The result.
    pub fn end(self) -> NodeStory {
        self.story
    }

    /// Adds up which of the node's shards the planner would make elsewhere.
    fn planned(&mut self, view: &PlanView, into: impl Fn(&mut NodeStory) -> &mut Shards) {
        let packs: BTreeMap<_, _> = view.packs.iter().map(|pack| (pack.no, pack)).collect();
        for Task::Rebuild(task) in plan_repair(view, usize::MAX).tasks {
            let shard = packs.get(&task.pack).and_then(|p| p.stripe.shards.get(usize::from(task.index)));
            if shard.is_some_and(|shard| shard.node == Some(self.node)) {
                into(&mut self.story).add(1, task.bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::{Condemned, PackKind, StripeRecord};
    use farshore_core::erasure::Scheme;
    use farshore_core::id::{Ordinal, PackId, PackNo, RepoId, ShardHash, StripeId};
    use farshore_core::placement::Why;

    /// Two nodes in each of three regions, and a pack with a shard on each.
    fn view(states: [NodeState; 6], holders: [Option<u64>; 6]) -> PlanView {
        let node = |(id, state): (u64, NodeState)| NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: format!("p/r{}", id % 3).parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1 << 40,
            state,
        };
        let shard = |id: Option<u64>| ShardRecord { node: id.map(NodeId), hash: ShardHash([1; 32]) };
        let stripe = StripeRecord {
            id: StripeId([9; 16]),
            scheme: Scheme::new(4, 2, 2).unwrap(),
            shard_len: 1_000,
            generation: 3,
            shards: holders.map(shard).to_vec(),
        };
        let pack = PackRecord {
            no: PackNo(1),
            id: PackId([1; 32]),
            repo: RepoId([1; 16]),
            kind: PackKind::Data,
            len: 4_000,
            chunks: 1,
            first_ordinal: Ordinal(0),
            stripe,
        };
        let nodes = (1..).zip(states).map(|n| (NodeId(n.0), node(n))).collect();
        PlanView { nodes, packs: vec![pack], ..PlanView::default() }
    }

    const UP: [NodeState; 6] = [NodeState::Up; 6];
    const ALL: [Option<u64>; 6] = [Some(1), Some(2), Some(3), Some(4), Some(5), Some(6)];

    fn states(story: &StripeStory) -> Vec<&'static str> {
        story.shards.iter().map(|shard| shard.state.word()).collect()
    }

    #[test]
    fn a_whole_stripe_needs_nothing() {
        let story = explain_stripe(&view(UP, ALL)).unwrap();
        assert_eq!(states(&story), ["good"; 6]);
        assert!(story.at_target && story.tasks.is_empty());
        assert_eq!((story.priority.spare, story.priority.spare_after_region), (2, 0));
        assert!(story.shards.iter().all(|shard| shard.choice.why == Why::Held));
    }

    #[test]
    fn each_shard_says_what_became_of_it() {
        let mut nodes = UP;
        (nodes[0], nodes[1]) = (NodeState::Down, NodeState::Lost);
        let mut seen = view(nodes, [Some(1), Some(2), None, None, Some(5), Some(6)]);
        let shard = ShardId { stripe: StripeId([9; 16]), index: 2 };
        seen.condemned.insert(Condemned { node: NodeId(3), shard });
        let story = explain_stripe(&seen).unwrap();
        assert_eq!(states(&story), ["silent", "lost", "bad", "missing", "good", "good"]);
        assert_eq!(story.shards[2].holder, Some(NodeId(3)), "whose copy is bad");
        assert_eq!(story.priority.spare, -2);
        assert!(!story.at_target && story.tasks.is_empty(), "nothing to make it of");
    }

    #[test]
    fn what_it_says_will_be_done_is_what_the_planner_does() {
        let mut nodes = UP;
        nodes[1] = NodeState::Lost;
        let seen = view(nodes, ALL);
        let story = explain_stripe(&seen).unwrap();
        let plan = plan_repair(&seen, 10);
        assert!(!story.tasks.is_empty());
        assert_eq!(plan.tasks, story.tasks.into_iter().map(Task::Rebuild).collect::<Vec<_>>());
    }

    #[test]
    fn a_node_is_waited_for_before_its_shards_are_made_anew() {
        let story = |state| {
            let mut nodes = UP;
            nodes[0] = state;
            let mut scan = NodeScan::begin(NodeId(1));
            scan.feed(&view(nodes, ALL));
            scan.end()
        };
        let one = Shards { count: 1, bytes: 1_000 };
        for (state, now, spare) in [(NodeState::Up, 0, 2), (NodeState::Down, 0, 1), (NodeState::Lost, 1, 1)] {
            let story = story(state);
            assert_eq!((story.held, story.now.count, story.if_lost), (one, now, one), "{state:?}");
            assert_eq!(story.spare.keys().copied().collect::<Vec<_>>(), [spare], "{state:?}");
        }
    }
}
