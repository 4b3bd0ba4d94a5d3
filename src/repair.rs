//! `farshore cluster repair` and `cluster scrub --status`: what the cluster does by itself, for people.

use crate::args::{Global, RepairArgs};
use crate::exit::{self, Exit};
use crate::health::{links, name_of};
use crate::print;
use crate::profile::connect;
use crate::watch;
use farshore_client::Client;
use farshore_client::api::{ClusterStatus, RepairStatus};
use farshore_core::id::NodeId;
use farshore_core::topology::{NodeRecord, NodeState};
use farshore_core::units::{Bytes, clock};
use farshore_proto::wire::ScrubStatusReply;
use serde_json::{Value, json};
use std::fmt::Write as _;

/// Shows what repair is doing, once or again and again.
pub async fn run(args: &RepairArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let look = || look(&client, global.json);
    match args.watching.watch {
        Some(seconds) => watch::every(seconds, global, look).await,
        None => {
            print!("{}", look().await?);
            Ok(exit::OK)
        }
    }
}

async fn look(client: &Client, as_json: bool) -> Result<String, Exit> {
    let status = client.status().await?;
    if !as_json {
        return Ok(text(&status));
    }
    let mut line = json(&status);
    line["message_type"] = json!("repair");
    line["under_target"] = json!(status.under_target);
    line["packs"] = json!(status.packs);
    line["stale"] = json!(status.stale);
    Ok(format!("{line}\n"))
}

/// Bytes a second over the last minute; nothing if nothing was rebuilt.
fn rate(repair: &RepairStatus) -> Option<u64> {
    let rate = repair.recent_bytes.saturating_mul(1_000).checked_div(repair.recent_ms)?;
    Some(rate).filter(|rate| *rate > 0)
}

/// Seconds until what is queued is done, at least, at the rate of the last minute.
fn eta(repair: &RepairStatus) -> Option<u64> {
    let left = repair.queued_bytes;
    rate(repair).filter(|_| left > 0).map(|rate| left.div_ceil(rate))
}

/// The object `repair` of a status.
pub fn json(status: &ClusterStatus) -> Value {
    let repair = &status.repair;
    let urgent: Vec<Value> = repair
        .urgent
        .iter()
        .map(|task| {
            json!({
                "stripe": task.stripe.to_string(), "shard": task.index, "to": task.to.to_string(),
                "to_name": name_of(status, task.to), "spare": task.spare,
                "spare_after_region": task.spare_after_region, "running": task.running,
            })
        })
        .collect();
    json!({
        "queued": repair.queued, "running": repair.running, "rebuilt": repair.rebuilt, "kept": repair.kept, "failed": repair.failed,
        "last_error": repair.last_error, "failed_ago_ms": repair.failed_ago_ms, "bytes_left": repair.queued_bytes,
        "more_than_queued": repair.queue_full, "recent_shards": repair.recent_shards,
        "recent_bytes": repair.recent_bytes, "recent_ms": repair.recent_ms,
        "bytes_per_second": rate(repair).unwrap_or(0), "eta_seconds": eta(repair), "urgent": urgent,
        "links": links(&repair.links), "singly_bytes": repair.singly_bytes, "held": repair.held,
        "spent_micros": repair.spent_micros,
        "liars": repair.liars.iter().map(|id| name_of(status, *id)).collect::<Vec<_>>(),
    })
}

fn text(status: &ClusterStatus) -> String {
    let repair = &status.repair;
    let mut out = String::new();
    if status.stale {
        let _ = writeln!(out, "no leader confirms this answer, and only a leader repairs");
    }
    let _ = writeln!(
        out,
        "repair     {} running, {} queued; {} rebuilt{} and {} since this leader took over",
        repair.running,
        repair.queued,
        print::count(repair.rebuilt, "shard"),
        if repair.kept > 0 { format!(" ({} of them still there)", repair.kept) } else { String::new() },
        print::count(repair.failed, "failure"),
    );
    let owed = match status.under_target {
        0 => format!("nothing: all {} are at full strength", print::count(status.packs, "pack")),
        weak => format!("{weak} of {} below full strength", print::count(status.packs, "pack")),
    };
    let _ = writeln!(out, "owed       {owed}");
    if repair.queued + repair.running == 0 && status.under_target > 0 {
        let _ = writeln!(out, "           but nothing can be done: {}", why_idle(status));
    }
    let waited: Vec<String> = status
        .nodes
        .iter()
        .filter(|n| matches!(n.node.state, NodeState::Suspect | NodeState::Down) && n.shards + n.used > 0)
        .map(|n| format!("{} for {}", n.node.name, clock(n.grace_left_ms / 1_000)))
        .collect();
    if !waited.is_empty() {
        let _ = writeln!(out, "waits      for {} more: until then the shards there count", waited.join(", "));
    }
    if let Some(rate) = rate(repair) {
        let (shards, window) = (print::count(repair.recent_shards, "shard"), clock(repair.recent_ms / 1_000));
        let _ = writeln!(out, "rate       {}/s: {shards} within the last {window}", Bytes(rate));
    }
    if repair.queued + repair.running > 0 {
        // One shard of a pack is made after the other, so that the next ones are not in the queue yet.
        let time = eta(repair).map_or_else(
            || "nothing was rebuilt within the last minute, so nobody knows when it is done".into(),
            |seconds| format!("at least {} at this rate", clock(seconds)),
        );
        let _ = writeln!(out, "left       at least {}; {time}", Bytes(repair.queued_bytes));
    }
    if !repair.held.is_empty() {
        let _ = writeln!(out, "held       {} (farshore cluster budget)", repair.held);
    }
    if !repair.last_error.is_empty() {
        let _ = writeln!(out, "last error {}: {}", print::ago(repair.failed_ago_ms), repair.last_error);
    }
    if !repair.urgent.is_empty() {
        let _ = writeln!(
            out,
            "\n{:<10} {:>5} {:>6} {:>14}  {:<12} NOW",
            "STRIPE", "SHARD", "SPARE", "WITHOUT REGION", "TO"
        );
    }
    for task in &repair.urgent {
        let now = if task.running { "running" } else { "queued" };
        let (stripe, to) = (task.stripe.short(), name_of(status, task.to));
        let (index, spare, after) = (task.index, task.spare, task.spare_after_region);
        let _ = writeln!(out, "{stripe:<10} {index:>5} {spare:>6} {after:>14}  {to:<12} {now}");
    }
    out
}

/// Why nothing is queued although something is owed.
fn why_idle(status: &ClusterStatus) -> String {
    let named = |which: &dyn Fn(NodeState) -> bool| {
        let nodes = status.nodes.iter().filter(|node| which(node.node.state));
        nodes.map(|node| node.node.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let silent = named(&|state| matches!(state, NodeState::Suspect | NodeState::Down));
    let lost = named(&|state| state == NodeState::Lost);
    match (silent.as_str(), lost.as_str()) {
        ("", "") => "no node can take what is missing; add nodes".into(),
        ("", lost) => {
            format!("shards lie as well as the nodes that are left allow; bring back {lost}, or add nodes")
        }
        (silent, _) => format!("{silent} may come back and are waited for (farshore cluster explain NODE)"),
    }
}

/// A node, and how far it is or why it does not say.
type Row = (NodeRecord, Result<ScrubStatusReply, String>);

/// Shows how far each node is with the scrub that runs by itself.
pub async fn scrub_status(global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let mut nodes = client.topology().await?.nodes;
    nodes.retain(|node| node.state != NodeState::Retired && !node.is_witness());
    let ids: Vec<NodeId> = nodes.iter().filter(|n| n.state.answers()).map(|n| n.id).collect();
    let mut standing = client.scrub_standing(&ids).await?;
    let silent = |node: &NodeRecord| format!("the node is {}", node.state.word());
    let row = |node: NodeRecord| {
        let said = standing.remove(&node.id).unwrap_or_else(|| Err(silent(&node)));
        (node, said)
    };
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let rows: Vec<Row> = nodes.into_iter().map(row).collect();
    if global.json {
        println!("{}", scrub_json(&rows));
    } else {
        print!("{}", scrub_text(&rows));
    }
    Ok(exit::OK)
}

fn scrub_json(rows: &[Row]) -> Value {
    let row = |(node, said): &Row| {
        let mut line = match said {
            Ok(s) => json!({
                "shards": s.shards, "bytes": s.bytes, "verified": s.verified, "verified_bytes": s.verified_bytes,
                "never_verified": s.never, "oldest_verified_ms": s.oldest_ms, "bad": s.bad, "bad_found": s.bad_found,
                "waiting": s.waiting, "period_ms": s.period_ms, "error": null,
            }),
            Err(why) => json!({"error": why}),
        };
        (line["id"], line["name"]) = (json!(node.id.to_string()), json!(node.name.as_str()));
        line
    };
    let nodes: Vec<Value> = rows.iter().map(row).collect();
    let said = || rows.iter().filter_map(|(_, said)| said.as_ref().ok());
    json!({
        "message_type": "scrub_status", "nodes": nodes, "shards": said().map(|s| s.shards).sum::<u64>(),
        "verified": said().map(|s| s.verified).sum::<u64>(), "bad": said().map(|s| s.bad).sum::<u64>(),
        "oldest_verified_ms": said().map(|s| s.oldest_ms).max().unwrap_or(0),
        "silent": rows.iter().filter(|(_, said)| said.is_err()).count(),
    })
}

fn scrub_text(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<12} {:>8} {:>12} {:>16} {:>14} {:>5}  OLDEST CHECK\n",
        "NODE", "SHARDS", "BYTES", "CHECKED", "OF A PERIOD OF", "BAD"
    );
    for (node, said) in rows {
        let s = match said {
            Ok(s) => s,
            Err(why) => {
                let _ = writeln!(out, "{:<12} {why}", node.name.as_str());
                continue;
            }
        };
        let percent = (s.verified * 100).checked_div(s.shards).unwrap_or(100);
        let checked = format!("{} ({percent} %)", s.verified);
        let oldest = match (s.shards, s.never) {
            (0, _) => "nothing to check".into(),
            (_, 0) => print::ago(s.oldest_ms),
            (_, never) => format!("{} never", print::count(never, "shard")),
        };
        let (bytes, period) = (Bytes(s.bytes).to_string(), print::span(s.period_ms));
        let _ = writeln!(
            out,
            "{:<12} {:>8} {bytes:>12} {checked:>16} {period:>14} {:>5}  {oldest}",
            node.name.as_str(),
            s.shards,
            s.bad
        );
    }
    let said = || rows.iter().filter_map(|(_, said)| said.as_ref().ok());
    let (bad, late) = (said().map(|s| s.bad).sum::<u64>(), said().filter(|s| s.verified < s.shards).count());
    if bad > 0 {
        let _ =
            writeln!(out, "\n{}: reported and made anew elsewhere by repair", print::count(bad, "bad shard"));
    }
    if late > 0 {
        let _ = writeln!(
            out,
            "\n{} not checked every shard within the period yet; `farshore cluster scrub --wait` checks all of them now",
            if late == 1 { "one node has".into() } else { format!("{late} nodes have") }
        );
    }
    out
}
