//! A view of snapshots planted by hand.

use super::shelves::{Place, Shelves};
use super::{Attr, Options, ROOT, View};
use crate::error::Error;
use crate::files::{FileKind, RelPath};
use crate::format::{Content, ContentChunk, Entry, Node};
use crate::list::Filter;
use crate::testing::{Planter, entry};
use farshore_core::catalogue::PackKind;
use farshore_core::limits::VIEW_CACHE_BYTES;
use std::collections::BTreeSet;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| farshore_core::host::task::splitmix(seed, n * 0x9e37_79b9) as u8).collect()
}

const MANY: usize = 3_000;

/// `many` with many entries, `big` and `second` (one file), `lost` (whose chunk nobody has).
async fn plant() -> (Planter, Vec<u8>) {
    let mut p = Planter::new(300_000).await;
    let mut many = Vec::new();
    for n in 0..MANY {
        many.push(entry(format!("{n:05}").as_bytes(), Node::Symlink { target: n.to_string().into_bytes() }));
    }
    let many = p.dir(many).await;
    let big = noise(5, 2_000_000);
    let content = p.content(&big, 1_000).await;
    assert!(matches!(content, Content::List { .. }), "long enough for a list of several levels");
    let mut first = entry(b"big", Node::File { size: big.len() as u64, content });
    (first.meta.nlink, first.meta.ino) = (2, 9);
    first.meta.xattrs = vec![(b"user.x".to_vec(), b"y".to_vec())];
    let second = Entry { name: b"second".to_vec(), ..first.clone() };
    let lost = Content::Inline(vec![ContentChunk { id: p.keys.chunk_id(PackKind::Data, b"lost"), len: 4 }]);
    let root = vec![
        entry(b"many", Node::Dir { root: many }),
        first,
        second,
        entry(b"lost", Node::File { size: 4, content: lost }),
        entry(b"null", Node::CharDev { rdev: 0x103 }),
    ];
    let root = p.dir(root).await;
    p.snapshot(0xaa, "here", root).await;
    (p, big)
}

async fn walk(view: &View, path: &[&[u8]]) -> Attr {
    let mut at = view.attr(ROOT).unwrap();
    for name in path {
        at = view.lookup(at.ino, name).await.unwrap().unwrap();
    }
    at
}

fn snapshot_name() -> &'static [u8] {
    b"1970-01-01T00:00:00Z"
}

#[tokio::test]
async fn ranges_of_a_file_read_only_the_chunks_they_lie_in() {
    let (p, big) = plant().await;
    let view = p.repository().await.view(Options::default());
    let file = walk(&view, &[b"snapshots", snapshot_name(), b"big"]).await;
    assert_eq!((file.size(), file.nlink, file.settled), (big.len() as u64, 2, true));
    let size = big.len() as u64;
    for (from, len) in
        [(0, 1), (999, 2), (1_000, 1_000), (777_777, 54_321), (size - 1, 10), (size, 5), (size + 7, 1)]
    {
        let read = view.read(file.ino, from, len, false).await.unwrap().concat();
        let (from, to) = (from.min(size) as usize, (from + len).min(size) as usize);
        assert!(read == big[from..to], "{from}..{to}");
    }
    // Another view has nothing yet. What it reads of its trees is paid for first.
    let view = p.repository().await.view(Options::default());
    let file = walk(&view, &[b"snapshots", snapshot_name(), b"big"]).await;
    view.read(file.ino, 1_500_000, 1, false).await.unwrap();
    let before = p.cluster.state().gets;
    let read = view.read(file.ino, 500_100, 700, false).await.unwrap().concat();
    assert!(read == big[500_100..500_800]);
    let cost = p.cluster.state().gets - before;
    assert!(cost <= 2, "one chunk lies on one or two nodes: {cost}");
    let again = p.cluster.state().gets;
    view.read(file.ino, 500_000, 1_000, false).await.unwrap();
    assert_eq!(p.cluster.state().gets, again, "it is kept");
    // Ahead means that the next read finds it there, or on its way.
    view.read(file.ino, 600_000, 1_000, true).await.unwrap();
    view.read(file.ino, 660_000, 1_000, false).await.unwrap();
    let (bytes, _) = view.chunks.filled();
    assert!(bytes < VIEW_CACHE_BYTES);

    let lost = walk(&view, &[b"snapshots", b"latest"]).await;
    assert!(matches!(lost.kind, FileKind::Symlink { target } if target == snapshot_name()));
    let lost = walk(&view, &[b"ids", b"aaaaaaaa", b"lost"]).await;
    assert!(matches!(view.read(lost.ino, 0, 4, true).await, Err(Error::At { .. })));
    assert_eq!(view.chunks.filled().1, 0, "nothing is on its way for ever");
}

#[tokio::test]
async fn many_readers_of_one_range_fetch_it_once() {
    let (p, big) = plant().await;
    let view = p.repository().await.view(Options::default());
    let file = walk(&view, &[b"snapshots", snapshot_name(), b"big"]).await;
    view.read(file.ino, 0, 1, false).await.unwrap();
    let before = p.cluster.state().gets;
    let reads = (0..16).map(|_| view.read(file.ino, 1_200_000, 900, false));
    for read in futures_util::future::join_all(reads).await {
        assert!(read.unwrap().concat() == big[1_200_000..1_200_900]);
    }
    assert!(p.cluster.state().gets - before <= 2);
}

#[tokio::test]
async fn a_listing_goes_on_where_there_was_no_room_and_can_be_sought() {
    let (p, _) = plant().await;
    let view = p.repository().await.view(Options::default());
    let many = walk(&view, &[b"hosts", b"here", snapshot_name(), b"many"]).await;
    let mut listing = view.open_dir(many.ino).await.unwrap();
    let mut numbers = BTreeSet::new();
    for n in 0..MANY {
        let listed = view.peek(&mut listing).await.unwrap().unwrap();
        // Looked at twice it is still the same.
        assert_eq!(view.peek(&mut listing).await.unwrap().unwrap(), listed);
        assert_eq!(listed.name, format!("{n:05}").as_bytes());
        assert!(numbers.insert(listed.attr.ino));
        view.take(&mut listing, false);
    }
    assert_eq!(view.peek(&mut listing).await.unwrap(), None);
    for (given, name) in [(10, "00010"), (2_500, "02500"), (2_499, "02499")] {
        view.seek(&mut listing, given).await.unwrap();
        assert_eq!(view.peek(&mut listing).await.unwrap().unwrap().name, name.as_bytes());
    }
    let found = view.lookup(many.ino, b"01234").await.unwrap().unwrap();
    assert!(numbers.contains(&found.ino), "a listing and a look-up say the same number");
    assert!(view.lookup(many.ino, b"x").await.unwrap().is_none());
    assert!(view.open_dir(found.ino).await.is_err());
}

#[tokio::test]
async fn numbers_come_back_and_nothing_is_kept_that_nobody_refers_to() {
    let (p, _) = plant().await;
    let view = p.repository().await.view(Options { owner: (7, 8), ..Options::default() });
    let path: [&[u8]; 3] = [b"snapshots", snapshot_name(), b"big"];
    let (big, top) = (walk(&view, &path).await, walk(&view, &path[..2]).await);
    let second = view.lookup(top.ino, b"second").await.unwrap().unwrap();
    assert_eq!(second.ino, big.ino, "two names of one file");
    assert_eq!(view.xattrs(big.ino).unwrap(), [(b"user.x".to_vec(), b"y".to_vec())]);
    let elsewhere = walk(&view, &[b"ids", b"aaaaaaaa", b"big"]).await;
    assert_ne!(elsewhere.ino, big.ino, "a tree that is shown twice is two");
    let above = walk(&view, &[b"tags"]).await;
    assert_eq!((above.uid, above.gid, above.mode), (7, 8, 0o555));
    let known: Vec<u64> = view.inodes().numbers().collect();
    assert_eq!(known.len(), 8);
    view.forget(big.ino, 1);
    assert!(view.attr(big.ino).is_ok(), "the other name still refers to it");
    known.iter().for_each(|ino| view.forget(*ino, 10));
    assert_eq!(view.inodes().numbers().count(), 1);
    assert!(view.attr(big.ino).is_err() && view.attr(ROOT).is_ok());
    assert_eq!(walk(&view, &path).await, big);
    // A listing that is read with attributes refers too.
    let shelf = walk(&view, &path[..2]).await;
    let mut listing = view.open_dir(shelf.ino).await.unwrap();
    let before = view.inodes().numbers().count();
    while view.peek(&mut listing).await.unwrap().is_some() {
        view.take(&mut listing, true);
    }
    assert_eq!(view.inodes().numbers().count(), before + 3, "of five names two are one and it was known");
    let root = Options { owner_root: true, ..Options::default() };
    let view = p.repository().await.view(root);
    assert_eq!(walk(&view, &path).await.uid, 0);
}

#[tokio::test]
async fn names_above_the_snapshots_do_not_collide() {
    let (p, _) = plant().await;
    let all = p.repository().await.snapshots(&Filter::default()).await.unwrap();
    let mut one = all[0].clone();
    one.info.tags = vec!["a/b".into(), "..".into(), "".into()];
    let mut two = one.clone();
    two.id.0[0] = 0xbb;
    two.info.host = "../up".into();
    let shelves = Shelves::new(vec![one, two.clone()], &"%Y".parse().unwrap());
    let names = |path: &[u8]| -> Vec<String> {
        let shelf = shelves.shelf(&RelPath::from_path(path).unwrap()).unwrap();
        shelf.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect()
    };
    assert_eq!(names(b"/"), ["hosts", "ids", "snapshots", "tags"]);
    assert_eq!(names(b"/snapshots"), ["1970", "1970-1", "latest"]);
    assert_eq!(names(b"/hosts"), [".._up", "here"]);
    assert_eq!(names(b"/tags"), ["_", "__", "a_b"]);
    assert_eq!(names(b"/tags/__"), ["1970", "1970-1", "latest"]);
    assert_eq!(names(b"/ids"), ["aaaaaaaa", "bbaaaaaa"]);
    let shelf = shelves.shelf(&RelPath::from_path(b"/snapshots").unwrap()).unwrap();
    assert_eq!(shelf[&b"latest"[..]], Place::Latest(b"1970-1".to_vec()));
    assert!(matches!(&shelf[&b"1970-1"[..]], Place::Snapshot(found) if found.id == two.id));
    let none = Shelves::new(vec![], &Default::default());
    assert_eq!(none.shelf(&RelPath::root()).unwrap().len(), 4);
}
