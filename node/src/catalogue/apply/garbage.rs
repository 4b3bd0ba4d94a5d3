//! Packs that nobody needs: condemned, revived, dropped, or emptied into a new pack. Nothing here deletes a shard; it
//! only says which copies their nodes have to delete.
//!
//! Why a dropped pack cannot be missed (DESIGN section 5): a client that was told "present" before the condemnation holds
//! a session opened before, and while one is open the pack stays; a snapshot committed after the condemnation revives
//! what it names, and one committed before was seen by the second look, which is later than the condemnation.

use super::super::error::CatalogueError;
use super::super::live::LiveSet;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop, exports, ordinals, packs, shards, upkeep};
use farshore_core::catalogue::{CondemnedPack, Orphan, PackCommit, PackRecord, Refusal, Reply, Subject};
use farshore_core::id::{NodeId, PackNo, RepoId};
use farshore_core::limits::{GARBAGE_CHUNKS_MAX, GARBAGE_PACKS_MAX, ORPHANS_MAX, SESSIONS_OPEN_MAX};
use farshore_core::mutant::{Mutant, mutant};
use std::collections::BTreeMap;

/// The oldest open session of a repository, as garbage collection sees it.
#[derive(Clone, Copy, Default)]
struct Oldest {
    /// Packs from here on may belong to an open session.
    first_pack: Option<PackNo>,
    /// Log index that opened it.
    opened: Option<u64>,
}

fn oldest_sessions(tx: &Tx) -> Result<BTreeMap<RepoId, Oldest>, CatalogueError> {
    let mut oldest = BTreeMap::<RepoId, Oldest>::new();
    for (_, session) in tx.scan::<Sessions>(&Span::all(), SESSIONS_OPEN_MAX as usize)? {
        let of = oldest.entry(session.repo).or_default();
        of.first_pack = Some(of.first_pack.map_or(session.first_pack, |p| p.min(session.first_pack)));
        of.opened = Some(of.opened.map_or(session.opened, |o| o.min(session.opened)));
    }
    Ok(oldest)
}

fn check_len(len: usize, most: usize, what: &str) -> Result<(), Stop> {
    if len <= most {
        return Ok(());
    }
    Err(Refusal::Malformed(format!("more than {most} {what} at once")).into())
}

pub(super) fn condemn(tx: &mut Tx, index: u64, which: &[PackNo]) -> Outcome {
    check_len(which.len(), GARBAGE_PACKS_MAX, "packs")?;
    let oldest = oldest_sessions(tx)?;
    let mut count = 0;
    for no in which {
        let Some(pack) = tx.get::<Packs>(no)? else { continue };
        let first_own = oldest.get(&pack.repo).and_then(|of| of.first_pack);
        let may_be_own = first_own.is_some_and(|first| *no >= first);
        if may_be_own || tx.has::<CondemnedPacks>(&(pack.repo, *no))? {
            continue;
        }
        tx.put::<CondemnedPacks>(&(pack.repo, *no), &index)?;
        let set = ordinals::of_pack(tx, &pack)?;
        ordinals::set_condemned(tx, pack.repo, set.iter())?;
        count += 1;
    }
    Ok(Reply::Changed { count })
}

pub(super) fn revive(tx: &mut Tx, which: &[PackNo]) -> Outcome {
    check_len(which.len(), GARBAGE_PACKS_MAX, "packs")?;
    let mut count = 0;
    for no in which {
        let Some(pack) = tx.get::<Packs>(no)? else { continue };
        count += u32::from(revive_pack(tx, &pack)?);
    }
    Ok(Reply::Changed { count })
}

/// Takes a pack's condemnation back, if there is one.
pub(super) fn revive_pack(tx: &mut Tx, pack: &PackRecord) -> Result<bool, CatalogueError> {
    let key = (pack.repo, pack.no);
    if !tx.has::<CondemnedPacks>(&key)? {
        return Ok(false);
    }
    tx.remove::<CondemnedPacks>(&key)?;
    let set = ordinals::of_pack(tx, pack)?;
    ordinals::set_present(tx, pack.repo, set.iter())?;
    Ok(true)
}

/// Revives every condemned pack that a snapshot names a chunk of.
pub(super) fn revive_named(tx: &mut Tx, repo: RepoId, live: &LiveSet) -> Result<(), CatalogueError> {
    let mut span = Span::within(&repo);
    loop {
        let rows = tx.scan::<CondemnedPacks>(&span, GARBAGE_PACKS_MAX)?;
        let Some((last, _)) = rows.last() else { return Ok(()) };
        span = Span::within(&repo).beyond(last);
        for ((_, no), _) in rows {
            let pack = tx.get::<Packs>(&no)?;
            let pack = pack.ok_or(CatalogueError::Torn("a condemned pack is not there"))?;
            if live.needs_any(&ordinals::of_pack(tx, &pack)?) {
                revive_pack(tx, &pack)?;
            }
        }
    }
}

pub(super) fn drop_dead(tx: &mut Tx, which: &[CondemnedPack], looked: u64) -> Outcome {
    check_len(which.len(), GARBAGE_PACKS_MAX, "packs")?;
    let oldest = oldest_sessions(tx)?;
    let (mut count, mut chunks) = (0, 0);
    for CondemnedPack { no, at } in which {
        let Some(pack) = tx.get::<Packs>(no)? else { continue };
        let key = (pack.repo, *no);
        let opened = oldest.get(&pack.repo).and_then(|of| of.opened);
        let fence_off = mutant(Mutant::DropUnderSession) || mutant(Mutant::TakeGone);
        let waited = opened.is_none_or(|opened| opened > *at) || fence_off;
        if tx.get::<CondemnedPacks>(&key)? != Some(*at) || looked < *at || !waited {
            continue;
        }
        chunks += pack.chunks as usize;
        // The first is dropped however large it is, so that every pack can be.
        if count > 0 && chunks > GARBAGE_CHUNKS_MAX {
            break;
        }
        drop_pack(tx, &pack)?;
        count += 1;
    }
    Ok(Reply::Changed { count })
}

fn drop_pack(tx: &mut Tx, pack: &PackRecord) -> Result<(), CatalogueError> {
    let (repo, no) = (pack.repo, pack.no);
    for id in tx.get::<PackChunks>(&no)?.unwrap_or_default() {
        // One that lives elsewhere by now stays.
        if tx.get::<Chunks>(&(repo, id))?.is_some_and(|chunk| chunk.pack == no) {
            tx.remove::<Chunks>(&(repo, id))?;
        }
    }
    let set = ordinals::of_pack(tx, pack)?;
    ordinals::set_absent(tx, repo, set.iter())?;
    tx.remove::<CondemnedPacks>(&(repo, no))?;
    tx.remove::<PackOrdinals>(&no)?;
    tx.remove::<PackChunks>(&no)?;
    tx.remove::<PackIds>(&(repo, pack.id))?;
    tx.remove::<Stripes>(&pack.stripe.id)?;
    tx.remove::<OrdinalPacks>(&(repo, pack.first_ordinal))?;
    tx.state.pack_bytes = tx.state.pack_bytes.saturating_sub(pack.len);
    shards::drop_pack(tx, pack)
}

pub(super) fn condemn_orphans(tx: &mut Tx, node: NodeId, copies: &[Orphan]) -> Outcome {
    check_len(copies.len(), ORPHANS_MAX, "orphans")?;
    if !tx.has::<Nodes>(&node)? {
        return Err(Refusal::NoNode(node).into());
    }
    let opened = oldest_sessions(tx)?.into_values().filter_map(|of| of.opened).min();
    let exported = exports::stripes(tx)?;
    let mut count = 0;
    for orphan in copies {
        let awaited = match orphan.session {
            Some(session) => tx.has::<Sessions>(&session)?,
            // Whoever may have a receipt for it had a session when it was noticed.
            None => opened.is_some_and(|opened| opened <= orphan.seen),
        };
        // No pack names the parts of an export; they are all that is left on the day on which every replica is lost.
        if awaited || exported.contains(&orphan.shard.stripe) || is_named(tx, node, orphan)? {
            continue;
        }
        shards::condemn(tx, node, orphan.shard)?;
        count += 1;
    }
    Ok(Reply::Changed { count })
}

/// Whether a committed stripe names this node for this shard.
fn is_named(tx: &Tx, node: NodeId, orphan: &Orphan) -> Result<bool, CatalogueError> {
    let Some(no) = tx.get::<Stripes>(&orphan.shard.stripe)? else { return Ok(false) };
    let pack = tx.get::<Packs>(&no)?.ok_or(CatalogueError::Torn("a stripe names no pack"))?;
    let shard = pack.stripe.shards.get(usize::from(orphan.shard.index));
    Ok(shard.is_some_and(|shard| shard.node == Some(node)))
}

pub(super) fn compact(tx: &mut Tx, repo: RepoId, pack: &PackCommit, from: &[PackNo]) -> Outcome {
    check_len(from.len(), GARBAGE_PACKS_MAX, "packs")?;
    let known = tx.get::<Repos>(&repo)?.ok_or(Refusal::NoRepo)?;
    let committed = packs::commit_one(tx, &known, pack, |tx, chunk| {
        let moved = || Refusal::Malformed(format!("chunk {} has moved or is gone", chunk.id));
        let place = tx.get::<Chunks>(&(repo, chunk.id))?.ok_or_else(moved)?;
        let source = tx.get::<Packs>(&place.pack)?.ok_or_else(moved)?;
        if from.contains(&place.pack) && source.kind == pack.kind && place.len == chunk.len {
            Ok(true)
        } else {
            Err(moved().into())
        }
    })?;
    if tx.has::<Recodings>(&repo)? {
        upkeep::moved(tx, Subject::Repository(repo), committed.no)?;
    }
    Ok(Reply::PacksCommitted { packs: vec![committed] })
}
