//! What every call between replicas says of its sender, and what a replica refuses because of it.
//!
//! A certificate says which node calls. It does not say whether the node still has its memory, nor whether both take part in
//! the same founding of the cluster. So each call carries three numbers: the formation, which is the same for all that were
//! founded or admitted together; the number that the sender's data directory drew when it was new; and the number that the
//! sender knows of the receiver. A node whose directory was emptied has another number than the catalogue remembers: it is
//! refused, and learns from the first call that it has to end. Nothing that was founded a second time reaches what was
//! founded before.

use crate::catalogue::{CatalogueError, View};
use crate::identity::Claim;
use farshore_core::host::Disk;
use farshore_core::id::{ClusterId, NodeId, hash_parts};
use farshore_core::topology::NodeState;
use farshore_proto::status::ApiError;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;
use tonic::Request;
use tonic::metadata::{MetadataMap, MetadataValue};

/// Header of every call between replicas: formation, sender's number, receiver's number, each as 16 hexadecimal digits.
const HEADER: &str = "farshore-passport";

/// What the operator of an emptied node reads.
const EMPTIED: &str = "the cluster knows this node with another data directory: is a disk not mounted? If it is lost, make a \
                       new key and join as a new node, since this one has promised votes and shards that it no longer has";

/// What the operator of a retired node reads.
const RETIRED: &str = "the cluster has retired this node; its data directory is not needed any more";

/// What a call is for, as far as the formation goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Its sender leads or wants to: whoever has met no founding yet takes up that of its first such caller.
    Lead,
    /// Its sender asks for something: a newcomer that has met no founding may.
    Ask,
}

/// A node's own numbers, what it knows of others', and whether it still may take part. Clones share it.
#[derive(Clone)]
pub struct Passport(Arc<Inner>);

struct Inner {
    claim: Mutex<Claim>,
    disk: Arc<dyn Disk>,
    /// One founding is taken up at a time.
    joining: tokio::sync::Mutex<()>,
    book: Mutex<Book>,
    ousted: watch::Sender<Option<String>>,
}

/// What the catalogue says of others.
#[derive(Default)]
struct Book {
    incarnations: BTreeMap<NodeId, u64>,
    retired: BTreeSet<NodeId>,
}

/// The header's three numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Said {
    formation: u64,
    from: u64,
    to: u64,
}

/// The formation of these founders. Founding twice with the same list is one founding, and a harmless one.
pub fn formation_of(cluster: ClusterId, founders: &BTreeSet<NodeId>) -> u64 {
    let ids: Vec<[u8; 8]> = founders.iter().map(|id| id.0.to_be_bytes()).collect();
    let hash = hash_parts(&[b"farshore formation", cluster.as_bytes(), ids.concat().as_slice()]);
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    // 0 means none.
    u64::from_be_bytes(first) | 1
}

impl Passport {
    /// That of the node whose data directory this is.
    pub fn new(claim: Claim, disk: Arc<dyn Disk>) -> Self {
        Passport(Arc::new(Inner {
            claim: Mutex::new(claim),
            disk,
            joining: tokio::sync::Mutex::default(),
            book: Mutex::default(),
            ousted: watch::Sender::new(None),
        }))
    }

    /// The number of our own data directory.
    pub fn incarnation(&self) -> u64 {
        self.claim().incarnation
    }
    /// The founding we take part in; 0 if we have met none.
    pub fn formation(&self) -> u64 {
        self.claim().formation
    }
    /// The number that the catalogue knows of another node.
    pub fn known(&self, node: NodeId) -> Option<u64> {
        self.book().incarnations.get(&node).copied()
    }
    /// Notes what the catalogue knows now of all nodes, ourselves among them.
    pub fn learn(&self, view: &View) -> Result<(), CatalogueError> {
        let nodes = view.nodes()?.into_iter();
        let retired = nodes.filter(|node| node.state == NodeState::Retired).map(|node| node.id);
        self.note(view.incarnations()?, retired.collect());
        Ok(())
    }
    fn note(&self, incarnations: BTreeMap<NodeId, u64>, retired: BTreeSet<NodeId>) {
        let Claim { owner, incarnation, .. } = *self.claim();
        if incarnations.get(&owner.node).is_some_and(|known| *known != incarnation) {
            self.oust(EMPTIED.into());
        }
        *self.book() = Book { incarnations, retired };
    }
    /// Ends this node's part if the catalogue says that it is retired. Not with the command that retires it: whoever waits
    /// for its answer is given a moment.
    pub fn leave_if_retired(&self) {
        let own = self.claim().owner.node;
        let retired = self.book().retired.contains(&own);
        if retired {
            self.retire();
        }
    }

    /// Takes up a founding, durably, if none was taken up before.
    pub async fn join(&self, formation: u64) -> Result<(), ApiError> {
        let _one = self.0.joining.lock().await;
        let claim = *self.claim();
        if claim.formation == formation {
            return Ok(());
        }
        if claim.formation != 0 {
            return Err(other_founding());
        }
        let failed = |e| ApiError::Internal(format!("take up the founding of the cluster: {e}"));
        let joined = claim.join(formation, self.0.disk.as_ref()).await.map_err(failed)?;
        tracing::info!(formation = %format!("{formation:016x}"), "this node takes part in a founding");
        *self.claim() = joined;
        Ok(())
    }

    /// This node can no longer take part.
    pub fn oust(&self, why: String) {
        self.0.ousted.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                tracing::error!(%why, "this node takes part no more");
                *now = Some(why);
            }
            first
        });
    }
    /// The cluster has retired this node.
    pub fn retire(&self) {
        self.oust(RETIRED.into());
    }
    /// The cluster's leader knows this number for us.
    pub fn told(&self, incarnation: u64) {
        if incarnation != 0 && incarnation != self.incarnation() {
            self.oust(EMPTIED.into());
        }
    }
    /// Ends once this node can no longer take part, with the reason. Cancel-safe.
    pub async fn ousted(&self) -> String {
        let mut ousted = self.0.ousted.subscribe();
        let why = ousted.wait_for(Option::is_some).await.map(|why| why.clone());
        why.ok().flatten().unwrap_or_default()
    }

    /// A call to a node, with what it has to know of us.
    pub fn stamp<T>(&self, to: NodeId, message: T) -> Request<T> {
        let claim = *self.claim();
        let said =
            Said { formation: claim.formation, from: claim.incarnation, to: self.known(to).unwrap_or(0) };
        let mut request = Request::new(message);
        request.metadata_mut().insert(HEADER, said.header());
        request
    }

    /// Refuses a caller that has lost its memory, or that was founded apart from us.
    pub async fn check(
        &self,
        from: NodeId,
        metadata: &MetadataMap,
        purpose: Purpose,
    ) -> Result<(), ApiError> {
        if let Some(why) = self.0.ousted.borrow().clone() {
            return Err(ApiError::Denied(why));
        }
        // A release before the first that says it.
        let Some(header) = metadata.get(HEADER) else { return Ok(()) };
        let said = header.to_str().ok().and_then(Said::parse);
        let said = said.ok_or_else(|| ApiError::Invalid(format!("{HEADER} cannot be read")))?;
        if said.to != 0 && said.to != self.incarnation() {
            self.oust(EMPTIED.into());
            return Err(ApiError::Denied("this node's data directory is not the one you know".into()));
        }
        if self.known(from).is_some_and(|known| known != said.from) {
            tracing::warn!(%from, "refused a node with another data directory than the cluster knows");
            return Err(ApiError::Denied(format!("node {from}: {EMPTIED}")));
        }
        if self.book().retired.contains(&from) {
            return Err(ApiError::Denied(format!("node {from}: {RETIRED}")));
        }
        match (self.formation(), said.formation) {
            (ours, theirs) if ours == theirs => Ok(()),
            (0, theirs) if purpose == Purpose::Lead => self.join(theirs).await,
            (0, _) => Ok(()),
            (_, 0) if purpose == Purpose::Ask => Ok(()),
            _ => {
                tracing::warn!(%from, "refused a node of another founding");
                Err(other_founding())
            }
        }
    }

    fn claim(&self) -> MutexGuard<'_, Claim> {
        self.0.claim.lock().expect("no holder of this lock panics")
    }
    fn book(&self) -> MutexGuard<'_, Book> {
        self.0.book.lock().expect("no holder of this lock panics")
    }
}

fn other_founding() -> ApiError {
    ApiError::Denied("these nodes were founded apart from each other: a cluster is founded once".into())
}

impl Said {
    fn header(self) -> MetadataValue<tonic::metadata::Ascii> {
        let text = format!("{:016x}-{:016x}-{:016x}", self.formation, self.from, self.to);
        text.parse().expect("digits and dashes are a header")
    }
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('-').map(|part| match part.len() {
            16 => u64::from_str_radix(part, 16).ok(),
            _ => None,
        });
        let (formation, from, to) = (parts.next()??, parts.next()??, parts.next()??);
        parts.next().is_none().then_some(Said { formation, from, to })
    }
}

#[cfg(test)]
#[path = "passport_test.rs"]
mod tests;
