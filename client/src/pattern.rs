//! Patterns of paths, read as restic reads them: `*`, `?`, `[a-z]`, `[^a-z]` and `\` within a name, `**` for any number of
//! names; with a slash in front from the root on, without one at any depth; what a pattern matches is meant with everything
//! below it.

/// Text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no pattern: {why}")]
pub struct BadPattern {
    text: String,
    why: &'static str,
}

/// Whether upper and lower case of ASCII letters are the same.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// They differ.
    Kept,
    /// They are the same.
    Ignored,
}

/// One pattern.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pattern {
    parts: Vec<Part>,
    case: Case,
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    /// `**`: any number of names.
    Any,
    /// One name.
    Name(Vec<Token>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
enum Token {
    Byte(u8),
    /// `?`.
    One,
    /// `*`.
    Many,
    /// `[…]`: ranges, and whether they are those that do not fit.
    Class {
        not: bool,
        ranges: Vec<(u8, u8)>,
    },
}

impl Pattern {
    /// Reads a pattern.
    pub fn parse(text: &[u8], case: Case) -> Result<Pattern, BadPattern> {
        let bad = |why| BadPattern { text: String::from_utf8_lossy(text).into_owned(), why };
        let mut parts = Vec::new();
        if !text.starts_with(b"/") {
            parts.push(Part::Any);
        }
        for part in text.split(|b| *b == b'/').filter(|part| !part.is_empty() && *part != b".") {
            match part {
                b"**" if parts.last() == Some(&Part::Any) => {}
                b"**" => parts.push(Part::Any),
                b".." => return Err(bad("it leads upwards")),
                name => parts.push(Part::Name(tokens(name, case).map_err(bad)?)),
            }
        }
        match parts[..] {
            [] | [Part::Any] if !text.ends_with(b"/") && !text.contains(&b'*') => {
                Err(bad("it names nothing"))
            }
            _ => Ok(Pattern { parts, case }),
        }
    }

    /// Whether it matches this very path, given by its names from the root on.
    pub fn matches(&self, path: &[&[u8]]) -> bool {
        matches(&self.parts, path, self.case)
    }

    /// Whether it matches this path or a directory above it.
    pub fn covers(&self, path: &[&[u8]]) -> bool {
        (1..=path.len()).any(|end| self.matches(&path[..end])) || self.parts.is_empty()
    }

    /// Whether it covers this directory or could match something below it.
    pub fn leads_to(&self, dir: &[&[u8]]) -> bool {
        self.covers(dir) || leads_to(&self.parts, dir, self.case)
    }
}

fn tokens(name: &[u8], case: Case) -> Result<Vec<Token>, &'static str> {
    let fold = |b: u8| if case == Case::Ignored { b.to_ascii_lowercase() } else { b };
    let mut tokens = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, mut after)) = rest.split_first() {
        tokens.push(match first {
            b'*' => Token::Many,
            b'?' => Token::One,
            b'[' => class(&mut after, fold)?,
            b'\\' => {
                let (escaped, behind) = after.split_first().ok_or("nothing follows its last backslash")?;
                after = behind;
                Token::Byte(fold(*escaped))
            }
            byte => Token::Byte(fold(*byte)),
        });
        rest = after;
    }
    // Of several stars in a row one is enough.
    tokens.dedup_by(|a, b| *a == Token::Many && *b == Token::Many);
    Ok(tokens)
}

/// Reads on behind a `[`, up to and with its `]`.
fn class(rest: &mut &[u8], fold: impl Fn(u8) -> u8) -> Result<Token, &'static str> {
    let mut take = || {
        let (first, after) = rest.split_first().ok_or("a [ has no ]")?;
        *rest = after;
        Ok::<u8, &'static str>(*first)
    };
    let mut byte = take()?;
    let not = byte == b'^';
    if not {
        byte = take()?;
    }
    let mut ranges: Vec<(u8, u8)> = Vec::new();
    let mut dash = false;
    loop {
        match byte {
            b']' if !ranges.is_empty() && !dash => return Ok(Token::Class { not, ranges }),
            b']' => return Err("a [ is followed by nothing to choose from"),
            b'-' if !ranges.is_empty() && !dash => dash = true,
            byte => {
                let byte = fold(if byte == b'\\' { take()? } else { byte });
                match ranges.last_mut() {
                    Some(range) if dash && range.0 == range.1 && range.0 <= byte => range.1 = byte,
                    _ if dash => return Err("a range in [ ] runs backwards"),
                    _ => ranges.push((byte, byte)),
                }
                dash = false;
            }
        }
        byte = take()?;
    }
}

fn matches(pattern: &[Part], path: &[&[u8]], case: Case) -> bool {
    match (pattern.split_first(), path.split_first()) {
        (None, None) => true,
        (None, Some(_)) => false,
        // Nothing fixed follows, so that any number of names does.
        (Some((Part::Any, [])), _) => true,
        (Some((Part::Any, rest)), _) => {
            // As many names as parts are left at least; what a `**` takes too much of, the rest would miss.
            let fixed = rest.iter().filter(|part| **part != Part::Any).count();
            path.len() >= fixed && (0..=path.len() - fixed).any(|skip| matches(rest, &path[skip..], case))
        }
        (Some((Part::Name(_), _)), None) => false,
        (Some((Part::Name(tokens), rest)), Some((name, below))) => {
            fits(tokens, name, case) && matches(rest, below, case)
        }
    }
}

fn leads_to(pattern: &[Part], dir: &[&[u8]], case: Case) -> bool {
    match (pattern.split_first(), dir.split_first()) {
        (Some((Part::Any, _)), _) | (Some(_), None) => true,
        (None, _) => false,
        (Some((Part::Name(tokens), rest)), Some((name, below))) => {
            fits(tokens, name, case) && leads_to(rest, below, case)
        }
    }
}

/// Whether a name fits. Linear but for the last star, which alone is ever tried again.
fn fits(tokens: &[Token], name: &[u8], case: Case) -> bool {
    let one = |token: &Token, byte: u8| {
        let byte = if case == Case::Ignored { byte.to_ascii_lowercase() } else { byte };
        match token {
            Token::Byte(wanted) => *wanted == byte,
            Token::One => true,
            Token::Many => false,
            Token::Class { not, ranges } => {
                ranges.iter().any(|(from, to)| (*from..=*to).contains(&byte)) != *not
            }
        }
    };
    let (mut t, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match tokens.get(t) {
            Some(Token::Many) => {
                star = Some((t, n));
                t += 1;
            }
            Some(token) if one(token, name[n]) => (t, n) = (t + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (t, n) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    tokens[t..].iter().all(|token| *token == Token::Many)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern(text: &str) -> Pattern {
        Pattern::parse(text.as_bytes(), Case::Kept).unwrap()
    }

    fn parts(path: &str) -> Vec<&[u8]> {
        path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect()
    }

    /// Pattern, path, whether the path is covered: restic's documentation and what its filter does.
    #[test]
    fn patterns_mean_what_they_mean_to_restic() {
        for (text, path, covered) in [
            ("/home/x", "/home/x/y/z", true),
            ("/home/x", "/home/xx", false),
            ("/home/x", "/home", false),
            ("/home/x", "/srv/home/x", false),
            ("*.go", "/a/b/c.go", true),
            ("*.go", "/a/c.go/d", true),
            ("*.go", "/a/c.gox", false),
            ("foo/bar", "/home/foo/bar/baz", true),
            ("foo/bar", "/home/foo/x/bar", false),
            ("foo/**/bar", "/home/foo/x/y/bar", true),
            ("foo/**/bar", "/home/foo/bar", true),
            ("foo/**", "/home/foo/x", true),
            ("/foo/**/z", "/foo/a/b/z", true),
            ("/foo/**/z", "/bar/foo/z", false),
            ("foo/", "/x/foo/y", true),
            ("[a-c]?z", "/byz", true),
            ("[^a-c]?z", "/byz", false),
            ("[^a-c]?z", "/dyz", true),
            (r"\*", "/*", true),
            (r"\*", "/x", false),
            (r"[\]]", "/]", true),
            ("a*b*c", "/axxbyyc", true),
            ("a*b*c", "/axxbyyd", false),
            ("", "", false),
        ] {
            if text.is_empty() {
                assert!(Pattern::parse(b"", Case::Kept).is_err());
                continue;
            }
            assert_eq!(pattern(text).covers(&parts(path)), covered, "{text} {path}");
        }
        for bad in ["[", "[]", "[a", "[a-", r"x\", "[b-a]", "a/../b"] {
            assert!(Pattern::parse(bad.as_bytes(), Case::Kept).is_err(), "{bad}");
        }
        let folded = Pattern::parse(b"*.JPG", Case::Ignored).unwrap();
        assert!(folded.covers(&parts("/a/b.jPg")) && !pattern("*.JPG").covers(&parts("/a/b.jpg")));
    }

    #[test]
    fn a_directory_is_entered_only_if_something_below_may_match() {
        let anchored = pattern("/home/*/deep");
        assert!(anchored.leads_to(&parts("/home")) && anchored.leads_to(&parts("/home/x")));
        assert!(anchored.leads_to(&parts("/home/x/deep/y")) && !anchored.leads_to(&parts("/srv")));
        assert!(pattern("x").leads_to(&parts("/any/where")));
    }

    proptest! {
        #[test]
        fn whatever_is_typed_is_a_pattern_or_an_error(text: Vec<u8>, path in proptest::collection::vec("[a-c*?]{1,4}", 0..6)) {
            let path: Vec<&[u8]> = path.iter().map(String::as_bytes).collect();
            if let Ok(pattern) = Pattern::parse(&text, Case::Ignored) {
                prop_assert!(!pattern.covers(&path) || pattern.leads_to(&path));
            }
        }
        /// A name with every special byte escaped matches itself and nothing longer.
        #[test]
        fn escaped_names_match_themselves(name in proptest::collection::vec(any::<u8>().prop_filter("slash", |b| *b != b'/'), 1..12)) {
            prop_assume!(name != b"." && name != b"..");
            let text: Vec<u8> = name.iter().flat_map(|b| [b'\\', *b]).collect();
            let pattern = Pattern::parse(&text, Case::Kept).unwrap();
            prop_assert!(pattern.matches(&[&name]));
            prop_assert!(!pattern.matches(&[&[&name[..], b"x"].concat()]));
        }
    }
}
