//! `Source`: the tree being backed up. The real one reads the file system, the simulator's grows from a seed.
//! Paths are absolute and bytes; errors are reported for the path they concern and never end a backup.

use super::meta::{Fingerprint, Stat};
use async_trait::async_trait;
use bytes::Bytes;
use std::io;

/// One name in a directory. `stat` may fail for a name that vanished or may not be looked at.
#[derive(Debug)]
pub struct Listed {
    /// Last component of its path.
    pub name: Vec<u8>,
    /// What it is.
    pub stat: io::Result<Stat>,
}

/// A directory being listed, in ascending order of names (as bytes), each name once.
#[async_trait]
pub trait Listing: Send {
    /// The next names, at most [`farshore_core::limits::PAGE_ROWS_MAX`]; empty at the end.
    async fn next(&mut self) -> io::Result<Vec<Listed>>;
}

/// A regular file being read from start to end.
#[async_trait]
pub trait SourceFile: Send {
    /// The next bytes: about `want`, fewer only at the end of the file; empty at the end.
    async fn read(&mut self, want: usize) -> io::Result<Bytes>;
    /// What the open file looks like now.
    async fn fingerprint(&mut self) -> io::Result<Fingerprint>;
}

/// A regular file just opened and its first bytes, so that a small file costs one call.
pub struct Opened {
    /// The first bytes, at least `want` unless the file ends before.
    pub head: Bytes,
    /// What the open file looked like after `head` was read.
    pub seen: Fingerprint,
    /// The rest, if the file did not end within `head`.
    pub rest: Option<Box<dyn SourceFile>>,
}

/// A tree of files to be backed up. All calls may be made concurrently; none follows a symbolic link in the last
/// component. Cancel-safe: dropping a call abandons it.
#[async_trait]
pub trait Source: Send + Sync {
    /// Whether what it has can be read only once, and how long a file is shows only at its end. A file of it that cannot be
    /// read ends a backup.
    fn is_stream(&self) -> bool {
        false
    }
    /// What a path is.
    async fn stat(&self, path: &[u8]) -> io::Result<Stat>;
    /// Lists a directory.
    async fn list(&self, path: &[u8]) -> io::Result<Box<dyn Listing>>;
    /// Opens a regular file and reads its first `want` bytes; anything but a regular file is an error.
    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened>;
    /// Opens several files as [`Self::open`] does, with one answer for each in their order. For small files, of which
    /// one is not worth a job of its own.
    async fn open_all(&self, paths: &[Vec<u8>], want: usize) -> Vec<io::Result<Opened>> {
        let mut opened = Vec::with_capacity(paths.len());
        for path in paths {
            opened.push(self.open(path, want).await);
        }
        opened
    }
}

/// A path below `dir`.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
