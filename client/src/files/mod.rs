//! The seams to trees of files: what a path is, how a source is listed and read, how a target is written.

pub mod real_target;

pub mod target;

pub mod real_source;

pub mod stream_source;

pub mod source;

pub mod meta;

pub use meta::{FileKind, FileTime, Fingerprint, Meta, Stat, Xattr};
pub use real_source::RealSource;
pub use real_target::{How, RealTarget};
pub use source::{Listed, Listing, Opened, Source, SourceFile};
pub use stream_source::StreamSource;
pub use target::{ReadAt, RelPath, Standing, Target, TargetFile};
