//! Reads again what was moved: every shard of every stripe that gave one up for a drain, a migration or a change of
//! policy. The leader's work. Each stripe is recorded as it was found, so that a successor goes on where this one stopped,
//! and the record closes when nothing more is to be moved or read.

use super::Shared;
use crate::catalogue::{CatalogueError, View};
use crate::worker::{Pace, WorkFailed, Worker};
use async_trait::async_trait;
use farshore_core::catalogue::{Command, PackRecord, StripeRead, Subject};
use farshore_core::id::PackNo;
use farshore_core::level::LEVEL_MIGRATE;
use farshore_core::limits::{PAGE_ROWS_MAX, READ_AGAIN_MS, VERIFIED_STRIPES_MAX};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::NodeState;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Stripes read in one unit of work.
const STRIPES_AT_ONCE: usize = 16;
/// Looks at a stripe before it is recorded with fewer good shards than the catalogue counts on; repair has its time
/// between them.
const LOOKS: u8 = 5;

/// The worker.
pub struct VerifyMoved {
    shared: Arc<Shared>,
    /// Stripes that were found short: how often, and not before when they are looked at again.
    short: BTreeMap<(Subject, PackNo), (u8, Instant)>,
}

impl VerifyMoved {
    /// One that has looked at nothing yet.
    pub fn new(shared: Arc<Shared>) -> Self {
        VerifyMoved { shared, short: BTreeMap::new() }
    }

    /// Reads some stripes of a subject; whether it did something.
    async fn read_some(&mut self, view: &View, subject: Subject) -> Result<bool, WorkFailed> {
        let now = Instant::now();
        let waiting = view.moved(subject, None, VERIFIED_STRIPES_MAX)?;
        let rests = |pack: &PackNo| self.short.get(&(subject, *pack)).is_some_and(|(_, until)| *until > now);
        let due: Vec<_> = waiting.into_iter().filter(|pack| !rests(pack)).take(STRIPES_AT_ONCE).collect();
        if due.is_empty() {
            return Ok(false);
        }
        let mut stripes = Vec::new();
        for no in due {
            let Some(pack) = view.pack(no)? else {
                stripes.push(StripeRead { pack: no, generation: 0, good: 0 });
                continue;
            };
            let all = u32::MAX >> (32 - pack.stripe.shards.len() as u32);
            let good = match mutant(Mutant::RecordUnread) {
                true => all,
                false => good_shards(&self.shared, view, &pack).await?,
            };
            let (looks, until) = self.short.entry((subject, no)).or_insert((0, now));
            (*looks, *until) = (*looks + 1, Instant::now() + self.shared.timing.maintain_every * 2);
            if good == all || *looks >= LOOKS {
                stripes.push(StripeRead { pack: no, generation: pack.stripe.generation, good });
                self.short.remove(&(subject, no));
            }
        }
        if !stripes.is_empty() {
            self.shared.propose_leading(Command::RecordVerified { subject, stripes, end: false }).await?;
        }
        Ok(true)
    }

    /// Closes a record whose subject has nothing left to move or read.
    async fn close(&self, view: &View) -> Result<bool, WorkFailed> {
        for (_, row) in view.verifications()?.into_iter().filter(|(_, row)| row.ended_ms.is_none()) {
            let subject = row.subject;
            let idle = match subject {
                Subject::Node(node) => {
                    let draining = view.node(node)?.is_some_and(|node| node.state == NodeState::Draining);
                    !draining || view.packs_held_by(node, PackNo(0), 1)?.rows.is_empty()
                }
                Subject::Repository(repo) => {
                    let (mut waits, mut from) = (false, Some(PackNo(0)));
                    while let Some(start) = from.filter(|_| !waits) {
                        (waits, from) = view.waits_for_code(repo, start, PAGE_ROWS_MAX)?;
                        tokio::task::yield_now().await;
                    }
                    !waits
                }
            };
            if idle && view.moved(subject, None, 1)?.is_empty() {
                let command = Command::RecordVerified { subject, stripes: Vec::new(), end: true };
                self.shared.propose_leading(command).await?;
                tracing::info!(?subject, stripes = row.stripes, short = row.short, "verification recorded");
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Has each holder that answers read its shard whole; a bit for each that is good. What is not is a suspect of its holder by
/// now.
pub async fn good_shards(shared: &Shared, view: &View, pack: &PackRecord) -> Result<u32, CatalogueError> {
    let mut looks = Vec::new();
    for (index, shard) in (0u8..).zip(&pack.stripe.shards) {
        let Some(node) = shard.node else { continue };
        let answers = view.node(node)?.is_some_and(|node| node.state.answers());
        if let Some(wanted) = pack.stripe.shard(pack.repo, index).filter(|_| answers) {
            looks.push(async move {
                let look = shared.shards.verify(node, wanted);
                match tokio::time::timeout(Duration::from_millis(READ_AGAIN_MS), look).await {
                    Ok(Ok(())) => 1 << index,
                    Ok(Err(error)) => {
                        tracing::warn!(pack = pack.no.0, index, %node, %error, "read a shard again");
                        0
                    }
                    Err(_) => {
                        tracing::warn!(pack = pack.no.0, index, %node, "a shard is not read again in time");
                        0
                    }
                }
            });
        }
    }
    Ok(join_all(looks).await.into_iter().fold(0, |good, bit: u32| good | bit))
}

#[async_trait]
impl Worker for VerifyMoved {
    fn name(&self) -> &'static str {
        "verify moved"
    }

    async fn work(&mut self) -> Result<Pace, WorkFailed> {
        let view = self.shared.view()?;
        if self.shared.leading().is_none() || view.level() < LEVEL_MIGRATE {
            self.short.clear();
            return Ok(Pace::Idle);
        }
        let mut busy = false;
        for subject in view.moved_subjects()? {
            busy |= self.read_some(&view, subject).await?;
        }
        if !busy {
            busy = self.close(&self.shared.view()?).await?;
        }
        Ok(if busy { Pace::Busy } else { Pace::Idle })
    }

    async fn wait(&mut self) {
        tokio::time::sleep(self.shared.timing.maintain_every).await;
    }
}
