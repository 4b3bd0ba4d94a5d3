//! `RecordExport`: which exports of the catalogue lie among the shards, and which of them go.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::Outcome;
use super::shards::condemn;
use farshore_core::catalogue::{ExportRecord, Refusal, Reply};
use farshore_core::id::ShardId;
use farshore_core::limits::{EXPORT_BASES_KEPT, EXPORT_PARTS_MAX, EXPORTS_MAX};

pub(super) fn record(tx: &mut Tx, export: &ExportRecord) -> Outcome {
    let malformed = |what: &str| Err(Refusal::Malformed(what.into()).into());
    let coded = export.parts.iter().all(|part| part.shards.len() == part.scheme.n());
    if export.parts.is_empty() || export.parts.len() > EXPORT_PARTS_MAX || !coded {
        return malformed("an export has parts, and each as many shards as its scheme");
    }
    if export.from > export.to || (export.base && export.from != 0) {
        return malformed("an export ends before it begins");
    }
    let key = ExportKey { to: export.to, id: export.id };
    if !tx.has::<Exports>(&key)? && tx.state.rows_of(Exports::TABLE) >= EXPORTS_MAX {
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
    let known = tx.scan::<Exports>(&Span::all(), EXPORTS_MAX as usize)?;
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
    for part in &export.parts {
        let stripe = part.stripe();
        for (shard, index) in part.shards.iter().zip(0u8..) {
            if let Some(node) = shard.node {
                condemn(tx, node, ShardId { stripe, index })?;
            }
        }
    }
    Ok(())
}
