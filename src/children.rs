//! Node processes of a cluster on this machine: start them from their directories, watch them, kill them.

use crate::exit::Exit;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// One node process and the directory it lives in.
pub struct Child {
    /// The node's name, which is also its directory's.
    pub name: String,
    /// Holds `node.toml`, keys, `log` and `data/`.
    pub dir: PathBuf,
    process: Option<std::process::Child>,
}

impl Child {
    /// A node that is not running yet.
    pub fn new(name: &str, dir: &Path) -> Self {
        Child { name: name.into(), dir: dir.into(), process: None }
    }

    /// Starts the process; its output goes to `log` in its directory.
    ///
    /// Must be called on the main thread: the child ends with the thread that started it.
    pub fn start(&mut self) -> Result<(), Exit> {
        let program =
            std::env::current_exe().map_err(|e| Exit::failure(format!("cannot find this program: {e}")))?;
        let log_path = self.dir.join("log");
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|e| Exit::failure(format!("cannot write {}: {e}", log_path.display())))?;
        let errors = log.try_clone().map_err(|e| Exit::failure(format!("cannot share the log: {e}")))?;
        let child = Command::new(program)
            .args(["node", "run", "--with-parent", "--config"])
            .arg(self.dir.join("node.toml"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(|e| Exit::failure(format!("cannot start node {}: {e}", self.name)))?;
        self.process = Some(child);
        Ok(())
    }

    /// Process id while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(std::process::Child::id)
    }

    /// Whether the process has ended since it was started; says how, once.
    pub fn ended(&mut self) -> Option<String> {
        match self.process.as_mut()?.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => {
                self.process = None;
                Some(status.to_string())
            }
            Err(e) => Some(format!("cannot be watched: {e}")),
        }
    }

    /// Whether the process is running.
    pub fn running(&self) -> bool {
        self.process.is_some()
    }

    /// SIGKILL, as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Both fail only if the process is gone already.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// SIGTERM, so that the node stops in good order.
    pub fn terminate(&mut self) {
        if let Some(pid) = self.pid().and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
    }

    /// The last line of its log, to say why it ended.
    pub fn last_words(&self) -> String {
        let log = std::fs::read(self.dir.join("log")).unwrap_or_default();
        let text = String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).into_owned();
        text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("its log is empty").to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}
