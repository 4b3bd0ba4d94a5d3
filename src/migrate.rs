//! `farshore cluster migrate`: all that one region holds moves to another, while clients go on or while they are kept out.

use crate::args::{Global, MigrateArgs};
use crate::exit::{self, Exit};
use crate::health::{links, name_of};
use crate::print;
use crate::profile::connect;
use crate::upkeep::money;
use farshore_client::Client;
use farshore_client::api::ClusterStatus;
use farshore_client::session::TopologyPlan;
use farshore_core::catalogue::Migration;
use farshore_core::topology::{NodeState, Region};
use farshore_core::units::{Bytes, clock, parse_duration};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// Between two looks at a region that is being emptied.
const LOOK: Duration = Duration::from_millis(500);

/// Begins one, ends one, or says which are under way.
pub async fn run(args: &MigrateArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let wait = args.wait.as_deref().map(parse_duration).transpose().map_err(Exit::failure)?;
    let region = |text: &str| text.parse::<Region>().map_err(|e| Exit::failure(e.to_string()));
    let Some(from) = args.from.as_deref().map(region).transpose()? else {
        return list(&client, global).await;
    };
    if args.cancel {
        return cancel(&client, &from, global).await;
    }
    match args.to.as_deref().map(region).transpose()? {
        Some(to) => begin(&client, &from, &to, args, global).await?,
        None if wait.is_none() => {
            return Err(Exit::failure(
                "--from needs --to, --cancel or --wait; see farshore cluster migrate --help",
            ));
        }
        None => {}
    }
    match wait {
        Some(wait) => until_gone(&client, &from, wait, global).await,
        None => Ok(exit::OK),
    }
}

async fn begin(
    client: &Client,
    from: &Region,
    to: &Region,
    args: &MigrateArgs,
    global: &Global,
) -> Result<(), Exit> {
    let operator = client.operator()?;
    let plan = operator.plan_migration(from, to).await?;
    if args.dry_run {
        return shown(&plan, from, to, args.cold, "planned", global);
    }
    if !plan.refused.is_empty() {
        return Err(Exit::failure(plan.refused.join("; ")));
    }
    operator.migrate(plan.epoch, from, to, args.cold).await?;
    shown(&plan, from, to, args.cold, "begun", global)
}

fn shown(
    plan: &TopologyPlan,
    from: &Region,
    to: &Region,
    cold: bool,
    state: &str,
    global: &Global,
) -> Result<(), Exit> {
    if global.json {
        let line = json!({
            "message_type": "migration", "state": state, "from": from.as_str(), "to": to.as_str(), "cold": cold,
            "nodes": plan.changes.len(), "moves": plan.moves, "moved_bytes": plan.moved_bytes,
            "links": links(&plan.links), "price_micros": plan.price_micros, "refused": plan.refused,
        });
        println!("{line}");
        return Ok(());
    }
    if global.quiet {
        return Ok(());
    }
    let is = if state == "begun" { "is being emptied" } else { "would be emptied" };
    println!("region {from} {is} into {to}: {} shards, {}", plan.moves, Bytes(plan.moved_bytes));
    for (from, to, bytes) in &plan.links {
        println!("  {from} -> {to}   {}", Bytes(*bytes));
    }
    if plan.price_micros > 0 {
        println!("  price {}", money(plan.price_micros));
    }
    for why in &plan.refused {
        println!("  would be refused: {why}");
    }
    if state == "begun" {
        if cold {
            println!("nothing can be backed up until it has ended");
        }
        println!("next: farshore cluster migrate --from {from} --wait 1h");
    }
    Ok(())
}

async fn cancel(client: &Client, from: &Region, global: &Global) -> Result<u8, Exit> {
    let operator = client.operator()?;
    let epoch = operator.plan(&[], true, &[]).await?.epoch;
    operator.cancel_migration(epoch, from).await?;
    if global.json {
        println!("{}", json!({"message_type": "migration", "state": "cancelled", "from": from.as_str()}));
    } else if !global.quiet {
        println!("region {from} stays; what has moved stays where it is");
    }
    Ok(exit::OK)
}

async fn list(client: &Client, global: &Global) -> Result<u8, Exit> {
    let status = client.status().await?;
    if global.json {
        let all: Vec<Value> = status.migrations.iter().map(|m| as_json(m, &status)).collect();
        println!("{}", json!({"message_type": "migrations", "migrations": all}));
    } else if status.migrations.is_empty() {
        println!("no region is being emptied");
    } else {
        status.migrations.iter().for_each(|m| println!("{}", line(m, &status)));
    }
    Ok(exit::OK)
}

/// One migration, as JSON forms give it.
pub fn as_json(migration: &Migration, status: &ClusterStatus) -> Value {
    let left: Vec<String> = left(migration, status).map(|id| name_of(status, id)).collect();
    json!({
        "from": migration.from.as_str(), "to": migration.to.as_str(), "cold": migration.cold,
        "since_ms": migration.since_ms, "nodes": migration.nodes.len(), "nodes_left": left,
        "shards_left": shards_left(migration, status),
    })
}

/// One migration, for people.
pub fn line(migration: &Migration, status: &ClusterStatus) -> String {
    let since = clock(status.catalogue_ms.saturating_sub(migration.since_ms) / 1_000);
    let (nodes, shards) = (left(migration, status).count() as u64, shards_left(migration, status));
    let cold = if migration.cold { ", and nothing is written meanwhile" } else { "" };
    format!(
        "{} -> {} for {since}: {} left on {}{cold}",
        migration.from,
        migration.to,
        print::count(shards, "shard"),
        print::count(nodes, "node"),
    )
}

fn left<'a>(
    migration: &'a Migration,
    status: &'a ClusterStatus,
) -> impl Iterator<Item = farshore_core::id::NodeId> + 'a {
    let nodes = status.nodes.iter().filter(|n| migration.nodes.contains(&n.node.id));
    nodes.filter(|n| n.node.state != NodeState::Retired).map(|n| n.node.id)
}

/// Shards that its nodes still hold.
pub fn shards_left(migration: &Migration, status: &ClusterStatus) -> u64 {
    let nodes = status.nodes.iter().filter(|n| migration.nodes.contains(&n.node.id));
    nodes.filter(|n| n.node.state != NodeState::Retired).map(|n| n.shards).sum()
}

async fn until_gone(client: &Client, from: &Region, wait: Duration, global: &Global) -> Result<u8, Exit> {
    let deadline = Instant::now() + wait;
    loop {
        let status = client.status().await?;
        match status.migrations.iter().find(|migration| migration.from == *from) {
            None => break,
            Some(migration) if Instant::now() > deadline => {
                return Err(Exit::failure(format!(
                    "{}; `farshore cluster repair` says what it waits for",
                    line(migration, &status)
                )));
            }
            Some(_) => tokio::time::sleep(LOOK).await,
        }
    }
    let nodes = client.topology().await?.nodes;
    let stays = nodes.iter().any(|node| node.region == *from && node.state != NodeState::Retired);
    if stays {
        return Err(Exit::failure(format!("region {from} still has nodes: its migration was cancelled")));
    }
    if global.json {
        println!("{}", json!({"message_type": "migration", "state": "done", "from": from.as_str()}));
    } else if !global.quiet {
        println!("region {from} is empty and its nodes are retired; see farshore cluster verified");
    }
    Ok(exit::OK)
}
