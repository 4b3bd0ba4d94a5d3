//! Everything of Farshore that crosses the wire: generated messages, conversions to core types, TLS, channels.

/// Generated from `farshore/v1/*.proto`.
#[allow(missing_docs, clippy::all)]
pub mod wire {
    tonic::include_proto!("farshore.v1");
}
