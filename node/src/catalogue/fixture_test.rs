//! Every row, command and reply, as version 1 writes it: decoded, compared with what it is, and encoded again.

use super::audit_test::records;
use super::migrate::{check_row, decode, decode_key, encode};
use super::ordinals::{Bits, Segment};
use super::*;
use crate::raft::reseat::{open_entry, seal_entry};
use crate::raft::types::{
    Entry, EntryPayload, LogId, MESSAGE_VERSION, Payload, PayloadError, open_message, seal_message,
};
use crate::testkit::{Fixtures, variants};
use farshore_core::catalogue::command::{COMMAND_VERSION, PackCommitted};
use farshore_core::catalogue::*;
use farshore_core::erasure::Scheme;
use farshore_core::id::*;
use farshore_core::policy::Policy;
use farshore_core::shard::{PackInfo, ShardHeader};
use farshore_core::topology::{Change, Intent, Name, NodeRecord, NodeState};
use openraft::CommittedLeaderId;
use serde::{Serialize, de::DeserializeOwned};
use std::collections::BTreeSet;
use std::fmt::Debug;

const REPO: RepoId = RepoId([0x11; 16]);
const SNAPSHOT: SnapshotId = SnapshotId([0x22; 32]);
const SESSION: SessionId = SessionId([0x33; 16]);
const PACK: PackId = PackId([0x44; 32]);
const CHUNK: ChunkId = ChunkId([0x55; 32]);
const STRIPE: StripeId = StripeId([0x66; 16]);
const NODE: NodeId = NodeId(0x0102_0304_0506_0708);

fn name() -> Name {
    "docs".parse().unwrap()
}
fn scheme() -> Scheme {
    Scheme::new(1, 1, 1).unwrap()
}
fn shards() -> Vec<ShardRecord> {
    let shard = |node, hash| ShardRecord { node, hash: ShardHash([hash; 32]) };
    vec![shard(Some(NODE), 0x77), shard(None, 0x78)]
}
fn node() -> NodeRecord {
    NodeRecord {
        id: NODE,
        name: "n1".parse().unwrap(),
        region: "aws/eu-west-1".parse().unwrap(),
        zone: Some("z1".parse().unwrap()),
        addr: "n1.example.org:7400".into(),
        capacity: 1 << 40,
        state: NodeState::Draining,
    }
}
fn repo() -> RepoRecord {
    RepoRecord {
        id: REPO,
        name: name(),
        policy: Policy { regions: 1, nodes: 2, providers: 3, floor_nodes: 4 },
        sealed_config: vec![1, 2],
        key_slots: vec![vec![3], vec![]],
    }
}
fn pack() -> PackRecord {
    PackRecord {
        no: PackNo(300),
        id: PACK,
        repo: REPO,
        kind: PackKind::Tree,
        len: 1_000,
        chunks: 2,
        first_ordinal: Ordinal(70_000),
        stripe: StripeRecord {
            id: STRIPE,
            scheme: scheme(),
            shard_len: 1_024,
            generation: 5,
            shards: shards(),
        },
    }
}
fn offered() -> PackCommit {
    let chunks = vec![ChunkSpan { id: CHUNK, offset: 1, len: 999 }];
    PackCommit {
        id: PACK,
        kind: PackKind::Data,
        len: 1_000,
        chunks,
        scheme: scheme(),
        shard_len: 1_024,
        shards: shards(),
    }
}
fn snapshot() -> SnapshotRecord {
    SnapshotRecord {
        id: SNAPSHOT,
        repo: REPO,
        kind: SnapshotKind::Differential,
        parent: Some(SnapshotId([0x23; 32])),
        group: [0x24; 16],
        committed_ms: 1_700_000_000_000,
        label: SnapshotLabel {
            time_ms: 9,
            utc_offset_min: Some(-90),
            bytes: 10,
            tags: vec![[1; 8]],
            partial: true,
        },
        sealed: vec![4, 5],
        live: vec![6],
    }
}
fn export() -> ExportRecord {
    let part = ExportPart { pack: PACK, len: 100, scheme: scheme(), shards: shards() };
    let id = ExportId([0x99; 16]);
    ExportRecord { id, base: true, from: 0, to: 7, time_ms: 8, made_ms: 9, bytes: 100, parts: vec![part] }
}
fn lock() -> Lock {
    Lock { mode: LockMode::Compliance, until_ms: 4_000_000_000_000 }
}
fn changes() -> Vec<Change> {
    vec![Change::Drain(NODE), Change::Keep(NodeId(2)), Change::Remove(NodeId(3))]
}
fn migration() -> Migration {
    let (from, to) = ("aws/eu-west-1".parse().unwrap(), "gcp/eu".parse().unwrap());
    Migration { from, to, cold: true, since_ms: 1_700_000_000_000, nodes: [NODE, NodeId(2)].into() }
}
fn upkeep() -> Upkeep {
    let Migration { from, to, .. } = migration();
    let link = LinkBudget { from, to, bytes_s: Some(300), bytes_day: Some(1 << 40), micros_gib: 20_000 };
    Upkeep {
        scrub_paused: true,
        scrub_every_ms: Some(2_592_000_000),
        node_bytes_s: Some(1 << 24),
        links: vec![link],
        spend_micros_day: Some(5_000_000),
    }
}
fn client() -> Actor {
    Actor::Client("ops".parse().unwrap())
}

/// Fixtures of rows, and which tables have one.
struct Book {
    fixtures: Fixtures,
    tables: BTreeSet<u8>,
}

impl Book {
    fn row<R: Rows<Value: PartialEq + Debug>>(&mut self, name: &str, key: &R::Key, value: &R::Value) {
        let table = R::TABLE;
        self.tables.insert(table);
        let key = self.fixtures.kept(&format!("{table} {name} key"), &key_bytes(key));
        let today = [&[R::VERSION], encode::<R>(value).unwrap().as_slice()].concat();
        let row = self.fixtures.kept(&format!("{table} {name} value"), &today);
        let (version, payload) = row.split_first().unwrap();
        assert_eq!(key_bytes(&decode_key::<R>(&key).unwrap()), key, "{name}");
        assert_eq!(decode::<R>(*version, payload).unwrap(), *value, "{name}");
        // The root row lies outside the catalogue it names.
        if !key.is_empty() {
            check_row(table, &key, *version, payload).unwrap();
        }
        for unknown in [0, R::VERSION + 1] {
            let error = decode::<R>(unknown, payload).unwrap_err();
            assert!(matches!(error, CatalogueError::UnknownVersion { .. }), "{name}: {error}");
        }
    }
}

#[test]
fn every_table_has_a_fixture_of_its_rows() {
    let mut book = Book { fixtures: Fixtures::of("rows-v1"), tables: BTreeSet::new() };
    let shard = ShardId { stripe: STRIPE, index: 3 };
    book.row::<Root>("root", &RootKey, &300);
    book.row::<Heads>("head", &HeadKey, &Head { hash: StateHash([1; 16]), applied: 300 });
    let state = State {
        cluster: Some(ClusterId([2; 16])),
        level: 2,
        time_ms: 1_700_000_000_000,
        next_pack: PackNo(3),
        pack_bytes: 4,
        ended_forgotten: 5,
        rows: [(2, 6), (45, 7)].into(),
    };
    book.row::<States>("state", &StateKey, &state);
    book.row::<Notes>("note applied", &NoteKey::Applied, &vec![1, 2]);
    book.row::<Notes>("note membership", &NoteKey::Membership, &vec![3]);
    book.row::<Nodes>("node", &NODE, &node());
    book.row::<Repos>("repository", &REPO, &repo());
    book.row::<RepoNames>("repository name", &NameKey("docs".into()), &REPO);
    let session = SessionRecord { id: SESSION, repo: REPO, opened: 1, opened_ms: 2, first_pack: PackNo(3) };
    book.row::<Sessions>("session", &SESSION, &session);
    book.row::<Packs>("pack", &PackNo(300), &pack());
    book.row::<PackIds>("pack id", &(REPO, PACK), &PackNo(300));
    book.row::<Stripes>("stripe", &STRIPE, &PackNo(300));
    let chunk = ChunkRecord { ordinal: Ordinal(70_001), pack: PackNo(300), offset: 5, len: 6 };
    book.row::<Chunks>("chunk", &(REPO, CHUNK), &chunk);
    book.row::<NextOrdinals>("next ordinal", &REPO, &Ordinal(70_002));
    book.row::<OrdinalPacks>("first ordinal", &(REPO, Ordinal(70_000)), &PackNo(300));
    book.row::<Snapshots>("snapshot", &(REPO, SNAPSHOT), &snapshot());
    book.row::<Holders>("holder", &(NODE, PackNo(300)), &0b101);
    let weak = UnderTarget { repo: REPO, first_ordinal: Ordinal(70_000), chunks: 2 };
    book.row::<UnderTargets>("under target", &PackNo(300), &weak);
    book.row::<Condemneds>("condemned copy", &(NODE, shard), &());
    book.row::<LiveSets>("live set", &(REPO, SNAPSHOT), &vec![1, 2, 3]);
    book.row::<PackChunks>("pack chunks", &PackNo(300), &vec![CHUNK]);
    let ordinals = Ordinals::range(Ordinal(9), 3).with(&[Ordinal(20)]);
    book.row::<PackOrdinals>("pack ordinals", &PackNo(300), &ordinals);
    book.row::<CondemnedPacks>("condemned pack", &(REPO, PackNo(300)), &301);
    let mut segment = Segment { absent: Bits::default(), condemned: Bits::default() };
    (10..20).for_each(|bit| segment.absent.set(bit));
    [0, 300, 65_535].into_iter().for_each(|bit| segment.condemned.set(bit));
    book.row::<Segments>("segment", &(REPO, Ordinal(1)), &segment);
    book.row::<Trash>("trash", &(REPO, SNAPSHOT), &snapshot());
    let marks = SnapshotMarks { lock: Some(lock()), verified_ms: Some(2), forgotten_ms: Some(3) };
    book.row::<Marks>("marks", &(REPO, SNAPSHOT), &marks);
    let settings = RepoSettings {
        lock: Some(RepoLock { mode: LockMode::Governance, for_ms: 1 }),
        trash_ms: Some(2),
        retention: Some("last=3".into()),
        last_committed_ms: 4,
    };
    book.row::<Settings>("settings", &REPO, &settings);
    let recoding = Recoding { former: repo().policy, scheme: scheme(), before: PackNo(300) };
    book.row::<Recodings>("recoding", &REPO, &recoding);
    let migration = migration();
    book.row::<Migrations>("migration", &NameKey(migration.from.to_string()), &migration);
    book.row::<Moveds>("moved of a node", &(Subject::Node(NODE), PackNo(300)), &());
    book.row::<Moveds>("moved of a repository", &(Subject::Repository(REPO), PackNo(300)), &());
    let verification = Verification {
        subject: Subject::Repository(REPO),
        begun_ms: 1_700_000_000_000,
        ended_ms: Some(1_700_000_000_300),
        stripes: 300,
        good: 900,
        short: 1,
        weakest: Some(-1),
    };
    book.row::<Verifications>("verification", &VerificationKey(7), &verification);
    let verified = VerifiedStripe { stripe: STRIPE, generation: 300, good: 0b101, at_ms: 1_700_000_000_001 };
    book.row::<VerifiedStripes>("verified stripe", &(VerificationKey(7), PackNo(300)), &verified);
    book.row::<Upkeeps>("upkeep", &IntentKey, &upkeep());
    book.row::<Ended>("ended session", &SESSION, &301);
    book.row::<Exports>("export", &ExportKey { to: 7, id: ExportId([0x99; 16]) }, &export());
    for (record, what) in audit_records() {
        book.row::<Audits>(&format!("audit {what}"), &AuditKey(record.entry.seq), &record);
    }
    book.row::<NodeLevels>("node level", &NODE, &2);
    let intent = Intent { epoch: 1, staged: changes(), leaving: [NODE].into(), request: [2; 16] };
    book.row::<Intents>("intent", &IntentKey, &intent);
    book.row::<Incarnations>("incarnation", &NODE, &u64::MAX);
    let missing: Vec<_> = TABLES.iter().filter(|table| !book.tables.contains(table)).collect();
    assert!(missing.is_empty(), "tables without a fixture: {missing:?}");
    for unknown in (0..=255).filter(|table| !TABLES.contains(table)) {
        assert!(check_row(unknown, &[0], 1, &[]).is_err(), "table {unknown} is not in TABLES");
    }
    book.fixtures.end();
}

/// A record of every act, outcome and kind of actor, in one chain.
fn audit_records() -> Vec<(AuditRecord, String)> {
    let some = || SomeSnapshots::of(&[SNAPSHOT; 20]);
    let repo_acts = [
        RepoAct::Forget { snapshots: some(), bypass: true },
        RepoAct::Undelete { snapshots: some() },
        RepoAct::Purge { snapshots: some(), early: true },
        RepoAct::LockSnapshot { snapshot: SNAPSHOT, lock: lock(), bypass: false },
        RepoAct::Lock { lock: Some(RepoLock { mode: LockMode::Governance, for_ms: 9 }), bypass: true },
        RepoAct::SetTrash { trash_ms: Some(300) },
        RepoAct::SetRetention { policy: Some("last=3".into()) },
        RepoAct::SetPolicy { policy: repo().policy, scheme: scheme() },
    ];
    let (of_repo, all_repo) = variants!(RepoAct: Forget, Undelete, Purge, LockSnapshot, Lock, SetTrash, SetRetention, SetPolicy, SetKeySlots, Describe);
    let (before, after) = (AuditHash([7; 32]), AuditHash([8; 32]));
    let set_slots = RepoAct::SetKeySlots { was: 300, now: 2, before, after };
    let describe = RepoAct::Describe { snapshot: SNAPSHOT, before, after };
    assert_eq!(repo_acts.iter().chain([&set_slots, &describe]).map(of_repo).collect::<Vec<_>>(), all_repo);
    let NodeRecord { name: node_name, region, zone, capacity, .. } = node();
    let mut acts = vec![
        Act::RaiseLevel { from: 1, to: 2 },
        Act::CreateRepository { repo: REPO, name: name() },
        Act::PlaceNode { node: NODE, name: node_name, region, zone, capacity },
        Act::SetNodeState { node: NODE, from: NodeState::Up, to: NodeState::Suspect },
        Act::StageTopology { epoch: 3, changes: changes() },
        Act::ChangeTopology { epoch: 4, changes: changes() },
        Act::BeginEra { era: 1_700_000_000, node: NODE },
    ];
    let of_repo = repo_acts.into_iter().map(|act| Act::ChangeRepository { repo: REPO, name: name(), act });
    acts.extend(of_repo);
    // Behind those of earlier levels: each record is bound to the one before it.
    acts.extend([
        Act::Migrate { epoch: 5, from: migration().from, to: migration().to, cold: true },
        Act::EndMigration { epoch: 6, from: migration().from, keep: true },
        Act::SetUpkeep { scrub_paused: true, links: 300 },
        Act::ChangeRepository { repo: REPO, name: name(), act: set_slots },
        Act::ChangeRepository { repo: REPO, name: name(), act: describe },
    ]);
    let (of_act, all_acts) = variants!(
        Act: RaiseLevel, CreateRepository, PlaceNode, SetNodeState, StageTopology, ChangeTopology, ChangeRepository,
        BeginEra, Migrate, EndMigration, SetUpkeep
    );
    let seen: BTreeSet<_> = acts.iter().map(of_act).collect();
    assert_eq!(seen, all_acts.iter().copied().collect());
    let outcomes = [
        ActOutcome::Done,
        ActOutcome::Changed { count: 300 },
        ActOutcome::Locked { snapshot: SNAPSHOT, mode: LockMode::Compliance, until_ms: 8 },
        ActOutcome::LockKept { mode: LockMode::Governance },
    ];
    let (of_outcome, all_outcomes) = variants!(ActOutcome: Done, Changed, Locked, LockKept);
    assert_eq!(outcomes.iter().map(of_outcome).collect::<Vec<_>>(), all_outcomes);
    let (mut previous, mut made) = (AuditHash([0; 32]), Vec::new());
    for (act, seq) in acts.into_iter().zip(1u64..) {
        let (word, outcome) = (act.word().to_string(), outcomes[seq as usize % 4].clone());
        let actor = if seq % 2 == 0 { client() } else { Actor::Node(NODE) };
        let entry = AuditEntry { seq, time_ms: 1_000 + seq, index: seq * 100, actor, act, outcome };
        let record = AuditRecord::behind(previous, entry);
        previous = record.hash;
        made.push((record, word));
    }
    made
}

/// Fixtures of one closed enum: a variant without one fails.
fn every<T: Serialize + DeserializeOwned + PartialEq + Debug>(
    format: &str,
    version: u8,
    (name, all): (fn(&T) -> &'static str, &[&'static str]),
    samples: Vec<T>,
) {
    let mut fixtures = Fixtures::of(format);
    let seen: BTreeSet<_> = samples.iter().map(name).collect();
    let missing: Vec<_> = all.iter().filter(|name| !seen.contains(**name)).collect();
    assert!(missing.is_empty(), "{format}: variants without a sample: {missing:?}");
    for sample in samples {
        let kept = fixtures.kept(name(&sample), &seal_message(version, &sample));
        assert_eq!(open_message::<T>(version, &kept), Ok(sample));
        let newer = [&[version + 1], &kept[1..]].concat();
        assert_eq!(open_message::<T>(version, &newer), Err(PayloadError::Newer(version + 1)));
    }
    fixtures.end();
}

#[test]
fn every_command_has_a_fixture() {
    let variants = variants!(
        Command: FormCluster, PutNode, SetNodeState, CreateRepository, OpenSession, EndSessions, CommitPacks,
        CommitSnapshot, PlaceShard, ShardBad, Recheck, Swept, CondemnPacks, RevivePacks, DropPacks, CondemnOrphans,
        ChangeRepository, CompactPacks, AdmitNode, StageTopology, ChangeTopology, RecordExport, BeginEra, RaiseLevel,
        Migrate, EndMigration, RecordVerified, SetUpkeep
    );
    let shard = ShardId { stripe: STRIPE, index: 3 };
    let (packs, request) = (vec![PackNo(300)], [7; 16]);
    let change = RepoChange::Forget { snapshots: vec![SNAPSHOT], bypass: true };
    let samples = vec![
        Command::FormCluster { cluster: ClusterId([2; 16]) },
        Command::PutNode { node: node() },
        Command::SetNodeState { node: NODE, from: NodeState::Up, to: NodeState::Suspect },
        Command::CreateRepository { repo: repo() },
        Command::OpenSession { session: SESSION, repo: REPO, seen: 300 },
        Command::EndSessions { sessions: vec![SESSION] },
        Command::CommitPacks { session: SESSION, packs: vec![offered()] },
        Command::CommitSnapshot { session: SESSION, snapshot: snapshot(), replaces: Some(SNAPSHOT) },
        Command::PlaceShard { pack: PackNo(300), generation: 2, index: 3, node: NODE },
        Command::ShardBad { pack: PackNo(300), index: 3, node: NODE },
        Command::Recheck { packs: packs.clone() },
        Command::Swept { copies: vec![Condemned { node: NODE, shard }] },
        Command::CondemnPacks { packs: packs.clone() },
        Command::RevivePacks { packs: packs.clone() },
        Command::DropPacks { packs: vec![CondemnedPack { no: PackNo(300), at: 4 }], looked: 5 },
        Command::CondemnOrphans {
            node: NODE,
            copies: vec![Orphan { shard, session: Some(SESSION), seen: 6 }],
        },
        Command::ChangeRepository { repo: REPO, change },
        Command::CompactPacks { repo: REPO, pack: Box::new(offered()), from: packs },
        Command::AdmitNode { node: node(), incarnation: u64::MAX, level: 2 },
        Command::StageTopology { request, epoch: 1, changes: changes() },
        Command::ChangeTopology { request, epoch: 2, changes: changes() },
        Command::RecordExport { export: export() },
        Command::BeginEra { era: 1_700_000_000, node: NODE },
        Command::RaiseLevel { to: 2 },
        Command::Migrate { request, epoch: 3, from: migration().from, to: migration().to, cold: true },
        Command::EndMigration { request, epoch: 4, from: migration().from, keep: true },
        Command::RecordVerified {
            subject: Subject::Node(NODE),
            stripes: vec![StripeRead { pack: PackNo(300), generation: 2, good: 0b111 }],
            end: true,
        },
        Command::SetUpkeep { upkeep: upkeep() },
    ];
    every("commands-v1", COMMAND_VERSION, variants, samples);
}

#[test]
fn every_change_of_a_repository_has_a_fixture() {
    let variants = variants!(
        RepoChange: Forget, Undelete, Purge, LockSnapshot, Lock, SetTrash, SetRetention, MarkVerified, SetPolicy,
        SetKeySlots, Describe
    );
    let snapshots = vec![SNAPSHOT];
    let samples = vec![
        RepoChange::Forget { snapshots: snapshots.clone(), bypass: true },
        RepoChange::Undelete { snapshots: snapshots.clone() },
        RepoChange::Purge { snapshots, early: true },
        RepoChange::LockSnapshot { snapshot: SNAPSHOT, lock: lock(), bypass: true },
        RepoChange::Lock { lock: Some(RepoLock { mode: LockMode::Governance, for_ms: 1 }), bypass: false },
        RepoChange::SetTrash { trash_ms: Some(300) },
        RepoChange::SetPolicy { policy: repo().policy, scheme: scheme() },
        RepoChange::SetRetention { policy: Some("last=3".into()) },
        RepoChange::MarkVerified { snapshot: SNAPSHOT },
        RepoChange::SetKeySlots { expected: [7; 32], slots: vec![vec![3], vec![4, 5]] },
        RepoChange::Describe {
            snapshot: SNAPSHOT,
            expected: [7; 32],
            sealed: vec![3; 4],
            tags: vec![[5; 8]],
        },
    ];
    every("changes-v1", COMMAND_VERSION, variants, samples);
}

#[test]
fn every_reply_and_refusal_has_a_fixture() {
    let replies = variants!(Reply: Done, SessionOpen, PacksCommitted, SnapshotCommitted, Refused, Changed);
    let committed = PackCommitted { id: PACK, no: PackNo(300), ordinals: vec![Ordinal(1), Ordinal(300)] };
    let samples = vec![
        Reply::Done,
        Reply::SessionOpen { opened: 300 },
        Reply::PacksCommitted { packs: vec![committed] },
        Reply::SnapshotCommitted { committed_ms: 300, under_target: 2 },
        Reply::Refused(Refusal::NoRepo),
        Reply::Changed { count: 300 },
    ];
    every("replies-v1", MESSAGE_VERSION, replies, samples);
    let refusals = variants!(
        Refusal: AlreadyFormed, NoNode, BadTransition, NotEmpty, RepoExists, NoRepo, NoSession, ChunksGone, Malformed,
        BelowFloor, Stale, NoPack, StillCondemned, SnapshotExists, Locked, LockShortened, NoSnapshot, NoChunk, Emptied,
        StaleTopology, LevelBehind, LevelHeld, LevelNeeded, Frozen, StaleKeys, StaleSnapshot
    );
    let samples = vec![
        Refusal::AlreadyFormed,
        Refusal::NoNode(NODE),
        Refusal::BadTransition(NODE, NodeState::Lost),
        Refusal::NotEmpty(NODE),
        Refusal::RepoExists("docs".into()),
        Refusal::NoRepo,
        Refusal::NoSession(SESSION),
        Refusal::ChunksGone(vec![Ordinal(300)]),
        Refusal::Malformed("why".into()),
        Refusal::BelowFloor(PACK, "why".into()),
        Refusal::Stale(300),
        Refusal::NoPack,
        Refusal::StillCondemned,
        Refusal::SnapshotExists(SNAPSHOT),
        Refusal::Locked(SNAPSHOT, LockMode::Compliance, 300),
        Refusal::LockShortened(LockMode::Governance),
        Refusal::NoSnapshot(SNAPSHOT),
        Refusal::NoChunk(CHUNK),
        Refusal::Emptied(NODE),
        Refusal::StaleTopology(300),
        Refusal::LevelBehind { node: NODE, level: 1, cluster: 2 },
        Refusal::LevelHeld(NODE, 1),
        Refusal::LevelNeeded(3, 2),
        Refusal::Frozen(migration().from, migration().to),
        Refusal::StaleKeys,
        Refusal::StaleSnapshot(SNAPSHOT),
    ];
    every("refusals-v1", MESSAGE_VERSION, refusals, samples);
}

#[test]
fn what_frames_rows_and_commands_has_fixtures() {
    let mut fixtures = Fixtures::of("frames-v1");
    let command = Command::SetNodeState { node: NODE, from: NodeState::Up, to: NodeState::Suspect };
    let by_client = Proposal { time_ms: 300, actor: client(), command: command.clone() };
    let payload = Payload::seal(&by_client).unwrap();
    let kept = fixtures.kept("proposal of a client", &payload.0);
    assert_eq!(Payload(kept.into()).open(), Ok(by_client));
    let asked = Asked { actor: Actor::Node(NODE), command };
    let kept = fixtures.kept("command passed on", &seal_message(COMMAND_VERSION, &asked));
    assert_eq!(open_message(COMMAND_VERSION, &kept), Ok(asked));

    let log_id = LogId::new(CommittedLeaderId::new(1 << 32 | 1, NODE.0), 300);
    let members = openraft::Membership::new(
        vec![BTreeSet::from([1])],
        std::collections::BTreeMap::from([(1, openraft::BasicNode::new("h:1"))]),
    );
    for (name, payload) in [
        ("log entry blank", EntryPayload::Blank),
        ("log entry command", EntryPayload::Normal(payload)),
        ("log entry membership", EntryPayload::Membership(members)),
    ] {
        let entry = Entry { log_id, payload };
        let kept = fixtures.kept(name, &seal_entry(&entry));
        assert_eq!(open_entry(&kept), Ok(entry));
        assert!(matches!(open_entry(&[&[9], &kept[1..]].concat()), Err(PayloadError::Newer(9))));
    }

    let sealed = crate::kv::record::seal_record(2, b"key", 1, b"payload");
    let kept = fixtures.kept("stored record", &sealed);
    let opened = crate::kv::record::open_record(2, b"key", &kept).unwrap();
    assert_eq!(opened, (1, b"payload".to_vec()));

    let header = PartHeader {
        cluster: ClusterId([2; 16]),
        export: ExportId([3; 16]),
        base: true,
        last: true,
        number: 4,
        from: 0,
        to: 300,
        time_ms: 5,
        state_hash: StateHash([6; 16]),
        snapshots: 7,
        packs: 8,
        era: 0,
        after: Default::default(),
    };
    let later = PartHeader { base: false, from: 200, era: 9, after: [4; 12], ..header };
    for (name, header) in [("export part", header), ("export part of a later era", later)] {
        let mut part = PartBuilder::default();
        part.push_row(&ImageRow { table: 10, key: vec![0x11; 16], value: vec![1, 5] });
        let kept = fixtures.kept(name, &part.close(&header));
        let opened = Part::decode(kept.clone().into()).unwrap();
        assert_eq!(PartHeader::peek(&kept).unwrap().0, header);
        assert_eq!(opened.rows().unwrap(), [ImageRow { table: 10, key: vec![0x11; 16], value: vec![1, 5] }]);
    }

    let info =
        PackInfo { cluster: ClusterId([2; 16]), repo: REPO, pack: PACK, pack_len: 1_000, scheme: scheme() };
    let header = info.header(1, ShardHash([0x77; 32]));
    let kept = fixtures.kept("shard header", &header.encode());
    assert_eq!(ShardHeader::decode(&kept), Ok(header));
    fixtures.end();
}

/// A chain kept as it was written verifies with the program of today.
#[test]
fn the_kept_audit_chain_verifies() {
    let mut check = AuditCheck::default();
    for (record, _) in audit_records() {
        let row = [&[Audits::VERSION], encode::<Audits>(&record).unwrap().as_slice()].concat();
        check.take(record.entry.seq, &row).unwrap();
    }
    assert!(check.head().seq > 10);
    assert!(records(&super::catalogue_test::new_catalogue().view().unwrap()).is_empty());
}
