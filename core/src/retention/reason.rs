//! Why a snapshot stays, and what has to happen before it goes: for `forget`, its JSON and `--explain`.

use super::policy::{Policy, Rule, Span, TagHash, tag_list};
use crate::units::rfc3339;

/// One reason to keep a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Reason {
    /// The policy says nothing.
    PolicyEmpty,
    /// It has all tags of this list of the policy.
    Tags { list: usize },
    /// It lies within the span before the newest (and is the newest of its period, unless the rule is [`Rule::Last`]).
    /// A snapshot made after `until_ms` ends that.
    Within { rule: Rule, span: Span, until_ms: u64, open: bool },
    /// A counting rule keeps it until `newer` newer ones are counted; for good if `None`. They cannot all be there before
    /// `not_before_ms`.
    Counted { rule: Rule, newer: Option<u32>, not_before_ms: u64, open: bool },
    /// The newest of its group that was verified: the one that is known to come back.
    LastVerified,
    /// A retention lock holds it.
    Locked { until_ms: u64 },
    /// The first of a row of suspects: it shows when trouble began.
    Suspect { until_ms: u64 },
    /// What an interrupted backup goes on from.
    Checkpoint,
}

/// What has to happen before a snapshot goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// It goes at all, under this policy.
    pub ends: bool,
    /// It takes newer snapshots to make it go; time alone does not.
    pub by_newer: bool,
    /// And not before this time, Unix milliseconds. `None` if that cannot be said.
    pub not_before_ms: Option<u64>,
}

impl End {
    /// A snapshot stays as long as one of its reasons does.
    pub(super) fn of<'a>(reasons: impl IntoIterator<Item = &'a Reason>) -> End {
        let start = End { ends: true, by_newer: false, not_before_ms: None };
        reasons.into_iter().map(Reason::end).fold(start, |a, b| End {
            ends: a.ends && b.ends,
            by_newer: a.by_newer || b.by_newer,
            not_before_ms: a.not_before_ms.max(b.not_before_ms),
        })
    }
}

impl Reason {
    /// In restic's words, where restic has them. `tag` gives a tag's name.
    pub fn words(&self, policy: &Policy, tag: &dyn Fn(TagHash) -> String) -> String {
        match self {
            Reason::PolicyEmpty => "policy is empty".into(),
            Reason::Tags { list } => {
                let list = policy.keep_tags.get(*list).map_or(&[][..], Vec::as_slice);
                format!("has tags {}", tag_list(list, tag))
            }
            Reason::Within { rule: Rule::Last, span, .. } => format!("within {span}"),
            Reason::Within { rule, span, .. } => format!("{} within {span}", rule.word()),
            Reason::Counted { rule, .. } => format!("{} snapshot", rule.word()),
            Reason::LastVerified => "last verified of its group".into(),
            Reason::Locked { until_ms } => format!("locked until {}", rfc3339(*until_ms)),
            Reason::Suspect { .. } => "first of a row of suspects".into(),
            Reason::Checkpoint => "checkpoint of an unfinished backup".into(),
        }
    }

    /// Until when it holds, in words.
    pub fn until(&self) -> String {
        let same = |rule: Rule, open: bool| {
            let period = rule.period();
            if open { format!("there is a newer one of the same {period}, or ") } else { String::new() }
        };
        match self {
            Reason::PolicyEmpty => "there is a policy".into(),
            Reason::Tags { .. } => "the policy or its tags change".into(),
            Reason::Within { rule, until_ms, open, .. } => {
                format!("{}one is made after {}", same(*rule, *open), rfc3339(*until_ms))
            }
            Reason::Counted { newer: None, open: false, .. } => "the policy changes".into(),
            Reason::Counted { rule, newer: None, .. } => {
                format!("there is a newer one of the same {}", rule.period())
            }
            Reason::Counted { rule: Rule::Last, newer: Some(newer), .. } => {
                format!("there are {newer} newer")
            }
            Reason::Counted { rule, newer: Some(newer), open, .. } => {
                format!("{}there are {newer} newer {} ones", same(*rule, *open), rule.word())
            }
            Reason::LastVerified => "a newer one is verified".into(),
            Reason::Locked { until_ms } | Reason::Suspect { until_ms } => rfc3339(*until_ms),
            Reason::Checkpoint => "there is a newer one".into(),
        }
    }

    fn end(&self) -> End {
        let (ends, by_newer, not_before_ms) = match *self {
            Reason::PolicyEmpty | Reason::Tags { .. } => (false, false, None),
            Reason::Within { until_ms, open, .. } => (true, true, (!open).then_some(until_ms)),
            Reason::Counted { newer: None, open, .. } => (open, true, None),
            Reason::Counted { rule: Rule::Last, .. } => (true, true, None),
            Reason::Counted { not_before_ms, open, .. } => (true, true, (!open).then_some(not_before_ms)),
            Reason::LastVerified | Reason::Checkpoint => (true, true, None),
            Reason::Locked { until_ms } | Reason::Suspect { until_ms } => (true, false, Some(until_ms)),
        };
        End { ends, by_newer, not_before_ms }
    }

    /// Whether both come from the same line of the policy.
    pub(super) fn same_rule(&self, other: &Reason) -> bool {
        match (self, other) {
            (Reason::Within { rule: a, .. }, Reason::Within { rule: b, .. })
            | (Reason::Counted { rule: a, .. }, Reason::Counted { rule: b, .. }) => a == b,
            _ => self == other,
        }
    }
}
