//! The worst day: exports of the catalogue, its rebuilding from the shards of stopped nodes, and the commands that have a
//! single node go on alone or learn anew. Everything that cannot be undone wants the cluster's id typed.

use crate::args::{Global, NodeRunArgs, RebuildArgs, RecoverQuorumArgs, RejoinArgs};
use crate::exit::{self, Exit};
use crate::node::{Prepared, prepare, stop_signal};
use crate::print::ago;
use farshore_client::session::Recovery;
use farshore_client::session::recovery::{Found, Order};
use farshore_core::host::{WallClock, real};
use farshore_node::rescue::{self, Rescue};
use farshore_proto::wire::RebuildResult;
use serde_json::json;
use std::path::{Path, PathBuf};

/// `farshore cluster export`.
pub async fn export(global: &Global) -> Result<u8, Exit> {
    let client = crate::profile::connect(global).await?;
    let made = client.export_catalogue().await?;
    if global.json {
        let line = json!({
            "message_type": "summary", "export": farshore_core::id::hex(&made.id), "log_entry": made.to,
            "bytes": made.bytes, "parts": made.parts, "k": made.k, "n": made.n,
        });
        println!("{line}");
    } else {
        println!(
            "catalogue exported up to log entry {}: {} bytes in {} parts, each readable from any {} of {} shards",
            made.to, made.bytes, made.parts, made.k, made.n
        );
    }
    Ok(exit::OK)
}

/// `farshore cluster rebuild-catalogue`.
pub async fn rebuild(args: &RebuildArgs, global: &Global) -> Result<u8, Exit> {
    let profile = crate::profile::read_profile(global)?;
    let cluster = profile.cluster.to_string();
    if let Some(typed) = &args.yes_i_lost_the_catalogue
        && *typed != cluster
    {
        return Err(Exit::failure(format!(
            "{typed} is not the id of the cluster in this profile; nothing was done"
        )));
    }
    let recovery = Recovery::new(&real::client_host(), &profile)?;
    let asked = recovery.standing().await;
    let found: Vec<Found> = asked.iter().filter_map(|(_, answer)| answer.clone().ok()).collect();
    if !global.json {
        print_standing(&asked);
    }
    // A node that has begun to rebuild, or has done it, comes before any other: there must not be two of them.
    let first = |found: &&Found| (!found.standing.rebuilding, found.standing.name.clone());
    let Some(at) = found.iter().min_by_key(first) else {
        return Err(Exit::code(
            exit::UNAVAILABLE,
            "no node is under recovery: stop all nodes and start `farshore node recover --config FILE` on each",
        ));
    };
    let confirm = args.yes_i_lost_the_catalogue.is_some();
    let tell = |doing: &str| {
        if !global.json && !global.quiet {
            eprintln!("{}: {doing}", at.standing.name);
        }
    };
    let order = Order { confirm, accept_less: args.accept_less };
    let result = recovery.rebuild(at, &found, order, tell).await?;
    print_result(&result, global, &at.standing.name);
    if !confirm && result.done {
        return Err(Exit::failure(format!(
            "this was done before; to end the recovery of all nodes, run this again with --yes-i-lost-the-catalogue {cluster}"
        )));
    }
    if !confirm {
        return Err(Exit::failure(format!(
            "nothing was changed; to make this the catalogue, and to give up whatever came after it, run this again with \
             --yes-i-lost-the-catalogue {cluster}"
        )));
    }
    finish(&recovery, at, &found).await?;
    if !global.json {
        println!(
            "Start all nodes as usual, {} among them; the others learn the catalogue from it.",
            at.standing.name
        );
    }
    Ok(exit::OK)
}

/// Ends the recovery of all nodes. The one that has the catalogue comes last: as long as it waits, whoever runs the command
/// again is told what was done, and no other node is asked to do it a second time.
async fn finish(recovery: &Recovery, at: &Found, found: &[Found]) -> Result<(), Exit> {
    let name = &at.standing.name;
    let mut failed = Vec::new();
    for node in found.iter().filter(|node| node.node() != at.node()) {
        if let Err(why) = recovery.finish(node).await {
            failed.push(format!("{}: {why}", node.standing.name));
        }
    }
    if !failed.is_empty() {
        return Err(Exit::failure(format!(
            "the catalogue is rebuilt on {name}, which waits, but some nodes are not ready to start: {}. Put that right and \
             run this again, or stop {name} and start it as usual",
            failed.join("; ")
        )));
    }
    let last = recovery.finish(at).await;
    last.map_err(|why| {
        Exit::failure(format!("the catalogue is rebuilt on {name}, which does not end: {why}"))
    })
}

fn print_standing(asked: &[(String, Result<Found, String>)]) {
    for (addr, answer) in asked {
        match answer {
            Ok(found) => println!(
                "{:<12} {:<20} {:<22} {} shards; replica: {}",
                found.standing.name,
                found.standing.region,
                addr,
                found.standing.shards,
                found.standing.replica
            ),
            Err(why) => println!("{:<12} {:<20} {addr:<22} not under recovery: {why}", "-", "-"),
        }
    }
}

fn print_result(result: &RebuildResult, global: &Global, at: &str) {
    if global.json {
        let line = json!({
            "message_type": "summary", "done": result.done, "node": at, "base_log_entry": result.base_to,
            "log_entry": result.to, "catalogue_ms": result.catalogue_ms, "increments": result.increments,
            "snapshots": result.snapshots, "packs": result.packs, "repositories": result.repos, "era": result.era,
            "silent": result.silent, "passed_over": result.passed_over,
            "unknown_packs": result.unknown_packs, "adopted_packs": result.adopted_packs,
            "moved_shards": result.moved_shards,
        });
        return println!("{line}");
    }
    let age = |ms: u64| ago(real::SystemClock.now_ms().saturating_sub(ms));
    let verb = if result.done { "Rebuilt" } else { "Found" };
    println!(
        "{verb}: the catalogue up to log entry {}, last changed {} (base up to entry {}, {} increments): {} snapshots, {} packs.",
        result.to,
        age(result.catalogue_ms),
        result.base_to,
        result.increments,
        result.snapshots,
        result.packs
    );
    println!(
        "Lost: whatever was committed after that. Data that was sent since is sent again by the next backup."
    );
    for silent in &result.silent {
        println!("Not reached: {silent}");
    }
    for passed in &result.passed_over {
        println!("Not usable: {passed}");
    }
    if result.unknown_packs > 0 {
        println!(
            "Packs sent after the last export: {} found, {} taken in.",
            result.unknown_packs, result.adopted_packs
        );
    }
    if result.moved_shards > 0 {
        println!(
            "Shards that lie elsewhere than the export says: {}, recorded where they are.",
            result.moved_shards
        );
    }
}

/// `farshore node recover`.
pub async fn serve_shards(args: NodeRunArgs) -> Result<u8, Exit> {
    let Prepared { host, config, credentials, .. } = prepare(&args.config).await?;
    let node = Rescue::start(host, config, credentials).await.map_err(Exit::failure)?;
    tokio::select! {
        biased;
        result = stop_signal() => result?,
        () = node.finished() => {}
    }
    node.stop().await;
    Ok(exit::OK)
}

/// `farshore node recover-quorum`.
pub async fn recover_quorum(args: RecoverQuorumArgs) -> Result<u8, Exit> {
    let Prepared { host, config, credentials, .. } = prepare(&args.config).await?;
    let name = config.name.clone();
    let confirmed = args.i_have_lost_the_other_voters.as_deref();
    let (found, era) =
        rescue::recover_quorum(host, config, credentials, confirmed).await.map_err(Exit::failure)?;
    println!(
        "{name} goes on alone from log entry {} of term {}, in era {era}. Start it as usual; on every other node that is \
         left run `farshore node rejoin`, then start it too.",
        found.last_index, found.last_term
    );
    Ok(exit::OK)
}

/// `farshore node rejoin`.
pub async fn rejoin(args: RejoinArgs) -> Result<u8, Exit> {
    let Prepared { host, config, credentials, .. } = prepare(&args.config).await?;
    let dir = config.data_dir.clone();
    let confirmed = args.i_give_up_this_replica.as_deref();
    let given_up = rescue::may_rejoin(host.clone(), config, credentials, confirmed);
    let given_up = given_up.await.map_err(Exit::failure)?;
    let mut kept = Vec::new();
    for name in ["catalogue", "raft"] {
        kept.extend(move_away(&dir, name)?);
    }
    rescue::forget(&host).await.map_err(|e| Exit::failure(format!("{}: {e}", dir.display())))?;
    println!("Given up: {given_up}.");
    for path in kept {
        println!("Kept for you as {}; delete it once the node is up to date.", path.display());
    }
    println!("Start the node as usual; it learns the catalogue from the others and keeps its shards.");
    Ok(exit::OK)
}

/// Gives a directory a name that nothing uses; `None` if it is not there.
fn move_away(dir: &Path, name: &str) -> Result<Option<PathBuf>, Exit> {
    let from = dir.join(name);
    if !from.exists() {
        return Ok(None);
    }
    let to = dir.join(format!("{name}.given-up-{}", real::SystemClock.now_ms()));
    let moved = std::fs::rename(&from, &to).and_then(|()| std::fs::File::open(dir)?.sync_all());
    moved.map_err(|e| Exit::failure(format!("cannot move {} away: {e}", from.display())))?;
    Ok(Some(to))
}
