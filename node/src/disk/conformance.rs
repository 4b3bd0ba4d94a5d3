//! What every disk behind the Disk seam must do, as calls that panic on the first difference. Run on the real disk
//! here and on the simulator's there, which adds power loss. Nothing in it knows which disk it drives.

use bytes::Bytes;
use farshore_core::host::{Disk, publish};
use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;

/// Runs the whole suite. `open` opens the one disk named by its number, empty at first; the suite drops its handle
/// before it opens the same number again.
///
/// # Panics
/// On the first difference between the disk and its contract.
pub async fn run<F: Future<Output = Arc<dyn Disk>>>(open: impl Fn(u32) -> F) {
    absent(open(0).await.as_ref()).await;
    files(open(1).await.as_ref()).await;
    names(open(2).await.as_ref()).await;
    slots(open(3).await.as_ref()).await;
    published(&open, 4).await;
}

async fn fill(disk: &dyn Disk, name: &str, bytes: &'static [u8]) {
    let mut file = disk.create(name).await.expect("create a file");
    file.append(Bytes::from_static(bytes)).await.expect("append");
    file.sync().await.expect("sync");
}

async fn absent(disk: &dyn Disk) {
    assert_eq!(disk.len("a").await.unwrap(), None);
    assert_eq!(disk.len("dir/a").await.unwrap(), None);
    assert_eq!(disk.read("a", 0, 1).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(disk.rename("a", "b").await.unwrap_err().kind(), ErrorKind::NotFound);
    disk.remove("a").await.expect("removing nothing is no error");
    disk.sync_dir("dir").await.expect("syncing no directory is no error");
    assert!(disk.list("").await.unwrap().is_empty());
    assert!(disk.list("dir").await.unwrap().is_empty());
    let space = disk.space().await.unwrap();
    assert!(space.free <= space.total && space.total > 0);
}

async fn files(disk: &dyn Disk) {
    let mut file = disk.create("dir/deep/a").await.unwrap();
    for piece in [b"one ".as_slice(), b"", b"two ", b"three"] {
        file.append(Bytes::from_static(piece)).await.unwrap();
    }
    file.sync().await.unwrap();
    drop(file);
    assert_eq!(disk.len("dir/deep/a").await.unwrap(), Some(13));
    assert_eq!(disk.len("dir/deep").await.unwrap(), None, "a directory is not a file");
    let read = async |offset, len| disk.read("dir/deep/a", offset, len).await.unwrap();
    assert_eq!(read(0, 99).await, b"one two three"[..], "a read stops at the end");
    assert_eq!(read(4, 3).await, b"two"[..]);
    assert_eq!(read(13, 5).await, b""[..]);
    assert_eq!(read(u64::MAX, 5).await, b""[..], "a read behind the end is empty");
    assert_eq!(read(0, 0).await, b""[..]);
    fill(disk, "dir/deep/a", b"new").await;
    assert_eq!(read(0, 99).await, b"new"[..], "creating a file empties it");
}

async fn names(disk: &dyn Disk) {
    fill(disk, "d/b", b"b").await;
    fill(disk, "d/a", b"a").await;
    fill(disk, "d/sub/c", b"c").await;
    fill(disk, "top", b"t").await;
    assert_eq!(disk.list("d").await.unwrap(), ["a", "b", "sub/"]);
    assert_eq!(disk.list("").await.unwrap(), ["d/", "top"]);
    let sized = disk.list_sized("d").await.unwrap();
    for ((name, len), (named, long)) in sized.iter().zip([("a", Some(1)), ("b", Some(1)), ("sub/", None)]) {
        assert!(name == named && (len.is_none() || *len == long), "{name} has {len:?} bytes");
    }
    assert_eq!(sized.len(), 3);
    disk.rename("d/a", "d/b").await.unwrap();
    assert_eq!(disk.read("d/b", 0, 9).await.unwrap(), b"a"[..], "a rename replaces");
    disk.rename("d/b", "new/dir/b").await.unwrap();
    disk.remove("d/sub/c").await.unwrap();
    assert_eq!(disk.len("d/sub/c").await.unwrap(), None);
    assert_eq!(disk.list("new/dir").await.unwrap(), ["b"], "a rename makes the directory");
    for dir in ["", "d", "new", "new/dir"] {
        disk.sync_dir(dir).await.unwrap();
    }
}

async fn slots(disk: &dyn Disk) {
    disk.write_slot("meta/slot", 4, b"later").await.unwrap();
    disk.write_slot("meta/slot", 0, b"soon").await.unwrap();
    assert_eq!(disk.read("meta/slot", 0, 99).await.unwrap(), b"soonlater"[..]);
    disk.write_slot("meta/slot", 2, b"--").await.unwrap();
    assert_eq!(disk.read("meta/slot", 0, 99).await.unwrap(), b"so--later"[..]);
}

async fn published<F: Future<Output = Arc<dyn Disk>>>(open: &impl Fn(u32) -> F, number: u32) {
    let disk = open(number).await;
    let mut file = disk.create("tmp/x").await.unwrap();
    file.append(Bytes::from_static(b"whole")).await.unwrap();
    publish(disk.as_ref(), file, "tmp/x", "final/dir/x").await.unwrap();
    drop(disk);
    let disk = open(number).await;
    assert_eq!(disk.read("final/dir/x", 0, 99).await.unwrap(), b"whole"[..]);
    assert!(disk.list("tmp").await.unwrap().is_empty());
}
