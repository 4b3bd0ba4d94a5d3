//! Nodes and clients as simulated processes: what outlives a crash (disk, stores, keys), and how one is started,
//! crashed, and asked how it is.

use crate::clock::{EPOCH_MS, SimClock};
use crate::disk::SimDisk;
use crate::entropy::{Inline, Rng, SimEntropy};
use crate::event;
use crate::kv::SimStores;
use crate::linear::History;
use crate::net::{Hub, Label};
use crate::plan::Layout;
use crate::relay::Relays;
pub use crate::world::Violation;
use crate::world::World;
use farshore_client::Client;
use farshore_core::catalogue::{AuditCheck, PackRecord};
use farshore_core::host::real::NoStorage;
use farshore_core::host::task::{Scope, splitmix};
use farshore_core::host::{Host, WallClock};
use farshore_core::id::{ClusterId, NodeId, PackNo};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_core::topology::{Name, NodeState, Region};
use farshore_node::Node;
use farshore_node::catalogue::{PackUse, View};
use farshore_node::config::{Config, CredentialFiles, Seed, Timing};
use farshore_node::kv::KvCache;
use farshore_node::raft::RaftTuning;
use farshore_proto::pki::{Authority, Validity};
use farshore_proto::profile::Profile;
use farshore_proto::tls::Credentials;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::Notify;

/// Label of the first client; nodes are numbered from 1.
const CLIENT: Label = 100;
/// Bytes each node offers, unless a world says otherwise.
pub const CAPACITY: u64 = 512 << 20;
/// Silence before a node's shards are rebuilt elsewhere.
const GRACE: Duration = Duration::from_secs(20);

/// Pause before a node that ended by itself is started again.
const RESTART: Duration = Duration::from_secs(2);
/// A machine's node, on a timeline.
const RUNS: &str = "runs";

/// A node's machine: what survives the process.
pub struct Machine {
    /// Number in the event log and on the network.
    pub label: Label,
    /// Its id.
    pub id: NodeId,
    /// Its failure domain.
    pub region: Region,
    /// The number of that region.
    pub region_no: usize,
    /// Its files.
    pub disk: SimDisk,
    /// Its calendar.
    pub clock: Arc<SimClock>,
    /// Its log, catalogue and index, which share the room and the faults of its disk.
    pub stores: Arc<SimStores>,
    credentials: Credentials,
    config: Config,
    incarnation: u64,
    process: Option<Process>,
    /// The cluster has retired its node: it is switched off for good, or until it is set up anew.
    retired: bool,
}

/// What runs on a machine.
struct Process {
    manager: Scope,
    run: Arc<Mutex<Run>>,
}

/// The node's process; the node itself once it has started.
#[derive(Default)]
struct Run {
    scope: Option<Scope>,
    node: Option<Arc<Node>>,
    /// Told to end in order.
    stop: Arc<Notify>,
}

impl Machine {
    /// The service manager.
    fn service(
        &self,
        world: World,
        hub: Hub,
        seed: u64,
        run: Arc<Mutex<Run>>,
        ends: Ends,
        relays: Relays,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (label, disk, stores, clock) =
            (self.label, self.disk.clone(), self.stores.clone(), self.clock.clone());
        let (config, credentials) = (self.config.clone(), self.credentials.clone());
        async move {
            for attempt in 0.. {
                let seed = splitmix(seed, attempt);
                let host = Host {
                    disk: Arc::new(disk.clone()),
                    kv: stores.clone(),
                    net: Arc::new(hub.of(label)),
                    clock: clock.clone() as Arc<dyn WallClock>,
                    entropy: Arc::new(SimEntropy::new(Rng::new(seed, 0x454e))),
                    compute: Arc::new(Inline),
                };
                let scope = Scope::new(label);
                let (config, credentials, keep) = (config.clone(), credentials.clone(), run.clone());
                let relays = relays.clone();
                let stop = {
                    let mut run = run.lock().expect("no holder of this lock panics");
                    run.scope = Some(scope.clone());
                    run.stop.clone()
                };
                let ended = scope.spawn(seed, async move {
                    let wrap = |sums| relays.wrap(sums);
                    match Node::start_through(host, config, credentials, &wrap).await {
                        Ok(node) => {
                            let node = Arc::new(node);
                            keep.lock().expect("no holder of this lock panics").node = Some(node.clone());
                            tokio::select! {
                                biased;
                                why = node.failed() => why,
                                () = stop.notified() => {
                                    keep.lock().expect("no holder of this lock panics").node = None;
                                    let node = Arc::into_inner(node);
                                    node.expect("nobody else keeps a node for longer than a look").stop().await;
                                    STOPPED.into()
                                }
                            }
                        }
                        Err(e) => format!("does not start: {e}"),
                    }
                });
                let why = ended.await.unwrap_or_else(|e| format!("panicked: {e}"));
                event!(world, label, "ends: {why}");
                if why != STOPPED {
                    ends.lock().expect("no holder of this lock panics").push((label, why.clone()));
                }
                world.mark(label, &format!("ends: {why}"));
                end(&hub, label, &stores, &run, false);
                tokio::time::sleep(RESTART).await;
            }
        }
    }
}

/// What a node says that was told to stop.
const STOPPED: &str = "was told to stop";

/// Nodes that ended by themselves, and why.
type Ends = Arc<Mutex<Vec<(Label, String)>>>;

/// Ends the node's process; its system closes what it had open.
fn end(hub: &Hub, label: Label, stores: &SimStores, run: &Mutex<Run>, power: bool) {
    hub.crash(label, power);
    let Run { scope, node, .. } = std::mem::take(&mut *run.lock().expect("no holder of this lock panics"));
    if let Some(scope) = scope {
        scope.kill();
    }
    drop(node);
    stores.release();
}

/// All machines of a world.
pub struct Cluster {
    /// Its world.
    pub world: World,
    /// Its network.
    pub hub: Hub,
    /// Its machines, in a fixed order.
    pub machines: Vec<Machine>,
    /// What its clients have asked of its catalogue.
    pub history: History,
    /// Which of its relays lie.
    pub relays: Relays,
    authority: Authority,
    settings: Settings,
    clients: Label,
    ends: Ends,
    /// So many calendars were wrong at once that they may have made catalogue time.
    time_doubted: bool,
}

/// Pause between looks for garbage: short, so that a short world sees many.
pub const COLLECT_EVERY: Duration = Duration::from_secs(3);

/// Settings that all nodes of a world share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Health, repair, scrub and leases.
    pub timing: Timing,
    /// Consensus.
    pub raft: RaftTuning,
    /// Shortest one-way delay inside a region, microseconds, if it is another than between regions.
    pub near_us: Option<u64>,
    /// Bytes that each node offers.
    pub capacity: u64,
}

impl Default for Settings {
    fn default() -> Self {
        // The story of a day compares with one order, which knows only packs that clients have made.
        let (collect_every, compact_below) = (COLLECT_EVERY, 0);
        let timing = Timing { grace: GRACE, collect_every, compact_below, ..Timing::default() };
        Settings { timing, raft: RaftTuning::default(), near_us: None, capacity: CAPACITY }
    }
}

impl Cluster {
    /// Lays out machines region by region, none running. The first of each region is a founder and voter.
    pub fn new(world: World, layout: &Layout, settings: Settings) -> Result<Self, Violation> {
        let mut rng = Rng::new(world.seed(), 0x434c);
        let mut id = [0u8; 16];
        rng.fill(&mut id);
        let authority = Authority::create(ClusterId(id), validity()).map_err(|e| e.to_string())?;
        let hub = Hub::new(world.clone());
        let (history, machines) = (History::new(world.clone()), Vec::new());
        history.set_lease(settings.timing.session_lease);
        let (clients, ends) = (CLIENT, Ends::default());
        let mut cluster = Cluster {
            world,
            hub,
            machines,
            history,
            relays: Relays::default(),
            authority,
            settings,
            clients,
            ends,
            time_doubted: false,
        };
        for region in layout.region_of() {
            cluster.add(region)?;
        }
        let first_of = |region| cluster.machines.iter().find(|m| m.region_no == region);
        let founders = (0..layout.regions.len()).filter_map(first_of);
        let founders = founders.map(|m| Seed { id: m.id, addr: addr(m.label) }).collect();
        cluster.machines[0].config.bootstrap = Some(founders);
        for at in 0..cluster.machines.len() {
            cluster.introduce(at);
        }
        Ok(cluster)
    }

    /// One more machine, with a new key and empty disks. It knows everybody there is.
    pub fn add(&mut self, region: usize) -> Result<usize, Violation> {
        let (at, label) = (self.machines.len(), self.machines.len() as Label + 1);
        let name: Region = format!("cloud{}/r{region}", region / 2).parse().map_err(|_| "region name")?;
        let (id, credentials) = self.issue()?;
        let disk = SimDisk::new(self.world.clone(), label);
        let machine = Machine {
            label,
            id,
            region: name.clone(),
            region_no: region,
            stores: Arc::new(SimStores::beside(&disk)),
            disk,
            clock: Arc::new(SimClock::new(self.world.clone(), 0)),
            credentials,
            config: config(self.authority.cluster(), label, name, &self.settings)?,
            incarnation: 0,
            process: None,
            retired: false,
        };
        self.machines.push(machine);
        self.introduce(at);
        if self.settings.near_us.is_some() {
            for other in 1..label {
                self.level(other, label);
                self.level(label, other);
            }
        }
        Ok(at)
    }

    /// The machine has lost its disks: an operator sets a new node up on it, with a new key.
    pub fn replace(&mut self, at: usize) -> Result<(), Violation> {
        let (id, credentials) = self.issue()?;
        let machine = &mut self.machines[at];
        assert!(machine.process.is_none(), "disks are taken out of a machine that is off");
        event!(self.world, machine.label, "disks are lost; {} becomes {id}", machine.id);
        machine.disk.wipe();
        machine.stores.wipe();
        (machine.id, machine.credentials, machine.config.bootstrap) = (id, credentials, None);
        machine.retired = false;
        self.introduce(at);
        Ok(())
    }

    pub(crate) fn issue(&self) -> Result<(NodeId, Credentials), Violation> {
        let issued = self.authority.issue_node(validity()).map_err(|e| e.to_string())?;
        let credentials = Credentials {
            cluster: self.authority.cluster(),
            ca_pem: self.authority.ca_cert_pem().into(),
            cert_pem: issued.cert_pem,
            key_pem: issued.key_pem,
        };
        Ok((issued.id, credentials))
    }

    fn introduce(&mut self, at: usize) {
        let seeds = self.machines.iter().filter(|m| m.label != self.machines[at].label);
        self.machines[at].config.peers = seeds.map(|m| Seed { id: m.id, addr: addr(m.label) }).collect();
    }

    /// Starts a machine: its node runs, and is started again when it ends by itself, as a service manager does.
    pub fn start(&mut self, at: usize) {
        let machine = &mut self.machines[at];
        if machine.retired {
            return;
        }
        assert!(machine.process.is_none(), "a machine runs one node at a time");
        event!(self.world, machine.label, "starts");
        self.world.name_lane(machine.label, &format!("node {} in {}", machine.label, machine.region));
        self.world.mark_begin(machine.label, RUNS);
        self.hub.boot(machine.label);
        let process = Process { manager: Scope::new(machine.label), run: Arc::default() };
        machine.incarnation += 1;
        let seed = splitmix(self.world.seed() ^ machine.label << 32, machine.incarnation);
        let (world, hub, ends) = (self.world.clone(), self.hub.clone(), self.ends.clone());
        let service = machine.service(world, hub, seed, process.run.clone(), ends, self.relays.clone());
        process.manager.spawn(seed, service);
        machine.process = Some(process);
    }

    /// Tells a running node to stop; it ends in order, and its service manager starts it again. False if none runs.
    pub fn stop_in_order(&self, at: usize) -> bool {
        let process = self.machines[at].process.as_ref();
        let run = process.map(|process| process.run.lock().expect("no holder of this lock panics"));
        let running = run.filter(|run| run.node.is_some());
        running.is_some_and(|run| {
            event!(self.world, self.machines[at].label, "is told to stop");
            run.stop.notify_one();
            true
        })
    }

    /// Nodes that ended by themselves since the last call, and why.
    pub fn take_ends(&self) -> Vec<(Label, String)> {
        std::mem::take(&mut *self.ends.lock().expect("no holder of this lock panics"))
    }

    /// Ends a machine's node at once. With `power` lost, unsynced data is lost too and peers hear nothing.
    pub fn crash(&mut self, at: usize, power: bool) {
        let machine = &mut self.machines[at];
        let Some(process) = machine.process.take() else { return };
        event!(self.world, machine.label, "crashes, power lost: {power}");
        self.world.mark_end(machine.label, RUNS);
        self.world.mark(machine.label, if power { "loses power" } else { "is killed" });
        process.manager.kill();
        end(&self.hub, machine.label, &machine.stores, &process.run, power);
        if power {
            machine.stores.crash();
            machine.disk.crash();
        }
    }

    /// The cluster has retired the machine's node: operators switch it off.
    pub fn decommission(&mut self, at: usize) {
        if !self.machines[at].retired {
            event!(self.world, self.machines[at].label, "is retired and switched off");
            self.crash(at, false);
            self.machines[at].retired = true;
        }
    }

    /// Whether the machine's node was retired.
    pub fn retired(&self, at: usize) -> bool {
        self.machines[at].retired
    }

    /// A machine whose node should run and does not.
    pub fn one_not_running(&self) -> Option<usize> {
        self.in_service().find(|at| self.node(*at).is_none())
    }

    /// Machines that should run.
    pub fn in_service(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.machines.len()).filter(|at| !self.machines[*at].retired)
    }

    /// Power fails on a machine whose process has ended before; on a running one as well.
    pub fn lose_power(&mut self, at: usize) {
        if self.running(at) {
            return self.crash(at, true);
        }
        let machine = &mut self.machines[at];
        event!(self.world, machine.label, "loses power while it is off");
        machine.stores.crash();
        machine.disk.crash();
    }

    /// Whether a machine's node is running.
    pub fn running(&self, at: usize) -> bool {
        self.machines[at].process.is_some()
    }

    /// The process of a running machine, to stop it for a while or to work inside it.
    pub fn scope(&self, at: usize) -> Option<Scope> {
        let process = self.machines[at].process.as_ref()?;
        process.run.lock().expect("no holder of this lock panics").scope.clone()
    }

    /// What the replica furthest ahead of all running ones has applied.
    pub fn furthest(&self) -> Option<View> {
        let nodes = (0..self.machines.len()).filter_map(|at| self.node(at));
        nodes.filter_map(|node| node.view().ok()).max_by_key(View::applied)
    }

    /// Has a machine's calendar be wrong by so much.
    pub fn set_clock(&mut self, at: usize, skew_ms: i64) {
        self.machines[at].clock.set_skew_ms(skew_ms);
        self.doubt_time();
    }

    /// Notes if a majority of those who vote may take a wrong time for right. Looked at often: votes move.
    pub fn doubt_time(&mut self) {
        let voters = self.voters();
        let wrong = self.machines.iter().filter(|m| voters.contains(&m.id) && m.clock.is_doubtful()).count();
        self.time_doubted |= wrong > voters.len().saturating_sub(1) / 2;
    }

    /// Whether catalogue time has to be right, because a majority of voters has always been.
    pub fn time_is_right(&self) -> bool {
        !self.time_doubted
    }

    /// Who votes, as the replica furthest ahead has it; while a change is under way, who does before or after it.
    pub fn voters(&self) -> BTreeSet<NodeId> {
        let standing = (0..self.machines.len()).filter_map(|at| Some(self.node(at)?.consensus().standing()));
        standing.max_by_key(|standing| standing.applied).map_or_else(BTreeSet::new, |s| s.voters)
    }

    /// Gives a link the latency that its two ends usually have.
    pub fn level(&self, from: Label, to: Label) {
        let region = |label| self.machines.iter().find(|m| m.label == label).map(|m| m.region_no);
        let near = region(from).is_some() && region(from) == region(to);
        let near = self.settings.near_us.filter(|_| near);
        self.hub.set_link(from, to, near.map(|us| (us, us * 3)));
    }

    /// The machine on which a node lives now.
    pub fn machine_of(&self, id: NodeId) -> Option<usize> {
        self.machines.iter().position(|m| m.id == id)
    }

    /// The node of a running machine, once it has started.
    pub fn node(&self, at: usize) -> Option<Arc<Node>> {
        let process = self.machines[at].process.as_ref()?;
        process.run.lock().expect("no holder of this lock panics").node.clone()
    }

    /// A new client process: its scope, label, root of randomness and seams.
    pub fn client_host(&mut self) -> (Scope, Label, u64, Host) {
        self.clients += 1;
        let label = self.clients;
        let seed = splitmix(self.world.seed() ^ label << 32, 1);
        let host = Host {
            disk: Arc::new(NoStorage),
            kv: Arc::new(NoStorage),
            net: Arc::new(self.hub.of(label)),
            clock: Arc::new(SimClock::new(self.world.clone(), 0)),
            entropy: Arc::new(SimEntropy::new(Rng::new(seed, 0x454e))),
            compute: Arc::new(Inline),
        };
        (Scope::new(label), label, seed, host)
    }

    /// A client's credential and where to find the cluster.
    pub fn profile(&self, name: &str) -> Result<Profile, Violation> {
        let name: Name = name.parse().map_err(|_| "client name")?;
        let issued = self.authority.issue_client(&name, validity()).map_err(|e| e.to_string())?;
        Ok(Profile {
            cluster: self.authority.cluster(),
            endpoints: self.machines.iter().map(|m| addr(m.label)).collect(),
            ca_cert: self.authority.ca_cert_pem().into(),
            cert: issued.cert_pem,
            key: issued.key_pem,
        })
    }

    /// Replicas at the same applied index must have the same state.
    pub fn check_agreement(&self) -> Result<usize, Violation> {
        let mut seen = BTreeMap::new();
        for (at, machine) in self.machines.iter().enumerate() {
            let Some(node) = self.node(at) else { continue };
            let view =
                node.view().map_err(|e| format!("p{} cannot read its catalogue: {e}", machine.label))?;
            let (applied, hash) = (view.applied(), view.state_hash());
            event!(self.world, machine.label, "at {applied} has state {hash}");
            if let Some((other, label)) = seen.insert(applied, (hash, machine.label))
                && other != hash
            {
                return Err(format!("agree: p{label} and p{} differ at index {applied}", machine.label));
            }
        }
        Ok(seen.len())
    }

    /// On every replica the audit chain holds from its first record to its head.
    pub fn check_audit(&self) -> Result<(), Violation> {
        for (at, machine) in self.machines.iter().enumerate() {
            let Some(node) = self.node(at) else { continue };
            let of = |e: String| format!("audit: p{}: {e}", machine.label);
            let view = node.view().map_err(|e| of(e.to_string()))?;
            let (mut check, mut more) = (AuditCheck::default(), true);
            while more {
                let rows = view.audit(check.head().seq + 1, PAGE_ROWS_MAX).map_err(|e| of(e.to_string()))?;
                more = !rows.is_empty();
                for (seq, row) in &rows {
                    check.take(*seq, row).map_err(|fault| of(fault.to_string()))?;
                }
            }
            let head = view.audit_head().map_err(|e| of(e.to_string()))?;
            check.end(head).map_err(|fault| of(fault.to_string()))?;
        }
        Ok(())
    }

    /// In a quiet cluster every stripe is where its policy wants it, and every shard is where the catalogue says.
    pub fn check_places(&self) -> Result<(), Violation> {
        let wanted = self.recorded()?;
        let mut found = BTreeSet::new();
        for machine in &self.machines {
            let names = machine.disk.names("shards/");
            found.extend(names.iter().map(|name| (machine.label, file_of(name).to_string())));
        }
        if let Some((label, file)) = wanted.difference(&found).next() {
            return Err(format!("places: p{label} does not have {file}, which the catalogue says it has"));
        }
        event!(self.world, 0, "{} shards in place", wanted.len());
        Ok(())
    }

    /// A file that the catalogue does not count on, or a pack that no snapshot needs much of, if there is any. Nodes that have
    /// retired keep what they have.
    pub fn garbage(&self) -> Result<Option<String>, Violation> {
        let view = self.furthest().ok_or("no node runs")?;
        let failed = |e: farshore_node::catalogue::CatalogueError| e.to_string();
        let mut wanted = BTreeSet::new();
        let mut from = Some(PackNo(0));
        while let Some(start) = from {
            let page = view.all_packs(start, PAGE_ROWS_MAX).map_err(failed)?;
            for pack in &page.rows {
                let held = pack.stripe.shards.iter().enumerate().filter_map(|(index, shard)| {
                    Some((shard.node?, format!("{}-{index}.shard", pack.stripe.id)))
                });
                wanted.extend(held);
            }
            from = page.next;
        }
        for part in view.exports().map_err(failed)?.iter().flat_map(|export| &export.parts) {
            let held = part.shards.iter().enumerate();
            let file = |index: usize| format!("{}-{index}.shard", part.stripe());
            wanted.extend(held.filter_map(|(index, shard)| Some((shard.node?, file(index)))));
        }
        for machine in &self.machines {
            let known = view.node(machine.id).map_err(failed)?;
            if known.is_none_or(|node| node.state == NodeState::Retired) {
                continue;
            }
            for path in machine.disk.names("shards/").iter().filter(|path| is_shard(path)) {
                if !wanted.contains(&(machine.id, file_of(path).to_string())) {
                    return Ok(Some(format!("p{} keeps {path} for nothing", machine.label)));
                }
            }
        }
        self.dead_pack(&view)
    }

    /// A pack of which the snapshots name nothing or little.
    fn dead_pack(&self, view: &View) -> Result<Option<String>, Violation> {
        let failed = |e: farshore_node::catalogue::CatalogueError| e.to_string();
        for repo in view.repos(None, PAGE_ROWS_MAX).map_err(failed)?.rows {
            let of = view.repo_use(repo.id).map_err(failed)?;
            let mut from = Some(PackNo(0));
            while let Some(start) = from {
                let page = view.pack_uses(&of, start, PAGE_ROWS_MAX).map_err(failed)?;
                let least = u64::from(self.settings.timing.compact_below);
                // One that is below its target is repaired first; what cannot be, for lack of regions, stays as it is.
                let little = |pack: &PackUse| pack.live * 100 < pack.chunks * least && !pack.weak;
                let sparse = |pack: &PackUse| pack.live == 0 || little(pack);
                let garbage = |pack: &&PackUse| sparse(pack) || pack.condemned.is_some();
                if let Some(pack) = page.rows.iter().find(garbage) {
                    return Ok(Some(format!("pack {} of {}: {pack:?}", pack.no.0, repo.name)));
                }
                from = page.next;
            }
        }
        Ok(None)
    }

    /// Every shard that the replica furthest ahead says is held: the machine's label and the file's name.
    fn recorded(&self) -> Result<BTreeSet<(Label, String)>, Violation> {
        let view = self.furthest().ok_or("no node runs")?;
        let machines: BTreeMap<NodeId, &Machine> = self.machines.iter().map(|m| (m.id, m)).collect();
        let mut recorded = BTreeSet::new();
        let mut from = Some(PackNo(0));
        while let Some(start) = from {
            let page = view.all_packs(start, PAGE_ROWS_MAX).map_err(|e| e.to_string())?;
            for pack in page.rows {
                let at_target = pack.stripe.at_target(|id| machines.get(&id).map(|m| &m.region));
                if !at_target && !too_wide(&view, &pack) {
                    return Err(format!("spread: pack {} is not where its policy wants it", pack.id));
                }
                for (index, shard) in pack.stripe.shards.iter().enumerate() {
                    let label = shard.node.and_then(|id| machines.get(&id)).map_or(0, |m| m.label);
                    recorded.insert((label, format!("{}-{index}.shard", pack.stripe.id)));
                }
            }
            from = page.next;
        }
        Ok(recorded)
    }

    /// Flips a bit of a shard that the catalogue counts on.
    pub fn rot(&self, at: usize) -> Result<(), Violation> {
        let (recorded, machine) = (self.recorded()?, &self.machines[at]);
        machine.disk.rot(|name| recorded.contains(&(machine.label, file_of(name).to_string())));
        Ok(())
    }
}

/// Whether a stripe has more shards than the nodes there are can hold side by side: one each, and no more in a region
/// than its scheme allows.
pub fn too_wide(view: &View, pack: &PackRecord) -> bool {
    let mut usable = BTreeMap::<String, usize>::new();
    for node in view.nodes().unwrap_or_default().into_iter().filter(|n| n.takes_shards()) {
        *usable.entry(node.region.to_string()).or_default() += 1;
    }
    let spread = usize::from(pack.stripe.scheme.spread());
    usable.values().map(|nodes| (*nodes).min(spread)).sum::<usize>() < pack.stripe.shards.len()
}

/// Whether a path is that of a published shard.
pub fn is_shard(path: &str) -> bool {
    path.starts_with("shards/") && path.ends_with(".shard")
}

/// A path without its directory.
pub fn file_of(name: &str) -> &str {
    name.rsplit_once('/').map_or(name, |(_, file)| file)
}

/// Connects, from inside a client's scope.
pub async fn connect(host: Host, profile: Profile) -> Result<Client, Violation> {
    Client::connect(host, profile).await.map_err(|e| format!("client cannot connect: {e}"))
}

fn addr(label: Label) -> String {
    format!("node{label}:7400")
}

/// Certificates that hold however far a simulated clock jumps.
fn validity() -> Validity {
    const TWENTY_YEARS_MS: u64 = 20 * 366 * 86_400_000;
    Validity { not_before_ms: EPOCH_MS - TWENTY_YEARS_MS, not_after_ms: EPOCH_MS + TWENTY_YEARS_MS }
}

fn config(
    cluster: ClusterId,
    label: Label,
    region: Region,
    settings: &Settings,
) -> Result<Config, Violation> {
    Ok(Config {
        cluster,
        name: format!("node{label}").parse().map_err(|_| "node name")?,
        region,
        zone: None,
        listen: addr(label),
        advertise: Some(addr(label)),
        data_dir: "data".into(),
        feature_level_max: farshore_core::level::FEATURE_LEVEL,
        capacity: settings.capacity,
        bucket: None,
        credentials: CredentialFiles { ca: "ca".into(), cert: "cert".into(), key: "key".into() },
        peers: Vec::new(),
        // What lies among the shards beside the packs is unknown to the invariants so far (docs/invariants.md).
        timing: Timing { export_every: Duration::ZERO, ..settings.timing },
        raft: settings.raft.clone(),
        cache: KvCache::default(),
        bootstrap: None,
    })
}
