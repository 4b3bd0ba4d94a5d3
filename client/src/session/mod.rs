//! Talking to a cluster: the catalogue through whichever node answers, shards with each node directly. The home of
//! tonic in this crate.

pub mod ask;
pub mod audit;
pub mod conversation;
pub mod export;
pub mod grpc;
pub mod recovery;
pub mod scrub;
pub mod topology;

pub use grpc::GrpcCatalogue;
pub use recovery::Recovery;
pub use scrub::{NamedShard, ScrubResult};
pub use topology::{Operator, TopologyPlan};
