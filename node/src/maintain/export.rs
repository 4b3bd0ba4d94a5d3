//! Makes an export of the catalogue: codes it into the shard stores of all nodes, for the day on which every replica is
//! lost. It is recorded when all of it is durable; what is not recorded may still be found by a rebuild, since each part
//! says what it is. When one is made is `exporter.rs`.

use super::Shared;
use crate::catalogue::part::export_tag;
use crate::catalogue::{ImageWriter, PartBuilder, PartHeader, View};
use crate::plan::export::{Export, export_scheme};
use crate::raft::reseat::seal_entry;
use crate::worker::WorkFailed;
use bytes::Bytes;
use farshore_core::catalogue::{Command, EXPORT_REPO, ExportPart, ExportRecord};
use farshore_core::erasure::{Codec, Scheme};
use farshore_core::host::{compute, random};
use farshore_core::id::{ClusterId, ExportId, PackId};
use farshore_core::limits::{EXPORT_MAKE_MS, EXPORT_PARTS_MAX};
use farshore_core::peer::ShardPut;
use farshore_core::placement::Candidate;
use farshore_core::scatter::{floor_holds, scatter};
use farshore_core::shard::{PackInfo, hash_shard};
use std::collections::BTreeSet;
use std::time::Duration;

/// Makes an export and records it.
pub async fn make(shared: &Shared, what: Export) -> Result<ExportRecord, WorkFailed> {
    let made = async {
        match what {
            Export::Base => base(shared).await,
            Export::Increment { from } => increment(shared, from).await,
        }
    };
    // What is recorded later than this may have been taken for left over (`orphans.rs`).
    let made = tokio::time::timeout(Duration::from_millis(EXPORT_MAKE_MS), made).await;
    let export = made.map_err(|_| WorkFailed("the export takes too long".into()))??;
    shared.propose_leading(Command::RecordExport { export: export.clone() }).await?;
    tracing::info!(base = export.base, to = export.to, bytes = export.bytes, "catalogue exported");
    Ok(export)
}

async fn base(shared: &Shared) -> Result<ExportRecord, WorkFailed> {
    let mut writer = ImageWriter::begin(shared.consensus.catalogue())?;
    let mut sending = Sending::begin(shared, &writer.view()?, None)?;
    while let Some(page) = writer.next_page()? {
        for row in &page {
            sending.make_room().await?;
            sending.builder.push_row(row);
        }
    }
    sending.end().await
}

async fn increment(shared: &Shared, from: u64) -> Result<ExportRecord, WorkFailed> {
    let view = shared.view()?;
    let mut sending = Sending::begin(shared, &view, Some(from))?;
    let mut next = from + 1;
    while next <= view.applied() {
        let entries = shared.consensus.entries(next)?.unwrap_or_default();
        if entries.is_empty() {
            return Err(WorkFailed(format!("log entry {next} was purged before it was exported")));
        }
        for entry in entries.iter().filter(|entry| entry.log_id.index <= view.applied()) {
            sending.make_room().await?;
            sending.builder.push(&[&seal_entry(entry)]);
            next = entry.log_id.index + 1;
        }
    }
    sending.end().await
}

/// An export on its way.
struct Sending<'a> {
    shared: &'a Shared,
    scheme: Scheme,
    candidates: Vec<Candidate>,
    /// Single nodes whose loss each part must survive.
    floor: u8,
    header: PartHeader,
    builder: PartBuilder,
    record: ExportRecord,
}

impl<'a> Sending<'a> {
    /// An export of what `view` shows: all of it, or what came after entry `from`.
    fn begin(shared: &'a Shared, view: &View, from: Option<u64>) -> Result<Self, WorkFailed> {
        let nodes = view.nodes()?.into_iter().filter(|node| node.takes_shards());
        let candidates: Vec<Candidate> = nodes
            .map(|node| Candidate { id: node.id, region: node.region, capacity: node.capacity })
            .collect();
        let regions: BTreeSet<&str> = candidates.iter().map(|node| node.region.as_str()).collect();
        let export = ExportId(random(shared.host.entropy.as_ref()));
        let counts = view.counts();
        let exports = view.exports()?;
        let before = exports.iter().rev().find(|export| Some(export.to) == from);
        let after = before.map(|export| export_tag(export.id)).unwrap_or_default();
        let (base, from, to, time_ms) = (from.is_none(), from.unwrap_or(0), view.applied(), view.time_ms());
        let header = PartHeader {
            cluster: shared.cluster,
            export,
            base,
            last: false,
            number: 0,
            from,
            to,
            time_ms,
            state_hash: view.state_hash(),
            snapshots: counts.snapshots,
            packs: counts.packs,
            era: shared.consensus.era().unwrap_or(0),
            after,
        };
        let made_ms = shared.host.clock.now_ms();
        let record =
            ExportRecord { id: export, base, from, to, time_ms, made_ms, bytes: 0, parts: Vec::new() };
        let scheme = export_scheme(candidates.len(), regions.len());
        let floor = u8::from(candidates.len() > 1);
        Ok(Sending { shared, scheme, floor, header, builder: PartBuilder::default(), record, candidates })
    }

    /// Sends the part that is full.
    async fn make_room(&mut self) -> Result<(), WorkFailed> {
        if self.builder.is_full() { self.send(false).await } else { Ok(()) }
    }

    async fn end(mut self) -> Result<ExportRecord, WorkFailed> {
        self.send(true).await?;
        Ok(self.record)
    }

    async fn send(&mut self, last: bool) -> Result<(), WorkFailed> {
        let header = PartHeader { last, ..self.header };
        self.header.number += 1;
        if self.record.parts.len() >= EXPORT_PARTS_MAX {
            return Err(WorkFailed(format!("the catalogue needs more than {EXPORT_PARTS_MAX} parts")));
        }
        let part = std::mem::take(&mut self.builder).close(&header);
        let len = part.len() as u64;
        let (cluster, scheme) = (self.shared.cluster, self.scheme);
        let coded = compute(self.shared.host.compute.as_ref(), move || encode(cluster, scheme, part)).await;
        let (pack, puts) = coded.ok_or_else(|| {
            WorkFailed("a part of the export did not decode right after coding: bad memory?".into())
        })?;
        let sent = scatter(self.shared.shards.as_ref(), &self.shared.reached, &self.candidates, &puts).await;
        if !floor_holds(&sent.shards, scheme, self.floor) {
            let why = sent.failed.last().map_or_else(String::new, |(_, error)| format!(": {error}"));
            return Err(WorkFailed(format!("too few nodes take the export{why}")));
        }
        self.record.bytes += len;
        self.record.parts.push(ExportPart { pack, len, scheme, shards: sent.shards });
        Ok(())
    }
}

/// The shards of a part; `None` if they do not give it back.
fn encode(cluster: ClusterId, scheme: Scheme, part: Bytes) -> Option<(PackId, Vec<ShardPut>)> {
    let codec = Codec::new(scheme);
    let shards = codec.encode_pack(part.clone());
    let pack = PackId::of(&part);
    let seed = pack.0.first_chunk().copied().map_or(0, u64::from_le_bytes);
    if !codec.verify_by_decoding(&shards, seed) {
        return None;
    }
    let info = PackInfo { cluster, repo: EXPORT_REPO, pack, pack_len: part.len() as u64, scheme };
    let put = |(payload, index): (Bytes, u8)| {
        let (hash, _) = hash_shard(info.shard(index), &payload);
        ShardPut { header: info.header(index, hash), payload, session: None }
    };
    Some((pack, shards.into_iter().zip(0u8..).map(put).collect()))
}
