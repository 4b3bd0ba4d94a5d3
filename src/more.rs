//! `farshore stats`, `farshore copy` and `farshore tag`.

use crate::args::{CopyArgs, Filter as FilterArgs, Global, StatsArgs, StatsMode, TagArgs};
use crate::exit::{self, Exit};
use crate::print::{Meter, count};
use crate::profile;
use crate::repository::{filter, interruptible};
use farshore_client::Repository;
use farshore_client::list::{Snapshot, pick};
use farshore_client::stats::Mode;
use farshore_client::tag::TagChange;
use farshore_core::units::Bytes;
use serde_json::json;
use std::sync::Arc;

/// The snapshots that are named, or all that the filter admits.
async fn chosen(repository: &Repository, names: &[String], args: FilterArgs) -> Result<Vec<Snapshot>, Exit> {
    let all = repository.snapshots(&filter(args)?).await?;
    if names.is_empty() {
        return Ok(all);
    }
    names.iter().map(|name| Ok(pick(&all, name)?.clone())).collect()
}

/// `farshore stats`.
pub async fn stats(args: StatsArgs, global: &Global) -> Result<u8, Exit> {
    let mode = match args.mode {
        StatsMode::RestoreSize => Mode::RestoreSize,
        StatsMode::FilesByContents => Mode::FilesByContents,
        StatsMode::BlobsPerFile => Mode::BlobsPerFile,
        StatsMode::RawData => return raw_data(&args, global).await,
    };
    let repository = profile::open(global).await?;
    let snapshots = chosen(&repository, &args.snapshots, args.filter).await?;
    let s = interruptible(repository.stats(&snapshots, mode)).await?;
    if global.json {
        let line = json!({
            "total_size": s.bytes, "total_file_count": s.files, "total_blob_count": s.blobs,
            "snapshots_count": s.snapshots,
        });
        println!("{line}");
        return Ok(exit::OK);
    }
    println!("Snapshots:  {}", s.snapshots);
    println!("{}  {}", if mode == Mode::RestoreSize { "Entries:  " } else { "Files:    " }, s.files);
    if mode == Mode::BlobsPerFile {
        println!("Chunks:     {}", s.blobs);
    }
    println!("Size:       {}", Bytes(s.bytes));
    Ok(exit::OK)
}

async fn raw_data(args: &StatsArgs, global: &Global) -> Result<u8, Exit> {
    let FilterArgs { host, tag, path } = &args.filter;
    if !args.snapshots.is_empty() || !host.is_empty() || !tag.is_empty() || !path.is_empty() {
        return Err(Exit::failure(
            "--mode raw-data is of the whole repository: packs hold chunks of many snapshots",
        ));
    }
    let repository = profile::open(global).await?;
    let snapshots = repository.snapshots(&Default::default()).await?.len();
    let s = interruptible(repository.stored()).await?;
    if global.json {
        let line = json!({
            "total_size": s.bytes, "total_blob_count": s.blobs, "snapshots_count": snapshots,
            "packs": s.packs, "shard_bytes": s.shard_bytes,
        });
        println!("{line}");
        return Ok(exit::OK);
    }
    println!("Snapshots:  {snapshots}");
    println!("Packs:      {}", s.packs);
    println!("Chunks:     {}", s.blobs);
    println!("Size:       {} compressed and encrypted", Bytes(s.bytes));
    println!("On nodes:   {} as shards", Bytes(s.shard_bytes));
    Ok(exit::OK)
}

/// `farshore copy`.
pub async fn copy(args: CopyArgs, global: &Global) -> Result<u8, Exit> {
    let to = profile::open(global).await?;
    let own_passphrase = args.from_password_file.is_some() || args.from_password_command.is_some();
    let own_key = own_passphrase || args.from_key_file.is_some();
    let mut source = Global { repo: Some(args.from_repo.clone()), ..global.clone() };
    if let Some(profile) = &args.from_profile {
        source.profile = Some(profile.clone());
    }
    if own_key {
        // What opens the one repository says nothing of the other.
        source.key_file = args.from_key_file.clone();
        source.recovery_key_file = None;
        source.password_file = args.from_password_file.clone();
        source.password_command = args.from_password_command.clone();
        source.password = None;
    }
    let from = profile::open(&source).await?;
    if from.id() == to.id() {
        return Err(Exit::failure(
            "a repository cannot be copied into itself: --repo is where the copies go",
        ));
    }
    let snapshots = chosen(&from, &args.snapshots, args.filter).await?;
    let (mut copied, mut skipped) = (0, 0);
    for snapshot in &snapshots {
        if let Some(there) = to.copy_of(snapshot).await? {
            skipped += 1;
            if !global.json && !global.quiet {
                println!("snapshot {} is there already as {}", snapshot.id.short(), there.id.short());
            }
            continue;
        }
        let meter = Arc::new(Meter::new(global, "copy"));
        let result = interruptible(to.copy(&from, snapshot, meter.clone())).await;
        meter.finish();
        let summary = result?;
        copied += 1;
        let id = summary.snapshot.map(|id| id.to_string()).unwrap_or_default();
        if global.json {
            let line = json!({
                "message_type": "copied", "source_snapshot": snapshot.id.to_string(), "snapshot_id": id,
                "bytes_read": summary.info.stats.bytes_read, "bytes_sent": summary.info.stats.bytes_sent,
            });
            println!("{line}");
        } else if !global.quiet {
            let (read, sent) = (summary.info.stats.bytes_read, summary.info.stats.bytes_sent);
            let short = id.get(..8).unwrap_or(&id);
            println!(
                "snapshot {} copied as {short}: read {}, sent {}",
                snapshot.id.short(),
                Bytes(read),
                Bytes(sent)
            );
        }
    }
    if global.json {
        println!("{}", json!({"message_type": "summary", "copied": copied, "skipped": skipped}));
    } else if !global.quiet {
        println!("{} copied, {skipped} there already", count(copied, "snapshot"));
    }
    Ok(exit::OK)
}

/// `farshore tag`.
pub async fn tag(args: TagArgs, global: &Global) -> Result<u8, Exit> {
    let change = match args.set.is_empty() {
        false => TagChange::Set(args.set),
        true => TagChange::Edit { add: args.add, remove: args.remove },
    };
    let repository = profile::open(global).await?;
    let mut changed = 0;
    for snapshot in chosen(&repository, &args.snapshots, args.filter).await? {
        if !repository.tag(&snapshot, &change).await? {
            continue;
        }
        changed += 1;
        if global.json {
            // The id stays; restic gives a new one.
            let id = snapshot.id.to_string();
            println!("{}", json!({"message_type": "changed", "old_snapshot_id": id, "new_snapshot_id": id}));
        }
    }
    if global.json {
        println!("{}", json!({"message_type": "summary", "changed_snapshots": changed}));
    } else if !global.quiet {
        println!("tags of {} changed", count(changed, "snapshot"));
    }
    Ok(exit::OK)
}
