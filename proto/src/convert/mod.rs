//! Wire to core and back. What comes from the wire is checked here, once: lengths, limits, names, codes; what passes
//! is a core value that cannot be wrong. Nothing here talks to anyone.

pub mod build;

pub mod catalogue;

pub mod retention;

pub mod upkeep;

pub mod raft;

pub mod shard;

pub mod common;

use crate::status::ApiError;
use farshore_core::erasure::BadScheme;
use farshore_core::id::BadId;
use farshore_core::topology::BadName;

impl From<BadId> for ApiError {
    fn from(e: BadId) -> Self {
        ApiError::Invalid(e.to_string())
    }
}
impl From<BadScheme> for ApiError {
    fn from(e: BadScheme) -> Self {
        ApiError::Invalid(e.to_string())
    }
}
impl From<BadName> for ApiError {
    fn from(e: BadName) -> Self {
        ApiError::Invalid(e.to_string())
    }
}

/// A message field that must be there.
pub fn required<T>(field: Option<T>, what: &str) -> Result<T, ApiError> {
    field.ok_or_else(|| ApiError::Invalid(format!("{what} is missing")))
}

/// Refuses more than `max` of something, before anything is made of it.
pub fn at_most(count: usize, max: usize, what: &str) -> Result<(), ApiError> {
    if count > max {
        return Err(ApiError::Invalid(format!("{count} {what} are more than the {max} allowed")));
    }
    Ok(())
}

/// Makes core values of a list of at most `max` wire values.
pub fn list<W, C>(
    wire: Vec<W>,
    max: usize,
    what: &str,
    each: impl FnMut(W) -> Result<C, ApiError>,
) -> Result<Vec<C>, ApiError> {
    at_most(wire.len(), max, what)?;
    wire.into_iter().map(each).collect()
}

/// A number that the wire carries wider than it is.
fn narrow<T: TryFrom<u32>>(wide: u32, what: &str) -> Result<T, ApiError> {
    T::try_from(wide).map_err(|_| ApiError::Invalid(format!("{what} {wide} is out of range")))
}

#[cfg(test)]
mod convert_test;
