//! `RecordExport`: which exports of the catalogue lie among the shards, and which of them go.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::Outcome;
use super::shards::condemn;
use farshore_core::catalogue::{ExportPart, ExportRecord, Refusal, Reply};
use farshore_core::id::{NodeId, ShardId, StripeId};
use farshore_core::limits::{EXPORT_BASES_KEPT, EXPORT_PARTS_MAX, EXPORT_ROWS_MAX, EXPORTS_MAX};
use std::collections::BTreeSet;

pub(super) fn record(tx: &mut Tx, export: &ExportRecord) -> Outcome {
    let malformed = |what: &str| Err(Refusal::Malformed(what.into()).into());
    let coded = export.parts.iter().all(|part| part.shards.len() == part.scheme.n());
    if export.parts.is_empty() || export.parts.len() > EXPORT_PARTS_MAX || !coded {
        return malformed("an export has parts, and each as many shards as its scheme");
    }
    if export.from > export.to || (export.base && export.from != 0) {
        return malformed("an export ends before it begins");
    }
    for (node, shard) in export.parts.iter().flat_map(copies) {
        // An export that took long enough may have been taken for what somebody gave up.
        if tx.has::<Condemneds>(&(node, shard))? {
            return Err(Refusal::StillCondemned.into());
        }
    }
    let key = ExportKey { to: export.to, id: export.id };
    // A base makes room.
    if !export.base && !tx.has::<Exports>(&key)? && tx.state.rows_of(Exports::TABLE) >= EXPORTS_MAX {
        return malformed("too many exports are recorded");
    }
    tx.put::<Exports>(&key, export)?;
    if export.base {
        drop_useless(tx)?;
    }
    Ok(Reply::Done)
}

/// Condemns what only bases need that are no longer kept.
fn drop_useless(tx: &mut Tx) -> Result<(), CatalogueError> {
    let known = tx.scan::<Exports>(&Span::all(), EXPORT_ROWS_MAX)?;
    let bases = known.iter().rev().filter(|(_, export)| export.base);
    let Some(oldest) = bases.map(|(key, _)| *key).nth(EXPORT_BASES_KEPT - 1) else { return Ok(()) };
    for (key, export) in known {
        let older = if export.base { (key.to, key.id) < (oldest.to, oldest.id) } else { key.to <= oldest.to };
        if older {
            condemn_all(tx, &export)?;
            tx.remove::<Exports>(&key)?;
        }
    }
    Ok(())
}

fn condemn_all(tx: &mut Tx, export: &ExportRecord) -> Result<(), CatalogueError> {
    for (node, shard) in export.parts.iter().flat_map(copies) {
        condemn(tx, node, shard)?;
    }
    Ok(())
}

/// Who holds what of a part.
fn copies(part: &ExportPart) -> impl Iterator<Item = (NodeId, ShardId)> + '_ {
    let stripe = part.stripe();
    let held = part.shards.iter().zip(0u8..);
    held.filter_map(move |(shard, index)| Some((shard.node?, ShardId { stripe, index })))
}

/// The stripes of all exports that are kept.
pub(super) fn stripes(tx: &Tx) -> Result<BTreeSet<StripeId>, CatalogueError> {
    let kept = tx.scan::<Exports>(&Span::all(), EXPORT_ROWS_MAX)?;
    Ok(kept.iter().flat_map(|(_, export)| &export.parts).map(ExportPart::stripe).collect())
}
