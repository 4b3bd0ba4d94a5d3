//! Checkpoints: every few minutes the chunks stored so far are named by a partial snapshot, so that a run that dies
//! leaves nothing to garbage collection and the next one sends only what is missing. Each replaces the one before, and
//! the snapshot replaces the last. Nobody lists them.

use super::ledger::Ledger;
use super::{Context, tag_hashes};
use crate::error::Result;
use crate::format::{SnapshotInfo, SnapshotStats};
use farshore_core::catalogue::{RepoChange, SnapshotKind, SnapshotLabel, SnapshotRecord};
use farshore_core::host::random;
use farshore_core::id::{ChunkId, SessionId, SnapshotId};
use farshore_core::limits::CHECKPOINT_MS;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// The checkpoints of one run.
pub struct Checkpoints<'a> {
    ctx: &'a Context,
    session: SessionId,
    group: [u8; 16],
    options: &'a super::Options,
    /// Checkpoints of this run that may be there, the newest last.
    own: Mutex<Vec<SnapshotId>>,
}

impl<'a> Checkpoints<'a> {
    /// None so far.
    pub fn new(ctx: &'a Context, session: SessionId, group: [u8; 16], options: &'a super::Options) -> Self {
        Checkpoints { ctx, session, group, options, own: Mutex::default() }
    }

    /// Makes one checkpoint after the other, for ever. A failed one is no reason to end a run: the next may succeed, and the
    /// packs are the session's own meanwhile. Cancel-safe: what was under way may or may not be there.
    pub async fn run(&self, ledger: &Ledger) {
        let pause_ms = self.options.checkpoint_ms.unwrap_or(CHECKPOINT_MS);
        loop {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
            if let Err(error) = self.make(ledger).await {
                tracing::warn!(%error, "no checkpoint was made");
            }
        }
    }

    /// Makes one.
    pub(super) async fn make(&self, ledger: &Ledger) -> Result<()> {
        let ctx = self.ctx;
        let live = ledger.live_so_far().encode()?;
        let id = SnapshotId(random(&*ctx.host.entropy));
        let before = self.last();
        // Noted first: whoever gives up waiting must know of it.
        self.own().push(id);
        let now_ms = ctx.host.clock.now_ms();
        let record = SnapshotRecord {
            id,
            repo: ctx.repo.id,
            kind: SnapshotKind::Full,
            parent: None,
            group: self.group,
            committed_ms: 0,
            label: SnapshotLabel {
                time_ms: now_ms,
                utc_offset_min: self.options.utc_offset_min,
                bytes: 0,
                tags: tag_hashes(&ctx.keys, &self.options.tags),
                partial: true,
            },
            sealed: self.describe(now_ms).seal(&ctx.keys, &id, &*ctx.host.entropy)?,
            live,
        };
        ctx.catalogue.commit_snapshot(self.session, record, before).await?;
        self.own().retain(|known| *known == id);
        tracing::debug!(checkpoint = %id.short(), "checkpoint made");
        Ok(())
    }

    fn describe(&self, now_ms: u64) -> SnapshotInfo {
        SnapshotInfo {
            time_ms: now_ms,
            utc_offset_min: self.options.utc_offset_min,
            host: self.options.host_name.clone(),
            user: self.options.user.clone(),
            paths: self.options.paths.clone(),
            tags: self.options.tags.clone(),
            // There is no tree yet.
            root: ChunkId([0; 32]),
            kind: SnapshotKind::Full,
            parent: None,
            base: None,
            program: concat!("farshore ", env!("CARGO_PKG_VERSION")).into(),
            scan_start_ms: now_ms,
            scan_end_ms: now_ms,
            stats: SnapshotStats::default(),
            unreadable: Vec::new(),
        }
    }

    /// What the next commit replaces.
    pub fn last(&self) -> Option<SnapshotId> {
        self.own().last().copied()
    }

    /// Removes checkpoints that the snapshot just committed has made superfluous: of earlier runs of its group, and of this
    /// one if an answer was lost. An error matters little: they go by themselves after a while.
    pub async fn clear(&self, earlier: &[SnapshotId]) {
        let last = self.last();
        let own = std::mem::take(&mut *self.own());
        let snapshots: Vec<SnapshotId> =
            own.into_iter().filter(|id| Some(*id) != last).chain(earlier.iter().copied()).collect();
        if snapshots.is_empty() {
            return;
        }
        let (api, repo) = (&self.ctx.catalogue, self.ctx.repo.id);
        let forget = RepoChange::Forget { snapshots: snapshots.clone(), bypass: false };
        let purge = RepoChange::Purge { snapshots, early: true };
        for change in [forget, purge] {
            if let Err(error) = api.change_repository(repo, change).await {
                tracing::debug!(%error, "checkpoints not removed");
                return;
            }
        }
    }

    /// Removes those of this run: no snapshot will replace them. What they name is there already.
    pub async fn give_up(&self) {
        let own = std::mem::take(&mut *self.own());
        self.clear(&own).await;
    }

    fn own(&self) -> MutexGuard<'_, Vec<SnapshotId>> {
        self.own.lock().expect("no holder of this lock panics")
    }
}
