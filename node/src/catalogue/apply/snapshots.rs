//! `CommitSnapshot`: a snapshot is recorded only when every chunk it needs is there.

use super::super::error::CatalogueError;
use super::super::live::LiveSet;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::Outcome;
use farshore_core::catalogue::{Refusal, Reply, SnapshotRecord};
use farshore_core::id::{RepoId, SessionId};
use farshore_core::limits::{PAGE_ROWS_MAX, SNAPSHOT_SEALED_BYTES_MAX, UNDER_TARGET_LOOKS_MAX};
use farshore_core::mutant::{Mutant, mutant};

pub(super) fn commit(tx: &mut Tx, session: SessionId, snapshot: &SnapshotRecord) -> Outcome {
    let key = (snapshot.repo, snapshot.id);
    if snapshot.sealed.len() > SNAPSHOT_SEALED_BYTES_MAX {
        return Err(Refusal::Malformed("sealed description of the snapshot is too large".into()).into());
    }
    let live = LiveSet::decode(&snapshot.live).map_err(|bad| Refusal::Malformed(bad.to_string()))?;
    // Asked before the session: whoever repeats a commit whose answer was lost may have been expired meanwhile.
    if let Some(known) = tx.get::<Snapshots>(&key)? {
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
    let next = tx.get::<NextOrdinals>(&snapshot.repo)?.unwrap_or_default();
    let gone = live.from_on(next, PAGE_ROWS_MAX);
    if !gone.is_empty() {
        return Err(Refusal::ChunksGone(gone).into());
    }
    let row = SnapshotRecord { committed_ms: tx.state.time_ms, live: Vec::new(), ..snapshot.clone() };
    tx.put::<Snapshots>(&key, &row)?;
    tx.put::<LiveSets>(&key, &snapshot.live)?;
    Ok(committed(tx, row.committed_ms, snapshot.repo, &live)?)
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
        let needed = |row: &UnderTarget| row.repo == repo && live.needs_any(row.first_ordinal, row.chunks);
        count += rows.iter().filter(|(_, row)| needed(row)).count();
        looks += rows.len();
        match rows.last() {
            Some((last, _)) if rows.len() == PAGE_ROWS_MAX => span = Span::after(Some(last)),
            _ => break,
        }
    }
    Ok(count.min(PAGE_ROWS_MAX) as u32)
}
