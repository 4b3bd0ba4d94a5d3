//! Everything a repository stores that only clients can read, and the pack that carries it (docs/format.md). Each
//! object begins with its version, every decoder is bounded, and bytes that are not what was written are a typed
//! error. Nothing here does I/O: trees are read through [`tree::ChunkSource`].

pub mod snapshot;

pub mod config;

pub mod tree;

pub mod content;

pub mod nodes;

pub mod sealed;

pub mod spare;

#[cfg(test)]
mod tree_test;

#[cfg(test)]
mod fixture_test;

pub use config::RepoConfig;
pub use content::{Content, ContentBuilder, ContentChunk, ContentIter, Placed};
pub use nodes::{ChunkSource, NewChunk};
pub use sealed::{Compression, Opener, Sealer, unseal};
pub use snapshot::{SnapshotInfo, SnapshotStats, UnreadablePath};
pub use spare::Spare;
pub use tree::{DirBuilder, DirIter, Entry, Node};
