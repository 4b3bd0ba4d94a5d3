//! A Farshore storage node: shards on disk, the replicated catalogue, and the work that keeps both whole.
//!
//! Read downwards: a module uses only those below it. It never sees a plaintext, a name or a key of a client.

pub mod kv;
