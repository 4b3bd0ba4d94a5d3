//! Conversions of what operators change in a repository: snapshots forgotten and locked, settings, reports on garbage.

use super::catalogue::key_slots;
use super::{at_most, list, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::catalogue::{
    Lock, LockMode, RepoChange, RepoLock, RepoSettings, SnapshotLabel, SnapshotMarks,
};
use farshore_core::id::SnapshotId;
use farshore_core::limits::{
    RETENTION_BYTES_MAX, SNAPSHOT_SEALED_BYTES_MAX, SNAPSHOT_TAGS_MAX, SNAPSHOTS_PER_COMMAND_MAX,
};
use wire::change_repository_request::Change;

impl From<SnapshotLabel> for wire::SnapshotLabel {
    fn from(label: SnapshotLabel) -> Self {
        wire::SnapshotLabel {
            time_ms: label.time_ms,
            utc_offset_min: label.utc_offset_min.map(i32::from),
            bytes: label.bytes,
            tags: label.tags.into_iter().map(u64::from_le_bytes).collect(),
            partial: label.partial,
        }
    }
}
impl TryFrom<wire::SnapshotLabel> for SnapshotLabel {
    type Error = ApiError;
    fn try_from(label: wire::SnapshotLabel) -> Result<Self, ApiError> {
        let offset = |minutes| i16::try_from(minutes).ok().filter(|m| m.unsigned_abs() < 24 * 60);
        let offset = label.utc_offset_min.map(|minutes| {
            offset(minutes).ok_or_else(|| ApiError::Invalid("no time zone is a day away from UTC".into()))
        });
        Ok(SnapshotLabel {
            time_ms: label.time_ms,
            utc_offset_min: offset.transpose()?,
            bytes: label.bytes,
            tags: list(label.tags, SNAPSHOT_TAGS_MAX, "tags", |tag| Ok(tag.to_le_bytes()))?,
            partial: label.partial,
        })
    }
}

fn mode(compliance: bool) -> LockMode {
    if compliance { LockMode::Compliance } else { LockMode::Governance }
}

impl From<Lock> for wire::Lock {
    fn from(lock: Lock) -> Self {
        wire::Lock { compliance: lock.mode == LockMode::Compliance, until_ms: lock.until_ms }
    }
}
impl From<wire::Lock> for Lock {
    fn from(lock: wire::Lock) -> Self {
        Lock { mode: mode(lock.compliance), until_ms: lock.until_ms }
    }
}

impl From<RepoLock> for wire::RepositoryLock {
    fn from(lock: RepoLock) -> Self {
        wire::RepositoryLock { compliance: lock.mode == LockMode::Compliance, for_ms: lock.for_ms }
    }
}
impl From<wire::RepositoryLock> for RepoLock {
    fn from(lock: wire::RepositoryLock) -> Self {
        RepoLock { mode: mode(lock.compliance), for_ms: lock.for_ms }
    }
}

impl From<SnapshotMarks> for wire::SnapshotMarks {
    fn from(marks: SnapshotMarks) -> Self {
        wire::SnapshotMarks {
            lock: marks.lock.map(Into::into),
            verified_ms: marks.verified_ms,
            forgotten_ms: marks.forgotten_ms,
        }
    }
}
impl From<wire::SnapshotMarks> for SnapshotMarks {
    fn from(marks: wire::SnapshotMarks) -> Self {
        SnapshotMarks {
            lock: marks.lock.map(Into::into),
            verified_ms: marks.verified_ms,
            forgotten_ms: marks.forgotten_ms,
        }
    }
}

impl From<RepoSettings> for wire::RepositorySettings {
    fn from(settings: RepoSettings) -> Self {
        wire::RepositorySettings {
            lock: settings.lock.map(Into::into),
            trash_ms: settings.trash_ms,
            retention: settings.retention,
            last_committed_ms: settings.last_committed_ms,
            catalogue_ms: 0,
        }
    }
}
impl TryFrom<wire::RepositorySettings> for RepoSettings {
    type Error = ApiError;
    fn try_from(settings: wire::RepositorySettings) -> Result<Self, ApiError> {
        Ok(RepoSettings {
            lock: settings.lock.map(Into::into),
            trash_ms: settings.trash_ms,
            retention: settings.retention.map(policy_text).transpose()?,
            last_committed_ms: settings.last_committed_ms,
        })
    }
}

fn policy_text(text: String) -> Result<String, ApiError> {
    if text.len() <= RETENTION_BYTES_MAX {
        return Ok(text);
    }
    Err(ApiError::Invalid(format!("a retention policy has at most {RETENTION_BYTES_MAX} bytes")))
}

fn ids(snapshots: &[SnapshotId]) -> Vec<bytes::Bytes> {
    snapshots.iter().map(|id| bytes::Bytes::copy_from_slice(id.as_bytes())).collect()
}

fn snapshots(ids: Vec<bytes::Bytes>) -> Result<Vec<SnapshotId>, ApiError> {
    list(ids, SNAPSHOTS_PER_COMMAND_MAX, "snapshots", |id| Ok(SnapshotId::from_slice(&id)?))
}

impl From<RepoChange> for Change {
    fn from(change: RepoChange) -> Self {
        match change {
            RepoChange::Forget { snapshots, bypass } => {
                Change::Forget(wire::Forget { ids: ids(&snapshots), bypass })
            }
            RepoChange::Undelete { snapshots } => {
                Change::Undelete(wire::SnapshotIds { ids: ids(&snapshots) })
            }
            RepoChange::Purge { snapshots, early } => {
                Change::Purge(wire::Purge { ids: ids(&snapshots), early })
            }
            RepoChange::LockSnapshot { snapshot, lock, bypass } => {
                let id = bytes::Bytes::copy_from_slice(snapshot.as_bytes());
                Change::LockSnapshot(wire::LockSnapshot { id, lock: Some(lock.into()), bypass })
            }
            RepoChange::Lock { lock, bypass } => {
                Change::Lock(wire::LockRepository { lock: lock.map(Into::into), bypass })
            }
            RepoChange::SetTrash { trash_ms } => Change::SetTrash(wire::SetTrash { trash_ms }),
            RepoChange::SetRetention { policy } => Change::SetRetention(wire::SetRetention { policy }),
            RepoChange::MarkVerified { snapshot } => {
                Change::MarkVerified(bytes::Bytes::copy_from_slice(snapshot.as_bytes()))
            }
            RepoChange::SetPolicy { policy, scheme } => Change::SetPolicy(wire::SetPolicy {
                policy: Some(policy.into()),
                scheme: Some(scheme.into()),
            }),
            RepoChange::SetKeySlots { expected, slots } => Change::SetKeySlots(wire::SetKeySlots {
                expected: bytes::Bytes::copy_from_slice(&expected),
                slots: slots.into_iter().map(Into::into).collect(),
            }),
            RepoChange::Describe { snapshot, expected, sealed, tags } => Change::Describe(wire::Describe {
                id: bytes::Bytes::copy_from_slice(snapshot.as_bytes()),
                expected: bytes::Bytes::copy_from_slice(&expected),
                sealed: sealed.into(),
                tags: tags.into_iter().map(u64::from_le_bytes).collect(),
            }),
        }
    }
}
impl TryFrom<Change> for RepoChange {
    type Error = ApiError;
    fn try_from(change: Change) -> Result<Self, ApiError> {
        Ok(match change {
            Change::Forget(wire::Forget { ids, bypass }) => {
                RepoChange::Forget { snapshots: snapshots(ids)?, bypass }
            }
            Change::Undelete(wire::SnapshotIds { ids }) => {
                RepoChange::Undelete { snapshots: snapshots(ids)? }
            }
            Change::Purge(wire::Purge { ids, early }) => {
                RepoChange::Purge { snapshots: snapshots(ids)?, early }
            }
            Change::LockSnapshot(wire::LockSnapshot { id, lock, bypass }) => RepoChange::LockSnapshot {
                snapshot: SnapshotId::from_slice(&id)?,
                lock: required(lock, "lock")?.into(),
                bypass,
            },
            Change::Lock(wire::LockRepository { lock, bypass }) => {
                RepoChange::Lock { lock: lock.map(Into::into), bypass }
            }
            Change::SetTrash(wire::SetTrash { trash_ms }) => RepoChange::SetTrash { trash_ms },
            Change::SetRetention(wire::SetRetention { policy }) => {
                RepoChange::SetRetention { policy: policy.map(policy_text).transpose()? }
            }
            Change::MarkVerified(id) => RepoChange::MarkVerified { snapshot: SnapshotId::from_slice(&id)? },
            Change::SetPolicy(wire::SetPolicy { policy, scheme }) => RepoChange::SetPolicy {
                policy: required(policy, "policy")?.try_into()?,
                scheme: required(scheme, "scheme")?.try_into()?,
            },
            Change::SetKeySlots(wire::SetKeySlots { expected, slots }) => RepoChange::SetKeySlots {
                expected: expected.as_ref().try_into().map_err(|_| {
                    ApiError::Invalid("the hash of the key slots that are expected has 32 bytes".into())
                })?,
                slots: key_slots(slots)?,
            },
            Change::Describe(wire::Describe { id, expected, sealed, tags }) => RepoChange::Describe {
                snapshot: SnapshotId::from_slice(&id)?,
                expected: expected.as_ref().try_into().map_err(|_| {
                    ApiError::Invalid("the hash of the description that is expected has 32 bytes".into())
                })?,
                sealed: {
                    at_most(sealed.len(), SNAPSHOT_SEALED_BYTES_MAX, "bytes of a description")?;
                    sealed.into()
                },
                tags: list(tags, SNAPSHOT_TAGS_MAX, "tags", |tag| Ok(tag.to_le_bytes()))?,
            },
        })
    }
}
