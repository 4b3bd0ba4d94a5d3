//! What can go wrong for a client, once: each variant is something a caller acts on differently, each message says in
//! one line what failed, why, and what to do next, and each has the exit code of the command line's contract.

use farshore_core::id::{Ordinal, PackId, SessionId, SnapshotId};
use farshore_core::retry::Retry;
use std::fmt;
use std::sync::Arc;

/// Result of everything public in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a client call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The cluster has no repository of this name.
    #[error("repository {0:?} does not exist in this cluster; create it with `farshore init -r {0}`")]
    RepositoryMissing(String),
    /// The name is taken.
    #[error("repository {0:?} already exists; choose another name, or use it with its password")]
    RepositoryExists(String),
    /// No key slot opens with the given passphrase.
    #[error("wrong password for repository {0:?}: no key slot opens with it; check the password or key file")]
    WrongPassword(String),
    /// The cluster does not accept our certificate, or we do not accept theirs, or the profile is unusable.
    #[error(
        "credentials do not work: {0}; check that the profile belongs to this cluster and is not revoked"
    )]
    Credential(String),
    /// A session could not be opened, or it was ended while we worked.
    #[error("write session {0} has ended; run the backup again: what is already stored is not sent twice")]
    SessionEnded(SessionId),
    /// No node of the cluster answered in time.
    #[error(
        "no node of the cluster answers (tried {}): {last}; check the network and the profile's endpoints",
        .tried.join(", ")
    )]
    Unreachable {
        /// Every address asked.
        tried: Vec<String>,
        /// What the last one failed with.
        last: String,
    },
    /// Nodes answer, but no majority of voters does.
    #[error(
        "the cluster has no quorum: {last}; start the missing voters, then run the same command again (asked {} nodes)",
        .tried.len()
    )]
    NoQuorum {
        /// Every address asked.
        tried: Vec<String>,
        /// What the last one said.
        last: String,
    },
    /// Too few nodes take shards for the repository's write floor.
    #[error("below the write floor: {0}; nothing is lost, run the backup again when more nodes are up")]
    BelowFloor(String),
    /// Chunks a snapshot names are gone. Backup sends them again; nobody else sees this.
    #[error("{} chunks of the snapshot are gone and must be sent again; run the backup again", .0.len())]
    ChunksGone(Vec<Ordinal>),
    /// A grant, a lock or a rule of the catalogue forbids it.
    #[error("refused: {0}")]
    Refused(String),
    /// The policy cannot be met by this cluster.
    #[error("the policy cannot be met: {0}")]
    Policy(String),
    /// No snapshot answers to this name.
    #[error("no snapshot matches {0:?}; list them with `farshore snapshots`")]
    SnapshotMissing(String),
    /// A short id fits several snapshots.
    #[error("snapshot id {spec:?} fits several: {}; give more digits", .fits.iter().map(SnapshotId::short).collect::<Vec<_>>().join(", "))]
    SnapshotAmbiguous {
        /// What was asked for.
        spec: String,
        /// What it could mean.
        fits: Vec<SnapshotId>,
    },
    /// The snapshot has no such path.
    #[error("snapshot {} has no {path:?}; list its contents with `farshore ls {}`", .snapshot.short(), .snapshot.short())]
    PathMissing {
        /// Which snapshot.
        snapshot: SnapshotId,
        /// What it lacks.
        path: String,
    },
    /// Too few good shards of a pack can be read now.
    #[error("pack {} cannot be read: {why}; try again when more nodes are up", .pack.short())]
    Unreadable {
        /// Which pack.
        pack: PackId,
        /// What each shard said, shortened.
        why: String,
    },
    /// Stored bytes are not what was written, though enough shards were good.
    #[error("{what} is corrupt: {why}; run `farshore check --read-data`")]
    Corrupt {
        /// What was being opened.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Sealed with keys that came after ours.
    #[error("{what} is sealed with keys of epoch {epoch}, which are not known here; run the command again")]
    LaterKeys {
        /// What was being opened.
        what: String,
        /// Which epoch, from 0.
        epoch: u16,
    },
    /// One path of a snapshot, among others that were well.
    #[error("{path}: {why}")]
    At {
        /// Its name.
        path: String,
        /// What is wrong with it. Several paths may share one reason.
        why: Arc<Error>,
    },
    /// A check or verification found damage.
    #[error("check failed: {0}")]
    CheckFailed(String),
    /// A local file or directory.
    #[error("{what}: {source}")]
    Local {
        /// Verb and object.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The caller asked for something that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The other side answered something its protocol does not allow.
    #[error("the cluster's answer makes no sense: {0}; are all nodes and this client of the same version?")]
    Protocol(String),
}

impl Error {
    /// A failed system call on a path.
    pub fn local(what: impl Into<String>, source: std::io::Error) -> Self {
        Error::Local { what: what.into(), source }
    }
    /// What is wrong with one path; without parts it is the root.
    pub fn at(path: &impl fmt::Display, why: Arc<Error>) -> Self {
        let path = path.to_string();
        Error::At { path: if path.is_empty() { "/".into() } else { path }, why }
    }
    /// Stored bytes that fail their check.
    pub fn corrupt(what: impl Into<String>, why: impl ToString) -> Self {
        Error::Corrupt { what: what.into(), why: why.to_string() }
    }

    /// Exit code of the command line, DESIGN section 12.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::RepositoryMissing(_) => 10,
            Error::SessionEnded(_) => 11,
            Error::WrongPassword(_) | Error::Credential(_) => 12,
            Error::Unreachable { .. } | Error::NoQuorum { .. } | Error::BelowFloor(_) => 13,
            Error::CheckFailed(_) => 15,
            Error::At { why, .. } => why.exit_code(),
            Error::Refused(_) => 16,
            Error::RepositoryExists(_)
            | Error::ChunksGone(_)
            | Error::Policy(_)
            | Error::SnapshotMissing(_)
            | Error::SnapshotAmbiguous { .. }
            | Error::PathMissing { .. }
            | Error::Unreadable { .. }
            | Error::Corrupt { .. }
            | Error::LaterKeys { .. }
            | Error::Local { .. }
            | Error::Invalid(_)
            | Error::Protocol(_) => 1,
        }
    }

    /// Whether doing the same again can help.
    pub fn retry(&self) -> Retry {
        match self {
            Error::Unreachable { .. }
            | Error::NoQuorum { .. }
            | Error::BelowFloor(_)
            | Error::Unreadable { .. } => Retry::Later,
            Error::At { why, .. } => why.retry(),
            _ => Retry::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_line_and_codes_follow_the_contract() {
        let (id, tried) = (SnapshotId([0xab; 32]), vec!["a:1".to_string(), "b:2".to_string()]);
        let io = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let cases = [
            (Error::RepositoryMissing("x".into()), 10),
            (Error::SessionEnded(SessionId([1; 16])), 11),
            (Error::WrongPassword("x".into()), 12),
            (Error::Credential("no".into()), 12),
            (Error::Unreachable { tried: tried.clone(), last: "refused".into() }, 13),
            (Error::NoQuorum { tried, last: "no leader".into() }, 13),
            (Error::BelowFloor("3 of 6".into()), 13),
            (Error::CheckFailed("2 packs".into()), 15),
            (Error::Refused("locked".into()), 16),
            (Error::SnapshotAmbiguous { spec: "abab".into(), fits: vec![id] }, 1),
            (Error::local("open x", io), 1),
        ];
        for (error, code) in cases {
            assert_eq!(error.exit_code(), code, "{error}");
            assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn unreachable_names_every_endpoint() {
        let error = Error::Unreachable { tried: vec!["a:1".into(), "b:2".into()], last: "timed out".into() };
        assert!(error.to_string().contains("a:1, b:2"));
        assert_eq!(error.retry(), Retry::Later);
    }
}
