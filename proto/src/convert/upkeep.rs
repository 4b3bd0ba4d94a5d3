//! Migrations, budgets and records of what was read again.

use super::list;
use crate::status::ApiError;
use crate::wire;
use farshore_core::catalogue::{LinkBudget, Migration, Upkeep};
use farshore_core::id::NodeId;
use farshore_core::limits::{LINK_BUDGETS_MAX, NODES_LISTED_MAX};

impl From<Migration> for wire::Migration {
    fn from(migration: Migration) -> Self {
        let Migration { from, to, cold, since_ms, nodes } = migration;
        let nodes = nodes.into_iter().map(|node| node.0).collect();
        wire::Migration { from: from.into(), to: to.into(), cold, since_ms, nodes }
    }
}
impl TryFrom<wire::Migration> for Migration {
    type Error = ApiError;
    fn try_from(wire: wire::Migration) -> Result<Self, ApiError> {
        let nodes = list(wire.nodes, NODES_LISTED_MAX, "nodes", |id| Ok(NodeId(id)))?;
        let (from, to) = (wire.from.parse()?, wire.to.parse()?);
        Ok(Migration {
            from,
            to,
            cold: wire.cold,
            since_ms: wire.since_ms,
            nodes: nodes.into_iter().collect(),
        })
    }
}

impl From<Upkeep> for wire::Upkeep {
    fn from(upkeep: Upkeep) -> Self {
        let Upkeep { scrub_paused, scrub_every_ms, node_bytes_s, links, spend_micros_day } = upkeep;
        let link = |LinkBudget { from, to, bytes_s, bytes_day, micros_gib }| wire::LinkBudget {
            from: from.into(),
            to: to.into(),
            bytes_s,
            bytes_day,
            micros_gib,
        };
        let links = links.into_iter().map(link).collect();
        wire::Upkeep { scrub_paused, scrub_every_ms, node_bytes_s, links, spend_micros_day }
    }
}
impl TryFrom<wire::Upkeep> for Upkeep {
    type Error = ApiError;
    fn try_from(wire: wire::Upkeep) -> Result<Self, ApiError> {
        let wire::Upkeep { scrub_paused, scrub_every_ms, node_bytes_s, links, spend_micros_day } = wire;
        let link = |wire::LinkBudget { from, to, bytes_s, bytes_day, micros_gib }| {
            let (from, to) = (from.parse()?, to.parse()?);
            Ok(LinkBudget { from, to, bytes_s, bytes_day, micros_gib })
        };
        let links = list(links, LINK_BUDGETS_MAX, "links", link)?;
        Ok(Upkeep { scrub_paused, scrub_every_ms, node_bytes_s, links, spend_micros_day })
    }
}
