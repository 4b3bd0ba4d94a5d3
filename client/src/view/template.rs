//! How a snapshot's time becomes its name.

use farshore_core::units::civil;
use std::str::FromStr;

/// What stands for the parts of a time in a template of restic, and what in one of ours. The longer come first.
const RESTIC: [(&str, &str); 8] = [
    ("2006", "%Y"),
    ("Z07:00", "%:z"),
    ("-07:00", "%:z"),
    ("-0700", "%z"),
    ("15", "%H"),
    ("04", "%M"),
    ("05", "%S"),
    ("01", "%m"),
];

/// A template for times, as `strftime` has them: `%Y %m %d %H %M %S`, `%z` (`+0200`), `%:z` (`+02:00`, or `Z`) and `%%`. One of
/// restic (`2006-01-02_15-04-05`) is taken for what it means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TimeTemplate(String);

/// A template that makes no names.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} makes no file names: {1}")]
pub struct BadTemplate(String, &'static str);

impl Default for TimeTemplate {
    fn default() -> Self {
        TimeTemplate("%Y-%m-%dT%H:%M:%S%:z".into())
    }
}

impl FromStr for TimeTemplate {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<Self, BadTemplate> {
        let mut template = text.to_owned();
        if text.contains("2006") && !text.contains('%') {
            for (theirs, ours) in RESTIC {
                template = template.replace(theirs, ours);
            }
            template = template.replace("02", "%d");
        }
        let bad = |why| Err(BadTemplate(text.into(), why));
        let template = TimeTemplate(template);
        match template.name(0, None) {
            None => bad("it may have %Y %m %d %H %M %S %z %:z and %%"),
            Some(name) if name.is_empty() || name == "." || name == ".." => bad("it is empty"),
            Some(name) if name.contains(['/', '\0']) => bad("there may be no slash in it"),
            Some(name) if name == "latest" => bad("that is the name of the link beside"),
            Some(_) => Ok(template),
        }
    }
}

impl TimeTemplate {
    /// The name for a time in Unix milliseconds, as clocks showed it where they were so many minutes ahead of UTC. `None` if
    /// the template has what it must not have.
    pub fn name(&self, unix_ms: u64, utc_offset_min: Option<i16>) -> Option<String> {
        let offset = i64::from(utc_offset_min.unwrap_or(0));
        let secs = (unix_ms / 1_000) as i64 + offset * 60;
        let (year, month, day) = civil(secs.div_euclid(86_400));
        let second = secs.rem_euclid(86_400);
        let (sign, ahead) = (if offset < 0 { '-' } else { '+' }, offset.abs());
        let mut name = String::new();
        let mut rest = self.0.chars();
        while let Some(letter) = rest.next() {
            if letter != '%' {
                name.push(letter);
                continue;
            }
            name += &match rest.next()? {
                'Y' => format!("{year:04}"),
                'm' => format!("{month:02}"),
                'd' => format!("{day:02}"),
                'H' => format!("{:02}", second / 3_600),
                'M' => format!("{:02}", second / 60 % 60),
                'S' => format!("{:02}", second % 60),
                'z' => format!("{sign}{:02}{:02}", ahead / 60, ahead % 60),
                ':' if rest.next()? != 'z' => return None,
                ':' if offset == 0 => "Z".into(),
                ':' => format!("{sign}{:02}:{:02}", ahead / 60, ahead % 60),
                '%' => "%".into(),
                _ => return None,
            };
        }
        Some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let at = 1_700_000_000_000;
        for (template, offset, name) in [
            ("%Y-%m-%dT%H:%M:%S%:z", Some(0), "2023-11-14T22:13:20Z"),
            ("%Y-%m-%dT%H:%M:%S%:z", Some(-90), "2023-11-14T20:43:20-01:30"),
            ("%Y%m%d_%H%M%S%z%%", Some(120), "20231115_001320+0200%"),
            ("2006-01-02_15-04-05", None, "2023-11-14_22-13-20"),
            ("2006-01-02T15:04:05Z07:00", Some(60), "2023-11-14T23:13:20+01:00"),
        ] {
            let parsed: TimeTemplate = template.parse().unwrap();
            assert_eq!(parsed.name(at, offset).unwrap(), name);
        }
        for bad in ["", "%", "%q", "%:", "a/b", "%Y/%m", "..", "latest"] {
            assert!(bad.parse::<TimeTemplate>().is_err(), "{bad}");
        }
    }
}
