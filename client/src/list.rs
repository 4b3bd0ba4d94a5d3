//! Which snapshots there are, what a person means by `latest`, `3f9a` or `3f9a:/home/x`, and what lies at a path.

use crate::api::CatalogueApi;
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::files::{Meta, RelPath};
use crate::format::tree::{Entry, Node, lookup};
use crate::format::{ChunkSource, SnapshotInfo};
use crate::walk::{Step, Walk};
use farshore_core::catalogue::{SnapshotMarks, SnapshotRecord};
use farshore_core::id::{ChunkId, SnapshotId};
use std::sync::Arc;

/// Fewest digits that name a snapshot.
pub const SHORT_ID_DIGITS_MIN: usize = 4;
/// Stands for the newest snapshot.
const LATEST: &str = "latest";

/// A snapshot with its description opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Snapshot {
    /// Its id.
    pub id: SnapshotId,
    /// Catalogue time of its commit, Unix milliseconds; what retention and order rest on.
    pub committed_ms: u64,
    /// Keyed hash of host and paths.
    pub group: [u8; 16],
    /// Lock, verification, and whether it lies in the trash.
    pub marks: SnapshotMarks,
    /// What the client that made it recorded.
    pub info: SnapshotInfo,
}

/// Which snapshots are meant. Empty lists mean all.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Filter {
    /// Made on one of these hosts.
    pub hosts: Vec<String>,
    /// With all tags of one of these lists.
    pub tags: Vec<Vec<String>>,
    /// With all of these paths among the paths backed up.
    pub paths: Vec<Vec<u8>>,
}

impl Filter {
    /// Whether a snapshot passes.
    pub fn admits(&self, info: &SnapshotInfo) -> bool {
        (self.hosts.is_empty() || self.hosts.contains(&info.host))
            && (self.tags.is_empty()
                || self.tags.iter().any(|all| all.iter().all(|tag| info.tags.contains(tag))))
            && self.paths.iter().all(|path| info.paths.contains(path))
    }
}

/// Every snapshot of the repository that the filter admits, oldest first. A description that does not open is an
/// error: leaving a snapshot out silently would look like its loss.
pub async fn snapshots(api: &dyn CatalogueApi, keys: &RepoKeys, filter: &Filter) -> Result<Vec<Snapshot>> {
    let listed = records(api, keys, false).await?.into_iter().filter(|listed| !listed.0.label.partial);
    opened(keys, listed, filter)
}

/// Every snapshot in the trash that the filter admits, oldest first.
pub async fn trash(api: &dyn CatalogueApi, keys: &RepoKeys, filter: &Filter) -> Result<Vec<Snapshot>> {
    opened(keys, records(api, keys, true).await?, filter)
}

fn opened(
    keys: &RepoKeys,
    listed: impl IntoIterator<Item = Listed>,
    filter: &Filter,
) -> Result<Vec<Snapshot>> {
    let mut all = Vec::new();
    for listed in listed {
        all.push(open(keys, &listed)?);
    }
    all.retain(|s| filter.admits(&s.info));
    // Two snapshots of one millisecond keep a stable order.
    all.sort_by_key(|s| (s.committed_ms, s.info.time_ms, s.id));
    Ok(all)
}

/// The one snapshot a name means among those the filter admits. By id, only those it fits are opened: one description
/// that does not open, such as that of a newer program, must not keep every other snapshot from being restored.
pub async fn resolve(
    api: &dyn CatalogueApi,
    keys: &RepoKeys,
    name: &str,
    filter: &Filter,
) -> Result<Snapshot> {
    if name == LATEST {
        return pick(&snapshots(api, keys, filter).await?, name).cloned();
    }
    let prefix = id_prefix(name)?;
    let mut fits = Vec::new();
    let listed = records(api, keys, false).await?;
    for listed in listed.iter().filter(|(record, _)| record.id.to_string().starts_with(&prefix)) {
        fits.push(open(keys, listed)?);
    }
    fits.retain(|s| filter.admits(&s.info));
    pick(&fits, name).cloned()
}

/// A record and what is kept beside it.
pub type Listed = (SnapshotRecord, SnapshotMarks);

fn open(keys: &RepoKeys, (record, marks): &Listed) -> Result<Snapshot> {
    let info = SnapshotInfo::open(keys, &record.id, &record.sealed)?;
    let SnapshotRecord { id, committed_ms, group, .. } = *record;
    Ok(Snapshot { id, committed_ms, group, marks: *marks, info })
}

/// All records, by id, their bitmaps left out; or those in the trash.
pub async fn records(api: &dyn CatalogueApi, keys: &RepoKeys, trash: bool) -> Result<Vec<Listed>> {
    let mut all = Vec::<Listed>::new();
    loop {
        let after = all.last().map(|(record, _)| record.id);
        let page = api.list_snapshots(keys.repo(), after, trash).await?;
        if page.snapshots.first().is_some_and(|first| after.is_some_and(|after| first.id <= after)) {
            return Err(Error::Protocol("a page of snapshots does not continue the one before".into()));
        }
        let more = page.more && !page.snapshots.is_empty();
        let marks = page.marks.into_iter().chain(std::iter::repeat(SnapshotMarks::default()));
        all.extend(page.snapshots.into_iter().zip(marks));
        if !more {
            return Ok(all);
        }
    }
}

/// What `SNAP` or `SNAP:PATH` says, taken apart.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    /// `latest`, an id or the beginning of one.
    pub snapshot: String,
    /// The path, if there is one.
    pub path: Option<Vec<u8>>,
}

impl Spec {
    /// Splits at the first colon; ids have none, so the path may have more.
    pub fn parse(text: &[u8]) -> Spec {
        let colon = text.iter().position(|b| *b == b':');
        let (name, path) = match colon {
            Some(at) => (&text[..at], Some(text[at + 1..].to_vec())),
            None => (text, None),
        };
        Spec { snapshot: String::from_utf8_lossy(name).into_owned(), path }
    }
}

/// The one snapshot a name means among these (sorted, oldest first).
pub fn pick<'a>(snapshots: &'a [Snapshot], name: &str) -> Result<&'a Snapshot> {
    let missing = || Error::SnapshotMissing(name.into());
    if name == LATEST {
        return snapshots.last().ok_or_else(missing);
    }
    let prefix = id_prefix(name)?;
    let fits: Vec<_> = snapshots.iter().filter(|s| s.id.to_string().starts_with(&prefix)).collect();
    match fits[..] {
        [] => Err(missing()),
        [one] => Ok(one),
        _ => Err(Error::SnapshotAmbiguous {
            spec: name.into(),
            fits: fits.into_iter().map(|s| s.id).collect(),
        }),
    }
}

fn id_prefix(name: &str) -> Result<String> {
    let prefix = name.to_ascii_lowercase();
    if prefix.len() < SHORT_ID_DIGITS_MIN || !prefix.bytes().all(|b| b.is_ascii_hexdigit()) {
        let what =
            format!("{name:?} is no snapshot id: give `latest` or at least {SHORT_ID_DIGITS_MIN} digits");
        return Err(Error::Invalid(what));
    }
    Ok(prefix)
}

/// A place in a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Spot {
    /// A directory, the root of the snapshot included: its top tree node.
    Dir(ChunkId),
    /// Anything else.
    Entry(Box<Entry>),
}

/// What lies at a path of a snapshot.
pub async fn find(source: &dyn ChunkSource, snapshot: &Snapshot, path: &[u8]) -> Result<Spot> {
    let missing =
        || Error::PathMissing { snapshot: snapshot.id, path: String::from_utf8_lossy(path).into_owned() };
    let mut spot = Spot::Dir(snapshot.info.root);
    let path = RelPath::from_path(path).map_err(|_| missing())?;
    for name in path.parts() {
        let Spot::Dir(root) = spot else { return Err(missing()) };
        let entry = lookup(source, root, name).await?.ok_or_else(missing)?;
        spot = match entry.node {
            Node::Dir { root } => Spot::Dir(root),
            _ => Spot::Entry(Box::new(entry)),
        };
    }
    Ok(spot)
}

/// One line of a listing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedEntry {
    /// Absolute path in the snapshot.
    pub path: Vec<u8>,
    /// What it is.
    pub node: Node,
    /// Its attributes.
    pub meta: Meta,
}

/// Lists what lies below a path, in order, calling `each` for every entry; `recursive` goes below directories.
/// Directories that cannot be read are an error at the end, after everything else was listed.
pub async fn ls(
    source: Arc<dyn ChunkSource>,
    snapshot: &Snapshot,
    path: &[u8],
    recursive: bool,
    each: &mut (dyn FnMut(ListedEntry) + Send),
) -> Result<()> {
    let base = RelPath::from_path(path).map_err(|e| Error::Invalid(e.to_string()))?;
    let root = match find(source.as_ref(), snapshot, path).await? {
        Spot::Dir(root) => root,
        Spot::Entry(entry) => {
            each(ListedEntry { path: absolute(&base, &RelPath::root()), node: entry.node, meta: entry.meta });
            return Ok(());
        }
    };
    let mut walk = Walk::new(source, root);
    let mut broken = None;
    while let Some(step) = walk.next().await {
        match step {
            Step::Entry(path, entry) => {
                if !recursive {
                    walk.skip();
                }
                each(ListedEntry { path: absolute(&base, &path), node: entry.node, meta: entry.meta });
            }
            Step::Leave(_) => {}
            Step::Broken(_, error) => broken = broken.or(Some(error)),
        }
    }
    broken.map_or(Ok(()), Err)
}

/// The path in the snapshot of an entry found below `base`.
pub fn absolute(base: &RelPath, below: &RelPath) -> Vec<u8> {
    let mut path = Vec::new();
    for part in base.parts().chain(below.parts()) {
        path.push(b'/');
        path.extend_from_slice(part);
    }
    if path.is_empty() { b"/".to_vec() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::SnapshotStats;
    use farshore_core::catalogue::SnapshotKind;

    fn snapshot(first: [u8; 3], time: u64, host: &str, tags: &[&str]) -> Snapshot {
        let mut id = [0; 32];
        id[..3].copy_from_slice(&first);
        let info = SnapshotInfo {
            time_ms: time,
            utc_offset_min: None,
            host: host.into(),
            user: "u".into(),
            paths: vec![b"/a".to_vec(), b"/b".to_vec()],
            tags: tags.iter().map(|t| t.to_string()).collect(),
            root: ChunkId([0; 32]),
            kind: SnapshotKind::Full,
            parent: None,
            base: None,
            program: "t".into(),
            scan_start_ms: 0,
            scan_end_ms: 0,
            stats: SnapshotStats::default(),
            unreadable: vec![],
        };
        Snapshot {
            id: SnapshotId(id),
            committed_ms: time,
            group: [0; 16],
            marks: SnapshotMarks::default(),
            info,
        }
    }

    #[test]
    fn short_ids_and_latest() {
        let all = [
            snapshot([0xab, 0xcd, 0x01], 1, "h", &[]),
            snapshot([0xab, 0xcd, 0x02], 2, "h", &[]),
            snapshot([0x12, 0x34, 0x56], 3, "h", &[]),
        ];
        assert_eq!(pick(&all, "latest").unwrap().id, all[2].id);
        assert_eq!(pick(&all, "abcd01").unwrap().id, all[0].id);
        assert_eq!(pick(&all, "ABCD02").unwrap().id, all[1].id);
        assert_eq!(pick(&all, &all[2].id.to_string()).unwrap().id, all[2].id);
        let Err(Error::SnapshotAmbiguous { fits, .. }) = pick(&all, "abcd") else { panic!() };
        assert_eq!(fits, [all[0].id, all[1].id]);
        assert!(matches!(pick(&all, "ffff"), Err(Error::SnapshotMissing(_))));
        assert!(matches!(pick(&all, "123"), Err(Error::Invalid(_))), "too short");
        assert!(matches!(pick(&all, "wxyz"), Err(Error::Invalid(_))));
        assert!(matches!(pick(&[], "latest"), Err(Error::SnapshotMissing(_))));
    }

    #[test]
    fn specs() {
        let spec = Spec::parse(b"latest");
        assert_eq!((spec.snapshot.as_str(), spec.path), ("latest", None));
        let spec = Spec::parse(b"abcd:/x/y:z\xff");
        assert_eq!((spec.snapshot.as_str(), spec.path.unwrap()), ("abcd", b"/x/y:z\xff".to_vec()));
    }

    #[test]
    fn filters() {
        let s = snapshot([1, 2, 3], 1, "alpha", &["x", "y"]).info;
        let filter = |hosts: &[&str], tags: &[&[&str]], paths: &[&[u8]]| Filter {
            hosts: hosts.iter().map(|h| h.to_string()).collect(),
            tags: tags.iter().map(|all| all.iter().map(|t| t.to_string()).collect()).collect(),
            paths: paths.iter().map(|p| p.to_vec()).collect(),
        };
        assert!(filter(&[], &[], &[]).admits(&s));
        assert!(filter(&["beta", "alpha"], &[&["x", "y"]], &[b"/a"]).admits(&s));
        assert!(filter(&[], &[&["z"], &["x"]], &[]).admits(&s), "lists are alternatives");
        assert!(!filter(&["beta"], &[], &[]).admits(&s));
        assert!(!filter(&[], &[&["x", "z"]], &[]).admits(&s), "within a list all must be there");
        assert!(!filter(&[], &[], &[b"/a", b"/c"]).admits(&s));
    }
}
