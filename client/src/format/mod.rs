//! Everything a repository stores that only clients can read, and the pack that carries it (docs/format.md). Each
//! object begins with its version, every decoder is bounded, and bytes that are not what was written are a typed
//! error. Nothing here does I/O: trees are read through [`tree::ChunkSource`].

pub mod snapshot;

pub mod config;

pub mod tree;

pub mod content;

pub mod nodes;

pub mod pack;

pub mod sealed;

#[cfg(test)]
mod tree_test;

pub use config::RepoConfig;
pub use content::{Content, ContentBuilder, ContentChunk, ContentIter, Placed};
pub use nodes::{ChunkSource, NewChunk};
pub use pack::{Pack, PackBuilder};
pub use sealed::{Compression, Sealer, unseal};
pub use snapshot::{SnapshotInfo, SnapshotStats, UnreadablePath};
pub use tree::{DirBuilder, DirIter, Entry, Node};
