//! Session leases, kept by the leader on its monotonic clock. A lease that runs out ends its session by a command;
//! nothing but that command ends a session, so a slow clock or a new leader can only make it live longer.
//!
//! The command may wait in the log for a majority while its session still looks open, so within a term the judgement is
//! final: what has run out once is not renewed any more. A later term begins behind every such command that is left.

use super::Shared;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::Command;
use farshore_core::id::SessionId;
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::mutant::{Mutant, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::time::Instant;

/// When each open session runs out, as this leader sees it.
pub struct Leases {
    lease: Duration,
    table: Mutex<Table>,
}

/// What was seen in one term.
#[derive(Default)]
struct Table {
    /// Term in which this node leads, while it does.
    term: Option<u64>,
    until: BTreeMap<SessionId, Instant>,
    /// Those whose end may be under way.
    ending: BTreeSet<SessionId>,
}

impl Leases {
    /// An empty table.
    pub fn new(lease: Duration) -> Self {
        Leases { lease, table: Mutex::default() }
    }

    /// Gives a session a full lease. The caller has made sure, in the given term of this node, that it is open.
    /// False, and no lease, if its end may be under way or this table no longer is of that term or not yet.
    #[must_use]
    pub fn renew(&self, term: u64, session: SessionId, now: Instant) -> bool {
        let mut table = self.table();
        let ending = table.ending.contains(&session) && !mutant(Mutant::RenewEnding);
        if table.term != Some(term) || ending {
            return false;
        }
        table.until.insert(session, now + self.lease);
        true
    }

    /// Squares the table with the sessions that are open, and names those whose lease has run out. A session not seen
    /// before gets a full lease: it was opened just now, or under an earlier leader.
    pub fn step(&self, open: &[SessionId], now: Instant) -> Vec<SessionId> {
        let mut table = self.table();
        let former = std::mem::take(&mut table.until);
        table.until = open.iter().map(|s| (*s, former.get(s).copied().unwrap_or(now + self.lease))).collect();
        table.ending = table.until.iter().filter(|(_, end)| **end <= now).map(|(s, _)| *s).collect();
        table.ending.iter().copied().collect()
    }

    /// Says in which term this node leads, if it does. Another term forgets everything: a new leader must not end a
    /// session because of what it saw in an earlier one.
    pub fn lead(&self, term: Option<u64>) {
        let mut table = self.table();
        if table.term != term {
            *table = Table { term, ..Table::default() };
        }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

/// The leader's worker that ends what has run out.
pub struct EndStale {
    shared: Arc<Shared>,
}

impl EndStale {
    /// A worker for this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        EndStale { shared }
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
        self.shared.leases.lead(term);
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
        leases.lead(Some(1));
        assert!(leases.step(&[a, b], start).is_empty());
        assert!(leases.renew(1, a, at(100)));
        assert_eq!(leases.step(&[a, b], at(120)), [b]);
        assert_eq!(leases.step(&[a, b], at(121)), [b], "until the command is applied it stays due");
        assert!(leases.step(&[a], at(122)).is_empty(), "an ended session is forgotten");
        leases.lead(Some(1));
        assert_eq!(leases.step(&[a], at(220)), [a], "the same term remembers");
        leases.lead(Some(3));
        assert!(leases.step(&[a], at(500)).is_empty());
        assert_eq!(leases.step(&[a], at(620)), [a]);
    }

    /// Found by the check of linearizability, storm seeds 25 and 107: a leader cut off had written the end of
    /// a session into its log, and acknowledged a renewal when the majority was back, moments before the end was applied.
    #[test]
    fn a_session_whose_end_is_under_way_is_not_renewed() {
        let leases = Leases::new(Duration::from_secs(120));
        let session = SessionId([1; 16]);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        leases.lead(Some(1));
        assert!(leases.step(&[session], start).is_empty());
        assert_eq!(leases.step(&[session], at(120)), [session]);
        assert!(!leases.renew(1, session, at(121)), "its end waits in the log");
        assert_eq!(leases.step(&[session], at(122)), [session]);
        assert!(leases.step(&[], at(123)).is_empty());
        assert!(leases.step(&[session], at(124)).is_empty());
        assert!(leases.renew(1, session, at(125)), "opened anew");
    }

    #[test]
    fn a_renewal_counts_only_in_the_term_it_was_confirmed_in() {
        let leases = Leases::new(Duration::from_secs(120));
        let session = SessionId([1; 16]);
        let now = Instant::now();
        assert!(
            !leases.renew(1, session, now),
            "this node leads no longer, or does not know yet that it does"
        );
        leases.lead(Some(3));
        assert!(!leases.renew(1, session, now));
        assert!(leases.renew(3, session, now));
        leases.lead(None);
        assert!(!leases.renew(3, session, now));
    }
}
