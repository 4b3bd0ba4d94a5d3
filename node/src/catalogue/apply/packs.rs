//! `CommitPacks`: each pack is checked whole before anything of it is written.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop, garbage, ordinals, shards, upkeep};
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    ChunkRecord, ChunkSpan, PackCommit, PackRecord, Recoding, Refusal, Reply, RepoRecord, ShardRecord,
    StripeRecord,
};
use farshore_core::erasure::CODEC_RS;
use farshore_core::id::{ChunkId, NodeId, Ordinal, PackNo, RepoId, SessionId, ShardId, StripeId};
use farshore_core::limits::{COMMIT_PACKS_MAX, NODES_MAX, PACK_BYTES_MAX, PACK_CHUNKS_MAX, SHARD_BYTES_MAX};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// Most nodes named in a refusal.
const NAMED_NODES_MAX: usize = 8;

pub(super) fn commit(tx: &mut Tx, session: SessionId, packs: &[PackCommit]) -> Outcome {
    if packs.len() > COMMIT_PACKS_MAX {
        return Err(malformed(format!("more than {COMMIT_PACKS_MAX} packs at once")));
    }
    let session = tx.get::<Sessions>(&session)?.ok_or(Refusal::NoSession(session))?;
    upkeep::check_thawed(tx)?;
    let repo = tx.get::<Repos>(&session.repo)?.ok_or(Refusal::NoRepo)?;
    let mut committed = Vec::with_capacity(packs.len());
    for pack in packs {
        // Packs that are no longer good for anything: asked once each, since neighbours tend to lie together.
        let mut gone = BTreeMap::<PackNo, bool>::new();
        committed.push(commit_one(tx, &repo, pack, |tx, span| {
            let Some(known) = tx.get::<Chunks>(&(repo.id, span.id))? else { return Ok(false) };
            if let Some(known) = gone.get(&known.pack) {
                return Ok(*known);
            }
            let is_gone = is_gone(tx, repo.id, known.pack)?;
            gone.insert(known.pack, is_gone);
            Ok(is_gone)
        })?);
    }
    Ok(Reply::PacksCommitted { packs: committed })
}

/// A pack that is answered as absent: condemned, or lost. What is sent again takes the place of what was in it.
fn is_gone(tx: &Tx, repo: RepoId, no: PackNo) -> Result<bool, CatalogueError> {
    if tx.has::<CondemnedPacks>(&(repo, no))? {
        return Ok(true);
    }
    if !tx.has::<UnderTargets>(&no)? {
        return Ok(false);
    }
    let pack = tx.get::<Packs>(&no)?.ok_or(CatalogueError::Torn("a chunk names no pack"))?;
    shards::is_lost(tx, &pack)
}

/// Records one pack, or finds it recorded. `moves` says whether a chunk that is known shall live in this pack from now
/// on.
pub(super) fn commit_one(
    tx: &mut Tx,
    repo: &RepoRecord,
    pack: &PackCommit,
    moves: impl FnMut(&Tx, &ChunkSpan) -> Result<bool, Stop>,
) -> Result<PackCommitted, Stop> {
    check_shape(pack)?;
    if let Some(no) = tx.get::<PackIds>(&(repo.id, pack.id))? {
        return again(tx, repo.id, pack, no);
    }
    let former = |recoding: Recoding| recoding.former.admits(pack.scheme);
    if !repo.policy.admits(pack.scheme) && !tx.get::<Recodings>(&repo.id)?.is_some_and(former) {
        let (scheme, spread, policy) = (pack.scheme, pack.scheme.spread(), repo.policy);
        return Err(malformed(format!(
            "pack {}: no {scheme} with {spread} in a region survives the policy's \"{policy}\"",
            pack.id
        )));
    }
    check_shards(tx, repo.id, pack, repo.policy.floor_nodes)?;
    record(tx, repo.id, pack, moves)
}

fn malformed(what: impl Into<String>) -> Stop {
    Refusal::Malformed(what.into()).into()
}

/// What can be checked without looking anything up.
fn check_shape(pack: &PackCommit) -> Result<(), Stop> {
    if pack.len == 0 || pack.len > PACK_BYTES_MAX as u64 {
        return Err(malformed(format!("pack {} has {} bytes", pack.id, pack.len)));
    }
    if pack.chunks.is_empty() || pack.chunks.len() > PACK_CHUNKS_MAX {
        return Err(malformed(format!("pack {} has {} chunks", pack.id, pack.chunks.len())));
    }
    check_table(pack.len, &pack.chunks).map_err(|what| malformed(format!("pack {}: {what}", pack.id)))?;
    if pack.shards.len() != pack.scheme.n() {
        return Err(malformed(format!("pack {} has {} shards", pack.id, pack.shards.len())));
    }
    if pack.shard_len != pack.scheme.shard_len(pack.len) || pack.shard_len > SHARD_BYTES_MAX as u64 {
        return Err(malformed(format!("pack {} has shards of {} bytes", pack.id, pack.shard_len)));
    }
    if pack.shards.iter().any(|shard| shard.hash.0 == [0; 32]) {
        return Err(malformed(format!("pack {} lacks the hash of a shard", pack.id)));
    }
    Ok(())
}

/// The chunk table ascends, no chunk overlaps the next or the end of the pack, and no id comes twice.
fn check_table(pack_len: u64, chunks: &[ChunkSpan]) -> Result<(), &'static str> {
    let mut free_from = 0;
    let mut ids = BTreeSet::<ChunkId>::new();
    for chunk in chunks {
        let end = u64::from(chunk.offset) + u64::from(chunk.len);
        if chunk.len == 0 || u64::from(chunk.offset) < free_from || end > pack_len {
            return Err("chunks are empty, overlap, or end beyond the pack");
        }
        if !ids.insert(chunk.id) {
            return Err("a chunk comes twice");
        }
        free_from = end;
    }
    Ok(())
}

/// The holders exist, none still has to sweep an older copy, and the write floor holds.
fn check_shards(tx: &Tx, repo: RepoId, pack: &PackCommit, floor_nodes: u8) -> Result<(), Stop> {
    let nodes = shards::holders(tx, &pack.shards)?;
    let stripe = stripe_id(repo, pack);
    for (index, shard) in (0u8..).zip(&pack.shards) {
        let Some(node) = shard.node else { continue };
        if !nodes.contains_key(&node) {
            return Err(Refusal::NoNode(node).into());
        }
        if tx.has::<Condemneds>(&(node, ShardId { stripe, index }))? {
            return Err(Refusal::StillCondemned.into());
        }
    }
    let left = left_after_worst_nodes(&pack.shards, &nodes, floor_nodes);
    if left < pack.scheme.k() && !mutant(Mutant::BelowFloor) {
        return Err(Refusal::BelowFloor(pack.id, explain_floor(tx, pack, left, floor_nodes)?).into());
    }
    Ok(())
}

/// Shards that would remain if the `worst` nodes that hold most of them were lost. Shards on nodes that do not count
/// are gone already.
fn left_after_worst_nodes(shards: &[ShardRecord], nodes: &BTreeMap<NodeId, NodeRecord>, worst: u8) -> usize {
    let mut held = BTreeMap::<NodeId, usize>::new();
    for node in shards.iter().filter_map(|shard| shard.node) {
        if nodes.get(&node).is_some_and(|node| node.state.counts()) {
            *held.entry(node).or_default() += 1;
        }
    }
    let mut held = held.into_values().collect::<Vec<_>>();
    held.sort_unstable();
    held.iter().rev().skip(worst.into()).sum()
}

fn explain_floor(tx: &Tx, pack: &PackCommit, left: usize, floor_nodes: u8) -> Result<String, CatalogueError> {
    let held = pack.shards.iter().filter(|shard| shard.node.is_some()).count();
    let nodes = tx.scan::<Nodes>(&Span::all(), NODES_MAX)?;
    let away = nodes.into_iter().filter(|(_, node)| node.state != NodeState::Up);
    let mut away = away.map(|(_, node)| format!("{} ({})", node.name, node.state.word())).collect::<Vec<_>>();
    let more = away.len().saturating_sub(NAMED_NODES_MAX);
    away.truncate(NAMED_NODES_MAX);
    let away = match (away.is_empty(), more) {
        (true, _) => "all nodes are up".into(),
        (false, 0) => format!("not up: {}", away.join(", ")),
        (false, more) => format!("not up: {} and {more} more", away.join(", ")),
    };
    let (n, k) = (pack.scheme.n(), pack.scheme.k());
    Ok(format!(
        "{held} of {n} shards are held, {left} would be left after losing nodes: {floor_nodes}, needed are {k}; {away}"
    ))
}

fn stripe_id(repo: RepoId, pack: &PackCommit) -> StripeId {
    let (k, m, _) = pack.scheme.into();
    StripeId::of(repo, pack.id, k, m, CODEC_RS)
}

/// The pack is known already: the same answer as the first time. Whoever asks needs it, so it is no longer condemned.
fn again(tx: &mut Tx, repo: RepoId, pack: &PackCommit, no: PackNo) -> Result<PackCommitted, Stop> {
    let known = tx.get::<Packs>(&no)?.ok_or(CatalogueError::Torn("a pack id names no pack"))?;
    let other = || malformed(format!("pack {} is known with other contents", pack.id));
    if known.len != pack.len || known.kind != pack.kind || known.chunks as usize != pack.chunks.len() {
        return Err(other());
    }
    let mut ordinals = Vec::with_capacity(pack.chunks.len());
    for span in &pack.chunks {
        ordinals.push(tx.get::<Chunks>(&(repo, span.id))?.ok_or_else(other)?.ordinal);
    }
    garbage::revive_pack(tx, &known)?;
    Ok(PackCommitted { id: pack.id, no, ordinals })
}

fn record(
    tx: &mut Tx,
    repo: RepoId,
    pack: &PackCommit,
    moves: impl FnMut(&Tx, &ChunkSpan) -> Result<bool, Stop>,
) -> Result<PackCommitted, Stop> {
    let no = tx.state.next_pack;
    let first_ordinal = tx.get::<NextOrdinals>(&repo)?.unwrap_or_default();
    let chunks = pack.chunks.len() as u32;
    let stripe = StripeRecord {
        id: stripe_id(repo, pack),
        scheme: pack.scheme,
        shard_len: pack.shard_len,
        generation: 0,
        shards: pack.shards.clone(),
    };
    let row =
        PackRecord { no, id: pack.id, repo, kind: pack.kind, len: pack.len, chunks, first_ordinal, stripe };
    tx.state.next_pack = PackNo(no.0 + 1);
    tx.state.pack_bytes += row.len;
    tx.put::<NextOrdinals>(&repo, &Ordinal(first_ordinal.0 + u64::from(chunks)))?;
    tx.put::<PackIds>(&(repo, pack.id), &no)?;
    tx.put::<Stripes>(&row.stripe.id, &no)?;
    tx.put::<OrdinalPacks>(&(repo, first_ordinal), &no)?;
    tx.put::<PackChunks>(&no, &pack.chunks.iter().map(|span| span.id).collect())?;
    let ordinals = record_chunks(tx, &row, &pack.chunks, moves)?;
    shards::put_pack(tx, None, &row)?;
    Ok(PackCommitted { id: pack.id, no, ordinals })
}

/// Every chunk of the table uses up one ordinal, so that packs are given consecutive ones. A chunk that is known keeps
/// the ordinal it has, and its place unless it moves here; the ordinal it would have got stays unused for ever.
fn record_chunks(
    tx: &mut Tx,
    pack: &PackRecord,
    chunks: &[ChunkSpan],
    mut moves: impl FnMut(&Tx, &ChunkSpan) -> Result<bool, Stop>,
) -> Result<Vec<Ordinal>, Stop> {
    let (repo, mut given) = (pack.repo, Vec::with_capacity(chunks.len()));
    let (mut unused, mut moved) = (Vec::new(), BTreeMap::<PackNo, Vec<Ordinal>>::new());
    for (at, span) in (pack.first_ordinal.0..).map(Ordinal).zip(chunks) {
        let known = tx.get::<Chunks>(&(repo, span.id))?;
        let here = |ordinal| ChunkRecord { ordinal, pack: pack.no, offset: span.offset, len: span.len };
        let ordinal = match known {
            None => {
                tx.put::<Chunks>(&(repo, span.id), &here(at))?;
                at
            }
            Some(known) => {
                unused.push(at);
                if moves(tx, span)? {
                    tx.put::<Chunks>(&(repo, span.id), &here(known.ordinal))?;
                    moved.entry(known.pack).or_default().push(known.ordinal);
                }
                known.ordinal
            }
        };
        given.push(ordinal);
    }
    if !unused.is_empty() {
        ordinals::set_absent(tx, repo, unused.iter().copied())?;
        let arrived: Vec<Ordinal> = moved.values().flatten().copied().collect();
        ordinals::set_present(tx, repo, arrived.iter().copied())?;
        let own = ordinals::of_pack(tx, pack)?.without(&unused).with(&arrived);
        ordinals::set_of_pack(tx, pack, &own)?;
    }
    for (no, left) in moved {
        let source = tx.get::<Packs>(&no)?.ok_or(CatalogueError::Torn("a chunk names no pack"))?;
        let rest = ordinals::of_pack(tx, &source)?.without(&left);
        ordinals::set_of_pack(tx, &source, &rest)?;
    }
    Ok(given)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::ShardHash;

    fn span(id: u8, offset: u32, len: u32) -> ChunkSpan {
        ChunkSpan { id: ChunkId([id; 32]), offset, len }
    }

    #[test]
    fn chunk_tables() {
        assert!(check_table(10, &[span(1, 0, 4), span(2, 4, 6)]).is_ok());
        assert!(check_table(12, &[span(1, 1, 4), span(2, 6, 6)]).is_ok(), "gaps are allowed");
        assert!(check_table(10, &[span(1, 0, 4), span(2, 3, 6)]).is_err());
        assert!(check_table(10, &[span(1, 4, 4), span(2, 0, 4)]).is_err());
        assert!(check_table(10, &[span(1, 0, 0)]).is_err());
        assert!(check_table(10, &[span(1, 0, 11)]).is_err());
        assert!(check_table(10, &[span(1, u32::MAX, u32::MAX)]).is_err());
        assert!(check_table(10, &[span(1, 0, 4), span(1, 4, 4)]).is_err());
    }

    #[test]
    fn the_floor_takes_the_fullest_nodes_first_and_counts_no_lost_ones() {
        let node = |id: u64, state| NodeRecord {
            id: NodeId(id),
            name: "n".parse().unwrap(),
            region: "a/b".parse().unwrap(),
            zone: None,
            addr: "host:1".into(),
            capacity: 1,
            state,
        };
        let states = [NodeState::Up, NodeState::Down, NodeState::Lost, NodeState::Draining];
        let nodes = (0..).zip(states).map(|(id, state)| (NodeId(id), node(id, state))).collect();
        let held = [Some(0), Some(1), Some(1), Some(2), None, Some(3), Some(3), Some(3)];
        let shard = |id: Option<u64>| ShardRecord { node: id.map(NodeId), hash: ShardHash([1; 32]) };
        let left = |worst| left_after_worst_nodes(&held.map(shard), &nodes, worst);
        assert_eq!([left(0), left(1), left(2), left(3), left(9)], [6, 3, 1, 0, 0]);
    }
}
