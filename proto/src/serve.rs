//! A node's gRPC listener: accepts, shakes hands, tells every request who calls, and keeps each misfortune inside its
//! connection. It knows no service; `routes` brings those.
//!
//! The accept loop is our own so that every task stays in the node's scope and every bound has a name.

use crate::exec::Scoped;
use crate::tls::{Caller, Tls, TlsError};
use crate::wire::admin_server::{Admin, AdminServer};
use crate::wire::catalogue_server::{Catalogue, CatalogueServer};
use crate::wire::raft_server::{Raft, RaftServer};
use crate::wire::recovery_server::{Recovery, RecoveryServer};
use crate::wire::shards_server::{Shards, ShardsServer};
use farshore_core::host::{ByteStream, Listener, task};
use farshore_core::limits::{
    CONNECT_MS, CONNECTION_WINDOW_BYTES, CONNECTIONS_MAX, KEEPALIVE_INTERVAL_MS, KEEPALIVE_TIMEOUT_MS,
    MESSAGE_BYTES_MAX, SERVE_STOP_MS, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION_MAX,
};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tonic::service::Routes;
use tower::ServiceExt;

/// Who sent this request, known by certificate. `None` only if the request did not come through [`serve`].
pub fn caller<T>(request: &tonic::Request<T>) -> Option<&Caller> {
    request.extensions().get()
}

/// Serves until `stop` ends; then accepts nothing more, lets running calls end for a moment, and cuts what is left.
/// Dropping the future cuts everything at once.
pub async fn serve(
    mut listener: Box<dyn Listener>,
    tls: Arc<Tls>,
    routes: Routes,
    stop: impl Future<Output = ()> + Send,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let (open, stopping) = watch::channel(());
    let shared = Arc::new(Shared { tls, routes: routes.prepare(), refused: Mutex::default() });
    let mut stop = pin!(stop);
    loop {
        let next = tokio::select! {
            biased;
            () = &mut stop => break,
            next = next_connection(listener.as_mut(), &slots) => next,
        };
        let (stream, from, slot) = next;
        // Not owned by this future but bound to it: the task ends when `open` is dropped.
        drop(task::spawn(connection(shared.clone(), stream, from, slot, stopping.clone())));
    }
    drop(listener);
    drop(open);
    let all = slots.acquire_many(CONNECTIONS_MAX as u32);
    // Every connection ends by itself within the same time, so waiting longer would be useless.
    let _ = tokio::time::timeout(Duration::from_millis(SERVE_STOP_MS), all).await;
}

struct Shared {
    tls: Arc<Tls>,
    routes: Routes,
    refused: Mutex<Refusals>,
}

/// Waits for a free slot before accepting, so that a flood waits in the kernel's queue and not in our memory.
async fn next_connection(
    listener: &mut dyn Listener,
    slots: &Arc<Semaphore>,
) -> (Box<dyn ByteStream>, String, OwnedSemaphorePermit) {
    let slot = slots.clone().acquire_owned().await.expect("this semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, from)) => return (stream, from, slot),
            Err(e) => {
                // Out of descriptors, or the caller has hung up already: neither lasts.
                tracing::warn!(error = %e, "accept connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

async fn connection(
    shared: Arc<Shared>,
    stream: Box<dyn ByteStream>,
    from: String,
    _slot: OwnedSemaphorePermit,
    mut stopping: watch::Receiver<()>,
) {
    let shake = tokio::time::timeout(Duration::from_millis(CONNECT_MS), shared.tls.accept(stream));
    let shaken = tokio::select! {
        biased;
        _ = stopping.changed() => return,
        shaken = shake => shaken,
    };
    let (stream, who) = match shaken {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(e)) => return shared.log_refused(&from, &e),
        Err(_) => return shared.log_refused(&from, &TlsError::Handshake("too slow".into())),
    };
    tracing::debug!(%from, %who, "connection accepted");

    let caller = who.clone();
    let service = shared.routes.clone().map_request(move |mut request: http::Request<Incoming>| {
        request.extensions_mut().insert(caller.clone());
        request
    });
    let mut running = pin!(http().serve_connection(TokioIo::new(stream), TowerToHyperService::new(service)));
    let ended = tokio::select! {
        biased;
        _ = stopping.changed() => {
            running.as_mut().graceful_shutdown();
            tokio::time::timeout(Duration::from_millis(SERVE_STOP_MS), running).await.unwrap_or(Ok(()))
        }
        ended = running.as_mut() => ended,
    };
    if let Err(e) = ended {
        tracing::debug!(%from, %who, error = %e, "connection ended");
    }
}

fn http() -> http2::Builder<Scoped> {
    let mut builder = http2::Builder::new(Scoped);
    builder
        .timer(TokioTimer::new())
        // The date would come from the system clock behind the seam's back.
        .auto_date_header(false)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .keep_alive_interval(Duration::from_millis(KEEPALIVE_INTERVAL_MS))
        .keep_alive_timeout(Duration::from_millis(KEEPALIVE_TIMEOUT_MS));
    builder
}

/// Refused handshakes since the last line in the log.
#[derive(Default)]
struct Refusals {
    logged: Option<Instant>,
    unlogged: u64,
}

/// Anyone can make us refuse; nobody shall fill the log with it.
const REFUSALS_LOG_PAUSE: Duration = Duration::from_secs(10);

impl Shared {
    fn log_refused(&self, from: &str, why: &TlsError) {
        tracing::debug!(%from, error = %why, "connection refused");
        let mut refused = self.refused.lock().expect("no holder of this lock panics");
        if refused.logged.is_some_and(|at| at.elapsed() < REFUSALS_LOG_PAUSE) {
            refused.unlogged += 1;
            return;
        }
        tracing::warn!(%from, error = %why, others = refused.unlogged, "connection refused");
        *refused = Refusals { logged: Some(Instant::now()), unlogged: 0 };
    }
}

/// The catalogue service, with our message limits in both directions.
pub fn catalogue<T: Catalogue>(service: Arc<T>) -> CatalogueServer<T> {
    CatalogueServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The shard service, with our message limits in both directions.
pub fn shards<T: Shards>(service: Arc<T>) -> ShardsServer<T> {
    ShardsServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The service between nodes, with our message limits in both directions.
pub fn raft<T: Raft>(service: Arc<T>) -> RaftServer<T> {
    RaftServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The operators' service, with our message limits in both directions.
pub fn admin<T: Admin>(service: Arc<T>) -> AdminServer<T> {
    AdminServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// The service of a node under recovery, with our message limits in both directions.
pub fn recovery<T: Recovery>(service: Arc<T>) -> RecoveryServer<T> {
    RecoveryServer::from_arc(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

#[cfg(test)]
#[path = "serve_test.rs"]
mod tests;
