//! The keys of an opened repository, and how they are kept up: whoever meets something sealed with later keys than it has
//! reads the repository's record again, once, and finds them there.

use crate::api::CatalogueApi;
use crate::crypto::{Epochs, RepoKeys, Unlocked, WrongSecret, reopen};
use crate::error::{Error, Result};
use farshore_core::catalogue::RepoRecord;
use farshore_core::topology::Name;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Keys of one opened repository. Shared behind an `Arc`.
pub struct KeyRing {
    api: Arc<dyn CatalogueApi>,
    name: Name,
    keys: RepoKeys,
    /// The slot it was opened with; another one after a change of key.
    unlocked: Mutex<Unlocked>,
    /// The highest epoch for which the record was read in vain. A node that marks what it hands out with epochs that do not
    /// exist must not make us ask for ever.
    in_vain: AtomicU32,
}

impl KeyRing {
    /// The keys that a slot gave.
    pub fn new(api: Arc<dyn CatalogueApi>, name: Name, keys: RepoKeys, unlocked: Unlocked) -> Self {
        KeyRing { api, name, keys, unlocked: Mutex::new(unlocked), in_vain: AtomicU32::new(0) }
    }
    /// The keys. All clones learn what one does.
    pub fn keys(&self) -> &RepoKeys {
        &self.keys
    }
    /// Goes on with another slot.
    pub fn use_slot(&self, unlocked: Unlocked) {
        *self.unlocked.lock().unwrap_or_else(PoisonError::into_inner) = unlocked;
    }
    fn unlocked(&self) -> Unlocked {
        self.unlocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The record of now, and the root key that is in our slot now. What it says of epochs is learnt.
    pub async fn present(&self) -> Result<(RepoRecord, Unlocked)> {
        let record = self.api.get_repository(&self.name).await?;
        let unlocked = self.learn_from(&record)?;
        Ok((record, unlocked))
    }

    /// Learns the epochs of a record that was read just now.
    pub fn learn_from(&self, record: &RepoRecord) -> Result<Unlocked> {
        if record.id != self.keys.repo() {
            return Err(Error::RepositoryMissing(self.name.to_string()));
        }
        let unlocked = reopen(record.id, &record.key_slots, &self.unlocked());
        let unlocked = unlocked.map_err(|WrongSecret| Error::WrongPassword(self.name.to_string()))?;
        let epochs = epochs_of(record, &unlocked)?;
        self.keys.learn(&epochs).map_err(|broken| broken.of("key ring of the repository"))?;
        Ok(unlocked)
    }

    /// Whether what failed may succeed now, because its keys were learnt since.
    pub async fn learn_for(&self, error: &Error) -> bool {
        let Error::LaterKeys { epoch, .. } = error else { return false };
        if self.keys.epoch() >= *epoch {
            return true;
        }
        if self.in_vain.load(Ordering::Relaxed) >= u32::from(*epoch) {
            return false;
        }
        if let Err(error) = self.present().await {
            tracing::warn!(%error, "later keys cannot be had");
        }
        let learnt = self.keys.epoch() >= *epoch;
        if !learnt {
            self.in_vain.fetch_max(u32::from(*epoch), Ordering::Relaxed);
        }
        learnt
    }
}

/// The epochs of a record, by the root key of one of its slots.
pub fn epochs_of(record: &RepoRecord, unlocked: &Unlocked) -> Result<Epochs> {
    let epochs = Epochs::open(record.id, &unlocked.root, &record.key_slots);
    epochs.map_err(|broken| broken.of("key ring of the repository"))
}
