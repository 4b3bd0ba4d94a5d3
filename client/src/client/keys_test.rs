//! Keys added, changed and removed, by one admin and by two.

use super::*;
use crate::format::ChunkSource;
use crate::testing::Planter;
use farshore_core::catalogue::PackKind;
use farshore_core::host::real::OsEntropy;

fn new_key(secret: Secret) -> NewKey {
    let note = SlotNote { user: "ann".into(), host: "office".into(), created_ms: 7 };
    NewKey { secret, kdf: KdfParams::CHEAPEST, note }
}

async fn open(repository: &Repository, secret: Secret) -> Result<Repository> {
    let client = repository.client();
    client.unlock_with(client.find_repository("r").await?, secret).await
}

#[tokio::test]
async fn keys_come_and_go() {
    let planter = Planter::new(1 << 20).await;
    let repository = planter.repository().await;
    let secrets = [
        Secret::passphrase("two"),
        Secret::new_key_file(&OsEntropy).0,
        Secret::new_recovery_key(&OsEntropy).0,
    ];
    let mut ids = Vec::new();
    for secret in &secrets {
        let added = repository.add_key(&new_key(secret.clone())).await.unwrap();
        assert_eq!((added.kind, added.vouched), (Some(secret.kind()), Some(true)));
        ids.push(added.id.to_string());
    }
    for secret in &secrets {
        let again = open(&repository, secret.clone()).await.unwrap();
        let current: Vec<_> = again.keys().await.unwrap().into_iter().filter(|key| key.current).collect();
        assert_eq!(current.len(), 1);
        assert_eq!(
            (current[0].slot.kind, current[0].slot.note.as_ref().unwrap().user.as_str()),
            (Some(secret.kind()), "ann")
        );
    }
    // What is in use, unknown or unclear is refused.
    let all = repository.keys().await.unwrap();
    let own = all.iter().find(|key| key.current).unwrap().slot.id.to_string();
    for (id, says) in [(own.as_str(), "in use"), ("zz", "no key"), ("", "several")] {
        let why = repository.remove_key(id).await.unwrap_err().to_string();
        assert!(why.contains(says), "{id}: {why}");
    }
    assert_eq!(repository.keys().await.unwrap().len(), 4);
    repository.remove_key(&ids[1][..7]).await.unwrap();
    assert_eq!(open(&repository, secrets[1].clone()).await.err().unwrap().exit_code(), 12);
    assert_eq!(repository.keys().await.unwrap().len(), 3);

    // The key in use gives way to another one, with which all goes on.
    let changed = repository.change_key(&new_key(Secret::passphrase("new"))).await.unwrap();
    assert!(open(&repository, Secret::passphrase("secret")).await.is_err());
    assert!(open(&repository, Secret::passphrase("new")).await.is_ok());
    let current = repository.keys().await.unwrap().into_iter().find(|key| key.current).unwrap();
    assert_eq!((current.slot.id, repository.keys().await.unwrap().len()), (changed.id, 3));
    repository.remove_key(&ids[0]).await.unwrap();
}

#[tokio::test]
async fn whoever_looked_before_another_changed_the_keys_is_refused() {
    let planter = Planter::new(1 << 20).await;
    let (one, two) = (planter.repository().await, planter.repository().await);
    let (seen, _) = one.0.ring.present().await.unwrap();
    let added = two.add_key(&new_key(Secret::passphrase("two"))).await.unwrap();
    let why = one.set_slots(&seen, seen.key_slots.clone()).await.unwrap_err();
    assert!(why.to_string().contains("have changed"), "{why}");
    assert_eq!(one.keys().await.unwrap().len(), 2, "what the other added is there");
    // A key that was taken away opens nothing, and whoever used it is told.
    let by_two = open(&one, Secret::passphrase("two")).await.unwrap();
    one.remove_key(&added.id.to_string()).await.unwrap();
    assert_eq!(by_two.add_key(&new_key(Secret::passphrase("three"))).await.unwrap_err().exit_code(), 12);
}

#[tokio::test]
async fn a_repository_has_no_more_keys_than_fit() {
    let repository = Planter::new(1 << 20).await.repository().await;
    for _ in 1..KEY_SLOTS_MAX {
        repository.add_key(&new_key(Secret::new_key_file(&OsEntropy).0)).await.unwrap();
    }
    let why = repository.add_key(&new_key(Secret::passphrase("more"))).await.unwrap_err();
    assert!(why.to_string().contains("32 keys already"), "{why}");
}

fn note() -> SlotNote {
    SlotNote { user: "ann".into(), host: "office".into(), created_ms: 9 }
}

#[tokio::test]
async fn a_new_epoch_is_opened_by_every_key_and_by_nothing_that_was_kept() {
    let planter = Planter::new(1 << 20).await;
    let repository = planter.repository().await;
    let secrets = [Secret::passphrase("two"), Secret::new_key_file(&OsEntropy).0];
    for secret in &secrets {
        repository.add_key(&new_key(secret.clone())).await.unwrap();
    }
    let thief = open(&repository, secrets[0].clone()).await.unwrap();
    let (_, kept) = thief.0.ring.present().await.unwrap();
    let before = repository.keys().await.unwrap();
    assert_eq!(repository.keys_of().epoch(), 0);

    let (epoch, keys) = repository.rotate_keys(&note()).await.unwrap();
    assert_eq!((epoch, keys.len(), repository.keys_of().epoch()), (1, 3, 1));
    let after = repository.keys().await.unwrap();
    let slots = |keys: &[Key]| keys.iter().map(|key| (key.slot.clone(), key.current)).collect::<Vec<_>>();
    assert_eq!(slots(&after), slots(&before), "rotation changes no name and no label");
    for secret in &secrets {
        let other = open(&repository, secret.clone()).await.unwrap();
        assert_eq!(other.keys_of().epoch(), 1);
    }
    // Removed and rotated: what was kept of it opens nothing of now.
    let gone = before[1].slot.id.to_string();
    repository.remove_key(&gone).await.unwrap();
    assert_eq!(repository.rotate_keys(&note()).await.unwrap().0, 2);
    let (record, now) = repository.0.ring.present().await.unwrap();
    let slots = &record.key_slots;
    assert!(open_slots(record.id, slots, &secrets[0]).is_err() && reopen(record.id, slots, &kept).is_err());
    let thief = thief.0.ring.present().await.unwrap_err();
    assert_eq!(thief.exit_code(), 12);
    assert!(Epochs::open(record.id, &kept.root, slots).is_err());
    assert!(Epochs::open(record.id, &now.root, slots).is_ok());
    // Another key can rotate, change and go on as well.
    let other = open(&repository, secrets[1].clone()).await.unwrap();
    assert_eq!(other.rotate_keys(&note()).await.unwrap().0, 3);
    repository.change_key(&new_key(Secret::passphrase("new"))).await.unwrap();
    assert_eq!(repository.rotate_keys(&note()).await.unwrap().0, 4);
    assert_eq!(other.keys().await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_key_that_nobody_vouches_for_or_too_many_keep_a_new_epoch_from_beginning() {
    let repository = Planter::new(1 << 20).await.repository().await;
    let (record, _) = repository.0.ring.present().await.unwrap();
    let foreign = new_key(Secret::passphrase("thief"));
    let root = MasterKey::new(&OsEntropy);
    let (slot, _) = repository.client().new_slot(record.id, &root, &foreign).await.unwrap();
    repository.set_slots(&record, [record.key_slots.as_slice(), &[slot]].concat()).await.unwrap();
    let why = repository.rotate_keys(&note()).await.unwrap_err().to_string();
    let thief = repository.keys().await.unwrap()[1].slot.clone();
    assert_eq!(thief.vouched, Some(false));
    assert!(why.contains(&thief.id.to_string()) && why.contains("remove it"), "{why}");
    repository.remove_key(&thief.id.to_string()).await.unwrap();
    while repository.keys().await.unwrap().len() < KEY_SLOTS_MAX {
        repository.add_key(&new_key(Secret::new_key_file(&OsEntropy).0)).await.unwrap();
    }
    let why = repository.rotate_keys(&note()).await.unwrap_err().to_string();
    assert!(why.contains("remove one first"), "{why}");
}

#[tokio::test]
async fn who_opened_before_a_rotation_reads_what_was_written_after_it() {
    let mut planter = Planter::new(1 << 20).await;
    let (old, new) = (planter.repository().await, planter.repository().await);
    let before = planter.chunk(PackKind::Data, b"before").await;
    new.rotate_keys(&note()).await.unwrap();
    planter.keys = new.keys_of().clone();
    let (data, tree) =
        (planter.chunk(PackKind::Data, b"after").await, planter.chunk(PackKind::Tree, b"after").await);
    planter.flush_all().await;
    assert_eq!(old.keys_of().epoch(), 0);
    let read = old.0.reader.read(PackKind::Data, &[before, data]).await.unwrap();
    assert!(read.iter().all(|(_, read)| read.is_ok()), "{read:?}");
    assert_eq!(old.keys_of().epoch(), 1);

    // By way of a tree as well, and not at all if there is no such epoch anywhere.
    let again = planter.repository().await;
    new.rotate_keys(&note()).await.unwrap();
    planter.keys = new.keys_of().clone();
    let newer = planter.chunk(PackKind::Tree, b"newer").await;
    planter.flush_all().await;
    assert_eq!(again.0.trees.chunk(&tree).await.unwrap(), "after");
    assert_eq!(again.0.trees.chunk(&newer).await.unwrap(), "newer");
    let unheard_of = Error::LaterKeys { what: "x".into(), epoch: 9 };
    assert!(!again.0.ring.learn_for(&unheard_of).await && !again.0.ring.learn_for(&unheard_of).await);

    // Descriptions are sealed in the new epoch too.
    let listing = planter.repository().await;
    new.rotate_keys(&note()).await.unwrap();
    planter.keys = new.keys_of().clone();
    planter.snapshot(1, "h", newer).await;
    let seen = listing.snapshots(&crate::list::Filter::default()).await.unwrap();
    assert_eq!((seen.len(), listing.keys_of().epoch()), (1, 3));
}
