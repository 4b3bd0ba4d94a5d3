//! Answers that take longer than a call may: a task looks, tells now and then how far it is, and its last message is the
//! answer. Hanging up ends it.

use farshore_core::host::task::Owned;
use farshore_core::limits::STATUS_CONFIRM_MS;
use farshore_proto::status::ApiError;
use futures_util::stream::{self, Stream};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::{Response, Status, Streaming};

/// What the caller reads.
pub type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Messages waiting for a slow operator; a full queue skips some.
const QUEUED_MAX: usize = 4;

/// Takes what is said on the way.
pub struct Told<T>(mpsc::Sender<Result<T, Status>>);

impl<T> Told<T> {
    /// Says how far it is. A full queue skips a message; the last one is waited for.
    pub fn progress(&self, message: T) {
        let _ = self.0.try_send(Ok(message));
    }
}

/// Runs the look in its own task.
pub fn answers<T, F>(look: impl FnOnce(Told<T>) -> F) -> Answers<T>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    let (send, receive) = mpsc::channel(QUEUED_MAX);
    let looking = look(Told(send.clone()));
    let task = Owned::spawn(async move {
        let last = looking.await.map_err(Status::from);
        // Nobody listens any more if the operator has hung up.
        let _ = send.send(last).await;
    });
    Box::pin(stream::unfold((receive, task), |(mut receive, task)| async move {
        let next = receive.recv().await?;
        Some((next, (receive, task)))
    }))
}

/// Another node's answers, if it begins to give them in time.
pub async fn passed_on<T: Send + 'static>(
    call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
) -> Option<Answers<T>> {
    match tokio::time::timeout(Duration::from_millis(STATUS_CONFIRM_MS * 2), call).await {
        Ok(Ok(answers)) => Some(Box::pin(answers.into_inner())),
        Ok(Err(status)) => {
            tracing::debug!(error = %status, "ask the leader");
            None
        }
        Err(_) => None,
    }
}
