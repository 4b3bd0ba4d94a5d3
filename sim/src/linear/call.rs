//! What clients ask of the catalogue and what they can see of the answer, as data: recorded, replayed, checked, printed.

use crate::net::Label;
use crate::plan::ClientCall;
use farshore_client::api::{CatalogueApi, Located, PackPage, SnapshotPage};
use farshore_client::{Error, Result};
use farshore_core::catalogue::command::PackCommitted;
use farshore_core::catalogue::{PackCommit, RepoChange, RepoRecord, SnapshotRecord};
use farshore_core::id::{ChunkId, Ordinal, PackId, PackNo, RepoId, SessionId, SnapshotId};
use farshore_core::topology::Name;
use std::fmt;
use std::sync::Arc;

/// A call that took longer may have needed a second attempt. Leaders change more slowly than this, so a first attempt
/// that was given up sooner can hardly be under way for long.
pub const SLOW_US: u64 = 500_000;
/// One that took longer may have been carried out by a first attempt whose answer was lost: a connection that is reset just
/// after the deed is made anew within two round trips.
pub const AGAIN_US: u64 = 100_000;

/// A call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    CreateRepository { repo: Arc<RepoRecord> },
    GetRepository { name: Name },
    OpenSession { session: SessionId, repo: RepoId, seen: u64 },
    RenewSession { session: SessionId },
    CloseSession { session: SessionId },
    Lookup { session: SessionId, repo: RepoId, ids: Arc<[ChunkId]> },
    CommitPacks { session: SessionId, packs: Arc<[PackCommit]> },
    CommitSnapshot { session: SessionId, snapshot: Arc<SnapshotRecord>, replaces: Option<SnapshotId> },
    Change { repo: RepoId, change: Arc<RepoChange> },
    ListSnapshots { repo: RepoId, after: Option<SnapshotId>, trash: bool },
    Locate { repo: RepoId, ids: Arc<[ChunkId]> },
    ListPacks { repo: RepoId, from: PackNo },
}

impl Call {
    /// Its kind, if it is one at which a client can be held up.
    pub fn kind(&self) -> Option<ClientCall> {
        match self {
            Call::Lookup { .. } => Some(ClientCall::Lookup),
            Call::CommitPacks { .. } => Some(ClientCall::CommitPacks),
            Call::CommitSnapshot { .. } => Some(ClientCall::CommitSnapshot),
            Call::CloseSession { .. } => Some(ClientCall::CloseSession),
            Call::RenewSession { .. } => Some(ClientCall::RenewSession),
            _ => None,
        }
    }
}

/// What a client learns. An error that leaves open whether the call took effect is no answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done.
    Done,
    /// The repository.
    Repository(Arc<RepoRecord>),
    /// The session is open since this log index.
    Opened(u64),
    /// One for each chunk asked for.
    Ordinals(Vec<Option<Ordinal>>),
    /// One for each pack sent.
    PacksCommitted(Vec<PackCommitted>),
    /// Catalogue time of the commit.
    SnapshotCommitted(u64),
    /// So many snapshots were concerned.
    Changed(u32),
    /// A lock or what is there forbids it.
    Refused,
    /// A page.
    Snapshots(SnapshotPage),
    /// Where chunks lie.
    Located(Located),
    /// A page.
    Packs(PackPage),
    /// There is no repository of this name.
    RepositoryMissing,
    /// Name or id is taken by another repository.
    RepositoryExists,
    /// The session is not open.
    SessionEnded,
    /// Too few nodes hold shards.
    BelowFloor,
    /// The snapshot needs chunks that are not there; the list may be cut short.
    ChunksGone(Vec<Ordinal>),
}

impl Answer {
    /// What a client has seen, if it knows now what became of its call.
    pub fn of<T>(result: &Result<T>, seen: impl FnOnce(&T) -> Answer) -> Option<Answer> {
        match result {
            Ok(value) => Some(seen(value)),
            Err(Error::RepositoryMissing(_)) => Some(Answer::RepositoryMissing),
            Err(Error::RepositoryExists(_)) => Some(Answer::RepositoryExists),
            Err(Error::SessionEnded(_)) => Some(Answer::SessionEnded),
            Err(Error::BelowFloor(_)) => Some(Answer::BelowFloor),
            Err(Error::ChunksGone(gone)) => Some(Answer::ChunksGone(gone.clone())),
            Err(Error::Refused(_)) => Some(Answer::Refused),
            Err(_) => None,
        }
    }

    /// The same for a change of a repository: what is not there is refused as invalid.
    pub fn of_change(result: &Result<u32>) -> Option<Answer> {
        match result {
            Err(Error::Invalid(_)) => Some(Answer::Refused),
            other => Answer::of(other, |count| Answer::Changed(*count)),
        }
    }

    /// Whether the call was refused.
    pub fn is_refusal(&self) -> bool {
        use Answer::*;
        matches!(
            self,
            RepositoryMissing | RepositoryExists | SessionEnded | BelowFloor | ChunksGone(_) | Refused
        )
    }
}

impl Call {
    /// Whether it may change the catalogue. Renewing does not: leases are kept elsewhere.
    pub fn changes(&self) -> bool {
        use Call::*;
        matches!(
            self,
            CreateRepository { .. }
                | OpenSession { .. }
                | CloseSession { .. }
                | CommitPacks { .. }
                | CommitSnapshot { .. }
                | Change { .. }
        )
    }

    /// Whether it says how packs are coded from now on. Sent again a minute later it is another change, and would undo one
    /// that came in between.
    pub fn sets_policy(&self) -> bool {
        matches!(self, Call::Change { change, .. } if matches!(**change, RepoChange::SetPolicy { .. }))
    }

    /// The session it works under.
    pub fn session(&self) -> Option<SessionId> {
        use Call::*;
        match self {
            OpenSession { session, .. }
            | RenewSession { session }
            | CloseSession { session }
            | Lookup { session, .. }
            | CommitPacks { session, .. }
            | CommitSnapshot { session, .. } => Some(*session),
            CreateRepository { .. }
            | GetRepository { .. }
            | Change { .. }
            | ListSnapshots { .. }
            | Locate { .. }
            | ListPacks { .. } => None,
        }
    }

    /// The repository it names.
    pub fn repo(&self) -> Option<RepoId> {
        use Call::*;
        match self {
            CreateRepository { repo } => Some(repo.id),
            CommitSnapshot { snapshot, .. } => Some(snapshot.repo),
            OpenSession { repo, .. }
            | Lookup { repo, .. }
            | Change { repo, .. }
            | ListSnapshots { repo, .. }
            | Locate { repo, .. }
            | ListPacks { repo, .. } => Some(*repo),
            GetRepository { .. } | RenewSession { .. } | CloseSession { .. } | CommitPacks { .. } => None,
        }
    }

    /// The repository's name it names.
    pub fn name(&self) -> Option<&Name> {
        match self {
            Call::CreateRepository { repo } => Some(&repo.name),
            Call::GetRepository { name } => Some(name),
            _ => None,
        }
    }

    /// How many ids are in it, for the bound on a history.
    pub fn weight(&self) -> usize {
        match self {
            Call::Lookup { ids, .. } | Call::Locate { ids, .. } => ids.len(),
            Call::CommitPacks { packs, .. } => packs.iter().map(|pack| pack.chunks.len()).sum(),
            _ => 1,
        }
    }

    /// Sends a call that changes something. A call that does not has nothing to repeat.
    pub async fn send(&self, api: &dyn CatalogueApi) -> Option<Answer> {
        match self {
            Call::CreateRepository { repo } => {
                let made = api.create_repository(repo.as_ref().clone()).await;
                Answer::of(&made, |repo| Answer::Repository(Arc::new(repo.clone())))
            }
            Call::OpenSession { session, repo, seen } => {
                Answer::of(&api.open_session(*session, *repo, *seen).await, |open| {
                    Answer::Opened(open.opened)
                })
            }
            Call::CloseSession { session } => {
                Answer::of(&api.close_session(*session).await, |()| Answer::Done)
            }
            Call::CommitPacks { session, packs } => {
                let done = api.commit_packs(*session, packs.to_vec()).await;
                Answer::of(&done, |packs| Answer::PacksCommitted(packs.clone()))
            }
            Call::CommitSnapshot { session, snapshot, replaces } => {
                let done = api.commit_snapshot(*session, snapshot.as_ref().clone(), *replaces).await;
                Answer::of(&done, |done| Answer::SnapshotCommitted(done.committed_ms))
            }
            Call::Change { repo, change } => {
                Answer::of_change(&api.change_repository(*repo, change.as_ref().clone()).await)
            }
            _ => None,
        }
    }
}

/// A call as it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Op {
    /// Who called.
    pub client: Label,
    /// When it began and when the answer came, in virtual microseconds.
    pub at_us: (u64, Option<u64>),
    /// What was asked.
    pub call: Call,
    /// What came back.
    pub answer: Option<Answer>,
    /// Not the client's own doing.
    pub origin: Origin,
}

/// Why a call was made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Origin {
    /// The client wanted it.
    Client,
    /// The network sent it twice.
    Duplicate,
    /// The network sent it again, later.
    Replay,
    /// An earlier attempt of the same call may still be under way.
    Echo,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |us: u64| us as f64 / 1_000.0;
        let (began, ended) = self.at_us;
        write!(f, "p{} {:.3}..", self.client, ms(began))?;
        match ended {
            Some(ended) => write!(f, "{:.3} ms ", ms(ended))?,
            None => write!(f, "? ms ")?,
        }
        match self.origin {
            Origin::Client => {}
            Origin::Duplicate => write!(f, "(duplicate) ")?,
            Origin::Replay => write!(f, "(replay) ")?,
            Origin::Echo => write!(f, "(echo) ")?,
        }
        write!(f, "{}", self.call)?;
        match &self.answer {
            Some(answer) => write!(f, " -> {answer}"),
            None => write!(f, " -> ?"),
        }
    }
}

/// Most items of a list that are printed.
const PRINTED_MAX: usize = 6;

/// The first items of a list.
fn some<T: fmt::Display>(items: impl ExactSizeIterator<Item = T>) -> String {
    let len = items.len();
    let mut text: Vec<String> = items.take(PRINTED_MAX).map(|item| item.to_string()).collect();
    if len > PRINTED_MAX {
        text.push(format!(".. {len} in all"));
    }
    format!("[{}]", text.join(" "))
}

fn pack_ids(packs: &[PackCommit]) -> String {
    some(packs.iter().map(|pack| format!("{}/{}", pack.id.short(), pack.chunks.len())))
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Call::CreateRepository { repo } => write!(f, "create {} as {:?}", repo.name, repo.id),
            Call::GetRepository { name } => write!(f, "get {name}"),
            Call::OpenSession { session, repo, .. } => write!(f, "open {session:?} in {repo:?}"),
            Call::RenewSession { session } => write!(f, "renew {session:?}"),
            Call::CloseSession { session } => write!(f, "close {session:?}"),
            Call::Lookup { session, ids, .. } => {
                write!(f, "lookup in {session:?} {}", some(ids.iter().map(ChunkId::short)))
            }
            Call::CommitPacks { session, packs } => write!(f, "commit in {session:?} {}", pack_ids(packs)),
            Call::CommitSnapshot { session, snapshot, replaces } => {
                write!(f, "commit in {session:?} snapshot {:?}", snapshot.id)?;
                replaces.map_or(Ok(()), |id| write!(f, " for {id:?}"))
            }
            Call::Change { repo, change } => write!(f, "in {repo:?} {change:?}"),
            Call::ListSnapshots { repo, after, trash } => {
                let what = if *trash { "trash" } else { "snapshots" };
                write!(f, "{what} of {repo:?} after {after:?}")
            }
            Call::Locate { repo, ids } => {
                write!(f, "locate in {repo:?} {}", some(ids.iter().map(ChunkId::short)))
            }
            Call::ListPacks { repo, from } => write!(f, "packs of {repo:?} from {}", from.0),
        }
    }
}

fn optional(ordinal: Option<Ordinal>) -> String {
    ordinal.map_or("-".into(), |ordinal| ordinal.0.to_string())
}

fn no_and_id(no: PackNo, id: &PackId) -> String {
    format!("{}={}", no.0, id.short())
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Answer::Done => write!(f, "done"),
            Answer::Repository(repo) => write!(f, "{} is {:?}", repo.name, repo.id),
            Answer::Opened(index) => write!(f, "open since {index}"),
            Answer::Ordinals(found) => write!(f, "{}", some(found.iter().map(|o| optional(*o)))),
            Answer::PacksCommitted(packs) => {
                write!(f, "{}", some(packs.iter().map(|pack| no_and_id(pack.no, &pack.id))))
            }
            Answer::SnapshotCommitted(at) => write!(f, "committed at {at}"),
            Answer::Changed(count) => write!(f, "changed {count}"),
            Answer::Refused => write!(f, "refused"),
            Answer::Snapshots(page) => {
                let ids = some(page.snapshots.iter().map(|s| format!("{:?}@{}", s.id, s.committed_ms)));
                write!(f, "{ids} more: {}", page.more)
            }
            Answer::Located(found) => {
                let places = found.places.iter().map(|p| optional(p.map(|p| p.ordinal)));
                let packs = found.packs.values().map(|p| no_and_id(p.no, &p.id));
                write!(f, "{} in {}", some(places), some(packs.collect::<Vec<_>>().into_iter()))
            }
            Answer::Packs(page) => {
                let row = |p: &farshore_core::catalogue::PackRecord| {
                    format!("{}@{}", no_and_id(p.no, &p.id), p.stripe.generation)
                };
                write!(f, "{} then {:?}", some(page.packs.iter().map(row)), page.next)
            }
            Answer::RepositoryMissing => write!(f, "refused: no such repository"),
            Answer::RepositoryExists => write!(f, "refused: taken"),
            Answer::SessionEnded => write!(f, "refused: session ended"),
            Answer::BelowFloor => write!(f, "refused: below the floor"),
            Answer::ChunksGone(gone) => write!(f, "refused: gone {}", some(gone.iter().map(|o| o.0))),
        }
    }
}
