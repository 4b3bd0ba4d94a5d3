//! A cluster of real nodes in this process: real disks and stores in a temporary directory, real TCP and TLS on loopback.
#![expect(clippy::disallowed_methods, reason = "a test owns its tasks and looks at files")]

use super::slow::Delay;
use bytes::Bytes;
use farshore_core::catalogue::{ChunkSpan, PackCommit, PackKind, PackRecord, RepoRecord, ShardRecord};
use farshore_core::erasure::{Codec, Scheme};
use farshore_core::host::real::{OsEntropy, Processors, SystemClock, TcpNet};
use farshore_core::host::task::Scope;
use farshore_core::host::{Entropy, Host, WallClock};
use farshore_core::id::{ChunkId, ClusterId, NodeId, PackId, RepoId, SessionId};
use farshore_core::peer::{ShardIo, ShardPut};
use farshore_core::policy::Policy;
use farshore_core::shard::{PackInfo, ShardRange, hash_shard};
use farshore_core::topology::NodeState;
use farshore_node::config::{Config, CredentialFiles, Seed, Timing};
use farshore_node::disk::RealDisk;
use farshore_node::kv::{KvCache, RealKv};
use farshore_node::raft::RaftTuning;
use farshore_node::{Node, StartError};
use farshore_proto::channel;
use farshore_proto::peers::Peers;
use farshore_proto::pki::{Authority, IssuedNode, Validity};
use farshore_proto::shard_client::GrpcShards;
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Credentials, Expect, Tls};
use farshore_proto::wire::admin_client::AdminClient;
use farshore_proto::wire::catalogue_client::CatalogueClient;
use farshore_proto::wire::raft_client::RaftClient;
use farshore_proto::wire::{self, StatusReply};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tonic::transport::Channel;

/// Two data shards and one parity, each in a region of its own.
pub fn scheme() -> Scheme {
    Scheme::new(2, 1, 1).unwrap()
}

pub struct Cluster {
    authority: Authority,
    root: tempfile::TempDir,
    pub slots: Vec<Slot>,
}

/// A node that may be running.
pub struct Slot {
    pub identity: IssuedNode,
    pub addr: String,
    /// Bytes it offers; 0 makes it a witness.
    pub capacity: u64,
    region: &'static str,
    /// How much longer its disk takes.
    pub delay: Delay,
    running: Option<(Scope, Node)>,
}

impl Cluster {
    /// Identities and addresses for one node per region named.
    pub fn new(regions: &[&'static str]) -> Self {
        let authority = Authority::create(ClusterId([5; 16]), validity()).unwrap();
        let slots = regions.iter().map(|region| Slot {
            identity: authority.issue_node(validity()).unwrap(),
            addr: free_addr(),
            capacity: 1 << 30,
            region,
            delay: Delay::default(),
            running: None,
        });
        let slots = slots.collect();
        Cluster { authority, root: tempfile::tempdir().unwrap(), slots }
    }

    pub fn id(&self, at: usize) -> NodeId {
        self.slots[at].identity.id
    }

    pub fn node(&self, at: usize) -> &Node {
        &self.slots[at].running.as_ref().expect("this node is running").1
    }

    pub fn dir(&self, at: usize) -> PathBuf {
        self.root.path().join(format!("n{at}"))
    }

    fn seeds(&self, at: &[usize]) -> Vec<Seed> {
        at.iter().map(|i| Seed { id: self.id(*i), addr: self.slots[*i].addr.clone() }).collect()
    }

    /// Starts a node; `first` makes it form the cluster with these voters.
    pub async fn start(&mut self, at: usize, first: Option<&[usize]>) {
        let dir = self.dir(at);
        let bootstrap = first.map(|voters| self.seeds(voters));
        let running = self.try_start(at, &dir, bootstrap).await.unwrap();
        self.slots[at].running = Some(running);
    }

    /// Starts the identity of one slot on any directory.
    pub async fn try_start(
        &self,
        at: usize,
        dir: &Path,
        bootstrap: Option<Vec<Seed>>,
    ) -> Result<(Scope, Node), StartError> {
        self.launch(at, dir, Config { bootstrap, ..self.config(at) }).await
    }

    /// Starts the identity of one slot on any directory, knowing nobody.
    pub async fn start_alone(&self, at: usize, dir: &Path) -> Result<(Scope, Node), StartError> {
        self.launch(at, dir, Config { peers: Vec::new(), ..self.config(at) }).await
    }

    /// Puts a node that was started elsewhere into its slot.
    pub fn put(&mut self, at: usize, running: (Scope, Node)) {
        self.slots[at].running = Some(running);
    }

    async fn launch(&self, at: usize, dir: &Path, config: Config) -> Result<(Scope, Node), StartError> {
        let credentials =
            self.credentials(&self.slots[at].identity.cert_pem, &self.slots[at].identity.key_pem);
        let host = host(dir, &self.slots[at].delay);
        let scope = Scope::new(at as u64 + 1);
        let starting = scope.spawn(at as u64, async move { Node::start(host, config, credentials).await });
        Ok((scope, starting.await.unwrap()?))
    }

    /// Ends a node as a crash would: every task at once, nothing said to anybody.
    pub fn crash(&mut self, at: usize) {
        let (scope, node) = self.slots[at].running.take().unwrap();
        scope.kill();
        drop(node);
    }

    /// Gives a machine another address.
    pub fn move_away(&mut self, at: usize) {
        self.slots[at].addr = free_addr();
    }

    /// Ends a node in order.
    pub async fn stop(&mut self, at: usize) {
        let (scope, node) = self.slots[at].running.take().unwrap();
        node.stop().await;
        scope.kill();
    }

    fn config(&self, at: usize) -> Config {
        let others: Vec<usize> = (0..self.slots.len()).filter(|i| *i != at).collect();
        Config {
            cluster: self.authority.cluster(),
            name: format!("n{at}").parse().unwrap(),
            region: self.slots[at].region.parse().unwrap(),
            zone: None,
            listen: self.slots[at].addr.clone(),
            advertise: None,
            data_dir: self.dir(at),
            feature_level_max: farshore_core::level::FEATURE_LEVEL,
            capacity: self.slots[at].capacity,
            bucket: None,
            credentials: CredentialFiles { ca: PathBuf::new(), cert: PathBuf::new(), key: PathBuf::new() },
            peers: self.seeds(&others),
            timing: Timing {
                heartbeat: Duration::from_millis(150),
                suspect_after: Duration::from_millis(900),
                down_after: Duration::from_millis(1_500),
                grace: Duration::from_millis(1_000),
                maintain_every: Duration::from_millis(200),
                collect_every: Duration::from_millis(500),
                session_lease: Duration::from_secs(6),
                // These tests count shards.
                export_every: Duration::ZERO,
                ..Timing::default()
            },
            raft: RaftTuning {
                heartbeat_ms: 150,
                election_min_ms: 500,
                election_max_ms: 1_000,
                ..RaftTuning::default()
            },
            cache: KvCache::default(),
            bootstrap: None,
        }
    }

    fn credentials(&self, cert_pem: &str, key_pem: &str) -> Credentials {
        Credentials {
            cluster: self.authority.cluster(),
            ca_pem: self.authority.ca_cert_pem().into(),
            cert_pem: cert_pem.into(),
            key_pem: key_pem.into(),
        }
    }

    /// A client called `name`, talking to node `at`.
    pub fn client(&self, name: &str, at: usize) -> Client {
        let issued = self.authority.issue_client(&name.parse().unwrap(), validity()).unwrap();
        let tls =
            Tls::new(&self.credentials(&issued.cert_pem, &issued.key_pem), Arc::new(SystemClock)).unwrap();
        let tls = Arc::new(tls);
        let peers = Arc::new(Peers::new(Arc::new(TcpNet), tls.clone()));
        for slot in &self.slots {
            peers.set(slot.identity.id, &slot.addr);
        }
        let way = channel::connect(Arc::new(TcpNet), tls, self.slots[at].addr.clone(), Expect::AnyNode);
        Client {
            cluster: self.authority.cluster(),
            catalogue: channel::catalogue(way.clone()),
            raft: channel::raft(way.clone()),
            admin: channel::admin(way),
            shards: Arc::new(GrpcShards::new(peers)),
        }
    }
}

fn validity() -> Validity {
    Validity::ten_years(SystemClock.now_ms())
}

fn free_addr() -> String {
    // Below the ports of outgoing connections: one might take the port of a node that is not running at the moment.
    let drawn = || 12_000 + OsEntropy.below(20_000) as u16;
    let free = |port| std::net::TcpListener::bind(("127.0.0.1", port)).ok();
    let listener = (0..200).find_map(|_| free(drawn())).unwrap();
    listener.local_addr().unwrap().to_string()
}

fn host(dir: &Path, delay: &Delay) -> Host {
    Host {
        disk: delay.on(RealDisk::new(dir)),
        kv: Arc::new(RealKv::new(dir)),
        net: Arc::new(TcpNet),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
        compute: Arc::new(Processors::new()),
    }
}

/// What a backup client does, without the backup.
#[derive(Clone)]
pub struct Client {
    cluster: ClusterId,
    pub catalogue: CatalogueClient<Channel>,
    pub admin: AdminClient<Channel>,
    pub raft: RaftClient<Channel>,
    pub shards: Arc<GrpcShards>,
}

impl Client {
    /// A second caller on the same connections.
    pub fn again(&self) -> Client {
        self.clone()
    }

    pub async fn create_repo(&mut self) -> RepoId {
        let repo = RepoRecord {
            id: RepoId([7; 16]),
            name: "tenant".parse().unwrap(),
            policy: Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 },
            sealed_config: b"sealed".to_vec(),
            key_slots: vec![b"slot".to_vec()],
        };
        let id = repo.id;
        self.catalogue
            .create_repository(wire::CreateRepositoryRequest { repo: Some(repo.into()) })
            .await
            .unwrap();
        id
    }

    pub async fn open_session(&mut self, repo: RepoId, session: SessionId) {
        let request = wire::OpenSessionRequest {
            session: raw(session.as_bytes()),
            repo: raw(repo.as_bytes()),
            seen: 0,
        };
        assert!(self.catalogue.open_session(request).await.unwrap().into_inner().opened > 0);
    }

    /// Codes a pack, uploads its shards to these nodes, and returns what must be committed.
    pub async fn upload(&self, repo: RepoId, session: SessionId, pack: &Bytes, to: &[NodeId]) -> PackCommit {
        let info = PackInfo {
            cluster: self.cluster,
            repo,
            pack: PackId::of(pack),
            pack_len: pack.len() as u64,
            scheme: scheme(),
        };
        let mut shards = Vec::new();
        for ((index, payload), node) in (0u8..).zip(Codec::new(scheme()).encode_pack(pack.clone())).zip(to) {
            let (hash, _) = hash_shard(info.shard(index), &payload);
            let put = ShardPut { header: info.header(index, hash), payload, session: Some(session) };
            let receipt = self.shards.put(*node, put).await.unwrap();
            shards.push(ShardRecord { node: Some(receipt.node), hash: receipt.hash });
        }
        let half = pack.len() as u32 / 2;
        let chunk = |id: u8, offset| ChunkSpan { id: ChunkId([id; 32]), offset, len: half };
        PackCommit {
            id: info.pack,
            kind: PackKind::Data,
            len: info.pack_len,
            chunks: vec![chunk(pack[0], 0), chunk(pack[0] + 100, half)],
            scheme: scheme(),
            shard_len: scheme().shard_len(info.pack_len),
            shards,
        }
    }

    /// Whether a session is still open, by way of a lookup under it.
    pub async fn is_open(&mut self, repo: RepoId, session: SessionId) -> bool {
        let ids = vec![raw(&[0; 32])];
        let lookup =
            wire::LookupChunksRequest { session: raw(session.as_bytes()), repo: raw(repo.as_bytes()), ids };
        match self.catalogue.lookup_chunks(lookup).await.map_err(ApiError::from_status) {
            Ok(_) => true,
            Err(ApiError::NoSession(_)) => false,
            Err(other) => panic!("{other}"),
        }
    }

    pub async fn commit(&mut self, session: SessionId, packs: Vec<PackCommit>) -> Vec<u64> {
        let packs = packs.into_iter().map(Into::into).collect();
        let request = wire::CommitPacksRequest { session: raw(session.as_bytes()), packs };
        let reply = self.catalogue.commit_packs(request).await.unwrap().into_inner();
        reply.packs.into_iter().flat_map(|pack| pack.ordinals).collect()
    }

    /// The pack as it can be had now: located, k shards fetched and verified, decoded.
    pub async fn read_pack(&mut self, repo: RepoId, chunk: u8) -> Option<Bytes> {
        let pack = self.locate(repo, chunk).await?;
        let mut present = Vec::new();
        for (index, shard) in (0u8..).zip(&pack.stripe.shards) {
            let Some(node) = shard.node else { continue };
            let wanted = pack.stripe.shard(repo, index).unwrap();
            let whole = [ShardRange { offset: 0, len: pack.stripe.shard_len }];
            if let Ok(mut got) = self.shards.get(node, wanted, &whole).await {
                present.push((index, got.remove(0)));
            }
        }
        let k: Vec<u8> = (0..scheme().k() as u8).collect();
        let data = Codec::new(scheme()).reconstruct(&present, &k).ok()?;
        let mut bytes = data.concat();
        bytes.truncate(pack.len as usize);
        assert_eq!(PackId::of(&bytes), pack.id);
        Some(bytes.into())
    }

    pub async fn locate(&mut self, repo: RepoId, chunk: u8) -> Option<PackRecord> {
        let request = wire::LocateChunksRequest { repo: raw(repo.as_bytes()), ids: vec![raw(&[chunk; 32])] };
        let reply = self.catalogue.locate_chunks(request).await.ok()?.into_inner();
        assert!(reply.places[0].found);
        Some(reply.packs.into_iter().next().unwrap().try_into().unwrap())
    }

    pub async fn status(&mut self) -> StatusReply {
        self.admin.status(wire::StatusRequest {}).await.unwrap().into_inner()
    }

    pub async fn scrub(&mut self) -> wire::ScrubProgress {
        let mut progress = self.admin.scrub(wire::ScrubRequest {}).await.unwrap().into_inner();
        let mut last = wire::ScrubProgress::default();
        while let Some(next) = progress.message().await.unwrap() {
            last = next;
        }
        assert!(last.done);
        last
    }
}

pub fn raw(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(bytes)
}

pub fn pack_bytes(tag: u8, len: usize) -> Bytes {
    let mut bytes: Vec<u8> = (0..len as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    bytes[0] = tag;
    bytes.into()
}

/// The state of a node as the status shows it.
pub fn state_of(status: &StatusReply, node: NodeId) -> NodeState {
    let found = status.nodes.iter().filter_map(|n| n.node.as_ref()).find(|n| n.id == node.0).unwrap();
    NodeState::ALL.into_iter().find(|s| s.word() == found.state).unwrap()
}

/// Asks until the answer is yes.
pub async fn eventually<F: Future<Output = bool>>(seconds: u64, what: &str, mut ask: impl FnMut() -> F) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !ask().await {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Where a node keeps a shard.
pub fn shard_file(dir: &Path, pack: &PackRecord, index: u8) -> PathBuf {
    let stripe = pack.stripe.id;
    dir.join(format!("shards/{:02x}/{stripe}-{index}.shard", stripe.0[0]))
}

/// The only shard that a node keeps.
pub fn only_shard_file(dir: &Path) -> PathBuf {
    let dirs = std::fs::read_dir(dir.join("shards")).unwrap().map(|entry| entry.unwrap().path());
    let files = dirs.filter(|path| path.is_dir()).flat_map(|dir| std::fs::read_dir(dir).unwrap());
    let files = files
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "shard"));
    let files: Vec<PathBuf> = files.collect();
    assert_eq!(files.len(), 1);
    files.into_iter().next().unwrap()
}

/// Flips one byte in the middle of a file.
pub fn flip_byte(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// Removes a file behind its node's back.
pub fn remove_file(file: &Path) {
    std::fs::remove_file(file).unwrap();
}
