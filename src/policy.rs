//! `farshore policy`: what a repository survives, how its packs are coded, and how far a change of both has come.

use crate::args::{Global, PolicyArgs};
use crate::exit::{self, Exit};
use crate::profile;
use farshore_client::api::GarbageReport;
use farshore_core::policy::{self, Policy};
use farshore_core::units::{Bytes, parse_duration};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;

/// How often a change is looked after.
const LOOK: Duration = Duration::from_secs(1);

/// `farshore policy`.
pub async fn run(args: PolicyArgs, global: &Global) -> Result<u8, Exit> {
    let wait = args.wait.as_deref().map(parse_duration).transpose().map_err(Exit::failure)?;
    let goal: Option<Policy> = match &args.survive {
        Some(goal) => Some(goal.parse().map_err(|e| Exit::failure(format!("--survive: {e}")))?),
        None => None,
    };
    let repository = profile::open(global).await?;
    if let Some(policy) = goal {
        repository.set_policy(policy).await?;
    }
    let deadline = Instant::now() + wait.unwrap_or(Duration::ZERO);
    let mut seen = repository.prune(true).await?;
    while seen.recode > 0 && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
        seen = repository.prune(true).await?;
    }
    // The record that was opened knows the former one.
    show(goal.unwrap_or(repository.policy()), &seen, global).await?;
    Ok(if wait.is_some() && seen.recode > 0 { exit::UNDER_TARGET } else { exit::OK })
}

async fn show(policy: Policy, seen: &GarbageReport, global: &Global) -> Result<(), Exit> {
    let nodes = profile::connect(global).await?.topology().await?.nodes;
    let code = policy::compile(&policy, &nodes);
    if global.json {
        let scheme = code.ok().map(|s| json!({"k": s.k(), "m": s.m(), "spread": s.spread()}));
        let line = json!({
            "message_type": "policy", "survive": policy.to_string(), "scheme": scheme, "packs": seen.packs,
            "bytes": seen.bytes, "recode": seen.recode, "recode_bytes": seen.recode_bytes,
        });
        println!("{line}");
    } else if !global.quiet {
        println!("survive {policy}");
        match code {
            Ok(scheme) => println!("{}", policy::explain(scheme, &policy, &nodes)),
            Err(error) => println!("new packs are coded as far as possible: {error}"),
        }
        match seen.recode {
            0 => println!("{} packs, {}: all coded as the policy asks for", seen.packs, Bytes(seen.bytes)),
            n => println!(
                "{n} of {} packs, {} of {}, are still to be coded anew; they stay readable, and `farshore policy --wait 1h` \
                 waits for it",
                seen.packs,
                Bytes(seen.recode_bytes),
                Bytes(seen.bytes)
            ),
        }
    }
    Ok(())
}
