//! Exit codes of the command line (a contract with scripts) and the error that carries one.

use std::fmt;

/// Everything went well.
pub const OK: u8 = 0;
/// Any failure without a code of its own, wrong usage included.
pub const FAILURE: u8 = 1;
/// The snapshot is saved, but some of the source could not be read.
pub const SOURCE_UNREADABLE: u8 = 3;
/// Nobody answers, no quorum, or below the write floor.
pub const UNAVAILABLE: u8 = 13;
/// Committed, but not yet at full strength.
pub const UNDER_TARGET: u8 = 14;
/// A check, verification or drill failed.
pub const CHECK_FAILED: u8 = 15;
/// Ended by the user.
pub const INTERRUPTED: u8 = 130;

/// An error and the code to end with.
#[derive(Debug)]
pub struct Exit {
    /// Process exit code.
    pub code: u8,
    /// What, why, what to do next: one line.
    pub message: String,
}

impl Exit {
    /// An ordinary failure.
    pub fn failure(message: impl fmt::Display) -> Self {
        Exit { code: FAILURE, message: message.to_string() }
    }
    /// A failure with a code of its own.
    pub fn code(code: u8, message: impl fmt::Display) -> Self {
        Exit { code, message: message.to_string() }
    }
}
