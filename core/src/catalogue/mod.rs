//! What the replicated catalogue holds, and everything that can change it. The state machine itself is in the node.

pub mod audit;
pub mod command;
pub mod export;
pub mod record;
pub mod upkeep;

pub use audit::{
    Act, ActOutcome, Actor, AuditCheck, AuditEntry, AuditFault, AuditHead, AuditRecord, RepoAct,
    SomeSnapshots,
};
pub use command::{Asked, Command, Proposal, Refusal, Reply, RepoChange};
pub use export::{EXPORT_REPO, ExportPart, ExportRecord};
pub use record::*;
pub use upkeep::{LinkBudget, Migration, StripeRead, Subject, Upkeep, Verification, VerifiedStripe};
