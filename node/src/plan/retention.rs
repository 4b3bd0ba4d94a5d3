//! What a repository's own retention policy drops: pure, from its settings and snapshots. Nodes know neither hosts nor
//! paths nor tags, and need not: groups and tags are keyed hashes, times are catalogue time.

use farshore_core::catalogue::{RepoSettings, SnapshotMarks, SnapshotRecord};
use farshore_core::id::SnapshotId;
use farshore_core::retention::{BadPolicy, Candidate, Policy, TagHash, emptied, evaluate};

/// What evaluation needs of a snapshot and what is kept beside it.
pub fn candidate(settings: &RepoSettings, snapshot: &SnapshotRecord, marks: &SnapshotMarks) -> Candidate {
    let label = &snapshot.label;
    // A checkpoint is nobody's backup: the repository does not lock it.
    let from_repository = settings.lock.filter(|_| !label.partial).map(|lock| lock.of(snapshot.committed_ms));
    let locks = [marks.lock, from_repository].into_iter().flatten();
    Candidate {
        id: snapshot.id,
        group: snapshot.group,
        committed_ms: snapshot.committed_ms,
        utc_offset_min: label.utc_offset_min,
        label_ms: label.time_ms,
        bytes: label.bytes,
        tags: label.tags.iter().copied().map(TagHash).collect(),
        partial: label.partial,
        verified: marks.verified_ms.is_some(),
        locked_until_ms: locks.map(|lock| lock.until_ms).max(),
    }
}

/// Snapshots that the policy drops at this catalogue time. A policy that nobody watches never empties a group, although
/// one that keeps by tags alone says so: an operator who means it does it by hand.
pub fn plan_retention(
    policy: &str,
    now_ms: u64,
    candidates: &[Candidate],
) -> Result<Vec<SnapshotId>, BadPolicy> {
    let policy: Policy = policy.parse()?;
    let verdicts = evaluate(&policy, now_ms, candidates);
    let spared = emptied(&verdicts);
    let due = verdicts.iter().filter(|v| !v.kept() && !spared.contains(&v.group));
    Ok(due.map(|v| v.id).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::catalogue::{Lock, LockMode, RepoLock, SnapshotKind, SnapshotLabel};
    use farshore_core::id::RepoId;

    const DAY: u64 = 86_400_000;

    fn record(n: u8, group: u8) -> SnapshotRecord {
        let committed_ms = u64::from(n) * DAY;
        let label = SnapshotLabel { time_ms: committed_ms, bytes: 1, ..SnapshotLabel::default() };
        SnapshotRecord {
            id: SnapshotId([n; 32]),
            repo: RepoId([0; 16]),
            kind: SnapshotKind::Full,
            parent: None,
            group: [group; 16],
            committed_ms,
            label,
            sealed: vec![],
            live: vec![],
        }
    }

    fn due(policy: &str, settings: &RepoSettings, rows: &[(SnapshotRecord, SnapshotMarks)]) -> Vec<u8> {
        let all: Vec<Candidate> = rows.iter().map(|(s, marks)| candidate(settings, s, marks)).collect();
        let mut due = plan_retention(policy, 100 * DAY, &all).unwrap();
        due.sort();
        due.iter().map(|id| id.0[0]).collect()
    }

    #[test]
    fn it_drops_what_the_policy_drops_and_nothing_that_is_locked_or_last_of_its_group() {
        let none = SnapshotMarks::default();
        let mut rows: Vec<_> = (1..=4).map(|n| (record(n, n % 2), none)).collect();
        let plain = RepoSettings::default();
        assert_eq!(due("last=1", &plain, &rows), [1, 2], "each group for itself");
        assert_eq!(due("", &plain, &rows), [0; 0], "an empty policy drops nothing");
        rows[3].0.label.tags = vec![[7; 8]];
        assert_eq!(due("tag=0707070707070707", &plain, &rows), [2], "the other group would be emptied");
        let locked = |days| {
            let lock = Some(RepoLock { mode: LockMode::Governance, for_ms: days * DAY });
            due("last=1", &RepoSettings { lock, ..RepoSettings::default() }, &rows)
        };
        assert_eq!((locked(98), locked(99)), (vec![1, 2], vec![1]));
        let lock = Some(Lock { mode: LockMode::Governance, until_ms: 101 * DAY });
        rows[1].1.lock = lock;
        assert_eq!(due("last=1", &plain, &rows), [1]);
        rows[0].1.verified_ms = Some(5);
        assert_eq!(due("last=1", &plain, &rows), [0; 0]);
        // A checkpoint that a whole snapshot has made superfluous goes whatever the repository locks.
        let mut old = record(2, 0);
        (old.label.partial, old.id) = (true, SnapshotId([9; 32]));
        rows.push((old, none));
        let lock = Some(RepoLock { mode: LockMode::Compliance, for_ms: 500 * DAY });
        assert_eq!(due("last=9", &RepoSettings { lock, ..RepoSettings::default() }, &rows), [9]);
        assert!(plan_retention("last=x", 0, &[]).is_err());
    }
}
