//! `farshore backup`: flags and lists in, one snapshot out. JSON fields are restic's, and ours after them.

use crate::args::{BackupArgs, Global, Input, Kind, LeaveOut};
use crate::exit::{self, Exit};
use crate::paths::{self, absolute};
use crate::print::Meter;
use crate::profile;
use crate::repository::interruptible;
use crate::zone;
use farshore_client::Repository;
use farshore_client::api::ClusterStatus;
use farshore_client::backup::base::Trust;
use farshore_client::backup::rules::{Exclude, MARKER_BYTES_MAX, Marker, Rules};
use farshore_client::backup::{self, Parent};
use farshore_client::files::{RealSource, Source, StreamSource};
use farshore_client::format::Compression;
use farshore_client::list::Filter;
use farshore_client::pattern::Case;
use farshore_core::catalogue::SnapshotKind;
use farshore_core::policy::Policy;
use farshore_core::topology::NodeState;
use farshore_core::units::{Bytes, clock, parse_date, rfc3339};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;
use std::sync::Arc;

pub fn this_host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

pub fn this_user() -> String {
    std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).unwrap_or_else(|_| "root".into())
}

/// `farshore backup`.
pub async fn run(args: BackupArgs, global: &Global) -> Result<u8, Exit> {
    // Whatever is wrong with the arguments is said before anything is asked or reached.
    let is_stream = args.input.stdin || args.input.stdin_from_command;
    let paths = match is_stream {
        true => vec![absolute(&std::path::Path::new("/").join(&args.input.stdin_filename).into_os_string())?],
        false => all_paths(&args.paths, &args.input)?,
    };
    let kind = match (args.kind, args.force) {
        (Kind::Full, _) | (_, true) => SnapshotKind::Full,
        (Kind::Incremental, _) => SnapshotKind::Incremental,
        (Kind::Differential, _) => SnapshotKind::Differential,
    };
    if args.parent.is_some() && kind != SnapshotKind::Incremental {
        return Err(Exit::failure(
            "--parent goes with --kind incremental: the other kinds know what to build on",
        ));
    }
    let rules = rules(&args.leave_out)?;
    let compression = args.compression.as_deref().map(compression).transpose()?;
    let group_by = args.group_by.parse().map_err(|e| Exit::failure(format!("--group-by: {e}")))?;
    let time_ms = args.time.as_deref().map(label_time).transpose()?.flatten();
    let repository = profile::open(global).await?;
    let parent = match &args.parent {
        Some(name) => Parent::Snapshot(repository.resolve(name.as_bytes(), &Filter::default()).await?.0.id),
        None => Parent::Newest(group_by),
    };
    let now_ms = repository.host().clock.now_ms();
    let options = backup::Options {
        paths,
        kind,
        host_name: args.host.clone().unwrap_or_else(this_host),
        user: this_user(),
        tags: args.tag.iter().filter(|tag| !tag.is_empty()).cloned().collect(),
        utc_offset_min: zone::utc_offset_min(time_ms.unwrap_or(now_ms)),
        compression,
        rules,
        parent,
        trust: Trust { ctime: !args.ignore_ctime && !args.ignore_inode, inode: !args.ignore_inode },
        time_ms,
        skip_if_unchanged: args.skip_if_unchanged,
        image: args.image,
        dry_run: args.dry_run,
        ..backup::Options::default()
    };
    let source = source(&args, &repository, &options.paths)?;
    let meter = Arc::new(Meter::new(global, "backup"));
    let result = interruptible(repository.backup(&options, source, meter.clone())).await;
    meter.finish();
    let summary = result?;
    let end = repository.host().clock.now_ms();
    // What it survives now depends on who answers now; the snapshot is saved whether or not the cluster can tell.
    let now = repository.client().status().await.ok();
    let survives = survives(&summary, repository.policy(), now.as_ref());
    if global.json {
        println!(
            "{}",
            backup_json(&summary, repository.policy(), survives, (now_ms, end), &meter, args.dry_run)
        );
    } else if !global.quiet {
        print!("{}", backup_text(&summary, &survives, &meter, args.dry_run));
    }
    if let (Some(snapshot), 1..) = (summary.snapshot, summary.under_target) {
        eprintln!(
            "farshore: snapshot {} is saved but {} of its packs are not at full strength; repair owes the rest: farshore cluster status --wait 10m",
            snapshot.short(),
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

/// Paths of the arguments and of all lists, each once.
fn all_paths(given: &[OsString], input: &Input) -> Result<Vec<Vec<u8>>, Exit> {
    let mut all = given.to_vec();
    for file in &input.files_from {
        let (found, nothing) = paths::listed(file)?;
        nothing.iter().for_each(|line| eprintln!("farshore: {}: nothing is there", line.display()));
        all.extend(found);
    }
    for file in &input.files_from_verbatim {
        all.extend(paths::verbatim(file)?);
    }
    for file in &input.files_from_raw {
        all.extend(paths::raw(file)?);
    }
    if all.is_empty() {
        return Err(Exit::failure("nothing to back up: the lists name no path that is there"));
    }
    let mut absolute_paths: Vec<Vec<u8>> = Vec::with_capacity(all.len());
    for path in &all {
        let path = absolute(path)?;
        if !absolute_paths.contains(&path) {
            absolute_paths.push(path);
        }
    }
    Ok(absolute_paths)
}

fn rules(args: &LeaveOut) -> Result<Rules, Exit> {
    let mut exclude = Vec::new();
    let mut add = |text: &[u8], case| {
        exclude.push(Exclude::parse(text, case).map_err(Exit::failure)?);
        Ok::<(), Exit>(())
    };
    for (patterns, files, case) in [
        (&args.exclude, &args.exclude_file, Case::Kept),
        (&args.iexclude, &args.iexclude_file, Case::Ignored),
    ] {
        patterns.iter().try_for_each(|pattern| add(pattern.as_bytes(), case))?;
        for file in files {
            let text = paths::contents(file)?;
            paths::lines(&text).try_for_each(|line| add(&paths::with_variables(line), case))?;
        }
    }
    let mut markers: Vec<Marker> = args.exclude_caches.then(Marker::cache_dir).into_iter().collect();
    for text in &args.exclude_if_present {
        let mut parts = text.as_bytes().splitn(2, |b| *b == b':');
        let (name, header) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        if name.is_empty() || name.contains(&b'/') || header.len() > MARKER_BYTES_MAX {
            return Err(Exit::failure(format!(
                "--exclude-if-present {}: that is no file name",
                text.display()
            )));
        }
        markers.push(Marker { name: name.to_vec(), header: header.to_vec() });
    }
    let larger_than = args.exclude_larger_than.as_deref().map(str::parse::<Bytes>).transpose();
    let larger_than = larger_than.map_err(|e| Exit::failure(format!("--exclude-larger-than: {e}")))?;
    let git = args.git_ignore.then(|| b".gitignore".to_vec());
    let named = args.custom_ignorefile.iter().map(|name| name.as_bytes().to_vec());
    Ok(Rules {
        exclude,
        larger_than: larger_than.map(|bytes| bytes.0),
        markers,
        ignore_files: git.into_iter().chain(named).collect(),
        one_file_system: args.one_file_system,
    })
}

/// How to compress.
pub fn compression(text: &str) -> Result<Compression, Exit> {
    match text {
        "auto" => Ok(Compression::Auto),
        "off" => Ok(Compression::Off),
        "max" => Ok(Compression::Level(19)),
        level => match level.parse() {
            Ok(level @ 1..=19) => Ok(Compression::Level(level)),
            _ => Err(Exit::failure(format!(
                "--compression {text:?}: give auto, off, max or a level from 1 to 19"
            ))),
        },
    }
}

/// `now`, a date, or a date and a time, in local time.
fn label_time(text: &str) -> Result<Option<u64>, Exit> {
    if text == "now" {
        return Ok(None);
    }
    let bad = || Exit::failure(format!("--time {text:?}: give \"2026-11-20 15:59:59\" or now"));
    let (date, time) = text.split_once([' ', 'T']).unwrap_or((text, "00:00:00"));
    let day_ms = parse_date(date).map_err(|_| bad())?;
    let fields: Vec<u64> =
        time.split(':').map(|field| field.parse().map_err(|_| bad())).collect::<Result<_, _>>()?;
    let [hours @ 0..24, minutes @ 0..60, seconds @ 0..60] = fields[..] else { return Err(bad()) };
    let as_utc = day_ms + ((hours * 60 + minutes) * 60 + seconds) * 1_000;
    let offset_ms = i64::from(zone::utc_offset_min(as_utc).unwrap_or(0)) * 60_000;
    as_utc.checked_add_signed(-offset_ms).map(Some).ok_or_else(bad)
}

/// The file system, standard input, or the output of a command.
fn source(args: &BackupArgs, repository: &Repository, paths: &[Vec<u8>]) -> Result<Arc<dyn Source>, Exit> {
    let host = repository.host();
    let stream = |stream, verdict| {
        let path = paths.first().cloned().unwrap_or_default();
        Arc::new(StreamSource::new(path, host.clock.now_ms(), stream, verdict))
    };
    if args.input.stdin {
        use std::os::fd::AsFd as _;
        let input = std::io::stdin().as_fd().try_clone_to_owned();
        let input = input.map_err(|e| Exit::failure(format!("cannot read standard input: {e}")))?;
        let input = tokio::fs::File::from_std(input.into());
        return Ok(stream(Box::pin(input), Box::pin(async { Ok(()) })));
    }
    if let (true, Some((program, arguments))) = (args.input.stdin_from_command, args.paths.split_first()) {
        let failed = |e: std::io::Error| Exit::failure(format!("cannot start {}: {e}", program.display()));
        let mut command = tokio::process::Command::new(program);
        let child = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = child.spawn().map_err(failed)?;
        let output = child.stdout.take().ok_or_else(|| Exit::failure("the command has no output"))?;
        let name = program.display().to_string();
        let verdict = async move {
            let status = child.wait().await?;
            if status.success() {
                return Ok(());
            }
            Err(std::io::Error::other(format!("{name} has failed ({status}); no snapshot was saved")))
        };
        return Ok(stream(Box::pin(output), Box::pin(verdict)));
    }
    let mut source = RealSource::new(host.compute.clone());
    if args.with_atime {
        source = source.with_atime();
    }
    if args.image {
        source = source.with_images();
    }
    Ok(Arc::new(source))
}

fn backup_json(
    summary: &backup::Summary,
    policy: Policy,
    survives: String,
    (start_ms, end_ms): (u64, u64),
    meter: &Meter,
    dry_run: bool,
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
        "snapshot_id": summary.snapshot.map(|id| id.to_string()), "dry_run": dry_run,
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

fn backup_text(summary: &backup::Summary, survives: &str, meter: &Meter, dry_run: bool) -> String {
    let s = &summary.info.stats;
    let seconds = meter.elapsed().as_secs_f64();
    let rate = Bytes((s.total_bytes as f64 / seconds.max(0.001)) as u64);
    let kind = summary.info.kind.word();
    let parent = summary.info.parent.map_or(String::new(), |p| format!(", parent {}", p.short()));
    let end = match (summary.snapshot, dry_run) {
        (Some(id), _) => format!("{kind} snapshot {} saved{parent}; it survives {survives}", id.short()),
        (None, true) => format!("nothing was stored: this was a dry run of a backup of kind {kind}{parent}"),
        (None, false) => format!("no snapshot was saved{parent}: nothing has changed since"),
    };
    format!(
        "Files:   {:>8} new, {:>8} changed, {:>8} unmodified\nDirs:    {:>8} new, {:>8} changed, {:>8} unmodified\n\
         Read {}, new {} in {} chunks, packed {}, sent {} as {} shards\n\
         processed {} files, {} in {} ({rate}/s)\n{end}\n",
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
    )
}
