//! Making a shard on the node that shall keep it. Its own region's shards are read one by one; every other region sends
//! one sum, made by a relay there (`farshore_core::gather::plan_sums`). A reader checks each shard it reads, and the
//! builder checks the whole: nobody vouches for a sum. If the whole is wrong the shards are read one by one, which shows who
//! lied; if a source fails, any k others do.

use super::foreground::Foreground;
use crate::store::{ShardStore, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::erasure::mul_add;
use farshore_core::gather::{BuildOrder, Built, GatherError, gather_shard};
use farshore_core::health::NodeHealth;
use farshore_core::host::{Compute, compute};
use farshore_core::id::{ClusterId, NodeId, ShardHash};
use farshore_core::limits::{BUILDS_IN_FLIGHT_MAX, FRAME_BYTES, SUM_PIECE_BYTES, SUM_PIECES_AHEAD};
use farshore_core::peer::{Receipt, ShardError, ShardIo, ShardPut, ShardRef, SumIo, SumPieces, Term};
use farshore_core::shard::{PackInfo, ShardHeader, ShardRange, ShardSums, SumBuilder};
use farshore_core::topology::Region;
use futures_util::future::try_join_all;
use futures_util::stream::{self, StreamExt};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Where a node is, if it is known.
pub type RegionOf<'a> = &'a (dyn Fn(NodeId) -> Option<Region> + Send + Sync);

/// Why no shard was made.
#[derive(Debug, thiserror::Error)]
pub enum BuildFailed {
    /// The order makes no sense here.
    #[error("the stripe is coded in a way this node does not know")]
    Order,
    /// Its own store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Too few sources are well.
    #[error(transparent)]
    Gather(#[from] GatherError),
}

/// Makes shards for this node, and sums for others.
pub struct Builder {
    cluster: ClusterId,
    own: NodeId,
    home: Region,
    store: Arc<ShardStore>,
    io: Arc<dyn ShardIo>,
    sums: Arc<dyn SumIo>,
    compute: Arc<dyn Compute>,
    foreground: Arc<Foreground>,
    /// Which sources failed a moment ago.
    health: NodeHealth,
    builds: Semaphore,
    /// Apart from `builds`: a build waits for sums elsewhere, and no sum waits for a build.
    relayed: Arc<Semaphore>,
}

/// Why the sums did not become the shard.
enum Failed {
    /// A source or a relay failed.
    Source(ShardError),
    /// All went well, and the result is wrong. What each region sent.
    Wrong(Vec<ShardSums>),
    /// Nothing can be kept here.
    Store(StoreError),
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Failed::Store(error)
    }
}

impl Builder {
    /// A builder that keeps what it makes in `store`.
    pub fn new(
        cluster: ClusterId,
        (own, home): (NodeId, Region),
        store: Arc<ShardStore>,
        io: Arc<dyn ShardIo>,
        sums: Arc<dyn SumIo>,
        compute: Arc<dyn Compute>,
        foreground: Arc<Foreground>,
    ) -> Self {
        let (builds, relayed) = (Semaphore::new(BUILDS_IN_FLIGHT_MAX), Semaphore::new(BUILDS_IN_FLIGHT_MAX));
        let (health, relayed) = (NodeHealth::new(), Arc::new(relayed));
        Builder { cluster, own, home, store, io, sums, compute, foreground, health, builds, relayed }
    }

    /// The sum of these shards, for a builder elsewhere. They are equally long.
    pub async fn sum(&self, terms: Vec<Term>) -> SumPieces {
        let place = self.relayed.clone().acquire_owned().await;
        let place = place.expect("nobody closes this semaphore");
        let pieces = pieces(self.io.clone(), self.compute.clone(), terms);
        let paced = (pieces, self.foreground.clone(), place);
        let paced = stream::unfold(paced, |(mut pieces, foreground, place)| async move {
            let begun = Instant::now();
            let piece = pieces.next().await?;
            foreground.give_way(begun.elapsed()).await;
            Some((piece, (pieces, foreground, place)))
        });
        paced.boxed()
    }

    /// Makes the shard and keeps it, durable when this returns. `made` is told how many bytes are there. Cancel-safe.
    pub async fn build(
        &self,
        order: &BuildOrder,
        region_of: RegionOf<'_>,
        made: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<Built, BuildFailed> {
        let _place = self.builds.acquire().await.expect("nobody closes this semaphore");
        let header = self.header(order)?;
        let meter = Arc::new(Meter::new(self.io.clone()));
        let built = |hash, liars, singly| Built {
            hash,
            crossed: self.crossed(&meter, order, region_of),
            liars,
            singly,
            kept: false,
        };
        // It may have been here all the time: a node that was given up and came back.
        if let Some(hash) = self.store.vouch(&header).await? {
            return Ok(Built { kept: true, ..built(hash, Vec::new(), false) });
        }
        match self.add_up(order, &header, &meter, true, made).await {
            Ok((hash, _)) => return Ok(built(hash, Vec::new(), false)),
            Err(Failed::Store(error)) => return Err(error.into()),
            Err(Failed::Source(error)) => {
                tracing::info!(shard = %header.id, %error, "a sum failed; reading shards")
            }
            Err(Failed::Wrong(told)) => match self.add_up(order, &header, &meter, false, made).await {
                Ok((hash, read)) => {
                    let liars = liars(order, &told, &read);
                    tracing::error!(shard = %header.id, ?liars, "relays sent sums that are not of their shards");
                    return Ok(built(hash, liars, false));
                }
                Err(Failed::Store(error)) => return Err(error.into()),
                Err(_) => {}
            },
        }
        let hash = self.singly(order, header, &meter, region_of, made).await?;
        Ok(built(hash, Vec::new(), true))
    }

    fn header(&self, order: &BuildOrder) -> Result<ShardHeader, BuildFailed> {
        let (pack, stripe) = (&order.pack, &order.pack.stripe);
        let (cluster, repo, scheme) = (self.cluster, pack.repo, stripe.scheme);
        let info = PackInfo { cluster, repo, pack: pack.id, pack_len: pack.len, scheme };
        let record = stripe.shards.get(usize::from(order.index)).filter(|_| info.stripe() == stripe.id);
        let header = info.header(order.index, record.ok_or(BuildFailed::Order)?.hash);
        let fits =
            order.sums.iter().flat_map(|sum| &sum.terms).all(|t| t.shard.payload_len == header.payload_len);
        if fits { Ok(header) } else { Err(BuildFailed::Order) }
    }

    /// One pass over all regions at the same pace, so that only a piece of each is in memory.
    async fn add_up(
        &self,
        order: &BuildOrder,
        header: &ShardHeader,
        meter: &Arc<Meter>,
        by_relays: bool,
        made: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<(ShardHash, Vec<ShardSums>), Failed> {
        let open = order.sums.iter().map(|sum| self.open(sum.relay.filter(|_| by_relays), &sum.terms, meter));
        let mut streams = try_join_all(open).await.map_err(|error| self.source_failed(error))?;
        let mut put = self.store.begin_put(header.clone(), None).await?;
        let mut told: Vec<SumBuilder> = streams.iter().map(|_| SumBuilder::new()).collect();
        for range in pieces_of(header.payload_len) {
            let begun = Instant::now();
            let next = streams.iter_mut().zip(&order.sums).map(async |(stream, sum)| {
                let who = sum.relay.unwrap_or(self.own);
                let short = || ShardError::Corrupt(who, header.id, "a sum that is too short".into());
                let piece = stream.next().await.ok_or_else(short)??;
                if piece.len() as u64 == range.len { Ok(piece) } else { Err(short()) }
            });
            let parts = try_join_all(next).await.map_err(|error| self.source_failed(error))?;
            let (total, seen) = compute(self.compute.as_ref(), move || added(parts, told)).await;
            told = seen;
            put.write(total).await?;
            made(range.offset + range.len);
            self.foreground.give_way(begun.elapsed()).await;
        }
        let told = told.into_iter().map(SumBuilder::finish).collect();
        match put.finish().await {
            Ok(hash) => Ok((hash, told)),
            Err(StoreError::WrongHash(_)) => Err(Failed::Wrong(told)),
            Err(error) => Err(error.into()),
        }
    }

    /// The sum of one region's shards, by a relay there or by ourselves.
    async fn open(
        &self,
        relay: Option<NodeId>,
        terms: &[Term],
        meter: &Arc<Meter>,
    ) -> Result<SumPieces, ShardError> {
        let Some(relay) = relay else {
            return Ok(pieces(meter.clone(), self.compute.clone(), terms.to_vec()));
        };
        let sum = self.sums.sum(relay, terms).await?;
        let meter = meter.clone();
        let counted = move |piece: &Result<Bytes, ShardError>| {
            meter.note(relay, piece.as_ref().map_or(0, |piece| piece.len() as u64));
        };
        Ok(sum.inspect(counted).boxed())
    }

    fn source_failed(&self, error: ShardError) -> Failed {
        if let ShardError::Unreachable(node, _) = &error {
            self.health.note(*node, &error);
        }
        Failed::Source(error)
    }

    /// Decoded from any k shards, each checked by us.
    async fn singly(
        &self,
        order: &BuildOrder,
        header: ShardHeader,
        meter: &Arc<Meter>,
        region_of: RegionOf<'_>,
        made: &(dyn Fn(u64) + Send + Sync),
    ) -> Result<ShardHash, BuildFailed> {
        let (pack, home) = (&order.pack, Some(&self.home));
        let distance = |node| match node {
            _ if node == self.own => 0,
            _ if region_of(node).as_ref() == home => 1,
            _ => 2,
        };
        let (io, health) = (meter.as_ref(), &self.health);
        let gathered = gather_shard(io, &pack.stripe, pack.repo, order.index, &distance, health).await?;
        let mut put = self.store.begin_put(header, None).await?;
        for from in (0..gathered.bytes.len()).step_by(FRAME_BYTES) {
            let to = gathered.bytes.len().min(from + FRAME_BYTES);
            put.write(gathered.bytes.slice(from..to)).await?;
            made(to as u64);
        }
        Ok(put.finish().await?)
    }

    /// What came from elsewhere, by region.
    fn crossed(&self, meter: &Meter, order: &BuildOrder, region_of: RegionOf<'_>) -> BTreeMap<Region, u64> {
        let mut crossed = BTreeMap::new();
        for (node, bytes) in meter.read() {
            let named = order.sums.iter().find(|sum| sum.terms.iter().any(|term| term.node == node));
            let region = named.map(|sum| sum.region.clone()).or_else(|| region_of(node));
            if let Some(region) = region.filter(|region| *region != self.home) {
                *crossed.entry(region).or_default() += bytes;
            }
        }
        crossed
    }
}

/// Relays that sent something else than what their shards add up to.
fn liars(order: &BuildOrder, told: &[ShardSums], read: &[ShardSums]) -> Vec<NodeId> {
    let differ = order.sums.iter().zip(told.iter().zip(read)).filter(|(_, (told, read))| told != read);
    differ.filter_map(|(sum, _)| sum.relay).collect()
}

fn pieces_of(len: u64) -> impl Iterator<Item = ShardRange> {
    let piece = SUM_PIECE_BYTES as u64;
    (0..len.div_ceil(piece)).map(move |no| {
        let offset = no * piece;
        ShardRange { offset, len: piece.min(len - offset) }
    })
}

/// The sum of equally long shards, piece by piece, a few pieces ahead of who takes them.
fn pieces(io: Arc<dyn ShardIo>, on: Arc<dyn Compute>, terms: Vec<Term>) -> SumPieces {
    let len = terms.first().map_or(0, |term| term.shard.payload_len);
    let terms: Arc<[Term]> = terms.into();
    let each = pieces_of(len).map(move |range| piece(io.clone(), on.clone(), terms.clone(), range));
    stream::iter(each).buffered(SUM_PIECES_AHEAD).boxed()
}

async fn piece(
    io: Arc<dyn ShardIo>,
    on: Arc<dyn Compute>,
    terms: Arc<[Term]>,
    range: ShardRange,
) -> Result<Bytes, ShardError> {
    let reads = terms.iter().map(async |term| {
        let short = || ShardError::Corrupt(term.node, term.shard.id, "an answer of the wrong length".into());
        let piece = io.get(term.node, term.shard, &[range]).await?.pop().ok_or_else(short)?;
        if piece.len() as u64 == range.len { Ok(piece) } else { Err(short()) }
    });
    let mut parts = try_join_all(reads).await?;
    if let ([term], 1) = (&terms[..], parts.len())
        && term.factor == 1
    {
        return Ok(parts.remove(0));
    }
    Ok(compute(on.as_ref(), move || {
        let mut sum = vec![0; range.len as usize];
        for (term, part) in terms.iter().zip(&parts) {
            mul_add(term.factor, part, &mut sum).expect("each part is as long as the piece");
        }
        sum.into()
    })
    .await)
}

/// The sum of one piece of each region, and the regions' own sums, carried on.
fn added(parts: Vec<Bytes>, mut told: Vec<SumBuilder>) -> (Bytes, Vec<SumBuilder>) {
    parts.iter().zip(&mut told).for_each(|(part, told)| told.update(part));
    if let [only] = &parts[..] {
        return (only.clone(), told);
    }
    let mut total = vec![0; parts.first().map_or(0, Bytes::len)];
    for part in &parts {
        mul_add(1, part, &mut total).expect("pieces of one range are equally long");
    }
    (total.into(), told)
}

/// Counts what is read, by the node that sent it.
struct Meter {
    io: Arc<dyn ShardIo>,
    read: Mutex<BTreeMap<NodeId, u64>>,
}

impl Meter {
    fn new(io: Arc<dyn ShardIo>) -> Self {
        Meter { io, read: Mutex::default() }
    }
    fn note(&self, node: NodeId, bytes: u64) {
        *self.read.lock().expect("no holder of this lock panics").entry(node).or_default() += bytes;
    }
    fn read(&self) -> BTreeMap<NodeId, u64> {
        self.read.lock().expect("no holder of this lock panics").clone()
    }
}

#[async_trait]
impl ShardIo for Meter {
    async fn put(&self, node: NodeId, shard: ShardPut) -> Result<Receipt, ShardError> {
        self.io.put(node, shard).await
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        let read = self.io.get(node, shard, ranges).await?;
        self.note(node, read.iter().map(|bytes| bytes.len() as u64).sum());
        Ok(read)
    }
    async fn verify(&self, node: NodeId, shard: ShardRef) -> Result<(), ShardError> {
        self.io.verify(node, shard).await
    }
}

#[cfg(test)]
#[path = "build_test.rs"]
mod build_test;
