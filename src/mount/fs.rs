//! Answers the kernel out of a [`View`]. Each question is a task of its own, so that whoever waits for a far node holds up
//! nobody else.

use farshore_client::error::{Error, Result};
use farshore_client::files::{FileKind, FileTime};
use farshore_client::view::{Attr, Listing, View};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyXattr, Request,
};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};
use tokio::runtime::Handle;

/// The kernel asks again after this time: new snapshots appear, and `latest` moves on.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// And after this for what never changes.
const KEEP: Duration = Duration::from_secs(3_600);
/// Reads of one file by one reader come in this order but for so much: the kernel reads ahead with several at a time.
const DISORDER_BYTES: u64 = 1 << 20;
const BLOCK_BYTES: u64 = 512;

/// What the kernel talks to.
pub struct Fs(Arc<Served>, Handle);

struct Served {
    view: Arc<View>,
    /// Directories being listed, by handle.
    listings: Mutex<BTreeMap<u64, Arc<tokio::sync::Mutex<Listing>>>>,
    /// How far each open file has been read, by handle.
    read_to: Mutex<BTreeMap<u64, u64>>,
    next_handle: AtomicU64,
}

impl Fs {
    /// Answers are made on this runtime.
    pub fn new(view: Arc<View>, runtime: Handle) -> Self {
        let served = Served {
            view,
            listings: Mutex::default(),
            read_to: Mutex::default(),
            next_handle: AtomicU64::new(1),
        };
        Fs(Arc::new(served), runtime)
    }

    fn answer<F: Future<Output = ()> + Send + 'static>(&self, answer: impl FnOnce(Arc<Served>) -> F) {
        self.1.spawn(answer(self.0.clone()));
    }
}

impl Served {
    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn listings(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<tokio::sync::Mutex<Listing>>>> {
        self.listings.lock().expect("no holder of this lock panics")
    }

    fn read_to(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.read_to.lock().expect("no holder of this lock panics")
    }

    /// Whether a reader goes on from where it was. The first read does not count: many only look at the start of a file.
    fn goes_on(&self, handle: u64, offset: u64, len: u64) -> bool {
        let mut all = self.read_to();
        let Some(to) = all.get_mut(&handle) else { return false };
        let goes_on = *to > 0 && offset.abs_diff(*to) <= DISORDER_BYTES;
        let end = offset.saturating_add(len);
        *to = if goes_on { end.max(*to) } else { end };
        goes_on
    }

    /// Gives entries from `offset` on to `add` until it has no room. Two come first that no directory holds: `.` and `..`.
    async fn list(
        &self,
        handle: FileHandle,
        offset: u64,
        refer: bool,
        mut add: impl FnMut(u64, &OsStr, Given<'_>) -> bool,
    ) -> Result<()> {
        let listing = self.listings().get(&handle.0).cloned();
        let Some(listing) = listing else { return Err(Error::Invalid("this directory is not open".into())) };
        let mut listing = listing.lock().await;
        let (own, parent) = listing.dots();
        for (at, name, ino) in [(0, ".", own), (1, "..", parent)] {
            if offset <= at && add(at + 1, OsStr::new(name), Given::Dot(ino)) {
                return Ok(());
            }
        }
        self.view.seek(&mut listing, offset.saturating_sub(2)).await?;
        while let Some(next) = self.view.peek(&mut listing).await? {
            if add(listing.given() + 3, OsStr::from_bytes(&next.name), Given::Entry(&next.attr)) {
                break;
            }
            self.view.take(&mut listing, refer);
        }
        Ok(())
    }
}

enum Given<'a> {
    Dot(u64),
    Entry(&'a Attr),
}

impl Filesystem for Fs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Attributes come with the names, when whoever lists a directory wants them. An older kernel asks for each.
        let _ = config.add_capabilities(InitFlags::FUSE_DO_READDIRPLUS | InitFlags::FUSE_READDIRPLUS_AUTO);
        let _ = config.add_capabilities(InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.as_bytes().to_vec();
        self.answer(async move |served| match served.view.lookup(parent.0, &name).await {
            Ok(Some(attr)) => reply.entry(&keep(&attr), &file_attr(&attr), Generation(0)),
            Ok(None) => reply.error(Errno::ENOENT),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn forget(&self, _: &Request, ino: INodeNo, references: u64) {
        self.0.view.forget(ino.0, references);
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match self.0.view.attr(ino.0) {
            Ok(attr) => reply.attr(&keep(&attr), &file_attr(&attr)),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn readlink(&self, _: &Request, ino: INodeNo, reply: ReplyData) {
        match self.0.view.attr(ino.0) {
            Ok(Attr { kind: FileKind::Symlink { target }, .. }) => reply.data(&target),
            Ok(_) => reply.error(Errno::EINVAL),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let handle = self.0.handle();
        self.0.read_to().insert(handle, 0);
        // Contents never change, so what the kernel has read before is still right.
        reply.opened(FileHandle(handle), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        offset: u64,
        len: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ahead = self.0.goes_on(handle.0, offset, len.into());
        self.answer(async move |served| match served.view.read(ino.0, offset, len.into(), ahead).await {
            Ok(pieces) => reply.data(&pieces.concat()),
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.0.read_to().remove(&handle.0);
        reply.ok();
    }

    fn opendir(&self, _: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        self.answer(async move |served| match served.view.open_dir(ino.0).await {
            Ok(listing) => {
                let handle = served.handle();
                served.listings().insert(handle, Arc::new(tokio::sync::Mutex::new(listing)));
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(errno(&error)),
        });
    }

    fn readdir(&self, _: &Request, _: INodeNo, handle: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        self.answer(async move |served| {
            let add = |next: u64, name: &OsStr, given: Given<'_>| match given {
                Given::Dot(ino) => reply.add(INodeNo(ino), next, FileType::Directory, name),
                Given::Entry(attr) => reply.add(INodeNo(attr.ino), next, file_type(&attr.kind), name),
            };
            match served.list(handle, offset, false, add).await {
                Ok(()) => reply.ok(),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn readdirplus(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        self.answer(async move |served| {
            let mut named = Vec::new();
            let add = |next: u64, name: &OsStr, given: Given<'_>| {
                let (attr, ttl) = match given {
                    // The kernel looks at no more than number and kind of these two.
                    Given::Dot(ino) => (dot(ino), ASK_AGAIN),
                    Given::Entry(attr) => (file_attr(attr), keep(attr)),
                };
                let full = reply.add(attr.ino, next, name, &ttl, &attr, Generation(0));
                if !full && matches!(given, Given::Entry(_)) {
                    named.push(attr.ino.0);
                }
                full
            };
            match served.list(handle, offset, true, add).await {
                Ok(()) => reply.ok(),
                Err(error) => {
                    // The kernel never hears of them.
                    named.into_iter().for_each(|ino| served.view.forget(ino, 1));
                    reply.error(errno(&error));
                }
            }
        });
    }

    fn releasedir(&self, _: &Request, _: INodeNo, handle: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        self.0.listings().remove(&handle.0);
        reply.ok();
    }

    fn getxattr(&self, _: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.0.view.xattrs(ino.0) {
            Ok(all) => match all.iter().find(|(known, _)| known == name.as_bytes()) {
                Some((_, value)) => give(value, size, reply),
                None => reply.error(Errno::NO_XATTR),
            },
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn listxattr(&self, _: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        match self.0.view.xattrs(ino.0) {
            Ok(all) => {
                let names: Vec<u8> = all.into_iter().flat_map(|(name, _)| [name, vec![0]].concat()).collect();
                give(&names, size, reply);
            }
            Err(error) => reply.error(errno(&error)),
        }
    }
}

/// The bytes, if there is room for them; how much room it takes, if that is the question.
fn give(bytes: &[u8], room: u32, reply: ReplyXattr) {
    match (u32::try_from(bytes.len()), room) {
        (Ok(len), 0) => reply.size(len),
        (Ok(len), room) if len <= room => reply.data(bytes),
        _ => reply.error(Errno::ERANGE),
    }
}

/// The kernel has room for a number only; the reason goes to whoever has mounted.
fn errno(error: &Error) -> Errno {
    eprintln!("farshore: {error}");
    Errno::EIO
}

fn file_type(kind: &FileKind) -> FileType {
    match kind {
        FileKind::File { .. } => FileType::RegularFile,
        FileKind::Dir => FileType::Directory,
        FileKind::Symlink { .. } => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDev { .. } => FileType::CharDevice,
        FileKind::BlockDev { .. } => FileType::BlockDevice,
    }
}

/// The number of a device as the kernel packs it into 32 bits.
fn device(kind: &FileKind) -> u32 {
    let (FileKind::CharDev { rdev } | FileKind::BlockDev { rdev }) = kind else { return 0 };
    let (major, minor) = (rustix::fs::major(*rdev), rustix::fs::minor(*rdev));
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

fn system_time(time: FileTime) -> SystemTime {
    let whole = Duration::from_secs(time.secs.unsigned_abs());
    let at = match time.secs {
        0.. => SystemTime::UNIX_EPOCH.checked_add(whole),
        _ => SystemTime::UNIX_EPOCH.checked_sub(whole),
    };
    let at = at.and_then(|at| at.checked_add(Duration::from_nanos(time.nanos.into())));
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

fn file_attr(attr: &Attr) -> FileAttr {
    let size = attr.size();
    FileAttr {
        ino: INodeNo(attr.ino),
        size,
        blocks: size.div_ceil(BLOCK_BYTES),
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: SystemTime::UNIX_EPOCH,
        kind: file_type(&attr.kind),
        perm: (attr.mode & 0o7777) as u16,
        nlink: u32::try_from(attr.nlink).unwrap_or(u32::MAX),
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(&attr.kind),
        blksize: 4_096,
        flags: 0,
    }
}

fn keep(attr: &Attr) -> Duration {
    if attr.settled { KEEP } else { ASK_AGAIN }
}

fn dot(ino: u64) -> FileAttr {
    let (kind, time) = (FileKind::Dir, FileTime::default());
    let (mtime, ctime, atime) = (time, time, time);
    file_attr(&Attr { ino, kind, mode: 0o555, uid: 0, gid: 0, nlink: 1, mtime, ctime, atime, settled: false })
}
