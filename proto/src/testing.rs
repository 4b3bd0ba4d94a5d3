//! For tests only: a network in memory, a cluster's worth of identities, and a shard service that can lie.
#![expect(clippy::disallowed_methods, reason = "tests own their tasks")]

use crate::pki::{Authority, Validity};
use crate::serve::{self, caller};
use crate::status::ApiError;
use crate::tls::{Caller, Credentials, Tls};
use crate::wire::shards_server::Shards;
use crate::wire::{
    Blocks, BuildReply, BuildRequest, GetReply, GetRequest, PutReply, PutRequest, SumReply, SumRequest,
    VerifyReply, VerifyRequest, get_reply, put_request,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use farshore_core::erasure::mul_add;
use farshore_core::host::{ByteStream, Listener, Net, WallClock};
use farshore_core::id::{ClusterId, NodeId, ShardId};
use farshore_core::limits::{FRAME_BYTES, SHARD_BLOCK_BYTES, SUM_PIECE_BYTES};
use farshore_core::shard::{ShardHeader, blocks_for, hash_shard};
use futures_util::stream::{self, BoxStream, StreamExt};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, oneshot};
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

type Accepted = (Box<dyn ByteStream>, String);

/// Streams between tasks of one test.
#[derive(Default)]
pub(crate) struct MemoryNet(Mutex<BTreeMap<String, mpsc::UnboundedSender<Accepted>>>);

#[async_trait]
impl Net for MemoryNet {
    async fn dial(&self, addr: &str) -> io::Result<Box<dyn ByteStream>> {
        let refused = || io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens");
        let (near, far) = tokio::io::duplex(64 << 10);
        let listener = self.0.lock().unwrap().get(addr).cloned().ok_or_else(refused)?;
        listener.send((Box::new(far), "test".into())).map_err(|_| refused())?;
        Ok(Box::new(near))
    }
    async fn listen(&self, addr: &str) -> io::Result<Box<dyn Listener>> {
        let (send, accepted) = mpsc::unbounded_channel();
        self.0.lock().unwrap().insert(addr.into(), send);
        Ok(Box::new(MemoryListener { accepted, addr: addr.into() }))
    }
}

struct MemoryListener {
    accepted: mpsc::UnboundedReceiver<Accepted>,
    addr: String,
}

#[async_trait]
impl Listener for MemoryListener {
    async fn accept(&mut self) -> io::Result<Accepted> {
        self.accepted.recv().await.ok_or_else(|| io::ErrorKind::BrokenPipe.into())
    }
    fn local_addr(&self) -> String {
        self.addr.clone()
    }
}

pub(crate) const NOW_MS: u64 = 1_796_083_200_000;

pub(crate) struct FixedClock(pub u64);
impl WallClock for FixedClock {
    fn now_ms(&self) -> u64 {
        self.0
    }
}

/// One cluster's authority and a network to meet in.
pub(crate) struct World {
    pub authority: Authority,
    pub net: Arc<MemoryNet>,
}

impl World {
    pub(crate) fn new(cluster: u8) -> Self {
        let validity = Validity::ten_years(NOW_MS);
        World {
            authority: Authority::create(ClusterId([cluster; 16]), validity).unwrap(),
            net: Arc::default(),
        }
    }
    pub(crate) fn node(&self) -> (NodeId, Arc<Tls>) {
        let issued = self.authority.issue_node(Validity::ten_years(NOW_MS)).unwrap();
        (issued.id, self.tls(&issued.cert_pem, &issued.key_pem, NOW_MS))
    }
    pub(crate) fn client(&self, name: &str) -> Arc<Tls> {
        let issued =
            self.authority.issue_client(&name.parse().unwrap(), Validity::ten_years(NOW_MS)).unwrap();
        self.tls(&issued.cert_pem, &issued.key_pem, NOW_MS)
    }
    pub(crate) fn tls(&self, cert_pem: &str, key_pem: &str, now_ms: u64) -> Arc<Tls> {
        let credentials = Credentials {
            cluster: self.authority.cluster(),
            ca_pem: self.authority.ca_cert_pem().into(),
            cert_pem: cert_pem.into(),
            key_pem: key_pem.into(),
        };
        Arc::new(Tls::new(&credentials, Arc::new(FixedClock(now_ms))).unwrap())
    }
    /// Starts a shard service; it stops when the handle is dropped or told to.
    pub(crate) async fn serve(&self, addr: &str, tls: Arc<Tls>, service: Arc<Store>) -> Served {
        let listener = self.net.listen(addr).await.unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let routes = Routes::new(serve::shards(service));
        let done = tokio::spawn(serve::serve(listener, tls, routes, async { drop(stopped.await) }));
        Served { stop, done }
    }
}

pub(crate) struct Served {
    pub stop: oneshot::Sender<()>,
    pub done: tokio::task::JoinHandle<()>,
}

/// How the shard service answers.
#[derive(Clone, PartialEq, Debug, Default)]
pub(crate) enum Mood {
    #[default]
    Honest,
    /// One bit of the first block sent is wrong.
    FlippedBit,
    /// The sums are those of the flipped payload, so that blocks and sums agree.
    WrongSums,
    /// The first frame of blocks is sent for ever.
    Endless,
    /// Everything but the last block.
    Short,
    /// Sums come last.
    Unordered,
    /// A receipt for something else.
    WrongReceipt,
    /// This error.
    Fails(ApiError),
}

/// Shards in a map.
#[derive(Default)]
pub(crate) struct Store {
    pub mood: Mutex<Mood>,
    pub shards: Mutex<BTreeMap<ShardId, Bytes>>,
    pub callers: Mutex<Vec<Option<Caller>>>,
}

impl Store {
    pub(crate) fn with(mood: Mood) -> Arc<Self> {
        Arc::new(Store { mood: Mutex::new(mood), ..Default::default() })
    }
    fn enter<T>(&self, request: &Request<T>) -> Result<Mood, Status> {
        self.callers.lock().unwrap().push(caller(request).cloned());
        match self.mood.lock().unwrap().clone() {
            Mood::Fails(error) => Err(error.into()),
            mood => Ok(mood),
        }
    }
}

fn flip(bytes: &Bytes) -> Bytes {
    let mut bytes = BytesMut::from(bytes.as_ref());
    bytes[0] ^= 1;
    bytes.freeze()
}

#[async_trait]
impl Shards for Store {
    type SumStream = BoxStream<'static, Result<SumReply, Status>>;
    type BuildStream = BoxStream<'static, Result<BuildReply, Status>>;

    /// The shards of the terms are all here, and are joined with their factors.
    async fn sum(&self, request: Request<SumRequest>) -> Result<Response<Self::SumStream>, Status> {
        let mood = self.enter(&request)?;
        let terms = crate::convert::build::terms(request.into_inner().terms)?;
        let mut sum = vec![0; terms[0].shard.payload_len as usize];
        for term in terms {
            let held = self.shards.lock().unwrap().get(&term.shard.id).cloned();
            let payload = held.ok_or_else(|| ApiError::Missing("no such shard".into()))?;
            mul_add(term.factor, &payload, &mut sum).unwrap();
        }
        let sum = Bytes::from(sum);
        let cut = sum.len() - if mood == Mood::Short { SUM_PIECE_BYTES } else { 0 };
        let pieces: Vec<_> = (0..cut)
            .step_by(SUM_PIECE_BYTES)
            .map(|from| Ok(SumReply { piece: sum.slice(from..cut.min(from + SUM_PIECE_BYTES)) }))
            .collect();
        Ok(Response::new(stream::iter(pieces).boxed()))
    }

    /// Of an older release.
    async fn build(&self, _: Request<BuildRequest>) -> Result<Response<Self::BuildStream>, Status> {
        Err(Status::unimplemented("what is that?"))
    }

    async fn put(&self, request: Request<Streaming<PutRequest>>) -> Result<Response<PutReply>, Status> {
        let mood = self.enter(&request)?;
        let mut parts = request.into_inner();
        let Some(PutRequest { part: Some(put_request::Part::Open(open)) }) = parts.message().await? else {
            return Err(ApiError::Invalid("no header".into()).into());
        };
        let header = ShardHeader::decode(&open.header).map_err(|e| ApiError::Invalid(e.to_string()))?;
        let mut payload = BytesMut::new();
        while let Some(PutRequest { part: Some(put_request::Part::Frame(frame)) }) = parts.message().await? {
            payload.extend_from_slice(&frame);
        }
        let payload = payload.freeze();
        let (mut hash, _) = hash_shard(header.id, &payload);
        if mood == Mood::WrongReceipt {
            hash.0[0] ^= 1;
        }
        self.shards.lock().unwrap().insert(header.id, payload);
        Ok(Response::new(PutReply { hash: Bytes::copy_from_slice(hash.as_bytes()) }))
    }

    type GetStream = BoxStream<'static, Result<GetReply, Status>>;

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<Self::GetStream>, Status> {
        let mood = self.enter(&request)?;
        let (shard, ranges) = crate::convert::shard::from_get_request(request.into_inner())?;
        let held = self.shards.lock().unwrap().get(&shard.id).cloned();
        let payload = held.ok_or_else(|| ApiError::Missing("no such shard".into()))?;
        let bad = flip(&payload);
        let (_, sums) = hash_shard(shard.id, if mood == Mood::WrongSums { &bad } else { &payload });
        let sent = if matches!(mood, Mood::WrongSums | Mood::FlippedBit) { bad } else { payload };

        let mut parts = vec![get_reply::Part::Sums(sums.encode().into())];
        let per_frame = FRAME_BYTES / SHARD_BLOCK_BYTES;
        for range in ranges {
            let Some(blocks) = blocks_for(shard.payload_len, range) else { continue };
            for first in blocks.clone().step_by(per_frame) {
                let (from, to) = (first as usize, (first as usize + per_frame).min(blocks.end as usize));
                let (from, to) = (from * SHARD_BLOCK_BYTES, sent.len().min(to * SHARD_BLOCK_BYTES));
                parts.push(get_reply::Part::Blocks(Blocks { first, bytes: sent.slice(from..to) }));
            }
        }
        match mood {
            Mood::Short => drop(parts.pop()),
            Mood::Unordered => parts.reverse(),
            _ => {}
        }
        let reply = |part| Ok(GetReply { part: Some(part) });
        if mood == Mood::Endless {
            let again = parts[1].clone();
            let endless = stream::iter(parts).chain(stream::repeat(again)).map(reply);
            return Ok(Response::new(Box::pin(endless)));
        }
        Ok(Response::new(Box::pin(stream::iter(parts).map(reply))))
    }

    async fn verify(&self, request: Request<VerifyRequest>) -> Result<Response<VerifyReply>, Status> {
        self.enter(&request)?;
        Ok(Response::new(VerifyReply {}))
    }
}
