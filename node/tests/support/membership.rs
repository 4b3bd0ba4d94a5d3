//! Who belongs to a cluster, with real nodes: witnesses, votes that move between regions, nodes that are emptied, removed
//! or come back without their memory, and clusters that shall not be founded twice.

use super::harness::{Client, Cluster, eventually, pack_bytes, raw, scheme, state_of};
use farshore_core::catalogue::{Command, Refusal, Reply};
use farshore_core::id::{ClusterId, NodeId, SessionId};
use farshore_core::peer::{ShardError, ShardIo, ShardPut};
use farshore_core::shard::{PackInfo, hash_shard};
use farshore_core::topology::NodeState;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::collections::BTreeSet;
use std::time::Duration;

const SESSION: SessionId = SessionId([9; 16]);

/// All nodes of the cluster run, founded by some of them, and everybody is known.
async fn formed(mut cluster: Cluster, founders: &[usize]) -> (Cluster, Client) {
    for at in (0..cluster.slots.len()).rev() {
        let first = (at == founders[0]).then_some(founders);
        cluster.start(at, first).await;
    }
    let client = cluster.client("operator", founders[0]);
    let count = cluster.slots.len();
    eventually(20, "all nodes are known and up", || async {
        let mut admin = client.admin.clone();
        let status = admin.status(wire::StatusRequest {}).await;
        status.is_ok_and(|s| {
            let s = s.into_inner();
            let up = |n: &wire::NodeStatus| n.node.as_ref().is_some_and(|n| n.state == "up");
            !s.stale && s.nodes.len() == count && s.nodes.iter().all(up)
        })
    })
    .await;
    (cluster, client)
}

/// Positions of the voters, as a node sees them.
fn voters(cluster: &Cluster, at: usize) -> BTreeSet<usize> {
    let voters = cluster.node(at).consensus().standing().voters;
    (0..cluster.slots.len()).filter(|n| voters.contains(&cluster.id(*n))).collect()
}

fn change(kind: &str, node: NodeId) -> wire::TopologyChange {
    wire::TopologyChange { kind: kind.into(), node: node.0 }
}

async fn plan(client: &Client, changes: &[wire::TopologyChange]) -> wire::PlanTopologyReply {
    let request = wire::PlanTopologyRequest { changes: changes.to_vec(), alone: true, ..Default::default() };
    client.admin.clone().plan_topology(request).await.unwrap().into_inner()
}

async fn apply(
    client: &Client,
    number: u8,
    epoch: u64,
    changes: Option<&[wire::TopologyChange]>,
) -> Result<u64, ApiError> {
    let request = wire::ApplyTopologyRequest {
        request: raw(&[number; 16]),
        epoch,
        changes: changes.unwrap_or_default().to_vec(),
        staged: changes.is_none(),
    };
    let reply = client.admin.clone().apply_topology(request).await;
    reply.map(|reply| reply.into_inner().epoch).map_err(ApiError::from_status)
}

/// Two regions and a witness: whichever region dies, the other goes on; and the witness never gets a shard.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_witness_keeps_the_quorum_of_two_regions() {
    let mut cluster = Cluster::new(&["x/a", "x/a", "x/b", "x/b", "y/w"]);
    cluster.slots[4].capacity = 0;
    // The founders sit two and one; the witness was not among them.
    let (mut cluster, mut client) = formed(cluster, &[0, 1, 2]).await;
    eventually(20, "each region and the witness have one vote", || async {
        let voters = voters(&cluster, 4);
        voters.len() == 3 && voters.contains(&4) && voters.iter().filter(|at| **at < 2).count() == 1
    })
    .await;

    let repo = client.create_repo().await;
    client.open_session(repo, SESSION).await;
    let pack = pack_bytes(1, 1_000);
    let info = PackInfo {
        cluster: ClusterId([5; 16]),
        repo,
        pack: farshore_core::id::PackId::of(&pack),
        pack_len: 1_000,
        scheme: scheme(),
    };
    let payload = pack.slice(..512);
    let (hash, _) = hash_shard(info.shard(0), &payload);
    let put = ShardPut { header: info.header(0, hash), payload, session: Some(SESSION) };
    let refused = client.shards.put(cluster.id(4), put).await;
    assert!(matches!(refused, Err(ShardError::Full(..))), "{refused:?}");

    cluster.crash(0);
    cluster.crash(1);
    let mut client = cluster.client("operator", 2);
    eventually(20, "the rest still commits", || async {
        let open = wire::OpenSessionRequest {
            session: raw(&[8; 16]),
            repo: raw(repo.as_bytes()),
            ..Default::default()
        };
        client.again().catalogue.open_session(open).await.is_ok()
    })
    .await;
    assert!(!client.status().await.stale);
}

/// The vote of a lost region goes to another region, and comes back with the region.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_vote_of_a_lost_region_goes_elsewhere_and_comes_back() {
    let (mut cluster, client) = formed(Cluster::new(&["x/a", "x/b", "x/c", "x/a"]), &[0, 1, 2]).await;
    cluster.crash(2);
    eventually(25, "the second node of region a votes", || async { voters(&cluster, 1) == [0, 1, 3].into() })
        .await;
    // One more may go now, which could not before.
    cluster.crash(0);
    eventually(20, "two of the three still commit", || async {
        let again = cluster.client("operator", 1);
        let mut admin = again.admin.clone();
        admin.status(wire::StatusRequest {}).await.is_ok_and(|s| !s.into_inner().stale)
    })
    .await;
    drop(client);
    cluster.start(2, None).await;
    eventually(25, "one vote a region again", || async {
        let now = voters(&cluster, 1);
        now.contains(&1) && now.contains(&2) && now.len() == 3
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_is_emptied_retired_and_ends_and_of_two_admins_one_wins() {
    let (mut cluster, mut client) =
        formed(Cluster::new(&["x/a", "x/b", "x/c", "x/a", "x/b"]), &[0, 1, 2]).await;
    let repo = client.create_repo().await;
    client.open_session(repo, SESSION).await;
    let homes = [0, 1, 2].map(|at| cluster.id(at));
    let commit = client.upload(repo, SESSION, &pack_bytes(1, 300_000), &homes).await;
    client.commit(SESSION, vec![commit]).await;

    // Region c has one node, and the packs want one shard in each region.
    let last = [change("drain", cluster.id(2))];
    let seen = plan(&client, &last).await;
    assert!(seen.refused.iter().any(|why| why.contains("find no other node")), "{:?}", seen.refused);
    let refused = apply(&client, 1, seen.epoch, Some(&last)).await;
    assert!(
        matches!(&refused, Err(ApiError::Invalid(why)) if why.contains("find no other node")),
        "{refused:?}"
    );

    let first = [change("drain", cluster.id(0))];
    let seen = plan(&client, &first).await;
    assert_eq!((seen.moves, seen.packs, seen.refused.len()), (1, 1, 0), "{seen:?}");
    assert_eq!(seen.before, seen.after);
    let row =
        |at: usize| seen.nodes.iter().find(|n| n.node.as_ref().unwrap().id == cluster.id(at).0).unwrap();
    assert!(row(0).before > 0 && row(0).after == 0 && row(3).after == row(0).before);

    // Staged by one, changed by another meanwhile: the first does not enact what it has not seen.
    let stage =
        wire::StageTopologyRequest { request: raw(&[2; 16]), epoch: seen.epoch, changes: first.to_vec() };
    let staged = client.admin.clone().stage_topology(stage).await.unwrap().into_inner().epoch;
    assert_eq!(staged, seen.epoch + 1);
    let other = wire::StageTopologyRequest { request: raw(&[3; 16]), epoch: staged, changes: first.to_vec() };
    client.admin.clone().stage_topology(other).await.unwrap();
    let late = apply(&client, 4, staged, None).await;
    assert!(matches!(&late, Err(ApiError::Exists(why)) if why.contains("epoch")), "{late:?}");
    let won = apply(&client, 5, staged + 1, None).await.unwrap();
    assert_eq!(apply(&client, 5, staged + 1, None).await, Ok(won), "asking again is harmless");
    let lost = apply(&client, 6, staged + 1, Some(&first)).await;
    assert!(matches!(lost, Err(ApiError::Exists(_))), "{lost:?}");

    let client = cluster.client("operator", 1);
    eventually(30, "it is empty and retired, and its vote has moved", || async {
        let mut admin = client.admin.clone();
        let Ok(status) = admin.status(wire::StatusRequest {}).await else { return false };
        let status = status.into_inner();
        !status.stale && state_of(&status, cluster.id(0)) == NodeState::Retired && status.under_target == 0
    })
    .await;
    assert_eq!(voters(&cluster, 1), [1, 2, 3].into());
    assert_eq!(client.again().read_pack(repo, 1).await, Some(pack_bytes(1, 300_000)));
    let why = tokio::time::timeout(Duration::from_secs(10), cluster.node(0).failed()).await.unwrap();
    assert!(why.contains("retired"), "{why}");

    // A lost node is removed for good, even if it held shards; a living one that holds some is not.
    cluster.crash(4);
    eventually(25, "it is lost", || async {
        let mut admin = client.admin.clone();
        let status = admin.status(wire::StatusRequest {}).await;
        status.is_ok_and(|s| state_of(&s.into_inner(), cluster.id(4)) == NodeState::Lost)
    })
    .await;
    let gone = [change("remove", cluster.id(4))];
    let seen = plan(&client, &gone).await;
    apply(&client, 7, seen.epoch, Some(&gone)).await.unwrap();
    // If the lost one had the shard, it is made anew in a moment.
    let held = [change("remove", cluster.id(3))];
    eventually(15, "removing the one that has its shards is refused", || async {
        plan(&client, &held).await.refused.iter().any(|why| why.contains("holds shards"))
    })
    .await;
}

/// Nobody could be asked when it started; so it learns it from the first who calls.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_directory_is_refused_although_nobody_could_be_asked() {
    let (mut cluster, mut client) = formed(Cluster::new(&["x/a", "x/b", "x/c"]), &[0, 1, 2]).await;
    cluster.stop(2).await;
    let empty = cluster.dir(2).join("not-mounted");
    let started = cluster.start_alone(2, &empty).await.expect("it knows of nobody and starts");
    let why = tokio::time::timeout(Duration::from_secs(15), started.1.failed()).await.unwrap();
    assert!(why.contains("another data directory"), "{why}");
    assert_eq!(started.1.consensus().standing().applied, 0, "it was told nothing");
    started.1.stop().await;
    started.0.kill();
    assert!(!client.status().await.stale, "the others went on");
    cluster.start(2, None).await;
    eventually(20, "with its own directory it is welcome", || async {
        state_of(&client.again().status().await, cluster.id(2)) == NodeState::Up
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_once() {
    let cluster = Cluster::new(&["x/a", "x/b", "x/c", "x/d", "x/e"]);
    let mut cluster = cluster;
    for at in [1, 2] {
        cluster.start(at, None).await;
    }
    cluster.start(0, Some(&[0, 1, 2])).await;
    cluster.node(0).formed().await;
    let form = Command::FormCluster { cluster: ClusterId([5; 16]) };
    let again = cluster.node(1).consensus().propose(form).await.unwrap();
    assert_eq!(again, Reply::Refused(Refusal::AlreadyFormed));

    // Two strangers to it want to found another with one of its nodes.
    let formed = cluster.node(1).view().unwrap();
    let founders = [3, 4, 1];
    let seeds = founders
        .map(|at| farshore_node::config::Seed { id: cluster.id(at), addr: cluster.slots[at].addr.clone() });
    let four = cluster.start_alone(4, &cluster.dir(4)).await.unwrap();
    cluster.put(4, four);
    let three = cluster.try_start(3, &cluster.dir(3), Some(seeds.to_vec())).await.unwrap();
    let why = tokio::time::timeout(Duration::from_secs(15), three.1.failed()).await.unwrap();
    assert!(why.contains("founded before"), "{why}");
    assert!(!three.1.consensus().has_begun().await.unwrap());
    assert!(!cluster.node(4).consensus().has_begun().await.unwrap());
    assert!(cluster.node(1).view().unwrap().applied() >= formed.applied());

    // While the one that knows cannot be asked, nothing is founded at all.
    three.1.stop().await;
    three.0.kill();
    cluster.crash(1);
    cluster.crash(0);
    cluster.crash(2);
    let dir = cluster.dir(3).join("again");
    let three = cluster.try_start(3, &dir, Some(seeds.to_vec())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(!three.1.consensus().has_begun().await.unwrap());
}

/// What the catalogue knew of addresses went before the configuration, and they never found each other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_all_moved_while_they_were_down_find_each_other() {
    let (mut cluster, client) = formed(Cluster::new(&["x/a", "x/b", "x/c"]), &[0, 1, 2]).await;
    drop(client);
    for at in 0..3 {
        cluster.stop(at).await;
        cluster.move_away(at);
    }
    for at in 0..3 {
        cluster.start(at, None).await;
    }
    let client = cluster.client("operator", 1);
    eventually(25, "there is a leader and it knows the new addresses", || async {
        let mut admin = client.admin.clone();
        let Ok(status) = admin.status(wire::StatusRequest {}).await else { return false };
        let status = status.into_inner();
        let known =
            |n: &wire::NodeStatus| cluster.slots.iter().any(|s| s.addr == n.node.as_ref().unwrap().addr);
        !status.stale && status.nodes.iter().all(known)
    })
    .await;
}
