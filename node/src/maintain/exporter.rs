//! When the leader exports the catalogue: on a schedule (`plan/export.rs`), when an operator asks, and before packs are
//! dropped. One worker makes them all, so that nobody's impatience cuts one off half way. A whole catalogue may take long;
//! increments go on beside it, since what is in none of them is what the loss of every replica would take.

use super::Shared;
use super::export::make;
use crate::plan::export::{Export, ExportView, plan_export};
use crate::raft::types::{Entry, EntryPayload, Payload};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, ExportRecord};
use farshore_core::host::task::Owned;
use farshore_core::limits::EXPORT_BASE_REST_MS;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

/// What is wanted of the worker, and how it stands.
#[derive(Default)]
pub struct Exports {
    wanted: Mutex<Wanted>,
    wake: Notify,
}

#[derive(Default)]
struct Wanted {
    /// An export that reaches this entry, whether or not its time has come.
    up_to: u64,
    /// Who waits for a whole export.
    base: Vec<oneshot::Sender<Result<ExportRecord, WorkFailed>>>,
    standing: ExportStanding,
}

/// How far the exports are behind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ExportStanding {
    /// Since when something has not been exported; `None` if all is.
    pub behind_since: Option<Instant>,
    /// Why the last one failed, if it did.
    pub failed: Option<String>,
}

impl ExportStanding {
    /// A look has shown whether there is something to export.
    fn look(&mut self, news: bool, now: Instant) {
        self.behind_since = news.then(|| self.behind_since.unwrap_or(now));
    }
    /// An export has ended. What came while it was made is seen by the next look.
    fn end(&mut self, failed: Option<String>) {
        if failed.is_none() {
            self.behind_since = None;
        }
        self.failed = failed;
    }
}

impl Exports {
    /// How far the exports are behind, if this node leads.
    pub fn standing(&self) -> ExportStanding {
        self.wanted().standing.clone()
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().expect("no holder of this lock panics")
    }
}

/// Exports the whole catalogue now, for an operator. Whoever hangs up does not end it.
pub async fn export_now(shared: &Shared) -> Result<ExportRecord, WorkFailed> {
    let (send, made) = oneshot::channel();
    {
        let mut wanted = shared.exports.wanted();
        // Who has hung up would otherwise be kept for as long as an export takes.
        wanted.base.retain(|asker| !asker.is_closed());
        wanted.base.push(send);
    }
    shared.exports.wake.notify_one();
    made.await.map_err(|_| WorkFailed("this node no longer leads".into()))?
}

/// Waits for an export of everything up to a log entry, unless exports are off. Cancel-safe.
pub async fn reach(shared: &Shared, index: u64) -> Result<(), WorkFailed> {
    if shared.timing.export_every.is_zero() {
        return Ok(());
    }
    while shared.view()?.exports()?.last().is_none_or(|export| export.to < index) {
        {
            let mut wanted = shared.exports.wanted();
            wanted.up_to = wanted.up_to.max(index);
        }
        shared.exports.wake.notify_one();
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

/// How soon somebody who waits for an export looks for it.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A whole catalogue on its way.
struct Base {
    made: oneshot::Receiver<Result<ExportRecord, WorkFailed>>,
    /// Who had asked before it began.
    askers: Vec<oneshot::Sender<Result<ExportRecord, WorkFailed>>>,
    _task: Owned,
}

/// The worker.
pub struct Exporter {
    shared: Arc<Shared>,
    /// Entries up to this one bring nothing that is worth an export, if those before `since` do not.
    dull: u64,
    since: u64,
    base: Option<Base>,
    /// When a whole export failed; increments have their turn for a while.
    base_failed: Option<Instant>,
}

impl Exporter {
    /// Looks at once.
    pub fn new(shared: Arc<Shared>) -> Self {
        Exporter { shared, dull: 0, since: 0, base: None, base_failed: None }
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
        let rest = Duration::from_millis(EXPORT_BASE_REST_MS);
        let may_base = self.base.is_none() && self.base_failed.is_none_or(|at| at.elapsed() >= rest);
        let urgent = {
            let mut wanted = self.shared.exports.wanted();
            wanted.standing.look(news, Instant::now());
            if self.base.is_none() && !wanted.base.is_empty() {
                return Ok(Some(Export::Base));
            }
            exports.last().is_some_and(|newest| newest.to < wanted.up_to)
        };
        let planned = plan_export(&ExportView {
            exports: &exports,
            nodes: &view.nodes()?,
            news: news || urgent,
            may_base,
            now_ms: self.shared.host.clock.now_ms(),
            every_ms: if urgent { 0 } else { self.shared.timing.export_every.as_millis() as u64 },
        });
        match planned {
            Some(Export::Increment { from }) if self.shared.consensus.entries(from + 1)?.is_none() => {
                Ok(may_base.then_some(Export::Base))
            }
            planned => Ok(planned),
        }
    }

    fn begin_base(&mut self) {
        let (send, made) = oneshot::channel();
        let shared = self.shared.clone();
        let askers = std::mem::take(&mut shared.exports.wanted().base);
        let task = Owned::spawn(async move {
            // Nobody listens if this node has ceased to lead.
            let _ = send.send(make(&shared, Export::Base).await);
            shared.exports.wake.notify_one();
        });
        self.base = Some(Base { made, askers, _task: task });
    }

    /// Takes in how the whole export on its way has ended, if it has.
    fn end_base(&mut self) {
        let Some(base) = &mut self.base else { return };
        let result = match base.made.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => return,
            Err(oneshot::error::TryRecvError::Closed) => Err(WorkFailed("it was cut off".into())),
            Ok(result) => result,
        };
        self.base_failed = result.is_err().then(Instant::now);
        self.note(&result);
        for asker in self.base.take().into_iter().flat_map(|base| base.askers) {
            let _ = asker.send(result.clone());
        }
    }

    fn note(&self, result: &Result<ExportRecord, WorkFailed>) {
        if let Err(why) = result {
            tracing::warn!(%why, "export of the catalogue failed");
        }
        self.shared.exports.wanted().standing.end(result.as_ref().err().map(ToString::to_string));
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
        let shared = self.shared.clone();
        if shared.leading().is_none() {
            // What was asked of a leader is for its successor to do.
            (self.base, self.base_failed) = (None, None);
            *shared.exports.wanted() = Wanted::default();
            return Ok(Pace::Idle);
        }
        self.end_base();
        if shared.timing.export_every.is_zero() && shared.exports.wanted().base.is_empty() {
            return Ok(Pace::Idle);
        }
        match self.plan()? {
            None => {}
            Some(Export::Base) => self.begin_base(),
            Some(increment) => {
                let made = make(&shared, increment).await;
                self.note(&made);
                made?;
            }
        }
        Ok(Pace::Idle)
    }

    async fn wait(&mut self) {
        let look = self.shared.timing.export_every.clamp(LOOK_MIN, LOOK_MAX) / 4;
        tokio::select! {
            biased;
            () = self.shared.exports.wake.notified() => {}
            () = tokio::time::sleep(look) => {}
        }
    }
}

/// A look costs little, and a worker that need not export looks whether it has become leader.
const LOOK_MIN: Duration = Duration::from_millis(400);
const LOOK_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    /// In a cluster that is always written to every look finds something new, however soon after an export it comes.
    #[test]
    fn a_busy_cluster_whose_exports_succeed_is_not_behind() {
        let (mut standing, start) = (ExportStanding::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in (0..1_000).step_by(10) {
            standing.look(true, at(second));
            assert_eq!(standing.behind_since, Some(at(second)));
            standing.end(None);
        }
        standing.look(true, at(1_000));
        standing.end(Some("no room".into()));
        standing.look(true, at(1_010));
        assert_eq!((standing.behind_since, standing.failed.as_deref()), (Some(at(1_000)), Some("no room")));
        standing.look(false, at(1_020));
        assert_eq!(standing.behind_since, None);
    }
}
