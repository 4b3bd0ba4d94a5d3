//! Shards of this node that were found missing or corrupt, waiting to be told to the catalogue. Whoever reads a shard
//! may report; only the worker in `scrub.rs` takes reports, looks again, and proposes.

use farshore_core::id::ShardId;
use farshore_core::limits::REPORTS_QUEUED_MAX;
use std::collections::BTreeSet;
use std::ops::Bound;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::Notify;

/// A bounded set: a shard that is read a thousand times while bad is one report.
#[derive(Default)]
pub struct Reports {
    waiting: Mutex<BTreeSet<ShardId>>,
    arrived: Notify,
    dropped: AtomicU64,
    found: AtomicU64,
}

impl Reports {
    /// Notes a suspicion. When the set is full it is dropped: the next scrub finds the shard again.
    pub fn suspect(&self, shard: ShardId) {
        let mut waiting = self.waiting.lock().expect("no holder of this lock panics");
        if waiting.len() >= REPORTS_QUEUED_MAX && !waiting.contains(&shard) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        waiting.insert(shard);
        self.arrived.notify_one();
    }

    /// The next suspect after `last`, round and round by id. It stays in the set until it is `settled`.
    pub fn next(&self, last: Option<ShardId>) -> Option<ShardId> {
        let waiting = self.waiting.lock().expect("no holder of this lock panics");
        let later = last.and_then(|last| waiting.range((Bound::Excluded(last), Bound::Unbounded)).next());
        later.or(waiting.first()).copied()
    }

    /// Takes a suspect out: reported, or found to be well.
    pub fn settled(&self, shard: ShardId) {
        self.waiting.lock().expect("no holder of this lock panics").remove(&shard);
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.lock().expect("no holder of this lock panics").len()
    }

    /// Nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Suspicions dropped because the set was full.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Counts a suspect that was bad indeed.
    pub fn found_bad(&self) {
        self.found.fetch_add(1, Ordering::Relaxed);
    }

    /// Suspects that were bad indeed, since the start.
    pub fn bad_found(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Returns when something may wait. Cancel-safe: a notice that was not taken stays.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::StripeId;

    #[test]
    fn a_full_set_drops_the_new_and_keeps_the_old() {
        let reports = Reports::default();
        let shard = |n: u32| {
            let mut stripe = [0; 16];
            stripe[..4].copy_from_slice(&n.to_be_bytes());
            ShardId { stripe: StripeId(stripe), index: 0 }
        };
        for n in 0..=REPORTS_QUEUED_MAX as u32 {
            reports.suspect(shard(n));
            reports.suspect(shard(0));
        }
        assert_eq!((reports.len(), reports.dropped()), (REPORTS_QUEUED_MAX, 1));
        assert_eq!(reports.next(None), Some(shard(0)));
        assert_eq!(reports.next(Some(shard(0))), Some(shard(1)), "one that stays does not hold up the rest");
        reports.settled(shard(0));
        assert_eq!(reports.next(None), Some(shard(1)));
        assert_eq!(reports.next(Some(shard(REPORTS_QUEUED_MAX as u32))), Some(shard(1)), "and round again");
    }
}
