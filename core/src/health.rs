//! A short memory of which nodes failed, shared by everything that talks to shards in one process: a dead node costs
//! one timeout, not one per pack. It only advises; a shunned node is still asked when nothing better is left.

use crate::id::NodeId;
use crate::limits::NODE_SHUN_MS;
use crate::peer::ShardError;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// Which nodes failed a moment ago.
#[derive(Default)]
pub struct NodeHealth(Mutex<BTreeMap<NodeId, Shunned>>);

#[derive(Clone, Copy, Default)]
struct Shunned {
    unreachable_until: Option<Instant>,
    full_until: Option<Instant>,
}

impl NodeHealth {
    /// Everybody is well.
    pub fn new() -> Self {
        Self::default()
    }

    /// Remembers a failed call, if it says something about the node and not only about one shard.
    pub fn note(&self, node: NodeId, error: &ShardError) {
        let until = Some(Instant::now() + Duration::from_millis(NODE_SHUN_MS));
        match error {
            ShardError::Unreachable(..) => self.nodes().entry(node).or_default().unreachable_until = until,
            ShardError::Full(..) => self.nodes().entry(node).or_default().full_until = until,
            ShardError::Missing(..) | ShardError::Corrupt(..) | ShardError::Refused(..) => {}
        }
    }

    /// The node has answered a call: it is reachable again. Room is another matter and forgotten only with time.
    pub fn answered(&self, node: NodeId) {
        if let Some(shunned) = self.nodes().get_mut(&node) {
            shunned.unreachable_until = None;
        }
    }

    /// Nothing speaks against reading from the node.
    pub fn readable(&self, node: NodeId) -> bool {
        self.nodes().get(&node).is_none_or(|shunned| over(shunned.unreachable_until))
    }

    /// Nothing speaks against storing on the node.
    pub fn writable(&self, node: NodeId) -> bool {
        self.nodes().get(&node).is_none_or(|s| over(s.unreachable_until) && over(s.full_until))
    }

    fn nodes(&self) -> MutexGuard<'_, BTreeMap<NodeId, Shunned>> {
        self.0.lock().expect("no holder of this lock panics")
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
}
