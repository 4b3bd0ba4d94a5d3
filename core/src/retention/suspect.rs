//! Which snapshots look as if something went wrong where they were made: a mount that was not there, files that were
//! deleted or encrypted, a clock that was set to drive good snapshots out.
//!
//! What an operator wants then is that the good ones are still there on the day they notice, and to see when it began.
//! So suspicion **only ever keeps more**: the others are judged as if the suspects did not exist, and a suspect is kept
//! for at least as long as if nobody suspected it. A wrong suspicion costs space and a line in a report, never a snapshot.
//!
//! It must also end by itself, or a tree that was made smaller on purpose would be suspect for ever and its old history
//! never go. So a size is compared with the snapshots before it only while those are recent: what has lasted for
//! [`SUSPECT_LEVEL_MS`] is the new normal.

use super::Candidate;
use crate::limits::{
    SUSPECT_AHEAD_MS, SUSPECT_BEHIND_MS, SUSPECT_BYTES_MIN, SUSPECT_GROWN, SUSPECT_LEVEL_MS,
    SUSPECT_LEVEL_SNAPSHOTS, SUSPECT_SHRUNK,
};
use crate::units::Bytes;
use std::collections::VecDeque;
use std::fmt;

/// What is odd about a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Suspicion {
    /// Its client's clock was ahead of catalogue time.
    Ahead { by_ms: u64 },
    /// Its client's clock was further behind than a long run explains.
    Behind { by_ms: u64 },
    /// It is far smaller than those before it.
    Shrunk { from: u64, to: u64 },
    /// It is far larger than those before it.
    Grown { from: u64, to: u64 },
}

impl fmt::Display for Suspicion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hours = |ms: u64| ms / 3_600_000;
        match *self {
            Suspicion::Ahead { by_ms } => write!(f, "its client's clock was {} hours ahead", hours(by_ms)),
            Suspicion::Behind { by_ms } => write!(f, "its client's clock was {} hours behind", hours(by_ms)),
            Suspicion::Shrunk { from, to } => write!(f, "shrunk from {} to {}", Bytes(from), Bytes(to)),
            Suspicion::Grown { from, to } => write!(f, "grown from {} to {}", Bytes(from), Bytes(to)),
        }
    }
}

/// Judges the complete snapshots of one group, given and answered newest first.
pub(super) fn judge(newest_first: &[&Candidate]) -> Vec<Option<Suspicion>> {
    // Sizes of the last trusted ones, and when the newest of them was made.
    let mut level = VecDeque::with_capacity(SUSPECT_LEVEL_SNAPSHOTS);
    let mut level_ms = 0;
    let mut judged = Vec::with_capacity(newest_first.len());
    for candidate in newest_first.iter().rev() {
        let age = candidate.committed_ms - level_ms;
        if age >= SUSPECT_LEVEL_MS {
            level.clear();
        }
        let suspicion = clock(candidate).or_else(|| size(median(&level), candidate.bytes));
        if suspicion.is_none() {
            if level.len() == SUSPECT_LEVEL_SNAPSHOTS {
                level.pop_front();
            }
            level.push_back(candidate.bytes);
            level_ms = candidate.committed_ms;
        }
        judged.push(suspicion);
    }
    judged.reverse();
    judged
}

fn clock(candidate: &Candidate) -> Option<Suspicion> {
    let (label, committed) = (candidate.label_ms, candidate.committed_ms);
    let (ahead, behind) = (label.saturating_sub(committed), committed.saturating_sub(label));
    if ahead > SUSPECT_AHEAD_MS {
        return Some(Suspicion::Ahead { by_ms: ahead });
    }
    (behind > SUSPECT_BEHIND_MS).then_some(Suspicion::Behind { by_ms: behind })
}

fn size(usual: Option<u64>, bytes: u64) -> Option<Suspicion> {
    // Anything is more than nothing: after an empty mount the real tree is welcome.
    let usual = usual.filter(|usual| *usual > 0)?;
    // Small trees change by large factors every day; but nothing at all where there was something is an empty mount.
    if bytes > 0 && usual.abs_diff(bytes) < SUSPECT_BYTES_MIN {
        return None;
    }
    if bytes < usual / SUSPECT_SHRUNK || bytes == 0 {
        return Some(Suspicion::Shrunk { from: usual, to: bytes });
    }
    (bytes > usual.saturating_mul(SUSPECT_GROWN)).then_some(Suspicion::Grown { from: usual, to: bytes })
}

/// The lower of the two in the middle, if they are two.
fn median(sizes: &VecDeque<u64>) -> Option<u64> {
    let mut sorted: Vec<u64> = sizes.iter().copied().collect();
    sorted.sort_unstable();
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}
