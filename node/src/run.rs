//! One node from start to stop. Read [`Node::start`] first: each step may rely on those above it, and a stop undoes
//! them from the last to the first.

use crate::catalogue::{Catalogue, CatalogueError, View};
use crate::config::Config;
use crate::form;
use crate::identity::{Identity, IdentityError};
use crate::listen::{Listening, listen};
use crate::maintain::build::Builder;
use crate::maintain::collect;
use crate::maintain::foreground::Foreground;
use crate::maintain::health::Health;
use crate::maintain::lease::Leases;
use crate::maintain::near::Near;
use crate::maintain::report::Reports;
use crate::maintain::{Shared, exporter, lead, survey};
use crate::raft::passport::Passport;
use crate::raft::reseat;
use crate::raft::{Consensus, RaftStoreError};
use crate::restore::{self, RestoreError};
use crate::rpc;
use crate::store::{ShardStore, StoreError, StoreOptions};
use crate::worker::{WorkerStatus, Workers};
use farshore_core::health::NodeHealth;
use farshore_core::host::task::Owned;
use farshore_core::host::{Host, Kv, KvError, KvRole, WallClock};
use farshore_core::id::NodeId;
use farshore_core::limits::{DISK_RESERVE_BYTES, WORKER_STOP_MS};
use farshore_core::peer::SumIo;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_proto::peers::Peers;
use farshore_proto::shard_client::GrpcShards;
use farshore_proto::tls::{Credentials, Tls, TlsError};
use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Why a node does not start. Each is one line that says what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The certificate is a client's, or of another cluster.
    #[error("{0}")]
    Credentials(String),
    /// Certificate, key or authority cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The data directory is another's or damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The cluster has seen this node before, and the directory has not.
    #[error(
        "the cluster knows this node but its data directory is empty: is a disk not mounted? If it is lost, make a new \
         key and join as a new node, since this one has promised votes and shards that it no longer has"
    )]
    Emptied,
    /// A store does not open.
    #[error("open the node's stores: {0}")]
    Kv(#[from] KvError),
    /// The catalogue is damaged, or of a newer release.
    #[error("open the catalogue: {0}")]
    Catalogue(#[from] CatalogueError),
    /// The catalogue is another cluster's.
    #[error("the catalogue in the data directory belongs to cluster {0}")]
    ForeignCatalogue(farshore_core::id::ClusterId),
    /// The directory has shards and no trace of a replica.
    #[error(
        "there are {0} shards here and no catalogue: if the cluster lives, `farshore node rejoin` has this node learn it \
         anew; if every node has lost it, `farshore cluster rebuild-catalogue` (docs/operations.md)"
    )]
    NoReplica(u64),
    /// A recovery was begun in an empty directory.
    #[error("the data directory is empty: there is nothing to recover here; is a disk not mounted?")]
    NothingHere,
    /// A recovery was interrupted here.
    #[error(
        "a recovery of the catalogue was interrupted here: repeat the command that was used \
         (`farshore node recover-quorum`; or `farshore node recover`, then `farshore cluster rebuild-catalogue`). If the \
         cluster lives without this node, `farshore node rejoin`"
    )]
    HalfRecovered,
    /// The shard store does not open.
    #[error("open the shard store: {0}")]
    Store(#[from] StoreError),
    /// The log lacks what this node has promised, or is damaged.
    #[error("open the catalogue's log: {0}")]
    Raft(#[from] RaftStoreError),
    /// The address cannot be listened on.
    #[error("listen on {0}: {1}")]
    Listen(String, io::Error),
    /// The replica is damaged and cannot be learnt anew.
    #[error("restore the damaged replica: {0}")]
    Restore(#[from] RestoreError),
}

impl StartError {
    /// Whether Raft log or catalogue are not what was written, so that they will never be again.
    fn is_damage(&self) -> bool {
        match self {
            StartError::Kv(error) | StartError::Catalogue(CatalogueError::Kv(error)) => error.is_damage(),
            StartError::Raft(error) => error.is_damage(),
            _ => false,
        }
    }
}

/// Stands between a node and the sums that others send it.
pub type SumSeam<'a> = &'a (dyn Fn(Arc<dyn SumIo>) -> Arc<dyn SumIo> + Send + Sync);

/// A running node. Dropping it cuts everything at once, as a crash would; [`Node::stop`] ends it in order.
pub struct Node {
    shared: Arc<Shared>,
    addr: String,
    workers: Workers,
    listening: Listening,
    _forming: Option<Owned>,
}

impl Node {
    /// Opens everything below the host's disk and stores, and takes part in the cluster from then on. A replica found
    /// damaged is given up first, which takes until a leader agrees.
    pub async fn start(host: Host, config: Config, credentials: Credentials) -> Result<Self, StartError> {
        Self::start_through(host, config, credentials, &|sums| sums).await
    }

    /// The same, with sums of other nodes coming through `wrap`: the seam for what makes relays lie.
    pub async fn start_through(
        host: Host,
        config: Config,
        credentials: Credentials,
        wrap: SumSeam<'_>,
    ) -> Result<Self, StartError> {
        match Self::start_once(host.clone(), config.clone(), credentials.clone(), wrap).await {
            Err(damaged) if damaged.is_damage() => {
                restore::mark(&host, &damaged.to_string()).await.map_err(RestoreError::Io)?;
                Self::start_once(host, config, credentials, wrap).await
            }
            started => started,
        }
    }

    async fn start_once(
        host: Host,
        config: Config,
        credentials: Credentials,
        wrap: SumSeam<'_>,
    ) -> Result<Self, StartError> {
        let tls = Arc::new(Tls::new(&credentials, host.clock.clone())?);
        let id = own_id(&tls, &config)?;
        tracing::info!(node = %id, name = %config.name, region = %config.region, "starting");

        if !Identity::is_claimed(host.disk.as_ref()).await? {
            refuse_if_known(&host, &tls, &config, id).await?;
        }
        let owner = Identity { cluster: config.cluster, node: id };
        let (claim, opened) = owner.claim(host.disk.as_ref(), host.entropy.as_ref()).await?;
        tracing::info!(?opened, "data directory is ours");

        if restore::is_marked(&host).await.map_err(RestoreError::Io)? {
            restore::restore(&host, &config, &tls, claim).await?;
        }
        let state = host.kv.open(KvRole::Catalogue).await?;
        let catalogue = Catalogue::open_at(state.clone(), config.feature_level_max)?;
        check_cluster(&catalogue, &config)?;
        tracing::info!(applied = catalogue.applied(), "catalogue open");

        let options = StoreOptions { capacity: config.capacity, reserve: DISK_RESERVE_BYTES };
        let (store, audit) = ShardStore::open(&host, config.cluster, options).await?;
        let reports = Arc::new(Reports::default());
        audit.missing.iter().chain(&audit.bad).for_each(|shard| reports.suspect(*shard));
        tracing::info!(?audit, "shards audited");

        refuse_without_replica(&host, &state, &catalogue, audit.shards).await?;

        let listener = host.net.listen(&config.listen).await;
        let listener = listener.map_err(|e| StartError::Listen(config.listen.clone(), e))?;
        let addr = listener.local_addr();
        let own = own_record(id, &config, &addr);
        tracing::info!(%addr, advertise = %own.addr, "listening");

        let peers = Arc::new(Peers::new(host.net.clone(), tls.clone()));
        fill_book(&peers, &config, &catalogue.view()?, &own)?;
        let passport = Passport::new(claim, host.disk.clone());
        passport.learn(&catalogue.view()?)?;
        passport.leave_if_retired();
        let raft = config.raft.clone();
        let consensus = Consensus::start(&host, id, catalogue, state, peers.clone(), passport, raft).await?;
        tracing::info!(known = peers.known().len(), "consensus takes part");

        let orders = Arc::new(GrpcShards::new(peers.clone()));
        let shards = Arc::new(Near::new(id, store.clone(), reports.clone(), orders.clone()));
        let place = (id, own.region.clone());
        let compute = host.compute.clone();
        let foreground = Arc::new(Foreground::default());
        let (io, sums) = (shards.clone(), wrap(orders.clone()));
        let builder =
            Builder::new(config.cluster, place, store.clone(), io, sums, compute, foreground.clone());

        let shared = Arc::new(Shared {
            cluster: config.cluster,
            own,
            level: config.feature_level_max,
            timing: config.timing,
            consensus,
            store,
            shards,
            builder,
            foreground,
            orders,
            peers,
            seeds: config.peers.clone(),
            reached: NodeHealth::new(),
            reports,
            health: Health::new(config.timing),
            leases: Leases::new(config.timing.session_lease),
            surveyed: survey::Surveyed::default(),
            repairs: lead::Repairs::default(),
            collecting: collect::Collecting::default(),
            exports: exporter::Exports::default(),
            host,
        });
        let listening = listen(listener, tls, rpc::routes(&shared));
        tracing::info!("answering");

        let forming = config.bootstrap.map(|founders| form::start(shared.clone(), founders, config.peers));
        let mut workers = Workers::default();
        shared.start_workers(&mut workers);
        tracing::info!("workers started");
        Ok(Node { shared, addr, workers, listening, _forming: forming })
    }

    /// Stops in reverse order: no more work of our own, no more calls, no more consensus. Everything that was
    /// acknowledged is durable already, so this only spares others the waiting.
    pub async fn stop(self) {
        self.workers.stop(Duration::from_millis(WORKER_STOP_MS)).await;
        tracing::info!("workers stopped");
        self.listening.stop().await;
        tracing::info!("listener closed");
        self.shared.consensus.shutdown().await;
        tracing::info!("consensus stopped");
    }

    /// Who this is.
    pub fn id(&self) -> NodeId {
        self.shared.own.id
    }
    /// The address listened on, with its real port.
    pub fn addr(&self) -> &str {
        &self.addr
    }
    /// Ends once this node knows that its cluster is formed: its first command has been applied here. Cancel-safe.
    pub async fn formed(&self) {
        while !self.shared.view().is_ok_and(|view| view.cluster().is_some()) {
            tokio::time::sleep(FORMED_POLL).await;
        }
    }
    /// Ends once the node can no longer take part, with the reason.
    ///
    /// A damaged replica is noted as such before this ends, so that the next start gives it up.
    pub async fn failed(&self) -> String {
        let why = tokio::select! {
            biased;
            why = self.shared.consensus.passport().ousted() => why,
            why = self.shared.consensus.stopped() => format!("the catalogue replica stopped: {why}"),
            why = self.shared.store.failed() => why,
        };
        if let Some(damage) = self.shared.consensus.damage()
            && let Err(error) = restore::mark(&self.shared.host, &damage).await
        {
            tracing::error!(%error, "note that the replica is damaged");
        }
        why
    }
    /// The replica, for checks from outside.
    pub fn consensus(&self) -> &Consensus {
        &self.shared.consensus
    }
    /// What this replica has applied.
    pub fn view(&self) -> Result<View, CatalogueError> {
        self.shared.view()
    }
    /// The shards held.
    pub fn store(&self) -> &Arc<ShardStore> {
        &self.shared.store
    }
    /// What services and workers share, for checks from outside.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }
    /// What each worker has been doing.
    pub fn workers(&self) -> BTreeMap<&'static str, WorkerStatus> {
        self.workers.status()
    }
}

/// Runs a node until `stop` ends or the node can no longer take part; stops it in order.
pub async fn run(
    host: Host,
    config: Config,
    credentials: Credentials,
    stop: impl Future<Output = ()>,
) -> Result<(), RunError> {
    tokio::pin!(stop);
    // A damaged replica may wait for a leader for long.
    let node = tokio::select! {
        biased;
        () = &mut stop => return Ok(()),
        node = Node::start(host, config, credentials) => node?,
    };
    let failed = tokio::select! {
        biased;
        () = stop => None,
        why = node.failed() => Some(why),
    };
    node.stop().await;
    failed.map_or(Ok(()), |why| Err(RunError::Failed(why)))
}

/// Why a node did not run until it was told to stop.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It never started.
    #[error(transparent)]
    Start(#[from] StartError),
    /// One of its stores is damaged, or its disk failed. Started again, the node recovers what can be recovered.
    #[error("{0}")]
    Failed(String),
}

/// Who runs with this configuration and these keys.
pub fn owner(
    config: &Config,
    credentials: &Credentials,
    clock: Arc<dyn WallClock>,
) -> Result<Identity, StartError> {
    let node = own_id(&Tls::new(credentials, clock)?, config)?;
    Ok(Identity { cluster: config.cluster, node })
}

/// A certificate of this cluster that names a node.
pub(crate) fn own_id(tls: &Tls, config: &Config) -> Result<NodeId, StartError> {
    if tls.cluster() != config.cluster {
        let why = format!(
            "the certificate belongs to cluster {}, the configuration says {}",
            tls.cluster(),
            config.cluster
        );
        return Err(StartError::Credentials(why));
    }
    tls.own_id().ok_or_else(|| {
        StartError::Credentials(format!("the certificate is that of {}, not of a node", tls.own()))
    })
}

/// A node is known to the cluster only after it has claimed its directory. If the directory is empty all the same, it
/// would start with no memory of its votes and report all its shards as lost. Others that cannot be asked are no
/// reason to wait: a cluster that is being formed starts in any order.
async fn refuse_if_known(host: &Host, tls: &Arc<Tls>, config: &Config, id: NodeId) -> Result<(), StartError> {
    let peers = Peers::new(host.net.clone(), tls.clone());
    let others = config.peers.iter().filter(|seed| seed.id != id);
    let asked = others.filter_map(|seed| {
        peers.set(seed.id, &seed.addr);
        Some(rpc::admin::is_known(peers.channel(seed.id)?, id))
    });
    let answers = futures_util::future::join_all(asked).await;
    if answers.contains(&true) { Err(StartError::Emptied) } else { Ok(()) }
}

/// A node gets shards only once it has a replica, and the replica's mark is older than any shard. Without it, this node
/// would start with no memory of its votes; what to do about that is not for it to decide.
async fn refuse_without_replica(
    host: &Host,
    state: &Arc<dyn Kv>,
    catalogue: &Catalogue,
    shards: u64,
) -> Result<(), StartError> {
    if !reseat::is_whole(state.clone(), host.disk.as_ref(), catalogue).await? {
        return Err(StartError::HalfRecovered);
    }
    let marked = reseat::has_mark(host.disk.as_ref()).await.map_err(RaftStoreError::Io)?;
    match marked || catalogue.applied() > 0 || shards == 0 {
        true => Ok(()),
        false => Err(StartError::NoReplica(shards)),
    }
}

pub(crate) fn check_cluster(catalogue: &Catalogue, config: &Config) -> Result<(), StartError> {
    match catalogue.view()?.cluster() {
        Some(cluster) if cluster != config.cluster => Err(StartError::ForeignCatalogue(cluster)),
        _ => Ok(()),
    }
}

/// This node as it describes itself to the leader. The state is the leader's to judge.
pub(crate) fn own_record(id: NodeId, config: &Config, addr: &str) -> NodeRecord {
    NodeRecord {
        id,
        name: config.name.clone(),
        region: config.region.clone(),
        zone: config.zone.clone(),
        addr: config.advertise.clone().unwrap_or_else(|| addr.to_string()),
        capacity: config.capacity,
        state: NodeState::Up,
    }
}

/// Whom to talk to first: the configured seeds, above them what the catalogue knew last, and ourselves, since repair may
/// read from and write to its own node.
fn fill_book(peers: &Peers, config: &Config, view: &View, own: &NodeRecord) -> Result<(), CatalogueError> {
    let seeds = config.peers.iter().chain(config.bootstrap.iter().flatten());
    seeds.for_each(|seed| peers.set(seed.id, &seed.addr));
    view.nodes()?.iter().for_each(|node| peers.set(node.id, &node.addr));
    peers.set(own.id, &own.addr);
    Ok(())
}

const FORMED_POLL: Duration = Duration::from_millis(200);
