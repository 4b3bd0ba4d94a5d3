//! A gRPC channel to one address: lazily connected, reconnecting by itself, every connection over the Net seam and
//! our own TLS. Callers set a deadline on each call; this file only bounds the connecting.

use crate::exec::Scoped;
use crate::tls::{Expect, Tls};
use crate::wire::admin_client::AdminClient;
use crate::wire::catalogue_client::CatalogueClient;
use crate::wire::raft_client::RaftClient;
use crate::wire::shards_client::ShardsClient;
use farshore_core::host::{ByteStream, Net};
use farshore_core::limits::{
    CONNECT_MS, CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS, MESSAGE_BYTES_MAX,
    STREAM_WINDOW_BYTES,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

type BoxError = Box<dyn Error + Send + Sync>;

/// A channel to `addr` (`host:port`) that accepts nobody but `expect` there. Connects at the first call and again
/// after a break; a call made while that fails ends with an error instead of waiting. Belongs to the task scope it is
/// made in.
pub fn connect(net: Arc<dyn Net>, tls: Arc<Tls>, addr: String, expect: Expect) -> Channel {
    let addr: Arc<str> = addr.into();
    let connector = tower::service_fn(move |_: Uri| {
        let (net, tls, addr) = (net.clone(), tls.clone(), addr.clone());
        async move { open(net.as_ref(), &tls, &addr, expect).await.map(TokioIo::new) }
    });
    // Who answers is settled by the certificate; the name in the URI is never resolved.
    Endpoint::from_static("http://node.farshore")
        .executor(Scoped)
        .http2_keep_alive_interval(Duration::from_millis(KEEPALIVE_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS))
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .connect_with_connector_lazy(connector)
}

/// Dials and shakes hands, both within one deadline. Errors keep their type: `status` looks for a [`TlsError`] in them.
///
/// [`TlsError`]: crate::tls::TlsError
async fn open(net: &dyn Net, tls: &Tls, addr: &str, expect: Expect) -> Result<Box<dyn ByteStream>, BoxError> {
    let both = async {
        let stream = net.dial(addr).await?;
        let (stream, _) = tls.connect(stream, expect).await?;
        Ok(stream)
    };
    match tokio::time::timeout(Duration::from_millis(CONNECT_MS), both).await {
        Ok(result) => result,
        Err(_) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {CONNECT_MS} ms"))
                .into())
        }
    }
}

// Requests have no limit on this side: tonic would cut the call off like a broken line, which invites retries, while
// the server's refusal says what is wrong.

/// Calls to the catalogue; answers have our message limit.
pub fn catalogue(channel: Channel) -> CatalogueClient<Channel> {
    CatalogueClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Calls to a node's shards; answers have our message limit.
pub fn shards(channel: Channel) -> ShardsClient<Channel> {
    ShardsClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Calls between nodes; answers have our message limit.
pub fn raft(channel: Channel) -> RaftClient<Channel> {
    RaftClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// Calls of operators; answers have our message limit.
pub fn admin(channel: Channel) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}
