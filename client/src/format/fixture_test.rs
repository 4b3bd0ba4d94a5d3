//! What version 1 writes of each object of a repository: decoded, compared with what it is, and written again. Names of
//! chunks and places of cuts are kept too: were they to change, nothing would be found that is already there.

use super::nodes::{Form, Link, Nodes, decode, encode};
use super::*;
use crate::backup::chunk::Chunker;
use crate::crypto::slot::wrap_1;
use crate::crypto::{
    Epochs, KdfParams, MasterKey, RepoKeys, Secret, SlotNote, describe, open_slots, rewrap, wrap,
};
use crate::files::{FileTime, Meta};
use crate::fixtures::Fixtures;
use farshore_core::catalogue::{PackKind, SnapshotKind};
use farshore_core::host::Entropy;
use farshore_core::host::task::splitmix;
use farshore_core::id::{ChunkId, RepoId, SnapshotId};
use farshore_core::pack::{PackBuilder, read_table, tail_len};

const REPO: RepoId = RepoId([0x11; 16]);
const PARENT: SnapshotId = SnapshotId([0x22; 32]);
const ROOT: ChunkId = ChunkId([0x33; 32]);

/// Chance that is none: the same salts each time.
struct Counting;

impl Entropy for Counting {
    fn fill(&self, bytes: &mut [u8]) {
        bytes.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
    }
}

fn master() -> MasterKey {
    MasterKey::new(&Counting)
}
/// Another secret than the first.
fn secret(start: u8) -> MasterKey {
    struct From(u8);
    impl Entropy for From {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.iter_mut().zip(self.0..).for_each(|(byte, n)| *byte = n);
        }
    }
    MasterKey::new(&From(start))
}
fn keys() -> RepoKeys {
    master().keys(REPO)
}

fn meta() -> Meta {
    Meta {
        mode: 0o4755,
        uid: 1_000,
        gid: 100,
        user: "user".into(),
        group: "group".into(),
        mtime: FileTime { secs: -1, nanos: 999_999_999 },
        ctime: FileTime { secs: 1_700_000_000, nanos: 1 },
        atime: Some(FileTime { secs: 2, nanos: 3 }),
        ino: 4,
        dev: 5,
        nlink: 6,
        xattrs: vec![(b"user.x".to_vec(), vec![0, 255])],
    }
}

fn nodes() -> Vec<Entry> {
    let inline = Content::Inline(vec![ContentChunk { id: ROOT, len: 300 }]);
    let nodes = [
        Node::File { size: 300, content: inline },
        Node::File { size: 1 << 40, content: Content::List { root: ROOT } },
        Node::Dir { root: ROOT },
        Node::Symlink { target: b"to/\xff".to_vec() },
        Node::Fifo,
        Node::Socket,
        Node::CharDev { rdev: 259 },
        Node::BlockDev { rdev: 2_049 },
    ];
    let named = nodes.into_iter().zip(0u8..);
    named
        .map(|(node, n)| Entry { name: vec![b'a' + n, 0xff], node, meta: meta(), inconsistent: n == 1 })
        .collect()
}

fn stats() -> SnapshotStats {
    SnapshotStats {
        files_new: 1,
        files_changed: 2,
        files_unmodified: 3,
        dirs_new: 4,
        dirs_changed: 5,
        dirs_unmodified: 6,
        others: 7,
        total_files: 8,
        total_bytes: 9,
        bytes_read: 10,
        data_added: 11,
        tree_added: 12,
        data_blobs: 13,
        tree_blobs: 14,
        bytes_packed: 15,
        bytes_sent: 16,
        unreadable: 17,
        inconsistent: 18,
    }
}

fn info() -> SnapshotInfo {
    SnapshotInfo {
        time_ms: 1_700_000_000_000,
        utc_offset_min: Some(-90),
        host: "here".into(),
        user: "me".into(),
        paths: vec![b"/a\xff".to_vec()],
        tags: vec!["t".into()],
        root: ROOT,
        kind: SnapshotKind::Differential,
        parent: Some(PARENT),
        base: Some(PARENT),
        program: "farshore 0.1.0".into(),
        scan_start_ms: 2,
        scan_end_ms: 3,
        stats: stats(),
        unreadable: vec![UnreadablePath { path: b"/b".to_vec(), why: "no".into() }],
    }
}

/// Bytes that no compressor shortens and that are the same everywhere.
fn noise(len: u64) -> Vec<u8> {
    (0..len).map(|n| splitmix(7, n) as u8).collect()
}

#[test]
fn objects_of_version_1_are_read_and_written_as_ever() {
    let (keys, mut fixtures) = (keys(), Fixtures::of("objects-v1"));

    let slot = fixtures.kept("key slot", &wrap_1(&master(), b"passphrase", KdfParams::CHEAPEST, &Counting));
    assert!(open_slots(REPO, &[slot], &Secret::passphrase("passphrase")).unwrap().root == master());

    let config = RepoConfig { zstd_level: 7, ..RepoConfig::default() };
    let sealed = fixtures.kept("configuration", &config.seal(&keys, &Counting));
    assert_eq!(RepoConfig::open(&keys, &sealed).unwrap(), config);

    let sealed = fixtures.kept("snapshot", &info().seal(&keys, &PARENT, &Counting).unwrap());
    assert_eq!(SnapshotInfo::open(&keys, &PARENT, &sealed).unwrap(), info());

    let (mut dir, mut chunks) = (DirBuilder::new(keys.clone()), Vec::new());
    nodes().iter().for_each(|entry| dir.push(entry, &mut chunks).unwrap());
    let root = dir.finish(&mut chunks);
    let leaf = fixtures.kept("leaf of a directory", &chunks[0].plain);
    assert_eq!(decode(&leaf, Form::Dir, Some(0)).unwrap(), (0, Nodes::Leaf(nodes())));
    assert_eq!(
        fixtures.kept("name of that leaf", root.id.as_bytes()),
        keys.chunk_id(PackKind::Tree, &leaf).0
    );

    let link = Link { first: b"a\xff".to_vec(), weight: 300, id: ROOT };
    let above = [&[super::nodes::NODE_VERSION, 1, 1], encode(&link).as_slice()].concat();
    let above = fixtures.kept("link node of a directory", &above);
    assert_eq!(decode::<Entry>(&above, Form::Dir, Some(1)).unwrap(), (1, Nodes::Links(vec![link])));

    fixtures.end();
}

#[test]
fn key_slots_of_version_2_are_read_and_written_as_ever() {
    let mut fixtures = Fixtures::of("slots-v2");
    let note = SlotNote { user: "me".into(), host: "here".into(), created_ms: 1_700_000_000_000 };
    let (key_file, _) = Secret::new_key_file(&Counting);
    let (recovery_key, groups) = Secret::new_recovery_key(&Counting);
    fixtures.kept("recovery key on paper", groups.join("-").as_bytes());
    let secrets = [Secret::passphrase("passphrase"), key_file, recovery_key];
    for secret in &secrets {
        let slot = wrap(REPO, &master(), secret, KdfParams::CHEAPEST, &note, &Counting).unwrap();
        let slot = fixtures.kept(secret.kind().word(), &slot);
        assert!(open_slots(REPO, std::slice::from_ref(&slot), secret).unwrap().root == master());
        assert_eq!(describe(REPO, &master(), &[slot])[0].note, Some(note.clone()));
    }
    fixtures.end();
}

#[test]
fn packs_and_seals_of_version_1_are_read_as_ever() {
    let (keys, mut fixtures) = (keys(), Fixtures::of("packs-v1"));
    let mut pack = PackBuilder::new(PackKind::Data, 1 << 16);
    let plains = [noise(40), vec![7; 3_000]];
    for (plain, mode) in plains.iter().zip([Compression::Off, Compression::Level(3)]) {
        let id = keys.chunk_id(PackKind::Data, plain);
        let sealed = Sealer::new(mode).seal(&keys, PackKind::Data, &id, plain, [9; 16]);
        pack.add(id, &sealed);
    }
    // What a newer zstd makes of a chunk may differ; what an older one made must open.
    let pack = fixtures.readable("pack", &pack.close().bytes);
    let tail = &pack[pack.len() - tail_len(2) as usize..];
    let table = read_table(tail, pack.len() as u64).unwrap();
    assert_eq!(table.kind, PackKind::Data);
    for (span, plain) in table.chunks.iter().zip(&plains) {
        assert_eq!(span.id, keys.chunk_id(PackKind::Data, plain));
        let sealed = &pack[span.offset as usize..][..span.len as usize];
        assert_eq!(unseal(&keys, PackKind::Data, &span.id, sealed).unwrap(), plain);
    }
    assert_eq!(table.chunks.len(), 2);
    fixtures.end();
}

/// What is sealed after the keys were rotated, and the entry that says with which.
#[test]
fn seals_of_later_epochs_are_read_and_written_as_ever() {
    let (root, mut fixtures) = (MasterKey::new(&Counting), Fixtures::of("epochs-v1"));
    let epochs =
        Epochs::first(master()).and_another(secret(5)).and_then(|e| e.and_another(secret(6))).unwrap();
    let ring = fixtures.kept("key ring", &epochs.seal(REPO, &root, &Counting));
    assert!(Epochs::open(REPO, &root, &[ring]) == Ok(epochs.clone()));
    let keys = RepoKeys::of(REPO, &epochs);
    let sealed = fixtures.kept("snapshot", &info().seal(&keys, &PARENT, &Counting).unwrap());
    assert_eq!(SnapshotInfo::open(&keys, &PARENT, &sealed).unwrap(), info());
    let (plain, id) = (noise(40), keys.chunk_id(PackKind::Data, &noise(40)));
    let today = Sealer::new(Compression::Off).seal(&keys, PackKind::Data, &id, &plain, [9; 16]);
    let sealed = fixtures.kept("chunk", &today);
    assert_eq!(unseal(&keys, PackKind::Data, &id, &sealed).unwrap(), plain);
    let (owner, file) = (Secret::passphrase("owner"), Secret::key_file(&[4; 32]).unwrap());
    let note = SlotNote { user: "me".into(), host: "here".into(), created_ms: 1_700_000_000_000 };
    let slots = [&owner, &file]
        .map(|secret| wrap(REPO, &master(), secret, KdfParams::CHEAPEST, &note, &Counting).unwrap());
    let by = open_slots(REPO, &slots, &file).unwrap();
    let renewed = rewrap(REPO, &slots, &by, &secret(7), &note, &Counting).unwrap();
    let kept = fixtures.kept("slot wrapped for its public key", &renewed[0]);
    assert!(open_slots(REPO, &[kept], &owner).unwrap().root == secret(7));
    fixtures.end();
}

#[test]
fn names_and_cuts_never_change() {
    let (keys, mut fixtures) = (keys(), Fixtures::of("names-v1"));
    fixtures.kept("data chunk", keys.chunk_id(PackKind::Data, b"plain").as_bytes());
    fixtures.kept("tree chunk", keys.chunk_id(PackKind::Tree, b"plain").as_bytes());
    fixtures.kept("tag", &keys.tag("tag"));
    fixtures.kept("group", &keys.group("host", &[b"/b".to_vec(), b"/a".to_vec()]));
    fixtures.kept("cut of a tree", &keys.cut_hash(1, b"name").to_be_bytes());

    let (mut bytes, mut at, mut cuts) = (noise(1 << 20), 0, Vec::new());
    bytes.extend_from_slice(&[0; 200_000]);
    let sizes = config::ChunkSizes { min: 16 << 10, mean: 64 << 10, max: 128 << 10 };
    let mut chunker = Chunker::new(keys.gear_table().into(), sizes);
    while let Some(len) = chunker.cut(&bytes[at..]) {
        at += len;
        cuts.extend_from_slice(&(at as u32).to_be_bytes());
    }
    assert!(cuts.len() > 4 * 8, "{} cuts", cuts.len() / 4);
    fixtures.kept("cuts of noise and zeros", &cuts);
    fixtures.end();
}
