//! `farshore cluster audit`: who did what, and whether the record of it is whole. The chain is checked here, by the program
//! in the operator's hand, and not by the cluster that keeps it.

use crate::args::{AuditArgs, Global};
use crate::exit::{self, Exit};
use crate::print;
use crate::profile::connect;
use farshore_client::Client;
use farshore_client::api::Topology;
use farshore_core::catalogue::{Act, ActOutcome, Actor, AuditHead, AuditRecord, RepoAct, SomeSnapshots};
use farshore_core::id::NodeId;
use farshore_core::level::LEVEL_AUDIT;
use farshore_core::topology::Change;
use farshore_core::units::{Bytes, clock, parse_duration, rfc3339};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Records listed if nothing is said.
const LISTED: usize = 50;

/// Lists the records, or checks the chain.
pub async fn run(args: &AuditArgs, global: &Global) -> Result<u8, Exit> {
    let noted = args.head.as_deref().map(str::parse::<AuditHead>).transpose().map_err(Exit::failure)?;
    let client = connect(global).await?;
    if args.verify || noted.is_some() {
        verify(&client, noted, global).await
    } else {
        list(&client, args, global).await
    }
}

async fn verify(client: &Client, noted: Option<AuditHead>, global: &Global) -> Result<u8, Exit> {
    let checked = client.operator()?.check_audit(noted, drop).await?;
    let head = checked.map_err(|fault| {
        Exit::code(
            exit::CHECK_FAILED,
            format!("the audit chain is broken: {fault}; keep a copy of every node's data directory before anything else"),
        )
    })?;
    if global.json {
        let line = json!({
            "message_type": "audit_verified", "records": head.seq, "head": head.to_string(),
            "noted": noted.map(|noted| noted.to_string()),
        });
        println!("{line}");
    } else {
        println!("{} records, each bound to the one before it", head.seq);
        if let Some(noted) = noted {
            println!("record {} is the one that was noted", noted.seq);
        }
        println!("head {head}");
    }
    Ok(exit::OK)
}

async fn list(client: &Client, args: &AuditArgs, global: &Global) -> Result<u8, Exit> {
    let operator = client.operator()?;
    let since = args.since.as_deref().map(parse_duration).transpose().map_err(Exit::failure)?;
    let limit = args.limit.unwrap_or(if since.is_some() { usize::MAX } else { LISTED });
    let head = operator.audit(1, 1).await?;
    let after_ms = since.map(|since| head.catalogue_ms.saturating_sub(since.as_millis() as u64));
    // Records carry a time, but are found by their number: the newest few by counting back, older ones by reading on.
    let mut next = match after_ms {
        Some(_) => 1,
        None => (head.head.seq + 1).saturating_sub(limit as u64).max(1),
    };
    let mut shown = VecDeque::new();
    while next <= head.head.seq {
        let page = operator.audit(next, 0).await?;
        let Some((last, _)) = page.rows.last() else { break };
        next = last + 1;
        for (seq, stored) in &page.rows {
            let record = AuditRecord::open(*seq, stored);
            let record = record.map_err(|fault| Exit::code(exit::CHECK_FAILED, fault))?;
            if after_ms.is_none_or(|after| record.entry.time_ms >= after) {
                shown.push_back(record);
            }
            while shown.len() > limit {
                shown.pop_front();
            }
        }
    }
    let topology = client.topology().await?;
    for record in &shown {
        if global.json {
            println!("{}", as_json(record));
        } else {
            println!("{}", as_text(record, &topology));
        }
    }
    if shown.is_empty() && !global.json && !global.quiet {
        match head.feature_level {
            level if level < LEVEL_AUDIT => println!(
                "acts are recorded from feature level {LEVEL_AUDIT} on, and the cluster is at {level}; \
                 `farshore cluster status` says which nodes hold it back"
            ),
            _ => println!("nothing is recorded of that time"),
        }
    }
    Ok(exit::OK)
}

fn as_text(record: &AuditRecord, topology: &Topology) -> String {
    let entry = &record.entry;
    let actor = match &entry.actor {
        Actor::Node(id) => format!("node {}", topology.name_of(*id)),
        client @ Actor::Client(_) => client.to_string(),
    };
    let what = text_of(&entry.act, topology);
    let (time, word) = (print::time(entry.time_ms), entry.act.word());
    format!("{:>6}  {time}  {actor:<18}  {word:<18}  {what}{}", entry.seq, outcome_text(&entry.outcome))
}

fn text_of(act: &Act, topology: &Topology) -> String {
    let name = |node: &NodeId| topology.name_of(*node);
    let changes = |epoch: &u64, changes: &[Change]| {
        let each: Vec<String> = changes.iter().map(|c| format!("{} {}", c.word(), name(&c.node()))).collect();
        format!("at epoch {epoch}: {}", if each.is_empty() { "nothing".into() } else { each.join(", ") })
    };
    match act {
        Act::RaiseLevel { from, to } => format!("from {from} to {to}"),
        Act::CreateRepository { name, repo } => format!("{name} ({repo})"),
        Act::PlaceNode { name, region, zone, capacity, .. } => {
            let zone = zone.as_ref().map_or_else(String::new, |zone| format!(" zone {zone}"));
            format!("{name} in {region}{zone}, {}", Bytes(*capacity))
        }
        Act::SetNodeState { node, from, to } => {
            format!("{} from {} to {}", name(node), from.word(), to.word())
        }
        Act::StageTopology { epoch, changes: list } | Act::ChangeTopology { epoch, changes: list } => {
            changes(epoch, list)
        }
        Act::ChangeRepository { name, act, .. } => format!("{name}: {}", repo_text(act)),
        Act::BeginEra { era, node } => format!("{era}, from the replica of {} alone", name(node)),
        Act::Migrate { epoch, from, to, cold } => {
            let how = if *cold { "cold" } else { "hot" };
            format!("from {from} to {to}, {how}, at epoch {epoch}")
        }
        Act::EndMigration { epoch, from, keep } => {
            let how = if *keep { "its nodes are kept" } else { "done" };
            format!("of {from}, {how}, at epoch {epoch}")
        }
        Act::SetUpkeep { scrub_paused, links } => {
            let scrub = if *scrub_paused { "paused" } else { "on" };
            format!("scrub {scrub}, limits for {links} links")
        }
    }
}

fn repo_text(act: &RepoAct) -> String {
    let bypassing = |bypass: &bool| if *bypass { ", governance bypassed" } else { "" };
    match act {
        RepoAct::Forget { snapshots, bypass } => format!("{}{}", some_text(snapshots), bypassing(bypass)),
        RepoAct::Undelete { snapshots } => some_text(snapshots),
        RepoAct::Purge { snapshots, early } => {
            format!("{}{}", some_text(snapshots), if *early { ", before their time" } else { "" })
        }
        RepoAct::LockSnapshot { snapshot, lock, bypass } => {
            let (mode, until) = (lock.mode.word(), rfc3339(lock.until_ms));
            format!("{} in {mode} mode until {until}{}", snapshot.short(), bypassing(bypass))
        }
        RepoAct::Lock { lock: Some(lock), bypass } => {
            let (mode, time) = (lock.mode.word(), clock(lock.for_ms / 1_000));
            format!("all snapshots in {mode} mode for {time} from their commit on{}", bypassing(bypass))
        }
        RepoAct::Lock { lock: None, bypass } => format!("lifted{}", bypassing(bypass)),
        RepoAct::SetTrash { trash_ms: Some(ms) } => format!("kept for {}", clock(ms / 1_000)),
        RepoAct::SetTrash { trash_ms: None } => "kept for the default time".into(),
        RepoAct::SetRetention { policy: Some(policy) } => policy.clone(),
        RepoAct::SetRetention { policy: None } => "none".into(),
        RepoAct::SetPolicy { policy, scheme } => format!("survive {policy}, coded {scheme}"),
        RepoAct::SetKeySlots { was, now, .. } if was == now => {
            format!("{now} key slots, some of them written anew")
        }
        RepoAct::SetKeySlots { was, now, .. } => format!("{now} key slots instead of {was}"),
        RepoAct::Describe { snapshot, .. } => format!("{} described anew", snapshot.short()),
    }
}

fn some_text(snapshots: &SomeSnapshots) -> String {
    let named: Vec<String> = snapshots.first.iter().map(|id| id.short()).collect();
    let more = snapshots.count.saturating_sub(named.len() as u32);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", named.join(", "))
}

fn outcome_text(outcome: &ActOutcome) -> String {
    match outcome {
        ActOutcome::Done => String::new(),
        ActOutcome::Changed { count } => format!("  [{count} changed]"),
        ActOutcome::Locked { snapshot, mode, until_ms } => {
            let until = rfc3339(*until_ms);
            format!("  REFUSED: {} is locked in {} mode until {until}", snapshot.short(), mode.word())
        }
        ActOutcome::LockKept { mode } => format!("  REFUSED: the lock in {} mode stays", mode.word()),
    }
}

fn as_json(record: &AuditRecord) -> Value {
    let entry = &record.entry;
    let actor = match &entry.actor {
        Actor::Node(id) => json!({"node": id.to_string()}),
        Actor::Client(name) => json!({"client": name.as_str()}),
    };
    let outcome = match &entry.outcome {
        ActOutcome::Done => json!({"result": "done"}),
        ActOutcome::Changed { count } => json!({"result": "changed", "count": count}),
        ActOutcome::Locked { snapshot, mode, until_ms } => json!({
            "result": "locked", "snapshot": snapshot.to_string(), "mode": mode.word(), "until": rfc3339(*until_ms),
        }),
        ActOutcome::LockKept { mode } => json!({"result": "lock-kept", "mode": mode.word()}),
    };
    json!({
        "message_type": "audit_record", "seq": entry.seq, "time": rfc3339(entry.time_ms), "log_index": entry.index,
        "actor": actor, "act": entry.act.word(), "details": details(&entry.act), "outcome": outcome,
        "previous": record.previous.to_string(), "hash": record.hash.to_string(),
    })
}

fn details(act: &Act) -> Value {
    let changes = |epoch: &u64, changes: &[Change]| {
        let each: Vec<Value> =
            changes.iter().map(|c| json!({"change": c.word(), "node": c.node().to_string()})).collect();
        json!({"epoch": epoch, "changes": each})
    };
    match act {
        Act::RaiseLevel { from, to } => json!({"from": from, "to": to}),
        Act::CreateRepository { repo, name } => json!({"repo": repo.to_string(), "name": name.as_str()}),
        Act::PlaceNode { node, name, region, zone, capacity } => json!({
            "node": node.to_string(), "name": name.as_str(), "region": region.as_str(),
            "zone": zone.as_ref().map(|zone| zone.as_str()), "capacity": capacity,
        }),
        Act::SetNodeState { node, from, to } => {
            json!({"node": node.to_string(), "from": from.word(), "to": to.word()})
        }
        Act::StageTopology { epoch, changes: list } | Act::ChangeTopology { epoch, changes: list } => {
            changes(epoch, list)
        }
        Act::ChangeRepository { repo, name, act } => {
            json!({"repo": repo.to_string(), "name": name.as_str(), "change": repo_details(act)})
        }
        Act::BeginEra { era, node } => json!({"era": era, "node": node.to_string()}),
        Act::Migrate { epoch, from, to, cold } => {
            json!({"epoch": epoch, "from": from.as_str(), "to": to.as_str(), "cold": cold})
        }
        Act::EndMigration { epoch, from, keep } => {
            json!({"epoch": epoch, "from": from.as_str(), "keep": keep})
        }
        Act::SetUpkeep { scrub_paused, links } => json!({"scrub_paused": scrub_paused, "links": links}),
    }
}

fn repo_details(act: &RepoAct) -> Value {
    let some = |snapshots: &SomeSnapshots| {
        let first: Vec<String> = snapshots.first.iter().map(ToString::to_string).collect();
        json!({"count": snapshots.count, "first": first, "hash": snapshots.hash.to_string()})
    };
    match act {
        RepoAct::Forget { snapshots, bypass } => json!({"snapshots": some(snapshots), "bypass": bypass}),
        RepoAct::Undelete { snapshots } => json!({"snapshots": some(snapshots)}),
        RepoAct::Purge { snapshots, early } => json!({"snapshots": some(snapshots), "early": early}),
        RepoAct::LockSnapshot { snapshot, lock, bypass } => json!({
            "snapshot": snapshot.to_string(), "mode": lock.mode.word(), "until": rfc3339(lock.until_ms), "bypass": bypass,
        }),
        RepoAct::Lock { lock, bypass } => json!({
            "mode": lock.map(|lock| lock.mode.word()), "seconds": lock.map(|lock| lock.for_ms / 1_000), "bypass": bypass,
        }),
        RepoAct::SetTrash { trash_ms } => json!({"seconds": trash_ms.map(|ms| ms / 1_000)}),
        RepoAct::SetRetention { policy } => json!({"policy": policy}),
        RepoAct::SetPolicy { policy, scheme } => json!({
            "survive": policy.to_string(), "k": scheme.k(), "m": scheme.m(), "spread": scheme.spread(),
        }),
        RepoAct::SetKeySlots { was, now, before, after } => json!({
            "was": was, "now": now, "before": before.to_string(), "after": after.to_string(),
        }),
        RepoAct::Describe { snapshot, before, after } => json!({
            "snapshot": snapshot.to_string(), "before": before.to_string(), "after": after.to_string(),
        }),
    }
}
