//! The file system as a [`Source`]. Every blocking call runs through `Compute`; one small file is one job. Opens never
//! follow a symbolic link in the last component and never block on a pipe.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the local file system")]

use super::meta::{FileKind, FileTime, Fingerprint, Meta, Stat, Xattr};
use super::source::{Listed, Listing, Opened, Source, SourceFile, join};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Compute, compute};
use rustix::buffer::spare_capacity;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, SeekFrom};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::vec::IntoIter;

/// Names looked up in one job.
const LIST_PAGE: usize = 256;
/// Most bytes of attributes kept for one path; Linux allows more only by the thousands of attributes.
const XATTR_BYTES_MAX: usize = 1 << 20;
/// Largest value of one attribute, and longest list of names, that Linux allows.
const XATTR_VALUE_MAX: usize = 64 << 10;

/// The local file system.
pub struct RealSource {
    compute: Arc<dyn Compute>,
    names: Arc<Names>,
    images: bool,
}

impl RealSource {
    /// Reads the names of users and groups once, from `/etc/passwd` and `/etc/group`; there is no other name service.
    pub fn new(compute: Arc<dyn Compute>) -> Self {
        let names = Names { users: id_names("/etc/passwd"), groups: id_names("/etc/group"), atime: false };
        RealSource { compute, names: Arc::new(names), images: false }
    }

    /// Keeps when files were last read, too.
    #[must_use]
    pub fn with_atime(mut self) -> Self {
        self.names = Arc::new(Names { atime: true, ..(*self.names).clone() });
        self
    }

    /// Takes block devices for the files of bytes that they are.
    #[must_use]
    pub fn with_images(mut self) -> Self {
        self.images = true;
        self
    }
}

/// What descriptions of entries are made with.
#[derive(Clone)]
struct Names {
    users: BTreeMap<u32, String>,
    groups: BTreeMap<u32, String>,
    atime: bool,
}

/// Third field is the number, first the name, in both files. The first line of a number wins.
fn id_names(file: &str) -> BTreeMap<u32, String> {
    let mut names = BTreeMap::new();
    for line in std::fs::read_to_string(file).unwrap_or_default().lines() {
        let mut fields = line.split(':');
        let (Some(name), Some(id)) = (fields.next(), fields.nth(1)) else { continue };
        if let Ok(id) = id.parse() {
            names.entry(id).or_insert_with(|| name.to_string());
        }
    }
    names
}

#[async_trait]
impl Source for RealSource {
    async fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        let (path, names, images) = (path.to_vec(), self.names.clone(), self.images);
        compute(&*self.compute, move || {
            let stat = rustix::fs::lstat(&*path)?;
            let mut described = describe(&path, &stat, &names)?;
            if let (true, FileKind::BlockDev { .. }) = (images, &described.kind) {
                let seen = fingerprint(open_quietly(&path)?)?;
                described = image(described, &seen);
            }
            Ok(described)
        })
        .await
    }

    async fn list(&self, path: &[u8]) -> io::Result<Box<dyn Listing>> {
        let dir = path.to_vec();
        let path = dir.clone();
        let (fd, names) = compute(&*self.compute, move || read_names(&path)).await?;
        Ok(Box::new(RealListing {
            compute: self.compute.clone(),
            names: self.names.clone(),
            dir,
            fd: Arc::new(fd),
            left: names.into_iter(),
        }))
    }

    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened> {
        let path = path.to_vec();
        let on = self.compute.clone();
        let images = self.images;
        compute(&*self.compute, move || open_file(&path, want, on, images)).await
    }

    async fn open_all(&self, paths: &[Vec<u8>], want: usize) -> Vec<io::Result<Opened>> {
        let (paths, on, images) = (paths.to_vec(), self.compute.clone(), self.images);
        let open = move |path: &Vec<u8>| open_file(path, want, on.clone(), images);
        compute(&*self.compute, move || paths.iter().map(open).collect()).await
    }
}

/// Opens a directory and reads all its names, sorted. Names are all it holds, so a million of them is tens of MiB.
fn read_names(path: &[u8]) -> io::Result<(OwnedFd, Vec<Vec<u8>>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty())?;
    let mut names = Vec::new();
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort_unstable();
    names.dedup();
    Ok((fd, names))
}

struct RealListing {
    compute: Arc<dyn Compute>,
    names: Arc<Names>,
    dir: Vec<u8>,
    fd: Arc<OwnedFd>,
    left: IntoIter<Vec<u8>>,
}

#[async_trait]
impl Listing for RealListing {
    async fn next(&mut self) -> io::Result<Vec<Listed>> {
        let page: Vec<Vec<u8>> = self.left.by_ref().take(LIST_PAGE).collect();
        if page.is_empty() {
            return Ok(Vec::new());
        }
        let (dir, fd, names) = (self.dir.clone(), self.fd.clone(), self.names.clone());
        let list = move || page.into_iter().map(|name| look_at(&fd, &dir, name, &names)).collect();
        Ok(compute(&*self.compute, list).await)
    }
}

fn look_at(fd: &OwnedFd, dir: &[u8], name: Vec<u8>, names: &Names) -> Listed {
    let stat = rustix::fs::statat(fd, &*name, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(io::Error::from)
        .and_then(|stat| describe(&join(dir, &name), &stat, names));
    Listed { name, stat }
}

#[allow(clippy::useless_conversion, reason = "some processors count links in fewer bits")]
fn describe(path: &[u8], stat: &rustix::fs::Stat, names: &Names) -> io::Result<Stat> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File { size: stat.st_size as u64 },
        FileType::Directory => FileKind::Dir,
        FileType::Symlink => {
            FileKind::Symlink { target: rustix::fs::readlink(path, Vec::new())?.into_bytes() }
        }
        FileType::Fifo => FileKind::Fifo,
        FileType::Socket => FileKind::Socket,
        FileType::CharacterDevice => FileKind::CharDev { rdev: stat.st_rdev },
        FileType::BlockDevice => FileKind::BlockDev { rdev: stat.st_rdev },
        FileType::Unknown => return Err(io::Error::other("it is of a kind this program does not know")),
    };
    let name = |map: &BTreeMap<u32, String>, id| map.get(&id).cloned().unwrap_or_default();
    let meta = Meta {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        user: name(&names.users, stat.st_uid),
        group: name(&names.groups, stat.st_gid),
        mtime: FileTime { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
        ctime: FileTime { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        atime: names.atime.then_some(FileTime { secs: stat.st_atime, nanos: stat.st_atime_nsec as u32 }),
        ino: stat.st_ino,
        dev: stat.st_dev,
        nlink: u64::from(stat.st_nlink),
        xattrs: xattrs(path),
    };
    Ok(Stat { kind, meta })
}

/// Extended attributes, sorted. File systems without them, and attributes that vanish meanwhile, give none.
fn xattrs(path: &[u8]) -> Vec<Xattr> {
    let Some(list) = sized(|buffer| rustix::fs::llistxattr(path, buffer)) else { return Vec::new() };
    let mut room = XATTR_BYTES_MAX;
    let mut found = Vec::new();
    for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let Some(value) = sized(|buffer| rustix::fs::lgetxattr(path, name, buffer)) else { continue };
        let Some(left) = room.checked_sub(name.len() + value.len()) else { break };
        room = left;
        found.push((name.to_vec(), value));
    }
    found.sort_unstable();
    found
}

/// What a call writes into a buffer: first into a small one, and only if that is too short into the largest that Linux
/// fills. Asking for the length with an empty buffer does not do: rustix answers 0 for it.
fn sized(call: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Option<Vec<u8>> {
    let mut small = [0u8; 512];
    match call(&mut small) {
        Ok(len) => Some(small[..len].to_vec()),
        Err(rustix::io::Errno::RANGE) => {
            let mut large = vec![0u8; XATTR_VALUE_MAX];
            let len = call(&mut large).ok()?;
            large.truncate(len);
            large.shrink_to_fit();
            Some(large)
        }
        Err(_) => None,
    }
}

/// A block device as a file. What its node says of times and owners is about the node.
fn image(device: Stat, seen: &Fingerprint) -> Stat {
    let meta = Meta { mtime: seen.mtime, ctime: seen.ctime, nlink: 1, xattrs: Vec::new(), ..device.meta };
    Stat { kind: FileKind::File { size: seen.size }, meta }
}

fn open_file(path: &[u8], want: usize, compute: Arc<dyn Compute>, images: bool) -> io::Result<Opened> {
    let fd = open_quietly(path)?;
    let stat = rustix::fs::fstat(&fd)?;
    let size = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => stat.st_size as u64,
        FileType::BlockDevice if images => fingerprint(&fd)?.size,
        _ => return Err(io::Error::other("it is no longer a regular file")),
    };
    // One byte more than the file is long, so that its end shows without another buffer.
    let room = want.min(usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1));
    let (head, ended) = fill(&fd, room)?;
    let (head, ended) = if ended || head.len() >= want {
        (head, ended)
    } else {
        // It grew since we asked for its length.
        let (more, ended) = fill(&fd, want - head.len())?;
        ([head, more].concat(), ended)
    };
    let seen = fingerprint(&fd)?;
    let rest = (!ended).then(|| Box::new(RealFile { fd: Arc::new(fd), compute }) as Box<dyn SourceFile>);
    Ok(Opened { head: head.into(), seen, rest })
}

/// Without `NONBLOCK`, opening a pipe that has taken the file's place would wait for a writer forever. Not touching the
/// access time needs ownership, so it is tried and left out if refused.
fn open_quietly(path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    match rustix::fs::open(path, flags | OFlags::NOATIME, Mode::empty()) {
        Err(rustix::io::Errno::PERM) => Ok(rustix::fs::open(path, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// Reads until `want` bytes are there or the file ends; tells which.
fn fill(fd: impl AsFd, want: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut buffer = Vec::with_capacity(want);
    while buffer.len() < want {
        match rustix::io::read(&fd, spare_capacity(&mut buffer)) {
            Ok(0) => return Ok((buffer, true)),
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok((buffer, false))
}

fn fingerprint(fd: impl AsFd) -> io::Result<Fingerprint> {
    let stat = rustix::fs::fstat(&fd)?;
    let size = match FileType::from_raw_mode(stat.st_mode) {
        FileType::BlockDevice => device_size(&fd)?,
        _ => stat.st_size as u64,
    };
    Ok(Fingerprint {
        size,
        mtime: FileTime { secs: stat.st_mtime, nanos: stat.st_mtime_nsec as u32 },
        ctime: FileTime { secs: stat.st_ctime, nanos: stat.st_ctime_nsec as u32 },
        ino: stat.st_ino,
    })
}

/// A device tells its length only by where it ends; where reading goes on stays as it was.
fn device_size(fd: impl AsFd) -> io::Result<u64> {
    let at = rustix::fs::tell(&fd)?;
    let size = rustix::fs::seek(&fd, SeekFrom::End(0))?;
    rustix::fs::seek(&fd, SeekFrom::Start(at))?;
    Ok(size)
}

struct RealFile {
    fd: Arc<OwnedFd>,
    compute: Arc<dyn Compute>,
}

#[async_trait]
impl SourceFile for RealFile {
    async fn read(&mut self, want: usize) -> io::Result<Bytes> {
        let fd = self.fd.clone();
        compute(&*self.compute, move || fill(&fd, want).map(|(bytes, _)| bytes.into())).await
    }
    async fn fingerprint(&mut self) -> io::Result<Fingerprint> {
        let fd = self.fd.clone();
        compute(&*self.compute, move || fingerprint(&fd)).await
    }
}

/// Makes a path absolute and removes `.`, `..` and doubled slashes by text, as restic does: symbolic links on the way
/// stay as they are written.
pub fn absolute(path: &OsStr) -> io::Result<Vec<u8>> {
    let mut whole = Vec::new();
    if !path.as_bytes().starts_with(b"/") {
        whole.extend_from_slice(std::env::current_dir()?.as_os_str().as_bytes());
        whole.push(b'/');
    }
    whole.extend_from_slice(path.as_bytes());
    // A NUL can reach us from a file of paths and would be an error in every later call.
    CString::new(whole.as_slice()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in whole.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    Ok([b"/".as_slice(), &parts.join(&b'/')].concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::real::Processors;

    fn source() -> RealSource {
        RealSource::new(Arc::new(Processors::new()))
    }

    #[tokio::test]
    async fn lists_in_order_with_every_kind_and_reads_whole_or_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &[u8]| join(dir.path().as_os_str().as_bytes(), name);
        std::fs::write(OsStr::from_bytes(&path(b"b\xff")), vec![7; 300_000]).unwrap();
        std::os::unix::fs::symlink("b", OsStr::from_bytes(&path(b"a"))).unwrap();
        std::fs::create_dir(OsStr::from_bytes(&path(b"c"))).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &*path(b"d"), FileType::Fifo, Mode::RUSR, 0).unwrap();

        let source = source();
        let mut listing = source.list(dir.path().as_os_str().as_bytes()).await.unwrap();
        let page = listing.next().await.unwrap();
        let kinds: Vec<_> =
            page.iter().map(|l| (l.name.clone(), l.stat.as_ref().unwrap().kind.clone())).collect();
        assert_eq!(
            kinds,
            [
                (b"a".to_vec(), FileKind::Symlink { target: b"b".to_vec() }),
                (b"b\xff".to_vec(), FileKind::File { size: 300_000 }),
                (b"c".to_vec(), FileKind::Dir),
                (b"d".to_vec(), FileKind::Fifo),
            ]
        );
        assert!(listing.next().await.unwrap().is_empty());

        let whole = source.open(&path(b"b\xff"), 1 << 20).await.unwrap();
        assert!(whole.rest.is_none() && whole.head.len() == 300_000 && whole.seen.size == 300_000);
        let mut part = source.open(&path(b"b\xff"), 100_000).await.unwrap();
        let rest = part.rest.as_mut().unwrap();
        assert_eq!(rest.read(150_000).await.unwrap().len(), 150_000);
        assert_eq!(rest.read(150_000).await.unwrap().len(), 50_000);
        assert!(rest.read(1).await.unwrap().is_empty());
        assert_eq!(rest.fingerprint().await.unwrap(), whole.seen);
        for not_a_file in [&b"a"[..], b"c", b"d", b"missing"] {
            assert!(source.open(&path(not_a_file), 10).await.is_err(), "{not_a_file:?}");
        }
    }

    #[test]
    fn paths_become_absolute_by_text() {
        let absolute = |text: &str| String::from_utf8(super::absolute(OsStr::new(text)).unwrap()).unwrap();
        assert_eq!(absolute("/a//b/./c/../d/"), "/a/b/d");
        assert_eq!(absolute("/../.."), "/");
        assert!(absolute("x").starts_with('/') && absolute("x").ends_with("/x"));
    }
}
