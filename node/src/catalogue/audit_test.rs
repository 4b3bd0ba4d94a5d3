//! The audit chain: what the model says of it, and what the catalogue keeps of acts that were done, repeated or refused.

use super::catalogue_test::{image_of, install, new_catalogue, prologue, rise, snapshot};
use super::model::Model;
use super::*;
use farshore_core::catalogue::*;
use farshore_core::id::*;
use farshore_core::level::FEATURE_LEVEL;
use farshore_core::topology::{NodeRecord, NodeState};

/// What an auditor should know of a command, judged by what is different afterwards.
pub(super) fn audited(
    before: &Model,
    after: &Model,
    command: &Command,
    reply: &Reply,
) -> Option<(Act, ActOutcome)> {
    if after.level() < 2 {
        return None;
    }
    let outcome = match *reply {
        Reply::Refused(Refusal::Locked(snapshot, mode, until_ms)) => {
            ActOutcome::Locked { snapshot, mode, until_ms }
        }
        Reply::Refused(Refusal::LockShortened(mode)) => ActOutcome::LockKept { mode },
        Reply::Refused(_) | Reply::Changed { count: 0 } => return None,
        Reply::Changed { count } => ActOutcome::Changed { count },
        _ => ActOutcome::Done,
    };
    let act = match command.clone() {
        Command::CreateRepository { repo } if before.repos.len() < after.repos.len() => {
            Act::CreateRepository { repo: repo.id, name: repo.name }
        }
        Command::PutNode { node } | Command::AdmitNode { node, .. } => {
            let place = |model: &Model| {
                model.nodes.get(&node.id).map(|n| (n.region.clone(), n.zone.clone(), n.capacity))
            };
            if place(before) == place(after) {
                return None;
            }
            let NodeRecord { id, name, region, zone, capacity, .. } = node;
            Act::PlaceNode { node: id, name, region, zone, capacity }
        }
        Command::SetNodeState { node, from, to } if before.nodes != after.nodes => {
            Act::SetNodeState { node, from, to }
        }
        Command::StageTopology { epoch, changes, .. } if before.intent != after.intent => {
            Act::StageTopology { epoch, changes }
        }
        Command::ChangeTopology { epoch, changes, .. } if before.intent != after.intent => {
            Act::ChangeTopology { epoch, changes }
        }
        Command::ChangeRepository { repo, change } => {
            let act = repo_audited(before, after, repo, change, *reply == Reply::Done)?;
            Act::ChangeRepository { repo, name: after.repos[&repo].name.clone(), act }
        }
        Command::Migrate { epoch, from, to, cold, .. } if before.intent != after.intent => {
            Act::Migrate { epoch, from, to, cold }
        }
        Command::EndMigration { epoch, from, keep, .. } if before.intent != after.intent => {
            Act::EndMigration { epoch, from, keep }
        }
        Command::SetUpkeep { upkeep } if before.upkeep != after.upkeep => {
            Act::SetUpkeep { scrub_paused: upkeep.scrub_paused, links: upkeep.links.len() as u32 }
        }
        Command::RaiseLevel { to } if before.level() < to => Act::RaiseLevel { from: before.level(), to },
        Command::BeginEra { era, node } => Act::BeginEra { era, node },
        _ => return None,
    };
    Some((act, outcome))
}

fn repo_audited(
    before: &Model,
    after: &Model,
    repo: RepoId,
    change: RepoChange,
    done: bool,
) -> Option<RepoAct> {
    let set = !done || before.settings.get(&repo) != after.settings.get(&repo);
    let some = |snapshots: Vec<SnapshotId>| SomeSnapshots::of(&snapshots);
    Some(match change {
        RepoChange::Forget { snapshots, bypass } => RepoAct::Forget { snapshots: some(snapshots), bypass },
        RepoChange::Undelete { snapshots } => RepoAct::Undelete { snapshots: some(snapshots) },
        RepoChange::Purge { snapshots, early } => RepoAct::Purge { snapshots: some(snapshots), early },
        RepoChange::LockSnapshot { snapshot, lock, bypass } => {
            let lock_of = |model: &Model| model.marks.get(&(repo, snapshot)).and_then(|marks| marks.lock);
            if done && lock_of(before) == lock_of(after) {
                return None;
            }
            RepoAct::LockSnapshot { snapshot, lock, bypass }
        }
        RepoChange::Lock { lock, bypass } if set => RepoAct::Lock { lock, bypass },
        RepoChange::SetTrash { trash_ms } if set => RepoAct::SetTrash { trash_ms },
        RepoChange::SetRetention { policy } if set => RepoAct::SetRetention { policy },
        RepoChange::SetPolicy { policy, scheme } => {
            let seen = |model: &Model| (model.repos.get(&repo).cloned(), model.recodings.get(&repo).copied());
            if seen(before) == seen(after) {
                return None;
            }
            RepoAct::SetPolicy { policy, scheme }
        }
        RepoChange::Describe { snapshot, expected, sealed, .. } => {
            let row = |model: &Model| model.snapshots.get(&(repo, snapshot)).cloned();
            if row(before) == row(after) {
                return None;
            }
            let (before, after) = (AuditHash(expected), AuditHash(sealed_hash(&sealed)));
            RepoAct::Describe { snapshot, before, after }
        }
        RepoChange::SetKeySlots { .. } => {
            let slots = |model: &Model| model.repos[&repo].key_slots.clone();
            let (old, new) = (slots(before), slots(after));
            if old == new {
                return None;
            }
            let hash = |slots: &[Vec<u8>]| AuditHash(slots_hash(slots));
            let (before, after) = (hash(&old), hash(&new));
            RepoAct::SetKeySlots { was: old.len() as u32, now: new.len() as u32, before, after }
        }
        _ => return None,
    })
}

/// The records of a view, whose chain must verify.
pub(super) fn records(view: &View) -> Vec<AuditRecord> {
    let (mut check, mut records) = (AuditCheck::default(), Vec::new());
    loop {
        let rows = view.audit(check.head().seq + 1, 7).unwrap();
        if rows.is_empty() {
            assert_eq!(check.end(view.audit_head().unwrap()), Ok(check.head()));
            return records;
        }
        records.extend(rows.iter().map(|(seq, row)| check.take(*seq, row).unwrap()));
    }
}

const OPERATOR: &str = "operator";

/// A catalogue in which an operator acts at index 100 and after.
struct Acting {
    catalogue: Catalogue,
    index: u64,
}

impl Acting {
    fn begin() -> Self {
        let mut acting = Acting { catalogue: new_catalogue(), index: 0 };
        prologue().into_iter().chain(rise()).for_each(|command| drop(acting.act(command)));
        let commit = Command::CommitSnapshot {
            session: SessionId([0; 16]),
            snapshot: snapshot(1, 0, &[], 0),
            replaces: None,
        };
        acting.act(commit);
        acting.index = 100;
        acting
    }
    fn act(&mut self, command: Command) -> Reply {
        let actor = Actor::Client(OPERATOR.parse().unwrap());
        let mut tx = self.catalogue.begin();
        let reply = tx.apply(self.index + 1, &Proposal { time_ms: 77, actor, command }).unwrap();
        tx.commit().unwrap();
        self.index += 1;
        reply
    }
    fn change(&mut self, change: RepoChange) -> Reply {
        self.act(Command::ChangeRepository { repo: RepoId([0; 16]), change })
    }
    fn new_records(&self) -> Vec<AuditRecord> {
        records(&self.catalogue.view().unwrap()).into_iter().filter(|r| r.entry.index > 100).collect()
    }
}

#[test]
fn an_attempt_to_forget_what_is_locked_is_recorded_and_changes_nothing_else() {
    let mut acting = Acting::begin();
    let id = SnapshotId([1; 32]);
    let lock = Lock { mode: LockMode::Compliance, until_ms: 1_000 };
    acting.change(RepoChange::LockSnapshot { snapshot: id, lock, bypass: false });
    let forget = RepoChange::Forget { snapshots: vec![id], bypass: true };
    let refused = acting.change(forget);
    assert_eq!(refused, Reply::Refused(Refusal::Locked(id, LockMode::Compliance, 1_000)));
    let shorter = Lock { mode: LockMode::Compliance, until_ms: 900 };
    acting.change(RepoChange::LockSnapshot { snapshot: id, lock: shorter, bypass: true });
    let view = acting.catalogue.view().unwrap();
    assert_eq!(view.snapshots(RepoId([0; 16]), None, 9, false).unwrap().rows.len(), 1);
    let found = acting.new_records();
    let outcomes: Vec<&ActOutcome> = found.iter().map(|record| &record.entry.outcome).collect();
    let locked = ActOutcome::Locked { snapshot: id, mode: LockMode::Compliance, until_ms: 1_000 };
    let kept = ActOutcome::LockKept { mode: LockMode::Compliance };
    assert_eq!(outcomes, [&ActOutcome::Done, &locked, &kept]);
    let named = RepoAct::Forget { snapshots: SomeSnapshots::of(&[id]), bypass: true };
    let act = Act::ChangeRepository { repo: RepoId([0; 16]), name: "repo0".parse().unwrap(), act: named };
    let AuditEntry { time_ms, index, actor, act: found, .. } = &found[1].entry;
    assert_eq!((*time_ms, *index, actor.to_string()), (77, 102, format!("client {OPERATOR}")));
    assert_eq!(*found, act);
}

#[test]
fn what_is_repeated_or_concerns_nobody_leaves_no_record() {
    let mut acting = Acting::begin();
    let id = SnapshotId([1; 32]);
    let state = Command::SetNodeState { node: NodeId(1), from: NodeState::Up, to: NodeState::Suspect };
    for _ in 0..2 {
        acting.change(RepoChange::Forget { snapshots: vec![id], bypass: false });
        acting.change(RepoChange::SetTrash { trash_ms: Some(9) });
        acting.act(state.clone());
        acting.change(RepoChange::MarkVerified { snapshot: id });
        acting.change(RepoChange::Purge { snapshots: vec![SnapshotId([9; 32])], early: true });
        acting.act(Command::EndSessions { sessions: vec![] });
    }
    let words: Vec<&str> = acting.new_records().iter().map(|record| record.entry.act.word()).collect();
    assert_eq!(words, ["forget", "set-trash", "set-node-state"]);
    acting.act(Command::BeginEra { era: 3, node: NodeId(1) });
    assert_eq!(acting.new_records().len(), 4, "an era that nobody had a session in is one");
}

/// The chain is part of the state: whoever changes a record in a replica has another state hash, and no image carries it.
#[test]
fn every_flipped_byte_of_every_stored_record_is_found() {
    let mut acting = Acting::begin();
    acting.change(RepoChange::SetTrash { trash_ms: Some(9) });
    let view = acting.catalogue.view().unwrap();
    let rows = view.audit(1, 99).unwrap();
    assert_eq!(rows.len() as u64, view.audit_head().unwrap().seq);
    let broken = |rows: &[(u64, Vec<u8>)]| {
        let mut check = AuditCheck::default();
        let all = rows.iter().try_for_each(|(seq, row)| check.take(*seq, row).map(drop));
        all.and_then(|()| check.end(view.audit_head().unwrap())).is_err()
    };
    assert!(!broken(&rows));
    for at in 0..rows.len() {
        for byte in 0..rows[at].1.len() {
            let mut bad = rows.clone();
            bad[at].1[byte] ^= 0x10;
            assert!(broken(&bad), "record {} byte {byte}", at + 1);
        }
        let mut removed = rows.clone();
        removed.remove(at);
        assert!(broken(&removed), "record {} removed", at + 1);
    }
    let (mut pages, rows, hash) = image_of(&acting.catalogue);
    let row = pages.iter_mut().flatten().find(|row| row.table == Audits::TABLE).unwrap();
    let last = row.value.len() - 1;
    row.value[last] ^= 1;
    let into = new_catalogue();
    let mut reader = ImageReader::begin(&into).unwrap();
    pages.iter().for_each(|page| reader.add_page(page).unwrap());
    assert!(reader.finish(rows, hash).is_err());
    install(&acting.catalogue, &into);
    assert_eq!(records(&into.view().unwrap()), records(&view));
}

#[test]
fn the_longest_record_fits_its_bound() {
    use farshore_core::limits::*;
    let mut acting = Acting::begin();
    acting.change(RepoChange::SetRetention { policy: Some("x".repeat(RETENTION_BYTES_MAX)) });
    let many = (0..SNAPSHOTS_PER_COMMAND_MAX).map(|n| SnapshotId([n as u8; 32])).collect();
    acting.change(RepoChange::Forget { snapshots: many, bypass: false });
    let long = |len: usize| "n".repeat(len);
    let node = NodeRecord {
        id: NodeId(1),
        name: long(NAME_BYTES_MAX).parse().unwrap(),
        region: format!("{}/{}", long(NAME_BYTES_MAX), long(NAME_BYTES_MAX)).parse().unwrap(),
        zone: Some(long(NAME_BYTES_MAX).parse().unwrap()),
        addr: "h:1".into(),
        capacity: u64::MAX,
        state: NodeState::Up,
    };
    acting.act(Command::AdmitNode { node, incarnation: 1, level: FEATURE_LEVEL });
    assert_eq!(acting.new_records().len(), 3);
    for (_, row) in acting.catalogue.view().unwrap().audit(1, 99).unwrap() {
        assert!(row.len() <= AUDIT_RECORD_BYTES_MAX, "{} bytes", row.len());
    }
}

#[test]
fn the_rise_is_the_first_record_and_nothing_was_recorded_before() {
    let catalogue = new_catalogue();
    let mut tx = catalogue.begin();
    let mut apply = |index, command| {
        let actor = Actor::Node(NodeId(1));
        tx.apply(index, &Proposal { time_ms: 7, actor, command }).unwrap()
    };
    let mut index = 0;
    for command in prologue() {
        index += 1;
        apply(index, command);
    }
    let admit = |level| {
        let node = NodeRecord {
            id: NodeId(1),
            name: "n1".parse().unwrap(),
            region: "test/r1".parse().unwrap(),
            zone: None,
            addr: "host1:7000".into(),
            capacity: 1,
            state: NodeState::Up,
        };
        Command::AdmitNode { node, incarnation: 1, level }
    };
    let held = |id, level| Reply::Refused(Refusal::LevelHeld(NodeId(id), level));
    assert_eq!(apply(index + 1, Command::RaiseLevel { to: 2 }), held(1, 1));
    assert_eq!(apply(index + 2, admit(2)), Reply::Done);
    assert_eq!(apply(index + 3, Command::RaiseLevel { to: 2 }), held(2, 1));
    index += 3;
    for command in rise() {
        index += 1;
        let _ = apply(index, command);
    }
    let behind = Refusal::LevelBehind { node: NodeId(1), level: 1, cluster: FEATURE_LEVEL };
    assert_eq!(apply(index + 1, admit(1)), Reply::Refused(behind), "nobody goes back");
    assert_eq!(apply(index + 2, Command::RaiseLevel { to: 1 }), Reply::Done);
    tx.commit().unwrap();
    let view = catalogue.view().unwrap();
    assert_eq!(view.level(), FEATURE_LEVEL);
    let acts: Vec<Act> = records(&view).into_iter().map(|record| record.entry.act).collect();
    assert_eq!(acts, [Act::RaiseLevel { from: 1, to: FEATURE_LEVEL }]);
}

#[test]
fn a_node_held_below_the_cluster_neither_opens_nor_takes_nor_follows_it() {
    let above = |result: Result<(), CatalogueError>| {
        assert!(
            matches!(result, Err(CatalogueError::Level { cluster: FEATURE_LEVEL, own: 1 })),
            "{result:?}"
        );
    };
    let kv = Arc::new(crate::kv::memory::MemoryKv::new());
    let raised = Catalogue::open(kv.clone()).unwrap();
    let held = Catalogue::open_at(Arc::new(crate::kv::memory::MemoryKv::new()), 1).unwrap();
    let mut stopped = None;
    for (command, index) in prologue().into_iter().chain(rise()).zip(1..) {
        let proposal = Proposal { time_ms: 7, actor: Actor::Node(NodeId(1)), command };
        let apply = |catalogue: &Catalogue| {
            let mut tx = catalogue.begin();
            tx.apply(index, &proposal)?;
            tx.commit()
        };
        apply(&raised).unwrap();
        if stopped.is_none() {
            stopped = apply(&held).err();
        }
    }
    above(stopped.map_or(Ok(()), Err));
    assert_eq!(held.view().unwrap().level(), 1, "it stopped before");
    let (pages, rows, hash) = image_of(&raised);
    let mut reader = ImageReader::begin(&held).unwrap();
    pages.iter().for_each(|page| reader.add_page(page).unwrap());
    above(reader.finish(rows, hash));
    above(Catalogue::open_at(kv.clone(), 1).map(drop));
    assert!(Catalogue::open_at(kv, FEATURE_LEVEL).is_ok());
}
