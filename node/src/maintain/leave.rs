//! The end of a drain: a node that an operator wanted emptied, and that is empty, is retired. The leader's work, by
//! compare-and-set on the epoch of the topology it has looked at.

use super::Shared;
use crate::catalogue::{CatalogueError, View};
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, Reply};
use farshore_core::host::random;
use farshore_core::id::{NodeId, PackNo};
use farshore_core::topology::{Change, Intent, NodeState};

/// Retires one node, if one is ready to go: no shard, nothing to delete, no vote.
pub async fn retire_empty(shared: &Shared, view: &View, intent: &Intent) -> Result<(), WorkFailed> {
    let voters = shared.consensus.standing().voters;
    for node in intent.leaving.iter().filter(|node| !voters.contains(node)) {
        if !is_empty(view, *node)? {
            continue;
        }
        let (request, epoch) = (random(shared.host.entropy.as_ref()), intent.epoch);
        let changes = vec![Change::Remove(*node)];
        let reply =
            shared.consensus.propose_leading(Command::ChangeTopology { request, epoch, changes }).await?;
        match reply {
            Reply::Refused(refusal) => tracing::debug!(%node, %refusal, "retire an empty node"),
            _ => tracing::info!(%node, "drained and retired"),
        }
        return Ok(());
    }
    Ok(())
}

fn is_empty(view: &View, node: NodeId) -> Result<bool, CatalogueError> {
    let draining = view.node(node)?.is_some_and(|node| node.state == NodeState::Draining);
    Ok(draining
        && view.packs_held_by(node, PackNo(0), 1)?.rows.is_empty()
        && view.condemned(node, None, 1)?.rows.is_empty())
}
