//! Syncing a whole file system at once, and whether its word can be relied on.
//!
//! `syncfs` covers the data and the names of everything written before it. Where it tells of a failed write, it does so
//! once for each open handle, so that the error of one file may be told to the caller of another and be kept from its
//! own. Hence: the handle is opened before anything is written that it will vouch for, one caller at a time asks, an
//! error is told to all who waited, and after the first error a file system is never again synced this way: each file's
//! own handle still knows what has become of that file.
#![expect(clippy::disallowed_methods, reason = "this file is a seam to the file system")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Kernels tell of failed writes in `syncfs` since 5.8, and of what the file system itself found then since 5.17.
const KERNEL_MIN: (u32, u32) = (5, 17);
/// ext2 to ext4 and XFS. Others may keep what goes wrong below them to themselves, as stacked and network file systems do.
const TRUSTED: [u64; 2] = [0xef53, 0x5846_5342];

/// The file systems below one directory; usually it is one.
pub(super) struct Devices {
    by_number: Mutex<BTreeMap<u64, Device>>,
    allowed: bool,
}

/// A handle to sync through, if that can be relied on.
#[derive(Clone)]
struct Device(Option<Arc<Mutex<Handle>>>);

struct Handle {
    file: File,
    failed: bool,
}

impl Devices {
    /// `allowed`: whether to sync whole file systems at all.
    pub(super) fn new(allowed: bool) -> Self {
        let allowed = allowed && kernel().is_some_and(|kernel| kernel >= KERNEL_MIN);
        Devices { by_number: Mutex::default(), allowed }
    }

    /// Makes ready to sync the file system of this number, which `dir` lies on. To be called before anything is written.
    pub(super) fn prepare(&self, number: u64, dir: &Path) {
        if self.allowed && !self.devices().contains_key(&number) {
            self.devices().entry(number).or_insert_with(|| Device::open(dir));
        }
    }

    /// Whether any file system may be synced as a whole.
    pub(super) fn any(&self) -> bool {
        self.devices().values().any(|device| device.0.is_some())
    }

    /// Syncs a file system, or answers `None` if that cannot be relied on.
    pub(super) fn sync(&self, number: u64) -> Option<io::Result<()>> {
        let handle = self.devices().get(&number)?.0.clone()?;
        let mut handle = handle.lock().unwrap_or_else(PoisonError::into_inner);
        if handle.failed {
            return None;
        }
        let synced = rustix::fs::syncfs(&handle.file).map_err(io::Error::from);
        if let Err(why) = &synced {
            tracing::error!(%why, "a file system failed to sync; its files are synced one by one from now on");
            handle.failed = true;
            self.devices().insert(number, Device(None));
        }
        Some(synced)
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<u64, Device>> {
        self.by_number.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device {
    fn open(dir: &Path) -> Self {
        let trusted = |file: &File| {
            let stat = rustix::fs::fstatfs(file)?;
            Ok::<_, io::Error>(TRUSTED.contains(&(stat.f_type as u64)))
        };
        let file = File::open(dir).ok().filter(|file| trusted(file).unwrap_or(false));
        Device(file.map(|file| Arc::new(Mutex::new(Handle { file, failed: false }))))
    }
}

/// Major and minor number of the running kernel.
fn kernel() -> Option<(u32, u32)> {
    let uname = rustix::system::uname();
    let mut numbers = uname.release().to_str().ok()?.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}
