//! Eras of the log. A catalogue that has lost its majority, or all of its replicas, goes on from one replica or from an
//! export; what other replicas have beyond that is no longer part of it. The new beginning is a new *era*, and replicas of
//! different eras exchange nothing: not a vote, not an entry, not a confirmed index. One that meets a later era than
//! its own stops, since an operator has decided to go on without it.
//!
//! The era is the upper half of the Raft term, so that it is stored wherever a vote is, and an old term never wins.

use farshore_proto::status::ApiError;
use std::sync::Arc;
use tokio::sync::watch;
use tonic::Status;

/// The era that a term belongs to. Clusters begin in era 0.
pub fn era_of(term: u64) -> u32 {
    (term >> 32) as u32
}

/// The first term of an era.
pub fn first_term(era: u32) -> u64 {
    u64::from(era) << 32 | 1
}

/// The era that follows those seen. The time goes into it, so that two recoveries that do not know of each other come to
/// different ones.
pub fn next_era(highest_seen: u32, now_ms: u64) -> u32 {
    let seconds = u32::try_from(now_ms / 1_000).unwrap_or(u32::MAX);
    seconds.max(highest_seen.saturating_add(1))
}

/// Whether the recovery that began this era was a moment ago. Clusters that were never recovered are in era 0.
pub fn is_recent(era: u32, now_ms: u64, span_ms: u64) -> bool {
    era > 0 && now_ms < (u64::from(era) * 1_000).saturating_add(span_ms)
}

/// Whether this replica was left behind by a recovery. Clones share it.
#[derive(Clone, Default)]
pub struct Behind(Arc<watch::Sender<Option<u32>>>);

impl Behind {
    /// This replica, of era `own`, has heard of era `other`.
    pub fn hear(&self, own: u32, other: u32) {
        if other > own {
            self.0.send_if_modified(|known| known.replace(other) != Some(other));
        }
    }
    /// The same, from the answer to a call.
    pub fn hear_status(&self, own: u32, status: &Status) {
        if let ApiError::LeftBehind(era) = ApiError::from_status(status.clone()) {
            self.hear(own, era);
        }
    }
    /// Ends once this replica was left behind, with the reason. Cancel-safe.
    pub async fn left(&self) -> String {
        let mut heard = self.0.subscribe();
        let era = heard.wait_for(Option::is_some).await.ok().and_then(|era| *era);
        let Some(era) = era else { return std::future::pending().await };
        format!(
            "the catalogue was recovered without this node's replica and is in era {era}; \
             `farshore node rejoin` gives the replica up and keeps the shards (docs/operations.md)"
        )
    }
}

/// Whether a replica of era `own` may listen to one of era `theirs`. A replica that has no log, or a release that knows
/// no eras, says none and is taken as it is.
pub fn check(own: Option<u32>, theirs: Option<u32>, behind: &Behind) -> Result<(), ApiError> {
    let (Some(own), Some(theirs)) = (own, theirs) else { return Ok(()) };
    behind.hear(own, theirs);
    match own.cmp(&theirs) {
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ApiError::LeftBehind(own)),
        std::cmp::Ordering::Less => {
            Err(ApiError::Invalid(format!("this node's replica stayed behind in era {own}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_term_of_a_later_era_is_greater() {
        assert_eq!((era_of(u64::from(u32::MAX)), era_of(first_term(7))), (0, 7));
        assert!(first_term(8) > first_term(7) + u64::from(u32::MAX - 1));
        assert_eq!(next_era(0, 1_700_000_000_123), 1_700_000_000);
        assert_eq!(next_era(1_800_000_000, 1_700_000_000_123), 1_800_000_001, "a clock that runs behind");
        assert!(is_recent(1_700_000_000, 1_700_000_009_999, 10_000));
        assert!(!is_recent(1_700_000_000, 1_700_000_010_000, 10_000) && !is_recent(0, 5, 10_000));
    }

    #[tokio::test]
    async fn replicas_of_two_eras_do_not_speak_and_the_older_one_learns_why() {
        let behind = Behind::default();
        assert!(check(Some(3), Some(3), &behind).is_ok());
        assert!(check(Some(3), None, &behind).is_ok() && check(None, Some(9), &behind).is_ok());
        assert_eq!(check(Some(3), Some(2), &behind), Err(ApiError::LeftBehind(3)));
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(10), behind.left());
        assert!(waiting.await.is_err(), "not yet");
        assert!(matches!(check(Some(3), Some(4), &behind), Err(ApiError::Invalid(_))));
        assert!(behind.left().await.contains("era 4"));
        let (own, told) = (Behind::default(), Status::from(ApiError::LeftBehind(5)));
        own.hear_status(4, &told);
        assert!(own.left().await.contains("era 5"));
    }
}
