//! The Net seam: TCP-like pipes with latency, bandwidth, loss (as retransmission delay), one-way cuts, stalls, reset
//! and power loss, each per link. Bytes arrive in order or not at all, as TCP has it; TLS, HTTP/2 and tonic run over
//! them unchanged.

mod link;

mod pipe;

#[cfg(test)]
mod net_test;

pub use crate::calls::Label;

use crate::calls::Call;
use crate::entropy::Rng;
use crate::event;
use crate::world::World;
use async_trait::async_trait;
use farshore_core::host::{ByteStream, Listener, Net};
use link::Links;
use pipe::{End, Pipe, wake};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::mpsc;

/// First pause before an unanswered dial is tried again; doubles.
const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// How long an unanswered dial hangs before the system gives up; callers have shorter deadlines.
const DIAL_HANG: Duration = Duration::from_secs(60);

/// What goes through and how fast. One for the whole world.
#[derive(Clone)]
pub struct Hub {
    world: World,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    links: Links,
    cuts: BTreeSet<(Label, Label)>,
    /// Machines without power: nobody answers, not even with a refusal.
    dark: BTreeSet<Label>,
    /// Who has or had an address.
    homes: BTreeMap<String, Label>,
    listeners: BTreeMap<String, (Label, mpsc::UnboundedSender<Arrival>)>,
    /// The two pipes of a connection have the numbers 2n + 1 and 2n + 2.
    pipes: BTreeMap<u64, Arc<Mutex<Pipe>>>,
    next_pipe: u64,
}

type Arrival = (Label, End);

impl Hub {
    /// A calm network.
    pub fn new(world: World) -> Self {
        let state = State {
            rng: Rng::new(world.seed(), 0x4e45),
            links: Links::default(),
            cuts: BTreeSet::new(),
            dark: BTreeSet::new(),
            homes: BTreeMap::new(),
            listeners: BTreeMap::new(),
            pipes: BTreeMap::new(),
            next_pipe: 1,
        };
        Hub { world, state: Arc::new(Mutex::new(state)) }
    }
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
    /// The network as seen from one process.
    pub fn of(&self, label: Label) -> SimNet {
        SimNet { hub: self.clone(), label }
    }

    /// Cuts one direction: what is sent is held up.
    pub fn cut(&self, from: Label, to: Label) {
        if self.lock().cuts.insert((from, to)) {
            event!(self.world, from, "net is cut towards p{to}");
        }
    }
    /// Cuts both directions.
    pub fn cut_both(&self, one: Label, other: Label) {
        self.cut(one, other);
        self.cut(other, one);
    }
    /// Ends the cut of one direction. What was held up arrives now.
    pub fn uncut(&self, from: Label, to: Label) {
        let mut state = self.lock();
        if !state.cuts.remove(&(from, to)) {
            return;
        }
        for pipe in state.pipes.values() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if (pipe.from, pipe.to) == (from, to) {
                wake(&mut pipe.reader);
            }
        }
        drop(state);
        event!(self.world, from, "net is whole towards p{to}");
    }
    /// Ends all cuts. What was held up arrives now.
    pub fn heal(&self) {
        let cuts: Vec<_> = self.lock().cuts.iter().copied().collect();
        cuts.into_iter().for_each(|(from, to)| self.uncut(from, to));
    }
    /// Whether a direction is cut.
    pub fn is_cut(&self, from: Label, to: Label) -> bool {
        self.lock().cuts.contains(&(from, to))
    }

    /// Resets every connection between two processes: both sides see an error now, and what was under way is gone,
    /// whatever its receiver would have done with it. Returns how many there were.
    pub fn reset(&self, one: Label, other: Label) -> usize {
        self.reset_some(one, other, 1)
    }
    /// Resets each connection between two processes with a chance of one in `n`.
    pub fn reset_some(&self, one: Label, other: Label, n: u64) -> usize {
        let now = self.world.now_us();
        let mut state = self.lock();
        let mut chosen = BTreeMap::new();
        let State { pipes, rng, .. } = &mut *state;
        for (id, pipe) in pipes.iter() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if (pipe.from, pipe.to) != (one, other) && (pipe.from, pipe.to) != (other, one) {
                continue;
            }
            if *chosen.entry((id - 1) / 2).or_insert_with(|| rng.one_in(n)) {
                pipe.break_off(now);
            }
        }
        drop(state);
        let broken = chosen.values().filter(|chosen| **chosen).count();
        event!(self.world, one, "net resets {broken} connections with p{other}");
        broken
    }

    /// A process is gone. With `power` lost its peers hear nothing more; otherwise its system resets connections.
    pub fn crash(&self, label: Label, power: bool) {
        let now = self.world.now_us();
        let mut state = self.lock();
        state.listeners.retain(|_, (owner, _)| *owner != label);
        if power {
            state.dark.insert(label);
        }
        let State { pipes, rng, links, .. } = &mut *state;
        for pipe in pipes.values() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if pipe.from != label {
                continue;
            }
            if power {
                pipe.dead = true;
            } else if !pipe.closed {
                pipe.reset = true;
                pipe.last_us = pipe.last_us.max(now + links.latency(rng, (label, pipe.to)));
                wake(&mut pipe.reader);
            }
        }
    }
    /// A machine has power again, and its process may make calls. Its new system knows none of the old connections
    /// and resets them.
    pub fn boot(&self, label: Label) {
        self.world.calls().open(label);
        let now = self.world.now_us();
        let mut state = self.lock();
        if !state.dark.remove(&label) {
            return;
        }
        let State { pipes, rng, links, .. } = &mut *state;
        for pipe in pipes.values() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if pipe.from == label && pipe.dead {
                pipe.dead = false;
                pipe.reset = true;
                pipe.last_us = now + links.latency(rng, (label, pipe.to));
                wake(&mut pipe.reader);
            }
        }
    }

    /// Whether anybody is there to accept or refuse a connection. An address nobody ever had is refused by its network.
    fn reaches(&self, from: Label, addr: &str) -> bool {
        let state = self.lock();
        let Some(to) = state.homes.get(addr).copied() else { return true };
        !state.dark.contains(&to) && !state.cuts.contains(&(from, to)) && !state.cuts.contains(&(to, from))
    }
    fn connect(&self, from: Label, to: Label) -> (End, End) {
        let now = self.world.now_us();
        let mut state = self.lock();
        let mut pipe = |from, to| {
            let id = state.next_pipe;
            state.next_pipe += 1;
            let pipe = Arc::new(Mutex::new(Pipe::new(from, to, now)));
            state.pipes.insert(id, pipe.clone());
            (id, pipe)
        };
        let (there, back) = (pipe(from, to), pipe(to, from));
        (End::new(self, &back, &there), End::new(self, &there, &back))
    }
}

/// The network of one process.
pub struct SimNet {
    hub: Hub,
    label: Label,
}

impl SimNet {
    async fn reach(&self, addr: &str) -> io::Result<End> {
        let give_up = tokio::time::Instant::now() + DIAL_HANG;
        let mut again = DIAL_AGAIN;
        while !self.hub.reaches(self.label, addr) {
            if tokio::time::Instant::now() + again > give_up {
                return Err(io::ErrorKind::TimedOut.into());
            }
            tokio::time::sleep(again).await;
            again *= 2;
        }
        let wait = {
            let mut state = self.hub.lock();
            let State { homes, links, rng, .. } = &mut *state;
            let to = homes.get(addr).copied().unwrap_or(0);
            links.latency(rng, (self.label, to)) + links.latency(rng, (to, self.label))
        };
        tokio::time::sleep(Duration::from_micros(wait)).await;
        let Some((to, listener)) = self.hub.lock().listeners.get(addr).cloned() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        event!(self.hub.world, self.label, "dial p{to}");
        let (mine, theirs) = self.hub.connect(self.label, to);
        listener.send((self.label, theirs)).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(mine)
    }
}

#[async_trait]
impl Net for SimNet {
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>> {
        let ticket = self.hub.world.enter(self.label, Call::Dial).await;
        let reached = self.reach(addr).await;
        self.hub.world.leave(self.label, ticket).await;
        Ok(Box::new(reached?))
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let ticket = self.hub.world.enter(self.label, Call::Listen).await;
        let (send, receive) = mpsc::unbounded_channel();
        {
            let mut state = self.hub.lock();
            if state.listeners.contains_key(addr) {
                return Err(io::ErrorKind::AddrInUse.into());
            }
            state.homes.insert(addr.into(), self.label);
            state.listeners.insert(addr.into(), (self.label, send));
        }
        self.hub.world.leave(self.label, ticket).await;
        Ok(Box::new(SimListener { hub: self.hub.clone(), label: self.label, receive, addr: addr.into() }))
    }
}

struct SimListener {
    hub: Hub,
    label: Label,
    receive: mpsc::UnboundedReceiver<Arrival>,
    addr: String,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn ByteStream>, String)> {
        let (from, end) = self.receive.recv().await.ok_or(io::ErrorKind::NotConnected)?;
        let ticket = self.hub.world.enter(self.label, Call::Accept).await;
        self.hub.world.leave(self.label, ticket).await;
        Ok((Box::new(end), format!("p{from}")))
    }
    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}
