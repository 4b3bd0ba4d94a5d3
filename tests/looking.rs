//! What is in a snapshot, without restoring it: dump and mount, read by other programs.
#![expect(clippy::disallowed_methods, reason = "this test drives processes and files from outside")]

mod harness;

use harness::{Dev, farshore, json_line, tree_differences};
use rustix::fs::{FileType, Mode, XattrFlags, getxattr, lgetxattr, mknodat, setxattr};
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x10_0c_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// A tree with a little of everything, and a file large enough for a list of chunks of its own.
fn make_tree(root: &Path) {
    fs::create_dir_all(root.join("a/b")).unwrap();
    fs::create_dir(root.join("many")).unwrap();
    for number in 0..3_000 {
        fs::write(root.join(format!("many/{number}")), format!("number {number}\n")).unwrap();
    }
    fs::write(root.join("a/big"), noise(90_000_000)).unwrap();
    fs::hard_link(root.join("a/big"), root.join("a/b/second")).unwrap();
    fs::write(root.join("a").join("n".repeat(180)), b"long name").unwrap();
    fs::write(root.join(OsStr::from_bytes(b"\xff\xfe")), b"odd name").unwrap();
    fs::write(root.join("empty"), b"").unwrap();
    symlink("a/big", root.join("link")).unwrap();
    symlink("l".repeat(150), root.join("nowhere")).unwrap();
    fs::write(root.join("set"), b"mode").unwrap();
    fs::set_permissions(root.join("set"), fs::Permissions::from_mode(0o4751)).unwrap();
    setxattr(root.join("set"), "user.kept", b"\0value\xff", XattrFlags::empty()).unwrap();
    let fifo = root.join("pipe");
    mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    fs::set_permissions(root.join("a/b"), fs::Permissions::from_mode(0o500)).unwrap();
}

/// `diff` finds that two pipes differ, since it cannot look into them.
fn differences(wanted: &Path, found: &Path) -> String {
    let all = tree_differences(wanted, found);
    all.lines().filter(|line| !line.contains("is a fifo while")).map(|line| format!("{line}\n")).collect()
}

fn good(output: Output) -> Output {
    assert!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    output
}

#[test]
fn dump_and_mount_show_what_was_backed_up() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    make_tree(&source);
    let mut dev = Dev::start(&work.path().join("dev"));
    dev.ok(&["init"]);
    let done =
        dev.ok(&["backup", source.to_str().unwrap(), "--json", "--host", "here", "--tag", "one,two/2"]);
    let id = json_line(&done, "summary")["snapshot_id"].as_str().unwrap().to_owned();
    dumps(&dev, &source, work.path());
    mounts(&mut dev, &source, work.path(), &id);
    dev.stop();
}

fn dumps(dev: &Dev, source: &Path, work: &Path) {
    let path = source.to_str().unwrap();
    // A file is its bytes.
    let file = good(dev.run(&["dump", "latest", &format!("{path}/a/big"), "--host", "here"]));
    assert!(file.stdout == fs::read(source.join("a/big")).unwrap());
    let file = good(dev.run(&["--stale", "dump", &format!("latest:{path}"), "a/b/second", "-a", "zip"]));
    assert!(file.stdout == fs::read(source.join("a/big")).unwrap());

    // A directory is an archive, with the whole path in front as restic has it.
    let tar = good(dev.run(&["dump", "latest", path]));
    assert!(String::from_utf8_lossy(&tar.stderr).contains("socket: skipped"), "said, and no failure");
    let (archive, out) = (work.join("all.tar"), work.join("untarred"));
    fs::write(&archive, &tar.stdout).unwrap();
    fs::create_dir(&out).unwrap();
    let untar = |archive: &Path, out: &Path| {
        let mut tar = Command::new("tar");
        tar.args(["-xp", "--same-owner", "--xattrs", "-f"]).arg(archive).arg("-C").arg(out);
        let said = good(tar.output().unwrap());
        assert!(said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
    };
    untar(&archive, &out);
    let back = out.join(source.strip_prefix("/").unwrap());
    // The one thing it has no form for.
    fs::remove_file(source.join("socket")).unwrap();
    assert_eq!(differences(source, &back), "");
    let mut value = [0; 64];
    let len = getxattr(back.join("set"), "user.kept", &mut value).unwrap();
    assert_eq!(&value[..len], b"\0value\xff");
    fs::set_permissions(back.join("a/b"), fs::Permissions::from_mode(0o700)).unwrap();

    // Into a file, which appears when it is whole; names begin below what was given.
    let (archive, out) = (work.join("a.tar"), work.join("a"));
    fs::create_dir(&out).unwrap();
    let said = good(dev.run(&["dump", &format!("latest:{path}/a"), "/", "-t", archive.to_str().unwrap()]));
    assert!(said.stdout.is_empty());
    untar(&archive, &out);
    assert_eq!(differences(&source.join("a"), &out), "");

    let (archive, out) = (work.join("many.zip"), work.join("unzipped"));
    let many = format!("{path}/many");
    good(dev.run(&["dump", "latest", &many, "-a", "zip", "--target", archive.to_str().unwrap()]));
    good(Command::new("unzip").arg("-q").arg(&archive).arg("-d").arg(&out).output().unwrap());
    let diff = Command::new("diff").arg("-r").arg(source.join("many")).arg(out.join(&many[1..])).output();
    assert!(good(diff.unwrap()).stdout.is_empty());

    // What is wrong is said; nothing half-done stays.
    dev.fails(&["dump", "latest", &format!("{path}/link")], 1, "neither a file nor a directory");
    dev.fails(&["dump", "latest", "/no/such"], 1, "has no");
    let left: Vec<_> = fs::read_dir(work).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().ends_with(".part")), "{left:?}");

    // A reader that goes away is no failure; an end that is not the end is told.
    let begin = || {
        let mut dump = farshore();
        dump.envs(dev.env()).args(["dump", "latest", path]);
        let mut dump = dump.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        dump.stdout.as_mut().unwrap().read_exact(&mut [0; 1_024]).unwrap();
        dump
    };
    let mut gone = begin();
    drop(gone.stdout.take());
    let ended = gone.wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    let stopped = begin();
    interrupt(&stopped);
    let mut stopped = stopped;
    let mut said = String::new();
    stopped.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(stopped.wait().unwrap().code(), Some(130), "{said}");
    assert!(said.contains("INCOMPLETE"), "{said}");
}

fn interrupt(child: &Child) {
    good(Command::new("kill").args(["-INT", &child.id().to_string()]).output().unwrap());
}

/// A mount under way. However the test ends, nothing stays mounted.
struct Mounted {
    process: Child,
    at: PathBuf,
}

impl Mounted {
    /// `None`, with the reason said, where nothing can be mounted at all.
    fn start(dev: &Dev, at: &Path, args: &[&str]) -> Option<Mounted> {
        if !Path::new("/dev/fuse").exists() {
            eprintln!("SKIPPED: there is no /dev/fuse here, so mount was not tested");
            return None;
        }
        fs::create_dir_all(at).unwrap();
        let mut mount = farshore();
        mount.envs(dev.env()).arg("mount").arg(at).args(args);
        let process = mount.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut mounted = Mounted { process, at: at.into() };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !at.join("snapshots").exists() {
            assert!(Instant::now() < deadline, "nothing is mounted");
            if mounted.process.try_wait().unwrap().is_some() {
                let mut said = String::new();
                mounted.process.stderr.as_mut().unwrap().read_to_string(&mut said).unwrap();
                let forbidden = said.contains("not permitted") || said.contains("fusermount");
                assert!(forbidden, "{said}");
                eprintln!("SKIPPED: mounting is not permitted here, so mount was not tested: {said}");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(mounted)
    }

    fn ends_well(mut self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "mount does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(self.process.wait().unwrap().success());
        assert!(!self.at.join("snapshots").exists(), "it is mounted still");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).stderr(Stdio::null()).status();
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn mounts(dev: &mut Dev, source: &Path, work: &Path, id: &str) {
    let at = work.join("mounted");
    let Some(mounted) = Mounted::start(dev, &at, &[]) else { return };
    let below = source.strip_prefix("/").unwrap();
    assert_eq!(names(&at), ["hosts", "ids", "snapshots", "tags"]);
    let times = names(&at.join("snapshots"));
    assert!(times.len() == 2 && times[0].len() >= 20 && times[1] == "latest", "{times:?}");
    assert_eq!(fs::read_link(at.join("snapshots/latest")).unwrap(), Path::new(&times[0]));
    assert_eq!(
        (names(&at.join("ids")), names(&at.join("hosts"))),
        (vec![id[..8].into()], vec!["here".into()])
    );
    assert_eq!(names(&at.join("tags")), ["one", "two_2"]);
    let tagged = at.join("tags/two_2/latest").join(below);

    // Everything is as it was backed up, to the nanosecond; seen twice it is the same.
    let snapshot = at.join("snapshots").join(&times[0]).join(below);
    let socket = fs::symlink_metadata(snapshot.join("socket")).unwrap();
    assert!(std::os::unix::fs::FileTypeExt::is_socket(&socket.file_type()));
    let all = differences(source, &snapshot);
    let other: Vec<&str> = all.lines().filter(|line| !line.contains("socket")).collect();
    assert_eq!(other, ["wanted []"], "but for the socket there is none: {all}");
    assert_eq!(names(&snapshot.join("many")), names(&source.join("many")));
    let number = |path: &str| fs::symlink_metadata(snapshot.join(path)).unwrap().ino();
    assert_eq!(number("a/big"), number("a/b/second"), "two names of one file");
    assert_ne!(number("a/big"), number("set"));
    let mut value = [0; 64];
    let len = lgetxattr(snapshot.join("set"), "user.kept", &mut value).unwrap();
    assert_eq!(&value[..len], b"\0value\xff");
    assert!(lgetxattr(snapshot.join("set"), "user.other", &mut value).is_err());

    // Ranges of a large file, here and there and across its end.
    let bytes = fs::read(source.join("a/big")).unwrap();
    let big = fs::File::open(tagged.join("a/big")).unwrap();
    for (n, len) in [(1_u64, 10_usize), (5, 70_000), (3, 3_000_000), (7, 1), (2, 500_000)] {
        let from = n * 11_777_777;
        let mut piece = vec![0; len];
        big.read_exact_at(&mut piece, from).unwrap();
        assert!(piece == bytes[from as usize..from as usize + len], "{len} bytes at {from}");
    }
    let mut tail = vec![0; 4_096];
    assert_eq!(big.read_at(&mut tail, bytes.len() as u64 - 100).unwrap(), 100);
    assert_eq!(big.read_at(&mut tail, bytes.len() as u64 + 1).unwrap(), 0);
    let readonly = fs::write(snapshot.join("new"), b"x").unwrap_err();
    assert_eq!(readonly.raw_os_error(), Some(rustix::io::Errno::ROFS.raw_os_error()));
    assert!(fs::symlink_metadata(snapshot.join("no such")).is_err());

    // A snapshot that is made meanwhile appears, and is the latest.
    fs::write(source.join("later"), b"new").unwrap();
    dev.ok(&["backup", source.to_str().unwrap(), "--host", "here"]);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !at.join("snapshots/latest").join(below).join("later").exists() {
        assert!(Instant::now() < deadline, "the new snapshot does not appear");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(names(&at.join("hosts/here")).len(), 3);
    assert!(!snapshot.join("later").exists());

    // It ends by `umount`, and by Ctrl-C.
    drop(big);
    good(Command::new("umount").arg(&at).output().unwrap());
    mounted.ends_well();
    let args = ["--tag", "one", "--time-template", "%Y", "--owner-root", "--allow-other"];
    let mounted = Mounted::start(dev, &at, &args).unwrap();
    let year = &times[0][..4];
    assert_eq!(names(&at.join("snapshots")), [year, "latest"], "one of them has the tag");
    assert_eq!(fs::read(at.join("snapshots").join(year).join(below).join("set")).unwrap(), b"mode");
    interrupt(&mounted.process);
    mounted.ends_well();
    dev.fails(&["mount", work.join("no such").to_str().unwrap()], 1, "cannot mount");
    dev.fails(&["mount", at.to_str().unwrap(), "--time-template", "a/b"], 1, "slash");
}
