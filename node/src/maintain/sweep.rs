//! The only place that deletes a shard, and only this node's own: what a *confirmed* catalogue index condemns, and
//! nothing else. The file goes first and the catalogue is told after, so that a crash in between only repeats a
//! removal; the other way round a forgotten file would stay for ever.

use super::Shared;
use crate::catalogue::View;
use crate::store::Removed;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, Condemned};
use farshore_core::id::ShardId;
use farshore_core::limits::SWEEP_COPIES_MAX;
use farshore_core::mutant::{Mutant, mutant};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::time::Instant;

/// Going through what is kept back takes at most about a twentieth of a core.
const LOOK_PAUSE_FACTOR: u32 = 20;

/// Copies are kept back for so many times the grace of a silent node: repair begins at once, and what it has not come to by
/// then is deleted.
const KEPT_GRACES: u32 = 2;

/// Deletes condemned copies.
pub struct Sweep {
    shared: Arc<Shared>,
    /// Where the pass over what is condemned has come to, and when it began.
    after: Option<ShardId>,
    began: Instant,
    /// Copies that this pass has kept back.
    kept: usize,
    /// Since when some copy was kept back in every pass.
    keeping: Option<Instant>,
}

impl Sweep {
    /// Begins with the first.
    pub fn new(shared: Arc<Shared>) -> Self {
        Sweep { shared, after: None, began: Instant::now(), kept: 0, keeping: None }
    }

    /// Whether this node keeps copies back at all: it could hold their shards, and repair has had no time for them yet.
    fn keeps_back(&self, view: &View) -> Result<bool, WorkFailed> {
        let shared = &self.shared;
        let late = self.keeping.is_some_and(|since| since.elapsed() >= shared.timing.grace * KEPT_GRACES);
        Ok(!late && view.node(shared.own.id)?.is_some_and(|own| own.takes_shards()))
    }

    /// The pass is over.
    fn rest(&mut self) -> Pace {
        self.after = None;
        let kept = std::mem::take(&mut self.kept);
        if kept == 0 {
            self.keeping = None;
            return Pace::Idle;
        }
        self.keeping.get_or_insert(self.began);
        Pace::Throttled((self.began.elapsed() * LOOK_PAUSE_FACTOR).max(self.shared.timing.maintain_every))
    }
}

#[async_trait]
impl Worker for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let shared = self.shared.clone();
        // What the recovered catalogue condemns may be all there is of a shard that was moved after it was exported.
        if shared.rests_after_recovery() {
            return Ok(Pace::Idle);
        }
        if self.after.is_none() {
            self.began = Instant::now();
        }
        // A glance at the own replica is free; only if it shows something the leader is asked to confirm.
        let view = shared.view()?;
        let mut page = view.condemned(shared.own.id, self.after, SWEEP_COPIES_MAX)?;
        let mut seen = Vec::with_capacity(page.rows.len());
        let keeps_back = self.keeps_back(&view)?;
        for copy in std::mem::take(&mut page.rows) {
            match keeps_back && is_wanted_back(&view, &copy)? {
                true => self.kept += 1,
                false => seen.push(copy),
            }
        }
        drop(view);
        self.after = page.next;
        if seen.is_empty() {
            return Ok(if self.after.is_some() { Pace::Busy } else { self.rest() });
        }
        // Held first and confirmed then: what is put again from here on stays, and what was put before and is
        // condemned now was not recorded, since that would have raised the generation of its stripe.
        let mut held = shared.store.hold(seen.iter().map(|copy| copy.shard)).await;
        let unconfirmed = mutant(Mutant::SweepUnconfirmed) || mutant(Mutant::SweepFirstLook);
        let view = if unconfirmed { shared.view()? } else { shared.confirmed_view().await? };
        let mut copies: Vec<Condemned> = Vec::with_capacity(seen.len());
        for copy in seen {
            // An own mistake here would delete another's data on the word of a wrong query.
            assert_eq!(copy.node, shared.own.id, "a node sweeps only its own copies");
            if view.is_condemned(copy)? || mutant(Mutant::SweepFirstLook) {
                copies.push(copy);
            }
        }
        drop(view);
        let confirmed: BTreeSet<ShardId> = copies.iter().map(|copy| copy.shard).collect();
        held.retain(|shard| confirmed.contains(&shard));
        let Removed { shards, failed } = shared.store.remove(held).await;
        let removed: BTreeSet<ShardId> = shards.into_iter().collect();
        copies.retain(|copy| removed.contains(&copy.shard));
        let swept = copies.len();
        if swept > 0 {
            shared.propose(Command::Swept { copies }).await?;
            tracing::debug!(swept, "condemned copies deleted");
        }
        failed?;
        Ok(if self.after.is_some() { Pace::Busy } else { self.rest() })
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.maintain_every).await;
    }
}

/// Whether repair may want the copy back: its stripe is not as it should be. A node that was given up and comes back has
/// all that was made anew meanwhile, and would be sent what it has just deleted.
fn is_wanted_back(view: &View, copy: &Condemned) -> Result<bool, WorkFailed> {
    let Some(pack) = view.pack_of_stripe(copy.shard.stripe)? else { return Ok(false) };
    // One that was found bad is held by nobody now.
    let record = pack.stripe.shards.get(usize::from(copy.shard.index));
    Ok(record.is_some_and(|record| record.node.is_some()) && view.is_under_target(pack.no)?)
}
