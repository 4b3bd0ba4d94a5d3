//! The WallClock seam: virtual time plus each process's own error, which may jump.

use crate::world::World;
use farshore_core::host::WallClock;
use std::sync::atomic::{AtomicI64, Ordering};

/// When every simulation begins: 2026-12-01 00:00 UTC.
pub const EPOCH_MS: u64 = 1_796_083_200_000;

/// The calendar as one process sees it.
pub struct SimClock {
    world: World,
    skew_ms: AtomicI64,
}

impl SimClock {
    /// A clock that is wrong by `skew_ms`.
    pub fn new(world: World, skew_ms: i64) -> Self {
        SimClock { world, skew_ms: AtomicI64::new(skew_ms) }
    }
    /// By how much it is wrong.
    pub fn skew_ms(&self) -> i64 {
        self.skew_ms.load(Ordering::Relaxed)
    }
    /// Makes it wrong by another amount.
    pub fn set_skew_ms(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Ordering::Relaxed);
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
