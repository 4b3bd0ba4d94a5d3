//! What opens a repository, from wherever the flags and the environment say: a recovery key, a key file or a passphrase.

use crate::args::Global;
use crate::exit::Exit;
use crate::profile::{self, WRONG_CREDENTIAL};
use farshore_client::crypto::{Secret, SlotNote};
use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// More than this no key file and no sheet of paper holds.
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The secret that the flags name. The rarest is asked for on purpose, so it goes first.
pub fn given(global: &Global, new: bool) -> Result<Secret, Exit> {
    if let Some(path) = &global.recovery_key_file {
        let typed = match path.as_os_str() == "-" {
            true if std::io::stdin().is_terminal() => profile::ask("recovery key, 13 groups: ")?,
            true => text(read(std::io::stdin().lock(), "standard input")?, "standard input")?,
            false => text(read_file(path)?, &path.display().to_string())?,
        };
        return Secret::recovery_key(&typed).map_err(wrong);
    }
    if let Some(path) = &global.key_file {
        return key_file(path);
    }
    profile::passphrase(global, new).map(Secret::passphrase)
}

/// What a key file holds.
pub fn key_file(path: &Path) -> Result<Secret, Exit> {
    let bytes = read_file(path)?;
    Secret::key_file(&bytes).ok_or_else(|| {
        wrong(format!("{} is no key file: it has {} bytes instead of 32", path.display(), bytes.len()))
    })
}

/// What a key of this user on this host says of itself.
pub fn note(user: Option<String>, host: Option<String>) -> SlotNote {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    SlotNote {
        user: user.unwrap_or_else(crate::backup::this_user),
        host: host.unwrap_or_else(crate::backup::this_host),
        created_ms: now.as_millis() as u64,
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Exit> {
    let shown = path.display().to_string();
    let file = std::fs::File::open(path).map_err(|e| wrong(format!("cannot read {shown}: {e}")))?;
    read(file, &shown)
}

fn read(source: impl Read, shown: &str) -> Result<Vec<u8>, Exit> {
    let mut bytes = Vec::new();
    let read = source.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(|e| wrong(format!("cannot read {shown}: {e}")))?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>, shown: &str) -> Result<String, Exit> {
    String::from_utf8(bytes).map_err(|_| wrong(format!("{shown} holds no text, so no recovery key")))
}

fn wrong(why: impl std::fmt::Display) -> Exit {
    Exit::code(WRONG_CREDENTIAL, why)
}
