//! Schemes, shard references, nodes and policies.

use super::{at_most, narrow, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::erasure::Scheme;
use farshore_core::id::{NodeId, RepoId, ShardHash, ShardId, StripeId};
use farshore_core::limits::{ADDR_BYTES_MAX, SHARD_BYTES_MAX, STRIPE_SHARDS_MAX};
use farshore_core::peer::ShardRef;
use farshore_core::policy::Policy;
use farshore_core::topology::{Change, NodeRecord, NodeState};

impl From<Scheme> for wire::Scheme {
    fn from(scheme: Scheme) -> Self {
        wire::Scheme { k: scheme.k() as u32, m: scheme.m() as u32, spread: scheme.spread().into() }
    }
}
impl TryFrom<wire::Scheme> for Scheme {
    type Error = ApiError;
    fn try_from(scheme: wire::Scheme) -> Result<Self, ApiError> {
        let [k, m, spread] = [scheme.k, scheme.m, scheme.spread].map(|n| narrow(n, "number of shards"));
        Ok(Scheme::new(k?, m?, spread?)?)
    }
}

impl From<ShardId> for wire::ShardId {
    fn from(id: ShardId) -> Self {
        wire::ShardId { stripe: bytes(id.stripe.as_bytes()), index: id.index.into() }
    }
}
impl TryFrom<wire::ShardId> for ShardId {
    type Error = ApiError;
    fn try_from(id: wire::ShardId) -> Result<Self, ApiError> {
        if id.index as usize >= STRIPE_SHARDS_MAX {
            return Err(ApiError::Invalid(format!("no stripe has a shard {}", id.index)));
        }
        Ok(ShardId { stripe: StripeId::from_slice(&id.stripe)?, index: narrow(id.index, "shard index")? })
    }
}

impl From<ShardRef> for wire::ShardRef {
    fn from(shard: ShardRef) -> Self {
        wire::ShardRef {
            repo: bytes(shard.repo.as_bytes()),
            id: Some(shard.id.into()),
            hash: bytes(shard.hash.as_bytes()),
            payload_len: shard.payload_len,
        }
    }
}
impl TryFrom<wire::ShardRef> for ShardRef {
    type Error = ApiError;
    fn try_from(shard: wire::ShardRef) -> Result<Self, ApiError> {
        Ok(ShardRef {
            repo: RepoId::from_slice(&shard.repo)?,
            id: required(shard.id, "shard id")?.try_into()?,
            hash: ShardHash::from_slice(&shard.hash)?,
            payload_len: payload_len(shard.payload_len)?,
        })
    }
}

/// A shard's payload has at least one byte and at most the limit.
pub(super) fn payload_len(len: u64) -> Result<u64, ApiError> {
    if len == 0 || len > SHARD_BYTES_MAX as u64 {
        return Err(ApiError::Invalid(format!("no shard is {len} bytes long")));
    }
    Ok(len)
}

impl From<NodeRecord> for wire::Node {
    fn from(node: NodeRecord) -> Self {
        wire::Node {
            id: node.id.0,
            name: node.name.into(),
            region: node.region.into(),
            zone: node.zone.map(String::from).unwrap_or_default(),
            addr: node.addr,
            capacity: node.capacity,
            state: node.state.word().into(),
        }
    }
}
impl TryFrom<wire::Node> for NodeRecord {
    type Error = ApiError;
    fn try_from(node: wire::Node) -> Result<Self, ApiError> {
        let state = NodeState::ALL.into_iter().find(|state| state.word() == node.state);
        at_most(node.addr.len(), ADDR_BYTES_MAX, "bytes of an address")?;
        Ok(NodeRecord {
            id: node_id(node.id)?,
            name: node.name.parse()?,
            region: node.region.parse()?,
            zone: if node.zone.is_empty() { None } else { Some(node.zone.parse()?) },
            addr: node.addr,
            capacity: node.capacity,
            state: state.ok_or_else(|| ApiError::Invalid(format!("no node is {:?}", node.state)))?,
        })
    }
}

impl From<Change> for wire::TopologyChange {
    fn from(change: Change) -> Self {
        wire::TopologyChange { kind: change.word().into(), node: change.node().0 }
    }
}
impl TryFrom<wire::TopologyChange> for Change {
    type Error = ApiError;
    fn try_from(change: wire::TopologyChange) -> Result<Self, ApiError> {
        let unknown = || ApiError::Invalid(format!("no topology change is called {:?}", change.kind));
        Change::of(&change.kind, node_id(change.node)?).ok_or_else(unknown)
    }
}

/// Zero stands for "none" on the wire, so no node may have it.
pub fn node_id(id: u64) -> Result<NodeId, ApiError> {
    opt_node_id(id).ok_or_else(|| ApiError::Invalid("node id is missing".into()))
}

/// Zero stands for "none".
pub fn opt_node_id(id: u64) -> Option<NodeId> {
    (id != 0).then_some(NodeId(id))
}

impl From<Policy> for wire::Policy {
    fn from(policy: Policy) -> Self {
        wire::Policy {
            regions: policy.regions.into(),
            nodes: policy.nodes.into(),
            providers: policy.providers.into(),
            floor_nodes: policy.floor_nodes.into(),
        }
    }
}
impl TryFrom<wire::Policy> for Policy {
    type Error = ApiError;
    fn try_from(policy: wire::Policy) -> Result<Self, ApiError> {
        Ok(Policy {
            regions: narrow(policy.regions, "number of regions")?,
            nodes: narrow(policy.nodes, "number of nodes")?,
            providers: narrow(policy.providers, "number of providers")?,
            floor_nodes: narrow(policy.floor_nodes, "number of nodes")?,
        })
    }
}

/// Ids are short: copying them is the price of owning the message.
pub(super) fn bytes(id: &[u8]) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(id)
}
