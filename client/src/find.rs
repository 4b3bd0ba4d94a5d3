//! Finding paths in snapshots by patterns and times.

use crate::error::{Error, Result};
use crate::files::RelPath;
use crate::format::{ChunkSource, Entry, Node};
use crate::list::{ListedEntry, Snapshot, absolute};
use crate::select::Select;
use crate::walk::{Step, Walk};
use farshore_core::id::ChunkId;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Directories in which nothing was found are remembered up to this number: in the next snapshot most are the same.
const BARREN_MAX: usize = 65_536;

/// What is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Wanted {
    /// Which paths, by patterns. What a pattern matches is found with everything below it, as in restic.
    pub select: Select,
    /// Changed at this time or later, Unix milliseconds.
    pub since_ms: Option<i64>,
    /// Changed at this time or earlier, Unix milliseconds.
    pub until_ms: Option<i64>,
}

impl Wanted {
    fn admits(&self, path: &RelPath, entry: &Entry) -> bool {
        let at = entry.meta.mtime.as_ms();
        self.since_ms.is_none_or(|since| at >= since)
            && self.until_ms.is_none_or(|until| at <= until)
            && self.select.admits(path)
    }
}

/// Looks through one snapshot after the other.
pub struct Finder {
    source: Arc<dyn ChunkSource>,
    wanted: Wanted,
    barren: BTreeSet<(RelPath, ChunkId)>,
}

impl Finder {
    /// Has looked at nothing yet.
    pub fn new(source: Arc<dyn ChunkSource>, wanted: Wanted) -> Self {
        Finder { source, wanted, barren: BTreeSet::new() }
    }

    /// Calls `each` for every entry of the snapshot that is wanted, in the order of paths. Directories that cannot be read are
    /// an error at the end, after everything else.
    pub async fn look(
        &mut self,
        snapshot: &Snapshot,
        each: &mut (dyn FnMut(ListedEntry) + Send),
    ) -> Result<()> {
        let mut walk = Walk::new(self.source.clone(), snapshot.info.root);
        // The directories that the walk is in, and whether anything was found in each.
        let mut inside: Vec<(RelPath, ChunkId, bool)> = Vec::new();
        let mut broken: Option<Error> = None;
        while let Some(step) = walk.next().await {
            match step {
                Step::Entry(path, entry) => {
                    let admitted = self.wanted.admits(&path, &entry);
                    if let Node::Dir { root } = entry.node {
                        let barren = self.barren.contains(&(path.clone(), root));
                        if barren || !self.wanted.select.may_contain(&path) {
                            walk.skip();
                        } else {
                            inside.push((path.clone(), root, false));
                        }
                    }
                    if admitted {
                        inside.iter_mut().for_each(|(.., found)| *found = true);
                        let path = absolute(&RelPath::root(), &path);
                        each(ListedEntry { path, node: entry.node, meta: entry.meta });
                    }
                }
                Step::Leave(_) => {
                    if let Some((path, root, false)) = inside.pop()
                        && self.barren.len() < BARREN_MAX
                    {
                        self.barren.insert((path, root));
                    }
                }
                Step::Broken(_, error) => {
                    inside.iter_mut().for_each(|(.., found)| *found = true);
                    inside.pop();
                    broken = broken.or(Some(error));
                }
            }
        }
        broken.map_or(Ok(()), Err)
    }
}
