//! Talking to a cluster: the conversation that survives the loss of nodes, and the write lease. The home of tonic in
//! this crate.

pub mod conversation;
pub mod lease;

pub use lease::Lease;
