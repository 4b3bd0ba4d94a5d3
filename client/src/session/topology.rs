//! Who belongs to the cluster, as an operator asks for it: look at what changes would do, stage them, enact them. Each
//! change names the epoch of the topology it was made for, so that two operators cannot both win.

use super::conversation::Conversation;
use crate::error::{Error, Result};
use bytes::Bytes;
use farshore_core::erasure::Scheme;
use farshore_core::host::{Entropy, random};
use farshore_core::limits::{NODES_LISTED_MAX, TOPOLOGY_CHANGES_MAX};
use farshore_core::topology::{Change, NodeRecord, Region};
use farshore_proto::channel::admin;
use farshore_proto::convert::list;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::sync::Arc;

/// What changes would do.
#[derive(Clone, PartialEq, Debug)]
pub struct TopologyPlan {
    /// Epoch it was made for.
    pub epoch: u64,
    /// The changes.
    pub changes: Vec<Change>,
    /// Packs looked at.
    pub packs: u64,
    /// Shards that get another home.
    pub moves: u64,
    /// Their bytes.
    pub moved_bytes: u64,
    /// Bytes by link: from a region, to a region.
    pub links: Vec<(String, String, u64)>,
    /// Nodes, and bytes of shards on each before and after.
    pub nodes: Vec<(NodeRecord, u64, u64)>,
    /// What becomes of the repositories' policies.
    pub policies: Vec<PolicyOutlook>,
    /// How safe the packs are.
    pub before: PackStrength,
    /// How safe they will be.
    pub after: PackStrength,
    /// Why it would be refused; empty if it would not.
    pub refused: Vec<String>,
    /// What the moves would cost by the budgets' prices, in millionths of the currency unit.
    pub price_micros: u64,
}

/// How safe all packs are together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PackStrength {
    /// Packs at full strength.
    pub at_target: u64,
    /// Good shards beyond k of the weakest pack.
    pub spare: Option<i64>,
    /// The same after the worst loss of one region.
    pub spare_after_region: Option<i64>,
}

/// What becomes of one policy.
#[derive(Clone, PartialEq, Debug)]
pub struct PolicyOutlook {
    /// What must be survived.
    pub survive: String,
    /// Repositories that ask for it.
    pub repositories: u64,
    /// What new packs are coded with now, or why they cannot be.
    pub before: std::result::Result<PolicyCode, String>,
    /// And then.
    pub after: std::result::Result<PolicyCode, String>,
}

/// A scheme, and the chance that a stripe of it is lost within a year, if the model knows such a scheme.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct PolicyCode {
    /// k, m and spread.
    pub scheme: Scheme,
    /// If nodes fail and nothing else does.
    pub loss_nodes: Option<f64>,
    /// If whole regions do too.
    pub loss_regions: Option<f64>,
}

/// The operator's calls.
pub struct Operator {
    pub(super) conversation: Arc<Conversation>,
    entropy: Arc<dyn Entropy>,
}

impl Operator {
    /// Through whichever node answers.
    pub fn new(conversation: Arc<Conversation>, entropy: Arc<dyn Entropy>) -> Self {
        Operator { conversation, entropy }
    }

    /// What changes would do, besides those that are staged, or `alone`. `added` are thought of as there.
    pub async fn plan(&self, changes: &[Change], alone: bool, added: &[NodeRecord]) -> Result<TopologyPlan> {
        let added = added.iter().cloned().map(Into::into).collect();
        let changes = to_wire(changes)?;
        self.planned(wire::PlanTopologyRequest { changes, alone, added, ..Default::default() }).await
    }

    /// What emptying one region into another would do, and nothing else.
    pub async fn plan_migration(&self, from: &Region, to: &Region) -> Result<TopologyPlan> {
        let (migrate_from, migrate_to) = (from.to_string(), to.to_string());
        let request =
            wire::PlanTopologyRequest { alone: true, migrate_from, migrate_to, ..Default::default() };
        self.planned(request).await
    }

    async fn planned(&self, request: wire::PlanTopologyRequest) -> Result<TopologyPlan> {
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).plan_topology(request).await }
        });
        plan_of(reply.await?).map_err(|e| Error::Protocol(e.to_string()))
    }

    /// Replaces what is staged; the answer is the new epoch.
    pub async fn stage(&self, epoch: u64, changes: &[Change]) -> Result<u64> {
        let request = wire::StageTopologyRequest { request: self.token(), epoch, changes: to_wire(changes)? };
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).stage_topology(request).await }
        });
        Ok(reply.await?.epoch)
    }

    /// Enacts these changes, or what is staged; the answer is the new epoch.
    pub async fn apply(&self, epoch: u64, changes: Option<&[Change]>) -> Result<u64> {
        let request = wire::ApplyTopologyRequest {
            request: self.token(),
            epoch,
            changes: to_wire(changes.unwrap_or_default())?,
            staged: changes.is_none(),
        };
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).apply_topology(request).await }
        });
        Ok(reply.await?.epoch)
    }

    /// Empties a region into another; while a `cold` migration is under way nothing is written. The answer is the new
    /// epoch.
    pub async fn migrate(&self, epoch: u64, from: &Region, to: &Region, cold: bool) -> Result<u64> {
        let (from, to) = (from.to_string(), to.to_string());
        let request = wire::MigrateRequest { request: self.token(), epoch, from, to, cold };
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).migrate(request).await }
        });
        Ok(reply.await?.epoch)
    }

    /// Ends the migration of a region: what has moved stays where it is, and so does what has not.
    pub async fn cancel_migration(&self, epoch: u64, from: &Region) -> Result<u64> {
        let request = wire::CancelMigrationRequest { request: self.token(), epoch, from: from.to_string() };
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).cancel_migration(request).await }
        });
        Ok(reply.await?.epoch)
    }

    fn token(&self) -> Bytes {
        Bytes::copy_from_slice(&random::<16>(self.entropy.as_ref()))
    }
}

fn to_wire(changes: &[Change]) -> Result<Vec<wire::TopologyChange>> {
    if changes.len() > TOPOLOGY_CHANGES_MAX {
        return Err(Error::Invalid(format!("at most {TOPOLOGY_CHANGES_MAX} changes in one plan")));
    }
    Ok(changes.iter().map(|change| (*change).into()).collect())
}

fn plan_of(reply: wire::PlanTopologyReply) -> std::result::Result<TopologyPlan, ApiError> {
    let node = |n: wire::NodeBytes| {
        let node = n.node.ok_or_else(|| ApiError::Invalid("a node is missing".into()))?;
        Ok((NodeRecord::try_from(node)?, n.before, n.after))
    };
    let most = NODES_LISTED_MAX;
    Ok(TopologyPlan {
        epoch: reply.epoch,
        changes: list(reply.changes, TOPOLOGY_CHANGES_MAX, "changes", Change::try_from)?,
        packs: reply.packs,
        moves: reply.moves,
        moved_bytes: reply.moved_bytes,
        links: list(reply.links, most * most, "links", link_of)?,
        nodes: list(reply.nodes, most, "nodes", node)?,
        policies: list(reply.policies, usize::from(u16::MAX), "policies", policy_of)?,
        before: strength_of(reply.before),
        after: strength_of(reply.after),
        refused: reply.refused,
        price_micros: reply.price_micros,
    })
}

/// A link as the wire gives it.
pub(super) fn link_of(link: wire::LinkBytes) -> std::result::Result<(String, String, u64), ApiError> {
    Ok((link.from, link.to, link.bytes))
}

fn policy_of(policy: wire::PolicyOutlook) -> std::result::Result<PolicyOutlook, ApiError> {
    let code = |code: Option<wire::PolicyCode>| {
        let code = code.unwrap_or_default();
        let (loss_nodes, loss_regions) = (code.loss_nodes, code.loss_regions);
        match code.scheme {
            Some(scheme) => Ok(Ok(PolicyCode { scheme: scheme.try_into()?, loss_nodes, loss_regions })),
            None => Ok::<_, ApiError>(Err(code.impossible)),
        }
    };
    let (before, after) = (code(policy.before)?, code(policy.after)?);
    Ok(PolicyOutlook { survive: policy.survive, repositories: policy.repositories, before, after })
}

fn strength_of(strength: Option<wire::PackStrength>) -> PackStrength {
    let wire::PackStrength { at_target, spare, spare_after_region } = strength.unwrap_or_default();
    PackStrength { at_target, spare, spare_after_region }
}
