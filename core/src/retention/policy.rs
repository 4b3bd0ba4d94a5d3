//! What an operator wants kept, in restic's terms, and the one text it is written as: `last=3 daily=7 within=1y6m`.
//! The same text is stored, sent and shown, so that a policy in a repository can be read without a program.

use crate::id::{hex, unhex};
use crate::limits::RETENTION_BYTES_MAX;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which snapshots of a group a rule lets stand for the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Rule {
    /// Each for itself.
    Last,
    /// The newest of an hour.
    Hourly,
    /// The newest of a day.
    Daily,
    /// The newest of an ISO week.
    Weekly,
    /// The newest of a month.
    Monthly,
    /// The newest of a year.
    Yearly,
}

impl Rule {
    /// All, in the order in which restic looks at them.
    pub const ALL: [Rule; 6] =
        [Rule::Last, Rule::Hourly, Rule::Daily, Rule::Weekly, Rule::Monthly, Rule::Yearly];

    /// `last`, `hourly`, …
    pub fn word(self) -> &'static str {
        match self {
            Rule::Last => "last",
            Rule::Hourly => "hourly",
            Rule::Daily => "daily",
            Rule::Weekly => "weekly",
            Rule::Monthly => "monthly",
            Rule::Yearly => "yearly",
        }
    }
    /// `hour`, `day`, …
    pub fn period(self) -> &'static str {
        match self {
            Rule::Last => "moment",
            Rule::Hourly => "hour",
            Rule::Daily => "day",
            Rule::Weekly => "week",
            Rule::Monthly => "month",
            Rule::Yearly => "year",
        }
    }
}

/// How many a rule keeps: none, a number, or all of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count(u32);

impl Count {
    /// The rule is not used.
    pub const NONE: Count = Count(0);
    /// All of them; restic's -1.
    pub const UNLIMITED: Count = Count(u32::MAX);

    /// The number; `None` if there is no limit.
    pub fn limit(self) -> Option<u32> {
        (self != Count::UNLIMITED).then_some(self.0)
    }
}

impl From<u32> for Count {
    fn from(count: u32) -> Self {
        Count(count)
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.limit() {
            None => f.write_str("unlimited"),
            Some(count) => write!(f, "{count}"),
        }
    }
}

impl FromStr for Count {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        match text {
            "unlimited" => Ok(Count::UNLIMITED),
            _ => number(text).map(Count).ok_or_else(|| BadPolicy::Count(text.into())),
        }
    }
}

/// Digits only, and less than the number that stands for all.
fn number(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    text.parse().ok().filter(|n| digits && *n < u32::MAX)
}

/// A length of time by the calendar, such as `2y5m7d3h`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Span {
    pub years: u32,
    pub months: u32,
    pub days: u32,
    pub hours: u32,
}

impl Span {
    /// No time at all: the rule is not used.
    pub const ZERO: Span = Span { years: 0, months: 0, days: 0, hours: 0 };
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Span::ZERO {
            return f.write_str("0h");
        }
        let parts = [(self.years, 'y'), (self.months, 'm'), (self.days, 'd'), (self.hours, 'h')];
        parts.into_iter().filter(|(n, _)| *n > 0).try_for_each(|(n, unit)| write!(f, "{n}{unit}"))
    }
}

impl FromStr for Span {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bad = || BadPolicy::Span(text.into());
        let (mut span, mut rest, mut seen) = (Span::ZERO, text.trim(), String::new());
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(bad)?;
            let (digits, tail) = rest.split_at(end);
            let unit = tail.chars().next().ok_or_else(bad)?;
            let place = match unit {
                'y' => &mut span.years,
                'm' => &mut span.months,
                'd' => &mut span.days,
                'h' => &mut span.hours,
                _ => return Err(bad()),
            };
            // The same unit twice is a slip of the hand, and either reading of it may be the wrong one.
            if seen.contains(unit) {
                return Err(bad());
            }
            seen.push(unit);
            *place = number(digits).ok_or_else(bad)?;
            rest = &tail[1..];
        }
        Ok(span)
    }
}

/// A tag as nodes know it: a hash under a key they do not have.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
pub struct TagHash(pub [u8; 8]);

impl fmt::Display for TagHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl FromStr for TagHash {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        unhex(text).map(TagHash).ok_or_else(|| BadPolicy::Tag(text.into()))
    }
}

/// Stands for a list without tags in the text of a policy.
const UNTAGGED: &str = "-";

/// What is to be kept. A snapshot stays if any of these keeps it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Policy {
    /// The newest so many.
    pub keep_last: Count,
    /// The newest of each of the newest so many hours that have one.
    pub keep_hourly: Count,
    /// The same for days.
    pub keep_daily: Count,
    /// The same for ISO weeks.
    pub keep_weekly: Count,
    /// The same for months.
    pub keep_monthly: Count,
    /// The same for years.
    pub keep_yearly: Count,
    /// All that are newer than this before the newest.
    pub keep_within: Span,
    /// Of those, the newest of each hour.
    pub keep_within_hourly: Span,
    /// Of those, the newest of each day.
    pub keep_within_daily: Span,
    /// Of those, the newest of each ISO week.
    pub keep_within_weekly: Span,
    /// Of those, the newest of each month.
    pub keep_within_monthly: Span,
    /// Of those, the newest of each year.
    pub keep_within_yearly: Span,
    /// All that have every tag of one of these lists; an empty list means those that have no tag.
    pub keep_tags: Vec<Vec<TagHash>>,
}

/// Text that is no policy, or one that is out of bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BadPolicy {
    #[error("{0:?} is no count: give a number, or `unlimited`")]
    Count(String),
    #[error("{0:?} is no span of time: give years, months, days and hours, each once, such as 2y5m7d3h")]
    Span(String),
    #[error("{0:?} is no tag as a stored policy has it: 16 hexadecimal digits")]
    Tag(String),
    #[error("{0:?} is no rule: write rules as in `last=3 daily=7 within=1y6m`, each once")]
    Word(String),
    #[error("a stored policy is at most {RETENTION_BYTES_MAX} bytes of text; name fewer tags")]
    TooLong,
}

impl Policy {
    /// The counting rules.
    pub fn counts(&self) -> [(Rule, Count); 6] {
        let of = |rule| match rule {
            Rule::Last => self.keep_last,
            Rule::Hourly => self.keep_hourly,
            Rule::Daily => self.keep_daily,
            Rule::Weekly => self.keep_weekly,
            Rule::Monthly => self.keep_monthly,
            Rule::Yearly => self.keep_yearly,
        };
        Rule::ALL.map(|rule| (rule, of(rule)))
    }
    /// The rules that look back from the newest; [`Rule::Last`] is the one that keeps everything in its span.
    pub fn spans(&self) -> [(Rule, Span); 6] {
        let of = |rule| match rule {
            Rule::Last => self.keep_within,
            Rule::Hourly => self.keep_within_hourly,
            Rule::Daily => self.keep_within_daily,
            Rule::Weekly => self.keep_within_weekly,
            Rule::Monthly => self.keep_within_monthly,
            Rule::Yearly => self.keep_within_yearly,
        };
        Rule::ALL.map(|rule| (rule, of(rule)))
    }
    fn count_mut(&mut self, rule: Rule) -> &mut Count {
        match rule {
            Rule::Last => &mut self.keep_last,
            Rule::Hourly => &mut self.keep_hourly,
            Rule::Daily => &mut self.keep_daily,
            Rule::Weekly => &mut self.keep_weekly,
            Rule::Monthly => &mut self.keep_monthly,
            Rule::Yearly => &mut self.keep_yearly,
        }
    }
    fn span_mut(&mut self, rule: Rule) -> &mut Span {
        match rule {
            Rule::Last => &mut self.keep_within,
            Rule::Hourly => &mut self.keep_within_hourly,
            Rule::Daily => &mut self.keep_within_daily,
            Rule::Weekly => &mut self.keep_within_weekly,
            Rule::Monthly => &mut self.keep_within_monthly,
            Rule::Yearly => &mut self.keep_within_yearly,
        }
    }

    /// Whether nothing is said at all. Such a policy removes nothing.
    pub fn is_empty(&self) -> bool {
        *self == Policy::default()
    }

    /// Whether it may be stored. Text that was parsed may.
    pub fn check(&self) -> Result<(), BadPolicy> {
        if self.to_string().len() > RETENTION_BYTES_MAX { Err(BadPolicy::TooLong) } else { Ok(()) }
    }

    /// The policy as a sentence, in restic's words. `tag` gives a tag's name.
    pub fn words(&self, tag: &dyn Fn(TagHash) -> String) -> String {
        let mut counted = Vec::new();
        for (rule, count) in self.counts().into_iter().filter(|(_, count)| *count != Count::NONE) {
            let word = if rule == Rule::Last { "latest" } else { rule.word() };
            let count = count.limit().map_or("all".into(), |n| n.to_string());
            counted.push(format!("{count} {word}"));
        }
        let mut parts = Vec::new();
        if !counted.is_empty() {
            parts.push(format!("{} snapshots", counted.join(", ")));
        }
        let spans = self.spans().into_iter().filter(|(_, span)| *span != Span::ZERO);
        for (rule, span) in spans {
            parts.push(match rule {
                Rule::Last => format!("all snapshots within {span} of the newest"),
                _ => format!("{} snapshots within {span}", rule.word()),
            });
        }
        if !self.keep_tags.is_empty() {
            let lists: Vec<String> = self.keep_tags.iter().map(|list| tag_list(list, tag)).collect();
            parts.push(format!("all snapshots with tags {}", lists.join(" or ")));
        }
        if parts.is_empty() { "keep everything".into() } else { format!("keep {}", parts.join(" and ")) }
    }
}

/// A list of tags as restic writes it.
pub(super) fn tag_list(list: &[TagHash], tag: &dyn Fn(TagHash) -> String) -> String {
    format!("[{}]", list.iter().map(|t| tag(*t)).collect::<Vec<_>>().join(", "))
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words = Vec::new();
        for (rule, count) in self.counts().into_iter().filter(|(_, count)| *count != Count::NONE) {
            words.push(format!("{}={count}", rule.word()));
        }
        for (rule, span) in self.spans().into_iter().filter(|(_, span)| *span != Span::ZERO) {
            words.push(match rule {
                Rule::Last => format!("within={span}"),
                _ => format!("within-{}={span}", rule.word()),
            });
        }
        for list in &self.keep_tags {
            let tags: Vec<String> = list.iter().map(TagHash::to_string).collect();
            words.push(format!("tag={}", if tags.is_empty() { UNTAGGED.into() } else { tags.join("+") }));
        }
        f.write_str(&words.join(" "))
    }
}

impl FromStr for Policy {
    type Err = BadPolicy;
    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        if text.len() > RETENTION_BYTES_MAX {
            return Err(BadPolicy::TooLong);
        }
        let (mut policy, mut seen) = (Policy::default(), Vec::new());
        for part in text.split_whitespace() {
            let bad = || BadPolicy::Word(part.into());
            let (word, value) = part.split_once('=').ok_or_else(bad)?;
            let rule_of = |word: &str| Rule::ALL.into_iter().find(|rule| rule.word() == word);
            if word == "tag" {
                let tags = value.split('+').filter(|_| value != UNTAGGED);
                policy.keep_tags.push(tags.map(str::parse).collect::<Result<_, _>>()?);
                continue;
            }
            if seen.contains(&word) {
                return Err(bad());
            }
            seen.push(word);
            if let Some(rule) = rule_of(word) {
                *policy.count_mut(rule) = value.parse()?;
                continue;
            }
            let rule = match word.strip_prefix("within") {
                Some("") => Rule::Last,
                Some(period) => period
                    .strip_prefix('-')
                    .and_then(rule_of)
                    .filter(|rule| *rule != Rule::Last)
                    .ok_or_else(bad)?,
                None => return Err(bad()),
            };
            *policy.span_mut(rule) = value.parse()?;
        }
        Ok(policy)
    }
}

impl TryFrom<String> for Policy {
    type Error = BadPolicy;
    fn try_from(text: String) -> Result<Self, BadPolicy> {
        text.parse()
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.to_string()
    }
}
