//! Founding a cluster, once. The node that is given the list of founders makes them the first voters, but not before each of
//! them has said that it belongs to no other cluster; then it gives the cluster its name.
//!
//! A founder that cannot be asked is waited for: it may be the one that has been founded before.

use crate::config::Seed;
use crate::maintain::Shared;
use crate::raft::ConsensusError;
use crate::raft::passport::formation_of;
use crate::rpc::admin::{Seen, look_at};
use farshore_core::catalogue::{Command, Refusal, Reply};
use farshore_core::host::task::Owned;
use farshore_core::id::NodeId;
use farshore_core::retry::Budget;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Time after which asking starts afresh with short pauses.
const ROUND: Duration = Duration::from_secs(60);

/// Founds in the background, since the others may be started much later. Does nothing on a node that has taken part in
/// anything before. `others` are asked too, but nobody waits for them.
pub fn start(shared: Arc<Shared>, founders: Vec<Seed>, others: Vec<Seed>) -> Owned {
    Owned::spawn(async move {
        if let Err(why) = found(&shared, &founders, &others).await {
            shared.consensus.passport().oust(format!("found the cluster: {why}"));
        }
    })
}

/// The flow; an error says why there will never be a cluster of these founders.
async fn found(shared: &Shared, founders: &[Seed], others: &[Seed]) -> Result<(), String> {
    let view = shared.view().map_err(|e| e.to_string())?;
    if view.cluster().is_some() {
        tracing::info!("the cluster is formed already");
        return Ok(());
    }
    let begun = shared.consensus.has_begun().await.map_err(|e| e.to_string())?;
    if !begun {
        gather(shared, founders, others).await?;
    }
    name_cluster(shared).await;
    Ok(())
}

/// Makes the founders the first voters, unless they are already.
async fn gather(shared: &Shared, founders: &[Seed], others: &[Seed]) -> Result<(), String> {
    let ids: BTreeSet<NodeId> = founders.iter().map(|seed| seed.id).collect();
    let formation = formation_of(shared.cluster, &ids);
    let mut budget = Budget::new(ROUND);
    let formed = loop {
        let (asked, also) = tokio::join!(ask(shared, founders), ask(shared, others));
        if let Some(formed) = decide(formation, &asked, &also)? {
            break formed;
        }
        tracing::info!(founders = founders.len(), "waiting for all founders");
        if !budget.pause(shared.host.entropy.as_ref()).await {
            budget = Budget::new(ROUND);
        }
    };
    if !formed {
        let consensus = &shared.consensus;
        consensus.passport().join(formation).await.map_err(|e| e.to_string())?;
        let voters: Vec<(NodeId, String)> =
            founders.iter().map(|seed| (seed.id, seed.addr.clone())).collect();
        tracing::info!(voters = voters.len(), "forming the cluster");
        consensus.bootstrap(&voters).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}

/// Whether it was founded by these very founders already; nothing, if it cannot be known yet; an error if any of those
/// who answer was founded otherwise.
fn decide(
    formation: u64,
    founders: &[Option<Seen>],
    others: &[Option<Seen>],
) -> Result<Option<bool>, String> {
    let apart = |seen: &&Seen| seen.formation != 0 && seen.formation != formation;
    if let Some(seen) = founders.iter().chain(others).flatten().find(apart) {
        return Err(format!(
            "node {} belongs to a cluster that was founded before; a cluster is founded once",
            seen.node
        ));
    }
    if founders.iter().chain(others).flatten().any(|seen| seen.formed) {
        return Ok(Some(true));
    }
    Ok(founders.iter().all(Option::is_some).then_some(false))
}

async fn ask(shared: &Shared, seeds: &[Seed]) -> Vec<Option<Seen>> {
    let own = Seen { node: shared.own.id, formation: shared.consensus.passport().formation(), formed: false };
    let asked = seeds.iter().map(|seed| async move {
        match shared.peers.channel(seed.id) {
            _ if seed.id == own.node => Some(own),
            Some(peer) => look_at(peer).await,
            None => None,
        }
    });
    join_all(asked).await
}

/// Repeats until it is done.
async fn name_cluster(shared: &Shared) {
    loop {
        let mut budget = Budget::new(ROUND);
        let error: ConsensusError =
            match shared.consensus.propose(Command::FormCluster { cluster: shared.cluster }).await {
                Ok(Reply::Done | Reply::Refused(Refusal::AlreadyFormed)) => {
                    return tracing::info!("cluster formed");
                }
                Ok(reply) => return tracing::error!(?reply, "form the cluster"),
                Err(error) => error,
            };
        tracing::info!(%error, "waiting for a majority to form the cluster");
        budget.pause(shared.host.entropy.as_ref()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(node: u64, formation: u64, formed: bool) -> Option<Seen> {
        Some(Seen { node: NodeId(node), formation, formed })
    }

    #[test]
    fn a_cluster_is_founded_when_all_founders_are_free_and_never_beside_another() {
        let free = [seen(1, 0, false), seen(2, 0, false), seen(3, 7, false)];
        assert_eq!(decide(7, &free, &[]), Ok(Some(false)));
        assert_eq!(
            decide(7, &free, &[None, seen(4, 0, false)]),
            Ok(Some(false)),
            "others are not waited for"
        );
        assert_eq!(decide(7, &[free[0], None], &[]), Ok(None), "a founder that is silent is");
        assert_eq!(decide(7, &[free[0], None, seen(3, 7, true)], &[]), Ok(Some(true)));
        assert!(decide(7, &[free[0], seen(2, 8, true)], &[]).is_err());
        assert!(decide(7, &[free[0], seen(2, 8, false)], &[]).is_err());
        assert!(decide(7, &free, &[seen(9, 8, true)]).is_err(), "a node next to it knows better");
    }
}
