//! What a file system says about a path besides its contents. Names and values are bytes throughout.

use serde::{Deserialize, Serialize};

/// A point in time as file systems keep it. Seconds may be before 1970.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
pub struct FileTime {
    /// Whole seconds since 1970-01-01 UTC.
    pub secs: i64,
    /// Nanoseconds, below 1,000,000,000.
    pub nanos: u32,
}

impl FileTime {
    /// Milliseconds since 1970-01-01 UTC, rounded down.
    pub fn as_ms(self) -> i64 {
        self.secs.saturating_mul(1_000).saturating_add(i64::from(self.nanos / 1_000_000))
    }
    /// From milliseconds since 1970-01-01 UTC.
    pub fn from_ms(ms: i64) -> Self {
        FileTime { secs: ms.div_euclid(1_000), nanos: (ms.rem_euclid(1_000) * 1_000_000) as u32 }
    }
}

/// An extended attribute: name and value. ACLs and capabilities are attributes too.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// Attributes kept for every entry of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with set-id and sticky, `0o7777`; the kind is in the node.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Owner's name, empty if unknown.
    pub user: String,
    /// Group's name, empty if unknown.
    pub group: String,
    /// Last change of contents.
    pub mtime: FileTime,
    /// Last change of contents or attributes.
    pub ctime: FileTime,
    /// Last read; kept only on request, since it makes every directory new.
    pub atime: Option<FileTime>,
    /// Inode number.
    pub ino: u64,
    /// Device the entry lies on.
    pub dev: u64,
    /// Hard links to the inode.
    pub nlink: u64,
    /// Extended attributes, sorted by name.
    pub xattrs: Vec<Xattr>,
}

/// What kind of thing a path is, with what its inode says about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FileKind {
    /// A regular file of this many bytes.
    File {
        /// Length in bytes.
        size: u64,
    },
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: Vec<u8>,
    },
    /// A named pipe.
    Fifo,
    /// A Unix socket.
    Socket,
    /// A character device.
    CharDev {
        /// Device number.
        rdev: u64,
    },
    /// A block device.
    BlockDev {
        /// Device number.
        rdev: u64,
    },
}

/// Kind and attributes of one path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stat {
    /// What it is.
    pub kind: FileKind,
    /// Its attributes.
    pub meta: Meta,
}

/// What tells two states of a file apart without reading it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fingerprint {
    /// Length in bytes.
    pub size: u64,
    /// Last change of contents.
    pub mtime: FileTime,
    /// Last change of contents or attributes.
    pub ctime: FileTime,
    /// Inode number: a replaced file may keep size and time, never its inode while the old one exists.
    pub ino: u64,
}

impl Stat {
    /// The fingerprint of a regular file; `None` for anything else.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self.kind {
            FileKind::File { size } => Some(Fingerprint::of(size, &self.meta)),
            _ => None,
        }
    }
}

impl Fingerprint {
    /// The fingerprint of a file with this size and these attributes.
    pub fn of(size: u64, meta: &Meta) -> Self {
        Fingerprint { size, mtime: meta.mtime, ctime: meta.ctime, ino: meta.ino }
    }
}
