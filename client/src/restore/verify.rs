//! Reading a restored tree back: every chunk of every file is compared with the name it has in the snapshot.

use super::plan::{PlannedFile, Planner};
use super::{Context, Options, resolve, reuse};
use crate::error::Result;
use crate::files::{RelPath, Target};
use crate::list::Snapshot;
use crate::progress::{Event, Progress};

/// What was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Verified {
    /// Files that were read.
    pub files: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Paths that are not what the snapshot says.
    pub wrong: u64,
}

/// Reads back what a restore with these options has written. Each path that is wrong is reported.
pub async fn run(
    context: &Context,
    snapshot: &Snapshot,
    options: &Options,
    target: &dyn Target,
    progress: &dyn Progress,
) -> Result<Verified> {
    let walk = resolve(context, snapshot, options).await?.0;
    let mut planner = Planner::new(context.trees.clone(), walk, options.select.clone(), options.limits);
    let mut verified = Verified::default();
    let problem = |path: &RelPath, why: &str| {
        progress.event(Event::Problem { path: path.as_bytes(), why });
    };
    while let Some(plan) = planner.next().await {
        for (path, error) in &plan.problems {
            verified.wrong += 1;
            problem(path, &error.to_string());
        }
        let paths: Vec<RelPath> = plan.files.iter().map(|file| file.path.clone()).collect();
        let standing = target.look(&paths).await;
        for (file, standing) in plan.files.iter().zip(standing) {
            let size = standing.ok().flatten().and_then(|standing| standing.file);
            match wrong(context, file, size, target).await {
                Some(why) => {
                    verified.wrong += 1;
                    problem(&file.path, &why);
                }
                None => {
                    verified.files += u64::from(!file.continues);
                    verified.bytes += file.uses.iter().map(|used| u64::from(used.len)).sum::<u64>();
                }
            }
        }
    }
    Ok(verified)
}

/// What is wrong with a file, if anything is.
async fn wrong(
    context: &Context,
    file: &PlannedFile,
    size: Option<u64>,
    target: &dyn Target,
) -> Option<String> {
    match size {
        None => return Some("it is not there as a file".into()),
        Some(size) if size != file.size => return Some(format!("it has {size} bytes, not {}", file.size)),
        Some(_) if file.uses.is_empty() => return None,
        Some(_) => {}
    }
    let old = match target.open_file(&file.path).await {
        Ok(old) => old,
        Err(error) => return Some(format!("it cannot be read back: {error}")),
    };
    let right = reuse::right(&context.reader, &old, &file.uses, false).await;
    let at = right.iter().position(Option::is_none)?;
    Some(format!("its bytes differ from byte {} on", file.uses.get(at)?.offset))
}
