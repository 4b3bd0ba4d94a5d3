//! One conversation with a cluster that any of its nodes may carry on: sticks to a node that works, moves on from one
//! that does not, and gives up on the whole cluster only when its budget is spent. Repeating is harmless because
//! every request carries its own ids.

use crate::api::Topology;
use crate::error::Error;
use farshore_core::host::{Entropy, Net};
use farshore_core::limits::{CATALOGUE_CALL_MS, RETRY_BUDGET_MS};
use farshore_core::retry::{Budget, Retry};
use farshore_proto::channel::connect;
use farshore_proto::status::ApiError;
use farshore_proto::tls::{Expect, Tls, TlsError};
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Response, Status};

/// Addresses of a cluster and which of them to ask.
pub struct Conversation {
    net: Arc<dyn Net>,
    tls: Arc<Tls>,
    entropy: Arc<dyn Entropy>,
    ring: Mutex<Ring>,
}

/// Addresses in the order they are asked, starting at `current`.
struct Ring {
    stops: Vec<Stop>,
    current: usize,
}

struct Stop {
    addr: String,
    channel: Option<Channel>,
}

impl Conversation {
    /// Starts from the addresses of a profile. `Invalid` if there are none.
    pub fn new(
        net: Arc<dyn Net>,
        tls: Arc<Tls>,
        entropy: Arc<dyn Entropy>,
        endpoints: &[String],
    ) -> Result<Self, Error> {
        if endpoints.is_empty() {
            return Err(Error::Invalid("the profile names no endpoint; add the address of a node".into()));
        }
        let stops = endpoints.iter().map(|addr| Stop { addr: addr.clone(), channel: None }).collect();
        let ring = Mutex::new(Ring { stops, current: 0 });
        Ok(Conversation { net, tls, entropy, ring })
    }

    /// Adds the nodes a topology names, so that the conversation survives the loss of every endpoint of the profile.
    pub fn learn(&self, topology: &Topology) {
        let mut ring = self.ring();
        for node in topology.nodes.iter().filter(|n| n.state.counts() && !n.addr.is_empty()) {
            if ring.stops.iter().all(|stop| stop.addr != node.addr) {
                ring.stops.push(Stop { addr: node.addr.clone(), channel: None });
            }
        }
    }

    /// Carries one call through. Asks the next node at once and pauses after each full round. Cancel-safe.
    pub async fn call<T, F>(&self, ask: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut budget = Budget::new(Duration::from_millis(RETRY_BUDGET_MS));
        let mut tried = Vec::<String>::new();
        let mut distrusted = Vec::<String>::new();
        let mut failed_in_round = 0;
        loop {
            let (at, addr, channel) = self.stop();
            let error = match attempt(ask(channel)).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            if let Attempt::Error(error) = &error
                && error.retry() == Retry::Never
            {
                return Err(Failure::Answer(error.clone()));
            }
            note(&mut tried, &addr);
            if let Attempt::Distrust(why) = &error {
                note(&mut distrusted, &addr);
                tracing::debug!(%addr, why, "identity refused");
            }
            failed_in_round += 1;
            let stops = self.move_on(at, &error);
            if failed_in_round < stops {
                continue;
            }
            failed_in_round = 0;
            // Waiting does not mend a certificate.
            let hopeless = matches!(error, Attempt::Distrust(_)) && distrusted.len() >= stops;
            if hopeless || !budget.pause(self.entropy.as_ref()).await {
                return Err(Failure::GaveUp { tried, last: error });
            }
        }
    }

    /// Where to ask now.
    fn stop(&self) -> (usize, String, Channel) {
        let mut ring = self.ring();
        let at = ring.current;
        let stop = &mut ring.stops[at];
        let fresh = || connect(self.net.clone(), self.tls.clone(), stop.addr.clone(), Expect::AnyNode);
        (at, stop.addr.clone(), stop.channel.get_or_insert_with(fresh).clone())
    }

    /// Turns to the next address, unless another call has done so already or the node only asked for a pause. Returns
    /// how many addresses a round has.
    fn move_on(&self, from: usize, error: &Attempt) -> usize {
        let mut ring = self.ring();
        let busy = matches!(error, Attempt::Error(error) if error.retry() == Retry::Later);
        if busy {
            return 1;
        }
        if ring.current == from {
            ring.current = (from + 1) % ring.stops.len();
        }
        ring.stops.len()
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().expect("no holder of this lock panics")
    }
}

fn note(list: &mut Vec<String>, addr: &str) {
    if !list.iter().any(|known| known == addr) {
        list.push(addr.into());
    }
}

/// How one attempt ended.
#[derive(Debug)]
pub enum Attempt {
    /// With an error of ours or of the transport.
    Error(ApiError),
    /// The other end is not who it should be, or our own credentials are unusable.
    Distrust(String),
}

/// How a whole call ended without success.
#[derive(Debug)]
pub enum Failure {
    /// A node answered, and asking again would not change the answer.
    Answer(ApiError),
    /// Nobody answered usefully in time.
    GaveUp {
        /// Addresses asked.
        tried: Vec<String>,
        /// How the last attempt ended.
        last: Attempt,
    },
}

async fn attempt<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, Attempt> {
    match tokio::time::timeout(Duration::from_millis(CATALOGUE_CALL_MS), call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(distrust(&status).unwrap_or_else(|| Attempt::Error(status.into()))),
        Err(_) => Err(Attempt::Error(ApiError::Unreachable(format!("no answer in {CATALOGUE_CALL_MS} ms")))),
    }
}

/// The channel leaves the TLS error below the status. A broken handshake may be a broken line; the rest is not.
fn distrust(status: &Status) -> Option<Attempt> {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        match error.downcast_ref::<TlsError>() {
            Some(TlsError::Handshake(_)) => return None,
            Some(refused) => return Some(Attempt::Distrust(refused.to_string())),
            None => cause = error.source(),
        }
    }
    None
}

impl From<Failure> for Error {
    /// What a failure means where a call has no better word for it.
    fn from(failure: Failure) -> Error {
        match failure {
            Failure::Answer(answer) => answered(answer),
            Failure::GaveUp { last: Attempt::Distrust(why), .. } => Error::Credential(why),
            Failure::GaveUp { tried, last: Attempt::Error(ApiError::NoQuorum(last)) } => {
                Error::NoQuorum { tried, last }
            }
            Failure::GaveUp { tried, last: Attempt::Error(last) } => {
                Error::Unreachable { tried, last: last.to_string() }
            }
        }
    }
}

fn answered(answer: ApiError) -> Error {
    match answer {
        ApiError::ChunksGone(ordinals) => Error::ChunksGone(ordinals),
        ApiError::BelowFloor(why) => Error::BelowFloor(why),
        ApiError::Denied(why) => Error::Refused(why),
        ApiError::Exists(why) | ApiError::NotFound(why) | ApiError::Invalid(why) => Error::Invalid(why),
        ApiError::NoSession(why) => Error::Invalid(why),
        other => Error::Protocol(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_become_the_right_exit_codes() {
        let gave_up = |last| Failure::GaveUp { tried: vec!["a:1".into()], last };
        let code = |failure| Error::from(failure).exit_code();
        assert_eq!(code(gave_up(Attempt::Error(ApiError::NoQuorum("x".into())))), 13);
        assert_eq!(code(gave_up(Attempt::Error(ApiError::Unreachable("x".into())))), 13);
        assert_eq!(code(gave_up(Attempt::Distrust("x".into()))), 12);
        assert_eq!(code(Failure::Answer(ApiError::Denied("x".into()))), 16);
        assert_eq!(code(Failure::Answer(ApiError::BelowFloor("x".into()))), 13);
    }
}
