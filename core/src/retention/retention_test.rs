//! Retention against a second model that is written another way, vectors worked out by hand, and what must hold whatever
//! the input.

use super::*;
use crate::limits::{RETENTION_BYTES_MAX, SUSPECT_AHEAD_MS, SUSPECT_BEHIND_MS};
use crate::units::rfc3339;
use proptest::prelude::*;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;
const GIB: u64 = 1 << 30;

/// Unix milliseconds of a date and time in UTC, found by counting years and months.
fn utc(text: &str) -> u64 {
    let n: Vec<u64> = text.split(['-', 'T', ':']).map(|part| part.parse().unwrap()).collect();
    let days = (1970..n[0]).map(|y| 365 + leap(y)).sum::<u64>()
        + (1..n[1]).map(|m| month_days(n[0], m)).sum::<u64>()
        + n[2]
        - 1;
    days * DAY + n[3] * HOUR + n[4] * 60_000
}

fn leap(year: u64) -> u64 {
    u64::from(year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: u64) -> u64 {
    [31, 28 + leap(year), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31][month as usize - 1]
}

/// Year, month, day, hour and the ISO year and week of a local time, by counting.
fn fields(ms: u64, offset_min: i64) -> [u64; 6] {
    let local = (ms as i64 + offset_min * 60_000) as u64;
    let day = local / DAY;
    let (mut year, mut left) = (1970, day);
    while left >= 365 + leap(year) {
        left -= 365 + leap(year);
        year += 1;
    }
    let of_year = left;
    let mut month = 1;
    while left >= month_days(year, month) {
        left -= month_days(year, month);
        month += 1;
    }
    // The ISO week is that of its Thursday: the year the Thursday is in, and how many came before it in that year.
    let (mut iso_year, mut thursday) = (year, of_year as i64 + 3 - ((day + 3) % 7) as i64);
    if thursday < 0 {
        iso_year -= 1;
        thursday += (365 + leap(iso_year)) as i64;
    } else if thursday >= (365 + leap(year)) as i64 {
        thursday -= (365 + leap(year)) as i64;
        iso_year += 1;
    }
    [year, month, left + 1, local / HOUR % 24, iso_year, thursday as u64 / 7 + 1]
}

/// What stands for a snapshot in a rule.
fn label(rule: Rule, c: &Candidate, nr: usize) -> String {
    let [y, m, d, h, iso_year, week] = fields(c.committed_ms, i64::from(c.utc_offset_min.unwrap_or(0)));
    match rule {
        Rule::Last => format!("#{nr}"),
        Rule::Hourly => format!("{y}-{m}-{d} {h}"),
        Rule::Daily => format!("{y}-{m}-{d}"),
        Rule::Weekly => format!("{iso_year}-W{week}"),
        Rule::Monthly => format!("{y}-{m}"),
        Rule::Yearly => format!("{y}"),
    }
}

/// Positions that a rule's buckets are headed by.
fn heads(rule: Rule, list: &[&Candidate]) -> Vec<usize> {
    let labels: Vec<String> = list.iter().enumerate().map(|(nr, c)| label(rule, c, nr)).collect();
    (0..list.len()).filter(|at| *at == 0 || labels[*at] != labels[*at - 1]).collect()
}

/// The moment a span before another, walking a month at a time.
fn before(c: &Candidate, span: Span) -> i64 {
    let offset = i64::from(c.utc_offset_min.unwrap_or(0)) * 60_000;
    let [mut year, mut month, day, ..] = fields(c.committed_ms, offset / 60_000);
    for _ in 0..span.years * 12 + span.months {
        (year, month) = if month == 1 { (year - 1, 12) } else { (year, month - 1) };
    }
    let midnight = utc(&format!("{year}-{month}-1T0:0")) as i64 + (day as i64 - 1) * DAY as i64;
    let in_day = (c.committed_ms as i64 + offset).rem_euclid(DAY as i64);
    midnight + in_day - offset - i64::from(span.days) * DAY as i64 - i64::from(span.hours) * HOUR as i64
}

/// restic's rules, said as sets: positions that are kept, of a list that is newest first.
fn model(policy: &Policy, now_ms: u64, list: &[&Candidate]) -> BTreeSet<usize> {
    let mut kept = BTreeSet::new();
    if list.is_empty() {
        return kept;
    }
    let oldest = list.len() - 1;
    for (rule, count) in policy.counts() {
        let heads = heads(rule, list);
        let limit = count.limit().map_or(usize::MAX, |n| n as usize);
        kept.extend(heads.iter().take(limit));
        if heads.iter().filter(|at| **at != oldest).count() < limit {
            kept.insert(oldest);
        }
    }
    let newest = list.iter().find(|c| c.committed_ms <= now_ms);
    for (rule, span) in policy.spans().into_iter().filter(|(_, span)| *span != Span::ZERO) {
        let inside: Vec<usize> = (0..list.len())
            .filter(|at| newest.is_none_or(|n| list[*at].committed_ms as i64 > before(n, span)))
            .collect();
        let first = inside.first().copied().unwrap_or(0);
        let part: Vec<&Candidate> = inside.iter().map(|at| list[*at]).collect();
        assert_eq!(inside, (first..first + part.len()).collect::<Vec<_>>(), "a span has no holes");
        kept.extend(heads(rule, &part).into_iter().map(|at| at + first));
    }
    for tags in &policy.keep_tags {
        let fits = |c: &Candidate| match tags.is_empty() {
            true => c.tags.is_empty(),
            false => tags.iter().filter(|t| c.tags.contains(t)).count() == tags.len(),
        };
        kept.extend((0..list.len()).filter(|at| fits(list[*at])));
    }
    kept
}

fn snapshot(n: u64, committed_ms: u64) -> Candidate {
    let mut id = [0; 32];
    id[..8].copy_from_slice(&n.to_be_bytes());
    Candidate {
        id: SnapshotId(id),
        group: [0; 16],
        committed_ms,
        utc_offset_min: None,
        label_ms: committed_ms,
        bytes: GIB,
        tags: vec![],
        partial: false,
        verified: false,
        locked_until_ms: None,
    }
}

/// Snapshots of these times, numbered from 0.
fn at(times: &[&str]) -> Vec<Candidate> {
    times.iter().enumerate().map(|(n, time)| snapshot(n as u64, utc(time))).collect()
}

fn policy(text: &str) -> Policy {
    text.parse().unwrap()
}

fn number(id: &SnapshotId) -> u64 {
    u64::from_be_bytes(id.0[..8].try_into().unwrap())
}

/// Numbers of those that stay, newest first.
fn kept(verdicts: &[Verdict]) -> Vec<u64> {
    verdicts.iter().filter(|v| v.kept()).map(|v| number(&v.id)).collect()
}

fn keep(text: &str, all: &[Candidate]) -> Vec<u64> {
    kept(&evaluate(&policy(text), utc("2100-1-1T0:0"), all))
}

fn words(policy: &Policy, verdict: &Verdict) -> Vec<String> {
    verdict.reasons.iter().map(|r| r.words(policy, &|t| t.to_string())).collect()
}

#[test]
fn counts_take_the_newest_of_each_bucket_and_the_oldest_while_any_are_left() {
    let all = at(&["2026-3-1T8:0", "2026-3-1T20:0", "2026-3-2T8:0", "2026-3-2T8:30", "2026-3-4T9:0"]);
    assert_eq!(keep("last=2", &all), [4, 3]);
    assert_eq!(keep("daily=2", &all), [4, 3]);
    assert_eq!(keep("daily=3", &all), [4, 3, 1], "three days, none left for the oldest");
    assert_eq!(keep("daily=4", &all), [4, 3, 1, 0], "one left: the oldest stays as well");
    assert_eq!(keep("hourly=3", &all), [4, 3, 1]);
    assert_eq!(keep("hourly=unlimited", &all), [4, 3, 1, 0]);
    assert_eq!(keep("monthly=1", &all), [4]);
    assert_eq!(keep("monthly=2 last=2", &all), [4, 3, 0]);
    assert_eq!(keep("last=0 tag=-", &all[..2]), [1, 0]);
}

/// restic itself, asked once; the file says how.
#[test]
fn it_keeps_what_restic_keeps() {
    let tag = |name: &str| TagHash([name.as_bytes()[0]; 8]);
    let (mut all, mut policies, mut oldest) = (Vec::new(), 0, 0);
    for line in include_str!("restic_0_14.txt").lines().filter(|line| !line.starts_with('#')) {
        if let Some(snap) = line.strip_prefix("snapshot ") {
            let [seconds, offset, tags] = snap.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            let tags = tags.split('+').filter(|_| tags != "-").map(tag).collect();
            let made = snapshot(all.len() as u64, seconds.parse::<u64>().unwrap() * 1_000);
            all.push(Candidate { utc_offset_min: Some(offset.parse().unwrap()), tags, ..made });
            continue;
        }
        let (text, numbers) = line.strip_prefix("policy ").unwrap().split_once(" keeps ").unwrap();
        let hashed = ["a", "b", "c"].into_iter().fold(text.to_owned(), |text, name| {
            let (first, more) = (format!("tag={name}"), format!("+{name}"));
            text.replace(&first, &format!("tag={}", tag(name))).replace(&more, &format!("+{}", tag(name)))
        });
        let mut found = keep(&hashed, &all);
        found.sort_unstable();
        let mut expected: Vec<u64> = numbers.split(',').map(|n| n.parse().unwrap()).collect();
        // Keeping the oldest while counts are left came to restic in a later version.
        if found.first() == Some(&0) && expected.first() != Some(&0) {
            expected.insert(0, 0);
            oldest += 1;
        }
        assert_eq!(found, expected, "{text}");
        policies += 1;
    }
    assert_eq!((all.len(), policies), (90, 150));
    assert!(oldest < 50, "{oldest}");
}

#[test]
fn iso_weeks_and_years_end_at_different_times() {
    // 2020-12-31 (Thursday) and 2021-01-03 (Sunday) are of week 53 of 2020; 2021-01-04 begins week 1.
    let all = at(&["2020-12-27T9:0", "2020-12-31T9:0", "2021-1-3T9:0", "2021-1-4T9:0"]);
    assert_eq!(keep("weekly=2", &all), [3, 2]);
    assert_eq!(keep("weekly=3", &all), [3, 2, 0]);
    assert_eq!(keep("yearly=2", &all), [3, 1]);
    // 2024-12-30 (Monday) belongs to week 1 of 2025, but to December and to 2024.
    let all = at(&["2024-12-29T9:0", "2024-12-30T9:0", "2025-1-5T9:0", "2025-1-6T9:0"]);
    assert_eq!(keep("weekly=3", &all), [3, 2, 0]);
    assert_eq!(keep("weekly=2", &all), [3, 2]);
    assert_eq!(keep("yearly=2", &all), [3, 1]);
}

#[test]
fn buckets_follow_the_zone_each_snapshot_was_made_in() {
    // 23:30 and 00:30 UTC: two days in Greenwich, one in New York and one in Kathmandu (5 hours 45 minutes ahead).
    let in_zone = |offset: Option<i16>| -> Vec<Candidate> {
        at(&["2026-6-1T23:30", "2026-6-2T0:30"])
            .into_iter()
            .map(|c| Candidate { utc_offset_min: offset, ..c })
            .collect()
    };
    let twins = |offset| keep("daily=1 weekly=1", &in_zone(offset));
    assert_eq!(twins(None), [1]);
    let both = |offset| keep("daily=2", &in_zone(offset)).len();
    assert_eq!((both(None), both(Some(-240)), both(Some(345))), (2, 2, 2), "the oldest stays in any zone");
    let mut three = in_zone(Some(-240));
    three.push(snapshot(2, utc("2026-6-4T12:0")));
    assert_eq!(keep("daily=2", &three), [2, 1], "one day in New York");
    three.iter_mut().for_each(|c| c.utc_offset_min = None);
    assert_eq!(keep("daily=3", &three), [2, 1, 0], "two in Greenwich");
    // The clocks of Berlin go back at 01:00 UTC: 00:30 and 01:30 UTC are both half past two on the wall.
    let mut berlin = at(&["2026-10-25T0:30", "2026-10-25T1:30", "2026-10-25T9:30"]);
    (berlin[0].utc_offset_min, berlin[1].utc_offset_min) = (Some(120), Some(60));
    berlin.push(snapshot(9, utc("2026-10-24T0:0")));
    assert_eq!(keep("hourly=2", &berlin), [2, 1], "the same hour of the wall, so one of them stays");
    assert_eq!(keep("hourly=3", &berlin), [2, 1, 9]);
}

#[test]
fn spans_go_back_from_the_newest_by_the_calendar() {
    // From noon of March 31, a month back is "February 31", which runs over to March 3.
    let all = at(&["2026-2-28T12:0", "2026-3-3T12:0", "2026-3-3T12:1", "2026-3-31T12:0"]);
    assert_eq!(keep("within=1m", &all), [3, 2], "the end of the span itself is outside");
    assert_eq!(keep("within=1m1h", &all), [3, 2, 1]);
    // In a leap year the same day is March 2.
    let all = at(&["2024-3-2T12:0", "2024-3-2T12:1", "2024-3-31T12:0"]);
    assert_eq!(keep("within=1m", &all), [2, 1]);
    // A year back from February 29 is March 1.
    let all = at(&["2023-3-1T0:0", "2023-3-1T0:1", "2024-2-29T0:0"]);
    assert_eq!(keep("within=1y", &all), [2, 1]);
    // Nothing came for years: what was within a week of the newest stays.
    assert_eq!(keep("within=7d", &at(&["2001-1-1T0:0", "2001-1-5T0:0", "2001-1-9T0:0"])), [2, 1]);
    // Periods inside a span: no oldest is kept there.
    let all = at(&["2026-1-1T1:0", "2026-1-1T2:0", "2026-1-2T1:0", "2026-1-2T2:0", "2026-1-3T1:0"]);
    assert_eq!(keep("within-daily=1y", &all), [4, 3, 1]);
    assert_eq!(keep("within-daily=1d", &all), [4, 3], "two in the morning is inside, and heads its day");
    assert_eq!(keep("within-daily=2d", &all), [4, 3, 1]);
    assert_eq!(keep("within-monthly=1m within-hourly=25h", &all), [4, 3, 2]);
}

#[test]
fn a_snapshot_of_the_future_ages_nothing_and_without_a_present_nothing_ages() {
    let all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2036-1-1T0:0"]);
    let now = |text| kept(&evaluate(&policy("within=3d"), utc(text), &all));
    assert_eq!(now("2026-1-3T0:0"), [2, 1, 0]);
    assert_eq!(now("2036-1-1T0:0"), [2]);
    assert_eq!(now("2020-1-1T0:0"), [2, 1, 0]);
}

#[test]
fn every_rule_that_matches_is_named() {
    let tag = TagHash([0xab; 8]);
    let mut all = at(&["2026-1-1T1:0", "2026-2-2T2:0"]);
    all[1].tags = vec![tag, TagHash([1; 8])];
    all[1].verified = true;
    all[0].locked_until_ms = Some(utc("2150-1-1T0:0"));
    let policy = policy("last=1 monthly=unlimited within=1d within-yearly=2y tag=abababababababab");
    let verdicts = evaluate(&policy, utc("2100-1-1T0:0"), &all);
    let expected = [
        "has tags [abababababababab]",
        "within 1d",
        "last snapshot",
        "monthly snapshot",
        "yearly within 2y",
        "last verified of its group",
    ];
    assert_eq!(words(&policy, &verdicts[0]), expected);
    assert_eq!(words(&policy, &verdicts[1]), ["monthly snapshot", "locked until 2150-01-01T00:00:00.000Z"]);
    assert_eq!(words(&Policy::default(), &evaluate(&Policy::default(), 0, &all)[0])[1], "policy is empty");
}

#[test]
fn it_is_said_when_a_snapshot_may_go() {
    let now = utc("2026-5-20T12:0");
    let all = at(&["2026-5-17T9:0", "2026-5-18T9:0", "2026-5-20T9:0"]);
    let until = |text: &str, nr: usize| {
        let verdict = &evaluate(&policy(text), now, &all)[nr];
        let said: Vec<String> = verdict.reasons.iter().map(Reason::until).collect();
        (said.join("; "), verdict.end().not_before_ms.map(|ms| rfc3339(ms)[..10].to_owned()))
    };
    assert_eq!(until("last=3", 0), ("there are 3 newer".into(), None));
    assert_eq!(until("last=3", 2), ("there are 1 newer".into(), None));
    let (said, when) = until("daily=7", 0);
    assert_eq!(said, "there is a newer one of the same day, or there are 7 newer daily ones");
    assert_eq!(when, None, "a second one today takes its place at once");
    // The 18th is the second of seven: six more days are needed after the 20th, the sixth of which is the 26th.
    assert_eq!(until("daily=7", 1), ("there are 6 newer daily ones".into(), Some("2026-05-26".into())));
    assert_eq!(until("weekly=2", 1).1, None, "kept by nothing");
    // The oldest is kept since counts are left: it goes when all four are filled by later weeks.
    assert_eq!(until("weekly=4", 2), ("there are 3 newer weekly ones".into(), Some("2026-06-08".into())));
    assert_eq!(until("monthly=3", 2), ("there are 2 newer monthly ones".into(), Some("2026-07-01".into())));
    assert_eq!(until("yearly=3", 2), ("there are 2 newer yearly ones".into(), Some("2028-01-01".into())));
    assert_eq!(until("hourly=4", 2).1, Some("2026-05-20".into()));
    assert_eq!(until("yearly=unlimited", 2), ("the policy changes".into(), None));
    assert!(!evaluate(&policy("yearly=unlimited"), now, &all)[2].end().ends);
    let (said, when) = until("within=1m", 1);
    assert_eq!(said, "one is made after 2026-06-18T09:00:00.000Z");
    assert_eq!(when, Some("2026-06-18".into()));
    assert_eq!(until("within=1m daily=7", 1).1, Some("2026-06-18".into()), "the later of both");
    // What is said comes true: on the day before it still stays, on that day it may go.
    let mut later = all.clone();
    for day in 21..=26 {
        assert_eq!(kept(&evaluate(&policy("daily=7"), now, &later)).contains(&1), day <= 26);
        later.push(snapshot(day, utc(&format!("2026-5-{day}T1:0"))));
    }
    assert!(!kept(&evaluate(&policy("daily=7"), now, &later)).contains(&1));
}

#[test]
fn a_lock_ends_by_itself() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0"]);
    all[0].locked_until_ms = Some(utc("2026-3-1T0:0"));
    let now = |text| evaluate(&policy("last=1"), utc(text), &all);
    let end = now("2026-2-1T0:0")[1].end();
    assert_eq!((end.ends, end.by_newer, end.not_before_ms), (true, false, all[0].locked_until_ms));
    assert_eq!(kept(&now("2026-2-28T23:59")), [1, 0]);
    assert_eq!(kept(&now("2026-3-1T0:0")), [1]);
}

#[test]
fn groups_are_judged_each_for_itself_and_none_is_emptied_unnoticed() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2026-1-3T0:0", "2026-1-4T0:0"]);
    (all[0].group, all[2].group) = ([7; 16], [7; 16]);
    assert_eq!(keep("last=1", &all), [3, 2]);
    all[3].tags = vec![TagHash([1; 8])];
    let verdicts = evaluate(&policy("tag=0101010101010101"), 0, &all);
    assert_eq!(kept(&verdicts), [3]);
    assert_eq!(emptied(&verdicts), BTreeSet::from([[7; 16]]));
    all[2].partial = true;
    assert_eq!(
        emptied(&evaluate(&policy("tag=0101010101010101"), 0, &all)).len(),
        1,
        "a checkpoint is no backup"
    );
    assert!(emptied(&evaluate(&policy("last=1"), 0, &all)).is_empty());
}

#[test]
fn a_checkpoint_stays_until_something_newer_and_uses_up_nothing() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2026-1-2T0:5", "2026-1-2T0:10"]);
    (all[2].partial, all[3].partial) = (true, true);
    assert_eq!(keep("last=2", &all), [3, 1, 0]);
    all.push(snapshot(4, utc("2026-1-2T0:15")));
    assert_eq!(keep("last=2", &all), [4, 1]);
}

#[test]
fn the_last_verified_snapshot_stays_whatever_the_policy_says() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2026-1-3T0:0", "2026-1-4T0:0"]);
    (all[0].verified, all[1].verified) = (true, true);
    assert_eq!(keep("last=1", &all), [3, 1]);
    // An empty tree is easily verified. It must not take the place of the last good one.
    (all[3].verified, all[3].bytes) = (true, 0);
    assert_eq!(keep("last=1", &all), [3, 2, 1]);
}

#[test]
fn an_empty_mount_drives_nothing_out_until_it_is_the_new_normal() {
    // Ten good days, then the mount is gone and nobody looks.
    let start = utc("2026-1-1T3:0");
    let mut all: Vec<Candidate> = (0..10).map(|n| snapshot(n, start + n * DAY)).collect();
    let policy = policy("last=3");
    for n in 10..70 {
        all.push(Candidate { bytes: 0, ..snapshot(n, start + n * DAY) });
        let verdicts = evaluate(&policy, start + n * DAY, &all);
        let left = kept(&verdicts);
        all.retain(|c| left.contains(&number(&c.id)));
        let good = left.iter().filter(|n| **n < 10).count();
        match n {
            // Thirty days after the last good one. From then on each new one uses up a count.
            0..39 => assert_eq!(left, {
                let newest = (10.max(n - 2)..=n).rev();
                let first = (n > 12).then_some(10);
                newest.chain(first).chain([9, 8, 7]).collect::<Vec<u64>>()
            }),
            39..42 => assert_eq!(good, 41 - n as usize, "day {n}: {left:?}"),
            _ => assert_eq!(left, [n, n - 1, n - 2], "nothing is left to compare with"),
        }
        let suspects = verdicts.iter().filter(|v| v.suspicion.is_some()).count();
        assert_eq!(suspects > 0, n < 42, "day {n}");
    }
}

#[test]
fn a_tree_that_comes_back_is_trusted_at_once() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2026-1-3T0:0", "2026-1-4T0:0"]);
    (all[1].bytes, all[2].bytes) = (0, 10);
    let verdicts = evaluate(&policy("last=1"), utc("2026-1-4T1:0"), &all);
    let suspects: Vec<bool> = verdicts.iter().map(|v| v.suspicion.is_some()).collect();
    assert_eq!(suspects, [false, true, true, false]);
    assert_eq!(kept(&verdicts), [3, 1], "and the first of the row shows when trouble began");
    assert_eq!(kept(&evaluate(&policy("last=1"), utc("2026-2-1T0:0"), &all)), [3], "for a while");
    // The other way round: what was empty first is no measure.
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0"]);
    all[0].bytes = 0;
    assert!(evaluate(&policy("last=1"), 0, &all).iter().all(|v| v.suspicion.is_none()));
}

#[test]
fn what_is_suspect_and_what_is_not() {
    let suspicion = |change: &dyn Fn(&mut Candidate)| {
        let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0", "2026-1-3T0:0", "2026-1-4T0:0"]);
        change(&mut all[3]);
        evaluate(&policy("last=9"), 0, &all)[0].suspicion
    };
    let noon = utc("2026-1-4T0:0");
    assert_eq!(suspicion(&|_| {}), None);
    assert_eq!(suspicion(&|c| c.bytes = GIB / 2), None);
    assert_eq!(suspicion(&|c| c.bytes = GIB / 2 - 1), Some(Suspicion::Shrunk { from: GIB, to: GIB / 2 - 1 }));
    assert_eq!(suspicion(&|c| c.bytes = GIB * 4), None);
    assert_eq!(suspicion(&|c| c.bytes = GIB * 4 + 1), Some(Suspicion::Grown { from: GIB, to: GIB * 4 + 1 }));
    assert_eq!(suspicion(&|c| c.label_ms = noon + SUSPECT_AHEAD_MS), None);
    assert!(matches!(suspicion(&|c| c.label_ms += SUSPECT_AHEAD_MS + 1), Some(Suspicion::Ahead { .. })));
    assert_eq!(suspicion(&|c| c.label_ms = noon - SUSPECT_BEHIND_MS), None);
    assert!(
        matches!(suspicion(&|c| c.label_ms = 0), Some(Suspicion::Behind { .. })),
        "a clock without a battery"
    );
    let small = |from: u64, to: u64| {
        let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0"]);
        (all[0].bytes, all[1].bytes) = (from, to);
        evaluate(&policy("last=9"), 0, &all)[0].suspicion.map(|s| s.to_string())
    };
    assert_eq!(small(4_096, 200_000), None, "small trees change a lot");
    assert_eq!(small(200_000, 10), None);
    assert_eq!(small(2_048, 0).as_deref(), Some("shrunk from 2.000 KiB to 0 B"));
    assert_eq!(small(GIB, 9 * GIB).as_deref(), Some("grown from 1.000 GiB to 9.000 GiB"));
}

#[test]
fn forged_clocks_use_up_no_count() {
    let mut all = at(&["2026-1-1T0:0", "2026-1-2T0:0"]);
    for n in 2..50 {
        let ms = utc("2026-1-3T0:0") + n * HOUR;
        all.push(Candidate { label_ms: ms + n * 400 * DAY, ..snapshot(n, ms) });
    }
    let left = keep("last=2 daily=2", &all);
    assert!(left.contains(&0) && left.contains(&1), "{left:?}");
}

#[test]
fn policies_have_one_text() {
    let text = "last=3 hourly=24 daily=7 weekly=5 monthly=12 yearly=unlimited within=2y5m7d3h \
                within-hourly=48h within-daily=7d within-weekly=1m within-monthly=1y within-yearly=75y \
                tag=00112233445566ff+aaaaaaaaaaaaaaaa tag=-";
    assert_eq!(policy(text).to_string(), text);
    assert_eq!(policy("  tag=- yearly=unlimited\n last=3 ").to_string(), "last=3 yearly=unlimited tag=-");
    assert!(policy("").is_empty() && policy("last=0 within=0d").is_empty());
    assert!(!policy("tag=-").is_empty());
    let encoded = postcard::to_stdvec(&policy(text)).unwrap();
    assert_eq!(postcard::from_bytes::<Policy>(&encoded).unwrap(), policy(text));
    assert!(postcard::from_bytes::<Policy>(&postcard::to_stdvec("last=x").unwrap()).is_err());
    let long = format!("last=1{}", " ".repeat(RETENTION_BYTES_MAX));
    for bad in [
        "last",
        "last=",
        "last=-1",
        "last=1.5",
        "last=4294967295",
        "last=1 last=2",
        "minutely=3",
        "=3",
        "within=7",
        "within=d",
        "within=7w",
        "within=-7d",
        "within=1d2d",
        "within-last=7d",
        "within-=7d",
        "within=99999999999y",
        "within=7d\u{661}h",
        "tag=",
        "tag=x",
        "tag=00112233445566f",
        "withindaily=7d",
        &long,
    ] {
        assert!(bad.parse::<Policy>().is_err(), "{bad:.60}");
    }
    let mut full = "tag=0000000000000000 ".repeat(RETENTION_BYTES_MAX / 21);
    assert!(full.parse::<Policy>().unwrap().check().is_ok());
    full = full.trim_end().to_owned() + " last=4000000000 daily=4000000000";
    assert_eq!(full.parse::<Policy>(), Err(BadPolicy::TooLong));
    assert_eq!(policy("within=1y2h").keep_within, Span { years: 1, hours: 2, ..Span::ZERO });
    assert_eq!(
        policy("last=3 daily=unlimited within=7d within-weekly=1y tag=-").words(&|_| String::new()),
        "keep 3 latest, all daily snapshots and all snapshots within 7d of the newest \
         and weekly snapshots within 1y and all snapshots with tags []"
    );
}

fn any_count() -> impl Strategy<Value = Count> {
    prop_oneof![6 => Just(Count::NONE), 4 => (1u32..6).prop_map(Count::from), 1 => Just(Count::UNLIMITED)]
}

fn any_span() -> impl Strategy<Value = Span> {
    let span = (0u32..3, 0u32..15, 0u32..40, 0u32..50);
    let span = span.prop_map(|(years, months, days, hours)| Span { years, months, days, hours });
    prop_oneof![3 => Just(Span::ZERO), 2 => span]
}

fn any_tags() -> impl Strategy<Value = Vec<TagHash>> {
    prop::collection::vec((0u8..4).prop_map(|t| TagHash([t; 8])), 0..3)
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let counts = prop::array::uniform6(any_count());
    let spans = prop::array::uniform6(any_span());
    let tags = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(any_tags(), 1..3)];
    (counts, spans, tags).prop_map(|(c, s, keep_tags)| Policy {
        keep_last: c[0],
        keep_hourly: c[1],
        keep_daily: c[2],
        keep_weekly: c[3],
        keep_monthly: c[4],
        keep_yearly: c[5],
        keep_within: s[0],
        keep_within_hourly: s[1],
        keep_within_daily: s[2],
        keep_within_weekly: s[3],
        keep_within_monthly: s[4],
        keep_within_yearly: s[5],
        keep_tags,
    })
}

/// Gaps from minutes to years, so that every kind of bucket has one and several snapshots; zones now and then.
fn any_history(odd: bool) -> impl Strategy<Value = Vec<Candidate>> {
    let gap = prop_oneof![0..2 * HOUR, HOUR..3 * DAY, DAY..40 * DAY, 20 * DAY..500 * DAY];
    let zone = prop_oneof![3 => Just(None), 1 => (-840i16..=840).prop_map(Some), 1 => Just(Some(120))];
    let bytes = if odd {
        prop_oneof![5 => GIB..2 * GIB, 1 => 0..GIB, 1 => GIB..20 * GIB].boxed()
    } else {
        Just(GIB).boxed()
    };
    let odds =
        (prop::bool::weighted(0.1), prop::bool::weighted(0.1), prop::bool::weighted(0.1), 0u64..40 * DAY);
    let one = (gap, zone, any_tags(), bytes, odds, 0u8..3);
    (0..20_000 * DAY, prop::collection::vec(one, 0..40)).prop_map(move |(start, list)| {
        let (mut ms, mut all) = (start + 800 * DAY, Vec::new());
        for (n, (gap, zone, tags, bytes, (partial, verified, locked, clock), group)) in
            list.into_iter().enumerate()
        {
            ms += gap;
            let mut c = Candidate { utc_offset_min: zone, tags, bytes, ..snapshot(n as u64, ms) };
            if odd {
                (c.partial, c.verified, c.group) = (partial, verified, [group / 2; 16]);
                c.locked_until_ms = locked.then_some(ms + 100 * DAY);
                c.label_ms = (ms + 5 * DAY).saturating_sub(clock);
            }
            all.push(c);
        }
        all
    })
}

fn newest_first(all: &[Candidate]) -> Vec<&Candidate> {
    let mut list: Vec<&Candidate> = all.iter().collect();
    list.sort_by_key(|c| (Reverse(c.committed_ms), c.id));
    list
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    #[test]
    fn the_rules_are_those_of_the_model(policy in any_policy(), all in any_history(false), late in 0..2_000 * DAY) {
        let now = all.last().map_or(0, |c| (c.committed_ms + 10 * DAY).saturating_sub(late / 4));
        let list = newest_first(&all);
        let expected = model(&policy, now, &list);
        let found = rules::apply(&policy, now, &list);
        let found: BTreeSet<usize> = (0..list.len()).filter(|at| !found[*at].is_empty()).collect();
        prop_assert_eq!(found, expected);
    }

    /// On an ordinary history nothing but restic's rules decides, and what they leave they leave again.
    #[test]
    fn without_oddities_nothing_is_added_and_nothing_goes_twice(policy in any_policy(), all in any_history(false)) {
        let now = all.last().map_or(0, |c| c.committed_ms);
        let verdicts = evaluate(&policy, now, &all);
        if !policy.is_empty() {
            let list = newest_first(&all);
            let expected: Vec<u64> = model(&policy, now, &list).iter().map(|at| number(&list[*at].id)).collect();
            prop_assert_eq!(kept(&verdicts), expected);
        }
        let left = kept(&verdicts);
        let rest: Vec<Candidate> = all.iter().filter(|c| left.contains(&number(&c.id))).cloned().collect();
        prop_assert_eq!(kept(&evaluate(&policy, now, &rest)), left);
    }

    #[test]
    fn oddities_only_ever_keep_more(policy in any_policy(), all in any_history(true), late in 0..60 * DAY) {
        let now = all.last().map_or(0, |c| c.committed_ms + late);
        let verdicts = evaluate(&policy, now, &all);
        prop_assert_eq!(verdicts.len(), all.len());
        let mut backwards = all.clone();
        backwards.reverse();
        prop_assert_eq!(&evaluate(&policy, now, &backwards), &verdicts, "the order of asking does not matter");
        for group in all.iter().map(|c| c.group).collect::<BTreeSet<_>>() {
            let of_group: Vec<Candidate> = all.iter().filter(|c| c.group == group).cloned().collect();
            let verdict = |c: &Candidate| verdicts.iter().find(|v| v.id == c.id).unwrap();
            let complete: Vec<Candidate> = of_group.iter().filter(|c| !c.partial).cloned().collect();
            // Nothing goes that restic would have kept.
            let list = newest_first(&complete);
            for at in model(&policy, now, &list) {
                prop_assert!(verdict(list[at]).kept(), "{:?}", list[at]);
            }
            // Nothing goes because of a suspect.
            let trusted: Vec<Candidate> = complete.iter().filter(|c| verdict(c).suspicion.is_none()).cloned().collect();
            let list = newest_first(&trusted);
            for at in model(&policy, now, &list) {
                prop_assert!(verdict(list[at]).kept(), "{:?}", list[at]);
            }
            // The last verified stays, trusted or not, and so do locks and the checkpoint to go on from.
            for last in [complete.iter().rfind(|c| c.verified), trusted.iter().rfind(|c| c.verified)] {
                prop_assert!(last.is_none_or(|c| verdict(c).kept()));
            }
            prop_assert!(of_group.iter().filter(|c| c.locked_until_ms > Some(now)).all(|c| verdict(c).kept()));
            prop_assert!(of_group.last().is_none_or(|c| !c.partial || verdict(c).kept()));
        }
        // And every reason is one that holds.
        for v in &verdicts {
            let c = all.iter().find(|c| c.id == v.id).unwrap();
            for reason in &v.reasons {
                let holds = match reason {
                    Reason::Tags { list } => policy.keep_tags[*list].iter().all(|t| c.tags.contains(t)),
                    Reason::LastVerified => c.verified,
                    Reason::Locked { until_ms } => *until_ms > now,
                    Reason::Suspect { until_ms } => v.suspicion.is_some() && *until_ms > now,
                    Reason::Checkpoint => c.partial,
                    Reason::PolicyEmpty => policy.is_empty(),
                    Reason::Within { .. } | Reason::Counted { .. } => !c.partial,
                };
                prop_assert!(holds, "{reason:?}");
            }
        }
    }

    /// What is said of the time before which nothing goes is true for anything that may come.
    #[test]
    fn nothing_goes_before_the_time_that_was_said(
        policy in any_policy(), all in any_history(false), gaps in prop::collection::vec(0..20 * DAY, 1..30)
    ) {
        // In one zone: a traveller's days may be shorter.
        let all: Vec<Candidate> = all.into_iter().map(|c| Candidate { utc_offset_min: Some(60), ..c }).collect();
        let mut now = all.last().map_or(0, |c| c.committed_ms);
        let said = evaluate(&policy, now, &all);
        let mut later = all.clone();
        for (n, gap) in gaps.into_iter().enumerate() {
            now += gap;
            later.push(Candidate { utc_offset_min: Some(60), ..snapshot(1_000 + n as u64, now) });
            let left = kept(&evaluate(&policy, now, &later));
            for v in &said {
                let end = v.end();
                let promised = v.kept() && (!end.ends || end.not_before_ms.is_some_and(|ms| now < ms.saturating_sub(3 * DAY)));
                prop_assert!(!promised || left.contains(&number(&v.id)), "{v:?} at {}", rfc3339(now));
            }
        }
    }

    #[test]
    fn every_policy_is_read_back_as_it_was(policy in any_policy()) {
        prop_assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }

    #[test]
    fn the_calendar_is_that_of_the_model(ms in 800 * DAY..80_000 * DAY, offset in -840i16..=840) {
        let moment = calendar::Moment { ms, offset_min: Some(offset) };
        for rule in [Rule::Hourly, Rule::Daily, Rule::Weekly, Rule::Monthly, Rule::Yearly] {
            let bucket = moment.bucket(rule).unwrap();
            let start = moment.bucket_start(rule, bucket);
            let (next, c) = (moment.bucket_start(rule, bucket + 1), |ms| Candidate { utc_offset_min: Some(offset), ..snapshot(0, ms) });
            prop_assert!(start <= ms && ms < next);
            let own = label(rule, &c(ms), 0);
            prop_assert_eq!(&label(rule, &c(start), 0), &own);
            prop_assert_eq!(&label(rule, &c(next - 1), 0), &own);
            prop_assert_ne!(&label(rule, &c(next), 0), &own);
            prop_assert_ne!(&label(rule, &c(start - 1), 0), &own);
        }
    }

    /// Times and spans at the ends of their types are answered, whatever the answer.
    #[test]
    fn nothing_overflows(policy in any_policy(), times in prop::collection::vec(any::<u64>(), 0..8), zone in any::<i16>(), now in any::<u64>()) {
        let far = Span { years: u32::MAX, months: u32::MAX, days: u32::MAX, hours: u32::MAX };
        let policy = Policy { keep_within: far, keep_yearly: Count::from(u32::MAX - 1), ..policy };
        let all: Vec<Candidate> = times.iter().enumerate()
            .map(|(n, ms)| Candidate { utc_offset_min: Some(zone), label_ms: !ms, bytes: *ms, ..snapshot(n as u64, *ms) })
            .collect();
        prop_assert_eq!(evaluate(&policy, now, &all).len(), all.len());
    }
}
