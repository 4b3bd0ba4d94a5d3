//! The seam to the trees that are backed up: what a path is, and how a source is listed and read.

pub mod source;

pub mod meta;

pub use meta::{FileKind, FileTime, Fingerprint, Meta, Stat, Xattr};
pub use source::{Listed, Listing, Opened, Source, SourceFile};
