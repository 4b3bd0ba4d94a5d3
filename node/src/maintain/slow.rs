//! Nodes that live and are too slow to be of use: half-dead disks, bad lines. A node tells with each heartbeat how long the
//! last ones took and how long its disk takes; the leader compares the nodes of a region with each other, and tells
//! everybody whom to read from last. The judging is pure.
//!
//! A busy machine is not a sick one: of the heartbeats the quickest counts, of the disk's calls the one in the middle.

use farshore_core::id::NodeId;
use farshore_core::limits::{DISK_SLOW_MS, RTT_SLOW_MS, RTTS_KEPT, SLOW_ALWAYS_MS, SLOW_TIMES};
use farshore_core::topology::Region;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How fast a node is, as far as it knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pace {
    /// The quickest of its last heartbeats, there and back.
    pub rtt: Option<Duration>,
    /// Its disk, for a MiB or for a call about less.
    pub disk: Option<Duration>,
}

impl Pace {
    /// As it is told, in microseconds: 0 if it is not known, and never if it is.
    pub fn told(&self) -> (u64, u64) {
        let us = |time: Option<Duration>| time.map_or(0, |time| (time.as_micros() as u64).max(1));
        (us(self.rtt), us(self.disk))
    }

    /// From what was told.
    pub fn from_told(rtt_us: u64, disk_us: u64) -> Self {
        let time = |us| (us > 0).then(|| Duration::from_micros(us));
        Pace { rtt: time(rtt_us), disk: time(disk_us) }
    }
}

/// How long the last heartbeats to one leader took.
#[derive(Default)]
pub struct RoundTrips {
    to: Option<NodeId>,
    kept: VecDeque<Duration>,
}

impl RoundTrips {
    /// A heartbeat that was answered. What was known of the way to another leader says nothing of this one.
    pub fn note(&mut self, to: NodeId, took: Duration) {
        if self.to != Some(to) {
            *self = RoundTrips { to: Some(to), kept: VecDeque::new() };
        }
        if self.kept.len() == RTTS_KEPT {
            self.kept.pop_front();
        }
        self.kept.push_back(took);
    }

    /// The quickest, once there are enough of them to outlast a moment's rush.
    pub fn quickest(&self, to: NodeId) -> Option<Duration> {
        let enough = self.to == Some(to) && self.kept.len() == RTTS_KEPT;
        self.kept.iter().min().copied().filter(|_| enough)
    }
}

/// The nodes that are too slow beside others of their region, or by any measure.
pub fn slow_ones(nodes: &[(NodeId, Region, Pace)]) -> BTreeSet<NodeId> {
    let mut regions = BTreeMap::<&Region, Vec<(NodeId, Pace)>>::new();
    for (id, region, pace) in nodes {
        regions.entry(region).or_default().push((*id, *pace));
    }
    let mut slow = BTreeSet::new();
    for nodes in regions.values() {
        stand_out(nodes, |pace| pace.rtt, RTT_SLOW_MS, &mut slow);
        stand_out(nodes, |pace| pace.disk, DISK_SLOW_MS, &mut slow);
    }
    slow
}

fn stand_out(
    nodes: &[(NodeId, Pace)],
    measure: impl Fn(&Pace) -> Option<Duration>,
    least_ms: u64,
    slow: &mut BTreeSet<NodeId>,
) {
    let known: Vec<(NodeId, Duration)> =
        nodes.iter().filter_map(|(id, pace)| Some((*id, measure(pace)?))).collect();
    for (id, own) in &known {
        let mut others: Vec<Duration> =
            known.iter().filter(|(other, _)| other != id).map(|(_, took)| *took).collect();
        others.sort_unstable();
        // Of an even number the slower of the two in the middle, in the node's favour.
        let beside = others.get(others.len() / 2).is_some_and(|usual| *own >= *usual * SLOW_TIMES);
        let ms = own.as_millis() as u64;
        if ms >= SLOW_ALWAYS_MS || (ms >= least_ms && beside) {
            slow.insert(*id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Option<Duration> {
        Some(Duration::from_millis(ms))
    }

    fn node(id: u64, region: &str, rtt: Option<Duration>, disk: Option<Duration>) -> (NodeId, Region, Pace) {
        (NodeId(id), region.parse().unwrap(), Pace { rtt, disk })
    }

    fn slow(nodes: &[(NodeId, Region, Pace)]) -> Vec<u64> {
        slow_ones(nodes).into_iter().map(|id| id.0).collect()
    }

    #[test]
    fn a_node_is_compared_with_its_neighbours() {
        // A region that is far away is as slow as it is far.
        let far = [node(1, "p/a", ms(0), None), node(2, "p/b", ms(200), None), node(3, "p/b", ms(190), None)];
        assert!(slow(&far).is_empty());
        let alone = [node(1, "p/a", ms(0), None), node(2, "p/b", ms(200), None)];
        assert!(slow(&alone).is_empty());
        let line = [node(1, "p/a", ms(1), None), node(2, "p/a", ms(100), None), node(3, "p/b", ms(60), None)];
        assert_eq!(slow(&line), [2]);
        let disk = [node(1, "p/a", None, ms(5)), node(2, "p/a", None, ms(500)), node(3, "p/a", None, ms(7))];
        assert_eq!(slow(&disk), [2]);
        // All disks of a region are busy; or one is ten times as slow and still quick.
        let busy = [node(1, "p/a", None, ms(300)), node(2, "p/a", None, ms(500))];
        assert!(slow(&busy).is_empty());
        assert!(slow(&[node(1, "p/a", ms(1), ms(1)), node(2, "p/a", ms(40), ms(200))]).is_empty());
        assert_eq!(slow(&[node(1, "p/a", None, ms(SLOW_ALWAYS_MS)), node(2, "p/b", None, None)]), [1]);
    }

    #[test]
    fn a_moments_rush_is_no_slowness() {
        let mut trips = RoundTrips::default();
        for at in 0..RTTS_KEPT {
            assert_eq!(trips.quickest(NodeId(1)), None, "{at} are too few");
            trips.note(NodeId(1), Duration::from_millis(if at == 3 { 2 } else { 900 }));
        }
        assert_eq!((trips.quickest(NodeId(1)), trips.quickest(NodeId(2))), (ms(2), None));
        trips.note(NodeId(2), Duration::ZERO);
        assert_eq!((trips.quickest(NodeId(1)), trips.quickest(NodeId(2))), (None, None));
    }
}
