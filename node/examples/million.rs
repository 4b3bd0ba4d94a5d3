//! How a node starts that holds very many shards: makes a store's directory, then opens it with and without an index.
//!
//! ```text
//! million make DIR shards=1000000
//! million open DIR          # what the index lacks is taken from the files
//! million list DIR
//! ```
//!
//! `make` writes files as a store lays them out, without syncs and without an index, so that the first `open` rebuilds
//! it and the second finds it.
#![expect(clippy::disallowed_methods, reason = "this program measures the machine it runs on")]

mod support;

use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_node::disk::RealDisk;
use farshore_node::store::{ShardStore, StoreOptions};
use std::path::Path;
use std::sync::Arc;
use support::*;

/// Bytes of each payload: the least that make a file worth its name.
const PAYLOAD_BYTES: usize = 16;
/// Threads that make files.
const MAKERS: u64 = 2;

#[tokio::main]
async fn main() {
    let (fixed, args) = Args::read();
    let [mode, dir] = fixed.as_slice() else { panic!("usage: million MODE DIR [name=value]") };
    let dir = Path::new(dir);
    match mode.as_str() {
        "make" => make(dir, args.number("shards", 1_000_000)),
        "open" => drop(open(dir).await),
        "list" => list(&open(dir).await),
        other => panic!("no mode {other}"),
    }
}

fn make(dir: &Path, shards: u64) {
    let meter = Meter::start();
    for first in 0..=u8::MAX {
        std::fs::create_dir_all(dir.join(format!("shards/{first:02x}"))).expect("make a directory");
    }
    std::fs::write(dir.join("shards/here"), "farshore shards\n").expect("write the mark");
    std::thread::scope(|scope| {
        for maker in 0..MAKERS {
            scope.spawn(move || {
                for number in (maker..shards).step_by(MAKERS as usize) {
                    let made = made_shard(number, PAYLOAD_BYTES);
                    std::fs::write(dir.join(made.name()), made.file()).expect("write a shard");
                }
            });
        }
    });
    println!("make {shards}: {}", meter.read());
}

async fn open(dir: &Path) -> Arc<ShardStore> {
    let host = host(dir, RealDisk::new(dir));
    let options = StoreOptions { capacity: u64::MAX, reserve: 0 };
    let meter = Meter::start();
    let (store, report) = ShardStore::open(&host, CLUSTER, options).await.expect("open the store");
    let (seconds, adopted, shards) = (meter.seconds(), report.adopted, report.shards);
    println!("open, {adopted} of {shards} taken in: {}", meter.read());
    println!("  {:.1} microseconds a shard", seconds * 1e6 / shards.max(1) as f64);
    assert!(report.missing.is_empty() && report.bad.is_empty(), "{report:?}");
    store
}

fn list(store: &Arc<ShardStore>) {
    let meter = Meter::start();
    let (mut after, mut listed, mut pages) = (None, 0, Latencies::default());
    loop {
        let began = std::time::Instant::now();
        let page = store.list(after, PAGE_ROWS_MAX).expect("list");
        pages.push(began);
        listed += page.len() as u64;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
    }
    assert_eq!(listed, store.stats().shards);
    println!("list of {listed}: {}", meter.read());
    pages.print("a page");
}
