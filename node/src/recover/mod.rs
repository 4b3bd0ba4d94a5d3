//! A catalogue rebuilt from the shards of stopped nodes, when no replica is left. One node does it for all; the operator
//! has stopped every node but for its shards (`farshore node recover`) and says so. Read [`rebuild`]: it is the flow.
//!
//! What comes back is the newest export of which every part can be read, and on top of it the log entries of the exports
//! after it, replayed as they were applied when they were new and compared with the state hash they then had.

pub mod adopt;

pub mod load;

pub mod inventory;

pub mod chain;

use crate::catalogue::{Catalogue, CatalogueError, View};
use crate::raft::RaftStoreError;
use crate::raft::era::{era_of, next_era};
use crate::raft::image::open_note;
use crate::raft::reseat::{self, ReseatError, Seat};
use crate::raft::types::LogId;
use crate::recover::chain::{Chain, Export, choose};
use crate::recover::inventory::Sighting;
use crate::store::ShardStore;
use farshore_core::health::NodeHealth;
use farshore_core::host::{Host, Kv, KvRole};
use farshore_core::id::{ClusterId, ExportId, NodeId};
use farshore_core::limits::RECOVERY_CALL_MS;
use farshore_core::peer::ShardIo;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::channel;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::sync::watch;

/// Why a catalogue is not rebuilt. Each says what to do next.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// There is something better to go on from.
    #[error(
        "node {0} still has a replica of the catalogue ({1}), which knows more than any export: go on from it with \
         `farshore node recover-quorum`; or, to give it up, move `catalogue` and `raft` out of its data directory"
    )]
    Alive(String, String),
    /// The cluster is not as dead as it was said to be.
    #[error(
        "node {0} is running: a catalogue is rebuilt only when no node has one. Stop it and start it with \
         `farshore node recover`; if the others have a leader, `farshore node rejoin` is what this node needs"
    )]
    Running(NodeId),
    /// Somebody takes this for another cluster.
    #[error("this node belongs to cluster {0}")]
    Foreign(ClusterId),
    /// The asked node's own store cannot take a catalogue.
    #[error(
        "this node cannot take the catalogue: {0}; move `catalogue` and `raft` out of its data directory"
    )]
    Occupied(String),
    /// One at a time.
    #[error("a rebuild is under way on this node")]
    Busy,
    /// Nothing to build from.
    #[error("no export of the catalogue can be read from the {0} nodes that answer: {1}")]
    NoExport(usize, String),
    /// The catalogue's store failed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// The log could not be begun.
    #[error(transparent)]
    Reseat(#[from] ReseatError),
    /// The disk failed.
    #[error("write the Raft mark: {0}")]
    Io(#[from] io::Error),
}

/// What is left of a node's own replica.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remains {
    /// Highest era it has been part of.
    pub era: u32,
    /// Its last log entry; 0 if there is no replica.
    pub last: u64,
    /// Nothing is lost if a rebuilt catalogue is put here.
    pub free: bool,
    /// The same for people.
    pub words: String,
}

/// A node that is stopped but for its shards.
pub struct Ground {
    /// Its cluster.
    pub cluster: ClusterId,
    /// This node as it describes itself.
    pub own: NodeRecord,
    /// The seams.
    pub host: Host,
    /// Its shards.
    pub store: Arc<ShardStore>,
    /// The other nodes under recovery.
    pub peers: Arc<Peers>,
    /// Their shards.
    pub shards: Arc<dyn ShardIo>,
    /// Which of them failed a moment ago.
    pub reached: NodeHealth,
    /// What is left of the replica here.
    pub remains: Remains,
    /// The replica's store, if it opens; and whether a catalogue was rebuilt in it.
    pub replica: Mutex<(Option<Replica>, bool)>,
    /// Set once the operator has said that the recovery is over.
    pub finished: watch::Sender<bool>,
}

/// The store of a replica that takes part in nothing.
#[derive(Clone)]
pub struct Replica {
    kv: Arc<dyn Kv>,
    catalogue: Catalogue,
}

/// Opens what is left of the replica here, and says what it is.
pub async fn remains(host: &Host) -> (Remains, Option<Replica>) {
    let era = reseat::era_of_mark(host.disk.clone()).await;
    let broken = |why: String| (Remains { era, last: 0, free: false, words: why }, None);
    let kv = match host.kv.open(KvRole::Catalogue).await {
        Ok(kv) => kv,
        Err(why) => return broken(format!("its store does not open: {why}")),
    };
    let catalogue = match Catalogue::open(kv.clone()) {
        Ok(catalogue) => catalogue,
        Err(why) => return broken(format!("its catalogue does not open: {why}")),
    };
    let applied = catalogue.applied();
    let remains = match reseat::inspect(kv.clone(), host.disk.clone(), &catalogue).await {
        Ok(found) if found.pristine && applied == 0 => free(era, "none"),
        Ok(found) if found.pristine => free(era, "none, but for an unfinished rebuild"),
        // The promises outlived what was promised.
        Err(ReseatError::Log(RaftStoreError::LogLost { found, .. })) if *found == Default::default() => {
            free(era, "none; only its promises are left")
        }
        Ok(found) => {
            let last = found.last_index.max(applied);
            let words = format!("log up to entry {last} of term {}", found.last_term);
            Remains { era: era.max(found.era), last, free: false, words }
        }
        Err(why) => Remains { era, last: 0, free: false, words: format!("damaged: {why}") },
    };
    (remains, Some(Replica { kv, catalogue }))
}

fn free(era: u32, words: &str) -> Remains {
    Remains { era, last: 0, free: true, words: words.into() }
}

/// What was, or would be, rebuilt.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rebuilt {
    /// It was done.
    pub done: bool,
    /// Last log entry of the base.
    pub base_to: u64,
    /// Catalogue time after it.
    pub base_ms: u64,
    /// Last log entry recovered.
    pub to: u64,
    /// Catalogue time after it.
    pub time_ms: u64,
    /// Increments on top of the base.
    pub increments: u32,
    /// Snapshots in it.
    pub snapshots: u64,
    /// Packs in it.
    pub packs: u64,
    /// Repositories in it; known only once it was done.
    pub repos: u64,
    /// Era in which the log goes on.
    pub era: u32,
    /// Nodes that were not reached.
    pub silent: Vec<String>,
    /// Exports that cannot be used, with the reason.
    pub passed_over: Vec<String>,
    /// Packs that the recovered catalogue does not know although they can be read.
    pub unknown_packs: u64,
    /// Those of them that were taken in.
    pub adopted_packs: u64,
}

/// Rebuilds the catalogue on this node from the exports that the named nodes hold; without `confirm` only says what it
/// would come to. Nothing becomes live before the last step, so that an interrupted rebuild is simply repeated.
pub async fn rebuild(
    ground: &Ground,
    nodes: &[(NodeId, String)],
    confirm: bool,
    tell: impl Fn(String) + Send + Sync,
) -> Result<Rebuilt, RecoverError> {
    let mut replica = ground.replica.try_lock().map_err(|_| RecoverError::Busy)?;
    let store = replica.0.clone().filter(|_| ground.remains.free);
    let store = store.ok_or_else(|| RecoverError::Occupied(ground.remains.words.clone()))?;
    nodes.iter().for_each(|(node, addr)| ground.peers.set(*node, addr));

    let standing = ask_all(ground).await;
    let mut silent: BTreeMap<NodeId, String> = BTreeMap::new();
    let mut highest_era = ground.remains.era;
    for (node, answer) in &standing {
        match answer {
            Ok(found) if found.replica_applied > 0 => {
                return Err(RecoverError::Alive(found.name.clone(), found.replica.clone()));
            }
            Ok(found) => highest_era = highest_era.max(found.era),
            Err(why) => drop(silent.insert(*node, format!("{node}: {why}"))),
        }
    }
    refuse_if_running(ground, silent.keys().copied()).await?;
    let answering: Vec<NodeId> =
        standing.into_iter().filter(|(_, answer)| answer.is_ok()).map(|(node, _)| node).collect();

    tell(format!("reading what {} nodes hold of exports", answering.len()));
    let sightings = inventory::exports(ground, &answering, &mut silent).await;
    let (exports, mut passed_over) = inventory::assemble(ground, &sightings).await;

    let mut unusable = BTreeSet::<ExportId>::new();
    let chain = loop {
        let Some(chain) = choose(&exports, &unusable) else {
            let why = if passed_over.is_empty() { "none was found".into() } else { passed_over.join("; ") };
            return Err(RecoverError::NoExport(answering.len(), why));
        };
        if !confirm {
            break chain;
        }
        tell(format!("loading the catalogue up to log entry {}", chain.to(&exports)));
        match load::load(ground, &store.catalogue, &exports, &sightings, &chain).await? {
            Ok(()) => break chain,
            Err((export, why)) => {
                passed_over.push(format!("export {}: {why}", export.short()));
                unusable.insert(export);
            }
        }
    };
    passed_over.extend(beyond(&exports, &chain, &unusable));
    let mut result = Rebuilt { silent: silent.into_values().collect(), passed_over, ..of(&exports, &chain) };
    if !confirm {
        return Ok(result);
    }

    tell("looking for packs that the catalogue does not know".into());
    (result.unknown_packs, result.adopted_packs) = adopt::adopt(ground, &store.catalogue, &answering).await?;
    let view = store.catalogue.view()?;
    result.repos = view.counts().repos;
    for node in view.nodes()?.iter().filter(|node| !answering.contains(&node.id)) {
        ground.peers.set(node.id, &node.addr);
    }
    let others = ground.peers.known().into_iter().filter(|node| !answering.contains(node));
    refuse_if_running(ground, others).await?;
    result.silent.extend(not_asked(&view, &answering, &result.silent)?);
    let noted: Option<LogId> = open_note(store.catalogue.note(crate::catalogue::NoteKey::Applied)?)?;
    highest_era = highest_era.max(noted.map_or(0, |id| era_of(id.leader_id.term)));
    result.era = next_era(highest_era, ground.host.clock.now_ms());

    store.catalogue.flush().await?;
    reseat::forget_promises(ground.host.disk.clone()).await?;
    let seat = Seat {
        own: ground.own.id,
        members: members(&view, &ground.own)?,
        era: result.era,
        now_ms: ground.host.clock.now_ms(),
    };
    reseat::reseat(store.kv, ground.host.disk.clone(), &store.catalogue, &seat).await?;
    replica.1 = true;
    result.done = true;
    tracing::warn!(?result, "catalogue rebuilt from exports");
    Ok(result)
}

/// Every node that is to have a replica, and where it listens.
pub fn members(view: &View, own: &NodeRecord) -> Result<BTreeMap<NodeId, String>, CatalogueError> {
    let nodes = view.nodes()?.into_iter().filter(|node| node.state != NodeState::Retired);
    let mut members: BTreeMap<NodeId, String> = nodes.map(|node| (node.id, node.addr)).collect();
    members.insert(own.id, own.addr.clone());
    Ok(members)
}

/// What every node in the book says of itself.
async fn ask_all(ground: &Ground) -> Vec<(NodeId, Result<wire::StandingReply, String>)> {
    let limit = Duration::from_millis(RECOVERY_CALL_MS);
    let asked = ground.peers.known().into_iter().map(|node| async move {
        let Some(line) = ground.peers.channel(node) else { return (node, Err("no address".into())) };
        let mut client = channel::recovery(line);
        let answer = tokio::time::timeout(limit, client.standing(wire::StandingRequest {})).await;
        let answer = match answer {
            Ok(Ok(reply)) => Ok(reply.into_inner()),
            Ok(Err(status)) => Err(ApiError::from_status(status).to_string()),
            Err(_) => Err("no answer in time".into()),
        };
        (node, answer)
    });
    futures_util::future::join_all(asked).await
}

/// A node that takes part in a catalogue has a better one than any that is rebuilt, and would stop on hearing of it.
async fn refuse_if_running(ground: &Ground, nodes: impl Iterator<Item = NodeId>) -> Result<(), RecoverError> {
    let limit = Duration::from_millis(RECOVERY_CALL_MS);
    let asked = nodes.filter_map(|node| Some((node, ground.peers.channel(node)?)));
    let asked = asked.map(|(node, line)| async move {
        let mut admin = channel::admin(line);
        let answer = tokio::time::timeout(limit, admin.status(wire::StatusRequest {})).await;
        matches!(answer, Ok(Ok(_))).then_some(node)
    });
    let running = futures_util::future::join_all(asked).await.into_iter().flatten().next();
    running.map_or(Ok(()), |node| Err(RecoverError::Running(node)))
}

fn of(exports: &[Export], chain: &Chain) -> Rebuilt {
    let base = &exports[chain.base];
    let last = chain.increments.last().map_or(base, |at| &exports[*at]);
    Rebuilt {
        base_to: base.to,
        base_ms: base.time_ms,
        to: last.to,
        time_ms: last.time_ms,
        increments: chain.increments.len() as u32,
        snapshots: last.snapshots,
        packs: last.packs,
        ..Rebuilt::default()
    }
}

/// Exports that lead further than the chain and are not part of it.
fn beyond(exports: &[Export], chain: &Chain, unusable: &BTreeSet<ExportId>) -> Vec<String> {
    let to = chain.to(exports);
    let further = exports.iter().filter(|export| export.to > to && !unusable.contains(&export.id));
    let words = further.map(|export| {
        let why = match &export.complete {
            Err(why) => why.clone(),
            Ok(()) => format!("the log entries from {} to {} are missing", to + 1, export.from),
        };
        format!("export {} up to log entry {}: {why}", export.id.short(), export.to)
    });
    words.collect()
}

/// Nodes that the recovered catalogue knows and nobody has named.
fn not_asked(view: &View, asked: &[NodeId], silent: &[String]) -> Result<Vec<String>, CatalogueError> {
    let nodes = view.nodes()?.into_iter();
    let nodes = nodes.filter(|node| node.state != NodeState::Retired && !asked.contains(&node.id));
    let nodes = nodes.filter(|node| !silent.iter().any(|known| known.starts_with(&node.id.to_string())));
    Ok(nodes.map(|node| format!("{}: {} at {} was not asked", node.id, node.name, node.addr)).collect())
}

/// A sighting by its stripe.
pub type Sightings = BTreeMap<farshore_core::id::StripeId, Sighting>;
