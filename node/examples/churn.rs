//! How much disk a node takes while its catalogue and its shard index churn: backups come and as many go, through the
//! real Raft log, state machine and engines, with the log cut as a replica cuts it. One cycle is a backup of 64 packs (2 GiB
//! of data) and everything that forgets an older one; 1,800 of them are what an hour of 1 GiB a second brings.
//!
//! ```text
//! churn DIR cycles=1800 kept=32 snapshot_logs=5000 keep_logs=1000
//! ```
#![expect(clippy::disallowed_methods, reason = "this program measures the machine it runs on")]

mod support;

use farshore_core::catalogue::{Command, Condemned, CondemnedPack, Reply, RepoChange};
use farshore_core::host::kv::{Kv, KvFactory, KvRole};
use farshore_core::id::{NodeId, PackNo, ShardId, StripeId, hash_parts};
use farshore_core::limits::{COMMIT_PACKS_MAX, SWEEP_COPIES_MAX};
use farshore_node::catalogue::Catalogue;
use farshore_node::disk::RealDisk;
use farshore_node::kv::{RealKv, record};
use farshore_node::raft::log::LogStore;
use farshore_node::raft::machine::Machine;
use farshore_node::raft::types::{Entry, LogId, Payload};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::{CommittedLeaderId, EntryPayload, RaftSnapshotBuilder};
use roaring::RoaringTreemap;
use std::path::PathBuf;
use std::sync::Arc;
use support::*;

const PACK_CHUNKS: u64 = 32;

#[tokio::main]
async fn main() {
    let (fixed, args) = Args::read();
    let [dir] = fixed.as_slice() else { panic!("usage: churn DIR [name=value]") };
    let dir = PathBuf::from(dir);
    let (cycles, kept) = (args.number("cycles", 1_800), args.number("kept", 32));
    let kv = RealKv::new(&dir);
    let mut node = Node::open(&dir, &kv, &args).await;
    let mut index = Index { kv: kv.open(KvRole::Index).await.expect("open the index") };
    node.commit(prologue()).await;
    let (meter, mut most) = (Meter::start(), (0.0f64, 0.0f64));
    for cycle in 0..cycles {
        node.back_up(cycle).await;
        index.put(cycle).await;
        if let Some(old) = cycle.checked_sub(kept) {
            node.forget(old).await;
            index.remove(old).await;
        }
        let disk = (disk_mib(&dir.join("catalogue")), disk_mib(&dir.join("index")));
        most = (most.0.max(disk.0), most.1.max(disk.1));
        if cycle % cycles.div_ceil(20) == 0 || cycle + 1 == cycles {
            println!(
                "{:5} cycles  log index {:7}  packs {:6}  fjall {:7.1} MiB  sled {:6.1} MiB  {}",
                cycle + 1,
                node.next - 1,
                node.catalogue.view().expect("view").counts().packs,
                disk.0,
                disk.1,
                meter.read()
            );
        }
    }
    println!("at most: fjall {:.1} MiB, sled {:.1} MiB", most.0, most.1);
}

/// A replica without its network.
struct Node {
    catalogue: Catalogue,
    log: LogStore,
    machine: Machine,
    next: u64,
    image_at: u64,
    snapshot_logs: u64,
    keep_logs: u64,
}

impl Node {
    async fn open(dir: &std::path::Path, kv: &RealKv, args: &Args) -> Self {
        let store = kv.open(KvRole::Catalogue).await.expect("open the store");
        let catalogue = Catalogue::open(store.clone()).expect("open the catalogue");
        let log = LogStore::open(store, Arc::new(RealDisk::new(dir))).await.expect("open the log");
        let log = log.never_ahead_of(catalogue.clone());
        Node {
            machine: Machine::new(catalogue.clone()),
            catalogue,
            log,
            next: 1,
            image_at: 0,
            snapshot_logs: args.number("snapshot_logs", 5_000),
            keep_logs: args.number("keep_logs", 1_000),
        }
    }

    /// Appends, makes durable, applies; and cuts the log when it is time.
    async fn commit(&mut self, commands: Vec<Command>) -> Vec<Reply> {
        let entry = |(index, command): (u64, Command)| Entry {
            log_id: id(index),
            payload: EntryPayload::Normal(Payload::seal(&stamped(index, command)).expect("it fits")),
        };
        let entries: Vec<Entry> = (self.next..).zip(commands).map(entry).collect();
        self.next += entries.len() as u64;
        self.log.blocking_append(entries.clone()).await.expect("append");
        self.log.save_committed(Some(id(self.next - 1))).await.expect("commit point");
        let replies = self.machine.apply(entries).await.expect("apply");
        replies.iter().for_each(|reply| assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}"));
        if self.next - self.image_at > self.snapshot_logs {
            self.machine.get_snapshot_builder().await.build_snapshot().await.expect("image");
            self.image_at = self.next;
            self.log.purge(id(self.next - 1 - self.keep_logs)).await.expect("purge");
        }
        replies
    }

    async fn back_up(&mut self, cycle: u64) {
        let session = session_id(cycle);
        let numbers = cycle * COMMIT_PACKS_MAX as u64..(cycle + 1) * COMMIT_PACKS_MAX as u64;
        let packs = numbers.map(|no| pack(no, no * PACK_CHUNKS..(no + 1) * PACK_CHUNKS)).collect();
        let open = Command::OpenSession { session, repo: REPO, seen: self.next - 1 };
        let replies = self.commit(vec![open, Command::CommitPacks { session, packs }]).await;
        let Some(Reply::PacksCommitted { packs }) = replies.last() else { panic!("{replies:?}") };
        let live: RoaringTreemap = packs.iter().flat_map(|pack| pack.ordinals.iter().map(|o| o.0)).collect();
        let snapshot = snapshot(cycle, &live);
        let commit = Command::CommitSnapshot { session, snapshot, replaces: None };
        self.commit(vec![commit, Command::EndSessions { sessions: vec![session] }]).await;
    }

    async fn forget(&mut self, cycle: u64) {
        let snapshots = vec![snapshot_id(cycle)];
        let forget = RepoChange::Forget { snapshots: snapshots.clone(), bypass: false };
        let purge = RepoChange::Purge { snapshots, early: true };
        let numbers = cycle * COMMIT_PACKS_MAX as u64..(cycle + 1) * COMMIT_PACKS_MAX as u64;
        let packs: Vec<PackNo> = numbers.map(PackNo).collect();
        let change = |change| Command::ChangeRepository { repo: REPO, change };
        let condemn = Command::CondemnPacks { packs: packs.clone() };
        self.commit(vec![change(forget), change(purge), condemn]).await;
        let looked = self.next - 1;
        let packs = packs.into_iter().map(|no| CondemnedPack { no, at: looked }).collect();
        let replies = self.commit(vec![Command::DropPacks { packs, looked }]).await;
        assert_eq!(replies, [Reply::Changed { count: COMMIT_PACKS_MAX as u32 }]);
        let view = self.catalogue.view().expect("view");
        let copies = |node| view.condemned(node, None, SWEEP_COPIES_MAX).expect("copies").rows;
        let swept = |copies: Vec<Condemned>| Command::Swept { copies };
        self.commit((1..=NODES).map(|node| swept(copies(NodeId(node)))).collect()).await;
    }
}

fn id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(1, 1), index)
}

/// The shard index of one node: one shard of each pack.
struct Index {
    kv: Arc<dyn Kv>,
}

impl Index {
    /// Each shard is put by a batch of its own; uploads side by side share a flush.
    async fn put(&mut self, cycle: u64) {
        for shard in shards(cycle) {
            // As long as a real entry: hash, lengths, repository, pack, session, time.
            self.kv.write(vec![record::put(1, key(shard), 1, &[9; 120])]).expect("put");
        }
        self.kv.flush().await.expect("flush");
    }
    async fn remove(&mut self, cycle: u64) {
        self.kv.write(shards(cycle).map(|shard| record::delete(1, key(shard))).collect()).expect("remove");
        self.kv.flush().await.expect("flush");
    }
}

fn shards(cycle: u64) -> impl Iterator<Item = ShardId> {
    let numbers = cycle * COMMIT_PACKS_MAX as u64..(cycle + 1) * COMMIT_PACKS_MAX as u64;
    numbers.map(|no| {
        let mut stripe = [0; 16];
        stripe.copy_from_slice(&hash_parts(&[b"stripe", &no.to_le_bytes()])[..16]);
        ShardId { stripe: StripeId(stripe), index: (no % NODES) as u8 }
    })
}

fn key(shard: ShardId) -> Vec<u8> {
    [shard.stripe.as_bytes(), &[shard.index]].concat()
}
