//! Changing the tags of a snapshot. It keeps its id, its time and its lock: only what is said of it changes.

use crate::client::Repository;
use crate::error::{Error, Result};
use crate::format::SnapshotInfo;
use crate::list::{Snapshot, records};
use farshore_core::catalogue::RepoChange;
use farshore_core::limits::SNAPSHOT_TAGS_MAX;
use std::collections::BTreeSet;

/// What is done to the tags.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TagChange {
    /// They become these.
    Set(Vec<String>),
    /// These are added, those taken away.
    Edit {
        /// Added unless they are there.
        add: Vec<String>,
        /// Taken away if they are there.
        remove: Vec<String>,
    },
}

impl TagChange {
    /// The tags after the change, in the order in which they came.
    fn of(&self, tags: &[String]) -> Vec<String> {
        let (kept, added): (Vec<&String>, &[String]) = match self {
            TagChange::Set(tags) => (Vec::new(), tags),
            TagChange::Edit { add, remove } => {
                (tags.iter().filter(|tag| !remove.contains(tag)).collect(), add)
            }
        };
        let mut seen = BTreeSet::new();
        let all = kept.into_iter().chain(added).filter(|tag| !tag.is_empty());
        all.filter(|tag| seen.insert(tag.as_str())).cloned().collect()
    }
}

impl Repository {
    /// Changes the tags of a snapshot. Whether they are others now. Refused if somebody else has changed them since it was
    /// read.
    pub async fn tag(&self, snapshot: &Snapshot, change: &TagChange) -> Result<bool> {
        let tags = change.of(&snapshot.info.tags);
        if tags == snapshot.info.tags {
            return Ok(false);
        }
        if tags.len() > SNAPSHOT_TAGS_MAX {
            return Err(Error::Invalid(format!("a snapshot has at most {SNAPSHOT_TAGS_MAX} tags")));
        }
        let keys = self.newest_keys().await?;
        let listed = records(self.catalogue(), &keys, false).await?;
        let record = listed.into_iter().map(|(record, _)| record).find(|record| record.id == snapshot.id);
        let record = record.ok_or_else(|| Error::SnapshotMissing(snapshot.id.to_string()))?;
        let mut info = SnapshotInfo::open(&keys, &record.id, &record.sealed)?;
        // What was decided on older tags would undo what came after them.
        if info.tags != snapshot.info.tags {
            let short = snapshot.id.short();
            return Err(Error::Invalid(format!(
                "snapshot {short} has been changed since it was read; try again"
            )));
        }
        let hashes: BTreeSet<[u8; 8]> = tags.iter().map(|tag| keys.tag(tag)).collect();
        info.tags = tags;
        let change = RepoChange::Describe {
            snapshot: record.id,
            expected: record.sealed_hash(),
            sealed: info.seal(&keys, &record.id, self.host().entropy.as_ref())?,
            tags: hashes.into_iter().collect(),
        };
        self.catalogue().change_repository(self.id(), change).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_set_added_and_taken_away() {
        let tags = |text: &str| text.split(',').map(str::to_owned).collect::<Vec<_>>();
        let now = tags("a,b");
        assert_eq!(TagChange::Set(tags("c,c,d")).of(&now), tags("c,d"));
        assert_eq!(TagChange::Set(vec![String::new()]).of(&now), Vec::<String>::new());
        let edit = TagChange::Edit { add: tags("c,a"), remove: tags("b,x") };
        assert_eq!(edit.of(&now), tags("a,c"));
    }
}
