//! What operators ask of the cluster's own work: limits of it, and records of what was read again after it was moved.

use super::ask::Told;
use super::auth::actor;
use super::internal;
use crate::catalogue::{CatalogueError, View};
use crate::maintain::Shared;
use crate::maintain::verify::good_shards;
use farshore_core::catalogue::{Command, PackRecord, Reply, Subject, Verification};
use farshore_core::limits::PAGE_ROWS_MAX;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use farshore_proto::wire;

/// The limits that stand.
pub async fn get(shared: &Shared) -> Result<wire::Upkeep, ApiError> {
    shared.consensus.read_index().await?;
    Ok(shared.view().map_err(internal)?.upkeep().map_err(internal)?.into())
}

/// Sets all of them at once.
pub async fn set(shared: &Shared, caller: Caller, request: wire::Upkeep) -> Result<wire::Upkeep, ApiError> {
    let command = Command::SetUpkeep { upkeep: request.try_into()? };
    match shared.consensus.propose_as(actor(caller)?, command).await? {
        Reply::Refused(refusal) => Err(refusal.into()),
        _ => get(shared).await,
    }
}

/// Every record that is kept.
pub async fn list(shared: &Shared) -> Result<wire::ListVerificationsReply, ApiError> {
    shared.consensus.read_index().await?;
    let view = shared.view().map_err(internal)?;
    let (mut records, mut waiting) = (Vec::new(), Vec::new());
    for (number, row) in view.verifications().map_err(internal)? {
        records.push(record(&view, number, &row)?);
    }
    for subject in view.moved_subjects().map_err(internal)? {
        let stripes = view.moved(subject, None, PAGE_ROWS_MAX).map_err(internal)?.len() as u64;
        waiting.push(wire::VerificationWaiting { name: name(&view, subject)?, stripes });
    }
    Ok(wire::ListVerificationsReply { records, catalogue_ms: view.time_ms(), waiting })
}

fn name(view: &View, subject: Subject) -> Result<String, ApiError> {
    let name = match subject {
        Subject::Node(id) => view.node(id).map_err(internal)?.map(|node| node.name.to_string()),
        Subject::Repository(id) => view.repo(id).map_err(internal)?.map(|repo| repo.name.to_string()),
    };
    Ok(name.unwrap_or_default())
}

fn record(view: &View, number: u64, row: &Verification) -> Result<wire::Verification, ApiError> {
    let (node, repo) = match row.subject {
        Subject::Node(node) => (node.0, Vec::new()),
        Subject::Repository(repo) => (0, repo.as_bytes().to_vec()),
    };
    Ok(wire::Verification {
        number,
        node,
        repo: repo.into(),
        name: name(view, row.subject)?,
        begun_ms: row.begun_ms,
        ended_ms: row.ended_ms.unwrap_or(0),
        stripes: row.stripes,
        good: row.good,
        short: row.short,
        weakest: row.weakest.map(i32::from),
    })
}

/// Goes over the stripes of a record; with `read`, every shard of theirs is read whole by its holder.
pub async fn check(
    shared: &Shared,
    request: wire::CheckVerificationRequest,
    told: Told<wire::CheckVerificationProgress>,
) -> Result<wire::CheckVerificationProgress, ApiError> {
    shared.consensus.read_index().await?;
    let view = shared.view().map_err(internal)?;
    let number = request.number;
    let known = view.verifications().map_err(internal)?.into_iter().find(|(known, _)| *known == number);
    let (_, row) = known.ok_or_else(|| ApiError::NotFound(format!("there is no record {number}")))?;
    let mut found = wire::VerificationCheck { read: request.read, ..Default::default() };
    found.record = Some(record(&view, number, &row)?);
    let (mut after, mut looked) = (None, 0);
    loop {
        // Each page from the newest view: reading may take long.
        let view = shared.view().map_err(internal)?;
        let page = view.verified_stripes(number, after, STRIPES_PER_PAGE).map_err(internal)?;
        for (no, stripe) in &page {
            let pack = view.pack(*no).map_err(internal)?.filter(|pack| pack.stripe.id == stripe.stripe);
            looked += 1;
            let Some(pack) = pack else {
                found.gone += 1;
                continue;
            };
            match pack.stripe.generation == stripe.generation {
                true => found.unchanged += 1,
                false => found.changed += 1,
            }
            let good = good(shared, &view, &pack, request.read).await.map_err(internal)?;
            let spare = good as i32 - pack.stripe.scheme.k() as i32;
            found.good += good;
            found.short += pack.stripe.shards.len() as u64 - good;
            found.weakest = Some(found.weakest.map_or(spare, |weakest| weakest.min(spare)));
            told.progress(wire::CheckVerificationProgress { looked, total: row.stripes, found: None });
        }
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        tokio::task::yield_now().await;
    }
    Ok(wire::CheckVerificationProgress { looked, total: row.stripes, found: Some(found) })
}

/// Stripes of a record looked at between two views.
const STRIPES_PER_PAGE: usize = 64;

/// Shards that were just read whole, or that lie on nodes that count.
async fn good(shared: &Shared, view: &View, pack: &PackRecord, read: bool) -> Result<u64, CatalogueError> {
    if read {
        return Ok(good_shards(shared, view, pack).await?.count_ones().into());
    }
    let mut good = 0;
    for node in pack.stripe.shards.iter().filter_map(|shard| shard.node) {
        good += u64::from(view.node(node)?.is_some_and(|node| node.state.counts()));
    }
    Ok(good)
}
