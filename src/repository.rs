//! What one does with a repository: init, backup, snapshots, ls, restore, check. Flags and JSON fields follow restic
//! wherever restic has the thing.

use crate::args::{
    BackupArgs, CheckArgs, Filter as FilterArgs, Global, InitArgs, Kind, LsArgs, RestoreArgs, SnapshotsArgs,
};
use crate::exit::{self, Exit};
use crate::print::{self, Meter, shown};
use crate::profile;
use crate::secret;
use crate::zone;
use farshore_client::api::ClusterStatus;
use farshore_client::backup;
use farshore_client::check;
use farshore_client::client::NewKey;
use farshore_client::crypto::KdfParams;
use farshore_client::files::{FileTime, RealSource, RealTarget};
use farshore_client::format::{Node, RepoConfig};
use farshore_client::list::{Filter, ListedEntry, Snapshot};
use farshore_client::restore;
use farshore_core::catalogue::SnapshotKind;
use farshore_core::policy::Policy;
use farshore_core::topology::NodeState;
use farshore_core::units::{Bytes, clock, rfc3339};
use serde_json::{Value, json};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
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

fn absolute(path: &Path) -> Result<Vec<u8>, Exit> {
    let path = std::path::absolute(path).map_err(|e| Exit::failure(format!("{}: {e}", path.display())))?;
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            std::path::Component::ParentDir => {
                clean.pop();
            }
            std::path::Component::Normal(name) => clean.push(name),
            _ => {}
        }
    }
    Ok(clean.as_os_str().as_bytes().to_vec())
}

pub fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub fn this_user() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "root".into())
}

/// `farshore backup`.
pub async fn backup(args: BackupArgs, global: &Global) -> Result<u8, Exit> {
    let paths: Vec<Vec<u8>> = args.paths.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
    let repository = profile::open(global).await?;
    let kind = match (args.kind, args.force) {
        (Kind::Full, _) | (_, true) => SnapshotKind::Full,
        (Kind::Incremental, _) => SnapshotKind::Incremental,
        (Kind::Differential, _) => SnapshotKind::Differential,
    };
    let options = backup::Options {
        paths,
        kind,
        host_name: args.host.unwrap_or_else(this_host),
        user: this_user(),
        tags: args.tag,
        utc_offset_min: zone::utc_offset_min(repository.host().clock.now_ms()),
        compression: None,
        checkpoint_ms: None,
    };
    let source = Arc::new(RealSource::new(repository.host().compute.clone()));
    let meter = Arc::new(Meter::new(global, "backup"));
    let start = repository.host().clock.now_ms();
    let result = interruptible(repository.backup(&options, source, meter.clone())).await;
    meter.finish();
    let summary = result?;
    let end = repository.host().clock.now_ms();
    // What it survives now depends on who answers now; the snapshot is saved whether or not the cluster can tell.
    let now = repository.client().status().await.ok();
    let survives = survives(&summary, repository.policy(), now.as_ref());
    if global.json {
        println!("{}", backup_json(&summary, repository.policy(), survives, start, end, &meter));
    } else if !global.quiet {
        print!("{}", backup_text(&summary, &survives, &meter));
    }
    if summary.under_target > 0 {
        eprintln!(
            "farshore: snapshot {} is saved but {} of its packs are not at full strength; repair owes the rest: farshore cluster status --wait 10m",
            summary.snapshot.short(),
            summary.under_target
        );
    }
    // What could not be read does not come right by itself, so it is said first.
    Ok(match (summary.info.stats.unreadable, summary.under_target) {
        (1.., _) => exit::SOURCE_UNREADABLE,
        (0, 1..) => exit::UNDER_TARGET,
        (0, 0) => exit::OK,
    })
}

fn backup_json(
    summary: &backup::Summary,
    policy: Policy,
    survives: String,
    start_ms: u64,
    end_ms: u64,
    meter: &Meter,
) -> Value {
    let s = &summary.info.stats;
    json!({
        "message_type": "summary",
        "files_new": s.files_new, "files_changed": s.files_changed, "files_unmodified": s.files_unmodified,
        "dirs_new": s.dirs_new, "dirs_changed": s.dirs_changed, "dirs_unmodified": s.dirs_unmodified,
        "data_blobs": s.data_blobs, "tree_blobs": s.tree_blobs,
        "data_added": s.data_added + s.tree_added, "data_added_packed": s.bytes_packed,
        "total_files_processed": s.total_files, "total_bytes_processed": s.total_bytes,
        "total_duration": meter.elapsed().as_secs_f64(),
        "backup_start": rfc3339(start_ms), "backup_end": rfc3339(end_ms),
        "snapshot_id": summary.snapshot.to_string(), "dry_run": false,
        "kind": summary.info.kind.word(), "parent": summary.info.parent.map(|p| p.to_string()),
        "bytes_read": s.bytes_read, "bytes_sent": s.bytes_sent,
        "files_unreadable": s.unreadable, "files_inconsistent": s.inconsistent,
        "durability": {
            "scheme": summary.scheme.to_string(), "policy": policy.to_string(),
            "full_strength": summary.under_target == 0, "packs_under_target": summary.under_target,
            "packs_degraded": summary.degraded_packs, "survives": survives,
        },
    })
}

/// What can be lost right now without losing this snapshot.
fn survives(summary: &backup::Summary, policy: Policy, now: Option<&ClusterStatus>) -> String {
    let silent: Vec<&str> = now
        .iter()
        .flat_map(|s| &s.nodes)
        .filter(|n| !n.node.state.answers() && n.node.state != NodeState::Retired)
        .map(|n| n.node.name.as_str())
        .collect();
    match (summary.under_target, now) {
        (0, Some(status)) if !status.survives_region && !silent.is_empty() => {
            format!("the loss of {policy} once these nodes are back: {}", silent.join(", "))
        }
        (0, _) => format!("the loss of {policy}"),
        _ => format!("the loss of any {} more nodes, until repair has caught up", policy.floor_nodes),
    }
}

fn backup_text(summary: &backup::Summary, survives: &str, meter: &Meter) -> String {
    let s = &summary.info.stats;
    let seconds = meter.elapsed().as_secs_f64();
    let rate = Bytes((s.total_bytes as f64 / seconds.max(0.001)) as u64);
    let parent = summary.info.parent.map_or(String::new(), |p| format!(", parent {}", p.short()));
    format!(
        "Files:   {:>8} new, {:>8} changed, {:>8} unmodified\nDirs:    {:>8} new, {:>8} changed, {:>8} unmodified\n\
         Read {}, new {} in {} chunks, packed {}, sent {} as {} shards\n\
         processed {} files, {} in {} ({rate}/s)\n{} snapshot {} saved{parent}; it survives {}\n",
        s.files_new,
        s.files_changed,
        s.files_unmodified,
        s.dirs_new,
        s.dirs_changed,
        s.dirs_unmodified,
        Bytes(s.bytes_read),
        Bytes(s.data_added + s.tree_added),
        s.data_blobs + s.tree_blobs,
        Bytes(s.bytes_packed),
        Bytes(s.bytes_sent),
        summary.scheme,
        s.total_files,
        Bytes(s.total_bytes),
        clock(seconds as u64),
        summary.info.kind.word(),
        summary.snapshot.short(),
        survives,
    )
}

/// Runs until done or until Ctrl-C, which drops the work: nothing half-done is ever visible.
async fn interruptible<T>(work: impl Future<Output = farshore_client::error::Result<T>>) -> Result<T, Exit> {
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
        paths: args.path.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?,
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
    let mut roots: Vec<Vec<u8>> = args.paths.iter().map(|path| absolute(path)).collect::<Result<_, _>>()?;
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

/// `farshore restore`.
pub async fn restore(args: RestoreArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let (snapshot, root) = repository.resolve(args.snapshot.as_bytes(), &filter(args.filter)?).await?;
    let include: Vec<Vec<u8>> = args.include.iter().map(|p| p.as_os_str().as_bytes().to_vec()).collect();
    let options = restore::Options {
        root,
        select: restore::Select::new(include.iter().map(Vec::as_slice), []),
        dry_run: args.dry_run,
        ..restore::Options::default()
    };
    let target = RealTarget::open(repository.host(), &args.target, false)
        .await
        .map_err(|e| Exit::failure(format!("cannot use {}: {e}", args.target.display())))?;
    let meter = Arc::new(Meter::new(global, "restore"));
    let result = interruptible(repository.restore(&snapshot, &options, &target, &*meter)).await;
    meter.finish();
    let s = result?;
    let verb = if args.dry_run { "would be restored" } else { "restored" };
    if global.json {
        let line = json!({
            "message_type": "summary", "seconds_elapsed": meter.elapsed().as_secs(),
            "total_files": s.files + s.dirs + s.others, "files_restored": s.files + s.dirs + s.others,
            "files_skipped": 0, "files_deleted": 0, "total_bytes": s.bytes, "bytes_restored": s.bytes,
            "bytes_skipped": 0, "bytes_fetched": s.bytes_planned, "packs": s.packs, "problems": s.problems,
            "dry_run": args.dry_run, "snapshot_id": snapshot.id.to_string(),
        });
        println!("{line}");
    } else if !global.quiet {
        let (bytes, sealed) = (Bytes(s.bytes), Bytes(s.bytes_planned));
        println!(
            "{} files, {} directories, {} others ({bytes}) {verb} from snapshot {} in {}; read {sealed} in {} packs",
            s.files,
            s.dirs,
            s.others,
            snapshot.id.short(),
            clock(meter.elapsed().as_secs()),
            s.packs
        );
    }
    if s.problems > 0 {
        return Err(Exit::failure(format!(
            "{} paths could not be restored; each is named above",
            s.problems
        )));
    }
    Ok(exit::OK)
}

/// `farshore check`.
pub async fn check(args: CheckArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let meter = Arc::new(Meter::new(global, "check"));
    let options = check::Options { read_data: args.read_data };
    let result = interruptible(repository.check(options, &*meter)).await;
    meter.finish();
    let report = result?;
    if global.json {
        println!("{}", check_json(&report));
    } else if !global.quiet {
        print!("{}", check_text(&report));
    }
    report.verdict()?;
    Ok(exit::OK)
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
        "packs_unreadable": report.unreadable, "shards_checked": report.shards, "chunks_opened": report.chunks,
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
        line(format!("{} shards and {} chunks read ({})", report.shards, report.chunks, Bytes(report.bytes)));
    }
    line(if report.verdict().is_ok() { "no errors were found".into() } else { "ERRORS were found".into() });
    out
}
