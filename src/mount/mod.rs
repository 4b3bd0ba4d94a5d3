//! `farshore mount`: the snapshots of a repository as directories, until Ctrl-C or `umount`.

mod fs;

use crate::args::{Global, MountArgs};
use crate::exit::{self, Exit};
use crate::profile;
use crate::repository::filter;
use farshore_client::view::{Options, ROOT};
use fs::Fs;
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use std::io;
use std::path::Path;
use std::sync::Arc;
use tokio::sync::oneshot;

/// `farshore mount`.
pub async fn run(args: MountArgs, global: &Global) -> Result<u8, Exit> {
    let at = args.mountpoint;
    let cannot = |e: &dyn std::fmt::Display| Exit::failure(format!("cannot mount on {}: {e}", at.display()));
    // Said before anything is asked or a passphrase typed.
    if !std::fs::metadata(&at).map_err(|e| cannot(&e))?.is_dir() {
        return Err(cannot(&"it is no directory"));
    }
    let template = args.time_template.parse().map_err(|e| Exit::failure(format!("--time-template: {e}")))?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let options =
        Options { filter: filter(args.filter)?, template, owner: (uid, gid), owner_root: args.owner_root };
    let repository = profile::open(global).await?;
    let view = Arc::new(repository.view(options));
    // The snapshots are listed once, so that what is wrong is said here and not to whoever looks first.
    let shelf = view.lookup(ROOT, b"snapshots").await?;
    if let Some(shelf) = shelf {
        view.forget(shelf.ino, 1);
    }

    let mut config = Config::default();
    config.mount_options =
        vec![MountOption::RO, MountOption::FSName(format!("farshore:{}", repository.name()))];
    if args.allow_other {
        config.acl = SessionACL::All;
        if !args.no_default_permissions {
            config.mount_options.push(MountOption::DefaultPermissions);
        }
    }
    let fs = Fs::new(view, tokio::runtime::Handle::current());
    let mut session = Session::new(fs, &at, &config).map_err(|e| cannot(&e))?;
    let unmounter = session.unmount_callable();
    let (ended, end) = oneshot::channel();
    // It waits for the kernel, not for us.
    std::thread::spawn(move || ended.send(session.run()));
    if !global.quiet {
        println!("Now serving the repository at {}", at.display());
        println!("Use another terminal or tool to browse the contents of this folder.");
        println!("When finished, quit with Ctrl-c here or umount the mountpoint.");
    }
    tokio::select! {
        biased;
        result = crate::node::stop_signal() => {
            result?;
            unmount(unmounter, &at)?;
        }
        result = end => {
            if let Ok(Err(error)) = result {
                return Err(Exit::failure(format!("{} is no longer served: {error}", at.display())));
            }
        }
    }
    Ok(exit::OK)
}

/// Takes the directory back. If somebody is still in it they keep what they have until they leave, and find it dead.
fn unmount(mut unmounter: SessionUnmounter, at: &Path) -> Result<(), Exit> {
    let Err(busy) = unmounter.unmount() else { return Ok(()) };
    let detached = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH).map_err(io::Error::from);
    match detached {
        Ok(()) => {
            eprintln!("farshore: {} was in use and has been taken away all the same", at.display());
            Ok(())
        }
        Err(_) => Err(Exit::failure(format!(
            "cannot unmount {}: {busy}; when nobody uses it, run: umount {}",
            at.display(),
            at.display()
        ))),
    }
}
