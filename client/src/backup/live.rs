//! The set of ordinals a snapshot needs: the home of roaring. Ordinals of one run are mostly consecutive, so a
//! terabyte's worth is a few KiB.

use crate::error::{Error, Result};
use farshore_core::id::Ordinal;
use farshore_core::limits::SNAPSHOT_BITMAP_BYTES_MAX;
use roaring::RoaringTreemap;

/// Ordinals collected so far.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Live(RoaringTreemap);

impl Live {
    /// Adds one.
    pub fn insert(&mut self, ordinal: Ordinal) {
        self.0.insert(ordinal.0);
    }
    /// How many.
    pub fn len(&self) -> u64 {
        self.0.len()
    }
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    /// The serialised form of the snapshot record; an error if it exceeds the record's limit.
    pub fn encode(&mut self) -> Result<Vec<u8>> {
        self.0.optimize();
        let mut bytes = Vec::with_capacity(self.0.serialized_size());
        self.0.serialize_into(&mut bytes).expect("writing to memory does not fail");
        if bytes.len() > SNAPSHOT_BITMAP_BYTES_MAX {
            return Err(Error::Invalid(
                "the snapshot needs chunks too scattered for one record; back up fewer paths at once".into(),
            ));
        }
        Ok(bytes)
    }
}
