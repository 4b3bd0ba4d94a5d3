//! Which hour, day, week, month and year a snapshot falls into on its own clock on the wall, and calendar steps back
//! and forth. Zones are fixed offsets, one a snapshot, so a day always has 24 hours here; what daylight saving does shows
//! as snapshots with other offsets.

use super::policy::{Rule, Span};
use crate::units::{civil, first_of_month};

const HOUR_MS: i128 = 3_600_000;
const DAY_MS: i128 = 24 * HOUR_MS;

/// A moment and the offset from UTC it is read with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    /// Unix milliseconds.
    pub ms: u64,
    /// Minutes that the local time is ahead of UTC; UTC if it is not known.
    pub offset_min: Option<i16>,
}

impl Moment {
    fn offset_ms(self) -> i128 {
        i128::from(self.offset_min.unwrap_or(0)) * 60_000
    }
    fn day(self) -> i64 {
        // A u64 of milliseconds has far fewer days than an i64 holds.
        (i128::from(self.ms) + self.offset_ms()).div_euclid(DAY_MS) as i64
    }

    /// Number of the hour, day, ISO week, month or year it falls into; consecutive ones have consecutive numbers.
    /// `None` for [`Rule::Last`], where every snapshot is a bucket of its own.
    pub fn bucket(self, rule: Rule) -> Option<i64> {
        let day = self.day();
        let (year, month, _) = civil(day);
        Some(match rule {
            Rule::Last => return None,
            Rule::Hourly => (i128::from(self.ms) + self.offset_ms()).div_euclid(HOUR_MS) as i64,
            Rule::Daily => day,
            // ISO weeks begin on Mondays, and 1970-01-01 was a Thursday. Weeks need no year: they never stop at one.
            Rule::Weekly => (day + 3).div_euclid(7),
            Rule::Monthly => year * 12 + month - 1,
            Rule::Yearly => year,
        })
    }

    /// When the bucket of this number begins for someone with this offset, as Unix milliseconds.
    pub fn bucket_start(self, rule: Rule, bucket: i64) -> u64 {
        let local = match rule {
            Rule::Last => return self.ms,
            Rule::Hourly => i128::from(bucket) * HOUR_MS,
            Rule::Daily => i128::from(bucket) * DAY_MS,
            Rule::Weekly => (i128::from(bucket) * 7 - 3) * DAY_MS,
            Rule::Monthly => {
                i128::from(first_of_month(bucket.div_euclid(12), bucket.rem_euclid(12) + 1)) * DAY_MS
            }
            Rule::Yearly => i128::from(first_of_month(bucket, 1)) * DAY_MS,
        };
        clamp(local - self.offset_ms())
    }

    /// This moment less a span, as Unix milliseconds. Years and months are steps of the calendar: what would be the
    /// 31st of a shorter month runs over into the next one, as in Go and so in restic.
    pub fn back(self, span: Span) -> i128 {
        self.step(span, -1)
    }

    /// This moment and a span.
    pub fn forth(self, span: Span) -> u64 {
        clamp(self.step(span, 1))
    }

    fn step(self, span: Span, sign: i64) -> i128 {
        let local = i128::from(self.ms) + self.offset_ms();
        let (year, month, day) = civil(self.day());
        let months = year * 12 + month - 1 + sign * (i64::from(span.years) * 12 + i64::from(span.months));
        let first = first_of_month(months.div_euclid(12), months.rem_euclid(12) + 1);
        let days = first + day - 1 + sign * i64::from(span.days);
        let hours = i128::from(sign) * i128::from(span.hours);
        i128::from(days) * DAY_MS + local.rem_euclid(DAY_MS) + hours * HOUR_MS - self.offset_ms()
    }
}

fn clamp(ms: i128) -> u64 {
    u64::try_from(ms.max(0)).unwrap_or(u64::MAX)
}
