//! `farshore cluster`: set a cluster up, and see how it is.

use crate::args::{ClusterCommand, ClusterInitArgs, Global, NodesArgs, ScrubArgs, StatusArgs};
use crate::audit;
use crate::exit::{self, Exit};
use crate::explain;
use crate::health::{self, Report};
use crate::migrate;
use crate::recovery;
use crate::repair;
use crate::setup::{self, NewNode, Placing};
use crate::topology;
use crate::upkeep;
use crate::watch;
use crate::what_if;
use farshore_client::Client;
use farshore_client::session::NamedShard;
use farshore_core::topology::Name;
use farshore_core::units::parse_duration;
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// Shards that a scrub names for people.
const SHARDS_SHOWN_MAX: usize = 20;

/// Runs the sub-command.
pub async fn run(command: ClusterCommand, global: &Global) -> Result<u8, Exit> {
    match command {
        ClusterCommand::Init(args) => init(&args),
        ClusterCommand::Status(args) => status(&args, global).await,
        ClusterCommand::Nodes(args) => nodes(&args, global).await,
        ClusterCommand::Scrub(args) if args.status => repair::scrub_status(global).await,
        ClusterCommand::Scrub(args) if args.pause || args.resume || args.every.is_some() => {
            upkeep::scrub(&args, global).await
        }
        ClusterCommand::Scrub(args) => scrub(&args, global).await,
        ClusterCommand::Repair(args) => repair::run(&args, global).await,
        ClusterCommand::Explain(args) => explain::run(&args, global).await,
        ClusterCommand::Drain(args) => topology::drain(&args, global).await,
        ClusterCommand::Remove(args) => topology::remove(&args, global).await,
        ClusterCommand::Plan(args) => topology::plan(&args, global).await,
        ClusterCommand::Apply(args) => topology::apply(&args, global).await,
        ClusterCommand::Migrate(args) => migrate::run(&args, global).await,
        ClusterCommand::Budget(args) => upkeep::budget(&args, global).await,
        ClusterCommand::Verified(args) => upkeep::verified(&args, global).await,
        ClusterCommand::WhatIf(args) => what_if::run(&args, global).await,
        ClusterCommand::Audit(args) => audit::run(&args, global).await,
        ClusterCommand::Export => recovery::export(global).await,
        ClusterCommand::RebuildCatalogue(args) => recovery::rebuild(&args, global).await,
    }
}

fn init(args: &ClusterInitArgs) -> Result<u8, Exit> {
    let occupied = std::fs::read_dir(&args.dir).is_ok_and(|mut entries| entries.next().is_some());
    if occupied {
        let dir = args.dir.display();
        return Err(Exit::failure(format!(
            "{dir} is not empty; a cluster is set up once, in a new directory"
        )));
    }
    let nodes: Vec<NewNode> = args.nodes.iter().map(|text| parse_node(text)).collect::<Result<_, _>>()?;
    let config_dir = |_: &Name| args.config_dir.clone();
    let data_dir = |_: &Name| args.data_dir.clone();
    let placing = Placing { config_dir: &config_dir, data_dir: &data_dir, capacity: "1T", extra: "" };
    let ids = setup::write_cluster(&args.dir, &nodes, &placing)?;
    for (node, id) in nodes.iter().zip(ids) {
        let dir = setup::node_dir(&args.dir, &node.name);
        println!(
            "{:<12} {id}  {:<20} {} -> {}",
            node.name,
            node.region,
            dir.display(),
            args.config_dir.display()
        );
    }
    println!(
        "Copy each directory to its machine as {}, set `capacity` in node.toml,",
        args.config_dir.display()
    );
    println!("start `farshore node run --config {}/node.toml` on each, then", args.config_dir.display());
    println!("  FARSHORE_PROFILE={} farshore cluster status", args.dir.join("profile.toml").display());
    println!("Keep {} offline: it makes members.", args.dir.join("pki/ca.key").display());
    Ok(exit::OK)
}

/// `NAME=PROVIDER/REGION=HOST:PORT`. The node listens on that port on every address.
fn parse_node(text: &str) -> Result<NewNode, Exit> {
    let bad = |why: &dyn std::fmt::Display| {
        Exit::failure(format!("--node {text}: {why}; write NAME=PROVIDER/REGION=HOST:PORT"))
    };
    let mut parts = text.splitn(3, '=');
    let (Some(name), Some(region), Some(addr)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(bad(&"a part is missing"));
    };
    let port =
        addr.rsplit_once(':').and_then(|(host, port)| port.parse::<u16>().ok().filter(|_| !host.is_empty()));
    let port = port.ok_or_else(|| bad(&"the address has no port"))?;
    Ok(NewNode {
        name: name.parse().map_err(|e| bad(&e))?,
        region: region.parse().map_err(|e| bad(&e))?,
        listen: format!("0.0.0.0:{port}"),
        advertise: addr.into(),
    })
}

async fn report(client: &Client) -> Result<Report, Exit> {
    Ok(health::report(client.status().await.map_err(Exit::from)?))
}

fn shown(seen: &Report, global: &Global) -> String {
    if global.json { format!("{}\n", seen.json()) } else { seen.text() }
}

async fn status(args: &StatusArgs, global: &Global) -> Result<u8, Exit> {
    let client = crate::profile::connect(global).await?;
    if let Some(seconds) = args.watching.watch {
        return watch::every(seconds, global, || async { Ok(shown(&report(&client).await?, global)) }).await;
    }
    let wait = args.wait.as_deref().map(parse_duration).transpose().map_err(Exit::failure)?;
    let deadline = Instant::now() + wait.unwrap_or(Duration::ZERO);
    let mut seen = report(&client).await;
    while wait.is_some() && !seen.as_ref().is_ok_and(Report::settled) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(250)).await;
        seen = report(&client).await;
    }
    let seen = seen?;
    print!("{}", shown(&seen, global));
    if wait.is_some() && !seen.settled() {
        return Err(Exit::failure(
            "the cluster is not at full strength yet; `farshore cluster status` says why",
        ));
    }
    Ok(exit::OK)
}

async fn nodes(args: &NodesArgs, global: &Global) -> Result<u8, Exit> {
    let client = crate::profile::connect(global).await?;
    let look = || async {
        let seen = report(&client).await?;
        Ok(if global.json { format!("{}\n", seen.json()["nodes"]) } else { seen.node_table() })
    };
    if let Some(seconds) = args.watching.watch {
        return watch::every(seconds, global, look).await;
    }
    print!("{}", look().await?);
    Ok(exit::OK)
}

async fn scrub(args: &ScrubArgs, global: &Global) -> Result<u8, Exit> {
    let client = crate::profile::connect(global).await?;
    let before = client.status().await.map_err(Exit::from)?.repair.rebuilt;
    let result = client.scrub().await.map_err(Exit::from)?;
    let mut repaired = 0;
    if args.wait && result.bad + result.missing > 0 {
        // What was found has been reported; repair follows within a planner's round.
        let deadline = Instant::now() + Duration::from_secs(600);
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let status = client.status().await.map_err(Exit::from)?;
            repaired = status.repair.rebuilt.saturating_sub(before);
            let settled = status.under_target == 0 && status.repair.queued + status.repair.running == 0;
            if (settled && repaired >= result.bad + result.missing) || Instant::now() > deadline {
                break;
            }
        }
    }
    let topology = client.topology().await.map_err(Exit::from)?;
    if global.json {
        let named = |found: &NamedShard| {
            json!({
                "node": topology.name_of(found.node), "stripe": found.shard.stripe.to_string(),
                "shard": found.shard.index, "fault": if found.missing { "missing" } else { "bad" },
            })
        };
        let line = json!({
            "message_type": "summary", "shards": result.named.iter().map(named).collect::<Vec<_>>(), "shards_checked": result.checked, "bad": result.bad, "missing": result.missing, "repaired": repaired,
        });
        println!("{line}");
    } else {
        println!(
            "{} shards checked, {} bad, {} missing, {repaired} rebuilt",
            result.checked, result.bad, result.missing
        );
        for found in result.named.iter().take(SHARDS_SHOWN_MAX) {
            let what = if found.missing { "missing" } else { "bad" };
            let (stripe, node) = (found.shard.stripe.short(), topology.name_of(found.node));
            println!("  {what}: shard {} of stripe {stripe} on {node}", found.shard.index);
        }
        if result.named.len() > SHARDS_SHOWN_MAX {
            println!("  … and more; --json lists them");
        }
    }
    let open = (result.bad + result.missing).saturating_sub(repaired);
    Ok(if args.wait && open > 0 { exit::CHECK_FAILED } else { exit::OK })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_named_placed_and_addressed() {
        let node = parse_node("a1=aws/eu-west-1=a1.example.org:7400").unwrap();
        assert_eq!((node.name.as_str(), node.region.as_str()), ("a1", "aws/eu-west-1"));
        assert_eq!((node.listen.as_str(), node.advertise.as_str()), ("0.0.0.0:7400", "a1.example.org:7400"));
        for bad in ["a1", "a1=aws=h:1", "a1=aws/x=h", "a1=aws/x=:7", "=aws/x=h:7", "a1=aws/x=h:99999"] {
            assert!(parse_node(bad).is_err(), "{bad}");
        }
    }
}
