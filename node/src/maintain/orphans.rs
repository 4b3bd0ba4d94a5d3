//! Shards on this node that no committed stripe names here: uploads of clients that gave up, rebuilds that lost their
//! race. They are never simply deleted, since somebody may hold a receipt: the node asks the catalogue to condemn
//! them, which it does once no open session can commit them any more, and from then on refuses whoever names them. What
//! is condemned is swept as everything else.

use super::Shared;
use crate::catalogue::View;
use crate::store::Entry;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, Condemned, EXPORT_REPO, Orphan};
use farshore_core::id::{ShardId, StripeId};
use farshore_core::limits::{EXPORT_LEFT_OVER_MS, ORPHANS_MAX};
use farshore_core::mutant::{Mutant, mutant};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Shards looked at before others get a turn.
const SHARDS_PER_LOOK: usize = 256;
/// Orphans remembered from one pass to the next; more are found by later ones.
const NOTICED_MAX: usize = 4_096;
/// Looking takes at most about a tenth of a core.
const LOOK_PAUSE_FACTOR: u32 = 10;

/// The worker: one page of this node's shards a unit.
pub struct Orphans {
    shared: Arc<Shared>,
    after: Option<ShardId>,
    began: Instant,
    /// Orphans of this pass, and the applied index when each was first noticed.
    noticed: BTreeMap<ShardId, u64>,
    /// Orphans of the pass before. A rebuild that is about to be recorded is given the time between two passes.
    before: BTreeMap<ShardId, u64>,
    /// Parts of exports that are not recorded, as seen in this pass, and when each was first noticed.
    parts: BTreeMap<ShardId, Instant>,
    /// Those of the pass before.
    parts_before: BTreeMap<ShardId, Instant>,
}

impl Orphans {
    /// A pass that begins with the first shard.
    pub fn new(shared: Arc<Shared>) -> Self {
        let (noticed, before, parts, parts_before) = Default::default();
        Orphans { shared, after: None, began: Instant::now(), noticed, before, parts, parts_before }
    }

    fn note(
        &mut self,
        view: &View,
        exported: &BTreeSet<StripeId>,
        shard: ShardId,
        entry: &Entry,
    ) -> Result<Option<Orphan>, WorkFailed> {
        if is_wanted(&self.shared, view, shard)? || (entry.bad && mutant(Mutant::SpoiltStays)) {
            return Ok(None);
        }
        // No pack names the parts of an export.
        if entry.repo == EXPORT_REPO && (exported.contains(&shard.stripe) || !self.is_left_over(shard)) {
            return Ok(None);
        }
        if let Some(session) = entry.session
            && view.session(session)?.is_some()
        {
            return Ok(None);
        }
        let known = self.before.get(&shard).copied();
        let seen = known.unwrap_or(view.applied());
        if self.noticed.len() < NOTICED_MAX {
            self.noticed.insert(shard, seen);
        }
        Ok(known.map(|seen| Orphan { shard, session: entry.session, seen }))
    }
}

impl Orphans {
    /// Whether a part of an export that is not kept cannot be one that may still be recorded.
    fn is_left_over(&mut self, shard: ShardId) -> bool {
        if self.parts.len() >= NOTICED_MAX {
            return false;
        }
        let noticed = self.parts_before.get(&shard).copied().unwrap_or_else(Instant::now);
        self.parts.insert(shard, noticed);
        noticed.elapsed() >= Duration::from_millis(EXPORT_LEFT_OVER_MS)
    }
}

/// A stripe names it here, or it is condemned already.
fn is_wanted(shared: &Shared, view: &View, shard: ShardId) -> Result<bool, WorkFailed> {
    let own = shared.own.id;
    if let Some(pack) = view.pack_of_stripe(shard.stripe)? {
        let record = pack.stripe.shards.get(usize::from(shard.index));
        if record.is_some_and(|record| record.node == Some(own)) {
            return Ok(true);
        }
    }
    Ok(view.is_condemned(Condemned { node: own, shard })?)
}

#[async_trait]
impl Worker for Orphans {
    fn name(&self) -> &'static str {
        "orphans"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if self.shared.view()?.cluster().is_none() || self.shared.rests_after_recovery() {
            return Ok(Pace::Idle);
        }
        if self.after.is_none() {
            self.began = Instant::now();
        }
        let page = self.shared.store.list(self.after, SHARDS_PER_LOOK)?;
        let Some((last, _)) = page.last() else {
            self.after = None;
            self.before = std::mem::take(&mut self.noticed);
            self.parts_before = std::mem::take(&mut self.parts);
            let rest = self.began.elapsed() * LOOK_PAUSE_FACTOR;
            return Ok(Pace::Throttled(rest.max(self.shared.timing.collect_every)));
        };
        self.after = Some(*last);
        let view = self.shared.view()?;
        let mut exported = BTreeSet::new();
        if page.iter().any(|(_, entry)| entry.repo == EXPORT_REPO) {
            let exports = view.exports()?;
            exported.extend(exports.iter().flat_map(|export| &export.parts).map(|part| part.stripe()));
        }
        let mut copies = Vec::new();
        for (shard, entry) in &page {
            copies.extend(self.note(&view, &exported, *shard, entry)?);
        }
        drop(view);
        for copies in copies.chunks(ORPHANS_MAX) {
            let (node, copies) = (self.shared.own.id, copies.to_vec());
            self.shared.propose(Command::CondemnOrphans { node, copies }).await?;
        }
        Ok(Pace::Busy)
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.collect_every).await;
    }
}
