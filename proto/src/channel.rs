//! A gRPC channel to one address: lazily connected, reconnecting by itself, every connection over the Net seam and
//! our own TLS. Callers set a deadline on each call; this file only bounds the connecting.

use crate::exec::Scoped;
use crate::tls::{Expect, Tls};
use crate::wire::admin_client::AdminClient;
use crate::wire::catalogue_client::CatalogueClient;
use crate::wire::raft_client::RaftClient;
use crate::wire::recovery_client::RecoveryClient;
use crate::wire::shards_client::ShardsClient;
use farshore_core::host::{ByteStream, Net};
use farshore_core::limits::{
    CONNECT_MS, CONNECTION_WINDOW_BYTES, KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS, MESSAGE_BYTES_MAX,
    STREAM_WINDOW_BYTES,
};
use http::Uri;
use hyper_util::rt::TokioIo;
use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

type BoxError = Box<dyn Error + Send + Sync>;

/// A channel to `addr` (`host:port`) that accepts nobody but `expect` there. Connects at the first call and again
/// after a break; a call made while that fails ends with an error instead of waiting. Belongs to the task scope it is
/// made in.
pub fn connect(net: Arc<dyn Net>, tls: Arc<Tls>, addr: String, expect: Expect) -> Channel {
    let addr: Arc<str> = addr.into();
    let connector = tower::service_fn(move |_: Uri| {
        let (net, tls, addr) = (net.clone(), tls.clone(), addr.clone());
        let attempt = move || open(net.clone(), tls.clone(), addr.clone(), expect);
        async move { awaited(Duration::from_millis(CONNECT_MS), attempt).await.map(TokioIo::new) }
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

/// Dials and shakes hands. Errors keep their type: `status` looks for a [`TlsError`] in them.
///
/// [`TlsError`]: crate::tls::TlsError
async fn open(
    net: Arc<dyn Net>,
    tls: Arc<Tls>,
    addr: Arc<str>,
    expect: Expect,
) -> Result<Box<dyn ByteStream>, BoxError> {
    let stream = net.dial(&addr).await?;
    let (stream, _) = tls.connect(stream, expect).await?;
    Ok(stream)
}

/// Tries within a deadline. A channel's attempt stands still once the call that wanted it has given up, and goes on with
/// the next call, which may come much later; an error of the old attempt says nothing about now, so it begins again.
async fn awaited<T, F>(limit: Duration, attempt: impl Fn() -> F) -> Result<T, BoxError>
where
    F: Future<Output = Result<T, BoxError>>,
{
    loop {
        let began = Instant::now();
        let result = match tokio::time::timeout(limit, attempt()).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("no connection within {} ms", limit.as_millis()),
            )
            .into()),
        };
        // An attempt that somebody waits for ends at its deadline, not an eighth later.
        if result.is_ok() || began.elapsed() <= limit + limit / 8 {
            return result;
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

/// Calls to a node under recovery; answers have our message limit.
pub fn recovery(channel: Channel) -> RecoveryClient<Channel> {
    RecoveryClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::task::{Context, Poll, Waker};

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn an_attempt_that_fails_in_time_is_reported() {
        let tries = Cell::new(0);
        let result = awaited::<(), _>(LIMIT, || async {
            tries.set(tries.get() + 1);
            Err("refused".into())
        });
        assert_eq!(result.await.unwrap_err().to_string(), "refused");
        assert_eq!(tries.get(), 1);
        let hangs = awaited::<(), _>(LIMIT, std::future::pending);
        assert_eq!(hangs.await.unwrap_err().to_string(), "no connection within 200 ms");
    }

    #[tokio::test]
    async fn an_attempt_that_was_left_alone_begins_again() {
        let tries = Cell::new(0);
        let mut result = std::pin::pin!(awaited(LIMIT, || async {
            tries.set(tries.get() + 1);
            if tries.get() == 1 { std::future::pending().await } else { Ok(tries.get()) }
        }));
        // Whoever wanted it gives up at once; the next call comes long after.
        assert!(matches!(result.as_mut().poll(&mut Context::from_waker(Waker::noop())), Poll::Pending));
        tokio::time::sleep(LIMIT * 2).await;
        assert_eq!(result.await.unwrap(), 2);
    }
}
