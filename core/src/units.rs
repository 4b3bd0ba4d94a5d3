//! Sizes and times: how they are written for people and read from configuration.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, shown with binary units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let exponent = (63 - self.0.leading_zeros()) as usize / 10;
        let value = self.0 as f64 / (1u64 << (10 * exponent)) as f64;
        write!(f, "{value:.3} {}", UNITS[exponent - 1])
    }
}

/// Text that is not a size or a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct BadUnit {
    text: String,
    expected: &'static str,
}

impl FromStr for Bytes {
    type Err = BadUnit;
    /// Reads `4096`, `64K`, `32MiB`, `1.5G`; all units are powers of 1024.
    fn from_str(text: &str) -> Result<Self, BadUnit> {
        let bad = || BadUnit { text: text.into(), expected: "a size such as 512M or 1.5GiB" };
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim().to_ascii_uppercase();
        let shift = match unit.trim_end_matches('B').trim_end_matches('I') {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            "T" => 40,
            "P" => 50,
            _ => return Err(bad()),
        };
        let number: f64 = number.trim().parse().map_err(|_| bad())?;
        let bytes = number * (1u64 << shift) as f64;
        if !(0.0..u64::MAX as f64).contains(&bytes) {
            return Err(bad());
        }
        Ok(Bytes(bytes as u64))
    }
}

/// Reads `90s`, `15m`, `6h`, `30d` or `250ms`.
pub fn parse_duration(text: &str) -> Result<Duration, BadUnit> {
    let bad = || BadUnit { text: text.into(), expected: "a duration such as 90s, 15m or 6h" };
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(bad)?;
    let (number, unit) = text.split_at(split);
    let number: u64 = number.trim().parse().map_err(|_| bad())?;
    let millis = match unit.trim() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(bad)
}

/// Writes seconds as `0:07` or `2:15:03`, as restic does.
pub fn clock(seconds: u64) -> String {
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// The calendar date (year, month, day) of a day counted from 1970-01-01 (proleptic Gregorian calendar; Hinnant's
/// civil-from-days).
pub fn civil(day: i64) -> (i64, i64, i64) {
    let z = day + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, doy - (153 * mp + 2) / 5 + 1)
}

/// The day, counted from 1970-01-01, of the first of a month: the inverse of [`civil`].
pub fn first_of_month(year: i64, month: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, yoe) = (year.div_euclid(400), year.rem_euclid(400));
    let doy = (153 * ((month + 9) % 12) + 2) / 5;
    era * 146_097 + 365 * yoe + yoe / 4 - yoe / 100 + doy - 719_468
}

/// Reads a date such as `2027-01-31` as Unix milliseconds of its beginning in UTC.
pub fn parse_date(text: &str) -> Result<u64, BadUnit> {
    let bad = || BadUnit { text: text.into(), expected: "a date such as 2027-01-31" };
    let parts: Vec<&str> = text.split('-').collect();
    let [year, month, day] = parts[..] else { return Err(bad()) };
    let number = |text: &str, digits: usize| -> Option<i64> {
        let plain = text.len() == digits && text.bytes().all(|b| b.is_ascii_digit());
        text.parse().ok().filter(|_| plain)
    };
    let fields = (number(year, 4), number(month, 2), number(day, 2));
    let (Some(year), Some(month @ 1..=12), Some(day)) = fields else { return Err(bad()) };
    let days = first_of_month(year, month) + day - 1;
    let ms = u64::try_from(days).ok().map(|days| days * 86_400_000);
    // Such as the 30th of February.
    ms.filter(|_| civil(days) == (year, month, day)).ok_or_else(bad)
}

/// Writes a Unix time in milliseconds as RFC 3339 in UTC.
pub fn rfc3339(unix_ms: u64) -> String {
    let (days, rest) = (unix_ms / 86_400_000, unix_ms % 86_400_000);
    let (year, month, day) = civil(days as i64);
    let (h, m, s, ms) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1_000 % 60, rest % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(Bytes(1536).to_string(), "1.500 KiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "16.000 EiB");
        assert_eq!("32MiB".parse(), Ok(Bytes(32 << 20)));
        assert_eq!("1.5G".parse(), Ok(Bytes(3 << 29)));
        assert_eq!("7".parse(), Ok(Bytes(7)));
        assert!("-1".parse::<Bytes>().is_err());
        assert!("1X".parse::<Bytes>().is_err());
    }

    #[test]
    fn times() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(rfc3339(1_795_190_399_999), "2026-11-20T15:59:59.999Z");
        let mut dates = (-800_000..800_000).map(civil);
        let mut before = dates.next().unwrap();
        for (day, date) in (-799_999..).zip(dates) {
            let (year, month, day_of_month) = date;
            assert_eq!(first_of_month(year, month) + day_of_month - 1, day);
            assert!(date > before, "{date:?}");
            before = date;
        }
        assert_eq!(parse_date("2026-11-20").map(rfc3339).unwrap(), "2026-11-20T00:00:00.000Z");
        assert_eq!(parse_date("1970-01-01"), Ok(0));
        for bad in
            ["", "2026", "2026-13-01", "2026-02-30", "2026-2-3", "1969-12-31", "2026-01-+1", "2026-01-01T"]
        {
            assert!(parse_date(bad).is_err(), "{bad}");
        }
        assert_eq!(clock(8103), "2:15:03");
        assert_eq!(parse_duration("15m"), Ok(Duration::from_secs(900)));
        assert!(parse_duration("15").is_err());
    }
}
