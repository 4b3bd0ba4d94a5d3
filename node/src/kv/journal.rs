//! The journals of the engine behind `fjall.rs`, read here before the engine reads them, because it takes the torn end
//! that a power loss leaves for damage and refuses to open, and takes some damage for a torn end and cuts it silently
//! (docs/decisions/0003). This file cuts what is torn, keeps what it cut, and refuses what no power loss explains. It
//! never looks into a value and never writes to a journal.
//!
//! It knows one format, that of fjall 3: the file `version` begins with `FJL` and the byte 3. A journal `<number>.jnl`
//! is batches back to back, then perhaps zeros, because it is made 64 MiB long. Numbers are little-endian.
//!
//! ```text
//! batch  1 | entries: u32 | sequence: u64 | entry … | 3 | XXH3-64 of all entries: u64 | "FJL" 3
//! entry  2 | kind: u8 | compression: u8 | table: u64 | key length: u16 | length: u32 | stored length: u32 | key | value
//!    or  4 | table: u64                                                            (the table was emptied)
//! ```
//!
//! Each batch has a higher sequence than the one before it, across all journals; no checksum covers it, so that is
//! checked here too. All journals but the newest were synced before the next one began.
#![expect(clippy::disallowed_methods, reason = "part of the seam to the engine and its files")]

use farshore_core::host::kv::KvError;
use farshore_core::limits::KV_JOURNAL_TAILS_KEPT;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use xxhash_rust::xxh3::Xxh3;

const VERSION_FILE: &str = "version";
const LOCK_FILE: &str = "lock";
const MAGIC: [u8; 4] = *b"FJL\x03";

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
/// Kinds the engine writes into a journal: a value, and two ways to remove one.
const KINDS: std::ops::RangeInclusive<u8> = 0..=2;
const PLAIN: u8 = 0;
const LZ4: u8 = 1;

/// Bytes read, compared and copied in one go.
const STEP: usize = 64 << 10;
static ZEROS: [u8; STEP] = [0; STEP];

/// What a journal holds.
struct Survey {
    path: PathBuf,
    /// Bytes of the batches before the first that is not whole.
    good: u64,
    /// Sequence of the last of them.
    last: Option<u64>,
    len: u64,
    /// Whether there is anything but zeros behind them.
    torn: bool,
}

/// Cuts the torn end off the journals of the database in `dir`, if they have one, so that the engine can open it.
/// Answers with the sequence of the last batch; `None` if there is none, also if there is no database yet.
pub(super) fn mend(dir: &Path) -> Result<Option<u64>, KvError> {
    if !dir.try_exists().map_err(|e| failed(dir, e))? {
        return Ok(None);
    }
    let _lock = lock(dir)?;
    let version = read_version(dir)?;
    let journals = survey_all(dir)?;
    if version.is_empty() {
        return clear_unborn(dir, &journals);
    }
    match version.as_slice() {
        known if known == MAGIC => {}
        [b'F', b'J', b'L', _] => return Err(OTHER_FORMAT),
        _ => return Err(KvError::Damaged(format!("{} says no version", dir.join(VERSION_FILE).display()))),
    }
    let last = journals.iter().filter_map(|journal| journal.last).next_back();
    refuse_rot(dir, &journals, last)?;
    for journal in journals.iter().filter(|journal| journal.torn) {
        cut(dir, journal).map_err(|e| failed(&journal.path, e))?;
    }
    Ok(last)
}

const OTHER_FORMAT: KvError = KvError::Unsupported("read a database of any format but fjall 3's");

fn failed(path: &Path, error: io::Error) -> KvError {
    KvError::Io(format!("mend {}: {error}", path.display()))
}

/// Holds the engine's own lock, so that no journal is cut that somebody else has open.
fn lock(dir: &Path) -> Result<File, KvError> {
    let path = dir.join(LOCK_FILE);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|e| failed(&path, e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(KvError::InUse),
        Err(TryLockError::Error(e)) => Err(failed(&path, e)),
    }
}

/// The first bytes of the version file; empty if there is none or it is.
fn read_version(dir: &Path) -> Result<Vec<u8>, KvError> {
    let path = dir.join(VERSION_FILE);
    let mut version = Vec::new();
    match File::open(&path).and_then(|file| file.take(MAGIC.len() as u64).read_to_end(&mut version)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed(&path, e)),
        _ => Ok(version),
    }
}

/// The version file is synced before the engine takes its first batch. Without it, a power loss cut the making of the
/// database short; what is there is empty, and would keep the engine from making it anew.
fn clear_unborn(dir: &Path, journals: &[Survey]) -> Result<Option<u64>, KvError> {
    let used = journals.iter().any(|journal| journal.good > 0 || journal.torn);
    if used || has_tables(dir).map_err(|e| failed(dir, e))? {
        return Err(KvError::Damaged(format!(
            "{} is gone or empty although there are records; nothing was touched",
            dir.join(VERSION_FILE).display()
        )));
    }
    for path in journals.iter().map(|journal| &journal.path).chain([&dir.join(VERSION_FILE)]) {
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(path, e)),
            _ => {}
        }
    }
    sync_dir(dir).map_err(|e| failed(dir, e))?;
    Ok(None)
}

/// Refuses what no power loss leaves behind. Cutting is allowed only if it leaves a beginning of what was written:
/// then the Raft mark tells whether anything acknowledged was in what is gone.
fn refuse_rot(dir: &Path, journals: &[Survey], last: Option<u64>) -> Result<(), KvError> {
    if journals.is_empty() {
        return Err(KvError::Damaged(format!("the journals in {} are gone", dir.display())));
    }
    let Some(at) = journals.iter().position(|journal| journal.torn) else { return Ok(()) };
    let (torn, later) = (&journals[at], &journals[at + 1..]);
    let why = if later.iter().any(|journal| journal.good > 0) {
        "although it was synced before the next journal began"
    } else if last.is_none() && has_tables(dir).map_err(|e| failed(dir, e))? {
        // Whether the tables hold more than what would be left can be told only by comparing sequences.
        "and no batch is left to tell whether the tables have lost anything"
    } else {
        return Ok(());
    };
    Err(KvError::Damaged(format!(
        "{} is damaged at byte {} {why}; nothing was touched",
        torn.path.display(),
        torn.good
    )))
}

/// Whether anything was written out of the journals yet. Table 0 is the engine's own list of tables.
fn has_tables(dir: &Path) -> io::Result<bool> {
    let tables = match fs::read_dir(dir.join("keyspaces")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        tables => tables?,
    };
    for table in tables {
        let table = table?;
        let files = table.path().join("tables");
        if table.file_name() != "0" && files.is_dir() && fs::read_dir(files)?.next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// All journals, oldest first. Names the engine does not understand are left for it to refuse.
fn survey_all(dir: &Path) -> Result<Vec<Survey>, KvError> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(dir).map_err(|e| failed(dir, e))? {
        let name = entry.map_err(|e| failed(dir, e))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".jnl"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    let (mut journals, mut last) = (Vec::new(), None);
    for number in numbers {
        let path = dir.join(format!("{number}.jnl"));
        let journal = survey(path.clone(), last).map_err(|flaw| match flaw {
            Flaw::Io(e) => failed(&path, e),
            Flaw::OtherFormat | Flaw::Broken => OTHER_FORMAT,
        })?;
        last = journal.last.or(last);
        journals.push(journal);
    }
    Ok(journals)
}

/// Reads a journal up to its end or its first batch that is not whole. `before` is the last sequence before it.
fn survey(path: PathBuf, before: Option<u64>) -> Result<Survey, Flaw> {
    let file = File::open(&path)?;
    let len = file.metadata()?.len();
    let mut reader = Reader { file: BufReader::with_capacity(STEP, file), left: len };
    let mut journal = Survey { path, good: 0, last: None, len, torn: false };
    loop {
        match reader.batch() {
            Ok(sequence) if journal.last.or(before).is_none_or(|last| sequence > last) => {
                journal.last = Some(sequence);
                journal.good = len - reader.left;
            }
            Ok(_) | Err(Flaw::Broken) => break,
            Err(other) => return Err(other),
        }
    }
    let mut file = reader.file.into_inner();
    file.seek(SeekFrom::Start(journal.good))?;
    journal.torn = !steps(&mut file, len - journal.good, |_, bytes| Ok(is_zero(bytes)))?;
    Ok(journal)
}

/// Why a batch cannot be read.
enum Flaw {
    Io(io::Error),
    Broken,
    OtherFormat,
}
impl From<io::Error> for Flaw {
    fn from(error: io::Error) -> Self {
        Flaw::Io(error)
    }
}

/// Reads batches; never further than the file was long, and never a value into memory.
struct Reader {
    file: BufReader<File>,
    left: u64,
}

impl Reader {
    /// Reads a batch and answers with its sequence.
    fn batch(&mut self) -> Result<u64, Flaw> {
        let mut sum = Xxh3::new();
        if self.take()? != [START] {
            return Err(Flaw::Broken);
        }
        let entries = u32::from_le_bytes(self.take()?);
        let sequence = u64::from_le_bytes(self.take()?);
        for _ in 0..entries {
            self.entry(&mut sum)?;
        }
        if self.take()? != [END] || u64::from_le_bytes(self.take()?) != sum.digest() {
            return Err(Flaw::Broken);
        }
        match self.take()? {
            MAGIC => Ok(sequence),
            [b'F', b'J', b'L', _] => Err(Flaw::OtherFormat),
            _ => Err(Flaw::Broken),
        }
    }

    fn entry(&mut self, sum: &mut Xxh3) -> Result<(), Flaw> {
        let tag: [u8; 1] = self.take()?;
        sum.update(&tag);
        match tag {
            [ITEM] => self.item(sum),
            [CLEAR] => self.skip(8, sum),
            _ => Err(Flaw::Broken),
        }
    }

    fn item(&mut self, sum: &mut Xxh3) -> Result<(), Flaw> {
        let [kind, compression] = self.summed(sum)?;
        self.skip(8, sum)?;
        let key = u16::from_le_bytes(self.summed(sum)?);
        let len = u32::from_le_bytes(self.summed(sum)?);
        let stored = u32::from_le_bytes(self.summed(sum)?);
        let known = match compression {
            PLAIN => len == stored,
            LZ4 => true,
            _ => false,
        };
        if !known || !KINDS.contains(&kind) {
            return Err(Flaw::Broken);
        }
        self.skip(u64::from(key) + u64::from(stored), sum)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Flaw> {
        self.left = self.left.checked_sub(N as u64).ok_or(Flaw::Broken)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn summed<const N: usize>(&mut self, sum: &mut Xxh3) -> Result<[u8; N], Flaw> {
        let bytes = self.take()?;
        sum.update(&bytes);
        Ok(bytes)
    }

    fn skip(&mut self, len: u64, sum: &mut Xxh3) -> Result<(), Flaw> {
        self.left = self.left.checked_sub(len).ok_or(Flaw::Broken)?;
        let mut len = len;
        while len > 0 {
            let bytes = self.file.fill_buf()?;
            let bytes = bytes.get(..len.min(STEP as u64) as usize).unwrap_or(bytes);
            if bytes.is_empty() {
                return Err(Flaw::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            sum.update(bytes);
            let read = bytes.len();
            self.file.consume(read);
            len -= read as u64;
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    ZEROS.starts_with(bytes)
}

/// Hands the next `len` bytes to `step`, piece by piece with the place of each, until it answers false; whether it
/// never did.
fn steps(
    file: &mut File,
    len: u64,
    mut step: impl FnMut(u64, &[u8]) -> io::Result<bool>,
) -> io::Result<bool> {
    let (mut buffer, mut at) = (vec![0; STEP], 0);
    while at < len {
        let (piece, _) = buffer.split_at_mut((len - at).min(STEP as u64) as usize);
        file.read_exact(piece)?;
        if !step(at, piece)? {
            return Ok(false);
        }
        at += piece.len() as u64;
    }
    Ok(true)
}

/// Cuts what is not whole off a journal and keeps it beside. A crash in between leaves the journal as it was.
fn cut(dir: &Path, journal: &Survey) -> io::Result<()> {
    let kept = keep(dir, journal)?;
    let file = OpenOptions::new().write(true).open(&journal.path)?;
    file.set_len(journal.good)?;
    file.sync_all()?;
    tracing::warn!(
        journal = %journal.path.display(),
        bytes = journal.len - journal.good,
        kept = %kept.display(),
        "cut the torn end off a journal; it is kept beside it"
    );
    Ok(())
}

/// Copies what will be cut to `<journal>.damaged-<number>`, durable on return.
fn keep(dir: &Path, journal: &Survey) -> io::Result<PathBuf> {
    let tails = tails(dir)?;
    // A node that the mark refused writes no more and so tears nothing more. That there is something to keep means
    // that it went on after each of these.
    let dead = tails.len().saturating_sub(KV_JOURNAL_TAILS_KEPT - 1);
    tails.iter().take(dead).try_for_each(|(_, path)| fs::remove_file(path))?;
    let number = tails.last().map_or(1, |(number, _)| number.saturating_add(1));
    let mut name = journal.path.clone().into_os_string();
    name.push(format!(".damaged-{number}"));
    let (part, name) = (dir.join("journal-tail.part"), PathBuf::from(name));
    let mut from = File::open(&journal.path)?;
    from.seek(SeekFrom::Start(journal.good))?;
    let mut to = File::create(&part)?;
    let len = journal.len - journal.good;
    steps(&mut from, len, |at, bytes| {
        // Most of a young journal is a hole, and stays one.
        if !is_zero(bytes) {
            to.seek(SeekFrom::Start(at))?;
            to.write_all(bytes)?;
        }
        Ok(true)
    })?;
    to.set_len(len)?;
    to.sync_all()?;
    fs::rename(part, &name)?;
    sync_dir(dir)?;
    Ok(name)
}

/// What was cut before, oldest first.
fn tails(dir: &Path) -> io::Result<Vec<(u64, PathBuf)>> {
    let mut tails = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|e| e.to_str());
        let number = extension.and_then(|e| e.strip_prefix("damaged-")?.parse().ok());
        tails.extend(number.map(|number| (number, path)));
    }
    tails.sort();
    Ok(tails)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
