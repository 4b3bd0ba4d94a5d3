//! What a retention policy would do to a repository: its snapshots, grouped as the operator likes, judged by
//! `farshore_core::retention` on catalogue time. Plans are data; nothing here removes anything.

use crate::crypto::RepoKeys;
use crate::list::Snapshot;
use farshore_core::catalogue::{LockMode, RepoSettings};
use farshore_core::id::SnapshotId;
use farshore_core::retention::{self, Candidate, Group, Policy, TagHash, Verdict};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// What makes snapshots belong together; each group is judged for itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupBy {
    /// The host they were made on.
    pub host: bool,
    /// The paths they hold.
    pub paths: bool,
    /// Their tags.
    pub tags: bool,
}

impl Default for GroupBy {
    fn default() -> Self {
        GroupBy { host: true, paths: true, tags: false }
    }
}

/// Text that is no way of grouping.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is nothing to group by: give some of host, paths, tags, separated by commas, or nothing")]
pub struct BadGroupBy(String);

impl FromStr for GroupBy {
    type Err = BadGroupBy;
    fn from_str(text: &str) -> Result<Self, BadGroupBy> {
        let mut by = GroupBy { host: false, paths: false, tags: false };
        for word in text.split(',').map(str::trim).filter(|_| !text.trim().is_empty()) {
            match word {
                "host" | "hosts" => by.host = true,
                "path" | "paths" => by.paths = true,
                "tag" | "tags" => by.tags = true,
                _ => return Err(BadGroupBy(word.into())),
            }
        }
        Ok(by)
    }
}

/// What the snapshots of a group have in common, as far as they were grouped by it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct GroupKey {
    /// Host name.
    pub host: Option<String>,
    /// Absolute paths, sorted.
    pub paths: Option<Vec<Vec<u8>>>,
    /// Tags, sorted.
    pub tags: Option<Vec<String>>,
}

impl GroupKey {
    fn of(snapshot: &Snapshot, by: GroupBy) -> Self {
        fn sorted<T: Ord + Clone>(list: &[T]) -> Vec<T> {
            let mut list = list.to_vec();
            list.sort();
            list
        }
        let info = &snapshot.info;
        GroupKey {
            host: by.host.then(|| info.host.clone()),
            paths: by.paths.then(|| sorted(&info.paths)),
            tags: by.tags.then(|| sorted(&info.tags)),
        }
    }
}

impl fmt::Display for GroupKey {
    /// As restic does: `host [a], paths [/b, /c]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let paths = self.paths.as_ref();
        let paths = paths.map(|all| all.iter().map(|p| String::from_utf8_lossy(p).into_owned()).collect());
        let lists = [
            ("host", self.host.clone().map(|host| vec![host])),
            ("tags", self.tags.clone()),
            ("paths", paths),
        ];
        let parts = lists.into_iter().filter_map(|(word, list)| Some((word, list?.join(", "))));
        let parts: Vec<String> = parts.map(|(word, list)| format!("{word} [{list}]")).collect();
        f.write_str(if parts.is_empty() { "all snapshots".into() } else { parts.join(", ") }.as_str())
    }
}

/// A group and what becomes of each of its snapshots.
#[derive(Clone, Debug)]
pub struct GroupPlan {
    /// What they have in common.
    pub key: GroupKey,
    /// Newest first.
    pub rows: Vec<(Snapshot, Verdict)>,
    /// No snapshot would be left. Whoever acts on the plan must refuse, unless told otherwise.
    pub emptied: bool,
}

/// What would be forgotten, and why the rest stays.
#[derive(Clone, Debug)]
pub struct ForgetPlan {
    /// The policy, its tags as hashes.
    pub policy: Policy,
    /// Catalogue time it was judged at.
    pub now_ms: u64,
    /// In the order of their keys.
    pub groups: Vec<GroupPlan>,
    names: BTreeMap<TagHash, String>,
}

impl ForgetPlan {
    /// Everything that goes.
    pub fn removed(&self) -> Vec<SnapshotId> {
        let rows = self.groups.iter().flat_map(|group| &group.rows);
        rows.filter(|(_, verdict)| !verdict.kept()).map(|(snapshot, _)| snapshot.id).collect()
    }
    /// The policy in words.
    pub fn words(&self) -> String {
        self.policy.words(&|tag| self.tag(tag))
    }
    /// Why a snapshot stays, in restic's words.
    pub fn reasons(&self, verdict: &Verdict) -> Vec<String> {
        verdict.reasons.iter().map(|reason| reason.words(&self.policy, &|tag| self.tag(tag))).collect()
    }
    /// A tag's name if some snapshot or the caller has it, else its hash.
    fn tag(&self, tag: TagHash) -> String {
        self.names.get(&tag).cloned().unwrap_or_else(|| tag.to_string())
    }
}

/// A policy and how to apply it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Keep {
    /// The rules; tags by hash, as a stored policy has them.
    pub policy: Policy,
    /// Further lists of tags to keep, by name; a list of nothing but an empty name means snapshots without tags.
    pub tags: Vec<Vec<String>>,
    /// What belongs together.
    pub group_by: GroupBy,
    /// Locks in governance mode do not count.
    pub bypass: bool,
}

impl Keep {
    /// The policy with every tag by its hash.
    pub fn hashed(&self, keys: &RepoKeys) -> Policy {
        let mut policy = self.policy.clone();
        let named = |list: &Vec<String>| {
            list.iter().filter(|tag| !tag.is_empty()).map(|tag| TagHash(keys.tag(tag))).collect()
        };
        policy.keep_tags.extend(self.tags.iter().map(named));
        policy
    }
}

/// Judges snapshots.
pub fn plan(
    keys: &RepoKeys,
    keep: &Keep,
    snapshots: Vec<Snapshot>,
    settings: &RepoSettings,
    now_ms: u64,
) -> ForgetPlan {
    let policy = keep.hashed(keys);
    let own_tags = snapshots.iter().flat_map(|s| &s.info.tags).chain(keep.tags.iter().flatten());
    let names = own_tags.map(|tag| (TagHash(keys.tag(tag)), tag.clone())).collect();
    let mut by_key = BTreeMap::<GroupKey, Vec<Snapshot>>::new();
    for snapshot in snapshots {
        by_key.entry(GroupKey::of(&snapshot, keep.group_by)).or_default().push(snapshot);
    }
    let mut groups = Vec::new();
    for (key, mut snapshots) in by_key {
        let candidate = |s: &Snapshot| candidate(keys, s, locked_until_ms(s, settings, keep.bypass));
        let candidates: Vec<Candidate> = snapshots.iter().map(candidate).collect();
        let verdicts = retention::evaluate(&policy, now_ms, &candidates);
        let emptied = !retention::emptied(&verdicts).is_empty();
        // The order of the verdicts.
        snapshots.sort_by_key(|s| (Reverse(s.committed_ms), s.id));
        groups.push(GroupPlan { key, rows: snapshots.into_iter().zip(verdicts).collect(), emptied });
    }
    ForgetPlan { policy, now_ms, groups, names }
}

/// All of one group here: the caller has grouped them.
const ONE_GROUP: Group = [0; 16];

fn candidate(keys: &RepoKeys, snapshot: &Snapshot, locked_until_ms: Option<u64>) -> Candidate {
    let info = &snapshot.info;
    Candidate {
        id: snapshot.id,
        group: ONE_GROUP,
        committed_ms: snapshot.committed_ms,
        utc_offset_min: info.utc_offset_min,
        label_ms: info.time_ms,
        bytes: info.stats.total_bytes,
        tags: info.tags.iter().map(|tag| TagHash(keys.tag(tag))).collect(),
        partial: false,
        verified: snapshot.marks.verified_ms.is_some(),
        locked_until_ms,
    }
}

/// Until when a lock of the snapshot or of its repository keeps it; locks in governance mode may be bypassed.
pub fn locked_until_ms(snapshot: &Snapshot, settings: &RepoSettings, bypass: bool) -> Option<u64> {
    let from_repository = settings.lock.map(|lock| lock.of(snapshot.committed_ms));
    let locks = [snapshot.marks.lock, from_repository].into_iter().flatten();
    let binding = locks.filter(|lock| !(bypass && lock.mode == LockMode::Governance));
    binding.map(|lock| lock.until_ms).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::MasterKey;
    use crate::format::{SnapshotInfo, SnapshotStats};
    use farshore_core::catalogue::{Lock, RepoLock, SnapshotKind, SnapshotMarks};
    use farshore_core::host::real::OsEntropy;
    use farshore_core::id::{ChunkId, RepoId};

    const DAY: u64 = 86_400_000;

    fn snapshot(n: u8, host: &str, tags: &[&str]) -> Snapshot {
        let committed_ms = 1_000 * DAY + u64::from(n) * DAY;
        let info = SnapshotInfo {
            time_ms: committed_ms,
            utc_offset_min: None,
            host: host.into(),
            user: "u".into(),
            paths: vec![b"/b".to_vec(), b"/a".to_vec()],
            tags: tags.iter().map(|t| t.to_string()).collect(),
            root: ChunkId([0; 32]),
            kind: SnapshotKind::Full,
            parent: None,
            base: None,
            program: "t".into(),
            scan_start_ms: 0,
            scan_end_ms: 0,
            stats: SnapshotStats { total_bytes: 1 << 30, ..SnapshotStats::default() },
            unreadable: vec![],
        };
        let (id, marks) = (SnapshotId([n; 32]), SnapshotMarks::default());
        Snapshot { id, committed_ms, group: [0; 16], marks, info }
    }

    fn planned(keep: &Keep, all: &[Snapshot], settings: &RepoSettings) -> ForgetPlan {
        let keys = MasterKey::new(&OsEntropy).keys(RepoId([1; 16]));
        plan(&keys, keep, all.to_vec(), settings, 1_100 * DAY)
    }

    fn removed(keep: &Keep, all: &[Snapshot]) -> Vec<u8> {
        planned(keep, all, &RepoSettings::default()).removed().iter().map(|id| id.0[0]).collect()
    }

    fn keep(policy: &str, group_by: &str, tags: &[&str]) -> Keep {
        let tags = tags.iter().map(|list| list.split(',').map(String::from).collect()).collect();
        Keep { policy: policy.parse().unwrap(), tags, group_by: group_by.parse().unwrap(), bypass: false }
    }

    #[test]
    fn groups_are_what_was_asked_for() {
        let all = [snapshot(1, "a", &["x"]), snapshot(2, "b", &["y"]), snapshot(3, "a", &["y"])];
        assert_eq!(removed(&keep("last=1", "host,paths", &[]), &all), [1]);
        assert_eq!(removed(&keep("last=1", "", &[]), &all), [2, 1]);
        assert_eq!(removed(&keep("last=1", "tags", &[]), &all), [2]);
        assert_eq!(removed(&keep("last=1", "host,tag", &[]), &all), Vec::<u8>::new());
        let plan = planned(&keep("last=1", "host,path,tags", &[]), &all, &RepoSettings::default());
        assert_eq!(plan.groups[0].key.to_string(), "host [a], tags [x], paths [/a, /b]");
        assert!("host,user".parse::<GroupBy>().is_err());
        assert_eq!("host,paths".parse(), Ok(GroupBy::default()));
    }

    #[test]
    fn tags_are_kept_by_name_and_shown_by_name() {
        let all = [snapshot(1, "a", &["x", "y"]), snapshot(2, "a", &["x"]), snapshot(3, "a", &[])];
        assert_eq!(removed(&keep("", "", &["x,y"]), &all), [3, 2]);
        assert_eq!(removed(&keep("", "", &["y", ""]), &all), [2]);
        let plan = planned(&keep("last=1", "", &["y,x"]), &all, &RepoSettings::default());
        assert_eq!(plan.reasons(&plan.groups[0].rows[2].1), ["has tags [y, x]"]);
        assert_eq!(plan.words(), "keep 1 latest snapshots and all snapshots with tags [y, x]");
        let nobody = planned(&keep("", "", &["z"]), &all, &RepoSettings::default());
        assert!(nobody.groups[0].emptied && !plan.groups[0].emptied);
    }

    #[test]
    fn locks_hold_their_snapshots_and_only_governance_is_bypassed() {
        let mut all = [snapshot(1, "a", &[]), snapshot(2, "a", &[]), snapshot(3, "a", &[])];
        all[0].marks.lock = Some(Lock { mode: LockMode::Governance, until_ms: 1_101 * DAY });
        all[1].marks.lock = Some(Lock { mode: LockMode::Compliance, until_ms: 1_101 * DAY });
        let mut keep = keep("last=1", "", &[]);
        assert_eq!(removed(&keep, &all), Vec::<u8>::new());
        keep.bypass = true;
        assert_eq!(removed(&keep, &all), [1]);
        let for_days = |days| RepoSettings {
            lock: Some(RepoLock { mode: LockMode::Compliance, for_ms: days * DAY }),
            ..RepoSettings::default()
        };
        assert!(planned(&keep, &all, &for_days(200)).removed().is_empty());
        assert_eq!(planned(&keep, &all, &for_days(10)).removed().len(), 1);
    }
}
