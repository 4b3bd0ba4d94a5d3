//! Who has a replica and who votes. Only the leader changes it, one step at a time, each step an entry of the log.
//!
//! Every node of the catalogue is at least a learner. Which of them should vote is decided in `voters.rs`.

use super::Consensus;
use super::types::Metrics;
use super::voters::next_voters;
use farshore_core::id::NodeId;
use farshore_core::topology::{NodeRecord, NodeState};
use openraft::error::{ClientWriteError, InitializeError, RaftError};
use openraft::{BasicNode, ChangeMembers};
use std::collections::{BTreeMap, BTreeSet};

/// Why membership did not change.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// This node does not lead, or another change is under way: ask again later.
    #[error("membership cannot change now: {0}")]
    Later(String),
    /// The change makes no sense.
    #[error("membership change refused: {0}")]
    Refused(String),
    /// The replica has stopped.
    #[error("this node's catalogue replica has stopped: {0}")]
    Stopped(String),
}

/// One step towards the membership that the catalogue asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// These nodes become learners, or get another address.
    SetNodes(BTreeMap<NodeId, String>),
    /// These learners lose their replica.
    RemoveLearners(BTreeSet<NodeId>),
    /// These nodes vote, and no others.
    SetVoters(BTreeSet<NodeId>),
}

/// What a plan looks at.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Members {
    /// Every replica and the address the log has for it.
    pub nodes: BTreeMap<NodeId, String>,
    /// Those that vote.
    pub voters: BTreeSet<NodeId>,
    /// While a change of voters is under way: those that will vote. Until it ends, both majorities are needed.
    pub joining: Option<BTreeSet<NodeId>>,
    /// Learners whose log is nearly complete.
    pub fresh: BTreeSet<NodeId>,
}

/// The next step from `members` towards what the catalogue's nodes ask for, if any. Pure.
pub fn plan(members: &Members, nodes: &[NodeRecord]) -> Option<Step> {
    // Whoever led when the change began may not have lived to end it.
    if let Some(voters) = &members.joining {
        return Some(Step::SetVoters(voters.clone()));
    }
    let wanted = |node: &&NodeRecord| node.state != NodeState::Retired;
    let stale = |node: &&NodeRecord| members.nodes.get(&node.id) != Some(&node.addr);
    // A lost node is not invited anew: it has to come back first.
    let known = |node: &&NodeRecord| members.nodes.contains_key(&node.id) || node.state.counts();
    let set: BTreeMap<NodeId, String> =
        nodes.iter().filter(wanted).filter(known).filter(stale).map(|n| (n.id, n.addr.clone())).collect();
    if !set.is_empty() {
        return Some(Step::SetNodes(set));
    }
    if let Some(voters) = next_voters(nodes, &members.voters, &members.fresh) {
        return Some(Step::SetVoters(voters));
    }
    let retired = nodes.iter().filter(|n| n.state == NodeState::Retired).map(|n| n.id);
    let gone: BTreeSet<NodeId> =
        retired.filter(|id| members.nodes.contains_key(id) && !members.voters.contains(id)).collect();
    if gone.is_empty() { None } else { Some(Step::RemoveLearners(gone)) }
}

impl Consensus {
    /// Whether this replica has ever taken part in anything.
    pub async fn has_begun(&self) -> Result<bool, MembershipError> {
        self.inner.replica.is_initialized().await.map_err(|e| MembershipError::Stopped(e.to_string()))
    }

    /// Makes these nodes the first voters, if this replica has never taken part in anything. False if it has: a
    /// cluster is formed once.
    pub async fn bootstrap(&self, voters: &[(NodeId, String)]) -> Result<bool, MembershipError> {
        let replica = &self.inner.replica;
        if self.has_begun().await? {
            return Ok(false);
        }
        let members: BTreeMap<u64, BasicNode> =
            voters.iter().map(|(id, addr)| (id.0, BasicNode::new(addr))).collect();
        match replica.initialize(members).await {
            Ok(()) => Ok(true),
            Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(false),
            Err(RaftError::APIError(e)) => Err(MembershipError::Refused(e.to_string())),
            Err(RaftError::Fatal(e)) => Err(MembershipError::Stopped(e.to_string())),
        }
    }

    /// Makes a node known to the log as a learner, or gives it another address. Leader only.
    pub async fn admit(&self, node: NodeId, addr: &str) -> Result<(), MembershipError> {
        self.enact(Step::SetNodes(BTreeMap::from([(node, addr.to_string())]))).await
    }

    /// Takes the next step towards what the catalogue's nodes ask for. True if one was taken: call again. Leader only.
    pub async fn reconcile(&self, nodes: &[NodeRecord]) -> Result<bool, MembershipError> {
        if !self.is_leader() {
            return Err(MembershipError::Later("this node does not lead".into()));
        }
        for node in nodes {
            self.inner.peers.set(node.id, &node.addr);
        }
        let metrics = self.inner.replica.metrics();
        let members = members_of(&metrics.borrow(), self.inner.tuning.keep_logs);
        let Some(step) = plan(&members, nodes) else { return Ok(false) };
        tracing::info!(?step, "change membership");
        self.enact(step).await.map(|()| true)
    }

    /// Makes a node no replica at all, so that nothing it has promised counts any more. Only then is it sure to be taken for
    /// one that knows nothing when it comes back. Leader only.
    pub async fn expel(&self, node: NodeId) -> Result<(), MembershipError> {
        if !self.is_leader() {
            return Err(MembershipError::Later("this node does not lead".into()));
        }
        let members = members_of(&self.inner.replica.metrics().borrow(), self.inner.tuning.keep_logs);
        if members.joining.is_some() {
            return Err(MembershipError::Later("a change of voters is under way".into()));
        }
        if !members.nodes.contains_key(&node) {
            return Ok(());
        }
        if !members.voters.contains(&node) {
            return self.enact(Step::RemoveLearners(BTreeSet::from([node]))).await;
        }
        let rest: BTreeSet<NodeId> = members.voters.iter().copied().filter(|voter| *voter != node).collect();
        if rest.is_empty() {
            return Err(MembershipError::Refused("it is the only voter".into()));
        }
        self.enact(Step::SetVoters(rest)).await?;
        self.enact(Step::RemoveLearners(BTreeSet::from([node]))).await
    }

    async fn enact(&self, step: Step) -> Result<(), MembershipError> {
        let ids = |nodes: BTreeSet<NodeId>| nodes.into_iter().map(|n| n.0).collect::<BTreeSet<u64>>();
        let change = match step {
            Step::SetNodes(nodes) => ChangeMembers::SetNodes(
                nodes.into_iter().map(|(id, addr)| (id.0, BasicNode::new(addr))).collect(),
            ),
            Step::RemoveLearners(nodes) => ChangeMembers::RemoveNodes(ids(nodes)),
            Step::SetVoters(nodes) => ChangeMembers::ReplaceAllVoters(ids(nodes)),
        };
        // A former voter stays as a learner: its shards may still be there.
        let changed = self.inner.replica.change_membership(change, true);
        match tokio::time::timeout_at(self.deadline(), changed).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::Fatal(e))) => Err(MembershipError::Stopped(e.to_string())),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
                Err(MembershipError::Later("this node does not lead".into()))
            }
            Ok(Err(RaftError::APIError(e))) => Err(MembershipError::Refused(e.to_string())),
            Err(_) => Err(MembershipError::Later("no majority agreed in time".into())),
        }
    }
}

fn members_of(metrics: &Metrics, lag_max: u64) -> Members {
    let config = metrics.membership_config.membership();
    let last = metrics.last_log_index.unwrap_or(0);
    let caught_up = |at: Option<u64>| at.is_some_and(|at| at + lag_max >= last);
    let replication = metrics.replication.iter().flatten();
    Members {
        nodes: config.nodes().map(|(id, node)| (NodeId(*id), node.addr.clone())).collect(),
        voters: config.voter_ids().map(NodeId).collect(),
        joining: match config.get_joint_config().as_slice() {
            [_, .., last] => Some(last.iter().copied().map(NodeId).collect()),
            _ => None,
        },
        fresh: replication
            .filter(|(_, at)| caught_up(at.map(|id| id.index)))
            .map(|(id, _)| NodeId(*id))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: u64, region: &str, state: NodeState) -> NodeRecord {
        NodeRecord {
            id: NodeId(id),
            name: "n".parse().unwrap(),
            region: region.parse().unwrap(),
            zone: None,
            addr: format!("n{id}:1"),
            capacity: 1,
            state,
        }
    }
    fn members(nodes: &[u64], voters: &[u64], fresh: &[u64]) -> Members {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Members {
            nodes: nodes.iter().map(|id| (NodeId(*id), format!("n{id}:1"))).collect(),
            voters: ids(voters),
            joining: None,
            fresh: ids(fresh),
        }
    }
    use NodeState::*;

    #[test]
    fn unknown_and_moved_nodes_are_set_first() {
        let mut members = members(&[1, 2], &[1], &[1, 2]);
        members.nodes.insert(NodeId(2), "old:1".into());
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Up), node(3, "a/c", Up), node(4, "a/c", Lost)];
        let set = BTreeMap::from([(NodeId(2), "n2:1".into()), (NodeId(3), "n3:1".into())]);
        assert_eq!(plan(&members, &nodes), Some(Step::SetNodes(set)));
    }

    #[test]
    fn a_voter_that_has_to_go_gives_its_vote_to_a_learner_that_is_up_to_date() {
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Lost), node(3, "a/c", Up), node(4, "a/b", Up)];
        let fresh = members(&[1, 2, 3, 4], &[1, 2, 3], &[1, 3, 4]);
        let voters = BTreeSet::from([1, 3, 4].map(NodeId));
        assert_eq!(plan(&fresh, &nodes), Some(Step::SetVoters(voters)));
        let behind = members(&[1, 2, 3, 4], &[1, 2, 3], &[1, 3]);
        assert_eq!(plan(&behind, &nodes), None);
    }

    /// The leader of the first step of a change died before the second: nobody took it, since the lost voter had an heir
    /// already, and the lost one kept its place in one of two majorities for ever.
    #[test]
    fn a_change_that_was_begun_is_ended_first() {
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Lost), node(3, "a/c", Up), node(4, "a/b", Up)];
        let last = BTreeSet::from([1, 3, 4].map(NodeId));
        let joint = members(&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 3, 4]);
        let joint = Members { joining: Some(last.clone()), ..joint };
        assert_eq!(plan(&joint, &nodes), Some(Step::SetVoters(last)));
    }

    #[test]
    fn a_retired_node_gives_up_its_vote_and_then_its_replica() {
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Retired), node(3, "a/c", Up), node(4, "a/c", Up)];
        let voting = members(&[1, 2, 3, 4], &[1, 2, 3], &[1, 3, 4]);
        assert_eq!(plan(&voting, &nodes), Some(Step::SetVoters(BTreeSet::from([1, 3, 4].map(NodeId)))));
        let gone = members(&[1, 2, 3, 4], &[1, 3, 4], &[1, 3, 4]);
        assert_eq!(plan(&gone, &nodes), Some(Step::RemoveLearners(BTreeSet::from([NodeId(2)]))));
    }
}
