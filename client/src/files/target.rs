//! `Target`: where a restore writes. Real directories in `real_target`, memory in the simulator. Names come from a
//! snapshot and count as hostile until they have become a [`RelPath`].

use super::meta::{FileKind, FileTime, Meta};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::limits::ENTRY_NAME_BYTES_MAX;
use std::fmt;
use std::io;
use std::sync::Arc;

/// A name that must not reach a file system.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{:?} is not a usable file name: {why}", String::from_utf8_lossy(.name))]
pub struct BadEntryName {
    /// The name as the snapshot has it.
    pub name: Vec<u8>,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A path below the target's root: every part has been checked, so it can name nothing outside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct RelPath(Vec<u8>);

impl RelPath {
    /// The root itself.
    pub fn root() -> Self {
        RelPath::default()
    }
    /// The entry `name` of this directory. Refuses names that could lead anywhere else.
    pub fn join(&self, name: &[u8]) -> Result<RelPath, BadEntryName> {
        let why = match name {
            b"" => "it is empty",
            b"." | b".." => "it leads out of its directory",
            _ if name.contains(&b'/') => "it contains a slash",
            _ if name.contains(&0) => "it contains a zero byte",
            _ if name.len() > ENTRY_NAME_BYTES_MAX => "it is too long",
            _ => {
                let slash: &[u8] = if self.0.is_empty() { b"" } else { b"/" };
                return Ok(RelPath([&self.0, slash, name].concat()));
            }
        };
        Err(BadEntryName { name: name.to_vec(), why })
    }
    /// A path a person gave, absolute or not; `.` and doubled slashes are passed over.
    pub fn from_path(path: &[u8]) -> Result<RelPath, BadEntryName> {
        let mut parts = path.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".");
        parts.try_fold(RelPath::root(), |dir, part| dir.join(part))
    }
    /// The parts, outermost first; none for the root.
    pub fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|part| !part.is_empty())
    }
    /// Directory and name; `None` for the root.
    pub fn split(&self) -> Option<(RelPath, &[u8])> {
        if self.0.is_empty() {
            return None;
        }
        Some(match self.0.iter().rposition(|b| *b == b'/') {
            Some(slash) => (RelPath(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (RelPath::root(), &self.0),
        })
    }
    /// The parts joined by slashes, without one in front.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}
impl fmt::Display for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from_utf8_lossy(&self.0))
    }
}
impl fmt::Debug for RelPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(&self.0))
    }
}

/// What became of an entry's attributes: the entry is there, but these could not be set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Kept {
    /// Each as one phrase, such as `xattr user.x: not supported`.
    pub lost: Vec<String>,
}

/// A small file, all of it in memory.
#[derive(Clone, Debug)]
pub struct WholeFile {
    /// Where it goes.
    pub path: RelPath,
    /// Length in bytes.
    pub size: u64,
    /// Its contents: offset and bytes. What no piece covers is zero.
    pub pieces: Vec<(u64, Bytes)>,
    /// Its attributes.
    pub meta: Meta,
}

/// What stands at a path of a target.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its length in bytes if it is a regular file.
    pub file: Option<u64>,
    /// When it was modified.
    pub mtime: FileTime,
}

/// A regular file that can be read. Blocks, so it is used within `Compute` only.
pub trait ReadAt: Send + Sync {
    /// The bytes from an offset on, fewer at the end of the file only.
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>>;
}

/// A tree being written. Nothing here follows a symbolic link below the root. Entries that exist are replaced whole,
/// except that a directory stays and is never replaced by something else.
#[async_trait]
pub trait Target: Send + Sync {
    /// Makes a directory, readable by its owner only until `set_dir_meta`; not an error if it exists. Its parent must.
    async fn make_dir(&self, path: &RelPath) -> io::Result<()>;
    /// Begins a file of `size` zero bytes. It has its name only after `finish`.
    async fn begin_file(&self, path: &RelPath, size: u64) -> io::Result<Box<dyn TargetFile>>;
    /// A file of `size` bytes that a restore began and did not finish, if the target keeps such; bytes of it may be right.
    async fn begun_file(&self, path: &RelPath, size: u64) -> io::Result<Option<Box<dyn TargetFile>>>;
    /// What stands at these paths, one answer for each; `None` for nothing.
    async fn look(&self, paths: &[RelPath]) -> Vec<io::Result<Option<Standing>>>;
    /// Opens the regular file that stands at a path.
    async fn open_file(&self, path: &RelPath) -> io::Result<Arc<dyn ReadAt>>;
    /// Sets the attributes of the regular file that stands at a path.
    async fn set_file_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept>;
    /// All names in a directory, ascending as bytes.
    async fn names(&self, dir: &RelPath) -> io::Result<Vec<Vec<u8>>>;
    /// Removes what stands at a path, with everything below it. Follows no link and leaves other file systems alone.
    async fn remove(&self, path: &RelPath) -> io::Result<()>;
    /// Makes a symbolic link.
    async fn symlink(&self, path: &RelPath, to: &[u8], meta: &Meta) -> io::Result<Kept>;
    /// Gives the finished file `first` a second name.
    async fn hard_link(&self, first: &RelPath, path: &RelPath) -> io::Result<()>;
    /// Makes a pipe, socket or device.
    async fn special(&self, path: &RelPath, kind: &FileKind, meta: &Meta) -> io::Result<Kept>;
    /// Sets a directory's attributes, once nothing is written into it any more.
    async fn set_dir_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept>;
    /// Writes many small files, each whole or not at all; one result per file, in order.
    async fn write_files(&self, files: Vec<WholeFile>) -> Vec<io::Result<Kept>> {
        let mut results = Vec::with_capacity(files.len());
        for file in files {
            results.push(write_whole(self, file).await);
        }
        results
    }
}

async fn write_whole<T: Target + ?Sized>(target: &T, file: WholeFile) -> io::Result<Kept> {
    let mut open = target.begin_file(&file.path, file.size).await?;
    open.write(file.pieces).await?;
    open.finish(&file.meta).await
}

/// A file being written under a temporary name. Dropping it unfinished removes it.
#[async_trait]
pub trait TargetFile: Send + Sync {
    /// Writes bytes at their offsets, in any order.
    async fn write(&mut self, pieces: Vec<(u64, Bytes)>) -> io::Result<()>;
    /// To read what has been written so far; `None` if that cannot be.
    fn read_back(&self) -> Option<Arc<dyn ReadAt>>;
    /// Sets the attributes, then gives the file its name.
    async fn finish(self: Box<Self>, meta: &Meta) -> io::Result<Kept>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        let root = RelPath::root();
        let long = vec![b'x'; ENTRY_NAME_BYTES_MAX + 1];
        for bad in [&b""[..], b".", b"..", b"/", b"a/b", b"../x", b"/etc", b"a\0b", &long] {
            assert!(root.join(bad).is_err(), "{bad:?}");
        }
        for good in [&b"..."[..], b".a", b"\xff\xfe", b"a b\n"] {
            assert!(root.join(good).is_ok(), "{good:?}");
        }
    }

    #[test]
    fn parts_and_split() {
        let path = RelPath::root().join(b"a").unwrap().join(b"b").unwrap().join(b"c").unwrap();
        assert_eq!(path.as_bytes(), b"a/b/c");
        assert_eq!(path.parts().count(), 3);
        let (dir, name) = path.split().unwrap();
        assert_eq!((dir.as_bytes(), name), (&b"a/b"[..], &b"c"[..]));
        assert!(RelPath::root().split().is_none());
        assert_eq!(RelPath::root().parts().count(), 0);
    }
}
