//! Exports: copies of the catalogue that lie among the shards, for the day on which no replica is left. Which there are
//! is recorded, so that old ones are condemned; what is in them each part says itself (docs/format.md).

use super::record::ShardRecord;
use crate::erasure::{CODEC_RS, Scheme};
use crate::id::{ExportId, PackId, RepoId, StripeId};
use serde::{Deserialize, Serialize};

/// Owner of the shards of exports. No repository has this id.
pub const EXPORT_REPO: RepoId = RepoId([0xff; 16]);

/// An export whose every part is durable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportRecord {
    /// Drawn by the leader that made it; it stands in every part.
    pub id: ExportId,
    /// A whole catalogue; otherwise the log entries since another export.
    pub base: bool,
    /// Last log entry before it; 0 for a base.
    pub from: u64,
    /// Last log entry in it.
    pub to: u64,
    /// Catalogue time after that entry.
    pub time_ms: u64,
    /// The leader's clock when it was begun.
    pub made_ms: u64,
    /// Bytes of its parts before coding.
    pub bytes: u64,
    /// Its parts, in order.
    pub parts: Vec<ExportPart>,
}

/// A piece of an export, coded like any pack.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExportPart {
    /// Hash of its bytes.
    pub pack: PackId,
    /// Bytes before coding.
    pub len: u64,
    /// k, m and spread.
    pub scheme: Scheme,
    /// By shard index.
    pub shards: Vec<ShardRecord>,
}

impl ExportPart {
    /// The stripe that codes it.
    pub fn stripe(&self) -> StripeId {
        let (k, m, _) = self.scheme.into();
        StripeId::of(EXPORT_REPO, self.pack, k, m, CODEC_RS)
    }
}
