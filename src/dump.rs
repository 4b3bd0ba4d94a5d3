//! `farshore dump`: a file of a snapshot, or a directory as an archive, to standard output or into a file.

use crate::args::{ArchiveKind, DumpArgs, Global};
use crate::exit::{self, Exit};
use crate::profile;
use crate::repository::filter;
use farshore_client::dump::{Archive, Dump};
use farshore_client::error::Error;
use farshore_client::progress::{Event, Progress};
use std::fs::File;
use std::io::{self, ErrorKind, IsTerminal as _};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use tokio::io::BufWriter;

/// Small entries are written together in pieces of this size.
const WRITE_BYTES: usize = 1 << 20;

/// `farshore dump`.
pub async fn run(args: DumpArgs, global: &Global) -> Result<u8, Exit> {
    let repository = profile::open(global).await?;
    let (snapshot, root) = repository.resolve(args.snapshot.as_bytes(), &filter(args.filter)?).await?;
    let dump = repository.dump(&snapshot, root.as_deref(), args.what.as_bytes()).await?;
    if args.target.is_none() && dump.is_archive() && io::stdout().is_terminal() {
        return Err(Exit::failure(
            "an archive does not belong on a terminal; redirect the output, or give --target FILE",
        ));
    }
    let archive = match args.archive {
        ArchiveKind::Tar => Archive::Tar,
        ArchiveKind::Zip => Archive::Zip,
    };
    let notices = Notices { quiet: global.quiet };
    match &args.target {
        Some(target) => into_file(dump, archive, target, &notices).await?,
        None => to_stdout(dump, archive, &notices).await?,
    }
    Ok(exit::OK)
}

async fn to_stdout(dump: Dump, archive: Archive, notices: &Notices) -> Result<(), Exit> {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    let stdout = stdout.map_err(|e| Exit::failure(format!("cannot write to standard output: {e}")))?;
    match write(dump, archive, File::from(stdout), notices).await {
        // A reader that has gone away, such as `head`, is no failure.
        Err(Failed::Library(Error::Local { source, .. })) if source.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(Failed::Library(error)) => Err(Exit::code(
            error.exit_code() as u8,
            format!("{error}; the output ends here and is INCOMPLETE"),
        )),
        Err(Failed::Interrupted) => {
            Err(Exit::code(exit::INTERRUPTED, "interrupted; the output ends here and is INCOMPLETE"))
        }
        Ok(_) => Ok(()),
    }
}

/// Writes beside the target and renames, so that the name stands for all of it or for what it was before. What is no regular
/// file (a pipe, a device) is written as it is.
async fn into_file(dump: Dump, archive: Archive, target: &Path, notices: &Notices) -> Result<(), Exit> {
    let failed = |e: io::Error| Exit::failure(format!("cannot write {}: {e}", target.display()));
    let said = |failed: Failed| match failed {
        Failed::Library(error) => {
            Exit::code(error.exit_code() as u8, format!("{error}; {} was not written", target.display()))
        }
        Failed::Interrupted => {
            Exit::code(exit::INTERRUPTED, format!("interrupted; {} was not written", target.display()))
        }
    };
    if std::fs::metadata(target).is_ok_and(|there| !there.is_file()) {
        let file = File::options().write(true).open(target).map_err(failed)?;
        return write(dump, archive, file, notices).await.map(drop).map_err(said);
    }
    let name = target.file_name().ok_or_else(|| failed(ErrorKind::InvalidInput.into()))?;
    let mut beside = name.to_owned();
    beside.push(format!(".{}.part", std::process::id()));
    let part = Part(target.with_file_name(beside));
    let file = File::options().write(true).create_new(true).open(&part.0).map_err(failed)?;
    let file = write(dump, archive, file, notices).await.map_err(said)?;
    file.sync_all().await.map_err(failed)?;
    std::fs::rename(&part.0, target).map_err(failed)
}

/// A file that is not whole yet; removed if it never is.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename there is none, which is as it should be.
        let _ = std::fs::remove_file(&self.0);
    }
}

enum Failed {
    Library(Error),
    Interrupted,
}

async fn write(
    dump: Dump,
    archive: Archive,
    file: File,
    notices: &Notices,
) -> Result<tokio::fs::File, Failed> {
    let mut file = BufWriter::with_capacity(WRITE_BYTES, tokio::fs::File::from_std(file));
    tokio::select! {
        biased;
        _ = crate::node::stop_signal() => return Err(Failed::Interrupted),
        done = dump.run(archive, &mut file, notices) => done.map_err(Failed::Library)?,
    };
    Ok(file.into_inner())
}

/// Says what an archive has no form for, and nothing else: standard output belongs to what is dumped.
struct Notices {
    quiet: bool,
}

impl Progress for Notices {
    fn event(&self, event: Event<'_>) {
        if let Event::Notice { text } = event
            && !self.quiet
        {
            eprintln!("farshore: {text}");
        }
    }
}
