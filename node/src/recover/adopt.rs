//! What the shards know and the catalogue does not, since it is as old as the last export.
//!
//! Packs that were committed, or only sent, after it: their shards say what they are, and each pack ends in its chunk
//! table, so they are taken in as if they were committed now. No snapshot depends on it, since those that came after the
//! last export are lost: the next backup finds most of its chunks there and need not send them again.
//!
//! Shards that repairs and drains have moved after it: where they lie is recorded, or they would be taken for orphans while
//! the catalogue looks for them where they were.

use super::Ground;
use super::inventory::{Remote, Sighting, fetch, sight};
use super::listing::{self, Listing, Trace, Traces, Walk};
use super::patience::insist;
use crate::catalogue::{Catalogue, CatalogueError, NoteKey};
use crate::raft::image::open_note;
use crate::raft::machine::Machine;
use crate::raft::types::{Entry, EntryPayload, LogId, Payload};
use bytes::Bytes;
use farshore_core::catalogue::{
    Actor, Command, Condemned, EXPORT_REPO, PackCommit, PackRecord, Proposal, ShardRecord,
};
use farshore_core::erasure::Codec;
use farshore_core::host::{compute, random};
use farshore_core::id::{NodeId, SessionId, ShardId};
use farshore_core::limits::{EXPORT_STRIPES_MAX, PLACED_AT_ONCE_MAX};
use farshore_core::pack::{PackTable, read_table};
use farshore_core::shard::hash_shard;
use std::collections::BTreeSet;

/// What was taken in, and what was not.
#[derive(Default)]
pub struct Adopted {
    /// Packs that can be read and that the catalogue did not know.
    pub unknown: u64,
    /// Those of them that it knows now.
    pub adopted: u64,
    /// Shards of known packs that lie elsewhere than recorded.
    pub moved: u64,
    /// What was passed over, with the reason.
    pub passed_over: Vec<String>,
}

/// Takes in what can be taken in.
pub async fn adopt(
    ground: &Ground,
    catalogue: &Catalogue,
    nodes: &[NodeId],
) -> Result<Adopted, CatalogueError> {
    let listing = Remote { ground, exports: false };
    let mut stock = take_stock(catalogue, ground.own.id, &listing, nodes).await?;
    let headers = listing::headers(&listing, &stock.unknown).await;
    stock.pass(stock.unknown.len() - headers.len(), "stripes are unknown, and no shard says what they are");
    let mut unknown = sight(std::mem::take(&mut stock.unknown), &headers);
    unknown.retain(|_, seen| seen.info.cluster == ground.cluster && seen.is_readable());

    let view = catalogue.view()?;
    let nodes = view.nodes()?.into_iter().filter(|node| node.state.counts());
    let nodes: BTreeSet<NodeId> = nodes.map(|node| node.id).collect();
    drop(view);
    let (mut adopted, mut refused) = (0, None);
    for seen in unknown.values() {
        match commit(ground, catalogue, seen, &nodes).await {
            Ok(()) => {
                adopted += u64::from(catalogue.view()?.pack_by_id(seen.info.repo, seen.info.pack)?.is_some())
            }
            Err(why) => refused = refused.or(Some(format!("pack {} is not taken in: {why}", seen.info.pack))),
        }
    }
    stock.passed_over.extend(refused);
    let (moved, passed_over) = (stock.moved, stock.passed_over);
    Ok(Adopted { unknown: unknown.len() as u64, adopted, moved, passed_over })
}

/// What the nodes hold, compared with what the catalogue says.
#[derive(Default)]
struct Stock {
    /// Stripes it does not know, of repositories that it knows.
    unknown: Traces,
    /// Shards that were recorded where they lie.
    moved: u64,
    passed_over: Vec<String>,
}

impl Stock {
    fn pass(&mut self, count: usize, what: &str) {
        self.passed_over.extend((count > 0).then(|| format!("{count} {what}")));
    }
}

/// Goes through all shards, records those that were moved, and keeps what is unknown.
async fn take_stock(
    catalogue: &Catalogue,
    own: NodeId,
    listing: &dyn Listing,
    nodes: &[NodeId],
) -> Result<Stock, CatalogueError> {
    let view = catalogue.view()?;
    let counting = view.nodes()?.into_iter().filter(|node| node.state.counts()).map(|node| node.id);
    let counting: BTreeSet<NodeId> = counting.collect();
    let mut walk = Walk::new(listing, nodes);
    let (mut stock, mut placing) = (Stock::default(), Vec::new());
    let (mut too_many, mut no_repo, mut stranded, mut failed) = (0, 0, 0, 0);
    while let Some((stripe, trace)) = walk.next().await {
        if let Some(pack) = view.pack_of_stripe(stripe)? {
            let mut moves = Vec::new();
            for (index, to) in moved(&pack, &trace, &|node| walk.lists(node)) {
                let copy = |node| Condemned { node, shard: ShardId { stripe, index } };
                let mut fit = None;
                for node in to {
                    if fit.is_none() && counting.contains(&node) && !view.is_condemned(copy(node))? {
                        fit = Some((index, node));
                    }
                }
                moves.extend(fit);
                stranded += usize::from(fit.is_none());
            }
            // Each placement raises the generation by one.
            let generations = pack.stripe.generation..;
            placing.extend(moves.into_iter().zip(generations).map(|((index, node), generation)| {
                Command::PlaceShard { pack: pack.no, generation, index, node }
            }));
            if placing.len() >= PLACED_AT_ONCE_MAX {
                failed += place(catalogue, own, &mut placing, &mut stock.moved);
            }
        } else if view.repo(trace.repo)?.is_none() {
            no_repo += usize::from(trace.repo != EXPORT_REPO);
        } else if view.pack_by_id(trace.repo, trace.pack)?.is_some() {
            // Known under another coding.
        } else if stock.unknown.len() < EXPORT_STRIPES_MAX {
            stock.unknown.insert(stripe, trace);
        } else {
            too_many += 1;
        }
    }
    failed += place(catalogue, own, &mut placing, &mut stock.moved);
    let stopped =
        |(node, why): (NodeId, &str)| format!("{node} stopped answering while it listed its shards: {why}");
    stock.passed_over.extend(walk.failures().map(stopped));
    stock.pass(too_many, "unknown stripes are more than are looked at");
    stock.pass(no_repo, "stripes are of repositories that this catalogue does not know");
    stock.pass(
        stranded,
        "shards lie only where the catalogue expects none, on nodes it does not know or condemned",
    );
    stock.pass(failed, "shards that were moved could not be recorded");
    Ok(stock)
}

/// Shards whose recorded holder answers and has none, with those who list what was recorded.
fn moved(pack: &PackRecord, trace: &Trace, answers: &dyn Fn(NodeId) -> bool) -> Vec<(u8, Vec<NodeId>)> {
    let mut moved = Vec::new();
    for (index, claims) in &trace.shards {
        let Some(record) = pack.stripe.shards.get(usize::from(*index)) else { continue };
        let sound = claims.iter().filter(|(hash, _)| *hash == record.hash).map(|(_, node)| *node);
        let sound: Vec<NodeId> = sound.collect();
        // Somebody who is silent may have it still; who lists anything has a copy that scrub will judge.
        let gone =
            record.node.is_none_or(|node| answers(node) && claims.iter().all(|(_, other)| *other != node));
        if gone && !sound.is_empty() {
            moved.push((*index, sound));
        }
    }
    moved
}

/// Carries placements out. Answers how many could not be.
fn place(catalogue: &Catalogue, own: NodeId, placing: &mut Vec<Command>, moved: &mut u64) -> usize {
    let placing = std::mem::take(placing);
    let count = placing.len();
    match append(catalogue, own, placing) {
        Ok(()) => *moved += count as u64,
        Err(why) => {
            tracing::warn!(why, "place shards where they lie");
            return count;
        }
    }
    0
}

/// Commits one pack under a session of its own. Whether it was refused shows in the catalogue.
async fn commit(
    ground: &Ground,
    catalogue: &Catalogue,
    seen: &Sighting,
    nodes: &BTreeSet<NodeId>,
) -> Result<(), String> {
    let bytes = insist(|| fetch(ground, seen)).await?;
    let (seen, nodes) = (seen.clone(), nodes.clone());
    let repo = seen.info.repo;
    let pack = compute(ground.host.compute.as_ref(), move || describe(&seen, bytes, &nodes)).await;
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
/// Those on nodes that do not count are made again.
fn describe(seen: &Sighting, bytes: Bytes, nodes: &BTreeSet<NodeId>) -> Option<PackCommit> {
    let PackTable { kind, chunks } = read_table(&bytes, bytes.len() as u64).ok()?;
    let (info, record) = (seen.info, seen.record());
    let shards = Codec::new(info.scheme).encode_pack(bytes.clone());
    let shard = |((payload, index), seen): ((Bytes, u8), &ShardRecord)| {
        let (hash, _) = hash_shard(info.shard(index), &payload);
        // Who claims a shard with another hash holds something else.
        ShardRecord { node: seen.node.filter(|node| seen.hash == hash && nodes.contains(node)), hash }
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

#[cfg(test)]
mod tests {
    use super::super::testkit::Map;
    use super::*;
    use crate::kv::memory::MemoryKv;
    use crate::raft::image::seal_note;
    use farshore_core::catalogue::{ChunkSpan, PackKind, RepoRecord};
    use farshore_core::erasure::Scheme;
    use farshore_core::id::{ChunkId, ClusterId, PackId, RepoId, ShardHash};
    use farshore_core::policy::Policy;
    use farshore_core::shard::PackInfo;
    use farshore_core::topology::{NodeRecord, NodeState};
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    const REPO: RepoId = RepoId([4; 16]);

    fn info(repo: RepoId, pack: u8) -> PackInfo {
        let scheme = Scheme::new(2, 1, 1).unwrap();
        PackInfo { cluster: ClusterId([7; 16]), repo, pack: PackId([pack; 32]), pack_len: 1_000, scheme }
    }
    fn hash(index: u8) -> ShardHash {
        ShardHash([index + 1; 32])
    }

    /// Packs 0 to 9, each with its shards on nodes 1, 2 and 3.
    fn catalogue() -> Catalogue {
        let catalogue = Catalogue::open(Arc::new(MemoryKv::new())).unwrap();
        let node = |id: u64| NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: "x/y".parse().unwrap(),
            zone: None,
            addr: "a:1".into(),
            capacity: 1 << 30,
            state: NodeState::Up,
        };
        let repo = RepoRecord {
            id: REPO,
            name: "repo".parse().unwrap(),
            policy: Policy { regions: 0, nodes: 1, providers: 0, floor_nodes: 1 },
            sealed_config: vec![1],
            key_slots: vec![],
        };
        let pack = |pack: u8| PackCommit {
            id: PackId([pack; 32]),
            kind: PackKind::Data,
            len: 1_000,
            chunks: vec![ChunkSpan { id: ChunkId([pack; 32]), offset: 0, len: 500 }],
            scheme: info(REPO, pack).scheme,
            shard_len: info(REPO, pack).scheme.shard_len(1_000),
            shards: (0..3u8)
                .map(|at| ShardRecord { node: Some(NodeId(u64::from(at) + 1)), hash: hash(at) })
                .collect(),
        };
        let session = SessionId([5; 16]);
        let mut commands = vec![Command::FormCluster { cluster: ClusterId([7; 16]) }];
        commands.extend((1..=5).map(|id| Command::PutNode { node: node(id) }));
        commands.push(Command::CreateRepository { repo });
        commands.push(Command::OpenSession { session, repo: REPO, seen: u64::MAX });
        commands.extend((0..10).map(|at| Command::CommitPacks { session, packs: vec![pack(at)] }));
        let mut tx = catalogue.begin();
        let mut last = LogId::default();
        for (command, index) in commands.into_iter().zip(1..) {
            last.index = index;
            tx.apply(index, &Proposal { time_ms: 0, actor: Actor::Node(NodeId(1)), command }).unwrap();
        }
        tx.note(NoteKey::Applied, seal_note(&Some(last))).unwrap();
        tx.commit().unwrap();
        assert_eq!(catalogue.view().unwrap().counts().packs, 10);
        catalogue
    }
    fn holders(catalogue: &Catalogue, pack: u8) -> Vec<Option<u64>> {
        let found = catalogue.view().unwrap().pack_by_id(REPO, PackId([pack; 32])).unwrap().unwrap();
        found.stripe.shards.iter().map(|shard| shard.node.map(|node| node.0)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn shards_that_were_moved_after_the_export_are_recorded_where_they_lie() {
        let catalogue = catalogue();
        let mut map = Map::default();
        for pack in 0..10 {
            map.hold(3, &info(REPO, pack), 2, hash(2));
            // Nodes 1 and 2 were drained; node 4 has taken the shards over, and 5 once had one that is another's.
            map.hold(4, &info(REPO, pack), 0, hash(0));
            map.hold(4, &info(REPO, pack), 1, hash(1));
            map.hold(5, &info(REPO, pack), 2, hash(7));
        }
        // Pack 0 is where it was; node 9 has joined since.
        (0..2).for_each(|index| map.hold(u64::from(index) + 1, &info(REPO, 0), index, hash(index)));
        map.shards.get_mut(&NodeId(4)).unwrap().remove(&info(REPO, 9).shard(0));
        map.hold(9, &info(REPO, 9), 0, hash(0));
        // One pack was committed since, one is of a repository that was made since.
        map.hold(1, &info(REPO, 77), 0, hash(0));
        map.hold(1, &info(RepoId([8; 16]), 78), 0, hash(0));
        let stock = take_stock(&catalogue, NodeId(1), &map, &map.nodes()).await.unwrap();
        assert_eq!(holders(&catalogue, 0), [Some(1), Some(2), Some(3)]);
        (1..9).for_each(|pack| assert_eq!(holders(&catalogue, pack), [Some(4), Some(4), Some(3)], "{pack}"));
        assert_eq!(holders(&catalogue, 9), [Some(1), Some(4), Some(3)], "node 9 is not known yet");
        assert_eq!((stock.moved, stock.unknown.len()), (17, 1));
        assert_eq!(stock.passed_over.len(), 2, "{:?}", stock.passed_over);

        // Known packs cost no look into a file.
        listing::headers(&map, &stock.unknown).await;
        assert_eq!(map.headers_read.load(Ordering::Relaxed), 1);
        let again = take_stock(&catalogue, NodeId(1), &map, &map.nodes()).await.unwrap();
        assert_eq!(again.moved, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_not_taken_for_one_that_has_lost_its_shards() {
        let catalogue = catalogue();
        let mut map = Map::default();
        for pack in 0..10 {
            (0..3).for_each(|index| map.hold(4, &info(REPO, pack), index, hash(index)));
            map.hold(1, &info(REPO, pack), 0, hash(0));
        }
        map.dead.insert(NodeId(1));
        let stock = take_stock(&catalogue, NodeId(1), &map, &map.nodes()).await.unwrap();
        assert_eq!((stock.moved, holders(&catalogue, 3)), (0, vec![Some(1), Some(2), Some(3)]));
        assert_eq!(stock.passed_over.len(), 1, "{:?}", stock.passed_over);
    }
}
