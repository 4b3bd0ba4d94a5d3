//! How safe the packs are: what is unreadable, what hangs by a thread, and which region must not be lost. A whole look
//! goes over every pack, so it is made page by page, in the background, and never holds more than the totals.

use super::error::CatalogueError;
use super::view::View;
use farshore_core::catalogue::PackRecord;
use farshore_core::id::{NodeId, PackNo};
use farshore_core::topology::{NodeRecord, Region};
use std::collections::{BTreeMap, BTreeSet};

/// The result of a whole look at all packs.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Safety {
    /// Packs looked at.
    pub packs: u64,
    /// Packs that are not spread over n nodes within the spread limit, shards on lost nodes not counted.
    pub under_target: u64,
    /// Packs with exactly k shards on nodes that answer: readable, nothing spare.
    pub endangered: u64,
    /// Packs with fewer than k shards on nodes that answer: not readable until some come back.
    pub unreadable: u64,
    /// Regions whose loss would make some pack unreadable that is readable now.
    pub fatal_regions: BTreeSet<Region>,
}

impl Safety {
    /// Every pack would survive the loss of any one region more.
    pub fn survives_region(&self) -> bool {
        self.unreadable == 0 && self.fatal_regions.is_empty()
    }
}

/// A look at all packs that is under way. Pages may come from later and later views: a pack that changes meanwhile
/// counts as it was when it was looked at.
pub struct SafetyScan {
    nodes: BTreeMap<NodeId, NodeRecord>,
    next: PackNo,
    safety: Safety,
}

impl SafetyScan {
    /// Begins a look; the nodes are taken as they are now.
    pub fn begin(view: &View) -> Result<Self, CatalogueError> {
        let nodes = view.nodes()?.into_iter().map(|node| (node.id, node)).collect();
        Ok(SafetyScan { nodes, next: PackNo(0), safety: Safety::default() })
    }

    /// Looks at up to `limit` packs more. The result, once all were looked at.
    pub fn step(&mut self, view: &View, limit: usize) -> Result<Option<Safety>, CatalogueError> {
        let page = view.all_packs(self.next, limit)?;
        page.rows.iter().for_each(|pack| self.feed(pack));
        match page.next {
            Some(next) => self.next = next,
            None => return Ok(Some(std::mem::take(&mut self.safety))),
        }
        Ok(None)
    }

    fn feed(&mut self, pack: &PackRecord) {
        let k = pack.stripe.scheme.k();
        let region = |id| self.nodes.get(&id).filter(|node| node.state.counts()).map(|node| &node.region);
        // Shards of a silent node are expected back, so repair does not owe them; but what can be lost now is decided
        // by those that can be read now.
        let answering = |id| self.nodes.get(&id).filter(|node| node.state.answers()).map(|node| &node.region);
        let mut by_region = BTreeMap::<&Region, usize>::new();
        for holder in pack.stripe.shards.iter().filter_map(|shard| answering(shard.node?)) {
            *by_region.entry(holder).or_default() += 1;
        }
        let good = by_region.values().sum::<usize>();
        self.safety.packs += 1;
        self.safety.under_target += u64::from(!pack.stripe.at_target(region));
        self.safety.endangered += u64::from(good == k);
        self.safety.unreadable += u64::from(good < k);
        if good >= k {
            let fatal = by_region.into_iter().filter(|(_, held)| good - held < k);
            self.safety.fatal_regions.extend(fatal.map(|(region, _)| region.clone()));
        }
    }
}
