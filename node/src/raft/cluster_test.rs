//! Whole replicas over loopback TLS: they elect, pass commands on, survive their leader, catch up by log and by image,
//! and say whom they miss.
#![expect(clippy::disallowed_methods, reason = "tests stand outside the seams")]

use super::image::{Frozen, Moved, seal_note};
use super::mark::MARK_FILE;
use super::membership::MembershipError;
use super::passport::Passport;
use super::reseat::{Seat as NewSeat, Unfinished, inspect, is_whole, reseat, reseat_rebuilt, unfinished};
use super::testkit::SlotDisk;
use super::types::{LogId, MESSAGE_VERSION, Types, Vote, seal_message};
use super::{Consensus, ConsensusError, RaftStoreError, RaftTuning};
use crate::catalogue::{Catalogue, NoteKey};
use crate::identity::{Claim, Identity};
use crate::kv::memory::MemoryKv;
use crate::rpc::raft::{HeartbeatSink, RaftService};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, Reply, RepoRecord, SnapshotKind, SnapshotRecord};
use farshore_core::host::real::{NoStorage, OsEntropy, Processors, SystemClock, TcpNet};
use farshore_core::host::{ByteStream, Host, Kv, KvOp, Listener, Net, WallClock};
use farshore_core::id::{ClusterId, NodeId, RepoId, SessionId, SnapshotId};
use farshore_core::policy::Policy;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::channel::{self, connect};
use farshore_proto::peers::Peers;
use farshore_proto::pki::{Authority, Validity};
use farshore_proto::serve;
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Credentials, Expect, Tls};
use farshore_proto::wire::snapshot_part::Part;
use farshore_proto::wire::{GiveUpVoteReply, HeartbeatReply, HeartbeatRequest, RaftMessage, SnapshotPart};
use futures_util::{Stream, StreamExt};
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::oneshot;
use tonic::service::Routes;
use tonic::{Code, Status};

struct NoHeartbeats;
#[async_trait]
impl HeartbeatSink for NoHeartbeats {
    async fn beat(&self, _: NodeId, _: HeartbeatRequest) -> Result<HeartbeatReply, ApiError> {
        Ok(HeartbeatReply::default())
    }
    async fn give_up_vote(&self, _: NodeId) -> Result<GiveUpVoteReply, ApiError> {
        Err(ApiError::NoQuorum("nobody leads here".into()))
    }
}

fn tuning() -> RaftTuning {
    RaftTuning {
        heartbeat_ms: 100,
        election_min_ms: 500,
        election_max_ms: 1_000,
        snapshot_logs: 20,
        keep_logs: 5,
        call_ms: 5_000,
    }
}

/// What outlives a node: its key, its stores and its address.
struct Seat {
    id: NodeId,
    tls: Arc<Tls>,
    addr: String,
    kv: Arc<dyn Kv>,
    disk: SlotDisk,
    net: Arc<dyn Net>,
}

/// A running node.
struct Node {
    raft: Consensus,
    stop: Option<oneshot::Sender<()>>,
}

async fn seats(n: usize, net: Arc<dyn Net>) -> Vec<Seat> {
    let validity = Validity::days(SystemClock.now_ms(), 1);
    let authority = Authority::create(ClusterId([7; 16]), validity).unwrap();
    let mut seats = Vec::new();
    for _ in 0..n {
        let issued = authority.issue_node(validity).unwrap();
        let credentials = Credentials {
            cluster: authority.cluster(),
            ca_pem: authority.ca_cert_pem().into(),
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
        };
        let tls = Arc::new(Tls::new(&credentials, Arc::new(SystemClock)).unwrap());
        // Nobody else takes a loopback port between the two listens, unless by very bad luck.
        let addr = TcpNet.listen("127.0.0.1:0").await.unwrap().local_addr();
        let (kv, disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
        seats.push(Seat { id: issued.id, tls, addr, kv, disk, net: net.clone() });
    }
    seats
}

impl Seat {
    /// Opens its stores and starts its replica, which listens to nobody yet.
    async fn open(&self, all: &[Seat], tuning: RaftTuning) -> Result<Consensus, RaftStoreError> {
        let host = Host {
            disk: Arc::new(self.disk.clone()),
            kv: Arc::new(NoStorage),
            net: self.net.clone(),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
            compute: Arc::new(Processors::new()),
        };
        let peers = Arc::new(Peers::new(self.net.clone(), self.tls.clone()));
        all.iter().for_each(|seat| peers.set(seat.id, &seat.addr));
        let catalogue = Catalogue::open(self.kv.clone()).unwrap();
        let owner = Identity { cluster: ClusterId([7; 16]), node: self.id };
        let claim = Claim { owner, incarnation: self.id.0, formation: 1 };
        let passport = Passport::new(claim, host.disk.clone());
        Consensus::start(&host, self.id, catalogue, self.kv.clone(), peers, passport, tuning).await
    }
    async fn start(&self, all: &[Seat], tuning: RaftTuning) -> Node {
        let raft = self.open(all, tuning).await.unwrap();
        // No heartbeats here: they would bring the clocks of the others.
        all.iter().for_each(|seat| raft.heard_clock(seat.id, SystemClock.now_ms()));
        let service = Arc::new(RaftService::new(raft.clone(), Arc::new(NoHeartbeats)));
        let listener: Box<dyn Listener> = TcpNet.listen(&self.addr).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = serve::serve(listener, self.tls.clone(), Routes::new(serve::raft(service)), async {
            let _ = stopped.await;
        });
        tokio::spawn(serving);
        Node { raft, stop: Some(stop) }
    }
    fn record(&self, n: usize) -> NodeRecord {
        NodeRecord {
            id: self.id,
            name: format!("n{n}").parse().unwrap(),
            region: format!("p/r{n}").parse().unwrap(),
            zone: None,
            addr: self.addr.clone(),
            capacity: 1,
            state: NodeState::Up,
        }
    }
}

impl Node {
    async fn kill(mut self) {
        drop(self.stop.take());
        self.raft.shutdown().await;
    }
    async fn put(&self, seat: &Seat, n: usize) -> Result<Reply, ConsensusError> {
        self.raft.propose(Command::PutNode { node: seat.record(n) }).await
    }
    fn picture(&self) -> (u64, String) {
        let view = self.raft.catalogue().view().unwrap();
        (view.applied(), view.state_hash().to_string())
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    for _ in 0..200 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("never came true: {what}");
}

fn follower<'a>(nodes: &[&'a Node]) -> &'a Node {
    nodes.iter().find(|node| !node.raft.is_leader()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_outlives_its_leader_and_takes_back_the_laggard_by_image() {
    let seats = seats(4, Arc::new(TcpNet)).await;
    let mut nodes = Vec::new();
    for seat in &seats[..3] {
        nodes.push(seat.start(&seats, tuning()).await);
    }
    let voters: Vec<_> = seats[..3].iter().map(|seat| (seat.id, seat.addr.clone())).collect();
    assert!(nodes[0].raft.bootstrap(&voters).await.unwrap());
    assert!(!nodes[0].raft.bootstrap(&voters).await.unwrap(), "a cluster is formed once");

    // Every node takes commands, whoever leads, and reads what was acknowledged anywhere.
    let form = Command::FormCluster { cluster: ClusterId([7; 16]) };
    assert_eq!(nodes[2].raft.propose(form).await.unwrap(), Reply::Done);
    for (n, node) in nodes.iter().enumerate() {
        assert_eq!(node.put(&seats[n], n).await.unwrap(), Reply::Done);
    }
    for node in &nodes {
        let index = node.raft.read_index().await.unwrap();
        let view = node.raft.catalogue().view().unwrap();
        assert!(view.applied() >= index);
        assert_eq!(view.nodes().unwrap().len(), 3);
    }
    let refused = follower(&nodes.iter().collect::<Vec<_>>()).raft.admit(seats[3].id, &seats[3].addr).await;
    assert!(matches!(refused, Err(MembershipError::Later(_))), "{refused:?}");

    // The leader dies; the rest goes on.
    let dead = nodes.iter().position(|node| node.raft.is_leader()).unwrap();
    nodes.remove(dead).kill().await;
    let rest: Vec<&Node> = nodes.iter().collect();
    for n in 10..60 {
        assert_eq!(follower(&rest).put(&seats[0], n).await.unwrap(), Reply::Done);
    }

    // The dead one comes back with its old stores, too far behind for the log.
    let back = seats[dead].start(&seats, tuning()).await;
    let target = rest[0].raft.read_index().await.unwrap();
    eventually("the old leader caught up", || back.raft.standing().applied >= target).await;
    back.raft.read_index().await.unwrap();
    assert_eq!(back.raft.catalogue().view().unwrap().nodes().unwrap(), {
        rest[0].raft.read_index().await.unwrap();
        rest[0].raft.catalogue().view().unwrap().nodes().unwrap()
    });
    let purged = back.raft.replica().metrics().borrow().purged.map_or(0, |id| id.index);
    assert!(purged > 10, "it caught up by image, so its log begins late: {purged}");

    // A new node becomes a learner as soon as the catalogue knows it.
    let fourth = seats[3].start(&seats, tuning()).await;
    assert_eq!(rest[0].put(&seats[3], 3).await.unwrap(), Reply::Done);
    let all = [rest[0], rest[1], &back];
    let leader = all.iter().find(|node| node.raft.is_leader()).unwrap();
    leader.raft.read_index().await.unwrap();
    let known = leader.raft.catalogue().view().unwrap().nodes().unwrap();
    assert!(leader.raft.reconcile(&known).await.unwrap());
    assert!(!leader.raft.reconcile(&known).await.unwrap());
    assert_eq!(fourth.put(&seats[1], 99).await.unwrap(), Reply::Done);
    fourth.raft.read_index().await.unwrap();
    assert!(fourth.raft.standing().learners.contains(&seats[3].id));
    eventually("all replicas agree", || all.iter().all(|node| node.picture() == fourth.picture())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_that_gave_up_its_replica_learns_it_anew_from_the_same_leader() {
    let mut seats = seats(2, Arc::new(TcpNet)).await;
    let leader = seats[0].start(&seats, tuning()).await;
    leader.raft.bootstrap(&[(seats[0].id, seats[0].addr.clone())]).await.unwrap();
    leader.raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    for (n, seat) in seats.iter().enumerate() {
        leader.put(seat, n).await.unwrap();
    }
    let learner = seats[1].start(&seats, tuning()).await;
    assert!(leader.raft.reconcile(&leader.raft.catalogue().view().unwrap().nodes().unwrap()).await.unwrap());
    eventually("the learner has all", || learner.picture() == leader.picture()).await;
    learner.kill().await;
    // The leader remembers what it had; it has nothing of that any more.
    (seats[1].kv, seats[1].disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
    let anew = seats[1].start(&seats, tuning()).await;
    eventually("it has all again", || anew.picture() == leader.picture()).await;
    assert_eq!(leader.put(&seats[0], 7).await.unwrap(), Reply::Done, "and the leader is well");
    eventually("it goes on", || anew.picture() == leader.picture()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_voter_whose_replica_is_damaged_is_taken_out_and_comes_back() {
    let mut seats = seats(3, Arc::new(TcpNet)).await;
    let mut nodes = Vec::new();
    for seat in &seats {
        nodes.push(seat.start(&seats, tuning()).await);
    }
    let voters: Vec<_> = seats.iter().map(|seat| (seat.id, seat.addr.clone())).collect();
    nodes[0].raft.bootstrap(&voters).await.unwrap();
    nodes[0].raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    for (n, seat) in seats.iter().enumerate() {
        nodes[0].put(seat, n).await.unwrap();
    }
    let damaged = nodes.iter().position(|node| !node.raft.is_leader()).unwrap();
    nodes.remove(damaged).kill().await;
    let leader = nodes.iter().find(|node| node.raft.is_leader()).unwrap();
    assert!(matches!(
        nodes.iter().find(|node| !node.raft.is_leader()).unwrap().raft.expel(seats[damaged].id).await,
        Err(MembershipError::Later(_))
    ));
    for _ in 0..2 {
        leader.raft.expel(seats[damaged].id).await.unwrap();
    }
    let standing = leader.raft.standing();
    assert!(standing.voters.len() == 2 && standing.learners.is_empty(), "{standing:?}");
    // It is invited as a learner; until it has learnt, two go on voting, and not one alone.
    let known = leader.raft.catalogue().view().unwrap().nodes().unwrap();
    assert!(leader.raft.reconcile(&known).await.unwrap());
    assert!(!leader.raft.reconcile(&known).await.unwrap());
    assert_eq!(leader.raft.standing().voters.len(), 2);

    (seats[damaged].kv, seats[damaged].disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
    let anew = seats[damaged].start(&seats, tuning()).await;
    eventually("it has learnt", || anew.picture() == leader.picture()).await;
    while !leader.raft.reconcile(&known).await.unwrap() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(leader.raft.standing().voters.len(), 3);
}

/// Found by the simulator, day seed 4: openraft reads these rows when it starts, and what it says of a bad one is text. The
/// node tried to start again and again, and never gave its replica up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_record_that_openraft_meets_as_it_starts_is_damage() {
    let seats = seats(1, Arc::new(TcpNet)).await;
    let node = seats[0].start(&seats, tuning()).await;
    node.raft.bootstrap(&[(seats[0].id, seats[0].addr.clone())]).await.unwrap();
    node.raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    node.kill().await;
    for note in [2, 3] {
        let key = [0, 0, 0, 0, note];
        let good = seats[0].kv.get(1, &key).unwrap().expect("the glue's note");
        let mut bad = good.to_vec();
        *bad.last_mut().unwrap() ^= 1;
        seats[0].kv.write(vec![KvOp::Put(1, key.to_vec(), bad)]).unwrap();
        let error = seats[0].open(&seats, tuning()).await.err().expect("it does not start");
        assert!(error.is_damage(), "note {note}: {error}");
        seats[0].kv.write(vec![KvOp::Put(1, key.to_vec(), good.to_vec())]).unwrap();
    }
    seats[0].start(&seats, tuning()).await.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_majority_the_silent_are_named_and_a_deposed_time_is_bounded() {
    let seats = seats(3, Arc::new(TcpNet)).await;
    let tuning = RaftTuning { call_ms: 3_000, ..tuning() };
    let mut nodes = Vec::new();
    for seat in &seats {
        nodes.push(seat.start(&seats, tuning.clone()).await);
    }
    let voters: Vec<_> = seats.iter().map(|seat| (seat.id, seat.addr.clone())).collect();
    nodes[0].raft.bootstrap(&voters).await.unwrap();
    let form = Command::FormCluster { cluster: ClusterId([7; 16]) };
    nodes[0].raft.propose(form.clone()).await.unwrap();
    nodes.pop().unwrap().kill().await;
    nodes.pop().unwrap().kill().await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    let Err(ConsensusError::NoQuorum(why)) = nodes[0].raft.propose(form).await else {
        panic!("no quorum is left")
    };
    assert!(why.contains(&seats[1].id.to_string()) && why.contains(&seats[2].id.to_string()), "{why}");
    assert!(!why.contains(&seats[0].id.to_string()), "{why}");
    assert!(matches!(nodes[0].raft.read_index().await, Err(ConsensusError::NoQuorum(_))));
    nodes[0].raft.shutdown().await;
    let form = Command::FormCluster { cluster: ClusterId([8; 16]) };
    assert!(matches!(nodes[0].raft.propose(form).await, Err(ConsensusError::Stopped(_))));
}

/// Two of three voters die for good, after they have acknowledged something that the third never heard of.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone_and_the_others_cannot_undo_it() {
    let mut seats = seats(3, Arc::new(TcpNet)).await;
    let mut nodes = Vec::new();
    for seat in &seats {
        nodes.push(seat.start(&seats, tuning()).await);
    }
    let voters: Vec<_> = seats.iter().map(|seat| (seat.id, seat.addr.clone())).collect();
    nodes[0].raft.bootstrap(&voters).await.unwrap();
    nodes[0].raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    for (n, seat) in seats.iter().enumerate() {
        nodes[0].put(seat, n).await.unwrap();
    }
    let repo = a_repo();
    nodes[0].raft.propose(Command::CreateRepository { repo: repo.clone() }).await.unwrap();
    let session = SessionId([5; 16]);
    nodes[0].raft.propose(Command::OpenSession { session, repo: repo.id, seen: 0 }).await.unwrap();
    nodes[2].raft.read_index().await.unwrap();
    nodes.pop().unwrap().kill().await;
    for n in 10..14 {
        nodes[1].put(&seats[0], n).await.unwrap();
    }
    for node in nodes {
        node.kill().await;
    }

    let last = &seats[2];
    let catalogue = Catalogue::open(last.kv.clone()).unwrap();
    let disk = || Arc::new(last.disk.clone());
    let found = inspect(last.kv.clone(), disk(), &catalogue).await.unwrap();
    assert_eq!((found.era, found.voters.len(), found.pristine), (0, 3, false));
    let members = voters.iter().cloned().collect();
    let seat = NewSeat { own: last.id, members, era: 9, now_ms: 0 };
    reseat(last.kv.clone(), disk(), &catalogue, &seat).await.unwrap();
    assert_eq!(inspect(last.kv.clone(), disk(), &catalogue).await.unwrap().era, 9);
    drop(catalogue);

    let alone = last.start(&seats, tuning()).await;
    alone.put(last, 2).await.unwrap();
    let view = alone.raft.catalogue().view().unwrap();
    assert_eq!(view.repo(repo.id).unwrap(), Some(repo), "what it knew is there");
    assert_eq!(view.session(session).unwrap(), None, "and every session has ended");
    assert_eq!(view.node(seats[0].id).unwrap().unwrap().name.as_str(), "n0", "what it never knew is not");
    assert_eq!(alone.raft.era(), Some(9));

    // A lost voter turns up with all it had. It takes nothing from the new era, gives nothing to it, and stops.
    let ghost = seats[0].start(&seats, tuning()).await;
    let before = ghost.picture();
    let why = tokio::time::timeout(Duration::from_secs(20), ghost.raft.stopped()).await.unwrap();
    assert!(why.contains("era 9"), "{why}");
    assert_eq!(ghost.picture(), before);
    ghost.kill().await;
    alone.put(last, 3).await.unwrap();

    // With an empty replica it is one of many.
    (seats[0].kv, seats[0].disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
    let taken_in = seats[0].start(&seats, tuning()).await;
    eventually("it has learnt the catalogue", || taken_in.picture() == alone.picture()).await;
    assert_eq!(taken_in.raft.era(), Some(9));
    assert!(alone.raft.standing().learners.contains(&seats[0].id));
    taken_in.put(&seats[0], 50).await.unwrap();
}

fn a_repo() -> RepoRecord {
    RepoRecord {
        id: RepoId([4; 16]),
        name: "repo".parse().unwrap(),
        policy: Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 },
        sealed_config: vec![1],
        key_slots: vec![],
    }
}

#[tokio::test]
async fn an_interrupted_recovery_is_noticed_and_looking_leaves_no_trace() {
    let (kv, disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
    let catalogue = Catalogue::open(kv.clone()).unwrap();
    let found = inspect(kv.clone(), Arc::new(disk.clone()), &catalogue).await.unwrap();
    assert!(found.pristine && disk.file(MARK_FILE).is_none(), "a mark would make it look like an old node");
    let whole = || is_whole(kv.clone(), &disk, &catalogue);
    assert!(whole().await.unwrap());
    let seat = NewSeat { own: NodeId(1), members: Default::default(), era: 1, now_ms: 0 };
    // The mark's two slots are made, then the disk fails.
    disk.tear_after(3);
    reseat(kv.clone(), Arc::new(disk.clone()), &catalogue, &seat).await.unwrap_err();
    assert!(!whole().await.unwrap());
    disk.tear_after(usize::MAX);
    reseat(kv.clone(), Arc::new(disk.clone()), &catalogue, &seat).await.unwrap();
    assert!(whole().await.unwrap());
    let found = inspect(kv.clone(), Arc::new(disk.clone()), &catalogue).await.unwrap();
    assert_eq!((found.era, found.voters.len()), (1, 1));
}

#[tokio::test]
async fn a_recovery_that_stopped_short_of_its_last_step_is_finished_by_repeating_it() {
    let (kv, disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
    let catalogue = Catalogue::open(kv.clone()).unwrap();
    let seat = |era| NewSeat { own: NodeId(1), members: Default::default(), era, now_ms: 0 };
    let dyn_disk = || Arc::new(disk.clone());
    reseat(kv.clone(), dyn_disk(), &catalogue, &seat(5)).await.unwrap();
    // Everything is stored, but the file is still there.
    disk.put("raft/unfinished", Some(b"farshore recovery under way\n".to_vec()));
    assert!(!is_whole(kv.clone(), &disk, &catalogue).await.unwrap());
    assert_eq!(unfinished(&disk).await.unwrap(), Some(Unfinished::Quorum));
    let found = inspect(kv.clone(), dyn_disk(), &catalogue).await.unwrap();
    assert_eq!((found.era, found.voters), (5, [NodeId(1)].into()));
    reseat(kv.clone(), dyn_disk(), &catalogue, &seat(6)).await.unwrap();
    assert!(is_whole(kv.clone(), &disk, &catalogue).await.unwrap());
    assert_eq!(unfinished(&disk).await.unwrap(), None);
    let found = inspect(kv, dyn_disk(), &catalogue).await.unwrap();
    assert_eq!((found.era, found.last_index), (6, 3));
}

#[tokio::test]
async fn a_rebuilt_catalogue_is_given_a_clean_log_wherever_the_attempt_before_was_cut_off() {
    for writes in 0.. {
        let (kv, disk) = (Arc::new(MemoryKv::new()), SlotDisk::default());
        let catalogue = Catalogue::open(kv.clone()).unwrap();
        let applied = LogId { index: 7, ..LogId::default() };
        let mut tx = catalogue.begin();
        tx.pass(7).unwrap();
        tx.note(NoteKey::Applied, seal_note(&Some(applied))).unwrap();
        tx.commit().unwrap();
        let seat = |era| NewSeat { own: NodeId(1), members: Default::default(), era, now_ms: 0 };
        let again = |era| {
            let seat = seat(era);
            let (kv, disk, catalogue) = (kv.clone(), Arc::new(disk.clone()), &catalogue);
            async move { reseat_rebuilt(kv, disk, catalogue, &seat).await }
        };
        disk.tear_after(writes);
        let cut = again(5).await.is_err();
        if cut && writes > 0 {
            assert_eq!(unfinished(&disk).await.unwrap(), Some(Unfinished::Rebuild));
            assert!(!is_whole(kv.clone(), &disk, &catalogue).await.unwrap());
        }
        disk.tear_after(usize::MAX);
        assert_eq!(again(6).await.unwrap(), 9, "right behind the catalogue, after {writes} writes");
        assert!(is_whole(kv.clone(), &disk, &catalogue).await.unwrap());
        let found = inspect(kv.clone(), Arc::new(disk.clone()), &catalogue).await.unwrap();
        assert_eq!((found.era, found.last_index), (6, 9));
        if !cut {
            assert!(writes > 4, "it was cut off at every write");
            return;
        }
    }
}

/// A message stream of an image that ends after `parts` messages.
fn image_of(node: &Node, vote: Vote, parts: usize) -> impl Stream<Item = SnapshotPart> + Send + 'static {
    let frozen = Frozen::of(node.raft.catalogue()).unwrap();
    let open = seal_message(MESSAGE_VERSION, &(vote, frozen.meta().unwrap()));
    frozen.parts(open, 0, Moved::default(), oneshot::channel().0).take(parts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_liars_and_garbage_change_nothing() {
    let seats = seats(2, Arc::new(TcpNet)).await;
    let leader = seats[0].start(&seats, tuning()).await;
    let other = seats[1].start(&seats, tuning()).await;
    leader.raft.bootstrap(&[(seats[0].id, seats[0].addr.clone())]).await.unwrap();
    leader.raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    for n in 0..3 {
        leader.put(&seats[n % 2], n).await.unwrap();
    }
    let dial = |from: &Seat, to: &Seat| {
        let channel = connect(from.net.clone(), from.tls.clone(), to.addr.clone(), Expect::Node(to.id));
        channel::raft(channel)
    };
    let code = |status: Status| status.code();

    // A node may speak only for itself, and must speak sense.
    let vote = leader.raft.replica().metrics().borrow().vote;
    let forged =
        AppendEntriesRequest::<Types> { vote, prev_log_id: None, entries: vec![], leader_commit: None };
    let body = seal_message(MESSAGE_VERSION, &forged);
    let liar = dial(&seats[1], &seats[0]).append(RaftMessage { body, era_plus_one: 0 }).await;
    assert_eq!(liar.map_err(code).unwrap_err(), Code::PermissionDenied);
    let body = seal_message(MESSAGE_VERSION, &VoteRequest::new(Vote::new(99, seats[0].id.0), None));
    let liar = dial(&seats[1], &seats[0]).vote(RaftMessage { body, era_plus_one: 0 }).await;
    assert_eq!(liar.map_err(code).unwrap_err(), Code::PermissionDenied);
    for body in [vec![], vec![9], vec![1, 255, 255, 255], vec![1; 4096]] {
        let message = RaftMessage { body: body.into(), era_plus_one: 0 };
        let mut client = dial(&seats[1], &seats[0]);
        assert_eq!(client.append(message.clone()).await.map_err(code).unwrap_err(), Code::InvalidArgument);
        assert_eq!(client.vote(message.clone()).await.map_err(code).unwrap_err(), Code::InvalidArgument);
        assert_eq!(client.propose(message).await.map_err(code).unwrap_err(), Code::InvalidArgument);
    }

    // Images that break off, lie about their hash or come from nobody's leader install nothing.
    let mut client = dial(&seats[0], &seats[1]);
    for parts in 0..3 {
        let broken = client.install_snapshot(image_of(&leader, vote, parts)).await;
        assert_eq!(broken.map_err(code).unwrap_err(), Code::InvalidArgument, "{parts} parts");
    }
    let lie = |mut part: SnapshotPart| {
        if let Some(Part::Close(close)) = &mut part.part {
            close.state_hash = vec![0; 16].into();
        }
        part
    };
    let lying = client.install_snapshot(image_of(&leader, vote, 9).map(lie)).await;
    assert_eq!(lying.map_err(code).unwrap_err(), Code::InvalidArgument);
    let liar = dial(&seats[1], &seats[1]).install_snapshot(image_of(&leader, vote, 9)).await;
    assert_eq!(liar.map_err(code).unwrap_err(), Code::PermissionDenied);
    assert_eq!(other.picture().0, 0);
    assert_eq!(other.raft.standing().stopped, None);

    // The same image, whole and from its leader, is installed.
    client.install_snapshot(image_of(&leader, vote, 9)).await.unwrap();
    eventually("the image is live", || other.picture() == leader.picture()).await;
}

/// A network on which every byte takes its time.
struct SlowNet {
    bytes_per_ms: usize,
}

#[async_trait]
impl Net for SlowNet {
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>> {
        let (mut from_far, mut to_far) = tokio::io::split(TcpNet.dial(addr).await?);
        let (near, ours) = tokio::io::duplex(64 << 10);
        let (mut from_near, mut to_near) = tokio::io::split(ours);
        let pace = self.bytes_per_ms;
        tokio::spawn(async move {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(n @ 1..) = from_near.read(&mut buffer).await {
                tokio::time::sleep(Duration::from_millis((n / pace) as u64)).await;
                if to_far.write_all(&buffer[..n]).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let _ = tokio::io::copy(&mut from_far, &mut to_near).await;
        });
        Ok(Box::new(near))
    }
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        TcpNet.listen(addr).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_command_gets_through_a_slow_link_without_an_election() {
    // Three megabytes at two a second: fifteen heartbeats long, and longer than the longest election timeout.
    let seats = seats(3, Arc::new(SlowNet { bytes_per_ms: 2_000 })).await;
    let mut nodes = Vec::new();
    for seat in &seats {
        nodes.push(seat.start(&seats, RaftTuning { call_ms: 20_000, ..tuning() }).await);
    }
    let voters: Vec<_> = seats.iter().map(|seat| (seat.id, seat.addr.clone())).collect();
    nodes[0].raft.bootstrap(&voters).await.unwrap();
    let form = Command::FormCluster { cluster: ClusterId([7; 16]) };
    nodes[0].raft.propose(form).await.unwrap();
    let leader = nodes.iter().find(|node| node.raft.is_leader()).unwrap();
    let term = leader.raft.standing().leadership.term;
    let snapshot = SnapshotRecord {
        id: SnapshotId([1; 32]),
        repo: RepoId([1; 16]),
        kind: SnapshotKind::Full,
        parent: None,
        group: [0; 16],
        committed_ms: 0,
        label: Default::default(),
        sealed: Vec::new(),
        live: vec![0x5a; 3 << 20],
    };
    let large = Command::CommitSnapshot { session: SessionId([1; 16]), snapshot, replaces: None };
    let reply = leader.raft.propose(large).await.unwrap();
    assert!(matches!(reply, Reply::Refused(_)), "{reply:?}");
    assert_eq!(leader.raft.standing().leadership.term, term, "nobody stood for election meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_commands_never_reach_the_log() {
    let seats = seats(1, Arc::new(TcpNet)).await;
    let node = seats[0].start(&seats, tuning()).await;
    node.raft.bootstrap(&[(seats[0].id, seats[0].addr.clone())]).await.unwrap();
    node.raft.propose(Command::FormCluster { cluster: ClusterId([7; 16]) }).await.unwrap();
    let before = node.raft.standing().last_log;
    let many = vec![SessionId([3; 16]); farshore_core::limits::COMMAND_BYTES_MAX / 16];
    let refused = node.raft.propose(Command::EndSessions { sessions: many }).await;
    assert!(matches!(refused, Err(ConsensusError::Invalid(_))), "{refused:?}");
    assert!(matches!(node.raft.propose_for(NodeId(1), &[1, 200]).await, Err(ConsensusError::Invalid(_))));
    assert_eq!(node.raft.standing().last_log, before);
}
