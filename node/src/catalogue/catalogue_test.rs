//! The catalogue against the model: random commands, valid and hostile, must give the same replies and leave the same
//! state; however they are batched, and also when the state travels as an image.

use super::model::{Model, kind};
use super::*;
use crate::kv::memory::MemoryKv;
use farshore_core::catalogue::*;
use farshore_core::erasure::Scheme;
use farshore_core::id::*;
use farshore_core::policy::Policy;
use farshore_core::topology::{NodeRecord, NodeState};
use proptest::prelude::*;

const NODES: u64 = 7;

pub(super) fn new_catalogue() -> Catalogue {
    Catalogue::open(Arc::new(MemoryKv::new())).unwrap()
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
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let holder = || prop_oneof![8 => (1..NODES).prop_map(Some), 1 => Just(None), 1 => Just(Some(NODES + 1))];
    let spread = Just((1..=6).map(Some).collect::<Vec<Option<u64>>>());
    let holders = prop_oneof![3 => spread, 2 => prop::collection::vec(holder(), 6)];
    let any_pack = (0..6u8, holders, prop_oneof![4 => Just(0u8), 1 => 0..14u8]);
    let packs = prop::collection::vec(any_pack.prop_map(|(w, h, how)| damage(pack(w, &h), how)), 0..3);
    let session = || (0..4u8).prop_map(|s| SessionId([s; 16]));
    let repo_id = || (0..3u8).prop_map(|r| RepoId([r; 16]));
    let live = prop::collection::vec(prop_oneof![9 => 0..8u64, 1 => 0..100u64], 0..6);
    let snap = (0..4u8, 0..2u8, live, prop_oneof![6 => Just(0u8), 1 => 0..4u8]);
    let shard = (0..6u8).prop_map(|i| ShardId { stripe: StripeId([i; 16]), index: i });
    prop_oneof![
        1 => any::<[u8; 16]>().prop_map(|c| Command::FormCluster { cluster: ClusterId(c) }),
        2 => (1..NODES, any::<bool>()).prop_map(|(n, good)| {
            let addr = if good { "elsewhere:1".into() } else { String::new() };
            Command::PutNode { node: NodeRecord { addr, ..node(n) } }
        }),
        4 => (1..=NODES, state(), state()).prop_map(|(n, from, to)| {
            Command::SetNodeState { node: NodeId(n), from, to }
        }),
        1 => (0..3u8, 0..3u8, 0..3u8).prop_map(|(id, n, f)| Command::CreateRepository { repo: repo(id, n, f) }),
        2 => (session(), repo_id()).prop_map(|(session, repo)| Command::OpenSession { session, repo }),
        1 => prop::collection::vec(session(), 0..3).prop_map(|sessions| Command::EndSessions { sessions }),
        8 => (session(), packs).prop_map(|(session, packs)| Command::CommitPacks { session, packs }),
        4 => (session(), snap).prop_map(|(session, (which, repo, live, how))| {
            Command::CommitSnapshot { session, snapshot: snapshot(which, repo, &live, how) }
        }),
        1 => (0..8u64, 0..8u8, 0..9u64).prop_map(|(p, index, n)| {
            Command::ShardBad { pack: PackNo(p), index, node: NodeId(n) }
        }),
        1 => prop::collection::vec(0..8u64, 0..5).prop_map(|p| {
            Command::Recheck { packs: p.into_iter().map(PackNo).collect() }
        }),
        1 => shard.prop_map(|shard| Command::Swept { copies: vec![Condemned { node: NodeId(1), shard }] }),
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
    let pack_at = |no: u64| model.packs.get(no as usize);
    match wish {
        Wish::Fixed(command) => command,
        Wish::Place { pack, off, index, node } => {
            let generation = pack_at(pack).map_or(0, |pack| pack.stripe.generation) + off;
            Command::PlaceShard { pack: PackNo(pack), generation, index, node: NodeId(node) }
        }
        Wish::Return { copy } => {
            let Some(copy) = model.condemned.iter().nth(copy).copied() else {
                return Command::Swept { copies: vec![] };
            };
            let pack = model.packs.iter().find(|pack| pack.stripe.id == copy.shard.stripe);
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
            Command::ShardBad { pack: PackNo(pack), index, node: holder.unwrap_or_default() }
        }
        Wish::Swept { copies } => {
            Command::Swept { copies: model.condemned.iter().take(copies).copied().collect() }
        }
    }
}

/// A formed cluster of six nodes in three regions with two repositories and a session for each.
pub(super) fn prologue() -> Vec<Command> {
    let mut commands = vec![Command::FormCluster { cluster: ClusterId([9; 16]) }];
    commands.extend((1..NODES).map(|id| Command::PutNode { node: node(id) }));
    for r in 0..2 {
        commands.push(Command::CreateRepository { repo: repo(r, r, 1) });
        commands.push(Command::OpenSession { session: SessionId([r; 16]), repo: RepoId([r; 16]) });
    }
    commands
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
    let repos = every(|at| view.repos(at, 2).unwrap());
    assert_eq!(repos, model.repos.values().cloned().collect::<Vec<_>>());
    let sessions = every(|at| view.sessions(at, 2).unwrap());
    assert_eq!(sessions, model.sessions.values().cloned().collect::<Vec<_>>());
    assert_eq!(every(|at| view.all_packs(at.unwrap_or_default(), 2).unwrap()), model.packs);
    for repo in model.repos.values() {
        compare_repo(view, model, repo);
    }
    for pack in &model.packs {
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
    assert_eq!(condemned, model.condemned.iter().copied().collect::<Vec<_>>());
    let counts = view.counts();
    assert_eq!(counts.packs, model.packs.len() as u64);
    assert_eq!(counts.pack_bytes, model.packs.iter().map(|pack| pack.len).sum::<u64>());
    assert_eq!(counts.chunks, model.chunks.len() as u64);
    assert_eq!(counts.under_target, model.under_target.len() as u64);
    assert_eq!(counts.condemned, model.condemned.len() as u64);
    assert_eq!(counts.snapshots, model.snapshots.len() as u64);
}

fn compare_repo(view: &View, model: &Model, repo: &RepoRecord) {
    assert_eq!(view.repo_by_name(repo.name.as_str()).unwrap().as_ref(), Some(repo));
    let mine = |pack: &&PackRecord| pack.repo == repo.id;
    let packs = every(|at| view.packs(repo.id, at.unwrap_or_default(), 2).unwrap());
    assert_eq!(packs, model.packs.iter().filter(mine).cloned().collect::<Vec<_>>());
    let from_one = view.packs(repo.id, PackNo(1), 99).unwrap().rows;
    let model_from_one = model.packs.iter().filter(mine).filter(|pack| pack.no >= PackNo(1));
    assert_eq!(from_one, model_from_one.cloned().collect::<Vec<_>>());
    let ids = (0..20).map(|i| ChunkId([i; 32])).collect::<Vec<_>>();
    let found = ids.iter().map(|id| model.chunks.get(&(repo.id, *id)).copied()).collect::<Vec<_>>();
    assert_eq!(view.lookup(repo.id, &ids).unwrap(), found);
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
fn run_model(wishes: Vec<(u64, Wish)>) -> (Vec<(Proposal, Reply)>, Model) {
    let mut model = Model::default();
    let mut log = Vec::new();
    let prologue = prologue().into_iter().map(|command| (5, Wish::Fixed(command)));
    for (time_ms, wish) in prologue.chain(wishes) {
        let proposal = Proposal { time_ms, command: resolve(wish, &model) };
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
    ) {
        let (log, model) = run_model(wishes);
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

#[test]
fn the_random_commands_reach_every_kind_of_reply() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..120 {
        let wishes = prop::collection::vec((0..50u64, wish()), 60).new_tree(&mut runner).unwrap().current();
        for (_, reply) in run_model(wishes).0 {
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
        "Done",
        "SessionOpen",
        "PacksCommitted",
        "SnapshotCommitted",
    ];
    let missing = words.iter().filter(|word| !seen.contains(**word)).collect::<Vec<_>>();
    assert!(missing.is_empty(), "never seen: {missing:?}");
}
