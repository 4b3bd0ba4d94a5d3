//! What long work tells whoever watches it. Events are facts, not text: printing and rates belong to the command.

/// What was found about a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The parent snapshot has no such path.
    New,
    /// It differs from the parent's.
    Changed,
    /// It equals the parent's.
    Unmodified,
}

/// One thing that happened. All counts are increments.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The scan met a file of this length; the sum of these is the total to come.
    Found {
        /// Length in bytes.
        bytes: u64,
    },
    /// The scan is over, so totals are final.
    ScanDone,
    /// A file is now being read.
    Reading {
        /// Absolute path.
        path: &'a [u8],
    },
    /// Bytes of a file were read or taken over.
    Bytes {
        /// How many.
        bytes: u64,
    },
    /// A file is done.
    FileDone {
        /// Absolute path.
        path: &'a [u8],
        /// Length in bytes.
        bytes: u64,
        /// Compared with the parent.
        change: Change,
    },
    /// An entry was restored.
    Restored {
        /// Path below the target.
        path: &'a [u8],
        /// Length in bytes; 0 if it is not a file.
        bytes: u64,
    },
    /// Something that is not in the snapshot was taken away.
    Removed {
        /// Path below the target.
        path: &'a [u8],
    },
    /// A path could not be read, or only inconsistently.
    Problem {
        /// Absolute path.
        path: &'a [u8],
        /// One line.
        why: &'a str,
    },
    /// A pack is durable in the cluster.
    Stored {
        /// Bytes before coding.
        bytes: u64,
        /// Bytes sent, parity included.
        sent: u64,
        /// Not all of its shards could be placed as the policy wants.
        degraded: bool,
    },
    /// Something worth knowing that concerns no path.
    Notice {
        /// One line.
        text: &'a str,
    },
}

/// Receives events. Called from the work itself, so it must return at once.
pub trait Progress: Send + Sync {
    /// Takes note.
    fn event(&self, event: Event<'_>);
}

/// Ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn event(&self, _: Event<'_>) {}
}
