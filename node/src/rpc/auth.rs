//! Who may call what: one table, asked by every handler. Identity is the certificate's, checked by the TLS layer;
//! grants per repository will narrow what a client may do here and nowhere else.

use farshore_core::catalogue::Actor;
use farshore_proto::serve;
use farshore_proto::status::ApiError;
use farshore_proto::tls::Caller;
use tonic::Request;

/// What a call does, as far as rights go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Right {
    /// Consensus, heartbeats and forwarded commands.
    Consensus,
    /// Reads or changes the catalogue.
    Catalogue,
    /// Keeps a session alive; a node passes its client's renewal on to the leader.
    Renew,
    /// Uploads a shard under a client's session.
    Upload,
    /// Uploads a rebuilt shard.
    Rebuild,
    /// Reads or verifies a shard: clients restore, nodes rebuild.
    ReadShard,
    /// Asks how the cluster is; a node asks its leader on behalf of an operator.
    Status,
    /// Has a node re-read what it holds.
    Scrub,
    /// Has garbage collected; a node asks its leader on behalf of an operator.
    Collect,
    /// Looks at or changes who belongs to the cluster.
    Operate,
    /// Reads the audit records.
    Audit,
    /// Has the catalogue exported.
    Export,
    /// Asks a node under recovery what it holds.
    Inventory,
    /// Has a lost catalogue rebuilt.
    Recover,
}

fn may(caller: &Caller, right: Right) -> bool {
    match (caller, right) {
        (_, Right::ReadShard | Right::Renew | Right::Status | Right::Collect | Right::Inventory) => true,
        (Caller::Node(_), Right::Consensus | Right::Rebuild) => true,
        (Caller::Client(_), Right::Catalogue | Right::Upload | Right::Scrub | Right::Operate) => true,
        (Caller::Client(_), Right::Export | Right::Recover | Right::Audit) => true,
        (Caller::Node(_), Right::Catalogue | Right::Upload | Right::Scrub | Right::Operate) => false,
        (Caller::Node(_), Right::Export | Right::Recover | Right::Audit) => false,
        (Caller::Client(_), Right::Consensus | Right::Rebuild) => false,
    }
}

/// Who calls. Without an identity the request did not come through our listener.
pub fn caller<T>(request: &Request<T>) -> Result<Caller, ApiError> {
    serve::caller(request).cloned().ok_or_else(|| ApiError::Denied("caller is unknown".into()))
}

/// Refuses a caller that lacks the right.
pub fn check(caller: &Caller, right: Right) -> Result<(), ApiError> {
    if may(caller, right) {
        return Ok(());
    }
    tracing::warn!(%caller, ?right, "call refused");
    Err(ApiError::Denied(format!("{caller} lacks the right {right:?}")))
}

/// The caller, if it has the right.
pub fn allow<T>(request: &Request<T>, right: Right) -> Result<Caller, ApiError> {
    let caller = caller(request)?;
    check(&caller, right)?;
    Ok(caller)
}

/// The caller as commands and audit records name it.
pub fn actor(caller: Caller) -> Result<Actor, ApiError> {
    match caller {
        Caller::Node(node) => Ok(Actor::Node(node)),
        // Checked where certificates are read; an identity without a name asks for nothing.
        Caller::Client(name) => Ok(Actor::Client(name.parse()?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_core::id::NodeId;

    fn asked(caller: Option<Caller>, right: Right) -> bool {
        let mut request = Request::new(());
        if let Some(caller) = caller {
            request.extensions_mut().insert(caller);
        }
        allow(&request, right).is_ok()
    }

    #[test]
    fn clients_never_reach_consensus_and_nodes_never_act_as_clients() {
        let (node, client) = (|| Some(Caller::Node(NodeId(1))), || Some(Caller::Client("c".into())));
        for right in [Right::Consensus, Right::Rebuild] {
            assert!(asked(node(), right) && !asked(client(), right), "{right:?}");
        }
        for right in [
            Right::Catalogue,
            Right::Upload,
            Right::Scrub,
            Right::Operate,
            Right::Audit,
            Right::Export,
            Right::Recover,
        ] {
            assert!(!asked(node(), right) && asked(client(), right), "{right:?}");
        }
        for right in [Right::ReadShard, Right::Renew, Right::Status, Right::Collect, Right::Inventory] {
            assert!(asked(node(), right) && asked(client(), right) && !asked(None, right), "{right:?}");
        }
    }
}
