//! Who has a replica and who votes. Only the leader changes it, one step at a time, each step an entry of the log.
//!
//! Every node of the catalogue is at least a learner. A lost voter is replaced by a learner of its region; which nodes
//! should vote beyond that is not decided here.

use super::Consensus;
use super::types::Metrics;
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
    if let Some(voters) = replace_lost_voter(members, nodes) {
        return Some(Step::SetVoters(voters));
    }
    if let Some(voters) = raise_lone_voter(members, nodes) {
        return Some(Step::SetVoters(voters));
    }
    let retired = nodes.iter().filter(|n| n.state == NodeState::Retired).map(|n| n.id);
    let gone: BTreeSet<NodeId> =
        retired.filter(|id| members.nodes.contains_key(id) && !members.voters.contains(id)).collect();
    if gone.is_empty() { None } else { Some(Step::RemoveLearners(gone)) }
}

/// After a recovery one node votes alone, which is no state to stay in: as soon as those have caught up that a new
/// cluster of these nodes would have as voters, they vote too. One region after the other, an odd number, at most five.
fn raise_lone_voter(members: &Members, nodes: &[NodeRecord]) -> Option<BTreeSet<NodeId>> {
    let voter = *members.voters.iter().next().filter(|_| members.voters.len() == 1)?;
    let (mut up, mut rounds) = (Vec::new(), BTreeMap::<&str, usize>::new());
    let able = nodes.iter().filter(|node| node.state == NodeState::Up || node.id == voter);
    // The present voter is the first of its region.
    let (first, rest): (Vec<_>, Vec<_>) = able.partition(|node| node.id == voter);
    for node in first.into_iter().chain(rest) {
        let round = rounds.entry(node.region.as_str()).or_default();
        *round += 1;
        up.push((*round, node.id != voter, node.id));
    }
    up.sort_unstable();
    let wanted = match up.len().min(rounds.len().clamp(3, 5)) {
        even if even % 2 == 0 => even.saturating_sub(1),
        odd => odd,
    };
    let chosen: BTreeSet<NodeId> = up.into_iter().take(wanted).map(|(_, _, id)| id).collect();
    let caught_up = chosen.iter().all(|id| *id == voter || members.fresh.contains(id));
    (chosen.len() > 1 && chosen.contains(&voter) && caught_up).then_some(chosen)
}

/// The voters with one lost or retired member exchanged for an up-to-date learner of its region. One at a time, so
/// that every step keeps all but one of the majority it had.
fn replace_lost_voter(members: &Members, nodes: &[NodeRecord]) -> Option<BTreeSet<NodeId>> {
    let lost = nodes.iter().filter(|n| matches!(n.state, NodeState::Lost | NodeState::Retired));
    lost.filter(|lost| members.voters.contains(&lost.id)).find_map(|lost| {
        let heir = nodes.iter().find(|n| {
            n.state == NodeState::Up
                && n.region == lost.region
                && members.fresh.contains(&n.id)
                && !members.voters.contains(&n.id)
        })?;
        let mut voters = members.voters.clone();
        voters.remove(&lost.id);
        voters.insert(heir.id);
        Some(voters)
    })
}

impl Consensus {
    /// Makes these nodes the first voters, if this replica has never taken part in anything. False if it has: a
    /// cluster is formed once.
    pub async fn bootstrap(&self, voters: &[(NodeId, String)]) -> Result<bool, MembershipError> {
        let replica = &self.inner.replica;
        if replica.is_initialized().await.map_err(|e| MembershipError::Stopped(e.to_string()))? {
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
    fn a_lost_voter_gives_its_vote_to_a_fresh_learner_of_its_region_only() {
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Lost), node(3, "a/c", Up), node(4, "a/b", Up)];
        let fresh = members(&[1, 2, 3, 4], &[1, 2, 3], &[1, 3, 4]);
        let voters = BTreeSet::from([1, 3, 4].map(NodeId));
        assert_eq!(plan(&fresh, &nodes), Some(Step::SetVoters(voters)));
        let behind = members(&[1, 2, 3, 4], &[1, 2, 3], &[1, 3]);
        assert_eq!(plan(&behind, &nodes), None);
        let elsewhere = [node(1, "a/a", Up), node(2, "a/b", Lost), node(3, "a/c", Up), node(4, "a/c", Up)];
        assert_eq!(plan(&fresh, &elsewhere), None);
    }

    /// The leader of the first step of a change died before the second: nobody took it, since the lost voter had an heir
    /// already, and the lost one kept its place in one of two majorities for ever.
    #[test]
    fn a_change_that_was_begun_is_ended_first() {
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Lost), node(3, "a/c", Up), node(4, "a/b", Up)];
        let last = BTreeSet::from([1, 3, 4].map(NodeId));
        let joint = members(&[1, 2, 3, 4], &[1, 2, 3, 4], &[1, 3, 4]);
        assert_eq!(plan(&joint, &nodes), None);
        let joint = Members { joining: Some(last.clone()), ..joint };
        assert_eq!(plan(&joint, &nodes), Some(Step::SetVoters(last)));
    }

    #[test]
    fn a_lone_voter_gets_company_from_other_regions_once_it_has_caught_up() {
        let nodes = [
            node(1, "a/a", Up),
            node(2, "a/a", Up),
            node(3, "a/b", Down),
            node(4, "a/b", Up),
            node(5, "a/c", Up),
        ];
        let all = [1, 2, 3, 4, 5];
        let voters = BTreeSet::from([2, 4, 5].map(NodeId));
        assert_eq!(plan(&members(&all, &[2], &[1, 4, 5]), &nodes), Some(Step::SetVoters(voters)));
        assert_eq!(plan(&members(&all, &[2], &[1, 4]), &nodes), None, "one is behind");
        assert_eq!(plan(&members(&all, &[1, 2], &all), &nodes), None, "two are no accident");
        assert_eq!(
            plan(&members(&[1, 2], &[1], &[1, 2]), &nodes[..2]),
            None,
            "two voters are worse than one"
        );
    }

    #[test]
    fn a_retired_learner_goes_and_a_retired_voter_stays_until_replaced() {
        let members = members(&[1, 2, 3], &[1, 2], &[1, 2, 3]);
        let nodes = [node(1, "a/a", Up), node(2, "a/b", Retired), node(3, "a/c", Retired)];
        assert_eq!(plan(&members, &nodes), Some(Step::RemoveLearners(BTreeSet::from([NodeId(3)]))));
    }
}
