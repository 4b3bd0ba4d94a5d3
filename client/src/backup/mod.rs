//! A backup, read this first: base → scan → keep → read → tree → dedup → seal → pack → stripe → upload → commit.
//!
//! Every stage is one file and one future; bounded channels join them, and the first error ends them all. Stages wait
//! only for the stage behind them or for memory that the stages behind them free, so they cannot block each other in a
//! circle. CPU work goes through `Compute`. Memory does not grow with the source or the repository: it is the sum of
//! the limits below and two packs on their way with one of each kind filling.

pub mod ahead;
pub mod base;
pub mod checkpoint;
pub mod chunk;
pub mod commit;
pub mod dedup;
pub mod lease;
pub mod ledger;
pub mod live;
pub mod pack;
pub mod read;
pub mod report;
pub mod rules;
pub mod scan;
pub mod seal;
pub mod tree;
pub mod twins;
pub mod upload;

#[cfg(test)]
mod backup_test;

use crate::api::{CatalogueApi, SnapshotCommitted, Topology};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::files::Source;
use crate::format::tree::lookup;
use crate::format::{ChunkSource, Compression, Entry, Node, RepoConfig, SnapshotInfo, Spare};
use crate::progress::Progress;
use crate::retention::GroupBy;
use ahead::Opener;
use base::{Base, Keep, Trust};
use checkpoint::Checkpoints;
use chunk::Chunker;
use commit::Commit;
use dedup::Dedup;
use farshore_core::catalogue::{RepoRecord, SnapshotKind, SnapshotLabel, SnapshotRecord};
use farshore_core::erasure::Scheme;
use farshore_core::health::NodeHealth;
use farshore_core::host::{Host, random};
use farshore_core::id::{ChunkId, SessionId, SnapshotId};
use farshore_core::limits::SNAPSHOT_TAGS_MAX;
use farshore_core::peer::ShardIo;
use farshore_core::policy;
use farshore_core::stripe::Coding;
use lease::Lease;
use ledger::Ledger;
use pack::Fill;
use read::Read;
use report::Report;
use rules::Rules;
use scan::Scan;
use seal::{Seal, SealedChunk};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};
use tree::Tree;
use twins::Twins;
use upload::Upload;

/// Plaintext of chunks between reading and sealing, in bytes; several times the largest chunk.
const ROOM_BYTES: usize = 16 << 20;
/// The same for tree chunks between the tree and sealing. They must not share the room above: data chunks that wait in
/// front of the tree could hold all of it, while only the tree can move them on.
const TREE_ROOM_BYTES: usize = 8 << 20;
/// Packs being coded and sent. With 4+2 each takes about one and a half times its size.
const PACKS_ON_THEIR_WAY: usize = 2;
/// Steps and pieces waiting between two stages; they are small.
const STEPS_WAITING: usize = 1_024;
/// Chunks waiting between two stages; their bytes are bounded by the room.
const CHUNKS_WAITING: usize = 2_048;
/// Sealed jobs waiting for a pack.
const SEALED_WAITING: usize = 2;
/// Runs made before giving up on chunks or sessions that vanish during a run.
const ATTEMPTS: usize = 3;

const _: () = assert!(ROOM_BYTES >= farshore_core::limits::CHUNK_BYTES_MAX);
const _: () = assert!(TREE_ROOM_BYTES >= farshore_core::limits::CHUNK_BYTES_MAX);

/// Everything a backup works with.
#[derive(Clone)]
pub struct Context {
    /// Clock, randomness, processors.
    pub host: Host,
    /// The catalogue.
    pub catalogue: Arc<dyn CatalogueApi>,
    /// The nodes' shards.
    pub shards: Arc<dyn ShardIo>,
    /// Which nodes failed lately.
    pub health: Arc<NodeHealth>,
    /// The repository.
    pub repo: RepoRecord,
    /// Its keys.
    pub keys: RepoKeys,
    /// Its settings.
    pub config: RepoConfig,
    /// Reads tree chunks, for the parent's tree.
    pub chunks: Arc<dyn ChunkSource>,
    /// The tree to back up.
    pub source: Arc<dyn Source>,
    /// Who watches.
    pub progress: Arc<dyn Progress>,
}

/// What to back up and what to say about it.
#[derive(Clone, Debug)]
pub struct Options {
    /// Absolute paths without `.`, `..` and doubled slashes (`files::real_source::absolute`).
    pub paths: Vec<Vec<u8>>,
    /// How; a run that finds nothing to build on is full whatever is asked.
    pub kind: SnapshotKind,
    /// Host name.
    pub host_name: String,
    /// Who runs it.
    pub user: String,
    /// Free labels.
    pub tags: Vec<String>,
    /// Offset of local time from UTC in minutes, if known.
    pub utc_offset_min: Option<i16>,
    /// Compression, if not the repository's own.
    pub compression: Option<Compression>,
    /// What is stored is named by a checkpoint this often; [`farshore_core::limits::CHECKPOINT_MS`] if not said.
    pub checkpoint_ms: Option<u64>,
    /// What is left out.
    pub rules: Rules,
    /// What to build on.
    pub parent: Parent,
    /// What the times and the inode of a file are taken to prove.
    pub trust: Trust,
    /// Time to record for the snapshot, Unix milliseconds; the beginning of the scan if not said. A label.
    pub time_ms: Option<u64>,
    /// When the files were looked at, from and to, Unix milliseconds, if that was not now: what is copied was seen by the
    /// backup that is copied, and what was changed near that time must be read by the next copy as it was by the next backup.
    pub scanned_ms: Option<(u64, u64)>,
    /// Save no snapshot if the parent has the same at every path.
    pub skip_if_unchanged: bool,
    /// The paths are images of disks, or disks: cut evenly, and read whatever their times say.
    pub image: bool,
    /// Read, cut and count, and store nothing.
    pub dry_run: bool,
}

impl Default for Options {
    /// An incremental run of nothing.
    fn default() -> Self {
        Options {
            paths: Vec::new(),
            kind: SnapshotKind::Incremental,
            host_name: String::new(),
            user: String::new(),
            tags: Vec::new(),
            utc_offset_min: None,
            compression: None,
            checkpoint_ms: None,
            rules: Rules::default(),
            parent: Parent::Newest(GroupBy::default()),
            trust: Trust::default(),
            time_ms: None,
            scanned_ms: None,
            skip_if_unchanged: false,
            image: false,
            dry_run: false,
        }
    }
}

/// Which snapshot a run builds on, unless it is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Parent {
    /// The newest that has these things in common with the run; of a differential run the newest full one.
    Newest(GroupBy),
    /// This one.
    Snapshot(SnapshotId),
}

/// What a run did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Summary {
    /// The new snapshot; `None` if none was saved, because nothing has changed or because it was a dry run.
    pub snapshot: Option<SnapshotId>,
    /// Its description, counts and unreadable paths included.
    pub info: SnapshotInfo,
    /// Catalogue time of the commit, Unix milliseconds; 0 without a snapshot.
    pub committed_ms: u64,
    /// Code of its new packs.
    pub scheme: Scheme,
    /// Packs of this run with shards that repair owes.
    pub degraded_packs: u64,
    /// All packs of the snapshot below full strength, as the catalogue counts.
    pub under_target: u32,
}

/// Makes a snapshot. Unreadable paths do not end it: they are in the summary. A session that ends or chunks that vanish
/// meanwhile begin it again; what is stored already is not sent twice.
pub async fn run(ctx: &Context, options: &Options) -> Result<Summary> {
    if options.paths.is_empty() {
        return Err(Error::Invalid("nothing to back up: name at least one path".into()));
    }
    for _ in 1..ATTEMPTS {
        match attempt(ctx, options).await {
            Err(error @ (Error::SessionEnded(_) | Error::ChunksGone(_))) => {
                tracing::warn!(%error, "backup begins again");
            }
            done => return done,
        }
    }
    attempt(ctx, options).await
}

async fn attempt(ctx: &Context, options: &Options) -> Result<Summary> {
    let topology = ctx.catalogue.topology().await?;
    let scheme =
        policy::compile(&ctx.repo.policy, &topology.nodes).map_err(|e| Error::Policy(e.to_string()))?;
    let lease = Lease::open(&ctx.catalogue, ctx.host.entropy.as_ref(), ctx.repo.id, topology.applied).await?;
    let run = Run {
        ctx,
        options,
        topology,
        scheme,
        session: lease.id(),
        report: Report::new(ctx.progress.clone()),
    };
    let done = run.snapshot().await;
    lease.close().await;
    done
}

/// One attempt.
struct Run<'a> {
    ctx: &'a Context,
    options: &'a Options,
    topology: Topology,
    scheme: Scheme,
    session: SessionId,
    report: Report,
}

impl Run<'_> {
    async fn snapshot(&self) -> Result<Summary> {
        let Options { host_name, paths, .. } = self.options;
        let group = self.ctx.keys.group(host_name, paths);
        let base::Chosen { base, checkpoints: earlier } = base::choose(self.ctx, self.options, group).await?;
        let ledger = Ledger::default();
        let scan_start_ms = self.ctx.host.clock.now_ms();
        let checkpoints = Checkpoints::new(self.ctx, self.session, group, self.options);
        let root = tokio::select! {
            root = self.flow(base.as_ref(), &ledger) => root?,
            () = checkpoints.run(&ledger), if !self.options.dry_run => unreachable!("checkpoints are made until the flow ends"),
        };
        let unchanged = match &base {
            Some(base) if self.options.skip_if_unchanged => self.is_unchanged(base, root).await,
            _ => false,
        };
        if self.options.dry_run || unchanged {
            checkpoints.give_up().await;
            let (info, degraded_packs) = self.describe(root, base.as_ref(), scan_start_ms);
            return Ok(Summary {
                snapshot: None,
                info,
                committed_ms: 0,
                scheme: self.scheme,
                degraded_packs,
                under_target: 0,
            });
        }
        let id = SnapshotId(random(&*self.ctx.host.entropy));
        let (info, degraded_packs) = self.describe(root, base.as_ref(), scan_start_ms);
        let committed = self.commit(id, &info, group, &ledger, checkpoints.last()).await?;
        checkpoints.clear(&earlier).await;
        let SnapshotCommitted { committed_ms, under_target } = committed;
        Ok(Summary {
            snapshot: Some(id),
            info,
            committed_ms,
            scheme: self.scheme,
            degraded_packs,
            under_target,
        })
    }

    /// The stages, joined. Gives the top node of the root directory once every chunk of it has an ordinal.
    async fn flow(&self, base: Option<&Base>, ledger: &Ledger) -> Result<ChunkId> {
        let Run { ctx, report, session, .. } = self;
        let (repo, keys, catalogue) = (ctx.repo.id, &ctx.keys, &*ctx.catalogue);
        let room = Arc::new(Semaphore::new(ROOM_BYTES));
        let tree_room = Arc::new(Semaphore::new(TREE_ROOM_BYTES));
        let slots = Arc::new(Semaphore::new(PACKS_ON_THEIR_WAY));
        let (scanned_in, scanned) = mpsc::channel(STEPS_WAITING);
        let (kept_in, kept) = mpsc::channel(STEPS_WAITING);
        let (pieces_in, pieces) = mpsc::channel(STEPS_WAITING);
        let (chunks_in, chunks) = mpsc::channel(CHUNKS_WAITING);
        let (new_in, new) = mpsc::channel(CHUNKS_WAITING);
        let (sealed_in, sealed) = mpsc::channel(SEALED_WAITING);
        let (full_in, full) = mpsc::channel(PACKS_ON_THEIR_WAY);
        let (uploaded_in, uploaded) = mpsc::channel(PACKS_ON_THEIR_WAY);

        let scan = Scan {
            source: &*ctx.source,
            chunks: ctx.chunks.clone(),
            base,
            trust: self.options.trust,
            rules: &self.options.rules,
            image: self.options.image,
            report,
            out: scanned_in,
        };
        let keep = Keep { catalogue, session: *session, repo, chunks: ctx.chunks.clone(), ledger };
        let read = Read {
            opener: Opener {
                source: ctx.source.clone(),
                compute: ctx.host.compute.clone(),
                keys: keys.clone(),
                min: ctx.config.chunks.min as usize,
            },
            chunker: match self.options.image {
                true => Chunker::even(keys.gear_table().into(), ctx.config.chunks),
                false => Chunker::new(keys.gear_table().into(), ctx.config.chunks),
            },
            room: room.clone(),
            report,
            out: pieces_in,
            twins: Twins::default(),
            chunks: None,
        };
        let tree = Tree { keys: keys.clone(), room: tree_room, report, out: chunks_in };
        let dedup = Dedup {
            catalogue,
            session: *session,
            repo,
            ledger,
            report,
            room,
            room_bytes: ROOM_BYTES,
            out: new_in,
        };
        let compression = self.options.compression.unwrap_or(ctx.config.compression());
        let seal = Seal { host: &ctx.host, keys: keys.clone(), compression, out: sealed_in };
        let memory = Arc::new(Spare::default());
        let fill =
            Fill { target: ctx.config.pack_bytes as usize, slots, memory: memory.clone(), out: full_in };
        let coding =
            Coding { cluster: self.topology.cluster, repo, session: Some(*session), scheme: self.scheme };
        let upload = Upload { ctx, topology: &self.topology, coding, memory, out: uploaded_in };
        let commit = Commit { catalogue, session: *session, ledger, report };

        let store = async {
            if self.options.dry_run {
                return count(sealed, report).await;
            }
            tokio::try_join!(fill.run(sealed), upload.run(full), commit.run(uploaded)).map(drop)
        };
        let (_, _, _, root, ..) = tokio::try_join!(
            scan.run(&self.options.paths),
            keep.run(scanned, kept_in),
            read.run(kept),
            tree.run(pieces),
            dedup.run(chunks),
            seal.run(new),
            store,
        )?;
        // What a dry run does not store stays on its way.
        let pending = if self.options.dry_run { 0 } else { ledger.pending() };
        assert_eq!(pending, 0, "every chunk that was claimed is present or was committed");
        Ok(root)
    }

    /// Whether the parent has the same at every path that was asked for. What lies above them is not asked: their times
    /// change with every neighbour. Only once everything of the new tree is stored; what cannot be read has changed.
    async fn is_unchanged(&self, base: &Base, root: ChunkId) -> bool {
        let paths = |paths: &[Vec<u8>]| paths.iter().cloned().collect::<BTreeSet<_>>();
        if base.info.root == root {
            return true;
        }
        if paths(&base.info.paths) != paths(&self.options.paths) {
            return false;
        }
        for path in &self.options.paths {
            let was = entry_at(self.ctx.chunks.clone(), base.info.root, path).await;
            let now = entry_at(self.ctx.chunks.clone(), root, path).await;
            match (was, now) {
                (Ok(Some(was)), Ok(Some(now))) if was == now => {}
                _ => return false,
            }
        }
        true
    }

    fn describe(&self, root: ChunkId, base: Option<&Base>, scan_start_ms: u64) -> (SnapshotInfo, u64) {
        let (stats, unreadable, degraded) = self.report.close();
        let options = self.options;
        let scanned_ms = options.scanned_ms.unwrap_or((scan_start_ms, self.ctx.host.clock.now_ms()));
        let info = SnapshotInfo {
            time_ms: options.time_ms.unwrap_or(scan_start_ms),
            utc_offset_min: options.utc_offset_min,
            host: options.host_name.clone(),
            user: options.user.clone(),
            paths: options.paths.clone(),
            tags: options.tags.clone(),
            root,
            // Without a parent every byte was read, which is what full means.
            kind: if base.is_some() { options.kind } else { SnapshotKind::Full },
            parent: base.map(|base| base.id),
            base: base.and_then(Base::full),
            program: concat!("farshore ", env!("CARGO_PKG_VERSION")).into(),
            scan_start_ms: scanned_ms.0,
            scan_end_ms: scanned_ms.1,
            stats,
            unreadable,
        };
        (info, degraded)
    }

    async fn commit(
        &self,
        id: SnapshotId,
        info: &SnapshotInfo,
        group: [u8; 16],
        ledger: &Ledger,
        replaces: Option<SnapshotId>,
    ) -> Result<SnapshotCommitted> {
        let record = SnapshotRecord {
            id,
            repo: self.ctx.repo.id,
            kind: info.kind,
            parent: info.parent,
            group,
            committed_ms: 0,
            label: SnapshotLabel {
                time_ms: info.time_ms,
                utc_offset_min: info.utc_offset_min,
                bytes: info.stats.total_bytes,
                tags: tag_hashes(&self.ctx.keys, &info.tags),
                partial: false,
            },
            sealed: info.seal(&self.ctx.keys, &id, &*self.ctx.host.entropy)?,
            live: ledger.take_live().encode()?,
        };
        self.ctx.catalogue.commit_snapshot(self.session, record, replaces).await
    }
}

/// The entry at a path below a directory; none for the directory itself.
async fn entry_at(chunks: Arc<dyn ChunkSource>, mut root: ChunkId, path: &[u8]) -> Result<Option<Entry>> {
    let parts: Vec<Vec<u8>> =
        path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).map(<[u8]>::to_vec).collect();
    for (at, part) in parts.iter().enumerate() {
        let Some(entry) = lookup(chunks.as_ref(), root, part).await? else { return Ok(None) };
        match entry.node {
            _ if at + 1 == parts.len() => return Ok(Some(entry)),
            Node::Dir { root: below } => root = below,
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The end of a dry run: takes the memory of what is new back, and counts.
async fn count(mut sealed: mpsc::Receiver<Vec<SealedChunk>>, report: &Report) -> Result<()> {
    while let Some(job) = sealed.recv().await {
        let bytes: usize = job.iter().map(|chunk| chunk.sealed.len()).sum();
        report.count(|stats| stats.bytes_packed += bytes as u64);
    }
    Ok(())
}

/// What nodes may know of tags: enough to tell equal ones.
fn tag_hashes(keys: &RepoKeys, tags: &[String]) -> Vec<[u8; 8]> {
    let hashes: BTreeSet<[u8; 8]> = tags.iter().map(|tag| keys.tag(tag)).collect();
    hashes.into_iter().take(SNAPSHOT_TAGS_MAX).collect()
}
