//! Mutual TLS between everybody, and who the other side is. There is no plaintext mode, not even in the simulator.
//!
//! TLS 1.3 with ring, HTTP/2 only, certificates of the cluster's own authority on both sides, calendar time from the
//! clock seam. Sessions are never resumed: every connection proves both identities anew. This file never opens a
//! connection; it wraps streams that others opened. Names in certificates: docs/format.md, "Wire".

use farshore_core::host::{ByteStream, WallClock};
use farshore_core::id::{ClusterId, NodeId};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// What a node or a client needs to prove itself and to recognise its cluster.
#[derive(Clone)]
pub struct Credentials {
    /// Cluster that both sides must belong to.
    pub cluster: ClusterId,
    /// The cluster authority's certificate; several may stand one after another while an authority is replaced.
    pub ca_pem: String,
    /// Own certificate.
    pub cert_pem: String,
    /// Its private key, PKCS#8.
    pub key_pem: String,
}

/// Keys do not belong into logs.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Why TLS could not be set up, or a peer was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlsError {
    /// Own certificate, key or authority cannot be used.
    #[error("credentials are not usable: {0}")]
    Credentials(String),
    /// Either side does not accept the other's certificate: another authority, or not valid now.
    #[error("not accepted: {0}")]
    Stranger(String),
    /// The handshake failed: not TLS, another node than expected, or the connection broke.
    #[error("TLS handshake failed: {0}")]
    Handshake(String),
    /// The certificate is genuine but does not say who its holder is, or is not who was expected.
    #[error("certificate refused: {0}")]
    Identity(String),
}

/// Who holds a certificate of this cluster.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub enum Caller {
    /// A node; the id is proven to belong to its key.
    Node(NodeId),
    /// A client, by the name the authority gave it.
    Client(String),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Caller::Node(id) => write!(f, "node {id}"),
            Caller::Client(name) => write!(f, "client {name}"),
        }
    }
}

/// Who must answer when we dial.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expect {
    /// Whichever node of the cluster has the address.
    AnyNode,
    /// This node and no other.
    Node(NodeId),
}

/// DNS name in every node's certificate.
pub(crate) fn any_node_name(cluster: ClusterId) -> String {
    format!("node.{cluster}.farshore")
}

/// DNS name in the certificate of one node only.
pub(crate) fn node_name(cluster: ClusterId, node: NodeId) -> String {
    format!("{node}.{cluster}.farshore")
}

/// URI name that says who holds a certificate.
pub(crate) fn identity_uri(cluster: ClusterId, who: &Caller) -> String {
    match who {
        Caller::Node(id) => format!("farshore://{cluster}/node/{id}"),
        Caller::Client(name) => format!("farshore://{cluster}/client/{name}"),
    }
}

/// Lets foreign clients in this process, such as that of a bucket, use the same cryptography as we do. They ask for the
/// process's default, which may be set once; a second call changes nothing.
pub fn share_cryptography() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// Both directions' configuration of one process.
pub struct Tls {
    cluster: ClusterId,
    own: Caller,
    // Each connection takes its own clone, so that a reload can swap these without touching open connections.
    connector: Arc<ClientConfig>,
    acceptor: Arc<ServerConfig>,
}

impl Tls {
    /// Checks the credentials and prepares both directions.
    pub fn new(credentials: &Credentials, clock: Arc<dyn WallClock>) -> Result<Tls, TlsError> {
        let bad = |what: &str, e: &dyn fmt::Display| TlsError::Credentials(format!("{what}: {e}"));
        let roots = Arc::new(roots(&credentials.ca_pem)?);
        let chain = certificates(&credentials.cert_pem, "own certificate")?;
        let leaf = chain.first().ok_or_else(|| bad("own certificate", &"there is none"))?;
        let own = identify(leaf, credentials.cluster)
            .map_err(|e| TlsError::Credentials(format!("own certificate: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes())
            .map_err(|e| bad("private key", &e))?;

        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let time: Arc<dyn TimeProvider> = Arc::new(Calendar(clock));
        let connector = client_config(&provider, &time, &roots, chain.clone(), key.clone_key())
            .map_err(|e| bad("TLS", &e))?;
        let acceptor = server_config(&provider, &time, &roots, chain, key)?;
        Ok(Tls {
            cluster: credentials.cluster,
            own,
            connector: Arc::new(connector),
            acceptor: Arc::new(acceptor),
        })
    }

    /// Cluster both sides must belong to.
    pub fn cluster(&self) -> ClusterId {
        self.cluster
    }

    /// Who we are.
    pub fn own(&self) -> &Caller {
        &self.own
    }

    /// Our node id; `None` in a client.
    pub fn own_id(&self) -> Option<NodeId> {
        match self.own {
            Caller::Node(id) => Some(id),
            Caller::Client(_) => None,
        }
    }

    /// Shakes hands on a stream we dialled and tells which node answered. The caller sets the deadline.
    ///
    /// In TLS 1.3 the dialling side is done before the other has looked at its certificate. HTTP/2 servers speak
    /// first, so this waits for their first byte: whoever gets a stream has been accepted.
    pub async fn connect(
        &self,
        stream: Box<dyn ByteStream>,
        expect: Expect,
    ) -> Result<(Box<dyn ByteStream>, NodeId), TlsError> {
        let name = match expect {
            Expect::AnyNode => any_node_name(self.cluster),
            Expect::Node(id) => node_name(self.cluster, id),
        };
        let name = ServerName::try_from(name).map_err(|e| TlsError::Identity(e.to_string()))?;
        let stream = TlsConnector::from(self.connector.clone())
            .connect(name, stream)
            .await
            .map_err(handshake_error)?;
        let who = peer(stream.get_ref().1.peer_certificates(), self.cluster)?;
        // A buffer this small is used once; longer reads pass it by.
        let mut stream = BufReader::with_capacity(FIRST_BYTES, stream);
        if stream.fill_buf().await.map_err(handshake_error)?.is_empty() {
            return Err(TlsError::Handshake("the other side hung up".into()));
        }
        match (who, expect) {
            // The authority has signed the name; the key must agree with it too.
            (Caller::Node(id), Expect::Node(wanted)) if id != wanted => {
                Err(TlsError::Identity(format!("node {id} answered instead of node {wanted}")))
            }
            (Caller::Node(id), _) => Ok((Box::new(stream), id)),
            (who, _) => Err(TlsError::Identity(format!("{who} answered where a node was expected"))),
        }
    }

    /// Shakes hands on a stream that was accepted and tells who called. The caller sets the deadline.
    pub async fn accept(
        &self,
        stream: Box<dyn ByteStream>,
    ) -> Result<(Box<dyn ByteStream>, Caller), TlsError> {
        let stream =
            TlsAcceptor::from(self.acceptor.clone()).accept(stream).await.map_err(handshake_error)?;
        let who = peer(stream.get_ref().1.peer_certificates(), self.cluster)?;
        Ok((Box::new(stream), who))
    }
}

const FIRST_BYTES: usize = 16;

/// Tells a wrong certificate, which no retry heals, from all that may pass.
fn handshake_error(e: std::io::Error) -> TlsError {
    use rustls::{AlertDescription as Alert, CertificateError as Certificate, Error};
    let text = e.to_string();
    match e.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        // The address belongs to another node now; the topology will tell where ours is.
        Some(Error::InvalidCertificate(
            Certificate::NotValidForName | Certificate::NotValidForNameContext { .. },
        )) => TlsError::Handshake(text),
        Some(Error::InvalidCertificate(_))
        | Some(Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnsupportedCertificate
            | Alert::DecryptError
            | Alert::AccessDenied,
        )) => TlsError::Stranger(text),
        _ => TlsError::Handshake(text),
    }
}

fn roots(ca_pem: &str) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(ca_pem, "authority certificate")? {
        store.add(certificate).map_err(|e| TlsError::Credentials(format!("authority certificate: {e}")))?;
    }
    Ok(store)
}

fn certificates(pem: &str, what: &str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let list = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| TlsError::Credentials(format!("{what}: {e}")))?;
    if list.is_empty() {
        return Err(TlsError::Credentials(format!("{what}: no certificate in it")));
    }
    Ok(list)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    time: &Arc<dyn TimeProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    time: &Arc<dyn TimeProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, TlsError> {
    let bad = |e: &dyn fmt::Display| TlsError::Credentials(format!("TLS: {e}"));
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .map_err(|e| bad(&e))?;
    let mut config = ServerConfig::builder_with_details(provider.clone(), time.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| bad(&e))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|e| bad(&e))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn peer(chain: Option<&[CertificateDer<'_>]>, cluster: ClusterId) -> Result<Caller, TlsError> {
    let leaf =
        chain.and_then(<[_]>::first).ok_or_else(|| TlsError::Identity("no certificate shown".into()))?;
    identify(leaf, cluster)
}

/// Reads who holds a certificate. The signature has been checked before; this checks what the names say.
pub(crate) fn identify(certificate: &CertificateDer<'_>, cluster: ClusterId) -> Result<Caller, TlsError> {
    let refuse = |why: String| TlsError::Identity(why);
    let parsed = webpki::EndEntityCert::try_from(certificate).map_err(|e| refuse(e.to_string()))?;
    let uris: Vec<&str> = parsed.valid_uri_names().collect();
    // Two names could be read as either by different readers.
    let [uri] = uris.as_slice() else {
        return Err(refuse(format!("{} URI names where one is expected", uris.len())));
    };
    let who = parse_identity(uri, cluster)?;
    if let Caller::Node(id) = who {
        let key = NodeId::of_public_key(&parsed.subject_public_key_info());
        if key != id {
            return Err(refuse(format!("it names node {id}, but its key is that of node {key}")));
        }
    }
    Ok(who)
}

fn parse_identity(uri: &str, cluster: ClusterId) -> Result<Caller, TlsError> {
    let refuse = |why: &str| TlsError::Identity(format!("{why} in its URI name {uri:?}"));
    let rest = uri.strip_prefix("farshore://").ok_or_else(|| refuse("unknown scheme"))?;
    let mut parts = rest.split('/');
    let (Some(of), Some(kind), Some(name), None) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(refuse("cluster, kind and name expected"));
    };
    if of.parse::<ClusterId>() != Ok(cluster) {
        return Err(refuse("another cluster"));
    }
    match kind {
        "node" => name.parse().map(Caller::Node).map_err(|_| refuse("no node id")),
        "client" => name
            .parse::<farshore_core::topology::Name>()
            .map(|name| Caller::Client(name.into()))
            .map_err(|_| refuse("no client name")),
        _ => Err(refuse("unknown kind of holder")),
    }
}

/// The clock seam in the form rustls asks for.
struct Calendar(Arc<dyn WallClock>);

impl fmt::Debug for Calendar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Calendar")
    }
}
impl TimeProvider for Calendar {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(self.0.now_ms())))
    }
}

#[cfg(test)]
#[path = "tls_test.rs"]
mod tests;
