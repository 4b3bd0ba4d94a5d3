//! How callers share syncs of one engine. It knows nothing of the engines.
#![expect(clippy::disallowed_methods, reason = "a sync blocks, so it runs on the blocking pool")]

use farshore_core::host::kv::KvError;
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
    /// Number of the last sync that succeeded. Held while a sync runs, so that there is one at a time.
    done: tokio::sync::Mutex<u64>,
}

impl GroupSync {
    /// Cancel-safe: a caller that goes away leaves its sync running and uncounted; the next caller starts its own.
    pub(super) async fn run(
        &self,
        sync: impl FnOnce() -> Result<(), KvError> + Send + 'static,
    ) -> Result<(), KvError> {
        let seen = self.started.load(Ordering::SeqCst);
        let mut done = self.done.lock().await;
        if *done > seen {
            return Ok(());
        }
        let number = self.started.fetch_add(1, Ordering::SeqCst) + 1;
        tokio::task::spawn_blocking(sync)
            .await
            .unwrap_or_else(|e| Err(KvError::Io(format!("sync was cut short: {e}"))))?;
        *done = number;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::task;
    use std::sync::Arc;

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
}
