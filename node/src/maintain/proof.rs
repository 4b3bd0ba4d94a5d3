//! Proves this node's own replica: reads every row of the catalogue as it lies on the disk, checksums and all, and adds
//! them up to the state hash that the replica has agreed on. What was written long ago and is read by nobody would
//! otherwise rot unseen until the day on which it is the only copy. What is met is noted by the store (`kv/record.rs`)
//! and ends the node, which then learns its replica anew (`restore.rs`).

use super::Shared;
use crate::catalogue::{ImageWriter, StateHash};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use std::sync::Arc;
use tokio::time::Instant;

/// Reading takes at most about a tenth of a core.
const READ_PAUSE_FACTOR: u32 = 10;

/// The worker. The first pass begins at the start of the node.
pub struct Proof {
    shared: Arc<Shared>,
    pass: Option<ImageWriter>,
    hash: StateHash,
}

impl Proof {
    /// A pass that begins at once.
    pub fn new(shared: Arc<Shared>) -> Self {
        Proof { shared, pass: None, hash: StateHash::default() }
    }

    fn end(&mut self, pass: &ImageWriter) {
        if self.hash == pass.state_hash() {
            tracing::debug!(rows = pass.rows(), applied = pass.applied(), "replica proved");
            return;
        }
        let what = format!("its rows add up to {} and not to {}", self.hash, pass.state_hash());
        // A mistake of ours would look the same on all replicas; one that leads is not given up for that.
        if self.shared.leading().is_some() {
            tracing::error!(what, applied = pass.applied(), "this leader's catalogue contradicts itself");
        } else {
            self.shared.consensus.catalogue().note_damage(what);
        }
    }
}

#[async_trait]
impl Worker for Proof {
    fn name(&self) -> &'static str {
        "proof"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        if self.shared.view()?.cluster().is_none() {
            return Ok(Pace::Throttled(self.shared.timing.maintain_every));
        }
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => {
                self.hash = StateHash::default();
                ImageWriter::begin(self.shared.consensus.catalogue())?
            }
        };
        let began = Instant::now();
        let Some(page) = pass.next_page()? else {
            self.end(&pass);
            return Ok(Pace::Idle);
        };
        self.hash = pass.add_up(self.hash, &page)?;
        self.pass = Some(pass);
        Ok(Pace::Throttled(began.elapsed() * READ_PAUSE_FACTOR))
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.prove_every).await;
    }
}
