//! What every store behind the Kv seam must do, as calls that panic on the first difference. Run on both engines here
//! and on the simulator's store there. Nothing in it knows which store it drives.

use farshore_core::host::kv::{Kv, KvError, KvOp, KvPair, KvRead, Table};
use farshore_core::host::task::splitmix;
use farshore_core::limits::KV_KEY_BYTES_MAX;
use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

/// What the store under test promises beyond the common part.
#[derive(Clone, Copy)]
pub struct Traits {
    /// `freeze` works; otherwise it must answer [`KvError::Unsupported`].
    pub freezes: bool,
}

/// Runs the whole suite. `open` opens the one store named by its number, creating it if there is none; the suite
/// drops its handle before it opens the same number again.
///
/// # Panics
/// On the first difference between the store and its contract.
pub async fn run<F: Future<Output = Arc<dyn Kv>>>(traits: Traits, open: impl Fn(u32) -> F) {
    reads(open(0).await.as_ref());
    bounds(open(1).await.as_ref());
    batches(open(2).await.as_ref());
    durable(&open, 3).await;
    frozen(open(4).await.as_ref(), traits);
    model(&open, 5, traits).await;
    prefix(&open, 6).await;
    concurrent(open(7).await).await;
}

fn put(table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> KvOp {
    KvOp::Put(table, key.into(), value.into())
}

fn all(store: &(impl KvRead + ?Sized), table: Table) -> Vec<KvPair> {
    store.scan(table, &[], &[0xff; KV_KEY_BYTES_MAX + 1], usize::MAX).expect("scan a table")
}

fn reads(store: &dyn Kv) {
    assert_eq!(store.get(0, b"a").unwrap(), None, "a table never written is empty");
    assert_eq!(all(store, 9), vec![]);
    let keys: [&[u8]; 7] = [b"b", b"a", b"ab", b"\x00", b"\xff\xff", b"a\x00", b"c"];
    store.write(keys.iter().map(|key| put(1, *key, [b"=".as_slice(), key].concat())).collect()).unwrap();
    let mut sorted = keys.to_vec();
    sorted.sort();
    assert_eq!(
        all(store, 1).iter().map(|(key, _)| key.as_slice()).collect::<Vec<_>>(),
        sorted,
        "keys sort as bytes"
    );
    assert_eq!(store.get(1, b"ab").unwrap(), Some(b"=ab".to_vec()));
    assert_eq!(store.get(2, b"ab").unwrap(), None, "tables are apart");
    assert_eq!(all(store, 0), vec![]);
    assert_eq!(all(store, 2), vec![]);

    let scan = |from: &[u8], to: &[u8], limit| -> Vec<Vec<u8>> {
        store.scan(1, from, to, limit).unwrap().into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(
        scan(b"a", b"b", 9),
        [b"a".to_vec(), b"a\x00".to_vec(), b"ab".to_vec()],
        "from is in, to is out"
    );
    assert_eq!(scan(b"a", b"b", 2), [b"a".to_vec(), b"a\x00".to_vec()]);
    assert!(scan(b"a", b"b", 0).is_empty());
    assert!(scan(b"b", b"a", 9).is_empty(), "a range that runs backwards is empty");
    assert!(scan(b"b", b"b", 9).is_empty());
    let some = |limit, bytes_max| store.scan_some(1, b"a", b"b", limit, bytes_max).unwrap().len();
    assert_eq!(some(9, usize::MAX), 3);
    assert_eq!(some(2, usize::MAX), 2);
    assert_eq!([some(9, 0), some(9, 1), some(9, 3), some(9, 4), some(9, 8), some(9, 9)], [0, 1, 1, 2, 2, 3]);
    assert!(store.scan_some(1, b"b", b"a", 9, 9).unwrap().is_empty());
    let last = |from: &[u8], to: &[u8]| store.last(1, from, to).unwrap().map(|(key, _)| key);
    assert_eq!(last(b"a", b"b"), Some(b"ab".to_vec()));
    assert_eq!(last(b"", b"\xff\xff"), Some(b"c".to_vec()));
    assert_eq!(last(b"d", b"e"), None);
    assert_eq!(last(b"b", b"a"), None);
}

fn bounds(store: &dyn Kv) {
    for len in [0, KV_KEY_BYTES_MAX + 1] {
        let batch = vec![put(1, *b"good", *b"1"), put(1, vec![7; len], *b"2")];
        assert!(matches!(store.write(batch), Err(KvError::BadKey(n)) if n == len));
        assert_eq!(all(store, 1), vec![], "a refused batch changes nothing");
        assert_eq!(store.get(1, &vec![7; len]).unwrap(), None);
    }
    let (key, value) = (vec![0xff; KV_KEY_BYTES_MAX], vec![0x5a; 3 << 20]);
    store.write(vec![put(255, key.clone(), value.clone()), put(0, *b"k", vec![])]).unwrap();
    assert_eq!(store.get(255, &key).unwrap(), Some(value));
    assert_eq!(store.get(0, b"k").unwrap(), Some(vec![]), "an empty value is a value");
    store.write(vec![]).unwrap();
}

fn batches(store: &dyn Kv) {
    store.write(vec![put(1, *b"k", *b"1"), put(2, *b"k", *b"2")]).unwrap();
    store.write(vec![KvOp::Delete(1, b"k".to_vec()), KvOp::Delete(1, b"none".to_vec())]).unwrap();
    assert_eq!((all(store, 1), all(store, 2).len()), (vec![], 1));
    let twice = vec![put(1, *b"x", *b"1"), KvOp::Delete(1, b"x".to_vec()), put(1, *b"x", *b"2")];
    store.write(twice).unwrap();
    assert_eq!(store.get(1, b"x").unwrap(), Some(b"2".to_vec()), "the last change of a key wins");
    store.write(vec![put(1, *b"x", *b"3"), KvOp::Delete(1, b"x".to_vec())]).unwrap();
    assert_eq!(store.get(1, b"x").unwrap(), None, "the last change of a key wins");
}

async fn durable<F: Future<Output = Arc<dyn Kv>>>(open: &impl Fn(u32) -> F, number: u32) {
    let store = open(number).await;
    store.write(vec![put(1, *b"a", *b"1"), put(2, *b"b", *b"2")]).unwrap();
    store.write(vec![KvOp::Delete(1, b"a".to_vec()), put(3, *b"c", *b"3")]).unwrap();
    store.flush().await.unwrap();
    store.flush().await.unwrap();
    drop(store);
    let store = open(number).await;
    assert_eq!(store.get(1, b"a").unwrap(), None);
    assert_eq!(store.get(2, b"b").unwrap(), Some(b"2".to_vec()));
    assert_eq!(store.get(3, b"c").unwrap(), Some(b"3".to_vec()));
}

fn frozen(store: &dyn Kv, traits: Traits) {
    store.write(vec![put(1, *b"a", *b"1"), put(2, *b"b", *b"1")]).unwrap();
    if !traits.freezes {
        assert!(matches!(store.freeze(), Err(KvError::Unsupported(_))));
        return;
    }
    let view = store.freeze().unwrap();
    let later = vec![
        put(1, *b"a", *b"2"),
        KvOp::Delete(2, b"b".to_vec()),
        put(2, *b"c", *b"2"),
        put(3, *b"d", *b"2"),
    ];
    store.write(later).unwrap();
    assert_eq!(view.get(1, b"a").unwrap(), Some(b"1".to_vec()));
    assert_eq!(all(view.as_ref(), 2), vec![(b"b".to_vec(), b"1".to_vec())]);
    assert_eq!(view.last(2, b"", b"z").unwrap(), Some((b"b".to_vec(), b"1".to_vec())));
    assert_eq!(all(view.as_ref(), 3), vec![]);
    assert_eq!(store.get(1, b"a").unwrap(), Some(b"2".to_vec()));
    drop(view);
}

/// A table of the model.
type Model = BTreeMap<(Table, Vec<u8>), Vec<u8>>;

/// A small deterministic source, so that a failure comes back with the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        splitmix(self.0, 0x9e37_79b9_7f4a_7c15) % bound
    }
    fn key(&mut self) -> Vec<u8> {
        let len = 1 + self.below(3);
        (0..len).map(|_| b"\x00a\xfe\xff"[self.below(4) as usize]).collect()
    }
    fn batch(&mut self) -> Vec<KvOp> {
        (0..self.below(12))
            .map(|_| match (self.below(3) as Table, self.key(), self.below(3)) {
                (table, key, 0) => KvOp::Delete(table, key),
                (table, key, _) => {
                    KvOp::Put(table, key, vec![self.below(256) as u8; self.below(40) as usize])
                }
            })
            .collect()
    }
}

fn apply(model: &mut Model, batch: &[KvOp]) {
    for op in batch {
        match op.clone() {
            KvOp::Put(table, key, value) => drop(model.insert((table, key), value)),
            KvOp::Delete(table, key) => drop(model.remove(&(table, key))),
        }
    }
}

fn agree(store: &(impl KvRead + ?Sized), model: &Model, dice: &mut Dice) {
    let (table, mut from, mut to) = (dice.below(3) as Table, dice.key(), dice.key());
    let limit = 1 + dice.below(9) as usize;
    if from > to {
        std::mem::swap(&mut from, &mut to);
    }
    let want: Vec<KvPair> = model
        .range((table, from.clone())..(table, to.clone()))
        .map(|((_, key), value)| (key.clone(), value.clone()))
        .collect();
    assert_eq!(store.last(table, &from, &to).unwrap().as_ref(), want.last());
    assert_eq!(store.get(table, &from).unwrap().as_ref(), model.get(&(table, from.clone())));
    assert_eq!(store.scan(table, &from, &to, limit).unwrap(), want[..limit.min(want.len())]);
}

/// Random batches against a `BTreeMap`, with views and reopenings in between.
async fn model<F: Future<Output = Arc<dyn Kv>>>(open: &impl Fn(u32) -> F, number: u32, traits: Traits) {
    let (mut dice, mut model) = (Dice(number.into()), Model::new());
    let mut store = open(number).await;
    let mut view: Option<(Arc<dyn KvRead>, Model)> = None;
    for step in 0..600 {
        let batch = dice.batch();
        apply(&mut model, &batch);
        store.write(batch).unwrap();
        agree(store.as_ref(), &model, &mut dice);
        if let Some((view, then)) = &view {
            agree(view.as_ref(), then, &mut dice);
        }
        if traits.freezes && dice.below(20) == 0 {
            view = Some((store.freeze().unwrap(), model.clone()));
        }
        if step % 200 == 199 {
            view = None;
            store.flush().await.unwrap();
            drop(store);
            store = open(number).await;
        }
    }
}

/// After a stop without a flush the store holds a prefix of the batches: none half, none without its predecessors.
async fn prefix<F: Future<Output = Arc<dyn Kv>>>(open: &impl Fn(u32) -> F, number: u32) {
    let store = open(number).await;
    for n in 0..200u32 {
        let batch = (0..3u8).map(|table| put(table, n.to_be_bytes(), n.to_be_bytes())).collect();
        store.write(batch).unwrap();
        if n == 99 {
            store.flush().await.unwrap();
        }
    }
    drop(store);
    let store = open(number).await;
    let kept = all(store.as_ref(), 0);
    assert!(kept.len() >= 100, "a flushed batch is gone");
    assert!(
        kept.iter().enumerate().all(|(n, (key, _))| *key == (n as u32).to_be_bytes()),
        "a batch is missing"
    );
    assert!((1..3).all(|table| all(store.as_ref(), table) == kept), "a batch is half there");
}

/// Readers never see half a batch while it is written, and flushes from many tasks all return.
async fn concurrent(store: Arc<dyn Kv>) {
    let mut tasks = vec![];
    for writer in 0..4u8 {
        let store = store.clone();
        tasks.push(farshore_core::host::task::spawn(async move {
            for n in 0..20u8 {
                store.write((0..8).map(|key| put(writer, [key], [n])).collect()).unwrap();
                store.flush().await.unwrap();
                let seen = all(store.as_ref(), writer);
                assert!(
                    seen.len() == 8 && seen.iter().all(|(_, value)| *value == [n]),
                    "a write is visible at once"
                );
            }
        }));
    }
    for task in tasks {
        task.await.expect("a task of the suite ends");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::fjall::FjallStore;
    use crate::kv::memory::MemoryKv;
    use crate::kv::sled::SledStore;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn fjall_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let open = |n: u32| {
            let path = dir.path().join(n.to_string());
            async move { FjallStore::open(&path, 1 << 20).unwrap() }
        };
        run(Traits { freezes: true }, open).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn sled_conforms() {
        let dir = tempfile::tempdir().unwrap();
        let open = |n: u32| {
            let path = dir.path().join(n.to_string());
            async move { SledStore::open(&path, 1 << 20).unwrap() }
        };
        run(Traits { freezes: false }, open).await;
    }

    #[tokio::test]
    async fn memory_conforms() {
        let stores: [Arc<dyn Kv>; 8] = std::array::from_fn(|_| Arc::new(MemoryKv::new()) as Arc<dyn Kv>);
        run(Traits { freezes: true }, |n| std::future::ready(stores[n as usize].clone())).await;
    }
}
