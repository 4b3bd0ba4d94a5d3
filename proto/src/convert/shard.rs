//! Ranges of a shard, and the request that asks for them.

use super::{list, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::limits::SHARD_RANGES_MAX;
use farshore_core::peer::ShardRef;
use farshore_core::shard::ShardRange;

impl From<ShardRange> for wire::Range {
    fn from(range: ShardRange) -> Self {
        wire::Range { offset: range.offset, len: range.len }
    }
}
impl TryFrom<wire::Range> for ShardRange {
    type Error = ApiError;
    fn try_from(range: wire::Range) -> Result<Self, ApiError> {
        if range.len == 0 || range.offset.checked_add(range.len).is_none() {
            return Err(ApiError::Invalid(format!(
                "no range begins at {} with {} bytes",
                range.offset, range.len
            )));
        }
        Ok(ShardRange { offset: range.offset, len: range.len })
    }
}

/// A request to read.
pub fn get_request(shard: ShardRef, ranges: &[ShardRange]) -> wire::GetRequest {
    wire::GetRequest {
        shard: Some(shard.into()),
        ranges: ranges.iter().copied().map(wire::Range::from).collect(),
    }
}

/// What a request to read asks for: every range lies inside the payload it names.
pub fn from_get_request(request: wire::GetRequest) -> Result<(ShardRef, Vec<ShardRange>), ApiError> {
    let shard: ShardRef = required(request.shard, "shard")?.try_into()?;
    let ranges = list(request.ranges, SHARD_RANGES_MAX, "ranges", |range| {
        let range = ShardRange::try_from(range)?;
        if !range.fits(shard.payload_len) {
            return Err(ApiError::Invalid(format!("{range:?} ends after the shard")));
        }
        Ok(range)
    })?;
    Ok((shard, ranges))
}
