//! Restore: resolve → plan → fetch → open → write, window by window, so that memory stays the same whatever the size.
//! A file is written whole or not at all, every chunk's id is checked, and names are checked before any file system
//! sees them. It never touches the cluster's state.

pub mod plan;
mod prune;
pub mod reuse;
pub mod verify;
mod write;

#[cfg(test)]
mod restore_test;

pub use crate::select::Select;
pub use plan::{RestorePlan, WindowLimits};
pub use reuse::Overwrite;
pub use verify::Verified;

use crate::error::Result;
use crate::fetch::{ChunkReader, FetchPlan};
use crate::files::{RelPath, Target};
use crate::format::ChunkSource;
use crate::list::{Snapshot, Spot, find};
use crate::progress::{Event, Progress};
use crate::walk::Walk;
use farshore_core::catalogue::PackKind;
use farshore_core::id::{ChunkId, NodeId, PackNo};
use plan::{After, Before, Planner};
use prune::Prune;
use reuse::{Prepared, Reuse};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use write::Writer;

/// What to restore.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Options {
    /// Directory or file in the snapshot that becomes the root; `None` for the whole, with absolute paths.
    pub root: Option<Vec<u8>>,
    /// Which paths below it.
    pub select: Select,
    /// What becomes of what stands in the target already.
    pub overwrite: Overwrite,
    /// Go on with files that an interrupted restore has begun, if the target keeps such.
    pub resume: bool,
    /// Take away what stands in restored directories and is not in the snapshot.
    pub delete: bool,
    /// Plan and count, read nothing of the cluster's but trees, and write nothing.
    pub dry_run: bool,
    /// Size of the windows.
    pub limits: WindowLimits,
}

/// What a restore did, or would do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Files, further names included.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices, pipes, sockets.
    pub others: u64,
    /// Bytes of the files.
    pub bytes: u64,
    /// Sealed bytes the plans asked packs for; what crossed the wire may be more when shards were missing.
    pub bytes_planned: u64,
    /// Packs that were needed.
    pub packs: u64,
    /// Windows it took.
    pub windows: u64,
    /// Entries that were left alone because they were there already.
    pub kept: u64,
    /// Bytes of the files among them.
    pub bytes_kept: u64,
    /// Entries that were taken away because the snapshot has none of that name.
    pub removed: u64,
    /// Of a dry run: sealed bytes that would be read from each node.
    pub by_node: BTreeMap<NodeId, u64>,
    /// Of a dry run: packs of which too few shards can be asked for.
    pub unreadable_packs: u64,
    /// Paths that could not be restored.
    pub problems: u64,
    /// Attributes that the target would not take.
    pub attributes_lost: u64,
}

/// Where a restore reads.
#[derive(Clone)]
pub struct Context {
    /// Contents of files.
    pub reader: Arc<ChunkReader>,
    /// The tree.
    pub trees: Arc<dyn ChunkSource>,
}

/// Restores a snapshot into a target. Problems with single paths are reported and counted; an error means that it could
/// not begin or not go on at all. Cancelling it leaves whole files and no others.
pub async fn run(
    context: &Context,
    snapshot: &Snapshot,
    options: &Options,
    target: &dyn Target,
    progress: &dyn Progress,
) -> Result<Summary> {
    let (walk, top) = resolve(context, snapshot, options).await?;
    let mut planner = Planner::new(context.trees.clone(), walk, options.select.clone(), options.limits);
    let mut writer = Writer::new(target, progress);
    let mut packs = BTreeSet::new();
    let Options { overwrite, resume, dry_run, .. } = *options;
    let reuse = Reuse { target, reader: &context.reader, overwrite, resume, dry_run };
    let root = options.root.as_deref().unwrap_or_default();
    let prune = Prune { target, trees: &context.trees, select: &options.select, snapshot, root, dry_run };
    while let Some(mut plan) = planner.next().await {
        for (path, error) in std::mem::take(&mut plan.problems) {
            writer.problem(&path, &error.to_string());
        }
        let files = std::mem::take(&mut plan.files);
        if !options.dry_run {
            writer.before(std::mem::take(&mut plan.before), options.overwrite).await;
        }
        let files = writer.prepare(files, &reuse).await;
        let wanted: Vec<ChunkId> = files.iter().flat_map(|p| &p.file.uses).map(|used| used.id).collect();
        let fetch = context.reader.plan(&wanted).await?;
        count(&mut writer.summary, &mut packs, &fetch);
        if options.dry_run {
            let summary = &mut writer.summary;
            summary.unreadable_packs += context.reader.estimate(&fetch, &mut summary.by_node);
            pretend(summary, &plan, &files, progress);
            plan.after.retain(|step| matches!(step, After::Prune(..)));
        } else {
            let mut reading = context.reader.start(PackKind::Data, fetch);
            writer.files(files, &mut reading).await;
        }
        writer.after(plan.after, options.overwrite, options.delete.then_some(&prune)).await;
    }
    if let (true, Some(top)) = (options.delete, top) {
        prune.dir(&RelPath::root(), top, &mut writer).await;
    }
    Ok(writer.summary)
}

/// From a snapshot and a path to a walk, and to the top node of the directory that is walked if it is one.
async fn resolve(
    context: &Context,
    snapshot: &Snapshot,
    options: &Options,
) -> Result<(Walk, Option<ChunkId>)> {
    let trees = context.trees.clone();
    let root = options.root.as_deref().unwrap_or_default();
    match find(trees.as_ref(), snapshot, root).await? {
        Spot::Dir(root) => Ok((Walk::new(trees, root), Some(root))),
        Spot::Entry(entry) => Ok((Walk::single(trees, *entry)?, None)),
    }
}

fn count(summary: &mut Summary, packs: &mut BTreeSet<PackNo>, fetch: &FetchPlan) {
    packs.extend(fetch.fetches.iter().map(|f| f.pack));
    summary.packs = packs.len() as u64;
    summary.bytes_planned += fetch.bytes();
    summary.windows += 1;
}

/// Counts what a window would restore.
fn pretend(summary: &mut Summary, plan: &RestorePlan, files: &[Prepared], progress: &dyn Progress) {
    for step in &plan.before {
        match step {
            Before::Dir(_) => summary.dirs += 1,
            Before::Symlink(..) | Before::Special(..) => summary.others += 1,
        }
    }
    let files = files.iter().map(|prepared| &prepared.file);
    let files = files.filter(|f| f.end == plan::FileEnd::Done).map(|f| (&f.path, f.size));
    let links = plan.after.iter().filter_map(|step| match step {
        After::Link(_, path, size) => Some((path, *size)),
        After::DirMeta(..) | After::Prune(..) => None,
    });
    for (path, bytes) in files.chain(links) {
        summary.files += 1;
        summary.bytes += bytes;
        progress.event(Event::Restored { path: path.as_bytes(), bytes });
    }
}
