//! Asking again: on the worst day a node that hiccups must not cost what it holds.

use farshore_core::limits::{RECOVERY_PAUSE_MS, RECOVERY_TRIES};
use std::future::Future;
use std::time::Duration;

/// Pauses between attempts, each twice as long as the one before.
pub fn pauses() -> impl Iterator<Item = Duration> {
    (0..RECOVERY_TRIES - 1).map(|nth| Duration::from_millis(RECOVERY_PAUSE_MS << nth))
}

/// Attempts something until it succeeds or has failed often enough; answers the last failure.
pub async fn insist<T, E, F>(mut attempt: impl FnMut() -> F) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    for pause in pauses() {
        if let Ok(done) = attempt().await {
            return Ok(done);
        }
        tokio::time::sleep(pause).await;
    }
    attempt().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[tokio::test(start_paused = true)]
    async fn a_hiccup_is_outlasted_and_a_real_failure_is_told() {
        let asked = Cell::new(0);
        let fails = |times: u32| {
            asked.set(0);
            let asked = &asked;
            insist(move || async move {
                asked.set(asked.get() + 1);
                if asked.get() > times { Ok(asked.get()) } else { Err(asked.get()) }
            })
        };
        assert_eq!(fails(0).await, Ok(1));
        assert_eq!(fails(RECOVERY_TRIES - 1).await, Ok(RECOVERY_TRIES));
        assert_eq!(fails(RECOVERY_TRIES).await, Err(RECOVERY_TRIES));
    }
}
