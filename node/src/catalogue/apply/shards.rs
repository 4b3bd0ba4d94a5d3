//! Changes of one stripe: a shard placed, found bad, or its strength looked at again. The holder index, the list of
//! packs under target and the condemned copies follow every change here, and only here.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop, upkeep};
use farshore_core::catalogue::{Condemned, PackRecord, Refusal, Reply, ShardRecord, Subject};
use farshore_core::id::{NodeId, PackNo, ShardId};
use farshore_core::limits::RECHECK_PACKS_MAX;
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::BTreeMap;

pub(super) fn place(tx: &mut Tx, no: PackNo, generation: u64, index: u8, node: NodeId) -> Outcome {
    let old = tx.get::<Packs>(&no)?.ok_or(Refusal::NoPack)?;
    let holder = shard_of(&old, index)?.node;
    let target = tx.get::<Nodes>(&node)?.ok_or(Refusal::NoNode(node))?;
    if holder == Some(node) {
        return Ok(Reply::Done);
    }
    if old.stripe.generation != generation {
        return Err(Refusal::Stale(old.stripe.generation).into());
    }
    if !target.state.counts() {
        return Err(Refusal::Malformed(format!("node {node} is {}", target.state.word())).into());
    }
    let shard = ShardId { stripe: old.stripe.id, index };
    if tx.has::<Condemneds>(&(node, shard))? {
        return Err(Refusal::StillCondemned.into());
    }
    // Copy before condemn: the new copy is durable already, so the old one may go now.
    if let Some(holder) = holder {
        condemn(tx, holder, shard)?;
        let emptied = tx.get::<Nodes>(&holder)?.is_some_and(|node| node.state == NodeState::Draining);
        if emptied {
            upkeep::moved(tx, Subject::Node(holder), no)?;
        }
    }
    hold(tx, old, index, Some(node))?;
    Ok(Reply::Done)
}

pub(super) fn bad(tx: &mut Tx, no: PackNo, index: u8, node: NodeId) -> Outcome {
    let old = tx.get::<Packs>(&no)?.ok_or(Refusal::NoPack)?;
    if shard_of(&old, index)?.node == Some(node) {
        condemn(tx, node, ShardId { stripe: old.stripe.id, index })?;
        hold(tx, old, index, None)?;
    }
    Ok(Reply::Done)
}

pub(super) fn recheck(tx: &mut Tx, packs: &[PackNo]) -> Outcome {
    if packs.len() > RECHECK_PACKS_MAX {
        return Err(Refusal::Malformed(format!("more than {RECHECK_PACKS_MAX} packs at once")).into());
    }
    for no in packs {
        if let Some(pack) = tx.get::<Packs>(no)? {
            list_by_strength(tx, &pack)?;
        }
    }
    Ok(Reply::Done)
}

pub(super) fn swept(tx: &mut Tx, copies: &[Condemned]) -> Outcome {
    for copy in copies {
        tx.remove::<Condemneds>(&(copy.node, copy.shard))?;
    }
    Ok(Reply::Done)
}

fn shard_of(pack: &PackRecord, index: u8) -> Result<ShardRecord, Stop> {
    let shard = pack.stripe.shards.get(usize::from(index)).copied();
    shard.ok_or_else(|| Refusal::Malformed(format!("pack {} has no shard {index}", pack.no.0)).into())
}

/// A retired node sweeps nothing any more, so its copies need no record.
pub(super) fn condemn(tx: &mut Tx, node: NodeId, shard: ShardId) -> Result<(), CatalogueError> {
    match tx.get::<Nodes>(&node)? {
        Some(holder) if holder.state != NodeState::Retired => tx.put::<Condemneds>(&(node, shard), &()),
        _ => Ok(()),
    }
}

fn hold(tx: &mut Tx, old: PackRecord, index: u8, node: Option<NodeId>) -> Result<(), CatalogueError> {
    let mut new = old.clone();
    new.stripe.generation += 1;
    if let Some(shard) = new.stripe.shards.get_mut(usize::from(index)) {
        shard.node = node;
    }
    put_pack(tx, Some(&old), &new)
}

/// Removes a pack's row and all that follows from where its shards were: their copies are condemned.
pub(super) fn drop_pack(tx: &mut Tx, pack: &PackRecord) -> Result<(), CatalogueError> {
    for (node, held) in held_by_node(&pack.stripe.shards) {
        tx.remove::<Holders>(&(node, pack.no))?;
        for index in (0..pack.stripe.shards.len() as u8).filter(|index| held & 1 << index != 0) {
            condemn(tx, node, ShardId { stripe: pack.stripe.id, index })?;
        }
    }
    tx.remove::<UnderTargets>(&pack.no)?;
    tx.remove::<Packs>(&pack.no)
}

/// Fewer shards than needed are held by nodes that count, so that the pack cannot be read as things are.
pub(super) fn is_lost(tx: &Tx, pack: &PackRecord) -> Result<bool, CatalogueError> {
    let nodes = holders(tx, &pack.stripe.shards)?;
    Ok(pack.stripe.is_lost(|node| nodes.get(&node).is_some_and(|node| node.state.counts())))
}

/// Writes a pack's row and all that follows from where its shards are.
pub(super) fn put_pack(
    tx: &mut Tx,
    old: Option<&PackRecord>,
    new: &PackRecord,
) -> Result<(), CatalogueError> {
    tx.put::<Packs>(&new.no, new)?;
    let before = old.map(|old| held_by_node(&old.stripe.shards)).unwrap_or_default();
    let after = held_by_node(&new.stripe.shards);
    for node in before.keys().filter(|node| !after.contains_key(node)) {
        tx.remove::<Holders>(&(*node, new.no))?;
    }
    for (node, held) in &after {
        tx.put::<Holders>(&(*node, new.no), held)?;
    }
    list_by_strength(tx, new)
}

/// A bit for each shard index, by holder.
fn held_by_node(shards: &[ShardRecord]) -> BTreeMap<NodeId, u32> {
    let mut held = BTreeMap::<NodeId, u32>::new();
    for (index, shard) in shards.iter().enumerate() {
        if let Some(node) = shard.node {
            *held.entry(node).or_default() |= 1 << index;
        }
    }
    held
}

/// Lists the pack as under target, or takes it off the list.
fn list_by_strength(tx: &mut Tx, pack: &PackRecord) -> Result<(), CatalogueError> {
    let nodes = holders(tx, &pack.stripe.shards)?;
    let region = |id| nodes.get(&id).filter(|node| node.state.counts()).map(|node| &node.region);
    if pack.stripe.at_target(region) {
        return tx.remove::<UnderTargets>(&pack.no);
    }
    let row = UnderTarget { repo: pack.repo, first_ordinal: pack.first_ordinal, chunks: pack.chunks };
    tx.put::<UnderTargets>(&pack.no, &row)
}

/// The nodes that are named as holders and known.
pub(super) fn holders(
    tx: &Tx,
    shards: &[ShardRecord],
) -> Result<BTreeMap<NodeId, NodeRecord>, CatalogueError> {
    let mut nodes = BTreeMap::new();
    for id in shards.iter().filter_map(|shard| shard.node) {
        if !nodes.contains_key(&id)
            && let Some(node) = tx.get::<Nodes>(&id)?
        {
            nodes.insert(id, node);
        }
    }
    Ok(nodes)
}
