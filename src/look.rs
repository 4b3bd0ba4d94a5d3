//! Looking into snapshots: find, diff, cat. Output and JSON fields are restic's.

use crate::args::{CatArgs, CatWhat, DiffArgs, FindArgs, Global};
use crate::exit::{self, Exit};
use crate::print::{self, shown};
use crate::profile;
use crate::repository::{entry_json, entry_text, filter, snapshot_json};
use farshore_client::diff::{Difference, Side, Tally, Totals};
use farshore_client::find::Wanted;
use farshore_client::list::{Filter, ListedEntry, pick};
use farshore_client::pattern::{Case, Pattern};
use farshore_client::select::Select;
use farshore_core::units::{Bytes, parse_date};
use serde_json::{Value, json};
use std::io::Write as _;

/// `farshore find`.
pub async fn find(args: FindArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let date = |flag: &str, text: Option<&str>| {
        let ms = text.map(parse_date).transpose().map_err(|e| Exit::failure(format!("{flag}: {e}")))?;
        Ok::<_, Exit>(ms.map(|ms| ms as i64))
    };
    let case = if args.ignore_case { Case::Ignored } else { Case::Kept };
    let include = args.patterns.iter().map(|text| Pattern::parse(text.as_bytes(), case));
    let include = include.collect::<Result<_, _>>().map_err(Exit::failure)?;
    let wanted = Wanted {
        select: Select { include, exclude: vec![] },
        since_ms: date("--oldest", args.oldest.as_deref())?,
        until_ms: date("--newest", args.newest.as_deref())?,
    };
    let all = repository.snapshots(&filter(args.filter)?).await?;
    let mut chosen = Vec::new();
    for name in &args.snapshot {
        chosen.push(pick(&all, name)?.clone());
    }
    let mut snapshots = if args.snapshot.is_empty() { all } else { chosen };
    // The newest first, as a rule.
    snapshots.sort_by_key(|s| std::cmp::Reverse((s.committed_ms, s.id)));
    if args.reverse {
        snapshots.reverse();
    }
    let mut finder = repository.finder(wanted);
    let mut report = Vec::new();
    for snapshot in &snapshots {
        let mut found = Vec::new();
        let mut first = true;
        let mut each = |entry: ListedEntry| {
            if global.json {
                found.push(found_json(&entry));
                return;
            }
            let mut out = std::io::stdout();
            if std::mem::take(&mut first) {
                let (id, time) = (snapshot.id.short(), print::time(snapshot.info.time_ms));
                let _ = writeln!(out, "Found matching entries in snapshot {id} from {time}");
            }
            let _ = writeln!(out, "{}", entry_text(&entry, args.long));
        };
        finder.look(snapshot, &mut each).await?;
        if !found.is_empty() {
            report.push(json!({"hits": found.len(), "snapshot": snapshot.id.to_string(), "matches": found}));
        } else if !first {
            println!();
        }
    }
    if global.json {
        println!("{}", Value::from(report));
    }
    Ok(exit::OK)
}

fn found_json(entry: &ListedEntry) -> Value {
    let mut value = entry_json(entry);
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|name, _| name != "message_type" && name != "struct_type");
    }
    value
}

/// `farshore diff`.
pub async fn diff(args: DiffArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let (one, one_path) = repository.resolve(args.one.as_bytes(), &Filter::default()).await?;
    let (other, other_path) = repository.resolve(args.other.as_bytes(), &Filter::default()).await?;
    if !global.json && !global.quiet {
        println!("comparing snapshot {} to {}:\n", one.id.short(), other.id.short());
    }
    let mut each = |difference: Difference| {
        let (letter, path) = (difference.change.letter(), shown(&difference.path));
        let line = match global.json {
            true => json!({"message_type": "change", "path": path, "modifier": letter}).to_string(),
            false => format!("{letter:<5}{path}"),
        };
        let _ = writeln!(std::io::stdout(), "{line}");
    };
    let sides = (
        Side { snapshot: &one, path: one_path.as_deref() },
        Side { snapshot: &other, path: other_path.as_deref() },
    );
    let totals = repository.diff(sides, args.metadata, &mut each).await?;
    if global.json {
        let tally =
            |t: &Tally| json!({"files": t.files, "dirs": t.dirs, "others": t.others, "bytes": t.bytes});
        let line = json!({
            "message_type": "statistics", "source_snapshot": one.id.to_string(),
            "target_snapshot": other.id.to_string(), "changed_files": totals.changed_files,
            "added": tally(&totals.added), "removed": tally(&totals.removed),
        });
        println!("{line}");
    } else if !global.quiet {
        print!("{}", totals_text(&totals));
    }
    Ok(exit::OK)
}

fn totals_text(totals: &Totals) -> String {
    let Totals { changed_files, added, removed } = totals;
    format!(
        "\nFiles:  {:>10} new, {:>10} removed, {:>10} changed\nDirs:   {:>10} new, {:>10} removed\n\
         Others: {:>10} new, {:>10} removed\n  Added:   {}\n  Removed: {}\n",
        added.files,
        removed.files,
        changed_files,
        added.dirs,
        removed.dirs,
        added.others,
        removed.others,
        Bytes(added.bytes),
        Bytes(removed.bytes)
    )
}

/// `farshore cat`.
pub async fn cat(args: CatArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let spec = args.snapshot.ok_or_else(|| Exit::failure("which snapshot? give its id, or `latest`"));
    let value = match args.what {
        CatWhat::Config => {
            let c = repository.config();
            json!({
                "id": repository.id().to_string(), "name": repository.name().as_str(),
                "policy": repository.policy().to_string(), "pack_bytes": c.pack_bytes, "zstd_level": c.zstd_level,
                "chunks": {"min": c.chunks.min, "mean": c.chunks.mean, "max": c.chunks.max},
            })
        }
        CatWhat::Snapshot => {
            snapshot_json(&repository.resolve(spec?.as_bytes(), &Filter::default()).await?.0)
        }
        CatWhat::Tree => {
            let (snapshot, path) = repository.resolve(spec?.as_bytes(), &Filter::default()).await?;
            let mut nodes = Vec::new();
            let mut each = |entry: ListedEntry| nodes.push(found_json(&entry));
            repository.ls(&snapshot, path.as_deref().unwrap_or(b"/"), false, &mut each).await?;
            json!({"nodes": nodes})
        }
    };
    let text = serde_json::to_string_pretty(&value).map_err(|e| Exit::failure(e.to_string()))?;
    println!("{text}");
    Ok(exit::OK)
}
