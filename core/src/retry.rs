//! When to try again: every error says whether a retry can help, and every retry has a budget.

use crate::host::Entropy;
use std::time::Duration;
use tokio::time::Instant;

/// What a caller may do about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Retry {
    /// The same call will fail again.
    Never,
    /// The same call may succeed after a pause.
    Later,
    /// Another node may answer.
    Elsewhere,
}

/// Backoff with full jitter and a deadline for the whole series of attempts.
pub struct Budget {
    deadline: Instant,
    pause_ms: u64,
}

/// First pause between attempts.
const PAUSE_FIRST_MS: u64 = 50;
/// Longest pause between attempts.
const PAUSE_MAX_MS: u64 = 2_000;

impl Budget {
    /// A budget that ends `total` from now.
    pub fn new(total: Duration) -> Self {
        Budget { deadline: Instant::now() + total, pause_ms: PAUSE_FIRST_MS }
    }

    /// Waits before the next attempt. False once the budget is used up: give up and report the last error.
    pub async fn pause(&mut self, entropy: &dyn Entropy) -> bool {
        let wait = Duration::from_millis(self.pause_ms / 2 + entropy.below(self.pause_ms / 2 + 1));
        if Instant::now() + wait >= self.deadline {
            return false;
        }
        tokio::time::sleep(wait).await;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MAX_MS);
        true
    }

    /// A success refills the pause, not the deadline.
    pub fn succeed(&mut self) {
        self.pause_ms = PAUSE_FIRST_MS;
    }
}
