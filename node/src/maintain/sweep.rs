//! The only place that deletes a shard, and only this node's own: what a *confirmed* catalogue index condemns, and
//! nothing else. The file goes first and the catalogue is told after, so that a crash in between only repeats a
//! removal; the other way round a forgotten file would stay for ever.

use super::Shared;
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, Condemned};
use farshore_core::limits::SWEEP_COPIES_MAX;
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
        // A glance at the own replica is free; only if it shows something the leader is asked to confirm.
        if shared.view()?.condemned(shared.own.id, None, 1)?.rows.is_empty() {
            return Ok(Pace::Idle);
        }
        let view = shared.confirmed_view().await?;
        let copies: Vec<Condemned> = view.condemned(shared.own.id, None, SWEEP_COPIES_MAX)?.rows;
        drop(view);
        if copies.is_empty() {
            return Ok(Pace::Idle);
        }
        for copy in &copies {
            // An own mistake here would delete another's data on the word of a wrong query.
            assert_eq!(copy.node, shared.own.id, "a node sweeps only its own copies");
            shared.store.remove(copy.shard).await?;
        }
        let swept = copies.len();
        shared.propose(Command::Swept { copies }).await?;
        tracing::debug!(swept, "condemned copies deleted");
        Ok(if swept == SWEEP_COPIES_MAX { Pace::Busy } else { Pace::Idle })
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.0.timing.maintain_every).await;
    }
}
