//! What a run builds on: the choice of the parent snapshot, and the proof, entry by entry, that what it says about a
//! file still holds and that every chunk of it still exists.

use super::ledger::Ledger;
use super::scan::{Reread, Step};
use super::{Context, Options, Parent};
use crate::api::CatalogueApi;
use crate::error::{Error, Result};
use crate::files::{FileTime, Fingerprint};
use crate::format::{ChunkSource, Content, ContentIter, Entry, Node, SnapshotInfo};
use crate::retention::GroupBy;
use farshore_core::catalogue::{SnapshotKind, SnapshotRecord};
use farshore_core::id::{ChunkId, Ordinal, RepoId, SessionId, SnapshotId};
use farshore_core::limits::LOOKUP_CHUNKS_MAX;
use farshore_core::mutant::{Mutant, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};

/// A file whose times lie this near to the parent's scan may have changed after it was read without its times showing
/// it: file systems round, some to two seconds.
const RACY_MS: i64 = 2_000;
/// Steps looked at together, so that one lookup serves many small files.
const STEPS_AT_ONCE: usize = 512;

/// The snapshot a run builds on.
#[derive(Clone, Debug)]
pub struct Base {
    /// Which one.
    pub id: SnapshotId,
    /// Its description.
    pub info: SnapshotInfo,
}

impl Base {
    /// The full snapshot below, this one if it is full.
    pub fn full(&self) -> Option<SnapshotId> {
        if self.info.kind == SnapshotKind::Full { Some(self.id) } else { self.info.base }
    }
}

/// What earlier runs of the group have left.
pub struct Chosen {
    /// The parent, if there is one.
    pub base: Option<Base>,
    /// Checkpoints of runs that died.
    pub checkpoints: Vec<SnapshotId>,
}

/// Finds the parent: none for a full run, else the one that was named or the newest that belongs together with the run, for
/// a differential run the newest full one. A snapshot whose description does not open is passed over. Checkpoints are those
/// of the group of this host and these paths.
pub async fn choose(ctx: &Context, options: &Options, group: [u8; 16]) -> Result<Chosen> {
    let fits = |s: &SnapshotRecord| match (options.kind, options.parent) {
        _ if s.label.partial => false,
        (SnapshotKind::Full, _) => false,
        (_, Parent::Snapshot(id)) => s.id == id,
        (SnapshotKind::Differential, _) if s.kind != SnapshotKind::Full => false,
        (_, Parent::Newest(by)) if by == GroupBy::default() => s.group == group,
        // What else they have in common is sealed.
        (_, Parent::Newest(by)) => {
            SnapshotInfo::open(&ctx.keys, &s.id, &s.sealed).is_ok_and(|info| belongs(&info, options, by))
        }
    };
    let mut checkpoints = Vec::new();
    let mut newest: Option<SnapshotRecord> = None;
    let mut after = None;
    loop {
        let page = ctx.catalogue.list_snapshots(ctx.repo.id, after, false).await?;
        after = page.snapshots.last().map(|s| s.id);
        for snapshot in page.snapshots {
            if snapshot.label.partial && snapshot.group == group {
                checkpoints.push(snapshot.id);
            }
            if !fits(&snapshot) {
                continue;
            }
            let key = |s: &SnapshotRecord| (s.committed_ms, s.id);
            if newest.as_ref().is_none_or(|n| key(n) < key(&snapshot)) {
                newest = Some(snapshot);
            }
        }
        if !page.more || after.is_none() {
            break;
        }
    }
    let Some(newest) = newest else {
        return match options.parent {
            Parent::Snapshot(id) if options.kind != SnapshotKind::Full => {
                Err(Error::SnapshotMissing(id.to_string()))
            }
            _ => Ok(Chosen { base: None, checkpoints }),
        };
    };
    let base = match SnapshotInfo::open(&ctx.keys, &newest.id, &newest.sealed) {
        Ok(info) => Some(Base { id: newest.id, info }),
        Err(error) => {
            tracing::warn!(snapshot = %newest.id.short(), %error, "parent passed over, everything is read");
            None
        }
    };
    Ok(Chosen { base, checkpoints })
}

fn belongs(info: &SnapshotInfo, options: &Options, by: GroupBy) -> bool {
    fn same<T: Ord>(a: &[T], b: &[T]) -> bool {
        a.iter().collect::<BTreeSet<_>>() == b.iter().collect::<BTreeSet<_>>()
    }
    (!by.host || info.host == options.host_name)
        && (!by.paths || same(&info.paths, &options.paths))
        && (!by.tags || same(&info.tags, &options.tags))
}

/// What is taken to prove that a file has not changed, besides its size and when it was modified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trust {
    /// When its contents or attributes last changed. Without it a program that sets the time of modification back hides a
    /// change.
    pub ctime: bool,
    /// Its inode number; some network file systems draw new ones at every mount.
    pub inode: bool,
}

impl Default for Trust {
    fn default() -> Self {
        Trust { ctime: true, inode: true }
    }
}

/// Whether what the parent says about a file must still hold: size, times and inode are the same, and its times are
/// not so near to the parent's scan that a later change could hide behind them.
pub fn is_same(now: &Fingerprint, was: &Entry, scan_ms: (u64, u64), trust: Trust) -> bool {
    let Node::File { size, .. } = was.node else { return false };
    let (scan_start_ms, scan_end_ms) = scan_ms;
    let known = Fingerprint::of(size, &was.meta);
    let now = Fingerprint {
        ctime: if trust.ctime { now.ctime } else { known.ctime },
        ino: if trust.inode { now.ino } else { known.ino },
        ..*now
    };
    let window =
        (scan_start_ms as i64).saturating_sub(RACY_MS)..=(scan_end_ms as i64).saturating_add(RACY_MS);
    let racy = |time: FileTime| window.contains(&time.as_ms());
    let racy = racy(now.mtime) || (trust.ctime && racy(now.ctime));
    now == known && !was.inconsistent && !racy
}

/// The stage: turns every step that claims to be the same into a kept entry, if all its chunks exist, or into a file to
/// read. Other steps pass through in order.
pub struct Keep<'a> {
    /// For lookups.
    pub catalogue: &'a dyn CatalogueApi,
    /// Lease under which "present" holds.
    pub session: SessionId,
    /// Whose chunks.
    pub repo: RepoId,
    /// The parent's tree, for long lists of chunks.
    pub chunks: Arc<dyn ChunkSource>,
    /// Where ordinals go.
    pub ledger: &'a Ledger,
}

impl Keep<'_> {
    /// Runs until the scan ends.
    pub async fn run(&self, mut steps: Receiver<Step>, out: Sender<Step>) -> Result<()> {
        let mut group = Vec::with_capacity(STEPS_AT_ONCE);
        while steps.recv_many(&mut group, STEPS_AT_ONCE).await > 0 {
            let asked = if mutant(Mutant::KeepUnproven) { &[] } else { &group[..] };
            let absent = self.ask_inline(asked).await?;
            for step in group.drain(..) {
                let step = match step {
                    Step::Same { path, entry, reread } => {
                        let kept = mutant(Mutant::KeepUnproven) || self.all_present(&entry, &absent).await?;
                        if kept { Step::Kept { path, entry } } else { Step::Read { path, reread } }
                    }
                    other => other,
                };
                if out.send(step).await.is_err() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Asks for the chunks of all short lists at once. Gives those that are absent.
    async fn ask_inline(&self, group: &[Step]) -> Result<BTreeMap<ChunkId, ()>> {
        let mut ids = BTreeMap::new();
        for step in group {
            if let Step::Same {
                entry: Entry { node: Node::File { content: Content::Inline(chunks), .. }, .. },
                ..
            } = step
            {
                ids.extend(chunks.iter().filter(|c| !self.ledger.is_covered(&c.id)).map(|c| (c.id, ())));
            }
        }
        let ids: Vec<ChunkId> = ids.into_keys().collect();
        let mut absent = BTreeMap::new();
        for page in ids.chunks(LOOKUP_CHUNKS_MAX) {
            let found = lookup(self.catalogue, self.session, self.repo, self.ledger, page).await?;
            absent
                .extend(page.iter().zip(found).filter(|(_, found)| found.is_none()).map(|(id, _)| (*id, ())));
        }
        Ok(absent)
    }

    async fn all_present(&self, entry: &Entry, absent: &BTreeMap<ChunkId, ()>) -> Result<bool> {
        match &entry.node {
            Node::File { content: Content::Inline(chunks), .. } => {
                Ok(!chunks.iter().any(|chunk| absent.contains_key(&chunk.id)))
            }
            Node::File { content, .. } => match self.list_present(content).await {
                Ok(present) => Ok(present),
                // The list cannot be read now, so the file is: that loses time, not data.
                Err(error) if error.exit_code() == 1 => Ok(false),
                Err(error) => Err(error),
            },
            _ => Ok(false),
        }
    }

    /// The same for a long list, a page of ids in memory at a time. The nodes of the list itself count as well.
    async fn list_present(&self, content: &Content) -> Result<bool> {
        let mut chunks = ContentIter::new(self.chunks.clone(), content);
        let mut page = Vec::with_capacity(LOOKUP_CHUNKS_MAX);
        loop {
            let next = chunks.next().await?;
            let visited = chunks.take_visited();
            page.extend(next.iter().map(|c| c.id).chain(visited).filter(|id| !self.ledger.is_covered(id)));
            if next.is_none() || page.len() + 1 >= LOOKUP_CHUNKS_MAX {
                for ids in page.chunks(LOOKUP_CHUNKS_MAX) {
                    let found = lookup(self.catalogue, self.session, self.repo, self.ledger, ids).await?;
                    if found.contains(&None) {
                        return Ok(false);
                    }
                }
                page.clear();
            }
            if next.is_none() {
                return Ok(true);
            }
        }
    }
}

/// One lookup; what is present is entered in the ledger.
pub async fn lookup(
    catalogue: &dyn CatalogueApi,
    session: SessionId,
    repo: RepoId,
    ledger: &Ledger,
    ids: &[ChunkId],
) -> Result<Vec<Option<Ordinal>>> {
    let found = catalogue.lookup(session, repo, ids).await?;
    if found.len() != ids.len() {
        return Err(Error::Protocol(format!("{} chunks asked for, {} answers", ids.len(), found.len())));
    }
    for (id, ordinal) in ids.iter().zip(&found) {
        if let Some(ordinal) = ordinal {
            ledger.present(*id, *ordinal);
        }
    }
    Ok(found)
}

/// The entry a file keeps: today's name and attributes, yesterday's contents.
pub fn kept_entry(now: &Reread, was: Entry) -> Entry {
    Entry { name: now.name.clone(), node: was.node, meta: now.stat.meta.clone(), inconsistent: false }
}
