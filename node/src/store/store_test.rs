//! The shard store on the real index and on every kind of disk: a directory, a bucket in this process, buckets on real
//! servers, and a disk that dies at its n-th call.
#![expect(clippy::disallowed_methods, reason = "damage is done behind the store's back")]

use super::*;
use crate::disk::RealDisk;
use crate::disk::bucket::BucketDisk;
use crate::disk::bucket_test::{Ill, ME, Sick, fresh, servers};
use crate::disk::mount::Mount;
use crate::disk::provider::BucketOptions;
use crate::kv::RealKv;
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::erasure::Scheme;
use farshore_core::host::real::{OsEntropy, Processors, SystemClock, TcpNet};
use farshore_core::host::{Disk, DiskFile, KvFactory, Space};
use farshore_core::id::{PackId, RepoId, SessionId};
use farshore_core::shard::{PackInfo, ShardHeader, ShardRange, file_len, hash_shard};
use proptest::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

const CLUSTER: ClusterId = ClusterId([7; 16]);
const ROOMY: StoreOptions = StoreOptions { capacity: 1 << 30, reserve: 0 };

/// Where a test's shards lie.
#[derive(Clone)]
enum Place {
    Directory,
    Bucket,
    Server(BucketOptions),
}

impl Place {
    fn servers() -> Vec<Place> {
        servers().into_iter().map(Place::Server).collect()
    }
}

/// A data directory, a place for shards, and stores opened on them, one at a time.
struct Bench {
    dir: tempfile::TempDir,
    /// What the store sees.
    disk: Arc<dyn Disk>,
    /// Behind the store's back.
    raw: Arc<dyn Disk>,
}

impl Bench {
    async fn new(place: &Place) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own: Arc<dyn Disk> = Arc::new(RealDisk::new(dir.path()));
        match place {
            Place::Directory => Bench { dir, disk: own.clone(), raw: own },
            Place::Bucket => Self::on_bucket(dir, own, Sick::new().disk().await),
            Place::Server(server) => {
                Self::on_bucket(dir, own, BucketDisk::open(&fresh(server), ME.into()).await.unwrap())
            }
        }
    }
    fn on_bucket(dir: tempfile::TempDir, own: Arc<dyn Disk>, bucket: BucketDisk) -> Self {
        let raw = Arc::new(bucket);
        Bench { dir, disk: Arc::new(Mount::new(own, raw.clone(), SHARDS_DIR, TEMP_DIR)), raw }
    }
    async fn directory() -> Self {
        Self::new(&Place::Directory).await
    }
    fn host(&self, disk: Arc<dyn Disk>) -> Host {
        Host {
            disk,
            kv: Arc::new(RealKv::new(self.dir.path())),
            net: Arc::new(TcpNet),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
            compute: Arc::new(Processors::new()),
        }
    }
    async fn open_with(&self, options: StoreOptions) -> (Arc<ShardStore>, AuditReport) {
        ShardStore::open(&self.host(self.disk.clone()), CLUSTER, options).await.unwrap()
    }
    async fn open(&self) -> (Arc<ShardStore>, AuditReport) {
        self.open_with(ROOMY).await
    }
    fn temps(&self) -> usize {
        std::fs::read_dir(self.dir.path().join(TEMP_DIR)).map_or(0, Iterator::count)
    }
    async fn bytes(&self, id: ShardId) -> Vec<u8> {
        self.raw.read(&file_name(id), 0, 1 << 30).await.unwrap().to_vec()
    }
    async fn exchange(&self, id: ShardId, bytes: &[u8]) {
        self.write(&file_name(id), bytes).await;
    }
    async fn write(&self, name: &str, bytes: &[u8]) {
        let mut file = self.raw.create(name).await.unwrap();
        file.append(Bytes::copy_from_slice(bytes)).await.unwrap();
        file.sync().await.unwrap();
    }
    async fn lose(&self, id: ShardId) {
        self.raw.remove(&file_name(id)).await.unwrap();
    }
    async fn has(&self, id: ShardId) -> bool {
        self.raw.len(&file_name(id)).await.unwrap().is_some()
    }
}

/// Runs each of these tests on every kind of place.
macro_rules! everywhere {
    ($($test:ident)*) => {$(
        mod $test {
            use super::Place;
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_a_directory() {
                super::$test(Place::Directory).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn in_a_bucket() {
                super::$test(Place::Bucket).await;
            }
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            #[ignore = "needs servers: tests/buckets.py"]
            async fn in_real_buckets() {
                for server in Place::servers() {
                    super::$test(server).await;
                }
            }
        }
    )*};
}

/// A shard whose payload follows from a seed.
fn shard(seed: u8, pack_len: u64, k: u8) -> (ShardHeader, Vec<u8>) {
    let info = PackInfo {
        cluster: CLUSTER,
        repo: RepoId([2; 16]),
        pack: PackId([seed; 32]),
        pack_len,
        scheme: Scheme::new(k, 2, 2).unwrap(),
    };
    let len = info.scheme.shard_len(pack_len) as usize;
    let payload: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8 ^ seed).collect();
    let hash = hash_shard(info.shard(1), &payload).0;
    (info.header(1, hash), payload)
}

async fn put(store: &Arc<ShardStore>, header: &ShardHeader, payload: &[u8]) -> Result<ShardHash, StoreError> {
    let mut put = store.begin_put(header.clone(), Some(SessionId([5; 16]))).await?;
    for piece in payload.chunks(100_000) {
        put.write(Bytes::copy_from_slice(piece)).await?;
    }
    put.finish().await
}

async fn get(store: &Arc<ShardStore>, header: &ShardHeader) -> Result<Vec<u8>, StoreError> {
    let whole = ShardRange { offset: 0, len: header.payload_len };
    let (sums, pieces) = store.get_blocks(header.id, header.hash, &[whole]).await?;
    assert_eq!(sums.root(header.id), header.hash);
    Ok(pieces.into_iter().flat_map(|(_, bytes)| bytes).collect())
}

async fn remove(store: &Arc<ShardStore>, id: ShardId) -> Result<(), StoreError> {
    store.remove(store.hold([id]).await).await.failed
}

/// Waits until dropped puts have cleaned up behind themselves.
async fn settled(bench: &Bench, store: &ShardStore) {
    for _ in 0..500 {
        if bench.temps() == 0 && store.stats().reserved == 0 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    panic!("{} temp files and {} reserved bytes stay", bench.temps(), store.stats().reserved);
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

everywhere! {
    a_shard_survives_reopening_with_its_entry
    every_flipped_byte_is_found_and_a_mended_file_is_good_again
    a_payload_exchanged_together_with_its_sums_is_found
    a_file_of_another_length_is_bad_now_and_after_a_start_and_can_be_replaced
    a_lost_file_is_reported_missing
    the_index_is_rebuilt_from_the_files
    files_that_are_not_what_their_name_says_are_bad
    wrong_shards_are_refused_and_leave_nothing
    a_full_store_refuses_early_and_a_dropped_put_gives_its_room_back
    a_removed_shard_is_gone_for_good_and_can_come_again
    a_receipt_for_a_repeated_put_is_true
    many_puts_and_removes_of_one_shard_leave_it_whole_or_absent
    a_process_that_dies_anywhere_leaves_the_shard_whole_or_absent
    a_bad_sector_in_a_header_does_not_keep_the_node_from_starting
    names_that_a_killed_process_left_are_made_durable_before_a_receipt_vouches_for_them
    a_put_that_fails_after_its_rename_leaves_nothing_unknown
    a_copy_put_back_during_a_sweep_is_not_removed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn any_range_of_any_shard_comes_back(
        pack_len in 1u64..900_000, k in 1u8..4, seed: u8, at: prop::sample::Index, len: prop::sample::Index,
    ) {
        block_on(async {
            for place in [Place::Directory, Place::Bucket] {
            let bench = Bench::new(&place).await;
            let (store, _) = bench.open().await;
            let (header, payload) = shard(seed, pack_len, k);
            assert_eq!(put(&store, &header, &payload).await.unwrap(), header.hash);
            assert_eq!(get(&store, &header).await.unwrap(), payload);
            let offset = at.index(payload.len());
            let len = 1 + len.index(payload.len() - offset);
            let range = ShardRange { offset: offset as u64, len: len as u64 };
            let (sums, pieces) = store.get_blocks(header.id, header.hash, &[range, range]).await.unwrap();
            let blocks = sums.blocks_for(range).unwrap();
            assert_eq!(pieces[0].0, blocks.start as u64);
            let bytes: Vec<u8> = pieces.iter().flat_map(|(_, bytes)| bytes.clone()).collect();
            let skip = offset - blocks.start * (64 << 10);
            assert_eq!(bytes[skip..skip + len], payload[offset..offset + len]);
            assert_eq!(store.stats(), Stats { shards: 1, used: file_len(header.payload_len), reserved: 0 });
            store.verify(header.id, header.hash).await.unwrap();
            }
        });
    }
}

async fn a_shard_survives_reopening_with_its_entry(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, report) = bench.open().await;
    assert_eq!(report, AuditReport::default());
    let (header, payload) = shard(1, 300_000, 2);
    put(&store, &header, &payload).await.unwrap();
    let entry = store.entry(header.id).unwrap().unwrap();
    drop(store);
    let (store, report) = bench.open().await;
    let used = file_len(header.payload_len);
    assert_eq!(report, AuditReport { shards: 1, used, ..AuditReport::default() });
    assert_eq!(store.entry(header.id).unwrap(), Some(entry.clone()));
    assert_eq!(store.list(None, 10).unwrap(), [(header.id, entry)]);
    assert_eq!(store.list(Some(header.id), 10).unwrap(), []);
    assert_eq!(get(&store, &header).await.unwrap(), payload);
}

async fn every_flipped_byte_is_found_and_a_mended_file_is_good_again(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 60, 1);
    put(&store, &header, &payload).await.unwrap();
    let good = bench.bytes(header.id).await;
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x10;
        bench.exchange(header.id, &bytes).await;
        let found = get(&store, &header).await;
        assert!(matches!(found, Err(StoreError::Corrupt(..))), "byte {at}: {found:?}");
        assert!(store.entry(header.id).unwrap().unwrap().bad);
        assert!(matches!(store.verify(header.id, header.hash).await, Err(StoreError::Corrupt(..))));
        bench.exchange(header.id, &good).await;
        store.verify(header.id, header.hash).await.unwrap();
    }
    assert_eq!(get(&store, &header).await.unwrap(), payload);
}

/// Damage that hides itself: sums and blocks fit each other, but not the recorded hash.
async fn a_payload_exchanged_together_with_its_sums_is_found(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 200_000, 1);
    put(&store, &header, &payload).await.unwrap();
    let other: Vec<u8> = payload.iter().map(|byte| byte ^ 1).collect();
    let sums = hash_shard(header.id, &other).1.encode();
    bench.exchange(header.id, &[&header.encode()[..], &other, &sums].concat()).await;
    assert!(matches!(get(&store, &header).await, Err(StoreError::Corrupt(..))));
}

async fn a_file_of_another_length_is_bad_now_and_after_a_start_and_can_be_replaced(place: Place) {
    for change in [-1i64, 1] {
        let bench = Bench::new(&place).await;
        let (store, _) = bench.open().await;
        let (header, payload) = shard(1, 100_000, 1);
        put(&store, &header, &payload).await.unwrap();
        let len = file_len(header.payload_len).checked_add_signed(change).unwrap();
        let mut bytes = bench.bytes(header.id).await;
        bytes.resize(len as usize, 0);
        bench.exchange(header.id, &bytes).await;
        assert!(matches!(get(&store, &header).await, Err(StoreError::Corrupt(..))));
        drop(store);
        let (store, report) = bench.open().await;
        assert_eq!((report.bad, report.used), (vec![header.id], len));
        assert!(matches!(get(&store, &header).await, Err(StoreError::Corrupt(..))));
        put(&store, &header, &payload).await.unwrap();
        assert_eq!(get(&store, &header).await.unwrap(), payload);
        assert_eq!(store.stats(), Stats { shards: 1, used: file_len(header.payload_len), reserved: 0 });
    }
}

async fn a_lost_file_is_reported_missing(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let shards: Vec<_> = (0..3).map(|seed| shard(seed, 1000, 1)).collect();
    for (header, payload) in &shards {
        put(&store, header, payload).await.unwrap();
    }
    bench.lose(shards[0].0.id).await;
    assert!(matches!(get(&store, &shards[0].0).await, Err(StoreError::Missing(_))));
    assert_eq!(store.stats().shards, 2, "a read that finds nothing corrects the count");
    bench.lose(shards[1].0.id).await;
    drop(store);
    let (store, report) = bench.open().await;
    assert_eq!((report.missing, report.shards), (vec![shards[1].0.id], 1));
    assert_eq!(store.stats().used, file_len(shards[2].0.payload_len));
}

async fn the_index_is_rebuilt_from_the_files(place: Place) {
    for damage in ["gone", "rubbish", "other settings"] {
        let bench = Bench::new(&place).await;
        let (store, _) = bench.open().await;
        let (header, payload) = shard(1, 500_000, 1);
        put(&store, &header, &payload).await.unwrap();
        let stats = store.stats();
        drop(store);
        bench.write(&format!("{SHARDS_DIR}/note"), b"no shard").await;
        bench.write(&format!("{}/note", dir_of(&file_name(header.id))), b"no shard").await;
        let index = bench.dir.path().join("index");
        match damage {
            "gone" => std::fs::remove_dir_all(&index).unwrap(),
            // The engine takes this for an empty store and says nothing.
            "rubbish" => {
                let len = std::fs::metadata(index.join("db")).unwrap().len() as usize;
                std::fs::write(index.join("db"), vec![0xa5; len]).unwrap();
            }
            // The engine refuses this.
            _ => std::fs::write(
                index.join("conf"),
                "segment_size: 1024\nuse_compression: false\nversion: 0.1\n",
            )
            .unwrap(),
        }
        let (store, report) = bench.open().await;
        assert_eq!((report.rebuilt, report.adopted, report.strangers), (true, 1, 1), "{damage}");
        assert_eq!(store.stats(), stats);
        assert_eq!(get(&store, &header).await.unwrap(), payload);
    }
}

async fn files_that_are_not_what_their_name_says_are_bad(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 1000, 1);
    put(&store, &header, &payload).await.unwrap();
    drop(store);
    let other = ShardId { index: 2, ..header.id };
    bench.exchange(other, &bench.bytes(header.id).await).await;
    let empty = ShardId { index: 0, ..header.id };
    bench.exchange(empty, b"").await;
    for _ in 0..2 {
        let (store, report) = bench.open().await;
        assert_eq!((report.bad, report.missing, report.shards), (vec![empty, other], vec![], 3));
        assert!(store.get_blocks(other, header.hash, &[]).await.is_err());
        assert_eq!(get(&store, &header).await.unwrap(), payload);
    }
}

async fn wrong_shards_are_refused_and_leave_nothing(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 200_000, 1);
    let refused = |outcome: Result<ShardHash, StoreError>| {
        matches!(outcome, Err(StoreError::Refused(_) | StoreError::WrongHash(_)))
    };

    let foreign = ShardHeader { cluster: ClusterId([8; 16]), ..header.clone() };
    assert!(refused(put(&store, &foreign, &payload).await));
    let outside = ShardHeader { payload_len: header.payload_len + 64, ..header.clone() };
    assert!(refused(put(&store, &outside, &payload).await));
    let mut flipped = payload.clone();
    flipped[100_000] ^= 1;
    assert!(refused(put(&store, &header, &flipped).await));
    assert!(refused(put(&store, &header, &payload[..payload.len() - 1]).await));
    assert!(refused(put(&store, &header, &[&payload[..], b"x"].concat()).await));
    settled(&bench, &store).await;
    assert!(matches!(get(&store, &header).await, Err(StoreError::Missing(_))));
    assert_eq!(store.stats(), Stats::default());

    put(&store, &header, &payload).await.unwrap();
    let (hash, _) = hash_shard(header.id, &flipped);
    assert!(refused(put(&store, &ShardHeader { hash, ..header.clone() }, &flipped).await), "never replaced");
    let range = |offset, len| [ShardRange { offset, len }];
    for bad in [range(0, 0), range(header.payload_len, 1), range(u64::MAX, 2), range(0, u64::MAX)] {
        let outcome = store.get_blocks(header.id, header.hash, &bad).await;
        assert!(matches!(outcome, Err(StoreError::Refused(_))));
    }
    let outcome = store.get_blocks(header.id, hash, &range(0, 1)).await;
    assert!(matches!(outcome, Err(StoreError::Corrupt(..))), "another hash than ours");
    assert_eq!(get(&store, &header).await.unwrap(), payload);
}

async fn a_full_store_refuses_early_and_a_dropped_put_gives_its_room_back(place: Place) {
    let bench = Bench::new(&place).await;
    let ((first, payload), (second, _)) = (shard(1, 100_000, 1), shard(2, 100_000, 1));
    let capacity = file_len(first.payload_len) * 2 - 1;
    let (store, _) = bench.open_with(StoreOptions { capacity, reserve: 0 }).await;
    let mut dropped = store.begin_put(second.clone(), None).await.unwrap();
    dropped.write(Bytes::from_static(b"a few bytes")).await.unwrap();
    assert!(matches!(put(&store, &first, &payload).await, Err(StoreError::Full { .. })), "room is promised");
    assert_eq!(bench.temps(), 1);
    drop(dropped);
    settled(&bench, &store).await;
    put(&store, &first, &payload).await.unwrap();
    assert!(matches!(store.begin_put(second.clone(), None).await, Err(StoreError::Full { .. })));
    put(&store, &first, &payload).await.expect("a repeated put needs no room");
    remove(&store, first.id).await.unwrap();
    store.begin_put(second, None).await.unwrap();
    drop(store);
    let (store, _) = bench.open_with(StoreOptions { capacity: u64::MAX, reserve: u64::MAX }).await;
    assert!(
        matches!(put(&store, &first, &payload).await, Err(StoreError::Full { .. })),
        "the reserve is kept"
    );
}

async fn a_removed_shard_is_gone_for_good_and_can_come_again(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 1000, 1);
    remove(&store, header.id).await.expect("removing nothing is no error");
    put(&store, &header, &payload).await.unwrap();
    remove(&store, header.id).await.unwrap();
    assert!(matches!(get(&store, &header).await, Err(StoreError::Missing(_))));
    assert_eq!(store.stats(), Stats::default());
    drop(store);
    let (store, report) = bench.open().await;
    assert_eq!(report, AuditReport::default());
    put(&store, &header, &payload).await.unwrap();
    assert_eq!(get(&store, &header).await.unwrap(), payload);
}

async fn a_receipt_for_a_repeated_put_is_true(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 1000, 1);
    put(&store, &header, &payload).await.unwrap();

    // Removed while the second put is on its way: no receipt.
    let mut again = store.begin_put(header.clone(), None).await.unwrap();
    again.write(payload.clone().into()).await.unwrap();
    remove(&store, header.id).await.unwrap();
    assert!(matches!(again.finish().await, Err(StoreError::Raced(_))));
    put(&store, &header, &payload).await.unwrap();

    // Rotten without anybody having noticed: no receipt, and the next put mends it.
    let mut bytes = bench.bytes(header.id).await;
    bytes[300] ^= 1;
    bench.exchange(header.id, &bytes).await;
    assert!(matches!(put(&store, &header, &payload).await, Err(StoreError::Raced(_))));
    put(&store, &header, &payload).await.unwrap();
    assert_eq!(get(&store, &header).await.unwrap(), payload);

    // Repair does not take a shard away from its session.
    let mut repair = store.begin_put(header.clone(), None).await.unwrap();
    repair.write(payload.clone().into()).await.unwrap();
    repair.finish().await.unwrap();
    assert_eq!(store.entry(header.id).unwrap().unwrap().session, Some(SessionId([5; 16])));
}

async fn many_puts_and_removes_of_one_shard_leave_it_whole_or_absent(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 200_000, 1);
    let mut tasks = vec![];
    for n in 0..24 {
        let (store, header, payload) = (store.clone(), header.clone(), payload.clone());
        tasks.push(task::spawn(async move {
            match n % 3 {
                0 => remove(&store, header.id).await.unwrap(),
                1 => match put(&store, &header, &payload).await {
                    Ok(_) | Err(StoreError::Raced(_)) => {}
                    Err(e) => panic!("{e}"),
                },
                _ => match get(&store, &header).await {
                    Ok(bytes) => assert_eq!(bytes, payload),
                    Err(StoreError::Missing(_)) => {}
                    Err(e) => panic!("{e}"),
                },
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let held = bench.has(header.id).await;
    assert_eq!(store.entry(header.id).unwrap().is_some(), held);
    let stats = store.stats();
    assert_eq!((stats.shards, stats.used), if held { (1, file_len(header.payload_len)) } else { (0, 0) });
    settled(&bench, &store).await;
}

/// A disk that stops for good at its n-th call, in the middle of an append.
#[derive(Clone)]
struct MortalDisk {
    disk: Arc<dyn Disk>,
    calls_left: Arc<AtomicI64>,
    /// Files whose sectors cannot be read.
    sick: Arc<Mutex<BTreeSet<String>>>,
    /// Directories that were synced.
    synced: Arc<Mutex<BTreeSet<String>>>,
    /// Directories cannot be synced.
    stubborn: Arc<AtomicBool>,
}

impl MortalDisk {
    fn new(bench: &Bench, calls_left: Arc<AtomicI64>) -> Self {
        let disk = bench.disk.clone();
        MortalDisk {
            disk,
            calls_left,
            sick: Arc::default(),
            synced: Arc::default(),
            stubborn: Arc::default(),
        }
    }
    fn immortal(bench: &Bench) -> Self {
        Self::new(bench, Arc::new(AtomicI64::new(i64::MAX)))
    }
    fn live(&self) -> io::Result<()> {
        if self.calls_left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(io::Error::other("the process has died"));
        }
        Ok(())
    }
}

struct MortalFile(Box<dyn DiskFile>, MortalDisk);

#[async_trait]
impl DiskFile for MortalFile {
    async fn append(&mut self, bytes: Bytes) -> io::Result<()> {
        let died = self.1.live();
        let len = if died.is_err() { bytes.len() / 2 } else { bytes.len() };
        self.0.append(bytes.slice(..len)).await?;
        died
    }
    async fn sync(&mut self) -> io::Result<()> {
        self.1.live()?;
        self.0.sync().await
    }
}

#[async_trait]
impl Disk for MortalDisk {
    async fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        self.live()?;
        Ok(Box::new(MortalFile(self.disk.create(name).await?, self.clone())))
    }
    async fn read(&self, name: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        self.live()?;
        if self.sick.lock().unwrap().contains(name) {
            return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
        }
        self.disk.read(name, offset, len).await
    }
    async fn len(&self, name: &str) -> io::Result<Option<u64>> {
        self.live()?;
        self.disk.len(name).await
    }
    async fn write_slot(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.live()?;
        self.disk.write_slot(name, offset, bytes).await
    }
    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.live()?;
        self.disk.rename(from, to).await
    }
    async fn remove(&self, name: &str) -> io::Result<()> {
        self.live()?;
        self.disk.remove(name).await
    }
    async fn sync_dir(&self, dir: &str) -> io::Result<()> {
        self.live()?;
        if self.stubborn.load(Ordering::SeqCst) {
            return Err(io::Error::other("the directory cannot be synced"));
        }
        self.synced.lock().unwrap().insert(dir.into());
        self.disk.sync_dir(dir).await
    }
    async fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.live()?;
        self.disk.list(dir).await
    }
    async fn space(&self) -> io::Result<Space> {
        self.live()?;
        self.disk.space().await
    }
}

async fn a_process_that_dies_anywhere_leaves_the_shard_whole_or_absent(place: Place) {
    let (kept, kept_payload) = shard(1, 1000, 1);
    let (header, payload) = shard(2, 150_000, 1);
    let mut outcomes = (0, 0);
    for calls in 0.. {
        let bench = Bench::new(&place).await;
        let calls_left = Arc::new(AtomicI64::new(i64::MAX));
        let disk = MortalDisk::new(&bench, calls_left.clone());
        let (store, _) = ShardStore::open(&bench.host(Arc::new(disk)), CLUSTER, ROOMY).await.unwrap();
        put(&store, &kept, &kept_payload).await.unwrap();
        calls_left.store(calls, Ordering::SeqCst);
        let acknowledged = put(&store, &header, &payload).await.is_ok();
        let removed = acknowledged && remove(&store, kept.id).await.is_ok();
        drop(store);

        let (store, report) = loop {
            // A task of the dead process may still hold the index for a moment.
            let host = bench.host(bench.disk.clone());
            match ShardStore::open(&host, CLUSTER, ROOMY).await {
                Err(StoreError::Index(KvError::InUse)) => {}
                opened => break opened.unwrap(),
            }
        };
        assert_eq!((bench.temps(), &report.bad), (0, &vec![]), "died at call {calls}");
        match get(&store, &header).await {
            Ok(bytes) => assert_eq!(bytes, payload, "died at call {calls}"),
            Err(StoreError::Missing(_)) => {
                assert!(!acknowledged, "died at call {calls}: a receipt was false")
            }
            Err(e) => panic!("died at call {calls}: {e}"),
        }
        match get(&store, &kept).await {
            Ok(bytes) => assert!(bytes == kept_payload && !removed),
            Err(e) => assert!(matches!(e, StoreError::Missing(_)) && acknowledged),
        }
        let held = store.list(None, 10).unwrap();
        let used = held.iter().map(|(_, entry)| entry.file_len).sum();
        assert_eq!(store.stats(), Stats { shards: held.len() as u64, used, reserved: 0 });
        if removed {
            break;
        }
        if acknowledged { outcomes.0 += 1 } else { outcomes.1 += 1 }
    }
    assert!(outcomes.0 > 0 && outcomes.1 > 4, "the deaths were not spread over the put: {outcomes:?}");
}

#[tokio::test]
async fn a_vanished_disk_is_not_a_thousand_lost_shards() {
    let bench = Bench::directory().await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 1000, 1);
    put(&store, &header, &payload).await.unwrap();
    store.check_disk().await.unwrap();
    let (shards, away) = (bench.dir.path().join("shards"), bench.dir.path().join("away"));
    std::fs::rename(&shards, &away).unwrap();
    assert!(matches!(store.verify(header.id, header.hash).await, Err(StoreError::Vanished)));
    assert!(matches!(get(&store, &header).await, Err(StoreError::Vanished)));
    assert!(matches!(store.check_disk().await, Err(StoreError::Vanished)));
    assert!(store.entry(header.id).unwrap().is_some(), "nothing is forgotten meanwhile");
    drop(store);
    let host = bench.host(bench.disk.clone());
    let opened = ShardStore::open(&host, CLUSTER, ROOMY).await.map(|(_, report)| report);
    assert!(matches!(opened, Err(StoreError::Vanished)), "{opened:?}");
    std::fs::rename(&away, &shards).unwrap();
    let (store, report) = bench.open().await;
    assert_eq!((report.shards, report.missing.len()), (1, 0));
    assert_eq!(get(&store, &header).await.unwrap(), payload);
}

async fn a_bad_sector_in_a_header_does_not_keep_the_node_from_starting(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let ((good, payload), (bad, bad_payload)) = (shard(1, 1000, 1), shard(2, 1000, 1));
    put(&store, &good, &payload).await.unwrap();
    put(&store, &bad, &bad_payload).await.unwrap();
    drop(store);
    RealKv::new(bench.dir.path()).discard(KvRole::Index).await.unwrap();
    let disk = MortalDisk::immortal(&bench);
    disk.sick.lock().unwrap().insert(file_name(bad.id));
    let (store, report) = ShardStore::open(&bench.host(Arc::new(disk)), CLUSTER, ROOMY).await.unwrap();
    assert_eq!((report.shards, report.bad), (2, vec![bad.id]));
    assert_eq!(get(&store, &good).await.unwrap(), payload);
}

/// A process killed between rename and sync leaves a name that a power loss may still take; after the restart a
/// repeated put gets its receipt without writing anything.
async fn names_that_a_killed_process_left_are_made_durable_before_a_receipt_vouches_for_them(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 1000, 1);
    put(&store, &header, &payload).await.unwrap();
    store.index.write(vec![index::forget(header.id)]).unwrap();
    store.index.flush().await.unwrap();
    drop(store);
    let disk = MortalDisk::immortal(&bench);
    let (store, report) =
        ShardStore::open(&bench.host(Arc::new(disk.clone())), CLUSTER, ROOMY).await.unwrap();
    assert_eq!(report.adopted, 1);
    assert!(disk.synced.lock().unwrap().contains(dir_of(&file_name(header.id))));
    assert_eq!(put(&store, &header, &payload).await.unwrap(), header.hash);
}

/// Found by the simulator, storm seed 11: a put whose directory could not be synced left a file that nothing knew of, and
/// that stayed for nothing until the node was started again.
async fn a_put_that_fails_after_its_rename_leaves_nothing_unknown(place: Place) {
    let bench = Bench::new(&place).await;
    let disk = MortalDisk::immortal(&bench);
    let (store, _) = ShardStore::open(&bench.host(Arc::new(disk.clone())), CLUSTER, ROOMY).await.unwrap();
    let (header, payload) = shard(1, 1000, 1);
    disk.stubborn.store(true, Ordering::SeqCst);
    assert!(put(&store, &header, &payload).await.is_err());
    assert!(bench.has(header.id).await);
    let entry = store.entry(header.id).unwrap().expect("the index knows it");
    assert!(entry.bad, "and does not rely on it");
    assert_eq!((store.stats().shards, store.stats().used), (1, entry.file_len));
    disk.stubborn.store(false, Ordering::SeqCst);
    put(&store, &header, &payload).await.unwrap();
    assert_eq!(get(&store, &header).await.unwrap(), payload);
    assert_eq!(store.stats().shards, 1);
}

/// One file that could not be removed used to keep all others, and the word that they are gone, from being done.
#[tokio::test]
async fn what_cannot_be_removed_holds_up_nothing_else() {
    let bench = Bench::directory().await;
    let (store, _) = bench.open().await;
    let ((stuck, stuck_payload), (free, payload)) = (shard(1, 1000, 1), shard(2, 1000, 1));
    put(&store, &stuck, &stuck_payload).await.unwrap();
    put(&store, &free, &payload).await.unwrap();
    // Not even root removes a directory that has something in it as if it were a file.
    bench.lose(stuck.id).await;
    std::fs::create_dir_all(bench.dir.path().join(file_name(stuck.id)).join("inside")).unwrap();
    let removed = store.remove(store.hold([stuck.id, free.id]).await).await;
    assert_eq!(removed.shards, [free.id]);
    assert!(removed.failed.is_err());
    assert!(!bench.has(free.id).await);
}

/// The sweeper used to ask first and to remove then, so that a copy which repair had put back in between was removed
/// on the word of the old answer.
async fn a_copy_put_back_during_a_sweep_is_not_removed(place: Place) {
    let bench = Bench::new(&place).await;
    let (store, _) = bench.open().await;
    let ((swept, payload), (spared, spared_payload)) = (shard(1, 1000, 1), shard(2, 1000, 1));
    put(&store, &swept, &payload).await.unwrap();
    put(&store, &spared, &spared_payload).await.unwrap();
    let mut held = store.hold([swept.id, spared.id]).await;
    let mut again = std::pin::pin!(put(&store, &swept, &payload));
    let pause = std::time::Duration::from_millis(100);
    assert!(tokio::time::timeout(pause, again.as_mut()).await.is_err(), "answered under the sweeper's hands");
    // The leader confirms one of the two.
    held.retain(|id| id == swept.id);
    store.remove(held).await.failed.unwrap();
    assert!(matches!(again.await, Err(StoreError::Raced(_))), "the receipt would have been false");
    assert_eq!(get(&store, &spared).await.unwrap(), spared_payload);
    put(&store, &swept, &payload).await.unwrap();
    assert_eq!(get(&store, &swept).await.unwrap(), payload);
}

/// What a bucket answers while it cannot be used is no word about any shard: none is lost, none is rotten.
#[tokio::test]
async fn a_bucket_that_cannot_be_used_loses_no_shard() {
    let sick = Sick::new();
    let dir = tempfile::tempdir().unwrap();
    let own = Arc::new(RealDisk::new(dir.path()));
    let bench = Bench::on_bucket(dir, own, sick.disk().await);
    let (mut store, _) = bench.open().await;
    let ((header, payload), (other, other_payload)) = (shard(1, 1000, 1), shard(2, 1000, 1));
    put(&store, &header, &payload).await.unwrap();
    for ill in [Ill::Gone, Ill::Denied, Ill::Busy, Ill::Full] {
        sick.fall(Some(ill));
        assert!(matches!(get(&store, &header).await, Err(StoreError::Io(_))), "{ill:?}");
        assert!(matches!(store.verify(header.id, header.hash).await, Err(StoreError::Io(_))), "{ill:?}");
        assert!(store.check_place().await.is_err(), "{ill:?}");
        let refused = put(&store, &other, &other_payload).await;
        assert_eq!(matches!(refused, Err(StoreError::Full { .. })), ill == Ill::Full, "{refused:?}");
        assert!(remove(&store, header.id).await.is_err(), "{ill:?}");
        assert!(!store.entry(header.id).unwrap().expect("it is known").bad, "{ill:?}");
        drop(store);
        let host = bench.host(bench.disk.clone());
        let opened = ShardStore::open(&host, CLUSTER, ROOMY).await.map(|(_, report)| report);
        assert!(matches!(opened, Err(StoreError::Io(_))), "{ill:?}: {opened:?}");
        sick.fall(None);
        let report;
        (store, report) = bench.open().await;
        assert_eq!((report.shards, report.missing, report.bad), (1, vec![], vec![]), "{ill:?}");
        assert_eq!(get(&store, &header).await.unwrap(), payload);
    }
    settled(&bench, &store).await;
}

/// Requests cost money and a round trip.
#[tokio::test]
async fn a_bucket_is_asked_seldom_and_listed_only_at_a_start() {
    let sick = Sick::new();
    let dir = tempfile::tempdir().unwrap();
    let own = Arc::new(RealDisk::new(dir.path()));
    let bench = Bench::on_bucket(dir, own, sick.disk().await);
    let (store, _) = bench.open().await;
    let (header, payload) = shard(1, 9_000_000, 1);
    sick.asked();
    put(&store, &header, &payload).await.unwrap();
    assert_eq!(sick.asked(), [("put", 1)].into());
    let first = ShardRange { offset: 0, len: 1 };
    store.get_blocks(header.id, header.hash, &[first]).await.unwrap();
    assert_eq!(sick.asked(), [("get", 3)].into(), "header, sums, one block");
    assert_eq!(get(&store, &header).await.unwrap(), payload);
    assert_eq!(sick.asked(), [("get", 5)].into(), "header, sums, three long reads");
    drop(store);
    let (store, report) = bench.open().await;
    assert_eq!(report.shards, 1);
    assert_eq!(
        sick.asked(),
        [("head", 1), ("list", 2)].into(),
        "one listing a directory, no request a shard"
    );
    remove(&store, header.id).await.unwrap();
    assert_eq!(sick.asked(), [("delete", 1)].into());
}

/// Stores on a disk without a byte left.
struct NoRoom;

#[async_trait]
impl KvFactory for NoRoom {
    async fn open(&self, _: KvRole) -> Result<Arc<dyn farshore_core::host::Kv>, KvError> {
        Err(KvError::Full(DiskFull("here".into())))
    }
    async fn discard(&self, _: KvRole) -> Result<(), KvError> {
        panic!("nothing is wrong with the index");
    }
    async fn put_away(&self) -> Result<(), KvError> {
        panic!("nothing is wrong with the catalogue");
    }
}

/// It was thrown away, and with it the sessions of all shards, when a node started on a full disk.
#[tokio::test]
async fn an_index_that_lacks_room_is_not_thrown_away() {
    let bench = Bench::directory().await;
    let host = Host { kv: Arc::new(NoRoom), ..bench.host(bench.disk.clone()) };
    let told = ShardStore::open(&host, CLUSTER, ROOMY).await.err().unwrap().to_string();
    assert!(told.contains("the disk that holds here is full"), "{told}");
}
