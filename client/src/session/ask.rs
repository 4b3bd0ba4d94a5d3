//! What operators ask and a node looks long for: it tells how far it is, and its last message is the answer.

use super::topology::Operator;
use crate::error::{Error, Result};
use farshore_core::catalogue::Upkeep;
use farshore_core::id::NodeId;
use farshore_core::limits::ASKED_SILENCE_MS;
use farshore_proto::channel::admin;
use farshore_proto::status::ApiError;
use farshore_proto::wire;
use std::time::Duration;
use tonic::Streaming;

impl Operator {
    /// What would become of everything without these nodes. `told` hears how many packs were looked at, and of how many.
    pub async fn what_if(
        &self,
        nodes: &[NodeId],
        mut told: impl FnMut(u64, u64),
    ) -> Result<wire::WhatIfReply> {
        let request = wire::WhatIfRequest { nodes: nodes.iter().map(|node| node.0).collect() };
        let answers = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).what_if(request).await }
        });
        let last = last(answers.await?, |so_far| told(so_far.looked, so_far.total)).await?;
        last.reply.ok_or_else(cut_short)
    }

    /// What is known of one node, and why it is so.
    pub async fn explain_node(&self, node: NodeId) -> Result<wire::NodeExplained> {
        let request = wire::ExplainNodeRequest { node: node.0 };
        let answers =
            self.conversation.call(move |channel| async move { admin(channel).explain_node(request).await });
        last(answers.await?, |_| {}).await?.found.ok_or_else(cut_short)
    }

    /// What is known of the stripes whose id, or whose pack's id, begins so.
    pub async fn explain_stripe(&self, prefix: &str, verify: bool) -> Result<wire::ExplainStripeReply> {
        let request = wire::ExplainStripeRequest { prefix: prefix.into(), verify };
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).explain_stripe(request).await }
        });
        Ok(reply.await?)
    }
}

impl Operator {
    /// Limits of the cluster's own work.
    pub async fn upkeep(&self) -> Result<Upkeep> {
        let reply = self
            .conversation
            .call(|channel| async move { admin(channel).get_upkeep(wire::GetUpkeepRequest {}).await });
        Upkeep::try_from(reply.await?).map_err(|e| Error::Protocol(e.to_string()))
    }

    /// Sets all limits of the cluster's own work.
    pub async fn set_upkeep(&self, upkeep: Upkeep) -> Result<Upkeep> {
        let request = wire::Upkeep::from(upkeep);
        let reply = self.conversation.call(move |channel| {
            let request = request.clone();
            async move { admin(channel).set_upkeep(request).await }
        });
        Upkeep::try_from(reply.await?).map_err(|e| Error::Protocol(e.to_string()))
    }

    /// Records of what was read again after it was moved, the oldest first.
    pub async fn verifications(&self) -> Result<wire::ListVerificationsReply> {
        let reply = self.conversation.call(|channel| async move {
            admin(channel).list_verifications(wire::ListVerificationsRequest {}).await
        });
        Ok(reply.await?)
    }

    /// What has become of the stripes of one record; with `read`, after every shard of theirs was read once more. `told`
    /// hears how many were looked at, and of how many.
    pub async fn check_verification(
        &self,
        number: u64,
        read: bool,
        mut told: impl FnMut(u64, u64),
    ) -> Result<wire::VerificationCheck> {
        let request = wire::CheckVerificationRequest { number, read };
        let answers = self
            .conversation
            .call(move |channel| async move { admin(channel).check_verification(request).await });
        let last = last(answers.await?, |so_far| told(so_far.looked, so_far.total)).await?;
        last.found.ok_or_else(cut_short)
    }
}

/// The last message; `each` hears of all of them.
async fn last<T>(mut answers: Streaming<T>, mut each: impl FnMut(&T)) -> Result<T> {
    let patience = Duration::from_millis(ASKED_SILENCE_MS);
    let mut last = None;
    loop {
        let next = tokio::time::timeout(patience, answers.message()).await.map_err(|_| cut_short())?;
        match next.map_err(|status| failed(ApiError::from_status(status)))? {
            Some(message) => {
                each(&message);
                last = Some(message);
            }
            None => return last.ok_or_else(cut_short),
        }
    }
}

fn cut_short() -> Error {
    Error::Protocol("the node that was asked stopped before it had answered; ask again".into())
}

fn failed(error: ApiError) -> Error {
    match error {
        ApiError::Invalid(why) => Error::Invalid(why),
        ApiError::NoQuorum(last) => Error::NoQuorum { tried: Vec::new(), last },
        other => Error::Unreachable { tried: Vec::new(), last: other.to_string() },
    }
}
