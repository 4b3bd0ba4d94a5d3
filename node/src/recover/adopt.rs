//! Packs that were committed, or only sent, after the last export: their shards say what they are, and each pack ends in
//! its chunk table, so they are taken in as if they were committed now. No snapshot depends on it, since those that came
//! after the last export are lost: the next backup finds most of its chunks there and need not send them again.

use super::inventory::{Sighting, fetch, list, note};
use super::{Ground, Sightings};
use crate::catalogue::{Catalogue, CatalogueError, NoteKey, View};
use crate::raft::image::open_note;
use crate::raft::machine::Machine;
use crate::raft::types::{Entry, EntryPayload, LogId, Payload};
use bytes::Bytes;
use farshore_core::catalogue::{Actor, Command, PackCommit, Proposal, ShardRecord};
use farshore_core::erasure::Codec;
use farshore_core::host::{compute, random};
use farshore_core::id::{NodeId, SessionId};
use farshore_core::limits::EXPORT_STRIPES_MAX;
use farshore_core::pack::{PackTable, read_table};
use farshore_core::shard::{ShardHeader, hash_shard};

/// Takes in what can be taken in. Answers how many packs were found that the catalogue did not know, and how many of
/// them it knows now.
pub async fn adopt(
    ground: &Ground,
    catalogue: &Catalogue,
    nodes: &[NodeId],
) -> Result<(u64, u64), CatalogueError> {
    let view = catalogue.view()?;
    let mut unknown = Sightings::new();
    for node in nodes {
        let mut failed = Ok(());
        let listed = list(ground, *node, false, |header| match is_known(&view, &header) {
            Ok(false) => drop(note(&mut unknown, *node, &header, EXPORT_STRIPES_MAX)),
            Ok(true) => {}
            Err(why) => failed = Err(why),
        });
        if let Err(why) = listed.await {
            tracing::warn!(%node, why, "list shards");
        }
        failed?;
    }
    unknown.retain(|_, seen| seen.is_readable());
    let mut adopted = 0;
    for seen in unknown.values() {
        match commit(ground, catalogue, seen).await {
            Ok(()) => {
                adopted += u64::from(catalogue.view()?.pack_by_id(seen.info.repo, seen.info.pack)?.is_some())
            }
            Err(why) => tracing::warn!(pack = %seen.info.pack, why, "pack not taken in"),
        }
    }
    Ok((unknown.len() as u64, adopted))
}

/// Whether the catalogue has this pack, under whatever coding, or nothing to do with it.
fn is_known(view: &View, header: &ShardHeader) -> Result<bool, CatalogueError> {
    Ok(header.cluster != view.cluster().unwrap_or(header.cluster)
        || view.repo(header.repo)?.is_none()
        || view.pack_by_id(header.repo, header.pack)?.is_some())
}

/// Commits one pack under a session of its own. Whether it was refused shows in the catalogue.
async fn commit(ground: &Ground, catalogue: &Catalogue, seen: &Sighting) -> Result<(), String> {
    let bytes = fetch(ground, seen).await?;
    let seen = seen.clone();
    let repo = seen.info.repo;
    let pack = compute(ground.host.compute.as_ref(), move || describe(&seen, bytes)).await;
    let packs = vec![pack.ok_or("it does not end in a chunk table")?];
    let session = SessionId(random(ground.host.entropy.as_ref()));
    let commands = [
        Command::OpenSession { session, repo, seen: u64::MAX },
        Command::CommitPacks { session, packs },
        Command::EndSessions { sessions: vec![session] },
    ];
    append(catalogue, ground.own.id, commands)
}

/// Carries out commands as entries behind the last one that was replayed.
fn append(
    catalogue: &Catalogue,
    own: NodeId,
    commands: impl IntoIterator<Item = Command>,
) -> Result<(), String> {
    let noted = catalogue.note(NoteKey::Applied).and_then(open_note::<Option<LogId>>);
    let last = noted.map_err(|why| why.to_string())?.ok_or("the catalogue has applied nothing")?;
    let time_ms = catalogue.view().map_err(|why| why.to_string())?.time_ms();
    let mut entries = Vec::new();
    for (command, index) in commands.into_iter().zip(last.index + 1..) {
        let payload = Payload::seal(&Proposal { time_ms, actor: Actor::Node(own), command })
            .map_err(|why| why.to_string())?;
        let log_id = LogId::new(last.leader_id, index);
        entries.push(Entry { log_id, payload: EntryPayload::Normal(payload) });
    }
    Machine::replay(catalogue, &entries)
}

/// The pack as its client would have committed it. Shards that were not seen have hashes too: they are coded anew.
fn describe(seen: &Sighting, bytes: Bytes) -> Option<PackCommit> {
    let PackTable { kind, chunks } = read_table(&bytes, bytes.len() as u64).ok()?;
    let (info, record) = (seen.info, seen.record());
    let shards = Codec::new(info.scheme).encode_pack(bytes.clone());
    let shard = |((payload, index), seen): ((Bytes, u8), &ShardRecord)| {
        let (hash, _) = hash_shard(info.shard(index), &payload);
        // Who claims a shard with another hash holds something else.
        ShardRecord { node: seen.node.filter(|_| seen.hash == hash), hash }
    };
    Some(PackCommit {
        id: info.pack,
        kind,
        len: bytes.len() as u64,
        chunks,
        scheme: info.scheme,
        shard_len: record.shard_len,
        shards: shards.into_iter().zip(0u8..).zip(&record.shards).map(shard).collect(),
    })
}
