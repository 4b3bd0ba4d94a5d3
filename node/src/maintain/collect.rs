//! The leader's garbage collection: looks at one repository after the other, has the pure planner say what is due, and
//! proposes it. It condemns, waits for sessions by looking again, and drops; the nodes then sweep. It never stands in a
//! backup's way, keeps nothing that must not be forgotten, and rests between looks, so that looking takes at most a part
//! of the leader's time however large the catalogue is.

use super::Shared;
use super::compact::compact;
use super::exporter::reach;
use super::retain::{Retain, forget};
use crate::catalogue::{PackUse, RepoUse, View};
use crate::plan::{GarbagePlan, Totals, plan_garbage};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, CondemnedPack, Reply, RepoChange, SnapshotRecord};
use farshore_core::id::{PackNo, RepoId, SnapshotId};
use farshore_core::limits::{
    CHECKPOINT_KEEP_MS, COLLECT_CALL_MS, EXPORT_MAKE_MS, GARBAGE_CHUNKS_MAX, GARBAGE_PACKS_MAX,
    PAGE_ROWS_MAX, SNAPSHOTS_PER_COMMAND_MAX, SWEEP_COPIES_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::NodeState;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, timeout};

/// Looking takes at most about a tenth of the leader's time.
const LOOK_PAUSE_FACTOR: u32 = 10;
/// Packs looked at before others get a turn.
const PACKS_PER_LOOK: usize = 256;
/// Rounds that one call of an operator makes at most: condemn, look again, drop, copy, and the same for what copying
/// emptied.
const ROUNDS_MAX: usize = 8;

/// One round at a time on a node, whoever asks for it. Holds since when packs wait for an export.
#[derive(Default)]
pub struct Collecting(Mutex<Option<Instant>>);

/// What a round found and did in one repository.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Collected {
    /// What was there before.
    pub totals: Totals,
    /// Packs condemned.
    pub condemned: u64,
    /// Packs dropped.
    pub dropped: u64,
    /// Their bytes before coding.
    pub dropped_bytes: u64,
    /// Packs emptied into others.
    pub compacted: u64,
    /// Open sessions.
    pub sessions: u64,
    /// Snapshots in the trash.
    pub trash: u64,
    /// Something was done, so that another round may find more.
    pub busy: bool,
}

/// What is garbage in a repository; nothing is changed.
pub async fn look(view: &View, repo: RepoId, sparse_percent: u64) -> Result<Collected, WorkFailed> {
    let of = view.repo_use(repo)?;
    let (_, totals) = plan(view, &of, sparse_percent).await?;
    let trash = trash_of(view, repo)?.len() as u64;
    Ok(Collected { totals, sessions: of.sessions, trash, ..Collected::default() })
}

/// Collects what can be collected at once in one repository, in as many rounds as that takes and for as long as a call
/// may: if there is more it says so, and wants to be called again.
pub async fn collect_now(shared: &Shared, repo: RepoId) -> Result<Collected, WorkFailed> {
    let mut sum = Collected::default();
    let until = Instant::now() + Duration::from_millis(COLLECT_CALL_MS);
    for round in 0..ROUNDS_MAX {
        // Confirmed: an operator must not be told what an earlier state knew.
        shared.consensus.read_index_leading().await?;
        let one = collect_once(shared, repo).await?;
        let first = if round == 0 { one.totals } else { sum.totals };
        sum = Collected {
            totals: first,
            condemned: sum.condemned + one.condemned,
            dropped: sum.dropped + one.dropped,
            dropped_bytes: sum.dropped_bytes + one.dropped_bytes,
            compacted: sum.compacted + one.compacted,
            ..one
        };
        if !one.busy || Instant::now() >= until {
            break;
        }
    }
    Ok(sum)
}

/// One round over one repository: from one view, so that what is seen fits together.
/// What is not begun in time after the look is left to the next round, so that nobody waits long for his turn.
async fn collect_once(shared: &Shared, repo: RepoId) -> Result<Collected, WorkFailed> {
    let mut waiting = shared.collecting.0.lock().await;
    let view = shared.view()?;
    forget_stale(shared, &view, repo).await?;
    let purged = purge_due(shared, &view, repo).await?;
    let view = if purged { shared.view()? } else { view };
    let of = view.repo_use(repo)?;
    let (plan, totals) = plan(&view, &of, shared.timing.compact_below.into()).await?;
    let until = Instant::now() + Duration::from_millis(COLLECT_CALL_MS);
    let may_drop = plan.drop.is_empty() || export_before_drop(shared, of.looked, &mut waiting).await;
    let in_time = || Instant::now() < until;
    let mut done = Collected { totals, sessions: of.sessions, ..Collected::default() };
    if mutant(Mutant::DropFirstLook) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    for packs in plan.revive.chunks(GARBAGE_PACKS_MAX).take_while(|_| in_time()) {
        shared.propose_leading(Command::RevivePacks { packs: packs.to_vec() }).await?;
    }
    for packs in plan.condemn.chunks(GARBAGE_PACKS_MAX).take_while(|_| in_time()) {
        let reply = shared.propose_leading(Command::CondemnPacks { packs: packs.to_vec() }).await?;
        done.condemned += counted(&reply);
        if mutant(Mutant::DropFirstLook) {
            drop_at_once(shared, repo, packs).await?;
        }
    }
    for packs in batches(&plan.drop).into_iter().take_while(|_| may_drop && in_time()) {
        let reply = shared.propose_leading(Command::DropPacks { packs, looked: of.looked }).await?;
        done.dropped += counted(&reply);
    }
    if done.dropped > 0 {
        let after = shared.view()?;
        for pack in &plan.drop {
            done.dropped_bytes += if after.pack(pack.no)?.is_none() { pack.len } else { 0 };
        }
    }
    if in_time() {
        let due = [plan.sparse, plan.recode_weak].concat();
        done.compacted = compact(shared, &view, &of, &due).await?;
    }
    done.trash = trash_of(&shared.view()?, repo)?.len() as u64;
    done.busy = purged || !may_drop || !in_time() || done.condemned + done.dropped + done.compacted > 0;
    if done.busy {
        tracing::info!(%repo, ?done, "garbage collected");
    }
    Ok(done)
}

/// What was copied out of a pack must be known to an export before the pack goes: a catalogue rebuilt from an older one
/// would look for its snapshots' chunks where they were. Waits for half the time of a call. `false` while there is none, but
/// for no longer than making one may take: dropping may be what makes room for it.
async fn export_before_drop(shared: &Shared, index: u64, waiting: &mut Option<Instant>) -> bool {
    let reached = timeout(Duration::from_millis(COLLECT_CALL_MS / 2), reach(shared, index)).await;
    if matches!(reached, Ok(Ok(()))) {
        *waiting = None;
        return true;
    }
    let since = *waiting.get_or_insert_with(Instant::now);
    let waited = since.elapsed() >= Duration::from_millis(EXPORT_MAKE_MS);
    if waited {
        tracing::warn!("packs are dropped although no export knows yet what took their place");
    }
    waited
}

/// The deliberate defect of dropping without a second look.
pub(super) async fn drop_at_once(shared: &Shared, repo: RepoId, packs: &[PackNo]) -> Result<(), WorkFailed> {
    let view = shared.view()?;
    let of = view.repo_use(repo)?;
    let mut condemned = Vec::new();
    for no in packs {
        let page = view.pack_uses(&of, *no, 1)?;
        condemned
            .extend(page.rows.iter().filter(|pack| pack.no == *no).filter_map(|pack| pack.as_condemned()));
    }
    shared.propose_leading(Command::DropPacks { packs: condemned, looked: u64::MAX }).await?;
    Ok(())
}

async fn plan(view: &View, of: &RepoUse, sparse_percent: u64) -> Result<(GarbagePlan, Totals), WorkFailed> {
    let (mut whole, mut totals) = (GarbagePlan::default(), Totals::default());
    let mut from = PackNo(0);
    loop {
        let page = view.pack_uses(of, from, PACKS_PER_LOOK)?;
        let part = plan_garbage(of, &page.rows, sparse_percent, &mut totals);
        whole.condemn.extend(part.condemn);
        whole.revive.extend(part.revive);
        whole.drop.extend(part.drop);
        whole.sparse.extend(part.sparse);
        whole.recode_weak.extend(part.recode_weak);
        match page.next {
            Some(next) => from = next,
            None => return Ok((whole, totals)),
        }
        tokio::task::yield_now().await;
    }
}

/// Commands are applied one after the other, so that each is kept short.
fn batches(due: &[PackUse]) -> Vec<Vec<CondemnedPack>> {
    let mut batches = Vec::<Vec<CondemnedPack>>::new();
    let mut chunks = u64::MAX;
    for pack in due {
        let Some(condemned) = pack.as_condemned() else { continue };
        chunks = chunks.saturating_add(pack.chunks);
        match batches.last_mut() {
            Some(batch) if chunks <= GARBAGE_CHUNKS_MAX as u64 && batch.len() < GARBAGE_PACKS_MAX => {
                batch.push(condemned);
            }
            _ => {
                batches.push(vec![condemned]);
                chunks = pack.chunks;
            }
        }
    }
    batches
}

fn counted(reply: &Reply) -> u64 {
    match reply {
        Reply::Changed { count } => u64::from(*count),
        _ => 0,
    }
}

/// Every snapshot in the trash, and when it was put there.
fn trash_of(view: &View, repo: RepoId) -> Result<Vec<(SnapshotId, u64)>, WorkFailed> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = view.trash(repo, after, PAGE_ROWS_MAX)?;
        for row in &page.rows {
            all.push((row.id, view.marks(repo, row.id)?.forgotten_ms.unwrap_or_default()));
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// Forgets checkpoints that no later run of their group has replaced for long.
async fn forget_stale(shared: &Shared, view: &View, repo: RepoId) -> Result<(), WorkFailed> {
    let (mut stale, mut after) = (Vec::new(), None);
    loop {
        let page = view.snapshots(repo, after, PAGE_ROWS_MAX, false)?;
        let is_stale = |s: &&SnapshotRecord| {
            s.label.partial && view.time_ms() >= s.committed_ms.saturating_add(CHECKPOINT_KEEP_MS)
        };
        stale.extend(page.rows.iter().filter(is_stale).map(|snapshot| snapshot.id));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    // A client may have locked one, which must not keep everything else from being collected.
    if let Err(error) = forget(shared, repo, &stale).await {
        tracing::warn!(%repo, %error, "old checkpoints not forgotten");
    }
    Ok(())
}

/// Removes what has been in the trash for its time.
async fn purge_due(shared: &Shared, view: &View, repo: RepoId) -> Result<bool, WorkFailed> {
    if view.counts().trash == 0 {
        return Ok(false);
    }
    let (trash_ms, now_ms) = (view.settings(repo)?.trash_ms(), shared.consensus.time_ms().unwrap_or(0));
    let due = trash_of(view, repo)?.into_iter().filter(|(_, since)| now_ms >= since.saturating_add(trash_ms));
    let due: Vec<SnapshotId> = due.map(|(id, _)| id).collect();
    let mut purged = 0;
    for snapshots in due.chunks(SNAPSHOTS_PER_COMMAND_MAX) {
        let change = RepoChange::Purge { snapshots: snapshots.to_vec(), early: false };
        purged += counted(&shared.propose_leading(Command::ChangeRepository { repo, change }).await?);
    }
    Ok(purged > 0)
}

/// The leader's worker.
pub struct Collect {
    shared: Arc<Shared>,
    after: Option<RepoId>,
    began: Instant,
    /// In this pass packs were coded anew.
    recoding: bool,
    retain: Retain,
}

impl Collect {
    /// A worker that begins with the first repository.
    pub fn new(shared: Arc<Shared>) -> Self {
        Collect { shared, after: None, began: Instant::now(), recoding: false, retain: Retain::default() }
    }

    /// A node that has retired sweeps nothing any more; what was condemned on it is forgotten.
    async fn forget_retired(&self, view: &View) -> Result<(), WorkFailed> {
        for node in view.nodes()?.into_iter().filter(|node| node.state == NodeState::Retired) {
            let copies = view.condemned(node.id, None, SWEEP_COPIES_MAX)?.rows;
            if !copies.is_empty() {
                self.shared.propose_leading(Command::Swept { copies }).await?;
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Worker for Collect {
    fn name(&self) -> &'static str {
        "collect"
    }

    /// One repository a unit; after the last a rest in proportion.
    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if self.shared.leading().is_none() {
            self.after = None;
            // Whoever led meanwhile may have seen other settings.
            self.retain = Retain::default();
            return Ok(Pace::Idle);
        }
        let view = self.shared.view()?;
        if self.after.is_none() {
            self.began = Instant::now();
            self.recoding = false;
            self.forget_retired(&view).await?;
        }
        let Some(repo) = view.repos(self.after, 1)?.rows.pop() else {
            self.after = None;
            let (took, every) = (self.began.elapsed(), self.shared.timing.collect_every);
            // Somebody waits for a change of policy: it takes half of the time.
            let rest = if self.recoding { took.min(every) } else { every.max(took * LOOK_PAUSE_FACTOR) };
            return Ok(Pace::Throttled(rest));
        };
        drop(view);
        self.after = Some(repo.id);
        self.retain.forget_due(&self.shared, repo.id).await?;
        if !self.shared.rests_after_recovery() {
            let done = collect_once(&self.shared, repo.id).await?;
            self.recoding |= done.totals.recode > 0 && done.compacted > 0;
        }
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        let pause = self.shared.timing.collect_every.min(Duration::from_secs(10));
        tokio::time::sleep(pause).await;
    }
}
