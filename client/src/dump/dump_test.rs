//! Dumps of trees planted by hand, read back by other readers' rules.

use super::{Archive, Summary, WindowLimits};
use crate::client::Repository;
use crate::error::{Error, Result};
use crate::files::FileTime;
use crate::format::{Content, ContentChunk, Entry, Node};
use crate::list::Filter;
use crate::progress::{Event, Progress};
use crate::testing::{Planter, entry};
use farshore_core::catalogue::PackKind;
use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::sync::Mutex;

fn noise(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| farshore_core::host::task::splitmix(seed, n * 0x9e37_79b9) as u8).collect()
}

/// Keeps the notices.
#[derive(Default)]
struct Notices(Mutex<Vec<String>>);

impl Progress for Notices {
    fn event(&self, event: Event<'_>) {
        if let Event::Notice { text } = event {
            self.0.lock().unwrap().push(text.into());
        }
    }
}

struct Dumped {
    bytes: Vec<u8>,
    result: Result<Summary>,
    notices: Vec<String>,
}

async fn dump(
    repository: &Repository,
    spec: &str,
    path: &[u8],
    archive: Archive,
    limits: WindowLimits,
) -> Dumped {
    let (snapshot, root) = repository.resolve(spec.as_bytes(), &Filter::default()).await.unwrap();
    let dump = repository.dump(&snapshot, root.as_deref(), path).await.unwrap();
    let (mut bytes, notices) = (Vec::new(), Notices::default());
    let result = dump.with_limits(limits).run(archive, &mut bytes, &notices).await;
    Dumped { bytes, result, notices: notices.0.into_inner().unwrap() }
}

const TINY: WindowLimits = WindowLimits { pieces: 3, bytes: 9_000 };

/// Everything a snapshot can hold, below `/home/x`.
async fn plant() -> (Planter, Vec<u8>) {
    let mut p = Planter::new(200_000).await;
    let mut many = Vec::new();
    for n in 0..40u64 {
        let bytes = noise(n, (n as usize * 137) % 3_000);
        let content = p.content(&bytes, 700).await;
        many.push(entry(format!("f{n:02}").as_bytes(), Node::File { size: bytes.len() as u64, content }));
    }
    let many = p.dir(many).await;
    let big = noise(7, 400_000);
    let content = p.content(&big, 5_000).await;
    assert!(matches!(content, Content::List { .. }), "long enough for a list of its own");
    let mut linked = entry(b"big", Node::File { size: big.len() as u64, content });
    (linked.meta.nlink, linked.meta.dev, linked.meta.ino, linked.meta.mode) = (2, 1, 77, 0o4750);
    linked.meta.xattrs = vec![(b"user.a=b%".to_vec(), b"\0\xffv=\n".to_vec())];
    let second = Entry { name: b"second".to_vec(), ..linked.clone() };
    let same = p.content(&noise(1, 500), 100).await;
    let mut old = entry(&[b'n'; 150], Node::File { size: 500, content: same.clone() });
    old.meta.mtime = FileTime { secs: -2, nanos: 250_000_000 };
    (old.meta.uid, old.meta.gid) = (4_000_000_000, 3_000_000);
    old.meta.user = "a name that is too long for its field".into();
    let odd = [&b"\xff\xfe odd\n"[..], &[b'o'; 120]].concat();
    let twice = p.content(&[7; 4_000], 1_000).await;
    let inside = p.content(b"inside", 100).await;
    let inside = p.dir(vec![entry(b"inside", Node::File { size: 6, content: inside })]).await;
    let x = p
        .dir(vec![
            entry(b"odd \xfe", Node::Dir { root: inside }),
            entry(b"many", Node::Dir { root: many }),
            linked,
            second,
            old,
            entry(&odd, Node::File { size: 500, content: same }),
            entry(b"short \xff", Node::File { size: 4_000, content: twice }),
            entry(b"empty", Node::File { size: 0, content: Content::Inline(vec![]) }),
            entry(b"link", Node::Symlink { target: [&b"../\xff/"[..], &[b'l'; 200]].concat() }),
            entry(b"pipe", Node::Fifo),
            entry(b"socket", Node::Socket),
            entry(b"null", Node::CharDev { rdev: rustix::fs::makedev(1, 3) }),
            entry(b"disk", Node::BlockDev { rdev: rustix::fs::makedev(259, 70_000) }),
        ])
        .await;
    let home = p.dir(vec![entry(b"x", Node::Dir { root: x })]).await;
    let root = p.dir(vec![entry(b"home", Node::Dir { root: home })]).await;
    p.snapshot(0xaa, "h", root).await;
    (p, big)
}

/// Kind, mode, owner, mtime, contents or target, attributes.
type Seen = (tar::EntryType, u32, u64, String, Vec<u8>, BTreeMap<String, Vec<u8>>);

/// Records of a PAX header, whose values may hold anything.
fn read_pax(mut bytes: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    while let Some(space) = bytes.iter().position(|b| *b == b' ') {
        let len: usize = str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        let equals = bytes.iter().position(|b| *b == b'=').unwrap();
        let key = String::from_utf8(bytes[space + 1..equals].to_vec()).unwrap();
        assert_eq!(bytes[len - 1], b'\n');
        assert!(all.insert(key, bytes[equals + 1..len - 1].to_vec()).is_none());
        bytes = &bytes[len..];
    }
    assert!(bytes.is_empty());
    all
}

fn read_tar(bytes: &[u8]) -> BTreeMap<Vec<u8>, Seen> {
    let (mut all, mut pax) = (BTreeMap::new(), BTreeMap::new());
    for item in tar::Archive::new(bytes).entries().unwrap().raw(true) {
        let mut item = item.unwrap();
        let header = item.header().clone();
        let mut contents = Vec::new();
        item.read_to_end(&mut contents).unwrap();
        if header.entry_type() == tar::EntryType::XHeader {
            pax = read_pax(&contents);
            continue;
        }
        let pax = std::mem::take(&mut pax);
        let bytes = |key: &str, field: Option<Vec<u8>>| pax.get(key).cloned().or(field);
        let name = bytes("path", Some(header.path_bytes().into_owned())).unwrap();
        let target = bytes("linkpath", header.link_name_bytes().map(|to| to.into_owned()));
        let text = |key: &str| pax.get(key).map(|v| String::from_utf8(v.clone()).unwrap());
        let uid = text("uid").map_or_else(|| header.uid().unwrap(), |uid| uid.parse().unwrap());
        let mtime = text("mtime").unwrap_or_else(|| header.mtime().unwrap().to_string());
        let contents = target.unwrap_or(contents);
        let seen = (header.entry_type(), header.mode().unwrap(), uid, mtime, contents, pax);
        assert!(all.insert(name, seen).is_none());
    }
    all
}

#[tokio::test]
async fn a_tar_holds_everything_in_order_whatever_the_windows() {
    let (p, big) = plant().await;
    let repository = p.repository().await;
    let whole = dump(&repository, "latest", b"/", Archive::Tar, WindowLimits::default()).await;
    let tiny = dump(&repository, "latest", b"/", Archive::Tar, TINY).await;
    assert!(whole.bytes == tiny.bytes, "windows are not seen from outside");
    assert_eq!(tiny.result.unwrap(), whole.result.as_ref().unwrap().clone());
    let summary = whole.result.unwrap();
    assert_eq!((summary.files, summary.dirs, summary.others, summary.skipped), (47, 4, 4, 1));
    assert_eq!(whole.notices.len(), 1);
    assert!(whole.notices[0].contains("home/x/socket"), "{:?}", whole.notices);
    assert!(whole.bytes.len().is_multiple_of(512) && whole.bytes.ends_with(&[0; 1_024]));

    let seen = read_tar(&whole.bytes);
    assert_eq!(seen.len(), 55);
    let of = |name: &[u8]| &seen[&[&b"home/x/"[..], name].concat()];
    assert_eq!((seen[&b"home/"[..]].0, of(b"many/").1), (tar::EntryType::Directory, 0o755));
    let first = of(b"big");
    assert_eq!(
        (first.0, first.1, first.3.as_str()),
        (tar::EntryType::Regular, 0o4750, "1700000000.123456789")
    );
    assert!(first.4 == big);
    assert_eq!(first.5["SCHILY.xattr.user.a%3Db%25"], b"\0\xffv=\n");
    assert_eq!((of(b"second").0, &of(b"second").4[..]), (tar::EntryType::Link, &b"home/x/big"[..]));
    let old = of(&[b'n'; 150]);
    assert_eq!((old.2, old.3.as_str(), &old.4), (4_000_000_000, "-1.750000000", &noise(1, 500)));
    assert_eq!(old.5["gid"], b"3000000");
    assert_eq!(old.5["uname"], b"a name that is too long for its field");
    let odd = of(&[&b"\xff\xfe odd\n"[..], &[b'o'; 120]].concat());
    assert_eq!((&odd.5["hdrcharset"][..], &odd.4), (&b"BINARY"[..], &noise(1, 500)));
    assert!(!of(b"short \xff").5.contains_key("hdrcharset"), "it fits its field, which is bytes");
    assert_eq!(of(b"short \xff").4, [7; 4_000], "the same chunk four times");
    assert_eq!(of(b"link").4, [&b"../\xff/"[..], &[b'l'; 200]].concat());
    assert_eq!((of(b"pipe").0, of(b"empty").4.len()), (tar::EntryType::Fifo, 0));
    assert_eq!((of(b"null").0, of(b"disk").0), (tar::EntryType::Char, tar::EntryType::Block));
    for n in 0..40u64 {
        let bytes = noise(n, (n as usize * 137) % 3_000);
        assert!(of(format!("many/f{n:02}").as_bytes()).4 == bytes, "file {n}");
    }
}

#[tokio::test]
async fn names_begin_below_the_root_that_was_given_and_files_are_their_bytes() {
    let (p, big) = plant().await;
    let repository = p.repository().await;
    for (spec, path, first) in [
        ("latest", &b"/home/x/many"[..], &b"home/x/many/f00"[..]),
        ("latest:/home", b"x/many/", b"x/many/f00"),
        ("latest:/home/x/many", b"/", b"f00"),
    ] {
        let dumped = dump(&repository, spec, path, Archive::Tar, TINY).await;
        assert_eq!(dumped.result.unwrap().files, 40);
        let seen = read_tar(&dumped.bytes);
        assert_eq!(seen.keys().next().unwrap(), first);
    }
    for archive in [Archive::Tar, Archive::Zip] {
        let file = dump(&repository, "latest:/home", b"x/second", archive, TINY).await;
        assert!(file.result.unwrap().files == 1 && file.bytes == big);
        let empty = dump(&repository, "latest", b"/home/x/empty", archive, TINY).await;
        assert!(empty.result.is_ok() && empty.bytes.is_empty());
    }
    let (snapshot, _) = repository.resolve(b"latest", &Filter::default()).await.unwrap();
    for (path, why) in
        [(&b"/home/x/link"[..], "neither"), (b"/home/x/pipe", "neither"), (b"/home/y", "has no")]
    {
        let error = repository.dump(&snapshot, None, path).await.err().unwrap();
        assert!(error.to_string().contains(why), "{error}");
    }
    assert!(repository.dump(&snapshot, None, b"/home/../etc").await.is_err());
}

#[tokio::test]
async fn a_zip_holds_files_directories_and_links() {
    let (p, big) = plant().await;
    let repository = p.repository().await;
    let dumped = dump(&repository, "latest:/home/x", b"/", Archive::Zip, TINY).await;
    let summary = dumped.result.unwrap();
    assert_eq!((summary.files, summary.dirs, summary.others, summary.skipped), (47, 2, 1, 4));
    let mut zip = zip::ZipArchive::new(Cursor::new(dumped.bytes)).unwrap();
    let mut seen = BTreeMap::new();
    for at in 0..zip.len() {
        let mut item = zip.by_index(at).unwrap();
        let (name, mode) = (item.name_raw().to_vec(), item.unix_mode().unwrap());
        assert_eq!(item.is_dir(), name.ends_with(b"/"));
        let mut contents = Vec::new();
        item.read_to_end(&mut contents).unwrap();
        seen.insert(name, (mode, contents));
    }
    assert_eq!(seen.len(), 50);
    assert_eq!(seen[&b"big"[..]].0, 0o100_750, "this reader clears set-id bits");
    assert!(seen[&b"big"[..]].1 == big && seen[&b"second"[..]].1 == big);
    assert_eq!(seen[&b"many/"[..]], (0o040_755, vec![]));
    assert_eq!(seen[&b"odd \xfe/"[..]].0 & 0o7777, 0o755);
    assert_eq!(seen[&b"odd \xfe/inside"[..]].1, b"inside");
    assert_eq!(seen[&b"link"[..]], (0o120_644, [&b"../\xff/"[..], &[b'l'; 200]].concat()));
    assert_eq!(seen[&b"short \xff"[..]].1, [7; 4_000]);
    assert_eq!(seen[&b"many/f03"[..]].1, noise(3, 411));
}

#[tokio::test]
async fn the_first_error_ends_it_and_names_the_path() {
    let mut p = Planter::new(100_000).await;
    let good = p.content(&noise(1, 2_000), 500).await;
    let unknown =
        Content::Inline(vec![ContentChunk { id: p.keys.chunk_id(PackKind::Data, b"gone"), len: 4 }]);
    let long = p.content(&noise(2, 1_000), 500).await;
    let other = p.chunk(PackKind::Data, b"other").await;
    for (name, content, size) in [
        (&b"gone"[..], unknown, 4),
        (b"long", long, 999),
        (b"length", Content::Inline(vec![ContentChunk { id: other, len: 6 }]), 6),
    ] {
        let before = entry(b"a", Node::File { size: 2_000, content: good.clone() });
        let bad = entry(name, Node::File { size, content });
        let after = entry(b"z", Node::File { size: 2_000, content: good.clone() });
        let root = p.dir(vec![before, bad, after]).await;
        p.snapshot(name[1], "h", root).await;
        let repository = p.repository().await;
        let spec = farshore_core::id::SnapshotId([name[1]; 32]).to_string();
        for archive in [Archive::Tar, Archive::Zip] {
            let dumped = dump(&repository, &spec, b"/", archive, TINY).await;
            let error = dumped.result.unwrap_err();
            assert!(matches!(&error, Error::At { path, .. } if path.as_bytes() == name), "{error}");
            assert!(!dumped.bytes.ends_with(&[0; 1_024]), "an archive that is cut short must not look whole");
            assert!(zip::ZipArchive::new(Cursor::new(dumped.bytes)).is_err());
        }
    }
}
