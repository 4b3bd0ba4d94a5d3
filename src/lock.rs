//! `farshore lock`: keeps snapshots from being forgotten, for a time, by anybody. The cluster enforces it; here it is
//! only asked for.

use crate::args::{Global, LockArgs, Mode};
use crate::exit::{self, Exit};
use crate::profile;
use farshore_client::Repository;
use farshore_client::list::{self, Filter};
use farshore_core::catalogue::{Lock, LockMode, RepoLock};
use farshore_core::id::SnapshotId;
use farshore_core::units::{parse_date, parse_duration, rfc3339};
use serde_json::{Value, json};

/// `farshore lock`.
pub async fn run(args: LockArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let mode = match args.mode {
        Mode::Governance => LockMode::Governance,
        Mode::Compliance => LockMode::Compliance,
    };
    let for_ms = args.for_time.as_deref().map(parse_duration).transpose();
    let for_ms =
        for_ms.map_err(|e| Exit::failure(format!("--for: {e}")))?.map(|time| time.as_millis() as u64);
    let until_ms = args.until.as_deref().map(parse_date).transpose();
    let until_ms = until_ms.map_err(|e| Exit::failure(format!("--until: {e}")))?;
    let asked = for_ms.is_some() || until_ms.is_some() || args.lift;
    match (args.snapshots.is_empty(), asked) {
        (true, false) => {}
        (false, false) => return Err(Exit::failure("for how long? give --for 30d or --until 2030-01-31")),
        (true, true) => {
            if until_ms.is_some() {
                return Err(Exit::failure(
                    "a repository locks each snapshot for a time after its commit: give --for 30d, or name snapshots",
                ));
            }
            repository.lock(for_ms.map(|for_ms| RepoLock { mode, for_ms }), args.bypass_governance).await?;
        }
        (false, true) => {
            let (_, now_ms) = repository.settings().await?;
            let until_ms = until_ms.or(for_ms.map(|ms| now_ms.saturating_add(ms))).unwrap_or(0);
            let all = repository.snapshots(&Filter::default()).await?;
            let ids = args.snapshots.iter().map(|name| Ok(list::pick(&all, name)?.id));
            for id in ids.collect::<Result<Vec<SnapshotId>, Exit>>()? {
                repository.lock_snapshot(id, Lock { mode, until_ms }, args.bypass_governance).await?;
            }
        }
    }
    show(&repository, global).await
}

/// What is locked now.
async fn show(repository: &Repository, global: &Global) -> Result<u8, Exit> {
    let (settings, now_ms) = repository.settings().await?;
    let all = repository.snapshots(&Filter::default()).await?;
    let own = |lock: Option<Lock>| lock.filter(|lock| lock.holds(now_ms));
    let locks: Vec<_> = all.iter().filter_map(|s| Some((s.id, own(s.marks.lock)?))).collect();
    if global.json {
        let row = |(id, lock): &(SnapshotId, Lock)| json!({"id": id.to_string(), "mode": lock.mode.word(), "until": rfc3339(lock.until_ms)});
        let repo =
            settings.lock.map(|lock| json!({"mode": lock.mode.word(), "seconds": lock.for_ms / 1_000}));
        let rows: Vec<Value> = locks.iter().map(row).collect();
        println!("{}", json!({"message_type": "locks", "repository": repo, "snapshots": rows}));
        return Ok(exit::OK);
    }
    if global.quiet {
        return Ok(exit::OK);
    }
    match settings.lock {
        None => println!("the repository locks no snapshot by itself"),
        Some(lock) => println!(
            "every snapshot is locked in {} mode for {} after its commit",
            lock.mode.word(),
            span(lock.for_ms)
        ),
    }
    for (id, lock) in locks {
        println!(
            "snapshot {} is locked in {} mode until {}",
            id.short(),
            lock.mode.word(),
            rfc3339(lock.until_ms)
        );
    }
    Ok(exit::OK)
}

/// Days, hours, minutes or seconds, whichever is whole.
fn span(ms: u64) -> String {
    let seconds = ms / 1_000;
    let units = [(86_400, "days"), (3_600, "hours"), (60, "minutes")];
    match units.into_iter().find(|(unit, _)| seconds.is_multiple_of(*unit)) {
        Some((unit, word)) => format!("{} {word}", seconds / unit),
        None => format!("{seconds} seconds"),
    }
}
