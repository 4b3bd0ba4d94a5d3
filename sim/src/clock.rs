//! The WallClock seam: virtual time plus each process's own error, which may jump.

use crate::world::World;
use farshore_core::host::WallClock;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

/// When every simulation begins: 2026-12-01 00:00 UTC.
pub const EPOCH_MS: u64 = 1_796_083_200_000;

/// Longer than a leader goes by what a node said of its calendar.
const BELIEVED_US: u64 = 30_000_000;

/// The calendar as one process sees it.
pub struct SimClock {
    world: World,
    skew_ms: AtomicI64,
    /// When it was last put right, microseconds of virtual time.
    righted_us: AtomicU64,
}

impl SimClock {
    /// A clock that is wrong by `skew_ms`.
    pub fn new(world: World, skew_ms: i64) -> Self {
        SimClock { world, skew_ms: AtomicI64::new(skew_ms), righted_us: AtomicU64::new(0) }
    }
    /// By how much it is wrong.
    pub fn skew_ms(&self) -> i64 {
        self.skew_ms.load(Ordering::Relaxed)
    }
    /// Makes it wrong by another amount.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        let was = self.skew_ms.swap(skew_ms, Ordering::Relaxed);
        if was != 0 && skew_ms == 0 {
            self.righted_us.store(self.world.now_us(), Ordering::Relaxed);
        }
    }
    /// Whether somebody may still believe what it showed while it was wrong.
    pub fn is_doubtful(&self) -> bool {
        let righted_us = self.righted_us.load(Ordering::Relaxed);
        self.skew_ms() != 0 || (righted_us > 0 && self.world.now_us() < righted_us + BELIEVED_US)
    }
}
impl WallClock for SimClock {
    fn now_ms(&self) -> u64 {
        now_ms(&self.world).saturating_add_signed(self.skew_ms())
    }
}

/// Milliseconds since 1970 on a clock that is right.
pub fn now_ms(world: &World) -> u64 {
    EPOCH_MS + world.slept_ms() + world.now_us() / 1_000
}
/// Seconds since 1970 on a clock that is right.
pub fn now_secs(world: &World) -> i64 {
    (now_ms(world) / 1_000) as i64
}
