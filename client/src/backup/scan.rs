//! Walking the source: depth first, names ascending, one page of each open directory in memory, side by side with the
//! parent's tree. Decides what looks the same; reads no contents.

use super::base::{Base, Trust, is_same, kept_entry};
use super::report::Report;
use super::rules::{Inherited, Rules};
use crate::error::{Error, Result};
use crate::files::source::join;
use crate::files::{FileKind, Listed, Listing, Meta, Source, Stat};
use crate::format::tree::name_is_sound;
use crate::format::{ChunkSource, DirIter, Entry, Node};
use crate::progress::Event;
use farshore_core::id::ChunkId;
use std::collections::BTreeMap;
use std::collections::btree_map;
use std::io;
use std::sync::Arc;
use std::vec::IntoIter;
use tokio::sync::mpsc::Sender;

/// A file as the scan met it, in case it has to be read.
#[derive(Clone, Debug)]
pub struct Reread {
    /// Last component of its path.
    pub name: Vec<u8>,
    /// What it looked like.
    pub stat: Stat,
    /// The parent's entry of that name, if it has one.
    pub was: Option<Entry>,
}

/// What the scan hands on, in the order of the tree.
#[derive(Debug)]
pub enum Step {
    /// A directory begins.
    Enter {
        /// Its name; empty for the root.
        name: Vec<u8>,
        /// Its attributes.
        meta: Meta,
        /// What the parent had there.
        was: Option<Box<(Meta, ChunkId)>>,
    },
    /// The directory last begun ends.
    Leave,
    /// A link, pipe, socket or device.
    Other(Entry),
    /// A file that looks the same as in the parent.
    Same {
        /// Absolute path.
        path: Vec<u8>,
        /// The parent's contents under today's attributes.
        entry: Entry,
        /// What to read if a chunk of it is gone.
        reread: Box<Reread>,
    },
    /// A file whose contents are taken over.
    Kept {
        /// Absolute path.
        path: Vec<u8>,
        /// Its finished entry.
        entry: Entry,
    },
    /// A file to read.
    Read {
        /// Absolute path.
        path: Vec<u8>,
        /// What the scan saw.
        reread: Box<Reread>,
    },
}

/// The paths asked for, as a tree: what lies on the way to a target is a directory of which only that is taken.
#[derive(Default)]
struct Wanted {
    whole: bool,
    below: BTreeMap<Vec<u8>, Wanted>,
}

impl Wanted {
    fn of(paths: &[Vec<u8>]) -> Self {
        let mut root = Wanted::default();
        for path in paths {
            let mut at = &mut root;
            for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
                at = at.below.entry(part.to_vec()).or_default();
            }
            at.whole = true;
        }
        root
    }
}

/// The parent's directory beside the one being walked.
struct Beside {
    entries: DirIter,
    ahead: Option<Entry>,
}

impl Beside {
    /// The parent's entry of this name. Names must be asked in ascending order.
    async fn find(&mut self, name: &[u8]) -> Result<Option<Entry>> {
        loop {
            match &self.ahead {
                Some(entry) if entry.name.as_slice() > name => return Ok(None),
                Some(entry) if entry.name == name => return Ok(self.ahead.take()),
                _ => self.ahead = self.entries.next().await?,
            }
            if self.ahead.is_none() {
                return Ok(None);
            }
        }
    }
}

enum Names {
    /// On the way to targets.
    Wanted(btree_map::IntoIter<Vec<u8>, Wanted>),
    /// Inside a target.
    Listing(Box<dyn Listing>, IntoIter<Listed>),
}

struct Open {
    path: Vec<u8>,
    names: Names,
    beside: Option<Beside>,
    /// What holds for the entries of this directory.
    inherited: Inherited,
    /// The file system it lies in.
    dev: u64,
}

/// A directory about to be entered.
struct Entered {
    name: Vec<u8>,
    path: Vec<u8>,
    meta: Meta,
    /// The parent's directory of that path; without attributes for the root, which has no entry.
    was: Option<(Option<Meta>, ChunkId)>,
    /// What is wanted of it; `None` for everything.
    below: Option<Wanted>,
    /// What holds in the directory it lies in.
    outer: Inherited,
    /// Nothing in it is taken.
    empty: bool,
}

/// The stage.
pub struct Scan<'a> {
    /// The tree to walk.
    pub source: &'a dyn Source,
    /// Reads the parent's tree.
    pub chunks: Arc<dyn ChunkSource>,
    /// The parent.
    pub base: Option<&'a Base>,
    /// What a file's times and inode are taken to prove.
    pub trust: Trust,
    /// What is left out.
    pub rules: &'a Rules,
    /// Of images no time says whether they have changed.
    pub image: bool,
    /// Counts and problems.
    pub report: &'a Report,
    /// Where steps go.
    pub out: Sender<Step>,
}

impl Scan<'_> {
    /// Walks the given absolute paths. Ends early without an error if nobody takes the steps any more. An error only if
    /// none of the paths can be looked at.
    pub async fn run(self, paths: &[Vec<u8>]) -> Result<()> {
        let mut refused = None;
        let mut any = false;
        for path in paths {
            match self.source.stat(path).await {
                Ok(_) => any = true,
                Err(error) => refused = Some((path, error)),
            }
        }
        if let (false, Some((path, error))) = (any, refused) {
            return Err(Error::local(format!("look at {}", String::from_utf8_lossy(path)), error));
        }
        let mut open: Vec<Open> = Vec::new();
        self.enter_root(Wanted::of(paths), &mut open).await?;
        while let Some(top) = open.last_mut() {
            match self.next_name(top).await {
                Some((listed, below)) => self.visit(listed, below, &mut open).await?,
                None => {
                    open.pop();
                    self.send(Step::Leave).await;
                }
            }
        }
        self.report.event(Event::ScanDone);
        Ok(())
    }

    async fn send(&self, step: Step) {
        // Whoever stopped listening has an error to report, which ends this stage too.
        let _ = self.out.send(step).await;
    }

    async fn enter_root(&self, wanted: Wanted, open: &mut Vec<Open>) -> Result<()> {
        let meta = match self.source.stat(b"/").await {
            Ok(stat) => stat.meta,
            Err(error) => {
                self.report.unreadable(b"/", &error);
                Meta::default()
            }
        };
        let root = self.base.map(|base| base.info.root);
        let entered = Entered {
            name: Vec::new(),
            path: b"/".to_vec(),
            meta,
            was: root.map(|root| (None, root)),
            below: Some(wanted),
            outer: Inherited::default(),
            empty: false,
        };
        self.enter(entered, open).await;
        Ok(())
    }

    /// The next name of a directory. `below` is what is wanted under it, `None` for everything.
    async fn next_name(&self, open: &mut Open) -> Option<(Listed, Option<Wanted>)> {
        match &mut open.names {
            Names::Wanted(names) => {
                let (name, wanted) = names.next()?;
                let stat = self.source.stat(&join(&open.path, &name)).await;
                let below = if wanted.whole { None } else { Some(wanted) };
                Some((Listed { name, stat }, below))
            }
            Names::Listing(listing, page) => loop {
                if let Some(listed) = page.next() {
                    return Some((listed, None));
                }
                match listing.next().await {
                    Ok(next) if next.is_empty() => return None,
                    Ok(next) => *page = next.into_iter(),
                    Err(error) => {
                        self.report.unreadable(&open.path, &error);
                        return None;
                    }
                }
            },
        }
    }

    async fn visit(&self, listed: Listed, below: Option<Wanted>, open: &mut Vec<Open>) -> Result<()> {
        let Listed { name, stat } = listed;
        let top = open.last_mut().expect("the caller has just read a name from it");
        let path = join(&top.path, &name);
        // What lies on the way to a path that was asked for is not left out.
        let on_the_way = below.is_some();
        if !on_the_way && self.rules.exclude(&path) {
            return Ok(());
        }
        let stat = match stat {
            Ok(_) if !name_is_sound(&name) => Err(io::Error::other("its name cannot be stored")),
            Ok(stat) if below.is_some() && stat.kind != FileKind::Dir => {
                Err(io::Error::other("a path to back up leads through it, but it is not a directory"))
            }
            other => other,
        };
        let stat = match stat {
            Ok(stat) => stat,
            Err(error) => {
                self.report.unreadable(&path, &error);
                return Ok(());
            }
        };
        if !on_the_way && self.rules.leave_out(&path, &stat, &top.inherited) {
            return Ok(());
        }
        // A path that was asked for lies where it lies; what is below it must not lead elsewhere.
        let listed = matches!(top.names, Names::Listing(..));
        let elsewhere = listed && self.rules.one_file_system && stat.meta.dev != top.dev;
        if elsewhere && stat.kind != FileKind::Dir {
            return Ok(());
        }
        let was = self.was(top, &name).await;
        match stat.kind {
            FileKind::Dir => {
                let was = was.and_then(|e| match e.node {
                    Node::Dir { root } => Some((Some(e.meta), root)),
                    _ => None,
                });
                let outer = top.inherited.clone();
                let entered = Entered { name, path, meta: stat.meta, was, below, outer, empty: elsewhere };
                self.enter(entered, open).await;
            }
            FileKind::File { .. } => self.file(path, name, stat, was).await,
            _ => {
                self.report.found(&stat);
                self.send(Step::Other(other_entry(name, stat))).await;
            }
        }
        Ok(())
    }

    /// What the parent had under this name. A parent that cannot be read costs time, not the backup.
    async fn was(&self, top: &mut Open, name: &[u8]) -> Option<Entry> {
        match top.beside.as_mut()?.find(name).await {
            Ok(entry) => entry,
            Err(error) => {
                let text = format!(
                    "a directory of the parent snapshot cannot be read, so all its files are: {error}"
                );
                self.report.event(Event::Notice { text: &text });
                top.beside = None;
                None
            }
        }
    }

    async fn enter(&self, entered: Entered, open: &mut Vec<Open>) {
        let Entered { name, path, meta, was, below, outer, empty } = entered;
        let beside = was
            .as_ref()
            .map(|(_, root)| Beside { entries: DirIter::new(self.chunks.clone(), *root), ahead: None });
        let was = was.and_then(|(meta, root)| Some(Box::new((meta?, root))));
        let dev = meta.dev;
        self.send(Step::Enter { name, meta, was }).await;
        let (names, inherited) = match below {
            Some(wanted) if !wanted.whole => (Names::Wanted(wanted.below.into_iter()), outer),
            _ if empty => (Names::Wanted(BTreeMap::new().into_iter()), outer),
            _ => {
                let names = match self.names(&path).await {
                    Ok(names) => names,
                    Err(error) => {
                        self.report.unreadable(&path, &error);
                        return self.send(Step::Leave).await;
                    }
                };
                (names, self.inherit(&path, outer).await)
            }
        };
        open.push(Open { path, names, beside, inherited, dev });
    }

    /// The names of a directory of which everything is wanted that no marker leaves out.
    async fn names(&self, path: &[u8]) -> io::Result<Names> {
        if let Some(marker) = self.rules.marker(self.source, path).await {
            let marker = (marker, Wanted { whole: true, below: BTreeMap::new() });
            return Ok(Names::Wanted(BTreeMap::from([marker]).into_iter()));
        }
        Ok(Names::Listing(self.source.list(path).await?, Vec::new().into_iter()))
    }

    /// Rules that cannot be read leave nothing out.
    async fn inherit(&self, path: &[u8], outer: Inherited) -> Inherited {
        match self.rules.inherit(self.source, path, &outer).await {
            Ok(inherited) => inherited,
            Err(error) => {
                let text = format!("nothing is left out by it: {error}");
                self.report.event(Event::Notice { text: &text });
                outer
            }
        }
    }

    async fn file(&self, path: Vec<u8>, name: Vec<u8>, stat: Stat, was: Option<Entry>) {
        self.report.found(&stat);
        let same = !self.image
            && self.base.zip(was.as_ref()).zip(stat.fingerprint()).is_some_and(|((base, was), now)| {
                is_same(&now, was, (base.info.scan_start_ms, base.info.scan_end_ms), self.trust)
            });
        let reread = Box::new(Reread { name, stat, was });
        let step = match reread.was.clone() {
            Some(was) if same => Step::Same { path, entry: kept_entry(&reread, was), reread },
            _ => Step::Read { path, reread },
        };
        self.send(step).await;
    }
}

fn other_entry(name: Vec<u8>, stat: Stat) -> Entry {
    let node = match stat.kind {
        FileKind::Symlink { target } => Node::Symlink { target },
        FileKind::Fifo => Node::Fifo,
        FileKind::CharDev { rdev } => Node::CharDev { rdev },
        FileKind::BlockDev { rdev } => Node::BlockDev { rdev },
        FileKind::Socket | FileKind::File { .. } | FileKind::Dir => Node::Socket,
    };
    Entry { name, node, meta: stat.meta, inconsistent: false }
}
