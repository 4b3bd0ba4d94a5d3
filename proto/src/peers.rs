//! The nodes we can talk to: an address book, and one channel per node that everybody shares. Knows nothing of
//! states or regions; whoever reads the topology keeps the book up to date.

use crate::channel::connect;
use crate::tls::{Expect, Tls};
use farshore_core::host::Net;
use farshore_core::id::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use tonic::transport::Channel;

/// Address book and channels. Shared behind an `Arc`.
pub struct Peers {
    net: Arc<dyn Net>,
    tls: Arc<Tls>,
    book: Mutex<BTreeMap<NodeId, Entry>>,
}

struct Entry {
    addr: String,
    channel: Option<Channel>,
}

impl Peers {
    /// An empty book.
    pub fn new(net: Arc<dyn Net>, tls: Arc<Tls>) -> Self {
        Peers { net, tls, book: Mutex::default() }
    }

    /// Notes where a node listens. A changed address drops the old channel; calls already on it run on.
    pub fn set(&self, node: NodeId, addr: &str) {
        let mut book = self.book();
        if book.get(&node).is_none_or(|entry| entry.addr != addr) {
            book.insert(node, Entry { addr: addr.into(), channel: None });
        }
    }

    /// Forgets a node.
    pub fn forget(&self, node: NodeId) {
        self.book().remove(&node);
    }

    /// The channel to a node, made at the first call. `None` if its address is unknown.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        let mut book = self.book();
        let entry = book.get_mut(&node)?;
        let fresh = || connect(self.net.clone(), self.tls.clone(), entry.addr.clone(), Expect::Node(node));
        Some(entry.channel.get_or_insert_with(fresh).clone())
    }

    /// Where a node listens, if known.
    pub fn addr(&self, node: NodeId) -> Option<String> {
        self.book().get(&node).map(|entry| entry.addr.clone())
    }

    /// Every node in the book, ascending.
    pub fn known(&self) -> Vec<NodeId> {
        self.book().keys().copied().collect()
    }

    /// Our own TLS identity.
    pub fn tls(&self) -> &Arc<Tls> {
        &self.tls
    }

    fn book(&self) -> MutexGuard<'_, BTreeMap<NodeId, Entry>> {
        self.book.lock().expect("no holder of this lock panics")
    }
}
