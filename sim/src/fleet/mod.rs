//! The fleet model: thousands of nodes and years of failures, statistically. No byte moves here and no code of a node
//! runs, except what decides: policy and placement of `farshore_core`, and the order of repair of
//! `farshore_node::plan`.
//!
//! Read downwards. It is checked against the closed forms of `farshore_core::reliability` where those hold, and shows
//! by how much they are off where they do not.

pub mod report;

pub mod agree;

pub mod estimate;

pub mod life;

pub mod crew;

pub mod tilt;

pub mod stats;

pub mod groups;

pub mod queue;

pub mod dice;

pub mod spec;
