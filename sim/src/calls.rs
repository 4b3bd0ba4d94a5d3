//! Numbers every call that a simulated process makes through a seam that reaches outside (disk, stores, network), and
//! stops the process at a chosen one: power fails at that very moment. It knows nothing of what the calls do.
//!
//! How a crash from inside a call is safe: the process's gate closes, so that this call and every later one neither
//! has an effect nor returns, and whoever drives the simulation is told; it then crashes the machine as at any other
//! time, before virtual time moves on.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::Notify;

/// A process as the event log and the network know it.
pub type Label = u64;

/// A kind of call.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Call {
    /// Disk: a file is created.
    Create,
    /// Disk: bytes at the end of a file.
    Append,
    /// Disk: a file's bytes made durable.
    Sync,
    /// Disk: bytes read.
    Read,
    /// Disk: length of a file.
    Len,
    /// Disk: a slot overwritten and synced.
    WriteSlot,
    /// Disk: a new name.
    Rename,
    /// Disk: a name removed.
    Remove,
    /// Disk: names made durable.
    SyncDir,
    /// Disk: names listed.
    List,
    /// Disk: room asked for.
    Space,
    /// Stores: one opened.
    KvOpen,
    /// Stores: one destroyed.
    KvDiscard,
    /// Stores: a batch.
    KvWrite,
    /// Stores: batches made durable.
    KvFlush,
    /// Network: a connection out.
    Dial,
    /// Network: an address listened on.
    Listen,
    /// Network: a connection in.
    Accept,
    /// Network: bytes sent.
    Send,
}

impl Call {
    /// Whether it changes anything outside its process: otherwise before and after it are the same.
    pub fn has_effect(self) -> bool {
        !matches!(self, Call::Read | Call::Len | Call::List | Call::Space | Call::KvOpen | Call::Accept)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// On which side of a call's effect the process stops.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// The call was made and had no effect; of a slot, any part may have reached the disk.
    Before,
    /// The call had its effect and never returned.
    After,
}

/// What a call was given as it began.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ticket {
    /// Its number among the calls of its process, from 1.
    pub number: u64,
    /// What it is.
    pub call: Call,
}

/// What a call finds as it begins or ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Gate {
    /// Go on.
    Open,
    /// This is the chosen call.
    Tripped,
    /// The process has been stopped.
    Closed,
}

/// The calls of all processes of a world.
#[derive(Default)]
pub struct Calls {
    table: Mutex<Table>,
    tripped: Notify,
}

#[derive(Default)]
struct Table {
    processes: BTreeMap<Label, Process>,
    tripped: VecDeque<Label>,
    /// Whether the kind of each call is kept.
    recording: bool,
}

#[derive(Default)]
struct Process {
    made: u64,
    kinds: BTreeMap<Call, u64>,
    record: Vec<(u64, Call)>,
    stop: Option<(u64, Moment)>,
    closed: bool,
}

impl Calls {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }

    /// How many calls a process has made, over all its incarnations.
    pub fn of(&self, label: Label) -> u64 {
        self.lock().processes.get(&label).map_or(0, |process| process.made)
    }
    /// How many calls every process has made.
    pub fn counts(&self) -> BTreeMap<Label, u64> {
        self.lock().processes.iter().map(|(label, process)| (*label, process.made)).collect()
    }
    /// How many calls of each kind a process has made.
    pub fn kinds(&self, label: Label) -> BTreeMap<Call, u64> {
        self.lock().processes.get(&label).map_or_else(BTreeMap::new, |process| process.kinds.clone())
    }
    /// From now on remembers what each call was.
    pub fn record(&self) {
        self.lock().recording = true;
    }
    /// The remembered calls of a process, with their numbers.
    pub fn recorded(&self, label: Label) -> Vec<(u64, Call)> {
        self.lock().processes.get(&label).map_or_else(Vec::new, |process| process.record.clone())
    }

    /// Stops a process at its call of this number (counted over all its incarnations, the first is 1).
    pub fn crash_at(&self, label: Label, number: u64, moment: Moment) {
        self.lock().processes.entry(label).or_default().stop = Some((number, moment));
    }
    /// Forgets what [`Calls::crash_at`] was told. Returns whether the call had not come yet.
    pub fn call_off(&self, label: Label) -> bool {
        self.lock().processes.get_mut(&label).is_some_and(|process| process.stop.take().is_some())
    }
    /// Waits until a process has been stopped at a call. Whoever learns it must crash its machine at once.
    /// Cancel-safe: nothing is taken before it is returned.
    pub async fn tripped(&self) -> Label {
        loop {
            if let Some(label) = self.lock().tripped.pop_front() {
                return label;
            }
            self.tripped.notified().await;
        }
    }
    /// Whether a process has been stopped and not been started again.
    pub fn is_closed(&self, label: Label) -> bool {
        self.lock().processes.get(&label).is_some_and(|process| process.closed)
    }
    /// A new incarnation of a process may make calls again.
    pub fn open(&self, label: Label) {
        if let Some(process) = self.lock().processes.get_mut(&label) {
            process.closed = false;
        }
    }

    /// A call begins.
    pub(crate) fn begin(&self, label: Label, call: Call) -> (Ticket, Gate) {
        let mut table = self.lock();
        let recording = table.recording;
        let process = table.processes.entry(label).or_default();
        if process.closed {
            return (Ticket { number: process.made, call }, Gate::Closed);
        }
        process.made += 1;
        *process.kinds.entry(call).or_default() += 1;
        let ticket = Ticket { number: process.made, call };
        if recording {
            process.record.push((ticket.number, call));
        }
        (ticket, self.pass(&mut table, label, ticket.number, Moment::Before))
    }
    /// A call has had its effect.
    pub(crate) fn end(&self, label: Label, ticket: Ticket) -> Gate {
        self.pass(&mut self.lock(), label, ticket.number, Moment::After)
    }

    fn pass(&self, table: &mut Table, label: Label, number: u64, moment: Moment) -> Gate {
        let Some(process) = table.processes.get_mut(&label) else { return Gate::Open };
        if process.closed {
            return Gate::Closed;
        }
        if process.stop != Some((number, moment)) {
            return Gate::Open;
        }
        process.stop = None;
        process.closed = true;
        table.tripped.push_back(label);
        self.tripped.notify_one();
        Gate::Tripped
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn a_process_stops_at_the_chosen_call_and_goes_on_when_opened() {
        let calls = Calls::default();
        calls.record();
        calls.crash_at(1, 2, Moment::Before);
        let (first, gate) = calls.begin(1, Call::Create);
        assert_eq!((first.number, gate, calls.end(1, first)), (1, Gate::Open, Gate::Open));
        assert_eq!(calls.begin(2, Call::Send).1, Gate::Open, "others are not concerned");
        assert!(calls.tripped().now_or_never().is_none());
        assert_eq!(calls.begin(1, Call::Sync).1, Gate::Tripped);
        assert_eq!(calls.tripped().now_or_never(), Some(1));
        assert_eq!(calls.begin(1, Call::Sync).1, Gate::Closed);
        assert_eq!(calls.end(1, first), Gate::Closed, "a call under way does not return either");
        assert_eq!(calls.of(1), 2, "calls of a stopped process are not counted");
        calls.open(1);
        assert_eq!(calls.begin(1, Call::Sync).1, Gate::Open);
        assert_eq!(calls.recorded(1), [(1, Call::Create), (2, Call::Sync), (3, Call::Sync)]);
    }

    #[test]
    fn after_a_call_is_after_its_effect() {
        let calls = Calls::default();
        calls.crash_at(1, 1, Moment::After);
        let (ticket, gate) = calls.begin(1, Call::Rename);
        assert_eq!(gate, Gate::Open);
        assert_eq!(calls.end(1, ticket), Gate::Tripped);
        assert!(calls.is_closed(1));
        calls.open(1);
        calls.crash_at(1, 99, Moment::After);
        assert!(calls.call_off(1) && !calls.call_off(1));
    }
}
