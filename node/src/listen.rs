//! The accept loop of a node, and its orderly end.

use crate::rpc;
use farshore_core::host::task;
use farshore_proto::serve;
use farshore_proto::tls::Tls;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The accept loop and what ends it.
pub(crate) struct Listening {
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Listening {
    /// Accepts nothing more and lets running calls end for a moment.
    pub(crate) async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            let _ = task.await;
        }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

pub(crate) fn listen(
    listener: Box<dyn farshore_core::host::Listener>,
    tls: Arc<Tls>,
    routes: rpc::Routes,
) -> Listening {
    let (stop, mut asked) = watch::channel(false);
    let stopped = async move {
        // An error means the node was dropped, which is a stop too.
        let _ = asked.wait_for(|stop| *stop).await;
    };
    let task = task::spawn(serve::serve(listener, tls, routes, stopped));
    Listening { stop, task: Some(task) }
}
