//! The model's migrations and verifications.

use super::model::{Model, malformed, no};
use farshore_core::catalogue::*;
use farshore_core::id::NodeId;
use farshore_core::topology::{NodeRecord, NodeState, Region};
use std::collections::{BTreeMap, BTreeSet};

impl Model {
    pub(super) fn frozen(&self) -> Option<Reply> {
        let cold = self.migrations.values().find(|migration| migration.cold)?;
        Some(no(Refusal::Frozen(cold.from.clone(), cold.to.clone())))
    }

    /// What is answered already, before anything is looked at.
    fn topology_answer(&self, request: [u8; 16], epoch: u64) -> Option<Reply> {
        let again = request != [0; 16] && request == self.intent.request && self.intent.epoch == epoch + 1;
        match self.intent.epoch == epoch {
            true => None,
            false if again => Some(Reply::Done),
            false => Some(no(Refusal::StaleTopology(self.intent.epoch))),
        }
    }

    pub(super) fn migrate(
        &mut self,
        request: [u8; 16],
        epoch: u64,
        from: Region,
        to: Region,
        cold: bool,
    ) -> Reply {
        if let Some(answer) = self.topology_answer(request, epoch) {
            return answer;
        }
        let clash = self.migrations.values().any(|m| [&from, &to].contains(&&m.from) || m.to == from);
        let takes = |n: &NodeRecord| n.region == to && n.state == NodeState::Up && n.capacity > 0;
        let leaving: BTreeSet<NodeId> =
            self.nodes.values().filter(|n| n.region == from && self.counts(n.id)).map(|n| n.id).collect();
        if clash || from == to || !self.nodes.values().any(takes) || leaving.is_empty() {
            return malformed();
        }
        for id in &leaving {
            self.nodes.get_mut(id).unwrap().state = NodeState::Draining;
        }
        self.intent.epoch += 1;
        self.intent.request = request;
        self.intent.staged.retain(|staged| !leaving.contains(&staged.node()));
        self.intent.leaving.extend(&leaving);
        let since_ms = self.time_ms;
        self.migrations.insert(from.clone(), Migration { from, to, cold, since_ms, nodes: leaving });
        Reply::Done
    }

    pub(super) fn end_migration(&mut self, request: [u8; 16], epoch: u64, from: Region, keep: bool) -> Reply {
        if let Some(answer) = self.topology_answer(request, epoch) {
            return answer;
        }
        let Some(migration) = self.migrations.remove(&from) else { return malformed() };
        for id in migration.nodes {
            self.intent.leaving.remove(&id);
            let node = self.nodes.get_mut(&id).unwrap();
            if node.state == NodeState::Retired {
                continue;
            }
            if !keep {
                return no(Refusal::NotEmpty(id));
            }
            if node.state == NodeState::Draining {
                node.state = NodeState::Up;
            }
        }
        self.intent.epoch += 1;
        self.intent.request = request;
        Reply::Done
    }

    pub(super) fn verified(&mut self, subject: Subject, stripes: &[StripeRead], end: bool) -> Reply {
        let is_open = |(row, _): &(Verification, _)| row.subject == subject && row.ended_ms.is_none();
        let open = self.verifications.iter().find(|(_, row)| is_open(row)).map(|(number, _)| *number);
        let number = open.unwrap_or_else(|| self.verifications.keys().last().map_or(1, |last| last + 1));
        let mut count = 0;
        for read in stripes {
            if !self.moved.contains(&(subject, read.pack)) {
                continue;
            }
            let pack = self.packs.get(&read.pack.0);
            if pack.is_some_and(|pack| read.good >> pack.stripe.shards.len() != 0) {
                return malformed();
            }
            if pack.is_some_and(|pack| pack.stripe.generation != read.generation) {
                continue;
            }
            self.moved.remove(&(subject, read.pack));
            count += 1;
            let Some(pack) = pack else { continue };
            let at_ms = self.time_ms;
            let begun = Verification {
                subject,
                begun_ms: at_ms,
                ended_ms: None,
                stripes: 0,
                good: 0,
                short: 0,
                weakest: None,
            };
            let (row, of) = self.verifications.entry(number).or_insert((begun, BTreeMap::new()));
            let (generation, good) = (read.generation, read.good);
            of.insert(read.pack, VerifiedStripe { stripe: pack.stripe.id, generation, good, at_ms });
            let have = (0..32).filter(|bit| read.good & (1 << bit) != 0).count();
            row.stripes += 1;
            row.good += have as u64;
            row.short += (pack.stripe.shards.len() - have) as u64;
            let spare = have as i16 - pack.stripe.scheme.k() as i16;
            row.weakest = Some(row.weakest.unwrap_or(spare).min(spare));
        }
        let waits = self.moved.iter().any(|(of, _)| *of == subject);
        if let Some((row, _)) = self.verifications.get_mut(&number).filter(|_| end && !waits) {
            row.ended_ms = Some(self.time_ms);
            count += 1;
        }
        Reply::Changed { count }
    }
}
