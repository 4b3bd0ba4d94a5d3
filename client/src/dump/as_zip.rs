//! A directory as a zip archive, written as a stream: what is only known at the end of an entry stands behind it, and the
//! table of contents at the end of all.

use super::plan::Head;
use super::{Format, Forms};
use crate::files::FileTime;
use crate::format::Node;
use bytes::Bytes;
use farshore_core::units::civil;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard};
use zip::write::{FullFileOptions, SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, System, ZipWriter};

/// Kinds of files in a mode.
const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
/// A directory, for readers that know no modes.
const DOS_DIRECTORY: u32 = 0x10;
/// Longer files have lengths of eight bytes. Not 4 GiB: what does not compress becomes a little longer.
const SHORT_BYTES_MAX: u64 = 0xF000_0000;

/// Writes a zip archive.
pub struct Zip {
    /// Gone once the table of contents is written.
    writer: Option<ZipWriter<StreamWriter<Outbox>>>,
    outbox: Outbox,
}

impl Zip {
    /// Nothing written yet.
    pub fn new() -> Self {
        let outbox = Outbox::default();
        Zip { writer: Some(ZipWriter::new_stream(outbox.clone())), outbox }
    }

    fn writer(&mut self) -> io::Result<&mut ZipWriter<StreamWriter<Outbox>>> {
        self.writer.as_mut().ok_or_else(|| io::Error::other("the archive has ended"))
    }
}

impl Format for Zip {
    fn forms(&self) -> Forms {
        Forms { links: false, specials: false }
    }

    fn computes(&self) -> bool {
        true
    }

    fn begin(&mut self, head: &Head, made: &mut Vec<Bytes>) -> io::Result<()> {
        let mut name = head.path.as_bytes().to_vec();
        if matches!(head.entry.node, Node::Dir { .. }) {
            name.push(b'/');
        }
        let options = options(head)?;
        let writer = self.writer()?;
        match (&head.entry.node, str::from_utf8(&name)) {
            (Node::Dir { .. }, Ok(name)) => writer.add_directory(name, options)?,
            // Of directories the writer takes text only. Without the bits of a directory it takes one for an empty file; readers
            // know it by its slash.
            (Node::Dir { .. }, Err(_)) => {
                let attributes = (head.entry.meta.mode & 0o7777) << 16 | DOS_DIRECTORY;
                writer.start_file_with_options(options.external_attributes(attributes).name(&name))?;
            }
            _ => writer.start_file_with_options(options.name(&name))?,
        }
        if let Node::Symlink { target } = &head.entry.node {
            writer.write_all(target)?;
        }
        self.outbox.empty_into(made);
        Ok(())
    }

    fn data(&mut self, bytes: Bytes, made: &mut Vec<Bytes>) -> io::Result<()> {
        self.writer()?.write_all(&bytes)?;
        self.outbox.empty_into(made);
        Ok(())
    }

    fn end(&mut self, _: &mut Vec<Bytes>) -> io::Result<()> {
        // What stands behind an entry is written with the next, or with the table of contents.
        Ok(())
    }

    fn finish(&mut self, made: &mut Vec<Bytes>) -> io::Result<()> {
        if let Some(writer) = self.writer.take() {
            writer.finish()?;
        }
        self.outbox.empty_into(made);
        Ok(())
    }
}

fn options(head: &Head) -> io::Result<FullFileOptions<'static, 'static>> {
    let meta = &head.entry.meta;
    let mode = |kind: u32| (kind | (meta.mode & 0o7777)) << 16;
    let (attributes, method, size) = match &head.entry.node {
        Node::Dir { .. } => (mode(DIRECTORY) | DOS_DIRECTORY, CompressionMethod::Stored, 0),
        Node::Symlink { .. } => (mode(SYMLINK), CompressionMethod::Stored, 0),
        Node::File { size, .. } => (mode(REGULAR), CompressionMethod::Deflated, *size),
        _ => return Err(io::Error::other("the planner leaves out what has no form")),
    };
    let options = SimpleFileOptions::default()
        .system(System::Unix)
        .compression_method(method)
        .external_attributes(attributes)
        .large_file(size > SHORT_BYTES_MAX)
        .last_modified_time(dos_time(meta.mtime));
    // The field has 32 bits, and the times of DOS have all that is left.
    match u32::try_from(meta.mtime.secs).ok().filter(|secs| i32::try_from(*secs).is_ok()) {
        Some(secs) => Ok(options.with_extended_timestamp(Some(secs), None, None)?),
        None => Ok(options.into_full_options()),
    }
}

/// The time in UTC, in steps of two seconds; what is outside of 1980 to 2107 becomes the nearest there is.
fn dos_time(time: FileTime) -> DateTime {
    let (year, month, day) = civil(time.secs.div_euclid(86_400));
    let second = time.secs.rem_euclid(86_400);
    let date = match year {
        ..1980 => (1980, 1, 1, 0),
        2108.. => (2107, 12, 31, 86_398),
        _ => (year as u16, month as u8, day as u8, second),
    };
    let (year, month, day, second) = date;
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    DateTime::from_date_and_time(year, month, day, hour as u8, minute as u8, second as u8).unwrap_or_default()
}

/// What the writer has written and nobody has fetched yet.
#[derive(Clone, Default)]
struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("no holder of this lock panics")
    }

    fn empty_into(&self, made: &mut Vec<Bytes>) {
        let bytes = std::mem::take(&mut *self.bytes());
        if !bytes.is_empty() {
            made.push(bytes.into());
        }
    }
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
