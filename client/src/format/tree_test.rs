//! Directories and contents as chunked trees: round trips, damage, and the cost of a change.

use super::content::{CONTENT_INLINE_MAX, Content, ContentBuilder, ContentChunk, ContentIter};
use super::nodes::{ChunkSource, Form, LEVELS_MAX, NewChunk, Nodes, Root, decode, encode};
use super::tree::{DirBuilder, DirIter, Entry, Node, lookup, name_is_sound};
use crate::crypto::{MasterKey, RepoKeys};
use crate::error::{Error, Result};
use crate::files::{FileTime, Meta};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::real::OsEntropy;
use farshore_core::id::{ChunkId, RepoId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

struct Memory(BTreeMap<ChunkId, Bytes>);

#[async_trait]
impl ChunkSource for Memory {
    async fn chunk(&self, id: &ChunkId) -> Result<Bytes> {
        self.0.get(id).cloned().ok_or(Error::corrupt("chunk", "absent"))
    }
}

fn memory(chunks: &[NewChunk]) -> Arc<Memory> {
    Arc::new(Memory(chunks.iter().map(|c| (c.id, c.plain.clone())).collect()))
}

fn keys() -> RepoKeys {
    MasterKey::new(&OsEntropy).keys(RepoId([1; 16]))
}

fn block<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn entry(name: Vec<u8>, mark: u64) -> Entry {
    let content = Content::Inline(vec![ContentChunk { id: ChunkId([mark as u8; 32]), len: mark as u32 }]);
    let meta = Meta {
        mode: 0o644,
        user: "root".into(),
        mtime: FileTime { secs: -(mark as i64), nanos: 1 },
        ino: mark,
        xattrs: vec![(b"user.x".to_vec(), vec![0, 255])],
        ..Meta::default()
    };
    Entry { name, node: Node::File { size: mark, content }, meta, inconsistent: false }
}

fn build(keys: &RepoKeys, entries: &[Entry]) -> (Root, Vec<NewChunk>) {
    let (mut builder, mut chunks) = (DirBuilder::new(keys.clone()), Vec::new());
    entries.iter().for_each(|entry| builder.push(entry, &mut chunks).unwrap());
    (builder.finish(&mut chunks), chunks)
}

async fn read_all(source: Arc<Memory>, root: ChunkId) -> Result<Vec<Entry>> {
    let (mut iter, mut entries) = (DirIter::new(source, root), Vec::new());
    while let Some(entry) = iter.next().await? {
        entries.push(entry);
    }
    Ok(entries)
}

fn numbered(count: u64) -> Vec<Entry> {
    (0..count).map(|n| entry(format!("entry-{n:08}").into_bytes(), n)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn a_directory_reads_back_and_every_name_is_found(
        names in proptest::collection::btree_set("[^/\0]{1,40}", 0..400), repeat in 1usize..4,
    ) {
        let keys = keys();
        let names: BTreeSet<Vec<u8>> = names.iter().map(|n| n.repeat(repeat).into_bytes()).collect();
        let names: Vec<Vec<u8>> = names.into_iter().filter(|n| name_is_sound(n)).collect();
        let entries: Vec<Entry> = names.iter().enumerate().map(|(n, name)| entry(name.clone(), n as u64)).collect();
        let (root, chunks) = build(&keys, &entries);
        prop_assert_eq!(root.weight, entries.len() as u64);
        let memory = memory(&chunks);
        prop_assert_eq!(&block(read_all(memory.clone(), root.id)).unwrap(), &entries);
        for wanted in &entries {
            let found = block(lookup(&*memory, root.id, &wanted.name)).unwrap();
            prop_assert_eq!(found.as_ref(), Some(wanted));
        }
        prop_assert_eq!(block(lookup(&*memory, root.id, b"no/such")).unwrap(), None);
        prop_assert_eq!(build(&keys, &entries).0, root, "the same entries make the same tree");
    }

    #[test]
    fn damaged_nodes_are_an_error_or_sound_entries_but_never_a_panic(at: usize, bit in 0u8..8, cut: bool) {
        let (root, chunks) = build(&keys(), &numbered(20));
        let mut bytes = chunks[0].plain.to_vec();
        let at = at % bytes.len();
        if cut { bytes.truncate(at) } else { bytes[at] ^= 1 << bit }
        let memory = Memory(BTreeMap::from([(root.id, bytes.into())]));
        if let Ok(entries) = block(read_all(Arc::new(memory), root.id)) {
            prop_assert!(entries.iter().all(|entry| name_is_sound(&entry.name)));
        }
    }

    #[test]
    fn a_file_of_any_number_of_chunks_reads_back(count in 0usize..3_000, seed: u64) {
        let (mut builder, mut chunks) = (ContentBuilder::new(keys()), Vec::new());
        let mut id = [0; 32];
        let list: Vec<ContentChunk> = (0..count as u64).map(|n| {
            id[..8].copy_from_slice(&farshore_core::host::task::splitmix(seed, n).to_le_bytes());
            ContentChunk { id: ChunkId(id), len: n as u32 + 1 }
        }).collect();
        list.iter().for_each(|chunk| builder.push(*chunk, &mut chunks));
        prop_assert_eq!(builder.size(), list.iter().map(|c| u64::from(c.len)).sum::<u64>());
        let content = builder.finish(&mut chunks);
        prop_assert_eq!(matches!(content, Content::Inline(_)), count <= CONTENT_INLINE_MAX);
        let mut iter = ContentIter::new(memory(&chunks), &content);
        let (mut offset, mut found, mut visited) = (0, Vec::new(), BTreeSet::new());
        while let Some(placed) = block(iter.next()).unwrap() {
            prop_assert_eq!(placed.offset, offset);
            offset += u64::from(placed.len);
            found.push(ContentChunk { id: placed.id, len: placed.len });
            visited.extend(iter.take_visited());
        }
        prop_assert_eq!(found, list);
        let nodes: BTreeSet<ChunkId> = chunks.iter().map(|c| c.id).collect();
        prop_assert_eq!(visited, nodes, "a file needs every node of its list");
    }
}

#[test]
fn a_change_in_a_large_directory_makes_few_new_chunks() {
    let (keys, mut entries) = (keys(), numbered(50_000));
    let (before, chunks) = build(&keys, &entries);
    assert!(before.level >= 1 && chunks.len() > 200, "{} chunks, level {}", chunks.len(), before.level);
    let known: BTreeSet<ChunkId> = chunks.iter().map(|c| c.id).collect();
    let mean = chunks.iter().map(|c| c.plain.len()).sum::<usize>() / chunks.len();
    assert!((8 << 10..40 << 10).contains(&mean), "mean node {mean}");
    let changes: [fn(&mut Vec<Entry>); 3] = [
        |e| e[25_000].meta.mode = 0,
        |e| e.insert(10_001, entry(b"entry-00010000x".to_vec(), 7)),
        |e| drop(e.remove(40_000)),
    ];
    for change in changes {
        change(&mut entries);
        let new = build(&keys, &entries).1.iter().filter(|c| !known.contains(&c.id)).count();
        assert!((1..=12).contains(&new), "{new} new chunks");
    }
}

#[test]
fn names_that_could_lead_elsewhere_are_refused_when_written_and_when_read() {
    let keys = keys();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 5_000]] {
        let bad = entry(name.to_vec(), 1);
        assert!(DirBuilder::new(keys.clone()).push(&bad, &mut Vec::new()).is_err());
        let node = [&[1, 1, 0][..], &encode(&bad)].concat();
        let root = ChunkId([0; 32]);
        let memory = Arc::new(Memory(BTreeMap::from([(root, node.into())])));
        assert!(block(read_all(memory, root)).is_err(), "{name:?}");
    }
    let mut builder = DirBuilder::new(keys);
    builder.push(&entry(b"b".to_vec(), 1), &mut Vec::new()).unwrap();
    assert!(builder.push(&entry(b"b".to_vec(), 1), &mut Vec::new()).is_err(), "twice the same name");
    assert!(builder.push(&entry(b"a".to_vec(), 1), &mut Vec::new()).is_err(), "out of order");
}

#[test]
fn nodes_of_wrong_version_form_or_level_are_refused() {
    let good = [1, 1, 0];
    assert_eq!(decode::<Entry>(&good, Form::Dir, None).unwrap(), (0, Nodes::Leaf(Vec::new())));
    for bad in [&[2, 1, 0][..], &[1, 2, 0], &[1, 1, LEVELS_MAX + 1], &[1, 1], &[], &[1, 1, 0, 0]] {
        assert!(decode::<Entry>(bad, Form::Dir, None).is_err(), "{bad:?}");
    }
    assert!(decode::<Entry>(&good, Form::Dir, Some(1)).is_err(), "its parent said it was a link node");
    assert!(decode::<Entry>(&[1, 1, 3], Form::Dir, Some(2)).is_err(), "a circle would need this");
}

#[test]
fn a_tree_of_many_levels_reads_back() {
    // Long names make link nodes large, so that some thousand entries need several levels.
    let long = |n: u64| entry(format!("{n:08}{}", "x".repeat(4_000)).into_bytes(), n);
    let entries: Vec<Entry> = (0..8_000).map(long).collect();
    let (root, chunks) = build(&keys(), &entries);
    assert!(root.level >= 2, "level {}", root.level);
    let memory = memory(&chunks);
    assert_eq!(block(read_all(memory.clone(), root.id)).unwrap().len(), 8_000);
    let found = block(lookup(&*memory, root.id, &entries[3_210].name)).unwrap();
    assert_eq!(found.as_ref(), Some(&entries[3_210]));
}
