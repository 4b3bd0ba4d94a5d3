//! `farshore cluster explain`: why a health code, a node or a stripe is as it is, and what to type next.

use crate::args::{ExplainArgs, Global};
use crate::codes::Code;
use crate::exit::{self, Exit};
use crate::health::{self, Report, ms};
use crate::print;
use crate::profile::connect;
use crate::topology;
use farshore_client::Client;
use farshore_core::id::{NodeId, hex};
use farshore_core::limits::FLAP_WINDOW_MS;
use farshore_core::topology::NodeState;
use farshore_core::units::{Bytes, clock, rfc3339};
use farshore_proto::wire::{Node, NodeExplained, NodeStatus, ShardExplained, SpareCount, StripeExplained};
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Explains whatever the target turns out to be.
pub async fn run(args: &ExplainArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let target = args.target.trim();
    let (json, text) = if let Some(code) = Code::named(target) {
        let report = health::report(client.status().await?);
        (code_json(code, &report), code_text(code, &report))
    } else if is_node(&client, target).await? {
        let node = topology::find(&client.topology().await?, target)?.id;
        let found = client.operator()?.explain_node(node).await?;
        (node_json(&found), node_text(&found))
    } else {
        let found = stripe(&client, target, args.verify).await?;
        (stripe_json(&found), stripe_text(&found))
    };
    if global.json {
        println!("{json}");
    } else {
        print!("{text}");
    }
    Ok(exit::OK)
}

async fn is_node(client: &Client, target: &str) -> Result<bool, Exit> {
    let nodes = client.topology().await?.nodes;
    Ok(nodes.iter().any(|node| node.name.as_str() == target || node.id.to_string() == target))
}

/// The stripe that is meant. A shard's id is that of its stripe and an index.
async fn stripe(client: &Client, target: &str, verify: bool) -> Result<StripeExplained, Exit> {
    let prefix = target.split_once('-').map_or(target, |(stripe, _)| stripe).to_lowercase();
    if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let codes = Code::ALL.map(|code| code.about().name).join(", ");
        return Err(Exit::failure(format!(
            "{target} is no health code ({codes}), no node (`farshore cluster nodes`) and no beginning of the id of a \
             stripe or a pack"
        )));
    }
    let reply = client.operator()?.explain_stripe(&prefix, verify).await?;
    match reply.found {
        Some(found) => Ok(found),
        None => {
            let some: Vec<String> = reply.others.iter().map(|id| hex(id)).collect();
            Err(Exit::failure(format!(
                "{prefix} is the beginning of several; give more of it: {}",
                some.join(", ")
            )))
        }
    }
}

fn code_json(code: Code, report: &Report) -> Value {
    let about = code.about();
    let found: Vec<Value> = report.found(code).map(|f| json!({"text": f.text, "next": f.next})).collect();
    let numbers: serde_json::Map<String, Value> = code.numbers(report.status()).into_iter().collect();
    json!({
        "message_type": "explain_code", "code": about.name, "severity": about.severity.word(),
        "meaning": about.meaning, "raised": !found.is_empty(), "found": found, "numbers": numbers,
        "next_command": about.command,
    })
}

fn code_text(code: Code, report: &Report) -> String {
    let about = code.about();
    let mut out = format!("{} ({})\n", about.name, about.severity.word());
    wrapped(&mut out, "means", about.meaning);
    let mut raised = false;
    for finding in report.found(code) {
        wrapped(&mut out, if raised { "" } else { "now" }, &finding.text);
        wrapped(&mut out, "", &format!("so: {}", finding.next));
        raised = true;
    }
    if !raised {
        wrapped(&mut out, "now", "not raised: nothing of this kind is wrong");
    }
    for (at, (path, value)) in code.numbers(report.status()).into_iter().enumerate() {
        let _ = writeln!(out, "{:<10} {path} = {value}", if at == 0 { "numbers" } else { "" });
    }
    let _ = writeln!(out, "{:<10} {}", "next", about.command);
    out
}

/// A label and a text behind it, broken into lines.
fn wrapped(out: &mut String, label: &str, text: &str) {
    const WIDTH: usize = 100;
    let mut line = format!("{label:<10}");
    for word in text.split_whitespace() {
        if line.chars().count() + word.chars().count() >= WIDTH {
            let _ = writeln!(out, "{line}");
            line = " ".repeat(10);
        }
        let _ = write!(line, " {word}");
    }
    let _ = writeln!(out, "{line}");
}

fn status_of(found: &NodeExplained) -> (NodeStatus, Node) {
    let status = found.status.clone().unwrap_or_default();
    let node = status.node.clone().unwrap_or_default();
    (status, node)
}

fn node_json(found: &NodeExplained) -> Value {
    let (status, node) = status_of(found);
    let since = (found.since_ms > 0).then(|| rfc3339(found.since_ms));
    json!({
        "message_type": "explain_node", "id": NodeId(node.id).to_string(), "name": node.name, "region": node.region,
        "addr": node.addr, "state": node.state, "since": since, "state_before": found.since_from,
        "stale": found.stale, "silent_ms": status.silent_ms, "grace_left_ms": status.grace_left_ms,
        "voter": status.voter, "leader": found.leader, "leaving": found.leaving,
        "shards": found.shards, "bytes": found.bytes, "stored_shards": status.shards, "stored_bytes": status.used,
        "free": status.free, "capacity": node.capacity, "condemned": found.condemned,
        "spare": spare_json(&found.spare),
        "repair": {
            "now_shards": found.now_shards, "now_bytes": found.now_bytes, "if_lost_shards": found.lost_shards,
            "if_lost_bytes": found.lost_bytes, "text": node_repair(found),
        },
        "feature_level": status.feature_level, "cluster_feature_level": found.cluster_level,
        "clock_offset_ms": status.clock_offset_ms, "slow": status.slow, "rtt_ms": ms(status.rtt_us),
        "disk_ms": ms(status.disk_us), "flaps": status.flaps, "held_ms": status.held_ms, "why": node_why(found), "next": node_next(found),
    })
}

fn spare_json(rows: &[SpareCount]) -> Vec<Value> {
    rows.iter().map(|row| json!({"spare": row.spare, "packs": row.packs, "bytes": row.bytes})).collect()
}

fn node_text(found: &NodeExplained) -> String {
    let (status, node) = status_of(found);
    let mut out = format!("node {} ({}), {}, at {}\n", node.name, NodeId(node.id), node.region, node.addr);
    if found.stale {
        wrapped(
            &mut out,
            "",
            "no leader confirms this answer: silence, grace and disk are unknown, the rest may be old",
        );
    }
    let since = match found.since_ms {
        0 => " (since before changes were recorded)".into(),
        at => {
            let ago = print::ago(found.catalogue_ms.saturating_sub(at));
            let before = if found.since_from == "unknown" {
                String::new()
            } else {
                format!("; before: {}", found.since_from)
            };
            format!(" since {} UTC, {ago}{before}", print::time(at))
        }
    };
    wrapped(&mut out, "state", &format!("{}{since}", node.state));
    wrapped(&mut out, "why", &node_why(found));
    let votes = match (found.leader, status.voter) {
        (true, _) => "yes, and leads",
        (false, true) => "yes",
        (false, false) => "no; it has a replica of the catalogue all the same",
    };
    wrapped(&mut out, "votes", votes);
    let disk = match status.heard {
        false => String::new(),
        true => format!("; its disk has {}, and {} free", Bytes(status.used), Bytes(status.free)),
    };
    let (shards, bytes) = (print::count(found.shards, "shard"), Bytes(found.bytes));
    wrapped(
        &mut out,
        "holds",
        &format!("{shards}, {bytes} by the catalogue; offers {}{disk}", Bytes(node.capacity)),
    );
    if found.condemned > 0 {
        wrapped(
            &mut out,
            "",
            &format!("{} more that it has still to delete", print::count(found.condemned, "copy")),
        );
    }
    for (at, row) in found.spare.iter().enumerate() {
        let (packs, label) = (print::count(row.packs, "pack"), if at == 0 { "packs" } else { "" });
        let how = match row.spare {
            ..0 => "unreadable now".into(),
            0 => "nothing to spare".into(),
            spare => format!("{} to spare", print::count(spare as u64, "shard")),
        };
        wrapped(&mut out, label, &format!("{packs} of those that it has a shard of: {how}"));
    }
    wrapped(&mut out, "repair", &node_repair(found));
    let (own, cluster) = (status.feature_level, found.cluster_level);
    wrapped(
        &mut out,
        "level",
        &format!("its program can do feature level {own}; the cluster uses {cluster}"),
    );
    let clock = match status.clock_offset_ms {
        0 => "not known to be off".into(),
        off if off > 0 => format!("{}.{:03} s ahead of catalogue time", off / 1_000, off % 1_000),
        off => format!("{}.{:03} s behind catalogue time", -off / 1_000, -off % 1_000),
    };
    wrapped(&mut out, "clock", &clock);
    let pace = |us: u64| ms(us).as_f64().map_or("not known yet".into(), |ms| format!("{ms:.1} ms"));
    wrapped(
        &mut out,
        "pace",
        &format!(
            "a heartbeat there and back: {}; its disk, for a MiB: {}{}",
            pace(status.rtt_us),
            pace(status.disk_us),
            if status.slow { "; slow beside others of its region, so it is read from last" } else { "" }
        ),
    );
    wrapped(&mut out, "next", &node_next(found));
    out
}

fn state_of(node: &Node) -> Option<NodeState> {
    NodeState::ALL.into_iter().find(|state| state.word() == node.state)
}

fn node_why(found: &NodeExplained) -> String {
    let (status, node) = status_of(found);
    let (silent, left) = (clock(status.silent_ms / 1_000), clock(status.grace_left_ms / 1_000));
    let (suspect, down) = (found.suspect_after_ms / 1_000, found.down_after_ms / 1_000);
    let grace = clock(found.grace_ms / 1_000);
    match state_of(&node) {
        Some(NodeState::Suspect | NodeState::Down | NodeState::Lost) if status.held_ms > 0 => format!(
            "it is heard again and fell silent {} times within {}: it counts as up again if it stays for {} more",
            status.flaps,
            clock(FLAP_WINDOW_MS / 1_000),
            clock(status.held_ms.div_ceil(1_000))
        ),
        Some(NodeState::Up) => format!("it was heard {silent} ago"),
        Some(NodeState::Suspect) => {
            format!("silent for {silent}, more than {suspect} s; after {down} s it is called down")
        }
        Some(NodeState::Down) => format!("silent for {silent}; {left} of its grace of {grace} are left"),
        Some(NodeState::Lost) => format!("silent for longer than its grace of {grace}"),
        Some(NodeState::Draining) => "an operator wants it emptied".into(),
        Some(NodeState::Retired) => "it was emptied or removed; it never comes back under this id".into(),
        None => "its state is one that this program does not know".into(),
    }
}

fn node_repair(found: &NodeExplained) -> String {
    let (status, node) = status_of(found);
    let name = &node.name;
    let shards = |count: u64, bytes: u64| format!("{}, {}", print::count(count, "shard"), Bytes(bytes));
    let lost = shards(found.lost_shards, found.lost_bytes);
    let stuck = |can: u64| match found.shards.saturating_sub(can) {
        0 => String::new(),
        stuck => format!("; {stuck} cannot be: too few others of their stripes, or no node to put them"),
    };
    match state_of(&node) {
        _ if found.shards == 0 => "nothing: the catalogue records no shard there".into(),
        Some(NodeState::Suspect | NodeState::Down) => {
            let left = clock(status.grace_left_ms / 1_000);
            format!(
                "waits, because its shards are expected back: if it is silent for {left} more, {lost} are made anew \
                 elsewhere{}",
                stuck(found.lost_shards)
            )
        }
        Some(NodeState::Lost | NodeState::Draining) => {
            let now = shards(found.now_shards, found.now_bytes);
            format!("makes {now} anew elsewhere{}", stuck(found.now_shards))
        }
        Some(NodeState::Retired) => "nothing".into(),
        _ => {
            let stuck = stuck(found.lost_shards);
            format!(
                "nothing to do; if it were lost, {lost} would be made anew elsewhere{stuck} (what-if --node {name})"
            )
        }
    }
}

fn node_next(found: &NodeExplained) -> String {
    let (_, node) = status_of(found);
    let name = &node.name;
    match state_of(&node) {
        Some(NodeState::Suspect | NodeState::Down) => {
            format!(
                "start it again before its grace ends, and nothing has to move; or farshore cluster what-if --node {name}"
            )
        }
        Some(NodeState::Lost) => {
            format!("start it again; if it is gone for good: farshore cluster remove {name}")
        }
        Some(NodeState::Draining) => {
            format!("farshore cluster repair; farshore cluster drain {name} --cancel keeps it")
        }
        _ => "nothing to do".into(),
    }
}

fn stripe_json(found: &StripeExplained) -> Value {
    let scheme = found.scheme.unwrap_or_default();
    let named = |node: &Option<Node>| node.as_ref().map(|node| node.name.clone());
    let shards: Vec<Value> = found
        .shards
        .iter()
        .enumerate()
        .map(|(index, s)| {
            json!({
                "index": index, "parity": index as u32 >= scheme.k, "state": s.state, "node": named(&s.holder),
                "node_id": s.holder.as_ref().map(|node| NodeId(node.id).to_string()),
                "region": s.holder.as_ref().map(|node| node.region.clone()),
                "node_state": s.holder.as_ref().map(|node| node.state.clone()),
                "hash": hex(&s.hash), "draining": s.draining, "verified": s.verified,
                "grace_left_ms": s.grace_left_ms, "wanted": named(&s.wanted), "why": s.why, "rank": s.rank,
            })
        })
        .collect();
    let repairs: Vec<Value> = found
        .repairs
        .iter()
        .map(|r| json!({"shard": r.index, "to": named(&r.to), "sources": r.sources}))
        .collect();
    json!({
        "message_type": "explain_stripe", "stripe": hex(&found.stripe), "pack": hex(&found.pack), "pack_no": found.no,
        "repository": found.repository, "kind": found.kind, "bytes": found.len, "chunks": found.chunks,
        "k": scheme.k, "m": scheme.m, "spread": scheme.spread, "shard_bytes": found.shard_len,
        "generation": found.generation, "at_target": found.at_target, "condemned": found.condemned,
        "spare": found.spare, "spare_after_region": found.spare_after_region, "stale": found.stale,
        "placement": {"level": found.level, "best": found.wanted_level, "copyset": found.copyset},
        "shards": shards, "repairs": repairs, "repair": stripe_repair(found),
    })
}

fn stripe_text(found: &StripeExplained) -> String {
    let scheme = found.scheme.unwrap_or_default();
    let mut out = format!("stripe {}, repository {}\n", hex(&found.stripe), found.repository);
    if found.stale {
        wrapped(&mut out, "", "no leader confirms this answer, which may be old");
    }
    let (k, n) = (scheme.k, scheme.k + scheme.m);
    let (len, chunks) = (Bytes(found.len), print::count(found.chunks.into(), "chunk"));
    wrapped(&mut out, "pack", &format!("{} ({} pack, {len}, {chunks})", hex(&found.pack), found.kind));
    let code = format!(
        "{k}+{}: {n} shards of {}, any {k} give it back, at most {} in one region; generation {}",
        scheme.m,
        Bytes(found.shard_len),
        scheme.spread,
        found.generation
    );
    wrapped(&mut out, "coded", &code);
    wrapped(&mut out, "strength", &strength(found));
    wrapped(&mut out, "placement", &placement(found));
    let verified = found.shards.iter().any(|shard| !shard.verified.is_empty());
    let _ = writeln!(
        out,
        "\n{:>5}  {:<7}  {:<8}  {:<12} {:<20} {:<9} {:<9} PLACED{}",
        "SHARD",
        "KIND",
        "STATE",
        "NODE",
        "REGION",
        "NODE IS",
        "HASH",
        if verified { "  RE-READ" } else { "" }
    );
    for (index, shard) in found.shards.iter().enumerate() {
        let kind = if index < k as usize { "data" } else { "parity" };
        let _ = writeln!(out, "{index:>5}  {kind:<7}  {}", shard_row(shard));
    }
    out.push('\n');
    wrapped(&mut out, "repair", &stripe_repair(found));
    for task in &found.repairs {
        let to = task.to.as_ref().map_or("nobody", |node| node.name.as_str());
        wrapped(
            &mut out,
            "",
            &format!("shard {} to {to}, from any {k} of {} good ones", task.index, task.sources),
        );
    }
    out
}

fn shard_row(shard: &ShardExplained) -> String {
    let (name, region, state) = match &shard.holder {
        Some(node) => (node.name.as_str(), node.region.as_str(), node.state.as_str()),
        None => ("-", "-", "-"),
    };
    let hash = hex(shard.hash.get(..4).unwrap_or(&shard.hash));
    let wanted = shard.wanted.as_ref().map_or("-", |node| node.name.as_str());
    let placed = match shard.why.as_str() {
        "held" => "stays".into(),
        "drawn" => format!("to {wanted}, place {} in its order", shard.rank.map_or(0, |rank| rank + 1)),
        "lightest" => format!("to {wanted}, which has the fewest"),
        "made-room" => format!("to {wanted}, to make room for another"),
        _ => "no node may hold it".into(),
    };
    let row = format!("{:<8}  {name:<12} {region:<20} {state:<9} {hash:<9} {placed}", shard.state);
    if shard.verified.is_empty() { row } else { format!("{row}  {}", shard.verified) }
}

fn strength(found: &StripeExplained) -> String {
    let spare = |spare: i32| match spare {
        ..0 => format!("{} too few", print::count(spare.unsigned_abs().into(), "shard")),
        0 => "nothing".into(),
        spare => print::count(spare as u64, "shard"),
    };
    let silent = found.shards.iter().any(|shard| shard.state == "silent");
    let full = match (found.at_target, silent) {
        (true, true) => "full, if the silent nodes come back",
        (true, false) => "full",
        (false, _) => "below full",
    };
    let condemned = if found.condemned { "; it is garbage and waits to be deleted" } else { "" };
    let (now, after) = (spare(found.spare), spare(found.spare_after_region));
    format!("{full}; to spare: {now} now, {after} after the worst loss of one region{condemned}")
}

fn placement(found: &StripeExplained) -> String {
    let words = |level: &str| match level {
        "full" => "one shard a node, within the spread limit",
        "crowded" => "one shard a node, but too many in a region",
        _ => "several shards on one node",
    };
    let now = words(&found.level);
    let best = match found.level == found.wanted_level {
        true => "the best that these nodes allow".into(),
        false => format!("the best that these nodes allow is {}", words(&found.wanted_level)),
    };
    format!("{now}; {best}; node order {} of this cluster", found.copyset)
}

/// What repair does next about a stripe, and why not more.
fn stripe_repair(found: &StripeExplained) -> String {
    let silent: Vec<String> = found
        .shards
        .iter()
        .filter(|shard| shard.state == "silent")
        .filter_map(|s| Some(format!("{} for {}", s.holder.as_ref()?.name, clock(s.grace_left_ms / 1_000))))
        .collect();
    let waits = match silent.is_empty() {
        true => String::new(),
        false => {
            format!("; it waits for {} more, since the shards there are expected back", silent.join(", "))
        }
    };
    let owed = found.shards.iter().filter(|s| matches!(s.state.as_str(), "bad" | "missing" | "lost")).count();
    match (found.repairs.len(), found.at_target) {
        (0, true) if silent.is_empty() => "nothing to do".into(),
        (0, true) => format!(
            "waits for {} more: the shards there are expected back, and only then are they made anew elsewhere",
            silent.join(", ")
        ),
        (0, false) if found.spare < 0 => {
            format!("cannot: too few shards are left to make others from; bring their nodes back{waits}")
        }
        (0, false) => format!("has done what these nodes allow; add nodes, or bring some back{waits}"),
        (tasks, _) => {
            let owed = print::count(owed as u64, "shard");
            format!("{owed} missing, {} can be made{waits}:", print::count(tasks as u64, "shard"))
        }
    }
}
