//! The simulated stores against the contract and against what real engines do.

use super::*;
use farshore_node::kv::conformance;

fn put(n: u8) -> KvOp {
    KvOp::Put(1, vec![n], vec![n])
}

#[tokio::test(start_paused = true)]
async fn both_roles_conform() {
    for (role, freezes) in [(KvRole::Catalogue, true), (KvRole::Index, false)] {
        let world = World::new(1, None);
        let machines: Vec<_> = (0..8).map(|label| SimStores::new(world.clone(), label)).collect();
        let open = |n: u32| machines[n as usize].open(role);
        conformance::run(conformance::Traits { freezes }, async |n| open(n).await.unwrap()).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_opens_once_until_its_process_dies() {
    let stores = SimStores::new(World::new(1, None), 1);
    let zombie = stores.open(KvRole::Index).await.unwrap();
    assert!(matches!(stores.open(KvRole::Index).await, Err(KvError::InUse)));
    assert!(matches!(stores.discard(KvRole::Index).await, Err(KvError::InUse)));
    stores.release();
    stores.open(KvRole::Index).await.unwrap();
    drop(zombie);
    assert!(stores.discard(KvRole::Catalogue).await.is_err());
    stores.discard(KvRole::Index).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn power_loss_keeps_what_was_flushed_and_a_prefix_of_the_rest() {
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..60 {
        let stores = SimStores::new(World::new(seed, None), 1);
        let store = stores.open(KvRole::Catalogue).await.unwrap();
        store.write(vec![put(0)]).unwrap();
        store.flush().await.unwrap();
        (1..4).for_each(|n| store.write(vec![put(n)]).unwrap());
        stores.release();
        stores.crash();
        let store = stores.open(KvRole::Catalogue).await.unwrap();
        let rows = store.scan(1, &[], &[9], 9).unwrap();
        assert!(rows.iter().enumerate().all(|(n, (key, _))| *key == [n as u8]), "a prefix");
        assert!(!rows.is_empty(), "what was flushed");
        kept.insert(rows.len());
    }
    assert_eq!(kept.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4], "every outcome occurs");
}

#[tokio::test(start_paused = true)]
async fn a_flush_cut_short_promises_nothing() {
    let lost = (0..40).any(|seed| {
        let stores = SimStores::new(World::new(seed, None), 1);
        let store = futures_util::FutureExt::now_or_never(stores.open(KvRole::Catalogue)).unwrap().unwrap();
        store.write(vec![put(0)]).unwrap();
        assert!(futures_util::FutureExt::now_or_never(store.flush()).is_none(), "a flush takes time");
        stores.crash();
        store.get(1, &[0]).unwrap().is_none()
    });
    assert!(lost);
}

#[tokio::test(start_paused = true)]
async fn after_a_failed_flush_a_store_takes_nothing_until_it_is_opened_again() {
    let mut kept = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let stores = SimStores::new(World::new(seed, None), 1);
        stores.fail_flush(KvRole::Catalogue, 2);
        let store = stores.open(KvRole::Catalogue).await.unwrap();
        store.write(vec![put(0)]).unwrap();
        store.flush().await.unwrap();
        store.write(vec![put(1)]).unwrap();
        assert!(matches!(store.flush().await, Err(KvError::Io(_))));
        assert!(store.write(vec![put(2)]).is_err() && store.flush().await.is_err());
        assert_eq!(store.get(1, &[1]).unwrap(), Some(vec![1]), "it still reads");
        drop(store);
        let store = stores.open(KvRole::Catalogue).await.unwrap();
        assert_eq!(store.get(1, &[0]).unwrap(), Some(vec![0]));
        kept.insert(store.get(1, &[1]).unwrap().is_some());
        store.write(vec![put(3)]).unwrap();
        store.flush().await.unwrap();
        stores.crash();
        assert_eq!(stores.scan_all(KvRole::Catalogue).last().unwrap(), &(1, vec![3], vec![3]));
    }
    assert_eq!(kept.len(), 2, "both outcomes occur");
}

#[tokio::test(start_paused = true)]
async fn a_lying_store_loses_what_it_said_was_flushed() {
    let mut lost = false;
    for seed in 0..20 {
        let stores = SimStores::new(World::new(seed, None), 1);
        stores.set_lying(true);
        let store = stores.open(KvRole::Index).await.unwrap();
        store.write(vec![put(0)]).unwrap();
        store.flush().await.unwrap();
        stores.crash();
        lost |= store.get(1, &[0]).unwrap().is_none();
    }
    assert!(lost);
    let stores = SimStores::new(World::new(1, None), 1);
    let store = stores.open(KvRole::Index).await.unwrap();
    stores.set_lying(true);
    store.write(vec![put(0)]).unwrap();
    store.flush().await.unwrap();
    stores.set_lying(false);
    store.flush().await.unwrap();
    stores.crash();
    assert_eq!(store.get(1, &[0]).unwrap(), Some(vec![0]), "an honest flush makes up for it");
}

#[tokio::test(start_paused = true)]
async fn a_full_disk_fails_the_stores_too() {
    use farshore_core::host::Disk as _;
    let disk = SimDisk::new(World::new(1, None), 1);
    let stores = SimStores::beside(&disk);
    let store = stores.open(KvRole::Catalogue).await.unwrap();
    store.write(vec![KvOp::Put(1, vec![1], vec![0; 1_000])]).unwrap();
    store.flush().await.unwrap();
    let space = disk.space().await.unwrap();
    assert_eq!(space.total - space.free, 1_001);
    disk.fill();
    assert!(store.write(vec![put(2)]).is_err());
    disk.unfill();
    assert!(store.write(vec![put(2)]).is_err(), "what has failed stays so");
    drop(store);
    let store = stores.open(KvRole::Catalogue).await.unwrap();
    store.write(vec![put(2), KvOp::Delete(1, vec![1])]).unwrap();
    store.flush().await.unwrap();
    let space = disk.space().await.unwrap();
    assert_eq!(space.total - space.free, 2, "rows that are gone take no room");
}
