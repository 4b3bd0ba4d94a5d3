//! Farshore's client library: backs trees up into a cluster and restores them. No command line, no printing.
//!
//! Read downwards: a module uses only those below it. Everything outside arrives through `farshore_core::host::Host`
//! and the traits of `files`; plaintext, names and keys never leave this crate.

pub mod copy;

pub mod stats;

pub mod tag;

pub mod client;

pub mod check;

pub mod view;

pub mod dump;

pub mod restore;

pub mod backup;

pub mod retention;

pub mod diff;

pub mod find;

pub mod list;

pub mod select;

pub mod pattern;

pub mod links;

pub mod walk;

pub mod fetch;

pub mod keyring;

pub mod session;

pub mod api;

pub mod format;

pub mod crypto;

pub mod files;

pub mod progress;

pub mod error;

pub use client::{Client, Repository, SealedRepository};
pub use error::{Error, Result};

#[cfg(test)]
mod testing;

#[cfg(test)]
#[path = "../../node/src/testkit.rs"]
mod fixtures;
