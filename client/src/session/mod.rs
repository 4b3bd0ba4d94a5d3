//! Talking to a cluster: the catalogue through whichever node answers, shards with each node directly, and the write
//! lease. The home of tonic in this crate.

pub mod conversation;
pub mod grpc;
pub mod lease;
pub mod scrub;

pub use grpc::GrpcCatalogue;
pub use lease::Lease;
pub use scrub::ScrubResult;
