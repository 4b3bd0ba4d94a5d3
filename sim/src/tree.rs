//! The Source and Target seams: trees of files in memory, grown from a seed, and the comparison of two of them.

use crate::entropy::Rng;
use crate::taint::Taint;
use async_trait::async_trait;
use bytes::Bytes;
use farshore_client::files::target::{Kept, ReadAt, RelPath, Standing, Target, TargetFile};
use farshore_client::files::{
    FileKind, FileTime, Fingerprint, Listed, Listing, Meta, Opened, Source, SourceFile, Stat,
};
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

/// One path of a tree.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Kind and attributes.
    pub stat: Stat,
    /// Contents of a regular file.
    pub bytes: Bytes,
}

/// A tree: absolute path, without the leading slash, to entry. The root itself is not in it.
pub type Tree = BTreeMap<Vec<u8>, Entry>;

/// Files above this size are rare, so that most of a world fits a few packs.
const FILE_BYTES_USUAL: u64 = 20_000;
const FILE_BYTES_LARGE: u64 = 3_000_000;

/// Grows a tree below `src/`: directories, files of many sizes, links, odd names. `now_secs` is the newest time in it.
pub fn grow(rng: &mut Rng, files: u64, now_secs: i64) -> Tree {
    let mut tree = Tree::new();
    let mut inode = 100;
    let mut stat = |rng: &mut Rng, kind, mode| {
        inode += 1;
        let time = FileTime {
            secs: now_secs - rng.range(10, 1_000_000) as i64,
            nanos: rng.below(1_000_000_000) as u32,
        };
        let meta = Meta {
            mode,
            uid: 1000,
            gid: 100,
            mtime: time,
            ctime: time,
            ino: inode,
            dev: 7,
            nlink: 1,
            ..Meta::default()
        };
        Stat { kind, meta }
    };
    let mut dirs: Vec<Vec<u8>> = vec![b"src".to_vec()];
    tree.insert(b"src".to_vec(), Entry { stat: stat(rng, FileKind::Dir, 0o755), bytes: Bytes::new() });
    for number in 0..files {
        let dir = dirs[rng.below(dirs.len() as u64) as usize].clone();
        let path = |name: String| [&dir[..], b"/", name.as_bytes()].concat();
        match rng.below(10) {
            0 => {
                let path = path(format!("dir{number}"));
                let dir = Entry { stat: stat(rng, FileKind::Dir, 0o750), bytes: Bytes::new() };
                tree.insert(path.clone(), dir);
                dirs.push(path);
            }
            1 => {
                let target = format!("../file{}", rng.below(files)).into_bytes();
                let link =
                    Entry { stat: stat(rng, FileKind::Symlink { target }, 0o777), bytes: Bytes::new() };
                tree.insert(path(format!("link{number}")), link);
            }
            _ => {
                let bytes = contents(rng);
                let kind = FileKind::File { size: bytes.len() as u64 };
                let mut name = path(format!("file{number}"));
                if rng.one_in(20) {
                    name.extend_from_slice(b"\xff\n odd");
                }
                tree.insert(name, Entry { stat: stat(rng, kind, 0o640), bytes });
            }
        }
    }
    tree
}

/// Bytes of contents that make a secret: far too many to meet by chance.
const SECRET_BYTES: usize = 24;

/// Adds a file with a random name and random contents, and has both watched for.
pub fn plant(rng: &mut Rng, tree: &mut Tree, taint: &Taint) {
    let Some(root) = tree.get(&b"src"[..]).cloned() else { return };
    let name = format!("{:016x}{:016x}", rng.draw(), rng.draw());
    let mut bytes = vec![0; rng.range(2_000, 6_000) as usize];
    rng.fill(&mut bytes);
    taint.keep("a file's name", name.as_bytes());
    // Any long piece of it has some of these in it.
    for at in (0..bytes.len() - SECRET_BYTES).step_by(500) {
        taint.keep("a file's contents", &bytes[at..at + SECRET_BYTES]);
    }
    let mut stat = root.stat;
    stat.kind = FileKind::File { size: bytes.len() as u64 };
    stat.meta.mode = 0o600;
    stat.meta.ino = rng.range(1 << 32, 1 << 33);
    tree.insert([b"src/", name.as_bytes()].concat(), Entry { stat, bytes: bytes.into() });
}

fn contents(rng: &mut Rng) -> Bytes {
    let len = match rng.below(20) {
        0 => 0,
        1 => rng.below(FILE_BYTES_LARGE),
        _ => rng.below(FILE_BYTES_USUAL),
    };
    let mut bytes = vec![0u8; len as usize];
    if rng.one_in(3) {
        // Text-like: compresses.
        let words: [&[u8]; 4] = [b"shore ", b"far ", b"harbour ", b"tide\n"];
        let mut at = 0;
        while at < bytes.len() {
            let word = words[rng.below(4) as usize];
            let take = word.len().min(bytes.len() - at);
            bytes[at..at + take].copy_from_slice(&word[..take]);
            at += take;
        }
    } else {
        rng.fill(&mut bytes);
    }
    bytes.into()
}

/// Changes some files and returns how many; their times move to `now_secs`.
pub fn edit(rng: &mut Rng, tree: &mut Tree, now_secs: i64) -> u64 {
    let paths: Vec<Vec<u8>> = tree.keys().cloned().collect();
    let mut changed = 0;
    for path in paths.into_iter().filter(|_| rng.one_in(8)).collect::<Vec<_>>() {
        let Some(entry) = tree.get(&path).filter(|entry| entry.stat.fingerprint().is_some()).cloned() else {
            continue;
        };
        changed += 1;
        change(rng, tree, path, entry, now_secs);
    }
    changed
}

/// What people do to files.
fn change(rng: &mut Rng, tree: &mut Tree, path: Vec<u8>, mut entry: Entry, now_secs: i64) {
    let now = FileTime { secs: now_secs, nanos: rng.below(1_000_000_000) as u32 };
    let mut beside = path.clone();
    beside.extend_from_slice(format!(".{:x}", rng.below(1 << 20)).as_bytes());
    entry.stat.meta.ctime = now;
    let mut bytes = entry.bytes.to_vec();
    match rng.below(10) {
        0 => {
            tree.remove(&path);
            return;
        }
        // Renamed, as it is.
        1 => {
            tree.remove(&path);
            tree.insert(beside, entry);
            return;
        }
        // Copied, under an inode of its own.
        2 => {
            entry.stat.meta.ino = rng.range(1 << 33, 1 << 34);
            tree.insert(beside, entry);
            return;
        }
        3 => entry.stat.meta.mode ^= 0o011,
        4 => bytes.extend_from_slice(&contents(rng)),
        5 => bytes.truncate(rng.below(bytes.len() as u64 + 1) as usize),
        // In place: the length stays.
        6 if !bytes.is_empty() => {
            let at = rng.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << rng.below(8);
        }
        _ => bytes = contents(rng).into(),
    }
    if bytes != entry.bytes {
        entry.stat.meta.mtime = now;
        entry.stat.kind = FileKind::File { size: bytes.len() as u64 };
        entry.bytes = bytes.into();
    }
    tree.insert(path, entry);
}

/// Ends the line of a path that did not come back.
pub const MISSING: &str = " is missing";

/// Every difference between what was backed up and what came back, one line each. Inode numbers, change times and
/// link counts belong to the file system and are not compared.
pub fn differences(wanted: &Tree, found: &Tree) -> Vec<String> {
    let name = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let mut lines = Vec::new();
    for (path, want) in wanted {
        let Some(have) = found.get(path) else {
            lines.push(name(path) + MISSING);
            continue;
        };
        let (a, b) = (&want.stat.meta, &have.stat.meta);
        if want.stat.kind != have.stat.kind {
            lines.push(format!("{} is {:?}, not {:?}", name(path), have.stat.kind, want.stat.kind));
        } else if want.bytes != have.bytes {
            lines.push(format!("{} has other contents", name(path)));
        } else if (a.mode, a.uid, a.gid, a.mtime) != (b.mode, b.uid, b.gid, b.mtime) {
            lines.push(format!("{} has other attributes: {b:?}, not {a:?}", name(path)));
        }
    }
    lines.extend(
        found.keys().filter(|path| !wanted.contains_key(*path)).map(|p| format!("{} is new", name(p))),
    );
    lines
}

/// A tree to be backed up. Counts what is read of it.
pub struct SimSource {
    tree: Mutex<Tree>,
    bytes_read: AtomicU64,
}

impl SimSource {
    /// Serves this tree.
    pub fn new(tree: Tree) -> Self {
        SimSource { tree: Mutex::new(tree), bytes_read: AtomicU64::new(0) }
    }
    /// Replaces the tree.
    pub fn set(&self, tree: Tree) {
        *self.lock() = tree;
    }
    /// Bytes of file contents read since the last call.
    pub fn take_bytes_read(&self) -> u64 {
        self.bytes_read.swap(0, Ordering::Relaxed)
    }
    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().expect("no holder of this lock panics")
    }
}

fn key(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}

fn root() -> Stat {
    Stat { kind: FileKind::Dir, meta: Meta { mode: 0o755, nlink: 1, ..Meta::default() } }
}

#[async_trait]
impl Source for SimSource {
    async fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        if key(path).is_empty() {
            return Ok(root());
        }
        self.lock().get(key(path)).map(|e| e.stat.clone()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    async fn list(&self, path: &[u8]) -> io::Result<Box<dyn Listing>> {
        let mut prefix = key(path).to_vec();
        if !prefix.is_empty() {
            prefix.push(b'/');
        }
        let tree = self.lock();
        let below = tree.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
        let mut entries: Vec<Listed> = below
            .filter(|(path, _)| !path[prefix.len()..].contains(&b'/'))
            .map(|(path, e)| Listed { name: path[prefix.len()..].to_vec(), stat: Ok(e.stat.clone()) })
            .collect();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Box::new(SimListing(entries)))
    }
    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened> {
        let entry = self.lock().get(key(path)).cloned().ok_or(io::ErrorKind::NotFound)?;
        let seen = entry.stat.fingerprint().ok_or(io::ErrorKind::InvalidInput)?;
        let take = want.min(entry.bytes.len());
        self.bytes_read.fetch_add(entry.bytes.len() as u64, Ordering::Relaxed);
        let rest = entry.bytes.slice(take..);
        let rest: Option<Box<dyn SourceFile>> =
            if rest.is_empty() { None } else { Some(Box::new(SimOpen { rest, seen })) };
        Ok(Opened { head: entry.bytes.slice(..take), seen, rest })
    }
}

struct SimListing(Vec<Listed>);

#[async_trait]
impl Listing for SimListing {
    async fn next(&mut self) -> io::Result<Vec<Listed>> {
        let take = self.0.len().min(farshore_core::limits::PAGE_ROWS_MAX);
        Ok(self.0.drain(..take).collect())
    }
}

struct SimOpen {
    rest: Bytes,
    seen: Fingerprint,
}

#[async_trait]
impl SourceFile for SimOpen {
    async fn read(&mut self, want: usize) -> io::Result<Bytes> {
        let take = want.min(self.rest.len());
        Ok(self.rest.split_to(take))
    }
    async fn fingerprint(&mut self) -> io::Result<Fingerprint> {
        Ok(self.seen)
    }
}

/// A place to restore into. Clones are the same place.
#[derive(Clone, Default)]
pub struct SimTarget(Arc<Mutex<Tree>>);

impl SimTarget {
    /// What has been restored so far.
    pub fn tree(&self) -> Tree {
        self.lock().clone()
    }
    fn lock(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().expect("no holder of this lock panics")
    }
    fn put(&self, path: &RelPath, kind: FileKind, meta: &Meta, bytes: Bytes) -> io::Result<Kept> {
        let mut tree = self.lock();
        if let Some((dir, _)) = path.split()
            && !dir.as_bytes().is_empty()
            && !tree.get(dir.as_bytes()).is_some_and(|e| e.stat.kind == FileKind::Dir)
        {
            return Err(io::ErrorKind::NotFound.into());
        }
        let stat = Stat { kind, meta: meta.clone() };
        tree.insert(path.as_bytes().to_vec(), Entry { stat, bytes });
        Ok(Kept::default())
    }
}

#[async_trait]
impl Target for SimTarget {
    async fn make_dir(&self, path: &RelPath) -> io::Result<()> {
        if self.lock().contains_key(path.as_bytes()) {
            return Ok(());
        }
        self.put(path, FileKind::Dir, &Meta::default(), Bytes::new()).map(|_| ())
    }
    async fn begin_file(&self, path: &RelPath, size: u64) -> io::Result<Box<dyn TargetFile>> {
        Ok(Box::new(SimWriting { target: self.clone(), path: path.clone(), bytes: vec![0; size as usize] }))
    }
    async fn begun_file(&self, _: &RelPath, _: u64) -> io::Result<Option<Box<dyn TargetFile>>> {
        Ok(None)
    }
    async fn look(&self, paths: &[RelPath]) -> Vec<io::Result<Option<Standing>>> {
        let tree = self.lock();
        let look = |path: &RelPath| {
            let stat = &tree.get(path.as_bytes())?.stat;
            let file = if let FileKind::File { size } = stat.kind { Some(size) } else { None };
            Some(Standing { file, mtime: stat.meta.mtime })
        };
        paths.iter().map(|path| Ok(look(path))).collect()
    }
    async fn open_file(&self, path: &RelPath) -> io::Result<Arc<dyn ReadAt>> {
        let tree = self.lock();
        let entry = tree.get(path.as_bytes()).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(SimStanding(entry.bytes.clone())))
    }
    async fn set_file_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept> {
        let mut tree = self.lock();
        let entry = tree.get_mut(path.as_bytes()).ok_or(io::ErrorKind::NotFound)?;
        entry.stat.meta = meta.clone();
        Ok(Kept::default())
    }
    async fn names(&self, dir: &RelPath) -> io::Result<Vec<Vec<u8>>> {
        let tree = self.lock();
        let inside = |path: &Vec<u8>| {
            let (parent, name) = RelPath::from_path(path).ok()?.split().map(|(d, n)| (d, n.to_vec()))?;
            (parent == *dir).then_some(name)
        };
        let mut names: Vec<Vec<u8>> = tree.keys().filter_map(inside).collect();
        names.sort_unstable();
        Ok(names)
    }
    async fn remove(&self, path: &RelPath) -> io::Result<()> {
        let below = [path.as_bytes(), b"/"].concat();
        self.lock().retain(|other, _| other != path.as_bytes() && !other.starts_with(&below));
        Ok(())
    }
    async fn symlink(&self, path: &RelPath, to: &[u8], meta: &Meta) -> io::Result<Kept> {
        self.put(path, FileKind::Symlink { target: to.to_vec() }, meta, Bytes::new())
    }
    async fn hard_link(&self, first: &RelPath, path: &RelPath) -> io::Result<()> {
        let entry = self.lock().get(first.as_bytes()).cloned().ok_or(io::ErrorKind::NotFound)?;
        self.lock().insert(path.as_bytes().to_vec(), entry);
        Ok(())
    }
    async fn special(&self, path: &RelPath, kind: &FileKind, meta: &Meta) -> io::Result<Kept> {
        self.put(path, kind.clone(), meta, Bytes::new())
    }
    async fn set_dir_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept> {
        if path.as_bytes().is_empty() {
            return Ok(Kept::default());
        }
        self.put(path, FileKind::Dir, meta, Bytes::new())
    }
}

struct SimStanding(Bytes);

impl ReadAt for SimStanding {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let from = (offset as usize).min(self.0.len());
        Ok(self.0[from..(from + len).min(self.0.len())].to_vec())
    }
}

struct SimWriting {
    target: SimTarget,
    path: RelPath,
    bytes: Vec<u8>,
}

#[async_trait]
impl TargetFile for SimWriting {
    async fn write(&mut self, pieces: Vec<(u64, Bytes)>) -> io::Result<()> {
        for (offset, piece) in pieces {
            let start = offset as usize;
            let place = self.bytes.get_mut(start..start + piece.len()).ok_or(io::ErrorKind::InvalidInput)?;
            place.copy_from_slice(&piece);
        }
        Ok(())
    }
    fn read_back(&self) -> Option<Arc<dyn ReadAt>> {
        None
    }
    async fn finish(self: Box<Self>, meta: &Meta) -> io::Result<Kept> {
        let kind = FileKind::File { size: self.bytes.len() as u64 };
        self.target.put(&self.path, kind, meta, self.bytes.into())
    }
}
