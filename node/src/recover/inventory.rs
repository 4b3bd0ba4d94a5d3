//! What the nodes hold: which stripes there are, what they code, and where their shards lie.

use super::chain::{self, Export};
use super::listing::{self, Listed, Listing, Trace, Traces, Walk, info_of};
use super::{Ground, Sightings, patience};
use crate::catalogue::PartHeader;
use crate::catalogue::part::PART_HEADER_BYTES;
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::catalogue::{EXPORT_REPO, ShardRecord, StripeRecord};
use farshore_core::gather::{PackRange, gather_pack, gather_ranges};
use farshore_core::id::{NodeId, PackId, RepoId, ShardHash, ShardId, StripeId};
use farshore_core::limits::{EXPORT_STRIPES_MAX, RECOVERY_CALL_MS};
use farshore_core::shard::{PackInfo, ShardHeader};
use farshore_proto::channel;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::collections::BTreeMap;
use std::time::Duration;

/// A stripe of which shards were seen.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sighting {
    /// What it codes.
    pub info: PackInfo,
    /// By shard index: who claims to hold it, and with which hash.
    pub shards: BTreeMap<u8, Vec<(ShardHash, NodeId)>>,
}

impl Sighting {
    /// As the catalogue would record it. If nodes disagree about a shard, the one that more of them hold is taken; what
    /// is read is compared with the pack's id in any case.
    pub fn record(&self) -> StripeRecord {
        let shard = |index: u8| {
            let claims = self.shards.get(&index).map(Vec::as_slice).unwrap_or_default();
            let votes = |hash: ShardHash| claims.iter().filter(|(other, _)| *other == hash).count();
            let best = claims.iter().max_by_key(|(hash, node)| (votes(*hash), *hash, *node));
            match best {
                Some((hash, node)) => ShardRecord { node: Some(*node), hash: *hash },
                None => ShardRecord { node: None, hash: ShardHash([0; 32]) },
            }
        };
        StripeRecord {
            id: self.info.stripe(),
            scheme: self.info.scheme,
            shard_len: self.info.scheme.shard_len(self.info.pack_len),
            generation: 0,
            shards: (0..self.info.scheme.n() as u8).map(shard).collect(),
        }
    }
    /// Whether enough shards were seen.
    pub fn is_readable(&self) -> bool {
        self.shards.len() >= self.info.scheme.k()
    }
}

/// What the nodes say of stripes, put together with what the stripes code.
pub fn sight(traces: Traces, headers: &BTreeMap<StripeId, ShardHeader>) -> Sightings {
    let seen = |(stripe, trace): (StripeId, Trace)| {
        let info = info_of(headers.get(&stripe)?);
        Some((stripe, Sighting { info, shards: trace.shards }))
    };
    traces.into_iter().filter_map(seen).collect()
}

/// The listing of the nodes under recovery, of exports or of everything else.
pub struct Remote<'a> {
    /// How to reach them.
    pub ground: &'a Ground,
    /// Only shards of exports.
    pub exports: bool,
}

#[async_trait]
impl Listing for Remote<'_> {
    async fn page(
        &self,
        node: NodeId,
        after: Option<ShardId>,
        limit: usize,
    ) -> Result<(Vec<Listed>, Option<ShardId>), String> {
        let request = wire::ListShardsRequest {
            after: after.map(Into::into),
            exports: self.exports,
            limit: limit as u32,
        };
        let mut client = channel::recovery(self.ground.peers.channel(node).ok_or("no address")?);
        let page = tokio::time::timeout(PAGE_LIMIT, client.list_shards(request)).await;
        let page = page.map_err(|_| "no answer in time")?;
        let page = page.map_err(|status| ApiError::from_status(status).to_string())?.into_inner();
        let rows: Result<Vec<Listed>, ApiError> = page.shards.into_iter().map(listed).collect();
        let next = page.next.map(TryInto::try_into).transpose();
        Ok((rows.map_err(|why| why.to_string())?, next.map_err(|why: ApiError| why.to_string())?))
    }

    async fn headers(&self, node: NodeId, shards: &[ShardId]) -> Result<Vec<ShardHeader>, String> {
        let ids = shards.iter().map(|shard| (*shard).into()).collect();
        let mut client = channel::recovery(self.ground.peers.channel(node).ok_or("no address")?);
        let request = wire::ReadHeadersRequest { ids };
        let read = tokio::time::timeout(PAGE_LIMIT, client.read_headers(request)).await;
        let read = read.map_err(|_| "no answer in time")?;
        let read = read.map_err(|status| ApiError::from_status(status).to_string())?.into_inner();
        Ok(read.headers.iter().filter_map(|bytes| ShardHeader::decode(bytes).ok()).collect())
    }
}

/// A page or some headers take this long at most.
const PAGE_LIMIT: Duration = Duration::from_millis(RECOVERY_CALL_MS * 6);

fn listed(row: wire::ListedShard) -> Result<Listed, ApiError> {
    let id = row.id.ok_or_else(|| ApiError::Invalid("a shard without an id".into()))?;
    Ok(Listed {
        id: id.try_into()?,
        repo: RepoId::from_slice(&row.repo)?,
        pack: PackId::from_slice(&row.pack)?,
        hash: ShardHash::from_slice(&row.hash)?,
    })
}

/// The stripes of exports that these nodes hold.
pub struct Inventory {
    /// Those of which it is known what they code.
    pub sightings: Sightings,
    /// What else there is, or may be, that could lead further.
    pub doubts: Vec<String>,
}

/// Looks for the stripes of exports.
pub async fn exports(ground: &Ground, nodes: &[NodeId]) -> Inventory {
    let listing = Remote { ground, exports: true };
    let mut walk = Walk::new(&listing, nodes);
    let (mut traces, mut too_many) = (Traces::new(), 0u64);
    while let Some((stripe, trace)) = walk.next().await {
        if trace.repo == EXPORT_REPO && traces.len() < EXPORT_STRIPES_MAX {
            traces.insert(stripe, trace);
        } else {
            too_many += u64::from(trace.repo == EXPORT_REPO);
        }
    }
    let stopped =
        |(node, why): (NodeId, &str)| format!("{node} stopped answering while it listed exports: {why}");
    let mut doubts: Vec<String> = walk.failures().map(stopped).collect();
    let headers = listing::headers(&listing, &traces).await;
    let unknown = traces.len() - headers.len();
    let mut sightings = sight(traces, &headers);
    sightings.retain(|_, seen| seen.info.cluster == ground.cluster);
    doubts.extend((too_many > 0).then(|| format!("{too_many} parts of exports are more than are looked at")));
    doubts.extend((unknown > 0).then(|| format!("of {unknown} parts of exports no shard says what it is")));
    Inventory { sightings, doubts }
}

/// Exports, and parts that cannot be read.
pub struct Assembled {
    /// What the parts that can be read say of themselves.
    pub exports: Vec<Export>,
    /// Parts of which enough shards were listed, or would be together with the nodes that are silent.
    pub unread: u64,
    /// Parts of which too few shards are left for anybody.
    pub gone: u64,
}

/// Reads what each part says of itself, and puts the exports together. A part that cannot be read is tried again, since
/// the export it belongs to may be the newest.
pub async fn assemble(ground: &Ground, sightings: &Sightings, silent: usize) -> Assembled {
    let (mut parts, mut gone) = (Vec::new(), 0);
    let (mut left, few): (Vec<_>, Vec<_>) = sightings.iter().partition(|(_, seen)| seen.is_readable());
    // Some were being made, or being deleted, when the end came.
    let missed = few.iter().filter(|(_, seen)| seen.shards.len() + silent >= seen.info.scheme.k()).count();
    gone += (few.len() - missed) as u64;
    let mut pauses = patience::pauses();
    loop {
        let mut failed = Vec::new();
        for (stripe, seen) in left {
            match head(ground, seen).await {
                Ok(header) if header.cluster == ground.cluster => parts.push((header, *stripe)),
                Ok(_) => gone += 1,
                Err(why) => {
                    tracing::warn!(why, ?stripe, "part of an export cannot be read");
                    failed.push((stripe, seen));
                }
            }
        }
        left = failed;
        match pauses.next() {
            Some(pause) if !left.is_empty() => tokio::time::sleep(pause).await,
            _ => break,
        }
    }
    Assembled { exports: chain::assemble(parts), unread: (left.len() + missed) as u64, gone }
}

/// What a part begins with.
async fn head(ground: &Ground, seen: &Sighting) -> Result<PartHeader, String> {
    let len = seen.info.pack_len.min(PART_HEADER_BYTES as u64);
    let (io, head) = (ground.shards.as_ref(), [PackRange { offset: 0, len }]);
    let (record, pack_len) = (seen.record(), seen.info.pack_len);
    let read = gather_ranges(io, &record, EXPORT_REPO, pack_len, &head, &|_| 0, &ground.reached).await;
    let read = read.map_err(|why| why.to_string())?;
    let bytes = read.bytes.first().map(Bytes::as_ref).unwrap_or_default();
    PartHeader::peek(bytes).map(|(header, _)| header).map_err(|why| why.to_string())
}

/// Reads a whole pack, compared with its id.
pub async fn fetch(ground: &Ground, seen: &Sighting) -> Result<Bytes, String> {
    let record = seen.record();
    let PackInfo { repo, pack, pack_len, .. } = seen.info;
    let io = ground.shards.as_ref();
    let read = gather_pack(io, &record, repo, pack_len, Some(pack), &|_| 0, &ground.reached).await;
    read.map(|read| read.bytes).map_err(|why| why.to_string())
}
