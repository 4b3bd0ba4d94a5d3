//! Sessions opened and ended. An ended one is remembered for as long as its id might be sent again by a call that comes
//! late: opened once more, it could commit packs that were dropped because it had ended.

use super::super::error::CatalogueError;
use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, upkeep};
use farshore_core::catalogue::{Refusal, Reply, SessionRecord};
use farshore_core::id::{RepoId, SessionId};
use farshore_core::limits::{SESSIONS_ENDED_MAX, SESSIONS_OPEN_MAX};
use farshore_core::mutant::{Mutant, mutant};

pub(super) fn open(tx: &mut Tx, index: u64, id: SessionId, repo: RepoId, seen: u64) -> Outcome {
    match tx.get::<Sessions>(&id)? {
        Some(open) if open.repo == repo => return Ok(Reply::SessionOpen { opened: open.opened }),
        Some(_) => {
            return Err(Refusal::Malformed("session id is in use for another repository".into()).into());
        }
        None => {}
    }
    if !tx.has::<Repos>(&repo)? {
        return Err(Refusal::NoRepo.into());
    }
    upkeep::check_thawed(tx)?;
    let has_ended = tx.has::<Ended>(&id)? || seen < tx.state.ended_forgotten;
    if has_ended && !mutant(Mutant::ReopenEnded) {
        return Err(Refusal::NoSession(id).into());
    }
    if tx.state.rows_of(Sessions::TABLE) >= SESSIONS_OPEN_MAX {
        let what = format!("{SESSIONS_OPEN_MAX} sessions are open; wait until some have ended");
        return Err(Refusal::Malformed(what).into());
    }
    let (opened_ms, first_pack) = (tx.state.time_ms, tx.state.next_pack);
    tx.put::<Sessions>(&id, &SessionRecord { id, repo, opened: index, opened_ms, first_pack })?;
    Ok(Reply::SessionOpen { opened: index })
}

pub(super) fn end(tx: &mut Tx, index: u64, sessions: &[SessionId]) -> Outcome {
    for id in sessions {
        // One that is not open may be opened by a call that is still under way: it shall not be.
        tx.remove::<Sessions>(id)?;
        if !tx.has::<Ended>(id)? {
            tx.put::<Ended>(id, &index)?;
        }
    }
    if tx.state.rows_of(Ended::TABLE) > SESSIONS_ENDED_MAX {
        forget_older_half(tx)?;
    }
    Ok(Reply::Done)
}

/// Ends every session: ordinals that were acknowledged after what is known here will be given out once more, and no
/// client may name the old ones.
pub(super) fn begin_era(tx: &mut Tx, index: u64) -> Outcome {
    let open = tx.scan::<Sessions>(&Span::all(), SESSIONS_OPEN_MAX as usize)?;
    let open: Vec<SessionId> = open.into_iter().map(|(id, _)| id).collect();
    end(tx, index, &open)
}

fn forget_older_half(tx: &mut Tx) -> Result<(), CatalogueError> {
    let mut ended = tx.scan::<Ended>(&Span::all(), usize::MAX / 2)?;
    ended.sort_by_key(|(id, at)| (*at, *id));
    ended.truncate(ended.len() / 2);
    for (id, at) in ended {
        tx.remove::<Ended>(&id)?;
        // Whoever has seen a later index than this cannot have sent the opening of one of these.
        tx.state.ended_forgotten = tx.state.ended_forgotten.max(at);
    }
    Ok(())
}
