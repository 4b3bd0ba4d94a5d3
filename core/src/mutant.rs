//! Deliberate defects, so that the simulator can prove that it would see them. A program built without the feature
//! `mutants` contains none: [`mutant`] is then the constant `false` and its branches are never compiled in.
//!
//! A hook is one line where the defect would be made by mistake. A process has at most one defect, chosen once, before
//! anything runs. Nothing but the simulator chooses.

use std::fmt;
use std::str::FromStr;

/// Whether this build has the defects in it.
pub const BUILT: bool = cfg!(feature = "mutants");

/// Whether this process has this defect.
#[cfg(not(feature = "mutants"))]
#[inline(always)]
pub const fn mutant(_: Mutant) -> bool {
    false
}

#[cfg(feature = "mutants")]
static CHOSEN: std::sync::OnceLock<Mutant> = std::sync::OnceLock::new();

/// Whether this process has this defect.
#[cfg(feature = "mutants")]
#[inline]
pub fn mutant(mutant: Mutant) -> bool {
    CHOSEN.get() == Some(&mutant)
}

/// Gives this process its defect, for good.
#[cfg(not(feature = "mutants"))]
pub fn choose(_: Mutant) -> Result<(), MutantError> {
    Err(MutantError::NotBuilt)
}

/// Gives this process its defect, for good.
#[cfg(feature = "mutants")]
pub fn choose(mutant: Mutant) -> Result<(), MutantError> {
    if *CHOSEN.get_or_init(|| mutant) == mutant { Ok(()) } else { Err(MutantError::Chosen) }
}

/// Why there is no such defect here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MutantError {
    /// The build has none.
    #[error(
        "this build has no deliberate defects in it; build one with: \
         cargo build --workspace --bin farshore-sim-mutants --features farshore-sim/mutants"
    )]
    NotBuilt,
    /// The process has another one already.
    #[error("this process has another deliberate defect already")]
    Chosen,
    /// Nobody knows that name.
    #[error("there is no deliberate defect `{0}`; there are: {names}", names = names())]
    Unknown(String),
}

fn names() -> String {
    Mutant::ALL.map(Mutant::name).join(", ")
}

/// Defines the defects once: variant, name, invariant attacked (its name in `docs/invariants.md`), statement.
macro_rules! mutants {
    ($($variant:ident, $name:literal, $attacks:literal, $statement:literal;)+) => {
        /// A deliberate defect.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Mutant {
            $(#[doc = $statement] $variant,)+
        }

        impl Mutant {
            /// All of them.
            pub const ALL: [Mutant; [$(Mutant::$variant),+].len()] = [$(Mutant::$variant),+];

            /// What it is called on a command line.
            pub const fn name(self) -> &'static str {
                match self { $(Mutant::$variant => $name,)+ }
            }
            /// The invariant it attacks.
            pub const fn attacks(self) -> &'static str {
                match self { $(Mutant::$variant => $attacks,)+ }
            }
            /// What is wrong.
            pub const fn statement(self) -> &'static str {
                match self { $(Mutant::$variant => $statement,)+ }
            }
        }
    };
}

mutants! {
    AnswerBeforeSync, "answer-before-sync", "durable",
        "A store gives its receipt before the shard's bytes are synced.";
    SkipDirSync, "skip-dir-sync", "durable",
        "A store gives its receipt before the shard's name is durable.";
    RenameBeforeSync, "rename-before-sync", "whole",
        "A shard gets its final name before its bytes are synced.";
    LogUnflushed, "log-unflushed", "durable",
        "A replica acknowledges a log entry that a power cut can still take.";
    VoteForgotten, "vote-forgotten", "agree",
        "A replica answers with a vote that a power cut can still take.";
    StaleRead, "stale-read", "agree",
        "A leader confirms a read without asking a majority whether it still leads.";
    LeadOn, "lead-on", "agree",
        "A leader that was started again leads on at once, before it knows again what it had committed.";
    TimeBackwards, "time-backwards", "locked",
        "Catalogue time follows the clock of whoever leads, also backwards.";
    OwnClock, "own-clock", "locked",
        "The leader stamps what its own calendar shows, and asks nobody.";
    HalfRefused, "half-refused", "whole",
        "A refused command leaves behind what it had done before it was refused.";
    ImageWithoutTable, "image-without-table", "agree",
        "A replica installs a catalogue image without the rows of one table.";
    IgnoreExpiry, "ignore-expiry", "delete-last",
        "A snapshot is recorded although its session has ended.";
    SessionReused, "session-reused", "delete-last",
        "Clients draw session ids that are not unique.";
    KeepUnproven, "keep-unproven", "delete-last",
        "A snapshot keeps unchanged files without having their chunks looked up, and so does not name them.";
    BelowFloor, "below-floor", "durable",
        "A pack is accepted with fewer shards than the write floor asks for.";
    DoubleUp, "double-up", "spread",
        "Two shards of a stripe go to one node although there are enough nodes.";
    CorruptIsGood, "corrupt-is-good", "verified",
        "A store takes a rotten block for a good one, when it scrubs and when it serves.";
    UnverifiedRead, "unverified-read", "verified",
        "Neither the store nor who reads from it compares blocks with their sums.";
    RecordFirst, "record-first", "copy-before-condemn",
        "Repair records the new place of a shard, and condemns the old copy, before the new copy is there.";
    SweepUnconfirmed, "sweep-unconfirmed", "delete-last",
        "The sweeper takes its own replica's word for it that a copy is condemned.";
    SweepFirstLook, "sweep-first-look", "delete-last",
        "The sweeper deletes what its first look showed, without a second look.";
    RepairGivesUp, "repair-gives-up", "heals",
        "A pack whose rebuild failed once is never taken up again by the same leader.";
    FailedStays, "failed-stays", "heals",
        "A node whose store takes nothing more stays, looks alive and learns nothing.";
    RenewEnding, "renew-ending", "agree",
        "A leader renews a session although its end is in the log already.";
    GiveUpAtOnce, "give-up-at-once", "copy-before-condemn",
        "A node calls its shard bad after a single look.";
    DropUnderSession, "drop-under-session", "delete-last",
        "A condemned pack is deleted although a session is open that was told its chunks are there.";
    TakeGone, "take-gone", "durable",
        "No session is waited for, and a snapshot is recorded although chunks it names have been deleted.";
    DropFirstLook, "drop-first-look", "durable",
        "A pack is condemned and deleted by one look, which may be a while ago.";
    OfferCondemned, "offer-condemned", "delete-last",
        "Condemned chunks are offered to deduplication, and neither a snapshot nor a second look revives what is named.";
    ReopenEnded, "reopen-ended", "delete-last",
        "A session that has ended is opened again by a call that comes late, and what a snapshot names is not looked at.";
    IgnoreLock, "ignore-lock", "locked",
        "Snapshots are forgotten although a lock holds.";
    LevelTwice, "level-twice", "spread",
        "Rebalancing moves a shard to a node that holds another one of the stripe.";
    KeepUnchecked, "keep-unchecked", "whole",
        "Whoever builds a shard keeps what the sums came to, and does not compare it with the recorded hash.";
    RetireFull, "retire-full", "copy-before-condemn",
        "A node that is to be emptied is retired while shards are still counted on there.";
    RecodeDropsFirst, "recode-drops-first", "durable",
        "After a change of policy old packs are dropped when they were read, before the new ones are committed.";
    RecordUnread, "record-unread", "verified",
        "What was moved is recorded as read again and good although nobody has read it.";
    ColdWrites, "cold-writes", "locked",
        "A cold migration keeps nobody from writing.";
    StalePolicy, "stale-policy", "heals",
        "A client codes its backups for the policy of the moment at which it opened the repository.";
    SpoiltStays, "spoilt-stays", "heals",
        "A spoilt shard that the catalogue does not know is neither cleared away nor condemned, and found by every scrub.";
}

impl fmt::Display for Mutant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Mutant {
    type Err = MutantError;

    fn from_str(name: &str) -> Result<Self, MutantError> {
        let found = Mutant::ALL.into_iter().find(|mutant| mutant.name() == name);
        found.ok_or_else(|| MutantError::Unknown(name.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_and_come_back() {
        let names: BTreeSet<_> = Mutant::ALL.map(Mutant::name).into();
        assert_eq!(names.len(), Mutant::ALL.len());
        for mutant in Mutant::ALL {
            assert_eq!(mutant.to_string().parse(), Ok(mutant));
        }
        assert!("no-such".parse::<Mutant>().is_err());
    }

    #[test]
    fn nothing_is_wrong_unless_chosen_and_nothing_can_be_in_a_build_without() {
        assert!(Mutant::ALL.into_iter().all(|m| !mutant(m)));
        #[cfg(not(feature = "mutants"))]
        assert_eq!(choose(Mutant::DoubleUp), Err(MutantError::NotBuilt));
    }
}
