//! A Farshore storage node: keeps shards, takes part in the catalogue's consensus, answers clients and heals what is
//! lost.
//!
//! Read downwards: a module uses only those below it. A node links no decryption code and never sees a plaintext, a
//! name or a key of a client.

pub mod rescue;

pub mod run;

pub mod restore;

pub mod listen;

pub mod form;

pub mod rpc;

pub mod recover;

pub mod maintain;

pub mod config;

pub mod plan;

pub mod raft;

pub mod catalogue;

pub mod store;

pub mod identity;

pub mod worker;

pub mod kv;

pub mod disk;

pub use run::{Node, RunError, StartError, run};

#[cfg(test)]
pub(crate) mod testkit;
