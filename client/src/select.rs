//! Which paths of a snapshot are meant: restored, or found.

use crate::files::RelPath;
use crate::pattern::Pattern;

/// A choice of paths, relative to the root of what is restored, by patterns. What a pattern matches is taken with
/// everything below it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Select {
    /// What is taken; everything if there is none.
    pub include: Vec<Pattern>,
    /// What is not taken all the same.
    pub exclude: Vec<Pattern>,
}

impl Select {
    /// Whether the entry at a path is wanted.
    pub fn admits(&self, path: &RelPath) -> bool {
        let parts: Vec<&[u8]> = path.parts().collect();
        let covered = |pattern: &Pattern| pattern.covers(&parts);
        (self.include.is_empty() || self.include.iter().any(covered)) && !self.exclude.iter().any(covered)
    }

    /// Whether a directory must be entered: it is wanted, or something below it may be.
    pub fn may_contain(&self, dir: &RelPath) -> bool {
        let parts: Vec<&[u8]> = dir.parts().collect();
        let leads = |pattern: &Pattern| pattern.leads_to(&parts);
        (self.include.is_empty() || self.include.iter().any(leads))
            && !self.exclude.iter().any(|pattern| pattern.covers(&parts))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Case;

    fn path(text: &str) -> RelPath {
        RelPath::from_path(text.as_bytes()).unwrap()
    }

    fn select(include: &[&str], exclude: &[&str]) -> Select {
        let parse = |texts: &[&str]| {
            texts.iter().map(|text| Pattern::parse(text.as_bytes(), Case::Kept).unwrap()).collect()
        };
        Select { include: parse(include), exclude: parse(exclude) }
    }

    #[test]
    fn includes_take_what_is_below_and_lead_the_way() {
        let select = select(&["/home/x"], &[]);
        assert!(select.admits(&path("home/x")) && select.admits(&path("home/x/y/z")));
        assert!(!select.admits(&path("home")) && !select.admits(&path("home/xx")));
        assert!(select.may_contain(&path("home")) && select.may_contain(&path("home/x/y")));
        assert!(!select.may_contain(&path("etc")) && !select.may_contain(&path("home/xx")));
    }

    #[test]
    fn excludes_win() {
        let select = select(&["*.txt"], &["tmp"]);
        assert!(select.admits(&path("a/b/c.txt")) && select.admits(&path("c.txt")));
        assert!(!select.admits(&path("a/tmp/c.txt")) && !select.admits(&path("a/c.txx")));
        assert!(select.may_contain(&path("a/b")) && !select.may_contain(&path("a/tmp")));
        assert!(Select::default().admits(&path("x")) && Select::default().may_contain(&path("x")));
    }
}
