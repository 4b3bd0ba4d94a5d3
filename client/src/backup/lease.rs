//! A session held open: renewed in the background, closed at the end.

use crate::api::CatalogueApi;
use crate::error::Result;
use farshore_core::host::task::Owned;
use farshore_core::host::{Entropy, random};
use farshore_core::id::{RepoId, SessionId};
use farshore_core::limits::SESSION_RENEW_MS;
use farshore_core::mutant::{Mutant, mutant};
use std::sync::Arc;
use std::time::Duration;

/// Closing is tried for this long: a run that failed because the cluster is gone says so now, not a retry budget later.
const CLOSE_MS: u64 = 3_000;

/// An open session. Dropped without `close`, it expires by itself.
pub struct Lease {
    catalogue: Arc<dyn CatalogueApi>,
    id: SessionId,
    _renewal: Owned,
}

impl Lease {
    /// Opens a session and keeps it alive. `seen` is the applied index of a topology read just before.
    pub async fn open(
        catalogue: &Arc<dyn CatalogueApi>,
        entropy: &dyn Entropy,
        repo: RepoId,
        seen: u64,
    ) -> Result<Self> {
        // Drawn once, so that a repeated attempt opens no second session.
        let drawn = random(entropy);
        let id = SessionId(if mutant(Mutant::SessionReused) { [1; 16] } else { drawn });
        catalogue.open_session(id, repo, seen).await?;
        let renewed = catalogue.clone();
        let renewal = Owned::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_millis(SESSION_RENEW_MS)).await;
                if let Err(error) = renewed.renew_session(id).await {
                    // The next commit says the same to someone who can act on it.
                    tracing::warn!(%error, "session not renewed");
                }
            }
        });
        Ok(Lease { catalogue: catalogue.clone(), id, _renewal: renewal })
    }
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }
    /// Ends it. An error matters little: it would expire anyway.
    pub async fn close(self) {
        let close = self.catalogue.close_session(self.id);
        match tokio::time::timeout(Duration::from_millis(CLOSE_MS), close).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "session not closed, it will expire"),
            Err(_) => tracing::debug!("session not closed in time, it will expire"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::MemoryCluster;
    use farshore_core::host::real;

    #[tokio::test]
    async fn a_cluster_that_is_gone_does_not_hold_up_the_end() {
        let cluster = MemoryCluster::new(3, 2);
        let catalogue: Arc<dyn CatalogueApi> = cluster.clone();
        let lease = Lease::open(&catalogue, &real::OsEntropy, RepoId([1; 16]), 1).await.unwrap();
        cluster.state().closing_hangs = true;
        let done = tokio::time::timeout(Duration::from_secs(5), lease.close()).await;
        done.expect("the session expires by itself");
    }
}
