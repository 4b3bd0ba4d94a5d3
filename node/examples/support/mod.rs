//! What the measuring programs share: a synthetic catalogue's commands, a meter of this process, and latencies.
#![allow(dead_code, reason = "each program uses its part")]

use bytes::Bytes;
use farshore_core::catalogue::{
    Actor, ChunkSpan, Command, PackCommit, PackKind, Proposal, RepoRecord, ShardRecord, SnapshotKind,
    SnapshotLabel, SnapshotRecord,
};
use farshore_core::erasure::Scheme;
use farshore_core::host::Host;
use farshore_core::host::real::client_host;
use farshore_core::id::{
    ChunkId, ClusterId, NodeId, PackId, RepoId, SessionId, ShardHash, SnapshotId, hash_parts,
};
use farshore_core::policy::Policy;
use farshore_core::shard::{PackInfo, ShardHeader, ShardSums, hash_shard};
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_node::disk::RealDisk;
use farshore_node::kv::RealKv;
use roaring::RoaringTreemap;
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The one repository of a synthetic catalogue.
pub const REPO: RepoId = RepoId([7; 16]);
/// Nodes that hold its shards, in three regions.
pub const NODES: u64 = 6;
/// Length of every pack, about; its chunks share it.
const PACK_BYTES: u32 = 32_000_000;

/// Numbers after the fixed arguments, as `name=value`.
pub struct Args(BTreeMap<String, u64>);

impl Args {
    /// The arguments before the first pair, and the pairs.
    pub fn read() -> (Vec<String>, Args) {
        let (pairs, fixed): (Vec<_>, Vec<_>) = std::env::args().skip(1).partition(|arg| arg.contains('='));
        let pair = |arg: String| {
            let (name, value) = arg.split_once('=').expect("partitioned by it");
            (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{name} is not a number: {value}")))
        };
        (fixed, Args(pairs.into_iter().map(pair).collect()))
    }
    pub fn number(&self, name: &str, default: u64) -> u64 {
        self.0.get(name).copied().unwrap_or(default)
    }
}

/// Numbers that look random and are the same in each run.
pub struct Draw(pub u64);

impl Draw {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 24) % bound.max(1)
    }
}

fn id(kind: &[u8], number: u64) -> [u8; 32] {
    hash_parts(&[kind, &number.to_le_bytes()])
}

/// Id of a chunk by its number, known or not.
pub fn chunk(number: u64) -> ChunkId {
    ChunkId(id(b"chunk", number))
}

pub fn snapshot_id(number: u64) -> SnapshotId {
    SnapshotId(id(b"snapshot", number))
}

pub fn session_id(number: u64) -> SessionId {
    let mut short = [0; 16];
    short.copy_from_slice(&id(b"session", number)[..16]);
    SessionId(short)
}

/// A pack of these chunks, coded 4+2 over all nodes.
pub fn pack(number: u64, chunks: impl Iterator<Item = u64>) -> PackCommit {
    let scheme = Scheme::new(4, 2, 2).expect("4+2 is a code");
    let numbers: Vec<u64> = chunks.collect();
    let chunk_len = PACK_BYTES / numbers.len() as u32;
    let span = |(at, number)| ChunkSpan { id: chunk(number), offset: at * chunk_len, len: chunk_len };
    let chunks: Vec<ChunkSpan> = (0..).zip(numbers).map(span).collect();
    let len = chunks.len() as u64 * u64::from(chunk_len);
    let shard = |index: u64| ShardRecord {
        node: Some(NodeId(index + 1)),
        hash: ShardHash(id(b"shard", number * NODES + index)),
    };
    PackCommit {
        id: PackId(id(b"pack", number)),
        kind: PackKind::Data,
        len,
        chunks,
        scheme,
        shard_len: scheme.shard_len(len),
        shards: (0..NODES).map(shard).collect(),
    }
}

/// A snapshot that needs these ordinals.
pub fn snapshot(number: u64, live: &RoaringTreemap) -> SnapshotRecord {
    let mut live = live.clone();
    live.optimize();
    let mut bytes = Vec::with_capacity(live.serialized_size());
    live.serialize_into(&mut bytes).expect("writing to memory cannot fail");
    SnapshotRecord {
        id: snapshot_id(number),
        repo: REPO,
        kind: SnapshotKind::Incremental,
        parent: None,
        group: [1; 16],
        committed_ms: 0,
        label: SnapshotLabel::default(),
        sealed: vec![5; 400],
        live: bytes,
    }
}

/// A new cluster with its nodes and the repository.
pub fn prologue() -> Vec<Command> {
    let node = |number: u64| NodeRecord {
        id: NodeId(number),
        name: format!("n{number}").parse().expect("a name"),
        region: format!("test/r{}", number % 3).parse().expect("a region"),
        zone: None,
        addr: format!("host{number}:7000"),
        capacity: 1 << 44,
        state: NodeState::Up,
    };
    let repo = RepoRecord {
        id: REPO,
        name: "measured".parse().expect("a name"),
        policy: Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 },
        sealed_config: vec![1; 100],
        key_slots: vec![vec![2; 200]],
    };
    let mut commands = vec![Command::FormCluster { cluster: ClusterId([9; 16]) }];
    commands.extend((1..=NODES).map(|number| Command::PutNode { node: node(number) }));
    commands.push(Command::CreateRepository { repo });
    commands
}

/// The cluster of all shards made here.
pub const CLUSTER: ClusterId = ClusterId([9; 16]);

/// The real seams below a directory.
pub fn host(dir: &Path, disk: RealDisk) -> Host {
    Host { disk: Arc::new(disk), kv: Arc::new(RealKv::new(dir)), ..client_host() }
}

/// A shard to be put, or written where a store has it.
pub struct Made {
    pub header: ShardHeader,
    pub payload: Bytes,
    sums: ShardSums,
    name: String,
}

impl Made {
    /// Where it lies below the data directory (docs/format.md).
    pub fn name(&self) -> &str {
        &self.name
    }
    /// The bytes of its file.
    pub fn file(&self) -> Vec<u8> {
        [&self.header.encode()[..], &self.payload, &self.sums.encode()].concat()
    }
}

/// A shard with a payload of this many bytes; its number makes its id and its bytes.
pub fn made_shard(number: u64, bytes: usize) -> Made {
    let scheme = Scheme::new(1, 1, 1).expect("1+1 is a code");
    let pack = PackId(id(b"made", number));
    let info = PackInfo { cluster: CLUSTER, repo: REPO, pack, pack_len: bytes as u64, scheme };
    let mut payload = vec![0; info.scheme.shard_len(bytes as u64) as usize];
    let mut draw = Draw(number);
    payload
        .chunks_mut(8)
        .for_each(|part| part.copy_from_slice(&draw.below(u64::MAX).to_le_bytes()[..part.len()]));
    let shard = info.shard(0);
    let (hash, sums) = hash_shard(shard, &payload);
    let name = format!("shards/{:02x}/{shard}.shard", shard.stripe.0[0]);
    Made { header: info.header(0, hash), payload: payload.into(), sums, name }
}

/// A command with a time that goes on with the log.
pub fn stamped(index: u64, command: Command) -> Proposal {
    Proposal { time_ms: 1_700_000_000_000 + index, actor: Actor::Node(NodeId(1)), command }
}

/// This process, as the kernel sees it.
pub struct Meter {
    began: Instant,
    cpu_ms: u64,
}

impl Meter {
    /// Begins to count, and forgets the highest memory so far.
    pub fn start() -> Self {
        // 5 resets the peak (proc(5)); where that is not allowed, the peak is that of the whole run.
        let _ = std::fs::write("/proc/self/clear_refs", "5");
        Meter { began: Instant::now(), cpu_ms: cpu_ms() }
    }
    /// Wall and processor time since, and memory in MiB: now and at most.
    pub fn read(&self) -> String {
        let wall = self.began.elapsed().as_secs_f64();
        let cpu = (cpu_ms() - self.cpu_ms) as f64 / 1000.0;
        format!(
            "wall {wall:8.3} s  cpu {cpu:8.2} s  rss {:5} MiB  peak {:5} MiB",
            status_mib("VmRSS"),
            status_mib("VmHWM")
        )
    }
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

/// User and system time of all threads, from clock ticks of 10 ms.
fn cpu_ms() -> u64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("read own state");
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    (ticks(11) + ticks(12)) * 10
}

fn status_mib(name: &str) -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").expect("read own state");
    let line = text.lines().find(|line| line.starts_with(name));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// MiB that a directory takes on disk, as `du` counts.
pub fn disk_mib(dir: &Path) -> f64 {
    fn blocks(dir: &Path) -> u64 {
        let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
        // A file may vanish meanwhile: the engines tidy up.
        let each = entries.flatten().map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => blocks(&entry.path()),
            Ok(meta) => meta.blocks(),
            Err(_) => 0,
        });
        each.sum()
    }
    blocks(dir) as f64 * 512.0 / (1 << 20) as f64
}

/// Durations, and what to say about them.
#[derive(Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn push(&mut self, since: Instant) {
        self.0.push(since.elapsed());
    }
    pub fn print(mut self, what: &str) {
        self.0.sort_unstable();
        let ms = |share: f64| {
            let at = ((self.0.len() as f64 * share) as usize).min(self.0.len().saturating_sub(1));
            self.0.get(at).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
        };
        println!(
            "  {what:<44} n {:6}  median {:9.4} ms  p99 {:9.4} ms  worst {:9.3} ms",
            self.0.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        );
    }
}
