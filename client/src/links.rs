//! Which names of a walk are further names of a file that was met before.

use crate::crypto::checksum;
use crate::files::{Meta, RelPath};
use crate::format::Content;
use crate::format::nodes::encode;
use std::collections::BTreeMap;

/// What inode a file is, and how many of its names are still to come.
struct FirstName {
    path: RelPath,
    left: u64,
    /// Tells its contents from others. The inode's number alone does not: while a backup runs it may be given to
    /// another file.
    contents: [u8; 16],
}

/// First names of files with several, by device and inode. An inode leaves when all its names were met, so this grows only
/// with links that point out of what is walked.
#[derive(Default)]
pub struct Links {
    by_inode: BTreeMap<(u64, u64), FirstName>,
}

impl Links {
    /// The first name of this file if it was met before with the same contents; notes it otherwise.
    pub fn first_name(
        &mut self,
        path: &RelPath,
        meta: &Meta,
        size: u64,
        content: &Content,
    ) -> Option<RelPath> {
        if meta.nlink < 2 {
            return None;
        }
        let inode = (meta.dev, meta.ino);
        let contents = checksum(&[&size.to_le_bytes(), &encode(content)]);
        let Some(first) = self.by_inode.get_mut(&inode).filter(|first| first.contents == contents) else {
            self.by_inode.insert(inode, FirstName { path: path.clone(), left: meta.nlink - 1, contents });
            return None;
        };
        let path = first.path.clone();
        first.left -= 1;
        if first.left == 0 {
            self.by_inode.remove(&inode);
        }
        Some(path)
    }
}
