//! Whole calls over real TLS and HTTP/2 in memory: callers, garbage, limits, stopping, coming back.

use crate::channel::{connect, shards};
use crate::peers::Peers;
use crate::status::ApiError;
use crate::testing::{Mood, Store, World};
use crate::tls::{Caller, Expect, Tls};
use crate::wire::VerifyRequest;
use farshore_core::host::{ByteStream, Net};
use farshore_core::id::{NodeId, Ordinal};
use farshore_core::limits::{ERROR_ORDINALS_MAX, ERROR_TEXT_BYTES_MAX, MESSAGE_BYTES_MAX};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

const ADDR: &str = "node-1:7400";

fn dial(world: &World, tls: Arc<Tls>, expect: Expect) -> Channel {
    connect(world.net.clone(), tls, ADDR.into(), expect)
}

async fn call(channel: &Channel) -> Result<(), ApiError> {
    let request = VerifyRequest { shard: None };
    shards(channel.clone()).verify(request).await.map(drop).map_err(ApiError::from_status)
}

#[tokio::test]
async fn every_request_says_who_calls() {
    let (world, store) = (World::new(1), Store::with(Mood::Honest));
    let (id, node) = world.node();
    let _served = world.serve(ADDR, node, store.clone()).await;
    let (other_id, other) = world.node();
    for tls in [other, world.client("laptop")] {
        call(&dial(&world, tls, Expect::Node(id))).await.unwrap();
    }
    let callers = store.callers.lock().unwrap().clone();
    assert_eq!(callers, [Some(Caller::Node(other_id)), Some(Caller::Client("laptop".into()))]);
}

#[tokio::test]
async fn wrong_credentials_are_told_from_broken_lines() {
    let (world, strangers) = (World::new(1), World::new(2));
    let (id, node) = world.node();
    let served = world.serve(ADDR, node, Store::with(Mood::Honest)).await;
    let denied = call(&dial(&world, strangers.client("laptop"), Expect::AnyNode)).await;
    assert!(matches!(denied, Err(ApiError::Denied(_))), "{denied:?}");
    let moved = call(&dial(&world, world.client("laptop"), Expect::Node(NodeId(7)))).await;
    assert!(matches!(moved, Err(ApiError::Unreachable(_))), "{moved:?}");
    let channel = dial(&world, world.client("laptop"), Expect::Node(id));
    call(&channel).await.unwrap();
    served.done.abort();
    let _ = served.done.await;
    let gone = call(&channel).await;
    assert!(matches!(gone, Err(ApiError::Unreachable(_))), "{gone:?}");
}

/// Says something and waits until the other side hangs up.
async fn poke(mut stream: Box<dyn ByteStream>, bytes: &[u8]) {
    let _ = stream.write_all(bytes).await;
    let _ = stream.flush().await;
    let _ = stream.read_to_end(&mut Vec::new()).await;
}

#[tokio::test]
async fn garbage_closes_its_connection_and_nothing_else() {
    let world = World::new(1);
    let (id, node) = world.node();
    let _served = world.serve(ADDR, node, Store::with(Mood::Honest)).await;
    let laptop = world.client("laptop");
    let steady = dial(&world, laptop.clone(), Expect::Node(id));
    call(&steady).await.unwrap();

    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xff; 300], &[22, 3, 1, 0xff, 0xff, 1], &[0; 70_000]] {
        poke(world.net.dial(ADDR).await.unwrap(), garbage).await;
    }
    drop(world.net.dial(ADDR).await.unwrap());

    // A member may send garbage too: no preface at all, then a frame of 16 MiB after a good one.
    let mut frame = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    frame.extend_from_slice(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]);
    for garbage in [&b"GET / HTTP/1.1\r\nHost: node\r\n\r\n"[..], &frame] {
        let stream = world.net.dial(ADDR).await.unwrap();
        let (stream, _) = laptop.connect(stream, Expect::Node(id)).await.unwrap();
        poke(stream, garbage).await;
    }
    call(&steady).await.unwrap();
    call(&dial(&world, laptop, Expect::Node(id))).await.unwrap();
}

#[tokio::test]
async fn an_oversized_message_is_refused_with_a_typed_error() {
    let world = World::new(1);
    let (id, node) = world.node();
    let _served = world.serve(ADDR, node, Store::with(Mood::Honest)).await;
    let channel = dial(&world, world.client("laptop"), Expect::Node(id));
    let request = async |len: usize| {
        let shard = crate::wire::ShardRef { repo: vec![0; len].into(), ..Default::default() };
        shards(channel.clone()).verify(VerifyRequest { shard: Some(shard) }).await
    };
    request(MESSAGE_BYTES_MAX - 100).await.unwrap();
    let error = ApiError::from_status(request(MESSAGE_BYTES_MAX + 1).await.unwrap_err());
    assert!(matches!(error, ApiError::Invalid(_)), "{error:?}");
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn errors_keep_their_meaning_on_the_way() {
    let (world, store) = (World::new(1), Store::with(Mood::Honest));
    let (id, node) = world.node();
    let _served = world.serve(ADDR, node, store.clone()).await;
    let channel = dial(&world, world.client("laptop"), Expect::Node(id));
    let gone =
        |count: usize| ApiError::ChunksGone((0..count as u64).map(|i| Ordinal(u64::MAX - i)).collect());
    // Percent-encoding triples these.
    let long = |len: usize| ApiError::Invalid("ä".repeat(len / 2));
    for (error, arrives) in [
        (ApiError::Stale(9), ApiError::Stale(9)),
        (ApiError::NoSession("x".into()), ApiError::NoSession("x".into())),
        (gone(10 * ERROR_ORDINALS_MAX), gone(ERROR_ORDINALS_MAX)),
        (long(100 * ERROR_TEXT_BYTES_MAX), long(ERROR_TEXT_BYTES_MAX)),
    ] {
        *store.mood.lock().unwrap() = Mood::Fails(error);
        assert_eq!(call(&channel).await, Err(arrives));
    }
}

#[tokio::test]
async fn stopping_ends_connections_and_a_restarted_node_is_found_again() {
    let world = World::new(1);
    let (id, node) = world.node();
    let served = world.serve(ADDR, node.clone(), Store::with(Mood::Honest)).await;
    let channel = dial(&world, world.client("laptop"), Expect::Node(id));
    call(&channel).await.unwrap();
    served.stop.send(()).unwrap();
    served.done.await.unwrap();
    assert!(matches!(call(&channel).await, Err(ApiError::Unreachable(_))));
    let _served = world.serve(ADDR, node, Store::with(Mood::Honest)).await;
    call(&channel).await.unwrap();
}

#[tokio::test]
async fn peers_follow_a_node_to_its_new_address() {
    let world = World::new(1);
    let ((id, node), (_, own)) = (world.node(), world.node());
    let peers = Peers::new(world.net.clone(), own);
    assert!(peers.channel(id).is_none());
    peers.set(id, "old:1");
    let first = peers.channel(id).unwrap();
    assert!(matches!(call(&first).await, Err(ApiError::Unreachable(_))));
    peers.set(id, ADDR);
    let _served = world.serve(ADDR, node, Store::with(Mood::Honest)).await;
    call(&peers.channel(id).unwrap()).await.unwrap();
    assert_eq!(peers.known(), [id]);
    assert_eq!(peers.addr(id).as_deref(), Some(ADDR));
    peers.forget(id);
    assert!(peers.channel(id).is_none());
}
