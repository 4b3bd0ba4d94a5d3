//! Who belongs to the cluster, as operators want it: nodes admitted under the number of their data directory, changes staged,
//! and changes enacted by compare-and-set on the topology's epoch.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop, put_node, set_node_state};
use farshore_core::catalogue::{Refusal, Reply};
use farshore_core::limits::TOPOLOGY_CHANGES_MAX;
use farshore_core::topology::{Change, Intent, NodeRecord, NodeState};
use std::collections::BTreeSet;

pub(super) fn admit(tx: &mut Tx, node: &NodeRecord, incarnation: u64, level: u32) -> Outcome {
    if tx.get::<Incarnations>(&node.id)?.is_some_and(|known| known != incarnation) {
        return Err(Refusal::Emptied(node.id).into());
    }
    if level < tx.state.level {
        return Err(Refusal::LevelBehind { node: node.id, level, cluster: tx.state.level }.into());
    }
    let place = |node: &NodeRecord| (node.region.clone(), node.zone.clone(), node.capacity);
    let before = tx.get::<Nodes>(&node.id)?;
    let reply = put_node(tx, node)?;
    tx.put::<Incarnations>(&node.id, &incarnation)?;
    tx.put::<NodeLevels>(&node.id, &level)?;
    if before.as_ref().map(place) != Some(place(node)) {
        let mut intent = intent(tx)?;
        intent.epoch += 1;
        intent.request = [0; 16];
        tx.put::<Intents>(&IntentKey, &intent)?;
    }
    Ok(reply)
}

pub(super) fn stage(tx: &mut Tx, request: [u8; 16], epoch: u64, changes: &[Change]) -> Outcome {
    let Some(mut intent) = at_epoch(tx, request, epoch)? else { return Ok(Reply::Done) };
    check(tx, changes)?;
    intent.staged = changes.to_vec();
    raise(tx, intent, request)
}

/// All or none: the caller undoes what a refused command has changed.
pub(super) fn change(tx: &mut Tx, request: [u8; 16], epoch: u64, changes: &[Change]) -> Outcome {
    let Some(mut intent) = at_epoch(tx, request, epoch)? else { return Ok(Reply::Done) };
    check(tx, changes)?;
    for change in changes {
        enact(tx, *change, intent.leaving.contains(&change.node()))?;
        match change {
            Change::Drain(node) => intent.leaving.insert(*node),
            Change::Keep(node) | Change::Remove(node) => intent.leaving.remove(node),
        };
    }
    // What was staged for these nodes is done with.
    intent.staged.retain(|staged| changes.iter().all(|change| change.node() != staged.node()));
    raise(tx, intent, request)
}

fn intent(tx: &Tx) -> Result<Intent, CatalogueError> {
    Ok(tx.get::<Intents>(&IntentKey)?.unwrap_or_default())
}

/// The intent, if it is at this epoch; nothing, if this very request has been carried out already.
pub(super) fn at_epoch(tx: &Tx, request: [u8; 16], epoch: u64) -> Result<Option<Intent>, Stop> {
    let intent = intent(tx)?;
    if intent.epoch == epoch {
        return Ok(Some(intent));
    }
    match request != [0; 16] && intent.request == request && Some(intent.epoch) == epoch.checked_add(1) {
        true => Ok(None),
        false => Err(Refusal::StaleTopology(intent.epoch).into()),
    }
}

pub(super) fn raise(tx: &mut Tx, mut intent: Intent, request: [u8; 16]) -> Outcome {
    intent.epoch += 1;
    intent.request = request;
    tx.put::<Intents>(&IntentKey, &intent)?;
    Ok(Reply::Done)
}

fn check(tx: &Tx, changes: &[Change]) -> Result<(), Stop> {
    if changes.len() > TOPOLOGY_CHANGES_MAX {
        return Err(Refusal::Malformed(format!("at most {TOPOLOGY_CHANGES_MAX} changes in one plan")).into());
    }
    let mut seen = BTreeSet::new();
    for node in changes.iter().map(|change| change.node()) {
        if !tx.has::<Nodes>(&node)? {
            return Err(Refusal::NoNode(node).into());
        }
        if !seen.insert(node) {
            return Err(Refusal::Malformed(format!("two changes for node {node} in one plan")).into());
        }
    }
    Ok(())
}

pub(super) fn enact(tx: &mut Tx, change: Change, leaving: bool) -> Result<(), Stop> {
    use NodeState::*;
    let id = change.node();
    let state = tx.get::<Nodes>(&id)?.ok_or(Refusal::NoNode(id))?.state;
    let way: &[NodeState] = match (change, state) {
        (Change::Drain(_), Draining) | (Change::Remove(_), Retired) => &[],
        // Its shards must not count again before it is back.
        (Change::Drain(_), Lost) => return Err(Refusal::BadTransition(id, state).into()),
        (Change::Drain(_), _) => &[Draining],
        (Change::Keep(_), Draining) => &[Up],
        // It was to leave and fell silent before it had.
        (Change::Keep(_), Lost) if leaving => &[],
        (Change::Keep(_), _) => return Err(Refusal::BadTransition(id, state).into()),
        // An empty node is gone at once; who holds shards has to be drained, or lost.
        (Change::Remove(_), Lost | Draining) => &[Retired],
        (Change::Remove(_), _) => &[Draining, Retired],
    };
    let mut from = state;
    for to in way {
        set_node_state(tx, id, from, *to)?;
        from = *to;
    }
    Ok(())
}
