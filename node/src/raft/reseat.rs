//! A new beginning for a stopped replica: it alone votes, all others learn, in a later era. The one way out when a
//! majority is lost for good, and the end of a rebuild from an export. Nothing here runs by itself.
//!
//! Everything the replica has becomes part of the catalogue, also entries that no majority had: they may have been
//! acknowledged, and nobody is left to say otherwise.

use super::era::{era_of, first_term};
use super::image::open_note;
use super::log::{LogStore, RaftStoreError};
use super::mark::{MARK_FILE, Mark, MarkError};
use super::types::{Entry, LogId, Payload, PayloadError, StoredMembership, Vote, open_message, seal_message};
use crate::catalogue::{Catalogue, CatalogueError, NoteKey};
use bytes::Bytes;
use farshore_core::catalogue::{Actor, Command, Proposal};
use farshore_core::host::{Disk, Kv, dir_of};
use farshore_core::id::NodeId;
use openraft::{BasicNode, CommittedLeaderId, EntryPayload, Membership};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// Version byte of an entry in an increment of an export.
const ENTRY_VERSION: u8 = 1;

/// An entry as an increment of an export carries it.
pub fn seal_entry(entry: &Entry) -> Bytes {
    seal_message(ENTRY_VERSION, entry)
}

/// Reads what [`seal_entry`] made.
pub fn open_entry(bytes: &[u8]) -> Result<Entry, PayloadError> {
    open_message(ENTRY_VERSION, bytes)
}

/// Why a replica cannot begin anew.
#[derive(Debug, thiserror::Error)]
pub enum ReseatError {
    /// Its log is damaged or short of what it promised: it is no foundation.
    #[error(transparent)]
    Log(#[from] RaftStoreError),
    /// Its catalogue is.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The new entries cannot be written.
    #[error(transparent)]
    Payload(#[from] PayloadError),
}

/// What a stopped replica holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Found {
    /// Its era.
    pub era: u32,
    /// Term of its last log entry; survivors are compared by this first.
    pub last_term: u64,
    /// Index of its last log entry, and by this second.
    pub last_index: u64,
    /// Last entry that is in its catalogue.
    pub applied: u64,
    /// Who votes, as far as it knows.
    pub voters: BTreeSet<NodeId>,
    /// Every replica it knows of and where it listens.
    pub members: BTreeMap<NodeId, String>,
    /// It has never taken part in anything.
    pub pristine: bool,
}

/// Looks at a stopped replica, after the same checks as at a start. Changes nothing.
pub async fn inspect(
    kv: Arc<dyn Kv>,
    disk: Arc<dyn Disk>,
    catalogue: &Catalogue,
) -> Result<Found, ReseatError> {
    // Opening a log that was never there would make its mark, and the mark is what tells a new node from one that has
    // lost its replica.
    let marked = has_mark(disk.as_ref()).await.map_err(RaftStoreError::Io)?;
    if !marked && LogStore::holds_nothing(kv.clone())? {
        return Ok(Found { applied: catalogue.applied(), pristine: true, ..Found::default() });
    }
    let log = LogStore::open(kv, disk).await?;
    let members = last_membership(&log, catalogue)?;
    let members = members.membership();
    let last = log.last();
    let promised = log.vote().map_or(0, |vote| vote.leader_id.term);
    let last_term = last.map_or(0, |id| id.leader_id.term);
    Ok(Found {
        era: era_of(promised.max(last_term)),
        last_term,
        last_index: last.map_or(0, |id| id.index),
        applied: catalogue.applied(),
        voters: members.voter_ids().map(NodeId).collect(),
        members: members.nodes().map(|(id, node)| (NodeId(*id), node.addr.clone())).collect(),
        pristine: log.is_pristine() && last.is_none(),
    })
}

/// The last membership of the log, committed or not, or else the one in the catalogue.
fn last_membership(log: &LogStore, catalogue: &Catalogue) -> Result<StoredMembership, ReseatError> {
    let mut found: StoredMembership = open_note(catalogue.note(NoteKey::Membership)?)?;
    let reader = log.reader();
    let mut next = reader.first();
    loop {
        let entries = reader.page(next)?;
        let Some(last) = entries.last() else { return Ok(found) };
        next = last.log_id.index + 1;
        for entry in &entries {
            if let EntryPayload::Membership(members) = &entry.payload {
                found = StoredMembership::new(Some(entry.log_id), members.clone());
            }
        }
    }
}

/// How the log goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seat {
    /// Who votes from now on.
    pub own: NodeId,
    /// Every node that has or gets a replica, `own` included, and where it listens.
    pub members: BTreeMap<NodeId, String>,
    /// The new era, later than any the cluster has been in.
    pub era: u32,
    /// For the catalogue's time.
    pub now_ms: u64,
}

/// Makes the replica the only voter of a new era. Durable on return; a crash in between leaves a replica that can be
/// given a seat again, and that does not start before ([`is_whole`]).
pub async fn reseat(
    kv: Arc<dyn Kv>,
    disk: Arc<dyn Disk>,
    catalogue: &Catalogue,
    seat: &Seat,
) -> Result<u64, ReseatError> {
    begin(disk.as_ref(), Unfinished::Quorum).await?;
    let last = append_seat(kv, disk.clone(), catalogue, seat).await?;
    end(disk.as_ref()).await?;
    Ok(last)
}

/// The same for a catalogue that was just rebuilt: no log belongs to it. Whatever log, vote and promises are here are of
/// a replica that is gone, or of an attempt that was interrupted.
pub async fn reseat_rebuilt(
    kv: Arc<dyn Kv>,
    disk: Arc<dyn Disk>,
    catalogue: &Catalogue,
    seat: &Seat,
) -> Result<u64, ReseatError> {
    begin(disk.as_ref(), Unfinished::Rebuild).await?;
    // The rows before the mark: a log without its mark could not be opened.
    LogStore::wipe(kv.clone()).await?;
    forget_promises(disk.clone()).await.map_err(RaftStoreError::Io)?;
    let last = append_seat(kv, disk.clone(), catalogue, seat).await?;
    end(disk.as_ref()).await?;
    Ok(last)
}

/// What a recovery was to come to that has begun to change a replica and has not ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unfinished {
    /// The replica goes on alone; it is as good as before.
    Quorum,
    /// A rebuilt catalogue; it is made again.
    Rebuild,
}

/// Lies in the data directory while a replica is given a new seat.
const UNFINISHED_FILE: &str = "raft/unfinished";
const UNFINISHED_QUORUM: &[u8] = b"farshore recovery under way\n";
const UNFINISHED_REBUILD: &[u8] = b"farshore rebuild under way\n";

async fn begin(disk: &dyn Disk, what: Unfinished) -> Result<(), RaftStoreError> {
    let words = match what {
        Unfinished::Quorum => UNFINISHED_QUORUM,
        Unfinished::Rebuild => UNFINISHED_REBUILD,
    };
    Ok(disk.write_slot(UNFINISHED_FILE, 0, words).await?)
}

async fn end(disk: &dyn Disk) -> Result<(), RaftStoreError> {
    disk.remove(UNFINISHED_FILE).await?;
    Ok(disk.sync_dir(dir_of(UNFINISHED_FILE)).await?)
}

/// Which recovery was interrupted here. A torn file was written before anything else was changed, and says no more than
/// that one had begun.
pub async fn unfinished(disk: &dyn Disk) -> io::Result<Option<Unfinished>> {
    if disk.len(UNFINISHED_FILE).await?.is_none() {
        return Ok(None);
    }
    let words = disk.read(UNFINISHED_FILE, 0, UNFINISHED_REBUILD.len()).await?;
    let rebuild = *words == *UNFINISHED_REBUILD;
    Ok(Some(if rebuild { Unfinished::Rebuild } else { Unfinished::Quorum }))
}

/// Whether this replica may start: no recovery was interrupted in it. A catalogue without any log is half of one.
pub async fn is_whole(
    kv: Arc<dyn Kv>,
    disk: &dyn Disk,
    catalogue: &Catalogue,
) -> Result<bool, RaftStoreError> {
    if disk.len(UNFINISHED_FILE).await?.is_some() {
        return Ok(false);
    }
    Ok(catalogue.applied() == 0 || !LogStore::holds_nothing(kv)?)
}

async fn append_seat(
    kv: Arc<dyn Kv>,
    disk: Arc<dyn Disk>,
    catalogue: &Catalogue,
    seat: &Seat,
) -> Result<u64, ReseatError> {
    let mut log = LogStore::open(kv, disk).await?.never_ahead_of(catalogue.clone());
    if log.last().is_none()
        && let Some(applied) = open_note::<Option<LogId>>(catalogue.note(NoteKey::Applied)?)?
    {
        // A rebuilt catalogue has no log before it, as after an image.
        log.drop_head(applied).await?;
    }
    let term = first_term(seat.era);
    let leader = CommittedLeaderId::new(term, seat.own.0);
    let next = log.last().map_or(0, |last| last.index + 1);
    let nodes: BTreeMap<u64, BasicNode> =
        seat.members.iter().map(|(id, addr)| (id.0, BasicNode::new(addr))).collect();
    let members = Membership::new(vec![BTreeSet::from([seat.own.0])], nodes);
    let command = Command::BeginEra { era: seat.era, node: seat.own };
    let payload = Payload::seal(&Proposal { time_ms: seat.now_ms, actor: Actor::Node(seat.own), command })?;
    let entries = [EntryPayload::Membership(members), EntryPayload::Normal(payload)];
    let entries = entries.into_iter().zip(next..);
    let entries =
        entries.map(|(payload, index)| Entry { log_id: LogId::new(leader, index), payload }).collect();
    // The vote first: entries of a term that was never voted for would be followed by entries of an older one.
    log.store_vote(&Vote::new(term, seat.own.0)).await?;
    log.store_entries(entries).await?;
    Ok(next + 1)
}

/// The highest era that the mark tells of, also when the log is gone; 0 if there is no readable mark.
pub async fn era_of_mark(disk: Arc<dyn Disk>) -> u32 {
    match Mark::open(disk).await {
        Ok(Some(mark)) => {
            let promise = mark.promise();
            let log = promise.log.map_or(0, |id| id.leader_id.term);
            era_of(log.max(promise.vote.map_or(0, |vote| vote.leader_id.term)))
        }
        Ok(None) | Err(MarkError::Io(_) | MarkError::Damaged) => 0,
    }
}

/// Whether this directory has ever had a replica, even if it is gone.
pub async fn has_mark(disk: &dyn Disk) -> io::Result<bool> {
    Ok(disk.len(MARK_FILE).await?.is_some())
}

/// Forgets all promises of a replica that is gone or was given up: whatever it acknowledged was acknowledged in an era
/// that has ended, or it could not take part again.
pub async fn forget_promises(disk: Arc<dyn Disk>) -> io::Result<()> {
    disk.remove(MARK_FILE).await?;
    disk.sync_dir(dir_of(MARK_FILE)).await?;
    Mark::create(disk).await.map(drop)
}
