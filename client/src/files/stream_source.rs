//! Standard input, or what a command prints, as a source of one file. It can be read once, and whoever ends it badly
//! fails the whole backup: half a database dump under a good name is worse than none.

use super::meta::{FileKind, FileTime, Fingerprint, Meta, Stat};
use super::source::{Listed, Listing, Opened, Source, SourceFile};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use std::io;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt as _};

/// What is read.
pub type Stream = Pin<Box<dyn AsyncRead + Send>>;
/// Waited for at the end of the stream: whether what it gave was all, such as the exit of the command that wrote it.
pub type Verdict = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// One file that is a stream, in directories of its own.
pub struct StreamSource {
    path: Vec<u8>,
    meta: Meta,
    stream: Mutex<Option<(Stream, Verdict)>>,
}

impl StreamSource {
    /// The stream appears as the file `path` (absolute, without `.`, `..` and doubled slashes), changed at `now_ms`, Unix
    /// milliseconds.
    pub fn new(path: Vec<u8>, now_ms: u64, stream: Stream, verdict: Verdict) -> Self {
        let time = FileTime::from_ms(now_ms as i64);
        let meta = Meta { mode: 0o644, mtime: time, ctime: time, nlink: 1, ..Meta::default() };
        StreamSource { path, meta, stream: Mutex::new(Some((stream, verdict))) }
    }
}

#[async_trait]
impl Source for StreamSource {
    fn is_stream(&self) -> bool {
        true
    }
    async fn stat(&self, path: &[u8]) -> io::Result<Stat> {
        if path == self.path {
            // Nobody knows its length yet.
            return Ok(Stat { kind: FileKind::File { size: 0 }, meta: self.meta.clone() });
        }
        let below = self.path.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/"));
        if below || path == b"/" {
            return Ok(Stat { kind: FileKind::Dir, meta: Meta { mode: 0o755, ..self.meta.clone() } });
        }
        Err(io::ErrorKind::NotFound.into())
    }
    async fn list(&self, _: &[u8]) -> io::Result<Box<dyn Listing>> {
        Ok(Box::new(Nothing))
    }
    async fn open(&self, path: &[u8], want: usize) -> io::Result<Opened> {
        if path != self.path {
            return Err(io::ErrorKind::NotFound.into());
        }
        let taken = self.stream.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (stream, verdict) = taken.ok_or_else(|| io::Error::other("it can be read only once"))?;
        let mut file = StreamFile { stream, verdict: Some(verdict), meta: self.meta.clone(), bytes: 0 };
        let head = file.read(want).await?;
        let seen = file.fingerprint().await?;
        let rest = (head.len() == want).then(|| Box::new(file) as Box<dyn SourceFile>);
        Ok(Opened { head, seen, rest })
    }
}

struct Nothing;

#[async_trait]
impl Listing for Nothing {
    async fn next(&mut self) -> io::Result<Vec<Listed>> {
        Ok(Vec::new())
    }
}

struct StreamFile {
    stream: Stream,
    verdict: Option<Verdict>,
    meta: Meta,
    bytes: u64,
}

#[async_trait]
impl SourceFile for StreamFile {
    async fn read(&mut self, want: usize) -> io::Result<Bytes> {
        let mut bytes = BytesMut::with_capacity(want);
        while bytes.len() < want {
            let room = want - bytes.len();
            if (&mut self.stream).take(room as u64).read_buf(&mut bytes).await? == 0 {
                if let Some(verdict) = self.verdict.take() {
                    verdict.await?;
                }
                break;
            }
        }
        self.bytes += bytes.len() as u64;
        Ok(bytes.freeze())
    }
    async fn fingerprint(&mut self) -> io::Result<Fingerprint> {
        Ok(Fingerprint::of(self.bytes, &self.meta))
    }
}
