//! Who is up, silent, gone. Every node tells the leader each second that it lives; the leader alone judges, on its
//! monotonic clock, and every judgement becomes a command. The judging is pure: times in, commands out.

use super::slow::{Pace, slow_ones};
use crate::config::Timing;
use farshore_core::catalogue::Command;
use farshore_core::id::NodeId;
use farshore_core::limits::{FLAP_HOLD_MAX_MS, FLAP_WINDOW_MS, FLAPS_FREE, FLAPS_KEPT, NODES_MAX};
use farshore_core::topology::{NodeRecord, NodeState};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;
use tokio::time::Instant;

/// What a node says of its disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Load {
    /// Bytes of shards held.
    pub used: u64,
    /// Bytes the disk still has.
    pub free: u64,
    /// Number of shards held.
    pub shards: u64,
    /// Shards it has found missing or corrupt since it started.
    pub bad_found: u64,
    /// How fast it is.
    pub pace: Pace,
}

/// What the leader knows of a node besides its record.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NodeHealth {
    /// As of its last heartbeat to this leader, if there was one.
    pub load: Option<Load>,
    /// Since the last heartbeat, or since this leader took over.
    pub silent: Duration,
    /// Until it is declared lost; zero if it is up, lost or gone.
    pub grace_left: Duration,
    /// How often it fell silent and came back lately.
    pub flaps: u32,
    /// It is heard again and has to stay for so long before it counts as up; zero if nothing is held against it.
    pub held: Duration,
}

/// The leader's table of heartbeats.
pub struct Health {
    timing: Timing,
    table: Mutex<Heard>,
}

struct Heard {
    /// When this node began to lead; every silence is counted from here at the earliest.
    since: Instant,
    nodes: BTreeMap<NodeId, Heartbeat>,
}

struct Heartbeat {
    at: Instant,
    /// Since when it was heard without a break.
    since: Instant,
    /// When it came back from a silence, the last of them last.
    flaps: VecDeque<Instant>,
    record: NodeRecord,
    incarnation: u64,
    level: u32,
    load: Load,
}

/// What the catalogue knows, as far as judging goes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Known {
    /// Every node.
    pub nodes: Vec<NodeRecord>,
    /// The number of each node's data directory.
    pub incarnations: BTreeMap<NodeId, u64>,
    /// The feature level of each node's program.
    pub levels: BTreeMap<NodeId, u32>,
    /// Nodes that an operator wants emptied.
    pub leaving: BTreeSet<NodeId>,
}

impl Health {
    /// An empty table.
    pub fn new(timing: Timing) -> Self {
        let heard = Heard { since: Instant::now(), nodes: BTreeMap::new() };
        Health { timing, table: Mutex::new(heard) }
    }

    /// This node begins to lead: every clock starts afresh, so that nobody is blamed for a silence between leaders.
    pub fn begin(&self, now: Instant) {
        *self.table() = Heard { since: now, nodes: BTreeMap::new() };
    }

    /// A heartbeat came in. The caller has checked that the record is the caller's own. `incarnation` is the number of its
    /// data directory, 0 if it says none; `level` is the feature level that its program can do.
    pub fn hear(&self, record: NodeRecord, incarnation: u64, level: u32, load: Load, now: Instant) {
        let mut table = self.table();
        let (mut since, mut flaps) = (table.since, VecDeque::new());
        match table.nodes.remove(&record.id) {
            Some(last) => {
                (since, flaps) = (last.since, last.flaps);
                if now.saturating_duration_since(last.at) >= self.timing.suspect_after {
                    since = now;
                    flaps.push_back(now);
                }
                while flaps.len() > FLAPS_KEPT || flaps.front().is_some_and(|at| is_long_ago(*at, now)) {
                    flaps.pop_front();
                }
            }
            None if table.nodes.len() >= NODES_MAX => return,
            None => {}
        }
        table.nodes.insert(record.id, Heartbeat { at: now, since, flaps, record, incarnation, level, load });
    }

    /// What the catalogue should be told, given what it knows.
    pub fn judge(&self, known: &Known, now: Instant) -> Vec<Command> {
        let table = self.table();
        let nodes: BTreeMap<NodeId, &NodeRecord> = known.nodes.iter().map(|n| (n.id, n)).collect();
        let puts = table.nodes.values().filter_map(|heard| {
            let Heartbeat { record: node, incarnation, level, .. } = heard;
            let (node, incarnation, level) = (node.clone(), *incarnation, *level);
            let moved = nodes.get(&node.id).is_none_or(|k| differs(k, &node));
            let news = moved || known.levels.get(&node.id) != Some(&level);
            match known.incarnations.get(&node.id) {
                None if incarnation != 0 => Some(Command::AdmitNode { node, incarnation, level }),
                Some(same) if news && *same == incarnation => {
                    Some(Command::AdmitNode { node, incarnation, level })
                }
                None if moved => Some(Command::PutNode { node }),
                _ => None,
            }
        });
        let moves = nodes.values().filter_map(|node| {
            let heard = table.nodes.contains_key(&node.id);
            let held = !self.held(&table, node.id, now).is_zero();
            let to = next_state(node.state, table.silent(node.id, now), heard && !held, &self.timing)?;
            // Whoever was to leave and fell silent takes it up again.
            let to =
                if to == NodeState::Up && node.state == NodeState::Lost && known.leaving.contains(&node.id) {
                    NodeState::Draining
                } else {
                    to
                };
            Some(Command::SetNodeState { node: node.id, from: node.state, to })
        });
        puts.chain(moves).collect()
    }

    /// What is known of a node in this state.
    pub fn of(&self, node: NodeId, state: NodeState, now: Instant) -> NodeHealth {
        let table = self.table();
        let silent = table.silent(node, now);
        let grace_left = match state {
            NodeState::Suspect | NodeState::Down => {
                (self.timing.down_after + self.timing.grace).saturating_sub(silent)
            }
            _ => Duration::ZERO,
        };
        let held = match state {
            NodeState::Suspect | NodeState::Down | NodeState::Lost if silent < self.timing.suspect_after => {
                self.held(&table, node, now)
            }
            _ => Duration::ZERO,
        };
        let heard = table.nodes.get(&node);
        let flaps = heard.map_or(0, |h| h.flaps(now) as u32);
        NodeHealth { load: heard.map(|h| h.load), silent, grace_left, flaps, held }
    }

    /// How long a node has to be heard yet before it is trusted. Whoever comes and goes is left out for longer and longer
    /// (as in RFC 2439): its shards count as there, and nobody waits for it.
    fn held(&self, table: &Heard, node: NodeId, now: Instant) -> Duration {
        let Some(heard) = table.nodes.get(&node) else { return Duration::ZERO };
        let Some(over) = heard.flaps(now).checked_sub(FLAPS_FREE).filter(|over| *over > 0) else {
            return Duration::ZERO;
        };
        let most = Duration::from_millis(FLAP_HOLD_MAX_MS).min(self.timing.grace / 2);
        let hold = self.timing.suspect_after.saturating_mul(1 << over.min(16)).min(most);
        hold.saturating_sub(now.saturating_duration_since(heard.since))
    }

    /// Nodes that answer and are too slow to be asked first.
    pub fn slow(&self, nodes: &[NodeRecord]) -> BTreeSet<NodeId> {
        let table = self.table();
        let answering = nodes.iter().filter(|node| node.state.answers());
        let pace = |node: &NodeRecord| {
            let heard = table.nodes.get(&node.id)?;
            Some((node.id, node.region.clone(), heard.load.pace))
        };
        slow_ones(&answering.filter_map(pace).collect::<Vec<_>>())
    }

    /// Shards found missing or corrupt, summed over the nodes heard of.
    pub fn bad_found(&self) -> u64 {
        self.table().nodes.values().map(|h| h.load.bad_found).sum()
    }

    fn table(&self) -> MutexGuard<'_, Heard> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

impl Heartbeat {
    /// How often it came back lately.
    fn flaps(&self, now: Instant) -> usize {
        self.flaps.iter().filter(|at| !is_long_ago(**at, now)).count()
    }
}

impl Heard {
    fn silent(&self, node: NodeId, now: Instant) -> Duration {
        let last = self.nodes.get(&node).map_or(self.since, |h| h.at);
        now.saturating_duration_since(last)
    }
}

fn is_long_ago(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) >= Duration::from_millis(FLAP_WINDOW_MS)
}

/// Whether a heartbeat carries news. The state in it means nothing: a node does not judge itself.
fn differs(known: &NodeRecord, heard: &NodeRecord) -> bool {
    let mut heard = heard.clone();
    heard.state = known.state;
    *known != heard
}

/// The next step of a node's life, one transition at a time. `heard` says that this leader had a heartbeat at all, from a node
/// that is trusted: only a voice brings a node back, never the fresh clock of a new leader.
fn next_state(state: NodeState, silent: Duration, heard: bool, timing: &Timing) -> Option<NodeState> {
    let back = heard && silent < timing.suspect_after;
    let lost = silent >= timing.down_after + timing.grace;
    let next = match state {
        NodeState::Up if silent >= timing.suspect_after => NodeState::Suspect,
        NodeState::Suspect | NodeState::Down | NodeState::Lost if back => NodeState::Up,
        NodeState::Suspect if silent >= timing.down_after => NodeState::Down,
        NodeState::Down | NodeState::Draining if lost => NodeState::Lost,
        _ => return None,
    };
    debug_assert!(state.may_become(next), "{state:?} to {next:?} is not in the table");
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::level::FEATURE_LEVEL;
    use proptest::prelude::*;

    fn node(id: u64, state: NodeState) -> NodeRecord {
        NodeRecord {
            id: NodeId(id),
            name: "n".parse().unwrap(),
            region: "a/b".parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1,
            state,
        }
    }

    fn known(nodes: &[NodeRecord]) -> Known {
        let (incarnations, levels) = ([(NodeId(1), 5)].into(), [(NodeId(1), FEATURE_LEVEL)].into());
        Known { nodes: nodes.to_vec(), incarnations, levels, ..Known::default() }
    }

    fn after(health: &Health, state: NodeState, now: Instant) -> Option<NodeState> {
        match health.judge(&known(&[node(1, state)]), now).as_slice() {
            [] => None,
            [Command::SetNodeState { from, to, .. }] if *from == state => Some(*to),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn silence_leads_step_by_step_to_lost_and_a_voice_brings_back() {
        let timing = Timing::default();
        let health = Health::new(timing);
        let start = Instant::now();
        health.begin(start);
        assert_eq!(after(&health, NodeState::Up, start), None);
        assert_eq!(after(&health, NodeState::Up, start + timing.suspect_after), Some(NodeState::Suspect));
        assert_eq!(after(&health, NodeState::Suspect, start + timing.suspect_after), None);
        assert_eq!(after(&health, NodeState::Suspect, start + timing.down_after), Some(NodeState::Down));
        assert_eq!(after(&health, NodeState::Down, start + timing.grace), None);
        let end = start + timing.down_after + timing.grace;
        assert_eq!(after(&health, NodeState::Down, end), Some(NodeState::Lost));
        assert_eq!(after(&health, NodeState::Lost, end), None);
        health.hear(node(1, NodeState::Up), 5, FEATURE_LEVEL, Load::default(), end);
        assert_eq!(after(&health, NodeState::Lost, end), Some(NodeState::Up));
        let leaving = Known { leaving: BTreeSet::from([NodeId(1)]), ..known(&[node(1, NodeState::Lost)]) };
        let to = NodeState::Draining;
        let back = Command::SetNodeState { node: NodeId(1), from: NodeState::Lost, to };
        assert_eq!(health.judge(&leaving, end), [back]);
    }

    #[test]
    fn a_new_leader_neither_blames_nor_revives_anyone() {
        let timing = Timing::default();
        let health = Health::new(timing);
        let later = Instant::now() + timing.grace * 2;
        health.hear(node(1, NodeState::Up), 5, FEATURE_LEVEL, Load::default(), later);
        health.begin(later);
        for state in NodeState::ALL {
            assert_eq!(after(&health, state, later), None, "{state:?}");
        }
    }

    #[test]
    fn strangers_and_news_are_put_and_a_claimed_state_is_ignored() {
        let health = Health::new(Timing::default());
        let now = Instant::now();
        health.begin(now);
        health.hear(node(1, NodeState::Draining), 5, FEATURE_LEVEL, Load::default(), now);
        let put = |commands: Vec<Command>| {
            matches!(commands.as_slice(), [Command::AdmitNode { incarnation: 5, .. }])
        };
        assert!(put(health.judge(&Known::default(), now)));
        assert!(put(health.judge(&Known { nodes: vec![node(1, NodeState::Up)], ..Known::default() }, now)));
        assert!(health.judge(&known(&[node(1, NodeState::Up)]), now).is_empty());
        let moved = known(&[NodeRecord { addr: "h:2".into(), ..node(1, NodeState::Up) }]);
        assert!(put(health.judge(&moved, now)));
        // A node that was updated, or is held back, says so.
        let held = Known { levels: [(NodeId(1), 1)].into(), ..known(&[node(1, NodeState::Up)]) };
        assert!(put(health.judge(&held, now)));
        // Another data directory is nobody the cluster knows.
        health.hear(node(1, NodeState::Up), 6, FEATURE_LEVEL, Load::default(), now);
        assert!(health.judge(&moved, now).is_empty());
        health.hear(node(2, NodeState::Up), 0, FEATURE_LEVEL, Load::default(), now);
        assert!(matches!(health.judge(&moved, now).as_slice(), [Command::PutNode { .. }]));
    }

    /// The third silence within minutes is one too many, and each further one costs twice as much.
    #[test]
    fn a_node_that_comes_and_goes_is_trusted_later_each_time() {
        let timing = Timing { grace: Duration::from_secs(60), ..Timing::default() };
        let health = Health::new(timing);
        let mut now = Instant::now();
        health.begin(now);
        let hear = |now| health.hear(node(1, NodeState::Up), 5, FEATURE_LEVEL, Load::default(), now);
        // Returns how long it took to be trusted again.
        let mut come_back = |silence: Duration| {
            now += silence;
            hear(now);
            let back = now;
            while after(&health, NodeState::Down, now).is_none() {
                let known = health.of(NodeId(1), NodeState::Down, now);
                assert!(!known.held.is_zero() && known.silent < timing.suspect_after);
                assert_eq!(after(&health, NodeState::Suspect, now), None);
                now += timing.heartbeat;
                hear(now);
            }
            assert!(health.of(NodeId(1), NodeState::Down, now).held.is_zero());
            now - back
        };
        come_back(Duration::ZERO);
        let waits: Vec<u64> = (0..7).map(|_| come_back(timing.suspect_after).as_secs()).collect();
        let step = timing.suspect_after.as_secs();
        assert_eq!(waits, [0, 0, 2 * step, 4 * step, 8 * step, 30, 30], "up to half of the grace");
        // It is forgotten.
        assert_eq!(come_back(Duration::from_millis(FLAP_WINDOW_MS)).as_secs(), 0);
        assert_eq!(health.of(NodeId(1), NodeState::Up, now).flaps, 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]
        #[test]
        fn every_step_is_in_the_table(state in 0usize..6, silent_ms in 0u64..2_000_000, heard: bool) {
            let state = NodeState::ALL[state];
            if let Some(next) = next_state(state, Duration::from_millis(silent_ms), heard, &Timing::default()) {
                prop_assert!(state.may_become(next));
            }
        }
    }
}
