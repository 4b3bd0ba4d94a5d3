//! The catalogue on one small example: images, views, transactions, restarts, and how safe the packs are.

use super::catalogue_test::{ACTOR, image_of, install, new_catalogue, pack, prologue, recount, snapshot};
use super::*;
use crate::kv::memory::MemoryKv;
use farshore_core::catalogue::*;
use farshore_core::id::*;
use farshore_core::topology::NodeState;

/// A catalogue with a few packs and snapshots.
fn lived_in() -> Catalogue {
    let catalogue = new_catalogue();
    let mut commands = prologue();
    let holders = (1..=6).map(Some).collect::<Vec<_>>();
    let packs = (0..4).map(|which| pack(which, &holders)).collect();
    commands.push(Command::CommitPacks { session: SessionId([0; 16]), packs });
    let snapshot = snapshot(1, 0, &[0, 1, 5], 0);
    commands.push(Command::CommitSnapshot { session: SessionId([0; 16]), snapshot, replaces: None });
    let mut tx = catalogue.begin();
    for (command, index) in commands.into_iter().zip(1..) {
        let reply = tx.apply(index, &Proposal { time_ms: 77, actor: ACTOR, command }).unwrap();
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    tx.note(NoteKey::Applied, vec![1]).unwrap();
    tx.note(NoteKey::Membership, vec![2]).unwrap();
    tx.commit().unwrap();
    catalogue
}

#[test]
fn a_catalogue_survives_its_process() {
    let kv = Arc::new(MemoryKv::new());
    let first = Catalogue::open(kv.clone()).unwrap();
    install(&lived_in(), &first);
    while first.drop_old_generation(3).unwrap() > 0 {}
    let before = first.view().unwrap();
    let again = Catalogue::open(kv).unwrap();
    let after = again.view().unwrap();
    assert_eq!((after.state_hash(), after.applied()), (before.state_hash(), before.applied()));
    assert_eq!(again.note(NoteKey::Membership).unwrap(), Some(vec![2]));
    recount(&again);
}

#[test]
fn an_entry_is_never_applied_twice() {
    let catalogue = lived_in();
    let applied = catalogue.applied();
    assert!(matches!(catalogue.begin().pass(applied), Err(CatalogueError::OutOfOrder { .. })));
    let mut tx = catalogue.begin();
    tx.pass(applied + 3).unwrap();
    tx.commit().unwrap();
    assert_eq!(catalogue.applied(), applied + 3);
}

#[test]
fn a_transaction_that_was_overtaken_does_not_commit() {
    let catalogue = lived_in();
    let (mut first, second) = (catalogue.begin(), catalogue.begin());
    first.pass(100).unwrap();
    first.commit().unwrap();
    assert!(matches!(second.commit(), Err(CatalogueError::Conflict)));
    let overtaken = catalogue.begin();
    install(&lived_in(), &catalogue);
    assert!(matches!(overtaken.commit(), Err(CatalogueError::Conflict)));
}

#[test]
fn a_view_does_not_change() {
    let catalogue = lived_in();
    let view = catalogue.view().unwrap();
    install(&new_catalogue(), &catalogue);
    while catalogue.drop_old_generation(9).unwrap() > 0 {}
    assert_eq!(view.all_packs(PackNo(0), 9).unwrap().rows.len(), 4);
    assert_eq!(catalogue.view().unwrap().all_packs(PackNo(0), 9).unwrap().rows.len(), 0);
}

#[test]
fn a_damaged_image_is_refused_and_the_old_state_stays() {
    let (source, catalogue) = (lived_in(), lived_in());
    let mut tx = catalogue.begin();
    tx.apply(
        200,
        &Proposal {
            time_ms: 99,
            actor: ACTOR,
            command: Command::EndSessions { sessions: vec![SessionId([1; 16])] },
        },
    )
    .unwrap();
    tx.commit().unwrap();
    let before = catalogue.view().unwrap().state_hash();
    let (pages, rows, hash) = image_of(&source);
    let all = pages.concat();
    for at in 0..all.len() {
        let mut flipped = all.clone();
        let last = flipped[at].value.len() - 1;
        // The head's row count is not hashed, but the head names the hash; notes are told apart from it.
        flipped[at].value[last] ^= 1;
        let mut missing = all.clone();
        missing.remove(at);
        let mut doubled = all.clone();
        doubled.insert(at, all[at].clone());
        let note = all[at].table == 1 && !is_hashed(1, &all[at].key);
        for (damaged, harmless) in [(flipped, note), (missing, false), (doubled, false)] {
            let mut reader = ImageReader::begin(&catalogue).unwrap();
            let staged = reader.add_page(&damaged);
            let installed = staged.is_ok() && !harmless && reader.finish(rows, hash).is_ok();
            assert!(!installed, "row {at}");
            assert_eq!(catalogue.view().unwrap().state_hash(), before);
        }
    }
    recount(&catalogue);
    install(&source, &catalogue);
    assert_eq!(catalogue.view().unwrap().state_hash(), hash);
}

#[test]
fn an_interrupted_image_leaves_nothing_behind() {
    let (source, catalogue) = (lived_in(), new_catalogue());
    let (pages, rows, hash) = image_of(&source);
    let mut reader = ImageReader::begin(&catalogue).unwrap();
    reader.add_page(&pages[0]).unwrap();
    assert!(matches!(ImageReader::begin(&catalogue), Err(CatalogueError::Staging)));
    assert_eq!(catalogue.drop_old_generation(9).unwrap(), 0, "what is being staged is not dropped");
    drop(reader);
    assert!(catalogue.drop_old_generation(9).unwrap() > 0);
    let mut reader = ImageReader::begin(&catalogue).unwrap();
    pages.iter().for_each(|page| reader.add_page(page).unwrap());
    reader.finish(rows, hash).unwrap();
    assert_eq!(catalogue.drop_old_generation(9).unwrap(), 0);
}

#[test]
fn a_row_of_a_newer_version_is_a_typed_error() {
    let row = ImageRow { table: 2, key: vec![0; 8], value: vec![2, 0] };
    let mut reader = ImageReader::begin(&new_catalogue()).unwrap();
    let error = reader.add_page(&[row]).unwrap_err();
    assert!(matches!(error, CatalogueError::UnknownVersion { table: 2, version: 2 }), "{error}");
}

#[test]
fn safety_names_what_must_not_be_lost() {
    let catalogue = lived_in();
    let look = || {
        let view = catalogue.view().unwrap();
        let mut scan = SafetyScan::begin(&view).unwrap();
        loop {
            if let Some(safety) = scan.step(&view, 3).unwrap() {
                return safety;
            }
        }
    };
    assert_eq!(look(), Safety { packs: 4, ..Safety::default() });
    assert!(look().survives_region());
    let mut tx = catalogue.begin();
    let bad = |index, node| Command::ShardBad { pack: PackNo(2), index, node: NodeId(node) };
    // Nodes 1 and 4 are in region r1; shard i is on node i + 1.
    tx.apply(50, &Proposal { time_ms: 0, actor: ACTOR, command: bad(0, 1) }).unwrap();
    tx.commit().unwrap();
    let safety = look();
    assert_eq!((safety.under_target, safety.endangered, safety.unreadable), (1, 0, 0));
    let fatal = safety.fatal_regions.iter().map(|region| region.as_str()).collect::<Vec<_>>();
    assert_eq!(fatal, ["test/r0", "test/r2"]);
    let mut tx = catalogue.begin();
    tx.apply(51, &Proposal { time_ms: 0, actor: ACTOR, command: bad(3, 4) }).unwrap();
    tx.apply(52, &Proposal { time_ms: 0, actor: ACTOR, command: bad(1, 2) }).unwrap();
    tx.commit().unwrap();
    assert_eq!((look().endangered, look().unreadable), (0, 1));
}

#[test]
fn rows_of_an_image_must_ascend() {
    let pages = image_of(&lived_in()).0.concat();
    let mut reader = ImageReader::begin(&new_catalogue()).unwrap();
    reader.add_page(&pages[3..5]).unwrap();
    for at in [4, 3, 0] {
        assert!(matches!(reader.add_page(&pages[at..=at]), Err(CatalogueError::BadImage(_))));
    }
}

#[test]
fn a_scan_sees_what_its_transaction_removed_and_added() {
    let catalogue = lived_in();
    let mut tx = catalogue.begin();
    let numbers = |tx: &Tx, limit| -> Vec<u64> {
        tx.scan::<Packs>(&Span::from(&PackNo(0)), limit).unwrap().into_iter().map(|(no, _)| no.0).collect()
    };
    let row = tx.get::<Packs>(&PackNo(3)).unwrap().unwrap();
    tx.remove::<Packs>(&PackNo(0)).unwrap();
    tx.remove::<Packs>(&PackNo(1)).unwrap();
    tx.put::<Packs>(&PackNo(9), &row).unwrap();
    assert_eq!(numbers(&tx, 1), [2]);
    assert_eq!(numbers(&tx, 2), [2, 3]);
    assert_eq!(numbers(&tx, 9), [2, 3, 9]);
}

#[test]
fn a_retired_node_is_asked_to_delete_nothing() {
    let catalogue = lived_in();
    let mut tx = catalogue.begin();
    let life = [NodeState::Up, NodeState::Suspect, NodeState::Down, NodeState::Lost, NodeState::Retired];
    let step = |step: &[NodeState]| Command::SetNodeState { node: NodeId(1), from: step[0], to: step[1] };
    let place = Command::PlaceShard { pack: PackNo(0), generation: 0, index: 0, node: NodeId(2) };
    for (command, index) in life.windows(2).map(step).chain([place]).zip(100..) {
        assert_eq!(tx.apply(index, &Proposal { time_ms: 0, actor: ACTOR, command }).unwrap(), Reply::Done);
    }
    tx.commit().unwrap();
    assert_eq!(catalogue.view().unwrap().counts().condemned, 0);
}

#[test]
fn a_page_of_large_snapshots_ends_early() {
    let catalogue = new_catalogue();
    let mut tx = catalogue.begin();
    for which in 0..6 {
        let row = SnapshotRecord { sealed: vec![0; 1 << 20], live: Vec::new(), ..snapshot(which, 0, &[], 0) };
        tx.put::<Snapshots>(&(row.repo, row.id), &row).unwrap();
    }
    tx.commit().unwrap();
    let view = catalogue.view().unwrap();
    let first = view.snapshots(RepoId([0; 16]), None, 100, false).unwrap();
    assert_eq!((first.rows.len(), first.next), (4, Some(SnapshotId([3; 32]))));
    let second = view.snapshots(RepoId([0; 16]), first.next, 100, false).unwrap();
    assert_eq!((second.rows.len(), second.next), (2, None));
}

/// A client with its own idea of safety could commit packs that one lost region makes unreadable, and every answer would
/// have called them at full strength.
#[test]
fn a_scheme_weaker_than_the_policy_is_refused() {
    let catalogue = lived_in();
    let mut tx = catalogue.begin();
    let weak = |k, m, spread| {
        let scheme = farshore_core::erasure::Scheme::new(k, m, spread).unwrap();
        let mut weak = pack(9, &(1..=6).map(Some).collect::<Vec<_>>());
        weak.shards.truncate(scheme.n());
        PackCommit { scheme, shard_len: scheme.shard_len(weak.len), ..weak }
    };
    let mut commit = |index, pack| {
        let command = Command::CommitPacks { session: SessionId([0; 16]), packs: vec![pack] };
        tx.apply(index, &Proposal { time_ms: 77, actor: ACTOR, command }).unwrap()
    };
    assert!(matches!(commit(101, weak(4, 1, 2)), Reply::Refused(Refusal::Malformed(_))));
    assert!(matches!(commit(102, weak(4, 2, 3)), Reply::Refused(Refusal::Malformed(_))));
    assert!(matches!(commit(103, weak(4, 2, 2)), Reply::PacksCommitted { .. }));
}

/// Anyone with a certificate could open sessions without end, each a row that every leader looks at each second.
#[test]
fn sessions_are_not_opened_without_end() {
    let catalogue = new_catalogue();
    let create = prologue().into_iter().find(|c| matches!(c, Command::CreateRepository { .. })).unwrap();
    let mut tx = catalogue.begin();
    tx.apply(1, &Proposal { time_ms: 1, actor: ACTOR, command: create }).unwrap();
    let mut open = |index: u64, id: u64| {
        let mut session = [0; 16];
        session[..8].copy_from_slice(&id.to_le_bytes());
        let command = Command::OpenSession { session: SessionId(session), repo: RepoId([0; 16]), seen: 0 };
        tx.apply(index, &Proposal { time_ms: 1, actor: ACTOR, command }).unwrap()
    };
    let most = farshore_core::limits::SESSIONS_OPEN_MAX;
    for id in 0..most {
        assert!(matches!(open(id + 2, id), Reply::SessionOpen { .. }));
    }
    assert!(matches!(open(most + 2, most), Reply::Refused(Refusal::Malformed(_))));
    assert!(matches!(open(most + 3, 7), Reply::SessionOpen { opened: 9 }), "repeating is harmless");
}

/// No pack names the shards of an export: taken for orphans, they would be deleted one by one, and nobody would notice before
/// the day on which they are all that is left.
#[test]
fn what_a_recorded_export_names_is_no_orphan() {
    let catalogue = lived_in();
    let mut tx = catalogue.begin();
    let mut index = 100;
    let mut apply = |command| {
        index += 1;
        tx.apply(index, &Proposal { time_ms: 77, actor: ACTOR, command }).unwrap()
    };
    let export = |which: u8| {
        let shard = |node| ShardRecord { node: Some(NodeId(node)), hash: ShardHash([which; 32]) };
        let scheme = farshore_core::erasure::Scheme::new(1, 1, 1).unwrap();
        let part = ExportPart { pack: PackId([which; 32]), len: 9, scheme, shards: vec![shard(1), shard(2)] };
        let (id, to) = (ExportId([which; 16]), which.into());
        ExportRecord { id, base: true, from: 0, to, time_ms: 0, made_ms: 0, bytes: 9, parts: vec![part] }
    };
    let orphan = |which: u8, index| {
        let shard = ShardId { stripe: export(which).parts[0].stripe(), index };
        let copies = vec![Orphan { shard, session: None, seen: 0 }];
        Command::CondemnOrphans { node: NodeId(1), copies }
    };
    let ended = (0..40).map(|id| SessionId([id; 16])).collect();
    apply(Command::EndSessions { sessions: ended });
    for which in 1..=2 {
        assert_eq!(apply(Command::RecordExport { export: export(which) }), Reply::Done);
    }
    for which in 1..=2 {
        assert_eq!(apply(orphan(which, 0)), Reply::Changed { count: 0 }, "export {which} is kept");
        assert_eq!(apply(orphan(which, 1)), Reply::Changed { count: 0 }, "nor another's of its stripe");
    }
    assert_eq!(apply(orphan(4, 0)), Reply::Changed { count: 1 }, "nobody has recorded 4");
    let late = apply(Command::RecordExport { export: export(4) });
    assert_eq!(late, Reply::Refused(Refusal::StillCondemned), "and it cannot be recorded any more");
    assert_eq!(apply(Command::RecordExport { export: export(3) }), Reply::Done);
    assert_eq!(apply(orphan(1, 1)), Reply::Changed { count: 1 }, "1 was superseded");
    assert_eq!(apply(orphan(2, 0)), Reply::Changed { count: 0 });
}
