//! A chain of exports becomes a catalogue: the base is staged like an image, then the log entries are replayed. After each
//! export the state must hash to what it was when the export was made.

use super::chain::{Chain, Export};
use super::inventory::fetch;
use super::patience::insist;
use super::{Ground, Sightings};
use crate::catalogue::{Catalogue, CatalogueError, ImageReader, Part};
use crate::raft::machine::Machine;
use crate::raft::reseat::open_entry;
use farshore_core::id::{ExportId, StripeId};
use farshore_core::limits::PAGE_ROWS_MAX;

/// Why an export cannot be used, and which.
pub type Unusable = (ExportId, String);

/// Loads a chain into an empty catalogue, or one that holds an earlier attempt. The inner error names an export to do
/// without; the outer one means that the store fails.
pub async fn load(
    ground: &Ground,
    catalogue: &Catalogue,
    exports: &[Export],
    sightings: &Sightings,
    chain: &Chain,
) -> Result<Result<(), Unusable>, CatalogueError> {
    let parts = Parts { ground, sightings };
    let base = &exports[chain.base];
    if let Err(why) = stage(&parts, catalogue, base).await? {
        return Ok(Err((base.id, why)));
    }
    while catalogue.drop_old_generation(PAGE_ROWS_MAX)? > 0 {}
    for at in &chain.increments {
        let increment = &exports[*at];
        if let Err(why) = replay(&parts, catalogue, increment).await {
            return Ok(Err((increment.id, why)));
        }
    }
    Ok(Ok(()))
}

/// Where parts come from.
struct Parts<'a> {
    ground: &'a Ground,
    sightings: &'a Sightings,
}

impl Parts<'_> {
    async fn read(&self, export: &Export, stripe: &StripeId) -> Result<Part, String> {
        let seen = self.sightings.get(stripe).ok_or("a part has gone")?;
        // Compared with the pack's id, so that what comes is right or wrong for good.
        let bytes = insist(|| fetch(self.ground, seen)).await?;
        let part = Part::decode(bytes).map_err(|why| why.to_string())?;
        let header = &part.header;
        let is = (header.export, header.era, header.to, header.state_hash);
        let same = is == (export.id, export.era, export.to, export.state_hash);
        if same { Ok(part) } else { Err("a part is not what it began as".into()) }
    }
}

/// Makes a base the live catalogue.
async fn stage(
    parts: &Parts<'_>,
    catalogue: &Catalogue,
    base: &Export,
) -> Result<Result<(), String>, CatalogueError> {
    let mut reader = ImageReader::begin(catalogue)?;
    let mut count = 0;
    for stripe in &base.parts {
        let rows = match parts.read(base, stripe).await {
            Ok(part) => part.rows().map_err(|why| why.to_string()),
            Err(why) => Err(why),
        };
        let rows = match rows {
            Ok(rows) => rows,
            Err(why) => return Ok(Err(why)),
        };
        count += rows.len() as u64;
        for page in rows.chunks(PAGE_ROWS_MAX) {
            match reader.add_page(page) {
                Err(CatalogueError::Kv(failed)) => return Err(failed.into()),
                Err(bad) => return Ok(Err(bad.to_string())),
                Ok(()) => {}
            }
            tokio::task::yield_now().await;
        }
    }
    match reader.finish(count, base.state_hash) {
        Err(CatalogueError::Kv(failed)) => Err(failed.into()),
        Err(bad) => Ok(Err(bad.to_string())),
        Ok(()) if catalogue.applied() != base.to => Ok(Err("it ends at another log entry".into())),
        Ok(()) => Ok(Ok(())),
    }
}

/// Applies the log entries of an increment that are not applied yet.
async fn replay(parts: &Parts<'_>, catalogue: &Catalogue, increment: &Export) -> Result<(), String> {
    for stripe in &increment.parts {
        let part = parts.read(increment, stripe).await?;
        let mut entries = Vec::new();
        for record in part.records() {
            let record = record.ok_or("a record is cut short")?;
            let entry = open_entry(&record).map_err(|why| why.to_string())?;
            if entry.log_id.index > catalogue.applied() {
                entries.push(entry);
            }
        }
        let first = catalogue.applied() + 1;
        if entries.iter().zip(first..).any(|(entry, index)| entry.log_id.index != index) {
            return Err("its log entries do not follow each other".into());
        }
        Machine::replay(catalogue, &entries)?;
        tokio::task::yield_now().await;
    }
    let view = catalogue.view().map_err(|why| why.to_string())?;
    if view.applied() != increment.to || view.state_hash() != increment.state_hash {
        return Err(format!(
            "after log entry {} the state hashes to {}, not to {}",
            view.applied(),
            view.state_hash(),
            increment.state_hash
        ));
    }
    Ok(())
}
