//! The end of a drain or a migration: a node that an operator wanted emptied, and that is empty, is retired. The leader's work, by
//! compare-and-set on the epoch of the topology it has looked at.

use super::Shared;
use crate::catalogue::{CatalogueError, View};
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, Reply, Subject};
use farshore_core::host::random;
use farshore_core::id::{NodeId, PackNo};
use farshore_core::mutant::{Mutant, mutant};
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

/// Ends one migration whose nodes have all gone.
pub async fn end_migrations(shared: &Shared, view: &View, intent: &Intent) -> Result<(), WorkFailed> {
    for migration in view.migrations()? {
        let mut gone = true;
        for node in &migration.nodes {
            gone &= view.node(*node)?.is_none_or(|node| node.state == NodeState::Retired);
        }
        if !gone {
            continue;
        }
        let (request, epoch) = (random(shared.host.entropy.as_ref()), intent.epoch);
        let (from, keep) = (migration.from.clone(), false);
        let command = Command::EndMigration { request, epoch, from, keep };
        match shared.consensus.propose_leading(command).await? {
            Reply::Refused(refusal) => tracing::debug!(from = %migration.from, %refusal, "end a migration"),
            _ => tracing::info!(from = %migration.from, to = %migration.to, "migrated"),
        }
        return Ok(());
    }
    Ok(())
}

fn is_empty(view: &View, node: NodeId) -> Result<bool, CatalogueError> {
    let draining = view.node(node)?.is_some_and(|node| node.state == NodeState::Draining);
    // What was moved off it is read again first: its copies are gone by then, but not the node that had them.
    let empty = view.moved(Subject::Node(node), None, 1)?.is_empty()
        && view.packs_held_by(node, PackNo(0), 1)?.rows.is_empty()
        && view.condemned(node, None, 1)?.rows.is_empty();
    Ok(draining && (empty || mutant(Mutant::RetireFull)))
}
