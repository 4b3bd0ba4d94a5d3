//! Check: does every snapshot's tree walk, is every chunk of it known, and, on request, is every shard of every pack good
//! and does every chunk open. It reads everything and repairs nothing; repair is the cluster's own work.

use crate::api::{CatalogueApi, Topology};
use crate::crypto::{RepoKeys, checksum};
use crate::error::{Error, Result};
use crate::fetch::unknown;
use crate::files::RelPath;
use crate::format::content::ContentIter;
use crate::format::{ChunkSource, Node, Opener};
use crate::keyring::KeyRing;
use crate::list::{Filter, Snapshot, absolute, records, snapshots};
use crate::progress::{Event, Progress};
use crate::walk::{Step, Walk};
use bytes::{Bytes, BytesMut};
use farshore_core::catalogue::{ChunkSpan, PackRecord};
use farshore_core::gather::gather_pack;
use farshore_core::health::NodeHealth;
use farshore_core::host::{Host, compute, random};
use farshore_core::id::{ChunkId, NodeId, PackId, PackNo, SnapshotId};
use farshore_core::limits::{CHECK_PACKS_IN_FLIGHT, LOOKUP_CHUNKS_MAX};
use farshore_core::pack::{read_table, tail_len};
use farshore_core::peer::{ShardError, ShardIo};
use farshore_core::shard::ShardRange;
use futures_util::StreamExt;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What to check.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Options {
    /// Of which packs every shard is read and every chunk opened.
    pub read: Subset,
}

/// Some of the packs of a repository.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub enum Subset {
    /// None.
    #[default]
    Nothing,
    /// All.
    All,
    /// One part of several, the first being 1: after each part was read once, all was.
    Part(u64, u64),
    /// Packs drawn anew each time that come to about this.
    Sample(Share),
    /// The packs from this one on that come to this, round and round: what the last run's [`Report::next`] says.
    From(PackNo, Share),
}

/// How much.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Share {
    /// Of a hundred.
    Percent(f64),
    /// Bytes of packs.
    Bytes(u64),
}

/// Text that is no part of a repository.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no part of a repository: give N/PARTS such as 1/10, a share such as 2.5%, or a size such as 50G"
)]
pub struct BadSubset(String);

impl std::str::FromStr for Subset {
    type Err = BadSubset;
    fn from_str(text: &str) -> Result<Self, BadSubset> {
        let bad = || BadSubset(text.into());
        if let Some((part, parts)) = text.split_once('/') {
            let number = |text: &str| text.trim().parse::<u64>().map_err(|_| bad());
            let (part, parts) = (number(part)?, number(parts)?);
            return if (1..=parts).contains(&part) { Ok(Subset::Part(part, parts)) } else { Err(bad()) };
        }
        if let Some(percent) = text.strip_suffix('%') {
            let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
            return if percent > 0.0 && percent <= 100.0 {
                Ok(Subset::Sample(Share::Percent(percent)))
            } else {
                Err(bad())
            };
        }
        let size: farshore_core::units::Bytes = text.parse().map_err(|_| bad())?;
        Ok(Subset::Sample(Share::Bytes(size.0)))
    }
}

/// Decides pack by pack, in the order of their numbers.
struct Chooser {
    subset: Subset,
    /// Bytes of all packs.
    total: u64,
    /// Bytes that are still to be read; of [`Subset::From`].
    left: u64,
    salt: [u8; 16],
}

impl Chooser {
    fn new(subset: Subset, total: u64, salt: [u8; 16]) -> Self {
        let left = match subset {
            Subset::From(_, Share::Bytes(bytes)) => bytes,
            Subset::From(_, Share::Percent(percent)) => (total as f64 * percent / 100.0).ceil() as u64,
            _ => 0,
        };
        Chooser { subset, total, left, salt }
    }

    fn takes(&mut self, pack: &PackRecord) -> bool {
        match self.subset {
            Subset::Nothing => false,
            Subset::All => true,
            // Ids are hashes, so that the parts are alike whatever was stored when.
            Subset::Part(part, parts) => first_bytes(pack.id.as_bytes()) % parts == part - 1,
            Subset::Sample(share) => {
                let wanted = match share {
                    Share::Percent(percent) => percent / 100.0,
                    Share::Bytes(bytes) => bytes as f64 / self.total.max(1) as f64,
                };
                let drawn = first_bytes(&checksum(&[&self.salt, pack.id.as_bytes()]));
                (drawn as f64) < wanted * u64::MAX as f64
            }
            Subset::From(..) => {
                let takes = self.left > 0;
                self.left = self.left.saturating_sub(pack.len);
                takes
            }
        }
    }
}

fn first_bytes(bytes: &[u8]) -> u64 {
    bytes.first_chunk().copied().map_or(0, u64::from_le_bytes)
}

/// A snapshot that cannot be restored whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BrokenSnapshot {
    /// Which.
    pub id: SnapshotId,
    /// Paths and what is wrong with them, the first few.
    pub problems: Vec<(Vec<u8>, String)>,
    /// All of them.
    pub count: u64,
}

/// What can be wrong with a shard.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Trouble {
    /// Its holder does not have it, or repair still owes it.
    Missing,
    /// Its bytes are not what was written.
    Corrupt,
    /// Its holder did not answer, or answered nothing useful; the shard may be well.
    Unreachable,
}

/// A shard that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadShard {
    /// Its index in the stripe.
    pub index: u8,
    /// Name of its holder; empty if repair owes it.
    pub node: String,
    /// What is wrong with it.
    pub why: String,
    /// Which sort of trouble this is.
    pub trouble: Trouble,
}

/// A pack that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DamagedPack {
    /// Its number.
    pub no: PackNo,
    /// Its id.
    pub id: PackId,
    /// Shards that are bad, missing or out of reach.
    pub shards: Vec<BadShard>,
    /// The pack's bytes could still be put together and every chunk opens.
    pub readable: bool,
    /// What is wrong with its contents.
    pub problems: Vec<String>,
}

/// What a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Snapshots walked.
    pub snapshots: u64,
    /// Directories read; shared ones once.
    pub dirs: u64,
    /// Files whose chunks were looked for; those of shared directories once.
    pub files: u64,
    /// Packs of the repository.
    pub packs: u64,
    /// Bytes of them.
    pub pack_bytes: u64,
    /// Packs of which everything was read.
    pub packs_read: u64,
    /// Of [`Subset::From`]: where the next run goes on.
    pub next: Option<PackNo>,
    /// Packs with shards that repair still owes.
    pub under_target: u64,
    /// Packs with too few holders to be read.
    pub unreadable: u64,
    /// Shards read or verified.
    pub shards: u64,
    /// Chunks opened.
    pub chunks: u64,
    /// Bytes of packs read.
    pub bytes: u64,
    /// Snapshots that cannot be restored whole.
    pub broken: Vec<BrokenSnapshot>,
    /// Packs with damage.
    pub damaged: Vec<DamagedPack>,
}

impl Report {
    /// Whether all is well; the error says in one line what is not.
    pub fn verdict(&self) -> Result<()> {
        let lost = self.damaged.iter().filter(|pack| !pack.readable).count() as u64;
        let lost = lost.max(self.unreadable);
        if !self.broken.is_empty() || lost > 0 {
            let broken = self.broken.len();
            let what = format!("{broken} snapshots and {lost} packs cannot be read in full");
            return Err(Error::CheckFailed(what));
        }
        match self.damaged.len() {
            0 => Ok(()),
            damaged => Err(Error::CheckFailed(format!(
                "{damaged} packs have bad, missing or unreachable shards, all still readable; the cluster repairs them, check again later"
            ))),
        }
    }
}

/// Where a check reads.
pub struct Context {
    /// Processors.
    pub host: Host,
    /// The catalogue.
    pub api: Arc<dyn CatalogueApi>,
    /// Shards.
    pub shards: Arc<dyn ShardIo>,
    /// Keys of the repository.
    pub ring: Arc<KeyRing>,
    /// The trees.
    pub trees: Arc<dyn ChunkSource>,
}

/// Problems listed per snapshot; the rest is counted.
const PROBLEMS_MAX: usize = 100;

/// Checks a repository. Damage is in the report; an error means that the check could not be carried through.
pub async fn run(context: &Context, options: Options, progress: &dyn Progress) -> Result<Report> {
    let mut report = Report::default();
    // First the packs: then the walk can name every file that lies in a lost one.
    let lost = packs(context, options, &mut report, progress).await?;
    structure(context, &lost, &mut report, progress).await?;
    Ok(report)
}

/// Walks every snapshot. Directories that a sound snapshot has shown to be sound are not walked again; memory grows by
/// one id for each.
async fn structure(
    context: &Context,
    lost: &BTreeMap<PackNo, PackId>,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    let mut sound = BTreeSet::new();
    for snapshot in snapshots(context.api.as_ref(), context.ring.keys(), &Filter::default()).await? {
        report.snapshots += 1;
        let mut look = Look {
            context,
            lost,
            sound: &sound,
            visited: BTreeSet::new(),
            asked: Vec::new(),
            found: vec![],
            count: 0,
        };
        look.snapshot(&snapshot, report).await?;
        let Look { visited, found, count, .. } = look;
        if count == 0 {
            sound.extend(visited);
            continue;
        }
        // Forgotten meanwhile, it needs nothing any more.
        let listed = records(context.api.as_ref(), context.ring.keys(), false).await?;
        if !listed.iter().any(|(record, _)| record.id == snapshot.id) {
            report.snapshots -= 1;
            continue;
        }
        for (path, why) in &found {
            progress.event(Event::Problem { path, why });
        }
        report.broken.push(BrokenSnapshot { id: snapshot.id, problems: found, count });
    }
    Ok(())
}

/// The walk of one snapshot.
struct Look<'a> {
    context: &'a Context,
    /// Packs that cannot be read.
    lost: &'a BTreeMap<PackNo, PackId>,
    sound: &'a BTreeSet<ChunkId>,
    visited: BTreeSet<ChunkId>,
    /// Chunks not looked up yet, with the file that needs them.
    asked: Vec<(ChunkId, Arc<RelPath>)>,
    found: Vec<(Vec<u8>, String)>,
    count: u64,
}

impl Look<'_> {
    async fn snapshot(&mut self, snapshot: &Snapshot, report: &mut Report) -> Result<()> {
        if self.sound.contains(&snapshot.info.root) {
            return Ok(());
        }
        self.visited.insert(snapshot.info.root);
        report.dirs += 1;
        let mut walk = Walk::new(self.context.trees.clone(), snapshot.info.root);
        while let Some(step) = walk.next().await {
            let (path, entry) = match step {
                Step::Entry(path, entry) => (path, entry),
                Step::Leave(_) => continue,
                Step::Broken(path, error) => {
                    self.passing(error, &path)?;
                    continue;
                }
            };
            match entry.node {
                Node::Dir { root } if self.sound.contains(&root) || !self.visited.insert(root) => walk.skip(),
                Node::Dir { .. } => report.dirs += 1,
                Node::File { size, content } => {
                    report.files += 1;
                    let chunks = ContentIter::new(self.context.trees.clone(), &content);
                    self.file(Arc::new(path), size, chunks).await?;
                }
                _ => {}
            }
        }
        self.look_up().await
    }

    async fn file(&mut self, path: Arc<RelPath>, size: u64, mut chunks: ContentIter) -> Result<()> {
        loop {
            match chunks.next().await {
                Ok(Some(placed)) => self.asked.push((placed.id, path.clone())),
                Ok(None) if chunks.offset() == size => break,
                Ok(None) => {
                    self.problem(&path, "its chunks do not make up its length".into());
                    break;
                }
                Err(error) => {
                    self.passing(error, &path)?;
                    break;
                }
            }
            if self.asked.len() >= LOOKUP_CHUNKS_MAX {
                self.look_up().await?;
            }
        }
        Ok(())
    }

    async fn look_up(&mut self) -> Result<()> {
        let asked = std::mem::take(&mut self.asked);
        for batch in asked.chunks(LOOKUP_CHUNKS_MAX) {
            let ids: Vec<_> = batch.iter().map(|(id, _)| *id).collect();
            let located = self.context.api.locate(self.context.ring.keys().repo(), &ids).await?;
            for ((id, path), place) in batch.iter().zip(&located.places) {
                let lost = place.and_then(|place| self.lost.get(&place.pack));
                if place.is_none() {
                    self.problem(path, unknown(id).to_string());
                } else if let Some(pack) = lost {
                    self.problem(path, format!("it lies in pack {}, which cannot be read", pack.short()));
                }
            }
        }
        Ok(())
    }

    /// A cluster out of reach is no damage; it ends the check.
    fn passing(&mut self, error: Error, path: &RelPath) -> Result<()> {
        match error {
            Error::Corrupt { .. } | Error::Unreadable { .. } | Error::Protocol(_) => {
                self.problem(path, error.to_string());
                Ok(())
            }
            other => Err(other),
        }
    }

    fn problem(&mut self, path: &RelPath, why: String) {
        self.count += 1;
        if self.found.len() < PROBLEMS_MAX {
            self.found.push((absolute(&RelPath::root(), path), why));
        }
    }
}

/// Goes through all packs, a page at a time.
async fn packs(
    context: &Context,
    options: Options,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<BTreeMap<PackNo, PackId>> {
    let topology = context.api.topology().await?;
    let mut lost = BTreeMap::new();
    let mut from = Some(PackNo(0));
    while let Some(next) = from {
        let page = context.api.list_packs(context.ring.keys().repo(), next).await?;
        from = page.next;
        for pack in &page.packs {
            let held = pack.stripe.shards.iter().filter(|s| s.node.is_some()).count();
            report.packs += 1;
            report.pack_bytes += pack.len;
            report.under_target += u64::from(held < pack.stripe.scheme.n());
            if held < pack.stripe.scheme.k() {
                report.unreadable += 1;
                lost.insert(pack.no, pack.id);
            }
        }
    }
    let salt = random(context.host.entropy.as_ref());
    let mut chooser = Chooser::new(options.read, report.pack_bytes, salt);
    match options.read {
        Subset::Nothing => {}
        // To the end and from the beginning on, until enough was read or all.
        Subset::From(start, _) => {
            let (end, next) = read(context, &topology, &mut chooser, (start, None), report, progress).await?;
            report.next = next;
            if end && chooser.left > 0 && start > PackNo(0) {
                let range = (PackNo(0), Some(start));
                report.next = read(context, &topology, &mut chooser, range, report, progress).await?.1;
            }
            report.next = Some(report.next.unwrap_or(PackNo(0)));
        }
        _ => drop(read(context, &topology, &mut chooser, (PackNo(0), None), report, progress).await?),
    }
    lost.extend(report.damaged.iter().filter(|pack| !pack.readable).map(|pack| (pack.no, pack.id)));
    Ok(lost)
}

/// Reads what is chosen of a range of packs. Whether the range came to its end, and the first pack that was not reached.
async fn read(
    context: &Context,
    topology: &Topology,
    chooser: &mut Chooser,
    (start, end): (PackNo, Option<PackNo>),
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<(bool, Option<PackNo>)> {
    // Its own: what a node failed at before the check began must not count as a finding of the check.
    let health = NodeHealth::new();
    let mut from = Some(start);
    while let Some(next) = from {
        let page = context.api.list_packs(context.ring.keys().repo(), next).await?;
        from = page.next;
        let mut chosen = Vec::new();
        for pack in page.packs {
            if end.is_some_and(|end| pack.no >= end) {
                read_packs(context, &health, topology, chosen, report, progress).await?;
                return Ok((true, None));
            }
            let stop = matches!(chooser.subset, Subset::From(..)) && chooser.left == 0;
            if stop {
                let no = pack.no;
                read_packs(context, &health, topology, chosen, report, progress).await?;
                return Ok((false, Some(no)));
            }
            if chooser.takes(&pack) {
                chosen.push(pack);
            }
        }
        read_packs(context, &health, topology, chosen, report, progress).await?;
    }
    Ok((true, None))
}

async fn read_packs(
    context: &Context,
    health: &NodeHealth,
    topology: &Topology,
    chosen: Vec<PackRecord>,
    report: &mut Report,
    progress: &dyn Progress,
) -> Result<()> {
    report.packs_read += chosen.len() as u64;
    // By value: a closure over a reference would make the whole future one that cannot move between threads.
    let mut reads = futures_util::stream::iter(chosen)
        .map(|pack| deep(context, health, topology, pack))
        .buffered(CHECK_PACKS_IN_FLIGHT);
    while let Some(seen) = reads.next().await {
        let Seen { shards, chunks, bytes, damage } = seen?;
        report.shards += shards;
        report.chunks += chunks;
        report.bytes += bytes;
        progress.event(Event::Bytes { bytes });
        if let Some(damage) = damage
            && is_there(context, damage.no).await?
        {
            report.damaged.push(damage);
        }
    }
    Ok(())
}

/// Whether a pack has not been collected as garbage since it was listed.
async fn is_there(context: &Context, no: PackNo) -> Result<bool> {
    let page = context.api.list_packs(context.ring.keys().repo(), no).await?;
    Ok(page.packs.first().is_some_and(|pack| pack.no == no))
}

/// What one pack showed.
struct Seen {
    shards: u64,
    chunks: u64,
    bytes: u64,
    damage: Option<DamagedPack>,
}

/// Reads the data shards of a pack, has the parity shards re-read by their nodes, and opens every chunk.
async fn deep(context: &Context, health: &NodeHealth, topology: &Topology, pack: PackRecord) -> Result<Seen> {
    let pack = &pack;
    let (mut data, mut bad) = (Vec::new(), Vec::new());
    let reads = (0..pack.stripe.shards.len() as u8).map(|index| shard(context, health, pack, index));
    for (index, read) in futures_util::future::join_all(reads).await.into_iter().enumerate() {
        match read {
            Ok(payload) => data.extend(payload),
            Err((node, error)) => bad.push(describe(topology, index as u8, node, &error)),
        }
    }
    let whole = if data.len() == pack.stripe.scheme.k() {
        Ok(join(&data, pack.len))
    } else {
        again(context, health, pack).await
    };
    drop(data);
    let (mut chunks, mut problems) = (0, Vec::new());
    match whole {
        Ok(bytes) => {
            let mut opened = take_apart(context, pack, bytes.clone()).await;
            if let Some(error) = opened.later.take()
                && context.ring.learn_for(&error).await
            {
                opened = take_apart(context, pack, bytes).await;
            }
            chunks = opened.spans.len() as u64;
            problems = opened.problems;
            compare(context, pack, &opened.spans, &mut problems).await?;
        }
        Err(why) => problems.push(why),
    }
    let damage = (!bad.is_empty() || !problems.is_empty()).then_some(DamagedPack {
        no: pack.no,
        id: pack.id,
        readable: problems.is_empty(),
        shards: bad,
        problems,
    });
    Ok(Seen { shards: pack.stripe.shards.len() as u64, chunks, bytes: pack.len, damage })
}

/// One shard: its payload if it is a data shard, nothing if it is parity and good.
async fn shard(
    context: &Context,
    health: &NodeHealth,
    pack: &PackRecord,
    index: u8,
) -> Result<Option<Bytes>, (Option<NodeId>, Option<ShardError>)> {
    let record = pack.stripe.shards.get(usize::from(index));
    let (Some(node), Some(reference)) = (record.and_then(|r| r.node), pack.stripe.shard(pack.repo, index))
    else {
        return Err((None, None));
    };
    let failed = |error: ShardError| {
        health.note(node, &error);
        (Some(node), Some(error))
    };
    // A dead node costs one timeout now and then, not one per pack.
    if !health.readable(node) {
        return Err((
            Some(node),
            Some(ShardError::Unreachable(
                node,
                "it did not answer a moment ago and was not asked again".into(),
            )),
        ));
    }
    if usize::from(index) >= pack.stripe.scheme.k() {
        return context.shards.verify(node, reference).await.map(|()| None).map_err(failed);
    }
    let all = [ShardRange { offset: 0, len: pack.stripe.shard_len }];
    let mut parts = context.shards.get(node, reference, &all).await.map_err(failed)?;
    Ok(parts.pop())
}

fn describe(topology: &Topology, index: u8, node: Option<NodeId>, error: &Option<ShardError>) -> BadShard {
    BadShard {
        index,
        node: node.map(|node| topology.name_of(node)).unwrap_or_default(),
        why: error.as_ref().map_or_else(|| "repair still owes it".into(), ToString::to_string),
        trouble: match error {
            None | Some(ShardError::Missing(..)) => Trouble::Missing,
            Some(ShardError::Corrupt(..)) => Trouble::Corrupt,
            Some(_) => Trouble::Unreachable,
        },
    }
}

/// The pack's bytes when not all data shards are good.
async fn again(context: &Context, health: &NodeHealth, pack: &PackRecord) -> Result<Bytes, String> {
    let io = context.shards.as_ref();
    gather_pack(io, &pack.stripe, pack.repo, pack.len, None, &|_| 0, health)
        .await
        .map(|gathered| gathered.bytes)
        .map_err(|e| e.to_string())
}

fn join(data: &[Bytes], pack_len: u64) -> Bytes {
    let mut whole = BytesMut::with_capacity(data.iter().map(Bytes::len).sum());
    data.iter().for_each(|shard| whole.extend_from_slice(shard));
    whole.truncate(pack_len as usize);
    whole.freeze()
}

/// A pack taken apart.
struct Opened {
    spans: Vec<ChunkSpan>,
    problems: Vec<String>,
    /// A chunk of it needs later keys.
    later: Option<Error>,
}

async fn take_apart(context: &Context, pack: &PackRecord, bytes: Bytes) -> Opened {
    let (keys, record) = (context.ring.keys().clone(), pack.clone());
    compute(context.host.compute.as_ref(), move || open_pack(&keys, &record, &bytes)).await
}

/// Checks the pack's id and table and opens every chunk.
fn open_pack(keys: &RepoKeys, pack: &PackRecord, bytes: &Bytes) -> Opened {
    let mut problems = Vec::new();
    if PackId::of(bytes) != pack.id {
        problems.push("its bytes do not have its id, though its shards match the catalogue".into());
    }
    let tail = bytes.len().saturating_sub(tail_len(pack.chunks) as usize);
    let table = match read_table(&bytes[tail..], pack.len) {
        Ok(table) => table,
        Err(error) => {
            problems.push(error.to_string());
            return Opened { spans: Vec::new(), problems, later: None };
        }
    };
    if table.kind != pack.kind || table.chunks.len() != pack.chunks as usize {
        problems.push("its chunk table is not the one in the catalogue".into());
    }
    let (mut opener, mut later) = (Opener::new(), None);
    for span in &table.chunks {
        let end = span.offset as usize + span.len as usize;
        let opened = match bytes.get(span.offset as usize..end) {
            Some(sealed) => opener.check(keys, table.kind, &span.id, sealed),
            None => Err(Error::corrupt("pack", "a chunk ends after it")),
        };
        let Err(error) = opened else { continue };
        problems.push(error.to_string());
        if matches!(error, Error::LaterKeys { .. }) {
            later = Some(error);
        }
    }
    Opened { spans: table.chunks, problems, later }
}

/// Every chunk of the table must be known, and those the catalogue places here must lie where the table says.
async fn compare(
    context: &Context,
    pack: &PackRecord,
    spans: &[ChunkSpan],
    problems: &mut Vec<String>,
) -> Result<()> {
    for batch in spans.chunks(LOOKUP_CHUNKS_MAX) {
        let ids: Vec<_> = batch.iter().map(|span| span.id).collect();
        let located = context.api.locate(pack.repo, &ids).await?;
        for (span, place) in batch.iter().zip(&located.places) {
            match place {
                // Dead chunks are forgotten before their pack is compacted.
                None => {}
                Some(place) if place.pack != pack.no => {}
                Some(place) if (place.offset, place.len) == (span.offset, span.len) => {}
                Some(_) => {
                    problems.push(format!("chunk {} lies elsewhere than the catalogue says", span.id.short()))
                }
            }
        }
    }
    Ok(())
}
