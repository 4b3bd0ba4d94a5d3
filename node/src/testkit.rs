//! Bytes that were written once and must be understood for ever: each format's fixtures lie in a file of the crate's
//! `fixtures`, one a line, as `NAME = HEX`. A fixture is never written over. `FARSHORE_WRITE_FIXTURES=1` adds those that are absent.
#![expect(clippy::disallowed_methods, reason = "tests read and add to files of the source tree")]

use farshore_core::id::hex;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

/// The fixtures of one format.
pub(crate) struct Fixtures {
    path: PathBuf,
    text: String,
    kept: BTreeMap<String, Vec<u8>>,
    asked: BTreeSet<String>,
    absent: Vec<String>,
}

impl Fixtures {
    /// Those of `fixtures/FORMAT.txt`.
    pub fn of(format: &str) -> Self {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(format!("{format}.txt"));
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let mut kept = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (name, bytes) = line.split_once(" = ").unwrap_or_else(|| panic!("no fixture: {line}"));
            assert!(kept.insert(name.into(), unhex(bytes)).is_none(), "{name} is there twice");
        }
        Fixtures { path, text, kept, asked: BTreeSet::new(), absent: Vec::new() }
    }

    /// The bytes that were kept under this name, which must be those of today: what was written once is written the same
    /// until its version byte changes. A name that is absent fails the test in the end.
    pub fn kept(&mut self, name: &str, today: &[u8]) -> Vec<u8> {
        let kept = self.readable(name, today);
        assert_eq!(hex(&kept), hex(today), "{name}: the bytes of today are others");
        kept
    }

    /// The bytes that were kept under this name, which a writer of today may write otherwise.
    pub fn readable(&mut self, name: &str, today: &[u8]) -> Vec<u8> {
        assert!(self.asked.insert(name.into()), "{name} is asked for twice");
        match self.kept.get(name) {
            Some(kept) => kept.clone(),
            None => {
                self.absent.push(format!("{name} = {}", hex(today)));
                today.to_vec()
            }
        }
    }

    /// Every fixture was asked for, and none is absent.
    pub fn end(self) {
        let unread: Vec<_> = self.kept.keys().filter(|name| !self.asked.contains(*name)).collect();
        assert!(unread.is_empty(), "nothing reads these fixtures any more: {unread:?}");
        if self.absent.is_empty() {
            return;
        }
        let write = std::env::var_os("FARSHORE_WRITE_FIXTURES").is_some();
        assert!(write, "fixtures are absent; FARSHORE_WRITE_FIXTURES=1 adds them: {:#?}", self.absent);
        let text = self.text + &self.absent.join("\n") + "\n";
        std::fs::write(self.path, text).unwrap();
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let digit = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digit).collect()
}

/// The names of an enum's variants, and which a value is of. A variant that is not listed does not compile.
#[allow(unused_macros, reason = "each crate that keeps fixtures compiles this file")]
macro_rules! variants {
    ($kind:ident: $($variant:ident),* $(,)?) => {{
        fn name(value: &$kind) -> &'static str {
            match value {
                $($kind::$variant { .. } => stringify!($variant),)*
            }
        }
        (name as fn(&$kind) -> &'static str, [$(stringify!($variant)),*].as_slice())
    }};
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use variants;
