//! The audit at every start: squares the index with the files and finishes or undoes what a crash left half done. It
//! reads headers only; whole shards are the scrubber's work. It removes temp files, and never a shard.

use super::get::is_damage;
use super::index::{self, Entry, Index};
use super::{SHARDS_DIR, StoreError, TEMP_DIR, id_of_name, shard_dir, uncut};
use farshore_core::host::Host;
use farshore_core::id::{ClusterId, ShardId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::shard::{SHARD_HEADER_BYTES, ShardHeader, file_len};
use futures_util::stream::{self, StreamExt, TryStreamExt};
use std::collections::BTreeMap;

/// What the audit found and did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AuditReport {
    /// Shards now in the index, bad ones included.
    pub shards: u64,
    /// Bytes of their files.
    pub used: u64,
    /// Files that had no entry and were taken in by their header, bad ones included.
    pub adopted: u64,
    /// Unfinished uploads removed.
    pub temps_removed: u64,
    /// Files below `shards/` that are no shards; left alone.
    pub strangers: u64,
    /// Shards the index knew whose file is gone. The catalogue should be told.
    pub missing: Vec<ShardId>,
    /// Shards whose file is damaged, now or already before. The catalogue should be told.
    pub bad: Vec<ShardId>,
    /// The index was unreadable, or empty although there are shards, and was made anew: `missing` cannot tell what was
    /// lost, and the sessions of the shards are forgotten.
    pub rebuilt: bool,
}

/// Directories squared side by side, on all processors: the files of one are listed while the index is read for another.
/// Memory is theirs.
const DIRS_AT_ONCE: usize = 4;
/// Entries written in one batch. Larger ones make the engine many times slower and take gigabytes for a million shards.
const ENTRIES_A_BATCH: usize = 256;
/// Headers read side by side, of each directory.
const HEADERS_AT_ONCE: usize = 16;

impl AuditReport {
    fn add(&mut self, part: AuditReport) {
        self.shards += part.shards;
        self.used += part.used;
        self.adopted += part.adopted;
        self.strangers += part.strangers;
        self.missing.extend(part.missing);
        self.bad.extend(part.bad);
    }
    fn count(&mut self, id: ShardId, entry: &Entry) {
        self.shards += 1;
        self.used += entry.file_len;
        if entry.bad {
            self.bad.push(id);
        }
    }
}

/// Squares index and files, a few directories at a time so that memory stays small.
pub(super) async fn audit(host: &Host, cluster: ClusterId, index: &Index) -> Result<AuditReport, StoreError> {
    let mut report = AuditReport::default();
    remove_temps(host, &mut report).await?;
    let filled = host.disk.filled(SHARDS_DIR).await?;
    let is_empty = |first: u8| filled.as_ref().is_some_and(|dirs| !dirs.contains(&format!("{first:02x}/")));
    let dirs = (0..=u8::MAX).map(|first| {
        let (host, index, is_empty) = (host.clone(), index.clone(), is_empty(first));
        uncut(async move { square(&host, cluster, &index, first, is_empty).await })
    });
    let (mut squared, mut failed) = (stream::iter(dirs).buffered(DIRS_AT_ONCE), Ok(()));
    // To the end in any case: while one of them is at work, the index is in use and cannot be thrown away.
    while let Some(part) = squared.next().await {
        match part {
            Ok(part) => report.add(part),
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed?;
    report.rebuilt = !index.is_formed()? && report.adopted > 0;
    index.set_formed()?;
    index.flush().await?;
    Ok(report)
}

/// Squares one directory with its part of the index.
async fn square(
    host: &Host,
    cluster: ClusterId,
    index: &Index,
    first: u8,
    is_empty: bool,
) -> Result<AuditReport, StoreError> {
    let mut report = AuditReport::default();
    let names = if is_empty { vec![] } else { host.disk.list_sized(&shard_dir(first)).await? };
    let mut entries = entries_under(index, first)?;
    let mut asked = vec![];
    for (name, len) in names {
        let Some(id) = id_of_name(&name).filter(|id| id.stripe.0[0] == first) else {
            report.strangers += 1;
            continue;
        };
        let len = match len {
            Some(len) => len,
            None => host.disk.len(&super::file_name(id)).await?.unwrap_or(0),
        };
        match entries.remove(&id) {
            Some(entry) if entry.file_len == len && entry.payload_len > 0 => report.count(id, &entry),
            // Cut, grown, unreadable before, or replaced just before a crash: the file itself is asked again.
            Some(old) => asked.push((id, len, old.session)),
            None => {
                report.adopted += 1;
                asked.push((id, len, None));
            }
        }
    }
    let adopting = asked.into_iter().map(async |(id, len, session)| {
        let entry = Entry { session, ..adopt(host, cluster, id, len).await? };
        Ok::<_, StoreError>((id, entry))
    });
    let mut adopted = stream::iter(adopting).buffered(HEADERS_AT_ONCE);
    let mut changes = vec![];
    while let Some((id, entry)) = adopted.try_next().await? {
        report.count(id, &entry);
        changes.push(index::set(id, &entry));
    }
    if !changes.is_empty() {
        // The process that put these files may have died before their names were durable; a receipt for a
        // repeated put will vouch for them.
        host.disk.sync_dir(&shard_dir(first)).await?;
    }
    changes.extend(entries.keys().map(|id| index::forget(*id)));
    report.missing.extend(entries.into_keys());
    while !changes.is_empty() {
        let rest = changes.split_off(changes.len().min(ENTRIES_A_BATCH));
        index.write(std::mem::replace(&mut changes, rest))?;
    }
    Ok(report)
}

async fn remove_temps(host: &Host, report: &mut AuditReport) -> Result<(), StoreError> {
    for name in host.disk.list(TEMP_DIR).await? {
        host.disk.remove(&format!("{TEMP_DIR}/{name}")).await?;
        report.temps_removed += 1;
    }
    Ok(host.disk.sync_dir(TEMP_DIR).await?)
}

fn entries_under(index: &Index, first: u8) -> Result<BTreeMap<ShardId, Entry>, StoreError> {
    let mut entries = BTreeMap::new();
    loop {
        let after = entries.last_key_value().map(|(id, _)| *id);
        let page = index.list_under(first, after, PAGE_ROWS_MAX)?;
        if page.is_empty() {
            return Ok(entries);
        }
        entries.extend(page);
    }
}

/// The entry that a file's header asks for. The payload is checked when it is read.
pub(super) async fn adopt(
    host: &Host,
    cluster: ClusterId,
    id: ShardId,
    len: u64,
) -> Result<Entry, StoreError> {
    let bytes = match host.disk.read(&super::file_name(id), 0, SHARD_HEADER_BYTES).await {
        // One bad sector must not keep a node with a million good shards from starting.
        Err(e) if is_damage(&e) => return Ok(Entry::unreadable(len)),
        read => read?,
    };
    let header =
        ShardHeader::decode(&bytes).ok().filter(|header| header.id == id && header.cluster == cluster);
    let Some(header) = header else { return Ok(Entry::unreadable(len)) };
    Ok(Entry { file_len: len, bad: len != file_len(header.payload_len), ..Entry::of(&header, None, 0) })
}
