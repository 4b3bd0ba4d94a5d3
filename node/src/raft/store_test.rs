//! openraft's own suite for log and state machine, on both stores, and what it does not ask: that a log which lost a
//! promise, an entry or its mark is refused, and that everything survives a restart.

use super::image::Image;
use super::log::{LogStore, RaftStoreError};
use super::machine::Machine;
use super::mark::{MARK_FILE, MarkError};
use super::passport::{Passport, Purpose};
use super::testkit::SlotDisk;
use super::types::{Entry, LogId, Payload, Snapshot, StorageError, Types, Vote};
use crate::catalogue::Catalogue;
use crate::identity::{Claim, Identity};
use crate::kv::RealKv;
use crate::kv::memory::MemoryKv;
use crate::kv::testkit::Watched;
use farshore_core::catalogue::{Actor, Command, Proposal, Refusal, Reply};
use farshore_core::host::Disk;
use farshore_core::host::kv::{Kv, KvFactory, KvOp, KvRole};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::topology::{NodeRecord, NodeState};
use openraft::storage::{RaftLogStorage, RaftLogStorageExt, RaftStateMachine};
use openraft::testing::{StoreBuilder, Suite};
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, Membership, RaftLogReader, RaftSnapshotBuilder};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tempfile::TempDir;

async fn open(kv: Arc<dyn Kv>) -> (LogStore, Machine) {
    let log = LogStore::open(kv.clone(), Arc::new(SlotDisk::default())).await.unwrap();
    (log, Machine::new(Catalogue::open(kv).unwrap()))
}

struct InMemory;
impl StoreBuilder<Types, LogStore, Machine> for InMemory {
    async fn build(&self) -> Result<((), LogStore, Machine), StorageError> {
        let (log, machine) = open(Arc::new(MemoryKv::new())).await;
        Ok(((), log, machine))
    }
}

struct OnFjall;
impl StoreBuilder<Types, LogStore, Machine, TempDir> for OnFjall {
    async fn build(&self) -> Result<(TempDir, LogStore, Machine), StorageError> {
        let dir = tempfile::tempdir().unwrap();
        let (log, machine) = open(RealKv::new(dir.path()).open(KvRole::Catalogue).await.unwrap()).await;
        Ok((dir, log, machine))
    }
}

/// Runs the parts of openraft's suite side by side, since some of them sleep, and without
/// `get_initial_state_membership_from_log_and_sm`, which appends entries with a hole between them: our log refuses that.
macro_rules! suite {
    ($($part:ident)*) => {
        suite!(in_memory InMemory (), $($part)*);
        suite!(on_fjall OnFjall TempDir, $($part)*);
    };
    ($module:ident $place:ident $guard:ty, $($part:ident)*) => {
        mod $module {
            use super::*;
            type Tests = Suite<Types, LogStore, Machine, $place, $guard>;
            $(
                #[tokio::test]
                async fn $part() {
                    let (_guard, log, machine) = $place.build().await.unwrap();
                    Tests::$part(log, machine).await.unwrap();
                }
            )*
            #[tokio::test]
            async fn transfer_snapshot() {
                Tests::transfer_snapshot(&$place).await.unwrap();
            }
        }
    };
}
suite! {
    last_membership_in_log_initial last_membership_in_log last_membership_in_log_multi_step get_membership_initial
    get_membership_from_log_and_empty_sm get_membership_from_empty_log_and_sm
    get_membership_from_log_le_sm_last_applied get_membership_from_log_gt_sm_last_applied_1
    get_membership_from_log_gt_sm_last_applied_2 get_initial_state_without_init
    get_initial_state_with_state get_initial_state_last_log_gt_sm
    get_initial_state_last_log_lt_sm get_initial_state_log_ids get_initial_state_re_apply_committed save_vote
    get_log_entries limited_get_log_entries try_get_log_entry initial_logs get_log_state get_log_id last_id_in_log
    last_applied_state purge_logs_upto_0 purge_logs_upto_5 purge_logs_upto_20 delete_logs_since_11
    delete_logs_since_0 append_to_log snapshot_meta apply_single apply_multiple
}

fn id(term: u64, index: u64) -> LogId {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}
fn blank(term: u64, index: u64) -> Entry {
    Entry { log_id: id(term, index), payload: EntryPayload::Blank }
}
fn command(index: u64, payload: Payload) -> Entry {
    Entry { log_id: id(1, index), payload: EntryPayload::Normal(payload) }
}
fn members(index: u64) -> Entry {
    let voters = Membership::new(vec![BTreeSet::from([1, 2, 3])], None);
    Entry { log_id: id(1, index), payload: EntryPayload::Membership(voters) }
}
fn payload(time_ms: u64, command: Command) -> Payload {
    Payload::seal(&Proposal { time_ms, actor: Actor::Node(NodeId(1)), command }).unwrap()
}
fn form(time_ms: u64) -> Payload {
    payload(time_ms, Command::FormCluster { cluster: ClusterId([1; 16]) })
}

/// A store whose rows outlive the log that is opened over it, and its disk.
struct Place {
    kv: Arc<dyn Kv>,
    disk: SlotDisk,
}

impl Place {
    fn new() -> Self {
        Place { kv: Arc::new(MemoryKv::new()), disk: SlotDisk::default() }
    }
    async fn log(&self) -> Result<LogStore, RaftStoreError> {
        LogStore::open(self.kv.clone(), Arc::new(self.disk.clone())).await
    }
    /// Entries 0 to 9 of term 1, and a vote.
    async fn with_ten() -> Self {
        let place = Place::new();
        let mut log = place.log().await.unwrap();
        log.save_vote(&Vote::new(1, 1)).await.unwrap();
        log.blocking_append((0..10).map(|i| blank(1, i))).await.unwrap();
        place
    }
    /// The engine forgets these entries without an error.
    fn forget(&self, indexes: std::ops::Range<u64>) {
        self.kv.write(indexes.map(|i| KvOp::Delete(16, i.to_be_bytes().to_vec())).collect()).unwrap();
    }
}

async fn last(log: &mut LogStore) -> Option<LogId> {
    log.get_log_state().await.unwrap().last_log_id
}

#[tokio::test]
async fn a_log_opens_again_as_it_was() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    assert!(!log.is_pristine());
    assert_eq!(last(&mut log).await, Some(id(1, 9)));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new(1, 1)));
    assert_eq!(log.try_get_log_entries(..).await.unwrap(), (0..10).map(|i| blank(1, i)).collect::<Vec<_>>());
}

/// Decision 0004: openraft would lead on at once, and answer reads before it knows what it had committed.
#[tokio::test]
async fn an_office_found_in_the_store_is_told_as_a_candidacy() {
    let place = Place::with_ten().await;
    let elected = Vote::new_committed(2, 1);
    place.log().await.unwrap().save_vote(&elected).await.unwrap();
    let read = async |own| place.log().await.unwrap().resigned(NodeId(own)).read_vote().await.unwrap();
    assert_eq!(read(1).await, Some(Vote::new(2, 1)));
    assert_eq!(read(3).await, Some(elected), "another's office is none of ours to give up");
    assert_eq!(place.log().await.unwrap().vote(), Some(elected), "what is promised stays");
}

/// The file of the mark was there, and too short to hold both slots: nothing was promised yet.
#[tokio::test]
async fn a_mark_whose_making_was_cut_short_is_made_anew() {
    for len in [0, 1, 40] {
        let place = Place::new();
        place.disk.write_slot(MARK_FILE, 0, &vec![0xaa; len]).await.unwrap();
        assert!(place.log().await.unwrap().is_pristine(), "{len} bytes");
    }
    let place = Place::with_ten().await;
    place.disk.write_slot(MARK_FILE, 0, &[0xaa; 5_000]).await.unwrap();
    assert!(place.log().await.is_err(), "a whole file of rubbish is damage");
}

#[tokio::test]
async fn a_lost_tail_is_noticed() {
    let place = Place::with_ten().await;
    place.forget(9..10);
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
    place.forget(0..10);
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
}

/// Rot in the newest journal is cut off like a torn end (docs/decisions/0003); the mark tells it from one.
#[tokio::test]
#[expect(clippy::disallowed_methods, reason = "damages the engine's journal")]
async fn only_acknowledged_entries_are_missed_after_a_journal_was_cut() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SlotDisk::default();
    let open = async || {
        let kv = RealKv::new(dir.path()).open(KvRole::Catalogue).await.unwrap();
        LogStore::open(kv, Arc::new(disk.clone())).await
    };
    let mut log = open().await.unwrap();
    log.save_vote(&Vote::new(1, 1)).await.unwrap();
    for index in 0..10 {
        log.blocking_append([blank(1, index)]).await.unwrap();
    }
    drop(log);
    let journal = dir.path().join("catalogue/0.jnl");
    let whole = std::fs::read(&journal).unwrap();
    // The beginning of a batch that was never acknowledged, and rubbish.
    std::fs::write(&journal, [&whole[..], &whole[..40], &[7; 5000]].concat()).unwrap();
    assert_eq!(last(&mut open().await.unwrap()).await, Some(id(1, 9)));
    assert_eq!(std::fs::read(&journal).unwrap(), whole);
    for at in (20..whole.len()).step_by(whole.len() / 12) {
        let mut rotten = whole.clone();
        rotten[at] ^= 0x10;
        std::fs::write(&journal, rotten).unwrap();
        // Also when it is opened again, with a journal that has nothing wrong any more.
        for _ in 0..2 {
            let refused = open().await.err();
            assert!(matches!(refused, Some(RaftStoreError::LogLost { .. })), "byte {at}: {refused:?}");
        }
    }
    std::fs::write(&journal, whole).unwrap();
    assert_eq!(last(&mut open().await.unwrap()).await, Some(id(1, 9)));
}

#[tokio::test]
async fn a_lost_or_older_vote_is_noticed() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    let row = place.kv.get(17, b"vote").unwrap().unwrap();
    log.save_vote(&Vote::new_committed(1, 1)).await.unwrap();
    assert!(place.log().await.is_ok());
    place.kv.write(vec![KvOp::Put(17, b"vote".to_vec(), row)]).unwrap();
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
    place.kv.write(vec![KvOp::Delete(17, b"vote".to_vec())]).unwrap();
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
}

#[tokio::test]
async fn an_entry_replaced_by_another_leaders_is_noticed() {
    let place = Place::with_ten().await;
    let other = Place::new();
    let mut log = other.log().await.unwrap();
    log.blocking_append((0..10).map(|i| blank(2, i))).await.unwrap();
    let row = other.kv.get(16, &9u64.to_be_bytes()).unwrap().unwrap();
    place.kv.write(vec![KvOp::Put(16, 9u64.to_be_bytes().to_vec(), row)]).unwrap();
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
}

#[tokio::test]
async fn a_hole_or_a_bad_record_is_an_error_at_start_and_when_read() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    place.forget(4..5);
    assert!(log.try_get_log_entries(3..6).await.is_err());
    assert!(log.try_get_log_entries(5..6).await.is_ok());
    assert!(matches!(place.log().await, Err(RaftStoreError::Hole(4))));

    let place = Place::with_ten().await;
    let mut row = place.kv.get(16, &4u64.to_be_bytes()).unwrap().unwrap();
    row[3] ^= 1;
    place.kv.write(vec![KvOp::Put(16, 4u64.to_be_bytes().to_vec(), row)]).unwrap();
    assert!(matches!(place.log().await, Err(RaftStoreError::Store(_))));
}

#[tokio::test]
async fn an_append_that_would_leave_a_hole_is_refused() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    assert!(log.blocking_append([blank(1, 11)]).await.is_err());
    assert!(log.blocking_append([blank(1, 9)]).await.is_err());
    assert!(log.blocking_append([blank(1, 10), blank(1, 12)]).await.is_err());
    assert_eq!(last(&mut log).await, Some(id(1, 9)));
}

#[tokio::test]
async fn truncation_takes_the_promise_back_first() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    log.truncate(id(1, 5)).await.unwrap();
    let mut log = place.log().await.unwrap();
    assert_eq!(last(&mut log).await, Some(id(1, 4)));
    log.blocking_append([blank(2, 5)]).await.unwrap();
    drop(log);
    assert_eq!(last(&mut place.log().await.unwrap()).await, Some(id(2, 5)));

    // Power fails as the promise is taken back: nothing was cut, and the log is whole.
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    place.disk.tear_after(0);
    assert!(log.truncate(id(1, 5)).await.is_err());
    assert_eq!(last(&mut place.log().await.unwrap()).await, Some(id(1, 9)));
}

#[tokio::test]
async fn purging_keeps_promise_and_bounds() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    log.purge(id(1, 3)).await.unwrap();
    let mut log = place.log().await.unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 6);
    log.purge(id(1, 20)).await.unwrap();
    let mut log = place.log().await.unwrap();
    assert_eq!(last(&mut log).await, Some(id(1, 20)));
    log.blocking_append([blank(1, 21)]).await.unwrap();
    drop(log);
    place.forget(21..22);
    assert!(matches!(place.log().await, Err(RaftStoreError::LogLost { .. })));
}

#[tokio::test]
async fn a_purge_cut_short_is_finished_at_start() {
    let place = Place::with_ten().await;
    let rows: Vec<_> = (0..4u64).map(|i| place.kv.get(16, &i.to_be_bytes()).unwrap().unwrap()).collect();
    place.log().await.unwrap().purge(id(1, 5)).await.unwrap();
    let left = rows.into_iter().zip(0u64..).map(|(row, i)| KvOp::Put(16, i.to_be_bytes().to_vec(), row));
    place.kv.write(left.collect()).unwrap();
    let mut log = place.log().await.unwrap();
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 4);
    assert_eq!(place.kv.get(16, &0u64.to_be_bytes()).unwrap(), None);
}

#[tokio::test]
async fn a_torn_slot_falls_back_and_two_bad_ones_are_refused() {
    let place = Place::with_ten().await;
    let mut log = place.log().await.unwrap();
    place.disk.tear_after(0);
    assert!(log.blocking_append([blank(1, 10)]).await.is_err(), "what is not marked is not acknowledged");
    place.log().await.unwrap();

    let mut file = place.disk.file(MARK_FILE).unwrap();
    let at = place.disk.last_write() as usize;
    file[at + 20] ^= 1;
    place.disk.put(MARK_FILE, Some(file.clone()));
    place.log().await.unwrap();
    let other = 4096 - at;
    file[other + 20] ^= 1;
    place.disk.put(MARK_FILE, Some(file));
    assert!(matches!(place.log().await, Err(RaftStoreError::Mark(MarkError::Damaged))));
}

#[tokio::test]
async fn a_missing_mark_is_refused_unless_everything_is_new() {
    let place = Place::with_ten().await;
    place.disk.put(MARK_FILE, None);
    assert!(matches!(place.log().await, Err(RaftStoreError::MarkLost)));
    assert!(Place::new().log().await.unwrap().is_pristine());
}

#[tokio::test]
async fn replication_reads_are_bounded_but_never_empty() {
    let place = Place::new();
    let mut log = place.log().await.unwrap();
    let big = || Payload(vec![0; 3 << 19].into());
    log.blocking_append((0..4).map(|i| command(i, big()))).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 4).await.unwrap().len(), 1);
    log.blocking_append((4..8).map(|i| blank(1, i))).await.unwrap();
    assert_eq!(log.limited_get_log_entries(4, 8).await.unwrap().len(), 4);
}

#[tokio::test]
async fn garbage_is_refused_alike_and_a_newer_command_stops_the_replica() {
    let mut machine = Machine::new(Catalogue::open(Arc::new(MemoryKv::new())).unwrap());
    let garbage = Payload(vec![1, 200, 200].into());
    let replies =
        machine.apply([members(0), command(1, garbage), command(2, form(5)), command(3, form(6))]).await;
    let replies = replies.unwrap();
    assert!(matches!(replies[1], Reply::Refused(Refusal::Malformed(_))), "{replies:?}");
    assert_eq!(replies[2], Reply::Done);
    let newer = Payload(vec![farshore_core::catalogue::command::COMMAND_VERSION + 1].into());
    assert!(machine.apply([command(4, newer)]).await.is_err());
    assert_eq!(machine.applied_state().await.unwrap().0, Some(id(1, 3)), "nothing of a failed batch is kept");
}

/// Regression: it learnt that at the next heartbeat, and until then an emptied node passed for a newcomer.
#[tokio::test]
async fn the_passport_knows_whom_a_command_admits_once_it_is_applied() {
    let of = |node, incarnation| {
        let owner = Identity { cluster: ClusterId([1; 16]), node: NodeId(node) };
        Passport::new(Claim { owner, incarnation, formation: 7 }, Arc::new(SlotDisk::default()))
    };
    let (passport, other) = (of(1, 11), of(2, 21));
    let machine = Machine::new(Catalogue::open(Arc::new(MemoryKv::new())).unwrap());
    let mut machine = machine.telling(passport.clone());
    let node = NodeRecord {
        id: NodeId(2),
        name: "two".parse().unwrap(),
        region: "x/a".parse().unwrap(),
        zone: None,
        addr: "two:1".into(),
        capacity: 1,
        state: NodeState::Up,
    };
    let admit = payload(6, Command::AdmitNode { node, incarnation: 21, level: 1 });
    let replies = machine.apply([members(0), command(1, form(5)), command(2, admit)]).await.unwrap();
    assert_eq!(replies[2], Reply::Done);
    assert_eq!(passport.known(NodeId(2)), Some(21));
    let asks = other.stamp(NodeId(1), ());
    passport.check(NodeId(2), asks.metadata(), Purpose::Ask).await.unwrap();
    let retire = Command::SetNodeState { node: NodeId(2), from: NodeState::Up, to: NodeState::Draining };
    let gone = Command::SetNodeState { node: NodeId(2), from: NodeState::Draining, to: NodeState::Retired };
    machine.apply([command(3, payload(7, retire)), command(4, payload(8, gone))]).await.unwrap();
    assert!(passport.check(NodeId(2), asks.metadata(), Purpose::Ask).await.is_err());
}

#[tokio::test]
async fn applied_state_survives_a_restart_on_fjall() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SlotDisk::default();
    let kv = RealKv::new(dir.path());
    let hash = {
        let store = kv.open(KvRole::Catalogue).await.unwrap();
        let mut log = LogStore::open(store.clone(), Arc::new(disk.clone())).await.unwrap();
        log.save_vote(&Vote::new_committed(3, 2)).await.unwrap();
        log.blocking_append([members(0), command(1, form(7))]).await.unwrap();
        let catalogue = Catalogue::open(store).unwrap();
        let mut machine = Machine::new(catalogue.clone());
        machine.apply([members(0), command(1, form(7))]).await.unwrap();
        log.save_vote(&Vote::new_committed(4, 2)).await.unwrap();
        // The sweeper holds the store until it has found nothing to do.
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        catalogue.view().unwrap().state_hash()
    };
    let store = kv.open(KvRole::Catalogue).await.unwrap();
    let mut log = LogStore::open(store.clone(), Arc::new(disk)).await.unwrap();
    assert_eq!(last(&mut log).await, Some(id(1, 1)));
    assert_eq!(log.read_vote().await.unwrap(), Some(Vote::new_committed(4, 2)));
    let catalogue = Catalogue::open(store).unwrap();
    assert_eq!(catalogue.view().unwrap().state_hash(), hash);
    let (applied, membership) = Machine::new(catalogue).applied_state().await.unwrap();
    assert_eq!((applied, *membership.log_id()), (Some(id(1, 1)), Some(id(1, 0))));
}

#[tokio::test]
async fn an_image_with_another_name_is_not_installed() {
    let mut from = Machine::new(Catalogue::open(Arc::new(MemoryKv::new())).unwrap());
    from.apply([members(0), command(1, form(5))]).await.unwrap();
    let Snapshot { mut meta, snapshot } = from.get_snapshot_builder().await.build_snapshot().await.unwrap();
    meta.last_log_id = Some(id(1, 9));
    let catalogue = Catalogue::open(Arc::new(MemoryKv::new())).unwrap();
    let mut to = Machine::new(catalogue.clone());
    assert!(to.install_snapshot(&meta, snapshot).await.is_err());
    assert!(to.install_snapshot(&meta, Box::new(Image::Empty)).await.is_err());
    assert_eq!(catalogue.applied(), 0);
    let current = from.get_current_snapshot().await.unwrap().unwrap();
    to.install_snapshot(&current.meta, current.snapshot).await.unwrap();
    assert_eq!(catalogue.applied(), 1);
}

#[test]
fn stored_bytes_never_change() {
    let bytes = |entry: &Entry| postcard::to_stdvec(entry).unwrap();
    let long = LogId::new(CommittedLeaderId::new(300, 0x0102), 1 << 40);
    assert_eq!(bytes(&blank(1, 4)), [1, 1, 4, 0]);
    assert_eq!(
        bytes(&Entry { log_id: long, payload: EntryPayload::Blank }),
        [172, 2, 130, 2, 128, 128, 128, 128, 128, 32, 0]
    );
    assert_eq!(bytes(&command(4, Payload(vec![7, 8].into()))), [1, 1, 4, 1, 2, 7, 8]);
    let learner = BTreeMap::from([(1, BasicNode::new("a:1")), (2, BasicNode::new("b"))]);
    let membership = Membership::new(vec![BTreeSet::from([1])], learner);
    assert_eq!(
        bytes(&Entry { log_id: id(1, 0), payload: EntryPayload::Membership(membership) }),
        [1, 1, 0, 2, 1, 1, 1, 2, 1, 3, b'a', b':', b'1', 2, 1, b'b']
    );
    assert_eq!(postcard::to_stdvec(&Vote::new_committed(300, 2)).unwrap(), [172, 2, 2, 1]);
    assert_eq!(form(9).0[..5], [1, 9, 0, 1, 0], "version, time, a node, its id, first command");
}

/// openraft orders install and purge without waiting in between; a crash there left a log without its head and a
/// catalogue that never got it, so that the replica could not start again.
#[tokio::test]
async fn a_log_is_not_purged_before_the_image_that_replaces_it_is_installed() {
    let mut from = Machine::new(Catalogue::open(Arc::new(MemoryKv::new())).unwrap());
    from.apply([members(0), command(1, form(5)), blank(1, 2)]).await.unwrap();
    let image = from.get_snapshot_builder().await.build_snapshot().await.unwrap();

    let place = Place::new();
    let catalogue = Catalogue::open(place.kv.clone()).unwrap();
    let mut log = place.log().await.unwrap().never_ahead_of(catalogue.clone());
    log.blocking_append([blank(1, 0), blank(1, 1)]).await.unwrap();
    let mut machine = Machine::new(catalogue.clone());
    let purged = {
        let mut purge = std::pin::pin!(log.purge(id(1, 2)));
        let early = tokio::time::timeout(std::time::Duration::from_millis(100), purge.as_mut()).await;
        assert!(early.is_err(), "purged although the catalogue has applied {}", catalogue.applied());
        machine.install_snapshot(&image.meta, image.snapshot).await.unwrap();
        purge.await
    };
    purged.unwrap();
    assert_eq!((catalogue.applied(), last(&mut log).await), (2, Some(id(1, 2))));
    let state = log.get_log_state().await.unwrap();
    assert_eq!(state.last_purged_log_id, Some(id(1, 2)));
}

#[tokio::test]
async fn large_entries_are_read_a_few_at_a_time() {
    const BYTES: usize = 700_000;
    let (kv, scanned) = Watched::new();
    let disk = SlotDisk::default();
    let mut log = LogStore::open(kv.clone(), Arc::new(disk.clone())).await.unwrap();
    let large = |index| command(index, Payload(vec![7; BYTES].into()));
    log.blocking_append((0..12).map(large)).await.unwrap();
    scanned.take();
    let mut log = LogStore::open(kv, Arc::new(disk)).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 12).await.unwrap().len(), 2, "1 MiB is reached by the second");
    assert_eq!(log.try_get_log_entries(..).await.unwrap().len(), 12);
    let (rows, largest) = scanned.take();
    assert!((2 * BYTES..3 * BYTES).contains(&largest), "{largest} bytes read at a time");
    assert!(rows < 40, "{rows} rows read: some came twice");
}

#[tokio::test]
async fn an_image_that_was_made_holds_nothing_back() {
    let (kv, scanned) = Watched::new();
    let mut machine = Machine::new(Catalogue::open(kv).unwrap());
    machine.apply([members(0), command(1, form(5))]).await.unwrap();
    assert!(machine.get_current_snapshot().await.unwrap().is_none(), "none was made");
    // Every frozen view shares the counters.
    let held = Arc::strong_count(&scanned);
    let made = machine.get_snapshot_builder().await.build_snapshot().await.unwrap();
    assert_eq!(made.meta.last_log_id, Some(id(1, 1)));
    drop(made);
    assert_eq!(Arc::strong_count(&scanned), held, "a view was kept");
    machine.apply([blank(1, 2)]).await.unwrap();
    let current = machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(current.meta.last_log_id, Some(id(1, 2)), "the state as it is now");
}
