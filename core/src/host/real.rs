//! The real clock, randomness, network and processors; the only file of this crate that touches the system.
#![expect(clippy::disallowed_methods, reason = "this file is the seam to the system")]

use super::{ByteStream, Compute, Entropy, Job, Kv, KvError, KvFactory, KvRole, Listener, Net, WallClock};
use super::{Disk, DiskFile, Space};
use async_trait::async_trait;
use bytes::Bytes;
use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};

/// The system clock.
pub struct SystemClock;
impl WallClock for SystemClock {
    fn now_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64)
    }
}

/// The operating system's random numbers.
pub struct OsEntropy;
impl Entropy for OsEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system always has randomness once it is up");
    }
}

/// TCP.
pub struct TcpNet;

#[async_trait]
impl Net for TcpNet {
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let listener = TcpListener::bind(addr).await?;
        let local = listener.local_addr()?.to_string();
        Ok(Box::new(TcpAccept { listener, local }))
    }
}

struct TcpAccept {
    listener: TcpListener,
    local: String,
}

#[async_trait]
impl Listener for TcpAccept {
    async fn accept(&mut self) -> io::Result<(Box<dyn ByteStream>, String)> {
        let (stream, peer) = self.listener.accept().await?;
        stream.set_nodelay(true)?;
        Ok((Box::new(stream), peer.to_string()))
    }
    fn local_addr(&self) -> String {
        self.local.clone()
    }
}

/// Tokio's blocking pool, at most as many jobs at a time as there are processors.
pub struct Processors {
    width: usize,
    slots: Arc<tokio::sync::Semaphore>,
}

impl Processors {
    /// As wide as the machine.
    pub fn new() -> Self {
        let width = std::thread::available_parallelism().map_or(2, usize::from);
        Processors { width, slots: Arc::new(tokio::sync::Semaphore::new(width)) }
    }
}
impl Default for Processors {
    fn default() -> Self {
        Self::new()
    }
}
impl Compute for Processors {
    fn submit(&self, job: Job) {
        let slots = self.slots.clone();
        tokio::spawn(async move {
            let Ok(_slot) = slots.acquire_owned().await else { return };
            // A panic in the job drops its reply channel; whoever waits for the value notices.
            let _ = tokio::task::spawn_blocking(job).await;
        });
    }
    fn width(&self) -> usize {
        self.width
    }
}

/// The disk and stores of a process that has none, such as a client. Every call is an error that says so.
pub struct NoStorage;

fn none<T>() -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this process has no disk of its own"))
}

#[async_trait]
impl Disk for NoStorage {
    async fn create(&self, _: &str) -> io::Result<Box<dyn DiskFile>> {
        none()
    }
    async fn read(&self, _: &str, _: u64, _: usize) -> io::Result<Bytes> {
        none()
    }
    async fn len(&self, _: &str) -> io::Result<Option<u64>> {
        none()
    }
    async fn write_slot(&self, _: &str, _: u64, _: &[u8]) -> io::Result<()> {
        none()
    }
    async fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        none()
    }
    async fn remove(&self, _: &str) -> io::Result<()> {
        none()
    }
    async fn sync_dir(&self, _: &str) -> io::Result<()> {
        none()
    }
    async fn list(&self, _: &str) -> io::Result<Vec<String>> {
        none()
    }
    async fn space(&self) -> io::Result<Space> {
        none()
    }
}

#[async_trait]
impl KvFactory for NoStorage {
    async fn open(&self, _: KvRole) -> Result<Arc<dyn Kv>, KvError> {
        Err(KvError::Unsupported("be opened: this process keeps no state"))
    }
    async fn discard(&self, _: KvRole) -> Result<(), KvError> {
        Err(KvError::Unsupported("be discarded: this process keeps no state"))
    }
    async fn put_away(&self) -> Result<(), KvError> {
        Err(KvError::Unsupported("be put away: this process keeps no state"))
    }
}

/// The seams of a client: everything but storage.
pub fn client_host() -> super::Host {
    super::Host {
        disk: Arc::new(NoStorage),
        kv: Arc::new(NoStorage),
        net: Arc::new(TcpNet),
        clock: Arc::new(SystemClock),
        entropy: Arc::new(OsEntropy),
        compute: Arc::new(Processors::new()),
    }
}
