//! A whole cluster in memory for unit tests: catalogue and shards behind the same traits as the real one, nodes that
//! can be switched off and shards that can be damaged. Never part of a build that ships.

#![allow(dead_code, reason = "each test uses a part of it")]

use crate::api::*;
use crate::crypto::{KdfParams, MasterKey, RepoKeys, Secret, SlotNote, wrap};
use crate::error::{Error, Result};
use crate::files::{FileTime, Meta};
use crate::format::{
    Compression, Content, ContentBuilder, ContentChunk, DirBuilder, Entry, NewChunk, Node, RepoConfig,
    Sealer, SnapshotInfo, SnapshotStats,
};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    ChunkRecord, PackCommit, PackKind, PackRecord, RepoChange, RepoRecord, RepoSettings, ShardRecord,
    SnapshotKind, SnapshotLabel, SnapshotRecord, StripeRecord,
};
use farshore_core::erasure::{CODEC_RS, Codec, Scheme};
use farshore_core::host::{Host, real};
use farshore_core::id::*;
use farshore_core::pack::PackBuilder;
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef};
use farshore_core::policy::Policy;
use farshore_core::shard::{ShardRange, hash_shard};
use farshore_core::topology::{Name, NodeRecord, NodeState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

/// A client's host with the real clock, randomness and processors.
pub fn host() -> Host {
    real::client_host()
}

/// Catalogue and nodes.
pub struct MemoryCluster {
    nodes: Vec<NodeRecord>,
    state: Mutex<State>,
}

/// What it holds; tests may look at it and spoil it.
#[derive(Default)]
pub struct State {
    pub repos: BTreeMap<String, RepoRecord>,
    pub sessions: BTreeMap<SessionId, RepoId>,
    pub packs: BTreeMap<PackNo, PackRecord>,
    pub chunks: BTreeMap<(RepoId, ChunkId), ChunkRecord>,
    pub snapshots: BTreeMap<(RepoId, SnapshotId), SnapshotRecord>,
    pub shards: BTreeMap<(NodeId, ShardId), Bytes>,
    pub down: BTreeSet<NodeId>,
    /// Nobody answers when a session is closed.
    pub closing_hangs: bool,
    pub next_ordinal: u64,
    pub clock_ms: u64,
    /// Calls to `get` that a node answered, and to nodes that are down.
    pub gets: u64,
    pub dead_gets: u64,
    /// Checkpoints committed.
    pub partial_commits: u64,
}

impl MemoryCluster {
    /// `per_region` nodes in each of `regions` regions.
    pub fn new(regions: usize, per_region: usize) -> Arc<Self> {
        let nodes = (0..regions * per_region)
            .map(|n| NodeRecord {
                id: NodeId(n as u64 + 1),
                name: format!("n{n}").parse().unwrap(),
                region: format!("test/r{}", n % regions).parse().unwrap(),
                zone: None,
                addr: format!("10.0.0.{n}:7000"),
                capacity: 1 << 40,
                state: NodeState::Up,
            })
            .collect();
        Arc::new(MemoryCluster { nodes, state: Mutex::default() })
    }

    /// Everything it holds. Never kept across an await.
    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Switches nodes off, and all others on.
    pub fn set_down(&self, nodes: impl IntoIterator<Item = NodeId>) {
        self.state().down = nodes.into_iter().collect();
    }

    /// Flips a byte of every shard a node holds.
    pub fn rot(&self, node: NodeId) {
        for ((holder, _), bytes) in self.state().shards.iter_mut().filter(|((holder, _), _)| *holder == node)
        {
            assert_eq!(*holder, node);
            let mut rotten = bytes.to_vec();
            let middle = rotten.len() / 2;
            rotten[middle] ^= 1;
            *bytes = rotten.into();
        }
    }

    /// Ids of all nodes.
    /// Too few nodes hold the last pack of data; gives its id.
    pub fn lose_a_pack(&self) -> PackId {
        let mut state = self.state();
        let data = state.packs.values_mut().rev().find(|pack| pack.kind == PackKind::Data);
        let pack = data.expect("something was stored");
        let k = pack.stripe.scheme.k();
        pack.stripe.shards.iter_mut().skip(k - 1).for_each(|shard| shard.node = None);
        pack.id
    }
    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.iter().map(|n| n.id).collect()
    }

    /// Ids of the nodes of one region.
    pub fn region(&self, region: usize) -> Vec<NodeId> {
        let label = format!("test/r{region}");
        self.nodes.iter().filter(|n| n.region.as_str() == label).map(|n| n.id).collect()
    }
}

impl State {
    fn alive(&self, session: SessionId) -> Result<RepoId> {
        self.sessions.get(&session).copied().ok_or(Error::SessionEnded(session))
    }

    fn commit_pack(&mut self, repo: RepoId, pack: PackCommit) -> PackCommitted {
        let known = self.packs.values().find(|p| p.repo == repo && p.id == pack.id).map(|p| p.no);
        let no = known.unwrap_or(PackNo(self.packs.len() as u64 + 1));
        if known.is_none() {
            let (k, m) = (pack.scheme.k() as u8, pack.scheme.m() as u8);
            let stripe = StripeRecord {
                id: StripeId::of(repo, pack.id, k, m, CODEC_RS),
                scheme: pack.scheme,
                shard_len: pack.shard_len,
                generation: 1,
                shards: pack.shards.clone(),
            };
            let record = PackRecord {
                no,
                id: pack.id,
                repo,
                kind: pack.kind,
                len: pack.len,
                chunks: pack.chunks.len() as u32,
                first_ordinal: Ordinal(self.next_ordinal),
                stripe,
            };
            self.packs.insert(no, record);
        }
        let ordinals = pack
            .chunks
            .iter()
            .map(|span| {
                let next = Ordinal(self.next_ordinal);
                let chunk = self.chunks.entry((repo, span.id)).or_insert(ChunkRecord {
                    ordinal: next,
                    pack: no,
                    offset: span.offset,
                    len: span.len,
                });
                self.next_ordinal += u64::from(chunk.ordinal == next);
                chunk.ordinal
            })
            .collect();
        PackCommitted { id: pack.id, no, ordinals }
    }
}

#[async_trait]
impl CatalogueApi for MemoryCluster {
    async fn topology(&self) -> Result<Topology> {
        let leader = self.nodes.first().map(|n| n.id);
        Ok(Topology {
            cluster: ClusterId([9; 16]),
            nodes: self.nodes.clone(),
            leader,
            applied: 1,
            slow: Vec::new(),
        })
    }
    async fn create_repository(&self, repo: RepoRecord) -> Result<RepoRecord> {
        let mut state = self.state();
        let kept = state.repos.entry(repo.name.to_string()).or_insert_with(|| repo.clone());
        if *kept == repo { Ok(repo) } else { Err(Error::RepositoryExists(repo.name.to_string())) }
    }
    async fn get_repository(&self, name: &Name) -> Result<RepoRecord> {
        let repo = self.state().repos.get(name.as_str()).cloned();
        repo.ok_or_else(|| Error::RepositoryMissing(name.to_string()))
    }
    async fn open_session(&self, id: SessionId, repo: RepoId, _: u64) -> Result<OpenedSession> {
        self.state().sessions.insert(id, repo);
        Ok(OpenedSession { id, opened: 1 })
    }
    async fn renew_session(&self, session: SessionId) -> Result<()> {
        self.state().alive(session).map(|_| ())
    }
    async fn close_session(&self, session: SessionId) -> Result<()> {
        if self.state().closing_hangs {
            std::future::pending::<()>().await;
        }
        self.state().sessions.remove(&session);
        Ok(())
    }
    async fn lookup(
        &self,
        session: SessionId,
        repo: RepoId,
        ids: &[ChunkId],
    ) -> Result<Vec<Option<Ordinal>>> {
        let state = self.state();
        state.alive(session)?;
        Ok(ids.iter().map(|id| state.chunks.get(&(repo, *id)).map(|c| c.ordinal)).collect())
    }
    async fn commit_packs(&self, session: SessionId, packs: Vec<PackCommit>) -> Result<Vec<PackCommitted>> {
        let mut state = self.state();
        let repo = state.alive(session)?;
        Ok(packs.into_iter().map(|pack| state.commit_pack(repo, pack)).collect())
    }
    async fn commit_snapshot(
        &self,
        session: SessionId,
        mut snapshot: SnapshotRecord,
        replaces: Option<SnapshotId>,
    ) -> Result<SnapshotCommitted> {
        let mut state = self.state();
        state.alive(session)?;
        let live = roaring::RoaringTreemap::deserialize_from(&snapshot.live[..]).unwrap();
        let known: BTreeSet<u64> = state.chunks.values().map(|c| c.ordinal.0).collect();
        let gone: Vec<_> = live.iter().filter(|o| !known.contains(o)).map(Ordinal).collect();
        if !gone.is_empty() {
            return Err(Error::ChunksGone(gone));
        }
        state.clock_ms += 1_000;
        snapshot.committed_ms = state.clock_ms;
        let committed_ms = snapshot.committed_ms;
        if let Some(replaced) = replaces {
            state.snapshots.remove(&(snapshot.repo, replaced));
        }
        state.partial_commits += u64::from(snapshot.label.partial);
        state.snapshots.insert((snapshot.repo, snapshot.id), snapshot);
        Ok(SnapshotCommitted { committed_ms, under_target: 0 })
    }
    async fn list_snapshots(
        &self,
        repo: RepoId,
        after: Option<SnapshotId>,
        trash: bool,
    ) -> Result<SnapshotPage> {
        if trash {
            return Ok(SnapshotPage::default());
        }
        // Pages of two, so that every listing in a test turns a page.
        let state = self.state();
        let mut rest = state.snapshots.values().filter(|s| s.repo == repo && after.is_none_or(|a| s.id > a));
        let snapshots = rest.by_ref().take(2).map(|s| SnapshotRecord { live: vec![], ..s.clone() }).collect();
        Ok(SnapshotPage { snapshots, marks: vec![], more: rest.next().is_some() })
    }
    async fn change_repository(&self, repo: RepoId, change: RepoChange) -> Result<u32> {
        let mut state = self.state();
        let snapshots = match change {
            RepoChange::Forget { snapshots, .. } => snapshots,
            RepoChange::SetKeySlots { expected, slots } => {
                let known = state.repos.values_mut().find(|known| known.id == repo);
                let known = known.ok_or_else(|| Error::RepositoryMissing("?".into()))?;
                if known.slots_hash() != expected {
                    return Err(Error::Invalid("the keys of the repository have changed".into()));
                }
                known.key_slots = slots;
                return Ok(0);
            }
            _ => return Err(Error::Protocol("a cluster in memory has neither trash nor locks".into())),
        };
        let gone = snapshots.into_iter().filter(|id| state.snapshots.remove(&(repo, *id)).is_some());
        Ok(gone.count() as u32)
    }
    async fn settings(&self, _: RepoId) -> Result<(RepoSettings, u64)> {
        Ok((RepoSettings::default(), self.state().clock_ms))
    }
    async fn collect_garbage(&self, _: RepoId, _: bool) -> Result<GarbageReport> {
        Err(Error::Protocol("a cluster in memory keeps everything".into()))
    }
    async fn locate(&self, repo: RepoId, ids: &[ChunkId]) -> Result<Located> {
        let state = self.state();
        let mut located = Located::default();
        for id in ids {
            let chunk = state.chunks.get(&(repo, *id)).copied();
            located.places.push(chunk.map(|c| ChunkPlace {
                ordinal: c.ordinal,
                pack: c.pack,
                offset: c.offset,
                len: c.len,
            }));
            if let Some(pack) = chunk.and_then(|c| state.packs.get(&c.pack)) {
                located.packs.insert(pack.no, pack.clone());
            }
        }
        Ok(located)
    }
    async fn list_packs(&self, repo: RepoId, from: PackNo) -> Result<PackPage> {
        let state = self.state();
        let mut rest = state.packs.range(from..).map(|(_, p)| p).filter(|p| p.repo == repo);
        let packs = rest.by_ref().take(3).cloned().collect();
        Ok(PackPage { packs, next: rest.next().map(|p| p.no) })
    }
    async fn status(&self) -> Result<ClusterStatus> {
        Err(Error::Protocol("a cluster in memory has no status".into()))
    }
}

#[async_trait]
impl ShardIo for MemoryCluster {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        let mut state = self.state();
        if state.down.contains(&node) {
            return Err(ShardError::Unreachable(node, "switched off".into()));
        }
        let (hash, _) = hash_shard(shard.header.id, &shard.payload);
        if hash != shard.header.hash {
            return Err(ShardError::Corrupt(node, shard.header.id, "hash differs".into()));
        }
        state.shards.insert((node, shard.header.id), shard.payload);
        Ok(Receipt { node, shard: shard.header.id, hash })
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        let bytes = self.good_shard(node, shard)?;
        let cut = |r: &ShardRange| bytes.slice(r.offset as usize..(r.offset + r.len) as usize);
        Ok(ranges.iter().map(cut).collect())
    }
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        self.good_shard(node, shard).map(|_| ())
    }
}

impl MemoryCluster {
    fn good_shard(&self, node: NodeId, shard: ShardRef) -> Result<Bytes, ShardError> {
        let mut state = self.state();
        if state.down.contains(&node) {
            state.dead_gets += 1;
            return Err(ShardError::Unreachable(node, "switched off".into()));
        }
        state.gets += 1;
        let bytes = state.shards.get(&(node, shard.id)).cloned();
        let bytes = bytes.ok_or(ShardError::Missing(node, shard.id))?;
        if hash_shard(shard.id, &bytes).0 == shard.hash {
            Ok(bytes)
        } else {
            Err(ShardError::Corrupt(node, shard.id, "hash differs".into()))
        }
    }
}

/// Stores chunks and snapshots in a cluster by hand, so that readers can be tested without a backup, and with trees no
/// backup would make.
pub struct Planter {
    pub cluster: Arc<MemoryCluster>,
    pub master: MasterKey,
    pub keys: RepoKeys,
    pub scheme: Scheme,
    pack_bytes: usize,
    session: SessionId,
    packs: BTreeMap<u8, PackBuilder>,
    sealed: BTreeSet<ChunkId>,
    ordinals: roaring::RoaringTreemap,
    salt: u64,
}

impl Planter {
    /// A repository `r` in 4+2 over 6 nodes in 3 regions, in packs of about this size, with password `secret`.
    pub async fn new(pack_bytes: usize) -> Self {
        let cluster = MemoryCluster::new(3, 2);
        let master = MasterKey::new(&real::OsEntropy);
        let id = RepoId([7; 16]);
        let keys = master.keys(id);
        let note = SlotNote { user: "tester".into(), host: "bench".into(), created_ms: 1 };
        let (secret, entropy) = (Secret::passphrase("secret"), &real::OsEntropy);
        let slot = wrap(id, &master, &secret, KdfParams::CHEAPEST, &note, entropy).unwrap();
        let record = RepoRecord {
            id,
            name: "r".parse().unwrap(),
            policy: Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 },
            sealed_config: RepoConfig::default().seal(&keys, &real::OsEntropy),
            key_slots: vec![slot],
        };
        cluster.create_repository(record).await.unwrap();
        let session = cluster.open_session(SessionId([1; 16]), id, 0).await.unwrap().id;
        Planter {
            cluster,
            master,
            keys,
            scheme: Scheme::new(4, 2, 2).unwrap(),
            pack_bytes,
            session,
            packs: BTreeMap::new(),
            sealed: BTreeSet::new(),
            ordinals: roaring::RoaringTreemap::new(),
            salt: 0,
        }
    }

    /// The repository, opened as a user would.
    pub async fn repository(&self) -> crate::client::Repository {
        let client = crate::client::Client::from_parts(host(), self.cluster.clone(), self.cluster.clone());
        client.open_repository("r", "secret").await.unwrap()
    }

    /// Stores one chunk under its true name.
    pub async fn chunk(&mut self, kind: PackKind, plain: &[u8]) -> ChunkId {
        let id = self.keys.chunk_id(kind, plain);
        self.chunk_as(kind, id, plain).await;
        id
    }

    /// Stores one chunk under any name.
    pub async fn chunk_as(&mut self, kind: PackKind, id: ChunkId, plain: &[u8]) {
        if !self.sealed.insert(id) {
            return;
        }
        self.salt += 1;
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&self.salt.to_le_bytes());
        let sealed = Sealer::new(Compression::Auto).seal(&self.keys, kind, &id, plain, salt);
        let slot = kind as u8;
        if self.packs.get(&slot).is_some_and(|pack| !pack.fits(sealed.len())) {
            self.flush(slot).await;
        }
        let fresh = || PackBuilder::new(kind, self.pack_bytes);
        self.packs.entry(slot).or_insert_with(fresh).add(id, &sealed);
    }

    async fn flush(&mut self, slot: u8) {
        let Some(pack) = self.packs.remove(&slot) else { return };
        let pack = pack.close();
        let repo = self.keys.repo();
        let (k, m) = (self.scheme.k() as u8, self.scheme.m() as u8);
        let stripe = StripeId::of(repo, pack.id, k, m, CODEC_RS);
        let mut shards = Vec::new();
        for (index, payload) in
            Codec::new(self.scheme).encode_pack(pack.bytes.clone()).into_iter().enumerate()
        {
            let id = ShardId { stripe, index: index as u8 };
            let node = self.cluster.nodes[(index + pack.id.0[0] as usize) % self.cluster.nodes.len()].id;
            shards.push(ShardRecord { node: Some(node), hash: hash_shard(id, &payload).0 });
            self.cluster.state().shards.insert((node, id), payload);
        }
        let commit = PackCommit {
            id: pack.id,
            kind: pack.kind,
            len: pack.bytes.len() as u64,
            chunks: pack.chunks,
            scheme: self.scheme,
            shard_len: self.scheme.shard_len(pack.bytes.len() as u64),
            shards,
        };
        let done = self.cluster.commit_packs(self.session, vec![commit]).await.unwrap();
        self.ordinals.extend(done.into_iter().flat_map(|pack| pack.ordinals).map(|o| o.0));
    }

    /// Stores the nodes a builder made.
    pub async fn nodes(&mut self, made: Vec<NewChunk>) {
        for node in made {
            self.chunk_as(node.kind, node.id, &node.plain).await;
        }
    }

    /// Stores a file's contents, cut every `cut` bytes.
    pub async fn content(&mut self, bytes: &[u8], cut: usize) -> Content {
        let (mut builder, mut made) = (ContentBuilder::new(self.keys.clone()), Vec::new());
        for piece in bytes.chunks(cut) {
            let id = self.chunk(PackKind::Data, piece).await;
            builder.push(ContentChunk { id, len: piece.len() as u32 }, &mut made);
        }
        let content = builder.finish(&mut made);
        self.nodes(made).await;
        content
    }

    /// Stores a directory; entries may come in any order.
    pub async fn dir(&mut self, mut entries: Vec<Entry>) -> ChunkId {
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let (mut builder, mut made) = (DirBuilder::new(self.keys.clone()), Vec::new());
        entries.iter().for_each(|entry| builder.push(entry, &mut made).unwrap());
        let root = builder.finish(&mut made).id;
        self.nodes(made).await;
        root
    }

    /// Stores what waits for its pack to fill.
    pub async fn flush_all(&mut self) {
        for slot in self.packs.keys().copied().collect::<Vec<_>>() {
            self.flush(slot).await;
        }
    }

    /// Commits a snapshot with this root directory.
    pub async fn snapshot(&mut self, first: u8, host: &str, root: ChunkId) -> SnapshotId {
        self.flush_all().await;
        let id = SnapshotId([first; 32]);
        let info = SnapshotInfo {
            time_ms: 0,
            utc_offset_min: None,
            host: host.into(),
            user: "u".into(),
            paths: vec![b"/".to_vec()],
            tags: vec![],
            root,
            kind: SnapshotKind::Full,
            parent: None,
            base: None,
            program: "test".into(),
            scan_start_ms: 0,
            scan_end_ms: 0,
            stats: SnapshotStats::default(),
            unreadable: vec![],
        };
        let mut live = Vec::new();
        self.ordinals.serialize_into(&mut live).unwrap();
        let record = SnapshotRecord {
            id,
            repo: self.keys.repo(),
            kind: SnapshotKind::Full,
            parent: None,
            group: [0; 16],
            committed_ms: 0,
            label: SnapshotLabel::default(),
            sealed: info.seal(&self.keys, &id, &real::OsEntropy).unwrap(),
            live,
        };
        self.cluster.commit_snapshot(self.session, record, None).await.unwrap();
        id
    }
}

/// An entry with plain attributes.
pub fn entry(name: &[u8], node: Node) -> Entry {
    let mode = if matches!(node, Node::Dir { .. }) { 0o755 } else { 0o644 };
    let time = FileTime { secs: 1_700_000_000, nanos: 123_456_789 };
    // Our own, so that the test needs no privilege.
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let meta = Meta { mode, uid, gid, mtime: time, ctime: time, nlink: 1, ..Meta::default() };
    Entry { name: name.to_vec(), node, meta, inconsistent: false }
}
