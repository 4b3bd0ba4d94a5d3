//! Measures a synthetic catalogue in the real engine: how it grows, how fast it is asked, also while it is streamed to
//! another node, and what a garbage collection costs. Commands are applied as a replica applies them, one proposal a
//! transaction; there is no network and no Raft log.
//!
//! ```text
//! catalogue build   DIR chunks=1000000 packs=31250 snapshots=200 replaced=20 file=8 cache=64
//! catalogue lookups DIR cache=64
//! catalogue image   DIR cache=64
//! catalogue garbage DIR cache=64
//! ```
//!
//! `replaced`: chunks that each snapshot replaces of the one before, in thousandths; `file`: neighbours that are replaced
//! together; `cache`: MiB. A mode goes on with what the one before it has left.
#![expect(clippy::disallowed_methods, reason = "this program measures the machine it runs on")]

mod support;

use farshore_core::catalogue::{Command, CondemnedPack, Reply, RepoChange};
use farshore_core::host::kv::{KvFactory, KvRole};
use farshore_core::id::{NodeId, PackNo};
use farshore_core::limits::{
    COMMIT_PACKS_MAX, GARBAGE_CHUNKS_MAX, GARBAGE_PACKS_MAX, SNAPSHOTS_PER_COMMAND_MAX,
    SPARSE_PERCENT_DEFAULT, SWEEP_COPIES_MAX,
};
use farshore_node::catalogue::{Catalogue, ImagePage, ImageReader, ImageWriter, PackUse};
use farshore_node::kv::{KvCache, RealKv};
use farshore_node::plan::{GarbagePlan, Totals, plan_garbage};
use roaring::RoaringTreemap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;
use support::*;

/// Proposals between two flushes while a catalogue is built.
const FLUSH_EVERY: u64 = 64;

#[tokio::main]
async fn main() {
    let (fixed, args) = Args::read();
    let [mode, dir] = fixed.as_slice() else { panic!("usage: catalogue MODE DIR [name=value]") };
    let place = Place { dir: dir.into(), cache_mib: args.number("cache", 64) };
    match mode.as_str() {
        "build" => build(&place, &args).await,
        "lookups" => lookups(&place).await,
        "image" => image(&place).await,
        "garbage" => garbage(&place).await,
        other => panic!("no mode {other}"),
    }
}

struct Place {
    dir: PathBuf,
    cache_mib: u64,
}

impl Place {
    async fn open(&self) -> Replica {
        let meter = Meter::start();
        let replica = Replica::open(&self.dir, self.cache_mib).await;
        println!("open, cache {} MiB: {}", self.cache_mib, meter.read());
        replica
    }
}

/// A catalogue and the log index it has come to.
struct Replica {
    catalogue: Catalogue,
    index: u64,
    commits: Latencies,
}

impl Replica {
    async fn open(dir: &Path, cache_mib: u64) -> Self {
        let cache = KvCache { catalogue: cache_mib << 20, ..KvCache::default() };
        let kv = RealKv::with_cache(dir, cache).open(KvRole::Catalogue).await.expect("open the store");
        let catalogue = Catalogue::open(kv).expect("open the catalogue");
        Replica { index: catalogue.applied(), catalogue, commits: Latencies::default() }
    }

    fn apply(&mut self, command: Command) -> Reply {
        self.index += 1;
        let mut tx = self.catalogue.begin();
        let reply = tx.apply(self.index, &stamped(self.index, command)).expect("apply");
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        tx.commit().expect("commit");
        reply
    }

    /// Durable, as an acknowledged command is.
    async fn propose(&mut self, command: Command) -> u64 {
        let reply = self.apply(command);
        self.catalogue.flush().await.expect("flush");
        if let Reply::Changed { count } = reply { u64::from(count) } else { 0 }
    }

    /// Chunk numbers below this are known, or were.
    fn chunks_given(&self) -> u64 {
        self.catalogue.view().expect("view").next_ordinal(REPO).expect("next ordinal").0
    }
}

async fn build(place: &Place, args: &Args) {
    let (chunks, packs) = (args.number("chunks", 1_000_000), args.number("packs", 31_250));
    let (snapshots, replaced) = (args.number("snapshots", 200), args.number("replaced", 20));
    let per_pack = chunks.div_ceil(packs);
    let steps = snapshots - 1;
    let first = (chunks * 1_000 / (1_000 + replaced * steps)).max(1);
    let step = (chunks - first).checked_div(steps).unwrap_or(0);
    let mut replica = place.open().await;
    prologue().into_iter().for_each(|command| drop(replica.apply(command)));
    let (mut live, mut draw) = (RoaringTreemap::new(), Draw(1));
    let (mut given, mut packs_made) = (0, 0);
    let meter = Meter::start();
    for number in 0..snapshots {
        let session = session_id(number);
        replica.apply(Command::OpenSession { session, repo: REPO, seen: replica.index });
        let from = given;
        given += if number == 0 { first } else { step };
        let mut starts = (from..given).step_by(per_pack as usize);
        loop {
            let batch: Vec<_> = starts.by_ref().take(COMMIT_PACKS_MAX).collect();
            if batch.is_empty() {
                break;
            }
            let filled = batch.iter().map(|start| {
                packs_made += 1;
                pack(packs_made, *start..(start + per_pack).min(given))
            });
            let packs = filled.collect();
            let began = Instant::now();
            replica.apply(Command::CommitPacks { session, packs });
            replica.commits.push(began);
            if replica.index.is_multiple_of(FLUSH_EVERY) {
                replica.catalogue.flush().await.expect("flush");
            }
        }
        replace(&mut live, step, args.number("file", 8), &mut draw);
        live.insert_range(from..given);
        replica.apply(Command::CommitSnapshot { session, snapshot: snapshot(number, &live), replaces: None });
        replica.apply(Command::EndSessions { sessions: vec![session] });
        if number == 0 || (number + 1) % snapshots.div_ceil(10) == 0 || number + 1 == snapshots {
            replica.catalogue.flush().await.expect("flush");
            let (disk, bytes) = (disk_mib(&place.dir), snapshot(number, &live).live.len());
            println!(
                "{:4} snapshots: disk {disk:8.1} MiB  live set {bytes} bytes  {}",
                number + 1,
                meter.read()
            );
        }
    }
    replica.catalogue.flush().await.expect("flush");
    let counts = replica.catalogue.view().expect("view").counts();
    println!("{counts:?}");
    replica.commits.print("commit of up to 64 packs in one proposal");
    println!("disk {:.1} MiB", disk_mib(&place.dir));
}

/// Takes about `count` ordinals out of a live set, file by file.
fn replace(live: &mut RoaringTreemap, count: u64, file: u64, draw: &mut Draw) {
    let mut gone = 0;
    while gone < count && !live.is_empty() {
        let first = live.select(draw.below(live.len())).unwrap_or(0) / file * file;
        gone += live.remove_range(first..first + file);
    }
}

async fn lookups(place: &Place) {
    let replica = place.open().await;
    let given = replica.chunks_given();
    println!("{:?}", replica.catalogue.view().expect("view").counts());
    for round in ["first after opening", "again"] {
        println!("{round}:");
        let meter = Meter::start();
        let mut draw = Draw(given);
        for (count, batch) in [(20_000, 1), (300, 1_000)] {
            let mut latencies = Latencies::default();
            (0..count).for_each(|_| ask(&replica.catalogue, given, batch, &mut draw, &mut latencies));
            latencies.print(&format!("lookup of {batch}, a tenth of them unknown"));
        }
        println!("  {}", meter.read());
    }
}

/// One lookup as the server does it: a view, and which of the chunks need not be sent.
fn ask(catalogue: &Catalogue, given: u64, batch: usize, draw: &mut Draw, latencies: &mut Latencies) {
    let known = |draw: &mut Draw| if draw.below(10) == 0 { 0 } else { given };
    let ids: Vec<_> = (0..batch)
        .map(|_| match known(draw) {
            0 => chunk(given + draw.below(given)),
            known => chunk(draw.below(known)),
        })
        .collect();
    let began = Instant::now();
    let offered = catalogue.view().expect("view").offered(REPO, &ids).expect("lookup");
    latencies.push(began);
    assert_eq!(offered.len(), batch);
}

/// Streams an image into a second store, as to another node, while lookups go on.
async fn image(place: &Place) {
    let replica = place.open().await;
    let given = replica.chunks_given();
    let into = place.dir.with_extension("copy");
    let copy = Replica::open(&into, place.cache_mib).await;
    let meter = Meter::start();
    let writer = ImageWriter::begin(&replica.catalogue).expect("freeze");
    let reader = ImageReader::begin(&copy.catalogue).expect("stage");
    println!("frozen: {}", meter.read());
    let (send, receive) = sync_channel::<Page>(4);
    let streaming = AtomicBool::new(true);
    let (mut ones, mut thousands, mut draw) = (Latencies::default(), Latencies::default(), Draw(3));
    let bytes = std::thread::scope(|scope| {
        let sent = scope.spawn(|| stream(writer, send));
        let staged = scope.spawn(|| {
            stage(reader, receive);
            streaming.store(false, Ordering::Relaxed);
        });
        while streaming.load(Ordering::Relaxed) {
            (0..50).for_each(|_| ask(&replica.catalogue, given, 1, &mut draw, &mut ones));
            ask(&replica.catalogue, given, 1_000, &mut draw, &mut thousands);
        }
        staged.join().expect("staging went well");
        sent.join().expect("streaming went well")
    });
    copy.catalogue.flush().await.expect("flush");
    let mib = bytes as f64 / (1 << 20) as f64;
    println!("streamed, staged, checked and installed {mib:.0} MiB: {}", meter.read());
    println!("  {:.1} MiB/s", mib / meter.seconds());
    ones.print("lookup of 1 meanwhile");
    thousands.print("lookup of 1000 meanwhile");
    assert_eq!(
        copy.catalogue.view().expect("view").state_hash(),
        replica.catalogue.view().expect("view").state_hash()
    );
    println!("disk {:.1} MiB, of the copy {:.1} MiB", disk_mib(&place.dir), disk_mib(&into));
    drop(copy);
    std::fs::remove_dir_all(&into).expect("remove the copy");
}

/// A page, or what the whole must come to.
enum Page {
    Rows(ImagePage),
    End(u64, farshore_node::catalogue::StateHash),
}

fn stream(mut writer: ImageWriter, to: SyncSender<Page>) -> usize {
    let mut bytes = 0;
    while let Some(page) = writer.next_page().expect("read a page") {
        bytes += page.iter().map(|row| row.key.len() + row.value.len()).sum::<usize>();
        to.send(Page::Rows(page)).expect("the other end listens");
    }
    to.send(Page::End(writer.rows(), writer.state_hash())).expect("the other end listens");
    bytes
}

fn stage(mut reader: ImageReader, from: Receiver<Page>) {
    for page in from {
        match page {
            Page::Rows(rows) => reader.add_page(&rows).expect("stage a page"),
            Page::End(rows, hash) => return reader.finish(rows, hash).expect("install"),
        }
    }
}

/// Forgets the older half of the snapshots and collects what that frees, as the leader does.
async fn garbage(place: &Place) {
    let mut replica = place.open().await;
    let before = replica.catalogue.view().expect("view").counts();
    println!("{before:?}\ndisk {:.1} MiB", disk_mib(&place.dir));
    let whole = Meter::start();

    let meter = Meter::start();
    let old: Vec<_> = (0..before.snapshots / 2).map(snapshot_id).collect();
    for snapshots in old.chunks(SNAPSHOTS_PER_COMMAND_MAX) {
        let change = RepoChange::Forget { snapshots: snapshots.to_vec(), bypass: false };
        replica.propose(Command::ChangeRepository { repo: REPO, change }).await;
    }
    println!("forget {}: {}", old.len(), meter.read());

    let meter = Meter::start();
    for snapshots in old.chunks(SNAPSHOTS_PER_COMMAND_MAX) {
        let change = RepoChange::Purge { snapshots: snapshots.to_vec(), early: true };
        replica.propose(Command::ChangeRepository { repo: REPO, change }).await;
    }
    println!("purge: {}", meter.read());

    let meter = Meter::start();
    let (plan, totals, _) = look(&replica.catalogue);
    println!("look: {}\n  {totals:?}", meter.read());

    let meter = Meter::start();
    let mut condemned = 0;
    for packs in plan.condemn.chunks(GARBAGE_PACKS_MAX) {
        condemned += replica.propose(Command::CondemnPacks { packs: packs.to_vec() }).await;
    }
    println!("condemn {condemned} packs: {}", meter.read());

    let meter = Meter::start();
    let (plan, totals, looked) = look(&replica.catalogue);
    println!("look again: {}\n  {totals:?}", meter.read());

    let meter = Meter::start();
    let (mut dropped, mut worst) = (0, Latencies::default());
    for packs in batches(&plan.drop) {
        let began = Instant::now();
        dropped += replica.propose(Command::DropPacks { packs, looked }).await;
        worst.push(began);
    }
    println!("drop {dropped} packs: {}", meter.read());
    worst.print("one proposal of these");

    let meter = Meter::start();
    let mut swept = 0;
    for node in (1..=NODES).map(NodeId) {
        loop {
            let view = replica.catalogue.view().expect("view");
            let copies = view.condemned(node, None, SWEEP_COPIES_MAX).expect("condemned copies").rows;
            if copies.is_empty() {
                break;
            }
            swept += copies.len();
            replica.propose(Command::Swept { copies }).await;
        }
    }
    println!("swept {swept} copies: {}", meter.read());

    println!("the whole: wall {:.3} s, disk {:.1} MiB", whole.seconds(), disk_mib(&place.dir));
    let after = replica.catalogue.view().expect("view").counts();
    println!("{after:?}");
    assert_eq!(after.packs + dropped, before.packs);
    assert_eq!((after.condemned_packs, after.condemned), (0, 0));
    let writer = ImageWriter::begin(&replica.catalogue).expect("freeze");
    let claimed = writer.state_hash();
    assert_eq!(writer.rehash().expect("read all rows"), claimed);
}

/// What the leader does of one repository, page by page, and the index it looked at.
fn look(catalogue: &Catalogue) -> (GarbagePlan, Totals, u64) {
    let view = catalogue.view().expect("view");
    let of = view.repo_use(REPO).expect("what is needed");
    let (mut whole, mut totals, mut from) = (GarbagePlan::default(), Totals::default(), Some(PackNo(0)));
    while let Some(first) = from {
        let page = view.pack_uses(&of, first, GARBAGE_PACKS_MAX).expect("packs");
        let part = plan_garbage(&of, &page.rows, SPARSE_PERCENT_DEFAULT, &mut totals);
        whole.condemn.extend(part.condemn);
        whole.drop.extend(part.drop);
        from = page.next;
    }
    (whole, totals, of.looked)
}

fn batches(due: &[PackUse]) -> Vec<Vec<CondemnedPack>> {
    let mut batches = vec![Vec::new()];
    let mut chunks = 0;
    for pack in due {
        chunks += pack.chunks;
        let last: &Vec<_> = &batches[batches.len() - 1];
        if last.len() >= GARBAGE_PACKS_MAX || (chunks > GARBAGE_CHUNKS_MAX as u64 && !last.is_empty()) {
            batches.push(Vec::new());
            chunks = pack.chunks;
        }
        let at = batches.len() - 1;
        batches[at].extend(pack.as_condemned());
    }
    batches
}
