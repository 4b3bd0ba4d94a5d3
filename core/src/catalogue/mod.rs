//! What the replicated catalogue holds, and everything that can change it. The state machine itself is in the node.

pub mod command;
pub mod export;
pub mod record;

pub use command::{Command, Proposal, Refusal, Reply, RepoChange};
pub use export::{EXPORT_REPO, ExportPart, ExportRecord};
pub use record::*;
