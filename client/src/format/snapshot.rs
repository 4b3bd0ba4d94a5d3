//! The description of a snapshot: everything about it that nodes may not know, sealed into its record.

use crate::crypto::{RepoKeys, open_blob, seal_blob};
use crate::error::{Error, Result};
use farshore_core::catalogue::SnapshotKind;
use farshore_core::host::Entropy;
use farshore_core::id::{ChunkId, SnapshotId};
use farshore_core::limits::SNAPSHOT_SEALED_BYTES_MAX;
use serde::{Deserialize, Serialize};

const SNAPSHOT_VERSION: u8 = 1;
/// Room for the list of unreadable paths; the rest of a description needs far less than the remaining half.
const UNREADABLE_BYTES_MAX: usize = SNAPSHOT_SEALED_BYTES_MAX / 2;
/// Longest message kept with an unreadable path.
const UNREADABLE_WHY_MAX: usize = 256;

/// A path that could not be read, and what the system said.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnreadablePath {
    /// Absolute path.
    pub path: Vec<u8>,
    /// The system's words.
    pub why: String,
}

/// What a run found and did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotStats {
    /// Files the parent did not have.
    pub files_new: u64,
    /// Files that differ from the parent's.
    pub files_changed: u64,
    /// Files taken over from the parent or found to be the same.
    pub files_unmodified: u64,
    /// Directories the parent did not have.
    pub dirs_new: u64,
    /// Directories with other contents or attributes than the parent's.
    pub dirs_changed: u64,
    /// Directories equal to the parent's.
    pub dirs_unmodified: u64,
    /// Links, devices, pipes and sockets.
    pub others: u64,
    /// All files.
    pub total_files: u64,
    /// Length of all files.
    pub total_bytes: u64,
    /// Bytes read from the source.
    pub bytes_read: u64,
    /// Plaintext bytes of data chunks the repository did not have.
    pub data_added: u64,
    /// Plaintext bytes of tree chunks the repository did not have.
    pub tree_added: u64,
    /// Data chunks the repository did not have.
    pub data_blobs: u64,
    /// Tree chunks the repository did not have.
    pub tree_blobs: u64,
    /// Bytes of the new packs before coding.
    pub bytes_packed: u64,
    /// Bytes sent to nodes, parity included.
    pub bytes_sent: u64,
    /// Unreadable paths, also those not listed for lack of room.
    pub unreadable: u64,
    /// Files that changed while they were read.
    pub inconsistent: u64,
}

/// A snapshot's description.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Client's clock when the run began, Unix milliseconds; a label, nothing rests on it.
    pub time_ms: u64,
    /// Offset of the client's local time from UTC in minutes, if known.
    pub utc_offset_min: Option<i16>,
    /// Host name.
    pub host: String,
    /// Who ran it.
    pub user: String,
    /// Absolute paths that were asked for.
    pub paths: Vec<Vec<u8>>,
    /// Free labels.
    pub tags: Vec<String>,
    /// Top node of the root directory.
    pub root: ChunkId,
    /// How it was made.
    pub kind: SnapshotKind,
    /// Snapshot it was built on.
    pub parent: Option<SnapshotId>,
    /// Newest full snapshot below it; itself counts for a full one, which has none here.
    pub base: Option<SnapshotId>,
    /// Program and version that made it.
    pub program: String,
    /// Client's clock when the scan began; files changed within two seconds of the scan are read again next time.
    pub scan_start_ms: u64,
    /// Client's clock when the scan ended.
    pub scan_end_ms: u64,
    /// Counts.
    pub stats: SnapshotStats,
    /// Paths that could not be read, as many as fit.
    pub unreadable: Vec<UnreadablePath>,
}

impl SnapshotInfo {
    /// Adds an unreadable path if there is room; it is counted either way. `room` is what this has used so far.
    pub fn note_unreadable(list: &mut Vec<UnreadablePath>, room: &mut usize, path: &[u8], why: &str) {
        let why: String = why.chars().take(UNREADABLE_WHY_MAX / 4).collect();
        let bytes = path.len() + why.len() + 8;
        if *room + bytes <= UNREADABLE_BYTES_MAX {
            *room += bytes;
            list.push(UnreadablePath { path: path.to_vec(), why });
        }
    }

    /// Seals it for the record of snapshot `id`. An error if it is too large, which takes absurdly many paths or tags.
    pub fn seal(&self, keys: &RepoKeys, id: &SnapshotId, entropy: &dyn Entropy) -> Result<Vec<u8>> {
        let mut plain = vec![SNAPSHOT_VERSION];
        plain.extend(postcard::to_stdvec(self).expect("plain data always encodes"));
        let sealed = seal_blob(keys, entropy, &purpose(id), &plain);
        if sealed.len() > SNAPSHOT_SEALED_BYTES_MAX {
            return Err(Error::Invalid(
                "too many paths and tags for one snapshot; back up fewer at once".into(),
            ));
        }
        Ok(sealed)
    }

    /// Opens the description in the record of snapshot `id`.
    pub fn open(keys: &RepoKeys, id: &SnapshotId, sealed: &[u8]) -> Result<Self> {
        let corrupt = |why: &str| Error::corrupt(format!("description of snapshot {}", id.short()), why);
        if sealed.len() > SNAPSHOT_SEALED_BYTES_MAX {
            return Err(corrupt("it is too long"));
        }
        let plain = open_blob(keys, &purpose(id), sealed);
        let plain = plain.map_err(|broken| broken.of(format!("description of snapshot {}", id.short())))?;
        match plain.split_first() {
            Some((&SNAPSHOT_VERSION, rest)) => {
                postcard::from_bytes(rest).map_err(|_| corrupt("it does not decode"))
            }
            _ => Err(corrupt("its version is unknown; a newer program wrote it")),
        }
    }
}

fn purpose(id: &SnapshotId) -> Vec<u8> {
    [b"snapshot".as_slice(), id.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use farshore_core::host::real::OsEntropy;
    use farshore_core::id::RepoId;

    fn info() -> SnapshotInfo {
        SnapshotInfo {
            time_ms: 1,
            utc_offset_min: Some(-90),
            host: "here".into(),
            user: "me".into(),
            paths: vec![b"/a\xff".to_vec()],
            tags: vec!["t".into()],
            root: ChunkId([1; 32]),
            kind: SnapshotKind::Incremental,
            parent: Some(SnapshotId([2; 32])),
            base: None,
            program: "p".into(),
            scan_start_ms: 2,
            scan_end_ms: 3,
            stats: SnapshotStats { files_new: 4, ..SnapshotStats::default() },
            unreadable: vec![UnreadablePath { path: b"/b".to_vec(), why: "no".into() }],
        }
    }

    #[test]
    fn opens_again_for_its_own_snapshot_only_and_refuses_every_flipped_byte() {
        let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
        let (id, other) = (SnapshotId([3; 32]), SnapshotId([4; 32]));
        let sealed = info().seal(&keys, &id, &OsEntropy).unwrap();
        assert_eq!(SnapshotInfo::open(&keys, &id, &sealed).unwrap(), info());
        assert!(SnapshotInfo::open(&keys, &other, &sealed).is_err());
        for at in 0..sealed.len() {
            let mut bad = sealed.clone();
            bad[at] ^= 4;
            assert!(SnapshotInfo::open(&keys, &id, &bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_million_unreadable_paths_still_fit_a_record() {
        let (mut info, mut room) = (info(), 0);
        for n in 0..100_000 {
            let path = format!("/a/fairly/long/path/{n}");
            let why = "x".repeat(1_000);
            SnapshotInfo::note_unreadable(&mut info.unreadable, &mut room, path.as_bytes(), &why);
        }
        assert!(info.unreadable.len() > 1_000);
        let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
        info.seal(&keys, &SnapshotId([0; 32]), &OsEntropy).unwrap();
    }
}
