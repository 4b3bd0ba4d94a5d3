//! Which paths of a snapshot are meant: restored, or found.

use crate::files::RelPath;

/// A choice of paths, relative to the root of what is restored. Each part of a pattern may hold `*` (any bytes) and `?`
/// (any one byte); `**` as a whole part stands for any number of parts. A pattern without a slash in front or in the
/// middle matches a name at any depth, as in restic. What a pattern matches is taken with everything below it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Select {
    include: Vec<Pattern>,
    exclude: Vec<Pattern>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Pattern(Vec<Vec<u8>>);

impl Select {
    /// Takes what any of `include` matches (everything if it is empty) and none of `exclude`.
    pub fn new<'a>(
        include: impl IntoIterator<Item = &'a [u8]>,
        exclude: impl IntoIterator<Item = &'a [u8]>,
    ) -> Self {
        Select {
            include: include.into_iter().map(Pattern::parse).collect(),
            exclude: exclude.into_iter().map(Pattern::parse).collect(),
        }
    }

    /// Whether the entry at a path is wanted.
    pub fn admits(&self, path: &RelPath) -> bool {
        let parts: Vec<&[u8]> = path.parts().collect();
        let covered = |pattern: &Pattern| (1..=parts.len()).any(|end| matches(&pattern.0, &parts[..end]));
        (self.include.is_empty() || self.include.iter().any(covered)) && !self.exclude.iter().any(covered)
    }

    /// Whether a directory must be entered: it is wanted, or something below it may be.
    pub fn may_contain(&self, dir: &RelPath) -> bool {
        let parts: Vec<&[u8]> = dir.parts().collect();
        let covered = |pattern: &Pattern| (1..=parts.len()).any(|end| matches(&pattern.0, &parts[..end]));
        let leads = |pattern: &Pattern| covered(pattern) || leads_to(&pattern.0, &parts);
        (self.include.is_empty() || self.include.iter().any(leads)) && !self.exclude.iter().any(covered)
    }
}

impl Pattern {
    fn parse(text: &[u8]) -> Pattern {
        let anchored = text.strip_suffix(b"/").unwrap_or(text).contains(&b'/');
        let mut parts: Vec<Vec<u8>> =
            text.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b".").map(<[u8]>::to_vec).collect();
        if !anchored {
            parts.insert(0, b"**".to_vec());
        }
        Pattern(parts)
    }
}

/// Whether a pattern matches a whole path.
fn matches(pattern: &[Vec<u8>], path: &[&[u8]]) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        (Some((first, rest)), _) if first == b"**" => {
            (0..=path.len()).any(|skip| matches(rest, &path[skip..]))
        }
        (Some(_), None) => false,
        (Some((first, rest)), Some((name, below))) => part_matches(first, name) && matches(rest, below),
    }
}

/// Whether a path below this directory could match.
fn leads_to(pattern: &[Vec<u8>], dir: &[&[u8]]) -> bool {
    match (pattern.split_first(), dir.split_first()) {
        (Some((first, _)), _) if first == b"**" => true,
        (Some(_), None) => true,
        (None, _) => false,
        (Some((first, rest)), Some((name, below))) => part_matches(first, name) && leads_to(rest, below),
    }
}

/// Whether a name matches one part of a pattern. Linear: only the last star is ever tried again.
fn part_matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(c) if *c == b'?' || *c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RelPath {
        RelPath::from_path(text.as_bytes()).unwrap()
    }

    #[test]
    fn includes_take_what_is_below_and_lead_the_way() {
        let select = Select::new([&b"/home/x"[..]], []);
        assert!(select.admits(&path("home/x")) && select.admits(&path("home/x/y/z")));
        assert!(!select.admits(&path("home")) && !select.admits(&path("home/xx")));
        assert!(select.may_contain(&path("home")) && select.may_contain(&path("home/x/y")));
        assert!(!select.may_contain(&path("etc")) && !select.may_contain(&path("home/xx")));
    }

    #[test]
    fn a_bare_name_matches_at_any_depth() {
        let select = Select::new([&b"*.txt"[..]], [&b"tmp"[..]]);
        assert!(select.admits(&path("a/b/c.txt")) && select.admits(&path("c.txt")));
        assert!(!select.admits(&path("a/tmp/c.txt")) && !select.admits(&path("a/c.txx")));
        assert!(select.may_contain(&path("a/b")) && !select.may_contain(&path("a/tmp")));
    }

    #[test]
    fn stars() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abbd", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("*a*a*", "banana", true),
            ("**x", "yyx", true),
        ] {
            assert_eq!(part_matches(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
        let deep = Select::new([&b"/a/**/z"[..]], []);
        assert!(deep.admits(&path("a/z")) && deep.admits(&path("a/b/c/z")) && !deep.admits(&path("b/z")));
        assert!(Select::default().admits(&path("x")) && Select::default().may_contain(&path("x")));
    }
}
