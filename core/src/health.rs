//! A short memory of which nodes failed and how fast the others were, shared by everything that talks to shards in one
//! process: a dead node costs one timeout, not one per pack, and a slow one no more than a wait. It only advises; a shunned
//! node is still asked when nothing better is left.

use crate::id::NodeId;
use crate::limits::{
    HEDGE_BYTES_PER_MS, HEDGE_BYTES_PER_MS_FIRST, HEDGE_MS, NODE_SHUN_DOUBLINGS, NODE_SHUN_MS, NODE_SLOW_MS,
    NODE_SLOW_TOLD_MS, PACE_BYTES_MIN, PACES_KEPT,
};
use crate::peer::ShardError;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Which nodes failed a moment ago, and what reads took.
#[derive(Default)]
pub struct NodeHealth {
    nodes: Mutex<BTreeMap<NodeId, Shunned>>,
    /// Bytes a millisecond of the last reads, from whichever nodes: our own line is common to all.
    paces: Mutex<VecDeque<u64>>,
}

/// What speaks against reading from a node: the more, the later it is asked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Doubt {
    /// Nothing.
    None,
    /// It takes long.
    Slow,
    /// It did not answer.
    Unreachable,
}

#[derive(Clone, Copy, Default)]
struct Shunned {
    unreachable_until: Option<Instant>,
    /// How often in a row it was asked again and had not come back.
    relapses: u32,
    full_until: Option<Instant>,
    slow_until: Option<Instant>,
    /// The cluster says so, and not only one wait.
    told_slow_until: Option<Instant>,
}

impl NodeHealth {
    /// Everybody is well.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a failed call, if it says something about the node and not only about one shard.
    pub fn note(&self, node: NodeId, error: &ShardError) {
        let until = |times| Some(Instant::now() + Duration::from_millis(NODE_SHUN_MS * times));
        match error {
            ShardError::Unreachable(..) => {
                let mut nodes = self.nodes();
                let node = nodes.entry(node).or_default();
                // Calls that were under way together fail together: that is one failure.
                if over(node.unreachable_until) {
                    node.relapses += u32::from(node.unreachable_until.is_some());
                    node.unreachable_until = until(1 << node.relapses.min(NODE_SHUN_DOUBLINGS));
                }
            }
            ShardError::Full(..) => self.nodes().entry(node).or_default().full_until = until(1),
            ShardError::Missing(..) | ShardError::Corrupt(..) | ShardError::Refused(..) => {}
        }
    }

    /// The node has answered a call: it is reachable again. Room is another matter and forgotten only with time.
    pub fn answered(&self, node: NodeId) {
        if let Some(shunned) = self.nodes().get_mut(&node) {
            shunned.unreachable_until = None;
            shunned.relapses = 0;
        }
    }

    /// The node has kept a reader waiting for longer than it is worth. It is not asked first for a while; unless half of
    /// `among` so many are as slow, since then it is not the node.
    pub fn lags(&self, node: NodeId, among: usize) {
        let mut nodes = self.nodes();
        let slow = nodes.values().filter(|shunned| !over(shunned.slow_until)).count();
        if (slow + 1) * 2 <= among {
            let until = Instant::now() + Duration::from_millis(NODE_SLOW_MS);
            nodes.entry(node).or_default().slow_until = Some(until);
        }
    }

    /// The cluster finds these nodes slow, and no others: they are read from last, and written to if it takes them to place a stripe well.
    pub fn told_slow(&self, slow: impl IntoIterator<Item = NodeId>) {
        let until = Some(Instant::now() + Duration::from_millis(NODE_SLOW_TOLD_MS));
        let mut nodes = self.nodes();
        nodes.values_mut().for_each(|node| node.told_slow_until = None);
        slow.into_iter().for_each(|node| nodes.entry(node).or_default().told_slow_until = until);
    }

    /// The nodes that the cluster found slow a moment ago.
    pub fn slow(&self) -> BTreeSet<NodeId> {
        let nodes = self.nodes();
        nodes.iter().filter(|(_, s)| !over(s.told_slow_until)).map(|(id, _)| *id).collect()
    }

    /// What speaks against reading from the node.
    pub fn doubt(&self, node: NodeId) -> Doubt {
        match self.nodes().get(&node) {
            Some(s) if !over(s.unreachable_until) => Doubt::Unreachable,
            Some(s) if !over(s.slow_until) || !over(s.told_slow_until) => Doubt::Slow,
            _ => Doubt::None,
        }
    }

    /// Nothing speaks against reading from the node.
    pub fn readable(&self, node: NodeId) -> bool {
        self.doubt(node) == Doubt::None
    }

    /// Nothing speaks against storing on the node.
    pub fn writable(&self, node: NodeId) -> bool {
        self.nodes().get(&node).is_none_or(|s| over(s.unreachable_until) && over(s.full_until))
    }

    /// Remembers how long a read took that came to its end.
    pub fn took(&self, bytes: u64, time: Duration) {
        if bytes < PACE_BYTES_MIN {
            return;
        }
        let mut paces = self.paces();
        if paces.len() == PACES_KEPT {
            paces.pop_front();
        }
        paces.push_back(bytes / (time.as_millis() as u64).max(1));
    }

    /// How long to wait for a read before reading so many bytes in its stead: as long as that would take. Reads that share
    /// a thin line are all slow, and asking for more makes them slower.
    pub fn patience(&self, instead: u64) -> Duration {
        let mut paces: Vec<u64> = self.paces().iter().copied().collect();
        paces.sort_unstable();
        let usual = paces.get(paces.len() / 2).copied().unwrap_or(HEDGE_BYTES_PER_MS_FIRST);
        Duration::from_millis(HEDGE_MS + instead / usual.clamp(1, HEDGE_BYTES_PER_MS))
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Shunned>> {
        self.nodes.lock().expect("no holder of this lock panics")
    }

    fn paces(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.paces.lock().expect("no holder of this lock panics")
    }
}

fn over(until: Option<Instant>) -> bool {
    until.is_none_or(|until| Instant::now() >= until)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{ShardId, StripeId};

    #[test]
    fn only_failures_of_the_node_itself_are_remembered() {
        let (health, node) = (NodeHealth::new(), NodeId(1));
        health.note(node, &ShardError::Missing(node, ShardId { stripe: StripeId([0; 16]), index: 0 }));
        health.note(node, &ShardError::Refused(node, String::new()));
        assert!(health.readable(node) && health.writable(node));
        health.note(node, &ShardError::Full(node, String::new()));
        assert!(health.readable(node) && !health.writable(node));
        health.note(node, &ShardError::Unreachable(node, String::new()));
        assert!(!health.readable(node) && health.readable(NodeId(2)));
        health.answered(node);
        assert!(health.readable(node) && !health.writable(node));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_stays_away_is_shunned_for_longer_each_time() {
        let (health, node) = (NodeHealth::new(), NodeId(1));
        let gone = ShardError::Unreachable(node, String::new());
        for doublings in [0, 1, 2, 3, 3] {
            assert!(health.readable(node));
            (0..5).for_each(|_| health.note(node, &gone));
            tokio::time::sleep(Duration::from_millis((NODE_SHUN_MS << doublings) - 1)).await;
            assert!(!health.readable(node), "{doublings}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        health.answered(node);
        health.note(node, &gone);
        tokio::time::sleep(Duration::from_millis(NODE_SHUN_MS)).await;
        assert!(health.readable(node), "it was back in between");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_node_is_shunned_for_a_while_and_a_slow_line_is_not_its_fault() {
        let (health, nodes) = (NodeHealth::new(), [1, 2, 3, 4, 5, 6].map(NodeId));
        health.lags(nodes[0], 6);
        assert!(!health.readable(nodes[0]) && health.writable(nodes[0]));
        nodes.iter().for_each(|node| health.lags(*node, 6));
        assert_eq!(nodes.iter().filter(|node| !health.readable(**node)).count(), 3);
        tokio::time::sleep(Duration::from_millis(NODE_SLOW_MS)).await;
        assert!(nodes.iter().all(|node| health.readable(*node)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_the_cluster_calls_slow_is_spared_for_a_while() {
        let (health, nodes) = (NodeHealth::new(), [1, 2].map(NodeId));
        health.told_slow([nodes[0]]);
        assert!(!health.readable(nodes[0]) && health.writable(nodes[0]));
        assert!(health.readable(nodes[1]));
        health.answered(nodes[0]);
        assert!(!health.readable(nodes[0]), "that it answers is not news");
        assert_eq!(health.slow(), [nodes[0]].into());
        tokio::time::sleep(Duration::from_millis(NODE_SLOW_TOLD_MS)).await;
        assert!(health.readable(nodes[0]) && health.slow().is_empty());
        health.told_slow(nodes);
        health.told_slow([nodes[1]]);
        assert_eq!(health.slow(), [nodes[1]].into(), "the last word counts");
    }

    #[test]
    fn patience_follows_what_the_line_carries() {
        let (health, bytes) = (NodeHealth::new(), 8 << 20);
        let ms = || health.patience(bytes).as_millis() as u64 - HEDGE_MS;
        assert_eq!(ms(), bytes / HEDGE_BYTES_PER_MS_FIRST);
        health.took(PACE_BYTES_MIN - 1, Duration::from_secs(60));
        assert_eq!(ms(), bytes / HEDGE_BYTES_PER_MS_FIRST, "a small read says nothing");
        (0..PACES_KEPT).for_each(|_| health.took(bytes, Duration::from_millis(1_000)));
        assert!((1_000..1_010).contains(&ms()), "{}", ms());
        // One slow node among others changes nothing; a line that has become faster is noticed.
        health.took(bytes, Duration::from_secs(9));
        assert!((1_000..1_010).contains(&ms()), "{}", ms());
        (0..PACES_KEPT).for_each(|_| health.took(bytes, Duration::ZERO));
        assert_eq!(ms(), bytes / HEDGE_BYTES_PER_MS);
    }
}
