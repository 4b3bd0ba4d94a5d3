//! The Net seam: byte streams, so that TLS and tonic run unchanged over a simulated network.

use async_trait::async_trait;
use std::io;
use tokio::io::{AsyncRead, AsyncWrite};

/// A connected stream of bytes.
pub trait ByteStream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send + 'static> ByteStream for T {}

/// Connections out and in. Addresses are `host:port`.
#[async_trait]
pub trait Net: Send + Sync {
    /// Opens a connection. The caller sets the deadline.
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>>;
    /// Listens; port 0 picks a free port.
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>>;
}

/// A listening address.
#[async_trait]
pub trait Listener: Send {
    /// The next connection and where it comes from, for the log.
    async fn accept(&mut self) -> io::Result<(Box<dyn ByteStream>, String)>;
    /// The address listened on, with its real port.
    fn local_addr(&self) -> String;
}
