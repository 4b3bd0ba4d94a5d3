//! What is read for one answer: no more than the answer needs, and never many large rows at a time.

use super::catalogue_test::{ACTOR, image_of, install, new_catalogue, pack, prologue, snapshot};
use super::*;
use crate::kv::testkit::{Scanned, Watched};
use farshore_core::catalogue::*;
use farshore_core::id::*;
use farshore_core::limits::{IMAGE_PAGE_BYTES, SNAPSHOT_SEALED_BYTES_MAX};

/// A catalogue with the nodes, repositories and sessions that the others have, and what is read from its store.
fn watched() -> (Catalogue, Arc<Scanned>) {
    let (kv, scanned) = Watched::new();
    let catalogue = Catalogue::open(kv).unwrap();
    apply(&catalogue, prologue());
    (catalogue, scanned)
}

fn apply(catalogue: &Catalogue, commands: Vec<Command>) {
    let mut tx = catalogue.begin();
    for (command, index) in commands.into_iter().zip(catalogue.applied() + 1..) {
        let reply = tx.apply(index, &Proposal { time_ms: 77, actor: ACTOR, command }).unwrap();
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
    }
    tx.commit().unwrap();
}

#[test]
fn a_page_of_packs_is_found_without_reading_those_before() {
    let (catalogue, scanned) = watched();
    let holders = (1..=6).map(Some).collect::<Vec<_>>();
    let commit = |which| {
        let session = SessionId([which % 2; 16]);
        Command::CommitPacks { session, packs: vec![pack(which, &holders)] }
    };
    apply(&catalogue, (0..90).map(commit).collect());
    let sessions = vec![SessionId([0; 16]), SessionId([1; 16])];
    let dead: Vec<PackNo> = (0..90).filter(|no| no % 5 < 2).map(PackNo).collect();
    apply(&catalogue, vec![Command::EndSessions { sessions }, Command::CondemnPacks { packs: dead.clone() }]);
    let looked = catalogue.applied();
    let packs = dead.iter().map(|no| CondemnedPack { no: *no, at: looked }).collect();
    apply(&catalogue, vec![Command::DropPacks { packs, looked }]);

    let view = catalogue.view().unwrap();
    let all = view.all_packs(PackNo(0), 99).unwrap().rows;
    assert_eq!(all.len(), 54);
    for (from, repo) in (0..92).flat_map(|from| [(from, RepoId([0; 16])), (from, RepoId([1; 16]))]) {
        scanned.take();
        let page = view.packs(repo, PackNo(from), 3).unwrap();
        let (rows, _) = scanned.take();
        let expected = all.iter().filter(|pack| pack.repo == repo && pack.no.0 >= from).take(3);
        assert_eq!(page.rows, expected.cloned().collect::<Vec<_>>(), "from {from}");
        assert!(rows <= 3 + 9, "{rows} rows read for a page from {from}");
    }
}

#[test]
fn large_rows_travel_and_go_a_few_at_a_time() {
    let (catalogue, scanned) = watched();
    let holders = (1..=6).map(Some).collect::<Vec<_>>();
    let (session, repo) = (SessionId([0; 16]), RepoId([0; 16]));
    let mut commands = vec![Command::CommitPacks { session, packs: vec![pack(0, &holders)] }];
    for which in 4..12 {
        let sealed = vec![which; SNAPSHOT_SEALED_BYTES_MAX];
        let snapshot = SnapshotRecord { sealed, ..snapshot(which, 0, &[0], 0) };
        commands.push(Command::CommitSnapshot { session, snapshot, replaces: None });
    }
    let snapshots = (4..8).map(|which| SnapshotId([which; 32])).collect();
    commands
        .push(Command::ChangeRepository { repo, change: RepoChange::Forget { snapshots, bypass: false } });
    apply(&catalogue, commands);

    // A page may be exceeded by its last row.
    let most = IMAGE_PAGE_BYTES + SNAPSHOT_SEALED_BYTES_MAX + 1_024;
    scanned.take();
    image_of(&catalogue);
    let (rows, largest) = scanned.take();
    assert!(largest <= most, "{largest} bytes read at a time for an image");
    assert!(rows < 200, "{rows} rows read for an image: some came twice");
    install(&new_catalogue(), &catalogue);
    scanned.take();
    while catalogue.drop_old_generation(1_000).unwrap() > 0 {}
    let (_, largest) = scanned.take();
    assert!((SNAPSHOT_SEALED_BYTES_MAX..=most).contains(&largest), "{largest} bytes read at a time");
}
