//! Regions that move to others, the record of what was read again after it was moved, and the limits of all that work.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::topology::{at_epoch, enact, raise};
use super::{Outcome, Stop};
use farshore_core::catalogue::{
    Migration, Refusal, Reply, StripeRead, Subject, Upkeep, Verification, VerifiedStripe,
};
use farshore_core::id::PackNo;
use farshore_core::level::LEVEL_MIGRATE;
use farshore_core::limits::{
    LINK_BUDGETS_MAX, MIGRATIONS_MAX, NODES_MAX, VERIFICATIONS_MAX, VERIFIED_STRIPES_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{Change, NodeRecord, NodeState, Region};
use std::collections::{BTreeMap, BTreeSet};

fn malformed(what: impl Into<String>) -> Stop {
    Refusal::Malformed(what.into()).into()
}

fn key(region: &Region) -> NameKey {
    NameKey(region.as_str().into())
}

pub(super) fn migrate(
    tx: &mut Tx,
    request: [u8; 16],
    epoch: u64,
    from: &Region,
    to: &Region,
    cold: bool,
) -> Outcome {
    let Some(mut intent) = at_epoch(tx, request, epoch)? else { return Ok(Reply::Done) };
    let open = migrations(tx)?;
    if let Some(other) = open.iter().find(|m| m.from == *from || m.from == *to || m.to == *from) {
        return Err(malformed(format!("region {} is moving to {} already", other.from, other.to)));
    }
    if open.len() >= MIGRATIONS_MAX {
        return Err(malformed(format!("at most {MIGRATIONS_MAX} regions move at the same time")));
    }
    let nodes: Vec<NodeRecord> =
        tx.scan::<Nodes>(&Span::all(), NODES_MAX)?.into_iter().map(|(_, node)| node).collect();
    if from == to || !nodes.iter().any(|node| node.region == *to && node.takes_shards()) {
        return Err(malformed(format!("region {to} has no node that could take what is in {from}")));
    }
    let leaves = |node: &&NodeRecord| {
        node.region == *from && !matches!(node.state, NodeState::Lost | NodeState::Retired)
    };
    let leaving: BTreeSet<_> = nodes.iter().filter(leaves).map(|node| node.id).collect();
    if leaving.is_empty() {
        return Err(malformed(format!("region {from} has no node that could be emptied")));
    }
    for node in &leaving {
        enact(tx, Change::Drain(*node), false)?;
    }
    intent.staged.retain(|staged| !leaving.contains(&staged.node()));
    intent.leaving.extend(&leaving);
    let (from, to, since_ms) = (from.clone(), to.clone(), tx.state.time_ms);
    tx.put::<Migrations>(&key(&from), &Migration { from: from.clone(), to, cold, since_ms, nodes: leaving })?;
    raise(tx, intent, request)
}

pub(super) fn end_migration(
    tx: &mut Tx,
    request: [u8; 16],
    epoch: u64,
    from: &Region,
    keep: bool,
) -> Outcome {
    let Some(mut intent) = at_epoch(tx, request, epoch)? else { return Ok(Reply::Done) };
    let known = tx.get::<Migrations>(&key(from))?;
    let known = known.ok_or_else(|| malformed(format!("region {from} is not moving")))?;
    for id in &known.nodes {
        let state = tx.get::<Nodes>(id)?.map(|node| node.state);
        match state {
            Some(NodeState::Retired) | None => {}
            Some(NodeState::Draining) if keep => enact(tx, Change::Keep(*id), true)?,
            Some(_) if keep => {}
            Some(_) => return Err(Refusal::NotEmpty(*id).into()),
        }
        intent.leaving.remove(id);
    }
    tx.remove::<Migrations>(&key(from))?;
    raise(tx, intent, request)
}

fn migrations(tx: &Tx) -> Result<Vec<Migration>, CatalogueError> {
    let rows = tx.scan::<Migrations>(&Span::all(), MIGRATIONS_MAX)?;
    Ok(rows.into_iter().map(|(_, migration)| migration).collect())
}

/// Refuses a client's write while a cold migration is under way.
pub(super) fn check_thawed(tx: &Tx) -> Result<(), Stop> {
    if tx.state.rows_of(Migrations::TABLE) == 0 || mutant(Mutant::ColdWrites) {
        return Ok(());
    }
    match migrations(tx)?.into_iter().find(|migration| migration.cold) {
        Some(Migration { from, to, .. }) => Err(Refusal::Frozen(from, to).into()),
        None => Ok(()),
    }
}

/// Notes that a pack's stripe is to be read again.
pub(super) fn moved(tx: &mut Tx, subject: Subject, pack: PackNo) -> Result<(), CatalogueError> {
    match tx.state.level >= LEVEL_MIGRATE {
        true => tx.put::<Moveds>(&(subject, pack), &()),
        false => Ok(()),
    }
}

pub(super) fn verified(tx: &mut Tx, subject: Subject, stripes: &[StripeRead], end: bool) -> Outcome {
    if stripes.len() > VERIFIED_STRIPES_MAX {
        return Err(malformed(format!("more than {VERIFIED_STRIPES_MAX} stripes at once")));
    }
    let rows = tx.scan::<Verifications>(&Span::all(), usize::MAX / 2)?;
    let open = rows.iter().find(|(_, row)| row.subject == subject && row.ended_ms.is_none());
    let next = rows.last().map_or(1, |(VerificationKey(last), _)| last + 1);
    let (number, mut row) = open.map_or((next, new(tx, subject)), |(key, row)| (key.0, *row));
    let mut count = 0;
    for read in stripes {
        count += u32::from(note(tx, number, &mut row, read)?);
    }
    let waits = !tx.scan::<Moveds>(&Span::within(&subject), 1)?.is_empty();
    let ends = end && !waits && (open.is_some() || row.stripes > 0);
    row.ended_ms = ends.then_some(tx.state.time_ms);
    if row.stripes > 0 {
        tx.put::<Verifications>(&VerificationKey(number), &row)?;
    }
    forget_oldest(tx)?;
    Ok(Reply::Changed { count: count + u32::from(ends) })
}

fn new(tx: &Tx, subject: Subject) -> Verification {
    let begun_ms = tx.state.time_ms;
    Verification { subject, begun_ms, ended_ms: None, stripes: 0, good: 0, short: 0, weakest: None }
}

/// Whether it was waited for. A pack that is gone is waited for no longer, and is in no record.
fn note(tx: &mut Tx, number: u64, row: &mut Verification, read: &StripeRead) -> Result<bool, Stop> {
    let waiting = (row.subject, read.pack);
    if !tx.has::<Moveds>(&waiting)? {
        return Ok(false);
    }
    let Some(pack) = tx.get::<Packs>(&read.pack)? else {
        tx.remove::<Moveds>(&waiting)?;
        return Ok(true);
    };
    let n = pack.stripe.shards.len() as u32;
    if read.good.checked_shr(n).unwrap_or(0) != 0 {
        return Err(malformed(format!("pack {} has {n} shards only", read.pack.0)));
    }
    if pack.stripe.generation != read.generation {
        return Ok(false);
    }
    tx.remove::<Moveds>(&waiting)?;
    let good = read.good.count_ones();
    let spare = good as i16 - pack.stripe.scheme.k() as i16;
    row.stripes += 1;
    row.good += u64::from(good);
    row.short += u64::from(n - good);
    row.weakest = Some(row.weakest.map_or(spare, |weakest| weakest.min(spare)));
    let at_ms = tx.state.time_ms;
    let stripe =
        VerifiedStripe { stripe: pack.stripe.id, generation: read.generation, good: read.good, at_ms };
    tx.put::<VerifiedStripes>(&(VerificationKey(number), read.pack), &stripe)?;
    Ok(true)
}

/// A record may have many stripes, so that each command forgets some of the oldest, and its row with the last of them.
fn forget_oldest(tx: &mut Tx) -> Result<(), CatalogueError> {
    if tx.state.rows_of(Verifications::TABLE) <= VERIFICATIONS_MAX as u64 {
        return Ok(());
    }
    let Some((oldest, _)) = tx.scan::<Verifications>(&Span::all(), 1)?.pop() else { return Ok(()) };
    let stripes = tx.scan::<VerifiedStripes>(&Span::within(&oldest), VERIFIED_STRIPES_MAX)?;
    for (key, _) in &stripes {
        tx.remove::<VerifiedStripes>(key)?;
    }
    if stripes.len() < VERIFIED_STRIPES_MAX {
        tx.remove::<Verifications>(&oldest)?;
    }
    Ok(())
}

pub(super) fn set(tx: &mut Tx, upkeep: &Upkeep) -> Outcome {
    if upkeep.links.len() > LINK_BUDGETS_MAX {
        return Err(malformed(format!("more than {LINK_BUDGETS_MAX} links")));
    }
    let links: BTreeMap<_, _> = upkeep.links.iter().map(|link| ((&link.from, &link.to), ())).collect();
    if links.len() < upkeep.links.len() || upkeep.links.iter().any(|link| link.from == link.to) {
        return Err(malformed("a link goes from one region to another and is named once"));
    }
    let nothing = [upkeep.scrub_every_ms, upkeep.node_bytes_s].contains(&Some(0));
    if nothing || upkeep.links.iter().any(|link| link.bytes_s == Some(0)) {
        return Err(malformed("a rate or period of 0 would end all work; leave it out for no limit"));
    }
    if tx.get::<Upkeeps>(&IntentKey)?.unwrap_or_default() != *upkeep {
        tx.put::<Upkeeps>(&IntentKey, upkeep)?;
    }
    Ok(Reply::Done)
}
