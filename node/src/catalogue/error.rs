//! What can go wrong inside the catalogue. A refusal of a command is no error: it is a reply, and every replica gives
//! the same one. An error here means that this replica cannot go on.

use farshore_core::host::kv::{KvError, Table};

/// Why the catalogue cannot answer or go on.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// The store below failed or returned a corrupt record; a voter that sees this gives up its vote.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// A row was written by a newer program. Update this node.
    #[error("a row of table {table} has version {version}, which this program does not know; update it")]
    UnknownVersion {
        /// Where.
        table: Table,
        /// What its version byte says.
        version: u8,
    },
    /// A row passes its checksum and still is not what its table holds.
    #[error("a row of table {table} does not decode: {what}")]
    BadRow {
        /// Where.
        table: Table,
        /// What is wrong.
        what: &'static str,
    },
    /// Two rows that must agree do not: our own mistake, or damage that checksums cannot see.
    #[error("the catalogue contradicts itself: {0}")]
    Torn(&'static str),
    /// The log index is not above what was applied.
    #[error("log entry {index} comes after entry {applied} was applied")]
    OutOfOrder {
        /// Entry offered.
        index: u64,
        /// Last one applied.
        applied: u64,
    },
    /// Another transaction was committed, or an image installed, since this one began.
    #[error("the catalogue changed under a transaction")]
    Conflict,
    /// The cluster uses what this node cannot do, or is held back from.
    #[error(
        "the cluster is at feature level {cluster} and this node can do {own}: update its program, or raise \
         `feature_level_max` in its configuration"
    )]
    Level {
        /// What the cluster uses.
        cluster: u32,
        /// What this node can do.
        own: u32,
    },
    /// An image is being staged already.
    #[error("another catalogue image is being installed")]
    Staging,
    /// An image is not what its sender promised; nothing of it was installed.
    #[error("catalogue image refused: {0}")]
    BadImage(String),
}
