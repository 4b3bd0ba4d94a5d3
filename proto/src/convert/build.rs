//! Sums of shards, and orders to make a shard of them.

use super::common::node_id;
use super::{at_most, list, narrow, required};
use crate::status::ApiError;
use crate::wire;
use farshore_core::gather::{BuildOrder, Built, RegionSum};
use farshore_core::id::{NodeId, ShardHash};
use farshore_core::limits::STRIPE_SHARDS_MAX;
use farshore_core::peer::Term;
use std::collections::BTreeMap;

impl From<Term> for wire::Term {
    fn from(term: Term) -> Self {
        wire::Term { node: term.node.0, shard: Some(term.shard.into()), factor: term.factor.into() }
    }
}
impl TryFrom<wire::Term> for Term {
    type Error = ApiError;
    fn try_from(term: wire::Term) -> Result<Self, ApiError> {
        Ok(Term {
            node: node_id(term.node)?,
            shard: required(term.shard, "shard")?.try_into()?,
            factor: narrow(term.factor, "factor")?,
        })
    }
}

/// The shards of one sum: at least one, all equally long.
pub fn terms(terms: Vec<wire::Term>) -> Result<Vec<Term>, ApiError> {
    let terms = list(terms, STRIPE_SHARDS_MAX, "shards in a sum", Term::try_from)?;
    let first = terms.first().ok_or_else(|| ApiError::Invalid("a sum of no shards".into()))?;
    if terms.iter().any(|term| term.shard.payload_len != first.shard.payload_len) {
        return Err(ApiError::Invalid("shards in a sum differ in length".into()));
    }
    Ok(terms)
}

impl From<RegionSum> for wire::RegionSum {
    fn from(sum: RegionSum) -> Self {
        wire::RegionSum {
            region: sum.region.into(),
            terms: sum.terms.into_iter().map(Into::into).collect(),
            relay: sum.relay.map_or(0, |relay| relay.0),
        }
    }
}
impl TryFrom<wire::RegionSum> for RegionSum {
    type Error = ApiError;
    fn try_from(sum: wire::RegionSum) -> Result<Self, ApiError> {
        Ok(RegionSum {
            region: sum.region.parse()?,
            terms: terms(sum.terms)?,
            relay: super::common::opt_node_id(sum.relay),
        })
    }
}

impl From<BuildOrder> for wire::BuildRequest {
    fn from(order: BuildOrder) -> Self {
        wire::BuildRequest {
            pack: Some(order.pack.into()),
            index: order.index.into(),
            sums: order.sums.into_iter().map(Into::into).collect(),
        }
    }
}
impl TryFrom<wire::BuildRequest> for BuildOrder {
    type Error = ApiError;
    fn try_from(request: wire::BuildRequest) -> Result<Self, ApiError> {
        let order = BuildOrder {
            pack: required(request.pack, "pack")?.try_into()?,
            index: narrow(request.index, "shard index")?,
            sums: list(request.sums, STRIPE_SHARDS_MAX, "regions", RegionSum::try_from)?,
        };
        let of_it = |term: &Term| {
            term.shard.id.stripe == order.pack.stripe.id
                && term.shard.payload_len == order.pack.stripe.shard_len
        };
        if order.sums.is_empty() || !order.sums.iter().flat_map(|sum| &sum.terms).all(of_it) {
            return Err(ApiError::Invalid("the sums are not of this stripe's shards".into()));
        }
        if usize::from(order.index) >= order.pack.stripe.scheme.n() {
            return Err(ApiError::Invalid(format!("the stripe has no shard {}", order.index)));
        }
        Ok(order)
    }
}

impl From<Built> for wire::Built {
    fn from(built: Built) -> Self {
        let crossed = |(region, bytes)| wire::Crossed { region: String::from(region), bytes };
        wire::Built {
            hash: bytes::Bytes::copy_from_slice(built.hash.as_bytes()),
            crossed: built.crossed.into_iter().map(crossed).collect(),
            liars: built.liars.into_iter().map(|liar| liar.0).collect(),
            singly: built.singly,
            kept: built.kept,
        }
    }
}
impl TryFrom<wire::Built> for Built {
    type Error = ApiError;
    fn try_from(built: wire::Built) -> Result<Self, ApiError> {
        at_most(built.crossed.len(), STRIPE_SHARDS_MAX, "regions")?;
        let crossed = built.crossed.into_iter().map(|c| Ok((c.region.parse()?, c.bytes)));
        Ok(Built {
            hash: ShardHash::from_slice(&built.hash)?,
            crossed: crossed.collect::<Result<BTreeMap<_, _>, ApiError>>()?,
            liars: list(built.liars, STRIPE_SHARDS_MAX, "relays", |id| Ok(NodeId(id)))?,
            singly: built.singly,
            kept: built.kept,
        })
    }
}
