//! What stands in the target already: left alone if the operator wants that, and read chunk by chunk otherwise, so that
//! only what is not right is fetched.

use super::plan::{FileEnd, PlannedFile};
use crate::fetch::ChunkReader;
use crate::files::target::{ReadAt, Standing};
use crate::files::{Target, TargetFile};
use crate::format::Placed;
use bytes::Bytes;
use farshore_core::catalogue::PackKind;
use farshore_core::host::compute;
use futures_util::StreamExt as _;
use std::sync::Arc;

/// Bytes that one job reads and hashes.
const JOB_BYTES: u64 = 4 << 20;
/// Jobs at a time.
const JOBS: usize = 4;

/// What becomes of a file that stands in the target already.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Overwrite {
    /// It is made what the snapshot says.
    #[default]
    Always,
    /// The same, but length and time of modification prove that it is right.
    IfChanged,
    /// The same, if the snapshot's was modified later.
    IfNewer,
    /// It stays.
    Never,
}

impl Overwrite {
    /// Whether what stands there stays, whatever the snapshot has there.
    pub fn leaves(self, standing: &Standing, mtime: crate::files::FileTime) -> bool {
        match self {
            Overwrite::Always | Overwrite::IfChanged => false,
            Overwrite::IfNewer => standing.mtime >= mtime,
            Overwrite::Never => true,
        }
    }
}

/// A file to be written, and what of it is there.
pub struct Prepared {
    /// The file; its uses are those that are missing.
    pub file: PlannedFile,
    /// Of a small file, what was taken over.
    pub pieces: Vec<(u64, Bytes)>,
    /// A large file under way.
    pub open: Option<Box<dyn TargetFile>>,
}

/// What is to be done about a file.
pub enum Ready {
    /// It is written.
    Write(Prepared),
    /// Its contents are right: its attributes are set.
    Right(PlannedFile),
    /// It stays as it is.
    Stays(PlannedFile),
}

/// Compares.
pub struct Reuse<'a> {
    /// Where things stand.
    pub target: &'a dyn Target,
    /// Names chunks.
    pub reader: &'a Arc<ChunkReader>,
    /// What may be replaced.
    pub overwrite: Overwrite,
    /// Go on with files that an interrupted restore has begun.
    pub resume: bool,
    /// Look only.
    pub dry_run: bool,
}

impl Reuse<'_> {
    /// What to do about a file of which `standing` stands in its place; `open` if a window before this one has begun it.
    pub async fn ready(
        &self,
        file: PlannedFile,
        standing: Option<Standing>,
        open: Option<Box<dyn TargetFile>>,
    ) -> Ready {
        if let (Some(standing), false) = (&standing, file.continues) {
            let same = standing.file == Some(file.size) && standing.mtime == file.meta.mtime;
            if self.overwrite.leaves(standing, file.meta.mtime) {
                return Ready::Stays(file);
            }
            if self.overwrite == Overwrite::IfChanged && same {
                return Ready::Right(file);
            }
        }
        let mut ready = Prepared { file, pieces: Vec::new(), open };
        if standing.as_ref().is_some_and(|standing| standing.file.is_some_and(|size| size > 0)) {
            let whole = !ready.file.continues && ready.file.end == FileEnd::Done;
            let same = standing.and_then(|standing| standing.file) == Some(ready.file.size);
            if self.take_over(&mut ready, whole && same).await {
                return Ready::Right(ready.file);
            }
        }
        if self.resume && !ready.file.small && !self.dry_run {
            self.go_on(&mut ready).await;
        }
        Ready::Write(ready)
    }

    /// Takes over what is right of the file that stands there. Whether all of it is, if that is to be said.
    async fn take_over(&self, ready: &mut Prepared, may_be_right: bool) -> bool {
        // What cannot be read is fetched.
        let Ok(old) = self.target.open_file(&ready.file.path).await else { return false };
        let right = self.right(&old, &ready.file.uses, ready.file.small).await;
        if right.iter().all(Option::is_some) && may_be_right {
            return true;
        }
        if ready.file.small {
            let mut missing = Vec::new();
            for (used, bytes) in ready.file.uses.drain(..).zip(right) {
                match bytes {
                    Some(bytes) => ready.pieces.push((used.offset, bytes)),
                    None => missing.push(used),
                }
            }
            ready.file.uses = missing;
        } else if right.iter().any(Option::is_some) {
            self.copy(ready, &old, &right).await;
        }
        false
    }

    /// Copies pieces that were right into the new file. They are looked at once more on the way.
    async fn copy(&self, ready: &mut Prepared, old: &Arc<dyn ReadAt>, right: &[Option<Bytes>]) {
        if !self.dry_run && ready.open.is_none() {
            ready.open = self.target.begin_file(&ready.file.path, ready.file.size).await.ok();
        }
        let mut missing = Vec::new();
        for (used, right) in ready.file.uses.iter().zip(right) {
            let there = match (&mut ready.open, right) {
                (_, None) => false,
                (None, Some(_)) => self.dry_run,
                (Some(open), Some(_)) => {
                    let again = self.right(old, std::slice::from_ref(used), true).await;
                    match again.into_iter().flatten().next() {
                        Some(bytes) => open.write(vec![(used.offset, bytes)]).await.is_ok(),
                        None => false,
                    }
                }
            };
            if !there {
                missing.push(*used);
            }
        }
        ready.file.uses = missing;
    }

    /// Leaves out what an interrupted restore has written already.
    async fn go_on(&self, ready: &mut Prepared) {
        if ready.open.is_none() {
            ready.open = self.target.begun_file(&ready.file.path, ready.file.size).await.ok().flatten();
        }
        let Some(begun) = ready.open.as_ref().and_then(|open| open.read_back()) else { return };
        let right = self.right(&begun, &ready.file.uses, false).await;
        let mut right = right.iter();
        ready.file.uses.retain(|_| right.next().is_none_or(Option::is_none));
    }

    /// For each use its bytes if they are what they should be; empty ones unless they are `kept`.
    pub async fn right(&self, old: &Arc<dyn ReadAt>, uses: &[Placed], kept: bool) -> Vec<Option<Bytes>> {
        right(self.reader, old, uses, kept).await
    }
}

/// For each use its bytes as they stand in a file, if they are what they should be; empty ones unless they are `kept`.
pub async fn right(
    reader: &Arc<ChunkReader>,
    old: &Arc<dyn ReadAt>,
    uses: &[Placed],
    kept: bool,
) -> Vec<Option<Bytes>> {
    let mut jobs: Vec<Vec<Placed>> = Vec::new();
    let mut bytes = JOB_BYTES;
    for used in uses {
        if bytes >= JOB_BYTES {
            jobs.push(Vec::new());
            bytes = 0;
        }
        bytes += u64::from(used.len);
        if let Some(job) = jobs.last_mut() {
            job.push(*used);
        }
    }
    let look = |job: Vec<Placed>| {
        let (keys, old) = (reader.keys().clone(), old.clone());
        let look = move |used: &Placed| {
            let bytes = old.read_at(used.offset, used.len as usize).ok()?;
            let right = bytes.len() == used.len as usize && keys.chunk_id(PackKind::Data, &bytes) == used.id;
            right.then(|| if kept { Bytes::from(bytes) } else { Bytes::new() })
        };
        compute(reader.processors(), move || job.iter().map(look).collect::<Vec<_>>())
    };
    let looked: Vec<Vec<Option<Bytes>>> =
        futures_util::stream::iter(jobs).map(look).buffered(JOBS).collect().await;
    looked.into_iter().flatten().collect()
}
