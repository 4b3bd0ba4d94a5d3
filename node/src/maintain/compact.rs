//! Packs of which little is needed are emptied into new ones: their needed chunks are copied as they are, sealed, without
//! keys, and keep their ordinals. The old packs are dead then and go as any garbage does, which is what waits for
//! readers and sessions.
//!
//! The leader does it, one new pack after the other and a few in a round: it is never urgent, and repair needs the links more.

use super::Shared;
use super::collect::drop_at_once;
use crate::catalogue::{PackUse, RepoUse, View};
use crate::worker::WorkFailed;
use bytes::Bytes;
use farshore_core::catalogue::{ChunkRecord, Command, PackRecord, Reply, RepoRecord};
use farshore_core::gather::{PackRange, gather_ranges};
use farshore_core::host::compute;
use farshore_core::id::{ChunkId, NodeId, PackNo};
use farshore_core::limits::{COMPACTIONS_PER_ROUND, PACK_BYTES_DEFAULT, PACK_CHUNKS_MAX};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::pack::{PackBuilder, ROW_BYTES, TRAILER_BYTES};
use farshore_core::placement::candidates;
use farshore_core::policy;
use farshore_core::scatter::{floor_holds, scatter};
use farshore_core::stripe::{Coding, encode};

/// Empties some of these packs. How many; those that could not be are met again in the next round.
pub async fn compact(
    shared: &Shared,
    view: &View,
    of: &RepoUse,
    sparse: &[PackUse],
) -> Result<u64, WorkFailed> {
    let Some(repo) = view.repo(of.repo)? else { return Ok(0) };
    let mut emptied = 0;
    for group in groups(sparse).into_iter().take(COMPACTIONS_PER_ROUND) {
        match empty(shared, view, of, &repo, &group).await {
            Ok(packs) => emptied += packs,
            // Repair comes first, and what moved meanwhile is looked at anew.
            Err(error) => tracing::warn!(packs = ?group, %error, "packs not compacted"),
        }
    }
    Ok(emptied)
}

/// Packs of one kind whose needed chunks fill about one new pack, by what their tables suggest.
fn groups(sparse: &[PackUse]) -> Vec<Vec<PackNo>> {
    let mut groups = Vec::new();
    for tree in [false, true] {
        let (mut group, mut bytes, mut chunks) = (Vec::new(), 0, 0);
        let of_kind = sparse.iter().filter(|p| tree == (p.kind == farshore_core::catalogue::PackKind::Tree));
        for pack in of_kind {
            let needed = pack.len * pack.live / pack.chunks.max(1);
            let full =
                bytes + needed > PACK_BYTES_DEFAULT as u64 || chunks + pack.live > PACK_CHUNKS_MAX as u64;
            if full && !group.is_empty() {
                groups.push(std::mem::take(&mut group));
                (bytes, chunks) = (0, 0);
            }
            group.push(pack.no);
            (bytes, chunks) = (bytes + needed, chunks + pack.live);
        }
        if !group.is_empty() {
            groups.push(group);
        }
    }
    groups
}

/// Copies what is needed of these packs into one new pack, as far as it fits, and has it recorded.
async fn empty(
    shared: &Shared,
    view: &View,
    of: &RepoUse,
    repo: &RepoRecord,
    group: &[PackNo],
) -> Result<u64, WorkFailed> {
    let nodes = view.nodes()?;
    let scheme = policy::compile(&repo.policy, &nodes)?;
    let mut new: Option<PackBuilder> = None;
    let mut from = Vec::new();
    for no in group {
        let Some(pack) = view.pack(*no)? else { continue };
        let builder = new.get_or_insert_with(|| PackBuilder::new(pack.kind, PACK_BYTES_DEFAULT));
        let needed = needed_of(view, of, &pack)?;
        let bytes: usize = needed.iter().map(|(_, chunk)| chunk.len as usize + ROW_BYTES).sum();
        let fits = builder.len() + bytes + TRAILER_BYTES <= PACK_BYTES_DEFAULT;
        if needed.is_empty() || !(fits || builder.is_empty()) {
            continue;
        }
        for ((id, _), sealed) in needed.iter().zip(read(shared, &pack, &needed).await?) {
            builder.add(*id, &sealed);
        }
        from.push(*no);
    }
    let Some(mut new) = new.filter(|new| !new.is_empty()) else { return Ok(0) };
    if mutant(Mutant::RecodeDropsFirst) && of.recoding.is_some() {
        shared.propose_leading(Command::CondemnPacks { packs: from.clone() }).await?;
        drop_at_once(shared, repo.id, &from).await?;
    }
    // A pack that is copied whole, to be coded in another way, would be the old one again.
    new.set_times(from.first().map_or(0, |no| no.0 as u32).wrapping_add(1));
    let coding = Coding { cluster: shared.cluster, repo: repo.id, session: None, scheme };
    let stripe = compute(shared.host.compute.as_ref(), move || encode(coding, new)).await?;
    let scattered = scatter(shared.shards.as_ref(), &shared.reached, &candidates(&nodes), &stripe.puts).await;
    if !floor_holds(&scattered.shards, scheme, repo.policy.floor_nodes) {
        return Err(WorkFailed("too few nodes took shards of the new pack".into()));
    }
    let (emptied, pack) = (from.len() as u64, Box::new(stripe.to_commit(scattered.shards)));
    let compacts = Command::CompactPacks { repo: repo.id, pack, from };
    match shared.propose_leading(compacts).await? {
        Reply::PacksCommitted { .. } => Ok(emptied),
        reply => Err(WorkFailed(format!("the catalogue answered beside the point: {reply:?}"))),
    }
}

/// Chunks that live in a pack and that a snapshot needs, in the order of their bytes.
fn needed_of(
    view: &View,
    of: &RepoUse,
    pack: &PackRecord,
) -> Result<Vec<(ChunkId, ChunkRecord)>, WorkFailed> {
    let ids = view.chunks_of(pack.no)?;
    let places = view.lookup(pack.repo, &ids)?;
    let mut needed: Vec<_> = ids
        .into_iter()
        .zip(places)
        .filter_map(|(id, place)| Some((id, place?)))
        .filter(|(_, chunk)| chunk.pack == pack.no && of.live.contains(chunk.ordinal))
        .collect();
    needed.sort_by_key(|(_, chunk)| chunk.offset);
    Ok(needed)
}

/// Their sealed bytes, verified against the hashes of the shards they came from.
async fn read(
    shared: &Shared,
    pack: &PackRecord,
    needed: &[(ChunkId, ChunkRecord)],
) -> Result<Vec<Bytes>, WorkFailed> {
    let range = |chunk: &ChunkRecord| PackRange { offset: chunk.offset.into(), len: chunk.len.into() };
    let ranges: Vec<_> = needed.iter().map(|(_, chunk)| range(chunk)).collect();
    let own = shared.own.id;
    let prefer = move |node: NodeId| u64::from(node != own);
    let gathered = gather_ranges(
        shared.shards.as_ref(),
        &pack.stripe,
        pack.repo,
        pack.len,
        &ranges,
        &prefer,
        &shared.reached,
    )
    .await?;
    Ok(gathered.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::PackKind;

    #[test]
    fn packs_of_a_kind_are_put_together_until_a_new_one_is_full() {
        let third = PACK_BYTES_DEFAULT as u64 / 3;
        let pack = |no, kind, live| PackUse {
            no: PackNo(no),
            kind,
            len: third * 10,
            chunks: 10,
            live,
            condemned: None,
            weak: false,
            other_code: false,
        };
        let (data, tree) = (PackKind::Data, PackKind::Tree);
        let sparse =
            [pack(1, data, 1), pack(2, tree, 1), pack(3, data, 2), pack(4, data, 1), pack(5, data, 9)];
        let expected = [vec![1, 3], vec![4], vec![5], vec![2]];
        assert_eq!(groups(&sparse), expected.map(|group| group.into_iter().map(PackNo).collect::<Vec<_>>()));
        assert!(groups(&[]).is_empty());
    }
}
