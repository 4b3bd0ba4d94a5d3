//! The life of a small cluster, with nothing simulated: it forms, takes a backup, meets rot, loses a node, heals, and
//! comes back from its disks.

#[path = "support/harness.rs"]
mod harness;

#[path = "support/matrix.rs"]
mod matrix;

#[path = "support/membership.rs"]
mod membership;

#[path = "support/slow.rs"]
mod slow;

use farshore_core::catalogue::{SnapshotKind, SnapshotLabel, SnapshotRecord};
use farshore_core::id::{RepoId, SessionId, SnapshotId};
use farshore_core::peer::{ShardError, ShardIo, ShardPut};
use farshore_core::shard::{PackInfo, ShardRange, hash_shard};
use farshore_core::topology::NodeState;
use farshore_node::StartError;
use farshore_node::identity::IdentityError;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use harness::{Client, Cluster, eventually, flip_byte, pack_bytes, raw, scheme, shard_file, state_of};
use std::collections::BTreeSet;

const SESSION: SessionId = SessionId([9; 16]);

/// Three voters in three regions, and a fourth node that was not there when the cluster was formed.
async fn formed() -> Cluster {
    let mut cluster = Cluster::new(&["x/a", "x/b", "x/c", "x/a"]);
    for at in [1, 2, 3] {
        cluster.start(at, None).await;
    }
    cluster.start(0, Some(&[0, 1, 2])).await;
    cluster.node(0).formed().await;
    let client = cluster.client("operator", 1);
    eventually(15, "all four nodes are known", || async {
        let mut admin = client.admin.clone();
        admin.status(wire::StatusRequest {}).await.is_ok_and(|s| {
            let status = s.into_inner();
            !status.stale && status.nodes.len() == 4 && status.nodes.iter().all(|n| n.used < 1 << 30)
        })
    })
    .await;
    cluster
}

/// One pack on the three first nodes, committed with a snapshot of its two chunks.
async fn backed_up(cluster: &Cluster, client: &mut Client, tag: u8) -> RepoId {
    let repo = client.create_repo().await;
    client.open_session(repo, SESSION).await;
    let homes = [0, 1, 2].map(|at| cluster.id(at));
    let commit = client.upload(repo, SESSION, &pack_bytes(tag, 300_000), &homes).await;
    let ordinals = client.commit(SESSION, vec![commit]).await;
    assert_eq!(ordinals.len(), 2);

    // A lookup is answered by any replica that knows the session, so it may lag behind the commit for a moment.
    eventually(10, "one chunk is there, and the other never was", || async {
        let ids = vec![raw(&[tag; 32]), raw(&[tag + 50; 32])];
        let lookup =
            wire::LookupChunksRequest { session: raw(SESSION.as_bytes()), repo: raw(repo.as_bytes()), ids };
        let found = client.again().catalogue.lookup_chunks(lookup).await.unwrap().into_inner();
        found.ordinals_plus_one == [ordinals[0] + 1, 0]
    })
    .await;

    let committed = client.catalogue.commit_snapshot(snapshot(repo, &ordinals)).await.unwrap().into_inner();
    assert!(committed.committed_ms > 0);
    assert_eq!(committed.under_target, 0);
    repo
}

fn snapshot(repo: RepoId, ordinals: &[u64]) -> wire::CommitSnapshotRequest {
    let mut live = Vec::new();
    ordinals.iter().copied().collect::<roaring::RoaringTreemap>().serialize_into(&mut live).unwrap();
    let record = SnapshotRecord {
        id: SnapshotId([3; 32]),
        repo,
        kind: SnapshotKind::Full,
        parent: None,
        group: [0; 16],
        committed_ms: 0,
        label: SnapshotLabel::default(),
        sealed: b"sealed".to_vec(),
        live,
    };
    wire::CommitSnapshotRequest {
        session: raw(SESSION.as_bytes()),
        snapshot: Some(record.into()),
        ..Default::default()
    }
}

/// The pack of this chunk is whole, spread as it should be, and reads back.
async fn is_well(client: &Client, repo: RepoId, tag: u8) -> bool {
    let mut client = client.again();
    let Some(pack) = client.locate(repo, tag).await else { return false };
    let status = client.status().await;
    let held = pack.stripe.shards.iter().filter_map(|s| s.node).collect::<BTreeSet<_>>();
    let up = held.iter().all(|node| state_of(&status, *node) == NodeState::Up);
    up && held.len() == scheme().n()
        && status.under_target == 0
        && client.read_pack(repo, tag).await == Some(pack_bytes(tag, 300_000))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_survives_rot_and_the_loss_of_a_node() {
    let mut cluster = formed().await;
    let mut client = cluster.client("backup", 1);
    let repo = backed_up(&cluster, &mut client, 1).await;
    // On a machine with too much to do a node may be suspect for a moment.
    eventually(10, "the new pack is well", || is_well(&client, repo, 1)).await;
    strangers_are_refused(&cluster, &client, repo).await;

    // Rot: one byte on one disk. The scrub of that node finds it, the cluster mends it.
    let pack = client.locate(repo, 1).await.unwrap();
    flip_byte(&shard_file(&cluster.dir(1), &pack, 1));
    let scrubbed = client.scrub().await;
    assert_eq!((scrubbed.checked, scrubbed.bad, scrubbed.missing), (1, 1, 0));
    let before = pack.stripe.generation;
    eventually(15, "the rotten shard is rebuilt", || async {
        let pack = client.again().locate(repo, 1).await;
        pack.is_some_and(|pack| pack.stripe.generation > before) && is_well(&client, repo, 1).await
    })
    .await;
    eventually(5, "the leader has heard of it", || async {
        client.again().status().await.repair.is_some_and(|repair| repair.bad_found == 1)
    })
    .await;

    // Loss: a file vanishes behind the node's back.
    let pack = client.locate(repo, 1).await.unwrap();
    let index = (0u8..).zip(&pack.stripe.shards).find(|(_, s)| s.node == Some(cluster.id(1))).unwrap().0;
    harness::remove_file(&shard_file(&cluster.dir(1), &pack, index));
    assert_eq!(client.scrub().await.missing, 1);
    let before = pack.stripe.generation;
    eventually(15, "the vanished shard is rebuilt", || async {
        let pack = client.again().locate(repo, 1).await;
        pack.is_some_and(|pack| pack.stripe.generation > before) && is_well(&client, repo, 1).await
    })
    .await;

    // Death: whichever node of region a holds a shard goes without a word, and its neighbour takes over.
    let pack = client.locate(repo, 1).await.unwrap();
    let dead =
        [0, 3].into_iter().find(|at| pack.stripe.shards.iter().any(|s| s.node == Some(cluster.id(*at))));
    let dead = dead.unwrap();
    cluster.crash(dead);
    assert_eq!(client.again().read_pack(repo, 1).await, Some(pack_bytes(1, 300_000)), "k shards are left");
    eventually(25, "the dead node is lost and its shard rebuilt", || async {
        let mut asked = client.again();
        let mut admin = asked.admin.clone();
        let Ok(status) = admin.status(wire::StatusRequest {}).await else { return false };
        let status = status.into_inner();
        !status.stale
            && state_of(&status, cluster.id(dead)) == NodeState::Lost
            && status.under_target == 0
            && asked
                .locate(repo, 1)
                .await
                .is_some_and(|p| p.stripe.shards.iter().all(|s| s.node != Some(cluster.id(dead))))
    })
    .await;
    eventually(10, "the rebuilt pack is well", || is_well(&client, repo, 1)).await;

    // Return: the node comes back, is up again, and deletes what it no longer should hold.
    cluster.start(dead, None).await;
    eventually(15, "the node is back and swept", || async {
        let status = client.again().status().await;
        state_of(&status, cluster.id(dead)) == NodeState::Up
            && cluster.node(dead).store().stats().shards == 0
            && cluster.node(dead).view().unwrap().counts().condemned == 0
    })
    .await;
}

async fn strangers_are_refused(cluster: &Cluster, client: &Client, repo: RepoId) {
    let pack = pack_bytes(77, 1_000);
    let info = PackInfo {
        cluster: farshore_core::id::ClusterId([5; 16]),
        repo,
        pack: farshore_core::id::PackId::of(&pack),
        pack_len: 1_000,
        scheme: scheme(),
    };
    let payload = pack.slice(..512);
    let (hash, _) = hash_shard(info.shard(0), &payload);
    let put = ShardPut { header: info.header(0, hash), payload, session: None };
    let refused = client.shards.put(cluster.id(2), put).await;
    assert!(
        matches!(refused, Err(ShardError::Refused(..))),
        "only nodes upload without a session: {refused:?}"
    );

    let mut raft = client.raft.clone();
    let denied = raft.read_index(wire::ReadIndexRequest::default()).await.unwrap_err();
    assert!(matches!(ApiError::from_status(denied), ApiError::Denied(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_is_there_after_a_restart_and_a_foreign_directory_is_refused() {
    let mut cluster = formed().await;
    let mut client = cluster.client("backup", 2);
    let repo = backed_up(&cluster, &mut client, 1).await;
    let nobody = SessionId([1; 16]);
    let renewed = |session: SessionId| {
        let mut catalogue = client.catalogue.clone();
        async move {
            catalogue.renew_session(wire::RenewSessionRequest { session: raw(session.as_bytes()) }).await
        }
    };
    renewed(SESSION).await.expect("an open session is renewed through any node");
    let unknown = renewed(nobody).await.unwrap_err();
    assert!(matches!(ApiError::from_status(unknown), ApiError::NoSession(_)));
    // Two sessions, of which one is renewed and the other is not.
    let forgotten = SessionId([2; 16]);
    client.again().open_session(repo, forgotten).await;
    eventually(12, "the forgotten session runs out", || async {
        renewed(SESSION).await.expect("a renewed session stays open");
        !client.again().is_open(repo, forgotten).await
    })
    .await;
    assert!(client.again().is_open(repo, SESSION).await);
    for at in 0..4 {
        cluster.stop(at).await;
    }

    let foreign = cluster.try_start(3, &cluster.dir(0), None).await.map(drop);
    assert!(matches!(foreign, Err(StartError::Identity(IdentityError::Foreign { .. }))), "{foreign:?}");

    for at in 0..4 {
        // The first node is told to form the cluster again and must know better.
        cluster.start(at, (at == 0).then_some(&[0, 1, 2][..])).await;
    }
    let client = cluster.client("backup", 3);
    eventually(15, "the pack is well again", || async {
        let mut admin = client.admin.clone();
        let up = admin.status(wire::StatusRequest {}).await.is_ok_and(|s| !s.into_inner().stale);
        up && client.again().locate(repo, 1).await.is_some() && is_well(&client, repo, 1).await
    })
    .await;
    let listed = wire::ListSnapshotsRequest { repo: raw(repo.as_bytes()), ..Default::default() };
    let listed = client.again().catalogue.list_snapshots(listed).await.unwrap().into_inner();
    assert_eq!((listed.snapshots.len(), listed.more), (1, false));
    assert_eq!(listed.snapshots[0].sealed, b"sealed"[..]);

    eventually(10, "all replicas agree on one state", || async {
        let states: BTreeSet<_> = (0..4).map(|at| cluster.node(at).view().unwrap().state_hash()).collect();
        states.len() == 1
    })
    .await;
}

/// It used to start as if it had never been there: without memory of its votes, and reporting every shard it held lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_known_node_does_not_start_on_an_empty_directory() {
    let mut cluster = formed().await;
    cluster.stop(2).await;
    let empty = cluster.dir(2).join("not-mounted");
    let started = cluster.try_start(2, &empty, None).await.map(drop);
    assert!(matches!(started, Err(StartError::Emptied)), "{started:?}");
    let started = cluster.try_start(2, &empty, None).await.map(drop);
    assert!(matches!(started, Err(StartError::Emptied)), "and leaves nothing that would let it: {started:?}");
    cluster.start(2, None).await;
}

/// Found by the simulator (storm, seed 16): what no snapshot will ever need was counted as bad by every scrub for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spoilt_shard_that_nobody_recorded_is_cleared_away_and_a_good_one_stays() {
    let cluster = formed().await;
    let mut client = cluster.client("backup", 1);
    let repo = client.create_repo().await;
    client.open_session(repo, SESSION).await;
    let homes = [0, 1, 2].map(|at| cluster.id(at));
    client.upload(repo, SESSION, &pack_bytes(1, 300_000), &homes).await;
    let spoilt = harness::only_shard_file(&cluster.dir(1));
    flip_byte(&spoilt);
    assert_eq!(client.scrub().await.bad, 1, "its session may yet record it");
    assert_eq!(cluster.node(1).store().stats().shards, 1);
    let close = wire::CloseSessionRequest { session: raw(SESSION.as_bytes()) };
    client.catalogue.close_session(close).await.unwrap();
    // It may be gone already, if the node looks at what the first scrub found only now.
    client.scrub().await;
    eventually(10, "the spoilt shard is gone", || async { cluster.node(1).store().stats().shards == 0 })
        .await;
    let again = client.scrub().await;
    assert_eq!((again.checked, again.bad), (0, 0));
    assert_eq!(cluster.node(2).store().stats().shards, 1, "a good one may yet be recorded");
}

/// A disk that takes more than a second for every call: no reader waits for it any more, and it is tried again later.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_dead_disk_is_found_and_told_to_everybody() {
    let cluster = formed().await;
    let mut client = cluster.client("operator", 1);
    let repo = backed_up(&cluster, &mut client, 1).await;
    let pack = client.locate(repo, 1).await.unwrap();
    let (sick, shard) = (cluster.id(0), pack.stripe.shard(repo, 0).unwrap());
    assert_eq!(pack.stripe.shards[0].node, Some(sick));
    let whole = [ShardRange { offset: 0, len: pack.stripe.shard_len }];
    let read_often = async || {
        let reads = (0..8).map(|_| client.shards.get(sick, shard, &whole));
        futures_util::future::try_join_all(reads).await.unwrap();
    };
    let told = async |slow: bool| {
        let wanted: Vec<u64> = if slow { vec![sick.0] } else { vec![] };
        eventually(15, "the leader tells everybody who is slow", || async {
            let status = client.admin.clone().status(wire::StatusRequest {}).await.unwrap().into_inner();
            let right =
                |node: &wire::NodeStatus| node.slow == (slow && node.node.as_ref().unwrap().id == sick.0);
            let mut catalogues = [1, 2, 3].map(|at| cluster.client("reader", at).catalogue).into_iter();
            let mut all_know = status.nodes.iter().all(right);
            while let (true, Some(mut catalogue)) = (all_know, catalogues.next()) {
                let topology =
                    catalogue.get_topology(wire::GetTopologyRequest {}).await.unwrap().into_inner();
                all_know = topology.slow == wanted;
            }
            all_know
        })
        .await;
    };
    read_often().await;
    told(false).await;
    cluster.slots[0].delay.set(1_100);
    read_often().await;
    told(true).await;
    cluster.slots[0].delay.set(0);
    read_often().await;
    told(false).await;
}
