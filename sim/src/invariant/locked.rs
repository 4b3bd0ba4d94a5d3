//! Invariant 8. Source: DESIGN 13.8. Locks themselves are tried by `run/discard.rs`; they are worth what catalogue time is,
//! which never runs backwards as the log goes on, and never ahead unless a majority of the voters' calendars does.
//!
//! A cold migration locks the whole cluster: while its row is there no session is opened and no snapshot is recorded.

use super::leases::snapshots;
use super::{Invariant, Scene};
use crate::clock::now_ms;
use farshore_core::id::{RepoId, SessionId, SnapshotId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::topology::Region;
use farshore_node::catalogue::View;
use std::collections::{BTreeMap, BTreeSet};

/// Time goes forwards, as fast as it does.
#[derive(Default)]
pub struct Locked {
    /// Catalogue time by applied index.
    times: BTreeMap<u64, u64>,
    applied: u64,
    frozen: Frozen,
}

/// What a cluster holds while nothing may be written.
#[derive(Default)]
struct Frozen {
    /// Cold migrations, by region and beginning.
    migrations: BTreeSet<(Region, u64)>,
    sessions: BTreeSet<SessionId>,
    snapshots: BTreeSet<(RepoId, SnapshotId)>,
}

impl Frozen {
    fn of(view: &View) -> Result<Self, String> {
        let mut now = Frozen::default();
        let rows = view.migrations().map_err(|e| e.to_string())?;
        now.migrations.extend(rows.into_iter().filter(|m| m.cold).map(|m| (m.from, m.since_ms)));
        if now.migrations.is_empty() {
            return Ok(now);
        }
        let mut after = None;
        loop {
            let page = view.sessions(after, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
            now.sessions.extend(page.rows.iter().map(|session| session.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        // Those in the trash as well: they may be taken out of it.
        now.snapshots.extend(snapshots(view)?);
        for repo in view.repos(None, PAGE_ROWS_MAX).map_err(|e| e.to_string())?.rows {
            let trash = view.trash(repo.id, None, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
            now.snapshots.extend(trash.rows.iter().map(|snapshot| (repo.id, snapshot.id)));
        }
        Ok(now)
    }

    /// What has come since the last look, if one migration has lasted all the time.
    fn check(&self, now: &Frozen) -> Result<u64, String> {
        let Some((region, _)) = self.migrations.intersection(&now.migrations).next() else { return Ok(0) };
        if let Some(session) = now.sessions.difference(&self.sessions).next() {
            return Err(format!("region {region} moves cold, and session {session} was opened meanwhile"));
        }
        if let Some((_, snapshot)) = now.snapshots.difference(&self.snapshots).next() {
            return Err(format!(
                "region {region} moves cold, and snapshot {snapshot} was recorded meanwhile"
            ));
        }
        Ok(1)
    }
}

/// Times remembered.
const TIMES_KEPT: usize = 20_000;

impl Invariant for Locked {
    fn name(&self) -> &'static str {
        "locked"
    }
    fn statement(&self) -> &'static str {
        "nothing removes or shortens a locked snapshot; catalogue time never runs backwards"
    }
    fn check(&mut self, scene: &mut Scene<'_>) -> Result<u64, String> {
        let mut facts = 0;
        if scene.view.applied() > self.applied {
            let now = Frozen::of(scene.view)?;
            facts += self.frozen.check(&now)?;
            (self.applied, self.frozen) = (scene.view.applied(), now);
        }
        for at in 0..scene.cluster.machines.len() {
            let Some(view) = scene.cluster.node(at).and_then(|node| node.view().ok()) else { continue };
            let (applied, time) = (view.applied(), view.time_ms());
            facts += 1;
            let now = now_ms(&scene.cluster.world);
            if scene.cluster.time_is_right() && time > now {
                return Err(format!(
                    "catalogue time is {} ms ahead although most calendars are right",
                    time - now
                ));
            }
            let earlier = self.times.range(..=applied).next_back().filter(|(_, before)| **before > time);
            let later = self.times.range(applied..).next().filter(|(_, after)| **after < time);
            if let Some((other, theirs)) = earlier.or(later) {
                return Err(format!("catalogue time is {time} at index {applied} and {theirs} at {other}"));
            }
            self.times.insert(applied, time);
        }
        while self.times.len() > TIMES_KEPT {
            self.times.pop_first();
        }
        Ok(facts)
    }
}
