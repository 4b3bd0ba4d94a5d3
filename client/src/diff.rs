//! What differs between two snapshots, or between two directories of them: both trees are walked side by side in the order of
//! names, and what is the same directory in both is not entered.

use crate::error::{Error, Result};
use crate::files::RelPath;
use crate::format::{ChunkSource, DirIter, Entry, Node};
use crate::list::{Snapshot, Spot, absolute, find};
use farshore_core::id::ChunkId;
use farshore_core::limits::TREE_DEPTH_MAX;
use std::cmp::Ordering;
use std::sync::Arc;

/// How an entry differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Only the second has it.
    Added,
    /// Only the first has it.
    Removed,
    /// Other contents.
    Modified,
    /// Other contents under the same size, times and inode: one of both may be rotten.
    Rotten,
    /// The same contents, other attributes.
    Attributes,
    /// Another kind of thing.
    Type,
}

impl Change {
    /// The letter that restic has for it.
    pub fn letter(self) -> &'static str {
        match self {
            Change::Added => "+",
            Change::Removed => "-",
            Change::Modified => "M",
            Change::Rotten => "?",
            Change::Attributes => "U",
            Change::Type => "T",
        }
    }
}

/// One difference.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Difference {
    /// Absolute path in the snapshot, with a slash behind that of a directory.
    pub path: Vec<u8>,
    /// What it is.
    pub change: Change,
}

/// What only one of both has.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub dirs: u64,
    /// Links, devices, pipes, sockets.
    pub others: u64,
    /// Bytes of the files.
    pub bytes: u64,
}

impl Tally {
    fn add(&mut self, node: &Node) {
        match node {
            Node::File { size, .. } => {
                self.files += 1;
                self.bytes += size;
            }
            Node::Dir { .. } => self.dirs += 1,
            _ => self.others += 1,
        }
    }
}

/// All differences together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Files with other contents.
    pub changed_files: u64,
    /// Only in the second.
    pub added: Tally,
    /// Only in the first.
    pub removed: Tally,
}

/// A place in a snapshot.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    /// Which snapshot.
    pub snapshot: &'a Snapshot,
    /// A directory of it, `None` for all.
    pub path: Option<&'a [u8]>,
}

/// Compares two directories, calling `each` for every difference, in the order of paths; entries that differ in nothing but
/// attributes only if `attributes`. Directories that cannot be read are an error at the end, after everything else.
pub async fn diff(
    source: Arc<dyn ChunkSource>,
    (one, other): (Side<'_>, Side<'_>),
    attributes: bool,
    each: &mut (dyn FnMut(Difference) + Send),
) -> Result<Totals> {
    let (old, new) = (root_of(source.as_ref(), one).await?, root_of(source.as_ref(), other).await?);
    let mut walk =
        Comparison { source, attributes, each, totals: Totals::default(), open: Vec::new(), broken: None };
    if old != new {
        walk.enter(RelPath::root(), Some(old), Some(new));
    }
    while walk.step().await {}
    walk.broken.map_or(Ok(walk.totals), Err)
}

async fn root_of(source: &dyn ChunkSource, side: Side<'_>) -> Result<ChunkId> {
    let path = side.path.unwrap_or_default();
    match find(source, side.snapshot, path).await? {
        Spot::Dir(root) => Ok(root),
        Spot::Entry(_) => Err(Error::Invalid(format!("{} is no directory", String::from_utf8_lossy(path)))),
    }
}

/// A directory of one side, one entry looked at ahead.
struct Half {
    entries: DirIter,
    next: Option<Entry>,
}

impl Half {
    async fn fill(&mut self) -> Result<()> {
        if self.next.is_none() {
            self.next = self.entries.next().await?;
        }
        Ok(())
    }
}

/// The same directory on both sides, or one that only one side has.
struct Level {
    path: RelPath,
    old: Option<Half>,
    new: Option<Half>,
}

impl Level {
    /// The next name: what the first has under it, and what the second has.
    async fn pair(&mut self) -> Result<(Option<Entry>, Option<Entry>)> {
        for half in [&mut self.old, &mut self.new].into_iter().flatten() {
            half.fill().await?;
        }
        let [old, new] = [&mut self.old, &mut self.new].map(|half| half.as_mut().map(|half| &mut half.next));
        let order = match (old.as_ref().and_then(|e| e.as_ref()), new.as_ref().and_then(|e| e.as_ref())) {
            (Some(a), Some(b)) => a.name.cmp(&b.name),
            (Some(_), None) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        let old = old.filter(|_| order.is_le()).and_then(Option::take);
        let new = new.filter(|_| order.is_ge()).and_then(Option::take);
        Ok((old, new))
    }
}

struct Comparison<'a> {
    source: Arc<dyn ChunkSource>,
    attributes: bool,
    each: &'a mut (dyn FnMut(Difference) + Send),
    totals: Totals,
    open: Vec<Level>,
    broken: Option<Error>,
}

impl Comparison<'_> {
    fn enter(&mut self, path: RelPath, old: Option<ChunkId>, new: Option<ChunkId>) {
        if self.open.len() >= TREE_DEPTH_MAX {
            self.note(Error::corrupt("directory", "it is nested too deeply"));
            return;
        }
        let half = |root| Half { entries: DirIter::new(self.source.clone(), root), next: None };
        let (old, new) = (old.map(half), new.map(half));
        self.open.push(Level { path, old, new });
    }

    fn note(&mut self, error: Error) {
        self.broken.get_or_insert(error);
    }

    /// Looks at one name; false at the end.
    async fn step(&mut self) -> bool {
        let Some(level) = self.open.last_mut() else { return false };
        let (pair, dir) = (level.pair().await, level.path.clone());
        let (old, new) = match pair {
            Ok((None, None)) => {
                self.open.pop();
                return true;
            }
            Ok(pair) => pair,
            Err(error) => {
                self.open.pop();
                self.note(error);
                return true;
            }
        };
        let Some(name) = old.as_ref().or(new.as_ref()).map(|entry| &entry.name) else { return true };
        match dir.join(name) {
            Ok(path) => self.compare(path, old, new),
            Err(error) => self.note(Error::corrupt("directory", error)),
        }
        true
    }

    fn compare(&mut self, path: RelPath, old: Option<Entry>, new: Option<Entry>) {
        let root = |entry: &Option<Entry>| match entry.as_ref().map(|entry| &entry.node) {
            Some(Node::Dir { root }) => Some(*root),
            _ => None,
        };
        let (old_root, new_root) = (root(&old), root(&new));
        if let Some(change) = self.change(&old, &new) {
            let mut shown = absolute(&RelPath::root(), &path);
            if old_root.or(new_root).is_some() {
                shown.push(b'/');
            }
            (self.each)(Difference { path: shown, change });
        }
        if old_root != new_root {
            self.enter(path, old_root, new_root);
        }
    }

    /// How the entries differ, and counts it.
    fn change(&mut self, old: &Option<Entry>, new: &Option<Entry>) -> Option<Change> {
        let (old, new) = match (old, new) {
            (Some(old), Some(new)) => (old, new),
            (Some(old), None) => {
                self.totals.removed.add(&old.node);
                return Some(Change::Removed);
            }
            (None, Some(new)) => {
                self.totals.added.add(&new.node);
                return Some(Change::Added);
            }
            (None, None) => return None,
        };
        if std::mem::discriminant(&old.node) != std::mem::discriminant(&new.node) {
            self.totals.removed.add(&old.node);
            self.totals.added.add(&new.node);
            return Some(Change::Type);
        }
        let same_meta = old.meta == new.meta;
        match (&old.node, &new.node) {
            // What is below it is looked at by itself.
            (Node::Dir { .. }, Node::Dir { .. }) => {}
            (Node::File { size: before, .. }, Node::File { size: after, .. }) if old.node != new.node => {
                self.totals.changed_files += 1;
                let rotten = same_meta && before == after;
                return Some(if rotten { Change::Rotten } else { Change::Modified });
            }
            (a, b) if a != b => return Some(Change::Modified),
            _ => {}
        }
        (self.attributes && !same_meta).then_some(Change::Attributes)
    }
}

#[cfg(test)]
#[path = "diff_test.rs"]
mod tests;
