//! Reading chunks by their ids: locate → plan → gather → open, in batches, whoever needs them.

pub mod plan;
