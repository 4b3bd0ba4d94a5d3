//! Session leases, kept by the leader on its monotonic clock. A lease that runs out ends its session by a command;
//! nothing but that command ends a session, so a slow clock or a new leader can only make it live longer.

use super::Shared;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::Command;
use farshore_core::id::SessionId;
use farshore_core::limits::PAGE_ROWS_MAX;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// When each open session runs out, as this leader sees it.
pub struct Leases {
    lease: Duration,
    until: Mutex<BTreeMap<SessionId, Instant>>,
}

impl Leases {
    /// An empty table.
    pub fn new(lease: Duration) -> Self {
        Leases { lease, until: Mutex::default() }
    }

    /// Gives a session a full lease. The caller has made sure that it is open.
    pub fn renew(&self, session: SessionId, now: Instant) {
        self.until().insert(session, now + self.lease);
    }

    /// Squares the table with the sessions that are open, and names those whose lease has run out. A session not seen
    /// before gets a full lease: it was opened just now, or under an earlier leader.
    pub fn step(&self, open: &[SessionId], now: Instant) -> Vec<SessionId> {
        let mut until = self.until();
        let former = std::mem::take(&mut *until);
        *until = open.iter().map(|s| (*s, former.get(s).copied().unwrap_or(now + self.lease))).collect();
        until.iter().filter(|(_, end)| **end <= now).map(|(s, _)| *s).collect()
    }

    /// Forgets everything: a new leader must not end a session because of what it saw in an earlier term.
    pub fn clear(&self) {
        self.until().clear();
    }

    fn until(&self) -> std::sync::MutexGuard<'_, BTreeMap<SessionId, Instant>> {
        self.until.lock().expect("no holder of this lock panics")
    }
}

/// The leader's worker that ends what has run out.
pub struct EndStale {
    shared: Arc<Shared>,
    /// Term in which this node began to lead, while it does.
    leading: Option<u64>,
}

impl EndStale {
    /// A worker that knows of no term yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        EndStale { shared, leading: None }
    }

    fn open_sessions(&self) -> Result<Vec<SessionId>, WorkFailed> {
        let view = self.shared.view()?;
        let mut open = Vec::new();
        let mut after = None;
        loop {
            let page = view.sessions(after, PAGE_ROWS_MAX)?;
            open.extend(page.rows.iter().map(|s| s.id));
            match page.next {
                Some(next) => after = Some(next),
                None => return Ok(open),
            }
        }
    }
}

#[async_trait]
impl Worker for EndStale {
    fn name(&self) -> &'static str {
        "lease"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let term = self.shared.leading();
        if term != self.leading {
            self.leading = term;
            self.shared.leases.clear();
        }
        if term.is_none() {
            return Ok(Pace::Idle);
        }
        let mut sessions = self.shared.leases.step(&self.open_sessions()?, Instant::now());
        sessions.truncate(PAGE_ROWS_MAX);
        if sessions.is_empty() {
            return Ok(Pace::Idle);
        }
        tracing::info!(?sessions, "leases ran out");
        // Only while we lead: a renewal that a successor has taken must not be undone by what we remember.
        self.shared.propose_leading(Command::EndSessions { sessions }).await?;
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.heartbeat).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_runs_out_only_without_renewal_and_a_new_leader_grants_it_afresh() {
        let lease = Duration::from_secs(120);
        let leases = Leases::new(lease);
        let [a, b] = [1, 2].map(|n| SessionId([n; 16]));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(leases.step(&[a, b], start).is_empty());
        leases.renew(a, at(100));
        assert_eq!(leases.step(&[a, b], at(120)), [b]);
        assert_eq!(leases.step(&[a, b], at(121)), [b], "until the command is applied it stays due");
        assert!(leases.step(&[a], at(122)).is_empty(), "an ended session is forgotten");
        leases.clear();
        assert!(leases.step(&[a], at(500)).is_empty());
        assert_eq!(leases.step(&[a], at(620)), [a]);
    }
}
