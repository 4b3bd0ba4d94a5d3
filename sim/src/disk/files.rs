//! Files and names, each twice: as processes see them and as they would be found after a power loss.

use crate::entropy::Rng;
use farshore_core::host::dir_of;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;

/// What a power loss keeps or loses as one.
const PAGE_BYTES: usize = 4096;

/// Every file of a disk.
#[derive(Default)]
pub(super) struct Files {
    pub(super) inodes: BTreeMap<u64, Inode>,
    pub(super) names: BTreeMap<String, u64>,
    pub(super) durable_names: BTreeMap<String, u64>,
    last_inode: u64,
    /// Counts directory syncs as they are called, so that one that ends late does not undo a newer one.
    syncs: u64,
    synced: BTreeMap<String, u64>,
}

/// The contents of one file.
#[derive(Default)]
pub(super) struct Inode {
    pub(super) bytes: Vec<u8>,
    pub(super) synced: Vec<u8>,
    /// Bytes that a failed sync has given up: seen, and never made durable.
    given_up: Option<Range<usize>>,
    open: u32,
}

/// What a directory sync covers.
pub(super) struct Covered {
    number: u64,
    names: BTreeMap<String, u64>,
}

impl Files {
    pub(super) fn find(&mut self, name: &str) -> io::Result<&mut Inode> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.inodes.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    pub(super) fn make(&mut self, name: &str) -> u64 {
        self.last_inode += 1;
        self.inodes.insert(self.last_inode, Inode::default());
        self.names.insert(name.into(), self.last_inode);
        self.last_inode
    }
    pub(super) fn open(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.open += 1;
        }
    }
    pub(super) fn close(&mut self, id: u64) {
        if let Some(inode) = self.inodes.get_mut(&id) {
            inode.open = inode.open.saturating_sub(1);
        }
    }
    pub(super) fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        let id = self.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        self.names.insert(to.into(), id);
        Ok(())
    }
    pub(super) fn write_slot(&mut self, name: &str, offset: usize, bytes: &[u8]) {
        let id = match self.names.get(name) {
            Some(id) => *id,
            None => {
                let id = self.make(name);
                self.durable_names.insert(name.into(), id);
                id
            }
        };
        let inode = self.inodes.entry(id).or_default();
        let end = offset + bytes.len();
        if inode.bytes.len() < end {
            inode.bytes.resize(end, 0);
        }
        inode.bytes[offset..end].copy_from_slice(bytes);
        // A page that is written again is tried again.
        inode.given_up = None;
    }
    pub(super) fn begin_sync_dir(&mut self, dir: &str) -> Covered {
        self.syncs += 1;
        let inside = self.names.iter().filter(|(name, _)| dir_of(name) == dir);
        Covered { number: self.syncs, names: inside.map(|(name, id)| (name.clone(), *id)).collect() }
    }
    pub(super) fn end_sync_dir(&mut self, dir: &str, covered: Covered) {
        let newest = self.synced.entry(dir.into()).or_default();
        if *newest < covered.number {
            *newest = covered.number;
            self.durable_names.retain(|name, _| dir_of(name) != dir);
            self.durable_names.extend(covered.names);
        }
    }
    /// Lets go of files without a name that nobody has open. Returns the bytes of the others.
    pub(super) fn tidy(&mut self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().chain(self.durable_names.values()).copied().collect();
        self.inodes.retain(|id, inode| inode.open > 0 || named.contains(id));
        self.inodes.values().map(|inode| inode.bytes.len() as u64).sum()
    }
    /// Everything becomes durable as it is seen.
    pub(super) fn settle(&mut self) {
        self.durable_names = self.names.clone();
        self.inodes.values_mut().for_each(Inode::sync);
    }
    /// Power loss. Returns how many files are torn.
    pub(super) fn crash(&mut self, rng: &mut Rng) -> u64 {
        let touched: BTreeSet<String> = self.names.keys().chain(self.durable_names.keys()).cloned().collect();
        for name in touched {
            let (visible, durable) = (self.names.get(&name).copied(), self.durable_names.get(&name).copied());
            // A name that was not synced may have reached the disk all the same.
            if visible != durable && rng.one_in(2) {
                match visible {
                    Some(inode) => self.durable_names.insert(name, inode),
                    None => self.durable_names.remove(&name),
                };
            }
        }
        self.names = self.durable_names.clone();
        let kept: BTreeSet<u64> = self.names.values().copied().collect();
        self.inodes.retain(|id, _| kept.contains(id));
        let torn = self.inodes.values_mut().filter(|inode| inode.bytes != inode.synced);
        torn.map(|inode| inode.tear(rng)).count() as u64
    }
}

impl Inode {
    pub(super) fn sync(&mut self) {
        let Some(lost) = self.given_up.clone() else {
            self.synced.clone_from(&self.bytes);
            return;
        };
        let mut synced = self.bytes.clone();
        let end = lost.end.min(synced.len());
        for (at, byte) in synced.iter_mut().enumerate().take(end).skip(lost.start) {
            *byte = self.synced.get(at).copied().unwrap_or(0);
        }
        self.synced = synced;
    }
    /// A sync has failed: what it should have made durable is not tried again.
    pub(super) fn give_up(&mut self) {
        let same = self.bytes.iter().zip(&self.synced).take_while(|(a, b)| a == b).count();
        let from = self.given_up.as_ref().map_or(same, |lost| lost.start.min(same));
        self.given_up = Some(from..self.bytes.len());
    }
    /// What a power cut leaves of unsynced bytes: each page is old or new; the length anything between.
    fn tear(&mut self, rng: &mut Rng) {
        let (short, long) =
            (self.synced.len().min(self.bytes.len()), self.synced.len().max(self.bytes.len()));
        let len = rng.range(short as u64, long as u64) as usize;
        let mut after = vec![0u8; len];
        for start in (0..len).step_by(PAGE_BYTES) {
            let end = (start + PAGE_BYTES).min(len);
            let source = if rng.one_in(2) { &self.bytes } else { &self.synced };
            let have = end.min(source.len());
            if start < have {
                after[start..have].copy_from_slice(&source[start..have]);
            }
        }
        self.synced.clone_from(&after);
        self.bytes = after;
        self.given_up = None;
        self.open = 0;
    }
}
