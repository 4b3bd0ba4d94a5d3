//! A catalogue rebuilt from the shards of stopped nodes, when no replica is left. One node does it for all; the operator
//! has stopped every node but for its shards (`farshore node recover`) and says so. Read [`rebuild`]: it is the flow.
//!
//! What comes back is the newest export of which every part can be read, and on top of it the log entries of the exports
//! after it, replayed as they were applied when they were new and compared with the state hash they then had.

pub mod adopt;

pub mod load;

pub mod inventory;

pub mod listing;

pub mod chain;

pub mod patience;

#[cfg(test)]
mod testkit;

#[cfg(test)]
mod recover_test;

use crate::catalogue::{Catalogue, CatalogueError, View};
use crate::raft::RaftStoreError;
use crate::raft::era::{era_of, next_era};
use crate::raft::image::open_note;
use crate::raft::reseat::{self, ReseatError, Seat, Unfinished};
use crate::raft::types::LogId;
use crate::recover::chain::{Chain, Export, choose};
use crate::recover::inventory::{Inventory, Sighting};
use crate::store::ShardStore;
use farshore_core::health::NodeHealth;
use farshore_core::host::task::Owned;
use farshore_core::host::{Host, Kv, KvRole};
use farshore_core::id::{ClusterId, ExportId, NodeId};
use farshore_core::limits::RECOVERY_CALL_MS;
use farshore_core::peer::ShardIo;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::channel;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::collections::BTreeMap;
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
    /// A replica that nobody can go on from, and that must not be overwritten by itself.
    #[error(
        "node {0} has a replica that is of no use as it is ({1}): if there is no whole one elsewhere, stop it, move \
         `catalogue` and `raft` out of its data directory, then start `farshore node recover` again"
    )]
    Damaged(String, String),
    /// Two of them would each begin a life of their own.
    #[error(
        "the catalogue was rebuilt on node {0}, or is being: run the command again while that node answers"
    )]
    Elsewhere(String),
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
        "this node cannot take the catalogue: {0}; stop it, move `catalogue` and `raft` out of its data directory, then \
         start `farshore node recover` again"
    )]
    Occupied(String),
    /// One at a time.
    #[error("a rebuild is under way on this node and goes on by itself; ask again in a while")]
    Busy,
    /// Nothing irreversible was done.
    #[error(
        "more could be had than the catalogue up to log entry {0} of era {1}, and nothing was changed:\n{2}\nBring the \
         nodes that are missing under recovery and name them in the profile; to do without, repeat with `--accept-less`"
    )]
    Less(u64, u32, String),
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
    /// What was left of the replica here when this node was started.
    pub remains: Remains,
    /// The replica's store, if it opens; and what was rebuilt in it.
    pub replica: Mutex<(Option<Replica>, Option<Rebuilt>)>,
    /// A confirmed rebuild. It does not end with the call that ordered it.
    pub running: std::sync::Mutex<Option<Owned>>,
    /// Set once the operator has said that the recovery is over.
    pub finished: watch::Sender<bool>,
}

/// The store of a replica that takes part in nothing.
#[derive(Clone)]
pub struct Replica {
    kv: Arc<dyn Kv>,
    catalogue: Catalogue,
}

impl Replica {
    /// Whether a rebuild has left something in it that no start accepts.
    pub fn is_half_built(&self) -> bool {
        self.catalogue.applied() > 0
    }
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
    match reseat::unfinished(host.disk.as_ref()).await {
        // Whatever log is here was to be a part of it.
        Ok(Some(Unfinished::Rebuild)) => return (free(era, HALF_REBUILT), Some(Replica { kv, catalogue })),
        Ok(Some(Unfinished::Quorum) | None) => {}
        Err(why) => return broken(format!("its files cannot be read: {why}")),
    }
    let remains = match reseat::inspect(kv.clone(), host.disk.clone(), &catalogue).await {
        Ok(found) if found.pristine && applied == 0 => free(era, "none"),
        Ok(found) if found.pristine => free(era, HALF_REBUILT),
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

const HALF_REBUILT: &str = "none, but for an unfinished rebuild";

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
    /// Shards of known packs that were recorded where they lie now.
    pub moved_shards: u64,
}

/// What the operator has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Order {
    /// Do it.
    pub confirm: bool,
    /// Also if more could be had.
    pub accept_less: bool,
}

/// Rebuilds the catalogue on this node from the exports that the named nodes hold; if that is not confirmed it only says
/// what it would come to. Nothing becomes live before the last step, so that an interrupted rebuild is simply repeated;
/// one that was done is told again.
pub async fn rebuild(
    ground: &Ground,
    nodes: &[(NodeId, String)],
    order: Order,
    tell: impl Fn(String) + Send + Sync,
) -> Result<Rebuilt, RecoverError> {
    let mut replica = ground.replica.try_lock().map_err(|_| RecoverError::Busy)?;
    if let Some(done) = &replica.1 {
        return Ok(done.clone());
    }
    let store = replica.0.clone().filter(|_| ground.remains.free);
    let store = store.ok_or_else(|| RecoverError::Occupied(ground.remains.words.clone()))?;
    nodes.iter().for_each(|(node, addr)| ground.peers.set(*node, addr));

    let standing = ask_all(ground).await;
    let silent = standing.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().err()?)));
    let silent: BTreeMap<NodeId, String> =
        silent.map(|(node, why)| (node, format!("{node}: {why}"))).collect();
    refuse_if_occupied(ground.own.id, standing.iter().filter_map(|(_, answer)| answer.as_ref().ok()))?;
    refuse_if_running(ground, silent.keys().copied()).await?;
    let found = standing.iter().filter_map(|(node, answer)| Some((*node, answer.as_ref().ok()?)));
    let (answering, eras): (Vec<NodeId>, Vec<u32>) = found.map(|(node, found)| (node, found.era)).unzip();

    tell(format!("reading what {} nodes hold of exports", answering.len()));
    let Inventory { sightings, mut doubts } = inventory::exports(ground, &answering).await;
    // The operator has just had an answer from these.
    let named = nodes.iter().filter_map(|(node, _)| silent.get(node));
    doubts.extend(named.map(|why| format!("{why}, although it did a moment ago")));
    let assembled = inventory::assemble(ground, &sightings, silent.len()).await;
    let exports = assembled.exports;
    let parts = |count: u64, why| (count > 0).then(|| format!("{count} parts of exports {why}"));
    doubts.extend(parts(assembled.unread, "cannot be read now, and may lead further"));
    let gone = parts(assembled.gone, "are beyond reading: too few shards of them are left");

    let mut unusable = BTreeMap::<ExportId, String>::new();
    let chain = loop {
        let Some(chain) = choose(&exports, &unusable) else {
            let mut why = doubts;
            why.extend(gone);
            why.extend(exports.iter().map(|export| why_not(export, &unusable)));
            let why = if why.is_empty() { "none was found".into() } else { why.join("; ") };
            return Err(RecoverError::NoExport(answering.len(), why));
        };
        if !order.confirm {
            break chain;
        }
        tell(format!("loading the catalogue up to log entry {}", chain.last(&exports).to));
        match load::load(ground, &store.catalogue, &exports, &sightings, &chain).await? {
            Ok(()) => break chain,
            Err((export, why)) => drop(unusable.insert(export, why)),
        }
    };
    let (less, other) = left_out(&exports, &chain, &unusable);
    doubts.extend(less);
    let passed_over = doubts.iter().cloned().chain(other).chain(gone).collect();
    let mut result =
        Rebuilt { silent: silent.values().cloned().collect(), passed_over, ..of(&exports, &chain) };
    if !order.confirm {
        return Ok(result);
    }

    let view = store.catalogue.view()?;
    let unasked = not_asked(&view, &answering, &silent)?;
    doubts.extend(unasked.iter().cloned());
    if !doubts.is_empty() && !order.accept_less {
        let last = chain.last(&exports);
        return Err(RecoverError::Less(last.to, last.era, doubts.join("\n")));
    }
    for node in view.nodes()?.iter().filter(|node| !answering.contains(&node.id)) {
        ground.peers.set(node.id, &node.addr);
    }
    refuse_others(ground, &answering).await?;
    result.silent.extend(unasked);
    result.repos = view.counts().repos;
    drop(view);

    tell("looking for packs and shards that the catalogue does not know".into());
    let adopted = adopt::adopt(ground, &store.catalogue, &answering).await?;
    (result.unknown_packs, result.adopted_packs) = (adopted.unknown, adopted.adopted);
    result.moved_shards = adopted.moved;
    result.passed_over.extend(adopted.passed_over);
    // That may have taken long.
    refuse_others(ground, &answering).await?;

    let noted: Option<LogId> = open_note(store.catalogue.note(crate::catalogue::NoteKey::Applied)?)?;
    let eras = eras.into_iter().chain(exports.iter().map(|export| export.era));
    let eras = eras.chain([ground.remains.era, noted.map_or(0, |id| era_of(id.leader_id.term))]);
    result.era = next_era(eras.max().unwrap_or(0), ground.host.clock.now_ms());
    store.catalogue.flush().await?;
    let seat = Seat {
        own: ground.own.id,
        members: members(&store.catalogue.view()?, &ground.own)?,
        era: result.era,
        now_ms: ground.host.clock.now_ms(),
    };
    reseat::reseat_rebuilt(store.kv, ground.host.disk.clone(), &store.catalogue, &seat).await?;
    result.done = true;
    replica.1 = Some(result.clone());
    tracing::warn!(?result, "catalogue rebuilt from exports");
    Ok(result)
}

/// A replica that is left anywhere comes before any export, and one that is damaged is for the operator to judge.
fn refuse_if_occupied<'a>(
    own: NodeId,
    mut found: impl Iterator<Item = &'a wire::StandingReply> + Clone,
) -> Result<(), RecoverError> {
    if let Some(node) = found.clone().find(|node| node.rebuilding && node.node != own.0) {
        return Err(RecoverError::Elsewhere(node.name.clone()));
    }
    let Some(node) = found.find(|node| node.occupied || node.replica_applied > 0) else { return Ok(()) };
    let (name, words) = (node.name.clone(), node.replica.clone());
    match node.replica_applied {
        0 => Err(RecoverError::Damaged(name, words)),
        _ => Err(RecoverError::Alive(name, words)),
    }
}

/// As [`refuse_if_running`], for all that are not under recovery.
async fn refuse_others(ground: &Ground, answering: &[NodeId]) -> Result<(), RecoverError> {
    let others = ground.peers.known().into_iter().filter(|node| !answering.contains(node));
    refuse_if_running(ground, others).await
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
    let last = chain.last(exports);
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

/// Exports that lead further than the chain, and others that would be part of it if they could be used.
fn left_out(
    exports: &[Export],
    chain: &Chain,
    unusable: &BTreeMap<ExportId, String>,
) -> (Vec<String>, Vec<String>) {
    let end = chain.last(exports).end();
    let (further, others): (Vec<&Export>, Vec<&Export>) =
        exports.iter().partition(|export| export.end() > end);
    let others = others.into_iter().filter(|export| unusable.contains_key(&export.id));
    let words = |export: &Export| why_not(export, unusable);
    (further.into_iter().map(words).collect(), others.map(words).collect())
}

fn why_not(export: &Export, unusable: &BTreeMap<ExportId, String>) -> String {
    let why = match (&export.complete, unusable.get(&export.id)) {
        (Err(why), _) | (Ok(()), Some(why)) => why.clone(),
        (Ok(()), None) => format!("nothing that can be used leads to log entry {}", export.from),
    };
    format!("export {} up to log entry {} of era {}: {why}", export.id.short(), export.to, export.era)
}

/// Nodes that the recovered catalogue knows and nobody has named.
fn not_asked(
    view: &View,
    answering: &[NodeId],
    silent: &BTreeMap<NodeId, String>,
) -> Result<Vec<String>, CatalogueError> {
    let asked = |id: &NodeId| answering.contains(id) || silent.contains_key(id);
    let nodes = view.nodes()?.into_iter();
    let nodes = nodes.filter(|node| node.state != NodeState::Retired && !asked(&node.id));
    Ok(nodes.map(|node| format!("{}: {} at {} was not asked", node.id, node.name, node.addr)).collect())
}

/// A sighting by its stripe.
pub type Sightings = BTreeMap<farshore_core::id::StripeId, Sighting>;
