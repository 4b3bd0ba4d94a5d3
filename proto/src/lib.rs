//! Everything of Farshore that crosses the wire: generated messages, conversions to core types, TLS, channels.
//!
//! Read downwards: a module uses only those below it. Nothing here decides anything about backups or placement.

pub mod shard_client;

pub mod peers;

pub mod channel;

pub mod serve;

pub mod convert;

pub mod status;

pub mod profile;

pub mod pki;

pub mod tls;

mod exec;

/// Generated from `farshore/v1/*.proto`.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("farshore.v1");
}

#[cfg(test)]
mod testing;
