//! Shards out to the nodes, a bounded number of packs at a time. A node that is down costs spare shards; too many, and the
//! run ends with an error that names them.

use super::Context;
use super::pack::FullPack;
use crate::api::Topology;
use crate::error::{Error, Result};
use crate::format::Spare;
use farshore_core::catalogue::PackCommit;
use farshore_core::host::compute;
use farshore_core::placement::{Candidate, Level, candidates};
use farshore_core::scatter::{Scattered, floor_holds, scatter};
use farshore_core::stripe::{Coding, Stripe, encode};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::mpsc::{Receiver, Sender};

/// A pack whose shards are durable, not yet known to the catalogue.
#[derive(Debug)]
pub struct Uploaded {
    /// What to commit.
    pub pack: PackCommit,
    /// Bytes of shards sent.
    pub sent: u64,
    /// Some shard could not be placed as the policy wants; repair owes it.
    pub degraded: bool,
}

/// The stage.
pub struct Upload<'a> {
    /// Nodes, processors, policy.
    pub ctx: &'a Context,
    /// Who exists.
    pub topology: &'a Topology,
    /// How to code.
    pub coding: Coding,
    /// Where the memory of packs goes that have been sent.
    pub memory: Arc<Spare<Vec<u8>>>,
    /// Where uploaded packs go.
    pub out: Sender<Uploaded>,
}

impl Upload<'_> {
    /// Runs until the last pack is full. How many are on their way at once is bounded by their slots.
    pub async fn run(self, mut packs: Receiver<FullPack>) -> Result<()> {
        let candidates = candidates(&self.topology.nodes);
        let mut flying = FuturesUnordered::new();
        let mut open = true;
        while open || !flying.is_empty() {
            tokio::select! {
                biased;
                done = flying.next(), if !flying.is_empty() => {
                    if let Some(done) = done {
                        // Whoever stopped listening has an error to report, which ends this stage too.
                        let _ = self.out.send(done?).await;
                    }
                }
                pack = packs.recv(), if open => match pack {
                    Some(pack) => flying.push(self.upload(pack, &candidates)),
                    None => open = false,
                },
            }
        }
        Ok(())
    }

    async fn upload(&self, full: FullPack, candidates: &[Candidate]) -> Result<Uploaded> {
        let FullPack { pack, slot } = full;
        let coding = self.coding;
        let stripe = compute(&*self.ctx.host.compute, move || encode(coding, pack)).await;
        let stripe = stripe.map_err(|e| Error::corrupt("stripe", e))?;
        let scattered = scatter(&*self.ctx.shards, &self.ctx.health, candidates, &stripe.puts).await;
        if !floor_holds(&scattered.shards, coding.scheme, self.ctx.repo.policy.floor_nodes) {
            return Err(self.below_floor(&scattered));
        }
        let uploaded = describe(&stripe, scattered);
        let Stripe { pack, puts } = stripe;
        drop(puts);
        pack.into_memory().into_iter().for_each(|memory| self.memory.give(memory));
        drop(slot);
        Ok(uploaded)
    }

    fn below_floor(&self, scattered: &Scattered) -> Error {
        let held = scattered.shards.iter().filter(|shard| shard.node.is_some()).count();
        let mut missing: BTreeSet<String> =
            scattered.failed.iter().map(|(node, _)| self.topology.name_of(*node)).collect();
        missing.extend(
            self.topology.nodes.iter().filter(|n| !n.state.takes_shards()).map(|n| n.name.to_string()),
        );
        let missing: Vec<String> = missing.into_iter().collect();
        let scheme = self.coding.scheme;
        Error::BelowFloor(format!(
            "{held} of {} shards of a pack found a node ({scheme} code, {} further node(s) must be expendable); not reached: {}",
            scheme.n(),
            self.ctx.repo.policy.floor_nodes,
            if missing.is_empty() { "none".into() } else { missing.join(", ") },
        ))
    }
}

fn describe(stripe: &Stripe, scattered: Scattered) -> Uploaded {
    let held = scattered.shards.iter().filter(|shard| shard.node.is_some()).count();
    let degraded = held < stripe.puts.len() || scattered.level != Level::Full;
    let pack = stripe.to_commit(scattered.shards);
    Uploaded { sent: held as u64 * pack.shard_len, pack, degraded }
}
