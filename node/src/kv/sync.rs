//! How callers share syncs of one engine. It knows nothing of the engines.
#![expect(clippy::disallowed_methods, reason = "a sync blocks, so it runs on the blocking pool")]

use farshore_core::host::DiskFull;
use farshore_core::host::kv::KvError;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A closing store may keep its lock for a moment, until a flush that nobody waits for any more has ended.
pub(super) const LOCK_TRIES: usize = 50;
/// Pause between two attempts to take the lock.
pub(super) const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// Group commit: callers that come while a sync runs share the next one. A caller is served only by a sync that
/// started after it called, because an earlier one may have missed its batch.
#[derive(Default)]
pub(super) struct GroupSync {
    started: AtomicU64,
    /// Held while a sync runs, so that there is one at a time.
    ended: Arc<tokio::sync::Mutex<Ended>>,
}

/// Syncs by their numbers; the first is 1.
#[derive(Default)]
struct Ended {
    /// The last that succeeded.
    done: u64,
    /// The last that failed, and why.
    failed: (u64, Failure),
}

/// Why a sync failed, for everyone it was for.
enum Failure {
    Full(DiskFull),
    Io(String),
}

impl Default for Failure {
    fn default() -> Self {
        Failure::Io(String::new())
    }
}

impl Failure {
    fn of(error: &KvError) -> Self {
        match error {
            KvError::Full(full) => Failure::Full(full.clone()),
            KvError::Io(why) => Failure::Io(why.clone()),
            other => Failure::Io(other.to_string()),
        }
    }
    fn error(&self) -> KvError {
        match self {
            Failure::Full(full) => KvError::Full(full.clone()),
            Failure::Io(why) => KvError::Io(why.clone()),
        }
    }
}

impl GroupSync {
    /// Cancel-safe: the sync of a caller that goes away is carried out, and counts, all the same.
    ///
    /// A sync that failed fails for everyone who had called before it began, whatever a later one says: the system
    /// tells once of what it could not write, and then takes it for written.
    pub(super) async fn run(
        &self,
        sync: impl FnOnce() -> Result<(), KvError> + Send + 'static,
    ) -> Result<(), KvError> {
        let seen = self.started.load(Ordering::SeqCst);
        let mut ended = self.ended.clone().lock_owned().await;
        if ended.failed.0 > seen {
            return Err(ended.failed.1.error());
        }
        if ended.done > seen {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        let counted = move || {
            let synced = sync();
            match &synced {
                Ok(()) => ended.done = number,
                Err(why) => ended.failed = (number, Failure::of(why)),
            }
            synced
        };
        tokio::task::spawn_blocking(counted)
            .await
            .unwrap_or_else(|e| Err(KvError::Io(format!("sync was cut short: {e}"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::task;

    /// A store that counts what was written, what is synced and how often.
    #[derive(Default)]
    struct Counts {
        written: AtomicU64,
        synced: AtomicU64,
        syncs: AtomicU64,
    }

    impl Counts {
        fn sync(&self) {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            let covers = self.written.load(Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
            self.synced.fetch_max(covers, Ordering::SeqCst);
        }
    }

    async fn write_and_sync(group: Arc<GroupSync>, counts: Arc<Counts>) {
        for _ in 0..10 {
            let mine = counts.written.fetch_add(1, Ordering::SeqCst) + 1;
            let syncing = counts.clone();
            let sync = move || {
                syncing.sync();
                Ok(())
            };
            group.run(sync).await.unwrap();
            assert!(
                counts.synced.load(Ordering::SeqCst) >= mine,
                "returned before a sync that covers its write"
            );
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn callers_share_syncs_and_none_uses_an_earlier_one() {
        let (group, counts) = (Arc::new(GroupSync::default()), Arc::new(Counts::default()));
        let callers: Vec<_> =
            (0..20).map(|_| task::spawn(write_and_sync(group.clone(), counts.clone()))).collect();
        for caller in callers {
            caller.await.unwrap();
        }
        let syncs = counts.syncs.load(Ordering::SeqCst);
        assert!(syncs < 100, "{syncs} syncs for 200 calls");
    }

    #[tokio::test]
    async fn a_failed_sync_fails_everyone_it_was_for() {
        let group = Arc::new(GroupSync::default());
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let first = group.clone();
        let running = task::spawn(async move {
            let blocks = move || wait.recv().map_err(|e| KvError::Io(e.to_string()));
            first.run(blocks).await
        });
        while group.started.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        // Both come while the first runs; the next is for both.
        let call = |fails: bool| {
            let group = group.clone();
            task::spawn(async move {
                let sync = move || if fails { Err(KvError::Io("torn".into())) } else { Ok(()) };
                group.run(sync).await
            })
        };
        let failing = call(true);
        tokio::task::yield_now().await;
        let other = call(false);
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        running.await.unwrap().unwrap();
        assert!(failing.await.unwrap().is_err());
        assert!(other.await.unwrap().is_err(), "what it wrote may be lost");
        group.run(|| Ok(())).await.unwrap();
    }
}
