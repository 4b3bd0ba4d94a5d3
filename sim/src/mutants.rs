//! Proof that the simulator can fail: each deliberate defect of `farshore_core::mutant` must be caught within a stated
//! number of seeds. This file says where to look for which, reads what a run said, and makes the table; it runs
//! nothing itself (`src/bin/farshore-sim/mutants.rs` does, each seed in a process of its own).

use crate::plan::draw::draw;
use crate::plan::pinned::pinned;
use crate::plan::{BadPlan, Plan, Profile};
use farshore_core::mutant::Mutant;
use serde::{Serialize, Serializer};
use std::fmt::{self, Write as _};

/// Where a defect is looked for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Place {
    /// In worlds drawn from seeds.
    Worlds(Profile),
    /// In a kept plan, played with several seeds: the steps stay, and what they leave open differs.
    Pinned(&'static str),
}

impl Place {
    /// What is played with a seed. Seeds count from 1, and a kept plan's first is the one it was found with.
    pub fn plan(self, seed: u64) -> Result<Plan, BadPlan> {
        match self {
            Place::Worlds(profile) => Ok(draw(seed, profile)),
            Place::Pinned(name) => {
                let plan = pinned(name)?;
                Ok(Plan { seed: plan.seed.wrapping_add(seed).wrapping_sub(1), ..plan })
            }
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Place::Worlds(profile) => profile.word(),
            Place::Pinned(name) => name,
        })
    }
}

impl Serialize for Place {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

/// Where a defect is looked for, and how long.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bound {
    /// In what.
    pub place: Place,
    /// Caught within so many seeds, or the simulator is not good enough.
    pub seeds: u64,
}

/// The stated bound of each defect. Mistakes that were once made here are looked for where they were found.
pub fn bound(mutant: Mutant) -> Bound {
    let storm = |seeds| (Place::Worlds(Profile::Storm), seeds);
    let (place, seeds) = match mutant {
        Mutant::AnswerBeforeSync
        | Mutant::SkipDirSync
        | Mutant::LogUnflushed
        | Mutant::VoteForgotten
        | Mutant::TimeBackwards
        | Mutant::SessionReused
        | Mutant::KeepUnproven
        | Mutant::DoubleUp
        | Mutant::CorruptIsGood
        | Mutant::UnverifiedRead
        | Mutant::RecordFirst
        | Mutant::SweepUnconfirmed
        | Mutant::SweepFirstLook
        | Mutant::RepairGivesUp => storm(20),
        Mutant::HalfRefused | Mutant::ImageWithoutTable | Mutant::BelowFloor | Mutant::FailedStays => {
            storm(60)
        }
        Mutant::OwnClock => (Place::Worlds(Profile::Clock), 60),
        Mutant::IgnoreLock => storm(60),
        Mutant::DropFirstLook | Mutant::DropUnderSession | Mutant::TakeGone | Mutant::OfferCondemned => {
            (Place::Pinned("prune-beside-backup"), 60)
        }
        Mutant::ReopenEnded => (Place::Pinned("late-opening"), 60),
        Mutant::RenameBeforeSync | Mutant::StaleRead | Mutant::IgnoreExpiry => storm(300),
        Mutant::LeadOn => (Place::Pinned("lead-on"), 60),
        Mutant::RenewEnding => (Place::Pinned("renew-ending"), 60),
        Mutant::GiveUpAtOnce => (Place::Pinned("give-up-at-once"), 60),
        Mutant::RetireFull | Mutant::RecordUnread | Mutant::ColdWrites | Mutant::RecodeDropsFirst => {
            storm(60)
        }
        // A lie must meet a rebuild, and a slope a stripe that has two shards beside it.
        Mutant::KeepUnchecked => storm(120),
        Mutant::LevelTwice => storm(300),
        Mutant::StalePolicy => (Place::Pinned("outdated-policy"), 60),
        Mutant::SpoiltStays => (Place::Worlds(Profile::Bitrot), 60),
    };
    Bound { place, seeds }
}

/// The invariant that a violation names: what stands before its first colon.
pub fn invariant_of(violation: &str) -> &str {
    violation.split_once(':').map_or("?", |(name, _)| name)
}

/// How a seed ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ended {
    /// Nothing was seen.
    Clean,
    /// An invariant was broken.
    Violation(String),
    /// The process said nothing that can be read.
    Unclear(String),
}

impl Ended {
    /// A run that failed. One whose process died or took too long has shown nothing.
    pub fn of(violation: String) -> Self {
        match invariant_of(&violation) {
            "process" | "?" => Ended::Unclear(violation),
            _ => Ended::Violation(violation),
        }
    }
}

/// What became of one defect, or of none.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Row {
    /// Its name, `none` for the product as it is.
    pub mutant: String,
    /// What is wrong.
    pub statement: String,
    /// The invariant it was made to break.
    pub attacks: String,
    /// Where it was looked for.
    pub place: Place,
    /// Seeds allowed.
    pub bound: u64,
    /// Seeds run until it was caught, or all of them.
    pub seeds: u64,
    /// The invariant that caught it.
    pub caught_by: Option<String>,
    /// The violation in full, or why a run said nothing.
    pub detail: Option<String>,
    /// Whether this is as it should be.
    pub ok: bool,
}

impl Row {
    /// A defect after `seeds` seeds, the last of which ended so.
    pub fn of(mutant: Mutant, bound: Bound, seeds: u64, last: Ended) -> Self {
        let row = Row {
            mutant: mutant.name().into(),
            statement: mutant.statement().into(),
            attacks: mutant.attacks().into(),
            place: bound.place,
            bound: bound.seeds,
            seeds,
            caught_by: None,
            detail: None,
            ok: false,
        };
        match last {
            Ended::Clean => row,
            Ended::Unclear(why) => Row { detail: Some(why), ..row },
            Ended::Violation(what) => {
                Row { caught_by: Some(invariant_of(&what).into()), detail: Some(what), ok: true, ..row }
            }
        }
    }

    /// The product as it is, on the same seeds: nothing may be seen.
    pub fn sane(place: Place, seeds: u64, last: Ended) -> Self {
        let (caught_by, detail) = match &last {
            Ended::Clean => (None, None),
            Ended::Unclear(why) => (None, Some(why.clone())),
            Ended::Violation(what) => (Some(invariant_of(what).into()), Some(what.clone())),
        };
        Row {
            mutant: "none".into(),
            statement: "The product as it is, on the same seeds.".into(),
            attacks: String::new(),
            place,
            bound: seeds,
            seeds,
            caught_by,
            detail,
            ok: last == Ended::Clean,
        }
    }

    fn verdict(&self) -> &str {
        match (&self.caught_by, self.ok) {
            (Some(invariant), true) => invariant,
            (None, true) => "clean",
            (Some(_), false) => "NOT CLEAN",
            (None, false) if self.detail.is_some() => "UNCLEAR",
            (None, false) => "ESCAPED",
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds = format!("{}/{}", self.seeds, self.bound);
        let (name, place, verdict) = (&self.mutant, self.place, self.verdict());
        write!(f, "{name:<20} {place:<16} {seeds:>8}  {verdict:<19}  {}", self.statement)
    }
}

/// The head of the table.
pub fn head() -> String {
    format!("{:<20} {:<16} {:>8}  {:<19}  {}", "mutant", "looked for in", "seeds", "caught by", "statement")
}

/// What is to be said after the last row: the details of whatever is not as it should be.
pub fn summary(rows: &[Row]) -> String {
    let wrong = rows.iter().filter(|row| !row.ok);
    let mut text = String::new();
    for row in wrong.clone() {
        let detail = row.detail.as_deref().unwrap_or("no run saw anything");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}: {detail}", row.mutant);
    }
    let mutants = rows.iter().filter(|row| row.mutant != "none");
    let caught = mutants.clone().filter(|row| row.ok).count();
    let _ = write!(text, "{caught} of {} defects caught", mutants.count());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Place = Place::Worlds(Profile::Day);

    #[test]
    fn every_place_can_be_played() {
        for mutant in Mutant::ALL {
            let Bound { place, seeds } = bound(mutant);
            assert_ne!(place.plan(1).unwrap().seed, place.plan(seeds).unwrap().seed, "{mutant}");
        }
        assert!(Place::Pinned("nothing").plan(1).is_err());
    }

    #[test]
    fn a_violation_is_told_from_a_process_that_died() {
        let broken = "durable: snapshot 1: lost".to_string();
        assert_eq!(Ended::of(broken.clone()), Ended::Violation(broken));
        for odd in ["process: no result after 300 s", "panicked"] {
            assert!(matches!(Ended::of(odd.into()), Ended::Unclear(_)), "{odd}");
        }
    }

    #[test]
    fn only_a_violation_is_a_catch_and_only_a_clean_run_is_sane() {
        let broken = || Ended::Violation("durable: snapshot 1: lost".into());
        let row = |ended| Row::of(Mutant::DoubleUp, Bound { place: DAY, seeds: 9 }, 2, ended);
        assert_eq!((row(broken()).ok, row(broken()).verdict()), (true, "durable"));
        assert_eq!((row(Ended::Clean).ok, row(Ended::Clean).verdict()), (false, "ESCAPED"));
        assert!(!row(Ended::Unclear("killed".into())).ok);
        assert!(Row::sane(DAY, 2, Ended::Clean).ok);
        assert!(!Row::sane(DAY, 2, broken()).ok);
        let rows = [row(broken()), row(Ended::Clean), Row::sane(DAY, 2, Ended::Clean)];
        assert!(summary(&rows).ends_with("1 of 2 defects caught"));
    }
}
