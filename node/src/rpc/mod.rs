//! What others may ask of a node: four services on one listener, one table of rights, one kind of error.

pub mod raft;

pub mod auth;
