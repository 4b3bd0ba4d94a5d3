//! Command in, rows changed, reply out. Deterministic: no clock, no randomness, no I/O but the tables of the
//! transaction, and work bounded by the size of the command.

mod sessions;

mod garbage;

mod exports;

mod packs;

mod snapshots;

mod retention;

mod shards;

mod ordinals;

mod topology;

mod level;

mod audit;

mod upkeep;

pub(super) use audit::{act_of, record_act};

use super::error::CatalogueError;
use super::read::Read;
use super::tables::*;
use super::tx::Tx;
use farshore_core::catalogue::{Command, EXPORT_REPO, Refusal, Reply, RepoRecord};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::limits::{
    KEY_SLOT_BYTES_MAX, KEY_SLOTS_MAX, NODE_ADDR_BYTES_MAX, NODES_MAX, REPO_CONFIG_BYTES_MAX,
};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::topology::{NodeRecord, NodeState};

/// Why a command stops halfway.
pub(super) enum Stop {
    /// The command is refused: all it did is undone, and every replica says the same.
    Refused(Refusal),
    /// The replica cannot go on.
    Failed(CatalogueError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Stop::Refused(refusal)
    }
}
impl From<CatalogueError> for Stop {
    fn from(error: CatalogueError) -> Self {
        Stop::Failed(error)
    }
}

type Outcome = Result<Reply, Stop>;

/// Carries out a command. The caller undoes what a refused command has changed.
pub(super) fn apply(tx: &mut Tx, index: u64, command: &Command) -> Result<Reply, CatalogueError> {
    match carry_out(tx, index, command) {
        Ok(reply) => Ok(reply),
        Err(Stop::Refused(refusal)) => Ok(Reply::Refused(refusal)),
        Err(Stop::Failed(error)) => Err(error),
    }
}

fn carry_out(tx: &mut Tx, index: u64, command: &Command) -> Outcome {
    level::allows(tx.state.level, command.level())?;
    match command {
        Command::FormCluster { cluster } => form_cluster(tx, *cluster),
        Command::PutNode { node } => put_node(tx, node),
        Command::SetNodeState { node, from, to } => set_node_state(tx, *node, *from, *to),
        Command::CreateRepository { repo } => create_repository(tx, repo),
        Command::OpenSession { session, repo, seen } => sessions::open(tx, index, *session, *repo, *seen),
        Command::EndSessions { sessions } => sessions::end(tx, index, sessions),
        Command::CommitPacks { session, packs } => packs::commit(tx, *session, packs),
        Command::CommitSnapshot { session, snapshot, replaces } => {
            snapshots::commit(tx, *session, snapshot, *replaces)
        }
        Command::PlaceShard { pack, generation, index, node } => {
            shards::place(tx, *pack, *generation, *index, *node)
        }
        Command::ShardBad { pack, index, node } => shards::bad(tx, *pack, *index, *node),
        Command::Recheck { packs } => shards::recheck(tx, packs),
        Command::Swept { copies } => shards::swept(tx, copies),
        Command::CondemnPacks { packs } => garbage::condemn(tx, index, packs),
        Command::RevivePacks { packs } => garbage::revive(tx, packs),
        Command::DropPacks { packs, looked } => garbage::drop_dead(tx, packs, *looked),
        Command::CondemnOrphans { node, copies } => garbage::condemn_orphans(tx, *node, copies),
        Command::CompactPacks { repo, pack, from } => garbage::compact(tx, *repo, pack, from),
        Command::ChangeRepository { repo, change } => retention::change(tx, *repo, change),
        Command::AdmitNode { node, incarnation, level } => topology::admit(tx, node, *incarnation, *level),
        Command::StageTopology { request, epoch, changes } => topology::stage(tx, *request, *epoch, changes),
        Command::ChangeTopology { request, epoch, changes } => {
            topology::change(tx, *request, *epoch, changes)
        }
        Command::RecordExport { export } => exports::record(tx, export),
        Command::BeginEra { .. } => sessions::begin_era(tx, index),
        Command::RaiseLevel { to } => level::raise(tx, *to),
        Command::Migrate { request, epoch, from, to, cold } => {
            upkeep::migrate(tx, *request, *epoch, from, to, *cold)
        }
        Command::EndMigration { request, epoch, from, keep } => {
            upkeep::end_migration(tx, *request, *epoch, from, *keep)
        }
        Command::RecordVerified { subject, stripes, end } => upkeep::verified(tx, *subject, stripes, *end),
        Command::SetUpkeep { upkeep } => upkeep::set(tx, upkeep),
    }
}

fn form_cluster(tx: &mut Tx, cluster: ClusterId) -> Outcome {
    if tx.state.cluster.is_some() {
        return Err(Refusal::AlreadyFormed.into());
    }
    tx.state.cluster = Some(cluster);
    Ok(Reply::Done)
}

fn put_node(tx: &mut Tx, node: &NodeRecord) -> Outcome {
    if node.addr.is_empty() || node.addr.len() > NODE_ADDR_BYTES_MAX {
        return Err(
            Refusal::Malformed(format!("a node's address has 1 to {NODE_ADDR_BYTES_MAX} bytes")).into()
        );
    }
    let state = match tx.get::<Nodes>(&node.id)? {
        Some(known) => known.state,
        None if tx.state.rows_of(Nodes::TABLE) >= NODES_MAX as u64 => {
            return Err(Refusal::Malformed(format!("a cluster has at most {NODES_MAX} nodes")).into());
        }
        None => NodeState::Up,
    };
    tx.put::<Nodes>(&node.id, &NodeRecord { state, ..node.clone() })?;
    Ok(Reply::Done)
}

/// Shards of a node that stops counting are not touched here: there may be millions. The planner finds them by
/// holder, and they count again at once if the node comes back.
fn set_node_state(tx: &mut Tx, id: NodeId, from: NodeState, to: NodeState) -> Outcome {
    let mut node = tx.get::<Nodes>(&id)?.ok_or(Refusal::NoNode(id))?;
    if node.state == to && from.may_become(to) {
        return Ok(Reply::Done);
    }
    if node.state != from || !from.may_become(to) {
        return Err(Refusal::BadTransition(id, node.state).into());
    }
    // A drained node leaves empty. A lost one may leave with all it had: its shards have stopped counting long ago.
    let holds = !tx.scan::<Holders>(&Span::within(&id), 1)?.is_empty() && !mutant(Mutant::RetireFull);
    if from == NodeState::Draining && to == NodeState::Retired && holds {
        return Err(Refusal::NotEmpty(id).into());
    }
    node.state = to;
    tx.put::<Nodes>(&id, &node)?;
    Ok(Reply::Done)
}

fn create_repository(tx: &mut Tx, repo: &RepoRecord) -> Outcome {
    let slots_fit = repo.key_slots.iter().all(|slot| slot.len() <= KEY_SLOT_BYTES_MAX);
    if repo.id == EXPORT_REPO {
        return Err(Refusal::Malformed("this id belongs to exports of the catalogue".into()).into());
    }
    if repo.sealed_config.len() > REPO_CONFIG_BYTES_MAX || repo.key_slots.len() > KEY_SLOTS_MAX || !slots_fit
    {
        return Err(Refusal::Malformed("repository configuration or key slots are too large".into()).into());
    }
    let name = NameKey(repo.name.as_str().into());
    let (by_id, by_name) = (tx.get::<Repos>(&repo.id)?, tx.get::<RepoNames>(&name)?);
    match (by_id, by_name) {
        (None, None) => {
            tx.put::<Repos>(&repo.id, repo)?;
            tx.put::<RepoNames>(&name, &repo.id)?;
            Ok(Reply::Done)
        }
        (Some(known), _) if known == *repo => Ok(Reply::Done),
        _ => Err(Refusal::RepoExists(repo.name.to_string()).into()),
    }
}
