//! Relays that lie. A node that builds a shard is sent one sum by each other region, for which nobody vouches
//! (`farshore_core::gather`). Here some of them arrive with other bytes than their relays have added up.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use farshore_core::id::NodeId;
use farshore_core::peer::{ShardError, SumIo, SumPieces, Term};
use futures_util::StreamExt;
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};

/// Who lies in a world. Clones share it.
#[derive(Clone, Default)]
pub struct Relays(Arc<Mutex<Lies>>);

#[derive(Default)]
struct Lies {
    lying: BTreeSet<NodeId>,
    liars: BTreeSet<NodeId>,
    told: u64,
}

impl Relays {
    /// From now on this node sends wrong sums.
    pub fn begin(&self, node: NodeId) {
        self.lies().lying.insert(node);
    }

    /// It sends right ones again.
    pub fn end(&self, node: NodeId) {
        self.lies().lying.remove(&node);
    }

    /// Whether this node has ever sent a wrong sum.
    pub fn has_lied(&self, node: NodeId) -> bool {
        self.lies().liars.contains(&node)
    }

    /// Wrong sums sent.
    pub fn told(&self) -> u64 {
        self.lies().told
    }

    /// Sums as they arrive in this world.
    pub fn wrap(&self, sums: Arc<dyn SumIo>) -> Arc<dyn SumIo> {
        Arc::new(Wrong { sums, relays: self.clone() })
    }

    fn lie(&self, node: NodeId) -> bool {
        let mut lies = self.lies();
        if !lies.lying.contains(&node) {
            return false;
        }
        lies.liars.insert(node);
        lies.told += 1;
        true
    }

    fn lies(&self) -> MutexGuard<'_, Lies> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

struct Wrong {
    sums: Arc<dyn SumIo>,
    relays: Relays,
}

#[async_trait]
impl SumIo for Wrong {
    async fn sum(&self, relay: NodeId, terms: &[Term]) -> Result<SumPieces, ShardError> {
        let sum = self.sums.sum(relay, terms).await?;
        match self.relays.lie(relay) {
            true => Ok(sum.map(|piece| piece.map(falsified)).boxed()),
            false => Ok(sum),
        }
    }
}

/// As long as it was, and another in its last byte.
fn falsified(piece: Bytes) -> Bytes {
    let mut piece = BytesMut::from(piece);
    if let Some(last) = piece.last_mut() {
        *last ^= 0x5a;
    }
    piece.freeze()
}
