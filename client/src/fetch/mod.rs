//! Reading chunks by their ids: locate → plan → gather → open. Backup (a parent's trees), listing, restore and check
//! all read through here; nothing else in this crate asks a node for shard bytes, save the deep check.

pub mod avoid;
pub mod cost;
pub mod estimate;
pub mod plan;
pub mod trees;
pub mod watch;

pub use avoid::Avoid;
pub use cost::Costs;
pub use plan::{FetchPlan, PackFetch};
pub use trees::TreeReader;
pub use watch::{Met, Watch};

use crate::api::{CatalogueApi, Located};
use crate::crypto::RepoKeys;
use crate::error::{Error, Result};
use crate::format::{Opener, Spare};
use crate::keyring::KeyRing;
use bytes::Bytes;
use farshore_core::catalogue::{PackKind, PackRecord};
use farshore_core::gather::{PackRange, gather_ranges};
use farshore_core::health::{Doubt, NodeHealth};
use farshore_core::host::task::Owned;
use farshore_core::host::{Compute, Host, compute};
use farshore_core::id::{ChunkId, NodeId};
use farshore_core::limits::{FETCHES_IN_FLIGHT, FETCHING_BYTES_MAX, LOOKUP_CHUNKS_MAX};
use farshore_core::peer::ShardIo;
use futures_util::StreamExt;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc};

/// A chunk that was asked for, or why it could not be had. Several chunks may share one reason.
pub type Fetched = (ChunkId, Result<Bytes, Arc<Error>>);

/// Reads the chunks of one repository. Shared behind an `Arc`.
pub struct ChunkReader {
    host: Host,
    api: Arc<dyn CatalogueApi>,
    shards: Arc<dyn ShardIo>,
    keys: RepoKeys,
    /// Whom to ask for later keys.
    ring: Option<Arc<KeyRing>>,
    health: Arc<NodeHealth>,
    costs: Arc<Costs>,
    openers: Arc<Spare<Opener>>,
}

impl ChunkReader {
    /// A reader for the repository of `keys`. `health` remembers which nodes did not answer, so that a dead region
    /// costs one timeout and not one per read.
    pub fn new(
        host: Host,
        api: Arc<dyn CatalogueApi>,
        shards: Arc<dyn ShardIo>,
        keys: RepoKeys,
        health: Arc<NodeHealth>,
    ) -> Self {
        let (costs, openers) = (Arc::default(), Arc::default());
        ChunkReader { host, api, shards, keys, ring: None, health, costs, openers }
    }

    /// The same, and learns later keys when it meets what is sealed with them.
    #[must_use]
    pub fn learning(self, ring: Arc<KeyRing>) -> Self {
        ChunkReader { ring: Some(ring), ..self }
    }

    /// Whether what failed may succeed now, because its keys were learnt since.
    pub(crate) async fn learn_for(&self, error: &Error) -> bool {
        match &self.ring {
            Some(ring) => ring.learn_for(error).await,
            None => false,
        }
    }

    /// The same, and reads where it costs least.
    #[must_use]
    pub fn at(self, costs: Arc<Costs>) -> Self {
        ChunkReader { costs, ..self }
    }

    /// The keys of the repository it reads.
    pub fn keys(&self) -> &RepoKeys {
        &self.keys
    }

    /// Where its work is done that takes processors.
    pub fn processors(&self) -> &dyn Compute {
        self.host.compute.as_ref()
    }

    /// Plans how to read these chunks; each is read once however often it is named.
    pub async fn plan(&self, ids: &[ChunkId]) -> Result<FetchPlan> {
        let mut distinct = ids.to_vec();
        let mut seen = std::collections::BTreeSet::new();
        distinct.retain(|id| seen.insert(*id));
        let mut located = Located::default();
        for batch in distinct.chunks(LOOKUP_CHUNKS_MAX) {
            let mut page = self.api.locate(self.keys.repo(), batch).await?;
            located.places.append(&mut page.places);
            located.packs.append(&mut page.packs);
        }
        Ok(FetchPlan::new(&distinct, located))
    }

    /// Adds what a plan would read from each node as things stand, and says how many packs cannot be read.
    pub fn estimate(&self, plan: &FetchPlan, sum: &mut BTreeMap<NodeId, u64>) -> u64 {
        let cost = |node: NodeId| {
            let gone = self.costs.avoids(node) || self.health.doubt(node) == Doubt::Unreachable;
            (!gone).then(|| self.costs.of(node))
        };
        estimate::add(plan, cost, sum)
    }

    /// Reads everything a plan names, several packs at a time, in no certain order. Chunks the plan misses are not
    /// mentioned. Dropping the receiver ends the reading.
    pub fn start(self: &Arc<Self>, kind: PackKind, plan: FetchPlan) -> Reading {
        let (send, receive) = mpsc::channel(1);
        let reader = self.clone();
        let task = Owned::spawn(async move {
            let FetchPlan { packs, fetches, .. } = plan;
            let room = Arc::new(Semaphore::new((FETCHING_BYTES_MAX >> 10) as usize));
            let mut reads = futures_util::stream::iter(fetches)
                .map(|fetch| {
                    let pack = packs.get(&fetch.pack).cloned();
                    let (reader, room) = (reader.clone(), room.clone());
                    async move {
                        let kib = fetch.bytes().div_ceil(1 << 10).clamp(1, FETCHING_BYTES_MAX >> 10);
                        let _place =
                            room.acquire_many(kib as u32).await.expect("nobody closes this semaphore");
                        reader.fetch(kind, pack, fetch).await
                    }
                })
                .buffer_unordered(FETCHES_IN_FLIGHT);
            while let Some(fetched) = reads.next().await {
                if send.send(fetched).await.is_err() {
                    return;
                }
            }
        });
        Reading { receive, _task: task }
    }

    /// Reads a few chunks and waits for all of them.
    pub async fn read(self: &Arc<Self>, kind: PackKind, ids: &[ChunkId]) -> Result<Vec<Fetched>> {
        let plan = self.plan(ids).await?;
        let mut all: Vec<Fetched> = plan.missing.iter().map(|id| (*id, Err(Arc::new(unknown(id))))).collect();
        let mut reading = self.start(kind, plan);
        while let Some(mut fetched) = reading.next().await {
            all.append(&mut fetched);
        }
        Ok(all)
    }

    /// Reads one batch. If that fails the places are asked for again, once: repair may have moved a shard since, even to
    /// a node that joined after we did, whose address comes with the topology.
    async fn fetch(&self, kind: PackKind, pack: Option<PackRecord>, fetch: PackFetch) -> Vec<Fetched> {
        let ids: Vec<ChunkId> = fetch.chunks().map(|c| c.id).collect();
        let first = match pack {
            Some(pack) => self.fetch_once(kind, &pack, &fetch).await,
            None => Err(Error::Protocol("a chunk lies in a pack that is not described".into())),
        };
        let Err(error) = first else { return first.unwrap_or_default() };
        tracing::debug!(%error, "read again with fresh places");
        let fresh = match self.api.topology().await {
            Ok(_) => self.plan(&ids).await,
            Err(error) => Err(error),
        };
        match fresh {
            Ok(plan) => self.fetch_again(kind, plan).await,
            Err(error) => failed(ids, error),
        }
    }

    async fn fetch_again(&self, kind: PackKind, plan: FetchPlan) -> Vec<Fetched> {
        let mut all: Vec<Fetched> = plan.missing.iter().map(|id| (*id, Err(Arc::new(unknown(id))))).collect();
        for fetch in &plan.fetches {
            let Some(pack) = plan.packs.get(&fetch.pack) else { continue };
            all.extend(match self.fetch_once(kind, pack, fetch).await {
                Ok(fetched) => fetched,
                Err(error) => failed(fetch.chunks().map(|c| c.id).collect(), error),
            });
        }
        all
    }

    async fn fetch_once(&self, kind: PackKind, pack: &PackRecord, fetch: &PackFetch) -> Result<Vec<Fetched>> {
        let ranges: Vec<_> =
            fetch.ranges.iter().map(|r| PackRange { offset: r.offset, len: r.len }).collect();
        let bytes = self.gather(pack, &ranges).await?;
        let opened = self.open(kind, fetch, &bytes).await;
        let sealed_later = |error: &&Arc<Error>| matches!(***error, Error::LaterKeys { .. });
        let later = opened.iter().filter_map(|(_, opened)| opened.as_ref().err()).find(sealed_later).cloned();
        match later {
            Some(error) if self.learn_for(&error).await => Ok(self.open(kind, fetch, &bytes).await),
            _ => Ok(opened),
        }
    }

    async fn open(&self, kind: PackKind, fetch: &PackFetch, bytes: &[Bytes]) -> Vec<Fetched> {
        let (keys, openers) = (self.keys.clone(), self.openers.clone());
        let (fetch, bytes) = (fetch.clone(), bytes.to_vec());
        let open_all =
            move || openers.lend(Opener::new, |opener| open_all(opener, &keys, kind, &fetch, &bytes));
        compute(self.host.compute.as_ref(), open_all).await
    }

    /// Byte ranges of a pack, verified against the hashes in the catalogue.
    pub(crate) async fn gather(&self, pack: &PackRecord, ranges: &[PackRange]) -> Result<Vec<Bytes>> {
        let stripe = &pack.stripe;
        // Among equals data shards come first: they need no decoding.
        let prefer = |node: NodeId| self.costs.of(node);
        let io = self.shards.as_ref();
        gather_ranges(io, stripe, pack.repo, pack.len, ranges, &prefer, &self.health)
            .await
            .map(|gathered| gathered.bytes)
            .map_err(|e| Error::Unreadable { pack: pack.id, why: e.to_string() })
    }
}

/// Reading under way; ends when dropped.
pub struct Reading {
    receive: mpsc::Receiver<Vec<Fetched>>,
    _task: Owned,
}

impl Reading {
    /// The next chunks that came in; `None` once all have. Cancel-safe.
    pub async fn next(&mut self) -> Option<Vec<Fetched>> {
        self.receive.recv().await
    }
}

fn open_all(
    opener: &mut Opener,
    keys: &RepoKeys,
    kind: PackKind,
    fetch: &PackFetch,
    bytes: &[Bytes],
) -> Vec<Fetched> {
    let in_range = |(range, bytes): (&plan::FetchRange, &Bytes)| -> Vec<Fetched> {
        let open = |chunk: &plan::PlannedChunk| {
            let from = (chunk.offset - range.offset) as usize;
            let sealed = bytes.get(from..from + chunk.len as usize);
            let sealed = sealed.ok_or_else(|| Error::corrupt("pack", "a range came back short"));
            (chunk.id, sealed.and_then(|sealed| opener.open(keys, kind, &chunk.id, sealed)).map_err(Arc::new))
        };
        range.chunks.iter().map(open).collect()
    };
    fetch.ranges.iter().zip(bytes).flat_map(in_range).collect()
}

fn failed(ids: Vec<ChunkId>, error: Error) -> Vec<Fetched> {
    let error = Arc::new(error);
    ids.into_iter().map(|id| (id, Err(error.clone()))).collect()
}

/// What a chunk that the catalogue does not know means.
pub fn unknown(id: &ChunkId) -> Error {
    Error::corrupt(format!("chunk {}", id.short()), "the catalogue does not know it")
}
