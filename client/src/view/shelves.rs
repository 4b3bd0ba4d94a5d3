//! The directories above the snapshots: which there are and what each shows. Pure.

use super::template::TimeTemplate;
use crate::files::RelPath;
use crate::list::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Name of the link to the newest snapshot.
const LATEST: &[u8] = b"latest";

/// What a name above the snapshots stands for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// One more such directory.
    Shelf(RelPath),
    /// A link to the name beside it that was given last.
    Latest(Vec<u8>),
    /// A snapshot.
    Snapshot(Arc<Snapshot>),
}

/// What one directory shows, by name.
pub type Shelf = BTreeMap<Vec<u8>, Place>;

/// All of them, by path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shelves(BTreeMap<RelPath, Shelf>);

impl Shelves {
    /// Puts snapshots (oldest first) where they belong: `snapshots/TIME`, `ids/ID`, `hosts/HOST/TIME`, `tags/TAG/TIME`.
    pub fn new(snapshots: Vec<Snapshot>, template: &TimeTemplate) -> Self {
        let mut shelves = Shelves(BTreeMap::new());
        // There even when nothing is in them.
        for name in ["snapshots", "ids", "hosts", "tags"] {
            shelves.make(&[name]);
        }
        for snapshot in snapshots {
            let info = &snapshot.info;
            let time = template.name(info.time_ms, info.utc_offset_min).unwrap_or_default();
            let id = snapshot.id.short();
            let (host, tags) = (info.host.clone(), info.tags.clone());
            let snapshot = Arc::new(snapshot);
            shelves.put(&["snapshots"], &time, true, &snapshot);
            shelves.put(&["ids"], &id, false, &snapshot);
            shelves.put(&["hosts", &host], &time, true, &snapshot);
            for tag in tags {
                shelves.put(&["tags", &tag], &time, true, &snapshot);
            }
        }
        shelves
    }

    /// What the directory at a path shows; `None` if there is none.
    pub fn shelf(&self, path: &RelPath) -> Option<&Shelf> {
        self.0.get(path)
    }

    fn make(&mut self, path: &[&str]) -> RelPath {
        let mut at = RelPath::root();
        for part in path {
            let name = file_name(part);
            // What is left to refuse is a name that is far too long.
            let below = at.join(&name).unwrap_or_else(|_| at.clone());
            self.0.entry(at).or_default().insert(name, Place::Shelf(below.clone()));
            at = below;
        }
        self.0.entry(at.clone()).or_default();
        at
    }

    /// Under a name that nothing else has here. The newest is last, so that the link points to it in the end.
    fn put(&mut self, path: &[&str], name: &str, linked: bool, snapshot: &Arc<Snapshot>) {
        let at = self.make(path);
        let shelf = self.0.entry(at).or_default();
        let mut free = file_name(name);
        for number in 1.. {
            if !shelf.contains_key(&free) {
                break;
            }
            free = file_name(&format!("{name}-{number}"));
        }
        shelf.insert(free.clone(), Place::Snapshot(snapshot.clone()));
        if linked {
            shelf.insert(LATEST.to_vec(), Place::Latest(free));
        }
    }
}

/// Hosts and labels are any text; as in restic what cannot be a file name becomes `_`.
fn file_name(text: &str) -> Vec<u8> {
    match text {
        "" | "." => b"_".to_vec(),
        ".." => b"__".to_vec(),
        _ => text.replace(['/', '\0'], "_").into_bytes(),
    }
}
