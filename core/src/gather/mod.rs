//! Get bytes of a stripe back: from the data shards that hold them if those are well, decoded from any k others if not.
//!
//! Only the needed byte ranges travel, also when they must be decoded. A slow read is hedged by decoding beside it. All
//! bytes have been verified against the recorded hashes by [`ShardIo::get`]; what is bad or missing is reported with
//! the result, so that the caller can tell the catalogue. Nothing is repaired here.
//!
//! Cancel-safe: dropping any of these futures abandons its reads.

mod extents;
#[cfg(test)]
pub(crate) mod fake;
mod pool;
mod sums;
#[cfg(test)]
mod tests;

use crate::catalogue::StripeRecord;
use crate::health::NodeHealth;
use crate::id::{NodeId, PackId, RepoId, ShardId};
use crate::peer::{ShardError, ShardIo};
use crate::shard::{ShardRange, hash_shard};
use bytes::{Bytes, BytesMut};
use pool::Pool;
use std::collections::BTreeMap;
pub use sums::{BuildOrder, Built, RegionSum, plan_sums};

/// What it costs to read from a node, in any unit; the lower is asked first.
pub type Prefer<'a> = &'a (dyn Fn(NodeId) -> u64 + Send + Sync);

/// A byte range of a pack, before padding and coding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PackRange {
    /// First byte.
    pub offset: u64,
    /// Length; may be 0.
    pub len: u64,
}

/// What was read, and what was found wrong on the way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gathered<T> {
    /// The bytes asked for.
    pub bytes: T,
    /// Shards that could not be read, each with the reason; bad ones cost nothing but time as long as k are well.
    pub bad: Vec<(u8, NodeId, ShardError)>,
}

/// Why nothing was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GatherError {
    /// Too few shards can be read.
    #[error("only {have} of the {need} shards needed can be read: {}", reasons(.why))]
    Unreadable {
        /// Shards that answered.
        have: usize,
        /// Shards it takes.
        need: usize,
        /// Shards that did not, each with the reason. A shard without holder is not listed.
        why: Vec<(u8, NodeId, ShardError)>,
    },
    /// The stripe record contradicts itself or the question.
    #[error("the record of stripe {id} is not valid: {1}", id = .0.short())]
    Record(crate::id::StripeId, &'static str),
    /// A range leaves the pack.
    #[error("range of {len} bytes at {at} leaves a pack of {1} bytes", len = .0.len, at = .0.offset)]
    Range(PackRange, u64),
    /// Every source matched its recorded hash, yet the rebuilt shard does not: one of the recorded hashes is wrong.
    #[error(
        "shard {0} was rebuilt from shards that match their records, but does not match its own: a record is wrong"
    )]
    WrongShard(ShardId),
    /// Every shard matched its recorded hash, yet the pack is not the one that was named.
    #[error("the shards match their records, but the pack is not {}: a record is wrong", .0.short())]
    WrongPack(PackId),
}

fn reasons(why: &[(u8, NodeId, ShardError)]) -> String {
    let lines: Vec<String> = why.iter().map(|(index, _, error)| format!("#{index}: {error}")).collect();
    if lines.is_empty() { "the others have no holder".into() } else { lines.join("; ") }
}

/// Reads ranges of a pack, in the order asked: from the data shards that hold them, or decoded from others if that costs less.
pub async fn gather_ranges(
    io: &dyn ShardIo,
    stripe: &StripeRecord,
    repo: RepoId,
    pack_len: u64,
    ranges: &[PackRange],
    prefer: Prefer<'_>,
    health: &NodeHealth,
) -> Result<Gathered<Vec<Bytes>>, GatherError> {
    check_record(stripe, Some(pack_len))?;
    let mut want = BTreeMap::<u8, Vec<ShardRange>>::new();
    for range in ranges {
        if range.offset.checked_add(range.len).is_none_or(|end| end > pack_len) {
            return Err(GatherError::Range(*range, pack_len));
        }
        for (index, part) in parts_of(*range, stripe.shard_len) {
            want.entry(index).or_default().push(part);
        }
    }
    let mut pool = Pool::new(io, stripe, repo, prefer, health);
    if pool.is_cheaper_decoded(&want) {
        pool.set_aside_the_dearest();
    }
    pool.fetch(want).await?;
    let bytes = ranges.iter().map(|range| join(&pool, parts_of(*range, stripe.shard_len))).collect();
    Ok(Gathered { bytes, bad: pool.into_bad() })
}

/// Reads a whole pack from the k shards that cost least, data shards first among equals. With `check`, the result is
/// compared with the pack's id.
pub async fn gather_pack(
    io: &dyn ShardIo,
    stripe: &StripeRecord,
    repo: RepoId,
    pack_len: u64,
    check: Option<PackId>,
    prefer: Prefer<'_>,
    health: &NodeHealth,
) -> Result<Gathered<Bytes>, GatherError> {
    check_record(stripe, Some(pack_len))?;
    let whole = PackRange { offset: 0, len: pack_len };
    let parts = parts_of(whole, stripe.shard_len);
    let mut pool = Pool::new(io, stripe, repo, prefer, health);
    pool.set_aside_the_dearest();
    pool.fetch(parts.iter().map(|(index, part)| (*index, vec![*part])).collect()).await?;
    let bytes = join(&pool, parts);
    match check {
        Some(id) if PackId::of(&bytes) != id => Err(GatherError::WrongPack(id)),
        _ => Ok(Gathered { bytes, bad: pool.into_bad() }),
    }
}

/// Rebuilds shard `want` from k others, without asking its own holder, and checks it against its recorded hash.
pub async fn gather_shard(
    io: &dyn ShardIo,
    stripe: &StripeRecord,
    repo: RepoId,
    want: u8,
    prefer: Prefer<'_>,
    health: &NodeHealth,
) -> Result<Gathered<Bytes>, GatherError> {
    check_record(stripe, None)?;
    let Some(reference) = stripe.shard(repo, want) else {
        return Err(GatherError::Record(stripe.id, "it has no shard of this index"));
    };
    let whole = ShardRange { offset: 0, len: stripe.shard_len };
    let mut pool = Pool::new(io, stripe, repo, prefer, health);
    pool.leave_out(want);
    pool.fetch(BTreeMap::from([(want, vec![whole])])).await?;
    let bytes = join(&pool, vec![(want, whole)]);
    if hash_shard(reference.id, &bytes).0 != reference.hash {
        return Err(GatherError::WrongShard(reference.id));
    }
    Ok(Gathered { bytes, bad: pool.into_bad() })
}

/// Records come from the catalogue, but a wrong one must not become a panic.
fn check_record(stripe: &StripeRecord, pack_len: Option<u64>) -> Result<(), GatherError> {
    let bad = |what| Err(GatherError::Record(stripe.id, what));
    if stripe.shards.len() != stripe.scheme.n() {
        return bad("it does not have k + m shards");
    }
    if stripe.shard_len == 0 || stripe.shard_len > crate::limits::SHARD_BYTES_MAX as u64 {
        return bad("its shards have an impossible length");
    }
    if pack_len.is_some_and(|len| len > stripe.shard_len * stripe.scheme.k() as u64) {
        return bad("its data shards are shorter than the pack");
    }
    Ok(())
}

/// Which data shards hold a range of the pack: they follow each other, each `shard_len` bytes.
fn parts_of(range: PackRange, shard_len: u64) -> Vec<(u8, ShardRange)> {
    let (mut at, end) = (range.offset, range.offset + range.len);
    let mut parts = Vec::new();
    while at < end {
        let offset = at % shard_len;
        let len = (shard_len - offset).min(end - at);
        parts.push(((at / shard_len) as u8, ShardRange { offset, len }));
        at += len;
    }
    parts
}

/// The bytes of consecutive parts; no copy if there is one.
fn join(pool: &Pool, parts: Vec<(u8, ShardRange)>) -> Bytes {
    let piece = |(index, range): &(u8, ShardRange)| {
        pool.bytes(*index, *range).expect("fetch gets all it is asked for")
    };
    match &parts[..] {
        [] => Bytes::new(),
        [part] => piece(part),
        parts => {
            let mut joined = BytesMut::with_capacity(parts.iter().map(|(_, range)| range.len as usize).sum());
            parts.iter().for_each(|part| joined.extend_from_slice(&piece(part)));
            joined.freeze()
        }
    }
}
