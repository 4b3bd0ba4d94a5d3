//! A node whose own replica of the catalogue is damaged: bytes at rest are not what was written. It goes on with nothing
//! of it, not even with what still looks right. It gives up its vote, since it can no longer keep what it has promised
//! with it; puts the damaged store away; and learns the catalogue anew from the others, as a newcomer does. Its shards
//! are served all the while.

use crate::config::Config;
use crate::identity::Claim;
use crate::listen::listen;
use crate::maintain::report::Reports;
use crate::raft::passport::Passport;
use crate::raft::reseat;
use crate::rpc;
use crate::store::{ShardStore, StoreError, StoreOptions};
use farshore_core::host::{Host, KvError, dir_of};
use farshore_core::id::NodeId;
use farshore_core::limits::{DISK_RESERVE_BYTES, RECOVERY_CALL_MS};
use farshore_core::topology::NodeRecord;
use farshore_proto::channel;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Tls;
use farshore_proto::wire::GiveUpVoteRequest;
use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a damaged replica is not given up. Waiting for the others is no error.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The shards cannot be served meanwhile.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nor at this address.
    #[error("listen on {0}: {1}")]
    Listen(String, io::Error),
    /// The damaged store cannot be put away.
    #[error(transparent)]
    Kv(#[from] KvError),
    /// The disk failed.
    #[error(transparent)]
    Io(io::Error),
}

/// Lies in the data directory from the moment that damage was met until the replica has been put away.
const DAMAGED_FILE: &str = "raft/damaged";
const DAMAGED: &[u8] = b"farshore replica is damaged\n";

/// Between two rounds of asking the others.
const ASK_PAUSE: Duration = Duration::from_secs(2);

/// Notes durably that the replica here is damaged, so that no later start takes it for a whole one.
pub async fn mark(host: &Host, why: &str) -> io::Result<()> {
    tracing::error!(
        why,
        "this node's replica of the catalogue is damaged; it will be learnt anew from the other nodes"
    );
    host.disk.write_slot(DAMAGED_FILE, 0, DAMAGED).await
}

/// Whether damage was noted here.
pub async fn is_marked(host: &Host) -> io::Result<bool> {
    Ok(host.disk.len(DAMAGED_FILE).await?.is_some())
}

/// Gives up the vote and the damaged replica. Returns once this node may start as one that has never had any; waits for
/// a leader for as long as there is none. Cancel-safe: whatever was done is done again.
pub async fn restore(host: &Host, config: &Config, tls: &Arc<Tls>, claim: Claim) -> Result<(), RestoreError> {
    let options = StoreOptions { capacity: config.capacity, reserve: DISK_RESERVE_BYTES };
    let (store, _) = ShardStore::open(host, config.cluster, options).await?;
    let listener = host.net.listen(&config.listen).await;
    let listener = listener.map_err(|e| RestoreError::Listen(config.listen.clone(), e))?;
    let routes = rpc::shard_routes(config.cluster, store.clone(), Arc::new(Reports::default()));
    let listening = listen(listener, tls.clone(), routes);

    let peers = Peers::new(host.net.clone(), tls.clone());
    let seeds = config.peers.iter().chain(config.bootstrap.iter().flatten());
    seeds.filter(|seed| seed.id != claim.owner.node).for_each(|seed| peers.set(seed.id, &seed.addr));
    let passport = Passport::new(claim, host.disk.clone());
    while let Err(why) = give_up_vote(&peers, &passport).await {
        tracing::warn!(why, "the damaged replica cannot be given up yet; shards are served meanwhile");
        tokio::time::sleep(ASK_PAUSE).await;
    }
    listening.stop().await;
    drop(store);

    host.kv.put_away().await?;
    let forgotten = async {
        reseat::forget_promises(host.disk.clone()).await?;
        host.disk.remove(DAMAGED_FILE).await?;
        host.disk.sync_dir(dir_of(DAMAGED_FILE)).await
    };
    forgotten.await.map_err(RestoreError::Io)?;
    tracing::warn!("the damaged replica was given up; this node learns the catalogue anew");
    Ok(())
}

/// Asks everybody until one who leads has taken this node out of the replicas. Whoever does not lead names who does.
async fn give_up_vote(peers: &Peers, passport: &Passport) -> Result<(), String> {
    let mut last = "no other node is known".to_string();
    let mut asked = BTreeSet::new();
    let mut next = None;
    while let Some(node) =
        next.take().or_else(|| peers.known().into_iter().find(|node| !asked.contains(node)))
    {
        asked.insert(node);
        match ask(peers, passport, node).await {
            Ok(None) => return Ok(()),
            Ok(Some(leader)) => {
                peers.set(leader.id, &leader.addr);
                last = format!("{} leads and was asked already", leader.name);
                next = (!asked.contains(&leader.id)).then_some(leader.id);
            }
            Err(why) => last = format!("{node}: {why}"),
        }
    }
    Err(last)
}

/// `None` if it was done; otherwise who leads.
async fn ask(peers: &Peers, passport: &Passport, node: NodeId) -> Result<Option<NodeRecord>, ApiError> {
    let line = peers.channel(node).ok_or_else(|| ApiError::Unreachable("no address".into()))?;
    let mut client = channel::raft(line);
    let call = client.give_up_vote(passport.stamp(node, GiveUpVoteRequest {}));
    let answer = tokio::time::timeout(Duration::from_millis(RECOVERY_CALL_MS), call).await;
    let answer = answer.map_err(|_| ApiError::Unreachable("no answer in time".into()))?;
    let answer = answer.map_err(ApiError::from_status)?.into_inner();
    answer.leader.map(NodeRecord::try_from).transpose()
}
