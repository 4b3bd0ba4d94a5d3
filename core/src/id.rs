//! Identifiers as types, so that a stripe is never passed where a pack is meant. The only file that hashes for ids.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Text that is not the identifier it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a valid {kind}: expected {digits} hexadecimal digits")]
pub struct BadId {
    /// What was expected.
    pub kind: &'static str,
    /// How many digits it has.
    pub digits: usize,
}

/// Writes bytes as lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Reads exactly `N` bytes of hexadecimal.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let mut bytes = [0u8; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// BLAKE3 over a sequence of parts. Each part goes in behind its length, so that bytes moved from one part to the next
/// give another hash. The first part names what is hashed, so that a hash made for one thing never passes for another.
pub fn hash_parts(parts: &[&[u8]]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part);
    }
    *hasher.finalize().as_bytes()
}

macro_rules! byte_id {
    ($(#[$doc:meta])* $name:ident, $len:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Length in bytes.
            pub const LEN: usize = $len;
            /// The raw bytes.
            pub fn as_bytes(&self) -> &[u8] {
                &self.0
            }
            /// Takes exactly `LEN` bytes.
            pub fn from_slice(bytes: &[u8]) -> Result<Self, BadId> {
                bytes.try_into().map(Self).map_err(|_| BadId { kind: $kind, digits: $len * 2 })
            }
            /// First eight digits, enough to tell a person which one is meant.
            pub fn short(&self) -> String {
                hex(&self.0[..4])
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex(&self.0))
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.short())
            }
        }
        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                unhex(text).map(Self).ok_or(BadId { kind: $kind, digits: $len * 2 })
            }
        }
    };
}

byte_id!(
    /// A chunk: keyed BLAKE3 of its plaintext, made by the client; nodes cannot recompute it.
    ChunkId, 32, "chunk id");
byte_id!(
    /// A pack: BLAKE3 of its bytes.
    PackId, 32, "pack id");
byte_id!(
    /// A stripe: one coding of one pack, see [`StripeId::of`].
    StripeId, 16, "stripe id");
byte_id!(
    /// Root hash over the payload of one shard, see `shard.rs`.
    ShardHash, 32, "shard hash");
byte_id!(
    /// A repository.
    RepoId, 16, "repository id");
byte_id!(
    /// A client's fenced write lease.
    SessionId, 16, "session id");
byte_id!(
    /// A snapshot.
    SnapshotId, 32, "snapshot id");
byte_id!(
    /// A cluster, drawn once when it is formed.
    ClusterId, 16, "cluster id");

byte_id!(
    /// A record of the audit chain, see `catalogue/audit.rs`.
    AuditHash, 32, "audit hash");
byte_id!(
    /// An export of the catalogue.
    ExportId, 16, "export id");

/// A node: the first eight bytes of the BLAKE3 hash of its public key, so that a new key is a new node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct NodeId(pub u64);

impl NodeId {
    /// The id that belongs to a public key (its SubjectPublicKeyInfo, DER).
    pub fn of_public_key(spki_der: &[u8]) -> Self {
        let hash = blake3::hash(spki_der);
        let mut first = [0u8; 8];
        first.copy_from_slice(&hash.as_bytes()[..8]);
        NodeId(u64::from_be_bytes(first))
    }
}
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0 >> 32)
    }
}
impl FromStr for NodeId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        unhex::<8>(text).map(|b| NodeId(u64::from_be_bytes(b))).ok_or(BadId { kind: "node id", digits: 16 })
    }
}

/// One shard of one stripe. `index < k` is a data shard, the rest is parity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ShardId {
    /// Which coding of which pack.
    pub stripe: StripeId,
    /// Which of its n shards.
    pub index: u8,
}
impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.stripe, self.index)
    }
}

/// Number of a pack, dense over the cluster, given by the catalogue when the pack is committed; never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct PackNo(pub u64);

/// Dense number the catalogue gives each chunk of a repository; never reused, never changed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Ordinal(pub u64);

impl PackId {
    /// The id of these pack bytes.
    pub fn of(pack: &[u8]) -> Self {
        PackId(*blake3::hash(pack).as_bytes())
    }
}

impl StripeId {
    /// The stripe that codes `pack` of `repo` as k + m with the given codec. Deterministic, so that a repeated upload
    /// meets its own shards; another scheme gives another stripe, so that both can exist during a change of scheme.
    pub fn of(repo: RepoId, pack: PackId, k: u8, m: u8, codec: u8) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("farshore 2026 stripe id");
        hasher.update(repo.as_bytes()).update(pack.as_bytes()).update(&[k, m, codec]);
        let mut id = [0u8; 16];
        id.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        StripeId(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_round_trips_and_rubbish_is_refused() {
        let id = StripeId([0xa5; 16]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("a5".parse::<StripeId>().is_err());
        assert!("zz".repeat(16).parse::<StripeId>().is_err());
        let node = NodeId(0x0123_4567_89ab_cdef);
        assert_eq!(node.to_string().parse(), Ok(node));
    }

    #[test]
    fn parts_do_not_run_together() {
        assert_ne!(hash_parts(&[b"ab", b"c"]), hash_parts(&[b"a", b"bc"]));
        assert_ne!(hash_parts(&[b"a", b""]), hash_parts(&[b"a"]));
    }

    #[test]
    fn another_scheme_is_another_stripe() {
        let (repo, pack) = (RepoId([1; 16]), PackId([2; 32]));
        assert_ne!(StripeId::of(repo, pack, 4, 2, 1), StripeId::of(repo, pack, 8, 4, 1));
    }
}
