//! The part of invariant 5 that is about sessions (DESIGN 5): what a session has seen stays until it ends, so nothing may
//! be recorded under one that has ended, none may be shared by mistake, and a snapshot must name whatever it needs, or
//! a sweep to come would not know. Told by the clients' recorded calls and the replicas' rows.

use super::{Moment, Scene};
use crate::linear::SessionCall;
use crate::tree::Tree;
use farshore_client::files::FileKind;
use farshore_core::catalogue::SnapshotRecord;
use farshore_core::id::{RepoId, SessionId, SnapshotId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_node::catalogue::{LiveSet, View};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Files shorter than this are one chunk each, whatever the repository's settings.
const ONE_CHUNK_BYTES: usize = 64 << 10;

/// What has been seen of sessions.
#[derive(Default)]
pub struct Leases {
    /// Place in the history of calls.
    read: usize,
    /// Sessions and the client that opened each.
    opened: BTreeMap<SessionId, u64>,
    /// Snapshots that clients wanted recorded, and under which session.
    offered: BTreeMap<SnapshotId, (SessionId, Arc<SnapshotRecord>)>,
    applied: u64,
    open: BTreeSet<SessionId>,
    /// Sessions that were open and are not, by the index at which that was seen.
    ended: BTreeMap<SessionId, u64>,
    recorded: BTreeSet<(RepoId, SnapshotId)>,
}

impl Leases {
    /// Looks at what is new.
    pub fn check(&mut self, scene: &Scene<'_>) -> Result<u64, String> {
        self.read_calls(scene)?;
        if scene.moment == Moment::Acknowledged {
            self.check_live(scene)?;
        }
        if scene.view.applied() <= self.applied {
            return Ok(0);
        }
        self.applied = scene.view.applied();
        let facts = self.read_snapshots(scene.view)?;
        self.read_sessions(scene.view)?;
        Ok(facts)
    }

    fn read_calls(&mut self, scene: &Scene<'_>) -> Result<(), String> {
        let (calls, read) = scene.cluster.history.session_calls(self.read);
        self.read = read;
        for call in calls {
            match call {
                SessionCall::Open(session, client) => {
                    if let Some(other) = self.opened.insert(session, client) {
                        return Err(format!(
                            "p{client} opens session {session}, which p{other} has opened before"
                        ));
                    }
                }
                SessionCall::Offer(session, snapshot) => {
                    self.offered.insert(snapshot.id, (session, snapshot));
                }
            }
        }
        Ok(())
    }

    /// A snapshot that is new here must have come under a session that was open when we looked last, or later.
    fn read_snapshots(&mut self, view: &View) -> Result<u64, String> {
        let mut facts = 0;
        for (repo, id) in snapshots(view)? {
            if !self.recorded.insert((repo, id)) {
                continue;
            }
            facts += 1;
            let Some((session, _)) = self.offered.get(&id) else { continue };
            if let Some(at) = self.ended.get(session) {
                return Err(format!(
                    "snapshot {id} was recorded under session {session}, which had ended by log entry {at}"
                ));
            }
        }
        Ok(facts)
    }

    fn read_sessions(&mut self, view: &View) -> Result<(), String> {
        let mut open = BTreeSet::new();
        let mut after = None;
        loop {
            let page = view.sessions(after, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
            open.extend(page.rows.iter().map(|session| session.id));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        let (before, applied) = (std::mem::replace(&mut self.open, open), self.applied);
        self.ended.extend(before.difference(&self.open).map(|session| (*session, applied)));
        if let Some((session, at)) = self.ended.iter().find(|(session, _)| self.open.contains(session)) {
            return Err(format!("session {session} is open again, which had ended by log entry {at}"));
        }
        Ok(())
    }

    /// The live set of what was acknowledged just now names at least a chunk for each different content, and a tree.
    fn check_live(&self, scene: &Scene<'_>) -> Result<(), String> {
        let Some(promise) = scene.promises.last() else { return Ok(()) };
        let offered = self.offered.values().find(|(_, snapshot)| snapshot.id.to_string() == promise.id);
        let Some((_, snapshot)) = offered else { return Ok(()) };
        let live = LiveSet::decode(&snapshot.live).map_err(|e| e.to_string())?;
        let least = different(&promise.tree) + 1;
        if live.len() < least {
            let named = live.len();
            return Err(format!("snapshot {} names {named} chunks and needs {least} or more", promise.id));
        }
        Ok(())
    }
}

/// Different contents that are one chunk each.
fn different(tree: &Tree) -> u64 {
    let files = tree.values().filter(|entry| matches!(entry.stat.kind, FileKind::File { .. }));
    let small = files.filter(|entry| !entry.bytes.is_empty() && entry.bytes.len() < ONE_CHUNK_BYTES);
    small.map(|entry| &entry.bytes).collect::<BTreeSet<_>>().len() as u64
}

/// Every snapshot of a catalogue.
pub(super) fn snapshots(view: &View) -> Result<Vec<(RepoId, SnapshotId)>, String> {
    let mut found = Vec::new();
    let repos = view.repos(None, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
    for repo in repos.rows {
        let mut after = None;
        loop {
            let page = view.snapshots(repo.id, after, PAGE_ROWS_MAX, false).map_err(|e| e.to_string())?;
            found.extend(page.rows.iter().map(|snapshot| (repo.id, snapshot.id)));
            after = page.next;
            if after.is_none() {
                break;
            }
        }
    }
    Ok(found)
}
