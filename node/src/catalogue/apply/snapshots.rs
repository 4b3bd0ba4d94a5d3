//! `CommitSnapshot`: a snapshot is recorded only when every chunk it needs is there.

use super::super::error::CatalogueError;
use super::super::live::LiveSet;
use super::super::ordinals::Ordinals;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop, garbage, ordinals, retention, upkeep};
use farshore_core::catalogue::{Refusal, Reply, RepoSettings, SnapshotRecord};
use farshore_core::id::{RepoId, SessionId, SnapshotId};
use farshore_core::limits::{
    PAGE_ROWS_MAX, SNAPSHOT_SEALED_BYTES_MAX, SNAPSHOT_TAGS_MAX, UNDER_TARGET_LOOKS_MAX,
};
use farshore_core::mutant::{Mutant, mutant};

pub(super) fn commit(
    tx: &mut Tx,
    session: SessionId,
    snapshot: &SnapshotRecord,
    replaces: Option<SnapshotId>,
) -> Outcome {
    let key = (snapshot.repo, snapshot.id);
    if snapshot.sealed.len() > SNAPSHOT_SEALED_BYTES_MAX || snapshot.label.tags.len() > SNAPSHOT_TAGS_MAX {
        return Err(Refusal::Malformed("description of the snapshot is too large".into()).into());
    }
    let live = LiveSet::decode(&snapshot.live).map_err(|bad| Refusal::Malformed(bad.to_string()))?;
    // Asked before the session: whoever repeats a commit whose answer was lost may have been expired meanwhile, and the
    // snapshot may even have been forgotten.
    let known = tx.get::<Snapshots>(&key)?.map_or_else(|| tx.get::<Trash>(&key), |known| Ok(Some(known)))?;
    if let Some(known) = known {
        let bytes = tx.get::<LiveSets>(&key)?.ok_or(CatalogueError::Torn("a snapshot lacks its live set"))?;
        if !same(&known, snapshot) || bytes != snapshot.live {
            return Err(Refusal::SnapshotExists(snapshot.id).into());
        }
        return Ok(committed(tx, known.committed_ms, snapshot.repo, &live)?);
    }
    let open = tx.get::<Sessions>(&session)?.filter(|open| open.repo == snapshot.repo);
    if !mutant(Mutant::IgnoreExpiry) {
        open.ok_or(Refusal::NoSession(session))?;
    }
    upkeep::check_thawed(tx)?;
    require(tx, snapshot.repo, &live)?;
    if let Some(checkpoint) = replaces {
        retention::replace(tx, snapshot.repo, checkpoint)?;
    }
    // Later than every commit before, so that "latest" means one snapshot although the time may stand still.
    let settings = retention::settings_of(tx, snapshot.repo)?;
    let committed_ms = tx.state.time_ms.max(settings.last_committed_ms.saturating_add(1));
    tx.put::<Settings>(&snapshot.repo, &RepoSettings { last_committed_ms: committed_ms, ..settings })?;
    let row = SnapshotRecord { committed_ms, live: Vec::new(), ..snapshot.clone() };
    tx.put::<Snapshots>(&key, &row)?;
    tx.put::<LiveSets>(&key, &snapshot.live)?;
    Ok(committed(tx, row.committed_ms, snapshot.repo, &live)?)
}

/// Every chunk is there, or was condemned and is needed again.
fn require(tx: &mut Tx, repo: RepoId, live: &LiveSet) -> Result<(), Stop> {
    let (mut gone, mut condemned) = (Vec::new(), false);
    for (no, segment) in ordinals::segments(tx, repo)? {
        let wanted = live.bits_of(no);
        condemned |= segment.condemned.common(&wanted).next().is_some();
        gone.extend(ordinals::common(no, &segment.absent, &wanted));
        gone.truncate(PAGE_ROWS_MAX);
    }
    let next = tx.get::<NextOrdinals>(&repo)?.unwrap_or_default();
    gone.extend(live.from_on(next, PAGE_ROWS_MAX - gone.len()));
    if !gone.is_empty() && !mutant(Mutant::TakeGone) && !mutant(Mutant::ReopenEnded) {
        return Err(Refusal::ChunksGone(gone).into());
    }
    if condemned && !mutant(Mutant::OfferCondemned) {
        garbage::revive_named(tx, repo, live)?;
    }
    Ok(())
}

/// Everything but the commit time and the live set, which is kept apart.
fn same(known: &SnapshotRecord, offered: &SnapshotRecord) -> bool {
    let known = SnapshotRecord { committed_ms: 0, live: Vec::new(), ..known.clone() };
    known == SnapshotRecord { committed_ms: 0, live: Vec::new(), ..offered.clone() }
}

fn committed(tx: &Tx, committed_ms: u64, repo: RepoId, live: &LiveSet) -> Result<Reply, CatalogueError> {
    Ok(Reply::SnapshotCommitted { committed_ms, under_target: under_target(tx, repo, live)? })
}

/// Packs of the snapshot that are listed as below full strength. Looks at a bounded number of rows, so that the answer
/// is a lower bound when very many packs are below strength.
fn under_target(tx: &Tx, repo: RepoId, live: &LiveSet) -> Result<u32, CatalogueError> {
    let (mut count, mut looks) = (0, 0);
    let mut span = Span::all();
    while !live.is_empty() && looks < UNDER_TARGET_LOOKS_MAX && count < PAGE_ROWS_MAX {
        let rows = tx.scan::<UnderTargets>(&span, PAGE_ROWS_MAX)?;
        for (no, row) in rows.iter().filter(|(_, row)| row.repo == repo) {
            let moved = tx.get::<PackOrdinals>(no)?;
            let own = moved.unwrap_or_else(|| Ordinals::range(row.first_ordinal, row.chunks));
            count += usize::from(live.needs_any(&own));
        }
        looks += rows.len();
        match rows.last() {
            Some((last, _)) if rows.len() == PAGE_ROWS_MAX => span = Span::after(Some(last)),
            _ => break,
        }
    }
    Ok(count.min(PAGE_ROWS_MAX) as u32)
}
