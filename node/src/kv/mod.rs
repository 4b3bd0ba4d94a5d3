//! The two engines behind the Kv seam and the checked records above them.

pub mod record;
