//! Shards made of sums, from relays that are honest, that lie, and that fail.

use super::*;
use crate::disk::RealDisk;
use crate::kv::RealKv;
use crate::store::StoreOptions;
use farshore_core::catalogue::{PackKind, PackRecord, ShardRecord, StripeRecord};
use farshore_core::erasure::{Codec, Scheme};
use farshore_core::gather::plan_sums;
use farshore_core::host::real::{OsEntropy, Processors, SystemClock, TcpNet};
use farshore_core::host::task::splitmix;
use farshore_core::host::{Host, task};
use farshore_core::id::{Ordinal, PackId, PackNo, RepoId};
use farshore_core::shard::hash_shard;
use std::collections::BTreeSet;

const CLUSTER: ClusterId = ClusterId([7; 16]);
const REPO: RepoId = RepoId([2; 16]);
const NODES: u8 = 15;

/// Fifteen nodes in three regions, a stripe of 9+6 over them whose shard i lies on node i + 1, and what is wrong.
struct World {
    payloads: Vec<Bytes>,
    stripe: StripeRecord,
    /// Relays whose sums have a flipped bit.
    lie: BTreeSet<NodeId>,
    /// Nodes that answer nothing.
    dead: BTreeSet<NodeId>,
    /// Nodes whose shard is rotten.
    rotten: BTreeSet<NodeId>,
}

fn node(index: u8) -> NodeId {
    NodeId(u64::from(index) + 1)
}
fn region(node: NodeId) -> Option<Region> {
    (node.0 <= u64::from(NODES)).then(|| format!("p/{}", (node.0 - 1) / 5).parse().unwrap())
}

#[async_trait]
impl ShardIo for World {
    async fn put(&self, node: NodeId, _: ShardPut) -> Result<Receipt, ShardError> {
        Err(ShardError::Refused(node, "nothing is put here".into()))
    }
    async fn get(
        &self,
        node: NodeId,
        shard: ShardRef,
        ranges: &[ShardRange],
    ) -> Result<Vec<Bytes>, ShardError> {
        task_yields().await;
        if self.dead.contains(&node) {
            return Err(ShardError::Unreachable(node, "dead".into()));
        }
        if self.rotten.contains(&node) {
            return Err(ShardError::Corrupt(node, shard.id, "rot".into()));
        }
        let payload = &self.payloads[usize::from(shard.id.index)];
        let cut =
            |range: &ShardRange| payload.slice(range.offset as usize..(range.offset + range.len) as usize);
        Ok(ranges.iter().map(cut).collect())
    }
    async fn verify(&self, _: NodeId, _: ShardRef) -> Result<(), ShardError> {
        Ok(())
    }
}

async fn task_yields() {
    tokio::task::yield_now().await;
}

/// The relays of a world.
struct Relays(Arc<World>);

#[async_trait]
impl SumIo for Relays {
    async fn sum(&self, relay: NodeId, terms: &[Term]) -> Result<SumPieces, ShardError> {
        assert!(
            terms.iter().all(|term| region(term.node) == region(relay)),
            "each relay adds up its own region"
        );
        if self.0.dead.contains(&relay) {
            return Err(ShardError::Unreachable(relay, "dead".into()));
        }
        let lies = self.0.lie.contains(&relay);
        let pieces = pieces(self.0.clone(), Arc::new(Processors::new()), terms.to_vec());
        let spoilt = move |piece: Bytes| {
            let mut piece = piece.to_vec();
            piece[17] ^= u8::from(lies);
            Bytes::from(piece)
        };
        Ok(pieces.map(move |piece| piece.map(spoilt)).boxed())
    }
}

impl World {
    fn new(pack_len: usize) -> Self {
        let pack: Vec<u8> = (0..pack_len as u64).map(|i| splitmix(9, i) as u8).collect();
        let scheme = Scheme::new(9, 6, 5).unwrap();
        let info = PackInfo {
            cluster: CLUSTER,
            repo: REPO,
            pack: PackId::of(&pack),
            pack_len: pack_len as u64,
            scheme,
        };
        let payloads = Codec::new(scheme).encode_pack(pack.into());
        let shard = |(index, payload): (u8, &Bytes)| ShardRecord {
            node: Some(node(index)),
            hash: hash_shard(info.shard(index), payload).0,
        };
        let shards = (0..NODES).zip(&payloads).map(shard).collect();
        let shard_len = payloads[0].len() as u64;
        let stripe = StripeRecord { id: info.stripe(), scheme, shard_len, generation: 1, shards };
        World { payloads, stripe, lie: BTreeSet::new(), dead: BTreeSet::new(), rotten: BTreeSet::new() }
    }

    /// Shard 0 is lost and shall be made anew in its region.
    fn order(&self) -> BuildOrder {
        let holders: Vec<_> =
            (1..NODES).map(|index| (index, node(index), region(node(index)).unwrap())).collect();
        let home = region(node(0)).unwrap();
        let sums = plan_sums(&self.stripe, REPO, 0, &holders, &home).unwrap();
        let pack_len = 9 * self.stripe.shard_len;
        let pack: Vec<u8> = self.payloads[..9].concat();
        assert_eq!(pack.len() as u64, pack_len);
        let pack = PackRecord {
            no: PackNo(1),
            id: PackId::of(&pack),
            repo: REPO,
            kind: PackKind::Data,
            len: pack_len,
            chunks: 1,
            first_ordinal: Ordinal(0),
            stripe: self.stripe.clone(),
        };
        BuildOrder { pack, index: 0, sums }
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    builder: Builder,
    store: Arc<ShardStore>,
    order: BuildOrder,
    payload: Bytes,
}

impl Bench {
    /// A builder on a node of the first region that holds nothing yet.
    async fn new(world: World) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let host = Host {
            disk: Arc::new(RealDisk::new(dir.path())),
            kv: Arc::new(RealKv::new(dir.path())),
            net: Arc::new(TcpNet),
            clock: Arc::new(SystemClock),
            entropy: Arc::new(OsEntropy),
            compute: Arc::new(Processors::new()),
        };
        let options = StoreOptions { capacity: 1 << 30, reserve: 0 };
        let (store, _) = ShardStore::open(&host, CLUSTER, options).await.unwrap();
        let (order, payload, world) = (world.order(), world.payloads[0].clone(), Arc::new(world));
        let own = (NodeId(99), region(node(0)).unwrap());
        let relays = Arc::new(Relays(world.clone()));
        let builder = Builder::new(CLUSTER, own, store.clone(), world, relays, host.compute, Arc::default());
        Bench { _dir: dir, builder, store, order, payload }
    }
    async fn build(&self) -> Result<Built, BuildFailed> {
        self.builder.build(&self.order, &region, &|_| {}).await
    }
    async fn stored(&self) -> Vec<u8> {
        let shard = self.order.pack.stripe.shard(REPO, 0).unwrap();
        let whole = ShardRange { offset: 0, len: shard.payload_len };
        let (_, pieces) = self.store.get_blocks(shard.id, shard.hash, &[whole]).await.unwrap();
        pieces.into_iter().flat_map(|(_, bytes)| bytes).collect()
    }
    /// The one relay of the order.
    fn relay(&self) -> NodeId {
        self.order.sums[1].relay.unwrap()
    }
}

/// Not a whole number of pieces a shard.
const PACK: usize = 9 * (SUM_PIECE_BYTES * 5 / 2);

#[tokio::test]
async fn one_shard_crosses_where_five_would() {
    let bench = Bench::new(World::new(PACK)).await;
    let built = bench.build().await.unwrap();
    let far: Vec<_> = built.crossed.values().copied().collect();
    assert_eq!(far, [bench.order.pack.stripe.shard_len]);
    assert_eq!((built.liars.len(), built.singly), (0, false));
    assert_eq!(bench.stored().await, bench.payload);
    // Given up and come back: what is here is not sent again.
    let again = bench.build().await.unwrap();
    assert_eq!((again.crossed.len(), again.hash), (0, built.hash));
}

#[tokio::test]
async fn a_relay_that_lies_is_named_and_its_sum_not_used() {
    let mut world = World::new(PACK);
    world.lie = (1..=NODES.into()).map(NodeId).collect();
    let bench = Bench::new(world).await;
    let built = bench.build().await.unwrap();
    assert_eq!((built.liars, built.singly), (vec![bench.relay()], false));
    assert_eq!(bench.stored().await, bench.payload);
    let far: u64 = built.crossed.values().sum();
    assert_eq!(
        far,
        6 * bench.order.pack.stripe.shard_len,
        "the sum, and the five shards it should have been of"
    );
}

#[tokio::test]
async fn sources_that_fail_are_worked_around() {
    type Fail = fn(&mut World, NodeId);
    let cases: [Fail; 4] = [
        |world, relay| world.dead = [relay].into(),
        |world, relay| world.rotten = [relay].into(),
        |world, _| world.dead = [node(1), node(2)].into(),
        |world, relay| {
            world.lie = [relay].into();
            world.rotten = [node(1)].into();
        },
    ];
    for (case, fail) in cases.into_iter().enumerate() {
        let mut world = World::new(9 * 1_024);
        let relay = world.order().sums[1].relay.unwrap();
        fail(&mut world, relay);
        let bench = Bench::new(world).await;
        let built = bench.build().await.unwrap();
        assert!(built.singly, "case {case}");
        assert_eq!(bench.stored().await, bench.payload, "case {case}");
    }
}

#[tokio::test]
async fn nothing_is_kept_that_is_not_what_was_recorded() {
    let mut world = World::new(9 * 1_024);
    world.stripe.shards[0].hash.0[3] ^= 1;
    let bench = Bench::new(world).await;
    assert!(matches!(bench.build().await, Err(BuildFailed::Gather(GatherError::WrongShard(_)))));
    let mut world = World::new(9 * 1_024);
    world.dead = (1..8).map(node).collect();
    let bench = Bench::new(world).await;
    assert!(matches!(bench.build().await, Err(BuildFailed::Gather(GatherError::Unreadable { .. }))));
    let (mut bench, good) = (Bench::new(World::new(9 * 1_024)).await, Scheme::new(9, 5, 5).unwrap());
    bench.order.pack.stripe.scheme = good;
    assert!(matches!(bench.build().await, Err(BuildFailed::Order)));
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert_eq!((bench.store.stats().shards, bench.store.stats().reserved), (0, 0));
}

#[tokio::test]
async fn a_build_that_nobody_waits_for_leaves_nothing_behind() {
    let bench = Arc::new(Bench::new(World::new(PACK)).await);
    let building = bench.clone();
    let work = task::Owned::spawn(async move { drop(building.build().await) });
    tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    drop(work);
    let free = || bench.store.stats().reserved == 0;
    for _ in 0..200 {
        if free() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert!(free());
    bench.build().await.unwrap();
    assert_eq!(bench.stored().await, bench.payload);
}
