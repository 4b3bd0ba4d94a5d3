//! Background work: what a worker is, and the one loop that runs, paces, retries, reports and stops it.
//! Nothing in here knows what the work is.

use async_trait::async_trait;
use farshore_core::host::task;
use farshore_core::limits::{WORKER_PAUSE_MAX_MS, WORKER_PAUSE_MIN_MS};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// What a unit of work left behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// There is more to do at once.
    Busy,
    /// Nothing to do: run `wait`.
    Idle,
    /// There is more, but not before this time has passed.
    Throttled(Duration),
}

/// Why a unit failed, for the status and the log. A worker that needs to act on its errors does so itself.
#[derive(Debug, Clone)]
pub struct WorkFailed(pub String);

impl<E: std::error::Error> From<E> for WorkFailed {
    fn from(error: E) -> Self {
        WorkFailed(error.to_string())
    }
}
impl fmt::Display for WorkFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One kind of background work.
#[async_trait]
pub trait Worker: Send + 'static {
    /// What it is called in logs and status.
    fn name(&self) -> &'static str;
    /// Does one unit. Never cut by a stop unless the deadline passes, so a unit should be short.
    async fn work(&mut self) -> Result<Pace, WorkFailed>;
    /// Longest pause between failing units.
    fn pause_max(&self) -> Duration {
        Duration::from_millis(WORKER_PAUSE_MAX_MS)
    }
    /// Returns when there may be work again. Cut by a stop: must be cancel-safe.
    async fn wait(&mut self);
}

/// What a worker has been doing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WorkerStatus {
    /// Units that ended well.
    pub done: u64,
    /// Units that failed.
    pub errors: u64,
    /// Failures since the last good unit.
    pub errors_in_row: u32,
    /// The last failure, kept after it has been overcome.
    pub last_error: String,
}

/// Asks for a stop, and is asked.
#[derive(Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// True once a stop was asked for.
    pub fn asked(&self) -> bool {
        *self.0.borrow()
    }
    /// Returns when a stop is asked for. Cancel-safe.
    pub async fn wait(&mut self) {
        // An error means the owner is gone, which is a stop too.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

type Board = Arc<Mutex<BTreeMap<&'static str, WorkerStatus>>>;

/// The workers of one node and their owner: dropping it ends them.
pub struct Workers {
    ask: watch::Sender<bool>,
    running: Vec<(&'static str, JoinHandle<()>)>,
    board: Board,
}

impl Default for Workers {
    fn default() -> Self {
        Workers { ask: watch::Sender::new(false), running: Vec::new(), board: Board::default() }
    }
}

impl Workers {
    /// Starts a worker; it runs until the stop.
    pub fn start(&mut self, worker: impl Worker) {
        let name = worker.name();
        let runner = Runner {
            worker,
            stop: self.stop_token(),
            board: self.board.clone(),
            pause_ms: WORKER_PAUSE_MIN_MS,
        };
        self.running.push((name, task::spawn(runner.run())));
    }

    /// For work that wants to notice a stop inside a long unit.
    pub fn stop_token(&self) -> Stop {
        Stop(self.ask.subscribe())
    }

    /// What each worker has been doing, by name.
    pub fn status(&self) -> BTreeMap<&'static str, WorkerStatus> {
        self.board.lock().expect("no holder of this lock panics").clone()
    }

    /// Asks every worker to stop, waits for the unit each is in, and cuts those that need longer than `within`.
    pub async fn stop(mut self, within: Duration) {
        self.ask.send_replace(true);
        let deadline = Instant::now() + within;
        for (name, mut handle) in self.running.drain(..) {
            if tokio::time::timeout_at(deadline, &mut handle).await.is_err() {
                tracing::warn!(worker = name, "cut short: its unit of work overran the stop");
                handle.abort();
                let _ = handle.await;
            }
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.running.drain(..).for_each(|(_, handle)| handle.abort());
    }
}

struct Runner<W> {
    worker: W,
    stop: Stop,
    board: Board,
    pause_ms: u64,
}

impl<W: Worker> Runner<W> {
    async fn run(mut self) {
        while !self.stop.asked() {
            let outcome = self.worker.work().await;
            self.note(&outcome);
            match outcome {
                Ok(Pace::Busy) => self.pause(Duration::ZERO).await,
                Ok(Pace::Throttled(pause)) => self.pause(pause).await,
                Ok(Pace::Idle) => {
                    tokio::select! {
                        biased;
                        () = self.stop.wait() => {}
                        () = self.worker.wait() => {}
                    }
                }
                Err(_) => {
                    self.pause(self.worker.pause_max().min(Duration::from_millis(self.pause_ms))).await;
                    self.pause_ms = (self.pause_ms * 2).min(WORKER_PAUSE_MAX_MS);
                }
            }
        }
    }

    async fn pause(&mut self, pause: Duration) {
        if pause.is_zero() {
            // A busy worker still gives way to everybody else between units.
            return tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = self.stop.wait() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }

    fn note(&mut self, outcome: &Result<Pace, WorkFailed>) {
        let mut board = self.board.lock().expect("no holder of this lock panics");
        let status = board.entry(self.worker.name()).or_default();
        match outcome {
            Ok(_) => {
                status.done += 1;
                status.errors_in_row = 0;
                self.pause_ms = WORKER_PAUSE_MIN_MS;
            }
            Err(error) => {
                status.errors += 1;
                status.errors_in_row += 1;
                status.last_error = error.to_string();
                tracing::debug!(worker = self.worker.name(), %error, "unit of work failed");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Count {
        outcomes: Vec<Result<Pace, WorkFailed>>,
        done: watch::Sender<usize>,
    }

    #[async_trait]
    impl Worker for Count {
        fn name(&self) -> &'static str {
            "count"
        }
        async fn work(&mut self) -> Result<Pace, WorkFailed> {
            self.done.send_modify(|n| *n += 1);
            self.outcomes.pop().unwrap_or(Ok(Pace::Idle))
        }
        async fn wait(&mut self) {
            std::future::pending().await
        }
    }

    #[tokio::test]
    async fn a_worker_runs_backs_off_and_stops() {
        let done = watch::Sender::new(0);
        let mut seen = done.subscribe();
        let failed = || Err(WorkFailed("no luck".into()));
        let outcomes =
            vec![failed(), failed(), Ok(Pace::Throttled(Duration::from_millis(50))), Ok(Pace::Busy)];
        let mut workers = Workers::default();
        let started = Instant::now();
        workers.start(Count { outcomes, done });
        seen.wait_for(|n| *n == 5).await.unwrap();
        let waited = started.elapsed();
        assert!(waited >= Duration::from_millis(50 + 3 * WORKER_PAUSE_MIN_MS), "{waited:?}");
        tokio::task::yield_now().await;
        let status = &workers.status()["count"];
        assert_eq!((status.done, status.errors, status.errors_in_row), (3, 2, 0));
        assert_eq!(status.last_error, "no luck");
        let stop = workers.stop(Duration::from_secs(60));
        tokio::time::timeout(Duration::from_secs(30), stop).await.expect("an idle worker stops at once");
    }

    #[tokio::test]
    async fn a_stuck_unit_is_cut_at_the_deadline() {
        struct Stuck;
        #[async_trait]
        impl Worker for Stuck {
            fn name(&self) -> &'static str {
                "stuck"
            }
            async fn work(&mut self) -> Result<Pace, WorkFailed> {
                std::future::pending().await
            }
            async fn wait(&mut self) {}
        }
        let mut workers = Workers::default();
        workers.start(Stuck);
        tokio::time::sleep(Duration::from_millis(10)).await;
        let asked = Instant::now();
        workers.stop(Duration::from_millis(50)).await;
        assert!(asked.elapsed() >= Duration::from_millis(50));
    }
}
