//! Looks for rot before anyone needs the shard: re-reads every shard within the scrub period, and compares what the
//! catalogue records here with what is here. What looks bad becomes a suspect; the report worker looks once more and
//! tells the catalogue. Nothing here mends, and nothing
//! deletes but what is spoilt and known to nobody.

use super::Shared;
use crate::store::{Entry, StoreError};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, EXPORT_REPO, PackRecord};
use farshore_core::id::{NodeId, PackNo, ShardHash, ShardId};
use farshore_core::limits::{PAGE_ROWS_MAX, SCRUB_NAMED_MAX};
use farshore_core::mutant::{Mutant, mutant};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Shards of one pass.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// Looked at so far.
    pub checked: u64,
    /// Held when the pass began.
    pub total: u64,
    /// Held and not whole, exports of the catalogue aside.
    pub bad: u64,
    /// Recorded here and not held.
    pub missing: u64,
    /// Bytes of the files looked at.
    pub bytes: u64,
    /// The pass is over.
    pub done: bool,
    /// The first of those that are bad or missing.
    pub named: Vec<(ShardId, Fault)>,
}

/// What is wrong with a shard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Held and not whole.
    Bad,
    /// Recorded here and not held.
    Missing,
}

impl Progress {
    fn name(&mut self, shard: ShardId, fault: Fault) {
        if self.named.len() < SCRUB_NAMED_MAX {
            self.named.push((shard, fault));
        }
    }
}

/// One full pass as fast as the disk allows, for an operator. `tell` hears of each page.
pub async fn pass(shared: &Shared, mut tell: impl FnMut(Progress)) -> Result<Progress, WorkFailed> {
    let mut progress = Progress { total: shared.store.stats().shards, ..Progress::default() };
    let mut after = None;
    loop {
        let page = shared.store.list(after, PAGE_ROWS_MAX)?;
        for (shard, entry) in &page {
            progress.checked += 1;
            progress.bytes += entry.file_len;
            let whole = look(shared, *shard, entry.hash).await?;
            // Nobody rebuilds single shards of an export: it has many to spare, and is made anew each day.
            if !whole && entry.repo != EXPORT_REPO {
                progress.bad += 1;
                progress.name(*shard, Fault::Bad);
            }
            if progress.checked.is_multiple_of(TELL_EVERY) {
                tell(Progress { named: Vec::new(), ..progress });
            }
        }
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
    }
    progress.missing = find_missing(shared, |shard| progress.name(shard, Fault::Missing)).await?;
    progress.done = true;
    Ok(progress)
}

/// Shards between two messages of progress.
const TELL_EVERY: u64 = 16;

/// Re-reads one shard; true if it is whole, or gone by now, which the comparison with the catalogue judges.
async fn look(shared: &Shared, shard: ShardId, hash: ShardHash) -> Result<bool, WorkFailed> {
    match shared.store.verify(shard, hash).await {
        Ok(()) | Err(StoreError::Missing(_)) => Ok(true),
        Err(StoreError::Corrupt(..)) => {
            shared.reports.suspect(shard);
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Compares the catalogue with the index: whatever is recorded here and not here becomes a suspect, and `tell` hears of it. An index that was
/// lost or rebuilt short is found this way, never by reading.
pub async fn find_missing(shared: &Shared, mut tell: impl FnMut(ShardId)) -> Result<u64, WorkFailed> {
    let mut missing = 0;
    let mut from = PackNo(0);
    loop {
        // There may be millions; others get their turn between pages.
        tokio::task::yield_now().await;
        let view = shared.view()?;
        let page = view.packs_held_by(shared.own.id, from, PAGE_ROWS_MAX)?;
        for (no, _) in &page.rows {
            let Some(pack) = view.pack(*no)? else { continue };
            for (shard, hash) in recorded_at(&pack, shared.own.id) {
                if shared.store.entry(shard)?.is_none_or(|entry| entry.hash != hash) {
                    missing += 1;
                    tell(shard);
                    shared.reports.suspect(shard);
                }
            }
        }
        match page.next {
            Some(next) => from = next,
            None => return Ok(missing),
        }
    }
}

/// Shards of a pack of which this node is the recorded holder, and what they must hash to.
fn recorded_at(pack: &PackRecord, node: NodeId) -> impl Iterator<Item = (ShardId, ShardHash)> {
    let stripe = pack.stripe.id;
    let held = pack.stripe.shards.iter().zip(0u8..).filter(move |(shard, _)| shard.node == Some(node));
    held.map(move |(shard, index)| (ShardId { stripe, index }, shard.hash))
}

/// How far this node is with reading its shards again.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Standing {
    /// Shards held.
    pub shards: u64,
    /// Bytes of their files.
    pub bytes: u64,
    /// Those of which all bytes were checked within the period.
    pub verified: u64,
    /// Bytes of their files.
    pub verified_bytes: u64,
    /// Not checked since they were found.
    pub never: u64,
    /// When the one was checked that was checked longest ago, Unix milliseconds.
    pub oldest_ms: Option<u64>,
    /// Known to be damaged, exports of the catalogue aside.
    pub bad: u64,
}

impl Standing {
    fn note(&mut self, entry: &Entry, since_ms: u64) {
        self.shards += 1;
        self.bytes += entry.file_len;
        self.bad += u64::from(entry.bad && entry.repo != EXPORT_REPO);
        match entry.last_verified_ms {
            0 => self.never += 1,
            at => self.oldest_ms = Some(self.oldest_ms.map_or(at, |oldest| oldest.min(at))),
        }
        if entry.last_verified_ms >= since_ms.max(1) {
            self.verified += 1;
            self.verified_bytes += entry.file_len;
        }
    }
}

/// Looks at the index alone; no shard is read. It outlives a restart, as the index does.
pub async fn standing(shared: &Shared) -> Result<Standing, WorkFailed> {
    let period_ms = shared.scrub_period()?.as_millis() as u64;
    let since_ms = shared.host.clock.now_ms().saturating_sub(period_ms);
    let (mut standing, mut after) = (Standing::default(), None);
    loop {
        let page = shared.store.list(after, PAGE_ROWS_MAX)?;
        page.iter().for_each(|(_, entry)| standing.note(entry, since_ms));
        let Some((last, _)) = page.last() else { return Ok(standing) };
        after = Some(*last);
        tokio::task::yield_now().await;
    }
}

/// The paced worker: one shard a unit. A pass passes over what was checked within the last half of the period, takes three
/// eighths of it and is followed by a rest of one eighth at most: so nothing stays unread for longer than the period, and
/// after a restart it goes on where it was.
pub struct Scrub {
    shared: Arc<Shared>,
    after: Option<ShardId>,
    compared: bool,
}

/// The first shard behind `after` that was not checked since then, and the last one that was looked at.
type NextDue = (Option<(ShardId, Entry)>, Option<ShardId>);

fn next_due(page: Vec<(ShardId, Entry)>, since_ms: u64) -> NextDue {
    let last = page.last().map(|(shard, _)| *shard);
    let due = page.into_iter().find(|(_, entry)| entry.last_verified_ms < since_ms.max(1));
    let last = due.as_ref().map(|(shard, _)| *shard).or(last);
    (due, last)
}

impl Scrub {
    /// A pass that starts with the comparison: after a start the index may be new.
    pub fn new(shared: Arc<Shared>) -> Self {
        Scrub { shared, after: None, compared: false }
    }
}

/// However few shards there are, a scrub never runs more often than this.
const PAUSE_MAX: Duration = Duration::from_secs(3_600);
/// However many there are, others get their turn at the disk.
const PAUSE_MIN: Duration = Duration::from_millis(5);

#[async_trait]
impl Worker for Scrub {
    fn name(&self) -> &'static str {
        "scrub"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if self.shared.view()?.upkeep()?.scrub_paused {
            return Ok(Pace::Throttled(self.shared.timing.maintain_every));
        }
        if !self.compared {
            if self.shared.view()?.cluster().is_none() {
                return Ok(Pace::Throttled(self.shared.timing.heartbeat));
            }
            let missing = find_missing(&self.shared, |_| {}).await?;
            if missing > 0 {
                tracing::warn!(missing, "shards are recorded here and not here");
            }
            self.compared = true;
        }
        let period = self.shared.scrub_period()?;
        let half_ms = period.as_millis() as u64 / 2;
        let page = self.shared.store.list(self.after, PAGE_ROWS_MAX)?;
        let (due, last) = next_due(page, self.shared.host.clock.now_ms().saturating_sub(half_ms));
        let Some(last) = last else {
            *self = Scrub::new(self.shared.clone());
            return Ok(Pace::Throttled(PAUSE_MAX.min(period / 8)));
        };
        self.after = Some(last);
        let Some((shard, entry)) = due else { return Ok(Pace::Busy) };
        if !look(&self.shared, shard, entry.hash).await? {
            tracing::warn!(%shard, "scrub found a bad shard");
        }
        let shards = self.shared.store.stats().shards.clamp(1, u64::from(u32::MAX)) as u32;
        Ok(Pace::Throttled((period * 3 / 8 / shards).clamp(PAUSE_MIN, PAUSE_MAX)))
    }

    async fn wait(&mut self) {
        tokio::time::sleep(PAUSE_MAX).await;
    }
}

/// The worker that looks again at suspects and tells the catalogue.
pub struct Report {
    shared: Arc<Shared>,
    /// The last one looked at, so that a suspect that cannot be settled does not hold up the others.
    last: Option<ShardId>,
    /// Suspects found bad: how often in a row, and not before when they are looked at again. Bounded by the suspects.
    doubts: BTreeMap<ShardId, (u8, Instant)>,
}

/// Looks in a row that must find a shard bad before the catalogue is told, and time between them: a disk that fails for
/// a moment must not cost good shards, since what the catalogue does not count on any more is deleted.
const LOOKS: u8 = 3;
const LOOK_AGAIN: Duration = Duration::from_millis(1_500);

impl Report {
    /// Begins with the first suspect.
    pub fn new(shared: Arc<Shared>) -> Self {
        Report { shared, last: None, doubts: BTreeMap::new() }
    }
}

impl Report {
    /// What the catalogue does not expect here is nobody's loss, and once it is spoilt no use to anybody either. A rebuild
    /// or an upload that may yet be recorded is left alone until nobody writes. Left alone for good it would be found by
    /// every scrub for ever.
    async fn clear_away(&self, shard: ShardId) -> Result<(), WorkFailed> {
        let shared = &self.shared;
        let held = shared.store.hold([shard]).await;
        // Held before the catalogue is asked, as for a sweep: what is put again from here on stays.
        if !shared.store.entry(shard)?.is_some_and(|entry| entry.bad) {
            return Ok(());
        }
        let view = shared.confirmed_view().await?;
        // While anybody writes, a receipt for it may yet be recorded, and the file may yet be readable again.
        if view.counts().sessions > 0 {
            return Ok(());
        }
        if let Some(pack) = view.pack_of_stripe(shard.stripe)? {
            let recorded = recorded_at(&pack, shared.own.id).any(|(id, _)| id == shard);
            // A rebuild may be about to record it.
            if recorded || view.is_under_target(pack.no)? {
                return Ok(());
            }
        }
        tracing::warn!(%shard, "delete a spoilt shard that the catalogue does not know here");
        Ok(shared.store.remove(held).await.failed?)
    }
}

#[async_trait]
impl Worker for Report {
    fn name(&self) -> &'static str {
        "report"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let shared = &self.shared;
        let Some(shard) = shared.reports.next(self.last) else { return Ok(Pace::Idle) };
        self.last = Some(shard);
        if self.doubts.get(&shard).is_some_and(|(_, again)| Instant::now() < *again) {
            let pause = LOOK_AGAIN / u32::try_from(shared.reports.len()).unwrap_or(u32::MAX).max(1);
            return Ok(Pace::Throttled(pause.clamp(PAUSE_MIN, LOOK_AGAIN / 4)));
        }
        let pack = shared.confirmed_view().await?.pack_of_stripe(shard.stripe)?;
        let recorded = pack.and_then(|pack| {
            let (_, hash) = recorded_at(&pack, shared.own.id).find(|(id, _)| *id == shard)?;
            Some((pack.no, hash))
        });
        if recorded.is_none() && !mutant(Mutant::SpoiltStays) {
            self.clear_away(shard).await?;
        }
        if let Some((pack, hash)) = recorded {
            match shared.store.verify(shard, hash).await {
                // A passing fault: a shard is not given up for one bad read.
                Ok(()) => {}
                Err(why @ (StoreError::Missing(_) | StoreError::Corrupt(..))) => {
                    // A disk that is gone or fails altogether is no witness against single shards.
                    shared.store.check_disk().await?;
                    let (looks, again) = self.doubts.entry(shard).or_insert((0, Instant::now()));
                    (*looks, *again) = (*looks + 1, Instant::now() + LOOK_AGAIN);
                    if *looks < LOOKS && !mutant(Mutant::GiveUpAtOnce) {
                        return Ok(Pace::Busy);
                    }
                    tracing::warn!(%shard, pack = pack.0, %why, "tell the catalogue that a shard is bad");
                    shared
                        .propose(Command::ShardBad { pack, index: shard.index, node: shared.own.id })
                        .await?;
                    shared.reports.found_bad();
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.doubts.remove(&shard);
        shared.reports.settled(shard);
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        self.shared.reports.arrived().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::{PackKind, ShardRecord, StripeRecord};
    use farshore_core::erasure::Scheme;
    use farshore_core::id::{Ordinal, PackId, RepoId, StripeId};

    #[test]
    fn what_was_checked_lately_is_passed_over_and_the_pass_goes_on_behind_it() {
        let shard = |index| ShardId { stripe: StripeId([1; 16]), index };
        let page = |times: &[u64]| -> Vec<(ShardId, Entry)> {
            let entry = |at| Entry { last_verified_ms: at, ..Entry::unreadable(1) };
            (0u8..).zip(times).map(|(index, at)| (shard(index), entry(*at))).collect()
        };
        let due = |times: &[u64], since| {
            let (due, last) = next_due(page(times), since);
            (due.map(|(shard, _)| shard.index), last.map(|shard| shard.index))
        };
        assert_eq!(due(&[100, 90, 100], 95), (Some(1), Some(1)));
        assert_eq!(due(&[100, 100], 95), (None, Some(1)));
        assert_eq!(due(&[], 95), (None, None));
        assert_eq!(due(&[5, 0], 0), (Some(1), Some(1)), "never checked is always due");
    }

    #[test]
    fn only_own_shards_are_compared() {
        let holders = [Some(NodeId(1)), None, Some(NodeId(2)), Some(NodeId(1))];
        let shards = holders.map(|node| ShardRecord { node, hash: ShardHash([0; 32]) });
        let stripe = StripeRecord {
            id: StripeId([7; 16]),
            scheme: Scheme::new(2, 2, 2).unwrap(),
            shard_len: 64,
            generation: 0,
            shards: shards.to_vec(),
        };
        let pack = PackRecord {
            no: PackNo(0),
            id: PackId([0; 32]),
            repo: RepoId([0; 16]),
            kind: PackKind::Data,
            len: 100,
            chunks: 1,
            first_ordinal: Ordinal(0),
            stripe,
        };
        let indexes: Vec<u8> = recorded_at(&pack, NodeId(1)).map(|(s, _)| s.index).collect();
        assert_eq!(indexes, [0, 3]);
        assert_eq!(recorded_at(&pack, NodeId(3)).count(), 0);
    }
}
