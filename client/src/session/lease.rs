//! A write lease that is kept alive while its handle lives.

use crate::api::CatalogueApi;
use crate::error::{Error, Result};
use farshore_core::host::task::Owned;
use farshore_core::id::{RepoId, SessionId};
use farshore_core::limits::SESSION_RENEW_MS;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// An open session. Dropping it stops the renewal, so that the leader ends the session by itself after a while;
/// `close` ends it at once.
pub struct Lease {
    id: SessionId,
    opened: u64,
    api: Arc<dyn CatalogueApi>,
    ended: Arc<AtomicBool>,
    _renewal: Owned,
}

impl Lease {
    /// Opens a session on a repository and keeps it alive.
    pub async fn open(api: Arc<dyn CatalogueApi>, repo: RepoId) -> Result<Self> {
        let session = api.open_session(repo).await?;
        let ended = Arc::new(AtomicBool::new(false));
        let renewal = Owned::spawn(renew(api.clone(), session.id, ended.clone()));
        Ok(Lease { id: session.id, opened: session.opened, api, ended, _renewal: renewal })
    }
    /// Its id.
    pub fn id(&self) -> SessionId {
        self.id
    }
    /// Log index that opened it.
    pub fn opened(&self) -> u64 {
        self.opened
    }
    /// Fails once the cluster has ended the session: what is still to be sent would be refused.
    pub fn check(&self) -> Result<()> {
        if self.ended.load(Ordering::Relaxed) { Err(Error::SessionEnded(self.id)) } else { Ok(()) }
    }
    /// Ends it. Best effort: a session that cannot be closed expires.
    pub async fn close(self) {
        if let Err(error) = self.api.close_session(self.id).await {
            tracing::debug!(%error, "close session");
        }
    }
}

async fn renew(api: Arc<dyn CatalogueApi>, session: SessionId, ended: Arc<AtomicBool>) {
    loop {
        tokio::time::sleep(Duration::from_millis(SESSION_RENEW_MS)).await;
        match api.renew_session(session).await {
            Ok(()) => {}
            Err(Error::SessionEnded(_)) => {
                ended.store(true, Ordering::Relaxed);
                return;
            }
            // Whoever needs the cluster meets the same error and reports it.
            Err(error) => tracing::debug!(%error, "renew session"),
        }
    }
}
