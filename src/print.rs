//! What long work shows: a bar on a terminal, status lines in JSON, nothing in a pipe; and how entries are written.

use crate::args::Global;
use farshore_client::progress::{Event, Progress};
use farshore_core::units::rfc3339;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Status lines are at least this far apart.
const STATUS_EVERY: Duration = Duration::from_secs(1);

/// Shows the progress of a backup, restore or check.
pub struct Meter {
    bar: ProgressBar,
    json: bool,
    quiet: bool,
    found_files: AtomicU64,
    found_bytes: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
    problems: AtomicU64,
    last: Mutex<Instant>,
    start: Instant,
}

impl Meter {
    /// A meter for this command; `verb` is what is being done.
    pub fn new(global: &Global, verb: &'static str) -> Self {
        let show = std::io::stderr().is_terminal() && !global.json && !global.quiet;
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template(
            "[{elapsed_precise}] {prefix}  {percent}%  {binary_bytes} / {binary_total_bytes}  {binary_bytes_per_sec}  ETA {eta}  {msg}",
        );
        bar.set_style(style.expect("the template is a constant that parses"));
        bar.set_prefix(verb);
        if show {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        let now = Instant::now();
        Meter {
            bar,
            json: global.json,
            quiet: global.quiet,
            found_files: AtomicU64::new(0),
            found_bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            problems: AtomicU64::new(0),
            last: Mutex::new(now),
            start: now,
        }
    }

    /// Since the work began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn status(&self) {
        let mut last = self.last.lock().expect("no holder of this lock panics");
        if !self.json || self.quiet || last.elapsed() < STATUS_EVERY {
            return;
        }
        *last = Instant::now();
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let (done, total) = (load(&self.bytes), load(&self.found_bytes));
        let line = json!({
            "message_type": "status", "seconds_elapsed": self.elapsed().as_secs(),
            "percent_done": if total == 0 { 0.0 } else { done as f64 / total as f64 },
            "total_files": load(&self.found_files), "files_done": load(&self.files),
            "total_bytes": total, "bytes_done": done, "error_count": load(&self.problems),
        });
        println!("{line}");
    }

    fn problem(&self, path: &[u8], why: &str) {
        self.problems.fetch_add(1, Ordering::Relaxed);
        if self.json {
            let line = json!({
                "message_type": "error", "error": {"message": why}, "during": "work", "item": shown(path),
            });
            eprintln!("{line}");
        } else {
            self.bar.suspend(|| eprintln!("farshore: {}: {why}", shown(path)));
        }
    }
}

impl Progress for Meter {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Found { bytes } => {
                self.found_files.fetch_add(1, Ordering::Relaxed);
                self.found_bytes.fetch_add(bytes, Ordering::Relaxed);
                self.bar.inc_length(bytes);
            }
            Event::Bytes { bytes } => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                self.bar.inc(bytes);
            }
            Event::FileDone { .. } => {
                let files = self.files.fetch_add(1, Ordering::Relaxed) + 1;
                self.bar.set_message(format!("{files} files"));
            }
            Event::Problem { path, why } => self.problem(path, why),
            Event::Notice { text } if !self.quiet && !self.json => {
                self.bar.suspend(|| eprintln!("{text}"));
            }
            _ => {}
        }
        self.status();
    }
}

/// A path for people: what is not UTF-8 becomes a replacement character.
pub fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// `2026-11-20 15:59:59` in UTC.
pub fn time(unix_ms: u64) -> String {
    let text = rfc3339(unix_ms);
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

/// Ten letters as `ls -l` writes them.
pub fn permissions(kind: char, mode: u32) -> String {
    let mut text = String::from(kind);
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 != 0 { 'r' } else { '-' });
        text.push(if bits & 2 != 0 { 'w' } else { '-' });
        text.push(match (bits & 1 != 0, mode & special != 0) {
            (true, true) => letter,
            (false, true) => letter.to_ascii_uppercase(),
            (true, false) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// `1 pack`, `2 packs`, `3 repositories`.
pub fn count(number: u64, word: &str) -> String {
    match (number, word.strip_suffix('y')) {
        (1, _) => format!("1 {word}"),
        (_, Some(stem)) => format!("{number} {stem}ies"),
        _ => format!("{number} {word}s"),
    }
}

/// A line on a terminal that says how far a look is.
pub struct Counter(ProgressBar);

impl Counter {
    /// A counter of these things.
    pub fn new(global: &Global, what: &'static str) -> Self {
        let show = std::io::stderr().is_terminal() && !global.json && !global.quiet;
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(Some(0), target);
        let style = ProgressStyle::with_template("{pos} of {len} {msg}");
        bar.set_style(style.expect("the template is a constant that parses"));
        bar.set_message(what);
        Counter(bar)
    }

    /// So many of so many.
    pub fn show(&self, done: u64, total: u64) {
        self.0.set_length(total);
        self.0.set_position(done);
    }

    /// Takes the line away.
    pub fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// A span of time in the largest unit that does not hide much of it.
pub fn span(ms: u64) -> String {
    match ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7_200 => format!("{} min", seconds / 60),
        seconds @ 7_200..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// How long ago something was, for people.
pub fn ago(ms: u64) -> String {
    format!("{} ago", span(ms))
}

#[cfg(test)]
mod tests {
    #[test]
    fn permissions_read_like_ls() {
        assert_eq!(super::permissions('d', 0o755), "drwxr-xr-x");
        assert_eq!(super::permissions('-', 0o4711), "-rws--x--x");
        assert_eq!(super::permissions('-', 0o1640), "-rw-r----T");
    }
}
