//! Farshore's failure-injection simulator: the shipped node and client code, real TLS and gRPC included, in one thread
//! on virtual time, over seams that lose power, cut links and rot. One seed is one run, to the last event.
//!
//! Read downwards. The program `farshore-sim` (`src/bin`) adds what a library must not do: it replaces the process's
//! own clock and randomness.

pub mod fleet;

pub mod scenario;

pub mod mutants;

pub mod run;

pub mod day;

pub mod enumerate;

pub mod misconduct;

pub mod trespass;

pub mod invariant;

pub mod agent;

pub mod truth;

pub mod coverage;

pub mod cluster;

pub mod relay;

pub mod linear;

pub mod plan;

pub mod tree;

pub mod net;

pub mod contents;

pub mod kv;

pub mod disk;

pub mod medium;

pub mod clock;

pub mod world;

pub mod taint;

pub mod calls;

pub mod entropy;
