//! A session held open: renewed in the background, closed at the end.

use crate::api::CatalogueApi;
use crate::error::Result;
use farshore_core::host::task::Owned;
use farshore_core::id::{RepoId, SessionId};
use farshore_core::limits::SESSION_RENEW_MS;
use std::sync::Arc;
use std::time::Duration;

/// An open session. Dropped without `close`, it expires by itself.
pub struct Lease {
    catalogue: Arc<dyn CatalogueApi>,
    id: SessionId,
    _renewal: Owned,
}

impl Lease {
    /// Opens a session and keeps it alive.
    pub async fn open(catalogue: &Arc<dyn CatalogueApi>, repo: RepoId) -> Result<Self> {
        let id = catalogue.open_session(repo).await?.id;
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
        if let Err(error) = self.catalogue.close_session(self.id).await {
            tracing::debug!(%error, "session not closed, it will expire");
        }
    }
}
