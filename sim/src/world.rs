//! One simulated world: its seed, its virtual time, and the log of everything that happened, folded into one hash.
//! Two runs are the same run exactly if their hashes agree.

use crate::calls::{Call, Calls, Gate, Label, Ticket};
use crate::taint::Taint;
use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use tokio::time::Instant;

/// Events kept to be shown when something fails.
const RECENT: usize = 1_000;
/// Events of the world itself kept likewise: faults are few, and long before what they lead to.
const RECENT_WORLD: usize = 40;
/// Segments kept likewise; they are so many that they would push everything else out.
const RECENT_SENT: usize = 60;

/// What is wrong. The first word names the invariant.
pub type Violation = String;

/// Shared by every seam of a simulation.
#[derive(Clone)]
pub struct World(Arc<Inner>);

struct Inner {
    seed: u64,
    start: Instant,
    /// Milliseconds that every calendar has moved on while timers stood still.
    slept_ms: AtomicU64,
    log: Mutex<Log>,
    timeline: OnceLock<Mutex<Timeline>>,
    calls: Calls,
    taint: Taint,
}

struct Log {
    hash: u64,
    count: u64,
    /// The event at which this run shall differ from itself, and by what.
    disturbance: Option<(u64, u64)>,
    line: String,
    recent: VecDeque<String>,
    world: VecDeque<String>,
    sent: VecDeque<Sent>,
    trace: Option<Box<dyn std::io::Write + Send>>,
}

/// A segment that went out.
struct Sent {
    now: u64,
    from: u64,
    to: u64,
    len: u64,
    sum: u64,
}

/// How a run ended, in one number and a count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Digest {
    /// Fold of every event, in order.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
}

/// What a picture of a run is drawn from.
#[derive(Clone, Default, Debug)]
pub struct Timeline {
    /// In the order of time.
    pub marks: Vec<Mark>,
    /// Bytes sent, by virtual second and sender.
    pub sent: BTreeMap<(u64, u64), u64>,
    /// What the lanes are called, where the number of a process says too little.
    pub lanes: BTreeMap<u64, String>,
}

/// A point of a timeline.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// Virtual microseconds since the beginning.
    pub at_us: u64,
    /// Whose lane; 0 is the world's, where faults are.
    pub label: u64,
    /// What sort of point.
    pub kind: MarkKind,
    /// What began, ended or happened.
    pub name: String,
}

/// Sorts of [`Mark`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MarkKind {
    /// Something begins. Spans of a lane may overlap.
    Begin,
    /// The oldest open span of this lane and name ends.
    End,
    /// Something happens at once.
    Point,
}

impl World {
    /// A world that begins now, in virtual time.
    pub fn new(seed: u64, trace: Option<Box<dyn std::io::Write + Send>>) -> Self {
        let log = Log {
            hash: 0xcbf2_9ce4_8422_2325,
            count: 0,
            disturbance: None,
            line: String::new(),
            recent: VecDeque::with_capacity(RECENT),
            world: VecDeque::with_capacity(RECENT_WORLD),
            sent: VecDeque::with_capacity(RECENT_SENT),
            trace,
        };
        let (start, log) = (Instant::now(), Mutex::new(log));
        World(Arc::new(Inner {
            seed,
            start,
            slept_ms: AtomicU64::new(0),
            log,
            timeline: OnceLock::new(),
            calls: Calls::default(),
            taint: Taint::default(),
        }))
    }
    /// What everything random is drawn from.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }
    /// Virtual microseconds since the beginning.
    pub fn now_us(&self) -> u64 {
        Instant::now().saturating_duration_since(self.0.start).as_micros() as u64
    }
    /// Moves every calendar on, right and wrong ones alike; timers do not notice.
    pub fn sleep_through(&self, ms: u64) {
        self.0.slept_ms.fetch_add(ms, Ordering::Relaxed);
    }
    /// Milliseconds that calendars have moved on besides virtual time.
    pub fn slept_ms(&self) -> u64 {
        self.0.slept_ms.load(Ordering::Relaxed)
    }
    /// The instant that lies so many virtual microseconds after the beginning.
    pub fn instant(&self, at_us: u64) -> Instant {
        self.0.start + std::time::Duration::from_micros(at_us)
    }
    fn log(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().expect("no holder of this lock panics")
    }
    /// Records an event of process `label` (0 is the world itself).
    pub fn event(&self, label: u64, what: fmt::Arguments<'_>) {
        let now = self.now_us();
        let mut log = self.log();
        let mut line = std::mem::take(&mut log.line);
        line.clear();
        // Writing to a string cannot fail.
        let _ = write!(line, "{now} p{label} {what}");
        log.disturb(&mut line);
        log.hash = fold(log.hash, line.as_bytes());
        log.count += 1;
        if let Some(trace) = &mut log.trace {
            let _ = writeln!(trace, "{line}");
        }
        if label == 0 {
            if log.world.len() == RECENT_WORLD {
                log.world.pop_front();
            }
            log.world.push_back(line.clone());
        }
        if log.recent.len() == RECENT {
            log.line = log.recent.pop_front().unwrap_or_default();
        }
        log.recent.push_back(line);
    }
    /// Records that a segment went out: the most frequent event by far, so nothing is made into text without need.
    pub fn sent(&self, from: u64, to: u64, bytes: &[u8]) {
        self.0.taint.watch(bytes, || format!("what p{from} sends p{to}"));
        let (now, len) = (self.now_us(), bytes.len() as u64);
        let sent = Sent { now, from, to, len, sum: fold(0, bytes) };
        let mut log = self.log();
        for word in [now, from << 32 | to, len, sent.sum] {
            log.hash = mix(log.hash, word);
        }
        log.count += 1;
        if let Some(trace) = &mut log.trace {
            let _ = writeln!(trace, "{sent}");
        }
        if log.sent.len() == RECENT_SENT {
            log.sent.pop_front();
        }
        log.sent.push_back(sent);
        drop(log);
        self.timeline(|timeline| *timeline.sent.entry((now / 1_000_000, from)).or_default() += len);
    }
    /// What must not leave a client.
    pub fn taint(&self) -> &Taint {
        &self.0.taint
    }
    /// The numbered calls of all processes.
    pub fn calls(&self) -> &Calls {
        &self.0.calls
    }
    /// A call through a seam begins. It does not return if its process is stopped, at this call or before.
    pub(crate) async fn enter(&self, label: Label, call: Call) -> Ticket {
        match self.try_enter(label, call) {
            Some(ticket) => ticket,
            None => std::future::pending().await,
        }
    }
    /// A call has had its effect and returns, unless its process is stopped.
    pub(crate) async fn leave(&self, label: Label, ticket: Ticket) {
        if !self.try_leave(label, ticket) {
            std::future::pending::<()>().await;
        }
    }
    /// As [`World::enter`], for calls that cannot wait: `None` if the process is stopped.
    pub(crate) fn try_enter(&self, label: Label, call: Call) -> Option<Ticket> {
        let (ticket, gate) = self.0.calls.begin(label, call);
        self.passed(label, ticket, gate, "before").then_some(ticket)
    }
    /// As [`World::leave`], for calls that cannot wait: false if the process is stopped.
    pub(crate) fn try_leave(&self, label: Label, ticket: Ticket) -> bool {
        let gate = self.0.calls.end(label, ticket);
        self.passed(label, ticket, gate, "after")
    }
    fn passed(&self, label: Label, ticket: Ticket, gate: Gate, side: &str) -> bool {
        if gate == Gate::Tripped {
            self.event(label, format_args!("stops {side} its call {}, {}", ticket.number, ticket.call));
        }
        gate == Gate::Open
    }
    /// The fold so far.
    pub fn digest(&self) -> Digest {
        let log = self.log();
        Digest { hash: log.hash, events: log.count }
    }
    /// The last events, oldest first, without segments.
    pub fn recent(&self) -> Vec<String> {
        self.log().recent.iter().cloned().collect()
    }
    /// The last events of the world itself, oldest first: faults, and how the run goes on.
    pub fn recent_world(&self) -> Vec<String> {
        self.log().world.iter().cloned().collect()
    }
    /// The last segments that went out, oldest first.
    pub fn recent_sent(&self) -> Vec<String> {
        self.log().sent.iter().map(Sent::to_string).collect()
    }
    /// Makes the first event after the `at`-th differ by `what`: proof that a comparison of two runs finds a difference.
    pub fn disturb(&self, at: u64, what: u64) {
        self.log().disturbance = Some((at, what));
    }
}

/// What is shown on a timeline. It is no part of the run: nothing of it reaches the hash, and it costs nothing unless
/// somebody wants to see it.
impl World {
    /// From now on marks are kept.
    pub fn keep_timeline(&self) {
        self.0.timeline.get_or_init(Mutex::default);
    }
    /// What was kept, if anything was to be.
    pub fn take_timeline(&self) -> Option<Timeline> {
        let mut taken = None;
        self.timeline(|timeline| taken = Some(std::mem::take(timeline)));
        taken
    }
    /// Something begins in the lane of `label`; 0 is the world's own.
    pub fn mark_begin(&self, label: u64, name: &str) {
        self.put(label, MarkKind::Begin, name);
    }
    /// The oldest span of this lane and name ends.
    pub fn mark_end(&self, label: u64, name: &str) {
        self.put(label, MarkKind::End, name);
    }
    /// Something happens at once.
    pub fn mark(&self, label: u64, name: &str) {
        self.put(label, MarkKind::Point, name);
    }
    /// Calls a lane something else than the number of its process.
    pub fn name_lane(&self, label: u64, name: &str) {
        self.timeline(|timeline| drop(timeline.lanes.insert(label, name.into())));
    }
    fn put(&self, label: u64, kind: MarkKind, name: &str) {
        self.timeline(|timeline| {
            timeline.marks.push(Mark { at_us: self.now_us(), label, kind, name: name.into() })
        });
    }
    fn timeline(&self, with: impl FnOnce(&mut Timeline)) {
        if let Some(timeline) = self.0.timeline.get() {
            with(&mut timeline.lock().expect("no holder of this lock panics"));
        }
    }
}

impl Log {
    fn disturb(&mut self, line: &mut String) {
        if let Some((_, what)) = self.disturbance.take_if(|(at, _)| self.count >= *at) {
            let _ = write!(line, " disturbed by {what}");
        }
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { now, from, to, len, sum } = self;
        write!(f, "{now} p{from} sends p{to} {len} {sum:x}")
    }
}

/// Records an event: `event!(world, label, "format", ..)`.
#[macro_export]
macro_rules! event {
    ($world:expr, $label:expr, $($what:tt)*) => { $world.event($label, format_args!($($what)*)) };
}

/// Mixes bytes into a hash. Not cryptographic: it only has to notice a difference.
pub fn fold(mut hash: u64, bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks();
    for word in words {
        hash = mix(hash, u64::from_le_bytes(*word));
    }
    if !rest.is_empty() {
        let mut word = [0u8; 8];
        word[..rest.len()].copy_from_slice(rest);
        hash = mix(hash, u64::from_le_bytes(word));
    }
    hash ^ bytes.len() as u64
}

fn mix(hash: u64, word: u64) -> u64 {
    let hash = (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash ^ hash >> 29
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn marks_are_kept_if_wanted_and_change_nothing() {
        let run = |wanted: bool| {
            let world = World::new(1, None);
            if wanted {
                world.keep_timeline();
            }
            world.mark_begin(1, "away");
            event!(world, 1, "something");
            world.sent(1, 2, b"bytes");
            world.mark_end(1, "away");
            (world.digest(), world.take_timeline())
        };
        let ((digest, kept), (without, nothing)) = (run(true), run(false));
        assert_eq!(digest, without);
        assert_eq!(digest.events, 2);
        let kept = kept.unwrap();
        assert_eq!((kept.marks.len(), kept.sent[&(0, 1)]), (2, 5));
        assert!(nothing.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn every_part_of_an_event_reaches_the_hash() {
        let hash = |from: u64, to: u64, bytes: &[u8], text: &str| {
            let world = World::new(1, None);
            world.sent(from, to, bytes);
            event!(world, 0, "{text}");
            world.digest().hash
        };
        let one = hash(1, 2, b"bytes", "text");
        assert_eq!(one, hash(1, 2, b"bytes", "text"));
        let others = [
            hash(2, 1, b"bytes", "text"),
            hash(1, 3, b"bytes", "text"),
            hash(1, 2, b"bytEs", "text"),
            hash(1, 2, b"bytes", "texts"),
        ];
        assert!(!others.contains(&one));
    }

    #[tokio::test(start_paused = true)]
    async fn segments_do_not_push_other_events_out() {
        let world = World::new(1, None);
        event!(world, 0, "something");
        (0..1_000).for_each(|_| world.sent(1, 2, b"x"));
        assert_eq!(world.recent(), ["0 p0 something"]);
        assert_eq!(world.recent_sent().len(), RECENT_SENT);
    }
}
