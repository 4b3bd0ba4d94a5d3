//! `farshore cluster budget`, `cluster verified` and `cluster scrub --pause`: limits of the cluster's own work, and what was
//! read again after it was moved.

use crate::args::{BudgetArgs, Global, ScrubArgs, VerifiedArgs};
use crate::exit::{self, Exit};
use crate::print;
use crate::profile::connect;
use farshore_core::catalogue::{LinkBudget, Upkeep};
use farshore_core::id::{NodeId, RepoId};
use farshore_core::topology::Region;
use farshore_core::units::{Bytes, parse_duration, rfc3339};
use farshore_proto::wire::{ListVerificationsReply, Verification, VerificationCheck};
use serde_json::{Value, json};

/// Millionths of the currency unit, as people write money.
pub fn money(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    let cut = text.trim_end_matches('0');
    // At least two places.
    let places = cut.len().max(text.len() - 4);
    text[..places].into()
}

/// What `money` writes.
fn micros(text: &str) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !digits(whole) || !digits(part) || part.len() > 6 {
        return None;
    }
    let part = format!("{part:0<6}").parse::<u64>().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(1_000_000)?.checked_add(part)
}

fn limit(flag: &str, text: &str) -> Result<Option<u64>, Exit> {
    match text {
        "none" => Ok(None),
        text => match text.parse::<Bytes>() {
            Ok(Bytes(0)) => {
                Err(Exit::failure(format!("{flag}: nothing would ever move; `none` for no limit")))
            }
            Ok(Bytes(bytes)) => Ok(Some(bytes)),
            Err(e) => Err(Exit::failure(format!("{flag}: {e}"))),
        },
    }
}

/// `FROM,TO[,rate=BYTES][,day=BYTES][,price=PER_GIB]`, or `FROM,TO,none`.
fn link_of(text: &str) -> Result<(Region, Region, Option<LinkBudget>), Exit> {
    let bad = |why: &dyn std::fmt::Display| {
        Exit::failure(format!("--link {text}: {why}; write FROM,TO,rate=10M,day=100G,price=0.02"))
    };
    let mut parts = text.split(',');
    let mut region = || parts.next().unwrap_or_default().parse::<Region>().map_err(|e| bad(&e));
    let (from, to) = (region()?, region()?);
    let mut link =
        LinkBudget { from: from.clone(), to: to.clone(), bytes_s: None, bytes_day: None, micros_gib: 0 };
    let mut says = false;
    for part in parts {
        says = true;
        match part.split_once('=') {
            Some(("rate", rate)) => link.bytes_s = limit("rate", rate)?,
            Some(("day", bytes)) => link.bytes_day = limit("day", bytes)?,
            Some(("price", price)) => {
                link.micros_gib = micros(price).ok_or_else(|| bad(&"a price is a number such as 0.02"))?;
            }
            None if part == "none" => return Ok((from, to, None)),
            _ => return Err(bad(&format!("{part:?} is no limit"))),
        }
    }
    match says {
        true => Ok((from, to, Some(link))),
        false => Err(bad(&"it says nothing of the link")),
    }
}

/// Shows the budgets, after changing what is asked for.
pub async fn budget(args: &BudgetArgs, global: &Global) -> Result<u8, Exit> {
    let links: Vec<_> = args.link.iter().map(|text| link_of(text)).collect::<Result<_, _>>()?;
    let client = connect(global).await?;
    let operator = client.operator()?;
    let before = operator.upkeep().await?;
    let mut upkeep = before.clone();
    for (from, to, link) in links {
        upkeep.links.retain(|known| (&known.from, &known.to) != (&from, &to));
        upkeep.links.extend(link);
    }
    if let Some(rate) = &args.node_rate {
        upkeep.node_bytes_s = limit("--node-rate", rate)?;
    }
    if let Some(spend) = &args.spend {
        let bad = || Exit::failure(format!("--spend: {spend:?} is no amount of money such as 5 or 0.50"));
        upkeep.spend_micros_day = match spend.as_str() {
            "none" => None,
            spend => Some(micros(spend).ok_or_else(bad)?),
        };
    }
    if upkeep != before {
        upkeep = operator.set_upkeep(upkeep).await?;
    }
    let spent = client.status().await?.repair.spent_micros;
    if global.json {
        println!("{}", budget_json(&upkeep, spent));
    } else if !global.quiet {
        print!("{}", budget_text(&upkeep, spent));
    }
    Ok(exit::OK)
}

fn budget_json(upkeep: &Upkeep, spent: u64) -> Value {
    let link = |link: &LinkBudget| {
        json!({
            "from": link.from.as_str(), "to": link.to.as_str(), "bytes_per_second": link.bytes_s,
            "bytes_per_day": link.bytes_day, "price_micros_per_gib": link.micros_gib,
        })
    };
    json!({
        "message_type": "budget", "node_bytes_per_second": upkeep.node_bytes_s,
        "spend_micros_per_day": upkeep.spend_micros_day, "spent_micros": spent,
        "links": upkeep.links.iter().map(link).collect::<Vec<_>>(),
    })
}

fn budget_text(upkeep: &Upkeep, spent: u64) -> String {
    let rate = |rate: Option<u64>| rate.map_or("no limit".into(), |rate| format!("{}/s", Bytes(rate)));
    let mut lines = vec![format!("each node    {}", rate(upkeep.node_bytes_s))];
    let most = upkeep.spend_micros_day.map_or("no limit".into(), |most| format!("{} a day", money(most)));
    lines.push(format!("money        {most}; {} since this leader's day began", money(spent)));
    for link in &upkeep.links {
        let day = link.bytes_day.map_or("no limit".into(), |day| Bytes(day).to_string());
        lines.push(format!(
            "{} -> {}   {}, {day} a day, {} for a GiB",
            link.from,
            link.to,
            rate(link.bytes_s),
            money(link.micros_gib)
        ));
    }
    if upkeep.links.is_empty() {
        lines.push("links        no limit, and no price is known".into());
    }
    lines.join("\n") + "\n"
}

/// Pauses the scrub, lets it go on, or says how often it comes by.
pub async fn scrub(args: &ScrubArgs, global: &Global) -> Result<u8, Exit> {
    let every = match args.every.as_deref() {
        None => None,
        Some("default") => Some(None),
        Some(text) => {
            let every = parse_duration(text).map_err(Exit::failure)?.as_millis() as u64;
            Some(Some(every).filter(|ms| *ms > 0))
        }
    };
    let client = connect(global).await?;
    let operator = client.operator()?;
    let mut upkeep = operator.upkeep().await?;
    upkeep.scrub_paused = (upkeep.scrub_paused || args.pause) && !args.resume;
    upkeep.scrub_every_ms = every.unwrap_or(upkeep.scrub_every_ms);
    let upkeep = operator.set_upkeep(upkeep).await?;
    if global.json {
        let line = json!({
            "message_type": "scrub_set", "paused": upkeep.scrub_paused, "every_ms": upkeep.scrub_every_ms,
        });
        println!("{line}");
    } else if !global.quiet {
        let every = upkeep.scrub_every_ms.map_or("as each node is configured".into(), print::span);
        match upkeep.scrub_paused {
            true => {
                println!("paused: no node reads its shards by itself until farshore cluster scrub --resume")
            }
            false => println!("on; every shard is read at least every {every}"),
        }
    }
    Ok(exit::OK)
}

/// Lists the records, or looks at one again.
pub async fn verified(args: &VerifiedArgs, global: &Global) -> Result<u8, Exit> {
    let client = connect(global).await?;
    let operator = client.operator()?;
    let Some(number) = args.number else {
        let all = operator.verifications().await?;
        if global.json {
            println!("{}", all_json(&all));
        } else {
            print!("{}", all_text(&all));
        }
        return Ok(exit::OK);
    };
    let meter = print::Counter::new(global, "stripes looked at");
    let found =
        operator.check_verification(number, args.read, |looked, total| meter.show(looked, total)).await?;
    meter.finish();
    if global.json {
        println!("{}", check_json(&found));
    } else {
        print!("{}", check_text(&found));
    }
    Ok(if found.weakest.is_some_and(|spare| spare < 0) { exit::CHECK_FAILED } else { exit::OK })
}

fn subject(record: &Verification) -> String {
    let id = match record.node {
        0 => RepoId::from_slice(&record.repo).map(|id| id.to_string()).unwrap_or_default(),
        node => NodeId(node).to_string(),
    };
    let name = if record.name.is_empty() { &id } else { &record.name };
    match record.node {
        0 => format!("repository {name}, coded anew"),
        _ => format!("node {name}, emptied"),
    }
}

fn record_json(record: &Verification) -> Value {
    json!({
        "number": record.number, "about": if record.node == 0 { "repository" } else { "node" }, "name": record.name,
        "begun_ms": record.begun_ms, "ended_ms": Some(record.ended_ms).filter(|ms| *ms > 0), "stripes": record.stripes,
        "good": record.good, "short": record.short, "least_spare": record.weakest,
    })
}

fn all_json(all: &ListVerificationsReply) -> Value {
    let waiting = all.waiting.iter().map(|w| json!({"name": w.name, "stripes": w.stripes}));
    json!({
        "message_type": "verified", "records": all.records.iter().map(record_json).collect::<Vec<_>>(),
        "waiting": waiting.collect::<Vec<_>>(),
    })
}

fn all_text(all: &ListVerificationsReply) -> String {
    let mut out = String::new();
    for record in &all.records {
        let when = match record.ended_ms {
            0 => "not ended".into(),
            ended => rfc3339(ended),
        };
        let spare = record.weakest.map_or("-".into(), |spare| spare.to_string());
        out += &format!(
            "{:>4}  {when:<20}  {}: {}, {} good, {} short, least spare {spare}\n",
            record.number,
            subject(record),
            print::count(record.stripes, "stripe"),
            record.good,
            record.short,
        );
    }
    for waiting in &all.waiting {
        out += &format!(
            "      waiting to be read: {} of {}\n",
            print::count(waiting.stripes, "stripe"),
            waiting.name
        );
    }
    if out.is_empty() {
        out += "nothing was drained, migrated or coded anew yet\n";
    }
    out
}

fn check_json(found: &VerificationCheck) -> Value {
    let mut line = record_json(&found.record.clone().unwrap_or_default());
    line["message_type"] = json!("verification_check");
    line["now"] = json!({
        "read": found.read, "unchanged": found.unchanged, "changed": found.changed, "gone": found.gone,
        "good": found.good, "short": found.short, "least_spare": found.weakest,
    });
    line
}

fn check_text(found: &VerificationCheck) -> String {
    let record = found.record.clone().unwrap_or_default();
    let spare = |spare: Option<i32>| spare.map_or("-".into(), |spare| spare.to_string());
    let how = if found.read {
        "every shard was read once more"
    } else {
        "as the catalogue has it; --read has every shard read"
    };
    format!(
        "record {}: {}\n  then {}: {}, {} shards good, {} short, least spare {}\n  now: {} unchanged, {} changed, {} gone; {} \
         shards good, {} short, least spare {}\n  {how}\n",
        record.number,
        subject(&record),
        rfc3339(record.begun_ms),
        print::count(record.stripes, "stripe"),
        record.good,
        record.short,
        spare(record.weakest),
        found.unchanged,
        found.changed,
        found.gone,
        found.good,
        found.short,
        spare(found.weakest),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn money_is_written_and_read_exactly() {
        for (amount, text) in
            [(0, "0.00"), (5_000_000, "5.00"), (20_000, "0.02"), (1, "0.000001"), (1_234_500, "1.2345")]
        {
            assert_eq!((money(amount).as_str(), micros(text)), (text, Some(amount)));
        }
        assert_eq!(micros("3"), Some(3_000_000));
        for bad in ["", ".5", "1.2345678", "-1", "1e3", "x", "99999999999999999999"] {
            assert_eq!(micros(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn links_are_limited_priced_and_let_go() {
        let (from, to, link) = link_of("aws/a,gcp/b,rate=10M,day=100G,price=0.02").unwrap();
        let link = link.unwrap();
        assert_eq!((from.as_str(), to.as_str()), ("aws/a", "gcp/b"));
        assert_eq!((link.bytes_s, link.bytes_day), (Some(10 << 20), Some(100 << 30)));
        assert_eq!(link.micros_gib, 20_000);
        assert!(link_of("aws/a,gcp/b,none").unwrap().2.is_none());
        for bad in [
            "aws/a",
            "aws/a,gcp/b",
            "aws/a,b,rate=1",
            "aws/a,gcp/b,rate=0",
            "aws/a,gcp/b,price=x",
            "aws/a,gcp/b,a=1",
        ] {
            assert!(link_of(bad).is_err(), "{bad}");
        }
    }
}
