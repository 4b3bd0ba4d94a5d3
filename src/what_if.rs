//! `farshore cluster what-if`: what would be unreadable, spare, refused and owed if nodes were away, or never came back.

use crate::args::{Global, WhatIfArgs};
use crate::exit::{self, Exit};
use crate::print;
use crate::profile::connect;
use crate::topology;
use farshore_client::api::Topology;
use farshore_core::id::{NodeId, hex};
use farshore_core::topology::NodeState;
use farshore_core::units::{Bytes, clock, rfc3339};
use farshore_proto::wire::{PackFate, RebuildFate, SpareCount, WhatIfReply, WriteFate};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// Less than this says nothing about how fast repair is.
const MEASURED_BYTES_MIN: u64 = 16 << 20;

/// Asks, and shows the answer.
pub async fn run(args: &WhatIfArgs, global: &Global) -> Result<u8, Exit> {
    let line = args.line.parse::<Bytes>().map_err(|e| Exit::failure(format!("--line: {e}")))?.0;
    if line == 0 {
        return Err(Exit::failure("--line: a line that carries nothing never ends"));
    }
    let client = connect(global).await?;
    let gone = resolve(&client.topology().await?, args)?;
    let meter = print::Counter::new(global, "packs looked at");
    let found = client.operator()?.what_if(&gone, |looked, total| meter.show(looked, total)).await?;
    meter.finish();
    let answer = Answer { asked: asked(args), found, line };
    if global.json {
        println!("{}", answer.json());
    } else {
        print!("{}", answer.text());
    }
    Ok(exit::OK)
}

/// The nodes that are meant. What nobody knows is an error that names what is known.
fn resolve(topology: &Topology, args: &WhatIfArgs) -> Result<Vec<NodeId>, Exit> {
    let living = || topology.nodes.iter().filter(|node| node.state != NodeState::Retired);
    let known = |names: BTreeSet<&str>| names.into_iter().collect::<Vec<_>>().join(", ");
    let mut gone = BTreeSet::new();
    for region in &args.region {
        let of = living().filter(|node| node.region.as_str() == region).map(|node| node.id);
        if add(&mut gone, of) == 0 {
            let regions = known(living().map(|node| node.region.as_str()).collect());
            return Err(Exit::failure(format!("there is no region {region}; there are {regions}")));
        }
    }
    for provider in &args.provider {
        let of = living().filter(|node| node.region.provider() == provider).map(|node| node.id);
        if add(&mut gone, of) == 0 {
            let providers = known(living().map(|node| node.region.provider()).collect());
            return Err(Exit::failure(format!("there is no provider {provider}; there are {providers}")));
        }
    }
    for name in &args.node {
        let is_known = living().any(|node| node.name.as_str() == name || node.id.to_string() == *name);
        if !is_known {
            let nodes = known(living().map(|node| node.name.as_str()).collect());
            return Err(Exit::failure(format!("there is no node {name}; there are {nodes}")));
        }
        gone.insert(topology::find(topology, name)?.id);
    }
    if gone.is_empty() {
        return Err(Exit::failure("say what would be gone: --region, --provider or --node"));
    }
    Ok(gone.into_iter().collect())
}

fn add(to: &mut BTreeSet<NodeId>, nodes: impl Iterator<Item = NodeId>) -> usize {
    let nodes: Vec<NodeId> = nodes.collect();
    to.extend(&nodes);
    nodes.len()
}

fn asked(args: &WhatIfArgs) -> String {
    let named = |word: &str, names: &[String]| match names {
        [] => None,
        [one] => Some(format!("{word} {one}")),
        many => Some(format!("{word}s {}", many.join(", "))),
    };
    let parts = [named("provider", &args.provider), named("region", &args.region), named("node", &args.node)];
    parts.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

/// A time, and what it rests on.
struct Estimate {
    seconds: u64,
    bytes_per_s: u64,
    measured: bool,
}

struct Answer {
    asked: String,
    found: WhatIfReply,
    line: u64,
}

impl Answer {
    fn packs(&self) -> PackFate {
        self.found.packs.clone().unwrap_or_default()
    }

    fn rebuild(&self) -> RebuildFate {
        self.found.rebuild.clone().unwrap_or_default()
    }

    fn has_quorum(&self) -> bool {
        self.found.voters_left >= self.found.voters_needed
    }

    fn assumed(&self, bytes: u64) -> Estimate {
        Estimate { seconds: bytes.div_ceil(self.line), bytes_per_s: self.line, measured: false }
    }

    /// As fast as this cluster has rebuilt lately, or else as one line carries what is read for it.
    fn rebuild_time(&self) -> Estimate {
        let rebuild = self.rebuild();
        if rebuild.busy_bytes < MEASURED_BYTES_MIN || rebuild.busy_ms == 0 {
            return self.assumed(rebuild.moved_bytes);
        }
        let bytes_per_s = (rebuild.busy_bytes.saturating_mul(1_000) / rebuild.busy_ms).max(1);
        Estimate { seconds: rebuild.bytes.div_ceil(bytes_per_s), bytes_per_s, measured: true }
    }

    /// Everything that is readable, once, over one line.
    fn restore_time(&self) -> Estimate {
        let packs = self.packs();
        self.assumed(packs.bytes - packs.unreadable_bytes.min(packs.bytes))
    }

    /// Bytes that would go to nodes beyond the room they have.
    fn short_bytes(&self) -> u64 {
        self.rebuild().nodes.iter().map(|node| node.added.saturating_sub(node.room)).sum()
    }

    fn json(&self) -> Value {
        let f = &self.found;
        let time = |time: Estimate| {
            json!({
                "seconds": time.seconds, "bytes_per_second": time.bytes_per_s,
                "rate": if time.measured { "measured" } else { "assumed" },
            })
        };
        let nodes: Vec<Value> = f
            .nodes
            .iter()
            .map(|n| json!({"id": NodeId(n.id).to_string(), "name": n.name, "region": n.region, "state": n.state}))
            .collect();
        let repositories: Vec<Value> = f
            .repositories
            .iter()
            .map(|r| {
                let packs = r.packs.clone().unwrap_or_default();
                json!({
                    "id": hex(&r.repo), "name": r.name, "packs": packs_json(&packs), "snapshots": r.snapshots,
                    "incomplete": r.incomplete, "incomplete_for_good": r.incomplete_for_good,
                })
            })
            .collect();
        let lost: Vec<Value> = f
            .lost
            .iter()
            .map(|s| {
                json!({
                    "id": hex(&s.id), "short_id": short(&s.id), "repository": s.repository, "kind": s.kind,
                    "time": rfc3339(s.committed_ms), "for_good": s.for_good,
                })
            })
            .collect();
        let quorum = self.has_quorum();
        let write = |w: &WriteFate| {
            let outlook = |why: &str, full: bool, votes: bool| {
                let why = if votes { why } else { "no quorum" };
                json!({"possible": why.is_empty(), "full_strength": why.is_empty() && full, "why_not": why})
            };
            json!({
                "survive": w.survive, "repositories": w.repositories,
                "away": outlook(&w.away_why, w.away_full, quorum), "lost": outlook(&w.lost_why, w.lost_full, true),
            })
        };
        let rebuild = self.rebuild();
        let rooms: Vec<Value> = rebuild
            .nodes
            .iter()
            .map(|n| {
                let node = n.node.clone().unwrap_or_default();
                json!({"id": NodeId(node.id).to_string(), "name": node.name, "added_bytes": n.added, "room_bytes": n.room})
            })
            .collect();
        json!({
            "message_type": "what_if", "asked": self.asked, "applied": f.applied, "stale": f.stale, "nodes": nodes,
            "packs": packs_json(&self.packs()),
            "repositories_total": f.repositories_total, "repositories": repositories,
            "snapshots": {
                "total": f.snapshots, "incomplete": f.incomplete, "incomplete_for_good": f.incomplete_for_good,
                "named": lost,
            },
            "votes": {"voters": f.voters, "left": f.voters_left, "needed": f.voters_needed, "quorum": quorum},
            "writes": f.writes.iter().map(write).collect::<Vec<_>>(),
            "rebuild": {
                "shards": rebuild.shards, "bytes": rebuild.bytes, "moved_bytes": rebuild.moved_bytes,
                "owed_shards": rebuild.owed_shards, "homeless_shards": rebuild.homeless_shards,
                "homeless_bytes": rebuild.homeless_bytes, "crowded_packs": rebuild.doubled_packs,
                "room": self.short_bytes() == 0 && rebuild.homeless_shards == 0, "short_bytes": self.short_bytes(),
                "nodes": rooms, "time": time(self.rebuild_time()),
            },
            "restore": {
                "bytes": self.packs().bytes.saturating_sub(self.packs().unreadable_bytes), "time": time(self.restore_time()),
            },
        })
    }

    fn text(&self) -> String {
        let f = &self.found;
        let mut out = String::new();
        let mut names: Vec<&str> = f.nodes.iter().map(|node| node.name.as_str()).collect();
        names.sort_unstable();
        let _ = writeln!(out, "without {}: {}", self.asked, names.join(", "));
        if f.stale {
            let _ = writeln!(
                out,
                "  no leader confirmed this answer: it may be old, and room on disks is unknown"
            );
        }
        let _ = writeln!(out, "\nwhile they are away");
        self.reading(&mut out);
        self.spare(&mut out);
        let quorum = if self.has_quorum() { "enough" } else { "NO QUORUM: nothing can be committed" };
        let (left, of, needed) = (f.voters_left, f.voters, f.voters_needed);
        let _ = writeln!(out, "  votes      {left} of {of} voters answer, {needed} are needed: {quorum}");
        self.backups(&mut out, false);
        let _ = writeln!(out, "\nif they never come back");
        self.for_good(&mut out);
        self.repair(&mut out);
        self.backups(&mut out, true);
        let restore = self.restore_time();
        let bytes = self.packs().bytes.saturating_sub(self.packs().unreadable_bytes);
        let _ = writeln!(out, "\na restore of all that is readable");
        let _ = writeln!(out, "  {}, {}", Bytes(bytes), said(&restore, "over one line"));
        out
    }

    fn reading(&self, out: &mut String) {
        let (f, packs) = (&self.found, self.packs());
        if packs.unreadable == 0 {
            let (count, bytes) = (print::count(packs.packs, "pack"), Bytes(packs.bytes));
            let snapshots = print::count(f.snapshots, "snapshot");
            let _ = writeln!(out, "  reading    everything: {count}, {bytes}, {snapshots}");
            return;
        }
        let (bad, all) = (packs.unreadable, print::count(packs.packs, "pack"));
        let (bytes, of) = (Bytes(packs.unreadable_bytes), Bytes(packs.bytes));
        let _ = writeln!(out, "  reading    UNREADABLE: {bad} of {all}, {bytes} of {of}");
        let (incomplete, snapshots) = (f.incomplete, print::count(f.snapshots, "snapshot"));
        let _ = writeln!(out, "  snapshots  INCOMPLETE: {incomplete} of {snapshots}");
        for lost in &f.lost {
            let (id, time) = (short(&lost.id), print::time(lost.committed_ms));
            let _ = writeln!(out, "             {id}  {time}  {:<12} {}", lost.kind, lost.repository);
        }
        let more = f.incomplete.saturating_sub(f.lost.len() as u64);
        if more > 0 {
            let _ = writeln!(out, "             and {more} older ones");
        }
    }

    /// How many shards more each pack could lose.
    fn spare(&self, out: &mut String) {
        let packs = self.packs();
        for (at, row) in packs.spare.iter().enumerate() {
            let label = if at == 0 { "spare" } else { "" };
            let (number, bytes) = (print::count(row.packs, "pack"), Bytes(row.bytes));
            let meaning = match row.spare {
                ..0 => {
                    format!("unreadable, {} too few", print::count(row.spare.unsigned_abs().into(), "shard"))
                }
                0 => "NOTHING SPARE: one shard less and they are unreadable".into(),
                spare => format!("{} to spare", print::count(spare as u64, "shard")),
            };
            let _ = writeln!(out, "  {label:<10} {number}, {bytes}: {meaning}");
        }
        for repo in self.found.repositories.iter().filter(|_| self.found.repositories_total > 1) {
            let packs = repo.packs.clone().unwrap_or_default();
            let _ = writeln!(out, "             {}: {}", repo.name, spares(&packs.spare));
        }
        let more = self.found.repositories_total.saturating_sub(self.found.repositories.len() as u64);
        if more > 0 {
            let _ = writeln!(out, "             and {more} repositories that are no worse off");
        }
    }

    fn backups(&self, out: &mut String, lost: bool) {
        let one = self.found.writes.len() == 1;
        for (at, write) in self.found.writes.iter().enumerate() {
            let (why, full) = match lost {
                true => (&write.lost_why, write.lost_full),
                false => (&write.away_why, write.away_full),
            };
            let how = match (why.as_str(), full) {
                // Whoever is given up gives its vote to others.
                _ if !lost && !self.has_quorum() => "refused: no quorum".into(),
                ("", true) if lost => "go on at full strength, coded for the nodes that are left".into(),
                ("", true) => "go on at full strength".into(),
                ("", false) => "go on, below full strength (exit code 14); repair owes the rest".into(),
                (why, _) => format!("REFUSED: {why}"),
            };
            let of = match one {
                true => String::new(),
                false => format!("{} ({}): ", write.survive, print::count(write.repositories, "repository")),
            };
            let _ = writeln!(out, "  {:<10} {of}{how}", if at == 0 { "backups" } else { "" });
        }
    }

    fn for_good(&self, out: &mut String) {
        let (f, packs) = (&self.found, self.packs());
        if packs.gone == 0 {
            // Then only silent nodes have what is missing.
            let proviso = if packs.unreadable > 0 { ", if the other silent nodes come back" } else { "" };
            let _ = writeln!(out, "  data       nothing is lost{proviso}");
            return;
        }
        let (number, bytes) = (print::count(packs.gone, "pack"), Bytes(packs.gone_bytes));
        let snapshots = print::count(f.incomplete_for_good, "snapshot");
        let _ =
            writeln!(out, "  data       LOST FOR GOOD: {number}, {bytes}; {snapshots} never complete again");
    }

    fn repair(&self, out: &mut String) {
        let rebuild = self.rebuild();
        if rebuild.shards + rebuild.homeless_shards == 0 {
            let _ = writeln!(out, "  repair     nothing that it can do");
            return;
        }
        let owed = match rebuild.owed_shards {
            0 => String::new(),
            owed => format!(" ({owed} of them owed already)"),
        };
        let (shards, bytes) = (print::count(rebuild.shards, "shard"), Bytes(rebuild.bytes));
        let nodes = print::count(rebuild.nodes.len() as u64, "node");
        let _ = writeln!(out, "  repair     {shards}{owed}, {bytes}, made anew on {nodes}");
        let _ = writeln!(
            out,
            "             {}",
            said(&self.rebuild_time(), "with one line reading k shards for each")
        );
        if self.packs().unreadable > self.packs().gone {
            let _ =
                writeln!(out, "             partly only when silent nodes are back: too few shards answer");
        }
        let short: Vec<String> = rebuild
            .nodes
            .iter()
            .filter(|node| node.added > node.room)
            .map(|n| format!("{} lacks {}", n.node.clone().unwrap_or_default().name, Bytes(n.added - n.room)))
            .collect();
        let room = if short.is_empty() {
            "enough on each of them".into()
        } else {
            format!("TOO LITTLE: {}", short.join(", "))
        };
        let _ = writeln!(out, "  room       {room}");
        if rebuild.homeless_shards > 0 {
            let (shards, bytes) =
                (print::count(rebuild.homeless_shards, "shard"), Bytes(rebuild.homeless_bytes));
            let _ = writeln!(out, "             no node is left for {shards}, {bytes}");
        }
        if rebuild.doubled_packs > 0 {
            let packs = print::count(rebuild.doubled_packs, "pack");
            let _ = writeln!(
                out,
                "             {packs} would share nodes or crowd a region: add nodes, then they spread again"
            );
        }
    }
}

fn said(time: &Estimate, through: &str) -> String {
    let (clock, rate) = (clock(time.seconds), Bytes(time.bytes_per_s));
    if time.seconds == 0 {
        return "which takes no time".into();
    }
    match time.measured {
        true => format!("about {clock} at {rate}/s, as measured in this cluster"),
        false => format!("about {clock} at {rate}/s {through}: assumed, not measured (--line)"),
    }
}

fn packs_json(packs: &PackFate) -> Value {
    let spare: Vec<Value> = packs
        .spare
        .iter()
        .map(|row| json!({"spare": row.spare, "packs": row.packs, "bytes": row.bytes}))
        .collect();
    let none_left: u64 = packs.spare.iter().filter(|row| row.spare == 0).map(|row| row.packs).sum();
    json!({
        "total": packs.packs, "bytes": packs.bytes, "unreadable": packs.unreadable,
        "unreadable_bytes": packs.unreadable_bytes, "lost_for_good": packs.gone, "lost_for_good_bytes": packs.gone_bytes,
        "no_spare": none_left, "spare": spare,
    })
}

/// `12 with 0 spare, 3 with 2 spare`.
fn spares(rows: &[SpareCount]) -> String {
    let row = |row: &SpareCount| match row.spare {
        ..0 => format!("{} unreadable", row.packs),
        spare => format!("{} with {spare} spare", row.packs),
    };
    let mut merged = BTreeMap::<i32, SpareCount>::new();
    for row in rows {
        let into =
            merged.entry(row.spare.max(-1)).or_insert(SpareCount { spare: row.spare, packs: 0, bytes: 0 });
        into.packs += row.packs;
    }
    if merged.is_empty() {
        "no packs".into()
    } else {
        merged.values().map(row).collect::<Vec<_>>().join(", ")
    }
}

fn short(id: &[u8]) -> String {
    hex(id.get(..4).unwrap_or(id))
}
