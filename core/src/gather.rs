//! Gather.
