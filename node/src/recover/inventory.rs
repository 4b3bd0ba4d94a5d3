//! What the nodes hold, from the headers of their shards alone: which stripes there are, and where their shards lie.

use super::chain::{self, Export};
use super::{Ground, Sightings};
use crate::catalogue::PartHeader;
use crate::catalogue::part::PART_HEADER_BYTES;
use bytes::Bytes;
use farshore_core::catalogue::{EXPORT_REPO, ShardRecord, StripeRecord};
use farshore_core::gather::{PackRange, gather_pack, gather_ranges};
use farshore_core::id::{NodeId, ShardHash, ShardId};
use farshore_core::limits::{EXPORT_STRIPES_MAX, LISTED_SHARDS_MAX, RECOVERY_CALL_MS};
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

/// Notes one shard. False if there are too many stripes to note another.
pub fn note(sightings: &mut Sightings, node: NodeId, header: &ShardHeader, max: usize) -> bool {
    let ShardHeader { cluster, repo, pack, pack_len, scheme, .. } = *header;
    let stripe = header.id.stripe;
    if sightings.len() >= max && !sightings.contains_key(&stripe) {
        return false;
    }
    let info = PackInfo { cluster, repo, pack, pack_len, scheme };
    let seen = sightings.entry(stripe).or_insert_with(|| Sighting { info, shards: BTreeMap::new() });
    if seen.info.pack_len == pack_len {
        seen.shards.entry(header.id.index).or_default().push((header.hash, node));
    }
    true
}

/// The stripes of exports that these nodes hold. A node that stops answering is added to the silent ones.
pub async fn exports(ground: &Ground, nodes: &[NodeId], silent: &mut BTreeMap<NodeId, String>) -> Sightings {
    let mut sightings = Sightings::new();
    for node in nodes {
        let noted = list(ground, *node, true, |header| {
            let ours = header.repo == EXPORT_REPO && header.cluster == ground.cluster;
            if ours && !note(&mut sightings, *node, &header, EXPORT_STRIPES_MAX) {
                tracing::warn!(%node, "more stripes of exports than are looked at");
            }
        });
        if let Err(why) = noted.await {
            silent.insert(*node, format!("{node}: {why}"));
        }
    }
    sightings
}

/// Goes through the headers of all shards of a node, page by page.
pub async fn list(
    ground: &Ground,
    node: NodeId,
    exports: bool,
    mut each: impl FnMut(ShardHeader),
) -> Result<(), String> {
    let line = ground.peers.channel(node).ok_or("no address")?;
    let mut client = channel::recovery(line);
    let mut after: Option<ShardId> = None;
    loop {
        let request = wire::ListShardsRequest { after: after.map(Into::into), exports };
        let limit = Duration::from_millis(RECOVERY_CALL_MS * 6);
        let page = tokio::time::timeout(limit, client.list_shards(request)).await;
        let page = page.map_err(|_| "no answer in time")?;
        let page = page.map_err(|status| ApiError::from_status(status).to_string())?.into_inner();
        if page.headers.len() > LISTED_SHARDS_MAX {
            return Err("it lists more shards than were asked for".into());
        }
        for bytes in &page.headers {
            each(ShardHeader::decode(bytes).map_err(|why| why.to_string())?);
        }
        let Some(next) = page.next else { return Ok(()) };
        let next: ShardId = next.try_into().map_err(|why: ApiError| why.to_string())?;
        if after.is_some_and(|after| next <= after) {
            return Err("its list goes round in circles".into());
        }
        after = Some(next);
    }
}

/// Reads what each part says of itself, and puts the exports together. Also says which parts cannot be read.
pub async fn assemble(ground: &Ground, sightings: &Sightings) -> (Vec<Export>, Vec<String>) {
    let (mut parts, mut unreadable) = (Vec::new(), 0u64);
    for (stripe, seen) in sightings {
        let len = seen.info.pack_len.min(PART_HEADER_BYTES as u64);
        let head = [PackRange { offset: 0, len }];
        let record = seen.record();
        let read = gather_ranges(
            ground.shards.as_ref(),
            &record,
            EXPORT_REPO,
            seen.info.pack_len,
            &head,
            &|_| 0,
            &ground.reached,
        );
        let header = match read.await {
            Ok(read) => read.bytes.first().and_then(|bytes| PartHeader::peek(bytes).ok()),
            Err(why) => {
                tracing::warn!(%why, ?stripe, "part of an export cannot be read");
                None
            }
        };
        match header {
            Some((header, _)) if header.cluster == ground.cluster => parts.push((header, *stripe)),
            _ => unreadable += 1,
        }
    }
    let words = (unreadable > 0).then(|| format!("{unreadable} parts of exports cannot be read at all"));
    (chain::assemble(parts), words.into_iter().collect())
}

/// Reads a whole pack, compared with its id.
pub async fn fetch(ground: &Ground, seen: &Sighting) -> Result<Bytes, String> {
    let record = seen.record();
    let PackInfo { repo, pack, pack_len, .. } = seen.info;
    let io = ground.shards.as_ref();
    let read = gather_pack(io, &record, repo, pack_len, Some(pack), &|_| 0, &ground.reached).await;
    read.map(|read| read.bytes).map_err(|why| why.to_string())
}
