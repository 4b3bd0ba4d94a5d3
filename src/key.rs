//! `farshore key`: the keys of a repository. Words, flags and JSON fields are restic's.

use crate::args::{Global, KeyCommand, NewKeyArgs};
use crate::exit::{self, Exit};
use crate::{print, profile, secret};
use farshore_client::Repository;
use farshore_client::client::{Key, NewKey};
use farshore_client::crypto::{KdfParams, Secret, SlotInfo};
use farshore_core::host::real::OsEntropy;
use farshore_core::units::rfc3339;
use serde_json::{Value, json};
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `farshore key …`.
pub async fn run(command: KeyCommand, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    match command {
        KeyCommand::List => list(&repository, global).await,
        KeyCommand::Add(args) => write(&repository, args, false, global).await,
        KeyCommand::Passwd(args) => write(&repository, args, true, global).await,
        KeyCommand::Rotate => rotate(&repository, global).await,
        KeyCommand::Remove(args) => {
            let gone = repository.remove_key(&args.id).await?;
            if global.json {
                println!("{}", json!({"message_type": "key_removed", "id": gone.id.to_string()}));
            } else if !global.quiet {
                println!("removed key {}", gone.id);
            }
            Ok(exit::OK)
        }
    }
}

async fn list(repository: &Repository, global: &Global) -> Result<u8, Exit> {
    let keys = repository.keys().await?;
    if global.json {
        println!("{}", Value::from(keys.iter().map(key_json).collect::<Vec<_>>()));
        return Ok(exit::OK);
    }
    println!(" {:<9} {:<12} {:<16} {:<16} Created (UTC)", "ID", "Kind", "User", "Host");
    for key in &keys {
        let mark = if key.current { '*' } else { ' ' };
        let note = key.slot.note.as_ref();
        println!(
            "{mark}{:<9} {:<12} {:<16} {:<16} {}{}",
            key.slot.id.to_string(),
            kind(&key.slot),
            note.map_or("", |note| &note.user),
            note.map_or("", |note| &note.host),
            note.map_or_else(String::new, |note| print::time(note.created_ms)),
            if key.slot.vouched == Some(false) { "NOT MADE BY A HOLDER OF THE KEYS" } else { "" },
        );
    }
    Ok(exit::OK)
}

fn kind(slot: &SlotInfo) -> &'static str {
    slot.kind.map_or("unknown", |kind| kind.word())
}

fn key_json(key: &Key) -> Value {
    let note = key.slot.note.as_ref();
    json!({
        "current": key.current, "id": key.slot.id.to_string(),
        "userName": note.map_or("", |note| &note.user), "hostName": note.map_or("", |note| &note.host),
        "created": note.map_or_else(String::new, |note| rfc3339(note.created_ms)),
        "kind": kind(&key.slot), "vouched": key.slot.vouched,
    })
}

async fn rotate(repository: &Repository, global: &Global) -> Result<u8, Exit> {
    let (epoch, keys) = repository.rotate_keys(&secret::note(None, None)).await?;
    let ids: Vec<String> = keys.iter().map(|slot| slot.id.to_string()).collect();
    if global.json {
        println!("{}", json!({"message_type": "keys_rotated", "epoch": epoch, "keys": ids}));
    } else if !global.quiet {
        println!(
            "epoch {epoch} has begun; what is stored from now on opens with {} keys: {}",
            ids.len(),
            ids.join(", ")
        );
        println!("What was stored before is as it was.");
    }
    Ok(exit::OK)
}

/// Adds a key, or puts one in the place of that in use.
async fn write(repository: &Repository, args: NewKeyArgs, change: bool, global: &Global) -> Result<u8, Exit> {
    let (secret, groups) = new_secret(&args)?;
    let note = secret::note(args.user, args.host);
    let new = NewKey { secret, kdf: KdfParams::default(), note };
    let written = match change {
        true => repository.change_key(&new).await,
        false => repository.add_key(&new).await,
    };
    let written = match (written, &args.new_key_file) {
        (Ok(written), _) => written,
        // The cluster may have taken it although its answer was lost, so the file stays.
        (Err(error), Some(path)) => {
            let mut exit = Exit::from(error);
            exit.message += &format!(
                "; {} was written: see with `farshore key list` whether it is a key, and remove the file if it is none",
                path.display()
            );
            return Err(exit);
        }
        (Err(error), None) => return Err(error.into()),
    };
    if global.json {
        let line = json!({
            "message_type": if change { "key_changed" } else { "key_added" }, "id": written.id.to_string(),
            "kind": kind(&written), "recovery_key": groups.as_ref().map(|groups| groups.join("-")),
        });
        println!("{line}");
        return Ok(exit::OK);
    }
    if !global.quiet {
        println!("saved new key {} {}", if change { "as" } else { "with ID" }, written.id);
    }
    if let Some(groups) = groups {
        // It is shown this once, so it is shown even to who wants to hear nothing.
        println!("# Recovery key {} of repository {}", written.id, repository.name());
        groups.chunks(5).for_each(|line| println!("{}", line.join("-")));
        if !global.quiet {
            println!(
                "It is shown only now: write it down and keep it where no fire reaches both it and this machine."
            );
        }
    }
    Ok(exit::OK)
}

/// The new secret, and the groups of a recovery key.
fn new_secret(args: &NewKeyArgs) -> Result<(Secret, Option<Vec<String>>), Exit> {
    if args.recovery {
        let (secret, groups) = Secret::new_recovery_key(&OsEntropy);
        return Ok((secret, Some(groups)));
    }
    if let Some(path) = &args.new_key_file {
        let (_, bytes) = Secret::new_key_file(&OsEntropy);
        write_key_file(path, &bytes)
            .map_err(|e| Exit::failure(format!("cannot write key file {}: {e}", path.display())))?;
        // What the file holds is the key, not what should be in it.
        return Ok((secret::key_file(path)?, None));
    }
    let passphrase =
        profile::new_passphrase(args.new_password_file.as_deref(), args.new_password_command.as_deref());
    Ok((Secret::passphrase(passphrase?), None))
}

/// Before there is a slot for it, so that there is no slot whose file was lost.
fn write_key_file(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(dir)?.sync_all()
}
