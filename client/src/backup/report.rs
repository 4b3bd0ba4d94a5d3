//! Counts and problems of one run, shared by its stages, and passed on as events.

use crate::files::Stat;
use crate::format::{SnapshotInfo, SnapshotStats, UnreadablePath};
use crate::progress::{Change, Event, Progress};
use std::sync::{Arc, Mutex, MutexGuard};

/// Shared by the stages; no lock is held across an await, nor while an event is passed on.
pub struct Report {
    progress: Arc<dyn Progress>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    stats: SnapshotStats,
    unreadable: Vec<UnreadablePath>,
    room: usize,
    degraded_packs: u64,
}

impl Report {
    /// Nothing has happened yet.
    pub fn new(progress: Arc<dyn Progress>) -> Self {
        Report { progress, inner: Mutex::default() }
    }
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect("no holder of this lock panics")
    }
    /// Changes the counts.
    pub fn count(&self, change: impl FnOnce(&mut SnapshotStats)) {
        change(&mut self.lock().stats);
    }
    /// Passes an event on.
    pub fn event(&self, event: Event<'_>) {
        self.progress.event(event);
    }
    /// A path cannot be read; the run goes on without it.
    pub fn unreadable(&self, path: &[u8], why: &impl ToString) {
        let why = why.to_string();
        let mut inner = self.lock();
        let Inner { stats, unreadable, room, .. } = &mut *inner;
        stats.unreadable += 1;
        SnapshotInfo::note_unreadable(unreadable, room, path, &why);
        drop(inner);
        self.progress.event(Event::Problem { path, why: &why });
    }
    /// A file is in the tree.
    pub fn file_done(&self, path: &[u8], bytes: u64, change: Change) {
        self.count(|stats| {
            stats.total_files += 1;
            stats.total_bytes += bytes;
            match change {
                Change::New => stats.files_new += 1,
                Change::Changed => stats.files_changed += 1,
                Change::Unmodified => stats.files_unmodified += 1,
            }
        });
        self.progress.event(Event::FileDone { path, bytes, change });
    }
    /// The scan met something.
    pub fn found(&self, stat: &Stat) {
        match stat.fingerprint() {
            Some(file) => self.progress.event(Event::Found { bytes: file.size }),
            None => self.count(|stats| stats.others += 1),
        }
    }
    /// A pack is durable and committed.
    pub fn stored(&self, bytes: u64, sent: u64, degraded: bool) {
        let mut inner = self.lock();
        inner.stats.bytes_packed += bytes;
        inner.stats.bytes_sent += sent;
        inner.degraded_packs += u64::from(degraded);
        drop(inner);
        self.progress.event(Event::Stored { bytes, sent, degraded });
    }
    /// Everything at the end: counts, problems, degraded packs.
    pub fn close(&self) -> (SnapshotStats, Vec<UnreadablePath>, u64) {
        let mut inner = self.lock();
        (inner.stats, std::mem::take(&mut inner.unreadable), inner.degraded_packs)
    }
}
