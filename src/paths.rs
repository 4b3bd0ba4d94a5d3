//! Paths as people give them: made absolute, and read from files in restic's three forms.

use crate::exit::Exit;
use farshore_client::files::real_source;
use farshore_client::pattern::{Case, Pattern};
use std::ffi::{OsStr, OsString};
use std::io::Read as _;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// A path made absolute by text, without `.` and `..`.
pub fn absolute(path: &OsStr) -> Result<Vec<u8>, Exit> {
    real_source::absolute(path).map_err(|e| Exit::failure(format!("{}: {e}", path.display())))
}

/// The contents of a file, or of standard input for `-`.
pub fn contents(path: &Path) -> Result<Vec<u8>, Exit> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str().as_bytes() {
        b"-" => std::io::stdin().read_to_end(&mut bytes).map(drop),
        _ => std::fs::read(path).map(|read| bytes = read),
    };
    read.map_err(|e| Exit::failure(format!("cannot read {}: {e}", path.display())))?;
    Ok(bytes)
}

/// The lines of a list: without the space around them, empty ones and comments.
pub fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    let lines = text.split(|b| *b == b'\n').map(<[u8]>::trim_ascii);
    lines.filter(|line| !line.is_empty() && !line.starts_with(b"#"))
}

/// What a list of patterns names, each in its order; those that name nothing come back apart.
pub fn listed(file: &Path) -> Result<(Vec<OsString>, Vec<OsString>), Exit> {
    let (mut found, mut nothing) = (Vec::new(), Vec::new());
    for line in lines(&contents(file)?) {
        let before = found.len();
        expand(line, &mut found)?;
        if found.len() == before {
            nothing.push(OsStr::from_bytes(line).to_owned());
        }
    }
    Ok((found, nothing))
}

/// Paths of a file, one a line, as they are.
pub fn verbatim(file: &Path) -> Result<Vec<OsString>, Exit> {
    let text = contents(file)?;
    let lines = text.split(|b| *b == b'\n').filter(|line| !line.is_empty());
    Ok(lines.map(|line| OsStr::from_bytes(line).to_owned()).collect())
}

/// Paths of a file that each end with a zero byte.
pub fn raw(file: &Path) -> Result<Vec<OsString>, Exit> {
    let text = contents(file)?;
    let Some(text) = text.strip_suffix(b"\0") else {
        return match text.is_empty() {
            true => Ok(Vec::new()),
            false => {
                Err(Exit::failure(format!("{}: the last path does not end with a zero byte", file.display())))
            }
        };
    };
    let mut paths = Vec::new();
    for path in text.split(|b| *b == 0) {
        if path.is_empty() {
            return Err(Exit::failure(format!("{}: a path in it is empty", file.display())));
        }
        paths.push(OsStr::from_bytes(path).to_owned());
    }
    Ok(paths)
}

/// Whether a part of a path has to be looked for.
fn is_pattern(part: &[u8]) -> bool {
    part.iter().any(|b| b"*?[\\".contains(b))
}

/// Every path that exists and fits, names ascending.
fn expand(pattern: &[u8], found: &mut Vec<OsString>) -> Result<(), Exit> {
    let start = if pattern.starts_with(b"/") { PathBuf::from("/") } else { PathBuf::new() };
    let mut places = vec![start];
    for part in pattern.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        if !is_pattern(part) {
            places.iter_mut().for_each(|place| place.push(OsStr::from_bytes(part)));
            continue;
        }
        let text = [b"/", part].concat();
        let name = Pattern::parse(&text, Case::Kept).map_err(Exit::failure)?;
        places = places.iter().flat_map(|place| fitting(place, &name)).collect();
    }
    let there = places.into_iter().filter(|place| place.symlink_metadata().is_ok());
    found.extend(there.map(PathBuf::into_os_string));
    Ok(())
}

/// Entries of a directory with a name that fits; one that cannot be read has none.
fn fitting(dir: &Path, name: &Pattern) -> Vec<PathBuf> {
    let shown = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    let Ok(entries) = std::fs::read_dir(shown) else { return Vec::new() };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().into_vec()));
    let mut fits: Vec<Vec<u8>> = names.filter(|entry| name.matches(&[entry])).collect();
    fits.sort_unstable();
    fits.iter().map(|entry| dir.join(OsStr::from_bytes(entry))).collect()
}

/// Replaces `$NAME` and `${NAME}` by what the environment says, `$$` by one `$`.
pub fn with_variables(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.iter().position(|b| *b == b'$') {
        out.extend_from_slice(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix(b"$") {
            out.push(b'$');
            rest = after;
            continue;
        }
        let braced = rest.strip_prefix(b"{").and_then(|inner| {
            let end = inner.iter().position(|b| *b == b'}')?;
            Some((&inner[..end], &inner[end + 1..]))
        });
        let bare = || {
            let end =
                rest.iter().position(|b| !b.is_ascii_alphanumeric() && *b != b'_').unwrap_or(rest.len());
            rest.split_at(end)
        };
        let (name, after) = braced.unwrap_or_else(bare);
        match name {
            b"" => out.push(b'$'),
            name => out.extend(std::env::var_os(OsStr::from_bytes(name)).unwrap_or_default().into_vec()),
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_in_their_three_forms() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.txt", "b.txt", "c", " d"] {
            std::fs::write(dir.path().join(name), b"").unwrap();
        }
        let list = dir.path().join("list");
        let root = dir.path().display();
        std::fs::write(&list, format!("# a comment\n\n  {root}/[ab].txt  \n{root}/nothing*\n{root}/c\n"))
            .unwrap();
        let (found, nothing) = listed(&list).unwrap();
        let names: Vec<_> =
            found.iter().map(|p| Path::new(p).file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["a.txt", "b.txt", "c"]);
        assert_eq!(nothing.len(), 1);
        std::fs::write(&list, format!("{root}/ d\n#x\n")).unwrap();
        assert_eq!(verbatim(&list).unwrap().len(), 2);
        std::fs::write(&list, b"a\0b\n\0").unwrap();
        assert_eq!(raw(&list).unwrap(), ["a", "b\n"]);
        std::fs::write(&list, b"a\0b").unwrap();
        assert!(raw(&list).is_err());
        std::fs::write(&list, b"a\0\0").unwrap();
        assert!(raw(&list).is_err());
    }

    #[test]
    fn variables_are_replaced() {
        let home = std::env::var("HOME").unwrap_or_default();
        let text = with_variables(b"$HOME/x ${HOME}y $$HOME $ no$");
        assert_eq!(String::from_utf8(text).unwrap(), format!("{home}/x {home}y $HOME $ no$"));
    }
}
