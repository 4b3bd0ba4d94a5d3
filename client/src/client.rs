//! `Client` and `Repository`: what the command line, the agent and the simulator call. Wiring only; the work is in the
//! modules below. Both are cheap to clone and may be used from several tasks at a time. Nothing here prints.

mod keys;

pub use keys::{Key, NewKey};

use crate::api::{CatalogueApi, ClusterStatus, GarbageReport, Topology};
use crate::backup;
use crate::check;
use crate::crypto::{KdfParams, MasterKey, RepoKeys, Secret, SlotNote, Unlocked};
use crate::diff;
use crate::dump::{self, Dump};
use crate::error::{Error, Result};
use crate::fetch::{Avoid, ChunkReader, Costs, Met, TreeReader, Watch};
use crate::files::{Source, Target};
use crate::find;
use crate::format::RepoConfig;
use crate::keyring::KeyRing;
use crate::list::{self, Filter, ListedEntry, Snapshot, Spec};
use crate::progress::Progress;
use crate::restore;
use crate::retention::{self, ForgetPlan, Keep};
use crate::session::conversation::Conversation;
pub use crate::session::grpc::Freshness;
use crate::session::{GrpcCatalogue, Operator, ScrubResult, export, scrub};
use crate::view::{self, View};
use farshore_core::catalogue::{Lock, RepoChange, RepoLock, RepoRecord, RepoSettings, Upkeep};
use farshore_core::erasure::Scheme;
use farshore_core::health::NodeHealth;
use farshore_core::host::{Host, random};
use farshore_core::id::{NodeId, RepoId, SnapshotId};
use farshore_core::limits::SNAPSHOTS_PER_COMMAND_MAX;
use farshore_core::mutant::{Mutant, mutant};
use farshore_core::peer::{ShardError, ShardIo};
use farshore_core::policy::{self, Policy};
use farshore_core::topology::{Name, NodeRecord, NodeState, Region};
use farshore_proto::peers::Peers;
use farshore_proto::profile::Profile;
use farshore_proto::shard_client::GrpcShards;
use farshore_proto::tls::Tls;
use farshore_proto::wire::ScrubStatusReply;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A cluster, as a client sees it.
#[derive(Clone)]
pub struct Client(Arc<Parts>);

#[derive(Clone)]
struct Parts {
    host: Host,
    api: Arc<dyn CatalogueApi>,
    shards: Arc<dyn ShardIo>,
    health: Arc<NodeHealth>,
    /// Where reading costs least.
    costs: Arc<Costs>,
    /// Direct lines to the nodes; none when the cluster is not reached by gRPC.
    direct: Option<Direct>,
}

/// What goes past the catalogue's own calls.
#[derive(Clone)]
struct Direct {
    peers: Arc<Peers>,
    operator: Arc<Operator>,
}

/// A repository that was found but not opened.
#[derive(Clone, Debug)]
pub struct SealedRepository(RepoRecord);

impl SealedRepository {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.0.name
    }
    /// What must be survived.
    pub fn policy(&self) -> Policy {
        self.0.policy
    }
}

impl Client {
    /// Connects to the cluster of a profile: any node that answers will do.
    pub async fn connect(host: Host, profile: Profile) -> Result<Client> {
        Self::connect_as(host, profile, Freshness::Confirmed).await
    }

    /// The same, and says how fresh the catalogue's answers must be.
    pub async fn connect_as(host: Host, profile: Profile, freshness: Freshness) -> Result<Client> {
        let tls = Tls::new(&profile.credentials(), host.clock.clone());
        let tls = Arc::new(tls.map_err(|e| Error::Credential(e.to_string()))?);
        let peers = Arc::new(Peers::new(host.net.clone(), tls.clone()));
        let conversation =
            Conversation::new(host.net.clone(), tls, host.entropy.clone(), &profile.endpoints)?;
        let conversation = Arc::new(conversation);
        let operator = Arc::new(Operator::new(conversation.clone(), host.entropy.clone()));
        let api = Arc::new(GrpcCatalogue::new(conversation, peers.clone(), freshness));
        let topology = api.topology().await?;
        if topology.cluster != profile.cluster {
            return Err(Error::Credential("the profile belongs to another cluster".into()));
        }
        let shards = Arc::new(GrpcShards::new(peers.clone()));
        let client = Self::assemble(host, api, shards, Some(Direct { peers, operator }));
        // Asked when nothing better is left, so that nobody waits for what the cluster already misses.
        for node in topology.nodes.iter().filter(|node| !node.state.answers()) {
            client.0.health.note(node.id, &ShardError::Unreachable(node.id, "the cluster misses it".into()));
        }
        client.0.health.told_slow(topology.slow);
        Ok(client)
    }

    /// A client over any catalogue and shards, such as those of a test.
    pub fn from_parts(host: Host, api: Arc<dyn CatalogueApi>, shards: Arc<dyn ShardIo>) -> Client {
        Self::assemble(host, api, shards, None)
    }

    /// The same client, asking the catalogue through `wrap`: the seam for what watches calls, or repeats them. What was
    /// opened before goes on as it was.
    #[must_use]
    pub fn with_catalogue(
        &self,
        wrap: impl FnOnce(Arc<dyn CatalogueApi>) -> Arc<dyn CatalogueApi>,
    ) -> Client {
        let api = wrap(self.0.api.clone());
        Client(Arc::new(Parts { api, ..self.0.as_ref().clone() }))
    }

    /// The same client, which is in region `home` and reads from where that costs least. What was opened before goes on as it
    /// was.
    pub async fn near(&self, home: &Region) -> Result<Client> {
        let nodes = self.topology().await?.nodes;
        if !nodes.iter().any(|node| node.region == *home) {
            return Err(no_such_region(home, &nodes));
        }
        let upkeep = match &self.0.direct {
            Some(direct) => direct.operator.upkeep().await,
            None => Ok(Upkeep::default()),
        };
        // Of an older release, or nobody who knows can be reached: what is near comes first all the same.
        let upkeep = upkeep.unwrap_or_else(|error| {
            tracing::debug!(%error, "prices of links are not known");
            Upkeep::default()
        });
        let costs = Arc::new(Costs::seen_from(home, &nodes, &upkeep));
        Ok(Client(Arc::new(Parts { costs, ..self.0.as_ref().clone() })))
    }

    /// The same client, which reads and writes as if these regions were gone: nothing is asked of their nodes. What was opened
    /// before goes on as it was.
    pub async fn avoiding(&self, regions: &[Region]) -> Result<Client> {
        let nodes = self.topology().await?.nodes;
        if let Some(unknown) = regions.iter().find(|region| !nodes.iter().any(|node| node.region == **region))
        {
            return Err(no_such_region(unknown, &nodes));
        }
        let avoided = nodes.iter().filter(|node| regions.contains(&node.region)).map(|node| node.id);
        let avoided: BTreeSet<NodeId> = avoided.collect();
        let costs = Arc::new(self.0.costs.avoiding(avoided.clone()));
        let shards = Arc::new(Avoid { inner: self.0.shards.clone(), nodes: avoided });
        Ok(Client(Arc::new(Parts { costs, shards, ..self.0.as_ref().clone() })))
    }

    fn assemble(
        host: Host,
        api: Arc<dyn CatalogueApi>,
        shards: Arc<dyn ShardIo>,
        direct: Option<Direct>,
    ) -> Client {
        let (health, costs) = (Arc::new(NodeHealth::new()), Arc::default());
        Client(Arc::new(Parts { host, api, shards, health, costs, direct }))
    }

    /// The whole picture of the cluster.
    pub async fn status(&self) -> Result<ClusterStatus> {
        self.0.api.status().await
    }

    /// Who exists.
    pub async fn topology(&self) -> Result<Topology> {
        self.0.api.topology().await
    }

    /// Has every node that is not gone re-read all its shards, and waits.
    pub async fn scrub(&self) -> Result<ScrubResult> {
        let direct = self.0.direct.as_ref();
        let direct = direct.ok_or_else(|| Error::Invalid("this cluster cannot be asked to scrub".into()))?;
        let nodes = self.topology().await?.nodes;
        let asked: Vec<_> = nodes
            .iter()
            .filter(|n| matches!(n.state, NodeState::Up | NodeState::Suspect | NodeState::Draining))
            .map(|n| n.id)
            .collect();
        Ok(scrub::scrub(&direct.peers, &asked).await)
    }

    /// How far each of these nodes is with re-reading its shards by itself, or why it does not say.
    pub async fn scrub_standing(
        &self,
        nodes: &[NodeId],
    ) -> Result<BTreeMap<NodeId, std::result::Result<ScrubStatusReply, String>>> {
        let direct = self.0.direct.as_ref();
        let direct = direct.ok_or_else(|| Error::Invalid("this cluster cannot be asked".into()))?;
        // From the topology the addresses are learnt.
        self.topology().await?;
        Ok(scrub::standing(&direct.peers, nodes).await)
    }

    /// To look at the topology and to change it.
    pub fn operator(&self) -> Result<&Operator> {
        let direct = self.0.direct.as_ref().map(|direct| direct.operator.as_ref());
        direct.ok_or_else(|| Error::Invalid("the topology of this cluster cannot be changed".into()))
    }

    /// Has the leader export the whole catalogue now, and waits.
    pub async fn export_catalogue(&self) -> Result<farshore_proto::wire::ExportCatalogueReply> {
        let direct = self.0.direct.as_ref();
        let direct = direct.ok_or_else(|| Error::Invalid("this cluster cannot be asked to export".into()))?;
        // From the topology the addresses are learnt.
        self.topology().await?;
        export::export(&direct.peers, &self.status().await?).await
    }

    /// Creates a repository. Refused if this cluster cannot meet the policy; the reason names the nearest it can.
    pub async fn create_repository(
        &self,
        name: &str,
        policy: Policy,
        passphrase: &str,
        kdf: KdfParams,
    ) -> Result<Repository> {
        self.create_repository_as(name, policy, passphrase, kdf, RepoConfig::default()).await
    }

    /// Creates a repository with settings of its own.
    pub async fn create_repository_as(
        &self,
        name: &str,
        policy: Policy,
        passphrase: &str,
        kdf: KdfParams,
        config: RepoConfig,
    ) -> Result<Repository> {
        let note =
            SlotNote { user: String::new(), host: String::new(), created_ms: self.0.host.clock.now_ms() };
        let key = NewKey { secret: Secret::passphrase(passphrase), kdf, note };
        self.create_repository_with(name, policy, &key, config).await
    }

    /// Creates a repository with any kind of key.
    pub async fn create_repository_with(
        &self,
        name: &str,
        policy: Policy,
        key: &NewKey,
        config: RepoConfig,
    ) -> Result<Repository> {
        let name = named(name)?;
        match self.0.api.get_repository(&name).await {
            Err(Error::RepositoryMissing(_)) => {}
            Ok(_) => return Err(Error::RepositoryExists(name.to_string())),
            Err(other) => return Err(other),
        }
        let nodes = self.topology().await?.nodes;
        policy::compile(&policy, &nodes).map_err(|e| Error::Policy(e.to_string()))?;
        let entropy = self.0.host.entropy.clone();
        let (id, master) = (RepoId(random(entropy.as_ref())), MasterKey::new(entropy.as_ref()));
        let keys = master.keys(id);
        let (slot, unlocked) = self.new_slot(id, &master, key).await?;
        let sealed_config = config.seal(&keys, entropy.as_ref());
        let record = RepoRecord { id, name, policy, sealed_config, key_slots: vec![slot] };
        let record = self.0.api.create_repository(record).await?;
        Ok(self.repository(record, unlocked, keys, config))
    }

    /// Finds a repository by name.
    pub async fn find_repository(&self, name: &str) -> Result<SealedRepository> {
        self.0.api.get_repository(&named(name)?).await.map(SealedRepository)
    }

    /// Opens a repository that was found.
    pub async fn unlock_repository(&self, sealed: SealedRepository, passphrase: &str) -> Result<Repository> {
        self.unlock_with(sealed, Secret::passphrase(passphrase)).await
    }

    /// Finds and opens a repository.
    pub async fn open_repository(&self, name: &str, passphrase: &str) -> Result<Repository> {
        let sealed = self.find_repository(name).await?;
        self.unlock_repository(sealed, passphrase).await
    }

    fn repository(
        &self,
        record: RepoRecord,
        unlocked: Unlocked,
        keys: RepoKeys,
        config: RepoConfig,
    ) -> Repository {
        let parts = &self.0;
        let watch = Arc::new(Watch::new(parts.shards.clone()));
        let ring = KeyRing::new(parts.api.clone(), record.name.clone(), keys.clone(), unlocked);
        let ring = Arc::new(ring);
        let reader = ChunkReader::new(
            parts.host.clone(),
            parts.api.clone(),
            watch.clone(),
            keys,
            parts.health.clone(),
        );
        let reader = Arc::new(reader.at(parts.costs.clone()).learning(ring.clone()));
        let trees = Arc::new(TreeReader::new(reader.clone()));
        let client = self.clone();
        Repository(Arc::new(Opened { client, record, ring, config, watch, reader, trees }))
    }
}

fn no_such_region(region: &Region, nodes: &[NodeRecord]) -> Error {
    let regions: BTreeSet<&str> = nodes.iter().map(|node| node.region.as_str()).collect();
    let regions = Vec::from_iter(regions).join(", ");
    Error::Invalid(format!("no node is in region {region}; there are: {regions}"))
}

/// Calls of one prune at most; what is left is collected by the cluster itself.
const PRUNE_CALLS_MAX: usize = 1_000;

fn named(name: &str) -> Result<Name> {
    name.parse().map_err(|e: farshore_core::topology::BadName| Error::Invalid(e.to_string()))
}

/// An opened repository.
#[derive(Clone)]
pub struct Repository(Arc<Opened>);

struct Opened {
    client: Client,
    record: RepoRecord,
    ring: Arc<KeyRing>,
    config: RepoConfig,
    watch: Arc<Watch>,
    reader: Arc<ChunkReader>,
    trees: Arc<TreeReader>,
}

impl Repository {
    /// Its id.
    pub fn id(&self) -> RepoId {
        self.0.record.id
    }
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.0.record.name
    }
    /// What must be survived.
    pub fn policy(&self) -> Policy {
        self.0.record.policy
    }
    /// The cluster it lies in.
    pub fn client(&self) -> &Client {
        &self.0.client
    }
    /// The seams it works through.
    pub fn host(&self) -> &Host {
        &self.0.client.0.host
    }
    /// Its settings.
    pub fn config(&self) -> &RepoConfig {
        &self.0.config
    }
    /// Reads its trees.
    pub(crate) fn trees(&self) -> Arc<TreeReader> {
        self.0.trees.clone()
    }
    /// Reads its chunks.
    pub(crate) fn reader(&self) -> Arc<ChunkReader> {
        self.0.reader.clone()
    }
    /// The catalogue it is described in.
    pub(crate) fn catalogue(&self) -> &dyn CatalogueApi {
        self.0.client.0.api.as_ref()
    }
    /// Its keys as they are known now.
    pub(crate) fn repo_keys(&self) -> RepoKeys {
        self.0.ring.keys().clone()
    }
    /// The same, once they were asked for anew: what is sealed now is sealed in the newest epoch.
    pub(crate) async fn newest_keys(&self) -> Result<RepoKeys> {
        self.0.ring.present().await?;
        Ok(self.repo_keys())
    }
    fn keys_of(&self) -> &RepoKeys {
        self.0.ring.keys()
    }
    /// Asks once more if later keys had to be learnt first.
    async fn with_keys<T, F: Future<Output = Result<T>>>(&self, ask: impl Fn() -> F) -> Result<T> {
        match ask().await {
            Err(error) if self.0.ring.learn_for(&error).await => ask().await,
            done => done,
        }
    }
    /// What reading has met since the repository was opened: bytes, bad shards, silent nodes.
    pub fn met(&self) -> Met {
        self.0.watch.met()
    }

    /// Its snapshots, oldest first.
    pub async fn snapshots(&self, filter: &Filter) -> Result<Vec<Snapshot>> {
        let api = self.0.client.0.api.as_ref();
        self.with_keys(|| list::snapshots(api, self.keys_of(), filter)).await
    }

    /// The snapshot a person means by `latest`, an id or the beginning of one, among those the filter admits. A path
    /// after a colon is returned beside it.
    pub async fn resolve(&self, spec: &[u8], filter: &Filter) -> Result<(Snapshot, Option<Vec<u8>>)> {
        let Spec { snapshot, path } = Spec::parse(spec);
        let api = self.0.client.0.api.as_ref();
        Ok((self.with_keys(|| list::resolve(api, self.keys_of(), &snapshot, filter)).await?, path))
    }

    /// Lists what lies below a path of a snapshot, calling `each` for every entry.
    pub async fn ls(
        &self,
        snapshot: &Snapshot,
        path: &[u8],
        recursive: bool,
        each: &mut (dyn FnMut(ListedEntry) + Send),
    ) -> Result<()> {
        list::ls(self.0.trees.clone(), snapshot, path, recursive, each).await
    }

    /// Compares two directories of snapshots, calling `each` for every difference; see [`diff::diff`].
    pub async fn diff(
        &self,
        sides: (diff::Side<'_>, diff::Side<'_>),
        attributes: bool,
        each: &mut (dyn FnMut(diff::Difference) + Send),
    ) -> Result<diff::Totals> {
        diff::diff(self.0.trees.clone(), sides, attributes, each).await
    }

    /// Looks for paths in one snapshot after the other.
    pub fn finder(&self, wanted: find::Wanted) -> find::Finder {
        find::Finder::new(self.0.trees.clone(), wanted)
    }

    /// Snapshots in the trash, oldest first.
    pub async fn trash(&self, filter: &Filter) -> Result<Vec<Snapshot>> {
        let api = self.0.client.0.api.as_ref();
        self.with_keys(|| list::trash(api, self.keys_of(), filter)).await
    }

    /// Moves snapshots to the trash, all or none: refused if a lock keeps one. `bypass` ignores locks in governance mode.
    /// Says how many were moved; those that are not there are passed over.
    pub async fn forget(&self, snapshots: &[SnapshotId], bypass: bool) -> Result<u32> {
        let change = |snapshots| RepoChange::Forget { snapshots, bypass };
        self.change_each(snapshots, change).await
    }

    /// What a retention policy would forget among the snapshots the filter admits.
    pub async fn plan_forget(&self, keep: &Keep, filter: &Filter) -> Result<ForgetPlan> {
        let snapshots = self.snapshots(filter).await?;
        let (settings, now_ms) = self.settings().await?;
        Ok(retention::plan(self.keys_of(), keep, snapshots, &settings, now_ms))
    }

    /// Stores a policy that then runs by itself, on groups of host and paths; or takes it away.
    pub async fn store_policy(&self, keep: Option<&Keep>) -> Result<()> {
        let policy = keep.map(|keep| keep.hashed(self.keys_of()));
        if let Some(policy) = &policy {
            policy.check().map_err(|e| Error::Invalid(e.to_string()))?;
        }
        self.set_retention(policy.map(|policy| policy.to_string())).await
    }

    /// The policy that runs by itself, if there is one.
    pub async fn stored_policy(&self) -> Result<Option<farshore_core::retention::Policy>> {
        let text = self.settings().await?.0.retention;
        let parse = |text: String| text.parse().map_err(|e| Error::corrupt("stored retention policy", e));
        text.map(parse).transpose()
    }

    /// Takes snapshots out of the trash.
    pub async fn undelete(&self, snapshots: &[SnapshotId]) -> Result<u32> {
        self.change_each(snapshots, |snapshots| RepoChange::Undelete { snapshots }).await
    }

    /// Removes snapshots from the trash for good; `early` also those whose time in it is not over.
    pub async fn purge(&self, snapshots: &[SnapshotId], early: bool) -> Result<u32> {
        self.change_each(snapshots, |snapshots| RepoChange::Purge { snapshots, early }).await
    }

    /// Locks a snapshot or extends its lock. `bypass` allows to shorten one in governance mode.
    pub async fn lock_snapshot(&self, snapshot: SnapshotId, lock: Lock, bypass: bool) -> Result<()> {
        self.change(RepoChange::LockSnapshot { snapshot, lock, bypass }).await.map(drop)
    }

    /// Locks every snapshot from its commit on, or extends that. `bypass` allows to shorten or lift a lock in governance
    /// mode.
    pub async fn lock(&self, lock: Option<RepoLock>, bypass: bool) -> Result<()> {
        self.change(RepoChange::Lock { lock, bypass }).await.map(drop)
    }

    /// Sets how long forgotten snapshots stay in the trash, milliseconds; `None` for the default.
    pub async fn set_trash(&self, trash_ms: Option<u64>) -> Result<()> {
        self.change(RepoChange::SetTrash { trash_ms }).await.map(drop)
    }

    /// Sets the retention policy that runs by itself, in its readable form; `None` for none.
    pub async fn set_retention(&self, policy: Option<String>) -> Result<()> {
        self.change(RepoChange::SetRetention { policy }).await.map(drop)
    }

    /// Sets what must be survived, and how the nodes of now are to hold it: what is stored in another code is coded anew in
    /// the background, readable all the time. Refused if the nodes cannot meet it; the reason names the nearest they can.
    pub async fn set_policy(&self, policy: Policy) -> Result<Scheme> {
        let nodes = self.0.client.topology().await?.nodes;
        let scheme = policy::compile(&policy, &nodes).map_err(|e| Error::Policy(e.to_string()))?;
        self.change(RepoChange::SetPolicy { policy, scheme }).await?;
        Ok(scheme)
    }

    /// Notes that all data of a snapshot was read and found right just now.
    pub async fn mark_verified(&self, snapshot: SnapshotId) -> Result<()> {
        self.change(RepoChange::MarkVerified { snapshot }).await.map(drop)
    }

    /// What an operator has set, and catalogue time, Unix milliseconds.
    pub async fn settings(&self) -> Result<(RepoSettings, u64)> {
        self.0.client.0.api.settings(self.id()).await
    }

    /// What garbage there is; unless `dry_run`, what can be collected at once is collected first.
    pub async fn prune(&self, dry_run: bool) -> Result<GarbageReport> {
        let api = &self.0.client.0.api;
        let mut sum = api.collect_garbage(self.id(), dry_run).await?;
        for _ in 1..PRUNE_CALLS_MAX {
            if dry_run || !sum.more {
                break;
            }
            // What there was before the first call, and all that was done.
            let next = api.collect_garbage(self.id(), false).await?;
            sum.dropped += next.dropped;
            sum.dropped_bytes += next.dropped_bytes;
            sum.compacted += next.compacted;
            (sum.unswept, sum.more) = (next.unswept, next.more);
        }
        Ok(sum)
    }

    async fn change(&self, change: RepoChange) -> Result<u32> {
        self.0.client.0.api.change_repository(self.id(), change).await
    }

    /// In as many commands as it takes; each is all or none.
    async fn change_each(
        &self,
        snapshots: &[SnapshotId],
        change: impl Fn(Vec<SnapshotId>) -> RepoChange,
    ) -> Result<u32> {
        let mut count = 0;
        for some in snapshots.chunks(SNAPSHOTS_PER_COMMAND_MAX) {
            count += self.change(change(some.to_vec())).await?;
        }
        Ok(count)
    }

    /// Backs a tree up. Cancelling it leaves at most packs that no snapshot needs; the cluster removes them.
    pub async fn backup(
        &self,
        options: &backup::Options,
        source: Arc<dyn Source>,
        progress: Arc<dyn Progress>,
    ) -> Result<backup::Summary> {
        let parts = &self.0.client.0;
        // What must be survived may have changed since the repository was opened, more than once: packs coded for what was
        // asked for then would not be taken any more.
        let mut repo = parts.api.get_repository(self.name()).await?;
        if mutant(Mutant::StalePolicy) {
            repo.policy = self.policy();
        }
        // What is sealed from now on is sealed with the keys of now, and only by whose key is one of now.
        self.0.ring.learn_from(&repo)?;
        let context = backup::Context {
            host: parts.host.clone(),
            catalogue: parts.api.clone(),
            shards: self.0.watch.clone(),
            health: parts.health.clone(),
            repo,
            keys: self.keys_of().clone(),
            config: self.0.config,
            chunks: self.0.trees.clone(),
            source,
            progress,
        };
        backup::run(&context, options).await
    }

    /// Restores a snapshot into a target.
    pub async fn restore(
        &self,
        snapshot: &Snapshot,
        options: &restore::Options,
        target: &dyn Target,
        progress: &dyn Progress,
    ) -> Result<restore::Summary> {
        let context = restore::Context { reader: self.0.reader.clone(), trees: self.0.trees.clone() };
        restore::run(&context, snapshot, options, target, progress).await
    }

    /// Reads back what a restore with these options has written, and compares it with the snapshot.
    pub async fn verify(
        &self,
        snapshot: &Snapshot,
        options: &restore::Options,
        target: &dyn Target,
        progress: &dyn Progress,
    ) -> Result<restore::Verified> {
        let context = restore::Context { reader: self.0.reader.clone(), trees: self.0.trees.clone() };
        restore::verify::run(&context, snapshot, options, target, progress).await
    }

    /// Finds what to dump; `path` lies below `root`.
    pub async fn dump(&self, snapshot: &Snapshot, root: Option<&[u8]>, path: &[u8]) -> Result<Dump> {
        let (reader, trees) = (self.0.reader.clone(), self.0.trees.clone());
        let context = dump::Context { reader, trees, compute: self.host().compute.clone() };
        Dump::open(context, snapshot, root, path).await
    }

    /// A tree of all its snapshots to look at.
    pub fn view(&self, options: view::Options) -> View {
        let (api, keys) = (self.0.client.0.api.clone(), self.repo_keys());
        View::new(api, keys, self.0.reader.clone(), self.0.trees.clone(), options)
    }

    /// Checks the repository; the report's verdict says whether all is well.
    pub async fn check(&self, options: check::Options, progress: &dyn Progress) -> Result<check::Report> {
        let parts = &self.0.client.0;
        let context = check::Context {
            host: parts.host.clone(),
            api: parts.api.clone(),
            shards: self.0.watch.clone(),
            ring: self.0.ring.clone(),
            trees: self.0.trees.clone(),
        };
        // Nothing is called damaged for want of the keys of now.
        context.ring.present().await?;
        check::run(&context, options, progress).await
    }
}
