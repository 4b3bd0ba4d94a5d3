//! What a backup leaves out: by pattern, size, marker files, gitignore-style files, and where another file system begins.
//! What is left out is not in the snapshot and is no problem to report.

use crate::error::{Error, Result};
use crate::files::source::join;
use crate::files::{FileKind, Source, Stat};
use crate::pattern::{BadPattern, Case, Pattern};
use ignore::gitignore::{Gitignore, GitignoreBuilder};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

/// Most bytes read of a gitignore-style file; a longer one is an error, since half of its rules would save what the other
/// half leaves out.
const IGNORE_FILE_BYTES_MAX: usize = 1 << 20;
/// Longest header of a marker file.
pub const MARKER_BYTES_MAX: usize = 4 << 10;

/// One pattern of a list in which later ones win: with `!` in front it takes back in what an earlier one has left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exclude {
    pattern: Pattern,
    takes_back: bool,
}

impl Exclude {
    /// Reads a pattern, with or without `!`.
    pub fn parse(text: &[u8], case: Case) -> std::result::Result<Exclude, BadPattern> {
        let takes_back = text.starts_with(b"!");
        let text = text.strip_prefix(b"!").unwrap_or(text);
        Ok(Exclude { pattern: Pattern::parse(text, case)?, takes_back })
    }
}

/// A file whose presence leaves out what lies beside it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Its name.
    pub name: Vec<u8>,
    /// What it must begin with, at most [`MARKER_BYTES_MAX`]; anything if this is empty.
    pub header: Vec<u8>,
}

impl Marker {
    /// The marker of cache directories (<https://bford.info/cachedir/>).
    pub fn cache_dir() -> Marker {
        let header = b"Signature: 8a477f597d28d172789f06886806bc55".to_vec();
        Marker { name: b"CACHEDIR.TAG".to_vec(), header }
    }
}

/// All of it. The default leaves nothing out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Rules {
    /// In their order.
    pub exclude: Vec<Exclude>,
    /// Files with more bytes than this.
    pub larger_than: Option<u64>,
    /// Everything beside one of these; the marker itself stays, so that a restore says why the rest is not there.
    pub markers: Vec<Marker>,
    /// Names of files in directories that say what is left out there and below, as `.gitignore` does.
    pub ignore_files: Vec<Vec<u8>>,
    /// Stay in the file systems that the paths to back up lie in; where another is mounted stays an empty directory.
    pub one_file_system: bool,
}

/// What holds in a directory and below it.
#[derive(Clone, Default)]
pub struct Inherited {
    /// Of gitignore-style files, the outermost first.
    ignores: Vec<Arc<Gitignore>>,
}

impl Rules {
    /// Whether patterns leave a path out, whatever it is.
    pub fn exclude(&self, path: &[u8]) -> bool {
        if self.exclude.is_empty() {
            return false;
        }
        let parts: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|part| !part.is_empty()).collect();
        let last = self.exclude.iter().rev().find(|exclude| exclude.pattern.matches(&parts));
        last.is_some_and(|exclude| !exclude.takes_back)
    }

    /// Whether an entry found in a directory is left out for what it is, or by the files of the directories above it.
    pub fn leave_out(&self, path: &[u8], stat: &Stat, inherited: &Inherited) -> bool {
        if let (Some(limit), FileKind::File { size }) = (self.larger_than, &stat.kind)
            && *size > limit
        {
            return true;
        }
        let (path, is_dir) = (Path::new(OsStr::from_bytes(path)), stat.kind == FileKind::Dir);
        // The innermost file that says anything about a path has the last word.
        let said = inherited.ignores.iter().rev().map(|ignore| ignore.matched(path, is_dir));
        said.into_iter().find(|said| !said.is_none()).is_some_and(|said| said.is_ignore())
    }

    /// The name of the marker of a directory, if it has one.
    pub async fn marker(&self, source: &dyn Source, dir: &[u8]) -> Option<Vec<u8>> {
        for marker in &self.markers {
            // Whatever cannot be read is no marker: then nothing is left out.
            let Ok(opened) = source.open(&join(dir, &marker.name), marker.header.len().max(1)).await else {
                continue;
            };
            if opened.head.starts_with(&marker.header) {
                return Some(marker.name.clone());
            }
        }
        None
    }

    /// What holds below a directory in which `outer` holds.
    pub async fn inherit(&self, source: &dyn Source, dir: &[u8], outer: &Inherited) -> Result<Inherited> {
        let mut inherited = outer.clone();
        for name in &self.ignore_files {
            let path = join(dir, name);
            let opened = match source.open(&path, IGNORE_FILE_BYTES_MAX + 1).await {
                Ok(opened) => opened,
                // A directory or a link of this name means nothing to git either.
                Err(_) => continue,
            };
            let shown = String::from_utf8_lossy(&path).into_owned();
            if opened.head.len() > IGNORE_FILE_BYTES_MAX {
                return Err(Error::Invalid(format!("{shown} is too long to be a list of patterns")));
            }
            let mut builder = GitignoreBuilder::new(OsStr::from_bytes(dir));
            for line in String::from_utf8_lossy(&opened.head).lines() {
                let added = builder.add_line(None, line).map(drop);
                added.map_err(|e| Error::Invalid(format!("{shown}: {e}")))?;
            }
            let built = builder.build().map_err(|e| Error::Invalid(format!("{shown}: {e}")))?;
            inherited.ignores.push(Arc::new(built));
        }
        Ok(inherited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(patterns: &[&str]) -> Rules {
        let exclude = patterns.iter().map(|p| Exclude::parse(p.as_bytes(), Case::Kept).unwrap()).collect();
        Rules { exclude, ..Rules::default() }
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let rules = rules(&["*.log", "!keep.log", "/srv/cache"]);
        assert!(rules.exclude(b"/a/x.log") && rules.exclude(b"/srv/cache"));
        assert!(!rules.exclude(b"/a/keep.log") && !rules.exclude(b"/srv"));
        assert!(!Rules::default().exclude(b"/a"));
    }
}
