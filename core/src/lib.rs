//! Farshore's data model and the pure algorithms that client, node and simulator must agree on, plus the seams.
//!
//! Read downwards: a module uses only those below it, and nothing here opens a file or a socket except
//! `host/real.rs`. Chunking, compression and encryption are not here: nodes never see plaintext and do not even
//! link that code.

pub mod scatter;

pub mod gather;

pub mod stripe;

pub mod pack;

pub mod placement;

pub mod catalogue;

pub mod retention;

pub mod policy;

pub mod reliability;

pub mod topology;

pub mod health;

pub mod peer;

pub mod shard;

pub mod erasure;

pub mod retry;

pub mod host;

pub mod units;

pub mod id;

pub mod level;

pub mod limits;

pub mod mutant;
