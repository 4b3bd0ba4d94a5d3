//! How much snapshots hold, counted in restic's ways.

use crate::client::Repository;
use crate::crypto::checksum;
use crate::error::Result;
use crate::format::nodes::encode;
use crate::format::{Content, ContentIter, Entry, Node};
use crate::list::Snapshot;
use crate::walk::{Step, Walk};
use farshore_core::id::{ChunkId, PackNo};
use std::collections::BTreeSet;

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// What a restore of each would write; a file with several names once in each snapshot.
    RestoreSize,
    /// Files with the same contents once.
    FilesByContents,
    /// Chunks, each once for every file of its own contents.
    BlobsPerFile,
}

/// What was counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Snapshots.
    pub snapshots: u64,
    /// Bytes.
    pub bytes: u64,
    /// Entries of trees, or files where contents are counted.
    pub files: u64,
    /// Chunks.
    pub blobs: u64,
}

/// What a repository stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stored {
    /// Packs.
    pub packs: u64,
    /// Chunks in them.
    pub blobs: u64,
    /// Bytes of packs: compressed and encrypted.
    pub bytes: u64,
    /// Bytes of shards that nodes hold of them.
    pub shard_bytes: u64,
}

impl Repository {
    /// Counts what these snapshots hold. Memory grows by a few bytes for each distinct content of a file, or each file with
    /// several names.
    pub async fn stats(&self, snapshots: &[Snapshot], mode: Mode) -> Result<Stats> {
        let mut count = Count { repository: self, mode, stats: Stats::default(), seen: BTreeSet::new() };
        for snapshot in snapshots {
            count.snapshot(snapshot).await?;
        }
        Ok(count.stats)
    }

    /// Counts what is stored, whatever snapshot needs it.
    pub async fn stored(&self) -> Result<Stored> {
        let mut stored = Stored::default();
        let mut from = Some(PackNo(0));
        while let Some(next) = from {
            let page = self.catalogue().list_packs(self.id(), next).await?;
            from = page.next;
            for pack in &page.packs {
                let held = pack.stripe.shards.iter().filter(|shard| shard.node.is_some()).count();
                stored.packs += 1;
                stored.blobs += u64::from(pack.chunks);
                stored.bytes += pack.len;
                stored.shard_bytes += pack.stripe.shard_len * held as u64;
            }
        }
        Ok(stored)
    }
}

struct Count<'a> {
    repository: &'a Repository,
    mode: Mode,
    stats: Stats,
    /// Contents, or inodes of this snapshot.
    seen: BTreeSet<[u8; 16]>,
}

impl Count<'_> {
    async fn snapshot(&mut self, snapshot: &Snapshot) -> Result<()> {
        self.stats.snapshots += 1;
        if self.mode == Mode::RestoreSize {
            self.seen.clear();
        }
        let mut walk = Walk::new(self.repository.trees(), snapshot.info.root);
        while let Some(step) = walk.next().await {
            match step {
                Step::Entry(_, entry) => self.entry(&entry).await?,
                Step::Leave(_) => {}
                Step::Broken(_, error) => return Err(error),
            }
        }
        Ok(())
    }

    async fn entry(&mut self, entry: &Entry) -> Result<()> {
        if self.mode == Mode::RestoreSize {
            self.stats.files += 1;
        }
        let Node::File { size, content } = &entry.node else { return Ok(()) };
        let meta = &entry.meta;
        match self.mode {
            Mode::RestoreSize => {
                let inode = || checksum(&[&meta.dev.to_le_bytes(), &meta.ino.to_le_bytes()]);
                if meta.nlink < 2 || self.seen.insert(inode()) {
                    self.stats.bytes += size;
                }
            }
            Mode::FilesByContents => {
                if self.seen.insert(checksum(&[&encode(content)])) {
                    self.stats.files += 1;
                    self.stats.bytes += size;
                }
            }
            Mode::BlobsPerFile => {
                if self.seen.insert(checksum(&[&encode(content)])) {
                    self.stats.files += 1;
                    self.blobs(content).await?;
                }
            }
        }
        Ok(())
    }

    async fn blobs(&mut self, content: &Content) -> Result<()> {
        let mut chunks = ContentIter::new(self.repository.trees(), content);
        let mut once = BTreeSet::<ChunkId>::new();
        while let Some(placed) = chunks.next().await? {
            if once.insert(placed.id) {
                self.stats.blobs += 1;
                self.stats.bytes += u64::from(placed.len);
            }
        }
        Ok(())
    }
}
