//! restic's rules over one group, exactly: newest first, the newest of each bucket, counts used up bucket by bucket, and
//! the oldest snapshot kept by every rule that has counts left, so that history grows to its full length. Spans are
//! measured back from the newest snapshot and not from now, so that a group nobody backs up any more does not melt away.

use super::Candidate;
use super::calendar::Moment;
use super::policy::{Count, Policy, Rule, Span, TagHash};
use super::reason::Reason;

impl Candidate {
    fn moment(&self) -> Moment {
        Moment { ms: self.committed_ms, offset_min: self.utc_offset_min }
    }
    fn has_tags(&self, list: &[TagHash]) -> bool {
        if list.is_empty() { self.tags.is_empty() } else { list.iter().all(|tag| self.tags.contains(tag)) }
    }
}

/// What a rule has seen so far.
struct Progress {
    rule: Rule,
    /// Bucket of the last snapshot it kept.
    last: Option<i64>,
}

impl Progress {
    fn new(rule: Rule) -> Self {
        Progress { rule, last: None }
    }
    /// Whether the snapshot opens another bucket, which it then is the newest of.
    fn opens(&mut self, moment: Moment) -> bool {
        let bucket = moment.bucket(self.rule);
        let opens = bucket.is_none() || bucket != self.last;
        self.last = bucket;
        opens
    }
}

/// Reasons to keep each of these (one group, newest first); none for those that go.
pub(super) fn apply(policy: &Policy, now_ms: u64, list: &[&Candidate]) -> Vec<Vec<Reason>> {
    // A snapshot from the future (the caller's idea of now may be old) must not make all others look old.
    let newest = list.iter().find(|c| c.committed_ms <= now_ms).map(|c| c.moment());
    let mut counters = policy.counts().map(|(rule, count)| (Progress::new(rule), count));
    let mut windows = policy.spans().map(|(rule, span)| (Progress::new(rule), span));
    let mut all = Vec::with_capacity(list.len());
    for (position, candidate) in list.iter().enumerate() {
        let view = View { list, position, now_ms, newest, moment: candidate.moment() };
        let tagged = policy.keep_tags.iter().enumerate().filter(|(_, tags)| candidate.has_tags(tags));
        let mut reasons: Vec<Reason> = tagged.map(|(list, _)| Reason::Tags { list }).collect();
        let (whole, periods) = windows.split_at_mut(1);
        reasons.extend(whole.iter_mut().filter_map(|(progress, span)| view.within(progress, *span)));
        reasons.extend(counters.iter_mut().filter_map(|(progress, count)| view.counted(progress, count)));
        reasons.extend(periods.iter_mut().filter_map(|(progress, span)| view.within(progress, *span)));
        all.push(reasons);
    }
    all
}

/// One snapshot and where it stands in its group.
struct View<'a> {
    list: &'a [&'a Candidate],
    position: usize,
    now_ms: u64,
    newest: Option<Moment>,
    moment: Moment,
}

impl View<'_> {
    fn within(&self, progress: &mut Progress, span: Span) -> Option<Reason> {
        let inside = self.newest.is_none_or(|newest| i128::from(self.moment.ms) > newest.back(span));
        if span == Span::ZERO || !inside || !progress.opens(self.moment) {
            return None;
        }
        let rule = progress.rule;
        // The way back and the way forth differ by a day or two at the ends of months; this is for people.
        Some(Reason::Within { rule, span, until_ms: self.moment.forth(span), open: self.open(rule) })
    }

    fn counted(&self, progress: &mut Progress, count: &mut Count) -> Option<Reason> {
        let oldest = self.position + 1 == self.list.len();
        if *count == Count::NONE || !(progress.opens(self.moment) || oldest) {
            return None;
        }
        let (rule, newer) = (progress.rule, count.limit());
        if let Some(left) = newer {
            *count = Count::from(left - 1);
        }
        let not_before_ms = self.not_before_ms(rule, newer.unwrap_or(0));
        Some(Reason::Counted { rule, newer, not_before_ms, open: self.open(rule) })
    }

    /// Whether a snapshot made now would take this one's place in its bucket.
    fn open(&self, rule: Rule) -> bool {
        let now = Moment { ms: self.now_ms, ..self.moment };
        self.position == 0 && rule != Rule::Last && now.bucket(rule) == self.moment.bucket(rule)
    }

    /// Earliest time at which `newer` buckets after those of this list can have a snapshot.
    fn not_before_ms(&self, rule: Rule, newer: u32) -> u64 {
        let Some(head) = self.list.first().map(|c| c.moment()) else { return 0 };
        let now = Moment { ms: self.now_ms, ..head };
        let (Some(last), Some(now)) = (head.bucket(rule), now.bucket(rule)) else { return 0 };
        head.bucket_start(rule, (last + 1).max(now) + i64::from(newer) - 1)
    }
}
