//! How fast repair has been: over the last minute, for whoever watches, and over all the time in which it had something to
//! do, for whoever asks how long other work would take. Pure: times in, sums out.

use std::collections::VecDeque;
use std::time::Duration;
use tokio::time::Instant;

/// The last minute, in steps of a second.
const RECENT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_secs(1);

/// Shards and bytes made durable, by time.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Speed {
    /// Bytes since this node began to lead.
    pub bytes: u64,
    /// Time since then in which something was being rebuilt.
    pub busy: Duration,
    /// Since when something has been, without a pause.
    since: Option<Instant>,
    /// When each second began, shards, bytes; no more than a minute of them.
    steps: VecDeque<(Instant, u64, u64)>,
}

/// What was done lately.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Recent {
    /// Shards.
    pub shards: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Within this time: a minute, or less if the work began later.
    pub within: Duration,
}

impl Speed {
    /// Something is being rebuilt from now on, or still.
    pub fn begin(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    /// So many bytes have become durable.
    pub fn note(&mut self, bytes: u64, now: Instant) {
        self.bytes += bytes;
        match self.steps.back_mut() {
            Some((began, shards, sum)) if now < *began + STEP => {
                (*shards, *sum) = (*shards + 1, *sum + bytes)
            }
            _ => self.steps.push_back((now, 1, bytes)),
        }
        self.steps.retain(|(began, ..)| now < *began + RECENT);
    }

    /// Nothing is being rebuilt any more.
    pub fn pause(&mut self, now: Instant) {
        let since = self.since.take();
        self.busy += since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
    }

    /// Time in which something was being rebuilt, up to now.
    pub fn busy(&self, now: Instant) -> Duration {
        self.busy + self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The last minute.
    pub fn recent(&self, now: Instant) -> Recent {
        let within = self.since.map_or(RECENT, |since| now.saturating_duration_since(since).min(RECENT));
        let fresh = self.steps.iter().filter(|(began, ..)| now < *began + RECENT);
        fresh.fold(Recent { within, ..Recent::default() }, |sum, (_, shards, bytes)| Recent {
            shards: sum.shards + shards,
            bytes: sum.bytes + bytes,
            within,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_is_remembered_and_no_more() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut speed = Speed::default();
        speed.begin(at(0));
        for second in 0..200 {
            speed.begin(at(second));
            speed.note(10, at(second));
            speed.note(10, at(second));
        }
        assert!(speed.steps.len() <= 60, "{}", speed.steps.len());
        let recent = speed.recent(at(199));
        assert_eq!((recent.shards, recent.bytes, recent.within), (120, 1_200, RECENT));
        assert_eq!(speed.recent(at(229)).shards, 60, "what is older has left the window");
        assert_eq!(speed.busy(at(200)), Duration::from_secs(200));
        speed.pause(at(200));
        assert_eq!((speed.busy(at(900)), speed.bytes), (Duration::from_secs(200), 4_000));
    }

    #[test]
    fn work_that_began_a_moment_ago_is_not_measured_by_a_minute() {
        let start = Instant::now();
        let mut speed = Speed::default();
        speed.begin(start);
        speed.note(10, start + Duration::from_secs(2));
        assert_eq!(speed.recent(start + Duration::from_secs(4)).within, Duration::from_secs(4));
    }
}
