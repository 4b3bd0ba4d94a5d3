//! The only place that deletes a shard, and only this node's own: what a *confirmed* catalogue index condemns, and
//! nothing else. The file goes first and the catalogue is told after, so that a crash in between only repeats a
//! removal; the other way round a forgotten file would stay for ever.

use super::Shared;
use crate::store::Removed;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, Condemned};
use farshore_core::id::ShardId;
use farshore_core::limits::SWEEP_COPIES_MAX;
use farshore_core::mutant::{Mutant, mutant};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Deletes condemned copies.
pub struct Sweep(pub Arc<Shared>);

#[async_trait]
impl Worker for Sweep {
    fn name(&self) -> &'static str {
        "sweep"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let shared = &self.0;
        // What the recovered catalogue condemns may be all there is of a shard that was moved after it was exported.
        if shared.rests_after_recovery() {
            return Ok(Pace::Idle);
        }
        // A glance at the own replica is free; only if it shows something the leader is asked to confirm.
        let seen = shared.view()?.condemned(shared.own.id, None, SWEEP_COPIES_MAX)?.rows;
        if seen.is_empty() {
            return Ok(Pace::Idle);
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
        Ok(if swept == SWEEP_COPIES_MAX { Pace::Busy } else { Pace::Idle })
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0.timing.maintain_every).await;
    }
}
