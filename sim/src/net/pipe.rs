//! One end of a connection and the two pipes it reads from and writes to.

use super::{Hub, Label, State};
use crate::calls::Call;
use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// Bytes in flight in one direction of a connection before the writer has to wait.
pub(super) const WINDOW_BYTES: usize = 1 << 20;
/// Largest piece delivered at once.
const SEGMENT_BYTES: usize = 64 << 10;

/// One direction of a connection.
pub(super) struct Pipe {
    pub(super) from: Label,
    pub(super) to: Label,
    queue: VecDeque<(u64, Bytes)>,
    in_flight: usize,
    /// Nothing may arrive before this, since bytes keep their order.
    pub(super) last_us: u64,
    /// Until then the link is busy with what was written.
    free_us: u64,
    /// The writer has ended: end of file after the queue.
    pub(super) closed: bool,
    /// The writer's process is gone: an error at `last_us`.
    pub(super) reset: bool,
    /// The writer's machine lost power: what is under way arrives, then silence.
    pub(super) dead: bool,
    /// The reader's end is closed: its system answers bytes with a reset.
    unread: bool,
    /// Nobody will ever read what is under way.
    orphaned: bool,
    pub(super) reader: Option<Waker>,
    writer: Option<Waker>,
}

pub(super) fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

/// One end of a connection.
pub(super) struct End {
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
    pub(super) fn new(from: Label, to: Label, now: u64) -> Self {
        Pipe {
            from,
            to,
            queue: VecDeque::new(),
            in_flight: 0,
            last_us: now,
            free_us: now,
            closed: false,
            reset: false,
            dead: false,
            unread: false,
            orphaned: false,
            reader: None,
            writer: None,
        }
    }
    /// Both ends see a reset from now on.
    pub(super) fn break_off(&mut self, now: u64) {
        self.reset = true;
        self.last_us = now;
        wake(&mut self.reader);
        wake(&mut self.writer);
    }
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
            let mut state = this.hub.lock();
            let mut pipe = this.reads.lock().expect("no holder of this lock panics");
            let cut = state.cuts.contains(&(pipe.from, pipe.to));
            match pipe.read(now, cut, buffer) {
                Found::Bytes => {
                    if pipe.in_flight == 0 {
                        state.links.set_busy((pipe.from, pipe.to), false);
                    }
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
        let world = &self.hub.world;
        let now = world.now_us();
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
        // A stopped process waits for ever.
        let Some(ticket) = world.try_enter(pipe.from, Call::Send) else { return Poll::Pending };
        let len = bytes.len().min(WINDOW_BYTES - pipe.in_flight).min(SEGMENT_BYTES);
        let way = (pipe.from, pipe.to);
        let State { links, rng, .. } = &mut *state;
        if pipe.in_flight == 0 && len > 0 && !pipe.orphaned {
            links.set_busy(way, true);
        }
        let (at, sent) = links.send(rng, way, len, now, pipe.free_us);
        pipe.free_us = sent;
        pipe.last_us = at.max(pipe.last_us);
        pipe.in_flight += len;
        world.sent(pipe.from, pipe.to, &bytes[..len]);
        let at = pipe.last_us;
        pipe.queue.push_back((at, Bytes::copy_from_slice(&bytes[..len])));
        wake(&mut pipe.reader);
        if world.try_leave(way.0, ticket) { Poll::Ready(Ok(len)) } else { Poll::Pending }
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
    /// The end that reads from one numbered pipe and writes to the other.
    pub(super) fn new(hub: &Hub, reads: &(u64, Arc<Mutex<Pipe>>), writes: &(u64, Arc<Mutex<Pipe>>)) -> Self {
        let (reads_id, reads) = reads.clone();
        End { hub: hub.clone(), reads_id, reads, writes: writes.1.clone(), timer: None }
    }
    fn close(&self) {
        let now = self.hub.world.now_us();
        let mut state = self.hub.lock();
        let mut pipe = self.writes.lock().expect("no holder of this lock panics");
        // A stopped process does not even say that it ends.
        if !pipe.closed && !pipe.dead && !self.hub.world.calls().is_closed(pipe.from) {
            let State { links, rng, .. } = &mut *state;
            pipe.closed = true;
            pipe.last_us = pipe.last_us.max(now + links.latency(rng, (pipe.from, pipe.to)));
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
        pipe.orphaned = true;
        if pipe.in_flight > 0 {
            state.links.set_busy((pipe.from, pipe.to), false);
        }
        // A machine without power answers nothing.
        pipe.unread = !state.dark.contains(&pipe.to) && !self.hub.world.calls().is_closed(pipe.to);
        wake(&mut pipe.writer);
        state.pipes.remove(&self.reads_id);
    }
}
