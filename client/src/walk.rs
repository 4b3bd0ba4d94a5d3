//! Walking a snapshot's tree in order, depth first, one leaf of each open directory in memory. A directory that cannot
//! be read is reported and left; the walk goes on beside it.

use crate::error::{Error, Result};
use crate::files::RelPath;
use crate::format::{ChunkSource, DirIter, Entry, Node};
use farshore_core::id::ChunkId;
use farshore_core::limits::TREE_DEPTH_MAX;
use std::sync::Arc;

/// One step of a walk.
#[derive(Debug)]
pub enum Step {
    /// An entry. If it is a directory its contents follow, then [`Step::Leave`], unless the walk is told to skip it.
    Entry(RelPath, Entry),
    /// The directory has no further entries.
    Leave(RelPath),
    /// The rest of this directory cannot be read.
    Broken(RelPath, Error),
}

/// A walk below one directory.
pub struct Walk {
    source: Arc<dyn ChunkSource>,
    open: Vec<(RelPath, DirIter)>,
    /// The directory just given out, entered at the next step.
    entering: Option<(RelPath, ChunkId)>,
    /// The only entry of a walk that has no directory.
    single: Option<(RelPath, Entry)>,
}

impl Walk {
    /// Walks the entries of the directory `root`; their paths are relative to it. The root itself is not reported.
    pub fn new(source: Arc<dyn ChunkSource>, root: ChunkId) -> Self {
        Walk { source, open: Vec::new(), entering: Some((RelPath::root(), root)), single: None }
    }

    /// A walk that meets one entry, which is no directory, and ends.
    pub fn single(source: Arc<dyn ChunkSource>, entry: Entry) -> Result<Self> {
        let path = RelPath::root().join(&entry.name).map_err(|e| Error::corrupt("directory", e))?;
        Ok(Walk { source, open: Vec::new(), entering: None, single: Some((path, entry)) })
    }

    /// Does not enter the directory that the last step gave out; no `Leave` follows for it.
    pub fn skip(&mut self) {
        self.entering = None;
    }

    /// The next step, `None` at the end. Not cancel-safe: a cancelled step may lose entries.
    pub async fn next(&mut self) -> Option<Step> {
        if let Some((path, entry)) = self.single.take() {
            return Some(Step::Entry(path, entry));
        }
        if let Some((path, root)) = self.entering.take() {
            if self.open.len() >= TREE_DEPTH_MAX {
                let why = Error::corrupt("directory", "it is nested too deeply");
                return Some(Step::Broken(path, why));
            }
            self.open.push((path, DirIter::new(self.source.clone(), root)));
        }
        let (path, dir) = self.open.last_mut()?;
        match next_entry(path, dir).await {
            Ok(Some((path, entry))) => {
                if let Node::Dir { root } = entry.node {
                    self.entering = Some((path.clone(), root));
                }
                Some(Step::Entry(path, entry))
            }
            Ok(None) => self.leave(),
            Err(error) => {
                let broken = Step::Broken(path.clone(), error);
                // No `Leave` follows: what is in the directory is not known to be all of it.
                self.open.pop();
                Some(broken)
            }
        }
    }

    /// Leaves the innermost directory; the end of the root is the end of the walk.
    fn leave(&mut self) -> Option<Step> {
        let (path, _) = self.open.pop()?;
        if self.open.is_empty() { None } else { Some(Step::Leave(path)) }
    }
}

async fn next_entry(path: &RelPath, dir: &mut DirIter) -> Result<Option<(RelPath, Entry)>> {
    let Some(entry) = dir.next().await? else { return Ok(None) };
    let path = path.join(&entry.name).map_err(|e| Error::corrupt("directory", e))?;
    Ok(Some((path, entry)))
}
