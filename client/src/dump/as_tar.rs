//! A directory as a tape archive: a ustar header an entry, with a PAX header before it for whatever does not fit. That is
//! what GNU tar, bsdtar and Python read, and what keeps nanoseconds, long names, large numbers and extended attributes.

use super::plan::Head;
use super::{Format, Forms};
use crate::files::{FileTime, Meta};
use crate::format::Node;
use bytes::Bytes;
use rustix::fs::{major, minor};
use std::io;
use tar::{EntryType, Header};

/// Headers and contents are filled up to whole blocks.
const BLOCK_BYTES: u64 = 512;
/// Largest number in a field of eight bytes, the last of which is zero.
const SHORT_MAX: u64 = 0o7_777_777;
/// Largest number in a field of twelve bytes.
const LONG_MAX: u64 = 0o77_777_777_777;
/// Longest name of an owner in its field, which ends in a zero byte.
const OWNER_BYTES_MAX: usize = 31;
/// Longest name and longest target in their fields.
const NAME_BYTES_MAX: usize = 100;

/// Writes a tape archive.
pub struct Tar {
    /// Bytes that fill up the last block of the file that has begun.
    padding: usize,
}

impl Tar {
    /// Nothing written yet.
    pub fn new() -> Self {
        Tar { padding: 0 }
    }
}

impl Format for Tar {
    fn forms(&self) -> Forms {
        Forms { links: true, specials: true }
    }

    fn begin(&mut self, head: &Head, made: &mut Vec<Bytes>) -> io::Result<()> {
        let (bytes, size) = headers(head);
        self.padding = (size.next_multiple_of(BLOCK_BYTES) - size) as usize;
        made.push(bytes.into());
        Ok(())
    }

    fn data(&mut self, bytes: Bytes, made: &mut Vec<Bytes>) -> io::Result<()> {
        made.push(bytes);
        Ok(())
    }

    fn end(&mut self, made: &mut Vec<Bytes>) -> io::Result<()> {
        let padding = std::mem::take(&mut self.padding);
        if padding > 0 {
            made.push(vec![0; padding].into());
        }
        Ok(())
    }

    fn finish(&mut self, made: &mut Vec<Bytes>) -> io::Result<()> {
        made.push(vec![0; 2 * BLOCK_BYTES as usize].into());
        Ok(())
    }
}

/// The headers of an entry, and how many bytes of contents follow.
fn headers(head: &Head) -> (Vec<u8>, u64) {
    let meta = &head.entry.meta;
    let mut name = head.path.as_bytes().to_vec();
    if matches!(head.entry.node, Node::Dir { .. }) {
        name.push(b'/');
    }
    let linked = match (&head.link, &head.entry.node) {
        (Some(first), _) => first.as_bytes(),
        (None, Node::Symlink { target }) => target,
        (None, _) => &[],
    };
    let size = match &head.entry.node {
        Node::File { size, .. } if head.link.is_none() => *size,
        _ => 0,
    };
    let mut pax = Pax::default();
    let mut header = Header::new_ustar();
    header.set_entry_type(entry_type(head));
    header.set_mode(meta.mode & 0o7777);
    header.set_uid(pax.number("uid", u64::from(meta.uid), SHORT_MAX));
    header.set_gid(pax.number("gid", u64::from(meta.gid), SHORT_MAX));
    header.set_size(pax.number("size", size, LONG_MAX));
    header.set_mtime(pax.time("mtime", meta.mtime));
    if let Some(atime) = meta.atime {
        // There is no field for it at all.
        pax.add(b"atime", decimal(atime).as_bytes());
    }
    if let Node::CharDev { rdev } | Node::BlockDev { rdev } = head.entry.node {
        // Linux gives them 12 and 20 bits, the fields have 21; what is no device of Linux keeps what fits.
        let fits = |number: u32| number & SHORT_MAX as u32;
        let ustar = header.as_ustar_mut().expect("it was made as one");
        ustar.set_device_major(fits(major(rdev)));
        ustar.set_device_minor(fits(minor(rdev)));
    }
    pax.text("path", &name, NAME_BYTES_MAX);
    pax.text("linkpath", linked, NAME_BYTES_MAX);
    pax.text("uname", meta.user.as_bytes(), OWNER_BYTES_MAX);
    pax.text("gname", meta.group.as_bytes(), OWNER_BYTES_MAX);
    // A further name has the attributes of the first.
    if head.link.is_none() {
        xattrs(meta, &mut pax);
    }
    let ustar = header.as_ustar_mut().expect("it was made as one");
    fill(&mut ustar.name, &name);
    fill(&mut ustar.linkname, linked);
    fill(&mut ustar.uname[..OWNER_BYTES_MAX], meta.user.as_bytes());
    fill(&mut ustar.gname[..OWNER_BYTES_MAX], meta.group.as_bytes());
    header.set_cksum();
    let mut bytes = pax.entry(&name);
    bytes.extend_from_slice(header.as_bytes());
    (bytes, size)
}

fn entry_type(head: &Head) -> EntryType {
    match &head.entry.node {
        Node::File { .. } if head.link.is_some() => EntryType::Link,
        Node::File { .. } => EntryType::Regular,
        Node::Dir { .. } => EntryType::Directory,
        Node::Symlink { .. } => EntryType::Symlink,
        Node::CharDev { .. } => EntryType::Char,
        Node::BlockDev { .. } => EntryType::Block,
        // The planner leaves sockets out.
        Node::Fifo | Node::Socket => EntryType::Fifo,
    }
}

/// What fits of a text; a PAX header has all of it.
fn fill(field: &mut [u8], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

fn xattrs(meta: &Meta, pax: &mut Pax) {
    for (name, value) in &meta.xattrs {
        // A record's key ends at its first `=`; GNU tar writes and reads it this way.
        let mut key = b"SCHILY.xattr.".to_vec();
        for byte in name {
            match byte {
                b'=' => key.extend_from_slice(b"%3D"),
                b'%' => key.extend_from_slice(b"%25"),
                _ => key.push(*byte),
            }
        }
        pax.add(&key, value);
    }
}

/// Seconds and nanoseconds as PAX writes them: a decimal number, before 1970 a negative one.
fn decimal(time: FileTime) -> String {
    let nanos = i128::from(time.secs) * 1_000_000_000 + i128::from(time.nanos);
    let sign = if nanos < 0 { "-" } else { "" };
    let (secs, nanos) = (nanos.unsigned_abs() / 1_000_000_000, nanos.unsigned_abs() % 1_000_000_000);
    match nanos {
        0 => format!("{sign}{secs}"),
        _ => format!("{sign}{secs}.{nanos:09}"),
    }
}

/// Records of a PAX header.
#[derive(Default)]
struct Pax {
    records: Vec<u8>,
    /// Some text is not UTF-8, which readers must be told.
    binary: bool,
}

impl Pax {
    /// A number for its field; one that is too large stands in a record, and its field is zero.
    fn number(&mut self, key: &str, number: u64, max: u64) -> u64 {
        if number <= max {
            return number;
        }
        self.add(key.as_bytes(), number.to_string().as_bytes());
        0
    }

    /// Seconds for their field. What they do not say stands in a record.
    fn time(&mut self, key: &str, time: FileTime) -> u64 {
        let secs = u64::try_from(time.secs).ok().filter(|secs| *secs <= LONG_MAX);
        if secs.is_none() || time.nanos > 0 {
            self.add(key.as_bytes(), decimal(time).as_bytes());
        }
        secs.unwrap_or(0)
    }

    /// A text that may be too long for its field.
    fn text(&mut self, key: &str, text: &[u8], max: usize) {
        if text.len() > max {
            self.binary |= std::str::from_utf8(text).is_err();
            self.add(key.as_bytes(), text);
        }
    }

    fn add(&mut self, key: &[u8], value: &[u8]) {
        self.records.extend_from_slice(&record(key, value));
    }

    /// The header with all records, or nothing if there are none.
    fn entry(self, name: &[u8]) -> Vec<u8> {
        let mut records = if self.binary { record(b"hdrcharset", b"BINARY") } else { Vec::new() };
        records.extend_from_slice(&self.records);
        if records.is_empty() {
            return records;
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(EntryType::XHeader);
        header.set_mode(0o644);
        header.set_size(records.len() as u64);
        // Seen by readers that do not know such headers.
        let last = name.rsplit(|b| *b == b'/').find(|part| !part.is_empty()).unwrap_or_default();
        let shown = [b"PaxHeaders/", last].concat();
        fill(&mut header.as_ustar_mut().expect("it was made as one").name, &shown);
        header.set_cksum();
        let mut bytes = header.as_bytes().to_vec();
        bytes.extend_from_slice(&records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES as usize), 0);
        bytes
    }
}

/// `LEN KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let digits = |number: usize| number.to_string().len();
    let mut len = rest + digits(rest);
    // One digit more may make the length one digit longer.
    len = rest + digits(len);
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for len in 0..1_200 {
            let made = record(b"path", &vec![b'x'; len]);
            let said: usize = std::str::from_utf8(&made).unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, made.len());
        }
    }

    #[test]
    fn times_before_1970_are_negative_numbers() {
        for (secs, nanos, text) in [
            (5, 0, "5"),
            (5, 30, "5.000000030"),
            (-1, 0, "-1"),
            (-1, 500_000_000, "-0.500000000"),
            (-2, 250_000_000, "-1.750000000"),
        ] {
            assert_eq!(decimal(FileTime { secs, nanos }), text);
        }
    }
}
