//! Writes one window: what comes in is put where the plan wants it; a file gets its name only when all of it is there.
//! A problem with one file costs that file and is reported; the restore goes on.

use super::Summary;
use super::plan::{After, Before, FileEnd, PlannedFile};
use super::prune::Prune;
use super::reuse::{Overwrite, Prepared, Ready, Reuse};
use crate::fetch::Reading;
use crate::files::target::{Kept, WholeFile};
use crate::files::{FileTime, RelPath, Standing, Target, TargetFile};
use crate::progress::{Event, Progress};
use bytes::Bytes;
use farshore_core::id::ChunkId;
use farshore_core::limits::SMALL_FILES_BATCH;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

/// Batches of small files written at a time, one a processor up to this many.
const BATCHES_MAX: usize = 4;

/// Writes windows into a target, one after another.
pub struct Writer<'a> {
    target: &'a dyn Target,
    progress: &'a dyn Progress,
    /// The large file that the window before left unfinished.
    carried: Carried,
    /// Files with several names that could not be restored: their further names must not be linked to whatever else
    /// stands there. Each was reported.
    failed: BTreeSet<RelPath>,
    /// What has been done so far.
    pub summary: Summary,
}

enum Carried {
    /// The window was full before the first chunk of the file, or there is no such file.
    Nothing,
    Open(Box<dyn TargetFile>),
    /// And reported.
    Failed,
    /// It was there already.
    Kept,
}

/// A file of the window at work.
struct Slot {
    file: PlannedFile,
    missing: usize,
    state: State,
}

enum State {
    /// Put together in memory.
    Small(Vec<(u64, Bytes)>),
    /// Written piece by piece; opened with the first piece.
    Large(Option<Box<dyn TargetFile>>),
    /// Nothing more to do: done, or failed and reported.
    Over,
}

/// Where one use of a chunk goes.
#[derive(Clone, Copy)]
struct Use {
    slot: usize,
    offset: u64,
    len: u32,
}

impl<'a> Writer<'a> {
    /// A writer that has done nothing yet.
    pub fn new(target: &'a dyn Target, progress: &'a dyn Progress) -> Self {
        Writer {
            target,
            progress,
            carried: Carried::Nothing,
            failed: BTreeSet::new(),
            summary: Summary::default(),
        }
    }

    /// Notes a path that could not be restored.
    pub fn problem(&mut self, path: &RelPath, why: &str) {
        self.summary.problems += 1;
        self.progress.event(Event::Problem { path: path.as_bytes(), why });
    }

    /// What is left to do for these files, once what is there already is left out.
    pub async fn prepare(&mut self, files: Vec<PlannedFile>, reuse: &Reuse<'_>) -> Vec<Prepared> {
        let mut prepared = Vec::with_capacity(files.len());
        let paths: Vec<RelPath> = files.iter().map(|file| file.path.clone()).collect();
        let standing = self.target.look(&paths).await;
        for (file, standing) in files.into_iter().zip(standing) {
            let mut open = None;
            if file.continues {
                match std::mem::replace(&mut self.carried, Carried::Nothing) {
                    Carried::Open(begun) => open = Some(begun),
                    Carried::Nothing => {}
                    over @ (Carried::Failed | Carried::Kept) => {
                        if file.end == FileEnd::GoesOn {
                            self.carried = over;
                        }
                        continue;
                    }
                }
            }
            // What cannot be looked at is written, and fails then if it must.
            match reuse.ready(file, standing.ok().flatten(), open).await {
                Ready::Write(file) => prepared.push(file),
                Ready::Right(file) => self.right(file, reuse.dry_run).await,
                Ready::Stays(file) => self.stays(&file),
            }
        }
        prepared
    }

    async fn right(&mut self, file: PlannedFile, dry_run: bool) {
        self.stays(&file);
        if !dry_run && file.end == FileEnd::Done {
            let set = self.target.set_file_meta(&file.path, &file.meta).await;
            self.kept(&file.path, 0, Counted::Nothing, "set attributes", set);
        }
    }

    fn stays(&mut self, file: &PlannedFile) {
        match file.end {
            FileEnd::GoesOn => self.carried = Carried::Kept,
            FileEnd::Done | FileEnd::Broken => {}
        }
        self.summary.kept += 1;
        self.summary.bytes_kept += file.size;
    }

    /// Whether something else than a file stays where it stands.
    async fn leaves(&self, overwrite: Overwrite, path: &RelPath, mtime: FileTime) -> bool {
        if matches!(overwrite, Overwrite::Always | Overwrite::IfChanged) {
            return false;
        }
        let standing: Option<Standing> =
            self.target.look(std::slice::from_ref(path)).await.pop().and_then(|found| found.ok().flatten());
        standing.is_some_and(|standing| overwrite.leaves(&standing, mtime))
    }

    /// Something was taken away.
    pub fn removed(&mut self, path: &RelPath) {
        self.summary.removed += 1;
        self.progress.event(Event::Removed { path: path.as_bytes() });
    }

    /// Directories, links and special files.
    pub async fn before(&mut self, steps: Vec<Before>, overwrite: Overwrite) {
        for step in steps {
            match step {
                Before::Symlink(path, _, meta) | Before::Special(path, _, meta)
                    if self.leaves(overwrite, &path, meta.mtime).await =>
                {
                    self.summary.kept += 1;
                }
                Before::Dir(path) => match self.target.make_dir(&path).await {
                    Ok(()) => self.done(&path, 0, Counted::Dir),
                    Err(error) => self.problem(&path, &format!("make directory: {error}")),
                },
                Before::Symlink(path, to, meta) => {
                    let made = self.target.symlink(&path, &to, &meta).await;
                    self.kept(&path, 0, Counted::Other, "make link", made);
                }
                Before::Special(path, kind, meta) => {
                    let made = self.target.special(&path, &kind, &meta).await;
                    self.kept(&path, 0, Counted::Other, "make special file", made);
                }
            }
        }
    }

    /// Further names, then attributes of directories.
    pub async fn after(&mut self, steps: Vec<After>, overwrite: Overwrite, prune: Option<&Prune<'_>>) {
        for step in steps {
            match step {
                After::Prune(dir, node) => {
                    if let Some(prune) = prune {
                        prune.dir(&dir, node, self).await;
                    }
                }
                // Its time is that of the first name, which was looked at.
                After::Link(_, path, _)
                    if overwrite == Overwrite::Never
                        && self.leaves(overwrite, &path, FileTime::default()).await =>
                {
                    self.summary.kept += 1;
                }
                After::Link(first, path, _) if self.failed.contains(&first) => {
                    self.problem(&path, &format!("link to {first}: that could not be restored"));
                }
                After::Link(first, path, bytes) => match self.target.hard_link(&first, &path).await {
                    Ok(()) => self.done(&path, bytes, Counted::Link),
                    Err(error) => self.problem(&path, &format!("link to {first}: {error}")),
                },
                After::DirMeta(path, meta) => {
                    let set = self.target.set_dir_meta(&path, &meta).await;
                    self.kept(&path, 0, Counted::Nothing, "set attributes", set);
                }
            }
        }
    }

    /// Files, from the chunks that come in.
    pub async fn files(&mut self, files: Vec<Prepared>, reading: &mut Reading) {
        let mut slots: Vec<Slot> = files.into_iter().map(slot).collect();
        let mut uses = index(&slots);
        let mut ready = Vec::new();
        for slot in slots.iter_mut().filter(|slot| slot.missing == 0) {
            self.complete(slot, &mut ready).await;
        }
        while let Some(fetched) = reading.next().await {
            let mut large = BTreeMap::<usize, Vec<(u64, Bytes)>>::new();
            for (id, result) in fetched {
                for place in uses.remove(&id).unwrap_or_default() {
                    match &result {
                        Ok(bytes) if bytes.len() == place.len as usize => {
                            take(&mut slots[place.slot], place, bytes.clone(), &mut large);
                        }
                        Ok(_) => self
                            .fail(&mut slots[place.slot], "a chunk has another length than its entry says"),
                        Err(error) => self.fail(&mut slots[place.slot], &error.to_string()),
                    }
                    if slots[place.slot].missing == 0 && matches!(slots[place.slot].state, State::Small(_)) {
                        self.complete(&mut slots[place.slot], &mut ready).await;
                    }
                }
            }
            for (slot, pieces) in large {
                self.write_large(&mut slots[slot], pieces, &mut ready).await;
            }
            if ready.len() >= SMALL_FILES_BATCH * BATCHES_MAX {
                self.write_small(&mut ready).await;
            }
        }
        for place in uses.into_values().flatten() {
            self.fail(&mut slots[place.slot], "a chunk is unknown to the catalogue");
        }
        self.write_small(&mut ready).await;
        self.carry(slots);
    }

    /// Writes pieces of a large file; finishes it with its last.
    async fn write_large(&mut self, slot: &mut Slot, pieces: Vec<(u64, Bytes)>, ready: &mut Vec<WholeFile>) {
        let State::Large(open) = &mut slot.state else { return };
        let count = pieces.len();
        let bytes = pieces.iter().map(|(_, b)| b.len() as u64).sum();
        let written = match open {
            Some(file) => file.write(pieces).await,
            None => match self.target.begin_file(&slot.file.path, slot.file.size).await {
                Ok(file) => open.insert(file).write(pieces).await,
                Err(error) => Err(error),
            },
        };
        match written {
            Ok(()) => {
                self.progress.event(Event::Bytes { bytes });
                slot.missing -= count;
                if slot.missing == 0 {
                    self.complete(slot, ready).await;
                }
            }
            Err(error) => self.fail(slot, &format!("write: {error}")),
        }
    }

    /// All chunks of this window are there.
    async fn complete(&mut self, slot: &mut Slot, ready: &mut Vec<WholeFile>) {
        match slot.file.end {
            FileEnd::GoesOn => return,
            // Reported by the planner.
            FileEnd::Broken => {
                self.note_failed(&slot.file.path, slot.file.meta.nlink);
                return slot.state = State::Over;
            }
            FileEnd::Done => {}
        }
        let PlannedFile { path, size, meta, .. } = slot.file.clone();
        match std::mem::replace(&mut slot.state, State::Over) {
            State::Small(pieces) => ready.push(WholeFile { path, size, pieces, meta }),
            State::Large(Some(open)) => {
                let finished = open.finish(&meta).await;
                if finished.is_err() {
                    self.note_failed(&path, meta.nlink);
                }
                self.kept(&path, size, Counted::File, "finish", finished);
            }
            // A file above the limit for small ones has chunks, so it was opened by the first of them.
            State::Large(None) => self.problem(&path, "it has no chunks"),
            State::Over => {}
        }
    }

    /// Writes the small files that are complete.
    async fn write_small(&mut self, ready: &mut Vec<WholeFile>) {
        let named: Vec<_> =
            ready.iter().map(|file| (file.path.clone(), file.size, file.meta.nlink)).collect();
        let mut batches = Vec::new();
        while !ready.is_empty() {
            let rest = ready.split_off(ready.len().min(SMALL_FILES_BATCH));
            batches.push(self.target.write_files(std::mem::replace(ready, rest)));
        }
        let results = futures_util::future::join_all(batches).await;
        for ((path, size, nlink), result) in named.into_iter().zip(results.into_iter().flatten()) {
            match result {
                Ok(_) => self.progress.event(Event::Bytes { bytes: size }),
                Err(_) => self.note_failed(&path, nlink),
            }
            self.kept(&path, size, Counted::File, "write", result);
        }
    }

    /// Keeps the file that goes on in the next window; it is the last one if there is any.
    fn carry(&mut self, mut slots: Vec<Slot>) {
        let Some(last) = slots.pop() else { return };
        if last.file.end == FileEnd::GoesOn {
            self.carried = match last.state {
                State::Large(Some(open)) => Carried::Open(open),
                State::Large(None) => Carried::Nothing,
                State::Small(_) | State::Over => Carried::Failed,
            };
        }
    }

    fn fail(&mut self, slot: &mut Slot, why: &str) {
        if !matches!(slot.state, State::Over) {
            slot.state = State::Over;
            self.note_failed(&slot.file.path, slot.file.meta.nlink);
            self.problem(&slot.file.path.clone(), why);
        }
    }

    fn note_failed(&mut self, path: &RelPath, nlink: u64) {
        if nlink > 1 {
            self.failed.insert(path.clone());
        }
    }

    fn kept(&mut self, path: &RelPath, bytes: u64, what: Counted, verb: &str, result: io::Result<Kept>) {
        match result {
            Ok(kept) => {
                for lost in kept.lost {
                    self.summary.attributes_lost += 1;
                    self.progress.event(Event::Notice { text: &format!("{path}: {lost}") });
                }
                self.done(path, bytes, what);
            }
            Err(error) => self.problem(path, &format!("{verb}: {error}")),
        }
    }

    fn done(&mut self, path: &RelPath, bytes: u64, what: Counted) {
        match what {
            Counted::File | Counted::Link => {
                self.summary.files += 1;
                self.summary.bytes += bytes;
            }
            Counted::Dir => self.summary.dirs += 1,
            Counted::Other => self.summary.others += 1,
            Counted::Nothing => return,
        }
        self.progress.event(Event::Restored { path: path.as_bytes(), bytes });
    }
}

fn slot(prepared: Prepared) -> Slot {
    let Prepared { file, pieces, open } = prepared;
    let state = if file.small { State::Small(pieces) } else { State::Large(open) };
    Slot { missing: file.uses.len(), file, state }
}

/// What a finished step counts as.
#[derive(Clone, Copy)]
enum Counted {
    File,
    Link,
    Dir,
    Other,
    Nothing,
}

fn index(slots: &[Slot]) -> BTreeMap<ChunkId, Vec<Use>> {
    let mut uses = BTreeMap::<ChunkId, Vec<Use>>::new();
    for (slot, Slot { file, .. }) in slots.iter().enumerate() {
        for placed in &file.uses {
            uses.entry(placed.id).or_default().push(Use { slot, offset: placed.offset, len: placed.len });
        }
    }
    uses
}

/// Puts a piece where it belongs; pieces of large files are gathered for one write per file.
fn take(slot: &mut Slot, place: Use, bytes: Bytes, large: &mut BTreeMap<usize, Vec<(u64, Bytes)>>) {
    match &mut slot.state {
        State::Small(pieces) => {
            pieces.push((place.offset, bytes));
            slot.missing -= 1;
        }
        State::Large(_) => large.entry(place.slot).or_default().push((place.offset, bytes)),
        State::Over => {}
    }
}
