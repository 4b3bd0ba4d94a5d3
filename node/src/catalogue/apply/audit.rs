//! What stays of administrative and destructive acts: a record in the same step, so that no act is without its record and no
//! record without its act. Daily work (packs, snapshots, sessions, repair, garbage) leaves none.

use super::super::error::CatalogueError;
use super::super::read::{Read, audit_head};
use super::super::tables::*;
use super::super::tx::Tx;
use farshore_core::catalogue::{
    Act, ActOutcome, Actor, AuditEntry, AuditRecord, Command, Refusal, Reply, RepoAct, RepoChange,
    RepoRecord, SomeSnapshots, sealed_hash, slots_hash,
};
use farshore_core::id::AuditHash;
use farshore_core::topology::NodeRecord;

/// What a record would say of a command; asked before it is carried out, since some acts are known by what was there.
pub(in super::super) fn act_of(tx: &Tx, command: &Command) -> Result<Option<Act>, CatalogueError> {
    Ok(match command {
        Command::CreateRepository { repo } => {
            Some(Act::CreateRepository { repo: repo.id, name: repo.name.clone() })
        }
        Command::PutNode { node } | Command::AdmitNode { node, .. } => place_node(tx, node)?,
        Command::SetNodeState { node, from, to } => {
            Some(Act::SetNodeState { node: *node, from: *from, to: *to })
        }
        Command::StageTopology { epoch, changes, .. } => {
            Some(Act::StageTopology { epoch: *epoch, changes: changes.clone() })
        }
        Command::ChangeTopology { epoch, changes, .. } => {
            Some(Act::ChangeTopology { epoch: *epoch, changes: changes.clone() })
        }
        Command::ChangeRepository { repo, change } => {
            let known = tx.get::<Repos>(repo)?;
            let act = known.and_then(|known| Some((repo_act(change, &known)?, known.name)));
            act.map(|(act, name)| Act::ChangeRepository { repo: *repo, name, act })
        }
        Command::RaiseLevel { to } => {
            let from = tx.state.level;
            (from < *to).then_some(Act::RaiseLevel { from, to: *to })
        }
        Command::BeginEra { era, node } => Some(Act::BeginEra { era: *era, node: *node }),
        Command::Migrate { epoch, from, to, cold, .. } => {
            Some(Act::Migrate { epoch: *epoch, from: from.clone(), to: to.clone(), cold: *cold })
        }
        Command::EndMigration { epoch, from, keep, .. } => {
            Some(Act::EndMigration { epoch: *epoch, from: from.clone(), keep: *keep })
        }
        Command::SetUpkeep { upkeep } => {
            Some(Act::SetUpkeep { scrub_paused: upkeep.scrub_paused, links: upkeep.links.len() as u32 })
        }
        // The chain begins in a cluster that is formed.
        Command::FormCluster { .. } => None,
        Command::OpenSession { .. }
        | Command::EndSessions { .. }
        | Command::CommitPacks { .. }
        | Command::CommitSnapshot { .. }
        | Command::PlaceShard { .. }
        | Command::ShardBad { .. }
        | Command::Recheck { .. }
        | Command::Swept { .. }
        | Command::CondemnPacks { .. }
        | Command::RevivePacks { .. }
        | Command::DropPacks { .. }
        | Command::CondemnOrphans { .. }
        | Command::CompactPacks { .. }
        | Command::RecordExport { .. }
        | Command::RecordVerified { .. } => None,
    })
}

/// A node that says where it is listens on another address every now and then; only what placement goes by is an act.
fn place_node(tx: &Tx, new: &NodeRecord) -> Result<Option<Act>, CatalogueError> {
    let NodeRecord { id, name, region, zone, capacity, .. } = new;
    let same = |old: &NodeRecord| old.region == *region && old.zone == *zone && old.capacity == *capacity;
    if tx.get::<Nodes>(id)?.as_ref().is_some_and(same) {
        return Ok(None);
    }
    let (name, region, zone) = (name.clone(), region.clone(), zone.clone());
    Ok(Some(Act::PlaceNode { node: *id, name, region, zone, capacity: *capacity }))
}

fn repo_act(change: &RepoChange, known: &RepoRecord) -> Option<RepoAct> {
    Some(match change {
        RepoChange::Forget { snapshots, bypass } => {
            RepoAct::Forget { snapshots: SomeSnapshots::of(snapshots), bypass: *bypass }
        }
        RepoChange::Undelete { snapshots } => RepoAct::Undelete { snapshots: SomeSnapshots::of(snapshots) },
        RepoChange::Purge { snapshots, early } => {
            RepoAct::Purge { snapshots: SomeSnapshots::of(snapshots), early: *early }
        }
        RepoChange::LockSnapshot { snapshot, lock, bypass } => {
            RepoAct::LockSnapshot { snapshot: *snapshot, lock: *lock, bypass: *bypass }
        }
        RepoChange::Lock { lock, bypass } => RepoAct::Lock { lock: *lock, bypass: *bypass },
        RepoChange::SetTrash { trash_ms } => RepoAct::SetTrash { trash_ms: *trash_ms },
        RepoChange::SetRetention { policy } => RepoAct::SetRetention { policy: policy.clone() },
        RepoChange::SetPolicy { policy, scheme } => RepoAct::SetPolicy { policy: *policy, scheme: *scheme },
        RepoChange::Describe { snapshot, expected, sealed, .. } => RepoAct::Describe {
            snapshot: *snapshot,
            before: AuditHash(*expected),
            after: AuditHash(sealed_hash(sealed)),
        },
        RepoChange::SetKeySlots { slots, .. } => RepoAct::SetKeySlots {
            was: known.key_slots.len() as u32,
            now: slots.len() as u32,
            before: AuditHash(known.slots_hash()),
            after: AuditHash(slots_hash(slots)),
        },
        RepoChange::MarkVerified { .. } => return None,
    })
}

/// Writes the record of an act that changed something, or that a lock refused. `changed` says whether any row did.
pub(in super::super) fn record_act(
    tx: &mut Tx,
    index: u64,
    actor: &Actor,
    act: Act,
    reply: &Reply,
    changed: bool,
) -> Result<(), CatalogueError> {
    let Some(outcome) = outcome_of(&act, reply, changed) else { return Ok(()) };
    let head = audit_head(tx, &tx.state)?;
    let (seq, time_ms, actor) = (head.seq + 1, tx.state.time_ms, actor.clone());
    let entry = AuditEntry { seq, time_ms, index, actor, act, outcome };
    tx.put::<Audits>(&AuditKey(seq), &AuditRecord::behind(head.hash, entry))
}

/// Repeating a command is harmless and leaves no second record; of refusals only a lock's is an act worth knowing.
fn outcome_of(act: &Act, reply: &Reply, changed: bool) -> Option<ActOutcome> {
    match reply {
        Reply::Refused(Refusal::Locked(snapshot, mode, until_ms)) => {
            Some(ActOutcome::Locked { snapshot: *snapshot, mode: *mode, until_ms: *until_ms })
        }
        Reply::Refused(Refusal::LockShortened(mode)) => Some(ActOutcome::LockKept { mode: *mode }),
        Reply::Refused(_) | Reply::Changed { count: 0 } => None,
        Reply::Changed { count } => Some(ActOutcome::Changed { count: *count }),
        // An era that no session was open to see has begun all the same, and a level changes no row.
        _ if changed || matches!(act, Act::BeginEra { .. } | Act::RaiseLevel { .. }) => {
            Some(ActOutcome::Done)
        }
        _ => None,
    }
}
