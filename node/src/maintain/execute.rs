//! The one executor of what planners decide: has the node that shall hold a shard make it from others, region by region,
//! and keep it, and only then records it. No byte of a shard passes through the leader.
//!
//! Copy before condemn: until the record changes the old state stands, and a failure anywhere leaves it standing.

use super::Shared;
use super::budget::Load;
use crate::plan::Rebuild;
use crate::worker::WorkFailed;
use farshore_core::catalogue::{Command, Condemned, PackRecord};
use farshore_core::gather::{BuildOrder, gather_shard, plan_sums};
use farshore_core::id::{NodeId, ShardId};
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::peer::ShardPut;
use farshore_core::shard::PackInfo;
use farshore_core::topology::Region;
use farshore_proto::shard_client::BuildError;
use std::collections::BTreeMap;

/// What a task moved between regions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Moved {
    /// Region that the new holder is in.
    pub to: Region,
    /// Bytes it received from each other region.
    pub crossed: BTreeMap<Region, u64>,
    /// Bytes it would have received had each shard been sent as it is.
    pub singly: u64,
    /// Relays that lied.
    pub liars: Vec<NodeId>,
    /// It was there all the time.
    pub kept: bool,
}

impl Moved {
    /// What it takes out of budgets.
    pub fn load(&self, task: &Rebuild) -> Load {
        let link = |(from, bytes): (&Region, &u64)| ((from.clone(), self.to.clone()), *bytes);
        let bytes = if self.kept { 0 } else { task.bytes };
        Load { to: task.to, bytes, links: self.crossed.iter().map(link).collect() }
    }
}

/// What a task is expected to move: one shard from each other region that it needs.
pub fn expected(shared: &Shared, task: &Rebuild) -> Result<Load, WorkFailed> {
    let nothing = || Load { to: task.to, bytes: task.bytes, links: BTreeMap::new() };
    if task.reclaims {
        return Ok(Load { bytes: 0, ..nothing() });
    }
    // Void by now; whoever carries it out will say so.
    let Some(pack) = shared.view()?.pack(task.pack)? else { return Ok(nothing()) };
    let Ok((order, home, _)) = order(shared, &pack, task) else { return Ok(nothing()) };
    let far = order.sums.into_iter().map(|sum| sum.region).filter(|region| *region != home);
    Ok(Load { links: far.map(|region| ((region, home.clone()), task.bytes)).collect(), ..nothing() })
}

/// Carries out one task. Any error leaves everything as it was, but for a copy that nobody knows.
pub async fn rebuild(shared: &Shared, task: &Rebuild) -> Result<Moved, WorkFailed> {
    let pack = shared.view()?.pack(task.pack)?;
    let pack = pack.filter(|pack| pack.stripe.generation == task.generation);
    let pack = pack.ok_or_else(|| WorkFailed("the stripe has changed since this was planned".into()))?;
    let (generation, index, node) = (task.generation, task.index, task.to);
    let place = Command::PlaceShard { pack: task.pack, generation, index, node };
    if mutant(Mutant::RecordFirst) {
        shared.propose_leading(place.clone()).await?;
    }
    if task.reclaims {
        // From here on its node does not delete it. Whether it is still there the node says when it is asked to make it.
        let copy = Condemned { node, shard: ShardId { stripe: pack.stripe.id, index } };
        shared.propose_leading(Command::Swept { copies: vec![copy] }).await?;
    }
    let moved = build(shared, &pack, task).await?;
    shared.propose_leading(place).await?;
    Ok(moved)
}

/// Has the shard made where it shall be.
async fn build(shared: &Shared, pack: &PackRecord, task: &Rebuild) -> Result<Moved, WorkFailed> {
    let (order, to, singly) = order(shared, pack, task)?;
    match shared.orders.build(task.to, order).await {
        Ok(built) => {
            let singly = if built.kept { 0 } else { singly };
            Ok(Moved { to, crossed: built.crossed, singly, liars: built.liars, kept: built.kept })
        }
        Err(BuildError::Failed(error)) => Err(error.into()),
        // It is of an older release; what this moves is not counted.
        Err(BuildError::Unknown) => {
            let shard = make(shared, pack, task).await?;
            let receipt = shared.shards.put(task.to, shard).await?;
            debug_assert_eq!(receipt.node, task.to);
            Ok(Moved { to, crossed: BTreeMap::new(), singly: 0, liars: Vec::new(), kept: false })
        }
    }
}

/// The order, the region of the new holder, and how many bytes would cross regions if each shard were sent as it is.
/// Nodes that are silent or failed us a moment ago are left out if enough others are left: a sum waits for each of its
/// shards.
fn order(
    shared: &Shared,
    pack: &PackRecord,
    task: &Rebuild,
) -> Result<(BuildOrder, Region, u64), WorkFailed> {
    let view = shared.view()?;
    let (mut holders, mut well) = (Vec::new(), Vec::new());
    for (index, node) in &task.from_holders {
        if let Some(record) = view.node(*node)? {
            let holder = (*index, *node, record.region);
            if record.state.answers() && shared.reached.readable(*node) {
                well.push(holder.clone());
            }
            holders.push(holder);
        }
    }
    let home =
        view.node(task.to)?.ok_or_else(|| WorkFailed(format!("node {} is not known", task.to)))?.region;
    let plan = |holders: &[_]| plan_sums(&pack.stripe, pack.repo, task.index, holders, &home);
    let sums = plan(&well).or_else(|| plan(&holders));
    let sums = sums.ok_or_else(|| WorkFailed("too few shards are left, or the record is wrong".into()))?;
    let far = sums.iter().filter(|sum| sum.region != home).map(|sum| sum.terms.len() as u64).sum::<u64>();
    let singly = far * pack.stripe.shard_len;
    Ok((BuildOrder { pack: pack.clone(), index: task.index, sums }, home, singly))
}

/// The shard, computed here from others and checked against its recorded hash: for nodes that build none themselves.
async fn make(shared: &Shared, pack: &PackRecord, task: &Rebuild) -> Result<ShardPut, WorkFailed> {
    let nearest = distance(shared, task)?;
    let gathered =
        gather_shard(shared.shards.as_ref(), &pack.stripe, pack.repo, task.index, &nearest, &shared.reached)
            .await?;
    for (index, node, error) in &gathered.bad {
        // Its own node has noticed it too, looks again and tells the catalogue.
        tracing::warn!(pack = pack.no.0, index, %node, %error, "shard not usable for a rebuild");
    }
    let record = pack.stripe.shards.get(usize::from(task.index));
    let record = record.ok_or_else(|| WorkFailed("the stripe has no such shard".into()))?;
    let (cluster, repo, scheme) = (shared.cluster, pack.repo, pack.stripe.scheme);
    let info = PackInfo { cluster, repo, pack: pack.id, pack_len: pack.len, scheme };
    if info.stripe() != pack.stripe.id {
        return Err(WorkFailed("the stripe is coded in a way this node does not know".into()));
    }
    Ok(ShardPut { header: info.header(task.index, record.hash), payload: gathered.bytes, session: None })
}

/// What reading from a node costs: nothing here, little in the own region, more elsewhere.
fn distance(
    shared: &Shared,
    task: &Rebuild,
) -> Result<impl Fn(NodeId) -> u64 + Send + Sync + use<>, WorkFailed> {
    let view = shared.view()?;
    let mut near = Vec::new();
    for (_, node) in &task.from_holders {
        if view.node(*node)?.is_some_and(|n| n.region == shared.own.region) {
            near.push(*node);
        }
    }
    let own = shared.own.id;
    Ok(move |node| match node {
        _ if node == own => 0,
        _ if near.contains(&node) => 1,
        _ => 2,
    })
}
