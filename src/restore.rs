//! `farshore restore`: a snapshot, or a part of it, into a directory.

use crate::args::{Global, Replace, RestoreArgs, Which};
use crate::exit::{self, Exit};
use crate::paths;
use crate::print::Meter;
use crate::profile;
use crate::repository::{filter, interruptible};
use farshore_client::files::{How, RealTarget};
use farshore_client::list::Snapshot;
use farshore_client::pattern::{Case, Pattern};
use farshore_client::restore::{Options, Overwrite, Select, Summary, Verified};
use farshore_client::{Client, Repository};
use farshore_core::catalogue::Upkeep;
use farshore_core::topology::Region;
use farshore_core::units::{Bytes, clock};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

/// `farshore restore`.
pub async fn run(args: RestoreArgs, global: &Global) -> Result<u8, Exit> {
    let overwrite = match args.overwrite {
        // A file has its name only when it is whole, so that the time a restore gave it proves it.
        None if args.resume => Overwrite::IfChanged,
        None | Some(Replace::Always) => Overwrite::Always,
        Some(Replace::IfChanged) => Overwrite::IfChanged,
        Some(Replace::IfNewer) => Overwrite::IfNewer,
        Some(Replace::Never) => Overwrite::Never,
    };
    if args.verify && matches!(overwrite, Overwrite::IfNewer | Overwrite::Never) {
        return Err(Exit::failure(
            "--verify goes with --overwrite always and if-changed: what is left as it is may differ from the snapshot",
        ));
    }
    let select = select(&args.which)?;
    let repository = open(&args, global).await?;
    let (snapshot, root) = repository.resolve(args.snapshot.as_bytes(), &filter(args.filter)?).await?;
    let dry_run = args.dry_run;
    let (resume, delete) = (args.resume, args.delete);
    let options = Options { root, select, overwrite, resume, delete, dry_run, ..Options::default() };
    let how =
        How { sparse: args.sparse, keep_begun: resume && !dry_run, owners_by_name: args.ownership_by_name };
    let target = RealTarget::open(repository.host(), &args.target, how)
        .await
        .map_err(|e| Exit::failure(format!("cannot use {}: {e}", args.target.display())))?;
    let meter = Arc::new(Meter::new(global, "restore"));
    let work = async {
        let summary = repository.restore(&snapshot, &options, &target, &*meter).await?;
        let verified = match args.verify && !dry_run {
            true => Some(repository.verify(&snapshot, &options, &target, &*meter).await?),
            false => None,
        };
        Ok((summary, verified))
    };
    let result = interruptible(work).await;
    meter.finish();
    let (summary, verified) = result?;
    let sources = if dry_run { sources(repository.client(), &summary, global).await? } else { Vec::new() };
    if global.json {
        println!("{}", summary_json(&summary, verified, &snapshot, &sources, &meter, dry_run));
    } else if !global.quiet {
        print!("{}", summary_text(&summary, verified, &snapshot, &sources, &meter, dry_run));
    }
    match verified {
        Some(Verified { wrong: wrong @ 1.., .. }) => {
            return Err(Exit::code(
                exit::CHECK_FAILED,
                format!("{wrong} restored paths are not what the snapshot says; each is named above"),
            ));
        }
        _ if summary.problems > 0 => {
            return Err(Exit::failure(format!(
                "{} paths could not be restored; each is named above",
                summary.problems
            )));
        }
        _ => {}
    }
    Ok(exit::OK)
}

async fn open(args: &RestoreArgs, global: &Global) -> Result<Repository, Exit> {
    match args.avoid_region[..] {
        [] => profile::open(global).await,
        ref regions => {
            profile::open_with(global, profile::connect(global).await?.avoiding(regions).await?).await
        }
    }
}

fn select(which: &Which) -> Result<Select, Exit> {
    type Given<'a> = (&'a [OsString], &'a [PathBuf], Case);
    let parse = |given: [Given<'_>; 2]| {
        let mut patterns = Vec::new();
        for (texts, files, case) in given {
            for text in texts {
                patterns.push(Pattern::parse(text.as_bytes(), case).map_err(Exit::failure)?);
            }
            for file in files {
                for line in paths::lines(&paths::contents(file)?) {
                    let line = paths::with_variables(line);
                    patterns.push(Pattern::parse(&line, case).map_err(Exit::failure)?);
                }
            }
        }
        Ok::<_, Exit>(patterns)
    };
    let w = which;
    Ok(Select {
        include: parse([
            (&w.include, &w.include_file, Case::Kept),
            (&w.iinclude, &w.iinclude_file, Case::Ignored),
        ])?,
        exclude: parse([
            (&w.exclude, &w.exclude_file, Case::Kept),
            (&w.iexclude, &w.iexclude_file, Case::Ignored),
        ])?,
    })
}

/// What a dry run would read from a region, and what that costs.
struct From {
    region: Region,
    bytes: u64,
    /// Millionths of the unit of the prices; `None` if nobody said where this machine is or nobody knows the prices.
    price_micros: Option<u64>,
}

async fn sources(client: &Client, summary: &Summary, global: &Global) -> Result<Vec<From>, Exit> {
    let nodes = client.topology().await?.nodes;
    let upkeep: Option<Upkeep> = match client.operator() {
        Ok(operator) => operator.upkeep().await.ok(),
        Err(_) => None,
    };
    let mut bytes = BTreeMap::<&Region, u64>::new();
    for node in &nodes {
        *bytes.entry(&node.region).or_default() += summary.by_node.get(&node.id).copied().unwrap_or(0);
    }
    let price =
        |region: &Region, bytes| Some(upkeep.as_ref()?.price_micros(region, global.near.as_ref()?, bytes));
    let from = |(region, bytes): (&Region, u64)| From {
        price_micros: price(region, bytes),
        region: region.clone(),
        bytes,
    };
    Ok(bytes.into_iter().map(from).collect())
}

fn summary_json(
    s: &Summary,
    verified: Option<Verified>,
    snapshot: &Snapshot,
    sources: &[From],
    meter: &Meter,
    dry_run: bool,
) -> Value {
    let restored = s.files + s.dirs + s.others;
    let mut line = json!({
        "message_type": "summary", "seconds_elapsed": meter.elapsed().as_secs(),
        "total_files": restored + s.kept, "files_restored": restored, "files_skipped": s.kept,
        "files_deleted": s.removed, "total_bytes": s.bytes + s.bytes_kept, "bytes_restored": s.bytes,
        "bytes_skipped": s.bytes_kept, "bytes_fetched": s.bytes_planned, "packs": s.packs,
        "problems": s.problems, "attributes_lost": s.attributes_lost, "dry_run": dry_run,
        "snapshot_id": snapshot.id.to_string(),
        "verified": verified.map(|v| json!({"files": v.files, "bytes": v.bytes, "wrong": v.wrong})),
    });
    if dry_run {
        let region = |from: &From| {
            let price = from.price_micros.map(|micros| micros as f64 / 1e6);
            json!({"region": from.region.as_str(), "bytes": from.bytes, "price": price})
        };
        let price: Option<u64> = sources.iter().map(|from| from.price_micros).sum();
        line["plan"] = json!({
            "regions": sources.iter().map(region).collect::<Vec<_>>(),
            "bytes": sources.iter().map(|from| from.bytes).sum::<u64>(),
            "price": price.map(|micros| micros as f64 / 1e6), "unreadable_packs": s.unreadable_packs,
        });
    }
    line
}

fn summary_text(
    s: &Summary,
    verified: Option<Verified>,
    snapshot: &Snapshot,
    sources: &[From],
    meter: &Meter,
    dry_run: bool,
) -> String {
    let (verb, read) = if dry_run { ("would be restored", "would read") } else { ("restored", "read") };
    let (bytes, sealed) = (Bytes(s.bytes), Bytes(s.bytes_planned));
    let mut text = format!(
        "{} files, {} directories, {} others ({bytes}) {verb} from snapshot {} in {}; {read} {sealed} in {} packs\n",
        s.files,
        s.dirs,
        s.others,
        snapshot.id.short(),
        clock(meter.elapsed().as_secs()),
        s.packs
    );
    if s.kept > 0 {
        text += &format!("{} entries ({}) were there already\n", s.kept, Bytes(s.bytes_kept));
    }
    if s.removed > 0 {
        let verb = if dry_run { "would be removed" } else { "removed" };
        text += &format!("{} entries {verb} that the snapshot does not have\n", s.removed);
    }
    if let Some(v) = verified {
        text += &format!("{} files ({}) read back, {} wrong\n", v.files, Bytes(v.bytes), v.wrong);
    }
    if dry_run {
        text += &format!("\n{:<24} {:>14}  {:>10}\n", "Region", "Would send", "Price");
        for from in sources {
            let price =
                from.price_micros.map_or_else(|| "-".into(), |micros| format!("{:.4}", micros as f64 / 1e6));
            text +=
                &format!("{:<24} {:>14}  {price:>10}\n", from.region.as_str(), Bytes(from.bytes).to_string());
        }
        if sources.iter().all(|from| from.price_micros.is_none()) {
            text += "Prices: say where this machine is with --near, and what links cost with farshore cluster budget\n";
        }
        if s.unreadable_packs > 0 {
            text += &format!("{} packs CANNOT be read as things stand\n", s.unreadable_packs);
        }
    }
    text
}
