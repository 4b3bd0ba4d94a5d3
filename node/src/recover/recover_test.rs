//! What a rebuild makes of what it finds before it does anything.

use super::*;
use crate::catalogue::part::ExportTag;
use crate::catalogue::{NoteKey, StateHash};
use crate::disk::RealDisk;
use crate::kv::RealKv;
use crate::raft::image::seal_note;
use crate::store::StoreOptions;
use farshore_core::host::WallClock;
use farshore_core::host::real::{OsEntropy, Processors, SystemClock, TcpNet};
use farshore_core::id::StripeId;
use farshore_proto::pki::{Authority, Validity};
use farshore_proto::shard_client::GrpcShards;
use farshore_proto::tls::{Credentials, Tls};

const CLUSTER: ClusterId = ClusterId([7; 16]);

fn export(id: u8, era: u32, to: u64, complete: Result<(), String>) -> Export {
    Export {
        id: ExportId([id; 16]),
        base: true,
        from: 0,
        to,
        time_ms: 0,
        state_hash: StateHash([0; 16]),
        snapshots: 0,
        packs: 0,
        era,
        after: ExportTag::default(),
        parts: vec![StripeId([id; 16])],
        complete,
    }
}

#[test]
fn whatever_leads_further_is_named_whether_it_can_be_used_or_not() {
    let exports = [
        export(1, 5, 10, Ok(())),
        export(2, 5, 12, Err("only 2 of its parts can be read".into())),
        export(3, 5, 14, Ok(())),
        export(4, 0, 90, Ok(())),
        export(5, 5, 9, Ok(())),
    ];
    let unusable = [3, 5].map(|id| (ExportId([id; 16]), "rotten".to_owned())).into();
    let chain = choose(&exports, &unusable).unwrap();
    assert_eq!(chain.base, 0);
    let (further, others) = left_out(&exports, &chain, &unusable);
    assert_eq!((further.len(), others.len()), (2, 1), "{further:?} {others:?}");
    assert!(further[0].contains("up to log entry 12 of era 5: only 2"), "{further:?}");
    assert!(further[1].contains("up to log entry 14 of era 5: rotten"), "{further:?}");
}

#[test]
fn a_replica_elsewhere_is_found_before_anything_is_loaded() {
    let node = |occupied, replica_applied| wire::StandingReply {
        name: "b1".into(),
        occupied,
        replica_applied,
        ..wire::StandingReply::default()
    };
    let refused = |found: &[wire::StandingReply]| refuse_if_occupied(NodeId(1), found.iter());
    assert!(refused(&[node(false, 0), node(false, 0)]).is_ok());
    assert!(matches!(refused(&[node(false, 0), node(true, 9)]), Err(RecoverError::Alive(..))));
    let elsewhere = |node| wire::StandingReply { node, rebuilding: true, ..wire::StandingReply::default() };
    assert!(refused(&[elsewhere(1)]).is_ok(), "that is this one");
    assert!(matches!(refused(&[elsewhere(2)]), Err(RecoverError::Elsewhere(_))));
    let damaged = refused(&[node(false, 0), node(true, 0)]).unwrap_err();
    assert!(matches!(damaged, RecoverError::Damaged(..)));
    assert!(damaged.to_string().contains("start `farshore node recover` again"), "{damaged}");
    assert!(
        RecoverError::Occupied(String::new()).to_string().contains("start `farshore node recover` again")
    );
}

fn host(dir: &std::path::Path) -> Host {
    Host {
        disk: Arc::new(RealDisk::new(dir)),
        kv: Arc::new(RealKv::new(dir)),
        net: Arc::new(TcpNet),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
        compute: Arc::new(Processors::new()),
    }
}

/// A catalogue that has come to entry 7 and has no log.
async fn half_built(host: &Host) -> Replica {
    let kv = host.kv.open(KvRole::Catalogue).await.unwrap();
    let catalogue = Catalogue::open(kv.clone()).unwrap();
    let applied = LogId { index: 7, ..LogId::default() };
    let mut tx = catalogue.begin();
    tx.pass(7).unwrap();
    tx.note(NoteKey::Applied, seal_note(&Some(applied))).unwrap();
    tx.commit().unwrap();
    Replica { kv, catalogue }
}

#[tokio::test]
async fn a_rebuild_that_was_cut_off_is_no_replica_and_is_repeated_however_far_it_came() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let Replica { kv, catalogue } = half_built(&host).await;
    let seat = Seat { own: NodeId(1), members: BTreeMap::new(), era: 5, now_ms: 0 };
    reseat::reseat_rebuilt(kv.clone(), host.disk.clone(), &catalogue, &seat).await.unwrap();
    drop((kv, catalogue));
    let (whole, replica) = remains(&host).await;
    assert!(!whole.free && whole.last == 9, "{whole:?}");
    drop(replica);

    // All of its log is there, but not the last step.
    host.disk.write_slot("raft/unfinished", 0, b"farshore rebuild under way\n").await.unwrap();
    let (half, replica) = remains(&host).await;
    assert!(half.free && half.last == 0 && half.words == HALF_REBUILT, "{half:?}");
    let Replica { kv, catalogue } = replica.unwrap();
    let seat = Seat { era: 6, ..seat };
    reseat::reseat_rebuilt(kv.clone(), host.disk.clone(), &catalogue, &seat).await.unwrap();
    drop((kv, catalogue));
    let (whole, replica) = remains(&host).await;
    assert_eq!((whole.free, whole.era, whole.last), (false, 6, 9), "{whole:?}");
    drop(replica);

    // What went on alone is a replica, finished or not.
    host.disk.write_slot("raft/unfinished", 0, b"farshore recovery under way\n").await.unwrap();
    assert!(!remains(&host).await.0.free);
}

#[tokio::test]
async fn what_was_rebuilt_is_told_again_and_not_built_upon() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path());
    let validity = Validity::days(SystemClock.now_ms(), 1);
    let authority = Authority::create(CLUSTER, validity).unwrap();
    let issued = authority.issue_node(validity).unwrap();
    let credentials = Credentials {
        cluster: CLUSTER,
        ca_pem: authority.ca_cert_pem().into(),
        cert_pem: issued.cert_pem,
        key_pem: issued.key_pem,
    };
    let tls = Arc::new(Tls::new(&credentials, host.clock.clone()).unwrap());
    let peers = Arc::new(Peers::new(host.net.clone(), tls));
    let options = StoreOptions { capacity: 1 << 20, reserve: 0 };
    let (store, _) = ShardStore::open(&host, CLUSTER, options).await.unwrap();
    let own = NodeRecord {
        id: NodeId(1),
        name: "n1".parse().unwrap(),
        region: "x/y".parse().unwrap(),
        zone: None,
        addr: "127.0.0.1:1".into(),
        capacity: 1,
        state: NodeState::Up,
    };
    let replica = half_built(&host).await;
    let ground = Ground {
        cluster: CLUSTER,
        own,
        store,
        shards: Arc::new(GrpcShards::new(peers.clone())),
        peers,
        reached: NodeHealth::new(),
        remains: free(0, "none"),
        replica: Mutex::new((Some(replica), None)),
        running: std::sync::Mutex::default(),
        finished: watch::Sender::new(false),
        host,
    };
    let order = Order { confirm: true, accept_less: true };
    let refused = rebuild(&ground, &[], order, |_| {}).await;
    assert!(matches!(refused, Err(RecoverError::NoExport(0, _))), "{refused:?}");
    let was = Rebuilt { done: true, to: 7, era: 5, ..Rebuilt::default() };
    ground.replica.lock().await.1 = Some(was.clone());
    assert_eq!(rebuild(&ground, &[], order, |_| {}).await.unwrap(), was);
    let _held = ground.replica.lock().await;
    assert!(matches!(rebuild(&ground, &[], order, |_| {}).await, Err(RecoverError::Busy)));
}
