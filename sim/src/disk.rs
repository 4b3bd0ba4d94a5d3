//! The Disk seam: files in memory that live outside the process. Contents survive a power loss as far as they were
//! synced, names as far as their directory was; of what was not, a random part is found again.

use crate::entropy::Rng;
use crate::event;
use crate::world::World;
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space, dir_of};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Shortest and longest time of one operation.
const OPERATION_US: (u64, u64) = (20, 400);
/// Shortest and longest time of a sync.
const SYNC_US: (u64, u64) = (200, 4_000);
/// Size of the simulated disk.
const DISK_BYTES: u64 = 1 << 30;

/// The disk of one process. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    world: World,
    label: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    next_inode: u64,
    /// Counts directory syncs as they are called, so that one that ends late does not undo a newer one.
    syncs: u64,
    synced: BTreeMap<String, u64>,
    capacity: u64,
    rng: Rng,
}

#[derive(Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: Vec<u8>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(world: World, label: u64) -> Self {
        let rng = Rng::new(world.seed() ^ label << 8, 0x4449);
        let state = State {
            inodes: BTreeMap::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            next_inode: 1,
            syncs: 0,
            synced: BTreeMap::new(),
            capacity: DISK_BYTES,
            rng,
        };
        SimDisk { world, label, state: Arc::new(Mutex::new(state)) }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
    async fn wait(&self, range: (u64, u64)) {
        let wait = self.lock().rng.range(range.0, range.1);
        tokio::time::sleep(Duration::from_micros(wait)).await;
    }

    /// Power loss.
    pub fn crash(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        let touched: BTreeSet<String> =
            state.names.keys().chain(state.durable_names.keys()).cloned().collect();
        for name in touched {
            let (visible, durable) =
                (state.names.get(&name).copied(), state.durable_names.get(&name).copied());
            // A name that was not synced may have reached the disk all the same.
            if visible != durable && state.rng.one_in(2) {
                match visible {
                    Some(inode) => state.durable_names.insert(name, inode),
                    None => state.durable_names.remove(&name),
                };
            }
        }
        state.names = state.durable_names.clone();
        let kept: BTreeSet<u64> = state.names.values().copied().collect();
        state.inodes.retain(|id, _| kept.contains(id));
        let mut torn = 0u64;
        for inode in state.inodes.values_mut() {
            if inode.bytes != inode.synced {
                torn += 1;
                inode.tear(&mut state.rng);
            }
        }
        drop(guard);
        event!(self.world, self.label, "disk lost power, {torn} files torn");
    }

    /// An empty disk takes the place of this one.
    pub fn wipe(&self) {
        let mut state = self.lock();
        state.inodes.clear();
        state.names.clear();
        state.durable_names.clear();
    }

    /// Flips one bit of one of the files that `which` admits by name. Returns its name.
    pub fn rot(&self, which: impl Fn(&str) -> bool) -> Option<String> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let names: Vec<(String, u64)> = state
            .names
            .iter()
            .filter(|(name, id)| which(name) && state.inodes.get(id).is_some_and(|i| !i.bytes.is_empty()))
            .map(|(name, id)| (name.clone(), *id))
            .collect();
        let (name, id) = names.get(state.rng.below(names.len() as u64) as usize)?.clone();
        let inode = state.inodes.get_mut(&id)?;
        let bit = state.rng.below(inode.bytes.len() as u64 * 8);
        let at = (bit / 8) as usize;
        inode.bytes[at] ^= 1 << (bit % 8);
        if let Some(byte) = inode.synced.get_mut(at) {
            *byte ^= 1 << (bit % 8);
        }
        drop(guard);
        event!(self.world, self.label, "disk rots bit {bit} of {name}");
        Some(name)
    }

    /// Names of all files with this prefix, for checks.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.lock().names.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }
    /// Somebody else takes all the room that is left.
    pub fn fill(&self) {
        let mut state = self.lock();
        state.capacity = state.used();
        drop(state);
        event!(self.world, self.label, "disk is full");
    }
    /// And gives it back.
    pub fn unfill(&self) {
        self.set_capacity(DISK_BYTES);
    }
    /// Makes the disk smaller or larger.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
    }
}

impl Inode {
    /// What a power cut leaves of unsynced bytes: each piece is old or new; the length anything between.
    fn tear(&mut self, rng: &mut Rng) {
        const PAGE: usize = 4096;
        let (short, long) =
            (self.synced.len().min(self.bytes.len()), self.synced.len().max(self.bytes.len()));
        let len = rng.range(short as u64, long as u64) as usize;
        let mut after = vec![0u8; len];
        for start in (0..len).step_by(PAGE) {
            let end = (start + PAGE).min(len);
            let source = if rng.one_in(2) { &self.bytes } else { &self.synced };
            let have = end.min(source.len());
            if start < have {
                after[start..have].copy_from_slice(&source[start..have]);
            }
        }
        self.bytes = after.clone();
        self.synced = after;
    }
}

impl State {
    fn used(&self) -> u64 {
        self.inodes.values().map(|i| i.bytes.len() as u64).sum()
    }
    fn find(&mut self, name: &str) -> io::Result<&mut Inode> {
        let id = self.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        self.inodes.get_mut(id).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
    fn make(&mut self, name: &str) -> u64 {
        let id = self.next_inode;
        self.next_inode += 1;
        self.inodes.insert(id, Inode::default());
        self.names.insert(name.into(), id);
        id
    }
    fn room(&self, more: usize) -> io::Result<()> {
        if self.used() + more as u64 > self.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.wait(OPERATION_US).await;
        let inode = self.lock().make(name);
        Ok(Box::new(SimFile { disk: self.clone(), inode }))
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        self.wait(OPERATION_US).await;
        let mut state = self.lock();
        let bytes = &state.find(name)?.bytes;
        let start = (offset.min(bytes.len() as u64)) as usize;
        let end = start.saturating_add(len).min(bytes.len());
        Ok(Bytes::copy_from_slice(&bytes[start..end]))
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        self.wait(OPERATION_US).await;
        Ok(self.lock().find(name).ok().map(|inode| inode.bytes.len() as u64))
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        {
            let mut state = self.lock();
            // Only growth needs room.
            let len = state.find(name).map_or(0, |inode| inode.bytes.len());
            state.room((offset as usize + bytes.len()).saturating_sub(len))?;
            if !state.names.contains_key(name) {
                let id = state.make(name);
                state.durable_names.insert(name.into(), id);
            }
            let inode = state.find(name)?;
            let end = offset as usize + bytes.len();
            if inode.bytes.len() < end {
                inode.bytes.resize(end, 0);
            }
            inode.bytes[offset as usize..end].copy_from_slice(bytes);
        }
        self.wait(SYNC_US).await;
        let mut state = self.lock();
        let inode = state.find(name)?;
        inode.synced = inode.bytes.clone();
        Ok(())
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.wait(OPERATION_US).await;
        let mut state = self.lock();
        let id = state.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.names.insert(to.into(), id);
        event!(self.world, self.label, "disk names {to}");
        Ok(())
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.wait(OPERATION_US).await;
        if self.lock().names.remove(name).is_some() {
            event!(self.world, self.label, "disk removes {name}");
        }
        Ok(())
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        // What is covered is decided when the sync is called, not when it ends.
        let (number, seen) = {
            let mut state = self.lock();
            state.syncs += 1;
            let inside = state.names.iter().filter(|(name, _)| dir_of(name) == dir);
            (state.syncs, inside.map(|(name, id)| (name.clone(), *id)).collect::<BTreeMap<_, _>>())
        };
        self.wait(SYNC_US).await;
        let mut state = self.lock();
        let newest = state.synced.entry(dir.into()).or_default();
        if *newest < number {
            *newest = number;
            state.durable_names.retain(|name, _| dir_of(name) != dir);
            state.durable_names.extend(seen);
        }
        Ok(())
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.wait(OPERATION_US).await;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let state = self.lock();
        let below = state.names.keys().filter_map(|name| name.strip_prefix(&prefix));
        let entries: BTreeSet<String> = below
            .map(|rest| rest.split_once('/').map_or(rest.to_owned(), |(dir, _)| format!("{dir}/")))
            .collect();
        Ok(entries.into_iter().collect())
    }
    async fn space(&self) -> io::Result<Space> {
        let state = self.lock();
        Ok(Space { total: state.capacity, free: state.capacity.saturating_sub(state.used()) })
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

#[async_trait]
impl DiskFile for SimFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        self.disk.wait(OPERATION_US).await;
        let mut state = self.disk.lock();
        state.room(bytes.len())?;
        let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        inode.bytes.extend_from_slice(&bytes);
        Ok(())
    }
    async fn sync(&mut self) -> io::Result<()> {
        self.disk.wait(SYNC_US).await;
        let mut state = self.disk.lock();
        let inode = state.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
        inode.synced = inode.bytes.clone();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::host::publish;
    use farshore_node::disk::conformance;

    #[tokio::test(start_paused = true)]
    async fn conforms() {
        let world = World::new(1, None);
        let disks: Vec<_> = (0..5).map(|label| SimDisk::new(world.clone(), label)).collect();
        conformance::run(async |n| Arc::new(disks[n as usize].clone()) as Arc<dyn Disk>).await;
    }

    #[tokio::test(start_paused = true)]
    async fn rot_changes_one_bit_and_a_full_disk_says_so() {
        let disk = SimDisk::new(World::new(1, None), 1);
        let mut file = disk.create("shards/x").await.unwrap();
        file.append(Bytes::from(vec![0; 5_000])).await.unwrap();
        file.sync().await.unwrap();
        assert_eq!(disk.rot(|_| false), None);
        assert_eq!(disk.rot(|name| name.starts_with("shards/")).as_deref(), Some("shards/x"));
        let bytes = disk.read("shards/x", 0, 9_000).await.unwrap();
        assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
        disk.set_capacity(6_000);
        assert_eq!(disk.space().await.unwrap().free, 1_000);
        let error = file.append(Bytes::from(vec![0; 1_001])).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slot_is_old_or_new_after_a_cut_and_new_once_it_returned() {
        let mut found = BTreeSet::new();
        for seed in 0..40 {
            let disk = SimDisk::new(World::new(seed, None), 1);
            disk.write_slot("slot", 0, b"old").await.unwrap();
            let cut = futures_util::FutureExt::now_or_never(disk.write_slot("slot", 0, b"new"));
            assert!(cut.is_none());
            disk.crash();
            found.insert(disk.read("slot", 0, 9).await.unwrap());
            disk.write_slot("slot", 0, b"yes").await.unwrap();
            disk.crash();
            assert_eq!(disk.read("slot", 0, 9).await.unwrap(), b"yes"[..]);
        }
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [&b"new"[..], b"old"]);
    }

    #[tokio::test(start_paused = true)]
    async fn published_files_survive_and_others_are_old_new_or_torn() {
        for seed in 0..40 {
            let disk = SimDisk::new(World::new(seed, None), 1);
            let mut file = disk.create("a/tmp").await.unwrap();
            file.append(Bytes::from(vec![7; 9_000])).await.unwrap();
            publish(&disk, file, "a/tmp", "a/final").await.unwrap();
            let mut lost = disk.create("a/unsynced").await.unwrap();
            lost.append(Bytes::from(vec![9; 9_000])).await.unwrap();
            disk.crash();
            assert_eq!(disk.read("a/final", 0, 10_000).await.unwrap(), vec![7; 9_000]);
            assert_eq!(disk.len("a/tmp").await.unwrap(), None);
            if let Some(len) = disk.len("a/unsynced").await.unwrap() {
                assert!(len <= 9_000);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_rename_without_directory_sync_may_be_lost() {
        let mut outcomes = BTreeSet::new();
        for seed in 0..40 {
            let disk = SimDisk::new(World::new(seed, None), 1);
            let mut file = disk.create("a/tmp").await.unwrap();
            file.append(Bytes::from_static(b"x")).await.unwrap();
            file.sync().await.unwrap();
            disk.rename("a/tmp", "a/final").await.unwrap();
            disk.crash();
            outcomes.insert(disk.len("a/final").await.unwrap().is_some());
        }
        assert_eq!(outcomes.len(), 2, "both outcomes must occur, or the fault is not simulated");
    }
}
