//! Planner, scan and catalogue together: what the scan finds in a real catalogue is planned, recorded by commands, and
//! found in order in the end.

use super::{RepairScan, Task, plan_repair};
use crate::catalogue::{Catalogue, SafetyScan};
use crate::kv::memory::MemoryKv;
use farshore_core::catalogue::*;
use farshore_core::erasure::Scheme;
use farshore_core::id::*;
use farshore_core::policy::Policy;
use farshore_core::topology::{NodeRecord, NodeState};
use std::sync::Arc;

struct Cluster {
    catalogue: Catalogue,
    index: u64,
}

impl Cluster {
    /// Nine nodes in three regions and some packs, each on six of them.
    fn new(packs: u8) -> Self {
        let mut this = Cluster { catalogue: Catalogue::open(Arc::new(MemoryKv::new())).unwrap(), index: 0 };
        (0..9).for_each(|id| this.must(Command::PutNode { node: node(id) }));
        let policy = Policy { regions: 1, nodes: 0, providers: 0, floor_nodes: 1 };
        let (id, name) = (RepoId([1; 16]), "repo".parse().unwrap());
        let repo = RepoRecord { id, name, policy, sealed_config: vec![], key_slots: vec![] };
        this.must(Command::CreateRepository { repo });
        let session = SessionId([1; 16]);
        this.must(Command::OpenSession { session, repo: id, seen: 0 });
        let packs = (0..packs).map(pack).collect();
        this.must(Command::CommitPacks { session, packs });
        this
    }

    fn must(&mut self, command: Command) {
        self.index += 1;
        let mut tx = self.catalogue.begin();
        let reply =
            tx.apply(self.index, &Proposal { time_ms: 0, actor: Actor::Node(NodeId(1)), command }).unwrap();
        assert!(!matches!(reply, Reply::Refused(_)), "{reply:?}");
        tx.commit().unwrap();
    }

    fn become_state(&mut self, node: u64, path: &[NodeState]) {
        for step in path.windows(2) {
            self.must(Command::SetNodeState { node: NodeId(node), from: step[0], to: step[1] });
        }
    }

    /// One round of the scan, everything it leads to carried out. How many shards were placed.
    fn repair_round(&mut self, limit: usize) -> usize {
        let mut scan = RepairScan::new();
        let mut placed = 0;
        let mut met = std::collections::BTreeSet::new();
        loop {
            let view = self.catalogue.view().unwrap();
            let Some(page) = scan.step(&view, limit).unwrap() else { return placed };
            assert!(page.packs.len() <= limit);
            let plan = plan_repair(&page, 100);
            let mut tasks = plan.tasks.into_iter().map(|Task::Rebuild(task)| task).collect::<Vec<_>>();
            tasks.retain(|task| met.insert(task.pack));
            for task in tasks {
                let (pack, generation, index, node) = (task.pack, task.generation, task.index, task.to);
                if task.reclaims {
                    let shard = farshore_core::id::ShardId { stripe: task.stripe, index };
                    self.must(Command::Swept { copies: vec![Condemned { node, shard }] });
                }
                self.must(Command::PlaceShard { pack, generation, index, node });
                placed += 1;
            }
            self.must(Command::Recheck { packs: plan.recheck });
        }
    }

    fn repair(&mut self, limit: usize) -> usize {
        let mut placed = 0;
        for _ in 0..20 {
            let now = self.repair_round(limit);
            if now == 0 {
                return placed;
            }
            placed += now;
            self.sweep();
        }
        panic!("repair never ends");
    }

    fn sweep(&mut self) {
        for id in (0..9).map(NodeId) {
            let copies = self.catalogue.view().unwrap().condemned(id, None, 100).unwrap().rows;
            self.must(Command::Swept { copies });
        }
    }

    fn whole(&self) -> bool {
        let view = self.catalogue.view().unwrap();
        let safety = SafetyScan::begin(&view).unwrap().step(&view, 100).unwrap().unwrap();
        assert_eq!(view.counts().under_target, safety.under_target, "the list is exact after a round");
        safety.under_target == 0
    }
}

fn node(id: u64) -> NodeRecord {
    NodeRecord {
        id: NodeId(id),
        name: format!("n{id}").parse().unwrap(),
        region: format!("test/r{}", id % 3).parse().unwrap(),
        zone: None,
        addr: "host:1".into(),
        capacity: 1 << 40,
        state: NodeState::Up,
    }
}

fn pack(which: u8) -> PackCommit {
    let scheme = Scheme::new(4, 2, 2).unwrap();
    let shard =
        |i: u64| ShardRecord { node: Some(NodeId((u64::from(which) + i) % 9)), hash: ShardHash([1; 32]) };
    PackCommit {
        id: PackId([which; 32]),
        kind: PackKind::Data,
        len: 1_000,
        chunks: vec![ChunkSpan { id: ChunkId([which; 32]), offset: 0, len: 900 }],
        scheme,
        shard_len: scheme.shard_len(1_000),
        shards: (0..6).map(shard).collect(),
    }
}

use NodeState::*;

#[test]
fn lost_nodes_are_replaced_and_the_list_is_kept() {
    for limit in [1, 4, 100] {
        let mut cluster = Cluster::new(12);
        assert_eq!(cluster.repair(limit), 0);
        cluster.become_state(4, &[Up, Suspect, Down, Lost]);
        cluster.become_state(8, &[Up, Suspect, Down, Lost]);
        let held = |cluster: &Cluster, id| {
            let view = cluster.catalogue.view().unwrap();
            view.packs_held_by(NodeId(id), PackNo(0), 99).unwrap().rows.len()
        };
        let owed = held(&cluster, 4) + held(&cluster, 8);
        assert_eq!(cluster.repair(limit), owed);
        assert!(cluster.whole());
        assert_eq!(held(&cluster, 4) + held(&cluster, 8), 0);
    }
}

#[test]
fn a_node_that_comes_back_in_time_is_believed() {
    let mut cluster = Cluster::new(12);
    cluster.become_state(4, &[Up, Suspect, Down, Lost]);
    let first = cluster.repair_round(4);
    assert!(first > 0);
    cluster.become_state(4, &[Lost, Up]);
    assert_eq!(cluster.repair(4), 0);
    assert!(cluster.whole());
}

#[test]
fn a_drained_node_ends_up_empty_and_may_retire() {
    let mut cluster = Cluster::new(12);
    cluster.become_state(4, &[Up, Draining]);
    assert!(cluster.repair(3) > 0);
    assert!(cluster.whole());
    cluster.become_state(4, &[Draining, Retired]);
}

#[test]
fn a_bad_shard_does_not_return_to_its_node_before_the_sweep() {
    // Node 2 is the only free one and must not take shard 2 back, so another shard makes room for it.
    let mut cluster = Cluster::new(1);
    (6..9).for_each(|id| cluster.become_state(id, &[Up, Draining]));
    cluster.must(Command::ShardBad { pack: PackNo(0), index: 2, node: NodeId(2) });
    cluster.repair_round(9);
    let holder = |cluster: &Cluster| {
        let pack = cluster.catalogue.view().unwrap().pack(PackNo(0)).unwrap().unwrap();
        pack.stripe.shards[2].node
    };
    let now = holder(&cluster);
    assert!(now.is_some() && now != Some(NodeId(2)));
    cluster.repair(9);
    assert!(cluster.whole());
}

#[test]
fn a_round_meets_every_pack_once() {
    let mut cluster = Cluster::new(9);
    for id in [1, 4, 8] {
        cluster.become_state(id, &[Up, Suspect, Down, Lost]);
    }
    cluster.must(Command::Recheck { packs: vec![PackNo(0), PackNo(5)] });
    let view = cluster.catalogue.view().unwrap();
    let mut scan = RepairScan::new();
    let mut met = Vec::new();
    while let Some(page) = scan.step(&view, 2).unwrap() {
        met.extend(page.packs.into_iter().map(|pack| pack.no.0));
    }
    met.sort_unstable();
    assert_eq!(met, (0..9).collect::<Vec<_>>());
}
