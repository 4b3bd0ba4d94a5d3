//! The Net seam: TCP-like pipes with latency, loss (as retransmission delay), one-way cuts, reset and power loss.
//! Bytes arrive in order or not at all, as TCP has it; TLS, HTTP/2 and tonic run over them unchanged.

use crate::entropy::Rng;
use crate::event;
use crate::world::{World, fold};
use async_trait::async_trait;
use bytes::{Buf, Bytes};
use farshore_core::host::{ByteStream, Listener, Net};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// Bytes in flight in one direction of a connection before the writer has to wait.
const WINDOW_BYTES: usize = 1 << 20;
/// Largest piece delivered at once.
const SEGMENT_BYTES: usize = 64 << 10;
/// First retransmission delay; doubles with each further loss of the same segment.
const RETRANSMIT_US: u64 = 200_000;
const RETRANSMIT_MAX_US: u64 = 4_000_000;
/// How long a dial into a cut network hangs before the system gives up; callers have shorter deadlines.
const DIAL_HANG: Duration = Duration::from_secs(60);

/// A process as the network knows it.
pub type Label = u64;

/// What goes through and how fast. One for the whole world.
#[derive(Clone)]
pub struct Hub {
    world: World,
    state: Arc<Mutex<State>>,
}

struct State {
    rng: Rng,
    cuts: BTreeSet<(Label, Label)>,
    latency_us: (u64, u64),
    loss_ppm: u64,
    bytes_per_us: u64,
    listeners: BTreeMap<String, (Label, mpsc::UnboundedSender<Arrival>)>,
    pipes: BTreeMap<u64, Arc<Mutex<Pipe>>>,
    next_pipe: u64,
    bytes: u64,
}

type Arrival = (Label, End);

/// One direction of a connection.
struct Pipe {
    from: Label,
    to: Label,
    queue: VecDeque<(u64, Bytes)>,
    in_flight: usize,
    /// Nothing may arrive before this, since bytes keep their order.
    last_us: u64,
    /// The writer has ended: end of file after the queue.
    closed: bool,
    /// The writer's process is gone: an error at `last_us`.
    reset: bool,
    /// Power loss: silence for ever.
    dead: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Hub {
    /// A calm network.
    pub fn new(world: World) -> Self {
        let state = State {
            rng: Rng::new(world.seed(), 0x4e45),
            cuts: BTreeSet::new(),
            latency_us: (2_000, 30_000),
            loss_ppm: 0,
            bytes_per_us: 50,
            listeners: BTreeMap::new(),
            pipes: BTreeMap::new(),
            next_pipe: 1,
            bytes: 0,
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
    /// Sets the range of one-way latencies, in microseconds.
    pub fn set_latency(&self, low_us: u64, high_us: u64) {
        self.lock().latency_us = (low_us, high_us.max(low_us));
    }
    /// Sets how many segments in a million are lost (and sent again).
    pub fn set_loss(&self, ppm: u64) {
        self.lock().loss_ppm = ppm;
    }
    /// Cuts one direction.
    pub fn cut(&self, from: Label, to: Label) {
        self.lock().cuts.insert((from, to));
    }
    /// Ends all cuts. What was held up arrives now.
    pub fn heal(&self) {
        let mut state = self.lock();
        state.cuts.clear();
        for pipe in state.pipes.values() {
            wake(&mut pipe.lock().expect("no holder of this lock panics").reader);
        }
    }
    /// A process is gone. With `power` lost its peers hear nothing more; otherwise its system resets connections.
    pub fn crash(&self, label: Label, power: bool) {
        let now = self.world.now_us();
        let mut state = self.lock();
        state.listeners.retain(|_, (owner, _)| *owner != label);
        let delay = state.delay(0);
        for pipe in state.pipes.values() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if pipe.from != label {
                continue;
            }
            if power {
                pipe.dead = true;
            } else if !pipe.closed {
                pipe.reset = true;
                pipe.last_us = pipe.last_us.max(now + delay);
                wake(&mut pipe.reader);
            }
        }
    }
    /// Bytes sent by everybody so far.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
    }

    fn connect(&self, from: Label, to: Label) -> (End, End) {
        let now = self.world.now_us();
        let mut state = self.lock();
        let mut pipe = |from, to| {
            let id = state.next_pipe;
            state.next_pipe += 1;
            let pipe = Arc::new(Mutex::new(Pipe {
                from,
                to,
                queue: VecDeque::new(),
                in_flight: 0,
                last_us: now,
                closed: false,
                reset: false,
                dead: false,
                reader: None,
                writer: None,
            }));
            state.pipes.insert(id, pipe.clone());
            (id, pipe)
        };
        let (there, back) = (pipe(from, to), pipe(to, from));
        let end = |reads: &(u64, Arc<Mutex<Pipe>>), writes: &(u64, Arc<Mutex<Pipe>>)| End {
            hub: self.clone(),
            reads_id: reads.0,
            reads: reads.1.clone(),
            writes: writes.1.clone(),
            timer: None,
        };
        (end(&back, &there), end(&there, &back))
    }
}

impl State {
    fn delay(&mut self, len: usize) -> u64 {
        let (low, high) = self.latency_us;
        let mut delay = self.rng.range(low, high) + len as u64 / self.bytes_per_us;
        let mut again = RETRANSMIT_US;
        while self.loss_ppm > 0 && again < RETRANSMIT_MAX_US && self.rng.below(1_000_000) < self.loss_ppm {
            delay += again;
            again *= 2;
        }
        delay
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// The network of one process.
pub struct SimNet {
    hub: Hub,
    label: Label,
}

#[async_trait]
impl Net for SimNet {
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>> {
        let (wait, cut) = {
            let mut state = self.hub.lock();
            let wait = state.delay(0) + state.delay(0);
            let to = state.listeners.get(addr).map(|(label, _)| *label);
            let cut = to.is_some_and(|to| {
                state.cuts.contains(&(self.label, to)) || state.cuts.contains(&(to, self.label))
            });
            (wait, cut)
        };
        if cut {
            tokio::time::sleep(DIAL_HANG).await;
            return Err(io::ErrorKind::TimedOut.into());
        }
        tokio::time::sleep(Duration::from_micros(wait)).await;
        let Some((to, listener)) = self.hub.lock().listeners.get(addr).cloned() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        event!(self.hub.world, self.label, "dial p{to}");
        let (mine, theirs) = self.hub.connect(self.label, to);
        listener
            .send((self.label, theirs))
            .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(mine))
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (send, receive) = mpsc::unbounded_channel();
        let mut state = self.hub.lock();
        if state.listeners.insert(addr.into(), (self.label, send)).is_some() {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        Ok(Box::new(SimListener { receive, addr: addr.into() }))
    }
}

struct SimListener {
    receive: mpsc::UnboundedReceiver<Arrival>,
    addr: String,
}

#[async_trait]
impl Listener for SimListener {
    async fn accept(&mut self) -> io::Result<(Box<dyn ByteStream>, String)> {
        let (from, end) = self.receive.recv().await.ok_or(io::ErrorKind::NotConnected)?;
        Ok((Box::new(end), format!("p{from}")))
    }
    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}

/// One end of a connection.
struct End {
    hub: Hub,
    reads_id: u64,
    reads: Arc<Mutex<Pipe>>,
    writes: Arc<Mutex<Pipe>>,
    timer: Option<Pin<Box<Sleep>>>,
}

/// What a reader finds.
enum Found {
    Bytes,
    End,
    Error(io::ErrorKind),
    Wait(Option<u64>),
}

impl Pipe {
    fn read(&mut self, now: u64, cut: bool, buffer: &mut ReadBuf<'_>) -> Found {
        if cut || self.dead {
            return Found::Wait(None);
        }
        if self.reset {
            return if self.last_us <= now {
                Found::Error(io::ErrorKind::ConnectionReset)
            } else {
                Found::Wait(Some(self.last_us))
            };
        }
        let before = buffer.filled().len();
        while let Some((at, bytes)) = self.queue.front_mut() {
            if *at > now || buffer.remaining() == 0 {
                break;
            }
            let len = bytes.len().min(buffer.remaining());
            buffer.put_slice(&bytes[..len]);
            bytes.advance(len);
            self.in_flight -= len;
            if bytes.is_empty() {
                self.queue.pop_front();
            }
        }
        if buffer.filled().len() > before {
            return Found::Bytes;
        }
        match self.queue.front() {
            Some((at, _)) => Found::Wait(Some(*at)),
            None if self.closed && self.last_us <= now => Found::End,
            None if self.closed => Found::Wait(Some(self.last_us)),
            None => Found::Wait(None),
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let now = this.hub.world.now_us();
        let wait = {
            let state = this.hub.lock();
            let mut pipe = this.reads.lock().expect("no holder of this lock panics");
            let cut = state.cuts.contains(&(pipe.from, pipe.to));
            match pipe.read(now, cut, buffer) {
                Found::Bytes => {
                    wake(&mut pipe.writer);
                    return Poll::Ready(Ok(()));
                }
                Found::End => return Poll::Ready(Ok(())),
                Found::Error(kind) => return Poll::Ready(Err(kind.into())),
                Found::Wait(at) => {
                    pipe.reader = Some(cx.waker().clone());
                    at
                }
            }
        };
        if let Some(at) = wait {
            let at = this.hub.world.instant(at);
            let timer = this.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(cx).is_ready() {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Pending
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let now = self.hub.world.now_us();
        let mut state = self.hub.lock();
        if self.reads.lock().expect("no holder of this lock panics").reset {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let mut pipe = self.writes.lock().expect("no holder of this lock panics");
        if pipe.in_flight >= WINDOW_BYTES {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = bytes.len().min(WINDOW_BYTES - pipe.in_flight).min(SEGMENT_BYTES);
        let at = (now + state.delay(len)).max(pipe.last_us);
        pipe.last_us = at;
        pipe.in_flight += len;
        state.bytes += len as u64;
        event!(self.hub.world, pipe.from, "sends p{} {len} {:x}", pipe.to, fold(0, &bytes[..len]));
        pipe.queue.push_back((at, Bytes::copy_from_slice(&bytes[..len])));
        wake(&mut pipe.reader);
        Poll::Ready(Ok(len))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.close();
        Poll::Ready(Ok(()))
    }
}

impl End {
    fn close(&self) {
        let now = self.hub.world.now_us();
        let delay = self.hub.lock().delay(0);
        let mut pipe = self.writes.lock().expect("no holder of this lock panics");
        if !pipe.closed {
            pipe.closed = true;
            pipe.last_us = pipe.last_us.max(now + delay);
            wake(&mut pipe.reader);
        }
    }
}
impl Drop for End {
    fn drop(&mut self) {
        self.close();
        let mut state = self.hub.lock();
        let mut pipe = self.reads.lock().expect("no holder of this lock panics");
        pipe.queue.clear();
        pipe.in_flight = 0;
        wake(&mut pipe.writer);
        state.pipes.remove(&self.reads_id);
    }
}
