//! Restores of trees planted by hand, onto a real directory.
#![expect(clippy::disallowed_methods, reason = "tests look at what was restored")]

use crate::check::{self, Share, Subset};
use crate::client::Repository;
use crate::error::Error;
use crate::files::{How, RealTarget};
use crate::format::{Content, ContentChunk, Entry, Node};
use crate::list::Filter;
use crate::pattern::{Case, Pattern};
use crate::progress::{Event, Progress, Silent};
use crate::restore::{Options, Overwrite, Select, Summary, WindowLimits};
use crate::testing::{Planter, entry, host};
use farshore_core::catalogue::PackKind;
use farshore_core::id::{ChunkId, PackNo};
use std::collections::BTreeMap;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that do not compress and differ by seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| farshore_core::host::task::splitmix(seed, n * 0x9e37_79b9) as u8).collect()
}

/// Kind letter, mode, seconds and nanoseconds of mtime, contents or link.
type Seen = (char, u32, i64, i64, Vec<u8>);

/// What a directory holds, by path.
fn picture(root: &Path) -> BTreeMap<Vec<u8>, Seen> {
    let mut all = BTreeMap::new();
    let mut todo = vec![root.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for item in std::fs::read_dir(&dir).unwrap() {
            let path = item.unwrap().path();
            let stat = std::fs::symlink_metadata(&path).unwrap();
            let (letter, bytes) = if stat.is_dir() {
                todo.push(path.clone());
                ('d', vec![])
            } else if stat.is_symlink() {
                ('l', std::fs::read_link(&path).unwrap().into_os_string().into_vec())
            } else if stat.file_type().is_fifo() {
                ('p', vec![])
            } else {
                ('f', std::fs::read(&path).unwrap())
            };
            let name = path.strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
            all.insert(name, (letter, stat.mode() & 0o7777, stat.mtime(), stat.mtime_nsec(), bytes));
        }
    }
    all
}

/// A tree with a bit of everything, a snapshot of it, and its picture.
async fn plant(pack_bytes: usize) -> (Planter, BTreeMap<Vec<u8>, Vec<u8>>) {
    let mut p = Planter::new(pack_bytes).await;
    let mut files = BTreeMap::new();
    let mut deep = Vec::new();
    for n in 0..300u64 {
        let (name, bytes) = (format!("f{n:03}"), noise(n, (n as usize * 37) % 5_000));
        let content = p.content(&bytes, 4_096).await;
        deep.push(entry(name.as_bytes(), Node::File { size: bytes.len() as u64, content }));
        files.insert(format!("home/x/deep/{name}").into_bytes(), bytes);
    }
    let deep = p.dir(deep).await;
    let big = noise(999, 3_000_000);
    let content = p.content(&big, 20_000).await;
    assert!(matches!(content, Content::List { .. }), "long enough for a list of its own");
    let mut linked = entry(b"big", Node::File { size: big.len() as u64, content: content.clone() });
    linked.meta.nlink = 2;
    (linked.meta.dev, linked.meta.ino) = (1, 77);
    linked.meta.mode = 0o640;
    let second = Entry { name: b"zz-link".to_vec(), ..linked.clone() };
    let odd = p.content(b"odd", 100).await;
    let x = vec![
        entry(b"deep", Node::Dir { root: deep }),
        linked,
        second,
        entry(b"\xff\xfe odd\n", Node::File { size: 3, content: odd }),
        entry(b"empty", Node::File { size: 0, content: Content::Inline(vec![]) }),
        entry(b"link", Node::Symlink { target: b"../nowhere/\xff".to_vec() }),
        entry(b"pipe", Node::Fifo),
    ];
    files.insert(b"home/x/big".to_vec(), big.clone());
    files.insert(b"home/x/zz-link".to_vec(), big);
    files.insert(b"home/x/\xff\xfe odd\n".to_vec(), b"odd".to_vec());
    files.insert(b"home/x/empty".to_vec(), vec![]);
    let x = p.dir(x).await;
    let bare = p.dir(vec![]).await;
    let mut closed = entry(b"closed", Node::Dir { root: bare });
    closed.meta.mode = 0o500;
    let home = p.dir(vec![entry(b"x", Node::Dir { root: x }), closed]).await;
    let root = p.dir(vec![entry(b"home", Node::Dir { root: home })]).await;
    p.snapshot(0xab, "h", root).await;
    (p, files)
}

fn tiny() -> WindowLimits {
    WindowLimits { uses: 13, bytes: 70_000, small_bytes: 9_000, small_file: 3_000 }
}

async fn restore(repo: &Repository, spec: &[u8], options: Options, to: &Path) -> Summary {
    let (snapshot, root) = repo.resolve(spec, &Filter::default()).await.unwrap();
    let options = Options { root, ..options };
    let target = RealTarget::open(&host(), to, How::default()).await.unwrap();
    repo.restore(&snapshot, &options, &target, &Silent).await.unwrap()
}

fn assert_files(to: &Path, files: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let got = picture(to);
    let got_files: BTreeMap<_, _> =
        got.iter().filter(|(_, v)| v.0 == 'f').map(|(k, v)| (k.clone(), v.4.clone())).collect();
    assert!(got_files.keys().eq(files.keys()), "{:?}", got_files.keys().collect::<Vec<_>>());
    assert!(got_files == *files, "contents differ");
    for (path, (_, _, secs, nanos, _)) in &got {
        assert_eq!((*secs, *nanos), (1_700_000_000, 123_456_789), "{}", String::from_utf8_lossy(path));
    }
}

#[tokio::test]
async fn everything_comes_back_in_windows_of_any_size() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let mut pictures = Vec::new();
    for limits in [WindowLimits::default(), tiny()] {
        let dir = tempfile::tempdir().unwrap();
        let summary = restore(&repo, b"latest", Options { limits, ..Options::default() }, dir.path()).await;
        assert_eq!((summary.problems, summary.attributes_lost), (0, 0));
        assert_eq!((summary.files, summary.dirs, summary.others), (files.len() as u64, 4, 2));
        assert_eq!(summary.bytes, files.values().map(|b| b.len() as u64).sum::<u64>());
        assert_eq!(summary.windows > 1, limits == tiny());
        assert_files(dir.path(), &files);
        let all = picture(dir.path());
        assert_eq!(all[&b"home/closed"[..]].1, 0o500);
        assert_eq!(all[&b"home/x/big"[..]].1, 0o640);
        assert_eq!(all[&b"home/x/link"[..]].4, b"../nowhere/\xff");
        assert_eq!(all[&b"home/x/pipe"[..]].0, 'p');
        let inode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().ino();
        assert_eq!(inode("home/x/big"), inode("home/x/zz-link"));
        pictures.push(all);
    }
    assert!(pictures[0] == pictures[1]);
}

#[tokio::test]
async fn any_m_nodes_may_be_down_or_rotten() {
    let (p, files) = plant(200_000).await;
    let nodes = p.cluster.node_ids();
    for (a, b) in [(0, 1), (0, 3), (2, 5)] {
        p.cluster.set_down([nodes[a], nodes[b]]);
        let repo = p.repository().await;
        let dir = tempfile::tempdir().unwrap();
        let summary = restore(&repo, b"latest", Options::default(), dir.path()).await;
        assert_eq!(summary.problems, 0);
        assert_files(dir.path(), &files);
    }
    p.cluster.set_down([nodes[4]]);
    p.cluster.rot(nodes[1]);
    let (repo, dir) = (p.repository().await, tempfile::tempdir().unwrap());
    assert_eq!(restore(&repo, b"latest", Options::default(), dir.path()).await.problems, 0);
    assert_files(dir.path(), &files);
    let met = repo.met();
    assert!(met.silent.contains(&nodes[4]) && met.bad.iter().all(|(_, node)| *node == nodes[1]));
    assert!(!met.bad.is_empty());
    p.cluster.set_down([nodes[4], nodes[3]]);
    let repo = p.repository().await;
    let (snapshot, _) = repo.resolve(b"latest", &Filter::default()).await.unwrap();
    let target = RealTarget::open(&host(), dir.path(), How::default()).await.unwrap();
    let summary = repo.restore(&snapshot, &Options::default(), &target, &Silent).await.unwrap();
    assert!(summary.problems > 0, "three of six are too many");
}

#[tokio::test]
async fn a_subtree_a_single_file_and_a_selection() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let below = |prefix: &[u8]| -> BTreeMap<_, _> {
        let inside = files.iter().filter(|(k, _)| k.starts_with(prefix));
        inside.map(|(k, v)| (k[prefix.len()..].to_vec(), v.clone())).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    restore(&repo, b"abab:/home/x/deep", Options::default(), dir.path()).await;
    assert_files(dir.path(), &below(b"home/x/deep/"));

    let dir = tempfile::tempdir().unwrap();
    restore(&repo, b"latest:/home/x/deep/f007", Options::default(), dir.path()).await;
    assert_files(dir.path(), &below(b"home/x/deep/").into_iter().filter(|(k, _)| k == b"f007").collect());

    let dir = tempfile::tempdir().unwrap();
    let pattern = |text: &[u8]| Pattern::parse(text, Case::Kept).unwrap();
    let select = Select { include: vec![pattern(b"/home/x/deep")], exclude: vec![pattern(b"f00?")] };
    restore(&repo, b"latest", Options { select, ..Options::default() }, dir.path()).await;
    let wanted = |k: &[u8]| k.starts_with(b"home/x/deep/") && !k.starts_with(b"home/x/deep/f00");
    assert_files(
        dir.path(),
        &files.iter().filter(|(k, _)| wanted(k)).map(|(k, v)| (k.clone(), v.clone())).collect(),
    );
    assert!(!dir.path().join("home/closed").exists());

    let (snapshot, _) = repo.resolve(b"latest", &Filter::default()).await.unwrap();
    let target = RealTarget::open(&host(), dir.path(), How::default()).await.unwrap();
    let options = Options { root: Some(b"/home/nobody".to_vec()), ..Options::default() };
    let missing = repo.restore(&snapshot, &options, &target, &Silent).await;
    assert!(matches!(missing, Err(Error::PathMissing { .. })));
}

#[tokio::test]
async fn a_dry_run_counts_the_same_and_writes_nothing() {
    let (p, _) = plant(200_000).await;
    let repo = p.repository().await;
    let dir = tempfile::tempdir().unwrap();
    let limits = tiny();
    let mut dry =
        restore(&repo, b"latest", Options { dry_run: true, limits, ..Options::default() }, dir.path()).await;
    assert!(picture(dir.path()).is_empty());
    let from_nodes: u64 = std::mem::take(&mut dry.by_node).values().sum();
    assert_eq!(from_nodes, dry.bytes_planned, "with every node there nothing is read twice");
    assert_eq!(dry, restore(&repo, b"latest", Options { limits, ..Options::default() }, dir.path()).await);
}

#[tokio::test]
async fn existing_files_are_replaced_and_links_in_the_target_are_not_followed() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    std::fs::write(elsewhere.path().join("victim"), b"old").unwrap();
    std::fs::create_dir_all(dir.path().join("home/x")).unwrap();
    std::fs::write(dir.path().join("home/x/empty"), b"not empty").unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("victim"), dir.path().join("home/x/big")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path(), dir.path().join("home/x/deep")).unwrap();
    let summary = restore(&repo, b"latest", Options::default(), dir.path()).await;
    // The directory, everything in it, and its attributes.
    assert_eq!(summary.problems, 302);
    assert_eq!(std::fs::read(elsewhere.path().join("victim")).unwrap(), b"old");
    assert_eq!(std::fs::read_dir(elsewhere.path()).unwrap().count(), 1);
    assert!(std::fs::read(dir.path().join("home/x/big")).unwrap() == files[&b"home/x/big"[..]]);
    assert!(std::fs::symlink_metadata(dir.path().join("home/x/big")).unwrap().is_file());
    assert!(std::fs::read(dir.path().join("home/x/empty")).unwrap().is_empty());
    // Once the link is gone a second run puts everything right.
    std::fs::remove_file(dir.path().join("home/x/deep")).unwrap();
    assert_eq!(restore(&repo, b"latest", Options::default(), dir.path()).await.problems, 0);
    assert_files(dir.path(), &files);
}

#[tokio::test]
async fn hostile_trees_cost_only_themselves() {
    let mut p = Planter::new(200_000).await;
    let good = p.content(b"good", 100).await;
    let file =
        |name: &[u8], content: &Content, size| entry(name, Node::File { size, content: content.clone() });
    // A chunk shorter than the entry says, one that does not exist, and a length the chunks do not add up to.
    let id = p.chunk(PackKind::Data, b"four").await;
    let cut = Content::Inline(vec![ContentChunk { id, len: 9 }]);
    let gone = Content::Inline(vec![ContentChunk { id: ChunkId([3; 32]), len: 4 }]);
    let tree = p.chunk(PackKind::Tree, b"tree").await;
    let kind = Content::Inline(vec![ContentChunk { id: tree, len: 4 }]);
    p.chunk_as(PackKind::Data, ChunkId([4; 32]), b"liar").await;
    let liar = Content::Inline(vec![ContentChunk { id: ChunkId([4; 32]), len: 4 }]);
    // A directory whose node names an entry that leads out.
    let mut bad_node = vec![1u8, 1, 0];
    bad_node.extend(crate::format::nodes::encode(&file(b"../../evil", &good, 4)));
    let evil = p.chunk(PackKind::Tree, &bad_node).await;
    let root = p
        .dir(vec![
            entry(b"a-evil", Node::Dir { root: evil }),
            file(b"cut", &cut, 9),
            file(b"gone", &gone, 4),
            file(b"kind", &kind, 4),
            file(b"liar", &liar, 4),
            file(b"short", &good, 5),
            file(b"long", &good, 3),
            file(b"well", &good, 4),
            entry(b"lost", Node::Dir { root: ChunkId([5; 32]) }),
        ])
        .await;
    p.snapshot(1, "h", root).await;
    let repo = p.repository().await;
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("a/b");
    for limits in [WindowLimits::default(), WindowLimits { small_file: 0, ..tiny() }] {
        let summary = restore(&repo, b"latest", Options { limits, ..Options::default() }, &dir).await;
        assert_eq!(summary.problems, 8);
        let names: Vec<_> = picture(&dir).into_keys().collect();
        assert_eq!(names, [b"a-evil".to_vec(), b"lost".to_vec(), b"well".to_vec()]);
        assert!(!outer.path().join("evil").exists());
    }
    let report = repo.check(check::Options::default(), &Silent).await.unwrap();
    assert_eq!(report.verdict().unwrap_err().exit_code(), 15);
    assert_eq!(report.broken.len(), 1);
}

#[tokio::test]
async fn listing_goes_down_only_if_asked() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let (snapshot, _) = repo.resolve(b"latest", &Filter::default()).await.unwrap();
    let mut flat = Vec::new();
    repo.ls(&snapshot, b"/home/x", false, &mut |e| flat.push(e.path)).await.unwrap();
    assert_eq!(flat.len(), 7);
    assert_eq!(flat[0], b"/home/x/big");
    let mut all = Vec::new();
    repo.ls(&snapshot, b"", true, &mut |e| all.push(e.path)).await.unwrap();
    assert_eq!(all.len(), files.len() + 4 + 2);
    let mut one = Vec::new();
    repo.ls(&snapshot, b"/home/x/big", true, &mut |e| one.push(e.path)).await.unwrap();
    assert_eq!(one, [b"/home/x/big".to_vec()]);
}

#[tokio::test]
async fn a_check_names_what_is_bad_and_where() {
    let (p, _) = plant(200_000).await;
    let (repo, deep) = (p.repository().await, check::Options { read: Subset::All });
    let report = repo.check(deep, &Silent).await.unwrap();
    report.verdict().unwrap();
    assert!(report.packs > 10 && report.chunks > 400 && report.shards == report.packs * 6);
    let nodes = p.cluster.node_ids();
    p.cluster.rot(nodes[2]);
    let report = repo.check(deep, &Silent).await.unwrap();
    assert_eq!(report.verdict().unwrap_err().exit_code(), 15);
    assert_eq!(report.damaged.len() as u64, report.packs);
    assert!(report.damaged.iter().all(|d| d.readable && d.shards.len() == 1 && d.shards[0].node == "n2"));
    assert!(report.damaged.iter().all(|d| d.shards[0].trouble == check::Trouble::Corrupt));
    assert!(
        repo.check(check::Options::default(), &Silent).await.unwrap().verdict().is_ok(),
        "structure is sound"
    );
    p.cluster.set_down([nodes[0], nodes[1]]);
    let report = repo.check(deep, &Silent).await.unwrap();
    assert!(report.damaged.iter().all(|d| !d.readable && d.shards.len() == 3));
}

#[tokio::test]
async fn set_id_bits_and_modes_survive() {
    let mut p = Planter::new(200_000).await;
    let content = p.content(b"x", 10).await;
    let mut tool = entry(b"tool", Node::File { size: 1, content });
    tool.meta.mode = 0o4751;
    tool.meta.xattrs = vec![(b"user.farshore".to_vec(), b"v\0w".to_vec())];
    let root = p.dir(vec![tool]).await;
    p.snapshot(1, "h", root).await;
    let dir = tempfile::tempdir().unwrap();
    let summary = restore(&p.repository().await, b"latest", Options::default(), dir.path()).await;
    let path = dir.path().join("tool");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o4751);
    let mut value = [0u8; 16];
    match rustix::fs::getxattr(&path, "user.farshore", &mut value) {
        Ok(len) => assert_eq!(&value[..len], b"v\0w"),
        Err(_) => assert_eq!(summary.attributes_lost, 1, "this file system has none, and that is said"),
    }
}

/// `chown` takes the id -1 for "leave it": the file stays with whoever restores it, here root.
#[tokio::test]
async fn set_id_bits_are_not_given_to_another_owner() {
    let mut p = Planter::new(200_000).await;
    let content = p.content(b"x", 10).await;
    let mut tool = entry(b"tool", Node::File { size: 1, content });
    (tool.meta.uid, tool.meta.gid, tool.meta.mode) = (u32::MAX, u32::MAX, 0o6755);
    let root = p.dir(vec![tool]).await;
    p.snapshot(1, "h", root).await;
    let dir = tempfile::tempdir().unwrap();
    let summary = restore(&p.repository().await, b"latest", Options::default(), dir.path()).await;
    let mode = std::fs::metadata(dir.path().join("tool")).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755);
    assert_eq!(summary.problems, 0);
    assert!(summary.attributes_lost > 0, "and that is said");
}

fn named(name: &[u8], ino: u64, content: &Content) -> Entry {
    let mut file = entry(name, Node::File { size: 4, content: content.clone() });
    (file.meta.dev, file.meta.ino, file.meta.nlink) = (1, ino, 2);
    file
}

/// An inode number may be given to another file while a backup runs.
#[tokio::test]
async fn names_of_one_inode_with_other_contents_are_other_files() {
    let mut p = Planter::new(200_000).await;
    let (old, new) = (p.content(b"old!", 100).await, p.content(b"new!", 100).await);
    let root = p.dir(vec![named(b"a", 7, &old), named(b"b", 7, &new), named(b"c", 7, &new)]).await;
    p.snapshot(1, "h", root).await;
    let dir = tempfile::tempdir().unwrap();
    let summary = restore(&p.repository().await, b"latest", Options::default(), dir.path()).await;
    assert_eq!((summary.files, summary.problems), (3, 0));
    let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
    assert_eq!((read("a"), read("b"), read("c")), (b"old!".to_vec(), b"new!".to_vec(), b"new!".to_vec()));
    let inode = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().ino();
    assert!(inode("b") == inode("c") && inode("a") != inode("b"));
}

#[tokio::test]
async fn no_name_is_linked_to_what_a_failed_file_left_in_its_place() {
    let mut p = Planter::new(200_000).await;
    let gone = Content::Inline(vec![ContentChunk { id: ChunkId([3; 32]), len: 4 }]);
    let broken = Content::List { root: ChunkId([4; 32]) };
    let entries =
        vec![named(b"a", 7, &gone), named(b"b", 7, &gone), named(b"c", 8, &broken), named(b"d", 8, &broken)];
    let root = p.dir(entries).await;
    p.snapshot(1, "h", root).await;
    for small_file in [1_000, 0] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a"), b"before").unwrap();
        std::fs::write(dir.path().join("c"), b"before").unwrap();
        let limits = WindowLimits { small_file, ..WindowLimits::default() };
        let options = Options { limits, ..Options::default() };
        let summary = restore(&p.repository().await, b"latest", options, dir.path()).await;
        assert_eq!((summary.files, summary.problems), (0, 4));
        assert!(!dir.path().join("b").exists() && !dir.path().join("d").exists());
    }
}

#[tokio::test]
async fn a_snapshot_that_does_not_open_leaves_the_others_within_reach() {
    let (p, files) = plant(200_000).await;
    let root = p.repository().await.resolve(b"latest", &Filter::default()).await.unwrap().0.info.root;
    let mut p = p;
    let rotten = p.snapshot(0xcd, "h", root).await;
    for (key, record) in p.cluster.state().snapshots.iter_mut().filter(|(key, _)| key.1 == rotten) {
        assert_eq!(key.1, record.id);
        record.sealed[40] ^= 1;
    }
    let (repo, dir) = (p.repository().await, tempfile::tempdir().unwrap());
    restore(&repo, b"abab", Options::default(), dir.path()).await;
    assert_files(dir.path(), &files);
    for spec in [&b"cdcd"[..], b"latest"] {
        assert!(matches!(repo.resolve(spec, &Filter::default()).await, Err(Error::Corrupt { .. })));
    }
}

#[tokio::test]
async fn the_wrong_password_opens_nothing() {
    let p = Planter::new(1_000).await;
    let client = crate::client::Client::from_parts(host(), p.cluster.clone(), p.cluster.clone());
    let wrong = client.open_repository("r", "sekret").await.err().unwrap();
    assert_eq!(wrong.exit_code(), 12);
    assert_eq!(client.open_repository("q", "secret").await.err().unwrap().exit_code(), 10);
}

#[tokio::test]
async fn what_is_there_already_is_left_alone() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let dir = tempfile::tempdir().unwrap();
    for limits in [WindowLimits::default(), tiny()] {
        restore(&repo, b"latest", Options::default(), dir.path()).await;
        std::fs::write(dir.path().join("home/x/deep/f010"), b"changed").unwrap();
        std::fs::remove_file(dir.path().join("home/x/deep/f011")).unwrap();
        let again = Options { overwrite: Overwrite::IfChanged, limits, ..Options::default() };
        let summary = restore(&repo, b"latest", again, dir.path()).await;
        // The second name of the big file is made anew.
        assert_eq!((summary.files, summary.kept, summary.problems), (3, files.len() as u64 - 3, 0));
        assert!(summary.bytes_planned < 10_000);
        assert_files(dir.path(), &files);
    }
}

/// From a real directory through the whole backup and back, compared entry by entry.
#[tokio::test]
async fn a_backup_of_a_real_tree_restores_the_same() {
    use crate::backup;
    use crate::files::{RealSource, real_source::absolute};
    use farshore_core::catalogue::SnapshotKind;

    let (dir, out) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let at = |name: &[u8]| dir.path().join(std::ffi::OsStr::from_bytes(name));
    std::fs::create_dir_all(at(b"a/b/empty")).unwrap();
    let write = |name: &[u8], bytes: &[u8], mode: u32| {
        std::fs::write(at(name), bytes).unwrap();
        std::fs::set_permissions(at(name), std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for n in 0..200u64 {
        write(format!("a/f{n}").as_bytes(), &noise(n, n as usize * 61), 0o600 + n as u32 % 0o100);
    }
    write(b"a/empty", b"", 0o444);
    write(b"a/b/\xff\xfe\x01", b"odd", 0o640);
    write(b"big", &noise(7, 9 << 20), 0o644);
    write(b"zeros", &vec![0; 5 << 20], 0o644);
    std::fs::hard_link(at(b"a/f9"), at(b"a/b/second")).unwrap();
    std::os::unix::fs::symlink("../a/\u{fc}", at(b"a/b/link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        at(b"a/pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o622),
        0,
    )
    .unwrap();
    let has_xattrs =
        rustix::fs::setxattr(at(b"a/f3"), "user.farshore", &[b'v'; 600], rustix::fs::XattrFlags::empty())
            .is_ok();
    let stamp = rustix::fs::Timespec { tv_sec: -86_400, tv_nsec: 987_654_321 };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    for name in [&b"a/f1"[..], b"a/b/link", b"a/b/empty", b"a"] {
        rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
            .unwrap();
    }

    let p = Planter::new(1_000).await;
    let repo = p.repository().await;
    let options = backup::Options {
        paths: vec![absolute(dir.path().as_os_str()).unwrap()],
        kind: SnapshotKind::Full,
        host_name: "h".into(),
        user: "u".into(),
        ..backup::Options::default()
    };
    let source = Arc::new(RealSource::new(host().compute));
    let saved = repo.backup(&options, source, Arc::new(Silent)).await.unwrap();

    let nodes = p.cluster.region(1);
    p.cluster.set_down(nodes);
    let whole = restore(&repo, b"latest", Options::default(), out.path()).await;
    assert_eq!((whole.problems, whole.attributes_lost), (0, 0));
    let inside = out.path().join(dir.path().strip_prefix("/").unwrap());
    assert!(picture(dir.path()) == picture(&inside), "absolute paths below the target");
    let inode = |name: &str| std::fs::metadata(inside.join(name)).unwrap().ino();
    assert_eq!(inode("a/f9"), inode("a/b/second"));
    if has_xattrs {
        let mut value = [0u8; 1000];
        assert_eq!(rustix::fs::getxattr(inside.join("a/f3"), "user.farshore", &mut value), Ok(600));
    }

    let flat = tempfile::tempdir().unwrap();
    let spec = [saved.snapshot.unwrap().short().as_bytes(), b":", dir.path().as_os_str().as_bytes()].concat();
    let (snapshot, root) = repo.resolve(&spec, &Filter::default()).await.unwrap();
    let target =
        RealTarget::open(&host(), flat.path(), How { sparse: true, ..How::default() }).await.unwrap();
    let options = Options { root, ..Options::default() };
    repo.restore(&snapshot, &options, &target, &Silent).await.unwrap();
    assert!(picture(dir.path()) == picture(flat.path()), "the path as the root, zeros as holes");
    assert!(std::fs::metadata(flat.path().join("zeros")).unwrap().blocks() < 100);
    p.cluster.set_down([]);
    repo.check(check::Options { read: Subset::All }, &Silent).await.unwrap().verdict().unwrap();
}

fn touch(path: &Path, secs: i64) {
    let stamp = rustix::fs::Timespec { tv_sec: secs, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: stamp, last_modification: stamp };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::empty()).unwrap();
}

#[tokio::test]
async fn what_stands_in_the_target_gives_way_or_stays_as_was_asked() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let dir = tempfile::tempdir().unwrap();
    restore(&repo, b"latest", Options::default(), dir.path()).await;
    let at = |name: &str| dir.path().join("home/x/deep").join(name);
    let spoil = || {
        std::fs::write(at("f010"), b"newer").unwrap();
        std::fs::write(at("f011"), b"older").unwrap();
        touch(&at("f010"), 1_800_000_000);
        touch(&at("f011"), 1_600_000_000);
    };
    for (overwrite, stays) in [(Overwrite::Never, vec!["f010", "f011"]), (Overwrite::IfNewer, vec!["f010"])] {
        spoil();
        let options = Options { overwrite, ..Options::default() };
        let summary = restore(&repo, b"latest", options, dir.path()).await;
        assert_eq!(summary.problems, 0);
        for name in ["f010", "f011"] {
            let found = std::fs::read(at(name)).unwrap();
            let wanted = &files[format!("home/x/deep/{name}").as_bytes()];
            assert_eq!(found != *wanted, stays.contains(&name), "{overwrite:?} {name}");
        }
    }
    // Whatever the times say, bytes that are right are not fetched, and those that are not are.
    spoil();
    let big = files.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap().0;
    let big = dir.path().join(std::ffi::OsStr::from_bytes(big));
    let mut bytes = std::fs::read(&big).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&big, bytes).unwrap();
    touch(&big, 1_700_000_000);
    for limits in [WindowLimits::default(), tiny()] {
        let options = Options { limits, ..Options::default() };
        let summary = restore(&repo, b"latest", options, dir.path()).await;
        assert_eq!(summary.problems, 0);
        assert!(summary.bytes_planned < 120_000, "{}", summary.bytes_planned);
        assert_files(dir.path(), &files);
    }
}

#[tokio::test]
async fn deleting_spares_what_the_snapshot_does_not_know_about_and_what_was_not_asked_for() {
    let (p, files) = plant(20_000).await;
    let repo = p.repository().await;
    let dir = tempfile::tempdir().unwrap();
    let extra = |name: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, b"extra").unwrap();
        path
    };
    restore(&repo, b"latest", Options::default(), dir.path()).await;
    let outside = extra("home/y/kept");
    let (inside, below) = (extra("home/x/deep/extra"), extra("home/x/more/and/more"));
    let link = dir.path().join("home/x/link to outside");
    std::os::unix::fs::symlink(dir.path().join("home/y"), &link).unwrap();
    // The snapshot is of /home/x: what else is in /home is none of its business.
    let (mut snapshot, _) = repo.resolve(b"latest", &Filter::default()).await.unwrap();
    snapshot.info.paths = vec![b"/home/x".to_vec()];
    let run = async |options: Options| {
        let target = RealTarget::open(&host(), dir.path(), How::default()).await.unwrap();
        repo.restore(&snapshot, &options, &target, &Silent).await.unwrap()
    };
    let delete = Options { delete: true, ..Options::default() };
    let dry = run(Options { dry_run: true, ..delete.clone() }).await;
    assert_eq!((dry.removed, dry.problems), (3, 0));
    assert!(inside.exists() && below.exists());
    let pattern = Pattern::parse(b"extra", Case::Kept).unwrap();
    let spared = Select { include: vec![], exclude: vec![pattern] };
    assert_eq!(run(Options { select: spared, ..delete.clone() }).await.removed, 2);
    assert!(inside.exists() && !below.exists() && link.symlink_metadata().is_err() && outside.exists());
    assert_eq!(run(delete).await.removed, 1);
    assert!(!inside.exists() && outside.exists());
    std::fs::remove_dir_all(dir.path().join("home/y")).unwrap();
    restore(&repo, b"latest", Options::default(), dir.path()).await;
    assert_files(dir.path(), &files);
}

#[tokio::test]
async fn an_interrupted_restore_goes_on_within_a_large_file() {
    let (p, files) = plant(400_000).await;
    let repo = p.repository().await;
    let dir = tempfile::tempdir().unwrap();
    let (snapshot, _) = repo.resolve(b"latest", &Filter::default()).await.unwrap();
    let how = How { keep_begun: true, ..How::default() };
    let target = RealTarget::open(&host(), dir.path(), how).await.unwrap();
    let options = Options { limits: tiny(), resume: true, ..Options::default() };
    let whole: u64 = files.values().map(|bytes| bytes.len() as u64).sum();
    let mut fetched = 0;
    // Cut off after ever more of it; the last run is not.
    for events in [40, 80, 120, 100_000] {
        let stop = Arc::new(tokio::sync::Notify::new());
        let progress = StopAfter { left: AtomicU64::new(events), stop: stop.clone() };
        let before = repo.met().bytes;
        tokio::select! {
            done = repo.restore(&snapshot, &options, &target, &progress) => assert_eq!(done.unwrap().problems, 0),
            () = stop.notified() => {}
        }
        fetched += repo.met().bytes - before;
    }
    assert_files(dir.path(), &files);
    assert!(fetched < whole * 2, "{fetched} fetched of {whole}");
    let verified = repo.verify(&snapshot, &options, &target, &Silent).await.unwrap();
    assert_eq!((verified.files, verified.wrong), (files.len() as u64 - 1, 0), "one has two names");
    let spoilt = dir.path().join("home/x/deep/f010");
    let mut bytes = std::fs::read(&spoilt).unwrap();
    bytes[0] ^= 1;
    std::fs::write(&spoilt, bytes).unwrap();
    std::fs::remove_file(dir.path().join("home/x/deep/f011")).unwrap();
    assert_eq!(repo.verify(&snapshot, &options, &target, &Silent).await.unwrap().wrong, 2);
}

/// Notifies after so many events.
struct StopAfter {
    left: AtomicU64,
    stop: Arc<tokio::sync::Notify>,
}

impl Progress for StopAfter {
    fn event(&self, _: Event<'_>) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.stop.notify_one();
        }
    }
}

#[tokio::test]
async fn a_check_of_parts_reads_everything_in_turn_and_names_the_files_of_a_lost_pack() {
    let (p, files) = plant(200_000).await;
    let repo = p.repository().await;
    let run = async |read: Subset| repo.check(check::Options { read }, &Silent).await.unwrap();
    let all = run(Subset::All).await;
    assert_eq!(all.packs_read, all.packs);
    let mut parts = 0;
    for part in 1..=4 {
        parts += run(Subset::Part(part, 4)).await.packs_read;
    }
    assert_eq!(parts, all.packs, "each pack is in one part");
    let share = Share::Percent(30.0);
    let (mut next, mut read) = (PackNo(0), 0);
    for _ in 0..4 {
        let report = run(Subset::From(next, share)).await;
        next = report.next.unwrap();
        read += report.packs_read;
    }
    assert!(read >= all.packs && read < all.packs * 2, "{read} of {}", all.packs);
    assert_eq!(
        run(Subset::From(PackNo(3), Share::Bytes(u64::MAX))).await.packs_read,
        all.packs,
        "round once"
    );
    assert_eq!(run(Subset::Nothing).await.packs_read, 0);
    for bad in ["0/3", "4/3", "x", "0%", "101%", "-1%", "3/"] {
        assert!(bad.parse::<Subset>().is_err(), "{bad}");
    }
    assert_eq!("2.5%".parse(), Ok(Subset::Sample(Share::Percent(2.5))));

    // Two shards can be lost; of three, every file in the pack is named.
    let lost = p.cluster.lose_a_pack();
    let report = run(Subset::Nothing).await;
    assert_eq!((report.unreadable, report.verdict().unwrap_err().exit_code()), (1, 15));
    let named = &report.broken[0].problems;
    assert!(
        !named.is_empty()
            && named
                .iter()
                .all(|(path, why)| { files.contains_key(&path[1..]) && why.contains(&lost.short()) }),
        "{named:?}"
    );
}
