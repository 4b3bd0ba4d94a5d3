//! What must be survived, and the compiler from goals to a code.

use serde::{Deserialize, Serialize};

/// What an operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Policy {
    /// Whole regions that may vanish at once.
    pub regions: u8,
    /// Further nodes that may vanish besides.
    pub nodes: u8,
    /// Whole providers that may vanish at once.
    pub providers: u8,
    /// Write floor: a degraded write is accepted only if this many further nodes can be lost and k shards remain.
    pub floor_nodes: u8,
}
