//! The `farshore` command: arguments in, one exit code out. What it does is in one file per command; No logic here.

#![expect(
    clippy::disallowed_methods,
    reason = "the command is the operator's own world: it reads their files and hands the real seams to the libraries"
)]

mod args;
mod audit;
mod backup;
mod children;
mod cluster;
mod codes;
mod demo;
mod dev;
mod dump;
mod exit;
mod explain;
mod forget;
mod health;
mod key;
mod lock;
mod look;
mod memory;
mod migrate;
mod more;
mod mount;
mod node;
mod paths;
mod policy;
mod print;
mod profile;
mod prune;
mod recovery;
mod repair;
mod repository;
mod restore;
mod secret;
mod setup;
mod topology;
mod trees;
mod upkeep;
mod watch;
mod what_if;
mod zone;

use args::{Cli, Command};
use clap::Parser;
use clap::error::ErrorKind;
use exit::Exit;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// What a shell says of a program that a closed pipe has ended.
const PIPE_CLOSED: i32 = 141;

/// Ends quietly when whoever read the output has gone away, as `head` does. The signal that ends other programs then is not let in: it
/// would come for the lines to nodes, too.
fn end_with_the_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if text.starts_with("failed printing to stdout") && text.contains("Broken pipe") {
            std::process::exit(PIPE_CLOSED);
        }
        usual(panic);
    }));
}

fn main() -> ExitCode {
    end_with_the_reader();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(asked) if matches!(asked.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            // Nothing can be done about a closed pipe.
            let _ = asked.print();
            return ExitCode::SUCCESS;
        }
        Err(wrong) => return fail(&Exit::failure(one_line(&wrong))),
    };
    start_log(cli.global.verbose, matches!(cli.command, Command::Node(args::NodeCommand::Run(_))));
    if !matches!(cli.command, Command::Node(_)) {
        memory::keep_small();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(run(cli));
            // A blocked file operation must not keep a finished command from ending.
            runtime.shutdown_background();
            result
        }
        Err(e) => Err(Exit::failure(format!("cannot start: {e}"))),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(exit) => fail(&exit),
    }
}

fn fail(exit: &Exit) -> ExitCode {
    eprintln!("farshore: {}", exit.message.replace('\n', " "));
    ExitCode::from(exit.code)
}

/// What was wrong with the arguments, and where help is.
fn one_line(wrong: &clap::Error) -> String {
    let text = wrong.render().to_string();
    if wrong.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return "a command is missing; see farshore --help".into();
    }
    let lines = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said: Vec<&str> = lines.filter(|line| !line.is_empty()).collect();
    let said = said.join(" ");
    format!("{}; see farshore --help", said.trim_start_matches("error: ").trim_end_matches('.'))
}

/// Logs go to standard error. Commands are quiet unless asked; a node tells what it does.
fn start_log(verbose: u8, node: bool) {
    let default = match (node, verbose) {
        (_, 2..) => "debug,h2=info,hyper=info,rustls=info",
        // A node that is away is reported by us once; openraft would say it several times a second, for as long as it takes.
        (true, _) | (_, 1) => "info,openraft=error",
        _ => "off",
    };
    let filter = EnvFilter::try_from_env("FARSHORE_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}

async fn run(cli: Cli) -> Result<u8, Exit> {
    let global = cli.global;
    if global.stale && !reads_only(&cli.command) {
        return Err(Exit::failure(
            "--stale goes with commands that only read: snapshots, ls, find, diff, cat, dump, mount, stats, restore, check",
        ));
    }
    let result = match cli.command {
        Command::Demo(args) => demo::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Node(command) => node::run(command, &global).await,
        Command::Cluster(command) => cluster::run(command, &global).await,
        Command::Init(args) => repository::init(args, &global).await,
        Command::Backup(args) => backup::run(args, &global).await,
        Command::Snapshots(args) => repository::snapshots(args, &global).await,
        Command::Ls(args) => repository::ls(args, &global).await,
        Command::Find(args) => look::find(args, &global).await,
        Command::Diff(args) => look::diff(args, &global).await,
        Command::Cat(args) => look::cat(args, &global).await,
        Command::Dump(args) => dump::run(args, &global).await,
        Command::Mount(args) => mount::run(args, &global).await,
        Command::Restore(args) => restore::run(args, &global).await,
        Command::Stats(args) => more::stats(args, &global).await,
        Command::Tag(args) => more::tag(args, &global).await,
        Command::Copy(args) => more::copy(args, &global).await,
        Command::Forget(args) => forget::forget(args, &global).await,
        Command::Undelete(args) => forget::undelete(args, &global).await,
        Command::Prune(args) => prune::run(args, &global).await,
        Command::Policy(args) => policy::run(args, &global).await,
        Command::Lock(args) => lock::run(args, &global).await,
        Command::Key(command) => key::run(command, &global).await,
        Command::Check(args) => repository::check(args, &global).await,
        Command::Sim { args } => simulate(args),
    };
    match result {
        // The libraries know nodes by their ids; people know them by their names.
        Err(exit) if exit.code == exit::UNAVAILABLE => Err(profile::with_names(exit, &global).await),
        result => result,
    }
}

fn reads_only(command: &Command) -> bool {
    use Command::{Cat, Check, Diff, Dump, Find, Ls, Mount, Restore, Snapshots, Stats};
    matches!(
        command,
        Snapshots(_)
            | Stats(_)
            | Ls(_)
            | Find(_)
            | Diff(_)
            | Cat(_)
            | Dump(_)
            | Mount(_)
            | Restore(_)
            | Check(_)
    )
}

/// The simulator replaces libc's clock and randomness, so it is a program of its own, beside this one.
fn simulate(args: Vec<std::ffi::OsString>) -> Result<u8, Exit> {
    use std::os::unix::process::CommandExt;
    let own = std::env::current_exe().map_err(|e| Exit::failure(format!("cannot find this program: {e}")))?;
    let program = own.with_file_name("farshore-sim");
    let failed = std::process::Command::new(&program).args(args).exec();
    Err(Exit::failure(format!(
        "cannot start {}: {failed}; build it with `cargo build --release -p farshore-sim`",
        program.display()
    )))
}
