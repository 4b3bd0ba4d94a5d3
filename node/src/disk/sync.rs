//! How callers share syncs of files and directories. A few are synced each by itself, side by side; many that wait are
//! synced in one round. It knows neither files nor file systems: those are [`super::device`]'s.
//!
//! A request is answered by a sync that began after the request was made, and never by an earlier one, which may have
//! missed what it is for. An error of a round is told to everyone in it.
#![expect(clippy::disallowed_methods, reason = "a sync blocks, so it runs on the blocking pool")]

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// Syncs at work at a time, each on a thread of its own: enough to keep a disk busy that takes several writes at once.
/// Requests beyond them wait, which is what makes rounds.
const WORKERS_MAX: usize = 4;
/// Requests that a round takes at most; each is a caller that waits, and callers are bounded.
const ROUND_MAX: usize = 1_024;

/// What the system does; tests have their own.
pub(super) trait System: Send + Sync + 'static {
    /// What can be synced. Two that are equal are covered by one sync.
    type Target: PartialEq + Send + 'static;
    /// Whether this many that wait are better synced in one round.
    fn round_pays(&self, waiting: usize) -> bool;
    /// Syncs one by itself.
    fn sync(&self, target: &Self::Target) -> io::Result<()>;
    /// Syncs many, with an answer for each.
    fn sync_round(&self, targets: &[&Self::Target]) -> Vec<io::Result<()>>;
}

/// Requests for syncs, and who is at work on them.
pub(super) struct Syncs<S: System> {
    /// What is asked to sync.
    pub(super) system: S,
    state: Mutex<State<S::Target>>,
    /// Told when a round ends.
    round_over: Condvar,
}

struct State<T> {
    waiting: VecDeque<Request<T>>,
    workers: usize,
    /// While a round is at work no other sync begins: whoever comes meanwhile is in the next.
    in_round: bool,
}

struct Request<T> {
    target: T,
    answer: oneshot::Sender<io::Result<()>>,
}

impl<S: System> Syncs<S> {
    pub(super) fn new(system: S) -> Self {
        let state = State { waiting: VecDeque::new(), workers: 0, in_round: false };
        Syncs { system, state: Mutex::new(state), round_over: Condvar::new() }
    }

    /// Returns when a sync that began after this call has made the target durable. Cancel-safe: the sync of a caller
    /// that goes away is carried out all the same.
    pub(super) async fn sync(self: &Arc<Self>, target: S::Target) -> io::Result<()> {
        let (answer, answered) = oneshot::channel();
        if let Some(worker) = self.ask(Request { target, answer }) {
            tokio::task::spawn_blocking(move || worker.work());
        }
        answered.await.unwrap_or_else(|_| Err(io::Error::other("a sync was cut short")))
    }

    /// Has a request wait, and a worker begin unless enough are at work.
    fn ask(self: &Arc<Self>, request: Request<S::Target>) -> Option<Worker<S>> {
        let mut state = self.state();
        state.waiting.push_back(request);
        if state.workers >= WORKERS_MAX {
            return None;
        }
        state.workers += 1;
        Some(Worker { syncs: self.clone(), at_work: true, in_round: false })
    }

    fn state(&self) -> MutexGuard<'_, State<S::Target>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One thread that syncs until nothing waits.
struct Worker<S: System> {
    syncs: Arc<Syncs<S>>,
    /// Counted among the workers.
    at_work: bool,
    in_round: bool,
}

impl<S: System> Worker<S> {
    fn work(mut self) {
        while let Some(requests) = self.take() {
            let targets: Vec<_> = requests.iter().map(|request| &request.target).collect();
            let outcomes = match targets.first() {
                Some(target) if !self.in_round => {
                    let outcome = self.syncs.system.sync(target);
                    targets.iter().map(|_| copy(&outcome)).collect()
                }
                _ => self.syncs.system.sync_round(&targets),
            };
            self.end_round();
            for (request, outcome) in requests.into_iter().zip(outcomes) {
                // Nobody may be waiting any more.
                let _ = request.answer.send(outcome);
            }
        }
    }

    /// All that wait, for a round; or the first, with those that want the same. Nothing that comes later is added to
    /// what was taken. `None` once nothing waits; in the same step this worker ceases to count, so that no request is
    /// left to a worker that has looked for the last time.
    fn take(&mut self) -> Option<Vec<Request<S::Target>>> {
        let mut state = self.syncs.state();
        while state.in_round {
            state = self.syncs.round_over.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let Some(first) = state.waiting.pop_front() else {
            state.workers -= 1;
            self.at_work = false;
            return None;
        };
        if self.syncs.system.round_pays(state.waiting.len() + 1) {
            (state.in_round, self.in_round) = (true, true);
            let others = state.waiting.len().min(ROUND_MAX - 1);
            return Some(std::iter::once(first).chain(state.waiting.drain(..others)).collect());
        }
        let (same, others): (Vec<_>, Vec<_>) =
            state.waiting.drain(..).partition(|request| request.target == first.target);
        state.waiting = others.into();
        Some(std::iter::once(first).chain(same).collect())
    }

    fn end_round(&mut self) {
        if std::mem::take(&mut self.in_round) {
            self.syncs.state().in_round = false;
            self.syncs.round_over.notify_all();
        }
    }
}

impl<S: System> Drop for Worker<S> {
    /// At work only if it never began, since the runtime is ending, or if it panicked: then nobody may be left to serve
    /// those that wait, and their channels close.
    fn drop(&mut self) {
        self.end_round();
        if self.at_work {
            let mut state = self.syncs.state();
            state.workers -= 1;
            state.waiting.clear();
        }
    }
}

/// The same outcome for another who waited for it.
pub(super) fn copy(outcome: &io::Result<()>) -> io::Result<()> {
    match outcome {
        Ok(()) => Ok(()),
        Err(error) => Err(error
            .raw_os_error()
            .map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::task;
    use std::collections::BTreeSet;

    /// A system whose every sync waits until it is let through.
    #[derive(Default)]
    struct Gated {
        gate: Mutex<Gate>,
        moved: Condvar,
    }

    const SINGLE: usize = 0;
    const ROUND: usize = 1;

    #[derive(Default)]
    struct Gate {
        /// What was written, and how much of it the syncs have covered.
        written: BTreeSet<u32>,
        durable: BTreeSet<u32>,
        singles: usize,
        rounds: usize,
        /// Syncs that stand at the gate.
        inside: usize,
        /// Syncs of one, and rounds, that may still pass.
        open: [usize; 2],
        fail: bool,
    }

    impl Gated {
        fn gate(&self) -> MutexGuard<'_, Gate> {
            self.gate.lock().unwrap()
        }
        /// Covers what was written when it began, and only that.
        fn pass(&self, kind: usize, covered: impl Fn(&u32) -> bool) -> io::Result<()> {
            let mut gate = self.gate();
            let covers: Vec<u32> = gate.written.iter().copied().filter(covered).collect();
            gate.inside += 1;
            self.moved.notify_all();
            let mut gate = self.moved.wait_while(gate, |gate| gate.open[kind] == 0).unwrap();
            gate.inside -= 1;
            gate.open[kind] -= 1;
            if gate.fail {
                return Err(io::Error::from_raw_os_error(5));
            }
            gate.durable.extend(covers);
            Ok(())
        }
        fn open(&self, kind: usize, syncs: usize) {
            self.gate().open[kind] += syncs;
            self.moved.notify_all();
        }
        /// Waits until this many syncs stand at the gate. Blocks.
        fn wait_inside(&self, count: usize) {
            drop(self.moved.wait_while(self.gate(), |gate| gate.inside != count).unwrap());
        }
    }

    impl System for Gated {
        type Target = u32;
        fn round_pays(&self, waiting: usize) -> bool {
            waiting >= 3
        }
        fn sync(&self, target: &u32) -> io::Result<()> {
            self.gate().singles += 1;
            self.pass(SINGLE, |written| written == target)
        }
        fn sync_round(&self, targets: &[&u32]) -> Vec<io::Result<()>> {
            self.gate().rounds += 1;
            let outcome = self.pass(ROUND, |_| true);
            targets.iter().map(|_| copy(&outcome)).collect()
        }
    }

    type Call = tokio::task::JoinHandle<io::Result<bool>>;

    /// Writes and syncs; whether it was durable when the call returned.
    fn put(syncs: &Arc<Syncs<Gated>>, target: u32) -> Call {
        syncs.system.gate().written.insert(target);
        let syncs = syncs.clone();
        task::spawn(async move {
            syncs.sync(target).await?;
            Ok(syncs.system.gate().durable.contains(&target))
        })
    }

    async fn waiting(syncs: &Arc<Syncs<Gated>>, count: usize) {
        while syncs.state().waiting.len() != count {
            tokio::task::yield_now().await;
        }
    }

    /// Fills all workers with syncs of these, each by itself.
    async fn busy(syncs: &Arc<Syncs<Gated>>) -> Vec<Call> {
        let mut calls = vec![];
        for target in 0..WORKERS_MAX as u32 {
            calls.push(put(syncs, target));
            tokio::task::yield_now().await;
            let (syncs, inside) = (syncs.clone(), calls.len());
            tokio::task::spawn_blocking(move || syncs.system.wait_inside(inside)).await.unwrap();
        }
        calls
    }

    async fn all_durable(calls: Vec<Call>) {
        for call in calls {
            assert!(call.await.unwrap().unwrap(), "answered before a sync that covers its write");
        }
    }

    fn new() -> Arc<Syncs<Gated>> {
        Arc::new(Syncs::new(Gated::default()))
    }

    #[tokio::test]
    async fn many_that_wait_share_one_round_and_few_are_synced_each_by_itself() {
        let syncs = new();
        let first = busy(&syncs).await;
        let many: Vec<_> = (100..200).map(|target| put(&syncs, target)).collect();
        waiting(&syncs, 100).await;
        syncs.system.open(SINGLE, WORKERS_MAX);
        syncs.system.open(ROUND, 1);
        all_durable(first).await;
        all_durable(many).await;
        let gate = syncs.system.gate();
        assert_eq!((gate.singles, gate.rounds), (WORKERS_MAX, 1));
    }

    #[tokio::test]
    async fn those_that_want_the_same_share_one_sync() {
        let syncs = new();
        let mut calls = busy(&syncs).await;
        calls.extend([put(&syncs, 7), put(&syncs, 7)]);
        waiting(&syncs, 2).await;
        syncs.system.open(SINGLE, WORKERS_MAX + 1);
        all_durable(calls).await;
        assert_eq!(syncs.system.gate().singles, WORKERS_MAX + 1);
    }

    /// The round may have missed what was written after it began.
    #[tokio::test]
    async fn a_request_made_during_a_round_is_not_answered_by_it() {
        let syncs = new();
        let first = busy(&syncs).await;
        let in_round: Vec<_> = (100..110).map(|target| put(&syncs, target)).collect();
        waiting(&syncs, 10).await;
        syncs.system.open(SINGLE, WORKERS_MAX);
        all_durable(first).await;
        let round = syncs.clone();
        tokio::task::spawn_blocking(move || round.system.wait_inside(1)).await.unwrap();
        // New ones, and one that is in the round already and has been written to since.
        let late: Vec<_> = (200..210).chain([100]).map(|target| put(&syncs, target)).collect();
        waiting(&syncs, 11).await;
        syncs.system.open(ROUND, 1);
        all_durable(in_round).await;
        syncs.system.open(ROUND, 1);
        all_durable(late).await;
        assert_eq!(syncs.system.gate().rounds, 2);
    }

    #[tokio::test]
    async fn a_failed_round_fails_everyone_in_it_and_nobody_else() {
        let syncs = new();
        let first = busy(&syncs).await;
        let failing: Vec<_> = (100..110).map(|target| put(&syncs, target)).collect();
        waiting(&syncs, 10).await;
        syncs.system.open(SINGLE, WORKERS_MAX);
        all_durable(first).await;
        let late: Vec<_> = (200..210).map(|target| put(&syncs, target)).collect();
        waiting(&syncs, 10).await;
        syncs.system.gate().fail = true;
        syncs.system.open(ROUND, 1);
        for call in failing {
            assert_eq!(call.await.unwrap().unwrap_err().raw_os_error(), Some(5));
        }
        syncs.system.gate().fail = false;
        syncs.system.open(ROUND, 1);
        all_durable(late).await;
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_the_others_theirs() {
        let syncs = new();
        let mut calls = busy(&syncs).await;
        let gone: Vec<_> = (100..105).map(|target| put(&syncs, target)).collect();
        calls.push(put(&syncs, 105));
        waiting(&syncs, 6).await;
        gone.iter().for_each(Call::abort);
        syncs.system.open(SINGLE, WORKERS_MAX);
        syncs.system.open(ROUND, 1);
        all_durable(calls).await;
        let syncs_at_end = syncs.clone();
        while syncs_at_end.state().workers > 0 {
            tokio::task::yield_now().await;
        }
        assert!(syncs.state().waiting.is_empty());
    }
}
