//! Taking away what stands in a restored directory and is not in the snapshot.

use super::write::Writer;
use crate::error::Result;
use crate::files::{RelPath, Target};
use crate::format::{ChunkSource, DirIter};
use crate::list::Snapshot;
use crate::select::Select;
use farshore_core::id::ChunkId;
use std::sync::Arc;

/// Takes away.
pub struct Prune<'a> {
    /// Where things stand.
    pub target: &'a dyn Target,
    /// The tree.
    pub trees: &'a Arc<dyn ChunkSource>,
    /// What the restore is about; nothing else is taken away.
    pub select: &'a Select,
    /// Whose tree it is.
    pub snapshot: &'a Snapshot,
    /// Where the restored tree begins in it.
    pub root: &'a [u8],
    /// Count only.
    pub dry_run: bool,
}

impl Prune<'_> {
    /// Takes away what is not in the directory `dir` of the snapshot. A directory that was only on the way to what was backed
    /// up is left alone: the snapshot does not know what else is in it.
    pub async fn dir(&self, dir: &RelPath, node: ChunkId, writer: &mut Writer<'_>) {
        if !self.is_known(dir) {
            return;
        }
        let extra = match self.extra(dir, node).await {
            Ok(extra) => extra,
            Err(error) => return writer.problem(dir, &format!("nothing was removed from it: {error}")),
        };
        for path in extra {
            let removed = if self.dry_run { Ok(()) } else { self.target.remove(&path).await };
            match removed {
                Ok(()) => writer.removed(&path),
                Err(error) => writer.problem(&path, &format!("remove: {error}")),
            }
        }
    }

    /// Whether the snapshot knows all that was in a directory.
    fn is_known(&self, dir: &RelPath) -> bool {
        let path = [self.root, b"/", dir.as_bytes()].concat();
        let Ok(path) = RelPath::from_path(&path) else { return false };
        let path: Vec<&[u8]> = path.parts().collect();
        self.snapshot.info.paths.iter().any(|saved| {
            let mut parts = saved.split(|b| *b == b'/').filter(|part| !part.is_empty());
            let mut path = path.iter();
            parts.all(|part| path.next() == Some(&part))
        })
    }

    async fn extra(&self, dir: &RelPath, node: ChunkId) -> Result<Vec<RelPath>> {
        let standing = self.target.names(dir).await;
        let standing =
            standing.map_err(|e| crate::error::Error::local(format!("list {dir} in the target"), e))?;
        let mut entries = DirIter::new(self.trees.clone(), node);
        let mut saved = entries.next().await?;
        let mut extra = Vec::new();
        // Both are in the order of their names.
        for name in standing {
            while saved.as_ref().is_some_and(|entry| entry.name < name) {
                saved = entries.next().await?;
            }
            if saved.as_ref().is_some_and(|entry| entry.name == name) {
                continue;
            }
            if let Ok(path) = dir.join(&name)
                && self.select.admits(&path)
            {
                extra.push(path);
            }
        }
        Ok(extra)
    }
}
