//! Shards sent and read through real TLS and HTTP/2, from nodes that are honest and nodes that are not.

use super::{BuildError, GrpcShards};
use crate::peers::Peers;
use crate::status::ApiError;
use crate::testing::{Mood, Served, Store, World};
use crate::wire::BuildRequest;
use bytes::Bytes;
use farshore_core::catalogue::{PackKind, PackRecord, ShardRecord, StripeRecord};
use farshore_core::erasure::Scheme;
use farshore_core::gather::{BuildOrder, RegionSum};
use farshore_core::id::{NodeId, Ordinal, PackId, PackNo, RepoId, SessionId};
use farshore_core::limits::{SHARD_BLOCK_BYTES, SUM_PIECE_BYTES};
use farshore_core::peer::{ShardError, ShardIo, ShardPut, ShardRef, SumIo, Term};
use farshore_core::shard::{PackInfo, ShardRange, hash_shard};
use futures_util::StreamExt;
use std::sync::Arc;

struct Fixture {
    shards: GrpcShards,
    store: Arc<Store>,
    node: NodeId,
    put: ShardPut,
    _served: Served,
}

impl Fixture {
    /// A node in this mood, and a shard for it that is larger than a stream's window.
    async fn new(mood: Mood) -> Self {
        let world = World::new(1);
        let (node, tls) = world.node();
        let store = Store::with(mood);
        let served = world.serve("node:1", tls, store.clone()).await;
        let peers = Peers::new(world.net.clone(), world.client("laptop"));
        peers.set(node, "node:1");
        let pack = PackInfo {
            cluster: world.authority.cluster(),
            repo: RepoId([2; 16]),
            pack: PackId([3; 32]),
            pack_len: 10 << 20,
            scheme: Scheme::new(2, 1, 1).unwrap(),
        };
        let len = pack.scheme.shard_len(pack.pack_len) as usize;
        let payload: Bytes = (0..len).map(|i| (i / 7) as u8).collect::<Vec<_>>().into();
        let (hash, _) = hash_shard(pack.shard(1), &payload);
        let put = ShardPut { header: pack.header(1, hash), payload, session: Some(SessionId([4; 16])) };
        Fixture { shards: GrpcShards::new(Arc::new(peers)), store, node, put, _served: served }
    }
    fn reference(&self) -> ShardRef {
        let header = &self.put.header;
        ShardRef { repo: header.repo, id: header.id, hash: header.hash, payload_len: header.payload_len }
    }
    /// The node holds the shard already.
    fn place(&self) {
        self.store.shards.lock().unwrap().insert(self.put.header.id, self.put.payload.clone());
    }
    async fn get(&self, ranges: &[ShardRange]) -> Result<Vec<Bytes>, ShardError> {
        self.shards.get(self.node, self.reference(), ranges).await
    }
}

const BLOCK: u64 = SHARD_BLOCK_BYTES as u64;

#[tokio::test]
async fn what_is_put_is_got() {
    let f = Fixture::new(Mood::Honest).await;
    let receipt = f.shards.put(f.node, f.put.clone()).await.unwrap();
    assert_eq!((receipt.node, receipt.shard, receipt.hash), (f.node, f.put.header.id, f.put.header.hash));
    let len = f.put.header.payload_len;
    let ranges = [
        ShardRange { offset: len - 1, len: 1 },
        ShardRange { offset: 3, len: 2 * BLOCK },
        ShardRange { offset: 0, len },
        ShardRange { offset: 9 * BLOCK, len: BLOCK },
    ];
    let got = f.get(&ranges).await.unwrap();
    for (range, bytes) in ranges.iter().zip(&got) {
        assert_eq!(bytes, &f.put.payload.slice(range.offset as usize..(range.offset + range.len) as usize));
    }
    assert_eq!(got.len(), ranges.len());
    assert_eq!(f.get(&[]).await, Ok(vec![]));
    f.shards.verify(f.node, f.reference()).await.unwrap();
}

#[tokio::test]
async fn a_lying_node_is_caught() {
    for mood in [Mood::FlippedBit, Mood::WrongSums, Mood::Endless, Mood::Short, Mood::Unordered] {
        let f = Fixture::new(mood.clone()).await;
        f.place();
        let got = f.get(&[ShardRange { offset: 0, len: 9 * BLOCK }]).await;
        assert!(matches!(got, Err(ShardError::Corrupt(..))), "{mood:?}: {got:?}");
    }
    let f = Fixture::new(Mood::WrongReceipt).await;
    assert!(matches!(f.shards.put(f.node, f.put.clone()).await, Err(ShardError::Corrupt(..))));
}

#[tokio::test]
async fn errors_arrive_as_what_they_are() {
    let f = Fixture::new(Mood::Honest).await;
    let whole = [ShardRange { offset: 0, len: 1 }];
    assert_eq!(f.get(&whole).await, Err(ShardError::Missing(f.node, f.put.header.id)));
    f.place();
    let beyond = [ShardRange { offset: f.put.header.payload_len, len: 1 }];
    assert!(matches!(f.get(&beyond).await, Err(ShardError::Refused(..))));
    let stranger = f.shards.get(NodeId(99), f.reference(), &whole).await;
    assert!(matches!(stranger, Err(ShardError::Unreachable(NodeId(99), _))));

    let fails = |error| *f.store.mood.lock().unwrap() = Mood::Fails(error);
    fails(ApiError::Full("no room".into()));
    assert!(matches!(f.shards.put(f.node, f.put.clone()).await, Err(ShardError::Full(..))));
    fails(ApiError::Corrupt("bit rot".into()));
    assert!(matches!(f.shards.verify(f.node, f.reference()).await, Err(ShardError::Corrupt(..))));
    fails(ApiError::Denied("no grant".into()));
    assert!(matches!(f.get(&whole).await, Err(ShardError::Refused(..))));
    fails(ApiError::TooBusy("later".into()));
    assert!(matches!(f.get(&whole).await, Err(ShardError::Unreachable(..))));
}

#[tokio::test]
async fn a_sum_comes_piece_by_piece() {
    let f = Fixture::new(Mood::Honest).await;
    f.place();
    let term = Term { node: f.node, shard: f.reference(), factor: 3 };
    let pieces = f.shards.sum(f.node, &[term, Term { factor: 2, ..term }]).await.unwrap();
    let pieces: Vec<Bytes> = pieces.map(Result::unwrap).collect().await;
    assert!(
        pieces.len() > 1 && pieces[..pieces.len() - 1].iter().all(|piece| piece.len() == SUM_PIECE_BYTES)
    );
    assert_eq!(pieces.concat(), f.put.payload, "3 and 2 add up to 1");
    assert!(f.shards.sum(f.node, &[]).await.is_err());
    *f.store.mood.lock().unwrap() = Mood::Fails(ApiError::Unreachable("a source is gone".into()));
    assert!(matches!(f.shards.sum(f.node, &[term]).await.err(), Some(ShardError::Unreachable(..))));
}

#[tokio::test]
async fn a_node_of_an_older_release_is_known_by_its_answer() {
    let f = Fixture::new(Mood::Honest).await;
    let (header, scheme) = (&f.put.header, f.put.header.scheme);
    let shard = ShardRecord { node: Some(f.node), hash: header.hash };
    let stripe = StripeRecord {
        id: header.id.stripe,
        scheme,
        shard_len: header.payload_len,
        generation: 0,
        shards: vec![shard; scheme.n()],
    };
    let term = Term { node: f.node, shard: f.reference(), factor: 1 };
    let region = "p/r".parse().unwrap();
    let pack = PackRecord {
        no: PackNo(1),
        id: header.pack,
        repo: header.repo,
        kind: PackKind::Data,
        len: header.pack_len,
        chunks: 1,
        first_ordinal: Ordinal(0),
        stripe,
    };
    let order =
        BuildOrder { pack, index: 1, sums: vec![RegionSum { region, terms: vec![term], relay: None }] };
    assert_eq!(BuildOrder::try_from(BuildRequest::from(order.clone())).unwrap(), order);
    assert!(matches!(f.shards.build(f.node, order.clone()).await, Err(BuildError::Unknown)));

    let wrong: [fn(&mut BuildRequest); 6] = [
        |r| r.pack = None,
        |r| r.index = 3,
        |r| r.sums.clear(),
        |r| r.sums[0].terms.clear(),
        |r| r.sums[0].terms[0].factor = 256,
        |r| r.sums[0].terms[0].shard.as_mut().unwrap().payload_len -= 1,
    ];
    for (case, spoil) in wrong.into_iter().enumerate() {
        let mut request = BuildRequest::from(order.clone());
        spoil(&mut request);
        assert!(BuildOrder::try_from(request).is_err(), "case {case}");
    }
}
