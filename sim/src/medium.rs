//! What the files and the stores of one machine share: the room, the pace, and the errors of one device.

use crate::entropy::Rng;
use crate::event;
use crate::world::World;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

/// Size of a simulated disk.
pub const DISK_BYTES: u64 = 1 << 30;
/// Linux's EIO, as no portable kind of error stands for it.
const EIO: i32 = 5;

/// Calls of a device, as errors tell them apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ops {
    /// Every call below.
    Any,
    /// Bytes or a length read.
    Read,
    /// Bytes, names or batches written.
    Write,
    /// Bytes, names or batches made durable.
    Sync,
}

impl Ops {
    fn admit(self, op: Ops) -> bool {
        self == Ops::Any || self == op
    }
}

/// One machine's device. Clones are the same device.
#[derive(Clone)]
pub struct Medium {
    world: World,
    label: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    capacity: u64,
    files: u64,
    rows: u64,
    slow: u64,
    /// Errors to come: the calls that count and how many of them are still good.
    failing: Vec<(Ops, u64)>,
    rate: (Ops, u64),
    rng: Rng,
}

impl Medium {
    /// An empty device without faults.
    pub fn new(world: World, label: u64) -> Self {
        let rng = Rng::new(world.seed() ^ label << 8, 0x4d45);
        let (capacity, rate) = (DISK_BYTES, (Ops::Any, 0));
        let state = State { capacity, files: 0, rows: 0, slow: 1, failing: Vec::new(), rate, rng };
        Medium { world, label, state: Arc::new(Mutex::new(state)) }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
    /// Its world and its machine's label.
    pub(crate) fn home(&self) -> (World, u64) {
        (self.world.clone(), self.label)
    }

    /// Every call takes so many times as long; 1 is the usual pace.
    pub fn set_slow(&self, factor: u64) {
        self.lock().slow = factor.max(1);
        event!(self.world, self.label, "disk is {factor} times as slow as usual");
    }
    /// The n-th of these calls from now, 1 being the next, fails with EIO, once.
    pub fn fail_call(&self, n: u64, ops: Ops) {
        self.lock().failing.push((ops, n.saturating_sub(1)));
        event!(self.world, self.label, "disk fails the {n}th {ops:?} from now");
    }
    /// So many in a million of these calls fail with EIO; 0 ends it.
    pub fn fail_rate(&self, ppm: u64, ops: Ops) {
        self.lock().rate = (ops, ppm);
        event!(self.world, self.label, "disk fails {ppm} ppm of {ops:?}");
    }
    /// No single call is to fail any more.
    pub fn fail_no_call(&self) {
        self.lock().failing.clear();
    }
    /// No error is to come any more.
    pub fn mend(&self) {
        let mut state = self.lock();
        state.failing.clear();
        state.rate = (Ops::Any, 0);
        drop(state);
        event!(self.world, self.label, "disk fails no more");
    }
    /// Somebody else takes all the room that is left.
    pub fn fill(&self) {
        let mut state = self.lock();
        state.capacity = state.files + state.rows;
        drop(state);
        event!(self.world, self.label, "disk is full");
    }
    /// Makes the disk smaller or larger.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().capacity = bytes;
        event!(self.world, self.label, "disk has {bytes} bytes");
    }

    /// Size and free room, in bytes.
    pub(crate) fn space(&self) -> (u64, u64) {
        let state = self.lock();
        (state.capacity, state.capacity.saturating_sub(state.files + state.rows))
    }
    /// Takes room for so many more bytes of files.
    pub(crate) fn grow_files(&self, bytes: u64) -> io::Result<()> {
        let mut state = self.lock();
        if state.files + state.rows + bytes <= state.capacity {
            state.files += bytes;
            return Ok(());
        }
        drop(state);
        event!(self.world, self.label, "disk has no room for {bytes} bytes");
        Err(io::ErrorKind::StorageFull.into())
    }
    /// The files take so many bytes.
    pub(crate) fn set_files(&self, bytes: u64) {
        self.lock().files = bytes;
    }
    /// The rows of the stores take so many bytes more (or less). False if there is no room for more; they take it
    /// all the same, as their owner is about to fail.
    pub(crate) fn grow_rows(&self, bytes: i64) -> bool {
        let mut state = self.lock();
        state.rows = state.rows.saturating_add_signed(bytes);
        bytes <= 0 || state.files + state.rows <= state.capacity
    }
    /// How long a call takes whose usual time lies in this range.
    pub(crate) fn time(&self, range: (u64, u64)) -> Duration {
        let mut state = self.lock();
        Duration::from_micros(state.rng.range(range.0, range.1) * state.slow)
    }
    /// Whether this call fails.
    pub(crate) fn strike(&self, op: Ops) -> io::Result<()> {
        let mut state = self.lock();
        let mut struck = false;
        state.failing.retain_mut(|(ops, good)| {
            let now = ops.admit(op) && *good == 0;
            *good -= u64::from(ops.admit(op) && *good > 0);
            struck |= now;
            !now
        });
        let (ops, ppm) = state.rate;
        struck |= ppm > 0 && ops.admit(op) && state.rng.below(1_000_000) < ppm;
        drop(state);
        if !struck {
            return Ok(());
        }
        event!(self.world, self.label, "disk fails a {op:?}");
        Err(io::Error::from_raw_os_error(EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_nth_call_fails_and_only_that() {
        let medium = Medium::new(World::new(1, None), 1);
        medium.fail_call(2, Ops::Sync);
        medium.fail_call(3, Ops::Any);
        assert!(medium.strike(Ops::Sync).is_ok());
        assert!(medium.strike(Ops::Read).is_ok());
        let error = medium.strike(Ops::Sync).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO), "both strike at once");
        assert!(medium.strike(Ops::Sync).is_ok());
        medium.fail_rate(500_000, Ops::Write);
        let failed = (0..100).filter(|_| medium.strike(Ops::Write).is_err()).count();
        assert!((20..80).contains(&failed) && medium.strike(Ops::Read).is_ok());
        medium.mend();
        assert!((0..100).all(|_| medium.strike(Ops::Write).is_ok()));
    }

    #[tokio::test(start_paused = true)]
    async fn files_and_rows_share_the_room() {
        let medium = Medium::new(World::new(1, None), 1);
        medium.set_capacity(100);
        medium.grow_files(60).unwrap();
        assert!(medium.grow_rows(40));
        assert_eq!(medium.space(), (100, 0));
        assert_eq!(medium.grow_files(1).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert!(!medium.grow_rows(1) && medium.grow_rows(-21));
        medium.grow_files(20).unwrap();
        medium.set_slow(10);
        assert_eq!(medium.time((5, 5)), Duration::from_micros(50));
    }
}
