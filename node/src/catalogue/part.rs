//! The pieces of an exported catalogue, as bytes (docs/format.md, "Catalogue export"). What a record means, a row or an
//! entry of the log, is for those who make and read exports; here it is bytes. Everything is checked before it is
//! believed: the bytes come back from disks on the worst day.

use super::image::ImageRow;
use super::tables::StateHash;
use bytes::Bytes;
use farshore_core::id::{ClusterId, ExportId};
use farshore_core::limits::{EXPORT_PART_BYTES, EXPORT_PARTS_MAX, PACK_BYTES_MAX};

const MAGIC: [u8; 8] = *b"FSEXPRT\0";
const VERSION: u16 = 1;
/// Bytes before the records.
pub const PART_HEADER_BYTES: usize = 128;
const SUM_BYTES: usize = 16;
const FLAG_BASE: u8 = 1;
const FLAG_LAST: u8 = 2;

/// What a part says about itself and the export it belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartHeader {
    /// Whose catalogue.
    pub cluster: ClusterId,
    /// Which export.
    pub export: ExportId,
    /// A whole catalogue; otherwise log entries.
    pub base: bool,
    /// No part comes after it.
    pub last: bool,
    /// Its place, from 0.
    pub number: u32,
    /// Last log entry before the export; 0 for a base.
    pub from: u64,
    /// Last log entry in the export.
    pub to: u64,
    /// Catalogue time after that entry.
    pub time_ms: u64,
    /// State hash after that entry.
    pub state_hash: StateHash,
    /// Snapshots the catalogue has then, for people.
    pub snapshots: u64,
    /// Packs the catalogue has then, for people.
    pub packs: u64,
    /// Era of the log in which it was made: indices are given out again after a recovery.
    pub era: u32,
    /// What the id of the export begins with whose last entry is `from`; zeros if it names none. Only this tells which
    /// history a later era goes on from.
    pub after: ExportTag,
}

/// The beginning of an export's id.
pub type ExportTag = [u8; 12];

/// How an export is named in the header of another.
pub fn export_tag(export: ExportId) -> ExportTag {
    let [tag @ .., _, _, _, _] = export.0;
    tag
}

/// Bytes that are not a part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPart {
    /// Too short or cut off.
    #[error("it is cut short")]
    Short,
    /// Something else altogether.
    #[error("its magic bytes are wrong")]
    Magic,
    /// Written by a later release.
    #[error("its version {0} is newer than this program")]
    Version(u16),
    /// Damaged.
    #[error("its checksum is wrong")]
    Checksum,
    /// Undamaged, but no correct program writes this.
    #[error("it is not valid: {0}")]
    Field(&'static str),
}

impl PartHeader {
    fn encode(&self, body: usize) -> [u8; PART_HEADER_BYTES] {
        let mut out = [0; PART_HEADER_BYTES];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..10].copy_from_slice(&VERSION.to_le_bytes());
        out[10] = if self.base { FLAG_BASE } else { 0 } | if self.last { FLAG_LAST } else { 0 };
        out[12..16].copy_from_slice(&self.number.to_le_bytes());
        out[16..32].copy_from_slice(self.cluster.as_bytes());
        out[32..48].copy_from_slice(self.export.as_bytes());
        for (at, number) in [(48, self.from), (56, self.to), (64, self.time_ms), (88, self.snapshots)] {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        out[72..88].copy_from_slice(&self.state_hash.0);
        out[96..104].copy_from_slice(&self.packs.to_le_bytes());
        out[104..112].copy_from_slice(&(body as u64).to_le_bytes());
        out[112..116].copy_from_slice(&self.era.to_le_bytes());
        out[116..128].copy_from_slice(&self.after);
        out
    }

    /// Reads what a part begins with, unchecked but for its form: enough to choose by, not to build on. Returns also
    /// the length of the records.
    pub fn peek(bytes: &[u8]) -> Result<(Self, u64), BadPart> {
        let bytes: &[u8; PART_HEADER_BYTES] = bytes.first_chunk().ok_or(BadPart::Short)?;
        if bytes[0..8] != MAGIC {
            return Err(BadPart::Magic);
        }
        let version = u16::from_le_bytes([bytes[8], bytes[9]]);
        if version != VERSION {
            return Err(BadPart::Version(version));
        }
        let number = |at| u64::from_le_bytes(field(bytes, at));
        let header = PartHeader {
            cluster: ClusterId(field(bytes, 16)),
            export: ExportId(field(bytes, 32)),
            base: bytes[10] & FLAG_BASE != 0,
            last: bytes[10] & FLAG_LAST != 0,
            number: u32::from_le_bytes(field(bytes, 12)),
            from: number(48),
            to: number(56),
            time_ms: number(64),
            state_hash: StateHash(field(bytes, 72)),
            snapshots: number(88),
            packs: number(96),
            // Zero in parts that were written before there was this field: era 0.
            era: u32::from_le_bytes(field(bytes, 112)),
            after: field(bytes, 116),
        };
        if bytes[10] & !(FLAG_BASE | FLAG_LAST) != 0 || bytes[11] != 0 {
            return Err(BadPart::Field("reserved bits are not zero"));
        }
        if header.number as usize >= EXPORT_PARTS_MAX || header.from > header.to {
            return Err(BadPart::Field("part number or log entries out of bounds"));
        }
        if header.base && (header.from != 0 || header.after != ExportTag::default()) {
            return Err(BadPart::Field("a base has nothing before it"));
        }
        Ok((header, number(104)))
    }
}

/// `N` bytes at `at`; only called with constants that lie inside a header.
fn field<const N: usize>(bytes: &[u8; PART_HEADER_BYTES], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}

fn checksum(bytes: &[u8]) -> [u8; SUM_BYTES] {
    let hash = farshore_core::id::hash_parts(&[b"farshore catalogue export part", bytes]);
    let mut sum = [0; SUM_BYTES];
    sum.copy_from_slice(&hash[..SUM_BYTES]);
    sum
}

/// A part that is being filled.
pub struct PartBuilder {
    bytes: Vec<u8>,
}

impl Default for PartBuilder {
    fn default() -> Self {
        PartBuilder { bytes: vec![0; PART_HEADER_BYTES] }
    }
}

impl PartBuilder {
    /// Adds a record, as parts laid end to end.
    pub fn push(&mut self, record: &[&[u8]]) {
        let len: usize = record.iter().map(|piece| piece.len()).sum();
        self.bytes.extend_from_slice(&(len as u32).to_le_bytes());
        record.iter().for_each(|piece| self.bytes.extend_from_slice(piece));
    }
    /// Adds a row of an image.
    pub fn push_row(&mut self, row: &ImageRow) {
        let key_len = (row.key.len() as u16).to_le_bytes();
        self.push(&[&[row.table], &key_len, &row.key, &row.value]);
    }
    /// Whether it holds enough.
    pub fn is_full(&self) -> bool {
        self.bytes.len() >= EXPORT_PART_BYTES
    }
    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.bytes.len() == PART_HEADER_BYTES
    }
    /// The bytes of the part.
    pub fn close(mut self, header: &PartHeader) -> Bytes {
        let body = self.bytes.len() - PART_HEADER_BYTES;
        self.bytes[..PART_HEADER_BYTES].copy_from_slice(&header.encode(body));
        let sum = checksum(&self.bytes);
        self.bytes.extend_from_slice(&sum);
        self.bytes.into()
    }
}

/// A part that was checked as a whole.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// What it says about itself.
    pub header: PartHeader,
    records: Bytes,
}

impl Part {
    /// Checks a part's bytes.
    pub fn decode(bytes: Bytes) -> Result<Self, BadPart> {
        let (header, body) = PartHeader::peek(&bytes)?;
        if body > PACK_BYTES_MAX as u64 || bytes.len() != PART_HEADER_BYTES + body as usize + SUM_BYTES {
            return Err(BadPart::Short);
        }
        let end = bytes.len() - SUM_BYTES;
        if checksum(&bytes[..end]) != bytes[end..] {
            return Err(BadPart::Checksum);
        }
        let part = Part { header, records: bytes.slice(PART_HEADER_BYTES..end) };
        if part.records().any(|record| record.is_none()) {
            return Err(BadPart::Field("a record leaves the part"));
        }
        Ok(part)
    }

    /// Its records, in order. `None` stands for one that leaves the part and is the last; not after [`Part::decode`].
    pub fn records(&self) -> impl Iterator<Item = Option<Bytes>> + '_ {
        let mut at = 0;
        std::iter::from_fn(move || {
            let rest = self.records.get(at..)?;
            if rest.is_empty() {
                return None;
            }
            let record = rest.first_chunk::<4>().and_then(|len| {
                let len = u32::from_le_bytes(*len) as usize;
                let end = at.checked_add(4)?.checked_add(len)?;
                (end <= self.records.len()).then(|| self.records.slice(at + 4..end))
            });
            at = record.as_ref().map_or(self.records.len(), |record| at + 4 + record.len());
            Some(record)
        })
    }

    /// Its records as rows of an image.
    pub fn rows(&self) -> Result<Vec<ImageRow>, BadPart> {
        let row = |record: Option<Bytes>| {
            let record = record?;
            let (head, rest) = record.split_first_chunk::<3>()?;
            let (key, value) = rest.split_at_checked(usize::from(u16::from_le_bytes([head[1], head[2]])))?;
            Some(ImageRow { table: head[0], key: key.to_vec(), value: value.to_vec() })
        };
        let rows: Option<Vec<ImageRow>> = self.records().map(row).collect();
        rows.ok_or(BadPart::Field("a row is cut short"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header(base: bool) -> PartHeader {
        PartHeader {
            cluster: ClusterId([1; 16]),
            export: ExportId([2; 16]),
            base,
            last: true,
            number: 3,
            from: if base { 0 } else { 6 },
            to: 7,
            time_ms: 8,
            state_hash: StateHash([9; 16]),
            snapshots: 10,
            packs: 11,
            era: 12,
            after: if base { ExportTag::default() } else { [13; 12] },
        }
    }

    #[test]
    fn a_part_says_its_era_and_an_old_one_is_of_era_0() {
        let bytes = PartBuilder::default().close(&header(false));
        assert_eq!(&bytes[112..128], b"\x0c\0\0\0\x0d\x0d\x0d\x0d\x0d\x0d\x0d\x0d\x0d\x0d\x0d\x0d");
        let mut old = bytes.to_vec();
        old[112..128].fill(0);
        let (old, _) = PartHeader::peek(&old).unwrap();
        assert_eq!((old.era, old.after, old.to), (0, ExportTag::default(), 7));
    }

    #[test]
    fn a_part_never_changes_its_shape() {
        let mut part = PartBuilder::default();
        part.push_row(&ImageRow { table: 5, key: b"key".to_vec(), value: b"value".to_vec() });
        let bytes = part.close(&header(true));
        assert_eq!(&bytes[..16], b"FSEXPRT\0\x01\0\x03\0\x03\0\0\0");
        assert_eq!(&bytes[128..143], b"\x0b\0\0\0\x05\x03\0keyvalue");
        assert_eq!(bytes.len(), 128 + 15 + 16);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn parts_come_back_and_any_flipped_bit_is_noticed(
            base: bool, rows: Vec<(u8, Vec<u8>, Vec<u8>)>, bit: prop::sample::Index, cut: prop::sample::Index
        ) {
            let rows: Vec<ImageRow> =
                rows.into_iter().map(|(table, key, value)| ImageRow { table, key, value }).collect();
            let mut builder = PartBuilder::default();
            rows.iter().for_each(|row| builder.push_row(row));
            let bytes = builder.close(&header(base));
            let part = Part::decode(bytes.clone()).unwrap();
            prop_assert_eq!(part.header, header(base));
            prop_assert_eq!(part.rows().unwrap(), rows);
            let mut flipped = bytes.to_vec();
            let bit = bit.index(flipped.len() * 8);
            flipped[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Part::decode(flipped.into()).is_err());
            prop_assert!(Part::decode(bytes.slice(..cut.index(bytes.len()))).is_err());
        }

        #[test]
        fn rubbish_never_panics(bytes: Vec<u8>, body: Vec<u8>) {
            let _ = Part::decode(bytes.into());
            // Right sums around wrong records.
            let mut builder = PartBuilder::default();
            builder.bytes.extend_from_slice(&body);
            if let Ok(part) = Part::decode(builder.close(&header(true))) {
                let _ = part.rows();
            }
        }
    }
}
