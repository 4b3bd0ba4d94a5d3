//! Talking to nodes that are stopped but for their shards, to have a lost catalogue rebuilt. No catalogue answers here,
//! so the profile's endpoints are all there is to go by.

use crate::error::{Error, Result};
use farshore_core::host::{Host, Net};
use farshore_core::id::{ClusterId, NodeId};
use farshore_core::limits::{REBUILD_SILENCE_MS, RECOVERY_CALL_MS};
use farshore_proto::channel::{connect, recovery};
use farshore_proto::profile::Profile;
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Expect, Tls};
use farshore_proto::wire;
use farshore_proto::wire::recovery_client::RecoveryClient;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::Channel;

/// The nodes of a cluster whose catalogue is lost.
pub struct Recovery {
    net: Arc<dyn Net>,
    tls: Arc<Tls>,
    cluster: ClusterId,
    endpoints: Vec<String>,
}

/// A node that answers.
#[derive(Clone, PartialEq, Debug)]
pub struct Found {
    /// Where.
    pub addr: String,
    /// What it says of itself.
    pub standing: wire::StandingReply,
}

/// What the operator has said.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Order {
    /// Do it.
    pub confirm: bool,
    /// Also if more could be had, from exports that lead further or from nodes that were not asked.
    pub accept_less: bool,
}

impl Found {
    /// Who it is.
    pub fn node(&self) -> NodeId {
        NodeId(self.standing.node)
    }
}

impl Recovery {
    /// The cluster of a profile.
    pub fn new(host: &Host, profile: &Profile) -> Result<Self> {
        let tls = Tls::new(&profile.credentials(), host.clock.clone());
        let tls = Arc::new(tls.map_err(|e| Error::Credential(e.to_string()))?);
        let (cluster, endpoints) = (profile.cluster, profile.endpoints.clone());
        Ok(Recovery { net: host.net.clone(), tls, cluster, endpoints })
    }

    fn client(&self, addr: &str, expect: Expect) -> RecoveryClient<Channel> {
        recovery(connect(self.net.clone(), self.tls.clone(), addr.into(), expect))
    }

    /// What each endpoint says of itself, or why it says nothing.
    pub async fn standing(&self) -> Vec<(String, std::result::Result<Found, String>)> {
        let limit = Duration::from_millis(RECOVERY_CALL_MS);
        let asked = self.endpoints.iter().map(|addr| async move {
            let mut client = self.client(addr, Expect::AnyNode);
            let answer = tokio::time::timeout(limit, client.standing(wire::StandingRequest {})).await;
            let found = match answer {
                Ok(Ok(reply)) => Ok(Found { addr: addr.clone(), standing: reply.into_inner() }),
                Ok(Err(status)) => Err(ApiError::from_status(status).to_string()),
                Err(_) => Err("no answer in time".into()),
            };
            (addr.clone(), found)
        });
        futures_util::future::join_all(asked).await
    }

    /// Has one node rebuild the catalogue from what all of them hold; if that is not confirmed only says what would come of
    /// it. A confirmed one goes on even if nobody listens any more.
    pub async fn rebuild(
        &self,
        at: &Found,
        nodes: &[Found],
        order: Order,
        mut tell: impl FnMut(&str),
    ) -> Result<wire::RebuildResult> {
        let seed = |found: &Found| wire::RecoverySeed { node: found.standing.node, addr: found.addr.clone() };
        let request = wire::RebuildRequest {
            cluster: bytes::Bytes::copy_from_slice(self.cluster.as_bytes()),
            nodes: nodes.iter().map(seed).collect(),
            confirm: order.confirm,
            accept_less: order.accept_less,
        };
        let silent = || Error::Protocol("the node that rebuilds fell silent; start again".into());
        let patience = Duration::from_millis(REBUILD_SILENCE_MS);
        let mut client = self.client(&at.addr, Expect::Node(at.node()));
        let begun = tokio::time::timeout(patience, client.rebuild(request)).await.map_err(|_| silent())?;
        let mut reports = begun.map_err(answered)?.into_inner();
        loop {
            let report = tokio::time::timeout(patience, reports.message()).await.map_err(|_| silent())?;
            let report = report.map_err(answered)?.ok_or_else(silent)?;
            if let Some(result) = report.result {
                return Ok(result);
            }
            if !report.doing.is_empty() {
                tell(&report.doing);
            }
        }
    }

    /// Tells a node that the recovery is over.
    pub async fn finish(&self, at: &Found) -> Result<()> {
        let request = wire::FinishRequest { cluster: bytes::Bytes::copy_from_slice(self.cluster.as_bytes()) };
        let limit = Duration::from_millis(RECOVERY_CALL_MS);
        let mut client = self.client(&at.addr, Expect::Node(at.node()));
        match tokio::time::timeout(limit, client.finish(request)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(answered(status)),
            Err(_) => Err(Error::Protocol(format!("{} did not answer in time", at.standing.name))),
        }
    }
}

fn answered(status: tonic::Status) -> Error {
    Error::Invalid(ApiError::from_status(status).to_string())
}
