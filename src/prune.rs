//! `farshore prune`: collects garbage now instead of soon, and says what there is and why some of it must wait.

use crate::args::{Global, PruneArgs};
use crate::exit::{self, Exit};
use crate::profile;
use farshore_client::Repository;
use farshore_client::api::GarbageReport;
use farshore_core::units::Bytes;
use serde_json::{Value, json};

/// `farshore prune`.
pub async fn run(args: PruneArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    now(&repository, args.dry_run, global).await?;
    Ok(exit::OK)
}

/// Collects what can be collected at once, or only looks, and prints the report.
pub async fn now(repository: &Repository, dry_run: bool, global: &Global) -> Result<(), Exit> {
    let report = repository.prune(dry_run).await?;
    if global.json {
        println!("{}", report_json(&report, dry_run));
    } else if !global.quiet {
        print!("{}", report_text(&report, dry_run));
    }
    Ok(())
}

fn report_json(r: &GarbageReport, dry_run: bool) -> Value {
    json!({
        "message_type": "summary", "dry_run": dry_run, "packs": r.packs, "bytes": r.bytes,
        "dead": r.dead, "dead_bytes": r.dead_bytes, "condemned": r.condemned,
        "condemned_bytes": r.condemned_bytes, "waiting": r.waiting, "in_use": r.in_use,
        "in_use_bytes": r.in_use_bytes, "sparse": r.sparse, "sparse_bytes": r.sparse_bytes,
        "recode": r.recode, "recode_bytes": r.recode_bytes,
        "sessions": r.sessions, "trash": r.trash, "dropped": r.dropped, "dropped_bytes": r.dropped_bytes,
        "unswept": r.unswept,
    })
}

fn report_text(r: &GarbageReport, dry_run: bool) -> String {
    let mut out = format!("{} packs, {}\n", r.packs, Bytes(r.bytes));
    let mut line = |count: u64, text: String| {
        if count > 0 {
            out += &text;
            out.push('\n');
        }
    };
    line(r.dead, format!("{} packs that nothing needs, {}", r.dead, Bytes(r.dead_bytes)));
    let condemned = format!("{} packs condemned, {}", r.condemned, Bytes(r.condemned_bytes));
    line(r.condemned, condemned);
    line(r.waiting, format!("  {} of them wait for {} open sessions", r.waiting, r.sessions));
    line(r.in_use, format!("{} packs of sessions that are open, {}", r.in_use, Bytes(r.in_use_bytes)));
    line(r.sparse, format!("{} packs mostly garbage, {} of it", r.sparse, Bytes(r.sparse_bytes)));
    line(r.trash, format!("{} snapshots in the trash still need what is theirs", r.trash));
    line(r.unswept, format!("{} copies of shards that their nodes have yet to delete", r.unswept));
    if dry_run {
        line(1, "nothing was removed: --dry-run".into());
    } else {
        line(1, format!("{} packs removed, {}", r.dropped, Bytes(r.dropped_bytes)));
    }
    out
}
