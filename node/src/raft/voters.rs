//! Who should vote. Pure: nodes, present voters and up-to-date learners in, the wanted voters out.
//!
//! An odd number of voters, one per region first. Of all sets of a size the best is taken: the fewest lost voters, then
//! the fewest that are being emptied, then spread over regions, over providers, over zones, then witnesses before
//! others, then the fewest changes. Each rule is a sum over voters, or over the squares of how many share a domain, and
//! the domains lie inside each other; therefore taking the best node at each turn gives the best set.

use farshore_core::id::NodeId;
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::{BTreeMap, BTreeSet};

/// Fewest voters wanted once there are so many nodes, and most: more would only make every commit wait for more of them.
const VOTERS: (usize, usize) = (3, 7);

/// A node that may vote.
struct Candidate<'a> {
    id: NodeId,
    grade: Grade,
    provider: &'a str,
    region: &'a str,
    zone: &'a str,
    witness: bool,
    votes: bool,
}

/// How fit a voter is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Grade {
    /// It answers, or is expected back.
    Fit,
    /// It answers and is to leave.
    Leaving,
    /// It keeps its place only where nobody can take it.
    Lost,
}

/// The voters to be had at last. `fresh` are the replicas whose log is nearly complete: nobody else is given a vote.
pub fn choose_voters(
    nodes: &[NodeRecord],
    voters: &BTreeSet<NodeId>,
    fresh: &BTreeSet<NodeId>,
) -> BTreeSet<NodeId> {
    let candidates = candidates(nodes, voters, fresh);
    let most = most_voters(nodes);
    let sizes = (1..=most).step_by(2).filter(|size| *size <= candidates.len());
    // As many losses more as possible before the majority is gone; of equals the larger, whose commits are on more disks.
    let best =
        sizes.map(|size| best_of(&candidates, size)).max_by_key(|chosen| (spare(chosen), chosen.len()));
    let chosen = best.unwrap_or_default();
    // Before a cluster is formed there is nothing to choose from.
    if chosen.is_empty() { voters.clone() } else { chosen.into_iter().map(|c| c.id).collect() }
}

/// The voters after one step towards [`choose_voters`], if one is needed: one voter gives its vote to another, or the
/// number changes. A step never has fewer of the living among its voters than before, but to make the number smaller.
pub fn next_voters(
    nodes: &[NodeRecord],
    voters: &BTreeSet<NodeId>,
    fresh: &BTreeSet<NodeId>,
) -> Option<BTreeSet<NodeId>> {
    let wanted = choose_voters(nodes, voters, fresh);
    let grade_of = |id: &NodeId| {
        let node = nodes.iter().find(|node| node.id == *id);
        node.map_or(Grade::Fit, |node| grade(node.state))
    };
    let worst = voters.difference(&wanted).max_by_key(|id| grade_of(id)).copied();
    let heir = wanted.difference(voters).next().copied();
    // Two wait for a third that is expected, one that learns its replica anew perhaps: one alone would be worse than both.
    let expected = nodes.iter().filter(|node| grade(node.state) == Grade::Fit).count();
    let both_fit = voters.len() == 2 && voters.iter().all(|id| grade_of(id) == Grade::Fit);
    if both_fit && wanted.len() == 1 && expected > 2 {
        return None;
    }
    match (worst, heir) {
        (None, None) => None,
        (Some(worst), Some(heir)) => {
            let mut next = voters.clone();
            next.remove(&worst);
            next.insert(heir);
            Some(next)
        }
        // From three to five in one step: four voters survive no more than three do.
        _ => Some(wanted),
    }
}

/// Whether the cluster would have enough voters without this node. `voters` are those of today.
pub fn can_spare(nodes: &[NodeRecord], voters: &BTreeSet<NodeId>, leaving: NodeId) -> bool {
    if !voters.contains(&leaving) {
        return true;
    }
    let rest: Vec<NodeRecord> = nodes.iter().filter(|node| node.id != leaving).cloned().collect();
    let others = voters.iter().copied().filter(|id| *id != leaving).collect::<BTreeSet<_>>();
    // Whoever answers now will have caught up when its turn comes.
    let fresh = rest.iter().filter(|node| node.state == NodeState::Up).map(|node| node.id).collect();
    choose_voters(&rest, &others, &fresh).len() >= voters.len().min(VOTERS.0)
}

fn grade(state: NodeState) -> Grade {
    match state {
        NodeState::Up | NodeState::Suspect | NodeState::Down => Grade::Fit,
        NodeState::Draining => Grade::Leaving,
        NodeState::Lost | NodeState::Retired => Grade::Lost,
    }
}

/// An odd number: one voter per region, as far as the bounds allow. Regions that are lost count until an operator removes
/// their nodes; those that are being emptied do not.
fn most_voters(nodes: &[NodeRecord]) -> usize {
    let stays = |node: &&NodeRecord| !matches!(node.state, NodeState::Draining | NodeState::Retired);
    let regions: BTreeSet<&str> = nodes.iter().filter(stays).map(|node| node.region.as_str()).collect();
    let most = regions.len().clamp(VOTERS.0, VOTERS.1);
    most - usize::from(most.is_multiple_of(2))
}

fn candidates<'a>(
    nodes: &'a [NodeRecord],
    voters: &BTreeSet<NodeId>,
    fresh: &BTreeSet<NodeId>,
) -> Vec<Candidate<'a>> {
    let may = |node: &&NodeRecord| match node.state {
        NodeState::Retired => false,
        _ if voters.contains(&node.id) => true,
        state => state == NodeState::Up && fresh.contains(&node.id),
    };
    let known = nodes.iter().filter(may).map(|node| Candidate {
        id: node.id,
        grade: grade(node.state),
        provider: node.region.provider(),
        region: node.region.as_str(),
        zone: node.zone.as_ref().map_or("", |zone| zone.as_str()),
        witness: node.is_witness(),
        votes: voters.contains(&node.id),
    });
    // A founder that the catalogue has not heard of yet: nothing is known against it.
    let unknown = voters.iter().filter(|id| nodes.iter().all(|node| node.id != **id)).map(|id| Candidate {
        id: *id,
        grade: Grade::Fit,
        provider: "",
        region: "",
        zone: "",
        witness: false,
        votes: true,
    });
    known.chain(unknown).collect()
}

/// The best set of this size.
fn best_of<'c, 'a>(candidates: &'c [Candidate<'a>], size: usize) -> Vec<&'c Candidate<'a>> {
    let mut chosen: Vec<&Candidate> = Vec::new();
    let mut left: BTreeMap<NodeId, &Candidate> = candidates.iter().map(|c| (c.id, c)).collect();
    while chosen.len() < size {
        let rank = |c: &Candidate| {
            // Unknown nodes share no domain with anybody.
            let shared = |same: &dyn Fn(&Candidate) -> bool| {
                chosen.iter().filter(|other| !c.region.is_empty() && same(other)).count()
            };
            let region = shared(&|other| other.region == c.region);
            let provider = shared(&|other| other.provider == c.provider);
            let zone = shared(&|other| other.region == c.region && other.zone == c.zone);
            (c.grade, region, provider, zone, !c.witness, !c.votes, c.id)
        };
        let Some(best) = left.values().min_by_key(|c| rank(c)).copied() else { break };
        left.remove(&best.id);
        chosen.push(best);
    }
    chosen
}

/// How many voters more may be lost before the majority is; negative if it is.
fn spare(chosen: &[&Candidate]) -> isize {
    let living = chosen.iter().filter(|c| c.grade < Grade::Lost).count();
    living as isize - (chosen.len() / 2 + 1) as isize
}

#[cfg(test)]
#[path = "voters_test.rs"]
mod tests;
