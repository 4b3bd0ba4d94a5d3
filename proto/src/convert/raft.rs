//! What nodes tell each other besides openraft's own bytes: heartbeats and rows of a catalogue image.

use super::{at_most, narrow, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::host::Table;
use farshore_core::level::LEVEL_FIRST;
use farshore_core::limits::ROW_BYTES_MAX;
use farshore_core::topology::NodeRecord;

/// A sign of life, and what the node holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Heartbeat {
    /// Who it is and where; its state is the leader's business and ignored.
    pub node: NodeRecord,
    /// Bytes of shards held.
    pub used: u64,
    /// Bytes the disk still has.
    pub free: u64,
    /// Number of shards held.
    pub shards: u64,
    /// Shards it has found missing or corrupt since it started.
    pub bad_found: u64,
    /// Of its data directory; 0 from a release that drew none.
    pub incarnation: u64,
    /// Feature level that its program can do.
    pub level: u32,
    /// Era of its log, if it has one.
    pub era: Option<u32>,
    /// What its calendar shows, milliseconds since 1970; 0 from a release that does not say.
    pub clock_ms: u64,
    /// Of its last heartbeats the quickest, there and back, microseconds; 0 if it does not know.
    pub rtt_us: u64,
    /// Its disk, for a MiB or for a call about less, microseconds; 0 if it does not know.
    pub disk_us: u64,
}

impl From<Heartbeat> for wire::HeartbeatRequest {
    fn from(beat: Heartbeat) -> Self {
        wire::HeartbeatRequest {
            node: Some(beat.node.into()),
            used: beat.used,
            free: beat.free,
            shards: beat.shards,
            bad_found: beat.bad_found,
            incarnation: beat.incarnation,
            feature_level: beat.level,
            era_plus_one: era_to_wire(beat.era),
            clock_ms: beat.clock_ms,
            rtt_us: beat.rtt_us,
            disk_us: beat.disk_us,
        }
    }
}
impl TryFrom<wire::HeartbeatRequest> for Heartbeat {
    type Error = ApiError;
    fn try_from(beat: wire::HeartbeatRequest) -> Result<Self, ApiError> {
        let node = required(beat.node, "node")?.try_into()?;
        let (used, free, shards, bad_found) = (beat.used, beat.free, beat.shards, beat.bad_found);
        let era = era_from_wire(beat.era_plus_one);
        // A release that says none was the first.
        let (incarnation, level) = (beat.incarnation, beat.feature_level.max(LEVEL_FIRST));
        let (clock_ms, rtt_us, disk_us) = (beat.clock_ms, beat.rtt_us, beat.disk_us);
        Ok(Heartbeat {
            node,
            used,
            free,
            shards,
            bad_found,
            incarnation,
            level,
            era,
            clock_ms,
            rtt_us,
            disk_us,
        })
    }
}

/// An era as messages carry it: none is 0.
pub fn era_to_wire(era: Option<u32>) -> u32 {
    era.map_or(0, |era| era.saturating_add(1))
}
/// The era a message carries.
pub fn era_from_wire(era_plus_one: u32) -> Option<u32> {
    era_plus_one.checked_sub(1)
}

/// One row of a catalogue image, its key without the generation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    /// Which table.
    pub table: Table,
    /// Never empty.
    pub key: Vec<u8>,
    /// Stored bytes.
    pub value: Vec<u8>,
}

impl From<Row> for wire::SnapshotRow {
    fn from(row: Row) -> Self {
        wire::SnapshotRow { table: row.table.into(), key: row.key.into(), value: row.value.into() }
    }
}
impl TryFrom<wire::SnapshotRow> for Row {
    type Error = ApiError;
    fn try_from(row: wire::SnapshotRow) -> Result<Self, ApiError> {
        at_most(row.key.len() + row.value.len(), ROW_BYTES_MAX, "bytes of a row")?;
        if row.key.is_empty() {
            return Err(ApiError::Invalid("a row has no key".into()));
        }
        Ok(Row { table: narrow(row.table, "table")?, key: row.key.into(), value: row.value.into() })
    }
}
