//! A node on the worst day. Two ways to begin, both by an operator's hand and with the node stopped:
//! [`Rescue::start`] serves the shards alone, so that a lost catalogue can be rebuilt (`recover/`);
//! [`recover_quorum`] makes the one replica that survives go on without its lost majority (`raft/reseat.rs`).

use crate::catalogue::Catalogue;
use crate::config::Config;
use crate::identity::Identity;
use crate::listen::{Listening, listen};
use crate::maintain::report::Reports;
use crate::raft::RaftStoreError;
use crate::raft::era::next_era;
use crate::raft::reseat::{self, Found, ReseatError, Seat, Unfinished};
use crate::recover::{self, Ground};
use crate::restore::{self, RestoreError};
use crate::rpc;
use crate::run::{StartError, check_cluster, own_id, own_record};
use crate::store::{ShardStore, StoreError, StoreOptions};
use farshore_core::health::NodeHealth;
use farshore_core::host::{Host, KvError, KvRole};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::limits::{DISK_RESERVE_BYTES, RECOVERY_CALL_MS};
use farshore_proto::peers::Peers;
use farshore_proto::shard_client::GrpcShards;
use farshore_proto::tls::{Credentials, Tls};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

/// A node that serves its shards and nothing else.
pub struct Rescue {
    ground: Arc<Ground>,
    listening: Listening,
}

impl Rescue {
    /// Opens the shards, looks at what is left of the replica, and waits for orders.
    pub async fn start(host: Host, config: Config, credentials: Credentials) -> Result<Self, StartError> {
        let tls = Arc::new(Tls::new(&credentials, host.clock.clone())?);
        let id = own_id(&tls, &config)?;
        claim_what_is_there(&host, Identity { cluster: config.cluster, node: id }).await?;
        let options = StoreOptions { capacity: config.capacity, reserve: DISK_RESERVE_BYTES };
        let (store, audit) = ShardStore::open(&host, config.cluster, options).await?;
        tracing::info!(?audit, "shards audited");
        let (remains, replica) = recover::remains(&host).await;
        tracing::info!(?remains, "looked for a replica");

        let listener = host.net.listen(&config.listen).await;
        let listener = listener.map_err(|e| StartError::Listen(config.listen.clone(), e))?;
        let own = own_record(id, &config, &listener.local_addr());
        let peers = Arc::new(Peers::new(host.net.clone(), tls.clone()));
        config.peers.iter().for_each(|seed| peers.set(seed.id, &seed.addr));
        peers.set(own.id, &own.addr);
        let ground = Arc::new(Ground {
            cluster: config.cluster,
            own,
            host,
            store: store.clone(),
            shards: Arc::new(GrpcShards::new(peers.clone())),
            peers,
            reached: NodeHealth::new(),
            remains,
            replica: Mutex::new((replica, None)),
            running: std::sync::Mutex::default(),
            finished: watch::Sender::new(false),
        });
        let routes = rpc::recovery_routes(&ground, Arc::new(Reports::default()));
        tracing::warn!("serving shards only, for a recovery of the catalogue");
        Ok(Rescue { ground, listening: listen(listener, tls, routes) })
    }

    /// Ends once the operator has said that the recovery is over. Cancel-safe.
    pub async fn finished(&self) {
        let mut finished = self.ground.finished.subscribe();
        // An error means that the ground is gone, which is an end too.
        let _ = finished.wait_for(|finished| *finished).await;
    }

    /// Lets running calls end and closes everything. A rebuild that is under way is cut off, and may be repeated.
    pub async fn stop(self) {
        drop(self.ground.running.lock().expect("no holder of this lock panics").take());
        self.listening.stop().await;
    }
}

/// As at a start, but never for an empty directory: claimed here, it would no longer be noticed as emptied.
async fn claim_what_is_there(host: &Host, identity: Identity) -> Result<(), StartError> {
    let disk = host.disk.as_ref();
    let claimed = Identity::is_claimed(disk).await?;
    if !claimed && disk.list("shards").await.map_err(StoreError::Io)?.is_empty() {
        return Err(StartError::NothingHere);
    }
    identity.claim(disk, host.entropy.as_ref()).await?;
    Ok(())
}

/// Why a replica does not go on alone.
#[derive(Debug, thiserror::Error)]
pub enum QuorumError {
    /// What a start would meet too.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The replica is no foundation.
    #[error("this replica cannot go on: {0}")]
    Reseat(#[from] ReseatError),
    /// It has never taken part in the catalogue.
    #[error("this node has no replica of the catalogue; choose a node that has one")]
    Pristine,
    /// There is no majority to lose.
    #[error("this node is the only voter; start it as usual")]
    Alone,
    /// What lies here is no replica.
    #[error(
        "a rebuild of the catalogue was interrupted on this node: repeat it (`farshore node recover`, then \
         `farshore cluster rebuild-catalogue`)"
    )]
    HalfRebuilt,
    /// It has met bytes that are not what was written, and would end on them again.
    #[error(
        "this node's replica of the catalogue is damaged: choose a node whose replica is whole, or, if there is none, \
         `farshore cluster rebuild-catalogue`"
    )]
    Damaged,
    /// The confirmation does not name this cluster.
    #[error(
        "{0}\nnothing was changed. If the other voters are lost for good and no survivor has a later log, run this \
         again with `--i-have-lost-the-other-voters {1}`"
    )]
    Unconfirmed(String, ClusterId),
    /// Another node lives. It may belong to a majority that this replica has never heard of.
    #[error(
        "node {0} answers at {1}: while a majority of the voters can be had, start the nodes; if it cannot, stop all of \
         them first, and choose the voter with the latest log"
    )]
    NodeAnswers(NodeId, String),
}

/// Makes this stopped node's replica the only voter of a new era. Without the right confirmation it only says where the
/// replica stands.
pub async fn recover_quorum(
    host: Host,
    config: Config,
    credentials: Credentials,
    confirmed: Option<&str>,
) -> Result<(Found, u32), QuorumError> {
    let tls = Arc::new(Tls::new(&credentials, host.clock.clone()).map_err(StartError::from)?);
    let id = own_id(&tls, &config)?;
    let identity = Identity { cluster: config.cluster, node: id };
    claim_what_is_there(&host, identity).await?;
    if restore::is_marked(&host).await.map_err(|e| StartError::from(RestoreError::Io(e)))? {
        return Err(QuorumError::Damaged);
    }
    let kv = host.kv.open(KvRole::Catalogue).await.map_err(StartError::from)?;
    let catalogue = Catalogue::open(kv.clone()).map_err(StartError::from)?;
    check_cluster(&catalogue, &config)?;
    let unfinished = reseat::unfinished(host.disk.as_ref()).await.map_err(RaftStoreError::Io);
    let unfinished = unfinished.map_err(StartError::from)?;
    if unfinished == Some(Unfinished::Rebuild) {
        return Err(QuorumError::HalfRebuilt);
    }
    let found = reseat::inspect(kv.clone(), host.disk.clone(), &catalogue).await?;
    may_go_on(&found, unfinished, id)?;
    if confirmed != Some(config.cluster.to_string().as_str()) {
        return Err(QuorumError::Unconfirmed(words(&found), config.cluster));
    }
    let view = catalogue.view().map_err(StartError::from)?;
    let nodes = view.nodes().map_err(StartError::from)?;
    let seeds = config.peers.iter().map(|seed| (seed.id, seed.addr.as_str()));
    let known = nodes.iter().map(|node| (node.id, node.addr.as_str()));
    refuse_if_any_answers(&host, &tls, everybody(id, seeds, &found, known)).await?;
    let own = own_record(id, &config, &config.listen);
    let seat = Seat {
        own: id,
        members: recover::members(&view, &own).map_err(StartError::from)?,
        era: next_era(found.era, host.clock.now_ms()),
        now_ms: host.clock.now_ms(),
    };
    reseat::reseat(kv, host.disk.clone(), &catalogue, &seat).await?;
    tracing::warn!(?found, ?seat, "this node goes on alone, by an operator's order");
    Ok((found, seat.era))
}

/// Whether there is a replica here, and a majority that it has lost. One that was interrupted is the only voter already,
/// and does not start before it has been through all of it.
fn may_go_on(found: &Found, unfinished: Option<Unfinished>, own: NodeId) -> Result<(), QuorumError> {
    if found.pristine {
        return Err(QuorumError::Pristine);
    }
    if found.voters == BTreeSet::from([own]) && unfinished.is_none() {
        return Err(QuorumError::Alone);
    }
    Ok(())
}

/// Every other node that anything here knows of, wherever it was said to listen. The replica's own word is not enough: the
/// others may have changed the membership, and have a majority, since it last heard of them.
fn everybody<'a>(
    own: NodeId,
    seeds: impl Iterator<Item = (NodeId, &'a str)>,
    found: &'a Found,
    known: impl Iterator<Item = (NodeId, &'a str)>,
) -> BTreeSet<(NodeId, String)> {
    let members = found.members.iter().map(|(node, addr)| (*node, addr.as_str()));
    let all = seeds.chain(members).chain(known).filter(|(node, _)| *node != own);
    all.map(|(node, addr)| (node, addr.to_owned())).collect()
}

/// Whoever runs may have what this replica lacks.
async fn refuse_if_any_answers(
    host: &Host,
    tls: &Arc<Tls>,
    nodes: BTreeSet<(NodeId, String)>,
) -> Result<(), QuorumError> {
    let asked = nodes.into_iter().map(|(node, addr)| async move {
        let book = Peers::new(host.net.clone(), tls.clone());
        book.set(node, &addr);
        let line = book.channel(node)?;
        rpc::admin::answers(line).await.then_some((node, addr))
    });
    match futures_util::future::join_all(asked).await.into_iter().flatten().next() {
        Some((node, addr)) => Err(QuorumError::NodeAnswers(node, addr)),
        None => Ok(()),
    }
}

/// Why a node's replica is not given up.
#[derive(Debug, thiserror::Error)]
pub enum RejoinError {
    /// What a start would meet too.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The replica's store is in use.
    #[error("the node is running; stop it first")]
    Running,
    /// The confirmation does not name this cluster.
    #[error(
        "this node's replica: {0}\nnothing was changed. To give it up and learn the catalogue anew from the others, run \
         this again with `--i-give-up-this-replica {1}`; the shards stay"
    )]
    Unconfirmed(String, ClusterId),
    /// A voter that forgets its votes could vote twice.
    #[error("by the word of {0} this node has a vote: it may not forget what it has promised")]
    Votes(NodeId),
    /// Nobody can say whether it has a vote.
    #[error(
        "no node confirms that this one has no vote: the others must be running and have a leader before this one can \
         learn the catalogue anew"
    )]
    NobodyConfirms,
}

/// Whether a stopped node may forget its replica: a leader must confirm that it has no vote. Answers what is given up.
/// The caller moves the replica's files away, and then calls [`forget`].
pub async fn may_rejoin(
    host: Host,
    config: Config,
    credentials: Credentials,
    confirmed: Option<&str>,
) -> Result<String, RejoinError> {
    let tls = Arc::new(Tls::new(&credentials, host.clock.clone()).map_err(StartError::from)?);
    let id = own_id(&tls, &config)?;
    let identity = Identity { cluster: config.cluster, node: id };
    claim_what_is_there(&host, identity).await?;
    if let Err(KvError::InUse) = host.kv.open(KvRole::Catalogue).await {
        return Err(RejoinError::Running);
    }
    let (remains, replica) = recover::remains(&host).await;
    drop(replica);
    if confirmed != Some(config.cluster.to_string().as_str()) {
        return Err(RejoinError::Unconfirmed(remains.words, config.cluster));
    }
    let peers = Peers::new(host.net.clone(), tls);
    config.peers.iter().filter(|seed| seed.id != id).for_each(|seed| peers.set(seed.id, &seed.addr));
    let deadline = Instant::now() + Duration::from_millis(REJOIN_WAIT_MS);
    loop {
        let asked = peers.known().into_iter().filter_map(|node| Some((node, peers.channel(node)?)));
        let asked = asked.map(|(node, line)| async move { (node, rpc::admin::has_vote(line, id).await) });
        let answers = futures_util::future::join_all(asked).await;
        if let Some((node, _)) = answers.iter().find(|(_, vote)| *vote == Some(true)) {
            return Err(RejoinError::Votes(*node));
        }
        if answers.iter().any(|(_, vote)| vote.is_some()) {
            return Ok(remains.words);
        }
        // A leader that was started a moment ago is still to be elected.
        if Instant::now() >= deadline {
            return Err(RejoinError::NobodyConfirms);
        }
        tokio::time::sleep(Duration::from_millis(REJOIN_WAIT_MS / 20)).await;
    }
}

/// Makes a node whose replica's files were moved away one that has promised nothing.
pub async fn forget(host: &Host) -> std::io::Result<()> {
    reseat::forget_promises(host.disk.clone()).await
}

/// A leader that confirms is waited for this long.
const REJOIN_WAIT_MS: u64 = 2 * RECOVERY_CALL_MS;

/// Where a replica stands, for the operator who compares survivors.
fn words(found: &Found) -> String {
    let voters: Vec<String> = found.voters.iter().map(NodeId::to_string).collect();
    format!(
        "last log entry: {} of term {} (era {}); in the catalogue up to {}; voters: {}",
        found.last_index,
        found.last_term,
        found.era,
        found.applied,
        voters.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(voters: &[u64], members: &[(u64, &str)]) -> Found {
        Found {
            voters: voters.iter().copied().map(NodeId).collect(),
            members: members.iter().map(|(node, addr)| (NodeId(*node), (*addr).to_owned())).collect(),
            ..Found::default()
        }
    }

    #[test]
    fn everybody_is_asked_and_not_only_the_voters_of_an_old_membership() {
        let found = found(&[1, 2, 3], &[(1, "one:1"), (2, "two:1"), (3, "three:1")]);
        let seeds = [(NodeId(1), "one:1"), (NodeId(4), "four:1")];
        let known = [(NodeId(2), "two:2"), (NodeId(5), "five:1")];
        let asked = everybody(NodeId(1), seeds.into_iter(), &found, known.into_iter());
        let asked: Vec<(u64, &str)> = asked.iter().map(|(node, addr)| (node.0, addr.as_str())).collect();
        assert_eq!(asked, [(2, "two:1"), (2, "two:2"), (3, "three:1"), (4, "four:1"), (5, "five:1")]);
    }

    #[test]
    fn an_interrupted_recovery_of_the_only_voter_may_be_repeated() {
        let (own, alone) = (NodeId(1), found(&[1], &[]));
        assert!(matches!(may_go_on(&alone, None, own), Err(QuorumError::Alone)));
        assert!(may_go_on(&alone, Some(Unfinished::Quorum), own).is_ok());
        assert!(may_go_on(&found(&[1, 2, 3], &[]), None, own).is_ok());
        let pristine = Found { pristine: true, ..alone };
        assert!(matches!(may_go_on(&pristine, Some(Unfinished::Quorum), own), Err(QuorumError::Pristine)));
    }
}
