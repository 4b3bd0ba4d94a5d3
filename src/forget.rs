//! `farshore forget` and `undelete`: what a retention policy drops and why, and the way back out of the trash. Words,
//! order and JSON fields are restic's.

use crate::args::{ForgetArgs, Global, UndeleteArgs};
use crate::exit::{self, Exit};
use crate::print::{self, shown};
use crate::profile;
use crate::prune;
use crate::repository::{filter, snapshot_json};
use farshore_client::Repository;
use farshore_client::list::{self, Filter, Snapshot};
use farshore_client::retention::{ForgetPlan, GroupPlan, Keep};
use farshore_core::id::SnapshotId;
use farshore_core::retention::{Policy, Reason, Verdict};
use farshore_core::units::rfc3339;
use serde_json::{Value, json};

/// `farshore forget`.
pub async fn forget(args: ForgetArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let mut keep = keep(&args)?;
    if args.show_policy {
        return show_policy(&repository, global).await;
    }
    if args.unset_policy {
        repository.store_policy(None).await?;
        say(global, "no policy runs by itself any more");
        return Ok(exit::OK);
    }
    if args.set_policy {
        return set_policy(&repository, &keep, global).await;
    }
    if args.use_policy {
        let stored = repository.stored_policy().await?;
        keep.policy = stored.ok_or_else(|| {
            Exit::failure("the repository has no policy; store one with forget --keep-… --set-policy")
        })?;
    }
    let filter = filter(args.filter.clone().into())?;
    if !args.snapshots.is_empty() {
        return forget_these(&repository, &args, &filter, global).await;
    }
    let remove_all = remove_all(&args, &keep, &filter)?;
    let mut plan = repository.plan_forget(&keep, &filter).await?;
    if remove_all {
        drop_all(&mut plan);
    } else if let Some(group) = plan.groups.iter().find(|group| group.emptied)
        && !args.unsafe_allow_remove_all
    {
        return Err(Exit::failure(format!(
            "refusing to delete the last snapshot of the group {}; nothing was removed; add --unsafe-allow-remove-all if it is meant",
            group.key
        )));
    }
    let removed = plan.removed();
    if global.json {
        let groups: Vec<Value> = plan.groups.iter().map(|group| group_json(&plan, group)).collect();
        println!("{}", Value::from(groups));
    } else if !global.quiet {
        if !remove_all {
            println!("Applying Policy: {}", plan.words());
        }
        plan.groups.iter().for_each(|group| print_group(&plan, group, &args));
    }
    remove(&repository, &removed, &args, global).await
}

/// What the flags say.
fn keep(args: &ForgetArgs) -> Result<Keep, Exit> {
    let policy = Policy {
        keep_last: args.keep_last,
        keep_hourly: args.keep_hourly,
        keep_daily: args.keep_daily,
        keep_weekly: args.keep_weekly,
        keep_monthly: args.keep_monthly,
        keep_yearly: args.keep_yearly,
        keep_within: args.keep_within,
        keep_within_hourly: args.keep_within_hourly,
        keep_within_daily: args.keep_within_daily,
        keep_within_weekly: args.keep_within_weekly,
        keep_within_monthly: args.keep_within_monthly,
        keep_within_yearly: args.keep_within_yearly,
        keep_tags: vec![],
    };
    let tags = args.keep_tag.iter().map(|list| list.split(',').map(|tag| tag.trim().to_owned()).collect());
    let group_by = args.group_by.parse().map_err(|e| Exit::failure(format!("--group-by: {e}")))?;
    Ok(Keep { policy, tags: tags.collect(), group_by, bypass: args.bypass_governance })
}

/// Whether an empty policy means everything; refused where that is not said expressly.
fn remove_all(args: &ForgetArgs, keep: &Keep, filter: &Filter) -> Result<bool, Exit> {
    if !keep.policy.is_empty() || !keep.tags.is_empty() {
        return Ok(false);
    }
    if !args.unsafe_allow_remove_all {
        return Err(Exit::failure(
            "no policy was specified, no snapshots will be removed; give --keep-last N or another --keep-…, or snapshot ids",
        ));
    }
    if *filter == Filter::default() {
        return Err(Exit::failure(
            "--unsafe-allow-remove-all needs a policy, or --host, --tag or --path that say which; nothing was removed",
        ));
    }
    Ok(true)
}

/// Everything goes but what is locked, which nobody can remove.
fn drop_all(plan: &mut ForgetPlan) {
    for (_, verdict) in plan.groups.iter_mut().flat_map(|group| &mut group.rows) {
        verdict.reasons.retain(|reason| matches!(reason, Reason::Locked { .. }));
    }
}

async fn forget_these(
    repository: &Repository,
    args: &ForgetArgs,
    filter: &Filter,
    global: &Global,
) -> Result<u8, Exit> {
    let all = repository.snapshots(filter).await?;
    let chosen = args.snapshots.iter().map(|name| list::pick(&all, name));
    let chosen: Vec<&Snapshot> = chosen.collect::<Result<_, _>>()?;
    if global.json {
        let remove: Vec<Value> = chosen.iter().map(|s| snapshot_json(s)).collect();
        let group =
            json!({"tags": null, "host": "", "paths": null, "keep": [], "remove": remove, "reasons": []});
        println!("{}", Value::from(vec![group]));
    }
    let mut ids: Vec<SnapshotId> = chosen.iter().map(|s| s.id).collect();
    ids.sort();
    ids.dedup();
    remove(repository, &ids, args, global).await
}

/// Removes, says what became of it, and prunes if that was asked for.
async fn remove(
    repository: &Repository,
    ids: &[SnapshotId],
    args: &ForgetArgs,
    global: &Global,
) -> Result<u8, Exit> {
    let short: Vec<String> = ids.iter().map(SnapshotId::short).collect();
    if ids.is_empty() {
        say(global, "no snapshots were removed");
        return Ok(exit::OK);
    }
    if args.dry_run {
        say(global, &format!("Would have removed the following snapshots:\n{{{}}}", short.join(" ")));
    } else {
        let count = repository.forget(ids, args.bypass_governance).await?;
        if args.purge {
            repository.purge(ids, true).await?;
            say(global, &format!("{count} snapshots removed for good"));
        } else {
            let days = repository.settings().await?.0.trash_ms() / 86_400_000;
            say(
                global,
                &format!(
                    "{count} snapshots moved to the trash, for good in {days} days; farshore undelete brings them back"
                ),
            );
        }
    }
    if args.prune {
        prune::now(repository, args.dry_run, global).await?;
    }
    Ok(exit::OK)
}

fn say(global: &Global, text: &str) {
    if !global.json && !global.quiet {
        println!("{text}");
    }
}

async fn set_policy(repository: &Repository, keep: &Keep, global: &Global) -> Result<u8, Exit> {
    if keep.policy.is_empty() && keep.tags.is_empty() {
        return Err(Exit::failure("which policy? give --keep-last N or another --keep-… with --set-policy"));
    }
    if keep.group_by != Default::default() {
        return Err(Exit::failure("a stored policy looks at groups of host and paths; leave --group-by out"));
    }
    repository.store_policy(Some(keep)).await?;
    show_policy(repository, global).await
}

async fn show_policy(repository: &Repository, global: &Global) -> Result<u8, Exit> {
    let stored = repository.stored_policy().await?;
    // Judging nothing gives the names of its tags.
    let keep = Keep { policy: stored.clone().unwrap_or_default(), ..Keep::default() };
    let words = repository.plan_forget(&keep, &Filter::default()).await?.words();
    if global.json {
        let text = stored.map(|policy| policy.to_string());
        println!("{}", json!({"message_type": "retention_policy", "policy": text, "text": words}));
    } else if stored.is_some() {
        println!("{words}; this runs by itself");
    } else {
        println!("the repository has no policy: nothing is forgotten by itself");
    }
    Ok(exit::OK)
}

fn when(verdict: &Verdict) -> String {
    let end = verdict.end();
    match (end.ends, end.by_newer, end.not_before_ms) {
        (false, ..) => "stays while the policy does".into(),
        (true, false, Some(ms)) => format!("goes after {}", rfc3339(ms)),
        (true, true, Some(ms)) => format!("goes for a newer one, not before {}", rfc3339(ms)),
        (true, _, None) => "goes for a newer one".into(),
    }
}

fn group_json(plan: &ForgetPlan, group: &GroupPlan) -> Value {
    let list = |kept: bool| -> Vec<Value> {
        group.rows.iter().filter(|(_, v)| v.kept() == kept).map(|(s, _)| snapshot_json(s)).collect()
    };
    let suspicion = |v: &Verdict| v.suspicion.map(|suspicion| suspicion.to_string());
    let reasons: Vec<Value> = group
        .rows
        .iter()
        .filter(|(_, verdict)| verdict.kept())
        .map(|(snapshot, verdict)| {
            let until: Vec<String> = verdict.reasons.iter().map(Reason::until).collect();
            let end = verdict.end();
            json!({
                "snapshot": snapshot_json(snapshot), "matches": plan.reasons(verdict), "until": until,
                "ends": end.ends, "by_newer": end.by_newer, "not_before": end.not_before_ms.map(rfc3339),
                "suspicion": suspicion(verdict),
            })
        })
        .collect();
    let odd = group.rows.iter().filter_map(|(s, v)| Some((s, suspicion(v)?)));
    let suspects: Vec<Value> =
        odd.map(|(s, why)| json!({"id": s.id.to_string(), "short_id": s.id.short(), "why": why})).collect();
    json!({
        "tags": group.key.tags, "host": group.key.host.clone().unwrap_or_default(),
        "paths": group.key.paths.as_ref().map(|all| all.iter().map(|p| shown(p)).collect::<Vec<_>>()),
        "keep": list(true), "remove": list(false), "reasons": reasons, "suspects": suspects,
    })
}

fn print_group(plan: &ForgetPlan, group: &GroupPlan, args: &ForgetArgs) {
    println!("snapshots for ({}):\n", group.key);
    for (kept, verb) in [(true, "keep"), (false, "remove")] {
        let rows: Vec<_> = group.rows.iter().filter(|(_, verdict)| verdict.kept() == kept).collect();
        if rows.is_empty() {
            continue;
        }
        println!("{verb} {} snapshots:", rows.len());
        println!("{:<10} {:<20} {:<16} {:<12} {:<28} Paths", "ID", "Time (UTC)", "Host", "Tags", "Reasons");
        for (snapshot, verdict) in rows {
            print_row(plan, snapshot, verdict, args);
        }
        println!();
    }
    for (snapshot, verdict) in &group.rows {
        if let Some(why) = verdict.suspicion {
            println!("suspect: snapshot {}: {why}; it uses up no count", snapshot.id.short());
        }
    }
}

/// One snapshot: a line for each reason and each path, side by side; what each reason waits for below them.
fn print_row(plan: &ForgetPlan, s: &Snapshot, verdict: &Verdict, args: &ForgetArgs) {
    let (id, time, host) = (s.id.short(), print::time(s.committed_ms), s.info.host.as_str());
    let (tags, reasons) = (s.info.tags.join(","), plan.reasons(verdict));
    let paths: Vec<String> = s.info.paths.iter().map(|p| shown(p)).collect();
    if args.compact {
        println!("{id:<10} {time:<20} {host:<16} {tags:<12} {}", reasons.join(", "));
    } else {
        for line in 0..reasons.len().max(paths.len()).max(1) {
            let first = |text: &str| if line == 0 { text.to_owned() } else { String::new() };
            let (id, time, host, tags) = (first(&id), first(&time), first(host), first(&tags));
            let part = |list: &[String]| list.get(line).cloned().unwrap_or_default();
            let (reason, path) = (part(&reasons), part(&paths));
            println!(
                "{}",
                format!("{id:<10} {time:<20} {host:<16} {tags:<12} {reason:<28} {path}").trim_end()
            );
        }
    }
    if args.explain {
        for (reason, words) in verdict.reasons.iter().zip(&reasons) {
            println!("           {words}: until {}", reason.until());
        }
        println!("           {}", if verdict.kept() { when(verdict) } else { "no rule keeps it".into() });
    }
}

/// `farshore undelete`.
pub async fn undelete(args: UndeleteArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let trash = repository.trash(&Filter::default()).await?;
    if args.snapshots.is_empty() {
        return show_trash(&repository, &trash, global).await;
    }
    let ids = args.snapshots.iter().map(|name| Ok(list::pick(&trash, name)?.id));
    let ids: Vec<SnapshotId> = ids.collect::<Result<_, Exit>>()?;
    let count = repository.undelete(&ids).await?;
    if global.json {
        println!("{}", json!({"message_type": "summary", "undeleted": count}));
    } else {
        say(global, &format!("{count} snapshots are back"));
    }
    Ok(exit::OK)
}

async fn show_trash(repository: &Repository, trash: &[Snapshot], global: &Global) -> Result<u8, Exit> {
    let trash_ms = repository.settings().await?.0.trash_ms();
    let gone = |s: &Snapshot| s.marks.forgotten_ms.unwrap_or_default().saturating_add(trash_ms);
    if global.json {
        let row = |s: &Snapshot| {
            let mut value = snapshot_json(s);
            value["forgotten"] = s.marks.forgotten_ms.map(rfc3339).into();
            value["gone_after"] = rfc3339(gone(s)).into();
            value
        };
        println!("{}", Value::from(trash.iter().map(row).collect::<Vec<_>>()));
        return Ok(exit::OK);
    }
    println!("{:<10} {:<20} {:<20} {:<16} Paths", "ID", "Time (UTC)", "For good after", "Host");
    for s in trash {
        let paths: Vec<String> = s.info.paths.iter().map(|p| shown(p)).collect();
        let (time, gone) = (print::time(s.info.time_ms), print::time(gone(s)));
        println!("{:<10} {time:<20} {gone:<20} {:<16} {}", s.id.short(), s.info.host, paths.join(" "));
    }
    println!("{} snapshots in the trash", trash.len());
    Ok(exit::OK)
}
