//! `farshore cluster drain | remove | plan | apply`: who belongs to the cluster. Every change is shown before it is made, and
//! made only if the topology is still the one that was shown.

use crate::args::{ApplyArgs, DrainArgs, Global, PlanArgs, RemoveArgs};
use crate::exit::{self, Exit};
use crate::health::links;
use crate::profile::connect;
use crate::upkeep::money;
use farshore_client::Client;
use farshore_client::api::Topology;
use farshore_client::session::TopologyPlan;
use farshore_client::session::topology::{PackStrength, PolicyCode};
use farshore_core::id::NodeId;
use farshore_core::topology::{Change, NodeRecord, NodeState};
use farshore_core::units::{Bytes, parse_duration};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::time::Duration;
use tokio::time::Instant;

/// Bytes that a node thought of offers, if nothing else is said.
const THOUGHT_OF_BYTES: u64 = 1 << 40;
/// Between two looks at a node that is being emptied.
const LOOK: Duration = Duration::from_millis(500);

/// Empties a node, or lets it stay.
pub async fn drain(args: &DrainArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let wait = args.wait.as_deref().map(parse_duration).transpose().map_err(Exit::failure)?;
    let node = find(&client.topology().await?, &args.node)?;
    let change = if args.cancel { Change::Keep(node.id) } else { Change::Drain(node.id) };
    change_now(&client, change, global).await?;
    let Some(wait) = wait else { return Ok(exit::OK) };
    let deadline = Instant::now() + wait;
    loop {
        let now = find(&client.topology().await?, &node.id.to_string())?;
        match now.state {
            NodeState::Retired => return Ok(exit::OK),
            state if Instant::now() > deadline => {
                return Err(Exit::failure(format!(
                    "node {} is still {}; `farshore cluster status` says what it waits for",
                    node.name,
                    state.word()
                )));
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Takes a node out for good.
pub async fn remove(args: &RemoveArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let node = find(&client.topology().await?, &args.node)?;
    change_now(&client, Change::Remove(node.id), global).await?;
    Ok(exit::OK)
}

/// Looks at one change by itself and enacts it at once.
async fn change_now(client: &Client, change: Change, global: &Global) -> Result<(), Exit> {
    let operator = client.operator()?;
    let plan = operator.plan(&[change], true, &[]).await?;
    if !plan.refused.is_empty() {
        return Err(Exit::failure(plan.refused.join("; ")));
    }
    let epoch = operator.apply(plan.epoch, Some(&[change])).await?;
    let node = client.topology().await?.name_of(change.node());
    if global.json {
        let line = json!({
            "message_type": "topology_change", "change": change.word(), "node": change.node().to_string(), "name": node,
            "epoch": epoch, "moves": plan.moves, "moved_bytes": plan.moved_bytes,
        });
        println!("{line}");
    } else if !global.quiet {
        match change {
            Change::Drain(_) => println!(
                "node {node} is being emptied: {} shards, {}; it is retired when nothing is left on it",
                plan.moves,
                Bytes(plan.moved_bytes)
            ),
            Change::Keep(_) => println!("node {node} stays; what has moved stays where it is"),
            Change::Remove(_) => println!("node {node} is out of the cluster for good"),
        }
    }
    Ok(())
}

/// Stages what is asked for and shows what all that is staged would do.
pub async fn plan(args: &PlanArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let topology = client.topology().await?;
    let mut asked = Vec::new();
    for (names, change) in [
        (&args.drain, Change::Drain as fn(NodeId) -> Change),
        (&args.remove, Change::Remove),
        (&args.keep, Change::Keep),
    ] {
        for name in names {
            asked.push(change(find(&topology, name)?.id));
        }
    }
    let added = args.with.iter().enumerate().map(|(at, text)| thought_of(at, text));
    let added = added.collect::<Result<Vec<_>, _>>()?;
    let operator = client.operator()?;
    let mut shown = operator.plan(&asked, args.clear, &added).await?;
    if args.clear || !asked.is_empty() {
        let epoch = operator.stage(shown.epoch, &shown.changes).await?;
        shown.epoch = epoch;
    }
    if global.json {
        println!("{}", as_json(&shown, &topology));
    } else {
        print!("{}", as_text(&shown, &topology));
    }
    Ok(exit::OK)
}

/// Enacts what is staged.
pub async fn apply(args: &ApplyArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let epoch = client.operator()?.apply(args.epoch, None).await?;
    if global.json {
        println!("{}", json!({"message_type": "topology_applied", "epoch": epoch}));
    } else if !global.quiet {
        println!(
            "done; the topology is at epoch {epoch}, and `farshore cluster status` shows how it goes on"
        );
    }
    Ok(exit::OK)
}

/// A node by its name or id.
pub fn find(topology: &Topology, text: &str) -> Result<NodeRecord, Exit> {
    let by_id = text.parse::<NodeId>().ok();
    let fits = |node: &&NodeRecord| Some(node.id) == by_id || node.name.as_str() == text;
    let all: Vec<&NodeRecord> = topology.nodes.iter().filter(fits).collect();
    // A name may have been that of a node that is gone.
    let living: Vec<&NodeRecord> =
        all.iter().filter(|node| node.state != NodeState::Retired).copied().collect();
    match if living.is_empty() { all } else { living }.as_slice() {
        [one] => Ok((*one).clone()),
        [] => Err(Exit::failure(format!("there is no node {text}; `farshore cluster nodes` lists them"))),
        _ => Err(Exit::failure(format!(
            "several nodes are called {text}; give the id (`farshore cluster nodes`)"
        ))),
    }
}

/// `PROVIDER/REGION` or `PROVIDER/REGION=SIZE`.
fn thought_of(at: usize, text: &str) -> Result<NodeRecord, Exit> {
    let bad = |why: &dyn std::fmt::Display| Exit::failure(format!("--with {text}: {why}"));
    let (region, size) = text.split_once('=').map_or((text, None), |(region, size)| (region, Some(size)));
    let capacity = size.map(|size| size.parse::<Bytes>().map_err(|e| bad(&e))).transpose()?;
    Ok(NodeRecord {
        // Ids are hashes of keys: nobody has these.
        id: NodeId(u64::MAX - at as u64),
        name: format!("new{}", at + 1).parse().map_err(|e| bad(&e))?,
        region: region.parse().map_err(|e| bad(&e))?,
        zone: None,
        addr: "thought:1".into(),
        capacity: capacity.map_or(THOUGHT_OF_BYTES, |bytes| bytes.0),
        state: NodeState::Up,
    })
}

fn as_json(plan: &TopologyPlan, topology: &Topology) -> Value {
    let strength = |s: &PackStrength| json!({"at_target": s.at_target, "spare": s.spare, "spare_after_region": s.spare_after_region});
    let code = |code: &Result<PolicyCode, String>| match code {
        Ok(code) => json!({
            "scheme": code.scheme.to_string(), "annual_loss_nodes": code.loss_nodes, "annual_loss_regions": code.loss_regions,
        }),
        Err(why) => json!({ "impossible": why }),
    };
    let changes: Vec<Value> = plan
        .changes
        .iter()
        .map(|change| {
            let id = change.node();
            json!({"change": change.word(), "node": id.to_string(), "name": topology.name_of(id)})
        })
        .collect();
    let links = links(&plan.links);
    let nodes: Vec<Value> = plan
        .nodes
        .iter()
        .map(|(node, before, after)| {
            json!({
                "id": node.id.to_string(), "name": node.name.as_str(), "region": node.region.as_str(),
                "state": node.state.word(), "capacity": node.capacity, "bytes_before": before, "bytes_after": after,
            })
        })
        .collect();
    let policies: Vec<Value> = plan
        .policies
        .iter()
        .map(|p| {
            json!({
                "survive": p.survive, "repositories": p.repositories, "before": code(&p.before), "after": code(&p.after),
            })
        })
        .collect();
    json!({
        "message_type": "topology_plan", "epoch": plan.epoch, "changes": changes, "packs": plan.packs,
        "moves": plan.moves, "moved_bytes": plan.moved_bytes, "links": links, "nodes": nodes, "policies": policies,
        "before": strength(&plan.before), "after": strength(&plan.after), "refused": plan.refused,
        "price_micros": plan.price_micros,
    })
}

fn as_text(plan: &TopologyPlan, topology: &Topology) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "epoch {}", plan.epoch);
    for change in &plan.changes {
        let _ = writeln!(out, "  {} {}", change.word(), topology.name_of(change.node()));
    }
    if plan.changes.is_empty() {
        let _ = writeln!(out, "  nothing is staged");
    }
    let moved = Bytes(plan.moved_bytes);
    let _ = writeln!(out, "\nmoves\n  {} shards, {moved}, of {} packs looked at", plan.moves, plan.packs);
    for (from, to, bytes) in &plan.links {
        let _ = writeln!(out, "  {from} -> {to}   {}", Bytes(*bytes));
    }
    if plan.price_micros > 0 {
        let _ = writeln!(out, "  price {}", money(plan.price_micros));
    }
    let _ = writeln!(out, "\nroom{:>24} {:>12} {:>12}", "before", "after", "offered");
    for (node, before, after) in &plan.nodes {
        let (before, after, offered) = (Bytes(*before), Bytes(*after), Bytes(node.capacity));
        let name = node.name.as_str();
        let _ = writeln!(
            out,
            "  {name:<14} {:>11} {:>12} {:>12}",
            before.to_string(),
            after.to_string(),
            offered.to_string()
        );
    }
    let _ = writeln!(out, "\ndurability{:>22} {:>20}", "before", "after");
    let (before, after) = (&plan.before, &plan.after);
    let _ = writeln!(out, "  {:<20} {:>9} {:>20}", "packs at target", before.at_target, after.at_target);
    for (what, before, after) in [
        ("least spare shards", before.spare, after.spare),
        ("after a region", before.spare_after_region, after.spare_after_region),
    ] {
        let number = |number: Option<i64>| number.map_or("-".into(), |n| n.to_string());
        let _ = writeln!(out, "  {what:<20} {:>9} {:>20}", number(before), number(after));
    }
    for p in &plan.policies {
        let _ = writeln!(out, "  \"{}\" ({} repositories)", p.survive, p.repositories);
        let (before, after) = (in_words(&p.before), in_words(&p.after));
        let _ = writeln!(out, "    now:  {before}\n    then: {after}");
    }
    if !plan.refused.is_empty() {
        let _ = writeln!(out, "\nwould be refused");
        for why in &plan.refused {
            let _ = writeln!(out, "  {why}");
        }
    } else if !plan.changes.is_empty() {
        let _ = writeln!(out, "\nnext: farshore cluster apply --epoch {}", plan.epoch);
    }
    out
}

/// Always both figures, and none without saying what it assumes.
fn in_words(code: &Result<PolicyCode, String>) -> String {
    let code = match code {
        Ok(code) => code,
        Err(why) => return format!("impossible: {why}"),
    };
    match (code.loss_nodes, code.loss_regions) {
        (Some(nodes), Some(regions)) => format!(
            "{}, chance of loss of a stripe in a year {nodes:.1e} if nodes alone fail (2 % of them), {regions:.1e} if a \
             region does too (one in a thousand)",
            code.scheme
        ),
        _ => format!("{}, not a code that the model knows", code.scheme),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::ClusterId;

    fn node(id: u64, name: &str, state: NodeState) -> NodeRecord {
        NodeRecord { id: NodeId(id), name: name.parse().unwrap(), state, ..thought_of(0, "p/r").unwrap() }
    }

    #[test]
    fn nodes_are_found_by_name_or_id_and_the_gone_make_way() {
        let nodes = vec![
            node(1, "a", NodeState::Retired),
            node(2, "a", NodeState::Up),
            node(3, "b", NodeState::Lost),
            node(4, "c", NodeState::Up),
            node(5, "c", NodeState::Up),
        ];
        let topology =
            Topology { cluster: ClusterId([1; 16]), nodes, leader: None, applied: 0, slow: vec![] };
        let id = |text: &str| find(&topology, text).map(|node| node.id.0).ok();
        assert_eq!([id("a"), id("b"), id("c"), id("d")], [Some(2), Some(3), None, None]);
        assert_eq!(id(&NodeId(1).to_string()), Some(1));
        assert_eq!(id(&NodeId(5).to_string()), Some(5));
    }

    #[test]
    fn nodes_can_be_thought_of() {
        let node = thought_of(1, "aws/x=2T").unwrap();
        assert_eq!((node.name.as_str(), node.region.as_str(), node.capacity), ("new2", "aws/x", 2 << 40));
        assert!(thought_of(0, "aws").is_err() && thought_of(0, "aws/x=lots").is_err());
    }
}
