//! Calls that must be refused (invariant 10): a client asks for what only nodes may, and strangers knock with forged
//! certificates or none. Each refusal must be the typed one, before the request itself is looked at; afterwards nothing
//! of what was asked for may be there. A node that does not answer proves nothing and is not counted.
//!
//! Home of rustls in the simulator: only here somebody speaks TLS without a certificate.

use crate::clock::EPOCH_MS;
use crate::cluster::Cluster;
use crate::world::Violation;
use bytes::Bytes;
use farshore_client::Client;
use farshore_core::catalogue::command::COMMAND_VERSION;
use farshore_core::catalogue::{Command, RepoRecord};
use farshore_core::erasure::Scheme;
use farshore_core::host::{Host, random};
use farshore_core::id::{NodeId, PackId, RepoId, ShardHash};
use farshore_core::policy::Policy;
use farshore_core::shard::PackInfo;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_node::raft::types::seal_message;
use farshore_proto::channel;
use farshore_proto::pki::{Authority, Validity};
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Credentials, Expect, Tls, TlsError};
use farshore_proto::wire::{self, RaftMessage, put_request};
use futures_util::stream;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::Channel;

/// A node that has not answered by then proves nothing.
const PATIENCE: Duration = Duration::from_secs(8);

/// Where to knock and with which keys.
#[derive(Clone)]
pub struct Doors {
    nodes: Vec<(NodeId, String)>,
    /// An ordinary client's.
    client: Credentials,
    /// Same names, signed by another authority.
    forged: Vec<Credentials>,
}

impl Doors {
    /// All nodes of a cluster.
    pub fn of(cluster: &Cluster) -> Result<Self, Violation> {
        let profile = cluster.profile("trespasser")?;
        let client = profile.credentials();
        let nodes = cluster.machines.iter().map(|m| m.id).zip(profile.endpoints).collect();
        Ok(Doors { nodes, forged: forged(&client)?, client })
    }
}

/// A client's and a node's certificate that name this cluster but were not issued by its authority.
fn forged(client: &Credentials) -> Result<Vec<Credentials>, Violation> {
    const YEARS_MS: u64 = 20 * 366 * 86_400_000;
    let validity = Validity { not_before_ms: EPOCH_MS - YEARS_MS, not_after_ms: EPOCH_MS + YEARS_MS };
    let failed = |e: farshore_proto::pki::PkiError| e.to_string();
    let forger = Authority::create(client.cluster, validity).map_err(failed)?;
    let name = "trespasser".parse().map_err(|_| "client name")?;
    let own = forger.issue_client(&name, validity).map_err(failed)?;
    let node = forger.issue_node(validity).map_err(failed)?;
    let with = |cert_pem, key_pem| Credentials { cert_pem, key_pem, ..client.clone() };
    Ok(vec![with(own.cert_pem, own.key_pem), with(node.cert_pem, node.key_pem)])
}

/// Tries everything at one node. Runs as part of a client: `client` is asked afterwards whether anything has come of
/// it. Returns how many refusals were seen.
pub async fn trespass(client: Client, host: Host, doors: Doors, at: usize) -> Result<u64, Violation> {
    let Some((id, addr)) = doors.nodes.get(at % doors.nodes.len().max(1)) else { return Ok(0) };
    let mark = Mark { tag: u64::from_le_bytes(random(host.entropy.as_ref())) };
    let mut refused = 0;
    let tls = Tls::new(&doors.client, host.clock.clone()).map_err(|e| e.to_string())?;
    let line = channel::connect(host.net.clone(), Arc::new(tls), addr.clone(), Expect::Node(*id));
    for (what, answer) in overreach(line, &doors.client, &mark).await {
        match answer {
            None | Some(Err(ApiError::Unreachable(_) | ApiError::NoQuorum(_))) => {}
            Some(Err(ApiError::Denied(_))) => refused += 1,
            Some(Ok(())) => return Err(format!("granted: a client may {what}")),
            Some(Err(other)) => {
                return Err(format!(
                    "granted: a client that tries to {what} hears: {} {other}",
                    other.word()
                ));
            }
        }
    }
    for credentials in &doors.forged {
        refused += u64::from(knock_with(&host, credentials, addr).await?);
    }
    refused += u64::from(knock_without(&host, &doors.client, addr).await?);
    refused += u64::from(knock_in_the_clear(&host, addr).await?);
    mark.left_nothing(&client).await?;
    Ok(refused)
}

/// What a trespasser would leave behind.
struct Mark {
    tag: u64,
}

impl Mark {
    fn name(&self) -> String {
        format!("trespass-{:016x}", self.tag)
    }

    fn repository(&self) -> Result<RepoRecord, Violation> {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.tag.to_le_bytes());
        let name = self.name().parse().map_err(|_| "repository name")?;
        let policy = Policy::default();
        Ok(RepoRecord { id: RepoId(id), name, policy, sealed_config: Vec::new(), key_slots: Vec::new() })
    }

    fn node(&self) -> Result<NodeRecord, Violation> {
        Ok(NodeRecord {
            id: NodeId(self.tag),
            name: self.name().parse().map_err(|_| "node name")?,
            region: "nowhere/r".parse().map_err(|_| "region name")?,
            zone: None,
            addr: "nowhere:1".into(),
            capacity: 1 << 40,
            state: NodeState::Up,
        })
    }

    async fn left_nothing(&self, client: &Client) -> Result<(), Violation> {
        if let Ok(found) = client.find_repository(&self.name()).await {
            return Err(format!("granted: a refused call has made repository {}", found.name()));
        }
        let nodes = client.topology().await.map(|topology| topology.nodes);
        if nodes.is_ok_and(|nodes| nodes.iter().any(|node| node.id == NodeId(self.tag))) {
            return Err(format!("granted: a refused call has made node {:016x} known", self.tag));
        }
        Ok(())
    }
}

type Answer = Option<Result<(), ApiError>>;

/// `None` if nobody answered.
async fn answer<T, E: Into<ApiError>>(call: impl Future<Output = Result<T, E>>) -> Answer {
    let answer = tokio::time::timeout(PATIENCE, call).await.ok()?;
    Some(answer.map(|_| ()).map_err(Into::into))
}

/// Everything reserved to nodes, asked for by a client. Requests that would be carried out are well-formed.
async fn overreach(line: Channel, credentials: &Credentials, mark: &Mark) -> Vec<(&'static str, Answer)> {
    let mut raft = channel::raft(line.clone());
    let empty = || RaftMessage::default();
    let first = answer(raft.append(empty())).await;
    // Nobody there: the rest would only take time.
    if matches!(first, None | Some(Err(ApiError::Unreachable(_)))) {
        return Vec::new();
    }
    let mut answers = vec![
        ("append to the log", first),
        ("stand for election", answer(raft.vote(empty())).await),
        ("replace the catalogue", answer(raft.install_snapshot(stream::iter([image()]))).await),
        ("ask for a read index", answer(raft.read_index(wire::ReadIndexRequest::default())).await),
    ];
    if let Ok(repo) = mark.repository() {
        let body = seal_message(COMMAND_VERSION, &Command::CreateRepository { repo });
        answers
            .push(("pass on a command", answer(raft.propose(RaftMessage { body, era_plus_one: 0 })).await));
    }
    if let Ok(node) = mark.node() {
        let beat = wire::HeartbeatRequest { node: Some(node.into()), ..Default::default() };
        answers.push(("pass for a node", answer(raft.heartbeat(beat)).await));
    }
    if let Some(open) = rebuilt_shard(credentials, mark) {
        let mut shards = channel::shards(line);
        let part = wire::PutRequest { part: Some(put_request::Part::Open(open)) };
        answers.push(("store a shard without a session", answer(shards.put(stream::iter([part]))).await));
    }
    answers
}

fn image() -> wire::SnapshotPart {
    wire::SnapshotPart { era_plus_one: 0, part: Some(wire::snapshot_part::Part::Open(Bytes::new())) }
}

/// The beginning of an upload as a node that repairs makes it.
fn rebuilt_shard(credentials: &Credentials, mark: &Mark) -> Option<wire::PutOpen> {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&mark.tag.to_le_bytes());
    let scheme = Scheme::new(2, 1, 1).ok()?;
    let repo = mark.repository().ok()?.id;
    let info = PackInfo { cluster: credentials.cluster, repo, pack: PackId(id), pack_len: 100, scheme };
    let header = info.header(0, ShardHash(id)).encode();
    Some(wire::PutOpen { header: Bytes::copy_from_slice(&header), session: Bytes::new() })
}

/// Connects with a certificate of another authority. True if it was refused.
async fn knock_with(host: &Host, credentials: &Credentials, addr: &str) -> Result<bool, Violation> {
    let tls = Tls::new(credentials, host.clock.clone()).map_err(|e| e.to_string())?;
    let knock = async {
        let stream = host.net.dial(addr).await.ok()?;
        Some(tls.connect(stream, Expect::AnyNode).await.map(|_| ()))
    };
    match tokio::time::timeout(PATIENCE, knock).await.ok().flatten() {
        // The line may break before the alert has arrived.
        None | Some(Err(TlsError::Handshake(_))) => Ok(false),
        Some(Err(TlsError::Stranger(_))) => Ok(true),
        Some(Ok(())) => Err(format!("granted: {:?} was let in with a forged certificate", tls.own())),
        Some(Err(other)) => Err(format!("granted: a forged certificate was answered with: {other}")),
    }
}

/// Connects by TLS without any certificate. True if the node hung up without a word.
async fn knock_without(host: &Host, credentials: &Credentials, addr: &str) -> Result<bool, Violation> {
    let config = nameless(credentials)?;
    let name = format!("node.{}.farshore", credentials.cluster);
    let name = ServerName::try_from(name).map_err(|e| e.to_string())?;
    let knock = async {
        let stream = host.net.dial(addr).await.ok()?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let mut stream = connector.connect(name, stream).await.ok()?;
        Some(said(&mut stream).await)
    };
    match tokio::time::timeout(PATIENCE, knock).await.ok().flatten() {
        None => Ok(false),
        Some(0) => Ok(true),
        Some(_) => Err("granted: a node talks to somebody without a certificate".into()),
    }
}

/// Speaks HTTP/2 without TLS. True if the node hung up without an answer to it.
async fn knock_in_the_clear(host: &Host, addr: &str) -> Result<bool, Violation> {
    let knock = async {
        let mut stream = host.net.dial(addr).await.ok()?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.ok()?;
        let mut first = [0u8; 1];
        Some(stream.read(&mut first).await.is_ok_and(|len| len > 0).then_some(first[0]))
    };
    match tokio::time::timeout(PATIENCE, knock).await.ok().flatten() {
        None => Ok(false),
        // A TLS alert is all there is to say.
        Some(None | Some(0x15)) => Ok(true),
        Some(Some(_)) => Err("granted: a node talks to somebody without TLS".into()),
    }
}

/// How many bytes of the first answer come; a broken connection is none.
async fn said(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> usize {
    let mut first = [0u8; 16];
    stream.read(&mut first).await.unwrap_or(0)
}

fn nameless(credentials: &Credentials) -> Result<rustls::ClientConfig, Violation> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(credentials.ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|e| e.to_string())?;
        roots.add(certificate).map_err(|e| e.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_details(provider, Arc::new(Epoch))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| e.to_string())?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// A calendar that stands still, for a certificate that holds for decades.
#[derive(Debug)]
struct Epoch;

impl TimeProvider for Epoch {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(EPOCH_MS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;
    use crate::cluster::Settings;
    use crate::plan::Layout;
    use crate::world::World;
    use farshore_core::host::task::set_strict;

    async fn tried(agent: &Agent, doors: Doors) -> Result<u64, Violation> {
        let (client, host) = (agent.client().clone(), agent.repository(0).host().clone());
        let call = agent.begin_call(async move { Ok(trespass(client, host, doors, 0).await) });
        call.await.unwrap_or_else(|_| panic!("the client lives"))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sound_cluster_refuses_everything_and_whoever_has_the_rights_is_noticed() {
        set_strict(true);
        let world = World::new(3, None);
        let layout = Layout { regions: vec![1, 1, 1] };
        let mut cluster = Cluster::new(world, &layout, Settings::default()).unwrap();
        (0..3).for_each(|at| cluster.start(at));
        let agent = Agent::enter(&mut cluster, 3, Duration::from_secs(60)).await.unwrap();
        let doors = Doors::of(&cluster).unwrap();
        let refused = tried(&agent, doors.clone()).await.unwrap();
        assert_eq!(refused, 7 + 2 + 2, "each attempt is answered in a calm cluster");

        // A true certificate where a forged one is expected, and a node's where a client's is.
        let forged = vec![doors.client.clone()];
        let let_in = tried(&agent, Doors { forged, ..doors.clone() }).await.unwrap_err();
        assert!(let_in.contains("let in with a forged certificate"), "{let_in}");
        let (_, node) = cluster.issue().unwrap();
        let heard = tried(&agent, Doors { client: node, ..doors }).await.unwrap_err();
        assert!(heard.starts_with("granted: a client "), "{heard}");
        set_strict(false);
    }
}
