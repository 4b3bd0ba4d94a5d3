//! Which snapshots a retention policy keeps, and why. Pure: the client evaluates for `forget`, a node for policies that
//! run by themselves, and both come to the same answer. Nothing here removes anything, reads a clock or knows a name.
//!
//! restic's rules decide (`rules`), on catalogue time, which no client can forge. Four things go beyond them, and each
//! only ever keeps more: suspects use up no count (`suspect`), the last verified snapshot of a group stays, locks hold,
//! and an interrupted backup keeps what it goes on from.

mod calendar;
mod policy;
mod reason;
#[cfg(test)]
mod retention_test;
mod rules;
mod suspect;

pub use policy::{BadPolicy, Count, Policy, Rule, Span, TagHash};
pub use reason::{End, Reason};
pub use suspect::Suspicion;

use crate::id::SnapshotId;
use crate::limits::SUSPECT_LEVEL_MS;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// What a snapshot's group is known by; policies look at each group for itself.
pub type Group = [u8; 16];

/// What evaluation needs to know of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// Which one.
    pub id: SnapshotId,
    /// What it is evaluated together with.
    pub group: Group,
    /// Catalogue time of its commit; order and age rest on it alone.
    pub committed_ms: u64,
    /// Its client's offset from UTC: hours, days and years are those of the place where it was made.
    pub utc_offset_min: Option<i16>,
    /// Its client's clock when its run began; only a difference that is too great is looked at.
    pub label_ms: u64,
    /// Length of all files in it.
    pub bytes: u64,
    /// Its tags, under whatever hash the policy has them.
    pub tags: Vec<TagHash>,
    /// It is a checkpoint of a run that did not end.
    pub partial: bool,
    /// It was read back and found good.
    pub verified: bool,
    /// It may not be removed before this time.
    pub locked_until_ms: Option<u64>,
}

/// What becomes of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Which one.
    pub id: SnapshotId,
    /// Its group.
    pub group: Group,
    /// Catalogue time of its commit.
    pub committed_ms: u64,
    /// Why it stays; it goes if there is no reason.
    pub reasons: Vec<Reason>,
    /// What is odd about it. An operator should hear of it whether it stays or goes.
    pub suspicion: Option<Suspicion>,
    /// It is a checkpoint of a run that did not end.
    pub partial: bool,
}

impl Verdict {
    /// Whether it stays.
    pub fn kept(&self) -> bool {
        !self.reasons.is_empty()
    }
    /// What has to happen before it goes.
    pub fn end(&self) -> End {
        End::of(&self.reasons)
    }
}

/// Judges snapshots of any groups: group by group, newest first. What is made at the same moment is ordered by id, so
/// that all who evaluate agree.
pub fn evaluate(policy: &Policy, now_ms: u64, candidates: &[Candidate]) -> Vec<Verdict> {
    let mut groups = BTreeMap::<Group, Vec<&Candidate>>::new();
    for candidate in candidates {
        groups.entry(candidate.group).or_default().push(candidate);
    }
    groups.into_values().flat_map(|group| evaluate_group(policy, now_ms, group)).collect()
}

/// Groups that would be left without any complete snapshot. Only policies that keep by tags alone can do that; restic
/// refuses it, and so must whoever acts on the verdicts, unless told otherwise by the operator.
pub fn emptied(verdicts: &[Verdict]) -> BTreeSet<Group> {
    let groups = |kept: bool| {
        let some = verdicts.iter().filter(move |v| !v.partial && v.kept() == kept);
        some.map(|v| v.group).collect::<BTreeSet<_>>()
    };
    &groups(false) - &groups(true)
}

fn evaluate_group(policy: &Policy, now_ms: u64, mut group: Vec<&Candidate>) -> Vec<Verdict> {
    group.sort_by_key(|c| (Reverse(c.committed_ms), c.id));
    // A checkpoint is no backup: it is kept for one purpose, and stands for nothing in the rules.
    let (partials, complete): (Vec<&Candidate>, Vec<&Candidate>) = group.iter().partition(|c| c.partial);
    let suspicions = suspect::judge(&complete);
    let mut reasons = by_rules(policy, now_ms, &complete, &suspicions);
    keep_verified(&complete, &suspicions, &mut reasons);
    keep_first_suspects(now_ms, &complete, &suspicions, &mut reasons);
    let judged = complete.into_iter().zip(suspicions).zip(reasons).map(|((c, s), r)| (c, s, r));
    let newest = group.first().map(|c| c.id);
    // The newest of all, if it is a checkpoint: whatever is newer than a checkpoint has more in it.
    let resumable =
        |c: &Candidate| (Some(c.id) == newest).then_some(Reason::Checkpoint).into_iter().collect();
    let mut judged: Vec<_> = judged.chain(partials.into_iter().map(|c| (c, None, resumable(c)))).collect();
    judged.sort_by_key(|(c, ..)| (Reverse(c.committed_ms), c.id));
    let verdict = |(c, suspicion, mut reasons): (&Candidate, _, Vec<Reason>)| {
        let lock = c.locked_until_ms.filter(|until_ms| *until_ms > now_ms);
        reasons.extend(lock.map(|until_ms| Reason::Locked { until_ms }));
        if policy.is_empty() {
            reasons.push(Reason::PolicyEmpty);
        }
        let Candidate { id, group, committed_ms, partial, .. } = *c;
        Verdict { id, group, committed_ms, reasons, suspicion, partial }
    };
    judged.into_iter().map(verdict).collect()
}

/// Reasons by the policy's rules. The first pass sees only those that nobody suspects, so that no suspect uses up a count
/// or moves the end that spans are measured from. The second sees all, so that nothing goes that would have stayed
/// without any suspicion.
fn by_rules(
    policy: &Policy,
    now_ms: u64,
    complete: &[&Candidate],
    suspicions: &[Option<Suspicion>],
) -> Vec<Vec<Reason>> {
    let mut all = rules::apply(policy, now_ms, complete);
    if suspicions.iter().all(Option::is_none) {
        return all;
    }
    let trusted: Vec<usize> = (0..complete.len()).filter(|at| suspicions[*at].is_none()).collect();
    let list: Vec<&Candidate> = trusted.iter().map(|at| complete[*at]).collect();
    for (at, mut reasons) in trusted.into_iter().zip(rules::apply(policy, now_ms, &list)) {
        let more = std::mem::take(&mut all[at]);
        reasons.extend(
            more.into_iter().filter(|r| !reasons.iter().any(|own| own.same_rule(r))).collect::<Vec<_>>(),
        );
        all[at] = reasons;
    }
    all
}

/// The last verified one is never dropped. An empty tree verifies well, so the last one that nobody suspects stays too.
fn keep_verified(complete: &[&Candidate], suspicions: &[Option<Suspicion>], reasons: &mut [Vec<Reason>]) {
    let last = complete.iter().position(|c| c.verified);
    let trusted = complete.iter().zip(suspicions).position(|(c, s)| c.verified && s.is_none());
    for at in BTreeSet::from_iter([last, trusted].into_iter().flatten()) {
        reasons[at].push(Reason::LastVerified);
    }
}

/// The first of each row of suspects stays for a while: it shows when trouble began, which the rules know nothing of.
fn keep_first_suspects(
    now_ms: u64,
    complete: &[&Candidate],
    suspicions: &[Option<Suspicion>],
    reasons: &mut [Vec<Reason>],
) {
    for at in 0..complete.len() {
        let until_ms = complete[at].committed_ms.saturating_add(SUSPECT_LEVEL_MS);
        let first = suspicions.get(at + 1).is_none_or(Option::is_none);
        if suspicions[at].is_some() && first && until_ms > now_ms {
            reasons[at].push(Reason::Suspect { until_ms });
        }
    }
}
