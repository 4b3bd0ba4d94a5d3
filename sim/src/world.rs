//! One simulated world: its seed, its virtual time, and the log of everything that happened, folded into one hash.
//! Two runs are the same run exactly if their hashes agree.

use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// Events kept to be shown when something fails.
const RECENT: usize = 200;

/// Shared by every seam of a simulation.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    seed: u64,
    start: Instant,
    log: Mutex<Log>,
}

struct Log {
    hash: u64,
    count: u64,
    line: String,
    recent: VecDeque<String>,
    trace: Option<Box<dyn std::io::Write + Send>>,
}

/// How a run ended, in one number and a count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Fold of every event, in order.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
}

impl World {
    /// A world that begins now, in virtual time.
    pub fn new(seed: u64, trace: Option<Box<dyn std::io::Write + Send>>) -> Self {
        let log = Log {
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            line: String::new(),
            recent: VecDeque::with_capacity(RECENT),
            trace,
        };
        World(Arc::new(Inner { seed, start: Instant::now(), log: Mutex::new(log) }))
    }
    /// What everything random is drawn from.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }
    /// Virtual microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        Instant::now().saturating_duration_since(self.0.start).as_micros() as u64
    }
    /// The instant that lies so many virtual microseconds after the beginning.
    pub fn instant(&self, at_us: u64) -> Instant {
        self.0.start + std::time::Duration::from_micros(at_us)
    }
    /// Records an event of process `label` (0 is the world itself).
    pub fn event(&self, label: u64, what: fmt::Arguments<'_>) {
        let now = self.now_us();
        let mut log = self.0.log.lock().expect("no holder of this lock panics");
        let mut line = std::mem::take(&mut log.line);
        line.clear();
        // Writing to a string cannot fail.
        let _ = write!(line, "{now} p{label} {what}");
        log.hash = fold(log.hash, line.as_bytes());
        log.count += 1;
        if let Some(trace) = &mut log.trace {
            let _ = writeln!(trace, "{line}");
        }
        if log.recent.len() == RECENT {
            log.line = log.recent.pop_front().unwrap_or_default();
        }
        log.recent.push_back(line);
    }
    /// The fold so far.
    pub fn digest(&self) -> Digest {
        let log = self.0.log.lock().expect("no holder of this lock panics");
        Digest { hash: log.hash, events: log.count }
    }
    /// The last events, oldest first.
    pub fn recent(&self) -> Vec<String> {
        self.0.log.lock().expect("no holder of this lock panics").recent.iter().cloned().collect()
    }
}

/// Records an event: `event!(world, label, "format", ..)`.
#[macro_export]
macro_rules! event {
    ($world:expr, $label:expr, $($what:tt)*) => { $world.event($label, format_args!($($what)*)) };
}

/// Mixes bytes into a hash. Not cryptographic: it only has to notice a difference.
pub fn fold(mut hash: u64, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0u8; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 29;
    }
    hash ^ bytes.len() as u64
}
