//! The whole pipeline over a cluster in memory and a tree in memory.

use super::base::is_same;
use super::*;
use crate::crypto::MasterKey;
use crate::files::source::{Listed, Listing, Opened, SourceFile};
use crate::files::{FileKind, FileTime, Fingerprint, Meta, Stat};
use crate::format::config::ChunkSizes;
use crate::format::{ContentIter, DirIter, Entry, Node, unseal};
use crate::progress::Silent;
use crate::testing::{MemoryCluster, host};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::host::task::splitmix;
use farshore_core::id::{Ordinal, RepoId};
use farshore_core::policy::Policy;
use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

/// A tree in memory that counts what is read of it.
#[derive(Default)]
struct MemoryTree(Mutex<State>);

#[derive(Default)]
struct State {
    nodes: BTreeMap<Vec<u8>, Held>,
    next_ino: u64,
    opened: Vec<Vec<u8>>,
    /// Changes to a file that happen right after it has been read the given number of times.
    restless: BTreeMap<Vec<u8>, u32>,
}

#[derive(Clone)]
struct Held {
    stat: Stat,
    bytes: Bytes,
    readable: bool,
}

const OLD: FileTime = FileTime { secs: 1_000_000, nanos: 5 };

impl MemoryTree {
    fn new() -> Arc<Self> {
        let tree = MemoryTree::default();
        tree.dir("/");
        Arc::new(tree)
    }
    fn put(&self, path: &str, kind: FileKind, bytes: Bytes, mtime: FileTime) {
        let mut state = self.0.lock().unwrap();
        state.next_ino += 1;
        let meta =
            Meta { mode: 0o644, mtime, ctime: mtime, ino: state.next_ino, nlink: 1, ..Meta::default() };
        state.nodes.insert(path.into(), Held { stat: Stat { kind, meta }, bytes, readable: true });
    }
    fn dir(&self, path: &str) {
        self.put(path, FileKind::Dir, Bytes::new(), OLD);
    }
    fn file(&self, path: &str, bytes: impl Into<Bytes>) {
        self.file_at(path, bytes, OLD);
    }
    fn file_at(&self, path: &str, bytes: impl Into<Bytes>, mtime: FileTime) {
        let bytes = bytes.into();
        self.put(path, FileKind::File { size: bytes.len() as u64 }, bytes, mtime);
    }
    /// Another name for a file.
    fn link(&self, first: &str, second: &str) {
        let mut state = self.0.lock().unwrap();
        let held = state.nodes.get_mut(first.as_bytes()).unwrap();
        held.stat.meta.nlink += 1;
        let ino = held.stat.meta.ino;
        let twin = held.clone();
        state.nodes.insert(second.into(), twin.clone());
        let names = state.nodes.values_mut().filter(|held| held.stat.meta.ino == ino);
        names.for_each(|held| held.stat.meta.nlink = twin.stat.meta.nlink);
    }
    fn forbid(&self, path: &str) {
        self.0.lock().unwrap().nodes.get_mut(path.as_bytes()).unwrap().readable = false;
    }
    fn take_opened(&self) -> Vec<String> {
        let opened = std::mem::take(&mut self.0.lock().unwrap().opened);
        opened.into_iter().map(|p| String::from_utf8(p).unwrap()).collect()
    }
    fn held(&self, path: &[u8]) -> io::Result<Held> {
        let held = self.0.lock().unwrap().nodes.get(path).cloned();
        let held = held.ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        if held.readable { Ok(held) } else { Err(io::ErrorKind::PermissionDenied.into()) }
    }
}

struct MemoryListing(Vec<Listed>);

#[async_trait]
impl Listing for MemoryListing {
    async fn next(&mut self) -> io::Result<Vec<Listed>> {
        // Pages of three, so that most directories turn a page.
        let rest = self.0.split_off(self.0.len().min(3));
        Ok(std::mem::replace(&mut self.0, rest))
    }
}

struct MemoryFile {
    bytes: Bytes,
    seen: Fingerprint,
}

#[async_trait]
impl SourceFile for MemoryFile {
    async fn read(&mut self, want: usize) -> io::Result<Bytes> {
        Ok(self.bytes.split_to(want.min(self.bytes.len())))
    }
    async fn fingerprint(&mut self) -> io::Result<Fingerprint> {
        Ok(self.seen)
    }
}

#[async_trait]
impl Source for MemoryTree {
    async fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        let held = self.0.lock().unwrap().nodes.get(path).cloned();
        held.map(|held| held.stat).ok_or(io::ErrorKind::NotFound.into())
    }
    async fn list(&self, path: &[u8]) -> io::Result<Box<dyn Listing>> {
        self.held(path)?;
        let dir = if path == b"/" { b"/".to_vec() } else { [path, b"/"].concat() };
        let state = self.0.lock().unwrap();
        let below = state.nodes.iter().filter_map(|(path, held)| Some((path.strip_prefix(&dir[..])?, held)));
        let below = below.filter(|(name, _)| !name.is_empty() && !name.contains(&b'/'));
        let list = below.map(|(name, held)| Listed { name: name.to_vec(), stat: Ok(held.stat.clone()) });
        Ok(Box::new(MemoryListing(list.collect())))
    }
    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened> {
        self.0.lock().unwrap().opened.push(path.to_vec());
        let held = self.held(path)?;
        let mut state = self.0.lock().unwrap();
        let mut stat = held.stat.clone();
        if let Some(times) = state.restless.get_mut(path).filter(|times| **times > 0) {
            *times -= 1;
            stat.meta.mtime.secs += 1;
            state.nodes.get_mut(path).unwrap().stat = stat.clone();
        }
        let (mut bytes, seen) = (held.bytes, stat.fingerprint().unwrap());
        let head = bytes.split_to(want.min(bytes.len()));
        let whole = bytes.is_empty() && head.len() < want;
        let rest = (!whole).then(|| Box::new(MemoryFile { bytes, seen }) as Box<dyn SourceFile>);
        Ok(Opened { head, seen, rest })
    }
}

/// Reads chunks straight from the data shards: nothing has failed and nothing is rebuilt.
struct StraightChunks {
    cluster: Arc<MemoryCluster>,
    keys: RepoKeys,
}

impl StraightChunks {
    fn open(&self, kind: PackKind, id: &ChunkId) -> Result<Bytes> {
        let state = self.cluster.state();
        let missing = || Error::corrupt("chunk", "it is nowhere");
        let chunk = state.chunks.get(&(self.keys.repo(), *id)).ok_or_else(missing)?;
        let pack = &state.packs[&chunk.pack];
        let mut bytes = Vec::new();
        for (index, shard) in pack.stripe.shards.iter().take(pack.stripe.scheme.k()).enumerate() {
            let id = farshore_core::id::ShardId { stripe: pack.stripe.id, index: index as u8 };
            bytes.extend_from_slice(&state.shards[&(shard.node.ok_or_else(missing)?, id)]);
        }
        unseal(&self.keys, kind, id, &bytes[chunk.offset as usize..][..chunk.len as usize])
    }
}

#[async_trait]
impl ChunkSource for StraightChunks {
    async fn chunk(&self, id: &ChunkId) -> Result<Bytes> {
        self.open(PackKind::Tree, id)
    }
}

struct Bench {
    ctx: Context,
    cluster: Arc<MemoryCluster>,
    tree: Arc<MemoryTree>,
    chunks: Arc<StraightChunks>,
}

const SIZES: ChunkSizes = ChunkSizes { min: 1 << 10, mean: 4 << 10, max: 16 << 10 };

fn bench() -> Bench {
    let (cluster, tree, host) = (MemoryCluster::new(3, 2), MemoryTree::new(), host());
    let id = RepoId([7; 16]);
    let keys = MasterKey::new(&*host.entropy).keys(id);
    let policy = Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 };
    let repo = RepoRecord {
        id,
        name: "test".parse().unwrap(),
        policy,
        sealed_config: Vec::new(),
        key_slots: Vec::new(),
    };
    let chunks = Arc::new(StraightChunks { cluster: cluster.clone(), keys: keys.clone() });
    let ctx = Context {
        host,
        catalogue: cluster.clone(),
        shards: cluster.clone(),
        health: Arc::new(NodeHealth::new()),
        repo,
        keys,
        config: RepoConfig { chunks: SIZES, pack_bytes: 128 << 10, zstd_level: 0 },
        chunks: chunks.clone(),
        source: tree.clone(),
        progress: Arc::new(Silent),
    };
    Bench { ctx, cluster, tree, chunks }
}

impl Bench {
    async fn backup_paths(&self, kind: SnapshotKind, paths: &[&str]) -> Result<Summary> {
        run(&self.ctx, &self.options(kind, paths)).await
    }
    fn options(&self, kind: SnapshotKind, paths: &[&str]) -> Options {
        Options {
            paths: paths.iter().map(|p| p.as_bytes().to_vec()).collect(),
            kind,
            host_name: "here".into(),
            user: "me".into(),
            ..Options::default()
        }
    }
    async fn backup(&self) -> Summary {
        self.backup_paths(SnapshotKind::Incremental, &["/src"]).await.unwrap()
    }
    /// Every path of a snapshot with the contents of its files.
    async fn contents(&self, summary: &Summary) -> BTreeMap<String, (Entry, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut dirs = vec![(String::new(), summary.info.root)];
        while let Some((dir, root)) = dirs.pop() {
            let mut entries = DirIter::new(self.chunks.clone(), root);
            while let Some(entry) = entries.next().await.unwrap() {
                let path = format!("{dir}/{}", String::from_utf8_lossy(&entry.name));
                let mut bytes = Vec::new();
                match &entry.node {
                    Node::Dir { root } => dirs.push((path.clone(), *root)),
                    Node::File { content, size } => {
                        let mut chunks = ContentIter::new(self.chunks.clone(), content);
                        while let Some(placed) = chunks.next().await.unwrap() {
                            assert_eq!(placed.offset, bytes.len() as u64);
                            let chunk = self.chunks.open(PackKind::Data, &placed.id).unwrap();
                            assert_eq!(chunk.len(), placed.len as usize);
                            bytes.extend_from_slice(&chunk);
                        }
                        assert_eq!(*size, bytes.len() as u64);
                    }
                    _ => {}
                }
                found.insert(path, (entry, bytes));
            }
        }
        found
    }
    async fn holds_all(&self, summary: &Summary) {
        let found = self.contents(summary).await;
        let nodes = self.tree.0.lock().unwrap().nodes.clone();
        let wanted = nodes.iter().filter(|(path, held)| path.starts_with(b"/src") && held.readable);
        for (path, held) in wanted {
            let path = String::from_utf8(path.clone()).unwrap();
            let (entry, bytes) = found.get(&path).unwrap_or_else(|| panic!("{path} is missing"));
            assert_eq!(bytes[..], held.bytes[..], "{path}");
            assert_eq!(entry.meta, held.stat.meta, "{path}");
        }
    }
}

fn noise(len: usize, seed: u64) -> Vec<u8> {
    (0..len as u64).map(|n| splitmix(seed, n.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as u8).collect()
}

fn sample_tree(tree: &MemoryTree) {
    tree.dir("/src");
    tree.dir("/src/sub");
    tree.dir("/src/empty");
    tree.dir("/elsewhere");
    tree.file("/elsewhere/not-asked-for", "x");
    tree.file("/src/a", "hello");
    tree.file("/src/none", "");
    tree.file("/src/exactly-min", noise(SIZES.min as usize, 9));
    tree.file("/src/big", noise(1_500_000, 1));
    tree.file("/src/big-copy", noise(1_500_000, 1));
    tree.file("/src/sub/text", b"all work and no play ".repeat(10_000));
    for n in 0..300 {
        tree.file(&format!("/src/sub/{n:04}"), format!("file {n}"));
    }
    tree.put("/src/link", FileKind::Symlink { target: b"../\xff".to_vec() }, Bytes::new(), OLD);
    tree.put("/src/pipe", FileKind::Fifo, Bytes::new(), OLD);
}

#[tokio::test]
async fn a_tree_comes_back_and_the_second_run_reads_nothing() {
    let bench = bench();
    sample_tree(&bench.tree);
    let first = bench.backup().await;
    assert_eq!(first.info.kind, SnapshotKind::Full, "there was nothing to build on");
    assert_eq!((first.info.stats.files_new, first.info.stats.total_files), (306, 306));
    assert_eq!((first.degraded_packs, first.info.stats.unreadable), (0, 0));
    // Twice the same big file is sent once.
    assert!(first.info.stats.data_added < 1_800_000, "{:?}", first.info.stats);
    bench.holds_all(&first).await;
    let found = bench.contents(&first).await;
    assert!(!found.contains_key("/elsewhere") && found.contains_key("/src/empty"));
    assert_eq!(found["/src/link"].0.node, Node::Symlink { target: b"../\xff".to_vec() });

    bench.tree.take_opened();
    let packs = bench.cluster.state().packs.len();
    let second = bench.backup().await;
    assert_eq!(bench.tree.take_opened(), Vec::<String>::new());
    assert_eq!(bench.cluster.state().packs.len(), packs, "nothing new, so nothing sent");
    assert_eq!((second.info.kind, second.info.parent), (SnapshotKind::Incremental, first.snapshot));
    assert_eq!(second.info.base, first.snapshot);
    assert_eq!((second.info.stats.files_unmodified, second.info.stats.bytes_read), (306, 0));
    assert_eq!(second.info.root, first.info.root);
    let live = |id| bench.cluster.state().snapshots[&(bench.ctx.repo.id, id)].live.clone();
    assert_eq!(live(second.snapshot.unwrap()), live(first.snapshot.unwrap()), "both need the same chunks");
    assert!(bench.cluster.state().sessions.is_empty());
}

#[tokio::test]
async fn every_chunk_a_snapshot_references_is_in_its_bitmap() {
    let bench = bench();
    sample_tree(&bench.tree);
    bench.backup().await;
    let second = bench.backup().await;
    let record = bench.cluster.state().snapshots[&(bench.ctx.repo.id, second.snapshot.unwrap())].clone();
    let live = roaring::RoaringTreemap::deserialize_from(&record.live[..]).unwrap();
    let all: u64 = bench.cluster.state().chunks.len() as u64;
    assert_eq!(live.len(), all, "nothing was left out and this cluster holds nothing else");
}

#[tokio::test]
async fn an_edit_in_a_big_file_sends_few_chunks() {
    let bench = bench();
    sample_tree(&bench.tree);
    bench.backup().await;
    let mut edited = noise(1_500_000, 1);
    edited.splice(700_000..700_000, *b"inserted");
    bench.tree.file("/src/big", edited);
    let second = bench.backup().await;
    let stats = second.info.stats;
    assert!(stats.data_blobs <= 4 && stats.data_added < 64 << 10, "{stats:?}");
    assert!(stats.tree_added < 100 << 10, "{stats:?}");
    assert_eq!((stats.files_changed, stats.files_unmodified), (1, 305));
    bench.holds_all(&second).await;
}

#[tokio::test]
async fn a_replaced_file_of_same_size_and_time_is_read_again() {
    let bench = bench();
    sample_tree(&bench.tree);
    bench.backup().await;
    // Same path, length and times; only the inode tells.
    bench.tree.file("/src/a", "HELLO");
    bench.tree.take_opened();
    let second = bench.backup().await;
    assert_eq!(bench.tree.take_opened(), ["/src/a"]);
    bench.holds_all(&second).await;
}

#[tokio::test]
async fn a_file_changed_near_the_scan_is_read_again() {
    let bench = bench();
    bench.tree.dir("/src");
    let now = FileTime::from_ms(bench.ctx.host.clock.now_ms() as i64);
    bench.tree.file_at("/src/fresh", "x", now);
    bench.tree.file("/src/old", "y");
    bench.backup().await;
    bench.tree.take_opened();
    bench.backup().await;
    assert_eq!(bench.tree.take_opened(), ["/src/fresh"]);
}

#[test]
fn the_racy_window_reaches_two_seconds_either_way_of_the_scan() {
    let entry = |ms: i64| {
        let meta = Meta { mtime: FileTime::from_ms(ms), ino: 1, ..Meta::default() };
        let content = crate::format::Content::Inline(Vec::new());
        Entry { name: b"x".to_vec(), node: Node::File { size: 0, content }, meta, inconsistent: false }
    };
    for (ms, same) in [(7_999, true), (8_000, false), (10_000, false), (22_000, false), (22_001, true)] {
        let was = entry(ms);
        assert_eq!(
            is_same(&Fingerprint::of(0, &was.meta), &was, (10_000, 20_000), Trust::default()),
            same,
            "{ms}"
        );
    }
    let was = entry(1_000);
    let now = Fingerprint::of(0, &was.meta);
    assert!(is_same(&now, &was, (10_000, 20_000), Trust::default()));
    for other in [
        Fingerprint { size: 1, ..now },
        Fingerprint { ino: 2, ..now },
        Fingerprint { mtime: FileTime::from_ms(1_001), ..now },
        Fingerprint { ctime: FileTime::from_ms(1_001), ..now },
    ] {
        assert!(!is_same(&other, &was, (10_000, 20_000), Trust::default()), "{other:?}");
    }
    assert!(!is_same(&now, &Entry { inconsistent: true, ..was }, (10_000, 20_000), Trust::default()));
}

#[tokio::test]
async fn unreadable_paths_are_reported_and_the_rest_is_saved() {
    let bench = bench();
    sample_tree(&bench.tree);
    bench.tree.forbid("/src/a");
    bench.tree.forbid("/src/empty");
    let paths = ["/src", "/gone"];
    let summary = bench.backup_paths(SnapshotKind::Incremental, &paths).await.unwrap();
    let named: Vec<_> = summary.info.unreadable.iter().map(|u| String::from_utf8_lossy(&u.path)).collect();
    assert_eq!(summary.info.stats.unreadable, 3);
    assert!(
        ["/gone", "/src/a", "/src/empty"].iter().all(|path| named.contains(&(*path).into())),
        "{named:?}"
    );
    bench.holds_all(&summary).await;
    assert!(!bench.contents(&summary).await.contains_key("/src/a"));
    let nothing = bench.backup_paths(SnapshotKind::Incremental, &["/gone"]).await;
    assert!(matches!(nothing, Err(Error::Local { .. })));
}

#[tokio::test]
async fn a_file_that_changes_once_is_read_twice_and_one_that_never_rests_is_marked() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/once", noise(50_000, 3));
    bench.tree.file("/src/ever", "x");
    let restless = [(b"/src/once".to_vec(), 1), (b"/src/ever".to_vec(), 99)];
    bench.tree.0.lock().unwrap().restless.extend(restless);
    let summary = bench.backup().await;
    let found = bench.contents(&summary).await;
    assert!(!found["/src/once"].0.inconsistent && found["/src/ever"].0.inconsistent);
    assert_eq!(summary.info.stats.inconsistent, 1);
    assert_eq!(found["/src/once"].1, noise(50_000, 3));
    assert_eq!(bench.tree.take_opened().len(), 4);
    bench.tree.0.lock().unwrap().restless.clear();
    bench.backup().await;
    assert_eq!(bench.tree.take_opened(), ["/src/ever"], "what is marked is read again");
}

#[tokio::test]
async fn a_node_down_costs_spares_and_too_many_are_an_error_that_names_them() {
    let bench = bench();
    sample_tree(&bench.tree);
    let nodes = bench.cluster.node_ids();
    bench.cluster.set_down([nodes[0]]);
    let summary = bench.backup().await;
    assert!(summary.degraded_packs > 0);
    bench.cluster.set_down(nodes[..5].to_vec());
    bench.tree.file("/src/more", noise(100_000, 8));
    let error = bench.backup_paths(SnapshotKind::Full, &["/src"]).await.unwrap_err();
    assert_eq!(error.exit_code(), 13);
    assert!(error.to_string().contains("n0") && error.to_string().contains("n4"), "{error}");
    assert!(bench.cluster.state().sessions.is_empty(), "the session is closed after an error too");
    bench.cluster.set_down([]);
    let summary = bench.backup().await;
    bench.holds_all(&summary).await;
}

#[tokio::test]
async fn chunks_gone_from_the_catalogue_are_read_and_sent_again() {
    let bench = bench();
    sample_tree(&bench.tree);
    let first = bench.backup().await;
    let text = bench.contents(&first).await["/src/sub/text"].0.node.clone();
    let Node::File { content: crate::format::Content::Inline(chunks), .. } = text else {
        panic!("it is short")
    };
    bench.cluster.state().chunks.remove(&(bench.ctx.repo.id, chunks[0].id));
    bench.tree.take_opened();
    let second = bench.backup().await;
    assert_eq!(bench.tree.take_opened(), ["/src/sub/text"]);
    assert_eq!(second.info.stats.data_blobs, 1);
    bench.holds_all(&second).await;
}

#[tokio::test]
async fn kinds_choose_their_parents() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/a", "1");
    let paths = ["/src"];
    let full = bench.backup_paths(SnapshotKind::Full, &paths).await.unwrap();
    let first = bench.backup().await;
    let second = bench.backup().await;
    let differential = bench.backup_paths(SnapshotKind::Differential, &paths).await.unwrap();
    assert_eq!((full.info.parent, full.info.base), (None, None));
    assert_eq!((first.info.parent, second.info.parent), (full.snapshot, first.snapshot));
    assert_eq!((second.info.base, differential.info.parent), (full.snapshot, full.snapshot));
    let other = bench.backup_paths(SnapshotKind::Incremental, &["/src/a"]).await.unwrap();
    assert_eq!((other.info.parent, other.info.kind), (None, SnapshotKind::Full), "another group");
    bench.tree.take_opened();
    bench.backup_paths(SnapshotKind::Full, &paths).await.unwrap();
    assert_eq!(bench.tree.take_opened(), ["/src/a"], "a full run reads every byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_fits_the_memory_for_chunks_still_flows() {
    let bench = bench();
    bench.tree.dir("/src");
    let noise = Bytes::from(noise(420 * 60_000, 4));
    assert!(noise.len() > ROOM_BYTES);
    // Each directory ends in a tree chunk that must find room while data is waiting everywhere.
    for dir in 0..60 {
        bench.tree.dir(&format!("/src/{dir}"));
        for file in 0..7 {
            let at = (dir * 7 + file) * 60_000;
            bench.tree.file(&format!("/src/{dir}/{file}"), noise.slice(at..at + 60_000));
        }
    }
    let done = tokio::time::timeout(std::time::Duration::from_secs(60), bench.backup()).await;
    let summary = done.expect("no stage waits for another in a circle");
    assert_eq!(summary.info.stats.data_added, 420 * 60_000);
    bench.holds_all(&summary).await;
}

#[test]
fn a_backup_can_run_in_a_task() {
    fn is_send<T: Send>(_: &T) {}
    let bench = bench();
    is_send(&bench.backup());
}

#[tokio::test]
async fn a_file_with_several_names_is_read_once() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.dir("/src/z");
    for (name, len) in [("big", 300_000), ("small", 900), ("none", 0)] {
        bench.tree.file(&format!("/src/{name}"), noise(len, 7));
        bench.tree.link(&format!("/src/{name}"), &format!("/src/{name}-2"));
        bench.tree.link(&format!("/src/{name}"), &format!("/src/z/{name}-3"));
    }
    let summary = bench.backup().await;
    assert_eq!(bench.tree.take_opened().len(), 3, "one name of each");
    assert_eq!(summary.info.stats.bytes_read, 300_900);
    assert_eq!((summary.info.stats.total_files, summary.info.stats.total_bytes), (9, 3 * 300_900));
    bench.holds_all(&summary).await;
}

#[tokio::test]
async fn a_further_name_is_read_if_the_first_reading_was_no_good() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/a", noise(50_000, 7));
    bench.tree.link("/src/a", "/src/b");
    // The scan saw both names as they were before, so the second does not look like what was read.
    bench.tree.0.lock().unwrap().restless.insert(b"/src/a".to_vec(), 1);
    let summary = bench.backup().await;
    assert_eq!(bench.tree.take_opened(), ["/src/a", "/src/a", "/src/b"]);
    let found = bench.contents(&summary).await;
    assert_eq!(found["/src/a"].1, found["/src/b"].1);
}

#[tokio::test]
async fn a_run_that_dies_leaves_one_checkpoint_and_the_next_run_removes_it() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/a", noise(5_000, 1));
    let done = bench.backup().await;
    let options = bench.options(SnapshotKind::Incremental, &["/src"]);
    let (ctx, group) = (&bench.ctx, bench.ctx.keys.group("here", &options.paths));
    let left = || async { base::choose(ctx, &options, group).await.unwrap() };
    let session = SessionId([9; 16]);
    ctx.catalogue.open_session(session, ctx.repo.id, 0).await.unwrap();
    let (ledger, checkpoints) = (Ledger::default(), Checkpoints::new(ctx, session, group, &options));
    ledger.claim(ChunkId([1; 32]));
    ledger.present(ChunkId([1; 32]), Ordinal(0));
    checkpoints.make(&ledger).await.unwrap();
    let first = left().await.checkpoints;
    assert_eq!(first, Vec::from_iter(checkpoints.last()));
    ledger.present(ChunkId([2; 32]), Ordinal(1));
    checkpoints.make(&ledger).await.unwrap();
    let second = left().await;
    assert_eq!(second.checkpoints, Vec::from_iter(checkpoints.last()), "each replaces the one before");
    assert_ne!(second.checkpoints, first);
    assert_eq!(second.base.map(|base| base.id), done.snapshot, "a checkpoint is nobody's parent");
    bench.backup().await;
    assert!(left().await.checkpoints.is_empty());
}

#[tokio::test]
async fn a_long_run_makes_checkpoints_and_its_snapshot_replaces_the_last() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/a", noise(900_000, 3));
    let options = Options { checkpoint_ms: Some(1), ..bench.options(SnapshotKind::Full, &["/src"]) };
    run(&bench.ctx, &options).await.unwrap();
    assert!(bench.cluster.state().partial_commits > 0);
    let group = bench.ctx.keys.group("here", &options.paths);
    let options = bench.options(SnapshotKind::Incremental, &["/src"]);
    let left = base::choose(&bench.ctx, &options, group).await.unwrap();
    assert!(left.checkpoints.is_empty() && left.base.is_some());
}

/// Regression: a copy recorded when it was made, not when its files were seen, so that the next copy took a file for unchanged
/// that may have changed in the very moment of the first backup.
#[tokio::test]
async fn what_changed_near_the_scan_of_the_original_is_read_by_the_next_copy() {
    let bench = bench();
    bench.tree.dir("/src");
    bench.tree.file("/src/a", "x");
    let near = OLD.as_ms() as u64;
    for (scanned_ms, read) in [((near - 500, near - 100), 1), ((near + 9_000, near + 9_100), 0)] {
        let options =
            Options { scanned_ms: Some(scanned_ms), ..bench.options(SnapshotKind::Full, &["/src"]) };
        let first = run(&bench.ctx, &options).await.unwrap();
        assert_eq!((first.info.scan_start_ms, first.info.scan_end_ms), scanned_ms);
        assert_eq!(bench.backup().await.info.stats.bytes_read, read);
    }
}

/// Regression: times of directories above what is backed up made every run a change.
#[tokio::test]
async fn nothing_has_changed_if_only_what_lies_above_has() {
    let bench = bench();
    bench.tree.dir("/up");
    bench.tree.dir("/up/src");
    bench.tree.file("/up/src/a", "x");
    let skip = |paths: &[&str]| Options {
        skip_if_unchanged: true,
        ..bench.options(SnapshotKind::Incremental, paths)
    };
    let first = run(&bench.ctx, &skip(&["/up/src"])).await.unwrap();
    assert!(first.snapshot.is_some());
    bench.tree.file("/up/beside", "y");
    bench.tree.put("/up", FileKind::Dir, Bytes::new(), FileTime::from_ms(5_000));
    let second = run(&bench.ctx, &skip(&["/up/src"])).await.unwrap();
    assert_eq!((second.snapshot, second.info.root == first.info.root), (None, false));
    bench.tree.file("/up/src/b", "z");
    assert!(run(&bench.ctx, &skip(&["/up/src"])).await.unwrap().snapshot.is_some());
}
