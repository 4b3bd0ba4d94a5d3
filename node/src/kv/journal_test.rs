//! Torn and rotten journals under the engine: what was flushed is always there, what is refused is not touched.
#![expect(clippy::disallowed_methods, reason = "these tests damage the files of the engine")]

use super::fjall::FjallStore;
use super::record::{Records, Row, put};
use farshore_core::host::kv::{KvError, KvOp};
use farshore_core::host::task::splitmix;
use farshore_core::limits::KV_JOURNAL_TAILS_KEPT;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

const PAGE: usize = 4096;
const FLUSHED: u32 = 20;
const UNFLUSHED: u32 = 12;
/// As in the catalogue's store: entries first, then, in a batch of its own, what they did.
const LOG: u8 = 1;
const STATE: u8 = 2;

fn value(n: u32, len: usize) -> Vec<u8> {
    (0..len as u64 / 8).flat_map(|i| splitmix(u64::from(n), i).to_le_bytes()).collect()
}
fn entry(n: u32, len: usize) -> Vec<KvOp> {
    vec![put(LOG, n.to_be_bytes(), 1, &value(n, len))]
}
fn applied(n: u32) -> Vec<KvOp> {
    vec![put(STATE, n.to_be_bytes(), 1, b"applied"), put(STATE, *b"applied", 1, &n.to_be_bytes())]
}

/// A database whose journal was flushed at one point and holds more behind it.
struct Trial {
    home: TempDir,
    /// The journal as it was after the flush, and with everything written.
    flushed: usize,
    whole: Vec<u8>,
}

impl Trial {
    async fn new() -> Self {
        // What a sync keeps is decided below, so that none has to wait for a disk.
        let home = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let store = FjallStore::open(&home.path().join("db"), 1 << 20).unwrap();
        let write = |n: u32| {
            store.write(entry(n, if n.is_multiple_of(3) { 20_000 } else { 300 })).unwrap();
            store.write(applied(n)).unwrap();
        };
        (0..FLUSHED).for_each(write);
        store.flush().await.unwrap();
        let flushed = journal(&home.path().join("db")).metadata().unwrap().len() as usize;
        for n in FLUSHED..FLUSHED + UNFLUSHED {
            store.write(entry(n, 20_000)).unwrap();
            store.write(applied(n)).unwrap();
        }
        store.flush().await.unwrap();
        drop(store);
        let whole = fs::read(journal(&home.path().join("db"))).unwrap();
        Trial { home, flushed, whole }
    }

    /// A copy of the database with these journals.
    fn with(&self, journals: &[(&str, &[u8])]) -> PathBuf {
        let dir = self.home.path().join("copy");
        let _ = fs::remove_dir_all(&dir);
        copy(&self.home.path().join("db"), &dir);
        fs::remove_file(journal(&dir)).unwrap();
        journals.iter().for_each(|(name, bytes)| fs::write(dir.join(name), bytes).unwrap());
        dir
    }

    /// The journal as a power loss may leave it: each page behind the flush is there or not, and so is the end.
    fn torn(&self, case: u64) -> Vec<u8> {
        let mut bytes = self.whole.clone();
        let random = |n: u64| splitmix(splitmix(0x70f0, case), n) as usize;
        if case % 4 == 1 {
            bytes.truncate(self.flushed + random(0) % (bytes.len() - self.flushed));
        }
        if case % 4 == 2 {
            bytes.extend([0; 5 * PAGE]);
        }
        let one_in = [12, 12, 3, 100][case as usize / 4 % 4];
        for page in self.flushed / PAGE..bytes.len().div_ceil(PAGE) {
            let end = bytes.len().min((page + 1) * PAGE);
            let lost = &mut bytes[self.flushed.max(page * PAGE)..end];
            let fate = random(page as u64 + 1);
            if !fate.is_multiple_of(one_in) {
                continue;
            }
            match case % 5 {
                // What is there instead may be an older page, or rubbish.
                0 => lost.copy_from_slice(&self.whole[fate % self.flushed..][..lost.len()]),
                1 => lost.iter_mut().zip(0..).for_each(|(b, i)| *b = splitmix(case, i) as u8),
                _ => lost.fill(0),
            }
        }
        bytes
    }
}

fn journal(dir: &Path) -> PathBuf {
    let mut files = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    files.find(|path| path.extension().is_some_and(|e| e == "jnl")).unwrap()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() { copy(&path, &to) } else { fs::copy(path, to).map(drop).unwrap() }
    }
}

/// The plain files of a directory, but not the engine's lock.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let paths = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path());
    let plain = paths.filter(|path| path.is_file() && !path.ends_with("lock"));
    plain.map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Opens and checks that what is there is a beginning of what was written; how many entries there are.
fn entries(dir: &Path, what: &str) -> u32 {
    let store = FjallStore::open(dir, 1 << 20).unwrap_or_else(|e| panic!("{what}: {e}"));
    let records = Records::new(store);
    let log: Vec<Row> = records.scan(LOG, &[], &[0xff; 5], 99).unwrap();
    for (row, n) in log.iter().zip(0u32..) {
        assert_eq!(row.key, n.to_be_bytes(), "{what}: an entry is missing");
        assert_eq!(row.payload, value(n, row.payload.len()), "{what}: entry {n} is not what was written");
    }
    let state = records.scan(STATE, &[], &[0xff; 8], 99).unwrap();
    let (head, state) = state.split_last().unwrap();
    assert_eq!(head.payload, state.last().unwrap().key, "{what}: half a batch");
    assert!(state.len() <= log.len(), "{what}: {} applied of {} entries", state.len(), log.len());
    assert!(state.len() + 1 >= log.len(), "{what}: applied rows went without their entries");
    log.len() as u32
}

#[tokio::test]
async fn a_torn_journal_always_opens_with_all_that_was_flushed() {
    let trial = Trial::new().await;
    let (mut cut, mut kept_all) = (0, 0);
    for case in 0..240 {
        let torn = trial.torn(case);
        let dir = trial.with(&[("0.jnl", &torn)]);
        let count = entries(&dir, &format!("case {case}"));
        assert!((FLUSHED..=FLUSHED + UNFLUSHED).contains(&count), "case {case}: {count} entries");
        let found = files(&dir);
        match found.get(&dir.join("0.jnl.damaged-1")) {
            Some(tail) => {
                let joined = [found[&dir.join("0.jnl")].as_slice(), tail.as_slice()].concat();
                assert!(joined == torn, "case {case}: what was cut is kept");
                cut += 1;
            }
            None => kept_all += 1,
        }
        if case % 12 == 0 {
            // It takes and keeps batches as if nothing had been there.
            let store = FjallStore::open(&dir, 1 << 20).unwrap();
            store.write(applied(count - 1)).unwrap();
            store.write(entry(count, 5_000)).unwrap();
            store.write(applied(count)).unwrap();
            store.flush().await.unwrap();
            drop(store);
            assert_eq!(entries(&dir, &format!("case {case} again")), count + 1);
        }
    }
    assert!(cut > 100 && kept_all > 10, "{cut} cut, {kept_all} whole");
}

fn refused(dir: &Path) -> Option<KvError> {
    let before = files(dir);
    let error = FjallStore::open(dir, 1 << 20).err()?;
    assert!(files(dir) == before, "a refusal changes no file: {error}");
    Some(error)
}

#[tokio::test]
async fn a_flipped_byte_in_a_sealed_journal_is_refused() {
    let trial = Trial::new().await;
    let (sealed, active) = trial.whole.split_at(trial.flushed);
    let dir = trial.with(&[("0.jnl", sealed), ("1.jnl", active)]);
    assert_eq!(entries(&dir, "two journals"), FLUSHED + UNFLUSHED);
    // Behind its batches a sealed journal may have zeros, and in front of nothing it may be torn.
    let padded = [sealed, &[0; 100_000]].concat();
    assert_eq!(entries(&trial.with(&[("0.jnl", &padded), ("1.jnl", active)]), "zeros"), FLUSHED + UNFLUSHED);
    let halved = &sealed[..sealed.len() - 100];
    assert_eq!(entries(&trial.with(&[("0.jnl", halved), ("1.jnl", &[0; 9])]), "no later batch"), FLUSHED);
    for case in 0..60 {
        // No checksum covers a sequence, and the first batch has none before it to compare.
        let at = 13 + splitmix(case, 1) as usize % (sealed.len() - 13);
        let mut rotten = sealed.to_vec();
        rotten[at] ^= 1 << (case % 8);
        let error = refused(&trial.with(&[("0.jnl", &rotten), ("1.jnl", active)]));
        assert!(
            matches!(error, Some(KvError::Damaged(_) | KvError::Unsupported(_))),
            "byte {at} of {}: {error:?}",
            sealed.len()
        );
    }
}

#[tokio::test]
async fn another_format_is_refused() {
    let trial = Trial::new().await;
    let torn = trial.torn(0);
    let dir = trial.with(&[("0.jnl", &torn)]);
    for (version, is_damage) in
        [(b"FJL\x02".as_slice(), false), (b"FJL\x04", false), (b"LSM\x03", true), (b"F", true)]
    {
        fs::write(dir.join("version"), version).unwrap();
        let why = refused(&dir).unwrap();
        assert!(
            is_damage == why.is_damage() && (is_damage || matches!(why, KvError::Unsupported(_))),
            "{why}"
        );
    }
    // A batch says its format once more.
    let mut newer = trial.whole.clone();
    let at = newer.len() - 1;
    assert_eq!(newer[at], 3);
    newer[at] = 4;
    assert!(matches!(refused(&trial.with(&[("0.jnl", &newer)])), Some(KvError::Unsupported(_))));
}

#[tokio::test]
async fn a_database_that_was_never_finished_is_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    for marker in [None, Some(b"")] {
        let path = dir.path().join(format!("{}", marker.is_some()));
        fs::create_dir_all(path.join("keyspaces")).unwrap();
        fs::File::create(path.join("0.jnl")).unwrap().set_len(64 << 20).unwrap();
        marker.into_iter().for_each(|bytes| fs::write(path.join("version"), bytes).unwrap());
        let store = FjallStore::open(&path, 1 << 20).unwrap();
        store.write(entry(0, 300)).unwrap();
        store.flush().await.unwrap();
        drop(store);
        fs::remove_file(path.join("version")).unwrap();
        assert!(matches!(refused(&path), Some(KvError::Damaged(_))), "there are records");
    }
}

#[tokio::test]
async fn journals_that_are_gone_are_not_taken_for_empty_ones() {
    let trial = Trial::new().await;
    assert!(matches!(refused(&trial.with(&[])), Some(KvError::Damaged(_))));
}

#[tokio::test]
async fn only_the_newest_cut_ends_are_kept() {
    let trial = Trial::new().await;
    let dir = trial.with(&[("0.jnl", &trial.whole)]);
    for case in 1..=KV_JOURNAL_TAILS_KEPT + 3 {
        fs::write(dir.join("0.jnl"), [&trial.whole[..trial.flushed], &[7; 10]].concat()).unwrap();
        assert_eq!(entries(&dir, "torn again"), FLUSHED);
        let tails: Vec<_> = files(&dir).into_keys().filter(|path| !path.ends_with("0.jnl")).collect();
        assert_eq!(tails.len(), 1 + case.min(KV_JOURNAL_TAILS_KEPT), "and the version: {tails:?}");
        assert!(dir.join(format!("0.jnl.damaged-{case}")).exists());
    }
}

#[tokio::test]
async fn an_open_store_is_left_alone() {
    let trial = Trial::new().await;
    let dir = trial.with(&[("0.jnl", &trial.whole)]);
    let _store = FjallStore::open(&dir, 1 << 20).unwrap();
    assert!(matches!(super::journal::mend(&dir), Err(KvError::InUse)));
}
