//! The Disk seam: files in memory that live outside the process. Contents survive a power loss as far as they were
//! synced, names as far as their directory was; of what was not, a random part is found again. What a disk can do
//! wrong is in `damage`, errors and room in [`crate::medium`].

mod damage;

mod files;

#[cfg(test)]
mod disk_test;

use crate::calls::{Call, Ticket};
use crate::entropy::Rng;
use crate::event;
use crate::medium::{Medium, Ops};
use crate::world::World;
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, DiskFile, Space};
use files::Files;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

/// Shortest and longest time of one operation.
const OPERATION_US: (u64, u64) = (20, 400);
/// Shortest and longest time of a sync.
const SYNC_US: (u64, u64) = (200, 4_000);
/// Names kept for checks that ask what was removed and named; the oldest give way.
const NEWS_MAX: usize = 4_096;

/// The disk of one process. Clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    world: World,
    label: u64,
    medium: Medium,
    state: Arc<Mutex<State>>,
}

struct State {
    files: Files,
    /// Names that begin so are synced in name only.
    lying: Vec<String>,
    removed: VecDeque<String>,
    named: VecDeque<String>,
    /// When each file was last read, microseconds.
    read_us: BTreeMap<String, u64>,
    rng: Rng,
}

impl SimDisk {
    /// An empty disk.
    pub fn new(world: World, label: u64) -> Self {
        let state = State {
            files: Files::default(),
            lying: Vec::new(),
            removed: VecDeque::new(),
            named: VecDeque::new(),
            read_us: BTreeMap::new(),
            rng: Rng::new(world.seed() ^ label << 8, 0x4449),
        };
        let medium = Medium::new(world.clone(), label);
        SimDisk { world, label, medium, state: Arc::new(Mutex::new(state)) }
    }
    /// The device below it, which the machine's stores share: its room, pace and errors.
    pub fn medium(&self) -> &Medium {
        &self.medium
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Names of all files with this prefix, for checks.
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.lock().files.names.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }
    /// What a process reads, for checks.
    pub fn visible(&self, name: &str) -> Option<Bytes> {
        let state = self.lock();
        let inode = state.files.names.get(name).and_then(|id| state.files.inodes.get(id))?;
        Some(Bytes::copy_from_slice(&inode.bytes))
    }
    /// What surely is there after a power loss right now, for checks: a durable name's synced bytes.
    pub fn durable(&self, name: &str) -> Option<Bytes> {
        let state = self.lock();
        let inode = state.files.durable_names.get(name).and_then(|id| state.files.inodes.get(id))?;
        Some(Bytes::copy_from_slice(&inode.synced))
    }
    /// Names removed since this was last asked.
    pub fn take_removed(&self) -> Vec<String> {
        self.lock().removed.drain(..).collect()
    }
    /// Names that files were renamed to since this was last asked.
    pub fn take_named(&self) -> Vec<String> {
        self.lock().named.drain(..).collect()
    }

    /// When a file was last read, virtual microseconds, for checks.
    pub fn last_read_us(&self, name: &str) -> Option<u64> {
        self.lock().read_us.get(name).copied()
    }

    /// A call of the process begins.
    async fn begin(&self, call: Call, op: Ops, range: (u64, u64)) -> io::Result<Ticket> {
        let ticket = self.world.enter(self.label, call).await;
        tokio::time::sleep(self.medium.time(range)).await;
        match self.medium.strike(op) {
            Ok(()) => Ok(ticket),
            Err(error) => self.end(ticket, Err(error)).await,
        }
    }
    /// And returns.
    async fn end<T>(&self, ticket: Ticket, result: io::Result<T>) -> io::Result<T> {
        self.world.leave(self.label, ticket).await;
        result
    }
    fn is_stopped(&self) -> bool {
        self.world.calls().is_closed(self.label)
    }
}

fn remember(news: &mut VecDeque<String>, name: &str) {
    if news.len() == NEWS_MAX {
        news.pop_front();
    }
    news.push_back(name.into());
}

impl State {
    fn note_read(&mut self, name: &str, now_us: u64) {
        match self.read_us.get_mut(name) {
            Some(last) => *last = now_us,
            None => drop(self.read_us.insert(name.into(), now_us)),
        }
    }
    fn lies_about(&self, name: &str) -> bool {
        self.lying.iter().any(|prefix| name.starts_with(prefix.as_str()))
    }
}

#[async_trait]
impl Disk for SimDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        let ticket = self.begin(Call::Create, Ops::Write, OPERATION_US).await?;
        let inode = {
            let mut state = self.lock();
            let inode = state.files.make(name);
            state.files.open(inode);
            inode
        };
        let file: Box<dyn DiskFile> = Box::new(SimFile { disk: self.clone(), name: name.into(), inode });
        self.end(ticket, Ok(file)).await
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        let ticket = self.begin(Call::Read, Ops::Read, OPERATION_US).await?;
        let read = {
            let mut state = self.lock();
            state.note_read(name, self.world.now_us());
            state.files.find(name).map(|inode| {
                let start = (offset.min(inode.bytes.len() as u64)) as usize;
                let end = start.saturating_add(len).min(inode.bytes.len());
                Bytes::copy_from_slice(&inode.bytes[start..end])
            })
        };
        self.end(ticket, read).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        let ticket = self.begin(Call::Len, Ops::Read, OPERATION_US).await?;
        let len = self.lock().files.find(name).ok().map(|inode| inode.bytes.len() as u64);
        self.end(ticket, Ok(len)).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if !self.is_stopped() {
            let mut state = self.lock();
            // Only growth needs room.
            let len = state.files.find(name).map_or(0, |inode| inode.bytes.len());
            self.medium.grow_files((offset as usize + bytes.len()).saturating_sub(len) as u64)?;
            state.files.write_slot(name, offset as usize, bytes);
        }
        // A power loss at this call finds it under way: old, new or torn.
        let ticket = self.world.enter(self.label, Call::WriteSlot).await;
        tokio::time::sleep(self.medium.time(SYNC_US)).await;
        let synced = self.sync_inode(name, None);
        self.end(ticket, synced).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let ticket = self.begin(Call::Rename, Ops::Write, OPERATION_US).await?;
        let renamed = {
            let mut state = self.lock();
            let renamed = state.files.rename(from, to);
            if renamed.is_ok() {
                remember(&mut state.named, to);
                event!(self.world, self.label, "disk names {to}");
            }
            renamed
        };
        self.end(ticket, renamed).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        let ticket = self.begin(Call::Remove, Ops::Write, OPERATION_US).await?;
        {
            let mut state = self.lock();
            state.read_us.remove(name);
            if state.files.names.remove(name).is_some() {
                remember(&mut state.removed, name);
                event!(self.world, self.label, "disk removes {name}");
            }
        }
        self.end(ticket, Ok(())).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        let ticket = self.world.enter(self.label, Call::SyncDir).await;
        // What is covered is decided when the sync is called, not when it ends.
        let covered = self.lock().files.begin_sync_dir(dir);
        tokio::time::sleep(self.medium.time(SYNC_US)).await;
        let struck = self.medium.strike(Ops::Sync);
        if struck.is_ok() {
            let mut state = self.lock();
            if state.lies_about(&format!("{dir}/")) {
                event!(self.world, self.label, "disk lies: {dir}/ is not synced");
            } else {
                state.files.end_sync_dir(dir, covered);
                self.medium.set_files(state.files.tidy());
            }
        }
        self.end(ticket, struck).await
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        let ticket = self.begin(Call::List, Ops::Read, OPERATION_US).await?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let entries: BTreeSet<String> = {
            let state = self.lock();
            let below = state.files.names.keys().filter_map(|name| name.strip_prefix(&prefix));
            below
                .map(|rest| rest.split_once('/').map_or(rest.to_owned(), |(dir, _)| format!("{dir}/")))
                .collect()
        };
        self.end(ticket, Ok(entries.into_iter().collect())).await
    }
    async fn space(&self) -> io::Result<Space> {
        let ticket = self.world.enter(self.label, Call::Space).await;
        let (total, free) = self.medium.space();
        self.end(ticket, Ok(Space { total, free })).await
    }
}

impl SimDisk {
    /// Makes the bytes of a file durable, or fails, or only says so. `inode` if the caller has it open.
    fn sync_inode(&self, name: &str, inode: Option<u64>) -> io::Result<()> {
        let struck = self.medium.strike(Ops::Sync);
        let mut guard = self.lock();
        let lies = guard.lies_about(name);
        let state = &mut *guard;
        let inode = match inode {
            Some(id) => state.files.inodes.get_mut(&id).ok_or(io::ErrorKind::NotFound)?,
            None => state.files.find(name)?,
        };
        match struck {
            // The system has tried and will not try these bytes again, whatever it says later.
            Err(error) => {
                inode.give_up();
                Err(error)
            }
            Ok(()) if lies => {
                event!(self.world, self.label, "disk lies: {name} is not synced");
                Ok(())
            }
            Ok(()) => {
                inode.sync();
                Ok(())
            }
        }
    }
}

struct SimFile {
    disk: SimDisk,
    /// What it was called when it was created; renamed files are synced before.
    name: String,
    inode: u64,
}

impl Drop for SimFile {
    fn drop(&mut self) {
        self.disk.lock().files.close(self.inode);
    }
}

#[async_trait]
impl DiskFile for SimFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let label = self.disk.label;
        self.disk.world.taint().watch(&bytes, || format!("what p{label} writes to {}", self.name));
        let ticket = self.disk.begin(Call::Append, Ops::Write, OPERATION_US).await?;
        let appended = self.disk.medium.grow_files(bytes.len() as u64).and_then(|()| {
            let mut state = self.disk.lock();
            let inode = state.files.inodes.get_mut(&self.inode).ok_or(io::ErrorKind::NotFound)?;
            inode.bytes.extend_from_slice(&bytes);
            Ok(())
        });
        self.disk.end(ticket, appended).await
    }
    async fn sync(&mut self) -> io::Result<()> {
        let ticket = self.disk.world.enter(self.disk.label, Call::Sync).await;
        tokio::time::sleep(self.disk.medium.time(SYNC_US)).await;
        let synced = self.disk.sync_inode(&self.name, Some(self.inode));
        self.disk.end(ticket, synced).await
    }
}
