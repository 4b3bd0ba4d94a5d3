//! Turns what a cluster says about itself into what a person needs: severity first, what it means, what to type next.

use crate::codes::Code;
use crate::migrate;
use crate::repair;
use farshore_client::api::{ClusterStatus, NodeStatus};
use farshore_core::id::NodeId;
use farshore_core::limits::{DISK_RESERVE_BYTES, FLAP_WINDOW_MS, FLAPS_FREE, SHARD_BYTES_MAX};
use farshore_core::topology::NodeState;
use farshore_core::units::{Bytes, clock, rfc3339};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;

/// How bad a finding is. The order is the order of urgency.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// Nothing to do.
    Ok,
    /// Data is safe; something is owed or reduced.
    Warn,
    /// Data or service is at risk, or gone.
    Error,
}

impl Severity {
    /// Lower-case word used in JSON and tables.
    pub fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Warn => "warn",
            Severity::Error => "error",
        }
    }
}

/// One finding.
#[derive(Clone, Debug)]
pub struct Finding {
    /// Which code it falls under.
    pub code: Code,
    /// What was found.
    pub text: String,
    /// What to do.
    pub next: String,
}

impl Finding {
    fn severity(&self) -> Severity {
        self.code.about().severity
    }
}

/// Without a quorum nobody's state is changed any more, so silence has to speak for itself.
const SILENT_MS: u64 = 3_000;

/// An export that is later than this is told.
const EXPORT_LATE_MS: u64 = 300_000;

/// A calendar that is wrong by more than this is told. Nothing depends on a single one.
const SKEW_MS: u64 = 60_000;

/// A cluster's status with everything that follows from it.
pub struct Report {
    status: ClusterStatus,
    findings: Vec<Finding>,
}

/// Draws the conclusions.
pub fn report(status: ClusterStatus) -> Report {
    let mut findings = Vec::new();
    let mut find = |code, text: String, next: &str| {
        findings.push(Finding { code, text, next: next.into() });
    };
    if status.stale {
        let voters: Vec<&str> = status
            .nodes
            .iter()
            .filter(|n| n.voter && (n.node.state != NodeState::Up || n.silent_ms > SILENT_MS))
            .map(|n| n.node.name.as_str())
            .collect();
        let text = format!(
            "no quorum: no leader confirms this answer, which may be old; voters not seen up: {}",
            if voters.is_empty() { "unknown".into() } else { voters.join(", ") }
        );
        find(Code::NoQuorum, text, "start the missing voters; restores work again with a majority of them");
    }
    if status.unreadable > 0 {
        let text = format!("{} packs have fewer good shards than needed to read them now", status.unreadable);
        find(Code::DataUnreadable, text, "bring the missing nodes back: their disks hold what is needed");
    }
    if status.endangered > 0 {
        let text = format!("{} packs have no spare shard left", status.endangered);
        let next = "bring nodes back or add nodes; repair does the rest (farshore cluster status)";
        find(Code::NoSpare, text, next);
    }
    for node in &status.nodes {
        let name = &node.node.name;
        match node.node.state {
            NodeState::Suspect | NodeState::Down if node.held_ms == 0 => {
                let grace = node.grace_left_ms / 1000;
                let text = format!(
                    "node {name} in {} is silent for {}; its shards are rebuilt elsewhere in {}",
                    node.node.region,
                    clock(node.silent_ms / 1000),
                    clock(grace)
                );
                find(Code::NodeDown, text, "start it again before its grace ends, and nothing has to move");
            }
            NodeState::Lost if node.held_ms == 0 => {
                let text = format!(
                    "node {name} in {} is lost; its shards are being rebuilt elsewhere",
                    node.node.region
                );
                let next = format!(
                    "start it again, or put a new node into its region; if it is gone for good: farshore cluster remove {name}"
                );
                find(Code::NodeLost, text, &next);
            }
            _ => {}
        }
        if node.slow {
            let text = format!("node {name} in {} is slow: {}", node.node.region, paces(node));
            let next = "look at its disk and its line; farshore cluster drain it if it stays so";
            find(Code::NodeSlow, text, next);
        }
        if node.flaps as usize > FLAPS_FREE && node.node.state != NodeState::Retired {
            let text = format!(
                "node {name} in {} fell silent and came back {} times within {}{}",
                node.node.region,
                node.flaps,
                clock(FLAP_WINDOW_MS / 1_000),
                held(node)
            );
            find(Code::NodeFlapping, text, "look at its machine and its line; what it holds counts as there");
        }
        let skew = node.clock_offset_ms;
        if node.node.state.answers() && skew.unsigned_abs() > SKEW_MS {
            let way = if skew > 0 { "ahead of" } else { "behind" };
            let text = format!(
                "the clock of node {name} is {} {way} catalogue time",
                clock(skew.unsigned_abs() / 1000)
            );
            find(
                Code::ClockSkew,
                text,
                "set it right: catalogue time is what a majority of the voters' clocks has reached",
            );
        }
    }
    if status.under_target > 0 {
        let text = format!("{} of {} packs are not at full strength", status.under_target, status.packs);
        let working = status.repair.queued + status.repair.running > 0;
        let all_answer =
            status.nodes.iter().all(|n| n.node.state.answers() || n.node.state == NodeState::Retired);
        let next = if working || (all_answer && !status.nodes.iter().any(is_full)) {
            "nothing: repair is on it; farshore cluster status --wait 10m waits for it"
        } else if all_answer {
            "free room on the nodes that are full, or add nodes: repair has nowhere to put what is missing"
        } else {
            "bring the silent nodes back, or add nodes: repair has done what it can with the rest"
        };
        find(Code::UnderTarget, text, next);
    }
    if status.packs > 0 && !status.survives_region && status.unreadable == 0 {
        let text = format!(
            "losing any of these regions would make data unreadable: {}",
            if status.fatal_regions.is_empty() { "unknown".into() } else { status.fatal_regions.join(", ") }
        );
        find(Code::RegionFatal, text, "bring nodes back, or add nodes in another region");
    }
    if status.unexported_ms > 2 * status.export_every_ms + EXPORT_LATE_MS {
        let since = clock(status.unexported_ms / 1000);
        let why = match status.export_error.as_str() {
            "" => String::new(),
            why => format!(" (the last try: {why})"),
        };
        let text = format!(
            "the catalogue was last exported {since} ago: if every replica were lost, so would be what was committed since{why}"
        );
        find(
            Code::ExportLate,
            text,
            "see the logs of the node that leads; nodes that are full or silent take no part of it",
        );
    }
    if let Some(cold) = status.migrations.iter().find(|migration| migration.cold) {
        let text = format!("nothing is written while region {} moves to {}", cold.from, cold.to);
        let next = format!("farshore cluster migrate --from {} --wait 1h, or --cancel", cold.from);
        find(Code::WritesFrozen, text, &next);
    }
    if status.scrub_paused {
        let text = "no node reads its shards by itself, so rot is found only by who restores".into();
        find(Code::ScrubPaused, text, "farshore cluster scrub --resume");
    }
    if !status.repair.held.is_empty() && status.under_target > 0 {
        let text = format!("repair waits for its budget: {}", status.repair.held);
        find(Code::BudgetHeld, text, "farshore cluster budget shows the limits and sets others");
    }
    let full: Vec<_> = status.nodes.iter().filter(|n| is_full(n)).map(|n| n.node.name.to_string()).collect();
    if !full.is_empty() {
        let text = format!("no room left on {}", full.join(", "));
        find(Code::NodeFull, text, "free room (farshore prune, retention), raise capacity, or add nodes");
    }
    let trying = status.repair.queued + status.repair.running > 0;
    if trying && status.repair.failed > 0 && !status.repair.last_error.is_empty() {
        let text = format!("{} repairs failed, the last: {}", status.repair.failed, status.repair.last_error);
        find(Code::RepairFailing, text, "see the logs of the node that leads");
    }
    if !status.repair.liars.is_empty() {
        let names: Vec<_> = status.repair.liars.iter().map(|id| name_of(&status, *id)).collect();
        let text = format!("nodes sent repair sums that are not those of their shards: {}", names.join(", "));
        find(Code::NodeLies, text, "test their memory; what they sent was noticed and not used");
    }
    findings.sort_by_key(|f| std::cmp::Reverse(f.severity()));
    Report { status, findings }
}

/// A node with less room than this is called full: one large shard and it is.
const FULL_BELOW_BYTES: u64 = SHARD_BYTES_MAX as u64;

/// It has no room for some large shards more: neither as it is configured nor on its disk.
fn is_full(n: &NodeStatus) -> bool {
    let offered = n.node.capacity.saturating_sub(n.used);
    let room = offered.min(n.free.saturating_sub(DISK_RESERVE_BYTES));
    n.heard && n.node.state.answers() && n.node.capacity > 0 && room < FULL_BELOW_BYTES
}

/// How long its heartbeats and its disk take, as far as that is known.
pub fn paces(n: &NodeStatus) -> String {
    let time = |us: u64| match us {
        0 => "an unknown time".to_string(),
        us => format!("{}.{} ms", us / 1_000, us % 1_000 / 100),
    };
    format!("a heartbeat takes {} there and back, its disk {} for a MiB", time(n.rtt_us), time(n.disk_us))
}

/// What is held against a node that is heard again, as a clause.
pub fn held(n: &NodeStatus) -> String {
    match n.held_ms {
        0 => String::new(),
        ms => format!("; it counts as up again if it stays for {} more", clock(ms.div_ceil(1_000))),
    }
}

/// Milliseconds from microseconds that may not be known.
pub fn ms(us: u64) -> Value {
    if us == 0 { Value::Null } else { json!(us as f64 / 1_000.0) }
}

/// The name of a node, or its id if it is not listed.
pub fn name_of(status: &ClusterStatus, id: NodeId) -> String {
    let node = status.nodes.iter().find(|n| n.node.id == id);
    node.map_or_else(|| id.to_string(), |n| n.node.name.as_str().into())
}

/// Links as the JSON forms give them.
pub fn links(links: &[(String, String, u64)]) -> Vec<Value> {
    links.iter().map(|(from, to, bytes)| json!({"from": from, "to": to, "bytes": bytes})).collect()
}

impl Report {
    /// Every pack at full strength, nothing queued, and a leader confirmed it. Silent nodes may still be waited for.
    pub fn settled(&self) -> bool {
        let s = &self.status;
        !s.stale && s.under_target == 0 && s.unreadable == 0 && s.repair.queued + s.repair.running == 0
    }

    /// What was found under a code.
    pub fn found(&self, code: Code) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(move |finding| finding.code == code)
    }

    /// What it was drawn from.
    pub fn status(&self) -> &ClusterStatus {
        &self.status
    }

    fn severity(&self) -> Severity {
        self.findings.iter().map(Finding::severity).max().unwrap_or(Severity::Ok)
    }

    fn regions(&self) -> BTreeMap<&str, Vec<&NodeStatus>> {
        let mut regions = BTreeMap::<&str, Vec<&NodeStatus>>::new();
        for node in self.status.nodes.iter().filter(|n| n.node.state != NodeState::Retired) {
            regions.entry(node.node.region.as_str()).or_default().push(node);
        }
        regions
    }

    /// The documented object of `cluster status --json`.
    pub fn json(&self) -> Value {
        let s = &self.status;
        let codes: Vec<Value> = self
            .findings
            .iter()
            .map(|f| json!({"code": f.code.about().name, "severity": f.severity().word(), "text": f.text, "next": f.next}))
            .collect();
        let nodes: Vec<Value> = s
            .nodes
            .iter()
            .map(|n| {
                json!({
                    "id": n.node.id.to_string(), "name": n.node.name.as_str(), "region": n.node.region.as_str(),
                    "zone": n.node.zone.as_ref().map(|z| z.as_str()), "addr": n.node.addr,
                    "state": n.node.state.word(), "voter": n.voter, "heard": n.heard, "leader": s.leader == Some(n.node.id),
                    "capacity": n.node.capacity, "used": n.used, "free": n.free, "shards": n.shards,
                    "silent_ms": n.silent_ms, "grace_left_ms": n.grace_left_ms,
                    "clock_offset_ms": n.clock_offset_ms,
                    "feature_level": n.feature_level,
                    "slow": n.slow, "rtt_ms": ms(n.rtt_us), "disk_ms": ms(n.disk_us),
                    "flaps": n.flaps, "held_ms": n.held_ms,
                })
            })
            .collect();
        let regions: Vec<Value> = self
            .regions()
            .into_iter()
            .map(|(region, nodes)| {
                let up = nodes.iter().filter(|n| n.node.state == NodeState::Up).count();
                json!({
                    "region": region, "nodes": nodes.len(), "up": up,
                    "used": nodes.iter().map(|n| n.used).sum::<u64>(),
                    "loss_is_fatal": s.fatal_regions.iter().any(|r| r == region),
                })
            })
            .collect();
        json!({
            "health": self.severity().word(),
            "codes": codes,
            "cluster": s.cluster.to_string(),
            "leader": s.leader.map(|l| l.to_string()),
            "term": s.term,
            "applied": s.applied,
            "stale": s.stale,
            "feature_level": s.feature_level,
            "time": rfc3339(s.catalogue_ms),
            "nodes": nodes,
            "regions": regions,
            "safety": {
                "packs": s.packs, "under_target": s.under_target, "endangered": s.endangered,
                "unreadable": s.unreadable, "survives_region": s.survives_region, "fatal_regions": s.fatal_regions,
            },
            "repair": repair::json(s),
            "export": {
                "unexported_ms": s.unexported_ms, "error": s.export_error, "every_ms": s.export_every_ms,
            },
            "scrub": { "bad_found": s.repair.bad_found, "paused": s.scrub_paused },
            "migrations": s.migrations.iter().map(|m| migrate::as_json(m, s)).collect::<Vec<_>>(),
        })
    }

    /// Which nodes keep the cluster from a higher feature level that others can do, as a clause.
    fn held_back(&self) -> String {
        let s = &self.status;
        let counting = || s.nodes.iter().filter(|n| n.node.state.counts());
        let best = counting().map(|n| n.feature_level).max().unwrap_or(0);
        let behind = counting().filter(|n| n.feature_level < best).map(|n| n.node.name.as_str());
        match behind.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => String::new(),
            names => format!("; level {best} waits for {names}"),
        }
    }

    /// The page for a person.
    pub fn text(&self) -> String {
        let s = &self.status;
        let mut out = String::new();
        let word = match self.severity() {
            Severity::Ok => "OK",
            Severity::Warn => "WARNING",
            Severity::Error => "ERROR",
        };
        let up = s.nodes.iter().filter(|n| n.node.state == NodeState::Up).count();
        let alive = s.nodes.iter().filter(|n| n.node.state != NodeState::Retired).count();
        let _ = writeln!(out, "{word}   cluster {}, {up} of {alive} nodes up", s.cluster.short());
        let _ = writeln!(out, "  feature level {}{}", s.feature_level, self.held_back());
        for finding in &self.findings {
            let _ = writeln!(
                out,
                "  {:<5} {}: {}",
                finding.severity().word(),
                finding.code.about().name,
                finding.text
            );
            let _ = writeln!(out, "        next: {}", finding.next);
        }
        let _ = writeln!(out, "\nregions");
        for (region, nodes) in self.regions() {
            let up = nodes.iter().filter(|n| n.node.state == NodeState::Up).count();
            let used = Bytes(nodes.iter().map(|n| n.used).sum());
            let _ = writeln!(out, "  {region:<20} {up} of {} nodes up   {used}", nodes.len());
        }
        let _ = writeln!(out, "\nsafety");
        let yes = match (s.packs, s.survives_region) {
            (0, _) => "nothing stored yet",
            (_, true) => "yes",
            (_, false) => "NO",
        };
        let _ = writeln!(out, "  survive 1 more region: {yes}");
        let full = s.packs.saturating_sub(s.under_target);
        let _ = writeln!(out, "  packs at full strength: {full} of {}", s.packs);
        let _ = writeln!(out, "\nrepair");
        let r = &s.repair;
        let _ = writeln!(
            out,
            "  {} running, {} queued, {} shards rebuilt, {} found bad",
            r.running, r.queued, r.rebuilt, r.bad_found
        );
        if !r.links.is_empty() {
            let moved = r.links.iter().map(|(.., bytes)| bytes).sum();
            let (moved, singly) = (Bytes(moved), Bytes(r.singly_bytes));
            let _ =
                writeln!(out, "  {moved} moved between regions; shard by shard it would have been {singly}");
            for (from, to, bytes) in &r.links {
                let _ = writeln!(out, "    {from} -> {to}   {}", Bytes(*bytes));
            }
        }
        if !r.held.is_empty() {
            let _ = writeln!(out, "  waiting: {}", r.held);
        }
        if !s.migrations.is_empty() {
            let _ = writeln!(out, "\nmigrations");
            s.migrations.iter().for_each(|m| _ = writeln!(out, "  {}", migrate::line(m, s)));
        }
        let next = self.findings.first().map_or("farshore backup PATH", |f| f.next.as_str());
        let _ = writeln!(out, "\nnext: {next}");
        out
    }

    /// One line a node.
    pub fn node_table(&self) -> String {
        let mut out = format!(
            "{:<12} {:<16} {:<20} {:<9} {:<7} {:>12} {:>8}  {}\n",
            "NAME", "ID", "REGION", "STATE", "RAFT", "USED", "SHARDS", "ADDRESS"
        );
        // Those that are gone for good are only in the JSON form.
        for n in self.status.nodes.iter().filter(|n| n.node.state != NodeState::Retired) {
            let role = match (self.status.leader == Some(n.node.id), n.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "-",
            };
            let state = match n.slow {
                true => format!("{}, slow", n.node.state.word()),
                false => n.node.state.word().into(),
            };
            let _ = writeln!(
                out,
                "{:<12} {} {:<20} {:<9} {:<7} {:>12} {:>8}  {}",
                n.node.name.as_str(),
                n.node.id,
                n.node.region.as_str(),
                state,
                role,
                if n.heard { Bytes(n.used).to_string() } else { "?".into() },
                if n.heard { n.shards.to_string() } else { "?".into() },
                n.node.addr
            );
        }
        out
    }
}

/// A cluster with a node in every state that a code speaks of.
#[cfg(test)]
pub fn sample() -> ClusterStatus {
    use farshore_client::api::RepairStatus;
    use farshore_core::catalogue::Migration;
    use farshore_core::id::ClusterId;
    use farshore_core::topology::NodeRecord;
    let node = |(id, state): (u64, NodeState)| NodeStatus {
        node: NodeRecord {
            id: NodeId(id),
            name: format!("n{id}").parse().unwrap(),
            region: format!("p/r{}", id % 3).parse().unwrap(),
            zone: None,
            addr: "h:1".into(),
            capacity: 1 << 40,
            state,
        },
        voter: id <= 3,
        heard: true,
        used: 10,
        free: 1 << 40,
        shards: 2,
        silent_ms: if state == NodeState::Up { 10 } else { 90_000 },
        grace_left_ms: if state == NodeState::Down { 60_000 } else { 0 },
        clock_offset_ms: 0,
        feature_level: 1,
        rtt_us: 200,
        disk_us: 0,
        slow: id == 4,
        flaps: id as u32,
        held_ms: 0,
    };
    let states = [NodeState::Up, NodeState::Down, NodeState::Lost, NodeState::Up, NodeState::Retired];
    ClusterStatus {
        cluster: ClusterId([1; 16]),
        answering: NodeId(1),
        leader: Some(NodeId(1)),
        term: 1,
        applied: 1,
        stale: false,
        feature_level: 1,
        nodes: (1..).zip(states).map(node).collect(),
        repair: RepairStatus::default(),
        packs: 10,
        under_target: 4,
        endangered: 2,
        unreadable: 1,
        survives_region: false,
        fatal_regions: vec!["p/r1".into()],
        catalogue_ms: 1_000,
        state_hash: vec![],
        unexported_ms: 0,
        export_error: String::new(),
        export_every_ms: 10_000,
        migrations: vec![Migration {
            from: "p/r1".parse().unwrap(),
            to: "p/r2".parse().unwrap(),
            cold: true,
            since_ms: 500,
            nodes: [NodeId(1), NodeId(4)].into(),
        }],
        scrub_paused: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_the_leader_has_not_heard_is_not_called_full() {
        let mut status = sample();
        status.nodes[0].free = DISK_RESERVE_BYTES;
        let full = |status| report(status).findings.into_iter().find(|f| f.code == Code::NodeFull);
        assert_eq!(full(status.clone()).unwrap().text, "no room left on n1");
        status.nodes[0] = NodeStatus { heard: false, used: 0, free: 0, shards: 0, ..status.nodes[0].clone() };
        assert!(full(status).is_none());
    }
}
