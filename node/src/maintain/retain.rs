//! Policies that run by themselves: the leader judges a repository again whenever something was committed to it or set
//! for it, and forgets what its policy drops. Forgotten snapshots lie in the trash like any others, so that a policy
//! that was not meant can be taken back.

use super::Shared;
use crate::catalogue::View;
use crate::plan::{candidate, plan_retention};
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, RepoChange, RepoSettings};
use farshore_core::id::{RepoId, SnapshotId};
use farshore_core::limits::{PAGE_ROWS_MAX, RETAIN_AGAIN_MS, SNAPSHOTS_PER_COMMAND_MAX};
use farshore_core::retention::Candidate;
use std::collections::BTreeMap;

/// What each repository was last judged by, and at which catalogue time. One that has not changed since is left alone:
/// what an operator has taken out of the trash then has time to be locked.
#[derive(Default)]
pub struct Retain {
    judged: BTreeMap<RepoId, (RepoSettings, u64)>,
}

impl Retain {
    /// Forgets what the policy of this repository drops now, if it has one and there is news.
    pub async fn forget_due(&mut self, shared: &Shared, repo: RepoId) -> Result<(), WorkFailed> {
        let view = shared.view()?;
        let (settings, now_ms) = (view.settings(repo)?, view.time_ms());
        let Some(policy) = settings.retention.as_deref() else {
            self.judged.remove(&repo);
            return Ok(());
        };
        let news = self.judged.get(&repo).is_none_or(|(before, at_ms)| {
            *before != settings || now_ms >= at_ms.saturating_add(RETAIN_AGAIN_MS)
        });
        if !news {
            return Ok(());
        }
        match plan_retention(policy, now_ms, &candidates(&view, repo, &settings)?) {
            Ok(due) => forget(shared, repo, &due).await?,
            // It was stored by a program that knows more; without understanding it nothing may be forgotten.
            Err(why) => tracing::error!(%repo, %why, "the retention policy is not understood"),
        }
        self.judged.insert(repo, (settings, now_ms));
        Ok(())
    }
}

fn candidates(view: &View, repo: RepoId, settings: &RepoSettings) -> Result<Vec<Candidate>, WorkFailed> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = view.snapshots(repo, after, PAGE_ROWS_MAX, false)?;
        for row in &page.rows {
            all.push(candidate(settings, row, &view.marks(repo, row.id)?));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// Moves snapshots to the trash, locks respected.
pub(super) async fn forget(shared: &Shared, repo: RepoId, due: &[SnapshotId]) -> Result<(), WorkFailed> {
    for snapshots in due.chunks(SNAPSHOTS_PER_COMMAND_MAX) {
        let change = RepoChange::Forget { snapshots: snapshots.to_vec(), bypass: false };
        shared.propose_leading(Command::ChangeRepository { repo, change }).await?;
    }
    if !due.is_empty() {
        tracing::info!(%repo, snapshots = due.len(), "snapshots forgotten");
    }
    Ok(())
}
