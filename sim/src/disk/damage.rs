//! What a disk does wrong: it loses power, lies, rots, is emptied, cut short, or gives one file's bytes for another's.

use super::{Ops, SimDisk, State};
use crate::event;
use crate::medium::DISK_BYTES;

impl SimDisk {
    /// Power loss.
    pub fn crash(&self) {
        let mut guard = self.lock();
        let State { files, rng, .. } = &mut *guard;
        let torn = files.crash(rng);
        self.medium().set_files(files.tidy());
        drop(guard);
        event!(self.world, self.label, "disk lost power, {torn} files torn");
    }
    /// An empty disk takes the place of this one.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.files = super::Files::default();
        self.medium().set_files(0);
        drop(state);
        event!(self.world, self.label, "disk is wiped");
    }
    /// From now on a sync of a file or directory whose name begins with one of these says it is done and does
    /// nothing; none ends it. What was lied about stays in danger until it is synced again or [`SimDisk::settle`].
    pub fn set_lying(&self, prefixes: &[&str]) {
        self.lock().lying = prefixes.iter().map(|prefix| (*prefix).to_owned()).collect();
        event!(self.world, self.label, "disk lies about {prefixes:?}");
    }
    /// Everything seen becomes durable, as it does on an idle disk after a while.
    pub fn settle(&self) {
        self.lock().files.settle();
        event!(self.world, self.label, "disk has settled");
    }

    /// The file's number and name, at random among those that `which` admits by name and that have so many bytes.
    fn pick(&self, state: &mut State, which: impl Fn(&str) -> bool, len_min: usize) -> Option<(u64, String)> {
        let State { files, rng, .. } = state;
        let fits = |id| files.inodes.get(id).is_some_and(|inode| inode.bytes.len() >= len_min);
        let admitted: Vec<_> = files.names.iter().filter(|(name, id)| which(name) && fits(id)).collect();
        let (name, id) = *admitted.get(rng.below(admitted.len() as u64) as usize)?;
        Some((*id, name.clone()))
    }

    /// Flips one bit of one of the files that `which` admits by name. Returns its name.
    pub fn rot(&self, which: impl Fn(&str) -> bool) -> Option<String> {
        let mut guard = self.lock();
        let (id, name) = self.pick(&mut guard, which, 1)?;
        let State { files, rng, .. } = &mut *guard;
        let inode = files.inodes.get_mut(&id)?;
        let bit = rng.below(inode.bytes.len() as u64 * 8);
        let at = (bit / 8) as usize;
        inode.bytes[at] ^= 1 << (bit % 8);
        if let Some(byte) = inode.synced.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
        drop(guard);
        event!(self.world, self.label, "disk rots bit {bit} of {name}");
        Some(name)
    }

    /// Cuts one of the files that `which` admits by name short, by anything from one byte to all. Returns its name.
    pub fn truncate(&self, which: impl Fn(&str) -> bool) -> Option<String> {
        let mut guard = self.lock();
        let (id, name) = self.pick(&mut guard, which, 1)?;
        let State { files, rng, .. } = &mut *guard;
        let inode = files.inodes.get_mut(&id)?;
        let len = rng.below(inode.bytes.len() as u64) as usize;
        inode.bytes.truncate(len);
        inode.synced.truncate(len);
        self.medium().set_files(files.tidy());
        drop(guard);
        event!(self.world, self.label, "disk cuts {name} to {len} bytes");
        Some(name)
    }

    /// Two of the files that `which` admits by name exchange their contents. Returns their names.
    pub fn swap(&self, which: impl Fn(&str) -> bool) -> Option<(String, String)> {
        let mut guard = self.lock();
        let (one, first) = self.pick(&mut guard, &which, 0)?;
        let (two, second) = self.pick(&mut guard, |name| name != first && which(name), 0)?;
        let files = &mut guard.files;
        let (a, b) = (files.inodes.remove(&one)?, files.inodes.remove(&two)?);
        files.inodes.insert(one, b);
        files.inodes.insert(two, a);
        drop(guard);
        event!(self.world, self.label, "disk swaps {first} and {second}");
        Some((first, second))
    }

    /// Somebody else takes all the room that is left.
    pub fn fill(&self) {
        self.medium().fill();
    }
    /// And gives it back.
    pub fn unfill(&self) {
        self.set_capacity(DISK_BYTES);
    }
    /// Makes the disk smaller or larger.
    pub fn set_capacity(&self, bytes: u64) {
        self.medium().set_capacity(bytes);
    }
    /// Every call takes so many times as long; 1 is the usual pace. The machine's stores are as slow.
    pub fn set_slow(&self, factor: u64) {
        self.medium().set_slow(factor);
    }
    /// The n-th of these calls from now, 1 being the next, fails with EIO, once. Syncs of the machine's stores count
    /// among them. After a failed sync the next ones succeed and what it should have covered is never made durable.
    pub fn fail_call(&self, n: u64, ops: Ops) {
        self.medium().fail_call(n, ops);
    }
    /// So many in a million of these calls fail with EIO; 0 ends it.
    pub fn fail_rate(&self, ppm: u64, ops: Ops) {
        self.medium().fail_rate(ppm, ops);
    }
}
