//! From flags and environment to a connected client and an open repository.

use crate::args::Global;
use crate::exit::{self, Exit};
use farshore_client::client::Freshness;
use farshore_client::{Client, Repository};
use farshore_core::host::{WallClock, real};
use farshore_proto::profile::Profile;
use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;
use std::time::Duration;

/// Exit code for a passphrase or credential that does not work.
pub const WRONG_CREDENTIAL: u8 = 12;
/// An error is not kept back longer than this for the sake of better words.
const NAMES_WITHIN: Duration = Duration::from_secs(3);

impl From<farshore_client::Error> for Exit {
    fn from(error: farshore_client::Error) -> Self {
        Exit { code: error.exit_code() as u8, message: error.to_string() }
    }
}

/// Connects to the cluster of the profile.
pub async fn connect(global: &Global) -> Result<Client, Exit> {
    let profile = read_profile(global)?;
    let freshness = if global.stale { Freshness::AsFound } else { Freshness::Confirmed };
    let mut client = Client::connect_as(real::client_host(), profile, freshness).await?;
    if let Some(home) = &global.near {
        client = client.near(home).await?;
    }
    if global.stale {
        say_how_old(&client).await?;
    }
    Ok(client)
}

/// Nobody confirms a stale answer, so whoever reads it must know how old it may be.
async fn say_how_old(client: &Client) -> Result<(), Exit> {
    let status = client.status().await?;
    let of = status.nodes.iter().find(|n| n.node.id == status.answering);
    let name = of.map_or_else(|| status.answering.to_string(), |n| n.node.name.to_string());
    let age = real::SystemClock.now_ms().saturating_sub(status.catalogue_ms);
    eprintln!(
        "farshore: stale: the catalogue is read as {name} or another replica knows it, unconfirmed; its last change was \
         {} (log entry {}), and snapshots made later are not seen",
        crate::print::ago(age),
        status.applied
    );
    Ok(())
}

/// The profile that the flags or the environment name.
pub fn read_profile(global: &Global) -> Result<Profile, Exit> {
    let Some(path) = &global.profile else {
        return Err(Exit::failure(
            "which cluster? give --profile FILE or set FARSHORE_PROFILE (try `farshore dev --dir ./dev` for one to play with)",
        ));
    };
    let text = std::fs::read_to_string(path)
        .map_err(|e| Exit::failure(format!("cannot read profile {}: {e}", path.display())))?;
    Profile::parse(&text)
        .map_err(|e| Exit::code(WRONG_CREDENTIAL, format!("profile {}: {e}", path.display())))
}

/// The same error with node ids replaced by names, as far as some node still knows them.
pub async fn with_names(mut exit: Exit, global: &Global) -> Exit {
    let names = async { connect(global).await.ok()?.status().await.ok() };
    let Ok(Some(status)) = tokio::time::timeout(NAMES_WITHIN, names).await else { return exit };
    for node in &status.nodes {
        exit.message = exit.message.replace(&node.node.id.to_string(), node.node.name.as_str());
    }
    exit
}

/// Name of the repository, as given.
pub fn repo_name(global: &Global) -> Result<&str, Exit> {
    let given = global.repo.as_deref().filter(|name| !name.is_empty());
    given.ok_or_else(|| Exit::failure("which repository? give -r NAME or set FARSHORE_REPOSITORY"))
}

/// Connects and opens the repository.
pub async fn open(global: &Global) -> Result<Repository, Exit> {
    repo_name(global)?;
    open_with(global, connect(global).await?).await
}

/// Opens the repository in a cluster.
pub async fn open_with(global: &Global, client: Client) -> Result<Repository, Exit> {
    let name = repo_name(global)?.to_owned();
    // A repository that is not there should not cost a question for its passphrase.
    let sealed = client.find_repository(&name).await?;
    Ok(client.unlock_with(sealed, crate::secret::given(global, false)?).await?)
}

/// The passphrase, from wherever the flags say, or asked for on the terminal (twice if it is new).
pub fn passphrase(global: &Global, new: bool) -> Result<String, Exit> {
    if let Some(path) = &global.password_file {
        return from_file(path);
    }
    if let Some(command) = &global.password_command {
        return from_command(command);
    }
    if let Some(text) = &global.password {
        return non_empty(text.clone(), "FARSHORE_PASSWORD");
    }
    let none = "no passphrase: give --password-file FILE or set FARSHORE_PASSWORD_FILE or FARSHORE_PASSWORD";
    typed("repository passphrase: ", new, none)
}

/// A passphrase that is to become one: from a file or a command, or asked for twice.
pub fn new_passphrase(file: Option<&Path>, command: Option<&str>) -> Result<String, Exit> {
    match (file, command) {
        (Some(path), _) => from_file(path),
        (None, Some(command)) => from_command(command),
        (None, None) => {
            let none = "no new passphrase: give --new-password-file FILE, --new-key-file FILE or --recovery";
            typed("new passphrase: ", true, none)
        }
    }
}

fn typed(prompt: &str, new: bool, none: &str) -> Result<String, Exit> {
    if !std::io::stdin().is_terminal() {
        return Err(Exit::code(WRONG_CREDENTIAL, none));
    }
    let first = ask(prompt)?;
    if new && ask("once more: ")? != first {
        return Err(Exit::code(WRONG_CREDENTIAL, "the two passphrases differ; nothing was changed"));
    }
    non_empty(first, "the terminal")
}

fn from_file(path: &Path) -> Result<String, Exit> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Exit::code(WRONG_CREDENTIAL, format!("cannot read passphrase file {}: {e}", path.display()))
    })?;
    non_empty(text.lines().next().unwrap_or_default().to_owned(), &path.display().to_string())
}

fn from_command(command: &str) -> Result<String, Exit> {
    let failed = |why: String| Exit::code(WRONG_CREDENTIAL, format!("passphrase command failed: {why}"));
    let output = std::process::Command::new("sh")
        .args(["-c", command])
        .stderr(std::process::Stdio::inherit())
        .output()
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(output.status.to_string()));
    }
    let text = String::from_utf8(output.stdout).map_err(|_| failed("its output is not text".into()))?;
    non_empty(text.lines().next().unwrap_or_default().to_owned(), "the passphrase command")
}

fn non_empty(text: String, source: &str) -> Result<String, Exit> {
    if text.is_empty() {
        return Err(Exit::code(WRONG_CREDENTIAL, format!("the passphrase from {source} is empty")));
    }
    Ok(text)
}

/// Asks on the terminal without showing what is typed.
pub fn ask(prompt: &str) -> Result<String, Exit> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let failed = |e: &dyn std::fmt::Display| Exit::failure(format!("cannot ask on the terminal: {e}"));
    eprint!("{prompt}");
    std::io::stderr().flush().map_err(|e| failed(&e))?;
    let before = tcgetattr(&stdin).map_err(|e| failed(&e))?;
    let mut silent = before.clone();
    silent.local_modes -= LocalModes::ECHO;
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|e| failed(&e))?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(|e| failed(&e))?;
    eprintln!();
    match read.map_err(|e| failed(&e))? {
        0 => Err(Exit::code(exit::INTERRUPTED, "no passphrase was typed")),
        _ => Ok(line.trim_end_matches(['\r', '\n']).to_owned()),
    }
}
