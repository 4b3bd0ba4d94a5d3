//! How long the disk takes. A disk that is dying answers still, and ever later.

use farshore_core::limits::{DISK_PACE_MS, DISK_PACES_KEPT, DISK_PACES_MIN};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The last calls of a store to its disk: when each ended, and how long it took for a MiB.
#[derive(Default)]
pub(super) struct DiskPace(Mutex<VecDeque<(Instant, Duration)>>);

impl DiskPace {
    /// A call about so many bytes, begun at `begun`, has ended.
    pub(super) fn note(&self, bytes: u64, begun: Instant) {
        let now = Instant::now();
        let mib = (bytes >> 20).clamp(1, u64::from(u32::MAX)) as u32;
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() == DISK_PACES_KEPT {
            kept.pop_front();
        }
        kept.push_back((now, now.duration_since(begun) / mib));
    }

    /// The one in the middle, of those that are not long ago: a node that is spared because it was slow is tried again.
    pub(super) fn usual(&self) -> Option<Duration> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = kept.iter().filter(|(at, _)| at.elapsed() < Duration::from_millis(DISK_PACE_MS));
        let mut took: Vec<_> = fresh.map(|(_, took)| *took).collect();
        took.sort_unstable();
        took.get(took.len() / 2).copied().filter(|_| took.len() >= DISK_PACES_MIN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn call(pace: &DiskPace, bytes: u64, ms: u64) {
        let begun = Instant::now();
        tokio::time::sleep(Duration::from_millis(ms)).await;
        pace.note(bytes, begun);
    }

    #[tokio::test(start_paused = true)]
    async fn half_of_the_last_calls_have_to_be_slow_and_it_is_forgotten() {
        let (pace, ms) = (DiskPace::default(), |ms| Some(Duration::from_millis(ms)));
        for _ in 1..DISK_PACES_MIN {
            call(&pace, 100, 10).await;
        }
        assert_eq!(pace.usual(), None, "too few");
        call(&pace, 8 << 20, 80).await;
        assert_eq!(pace.usual(), ms(10));
        for _ in 0..DISK_PACES_KEPT / 2 {
            assert_eq!(pace.usual(), ms(10));
            call(&pace, 1, 900).await;
        }
        assert_eq!(pace.usual(), ms(900));
        tokio::time::sleep(Duration::from_millis(DISK_PACE_MS)).await;
        assert_eq!(pace.usual(), None);
    }
}
