//! What it costs to receive shards: many puts at once through the real store, with and without rounds of syncs
//! (`node/src/disk/sync.rs`), in turns, on the same directory's file system.
//!
//! ```text
//! puts DIR turns=5 small=3000 large=60
//! ```
//!
//! `turns`: how often each kind is measured; `small` and `large`: shards of 16 KiB and of 8 MiB for each turn. Ratios are
//! those of the medians. DIR is made, and everything below it removed.
#![expect(clippy::disallowed_methods, reason = "this program measures the machine it runs on")]

mod support;

use farshore_node::disk::RealDisk;
use farshore_node::store::{ShardStore, StoreOptions};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;
use support::*;

const KINDS: [(&str, usize); 2] = [("16 KiB", 16 << 10), ("8 MiB", 8 << 20)];
const AT_ONCE: [usize; 4] = [1, 4, 16, 64];

#[tokio::main]
async fn main() {
    let (fixed, args) = Args::read();
    let [dir] = fixed.as_slice() else { panic!("usage: puts DIR [name=value]") };
    let dir = Path::new(dir);
    println!("shards, at once: shards/s and syncs a shard, in rounds and each by itself; ratios");
    for ((name, bytes), shards) in
        KINDS.into_iter().zip([args.number("small", 3_000), args.number("large", 60)])
    {
        for at_once in AT_ONCE {
            // One at a time is so much slower that fewer do.
            let shards = (shards as usize * at_once.min(8) / 8).max(at_once);
            let (mut rounds, mut single) = (vec![], vec![]);
            for _ in 0..args.number("turns", 5) {
                single.push(turn(dir, false, shards, bytes, at_once).await);
                rounds.push(turn(dir, true, shards, bytes, at_once).await);
            }
            let (rounds, single) = (median(rounds), median(single));
            println!(
                "{name:>7} {at_once:3}: {:8.0}/s {:5.2}   {:8.0}/s {:5.2}   throughput {:5.2}  syncs {:5.2}",
                rounds.0,
                rounds.1,
                single.0,
                single.1,
                rounds.0 / single.0,
                rounds.1 / single.1,
            );
        }
    }
}

/// Shards received in a second, and syncs by the disk for each; the index's own come on top.
async fn turn(dir: &Path, rounds: bool, shards: usize, bytes: usize, at_once: usize) -> (f64, f64) {
    let _ = std::fs::remove_dir_all(dir);
    std::fs::create_dir_all(dir).expect("make the directory");
    let disk = RealDisk::with_rounds(dir, rounds);
    let options = StoreOptions { capacity: u64::MAX, reserve: 0 };
    let host = host(dir, disk.clone());
    let (store, _) = ShardStore::open(&host, CLUSTER, options).await.expect("open the store");
    // Directories are made and become durable once; that is not what is measured.
    for first in 0..=u8::MAX {
        host.disk.write_slot(&format!("shards/{first:02x}/made"), 0, b"x").await.expect("make a directory");
    }
    let made: Vec<_> = (0..shards).map(|number| made_shard(1_000 + number as u64, bytes)).collect();
    // What others have written is not for us to wait for.
    settle(dir);
    let (began, before) = (Instant::now(), disk.syncs());
    let left = Arc::new(std::sync::Mutex::new(made));
    let putting = (0..at_once).map(|_| {
        let (store, left) = (store.clone(), left.clone());
        tokio::spawn(async move {
            while let Some(made) = { left.lock().expect("no holder panics").pop() } {
                put(&store, made).await;
            }
        })
    });
    for task in putting.collect::<Vec<_>>() {
        task.await.expect("put");
    }
    let seconds = began.elapsed().as_secs_f64();
    let syncs = (disk.syncs() - before) as f64 / shards as f64;
    drop(store);
    let _ = std::fs::remove_dir_all(dir);
    (shards as f64 / seconds, syncs)
}

/// Waits for what is on its way to the disk.
fn settle(dir: &Path) {
    let dir = std::fs::File::open(dir).expect("open the directory");
    rustix::fs::syncfs(dir).expect("sync the file system");
}

async fn put(store: &Arc<ShardStore>, made: Made) {
    let mut put = store.begin_put(made.header, None).await.expect("begin");
    put.write(made.payload).await.expect("write");
    put.finish().await.expect("finish");
}

fn median(mut turns: Vec<(f64, f64)>) -> (f64, f64) {
    turns.sort_by(|one, other| one.0.total_cmp(&other.0));
    turns[turns.len() / 2]
}
