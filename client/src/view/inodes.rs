//! Numbers of inodes and what they stand for, as long as somebody refers to them. A number is a hash of where its inode is, so
//! that it is the same when an inode comes back that was forgotten.

use crate::crypto::checksum;
use crate::files::RelPath;
use crate::format::nodes::encode;
use crate::format::{Entry, Node};
use crate::list::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Number of the top directory.
pub const ROOT: u64 = 1;

/// What an inode is.
#[derive(Clone, Debug)]
pub enum What {
    /// A directory above the snapshots.
    Shelf(RelPath),
    /// A link to the newest snapshot beside it.
    Latest(Vec<u8>),
    /// The root of a snapshot.
    Snapshot(Arc<Snapshot>),
    /// Something in a snapshot.
    Entry(Box<Entry>),
}

/// An inode.
#[derive(Clone, Debug)]
pub struct Inode {
    /// Its number, once somebody refers to it.
    pub ino: u64,
    /// The directory it was found in.
    pub parent: u64,
    /// What it is.
    pub what: What,
    /// Tells it from all others.
    key: [u8; 16],
    /// Key of the root of the snapshot it is in.
    top: [u8; 16],
}

impl Inode {
    fn root() -> Self {
        Inode { ino: ROOT, parent: ROOT, what: What::Shelf(RelPath::root()), key: [0; 16], top: [0; 16] }
    }

    /// What is above the snapshots, or the root of one.
    pub fn above(parent: &Inode, name: &[u8], what: What) -> Self {
        let key = match &what {
            // A name may come to stand for another snapshot, whose inodes are others.
            What::Snapshot(snapshot) => checksum(&[snapshot.id.as_bytes(), &parent.key, name]),
            _ => checksum(&[b"name", &parent.key, name]),
        };
        Inode { ino: 0, parent: parent.ino, what, key, top: key }
    }

    /// An entry of this directory of a snapshot. All names of a file with several are one inode.
    pub fn entry(&self, entry: Entry) -> Inode {
        let key = match &entry.node {
            Node::File { content, .. } if entry.meta.nlink > 1 => {
                let (dev, ino) = (entry.meta.dev.to_le_bytes(), entry.meta.ino.to_le_bytes());
                // While a backup runs its inode's number may be given to another file.
                checksum(&[b"file", &self.top, &dev, &ino, &encode(content)])
            }
            _ => checksum(&[b"name", &self.key, &entry.name]),
        };
        Inode { ino: 0, parent: self.ino, what: What::Entry(Box::new(entry)), key, top: self.top }
    }
}

/// The inodes that somebody refers to.
pub struct Inodes {
    by_number: BTreeMap<u64, (Arc<Inode>, u64)>,
}

impl Default for Inodes {
    fn default() -> Self {
        // Nobody looks up the top directory, so nobody forgets it.
        Inodes { by_number: BTreeMap::from([(ROOT, (Arc::new(Inode::root()), 1))]) }
    }
}

impl Inodes {
    /// What stands under a number.
    pub fn get(&self, ino: u64) -> Option<Arc<Inode>> {
        self.by_number.get(&ino).map(|(inode, _)| inode.clone())
    }

    /// The number of an inode, referred to or not.
    pub fn number(&self, inode: &Inode) -> u64 {
        let (first, _) = inode.key.split_first_chunk::<8>().expect("sixteen bytes begin with eight");
        // Zero is no inode to a kernel.
        let mut number = u64::from_le_bytes(*first).max(ROOT + 1);
        while self.by_number.get(&number).is_some_and(|(other, _)| other.key != inode.key) {
            number = number.wrapping_add(1).max(ROOT + 1);
        }
        number
    }

    /// Counts a reference.
    pub fn refer(&mut self, mut inode: Inode) -> Arc<Inode> {
        inode.ino = self.number(&inode);
        let (known, references) =
            self.by_number.entry(inode.ino).or_insert_with(|| (Arc::new(inode.clone()), 0));
        *references += 1;
        // The newest is not the newest for ever.
        if let What::Latest(_) = inode.what {
            *known = Arc::new(inode);
        }
        known.clone()
    }

    /// Takes references back; without any the inode goes.
    pub fn forget(&mut self, ino: u64, references: u64) {
        if ino == ROOT {
            return;
        }
        if let Some((_, left)) = self.by_number.get_mut(&ino) {
            *left = left.saturating_sub(references);
            if *left == 0 {
                self.by_number.remove(&ino);
            }
        }
    }

    /// Those there are.
    #[cfg(test)]
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.by_number.keys().copied()
    }
}
