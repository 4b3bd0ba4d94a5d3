//! Exact count of the bytes shards take and will take, so that a full node refuses before it writes.

use super::StoreError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What the store holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Stats {
    /// Shards held, bad ones included.
    pub shards: u64,
    /// Bytes of their files.
    pub used: u64,
    /// Bytes set aside for shards that are being received.
    pub reserved: u64,
}

/// The count, shared by the store and what it has promised room to.
#[derive(Clone, Default)]
pub(super) struct Account(Arc<Mutex<Stats>>);

impl Account {
    pub(super) fn new(shards: u64, used: u64) -> Self {
        Account(Arc::new(Mutex::new(Stats { shards, used, reserved: 0 })))
    }
    fn lock(&self) -> MutexGuard<'_, Stats> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
    pub(super) fn stats(&self) -> Stats {
        *self.lock()
    }
    /// Sets `bytes` aside, if they fit both into `capacity` and into what the disk has `free`.
    pub(super) fn reserve(&self, bytes: u64, capacity: u64, free: u64) -> Result<Reservation, StoreError> {
        let mut stats = self.lock();
        let left = capacity.saturating_sub(stats.used).min(free).saturating_sub(stats.reserved);
        if bytes > left {
            return Err(StoreError::Full { need: bytes, left });
        }
        stats.reserved += bytes;
        Ok(Reservation { account: self.clone(), bytes })
    }
    /// A file of `new` bytes has taken the place of one of `old` bytes; `None` for no file.
    pub(super) fn replace(&self, old: Option<u64>, new: Option<u64>) {
        let mut stats = self.lock();
        stats.shards = (stats.shards + u64::from(new.is_some())).saturating_sub(u64::from(old.is_some()));
        stats.used = (stats.used + new.unwrap_or(0)).saturating_sub(old.unwrap_or(0));
    }
}

/// Room set aside, given back when dropped.
pub(super) struct Reservation {
    account: Account,
    bytes: u64,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut stats = self.account.lock();
        stats.reserved = stats.reserved.saturating_sub(self.bytes);
    }
}
