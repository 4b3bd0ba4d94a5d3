//! The house rules that a compiler does not check: crate arrows, downward modules, `//!` headers, one home for each
//! foreign crate, limits on file length, and no stray paths or markers.
#![expect(clippy::disallowed_methods, reason = "this test reads the source tree")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A crate's folder and the workspace crates it may use.
const ARROWS: [(&str, &[&str]); 6] = [
    ("core", &[]),
    ("proto", &["core"]),
    ("node", &["core", "proto"]),
    ("client", &["core", "proto"]),
    ("sim", &["core", "proto", "node", "client"]),
    ("src", &["core", "proto", "node", "client"]),
];

/// A foreign crate, as named in code, and the only files or folders that may name it.
const HOMES: [(&str, &[&str]); 24] = [
    ("reed_solomon_erasure", &["core/src/erasure/"]),
    ("fjall", &["node/src/kv/"]),
    ("xxhash_rust", &["node/src/kv/journal.rs"]),
    ("sled", &["node/src/kv/"]),
    ("object_store", &["node/src/disk/bucket.rs", "node/src/disk/provider.rs"]),
    // Of the workspace's manifest alone, which chooses its TLS.
    ("reqwest", &[]),
    ("openraft", &["node/src/raft/", "node/src/rpc/raft.rs"]),
    // The simulator plays strangers, who bring their own keys and their own idea of TLS.
    ("rustls", &["proto/src/tls.rs", "proto/src/pki.rs", "sim/src/trespass.rs"]),
    ("tokio_rustls", &["proto/src/tls.rs", "sim/src/trespass.rs"]),
    ("webpki", &["proto/src/tls.rs", "proto/src/pki.rs"]),
    ("rcgen", &["proto/src/pki.rs"]),
    ("tonic", &["proto/", "node/src/rpc/", "node/src/raft/", "client/src/session", "sim/src/trespass.rs"]),
    ("prost", &["proto/"]),
    ("ring", &["client/src/crypto/"]),
    ("argon2", &["client/src/crypto/"]),
    ("x25519_dalek", &["client/src/crypto/exchange.rs"]),
    ("zstd", &["client/src/backup/seal.rs", "client/src/format/"]),
    ("ignore", &["client/src/backup/rules.rs"]),
    ("tar", &["client/src/dump/as_tar.rs"]),
    ("zip", &["client/src/dump/as_zip.rs"]),
    ("fuser", &["src/mount/"]),
    ("hyper", &["proto/src/"]),
    ("clap", &["src/", "sim/src/"]),
    ("indicatif", &["src/"]),
];

/// Longest source file. A file that needs more is two thoughts.
const LINES_MAX: usize = 900;

fn sources() -> Vec<(String, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for (folder, _) in ARROWS {
        let dir = Path::new(ROOT).join(folder);
        walk(&if folder == "src" { dir } else { dir.join("src") }, &mut found);
    }
    assert!(found.len() > 20, "the walk found the sources");
    found
        .into_iter()
        .map(|path| {
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect()
}

/// Test code may look up and down; it is not shipped.
fn is_test(name: &str) -> bool {
    name.ends_with("_test.rs") || name.ends_with("/testing.rs") || name.ends_with("/testkit.rs")
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// Whether `line` names `word::`, as a path and not as the tail of another word.
fn names(line: &str, word: &str) -> bool {
    let path = format!("{word}::");
    line.match_indices(&path).any(|(at, _)| {
        at == 0 || !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
    })
}

fn report(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

#[test]
fn every_file_opens_with_a_header() {
    report(
        sources()
            .iter()
            .filter(|(_, text)| !text.starts_with("//!"))
            .map(|(name, _)| format!("{name}: first line must be `//!` saying what the file is for"))
            .collect(),
    );
}

#[test]
fn files_stay_one_thought() {
    report(
        sources()
            .iter()
            .filter(|(_, text)| text.lines().count() > LINES_MAX)
            .map(|(name, text)| format!("{name}: {} lines, more than {LINES_MAX}", text.lines().count()))
            .collect(),
    );
}

#[test]
fn crates_know_only_what_lies_below() {
    let mut faults = Vec::new();
    for (name, text) in sources() {
        let folder = name.split('/').next().unwrap();
        let allowed = ARROWS.iter().find(|(f, _)| *f == folder).unwrap().1;
        for (other, _) in ARROWS {
            let word = format!("farshore_{other}");
            if other == folder || other == "src" || allowed.contains(&other) {
                continue;
            }
            for (at, line) in code_lines(&text).filter(|(_, line)| names(line, &word)) {
                faults.push(format!("{name}:{}: {folder} must not use {word}: {}", at + 1, line.trim()));
            }
        }
    }
    report(faults);
}

#[test]
fn foreign_crates_stay_at_home() {
    let mut faults = Vec::new();
    for (name, text) in sources().into_iter().filter(|(name, _)| !is_test(name)) {
        for (word, homes) in HOMES {
            if homes.iter().any(|home| name.starts_with(home)) {
                continue;
            }
            for (at, line) in code_lines(&text).filter(|(_, line)| names(line, word)) {
                faults.push(format!("{name}:{}: {word} belongs to {homes:?}: {}", at + 1, line.trim()));
            }
        }
    }
    report(faults);
}

/// `lib.rs` lists modules top-down; `crate::x` in module y is allowed only if x is y itself or below it.
#[test]
fn modules_use_only_those_below() {
    let mut faults = Vec::new();
    let sources = sources();
    for (folder, _) in ARROWS.iter().filter(|(f, _)| *f != "src") {
        let lib = &sources.iter().find(|(name, _)| *name == format!("{folder}/src/lib.rs")).unwrap().1;
        let order: BTreeMap<&str, usize> = lib
            .lines()
            .filter_map(|line| {
                line.trim().trim_start_matches("pub ").strip_prefix("mod ")?.split([';', ' ']).next()
            })
            .enumerate()
            .map(|(rank, module)| (module, rank))
            .collect();
        for (name, text) in sources.iter().filter(|(name, _)| !is_test(name)) {
            let Some(rest) = name.strip_prefix(&format!("{folder}/src/")) else { continue };
            let own = rest.split(['/', '.']).next().unwrap();
            let Some(own_rank) = order.get(own) else { continue };
            for (at, line) in code_lines(text) {
                for (start, _) in line.match_indices("crate::") {
                    let used =
                        line[start + 7..].split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                    if let Some(rank) = order.get(used)
                        && rank < own_rank
                    {
                        faults.push(format!("{name}:{}: {own} lies below {used}: {}", at + 1, line.trim()));
                    }
                }
            }
        }
    }
    report(faults);
}

#[test]
fn the_tree_carries_no_leftovers() {
    // Written so that this file does not find itself.
    let marks =
        [concat!("FIX", "ME"), concat!("X", "XX"), concat!("todo", "!("), concat!("unimplemented", "!(")];
    let mut faults = Vec::new();
    for (name, text) in sources() {
        for (at, line) in text.lines().enumerate() {
            if marks.iter().any(|mark| line.contains(mark)) {
                faults.push(format!("{name}:{}: {}", at + 1, line.trim()));
            }
        }
    }
    report(faults);
}
