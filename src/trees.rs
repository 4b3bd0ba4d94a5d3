//! For the demo: a generated tree of files, and an independent comparison of two trees (not the code that restores).

use crate::exit::Exit;
use rustix::fs::{AtFlags, CWD, FileType, Stat, Timespec, Timestamps, statat, utimensat};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// What a tree holds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extent {
    /// Regular files.
    pub files: u64,
    /// Directories below the root.
    pub dirs: u64,
    /// Bytes in regular files.
    pub bytes: u64,
}

fn failed<'a>(verb: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Exit + 'a {
    move |e| Exit::failure(format!("cannot {verb} {}: {e}", path.display()))
}

/// A small repeatable source of bytes (xorshift64*, Vigna 2016).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn noise(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }
    fn text(&mut self, len: usize) -> Vec<u8> {
        const WORDS: [&str; 8] =
            ["harbour", "tide", "lighthouse", "anchor", "chart", "gull", "storm", "shore"];
        let mut text = String::with_capacity(len + 16);
        while text.len() < len {
            text.push_str(WORDS[(self.next() % 8) as usize]);
            text.push(if self.next().is_multiple_of(9) { '\n' } else { ' ' });
        }
        text.truncate(len);
        text.into_bytes()
    }
}

/// Writes a tree of a few hundred files: text and noise, small and large, links, odd modes, old times, odd names.
pub fn generate(root: &Path) -> Result<(), Exit> {
    let mut draw = Draw(0x00fa_25b0_7e5e_ed01);
    for dir in 0..12 {
        let dir = root.join(format!("folder-{dir:02}")).join(if dir % 3 == 0 { "deep/er" } else { "docs" });
        fs::create_dir_all(&dir).map_err(failed("create", &dir))?;
        for file in 0..30 {
            let len = (draw.next() % 40_000) as usize;
            let bytes = if file % 2 == 0 { draw.text(len) } else { draw.noise(len) };
            put(&dir.join(format!("file {file:02}.txt")), &bytes, 0o640, 1_500_000_000 + file)?;
        }
        let big = dir.join("video.bin");
        put(&big, &draw.noise(4 << 20), 0o600, 1_600_000_000)?;
        put(&dir.join("empty"), b"", 0o444, 1)?;
        put(&dir.join("name with \n newline and \u{fc}"), b"odd", 0o755, 1_700_000_000)?;
        symlink("video.bin", dir.join("link")).map_err(failed("link", &dir))?;
        fs::hard_link(&big, dir.join("hard link")).map_err(failed("link", &dir))?;
    }
    let copy = root.join("copy of the first video");
    fs::copy(root.join("folder-00/deep/er/video.bin"), &copy).map_err(failed("copy", &copy))?;
    Ok(())
}

/// Writes a file that no snapshot has yet.
pub fn add_something(root: &Path) -> Result<(), Exit> {
    let mut draw = Draw(0x0ed1_7000_0000_0001);
    put(&root.join("written while a region was down.txt"), &draw.text(200_000), 0o644, 1_750_000_000)
}

fn put(path: &Path, bytes: &[u8], mode: u32, mtime: i64) -> Result<(), Exit> {
    fs::write(path, bytes).map_err(failed("write", path))?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(failed("chmod", path))?;
    let time = Timespec { tv_sec: mtime, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| failed("set time of", path)(e.into()))
}

/// Counts what is in a tree, without following links.
pub fn measure(root: &Path) -> Result<Extent, Exit> {
    let mut extent = Extent::default();
    for (_, stat) in walk(root)? {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => extent.dirs += 1,
            FileType::RegularFile => {
                extent.files += 1;
                extent.bytes += stat.st_size as u64;
            }
            _ => {}
        }
    }
    Ok(extent)
}

/// Every difference between two trees: kind, contents, mode, owner, time in nanoseconds, link target, which names are
/// hard links of each other. At most `limit` lines.
pub fn differences(wanted: &Path, found: &Path, limit: usize) -> Result<Vec<String>, Exit> {
    let (a, b) = (walk(wanted)?, walk(found)?);
    let (links_a, links_b) = (link_groups(&a), link_groups(&b));
    let mut lines = Vec::new();
    for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
        if lines.len() >= limit {
            break;
        }
        let shown = name.display();
        match (a.get(name), b.get(name)) {
            (Some(x), Some(y)) => {
                if let Some(what) = difference(&wanted.join(name), x, &found.join(name), y)? {
                    lines.push(format!("{shown}: {what}"));
                } else if links_a.get(name) != links_b.get(name) {
                    lines.push(format!("{shown}: hard links differ"));
                }
            }
            (Some(_), None) => lines.push(format!("{shown}: missing")),
            _ => lines.push(format!("{shown}: not in the source")),
        }
    }
    Ok(lines)
}

fn walk(root: &Path) -> Result<BTreeMap<PathBuf, Stat>, Exit> {
    let mut found = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(dir) = todo.pop() {
        let full = root.join(&dir);
        for entry in fs::read_dir(&full).map_err(failed("list", &full))? {
            let entry = entry.map_err(failed("list", &full))?;
            let name = dir.join(entry.file_name());
            let path = root.join(&name);
            let stat = statat(CWD, &path, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|e| failed("look at", &path)(e.into()))?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                todo.push(name.clone());
            }
            found.insert(name, stat);
        }
    }
    Ok(found)
}

/// For each name with several hard links inside the tree, the first of its names.
fn link_groups(tree: &BTreeMap<PathBuf, Stat>) -> BTreeMap<PathBuf, PathBuf> {
    let mut first = BTreeMap::new();
    let linked = tree
        .iter()
        .filter(|(_, s)| s.st_nlink > 1 && FileType::from_raw_mode(s.st_mode) == FileType::RegularFile);
    linked
        .map(|(name, s)| {
            (name.clone(), first.entry((s.st_dev, s.st_ino)).or_insert_with(|| name.clone()).clone())
        })
        .collect()
}

fn difference(a_path: &Path, a: &Stat, b_path: &Path, b: &Stat) -> Result<Option<String>, Exit> {
    if a.st_mode != b.st_mode {
        return Ok(Some(format!("mode {:o}, not {:o}", b.st_mode, a.st_mode)));
    }
    if (a.st_uid, a.st_gid) != (b.st_uid, b.st_gid) {
        return Ok(Some(format!("owner {}:{}, not {}:{}", b.st_uid, b.st_gid, a.st_uid, a.st_gid)));
    }
    if (a.st_mtime, a.st_mtime_nsec) != (b.st_mtime, b.st_mtime_nsec) {
        return Ok(Some("other modification time".into()));
    }
    let same = match FileType::from_raw_mode(a.st_mode) {
        FileType::RegularFile => a.st_size == b.st_size && same_bytes(a_path, b_path)?,
        FileType::Symlink => {
            let target = |p: &Path| fs::read_link(p).map_err(failed("read", p));
            target(a_path)? == target(b_path)?
        }
        FileType::CharacterDevice | FileType::BlockDevice => a.st_rdev == b.st_rdev,
        _ => true,
    };
    Ok((!same).then(|| "other contents".into()))
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool, Exit> {
    let open = |p: &Path| fs::File::open(p).map_err(failed("open", p));
    let (mut x, mut y) = (open(a)?, open(b)?);
    let (mut left, mut right) = (vec![0u8; 1 << 18], vec![0u8; 1 << 18]);
    loop {
        let len = fill(&mut x, &mut left).map_err(failed("read", a))?;
        if len != fill(&mut y, &mut right).map_err(failed("read", b))? || left[..len] != right[..len] {
            return Ok(false);
        }
        if len == 0 {
            return Ok(true);
        }
    }
}

fn fill(file: &mut fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < buffer.len() {
        match file.read(&mut buffer[len..])? {
            0 => break,
            more => len += more,
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_found_and_equal_trees_have_none() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for root in [&a, &b] {
            fs::create_dir(root).unwrap();
            put(&root.join("x"), b"same", 0o600, 7).unwrap();
            put(&root.join("y"), b"same", 0o600, 7).unwrap();
            symlink("x", root.join("l")).unwrap();
            let time = Timespec { tv_sec: 9, tv_nsec: 9 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, root.join("l"), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        let find = || differences(&a, &b, 10).unwrap();
        assert_eq!(find(), Vec::<String>::new());
        put(&b.join("x"), b"sane", 0o600, 7).unwrap();
        assert_eq!(find().len(), 1, "contents");
        put(&b.join("x"), b"same", 0o640, 7).unwrap();
        assert_eq!(find().len(), 1, "mode");
        put(&b.join("x"), b"same", 0o600, 8).unwrap();
        assert_eq!(find().len(), 1, "time");
        put(&b.join("x"), b"same", 0o600, 7).unwrap();
        fs::remove_file(b.join("y")).unwrap();
        assert_eq!(find().len(), 1, "missing");
        fs::hard_link(b.join("x"), b.join("y")).unwrap();
        assert!(!find().is_empty(), "linked where the source is not");
    }
}
