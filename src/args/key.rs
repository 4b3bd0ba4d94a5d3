//! Flags of `farshore key`.

use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Subcommand, Debug)]
pub enum KeyCommand {
    /// List the keys of the repository; the one in use is marked with `*`
    List,
    /// Add a key: a passphrase, a key file, or a recovery key for paper
    Add(NewKeyArgs),
    /// Remove a key; the one in use is refused
    Remove(KeyRemoveArgs),
    /// Put a new key in the place of the one in use
    Passwd(NewKeyArgs),
    /// Seal with new keys from now on, which only the holders of the keys of now can have; rewrites nothing
    Rotate,
}

#[derive(Args, Debug)]
pub struct NewKeyArgs {
    /// File whose first line is the new passphrase; without any of these it is asked for
    #[arg(long, value_name = "FILE", group = "new")]
    pub new_password_file: Option<PathBuf>,
    /// Shell command that prints the new passphrase
    #[arg(long, value_name = "COMMAND", group = "new")]
    pub new_password_command: Option<String>,
    /// Write a new key file, which must not exist; keep it away from others and have a copy of it
    #[arg(long, value_name = "FILE", group = "new")]
    pub new_key_file: Option<PathBuf>,
    /// Draw a recovery key and print it, for paper in a safe
    #[arg(long, group = "new")]
    pub recovery: bool,
    /// User that the key says it is of
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Host that the key says it is of
    #[arg(long, value_name = "NAME")]
    pub host: Option<String>,
}

#[derive(Args, Debug)]
pub struct KeyRemoveArgs {
    /// Its id, or the start of it
    #[arg(value_name = "ID")]
    pub id: String,
}
