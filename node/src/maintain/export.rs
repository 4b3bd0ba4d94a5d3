//! Exports of the catalogue into the shard stores of all nodes, for the day on which every replica is lost. The leader
//! makes them, on a schedule (`plan/export.rs`) and when an operator asks. Each is recorded when all of it is durable;
//! what is not recorded may still be found by a rebuild, since each part says what it is.

use super::Shared;
use crate::catalogue::part::export_tag;
use crate::catalogue::{ImageWriter, PartBuilder, PartHeader, View};
use crate::plan::export::{Export, ExportView, export_scheme, plan_export};
use crate::raft::reseat::seal_entry;
use crate::raft::types::{Entry, EntryPayload, Payload};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
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
use std::sync::Arc;
use std::time::Duration;

/// One export is made at a time.
#[derive(Default)]
pub struct Exports(tokio::sync::Mutex<()>);

/// Exports the whole catalogue now, for an operator.
pub async fn export_now(shared: &Shared) -> Result<ExportRecord, WorkFailed> {
    if shared.leading().is_none() {
        return Err(WorkFailed("this node does not lead".into()));
    }
    let _one = shared.exports.0.lock().await;
    make(shared, Export::Base).await
}

/// Sees to an export of everything up to a log entry, unless exports are off.
pub async fn reach(shared: &Shared, index: u64) -> Result<(), WorkFailed> {
    if shared.timing.export_every.is_zero() {
        return Ok(());
    }
    let _one = shared.exports.0.lock().await;
    let newest = shared.view()?.exports()?.last().map(|export| export.to);
    let what = match newest {
        Some(to) if to >= index => return Ok(()),
        Some(from) if shared.consensus.entries(from + 1)?.is_some() => Export::Increment { from },
        _ => Export::Base,
    };
    make(shared, what).await.map(drop)
}

async fn make(shared: &Shared, what: Export) -> Result<ExportRecord, WorkFailed> {
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

/// The worker.
pub struct Exporter {
    shared: Arc<Shared>,
    /// Entries up to this one bring nothing that is worth an export, if those before `since` do not.
    dull: u64,
    since: u64,
}

impl Exporter {
    /// Looks at once.
    pub fn new(shared: Arc<Shared>) -> Self {
        Exporter { shared, dull: 0, since: 0 }
    }

    /// Whether the log has brought anything after entry `from`. Exports themselves are no news, or each would be a
    /// reason for the next.
    fn news(&mut self, from: u64, to: u64) -> Result<bool, WorkFailed> {
        if from != self.since || self.dull < from {
            (self.since, self.dull) = (from, from);
        }
        while self.dull < to {
            // What was purged cannot be looked at; it was something.
            let Some(entries) = self.shared.consensus.entries(self.dull + 1)? else { return Ok(true) };
            for entry in &entries {
                if entry.log_id.index > to {
                    return Ok(false);
                }
                if is_news(entry) {
                    return Ok(true);
                }
                self.dull = entry.log_id.index;
            }
            if entries.is_empty() {
                return Ok(false);
            }
        }
        Ok(false)
    }

    fn plan(&mut self) -> Result<Option<Export>, WorkFailed> {
        let view = self.shared.view()?;
        if view.cluster().is_none() {
            return Ok(None);
        }
        let exports = view.exports()?;
        let news = match exports.last() {
            Some(newest) => self.news(newest.to, view.applied())?,
            None => true,
        };
        let planned = plan_export(&ExportView {
            exports: &exports,
            nodes: &view.nodes()?,
            news,
            now_ms: self.shared.host.clock.now_ms(),
            every_ms: self.shared.timing.export_every.as_millis() as u64,
        });
        match planned {
            Some(Export::Increment { from }) if self.shared.consensus.entries(from + 1)?.is_none() => {
                Ok(Some(Export::Base))
            }
            planned => Ok(planned),
        }
    }
}

fn is_news(entry: &Entry) -> bool {
    let EntryPayload::Normal(payload) = &entry.payload else { return false };
    !matches!(Payload::open(payload), Ok(proposed) if matches!(proposed.command, Command::RecordExport { .. }))
}

#[async_trait]
impl Worker for Exporter {
    fn name(&self) -> &'static str {
        "export"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if self.shared.leading().is_none() || self.shared.timing.export_every.is_zero() {
            return Ok(Pace::Idle);
        }
        let shared = self.shared.clone();
        let _one = shared.exports.0.lock().await;
        if let Some(what) = self.plan()? {
            make(&shared, what).await?;
        }
        Ok(Pace::Idle)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.export_every.clamp(LOOK_MIN, LOOK_MAX) / 4).await;
    }
}

/// A look costs little, and a worker that need not export looks whether it has become leader.
const LOOK_MIN: Duration = Duration::from_millis(400);
const LOOK_MAX: Duration = Duration::from_secs(60);
