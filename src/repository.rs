//! What one does with a repository: init, snapshots, ls, check. Flags and JSON fields follow restic
//! wherever restic has the thing.

use crate::args::{CheckArgs, Filter as FilterArgs, Global, InitArgs, LsArgs, SnapshotsArgs};
use crate::exit::{self, Exit};
use crate::paths::absolute;
use crate::print::{self, Meter, shown};
use crate::profile;
use crate::secret;
use farshore_client::check::{self, Subset};
use farshore_client::client::NewKey;
use farshore_client::crypto::KdfParams;
use farshore_client::files::FileTime;
use farshore_client::format::{Node, RepoConfig};
use farshore_client::list::{Filter, ListedEntry, Snapshot};
use farshore_core::id::PackNo;
use farshore_core::policy::Policy;
use farshore_core::units::{Bytes, rfc3339};
use serde_json::{Value, json};
use std::io::Write as _;
use std::sync::Arc;

/// `farshore init`.
pub async fn init(args: InitArgs, global: &Global) -> Result<u8, Exit> {
    let policy: Policy = args.survive.parse().map_err(|e| Exit::failure(format!("--survive: {e}")))?;
    let name = profile::repo_name(global)?.to_owned();
    let client = profile::connect(global).await?;
    if client.find_repository(&name).await.is_ok() {
        return Err(Exit::failure(format!("repository {name:?} already exists")));
    }
    let (secret, note) = (secret::given(global, true)?, secret::note(None, None));
    let key = NewKey { secret, kdf: KdfParams::default(), note };
    let repository = client.create_repository_with(&name, policy, &key, RepoConfig::default()).await?;
    let topology = client.topology().await?;
    let scheme = farshore_core::policy::compile(&policy, &topology.nodes).map_err(Exit::failure)?;
    if global.json {
        let line = json!({
            "message_type": "initialized", "id": repository.id().to_string(), "repository": name,
            "policy": policy.to_string(), "scheme": scheme.to_string(),
        });
        println!("{line}");
    } else if !global.quiet {
        println!("created repository {name} ({})", repository.id());
        println!("{}", farshore_core::policy::explain(scheme, &policy, &topology.nodes));
        println!(
            "Nobody can help if the passphrase is lost: keep a copy of it elsewhere, or a recovery key on paper (farshore key add --recovery)."
        );
    }
    Ok(exit::OK)
}

/// Runs until done or until Ctrl-C, which drops the work: nothing half-done is ever visible.
pub async fn interruptible<T>(
    work: impl Future<Output = farshore_client::error::Result<T>>,
) -> Result<T, Exit> {
    tokio::select! {
        biased;
        _ = crate::node::stop_signal() => Err(Exit::code(exit::INTERRUPTED, "interrupted; what was stored will not be sent again")),
        result = work => Ok(result?),
    }
}

/// Which snapshots the flags mean.
pub fn filter(args: FilterArgs) -> Result<Filter, Exit> {
    Ok(Filter {
        hosts: args.host,
        tags: args.tag.iter().map(|all| all.split(',').map(str::to_owned).collect()).collect(),
        paths: args.path.iter().map(|path| absolute(path.as_os_str())).collect::<Result<_, _>>()?,
    })
}

/// `farshore snapshots`.
pub async fn snapshots(args: SnapshotsArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let all = repository.snapshots(&filter(args.filter)?).await?;
    let mut chosen = Vec::new();
    for name in &args.snapshots {
        chosen.push(farshore_client::list::pick(&all, name)?.clone());
    }
    let rows = if args.snapshots.is_empty() { all } else { chosen };
    if global.json {
        println!("{}", Value::from(rows.iter().map(snapshot_json).collect::<Vec<_>>()));
        return Ok(exit::OK);
    }
    println!(
        "{:<10} {:<20} {:<16} {:<12} {:<12} {:>12}  Paths",
        "ID", "Time (UTC)", "Host", "Kind", "Tags", "Size"
    );
    for s in &rows {
        let paths: Vec<String> = s.info.paths.iter().map(|p| shown(p)).collect();
        println!(
            "{:<10} {:<20} {:<16} {:<12} {:<12} {:>12}  {}",
            s.id.short(),
            print::time(s.info.time_ms),
            s.info.host,
            s.info.kind.word(),
            s.info.tags.join(","),
            Bytes(s.info.stats.total_bytes).to_string(),
            paths.join(" ")
        );
    }
    println!("{} snapshots", rows.len());
    Ok(exit::OK)
}

/// A snapshot with restic's field names, and ours after them.
pub fn snapshot_json(s: &Snapshot) -> Value {
    json!({
        "time": rfc3339(s.info.time_ms), "parent": s.info.parent.map(|p| p.to_string()),
        "tree": s.info.root.to_string(), "paths": s.info.paths.iter().map(|p| shown(p)).collect::<Vec<_>>(),
        "hostname": s.info.host, "username": s.info.user, "tags": s.info.tags, "program_version": s.info.program,
        "kind": s.info.kind.word(), "committed": rfc3339(s.committed_ms),
        "verified": s.marks.verified_ms.map(rfc3339),
        "lock": s.marks.lock.map(|lock| json!({"mode": lock.mode.word(), "until": rfc3339(lock.until_ms)})),
        "summary": {
            "files_new": s.info.stats.files_new, "files_changed": s.info.stats.files_changed,
            "files_unmodified": s.info.stats.files_unmodified,
            "total_files_processed": s.info.stats.total_files, "total_bytes_processed": s.info.stats.total_bytes,
            "data_added": s.info.stats.data_added + s.info.stats.tree_added,
            "data_added_packed": s.info.stats.bytes_packed, "bytes_sent": s.info.stats.bytes_sent,
        },
        "unreadable": s.info.unreadable.iter().map(|u| json!({"path": shown(&u.path), "error": u.why})).collect::<Vec<_>>(),
        "id": s.id.to_string(), "short_id": s.id.short(),
    })
}

/// `farshore ls`.
pub async fn ls(args: LsArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let (snapshot, path) = repository.resolve(args.snapshot.as_bytes(), &filter(args.filter)?).await?;
    let mut roots: Vec<Vec<u8>> =
        args.paths.iter().map(|path| absolute(path.as_os_str())).collect::<Result<_, _>>()?;
    roots.extend(path);
    if roots.is_empty() {
        roots.push(b"/".to_vec());
    }
    if global.json {
        let mut line = snapshot_json(&snapshot);
        line["message_type"] = "snapshot".into();
        line["struct_type"] = "snapshot".into();
        println!("{line}");
    }
    let mut closed = false;
    for root in roots {
        let mut each = |entry: ListedEntry| {
            let line =
                if global.json { entry_json(&entry).to_string() } else { entry_text(&entry, args.long) };
            closed |= writeln!(std::io::stdout(), "{line}").is_err();
        };
        repository.ls(&snapshot, &root, true, &mut each).await?;
    }
    // A reader that has gone away, such as `head`, is no failure.
    let _ = closed;
    Ok(exit::OK)
}

fn kind(node: &Node) -> (char, &'static str) {
    match node {
        Node::File { .. } => ('-', "file"),
        Node::Dir { .. } => ('d', "dir"),
        Node::Symlink { .. } => ('l', "symlink"),
        Node::Fifo => ('p', "fifo"),
        Node::Socket => ('s', "socket"),
        Node::CharDev { .. } => ('c', "chardev"),
        Node::BlockDev { .. } => ('b', "dev"),
    }
}

fn file_time(time: FileTime) -> String {
    let whole = rfc3339(u64::try_from(time.secs).unwrap_or(0).saturating_mul(1_000));
    format!("{}.{:09}Z", whole.get(..19).unwrap_or(&whole), time.nanos)
}

fn size(node: &Node) -> u64 {
    if let Node::File { size, .. } = node { *size } else { 0 }
}

/// An entry on one line.
pub fn entry_text(entry: &ListedEntry, long: bool) -> String {
    let path = shown(&entry.path);
    if !long {
        return path;
    }
    let (letter, _) = kind(&entry.node);
    let m = &entry.meta;
    let target = match &entry.node {
        Node::Symlink { target } => format!(" -> {}", shown(target)),
        _ => String::new(),
    };
    let time = print::time(u64::try_from(m.mtime.as_ms()).unwrap_or(0));
    format!(
        "{} {:>5} {:>5} {:>10} {time} {path}{target}",
        print::permissions(letter, m.mode),
        m.uid,
        m.gid,
        size(&entry.node)
    )
}

/// An entry with restic's field names.
pub fn entry_json(entry: &ListedEntry) -> Value {
    let (letter, word) = kind(&entry.node);
    let m = &entry.meta;
    let name = entry.path.rsplit(|b| *b == b'/').next().unwrap_or_default();
    let mut value = json!({
        "name": shown(name), "type": word, "path": shown(&entry.path), "uid": m.uid, "gid": m.gid,
        "size": size(&entry.node), "mode": m.mode, "permissions": print::permissions(letter, m.mode),
        "mtime": file_time(m.mtime), "ctime": file_time(m.ctime), "atime": file_time(m.atime.unwrap_or(m.mtime)),
        "inode": m.ino, "message_type": "node", "struct_type": "node",
    });
    if let Node::Symlink { target } = &entry.node {
        value["linktarget"] = shown(target).into();
    }
    value
}

/// `farshore check`.
pub async fn check(args: CheckArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let meter = Arc::new(Meter::new(global, "check"));
    let options = check::Options { read: subset(&args)? };
    let result = interruptible(repository.check(options, &*meter)).await;
    meter.finish();
    let report = result?;
    if let (Some(file), Some(next)) = (&args.cursor, report.next) {
        std::fs::write(file, format!("{}\n", next.0))
            .map_err(|e| Exit::failure(format!("cannot note in {} where to go on: {e}", file.display())))?;
    }
    if global.json {
        println!("{}", check_json(&report));
    } else if !global.quiet {
        print!("{}", check_text(&report));
    }
    report.verdict()?;
    Ok(exit::OK)
}

/// Of which packs everything is to be read.
fn subset(args: &CheckArgs) -> Result<Subset, Exit> {
    let Some(text) = &args.read_data_subset else {
        return Ok(if args.read_data { Subset::All } else { Subset::Nothing });
    };
    let subset = text.parse().map_err(|e| Exit::failure(format!("--read-data-subset: {e}")))?;
    let Some(file) = &args.cursor else { return Ok(subset) };
    let Subset::Sample(share) = subset else {
        return Err(Exit::failure(
            "--cursor goes with a share or a size: parts are read in turn by their numbers",
        ));
    };
    let start = match std::fs::read_to_string(file) {
        Ok(text) => text.trim().parse().map_err(|_| {
            Exit::failure(format!("{} does not say where to go on; remove it to begin anew", file.display()))
        })?,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => 0,
        Err(e) => return Err(Exit::failure(format!("cannot read {}: {e}", file.display()))),
    };
    Ok(Subset::From(PackNo(start), share))
}

fn check_json(report: &check::Report) -> Value {
    let damaged: Vec<Value> = report
        .damaged
        .iter()
        .map(|pack| {
            let shards: Vec<Value> = pack
                .shards
                .iter()
                .map(|s| json!({"index": s.index, "node": s.node, "trouble": format!("{:?}", s.trouble).to_lowercase(), "error": s.why}))
                .collect();
            json!({
                "message_type": "error", "pack": pack.id.to_string(), "readable": pack.readable,
                "shards": shards, "problems": pack.problems,
            })
        })
        .collect();
    let broken: Vec<Value> = report
        .broken
        .iter()
        .map(|snapshot| {
            let paths: Vec<Value> = snapshot
                .problems
                .iter()
                .map(|(path, why)| json!({"path": shown(path), "error": why}))
                .collect();
            json!({"snapshot": snapshot.id.to_string(), "problems": snapshot.count, "paths": paths})
        })
        .collect();
    json!({
        "message_type": "summary", "num_errors": report.broken.len() + report.damaged.len(),
        "snapshots": report.snapshots, "packs": report.packs, "packs_under_target": report.under_target,
        "packs_unreadable": report.unreadable, "packs_read": report.packs_read, "shards_checked": report.shards, "chunks_opened": report.chunks,
        "bytes_read": report.bytes, "damaged_packs": damaged, "broken_snapshots": broken,
    })
}

fn check_text(report: &check::Report) -> String {
    let mut out = String::new();
    let mut line = |text: String| {
        out += &text;
        out.push('\n');
    };
    for snapshot in &report.broken {
        line(format!("snapshot {}: {} paths cannot be restored", snapshot.id.short(), snapshot.count));
        snapshot.problems.iter().for_each(|(path, why)| line(format!("  {}: {why}", shown(path))));
    }
    for pack in &report.damaged {
        let state = if pack.readable { "still readable" } else { "NOT READABLE" };
        line(format!("pack {}: {state}", pack.id.short()));
        for s in &pack.shards {
            line(format!(
                "  shard {} on {}: {}",
                s.index,
                if s.node.is_empty() { "nobody" } else { &s.node },
                s.why
            ));
        }
        pack.problems.iter().for_each(|why| line(format!("  {why}")));
    }
    line(format!(
        "{} snapshots, {} directories and {} files walked; {} packs, {} below full strength",
        report.snapshots, report.dirs, report.files, report.packs, report.under_target
    ));
    if report.shards > 0 {
        let (read, all) = (report.packs_read, report.packs);
        let (shards, chunks, bytes) = (report.shards, report.chunks, Bytes(report.bytes));
        line(format!("{read} of {all} packs read: {shards} shards, {chunks} chunks, {bytes}"));
    }
    line(if report.verdict().is_ok() { "no errors were found".into() } else { "ERRORS were found".into() });
    out
}
