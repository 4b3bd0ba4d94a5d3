//! Everything survives the way to the wire and back, and what breaks a limit does not come in.

use super::*;
use crate::wire;
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{
    ChunkSpan, Lock, LockMode, PackCommit, PackKind, PackRecord, RepoChange, RepoLock, RepoRecord,
    RepoSettings, ShardRecord, SnapshotKind, SnapshotLabel, SnapshotMarks, SnapshotRecord, StripeRecord,
};
use farshore_core::erasure::Scheme;
use farshore_core::id::{
    ChunkId, NodeId, Ordinal, PackId, PackNo, RepoId, ShardHash, ShardId, SnapshotId, StripeId,
};
use farshore_core::limits::*;
use farshore_core::peer::ShardRef;
use farshore_core::policy::Policy;
use farshore_core::shard::ShardRange;
use farshore_core::topology::{Name, NodeRecord, NodeState, Region};
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message;

fn name() -> impl Strategy<Value = Name> {
    "[a-z0-9_-]{1,40}".prop_map(|text| text.parse().unwrap())
}
fn scheme() -> impl Strategy<Value = Scheme> {
    (1u8..=20, 1u8..=12, 1u8..=9).prop_map(|(k, m, spread)| Scheme::new(k, m, spread).unwrap())
}
fn shard_id() -> impl Strategy<Value = ShardId> {
    (any::<[u8; 16]>(), 0u8..32).prop_map(|(stripe, index)| ShardId { stripe: StripeId(stripe), index })
}
fn shard_ref() -> impl Strategy<Value = ShardRef> {
    (any::<[u8; 16]>(), shard_id(), any::<[u8; 32]>(), 1..=SHARD_BYTES_MAX as u64).prop_map(
        |(repo, id, hash, payload_len)| ShardRef {
            repo: RepoId(repo),
            id,
            hash: ShardHash(hash),
            payload_len,
        },
    )
}
fn policy() -> impl Strategy<Value = Policy> {
    any::<[u8; 4]>().prop_map(|[regions, nodes, providers, floor_nodes]| Policy {
        regions,
        nodes,
        providers,
        floor_nodes,
    })
}
fn node() -> impl Strategy<Value = NodeRecord> {
    let state = proptest::sample::select(&NodeState::ALL[..]);
    let region = "[a-z]{1,9}/[a-z0-9-]{1,9}".prop_map(|text| text.parse::<Region>().unwrap());
    (1..=u64::MAX, name(), region, proptest::option::of(name()), "[a-z.]{0,9}:[0-9]{4}", any::<u64>(), state)
        .prop_map(|(id, name, region, zone, addr, capacity, state)| NodeRecord {
            id: NodeId(id),
            name,
            region,
            zone,
            addr,
            capacity,
            state,
        })
}
fn repo() -> impl Strategy<Value = RepoRecord> {
    (any::<[u8; 16]>(), name(), policy(), vec(any::<u8>(), 0..99), vec(vec(any::<u8>(), 0..99), 0..4))
        .prop_map(|(id, name, policy, sealed_config, key_slots)| RepoRecord {
            id: RepoId(id),
            name,
            policy,
            sealed_config,
            key_slots,
        })
}
fn holders(scheme: Scheme) -> impl Strategy<Value = Vec<ShardRecord>> {
    let holder = (proptest::option::of(1..=u64::MAX), any::<[u8; 32]>())
        .prop_map(|(node, hash)| ShardRecord { node: node.map(NodeId), hash: ShardHash(hash) });
    vec(holder, scheme.n())
}
fn kind() -> impl Strategy<Value = PackKind> {
    any::<bool>().prop_map(|tree| if tree { PackKind::Tree } else { PackKind::Data })
}
fn pack_commit() -> impl Strategy<Value = PackCommit> {
    let span = (any::<[u8; 32]>(), 0u32..1_000, 0u32..1_000);
    let spans = vec(span.prop_map(|(id, offset, len)| ChunkSpan { id: ChunkId(id), offset, len }), 0..9);
    let coded = scheme().prop_flat_map(|scheme| (Just(scheme), holders(scheme)));
    (any::<[u8; 32]>(), kind(), 2_000..=PACK_BYTES_MAX as u64, spans, coded, 1..=SHARD_BYTES_MAX as u64)
        .prop_map(|(id, kind, len, chunks, (scheme, shards), shard_len)| PackCommit {
            id: PackId(id),
            kind,
            len,
            chunks,
            scheme,
            shard_len,
            shards,
        })
}
fn pack() -> impl Strategy<Value = PackRecord> {
    (pack_commit(), any::<[u64; 3]>(), any::<[u8; 16]>(), any::<[u8; 16]>(), 0..=PACK_CHUNKS_MAX as u32)
        .prop_map(|(commit, [no, first, generation], repo, stripe, chunks)| PackRecord {
            no: PackNo(no),
            id: commit.id,
            repo: RepoId(repo),
            kind: commit.kind,
            len: commit.len,
            chunks,
            first_ordinal: Ordinal(first),
            stripe: StripeRecord {
                id: StripeId(stripe),
                scheme: commit.scheme,
                shard_len: commit.shard_len,
                generation,
                shards: commit.shards,
            },
        })
}
fn snapshot() -> impl Strategy<Value = SnapshotRecord> {
    use SnapshotKind::*;
    let kind = proptest::sample::select(&[Full, Incremental, Differential][..]);
    let ids =
        (any::<[u8; 32]>(), proptest::option::of(any::<[u8; 32]>()), any::<[u8; 16]>(), any::<[u8; 16]>());
    (ids, kind, any::<u64>(), vec(any::<u8>(), 0..99), vec(any::<u8>(), 0..99)).prop_map(
        |((id, parent, repo, group), kind, committed_ms, sealed, live)| SnapshotRecord {
            id: SnapshotId(id),
            repo: RepoId(repo),
            kind,
            parent: parent.map(SnapshotId),
            group,
            committed_ms,
            label: SnapshotLabel {
                time_ms: committed_ms / 2,
                utc_offset_min: (committed_ms % 3 > 0).then_some((committed_ms % 1_000) as i16 - 500),
                bytes: committed_ms / 3,
                tags: vec![committed_ms.to_le_bytes()],
                partial: committed_ms % 2 == 0,
            },
            sealed,
            live,
        },
    )
}
fn lock() -> impl Strategy<Value = Lock> {
    let mode = any::<bool>().prop_map(|hard| if hard { LockMode::Compliance } else { LockMode::Governance });
    (mode, any::<u64>()).prop_map(|(mode, until_ms)| Lock { mode, until_ms })
}
fn change() -> impl Strategy<Value = RepoChange> {
    let ids = || vec(any::<[u8; 32]>().prop_map(SnapshotId), 0..5);
    let id = || any::<[u8; 32]>().prop_map(SnapshotId);
    let repo_lock = lock().prop_map(|lock| RepoLock { mode: lock.mode, for_ms: lock.until_ms });
    let retention = proptest::option::of("[a-z ]{0,20}");
    prop_oneof![
        (ids(), any::<bool>()).prop_map(|(snapshots, bypass)| RepoChange::Forget { snapshots, bypass }),
        ids().prop_map(|snapshots| RepoChange::Undelete { snapshots }),
        (ids(), any::<bool>()).prop_map(|(snapshots, early)| RepoChange::Purge { snapshots, early }),
        (id(), lock(), any::<bool>()).prop_map(|(snapshot, lock, bypass)| RepoChange::LockSnapshot {
            snapshot,
            lock,
            bypass
        }),
        (proptest::option::of(repo_lock), any::<bool>())
            .prop_map(|(lock, bypass)| RepoChange::Lock { lock, bypass }),
        any::<Option<u64>>().prop_map(|trash_ms| RepoChange::SetTrash { trash_ms }),
        (policy(), scheme()).prop_map(|(policy, scheme)| RepoChange::SetPolicy { policy, scheme }),
        retention.prop_map(|policy| RepoChange::SetRetention { policy }),
        id().prop_map(|snapshot| RepoChange::MarkVerified { snapshot }),
        (any::<[u8; 32]>(), vec(vec(any::<u8>(), 0..9), 0..4))
            .prop_map(|(expected, slots)| RepoChange::SetKeySlots { expected, slots }),
        (id(), any::<[u8; 32]>(), vec(any::<u8>(), 0..9), vec(any::<[u8; 8]>(), 0..4)).prop_map(
            |(snapshot, expected, sealed, tags)| RepoChange::Describe { snapshot, expected, sealed, tags }
        ),
    ]
}

/// To the wire, through its bytes, and back.
fn trip<W, C>(core: &C)
where
    C: Clone + PartialEq + std::fmt::Debug + TryFrom<W, Error = ApiError>,
    W: From<C> + Message + Default,
{
    let sent = W::from(core.clone()).encode_to_vec();
    let received = W::decode(sent.as_slice()).unwrap();
    assert_eq!(C::try_from(received).as_ref(), Ok(core));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn everything_survives_the_wire(
        (scheme, id, shard, policy) in (scheme(), shard_id(), shard_ref(), policy()),
        (node, repo, commit) in (node(), repo(), pack_commit()),
        (pack, snapshot) in (pack(), snapshot()),
        (offset, len) in (any::<u32>(), 1..=u32::MAX),
        ordinals in vec(any::<u64>(), 0..9),
        (change, lock, marked) in (change(), lock(), any::<[Option<u64>; 2]>()),
    ) {
        let sent = wire::change_repository_request::Change::from(change.clone());
        prop_assert_eq!(RepoChange::try_from(sent), Ok(change));
        let marks = SnapshotMarks { lock: Some(lock), verified_ms: marked[0], forgotten_ms: marked[1] };
        prop_assert_eq!(SnapshotMarks::from(wire::SnapshotMarks::from(marks)), marks);
        let settings = RepoSettings {
            lock: Some(RepoLock { mode: lock.mode, for_ms: lock.until_ms }),
            trash_ms: marked[0],
            retention: Some("keep-last 3".into()),
            last_committed_ms: lock.until_ms,
        };
        trip::<wire::RepositorySettings, _>(&settings);
        trip::<wire::Scheme, _>(&scheme);
        trip::<wire::ShardId, _>(&id);
        trip::<wire::ShardRef, _>(&shard);
        trip::<wire::Policy, _>(&policy);
        trip::<wire::Node, _>(&node);
        trip::<wire::Repository, _>(&repo);
        trip::<wire::PackCommit, _>(&commit);
        trip::<wire::Pack, _>(&pack);
        trip::<wire::Snapshot, _>(&snapshot);
        trip::<wire::Range, _>(&ShardRange { offset: offset.into(), len: len.into() });
        let ordinals = ordinals.into_iter().map(Ordinal).collect();
        trip::<wire::PackCommitted, _>(&PackCommitted { id: pack.id, no: pack.no, ordinals });
        let (incarnation, level, era, clock_ms) = (5, 6, Some(0), 7);
        let beat = raft::Heartbeat {
            node, used: 1, free: 2, shards: 3, bad_found: 4, incarnation, level, era, clock_ms, rtt_us: 8, disk_us: 9,
        };
        trip::<wire::HeartbeatRequest, _>(&beat);
        trip::<wire::SnapshotRow, _>(&raft::Row { table: id.index, key: vec![1], value: repo.sealed_config });
    }

    /// Whatever bytes arrive: a value or an error, never a panic.
    #[test]
    fn rubbish_never_panics(bytes in vec(any::<u8>(), 0..200)) {
        let bytes = bytes.as_slice();
        let _ = wire::Node::decode(bytes).map(NodeRecord::try_from);
        let _ = wire::Repository::decode(bytes).map(RepoRecord::try_from);
        let _ = wire::PackCommit::decode(bytes).map(PackCommit::try_from);
        let _ = wire::Pack::decode(bytes).map(PackRecord::try_from);
        let _ = wire::Snapshot::decode(bytes).map(SnapshotRecord::try_from);
        let _ = wire::GetRequest::decode(bytes).map(shard::from_get_request);
        let _ = wire::SnapshotRow::decode(bytes).map(raft::Row::try_from);
    }

    #[test]
    fn one_thing_wrong_is_enough(commit in pack_commit(), node in node(), snapshot in snapshot()) {
        let broken = |change: &dyn Fn(&mut wire::PackCommit)| {
            let mut wire = wire::PackCommit::from(commit.clone());
            change(&mut wire);
            PackCommit::try_from(wire).is_err()
        };
        prop_assert!(broken(&|c| c.id = c.id.slice(1..)));
        prop_assert!(broken(&|c| c.len = PACK_BYTES_MAX as u64 + 1));
        prop_assert!(broken(&|c| c.len = 0));
        prop_assert!(broken(&|c| c.shard_len = SHARD_BYTES_MAX as u64 + 1));
        prop_assert!(broken(&|c| c.scheme = None));
        prop_assert!(broken(&|c| c.scheme.as_mut().unwrap().k += 256));
        prop_assert!(broken(&|c| drop(c.shards.pop())));
        prop_assert!(broken(&|c| c.shards[0].hash = Default::default()));
        let outside = wire::ChunkSpan { id: vec![0; 32].into(), offset: u32::MAX, len: u32::MAX };
        prop_assert!(broken(&|c| c.chunks.push(outside.clone())));
        prop_assert!(broken(&|c| c.chunks = vec![Default::default(); PACK_CHUNKS_MAX + 1]));

        let broken = |change: &dyn Fn(&mut wire::Node)| {
            let mut wire = wire::Node::from(node.clone());
            change(&mut wire);
            NodeRecord::try_from(wire).is_err()
        };
        prop_assert!(broken(&|n| n.id = 0));
        prop_assert!(broken(&|n| n.name = "a/b".into()));
        prop_assert!(broken(&|n| n.region = "nowhere".into()));
        prop_assert!(broken(&|n| n.zone = "\n".into()));
        prop_assert!(broken(&|n| n.state = "Up".into()));
        prop_assert!(broken(&|n| n.addr = "x".repeat(ADDR_BYTES_MAX + 1)));

        let broken = |change: &dyn Fn(&mut wire::Snapshot)| {
            let mut wire = wire::Snapshot::from(snapshot.clone());
            change(&mut wire);
            SnapshotRecord::try_from(wire).is_err()
        };
        prop_assert!(broken(&|s| s.kind = "partial".into()));
        prop_assert!(broken(&|s| s.group = s.group.slice(1..)));
        prop_assert!(broken(&|s| s.parent = vec![0; 31].into()));
    }
}

#[test]
fn numbers_have_limits() {
    let stripe: bytes::Bytes = vec![0; 16].into();
    let index = |index| ShardId::try_from(wire::ShardId { stripe: stripe.clone(), index });
    assert!(index(31).is_ok());
    assert!(index(32).is_err() && index(256).is_err());
    assert!(Policy::try_from(wire::Policy { regions: 256, ..Default::default() }).is_err());
    assert!(
        raft::Row::try_from(wire::SnapshotRow { table: 256, key: stripe.clone(), value: stripe }).is_err()
    );
}

#[test]
fn lists_have_limits() {
    assert!(catalogue::chunk_ids(vec![vec![0; 32].into(); LOOKUP_CHUNKS_MAX]).is_ok());
    assert!(catalogue::chunk_ids(vec![vec![0; 32].into(); LOOKUP_CHUNKS_MAX + 1]).is_err());
    assert!(catalogue::pack_commits(vec![Default::default(); COMMIT_PACKS_MAX + 1]).is_err());
    let policy = Some("x".repeat(RETENTION_BYTES_MAX + 1));
    let change = wire::change_repository_request::Change::SetRetention(wire::SetRetention { policy });
    assert!(RepoChange::try_from(change).is_err());
    let ids = vec![vec![0; 32].into(); SNAPSHOTS_PER_COMMAND_MAX + 1];
    let change = wire::change_repository_request::Change::Undelete(wire::SnapshotIds { ids });
    assert!(RepoChange::try_from(change).is_err());
    let label = wire::SnapshotLabel { utc_offset_min: Some(1_440), ..Default::default() };
    assert!(SnapshotLabel::try_from(label).is_err());
    let live = vec![0; SNAPSHOT_BITMAP_BYTES_MAX + 1].into();
    let error = SnapshotRecord::try_from(wire::Snapshot { live, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("bitmap"), "{error}");
}

#[test]
fn a_range_stays_inside_the_shard_it_names() {
    let shard = ShardRef {
        repo: RepoId([1; 16]),
        id: ShardId { stripe: StripeId([2; 16]), index: 3 },
        hash: ShardHash([4; 32]),
        payload_len: 100,
    };
    let asked = |offset, len| {
        let mut request = shard::get_request(shard, &[ShardRange { offset: 0, len: 1 }]);
        request.ranges.push(wire::Range { offset, len });
        shard::from_get_request(request)
    };
    assert_eq!(asked(99, 1).unwrap().1.len(), 2);
    for (offset, len) in [(99, 2), (0, 0), (u64::MAX, 1), (1, u64::MAX), (100, 1)] {
        assert!(asked(offset, len).is_err(), "{offset}+{len}");
    }
}
