//! Snapshots forgotten, brought back, purged, locked and marked; what an operator sets for a repository. The locks are
//! enforced here and nowhere else, on catalogue time.

use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop};
use farshore_core::catalogue::{
    Lock, LockMode, Recoding, Refusal, Reply, RepoChange, RepoLock, RepoRecord, RepoSettings, SnapshotMarks,
};
use farshore_core::erasure::Scheme;
use farshore_core::id::{RepoId, SnapshotId};
use farshore_core::limits::{
    KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX, RETENTION_BYTES_MAX, SNAPSHOT_SEALED_BYTES_MAX, SNAPSHOT_TAGS_MAX,
    SNAPSHOTS_PER_COMMAND_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::policy::Policy;

pub(super) fn change(tx: &mut Tx, repo: RepoId, change: &RepoChange) -> Outcome {
    match change {
        RepoChange::Forget { snapshots, bypass } => forget(tx, repo, snapshots, *bypass),
        RepoChange::Undelete { snapshots } => undelete(tx, repo, snapshots),
        RepoChange::Purge { snapshots, early } => purge(tx, repo, snapshots, *early),
        RepoChange::LockSnapshot { snapshot, lock, bypass } => {
            lock_snapshot(tx, repo, *snapshot, *lock, *bypass)
        }
        RepoChange::Lock { lock, bypass } => lock_repository(tx, repo, *lock, *bypass),
        RepoChange::SetTrash { trash_ms } => set_trash(tx, repo, *trash_ms),
        RepoChange::SetRetention { policy } => set_retention(tx, repo, policy.as_deref()),
        RepoChange::MarkVerified { snapshot } => mark_verified(tx, repo, *snapshot),
        RepoChange::SetPolicy { policy, scheme } => set_policy(tx, repo, *policy, *scheme),
        RepoChange::SetKeySlots { expected, slots } => set_key_slots(tx, repo, expected, slots),
        RepoChange::Describe { snapshot, expected, sealed, tags } => {
            describe(tx, (repo, *snapshot), expected, sealed, tags)
        }
    }
}

/// The slots are opaque here. What is kept from happening is that a repository loses its last one, or that one admin
/// undoes what another did.
fn set_key_slots(tx: &mut Tx, repo: RepoId, expected: &[u8; 32], slots: &[Vec<u8>]) -> Outcome {
    let known = tx.get::<Repos>(&repo)?.ok_or(Refusal::NoRepo)?;
    let fit = |slot: &Vec<u8>| (1..=KEY_SLOT_BYTES_MAX).contains(&slot.len());
    if !(1..=KEY_SLOTS_MAX).contains(&slots.len()) || !slots.iter().all(fit) {
        let what =
            format!("a repository has 1 to {KEY_SLOTS_MAX} key slots of 1 to {KEY_SLOT_BYTES_MAX} bytes");
        return Err(Refusal::Malformed(what).into());
    }
    if known.key_slots == slots {
        return Ok(Reply::Done);
    }
    if known.slots_hash() != *expected {
        return Err(Refusal::StaleKeys.into());
    }
    tx.put::<Repos>(&repo, &RepoRecord { key_slots: slots.to_vec(), ..known })?;
    Ok(Reply::Done)
}

/// The description is opaque here. A checkpoint has none that anybody reads.
fn describe(
    tx: &mut Tx,
    key: (RepoId, SnapshotId),
    expected: &[u8; 32],
    sealed: &[u8],
    tags: &[[u8; 8]],
) -> Outcome {
    if sealed.is_empty() || sealed.len() > SNAPSHOT_SEALED_BYTES_MAX || tags.len() > SNAPSHOT_TAGS_MAX {
        let what = format!(
            "a description has 1 to {SNAPSHOT_SEALED_BYTES_MAX} bytes and at most {SNAPSHOT_TAGS_MAX} tags"
        );
        return Err(Refusal::Malformed(what).into());
    }
    let known = tx.get::<Snapshots>(&key)?.filter(|known| !known.label.partial);
    let mut known = known.ok_or(Refusal::NoSnapshot(key.1))?;
    if known.sealed == sealed && known.label.tags == tags {
        return Ok(Reply::Done);
    }
    if known.sealed_hash() != *expected {
        return Err(Refusal::StaleSnapshot(key.1).into());
    }
    known.sealed = sealed.to_vec();
    known.label.tags = tags.to_vec();
    tx.put::<Snapshots>(&key, &known)?;
    Ok(Reply::Done)
}

fn set_policy(tx: &mut Tx, repo: RepoId, policy: Policy, scheme: Scheme) -> Outcome {
    let known = tx.get::<Repos>(&repo)?.ok_or(Refusal::NoRepo)?;
    if !policy.admits(scheme) {
        let what = format!("{scheme} with {} in a region does not survive \"{policy}\"", scheme.spread());
        return Err(Refusal::Malformed(what).into());
    }
    let open = tx.get::<Recodings>(&repo)?;
    let former = match open {
        // Sessions opened under either may still be open.
        Some(open) if known.policy == policy => open.former,
        _ => known.policy,
    };
    tx.put::<Repos>(&repo, &RepoRecord { policy, ..known })?;
    let before = tx.state.next_pack;
    tx.put::<Recodings>(&repo, &Recoding { former, scheme, before })?;
    Ok(Reply::Done)
}

fn forget(tx: &mut Tx, repo: RepoId, which: &[SnapshotId], bypass: bool) -> Outcome {
    check_len(which)?;
    let (settings, now_ms) = (settings_of(tx, repo)?, tx.state.time_ms);
    let mut count = 0;
    for id in which {
        let key = (repo, *id);
        let Some(snapshot) = tx.get::<Snapshots>(&key)? else { continue };
        let marks = tx.get::<Marks>(&key)?.unwrap_or_default();
        // A checkpoint is nobody's backup: the next run makes it superfluous.
        let from_repo = settings.lock.filter(|_| !snapshot.label.partial);
        let locks = [marks.lock, from_repo.map(|lock| lock.of(snapshot.committed_ms))];
        let binding = |lock: &Lock| lock.holds(now_ms) && !(bypass && lock.mode == LockMode::Governance);
        let lock = locks.into_iter().flatten().filter(binding).max_by_key(|lock| lock.until_ms);
        if let Some(lock) = lock
            && !mutant(Mutant::IgnoreLock)
        {
            return Err(Refusal::Locked(*id, lock.mode, lock.until_ms).into());
        }
        tx.remove::<Snapshots>(&key)?;
        tx.put::<Trash>(&key, &snapshot)?;
        tx.put::<Marks>(&key, &SnapshotMarks { forgotten_ms: Some(now_ms), ..marks })?;
        count += 1;
    }
    Ok(Reply::Changed { count })
}

fn undelete(tx: &mut Tx, repo: RepoId, which: &[SnapshotId]) -> Outcome {
    check_len(which)?;
    let mut count = 0;
    for id in which {
        let key = (repo, *id);
        let Some(snapshot) = tx.get::<Trash>(&key)? else {
            // Asked for twice, or purged meanwhile, which must not look like success.
            if tx.has::<Snapshots>(&key)? {
                continue;
            }
            return Err(Refusal::NoSnapshot(*id).into());
        };
        tx.remove::<Trash>(&key)?;
        tx.put::<Snapshots>(&key, &snapshot)?;
        let marks = tx.get::<Marks>(&key)?.unwrap_or_default();
        put_marks(tx, &key, SnapshotMarks { forgotten_ms: None, ..marks })?;
        count += 1;
    }
    Ok(Reply::Changed { count })
}

fn purge(tx: &mut Tx, repo: RepoId, which: &[SnapshotId], early: bool) -> Outcome {
    check_len(which)?;
    let trash_ms = settings_of(tx, repo)?.trash_ms();
    let mut count = 0;
    for id in which {
        let key = (repo, *id);
        if !tx.has::<Trash>(&key)? {
            continue;
        }
        let since = tx.get::<Marks>(&key)?.and_then(|marks| marks.forgotten_ms).unwrap_or_default();
        if early || tx.state.time_ms >= since.saturating_add(trash_ms) {
            tx.remove::<Trash>(&key)?;
            tx.remove::<LiveSets>(&key)?;
            tx.remove::<Marks>(&key)?;
            count += 1;
        }
    }
    Ok(Reply::Changed { count })
}

/// Removes a checkpoint at once.
pub(super) fn replace(tx: &mut Tx, repo: RepoId, id: SnapshotId) -> Result<(), Stop> {
    let key = (repo, id);
    for known in [tx.get::<Snapshots>(&key)?, tx.get::<Trash>(&key)?].into_iter().flatten() {
        if !known.label.partial {
            return Err(Refusal::Malformed(format!("snapshot {id} is no checkpoint")).into());
        }
    }
    tx.remove::<Snapshots>(&key)?;
    tx.remove::<Trash>(&key)?;
    tx.remove::<LiveSets>(&key)?;
    Ok(tx.remove::<Marks>(&key)?)
}

fn lock_snapshot(tx: &mut Tx, repo: RepoId, id: SnapshotId, lock: Lock, bypass: bool) -> Outcome {
    let key = (repo, id);
    if !tx.has::<Snapshots>(&key)? {
        return Err(Refusal::NoSnapshot(id).into());
    }
    let marks = tx.get::<Marks>(&key)?.unwrap_or_default();
    let old = marks.lock.filter(|old| old.holds(tx.state.time_ms));
    if let Some(old) = old.filter(|old| !lock.covers(old))
        && !(bypass && old.mode == LockMode::Governance)
    {
        return Err(Refusal::LockShortened(old.mode).into());
    }
    put_marks(tx, &key, SnapshotMarks { lock: Some(lock), ..marks })?;
    Ok(Reply::Done)
}

fn lock_repository(tx: &mut Tx, repo: RepoId, lock: Option<RepoLock>, bypass: bool) -> Outcome {
    let settings = settings_of(tx, repo)?;
    let covers = |old: &RepoLock| lock.is_some_and(|lock| lock.covers(old));
    if let Some(old) = settings.lock.filter(|old| !covers(old))
        && !(bypass && old.mode == LockMode::Governance)
    {
        return Err(Refusal::LockShortened(old.mode).into());
    }
    tx.put::<Settings>(&repo, &RepoSettings { lock, ..settings })?;
    Ok(Reply::Done)
}

fn set_trash(tx: &mut Tx, repo: RepoId, trash_ms: Option<u64>) -> Outcome {
    let settings = settings_of(tx, repo)?;
    tx.put::<Settings>(&repo, &RepoSettings { trash_ms, ..settings })?;
    Ok(Reply::Done)
}

fn set_retention(tx: &mut Tx, repo: RepoId, policy: Option<&str>) -> Outcome {
    let settings = settings_of(tx, repo)?;
    if policy.is_some_and(|policy| policy.len() > RETENTION_BYTES_MAX) {
        let what = format!("a retention policy has at most {RETENTION_BYTES_MAX} bytes");
        return Err(Refusal::Malformed(what).into());
    }
    tx.put::<Settings>(&repo, &RepoSettings { retention: policy.map(Into::into), ..settings })?;
    Ok(Reply::Done)
}

fn mark_verified(tx: &mut Tx, repo: RepoId, id: SnapshotId) -> Outcome {
    let key = (repo, id);
    if !tx.has::<Snapshots>(&key)? && !tx.has::<Trash>(&key)? {
        return Err(Refusal::NoSnapshot(id).into());
    }
    let marks = tx.get::<Marks>(&key)?.unwrap_or_default();
    let verified_ms = Some(tx.state.time_ms);
    tx.put::<Marks>(&key, &SnapshotMarks { verified_ms, ..marks })?;
    Ok(Reply::Done)
}

/// Settings of a repository that exists.
pub(super) fn settings_of(tx: &Tx, repo: RepoId) -> Result<RepoSettings, Stop> {
    if !tx.has::<Repos>(&repo)? {
        return Err(Refusal::NoRepo.into());
    }
    Ok(tx.get::<Settings>(&repo)?.unwrap_or_default())
}

fn put_marks(tx: &mut Tx, key: &(RepoId, SnapshotId), marks: SnapshotMarks) -> Result<(), Stop> {
    if marks == SnapshotMarks::default() {
        return Ok(tx.remove::<Marks>(key)?);
    }
    Ok(tx.put::<Marks>(key, &marks)?)
}

fn check_len(which: &[SnapshotId]) -> Result<(), Stop> {
    if which.len() <= SNAPSHOTS_PER_COMMAND_MAX {
        return Ok(());
    }
    Err(Refusal::Malformed(format!("more than {SNAPSHOTS_PER_COMMAND_MAX} snapshots at once")).into())
}
