//! The small world of an enumeration: a cluster, a client, what was promised, and what must be true of them.

use crate::agent::{Agent, Promise};
use crate::clock::now_secs;
use crate::cluster::{Cluster, Settings, Violation};
use crate::contents::is_whole;
use crate::entropy::Rng;
use crate::plan::Layout;
use crate::tree::{Entry, Tree};
use crate::world::World;
use bytes::Bytes;
use farshore_client::files::{FileKind, FileTime, Meta, Stat};
use farshore_core::catalogue::{PackRecord, ShardRecord};
use farshore_core::id::{NodeId, PackNo, ShardId};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::shard::{SHARD_HEADER_BYTES, ShardHeader};
use farshore_core::topology::{NodeState, Region};
use farshore_node::catalogue::View;
use farshore_node::config::Timing;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Machines by region: every stripe has a shard in each region, and the first region a machine to spare.
const REGIONS: [usize; 3] = [2, 1, 1];
/// The two machines of the first region.
pub(super) const NEIGHBOURS: [usize; 2] = [0, 1];
/// A cluster forms by then, and is well again by then when nothing more happens to it.
const READY: Duration = Duration::from_secs(60);
const HEALED: Duration = Duration::from_secs(300);
/// Between two looks at a cluster that is to come to rest.
const LOOK: Duration = Duration::from_millis(200);

/// The world.
pub(super) struct Stage {
    pub(super) world: World,
    pub(super) cluster: Cluster,
    pub(super) agent: Agent,
    pub(super) promises: Vec<Arc<Promise>>,
    pub(super) tree: Tree,
    /// Machine and file of every shard that the catalogue has ever been seen to record.
    ever_recorded: BTreeSet<(usize, String)>,
    now_recorded: BTreeSet<(usize, String)>,
    seen_applied: u64,
    rng: Rng,
}

impl Stage {
    /// The cluster forms, and a client makes its first backup.
    pub(super) async fn set_up(world: &World) -> Result<Self, Violation> {
        let layout = Layout { regions: REGIONS.to_vec() };
        let timing = Timing {
            down_after: Duration::from_secs(5),
            grace: Duration::from_secs(3),
            maintain_every: Duration::from_millis(500),
            collect_every: Duration::from_secs(2),
            ..Timing::default()
        };
        let mut cluster = Cluster::new(world.clone(), &layout, Settings { timing, ..Settings::default() })?;
        cluster.hub.set_latency(300, 2_000);
        (0..cluster.machines.len()).for_each(|at| cluster.start(at));
        let agent = Agent::enter(&mut cluster, layout.nodes(), READY).await?;
        let rng = Rng::new(world.seed(), 0x656e);
        let (world, tree) = (world.clone(), Tree::new());
        let mut stage = Stage {
            world,
            cluster,
            agent,
            promises: Vec::new(),
            tree,
            ever_recorded: BTreeSet::new(),
            now_recorded: BTreeSet::new(),
            seen_applied: 0,
            rng,
        };
        stage.edit();
        stage.must_back_up().await?;
        stage.at_rest(None).await?;
        Ok(stage)
    }

    /// A small tree, and another one at each call.
    pub(super) fn edit(&mut self) {
        let secs = now_secs(&self.world);
        // Old enough to be believed, and another time at each call.
        let time = FileTime { secs: secs - 5, nanos: self.rng.below(1_000_000_000) as u32 };
        let entry = |ino, mode, kind, bytes| {
            let (mtime, ctime) = (time, time);
            let meta = Meta { mode, mtime, ctime, ino, dev: 7, nlink: 1, ..Meta::default() };
            Entry { stat: Stat { kind, meta }, bytes }
        };
        self.tree.insert(b"src".to_vec(), entry(1, 0o755, FileKind::Dir, Bytes::new()));
        for (name, ino) in [("src/a", 2), ("src/b", 3)] {
            let mut bytes = vec![0; 3_000];
            self.rng.fill(&mut bytes);
            let kind = FileKind::File { size: bytes.len() as u64 };
            self.tree.insert(name.into(), entry(ino, 0o640, kind, bytes.into()));
        }
    }

    /// One machine more, in this region, and the cluster at rest with it.
    pub(super) async fn add(&mut self, region: usize) -> Result<(), Violation> {
        let at = self.cluster.add(region)?;
        self.cluster.start(at);
        let (id, deadline) = (self.cluster.machines[at].id, Instant::now() + READY);
        while self.view()?.node(id).map_err(|e| e.to_string())?.is_none() {
            if Instant::now() > deadline {
                return Err("live: a new machine does not become known".into());
            }
            sleep(LOOK).await;
        }
        self.at_rest(None).await
    }

    /// A backup that nothing hinders.
    pub(super) async fn must_back_up(&mut self) -> Result<(), Violation> {
        let promise = self.agent.begin_back_up(&self.tree).acknowledged().await?;
        let promise = promise.map_err(|e| format!("live: a backup was refused: {e}"))?;
        self.promises.push(Arc::new(promise));
        Ok(())
    }

    pub(super) async fn verify_all(&self) -> Result<(), Violation> {
        for promise in &self.promises {
            self.agent.verify(promise).await?;
        }
        Ok(())
    }

    /// Waits until every node is up, every stripe at full strength, nothing to be swept, and all replicas agree.
    /// `drained` holds nothing then.
    pub(super) async fn at_rest(&mut self, drained: Option<NodeId>) -> Result<(), Violation> {
        let deadline = Instant::now() + HEALED;
        loop {
            let Err(unrest) = self.unrest(drained)? else { return Ok(()) };
            if Instant::now() > deadline {
                return Err(format!("heals: in a quiet cluster {unrest}"));
            }
            sleep(LOOK).await;
        }
    }

    /// What is not yet as it should be. The outer error is what must never be.
    pub(super) fn unrest(&self, drained: Option<NodeId>) -> Result<Result<(), String>, Violation> {
        if let Some(at) = self.cluster.one_not_running() {
            return Ok(Err(format!("p{} does not run", self.cluster.machines[at].label)));
        }
        if let Err(why) = at_rest(&self.view()?, drained).map_err(|e| e.to_string())? {
            return Ok(Err(why));
        }
        match self.cluster.check_agreement()? {
            1 => Ok(Ok(())),
            _ => Ok(Err("replicas are not at the same index".into())),
        }
    }

    /// The catalogue as the replica furthest ahead has it.
    pub(super) fn view(&self) -> Result<View, Violation> {
        self.cluster.furthest().ok_or_else(|| "live: no node runs".into())
    }

    /// Every pack there is.
    pub(super) fn packs(&self) -> Result<Vec<PackRecord>, Violation> {
        packs(&self.view()?).map_err(|e| e.to_string())
    }

    /// The machine of the first region that holds a shard of the first pack.
    pub(super) fn prey(&self) -> Result<usize, Violation> {
        let packs = self.packs()?;
        let shards = packs.iter().flat_map(|pack| &pack.stripe.shards);
        let holders: Vec<usize> = shards.filter_map(|shard| self.cluster.machine_of(shard.node?)).collect();
        let prey = holders.into_iter().find(|at| NEIGHBOURS.contains(at));
        prey.ok_or_else(|| "spread: a pack has no shard in the first region".into())
    }

    /// How many shards of a pack would survive a power loss of everything right now, on the disks of those who are
    /// recorded to hold them, and the file of one that would not.
    fn survivors(&self, pack: &PackRecord) -> (usize, Option<String>) {
        let (mut good, mut bad) = (0, None);
        for (at, file) in self.recorded(pack) {
            if self.is_whole(at, &file, pack) {
                good += 1;
            } else {
                bad = Some(format!("p{} {file}", self.cluster.machines[at].label));
            }
        }
        (good, bad)
    }

    /// Whether a machine has a shard of a pack in this file, durable, whole, and the one that is recorded.
    fn is_whole(&self, at: usize, file: &str, pack: &PackRecord) -> bool {
        let Some(bytes) = self.cluster.machines[at].disk.durable(file) else { return false };
        let header = bytes.get(..SHARD_HEADER_BYTES).and_then(|head| ShardHeader::decode(head).ok());
        let recorded = header.is_some_and(|header| {
            let shard = pack.stripe.shards.get(usize::from(header.id.index));
            shard.is_some_and(|shard| shard.hash == header.hash && file_name(header.id) == file)
        });
        recorded && is_whole(&bytes)
    }

    /// At every moment enough recorded shards of every pack are durable.
    pub(super) fn check_durable(&self) -> Result<(), Violation> {
        for pack in self.packs()? {
            let ((good, bad), k) = (self.survivors(&pack), pack.stripe.scheme.k());
            if good < k {
                let bad = bad.unwrap_or_default();
                return Err(format!(
                    "durable: pack {} has {good} of {k} shards, {bad} is not there",
                    pack.no.0
                ));
            }
        }
        Ok(())
    }

    /// Notes who is recorded to hold what. Copy before condemn: whoever is recorded anew holds the shard durably.
    pub(super) fn note_holders(&mut self) -> Result<(), Violation> {
        let view = self.view()?;
        // After a crash the replica that was ahead may be missing for a while; then nothing in sight is new.
        if view.applied() <= self.seen_applied {
            return Ok(());
        }
        self.seen_applied = view.applied();
        let mut now = BTreeSet::new();
        for pack in packs(&view).map_err(|e| e.to_string())? {
            for (at, file) in self.recorded(&pack) {
                let whole = || self.is_whole(at, &file, &pack);
                if !self.now_recorded.contains(&(at, file.clone())) && !whole() {
                    let label = self.cluster.machines[at].label;
                    return Err(format!(
                        "copy-before-condemn: p{label} is recorded to hold {file} and does not"
                    ));
                }
                now.insert((at, file));
            }
        }
        self.ever_recorded.extend(now.iter().cloned());
        self.now_recorded = now;
        Ok(())
    }

    fn recorded(&self, pack: &PackRecord) -> Vec<(usize, String)> {
        let file = |(index, shard): (u8, &ShardRecord)| {
            let at = self.cluster.machine_of(shard.node?)?;
            Some((at, file_name(ShardId { stripe: pack.stripe.id, index })))
        };
        (0u8..).zip(&pack.stripe.shards).filter_map(file).collect()
    }

    /// Whether every recorded shard is durable and whole; otherwise one that is not.
    pub(super) fn all_whole(&self) -> Result<Result<(), String>, Violation> {
        let bad = self.packs()?.iter().find_map(|pack| self.survivors(pack).1);
        Ok(bad.map_or(Ok(()), |bad| Err(format!("{bad} is recorded and not whole on its disk"))))
    }

    /// Files of shards that the catalogue does not know on this machine: those that it once knew there and those that
    /// nobody ever recorded.
    pub(super) fn unrecorded(&self) -> Result<(Vec<String>, u64), Violation> {
        let recorded: BTreeSet<_> = self.packs()?.iter().flat_map(|pack| self.recorded(pack)).collect();
        let (mut forgotten, mut orphans) = (Vec::new(), 0);
        for (at, machine) in self.cluster.machines.iter().enumerate() {
            let files = machine.disk.names("shards/").into_iter().filter(|name| name.ends_with(".shard"));
            for file in files.map(|name| (at, name)).filter(|file| !recorded.contains(file)) {
                if self.ever_recorded.contains(&file) {
                    forgotten.push(format!("p{} {}", machine.label, file.1));
                } else {
                    orphans += 1;
                }
            }
        }
        Ok((forgotten, orphans))
    }
}

/// Where a node keeps a shard.
pub(super) fn file_name(shard: ShardId) -> String {
    let stripe = shard.stripe.to_string();
    format!("shards/{}/{stripe}-{}.shard", &stripe[..2], shard.index)
}

type Catalogued<T> = Result<T, farshore_node::catalogue::CatalogueError>;

fn packs(view: &View) -> Catalogued<Vec<PackRecord>> {
    Ok(view.all_packs(PackNo(0), PAGE_ROWS_MAX)?.rows)
}

/// What the catalogue says is still to be done.
fn at_rest(view: &View, drained: Option<NodeId>) -> Catalogued<Result<(), String>> {
    let nodes = view.nodes()?;
    for node in &nodes {
        let as_wanted = match drained == Some(node.id) {
            true => matches!(node.state, NodeState::Draining | NodeState::Retired),
            false => node.state == NodeState::Up,
        };
        if !as_wanted {
            return Ok(Err(format!("node {} is {:?}", node.name, node.state)));
        }
        if !view.condemned(node.id, None, 1)?.rows.is_empty() {
            return Ok(Err(format!("node {} has copies to sweep", node.name)));
        }
    }
    if !view.under_target(PackNo(0), 1)?.rows.is_empty() {
        return Ok(Err("packs are under target".into()));
    }
    let regions: BTreeMap<NodeId, &Region> = nodes.iter().map(|node| (node.id, &node.region)).collect();
    for pack in packs(view)? {
        if !pack.stripe.at_target(|id| regions.get(&id).copied()) {
            return Ok(Err(format!("pack {} is not where its policy wants it", pack.no.0)));
        }
        if pack.stripe.shards.iter().any(|shard| shard.node == drained) {
            return Ok(Err(format!("pack {} has a shard on the node that is emptied", pack.no.0)));
        }
    }
    Ok(Ok(()))
}
