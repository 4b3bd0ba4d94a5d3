//! The Net seam: TCP-like pipes with latency, loss (as retransmission delay), one-way cuts, reset and power loss.
//! Bytes arrive in order or not at all, as TCP has it; TLS, HTTP/2 and tonic run over them unchanged.

use crate::entropy::Rng;
use crate::event;
use crate::world::World;
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
/// First pause before an unanswered dial is tried again; doubles.
const DIAL_AGAIN: Duration = Duration::from_secs(1);
/// How long an unanswered dial hangs before the system gives up; callers have shorter deadlines.
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
    /// Machines without power: nobody answers, not even with a refusal.
    dark: BTreeSet<Label>,
    latency_us: (u64, u64),
    loss_ppm: u64,
    bytes_per_us: u64,
    /// Who has or had an address.
    homes: BTreeMap<String, Label>,
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
    /// The writer's machine lost power: what is under way arrives, then silence.
    dead: bool,
    /// The reader's end is closed: its system answers bytes with a reset.
    unread: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Hub {
    /// A calm network.
    pub fn new(world: World) -> Self {
        let state = State {
            rng: Rng::new(world.seed(), 0x4e45),
            cuts: BTreeSet::new(),
            dark: BTreeSet::new(),
            latency_us: (2_000, 30_000),
            loss_ppm: 0,
            bytes_per_us: 50,
            homes: BTreeMap::new(),
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
        if power {
            state.dark.insert(label);
        }
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
    /// A machine has power again. Its new system knows none of the old connections and resets them.
    pub fn boot(&self, label: Label) {
        let now = self.world.now_us();
        let mut state = self.lock();
        if !state.dark.remove(&label) {
            return;
        }
        let delay = state.delay(0);
        for pipe in state.pipes.values() {
            let mut pipe = pipe.lock().expect("no holder of this lock panics");
            if pipe.from == label && pipe.dead {
                pipe.dead = false;
                pipe.reset = true;
                pipe.last_us = now + delay;
                wake(&mut pipe.reader);
            }
        }
    }
    /// Bytes sent by everybody so far.
    pub fn bytes(&self) -> u64 {
        self.lock().bytes
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
            let pipe = Arc::new(Mutex::new(Pipe {
                from,
                to,
                queue: VecDeque::new(),
                in_flight: 0,
                last_us: now,
                closed: false,
                reset: false,
                dead: false,
                unread: false,
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
            state.delay(0) + state.delay(0)
        };
        tokio::time::sleep(Duration::from_micros(wait)).await;
        let Some((to, listener)) = self.hub.lock().listeners.get(addr).cloned() else {
            return Err(io::ErrorKind::ConnectionRefused.into());
        };
        event!(self.hub.world, self.label, "dial p{to}");
        let (mine, theirs) = self.hub.connect(self.label, to);
        listener.send((self.label, theirs)).map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
        Ok(Box::new(mine))
    }

    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (send, receive) = mpsc::unbounded_channel();
        let mut state = self.hub.lock();
        if state.listeners.contains_key(addr) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        state.homes.insert(addr.into(), self.label);
        state.listeners.insert(addr.into(), (self.label, send));
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
        if cut {
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
            None if self.dead => Found::Wait(None),
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
        if pipe.unread {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.in_flight >= WINDOW_BYTES {
            pipe.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let len = bytes.len().min(WINDOW_BYTES - pipe.in_flight).min(SEGMENT_BYTES);
        let at = (now + state.delay(len)).max(pipe.last_us);
        pipe.last_us = at;
        pipe.in_flight += len;
        state.bytes += len as u64;
        self.hub.world.sent(pipe.from, pipe.to, &bytes[..len]);
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
        if !pipe.closed && !pipe.dead {
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
        // A machine without power answers nothing.
        pipe.unread = !state.dark.contains(&pipe.to);
        wake(&mut pipe.writer);
        state.pipes.remove(&self.reads_id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::{Instant, timeout};

    const A: Label = 1;
    const B: Label = 2;
    const SOON: Duration = Duration::from_secs(1);

    async fn pair(hub: &Hub) -> (Box<dyn ByteStream>, Box<dyn ByteStream>) {
        let mut listener = hub.of(B).listen("b:1").await.unwrap();
        let mine = hub.of(A).dial("b:1").await.unwrap();
        let (theirs, from) = listener.accept().await.unwrap();
        assert_eq!(from, "p1");
        (mine, theirs)
    }

    async fn get(stream: &mut Box<dyn ByteStream>) -> io::Result<Vec<u8>> {
        let mut buffer = vec![0; 64];
        let len = stream.read(&mut buffer).await?;
        buffer.truncate(len);
        Ok(buffer)
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_keep_their_order_under_loss_and_take_their_time() {
        let hub = Hub::new(World::new(1, None));
        hub.set_loss(300_000);
        let (mut mine, mut theirs) = pair(&hub).await;
        let sent: Vec<u8> = (0..200_000u32).map(|n| ((n * 7) >> 3) as u8).collect();
        let expected = sent.clone();
        let start = Instant::now();
        let writing = async move {
            for piece in sent.chunks(999) {
                mine.write_all(piece).await.unwrap();
            }
            mine.shutdown().await.unwrap();
            mine
        };
        let mut found = Vec::new();
        let (_open, read) = futures_util::join!(writing, theirs.read_to_end(&mut found));
        read.unwrap();
        assert_eq!(found, expected);
        assert!(start.elapsed() >= Duration::from_micros(RETRANSMIT_US), "something was lost and sent again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_window_waits_for_the_reader() {
        let hub = Hub::new(World::new(1, None));
        let (mut mine, mut theirs) = pair(&hub).await;
        assert!(timeout(SOON, mine.write_all(&vec![1; WINDOW_BYTES + 1])).await.is_err());
        let mut found = vec![0; WINDOW_BYTES];
        theirs.read_exact(&mut found).await.unwrap();
        timeout(SOON, mine.write_all(b"x")).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_cut_holds_one_direction_until_it_heals() {
        let hub = Hub::new(World::new(1, None));
        let (mut mine, mut theirs) = pair(&hub).await;
        hub.cut(A, B);
        mine.write_all(b"held").await.unwrap();
        theirs.write_all(b"through").await.unwrap();
        assert_eq!(get(&mut mine).await.unwrap(), b"through");
        assert!(timeout(SOON, get(&mut theirs)).await.is_err());
        assert!(timeout(SOON, hub.of(A).dial("b:1")).await.is_err());
        hub.heal();
        assert_eq!(get(&mut theirs).await.unwrap(), b"held");
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_process_resets_its_connections_and_refuses_dials() {
        let hub = Hub::new(World::new(1, None));
        let (mut mine, theirs) = pair(&hub).await;
        hub.crash(B, false);
        drop(theirs);
        let error = timeout(SOON, get(&mut mine)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(mine.write_all(b"x").await.is_err());
        let refused = timeout(SOON, hub.of(A).dial("b:1")).await.unwrap().err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_without_power_is_silent_until_it_boots() {
        let hub = Hub::new(World::new(1, None));
        let (mut mine, mut theirs) = pair(&hub).await;
        theirs.write_all(b"last words").await.unwrap();
        hub.crash(B, true);
        drop(theirs);
        assert_eq!(get(&mut mine).await.unwrap(), b"last words");
        mine.write_all(b"into the void").await.unwrap();
        assert!(timeout(SOON * 100, get(&mut mine)).await.is_err());
        let start = Instant::now();
        assert_eq!(hub.of(A).dial("b:1").await.err().unwrap().kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() > SOON * 10);
        hub.boot(B);
        let error = timeout(SOON, get(&mut mine)).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        let refused = hub.of(A).dial("b:1").await.err().unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        hub.of(B).listen("b:1").await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_end_is_an_end_of_file() {
        let hub = Hub::new(World::new(1, None));
        let (mut mine, theirs) = pair(&hub).await;
        drop(theirs);
        assert_eq!(get(&mut mine).await.unwrap(), b"");
        assert!(mine.write_all(b"x").await.is_err());
    }
}
