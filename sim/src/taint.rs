//! Secrets that clients alone may know, and the search for them in whatever leaves a client (invariant 9). Secrets are
//! byte strings that nothing but a leak can produce: random file contents, random file names, passphrases. Contents
//! are incompressible, so that they would show even in what was compressed but not sealed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Bytes that are compared first. Only every eighth position is looked at, so that watching a network costs little; each
/// secret is known by eight of its beginnings instead.
const WORD: usize = 8;
/// No secret is shorter, so that a whole word of it lies at one of those positions.
const SECRET_BYTES_MIN: usize = 2 * WORD - 1;
/// Bits of the filter that most positions fail at once. With a few thousand secrets one in ten passes.
const FILTER_BITS: u32 = 18;
/// Most secrets watched for; later ones are left out.
const SECRETS_MAX: usize = 4_096;

/// The secrets of one world, and the first place where one was seen. Clones share them.
#[derive(Clone, Default)]
pub struct Taint(Arc<Mutex<Secrets>>);

#[derive(Default)]
struct Secrets {
    all: Vec<Secret>,
    /// Which secret has this word, and where in it.
    by_word: BTreeMap<u64, Vec<(usize, usize)>>,
    filter: Vec<u64>,
    leak: Option<String>,
    scanned: u64,
}

struct Secret {
    what: String,
    bytes: Vec<u8>,
}

impl Taint {
    /// Keeps a secret. One that is too short to be told from chance is not kept.
    pub fn keep(&self, what: &str, bytes: &[u8]) {
        let mut secrets = self.lock();
        let known = secrets.all.iter().any(|known| known.bytes == bytes);
        if bytes.len() < SECRET_BYTES_MIN || secrets.all.len() >= SECRETS_MAX || known {
            return;
        }
        if secrets.filter.is_empty() {
            secrets.filter = vec![0; 1 << (FILTER_BITS - 6)];
        }
        let at = secrets.all.len();
        for shift in 0..WORD {
            let Some(word) = bytes.get(shift..).and_then(<[u8]>::first_chunk) else { break };
            let word = u64::from_le_bytes(*word);
            let (place, bit) = filter_at(word);
            secrets.filter[place] |= bit;
            secrets.by_word.entry(word).or_default().push((at, shift));
        }
        secrets.all.push(Secret { what: what.into(), bytes: bytes.into() });
    }

    /// The first secret in these bytes, and where it begins.
    pub fn scan(&self, bytes: &[u8]) -> Option<(String, usize)> {
        self.lock().scan(bytes)
    }

    /// Looks at bytes that nobody but a client may be able to read, and remembers the first secret seen.
    pub fn watch(&self, bytes: &[u8], place: impl FnOnce() -> String) {
        let mut secrets = self.lock();
        if secrets.leak.is_some() {
            return;
        }
        if let Some((what, at)) = secrets.scan(bytes) {
            secrets.leak = Some(format!("blind: {what} is in {} at byte {at}", place()));
        }
    }

    /// The first place where a secret was seen.
    pub fn leak(&self) -> Option<String> {
        self.lock().leak.clone()
    }

    /// Bytes looked at so far.
    pub fn scanned(&self) -> u64 {
        self.lock().scanned
    }

    fn lock(&self) -> MutexGuard<'_, Secrets> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Secrets {
    fn scan(&mut self, bytes: &[u8]) -> Option<(String, usize)> {
        self.scanned += bytes.len() as u64;
        if self.all.is_empty() {
            return None;
        }
        let (words, _) = bytes.as_chunks::<WORD>();
        for (place, word) in words.iter().enumerate() {
            let word = u64::from_le_bytes(*word);
            let (at, bit) = filter_at(word);
            if self.filter[at] & bit != 0
                && let Some(found) = self.found_at(word, bytes, place * WORD)
            {
                return Some(found);
            }
        }
        None
    }

    /// The secret that one word at `at` belongs to. What stands before it may be another piece of the same message.
    fn found_at(&self, word: u64, bytes: &[u8], at: usize) -> Option<(String, usize)> {
        self.by_word.get(&word)?.iter().find_map(|(secret, shift)| {
            let secret = &self.all[*secret];
            bytes[at..]
                .starts_with(&secret.bytes[*shift..])
                .then(|| (secret.what.clone(), at.saturating_sub(*shift)))
        })
    }
}

/// Place and bit of the filter for a word: the upper bits of a product with an odd constant.
fn filter_at(word: u64) -> (usize, u64) {
    let hash = word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - FILTER_BITS);
    ((hash >> 6) as usize, 1 << (hash & 63))
}

#[cfg(test)]
#[path = "taint_test.rs"]
mod tests;
