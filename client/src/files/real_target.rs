//! The real target: a directory, written with `*at` calls only, each part of a path opened with `O_NOFOLLOW`, so that
//! no link inside the target, old or just restored, ever leads a write elsewhere. Blocking calls run through Compute.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the file system a restore writes")]

use super::meta::{FileKind, FileTime, Meta, Xattr};
use super::target::{Kept, ReadAt, RelPath, Standing, Target, TargetFile, WholeFile};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Compute, Entropy, Host, compute, random};
use farshore_core::id::{hash_parts, hex};
use farshore_core::limits::TREE_DEPTH_MAX;
use rustix::buffer::spare_capacity;
use rustix::fs::{self, AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Directories kept open, so that the files of one directory do not each walk down from the root.
const DIRS_OPEN_MAX: usize = 64;
/// Zeros are looked for in pieces of this size; a hole smaller than a file system block saves nothing.
const HOLE_BYTES: usize = 4_096;

/// A directory to restore into. Cheap to clone.
#[derive(Clone)]
pub struct RealTarget {
    root: Arc<Root>,
    compute: Arc<dyn Compute>,
}

struct Root {
    fd: Arc<OwnedFd>,
    /// Open directories by path.
    dirs: Mutex<BTreeMap<RelPath, Arc<OwnedFd>>>,
    /// Part of each temporary name, so that two restores into one directory do not meet.
    run: String,
    next: AtomicU64,
    /// Whether we may give files to others.
    privileged: bool,
    how: How,
    /// Numbers of users and groups here, if names count.
    ids: Option<Ids>,
}

/// How a directory is restored into.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct How {
    /// Leave runs of zeros as holes.
    pub sparse: bool,
    /// Files that are not finished stay, under names by which the next restore finds them.
    pub keep_begun: bool,
    /// Give files to the users and groups of the recorded names, if there are such here; otherwise to the recorded numbers.
    pub owners_by_name: bool,
}

struct Ids {
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
}

/// Third field is the number, first the name, in both files. The first line of a name wins.
fn ids(file: &str) -> BTreeMap<String, u32> {
    let mut ids = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        if let Ok(id) = id.parse() {
            ids.entry(name.to_string()).or_insert(id);
        }
    }
    ids
}

impl RealTarget {
    /// Opens the directory, making it and its parents if needed. The path itself may go through links: it is the
    /// operator's own.
    pub async fn open(host: &Host, path: &Path, how: How) -> io::Result<Self> {
        let (path, run) = (path.to_path_buf(), run_name(host.entropy.as_ref()));
        let root = compute(host.compute.as_ref(), move || {
            std::fs::create_dir_all(&path)?;
            let fd = fs::open(&path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            io::Result::Ok(Root {
                fd: Arc::new(fd),
                dirs: Mutex::default(),
                run,
                next: AtomicU64::new(0),
                privileged: rustix::process::geteuid().is_root(),
                how,
                ids: how.owners_by_name.then(|| Ids { users: ids("/etc/passwd"), groups: ids("/etc/group") }),
            })
        })
        .await?;
        Ok(RealTarget { root: Arc::new(root), compute: host.compute.clone() })
    }

    async fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&Arc<Root>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let root = self.root.clone();
        compute(self.compute.as_ref(), move || job(&root)).await
    }
}

fn run_name(entropy: &dyn Entropy) -> String {
    hex(&random::<6>(entropy))
}

#[async_trait]
impl Target for RealTarget {
    async fn make_dir(&self, path: &RelPath) -> io::Result<()> {
        let path = path.clone();
        self.run(move |root| root.make_dir(&path)).await
    }
    async fn begin_file(&self, path: &RelPath, size: u64) -> io::Result<Box<dyn TargetFile>> {
        let path = path.clone();
        let file = self.run(move |root| OpenFile::begin(root.clone(), &path, size)).await?;
        Ok(Box::new(RealFile { file: Arc::new(file), compute: self.compute.clone() }))
    }
    async fn begun_file(&self, path: &RelPath, size: u64) -> io::Result<Option<Box<dyn TargetFile>>> {
        if !self.root.how.keep_begun {
            return Ok(None);
        }
        let path = path.clone();
        let file = self.run(move |root| OpenFile::begun(root.clone(), &path, size)).await?;
        let real = |file| {
            Box::new(RealFile { file: Arc::new(file), compute: self.compute.clone() }) as Box<dyn TargetFile>
        };
        Ok(file.map(real))
    }
    async fn look(&self, paths: &[RelPath]) -> Vec<io::Result<Option<Standing>>> {
        let (root, paths) = (self.root.clone(), paths.to_vec());
        compute(self.compute.as_ref(), move || paths.iter().map(|path| root.look(path)).collect()).await
    }
    async fn open_file(&self, path: &RelPath) -> io::Result<Arc<dyn ReadAt>> {
        let path = path.clone();
        self.run(move |root| Ok(Arc::new(OpenForReading(root.open_file(&path)?)) as Arc<dyn ReadAt>)).await
    }
    async fn set_file_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept> {
        let (path, meta) = (path.clone(), meta.clone());
        self.run(move |root| Ok(root.file_meta(&root.open_file(&path)?, &meta))).await
    }
    async fn names(&self, dir: &RelPath) -> io::Result<Vec<Vec<u8>>> {
        let dir = dir.clone();
        self.run(move |root| names(&*root.dir(&dir)?)).await
    }
    async fn remove(&self, path: &RelPath) -> io::Result<()> {
        let path = path.clone();
        self.run(move |root| {
            let (dir, name) = root.place(&path)?;
            // Directories of it may be open.
            root.dirs.lock().expect("no holder of this lock panics").clear();
            let dev = fs::fstat(&*dir)?.st_dev;
            remove(&*dir, &name, dev, 0)
        })
        .await
    }
    async fn symlink(&self, path: &RelPath, to: &[u8], meta: &Meta) -> io::Result<Kept> {
        let (path, to, meta) = (path.clone(), to.to_vec(), meta.clone());
        self.run(move |root| {
            root.replace(&path, |dir, temp| {
                fs::symlinkat(OsStr::from_bytes(&to), dir, temp)?;
                Ok(root.link_meta(dir, temp, &meta, false))
            })
        })
        .await
    }
    async fn hard_link(&self, first: &RelPath, path: &RelPath) -> io::Result<()> {
        let (first, path) = (first.clone(), path.clone());
        self.run(move |root| {
            let (from, name) = root.place(&first)?;
            root.replace(&path, |dir, temp| {
                fs::linkat(&*from, OsStr::from_bytes(&name), dir, temp, AtFlags::empty())?;
                Ok(Kept::default())
            })
        })
        .await?;
        Ok(())
    }
    async fn special(&self, path: &RelPath, kind: &FileKind, meta: &Meta) -> io::Result<Kept> {
        let (file_type, rdev) = match kind {
            FileKind::Fifo => (FileType::Fifo, 0),
            FileKind::Socket => (FileType::Socket, 0),
            FileKind::CharDev { rdev } => (FileType::CharacterDevice, *rdev),
            FileKind::BlockDev { rdev } => (FileType::BlockDevice, *rdev),
            FileKind::File { .. } | FileKind::Dir | FileKind::Symlink { .. } => {
                return Err(io::Error::other("not a special file"));
            }
        };
        let (path, meta) = (path.clone(), meta.clone());
        self.run(move |root| {
            root.replace(&path, |dir, temp| {
                fs::mknodat(dir, temp, file_type, Mode::from_raw_mode(0o600), rdev)?;
                Ok(root.link_meta(dir, temp, &meta, true))
            })
        })
        .await
    }
    async fn set_dir_meta(&self, path: &RelPath, meta: &Meta) -> io::Result<Kept> {
        let (path, meta) = (path.clone(), meta.clone());
        self.run(move |root| {
            let dir = root.dir(&path)?;
            Ok(root.file_meta(&dir, &meta))
        })
        .await
    }
    async fn write_files(&self, files: Vec<WholeFile>) -> Vec<io::Result<Kept>> {
        let root = self.root.clone();
        let write = move |file: &WholeFile| {
            let open = OpenFile::begin(root.clone(), &file.path, file.size)?;
            file.pieces.iter().try_for_each(|(offset, bytes)| open.write_at(*offset, bytes))?;
            open.finish(&file.meta)
        };
        compute(self.compute.as_ref(), move || files.iter().map(write).collect()).await
    }
}

impl Root {
    /// The open directory at a path. Fails if any part is not a directory, above all if it is a link.
    fn dir(&self, path: &RelPath) -> io::Result<Arc<OwnedFd>> {
        let Some((parent, name)) = path.split() else { return Ok(self.fd.clone()) };
        if let Some(fd) = self.dirs.lock().expect("no holder of this lock panics").get(path) {
            return Ok(fd.clone());
        }
        let parent = self.dir(&parent)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = Arc::new(fs::openat(&*parent, OsStr::from_bytes(name), flags, Mode::empty())?);
        let mut dirs = self.dirs.lock().expect("no holder of this lock panics");
        if dirs.len() >= DIRS_OPEN_MAX {
            dirs.clear();
        }
        dirs.insert(path.clone(), fd.clone());
        Ok(fd)
    }

    /// The open parent of a path, and its name there.
    fn place(&self, path: &RelPath) -> io::Result<(Arc<OwnedFd>, Vec<u8>)> {
        let (parent, name) = path.split().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        Ok((self.dir(&parent)?, name.to_vec()))
    }

    fn look(&self, path: &RelPath) -> io::Result<Option<Standing>> {
        let stat = self.place(path).and_then(|(dir, name)| {
            Ok(fs::statat(&*dir, OsStr::from_bytes(&name), AtFlags::SYMLINK_NOFOLLOW)?)
        });
        match stat {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(stat) => {
                let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
                let mtime = FileTime { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 };
                Ok(Some(Standing { file: is_file.then_some(stat.st_size as u64), mtime }))
            }
        }
    }

    /// The regular file at a path. Not blocking on a pipe that has taken its place.
    fn open_file(&self, path: &RelPath) -> io::Result<OwnedFd> {
        let (dir, name) = self.place(path)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
        let fd = fs::openat(&*dir, OsStr::from_bytes(&name), flags, Mode::empty())?;
        match FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) {
            FileType::RegularFile => Ok(fd),
            _ => Err(io::Error::other("it is no regular file")),
        }
    }

    fn make_dir(&self, path: &RelPath) -> io::Result<()> {
        let Some((parent, name)) = path.split() else { return Ok(()) };
        let parent = self.dir(&parent)?;
        match fs::mkdirat(&*parent, OsStr::from_bytes(name), Mode::from_raw_mode(0o700)) {
            Err(rustix::io::Errno::EXIST) => {}
            other => other?,
        }
        // Opening it proves that what is there is a directory and no link.
        self.dir(path).map(|_| ())
    }

    fn temp_name(&self) -> String {
        format!(".farshore-{}-{}.tmp", self.run, self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes something under a temporary name and gives it its own, replacing what had it.
    fn replace(
        &self,
        path: &RelPath,
        make: impl FnOnce(BorrowedFd<'_>, &str) -> io::Result<Kept>,
    ) -> io::Result<Kept> {
        let (dir, name) = self.place(path)?;
        let temp = self.temp_name();
        let result = make(dir.as_fd(), &temp).and_then(|kept| {
            fs::renameat(&*dir, temp.as_str(), &*dir, OsStr::from_bytes(&name))?;
            Ok(kept)
        });
        // Also after success: renaming one name of a file onto another of the same file does nothing and keeps both.
        let _ = fs::unlinkat(&*dir, temp.as_str(), AtFlags::empty());
        result
    }

    /// Attributes of an open file or directory. The order matters: a change of owner clears set-id bits and
    /// capabilities; user attributes need write permission, which the mode may take; the mode rewrites the mask of an
    /// access list; everything moves ctime but only times move mtime back.
    fn file_meta(&self, fd: &OwnedFd, meta: &Meta) -> Kept {
        let mut kept = Kept::default();
        if self.privileged {
            kept.note("owner", self.owner(meta).and_then(|(uid, gid)| fs::fchown(fd, uid, gid)));
        }
        let (lists, plain): (Vec<&Xattr>, Vec<&Xattr>) =
            meta.xattrs.iter().partition(|(name, _)| name.starts_with(b"system.posix_acl"));
        let set =
            |(name, value): &Xattr| fs::fsetxattr(fd, OsStr::from_bytes(name), value, XattrFlags::empty());
        plain.into_iter().for_each(|x| kept.note_xattr(x, set(x)));
        let mode = kept.mode(self.numbers(meta), meta.mode, fs::fstat(fd));
        kept.note("mode", fs::fchmod(fd, mode));
        lists.into_iter().for_each(|x| kept.note_xattr(x, set(x)));
        kept.note("times", fs::futimens(fd, &times(meta)));
        kept
    }

    /// Attributes of a link or special file by name; opening a device or pipe could block or do something.
    fn link_meta(&self, dir: BorrowedFd<'_>, name: &str, meta: &Meta, special: bool) -> Kept {
        let mut kept = Kept::default();
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        if self.privileged {
            let set = self.owner(meta).and_then(|(uid, gid)| fs::chownat(dir, name, uid, gid, nofollow));
            kept.note("owner", set);
        }
        let path = format!("/proc/self/fd/{}/{name}", dir.as_raw_fd());
        for xattr in &meta.xattrs {
            let (key, value) = xattr;
            let set = fs::lsetxattr(&path, OsStr::from_bytes(key), value, XattrFlags::empty());
            kept.note_xattr(xattr, set);
        }
        if special {
            let set = special_mode(&mut kept, dir, name, self.numbers(meta), meta.mode);
            kept.note("mode", set);
        }
        kept.note("times", fs::utimensat(dir, name, &times(meta), nofollow));
        kept
    }
}

impl Root {
    /// User and group that an entry belongs to here.
    fn numbers(&self, meta: &Meta) -> (u32, u32) {
        let of =
            |ids: &BTreeMap<String, u32>, name: &String, number| ids.get(name).copied().unwrap_or(number);
        self.ids.as_ref().map_or((meta.uid, meta.gid), |ids| {
            (of(&ids.users, &meta.user, meta.uid), of(&ids.groups, &meta.group, meta.gid))
        })
    }

    /// Whom a file is given to. `chown` takes the id -1 for "leave it as it is", so that nothing can be given to it.
    fn owner(&self, meta: &Meta) -> rustix::io::Result<(Option<Uid>, Option<Gid>)> {
        let (uid, gid) = self.numbers(meta);
        if uid == u32::MAX || gid == u32::MAX {
            return Err(rustix::io::Errno::INVAL);
        }
        Ok((Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))))
    }
}

fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Removes an entry of a directory on device `dev`, deepest first. Opens one directory a level, never through a link.
fn remove(dir: impl AsFd, name: &[u8], dev: u64, depth: usize) -> io::Result<()> {
    let shown = OsStr::from_bytes(name);
    match fs::unlinkat(&dir, shown, AtFlags::empty()) {
        Ok(()) => return Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    if depth >= TREE_DEPTH_MAX {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let inner = fs::openat(&dir, shown, flags, Mode::empty())?;
    if fs::fstat(&inner)?.st_dev != dev {
        return Err(io::Error::other("another file system is mounted there"));
    }
    for name in names(&inner)? {
        remove(&inner, &name, dev, depth + 1)?;
    }
    Ok(fs::unlinkat(&dir, shown, AtFlags::REMOVEDIR)?)
}

/// Sets the mode by a handle on the thing itself, since changing a mode by name follows a link that took its place.
fn special_mode(
    kept: &mut Kept,
    dir: BorrowedFd<'_>,
    name: &str,
    owner: (u32, u32),
    mode: u32,
) -> rustix::io::Result<()> {
    let fd = fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Err(rustix::io::Errno::LOOP);
    }
    let mode = kept.mode(owner, mode, Ok(stat));
    fs::chmod(format!("/proc/self/fd/{}", fd.as_raw_fd()), mode)
}

fn times(meta: &Meta) -> Timestamps {
    let spec = |t: FileTime| Timespec { tv_sec: t.secs, tv_nsec: i64::from(t.nanos.min(999_999_999)) };
    Timestamps { last_access: spec(meta.atime.unwrap_or(meta.mtime)), last_modification: spec(meta.mtime) }
}

impl Kept {
    /// Permission bits for what now looks like `stat`. A set-id bit is left out if the recorded user or group is not
    /// the one it has: whatever became of its owner, a program of one user must not run as another.
    fn mode(&mut self, owner: (u32, u32), mode: u32, stat: rustix::io::Result<fs::Stat>) -> Mode {
        let (uid, gid) = stat.map_or((None, None), |stat| (Some(stat.st_uid), Some(stat.st_gid)));
        let user = if uid == Some(owner.0) { 0 } else { 0o4000 };
        let group = if gid == Some(owner.1) { 0 } else { 0o2000 };
        let left_out = mode & (user | group);
        if left_out != 0 {
            self.lost.push("set-id bits: it belongs to another user or group here".into());
        }
        Mode::from_raw_mode(mode & 0o7777 & !left_out)
    }
    fn note(&mut self, what: &str, result: rustix::io::Result<()>) {
        if let Err(error) = result {
            self.lost.push(format!("{what}: {}", io::Error::from(error)));
        }
    }
    fn note_xattr(&mut self, (name, _): &Xattr, result: rustix::io::Result<()>) {
        if let Err(error) = result {
            let name = String::from_utf8_lossy(name);
            self.lost.push(format!("xattr {name}: {}", io::Error::from(error)));
        }
    }
}

/// A file under its temporary name. Removes it unless finished.
struct OpenFile {
    root: Arc<Root>,
    dir: Arc<OwnedFd>,
    temp: String,
    name: Vec<u8>,
    fd: OwnedFd,
}

/// The name of a file that is not finished and that the next restore is to find. The name of the file itself could be too long
/// with anything added to it.
fn begun_name(name: &[u8]) -> String {
    format!(".farshore-begun-{}.tmp", hex(&hash_parts(&[name])[..12]))
}

impl OpenFile {
    fn begin(root: Arc<Root>, path: &RelPath, size: u64) -> io::Result<Self> {
        let (dir, name) = root.place(path)?;
        let keeps = root.how.keep_begun;
        let temp = if keeps { begun_name(&name) } else { root.temp_name() };
        let new = if keeps { OFlags::TRUNC } else { OFlags::EXCL };
        let flags = OFlags::RDWR | OFlags::CREATE | new | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = fs::openat(&*dir, temp.as_str(), flags, Mode::from_raw_mode(0o600))?;
        let file = OpenFile { root, dir, temp, name, fd };
        if size > 0 {
            fs::ftruncate(&file.fd, size)?;
        }
        Ok(file)
    }

    /// The file that an earlier restore has begun, cut or lengthened to `size`.
    fn begun(root: Arc<Root>, path: &RelPath, size: u64) -> io::Result<Option<Self>> {
        let (dir, name) = root.place(path)?;
        let temp = begun_name(&name);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = match fs::openat(&*dir, temp.as_str(), flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => other?,
        };
        if FileType::from_raw_mode(fs::fstat(&fd)?.st_mode) != FileType::RegularFile {
            return Ok(None);
        }
        fs::ftruncate(&fd, size)?;
        Ok(Some(OpenFile { root, dir, temp, name, fd }))
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.root.how.sparse {
            return write_all_at(&self.fd, offset, bytes);
        }
        // Joins neighbouring blocks that are not all zero, so that ordinary data is still one call.
        let mut start = 0;
        for at in (0..bytes.len()).step_by(HOLE_BYTES) {
            let end = (at + HOLE_BYTES).min(bytes.len());
            if bytes[at..end].iter().all(|b| *b == 0) {
                write_all_at(&self.fd, offset + start as u64, &bytes[start..at])?;
                start = end;
            }
        }
        write_all_at(&self.fd, offset + start as u64, &bytes[start..])
    }

    fn finish(mut self, meta: &Meta) -> io::Result<Kept> {
        let kept = self.root.file_meta(&self.fd, meta);
        fs::renameat(&*self.dir, self.temp.as_str(), &*self.dir, OsStr::from_bytes(&self.name))?;
        self.temp.clear();
        Ok(kept)
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if !self.temp.is_empty() && !self.root.how.keep_begun {
            let _ = fs::unlinkat(&*self.dir, self.temp.as_str(), AtFlags::empty());
        }
    }
}

fn write_all_at(fd: &OwnedFd, mut offset: u64, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::pwrite(fd, bytes, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                offset += written as u64;
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A file that stands in the target, or is being written.
struct OpenForReading(OwnedFd);

impl ReadAt for OpenForReading {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        read_all_at(&self.0, offset, len)
    }
}

impl ReadAt for OpenFile {
    fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        read_all_at(&self.fd, offset, len)
    }
}

fn read_all_at(fd: &OwnedFd, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        let at = offset + bytes.len() as u64;
        match rustix::io::pread(fd, spare_capacity(&mut bytes), at) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// A large file, written piece by piece.
struct RealFile {
    file: Arc<OpenFile>,
    compute: Arc<dyn Compute>,
}

#[async_trait]
impl TargetFile for RealFile {
    async fn write(&mut self, pieces: Vec<(u64, Bytes)>) -> io::Result<()> {
        let file = self.file.clone();
        let write = move || pieces.iter().try_for_each(|(offset, bytes)| file.write_at(*offset, bytes));
        compute(self.compute.as_ref(), write).await
    }
    fn read_back(&self) -> Option<Arc<dyn ReadAt>> {
        Some(self.file.clone())
    }
    async fn finish(self: Box<Self>, meta: &Meta) -> io::Result<Kept> {
        let meta = meta.clone();
        let RealFile { file, compute: on } = *self;
        compute(on.as_ref(), move || match Arc::into_inner(file) {
            Some(file) => file.finish(&meta),
            // A write was cancelled and its job may still run: the file is not whole.
            None => Err(io::ErrorKind::Interrupted.into()),
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// Whoever may write into a directory that was there before can put a link where a special file was just made.
    #[tokio::test]
    async fn attributes_of_special_files_do_not_follow_a_link() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"").unwrap();
        std::fs::set_permissions(&victim, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("victim", dir.path().join("pipe")).unwrap();
        let target = RealTarget::open(&crate::testing::host(), dir.path(), How::default()).await.unwrap();
        let meta = Meta { mode: 0o666, ..Meta::default() };
        let kept = target.root.link_meta(target.root.fd.as_fd(), "pipe", &meta, true);
        assert_eq!(std::fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!kept.lost.is_empty());
    }
}
