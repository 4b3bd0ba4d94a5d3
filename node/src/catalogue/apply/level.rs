//! `RaiseLevel`: the cluster uses what a newer release brings once every node can do it.

use super::super::read::Read;
use super::super::tables::*;
use super::super::tx::Tx;
use super::{Outcome, Stop};
use farshore_core::catalogue::{Refusal, Reply};
use farshore_core::level::LEVEL_FIRST;
use farshore_core::limits::NODES_MAX;

/// Refuses what needs a higher level than the cluster's: nodes that do not know it would stop.
pub(super) fn allows(cluster: u32, needed: u32) -> Result<(), Stop> {
    if needed <= cluster {
        return Ok(());
    }
    Err(Refusal::LevelNeeded(needed, cluster).into())
}

/// Whoever is lost is not waited for: it learns on its return that it has to be updated.
pub(super) fn raise(tx: &mut Tx, to: u32) -> Outcome {
    if to <= tx.state.level {
        return Ok(Reply::Done);
    }
    let nodes = tx.scan::<Nodes>(&Span::all(), NODES_MAX)?;
    let mut known = false;
    for (id, _) in nodes.iter().filter(|(_, node)| node.state.counts()) {
        known = true;
        let level = tx.get::<NodeLevels>(id)?.unwrap_or(LEVEL_FIRST);
        if level < to {
            return Err(Refusal::LevelHeld(*id, level).into());
        }
    }
    if !known {
        return Err(Refusal::Malformed("no node is known that could do it".into()).into());
    }
    // Every other replica goes on at the new level. One that cannot must not go on at the old one.
    tx.check_level(to)?;
    tx.state.level = to;
    Ok(Reply::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_higher_level_is_refused_with_both() {
        assert!(allows(2, 1).is_ok() && allows(2, 2).is_ok());
        assert!(matches!(allows(2, 3), Err(Stop::Refused(Refusal::LevelNeeded(3, 2)))));
    }
}
