//! Keys added, changed and removed, by one admin and by two.

use super::*;
use crate::testing::Planter;
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
    let (seen, _) = one.present().await.unwrap();
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
