//! The end of an upgrade: when every node can do more than the cluster uses, the cluster uses it. The leader's work.

use super::Shared;
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, Reply};
use farshore_core::id::NodeId;
use farshore_core::level::LEVEL_FIRST;
use farshore_core::topology::NodeRecord;
use std::collections::{BTreeMap, BTreeSet};

/// Raises the cluster's feature level, if nobody holds it back.
pub async fn raise_level(shared: &Shared) -> Result<(), WorkFailed> {
    // What this heartbeat's judgements have told the catalogue counts already: a node may have been held back since.
    let view = shared.view()?;
    let all = attainable(&view.nodes()?, &view.node_levels()?, &shared.consensus.standing().voters);
    let (from, to) = (view.level(), all.min(shared.level));
    if to <= from {
        return Ok(());
    }
    match shared.consensus.propose_leading(Command::RaiseLevel { to }).await? {
        Reply::Refused(refusal) => tracing::info!(%refusal, "raise the feature level"),
        _ => tracing::info!(from, to, "the cluster has a new feature level"),
    }
    Ok(())
}

/// What all nodes can do that are neither lost nor retired. A voter that the catalogue does not know yet, as while a
/// cluster is being founded, may be able to do the least.
fn attainable(nodes: &[NodeRecord], levels: &BTreeMap<NodeId, u32>, voters: &BTreeSet<NodeId>) -> u32 {
    let strange = voters.iter().any(|voter| nodes.iter().all(|node| node.id != *voter));
    if strange {
        return LEVEL_FIRST;
    }
    let counting = nodes.iter().filter(|node| node.state.counts());
    let level = |node: &NodeRecord| levels.get(&node.id).copied().unwrap_or(LEVEL_FIRST);
    counting.map(level).min().unwrap_or(LEVEL_FIRST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::topology::NodeState;

    #[test]
    fn the_least_able_node_decides_unless_it_is_gone() {
        let node = |id: u64, state| NodeRecord {
            id: NodeId(id),
            name: "n".parse().unwrap(),
            region: "a/b".parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1,
            state,
        };
        let states = [NodeState::Up, NodeState::Down, NodeState::Lost, NodeState::Retired];
        let nodes: Vec<_> = (1..).zip(states).map(|(id, state)| node(id, state)).collect();
        let of = |levels: &[u32], voters: &[u64]| {
            let levels = (1..).map(NodeId).zip(levels.iter().copied()).collect();
            attainable(&nodes, &levels, &voters.iter().copied().map(NodeId).collect())
        };
        assert_eq!(of(&[3, 2, 1, 1], &[1, 2]), 2, "who is down is waited for, who is lost is not");
        assert_eq!(of(&[3, 3], &[1]), 3);
        assert_eq!(of(&[3], &[1]), 1, "nothing is known of the other");
        assert_eq!(of(&[3, 3], &[1, 9]), 1, "a founder that has not said anything yet");
        assert_eq!(attainable(&[], &BTreeMap::new(), &BTreeSet::new()), 1);
    }
}
