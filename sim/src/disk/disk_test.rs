//! The simulated disk against the contract and against what real ones do.

use super::*;
use farshore_core::host::publish;
use farshore_node::disk::conformance;

#[tokio::test(start_paused = true)]
async fn conforms() {
    let world = World::new(1, None);
    let disks: Vec<_> = (0..5).map(|label| SimDisk::new(world.clone(), label)).collect();
    conformance::run(async |n| Arc::new(disks[n as usize].clone()) as Arc<dyn Disk>).await;
}

#[tokio::test(start_paused = true)]
async fn rot_changes_one_bit_and_a_full_disk_says_so() {
    let disk = SimDisk::new(World::new(1, None), 1);
    let mut file = disk.create("shards/x").await.unwrap();
    file.append(Bytes::from(vec![0; 5_000])).await.unwrap();
    file.sync().await.unwrap();
    assert_eq!(disk.rot(|_| false), None);
    assert_eq!(disk.rot(|name| name.starts_with("shards/")).as_deref(), Some("shards/x"));
    let bytes = disk.read("shards/x", 0, 9_000).await.unwrap();
    assert_eq!(bytes.iter().map(|b| b.count_ones()).sum::<u32>(), 1);
    disk.set_capacity(6_000);
    assert_eq!(disk.space().await.unwrap().free, 1_000);
    let error = file.append(Bytes::from(vec![0; 1_001])).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[tokio::test(start_paused = true)]
async fn a_slot_is_old_or_new_after_a_cut_and_new_once_it_returned() {
    let mut found = BTreeSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new(World::new(seed, None), 1);
        disk.write_slot("slot", 0, b"old").await.unwrap();
        let cut = futures_util::FutureExt::now_or_never(disk.write_slot("slot", 0, b"new"));
        assert!(cut.is_none());
        disk.crash();
        found.insert(disk.read("slot", 0, 9).await.unwrap());
        disk.write_slot("slot", 0, b"yes").await.unwrap();
        disk.crash();
        assert_eq!(disk.read("slot", 0, 9).await.unwrap(), b"yes"[..]);
    }
    assert_eq!(found.into_iter().collect::<Vec<_>>(), [&b"new"[..], b"old"]);
}

#[tokio::test(start_paused = true)]
async fn published_files_survive_and_others_are_old_new_or_torn() {
    for seed in 0..40 {
        let disk = SimDisk::new(World::new(seed, None), 1);
        let mut file = disk.create("a/tmp").await.unwrap();
        file.append(Bytes::from(vec![7; 9_000])).await.unwrap();
        publish(&disk, file, "a/tmp", "a/final").await.unwrap();
        let mut lost = disk.create("a/unsynced").await.unwrap();
        lost.append(Bytes::from(vec![9; 9_000])).await.unwrap();
        disk.crash();
        assert_eq!(disk.read("a/final", 0, 10_000).await.unwrap(), vec![7; 9_000]);
        assert_eq!(disk.len("a/tmp").await.unwrap(), None);
        if let Some(len) = disk.len("a/unsynced").await.unwrap() {
            assert!(len <= 9_000);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rename_without_directory_sync_may_be_lost() {
    let mut outcomes = BTreeSet::new();
    for seed in 0..40 {
        let disk = SimDisk::new(World::new(seed, None), 1);
        let mut file = disk.create("a/tmp").await.unwrap();
        file.append(Bytes::from_static(b"x")).await.unwrap();
        file.sync().await.unwrap();
        disk.rename("a/tmp", "a/final").await.unwrap();
        disk.crash();
        outcomes.insert(disk.len("a/final").await.unwrap().is_some());
    }
    assert_eq!(outcomes.len(), 2, "both outcomes must occur, or the fault is not simulated");
}

async fn write(disk: &SimDisk, name: &str, bytes: &'static [u8]) {
    let mut file = disk.create(name).await.unwrap();
    file.append(Bytes::from_static(bytes)).await.unwrap();
    publish(disk, file, name, name).await.unwrap_or_else(|e| panic!("{name}: {e}"));
}

#[tokio::test(start_paused = true)]
async fn a_lying_disk_keeps_nothing_it_was_told_about() {
    let mut lost = 0;
    for seed in 0..20 {
        let disk = SimDisk::new(World::new(seed, None), 1);
        write(&disk, "shards/old", b"old").await;
        disk.set_lying(&["shards/"]);
        write(&disk, "shards/new", b"new").await;
        write(&disk, "meta/new", b"new").await;
        assert_eq!(disk.visible("shards/new").as_deref(), Some(b"new".as_slice()));
        assert_eq!(disk.durable("shards/new"), None);
        assert_eq!(disk.durable("shards/old").as_deref(), Some(b"old".as_slice()));
        assert_eq!(disk.durable("meta/new").as_deref(), Some(b"new".as_slice()));
        disk.crash();
        lost += u32::from(disk.visible("shards/new").as_deref() != Some(b"new"));
        assert_eq!(disk.visible("shards/old").as_deref(), Some(b"old".as_slice()));
        disk.set_lying(&[]);
        write(&disk, "shards/new", b"new").await;
        assert_eq!(disk.durable("shards/new").as_deref(), Some(b"new".as_slice()));
    }
    assert!(lost > 5, "{lost} of 20");
}

#[tokio::test(start_paused = true)]
async fn a_failed_sync_is_followed_by_syncs_that_do_nothing() {
    let disk = SimDisk::new(World::new(1, None), 1);
    let mut file = disk.create("a").await.unwrap();
    file.append(Bytes::from_static(b"kept")).await.unwrap();
    file.sync().await.unwrap();
    disk.sync_dir("").await.unwrap();
    file.append(Bytes::from_static(b"gone")).await.unwrap();
    disk.fail_call(1, Ops::Sync);
    assert_eq!(file.sync().await.unwrap_err().raw_os_error(), Some(5));
    file.append(Bytes::from_static(b"late")).await.unwrap();
    file.sync().await.unwrap();
    assert_eq!(disk.visible("a").as_deref(), Some(b"keptgonelate".as_slice()));
    assert_eq!(disk.durable("a").as_deref(), Some(b"kept\0\0\0\0late".as_slice()));
    // A slot that is written again reaches the disk.
    disk.fail_call(1, Ops::Sync);
    assert!(disk.write_slot("slot", 0, b"one").await.is_err());
    assert_ne!(disk.durable("slot").as_deref(), Some(b"one".as_slice()));
    disk.write_slot("slot", 0, b"two").await.unwrap();
    assert_eq!(disk.durable("slot").as_deref(), Some(b"two".as_slice()));
}

#[tokio::test(start_paused = true)]
async fn reads_fail_when_told_and_a_slow_disk_takes_its_time() {
    let disk = SimDisk::new(World::new(1, None), 1);
    write(&disk, "a", b"a").await;
    disk.fail_call(2, Ops::Read);
    disk.read("a", 0, 1).await.unwrap();
    assert_eq!(disk.read("a", 0, 1).await.unwrap_err().raw_os_error(), Some(5));
    disk.read("a", 0, 1).await.unwrap();
    disk.set_slow(1_000);
    let start = tokio::time::Instant::now();
    disk.read("a", 0, 1).await.unwrap();
    assert!(start.elapsed().as_millis() >= 20);
}

#[tokio::test(start_paused = true)]
async fn files_are_cut_short_and_swapped() {
    let disk = SimDisk::new(World::new(1, None), 1);
    write(&disk, "shards/a", b"aaaa").await;
    write(&disk, "shards/b", b"bbbb").await;
    assert_eq!(disk.swap(|name| name == "shards/a"), None, "one file has no partner");
    assert!(disk.swap(|name| name.starts_with("shards/")).is_some());
    assert_eq!(disk.durable("shards/a").as_deref(), Some(b"bbbb".as_slice()));
    assert_eq!(disk.visible("shards/b").as_deref(), Some(b"aaaa".as_slice()));
    assert_eq!(disk.truncate(|name| name == "shards/b").as_deref(), Some("shards/b"));
    assert!(disk.durable("shards/b").is_some_and(|bytes| bytes.len() < 4));
    assert_eq!(disk.truncate(|_| false), None);
}

#[tokio::test(start_paused = true)]
async fn removed_files_give_their_room_back_and_are_reported_once() {
    let disk = SimDisk::new(World::new(1, None), 1);
    write(&disk, "d/a", b"0123456789").await;
    let before = disk.space().await.unwrap().free;
    disk.remove("d/a").await.unwrap();
    disk.remove("d/a").await.unwrap();
    disk.sync_dir("d").await.unwrap();
    assert_eq!(disk.space().await.unwrap().free, before + 10);
    assert_eq!(disk.take_removed(), ["d/a"]);
    assert_eq!(disk.take_named(), ["d/a"]);
    assert!(disk.take_removed().is_empty() && disk.take_named().is_empty());
}

#[tokio::test(start_paused = true)]
async fn power_fails_at_the_chosen_call_before_or_after_its_effect() {
    use crate::calls::Moment;
    for (moment, named) in [(Moment::Before, false), (Moment::After, true)] {
        let world = World::new(1, None);
        let disk = SimDisk::new(world.clone(), 7);
        // create, append, sync, rename, sync_dir
        world.calls().crash_at(7, 4, moment);
        let writing = async {
            let mut file = disk.create("tmp").await.unwrap();
            file.append(Bytes::from_static(b"x")).await.unwrap();
            publish(&disk, file, "tmp", "final").await
        };
        let stopped = tokio::time::timeout(std::time::Duration::from_secs(9), writing).await;
        assert!(stopped.is_err(), "the call never returns");
        assert_eq!(world.calls().tripped().await, 7);
        assert_eq!(disk.visible("final").is_some(), named, "{moment:?}");
        let dead = tokio::time::timeout(std::time::Duration::from_secs(9), disk.len("final")).await;
        assert!(dead.is_err(), "nor does any later one");
        disk.crash();
        world.calls().open(7);
        disk.len("final").await.unwrap();
    }
}
