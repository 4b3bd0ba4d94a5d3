//! Having the leader export the catalogue now. It may take longer than any call of a client's conversation.

use crate::api::ClusterStatus;
use crate::error::{Error, Result};
use farshore_core::limits::EXPORT_CALL_MS;
use farshore_proto::channel::admin;
use farshore_proto::peers::Peers;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::time::Duration;

/// Asks the leader that a status names.
pub async fn export(peers: &Peers, status: &ClusterStatus) -> Result<wire::ExportCatalogueReply> {
    let no_leader =
        || Error::NoQuorum { tried: Vec::new(), last: "no leader is known; ask again in a moment".into() };
    let leader = status.leader.filter(|_| !status.stale).ok_or_else(no_leader)?;
    let line = peers.channel(leader).ok_or_else(no_leader)?;
    let mut client = admin(line);
    let call = client.export_catalogue(wire::ExportCatalogueRequest {});
    match tokio::time::timeout(Duration::from_millis(EXPORT_CALL_MS), call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(failed)) => Err(refused(ApiError::from_status(failed))),
        Err(_) => Err(Error::Protocol("the leader is still exporting; it goes on by itself".into())),
    }
}

fn refused(error: ApiError) -> Error {
    match error {
        ApiError::NoQuorum(last) => Error::NoQuorum { tried: Vec::new(), last },
        other => Error::Invalid(other.to_string()),
    }
}
