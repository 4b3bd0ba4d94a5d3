//! The catalogue against the model: random commands, valid and hostile, must give the same replies and leave the same
//! state; however they are batched, and also when the state travels as an image.

use super::audit_test::records;
use super::model::{Model, kind};
use super::*;
use crate::kv::memory::MemoryKv;
use farshore_core::catalogue::*;
use farshore_core::erasure::Scheme;
use farshore_core::id::*;
use farshore_core::level::FEATURE_LEVEL;
use farshore_core::policy::Policy;
use farshore_core::topology::{Change, NodeRecord, NodeState, Region};
use proptest::prelude::*;

const NODES: u64 = 7;
/// Who asks, where it does not matter.
pub(super) const ACTOR: Actor = Actor::Node(NodeId(1));

pub(super) fn new_catalogue() -> Catalogue {
    Catalogue::open(Arc::new(MemoryKv::new())).unwrap()
}

/// Now a node, now a client.
fn asker(nth: u64) -> Actor {
    if nth.is_multiple_of(3) { ACTOR } else { Actor::Client(format!("c{}", nth % 5).parse().unwrap()) }
}

fn node(id: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("test/r{}", id % 3).parse().unwrap(),
        zone: None,
        addr: format!("host{id}:7000"),
        capacity: 1 << 40,
        state: NodeState::Lost, // ignored: a new node is up
    }
}

fn repo(id: u8, name: u8, floor_nodes: u8) -> RepoRecord {
    RepoRecord {
        id: RepoId([id; 16]),
        name: format!("repo{name}").parse().unwrap(),
        policy: Policy { regions: 1, nodes: 0, providers: 0, floor_nodes },
        sealed_config: vec![1, 2, 3],
        key_slots: vec![vec![4]],
    }
}

/// Pack number `which` always has the same contents; packs share some chunks.
pub(super) fn pack(which: u8, holders: &[Option<u64>]) -> PackCommit {
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let len = 1_000 + u64::from(which) * 100;
    let chunks =
        (0..3).map(|i| ChunkSpan { id: ChunkId([which + i * 2; 32]), offset: u32::from(i) * 300, len: 300 });
    let shards = (0..6u8).map(|i| ShardRecord {
        node: holders.get(usize::from(i)).copied().flatten().map(NodeId),
        hash: ShardHash([which + 1; 32]),
    });
    PackCommit {
        id: PackId([which; 32]),
        kind: if which.is_multiple_of(2) { PackKind::Data } else { PackKind::Tree },
        len,
        chunks: chunks.collect(),
        scheme,
        shard_len: scheme.shard_len(len),
        shards: shards.collect(),
    }
}

fn damage(mut pack: PackCommit, how: u8) -> PackCommit {
    match how {
        1 => pack.len = 0,
        2 => pack.len = 899,
        3 => pack.shard_len += 1,
        4 => drop(pack.shards.pop()),
        5 => pack.shards[1].hash = ShardHash([0; 32]),
        6 => pack.chunks[1].id = pack.chunks[0].id,
        7 => pack.chunks.swap(0, 1),
        8 => pack.chunks[2].len = 0,
        9 => pack.chunks[0].len = 301,
        10 => pack.chunks.clear(),
        11 => pack.chunks.truncate(2),
        12 => pack.kind = PackKind::Tree,
        13 => pack.chunks[2].id = ChunkId([99; 32]),
        _ => {}
    }
    pack
}

pub(super) fn snapshot(which: u8, repo: u8, live: &[u64], how: u8) -> SnapshotRecord {
    let mut live = live.iter().copied().map(Ordinal).collect::<LiveSet>().encode();
    match how {
        1 => live.push(0),
        2 => drop(live.pop()),
        3 => live = vec![0xff; 40],
        _ => {}
    }
    SnapshotRecord {
        id: SnapshotId([which; 32]),
        repo: RepoId([repo; 16]),
        kind: SnapshotKind::Full,
        parent: None,
        group: [0; 16],
        committed_ms: 0,
        label: SnapshotLabel { partial: which == 3, ..SnapshotLabel::default() },
        sealed: vec![which; 10],
        live,
    }
}

/// A command, up to what can only be said when the state is known.
#[derive(Clone, Debug)]
enum Wish {
    Fixed(Command),
    /// Generation is the current one, plus this.
    Place {
        pack: u64,
        off: u64,
        index: u8,
        node: u64,
    },
    /// A copy that is condemned, back where it lies.
    Return {
        copy: usize,
    },
    /// From the state the node is in.
    State {
        node: u64,
        to: NodeState,
    },
    /// The recorded holder, if there is one.
    Bad {
        pack: u64,
        index: u8,
    },
    /// The first copies that are condemned.
    Swept {
        copies: usize,
    },
    /// Under an open session, if there is one.
    Under {
        nth: usize,
        command: Command,
    },
    /// A snapshot of chunks that are there, and maybe one that is not.
    Snap {
        nth: usize,
        which: u8,
        chunks: Vec<usize>,
        replaces: Option<u8>,
    },
    /// Of a snapshot that is there, in the trash or not.
    Change {
        nth: usize,
        change: RepoChange,
    },
    Condemn {
        packs: Vec<usize>,
    },
    Revive {
        packs: Vec<usize>,
    },
    /// As condemned, or one index beside it.
    Drop {
        packs: Vec<usize>,
        off: u64,
        looked: Option<u64>,
    },
    /// A shard that may or may not be recorded.
    Orphan {
        pack: usize,
        index: u8,
        node: u64,
        session: Option<usize>,
        seen: u64,
    },
    /// Chunks of some packs, into a new one.
    Compact {
        packs: Vec<usize>,
        which: u8,
        skip: usize,
    },
    /// At the current epoch, plus this; what it does.
    Migration {
        request: u8,
        off: u64,
        from: Region,
        to: Region,
        how: u8,
    },
    /// By place among what was moved: pack, generation off by, good shards.
    Verified {
        subject: usize,
        stripes: Vec<(usize, u64, u8)>,
        end: bool,
    },
    /// At the current epoch, plus this.
    Topology {
        request: u8,
        off: u64,
        changes: Vec<Change>,
        stage: bool,
    },
}

fn state() -> impl Strategy<Value = NodeState> {
    (0..6usize).prop_map(|i| NodeState::ALL[i])
}

fn wish() -> impl Strategy<Value = Wish> {
    let off = prop_oneof![6 => Just(0u64), 1 => Just(1u64)];
    let place = (0..7u64, off, 0..7u8, 1..=NODES + 1);
    prop_oneof![
        4 => command().prop_map(Wish::Fixed),
        2 => place.prop_map(|(pack, off, index, node)| Wish::Place { pack, off, index, node }),
        1 => (0..5usize).prop_map(|copy| Wish::Return { copy }),
        1 => (1..NODES, state()).prop_map(|(node, to)| Wish::State { node, to }),
        1 => (0..7u64, 0..6u8).prop_map(|(pack, index)| Wish::Bad { pack, index }),
        1 => (0..5usize).prop_map(|copies| Wish::Swept { copies }),
        6 => (0..4usize, command()).prop_map(|(nth, command)| Wish::Under { nth, command }),
        3 => (0..4usize, 0..5u8, prop::collection::vec(0..40usize, 0..5), prop::option::weighted(0.2, 0..5u8))
            .prop_map(|(nth, which, chunks, replaces)| Wish::Snap { nth, which, chunks, replaces }),
        3 => (0..6usize, change()).prop_map(|(nth, change)| Wish::Change { nth, change }),
        3 => packs().prop_map(|packs| Wish::Condemn { packs }),
        1 => packs().prop_map(|packs| Wish::Revive { packs }),
        3 => (packs(), prop_oneof![6 => Just(0u64), 1 => Just(1u64)], prop::option::weighted(0.2, 0..40u64))
            .prop_map(|(packs, off, looked)| Wish::Drop { packs, off, looked }),
        1 => (0..7usize, 0..6u8, 1..=NODES, prop::option::of(0..3usize), 0..60u64).prop_map(
            |(pack, index, node, session, seen)| Wish::Orphan { pack, index, node, session, seen }
        ),
        1 => (packs(), 0..4u8, 0..3usize).prop_map(|(packs, which, skip)| Wish::Compact { packs, which, skip }),
        2 => topology(),
        1 => migration(),
        2 => (0..4usize, prop::collection::vec((0..6usize, 0..2u64, any::<u8>()), 0..4), any::<bool>())
            .prop_map(|(subject, stripes, end)| Wish::Verified { subject, stripes, end }),
    ]
}

fn packs() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(0..7usize, 1..4)
}

fn change() -> impl Strategy<Value = RepoChange> {
    let ids = || prop::collection::vec((0..5u8).prop_map(|s| SnapshotId([s; 32])), 0..3);
    let mode =
        || any::<bool>().prop_map(|hard| if hard { LockMode::Compliance } else { LockMode::Governance });
    let lock = (mode(), 0..120u64).prop_map(|(mode, until_ms)| Lock { mode, until_ms });
    let repo_lock = (mode(), 0..60u64).prop_map(|(mode, for_ms)| RepoLock { mode, for_ms });
    let soft = |lock: RepoLock| RepoLock { mode: LockMode::Governance, ..lock };
    prop_oneof![
        6 => (ids(), any::<bool>()).prop_map(|(snapshots, bypass)| RepoChange::Forget { snapshots, bypass }),
        2 => ids().prop_map(|snapshots| RepoChange::Undelete { snapshots }),
        5 => (ids(), any::<bool>()).prop_map(|(snapshots, early)| RepoChange::Purge { snapshots, early }),
        4 => ((0..5u8), lock, any::<bool>()).prop_map(|(s, lock, bypass)| {
            RepoChange::LockSnapshot { snapshot: SnapshotId([s; 32]), lock, bypass }
        }),
        1 => (prop::option::of(repo_lock.prop_map(soft)), any::<bool>())
            .prop_map(|(lock, bypass)| RepoChange::Lock { lock, bypass }),
        1 => prop::option::of(0..20u64).prop_map(|trash_ms| RepoChange::SetTrash { trash_ms }),
        1 => prop::option::of("[a-z]{3}").prop_map(|policy| RepoChange::SetRetention { policy }),
        1 => (0..2u8, 0..3u8, 1..4u8, 1..3u8, 0..2u8).prop_map(|(regions, nodes, m, spread, floor_nodes)| {
            let policy = Policy { regions, nodes, providers: 0, floor_nodes };
            RepoChange::SetPolicy { policy, scheme: Scheme::new(1, m, spread).unwrap() }
        }),
        1 => (0..5u8).prop_map(|s| RepoChange::MarkVerified { snapshot: SnapshotId([s; 32]) }),
        3 => (slots(), slots()).prop_map(|(before, slots)| {
            RepoChange::SetKeySlots { expected: slots_hash(&before), slots }
        }),
        4 => ((0..5u8), described(), described(), 0..3usize).prop_map(|(s, before, sealed, tags)| {
            let (snapshot, expected) = (SnapshotId([s; 32]), sealed_hash(&before));
            RepoChange::Describe { snapshot, expected, sealed, tags: vec![[7; 8]; tags * 33] }
        }),
    ]
}

/// Descriptions that are often there: what snapshots begin with, and two others. None is no description.
fn described() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => (0..5u8).prop_map(|n| vec![n; 10]), 4 => (0..2u8).prop_map(|n| vec![n; 3]), 1 => Just(vec![])]
}

/// Few enough that what is expected is often there; the first is what repositories begin with. Some are too many, or too
/// large.
fn slots() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop_oneof![
        3 => Just(vec![vec![4]]),
        4 => (0..2u8).prop_map(|n| vec![vec![4], vec![n; 3]]),
        1 => prop_oneof![Just(vec![]), Just(vec![vec![]]), Just(vec![vec![1]; 33]), Just(vec![vec![1; 4_097]])],
    ]
}

fn topology() -> impl Strategy<Value = Wish> {
    let change = (0..3usize, 1..=NODES)
        .prop_map(|(kind, node)| [Change::Drain, Change::Keep, Change::Remove][kind](NodeId(node)));
    // One before the current one is the same request again, or somebody who looked too early.
    let off = prop_oneof![6 => Just(0u64), 2 => Just(u64::MAX), 1 => Just(1u64)];
    let changes = prop::collection::vec(change, 0..3);
    (0..3u8, off, changes, prop::bool::weighted(0.3))
        .prop_map(|(request, off, changes, stage)| Wish::Topology { request, off, changes, stage })
}

fn migration() -> impl Strategy<Value = Wish> {
    let region = || (0..4u8).prop_map(|r| format!("test/r{r}").parse::<Region>().unwrap());
    let off = prop_oneof![6 => Just(0u64), 2 => Just(u64::MAX), 1 => Just(1u64)];
    (0..3u8, off, region(), region(), 0..7u8).prop_map(|(request, off, from, to, how)| Wish::Migration {
        request,
        off,
        from,
        to,
        how,
    })
}

fn command() -> impl Strategy<Value = Command> {
    let holder = || prop_oneof![8 => (1..NODES).prop_map(Some), 1 => Just(None), 1 => Just(Some(NODES + 1))];
    let spread = Just((1..=6).map(Some).collect::<Vec<Option<u64>>>());
    let holders = prop_oneof![3 => spread, 2 => prop::collection::vec(holder(), 6)];
    let any_pack = (0..6u8, holders, prop_oneof![4 => Just(0u8), 1 => 0..14u8]);
    let packs = prop::collection::vec(any_pack.prop_map(|(w, h, how)| damage(pack(w, &h), how)), 0..3);
    // Many, since an id that has ended is of no use any more; some few come again and again.
    let session = || {
        prop_oneof![1 => 0..8u16, 4 => 0..4_000u16].prop_map(|s| {
            let [low, high] = s.to_le_bytes();
            let mut id = [low; 16];
            id[15] = high.max(if s < 256 { low } else { 0 });
            SessionId(id)
        })
    };
    let repo_id = || (0..3u8).prop_map(|r| RepoId([r; 16]));
    let live = prop::collection::vec(prop_oneof![9 => 0..8u64, 1 => 0..100u64], 0..6);
    let snap = (0..4u8, 0..2u8, live, prop_oneof![6 => Just(0u8), 1 => 0..4u8]);
    let shard = (0..6u8).prop_map(|i| ShardId { stripe: StripeId([i; 16]), index: i });
    prop_oneof![
        1 => any::<bool>().prop_map(|scrub_paused| {
            Command::SetUpkeep { upkeep: Upkeep { scrub_paused, ..Upkeep::default() } }
        }),
        1 => any::<[u8; 16]>().prop_map(|c| Command::FormCluster { cluster: ClusterId(c) }),
        2 => (1..NODES, any::<bool>()).prop_map(|(n, good)| {
            let addr = if good { "elsewhere:1".into() } else { String::new() };
            Command::PutNode { node: NodeRecord { addr, ..node(n) } }
        }),
        4 => (1..=NODES, state(), state()).prop_map(|(n, from, to)| {
            Command::SetNodeState { node: NodeId(n), from, to }
        }),
        1 => (0..3u8, 0..3u8, 0..3u8).prop_map(|(id, n, f)| Command::CreateRepository { repo: repo(id, n, f) }),
        4 => (session(), repo_id()).prop_map(|(session, repo)| Command::OpenSession { session, repo, seen: 0 }),
        1 => prop::collection::vec(session(), 0..3).prop_map(|sessions| Command::EndSessions { sessions }),
        8 => (session(), packs).prop_map(|(session, packs)| Command::CommitPacks { session, packs }),
        4 => (session(), snap).prop_map(|(session, (which, repo, live, how))| {
            Command::CommitSnapshot { session, snapshot: snapshot(which, repo, &live, how), replaces: None }
        }),
        1 => (0..8u64, 0..8u8, 0..9u64).prop_map(|(p, index, n)| {
            Command::ShardBad { pack: PackNo(p), index, node: NodeId(n) }
        }),
        1 => prop::collection::vec(0..8u64, 0..5).prop_map(|p| {
            Command::Recheck { packs: p.into_iter().map(PackNo).collect() }
        }),
        5 => (repo_id(), change()).prop_map(|(repo, change)| Command::ChangeRepository { repo, change }),
        1 => shard.prop_map(|shard| Command::Swept { copies: vec![Condemned { node: NodeId(1), shard }] }),
        2 => (1..=NODES, 0..2u64, any::<bool>(), 0..3u64, 1..=FEATURE_LEVEL).prop_map(
            |(n, incarnation, good, capacity, level)| {
                let addr = if good { format!("there:{n}") } else { String::new() };
                let node = NodeRecord { addr, capacity, ..node(n.min(NODES - 1)) };
                Command::AdmitNode { node, incarnation, level }
            }
        ),
        1 => (0..=FEATURE_LEVEL).prop_map(|to| Command::RaiseLevel { to }),
        2 => export().prop_map(|export| Command::RecordExport { export }),
        1 => (1..NODES).prop_map(|n| Command::BeginEra { era: n as u32, node: NodeId(n) }),
    ]
}

fn export() -> impl Strategy<Value = ExportRecord> {
    let part =
        (0..9u8, prop::collection::vec(prop::option::of(1..=NODES), 2..4)).prop_map(|(which, nodes)| {
            let shard =
                |node: &Option<u64>| ShardRecord { node: node.map(NodeId), hash: ShardHash([which; 32]) };
            let shards = nodes.iter().map(shard).collect();
            ExportPart { pack: PackId([which; 32]), len: 100, scheme: Scheme::new(1, 1, 1).unwrap(), shards }
        });
    (0..4u8, any::<bool>(), 0..9u64, prop::collection::vec(part, 0..3)).prop_map(|(id, base, to, parts)| {
        let from = if base { 0 } else { u64::from(id) };
        ExportRecord { id: ExportId([id; 16]), base, from, to, time_ms: 0, made_ms: 0, bytes: 100, parts }
    })
}

fn resolve(wish: Wish, model: &Model) -> Command {
    let pack_at = |nth: u64| model.packs.values().nth(nth as usize);
    let some = |nth: &[usize]| {
        nth.iter().filter_map(|nth| model.packs.values().nth(*nth)).map(|pack| pack.no).collect::<Vec<_>>()
    };
    let nth_session = |nth: usize| model.sessions.values().nth(nth % model.sessions.len().max(1));
    match wish {
        Wish::Fixed(command) => command,
        Wish::Under { nth, command } => {
            let Some(open) = nth_session(nth) else { return command };
            match command {
                Command::CommitPacks { packs, .. } => Command::CommitPacks { session: open.id, packs },
                Command::CommitSnapshot { mut snapshot, replaces, .. } => {
                    snapshot.repo = open.repo;
                    Command::CommitSnapshot { session: open.id, snapshot, replaces }
                }
                other => other,
            }
        }
        Wish::Snap { nth, which, chunks, replaces } => {
            let Some(open) = nth_session(nth) else { return Command::EndSessions { sessions: vec![] } };
            let present = model.present(open.repo);
            let live = chunks
                .iter()
                .map(|nth| present.keys().nth(*nth % (present.len() + 1)).copied().unwrap_or(*nth as u64));
            let mut snapshot = snapshot(which, 0, &live.collect::<Vec<_>>(), 0);
            snapshot.repo = open.repo;
            let replaces = replaces.map(|s| SnapshotId([s; 32]));
            Command::CommitSnapshot { session: open.id, snapshot, replaces }
        }
        Wish::Change { nth, mut change } => {
            let mut there = model.snapshots.keys().chain(model.trash.keys());
            let Some((repo, id)) = there.nth(nth).copied() else {
                return Command::ChangeRepository { repo: RepoId([0; 16]), change };
            };
            match &mut change {
                RepoChange::Forget { snapshots, .. }
                | RepoChange::Undelete { snapshots }
                | RepoChange::Purge { snapshots, .. } => snapshots.push(id),
                RepoChange::LockSnapshot { snapshot, .. }
                | RepoChange::MarkVerified { snapshot }
                | RepoChange::Describe { snapshot, .. } => *snapshot = id,
                _ => {}
            }
            Command::ChangeRepository { repo, change }
        }
        Wish::Condemn { packs } => Command::CondemnPacks { packs: some(&packs) },
        Wish::Revive { packs } => Command::RevivePacks { packs: some(&packs) },
        Wish::Drop { packs, off, looked } => {
            let at = |no: &PackNo| model.condemned_packs.get(&no.0).copied().unwrap_or(3) + off;
            // What the second look sees needed is never proposed; that is the planner's part of the proof.
            let mut dead = some(&packs);
            dead.retain(|no| !model.is_live(*no));
            let packs: Vec<_> = dead.iter().map(|no| CondemnedPack { no: *no, at: at(no) }).collect();
            Command::DropPacks { packs, looked: looked.unwrap_or(u64::MAX) }
        }
        Wish::Orphan { pack, index, node, session, seen } => {
            let stripe = pack_at(pack as u64).map_or(StripeId([pack as u8; 16]), |pack| pack.stripe.id);
            // Some are of exports, kept or not.
            let part = model.exports.iter().flat_map(|export| &export.parts).nth(index.into());
            let stripe = part.filter(|_| pack > 4).map_or(stripe, ExportPart::stripe);
            let session = session.map(|nth| nth_session(nth).map_or(SessionId([77; 16]), |open| open.id));
            let orphan = Orphan { shard: ShardId { stripe, index }, session, seen };
            Command::CondemnOrphans { node: NodeId(node), copies: vec![orphan] }
        }
        Wish::Compact { packs, which, skip } => {
            let from = some(&packs);
            let Some(first) = from.first().and_then(|no| model.packs.get(&no.0)) else {
                return Command::CondemnPacks { packs: vec![] };
            };
            let homed = model.chunks.iter().filter(|((repo, _), chunk)| {
                *repo == first.repo
                    && from.contains(&chunk.pack)
                    && model.packs[&chunk.pack.0].kind == first.kind
            });
            let mut new = pack(40 + which, &[1, 2, 3, 4, 5, 6].map(Some));
            new.kind = first.kind;
            let ids = homed.skip(skip).map(|((_, id), _)| *id).take(3).enumerate();
            new.chunks = ids.map(|(i, id)| ChunkSpan { id, offset: i as u32 * 300, len: 300 }).collect();
            Command::CompactPacks { repo: first.repo, pack: Box::new(new), from }
        }
        Wish::Place { pack, off, index, node } => {
            let generation = pack_at(pack).map_or(0, |pack| pack.stripe.generation) + off;
            let pack = pack_at(pack).map_or(PackNo(pack), |pack| pack.no);
            Command::PlaceShard { pack, generation, index, node: NodeId(node) }
        }
        Wish::Return { copy } => {
            let Some(copy) = model.condemned.iter().nth(copy).copied() else {
                return Command::Swept { copies: vec![] };
            };
            let pack = model.packs.values().find(|pack| pack.stripe.id == copy.shard.stripe);
            // A condemned part of an export belongs to no pack.
            let Some((pack, generation)) = pack.map(|pack| (pack.no, pack.stripe.generation)) else {
                return Command::Swept { copies: vec![copy] };
            };
            Command::PlaceShard { pack, generation, index: copy.shard.index, node: copy.node }
        }
        Wish::State { node, to } => {
            let from = model.nodes[&NodeId(node)].state;
            Command::SetNodeState { node: NodeId(node), from, to }
        }
        Wish::Bad { pack, index } => {
            let holder = pack_at(pack).and_then(|pack| pack.stripe.shards.get(usize::from(index))?.node);
            let pack = pack_at(pack).map_or(PackNo(pack), |pack| pack.no);
            Command::ShardBad { pack, index, node: holder.unwrap_or_default() }
        }
        Wish::Swept { copies } => {
            Command::Swept { copies: model.condemned.iter().take(copies).copied().collect() }
        }
        Wish::Migration { request, off, from, to, how } => {
            let (request, epoch) = ([request; 16], model.intent.epoch.saturating_add_signed(off as i64));
            let nth = model.migrations.keys().next().cloned();
            match how {
                0..=1 => Command::Migrate { request, epoch, from, to, cold: how == 1 },
                // Ended most of the time, since all that is written is refused during a cold one.
                _ => Command::EndMigration { request, epoch, from: nth.unwrap_or(from), keep: how > 2 },
            }
        }
        Wish::Verified { subject, stripes, end } => verified(model, subject, &stripes, end),
        Wish::Topology { request, off, changes, stage } => {
            let (request, epoch) = ([request; 16], model.intent.epoch.saturating_add_signed(off as i64));
            match stage {
                true => Command::StageTopology { request, epoch, changes },
                false => Command::ChangeTopology { request, epoch, changes },
            }
        }
    }
}

/// What is waiting to be read again, or something else.
fn verified(model: &Model, subject: usize, stripes: &[(usize, u64, u8)], end: bool) -> Command {
    let mut subjects: Vec<_> = model.moved.iter().map(|(subject, _)| *subject).collect();
    subjects.extend(model.verifications.values().map(|(row, _)| row.subject));
    let subject = subjects.get(subject).copied().unwrap_or(Subject::Node(NodeId(subject as u64)));
    let packs: Vec<_> = model.moved.iter().filter(|(of, _)| *of == subject).map(|(_, pack)| *pack).collect();
    let read = |&(nth, off, good): &(usize, u64, u8)| {
        let pack = packs.get(nth).copied().unwrap_or(PackNo(nth as u64));
        let generation = model.packs.get(&pack.0).map_or(0, |pack| pack.stripe.generation) + off;
        // Now and then a shard that the pack does not have.
        let good = if good > 250 { u32::from(good) } else { u32::from(good & 0b11_1111) };
        StripeRead { pack, generation, good }
    };
    Command::RecordVerified { subject, stripes: stripes.iter().map(read).collect(), end }
}

/// A formed cluster of six nodes in three regions with two repositories and a session for each.
pub(super) fn prologue() -> Vec<Command> {
    let mut commands = vec![Command::FormCluster { cluster: ClusterId([9; 16]) }];
    commands.extend((1..NODES).map(|id| Command::PutNode { node: node(id) }));
    for r in 0..2 {
        commands.push(Command::CreateRepository { repo: repo(r, r, 1) });
        let (session, repo) = (SessionId([r; 16]), RepoId([r; 16]));
        commands.push(Command::OpenSession { session, repo, seen: 0 });
    }
    commands
}

/// All six nodes are updated, and the cluster uses what that brings.
pub(super) fn rise() -> Vec<Command> {
    let admit = |id| Command::AdmitNode { node: node(id), incarnation: 1, level: FEATURE_LEVEL };
    (1..NODES).map(admit).chain([Command::RaiseLevel { to: FEATURE_LEVEL }]).collect()
}

fn every<T, K: Copy>(mut page: impl FnMut(Option<K>) -> Page<T, K>) -> Vec<T> {
    let (mut rows, mut at) = (Vec::new(), None);
    loop {
        let part = page(at);
        rows.extend(part.rows);
        match part.next {
            Some(next) => at = Some(next),
            None => return rows,
        }
    }
}

fn compare(view: &View, model: &Model) {
    assert_eq!(view.cluster(), model.cluster);
    assert_eq!(view.time_ms(), model.time_ms);
    assert_eq!(view.nodes().unwrap(), model.nodes.values().cloned().collect::<Vec<_>>());
    assert_eq!(view.intent().unwrap(), model.intent);
    assert_eq!((view.level(), view.node_levels().unwrap()), (model.level(), model.node_levels.clone()));
    assert_eq!(view.incarnations().unwrap(), model.incarnations);
    assert_eq!(view.migrations().unwrap(), model.migrations.values().cloned().collect::<Vec<_>>());
    assert_eq!(view.upkeep().unwrap(), model.upkeep);
    let mut moved = Vec::new();
    for subject in view.moved_subjects().unwrap() {
        moved.extend(view.moved(subject, None, 999).unwrap().into_iter().map(|pack| (subject, pack)));
    }
    assert_eq!(moved, model.moved.iter().copied().collect::<Vec<_>>());
    let verifications = view.verifications().unwrap();
    let of_model = model.verifications.iter().map(|(number, (row, _))| (*number, *row));
    assert_eq!(verifications, of_model.collect::<Vec<_>>());
    for (number, (_, stripes)) in &model.verifications {
        let rows = view.verified_stripes(*number, None, 999).unwrap();
        assert_eq!(rows, stripes.iter().map(|(pack, row)| (*pack, *row)).collect::<Vec<_>>());
    }
    let repos = every(|at| view.repos(at, 2).unwrap());
    assert_eq!(repos, model.repos.values().cloned().collect::<Vec<_>>());
    let sessions = every(|at| view.sessions(at, 2).unwrap());
    assert_eq!(sessions, model.sessions.values().cloned().collect::<Vec<_>>());
    assert_eq!(
        every(|at| view.all_packs(at.unwrap_or_default(), 2).unwrap()),
        model.packs.values().cloned().collect::<Vec<_>>()
    );
    for repo in model.repos.values() {
        compare_repo(view, model, repo);
    }
    for pack in model.packs.values() {
        let ids = model.tables[&pack.no.0].clone();
        assert_eq!(view.chunks_of(pack.no).unwrap(), ids);
        let homed = model.chunks.iter().filter(|((repo, _), c)| *repo == pack.repo && c.pack == pack.no);
        let homed = homed.map(|(_, chunk)| chunk.ordinal).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(view.ordinals_of(pack).unwrap().iter().collect::<std::collections::BTreeSet<_>>(), homed);
        assert_eq!(view.pack_by_id(pack.repo, pack.id).unwrap().as_ref(), Some(pack));
        assert_eq!(view.pack_of_stripe(pack.stripe.id).unwrap().as_ref(), Some(pack));
    }
    let weak = every(|at| view.under_target(at.unwrap_or_default(), 2).unwrap());
    assert_eq!(weak, model.under_target.iter().copied().collect::<Vec<_>>());
    let mut condemned = Vec::new();
    for id in (0..=NODES + 1).map(NodeId) {
        let held = every(|at| view.packs_held_by(id, at.unwrap_or_default(), 2).unwrap());
        assert_eq!(held, model.held_by(id));
        condemned.extend(every(|at| view.condemned(id, at, 2).unwrap()));
    }
    assert_eq!(view.exports().unwrap(), model.exports);
    assert_eq!(records(view), model.audit);
    assert_eq!(condemned, model.condemned.iter().copied().collect::<Vec<_>>());
    let counts = view.counts();
    assert_eq!(counts.packs, model.packs.len() as u64);
    assert_eq!(counts.pack_bytes, model.packs.values().map(|pack| pack.len).sum::<u64>());
    assert_eq!(counts.trash, model.trash.len() as u64);
    assert_eq!(counts.condemned_packs, model.condemned_packs.len() as u64);
    assert_eq!(counts.chunks, model.chunks.len() as u64);
    assert_eq!(counts.under_target, model.under_target.len() as u64);
    assert_eq!(counts.condemned, model.condemned.len() as u64);
    assert_eq!(counts.snapshots, model.snapshots.len() as u64);
}

fn compare_repo(view: &View, model: &Model, repo: &RepoRecord) {
    let recoding = view.repo_use(repo.id).unwrap().recoding;
    assert_eq!(recoding, model.recodings.get(&repo.id).map(|open| (*open, repo.policy)));
    assert_eq!(view.repo_by_name(repo.name.as_str()).unwrap().as_ref(), Some(repo));
    let mine = |pack: &&PackRecord| pack.repo == repo.id;
    let packs = every(|at| view.packs(repo.id, at.unwrap_or_default(), 2).unwrap());
    assert_eq!(packs, model.packs.values().filter(mine).cloned().collect::<Vec<_>>());
    let from_one = view.packs(repo.id, PackNo(1), 99).unwrap().rows;
    let model_from_one = model.packs.values().filter(mine).filter(|pack| pack.no >= PackNo(1));
    assert_eq!(from_one, model_from_one.cloned().collect::<Vec<_>>());
    let ids = (0..20).map(|i| ChunkId([i; 32])).collect::<Vec<_>>();
    let found = ids.iter().map(|id| model.chunks.get(&(repo.id, *id)).copied()).collect::<Vec<_>>();
    assert_eq!(view.lookup(repo.id, &ids).unwrap(), found);
    let offered = ids.iter().map(|id| model.offered(repo.id, *id)).collect::<Vec<_>>();
    assert_eq!(view.offered(repo.id, &ids).unwrap(), offered);
    let trash = every(|at| view.trash(repo.id, at, 2).unwrap());
    let without_live = |row: &SnapshotRecord| SnapshotRecord { live: Vec::new(), ..row.clone() };
    let of_model = model.trash.values().filter(|s| s.repo == repo.id).map(without_live);
    assert_eq!(trash, of_model.collect::<Vec<_>>());
    assert_eq!(view.settings(repo.id).unwrap(), model.settings.get(&repo.id).cloned().unwrap_or_default());
    for row in model.snapshots.values().chain(model.trash.values()).filter(|s| s.repo == repo.id) {
        let marks = model.marks.get(&(repo.id, row.id)).copied().unwrap_or_default();
        assert_eq!(view.marks(repo.id, row.id).unwrap(), marks);
    }
    compare_use(view, model, repo);
    let next = model.ordinals.get(&repo.id).copied().unwrap_or(0);
    assert_eq!(view.next_ordinal(repo.id).unwrap(), Ordinal(next));
    let snapshots = every(|at| view.snapshots(repo.id, at, 2, true).unwrap());
    let of_model = model.snapshots.values().filter(|s| s.repo == repo.id).cloned();
    assert_eq!(snapshots, of_model.collect::<Vec<_>>());
    for row in &snapshots {
        assert_eq!(view.snapshot(repo.id, row.id).unwrap().as_ref(), Some(row));
    }
    assert!(view.snapshots(repo.id, None, 9, false).unwrap().rows.iter().all(|row| row.live.is_empty()));
}

/// What garbage collection goes by, and what an ordinal is: worked out one by one.
fn compare_use(view: &View, model: &Model, repo: &RepoRecord) {
    let of = view.repo_use(repo.id).unwrap();
    let all = model.snapshots.values().chain(model.trash.values()).filter(|s| s.repo == repo.id);
    let live = all
        .flat_map(|s| roaring::RoaringTreemap::deserialize_from(&s.live[..]).unwrap())
        .collect::<std::collections::BTreeSet<_>>();
    assert_eq!(of.live, live.iter().copied().map(Ordinal).collect());
    let present = model.present(repo.id);
    assert!(live.iter().all(|ordinal| present.contains_key(ordinal)), "a snapshot lacks a chunk");
    for pack in view.pack_uses(&of, PackNo(0), 99).unwrap().rows {
        let homed = model.chunks.iter().filter(|((r, _), c)| *r == repo.id && c.pack == pack.no);
        assert_eq!(pack.live, homed.filter(|(_, c)| live.contains(&c.ordinal.0)).count() as u64);
        assert_eq!(pack.condemned, model.condemned_packs.get(&pack.no.0).copied());
    }
    let mine = || model.sessions.values().filter(|session| session.repo == repo.id);
    assert_eq!(of.oldest_session, mine().map(|session| session.opened).min());
    assert_eq!(of.first_own, mine().map(|session| session.first_pack).min());
}

pub(super) fn image_of(catalogue: &Catalogue) -> (Vec<ImagePage>, u64, StateHash) {
    let mut writer = ImageWriter::begin(catalogue).unwrap();
    let mut pages = Vec::new();
    while let Some(page) = writer.next_page().unwrap() {
        pages.push(page);
    }
    (pages, writer.rows(), writer.state_hash())
}

/// State hash and row counts, worked out anew from the rows.
pub(super) fn recount(catalogue: &Catalogue) {
    let (pages, _, claimed) = image_of(catalogue);
    let mut hash = StateHash::default();
    let mut rows = std::collections::BTreeMap::<u8, u64>::new();
    for row in pages.iter().flatten() {
        if is_hashed(row.table, &row.key) {
            hash = hash.plus(StateHash::of_row(row.table, &row.key, row.value[0], &row.value[1..]));
        }
        *rows.entry(row.table).or_default() += u64::from(row.table != 1);
    }
    assert_eq!(hash, claimed);
    assert_eq!(ImageWriter::begin(catalogue).unwrap().rehash().unwrap(), claimed);
    assert_eq!(hash, catalogue.view().unwrap().state_hash());
    let live = catalogue.inner.live();
    for table in &TABLES[1..] {
        assert_eq!(live.state.rows_of(*table), rows.get(table).copied().unwrap_or(0), "table {table}");
    }
}

pub(super) fn install(from: &Catalogue, into: &Catalogue) {
    let (pages, rows, hash) = image_of(from);
    let mut reader = ImageReader::begin(into).unwrap();
    pages.iter().for_each(|page| reader.add_page(page).unwrap());
    reader.finish(rows, hash).unwrap();
}

/// The commands as they were resolved, with what the model answered, and the model in the end.
fn run_model(wishes: Vec<(u64, Wish)>, updated: bool) -> (Vec<(Proposal, Reply)>, Model) {
    let mut model = Model::default();
    let mut log = Vec::new();
    let rise = rise().into_iter().filter(|_| updated);
    let prologue = prologue().into_iter().chain(rise).map(|command| (5, Wish::Fixed(command)));
    for (time_ms, wish) in prologue.chain(wishes) {
        let proposal = Proposal { time_ms, actor: asker(time_ms), command: resolve(wish, &model) };
        let reply = model.apply(log.len() as u64 + 1, &proposal);
        log.push((proposal, reply));
    }
    (log, model)
}

fn run(catalogue: &Catalogue, log: &[(Proposal, Reply)], batch: usize) {
    let entries = log.iter().zip(1u64..).collect::<Vec<_>>();
    for batch in entries.chunks(batch) {
        let mut tx = catalogue.begin();
        for ((proposal, reply), index) in batch {
            let got = tx.apply(*index, proposal).unwrap();
            assert_eq!(kind(&got), kind(reply), "entry {index}: {:?}", proposal.command);
        }
        tx.note(NoteKey::Applied, vec![batch.len() as u8]).unwrap();
        tx.commit().unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn the_catalogue_is_the_model(
        wishes in prop::collection::vec((0..50u64, wish()), 0..60),
        batch in 2..20usize,
        updated: bool,
    ) {
        let (log, model) = run_model(wishes, updated);
        let one = new_catalogue();
        run(&one, &log, 1);
        compare(&one.view().unwrap(), &model);
        recount(&one);
        let many = new_catalogue();
        run(&many, &log, batch);
        prop_assert_eq!(many.view().unwrap().state_hash(), one.view().unwrap().state_hash());
        prop_assert_eq!(many.applied(), log.len() as u64);
        let copy = new_catalogue();
        run(&copy, &log[..log.len() / 3], 4);
        install(&one, &copy);
        compare(&copy.view().unwrap(), &model);
        recount(&copy);
    }
}

/// A million commands in long histories, against the model: every reply equal, and the whole state every so often.
/// `FARSHORE_COMMANDS` sets another number.
#[test]
fn a_million_random_commands() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
    const EACH: usize = 4_000;
    let wanted = std::env::var("FARSHORE_COMMANDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1_000_000);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let runs = usize::div_ceil(wanted, EACH);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            scope.spawn(move || {
                for run in (thread..runs).step_by(threads) {
                    let seed = TestRng::from_seed(
                        RngAlgorithm::ChaCha,
                        &[(run as u8) ^ ((run >> 8) as u8).wrapping_mul(31); 32],
                    );
                    let mut runner = TestRunner::new_with_rng(Config::default(), seed);
                    let (mut model, catalogue) = (Model::default(), new_catalogue());
                    let mut tx = catalogue.begin();
                    let wish = (0..50u64, wish());
                    for index in 1..=EACH as u64 {
                        // Most histories are of an updated cluster, and some never become one.
                        let mut known = prologue();
                        known.extend(rise().into_iter().filter(|_| run % 3 > 0));
                        let known = known.into_iter().nth(index as usize - 1);
                        let (time_ms, wish) = match known {
                            Some(command) => (5, Wish::Fixed(command)),
                            None => wish.new_tree(&mut runner).unwrap().current(),
                        };
                        let command = resolve(wish, &model);
                        let proposal =
                            Proposal { time_ms: time_ms + index / 40, actor: asker(index), command };
                        let reply = model.apply(index, &proposal);
                        let got = tx.apply(index, &proposal).unwrap();
                        assert_eq!(
                            kind(&got),
                            kind(&reply),
                            "run {run}, entry {index}: {:?}",
                            proposal.command
                        );
                        if index % 50 == 0 {
                            tx.commit().unwrap();
                            tx = catalogue.begin();
                        }
                        if index % 1_000 == 0 {
                            compare(&catalogue.view().unwrap(), &model);
                        }
                    }
                    drop(tx);
                    recount(&catalogue);
                }
            });
        }
    });
}

#[test]
fn the_random_commands_reach_every_kind_of_reply() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..500 {
        let wishes = prop::collection::vec((0..50u64, wish()), 60).new_tree(&mut runner).unwrap().current();
        for (_, reply) in run_model(wishes, round % 2 == 0).0 {
            let word = format!("{:?}", kind(&reply));
            let word = word.trim_start_matches("Refused(");
            seen.insert(word.split(['(', ' ', ')']).next().unwrap_or("").to_string());
        }
    }
    let words = [
        "AlreadyFormed",
        "NoNode",
        "BadTransition",
        "NotEmpty",
        "RepoExists",
        "NoRepo",
        "NoSession",
        "ChunksGone",
        "Malformed",
        "BelowFloor",
        "Stale",
        "NoPack",
        "StillCondemned",
        "SnapshotExists",
        "Locked",
        "LockShortened",
        "NoSnapshot",
        "Changed",
        "Emptied",
        "StaleTopology",
        "LevelBehind",
        "LevelHeld",
        "Done",
        "SessionOpen",
        "PacksCommitted",
        "SnapshotCommitted",
    ];
    let missing = words.iter().filter(|word| !seen.contains(**word)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}
